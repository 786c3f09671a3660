//! Messages of one topic that wait until they are due. Invariant: in one order (due, then arrival), found by number and
//! by id. Their bodies are held in memory, so `EmbeddedLimits` bounds them over all topics.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::clock::Timestamp;
use crate::message::{MessageId, Partition};
use crate::store::embedded::ops::Body;

/// A message that waits.
#[derive(Debug, Clone)]
pub struct Scheduled {
    /// Where it will go.
    pub partition: Partition,
    /// Its lane there.
    pub lane: u8,
    /// When.
    pub due: Timestamp,
    /// What it is.
    pub body: Body,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Schedule {
    waiting: BTreeMap<u64, Scheduled>,
    order: BTreeSet<(Timestamp, u64)>,
    ids: HashMap<MessageId, u64>,
    bytes: u64,
}

impl Schedule {
    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// What they count for.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds one.
    pub fn insert(&mut self, number: u64, scheduled: Scheduled) {
        self.bytes += scheduled.body.head.cost();
        self.order.insert((scheduled.due, number));
        self.ids.insert(scheduled.body.head.id, number);
        self.waiting.insert(number, scheduled);
    }

    /// Takes one out.
    pub fn remove(&mut self, number: u64) -> Option<Scheduled> {
        let scheduled = self.waiting.remove(&number)?;
        self.bytes -= scheduled.body.head.cost();
        self.order.remove(&(scheduled.due, number));
        if self.ids.get(&scheduled.body.head.id) == Some(&number) {
            self.ids.remove(&scheduled.body.head.id);
        }
        Some(scheduled)
    }

    /// One by its number.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<&Scheduled> {
        self.waiting.get(&number)
    }

    /// One by its message's id.
    #[must_use]
    pub fn find(&self, id: MessageId) -> Option<(u64, &Scheduled)> {
        let number = *self.ids.get(&id)?;
        Some((number, self.waiting.get(&number)?))
    }

    /// When the next one is due that is not due yet.
    #[must_use]
    pub fn due_after(&self, now: Timestamp) -> Option<Timestamp> {
        self.order.range((Timestamp(now.0.saturating_add(1)), 0)..).next().map(|(due, _)| *due)
    }

    /// The numbers of what is due, in order.
    pub fn due(&self, now: Timestamp) -> impl Iterator<Item = u64> + '_ {
        self.order.iter().take_while(move |(due, _)| *due <= now).map(|(_, number)| *number)
    }

    /// Those from a number on.
    pub fn from(&self, number: u64) -> impl Iterator<Item = (u64, &Scheduled)> {
        self.waiting.range(number..).map(|(number, scheduled)| (*number, scheduled))
    }

    /// All, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Scheduled)> {
        self.waiting.iter().map(|(number, scheduled)| (*number, scheduled))
    }
}
