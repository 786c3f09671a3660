//! Applying a journal that has holes. Invariant: every whole frame is applied; where a lane misses messages, tombstones
//! stand at their offsets, so that all others keep theirs; what was lost is listed. Never reads or writes a file.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use bytes::Bytes;

use super::finding::{Lost, lost_messages};
use crate::clock::Timestamp;
use crate::message::{GroupId, MessageId, PARTITIONS_MAX, TopicId};
use crate::store::embedded::ops::{Body, Head, LaneId, Op, Owner};
use crate::store::embedded::state::{Applying, State};
use crate::store::{GroupSpec, SeekTo, TopicSpec};

/// What the catalog knows, for what the store's own files do not tell any more.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Topics.
    pub topics: Vec<TopicSpec>,
    /// Groups, also those that no subscription has: of a Queue, of dead letters.
    pub groups: Vec<GroupSpec>,
    /// The catalog lost pipelines, so that a topic may be at a lower revision than its partitions have seen.
    pub revisions_lost: bool,
}

impl Known {
    /// A topic, and whether it had to be guessed.
    fn topic(&self, id: TopicId) -> (TopicSpec, bool) {
        match self.topics.iter().find(|topic| topic.id == id) {
            Some(spec) => (spec.clone(), false),
            None => (guessed_topic(id), true),
        }
    }

    fn group(&self, topic: TopicId, group: GroupId) -> GroupSpec {
        let known = self.groups.iter().find(|known| (known.topic, known.group) == (topic, group)).cloned();
        known.unwrap_or_else(|| GroupSpec {
            topic,
            group,
            name: format!("recovered-{}", group.0).into(),
            start: SeekTo::Earliest,
            attempts_max: 4,
        })
    }
}

/// A topic of which only messages are left: it takes all partitions that there can be, and keeps what it has.
pub(super) fn guessed_topic(id: TopicId) -> TopicSpec {
    const YEAR_SECONDS: u64 = 365 * 86_400;
    TopicSpec {
        id,
        partitions: PARTITIONS_MAX,
        retention: std::time::Duration::from_secs(YEAR_SECONDS),
        retention_bytes: None,
        dedup_window: std::time::Duration::from_secs(86_400),
        dedup_keys_max: 100_000,
        dead_letter: None,
        dead_letter_payload: true,
        dead_letter_expired: false,
    }
}

/// Something lost in the journal.
#[derive(Debug)]
pub(in crate::store::embedded) struct Loss {
    /// What.
    pub lost: Lost,
    /// The frame that showed it; the damage lies in it or before.
    pub frame: u64,
    /// The body that is damaged, if it is a body.
    pub body: Option<Owner>,
}

/// See the module.
pub(in crate::store::embedded) struct Salvage<'a> {
    known: &'a Known,
    /// Bodies that do not match their checksums, and which finding tells of each.
    bad: &'a HashMap<Owner, usize>,
    /// Whether frames are missing: without that, nothing is made up.
    holes: bool,
    now: Timestamp,
    gone: HashSet<TopicId>,
    frame: u64,
    /// What was lost.
    pub losses: Vec<Loss>,
}

