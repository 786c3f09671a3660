//! The message store in Redis, for topics that are fast and short-lived: a stream a partition, and beside it what the groups have
//! open. Invariant: what must hold between brokers is decided by one script, which Redis runs alone, by its own clock; memory here
//! holds only what may be outdated, and settings, from which an emptied Redis is made anew. Never keeps anything per settled message.
//!
//! What it stores is as durable as its server says ([`Capabilities::durability`]). It has no lanes, schedule, order, values, and nothing
//! that is to happen exactly or at most once.

mod append;
mod bury;
mod codec;
mod control;
mod lease;
mod look;
mod script;
mod server;
mod settings;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge, Registry};
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinHandle;

use self::script::{Args, Reply, Script};
use self::server::Server;
use self::settings::Known;
use super::{
    AppendBatch, AppendOutcome, Capabilities, DedupOutcome, Found, GroupSpec, KvHead, KvRoom, KvValue, LeaseRequest,
    Leased, MessageStore, Page, ReadRequest, Receipt, RetainReport, SeekTo, Settle, SettleRefused, Settled, StoreError,
    TopicSpec, TopicStats,
};
use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::entropy::Entropy;
use crate::message::{GroupId, MessageId, Position, TopicId};
use crate::redis::link::Address;
use crate::redis::{RedisError, Trouble};

/// How a broker opens the store.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// Where Redis is.
    pub settings: config::Redis,
    /// Tells this store from all others in the same Redis.
    pub name: String,
    /// The broker's name: what it had leased ends when it opens the store again.
    pub node: Arc<str>,
    /// Its clock; the store goes by the server's, moved as far as this one was.
    pub clock: Clock,
    /// For marks, and what lies between two tries.
    pub entropy: Entropy,
}

/// See the module.
pub struct RedisStore {
    shared: Arc<Shared>,
    keeping: JoinHandle<()>,
}

/// What all parts of the store use.
struct Shared {
    server: Arc<Server>,
    clock: Clock,
    node: Arc<str>,
    /// This opening; asked of Redis by the first call that it answers.
    epoch: OnceCell<i64>,
    next_grant: AtomicU64,
    /// What there is, and who is to be told of it.
    known: Mutex<Known>,
    /// Settings are changed and read anew by one at a time.
    editing: tokio::sync::Mutex<()>,
    /// Told of each topic that has something new by what was done here.
    others: OnceLock<Box<dyn Fn(TopicId) + Send + Sync>>,
    /// How often Redis was found without what it had held.
    losses: IntCounter,
    /// What was heard of the topics that are waited for here, at the last look.
    heard: Mutex<HashMap<TopicId, String>>,
    entropy: Entropy,
    closed: AtomicBool,
}

impl RedisStore {
    /// Opens the store. One whose Redis is not there is opened as well, and serves once it is.
    ///
    /// # Errors
    /// When Redis is there and must not be used as it is.
    pub async fn open(options: RedisOptions) -> Result<RedisStore, RedisError> {
        let address = Address::of(&options.settings)?;
        // One hash tag: in a Cluster, all of it is on one node, and so can be one unit.
        let server = Server::new(address, format!("sluice:{{{}}}:m", options.name), options.entropy.clone());
        match server.begin().await {
            Ok(()) => {}
            Err(Trouble::Away(why)) => {
                tracing::warn!(redis = server.place(), why, "Redis is not there yet; topics in it wait until it is");
            }
            Err(Trouble::Refused(why)) => return Err(RedisError::Refused { place: server.place(), why }),
        }
        let losses =
            IntCounter::new("sluice_redis_store_losses_total", "How often Redis was found without what it had held.")?;
        let shared = Arc::new(Shared {
            server: Arc::clone(&server),
            clock: options.clock,
            node: options.node,
            epoch: OnceCell::new(),
            next_grant: AtomicU64::new(0),
            known: Mutex::default(),
            editing: tokio::sync::Mutex::default(),
            others: OnceLock::new(),
            losses,
            heard: Mutex::default(),
            entropy: options.entropy,
            closed: AtomicBool::new(false),
        });
        let store = RedisStore { shared, keeping: tokio::spawn(server.keep()) };
        if let Err(error) = store.shared.opened().await {
            tracing::warn!(%error, "Redis could not be asked for the topics in it; it is asked again");
        }
        Ok(store)
    }

