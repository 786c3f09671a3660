//! What one store gives and another takes when all of it moves: [`Movable`] and its words. Invariant: what is taken stands at the
//! offsets, in the order, and as of the times that it had; taking the same again changes nothing, so that a move which was broken
//! off goes on. Nobody else uses either store meanwhile. Leases do not move: what was leased waits again, its attempt counted.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

use super::embedded::ops::Body;
use super::embedded::state::dedup::KeyHash;
use super::{DedupOutcome, GroupSpec, MessageStore, StoreError, TopicSpec};
use crate::clock::Timestamp;
use crate::message::{Failures, Partition, TopicId};

/// A topic without what is in it.
#[derive(Debug, Clone)]
pub struct TopicMove {
    /// Its settings.
    pub spec: TopicSpec,
    /// The last pipeline revision of each partition.
    pub revisions: Vec<u64>,
    /// Its lanes that ever had a message.
    pub lanes: Vec<LaneMove>,
    /// Messages ever appended.
    pub appended_total: u64,
    /// Messages removed by retention.
    pub removed_total: u64,
}

/// A log: the messages `first..end` are in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneMove {
    /// The partition.
    pub partition: Partition,
    /// The priority.
    pub lane: u8,
    /// The first message kept.
    pub first: u64,
    /// Where the next message goes.
    pub end: u64,
}

/// A message of a log.
#[derive(Debug, Clone)]
pub struct LogMove {
    /// Its place in the lane.
    pub sequence: u64,
    /// Its place in the order of all appends.
    pub stamp: u64,
    /// When it entered the log.
    pub at: Timestamp,
    /// What it is; none where it was erased.
    pub(in crate::store) body: Option<Body>,
}

impl LogMove {
    /// What it takes in a page.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.body.as_ref().map_or(0, |body| body.head.cost())
    }
}

/// A message that waits until it is due.
#[derive(Debug, Clone)]
pub struct ScheduledMove {
    /// In the order of arrival.
    pub number: u64,
    /// Where it will go.
    pub partition: Partition,
    /// Its lane there.
    pub lane: u8,
    /// When.
    pub due: Timestamp,
    /// What it is.
    pub(in crate::store) body: Body,
}

impl ScheduledMove {
    /// What it takes in a page.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.body.head.cost()
    }
}

/// What is remembered under an idempotency key.
#[derive(Debug, Clone)]
pub struct KeyMove {
    /// The hash of the key.
    pub key: KeyHash,
    /// The outcome.
    pub outcome: DedupOutcome,
}

/// Where a page of keys ended.
#[derive(Debug, Clone, Default)]
pub struct KeysAfter {
    /// So many were given.
    pub count: u64,
    /// The last of them, and when it was recorded.
    pub last: Option<(Timestamp, KeyHash)>,
}

/// A plugin's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueMove {
    /// Separates plugins and topics.
    pub namespace: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    /// Rises with each write.
    pub version: u64,
    /// The bytes.
    pub value: Vec<u8>,
}

/// A group with its position.
#[derive(Debug, Clone)]
pub struct GroupMove {
    /// Its settings.
    pub spec: GroupSpec,
    /// Acked, dead-lettered, expired, delivered.
    pub totals: [u64; 4],
    /// One for each lane of its topic.
    pub cursors: Vec<CursorMove>,
    /// Snapshots, by name.
    pub snapshots: Vec<SnapshotMove>,
}

/// A group's place in a lane.
#[derive(Debug, Clone, PartialEq)]
pub struct CursorMove {
    /// Where what is settled lies.
    pub standing: LaneStanding,
    /// What has been tried.
    pub tried: Vec<Tried>,
}

/// A message that has been tried: sequence, attempts, when it may be granted again, what went wrong.
pub type Tried = (u64, u32, Timestamp, Failures);

/// What is settled of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneStanding {
    /// The partition.
    pub partition: Partition,
    /// The priority.
    pub lane: u8,
    /// All below is settled.
    pub floor: u64,
    /// What is settled above it, or not for the group: ranges that do not touch, in order.
    pub settled: Vec<Range<u64>>,
}

impl LaneStanding {
    /// Brings it into the one form that it has: within `first..end`, ranges joined, the floor over what is settled next to it.
    #[must_use]
    pub fn within(mut self, first: u64, end: u64) -> LaneStanding {
        self.floor = self.floor.clamp(first, end);
        let mut ranges = std::mem::take(&mut self.settled);
        ranges.sort_unstable_by_key(|range| range.start);
        for range in ranges {
            let (start, end) = (range.start.max(self.floor), range.end.min(end));
            match self.settled.last_mut() {
                _ if start >= end => {}
                None if start == self.floor => self.floor = end,
                Some(last) if last.end >= start => last.end = last.end.max(end),
                _ => self.settled.push(start..end),
            }
        }
        self
    }

