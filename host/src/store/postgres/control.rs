//! Topics and groups. Invariant: a topic's settings change under the locks of all its partitions, so that whoever holds one
//! of them reads settings that stay. Never names anything: the catalog gives numbers.

use std::collections::BTreeSet;

use sqlx::Row as _;

use super::Shared;
use super::log::array;
use super::sql::{
    LANES, Tx, commit, damaged, failed, g, group_id, lane_and_seq, lane_index, lane_number, ms, p, t, topic_id,
};
use crate::message::{GroupId, PARTITIONS_MAX, PRIORITY_MAX, TopicId};
use crate::store::{GroupSpec, SeekTo, StoreError, TopicSpec};

const HOUR: i64 = 3_600_000;
/// By retention: up to how long a class's messages are kept, and how much time one partition of `messages` spans. A partition
/// is dropped as a whole, so what is removed by time takes up to an eighth longer to give its room back.
pub(super) const CLASSES: [(i64, i64); 5] = [
    (8 * HOUR, HOUR),
    (48 * HOUR, 6 * HOUR),
    (8 * 24 * HOUR, 24 * HOUR),
    (32 * 24 * HOUR, 96 * HOUR),
    (i64::MAX, 768 * HOUR),
];

/// The first partition of `messages` that a time falls into, and how long it is.
pub(super) fn range_of(class: i16, at: i64) -> (i64, i64) {
    let (_, width) = CLASSES[usize::try_from(class).unwrap_or(0).min(CLASSES.len() - 1)];
    (at.div_euclid(width) * width, width)
}

fn class_of(retention: std::time::Duration) -> i16 {
    let nth = CLASSES.iter().position(|(most, _)| ms(retention) <= *most).unwrap_or(CLASSES.len() - 1);
    i16::try_from(nth).unwrap_or(0)
}

/// A topic's settings as the table has them.
pub(super) fn topic_spec(json: &str) -> Result<TopicSpec, StoreError> {
    serde_json::from_str(json).map_err(|error| damaged("store_topics", &error.to_string()))
}

/// A group's settings as the table has them.
pub(super) fn group_spec(json: &str) -> Result<GroupSpec, StoreError> {
    serde_json::from_str(json).map_err(|error| damaged("store_groups", &error.to_string()))
}

/// A partition's lanes: number, next sequences, first kept ones.
pub(super) struct Lanes {
    pub part: i16,
    pub heads: Vec<i64>,
    pub starts: Vec<i64>,
}

impl Shared {
    /// See [`crate::store::MessageStore::topics`].
    pub(super) async fn known_topics(&self) -> Result<Vec<TopicId>, StoreError> {
        let topics: Vec<i32> = sqlx::query_scalar("SELECT topic FROM store_topics ORDER BY topic")
            .fetch_all(&mut *self.look().await?)
            .await
            .map_err(failed)?;
        Ok(topics.into_iter().map(topic_id).collect())
    }

    /// See [`crate::store::MessageStore::put_topic`].
    pub(super) async fn put_topic(&self, spec: &TopicSpec) -> Result<(), StoreError> {
        if spec.partitions == 0 || spec.partitions > PARTITIONS_MAX {
            return Err(StoreError::Invalid(format!("a topic has 1 to {PARTITIONS_MAX} partitions")));
        }
        if spec.dead_letter == Some(spec.id) {
            return Err(StoreError::Invalid("a topic cannot be its own dead-letter topic".to_owned()));
        }
        let json = serde_json::to_string(spec).map_err(|error| StoreError::Invalid(error.to_string()))?;
        let mut tx = self.begin().await?;
        let topic = t(spec.id);
        let parts = lock_partitions(&mut tx, topic).await?;
        if !parts.is_empty() && parts.len() != usize::from(spec.partitions) {
            return Err(StoreError::Invalid("a topic's partition count cannot change".to_owned()));
        }
        sqlx::query(
            "INSERT INTO store_topics (topic, class, spec) VALUES ($1, $2, $3::jsonb) \
             ON CONFLICT (topic) DO UPDATE SET spec = excluded.spec",
        )
        .bind(topic)
        .bind(class_of(spec.retention))
        .bind(json)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        sqlx::query(
            "INSERT INTO store_partitions (topic, part) SELECT $1, generate_series(0, $2 - 1)::smallint \
             ON CONFLICT DO NOTHING",
        )
        .bind(topic)
        .bind(i32::from(spec.partitions))
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        commit(tx).await?;
        self.know(spec.id);
        Ok(())
    }

