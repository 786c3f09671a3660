//! Words between the broker's types and the tables. Invariant: numbers go in and come out unchanged, whatever their sign
//! is in the table. Decides nothing.

use bytes::Bytes;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::clock::{Clock, Timestamp};
use crate::message::{GroupId, Message, MessageId, Offset, Partition, Position, TopicId};
use crate::store::StoreError;
use crate::store::embedded::ops::{Body, ENTRY_OVERHEAD_BYTES, Head};

/// A transaction.
pub(super) type Tx = crate::database::desk::Transaction;

/// A partition: topic and number.
pub(super) type Place = (i32, i16);

/// Milliseconds that a message may say it came later than the database has it: so far may brokers' clocks be ahead of that one's.
/// It enters the log when it says, so that who looks for its time finds it.
pub(super) const LATE_MOST: i64 = 500;

/// Lanes of a partition.
pub(super) const LANES: usize = 10;

// What a message costs beside its body is written out in statements that remove some.
const _: () = assert!(ENTRY_OVERHEAD_BYTES == 64);

/// A lane's number in the tables.
pub(super) fn lane_number(lane: usize) -> i16 {
    i16::try_from(lane).expect("there are ten lanes")
}

/// A lane's place in an array over lanes. The tables have what brokers wrote: 0 to 9.
pub(super) fn lane_index(lane: i16) -> usize {
    usize::try_from(lane).unwrap_or(0)
}

/// A topic's number in the tables.
pub(super) fn t(topic: TopicId) -> i32 {
    topic.0.cast_signed()
}

/// And back.
pub(super) fn topic_id(topic: i32) -> TopicId {
    TopicId(topic.cast_unsigned())
}

/// A group's number in the tables.
pub(super) fn g(group: GroupId) -> i32 {
    group.0.cast_signed()
}

/// And back.
pub(super) fn group_id(group: i32) -> GroupId {
    GroupId(group.cast_unsigned())
}

/// A partition's number in the tables.
pub(super) fn p(partition: Partition) -> i16 {
    partition.cast_signed()
}

/// A count, a sequence, an offset in the tables.
pub(super) fn n(number: u64) -> i64 {
    number.cast_signed()
}

/// Where a message stands.
pub(super) fn position((topic, part): Place, lane: i16, seq: i64) -> Position {
    let offset = Offset::new(u8::try_from(lane).unwrap_or(0), seq.cast_unsigned());
    Position { topic: topic_id(topic), partition: part.cast_unsigned(), offset }
}

/// A message's offset in the tables.
pub(super) fn place_of(lane: i16, seq: i64) -> i64 {
    i64::from(lane) << 48 | seq
}

/// Lane and sequence of an offset.
pub(super) fn lane_and_seq(offset: Offset) -> (i16, i64) {
    (i16::from(offset.lane()), n(offset.sequence()))
}

/// Whole milliseconds.
pub(super) fn ms(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// What `store_now` is given: the time itself where a test has stopped it, else how far it was moved.
pub(super) fn time(clock: &Clock) -> (Option<i64>, i64) {
    match clock.fixed_now() {
        Some(Timestamp(now)) => (Some(now), 0),
        None => (None, clock.ahead_ms()),
    }
}

/// What the database's error means to who called.
pub(super) fn failed(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => damaged("tables", &error.to_string()),
        sqlx::Error::Database(refused) => {
            let code = refused.code().unwrap_or_default();
            StoreError::Unavailable(format!("the database: {refused} (SQLSTATE {code})"))
        }
        _ => StoreError::Unavailable(format!("the database: {error}")),
    }
}

/// A row that cannot be what was written.
pub(super) fn damaged(table: &str, detail: &str) -> StoreError {
    StoreError::Damaged { file: table.to_owned(), offset: 0, detail: detail.to_owned() }
}

/// Commits. Where the answer is lost, so is what came of it.
pub(super) async fn commit(tx: Tx) -> Result<(), StoreError> {
    tx.commit().await.map_err(|error| match error {
        // The transaction was refused: a conflict, no room, a deferred check. Any other word may be a pooler's or of a server
        // that was stopped, behind a commit that was passed on.
        sqlx::Error::Database(refused)
            if refused
                .code()
                .is_some_and(|code| ["23", "25", "40", "53"].iter().any(|class| code.starts_with(class))) =>
        {
            failed(sqlx::Error::Database(refused))
        }
        lost => StoreError::OutcomeUnknown(format!("the database: {lost}")),
    })
}

/// The columns of a message, in this order, for [`Stored::read`].
pub(super) const STORED: &str =
    "m.topic, m.part, m.lane, m.seq, m.id, m.expires, m.key, m.target, m.meta_len, m.crc, m.body";

/// A message as the table has it.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub place: Place,
    pub lane: i16,
    pub seq: i64,
    pub body: Body,
}

impl Stored {
    /// Reads a row that begins with [`STORED`].
    pub fn read(row: &PgRow) -> Result<Stored, StoreError> {
        let place = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        let (lane, seq) = (row.try_get(2).map_err(failed)?, row.try_get(3).map_err(failed)?);
        Ok(Stored { place, lane, seq, body: body_at(row, 4)? })
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        position(self.place, self.lane, self.seq)
    }

    /// It, decoded.
    pub fn message(&self) -> Result<Message, StoreError> {
        self.body.message().ok_or_else(|| damaged("messages", "a message's meta cannot be read"))
    }
}

/// A message of a row that has `id, expires, key, target, meta_len, crc, body` from column `at` on. Its checksum is right.
pub(super) fn body_at(row: &PgRow, at: usize) -> Result<Body, StoreError> {
    let body: Vec<u8> = row.try_get(at + 6).map_err(failed)?;
    let head = |row: &PgRow| -> Result<Head, sqlx::Error> {
        Ok(Head {
            id: MessageId(row.try_get::<Uuid, _>(at)?),
            expires_at: row.try_get::<Option<i64>, _>(at + 1)?.map(Timestamp),
            key: row.try_get::<Option<i64>, _>(at + 2)?.map(i64::cast_unsigned),
            target: row.try_get::<Option<i32>, _>(at + 3)?.map(group_id),
            meta_len: row.try_get::<i32, _>(at + 4)?.cast_unsigned(),
            body_len: u32::try_from(body.len()).unwrap_or(u32::MAX),
            crc: row.try_get::<i32, _>(at + 5)?.cast_unsigned(),
        })
    };
    let head = head(row).map_err(failed)?;
    if crc32c::crc32c(&body) != head.crc {
        return Err(damaged("messages", &format!("the checksum of message {} is wrong", head.id)));
    }
    Body::from_parts(head, &Bytes::from(body)).ok_or_else(|| damaged("messages", "a message's head does not fit it"))
}

/// The database's time.
pub(super) async fn now(tx: &mut Tx, clock: &Clock) -> Result<i64, StoreError> {
    let (given, ahead) = time(clock);
    sqlx::query_scalar("SELECT store_now($1, $2)").bind(given).bind(ahead).fetch_one(&mut **tx).await.map_err(failed)
}
