//! What arrives at topics whose owners want it kept, as it was before any stage saw it: versions of plugins are tried on it.
//! Invariant: nobody who publishes waits for it; what is kept is bounded in bytes and in age, of one topic and of all, leaves the
//! disk to the messages, and what finds no room is left out and counted; one topic's failing files are no other's matter. Never a
//! source of truth: nothing is synced.

mod files;
mod room;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use prometheus::{IntCounter, Registry};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::catalog::model::{CaptureInput, Topic};
use crate::clock::{Clock, Timestamp};
use crate::message::{MessageId, TopicId};
use crate::pipeline::draft::Draft;

use self::files::Kept;
pub use self::files::{Damaged, Reader};
pub use self::room::Room;

/// Bytes that wait to be written, of all topics together.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What a message costs beside its payload.
const MESSAGE_BYTES: usize = 512;
/// Longer than any publish is under way.
const ENDED_KEPT: Duration = Duration::from_secs(3600);
/// How often what has grown too old is looked for, while nothing arrives.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How often it is said that something is left out, while that lasts: the figures count it.
const SAID_EVERY: Duration = Duration::from_secs(600);

/// Takes in what arrives. Clones share one thread.
#[derive(Clone)]
pub struct Capture(Arc<Shared>);

struct Shared {
    root: PathBuf,
    room: Room,
    clock: Clock,
    state: Mutex<State>,
    called: Condvar,
    /// Cancelled when the thread has ended.
    ended: CancellationToken,
    kept: IntCounter,
    lost: IntCounter,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Work>,
    bytes: usize,
    stopping: bool,
}

enum Work {
    Keep {
        topic: TopicId,
        how: CaptureInput,
        arrived: Vec<Draft>,
        bytes: usize,
    },
    /// How a topic wants it from now on.
    Wanted {
        topic: TopicId,
        how: CaptureInput,
    },
    /// All that a topic has.
    Forget {
        topic: TopicId,
        /// What still comes of it is not kept.
        for_good: bool,
        done: oneshot::Sender<io::Result<()>>,
    },
    Erase {
        topic: TopicId,
        messages: Vec<MessageId>,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// What a topic has, with all that came before this. Here, where nobody writes meanwhile.
    Read {
        topic: TopicId,
        from: Timestamp,
        done: oneshot::Sender<io::Result<Reader>>,
    },
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("root", &self.0.root).finish_non_exhaustive()
    }
}

impl Capture {
    /// Begins on what was kept in `root`; what is there of topics that are gone, or want it no more, is removed, and the oldest
    /// of what has no room any more.
    ///
    /// # Errors
    /// When the system refuses the thread, or a metric is registered already.
    pub fn open(
        (root, room): (&Path, Room),
        wanted: &[Arc<Topic>],
        clock: &Clock,
        registry: &Registry,
    ) -> io::Result<Capture> {
        let counter = |name, help| {
            let counter = IntCounter::new(name, help).map_err(io::Error::other)?;
            registry.register(Box::new(counter.clone())).map_err(io::Error::other)?;
            Ok::<_, io::Error>(counter)
        };
        let kept = counter("sluice_captured_inputs_total", "Messages kept as they arrived, for dry runs.")?;
        let lost = counter("sluice_captured_inputs_lost_total", "Messages that were to be kept so, and could not be.")?;
        let shared = Shared {
            root: root.to_owned(),
            room,
            clock: clock.clone(),
            state: Mutex::default(),
            called: Condvar::new(),
            ended: CancellationToken::new(),
            kept,
            lost,
        };
        let shared = Arc::new(shared);
        let wanting = wanted.iter().filter_map(|topic| Some((topic.id, topic.settings.capture_input?)));
        let mut writer = Writer::new(&shared);
        writer.begin(&wanting.collect());
        let ended = shared.ended.clone().drop_guard();
        std::thread::Builder::new().name("capture".to_owned()).spawn(move || {
            let _ended = ended;
            writer.run();
        })?;
        Ok(Capture(shared))
    }

    /// Keeps what arrived at `topic`, if its owner wants that.
    pub fn take<A: Iterator<Item = Draft>>(&self, topic: &Topic, arrived: impl FnOnce() -> A) {
        let Some(how) = topic.settings.capture_input else { return };
        // Apart from the request's body, which a payload is a part of and would keep.
        let apart = |draft: Draft| Draft { payload: Bytes::copy_from_slice(&draft.payload), ..draft };
        let arrived: Vec<Draft> = arrived().map(apart).collect();
        let bytes = arrived.iter().map(held_bytes).sum();
        let mut state = self.0.state.lock();
        // What is larger than all that may wait is taken when nothing does.
        if state.stopping || (state.bytes > 0 && state.bytes + bytes > WAITING_BYTES_MAX) {
            drop(state);
            return self.0.lost.inc_by(arrived.len() as u64);
        }
        state.bytes += bytes;
        state.waiting.push_back(Work::Keep { topic: topic.id, how, arrived, bytes });
        drop(state);
        self.0.called.notify_one();
    }

