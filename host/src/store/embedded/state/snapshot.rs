//! The durable part of the state, as a checkpoint keeps it. Invariant: [`State::restore`] of a snapshot followed by the ops
//! of later frames gives the same durable state as having applied them all. Bodies of logs are not in it (segments have
//! them); bodies of scheduled messages are.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::message::{Failures, GroupId, Offset, Partition};
use crate::store::embedded::ops::{Body, Head, LaneId, Owner};
use crate::store::embedded::segment::Segment;
use crate::store::{GroupSpec, KvValue, TopicSpec};

use super::cursor::{Cursor, Exception};
use super::dedup::Record;
use super::group::{Group, LANES, Totals};
use super::lane::Lane;
use super::mark::Mark;
use super::ranges::Ranges;
use super::schedule::Scheduled;
use super::{State, Topic};

/// See the module.
#[derive(Debug, Serialize, Deserialize)]
pub struct Snapshot {
    epoch: u64,
    next_kv_version: u64,
    next_stamp: u64,
    last_at: Timestamp,
    next_scheduled: u64,
    next_note: u64,
    /// The last frame it contains.
    pub applied: u64,
    erasing: Vec<Owner>,
    kv: Vec<(Arc<str>, Arc<str>, KvValue)>,
    topics: Vec<TopicSnapshot>,
}

#[derive(Debug, Serialize, Deserialize)]
struct TopicSnapshot {
    spec: TopicSpec,
    revisions: Vec<u64>,
    lanes: Vec<LaneSnapshot>,
    groups: Vec<GroupSnapshot>,
    dedup: Vec<Arc<Vec<Record>>>,
    schedule: Vec<ScheduledSnapshot>,
    appended_total: u64,
    removed_total: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct LaneSnapshot {
    id: LaneId,
    start: u64,
    end: u64,
    bytes: u64,
    erased: Ranges,
    targets: Vec<(u64, u64, GroupId)>,
    segments: Vec<Segment>,
}

#[derive(Debug, Serialize, Deserialize)]
struct GroupSnapshot {
    spec: GroupSpec,
    totals: Totals,
    cursors: Vec<CursorSnapshot>,
    marks: Vec<(Arc<str>, Mark)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CursorSnapshot {
    partition: Partition,
    lane: u8,
    floor: u64,
    settled: Ranges,
    exceptions: Vec<(u64, u32, Timestamp, Failures)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ScheduledSnapshot {
    number: u64,
    partition: Partition,
    lane: u8,
    due: Timestamp,
    head: Head,
    meta: bytes_serde::Shared,
    payload: bytes_serde::Shared,
}

/// `Bytes` written as bytes, without copying them into the snapshot first.
mod bytes_serde {
    use bytes::Bytes;
    use serde::de::{Deserialize, Deserializer, Visitor};
    use serde::ser::{Serialize, Serializer};

    #[derive(Debug)]
    pub struct Shared(pub Bytes);

    impl Serialize for Shared {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(&self.0)
        }
    }

    impl<'de> Deserialize<'de> for Shared {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Shared, D::Error> {
            struct Slice;
            impl<'de> Visitor<'de> for Slice {
                type Value = Shared;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("bytes")
                }
                fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Shared, E> {
                    Ok(Shared(Bytes::copy_from_slice(bytes)))
                }
            }
            deserializer.deserialize_bytes(Slice)
        }
    }
}

impl Snapshot {
    /// The ends of lanes that segments have to reach before the snapshot may be kept.
    #[must_use]
    pub fn ends(&self) -> Vec<(LaneId, u64)> {
        self.topics.iter().flat_map(|topic| topic.lanes.iter().map(|lane| (lane.id, lane.end))).collect()
    }

    /// Takes over where the segments are now. They hold nothing past the snapshot: only its own writer adds to them.
    pub fn take_segments(&mut self, state: &State) {
        for lane in self.topics.iter_mut().flat_map(|topic| &mut topic.lanes) {
            if let Some(now) = state.lane(lane.id) {
                // Segments that retention removed since are named in the journal: until then they are not missed.
                lane.segments.retain(|old| now.segments.front().is_none_or(|first| old.span.first < first.span.first));
                lane.segments.extend(now.segments.iter().cloned());
            }
        }
    }
}

impl State {
    /// The durable part of the state now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            epoch: self.epoch,
            next_kv_version: self.next_kv_version,
            next_stamp: self.next_stamp,
            last_at: self.last_at,
            next_scheduled: self.next_scheduled,
            next_note: self.next_note,
            applied: self.applied,
            erasing: self.erasing.clone(),
            kv: self.kv.iter().map(|((space, key), value)| (space.clone(), key.clone(), value.clone())).collect(),
            topics: self.topics.values().map(topic_snapshot).collect(),
        }
    }

    /// Puts a snapshot in place of nothing.
    pub fn restore(&mut self, snapshot: Snapshot) {
        self.epoch = snapshot.epoch;
        self.next_kv_version = snapshot.next_kv_version;
        self.next_stamp = snapshot.next_stamp;
        self.last_at = snapshot.last_at;
        self.next_scheduled = snapshot.next_scheduled;
        self.next_note = snapshot.next_note;
        self.applied = snapshot.applied;
        self.erasing = snapshot.erasing;
        for (space, key, value) in snapshot.kv {
            self.insert_value((space, key), value);
        }
        for topic in snapshot.topics {
            let topic = restore_topic(topic);
            self.scheduled += topic.schedule.len();
            self.scheduled_bytes += topic.schedule.bytes();
            self.topics.insert(topic.spec.id, topic);
        }
    }
}