impl<'a> Salvage<'a> {
    /// Nothing is applied yet.
    pub fn new(known: &'a Known, bad: &'a HashMap<Owner, usize>, holes: bool, now: Timestamp) -> Salvage<'a> {
        Salvage { known, bad, holes, now, gone: HashSet::new(), frame: 0, losses: Vec::new() }
    }

    /// Applies one frame.
    pub fn frame(&mut self, state: &mut State, sequence: u64, ops: Vec<Op>, bodies: Vec<Body>) {
        self.frame = sequence;
        let mut bodies = bodies.into_iter();
        for op in ops {
            if self.holes {
                self.make_place(state, &op);
            }
            self.op(state, op, &mut bodies);
        }
        state.applied = sequence;
    }

    fn op(&mut self, state: &mut State, op: Op, bodies: &mut std::vec::IntoIter<Body>) {
        match op {
            Op::Append { lane, first, stamp, at, heads } => {
                let bodies: Vec<Body> = bodies.take(heads.len()).collect();
                self.append(state, (lane, first), (stamp, at), bodies);
            }
            Op::Scheduled { topic, number, head, due, .. }
                if self.bad.contains_key(&Owner::Scheduled(topic, number)) =>
            {
                drop(bodies.next());
                let lost = Lost::Scheduled { topic, message: head.id, due };
                self.losses.push(Loss { lost, frame: self.frame, body: Some(Owner::Scheduled(topic, number)) });
            }
            Op::Due { topic, number, lane, sequence, .. } => {
                let body = Owner::Log(lane, sequence);
                self.fill(state, lane, sequence);
                if self.bad.contains_key(&body) {
                    apply_quietly(state, Op::Unscheduled { topic, number }, None, self.now);
                    self.lose(state, lane, sequence..sequence + 1, Some(body));
                } else {
                    apply(state, op, None, self.now);
                    // It is not in the schedule if the frame that put it there is lost.
                    self.fill(state, lane, sequence + 1);
                }
            }
            Op::TopicGone(topic) => {
                self.gone.insert(topic);
                apply(state, op, None, self.now);
            }
            Op::Scheduled { .. } => apply(state, op, bodies.next(), self.now),
            op => apply(state, op, None, self.now),
        }
    }

    fn append(&mut self, state: &mut State, place: (LaneId, u64), order: (u64, Timestamp), bodies: Vec<Body>) {
        let ((lane, first), (stamp, at)) = (place, order);
        self.fill(state, lane, first);
        for (nth, body) in (0..).zip(bodies) {
            let sequence = first + nth;
            if sequence < end_of(state, lane) {
                // Without a checkpoint the segments are read first, and they may be ahead of the journal.
                continue;
            }
            let owner = Owner::Log(lane, sequence);
            if self.bad.contains_key(&owner) {
                self.lose(state, lane, sequence..sequence + 1, Some(owner));
                continue;
            }
            let op = Op::Append { lane, first: sequence, stamp: stamp + nth, at, heads: vec![body.head] };
            apply(state, op, Some(body), self.now);
        }
    }

    /// Puts tombstones where a lane misses messages before `next`.
    fn fill(&mut self, state: &mut State, lane: LaneId, next: u64) {
        let end = end_of(state, lane);
        let exists =
            state.topics.get(&lane.topic).is_some_and(|topic| usize::from(lane.partition) < topic.partitions.len());
        if exists && end < next {
            self.lose(state, lane, end..next, None);
        }
    }

    fn lose(&mut self, state: &mut State, lane: LaneId, range: Range<u64>, body: Option<Owner>) {
        self.losses.push(Loss { lost: lost_messages(lane, range.clone()), frame: self.frame, body });
        for sequence in range {
            // No later in the order of all appends than what came before it: nothing else needs to move.
            let (stamp, at) = (state.next_stamp.saturating_sub(1), state.last_at);
            let body = tombstone(lane, at);
            let op = Op::Append { lane, first: sequence, stamp, at, heads: vec![body.head] };
            apply(state, op, Some(body), self.now);
            apply_quietly(state, Op::Erased { lane, sequence }, None, self.now);
        }
    }

    /// Makes the topic or group that an op needs and whose making is lost.
    fn make_place(&mut self, state: &mut State, op: &Op) {
        let (topic, group) = match op {
            Op::Append { lane, .. }
            | Op::Due { lane, .. }
            | Op::Trim { lane, .. }
            | Op::Erased { lane, .. }
            | Op::Begins { lane, .. } => (lane.topic, None),
            Op::Scheduled { topic, .. }
            | Op::Revision { topic, .. }
            | Op::Dedup { topic, .. }
            | Op::Counted { topic, .. } => (*topic, None),
            Op::Group { spec, .. } => (spec.topic, None),
            Op::Settled { topic, group, .. }
            | Op::Retry { topic, group, .. }
            | Op::Seek { topic, group, .. }
            | Op::Purge { topic, group, .. }
            | Op::Mark { topic, group, .. }
            | Op::Unmark { topic, group, .. }
            | Op::Restore { topic, group, .. } => (*topic, Some(*group)),
            // Grants are notes: they may come after the end of what they speak of.
            _ => return,
        };
        if self.gone.contains(&topic) {
            return;
        }
        self.make_topic(state, topic);
        if let Some(group) = group {
            self.make_group(state, topic, group);
        }
    }

    fn make_topic(&mut self, state: &mut State, id: TopicId) {
        if state.topics.contains_key(&id) {
            return;
        }
        let (spec, guessed) = self.known.topic(id);
        apply(state, Op::Topic(spec), None, self.now);
        self.losses.push(Loss { lost: Lost::Settings { topic: id, guessed }, frame: self.frame, body: None });
    }

    fn make_group(&mut self, state: &mut State, topic: TopicId, group: GroupId) {
        if state.topics.get(&topic).is_none_or(|topic| topic.groups.contains_key(&group)) {
            return;
        }
        let spec = self.known.group(topic, group);
        let lost = Lost::Position { topic, group, name: spec.name.to_string() };
        apply(state, Op::Group { spec, starts: Some(Vec::new()) }, None, self.now);
        self.losses.push(Loss { lost, frame: self.frame, body: None });
    }

    /// Makes what the catalog knows and the store does not: the groups begin with the oldest message.
    pub fn complete(&mut self, state: &mut State) {
        self.frame = u64::MAX;
        for topic in &self.known.topics {
            self.make_topic(state, topic.id);
        }
        for group in &self.known.groups {
            self.make_group(state, group.topic, group.group);
        }
    }
}

fn end_of(state: &State, lane: LaneId) -> u64 {
    state.lane(lane).map_or(0, |lane| lane.end)
}

fn apply(state: &mut State, op: Op, body: Option<Body>, now: Timestamp) {
    state.apply(op, &mut body.into_iter(), now, Applying::Replay);
}

/// Without having files searched for bytes to overwrite: there are none.
fn apply_quietly(state: &mut State, op: Op, body: Option<Body>, now: Timestamp) {
    let erasing = state.erasing.len();
    apply(state, op, body, now);
    state.erasing.truncate(erasing);
}

/// What stands in the place of a message that is lost.
pub(in crate::store::embedded) fn tombstone(lane: LaneId, at: Timestamp) -> Body {
    let head = Head {
        id: MessageId::new(at, lane.topic, lane.partition, 0),
        target: None,
        expires_at: None,
        key: None,
        meta_len: 0,
        body_len: 0,
        crc: 0,
    };
    Body { head, meta: Bytes::new(), payload: Bytes::new() }
}
