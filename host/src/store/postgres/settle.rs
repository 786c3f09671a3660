//! Settling leases. Invariant: a lease is settled once, before its deadline by the database's clock, under the lock of its
//! row; by any broker. One item's refusal does not touch the others.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::Row as _;

use super::control::group_spec;
use super::ends::{End, Ending, Totals, group_specs};
use super::grant::{Grant, grants, named_by};
use super::sql::{Tx, commit, failed, g, ms, now, t, time, topic_id};
use super::{ATTEMPTS_MAX, Shared};
use crate::clock::Timestamp;
use crate::message::{FailedAttempt, Failure, GroupId, TopicId};
use crate::store::{GroupSpec, LeaseRef, Receipt, Settle, SettleRefused, Settled, Settlement, StoreError};

type Row = (i64, i64);
type Results = Vec<Result<Settled, SettleRefused>>;

/// Which lease an item means.
#[derive(Clone, Copy)]
struct Meant {
    row: Row,
    nth: usize,
}

impl Shared {
    /// See [`crate::store::MessageStore::settle`].
    pub(super) async fn settle(&self, settles: &[Settle]) -> Result<Results, StoreError> {
        if settles.is_empty() {
            return Ok(Vec::new());
        }
        let acked = self.ack_as_usual(settles).await?;
        if acked.len() == settles.len() {
            return Ok(vec![Ok(Settled::Acked); settles.len()]);
        }
        if acked.is_empty() {
            return self.settle_each(settles).await;
        }
        let rest: Vec<Settle> = settles
            .iter()
            .enumerate()
            .filter(|(nth, _)| !acked.contains(nth))
            .map(|(_, settle)| settle.clone())
            .collect();
        let mut left = ATTEMPTS_MAX;
        let mut rest = loop {
            match self.settle_each(&rest).await {
                Ok(results) => break results.into_iter(),
                Err(error) if left > 1 && self.may_repeat(&error) => left -= 1,
                // Asked again, what is acknowledged would be refused.
                Err(error) => return Err(StoreError::OutcomeUnknown(format!("some were acknowledged, then {error}"))),
            }
        };
        let result =
            |nth| if acked.contains(&nth) { Ok(Settled::Acked) } else { rest.next().expect("one result each") };
        Ok((0..settles.len()).map(result).collect())
    }

    async fn settle_each(&self, settles: &[Settle]) -> Result<Results, StoreError> {
        let mut tx = self.begin().await?;
        let mut meant: Vec<Option<Meant>> = Vec::with_capacity(settles.len());
        for settle in settles {
            meant.push(match &settle.lease {
                LeaseRef::Receipt { receipt, .. } => {
                    let (row, nth) = named_by(receipt);
                    Some(Meant { row, nth })
                }
                LeaseRef::Holder { .. } => find_held(&mut tx, &settle.lease).await?,
            });
        }
        let rows: BTreeSet<Row> = meant.iter().flatten().map(|meant| meant.row).collect();
        let Held { mut grants, mut groups, now } = self.hold(&mut tx, &rows).await?;
        let unknown = settles.iter().map(|settle| named(&settle.lease)).map(|(topic, group)| (t(topic), g(group)));
        let unknown: BTreeSet<_> = unknown.filter(|group| !groups.contains_key(group)).collect();
        if !unknown.is_empty() {
            groups.extend(group_specs(&mut tx, unknown.into_iter()).await?);
        }
        let (mut results, mut endings) = (Vec::with_capacity(settles.len()), Vec::new());
        let mut totals = Totals::default();
        for (settle, meant) in settles.iter().zip(&meant) {
            let ended = meant.and_then(|meant| Some((grants.get_mut(&meant.row)?, meant.nth)));
            results.push(one(settle, ended, &groups, now, &mut endings, &mut totals));
        }
        let changed: Vec<Grant> = grants.into_values().collect();
        // As usual: all of an answer is acked, at its first attempt.
        let is_plain = |ending: &Ending| matches!(ending.end, End::Done) && !ending.entry.again;
        let mut woken = BTreeSet::new();
        if !endings.is_empty() && endings.iter().all(is_plain) && changed.iter().all(Grant::is_done) {
            self.end_acked(&mut tx, &changed, &totals).await?;
            // What waits behind a message of its key may go now.
            let keyed = endings.iter().filter(|ending| ending.entry.key.is_some());
            woken.extend(keyed.map(|ending| topic_id(ending.place.0)));
        } else {
            Grant::write(&changed, &mut tx).await?;
            if !endings.is_empty() {
                woken = self.carry_out(&mut tx, &endings, &mut totals, now).await?;
            }
            totals.write(self, &mut tx).await?;
        }
        commit(tx).await?;
        woken.into_iter().for_each(|topic| self.wake(topic));
        Ok(results)
    }
}

