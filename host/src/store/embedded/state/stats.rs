//! Figures of a topic, as far as memory knows them. Never reads a file: which messages' times are still wanted is part of
//! the answer.

use crate::clock::Timestamp;
use crate::message::TopicId;
use crate::store::embedded::ops::LaneId;
use crate::store::{GroupStats, StoreError, TopicStats};

use super::State;

/// Figures, and the messages whose times complete them.
#[derive(Debug)]
pub struct Figures {
    /// All but the times of the oldest.
    pub stats: TopicStats,
    /// The first message of each lane.
    pub oldest: Vec<(LaneId, u64)>,
    /// The first unsettled message of each lane, by group, in the order of `stats.groups`.
    pub unsettled: Vec<Vec<(LaneId, u64)>>,
}

impl State {
    /// Partitions that give out nothing more because their files are damaged.
    #[must_use]
    pub fn damaged_partitions(&self) -> usize {
        let partitions = self.topics.values().flat_map(|topic| &topic.partitions);
        partitions.filter(|partition| partition.damage.is_some()).count()
    }

    /// The figures of a topic.
    ///
    /// # Errors
    /// `NoTopic`.
    pub fn figures(&mut self, id: TopicId, now: Timestamp) -> Result<Figures, StoreError> {
        let topic = self.topic_mut(id)?;
        let window = topic.spec.dedup_window;
        topic.dedup.age(window, now);
        topic.run_timers(now);
        let mut stats = TopicStats {
            scheduled: topic.schedule.len() as u64,
            appended_total: topic.appended_total,
            removed_total: topic.removed_total,
            dedup_keys: topic.dedup.len() as u64,
            ..TopicStats::default()
        };
        let mut oldest = Vec::new();
        for (id, lane) in topic.lanes() {
            stats.messages += lane.end - lane.start;
            stats.bytes += lane.bytes;
            if lane.start < lane.end {
                oldest.push((id, lane.start));
            }
        }
        let mut unsettled = Vec::new();
        for (id, group) in &topic.groups {
            let (mut open, mut firsts) = (0, Vec::new());
            for (lane_id, lane) in topic.lanes() {
                let waits = topic.unsettled(*id, lane_id, lane.end);
                open += waits;
                let part = &group.partitions[usize::from(lane_id.partition)];
                let floor = part.cursors[usize::from(lane_id.lane)].as_deref().map_or(0, |cursor| cursor.floor);
                if waits > 0 {
                    firsts.push((lane_id, floor));
                }
            }
            let (leased, retrying) = (group.held_count(), group.retries.len() as u64);
            stats.groups.push(GroupStats {
                group: *id,
                waiting: open.saturating_sub(leased + retrying),
                leased,
                retrying,
                oldest_unsettled: None,
                acked_total: group.totals.acked,
                dead_lettered_total: group.totals.dead_lettered,
                expired_total: group.totals.expired,
                delivered_total: group.totals.delivered,
            });
            unsettled.push(firsts);
        }
        Ok(Figures { stats, oldest, unsettled })
    }
}
