//! Two stores as one: most topics are in the broker's own store, some in Redis. Invariant: a topic's calls go to the store that it was
//! said to be in, from its first to its last; what one call names of both is two units, and nothing that must be one is let through.
//! One store's trouble is not the other's. Decides nothing about messages.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::RwLock;
use tokio::sync::watch;

use super::{
    AppendBatch, AppendOutcome, Capabilities, DedupOutcome, Found, GroupSpec, KvHead, KvRoom, KvValue, LeaseRef,
    LeaseRequest, Leased, MessageStore, Page, ReadRequest, Receipt, RetainReport, SeekTo, Settle, SettleRefused,
    Settled, StoreError, TopicSpec, TopicStats, ValueTurn,
};
use crate::clock::Timestamp;
use crate::message::{GroupId, MessageId, Position, TopicId};

/// How long what is due in the broker's own store waits for a look at Redis, which may be silent for seconds.
const BESIDE_MAX: Duration = Duration::from_millis(20);

/// Which topics are in Redis. Cheap to clone; clones share one list. A topic does not move: none is ever taken off.
#[derive(Debug, Clone, Default)]
pub struct Homes(Arc<RwLock<HashMap<TopicId, bool>>>);

impl Homes {
    /// Where a topic is, by the catalog.
    pub fn set(&self, topic: TopicId, in_redis: bool) {
        if self.0.read().get(&topic) != Some(&in_redis) {
            self.0.write().insert(topic, in_redis);
        }
    }

    /// Found in Redis; of those that the catalog knows, it says where they are.
    fn found(&self, topics: &[TopicId]) {
        let mut homes = self.0.write();
        for topic in topics {
            homes.entry(*topic).or_insert(true);
        }
    }

    /// Whether it is.
    #[must_use]
    pub fn is_in_redis(&self, topic: TopicId) -> bool {
        self.0.read().get(&topic) == Some(&true)
    }
}

/// See the module.
pub struct RoutedStore {
    own: Arc<dyn MessageStore>,
    redis: Arc<dyn MessageStore>,
    homes: Homes,
    /// A look at Redis that has not ended.
    looking: Arc<tokio::sync::Mutex<()>>,
}

impl RoutedStore {
    /// Of the broker's own store and one in Redis, by `homes`.
    #[must_use]
    pub fn new(own: Arc<dyn MessageStore>, redis: Arc<dyn MessageStore>, homes: Homes) -> RoutedStore {
        RoutedStore { own, redis, homes, looking: Arc::default() }
    }

    fn of(&self, topic: TopicId) -> &dyn MessageStore {
        if self.homes.is_in_redis(topic) { &*self.redis } else { &*self.own }
    }

    /// By the topic that an id names; its 24 bits are those of one topic.
    fn of_id(&self, id: MessageId) -> &dyn MessageStore {
        self.of(id.topic())
    }
}

fn topic_of(settle: &Settle) -> TopicId {
    match &settle.lease {
        LeaseRef::Receipt { receipt, .. } => receipt.position.topic,
        LeaseRef::Holder { topic, .. } => *topic,
    }
}

#[async_trait]
impl MessageStore for RoutedStore {
    fn capabilities(&self) -> Capabilities {
        self.own.capabilities()
    }

    fn capabilities_of(&self, topic: TopicId) -> Capabilities {
        self.of(topic).capabilities()
    }

    async fn put_topic(&self, topic: TopicSpec) -> Result<(), StoreError> {
        self.of(topic.id).put_topic(topic).await
    }

    async fn put_topic_again(&self, topic: TopicSpec) -> Result<(), StoreError> {
        self.of(topic.id).put_topic_again(topic).await
    }

    async fn delete_topic(&self, topic: TopicId) -> Result<(), StoreError> {
        self.of(topic).delete_topic(topic).await
    }

