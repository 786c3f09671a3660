//! The engines that the store's suites run over. Invariant: every value has data of its own, removed with it. Says
//! nothing about what a store must do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use sluice::catalog::Catalog;
use sluice::clock::Clock;
use sluice::entropy::Entropy;
use sluice::message::TopicId;
use sluice::offline::moving::{compare_messages, copy_messages};
use sluice::store::embedded::{Drive, EmbeddedLimits, EmbeddedOptions, EmbeddedStore, OpenError, OpenReport, Torn};
use sluice::store::moving::Movable;
use sluice::store::postgres::{PostgresOptions, PostgresStore};
use sluice::store::redis::{RedisOptions, RedisStore};
use sluice::store::{MessageStore, Page, ReadFrom, ReadRequest, StoreError};
use sqlx::postgres::PgConnectOptions;

use crate::servers::{Pooler, Postgres, Redis};
use crate::store_bed::Backend;
use crate::store_disk::{Disk, Fault};
use crate::store_fleet::Fleet;

/// The embedded store in a folder of the real disk. Between two openings nothing is lost, as when a process is dropped.
pub struct OnDisk {
    dir: tempfile::TempDir,
}

impl OnDisk {
    /// With an empty folder, for the test of this name.
    #[must_use]
    pub fn named(test: &str) -> OnDisk {
        let dir = tempfile::Builder::new().prefix(test).tempdir();
        OnDisk { dir: dir.expect("the system gives a temporary folder") }
    }
}

impl Backend for OnDisk {
    fn cut(&self) {}

    fn open<'a>(&'a self, clock: &'a Clock) -> BoxFuture<'a, Arc<dyn MessageStore>> {
        async move {
            let options = EmbeddedOptions::new(self.dir.path(), clock.clone());
            Arc::new(open_unlocked(&options)) as Arc<dyn MessageStore>
        }
        .boxed()
    }
}

/// Opens a store that was just let go of. Tests beside this one start servers: until such a process has become its program, it
/// holds the files of this one, and so the lock.
fn open_unlocked(options: &EmbeddedOptions) -> EmbeddedStore {
    for _ in 0..500 {
        match EmbeddedStore::open(options.clone()) {
            Err(OpenError::Locked { .. }) => std::thread::sleep(std::time::Duration::from_millis(10)),
            opened => return opened.expect("the store opens"),
        }
    }
    panic!("the store is not let go of")
}

/// The embedded store on a disk that loses power before each opening, with whatever was not synced, and that fails when it
/// is told to.
pub struct PowerCuts {
    /// For the lock file, which is always the system's.
    root: tempfile::TempDir,
    disk: Mutex<Disk>,
    seed: AtomicU64,
    limits: EmbeddedLimits,
    drive: Drive,
    opening: Mutex<Opening>,
    store: Mutex<Weak<EmbeddedStore>>,
}

/// What is to happen at the next opening, and what did.
#[derive(Default)]
struct Opening {
    faults: Vec<(Fault, u32)>,
    peek: Option<u64>,
    peeked: Option<Peek>,
}

/// What a store found on a disk with one flipped bit.
pub struct Peek {
    /// The file that the bit is in.
    pub path: PathBuf,
    /// The byte.
    pub offset: u64,
    /// What came of opening it.
    pub found: Result<Peeked, OpenError>,
}

/// A store that opened all the same.
pub struct Peeked {
    /// What it took for a torn end.
    pub torn: Option<Torn>,
    /// Each topic's log, as far as it can be read.
    pub pages: BTreeMap<TopicId, Result<Page, StoreError>>,
}

impl PowerCuts {
    /// With an empty disk; `seed` decides what is lost.
    #[must_use]
    pub fn new(seed: u64, limits: EmbeddedLimits) -> PowerCuts {
        PowerCuts::driven(seed, limits, Drive::Threads)
    }

    /// The same, with the work behind the calls done by threads or by the callers.
    #[must_use]
    pub fn driven(seed: u64, limits: EmbeddedLimits, drive: Drive) -> PowerCuts {
        let root = tempfile::tempdir().expect("the system gives a temporary folder");
        let disk = Mutex::new(Disk::new(root.path()));
        let (opening, store) = (Mutex::default(), Mutex::default());
        PowerCuts { disk, root, seed: AtomicU64::new(seed), limits, drive, opening, store }
    }

