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
    clock: Clock,
    metrics: Metrics,
    shadow: Shadow,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    /// The threads that have nothing to do: each waits to be told that work for its kind has come, or the end. The one that
    /// rested last is called first, since its caches are warm.
    resting: Resting,
    stopping: bool,
}

#[derive(Debug, Default)]
struct Resting {
    quick: Vec<Arc<Condvar>>,
    slow: Vec<Arc<Condvar>>,
}

impl Resting {
    fn of(&mut self, runs: Runs) -> &mut Vec<Arc<Condvar>> {
        match runs {
            Runs::Quick => &mut self.quick,
            Runs::Slow => &mut self.slow,
        }
    }
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
        let queue = Queue::new(limits, shares);
        let state = Mutex::new(State { queue, resting: Resting::default(), stopping: false });
        let shared = Arc::new(Shared { state, clock, metrics, shadow });
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
        self.shared.call(&mut state);
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
    fn call(&self, state: &mut State) {
        self.count(&state.queue);
        for runs in [Runs::Quick, Runs::Slow] {
            if state.queue.waits_for(runs)
                && let Some(thread) = state.resting.of(runs).pop()
            {
                thread.notify_one();
            }
        }
    }

    fn count(&self, queue: &Queue) {
        self.metrics.queued.set(i64::try_from(queue.messages).unwrap_or(i64::MAX));
    }

    fn call_all(&self) {
        let resting = std::mem::take(&mut self.state.lock().resting);
        for thread in resting.quick.into_iter().chain(resting.slow) {
            thread.notify_one();
        }
    }

    fn work(&self, runs: Runs) {
        let called = Arc::new(Condvar::new());
        while let Some(batch) = self.next(runs, &called) {
            let (scope, ran) = (batch.lane.scope, (batch.on, batch.drafts.len()));
            let before = thread_cpu_ns();
            if catch_unwind(AssertUnwindSafe(|| self.run(batch))).is_err() {
                tracing::error!("a plugin worker panicked: its batch is answered as failed");
            }
            let cpu_ns = thread_cpu_ns().saturating_sub(before);
            let mut state = self.state.lock();
            state.queue.done(scope, ran, cpu_ns);
            // Its place may be what another thread waits for, and what it waits for may be a thread of the other kind.
            self.call(&mut state);
        }
        self.call_all();
    }

    fn next(&self, runs: Runs, called: &Arc<Condvar>) -> Option<Batch> {
        let mut state = self.state.lock();
        loop {
            let batch = state.queue.take(runs);
            if batch.is_some() {
                self.call(&mut state);
                return batch;
            }
            // What nobody awaits is gone.
            self.count(&state.queue);
            // Not while anything waits for threads of the other kind: what it shows may bring it to this one.
            if state.stopping && state.queue.messages == 0 {
                return None;
            }
            state.resting.of(runs).push(Arc::clone(called));
            called.wait(&mut state);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::revision::Revision;
    use crate::pipeline::tests::{Rig, draft};

    /// The threads for quick scopes, once all of them rest, the one that rested last behind the others.
    async fn resting(pool: &Pool, threads: usize) -> Vec<*const Condvar> {
        loop {
            let all: Vec<_> = pool.shared.state.lock().resting.quick.iter().map(Arc::as_ptr).collect();
            if all.len() == threads {
                return all;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_thread_that_rested_last_is_called_first() {
        let rig = Rig::with(|plugins| plugins.workers = 3).await;
        let (pool, machine) = (&rig.pipelines.pool, Arc::clone(&rig.pipelines.machine));
        // Without stages, so that no machine is slow enough for the runs to count as slow.
        let lane = Lane::new(rig.scope(), Revision { number: 0, record: None, steps: Vec::new(), machine });
        let before = resting(pool, 4).await;
        for _ in 0..4 {
            let run = pool.push(&lane, &rig.topic, vec![draft("{}", &[])], None).unwrap();
            assert_eq!(run.await.unwrap().processed.len(), 1);
            // Who ran it rests last again; another one would have left its place.
            assert_eq!(resting(pool, 4).await, before);
        }
    }
}