    async fn topics(&self) -> Result<Vec<TopicId>, StoreError> {
        let mut topics = self.own.topics().await?;
        match self.redis.topics().await {
            Ok(there) => {
                self.homes.found(&there);
                topics.extend(there);
            }
            // While it is away nobody can say; what is in it is not missed for that.
            Err(error) => tracing::debug!(%error, "Redis does not tell its topics now"),
        }
        Ok(topics)
    }

    async fn put_group(&self, spec: GroupSpec) -> Result<(), StoreError> {
        self.of(spec.topic).put_group(spec).await
    }

    async fn delete_group(&self, topic: TopicId, group: GroupId) -> Result<(), StoreError> {
        self.of(topic).delete_group(topic, group).await
    }

    async fn groups(&self, topic: TopicId) -> Result<Vec<GroupId>, StoreError> {
        self.of(topic).groups(topic).await
    }

    async fn dedup_lookup(&self, topic: TopicId, key: &str) -> Result<Option<DedupOutcome>, StoreError> {
        self.of(topic).dedup_lookup(topic, key).await
    }

    async fn append(&self, batch: AppendBatch) -> Result<Vec<AppendOutcome>, StoreError> {
        let home = self.homes.is_in_redis(batch.topic);
        let elsewhere = |topic: TopicId| self.homes.is_in_redis(topic) != home;
        let emitted = batch.items.iter().flat_map(|item| &item.emitted).any(|(topic, ..)| elsewhere(*topic));
        if emitted || batch.replays.iter().any(|position| elsewhere(position.topic)) {
            // Where stages are set this is refused: what comes here all the same would be no unit.
            return Err(StoreError::Unsupported("a message and what is emitted with it are in one store"));
        }
        self.of(batch.topic).append(batch).await
    }

    async fn value_turn(&self, namespaces: Vec<Arc<str>>) -> Option<ValueTurn> {
        self.own.value_turn(namespaces).await
    }

    async fn kv_get(&self, namespace: &str, key: &str) -> Result<Option<KvValue>, StoreError> {
        self.own.kv_get(namespace, key).await
    }

    async fn kv_room(&self, namespace: &str, key: &str) -> Result<KvRoom, StoreError> {
        self.own.kv_room(namespace, key).await
    }