    /// For the test of this name, which decides what is lost.
    #[must_use]
    pub fn named(test: &str) -> PowerCuts {
        PowerCuts::new(seed(test), EmbeddedLimits::default())
    }

    /// With bounds so small that files are written behind, checkpointed and read back all the time.
    #[must_use]
    pub fn cramped(test: &str) -> PowerCuts {
        PowerCuts::new(seed(test), cramped())
    }

    /// Has the store do what it does now and then by itself.
    pub fn work_behind(&self) {
        if let Some(store) = self.store.lock().upgrade() {
            store.work_behind();
        }
    }

    /// What the last opening found.
    ///
    /// # Panics
    /// When the store is gone.
    #[must_use]
    pub fn report(&self) -> OpenReport {
        self.store.lock().upgrade().expect("the store is open").report().clone()
    }

    /// See [`Disk::arm`].
    pub fn arm(&self, fault: Fault, after: u32) {
        self.disk.lock().arm(fault, after);
    }

    /// The same during the next opening, which is tried again after a power cut.
    pub fn arm_opening(&self, fault: Fault, after: u32) {
        self.opening.lock().faults.push((fault, after));
    }

    /// Before the next opening another store looks at the disk, with a bit flipped that the seed chooses.
    pub fn peek_at_opening(&self, seed: u64) {
        self.opening.lock().peek = Some(seed);
    }

    /// What it saw.
    #[must_use]
    pub fn take_peek(&self) -> Option<Peek> {
        self.opening.lock().peeked.take()
    }

    /// See [`Disk::fill`].
    pub fn fill(&self) {
        self.disk.lock().fill();
    }

    /// See [`Disk::heal`].
    pub fn heal(&self) {
        self.disk.lock().heal();
    }

    /// How often a fault has struck since the last opening.
    #[must_use]
    pub fn struck(&self) -> u32 {
        self.disk.lock().struck()
    }

    fn options(&self, clock: &Clock) -> EmbeddedOptions {
        let (limits, drive) = (self.limits.clone(), self.drive);
        EmbeddedOptions { limits, drive, ..EmbeddedOptions::new(self.root.path(), clock.clone()) }
    }

    async fn peek(&self, seed: u64, clock: &Clock) -> Option<Peek> {
        let (disk, path, offset) = self.disk.lock().with_a_flipped_bit(seed)?;
        let store = match EmbeddedStore::open_on(self.options(clock), Arc::new(disk)) {
            Ok(store) => store,
            Err(error) => return Some(Peek { path, offset, found: Err(error) }),
        };
        let mut pages = BTreeMap::new();
        for topic in store.topics().await.expect("it is open") {
            let whole =
                ReadRequest { topic, partition: None, from: ReadFrom::Earliest, limit: 1000, bytes_max: 64 << 20 };
            pages.insert(topic, store.read(whole).await);
        }
        Some(Peek { path, offset, found: Ok(Peeked { torn: store.report().torn.clone(), pages }) })
    }

    fn cut_power(&self) {
        let mut disk = self.disk.lock();
        let after = disk.without_power(self.seed.fetch_add(1, Ordering::Relaxed));
        *disk = after;
    }
}

/// Bounds for a few messages.
#[must_use]
pub fn cramped() -> EmbeddedLimits {
    EmbeddedLimits {
        frame_bytes: 4 << 10,
        tail_bytes: 4 << 10,
        unflushed_bytes_max: 8 << 10,
        // An ordered lease has to hold a block of every lane.
        cache_bytes: 64 << 10,
        journal_file_bytes: 16 << 10,
        checkpoint_bytes: 16 << 10,
        ..EmbeddedLimits::default()
    }
}

fn seed(test: &str) -> u64 {
    test.bytes().fold(1469, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()))
}

impl Backend for PowerCuts {
    fn cut(&self) {
        self.cut_power();
    }

