//! Stops sending to an endpoint that keeps failing. Invariant: while it is open nothing is sent but one probe at a time,
//! after pauses that grow; only the probe's own outcome decides on it. Pure: time and chance are arguments.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use crate::clock::Timestamp;

/// Failures in a row that open it: more than the attempts that one bad message has by default (4), so that a message
/// which the endpoint can't digest does not stop the others.
pub const FAILURES_TO_OPEN: u32 = 10;
/// The pause before the first probe.
const PAUSE_FIRST: Duration = Duration::from_secs(5);
/// The pause before a probe at most: how long an endpoint that works again may go unnoticed.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Pauses differ by up to this share, so that many subscriptions of one dead server do not probe it in step.
const JITTER: f64 = 0.2;

/// What people are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum BreakerState {
    /// All is sent.
    Closed,
    /// Nothing is sent.
    Open,
    /// One probe is under way.
    HalfOpen,
}

impl BreakerState {
    /// For metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half_open",
        }
    }
}

/// Whether a send may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Yes.
    Pass,
    /// Yes, one, as a probe.
    Probe,
    /// Not before this time.
    Until(Timestamp),
    /// Not before the probe has ended.
    AfterProbe,
}

/// One endpoint's breaker.
#[derive(Debug, Clone)]
pub struct Breaker {
    state: State,
    failures: u32,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Open { until: Timestamp, pause: Duration },
    Probing { ticket: u64, pause: Duration },
}

impl Default for Breaker {
    fn default() -> Breaker {
        Breaker { state: State::Closed, failures: 0 }
    }
}

impl Breaker {
    /// What people are told.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::Probing { .. } => BreakerState::HalfOpen,
        }
    }

    /// Failures since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// When the next probe may go out, while it is open.
    #[must_use]
    pub fn opens_until(&self) -> Option<Timestamp> {
        if let State::Open { until, .. } = self.state { Some(until) } else { None }
    }

    /// Whether a send may begin now.
    #[must_use]
    pub fn gate(&self, now: Timestamp) -> Gate {
        match self.state {
            State::Closed => Gate::Pass,
            State::Open { until, .. } if now >= until => Gate::Probe,
            State::Open { until, .. } => Gate::Until(until),
            State::Probing { .. } => Gate::AfterProbe,
        }
    }

    /// A send begins that [`Breaker::gate`] let pass.
    pub fn begin(&mut self, ticket: u64) {
        if let State::Open { pause, .. } = self.state {
            self.state = State::Probing { ticket, pause };
        }
    }

    /// A send succeeded: the endpoint works, whichever send it was.
    pub fn succeeded(&mut self) {
        *self = Breaker::default();
    }

    /// A send failed. `fraction` in `[0, 1)` spreads the pause.
    pub fn failed(&mut self, ticket: u64, now: Timestamp, fraction: f64) {
        self.failures = self.failures.saturating_add(1);
        let pause = match self.state {
            State::Closed if self.failures >= FAILURES_TO_OPEN => PAUSE_FIRST,
            State::Probing { ticket: probe, pause } if probe == ticket => (pause * 2).min(PAUSE_MAX),
            // What was under way when it opened says nothing new.
            _ => return,
        };
        let spread = pause.mul_f64(1.0 + JITTER * (2.0 * fraction - 1.0));
        self.state = State::Open { until: now.plus(spread), pause };
    }

    /// A send that had begun did not take place after all.
    pub fn abandoned(&mut self, ticket: u64, now: Timestamp) {
        if let State::Probing { ticket: probe, pause } = self.state
            && probe == ticket
        {
            self.state = State::Open { until: now, pause };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: f64 = 0.5;

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        (0..u64::from(FAILURES_TO_OPEN)).for_each(|ticket| breaker.failed(ticket, Timestamp(0), MIDDLE));
        breaker
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let mut breaker = Breaker::default();
        for ticket in 0..100 {
            breaker.failed(ticket, Timestamp(0), MIDDLE);
            if ticket % 9 == 8 {
                breaker.succeeded();
            }
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert_eq!(opened().state(), BreakerState::Open);
        assert_eq!(opened().gate(Timestamp(4999)), Gate::Until(Timestamp(5000)));
    }

    #[test]
    fn one_probe_goes_out_after_pauses_that_double() {
        let mut breaker = opened();
        let mut now = Timestamp(0);
        let mut pauses = Vec::new();
        for ticket in 100..110 {
            let Gate::Until(until) = breaker.gate(now) else { panic!("open") };
            pauses.push(until.since(now).as_secs());
            now = until;
            assert_eq!(breaker.gate(now), Gate::Probe);
            breaker.begin(ticket);
            assert_eq!((breaker.gate(now), breaker.state()), (Gate::AfterProbe, BreakerState::HalfOpen));
            breaker.failed(ticket, now, MIDDLE);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]);
    }

    #[test]
    fn only_the_probes_own_failure_ends_the_probe() {
        let mut breaker = opened();
        breaker.begin(50);
        breaker.failed(3, Timestamp(6000), MIDDLE);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        breaker.failed(50, Timestamp(6000), MIDDLE);
        assert_eq!(breaker.opens_until(), Some(Timestamp(16_000)));
    }

    #[test]
    fn a_success_closes_it_and_an_abandoned_probe_is_repeated() {
        let mut breaker = opened();
        breaker.begin(50);
        breaker.abandoned(50, Timestamp(7000));
        assert_eq!(breaker.gate(Timestamp(7000)), Gate::Probe);
        breaker.begin(51);
        breaker.succeeded();
        assert_eq!((breaker.gate(Timestamp(7000)), breaker.failures()), (Gate::Pass, 0));
    }
}
