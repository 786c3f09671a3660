//! The words that every part shares: ids, names, and the message itself. Invariant: a value of one of these types is
//! valid (names are parsed once, at the edge). Never does I/O.

pub mod cloud_event;

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::clock::Timestamp;

mod failure;

pub use failure::{DeadLetterFacts, FailedAttempt, Failure, Failures, StageRef};

/// The suffix of the topic that holds another topic's dead letters.
pub const DEAD_LETTER_SUFFIX: &str = ".dlq";
/// How the names of the broker's own topics begin.
pub const SYSTEM_PREFIX: &str = "sluice.";
/// The topic of what happens to endpoints and topics, for those who look after them.
pub const EVENTS_TOPIC: &str = "sluice.events";
/// The topic that replies go to where the one who asks names none.
pub const REPLIES_TOPIC: &str = "sluice.replies";
/// All of the broker's own topics.
pub const SYSTEM_TOPICS: [&str; 2] = [EVENTS_TOPIC, REPLIES_TOPIC];
/// Bytes in a topic's name, from API.md.
pub const TOPIC_NAME_BYTES_MAX: usize = 255;
/// Headers of one message, from API.md.
pub const HEADERS_MAX: usize = 64;
/// Bytes of all header names and values of one message, from API.md.
pub const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// Partitions of one topic, from API.md.
pub const PARTITIONS_MAX: u16 = 64;
/// Priorities are 0 to 9.
pub const PRIORITY_MAX: u8 = 9;

/// Whether a header's name or value has a character that no message may carry, from a publisher or from a stage: line
/// ends and NUL would break whatever carries it on as an HTTP header.
#[must_use]
pub fn has_control(text: &str) -> bool {
    text.chars().any(|character| character.is_control() && character != '\t')
}

/// A topic's number in the store. Given by the catalog, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TopicId(pub u32);

/// A cursor's number on a topic: a subscription's, given by the catalog and never used again, or [`GroupId::SHARED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The one cursor of a Queue, whatever group name consumes; on a dead-letter topic, what is still in the list.
    pub const SHARED: GroupId = GroupId(0);
}

/// A partition's number within its topic, from 0.
pub type Partition = u16;

/// Where a message stands in its partition: four bits of lane above 48 bits of sequence, so that it is an exact number
/// in every JSON reader. Offsets of one lane rise by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub u64);

impl Offset {
    const LANE_SHIFT: u32 = 48;

    /// The `sequence`-th message of `lane` (a priority, 0–9).
    #[must_use]
    pub fn new(lane: u8, sequence: u64) -> Offset {
        debug_assert!(lane <= PRIORITY_MAX && sequence < 1 << Self::LANE_SHIFT);
        Offset(u64::from(lane) << Self::LANE_SHIFT | sequence)
    }

    /// Whether a store can have handed it out: those of clients may be made up.
    #[must_use]
    pub fn is_plausible(self) -> bool {
        self.0 >> Self::LANE_SHIFT <= u64::from(PRIORITY_MAX) && self.sequence() < (1 << Self::LANE_SHIFT) - 1
    }

    /// The lane: the priority that the message was published with.
    #[must_use]
    pub fn lane(self) -> u8 {
        (self.0 >> Self::LANE_SHIFT) as u8
    }

    /// The place within the lane, from 0.
    #[must_use]
    pub fn sequence(self) -> u64 {
        self.0 & ((1 << Self::LANE_SHIFT) - 1)
    }
}

/// A message's place in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: Partition,
    /// The lane and place within.
    pub offset: Offset,
}

/// UUIDv7 whose random part begins with the topic's and the partition's number, so that a message is found by its id
/// through the store's time index. Its time is when the message enters the log: now, or when it is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageId(pub Uuid);

impl MessageId {
    /// Layout (RFC 9562 §5.7): 48 bits of milliseconds, version 7, 12 bits of `entropy`, variant, then 62 bits: the low
    /// 24 bits of the topic, 6 bits of the partition, 32 bits of `entropy`.
    #[must_use]
    pub fn new(at: Timestamp, topic: TopicId, partition: Partition, entropy: u64) -> MessageId {
        let millis = (at.0.max(0) as u64) & 0xffff_ffff_ffff;
        let high = millis << 16 | 0x7000 | (entropy >> 32 & 0xfff);
        let low = 0b10 << 62
            | u64::from(topic.0 & 0xff_ffff) << 38
            | u64::from(partition & 0x3f) << 32
            | (entropy & 0xffff_ffff);
        MessageId(Uuid::from_u64_pair(high, low))
    }

    /// The same id for another partition: a stage changed the key.
    #[must_use]
    pub fn in_partition(self, partition: Partition) -> MessageId {
        let (high, low) = self.0.as_u64_pair();
        MessageId(Uuid::from_u64_pair(high, low & !(0x3f << 32) | u64::from(partition & 0x3f) << 32))
    }

    /// When the message enters the log.
    #[must_use]
    pub fn timestamp(self) -> Timestamp {
        Timestamp((self.0.as_u64_pair().0 >> 16) as i64)
    }

    /// The topic it was published to (its low 24 bits).
    #[must_use]
    pub fn topic(self) -> TopicId {
        TopicId((self.0.as_u64_pair().1 >> 38 & 0xff_ffff) as u32)
    }

