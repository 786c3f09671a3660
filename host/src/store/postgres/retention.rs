//! What leaves the logs. Invariant: what is removed by bytes was settled by every group; what is removed by time is counted
//! for each group that had not settled it. What is removed by time stays in its table until all of that is too old, and goes
//! with it: a table that is dropped leaves nothing to be vacuumed. Nobody reads below a lane's start.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::Row as _;
use sqlx::error::DatabaseError;

use super::Shared;
use super::control::{Lanes, first_at, lock_partitions, range_of};
use super::ends::Totals;
use super::grant::{Grant, grants};
use super::log::array;
use super::sql::{LANES, Tx, commit, failed, lane_number, ms, now, place_of, t};
use crate::message::TopicId;
use crate::store::{RetainReport, StoreError};

/// Messages that one transaction removes from a lane.
const TRIM_MAX: i64 = 10_000;

/// So long after all of a table of messages is too old, it goes.
const MARGIN_MS: i64 = 600_000;

/// How long a table may take to be detached: it waits for all who read messages.
const DETACH_TIMEOUT: Duration = Duration::from_secs(60);

/// Where lanes are to begin: partition, lane, first sequence kept.
type Cuts = Vec<(i16, usize, i64)>;

impl Shared {
    /// See [`crate::store::MessageStore::retain`].
    pub(super) async fn retain(&self) -> Result<RetainReport, StoreError> {
        self.make_ranges_ahead().await?;
        let (mut report, mut failed_first) = (RetainReport::default(), None);
        for topic in self.known_topics().await? {
            match self.retain_topic(topic).await {
                Ok(removed) => {
                    report.removed += removed.removed;
                    report.expired += removed.expired;
                    report.bytes += removed.bytes;
                }
                // What one topic has is no reason to keep what others have.
                Err(error) => {
                    tracing::debug!(%error, topic = topic.0, "what is too old could not be removed");
                    failed_first.get_or_insert(error);
                }
            }
        }
        self.drop_ranges_of_messages().await?;
        failed_first.map_or(Ok(report), Err)
    }

