//! Planning what is asked rarely: topics, groups, seeks, purges, erasures, trims. Invariant: each has a frame to itself, so
//! it is planned against the state alone. Writes nothing.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::message::{GroupId, Offset, Partition, Position, TopicId};
use crate::store::embedded::ops::{Body, Done, LaneId, LaneStart, Op};
use crate::store::{GroupSpec, RetainReport, SeekTo, StoreError, TopicSpec};

use super::append::Plan;
use super::{State, Topic, offset};

/// What is asked. Places by time are looked up before, because that may read from disk.
#[derive(Debug)]
pub enum Control {
    /// See [`crate::store::MessageStore::put_topic`].
    PutTopic(TopicSpec),
    /// See [`crate::store::MessageStore::delete_topic`].
    DeleteTopic(TopicId),
    /// See [`crate::store::MessageStore::put_group`].
    PutGroup { spec: GroupSpec, by_time: Vec<LaneStart> },
    /// See [`crate::store::MessageStore::delete_group`].
    DeleteGroup(TopicId, GroupId),
    /// See [`crate::store::MessageStore::seek`].
    Seek { topic: TopicId, group: GroupId, to: SeekTo, by_time: Vec<LaneStart> },
    /// See [`crate::store::MessageStore::put_snapshot`].
    Mark(TopicId, GroupId, Arc<str>),
    /// See [`crate::store::MessageStore::delete_snapshot`].
    Unmark(TopicId, GroupId, Arc<str>),
    /// See [`crate::store::MessageStore::restore`].
    Restore(TopicId, GroupId, Arc<str>),
    /// See [`crate::store::MessageStore::purge`].
    Purge(TopicId, GroupId),
    /// Messages in logs.
    Erase(Vec<(LaneId, u64)>),
    /// A scheduled message.
    Unschedule(TopicId, u64),
    /// Takes messages out of logs.
    Trim(Vec<Cut>),
    /// What comes from another store, with the bodies that belong to it.
    Take(Vec<Op>, Vec<Body>),
}

/// Messages `from..start` leave a lane; they count `bytes`.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// The lane.
    pub lane: LaneId,
    /// Where the lane began when this was looked up.
    pub from: u64,
    /// Where it will begin.
    pub start: u64,
    /// What lies between.
    pub bytes: u64,
}

/// What it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// So many.
    Count(u64),
    /// So much was removed.
    Retained(RetainReport),
}

impl Answer {
    /// How many.
    #[must_use]
    pub fn count(self) -> u64 {
        match self {
            Answer::Count(count) => count,
            Answer::Retained(_) => 0,
        }
    }
}

impl State {
    /// Plans one control.
    ///
    /// # Errors
    /// `NoTopic`, `NoGroup`, `Invalid`.
    pub fn plan_control(&mut self, control: Control, now: Timestamp, plan: &mut Plan) -> Result<Answer, StoreError> {
        match control {
            Control::PutTopic(spec) => self.plan_topic(spec, plan),
            Control::DeleteTopic(topic) => {
                if self.topics.contains_key(&topic) {
                    plan.side.push(Op::TopicGone(topic));
                }
                Ok(Answer::Count(0))
            }
            Control::PutGroup { spec, by_time } => {
                let topic = self.topic(spec.topic)?;
                let known = topic.groups.contains_key(&spec.group);
                let starts = if known { None } else { Some(places(topic, spec.start, by_time)?) };
                if topic.groups.get(&spec.group).is_none_or(|group| group.spec != spec) {
                    plan.side.push(Op::Group { spec, starts });
                }
                Ok(Answer::Count(0))
            }
            Control::DeleteGroup(topic, group) => {
                if self.topics.get(&topic).is_some_and(|topic| topic.groups.contains_key(&group)) {
                    plan.side.push(Op::GroupGone { topic, group });
                }
                Ok(Answer::Count(0))
            }
            Control::Seek { topic, group, to, by_time } => {
                let found = self.topic(topic)?;
                if !found.groups.contains_key(&group) {
                    return Err(StoreError::NoGroup);
                }
                let starts = places(found, to, by_time)?;
                plan.side.push(Op::Seek { topic, group, starts });
                Ok(Answer::Count(0))
            }
            Control::Mark(topic, group, name) => self.plan_mark((topic, group), name, now, plan),
            Control::Unmark(topic, group, name) => self.plan_with_mark((topic, group), name, false, plan),
            Control::Restore(topic, group, name) => self.plan_with_mark((topic, group), name, true, plan),
            Control::Purge(topic, group) => self.plan_purge(topic, group, now, plan),
            Control::Erase(places) => Ok(self.plan_erase(&places, plan)),
            Control::Unschedule(topic, number) => {
                let there = self.topics.get(&topic).is_some_and(|topic| topic.schedule.get(number).is_some());
                if there {
                    plan.side.push(Op::Unscheduled { topic, number });
                }
                Ok(Answer::Count(u64::from(there)))
            }
            Control::Trim(cuts) => Ok(self.plan_trim(&cuts, plan)),
            Control::Take(ops, bodies) => {
                plan.side = ops;
                plan.bodies = bodies;
                Ok(Answer::Count(0))
            }
        }
    }

    /// Plans that dead letters leave their list; returns how many were on it.
    pub fn plan_discard(&self, positions: &[Position], plan: &mut Plan) -> usize {
        let mut seen = std::collections::HashSet::new();
        for position in positions {
            let Some(topic) = self.topics.get(&position.topic) else { continue };
            let (partition, lane) = (position.partition, position.offset.lane());
            let there = topic.lane(partition, lane).is_some_and(|state| {
                (state.start..state.end).contains(&position.offset.sequence())
                    && !topic.is_settled(GroupId::SHARED, partition, position.offset)
            });
            if there && seen.insert(*position) {
                plan.settled((position.topic, GroupId::SHARED, partition), Done::Discarded, position.offset);
            }
        }
        seen.len()
    }

