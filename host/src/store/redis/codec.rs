//! Messages as Redis has them: a head that scripts read, and the bytes of the body, which only brokers do. Invariant: what is written
//! reads back, and what was changed on the way is told as damage.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::script::strange;
use crate::clock::Timestamp;
use crate::message::{FailedAttempt, Failures, GroupId, Message, MessageId, Offset, Position, TopicId};
use crate::store::embedded::ops::{self, Body};
use crate::store::{DedupOutcome, Fate, StoreError};

/// What a message costs in memory beside its body: its head, its place in the index, its share of both, rounded up.
pub(super) const BESIDE_BYTES: u64 = 256;

/// A message's cost to its topic.
pub(super) fn cost(body: &Body) -> u64 {
    u64::from(body.head.body_len) + BESIDE_BYTES
}

/// The head of a message as a script gets it; it puts before it when the message came, and its stamp.
pub(super) fn head(body: &Body, original: Option<MessageId>) -> String {
    let ops::Head { id, target, expires_at, meta_len, body_len, crc, .. } = body.head;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    format!(
        "{} {} {} {} {} {} {meta_len} {crc}",
        or_none(expires_at.map(|at| at.0.to_string())),
        or_none(target.map(|group| group.0.to_string())),
        cost(body),
        body_len.saturating_sub(meta_len),
        id.0.simple(),
        or_none(original.map(|id| id.0.simple().to_string())),
    )
}

/// Meta and payload in one piece.
pub(super) fn bytes(body: &Body) -> Bytes {
    let mut bytes = Vec::with_capacity(body.meta.len() + body.payload.len());
    bytes.extend_from_slice(&body.meta);
    bytes.extend_from_slice(&body.payload);
    bytes.into()
}

/// A message from head and body.
///
/// # Errors
/// `Damaged`.
pub(super) fn message(head: &str, body: &Bytes) -> Result<Message, StoreError> {
    let fault = |what: &str| strange("a message", what);
    let mut fields = head.split(' ').skip(6);
    let id = fields.next().and_then(|id| Uuid::try_parse(id).ok()).ok_or_else(|| fault("it has no id"))?;
    let mut number = || fields.next().and_then(|field| field.parse::<u32>().ok());
    // The place of an original, which is no number, comes first.
    let _original = number();
    let (meta_len, crc) = (number(), number());
    let (Some(meta_len), Some(crc)) = (meta_len, crc) else { return Err(fault("its head is cut short")) };
    let meta_len = meta_len as usize;
    if meta_len > body.len() || crc32c::crc32c(body) != crc {
        return Err(fault("its bytes are not those that were stored"));
    }
    let meta = postcard::from_bytes(&body[..meta_len]).map_err(|error| fault(&error.to_string()))?;
    Ok(Message { id: MessageId(id), payload: body.slice(meta_len..), meta })
}

/// A failure as it is remembered.
pub(super) fn failure(failed: FailedAttempt) -> Result<Bytes, StoreError> {
    // As long as those are that are remembered, and no longer.
    let mut short = Failures::default();
    short.push(failed);
    let bytes = postcard::to_stdvec(&short.as_slice().first());
    bytes.map(Bytes::from).map_err(|error| StoreError::Invalid(error.to_string()))
}

/// What is remembered of failed attempts, oldest first.
pub(super) fn failures(mut list: super::script::Reply) -> Result<Failures, StoreError> {
    let mut all = Failures::default();
    while !list.is_empty() {
        let (attempt, bytes) = (list.small()?, list.bytes()?);
        let failed: Option<FailedAttempt> =
            postcard::from_bytes(&bytes).map_err(|error| strange("a failure", &error.to_string()))?;
        // Who settles by its name does not know the attempt; the script does.
        failed.into_iter().for_each(|failed| all.push(FailedAttempt { attempt, ..failed }));
    }
    Ok(all)
}

/// What is kept under a key, but for what the script knows better: where the message stands, and when it came.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    pub id: MessageId,
    pub revision: u64,
    pub fate: Fate,
}

impl Kept {
    /// As a script gets it. In hexadecimal: what stands before it is text.
    pub(super) fn encoded(&self) -> Result<String, StoreError> {
        postcard::to_stdvec(self).map(hex::encode).map_err(|error| StoreError::Invalid(error.to_string()))
    }
}

/// The outcome that is kept under a key.
///
/// # Errors
/// `Damaged`.
pub(super) fn outcome(kept: &str) -> Result<DedupOutcome, StoreError> {
    let fault = |detail: &str| strange("an outcome", detail);
    let fields: Vec<&str> = kept.split(' ').collect();
    let [hash, at, place, tail] = fields[..] else { return Err(fault("it has not four fields")) };
    let mut request_hash = [0; 16];
    hex::decode_to_slice(hash, &mut request_hash).map_err(|error| fault(&error.to_string()))?;
    let at = at.parse().map(Timestamp).map_err(|_| fault("its time is none"))?;
    let (of, seq) = place.split_once(':').ok_or_else(|| fault("its place is none"))?;
    let (of, seq) = (topic(of)?, seq.parse::<u64>().map_err(|_| fault("its place is none"))?);
    let tail = hex::decode(tail).map_err(|error| fault(&error.to_string()))?;
    let Kept { id, revision, fate } = postcard::from_bytes(&tail).map_err(|error| fault(&error.to_string()))?;
    let fate = match fate {
        Fate::Stored(at) => Fate::Stored(position(of, at.partition, seq)?),
        Fate::DeadLettered { position: at, stage, reason } => {
            Fate::DeadLettered { position: position(of, at.partition, seq)?, stage, reason }
        }
        other => other,
    };
    Ok(DedupOutcome { request_hash, id, fate, at, revision })
}

/// A place in a topic.
///
/// # Errors
/// `Damaged` for a sequence that no stream can have.
pub(super) fn position(topic: TopicId, partition: u16, seq: u64) -> Result<Position, StoreError> {
    if seq >= 1 << 48 {
        return Err(strange("a place", &format!("{seq} is beyond all sequences")));
    }
    Ok(Position { topic, partition, offset: Offset::new(0, seq) })
}

/// A group's number.
pub(super) fn group(text: &str) -> Result<GroupId, StoreError> {
    text.parse().map(GroupId).map_err(|_| strange("a group", &format!("'{text}' is no number")))
}

/// A topic's number.
pub(super) fn topic(text: &str) -> Result<TopicId, StoreError> {
    text.parse().map(TopicId).map_err(|_| strange("a topic", &format!("'{text}' is no number")))
}
