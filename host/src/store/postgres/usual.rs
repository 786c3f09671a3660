//! What is asked most often, and costs most therefore: the usual append, lease and acknowledgement, one question each
//! (`migrations/postgres/010_store_usual.sql`, of which `012_store_give.sql` has the lease anew). Invariant: where anything is not as usual nothing is done here, and `append`, `lease`
//! and `settle` decide.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::control::{CLASSES, range_of};
use super::grant::{first_receipt, named_by};
use super::log::Whole;
use super::sql::{LATE_MOST, Tx, body_at, commit, damaged, failed, g, ms, n, p, position, t, time};
use super::{ANSWER_TIMEOUT, Shared};
use crate::clock::Timestamp;
use crate::message::{MessageId, Offset, Position};
use crate::store::embedded::ops::{Body, Head};
use crate::store::embedded::state::append::{Batch, Prepared};
use crate::store::{
    AppendOutcome, Lease, LeaseRef, LeaseRequest, Leased, Mode, Receipt, Settle, Settlement, StoreError,
};

/// Partitions that one call leases from.
const PARTITIONS_MAX: usize = 16;

/// What one partition gave.
struct Taken {
    leases: Vec<Lease>,
    /// Whether another partition has something.
    others: bool,
    /// Whether this one has.
    rest: bool,
}

impl Shared {
    /// Stores messages for one partition that nothing is to be decided of; none where something is.
    pub(super) async fn append_as_usual(&self, batch: &Batch) -> Result<Option<Vec<AppendOutcome>>, StoreError> {
        let Some((place, bodies)) = plain(batch) else { return Ok(None) };
        let (given, ahead) = time(&self.clock);
        let (known_from, known_until) = self.known_ranges();
        let published = bodies.iter().map(|body| body.head.id.timestamp().0).max().unwrap_or(0);
        let cost: u64 = bodies.iter().map(|body| body.head.cost()).sum();
        let mut tx = self.begin().await?;
        let stored: Option<i64> = sqlx::query_scalar(
            "SELECT store_append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        )
        .bind(t(batch.topic))
        .bind(p(place))
        .bind(n(batch.revision))
        .bind(published)
        .bind(LATE_MOST)
        .bind(known_from)
        .bind(known_until)
        .bind(n(cost))
        .bind(bodies.iter().map(|body| body.head.id.0).collect::<Vec<Uuid>>())
        .bind(told(&bodies, |head| head.expires_at.map(|at| at.0)))
        .bind(told(&bodies, |head| head.key.map(u64::cast_signed)))
        .bind(told(&bodies, |head| head.target.map(g)))
        .bind(bodies.iter().map(|body| body.head.meta_len.cast_signed()).collect::<Vec<i32>>())
        .bind(bodies.iter().map(|body| body.head.crc.cast_signed()).collect::<Vec<i32>>())
        .bind(bodies.iter().map(|body| Whole((*body).clone())).collect::<Vec<_>>())
        .bind(given)
        .bind(ahead)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        let Some(first) = stored else {
            tx.rollback().await.map_err(failed)?;
            return Ok(None);
        };
        commit(tx).await?;
        self.wake(batch.topic);
        let outcome = |seq| AppendOutcome::Stored(position((t(batch.topic), p(place)), 0, seq));
        Ok(Some((first..).take(bodies.len()).map(outcome).collect()))
    }

    /// From when and until when, by class, the table for now is known to be there.
    fn known_ranges(&self) -> (Vec<i64>, Vec<i64>) {
        let (now, known) = (self.clock.now().0, self.ranges.lock());
        let range = |class: i16| {
            let (from, width) = range_of(class, now);
            if known.contains(&(class, from)) { (from, from + width) } else { (0, 0) }
        };
        (0..).map(range).take(CLASSES.len()).unzip()
    }
}

/// The partition and the messages of a batch that is nothing but messages for it.
fn plain(batch: &Batch) -> Option<(u16, Vec<&Body>)> {
    let is_alone = batch.kv.is_empty()
        && batch.values.read.is_empty()
        && batch.values.written.is_empty()
        && batch.replays.is_empty();
    let mut bodies = Vec::with_capacity(batch.items.len());
    let mut places = BTreeSet::new();
    for item in batch.items.iter().filter(|_| is_alone) {
        match &item.entry {
            Prepared::Log { lane, body, due: None }
                if lane.lane == 0 && item.key.is_none() && item.emitted.is_empty() =>
            {
                places.insert(lane.partition);
                bodies.push(body);
            }
            _ => return None,
        }
    }
    let place = places.pop_first()?;
    places.is_empty().then_some((place, bodies))
}

/// Something that few messages have: nothing, where none of these has it.
fn told<T>(bodies: &[&Body], of: impl Fn(&Head) -> Option<T>) -> Option<Vec<Option<T>>> {
    let all: Vec<Option<T>> = bodies.iter().map(|body| of(&body.head)).collect();
    all.iter().any(Option::is_some).then_some(all)
}

impl Shared {
    /// Leases that need no look at anything else; none where they do, or where there are none.
    pub(super) async fn lease_as_usual(&self, request: &LeaseRequest) -> Result<Leased, StoreError> {
        let mut all = Leased { leases: Vec::new(), more: true };
        if request.ordered || request.mode != Mode::AtLeastOnce {
            return Ok(all);
        }
        let mut bytes = 0;
        for _ in 0..PARTITIONS_MAX {
            let taken = match self.take(request, all.leases.len(), bytes).await {
                Ok(Some(taken)) => taken,
                // What was granted is not to wait for its deadline.
                Err(error) if !all.leases.is_empty() => {
                    tracing::debug!(%error, "a lease is smaller than it could be");
                    break;
                }
                taken => {
                    taken?;
                    break;
                }
            };
            bytes += taken.leases.iter().map(|lease| lease.message.payload.len()).sum::<usize>();
            all.leases.extend(taken.leases);
            all.more = taken.others || taken.rest;
            if !taken.others || taken.rest || all.leases.len() >= request.max || bytes >= request.bytes_max {
                break;
            }
        }
        Ok(all)
    }

