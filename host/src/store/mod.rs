//! The seam between the broker and what keeps its messages: [`MessageStore`], its words, and nothing else. A store is
//! done when `tests/suites/store_conformance.rs` and the model test pass over it, unedited; a new rule changes the suite first.
//!
//! # The contract
//! **Log and cursor.** A topic has partitions, a partition has lanes (one a priority), a lane is a log. A group (a
//! subscription's cursor, or [`GroupId::SHARED`] of a Queue) is an ack floor per lane, a sparse set above it, and
//! entries only for exceptions: leased, retried, dead. Nothing is written per (message, group).
//!
//! **Durability.** When `append`, `settle`, `seek`, `erase`, `put_*` or `delete_*` return `Ok`, their effect is on
//! stable storage. A batch is one unit: all of it survives a crash, or none. Grants of `lease` are recorded but not
//! synced (a crash may forget them, and then the message is delivered again), except with [`Mode::AtMostOnce`], where
//! the grant is durable before the message is handed out, and settles it.
//!
//! **Errors.** Any error but [`StoreError::OutcomeUnknown`] says that nothing was stored. After `OutcomeUnknown` the
//! batch is stored wholly or not at all; a repeat with the same dedup key finds out.
//!
//! **Order.** Items of one batch, and batches awaited one after the other, get rising offsets per lane. Grants follow
//! offsets within a lane; the highest lane goes first, and every 8th grant goes to the lowest waiting lane. With
//! `ordered`, lanes are ignored in favour of the order of appending, and no message of a key is granted while an earlier
//! one of that key is leased or waits for its retry.
//!
//! **Visibility.** A message can be leased and read once its append is durable, not before. A scheduled message (`due`)
//! has no offset and cannot be read until it is due by the store's clock; retention counts from then.
//!
//! **Leases.** At most one live lease per (group, message). A lease ends by settlement, at its deadline (which counts as
//! an attempt), or when the store is opened again: each opening has a new *epoch*, receipts carry it, and a receipt of
//! an older epoch or a passed deadline is refused with [`SettleRefused::LeaseExpired`]. A message whose attempts reach
//! its group's `attempts_max` is copied to the topic's dead-letter topic in the same unit that ends the lease.
//!
//! **Dedup.** An item with a key is checked against the topic's outcomes inside `append`, under the same unit that
//! records it; two racing appends of one key store one message. Scope: (topic, key), for `dedup_window` from the first.
//!
//! **Revisions.** A partition refuses a batch whose pipeline revision is older than the last one it stored
//! ([`StoreError::StaleRevision`]): the caller runs the batch again on the current revision.
//!
//! **Plugins' values.** A value lives in a namespace ([`kv_namespace`]) and is written by `append` alone, in the unit of the
//! messages that it is written for. It goes with its topic. A namespace has a bound in bytes and in keys: what would grow it
//! beyond fails as [`StoreError::KvConflict`], since whoever asked for room before ([`MessageStore::kv_room`]) was told so.
//!
//! **Bounds.** Retention by time wins over everything; by bytes it removes what every group has settled, and when that
//! is not enough the topic is full ([`AppendOutcome::TopicFull`]). Nothing grows with the number of settled messages. A store that
//! several brokers share may be over a topic's bound by what is being appended to its other partitions at that moment.
//!
//! **Cost.** `append` and `settle` share one sync among all that wait. `lease` of n costs O(n), not O(backlog).
//! Every method may be called from any task at any time; none blocks the runtime's threads on the disk.

pub mod embedded;
mod error;
pub mod moving;
pub mod postgres;
mod receipt;
pub mod redis;
pub mod routed;
mod values;

pub use crate::message::{FailedAttempt, Failure, Failures};
pub use error::{SettleRefused, StoreError};
pub use receipt::Receipt;
pub use values::{ItemWrite, KvHead, KvRead, KvRoom, KvUse, ValueTurn, kv_cost, kv_namespace};

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::clock::Timestamp;
use crate::message::{GroupId, Message, MessageId, Offset, Partition, Position, TopicId};

