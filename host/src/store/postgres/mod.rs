//! The message store of a fleet: PostgreSQL is the log and the truth, and any broker serves any request. Invariant: what
//! must hold between brokers is decided under a row's lock, in one transaction, by the database's clock; memory holds only
//! what may be outdated. Never updates a row per message on the usual way: an append writes its messages and one row a
//! partition, a lease one row a partition that it takes from and the cursors that it has looked at, a settlement the lease's row.
//!
//! **Locks** are taken in one order, so that few wait in a circle: turns of values, then `cursors`, then `grants`, then
//! `store_partitions`, then `value_spaces`, each in the order of its key. Those that still do (a replay beside a consumer of dead letters)
//! are ended by the database and done again.

mod apart;
mod append;
mod choose;
mod control;
mod cursor;
mod ends;
mod expire;
mod find;
mod grant;
mod lease;
mod log;
mod moving;
mod read;
mod retention;
mod settle;
mod sql;
mod stats;
mod usual;
mod values;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::{Semaphore, watch};

use self::sql::{Tx, failed};
use super::{
    AppendBatch, AppendOutcome, Capabilities, DedupOutcome, Found, GroupSpec, KvHead, KvRoom, KvValue, LeaseRequest,
    Leased, MessageStore, Page, ReadRequest, Receipt, RetainReport, SeekTo, Settle, SettleRefused, Settled, StoreError,
    TopicSpec, TopicStats, ValueTurn,
};
use crate::clock::{Clock, Timestamp};
use crate::database::desk::Desk;
use crate::message::{GroupId, MessageId, Position, TopicId};

/// How a broker opens the store.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Where the database is.
    pub connect: PgConnectOptions,
    /// Connections at most.
    pub connections_max: u32,
    /// The broker's name in the fleet: what it had leased ends when it opens the store again.
    pub node: Arc<str>,
    /// Its clock; the store goes by the database's, moved as far as this one was.
    pub clock: Clock,
}

/// How long a call waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than the server takes for a statement before it gives up (10 s): then it does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The same for what goes through a whole topic.
const SLOW_ANSWER_TIMEOUT: Duration = Duration::from_secs(630);

/// What a broker has locked when it falls silent is free after some seconds, for the others.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = '10s';
    SET LOCAL idle_in_transaction_session_timeout = '5s'";
/// The same for who has more to do than what is locked.
const BEGIN_BRIEF: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = '1s';
    SET LOCAL idle_in_transaction_session_timeout = '5s'";
/// And for who waits for one topic alone, or for the turn of its values.
const BEGIN_PATIENT: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = '3s';
    SET LOCAL idle_in_transaction_session_timeout = '5s'";
const BEGIN_SLOW: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = '600s';
    SET LOCAL idle_in_transaction_session_timeout = '5s'";
/// One state of the tables, for as long as it lasts.
const BEGIN_LOOK: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '10s';
    SET LOCAL idle_in_transaction_session_timeout = '5s'";

/// One connection of so many may be kept, or waited for, for a turn of values: the others are for the batches that it is kept for.
const TURNS_SHARE: usize = 4;

/// Attempts of one call.
const ATTEMPTS_MAX: u32 = 5;

/// Calls what may have to be called again: it met other brokers' locks in a circle, or missed a table.
macro_rules! repeated {
    ($shared:expr, $call:expr) => {{
        $shared.check_open()?;
        let mut left = ATTEMPTS_MAX;
        loop {
            match $call.await {
                Err(error) if left > 1 && $shared.may_repeat(&error) => left -= 1,
                result => break $shared.noted(result),
            }
        }
    }};
}

/// See the module.
pub struct PostgresStore {
    shared: Shared,
}

