//! Keeps a stage that fails again and again from being asked. Invariant: while open it lets nothing through; after a
//! while it lets one probe through, whose outcome closes or reopens it. Never decides what a refused message becomes.

use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Timestamp;

/// Faults in a row that open it.
const FAULTS_MAX: u32 = 3;
/// How long it stays open: long enough that a looping plugin costs its timeout once in so long, short enough that a
/// passing trouble is forgotten soon.
const OPEN_FOR: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub struct Breaker {
    state: Mutex<State>,
    never: bool,
}

#[derive(Debug, Default)]
struct State {
    in_a_row: u32,
    open_until: Option<Timestamp>,
    probing: bool,
}

/// Whether the stage may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// As usual.
    Closed,
    /// With one message, to see whether it works again.
    Probe,
    /// Not now.
    Open,
}

impl Breaker {
    /// One that never opens: where it is to be seen what a stage says of each message.
    #[must_use]
    pub fn never() -> Breaker {
        Breaker { never: true, ..Breaker::default() }
    }

    /// Asks before a batch, and again before each part of one that failed.
    pub fn admit(&self, now: Timestamp) -> Admission {
        if self.never {
            return Admission::Closed;
        }
        let mut state = self.state.lock();
        match state.open_until {
            None => Admission::Closed,
            Some(until) if now < until => Admission::Open,
            Some(_) => {
                // Should the probe be lost, there is another one after as long again.
                state.open_until = Some(now.plus(OPEN_FOR));
                state.probing = true;
                Admission::Probe
            }
        }
    }

    /// A call ended well. Only the probe's success closes it: others began before it opened.
    pub fn succeeded(&self) {
        let mut state = self.state.lock();
        if state.open_until.is_none() || state.probing {
            *state = State::default();
        }
    }

    /// A fault was pinned on one message, or on the stage itself.
    pub fn failed(&self, now: Timestamp) {
        let mut state = self.state.lock();
        state.in_a_row = state.in_a_row.saturating_add(1);
        if state.in_a_row >= FAULTS_MAX {
            state.open_until = Some(now.plus(OPEN_FOR));
            state.probing = false;
        }
    }

    /// Whether it lets nothing through now.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state.lock().open_until.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_in_a_row_open_it_and_a_probe_closes_it() {
        let (breaker, now) = (Breaker::default(), Timestamp(1_000));
        breaker.failed(now);
        breaker.failed(now);
        breaker.succeeded();
        for _ in 0..3 {
            assert_eq!(breaker.admit(now), Admission::Closed);
            breaker.failed(now);
        }
        assert_eq!(breaker.admit(now), Admission::Open);
        let later = now.plus(OPEN_FOR);
        assert_eq!(breaker.admit(later), Admission::Probe);
        assert_eq!(breaker.admit(later), Admission::Open, "one probe at a time");
        breaker.failed(later);
        assert_eq!(breaker.admit(later), Admission::Open);
        let later = later.plus(OPEN_FOR);
        assert_eq!(breaker.admit(later), Admission::Probe);
        breaker.succeeded();
        assert_eq!(breaker.admit(later), Admission::Closed);
    }
}
