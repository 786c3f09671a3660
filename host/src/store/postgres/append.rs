//! Appending: what becomes of each item of a batch, decided under the locks of its partitions. Invariant: all of a batch is
//! one transaction; a key is looked up and recorded in it, so that of two racing appends one stores.

use std::collections::{BTreeSet, HashMap, HashSet};

use sqlx::Row as _;

use super::Shared;
use super::cursor::Discard;
use super::log::Log;
use super::sql::{Place, Tx, commit, damaged, failed, ms, n, p, t};
use super::values::{Values, hold_off_turns};
use crate::clock::Timestamp;
use crate::message::{MessageId, TopicId};
use crate::store::embedded::ops::{Body, LaneId};
use crate::store::embedded::prepare::prepare;
use crate::store::embedded::state::append::{Batch, Item, Prepared, is_refused, is_taken, off_their_list};
use crate::store::embedded::state::check::{check_places, check_revisions};
use crate::store::embedded::state::dedup::{KeyHash, key_hash};
use crate::store::{AppendBatch, AppendOutcome, DedupOutcome, Fate, StoreError};

/// Bytes of one batch: all of it is in memory at once, twice.
const BATCH_BYTES_MAX: u64 = 256 << 20;

/// Encodes a batch.
///
/// # Errors
/// `Invalid` for what cannot be stored at all.
pub(super) fn encoded(batch: AppendBatch) -> Result<Batch, StoreError> {
    Ok(prepare(batch, BATCH_BYTES_MAX)?.0)
}

/// How an attempt ended.
enum Attempt {
    Done(Vec<AppendOutcome>),
    /// A topic needs so many bytes of what all have settled removed.
    Short(TopicId, u64),
}

/// What is decided of a batch.
struct Plan<'a> {
    log: &'a mut Log,
    known: HashMap<KeyHash, DedupOutcome>,
    keys: Vec<(KeyHash, Place, DedupOutcome)>,
    scheduled: Vec<(LaneId, Body, Timestamp)>,
    /// Topics that were made room in for this batch.
    roomy: &'a BTreeSet<TopicId>,
    short: Option<(TopicId, u64)>,
}

impl Shared {
    /// See [`crate::store::MessageStore::append`].
    pub(super) async fn append(&self, batch: &Batch) -> Result<Vec<AppendOutcome>, StoreError> {
        if let Some(outcomes) = self.append_as_usual(batch).await? {
            return Ok(outcomes);
        }
        let mut roomy = BTreeSet::new();
        loop {
            match self.try_append(batch, &roomy).await? {
                Attempt::Done(outcomes) => return Ok(outcomes),
                Attempt::Short(topic, need) => {
                    self.trim_settled(topic, need).await?;
                    roomy.insert(topic);
                }
            }
        }
    }

    async fn try_append(&self, batch: &Batch, roomy: &BTreeSet<TopicId>) -> Result<Attempt, StoreError> {
        let mut tx = self.begin().await?;
        hold_off_turns(&mut tx, &batch.values).await?;
        let listed = Discard::lock(&mut tx, &batch.replays).await?;
        let (mut places, mut mortal) = (BTreeSet::new(), BTreeSet::new());
        for item in &batch.items {
            match &item.entry {
                Prepared::Log { lane, .. } => _ = places.insert(place(lane)),
                Prepared::Dead { .. } => _ = mortal.insert(t(batch.topic)),
                Prepared::Dropped { .. } => {}
            }
            places.extend(item.emitted.iter().map(|emitted| place(&emitted.lane)));
        }
        // Where nothing is kept but an outcome, its key counts for the first partition; else that is left to others.
        let logged = batch.items.iter().all(|item| matches!(item.entry, Prepared::Log { .. }));
        if batch.items.is_empty() || !logged {
            places.insert((t(batch.topic), 0));
        }
        // Keys that have aged are counted off any of its partitions.
        let aged_off = places.range((t(batch.topic), 0)..=(t(batch.topic), i16::MAX)).next().copied();
        let mut log = Log::lock(self, &mut tx, &places, &mortal).await?;
        let partitions = |topic| log.topic(topic).map(|topic| topic.spec.partitions);
        check_places(batch, partitions, log.dead_letter_of(batch.topic).is_some())?;
        check_revisions(batch, |lane| log.part(place(lane)).map_or(0, |part| part.revision.cast_unsigned()))?;
        let values = Values::lock(&mut tx, &batch.kv, &batch.values).await?;
        values.check(&batch.kv, &batch.values)?;
        if !listed.all_listed() {
            // Another replay or a discard came first: stored now, it would be there twice.
            return Ok(Attempt::Done(vec![AppendOutcome::NotAttempted; batch.items.len()]));
        }
        let known = self.known_keys(&mut tx, batch, &mut log, aged_off).await?;
        let mut plan = Plan { log: &mut log, known, keys: Vec::new(), scheduled: Vec::new(), roomy, short: None };
        if batch.all_or_nothing
            && let Some(outcomes) = plan.refuse_all(batch)
        {
            return Ok(plan.short.map_or(Attempt::Done(outcomes), |(topic, need)| Attempt::Short(topic, need)));
        }
        if !batch.values.linked.is_empty()
            && let Some(refused) = plan.refuse_all(batch)
            && batch.values.linked.iter().any(|item| refused.get(*item).is_some_and(is_refused))
        {
            if let Some((topic, need)) = plan.short {
                return Ok(Attempt::Short(topic, need));
            }
            return Err(StoreError::KvConflict);
        }
        let mut outcomes = Vec::with_capacity(batch.items.len());
        for item in &batch.items {
            outcomes.push(plan.item(batch, item)?);
        }
        let Plan { keys, scheduled, short, .. } = plan;
        if let Some((topic, need)) = short {
            return Ok(Attempt::Short(topic, need));
        }
        // Writes of stages that ran for duplicates alone are thrown away with them.
        let whole = outcomes.is_empty() || outcomes.iter().any(is_taken);
        values
            .write(&mut tx, batch.kv.iter().filter(|_| whole), &batch.values, |item| {
                outcomes.get(item).is_some_and(is_taken)
            })
            .await?;
        self.write_schedule(&mut tx, &scheduled).await?;
        self.write_keys(&mut tx, batch.topic, keys).await?;
        listed.settle(&mut tx, off_their_list(batch.replays.len(), &outcomes)).await?;
        let mut woken = log.flush(self, &mut tx).await?;
        commit(tx).await?;
        woken.extend(batch.replays.iter().map(|position| position.topic));
        woken.into_iter().for_each(|topic| self.wake(topic));
        Ok(Attempt::Done(outcomes))
    }