/// What all parts of the store use.
struct Shared {
    desk: Arc<Desk>,
    clock: Clock,
    epoch: i64,
    next_grant: AtomicU64,
    next_slot: AtomicI64,
    /// Topics that are known here, and who is to be told of them.
    topics: Mutex<HashMap<TopicId, watch::Sender<u64>>>,
    /// Told of each topic that has something new by what was done here.
    others: OnceLock<Box<dyn Fn(TopicId) + Send + Sync>>,
    /// Partitions of `messages` that are known to be there.
    ranges: Mutex<std::collections::BTreeSet<(i16, i64)>>,
    /// Turns of values that are held here, each with a connection.
    turns: Arc<Semaphore>,
    /// What was heard of the topics that are waited for here, at the last look.
    heard: Mutex<expire::Heard>,
    /// Topics whose trouble is not to be all topics'.
    aside: Mutex<apart::Aside>,
    fault: Mutex<Option<String>>,
    closed: AtomicBool,
}

impl PostgresStore {
    /// Opens the store in a database whose tables are there. What this node had leased before has ended.
    ///
    /// # Errors
    /// `Unavailable` when the database cannot be reached.
    pub async fn open(options: PostgresOptions) -> Result<PostgresStore, StoreError> {
        let desk = Desk::new(options.connect, options.connections_max, ACQUIRE_TIMEOUT);
        let node = options.node.to_string();
        let mut shared = Shared {
            desk,
            clock: options.clock,
            epoch: 0,
            next_grant: AtomicU64::new(0),
            next_slot: AtomicI64::new(0),
            topics: Mutex::default(),
            others: OnceLock::new(),
            ranges: Mutex::default(),
            turns: Arc::new(Semaphore::new(options.connections_max as usize / TURNS_SHARE)),
            heard: Mutex::default(),
            aside: Mutex::default(),
            fault: Mutex::new(None),
            closed: AtomicBool::new(false),
        };
        let mut tx = shared.begin().await?;
        says_what_is_stored(&mut tx).await?;
        shared.epoch = sqlx::query_scalar("INSERT INTO store_openings (node) VALUES ($1) RETURNING epoch")
            .bind(node.clone())
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        sql::commit(tx).await?;
        for topic in shared.known_topics().await? {
            shared.know(topic);
        }
        shared.end_orphans(node).await?;
        Ok(PostgresStore { shared })
    }

    /// Ends what the broker of this name has leased to send it itself: it is there no more.
    ///
    /// # Errors
    /// `Unavailable`; its leases end at their deadlines then.
    pub async fn end_sending(&self, node: &str) -> Result<(), StoreError> {
        repeated!(self.shared, self.shared.end_sending(node))
    }

    /// Has `tell` called for each topic that has something new by what was done here, after its commit; it must not wait. Once.
    pub fn tell_others(&self, tell: impl Fn(TopicId) + Send + Sync + 'static) {
        let _first = self.shared.others.set(Box::new(tell));
    }

    /// Another broker says that there is something new in a topic; whether somebody waits for that here.
    pub fn hear_of(&self, topic: TopicId) -> bool {
        self.shared.wake_here(topic)
    }
}

/// Whether a commit that is answered is on the disk: role, database or server may be set to answer before that.
async fn says_what_is_stored(tx: &mut Tx) -> Result<(), StoreError> {
    let (commit, fsync, standbys): (String, String, String) = sqlx::query_as(
        "SELECT current_setting('synchronous_commit'), current_setting('fsync'), current_setting('synchronous_standby_names')",
    )
    .fetch_one(&mut **tx)
    .await
    .map_err(failed)?;
    if commit == "off" {
        let why = "synchronous_commit is off for this role or database, so that what is acknowledged could be lost: set it to \
                   on (ALTER ROLE … SET synchronous_commit = on)";
        return Err(StoreError::Invalid(why.to_owned()));
    }
    if commit == "local" && !standbys.is_empty() {
        tracing::warn!(
            "synchronous_commit is local for this role or database, though PostgreSQL has synchronous standbys: a fail-over may lose \
             what was acknowledged"
        );
    }
    if fsync == "off" {
        tracing::warn!("PostgreSQL runs with fsync = off: a crash of its machine loses what was acknowledged");
    }
    Ok(())
}

impl Shared {
    /// Begins a transaction; without a commit it never was.
    async fn begin(&self) -> Result<Tx, StoreError> {
        Tx::begin(&self.desk, BEGIN, ANSWER_TIMEOUT).await.map_err(failed)
    }

