//! The store of a fleet as one end of a move. Invariant: each page that is taken is one transaction, under the lock of what it
//! adds to. No broker is on the database meanwhile; the reading still goes through one state of the tables a page.

mod groups;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row as _};

use super::append::{outcome_bytes, outcome_of};
use super::log::{Part, Row, Rows, STAMP_BITS, array, lanes};
use super::sql::{LANES, STORED, Stored, Tx, body_at, commit, damaged, failed, lane_number, n, p, t};
use super::{PostgresStore, Shared};
use crate::clock::Timestamp;
use crate::message::TopicId;
use crate::store::embedded::ops::{ENTRY_OVERHEAD_BYTES, LaneId};
use crate::store::moving::{
    GroupMove, KeyMove, KeysAfter, LaneMove, LanePlace, LogMove, Movable, ScheduledMove, TopicMove, ValueMove,
};
use crate::store::{StoreError, kv_cost};

/// Bytes of a page of messages or values: two of them are in memory at once.
const PAGE_BYTES: u64 = 4 << 20;
/// Things in a page.
const PAGE: i64 = 4096;

#[async_trait]
impl Movable for PostgresStore {
    async fn move_epoch(&self) -> Result<u64, StoreError> {
        let last: i64 = sqlx::query_scalar("SELECT last_value FROM store_epochs")
            .fetch_one(&mut *self.shared.look().await?)
            .await
            .map_err(failed)?;
        Ok(last.cast_unsigned())
    }

    async fn move_topics(&self) -> Result<Vec<TopicMove>, StoreError> {
        self.shared.move_topics().await
    }

    async fn move_log(&self, lane: LanePlace, from: u64) -> Result<Vec<LogMove>, StoreError> {
        self.shared.move_log(lane, from).await
    }

    async fn move_scheduled(&self, topic: TopicId, from: u64) -> Result<Vec<ScheduledMove>, StoreError> {
        self.shared.move_scheduled(topic, from).await
    }

    async fn move_keys(&self, topic: TopicId, after: &KeysAfter) -> Result<Vec<KeyMove>, StoreError> {
        self.shared.move_keys(topic, after).await
    }

    async fn move_groups(&self, topic: &TopicMove) -> Result<Vec<GroupMove>, StoreError> {
        self.shared.move_groups(topic).await
    }

    async fn move_values(&self, after: Option<(Arc<str>, Arc<str>)>) -> Result<Vec<ValueMove>, StoreError> {
        self.shared.move_values(after).await
    }

    async fn take_epoch(&self, epoch: u64) -> Result<(), StoreError> {
        let mut tx = self.shared.begin().await?;
        raise(&mut tx, "store_epochs", n(epoch) + 1).await?;
        commit(tx).await
    }

    async fn take_topic(&self, topic: &TopicMove) -> Result<(), StoreError> {
        self.shared.put_topic(&topic.spec).await?;
        self.shared.take_lanes(topic).await
    }

    async fn take_log(&self, lane: LanePlace, messages: Vec<LogMove>) -> Result<(), StoreError> {
        self.shared.take_log(lane, messages).await
    }

    async fn take_scheduled(&self, topic: TopicId, scheduled: Vec<ScheduledMove>) -> Result<(), StoreError> {
        self.shared.take_scheduled(topic, scheduled).await
    }

    async fn take_keys(&self, topic: TopicId, keys: Vec<KeyMove>) -> Result<(), StoreError> {
        self.shared.take_keys(topic, keys).await
    }

    async fn take_groups(&self, topic: &TopicMove, groups: Vec<GroupMove>) -> Result<(), StoreError> {
        self.shared.take_groups(topic, groups).await
    }

    async fn take_values(&self, values: Vec<ValueMove>) -> Result<(), StoreError> {
        self.shared.take_values(values).await
    }
}

