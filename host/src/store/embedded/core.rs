//! What the store's threads share. Invariant: the state is locked for moments only, never across a read, write or sync;
//! what waits in the queue is bounded in bytes.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use prometheus::Histogram;
use tokio::sync::oneshot;

use super::figures;
use super::files::FileLayer;
use super::hands::Hands;
use super::segment::SegmentFiles;
use super::state::append::Batch;
use super::state::control::{Answer, Control};
use super::state::settle::{Live, SettleItem};
use super::state::{EmbeddedLimits, State};
use crate::clock::Clock;
use crate::message::{GroupId, Message, Offset, Partition, Position, TopicId};
use crate::store::{AppendOutcome, SettleRefused, Settled, StoreError};

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// One result per settlement.
pub type SettleResults = Vec<Result<Settled, SettleRefused>>;

/// A message whose last lease ended by itself, and the message, if it could be read.
pub type Dying = ((TopicId, GroupId, Partition, Offset), Option<Message>);

/// What callers ask of the writer.
#[derive(Debug)]
pub enum Command {
    /// Store a batch.
    Append(Batch, Reply<Vec<AppendOutcome>>),
    /// Settle leases.
    Settle(Vec<SettleItem>, Reply<SettleResults>),
    /// Make grants durable that settle themselves; for each, whether it still was a live lease.
    Once(Vec<Live>, Reply<Vec<bool>>),
    /// Take dead letters off their list.
    Discard(Vec<Position>, Reply<usize>),
    /// What is due, what dies, and all notes so far.
    Tick(Vec<(TopicId, u64)>, Vec<Dying>, Reply<()>),
    /// Something that has a frame to itself.
    Control(Control, Reply<Answer>),
}

/// Work for the maintenance thread.
#[derive(Debug)]
pub enum Job {
    /// Overwrite what was erased so far; answer when that is on stable storage.
    Erase(Reply<()>),
}

/// Commands, or jobs, with what they weigh.
#[derive(Debug)]
pub struct Queue<T> {
    inner: Mutex<Waiting<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Waiting<T> {
    items: VecDeque<(T, u64)>,
    bytes: u64,
    closed: bool,
    nudged: bool,
}

impl<T> Queue<T> {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Queue<T> {
        let inner = Waiting { items: VecDeque::new(), bytes: 0, closed: false, nudged: false };
        Queue { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Adds an item unless that takes the queue over `bytes_max`.
    ///
    /// # Errors
    /// `Busy` when it is full, `Unavailable` when it is closed.
    pub fn push(&self, item: T, bytes: u64, bytes_max: u64) -> Result<(), StoreError> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(StoreError::Unavailable("the store is closed".to_owned()));
        }
        if inner.bytes + bytes > bytes_max && !inner.items.is_empty() {
            return Err(StoreError::Busy("more waits to be written than it holds".to_owned()));
        }
        inner.bytes += bytes;
        inner.items.push_back((item, bytes));
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }

    /// Takes items of up to `bytes`, and no more than `while_` lets; waits up to `patience` for the first. `None`: closed
    /// and empty.
    pub fn take(&self, bytes: u64, patience: Duration, while_: impl Fn(&[T], &T) -> bool) -> Option<Vec<T>> {
        let mut inner = self.inner.lock();
        if inner.items.is_empty() && !inner.closed && !inner.nudged {
            self.changed.wait_for(&mut inner, patience);
        }
        inner.nudged = false;
        let (mut taken, mut weight) = (Vec::new(), 0);
        while let Some((next, more)) = inner.items.front() {
            if !taken.is_empty() && (weight + more > bytes || !while_(&taken, next)) {
                break;
            }
            weight += more;
            if let Some((item, _)) = inner.items.pop_front() {
                taken.push(item);
            }
        }
        inner.bytes -= weight;
        if taken.is_empty() && inner.closed { None } else { Some(taken) }
    }

