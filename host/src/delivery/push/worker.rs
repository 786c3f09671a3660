//! Sends what waits for one subscription. Invariant: each lease it takes is sent at most once and then settled by what the
//! endpoint answered, or given back unsent; messages of one partition key go one after another. Never waits for another
//! subscription, and never holds more than its window.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::endpoint::{Endpoint, Wait};
use super::feed::{Feed, Want, settle_durably};
use super::metrics::PushMetrics;
use super::queue::Queue;
use super::sender::{Outcome, Sender, Sent};
use super::target::{Delivery, Target};
use crate::catalog::model::{Guarantee, Subscription};
use crate::clock::{Clock, Timestamp};
use crate::delivery::outbound::{OutboundError, Prepared};
use crate::entropy::Entropy;
use crate::store::{Failure, Lease, LeaseRef, Settle, Settlement};

/// How long a lease may wait in the queue beyond the time for sending it; a message that waited longer is given back.
const QUEUE_TIME_MAX: Duration = Duration::from_secs(30);
/// How much longer than the send a lease lasts, so that a send that ends at the last moment is still settled in time.
const SETTLE_MARGIN: Duration = Duration::from_secs(5);
/// Payload bytes that one subscription holds: full windows of usual messages, sixteen of the largest (1 MiB).
const HELD_BYTES_MAX: usize = 16 << 20;
/// Messages in one lease call, the store's own bound.
const LEASE_MAX: usize = 1000;
/// How often a quiet topic is looked at though nothing said that there is something: a net below the store's wake-ups.
const IDLE_POLL: Duration = Duration::from_secs(10);
/// The pause after the store or the stages failed.
const FAULT_PAUSE: Duration = Duration::from_secs(1);
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
    /// The subscription, as it is now.
    pub subscription: watch::Receiver<Arc<Subscription>>,
    /// Ends it: what is under way is finished, the rest given back.
    pub stop: CancellationToken,
}

/// A send that has ended.
struct Finished {
    lease: Lease,
    /// `None`: its deadline passed before it began.
    sent: Option<Sent>,
}

