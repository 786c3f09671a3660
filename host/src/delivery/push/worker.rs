//! Sends what waits for one subscription. Invariant: each lease it takes is sent at most once and then settled by what the
//! endpoint answered, or given back unsent; messages of one partition key go one after another. Never waits for another
//! subscription, and never holds more than its window.

mod intake;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::endpoint::{Endpoint, Wait};
use super::feed::{Feed, settle_durably};
use super::metrics::PushMetrics;
use super::queue::Queue;
use super::room::{Place, Room, Seat};
use super::sender::{Outcome, Sender, Sent};
use super::target::{Delivery, Target};
use crate::catalog::model::Subscription;
use crate::clock::{Clock, Timestamp};
use crate::delivery::outbound::{OutboundError, Prepared};
use crate::entropy::Entropy;
use crate::fleet::Fleet;
use crate::store::{Failure, Lease, LeaseRef, Settle, Settlement};

/// How often a quiet topic is looked at though nothing said that there is something: a net below the store's wake-ups.
const IDLE_POLL: Duration = Duration::from_secs(10);
/// The pause after a subscription that its endpoint does not want any more could not be paused.
const PAUSE_FAILED_HOLD: Duration = Duration::from_secs(30);

/// What a worker is made of.
pub struct WorkerParts {
    /// Messages and settlements.
    pub feed: Arc<dyn Feed>,
    /// The way out.
    pub sender: Sender,
    /// What is known of where it leads.
    pub endpoint: Arc<Endpoint>,
    /// The time.
    pub clock: Clock,
    /// Jitter.
    pub entropy: Entropy,
    /// What `/metrics` says.
    pub metrics: PushMetrics,
    /// The room that all endpoints share.
    pub room: Arc<Room>,
    /// The subscription, as it is now.
    pub subscription: watch::Receiver<Arc<Subscription>>,
    /// Ends it: what is under way is finished, the rest given back.
    pub stop: CancellationToken,
    /// See [`super::PushParts`].
    pub fleet: Option<Arc<Fleet>>,
}

/// A send that has ended.
struct Finished {
    lease: Lease,
    /// `None`: its deadline passed before it began.
    sent: Option<Sent>,
    /// To which endpoint, as it was set then.
    target: Arc<Target>,
}

/// One subscription's worker.
pub struct Worker {
    parts: WorkerParts,
    subscription: Arc<Subscription>,
    target: Option<Arc<Target>>,
    /// The topic grants at most once: the grant has settled the message, and nothing can be given back.
    at_most_once: bool,
    queue: Queue,
    seat: Seat,
    /// Room that was taken before what it is for was leased.
    places: Vec<Place>,
    /// There is something that room is needed for.
    needs_room: bool,
    sends: FuturesUnordered<BoxFuture<'static, Finished>>,
    /// Payload bytes under way.
    sending_bytes: usize,
    leasing: Option<BoxFuture<'static, Result<Prepared, OutboundError>>>,
    settling: Option<BoxFuture<'static, ()>>,
    /// Leases whose settlement is under way.
    settling_len: usize,
    unsettled: Vec<Settle>,
    wakes: Option<watch::Receiver<u64>>,
    /// Something may be there to lease.
    hungry: bool,
    /// No lease call before this time.
    not_before: Timestamp,
    /// When something in the queue has waited too long.
    stale_at: Timestamp,
    /// The endpoint answered 410.
    gone: bool,
    stopping: bool,
}

impl Worker {
    /// A worker that has not begun.
    #[must_use]
    pub fn new(parts: WorkerParts) -> Worker {
        let subscription = Arc::clone(&parts.subscription.borrow());
        let seat = parts.room.seat();
        let mut worker = Worker {
            parts,
            subscription,
            target: None,
            at_most_once: false,
            queue: Queue::default(),
            seat,
            places: Vec::new(),
            needs_room: false,
            sends: FuturesUnordered::new(),
            sending_bytes: 0,
            leasing: None,
            settling: None,
            settling_len: 0,
            unsettled: Vec::new(),
            wakes: None,
            hungry: true,
            not_before: Timestamp(i64::MIN),
            stale_at: Timestamp::MAX,
            gone: false,
            stopping: false,
        };
        worker.apply_settings();
        worker
    }

