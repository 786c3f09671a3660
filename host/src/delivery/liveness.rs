//! Which consumers of a group are there: who asked last, who settled last, who waits right now. Invariant: a group remembers
//! at most [`CONSUMERS_MAX`] of them, and nobody for longer than [`REMEMBERED`]. Of this broker alone, since it started;
//! decides nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Clock, Timestamp};
use crate::message::{GroupId, TopicId};

/// Consumers of one group that are remembered: enough for any that is not wrong.
pub const CONSUMERS_MAX: usize = 100;
/// How long one is remembered that is not heard of.
pub const REMEMBERED: Duration = Duration::from_secs(3600);

type Cursor = (TopicId, GroupId);

/// What is known of all groups' consumers.
pub struct Liveness {
    groups: Mutex<HashMap<Cursor, HashMap<Arc<str>, Seen>>>,
    clock: Clock,
}

/// What is known of one consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// When it last asked for messages, or settled some.
    pub last_seen: Timestamp,
    /// When it last settled some.
    pub last_settled: Option<Timestamp>,
    /// Polls and streams of it that are open now.
    pub open: usize,
}

/// A poll or a stream that is open, until it is dropped.
pub struct Open<'a> {
    liveness: &'a Liveness,
    cursor: Cursor,
    subject: Arc<str>,
}

impl Liveness {
    /// Nobody is known.
    #[must_use]
    pub fn new(clock: Clock) -> Liveness {
        Liveness { groups: Mutex::default(), clock }
    }

    /// This subject asks for messages, for as long as the answer is held.
    #[must_use]
    pub fn asks(&self, cursor: Cursor, subject: &Arc<str>) -> Open<'_> {
        self.note(cursor, subject, |seen, _| seen.open += 1);
        Open { liveness: self, cursor, subject: Arc::clone(subject) }
    }

    /// This subject has settled something.
    pub fn settles(&self, cursor: Cursor, subject: &Arc<str>) {
        self.note(cursor, subject, |seen, now| seen.last_settled = Some(now));
    }

    fn note(&self, cursor: Cursor, subject: &Arc<str>, change: impl FnOnce(&mut Seen, Timestamp)) {
        let now = self.clock.now();
        let mut groups = self.groups.lock();
        let group = groups.entry(cursor).or_default();
        if group.len() >= CONSUMERS_MAX && !group.contains_key(subject) {
            // Who waits now is there, whatever else is.
            let oldest = group.iter().min_by_key(|(_, seen)| (seen.open > 0, seen.last_seen));
            let oldest = oldest.map(|(subject, _)| Arc::clone(subject));
            oldest.and_then(|oldest| group.remove(&oldest));
        }
        let nobody = Seen { last_seen: now, last_settled: None, open: 0 };
        let seen = group.entry(Arc::clone(subject)).or_insert(nobody);
        seen.last_seen = now;
        change(seen, now);
    }

    /// The consumers of a group, by name.
    #[must_use]
    pub fn of(&self, cursor: Cursor) -> Vec<(Arc<str>, Seen)> {
        let since = self.clock.now().minus(REMEMBERED);
        let groups = self.groups.lock();
        let known = groups.get(&cursor).into_iter().flatten();
        let mut all: Vec<_> = known
            .filter(|(_, seen)| seen.open > 0 || seen.last_seen >= since)
            .map(|(subject, seen)| (Arc::clone(subject), seen.clone()))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Forgets who was not heard of for long.
    pub fn forget(&self) {
        let since = self.clock.now().minus(REMEMBERED);
        self.groups.lock().retain(|_, group| {
            group.retain(|_, seen| seen.open > 0 || seen.last_seen >= since);
            !group.is_empty()
        });
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let now = self.liveness.clock.now();
        let mut groups = self.liveness.groups.lock();
        if let Some(seen) = groups.get_mut(&self.cursor).and_then(|group| group.get_mut(&self.subject)) {
            // Less than was counted, where it had to make room in between.
            seen.open = seen.open.saturating_sub(1);
            seen.last_seen = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURSOR: Cursor = (TopicId(1), GroupId(2));

    #[test]
    fn who_asks_and_settles_is_known_and_forgotten_after_an_hour() {
        let clock = Clock::fixed(Timestamp(0));
        let liveness = Liveness::new(clock.clone());
        let [a, b]: [Arc<str>; 2] = ["a".into(), "b".into()];
        let poll = liveness.asks(CURSOR, &a);
        clock.advance(Duration::from_secs(5));
        liveness.settles(CURSOR, &b);
        let seen = |last_seen, last_settled, open| Seen { last_seen: Timestamp(last_seen), last_settled, open };
        let settled = Some(Timestamp(5000));
        assert_eq!(liveness.of(CURSOR), [(a.clone(), seen(0, None, 1)), (b.clone(), seen(5000, settled, 0))]);
        clock.advance(REMEMBERED + Duration::from_secs(1));
        liveness.forget();
        assert_eq!(liveness.of(CURSOR), [(a.clone(), seen(0, None, 1))], "it still waits");
        drop(poll);
        assert_eq!(liveness.of(CURSOR)[0].1.open, 0);
        clock.advance(REMEMBERED + Duration::from_secs(1));
        assert_eq!(liveness.of(CURSOR), []);
        liveness.forget();
        assert!(liveness.groups.lock().is_empty());
    }

    #[test]
    fn a_group_remembers_so_many_and_those_who_wait_first_of_all() {
        let clock = Clock::fixed(Timestamp(0));
        let liveness = Liveness::new(clock.clone());
        let waiting: Arc<str> = "waiting".into();
        let _poll = liveness.asks(CURSOR, &waiting);
        for number in 0..CONSUMERS_MAX * 2 {
            clock.advance(Duration::from_millis(1));
            liveness.settles(CURSOR, &number.to_string().into());
        }
        let known = liveness.of(CURSOR);
        assert_eq!(known.len(), CONSUMERS_MAX);
        assert!(known.iter().any(|(subject, _)| *subject == waiting));
    }
}
