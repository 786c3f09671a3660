//! Dry runs: the messages of one, and the thread that runs them. Invariant: no more than one batch of messages is held at a time,
//! however many there are; traffic goes first, since the thread has the lowest priority; a run ends with the one who asked for
//! it, and with the broker. Never says what a difference means.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::capture::Reader;
use crate::message::{GroupId, Message, Position, TopicId};
use crate::pipeline::draft::Draft;
use crate::pipeline::{DryRun, DryRunReport, give_way};
use crate::store::{MessageStore, ReadFrom, ReadRequest};
use crate::telemetry::Stopwatch;

/// Dry runs at once: each takes what is left of a processor.
const RUNNING_MAX: usize = 2;
/// Payload bytes that are held of what is read.
const CHUNK_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Between two reports of how far it is.
const TOLD_EVERY: Duration = Duration::from_millis(250);

/// Where messages come from.
pub enum Inputs {
    /// What arrived at a topic and was kept as it was.
    Captured(Reader),
    /// What stands in a topic's log.
    Stored {
        /// The log.
        store: Arc<dyn MessageStore>,
        /// Whose.
        topic: TopicId,
        /// What comes next.
        from: ReadFrom,
        /// How many there are, nearly.
        total: u64,
        /// For a topic's stages: as if they came now.
        inbound: bool,
    },
    /// Dead letters that wait.
    DeadLetters {
        /// Their list.
        store: Arc<dyn MessageStore>,
        /// The topic of dead letters.
        topic: TopicId,
        /// The last one that was read.
        after: Option<Position>,
        /// Of the group that they failed for; none: those that never got into the topic.
        group: Option<GroupId>,
        /// How many there are, nearly.
        total: u64,
    },
    /// What a client sends.
    Sent(mpsc::Receiver<Sent>),
}

/// A part of what a client sends.
#[derive(Debug)]
pub enum Sent {
    /// Some messages.
    Messages(Vec<Draft>),
    /// A line that is no message: which, and why.
    Unreadable(u64, String),
    /// The rest does not come.
    Broken(String),
}

impl std::fmt::Debug for Inputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Inputs::Captured(_) => "Captured",
            Inputs::Stored { .. } => "Stored",
            Inputs::DeadLetters { .. } => "DeadLetters",
            Inputs::Sent(_) => "Sent",
        })
    }
}

/// How far a run is, and in the end what came of it.
#[derive(Debug, Clone)]
pub struct Progress {
    /// What came of it so far.
    pub report: DryRunReport,
    /// Of all that there is to read, 0 to 1, where that is known.
    pub fraction: Option<f64>,
    /// Lines that were no messages.
    pub unreadable: u64,
    /// The first of them.
    pub unreadable_sample: Vec<(u64, String)>,
    /// Time since it began.
    pub took: Duration,
    /// How it ended.
    pub end: Option<End>,
}

/// How a run ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// There was no more.
    All,
    /// As many as were asked for.
    Limit,
    /// The broker stops, or nobody wants to know.
    Stopped,
    /// What follows could not be read.
    Broken(String),
}

/// A run under way. Dropped, it ends the run.
#[derive(Debug)]
pub struct Running {
    /// How far it is.
    pub progress: watch::Receiver<Progress>,
    /// Ends it.
    pub ends: CancellationToken,
    _ends: DropGuard,
}

/// The places for runs.
#[derive(Debug, Clone)]
pub struct DryRuns {
    places: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl DryRuns {
    /// None runs yet; all end with `stopping`.
    #[must_use]
    pub fn new(stopping: CancellationToken) -> DryRuns {
        DryRuns { places: Arc::new(Semaphore::new(RUNNING_MAX)), stopping }
    }

    /// A place, if there is one.
    #[must_use]
    pub fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Begins: at most `limit` messages of `inputs`.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(
        &self,
        (run, place): (DryRun, OwnedSemaphorePermit),
        inputs: Inputs,
        limit: u64,
    ) -> io::Result<Running> {
        let ends = self.stopping.child_token();
        let begun = Progress {
            report: run.report(),
            fraction: None,
            unreadable: 0,
            unreadable_sample: Vec::new(),
            took: Duration::ZERO,
            end: None,
        };
        let (told, progress) = watch::channel(begun);
        let (runtime, ended) = (Handle::current(), ends.clone());
        std::thread::Builder::new().name("plugin-dry-run".to_owned()).spawn(move || {
            let _entered = runtime.enter();
            give_way();
            let work =
                Work { run, inputs, left: limit, waiting: VecDeque::new(), ended, told: &told, runtime: &runtime };
            let last = catch_unwind(AssertUnwindSafe(|| work.run()));
            // Before it is told, so that who runs one after the other always finds the place of the one before.
            drop(place);
            told.send_modify(|progress| match last {
                Ok((report, took, end)) => {
                    (progress.report, progress.took, progress.end) = (report, took, Some(end));
                    progress.fraction = Some(1.0);
                }
                Err(_) => {
                    tracing::error!("a dry run panicked: it ends there");
                    let why = "the broker failed at it; its log says more".to_owned();
                    progress.end = Some(End::Broken(why));
                }
            });
        })?;
        Ok(Running { progress, ends: ends.clone(), _ends: ends.drop_guard() })
    }
}

struct Work<'t> {
    run: DryRun,
    inputs: Inputs,
    left: u64,
    /// What a client has sent beyond the batch under way.
    waiting: VecDeque<Draft>,
    ended: CancellationToken,
    told: &'t watch::Sender<Progress>,
    runtime: &'t Handle,
}

