//! Whether one consumer got the lanes as promised: the highest first, and the lowest that waits at least every 8th time.
//! Invariant: only what certainly waited counts: accepted before the consume began, and never delivered to the one
//! consumer there is. Where the broker stands in its count of eight is not known after a kill, so it is only held against
//! it that the lowest come too often or too seldom.

use std::collections::{BTreeMap, BTreeSet};

use super::Entry;

/// The lowest lane that waits has one of so many grants.
const LOWEST_EVERY: usize = 8;

/// Every grant that was not a lane's turn, in a sentence each.
pub(super) fn violations(entries: &[Entry], found: &mut Vec<String>) {
    let mut judge = Judge::default();
    for entry in entries {
        judge.take(entry, found);
    }
}

#[derive(Default)]
struct Judge<'a> {
    priorities: BTreeMap<&'a str, u8>,
    /// Accepted and never delivered, by priority.
    waiting: BTreeSet<(u8, &'a str)>,
    /// What of it waited when the last consume began.
    waited: BTreeSet<(u8, &'a str)>,
    /// Grants since the broker started.
    grants: usize,
    /// The last that can only have been a turn of the lowest.
    lowest_turn: Option<usize>,
    /// Grants in a row that left something lower waiting.
    passed_over: usize,
}

impl<'a> Judge<'a> {
    fn take(&mut self, entry: &'a Entry, found: &mut Vec<String>) {
        match entry {
            Entry::Asked { tag, terms, .. } => {
                self.priorities.insert(tag, terms.priority);
            }
            Entry::Accepted { tag, .. } => {
                self.waiting.insert((self.priorities.get(tag.as_str()).copied().unwrap_or_default(), tag));
            }
            Entry::ConsumeBegan => self.waited = self.waiting.clone(),
            Entry::Delivered { tag, .. } => self.granted(tag, found),
            Entry::Killed { .. } => (self.grants, self.lowest_turn, self.passed_over) = (0, None, 0),
            _ => {}
        }
    }

    fn granted(&mut self, tag: &'a str, found: &mut Vec<String>) {
        let Some(priority) = self.priorities.get(tag).copied() else { return };
        self.waited.remove(&(priority, tag));
        self.waiting.remove(&(priority, tag));
        let lowest = self.waited.first().is_none_or(|(lowest, _)| priority <= *lowest);
        let highest = self.waited.last().is_none_or(|(highest, _)| priority >= *highest);
        if !lowest && !highest {
            found.push(format!("{tag} of priority {priority} came while higher and lower ones waited"));
        }
        if !highest {
            if self.lowest_turn.is_some_and(|last| !(self.grants - last).is_multiple_of(LOWEST_EVERY)) {
                found.push(format!("{tag} of priority {priority} came out of turn while higher ones waited"));
            }
            self.lowest_turn = Some(self.grants);
        }
        self.passed_over = if lowest { 0 } else { self.passed_over + 1 };
        if self.passed_over == LOWEST_EVERY {
            found.push(format!(
                "{tag} of priority {priority} was the {LOWEST_EVERY}th in a row to pass lower ones over"
            ));
        }
        self.grants += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{History, Promise, Terms};

    /// So many of each priority wait; they come in this order, then the rest, which is not looked at.
    fn violations(waiting: &[(u8, usize)], order: &[u8]) -> Vec<String> {
        let history = History::of(Promise::Lanes);
        let mut tags: Vec<(u8, String)> = Vec::new();
        for (priority, count) in waiting {
            for number in 0..*count {
                let tag = format!("{priority}-{number:03}");
                history.publish_on_terms_asked(&tag, None, Terms { priority: *priority, ..Terms::default() });
                history.publish_accepted(&tag, &tag);
                tags.push((*priority, tag));
            }
        }
        for priority in order {
            let at = tags.iter().position(|(known, _)| known == priority).expect("enough of them");
            let (_, tag) = tags.remove(at);
            history.delivered(&tag, &tag, history.consume_began());
        }
        history.violations().into_iter().filter(|found| !found.contains("never delivered")).collect()
    }

    #[test]
    fn the_highest_first_and_each_eighth_the_lowest_breaks_nothing() {
        let found = violations(&[(0, 3), (4, 5), (9, 20)], &[9, 9, 9, 9, 9, 9, 9, 0, 9, 9, 9, 9, 9, 9, 9, 0, 9]);
        assert_eq!(found, Vec::<String>::new());
        // Where it stands in its count is not known at the beginning.
        let found = violations(&[(0, 3), (9, 20)], &[9, 9, 0, 9, 9, 9, 9, 9, 9, 9, 0, 9]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn each_broken_promise_is_found() {
        type Story<'a> = (&'a str, &'a [(u8, usize)], &'a [u8]);
        let stories: &[Story<'_>] = &[
            ("while higher and lower ones waited", &[(0, 1), (4, 1), (9, 1)], &[4]),
            ("out of turn", &[(0, 3), (9, 9)], &[9, 0, 9, 9, 0]),
            ("in a row", &[(0, 1), (9, 9)], &[9; 8]),
        ];
        for (expected, waiting, order) in stories {
            let found = violations(waiting, order);
            assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
        }
    }
}