    /// The partition it was published to.
    #[must_use]
    pub fn partition(self) -> Partition {
        (self.0.as_u64_pair().1 >> 32 & 0x3f) as Partition
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for MessageId {
    type Err = String;
    fn from_str(text: &str) -> Result<MessageId, String> {
        Uuid::try_parse(text).map(MessageId).map_err(|_| format!("'{text}' is not a message id (a UUID)"))
    }
}

/// A topic's name: `[A-Za-z0-9._-]{1,255}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct TopicName(Arc<str>);

impl TopicName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the topic of another one's dead letters.
    #[must_use]
    pub fn is_dead_letter(&self) -> bool {
        self.0.ends_with(DEAD_LETTER_SUFFIX)
    }

    /// Whether it is the broker's own: made by it, and never by a request.
    #[must_use]
    pub fn is_system(&self) -> bool {
        SYSTEM_TOPICS.contains(&&*self.0)
    }

    /// The name of the topic that holds this one's dead letters.
    #[must_use]
    pub fn dead_letter(&self) -> TopicName {
        TopicName(format!("{}{DEAD_LETTER_SUFFIX}", self.0).into())
    }
}

impl FromStr for TopicName {
    type Err = String;
    fn from_str(text: &str) -> Result<TopicName, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > TOPIC_NAME_BYTES_MAX || !text.bytes().all(allowed) {
            return Err("a topic name is 1 to 255 letters, digits, dots, underscores or hyphens".to_owned());
        }
        if text.bytes().all(|byte| byte == b'.') {
            // Clients and proxies take `/topics/..` for another path.
            return Err("a topic name is more than dots".to_owned());
        }
        Ok(TopicName(text.into()))
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What travels. The payload's bytes are exactly what the publisher sent, or what the topic's stages made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// The payload's bytes.
    pub payload: Bytes,
    /// Everything else.
    pub meta: MessageMeta,
}

/// All of a message but its id and payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageMeta {
    /// Media type of the payload.
    #[serde(deserialize_with = "media_type")]
    pub content_type: Arc<str>,
    /// The schema version that the publisher names.
    pub schema_version: Option<Arc<str>>,
    /// At most [`HEADERS_MAX`], names as given, in order.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
    /// 0 (the usual) to 9 (the most urgent): the lane.
    pub priority: u8,
    /// Partition key.
    pub key: Option<Arc<str>>,
    /// Names a conversation.
    pub correlation_id: Option<Arc<str>>,
    /// Where an answer is awaited.
    pub reply_to: Option<Arc<str>>,
    /// When the publish was accepted.
    pub published_at: Timestamp,
    /// After this it is not delivered any more.
    pub expires_at: Option<Timestamp>,
    /// W3C `traceparent` (and `tracestate`) of the publish.
    pub trace: Option<TraceContext>,
    /// The pipeline revision of the topic that it passed.
    pub revision: u64,
    /// On a dead-letter topic: why it is there.
    pub dead_letter: Option<Box<DeadLetterFacts>>,
    /// The dead letter that it was before it was replayed.
    pub replay_of: Option<MessageId>,
}

/// The media type of nearly all messages, shared by all that are published or read.
pub fn json_media_type() -> Arc<str> {
    static SHARED: LazyLock<Arc<str>> = LazyLock::new(|| "application/json".into());
    Arc::clone(&SHARED)
}

/// Whether a media type says that its content is JSON: `application/json`, `…+json`, whatever parameters it has.
#[must_use]
pub fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    let Some((_, name)) = essence.rsplit_once('/') else { return false };
    let suffix = name.rsplit_once('+').map_or(name, |(_, suffix)| suffix);
    suffix.eq_ignore_ascii_case("json")
}

fn media_type<'de, D: Deserializer<'de>>(source: D) -> Result<Arc<str>, D::Error> {
    struct MediaType;
    impl Visitor<'_> for MediaType {
        type Value = Arc<str>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a media type")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Arc<str>, E> {
            let shared = json_media_type();
            Ok(if *text == *shared { shared } else { text.into() })
        }
    }
    source.deserialize_str(MediaType)
}

impl MessageMeta {
    /// The value of the header `name`, compared as given.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| &**known == name).map(|(_, value)| &**value)
    }
}

/// W3C Trace Context, stored with the message so that a delivery can link to its publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    /// `00-<trace id>-<span id>-<flags>`.
    pub parent: Arc<str>,
    /// Vendors' state, passed on as given.
    pub state: Option<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_carries_time_topic_and_partition() {
        let id = MessageId::new(Timestamp(1_700_000_000_250), TopicId(70_000), 63, u64::MAX);
        assert_eq!(id.0.get_version_num(), 7);
        assert_eq!(id.0.get_variant(), uuid::Variant::RFC4122);
        assert_eq!((id.timestamp(), id.topic(), id.partition()), (Timestamp(1_700_000_000_250), TopicId(70_000), 63));
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn an_offset_is_an_exact_json_number() {
        let last = Offset::new(PRIORITY_MAX, (1 << 48) - 1);
        assert!(last.0 < 1 << 53);
        assert_eq!((last.lane(), last.sequence()), (9, (1 << 48) - 1));
    }

    #[test]
    fn topic_names_are_checked() {
        assert!("deployment.events".parse::<TopicName>().is_ok());
        for bad in ["", ".", "..", "a b", "ü", "a/b", &"x".repeat(256)] {
            assert!(bad.parse::<TopicName>().is_err(), "{bad}");
        }
    }
}
