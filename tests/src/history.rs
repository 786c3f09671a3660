//! What clients of one topic of a broker that is being killed have seen. Invariant: a verdict rests on the clients' own
//! requests and answers alone, ordered by when they were sent and received. Never asks the broker.

mod judge;

use std::collections::BTreeSet;

use parking_lot::Mutex;

/// A point in the one order of everything that clients did.
pub type Moment = usize;

/// What a topic and its group promise, and so what the record is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Each message comes until it is acked; one live lease at a time.
    AtLeastOnce,
    /// The same, and never two messages of one key under one idempotency key.
    ExactlyOnce,
    /// Each message comes once or, when the answer that held it was lost, never.
    AtMostOnce,
    /// As at least once; and a key's next message comes only when the one before is acked.
    Ordered,
    /// As at least once, but what stays too long may be gone.
    Brief,
}

/// The clients' record. A message is known by its tag: a text in its payload that no other message has.
#[derive(Debug)]
pub struct History {
    promise: Promise,
    entries: Mutex<Vec<Entry>>,
}

#[derive(Debug, Clone)]
enum Entry {
    Asked { tag: String, key: Option<String> },
    Accepted { tag: String, id: String },
    Refused { tag: String },
    ConsumeBegan,
    ConsumeLost { limit: usize },
    Delivered { tag: String, id: String, began: Moment },
    AckAsked { tag: String },
    AckConfirmed { tag: String },
    NackAsked { tag: String },
    LeasesMayEnd,
    LeasesEnded { since: Moment },
}

impl History {
    /// An empty record of a topic that promises this.
    #[must_use]
    pub fn of(promise: Promise) -> History {
        History { promise, entries: Mutex::default() }
    }

    /// What it is judged by.
    #[must_use]
    pub fn promise(&self) -> Promise {
        self.promise
    }

    /// Operations recorded so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.lock().len()
    }

    /// Whether nothing was done yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&self, entry: Entry) -> Moment {
        let mut entries = self.entries.lock();
        entries.push(entry);
        entries.len() - 1
    }

    /// A publish is about to be sent.
    pub fn publish_asked(&self, tag: &str) {
        self.push(Entry::Asked { tag: tag.to_owned(), key: None });
    }

    /// A publish under a partition key is about to be sent; the one before it under that key has ended.
    pub fn publish_under_key_asked(&self, tag: &str, key: &str) {
        self.push(Entry::Asked { tag: tag.to_owned(), key: Some(key.to_owned()) });
    }

    /// A publish was answered with 2xx.
    pub fn publish_accepted(&self, tag: &str, id: &str) {
        self.push(Entry::Accepted { tag: tag.to_owned(), id: id.to_owned() });
    }

    /// A publish was answered with anything that says that nothing was stored.
    pub fn publish_refused(&self, tag: &str) {
        self.push(Entry::Refused { tag: tag.to_owned() });
    }

    /// A consume is about to be sent.
    pub fn consume_began(&self) -> Moment {
        self.push(Entry::ConsumeBegan)
    }

    /// A consume of so many messages at most had no answer.
    pub fn consume_lost(&self, limit: usize) {
        self.push(Entry::ConsumeLost { limit });
    }

    /// A consume that began at `began` handed this message out.
    pub fn delivered(&self, tag: &str, id: &str, began: Moment) {
        self.push(Entry::Delivered { tag: tag.to_owned(), id: id.to_owned(), began });
    }

    /// An ack is about to be sent.
    pub fn ack_asked(&self, tag: &str) {
        self.push(Entry::AckAsked { tag: tag.to_owned() });
    }

    /// An ack was answered with 2xx.
    pub fn ack_confirmed(&self, tag: &str) {
        self.push(Entry::AckConfirmed { tag: tag.to_owned() });
    }

    /// A nack is about to be sent.
    pub fn nack_asked(&self, tag: &str) {
        self.push(Entry::NackAsked { tag: tag.to_owned() });
    }

    /// From here on leases may end by themselves, at any instant: the broker is about to be killed, or its clock to move past
    /// every deadline.
    #[must_use]
    pub fn leases_may_end(&self) -> Moment {
        self.push(Entry::LeasesMayEnd)
    }

    /// They have, at some instant since.
    pub fn leases_ended(&self, since: Moment) {
        self.push(Entry::LeasesEnded { since });
    }

    /// The tags of all messages that were accepted.
    #[must_use]
    pub fn accepted(&self) -> BTreeSet<String> {
        let entries = self.entries.lock();
        let tags = entries.iter().filter_map(|entry| match entry {
            Entry::Accepted { tag, .. } => Some(tag.clone()),
            _ => None,
        });
        tags.collect()
    }

    /// Every promise that was broken, in a sentence each. To be asked once nothing waits any more: a message that was
    /// accepted and not delivered is lost.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        judge::violations(self.promise, &self.entries.lock())
    }

    /// How often each thing happened, for the log of a run.
    #[must_use]
    pub fn summary(&self) -> String {
        let entries = self.entries.lock();
        let count = |wanted: fn(&Entry) -> bool| entries.iter().filter(|entry| wanted(entry)).count();
        format!(
            "{:?}: {} publishes asked, {} accepted, {} refused; {} deliveries, {} acks confirmed, {} consumes lost",
            self.promise,
            count(|entry| matches!(entry, Entry::Asked { .. })),
            count(|entry| matches!(entry, Entry::Accepted { .. })),
            count(|entry| matches!(entry, Entry::Refused { .. })),
            count(|entry| matches!(entry, Entry::Delivered { .. })),
            count(|entry| matches!(entry, Entry::AckConfirmed { .. })),
            count(|entry| matches!(entry, Entry::ConsumeLost { .. })),
        )
    }
}
