//! Carrying out ops: once their frame is synced, and again when the journal is replayed. Invariant: the durable part of
//! the result follows from the ops alone, never from leases or the time. Cannot fail: what an op names and is gone since
//! is passed over.

use std::collections::HashSet;

use crate::clock::Timestamp;
use crate::message::{GroupId, Offset, Partition, TopicId};
use crate::store::embedded::ops::{Body, Done, Entry, Head, LaneId, LaneStart, Op, Owner};
use crate::store::{GroupSpec, TopicSpec};

use super::group::{Group, Totals};
use super::mark::Mark;
use super::ranges::Ranges;
use super::schedule::Scheduled;
use super::{State, Topic, offset};

/// Whether ops are new, or read back from the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applying {
    /// New: what grants say is in the state already.
    Live,
    /// Read back.
    Replay,
}

impl State {
    /// Carries out one op. `bodies` gives the bodies that belong to it, in order.
    pub fn apply(&mut self, op: Op, bodies: &mut impl Iterator<Item = Body>, now: Timestamp, how: Applying) {
        match op {
            Op::Epoch(epoch) => self.epoch = self.epoch.max(epoch),
            Op::Topic(spec) => self.apply_topic(spec),
            Op::TopicGone(topic) => self.apply_topic_gone(topic),
            Op::Group { spec, starts } => self.apply_group(spec, starts),
            Op::GroupGone { topic, group } => {
                if let Ok(topic) = self.topic_mut(topic) {
                    topic.groups.remove(&group);
                }
            }
            Op::Append { lane, first, stamp, at, heads } => {
                let bodies = (0..).zip(bodies.take(heads.len()));
                let entries = bodies.map(|(nth, body)| (first + nth, Entry { at, stamp: stamp + nth, body }));
                self.apply_entries(lane, entries);
            }
            Op::Scheduled { topic, partition, lane, due, number, head } => {
                if let Some(body) = bodies.next() {
                    debug_assert_eq!(body.head.id, head.id);
                    self.apply_scheduled(topic, number, Scheduled { partition, lane, due, body });
                }
            }
            Op::Due { topic, number, lane, sequence, stamp, at } => {
                if let Some(scheduled) = self.unschedule(topic, number) {
                    let entry = Entry { at, stamp, body: scheduled.body };
                    self.apply_entries(lane, std::iter::once((sequence, entry)));
                }
            }
            Op::Unscheduled { topic, number } => {
                self.unschedule(topic, number);
                self.erasing.push(Owner::Scheduled(topic, number));
            }
            Op::Revision { topic, partition, revision } => {
                if let Some(part) =
                    self.topics.get_mut(&topic).and_then(|t| t.partitions.get_mut(usize::from(partition)))
                {
                    part.revision = part.revision.max(revision);
                }
            }
            Op::Dedup { topic, key, outcome } => {
                if let Ok(topic) = self.topic_mut(topic) {
                    topic.dedup.insert(key, outcome);
                }
            }
            Op::Kv { namespace, key, version, value } => self.apply_kv((namespace, key), version, value),
            Op::Trim { lane, start, bytes } => self.apply_trim(lane, start, bytes, now),
            Op::Erased { lane, sequence } => self.apply_erased(lane, sequence, now),
            Op::Begins { lane, sequence } => self.apply_begins(lane, sequence),
            Op::Counted { topic, appended, removed, groups } => self.apply_counted(topic, (appended, removed), &groups),
            op => self.apply_delivery(op, now, how),
        }
    }

    /// Ops that move cursors.
    fn apply_delivery(&mut self, op: Op, now: Timestamp, how: Applying) {
        match op {
            Op::Granted { note, topic, group, partition, grants } => {
                if self.note_is_new(note, how)
                    && let Ok(group) = self.group_mut(topic, group)
                {
                    group.totals.delivered += grants.len() as u64;
                    for (offset, attempt) in grants {
                        group.wait((partition, offset), attempt, Timestamp(0), None);
                    }
                }
            }
            Op::Passed { note, topic, group, partition, offsets } => {
                if self.note_is_new(note, how) {
                    self.apply_settled((topic, group, partition), Done::Expired, &offsets, now);
                }
            }
            Op::Settled { topic, group, partition, done, offsets } => {
                self.apply_settled((topic, group, partition), done, &offsets, now);
            }
            Op::Retry { topic, group, partition, offset, attempts, at, failure } => {
                if let Ok(group) = self.group_mut(topic, group) {
                    group.wait((partition, offset), attempts, at, failure);
                    self.woken.insert(topic);
                }
            }
            Op::Seek { topic, group, starts } => {
                if how == Applying::Live {
                    let moved: HashSet<_> = starts.iter().map(|start| (start.partition, start.offset.lane())).collect();
                    self.forget_notes(topic, group, &|partition, offset| moved.contains(&(partition, offset.lane())));
                }
                if let Ok(found) = self.topic_mut(topic) {
                    place(found, group, &starts);
                    if let Some(group) = found.groups.get_mut(&group) {
                        group.rewind(now);
                    }
                    self.woken.insert(topic);
                }
            }
            Op::Mark { topic, group, name, at, lanes } => {
                if let Ok(group) = self.group_mut(topic, group) {
                    group.marks.insert(name, Mark { at, lanes });
                }
            }
            Op::Unmark { topic, group, name } => {
                if let Ok(group) = self.group_mut(topic, group) {
                    group.marks.remove(&name);
                }
            }
            Op::Restore { topic, group, name } => {
                if how == Applying::Live {
                    self.forget_notes(topic, group, &|_, _| true);
                }
                self.apply_restore((topic, group), &name, now);
            }
            Op::Purge { topic, group, ends, except } => self.apply_purge(topic, group, &ends, &except, now),
            _ => debug_assert!(false, "every other op is carried out by `apply`"),
        }
    }

