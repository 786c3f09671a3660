//! The embedded store as one end of a move. Invariant: what is taken goes through the journal as ops, so that a crash leaves a
//! store that can be taken further. Reads as everyone does, page by page.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::EmbeddedStore;
use super::core::Core;
use super::delivery::blocking;
use super::inspect::salvage::tombstone;
use super::ops::{Body, LaneId, LaneMark, Op};
use super::state::Topic;
use super::state::control::Control;
use super::state::group::{Group, Totals};
use super::state::lane::Lane;
use super::state::mark::Mark;
use super::state::ranges::Ranges;
use super::upkeep;
use crate::clock::Timestamp;
use crate::message::TopicId;
use crate::store::moving::{
    CursorMove, GroupMove, KeyMove, KeysAfter, LaneMove, LanePlace, LaneStanding, LogMove, Movable, ScheduledMove,
    SnapshotMove, TopicMove, ValueMove,
};
use crate::store::{StoreError, TopicSpec};

/// Bytes of a page of messages or values: two of them are in memory at once.
const PAGE_BYTES: u64 = 4 << 20;
/// Things in a page.
const PAGE: usize = 4096;
/// Keys in a page: each is found from the first on.
const KEYS: usize = 65_536;
/// How long it waits for segments to be written while memory is full of what none has.
const FLUSH_PATIENCE: Duration = Duration::from_millis(5);
/// The name of a snapshot that a group is put to; no other has a character like this.
const POSITION: &str = "\u{1}moved";

#[async_trait]
impl Movable for EmbeddedStore {
    async fn move_epoch(&self) -> Result<u64, StoreError> {
        Ok(self.core.state.lock().epoch)
    }

    async fn move_topics(&self) -> Result<Vec<TopicMove>, StoreError> {
        self.core.check_open()?;
        let state = self.core.state.lock();
        Ok(state.topics.values().map(topic_move).collect())
    }

    async fn move_log(&self, lane: LanePlace, from: u64) -> Result<Vec<LogMove>, StoreError> {
        let core = Arc::clone(&self.core);
        blocking(move || core.log_page(lane_id(lane), from)).await
    }

    async fn move_scheduled(&self, topic: TopicId, from: u64) -> Result<Vec<ScheduledMove>, StoreError> {
        let state = self.core.state.lock();
        let mut bytes = 0;
        let page = state.topic(topic)?.schedule.from(from).take(PAGE).take_while(|(_, waits)| {
            let fits = bytes < PAGE_BYTES;
            bytes += waits.body.head.cost();
            fits
        });
        let moved = page.map(|(number, waits)| ScheduledMove {
            number,
            partition: waits.partition,
            lane: waits.lane,
            due: waits.due,
            body: waits.body.clone(),
        });
        Ok(moved.collect())
    }

    async fn move_keys(&self, topic: TopicId, after: &KeysAfter) -> Result<Vec<KeyMove>, StoreError> {
        let state = self.core.state.lock();
        let given = usize::try_from(after.count).unwrap_or(usize::MAX);
        let keys = state.topic(topic)?.dedup.held(given).take(KEYS);
        Ok(keys.map(|(key, outcome)| KeyMove { key: *key, outcome: outcome.clone() }).collect())
    }

    async fn move_groups(&self, topic: &TopicMove) -> Result<Vec<GroupMove>, StoreError> {
        let state = self.core.state.lock();
        let topic = state.topic(topic.spec.id)?;
        Ok(topic.groups.values().map(|group| group_move(topic, group)).collect())
    }

    async fn move_values(&self, after: Option<(Arc<str>, Arc<str>)>) -> Result<Vec<ValueMove>, StoreError> {
        let state = self.core.state.lock();
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let (mut bytes, mut page) = (0, Vec::new());
        for ((namespace, key), value) in state.kv.range((from, std::ops::Bound::Unbounded)) {
            if bytes >= PAGE_BYTES || page.len() == PAGE {
                break;
            }
            bytes += value.value.len() as u64;
            page.push(ValueMove {
                namespace: Arc::clone(namespace),
                key: Arc::clone(key),
                version: value.version,
                value: value.value.clone(),
            });
        }
        Ok(page)
    }