    async fn take(&self, request: &LeaseRequest, count: usize, bytes: usize) -> Result<Option<Taken>, StoreError> {
        let (given, ahead) = time(&self.clock);
        let number = self.next_grant.fetch_add(1, Ordering::Relaxed).cast_signed();
        let mut tx = self.begin().await?;
        let rows = sqlx::query("SELECT * FROM store_give($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)")
            .bind(t(request.topic))
            .bind(g(request.group))
            .bind(i64::try_from(request.max - count).unwrap_or(i64::MAX))
            .bind(i64::try_from(request.bytes_max - bytes).unwrap_or(i64::MAX))
            .bind(count == 0)
            // Brokers begin with different partitions, and with another one each time.
            .bind(self.epoch.wrapping_mul(7).wrapping_add(number) & i64::from(i32::MAX))
            .bind(self.epoch)
            .bind(number)
            .bind(ms(request.duration))
            .bind(&*request.holder)
            .bind(given)
            .bind(ahead)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        let answer = rows.first().map(Answer::read).transpose().map_err(failed)?;
        let Some(answer) = answer.flatten().filter(|answer| answer.count == rows.len()) else {
            return unusual(tx).await;
        };
        let deadline = Timestamp(answer.now).plus(request.duration);
        let mut leases = Vec::with_capacity(rows.len());
        for (nth, row) in rows.iter().enumerate() {
            if row.try_get(1).map_err(failed)? {
                return unusual(tx).await;
            }
            let message =
                body_at(row, 2)?.message().ok_or_else(|| damaged("messages", "a message's meta cannot be read"))?;
            let position = position((t(request.topic), answer.part), 0, answer.first + nth as i64);
            let receipt = first_receipt((self.epoch, number), nth, position, request.group);
            leases.push(Lease { position, message, attempt: 1, deadline, receipt });
        }
        commit(tx).await?;
        Ok(Some(Taken { leases, others: answer.others, rest: answer.rest }))
    }
}

/// What an answer of `store_give` says of all of it.
struct Answer {
    part: i16,
    now: i64,
    others: bool,
    rest: bool,
    first: i64,
    count: usize,
}

impl Answer {
    /// Nothing where the first row is not that of the first message.
    fn read(row: &PgRow) -> Result<Option<Answer>, sqlx::Error> {
        let Some(about) = row.try_get::<Option<Vec<i64>>, _>(0)? else { return Ok(None) };
        let [part, now, others, rest, first, count] = about[..] else { return Ok(None) };
        let (Ok(part), Ok(count)) = (i16::try_from(part), usize::try_from(count)) else { return Ok(None) };
        Ok(Some(Answer { part, now, others: others != 0, rest: rest != 0, first, count }))
    }
}

/// Takes back what was granted, and lets go of the cursor before the general lease looks at it: one that is dropped with its
/// transaction stays locked for a moment, and would be passed over.
async fn unusual(tx: Tx) -> Result<Option<Taken>, StoreError> {
    tx.rollback().await.map_err(failed)?;
    Ok(None)
}

/// One answer to a lease, of which all is acknowledged.
struct Done {
    row: (i64, i64),
    topic: i32,
    part: i16,
    group: i32,
    first: i64,
    /// In their order, if the caller has named them.
    ids: Option<Vec<MessageId>>,
    count: usize,
    /// Which of the settlements these are.
    items: Vec<usize>,
}

impl Shared {
    /// Acknowledges all of usual answers at once; says of which settlements that was done. They are done whatever becomes of the others.
    pub(super) async fn ack_as_usual(&self, settles: &[Settle]) -> Result<BTreeSet<usize>, StoreError> {
        let all = answers(settles);
        if all.is_empty() {
            return Ok(BTreeSet::new());
        }
        let connection = self.desk.lend().await.map_err(failed)?;
        let rows = connection.ask(self.done(&all), ANSWER_TIMEOUT).await.map_err(answered)?;
        let mut acked = BTreeSet::new();
        for row in &rows {
            let row: (i64, i64) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
            acked.extend(all.iter().filter(|done| done.row == row).flat_map(|done| &done.items));
        }
        Ok(acked)
    }