fn topic_snapshot(topic: &Topic) -> TopicSnapshot {
    let lanes = topic.lanes().map(|(id, lane)| LaneSnapshot {
        id,
        start: lane.start,
        end: lane.end,
        bytes: lane.bytes,
        erased: lane.erased.clone(),
        targets: lane.targets.iter().map(|(start, (end, group))| (*start, *end, *group)).collect(),
        segments: lane.segments.iter().cloned().collect(),
    });
    let schedule = topic.schedule.iter().map(|(number, scheduled)| ScheduledSnapshot {
        number,
        partition: scheduled.partition,
        lane: scheduled.lane,
        due: scheduled.due,
        head: scheduled.body.head,
        meta: bytes_serde::Shared(scheduled.body.meta.clone()),
        payload: bytes_serde::Shared(scheduled.body.payload.clone()),
    });
    TopicSnapshot {
        spec: topic.spec.clone(),
        revisions: topic.partitions.iter().map(|part| part.revision).collect(),
        lanes: lanes.collect(),
        groups: topic.groups.values().map(group_snapshot).collect(),
        dedup: topic.dedup.snapshot(),
        schedule: schedule.collect(),
        appended_total: topic.appended_total,
        removed_total: topic.removed_total,
    }
}

fn group_snapshot(group: &Group) -> GroupSnapshot {
    let mut cursors = Vec::new();
    for (number, part) in group.partitions.iter().enumerate() {
        for (lane, cursor) in part.cursors.iter().enumerate() {
            let Some(cursor) = cursor else { continue };
            let exceptions = cursor.exceptions.iter().filter(|(_, known)| !known.is_blank());
            cursors.push(CursorSnapshot {
                partition: number as Partition,
                lane: lane as u8,
                floor: cursor.floor,
                settled: cursor.settled.clone(),
                exceptions: exceptions.map(|(at, known)| exception_snapshot(*at, known)).collect(),
            });
        }
    }
    let marks = group.marks.iter().map(|(name, mark)| (Arc::clone(name), mark.clone())).collect();
    GroupSnapshot { spec: group.spec.clone(), totals: group.totals, cursors, marks }
}

fn exception_snapshot(at: u64, known: &Exception) -> (u64, u32, Timestamp, Failures) {
    (at, known.attempts, known.due(), known.failures.clone())
}

fn restore_topic(snapshot: TopicSnapshot) -> Topic {
    let mut topic = Topic::new(snapshot.spec);
    for (part, revision) in topic.partitions.iter_mut().zip(snapshot.revisions) {
        part.revision = revision;
    }
    for lane in snapshot.lanes {
        let place = topic.partitions.get_mut(usize::from(lane.id.partition));
        if let Some(place) = place.and_then(|part| part.lanes.get_mut(usize::from(lane.id.lane))) {
            *place = Some(Box::new(restore_lane(lane)));
        }
    }
    for record in snapshot.dedup.iter().flat_map(|chunk| chunk.iter()) {
        topic.dedup.insert(record.0, record.1.clone());
    }
    for scheduled in snapshot.schedule {
        let ScheduledSnapshot { number, partition, lane, due, head, meta, payload } = scheduled;
        let body = Body { head, meta: meta.0, payload: payload.0 };
        topic.schedule.insert(number, Scheduled { partition, lane, due, body });
    }
    for group in snapshot.groups {
        topic.groups.insert(group.spec.group, restore_group(group, topic.spec.partitions));
    }
    topic.appended_total = snapshot.appended_total;
    topic.removed_total = snapshot.removed_total;
    topic
}

fn restore_lane(snapshot: LaneSnapshot) -> Lane {
    let mut lane = Lane::stored(snapshot.start, snapshot.end, snapshot.segments.into());
    lane.bytes = snapshot.bytes;
    lane.erased = snapshot.erased;
    lane.targets = snapshot.targets.into_iter().map(|(start, end, group)| (start, (end, group))).collect();
    lane
}

fn restore_group(snapshot: GroupSnapshot, partitions: u16) -> Group {
    let mut group = Group::new(snapshot.spec, partitions);
    group.totals = snapshot.totals;
    group.marks = snapshot.marks.into_iter().collect();
    for cursor in snapshot.cursors {
        let Some(part) = group.partitions.get_mut(usize::from(cursor.partition)) else { continue };
        if usize::from(cursor.lane) >= LANES {
            continue;
        }
        *part.cursor(cursor.lane) = Cursor::at(cursor.floor, cursor.settled);
        for (sequence, attempts, at, failures) in cursor.exceptions {
            let place = (cursor.partition, Offset::new(cursor.lane, sequence));
            group.wait(place, attempts, at, None);
            if let Some(exception) = group.exception_mut(place.0, place.1) {
                exception.failures = failures;
            }
        }
    }
    group
}

impl Snapshot {
    /// The segments that it names.
    pub fn segments(&self) -> impl Iterator<Item = (LaneId, &Segment)> {
        let lanes = self.topics.iter().flat_map(|topic| &topic.lanes);
        lanes.flat_map(|lane| lane.segments.iter().map(|segment| (lane.id, segment)))
    }
}
