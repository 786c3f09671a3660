//! What refuses a whole batch: places that do not exist, an outdated pipeline revision, a plugin's write that met another
//! version, a replay of what is not listed any more. Invariant: what a frame already holds counts. Changes nothing.

use std::sync::Arc;

use crate::message::{GroupId, Partition, Position, TopicId};
use crate::store::embedded::ops::LaneId;
use crate::store::{KvUse, KvWrite, StoreError};

use super::State;
use super::append::{Batch, Plan, Prepared};

/// Refuses a batch that names a place which is not there. `partitions` says how many a topic has, if it is there; `buries`
/// whether the batch's own topic has one for its dead letters.
///
/// # Errors
/// `NoTopic`, `Invalid`.
pub fn check_places(
    batch: &Batch,
    partitions: impl Fn(TopicId) -> Option<Partition>,
    buries: bool,
) -> Result<(), StoreError> {
    let check = |id: &LaneId| match partitions(id.topic) {
        None => Err(StoreError::NoTopic),
        Some(count) if id.partition >= count => {
            Err(StoreError::Invalid(format!("the topic has no partition {}", id.partition)))
        }
        Some(_) => Ok(()),
    };
    partitions(batch.topic).ok_or(StoreError::NoTopic)?;
    for item in &batch.items {
        match &item.entry {
            Prepared::Log { lane, .. } => check(lane)?,
            Prepared::Dead { .. } if !buries => {
                return Err(StoreError::Invalid("the topic has no dead-letter topic".to_owned()));
            }
            Prepared::Dead { .. } | Prepared::Dropped { .. } => {}
        }
        item.emitted.iter().try_for_each(|emitted| check(&emitted.lane))?;
    }
    Ok(())
}

/// Refuses a batch that ran on a pipeline revision which is behind that of one of its partitions; `current` says theirs.
///
/// # Errors
/// `StaleRevision`.
pub fn check_revisions(batch: &Batch, current: impl Fn(&LaneId) -> u64) -> Result<(), StoreError> {
    let check = |lane: &LaneId, revision: u64| match current(lane) {
        current if revision < current => Err(StoreError::StaleRevision { current }),
        _ => Ok(()),
    };
    for item in &batch.items {
        if let Prepared::Log { lane, .. } = &item.entry {
            check(lane, batch.revision)?;
        }
        item.emitted.iter().try_for_each(|emitted| check(&emitted.lane, emitted.revision))?;
    }
    Ok(())
}

impl State {
    pub(super) fn check_places(&self, batch: &Batch) -> Result<(), StoreError> {
        let partitions = |topic| self.topics.get(&topic).map(|topic| topic.spec.partitions);
        check_places(batch, partitions, self.dead_letter_of(batch.topic).is_some())
    }

    pub(super) fn check_revisions(&self, batch: &Batch, plan: &Plan) -> Result<(), StoreError> {
        check_revisions(batch, |lane| {
            let place = (lane.topic, lane.partition);
            plan.revisions.get(&place).copied().unwrap_or_else(|| self.revision(place))
        })
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