    fn open<'a>(&'a self, clock: &'a Clock) -> BoxFuture<'a, Arc<dyn MessageStore>> {
        async move {
            let Opening { faults, peek, .. } = std::mem::take(&mut *self.opening.lock());
            if let Some(seed) = peek {
                let peeked = self.peek(seed, clock).await;
                self.opening.lock().peeked = peeked;
            }
            for (fault, after) in faults {
                self.arm(fault, after);
            }
            loop {
                let disk = Arc::new(self.disk.lock().clone());
                match EmbeddedStore::open_on(self.options(clock), disk) {
                    Ok(store) => {
                        let store = Arc::new(store);
                        *self.store.lock() = Arc::downgrade(&store);
                        return store as Arc<dyn MessageStore>;
                    }
                    Err(error) => assert!(self.struck() > 0, "the store opens: {error}"),
                }
                // Nothing is armed after a cut.
                self.cut_power();
            }
        }
        .boxed()
    }
}

/// The store of a fleet, in a database of its own. Between two openings nothing is lost.
pub struct OnPostgres {
    name: String,
    brokers: usize,
    database: OnceLock<PgConnectOptions>,
}

impl OnPostgres {
    /// With an empty database, for the test of this name.
    #[must_use]
    pub fn named(test: &str) -> OnPostgres {
        OnPostgres { name: test.to_owned(), brokers: 1, database: OnceLock::new() }
    }

    /// The same, with three brokers that take calls in turn, through a pooler that hands connections on between transactions.
    #[must_use]
    pub fn fleet(test: &str) -> OnPostgres {
        OnPostgres { brokers: 3, ..OnPostgres::named(test) }
    }

    fn new_database(&self) -> PgConnectOptions {
        let url = Postgres::shared_with_tables(&self.name);
        let url = if self.brokers > 1 { Pooler::shared().url(&url) } else { url };
        url.parse().expect("the server gives addresses")
    }
}

impl Backend for OnPostgres {
    fn cut(&self) {}

    fn open<'a>(&'a self, clock: &'a Clock) -> BoxFuture<'a, Arc<dyn MessageStore>> {
        async move {
            let connect = self.database.get_or_init(|| self.new_database());
            let mut brokers = Vec::new();
            for number in 0..self.brokers {
                let (connect, node) = (connect.clone(), format!("broker-{number}").into());
                let options = PostgresOptions { connect, connections_max: 4, node, clock: clock.clone() };
                let store = PostgresStore::open(options).await.expect("the store opens");
                brokers.push(Arc::new(store) as Arc<dyn MessageStore>);
            }
            if brokers.len() == 1 { brokers.remove(0) } else { Arc::new(Fleet::new(brokers)) as Arc<dyn MessageStore> }
        }
        .boxed()
    }
}

/// A store that moves at each opening: from a folder to a database, from there to a new folder, and so on.
pub struct Moving {
    name: String,
    url: OnceLock<String>,
    dirs: Mutex<Vec<tempfile::TempDir>>,
    in_database: AtomicBool,
    is_new: AtomicBool,
}

impl Moving {
    /// In a folder first.
    #[must_use]
    pub fn up(test: &str) -> Moving {
        Moving::begin(test, false)
    }

    /// In a database first.
    #[must_use]
    pub fn down(test: &str) -> Moving {
        Moving::begin(test, true)
    }

    fn begin(test: &str, in_database: bool) -> Moving {
        let dirs = Mutex::new(vec![tempfile::tempdir().expect("the system gives a temporary folder")]);
        let (in_database, is_new) = (AtomicBool::new(in_database), AtomicBool::new(true));
        Moving { name: format!("moving_{test}"), url: OnceLock::new(), dirs, in_database, is_new }
    }

    fn embedded(&self, clock: &Clock) -> Arc<EmbeddedStore> {
        let dirs = self.dirs.lock();
        let dir = dirs.last().expect("there is one from the start");
        Arc::new(open_unlocked(&EmbeddedOptions::new(dir.path(), clock.clone())))
    }

    fn url(&self) -> &str {
        self.url.get_or_init(|| Postgres::shared_with_tables(&self.name))
    }

    async fn database(&self, clock: &Clock) -> Arc<PostgresStore> {
        let connect = self.url().parse().expect("the server gives addresses");
        let options = PostgresOptions { connect, connections_max: 4, node: "one".into(), clock: clock.clone() };
        Arc::new(PostgresStore::open(options).await.expect("the store opens"))
    }