    fn plan_topic(&self, spec: TopicSpec, plan: &mut Plan) -> Result<Answer, StoreError> {
        if spec.partitions == 0 || spec.partitions > crate::message::PARTITIONS_MAX {
            return Err(StoreError::Invalid(format!("a topic has 1 to {} partitions", crate::message::PARTITIONS_MAX)));
        }
        if spec.dead_letter == Some(spec.id) {
            return Err(StoreError::Invalid("a topic cannot be its own dead-letter topic".to_owned()));
        }
        let known = self.topics.get(&spec.id).map(|topic| &topic.spec);
        if known.is_some_and(|known| known.partitions != spec.partitions) {
            return Err(StoreError::Invalid("a topic's partition count cannot change".to_owned()));
        }
        if known != Some(&spec) {
            plan.side.push(Op::Topic(spec));
        }
        Ok(Answer::Count(0))
    }

    fn plan_purge(
        &mut self,
        topic: TopicId,
        group: GroupId,
        now: Timestamp,
        plan: &mut Plan,
    ) -> Result<Answer, StoreError> {
        let found = self.topic_mut(topic)?;
        found.run_timers(now);
        let state = found.groups.get(&group).ok_or(StoreError::NoGroup)?;
        let (mut except, mut ends, mut count) = (Vec::new(), Vec::new(), 0);
        for (number, part) in state.partitions.iter().enumerate() {
            for (lane, cursor) in part.cursors.iter().enumerate() {
                let Some(cursor) = cursor else { continue };
                let held = cursor.exceptions.iter().filter(|(_, exception)| exception.held().is_some());
                except.extend(held.map(|(sequence, _)| (number as Partition, Offset::new(lane as u8, *sequence))));
            }
        }
        let found = self.topic(topic)?;
        for (id, lane) in found.lanes() {
            count += found.unsettled(group, id, lane.end);
            ends.push(LaneStart { partition: id.partition, offset: offset(id, lane.end) });
        }
        count = count.saturating_sub(except.len() as u64);
        if count > 0 {
            plan.side.push(Op::Purge { topic, group, ends, except });
        }
        Ok(Answer::Count(count))
    }

    fn plan_erase(&self, places: &[(LaneId, u64)], plan: &mut Plan) -> Answer {
        let mut count = 0;
        for (id, sequence) in places {
            let there = self
                .lane(*id)
                .is_some_and(|lane| (lane.start..lane.end).contains(sequence) && !lane.erased.contains(*sequence));
            if there {
                count += 1;
                plan.side.push(Op::Erased { lane: *id, sequence: *sequence });
            }
        }
        Answer::Count(count)
    }

    fn plan_trim(&self, cuts: &[Cut], plan: &mut Plan) -> Answer {
        let mut report = RetainReport::default();
        for Cut { lane: id, from, start, bytes } in cuts.iter().copied() {
            let Some(topic) = self.topics.get(&id.topic) else { continue };
            // An append may have trimmed the lane since; then the bytes are not these, and the next round does the rest.
            if topic.lane(id.partition, id.lane).is_none_or(|lane| lane.start != from) {
                continue;
            }
            report.removed += start - from;
            report.bytes += bytes;
            report.expired += topic.groups.keys().map(|group| topic.unsettled(*group, id, start)).sum::<u64>();
            plan.side.push(Op::Trim { lane: id, start, bytes });
        }
        Answer::Retained(report)
    }
}

impl Topic {
    /// Whether a group has settled a message.
    #[must_use]
    pub fn is_settled(&self, group: GroupId, partition: Partition, offset: Offset) -> bool {
        let Some(group) = self.groups.get(&group) else { return true };
        let part = group.partitions.get(usize::from(partition));
        let cursor = part.and_then(|part| part.cursors.get(usize::from(offset.lane()))?.as_deref());
        cursor.is_some_and(|cursor| cursor.is_settled(offset.sequence()))
    }

    /// How many messages of a lane below `end` a group has not settled.
    #[must_use]
    pub fn unsettled(&self, group: GroupId, id: LaneId, end: u64) -> u64 {
        let Some(group) = self.groups.get(&group) else { return 0 };
        match group.partitions.get(usize::from(id.partition)).map(|part| part.cursors[usize::from(id.lane)].as_deref())
        {
            Some(Some(cursor)) => {
                let above = end.saturating_sub(cursor.floor);
                above - cursor.settled.count_in(cursor.floor..cursor.floor + above)
            }
            _ => end,
        }
    }
}

/// Where cursors go.
fn places(topic: &Topic, to: SeekTo, by_time: Vec<LaneStart>) -> Result<Vec<LaneStart>, StoreError> {
    let each = |sequence: fn(&super::lane::Lane) -> u64| {
        topic
            .lanes()
            .map(|(id, lane)| LaneStart { partition: id.partition, offset: offset(id, sequence(lane)) })
            .collect()
    };
    match to {
        SeekTo::Earliest => Ok(each(|lane| lane.start)),
        SeekTo::Latest => Ok(each(|lane| lane.end)),
        SeekTo::Time(_) => Ok(by_time),
        SeekTo::Offset(partition, _) if partition >= topic.spec.partitions => {
            Err(StoreError::Invalid(format!("the topic has no partition {partition}")))
        }
        SeekTo::Offset(_, offset) if offset.lane() > crate::message::PRIORITY_MAX => {
            Err(StoreError::Invalid("there is no such offset".to_owned()))
        }
        SeekTo::Offset(partition, offset) => Ok(vec![LaneStart { partition, offset }]),
    }
}
