//! Whether a record keeps its promise. Invariant: what clients can't know for certain (a publish or an ack without an
//! answer, an answer that was overtaken on its way) is never held against the broker. One rule a function.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{Entry, Moment, Promise, Terms, Times, by_clock, lanes};

/// Every promise that was broken, in a sentence each.
pub(super) fn violations(promise: Promise, entries: &[Entry]) -> Vec<String> {
    let facts = Facts::of(entries);
    let mut found = Vec::new();
    facts.stored_as_said(&mut found);
    facts.not_after_ack(&mut found);
    by_clock::violations(&facts, entries, &mut found);
    match promise {
        Promise::AtMostOnce => {
            facts.at_most_once(&mut found);
            facts.lost_only_with_an_answer(&mut found);
        }
        Promise::Brief => facts.one_live_lease(&mut found),
        Promise::AtLeastOnce | Promise::ExactlyOnce => {
            facts.none_lost(&mut found);
            facts.one_live_lease(&mut found);
        }
        Promise::Ordered => {
            facts.none_lost(&mut found);
            facts.one_live_lease(&mut found);
            facts.in_order(&mut found);
        }
        Promise::Lanes => {
            facts.none_lost(&mut found);
            facts.one_live_lease(&mut found);
            lanes::violations(entries, &mut found);
        }
    }
    found
}

/// A consume's answer that held the message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Handed {
    pub(super) began: Moment,
    pub(super) at: Moment,
    pub(super) times: Option<Times>,
}

impl Handed {
    /// Whether both leases lived at one time, as far as the broker said when they began and end.
    fn may_meet(&self, other: &Handed) -> bool {
        let ends_before = |one: &Handed, other: &Handed| match (one.times, other.times) {
            (Some(Times { until_ms: Some(until), .. }), Some(other)) => until <= other.from_ms,
            _ => false,
        };
        !(ends_before(self, other) || ends_before(other, self))
    }
}

/// What is known of one message.
#[derive(Debug, Default)]
pub(super) struct Life {
    asked: Option<Moment>,
    pub(super) terms: Terms,
    refused: bool,
    accepted_as: BTreeSet<String>,
    delivered_as: BTreeSet<String>,
    pub(super) handed: Vec<Handed>,
    ack_asked: Option<Moment>,
    pub(super) ack_confirmed: Option<Moment>,
    nacks: Vec<Moment>,
}

#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) lives: BTreeMap<String, Life>,
    /// Key → its tags in the order they were published.
    keys: BTreeMap<String, Vec<String>>,
    /// Spans in which all leases ended.
    leases_ended: Vec<Range<Moment>>,
    /// Answers that were lost: when that was known, and how many messages they held at most.
    lost: Vec<(Moment, usize)>,
}

impl Facts {
    fn of(entries: &[Entry]) -> Facts {
        let mut facts = Facts::default();
        for (at, entry) in entries.iter().enumerate() {
            facts.take(at, entry);
        }
        facts
    }

    fn take(&mut self, at: Moment, entry: &Entry) {
        match entry {
            Entry::Asked { tag, key, terms } => {
                if let Some(key) = key {
                    self.keys.entry(key.clone()).or_default().push(tag.clone());
                }
                let life = self.life(tag);
                life.asked.get_or_insert(at);
                (life.terms, life.refused) = (*terms, false);
            }
            Entry::Accepted { tag, id } => {
                self.life(tag).accepted_as.insert(id.clone());
            }
            Entry::Refused { tag } => self.life(tag).refused = true,
            Entry::ConsumeBegan | Entry::LeasesMayEnd | Entry::Clock { .. } | Entry::Killed { .. } => {}
            Entry::ConsumeLost { limit } => self.lost.push((at, *limit)),
            Entry::Delivered { tag, id, began, times } => {
                let life = self.life(tag);
                life.delivered_as.insert(id.clone());
                life.handed.push(Handed { began: *began, at, times: *times });
            }
            Entry::AckAsked { tag, .. } => {
                self.life(tag).ack_asked.get_or_insert(at);
            }
            Entry::AckConfirmed { tag, .. } => {
                self.life(tag).ack_confirmed.get_or_insert(at);
            }
            Entry::NackAsked { tag } => self.life(tag).nacks.push(at),
            Entry::LeasesEnded { since } => self.leases_ended.push(*since..at),
        }
    }

