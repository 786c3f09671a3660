//! What clients of one topic have seen while its plugins and pipelines were swapped under them. Invariant: a verdict rests on
//! the clients' own requests and answers, in the order in which they were sent and received, and on what the operator saw
//! in force. Never asks the broker.

mod judge;

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// The record. A message is known by its tag: a payload that no other message has.
#[derive(Debug)]
pub struct SwapRecord {
    groups: Vec<String>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    entries: Vec<Entry>,
    stored: usize,
    /// Messages by the revision that they met.
    by_revision: BTreeMap<u64, usize>,
    delivered: BTreeMap<String, usize>,
}

/// A message that is about to be published. Messages of one key have one publisher, which waits for each answer.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its tag.
    pub tag: String,
    /// Its partition key, if it has one.
    pub key: Option<String>,
}

/// What a publisher is told of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its id.
    pub id: String,
    /// Its partition.
    pub partition: u32,
    /// Where it stands there.
    pub offset: u64,
    /// The pipeline revision that it met.
    pub revision: u64,
}

/// What a consumer gets.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// The message's tag.
    pub tag: String,
    /// Its id.
    pub id: String,
    /// Its partition.
    pub partition: u32,
    /// Where it stands there.
    pub offset: u64,
    /// What the topic's stage has written on it.
    pub stamp: String,
    /// What the subscription's stage has written on it, if the group's has one.
    pub out: Option<String>,
    /// What all stages have left on it, for judges who know the revisions.
    pub trail: String,
}

/// What is known of a message that was stored.
#[derive(Debug, Clone, Copy)]
pub struct Life<'a> {
    /// Where in the record its publisher was about to send it.
    pub asked_at: usize,
    /// Where in the record its publisher had the answer.
    pub stored_at: usize,
    /// As it was published.
    pub asked: &'a Asked,
    /// As it was stored.
    pub stored: &'a Stored,
}

/// Where a pipeline stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Before the log: its revisions are in the answers to publishes.
    In,
    /// Behind it: a revision shows by its stamp alone.
    Out,
}

#[derive(Debug, Clone)]
enum Entry {
    Asked { request: usize, messages: Vec<Asked> },
    Stored { request: usize, messages: Vec<Stored> },
    Refused { why: String },
    Delivered { group: String, consumer: usize, messages: Vec<Delivered> },
    InForce { way: Way, revision: u64, stamp: String },
    Known { revision: u64 },
}

impl SwapRecord {
    /// An empty record of a topic with these groups.
    #[must_use]
    pub fn of(groups: &[&str]) -> SwapRecord {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        SwapRecord { groups, taken: Mutex::default() }
    }

    /// One request with these messages, in this order, is about to be sent; answers its number.
    pub fn asked(&self, messages: Vec<Asked>) -> usize {
        let mut taken = self.taken.lock();
        let request = taken.entries.len();
        taken.entries.push(Entry::Asked { request, messages });
        request
    }

    /// The request was answered: all its messages are stored.
    pub fn stored(&self, request: usize, messages: Vec<Stored>) {
        let mut taken = self.taken.lock();
        taken.stored += messages.len();
        for message in &messages {
            *taken.by_revision.entry(message.revision).or_default() += 1;
        }
        taken.entries.push(Entry::Stored { request, messages });
    }

    /// The broker turned something away, or did not answer.
    pub fn refused(&self, why: impl Into<String>) {
        self.taken.lock().entries.push(Entry::Refused { why: why.into() });
    }

    /// A consume of this consumer, one after the other, was answered with these messages.
    pub fn delivered(&self, group: &str, consumer: usize, messages: Vec<Delivered>) {
        let mut taken = self.taken.lock();
        *taken.delivered.entry(group.to_owned()).or_default() += messages.len();
        taken.entries.push(Entry::Delivered { group: group.to_owned(), consumer, messages });
    }

    /// The operator has seen that this revision, which stamps so, is in force. Each revision of either way is noted once,
    /// in order.
    pub fn in_force(&self, way: Way, revision: u64, stamp: impl Into<String>) {
        self.taken.lock().entries.push(Entry::InForce { way, revision, stamp: stamp.into() });
    }

    /// Somebody has seen the topic's revision in force, whatever it stamps; there may have been others in between.
    pub fn known(&self, revision: u64) {
        self.taken.lock().entries.push(Entry::Known { revision });
    }

    /// How far the record is: what happens from now on stands at this place or behind it.
    #[must_use]
    pub fn here(&self) -> usize {
        self.taken.lock().entries.len()
    }

    /// Hands out all messages that were stored, each with what was delivered of it, by group.
    pub fn each(&self, look: impl FnMut(Life<'_>, &[(&str, &Delivered)])) {
        judge::each(&self.taken.lock().entries, look);
    }

    /// Messages stored so far on this revision or a later one.
    #[must_use]
    pub fn stored_since(&self, revision: u64) -> usize {
        self.taken.lock().by_revision.range(revision..).map(|(_, count)| count).sum()
    }

    /// Messages that were stored and have not come to the group that lags most.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let taken = self.taken.lock();
        let come = self.groups.iter().map(|group| taken.delivered.get(group).copied().unwrap_or(0)).min();
        // An answer to a consume may overtake the answer to the publish.
        taken.stored.saturating_sub(come.unwrap_or(taken.stored))
    }

    /// Every promise that was broken, in a sentence each. To be asked once nothing waits any more: a message that was
    /// stored and not delivered is lost.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        judge::violations(&self.groups, &self.taken.lock().entries)
    }

    /// How much was seen, for the log of a run.
    #[must_use]
    pub fn summary(&self) -> String {
        let taken = self.taken.lock();
        let swaps = taken.entries.iter().filter(|entry| matches!(entry, Entry::InForce { .. })).count();
        format!(
            "{} messages stored on {} revisions, {:?} delivered, {swaps} revisions seen in force",
            taken.stored,
            taken.by_revision.len(),
            taken.delivered
        )
    }
}
