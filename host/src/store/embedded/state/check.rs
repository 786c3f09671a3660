//! What refuses a whole batch: places that do not exist, an outdated pipeline revision, a plugin's write that met another
//! version, a replay of what is not listed any more. Invariant: what a frame already holds counts. Changes nothing.

use std::sync::Arc;

use crate::message::{GroupId, Partition, Position, TopicId};
use crate::store::embedded::ops::LaneId;
use crate::store::{KvUse, KvWrite, StoreError};

use super::State;
use super::append::{Batch, Plan, Prepared};

impl State {
    pub(super) fn check_places(&self, batch: &Batch) -> Result<(), StoreError> {
        let topic = self.topic(batch.topic)?;
        let check = |id: &LaneId| match self.topics.get(&id.topic) {
            None => Err(StoreError::NoTopic),
            Some(topic) if id.partition >= topic.spec.partitions => {
                Err(StoreError::Invalid(format!("the topic has no partition {}", id.partition)))
            }
            Some(_) => Ok(()),
        };
        for item in &batch.items {
            match &item.entry {
                Prepared::Log { lane, .. } => check(lane)?,
                Prepared::Dead { .. } if self.dead_letter_of(topic.spec.id).is_none() => {
                    return Err(StoreError::Invalid("the topic has no dead-letter topic".to_owned()));
                }
                Prepared::Dead { .. } | Prepared::Dropped { .. } => {}
            }
            item.emitted.iter().try_for_each(|emitted| check(&emitted.lane))?;
        }
        Ok(())
    }

    pub(super) fn check_revisions(&self, batch: &Batch, plan: &Plan) -> Result<(), StoreError> {
        let check = |lane: &LaneId, revision: u64| {
            let place = (lane.topic, lane.partition);
            let current = plan.revisions.get(&place).copied().unwrap_or_else(|| self.revision(place));
            if revision < current { Err(StoreError::StaleRevision { current }) } else { Ok(()) }
        };
        for item in &batch.items {
            if let Prepared::Log { lane, .. } = &item.entry {
                check(lane, batch.revision)?;
            }
            item.emitted.iter().try_for_each(|emitted| check(&emitted.lane, emitted.revision))?;
        }
        Ok(())
    }

    /// The pipeline revision of the last batch that a partition stored.
    pub(super) fn revision(&self, place: (TopicId, Partition)) -> u64 {
        let part = self.topics.get(&place.0).and_then(|topic| topic.partitions.get(usize::from(place.1)));
        part.map_or(0, |part| part.revision)
    }

    pub(super) fn check_kv(&self, writes: &[KvWrite], values: &KvUse, plan: &Plan) -> Result<(), StoreError> {
        let written = writes.iter().map(|write| (&write.namespace, &write.key, write.expected_version));
        let read = values.read.iter().map(|read| (&read.namespace, &read.key, read.version));
        for (namespace, key, expected) in written.chain(read) {
            let key = (Arc::clone(namespace), Arc::clone(key));
            let stored = || self.kv.get(&key).map_or(0, |value| value.version);
            if plan.kv.get(&key).copied().unwrap_or_else(stored) != expected {
                return Err(StoreError::KvConflict);
            }
        }
        self.check_kv_room(writes, values, plan)
    }

    /// Whether a dead letter is still on its list, also after what this frame holds.
    pub(super) fn is_listed(&self, at: Position, plan: &Plan) -> bool {
        let Some(topic) = self.topics.get(&at.topic) else { return false };
        let end = topic.lane(at.partition, at.offset.lane()).map_or(0, |lane| lane.end);
        at.offset.sequence() < end
            && !topic.is_settled(GroupId::SHARED, at.partition, at.offset)
            && !plan.replayed.contains(&at)
    }
}
