//! What the journal says: [`Op`], one change of the state. Invariant: applying the same ops in the same order gives the
//! same state, whatever leases were alive in between. Never decides anything: plans do, before an op is written.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::message::{FailedAttempt, GroupId, Message, MessageId, MessageMeta, Offset, Partition, TopicId};
use crate::store::{DedupOutcome, GroupSpec, TopicSpec};

use super::state::group::Totals;
use super::state::ranges::Ranges;

/// What a message costs on disk beside its body: its share of heads and frames, rounded up.
pub const ENTRY_OVERHEAD_BYTES: u64 = 64;

/// The meta of nearly every message fits into so many bytes.
const USUAL_META_BYTES: usize = 128;

/// What is known of a stored message without opening its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its id.
    pub id: MessageId,
    /// For this group alone.
    pub target: Option<GroupId>,
    /// Not delivered after. None on dead letters, whatever their meta says: evidence does not expire.
    pub expires_at: Option<Timestamp>,
    /// Hash of the partition key. Two keys with one hash are kept in one order, which harms nobody.
    pub key: Option<u64>,
    /// Bytes of the body that are the meta; the payload follows.
    pub meta_len: u32,
    /// Bytes of the body.
    pub body_len: u32,
    /// CRC-32C of the body.
    pub crc: u32,
}

impl Head {
    /// What the message counts for against its topic's bytes.
    #[must_use]
    pub fn cost(&self) -> u64 {
        u64::from(self.body_len) + ENTRY_OVERHEAD_BYTES
    }
}

/// A message as it is kept: head, encoded meta, payload. Cheap to clone. Its bytes are its own: what is kept in memory is
/// counted by them, so none may hold on to the request that it came in.
#[derive(Debug, Clone)]
pub struct Body {
    /// What is known without decoding.
    pub head: Head,
    /// [`MessageMeta`] in postcard.
    pub meta: Bytes,
    /// The payload.
    pub payload: Bytes,
}

impl Body {
    /// Encodes a message; `expires` is false for dead letters.
    #[must_use]
    pub fn new(message: &Message, target: Option<GroupId>, expires: bool) -> Body {
        // In one piece: to grow it would be to copy it.
        let mut body = Vec::with_capacity(message.payload.len() + USUAL_META_BYTES);
        body = postcard::to_extend(&message.meta, body).expect("a message's meta has no type that postcard refuses");
        let meta_len = body.len();
        body.extend_from_slice(&message.payload);
        let body = Bytes::from(body.into_boxed_slice());
        let head = Head {
            id: message.id,
            target,
            expires_at: message.meta.expires_at.filter(|_| expires),
            key: message.meta.key.as_ref().map(|key| key_hash(key.as_bytes())),
            meta_len: u32::try_from(meta_len).unwrap_or(u32::MAX),
            body_len: u32::try_from(body.len()).unwrap_or(u32::MAX),
            crc: crc32c::crc32c(&body),
        };
        Body { head, meta: body.slice(..meta_len), payload: body.slice(meta_len..) }
    }

    /// Takes a stored body apart; `None` if the head does not fit it.
    #[must_use]
    pub fn from_parts(head: Head, body: &Bytes) -> Option<Body> {
        let meta_len = head.meta_len as usize;
        if body.len() != head.body_len as usize || meta_len > body.len() {
            return None;
        }
        Some(Body { head, meta: body.slice(..meta_len), payload: body.slice(meta_len..) })
    }

    /// The message; `None` if its meta cannot be decoded (which its checksum excludes, but for an erased one).
    #[must_use]
    pub fn message(&self) -> Option<Message> {
        let meta: MessageMeta = postcard::from_bytes(&self.meta).ok()?;
        Some(Message { id: self.head.id, payload: self.payload.clone(), meta })
    }
}

/// FNV-1a: stable across versions, which a hasher of the standard library is not.
#[must_use]
pub fn key_hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A message in a log.
#[derive(Debug, Clone)]
pub struct Entry {
    /// When it entered the log; never falls within a store.
    pub at: Timestamp,
    /// Its place in the order of all appends of the store.
    pub stamp: u64,
    /// What it is.
    pub body: Body,
}

impl Entry {
    /// What it takes where it is kept in memory. Its body counts where it lies, its own bytes or a part of a block's.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        // `Bytes` counts its owners in an allocation of its own.
        const BESIDE: u64 = (size_of::<Entry>() + 4 * size_of::<usize>()) as u64;
        u64::from(self.body.head.body_len) + BESIDE
    }
}

/// Names one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LaneId {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: Partition,
    /// The priority.
    pub lane: u8,
}

/// What a body belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Owner {
    /// A message in a log.
    Log(LaneId, u64),
    /// A message that waits until it is due, by its number.
    Scheduled(TopicId, u64),
}

/// Where the cursor of one lane goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStart {
    /// The partition.
    pub partition: Partition,
    /// Lane and sequence of the first message that is not passed over.
    pub offset: Offset,
}

