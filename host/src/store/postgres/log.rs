//! Writing to logs: the rows of the partitions, locked, and what one transaction adds to them. Invariant: a partition's
//! offsets and stamps rise in the order of commits, because its row is locked from before they are given out until the
//! commit. Decides nothing about what is written.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::Row as _;
use uuid::Uuid;

use super::Shared;
use super::sql::{LANES, Place, Tx, failed, n, p, position, t, time, topic_id};
use crate::message::{Partition, Position, TopicId};
use crate::store::embedded::ops::{Body, Head};
use crate::store::{StoreError, TopicSpec};

/// Messages that one transaction adds at most: the low bits of a stamp count them.
const STAMP_BITS: u32 = 20;

/// Partitions that are locked, and what is to be written.
pub(super) struct Log {
    /// The database's time when all were locked.
    pub now: i64,
    parts: BTreeMap<Place, Part>,
    topics: HashMap<i32, Topic>,
    stamp: i64,
    rows: Rows,
}

/// A partition's row.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub revision: i64,
    heads: Vec<i64>,
    /// When the last message came.
    at: i64,
    appended: i64,
    bytes: i64,
    keys: i64,
    changed: bool,
}

/// A topic's settings, and what all its partitions hold together.
#[derive(Debug, Clone)]
pub(super) struct Topic {
    pub class: i16,
    pub spec: TopicSpec,
    pub bytes: i64,
    pub keys: i64,
}

/// New messages, by column.
#[derive(Default)]
struct Rows {
    topic: Vec<i32>,
    part: Vec<i16>,
    lane: Vec<i16>,
    class: Vec<i16>,
    seq: Vec<i64>,
    at: Vec<i64>,
    stamp: Vec<i64>,
    id: Vec<Uuid>,
    original: Vec<Option<Uuid>>,
    expires: Vec<Option<i64>>,
    key: Vec<Option<i64>>,
    target: Vec<Option<i32>>,
    meta_len: Vec<i32>,
    crc: Vec<i32>,
    body: Vec<Vec<u8>>,
}

impl Log {
    /// Locks partitions, and the first one of each dead-letter topic of `mortal`.
    pub async fn lock(
        shared: &Shared,
        tx: &mut Tx,
        places: &BTreeSet<Place>,
        mortal: &BTreeSet<i32>,
    ) -> Result<Log, StoreError> {
        let (topics, parts): (Vec<i32>, Vec<i16>) = places.iter().copied().unzip();
        let mortal: Vec<i32> = mortal.iter().copied().collect();
        let rows = sqlx::query(
            "WITH wanted AS ( \
                 SELECT w.topic, w.part FROM unnest($1::integer[], $2::smallint[]) AS w(topic, part) \
                 UNION SELECT (t.spec->>'dead_letter')::integer, 0::smallint FROM store_topics t \
                 WHERE t.topic = ANY($3) AND t.spec->>'dead_letter' IS NOT NULL) \
             SELECT p.topic, p.part, p.revision, p.heads, p.at \
             FROM store_partitions p JOIN wanted USING (topic, part) ORDER BY p.topic, p.part FOR UPDATE OF p",
        )
        .bind(&topics)
        .bind(&parts)
        .bind(&mortal)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        let mut log = Log { now: 0, parts: BTreeMap::new(), topics: HashMap::new(), stamp: 0, rows: Rows::default() };
        for row in &rows {
            let part = Part {
                revision: row.try_get(2).map_err(failed)?,
                heads: lanes(row.try_get(3).map_err(failed)?)?,
                at: row.try_get(4).map_err(failed)?,
                appended: 0,
                bytes: 0,
                keys: 0,
                changed: false,
            };
            log.parts.insert((row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?), part);
        }
        let all: Vec<i32> = log
            .parts
            .keys()
            .map(|(topic, _)| *topic)
            .chain(topics)
            .chain(mortal)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        log.read_topics(shared, tx, &all).await?;
        Ok(log)
    }