    /// As one text, which is one transaction and takes one way there and back. There is nothing in it but numbers.
    fn done(&self, all: &[Done]) -> String {
        let list = |of: &dyn Fn(&Done) -> String| all.iter().map(of).collect::<Vec<_>>().join(",");
        let ids = |done: &Done| match &done.ids {
            None => "NULL".to_owned(),
            Some(ids) => {
                ids.iter().fold(String::from("'\\x"), |mut text, id| {
                    write!(text, "{}", id.0.simple()).expect("a text in memory takes it");
                    text
                }) + "'"
            }
        };
        let (given, ahead) = time(&self.clock);
        format!(
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = '10s'; SELECT * FROM store_done(ARRAY[{}]::bigint[], ARRAY[{}]::bigint[], ARRAY[{}]::integer[], \
             ARRAY[{}]::smallint[], ARRAY[{}]::integer[], ARRAY[{}]::bigint[], ARRAY[{}]::integer[], ARRAY[{}]::bytea[], {}::smallint, \
             {}::bigint, {ahead}::bigint)",
            list(&|done| done.row.0.to_string()),
            list(&|done| done.row.1.to_string()),
            list(&|done| done.topic.to_string()),
            list(&|done| done.part.to_string()),
            list(&|done| done.group.to_string()),
            list(&|done| done.first.to_string()),
            list(&|done| done.count.to_string()),
            list(&ids),
            self.slot(),
            given.map_or("NULL".to_owned(), |given| given.to_string()),
        )
    }
}

/// One acknowledgement of an answer's nth message.
struct Ack {
    nth: usize,
    /// Which of the settlements it is.
    item: usize,
    receipt: Receipt,
    id: Option<MessageId>,
}

/// What an error means that came for an answer to a whole transaction. The server's word that it was refused is one, but where that
/// may be a pooler's, or of a server that was stopped behind a commit.
fn answered(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Database(refused)
            if refused.code().is_some_and(|code| {
                code != "40003" && !["08", "57P", "XX"].iter().any(|class| code.starts_with(class))
            }) =>
        {
            failed(sqlx::Error::Database(refused))
        }
        lost => StoreError::OutcomeUnknown(format!("the database: {lost}")),
    }
}

/// The answers that these settlements could be all of, if there is nothing else among them.
fn answers(settles: &[Settle]) -> Vec<Done> {
    let mut all: BTreeMap<(i64, i64), Vec<Ack>> = BTreeMap::new();
    for (item, settle) in settles.iter().enumerate() {
        let (LeaseRef::Receipt { receipt, message }, Settlement::Ack) = (&settle.lease, &settle.settlement) else {
            return Vec::new();
        };
        let (row, nth) = named_by(receipt);
        all.entry(row).or_default().push(Ack { nth, item, receipt: *receipt, id: *message });
    }
    all.into_iter().filter_map(|(row, acks)| answer(row, acks)).collect()
}

fn answer(row: (i64, i64), mut acks: Vec<Ack>) -> Option<Done> {
    acks.sort_unstable_by_key(|ack| ack.nth);
    let Receipt { position: first, group, .. } = acks.first()?.receipt;
    let follows = |(at, ack): (usize, &Ack)| {
        let position = Position { offset: Offset(first.offset.0 + at as u64), ..first };
        ack.nth == at && ack.receipt.position == position && ack.receipt.group == group
    };
    if first.offset.lane() != 0 || !acks.iter().enumerate().all(follows) {
        return None;
    }
    let named: Vec<MessageId> = acks.iter().filter_map(|ack| ack.id).collect();
    let ids = match named.len() {
        0 => None,
        len if len == acks.len() => Some(named),
        _ => return None,
    };
    Some(Done {
        row,
        topic: t(first.topic),
        part: p(first.partition),
        group: g(group),
        first: n(first.offset.sequence()),
        ids,
        count: acks.len(),
        items: acks.iter().map(|ack| ack.item).collect(),
    })
}