    /// The same for who waits for no lock for long.
    async fn begin_brief(&self) -> Result<Tx, StoreError> {
        Tx::begin(&self.desk, BEGIN_BRIEF, ANSWER_TIMEOUT).await.map_err(failed)
    }

    /// Longer for one topic, which may be no more than busy, than for all.
    async fn begin_for(&self, topics: &apart::Topics) -> Result<Tx, StoreError> {
        if topics.only.is_none() {
            return self.begin_brief().await;
        }
        self.begin_patient().await
    }

    async fn begin_patient(&self) -> Result<Tx, StoreError> {
        Tx::begin(&self.desk, BEGIN_PATIENT, ANSWER_TIMEOUT).await.map_err(failed)
    }

    /// The same for what goes through a whole topic.
    async fn begin_slow(&self) -> Result<Tx, StoreError> {
        Tx::begin(&self.desk, BEGIN_SLOW, SLOW_ANSWER_TIMEOUT).await.map_err(failed)
    }

    /// Begins one that only reads, one state of the tables.
    async fn look(&self) -> Result<Tx, StoreError> {
        Tx::begin(&self.desk, BEGIN_LOOK, ANSWER_TIMEOUT).await.map_err(failed)
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Unavailable("the store is closed".to_owned()));
        }
        Ok(())
    }

    /// What a call came to, remembered for who asks for the store's health.
    fn noted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        match &result {
            Ok(_) => *self.fault.lock() = None,
            Err(StoreError::Unavailable(why) | StoreError::OutcomeUnknown(why)) => {
                *self.fault.lock() = Some(why.clone())
            }
            Err(_) => {}
        }
        result
    }

    fn know(&self, topic: TopicId) {
        self.topics.lock().entry(topic).or_insert_with(|| watch::channel(0).0);
    }

    fn forget(&self, topic: TopicId) {
        self.topics.lock().remove(&topic);
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
        let topics = self.topics.lock();
        let Some(told) = topics.get(&topic) else { return false };
        told.send_modify(|count| *count += 1);
        told.receiver_count() > 0
    }
}