    /// Has `tell` called for each topic that has something new by what was done here; it must not wait. Once.
    pub fn tell_others(&self, tell: impl Fn(TopicId) + Send + Sync + 'static) {
        let _first = self.shared.others.set(Box::new(tell));
    }

    /// Another broker says that there is something new in a topic; whether somebody waits for that here.
    pub fn hear_of(&self, topic: TopicId) -> bool {
        self.shared.wake_here(topic)
    }

    /// Registers its figures.
    ///
    /// # Errors
    /// When two parts register one metric.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        let up = IntGauge::new(
            "sluice_redis_store_up",
            "Whether the Redis that topics are in serves them: 1, or 0 while they wait for it.",
        )?;
        registry.register(Box::new(up.clone()))?;
        registry.register(Box::new(self.shared.losses.clone()))?;
        self.shared.server.watch(move |serves| up.set(i64::from(serves)));
        Ok(())
    }

    /// How often Redis was found without what it had held.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.shared.losses.get()
    }

    /// Ends what the broker of this name has leased to send it itself: it is there no more.
    ///
    /// # Errors
    /// `Unavailable`; its leases end at their deadlines then.
    pub async fn end_sending(&self, node: &str) -> Result<(), StoreError> {
        self.shared.opened().await?;
        self.shared.end_sending(node).await
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

impl Shared {
    /// The time as scripts are told it.
    fn time(&self) -> String {
        match self.clock.fixed_now() {
            Some(Timestamp(now)) => format!("@{now}"),
            None => self.clock.ahead_ms().to_string(),
        }
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Unavailable("the store is closed".to_owned()));
        }
        Ok(())
    }

    /// Runs a script; what it refuses is an error.
    async fn run(&self, script: &'static Script, args: &Args) -> Result<Reply, StoreError> {
        let (word, mut reply) = self.said(script, args).await?;
        match word.as_str() {
            "ok" => Ok(reply),
            "no_topic" => Err(StoreError::NoTopic),
            "no_group" => Err(StoreError::NoGroup),
            "invalid" => Err(StoreError::Invalid(reply.text()?)),
            "stale" => Err(StoreError::StaleRevision { current: reply.count()? }),
            other => Err(script::strange(script.name, &format!("the word '{other}'"))),
        }
    }

    /// The same with its first word as it is.
    async fn said(&self, script: &'static Script, args: &Args) -> Result<(String, Reply), StoreError> {
        let mut reply = self.server.run(script, args).await?;
        Ok((reply.text()?, reply))
    }

    /// For a call from outside: not before the store is open, not once it is closed, and where Redis knows nothing of a topic that is
    /// known here, again after it was told.
    async fn call(&self, topic: TopicId, script: &'static Script, args: &Args) -> Result<Reply, StoreError> {
        self.check_open()?;
        self.opened().await?;
        match self.run(script, args).await {
            Err(StoreError::NoTopic | StoreError::NoGroup) if self.is_known(topic) => {
                self.catch_up().await?;
                self.run(script, args).await
            }
            other => other,
        }
    }

    /// What a script has made leasable.
    fn wake_all(&self, mut topics: Reply) -> Result<(), StoreError> {
        while !topics.is_empty() {
            self.wake(codec::topic(&topics.text()?)?);
        }
        Ok(())
    }

    /// Tells all who wait for messages of a topic, on this broker and on the others.
    fn wake(&self, topic: TopicId) {
        self.wake_here(topic);
        if let Some(others) = self.others.get() {
            others(topic);
        }
    }

    /// Tells those who wait here; whether there are any.
    fn wake_here(&self, topic: TopicId) -> bool {
        self.known.lock().wake(topic)
    }
}

const NO_VALUES: &str = "values of plugins are not kept in Redis";