    /// See [`crate::store::MessageStore::delete_topic`].
    pub(super) async fn delete_topic(&self, topic: TopicId) -> Result<(), StoreError> {
        let mut tx = self.begin_slow().await?;
        sqlx::query("SELECT 1 FROM cursors WHERE topic = $1 ORDER BY grp, part FOR UPDATE")
            .bind(t(topic))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        lock_partitions(&mut tx, t(topic)).await?;
        for sql in [
            "DELETE FROM store_topics WHERE topic = $1",
            "DELETE FROM store_groups WHERE topic = $1",
            "DELETE FROM grants WHERE topic = $1",
            "DELETE FROM retries WHERE topic = $1",
            "DELETE FROM settled_ranges WHERE topic = $1",
            "DELETE FROM snapshots WHERE topic = $1",
            "DELETE FROM group_totals WHERE topic = $1",
            "DELETE FROM cursors WHERE topic = $1",
            "DELETE FROM scheduled WHERE topic = $1",
            "DELETE FROM dedup_outcomes WHERE topic = $1",
            "DELETE FROM erased WHERE topic = $1",
            "DELETE FROM messages WHERE topic = $1",
            "DELETE FROM store_partitions WHERE topic = $1",
        ] {
            sqlx::query(sql).bind(t(topic)).execute(&mut *tx).await.map_err(failed)?;
        }
        let prefix = crate::store::kv_namespace(topic, "");
        for sql in [
            "DELETE FROM plugin_values WHERE starts_with(namespace, $1)",
            "DELETE FROM value_spaces WHERE starts_with(namespace, $1)",
        ] {
            sqlx::query(sql).bind(&*prefix).execute(&mut *tx).await.map_err(failed)?;
        }
        commit(tx).await?;
        self.forget(topic);
        Ok(())
    }

    /// See [`crate::store::MessageStore::groups`].
    pub(super) async fn groups(&self, topic: TopicId) -> Result<Vec<GroupId>, StoreError> {
        let groups: Vec<Option<i32>> = sqlx::query_scalar(
            "SELECT g.grp FROM store_topics t LEFT JOIN store_groups g USING (topic) WHERE t.topic = $1 ORDER BY 1",
        )
        .bind(t(topic))
        .fetch_all(&mut *self.look().await?)
        .await
        .map_err(failed)?;
        if groups.is_empty() {
            return Err(StoreError::NoTopic);
        }
        Ok(groups.into_iter().flatten().map(group_id).collect())
    }

