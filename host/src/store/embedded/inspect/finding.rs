//! What an inspection finds, in words that people and scripts can act on. Invariant: each finding names a file, a byte in
//! it, and what it means for the data; the names of kinds are stable, scripts match them.

use serde::Serialize;

use crate::clock::Timestamp;
use crate::message::{GroupId, MessageId, Offset, Partition, TopicId};
use crate::store::embedded::ops::LaneId;

/// What kind of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The journal ends in a frame that was never finished.
    TornTail,
    /// Such an end, saved aside by an earlier start.
    SavedTornTail,
    /// The store has a topic that the catalog does not know.
    StrayTopic,
    /// A file's header.
    BadHeader,
    /// A frame of the journal: its header or head.
    BadFrame,
    /// A message in the journal.
    BadPayload,
    /// Frames of the journal that no file has.
    MissingFrames,
    /// The checkpoint cannot be read.
    BadCheckpoint,
    /// There is no checkpoint, and the journal does not begin with the first frame.
    MissingCheckpoint,
    /// Parts that are whole contradict each other.
    Inconsistent,
    /// A block of a segment: its header or head.
    BadBlock,
    /// A message in a segment.
    BadMessage,
    /// A segment is shorter than what was written.
    TruncatedSegment,
    /// A segment is missing.
    MissingSegment,
    /// The catalog's file.
    BadCatalog,
    /// There is no catalog.
    MissingCatalog,
    /// The catalog has a topic that the store does not know.
    MissingTopic,
    /// The catalog has a subscription whose position the store does not know.
    MissingPosition,
}

impl Kind {
    /// Whether it is damage, rather than what an abrupt end leaves behind.
    #[must_use]
    pub fn is_damage(self) -> bool {
        !matches!(self, Kind::TornTail | Kind::SavedTornTail | Kind::StrayTopic)
    }

    /// Its name, as JSON gives it.
    #[must_use]
    pub fn name(self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => name,
            _ => format!("{self:?}"),
        }
    }
}

/// Messages of one lane that nobody can read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LostMessages {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: Partition,
    /// The first one's offset, as the API counts.
    pub first: Offset,
    /// How many, one after the other.
    pub count: u64,
}

impl LostMessages {
    /// The last one's offset.
    #[must_use]
    pub fn last(&self) -> Offset {
        Offset(self.first.0 + self.count.saturating_sub(1))
    }

    fn is_before(&self, next: &LostMessages) -> bool {
        (self.topic, self.partition, self.first.0 + self.count) == (next.topic, next.partition, next.first.0)
    }
}

/// What is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// Messages of a log.
    Messages(LostMessages),
    /// A message that waited until it was due.
    Scheduled {
        /// Its topic.
        topic: TopicId,
        /// It.
        message: MessageId,
        /// When it was due.
        due: Timestamp,
    },
    /// What the store knew of a topic: its settings. They come from the catalog, or are guessed.
    Settings {
        /// The topic.
        topic: TopicId,
        /// The catalog does not know it either.
        guessed: bool,
    },
    /// A group's position: it begins again with the oldest message.
    Position {
        /// The topic.
        topic: TopicId,
        /// The group.
        group: GroupId,
        /// Its name, if it is known.
        name: String,
    },
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind.
    pub kind: Kind,
    /// The file, relative to the directory that was inspected.
    pub file: String,
    /// The byte.
    pub offset: u64,
    /// What is wrong with it.
    pub detail: String,
    /// What that means for the data.
    pub means: String,
    /// What is lost by it, as far as that can be told.
    pub lost: Vec<Lost>,
}

impl Finding {
    /// A finding by which nothing is lost that is known yet.
    #[must_use]
    pub fn new(kind: Kind, file: &str, offset: u64, detail: impl Into<String>, means: impl Into<String>) -> Finding {
        Finding { kind, file: file.to_owned(), offset, detail: detail.into(), means: means.into(), lost: Vec::new() }
    }

    /// Adds a loss; messages that follow those before become one run with them.
    pub fn lose(&mut self, lost: Lost) {
        match (self.lost.last_mut(), &lost) {
            (Some(Lost::Messages(run)), Lost::Messages(next)) if run.is_before(next) => run.count += next.count,
            _ => self.lost.push(lost),
        }
    }

    /// Whether the messages lost by `next` begin where those lost by this one end.
    #[must_use]
    pub fn is_followed_by(&self, next: &Finding) -> bool {
        match (self.lost.last(), next.lost.first()) {
            (Some(Lost::Messages(run)), Some(Lost::Messages(next))) => run.is_before(next),
            _ => false,
        }
    }

    /// How many messages are lost by it.
    #[must_use]
    pub fn messages_lost(&self) -> u64 {
        let count = |lost: &Lost| match lost {
            Lost::Messages(run) => run.count,
            Lost::Scheduled { .. } => 1,
            Lost::Settings { .. } | Lost::Position { .. } => 0,
        };
        self.lost.iter().map(count).sum()
    }
}

/// Messages of one lane that are lost.
#[must_use]
pub(in crate::store::embedded) fn lost_messages(lane: LaneId, messages: std::ops::Range<u64>) -> Lost {
    Lost::Messages(LostMessages {
        topic: lane.topic,
        partition: lane.partition,
        first: Offset::new(lane.lane, messages.start),
        count: messages.end - messages.start,
    })
}
