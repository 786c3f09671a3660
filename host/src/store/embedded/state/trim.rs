//! Retention: what leaves a log, and how much may. Invariant: what is removed by bytes was settled by every group; what is
//! removed by time is counted for each group that had not settled it. Never removes a file: it says which may go.

use crate::clock::Timestamp;
use crate::store::StoreError;
use crate::store::embedded::ops::{LaneId, Op};
use crate::store::embedded::segment::SegmentFiles;

use super::{State, Topic};

impl State {
    /// Takes messages below `start` out of a lane.
    pub(super) fn apply_trim(&mut self, id: LaneId, start: u64, bytes: u64, now: Timestamp) {
        let Some(topic) = self.topics.get_mut(&id.topic) else { return };
        let Some(lane) = topic.lane_mut(id.partition, id.lane) else { return };
        let trimmed = lane.trim(start, bytes);
        let start = lane.start;
        let first_dead = self.dead_segments.len();
        topic.removed_total += trimmed.messages;
        while let Some(lane) = topic.lane_mut(id.partition, id.lane)
            && let Some(segment) = lane.segments.front()
            && segment.span.end <= start
        {
            self.dead_segments.push((id, segment.span.first));
            lane.segments.pop_front();
        }
        // Damage that went with its segment stops nobody any more.
        if let Some(part) = topic.partitions.get_mut(usize::from(id.partition))
            && let Some(StoreError::Damaged { file, .. }) = &part.damage
            && self.dead_segments[first_dead..].iter().any(|(id, first)| *file == SegmentFiles::relative(*id, *first))
        {
            part.damage = None;
        }
        for group in topic.groups.values_mut() {
            let expired = group.raise(id.partition, id.lane, start, now);
            group.totals.expired += expired;
        }
        self.tail_bytes -= trimmed.memory_bytes;
        self.need_no_flush(id, trimmed.unflushed_bytes);
    }
}

impl Topic {
    /// The first message of a lane that some group has not settled.
    #[must_use]
    pub fn settled_below(&self, id: LaneId) -> u64 {
        let end = self.lane(id.partition, id.lane).map_or(0, |lane| lane.end);
        self.groups
            .values()
            .map(|group| {
                let part = group.partitions.get(usize::from(id.partition));
                let cursor = part.and_then(|part| part.cursors[usize::from(id.lane)].as_deref());
                cursor.map_or(0, |cursor| cursor.floor)
            })
            .min()
            .unwrap_or(end)
    }

    /// Ops that give back at least `need` bytes of what every group has settled, or as much as there is, as far as memory
    /// knows the sizes: whole segments first, then messages that are in memory.
    #[must_use]
    pub fn trim_settled(&self, need: u64) -> Vec<Op> {
        let (mut ops, mut freed) = (Vec::new(), 0);
        for (id, lane) in self.lanes() {
            if freed >= need {
                break;
            }
            let limit = self.settled_below(id);
            let (mut start, mut bytes) = (lane.start, 0);
            for segment in &lane.segments {
                // A segment whose first messages were removed before counts less than its span says.
                let whole = segment.span.first >= lane.start;
                if segment.span.end > limit || freed + bytes >= need || !whole {
                    break;
                }
                start = segment.span.end;
                bytes += segment.span.bytes;
            }
            for (sequence, entry) in lane.tail() {
                if sequence >= limit || freed + bytes >= need {
                    break;
                }
                if sequence == start {
                    start += 1;
                    bytes += entry.body.head.cost();
                }
            }
            if start > lane.start {
                ops.push(Op::Trim { lane: id, start, bytes });
                freed += bytes;
            }
        }
        ops
    }
}