    async fn read_topics(&mut self, shared: &Shared, tx: &mut Tx, topics: &[i32]) -> Result<(), StoreError> {
        let (given, ahead) = time(&shared.clock);
        // The stamp is drawn now that all rows are locked: what another transaction adds to them comes wholly before or after.
        let rows = sqlx::query(
            "WITH c AS MATERIALIZED (SELECT store_now($2, $3) AS now, nextval('store_stamps') AS stamp) \
             SELECT c.now, c.stamp, t.topic, t.class, t.spec::text, coalesce(s.bytes, 0)::bigint, coalesce(s.keys, 0)::bigint \
             FROM c LEFT JOIN store_topics t ON t.topic = ANY($1) \
             LEFT JOIN LATERAL (SELECT sum(bytes) AS bytes, sum(keys) AS keys FROM store_partitions p WHERE p.topic = t.topic) s \
             ON true",
        )
        .bind(topics)
        .bind(given)
        .bind(ahead)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        for row in &rows {
            self.now = row.try_get(0).map_err(failed)?;
            self.stamp = row.try_get::<i64, _>(1).map_err(failed)? << STAMP_BITS;
            let Some(topic) = row.try_get::<Option<i32>, _>(2).map_err(failed)? else { continue };
            let spec: String = row.try_get(4).map_err(failed)?;
            let found = Topic {
                class: row.try_get(3).map_err(failed)?,
                spec: super::control::topic_spec(&spec)?,
                bytes: row.try_get(5).map_err(failed)?,
                keys: row.try_get(6).map_err(failed)?,
            };
            self.topics.insert(topic, found);
        }
        Ok(())
    }

    /// A topic's settings.
    pub fn topic(&self, topic: TopicId) -> Option<&Topic> {
        self.topics.get(&t(topic))
    }

    /// The topic that takes a topic's dead letters, if it is there.
    pub fn dead_letter_of(&self, topic: TopicId) -> Option<TopicId> {
        self.topic(topic)?.spec.dead_letter.filter(|dead| self.topics.contains_key(&t(*dead)))
    }

    /// A partition's row.
    pub fn part(&self, place: Place) -> Option<&Part> {
        self.parts.get(&place)
    }

    /// Raises the revision that a partition has.
    pub fn raise_revision(&mut self, place: Place, revision: u64) {
        if let Some(part) = self.parts.get_mut(&place).filter(|part| part.revision < n(revision)) {
            part.revision = n(revision);
            part.changed = true;
        }
    }

    /// Counts a key that is to be kept.
    pub fn count_key(&mut self, place: Place) {
        if let Some(part) = self.parts.get_mut(&place) {
            part.keys += 1;
            part.changed = true;
        }
        if let Some(topic) = self.topics.get_mut(&place.0) {
            topic.keys += 1;
        }
    }

    /// Counts keys off that have aged out.
    pub fn uncount_keys(&mut self, place: Place, count: i64) {
        if let Some(part) = self.parts.get_mut(&place).filter(|_| count > 0) {
            part.keys -= count;
            part.changed = true;
        }
        if let Some(topic) = self.topics.get_mut(&place.0) {
            topic.keys -= count;
        }
    }

    /// Counts bytes of a message that waits for its time.
    pub fn count_bytes(&mut self, place: Place, bytes: u64) {
        if let Some(part) = self.parts.get_mut(&place) {
            part.bytes += n(bytes);
            part.changed = true;
        }
        if let Some(topic) = self.topics.get_mut(&place.0) {
            topic.bytes += n(bytes);
        }
    }

    /// The time of what enters a partition now.
    pub fn at(&self, place: Place) -> i64 {
        self.parts.get(&place).map_or(self.now, |part| self.now.max(part.at))
    }

    /// Adds a message.
    ///
    /// # Errors
    /// `NoTopic` where the partition was not locked.
    pub fn push(
        &mut self,
        (topic, partition, lane): (TopicId, Partition, u8),
        body: &Body,
        original: Option<Uuid>,
    ) -> Result<Position, StoreError> {
        let place = (t(topic), p(partition));
        let at = self.at(place);
        let class = self.topics.get(&place.0).ok_or(StoreError::NoTopic)?.class;
        let part = self.parts.get_mut(&place).ok_or(StoreError::NoTopic)?;
        let head =
            part.heads.get_mut(usize::from(lane)).ok_or_else(|| StoreError::Invalid("no such lane".to_owned()))?;
        let seq = *head;
        *head += 1;
        (part.at, part.changed) = (at, true);
        part.appended += 1;
        self.count_bytes(place, body.head.cost());
        let Head { id, target, expires_at, key, meta_len, crc, .. } = body.head;
        let rows = &mut self.rows;
        rows.stamp.push(self.stamp + n(rows.topic.len() as u64));
        rows.topic.push(place.0);
        rows.part.push(place.1);
        rows.lane.push(i16::from(lane));
        rows.class.push(class);
        rows.seq.push(seq);
        rows.at.push(at);
        rows.id.push(id.0);
        rows.original.push(original);
        rows.expires.push(expires_at.map(|at| at.0));
        rows.key.push(key.map(u64::cast_signed));
        rows.target.push(target.map(super::sql::g));
        rows.meta_len.push(meta_len.cast_signed());
        rows.crc.push(crc.cast_signed());
        let mut bytes = Vec::with_capacity(body.meta.len() + body.payload.len());
        bytes.extend_from_slice(&body.meta);
        bytes.extend_from_slice(&body.payload);
        rows.body.push(bytes);
        Ok(position(place, i16::from(lane), seq))
    }

