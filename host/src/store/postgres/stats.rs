//! Figures of a topic. Invariant: read in one snapshot of the database, so that they add up.

use std::collections::{BTreeMap, HashMap};

use sqlx::Row as _;

use super::Shared;
use super::grant::{Grant, grants};
use super::sql::{LANES, Tx, commit, failed, group_id, lane_and_seq, lane_index, lane_number, now, place_of, t};
use crate::clock::Timestamp;
use crate::message::{Offset, TopicId};
use crate::store::{GroupStats, StoreError, TopicStats};

/// How many messages at or above a group's cursors are not for it: others' replays, and what was erased.
pub(super) const ABSENT: &str = "SELECT (SELECT count(*) FROM cursors c \
         JOIN messages m ON m.topic = c.topic AND m.part = c.part AND m.target IS NOT NULL AND m.target <> $2 \
         AND m.seq >= c.nexts[m.lane + 1] WHERE c.topic = $1 AND c.grp = $2) \
     + (SELECT count(*) FROM cursors c JOIN erased e ON e.topic = c.topic AND e.part = c.part \
         AND e.seq >= c.nexts[e.lane + 1] WHERE c.topic = $1 AND c.grp = $2 \
         AND NOT EXISTS (SELECT 1 FROM settled_ranges s WHERE s.topic = $1 AND s.grp = $2 AND s.part = e.part \
             AND s.lane = e.lane AND s.first <= e.seq AND s.until > e.seq))";

impl Shared {
    /// See [`crate::store::MessageStore::stats`].
    pub(super) async fn stats(&self, topic: TopicId) -> Result<TopicStats, StoreError> {
        let mut tx = self.look().await?;
        let now = now(&mut tx, &self.clock).await?;
        let rows = sqlx::query(
            "SELECT part, heads, starts, appended, removed, bytes, keys FROM store_partitions WHERE topic = $1 ORDER BY part",
        )
        .bind(t(topic))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        if rows.is_empty() {
            return Err(StoreError::NoTopic);
        }
        let mut stats = TopicStats::default();
        let mut lanes: BTreeMap<(i16, usize), (i64, i64)> = BTreeMap::new();
        for row in &rows {
            let part: i16 = row.try_get(0).map_err(failed)?;
            let heads = super::log::lanes(row.try_get(1).map_err(failed)?)?;
            let starts = super::log::lanes(row.try_get(2).map_err(failed)?)?;
            let number = |at: usize| row.try_get::<i64, _>(at).map(i64::cast_unsigned).map_err(failed);
            stats.appended_total += number(3)?;
            stats.removed_total += number(4)?;
            stats.bytes += number(5)?;
            stats.dedup_keys += u64::from(row.try_get::<i32, _>(6).map_err(failed)?.cast_unsigned());
            for lane in 0..LANES {
                stats.messages += (heads[lane] - starts[lane]).cast_unsigned();
                lanes.insert((part, lane), (starts[lane], heads[lane]));
            }
        }
        let scheduled: i64 = sqlx::query_scalar("SELECT count(*) FROM scheduled WHERE topic = $1")
            .bind(t(topic))
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        stats.scheduled = scheduled.cast_unsigned();
        let firsts = lanes.iter().filter(|(_, (start, head))| start < head).map(|(place, (start, _))| (*place, *start));
        stats.oldest = oldest(&mut tx, topic, firsts.collect()).await?;
        stats.groups = groups(&mut tx, topic, &lanes, now).await?;
        commit(tx).await?;
        Ok(stats)
    }
}