    /// See [`crate::store::MessageStore::put_group`].
    pub(super) async fn put_group(&self, spec: &GroupSpec) -> Result<(), StoreError> {
        let json = serde_json::to_string(spec).map_err(|error| StoreError::Invalid(error.to_string()))?;
        let mut tx = self.begin().await?;
        let (topic, group) = (t(spec.topic), g(spec.group));
        // The partitions' locks keep two brokers from making one group, and new messages from coming before its cursor.
        let parts = lock_partitions(&mut tx, topic).await?;
        if parts.is_empty() {
            return Err(StoreError::NoTopic);
        }
        let known: Option<i32> = sqlx::query_scalar("SELECT 1 FROM store_groups WHERE topic = $1 AND grp = $2")
            .bind(topic)
            .bind(group)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
        if known.is_none() {
            let places = places(&mut tx, topic, &parts, spec.start).await?;
            let mut nexts: Vec<(i16, Vec<i64>)> =
                parts.iter().map(|lanes| (lanes.part, lanes.starts.clone())).collect();
            for (part, lane, seq) in places {
                if let Some((_, lanes)) = nexts.iter_mut().find(|(known, _)| *known == part) {
                    lanes[lane] = seq;
                }
            }
            sqlx::query(
                "INSERT INTO cursors (topic, grp, part, nexts) \
                 SELECT $1, $2, w.part, w.nexts::bigint[] FROM unnest($3::smallint[], $4::text[]) AS w(part, nexts)",
            )
            .bind(topic)
            .bind(group)
            .bind(nexts.iter().map(|(part, _)| *part).collect::<Vec<_>>())
            .bind(nexts.iter().map(|(_, lanes)| array(lanes)).collect::<Vec<_>>())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        sqlx::query(
            "INSERT INTO store_groups (topic, grp, spec) VALUES ($1, $2, $3::jsonb) \
             ON CONFLICT (topic, grp) DO UPDATE SET spec = excluded.spec",
        )
        .bind(topic)
        .bind(group)
        .bind(json)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        commit(tx).await
    }

    /// See [`crate::store::MessageStore::delete_group`].
    pub(super) async fn delete_group(&self, topic: TopicId, group: GroupId) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query("SELECT 1 FROM cursors WHERE topic = $1 AND grp = $2 ORDER BY part FOR UPDATE")
            .bind(t(topic))
            .bind(g(group))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        for sql in [
            "DELETE FROM store_groups WHERE topic = $1 AND grp = $2",
            "DELETE FROM grants WHERE topic = $1 AND grp = $2",
            "DELETE FROM retries WHERE topic = $1 AND grp = $2",
            "DELETE FROM settled_ranges WHERE topic = $1 AND grp = $2",
            "DELETE FROM snapshots WHERE topic = $1 AND grp = $2",
            "DELETE FROM group_totals WHERE topic = $1 AND grp = $2",
            "DELETE FROM cursors WHERE topic = $1 AND grp = $2",
        ] {
            sqlx::query(sql).bind(t(topic)).bind(g(group)).execute(&mut *tx).await.map_err(failed)?;
        }
        commit(tx).await
    }

    /// Makes the partitions of `messages` that these times fall into, where they are not known to be there.
    pub(super) async fn make_ranges(&self, tx: &mut Tx, wanted: &BTreeSet<(i16, i64)>) -> Result<(), StoreError> {
        let missing: BTreeSet<(i16, i64)> = {
            let known = self.ranges.lock();
            let ranges = wanted.iter().map(|(class, at)| (*class, range_of(*class, *at).0));
            ranges.filter(|range| !known.contains(range)).collect()
        };
        for (class, from) in missing {
            let (_, width) = range_of(class, from);
            let (name, to) = (format!("messages_c{class}_{from}"), from + width);
            sqlx::query("SELECT pg_advisory_xact_lock(hashtext('sluice.messages'))")
                .execute(&mut **tx)
                .await
                .map_err(failed)?;
            let there: Option<String> = sqlx::query_scalar("SELECT to_regclass($1)::text")
                .bind(&name)
                .fetch_one(&mut **tx)
                .await
                .map_err(failed)?;
            if there.is_none() {
                // Attached, not created as a part: that would lock all of `messages` against whoever reads it.
                let make = format!(
                    "CREATE TABLE {name} (LIKE messages INCLUDING ALL); \
                     ALTER TABLE {name} ADD CONSTRAINT {name}_range CHECK (class = {class} AND at >= {from} AND at < {to}); \
                     ALTER TABLE messages ATTACH PARTITION {name} FOR VALUES FROM ({class}, {from}) TO ({class}, {to})"
                );
                sqlx::raw_sql(sqlx::AssertSqlSafe(make)).execute(&mut **tx).await.map_err(failed)?;
            }
            // Should this transaction fail after all, whoever misses the partition looks again.
            self.ranges.lock().insert((class, from));
        }
        Ok(())
    }

