//! All that the store knows while it runs: topics, lanes, groups, leases, schedules, keys. Invariant: it changes durable
//! facts only through [`State::apply`], which the journal can repeat; leases, timers and caches are rebuilt. Pure: no
//! file, no thread, no clock of its own.

pub mod append;
pub mod apply;
pub mod cache;
pub mod check;
pub mod control;
pub mod cursor;
pub mod dedup;
pub mod grant;
pub mod group;
mod kv;
pub mod lane;
pub mod mark;
mod memory;
pub mod ranges;
mod room;
pub mod schedule;
pub mod settle;
pub mod snapshot;
pub mod stats;
pub mod tail;
pub mod trim;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;

use crate::clock::Timestamp;
use crate::message::{GroupId, Offset, Partition, TopicId};
use crate::store::{KvValue, StoreError, TopicSpec};

pub use self::apply::Applying;
use self::cache::BlockCache;
use self::dedup::Dedup;
use self::group::{Group, LANES};
use self::kv::KvSpace;
use self::lane::Lane;
use self::memory::Flushed;
use self::schedule::Schedule;
use super::ops::{LaneId, Op, Owner};

/// A partition of a topic.
#[derive(Debug, Default)]
pub struct PartitionState {
    /// The pipeline revision of the last batch stored.
    pub revision: u64,
    /// One a priority; none until it is first used.
    pub lanes: [Option<Box<Lane>>; LANES],
    /// Damage that a read found. Leases of this partition are refused with it; the rest of the store goes on.
    pub damage: Option<StoreError>,
}

/// A topic.
#[derive(Debug)]
pub struct Topic {
    /// Its settings.
    pub spec: TopicSpec,
    /// Its partitions.
    pub partitions: Vec<PartitionState>,
    /// Its groups.
    pub groups: BTreeMap<GroupId, Group>,
    /// Outcomes under its idempotency keys.
    pub dedup: Dedup,
    /// What waits until it is due.
    pub schedule: Schedule,
    /// Messages ever appended.
    pub appended_total: u64,
    /// Messages removed by retention.
    pub removed_total: u64,
    /// Changes when something may be leasable.
    pub wake: watch::Sender<u64>,
}

impl Topic {
    /// A topic without messages.
    #[must_use]
    pub fn new(spec: TopicSpec) -> Topic {
        Topic {
            partitions: (0..spec.partitions).map(|_| PartitionState::default()).collect(),
            spec,
            groups: BTreeMap::new(),
            dedup: Dedup::default(),
            schedule: Schedule::default(),
            appended_total: 0,
            removed_total: 0,
            wake: watch::channel(0).0,
        }
    }

    /// A lane, if it is in use.
    #[must_use]
    pub fn lane(&self, partition: Partition, lane: u8) -> Option<&Lane> {
        self.partitions.get(usize::from(partition))?.lanes.get(usize::from(lane))?.as_deref()
    }

    /// A lane, made if it is not in use yet; `None` if there is no such partition.
    pub fn lane_mut(&mut self, partition: Partition, lane: u8) -> Option<&mut Lane> {
        let part = self.partitions.get_mut(usize::from(partition))?;
        Some(part.lanes.get_mut(usize::from(lane))?.get_or_insert_default())
    }

    /// The lanes in use, by partition, then lane.
    pub fn lanes(&self) -> impl Iterator<Item = (LaneId, &Lane)> {
        let topic = self.spec.id;
        self.partitions.iter().enumerate().flat_map(move |(partition, part)| {
            part.lanes.iter().enumerate().filter_map(move |(lane, state)| {
                let id = LaneId { topic, partition: partition as Partition, lane: lane as u8 };
                Some((id, state.as_deref()?))
            })
        })
    }

    /// What its messages count for, scheduled ones included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lanes().map(|(_, lane)| lane.bytes).sum::<u64>() + self.schedule.bytes()
    }

    /// What entered the log at or before this is out of retention.
    #[must_use]
    pub fn cutoff(&self, now: Timestamp) -> Timestamp {
        now.minus(self.spec.retention)
    }

    /// Ends what is past its deadline and readies what is due, in all groups.
    pub fn run_timers(&mut self, now: Timestamp) {
        let mut moved = false;
        for group in self.groups.values_mut() {
            moved |= group.run_timers(now);
        }
        if moved {
            self.wake();
        }
    }

    /// Tells those who wait that something may be leasable.
    pub fn wake(&self) {
        self.wake.send_modify(|changes| *changes = changes.wrapping_add(1));
    }
}