    fn life(&mut self, tag: &str) -> &mut Life {
        self.lives.entry(tag.to_owned()).or_default()
    }

    fn stored_as_said(&self, found: &mut Vec<String>) {
        for (tag, life) in &self.lives {
            let delivered = !life.handed.is_empty();
            if delivered && life.asked.is_none() {
                found.push(format!("{tag} was delivered and never published"));
            } else if delivered && life.refused && life.accepted_as.is_empty() {
                found.push(format!("{tag} was refused and delivered all the same"));
            }
            if life.delivered_as.len() > 1 {
                found.push(format!("{tag} was stored more than once: {:?}", life.delivered_as));
            }
            if life.accepted_as.len() > 1 {
                found.push(format!("{tag} was accepted more than once: {:?}", life.accepted_as));
            }
            if delivered && !life.accepted_as.is_empty() && life.accepted_as.is_disjoint(&life.delivered_as) {
                found.push(format!(
                    "{tag} was accepted as {:?}, delivered as {:?}",
                    life.accepted_as, life.delivered_as
                ));
            }
        }
    }

    fn not_after_ack(&self, found: &mut Vec<String>) {
        for (tag, life) in &self.lives {
            let Some(acked) = life.ack_confirmed else { continue };
            if life.handed.iter().any(|handed| acked < handed.began) {
                found.push(format!("{tag} was delivered by a consume that began after its confirmed ack"));
            }
        }
    }

    fn none_lost(&self, found: &mut Vec<String>) {
        for tag in self.never_delivered() {
            found.push(format!("{tag} was accepted and never delivered"));
        }
    }

    /// What expires may be gone.
    fn never_delivered(&self) -> impl Iterator<Item = &String> {
        let undelivered = |(_, life): &(&String, &Life)| {
            !life.accepted_as.is_empty() && life.handed.is_empty() && life.terms.expires_ms.is_none()
        };
        self.lives.iter().filter(undelivered).map(|(tag, _)| tag)
    }

    fn at_most_once(&self, found: &mut Vec<String>) {
        for (tag, life) in self.lives.iter().filter(|(_, life)| life.handed.len() > 1) {
            found.push(format!("{tag} was handed out {} times, and at most once was promised", life.handed.len()));
        }
    }

    /// Each message that never came was in an answer that was lost, and published before.
    fn lost_only_with_an_answer(&self, found: &mut Vec<String>) {
        let mut missing: Vec<Moment> = self.never_delivered().filter_map(|tag| self.lives[tag].asked).collect();
        missing.sort_unstable();
        let mut lost = self.lost.iter().rev().peekable();
        let mut room = 0;
        for (later, asked) in missing.iter().rev().enumerate() {
            while let Some((_, limit)) = lost.next_if(|(at, _)| at > asked) {
                room += limit;
            }
            if later >= room {
                let count = later + 1;
                found.push(format!("{count} messages never came, and answers lost since then held {room} at most"));
                return;
            }
        }
    }

    fn one_live_lease(&self, found: &mut Vec<String>) {
        for (tag, life) in &self.lives {
            for pair in life.handed.windows(2) {
                let between = pair[0].began.min(pair[1].began)..pair[1].at;
                let nacked = life.nacks.iter().any(|moment| between.contains(moment));
                let ended = self.leases_ended.iter().any(|span| span.start < between.end && between.start < span.end);
                if pair[0].may_meet(&pair[1]) && !(ended || nacked) {
                    found.push(format!(
                        "{tag} was leased twice at {:?} and {:?}, nothing ended the first",
                        pair[0], pair[1]
                    ));
                }
            }
        }
    }

