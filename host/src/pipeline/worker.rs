//! The threads that run plugins. Invariant: a run is taken or refused at once, and one that is taken is answered; a panic
//! of ours in one batch ends neither the thread nor another topic's work. Never runs on the reactor's threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::catalog::model::Topic;
use crate::clock::Clock;

use super::draft::Draft;
use super::limits::{lower_priority, thread_cpu_ns};
use super::metrics::Metrics;
use super::queue::{Batch, Queue, QueueLimits, Takes};
use super::{Lane, PipelineError, Run, batch};

/// Of the threads that run slow scopes' batches: what they take is what nobody else on the machine wants, and a neighbour
/// that waits for a processor does not wait for them.
const SLOW_NICENESS: i32 = 10;

/// See the module.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Work has come, or the end: for threads that take all but what is slow.
    work: Condvar,
    /// The same, for those that take any.
    any_work: Condvar,
    clock: Clock,
    metrics: Metrics,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    stopping: bool,
}

impl Pool {
    /// Starts `limits.threads()` threads. They borrow the runtime that this is called in, since WASI wants one.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(limits: QueueLimits, clock: Clock, metrics: Metrics) -> std::io::Result<Pool> {
        let state = Mutex::new(State { queue: Queue::new(limits), stopping: false });
        let shared = Arc::new(Shared { state, work: Condvar::new(), any_work: Condvar::new(), clock, metrics });
        let pool = Pool { shared, threads: Mutex::default() };
        for number in 0..limits.threads() {
            let (shared, runtime) = (Arc::clone(&pool.shared), Handle::current());
            let takes = if number < limits.slow_max() { Takes::Any } else { Takes::NotSlow };
            let thread = std::thread::Builder::new().name(format!("plugin-{number}")).spawn(move || {
                let _entered = runtime.enter();
                if takes == Takes::Any {
                    lower_priority(SLOW_NICENESS);
                }
                shared.work(takes);
            })?;
            pool.threads.lock().push(thread);
        }
        Ok(pool)
    }

    /// Takes in a run.
    ///
    /// # Errors
    /// [`PipelineError::Overloaded`], [`PipelineError::Stopping`].
    pub fn push(
        &self,
        lane: &Arc<Lane>,
        topic: &Topic,
        drafts: Vec<Draft>,
    ) -> Result<oneshot::Receiver<Run>, PipelineError> {
        let mut state = self.shared.state.lock();
        if state.stopping {
            return Err(PipelineError::Stopping);
        }
        let Some(answer) = state.queue.push(lane, topic, drafts) else {
            self.shared.metrics.overloads.inc();
            return Err(PipelineError::Overloaded);
        };
        self.shared.metrics.queued.set(i64::try_from(state.queue.messages).unwrap_or(i64::MAX));
        drop(state);
        self.shared.call();
        Ok(answer)
    }

    /// The lane's scope is gone.
    pub fn forget(&self, lane: &Lane) {
        self.shared.state.lock().queue.forget(lane.scope);
    }

    /// Lets the workers end what waits, and waits for them.
    pub async fn stop(&self) {
        self.shared.state.lock().stopping = true;
        self.shared.call_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                // A worker catches panics, and there is nothing left to do about one here.
                let _ = thread.join();
            }
        });
        if joined.await.is_err() {
            tracing::warn!("the plugin workers could not be awaited");
        }
    }
}

impl Drop for Pool {
    /// Without `stop`, the threads still end, on their own time.
    fn drop(&mut self) {
        self.shared.state.lock().stopping = true;
        self.shared.call_all();
    }
}

impl Shared {
    /// One thread has something to look at, first of those that do not run at a low priority.
    fn call(&self) {
        if !self.work.notify_one() {
            self.any_work.notify_one();
        }
    }

    fn call_all(&self) {
        self.work.notify_all();
        self.any_work.notify_all();
    }

    fn work(&self, takes: Takes) {
        while let Some(batch) = self.next(takes) {
            let (scope, messages) = (batch.lane.scope, batch.drafts.len());
            let before = thread_cpu_ns();
            if catch_unwind(AssertUnwindSafe(|| self.run(batch))).is_err() {
                tracing::error!("a plugin worker panicked: its batch is answered as failed");
            }
            self.state.lock().queue.done(scope, messages, thread_cpu_ns().saturating_sub(before));
            // Its place may be what another scope waits for.
            self.call();
        }
        self.call_all();
    }

    fn next(&self, takes: Takes) -> Option<Batch> {
        let mut state = self.state.lock();
        loop {
            if let Some(batch) = state.queue.take(takes) {
                self.metrics.queued.set(i64::try_from(state.queue.messages).unwrap_or(i64::MAX));
                if state.queue.messages > 0 {
                    self.call();
                }
                return Some(batch);
            }
            if state.stopping && state.queue.messages == 0 {
                return None;
            }
            match takes {
                Takes::Any => self.any_work.wait(&mut state),
                Takes::NotSlow => {
                    if state.queue.messages > 0 {
                        // Whoever called this one may have called for a slow scope.
                        self.any_work.notify_one();
                    }
                    self.work.wait(&mut state);
                }
            }
        }
    }

    fn run(&self, mut waiting: Batch) {
        // If the run panics, the parts are dropped, and with them the callers' replies: they get an error.
        let growable = waiting.growable();
        let parts = waiting.take_parts();
        let _entered = waiting.span.enter();
        let drafts = std::mem::take(&mut waiting.drafts);
        let (scope, payload_bytes_max) = (waiting.lane.scope, waiting.payload_bytes_max);
        let of = batch::Of { scope, topic: &waiting.topic, payload_bytes_max, growable };
        let (processed, grown) = batch::run(&waiting.revision, of, drafts, &self.clock);
        Batch::answer(parts, processed, grown);
    }
}