    /// See [`crate::store::MessageStore::dedup_lookup`].
    pub(super) async fn dedup_lookup(&self, topic: TopicId, key: &str) -> Result<Option<DedupOutcome>, StoreError> {
        let (given, ahead) = super::sql::time(&self.clock);
        let found: Option<(Vec<u8>, i64, String)> = sqlx::query_as(
            "SELECT d.outcome, store_now($3, $4), t.spec::text FROM dedup_outcomes d JOIN store_topics t USING (topic) \
             WHERE d.topic = $1 AND d.key = $2",
        )
        .bind(t(topic))
        .bind(&key_hash(key)[..])
        .bind(given)
        .bind(ahead)
        .fetch_optional(&mut *self.look().await?)
        .await
        .map_err(failed)?;
        let Some((outcome, now, spec)) = found else { return Ok(None) };
        let (outcome, spec) = (outcome_of(&outcome)?, super::control::topic_spec(&spec)?);
        Ok((outcome.at.0 + ms(spec.dedup_window) > now).then_some(outcome))
    }

    /// The outcomes under the keys of a batch that are still in their window.
    async fn known_keys(
        &self,
        tx: &mut Tx,
        batch: &Batch,
        log: &mut Log,
        aged_off: Option<Place>,
    ) -> Result<HashMap<KeyHash, DedupOutcome>, StoreError> {
        let keys: Vec<Vec<u8>> =
            batch.items.iter().filter_map(|item| item.key.as_ref()).map(|(key, _)| key.to_vec()).collect();
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let window = log.topic(batch.topic).map_or(0, |topic| ms(topic.spec.dedup_window));
        let aged = sqlx::query("DELETE FROM dedup_outcomes WHERE topic = $1 AND key = ANY($2) AND at <= $3")
            .bind(t(batch.topic))
            .bind(&keys)
            .bind(log.now - window)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        // Wherever they were counted: what has a bound is the sum.
        if let Some(place) = aged_off {
            log.uncount_keys(place, n(aged.rows_affected()));
        }
        let rows = sqlx::query("SELECT key, outcome FROM dedup_outcomes WHERE topic = $1 AND key = ANY($2)")
            .bind(t(batch.topic))
            .bind(&keys)
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
        let mut known = HashMap::new();
        for row in rows {
            let (key, outcome): (Vec<u8>, Vec<u8>) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
            let outcome = outcome_of(&outcome)?;
            let key = KeyHash::try_from(key).map_err(|_| damaged("dedup_outcomes", "a key has not 16 bytes"))?;
            known.insert(key, outcome);
        }
        Ok(known)
    }

