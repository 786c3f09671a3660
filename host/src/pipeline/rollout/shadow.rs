//! Versions that run beside live traffic, on copies of its messages. Invariant: traffic never waits for them; what waits is
//! bounded, and what finds no room is left out and counted; what they do is compared and thrown away. Never on a thread that
//! anybody waits for.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;

use crate::catalog::model::Scope;
use crate::clock::Clock;
use crate::message::TopicName;

use super::super::batch::{self, Of};
use super::super::draft::Draft;
use super::super::limits::{RUN_GROWTH_BYTES_MAX, give_way};
use super::Candidate;
use super::compare::Made;

/// Messages that wait, of all topics together.
const WAITING_MAX: usize = 2048;
/// Bytes of their payloads.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A batch as it came to a stage, and what the stage's version made of it.
pub struct Job {
    /// What is tried.
    pub candidate: Arc<Candidate>,
    /// Whose stage.
    pub scope: Scope,
    /// The topic of all of them.
    pub topic: TopicName,
    /// The topic's `maxMessageSize`.
    pub payload_bytes_max: u64,
    /// As they came, and as they left.
    pub messages: Vec<(Draft, Made)>,
}

impl Job {
    fn bytes(&self) -> usize {
        self.messages.iter().map(|(before, after)| before.payload.len() + after.draft.payload.len()).sum()
    }
}

/// Hands batches to the thread that runs them, which the first one starts. Clones share one queue.
#[derive(Clone, Default)]
pub struct Shadow(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    called: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    messages: usize,
    bytes: usize,
    running: bool,
    stopping: bool,
}

impl std::fmt::Debug for Shadow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shadow").finish_non_exhaustive()
    }
}

impl Shadow {
    /// Whether `messages` more would be taken now: they need not be copied otherwise.
    #[must_use]
    pub fn has_room(&self, messages: usize) -> bool {
        let state = self.0.state.lock();
        !state.stopping && state.messages + messages <= WAITING_MAX && state.bytes < WAITING_BYTES_MAX
    }

    /// Takes in a batch, or leaves it out and counts it.
    pub fn push(&self, job: Job, clock: &Clock) {
        let (messages, bytes) = (job.messages.len(), job.bytes());
        let mut state = self.0.state.lock();
        let fits = state.messages + messages <= WAITING_MAX && state.bytes + bytes <= WAITING_BYTES_MAX;
        if state.stopping || !fits {
            drop(state);
            return job.candidate.trial.shed(messages);
        }
        if !state.running && !self.start(clock) {
            drop(state);
            return job.candidate.trial.shed(messages);
        }
        state.running = true;
        state.messages += messages;
        state.bytes += bytes;
        state.waiting.push_back(job);
        self.0.called.notify_one();
    }

    /// What waits is left out. The batch under way ends by itself.
    pub fn stop(&self) {
        let mut state = self.0.state.lock();
        state.stopping = true;
        state.waiting.clear();
        self.0.called.notify_all();
    }

    /// A thread of the lowest priority: it runs only while nothing else wants the processor.
    fn start(&self, clock: &Clock) -> bool {
        let (shared, clock, runtime) = (Arc::clone(&self.0), clock.clone(), Handle::try_current());
        let Ok(runtime) = runtime else { return false };
        let started = std::thread::Builder::new().name("plugin-shadow".to_owned()).spawn(move || {
            let _entered = runtime.enter();
            give_way();
            while let Some(job) = shared.next() {
                if catch_unwind(AssertUnwindSafe(|| run(job, &clock))).is_err() {
                    tracing::error!("a shadow run panicked: its batch is not compared");
                }
            }
        });
        started.inspect_err(|error| tracing::warn!(%error, "no thread for shadow runs")).is_ok()
    }
}

impl Shared {
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.stopping {
                return None;
            }
            if let Some(job) = state.waiting.pop_front() {
                state.messages -= job.messages.len();
                state.bytes -= job.bytes();
                return Some(job);
            }
            self.called.wait(&mut state);
        }
    }
}

fn run(job: Job, clock: &Clock) {
    let Job { candidate, scope, topic, payload_bytes_max, messages } = job;
    let (before, live): (Vec<Draft>, Vec<Made>) = messages.into_iter().unzip();
    let ids: Vec<_> = before.iter().map(|draft| draft.id).collect();
    let of = Of { scope, topic: &topic, payload_bytes_max, growable: RUN_GROWTH_BYTES_MAX, kv: None };
    let (processed, _) = batch::run(&candidate.alone, of, before, clock);
    let compared = ids.into_iter().zip(live).zip(processed).map(|((id, live), tried)| (id, live, tried)).collect();
    candidate.trial.compared(clock.now(), compared);
}