/// Keeps messages and the state of their delivery. The module's header is its contract.
#[async_trait]
pub trait MessageStore: Send + Sync + 'static {
    /// What this store can do beyond the core, and how durable it is.
    fn capabilities(&self) -> Capabilities;
    /// The same for one topic, where topics are in different stores.
    fn capabilities_of(&self, _topic: TopicId) -> Capabilities {
        self.capabilities()
    }

    /// Creates the topic, or changes its settings; its partition count cannot change. Idempotent.
    async fn put_topic(&self, topic: TopicSpec) -> Result<(), StoreError>;
    /// The same for a topic that was made before: a store that can lose one begins it then above all that it gave.
    async fn put_topic_again(&self, topic: TopicSpec) -> Result<(), StoreError> {
        self.put_topic(topic).await
    }
    /// Removes the topic, its groups and all its messages; `Ok` if there is none. Its id is never used again.
    async fn delete_topic(&self, topic: TopicId) -> Result<(), StoreError>;
    /// The topics that exist, so that a catalog can be held against them at start.
    async fn topics(&self) -> Result<Vec<TopicId>, StoreError>;
    /// Creates the group with its cursor at `spec.start`, or changes the settings of one that exists (its cursor stays).
    async fn put_group(&self, spec: GroupSpec) -> Result<(), StoreError>;
    /// Removes the group; its leases end. `Ok` if there is none.
    async fn delete_group(&self, topic: TopicId, group: GroupId) -> Result<(), StoreError>;
    /// The groups of a topic.
    async fn groups(&self, topic: TopicId) -> Result<Vec<GroupId>, StoreError>;

    /// The outcome under an idempotency key that is still in its window: spares a duplicate the pipeline.
    async fn dedup_lookup(&self, topic: TopicId, key: &str) -> Result<Option<DedupOutcome>, StoreError>;
    /// Stores a batch; one outcome per item, in order. Items that are duplicates or find the topic full do not keep the
    /// others out, unless `all_or_nothing`.
    async fn append(&self, batch: AppendBatch) -> Result<Vec<AppendOutcome>, StoreError>;
    /// Where several brokers share the store: the turn of one that has met a conflict of these values. Until it is dropped, or some
    /// seconds have passed, other batches that use them meet a conflict ([`KvUse::turn`]). None where there are no other brokers, or
    /// where it cannot be had now: a conflict is told all the same.
    async fn value_turn(&self, _namespaces: Vec<Arc<str>>) -> Option<ValueTurn> {
        None
    }
    /// The value of a plugin's key, for reading inside a stage.
    async fn kv_get(&self, namespace: &str, key: &str) -> Result<Option<KvValue>, StoreError>;
    /// What may be added to a namespace, and what `key` takes of it: for setting inside a stage.
    async fn kv_room(&self, namespace: &str, key: &str) -> Result<KvRoom, StoreError>;
    /// The first `head` bytes of up to `limit` values, in the order of namespaces and keys, from behind `after` on.
    async fn kv_heads(
        &self,
        after: Option<(Arc<str>, Arc<str>)>,
        limit: usize,
        head: usize,
    ) -> Result<Vec<KvHead>, StoreError>;

    /// Grants up to `max` messages that wait for the group. Returns at once, also with none.
    async fn lease(&self, request: LeaseRequest) -> Result<Leased, StoreError>;
    /// Ends or extends leases; one result per item, in order. One item's refusal does not touch the others.
    async fn settle(&self, settles: Vec<Settle>) -> Result<Vec<Result<Settled, SettleRefused>>, StoreError>;
    /// Which of these leases have ended: settled, expired, or by a seek, whichever broker that was asked of. A store that one broker
    /// has need not know: that broker does. One that names none leaves their places taken until their deadlines.
    async fn ended(&self, _receipts: &[Receipt]) -> Result<Vec<Receipt>, StoreError> {
        Ok(Vec::new())
    }
    /// A receiver that changes whenever messages of the topic may have become leasable: appended, due, freed by a
    /// retry, an expiry, a seek. `None` if there is no such topic.
    fn appended(&self, topic: TopicId) -> Option<watch::Receiver<u64>>;

    /// A message by its id, if it is in the log, scheduled, or a dead letter.
    async fn get(&self, id: MessageId) -> Result<Option<Found>, StoreError>;
    /// Reads the log without touching any cursor.
    async fn read(&self, request: ReadRequest) -> Result<Page, StoreError>;
    /// Messages of a dead-letter topic that were neither replayed nor discarded, oldest first. `topic` is the id of the
    /// dead-letter topic; what is listed is what waits for its [`GroupId::SHARED`].
    async fn dead_letters(&self, topic: TopicId, after: Option<Position>, limit: usize) -> Result<Page, StoreError>;
    /// Takes dead letters off that list for good.
    async fn discard_dead_letters(&self, positions: Vec<Position>) -> Result<usize, StoreError>;
    /// Moves a group's cursor; in the lanes that it is moved in its leases end and its retries are forgotten.
    async fn seek(&self, topic: TopicId, group: GroupId, to: SeekTo) -> Result<(), StoreError>;
    /// Keeps under a name what the group has not settled now; a snapshot of that name before is gone. What is settled
    /// between more than 10 000 messages that are not may come again.
    async fn put_snapshot(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<(), StoreError>;
    /// Removes it; false if there is none of that name.
    async fn delete_snapshot(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<bool, StoreError>;
    /// A group's snapshots by name, and when each was made.
    async fn snapshots(&self, topic: TopicId, group: GroupId) -> Result<Vec<(Arc<str>, Timestamp)>, StoreError>;
    /// Moves a group's cursor back to a snapshot: what was not settled then, and what came later, waits again, as far as it
    /// is still kept. Its leases end, its retries are forgotten. False if there is none of that name.
    async fn restore(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<bool, StoreError>;
    /// Settles for the group all that waits for it now; returns how many.
    async fn purge(&self, topic: TopicId, group: GroupId) -> Result<u64, StoreError>;
    /// Makes a message unreadable at once and its bytes gone from the files; false if it is not there. `OutcomeUnknown` also
    /// where it is unreadable and its bytes are still to go: they do, without being asked again.
    async fn erase(&self, id: MessageId) -> Result<bool, StoreError>;

    /// Does what is due by the store's clock: scheduled messages enter the log, leases past their deadline end, dedup
    /// keys age out. Called often (every 100 ms or so). Returns when there is next something to do, if known.
    async fn tick(&self) -> Result<Option<Timestamp>, StoreError>;
    /// Enforces retention and compacts; called every few seconds.
    async fn retain(&self) -> Result<RetainReport, StoreError>;
    /// Figures of one topic.
    async fn stats(&self, topic: TopicId) -> Result<TopicStats, StoreError>;
    /// Whether the store takes writes now; the reason if it does not.
    fn health(&self) -> Result<(), String>;
    /// Syncs, writes what makes the next opening quick, and refuses all further calls. Idempotent.
    async fn close(&self) -> Result<(), StoreError>;
}

/// Snapshots that a group may have.
pub const SNAPSHOTS_MAX: usize = 16;

/// What a store can do. The core suite holds for all stores; each flag adds a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// The `durability` of publish answers: `fsync`, `postgres`, ….
    pub durability: &'static str,
    /// Priority lanes.
    pub lanes: bool,
    /// `due`.
    pub schedule: bool,
    /// `ordered` leases.
    pub ordered: bool,
    /// [`Mode::AtMostOnce`], and dedup strong enough for ExactlyOnce topics.
    pub exactly_once: bool,
    /// Plugins' key–value writes.
    pub kv: bool,
}

/// A topic as the store sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicSpec {
    /// From the catalog.
    pub id: TopicId,
    /// 1–64; fixed.
    pub partitions: u16,
    /// Messages are kept this long from when they enter the log.
    pub retention: Duration,
    /// Bytes of all partitions together, payloads and heads.
    pub retention_bytes: Option<u64>,
    /// How long outcomes under idempotency keys are kept.
    pub dedup_window: Duration,
    /// How many are kept at most; when full, keyed publishes get [`AppendOutcome::TopicFull`].
    pub dedup_keys_max: u32,
    /// The topic that takes its dead letters; `None` for those topics themselves.
    pub dead_letter: Option<TopicId>,
    /// Whether a dead letter keeps its payload.
    pub dead_letter_payload: bool,
    /// Whether a message that passes its `expires_at` undelivered becomes one.
    pub dead_letter_expired: bool,
}

