//! What clients of a broker that is being killed have seen, and whether it keeps the promises. Invariant: a verdict rests
//! on the clients' own requests and answers alone, ordered by when they were sent and received. Never asks the broker.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

/// A point in the one order of everything that clients did.
pub type Moment = usize;

/// The clients' record. A message is known by its tag: a text in its payload that no other message has.
#[derive(Debug, Default)]
pub struct History {
    entries: Mutex<Vec<Entry>>,
}

#[derive(Debug, Clone)]
enum Entry {
    Asked { tag: String },
    Accepted { tag: String, id: String },
    Refused { tag: String },
    ConsumeBegan,
    Delivered { tag: String, id: String, began: Moment },
    AckConfirmed { tag: String },
}

impl History {
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
        self.push(Entry::Asked { tag: tag.to_owned() });
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

    /// A consume that began at `began` handed this message out.
    pub fn delivered(&self, tag: &str, id: &str, began: Moment) {
        self.push(Entry::Delivered { tag: tag.to_owned(), id: id.to_owned(), began });
    }

    /// An ack was answered with 2xx.
    pub fn ack_confirmed(&self, tag: &str) {
        self.push(Entry::AckConfirmed { tag: tag.to_owned() });
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

    /// Every promise that was broken, in a sentence each; `drained` once nothing waits any more, so that a message that
    /// was not delivered is lost.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let entries = self.entries.lock();
        let mut judge = Judge::default();
        for (at, entry) in entries.iter().enumerate() {
            judge.take(at, entry);
        }
        judge.conclude()
    }

    /// How often each thing happened, for the log of a run.
    #[must_use]
    pub fn summary(&self) -> String {
        let entries = self.entries.lock();
        let count = |wanted: fn(&Entry) -> bool| entries.iter().filter(|entry| wanted(entry)).count();
        format!(
            "{} publishes asked, {} accepted, {} refused; {} deliveries, {} acks confirmed",
            count(|entry| matches!(entry, Entry::Asked { .. })),
            count(|entry| matches!(entry, Entry::Accepted { .. })),
            count(|entry| matches!(entry, Entry::Refused { .. })),
            count(|entry| matches!(entry, Entry::Delivered { .. })),
            count(|entry| matches!(entry, Entry::AckConfirmed { .. })),
        )
    }
}

#[derive(Default)]
struct Judge {
    asked: BTreeSet<String>,
    accepted: BTreeMap<String, BTreeSet<String>>,
    refused: BTreeSet<String>,
    delivered: BTreeMap<String, BTreeSet<String>>,
    acked_at: BTreeMap<String, Moment>,
    violations: Vec<String>,
}

impl Judge {
    fn take(&mut self, at: Moment, entry: &Entry) {
        match entry {
            Entry::Asked { tag } => {
                self.refused.remove(tag);
                self.asked.insert(tag.clone());
            }
            Entry::Accepted { tag, id } => {
                self.accepted.entry(tag.clone()).or_default().insert(id.clone());
            }
            Entry::Refused { tag } => {
                self.refused.insert(tag.clone());
            }
            Entry::ConsumeBegan => {}
            Entry::Delivered { tag, id, began } => {
                if self.acked_at.get(tag).is_some_and(|acked| acked < began) {
                    self.violations
                        .push(format!("{tag} was delivered by a consume that began after its confirmed ack"));
                }
                self.delivered.entry(tag.clone()).or_default().insert(id.clone());
            }
            Entry::AckConfirmed { tag } => {
                self.acked_at.entry(tag.clone()).or_insert(at);
            }
        }
    }

    fn conclude(mut self) -> Vec<String> {
        for (tag, ids) in &self.accepted {
            let delivered = self.delivered.get(tag);
            if delivered.is_none() {
                self.violations.push(format!("{tag} was accepted and never delivered"));
            } else if delivered.is_some_and(|delivered| !ids.is_subset(delivered)) {
                self.violations.push(format!("{tag} was accepted as {ids:?} and delivered as {delivered:?}"));
            }
        }
        for (tag, ids) in &self.delivered {
            if !self.asked.contains(tag) {
                self.violations.push(format!("{tag} was delivered and never published"));
            } else if self.refused.contains(tag) && !self.accepted.contains_key(tag) {
                self.violations.push(format!("{tag} was refused and delivered all the same"));
            } else if ids.len() > 1 {
                self.violations.push(format!("{tag} was stored more than once: {ids:?}"));
            }
        }
        self.violations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(story: impl Fn(&History)) -> Vec<String> {
        let history = History::default();
        story(&history);
        history.violations()
    }

    #[test]
    fn an_ordinary_life_breaks_nothing() {
        let found = violations(|history| {
            history.publish_asked("a");
            history.publish_accepted("a", "1");
            for _ in 0..2 {
                let began = history.consume_began();
                history.delivered("a", "1", began);
            }
            history.ack_confirmed("a");
            // Neither answered nor delivered: it may or may not have been stored.
            history.publish_asked("b");
        });
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn each_broken_promise_is_found() {
        let lost = violations(|history| {
            history.publish_asked("a");
            history.publish_accepted("a", "1");
        });
        assert!(lost[0].contains("never delivered"), "{lost:?}");
        let phantom = violations(|history| {
            let began = history.consume_began();
            history.delivered("a", "1", began);
        });
        assert!(phantom[0].contains("never published"), "{phantom:?}");
        let after_ack = violations(|history| {
            history.publish_asked("a");
            let began = history.consume_began();
            history.delivered("a", "1", began);
            history.ack_confirmed("a");
            let began = history.consume_began();
            history.delivered("a", "1", began);
        });
        assert!(after_ack[0].contains("confirmed ack"), "{after_ack:?}");
        let twice = violations(|history| {
            history.publish_asked("a");
            let began = history.consume_began();
            history.delivered("a", "1", began);
            history.delivered("a", "2", began);
        });
        assert!(twice[0].contains("more than once"), "{twice:?}");
        let refused = violations(|history| {
            history.publish_asked("a");
            history.publish_refused("a");
            let began = history.consume_began();
            history.delivered("a", "1", began);
        });
        assert!(refused[0].contains("refused"), "{refused:?}");
    }
}