    fn in_order(&self, found: &mut Vec<String>) {
        for (key, tags) in &self.keys {
            let stored = |tag: &&String| !self.lives[*tag].handed.is_empty();
            let tags: Vec<&String> = tags.iter().filter(stored).collect();
            for pair in tags.windows(2) {
                let (before, after) = (&self.lives[pair[0]], &self.lives[pair[1]]);
                let first = after.handed[0].at;
                if before.ack_asked.is_none_or(|acked| acked > first) {
                    found.push(format!("{} of key {key} came before {} was acked", pair[1], pair[0]));
                }
                if before.handed.iter().any(|handed| handed.began > first) {
                    found.push(format!("{} of key {key} came again after {}", pair[0], pair[1]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{History, Promise};

    fn violations(promise: Promise, story: impl Fn(&History)) -> Vec<String> {
        let history = History::of(promise);
        story(&history);
        history.violations()
    }

    fn accept(history: &History, tag: &str) {
        history.publish_under_key_asked(tag, "k");
        history.publish_accepted(tag, tag);
    }

    fn deliver(history: &History, tag: &str) {
        let began = history.consume_began();
        history.delivered(tag, tag, began);
    }

    fn ack(history: &History, tag: &str) {
        history.ack_asked(tag);
        history.ack_confirmed(tag);
    }

    #[test]
    fn an_ordinary_life_breaks_nothing() {
        let found = violations(Promise::Ordered, |history| {
            accept(history, "a");
            accept(history, "b");
            deliver(history, "a");
            history.nack_asked("a");
            deliver(history, "a");
            history.leases_ended(history.leases_may_end());
            deliver(history, "a");
            ack(history, "a");
            deliver(history, "b");
            // Neither answered nor delivered: it may or may not have been stored.
            history.publish_asked("c");
        });
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn each_broken_promise_is_found() {
        type Story = fn(&History);
        let stories: &[(Promise, &str, Story)] = &[
            (Promise::AtLeastOnce, "never delivered", |history| accept(history, "a")),
            (Promise::AtLeastOnce, "never published", |history| deliver(history, "a")),
            (Promise::AtLeastOnce, "confirmed ack", |history| {
                accept(history, "a");
                deliver(history, "a");
                ack(history, "a");
                history.leases_ended(history.leases_may_end());
                deliver(history, "a");
            }),
            (Promise::AtLeastOnce, "leased twice", |history| {
                accept(history, "a");
                deliver(history, "a");
                deliver(history, "a");
            }),
            (Promise::ExactlyOnce, "stored more than once", |history| {
                accept(history, "a");
                deliver(history, "a");
                history.leases_ended(history.leases_may_end());
                let began = history.consume_began();
                history.delivered("a", "another", began);
            }),
            (Promise::ExactlyOnce, "accepted more than once", |history| {
                accept(history, "a");
                history.publish_accepted("a", "another");
                deliver(history, "a");
            }),
            (Promise::Brief, "refused", |history| {
                history.publish_asked("a");
                history.publish_refused("a");
                deliver(history, "a");
            }),
            (Promise::AtMostOnce, "2 times", |history| {
                accept(history, "a");
                deliver(history, "a");
                history.leases_ended(history.leases_may_end());
                deliver(history, "a");
            }),
            (Promise::AtMostOnce, "2 messages never came", |history| {
                accept(history, "a");
                accept(history, "b");
                history.consume_lost(1);
            }),
            (Promise::AtMostOnce, "1 messages never came", |history| {
                accept(history, "a");
                history.consume_lost(2);
                accept(history, "b");
            }),
            (Promise::Ordered, "came before a was acked", |history| {
                accept(history, "a");
                accept(history, "b");
                deliver(history, "a");
                deliver(history, "b");
            }),
            (Promise::Ordered, "came again after b", |history| {
                accept(history, "a");
                accept(history, "b");
                deliver(history, "a");
                history.ack_asked("a");
                deliver(history, "b");
                history.leases_ended(history.leases_may_end());
                deliver(history, "a");
            }),
        ];
        for (promise, expected, story) in stories {
            let found = violations(*promise, story);
            assert!(found.len() == 1 && found[0].contains(expected), "{promise:?}, {expected}: {found:?}");
        }
    }

    #[test]
    fn a_lost_answer_excuses_what_it_may_have_held() {
        let found = violations(Promise::AtMostOnce, |history| {
            accept(history, "a");
            history.consume_lost(1);
            accept(history, "b");
            accept(history, "c");
            history.consume_lost(1);
            history.consume_lost(1);
        });
        assert_eq!(found, Vec::<String>::new());
    }
}
