//! The embedded store: a journal, segments, and the state in memory. Invariant: what a call answers `Ok` to is on this
//! machine's disk. One process at a time has a data directory. Never needs another service.
//!
//! A message's way: [`append`](MessageStore::append) encodes it on the caller's task → `writer` plans it against `state`,
//! puts it into a frame of the `journal` with all that waits, syncs, applies, answers → `maintenance` writes it behind to a
//! `segment` and in time a checkpoint, after which the journal file goes. Consumers that keep up are served from memory.
//! `recovery` brings all of it back.

mod core;
mod delivery;
mod erase;
mod figures;
pub mod files;
mod frame;
mod frames;
mod hands;
mod inspect;
mod journal;
mod lock;
mod maintenance;
mod moving;
pub(in crate::store) mod ops;
pub(in crate::store) mod prepare;
mod read;
mod recovery;
mod replay;
mod segment;
pub(in crate::store) mod state;
#[cfg(test)]
mod tests;
mod upkeep;
mod walk;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use self::core::{Command, Core};
use self::delivery::{blocking, received};
use self::files::{Disk, FileLayer};
use self::hands::Hands;
use self::lock::DirLock;
use self::maintenance::Maintenance;
use self::state::control::{Answer, Control};
use self::writer::Writer;
use super::{
    AppendBatch, AppendOutcome, Capabilities, DedupOutcome, Found, GroupSpec, KvHead, KvRoom, KvValue, LeaseRequest,
    Leased, MessageStore, Page, ReadRequest, RetainReport, SeekTo, Settle, SettleRefused, Settled, StoreError,
    TopicSpec, TopicStats,
};
use crate::clock::{Clock, Timestamp};
use crate::message::{GroupId, MessageId, Position, TopicId};

pub use self::inspect::finding::{Finding, Kind, Lost, LostMessages};
pub use self::inspect::salvage::Known;
pub use self::inspect::{ClosedStore, Inspection, Progress, TopicSeen};
pub use self::recovery::{OpenError, OpenReport, Torn};
pub use self::state::EmbeddedLimits;

/// What the store is opened with.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// The data directory; made if it does not exist.
    pub dir: PathBuf,
    /// The time.
    pub clock: Clock,
    /// Bounds of what it holds.
    pub limits: EmbeddedLimits,
    /// Who does the work behind the calls.
    pub drive: Drive,
}

/// Who writes, and who works behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    /// Threads of the store.
    Threads,
    /// The callers, and [`EmbeddedStore::work_behind`]: for simulators, whose runs must come again.
    Callers,
}

impl EmbeddedOptions {
    /// The usual bounds.
    #[must_use]
    pub fn new(dir: &Path, clock: Clock) -> EmbeddedOptions {
        EmbeddedOptions { dir: dir.to_owned(), clock, limits: EmbeddedLimits::default(), drive: Drive::Threads }
    }
}

/// See the module.
pub struct EmbeddedStore {
    core: Arc<Core>,
    report: OpenReport,
    running: Mutex<Option<Running>>,
}

struct Running {
    work: Work,
    /// Let go of last.
    lock: DirLock,
}

enum Work {
    Threads { writer: JoinHandle<()>, maintenance: JoinHandle<Maintenance> },
    Callers(Arc<Mutex<Hands>>),
}

impl EmbeddedStore {
    /// Opens a data directory, or makes one.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(options: EmbeddedOptions) -> Result<EmbeddedStore, OpenError> {
        EmbeddedStore::open_on(options, Arc::new(Disk))
    }

    /// Opens a data directory over another file layer. The lock file alone is always the operating system's.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_on(options: EmbeddedOptions, files: Arc<dyn FileLayer>) -> Result<EmbeddedStore, OpenError> {
        let EmbeddedOptions { dir, clock, limits, drive } = options;
        std::fs::create_dir_all(&dir).map_err(OpenError::io("making the data directory"))?;
        files.create_dir_all(&dir).map_err(OpenError::io("making the data directory"))?;
        let lock = DirLock::take(&dir)?;
        let core = Arc::new(Core::new(files, dir, clock, limits));
        let recovery::Recovered { journal, maintenance, report } = recovery::recover(&core)?;
        let mut writer = Writer::new(Arc::clone(&core), journal);
        writer.begin_epoch()?;
        let work = Work::start(&core, drive, writer, maintenance).map_err(OpenError::io("starting a thread"))?;
        Ok(EmbeddedStore { core, report, running: Mutex::new(Some(Running { work, lock })) })
    }

    /// What opening found.
    #[must_use]
    pub fn report(&self) -> &OpenReport {
        &self.report
    }

    /// Adds what it measures to `registry`.
    ///
    /// # Errors
    /// When that is registered already.
    pub fn register(&self, registry: &prometheus::Registry) -> prometheus::Result<()> {
        figures::register(&self.core, registry)
    }

    /// What the store does now and then by itself, where [`Drive::Callers`] has it done; else nothing.
    pub fn work_behind(&self) {
        if let Some(Running { work: Work::Callers(hands), .. }) = &*self.running.lock() {
            hands.lock().work_behind();
        }
    }
}

