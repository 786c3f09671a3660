//! The engines that the store's suites run over. Invariant: every value has data of its own, removed with it. Says
//! nothing about what a store must do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use sluice::clock::Clock;
use sluice::store::MessageStore;
use sluice::store::embedded::{EmbeddedLimits, EmbeddedOptions, EmbeddedStore};

use crate::store_bed::Backend;
use crate::store_disk::Disk;

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
            Arc::new(EmbeddedStore::open(options).expect("the store opens")) as Arc<dyn MessageStore>
        }
        .boxed()
    }
}

/// The embedded store on a disk that loses power before each opening, with whatever was not synced.
pub struct PowerCuts {
    /// For the lock file, which is always the system's.
    root: tempfile::TempDir,
    disk: Mutex<Disk>,
    seed: AtomicU64,
    limits: EmbeddedLimits,
}

impl PowerCuts {
    /// With an empty disk; `seed` decides what is lost.
    #[must_use]
    pub fn new(seed: u64, limits: EmbeddedLimits) -> PowerCuts {
        let root = tempfile::tempdir().expect("the system gives a temporary folder");
        let disk = Mutex::new(Disk::new(root.path()));
        PowerCuts { disk, root, seed: AtomicU64::new(seed), limits }
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
        checkpoint_bytes: 16 << 10,
        ..EmbeddedLimits::default()
    }
}

fn seed(test: &str) -> u64 {
    test.bytes().fold(1469, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()))
}

impl Backend for PowerCuts {
    fn cut(&self) {
        let mut disk = self.disk.lock();
        let after = disk.without_power(self.seed.fetch_add(1, Ordering::Relaxed));
        *disk = after;
    }

    fn open<'a>(&'a self, clock: &'a Clock) -> BoxFuture<'a, Arc<dyn MessageStore>> {
        async move {
            let options = EmbeddedOptions {
                limits: self.limits.clone(),
                ..EmbeddedOptions::new(self.root.path(), clock.clone())
            };
            let disk = Arc::new(self.disk.lock().clone());
            Arc::new(EmbeddedStore::open_on(options, disk).expect("the store opens")) as Arc<dyn MessageStore>
        }
        .boxed()
    }
}