async fn groups(
    tx: &mut Tx,
    topic: TopicId,
    lanes: &BTreeMap<(i16, usize), (i64, i64)>,
    now: i64,
) -> Result<Vec<GroupStats>, StoreError> {
    let rows = sqlx::query(
        "SELECT g.grp, coalesce(sum(t.acked), 0)::bigint, coalesce(sum(t.dead_lettered), 0)::bigint, \
             coalesce(sum(t.expired), 0)::bigint, \
             (coalesce(sum(t.delivered), 0) + (SELECT coalesce(sum(k.given), 0) FROM cursors k WHERE k.topic = g.topic AND k.grp = g.grp))::bigint \
         FROM store_groups g LEFT JOIN group_totals t USING (topic, grp) WHERE g.topic = $1 GROUP BY g.topic, g.grp ORDER BY g.grp",
    )
    .bind(t(topic))
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)?;
    let cursors: Vec<(i32, i16, Vec<i64>)> = sqlx::query_as("SELECT grp, part, nexts FROM cursors WHERE topic = $1")
        .bind(t(topic))
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    let retries: Vec<(i32, i16, i64, i64)> =
        sqlx::query_as("SELECT grp, part, place, at FROM retries WHERE topic = $1")
            .bind(t(topic))
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
    let ranges: Vec<(i32, i16, i16, i64, i64)> =
        sqlx::query_as("SELECT grp, part, lane, first, until FROM settled_ranges WHERE topic = $1")
            .bind(t(topic))
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
    let grants =
        sqlx::query(grants!("WHERE g.topic = $1")).bind(t(topic)).fetch_all(&mut **tx).await.map_err(failed)?;
    let grants = grants.iter().map(Grant::read).collect::<Result<Vec<_>, _>>()?;
    let mut all = Vec::with_capacity(rows.len());
    for row in &rows {
        let group: i32 = row.try_get(0).map_err(failed)?;
        let total = |at: usize| row.try_get::<i64, _>(at).map(i64::cast_unsigned).map_err(failed);
        let mut open: HashMap<(i16, usize), i64> = HashMap::new();
        let mut first = |part: i16, place: i64| {
            let (lane, seq) = lane_and_seq(Offset(place.cast_unsigned()));
            let known = open.entry((part, lane_index(lane))).or_insert(seq);
            *known = seq.min(*known);
        };
        let mut waiting: i64 = 0;
        for (_, part, nexts) in cursors.iter().filter(|(known, ..)| *known == group) {
            for (lane, next) in nexts.iter().enumerate() {
                let Some((start, head)) = lanes.get(&(*part, lane)) else { continue };
                let mut next = (*next).max(*start);
                if next < *head {
                    waiting += head - next;
                    let number = lane_number(lane);
                    // What is settled right above the cursor is not the first that waits.
                    let of_lane = ranges.iter().filter(|(known, p, l, ..)| (*known, *p, *l) == (group, *part, number));
                    let mut of_lane: Vec<_> = of_lane.map(|(.., first, until)| (*first, *until)).collect();
                    of_lane.sort_unstable();
                    for (from, until) in of_lane {
                        waiting -= until - from.max(next);
                        next = if from <= next { until } else { next };
                    }
                    if next < *head {
                        first(*part, place_of(number, next));
                    }
                }
            }
        }
        let absent: i64 =
            sqlx::query_scalar(ABSENT).bind(t(topic)).bind(group).fetch_one(&mut **tx).await.map_err(failed)?;
        waiting -= absent;
        let (mut leased, mut retrying) = (0, 0);
        for (_, part, place, at) in retries.iter().filter(|(known, ..)| *known == group) {
            first(*part, *place);
            match *at {
                i64::MAX => {}
                at if at <= now => waiting += 1,
                _ => retrying += 1,
            }
        }
        for grant in grants.iter().filter(|grant| grant.group == group) {
            for (nth, entry) in grant.open() {
                first(grant.place.1, place_of(entry.lane, entry.seq));
                if grant.deadline_of(nth) <= now {
                    waiting += 1;
                } else {
                    leased += 1;
                }
            }
        }
        let any = waiting > 0 || leased > 0 || retrying > 0;
        all.push(GroupStats {
            group: group_id(group),
            waiting: waiting.max(0).cast_unsigned(),
            leased,
            retrying,
            oldest_unsettled: if any { oldest(tx, topic, open.into_iter().collect()).await? } else { None },
            acked_total: total(1)?,
            dead_lettered_total: total(2)?,
            expired_total: total(3)?,
            delivered_total: total(4)?,
        });
    }
    Ok(all)
}

/// When the oldest of these messages came, or of what comes first behind them.
async fn oldest(
    tx: &mut Tx,
    topic: TopicId,
    firsts: Vec<((i16, usize), i64)>,
) -> Result<Option<Timestamp>, StoreError> {
    let at: Option<i64> = sqlx::query_scalar(
        "SELECT min(m.at) FROM unnest($2::smallint[], $3::smallint[], $4::bigint[]) AS w(part, lane, seq) \
         CROSS JOIN LATERAL (SELECT at FROM messages m WHERE m.topic = $1 AND m.part = w.part AND m.lane = w.lane \
             AND m.seq >= w.seq ORDER BY m.seq LIMIT 1) m",
    )
    .bind(t(topic))
    .bind(firsts.iter().map(|((part, _), _)| *part).collect::<Vec<_>>())
    .bind(firsts.iter().map(|((_, lane), _)| lane_number(*lane)).collect::<Vec<_>>())
    .bind(firsts.iter().map(|(_, seq)| *seq).collect::<Vec<_>>())
    .fetch_one(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(at.map(Timestamp))
}
