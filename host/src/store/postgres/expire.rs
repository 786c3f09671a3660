//! What time alone brings: leases that end, messages that are due, keys that age out. Invariant: any broker may do it, and
//! two at once do it once: rows are taken under their locks, and what another has taken is passed over.

use std::collections::{BTreeSet, HashMap};

use sqlx::Row as _;

use super::Shared;
use super::apart::{Done, ONE_BY_ONE_MAX, Part, Topics};
use super::ends::{End, Ending, Totals, group_specs, lease_expired};
use super::grant::{Grant, grants};
use super::log::Log;
use super::sql::{Tx, body_at, commit, failed, now, topic_id};
use crate::clock::Timestamp;
use crate::message::TopicId;
use crate::store::StoreError;
use crate::telemetry::Stopwatch;

/// Rows that one transaction takes of each kind.
const BATCH: i64 = 1000;
/// Bytes of scheduled messages that one transaction takes; one message comes whatever its size.
const BATCH_BYTES: i64 = 64 << 20;
/// Answers to leases that one transaction ends.
const GRANTS_MAX: i64 = 100;
/// How soon what is due is looked at again while it is done elsewhere, or is set aside.
const LOOK_AGAIN_MS: i64 = 100;
/// So many starts ago at least was one that is forgotten, of a broker that is not there: longer ago than anybody is missed who comes back.
const OPENINGS_KEPT: i64 = 10_000;