/// A cursor on a topic and how its deliveries fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSpec {
    /// The topic.
    pub topic: TopicId,
    /// The cursor.
    pub group: GroupId,
    /// The name that people know it by, kept in dead letters.
    pub name: Arc<str>,
    /// Where the cursor begins; only read when the group is new.
    pub start: SeekTo,
    /// Deliveries per message before it is a dead letter; at least 1 (`maxRetries` + 1).
    pub attempts_max: u32,
}

/// A place to put a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeekTo {
    /// Before the oldest message kept.
    Earliest,
    /// After the newest message.
    Latest,
    /// Before the first message that entered the log at or after this time.
    Time(Timestamp),
    /// Before this offset, in its lane of the one partition named; other lanes and partitions stay.
    Offset(Partition, Offset),
}

/// What one run of a topic's pipeline decided, to be stored as one unit.
#[derive(Debug, Clone)]
pub struct AppendBatch {
    /// The topic that was published to.
    pub topic: TopicId,
    /// The pipeline revision that it ran on.
    pub revision: u64,
    /// In the order of the request.
    pub items: Vec<AppendItem>,
    /// Store nothing if one item is a duplicate, a conflict, or finds no room.
    pub all_or_nothing: bool,
    /// Plugins' writes: if one of them finds another version, the whole batch fails with [`StoreError::KvConflict`].
    pub kv: Vec<KvWrite>,
    /// What stages have read of plugins' values, and want written for the sake of single items.
    pub values: KvUse,
    /// Dead letters that this batch replays: taken off their list in the same unit. If one of them is off the list already,
    /// nothing of the batch is stored ([`AppendOutcome::NotAttempted`]): another replay came first.
    pub replays: Vec<Position>,
}