#[async_trait]
impl MessageStore for PostgresStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: "postgres",
            lanes: true,
            schedule: true,
            ordered: true,
            exactly_once: true,
            kv: true,
        }
    }

    async fn put_topic(&self, topic: TopicSpec) -> Result<(), StoreError> {
        repeated!(self.shared, self.shared.put_topic(&topic))
    }

    async fn delete_topic(&self, topic: TopicId) -> Result<(), StoreError> {
        repeated!(self.shared, self.shared.delete_topic(topic))
    }

    async fn topics(&self) -> Result<Vec<TopicId>, StoreError> {
        self.shared.check_open()?;
        let topics = self.shared.noted(self.shared.known_topics().await)?;
        // Whoever asks may want to be told of them: other brokers make topics, too.
        topics.iter().for_each(|topic| self.shared.know(*topic));
        Ok(topics)
    }

    async fn put_group(&self, spec: GroupSpec) -> Result<(), StoreError> {
        repeated!(self.shared, self.shared.put_group(&spec))
    }

    async fn delete_group(&self, topic: TopicId, group: GroupId) -> Result<(), StoreError> {
        repeated!(self.shared, self.shared.delete_group(topic, group))
    }

    async fn groups(&self, topic: TopicId) -> Result<Vec<GroupId>, StoreError> {
        self.shared.check_open()?;
        self.shared.noted(self.shared.groups(topic).await)
    }

    async fn dedup_lookup(&self, topic: TopicId, key: &str) -> Result<Option<DedupOutcome>, StoreError> {
        self.shared.check_open()?;
        self.shared.noted(self.shared.dedup_lookup(topic, key).await)
    }

    async fn append(&self, batch: AppendBatch) -> Result<Vec<AppendOutcome>, StoreError> {
        let batch = append::encoded(batch)?;
        repeated!(self.shared, self.shared.append(&batch))
    }

    async fn value_turn(&self, namespaces: Vec<Arc<str>>) -> Option<ValueTurn> {
        self.shared.value_turn(namespaces).await
    }

    async fn kv_get(&self, namespace: &str, key: &str) -> Result<Option<KvValue>, StoreError> {
        self.shared.check_open()?;
        self.shared.noted(self.shared.kv_get(namespace, key).await)
    }

    async fn kv_room(&self, namespace: &str, key: &str) -> Result<KvRoom, StoreError> {
        self.shared.check_open()?;
        self.shared.noted(self.shared.kv_room(namespace, key).await)
    }

    async fn kv_heads(
        &self,
        after: Option<(Arc<str>, Arc<str>)>,
        limit: usize,
        head: usize,
    ) -> Result<Vec<KvHead>, StoreError> {
        self.shared.check_open()?;
        self.shared.noted(self.shared.kv_heads(after, limit, head).await)
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Leased, StoreError> {
        repeated!(self.shared, self.shared.lease(&request))
    }

    async fn settle(&self, settles: Vec<Settle>) -> Result<Vec<Result<Settled, SettleRefused>>, StoreError> {
        repeated!(self.shared, self.shared.settle(&settles))
    }

    async fn ended(&self, receipts: &[Receipt]) -> Result<Vec<Receipt>, StoreError> {
        repeated!(self.shared, self.shared.ended(receipts))
    }

    fn appended(&self, topic: TopicId) -> Option<watch::Receiver<u64>> {
        self.shared.topics.lock().get(&topic).map(watch::Sender::subscribe)
    }

    async fn get(&self, id: MessageId) -> Result<Option<Found>, StoreError> {
        self.shared.check_open()?;
        self.shared.noted(self.shared.get(id).await)
    }

    async fn read(&self, request: ReadRequest) -> Result<Page, StoreError> {
        self.shared.check_open()?;
        self.shared.noted(self.shared.read(request).await)
    }

    async fn dead_letters(&self, topic: TopicId, after: Option<Position>, limit: usize) -> Result<Page, StoreError> {
        self.shared.check_open()?;
        self.shared.noted(self.shared.dead_letters(topic, after, limit).await)
    }

    async fn discard_dead_letters(&self, positions: Vec<Position>) -> Result<usize, StoreError> {
        repeated!(self.shared, self.shared.discard_dead_letters(&positions))
    }

    async fn seek(&self, topic: TopicId, group: GroupId, to: SeekTo) -> Result<(), StoreError> {
        repeated!(self.shared, self.shared.seek(topic, group, to))
    }

    async fn put_snapshot(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<(), StoreError> {
        repeated!(self.shared, self.shared.put_snapshot(topic, group, &name))
    }

    async fn delete_snapshot(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<bool, StoreError> {
        self.shared.check_open()?;
        self.shared.noted(self.shared.delete_snapshot(topic, group, name).await)
    }

    async fn snapshots(&self, topic: TopicId, group: GroupId) -> Result<Vec<(Arc<str>, Timestamp)>, StoreError> {
        self.shared.check_open()?;
        self.shared.noted(self.shared.snapshots(topic, group).await)
    }

    async fn restore(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<bool, StoreError> {
        repeated!(self.shared, self.shared.restore(topic, group, &name))
    }

    async fn purge(&self, topic: TopicId, group: GroupId) -> Result<u64, StoreError> {
        repeated!(self.shared, self.shared.purge(topic, group))
    }

    async fn erase(&self, id: MessageId) -> Result<bool, StoreError> {
        repeated!(self.shared, self.shared.erase(id))
    }

    async fn tick(&self) -> Result<Option<Timestamp>, StoreError> {
        repeated!(self.shared, self.shared.tick())
    }

    async fn retain(&self) -> Result<RetainReport, StoreError> {
        repeated!(self.shared, self.shared.retain())
    }

    async fn stats(&self, topic: TopicId) -> Result<TopicStats, StoreError> {
        self.shared.check_open()?;
        self.shared.noted(self.shared.stats(topic).await)
    }

    fn health(&self) -> Result<(), String> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Err("the store is closed".to_owned());
        }
        self.shared.fault.lock().clone().map_or(Ok(()), Err)
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.desk.close().await;
        Ok(())
    }
}