    /// Whether a message is settled.
    #[must_use]
    pub fn is_settled(&self, sequence: u64) -> bool {
        let at = self.settled.partition_point(|range| range.end <= sequence);
        sequence < self.floor || self.settled.get(at).is_some_and(|range| range.start <= sequence)
    }
}

/// A group's position that was kept under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotMove {
    /// The name.
    pub name: Arc<str>,
    /// When it was made.
    pub at: Timestamp,
    /// Where each lane stood.
    pub lanes: Vec<LaneStanding>,
}

/// Names a lane.
pub type LanePlace = (TopicId, Partition, u8);

/// A store that can be moved. `move_…` read, `take_…` write; a topic is taken in the order of the methods.
#[async_trait]
pub trait Movable: MessageStore {
    /// The last opening: receipts of it and of those before are refused where the store has gone.
    async fn move_epoch(&self) -> Result<u64, StoreError>;
    /// The topics, by number.
    async fn move_topics(&self) -> Result<Vec<TopicMove>, StoreError>;
    /// Messages of a log from `from` on, some of them; none at its end.
    async fn move_log(&self, lane: LanePlace, from: u64) -> Result<Vec<LogMove>, StoreError>;
    /// Scheduled messages in the order of arrival from `from` on, some of them.
    async fn move_scheduled(&self, topic: TopicId, from: u64) -> Result<Vec<ScheduledMove>, StoreError>;
    /// Idempotency keys, oldest first, some of them.
    async fn move_keys(&self, topic: TopicId, after: &KeysAfter) -> Result<Vec<KeyMove>, StoreError>;
    /// The groups of a topic, by number.
    async fn move_groups(&self, topic: &TopicMove) -> Result<Vec<GroupMove>, StoreError>;
    /// Plugins' values in the order of namespaces and keys, some of them.
    async fn move_values(&self, after: Option<(Arc<str>, Arc<str>)>) -> Result<Vec<ValueMove>, StoreError>;

    /// Has the openings to come be later than all of the other store's.
    async fn take_epoch(&self, epoch: u64) -> Result<(), StoreError>;
    /// Makes the topic and the beginnings of its lanes.
    async fn take_topic(&self, topic: &TopicMove) -> Result<(), StoreError>;
    /// Adds to the end of a log: what was taken before is left out.
    async fn take_log(&self, lane: LanePlace, messages: Vec<LogMove>) -> Result<(), StoreError>;
    /// Adds to the schedule what is not there.
    async fn take_scheduled(&self, topic: TopicId, scheduled: Vec<ScheduledMove>) -> Result<(), StoreError>;
    /// Adds the keys that are not there.
    async fn take_keys(&self, topic: TopicId, keys: Vec<KeyMove>) -> Result<(), StoreError>;
    /// Puts the groups where they were, and the counts of the topic.
    async fn take_groups(&self, topic: &TopicMove, groups: Vec<GroupMove>) -> Result<(), StoreError>;
    /// Puts the values in.
    async fn take_values(&self, values: Vec<ValueMove>) -> Result<(), StoreError>;
}

/// What a topic holds, in figures that are the same in whichever store it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicDigest {
    /// Messages in the log, erased ones included.
    pub messages: u64,
    /// Messages that wait until they are due.
    pub scheduled: u64,
    /// Idempotency keys.
    pub keys: u64,
    /// Groups.
    pub groups: u64,
    /// SHA-256 over all of them, their places, orders and times, and what is settled.
    pub sha256: [u8; 32],
}