/// One publish.
#[derive(Debug, Clone)]
pub struct AppendItem {
    /// Its idempotency key, if any.
    pub dedup: Option<DedupKey>,
    /// What the pipeline made of it.
    pub entry: Entry,
    /// What its stages emitted; stored if and only if this item is.
    pub emitted: Vec<(TopicId, Partition, Message)>,
}

/// An idempotency key and what tells a repeat from a different request under the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DedupKey {
    /// As the publisher gave it.
    pub key: Arc<str>,
    /// The first 16 bytes of the SHA-256 of the request.
    pub request_hash: [u8; 16],
}

/// What becomes of a published message.
#[derive(Debug, Clone)]
pub enum Entry {
    /// It enters the log of the batch's topic.
    Log {
        /// Where.
        partition: Partition,
        /// What; its priority names the lane.
        message: Message,
        /// Not before this time.
        due: Option<Timestamp>,
        /// For this group alone (a replay); `None`: for all.
        target: Option<GroupId>,
    },
    /// A stage turned it away into the dead-letter topic; `message.meta.dead_letter` says why.
    DeadLetter {
        /// What.
        message: Message,
    },
    /// A stage dropped it: only the outcome is kept, and only under a key.
    Dropped {
        /// The id that the publisher was told.
        id: MessageId,
        /// The stage, and its reason.
        stage: Arc<str>,
        /// In the stage's words.
        reason: Arc<str>,
    },
}

/// What `append` made of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppendOutcome {
    /// It is in the log.
    Stored(Position),
    /// It waits until it is due.
    Scheduled,
    /// It is in the dead-letter topic.
    DeadLettered(Position),
    /// Its outcome is kept.
    Dropped,
    /// The same request came before under this key.
    Duplicate(DedupOutcome),
    /// Another request came before under this key.
    KeyConflict,
    /// No room for it (or for its key): nothing of this item was stored.
    TopicFull,
    /// Not stored because another item of an `all_or_nothing` batch could not be, or a dead letter that the batch replays was
    /// off its list.
    NotAttempted,
}

