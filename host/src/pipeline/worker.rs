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
use super::kv::KvRun;
use super::limits::{give_way, thread_cpu_ns};
use super::metrics::Metrics;
use super::queue::{Batch, Queue, QueueLimits, Runs};
use super::rollout::Shadow;
use super::shares::Shares;
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
    /// Work for their kind of threads has come, or the end.
    quick: Condvar,
    slow: Condvar,
    clock: Clock,
    metrics: Metrics,
    shadow: Shadow,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    stopping: bool,
}

impl Pool {
    /// Starts `limits.threads()` of each kind. They borrow the runtime that this is called in, since WASI wants one.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(
        (limits, shares): (QueueLimits, Shares),
        clock: Clock,
        (metrics, shadow): (Metrics, Shadow),
    ) -> std::io::Result<Pool> {
        let state = Mutex::new(State { queue: Queue::new(limits, shares), stopping: false });
        let shared = Arc::new(Shared { state, quick: Condvar::new(), slow: Condvar::new(), clock, metrics, shadow });
        let pool = Pool { shared, threads: Mutex::default() };
        for (runs, name) in [(Runs::Quick, "plugin"), (Runs::Slow, "plugin-slow")] {
            for number in 0..limits.threads(runs) {
                let (shared, runtime) = (Arc::clone(&pool.shared), Handle::current());
                let thread = std::thread::Builder::new().name(format!("{name}-{number}")).spawn(move || {
                    let _entered = runtime.enter();
                    if runs == Runs::Slow {
                        give_way();
                    }
                    shared.work(runs);
                })?;
                pool.threads.lock().push(thread);
            }
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
        kv: Option<KvRun>,
    ) -> Result<oneshot::Receiver<Run>, PipelineError> {
        let mut state = self.shared.state.lock();
        if state.stopping {
            return Err(PipelineError::Stopping);
        }
        let Some(answer) = state.queue.push(lane, topic, drafts, kv) else {
            self.shared.metrics.overloads.inc();
            return Err(PipelineError::Overloaded);
        };
        self.shared.call(&state.queue);
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
    /// One thread of each kind that has work; it calls the next one if there is more.
    fn call(&self, queue: &Queue) {
        self.count(queue);
        for (runs, threads) in [(Runs::Quick, &self.quick), (Runs::Slow, &self.slow)] {
            if queue.waits_for(runs) {
                threads.notify_one();
            }
        }
    }

    fn count(&self, queue: &Queue) {
        self.metrics.queued.set(i64::try_from(queue.messages).unwrap_or(i64::MAX));
    }

    fn call_all(&self) {
        self.quick.notify_all();
        self.slow.notify_all();
    }

    fn work(&self, runs: Runs) {
        while let Some(batch) = self.next(runs) {
            let (scope, ran) = (batch.lane.scope, (batch.on, batch.drafts.len()));
            let before = thread_cpu_ns();
            if catch_unwind(AssertUnwindSafe(|| self.run(batch))).is_err() {
                tracing::error!("a plugin worker panicked: its batch is answered as failed");
            }
            let cpu_ns = thread_cpu_ns().saturating_sub(before);
            let mut state = self.state.lock();
            state.queue.done(scope, ran, cpu_ns);
            // Its place may be what another thread waits for, and what it waits for may be a thread of the other kind.
            self.call(&state.queue);
        }
        self.call_all();
    }

    fn next(&self, runs: Runs) -> Option<Batch> {
        let mut state = self.state.lock();
        loop {
            let batch = state.queue.take(runs);
            if batch.is_some() {
                self.call(&state.queue);
                return batch;
            }
            // What nobody awaits is gone.
            self.count(&state.queue);
            // Not while anything waits for threads of the other kind: what it shows may bring it to this one.
            if state.stopping && state.queue.messages == 0 {
                return None;
            }
            match runs {
                Runs::Quick => self.quick.wait(&mut state),
                Runs::Slow => self.slow.wait(&mut state),
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
        let of = batch::Of { scope, topic: &waiting.topic, payload_bytes_max, growable, kv: waiting.kv.as_ref() };
        let (processed, grown) = batch::run_with(&waiting.revision, of, drafts, (&self.clock, Some(&self.shadow)));
        Batch::answer(parts, processed, grown);
    }
}