impl Shared {
    /// See [`crate::store::MessageStore::tick`].
    pub(super) async fn tick(&self) -> Result<Option<Timestamp>, StoreError> {
        let began = self.clock.now().0;
        // Each whatever became of the others: one topic's trouble is not all topics'. What waits for no topic waits for none in trouble.
        let at_once = async { [self.ready_retries().await, self.hear_of_others().await.map(|()| Done::All)] };
        let in_turn = async {
            [self.each_apart(Part::Due).await, self.each_apart(Part::Ended).await, self.each_apart(Part::Keys).await]
        };
        let (at_once, in_turn) = tokio::join!(at_once, in_turn);
        let done = at_once.into_iter().chain(in_turn);
        let (mut full, mut elsewhere, mut failed_first) = (false, false, None);
        for done in done {
            match done {
                Ok(done) => {
                    full |= done == Done::More;
                    elsewhere |= done == Done::Elsewhere;
                }
                Err(error) if failed_first.is_none() => failed_first = Some(error),
                // The caller hears of one.
                Err(error) => tracing::warn!(%error, "another part of what is due could not be done"),
            }
        }
        if let Some(error) = failed_first {
            return Err(error);
        }
        let mut tx = self.look().await?;
        let now = now(&mut tx, &self.clock).await?;
        if full {
            return Ok(Some(Timestamp(now)));
        }
        let waits = elsewhere || self.aside.lock().is_any();
        let next: Option<i64> = sqlx::query_scalar(
            "SELECT least((SELECT min(due) FROM scheduled), (SELECT min(ends) FROM grants), \
             (SELECT min(at) FROM retries WHERE at > 0 AND at < 9223372036854775807))",
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        // What was due before all this and is there still is held by somebody, and not to be looked at without end.
        let earliest = |next: i64| if waits || next <= began { now + LOOK_AGAIN_MS } else { now };
        Ok(next.map(|next| Timestamp(next.max(earliest(next)))))
    }

    /// Scheduled messages that are due enter their logs.
    pub(super) async fn enter_due(&self, topics: &Topics, met: &mut BTreeSet<i32>) -> Result<Done, StoreError> {
        let mut tx = self.begin_for(topics).await?;
        // One broker at a time, so that what is due earlier enters earlier.
        let alone = match topics.only {
            None => "SELECT pg_try_advisory_xact_lock(hashtext('sluice.scheduled'))",
            // Who has found trouble waits for its turn to find out whose it is.
            Some(_) => "SELECT pg_advisory_xact_lock(hashtext('sluice.scheduled')) IS NOT NULL",
        };
        match sqlx::query_scalar(alone).fetch_one(&mut *tx).await {
            Ok(true) => {}
            Ok(false) => return Ok(Done::Elsewhere),
            Err(error) if is_held(&error) => return Ok(Done::Elsewhere),
            Err(error) => return Err(failed(error)),
        }
        let now = now(&mut tx, &self.clock).await?;
        let sizes: Vec<(i64, i32, i32)> = sqlx::query_as(
            "SELECT number, octet_length(body), topic FROM scheduled WHERE due <= $1 AND ($3 IS NULL OR topic = $3) AND NOT topic = ANY($4) \
             ORDER BY due, number LIMIT $2",
        )
        .bind(now)
        .bind(BATCH)
        .bind(topics.only)
        .bind(&topics.but)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        let (mut numbers, mut bytes) = (Vec::new(), 0);
        for (number, len, topic) in &sizes {
            if !numbers.is_empty() && bytes + i64::from(*len) > BATCH_BYTES {
                break;
            }
            met.insert(*topic);
            bytes += i64::from(*len);
            numbers.push(*number);
        }
        let full = sizes.len() as i64 >= BATCH || numbers.len() < sizes.len();
        let rows = sqlx::query(
            "SELECT number, topic, part, lane, id, expires, key, target, meta_len, crc, body FROM scheduled WHERE number = ANY($1) \
             ORDER BY due, number FOR UPDATE",
        )
        .bind(&numbers)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        if rows.is_empty() {
            // Before this returns: a transaction that is dropped keeps the lock for a moment.
            commit(tx).await?;
            return Ok(Done::All);
        }
        let mut due = Vec::with_capacity(rows.len());
        for row in &rows {
            let place: (i32, i16) = (row.try_get(1).map_err(failed)?, row.try_get(2).map_err(failed)?);
            let lane: i16 = row.try_get(3).map_err(failed)?;
            due.push((row.try_get::<i64, _>(0).map_err(failed)?, place, lane, body_at(row, 4)?));
        }
        let places: BTreeSet<_> = due.iter().map(|(_, place, ..)| *place).collect();
        let mut log = Log::lock(self, &mut tx, &places, &BTreeSet::new()).await?;
        for (_, place, lane, body) in &due {
            let lane = u8::try_from(*lane).unwrap_or(0);
            log.push_counted((topic_id(place.0), place.1.cast_unsigned(), lane), body)?;
        }
        let woken = log.flush(self, &mut tx).await?;
        sqlx::query("DELETE FROM scheduled WHERE number = ANY($1)")
            .bind(due.iter().map(|(number, ..)| *number).collect::<Vec<_>>())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        commit(tx).await?;
        woken.into_iter().for_each(|topic| self.wake(topic));
        Ok(if full { Done::More } else { Done::All })
    }

    /// Leases whose deadline has passed end.
    pub(super) async fn end_expired(&self, topics: &Topics, met: &mut BTreeSet<i32>) -> Result<Done, StoreError> {
        let mut tx = self.begin_for(topics).await?;
        let now = now(&mut tx, &self.clock).await?;
        let rows = sqlx::query(grants!(
            "WHERE g.ends <= $1 AND ($3 IS NULL OR g.topic = $3) AND NOT g.topic = ANY($4) ORDER BY g.ends LIMIT $2 FOR UPDATE SKIP LOCKED"
        ))
        .bind(now)
        .bind(GRANTS_MAX)
        .bind(topics.only)
        .bind(&topics.but)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        if rows.is_empty() {
            return Ok(Done::All);
        }
        // Before they are read: one of them may be damaged.
        for row in &rows {
            met.insert(row.try_get("topic").map_err(failed)?);
        }
        let grants = rows.iter().map(Grant::read).collect::<Result<Vec<_>, _>>()?;
        let full = grants.len() as i64 >= GRANTS_MAX;
        let woken = self.end_leases(&mut tx, grants, now, false).await?;
        commit(tx).await?;
        woken.into_iter().for_each(|topic| self.wake(topic));
        Ok(if full { Done::More } else { Done::All })
    }

    /// Ends the leases of rows that are locked: those whose deadline has passed, or all.
    pub(super) async fn end_leases(
        &self,
        tx: &mut Tx,
        mut grants: Vec<Grant>,
        now: i64,
        all: bool,
    ) -> Result<BTreeSet<TopicId>, StoreError> {
        Grant::know(&mut grants, tx).await?;
        let specs = group_specs(tx, grants.iter().map(|grant| (grant.place.0, grant.group))).await?;
        let mut endings = Vec::new();
        for grant in &mut grants {
            let ended: Vec<usize> =
                grant.open().map(|(nth, _)| nth).filter(|nth| all || grant.deadline_of(*nth) <= now).collect();
            let most = specs.get(&(grant.place.0, grant.group)).map_or(u32::MAX, |spec| spec.attempts_max);
            for nth in ended {
                let entry = grant.entries[nth].clone();
                let attempts = entry.attempt;
                let end = if attempts >= most {
                    End::Bury { attempts, failure: lease_expired(), failed: true }
                } else {
                    End::Wait { at: 0, attempts, failure: None }
                };
                endings.push(Ending { place: grant.place, group: grant.group, entry, end });
                grant.close(nth);
            }
        }
        Grant::write(&grants, tx).await?;
        let mut totals = Totals::default();
        let woken = self.carry_out(tx, &endings, &mut totals, now).await?;
        totals.write(self, tx).await?;
        Ok(woken)
    }

    /// What `node` had leased to send it itself ends: it is there no more. What others have fetched from it they settle with
    /// whom they like.
    pub(super) async fn end_sending(&self, node: &str) -> Result<(), StoreError> {
        // What it leases from now on is not meant: it may be there after all.
        let until: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT g.epoch, max(g.number) FROM grants g JOIN store_openings o USING (epoch) \
             WHERE o.node = $1 AND g.holder = $1 GROUP BY g.epoch",
        )
        .bind(node)
        .fetch_all(&mut *self.look().await?)
        .await
        .map_err(failed)?;
        for (epoch, last) in until {
            while self.end_some_sending(node, (epoch, last)).await? {}
        }
        Ok(())
    }