    async fn kv_heads(
        &self,
        after: Option<(Arc<str>, Arc<str>)>,
        limit: usize,
        head: usize,
    ) -> Result<Vec<KvHead>, StoreError> {
        self.own.kv_heads(after, limit, head).await
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Leased, StoreError> {
        self.of(request.topic).lease(request).await
    }

    async fn settle(&self, settles: Vec<Settle>) -> Result<Vec<Result<Settled, SettleRefused>>, StoreError> {
        let in_redis: Vec<bool> = settles.iter().map(|settle| self.homes.is_in_redis(topic_of(settle))).collect();
        if !in_redis.contains(&true) {
            return self.own.settle(settles).await;
        }
        if !in_redis.contains(&false) {
            return self.redis.settle(settles).await;
        }
        let (mut own, mut redis) = (Vec::new(), Vec::new());
        for (settle, there) in settles.into_iter().zip(&in_redis) {
            if *there { redis.push(settle) } else { own.push(settle) }
        }
        let redis = self.redis.settle(redis).await?;
        // The others have ended: that all of it is not done is not known to be so.
        let own = self.own.settle(own).await.map_err(|error| StoreError::OutcomeUnknown(error.to_string()))?;
        let (mut own, mut redis) = (own.into_iter(), redis.into_iter());
        let next = |there: &bool| if *there { redis.next() } else { own.next() };
        Ok(in_redis.iter().filter_map(next).collect())
    }

    async fn ended(&self, receipts: &[Receipt]) -> Result<Vec<Receipt>, StoreError> {
        let (in_redis, own): (Vec<Receipt>, Vec<Receipt>) =
            receipts.iter().partition(|receipt| self.homes.is_in_redis(receipt.position.topic));
        let mut ended = if own.is_empty() { Vec::new() } else { self.own.ended(&own).await? };
        if !in_redis.is_empty() {
            ended.extend(self.redis.ended(&in_redis).await?);
        }
        Ok(ended)
    }

    fn appended(&self, topic: TopicId) -> Option<watch::Receiver<u64>> {
        self.of(topic).appended(topic)
    }

    async fn get(&self, id: MessageId) -> Result<Option<Found>, StoreError> {
        self.of_id(id).get(id).await
    }

    async fn read(&self, request: ReadRequest) -> Result<Page, StoreError> {
        self.of(request.topic).read(request).await
    }

    async fn dead_letters(&self, topic: TopicId, after: Option<Position>, limit: usize) -> Result<Page, StoreError> {
        self.of(topic).dead_letters(topic, after, limit).await
    }

    async fn discard_dead_letters(&self, positions: Vec<Position>) -> Result<usize, StoreError> {
        let mut homes: BTreeMap<bool, Vec<Position>> = BTreeMap::new();
        for position in positions {
            homes.entry(self.homes.is_in_redis(position.topic)).or_default().push(position);
        }
        let mut gone = 0;
        for (in_redis, positions) in homes {
            let store = if in_redis { &self.redis } else { &self.own };
            gone += store.discard_dead_letters(positions).await?;
        }
        Ok(gone)
    }

    async fn seek(&self, topic: TopicId, group: GroupId, to: SeekTo) -> Result<(), StoreError> {
        self.of(topic).seek(topic, group, to).await
    }

    async fn put_snapshot(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<(), StoreError> {
        self.of(topic).put_snapshot(topic, group, name).await
    }

    async fn delete_snapshot(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<bool, StoreError> {
        self.of(topic).delete_snapshot(topic, group, name).await
    }

    async fn snapshots(&self, topic: TopicId, group: GroupId) -> Result<Vec<(Arc<str>, Timestamp)>, StoreError> {
        self.of(topic).snapshots(topic, group).await
    }

    async fn restore(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<bool, StoreError> {
        self.of(topic).restore(topic, group, name).await
    }

    async fn purge(&self, topic: TopicId, group: GroupId) -> Result<u64, StoreError> {
        self.of(topic).purge(topic, group).await
    }

    async fn erase(&self, id: MessageId) -> Result<bool, StoreError> {
        self.of_id(id).erase(id).await
    }

    async fn tick(&self) -> Result<Option<Timestamp>, StoreError> {
        // A Redis that does not answer keeps what is due elsewhere waiting for a moment at most; its own log tells of it.
        let beside = Arc::clone(&self.looking).try_lock_owned().ok().map(|looking| {
            let redis = Arc::clone(&self.redis);
            tokio::spawn(async move {
                let next = redis.tick().await;
                drop(looking);
                next
            })
        });
        let own = self.own.tick().await;
        let Some(beside) = beside else { return own };
        let there = match tokio::time::timeout(BESIDE_MAX, beside).await {
            Ok(Ok(Ok(next))) => next,
            Ok(Ok(Err(error))) => {
                tracing::debug!(%error, "what is due in Redis could not be done");
                None
            }
            _ => None,
        };
        own.map(|next| match (next, there) {
            (Some(next), Some(there)) => Some(next.min(there)),
            (next, there) => next.or(there),
        })
    }

    async fn retain(&self) -> Result<RetainReport, StoreError> {
        let own = self.own.retain().await?;
        let RetainReport { removed, expired, bytes } = match self.redis.retain().await {
            Ok(report) => report,
            Err(error) => {
                tracing::debug!(%error, "retention in Redis could not be enforced");
                RetainReport::default()
            }
        };
        Ok(RetainReport { removed: own.removed + removed, expired: own.expired + expired, bytes: own.bytes + bytes })
    }

    async fn stats(&self, topic: TopicId) -> Result<TopicStats, StoreError> {
        self.of(topic).stats(topic).await
    }

    /// The broker serves its other topics whatever Redis does.
    fn health(&self) -> Result<(), String> {
        self.own.health()
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.redis.close().await?;
        self.own.close().await
    }
}