impl Work {
    fn start(core: &Arc<Core>, drive: Drive, writer: Writer, maintenance: Maintenance) -> std::io::Result<Work> {
        if drive == Drive::Callers {
            let hands = Arc::new(Mutex::new(Hands::new(writer, maintenance)));
            // Nobody else has set it: the core was made a moment ago.
            let _first = core.hands.set(Arc::downgrade(&hands));
            return Ok(Work::Callers(hands));
        }
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        Ok(Work::Threads {
            writer: thread("store-writer").spawn(move || writer.run())?,
            maintenance: thread("store-behind").spawn(move || maintenance.run())?,
        })
    }

    /// Ends the work; what was asked before is still done.
    fn stop(self, core: &Core) -> Option<Maintenance> {
        core.closed.store(true, Ordering::Release);
        core.commands.close();
        match self {
            Work::Threads { writer, maintenance } => {
                let writer = writer.join();
                core.jobs.close();
                let maintenance = maintenance.join();
                if writer.is_err() || maintenance.is_err() {
                    tracing::error!("a thread of the store had panicked");
                }
                maintenance.ok()
            }
            Work::Callers(hands) => Some(Arc::into_inner(hands)?.into_inner().finish(core)),
        }
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        // Without a checkpoint: the journal has everything, the next opening reads it.
        if let Some(running) = self.running.get_mut().take() {
            let _ended = running.work.stop(&self.core);
        }
    }
}

