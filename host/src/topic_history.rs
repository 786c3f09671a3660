//! What topics and groups did in the last minutes and hours, from the store's totals, looked at now and again. Invariant: what
//! a total rose by is counted once, in the bucket in which it was seen; memory is bounded by topics and groups. Forgets all
//! at a restart.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Clock, Timestamp};
use crate::directory::Directory;
use crate::message::{GroupId, TopicId};
use crate::store::{GroupStats, MessageStore, StoreError, TopicStats};
use crate::window::{Counters, Sum, Windowed};

/// See the module.
pub struct TopicHistory {
    topics: Mutex<HashMap<TopicId, Known>>,
    clock: Clock,
    begun: Timestamp,
}

/// What happened to a topic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TopicCounts {
    /// Messages that entered the log.
    pub published: u64,
    /// Those that left it.
    pub removed: u64,
}

/// What a group did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupCounts {
    /// Messages handed out.
    pub delivered: u64,
    /// Done.
    pub acked: u64,
    /// Failed for good.
    pub dead_lettered: u64,
    /// Too late.
    pub expired: u64,
}

/// One topic's last totals, and what came of them.
struct Known {
    topic: Track<TopicCounts>,
    groups: HashMap<GroupId, Track<GroupCounts>>,
}

/// Totals, and what they rose by over time.
struct Track<C> {
    last: C,
    rises: Windowed<C>,
}

trait Totals: Counters + Copy {
    fn since(&self, before: &Self) -> Self;
}

impl Counters for TopicCounts {
    fn merge(&mut self, other: &TopicCounts) {
        self.published += other.published;
        self.removed += other.removed;
    }
}

impl Totals for TopicCounts {
    fn since(&self, before: &TopicCounts) -> TopicCounts {
        TopicCounts {
            published: self.published.saturating_sub(before.published),
            removed: self.removed.saturating_sub(before.removed),
        }
    }
}

impl Counters for GroupCounts {
    fn merge(&mut self, other: &GroupCounts) {
        self.delivered += other.delivered;
        self.acked += other.acked;
        self.dead_lettered += other.dead_lettered;
        self.expired += other.expired;
    }
}

impl Totals for GroupCounts {
    fn since(&self, before: &GroupCounts) -> GroupCounts {
        GroupCounts {
            delivered: self.delivered.saturating_sub(before.delivered),
            acked: self.acked.saturating_sub(before.acked),
            dead_lettered: self.dead_lettered.saturating_sub(before.dead_lettered),
            expired: self.expired.saturating_sub(before.expired),
        }
    }
}

impl<C: Totals + PartialEq> Track<C> {
    /// `last` are the totals from which on it counts.
    fn new(last: C, now: Timestamp) -> Track<C> {
        Track { last, rises: Windowed::new(now) }
    }

    fn look(&mut self, totals: C, now: Timestamp) {
        // Who read the totals before another and comes after it brings nothing new.
        let rise = totals.since(&self.last);
        if rise != C::default() {
            self.rises.record(now, |counts| counts.merge(&rise));
            self.last.merge(&rise);
        }
    }
}

/// A topic in a window.
pub struct TopicWindow {
    /// The topic's own counts.
    pub topic: Sum<TopicCounts>,
    /// Its groups'.
    pub groups: HashMap<GroupId, GroupCounts>,
}

impl TopicHistory {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(clock: Clock) -> TopicHistory {
        let begun = clock.now();
        TopicHistory { topics: Mutex::default(), clock, begun }
    }

    /// Looks at all topics' totals.
    ///
    /// # Errors
    /// Why some could not be looked at; the others were.
    pub async fn look(&self, directory: &Directory, store: &dyn MessageStore) -> Result<(), StoreError> {
        let topics = directory.all_topics();
        let mut looked = Ok(());
        for topic in &topics {
            match store.stats(topic.id).await {
                Ok(stats) => self.saw(topic.id, topic.created_at, &stats),
                // Deleted meanwhile.
                Err(_) if directory.topic_by_id(topic.id).is_none() => {}
                Err(error) => looked = looked.and(Err(error)),
            }
        }
        let there: HashSet<TopicId> = topics.iter().map(|topic| topic.id).collect();
        self.topics.lock().retain(|id, _| there.contains(id));
        looked
    }