impl Shared {
    /// See [`crate::store::MessageStore::ended`].
    pub(super) async fn ended(&self, receipts: &[Receipt]) -> Result<Vec<Receipt>, StoreError> {
        let rows: BTreeSet<Row> = receipts.iter().map(|receipt| named_by(receipt).0).collect();
        let (epochs, numbers): (Vec<i64>, Vec<i64>) = rows.into_iter().unzip();
        let mut tx = self.look().await?;
        let now = now(&mut tx, &self.clock).await?;
        let rows =
            sqlx::query(grants!("JOIN unnest($1::bigint[], $2::bigint[]) AS w(epoch, number) USING (epoch, number)"))
                .bind(epochs)
                .bind(numbers)
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
        let mut grants: HashMap<Row, Grant> = HashMap::new();
        for row in &rows {
            let grant = Grant::read(row)?;
            grants.insert((grant.epoch, grant.number), grant);
        }
        let lives = |receipt: &&Receipt| {
            let (row, nth) = named_by(receipt);
            grants.get(&row).is_some_and(|grant| grant.is_open(nth) && grant.deadline_of(nth) > now)
        };
        Ok(receipts.iter().filter(|receipt| !lives(receipt)).copied().collect())
    }
}

/// Leases that are locked.
#[derive(Default)]
struct Held {
    grants: BTreeMap<Row, Grant>,
    groups: HashMap<(i32, i32), GroupSpec>,
    /// The time when all were locked.
    now: i64,
}

impl Shared {
    async fn hold(&self, tx: &mut Tx, rows: &BTreeSet<Row>) -> Result<Held, StoreError> {
        let (epochs, numbers): (Vec<i64>, Vec<i64>) = rows.iter().copied().unzip();
        let (given, ahead) = time(&self.clock);
        let rows = sqlx::query("SELECT * FROM store_hold($1, $2, $3, $4)")
            .bind(epochs)
            .bind(numbers)
            .bind(given)
            .bind(ahead)
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
        let mut held = Held::default();
        let mut grants = rows.iter().map(Grant::read).collect::<Result<Vec<_>, _>>()?;
        Grant::know(&mut grants, tx).await?;
        for (row, grant) in rows.iter().zip(grants) {
            if let Entry::Vacant(unknown) = held.groups.entry((grant.place.0, grant.group)) {
                unknown.insert(group_spec(row.try_get(13).map_err(failed)?)?);
            }
            held.now = row.try_get(14).map_err(failed)?;
            held.grants.insert((grant.epoch, grant.number), grant);
        }
        Ok(held)
    }

    async fn end_acked(&self, tx: &mut Tx, grants: &[Grant], totals: &Totals) -> Result<(), StoreError> {
        let acked: Vec<((i32, i32), i64)> = totals.all_acked().collect();
        sqlx::query("SELECT store_acked($1, $2, $3, $4, $5, $6)")
            .bind(grants.iter().map(|grant| grant.epoch).collect::<Vec<_>>())
            .bind(grants.iter().map(|grant| grant.number).collect::<Vec<_>>())
            .bind(acked.iter().map(|((topic, _), _)| *topic).collect::<Vec<_>>())
            .bind(acked.iter().map(|((_, group), _)| *group).collect::<Vec<_>>())
            .bind(acked.iter().map(|(_, count)| *count).collect::<Vec<_>>())
            .bind(self.slot())
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        Ok(())
    }
}