/// Reads all of a topic. `read` is told of each page how many bytes it had.
///
/// # Errors
/// When the store cannot be read.
pub async fn digest(
    store: &dyn Movable,
    topic: &TopicMove,
    read: &(dyn Fn(u64) + Sync),
) -> Result<TopicDigest, StoreError> {
    let id = topic.spec.id;
    let (mut found, mut hash) = (TopicDigest::default(), Sha256::new());
    hash.update(encoded(&(&topic.spec, &topic.revisions)));
    for LaneMove { partition, lane, first, end } in topic.lanes.iter().copied() {
        hash.update(encoded(&(partition, lane, first, end)));
        let (mut next, mut order) = (first, None);
        loop {
            let page = store.move_log((id, partition, lane), next).await?;
            let Some(last) = page.last() else { break };
            next = last.sequence + 1;
            for message in &page {
                if message.body.is_some() && order.is_some_and(|before| message.stamp <= before) {
                    return Err(StoreError::Invalid(format!("topic {}: the order of appends is not kept", id.0)));
                }
                order = message.body.as_ref().map(|_| message.stamp).or(order);
                found.messages += 1;
                hash.update(encoded(&message.sequence));
                add_body(&mut hash, message.body.as_ref().map(|body| (message.at, message.stamp, body)));
            }
            read(page.iter().map(LogMove::bytes).sum());
        }
        if next != end {
            return Err(StoreError::Invalid(format!(
                "topic {}: partition {partition} ends at {next}, not {end}",
                id.0
            )));
        }
    }
    let mut from = 0;
    loop {
        let page = store.move_scheduled(id, from).await?;
        let Some(last) = page.last() else { break };
        from = last.number + 1;
        for waits in &page {
            found.scheduled += 1;
            hash.update(encoded(&(waits.partition, waits.lane)));
            add_body(&mut hash, Some((waits.due, 0, &waits.body)));
        }
    }
    // In no order: those of one millisecond have none.
    let (mut after, mut keys) = (KeysAfter::default(), [0; 32]);
    loop {
        let page = store.move_keys(id, &after).await?;
        let Some(last) = page.last() else { break };
        after = KeysAfter { count: after.count + page.len() as u64, last: Some((last.outcome.at, last.key)) };
        for KeyMove { key, outcome } in &page {
            let one: [u8; 32] = Sha256::digest(encoded(&(key, outcome))).into();
            keys.iter_mut().zip(one).for_each(|(sum, byte)| *sum ^= byte);
        }
    }
    found.keys = after.count;
    hash.update(keys);
    for group in store.move_groups(topic).await? {
        found.groups += 1;
        let GroupMove { spec, totals, cursors, snapshots } = group;
        // Where it was to begin has been of use.
        hash.update(encoded(&(spec.group, &spec.name, spec.attempts_max, totals)));
        for CursorMove { standing, tried } in &cursors {
            add_standing(&mut hash, standing);
            hash.update(encoded(tried));
        }
        for snapshot in &snapshots {
            hash.update(encoded(&(&snapshot.name, snapshot.at)));
            snapshot.lanes.iter().for_each(|lane| add_standing(&mut hash, lane));
        }
    }
    hash.update(encoded(&(topic.appended_total, topic.removed_total)));
    found.sha256 = hash.finalize().into();
    Ok(found)
}

/// How many values plugins have, and SHA-256 over them.
///
/// # Errors
/// When the store cannot be read.
pub async fn digest_values(store: &dyn Movable) -> Result<(u64, [u8; 32]), StoreError> {
    let (mut after, mut count, mut hash) = (None, 0, Sha256::new());
    loop {
        let page = store.move_values(after).await?;
        let Some(last) = page.last() else { break };
        after = Some((Arc::clone(&last.namespace), Arc::clone(&last.key)));
        for ValueMove { namespace, key, version, value } in &page {
            count += 1;
            hash.update(encoded(&(namespace, key, version, value)));
        }
    }
    Ok((count, hash.finalize().into()))
}

fn add_body(hash: &mut Sha256, body: Option<(Timestamp, u64, &Body)>) {
    match body {
        None => hash.update([0]),
        Some((at, stamp, body)) => {
            hash.update([1]);
            hash.update(encoded(&(at, stamp, body.head)));
            hash.update(&body.meta);
            hash.update(&body.payload);
        }
    }
}

fn add_standing(hash: &mut Sha256, standing: &LaneStanding) {
    let LaneStanding { partition, lane, floor, settled } = standing;
    hash.update(encoded(&(partition, lane, floor, settled)));
}

fn encoded(value: &impl serde::Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("none of these has a type that postcard refuses")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_has_one_form() {
        let standing = |floor, settled: &[(u64, u64)]| LaneStanding {
            partition: 0,
            lane: 0,
            floor,
            settled: settled.iter().map(|(start, end)| *start..*end).collect(),
        };
        assert_eq!(standing(0, &[(0, 3), (8, 9), (3, 5)]).within(2, 20), standing(5, &[(8, 9)]));
        assert_eq!(standing(4, &[(6, 9), (7, 8), (9, 11), (30, 40)]).within(0, 20), standing(4, &[(6, 11)]));
        assert_eq!(standing(30, &[(31, 32)]).within(0, 20), standing(20, &[]));
        let known = standing(4, &[(6, 8), (10, 12)]);
        let settled: Vec<u64> = (0..14).filter(|sequence| known.is_settled(*sequence)).collect();
        assert_eq!(settled, [0, 1, 2, 3, 6, 7, 10, 11]);
    }
}
