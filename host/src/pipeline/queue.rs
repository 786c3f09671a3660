//! Runs that wait for a worker, per scope. Invariant: scopes with work take turns; a scope's runs are cut into batches and
//! merged in the order they came; what waits is bounded per scope, and so is how long one batch can keep a thread; no scope
//! ever holds all threads, nor do the topics of a quota more than its share, and one that is slow holds none that another
//! would run on. Never runs a stage.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::catalog::model::{Scope, Topic};
use crate::message::TopicName;

use super::draft::{Draft, Processed};
use super::kv::KvRun;
use super::limits::{CALL_BYTES_MAX, CALL_MESSAGES_MAX, RUN_GROWTH_BYTES_MAX};
use super::revision::Revision;
use super::shares::{Quota, Shares};
use super::{Lane, Run};

/// CPU time of a batch from which on its scope counts as slow: many times what an honest batch takes, far less than a
/// call may take.
const SLOW_NS: u64 = 5_000_000;
/// Quick batches in a row after which a slow scope counts as quick again: one that turns between the two at will is slow.
const QUICK_AGAIN: u32 = 16;
/// After a slow batch the next ones are this much smaller, so that a scope gives its thread back sooner.
const SLOW_SHRINKS: usize = 4;

/// Of threads: whose batches they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// Of scopes that are quick so far, or new.
    Quick,
    /// Of scopes that count as slow, and no other: such a thread gives way to everything else on the machine.
    Slow,
}

/// Bounds, from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// What the numbers of threads follow from: see [`QueueLimits::threads`].
    pub workers: usize,
    /// Batches of one scope at once; not more than `workers`.
    pub running_max: usize,
    /// Batches of one scope that wait.
    pub waiting_max: usize,
}

impl QueueLimits {
    /// For quick scopes one more than `workers`: one of them may use as many as there are workers, and the others still
    /// find a thread. For all slow ones together one less, and at least one. A thread costs nothing while it waits, and
    /// while it runs the system shares the processors out.
    #[must_use]
    pub fn threads(&self, runs: Runs) -> usize {
        match runs {
            Runs::Quick => self.workers + 1,
            Runs::Slow => self.workers.saturating_sub(1).max(1),
        }
    }
}

/// A caller's run: gathers the parts as they are done.
#[derive(Debug)]
pub struct Gather {
    /// All parts run on the revision that the first one began with.
    revision: OnceLock<Arc<Revision>>,
    /// Bytes that its stages may still add to what came in.
    growable: AtomicU64,
    state: Mutex<GatherState>,
}

#[derive(Debug)]
struct GatherState {
    missing: usize,
    parts: Vec<(usize, Vec<Processed>)>,
    reply: Option<oneshot::Sender<Run>>,
}

impl Gather {
    fn new(messages: usize, reply: oneshot::Sender<Run>) -> Gather {
        let state = GatherState { missing: messages, parts: Vec::new(), reply: Some(reply) };
        let growable = AtomicU64::new(RUN_GROWTH_BYTES_MAX);
        Gather { revision: OnceLock::new(), growable, state: Mutex::new(state) }
    }