    async fn take_epoch(&self, epoch: u64) -> Result<(), StoreError> {
        self.take(vec![Op::Epoch(epoch + 1)], Vec::new()).await
    }

    async fn take_topic(&self, topic: &TopicMove) -> Result<(), StoreError> {
        let id = topic.spec.id;
        let mut ops = Vec::new();
        {
            let state = self.core.state.lock();
            let known = state.topics.get(&id);
            if known.is_some_and(|known| known.spec.partitions != topic.spec.partitions) {
                return Err(StoreError::Invalid("a topic's partition count cannot change".to_owned()));
            }
            if known.map(|known| &known.spec) != Some(&topic.spec) {
                ops.push(Op::Topic(topic.spec.clone()));
            }
            for LaneMove { partition, lane, first, .. } in topic.lanes.iter().copied() {
                if known.and_then(|known| known.lane(partition, lane)).is_none_or(|lane| lane.end == 0) {
                    ops.push(Op::Begins { lane: LaneId { topic: id, partition, lane }, sequence: first });
                }
            }
        }
        let revisions = (0..).zip(&topic.revisions);
        ops.extend(revisions.map(|(partition, revision)| Op::Revision { topic: id, partition, revision: *revision }));
        self.take(ops, Vec::new()).await
    }

    async fn take_log(&self, place: LanePlace, messages: Vec<LogMove>) -> Result<(), StoreError> {
        let lane = lane_id(place);
        let end = self.core.state.lock().lane(lane).map_or(0, |lane| lane.end);
        let new = messages.iter().filter(|message| message.sequence >= end);
        if new.clone().next().is_some_and(|first| first.sequence != end) {
            return Err(StoreError::Invalid("messages are missing before these".to_owned()));
        }
        let (mut ops, mut bodies, mut erased) = (Vec::new(), Vec::new(), Vec::new());
        // An erased one has no place in the order of appends, nor a time: it stands where the one before it does, or behind it.
        let core = Arc::clone(&self.core);
        let last = blocking(move || if end == 0 { Ok(None) } else { core.entry(lane, end - 1) }).await?;
        let next = messages.iter().find(|message| message.sequence >= end && message.body.is_some());
        let mut before = last.map(|last| (last.stamp, last.at)).or(next.map(|next| (next.stamp, next.at)));
        for message in new {
            let body = message.body.clone().unwrap_or_else(|| tombstone(lane, message.at));
            let (stamp, at) = match &message.body {
                Some(_) => (message.stamp, message.at),
                None => before.unwrap_or((message.stamp, message.at)),
            };
            match ops.last_mut() {
                Some(Op::Append { stamp: first, at: known, heads, .. })
                    if *known == at && *first + heads.len() as u64 == stamp =>
                {
                    heads.push(body.head);
                }
                _ => ops.push(Op::Append { lane, first: message.sequence, stamp, at, heads: vec![body.head] }),
            }
            before = Some((stamp, at));
            if message.body.is_none() {
                erased.push(Op::Erased { lane, sequence: message.sequence });
            }
            bodies.push(body);
        }
        ops.extend(erased);
        self.take(ops, bodies).await?;
        self.have_room().await
    }

    async fn take_scheduled(&self, topic: TopicId, scheduled: Vec<ScheduledMove>) -> Result<(), StoreError> {
        let (mut ops, mut bodies) = (Vec::new(), Vec::new());
        {
            let state = self.core.state.lock();
            let known = &state.topic(topic)?.schedule;
            let limits = &state.limits;
            if state.scheduled + scheduled.len() > limits.scheduled_max {
                let most = limits.scheduled_max;
                return Err(StoreError::Invalid(format!("the embedded store holds {most} scheduled messages at most")));
            }
            let new = scheduled.into_iter().filter(|waits| known.find(waits.body.head.id).is_none());
            for (number, waits) in (state.next_scheduled..).zip(new) {
                let ScheduledMove { partition, lane, due, body, .. } = waits;
                ops.push(Op::Scheduled { topic, partition, lane, due, number, head: body.head });
                bodies.push(body);
            }
        }
        self.take(ops, bodies).await
    }

