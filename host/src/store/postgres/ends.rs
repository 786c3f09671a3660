//! How a message's lease ends: it is done, waits again, or becomes a dead letter. Invariant: the copy in the dead-letter
//! topic, the end of the lease and the count of it are one transaction. Decides nothing: settling and expiring do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::Shared;
use super::grant::Entry;
use super::log::Log;
use super::sql::{Place, STORED, Stored, Tx, damaged, failed, group_id, place_of, position, topic_id};
use crate::clock::Timestamp;
use crate::message::{DeadLetterFacts, FailedAttempt, Failure, Failures, PRIORITY_MAX, TopicId};
use crate::store::embedded::ops::Body;
use crate::store::embedded::state::settle::{EXPIRED, LEASE_EXPIRED, dead_letter_id};
use crate::store::{GroupSpec, StoreError};

/// Rows of totals that a group has; calls take different ones, since what counts in one waits for the commit of the one before.
const SLOTS: i64 = 32;

/// What becomes of a message for a group.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// It is settled.
    Done,
    /// It waits for another attempt.
    Wait { at: i64, attempts: u32, failure: Option<FailedAttempt> },
    /// It is a dead letter after so many attempts; `failed` if this was one of them.
    Bury { attempts: u32, failure: Failure, failed: bool },
}

/// A message that was leased, or passed over, and what becomes of it.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    pub place: Place,
    pub group: i32,
    pub entry: Entry,
    pub end: End,
}

/// What is added to the totals of groups.
#[derive(Default)]
pub(super) struct Totals(BTreeMap<(i32, i32), [i64; 4]>);

impl Totals {
    pub fn acked(&mut self, topic: i32, group: i32, count: i64) {
        self.0.entry((topic, group)).or_default()[0] += count;
    }

    pub fn dead_lettered(&mut self, topic: i32, group: i32, count: i64) {
        self.0.entry((topic, group)).or_default()[1] += count;
    }

    pub fn expired(&mut self, topic: i32, group: i32, count: i64) {
        self.0.entry((topic, group)).or_default()[2] += count;
    }

    pub fn delivered(&mut self, topic: i32, group: i32, count: i64) {
        self.0.entry((topic, group)).or_default()[3] += count;
    }

    /// What was acked, by topic and group.
    pub fn all_acked(&self) -> impl Iterator<Item = ((i32, i32), i64)> {
        self.0.iter().map(|(group, counts)| (*group, counts[0]))
    }

    /// Writes them, as the last of a transaction: others that count for these groups wait for its end.
    pub async fn write(&self, shared: &Shared, tx: &mut Tx) -> Result<(), StoreError> {
        let counts: Vec<_> = self.0.iter().filter(|(_, counts)| counts.iter().any(|count| *count != 0)).collect();
        if counts.is_empty() {
            return Ok(());
        }
        let column = |nth: usize| counts.iter().map(|(_, counts)| counts[nth]).collect::<Vec<i64>>();
        sqlx::query(
            "INSERT INTO group_totals AS t (topic, grp, slot, acked, dead_lettered, expired, delivered) \
             SELECT w.topic, w.grp, $3, w.acked, w.dead_lettered, w.expired, w.delivered \
             FROM unnest($1::integer[], $2::integer[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[]) \
             AS w(topic, grp, acked, dead_lettered, expired, delivered) \
             WHERE EXISTS (SELECT 1 FROM store_groups g WHERE g.topic = w.topic AND g.grp = w.grp) \
             ORDER BY w.topic, w.grp \
             ON CONFLICT (topic, grp, slot) DO UPDATE SET acked = t.acked + excluded.acked, \
             dead_lettered = t.dead_lettered + excluded.dead_lettered, expired = t.expired + excluded.expired, \
             delivered = t.delivered + excluded.delivered",
        )
        .bind(counts.iter().map(|((topic, _), _)| *topic).collect::<Vec<i32>>())
        .bind(counts.iter().map(|((_, group), _)| *group).collect::<Vec<i32>>())
        .bind(shared.slot())
        .bind(column(0))
        .bind(column(1))
        .bind(column(2))
        .bind(column(3))
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        Ok(())
    }
}

impl Shared {
    /// The row of totals that a call counts in.
    pub(super) fn slot(&self) -> i16 {
        let turn = self.next_slot.fetch_add(1, Ordering::Relaxed);
        i16::try_from(self.epoch.wrapping_mul(7).wrapping_add(turn).rem_euclid(SLOTS)).unwrap_or(0)
    }

    /// Carries endings out; returns the topics in which something waits that did not before.
    pub(super) async fn carry_out(
        &self,
        tx: &mut Tx,
        endings: &[Ending],
        totals: &mut Totals,
        now: i64,
    ) -> Result<BTreeSet<TopicId>, StoreError> {
        let (mut done, mut waiting, mut buried) = (Vec::new(), Vec::new(), Vec::new());
        for ending in endings {
            match &ending.end {
                End::Done => done.push(ending),
                End::Wait { .. } => waiting.push(ending),
                End::Bury { .. } => buried.push(ending),
            }
        }
        let failures = remembered(tx, &waiting, &buried).await?;
        let mut woken = BTreeSet::new();
        if !buried.is_empty() {
            woken.extend(self.bury(tx, &buried, &failures, totals, now).await?);
            done.extend(&buried);
        }
        wait(tx, &waiting, &failures).await?;
        woken.extend(waiting.iter().map(|ending| topic_id(ending.place.0)));
        forget(tx, &done).await?;
        // What waits behind a message of its key may go now.
        woken.extend(done.iter().filter(|ending| ending.entry.key.is_some()).map(|ending| topic_id(ending.place.0)));
        Ok(woken)
    }