    async fn retain_topic(&self, topic: TopicId) -> Result<RetainReport, StoreError> {
        let mut tx = self.begin_slow().await?;
        let spec: Option<String> = sqlx::query_scalar("SELECT spec::text FROM store_topics WHERE topic = $1")
            .bind(t(topic))
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
        let Some(spec) = spec else { return Ok(RetainReport::default()) };
        let spec = super::control::topic_spec(&spec)?;
        let cutoff = now(&mut tx, &self.clock).await? - ms(spec.retention);
        // A lane of which all has been erased has none to be old.
        let old: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM store_partitions q CROSS JOIN generate_series(1, 10) AS l(lane) \
             LEFT JOIN LATERAL (SELECT m.at FROM messages m WHERE m.topic = q.topic AND m.part = q.part AND m.lane = l.lane - 1 \
                 AND m.seq >= q.starts[l.lane] ORDER BY m.seq LIMIT 1) m ON true \
             WHERE q.topic = $1 AND q.starts[l.lane] < q.heads[l.lane] AND (m.at IS NULL OR m.at <= $2))",
        )
        .bind(t(topic))
        .bind(cutoff)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        if !old {
            return Ok(RetainReport::default());
        }
        let (mut grants, parts) = lock_all(&mut tx, topic).await?;
        let cuts = first_at(&mut tx, t(topic), &parts, cutoff + 1).await?;
        let removed = self.trim(&mut tx, topic, &parts, &mut grants, (cuts, false)).await?;
        commit(tx).await?;
        self.wake(topic);
        Ok(removed)
    }

    /// The tables of the messages to come are there before them, made by a transaction that does nothing else.
    async fn make_ranges_ahead(&self) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let now = now(&mut tx, &self.clock).await?;
        let classes: Vec<i16> =
            sqlx::query_scalar("SELECT DISTINCT class FROM store_topics").fetch_all(&mut *tx).await.map_err(failed)?;
        let next = |class: i16| [(class, now), (class, now.saturating_add(range_of(class, now).1))];
        self.make_ranges(&mut tx, &classes.into_iter().flat_map(next).collect()).await?;
        commit(tx).await
    }

    /// Removes at least `need` bytes of what every group has settled, or as much as there is.
    pub(super) async fn trim_settled(&self, topic: TopicId, need: u64) -> Result<(), StoreError> {
        let mut tx = self.begin_slow().await?;
        let (mut grants, parts) = lock_all(&mut tx, topic).await?;
        let floors = floors(&mut tx, topic, &parts, &grants).await?;
        let (mut cuts, mut freed) = (Vec::new(), 0);
        for (part, lane, floor) in floors {
            let start = parts.iter().find(|lanes| lanes.part == part).map_or(0, |lanes| lanes.starts[lane]);
            if start >= floor || freed >= need {
                continue;
            }
            let rows: Vec<(i64, i64)> = sqlx::query_as(
                "SELECT seq, octet_length(body)::bigint + 64 FROM messages WHERE topic = $1 AND part = $2 AND lane = $3 \
                 AND seq >= $4 AND seq < $5 ORDER BY seq LIMIT $6",
            )
            .bind(t(topic))
            .bind(part)
            .bind(lane_number(lane))
            .bind(start)
            .bind(floor)
            .bind(TRIM_MAX)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            let mut until = if rows.is_empty() { floor } else { start };
            for (seq, cost) in rows {
                if freed >= need {
                    break;
                }
                freed += cost.cast_unsigned();
                until = seq + 1;
            }
            cuts.push((part, lane, until));
        }
        self.trim(&mut tx, topic, &parts, &mut grants, (cuts, true)).await?;
        commit(tx).await
    }

    /// Lanes begin later, and what was before goes at once where `deletes` says so. Everything of the topic is locked.
    async fn trim(
        &self,
        tx: &mut Tx,
        topic: TopicId,
        parts: &[Lanes],
        grants: &mut [Grant],
        (cuts, deletes): (Cuts, bool),
    ) -> Result<RetainReport, StoreError> {
        let mut report = RetainReport::default();
        let mut totals = Totals::default();
        let mut starts: BTreeMap<i16, (Vec<i64>, i64, i64)> =
            parts.iter().map(|lanes| (lanes.part, (lanes.starts.clone(), 0, 0))).collect();
        for (part, lane, until) in cuts {
            let Some((of_part, removed, bytes)) = starts.get_mut(&part) else { continue };
            let from = of_part[lane];
            if until <= from {
                continue;
            }
            let number = lane_number(lane);
            for (group, count) in unsettled(tx, topic, part, number, (from, until), grants).await? {
                totals.expired(t(topic), group, count);
                report.expired += count.cast_unsigned();
            }
            for grant in grants.iter_mut().filter(|grant| grant.place.1 == part) {
                let gone: Vec<usize> = grant
                    .open()
                    .filter(|(_, entry)| entry.lane == number && entry.seq < until)
                    .map(|(nth, _)| nth)
                    .collect();
                gone.into_iter().for_each(|nth| grant.close(nth));
            }
            let sql = match deletes {
                true => {
                    "WITH gone AS (DELETE FROM messages WHERE topic = $1 AND part = $2 AND lane = $3 AND seq >= $4 AND seq < $5 \
                     RETURNING octet_length(body)::bigint + 64 AS cost) SELECT coalesce(sum(cost), 0)::bigint FROM gone"
                }
                false => {
                    "SELECT coalesce(sum(octet_length(body)::bigint + 64), 0)::bigint FROM messages \
                     WHERE topic = $1 AND part = $2 AND lane = $3 AND seq >= $4 AND seq < $5"
                }
            };
            let freed: i64 = sqlx::query_scalar(sql)
                .bind(t(topic))
                .bind(part)
                .bind(number)
                .bind(from)
                .bind(until)
                .fetch_one(&mut **tx)
                .await
                .map_err(failed)?;
            for sql in [
                "DELETE FROM retries WHERE topic = $1 AND part = $2 AND place >> 48 = $3 AND place & 281474976710655 < $4",
                "DELETE FROM settled_ranges WHERE topic = $1 AND part = $2 AND lane = $3 AND until <= $4",
                "DELETE FROM erased WHERE topic = $1 AND part = $2 AND lane = $3 AND seq < $4",
                "UPDATE cursors SET nexts[$3 + 1] = $4 WHERE topic = $1 AND part = $2 AND nexts[$3 + 1] < $4",
            ] {
                sqlx::query(sql)
                    .bind(t(topic))
                    .bind(part)
                    .bind(i32::from(number))
                    .bind(until)
                    .execute(&mut **tx)
                    .await
                    .map_err(failed)?;
            }
            of_part[lane] = until;
            *removed += until - from;
            *bytes += freed;
            report.removed += (until - from).cast_unsigned();
            report.bytes += freed.cast_unsigned();
        }
        Grant::write(grants, tx).await?;
        sqlx::query(
            "UPDATE store_partitions q SET starts = w.starts::bigint[], removed = q.removed + w.removed, bytes = q.bytes - w.bytes \
             FROM unnest($2::smallint[], $3::text[], $4::bigint[], $5::bigint[]) AS w(part, starts, removed, bytes) \
             WHERE q.topic = $1 AND q.part = w.part AND w.removed > 0",
        )
        .bind(t(topic))
        .bind(starts.keys().copied().collect::<Vec<_>>())
        .bind(starts.values().map(|(of_part, ..)| array(of_part)).collect::<Vec<_>>())
        .bind(starts.values().map(|(_, removed, _)| *removed).collect::<Vec<_>>())
        .bind(starts.values().map(|(.., bytes)| *bytes).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        totals.write(self, tx).await?;
        Ok(report)
    }

    /// Partitions of `messages` go whose messages are all older than any topic that may have written to them keeps its own.
    async fn drop_ranges_of_messages(&self) -> Result<(), StoreError> {
        let specs: Vec<(i16, String)> = sqlx::query_as("SELECT class, spec::text FROM store_topics")
            .fetch_all(&mut *self.look().await?)
            .await
            .map_err(failed)?;
        let mut kept: BTreeMap<i16, i64> = BTreeMap::new();
        for (class, spec) in &specs {
            let retention = ms(super::control::topic_spec(spec)?.retention);
            let longest = kept.entry(*class).or_default();
            *longest = retention.max(*longest);
        }
        // Attached, half detached (whoever did it was stopped), or detached and not dropped yet.
        let ranges: Vec<(String, Option<bool>)> = sqlx::query_as(
            "SELECT c.relname::text, i.inhdetachpending FROM pg_class c \
             JOIN pg_class p ON p.oid = 'messages'::regclass AND p.relnamespace = c.relnamespace \
             LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = p.oid \
             WHERE c.relkind = 'r' AND c.relname ~ '^messages_c[0-9]+_[0-9]+$'",
        )
        .fetch_all(&mut *self.look().await?)
        .await
        .map_err(failed)?;
        let now = now(&mut self.look().await?, &self.clock).await?;
        for (name, detaching) in ranges {
            let Some((class, from)) = range_named(&name) else { continue };
            let (_, width) = range_of(class, from);
            // With what is left of a look at all topics to be trimmed: what goes with its table was counted before.
            let too_old = now.saturating_sub(kept.get(&class).copied().unwrap_or(0)).saturating_sub(MARGIN_MS);
            if from.saturating_add(width) > too_old {
                continue;
            }
            // To drop it at once would lock all of `messages`, and wait for whoever reads it.
            let detach = match detaching {
                None => String::new(),
                Some(false) => format!("ALTER TABLE messages DETACH PARTITION {name} CONCURRENTLY"),
                Some(true) => format!("ALTER TABLE messages DETACH PARTITION {name} FINALIZE"),
            };
            for sql in [detach, format!("DROP TABLE IF EXISTS {name}")] {
                // Not in a transaction, where a table can't be detached beside others.
                let connection = self.desk.lend().await.map_err(failed)?;
                let Err(error) = connection.ask(sql, DETACH_TIMEOUT).await else { continue };
                // Another broker may be at it, and the table gone, or half detached: then it is gone before long.
                let code = error.as_database_error().and_then(DatabaseError::code).unwrap_or_default();
                if ["42P01", "55000", "55006"].contains(&&*code) {
                    tracing::debug!(%error, table = name, "a table of old messages is not dropped now");
                } else {
                    tracing::warn!(%error, table = name, "a table of old messages could not be dropped and keeps its room");
                }
                break;
            }
            self.ranges.lock().remove(&(class, from));
        }
        Ok(())
    }
}