    /// Removes what is kept of a topic.
    ///
    /// # Errors
    /// When a file can't be removed.
    pub async fn forget(&self, topic: TopicId) -> io::Result<()> {
        self.ask(|done| Work::Forget { topic, for_good: false, done }).await
    }

    /// Removes what is kept of a topic that wants it no more, or is gone; what is under way to it is not kept, either.
    ///
    /// # Errors
    /// When a file can't be removed.
    pub async fn end(&self, topic: TopicId) -> io::Result<()> {
        self.ask(|done| Work::Forget { topic, for_good: true, done }).await
    }

    /// From now on a topic wants it so; what is too much then goes without new messages.
    pub fn wanted(&self, topic: TopicId, how: CaptureInput) {
        self.0.state.lock().waiting.push_back(Work::Wanted { topic, how });
        self.0.called.notify_one();
    }

    /// Removes what is kept of some messages.
    ///
    /// # Errors
    /// When a file can't be read or written anew.
    pub async fn erase(&self, topic: TopicId, messages: Vec<MessageId>) -> io::Result<()> {
        self.ask(|done| Work::Erase { topic, messages, done }).await
    }

    /// What has arrived at `topic` since `from`, oldest first, up to now.
    ///
    /// # Errors
    /// When the files can't be listed.
    pub async fn read(&self, topic: TopicId, how: CaptureInput, from: Timestamp) -> io::Result<Reader> {
        let from = from.max(self.0.clock.now().minus(how.ttl));
        self.ask(|done| Work::Read { topic, from, done }).await
    }

    /// What was taken is written, which is waited for, for at most `patience`; nothing is taken any more.
    pub async fn stop(&self, patience: Duration) {
        self.0.state.lock().stopping = true;
        self.0.called.notify_one();
        if tokio::time::timeout(patience, self.0.ended.cancelled()).await.is_err() {
            tracing::warn!("what arrived last is not kept for dry runs: it could not be written in time");
        }
    }

    async fn ask<T>(&self, work: impl FnOnce(oneshot::Sender<io::Result<T>>) -> Work) -> io::Result<T> {
        let (done, answer) = oneshot::channel();
        {
            let mut state = self.0.state.lock();
            if state.stopping {
                return Err(io::Error::other("the broker is stopping"));
            }
            state.waiting.push_back(work(done));
        }
        self.0.called.notify_one();
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the broker is stopping")))
    }
}

impl Shared {
    fn dir(&self, topic: TopicId) -> PathBuf {
        self.root.join(topic.0.to_string())
    }

    /// What is to be done next; nothing after a while, and `None` at the end.
    fn next(&self) -> Option<Option<Work>> {
        let mut state = self.state.lock();
        if state.waiting.is_empty() && !state.stopping {
            let _timed_out = self.called.wait_for(&mut state, SWEEP_EVERY);
        }
        let work = state.waiting.pop_front();
        if let Some(Work::Keep { bytes, .. }) = &work {
            state.bytes -= bytes;
        }
        if work.is_none() && state.stopping { None } else { Some(work) }
    }

    fn count(&self, kept: &mut Kept) {
        let counts = kept.counted();
        self.kept.inc_by(counts.written);
        self.lost.inc_by(counts.lost);
    }
}

/// The thread's own.
struct Writer {
    shared: Arc<Shared>,
    topics: HashMap<TopicId, Kept>,
    /// Of all topics together.
    bytes: u64,
    /// Topics that want it no more, and since when: for publishes that are under way.
    ended: HashMap<TopicId, Timestamp>,
    /// When it was last said that something is left out.
    said: Option<Timestamp>,
}

impl Writer {
    fn new(shared: &Arc<Shared>) -> Writer {
        Writer { shared: Arc::clone(shared), topics: HashMap::new(), bytes: 0, ended: HashMap::new(), said: None }
    }