impl Work<'_> {
    /// To its end: what came of it, how long it took, and how it ended.
    fn run(mut self) -> (DryRunReport, Duration, End) {
        let watch = Stopwatch::start();
        let mut told_at = Duration::ZERO;
        let end = loop {
            if self.ended.is_cancelled() {
                break End::Stopped;
            }
            if self.left == 0 {
                break End::Limit;
            }
            let limit = usize::try_from(self.left).unwrap_or(usize::MAX).min(self.run.batch_messages_max());
            match self.next(limit) {
                Ok(None) => break End::All,
                Ok(Some(drafts)) => {
                    self.left -= drafts.len() as u64;
                    self.run.run(drafts);
                }
                Err(why) => break End::Broken(why),
            }
            if watch.elapsed() - told_at >= TOLD_EVERY {
                told_at = watch.elapsed();
                self.tell(told_at);
            }
        };
        (self.run.report(), watch.elapsed(), end)
    }

    fn tell(&self, took: Duration) {
        let report = self.run.report();
        let read = self.inputs.read(report.messages);
        self.told.send_modify(|progress| (progress.report, progress.took, progress.fraction) = (report, took, read));
    }

    /// Some messages, at most `limit`; none at the end.
    fn next(&mut self, limit: usize) -> Result<Option<Vec<Draft>>, String> {
        match &mut self.inputs {
            Inputs::Captured(reader) => {
                let (mut drafts, mut bytes) = (Vec::new(), 0);
                while drafts.len() < limit && bytes < CHUNK_BYTES_MAX {
                    let Some(draft) = reader.next().transpose().map_err(|error| error.to_string())? else { break };
                    bytes += draft.payload.len();
                    drafts.push(draft);
                }
                let damaged = reader.damaged();
                self.told.send_if_modified(|progress| {
                    if progress.unreadable < damaged.count {
                        progress.unreadable = damaged.count;
                        let lines = damaged.first.iter();
                        progress.unreadable_sample = lines.map(|line| (*line, DAMAGED.to_owned())).collect();
                    }
                    // Those who watch are told in the end.
                    false
                });
                Ok((!drafts.is_empty()).then_some(drafts))
            }
            Inputs::Stored { store, topic, from, inbound, .. } => loop {
                let request = ReadRequest {
                    topic: *topic,
                    partition: None,
                    from: from.clone(),
                    limit,
                    bytes_max: CHUNK_BYTES_MAX,
                };
                let page = self.runtime.block_on(store.read(request)).map_err(|error| error.to_string())?;
                let more = page.more;
                *from = ReadFrom::Cursor(page.reached);
                if !page.messages.is_empty() {
                    let inbound = *inbound;
                    let draft = |(at, message)| if inbound { arrived(message) } else { stored(at, message) };
                    return Ok(Some(page.messages.into_iter().map(draft).collect()));
                }
                if !more {
                    return Ok(None);
                }
            },
            Inputs::DeadLetters { store, topic, after, group, .. } => loop {
                let page = self.runtime.block_on(store.dead_letters(*topic, *after, limit));
                let page = page.map_err(|error| error.to_string())?;
                let Some((last, _)) = page.messages.last() else { return Ok(None) };
                *after = Some(*last);
                let fits =
                    |message: &Message| message.meta.dead_letter.as_deref().is_some_and(|facts| facts.group == *group);
                let fitting = page.messages.into_iter().filter(|(_, message)| fits(message));
                let drafts: Vec<Draft> = match group {
                    None => fitting.map(|(_, message)| arrived(message)).collect(),
                    Some(_) => fitting.map(|(position, message)| stored(position, message)).collect(),
                };
                if !drafts.is_empty() {
                    return Ok(Some(drafts));
                }
            },
            Inputs::Sent(sent) => loop {
                if !self.waiting.is_empty() {
                    let some = limit.min(self.waiting.len());
                    return Ok(Some(self.waiting.drain(..some).collect()));
                }
                let ended = self.ended.clone();
                let next = self.runtime.block_on(async {
                    tokio::select! {
                        next = sent.recv() => next,
                        () = ended.cancelled() => None,
                    }
                });
                match next {
                    None => return Ok(None),
                    Some(Sent::Messages(drafts)) => self.waiting.extend(drafts),
                    Some(Sent::Broken(why)) => return Err(why),
                    Some(Sent::Unreadable(line, why)) => self.told.send_modify(|progress| {
                        progress.unreadable += 1;
                        if progress.unreadable_sample.len() < UNREADABLE_SHOWN {
                            progress.unreadable_sample.push((line, why));
                        }
                    }),
                }
            },
        }
    }
}

/// What is said of a line of what was kept.
const DAMAGED: &str = "what was kept is damaged there";
/// Lines that were no messages, of which it is told why.
const UNREADABLE_SHOWN: usize = 10;

impl Inputs {
    /// How much of it was read, 0 to 1.
    fn read(&self, messages: u64) -> Option<f64> {
        let (read, of) = match self {
            Inputs::Captured(reader) => (reader.read_bytes(), reader.bytes),
            Inputs::Stored { total, .. } | Inputs::DeadLetters { total, .. } => (messages, *total),
            Inputs::Sent(_) => return None,
        };
        Some((read as f64 / of.max(1) as f64).min(1.0))
    }
}

/// A message on its way to a consumer.
fn stored(position: Position, message: Message) -> Draft {
    let attempt = 1;
    Draft { attempt, position: Some((position.partition, position.offset)), ..arrived(message) }
}

/// A message on its way in.
fn arrived(message: Message) -> Draft {
    let meta = message.meta;
    Draft {
        id: message.id,
        published_at: meta.published_at,
        payload: message.payload,
        content_type: meta.content_type,
        schema_version: meta.schema_version,
        headers: meta.headers,
        key: meta.key,
        correlation_id: meta.correlation_id,
        priority: meta.priority,
        attempt: 0,
        position: None,
        drawn: None,
    }
}
