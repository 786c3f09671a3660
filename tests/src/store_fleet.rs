//! Several brokers' stores over one database, as one store. Invariant: each call goes to another of them than the one before,
//! so that whatever one broker has done must hold for the next. Decides nothing itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use sluice::clock::Timestamp;
use sluice::message::{GroupId, MessageId, Position, TopicId};
use sluice::store::{
    AppendBatch, AppendOutcome, Capabilities, DedupOutcome, Found, GroupSpec, KvHead, KvRoom, KvValue, LeaseRequest,
    Leased, MessageStore, Page, ReadRequest, Receipt, RetainReport, SeekTo, Settle, SettleRefused, Settled, StoreError,
    TopicSpec, TopicStats, ValueTurn,
};
use tokio::sync::watch;

/// See the module.
pub struct Fleet {
    brokers: Vec<Arc<dyn MessageStore>>,
    turn: AtomicUsize,
    told: Mutex<HashMap<TopicId, Told>>,
}

/// Who waits for messages of a topic, and what each broker tells of it.
struct Told {
    all: watch::Sender<u64>,
    each: Vec<watch::Receiver<u64>>,
}

impl Fleet {
    /// Of these brokers.
    #[must_use]
    pub fn new(brokers: Vec<Arc<dyn MessageStore>>) -> Fleet {
        Fleet { brokers, turn: AtomicUsize::new(0), told: Mutex::default() }
    }

    fn next(&self) -> &dyn MessageStore {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        &*self.brokers[turn % self.brokers.len()]
    }

    /// Passes on what brokers have told.
    fn passed_on<T>(&self, result: T) -> T {
        for told in self.told.lock().values_mut() {
            let mut news = false;
            for receiver in &mut told.each {
                news |= receiver.has_changed().unwrap_or(false);
                receiver.borrow_and_update();
            }
            if news {
                told.all.send_modify(|count| *count += 1);
            }
        }
        result
    }
}

#[async_trait]
impl MessageStore for Fleet {
    fn capabilities(&self) -> Capabilities {
        self.next().capabilities()
    }

    async fn put_topic(&self, topic: TopicSpec) -> Result<(), StoreError> {
        self.passed_on(self.next().put_topic(topic).await)?;
        // As soon as each of them looks the next time.
        for broker in &self.brokers {
            broker.tick().await?;
        }
        Ok(())
    }

    async fn delete_topic(&self, topic: TopicId) -> Result<(), StoreError> {
        self.told.lock().remove(&topic);
        self.next().delete_topic(topic).await
    }

    async fn topics(&self) -> Result<Vec<TopicId>, StoreError> {
        self.next().topics().await
    }

    async fn put_group(&self, spec: GroupSpec) -> Result<(), StoreError> {
        self.passed_on(self.next().put_group(spec).await)
    }

    async fn delete_group(&self, topic: TopicId, group: GroupId) -> Result<(), StoreError> {
        self.passed_on(self.next().delete_group(topic, group).await)
    }

    async fn groups(&self, topic: TopicId) -> Result<Vec<GroupId>, StoreError> {
        self.next().groups(topic).await
    }

    async fn dedup_lookup(&self, topic: TopicId, key: &str) -> Result<Option<DedupOutcome>, StoreError> {
        self.next().dedup_lookup(topic, key).await
    }

    async fn append(&self, batch: AppendBatch) -> Result<Vec<AppendOutcome>, StoreError> {
        self.passed_on(self.next().append(batch).await)
    }

    async fn value_turn(&self, namespaces: Vec<Arc<str>>) -> Option<ValueTurn> {
        self.next().value_turn(namespaces).await
    }

    async fn kv_get(&self, namespace: &str, key: &str) -> Result<Option<KvValue>, StoreError> {
        self.next().kv_get(namespace, key).await
    }

    async fn kv_room(&self, namespace: &str, key: &str) -> Result<KvRoom, StoreError> {
        self.next().kv_room(namespace, key).await
    }

    async fn kv_heads(
        &self,
        after: Option<(Arc<str>, Arc<str>)>,
        limit: usize,
        head: usize,
    ) -> Result<Vec<KvHead>, StoreError> {
        self.next().kv_heads(after, limit, head).await
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Leased, StoreError> {
        self.passed_on(self.next().lease(request).await)
    }

    async fn settle(&self, settles: Vec<Settle>) -> Result<Vec<Result<Settled, SettleRefused>>, StoreError> {
        self.passed_on(self.next().settle(settles).await)
    }

    async fn ended(&self, receipts: &[Receipt]) -> Result<Vec<Receipt>, StoreError> {
        self.next().ended(receipts).await
    }

    fn appended(&self, topic: TopicId) -> Option<watch::Receiver<u64>> {
        let each: Option<Vec<_>> = self.brokers.iter().map(|broker| broker.appended(topic)).collect();
        let each = each?;
        let mut told = self.told.lock();
        Some(told.entry(topic).or_insert_with(|| Told { all: watch::channel(0).0, each }).all.subscribe())
    }

    async fn get(&self, id: MessageId) -> Result<Option<Found>, StoreError> {
        self.next().get(id).await
    }

    async fn read(&self, request: ReadRequest) -> Result<Page, StoreError> {
        self.next().read(request).await
    }

    async fn dead_letters(&self, topic: TopicId, after: Option<Position>, limit: usize) -> Result<Page, StoreError> {
        self.next().dead_letters(topic, after, limit).await
    }

    async fn discard_dead_letters(&self, positions: Vec<Position>) -> Result<usize, StoreError> {
        self.passed_on(self.next().discard_dead_letters(positions).await)
    }

    async fn seek(&self, topic: TopicId, group: GroupId, to: SeekTo) -> Result<(), StoreError> {
        self.passed_on(self.next().seek(topic, group, to).await)
    }

    async fn put_snapshot(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<(), StoreError> {
        self.next().put_snapshot(topic, group, name).await
    }

    async fn delete_snapshot(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<bool, StoreError> {
        self.next().delete_snapshot(topic, group, name).await
    }

    async fn snapshots(&self, topic: TopicId, group: GroupId) -> Result<Vec<(Arc<str>, Timestamp)>, StoreError> {
        self.next().snapshots(topic, group).await
    }

    async fn restore(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<bool, StoreError> {
        self.passed_on(self.next().restore(topic, group, name).await)
    }

    async fn purge(&self, topic: TopicId, group: GroupId) -> Result<u64, StoreError> {
        self.passed_on(self.next().purge(topic, group).await)
    }

    async fn erase(&self, id: MessageId) -> Result<bool, StoreError> {
        self.passed_on(self.next().erase(id).await)
    }

    async fn tick(&self) -> Result<Option<Timestamp>, StoreError> {
        self.passed_on(self.next().tick().await)
    }

    async fn retain(&self) -> Result<RetainReport, StoreError> {
        self.passed_on(self.next().retain().await)
    }

    async fn stats(&self, topic: TopicId) -> Result<TopicStats, StoreError> {
        self.next().stats(topic).await
    }

    fn health(&self) -> Result<(), String> {
        self.next().health()
    }

    async fn close(&self) -> Result<(), StoreError> {
        for broker in &self.brokers {
            broker.close().await?;
        }
        Ok(())
    }
}
