//! One message store under test, in the domain's words. Invariant: the store sees no time but that of the bed's clock,
//! and a bed's data is its own. Knows no engine: a [`Backend`] opens one, and every rule of the contract runs over it
//! unedited.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use sluice::clock::{Clock, Timestamp};
use sluice::message::{GroupId, Message, MessageId, MessageMeta, Partition, Position, StageRef, TopicId};
use sluice::store::{
    AppendBatch, AppendItem, AppendOutcome, DedupKey, Entry, Failure, GroupSpec, GroupStats, KvUse, Lease, LeaseRef,
    LeaseRequest, MessageStore, Mode, Page, ReadFrom, ReadRequest, SeekTo, Settle, SettleRefused, Settled, Settlement,
    TopicSpec,
};

/// The topic that most rules use.
pub const TOPIC: TopicId = TopicId(1);
/// The topic of its dead letters.
pub const DEAD: TopicId = TopicId(2);
/// The group that most rules use.
pub const GROUP: GroupId = GroupId(1);
/// A second one.
pub const OTHER: GroupId = GroupId(2);
/// How long a rule's leases last. No rule moves the clock to the very millisecond of a deadline.
pub const LEASE: Duration = Duration::from_millis(30_500);
/// When a bed's clock begins.
pub const START: Timestamp = Timestamp(1_700_000_000_000);

/// Opens one engine over one set of data.
pub trait Backend: Send + Sync + 'static {
    /// The machine stops at this instant: what the running store does from now on has no effect on the next opening.
    fn cut(&self);
    /// Opens the store. What had it open before was cut off and is gone.
    fn open<'a>(&'a self, clock: &'a Clock) -> BoxFuture<'a, Arc<dyn MessageStore>>;
}

/// A store, its clock, and what it takes to open it again.
pub struct Bed {
    backend: Box<dyn Backend>,
    /// The store's time.
    pub clock: Clock,
    store: Option<Arc<dyn MessageStore>>,
    made: AtomicU64,
}

impl Deref for Bed {
    type Target = dyn MessageStore;
    fn deref(&self) -> &Self::Target {
        &**self.store.as_ref().expect("only a reopening takes the store away")
    }
}

/// A topic with the usual settings, without dead letters.
#[must_use]
pub fn topic(id: TopicId) -> TopicSpec {
    TopicSpec {
        id,
        partitions: 1,
        retention: Duration::from_secs(7 * 86_400),
        retention_bytes: None,
        dedup_window: Duration::from_secs(600),
        dedup_keys_max: 10_000,
        dead_letter: None,
        dead_letter_payload: true,
        dead_letter_expired: false,
    }
}

/// A group that begins with the oldest message and tries three times.
#[must_use]
pub fn group(topic: TopicId, group: GroupId) -> GroupSpec {
    GroupSpec { topic, group, name: format!("group-{}", group.0).into(), start: SeekTo::Earliest, attempts_max: 3 }
}

/// A failure with every field set.
#[must_use]
pub fn failure() -> Failure {
    Failure {
        reason: "HTTP_500".into(),
        detail: "the endpoint answered 500".into(),
        stage: Some(StageRef { name: "enrich".into(), plugin: "redact".into(), version: "1.2.0".into() }),
        last_status: Some(500),
    }
}

/// An idempotency key, and the hash of a request.
#[must_use]
pub fn key(key: &str, request: &str) -> Option<DedupKey> {
    let hash = Sha256::digest(request);
    Some(DedupKey { key: key.into(), request_hash: hash[..16].try_into().expect("a SHA-256 is longer than 16 bytes") })
}

/// An item that goes into the partition of its message's id, for all groups, at once.
#[must_use]
pub fn item(message: Message) -> AppendItem {
    let entry = Entry::Log { partition: message.id.partition(), message, due: None, target: None };
    AppendItem { dedup: None, entry, emitted: Vec::new() }
}

/// A batch for [`TOPIC`] on the first revision.
#[must_use]
pub fn batch(items: Vec<AppendItem>) -> AppendBatch {
    AppendBatch {
        topic: TOPIC,
        revision: 1,
        items,
        all_or_nothing: false,
        kv: Vec::new(),
        values: KvUse::default(),
        replays: Vec::new(),
    }
}

