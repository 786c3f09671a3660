//! How much at once and how fast: an endpoint's adaptive concurrency and its rate limit. Invariant: the limit stays between
//! one and its maximum; no two sends are closer than the rate allows, less a small burst. Pure: time is an argument.

use crate::clock::Timestamp;

/// Where an endpoint that nothing is known of begins: enough that a healthy one is not slow, few enough that a weak one
/// is not knocked over.
const CONCURRENCY_START: u32 = 4;
/// The share of a second's sends that may go at once: clocks tick in milliseconds, so rates above that need some.
const BURST_SHARE: u32 = 50;

/// Additive increase, multiplicative decrease. As in TCP, it doubles per round until the first failure and grows by one
/// per round after it.
#[derive(Debug, Clone)]
pub struct Concurrency {
    limit: f64,
    max: u32,
    /// Below this the limit doubles per round.
    threshold: f64,
    /// Sends begun before this one do not lower the limit again: one bad moment halves it once.
    lowered_at: u64,
}

impl Concurrency {
    /// At most `max` at once; 0 counts as 1.
    #[must_use]
    pub fn new(max: u32) -> Concurrency {
        let max = max.max(1);
        Concurrency { limit: f64::from(CONCURRENCY_START.min(max)), max, threshold: f64::INFINITY, lowered_at: 0 }
    }

    /// Sets another maximum.
    pub fn set_max(&mut self, max: u32) {
        self.max = max.max(1);
        self.limit = self.limit.min(f64::from(self.max));
    }

    /// How many may be under way now.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// A send succeeded while `in_flight` were under way, itself included. An endpoint that is given little to do proves
    /// nothing about how much it could take.
    pub fn succeeded(&mut self, in_flight: usize) {
        if in_flight * 2 >= self.limit() {
            let step = if self.limit < self.threshold { 1.0 } else { 1.0 / self.limit };
            self.limit = (self.limit + step).min(f64::from(self.max));
        }
    }

    /// The `ticket`-th send failed; `next` is the number that the next one will have.
    pub fn failed(&mut self, ticket: u64, next: u64) {
        if ticket >= self.lowered_at {
            self.limit = (self.limit / 2.0).max(1.0);
            self.threshold = self.limit;
            self.lowered_at = next;
        }
    }
}

/// At most so many sends a second, evenly (the generic cell rate algorithm).
#[derive(Debug, Clone)]
pub struct Pacer {
    interval_us: i64,
    tolerance_us: i64,
    /// When the next send would be exactly on time.
    due_us: i64,
}

impl Pacer {
    /// `rate` a second; 0 counts as 1.
    #[must_use]
    pub fn new(rate: u32) -> Pacer {
        let rate = rate.max(1);
        let interval_us = 1_000_000 / i64::from(rate);
        let burst = (rate / BURST_SHARE).max(1);
        Pacer { interval_us, tolerance_us: i64::from(burst - 1) * interval_us, due_us: i64::MIN }
    }

    /// When the next send may begin: `now` or later.
    #[must_use]
    pub fn ready_at(&self, now: Timestamp) -> Timestamp {
        let ready_us = self.due_us.saturating_sub(self.tolerance_us);
        // Rounded up, or a sleeper would wake before its time.
        Timestamp(ready_us.saturating_add(999).div_euclid(1000)).max(now)
    }

    /// A send begins.
    pub fn take(&mut self, now: Timestamp) {
        self.due_us = self.due_us.max(now.0.saturating_mul(1000)).saturating_add(self.interval_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_per_round_until_the_first_failure_then_creeps() {
        let mut limit = Concurrency::new(64);
        assert_eq!(limit.limit(), 4);
        (0..4).for_each(|_| limit.succeeded(4));
        assert_eq!(limit.limit(), 8);
        limit.failed(10, 11);
        assert_eq!(limit.limit(), 4);
        (0..4).for_each(|_| limit.succeeded(4));
        assert_eq!(limit.limit(), 4, "one round adds less than one, as the limit grows in it");
        (0..2).for_each(|_| limit.succeeded(4));
        assert_eq!(limit.limit(), 5);
    }

    #[test]
    fn one_bad_moment_halves_it_once() {
        let mut limit = Concurrency::new(64);
        (0..60).for_each(|_| limit.succeeded(64));
        assert_eq!(limit.limit(), 64);
        (0..32).for_each(|ticket| limit.failed(ticket, 32));
        assert_eq!(limit.limit(), 32);
        limit.failed(32, 33);
        assert_eq!(limit.limit(), 16);
    }

    #[test]
    fn it_stays_within_its_bounds() {
        let mut limit = Concurrency::new(6);
        (0..100).for_each(|_| limit.succeeded(6));
        assert_eq!(limit.limit(), 6);
        (0..100).for_each(|ticket| limit.failed(ticket, ticket + 1));
        assert_eq!(limit.limit(), 1);
        assert_eq!(Concurrency::new(0).limit(), 1);
        let mut limit = Concurrency::new(64);
        limit.set_max(2);
        assert_eq!(limit.limit(), 2);
    }

    #[test]
    fn an_idle_endpoint_proves_nothing() {
        let mut limit = Concurrency::new(64);
        (0..100).for_each(|_| limit.succeeded(1));
        assert_eq!(limit.limit(), 4);
    }

    #[test]
    fn sends_are_spread_over_the_second() {
        let mut pacer = Pacer::new(4);
        let mut now = Timestamp(1000);
        let mut times = Vec::new();
        for _ in 0..5 {
            now = pacer.ready_at(now);
            pacer.take(now);
            times.push(now.0);
        }
        assert_eq!(times, [1000, 1250, 1500, 1750, 2000]);
    }

    #[test]
    fn a_high_rate_is_reached_though_clocks_tick_in_milliseconds() {
        let mut pacer = Pacer::new(5000);
        let (mut now, mut sent) = (Timestamp(0), 0);
        while now < Timestamp(1000) {
            while pacer.ready_at(now) <= now {
                pacer.take(now);
                sent += 1;
            }
            now = Timestamp(now.0 + 1);
        }
        assert!((4995..=5105).contains(&sent), "{sent}");
    }
}