    /// Sends until it is stopped and what is under way has ended.
    pub async fn run(mut self) {
        while !(self.stopping && self.is_idle()) {
            self.give_back_what_cannot_go();
            self.needs_room = false;
            self.begin_lease();
            let wait_until = self.begin_sends();
            self.leave_room();
            self.begin_settle();
            self.wait(wait_until).await;
        }
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty()
            && self.sends.is_empty()
            && self.leasing.is_none()
            && self.settling.is_none()
            && self.unsettled.is_empty()
    }

    fn apply_settings(&mut self) {
        self.subscription = Arc::clone(&self.parts.subscription.borrow_and_update());
        self.parts.endpoint.configure(&self.subscription.settings);
        self.gone = false;
        self.hungry = true;
        if !self.at_most_once {
            // Leased under the old filter and format: they come again under the new ones.
            self.give_back_all();
        }
        self.target = match Target::of(&self.subscription) {
            Ok(target) => Some(Arc::new(target)),
            Err(error) => {
                tracing::error!(subscription = %self.subscription.id, %error, "nothing can be sent");
                self.parts.endpoint.broken(error.to_string());
                None
            }
        };
    }

    /// Begins what may go out. Returns when to look again though nothing has happened.
    fn begin_sends(&mut self) -> Timestamp {
        let Some(target) = self.target.clone().filter(|_| !self.gone) else { return Timestamp::MAX };
        while self.queue.has_ready() {
            match self.parts.endpoint.obstacle() {
                None => {}
                Some(Wait::Pace(until) | Wait::Blocked(until)) => return until,
                Some(Wait::Slot | Wait::Probing) => return Timestamp::MAX,
            }
            let Some(place) = self.place() else { return Timestamp::MAX };
            // Nobody else sends to this endpoint, so that what was no obstacle is none.
            let Ok(permit) = self.parts.endpoint.begin() else { return Timestamp::MAX };
            let lease = self.queue.pop().expect("something is ready");
            self.sending_bytes += lease.message.payload.len();
            let (sender, target) = (self.parts.sender.clone(), Arc::clone(&target));
            // Granted at most once, it is nobody else's.
            let fleet = self.parts.fleet.clone().filter(|_| !self.at_most_once);
            self.sends.push(
                async move {
                    let delivery = Delivery::of(&target, &lease);
                    let sent = match fleet {
                        // Others send what one that they don't count has leased, and may have done so already.
                        Some(fleet) if !fleet.is_member() => None,
                        _ => sender.send(&target, &delivery).await,
                    };
                    if let Some(sent) = &sent {
                        permit.end(lease.message.id, lease.attempt, sent);
                    }
                    drop(place);
                    Finished { lease, sent, target }
                }
                .boxed(),
            );
        }
        match self.parts.endpoint.obstacle() {
            Some(Wait::Blocked(until)) if !self.gone => until,
            _ => Timestamp::MAX,
        }
    }

    /// Settles all that has ended since the last time in one call: the busier, the larger the batches.
    fn begin_settle(&mut self) {
        if self.settling.is_none() && !self.unsettled.is_empty() {
            let settles = std::mem::take(&mut self.unsettled);
            self.settling_len = settles.len();
            let parts = &self.parts;
            let settling = settle_durably(Arc::clone(&parts.feed), parts.clock.clone(), parts.metrics.clone(), settles);
            self.settling = Some(settling.boxed());
        }
    }