    async fn write_keys(
        &self,
        tx: &mut Tx,
        topic: TopicId,
        mut keys: Vec<(KeyHash, Place, DedupOutcome)>,
    ) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        // In one order, so that batches with the same keys do not wait in a circle.
        keys.sort_unstable_by_key(|(key, ..)| *key);
        let mut outcomes = Vec::with_capacity(keys.len());
        for (_, _, outcome) in &keys {
            outcomes.push(outcome_bytes(outcome)?);
        }
        // One that is there was recorded by another broker since this one looked, for a message of another partition.
        let written = sqlx::query(
            "INSERT INTO dedup_outcomes (topic, key, part, at, outcome) \
             SELECT $1, * FROM unnest($2::bytea[], $3::smallint[], $4::bigint[], $5::bytea[]) ON CONFLICT DO NOTHING",
        )
        .bind(t(topic))
        .bind(keys.iter().map(|(key, ..)| key.to_vec()).collect::<Vec<_>>())
        .bind(keys.iter().map(|(_, place, _)| place.1).collect::<Vec<_>>())
        .bind(keys.iter().map(|(.., outcome)| outcome.at.0).collect::<Vec<_>>())
        .bind(outcomes)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        if written.rows_affected() == keys.len() as u64 {
            return Ok(());
        }
        Err(StoreError::Unavailable("another broker has recorded the same key (SQLSTATE 40001)".to_owned()))
    }

    pub(super) async fn write_schedule(
        &self,
        tx: &mut Tx,
        scheduled: &[(LaneId, Body, Timestamp)],
    ) -> Result<(), StoreError> {
        if scheduled.is_empty() {
            return Ok(());
        }
        let column = |of: fn(&(LaneId, Body, Timestamp)) -> i64| scheduled.iter().map(of).collect::<Vec<i64>>();
        sqlx::query(
            "INSERT INTO scheduled (topic, part, lane, due, id, expires, key, target, meta_len, crc, body) \
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::uuid[], $6::bigint[], \
             $7::bigint[], $8::integer[], $9::bigint[], $10::integer[], $11::bytea[])",
        )
        .bind(column(|(lane, ..)| i64::from(t(lane.topic))))
        .bind(column(|(lane, ..)| i64::from(p(lane.partition))))
        .bind(column(|(lane, ..)| i64::from(lane.lane)))
        .bind(column(|(.., due)| due.0))
        .bind(scheduled.iter().map(|(_, body, _)| body.head.id.0).collect::<Vec<_>>())
        .bind(scheduled.iter().map(|(_, body, _)| body.head.expires_at.map(|at| at.0)).collect::<Vec<_>>())
        .bind(scheduled.iter().map(|(_, body, _)| body.head.key.map(u64::cast_signed)).collect::<Vec<_>>())
        .bind(scheduled.iter().map(|(_, body, _)| body.head.target.map(super::sql::g)).collect::<Vec<_>>())
        .bind(column(|(_, body, _)| i64::from(body.head.meta_len)))
        .bind(scheduled.iter().map(|(_, body, _)| body.head.crc.cast_signed()).collect::<Vec<_>>())
        .bind(scheduled.iter().map(|(_, body, _)| [&body.meta[..], &body.payload[..]].concat()).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        Ok(())
    }
}

