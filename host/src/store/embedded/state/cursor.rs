//! One group's place in one lane. Invariant: every message below `next` is settled or an exception; what is settled lies
//! in `..floor` or `settled`. Knows nothing of other lanes, of keys, or of time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::message::{Failures, MessageId};

use super::ranges::Ranges;

/// A message that is neither untouched nor settled.
#[derive(Debug, Clone)]
pub struct Exception {
    /// Deliveries so far, the running one included.
    pub attempts: u32,
    /// What it is doing.
    pub standing: Standing,
    /// What went wrong so far.
    pub failures: Failures,
    /// Its key's hash, where order is kept.
    pub key: Option<u64>,
}

/// What an exception is doing.
#[derive(Debug, Clone)]
pub enum Standing {
    /// Someone has it.
    Held(Box<Held>),
    /// It may be granted from this time on.
    Waits(Timestamp),
    /// It may be granted from this time on, once what is before it under its key is settled.
    Parked(Timestamp),
    /// Its last lease ended; it becomes a dead letter with the next tick.
    Exhausted,
}

/// A live lease.
#[derive(Debug, Clone)]
pub struct Held {
    /// Which grant.
    pub grant: u64,
    /// Until.
    pub deadline: Timestamp,
    /// By whom.
    pub holder: Arc<str>,
    /// The message's id.
    pub id: MessageId,
    /// A settlement is on its way to the disk: neither expires nor is settled again until that is known.
    pub settling: bool,
}

impl Exception {
    /// The lease, if there is one.
    #[must_use]
    pub fn held(&self) -> Option<&Held> {
        match &self.standing {
            Standing::Held(held) => Some(held),
            _ => None,
        }
    }

    /// When it may be granted. A lease does not outlive the process, so what it leaves is an attempt.
    #[must_use]
    pub fn due(&self) -> Timestamp {
        match self.standing {
            Standing::Waits(at) | Standing::Parked(at) => at,
            Standing::Held(_) | Standing::Exhausted => Timestamp(0),
        }
    }

    /// Whether forgetting it changes nothing that has to outlive a restart.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.attempts == 0 && self.failures.is_empty() && self.due() <= Timestamp(0)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Cursor {
    /// All below is settled.
    pub floor: u64,
    /// The first message that no grant has looked at.
    pub next: u64,
    /// What is settled at or above `floor`.
    pub settled: Ranges,
    /// See [`Exception`]. After an opening also beyond `next`: then they wait for `next` to reach them.
    pub exceptions: BTreeMap<u64, Exception>,
    /// Exceptions below `next` that may be granted now.
    pub ready: BTreeSet<u64>,
}

impl Cursor {
    /// A cursor before `floor`, where `settled` is not for it.
    #[must_use]
    pub fn at(floor: u64, settled: Ranges) -> Cursor {
        let mut cursor = Cursor { floor, next: floor, settled, ..Cursor::default() };
        cursor.absorb();
        cursor
    }

    /// Whether a message is settled.
    #[must_use]
    pub fn is_settled(&self, sequence: u64) -> bool {
        sequence < self.floor || self.settled.contains(sequence)
    }

    /// Marks a message settled; its exception, if it had one. `None` if it was settled before.
    pub fn settle(&mut self, sequence: u64) -> Option<Option<Exception>> {
        if self.is_settled(sequence) {
            return None;
        }
        self.settled.insert(sequence..sequence + 1);
        self.ready.remove(&sequence);
        let exception = self.exceptions.remove(&sequence);
        self.absorb();
        Some(exception)
    }

    /// Marks a range settled that has no exceptions; returns how many were not.
    pub fn settle_range(&mut self, range: std::ops::Range<u64>) -> u64 {
        let new = self.settled.insert(range.start.max(self.floor)..range.end.max(self.floor));
        self.absorb();
        new
    }

    /// Marks all below `floor` settled; returns how many were not.
    pub fn raise(&mut self, floor: u64) -> u64 {
        if floor <= self.floor {
            return 0;
        }
        let new = floor - self.floor - self.settled.remove_below(floor);
        self.floor = floor;
        self.ready = self.ready.split_off(&floor);
        self.absorb();
        new
    }

    /// The next message that no grant has looked at and that is not settled, if it is below `end`.
    pub fn advance(&mut self, end: u64) -> Option<u64> {
        while self.next < end {
            match self.settled.around(self.next) {
                Some(around) => self.next = around.end,
                None => return Some(self.next),
            }
        }
        None
    }

    /// Moves the floor over what is settled next to it.
    fn absorb(&mut self) {
        if let Some(around) = self.settled.around(self.floor) {
            self.floor = around.end;
            self.settled.remove_below(around.end);
        }
        self.next = self.next.max(self.floor);
    }
}