/// What is remembered under an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedupOutcome {
    /// Tells a repeat from a different request.
    pub request_hash: [u8; 16],
    /// The id that the first publisher was told.
    pub id: MessageId,
    /// What became of it.
    pub fate: Fate,
    /// When.
    pub at: Timestamp,
    /// The pipeline revision of the first.
    pub revision: u64,
}

/// What became of the first publish under a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// In the log, at this place.
    Stored(Position),
    /// Scheduled.
    Scheduled,
    /// Turned away into the dead-letter topic.
    DeadLettered {
        /// Its place there.
        position: Position,
        /// By this stage.
        stage: Arc<str>,
        /// In its words.
        reason: Arc<str>,
    },
    /// Dropped by this stage for this reason.
    Dropped {
        /// The stage.
        stage: Arc<str>,
        /// In its words.
        reason: Arc<str>,
    },
}

/// One buffered write of a plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvWrite {
    /// Separates plugins and topics.
    pub namespace: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    /// The version it was read at; 0: it was not there.
    pub expected_version: u64,
    /// `None` removes it.
    pub value: Option<Vec<u8>>,
}

/// A plugin's stored value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvValue {
    /// Rises with each write; never 0.
    pub version: u64,
    /// The bytes.
    pub value: Vec<u8>,
}

/// How a grant counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The message comes again unless it is settled.
    AtLeastOnce,
    /// The grant, made durable first, settles it.
    AtMostOnce,
}

/// Asks for messages.
#[derive(Debug, Clone)]
pub struct LeaseRequest {
    /// The topic.
    pub topic: TopicId,
    /// Whose cursor.
    pub group: GroupId,
    /// Messages at most, 1–1000.
    pub max: usize,
    /// Payload bytes at most; the first message is granted whatever its size.
    pub bytes_max: usize,
    /// How long the lease lasts.
    pub duration: Duration,
    /// Who holds it: a settle without receipt counts only for the same holder.
    pub holder: Arc<str>,
    /// At least or at most once.
    pub mode: Mode,
    /// In order per partition key.
    pub ordered: bool,
}

/// What was granted.
#[derive(Debug, Clone, Default)]
pub struct Leased {
    /// The leases, in grant order.
    pub leases: Vec<Lease>,
    /// Whether more waits right now.
    pub more: bool,
}

/// One delivery attempt: a message held until a deadline.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Where it stands.
    pub position: Position,
    /// What it is.
    pub message: Message,
    /// 1 for the first delivery.
    pub attempt: u32,
    /// When the lease ends by itself.
    pub deadline: Timestamp,
    /// Settles it.
    pub receipt: Receipt,
}

/// Which lease to settle.
#[derive(Debug, Clone)]
pub enum LeaseRef {
    /// By its receipt; `message`, if given, must be the message it was granted for.
    Receipt {
        /// The receipt.
        receipt: Receipt,
        /// The message that the caller believes it settles.
        message: Option<MessageId>,
    },
    /// The one live lease of this message, if this holder has it.
    Holder {
        /// The topic.
        topic: TopicId,
        /// Whose cursor.
        group: GroupId,
        /// The message.
        message: MessageId,
        /// Who asks.
        holder: Arc<str>,
    },
}

/// Ends or extends one lease.
#[derive(Debug, Clone)]
pub struct Settle {
    /// Which.
    pub lease: LeaseRef,
    /// How.
    pub settlement: Settlement,
}

/// How a lease ends, or goes on.
#[derive(Debug, Clone)]
pub enum Settlement {
    /// Done for this group.
    Ack,
    /// Again, not before `at`; a dead letter instead when this was the last attempt.
    Retry {
        /// Not before.
        at: Timestamp,
        /// What went wrong.
        failure: Failure,
    },
    /// A dead letter now, whatever the attempts.
    DeadLetter {
        /// What went wrong.
        failure: Failure,
    },
    /// The lease was not used (the broker is stopping, the endpoint's breaker is open): waits again at once, and the
    /// attempt does not count.
    Release,
    /// The lease lasts this long from now instead.
    Extend {
        /// From now.
        duration: Duration,
    },
}