impl Plan<'_> {
    /// The outcomes if one item of a batch keeps the others out.
    fn refuse_all(&mut self, batch: &Batch) -> Option<Vec<AppendOutcome>> {
        let (mut seen, mut refused, mut keys) = (HashSet::new(), false, 0);
        let mut needs: HashMap<TopicId, u64> = HashMap::new();
        let mut outcomes = Vec::with_capacity(batch.items.len());
        for item in &batch.items {
            let mut outcome = self.repeated(item);
            if let Some((key, _)) = &item.key
                && outcome.is_none()
            {
                keys += 1;
                // A repeat inside the batch has no outcome to repeat: the first is not stored either.
                outcome = (!seen.insert(*key)).then_some(AppendOutcome::KeyConflict);
            }
            if outcome.is_none() {
                self.needs(batch.topic, item, &mut needs);
                let fits = self.fits(batch.topic, keys, &needs);
                outcome = (!fits).then_some(AppendOutcome::TopicFull);
            }
            refused |= outcome.is_some();
            outcomes.push(outcome.unwrap_or(AppendOutcome::NotAttempted));
        }
        refused.then_some(outcomes)
    }

    /// The outcome of an item whose key was used before.
    fn repeated(&self, item: &Item) -> Option<AppendOutcome> {
        let (key, request_hash) = item.key.as_ref()?;
        let outcome = self.known.get(key)?;
        Some(if outcome.request_hash == *request_hash {
            AppendOutcome::Duplicate(outcome.clone())
        } else {
            AppendOutcome::KeyConflict
        })
    }

    /// Adds what an item takes of each topic.
    fn needs(&self, topic: TopicId, item: &Item, needs: &mut HashMap<TopicId, u64>) {
        match &item.entry {
            Prepared::Log { body, .. } => *needs.entry(topic).or_default() += body.head.cost(),
            Prepared::Dead { body, .. } => {
                *needs.entry(self.log.dead_letter_of(topic).unwrap_or(topic)).or_default() += body.head.cost();
            }
            Prepared::Dropped { .. } => {}
        }
        for emitted in &item.emitted {
            *needs.entry(emitted.lane.topic).or_default() += emitted.body.head.cost();
        }
    }

    fn fits(&mut self, topic: TopicId, keys: i64, needs: &HashMap<TopicId, u64>) -> bool {
        let for_keys = self
            .log
            .topic(topic)
            .is_some_and(|found| keys == 0 || found.keys + keys <= i64::from(found.spec.dedup_keys_max));
        for_keys && needs.iter().all(|(topic, need)| self.room(*topic, *need))
    }

    fn room(&mut self, topic: TopicId, need: u64) -> bool {
        let Some(found) = self.log.topic(topic) else { return false };
        let Some(limit) = found.spec.retention_bytes else { return true };
        let wanted = found.bytes.cast_unsigned() + need;
        if wanted <= limit {
            return true;
        }
        if !self.roomy.contains(&topic) && self.short.is_none() {
            // An eighth at a time, so that a full topic is not trimmed with every message.
            self.short = Some((topic, (wanted - limit).max(limit / 8)));
        }
        false
    }

    fn item(&mut self, batch: &Batch, item: &Item) -> Result<AppendOutcome, StoreError> {
        if let Some(known) = self.repeated(item) {
            return Ok(known);
        }
        let mut needs = HashMap::new();
        self.needs(batch.topic, item, &mut needs);
        if !self.fits(batch.topic, i64::from(item.key.is_some()), &needs) {
            return Ok(AppendOutcome::TopicFull);
        }
        let (home, id, outcome, fate) = self.entry(batch, &item.entry)?;
        for emitted in &item.emitted {
            let LaneId { topic, partition, lane } = emitted.lane;
            self.log.raise_revision((t(topic), p(partition)), emitted.revision);
            self.log.push((topic, partition, lane), &emitted.body, None)?;
        }
        if let Some((key, request_hash)) = item.key {
            let at = Timestamp(self.log.at(home));
            let outcome = DedupOutcome { request_hash, id, fate, at, revision: batch.revision };
            self.known.insert(key, outcome.clone());
            self.log.count_key(home);
            self.keys.push((key, home, outcome));
        }
        Ok(outcome)
    }

    fn entry(
        &mut self,
        batch: &Batch,
        entry: &Prepared,
    ) -> Result<(Place, MessageId, AppendOutcome, Fate), StoreError> {
        match entry {
            Prepared::Log { lane, body, due } => {
                let home = place(lane);
                self.log.raise_revision(home, batch.revision);
                if let Some(due) = due.filter(|due| due.0 > self.log.now) {
                    self.log.count_bytes(home, body.head.cost());
                    self.scheduled.push((*lane, body.clone(), due));
                    return Ok((home, body.head.id, AppendOutcome::Scheduled, Fate::Scheduled));
                }
                let position = self.log.push((batch.topic, lane.partition, lane.lane), body, None)?;
                Ok((home, body.head.id, AppendOutcome::Stored(position), Fate::Stored(position)))
            }
            Prepared::Dead { lane, body, stage, reason } => {
                let dead = self.log.dead_letter_of(batch.topic).ok_or(StoreError::NoTopic)?;
                let original = body.message().and_then(|message| Some(message.meta.dead_letter?.original_id.0));
                let position = self.log.push((dead, 0, *lane), body, original)?;
                let fate = Fate::DeadLettered { position, stage: stage.clone(), reason: reason.clone() };
                Ok(((t(batch.topic), 0), body.head.id, AppendOutcome::DeadLettered(position), fate))
            }
            Prepared::Dropped { id, stage, reason } => {
                let fate = Fate::Dropped { stage: stage.clone(), reason: reason.clone() };
                Ok(((t(batch.topic), 0), *id, AppendOutcome::Dropped, fate))
            }
        }
    }
}

fn place(lane: &LaneId) -> Place {
    (t(lane.topic), p(lane.partition))
}

/// An outcome as the table has it.
pub(super) fn outcome_of(bytes: &[u8]) -> Result<DedupOutcome, StoreError> {
    postcard::from_bytes(bytes).map_err(|error| damaged("dedup_outcomes", &error.to_string()))
}

/// And back.
pub(super) fn outcome_bytes(outcome: &DedupOutcome) -> Result<Vec<u8>, StoreError> {
    postcard::to_stdvec(outcome).map_err(|error| StoreError::Invalid(error.to_string()))
}