impl Shared {
    async fn move_topics(&self) -> Result<Vec<TopicMove>, StoreError> {
        let mut tx = self.look().await?;
        let specs: Vec<(i32, String)> = sqlx::query_as("SELECT topic, spec::text FROM store_topics ORDER BY topic")
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        let rows = sqlx::query(
            "SELECT topic, part, revision, heads, starts, appended, removed FROM store_partitions ORDER BY topic, part",
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        let mut topics = BTreeMap::new();
        for (topic, spec) in specs {
            let spec = super::control::topic_spec(&spec)?;
            let none =
                TopicMove { spec, revisions: Vec::new(), lanes: Vec::new(), appended_total: 0, removed_total: 0 };
            topics.insert(topic, none);
        }
        for row in &rows {
            let topic: i32 = row.try_get(0).map_err(failed)?;
            let Some(moved) = topics.get_mut(&topic) else { continue };
            let part: i16 = row.try_get(1).map_err(failed)?;
            let number = |at: usize| row.try_get::<i64, _>(at).map(i64::cast_unsigned).map_err(failed);
            moved.revisions.push(number(2)?);
            let heads = lanes(row.try_get(3).map_err(failed)?)?;
            let starts = lanes(row.try_get(4).map_err(failed)?)?;
            moved.appended_total += number(5)?;
            moved.removed_total += number(6)?;
            for (lane, (first, end)) in (0_u8..).zip(starts.into_iter().zip(heads)).filter(|(_, (_, end))| *end > 0) {
                let (first, end) = (first.cast_unsigned(), end.cast_unsigned());
                moved.lanes.push(LaneMove { partition: part.cast_unsigned(), lane, first, end });
            }
        }
        Ok(topics.into_values().collect())
    }

    async fn move_log(&self, (topic, partition, lane): LanePlace, from: u64) -> Result<Vec<LogMove>, StoreError> {
        let mut tx = self.look().await?;
        let (topic, part, number) = (t(topic), p(partition), i16::from(lane));
        let head: Option<i64> =
            sqlx::query_scalar("SELECT heads[$3 + 1] FROM store_partitions WHERE topic = $1 AND part = $2")
                .bind(topic)
                .bind(part)
                .bind(i32::from(number))
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed)?;
        let until = head.unwrap_or(0).min(n(from) + PAGE);
        // Their sizes first, which are read without them.
        let sizes: Vec<(i64, i32)> = sqlx::query_as(
            "SELECT seq, octet_length(body) FROM messages \
             WHERE topic = $1 AND part = $2 AND lane = $3 AND seq >= $4 AND seq < $5 ORDER BY seq",
        )
        .bind(topic)
        .bind(part)
        .bind(number)
        .bind(n(from))
        .bind(until)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        let until = fitting(sizes.iter().map(|(seq, size)| (*seq, *size))).map_or(until, |last| last + 1);
        let sql = format!(
            "SELECT {STORED}, m.stamp, m.at FROM messages m \
             WHERE m.topic = $1 AND m.part = $2 AND m.lane = $3 AND m.seq >= $4 AND m.seq < $5 ORDER BY m.seq"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(topic)
            .bind(part)
            .bind(number)
            .bind(n(from))
            .bind(until)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        let mut found = BTreeMap::new();
        for row in &rows {
            let Stored { seq, body, .. } = Stored::read(row)?;
            let (stamp, at): (i64, i64) = (row.try_get(11).map_err(failed)?, row.try_get(12).map_err(failed)?);
            let sequence = seq.cast_unsigned();
            let moved = LogMove { sequence, stamp: stamp.cast_unsigned(), at: Timestamp(at), body: Some(body) };
            found.insert(sequence, moved);
        }
        if (found.len() as u64) < (until - n(from)).max(0).cast_unsigned() {
            let erased: Vec<i64> = sqlx::query_scalar(
                "SELECT seq FROM erased WHERE topic = $1 AND part = $2 AND lane = $3 AND seq >= $4 AND seq < $5",
            )
            .bind(topic)
            .bind(part)
            .bind(number)
            .bind(n(from))
            .bind(until)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            for seq in erased.into_iter().map(i64::cast_unsigned) {
                found.insert(seq, LogMove { sequence: seq, stamp: 0, at: Timestamp(0), body: None });
            }
        }
        for (expected, sequence) in (from..).zip(found.keys()) {
            if expected != *sequence {
                return Err(damaged("messages", &format!("message {expected} of partition {partition} is missing")));
            }
        }
        Ok(found.into_values().collect())
    }

    async fn move_scheduled(&self, topic: TopicId, from: u64) -> Result<Vec<ScheduledMove>, StoreError> {
        let mut tx = self.look().await?;
        let sizes: Vec<(i64, i32)> = sqlx::query_as(
            "SELECT number, octet_length(body) FROM scheduled WHERE topic = $1 AND number >= $2 ORDER BY number LIMIT $3",
        )
        .bind(t(topic))
        .bind(n(from))
        .bind(PAGE)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        let Some(last) = fitting(sizes.iter().copied()).or(sizes.last().map(|(number, _)| *number)) else {
            return Ok(Vec::new());
        };
        let rows = sqlx::query(
            "SELECT number, part, lane, due, id, expires, key, target, meta_len, crc, body FROM scheduled \
             WHERE topic = $1 AND number >= $2 AND number <= $3 ORDER BY number",
        )
        .bind(t(topic))
        .bind(n(from))
        .bind(last)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        let read = |row: &sqlx::postgres::PgRow| {
            Ok(ScheduledMove {
                number: row.try_get::<i64, _>(0).map_err(failed)?.cast_unsigned(),
                partition: row.try_get::<i16, _>(1).map_err(failed)?.cast_unsigned(),
                lane: u8::try_from(row.try_get::<i16, _>(2).map_err(failed)?).unwrap_or(0),
                due: Timestamp(row.try_get(3).map_err(failed)?),
                body: body_at(row, 4)?,
            })
        };
        rows.iter().map(read).collect()
    }

    async fn move_keys(&self, topic: TopicId, after: &KeysAfter) -> Result<Vec<KeyMove>, StoreError> {
        let (at, key) = after.last.map_or((i64::MIN, Vec::new()), |(at, key)| (at.0, key.to_vec()));
        let rows: Vec<(Vec<u8>, Vec<u8>)> = sqlx::query_as(
            "SELECT key, outcome FROM dedup_outcomes WHERE topic = $1 AND (at, key) > ($2, $3) ORDER BY at, key LIMIT $4",
        )
        .bind(t(topic))
        .bind(at)
        .bind(key)
        .bind(PAGE)
        .fetch_all(&mut *self.look().await?)
        .await
        .map_err(failed)?;
        let read = |(key, outcome): (Vec<u8>, Vec<u8>)| {
            let key = key.try_into().map_err(|_| damaged("dedup_outcomes", "a key has not 16 bytes"))?;
            Ok(KeyMove { key, outcome: outcome_of(&outcome)? })
        };
        rows.into_iter().map(read).collect()
    }

    async fn move_values(&self, after: Option<(Arc<str>, Arc<str>)>) -> Result<Vec<ValueMove>, StoreError> {
        let (namespace, key) = after.as_ref().map_or(("", ""), |(namespace, key)| (&**namespace, &**key));
        let mut tx = self.look().await?;
        let sizes: Vec<(i64, i32)> = sqlx::query_as(
            "SELECT row_number() OVER (ORDER BY namespace, key), octet_length(value) FROM plugin_values \
             WHERE (namespace, key) > ($1, $2) ORDER BY namespace, key LIMIT $3",
        )
        .bind(namespace)
        .bind(key)
        .bind(PAGE)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        let count = fitting(sizes.iter().copied()).unwrap_or(PAGE);
        let rows: Vec<(String, String, i64, Vec<u8>)> = sqlx::query_as(
            "SELECT namespace, key, version, value FROM plugin_values \
             WHERE (namespace, key) > ($1, $2) ORDER BY namespace, key LIMIT $3",
        )
        .bind(namespace)
        .bind(key)
        .bind(count)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        let read = |(namespace, key, version, value): (String, String, i64, Vec<u8>)| ValueMove {
            namespace: namespace.into(),
            key: key.into(),
            version: version.cast_unsigned(),
            value,
        };
        Ok(rows.into_iter().map(read).collect())
    }

    /// Puts the beginnings of lanes that have none, and the revisions.
    async fn take_lanes(&self, topic: &TopicMove) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let parts = super::control::lock_partitions(&mut tx, t(topic.spec.id)).await?;
        for (lanes, revision) in parts.into_iter().zip(&topic.revisions) {
            let (mut heads, mut starts) = (lanes.heads, lanes.starts);
            for moved in topic.lanes.iter().filter(|moved| p(moved.partition) == lanes.part) {
                let lane = usize::from(moved.lane);
                if lane < LANES && heads[lane] == 0 {
                    (heads[lane], starts[lane]) = (n(moved.first), n(moved.first));
                }
            }
            sqlx::query(
                "UPDATE store_partitions SET heads = $3::text::bigint[], starts = $4::text::bigint[], \
                 revision = greatest(revision, $5) WHERE topic = $1 AND part = $2",
            )
            .bind(t(topic.spec.id))
            .bind(lanes.part)
            .bind(array(&heads))
            .bind(array(&starts))
            .bind(n(*revision))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        commit(tx).await
    }

    async fn take_log(&self, (topic, partition, lane): LanePlace, messages: Vec<LogMove>) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let place = (t(topic), p(partition));
        let found: Option<(i64, Vec<i64>, i64, i16)> = sqlx::query_as(
            "SELECT p.revision, p.heads, p.at, t.class FROM store_partitions p JOIN store_topics t USING (topic) \
             WHERE p.topic = $1 AND p.part = $2 FOR UPDATE OF p",
        )
        .bind(place.0)
        .bind(place.1)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        let (revision, heads, at, class) = found.ok_or(StoreError::NoTopic)?;
        let (mut heads, lane_at) = (lanes(heads)?, usize::from(lane).min(LANES - 1));
        let head = heads[lane_at];
        let new: Vec<LogMove> = messages.into_iter().filter(|moved| n(moved.sequence) >= head).collect();
        let (Some(first), Some(last)) = (new.first(), new.last()) else { return Ok(()) };
        if n(first.sequence) != head {
            return Err(StoreError::Invalid("messages are missing before these".to_owned()));
        }
        heads[lane_at] = n(last.sequence) + 1;
        let (mut rows, mut ranges, mut erased) = (Rows::default(), BTreeSet::new(), Vec::new());
        let (mut at_max, mut stamp_max, mut bytes) = (at, 0, 0);
        for moved in &new {
            let (seq, at, stamp) = (n(moved.sequence), moved.at.0, n(moved.stamp));
            let Some(body) = &moved.body else {
                erased.push(seq);
                continue;
            };
            ranges.insert((class, at));
            bytes += n(body.head.cost());
            (at_max, stamp_max) = (at.max(at_max), stamp.max(stamp_max));
            let dead = body.message().and_then(|message| message.meta.dead_letter);
            let original = dead.map(|dead| dead.original_id.0);
            rows.push(Row { place, lane, class, seq, at, stamp, original }, body);
        }
        self.make_ranges(&mut tx, &ranges).await?;
        rows.write(&mut tx, &[(place, Part::moved(revision, heads, at_max, bytes))]).await?;
        sqlx::query(
            "INSERT INTO erased (topic, part, lane, seq) SELECT $1, $2, $3, * FROM unnest($4::bigint[]) ON CONFLICT DO NOTHING",
        )
        .bind(place.0)
        .bind(place.1)
        .bind(i16::from(lane))
        .bind(erased)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        // What is appended from now on comes after all of these.
        raise(&mut tx, "store_stamps", (stamp_max >> STAMP_BITS) + 1).await?;
        commit(tx).await
    }