/// The bounds of what the embedded store holds in memory and on its way to the disk.
#[derive(Debug, Clone)]
pub struct EmbeddedLimits {
    /// Bytes of commands that wait for the writer; beyond, callers get `Unavailable` at once. A second or so of a slow disk.
    pub queue_bytes_max: u64,
    /// Bytes of one batch: all of it is in memory at once, twice.
    pub batch_bytes_max: u64,
    /// Bodies in one frame: enough to fill a disk's bandwidth between two syncs, little enough to keep the first waiter's
    /// answer soon. A larger batch has a frame of its own.
    pub frame_bytes: u64,
    /// Memory of the newest messages, so that consumers that keep up never touch the disk.
    pub tail_bytes: u64,
    /// Messages that only the journal has; beyond, the writer waits for segments to be written.
    pub unflushed_bytes_max: u64,
    /// Memory of blocks read back for consumers that lag.
    pub cache_bytes: u64,
    /// Leased, retried and parked messages of one group; beyond, it gets no new ones until some are settled.
    pub exceptions_max: usize,
    /// Calls that granted what no frame holds yet, because none can be written; beyond, `Unavailable`.
    pub notes_max: usize,
    /// Messages parked behind others of their key, per group and partition; beyond, the partition waits.
    pub parked_max: usize,
    /// Scheduled messages in all topics; beyond, `TopicFull`.
    pub scheduled_max: usize,
    /// Their bytes, which are held in memory; beyond, `TopicFull`.
    pub scheduled_bytes_max: u64,
    /// Idempotency keys of all topics, some 200 bytes each; beyond, `TopicFull`.
    pub dedup_keys_total_max: usize,
    /// Bytes of plugins' keys and values; beyond, `Unavailable`.
    pub kv_bytes_max: u64,
    /// Of those, what one plugin has on one topic; beyond, `KvConflict`.
    pub kv_namespace_bytes_max: u64,
    /// Keys of one plugin on one topic: looking them over and their end with the topic take a lock; beyond, `KvConflict`.
    pub kv_namespace_keys_max: u64,
    /// Runs of messages for one group alone, per lane; beyond, `TopicFull`.
    pub target_runs_max: usize,
    /// Room in a file of the journal; its first files are smaller.
    pub journal_file_bytes: u64,
    /// Journal written since the last checkpoint that makes for a new one: bounds the replay at the next opening.
    pub checkpoint_bytes: u64,
    /// Journal on disk when checkpoints fail; beyond, `Unavailable`.
    pub journal_bytes_max: u64,
}

impl Default for EmbeddedLimits {
    fn default() -> EmbeddedLimits {
        EmbeddedLimits {
            queue_bytes_max: 64 << 20,
            batch_bytes_max: 256 << 20,
            frame_bytes: 4 << 20,
            tail_bytes: 64 << 20,
            unflushed_bytes_max: 48 << 20,
            cache_bytes: 32 << 20,
            exceptions_max: 100_000,
            notes_max: 50_000,
            parked_max: 4096,
            scheduled_max: 1_000_000,
            scheduled_bytes_max: 256 << 20,
            dedup_keys_total_max: 4_000_000,
            kv_bytes_max: 64 << 20,
            kv_namespace_bytes_max: 16 << 20,
            kv_namespace_keys_max: 100_000,
            target_runs_max: 100_000,
            journal_file_bytes: 64 << 20,
            checkpoint_bytes: 256 << 20,
            journal_bytes_max: 4 << 30,
        }
    }
}

/// Plugins' keys: namespace and key to value, in order, so that they can be looked over in steps.
pub type Kv = BTreeMap<(Arc<str>, Arc<str>), KvValue>;

