//! What two versions of a stage made of the messages that each of them saw. Invariant: both are counted in the same way and
//! over the same time; memory is bounded whatever happens. Never judges.

use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Timestamp;
use crate::window::{Counters, Latencies, Sliding};

use super::super::draft::Said;

/// Which of the two versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// The one that the stage runs.
    Stable,
    /// The one that is tried.
    Candidate,
}

/// What a version made of its messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// All that it saw.
    pub messages: u64,
    /// Those that went on as they were.
    pub passed: u64,
    /// Those that went on, changed.
    pub changed: u64,
    /// Those that were dropped.
    pub dropped: u64,
    /// Those that were rejected.
    pub rejected: u64,
    /// Those that it failed on.
    pub faulted: u64,
    /// What it emitted.
    pub emitted: u64,
    /// How long a message took.
    pub latency: Latencies,
}

impl Figures {
    /// Counts one message.
    pub fn count(&mut self, said: Said, emitted: usize) {
        self.messages += 1;
        self.emitted += emitted as u64;
        *match said {
            Said::Pass => &mut self.passed,
            Said::Changed => &mut self.changed,
            Said::Dropped => &mut self.dropped,
            Said::Rejected => &mut self.rejected,
            Said::Fault => &mut self.faulted,
        } += 1;
    }
}

impl Counters for Figures {
    fn merge(&mut self, other: &Figures) {
        self.messages += other.messages;
        self.passed += other.passed;
        self.changed += other.changed;
        self.dropped += other.dropped;
        self.rejected += other.rejected;
        self.faulted += other.faulted;
        self.emitted += other.emitted;
        self.latency.merge(&other.latency);
    }
}

/// Those of both versions, since the beginning and in the window.
#[derive(Debug)]
pub struct Record {
    arms: Mutex<[Counted; 2]>,
}

#[derive(Debug)]
struct Counted {
    total: Figures,
    recent: Sliding<Figures>,
}

/// Figures of both, the stage's version first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Both {
    /// Of the version that the stage runs.
    pub stable: Figures,
    /// Of the one that is tried.
    pub candidate: Figures,
}

impl Record {
    /// With nothing counted yet.
    #[must_use]
    pub fn new(window: Duration) -> Record {
        let counted = || Counted { total: Figures::default(), recent: Sliding::new(window) };
        Record { arms: Mutex::new([counted(), counted()]) }
    }

    /// Adds what `arm` made of a batch, which took `each` a message.
    pub fn add(&self, arm: Arm, now: Timestamp, mut batch: Figures, each: Duration) {
        batch.latency.record_many(each, u32::try_from(batch.messages).unwrap_or(u32::MAX));
        let mut arms = self.arms.lock();
        let counted = &mut arms[arm as usize];
        counted.total.merge(&batch);
        counted.recent.record(now, |recent| recent.merge(&batch));
    }

    /// Since the beginning.
    #[must_use]
    pub fn totals(&self) -> Both {
        let arms = self.arms.lock();
        Both { stable: arms[0].total.clone(), candidate: arms[1].total.clone() }
    }

    /// In the window before `now`.
    #[must_use]
    pub fn recent(&self, now: Timestamp) -> Both {
        let arms = self.arms.lock();
        Both { stable: arms[0].recent.sum(now), candidate: arms[1].recent.sum(now) }
    }
}