    /// A batch with messages of this run has grown by so much. Its neighbours in the batch are charged the same: small
    /// runs end with it, and a large one shares no more than its first and last batch.
    fn grew(&self, bytes: u64) {
        // Relaxed: parts that run at the same time may each use what was left, which the number of workers bounds.
        let less = |growable: u64| Some(growable.saturating_sub(bytes));
        let _ = self.growable.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    fn is_awaited(&self) -> bool {
        self.state.lock().reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    /// Takes in the messages from `start` on; the last part answers the caller.
    fn done(&self, start: usize, part: Vec<Processed>) {
        let mut state = self.state.lock();
        state.missing = state.missing.saturating_sub(part.len());
        state.parts.push((start, part));
        if state.missing > 0 {
            return;
        }
        let mut parts = std::mem::take(&mut state.parts);
        parts.sort_unstable_by_key(|(start, _)| *start);
        let processed = match parts.len() {
            1 => parts.swap_remove(0).1,
            _ => parts.into_iter().flat_map(|(_, part)| part).collect(),
        };
        let revision = self.revision.get().map_or(0, |revision| revision.number);
        if let Some(reply) = state.reply.take() {
            // The caller may have gone.
            let _ = reply.send(Run { revision, processed });
        }
    }
}

/// A run, or what is left of it.
#[derive(Debug)]
struct Waiting {
    topic: TopicName,
    payload_bytes_max: u64,
    gather: Arc<Gather>,
    drafts: std::vec::IntoIter<Draft>,
    next: usize,
    kv: Option<KvRun>,
    span: tracing::Span,
}

impl Waiting {
    /// Whether parts of it have been taken, on a revision that keeps values.
    fn goes_on_with_values(&self) -> bool {
        let revision = self.gather.revision.get();
        self.kv.is_some() && self.next > 0 && revision.is_some_and(|revision| revision.keeps_values())
    }
}

/// What a worker takes: messages of one or more runs of one scope, all on one revision.
#[derive(Debug)]
pub struct Batch {
    /// The kind of threads that it is run on.
    pub on: Runs,
    /// Whose.
    pub lane: Arc<Lane>,
    /// The topic of all of them.
    pub topic: TopicName,
    /// The topic's `maxMessageSize`.
    pub payload_bytes_max: u64,
    /// What they run on.
    pub revision: Arc<Revision>,
    /// In order.
    pub drafts: Vec<Draft>,
    /// The span of the first run that has one.
    pub span: tracing::Span,
    /// What its stages do with values is part of this; then all of it is of one run.
    pub kv: Option<KvRun>,
    parts: Vec<(Arc<Gather>, usize, Range<usize>)>,
}

impl Batch {
    /// Hands the verdicts to the callers; their messages have grown by `grown` bytes.
    pub fn answer(parts: Parts, processed: Vec<Processed>, grown: u64) {
        let mut processed = processed.into_iter();
        for (gather, start, range) in parts.0 {
            gather.grew(grown);
            gather.done(start, processed.by_ref().take(range.len()).collect());
        }
    }

    /// Bytes that the stages may add to what came in: what is left of the run that has the least.
    #[must_use]
    pub fn growable(&self) -> u64 {
        let left = self.parts.iter().map(|(gather, ..)| gather.growable.load(Ordering::Relaxed));
        left.min().unwrap_or(RUN_GROWTH_BYTES_MAX)
    }

    /// Whom to answer.
    pub fn take_parts(&mut self) -> Parts {
        Parts(std::mem::take(&mut self.parts))
    }
}

/// Whom a batch belongs to.
#[derive(Debug)]
pub struct Parts(Vec<(Arc<Gather>, usize, Range<usize>)>);

#[derive(Debug)]
struct Line {
    lane: Arc<Lane>,
    waiting: VecDeque<Waiting>,
    messages: usize,
    bytes: usize,
    running: usize,
    pace: Pace,
    /// Messages of its next batch at most.
    share: usize,
    in_turn: bool,
    /// What its topic's name is under.
    quota: Option<Quota>,
}

/// How a scope's batches have behaved so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// None has run yet, and a new plugin may do anything: one message at first, alone.
    Unknown,
    /// Each took little.
    Quick,
    /// One took long, and so many since did not.
    Slow { quick: u32 },
}

/// All that waits.
#[derive(Debug)]
pub struct Queue {
    limits: QueueLimits,
    shares: Shares,
    lines: HashMap<Scope, Line>,
    quick: Turns,
    slow: Turns,
    /// Messages that wait.
    pub messages: usize,
}

/// Scopes with work for one kind of threads, the one whose turn it is first.
type Turns = VecDeque<Scope>;

impl Queue {
    /// With nothing waiting.
    #[must_use]
    pub fn new(limits: QueueLimits, shares: Shares) -> Queue {
        Queue { limits, shares, lines: HashMap::new(), quick: Turns::new(), slow: Turns::new(), messages: 0 }
    }

    /// Whether scopes wait for such a thread; each may still have as many batches running as it can.
    #[must_use]
    pub fn waits_for(&self, runs: Runs) -> bool {
        match runs {
            Runs::Quick => !self.quick.is_empty(),
            Runs::Slow => !self.slow.is_empty(),
        }
    }

    fn turns(&mut self, runs: Runs) -> &mut Turns {
        match runs {
            Runs::Quick => &mut self.quick,
            Runs::Slow => &mut self.slow,
        }
    }