/// What a settlement came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Done.
    Acked,
    /// Comes again.
    Retrying {
        /// Not before.
        at: Timestamp,
    },
    /// In the dead-letter topic (or, without one, done).
    DeadLettered,
    /// Waits again.
    Released,
    /// Held on.
    Extended {
        /// The new deadline.
        until: Timestamp,
    },
}

/// A message by its id.
#[derive(Debug, Clone)]
pub struct Found {
    /// The message.
    pub message: Message,
    /// Where it stands; none while it is scheduled.
    pub position: Option<Position>,
    /// When it is due, while it is scheduled.
    pub due: Option<Timestamp>,
    /// Its state for each group of its topic.
    pub groups: Vec<GroupStatus>,
}

/// A message's state for one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// Its state.
    pub state: DeliveryState,
    /// The attempts that failed, as long as it is not settled.
    pub failures: Failures,
}

/// A message's state for one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// Not granted yet.
    Waiting,
    /// Held.
    Leased {
        /// Which attempt.
        attempt: u32,
        /// Until.
        deadline: Timestamp,
    },
    /// Waits for its next attempt.
    Retrying {
        /// Attempts so far.
        attempts: u32,
        /// Not before.
        at: Timestamp,
    },
    /// Acked, dead-lettered, expired, skipped by a seek, or from before the group began.
    Settled,
}

/// Asks for a part of the log.
#[derive(Debug, Clone)]
pub struct ReadRequest {
    /// The topic.
    pub topic: TopicId,
    /// One partition, or all.
    pub partition: Option<Partition>,
    /// From where.
    pub from: ReadFrom,
    /// Messages at most.
    pub limit: usize,
    /// Payload bytes at most (the first message comes whatever its size).
    pub bytes_max: usize,
}

/// Where reading begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadFrom {
    /// The oldest kept.
    Earliest,
    /// What comes after now.
    Latest,
    /// The first that entered the log at or after this time.
    Time(Timestamp),
    /// This offset in its lane and, in the others, what entered the log with or after it. Needs a partition.
    Offset(Offset),
    /// Where the page before ended.
    Cursor(ReadCursor),
}

/// Where a page ended: the next sequence per partition and lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadCursor(pub Vec<(Partition, Offset)>);

/// A part of the log, in the order of appending.
#[derive(Debug, Clone)]
pub struct Page {
    /// The messages.
    pub messages: Vec<(Position, Message)>,
    /// Where it ended: what is read from there is what comes next, at the end of the log what comes later.
    pub reached: ReadCursor,
    /// Whether there is more of the log now.
    pub more: bool,
}

impl Page {
    /// Where the next page begins; none at the end of the log.
    #[must_use]
    pub fn next(&self) -> Option<&ReadCursor> {
        self.more.then_some(&self.reached)
    }
}

/// What retention did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetainReport {
    /// Messages removed.
    pub removed: u64,
    /// Of these, the (message, group) pairs that were not settled.
    pub expired: u64,
    /// Bytes given back.
    pub bytes: u64,
}

/// Figures of one topic; totals count from its creation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicStats {
    /// Messages in the log.
    pub messages: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// When the oldest entered the log.
    pub oldest: Option<Timestamp>,
    /// Messages that wait until they are due.
    pub scheduled: u64,
    /// Messages ever appended.
    pub appended_total: u64,
    /// Removed by retention.
    pub removed_total: u64,
    /// Idempotency keys held.
    pub dedup_keys: u64,
    /// Figures per group.
    pub groups: Vec<GroupStats>,
}

/// Figures of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStats {
    /// The group.
    pub group: GroupId,
    /// Granted to nobody, and due now: the lag.
    pub waiting: u64,
    /// Held now.
    pub leased: u64,
    /// Waiting for their next attempt.
    pub retrying: u64,
    /// When the oldest unsettled message entered the log.
    pub oldest_unsettled: Option<Timestamp>,
    /// Ever acked.
    pub acked_total: u64,
    /// Ever dead-lettered.
    pub dead_lettered_total: u64,
    /// Ever expired unsettled: `expires_at`, or retention.
    pub expired_total: u64,
    /// Deliveries ever granted.
    pub delivered_total: u64,
}
