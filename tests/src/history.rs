//! What clients of one topic of a broker that is being killed have seen. Invariant: a verdict rests on the clients' own
//! requests and answers alone, ordered by when they were sent and received; what time it was is the broker's word in them.
//! Never asks the broker.

mod by_clock;
mod judge;
mod lanes;

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
    /// As at least once, to one consumer that asks for the next when it has the last: the highest lane goes first, and the
    /// lowest is not forgotten.
    Lanes,
}

/// What a publisher asked for beside the payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// Not to be delivered before, by the broker's clock.
    pub due_ms: Option<i64>,
    /// Not to be delivered from then on.
    pub expires_ms: Option<i64>,
    /// Its lane.
    pub priority: u8,
}

/// When a delivery began, by the broker's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Not before: a webhook says whole seconds.
    pub from_ms: i64,
    /// Not after.
    pub to_ms: i64,
    /// When its lease ends by itself, where the broker says so.
    pub until_ms: Option<i64>,
}

/// The clients' record. A message is known by its tag: a text in its payload that no other message has.
#[derive(Debug)]
pub struct History {
    promise: Promise,
    entries: Mutex<Vec<Entry>>,
}

#[derive(Debug, Clone)]
enum Entry {
    Asked { tag: String, key: Option<String>, terms: Terms },
    Accepted { tag: String, id: String },
    Refused { tag: String },
    ConsumeBegan,
    ConsumeLost { limit: usize },
    Delivered { tag: String, id: String, began: Moment, times: Option<Times> },
    AckAsked { tag: String, until_ms: Option<i64> },
    AckConfirmed { tag: String, by_ms: Option<i64> },
    NackAsked { tag: String },
    LeasesMayEnd,
    LeasesEnded { since: Moment },
    Clock { ms: i64 },
    Killed { by_ms: i64 },
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
        self.publish_on_terms_asked(tag, None, Terms::default());
    }

    /// A publish under a partition key is about to be sent; the one before it under that key has ended.
    pub fn publish_under_key_asked(&self, tag: &str, key: &str) {
        self.publish_on_terms_asked(tag, Some(key), Terms::default());
    }

    /// A publish on these terms is about to be sent; if it has a key, the one before it under that key has ended.
    pub fn publish_on_terms_asked(&self, tag: &str, key: Option<&str>, terms: Terms) {
        self.push(Entry::Asked { tag: tag.to_owned(), key: key.map(str::to_owned), terms });
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
        self.push(Entry::Delivered { tag: tag.to_owned(), id: id.to_owned(), began, times: None });
    }

    /// The same, with the broker's word on when.
    pub fn delivered_at(&self, tag: &str, id: &str, began: Moment, times: Times) {
        self.push(Entry::Delivered { tag: tag.to_owned(), id: id.to_owned(), began, times: Some(times) });
    }

    /// An ack is about to be sent.
    pub fn ack_asked(&self, tag: &str) {
        self.push(Entry::AckAsked { tag: tag.to_owned(), until_ms: None });
    }

    /// An ack of a lease that ends by itself at this time is about to be sent.
    pub fn ack_asked_until(&self, tag: &str, until_ms: i64) {
        self.push(Entry::AckAsked { tag: tag.to_owned(), until_ms: Some(until_ms) });
    }

    /// An ack was answered with 2xx.
    pub fn ack_confirmed(&self, tag: &str) {
        self.push(Entry::AckConfirmed { tag: tag.to_owned(), by_ms: None });
    }

    /// An ack was answered with 2xx, or its effect seen, when the broker's clock was at this time at most.
    pub fn ack_confirmed_by(&self, tag: &str, by_ms: i64) {
        self.push(Entry::AckConfirmed { tag: tag.to_owned(), by_ms: Some(by_ms) });
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

    /// The broker has said what time it is.
    pub fn clock_shown(&self, ms: i64) {
        self.push(Entry::Clock { ms });
    }

    /// The broker is gone; its clock was at this time at most, and the next one's may be anywhere.
    pub fn killed(&self, by_ms: i64) {
        self.push(Entry::Killed { by_ms });
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

    /// The tags of all messages that were accepted, never expire, and were not delivered yet.
    #[must_use]
    pub fn owed(&self) -> BTreeSet<String> {
        let entries = self.entries.lock();
        let (mut lasting, mut accepted, mut delivered) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for entry in entries.iter() {
            match entry {
                Entry::Asked { tag, terms, .. } if terms.expires_ms.is_none() => drop(lasting.insert(tag)),
                Entry::Accepted { tag, .. } => drop(accepted.insert(tag)),
                Entry::Delivered { tag, .. } => drop(delivered.insert(tag)),
                _ => {}
            }
        }
        let owed = accepted.into_iter().filter(|tag| lasting.contains(tag) && !delivered.contains(tag));
        owed.cloned().collect()
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