    async fn bury(
        &self,
        tx: &mut Tx,
        buried: &[&Ending],
        failures: &HashMap<(i32, i32, i16, i64), Failures>,
        totals: &mut Totals,
        now: i64,
    ) -> Result<BTreeSet<TopicId>, StoreError> {
        let mortal: BTreeSet<i32> = buried.iter().map(|ending| ending.place.0).collect();
        let mut log = Log::lock(self, tx, &BTreeSet::new(), &mortal).await?;
        let places: Vec<(Place, i16, i64)> =
            buried.iter().map(|ending| (ending.place, ending.entry.lane, ending.entry.seq)).collect();
        let originals = originals(tx, &places).await?;
        let groups = group_specs(tx, buried.iter().map(|ending| (ending.place.0, ending.group))).await?;
        for ending in buried {
            let End::Bury { attempts, failure, failed } = &ending.end else { continue };
            totals.dead_lettered(ending.place.0, ending.group, 1);
            let topic = topic_id(ending.place.0);
            let key = (ending.place, ending.entry.lane, ending.entry.seq);
            // What was erased or removed meanwhile leaves no copy.
            let (Some(dead), Some(original)) = (log.dead_letter_of(topic), originals.get(&key)) else { continue };
            let message = original.message()?;
            let mut failures = failures.get(&failures_key(ending)).cloned().unwrap_or_default();
            if *failed {
                failures.push(FailedAttempt { attempt: *attempts, at: Timestamp(now), failure: failure.clone() });
            }
            let group = group_id(ending.group);
            let name =
                groups.get(&(ending.place.0, ending.group)).map(|spec| Arc::clone(&spec.name)).unwrap_or_default();
            let mut copy = message.clone();
            copy.id = dead_letter_id(Timestamp(now), dead, message.id, group);
            let origin = (&message, position(ending.place, ending.entry.lane, ending.entry.seq));
            let facts =
                DeadLetterFacts::failed(origin, (group, name), (*attempts, failures), failure.clone(), Timestamp(now));
            copy.meta.dead_letter = Some(Box::new(facts));
            if !log.topic(topic).is_some_and(|topic| topic.spec.dead_letter_payload) {
                copy.payload = bytes::Bytes::new();
            }
            let lane = copy.meta.priority.min(PRIORITY_MAX);
            log.push((dead, 0, lane), &Body::new(&copy, None, false), Some(message.id.0))?;
        }
        log.flush(self, tx).await
    }
}

/// The failure of a lease that nobody settled in time.
pub(super) fn lease_expired() -> Failure {
    let detail = "the last delivery was not settled before its deadline";
    Failure { reason: LEASE_EXPIRED.into(), detail: detail.into(), ..Failure::default() }
}

/// The failure of a message that nobody asked for in time.
pub(super) fn expired() -> Failure {
    let detail = "it was not delivered before its expiresAt";
    Failure { reason: EXPIRED.into(), detail: detail.into(), ..Failure::default() }
}

fn failures_key(ending: &Ending) -> (i32, i32, i16, i64) {
    (ending.place.0, ending.group, ending.place.1, place_of(ending.entry.lane, ending.entry.seq))
}

/// Columns of places: topic, group, partition, offset.
fn columns(endings: &[&Ending]) -> (Vec<i32>, Vec<i32>, Vec<i16>, Vec<i64>) {
    let (mut topics, mut groups, mut parts, mut places) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for ending in endings {
        let (topic, group, part, place) = failures_key(ending);
        topics.push(topic);
        groups.push(group);
        parts.push(part);
        places.push(place);
    }
    (topics, groups, parts, places)
}

/// What is remembered of failed attempts.
async fn remembered(
    tx: &mut Tx,
    waiting: &[&Ending],
    buried: &[&Ending],
) -> Result<HashMap<(i32, i32, i16, i64), Failures>, StoreError> {
    let again: Vec<&Ending> = waiting.iter().chain(buried).copied().filter(|ending| ending.entry.again).collect();
    if again.is_empty() {
        return Ok(HashMap::new());
    }
    let (topics, groups, parts, places) = columns(&again);
    let rows = sqlx::query(
        "SELECT r.topic, r.grp, r.part, r.place, r.failures FROM retries r \
         JOIN unnest($1::integer[], $2::integer[], $3::smallint[], $4::bigint[]) AS w(topic, grp, part, place) \
         USING (topic, grp, part, place)",
    )
    .bind(topics)
    .bind(groups)
    .bind(parts)
    .bind(places)
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)?;
    let mut known = HashMap::new();
    for row in &rows {
        let key = |row: &PgRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?));
        let bytes: Option<Vec<u8>> = row.try_get(4).map_err(failed)?;
        known.insert(key(row).map_err(failed)?, failures_of(bytes.as_deref())?);
    }
    Ok(known)
}

