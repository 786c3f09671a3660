//! Runs that wait for a worker, per scope. Invariant: scopes with work take turns; a scope's runs are cut into batches and
//! merged in the order they came; what waits is bounded per scope. Never runs a stage.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::catalog::model::Scope;
use crate::message::TopicName;

use super::draft::{Draft, Processed};
use super::limits::{CALL_BYTES_MAX, CALL_MESSAGES_MAX};
use super::revision::Revision;
use super::{Lane, Run};

/// CPU time of a batch from which on its scope counts as slow: many times what an honest batch takes, far less than a
/// call may take.
const SLOW_NS: u64 = 5_000_000;

/// Bounds, from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Threads that run batches.
    pub workers: usize,
    /// Batches of one scope at once.
    pub running_max: usize,
    /// Batches of one scope that wait.
    pub waiting_max: usize,
}

/// A caller's run: gathers the parts as they are done.
#[derive(Debug)]
pub struct Gather {
    /// All parts run on the revision that the first one began with.
    revision: OnceLock<Arc<Revision>>,
    state: Mutex<GatherState>,
}

#[derive(Debug)]
struct GatherState {
    missing: usize,
    parts: Vec<(usize, Vec<Processed>)>,
    reply: Option<oneshot::Sender<Run>>,
}

impl Gather {
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
    gather: Arc<Gather>,
    drafts: std::vec::IntoIter<Draft>,
    next: usize,
    span: tracing::Span,
}

/// What a worker takes: messages of one or more runs of one scope, all on one revision.
#[derive(Debug)]
pub struct Batch {
    /// Whose.
    pub lane: Arc<Lane>,
    /// The topic of all of them.
    pub topic: TopicName,
    /// What they run on.
    pub revision: Arc<Revision>,
    /// In order.
    pub drafts: Vec<Draft>,
    /// The span of the first run.
    pub span: tracing::Span,
    parts: Vec<(Arc<Gather>, usize, Range<usize>)>,
}

impl Batch {
    /// Hands the verdicts to the callers.
    pub fn answer(parts: Parts, processed: Vec<Processed>) {
        let mut processed = processed.into_iter();
        for (gather, start, range) in parts.0 {
            gather.done(start, processed.by_ref().take(range.len()).collect());
        }
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
    slow: bool,
    in_turn: bool,
}

/// All that waits.
#[derive(Debug)]
pub struct Queue {
    limits: QueueLimits,
    lines: HashMap<Scope, Line>,
    /// Scopes with work, the one whose turn it is first.
    turns: VecDeque<Scope>,
    slow_running: usize,
    /// Messages that wait.
    pub messages: usize,
}

impl Queue {
    /// With nothing waiting.
    #[must_use]
    pub fn new(limits: QueueLimits) -> Queue {
        Queue { limits, lines: HashMap::new(), turns: VecDeque::new(), slow_running: 0, messages: 0 }
    }

    /// Adds a run, unless too much waits in its scope already. A run that finds an empty line is always taken: the
    /// request that it came with was bounded.
    pub fn push(&mut self, lane: &Arc<Lane>, topic: &TopicName, drafts: Vec<Draft>) -> Option<oneshot::Receiver<Run>> {
        let line = self.lines.entry(lane.scope).or_insert_with(|| Line::new(lane));
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
        let (reply, answer) = oneshot::channel();
        let state = GatherState { missing: drafts.len(), parts: Vec::new(), reply: Some(reply) };
        let gather = Arc::new(Gather { revision: OnceLock::new(), state: Mutex::new(state) });
        let span = tracing::Span::current();
        let waiting = Waiting { topic: topic.clone(), gather, drafts: drafts.into_iter(), next: 0, span };
        line.waiting.push_back(waiting);
        if !line.in_turn {
            line.in_turn = true;
            self.turns.push_back(lane.scope);
        }
        Some(answer)
    }

    /// The next batch that may run now.
    pub fn take(&mut self) -> Option<Batch> {
        let mut at = 0;
        while let Some(scope) = self.turns.get(at).copied() {
            let line = self.lines.get_mut(&scope).expect("a scope in turn has a line");
            if !line.may_run(&self.limits, self.slow_running) {
                at += 1;
                continue;
            }
            self.turns.remove(at);
            let before = line.messages;
            let batch = line.take();
            self.messages -= before - line.messages;
            line.in_turn = !line.waiting.is_empty();
            if line.in_turn {
                self.turns.push_back(scope);
            }
            // None if nobody awaits any more what waited there.
            if let Some(batch) = batch {
                line.running += 1;
                self.slow_running += usize::from(line.slow);
                return Some(batch);
            }
        }
        None
    }

    /// A batch of `scope` took `cpu_ns`.
    pub fn done(&mut self, scope: Scope, cpu_ns: u64) {
        let Some(line) = self.lines.get_mut(&scope) else { return };
        line.running -= 1;
        self.slow_running -= usize::from(line.slow);
        let slow = cpu_ns > SLOW_NS;
        if slow != line.slow {
            // Those of its batches that still run are counted as what the scope is now.
            self.slow_running -= if line.slow { line.running } else { 0 };
            self.slow_running += if slow { line.running } else { 0 };
            line.slow = slow;
        }
        if line.running == 0 && line.waiting.is_empty() && line.lane.is_forgotten() {
            self.lines.remove(&scope);
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
    fn new(lane: &Arc<Lane>) -> Line {
        // Slow until it has shown that it is not: a new plugin may do anything.
        let (messages, bytes, running) = (0, 0, 0);
        Line { lane: Arc::clone(lane), waiting: VecDeque::new(), messages, bytes, running, slow: true, in_turn: false }
    }

    /// All slow scopes together leave one worker to the others.
    fn may_run(&self, limits: &QueueLimits, slow_running: usize) -> bool {
        let slow_max = limits.workers.saturating_sub(1).max(1);
        self.running < limits.running_max && !(self.slow && slow_running >= slow_max)
    }

    fn take(&mut self) -> Option<Batch> {
        let mut batch: Option<Batch> = None;
        let mut bytes = 0;
        while let Some(waiting) = self.waiting.front_mut() {
            if waiting.next == 0 && !waiting.gather.is_awaited() {
                let gone = self.waiting.pop_front().expect("it was at the front");
                self.messages -= gone.drafts.len();
                self.bytes -= gone.drafts.as_slice().iter().map(|draft| draft.payload.len()).sum::<usize>();
                continue;
            }
            let revision = Arc::clone(waiting.gather.revision.get_or_init(|| self.lane.current()));
            let batch = batch.get_or_insert_with(|| Batch {
                lane: Arc::clone(&self.lane),
                topic: waiting.topic.clone(),
                revision: Arc::clone(&revision),
                drafts: Vec::new(),
                span: waiting.span.clone(),
                parts: Vec::new(),
            });
            if batch.revision.number != revision.number {
                break;
            }
            let (first, start) = (batch.drafts.len(), waiting.next);
            while let Some(draft) = waiting.drafts.as_slice().first() {
                let more = draft.payload.len();
                let full = batch.drafts.len() >= CALL_MESSAGES_MAX || bytes + more > CALL_BYTES_MAX;
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
            self.waiting.pop_front();
        }
        batch
    }
}

/// How many batches so many messages and bytes make.
fn batches(messages: usize, bytes: usize) -> usize {
    messages.div_ceil(CALL_MESSAGES_MAX).max(bytes.div_ceil(CALL_BYTES_MAX))
}