    /// Adds a message whose bytes were counted when it was scheduled.
    pub fn push_counted(&mut self, place: (TopicId, Partition, u8), body: &Body) -> Result<Position, StoreError> {
        let position = self.push(place, body, None)?;
        if let Some(part) = self.parts.get_mut(&(t(place.0), p(place.1))) {
            part.bytes -= n(body.head.cost());
        }
        Ok(position)
    }

    /// Writes what was added; returns the topics that have something new.
    pub async fn flush(self, shared: &Shared, tx: &mut Tx) -> Result<BTreeSet<TopicId>, StoreError> {
        let Log { parts, rows, .. } = self;
        let new: BTreeSet<TopicId> = rows.topic.iter().copied().map(topic_id).collect();
        let ranges: BTreeSet<(i16, i64)> = rows.class.iter().copied().zip(rows.at.iter().copied()).collect();
        shared.make_ranges(tx, &ranges).await?;
        if !rows.topic.is_empty() {
            sqlx::query(
                "INSERT INTO messages (topic, part, lane, class, seq, at, stamp, id, original, expires, key, target, meta_len, crc, body) \
                 SELECT * FROM unnest($1::integer[], $2::smallint[], $3::smallint[], $4::smallint[], $5::bigint[], $6::bigint[], \
                 $7::bigint[], $8::uuid[], $9::uuid[], $10::bigint[], $11::bigint[], $12::integer[], $13::integer[], \
                 $14::integer[], $15::bytea[])",
            )
            .bind(&rows.topic)
            .bind(&rows.part)
            .bind(&rows.lane)
            .bind(&rows.class)
            .bind(&rows.seq)
            .bind(&rows.at)
            .bind(&rows.stamp)
            .bind(&rows.id)
            .bind(&rows.original)
            .bind(&rows.expires)
            .bind(&rows.key)
            .bind(&rows.target)
            .bind(&rows.meta_len)
            .bind(&rows.crc)
            .bind(&rows.body)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        }
        let changed: Vec<(&Place, &Part)> = parts.iter().filter(|(_, part)| part.changed).collect();
        if !changed.is_empty() {
            sqlx::query(
                "UPDATE store_partitions p SET revision = w.revision, heads = w.heads::bigint[], at = w.at, \
                 appended = p.appended + w.appended, bytes = p.bytes + w.bytes, keys = p.keys + w.keys \
                 FROM unnest($1::integer[], $2::smallint[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], \
                 $8::bigint[]) AS w(topic, part, revision, heads, at, appended, bytes, keys) \
                 WHERE p.topic = w.topic AND p.part = w.part",
            )
            .bind(changed.iter().map(|(place, _)| place.0).collect::<Vec<i32>>())
            .bind(changed.iter().map(|(place, _)| place.1).collect::<Vec<i16>>())
            .bind(changed.iter().map(|(_, part)| part.revision).collect::<Vec<i64>>())
            .bind(changed.iter().map(|(_, part)| array(&part.heads)).collect::<Vec<String>>())
            .bind(changed.iter().map(|(_, part)| part.at).collect::<Vec<i64>>())
            .bind(changed.iter().map(|(_, part)| part.appended).collect::<Vec<i64>>())
            .bind(changed.iter().map(|(_, part)| part.bytes).collect::<Vec<i64>>())
            .bind(changed.iter().map(|(_, part)| part.keys).collect::<Vec<i64>>())
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        }
        Ok(new)
    }
}

/// Ten numbers.
pub(super) fn lanes(numbers: Vec<i64>) -> Result<Vec<i64>, StoreError> {
    if numbers.len() == LANES {
        Ok(numbers)
    } else {
        Err(super::sql::damaged("store_partitions", "an array over lanes has not ten elements"))
    }
}

/// An array inside an array, which `unnest` would flatten: as text.
pub(super) fn array(numbers: &[i64]) -> String {
    let numbers: Vec<String> = numbers.iter().map(i64::to_string).collect();
    format!("{{{}}}", numbers.join(","))
}