    /// Takes out what was there before.
    async fn empty(&self, to_database: bool, clock: &Clock) {
        if !to_database {
            let dir = tempfile::tempdir().expect("the system gives a temporary folder");
            return self.dirs.lock().push(dir);
        }
        let url = self.url().parse().expect("the server gives addresses");
        let catalog = Catalog::aside(&url, clock.clone()).expect("an address is one");
        catalog.empty_out().await.expect("the database works");
        catalog.close().await;
    }
}

impl Backend for Moving {
    fn cut(&self) {}

    fn open<'a>(&'a self, clock: &'a Clock) -> BoxFuture<'a, Arc<dyn MessageStore>> {
        async move {
            let mut in_database = self.in_database.load(Ordering::Relaxed);
            if !self.is_new.swap(false, Ordering::Relaxed) {
                in_database = !in_database;
                self.in_database.store(in_database, Ordering::Relaxed);
                let source: Arc<dyn Movable> =
                    if in_database { self.embedded(clock) } else { self.database(clock).await };
                self.empty(in_database, clock).await;
                let target: Arc<dyn Movable> =
                    if in_database { self.database(clock).await } else { self.embedded(clock) };
                copy_messages(&*source, &*target, clock, &|_| {}).await.expect("both stores work");
                // Twice, as a move that was broken off at its very end.
                copy_messages(&*source, &*target, clock, &|_| {}).await.expect("both stores work");
                let compared = compare_messages(&*source, &*target, &|_| {}).await.expect("both stores can be read");
                assert!(compared.differing.is_empty() && compared.rest_is_same, "{compared:?}");
                source.close().await.expect("it closes");
                target.close().await.expect("it closes");
            }
            if in_database { self.database(clock).await as _ } else { self.embedded(clock) as _ }
        }
        .boxed()
    }
}

/// The store in Redis, under a name of its own. Between two openings nothing is lost.
pub struct OnRedis {
    name: String,
    brokers: usize,
    /// The server's address; none: the one that all tests share.
    url: Option<String>,
}

impl OnRedis {
    /// With nothing in it, for the test of this name.
    #[must_use]
    pub fn named(test: &str) -> OnRedis {
        static MADE: AtomicU64 = AtomicU64::new(0);
        OnRedis { name: format!("{test}-{}", MADE.fetch_add(1, Ordering::Relaxed)), brokers: 1, url: None }
    }

    /// The same, with three brokers that take calls in turn.
    #[must_use]
    pub fn fleet(test: &str) -> OnRedis {
        OnRedis { brokers: 3, ..OnRedis::named(test) }
    }

    /// The same on a server of the test's own.
    #[must_use]
    pub fn at(url: String) -> OnRedis {
        OnRedis { url: Some(url), ..OnRedis::named("alone") }
    }

    /// What Redis has under one of the store's names.
    #[must_use]
    pub fn key(&self, name: &str) -> String {
        format!("sluice:{{{}}}:{name}", self.name)
    }
}

impl Backend for OnRedis {
    fn cut(&self) {}

    fn open<'a>(&'a self, clock: &'a Clock) -> BoxFuture<'a, Arc<dyn MessageStore>> {
        async move {
            let url = self.url.clone().unwrap_or_else(|| Redis::shared().url());
            let url = url.parse().expect("the server gives addresses");
            let settings = sluice::config::Redis { url, ca_file: None };
            let mut brokers = Vec::new();
            for number in 0..self.brokers {
                let options = RedisOptions {
                    settings: settings.clone(),
                    name: self.name.clone(),
                    node: format!("broker-{number}").into(),
                    clock: clock.clone(),
                    entropy: Entropy::system(),
                };
                let store = RedisStore::open(options).await.expect("the store opens");
                brokers.push(Arc::new(store) as Arc<dyn MessageStore>);
            }
            if brokers.len() == 1 { brokers.remove(0) } else { Arc::new(Fleet::new(brokers)) as Arc<dyn MessageStore> }
        }
        .boxed()
    }
}

impl<B: Backend + ?Sized> Backend for Arc<B> {
    fn cut(&self) {
        (**self).cut();
    }

    fn open<'a>(&'a self, clock: &'a Clock) -> BoxFuture<'a, Arc<dyn MessageStore>> {
        (**self).open(clock)
    }
}