    /// Grants and passings change the state when they are made; only a replay has to do it again, and not when the
    /// checkpoint it began with had them already.
    fn note_is_new(&mut self, note: u64, how: Applying) -> bool {
        if how == Applying::Live || note < self.next_note {
            return false;
        }
        self.next_note = note + 1;
        true
    }

    /// What was granted while the frame that moves its cursor was synced is undone by that frame; written behind it, its note
    /// would be carried out after it.
    fn forget_notes(&mut self, topic: TopicId, group: GroupId, moved: &dyn Fn(Partition, Offset) -> bool) {
        self.notes.retain_mut(|note| match note {
            Op::Granted { topic: of, group: by, partition, grants, .. } if (*of, *by) == (topic, group) => {
                grants.retain(|(offset, _)| !moved(*partition, *offset));
                !grants.is_empty()
            }
            Op::Passed { topic: of, group: by, partition, offsets, .. } if (*of, *by) == (topic, group) => {
                offsets.retain(|offset| !moved(*partition, *offset));
                !offsets.is_empty()
            }
            _ => true,
        });
    }

    fn apply_topic(&mut self, spec: TopicSpec) {
        let (id, dead_letter) = (spec.id, spec.dead_letter);
        match self.topics.get_mut(&id) {
            Some(topic) => topic.spec = spec,
            None => {
                self.topics.insert(id, Topic::new(spec));
            }
        }
        // Where dead letters of another topic go there is a list of them: the shared cursor.
        let named = self.topics.values().any(|topic| topic.spec.dead_letter == Some(id));
        for list in dead_letter.into_iter().chain(named.then_some(id)) {
            if let Some(topic) = self.topics.get_mut(&list)
                && !topic.groups.contains_key(&GroupId::SHARED)
            {
                let spec = GroupSpec {
                    topic: list,
                    group: GroupId::SHARED,
                    name: "".into(),
                    start: crate::store::SeekTo::Earliest,
                    attempts_max: u32::MAX,
                };
                add_group(topic, spec, &[]);
            }
        }
    }

    fn apply_topic_gone(&mut self, id: TopicId) {
        let Some(mut topic) = self.topics.remove(&id) else { return };
        self.scheduled -= topic.schedule.len();
        self.scheduled_bytes -= topic.schedule.bytes();
        for part in &mut topic.partitions {
            for lane in part.lanes.iter_mut().flatten() {
                self.tail_bytes -= lane.forget_tail();
            }
        }
        let gone: u64 = self.unflushed.extract_if(|lane, _| lane.topic == id).map(|(_, bytes)| bytes).sum();
        self.unflushed_bytes -= gone;
        self.flushed.forget_topic(id);
        self.cache.forget_topic(id);
        self.graves.push(id);
        self.forget_values(id);
        topic.wake();
    }

    fn apply_group(&mut self, spec: GroupSpec, starts: Option<Vec<LaneStart>>) {
        let id = spec.topic;
        let Ok(topic) = self.topic_mut(id) else { return };
        match (topic.groups.get_mut(&spec.group), starts) {
            (Some(group), _) => group.spec = spec,
            (None, starts) => add_group(topic, spec, &starts.unwrap_or_default()),
        }
        self.woken.insert(id);
    }

    /// Entries of one lane, each with its place: looked at one by one also where they go nowhere any more, since what comes
    /// after them is theirs no longer.
    fn apply_entries(&mut self, id: LaneId, entries: impl Iterator<Item = (u64, Entry)>) {
        let (mut cost, mut memory_bytes, mut count) = (0, 0, 0);
        let mut topic = self.topics.get_mut(&id.topic);
        for (sequence, entry) in entries {
            self.next_stamp = self.next_stamp.max(entry.stamp + 1);
            self.last_at = self.last_at.max(entry.at);
            let Head { target, .. } = entry.body.head;
            let Some(topic) = &mut topic else { continue };
            let Some(lane) = topic.lane_mut(id.partition, id.lane) else { continue };
            debug_assert_eq!(lane.end, sequence, "a lane has no holes");
            memory_bytes += entry.memory_bytes();
            cost += lane.push(entry);
            count += 1;
            if let Some(target) = target {
                lane.add_target(sequence..sequence + 1, target);
                for (other, group) in &mut topic.groups {
                    if *other != target {
                        group.settle(id.partition, offset(id, sequence), Timestamp(0));
                    }
                }
            }
        }
        let Some(topic) = topic.filter(|_| count > 0) else { return };
        topic.appended_total += count;
        self.tail_bytes += memory_bytes;
        self.unflushed_bytes += cost;
        *self.unflushed.entry(id).or_default() += cost;
        self.woken.insert(id.topic);
    }

