//! Writing to logs: the rows of the partitions, locked, and what one transaction adds to them. Invariant: a partition's
//! offsets and stamps rise in the order of commits, because its row is locked from before they are given out until the
//! commit. Decides nothing about what is written.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo};
use sqlx::{Encode, Postgres, Row as _, Type};
use uuid::Uuid;

use super::Shared;
use super::sql::{LANES, LATE_MOST, Place, Tx, failed, n, p, position, t, time, topic_id};
use crate::message::{Partition, Position, TopicId};
use crate::store::embedded::ops::{Body, Head};
use crate::store::{StoreError, TopicSpec};

/// Messages that one transaction adds at most: the low bits of a stamp count them.
pub(super) const STAMP_BITS: u32 = 20;

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
pub(super) struct Rows {
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
    body: Vec<Whole>,
}

/// A body as the table has it: what it says of the message, then the payload.
pub(super) struct Whole(pub Body);

impl Type<Postgres> for Whole {
    fn type_info() -> PgTypeInfo {
        <&[u8] as Type<Postgres>>::type_info()
    }
}

impl PgHasArrayType for Whole {
    fn array_type_info() -> PgTypeInfo {
        <&[u8] as PgHasArrayType>::array_type_info()
    }
}

impl Encode<'_, Postgres> for Whole {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&self.0.meta);
        buffer.extend_from_slice(&self.0.payload);
        Ok(IsNull::No)
    }
}

impl Part {
    /// One to which messages are added that were counted elsewhere, so that its lanes end there.
    pub fn moved(revision: i64, heads: Vec<i64>, at: i64, bytes: i64) -> Part {
        Part { revision, heads, at, appended: 0, bytes, keys: 0, changed: true }
    }
}

/// A new message, but for its body.
pub(super) struct Row {
    pub place: Place,
    pub lane: u8,
    pub class: i16,
    pub seq: i64,
    pub at: i64,
    pub stamp: i64,
    /// Of which message it is a dead letter.
    pub original: Option<Uuid>,
}

impl Rows {
    /// Adds a message.
    pub fn push(&mut self, row: Row, body: &Body) {
        let Head { id, target, expires_at, key, meta_len, crc, .. } = body.head;
        self.topic.push(row.place.0);
        self.part.push(row.place.1);
        self.lane.push(i16::from(row.lane));
        self.class.push(row.class);
        self.seq.push(row.seq);
        self.at.push(row.at);
        self.stamp.push(row.stamp);
        self.original.push(row.original);
        self.id.push(id.0);
        self.expires.push(expires_at.map(|at| at.0));
        self.key.push(key.map(u64::cast_signed));
        self.target.push(target.map(super::sql::g));
        self.meta_len.push(meta_len.cast_signed());
        self.crc.push(crc.cast_signed());
        self.body.push(Whole(body.clone()));
    }

    /// Writes them, into partitions of `messages` that are there, and what they change of their own.
    pub async fn write(&self, tx: &mut Tx, parts: &[(Place, Part)]) -> Result<(), StoreError> {
        if self.topic.is_empty() && parts.is_empty() {
            return Ok(());
        }
        let column = |of: fn(&Part) -> i64| parts.iter().map(|(_, part)| of(part)).collect::<Vec<i64>>();
        sqlx::query(
            "SELECT store_write($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, \
             $22, $23)",
        )
        .bind(&self.topic)
        .bind(&self.part)
        .bind(&self.lane)
        .bind(&self.class)
        .bind(&self.seq)
        .bind(&self.at)
        .bind(&self.stamp)
        .bind(&self.id)
        .bind(&self.original)
        .bind(&self.expires)
        .bind(&self.key)
        .bind(&self.target)
        .bind(&self.meta_len)
        .bind(&self.crc)
        .bind(&self.body)
        .bind(parts.iter().map(|(place, _)| place.0).collect::<Vec<i32>>())
        .bind(parts.iter().map(|(place, _)| place.1).collect::<Vec<i16>>())
        .bind(column(|part| part.revision))
        .bind(parts.iter().map(|(_, part)| array(&part.heads)).collect::<Vec<String>>())
        .bind(column(|part| part.at))
        .bind(column(|part| part.appended))
        .bind(column(|part| part.bytes))
        .bind(column(|part| part.keys))
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        Ok(())
    }
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
        let (given, ahead) = time(&shared.clock);
        let rows = sqlx::query("SELECT * FROM store_lock($1, $2, $3, $4, $5)")
            .bind(&topics)
            .bind(&parts)
            .bind(&mortal)
            .bind(given)
            .bind(ahead)
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
        let mut log = Log { now: 0, parts: BTreeMap::new(), topics: HashMap::new(), stamp: 0, rows: Rows::default() };
        for row in &rows {
            let topic: i32 = row.try_get(0).map_err(failed)?;
            log.now = row.try_get(5).map_err(failed)?;
            log.stamp = row.try_get::<i64, _>(6).map_err(failed)? << STAMP_BITS;
            if let Entry::Vacant(unknown) = log.topics.entry(topic) {
                unknown.insert(Topic {
                    class: row.try_get(7).map_err(failed)?,
                    spec: super::control::topic_spec(row.try_get(8).map_err(failed)?)?,
                    bytes: row.try_get::<Option<i64>, _>(9).map_err(failed)?.unwrap_or(0),
                    keys: row.try_get::<Option<i64>, _>(10).map_err(failed)?.unwrap_or(0),
                });
            }
            let Some(part) = row.try_get::<Option<i16>, _>(1).map_err(failed)? else { continue };
            let locked = Part {
                revision: row.try_get(2).map_err(failed)?,
                heads: lanes(row.try_get(3).map_err(failed)?)?,
                at: row.try_get(4).map_err(failed)?,
                appended: 0,
                bytes: 0,
                keys: 0,
                changed: false,
            };
            log.parts.insert((topic, part), locked);
        }
        Ok(log)
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
        let at = self.at(place).max(body.head.id.timestamp().0.min(self.now + LATE_MOST));
        let class = self.topics.get(&place.0).ok_or(StoreError::NoTopic)?.class;
        let part = self.parts.get_mut(&place).ok_or(StoreError::NoTopic)?;
        let head =
            part.heads.get_mut(usize::from(lane)).ok_or_else(|| StoreError::Invalid("no such lane".to_owned()))?;
        let seq = *head;
        *head += 1;
        (part.at, part.changed) = (at, true);
        part.appended += 1;
        self.count_bytes(place, body.head.cost());
        let stamp = self.stamp + n(self.rows.topic.len() as u64);
        self.rows.push(Row { place, lane, class, seq, at, stamp, original }, body);
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
        let changed: Vec<(Place, Part)> = parts.into_iter().filter(|(_, part)| part.changed).collect();
        rows.write(tx, &changed).await?;
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