    async fn end_some_sending(&self, node: &str, (epoch, last): (i64, i64)) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let now = now(&mut tx, &self.clock).await?;
        let rows = sqlx::query(grants!(
            "WHERE g.epoch = $1 AND g.number <= $2 AND g.holder = $3 ORDER BY g.epoch, g.number LIMIT $4 FOR UPDATE OF g"
        ))
        .bind(epoch)
        .bind(last)
        .bind(node)
        .bind(GRANTS_MAX)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        if !rows.is_empty() {
            let grants = rows.iter().map(Grant::read).collect::<Result<Vec<_>, _>>()?;
            self.end_leases(&mut tx, grants, now, true).await?;
        }
        commit(tx).await?;
        Ok(!rows.is_empty())
    }

    /// What this node had leased before it opened the store now has ended.
    pub(super) async fn end_orphans(&self, node: String) -> Result<(), StoreError> {
        loop {
            let mut tx = self.begin().await?;
            let now = now(&mut tx, &self.clock).await?;
            let rows = sqlx::query(grants!(
                "JOIN store_openings o USING (epoch) WHERE o.node = $1 AND o.epoch < $2 \
                 ORDER BY g.epoch, g.number LIMIT $3 FOR UPDATE OF g"
            ))
            .bind(&node)
            .bind(self.epoch)
            .bind(GRANTS_MAX)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            if rows.is_empty() {
                // Those of names that do not come back, too: pods have another one each time.
                sqlx::query(
                    "DELETE FROM store_openings o WHERE o.epoch < $2 AND (o.node = $1 OR (o.epoch < $2 - $3 \
                     AND NOT EXISTS (SELECT 1 FROM brokers b WHERE b.node = o.node) \
                     AND NOT EXISTS (SELECT 1 FROM grants g WHERE g.epoch = o.epoch)))",
                )
                .bind(&node)
                .bind(self.epoch)
                .bind(OPENINGS_KEPT)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
                return commit(tx).await;
            }
            let grants = rows.iter().map(Grant::read).collect::<Result<Vec<_>, _>>()?;
            self.end_leases(&mut tx, grants, now, true).await?;
            commit(tx).await?;
        }
    }

    /// Retries whose time has come may be granted.
    async fn ready_retries(&self) -> Result<Done, StoreError> {
        let mut tx = self.begin().await?;
        let now = now(&mut tx, &self.clock).await?;
        let topics: Vec<i32> = sqlx::query_scalar(
            "UPDATE retries r SET at = 0 FROM ( \
                 SELECT topic, grp, part, place FROM retries WHERE at > 0 AND at <= $1 AND at < 9223372036854775807 \
                 ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED) AS w \
             WHERE r.topic = w.topic AND r.grp = w.grp AND r.part = w.part AND r.place = w.place RETURNING r.topic",
        )
        .bind(now)
        .bind(BATCH)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        commit(tx).await?;
        let full = topics.len() as i64 >= BATCH;
        topics.into_iter().collect::<BTreeSet<_>>().into_iter().for_each(|topic| self.wake(topic_id(topic)));
        Ok(if full { Done::More } else { Done::All })
    }

    /// Keys whose window has passed go.
    pub(super) async fn age_keys(&self, but: &[i32]) -> Result<Done, StoreError> {
        let mut tx = self.look().await?;
        let now = now(&mut tx, &self.clock).await?;
        let topics: Vec<(i32, i64)> = sqlx::query_as(
            "SELECT t.topic, w.ms FROM store_topics t \
             CROSS JOIN LATERAL (SELECT (t.spec->'dedup_window'->>'secs')::bigint * 1000 \
                 + (t.spec->'dedup_window'->>'nanos')::bigint / 1000000 AS ms) w \
             WHERE NOT t.topic = ANY($2) AND EXISTS (SELECT 1 FROM dedup_outcomes d WHERE d.topic = t.topic AND d.at <= $1 - w.ms)",
        )
        .bind(now)
        .bind(but)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        drop(tx);
        let begun = Stopwatch::start();
        for (topic, window) in topics {
            if begun.elapsed() >= ONE_BY_ONE_MAX {
                break;
            }
            let mut tx = self.begin_brief().await?;
            let locking = sqlx::query("SELECT 1 FROM store_partitions WHERE topic = $1 ORDER BY part FOR UPDATE");
            match locking.bind(topic).execute(&mut *tx).await {
                Ok(_) => {}
                Err(error) if is_held(&error) => {
                    tracing::debug!(
                        topic_id = topic_id(topic).0,
                        "keys of a topic are removed later: somebody holds it"
                    );
                    self.aside.lock().failed(Part::Keys, topic);
                    continue;
                }
                Err(error) => return Err(failed(error)),
            }
            sqlx::query(
                "WITH aged AS (DELETE FROM dedup_outcomes WHERE ctid IN ( \
                     SELECT ctid FROM dedup_outcomes WHERE topic = $1 AND at <= $2 ORDER BY at LIMIT $3) RETURNING part), \
                 counted AS (SELECT part, count(*)::integer AS keys FROM aged GROUP BY part) \
                 UPDATE store_partitions p SET keys = p.keys - c.keys FROM counted c WHERE p.topic = $1 AND p.part = c.part",
            )
            .bind(topic)
            .bind(now - window)
            .bind(BATCH * 10)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
            commit(tx).await?;
        }
        Ok(Done::All)
    }

    /// Hears of topics that other brokers have made or removed, and tells those who wait here of what others have added.
    async fn hear_of_others(&self) -> Result<(), StoreError> {
        // Those that were known before the look: one that is made meanwhile is not gone.
        let known: Vec<TopicId> = self.topics.lock().keys().copied().collect();
        let there: BTreeSet<TopicId> = self.known_topics().await?.into_iter().collect();
        let gone: Vec<TopicId> = known.into_iter().filter(|topic| !there.contains(topic)).collect();
        gone.into_iter().for_each(|topic| self.forget(topic));
        there.into_iter().for_each(|topic| self.know(topic));
        let waited: Vec<i32> = {
            let topics = self.topics.lock();
            let waited = topics.iter().filter(|(_, told)| told.receiver_count() > 0);
            waited.map(|(topic, _)| super::sql::t(*topic)).collect()
        };
        if waited.is_empty() {
            return Ok(());
        }
        let sums: Vec<(i32, i64)> = sqlx::query_as(
            // What was appended and what was settled; and what may go now, as often as it is looked at.
            "SELECT q.topic, sum(q.appended)::bigint + coalesce((SELECT sum(t.acked + t.dead_lettered + t.expired) FROM group_totals t \
                     WHERE t.topic = q.topic), 0)::bigint \
                 + CASE WHEN EXISTS (SELECT 1 FROM retries r WHERE r.topic = q.topic AND r.at = 0) THEN nextval('store_looks') ELSE 0 END \
             FROM store_partitions q WHERE q.topic = ANY($1) GROUP BY q.topic",
        )
        .bind(&waited)
        .fetch_all(&mut *self.begin().await?)
        .await
        .map_err(failed)?;
        let before = std::mem::replace(&mut *self.heard.lock(), sums.iter().copied().collect());
        let news = sums.iter().filter(|(topic, sum)| before.get(topic) != Some(sum));
        news.for_each(|(topic, _)| _ = self.wake_here(topic_id(*topic)));
        Ok(())
    }
}

/// By topic, a number that is another one when there may be something new.
pub(super) type Heard = HashMap<i32, i64>;

/// Whether somebody has held a lock for too long.
fn is_held(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(refused) if refused.code().as_deref() == Some("55P03"))
}