    fn apply_scheduled(&mut self, id: TopicId, number: u64, scheduled: Scheduled) {
        self.next_scheduled = self.next_scheduled.max(number + 1);
        let cost = scheduled.body.head.cost();
        let Ok(topic) = self.topic_mut(id) else { return };
        topic.schedule.insert(number, scheduled);
        self.scheduled += 1;
        self.scheduled_bytes += cost;
    }

    fn unschedule(&mut self, topic: TopicId, number: u64) -> Option<Scheduled> {
        let scheduled = self.topics.get_mut(&topic)?.schedule.remove(number)?;
        self.scheduled -= 1;
        self.scheduled_bytes -= scheduled.body.head.cost();
        Some(scheduled)
    }

    fn apply_settled(&mut self, place: (TopicId, GroupId, Partition), done: Done, offsets: &[Offset], now: Timestamp) {
        let (topic, group, partition) = place;
        let exceptions_max = self.limits.exceptions_max;
        let Ok(group) = self.group_mut(topic, group) else { return };
        let (mut new, was_full) = (0, group.exceptions >= exceptions_max);
        for offset in offsets {
            new += u64::from(group.settle(partition, *offset, now));
        }
        let totals = &mut group.totals;
        match done {
            Done::Acked => totals.acked += new,
            Done::Once => {
                totals.acked += new;
                totals.delivered += new;
            }
            Done::DeadLettered => totals.dead_lettered += new,
            Done::Expired => totals.expired += new,
            Done::Discarded => {}
        }
        // Keys that waited behind these may go on, and so may a group that held as much as it may.
        if group.ordered || was_full {
            self.woken.insert(topic);
        }
    }

    fn apply_purge(
        &mut self,
        topic: TopicId,
        group: GroupId,
        ends: &[LaneStart],
        except: &[(Partition, Offset)],
        now: Timestamp,
    ) {
        let Ok(group) = self.group_mut(topic, group) else { return };
        for end in ends {
            let lane = end.offset.lane();
            let mut kept: Vec<u64> = except
                .iter()
                .filter(|(partition, offset)| *partition == end.partition && offset.lane() == lane)
                .map(|(_, offset)| offset.sequence())
                .collect();
            kept.sort_unstable();
            group.purge(end.partition, lane, end.offset.sequence(), &kept, now);
        }
    }

    fn apply_begins(&mut self, id: LaneId, sequence: u64) {
        let Some(topic) = self.topics.get_mut(&id.topic) else { return };
        let Some(lane) = topic.lane_mut(id.partition, id.lane).filter(|lane| lane.end == 0) else { return };
        (lane.start, lane.flushed, lane.end) = (sequence, sequence, sequence);
    }

    fn apply_counted(&mut self, id: TopicId, (appended, removed): (u64, u64), groups: &[(GroupId, Totals)]) {
        let Ok(topic) = self.topic_mut(id) else { return };
        (topic.appended_total, topic.removed_total) = (appended, removed);
        for (group, totals) in groups {
            if let Some(group) = topic.groups.get_mut(group) {
                group.totals = *totals;
            }
        }
    }

    fn apply_erased(&mut self, id: LaneId, sequence: u64, now: Timestamp) {
        let Ok(topic) = self.topic_mut(id.topic) else { return };
        let Some(lane) = topic.lane_mut(id.partition, id.lane) else { return };
        lane.erased.insert(sequence..sequence + 1);
        for group in topic.groups.values_mut() {
            group.settle(id.partition, offset(id, sequence), now);
        }
        self.cache.forget(id, sequence);
        self.erasing.push(Owner::Log(id, sequence));
    }
}

fn add_group(topic: &mut Topic, spec: GroupSpec, starts: &[LaneStart]) {
    let id = spec.group;
    topic.groups.insert(id, Group::new(spec, topic.spec.partitions));
    // Lanes that are not named begin at their start; lanes to come, at 0.
    let all: Vec<LaneStart> = topic
        .lanes()
        .map(|(lane, state)| LaneStart { partition: lane.partition, offset: offset(lane, state.start) })
        .collect();
    place(topic, id, &all);
    place(topic, id, starts);
}

/// Puts cursors of a group elsewhere.
fn place(topic: &mut Topic, group: GroupId, starts: &[LaneStart]) {
    for start in starts {
        let (number, sequence) = (start.offset.lane(), start.offset.sequence());
        let Some(lane) = topic.lane(start.partition, number) else { continue };
        let floor = sequence.clamp(lane.start, lane.end);
        let settled: Ranges = lane.not_for(group, floor);
        if let Some(group) = topic.groups.get_mut(&group) {
            group.place(start.partition, number, floor, settled);
        }
    }
}