    async fn wait(&mut self, until: Timestamp) {
        let pause = if self.hungry { self.not_before } else { Timestamp::MAX };
        let now = self.parts.clock.now();
        let until = until.min(self.stale_at).min(if pause > now { pause } else { Timestamp::MAX });
        tokio::select! {
            () = self.parts.stop.cancelled(), if !self.stopping => self.stopping = true,
            Some(finished) = self.sends.next(), if !self.sends.is_empty() => {
                self.finished(finished).await;
                while let Some(Some(finished)) = self.sends.next().now_or_never() {
                    self.finished(finished).await;
                }
            }
            prepared = ended(&mut self.leasing) => self.leased(prepared),
            () = ended(&mut self.settling) => {
                // The next of a key in an ordered subscription can only be leased now.
                self.settling_len = 0;
                self.hungry |= self.subscription.settings.ordered || self.subscription.settings.max_in_flight.is_some();
            }
            Ok(()) = self.parts.subscription.changed() => self.apply_settings(),
            () = woken(&mut self.wakes) => self.hungry = true,
            () = self.seat.called() => {}
            () = self.parts.clock.sleep_until(until), if until < Timestamp::MAX => {}
            () = tokio::time::sleep(IDLE_POLL) => self.hungry = true,
        }
    }

    async fn finished(&mut self, finished: Finished) {
        let Finished { lease, sent, target } = finished;
        let key = lease.message.meta.key.clone();
        self.sending_bytes -= lease.message.payload.len();
        let Some(sent) = sent else {
            self.parts.metrics.expired(1);
            // If the lease has ended by itself, there is nothing to settle.
            if !self.at_most_once && self.parts.clock.now() < lease.deadline {
                self.release(vec![lease]);
            }
            self.queue.done(&key);
            return;
        };
        if !self.at_most_once {
            self.unsettled.push(settle(&lease, self.settlement(&lease, &sent)));
        }
        if self.subscription.settings.ordered
            && !matches!(sent.outcome, Outcome::Delivered { .. })
            && !self.at_most_once
        {
            let behind = self.queue.take_key(&key);
            self.release(behind);
        }
        self.queue.done(&key);
        // What an endpoint said that is another one meanwhile is no word on the new one.
        let is_current = self.target.as_ref().is_some_and(|current| Arc::ptr_eq(current, &target));
        if sent.outcome == Outcome::Gone && is_current && !self.stopping {
            self.pause().await;
        }
    }

    fn settlement(&self, lease: &Lease, sent: &Sent) -> Settlement {
        match &sent.outcome {
            Outcome::Delivered { .. } => Settlement::Ack,
            Outcome::Gone => Settlement::Release,
            Outcome::Retry { status, reason, detail, retry_after } => {
                let backoff = self.subscription.settings.backoff.wait(lease.attempt, &self.parts.entropy);
                let at = self.parts.clock.now().plus(retry_after.unwrap_or(backoff));
                let failure = Failure {
                    reason: Arc::clone(reason),
                    detail: Arc::clone(detail),
                    stage: None,
                    last_status: *status,
                };
                Settlement::Retry { at, failure }
            }
        }
    }

    async fn pause(&mut self) {
        if std::mem::replace(&mut self.gone, true) {
            return;
        }
        self.give_back_all();
        let reason = "the endpoint answered 410 Gone: it wants no more messages".to_owned();
        match self.parts.feed.pause(reason).await {
            Ok(()) => tracing::warn!(subscription = %self.subscription.id, "paused: its endpoint answered 410 Gone"),
            Err(error) => {
                tracing::error!(subscription = %self.subscription.id, error, "its endpoint answered 410 Gone, but it could not be paused");
                self.parts.endpoint.hold(PAUSE_FAILED_HOLD);
                self.gone = false;
                self.hungry = true;
            }
        }
    }
}

fn settle(lease: &Lease, settlement: Settlement) -> Settle {
    Settle { lease: LeaseRef::Receipt { receipt: lease.receipt, message: Some(lease.message.id) }, settlement }
}

/// The result of what is under way in `slot`; never, if nothing is.
async fn ended<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    match slot {
        Some(future) => {
            let result = future.await;
            *slot = None;
            result
        }
        None => std::future::pending().await,
    }
}

async fn woken(wakes: &mut Option<watch::Receiver<u64>>) {
    let gone = match wakes {
        Some(receiver) => receiver.changed().await.is_err(),
        None => std::future::pending().await,
    };
    if gone {
        // The topic is gone from the store; if it comes back it is asked for again.
        *wakes = None;
    }
}

#[cfg(test)]
mod tests;