/// Class and first time of a partition of `messages`.
fn range_named(name: &str) -> Option<(i16, i64)> {
    let (class, from) = name.strip_prefix("messages_c")?.split_once('_')?;
    Some((class.parse().ok()?, from.parse().ok()?))
}

/// Locks all that a topic has: cursors, grants, partitions.
async fn lock_all(tx: &mut Tx, topic: TopicId) -> Result<(Vec<Grant>, Vec<Lanes>), StoreError> {
    sqlx::query("SELECT 1 FROM cursors WHERE topic = $1 ORDER BY grp, part FOR UPDATE")
        .bind(t(topic))
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    let rows = sqlx::query(grants!("WHERE g.topic = $1 ORDER BY g.epoch, g.number FOR UPDATE"))
        .bind(t(topic))
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    let grants = rows.iter().map(Grant::read).collect::<Result<Vec<_>, _>>()?;
    let parts = lock_partitions(tx, t(topic)).await?;
    Ok((grants, parts))
}

/// The first message of each lane that some group has not settled.
async fn floors(tx: &mut Tx, topic: TopicId, parts: &[Lanes], grants: &[Grant]) -> Result<Cuts, StoreError> {
    let cursors: Vec<(i16, Vec<i64>)> = sqlx::query_as("SELECT part, nexts FROM cursors WHERE topic = $1")
        .bind(t(topic))
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    let retries: Vec<(i16, i64)> =
        sqlx::query_as("SELECT part, min(place) FROM retries WHERE topic = $1 GROUP BY part, place >> 48")
            .bind(t(topic))
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
    let open: BTreeSet<(i16, i64)> = grants
        .iter()
        .flat_map(|grant| {
            grant.open().map(|(_, entry)| (grant.place.1, place_of(entry.lane, entry.seq))).collect::<Vec<_>>()
        })
        .chain(retries)
        .collect();
    let mut floors = Vec::new();
    for lanes in parts {
        for lane in 0..LANES {
            let number = lane_number(lane);
            let next = cursors.iter().filter(|(part, _)| *part == lanes.part).map(|(_, nexts)| nexts[lane]).min();
            let next = next.unwrap_or(lanes.heads[lane]);
            let first = open.range((lanes.part, place_of(number, 0))..(lanes.part, place_of(number + 1, 0))).next();
            let first = first.map_or(i64::MAX, |(_, place)| place & 0xffff_ffff_ffff);
            floors.push((lanes.part, lane, next.min(first)));
        }
    }
    Ok(floors)
}