/// Failed attempts as `retries` has them.
pub(super) fn failures_of(bytes: Option<&[u8]>) -> Result<Failures, StoreError> {
    bytes.map_or(Ok(Failures::default()), |bytes| {
        postcard::from_bytes(bytes).map_err(|error| damaged("retries", &error.to_string()))
    })
}

async fn wait(
    tx: &mut Tx,
    waiting: &[&Ending],
    known: &HashMap<(i32, i32, i16, i64), Failures>,
) -> Result<(), StoreError> {
    if waiting.is_empty() {
        return Ok(());
    }
    let (topics, groups, parts, places) = columns(waiting);
    let (mut ats, mut counts, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for ending in waiting {
        let End::Wait { at, attempts, failure } = &ending.end else { continue };
        ats.push(*at);
        counts.push(i32::try_from(*attempts).unwrap_or(i32::MAX));
        let mut all = known.get(&failures_key(ending)).cloned().unwrap_or_default();
        if let Some(failure) = failure {
            all.push(failure.clone());
        }
        let bytes = postcard::to_stdvec(&all).map_err(|error| StoreError::Invalid(error.to_string()))?;
        failures.push((!all.is_empty()).then_some(bytes));
    }
    sqlx::query(
        "INSERT INTO retries (topic, grp, part, place, at, attempts, stamp, key, failures) \
         SELECT * FROM unnest($1::integer[], $2::integer[], $3::smallint[], $4::bigint[], $5::bigint[], $6::integer[], \
         $7::bigint[], $8::bigint[], $9::bytea[]) \
         ON CONFLICT (topic, grp, part, place) DO UPDATE SET at = excluded.at, attempts = excluded.attempts, \
         failures = excluded.failures",
    )
    .bind(topics)
    .bind(groups)
    .bind(parts)
    .bind(places)
    .bind(ats)
    .bind(counts)
    .bind(waiting.iter().map(|ending| ending.entry.stamp).collect::<Vec<_>>())
    .bind(waiting.iter().map(|ending| ending.entry.key).collect::<Vec<_>>())
    .bind(failures)
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(())
}

/// Removes what `retries` has of messages that are done.
async fn forget(tx: &mut Tx, done: &[&Ending]) -> Result<(), StoreError> {
    let again: Vec<&Ending> = done.iter().copied().filter(|ending| ending.entry.again).collect();
    if again.is_empty() {
        return Ok(());
    }
    let (topics, groups, parts, places) = columns(&again);
    sqlx::query(
        "DELETE FROM retries r USING unnest($1::integer[], $2::integer[], $3::smallint[], $4::bigint[]) \
         AS w(topic, grp, part, place) \
         WHERE r.topic = w.topic AND r.grp = w.grp AND r.part = w.part AND r.place = w.place",
    )
    .bind(topics)
    .bind(groups)
    .bind(parts)
    .bind(places)
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(())
}

/// Messages by place.
pub(super) async fn originals(
    tx: &mut Tx,
    places: &[(Place, i16, i64)],
) -> Result<HashMap<(Place, i16, i64), Stored>, StoreError> {
    let sql = format!(
        "SELECT {STORED} FROM unnest($1::integer[], $2::smallint[], $3::smallint[], $4::bigint[]) AS w(topic, part, lane, seq) \
         JOIN messages m USING (topic, part, lane, seq)"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(places.iter().map(|(place, ..)| place.0).collect::<Vec<_>>())
        .bind(places.iter().map(|(place, ..)| place.1).collect::<Vec<_>>())
        .bind(places.iter().map(|(_, lane, _)| *lane).collect::<Vec<_>>())
        .bind(places.iter().map(|(.., seq)| *seq).collect::<Vec<_>>())
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in &rows {
        let stored = Stored::read(row)?;
        found.insert((stored.place, stored.lane, stored.seq), stored);
    }
    Ok(found)
}

/// Groups by topic and number.
pub(super) async fn group_specs(
    tx: &mut Tx,
    groups: impl Iterator<Item = (i32, i32)>,
) -> Result<HashMap<(i32, i32), GroupSpec>, StoreError> {
    let wanted: BTreeSet<(i32, i32)> = groups.collect();
    let (topics, groups): (Vec<i32>, Vec<i32>) = wanted.into_iter().unzip();
    let rows = sqlx::query(
        "SELECT g.topic, g.grp, g.spec::text FROM store_groups g \
         JOIN unnest($1::integer[], $2::integer[]) AS w(topic, grp) USING (topic, grp)",
    )
    .bind(topics)
    .bind(groups)
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)?;
    let mut specs = HashMap::new();
    for row in rows {
        let spec: String = row.try_get(2).map_err(failed)?;
        specs.insert(
            (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?),
            super::control::group_spec(&spec)?,
        );
    }
    Ok(specs)
}