/// See the module.
#[derive(Debug)]
pub struct State {
    /// The bounds.
    pub limits: EmbeddedLimits,
    /// Which opening of the store this is.
    pub epoch: u64,
    /// The topics.
    pub topics: BTreeMap<TopicId, Topic>,
    /// What is unreadable but whose bytes may still be in files.
    pub erasing: Vec<Owner>,
    /// Topics that are gone but whose files are not.
    pub graves: Vec<TopicId>,
    /// Segments that left their lane but whose files are still there.
    pub dead_segments: Vec<(LaneId, u64)>,
    /// Plugins' keys.
    pub kv: Kv,
    /// Bytes of `kv`.
    pub kv_bytes: u64,
    /// What those of each namespace take.
    pub kv_spaces: HashMap<Arc<str>, KvSpace>,
    /// The version of the next write to `kv`: one counter for all, so that no version of a key comes twice.
    pub next_kv_version: u64,
    /// The place of the next append in the order of all.
    pub next_stamp: u64,
    /// The time of the last append: times in a log never fall.
    pub last_at: Timestamp,
    /// The number of the next scheduled message.
    pub next_scheduled: u64,
    /// Scheduled messages in all topics.
    pub scheduled: usize,
    /// Their bytes.
    pub scheduled_bytes: u64,
    /// The next grant.
    pub next_grant: u64,
    /// The number of the next note.
    pub next_note: u64,
    /// Grants and passings that are to be journaled with the next frame.
    pub notes: VecDeque<Op>,
    /// The sequence of the last frame that was applied.
    pub applied: u64,
    /// The memory of all messages that lanes hold.
    pub tail_bytes: u64,
    /// The cost of those of them that no segment has.
    pub unflushed_bytes: u64,
    /// Lanes with messages that no segment has, and how many bytes of them.
    pub unflushed: HashMap<LaneId, u64>,
    /// What segments took, oldest first: the order in which memory is given back.
    flushed: Flushed,
    /// Blocks read back.
    pub cache: BlockCache,
    /// Topics to wake once what was applied may be seen.
    woken: HashSet<TopicId>,
}

impl State {
    /// Nothing.
    #[must_use]
    pub fn new(limits: EmbeddedLimits) -> State {
        State {
            cache: BlockCache::new(limits.cache_bytes),
            limits,
            epoch: 0,
            topics: BTreeMap::new(),
            erasing: Vec::new(),
            graves: Vec::new(),
            dead_segments: Vec::new(),
            kv: Kv::new(),
            kv_bytes: 0,
            kv_spaces: HashMap::new(),
            next_kv_version: 1,
            next_stamp: 0,
            last_at: Timestamp(0),
            next_scheduled: 0,
            scheduled: 0,
            scheduled_bytes: 0,
            next_grant: 1,
            next_note: 0,
            notes: VecDeque::new(),
            applied: 0,
            tail_bytes: 0,
            unflushed_bytes: 0,
            unflushed: HashMap::new(),
            flushed: Flushed::default(),
            woken: HashSet::new(),
        }
    }

    /// A topic.
    ///
    /// # Errors
    /// `NoTopic`.
    pub fn topic(&self, id: TopicId) -> Result<&Topic, StoreError> {
        self.topics.get(&id).ok_or(StoreError::NoTopic)
    }

    /// A topic, to be changed.
    ///
    /// # Errors
    /// `NoTopic`.
    pub fn topic_mut(&mut self, id: TopicId) -> Result<&mut Topic, StoreError> {
        self.topics.get_mut(&id).ok_or(StoreError::NoTopic)
    }

    /// A group.
    ///
    /// # Errors
    /// `NoTopic`, `NoGroup`.
    pub fn group_mut(&mut self, topic: TopicId, group: GroupId) -> Result<&mut Group, StoreError> {
        self.topic_mut(topic)?.groups.get_mut(&group).ok_or(StoreError::NoGroup)
    }

    /// A lane.
    #[must_use]
    pub fn lane(&self, id: LaneId) -> Option<&Lane> {
        self.topics.get(&id.topic)?.lane(id.partition, id.lane)
    }

    /// Adds a grant or a passing to what the next frame carries.
    pub fn note(&mut self, make: impl FnOnce(u64) -> Op) {
        let op = make(self.next_note);
        self.next_note += 1;
        self.notes.push_back(op);
    }

    /// Tells those who wait on topics that what was applied concerns.
    pub fn wake_all(&mut self) {
        for topic in self.woken.drain() {
            if let Some(topic) = self.topics.get(&topic) {
                topic.wake();
            }
        }
    }

    /// The next time of an append: the clock's, but never before the last.
    #[must_use]
    pub fn append_at(&self, now: Timestamp) -> Timestamp {
        self.last_at.max(now)
    }
}

/// Offsets as lanes and sequences name them.
#[must_use]
pub fn offset(lane: LaneId, sequence: u64) -> Offset {
    Offset::new(lane.lane, sequence)
}