/// By group, how many messages of a stretch of a lane it has not settled.
async fn unsettled(
    tx: &mut Tx,
    topic: TopicId,
    part: i16,
    lane: i16,
    (from, until): (i64, i64),
    grants: &[Grant],
) -> Result<Vec<(i32, i64)>, StoreError> {
    let rows = sqlx::query(
        "SELECT c.grp, \
             (SELECT count(*) FROM messages m WHERE m.topic = $1 AND m.part = $2 AND m.lane = $3 AND m.seq >= greatest(c.nexts[$3 + 1], $4) \
                 AND m.seq < $5 AND (m.target IS NULL OR m.target = c.grp) \
                 AND NOT EXISTS (SELECT 1 FROM settled_ranges s WHERE s.topic = $1 AND s.grp = c.grp AND s.part = $2 AND s.lane = $3 \
                     AND s.first <= m.seq AND s.until > m.seq)), \
             (SELECT count(*) FROM retries r WHERE r.topic = $1 AND r.grp = c.grp AND r.part = $2 AND r.place >> 48 = $3 \
                 AND r.place & 281474976710655 < $5 AND r.at < 9223372036854775807) \
         FROM cursors c WHERE c.topic = $1 AND c.part = $2",
    )
    .bind(t(topic))
    .bind(part)
    .bind(i32::from(lane))
    .bind(from)
    .bind(until)
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)?;
    let mut counts = Vec::with_capacity(rows.len());
    for row in &rows {
        let group: i32 = row.try_get(0).map_err(failed)?;
        let (fresh, again): (i64, i64) = (row.try_get(1).map_err(failed)?, row.try_get(2).map_err(failed)?);
        let of_group = grants.iter().filter(|grant| grant.group == group && grant.place.1 == part);
        let leased =
            of_group.map(|grant| grant.open().filter(|(_, entry)| entry.lane == lane && entry.seq < until).count());
        counts.push((group, fresh + again + leased.sum::<usize>() as i64));
    }
    Ok(counts)
}