/// Where the cursor of one lane stood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneMark {
    /// The partition.
    pub partition: Partition,
    /// The lane.
    pub lane: u8,
    /// All below was settled.
    pub floor: u64,
    /// What was settled above it.
    pub settled: Ranges,
}

/// How messages were settled, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// Acked.
    Acked,
    /// Granted at most once: the grant is the settlement.
    Once,
    /// Copied into the dead-letter topic.
    DeadLettered,
    /// Passed its `expires_at`, or its topic's retention, while it waited.
    Expired,
    /// Taken off the list of dead letters.
    Discarded,
}

impl Op {
    /// The heads of the bodies that belong to it, and what they belong to.
    pub fn bodies(&self) -> impl Iterator<Item = (Owner, &Head)> {
        let (owner, heads): (_, &[Head]) = match self {
            Op::Append { lane, first, heads, .. } => (Some(Owner::Log(*lane, *first)), heads),
            Op::Scheduled { topic, number, head, .. } => {
                (Some(Owner::Scheduled(*topic, *number)), std::slice::from_ref(head))
            }
            _ => (None, &[]),
        };
        (0..).zip(heads).filter_map(move |(nth, head)| match owner? {
            Owner::Log(lane, first) => Some((Owner::Log(lane, first + nth), head)),
            scheduled => Some((scheduled, head)),
        })
    }
}

/// One change of the state. Variants are only ever added, at the end: the number of a variant is on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Op {
    /// The store was opened.
    Epoch(u64),
    /// A topic is new, or has new settings.
    Topic(TopicSpec),
    /// A topic is gone.
    TopicGone(TopicId),
    /// A group is new (then `starts` says where its cursor is), or has new settings.
    Group { spec: GroupSpec, starts: Option<Vec<LaneStart>> },
    /// A group is gone.
    GroupGone { topic: TopicId, group: GroupId },
    /// Messages entered a log, with rising stamps. Their bodies are in the frame.
    Append { lane: LaneId, first: u64, stamp: u64, at: Timestamp, heads: Vec<Head> },
    /// A message waits until it is due. Its body is in the frame.
    Scheduled { topic: TopicId, partition: Partition, lane: u8, due: Timestamp, number: u64, head: Head },
    /// A scheduled message entered its log.
    Due { topic: TopicId, number: u64, lane: LaneId, sequence: u64, stamp: u64, at: Timestamp },
    /// A partition took a batch of this pipeline revision.
    Revision { topic: TopicId, partition: Partition, revision: u64 },
    /// An idempotency key has an outcome.
    Dedup { topic: TopicId, key: [u8; 16], outcome: DedupOutcome },
    /// A plugin's key has a value, or none any more.
    Kv { namespace: Arc<str>, key: Arc<str>, version: u64, value: Option<Vec<u8>> },
    /// Messages were granted: each with the number of this attempt.
    Granted { note: u64, topic: TopicId, group: GroupId, partition: Partition, grants: Vec<(Offset, u32)> },
    /// Messages expired before they were granted. Numbered like grants.
    Passed { note: u64, topic: TopicId, group: GroupId, partition: Partition, offsets: Vec<Offset> },
    /// Messages are settled for a group.
    Settled { topic: TopicId, group: GroupId, partition: Partition, done: Done, offsets: Vec<Offset> },
    /// A message waits for its next attempt.
    Retry {
        topic: TopicId,
        group: GroupId,
        partition: Partition,
        offset: Offset,
        attempts: u32,
        at: Timestamp,
        failure: Option<FailedAttempt>,
    },
    /// A group's cursor moved.
    Seek { topic: TopicId, group: GroupId, starts: Vec<LaneStart> },
    /// All below these ends is settled for a group, but for what was leased.
    Purge { topic: TopicId, group: GroupId, ends: Vec<LaneStart>, except: Vec<(Partition, Offset)> },
    /// Messages below `start` left the log; they counted `bytes`.
    Trim { lane: LaneId, start: u64, bytes: u64 },
    /// A message in a log is unreadable.
    Erased { lane: LaneId, sequence: u64 },
    /// A scheduled message is gone.
    Unscheduled { topic: TopicId, number: u64 },
    /// A group's position is kept under a name, in place of what was under it.
    Mark { topic: TopicId, group: GroupId, name: Arc<str>, at: Timestamp, lanes: Vec<LaneMark> },
    /// It is kept no longer.
    Unmark { topic: TopicId, group: GroupId, name: Arc<str> },
    /// The group goes back to it.
    Restore { topic: TopicId, group: GroupId, name: Arc<str> },
    /// A lane without messages begins here: what was before has been removed in the store that it comes from.
    Begins { lane: LaneId, sequence: u64 },
    /// What was counted in the store that a topic comes from.
    Counted { topic: TopicId, appended: u64, removed: u64, groups: Vec<(GroupId, Totals)> },
}
