//! Whether this broker takes work. Invariant: off duty it sends no webhook, keeps no consumer waiting and says that it is not ready, so that the
//! other brokers, or none, have what it would have taken; what it has taken it ends. Never refuses a request by itself.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Why a broker takes no work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Reasons {
    /// Somebody has asked for it.
    drained: bool,
    /// The other brokers don't count it.
    outside: bool,
}

/// See the module. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct Duty {
    reasons: Arc<watch::Sender<Reasons>>,
    stopping: CancellationToken,
}

impl Duty {
    /// On duty until `stopping`, unless it is told otherwise.
    #[must_use]
    pub fn new(stopping: CancellationToken) -> Duty {
        Duty { reasons: Arc::new(watch::Sender::new(Reasons::default())), stopping }
    }

    /// Whether work is taken.
    #[must_use]
    pub fn is_on(&self) -> bool {
        *self.reasons.borrow() == Reasons::default() && !self.stopping.is_cancelled()
    }

    /// Whether somebody has asked that none is taken.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.reasons.borrow().drained
    }

    /// No work any more, or work again.
    pub fn drain(&self, drained: bool) {
        if self.change(|reasons| reasons.drained = drained) {
            let what = if drained { "drained: no work is taken any more" } else { "work is taken again" };
            tracing::info!("{what}");
        }
    }

    /// The other brokers count this one, or do not.
    pub fn stay_outside(&self, outside: bool) {
        self.change(|reasons| reasons.outside = outside);
    }

    fn change(&self, change: impl FnOnce(&mut Reasons)) -> bool {
        self.reasons.send_if_modified(|reasons| {
            let before = *reasons;
            change(reasons);
            *reasons != before
        })
    }

    /// Waits until no work is taken.
    pub async fn off(&self) {
        let mut reasons = self.reasons.subscribe();
        tokio::select! {
            () = self.stopping.cancelled() => {}
            // The sender lives as long as this.
            _ = reasons.wait_for(|reasons| *reasons != Reasons::default()) => {}
        }
    }

    /// Waits until it is not as `on` says.
    pub async fn other_than(&self, on: bool) {
        if on {
            return self.off().await;
        }
        let mut reasons = self.reasons.subscribe();
        let _ = reasons.wait_for(|reasons| *reasons == Reasons::default()).await;
        if self.stopping.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn each_reason_alone_is_enough_and_all_must_go() {
        let duty = Duty::new(CancellationToken::new());
        assert!(duty.is_on() && duty.off().now_or_never().is_none());
        duty.drain(true);
        duty.stay_outside(true);
        assert!(!duty.is_on() && duty.off().now_or_never().is_some());
        duty.drain(false);
        assert!(!duty.is_on() && !duty.is_drained() && duty.other_than(false).now_or_never().is_none());
        duty.stay_outside(false);
        assert!(duty.is_on() && duty.other_than(false).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_broker_that_stops_is_off_duty_for_good() {
        let stopping = CancellationToken::new();
        let duty = Duty::new(stopping.clone());
        stopping.cancel();
        assert!(!duty.is_on() && duty.off().now_or_never().is_some());
        assert!(duty.other_than(false).now_or_never().is_none());
    }
}