    /// Whether there is something to take.
    #[must_use]
    pub fn has_work(&self) -> bool {
        let inner = self.inner.lock();
        inner.nudged || !inner.items.is_empty()
    }

    /// Ends the wait of whoever takes.
    pub fn nudge(&self) {
        self.inner.lock().nudged = true;
        self.changed.notify_one();
    }

    /// Refuses further items and drops those that wait, whose callers then hear of it: nobody takes them any more.
    pub fn abandon(&self) {
        let dropped = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            inner.bytes = 0;
            std::mem::take(&mut inner.items)
        };
        drop(dropped);
    }

    /// Refuses further items.
    pub fn close(&self) {
        self.inner.lock().closed = true;
        self.changed.notify_all();
    }
}

/// See the module.
pub struct Core {
    /// The file layer.
    pub files: Arc<dyn FileLayer>,
    /// The data directory.
    pub dir: PathBuf,
    /// The time.
    pub clock: Clock,
    /// The bounds.
    pub limits: EmbeddedLimits,
    /// All that is known.
    pub state: Mutex<State>,
    /// Segment files.
    pub segments: SegmentFiles,
    /// For the writer.
    pub commands: Queue<Command>,
    /// For the maintenance thread.
    pub jobs: Queue<Job>,
    /// Journal files: id, and the sequence of the first frame.
    pub journal_files: Mutex<Vec<(u64, u64)>>,
    /// Journal bytes written since the last checkpoint.
    pub journal_bytes: AtomicU64,
    /// Times of the journal's syncs.
    pub syncs: Histogram,
    /// The journal found no room for a new file: a checkpoint, whether due or not, would give some back.
    pub room_wanted: AtomicBool,
    /// Why the last write failed, until one succeeds.
    pub write_fault: Mutex<Option<String>>,
    /// Why segments or checkpoints cannot be written.
    pub maintenance_fault: Mutex<Option<String>>,
    /// No more calls.
    pub closed: AtomicBool,
    /// What does the threads' work where there are none.
    pub hands: OnceLock<Weak<Mutex<Hands>>>,
}

impl Core {
    /// Over an empty state.
    #[must_use]
    pub fn new(files: Arc<dyn FileLayer>, dir: PathBuf, clock: Clock, limits: EmbeddedLimits) -> Core {
        Core {
            segments: SegmentFiles::new(Arc::clone(&files), dir.clone()),
            files,
            dir,
            clock,
            state: Mutex::new(State::new(limits.clone())),
            limits,
            commands: Queue::new(),
            jobs: Queue::new(),
            journal_files: Mutex::new(Vec::new()),
            journal_bytes: AtomicU64::new(0),
            syncs: figures::syncs(),
            room_wanted: AtomicBool::new(false),
            write_fault: Mutex::new(None),
            maintenance_fault: Mutex::new(None),
            closed: AtomicBool::new(false),
            hands: OnceLock::new(),
        }
    }

    /// Puts a command in the writer's queue.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn send(&self, command: Command, bytes: u64) -> Result<(), StoreError> {
        // What a command weighs beside its payloads; also bounds how many wait.
        const COMMAND_BYTES: u64 = 512;
        self.commands.push(command, bytes + COMMAND_BYTES, self.limits.queue_bytes_max)?;
        self.turn();
        Ok(())
    }

    /// Puts a job in the maintenance thread's queue.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn send_job(&self, job: Job) -> Result<(), StoreError> {
        self.jobs.push(job, 1, u64::MAX)?;
        self.turn();
        Ok(())
    }

    /// Without threads, the caller does what waits.
    fn turn(&self) {
        if let Some(hands) = self.hands.get().and_then(Weak::upgrade) {
            hands.lock().turn(self);
        }
    }

    /// Whether calls are still taken.
    ///
    /// # Errors
    /// `Unavailable` once the store is closed.
    pub fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Unavailable("the store is closed".to_owned()));
        }
        Ok(())
    }
}
