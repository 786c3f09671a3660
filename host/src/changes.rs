//! Changes that are carried to their end. Invariant: once begun, a change ends by itself, also when whoever asked for it
//! has gone, and a stop waits for it before store and catalog close; in a fleet it is answered once the other brokers know it, or have had the time to.
//! Never begins, retries or undoes one.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::fleet::Fleet;

/// The changes under way. Cheap to clone; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    under_way: TaskTracker,
    fleet: Option<Arc<Fleet>>,
}

impl Changes {
    /// Of a broker; of one among others with the fleet.
    #[must_use]
    pub fn among(fleet: Option<Arc<Fleet>>) -> Changes {
        Changes { under_way: TaskTracker::default(), fleet }
    }

    /// Runs `change` and answers with what it came to. A change touches catalog, store and pipelines one after the
    /// other; one that is dropped in between, as a handler is when its client hangs up, would leave them out of step.
    pub async fn carry<T: Send + 'static>(&self, change: impl Future<Output = T> + Send + 'static) -> T {
        let fleet = self.fleet.clone();
        let known_by_all = async move {
            let done = change.await;
            if let Some(fleet) = fleet {
                fleet.settle().await;
            }
            done
        };
        match self.under_way.spawn(known_by_all).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // Only a runtime that ends cancels it, and then this future is not asked again.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Waits until none is under way, for at most `patience`.
    pub async fn finish(&self, patience: Duration) {
        self.under_way.close();
        if tokio::time::timeout(patience, self.under_way.wait()).await.is_err() {
            tracing::warn!(under_way = self.under_way.len(), "changes are cut off: they did not end in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_change_outlives_whoever_asked_for_it_and_a_stop_waits_for_it() {
        let (changes, done) = (Changes::default(), Arc::new(AtomicBool::new(false)));
        let (go_on, wait) = oneshot::channel::<()>();
        let change = {
            let done = Arc::clone(&done);
            async move {
                wait.await.expect("it is told to go on");
                done.store(true, Ordering::SeqCst);
            }
        };
        assert!(changes.carry(change).now_or_never().is_none(), "it waits, and is dropped");
        let stop = tokio::spawn({
            let changes = changes.clone();
            async move { changes.finish(PATIENCE).await }
        });
        tokio::task::yield_now().await;
        assert!(!stop.is_finished());
        go_on.send(()).expect("it is under way");
        stop.await.expect("the stop ends");
        assert!(done.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_panic_is_the_callers() {
        let changes = Changes::default();
        let carried = std::panic::AssertUnwindSafe(changes.carry(async { panic!("on purpose") })).catch_unwind();
        assert!(carried.await.is_err());
        changes.finish(PATIENCE).await;
    }
}