    /// Adds a run, unless too much waits in its scope already. A run that finds an empty line is always taken: the
    /// request that it came with was bounded.
    pub fn push(
        &mut self,
        lane: &Arc<Lane>,
        topic: &Topic,
        drafts: Vec<Draft>,
        kv: Option<KvRun>,
    ) -> Option<oneshot::Receiver<Run>> {
        let quota = || self.shares.quota(topic.name.as_str());
        let line = self.lines.entry(lane.scope).or_insert_with(|| Line::new(lane, quota()));
        let bytes: usize = drafts.iter().map(|draft| draft.payload.len()).sum();
        let batches = batches(line.messages + drafts.len(), line.bytes + bytes);
        if line.messages > 0 && batches > self.limits.waiting_max {
            return None;
        }
        // A scope that was forgotten and made again has another lane.
        line.lane = Arc::clone(lane);
        line.messages += drafts.len();
        line.bytes += bytes;
        self.messages += drafts.len();
        self.shares.wait(line.quota, drafts.len(), 0);
        let (reply, answer) = oneshot::channel();
        let gather = Arc::new(Gather::new(drafts.len(), reply));
        let span = tracing::Span::current();
        let (topic, payload_bytes_max) = (topic.name.clone(), topic.settings.max_message_size);
        let waiting = Waiting { topic, payload_bytes_max, gather, drafts: drafts.into_iter(), next: 0, kv, span };
        line.waiting.push_back(waiting);
        if !std::mem::replace(&mut line.in_turn, true) {
            let on = line.needs();
            self.turns(on).push_back(lane.scope);
        }
        Some(answer)
    }

    /// The next batch that may run now on a thread of this kind.
    pub fn take(&mut self, runs: Runs) -> Option<Batch> {
        let mut at = 0;
        while let Some(scope) = self.turns(runs).get(at).copied() {
            let line = self.lines.get_mut(&scope).expect("a scope in turn has a line");
            let quota = line.quota;
            if !self.shares.has_room(quota, runs, scope) {
                self.turns(runs).remove(at);
                self.shares.park(quota, runs, scope);
                continue;
            }
            if !line.may_run(&self.limits) {
                at += 1;
                // The place that it can't take may be what another one waits for.
                self.shares.leaves(quota, runs, scope);
                self.wake(quota, runs);
                continue;
            }
            let before = line.messages;
            let batch = line.take(runs);
            self.messages -= before - line.messages;
            self.shares.wait(quota, line.messages, before);
            line.running += usize::from(batch.is_some());
            line.in_turn = !line.waiting.is_empty();
            let (in_turn, is_over) = (line.in_turn, line.is_over());
            self.turns(runs).remove(at);
            if in_turn {
                self.turns(runs).push_back(scope);
            } else if is_over {
                self.lines.remove(&scope);
            }
            // None if nobody awaits any more what waited there.
            if batch.is_some() {
                self.shares.begins(quota, runs, scope);
                return batch;
            }
            self.shares.leaves(quota, runs, scope);
            self.wake(quota, runs);
        }
        None
    }

    /// A batch of `scope` that ran on such a thread, with so many messages, took `cpu_ns`.
    pub fn done(&mut self, scope: Scope, (runs, messages): (Runs, usize), cpu_ns: u64) {
        let Some(line) = self.lines.get_mut(&scope) else { return };
        let quota = line.quota;
        self.shares.ends(quota, runs);
        line.running -= 1;
        let before = line.needs();
        line.learn(messages, cpu_ns);
        let (after, in_turn, is_over) = (line.needs(), line.in_turn, line.is_over());
        if in_turn && before != after {
            self.turns(before).retain(|waits| *waits != scope);
            self.shares.leaves(quota, before, scope);
            self.turns(after).push_back(scope);
            // It may have been the one that was to take a place.
            self.wake(quota, before);
        }
        if is_over {
            self.lines.remove(&scope);
        }
        self.wake(quota, runs);
    }

    /// If the quota has a place free, the next one that was put aside for it has its turn again, and finds the place.
    fn wake(&mut self, quota: Option<Quota>, runs: Runs) {
        if let Some(scope) = self.shares.wake(quota, runs) {
            self.turns(runs).push_back(scope);
        }
    }

    /// The scope is gone: nothing new will come for it.
    pub fn forget(&mut self, scope: Scope) {
        if self.lines.get(&scope).is_some_and(|line| line.running == 0 && line.waiting.is_empty()) {
            self.lines.remove(&scope);
        }
    }
}

impl Line {
    fn new(lane: &Arc<Lane>, quota: Option<Quota>) -> Line {
        Line {
            lane: Arc::clone(lane),
            waiting: VecDeque::new(),
            messages: 0,
            bytes: 0,
            running: 0,
            pace: Pace::Unknown,
            share: 1,
            in_turn: false,
            quota,
        }
    }