#[async_trait]
impl MessageStore for EmbeddedStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities { durability: "fsync", lanes: true, schedule: true, ordered: true, exactly_once: true, kv: true }
    }

    async fn put_topic(&self, topic: TopicSpec) -> Result<(), StoreError> {
        upkeep::control(&self.core, Control::PutTopic(topic)).await.map(drop)
    }

    async fn delete_topic(&self, topic: TopicId) -> Result<(), StoreError> {
        upkeep::control(&self.core, Control::DeleteTopic(topic)).await?;
        self.core.jobs.nudge();
        Ok(())
    }

    async fn topics(&self) -> Result<Vec<TopicId>, StoreError> {
        self.core.check_open()?;
        Ok(self.core.state.lock().topics.keys().copied().collect())
    }

    async fn put_group(&self, spec: GroupSpec) -> Result<(), StoreError> {
        let by_time = upkeep::by_time(&self.core, spec.topic, spec.start).await?;
        upkeep::control(&self.core, Control::PutGroup { spec, by_time }).await.map(drop)
    }

    async fn delete_group(&self, topic: TopicId, group: GroupId) -> Result<(), StoreError> {
        upkeep::control(&self.core, Control::DeleteGroup(topic, group)).await.map(drop)
    }

    async fn groups(&self, topic: TopicId) -> Result<Vec<GroupId>, StoreError> {
        self.core.check_open()?;
        Ok(self.core.state.lock().topic(topic)?.groups.keys().copied().collect())
    }

    async fn dedup_lookup(&self, topic: TopicId, key: &str) -> Result<Option<DedupOutcome>, StoreError> {
        self.core.check_open()?;
        let (hash, now) = (state::dedup::key_hash(key), self.core.clock.now());
        let state = self.core.state.lock();
        let topic = state.topic(topic)?;
        Ok(topic.dedup.get(&hash, topic.spec.dedup_window, now).cloned())
    }

    async fn append(&self, batch: AppendBatch) -> Result<Vec<AppendOutcome>, StoreError> {
        self.core.check_open()?;
        let (batch, bytes) = prepare::prepare(batch, self.core.limits.batch_bytes_max)?;
        let (reply, answer) = oneshot::channel();
        self.core.send(Command::Append(batch, reply), bytes)?;
        received(answer.await)
    }

    async fn kv_get(&self, namespace: &str, key: &str) -> Result<Option<KvValue>, StoreError> {
        self.core.check_open()?;
        Ok(self.core.state.lock().kv.get(&(namespace.into(), key.into())).cloned())
    }

    async fn kv_room(&self, namespace: &str, key: &str) -> Result<KvRoom, StoreError> {
        self.core.check_open()?;
        Ok(self.core.state.lock().kv_room(namespace, key))
    }

    async fn kv_heads(
        &self,
        after: Option<(Arc<str>, Arc<str>)>,
        limit: usize,
        head: usize,
    ) -> Result<Vec<KvHead>, StoreError> {
        self.core.check_open()?;
        Ok(self.core.state.lock().kv_heads(after, limit, head))
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Leased, StoreError> {
        self.core.check_open()?;
        delivery::lease(&self.core, request).await
    }

    async fn settle(&self, settles: Vec<Settle>) -> Result<Vec<Result<Settled, SettleRefused>>, StoreError> {
        delivery::settle(&self.core, settles).await
    }

    fn appended(&self, topic: TopicId) -> Option<watch::Receiver<u64>> {
        Some(self.core.state.lock().topics.get(&topic)?.wake.subscribe())
    }

    async fn get(&self, id: MessageId) -> Result<Option<Found>, StoreError> {
        self.core.check_open()?;
        let core = Arc::clone(&self.core);
        blocking(move || core.get(id)).await
    }

    async fn read(&self, request: ReadRequest) -> Result<Page, StoreError> {
        self.core.check_open()?;
        let core = Arc::clone(&self.core);
        blocking(move || core.page(&request)).await
    }

    async fn dead_letters(&self, topic: TopicId, after: Option<Position>, limit: usize) -> Result<Page, StoreError> {
        self.core.check_open()?;
        let core = Arc::clone(&self.core);
        blocking(move || core.dead_letters(topic, after, limit)).await
    }

    async fn discard_dead_letters(&self, positions: Vec<Position>) -> Result<usize, StoreError> {
        let (reply, answer) = oneshot::channel();
        let bytes = positions.len() as u64 * 16;
        self.core.send(Command::Discard(positions, reply), bytes)?;
        received(answer.await)
    }

    async fn seek(&self, topic: TopicId, group: GroupId, to: SeekTo) -> Result<(), StoreError> {
        let by_time = upkeep::by_time(&self.core, topic, to).await?;
        upkeep::control(&self.core, Control::Seek { topic, group, to, by_time }).await.map(drop)
    }

    async fn put_snapshot(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<(), StoreError> {
        upkeep::control(&self.core, Control::Mark(topic, group, name)).await.map(drop)
    }

    async fn delete_snapshot(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<bool, StoreError> {
        upkeep::control(&self.core, Control::Unmark(topic, group, name)).await.map(|answer| answer.count() > 0)
    }

    async fn snapshots(&self, topic: TopicId, group: GroupId) -> Result<Vec<(Arc<str>, Timestamp)>, StoreError> {
        self.core.check_open()?;
        let state = self.core.state.lock();
        let found = state.topic(topic)?.groups.get(&group).ok_or(StoreError::NoGroup)?;
        Ok(found.marks.iter().map(|(name, mark)| (Arc::clone(name), mark.at)).collect())
    }

    async fn restore(&self, topic: TopicId, group: GroupId, name: Arc<str>) -> Result<bool, StoreError> {
        upkeep::control(&self.core, Control::Restore(topic, group, name)).await.map(|answer| answer.count() > 0)
    }

    async fn purge(&self, topic: TopicId, group: GroupId) -> Result<u64, StoreError> {
        upkeep::control(&self.core, Control::Purge(topic, group)).await.map(Answer::count)
    }

    async fn erase(&self, id: MessageId) -> Result<bool, StoreError> {
        self.core.check_open()?;
        upkeep::erase(&self.core, id).await
    }

    async fn tick(&self) -> Result<Option<Timestamp>, StoreError> {
        self.core.check_open()?;
        delivery::tick(&self.core).await
    }

    async fn retain(&self) -> Result<RetainReport, StoreError> {
        self.core.check_open()?;
        upkeep::retain(&self.core).await
    }

    async fn stats(&self, topic: TopicId) -> Result<TopicStats, StoreError> {
        self.core.check_open()?;
        let core = Arc::clone(&self.core);
        blocking(move || core.stats(topic)).await
    }

    fn health(&self) -> Result<(), String> {
        self.core.check_open().map_err(|error| error.to_string())?;
        let fault = self.core.write_fault.lock().clone();
        fault.or_else(|| self.core.maintenance_fault.lock().clone()).map_or(Ok(()), Err)
    }

    async fn close(&self) -> Result<(), StoreError> {
        let Some(Running { work, lock }) = self.running.lock().take() else { return Ok(()) };
        let core = Arc::clone(&self.core);
        blocking(move || {
            let result = match work.stop(&core) {
                Some(mut maintenance) => maintenance.step().and_then(|()| maintenance.checkpoint()),
                None => Ok(()),
            };
            drop(lock);
            result
        })
        .await
    }
}