/// One subscription's worker.
pub struct Worker {
    parts: WorkerParts,
    subscription: Arc<Subscription>,
    target: Option<Arc<Target>>,
    /// The topic grants at most once: the grant has settled the message, and nothing can be given back.
    at_most_once: bool,
    queue: Queue,
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
        let mut worker = Worker {
            parts,
            subscription,
            target: None,
            at_most_once: false,
            queue: Queue::default(),
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
            self.begin_lease();
            let wait_until = self.begin_sends();
            self.begin_settle();
            self.wait(wait_until).await;
        }
    }

    fn is_idle(&self) -> bool {
        self.queue.len() == 0
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

    /// Empties the queue: back to the store, or, where a grant has settled them, nowhere.
    fn give_back_all(&mut self) {
        let leases = self.queue.take_all();
        if self.at_most_once {
            self.parts.metrics.expired(leases.len());
        } else {
            self.release(leases);
        }
    }

    fn release(&mut self, leases: Vec<Lease>) {
        self.unsettled.extend(leases.iter().map(|lease| settle(lease, Settlement::Release)));
    }

    /// The time that a send needs of its lease.
    fn send_time(&self) -> Duration {
        self.subscription.settings.ack_timeout + SETTLE_MARGIN
    }

    fn give_back_what_cannot_go(&mut self) {
        let now = self.parts.clock.now();
        let blocked = matches!(self.parts.endpoint.obstacle(), Some(Wait::Blocked(_) | Wait::Probing));
        let hopeless = self.gone || self.target.is_none() || (self.stopping && blocked);
        // What cannot be given back stays for as long as it may still go out.
        if hopeless || (!self.at_most_once && (self.stopping || blocked)) {
            self.give_back_all();
        }
        if now < self.stale_at {
            return;
        }
        self.stale_at = Timestamp::MAX;
        if self.at_most_once {
            // The grant has settled them: until the very end they may go, after it they may not.
            let expired = self.queue.take_stale(now);
            self.parts.metrics.expired(expired.len());
        } else {
            let stale = self.queue.take_stale(now.plus(self.send_time()));
            self.release(stale);
        }
        self.stale_at = self.queue.deadline_min().map_or(Timestamp::MAX, |deadline| self.stale_time(deadline));
    }

    fn stale_time(&self, deadline: Timestamp) -> Timestamp {
        // Just after, as a deadline that is exactly far enough away still does.
        let margin = if self.at_most_once { Duration::ZERO } else { self.send_time() };
        deadline.minus(margin).plus(Duration::from_millis(1))
    }

    fn begin_lease(&mut self) {
        if self.leasing.is_some() || !self.hungry || self.parts.clock.now() < self.not_before {
            return;
        }
        let Some(topic) = self.parts.feed.topic() else { return };
        let at_most_once = topic.settings.guarantee == Guarantee::AtMostOnce;
        if at_most_once != self.at_most_once {
            // What is held was granted under the old guarantee and ends under it.
            if !self.is_idle() {
                return;
            }
            self.at_most_once = at_most_once;
        }
        let max = self.appetite();
        if max == 0 {
            return;
        }
        // Looked at before leasing, so that nothing that comes in between is missed.
        match &mut self.wakes {
            Some(wakes) => drop(wakes.borrow_and_update()),
            None => self.wakes = self.parts.feed.wakes(),
        }
        self.hungry = false;
        let ack_timeout = self.subscription.settings.ack_timeout;
        let want = Want {
            max,
            bytes_max: HELD_BYTES_MAX - self.held_bytes(),
            duration: self.send_time() + ack_timeout.min(QUEUE_TIME_MAX),
        };
        let (feed, subscription) = (Arc::clone(&self.parts.feed), Arc::clone(&self.subscription));
        self.leasing = Some(async move { feed.next(subscription, topic, want).await }.boxed());
    }

    fn held_bytes(&self) -> usize {
        self.queue.bytes() + self.sending_bytes
    }

    /// How many messages to lease now.
    fn appetite(&self) -> usize {
        let (endpoint, settings) = (&self.parts.endpoint, &self.subscription.settings);
        if self.stopping || self.gone || self.target.is_none() || self.held_bytes() >= HELD_BYTES_MAX {
            return 0;
        }
        let held = self.queue.len() + self.sends.len();
        match endpoint.obstacle() {
            Some(Wait::Blocked(_) | Wait::Probing) => return 0,
            _ if endpoint.probe_is_due() => return usize::from(self.queue.len() == 0),
            _ => {}
        }
        let limit = endpoint.concurrency();
        // One window under way and one waiting keeps the endpoint busy while the next is leased; a grant that can't be
        // given back is only taken when it can go out.
        let window = if self.at_most_once { limit } else { limit * 2 };
        let pace = match settings.rate_limit {
            Some(_) if self.at_most_once => 1,
            Some(rate) => rate.max(1) as usize,
            None => usize::MAX,
        };
        let leases = settings.max_in_flight.map_or(usize::MAX, |max| max.max(1) as usize);
        // Not a call per message: only when half of what may wait has gone.
        if self.queue.len() > limit / 2 {
            return 0;
        }
        let room = window.saturating_sub(held).min(pace.saturating_sub(self.queue.len()));
        room.min(leases.saturating_sub(held + self.unsettled.len() + self.settling_len)).min(LEASE_MAX)
    }

    /// Begins what may go out. Returns when to look again though nothing has happened.
    fn begin_sends(&mut self) -> Timestamp {
        let Some(target) = self.target.clone().filter(|_| !self.gone) else { return Timestamp::MAX };
        while self.queue.has_ready() {
            let permit = match self.parts.endpoint.begin() {
                Ok(permit) => permit,
                Err(Wait::Pace(until) | Wait::Blocked(until)) => return until,
                Err(Wait::Slot | Wait::Probing) => return Timestamp::MAX,
            };
            let lease = self.queue.pop().expect("something is ready");
            self.sending_bytes += lease.message.payload.len();
            let (sender, target) = (self.parts.sender.clone(), Arc::clone(&target));
            self.sends.push(
                async move {
                    let delivery = Delivery::of(&target, &lease);
                    let sent = sender.send(&target, &delivery).await;
                    if let Some(sent) = &sent {
                        permit.end(lease.message.id, lease.attempt, sent);
                    }
                    Finished { lease, sent }
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
            () = self.parts.clock.sleep_until(until), if until < Timestamp::MAX => {}
            () = tokio::time::sleep(IDLE_POLL) => self.hungry = true,
        }
    }

    fn leased(&mut self, prepared: Result<Prepared, OutboundError>) {
        match prepared {
            Ok(prepared) => {
                self.hungry |= prepared.more;
                for lease in prepared.leases {
                    self.stale_at = self.stale_at.min(self.stale_time(lease.deadline));
                    self.queue.push(lease);
                }
            }
            Err(error) => {
                tracing::warn!(subscription = %self.subscription.id, %error, "nothing could be leased; trying again");
                self.hungry = true;
                self.not_before = self.parts.clock.now().plus(FAULT_PAUSE);
            }
        }
    }

    async fn finished(&mut self, finished: Finished) {
        let Finished { lease, sent } = finished;
        let key = lease.message.meta.key.clone();
        self.sending_bytes -= lease.message.payload.len();
        let Some(sent) = sent else {
            // The lease has ended by itself: there is nothing to settle.
            self.parts.metrics.expired(1);
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
        if sent.outcome == Outcome::Gone {
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
