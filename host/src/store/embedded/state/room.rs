//! Whether there is room: in a topic, among its keys, in the schedule. Invariant: what a frame already holds counts. Makes
//! room only from what every group has settled.

use crate::clock::Timestamp;
use crate::message::TopicId;
use crate::store::embedded::ops::Op;

use super::append::{Item, Plan, Prepared};
use super::{State, Topic};

/// Bytes by topic. Nearly every item needs room in one alone, and none in many.
#[derive(Debug, Default)]
pub(super) struct Needs(Vec<(TopicId, u64)>);

impl Needs {
    fn add(&mut self, topic: TopicId, bytes: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == topic) {
            Some((_, sum)) => *sum += bytes,
            None => self.0.push((topic, bytes)),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (TopicId, u64)> {
        self.0.iter().copied()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl State {
    /// Adds what an item takes of each topic's room, and of the schedule's.
    pub(super) fn needs(
        &self,
        topic: TopicId,
        item: &Item,
        now: Timestamp,
        needs: &mut Needs,
        waiting: &mut (usize, u64),
    ) {
        match &item.entry {
            Prepared::Log { body, due, .. } => {
                needs.add(topic, body.head.cost());
                if due.is_some_and(|due| due > now) {
                    waiting.0 += 1;
                    waiting.1 += body.head.cost();
                }
            }
            Prepared::Dead { body, .. } => {
                let dead = self.dead_letter_of(topic).unwrap_or(topic);
                needs.add(dead, body.head.cost());
            }
            Prepared::Dropped { .. } => {}
        }
        for emitted in &item.emitted {
            needs.add(emitted.lane.topic, emitted.body.head.cost());
        }
    }

    /// Whether a topic takes so many bytes more, once what every group has settled is removed as far as it must be.
    pub(super) fn room(&self, id: TopicId, need: u64, plan: &mut Plan) -> bool {
        let Some(topic) = self.topics.get(&id) else { return false };
        let Some(limit) = topic.spec.retention_bytes else { return true };
        let used = *plan.bytes.entry(id).or_insert_with(|| topic.bytes());
        if used + need <= limit {
            return true;
        }
        if !plan.trimmed.insert(id) {
            return false;
        }
        // An eighth at a time, so that a full topic does not trim with every message.
        let freed = remove_settled(topic, (used + need - limit).max(limit / 8), plan);
        used.saturating_sub(freed) + need <= limit
    }

    pub(super) fn room_for_keys(&self, id: TopicId, keys: usize, plan: &mut Plan) -> bool {
        let Some(topic) = self.topics.get(&id) else { return false };
        if keys == 0 {
            return true;
        }
        let before = *plan.keys_before.get_or_insert_with(|| self.topics.values().map(|topic| topic.dedup.len()).sum());
        let planned = plan.new_keys.get(&id).copied().unwrap_or_default();
        let planned_total: usize = plan.new_keys.values().sum();
        topic.dedup.len() + planned + keys <= topic.spec.dedup_keys_max as usize
            && before + planned_total + keys <= self.limits.dedup_keys_total_max
    }

    pub(super) fn room_to_wait(&self, waiting: (usize, u64), plan: &Plan) -> bool {
        waiting.0 == 0
            || (self.scheduled + plan.scheduled + waiting.0 <= self.limits.scheduled_max
                && self.scheduled_bytes + plan.scheduled_bytes + waiting.1 <= self.limits.scheduled_bytes_max)
    }

    pub(super) fn room_for_target(&self, item: &Item) -> bool {
        let Prepared::Log { lane, body, .. } = &item.entry else { return true };
        body.head.target.is_none()
            || self.lane(*lane).is_none_or(|lane| lane.targets.len() < self.limits.target_runs_max)
    }
}

/// Plans the removal of what every group has settled; returns how many bytes that frees.
fn remove_settled(topic: &Topic, need: u64, plan: &mut Plan) -> u64 {
    let mut freed = 0;
    for op in topic.trim_settled(need) {
        if let Op::Trim { bytes, .. } = &op {
            freed += bytes;
        }
        plan.appends.push(op);
    }
    if let Some(used) = plan.bytes.get_mut(&topic.spec.id) {
        *used = used.saturating_sub(freed);
    }
    freed
}