/// Decides one item.
fn one(
    settle: &Settle,
    lease: Option<(&mut Grant, usize)>,
    groups: &HashMap<(i32, i32), GroupSpec>,
    now: i64,
    endings: &mut Vec<Ending>,
    totals: &mut Totals,
) -> Result<Settled, SettleRefused> {
    let (topic, group) = named(&settle.lease);
    let spec = groups.get(&(t(topic), g(group))).ok_or(SettleRefused::NotFound)?;
    let (grant, nth) = lease.ok_or(SettleRefused::LeaseExpired)?;
    if nth >= grant.entries.len() {
        return Err(SettleRefused::LeaseExpired);
    }
    match &settle.lease {
        LeaseRef::Receipt { receipt, message } => {
            let same = grant.position(nth) == receipt.position && grant.group_id() == receipt.group;
            if !same || !grant.is_open(nth) {
                return Err(SettleRefused::LeaseExpired);
            }
            if message.is_some_and(|message| message != grant.entries[nth].id) {
                return Err(SettleRefused::WrongMessage);
            }
        }
        LeaseRef::Holder { holder, .. } if **holder != *grant.holder => return Err(SettleRefused::LeaseExpired),
        LeaseRef::Holder { .. } => {}
    }
    if !grant.is_open(nth) || grant.deadline_of(nth) <= now {
        return Err(SettleRefused::LeaseExpired);
    }
    let entry = grant.entries[nth].clone();
    let attempts = entry.attempt;
    let failed = |failure: &Failure| FailedAttempt { attempt: attempts, at: Timestamp(now), failure: failure.clone() };
    let (end, settled) = match &settle.settlement {
        Settlement::Extend { duration } => {
            let until = now.saturating_add(ms(*duration));
            grant.extend(nth, until);
            return Ok(Settled::Extended { until: Timestamp(until) });
        }
        Settlement::Ack => {
            totals.acked(t(topic), g(group), 1);
            (End::Done, Settled::Acked)
        }
        Settlement::Retry { failure, .. } if attempts >= spec.attempts_max => {
            (End::Bury { attempts, failure: failure.clone(), failed: true }, Settled::DeadLettered)
        }
        Settlement::Retry { at, failure } => {
            // What may go at once is ready; the rest becomes so with a tick.
            let due = if at.0 <= now { 0 } else { at.0 };
            (End::Wait { at: due, attempts, failure: Some(failed(failure)) }, Settled::Retrying { at: *at })
        }
        Settlement::DeadLetter { failure } => {
            (End::Bury { attempts, failure: failure.clone(), failed: true }, Settled::DeadLettered)
        }
        Settlement::Release => {
            (End::Wait { at: 0, attempts: attempts.saturating_sub(1), failure: None }, Settled::Released)
        }
    };
    grant.close(nth);
    endings.push(Ending { place: grant.place, group: grant.group, entry, end });
    Ok(settled)
}

fn named(lease: &LeaseRef) -> (TopicId, GroupId) {
    match lease {
        LeaseRef::Receipt { receipt, .. } => (receipt.position.topic, receipt.group),
        LeaseRef::Holder { topic, group, .. } => (*topic, *group),
    }
}

/// The lease of a message that a holder has.
async fn find_held(tx: &mut Tx, lease: &LeaseRef) -> Result<Option<Meant>, StoreError> {
    let LeaseRef::Holder { topic, group, message, holder } = lease else { return Ok(None) };
    let rows = sqlx::query(grants!("WHERE g.topic = $1 AND g.grp = $2 AND g.holder = $3"))
        .bind(t(*topic))
        .bind(g(*group))
        .bind(&**holder)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    let mut grants = rows.iter().map(Grant::read).collect::<Result<Vec<_>, _>>()?;
    Grant::know(&mut grants, tx).await?;
    for grant in &grants {
        let found = grant.open().find(|(_, entry)| entry.id == *message).map(|(nth, _)| nth);
        if let Some(nth) = found {
            return Ok(Some(Meant { row: (grant.epoch, grant.number), nth }));
        }
    }
    Ok(None)
}
