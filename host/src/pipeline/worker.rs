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
use super::limits::thread_cpu_ns;
use super::metrics::Metrics;
use super::queue::{Batch, Queue, QueueLimits};
use super::{Lane, PipelineError, Run, batch};

/// See the module.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Work has come, or the end.
    work: Condvar,
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
        let shared = Arc::new(Shared { state, work: Condvar::new(), clock, metrics });
        let pool = Pool { shared, threads: Mutex::default() };
        for number in 0..limits.threads() {
            let (shared, runtime) = (Arc::clone(&pool.shared), Handle::current());
            let thread = std::thread::Builder::new().name(format!("plugin-{number}")).spawn(move || {
                let _entered = runtime.enter();
                shared.work();
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
        self.shared.work.notify_one();
        Ok(answer)
    }

    /// The lane's scope is gone.
    pub fn forget(&self, lane: &Lane) {
        self.shared.state.lock().queue.forget(lane.scope);
    }

    /// Lets the workers end what waits, and waits for them.
    pub async fn stop(&self) {
        self.shared.state.lock().stopping = true;
        self.shared.work.notify_all();
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
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        while let Some(batch) = self.next() {
            let (scope, messages) = (batch.lane.scope, batch.drafts.len());
            let before = thread_cpu_ns();
            if catch_unwind(AssertUnwindSafe(|| self.run(batch))).is_err() {
                tracing::error!("a plugin worker panicked: its batch is answered as failed");
            }
            self.state.lock().queue.done(scope, messages, thread_cpu_ns().saturating_sub(before));
            // Its place may be what another scope waits for.
            self.work.notify_one();
        }
        self.work.notify_all();
    }

    fn next(&self) -> Option<Batch> {
        let mut state = self.state.lock();
        loop {
            if let Some(batch) = state.queue.take() {
                self.metrics.queued.set(i64::try_from(state.queue.messages).unwrap_or(i64::MAX));
                if state.queue.messages > 0 {
                    self.work.notify_one();
                }
                return Some(batch);
            }
            if state.stopping && state.queue.messages == 0 {
                return None;
            }
            self.work.wait(&mut state);
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
