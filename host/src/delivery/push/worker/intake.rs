//! What a worker holds: how much it leases, and what it gives back. Invariant: it leases no more than its endpoint can soon
//! take and its owner allows, and gives back what could not be sent in good time. Never sends.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::super::endpoint::Wait;
use super::super::feed::Want;
use super::super::queue::stale_at;
use super::super::room::Place;
use super::{Worker, settle};
use crate::catalog::model::Guarantee;
use crate::clock::Timestamp;
use crate::delivery::outbound::{OutboundError, Prepared};
use crate::store::{Lease, Settlement};

/// How long a lease may wait in the queue beyond the time for sending it; a message that waited longer is given back.
pub(super) const QUEUE_TIME_MAX: Duration = Duration::from_secs(30);
/// How much longer than the send a lease lasts, so that a send that ends at the last moment is still settled in time.
const SETTLE_MARGIN: Duration = Duration::from_secs(5);
/// Payload bytes that one subscription holds: full windows of usual messages, sixteen of the largest (1 MiB).
const HELD_BYTES_MAX: usize = 16 << 20;
/// Settlements that wait for the store: some seconds of a quick endpoint; while the store takes none, nothing new is sent.
const UNSETTLED_MAX: usize = 4096;
/// Messages in one lease call, the store's own bound.
const LEASE_MAX: usize = 1000;
/// The pause after the store or the stages failed.
const FAULT_PAUSE: Duration = Duration::from_secs(1);

impl Worker {
    /// Empties the queue: back to the store, or, where a grant has settled them, nowhere.
    pub(super) fn give_back_all(&mut self) {
        let leases = self.queue.take_all();
        if self.at_most_once {
            self.parts.metrics.expired(leases.len());
        } else {
            self.release(leases);
        }
    }

    pub(super) fn release(&mut self, leases: Vec<Lease>) {
        self.unsettled.extend(leases.iter().map(|lease| settle(lease, Settlement::Release)));
    }

    /// The time that a send needs of its lease.
    fn send_time(&self) -> Duration {
        self.subscription.settings.ack_timeout + SETTLE_MARGIN
    }

    pub(super) fn give_back_what_cannot_go(&mut self) {
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
        let margin = self.stale_margin();
        let stale = self.queue.take_stale(now, margin);
        if self.at_most_once {
            self.parts.metrics.expired(stale.len());
        } else {
            // What has expired is counted when it would be leased again.
            self.release(stale);
        }
        self.stale_at = self.queue.stale_at(margin).unwrap_or(Timestamp::MAX);
    }

    /// How long before its deadline a lease is given back. What a grant has settled may go until the very end, after it it
    /// may not.
    fn stale_margin(&self) -> Duration {
        if self.at_most_once { Duration::ZERO } else { self.send_time() }
    }

    pub(super) fn begin_lease(&mut self) {
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
        let max = self.with_room(max);
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
        let settling = self.unsettled.len() + self.settling_len;
        if settling >= UNSETTLED_MAX {
            return 0;
        }
        match endpoint.obstacle() {
            Some(Wait::Blocked(_) | Wait::Probing) => return 0,
            _ if endpoint.probe_is_due() => return usize::from(self.queue.is_empty()),
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
        room.min(leases.saturating_sub(held + settling)).min(LEASE_MAX)
    }

    /// How many of `max` there is room for. A message is leased when its endpoint has room, so that no lease passes while
    /// it waits for it; what an endpoint leases ahead while it sends waits for its own sends.
    fn with_room(&mut self, max: usize) -> usize {
        if max == 0 {
            return 0;
        }
        self.needs_room = true;
        if self.at_most_once {
            // A grant settles: each needs a place of its own that nobody else can take, beside those of what is held already.
            let held = self.queue.len();
            while self.places.len() < held + max
                && let Some(place) = self.seat.enter(self.sends.len() + self.places.len())
            {
                self.places.push(place);
            }
            return max.min(self.places.len().saturating_sub(held));
        }
        if !self.sends.is_empty() || !self.queue.is_empty() {
            return if self.seat.waits() { 0 } else { max };
        }
        if self.places.is_empty() {
            self.places.extend(self.seat.enter(0));
        }
        if self.places.is_empty() { 0 } else { max }
    }

    /// Room for one send.
    pub(super) fn place(&mut self) -> Option<Place> {
        self.needs_room = true;
        self.places.pop().or_else(|| self.seat.enter(self.sends.len()))
    }

    /// Gives back what room is not needed, and says whether some is waited for.
    pub(super) fn leave_room(&mut self) {
        if self.leasing.is_none() {
            // What waits for its endpoint's pace does not hold room that others could use, unless it can't be given back.
            self.places.truncate(if self.at_most_once { self.queue.len() } else { 0 });
        }
        if !self.needs_room {
            self.seat.leave();
        }
        self.parts.endpoint.waits_for_room(self.seat.waits());
    }

    pub(super) fn leased(&mut self, prepared: Result<Prepared, OutboundError>) {
        match prepared {
            Ok(prepared) => {
                self.hungry |= prepared.more;
                let margin = self.stale_margin();
                for lease in prepared.leases {
                    self.stale_at = self.stale_at.min(stale_at(&lease, margin));
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
}