/// The payload as text.
#[must_use]
pub fn text(message: &Message) -> String {
    String::from_utf8(message.payload.to_vec()).expect("a bed's payloads are text")
}

/// The payloads of leases, in grant order.
#[must_use]
pub fn texts(leases: &[Lease]) -> Vec<String> {
    leases.iter().map(|lease| text(&lease.message)).collect()
}

/// The payloads of a page, in its order.
#[must_use]
pub fn page_texts(page: &Page) -> Vec<String> {
    page.messages.iter().map(|(_, message)| text(message)).collect()
}

impl Bed {
    /// An open store without topics.
    pub async fn new(backend: impl Backend) -> Bed {
        let clock = Clock::fixed(START);
        let store = Some(backend.open(&clock).await);
        Bed { backend: Box::new(backend), clock, store, made: AtomicU64::new(0) }
    }

    /// The same with [`TOPIC`] and its [`GROUP`].
    pub async fn simple(self) -> Bed {
        self.put_topic(topic(TOPIC)).await.expect("the store does it");
        self.put_group(group(TOPIC, GROUP)).await.expect("the store does it");
        self
    }

    /// The same with [`TOPIC`], its [`GROUP`], and [`DEAD`] for dead letters.
    pub async fn with_dead_letters(self) -> Bed {
        self.put_topic(topic(DEAD)).await.expect("the store does it");
        self.put_group(group(DEAD, GroupId::SHARED)).await.expect("the store does it");
        self.put_topic(TopicSpec { dead_letter: Some(DEAD), ..topic(TOPIC) }).await.expect("the store does it");
        self.put_group(group(TOPIC, GROUP)).await.expect("the store does it");
        self
    }

    /// A handle of the store for another task.
    #[must_use]
    pub fn shared(&self) -> Arc<dyn MessageStore> {
        Arc::clone(self.store.as_ref().expect("only a reopening takes the store away"))
    }

    /// Opens the store again without closing it, as after a crash.
    pub async fn crash(&mut self) {
        self.backend.cut();
        drop(self.store.take());
        self.store = Some(self.backend.open(&self.clock).await);
    }

    /// Closes the store and opens it again.
    pub async fn restart(&mut self) {
        self.close().await.expect("the store does it");
        self.crash().await;
    }

