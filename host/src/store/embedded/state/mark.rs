//! Named snapshots of a group's position. Invariant: a restore brings back what was not settled when the snapshot was made,
//! and what came later; it keeps no message from being removed. Plans and carries out; decides nothing about time.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::message::{GroupId, TopicId};
use crate::store::embedded::ops::{LaneMark, Op};
use crate::store::{SNAPSHOTS_MAX, StoreError};

use super::State;
use super::append::Plan;
use super::control::Answer;
use super::ranges::Ranges;

/// Gaps that a snapshot keeps of what is settled between messages that are not; what is settled beyond them comes again.
const GAPS_MAX: usize = 10_000;

/// A group's position at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When it was made.
    pub at: Timestamp,
    /// Where each lane stood; lanes that came later are wholly new to it.
    pub lanes: Vec<LaneMark>,
}

impl State {
    /// Plans a snapshot.
    ///
    /// # Errors
    /// `NoTopic`, `NoGroup`, `Invalid` where there are as many as a group may have.
    pub fn plan_mark(
        &self,
        (topic, group): (TopicId, GroupId),
        name: Arc<str>,
        now: Timestamp,
        plan: &mut Plan,
    ) -> Result<Answer, StoreError> {
        let found = self.topic(topic)?;
        let state = found.groups.get(&group).ok_or(StoreError::NoGroup)?;
        if state.marks.len() >= SNAPSHOTS_MAX && !state.marks.contains_key(&name) {
            return Err(StoreError::Invalid(format!(
                "a group has at most {SNAPSHOTS_MAX} snapshots; delete one first"
            )));
        }
        let (mut lanes, mut gaps) = (Vec::new(), 0);
        for (id, lane) in found.lanes() {
            let cursor = state.partitions[usize::from(id.partition)].cursors[usize::from(id.lane)].as_deref();
            let (floor, mut settled) = (cursor.map_or(0, |cursor| cursor.floor), Ranges::default());
            for range in cursor.into_iter().flat_map(|cursor| cursor.settled.within(floor..lane.end)) {
                if gaps == GAPS_MAX {
                    break;
                }
                gaps += 1;
                settled.insert(range);
            }
            lanes.push(LaneMark { partition: id.partition, lane: id.lane, floor, settled });
        }
        plan.side.push(Op::Mark { topic, group, name, at: now, lanes });
        Ok(Answer::Count(1))
    }

    /// Plans that a snapshot goes, or that its group goes back to it; 0 if there is none of that name.
    ///
    /// # Errors
    /// `NoTopic`, `NoGroup`.
    pub fn plan_with_mark(
        &self,
        (topic, group): (TopicId, GroupId),
        name: Arc<str>,
        restores: bool,
        plan: &mut Plan,
    ) -> Result<Answer, StoreError> {
        let state = self.topic(topic)?.groups.get(&group).ok_or(StoreError::NoGroup)?;
        if !state.marks.contains_key(&name) {
            return Ok(Answer::Count(0));
        }
        plan.side.push(if restores { Op::Restore { topic, group, name } } else { Op::Unmark { topic, group, name } });
        Ok(Answer::Count(1))
    }

    pub(super) fn apply_restore(&mut self, (topic, group): (TopicId, GroupId), name: &Arc<str>, now: Timestamp) {
        let Ok(found) = self.topic_mut(topic) else { return };
        let marked = found.groups.get(&group).and_then(|group| group.marks.get(name)).map(|mark| mark.lanes.clone());
        let Some(marked) = marked else { return };
        let mut places = Vec::new();
        for (id, lane) in found.lanes() {
            let mark = marked.iter().find(|mark| (mark.partition, mark.lane) == (id.partition, id.lane));
            let floor = mark.map_or(0, |mark| mark.floor).clamp(lane.start, lane.end);
            let mut settled = lane.not_for(group, floor);
            for range in mark.into_iter().flat_map(|mark| mark.settled.within(floor..lane.end)) {
                settled.insert(range);
            }
            places.push((id, floor, settled));
        }
        let Some(group) = found.groups.get_mut(&group) else { return };
        for (id, floor, settled) in places {
            group.place(id.partition, id.lane, floor, settled);
        }
        group.rewind(now);
        self.woken.insert(topic);
    }
}