    fn begin(&mut self, wanted: &HashMap<TopicId, CaptureInput>) {
        let names: HashSet<String> = wanted.keys().map(|topic| topic.0.to_string()).collect();
        for entry in std::fs::read_dir(&self.shared.root).into_iter().flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(|name| names.contains(name)) {
                self.heard(std::fs::remove_dir_all(entry.path()));
            }
        }
        for (topic, how) in wanted {
            let dir = self.shared.dir(*topic);
            if dir.is_dir() {
                self.topics.insert(*topic, Kept::open(dir, *how));
            }
        }
        let trimmed = self.trim();
        self.heard(trimmed);
    }

    /// Removes the oldest of all until the rest has room: there may be less of it than before.
    fn trim(&mut self) -> io::Result<()> {
        self.count();
        while self.bytes > self.shared.room.bytes_max {
            let of_any = self.topics.values_mut().filter_map(|kept| Some((kept.oldest()?, kept)));
            let Some((_, kept)) = of_any.min_by_key(|(oldest, _)| *oldest) else { break };
            kept.remove_oldest()?;
            self.count();
        }
        Ok(())
    }

    fn run(mut self) {
        let mut swept = self.shared.clock.now();
        while let Some(work) = self.shared.next() {
            let is_idle = work.is_none();
            if let Some(work) = work {
                self.act(work);
            }
            let now = self.shared.clock.now();
            if is_idle || now.since(swept) >= SWEEP_EVERY {
                swept = now;
                self.ended.retain(|_, since| now.since(*since) < ENDED_KEPT);
                let done = self.each(|kept| kept.flush().and(kept.sweep(now)));
                self.heard(done);
            }
        }
        let flushed = self.each(Kept::flush);
        self.heard(flushed);
    }

    fn act(&mut self, work: Work) {
        match work {
            Work::Keep { topic, how, arrived, .. } => self.keep(topic, how, &arrived),
            Work::Wanted { topic, how } => {
                self.ended.remove(&topic);
                let done = self.of(topic, |kept| {
                    kept.how = how;
                    kept.make_room(0, u64::MAX)
                });
                self.heard(done);
            }
            Work::Forget { topic, for_good, done } => {
                self.topics.remove(&topic);
                if for_good {
                    self.ended.insert(topic, self.shared.clock.now());
                }
                self.count();
                // Who asked may have gone, here and below.
                let _ = done.send(removed(&self.shared.dir(topic)));
            }
            Work::Erase { topic, messages, done } => {
                let _ = done.send(self.of(topic, |kept| kept.erase(&messages)));
            }
            Work::Read { topic, from, done } => {
                let flushed = self.of(topic, Kept::flush);
                let _ = done.send(flushed.and_then(|()| Reader::open(&self.shared.dir(topic), from)));
            }
        }
    }

    fn keep(&mut self, topic: TopicId, how: CaptureInput, arrived: &[Draft]) {
        if self.ended.contains_key(&topic) {
            return;
        }
        if let Err(error) = self.shared.room.look(&self.shared.root) {
            self.shared.lost.inc_by(arrived.len() as u64);
            return self.heard(Err(error));
        }
        // How it is wanted is told apart: a publish may have looked at the topic before that was changed.
        let kept = self.topics.entry(topic).or_insert_with(|| {
            let kept = Kept::open(self.shared.dir(topic), how);
            self.bytes += kept.bytes();
            kept
        });
        let others = self.bytes.saturating_sub(kept.bytes());
        let room = self.shared.room.bytes_max.saturating_sub(others);
        let done = arrived.iter().map(|draft| kept.add(draft, room)).fold(Ok(()), Result::and);
        self.bytes = others + kept.bytes();
        self.shared.count(kept);
        self.heard(done);
    }

    /// One topic, if anything is kept of it.
    fn of(&mut self, topic: TopicId, work: impl FnOnce(&mut Kept) -> io::Result<()>) -> io::Result<()> {
        let done = self.topics.get_mut(&topic).map_or(Ok(()), work);
        self.count();
        done
    }

    /// All topics, whatever becomes of one of them; the first failure.
    fn each(&mut self, work: impl FnMut(&mut Kept) -> io::Result<()>) -> io::Result<()> {
        let done = self.topics.values_mut().map(work).fold(Ok(()), Result::and);
        self.count();
        done
    }

    fn count(&mut self) {
        self.bytes = self.topics.values().map(Kept::bytes).sum();
        self.topics.values_mut().for_each(|kept| self.shared.count(kept));
    }

    fn heard(&mut self, done: io::Result<()>) {
        let Err(error) = done else { return };
        let now = self.shared.clock.now();
        if self.said.is_none_or(|said| now.since(said) >= SAID_EVERY) {
            self.said = Some(now);
            tracing::warn!(%error, "what arrives can't be kept for dry runs: it is left out and counted");
        }
    }
}

fn held_bytes(draft: &Draft) -> usize {
    let headers: usize = draft.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    draft.payload.len() + headers + MESSAGE_BYTES
}

fn removed(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