    /// The threads that its next batch runs on.
    fn needs(&self) -> Runs {
        match self.pace {
            Pace::Unknown | Pace::Quick => Runs::Quick,
            Pace::Slow { .. } => Runs::Slow,
        }
    }

    /// Each scope leaves a thread to the others.
    fn may_run(&self, limits: &QueueLimits) -> bool {
        // What a run has set is seen by the rest of it: its parts are not run beside each other.
        if self.running > 0 && self.waiting.front().is_some_and(Waiting::goes_on_with_values) {
            return false;
        }
        match self.pace {
            Pace::Unknown => self.running == 0,
            Pace::Quick | Pace::Slow { .. } => self.running < limits.running_max,
        }
    }

    /// Nothing runs or waits, and nothing will come: its scope is gone.
    fn is_over(&self) -> bool {
        self.running == 0 && self.waiting.is_empty() && self.lane.is_forgotten()
    }

    /// What a batch of `messages` that took `cpu_ns` says of those to come.
    fn learn(&mut self, messages: usize, cpu_ns: u64) {
        if cpu_ns > SLOW_NS {
            self.pace = Pace::Slow { quick: 0 };
            self.share = (messages / SLOW_SHRINKS).max(1);
            return;
        }
        self.pace = match self.pace {
            Pace::Slow { quick } if quick + 1 < QUICK_AGAIN => Pace::Slow { quick: quick + 1 },
            _ => Pace::Quick,
        };
        // Not while twice as many would be slow again.
        if messages >= self.share && cpu_ns < SLOW_NS / 2 {
            self.share = (self.share * 2).min(CALL_MESSAGES_MAX);
        }
    }

    fn take(&mut self, runs: Runs) -> Option<Batch> {
        let mut batch: Option<Batch> = None;
        let mut bytes = 0;
        while let Some(waiting) = self.waiting.front_mut() {
            if !waiting.gather.is_awaited() {
                let gone = self.waiting.pop_front().expect("it was at the front");
                self.messages -= gone.drafts.len();
                self.bytes -= gone.drafts.as_slice().iter().map(|draft| draft.payload.len()).sum::<usize>();
                continue;
            }
            let revision = Arc::clone(waiting.gather.revision.get_or_init(|| self.lane.current()));
            let batch = batch.get_or_insert_with(|| Batch {
                on: runs,
                lane: Arc::clone(&self.lane),
                topic: waiting.topic.clone(),
                payload_bytes_max: waiting.payload_bytes_max,
                revision: Arc::clone(&revision),
                drafts: Vec::new(),
                span: waiting.span.clone(),
                kv: waiting.kv.as_ref().map(|kv| kv.from(waiting.next)),
                parts: Vec::new(),
            });
            if batch.revision.number != revision.number {
                break;
            }
            if batch.span.is_disabled() {
                batch.span = waiting.span.clone();
            }
            let messages_max = self.share.min(batch.revision.batch_messages_max());
            let (first, start) = (batch.drafts.len(), waiting.next);
            while let Some(draft) = waiting.drafts.as_slice().first() {
                let more = draft.payload.len();
                let full = batch.drafts.len() >= messages_max || bytes + more > CALL_BYTES_MAX;
                if full && !batch.drafts.is_empty() {
                    break;
                }
                bytes += more;
                self.bytes -= more;
                self.messages -= 1;
                waiting.next += 1;
                batch.drafts.extend(waiting.drafts.next());
            }
            if batch.drafts.len() > first {
                batch.parts.push((Arc::clone(&waiting.gather), start, first..batch.drafts.len()));
            }
            if waiting.drafts.len() > 0 {
                break;
            }
            // Each run's messages are stored, or not, without those of another: so are the values that go with them.
            let apart = waiting.kv.is_some() && batch.revision.keeps_values();
            self.waiting.pop_front();
            if apart {
                break;
            }
        }
        batch
    }
}

/// How many batches so many messages and bytes make.
fn batches(messages: usize, bytes: usize) -> usize {
    messages.div_ceil(CALL_MESSAGES_MAX).max(bytes.div_ceil(CALL_BYTES_MAX))
}