    /// Takes note of a topic's totals.
    fn saw(&self, id: TopicId, created_at: Timestamp, stats: &TopicStats) {
        let now = self.clock.now();
        // What was made since this began has counted from nothing; what was there before, from where it was then.
        let is_new = created_at >= self.begun;
        let totals = TopicCounts { published: stats.appended_total, removed: stats.removed_total };
        let mut topics = self.topics.lock();
        let first = !topics.contains_key(&id);
        let known = topics.entry(id).or_insert_with(|| {
            let (last, from) = if is_new { (TopicCounts::default(), created_at) } else { (totals, now) };
            Known { topic: Track::new(last, from), groups: HashMap::new() }
        });
        known.topic.look(totals, now);
        for group in &stats.groups {
            let totals = counts(group);
            // A group that comes up later is new, too.
            let last = if first && !is_new { totals } else { GroupCounts::default() };
            known.groups.entry(group.group).or_insert_with(|| Track::new(last, now)).look(totals, now);
        }
        known.groups.retain(|id, _| stats.groups.iter().any(|group| group.group == *id));
    }

    /// What a topic did in the `window` before now. `stats` are its totals of now.
    pub fn window(&self, (id, created_at): (TopicId, Timestamp), stats: &TopicStats, window: Duration) -> TopicWindow {
        self.saw(id, created_at, stats);
        let now = self.clock.now();
        let topics = self.topics.lock();
        let Some(known) = topics.get(&id) else {
            let topic = Sum { counted: TopicCounts::default(), from: now };
            return TopicWindow { topic, groups: HashMap::new() };
        };
        let groups = known.groups.iter().map(|(id, group)| (*id, group.rises.sum(now, window).counted)).collect();
        TopicWindow { topic: known.topic.rises.sum(now, window), groups }
    }
}

fn counts(group: &GroupStats) -> GroupCounts {
    GroupCounts {
        delivered: group.delivered_total,
        acked: group.acked_total,
        dead_lettered: group.dead_lettered_total,
        expired: group.expired_total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: TopicId = TopicId(1);

    fn stats(published: u64, acked: u64) -> TopicStats {
        let group = GroupStats {
            group: GroupId(7),
            waiting: 0,
            leased: 0,
            retrying: 0,
            oldest_unsettled: None,
            acked_total: acked,
            dead_lettered_total: 0,
            expired_total: 0,
            delivered_total: acked,
        };
        TopicStats { appended_total: published, groups: vec![group], ..TopicStats::default() }
    }

    #[test]
    fn what_totals_rose_by_is_counted_when_it_is_seen_and_forgotten_with_its_window() {
        let clock = Clock::fixed(Timestamp(0));
        let history = TopicHistory::new(clock.clone());
        let before = Timestamp(-1);
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let window = |stats: &TopicStats, window| {
            let window = history.window((TOPIC, before), stats, window);
            (window.topic.counted.published, window.groups[&GroupId(7)].acked)
        };
        assert_eq!(window(&stats(100, 50), minutes(60)), (0, 0), "what was there before does not count");
        clock.advance(minutes(1));
        history.saw(TOPIC, before, &stats(110, 55));
        clock.advance(minutes(10));
        assert_eq!(window(&stats(113, 55), minutes(60)), (13, 5));
        assert_eq!(window(&stats(113, 55), minutes(5)), (3, 0));
        clock.advance(minutes(90));
        assert_eq!(window(&stats(113, 55), minutes(60)), (0, 0));
        assert_eq!(window(&stats(113, 55), minutes(600)), (13, 5));
    }

    #[test]
    fn what_is_made_meanwhile_counts_from_nothing() {
        let clock = Clock::fixed(Timestamp(0));
        let history = TopicHistory::new(clock.clone());
        clock.advance(Duration::from_secs(5));
        let window = history.window((TOPIC, Timestamp(2000)), &stats(4, 3), Duration::from_secs(60));
        assert_eq!((window.topic.counted.published, window.topic.from), (4, Timestamp(2000)));
        assert_eq!(window.groups[&GroupId(7)].acked, 3);
    }
}