    /// Lets time pass, and the store do what is due then.
    pub async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        self.tick().await.expect("the store does it");
    }

    /// The time so long from now.
    #[must_use]
    pub fn later(&self, time: Duration) -> Timestamp {
        self.clock.now().plus(time)
    }

    /// A message for the first partition of [`TOPIC`].
    #[must_use]
    pub fn message(&self, text: &str) -> Message {
        self.message_in(TOPIC, 0, text)
    }

    /// A message.
    #[must_use]
    pub fn message_in(&self, topic: TopicId, partition: Partition, text: &str) -> Message {
        let now = self.clock.now();
        // A number of its own is all that an id needs of entropy here.
        let id = MessageId::new(now, topic, partition, self.made.fetch_add(1, Ordering::Relaxed));
        let meta = MessageMeta {
            content_type: "application/json".into(),
            schema_version: None,
            headers: Vec::new(),
            priority: 0,
            key: None,
            correlation_id: None,
            reply_to: None,
            published_at: now,
            expires_at: None,
            trace: None,
            revision: 1,
            dead_letter: None,
            replay_of: None,
        };
        Message { id, payload: Bytes::copy_from_slice(text.as_bytes()), meta }
    }

    /// A message with a partition key.
    #[must_use]
    pub fn keyed(&self, key: &str, text: &str) -> Message {
        let mut message = self.message(text);
        message.meta.key = Some(key.into());
        message
    }

    /// A message with a priority.
    #[must_use]
    pub fn urgent(&self, priority: u8, text: &str) -> Message {
        let mut message = self.message(text);
        message.meta.priority = priority;
        message
    }

    /// Appends messages to [`TOPIC`], each into the partition of its id; where they stand.
    pub async fn store(&self, messages: Vec<Message>) -> Vec<Position> {
        let outcomes = self.append(batch(messages.into_iter().map(item).collect())).await.expect("the store does it");
        let stored = |outcome| match outcome {
            AppendOutcome::Stored(position) => position,
            other => panic!("not stored: {other:?}"),
        };
        outcomes.into_iter().map(stored).collect()
    }

    /// Appends plain messages with these payloads to [`TOPIC`].
    pub async fn publish(&self, texts: &[&str]) -> Vec<Position> {
        self.store(texts.iter().map(|text| self.message(text)).collect()).await
    }

    /// Appends one item to [`TOPIC`].
    pub async fn append_one(&self, item: AppendItem) -> AppendOutcome {
        self.append(batch(vec![item])).await.expect("the store does it").remove(0)
    }

    /// What a lease of up to `max` messages for a group of [`TOPIC`] asks.
    #[must_use]
    pub fn request(&self, group: GroupId, max: usize) -> LeaseRequest {
        LeaseRequest {
            topic: TOPIC,
            group,
            max,
            bytes_max: 64 << 20,
            duration: LEASE,
            holder: "alice".into(),
            mode: Mode::AtLeastOnce,
            ordered: false,
        }
    }

    /// Leases up to `max` messages of [`TOPIC`] for [`GROUP`].
    pub async fn take(&self, max: usize) -> Vec<Lease> {
        self.take_for(GROUP, max).await
    }

    /// Leases up to `max` messages of [`TOPIC`] for a group.
    pub async fn take_for(&self, group: GroupId, max: usize) -> Vec<Lease> {
        self.lease(self.request(group, max)).await.expect("the store does it").leases
    }

    /// Leases one message of [`TOPIC`] for [`GROUP`].
    pub async fn take_one(&self) -> Lease {
        let mut leases = self.take(1).await;
        assert_eq!(leases.len(), 1, "one message is leasable");
        leases.remove(0)
    }

    /// Leases up to `max` messages in order.
    pub async fn take_ordered(&self, max: usize) -> Vec<Lease> {
        self.lease(LeaseRequest { ordered: true, ..self.request(GROUP, max) }).await.expect("the store does it").leases
    }

    /// Settles one lease by its receipt.
    pub async fn end(&self, lease: &Lease, settlement: Settlement) -> Result<Settled, SettleRefused> {
        let by = LeaseRef::Receipt { receipt: lease.receipt, message: Some(lease.message.id) };
        self.settle(vec![Settle { lease: by, settlement }]).await.expect("the store does it").remove(0)
    }

    /// Acks leases, all of which live.
    pub async fn ack(&self, leases: &[Lease]) {
        for lease in leases {
            assert_eq!(self.end(lease, Settlement::Ack).await, Ok(Settled::Acked));
        }
    }

    /// Nacks a lease: again after `delay`.
    pub async fn nack(&self, lease: &Lease, delay: Duration) -> Result<Settled, SettleRefused> {
        self.end(lease, Settlement::Retry { at: self.later(delay), failure: failure() }).await
    }

    /// What asks for the whole log of a topic.
    #[must_use]
    pub fn whole(&self, topic: TopicId) -> ReadRequest {
        ReadRequest { topic, partition: None, from: ReadFrom::Earliest, limit: 1000, bytes_max: 64 << 20 }
    }

    /// The log of [`TOPIC`], in the order of appending.
    pub async fn log(&self) -> Vec<String> {
        page_texts(&self.read(self.whole(TOPIC)).await.expect("the store does it"))
    }

    /// The list of [`DEAD`].
    pub async fn dead(&self) -> Vec<(Position, Message)> {
        self.dead_letters(DEAD, None, 1000).await.expect("the store does it").messages
    }

    /// The figures of a group of [`TOPIC`].
    pub async fn figures(&self, group: GroupId) -> GroupStats {
        let stats = self.stats(TOPIC).await.expect("the store does it");
        stats.groups.into_iter().find(|figures| figures.group == group).expect("the group has figures")
    }
}