    async fn take_scheduled(&self, topic: TopicId, scheduled: Vec<ScheduledMove>) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        super::control::lock_partitions(&mut tx, t(topic)).await?;
        let ids: Vec<uuid::Uuid> = scheduled.iter().map(|waits| waits.body.head.id.0).collect();
        let known: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT id FROM scheduled WHERE id = ANY($1) AND topic = $2")
            .bind(ids)
            .bind(t(topic))
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        let known: BTreeSet<uuid::Uuid> = known.into_iter().collect();
        let (mut new, mut bytes) = (Vec::new(), BTreeMap::<i16, i64>::new());
        for waits in scheduled.into_iter().filter(|waits| !known.contains(&waits.body.head.id.0)) {
            let ScheduledMove { partition, lane, due, body, .. } = waits;
            *bytes.entry(p(partition)).or_default() += n(body.head.cost());
            new.push((LaneId { topic, partition, lane }, body, due));
        }
        self.write_schedule(&mut tx, &new).await?;
        sqlx::query(
            "UPDATE store_partitions s SET bytes = s.bytes + w.bytes FROM unnest($2::smallint[], $3::bigint[]) AS w(part, bytes) \
             WHERE s.topic = $1 AND s.part = w.part",
        )
        .bind(t(topic))
        .bind(bytes.keys().copied().collect::<Vec<_>>())
        .bind(bytes.values().copied().collect::<Vec<_>>())
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        commit(tx).await
    }

    async fn take_keys(&self, topic: TopicId, keys: Vec<KeyMove>) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let outcomes: Result<Vec<Vec<u8>>, StoreError> =
            keys.iter().map(|moved| outcome_bytes(&moved.outcome)).collect();
        let new = sqlx::query(
            "INSERT INTO dedup_outcomes (topic, key, part, at, outcome) \
             SELECT $1, key, 0, at, outcome FROM unnest($2::bytea[], $3::bigint[], $4::bytea[]) AS w(key, at, outcome) \
             ON CONFLICT DO NOTHING",
        )
        .bind(t(topic))
        .bind(keys.iter().map(|moved| moved.key.to_vec()).collect::<Vec<_>>())
        .bind(keys.iter().map(|moved| moved.outcome.at.0).collect::<Vec<_>>())
        .bind(outcomes?)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        sqlx::query("UPDATE store_partitions SET keys = keys + $2 WHERE topic = $1 AND part = 0")
            .bind(t(topic))
            .bind(i32::try_from(new.rows_affected()).unwrap_or(i32::MAX))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        commit(tx).await
    }

    async fn take_values(&self, values: Vec<ValueMove>) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let mut spaces: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
        let known: Vec<(String, String)> = sqlx::query_as(
            "SELECT v.namespace, v.key FROM plugin_values v \
             JOIN unnest($1::text[], $2::text[]) AS w(namespace, key) USING (namespace, key)",
        )
        .bind(values.iter().map(|value| &*value.namespace).collect::<Vec<_>>())
        .bind(values.iter().map(|value| &*value.key).collect::<Vec<_>>())
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        let known: BTreeSet<(String, String)> = known.into_iter().collect();
        let is_new = |value: &&ValueMove| !known.contains(&(value.namespace.to_string(), value.key.to_string()));
        let new: Vec<&ValueMove> = values.iter().filter(is_new).collect();
        for value in &new {
            let (bytes, keys) = spaces.entry(&value.namespace).or_default();
            *bytes += n(kv_cost(&value.namespace, &value.key, value.value.len()));
            *keys += 1;
        }
        sqlx::query(
            "INSERT INTO plugin_values (namespace, key, version, value) \
             SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bytea[])",
        )
        .bind(new.iter().map(|value| &*value.namespace).collect::<Vec<_>>())
        .bind(new.iter().map(|value| &*value.key).collect::<Vec<_>>())
        .bind(new.iter().map(|value| n(value.version)).collect::<Vec<_>>())
        .bind(new.iter().map(|value| value.value.as_slice()).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        sqlx::query(
            "INSERT INTO value_spaces AS s (namespace, bytes, keys) SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[]) \
             ON CONFLICT (namespace) DO UPDATE SET bytes = s.bytes + excluded.bytes, keys = s.keys + excluded.keys",
        )
        .bind(spaces.keys().copied().collect::<Vec<_>>())
        .bind(spaces.values().map(|(bytes, _)| *bytes).collect::<Vec<_>>())
        .bind(spaces.values().map(|(_, keys)| *keys).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        raise(&mut tx, "value_versions", values.iter().map(|value| n(value.version)).max().unwrap_or(0) + 1).await?;
        commit(tx).await
    }
}

/// Has a sequence give nothing below a number any more.
async fn raise(tx: &mut Tx, sequence: &'static str, to: i64) -> Result<(), StoreError> {
    let sql = format!("SELECT setval('{sequence}', greatest((SELECT last_value FROM {sequence}), $1))");
    sqlx::query(AssertSqlSafe(sql)).bind(to).execute(&mut **tx).await.map_err(failed)?;
    Ok(())
}

/// The last of the things that fit a page together, where not all of them do.
fn fitting(sizes: impl Iterator<Item = (i64, i32)>) -> Option<i64> {
    let mut bytes = 0;
    for (place, size) in sizes {
        bytes += u64::from(size.unsigned_abs()) + ENTRY_OVERHEAD_BYTES;
        if bytes >= PAGE_BYTES {
            return Some(place);
        }
    }
    None
}

/// A lane's number, as the tables have it.
fn number_of(lane: u8) -> i16 {
    lane_number(usize::from(lane))
}