#[async_trait]
impl MessageStore for RedisStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: self.shared.server.durability(),
            lanes: false,
            schedule: false,
            ordered: false,
            exactly_once: false,
            kv: false,
        }
    }

    async fn put_topic(&self, topic: TopicSpec) -> Result<(), StoreError> {
        self.shared.put_topic(topic, None).await
    }

    async fn put_topic_again(&self, topic: TopicSpec) -> Result<(), StoreError> {
        self.shared.put_topic(topic, Some(0)).await
    }

    async fn delete_topic(&self, topic: TopicId) -> Result<(), StoreError> {
        self.shared.delete_topic(topic).await
    }

    async fn topics(&self) -> Result<Vec<TopicId>, StoreError> {
        self.shared.topics().await
    }

    async fn put_group(&self, spec: GroupSpec) -> Result<(), StoreError> {
        self.shared.put_group(spec).await
    }

    async fn delete_group(&self, topic: TopicId, group: GroupId) -> Result<(), StoreError> {
        self.shared.delete_group(topic, group).await
    }

    async fn groups(&self, topic: TopicId) -> Result<Vec<GroupId>, StoreError> {
        self.shared.groups(topic).await
    }

    async fn dedup_lookup(&self, topic: TopicId, key: &str) -> Result<Option<DedupOutcome>, StoreError> {
        self.shared.dedup_lookup(topic, key).await
    }

    async fn append(&self, batch: AppendBatch) -> Result<Vec<AppendOutcome>, StoreError> {
        self.shared.append(batch).await
    }

    async fn kv_get(&self, _: &str, _: &str) -> Result<Option<KvValue>, StoreError> {
        Err(StoreError::Unsupported(NO_VALUES))
    }

    async fn kv_room(&self, _: &str, _: &str) -> Result<KvRoom, StoreError> {
        Err(StoreError::Unsupported(NO_VALUES))
    }

    async fn kv_heads(&self, _: Option<(Arc<str>, Arc<str>)>, _: usize, _: usize) -> Result<Vec<KvHead>, StoreError> {
        // There are none to be listed.
        Ok(Vec::new())
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Leased, StoreError> {
        self.shared.lease(&request).await
    }

    async fn settle(&self, settles: Vec<Settle>) -> Result<Vec<Result<Settled, SettleRefused>>, StoreError> {
        self.shared.settle(&settles).await
    }

    async fn ended(&self, receipts: &[Receipt]) -> Result<Vec<Receipt>, StoreError> {
        self.shared.ended(receipts).await
    }

    fn appended(&self, topic: TopicId) -> Option<watch::Receiver<u64>> {
        self.shared.known.lock().told(topic)
    }

    async fn get(&self, id: MessageId) -> Result<Option<Found>, StoreError> {
        self.shared.get(id).await
    }

    async fn read(&self, request: ReadRequest) -> Result<Page, StoreError> {
        self.shared.read(&request).await
    }

    async fn dead_letters(&self, topic: TopicId, after: Option<Position>, limit: usize) -> Result<Page, StoreError> {
        self.shared.dead_letters(topic, after, limit).await
    }

    async fn discard_dead_letters(&self, positions: Vec<Position>) -> Result<usize, StoreError> {
        self.shared.discard_dead_letters(&positions).await
    }

    async fn seek(&self, topic: TopicId, group: GroupId, to: SeekTo) -> Result<(), StoreError> {
        self.shared.seek(topic, group, to).await
    }

    async fn put_snapshot(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<(), StoreError> {
        self.shared.put_snapshot(topic, group, &name).await
    }

    async fn delete_snapshot(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<bool, StoreError> {
        self.shared.delete_snapshot(topic, group, &name).await
    }

    async fn snapshots(&self, topic: TopicId, group: GroupId) -> Result<Vec<(Arc<str>, Timestamp)>, StoreError> {
        self.shared.snapshots(topic, group).await
    }

    async fn restore(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<bool, StoreError> {
        self.shared.restore(topic, group, &name).await
    }

    async fn purge(&self, topic: TopicId, group: GroupId) -> Result<u64, StoreError> {
        self.shared.purge(topic, group).await
    }

    async fn erase(&self, id: MessageId) -> Result<bool, StoreError> {
        self.shared.erase(id).await
    }

    async fn tick(&self) -> Result<Option<Timestamp>, StoreError> {
        self.shared.check_open()?;
        self.shared.opened().await?;
        self.shared.tick().await
    }

    async fn retain(&self) -> Result<RetainReport, StoreError> {
        self.shared.check_open()?;
        self.shared.opened().await?;
        self.shared.retain().await
    }

    async fn stats(&self, topic: TopicId) -> Result<TopicStats, StoreError> {
        self.shared.stats(topic).await
    }

    fn health(&self) -> Result<(), String> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Err("the store is closed".to_owned());
        }
        self.shared.server.fault().map_or(Ok(()), Err)
    }

    async fn close(&self) -> Result<(), StoreError> {
        // What it has answered is stored.
        self.shared.closed.store(true, Ordering::Release);
        self.keeping.abort();
        Ok(())
    }
}
