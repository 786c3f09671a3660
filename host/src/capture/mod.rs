//! What arrives at topics whose owners want it kept, as it was before any stage saw it: versions of plugins are tried on it.
//! Invariant: nobody who publishes waits for it; what is kept is bounded in bytes and in age, and what finds no room is left
//! out and counted. Never a source of truth: nothing is synced.

mod files;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use prometheus::{IntCounter, Registry};
use tokio::sync::oneshot;

use crate::catalog::model::{CaptureInput, Topic};
use crate::clock::{Clock, Timestamp};
use crate::message::{MessageId, TopicId};
use crate::pipeline::draft::Draft;

use self::files::Kept;
pub use self::files::Reader;

/// Bytes that wait to be written, of all topics together.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What a message costs beside its payload.
const MESSAGE_BYTES: usize = 512;
/// Longer than any publish is under way.
const ENDED_KEPT: Duration = Duration::from_secs(3600);
/// How often what has grown too old is looked for, while nothing arrives.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Takes in what arrives. Clones share one thread.
#[derive(Clone)]
pub struct Capture(Arc<Shared>);

struct Shared {
    root: PathBuf,
    clock: Clock,
    state: Mutex<State>,
    called: Condvar,
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
        message: MessageId,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// All before it is in the files.
    Written {
        done: oneshot::Sender<io::Result<()>>,
    },
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("root", &self.0.root).finish_non_exhaustive()
    }
}

impl Capture {
    /// Begins on what was kept in `root`; what is there of topics that are gone, or want it no more, is removed.
    ///
    /// # Errors
    /// When the system refuses the thread, or a metric is registered already.
    pub fn open(root: &Path, wanted: &[Arc<Topic>], clock: &Clock, registry: &Registry) -> io::Result<Capture> {
        let counter = |name, help| {
            let counter = IntCounter::new(name, help).map_err(io::Error::other)?;
            registry.register(Box::new(counter.clone())).map_err(io::Error::other)?;
            Ok::<_, io::Error>(counter)
        };
        let kept = counter("sluice_captured_inputs_total", "Messages kept as they arrived, for dry runs.")?;
        let lost = counter("sluice_captured_inputs_lost_total", "Messages that were to be kept so, and could not be.")?;
        let shared = Shared {
            root: root.to_owned(),
            clock: clock.clone(),
            state: Mutex::default(),
            called: Condvar::new(),
            kept,
            lost,
        };
        let shared = Arc::new(shared);
        let wanting = wanted.iter().filter_map(|topic| Some((topic.id, topic.settings.capture_input?)));
        let mut writer =
            Writer { shared: Arc::clone(&shared), topics: HashMap::new(), ended: HashMap::new(), troubled: false };
        writer.begin(&wanting.collect());
        std::thread::Builder::new().name("capture".to_owned()).spawn(move || writer.run())?;
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

    /// Removes what is kept of one message.
    ///
    /// # Errors
    /// When a file can't be read or written anew.
    pub async fn erase(&self, topic: TopicId, message: MessageId) -> io::Result<()> {
        self.ask(|done| Work::Erase { topic, message, done }).await
    }

    /// What has arrived at `topic` since `from`, oldest first, up to now.
    ///
    /// # Errors
    /// When the files can't be listed.
    pub async fn read(&self, topic: TopicId, how: CaptureInput, from: Timestamp) -> io::Result<Reader> {
        self.ask(|done| Work::Written { done }).await?;
        let (dir, oldest) = (self.0.dir(topic), self.0.clock.now().minus(how.ttl));
        tokio::task::spawn_blocking(move || Reader::open(&dir, from.max(oldest))).await.map_err(io::Error::other)?
    }

    /// What waits is written; the thread ends.
    pub fn stop(&self) {
        self.0.state.lock().stopping = true;
        self.0.called.notify_one();
    }

    async fn ask(&self, work: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Work) -> io::Result<()> {
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
}

/// The thread's own.
struct Writer {
    shared: Arc<Shared>,
    topics: HashMap<TopicId, Kept>,
    /// Topics that want it no more, and since when: for publishes that are under way.
    ended: HashMap<TopicId, Timestamp>,
    /// Told once while it lasts.
    troubled: bool,
}

impl Writer {
    fn begin(&mut self, wanted: &HashMap<TopicId, CaptureInput>) {
        let names: HashSet<String> = wanted.keys().map(|topic| topic.0.to_string()).collect();
        for entry in std::fs::read_dir(&self.shared.root).into_iter().flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(|name| names.contains(name)) {
                self.heard(&std::fs::remove_dir_all(entry.path()));
            }
        }
        for (topic, how) in wanted {
            let dir = self.shared.dir(*topic);
            if dir.is_dir() {
                self.topics.insert(*topic, Kept::open(dir, *how));
            }
        }
    }

    fn run(mut self) {
        let mut swept = self.shared.clock.now();
        while let Some(work) = self.shared.next() {
            let is_idle = work.is_none();
            match work {
                Some(Work::Keep { topic, how, arrived, .. }) => self.keep(topic, how, &arrived),
                Some(Work::Wanted { topic, how }) => {
                    self.ended.remove(&topic);
                    if let Some(kept) = self.topics.get_mut(&topic) {
                        kept.how = how;
                        let done = kept.make_room(0);
                        self.heard(&done);
                    }
                }
                Some(Work::Forget { topic, for_good, done }) => {
                    self.topics.remove(&topic);
                    if for_good {
                        self.ended.insert(topic, self.shared.clock.now());
                    }
                    // Who asked may have gone.
                    let _ = done.send(removed(&self.shared.dir(topic)));
                }
                Some(Work::Erase { topic, message, done }) => {
                    let erased = self.topics.get_mut(&topic).map_or(Ok(()), |kept| kept.erase(message));
                    let _ = done.send(erased);
                }
                Some(Work::Written { done }) => {
                    let _ = done.send(self.topics.values_mut().try_for_each(Kept::flush));
                }
                None => {}
            }
            let now = self.shared.clock.now();
            if is_idle || now.since(swept) >= SWEEP_EVERY {
                swept = now;
                self.ended.retain(|_, since| now.since(*since) < ENDED_KEPT);
                let done = self.topics.values_mut().try_for_each(|kept| kept.flush().and_then(|()| kept.sweep(now)));
                self.heard(&done);
            }
        }
        let flushed = self.topics.values_mut().try_for_each(Kept::flush);
        self.heard(&flushed);
    }

    fn keep(&mut self, topic: TopicId, how: CaptureInput, arrived: &[Draft]) {
        if self.ended.contains_key(&topic) {
            return;
        }
        let dir = self.shared.dir(topic);
        // How it is wanted is told apart: a publish may have looked at the topic before that was changed.
        let kept = self.topics.entry(topic).or_insert_with(|| Kept::open(dir, how));
        let mut lost = 0;
        let mut last = Ok(());
        for draft in arrived {
            match kept.add(draft) {
                Ok(()) => self.shared.kept.inc(),
                Err(error) => (lost, last) = (lost + 1, Err(error)),
            }
        }
        self.shared.lost.inc_by(lost);
        self.heard(&last);
    }

    fn heard(&mut self, done: &io::Result<()>) {
        match done {
            Err(error) if !self.troubled => {
                tracing::warn!(%error, "what arrives can't be kept for dry runs: it is left out and counted");
            }
            _ => {}
        }
        self.troubled = done.is_err();
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