    async fn take_keys(&self, topic: TopicId, keys: Vec<KeyMove>) -> Result<(), StoreError> {
        let ops = {
            let state = self.core.state.lock();
            let known = &state.topic(topic)?.dedup;
            let new = keys.into_iter().filter(|moved| !known.has(&moved.key));
            new.map(|KeyMove { key, outcome }| Op::Dedup { topic, key, outcome }).collect()
        };
        self.take(ops, Vec::new()).await
    }

    async fn take_groups(&self, topic: &TopicMove, groups: Vec<GroupMove>) -> Result<(), StoreError> {
        let id = topic.spec.id;
        let mut counted = Vec::new();
        for GroupMove { spec, totals, cursors, snapshots } in groups {
            let group = spec.group;
            let [acked, dead_lettered, expired, delivered] = totals;
            counted.push((group, Totals { acked, dead_lettered, expired, delivered }));
            let mut ops = vec![Op::Group { spec, starts: None }];
            let name: Arc<str> = POSITION.into();
            let lanes = cursors.iter().map(|cursor| lane_mark(&cursor.standing)).collect();
            ops.push(Op::Mark { topic: id, group, name: Arc::clone(&name), at: Timestamp(0), lanes });
            ops.push(Op::Restore { topic: id, group, name: Arc::clone(&name) });
            ops.push(Op::Unmark { topic: id, group, name });
            for SnapshotMove { name, at, lanes } in snapshots {
                ops.push(Op::Mark { topic: id, group, name, at, lanes: lanes.iter().map(lane_mark).collect() });
            }
            self.take(ops, Vec::new()).await?;
            for CursorMove { standing, tried } in cursors {
                for tried in tried.chunks(PAGE) {
                    let mut ops = Vec::new();
                    for (sequence, attempts, at, failures) in tried {
                        let offset = crate::message::Offset::new(standing.lane, *sequence);
                        let (topic, partition, attempts, at) = (id, standing.partition, *attempts, *at);
                        let retry = |failure| Op::Retry { topic, group, partition, offset, attempts, at, failure };
                        if failures.is_empty() {
                            ops.push(retry(None));
                        }
                        ops.extend(failures.as_slice().iter().cloned().map(Some).map(retry));
                    }
                    self.take(ops, Vec::new()).await?;
                }
            }
        }
        let (appended, removed) = (topic.appended_total, topic.removed_total);
        self.take(vec![Op::Counted { topic: id, appended, removed, groups: counted }], Vec::new()).await
    }

    async fn take_values(&self, values: Vec<ValueMove>) -> Result<(), StoreError> {
        let (used, most) = {
            let state = self.core.state.lock();
            (state.kv_bytes, state.limits.kv_bytes_max)
        };
        if used > most {
            return Err(StoreError::Invalid(format!(
                "the embedded store holds {most} bytes of plugins' values at most"
            )));
        }
        let ops = values.into_iter().map(|ValueMove { namespace, key, version, value }| Op::Kv {
            namespace,
            key,
            version,
            value: Some(value),
        });
        self.take(ops.collect(), Vec::new()).await
    }
}

impl EmbeddedStore {
    async fn take(&self, ops: Vec<Op>, bodies: Vec<Body>) -> Result<(), StoreError> {
        if ops.is_empty() {
            return Ok(());
        }
        upkeep::control(&self.core, Control::Take(ops, bodies)).await.map(drop)
    }

    /// Waits until memory has room for more messages.
    async fn have_room(&self) -> Result<(), StoreError> {
        loop {
            let fault = self.core.maintenance_fault.lock().clone();
            if let Some(fault) = fault {
                return Err(StoreError::Unavailable(fault));
            }
            {
                let state = self.core.state.lock();
                if state.unflushed_bytes <= state.limits.unflushed_bytes_max {
                    return Ok(());
                }
            }
            self.core.jobs.nudge();
            self.work_behind();
            tokio::time::sleep(FLUSH_PATIENCE).await;
        }
    }
}