    /// Whether the same transaction may well succeed now: it met another one's locks in a circle, or missed a partition of
    /// `messages` that was taken to be there.
    pub(super) fn may_repeat(&self, error: &StoreError) -> bool {
        let StoreError::Unavailable(why) = error else { return false };
        let missed = why.contains("(SQLSTATE 23514)");
        if missed {
            self.ranges.lock().clear();
        }
        missed || ["(SQLSTATE 40P01)", "(SQLSTATE 40001)"].iter().any(|code| why.contains(code))
    }
}

/// Locks all partitions of a topic; none if there is no such topic.
pub(super) async fn lock_partitions(tx: &mut Tx, topic: i32) -> Result<Vec<Lanes>, StoreError> {
    let rows =
        sqlx::query("SELECT part, heads, starts FROM store_partitions WHERE topic = $1 ORDER BY part FOR UPDATE")
            .bind(topic)
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
    let lanes = |row: &sqlx::postgres::PgRow| {
        Ok(Lanes {
            part: row.try_get(0).map_err(failed)?,
            heads: super::log::lanes(row.try_get(1).map_err(failed)?)?,
            starts: super::log::lanes(row.try_get(2).map_err(failed)?)?,
        })
    };
    rows.iter().map(lanes).collect()
}

/// Where a cursor goes: partition, lane, sequence, for the lanes that it goes in.
pub(super) async fn places(
    tx: &mut Tx,
    topic: i32,
    parts: &[Lanes],
    to: SeekTo,
) -> Result<Vec<(i16, usize, i64)>, StoreError> {
    let each = |of: fn(&Lanes) -> &Vec<i64>| {
        parts
            .iter()
            .flat_map(|lanes| of(lanes).iter().enumerate().map(|(lane, seq)| (lanes.part, lane, *seq)))
            .collect::<Vec<_>>()
    };
    match to {
        SeekTo::Earliest => Ok(each(|lanes| &lanes.starts)),
        SeekTo::Latest => Ok(each(|lanes| &lanes.heads)),
        SeekTo::Time(at) => first_at(tx, topic, parts, at.0).await,
        SeekTo::Offset(partition, offset) => {
            let found = parts.iter().find(|lanes| lanes.part == p(partition));
            let lanes = found.ok_or_else(|| StoreError::Invalid(format!("the topic has no partition {partition}")))?;
            let (lane, seq) = lane_and_seq(offset);
            if offset.lane() > PRIORITY_MAX {
                return Err(StoreError::Invalid("there is no such offset".to_owned()));
            }
            let lane = lane_index(lane);
            Ok(vec![(lanes.part, lane, seq.clamp(lanes.starts[lane], lanes.heads[lane]))])
        }
    }
}

/// The first message of each lane that entered the log at or after a time; the lane's end if there is none.
pub(super) async fn first_at(
    tx: &mut Tx,
    topic: i32,
    parts: &[Lanes],
    at: i64,
) -> Result<Vec<(i16, usize, i64)>, StoreError> {
    let mut found = Vec::new();
    for lanes in parts {
        for lane in (0..LANES).filter(|lane| lanes.starts[*lane] < lanes.heads[*lane]) {
            let seq: Option<i64> = sqlx::query_scalar(
                "SELECT seq FROM messages WHERE topic = $1 AND part = $2 AND lane = $3 AND seq >= $4 AND at >= $5 \
                 ORDER BY seq LIMIT 1",
            )
            .bind(topic)
            .bind(lanes.part)
            .bind(lane_number(lane))
            .bind(lanes.starts[lane])
            .bind(at)
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed)?;
            found.push((lanes.part, lane, seq.unwrap_or(lanes.heads[lane])));
        }
    }
    Ok(found)
}