impl Core {
    fn log_page(&self, id: LaneId, from: u64) -> Result<Vec<LogMove>, StoreError> {
        let (end, erased) = {
            let state = self.state.lock();
            let Some(lane) = state.lane(id) else { return Ok(Vec::new()) };
            (lane.end, lane.erased.clone())
        };
        let (mut page, mut bytes) = (Vec::new(), 0);
        for sequence in from..end {
            if bytes >= PAGE_BYTES || page.len() == PAGE {
                break;
            }
            let moved = if erased.contains(sequence) {
                LogMove { sequence, stamp: 0, at: Timestamp(0), body: None }
            } else {
                let entry = self.entry(id, sequence)?.ok_or_else(|| {
                    StoreError::Unavailable(format!("message {sequence} of a partition is not there any more"))
                })?;
                LogMove { sequence, stamp: entry.stamp, at: entry.at, body: Some(entry.body) }
            };
            bytes += moved.bytes();
            page.push(moved);
        }
        Ok(page)
    }
}

fn lane_id((topic, partition, lane): LanePlace) -> LaneId {
    LaneId { topic, partition, lane }
}

fn topic_move(topic: &Topic) -> TopicMove {
    let lanes = used_lanes(topic).map(|(id, lane)| LaneMove {
        partition: id.partition,
        lane: id.lane,
        first: lane.start,
        end: lane.end,
    });
    TopicMove {
        spec: TopicSpec::clone(&topic.spec),
        revisions: topic.partitions.iter().map(|part| part.revision).collect(),
        lanes: lanes.collect(),
        appended_total: topic.appended_total,
        removed_total: topic.removed_total,
    }
}

fn used_lanes(topic: &Topic) -> impl Iterator<Item = (LaneId, &Lane)> {
    topic.lanes().filter(|(_, lane)| lane.end > 0)
}

fn group_move(topic: &Topic, group: &Group) -> GroupMove {
    let cursors = used_lanes(topic).map(|(id, lane)| {
        let part = group.partitions.get(usize::from(id.partition));
        let cursor = part.and_then(|part| part.cursors[usize::from(id.lane)].as_deref());
        let floor = cursor.map_or(0, |cursor| cursor.floor);
        let mut settled = lane.not_for(group.spec.group, floor);
        for range in cursor.into_iter().flat_map(|cursor| cursor.settled.within(floor..lane.end)) {
            settled.insert(range);
        }
        let settled = settled.within(floor..lane.end).collect();
        let standing = LaneStanding { partition: id.partition, lane: id.lane, floor, settled };
        let standing = standing.within(lane.start, lane.end);
        let tried = cursor.into_iter().flat_map(|cursor| &cursor.exceptions).filter(|(sequence, known)| {
            !known.is_blank() && (lane.start..lane.end).contains(*sequence) && !standing.is_settled(**sequence)
        });
        let tried = tried.map(|(sequence, known)| (*sequence, known.attempts, known.due(), known.failures.clone()));
        let tried = tried.collect();
        CursorMove { standing, tried }
    });
    let cursors = cursors.collect();
    let Totals { acked, dead_lettered, expired, delivered } = group.totals;
    GroupMove {
        spec: group.spec.clone(),
        totals: [acked, dead_lettered, expired, delivered],
        cursors,
        snapshots: group.marks.iter().map(|(name, mark)| snapshot_move(topic, name, mark)).collect(),
    }
}

fn snapshot_move(topic: &Topic, name: &Arc<str>, mark: &Mark) -> SnapshotMove {
    let lanes = used_lanes(topic).map(|(id, lane)| {
        let known = mark.lanes.iter().find(|known| (known.partition, known.lane) == (id.partition, id.lane));
        let settled = known.map(|known| known.settled.within(0..u64::MAX).collect()).unwrap_or_default();
        let floor = known.map_or(0, |known| known.floor);
        LaneStanding { partition: id.partition, lane: id.lane, floor, settled }.within(lane.start, lane.end)
    });
    SnapshotMove { name: Arc::clone(name), at: mark.at, lanes: lanes.collect() }
}

fn lane_mark(standing: &LaneStanding) -> LaneMark {
    let mut settled = Ranges::default();
    for range in &standing.settled {
        settled.insert(range.clone());
    }
    LaneMark { partition: standing.partition, lane: standing.lane, floor: standing.floor, settled }
}
