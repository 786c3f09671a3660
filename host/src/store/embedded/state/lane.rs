//! One log: a priority of a partition. Invariant: messages `start..end` are its content; `flushed..end` are in memory,
//! `start..flushed` in segments (the newest of them also in memory). What leaves the log leaves memory. Never reads a file.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::message::GroupId;
use crate::store::embedded::ops::Entry;
use crate::store::embedded::segment::Segment;

use super::ranges::Ranges;
use super::tail::Tail;

/// See the module.
#[derive(Debug, Default)]
pub struct Lane {
    /// The first message kept.
    pub start: u64,
    /// The sequence of the next message.
    pub end: u64,
    /// What the messages `start..end` count for.
    pub bytes: u64,
    /// The first message that no segment has.
    pub flushed: u64,
    /// Where the messages before `flushed` are, oldest first.
    pub segments: VecDeque<Segment>,
    /// What is unreadable though it is in the log.
    pub erased: Ranges,
    /// Messages for one group alone: start to (end, group).
    pub targets: BTreeMap<u64, (u64, GroupId)>,
    /// The newest messages, up to `end`.
    tail: Tail,
}

/// What left a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// How many messages.
    pub messages: u64,
    /// The memory that it gave back.
    pub memory_bytes: u64,
    /// The cost of those that no segment has, nor ever will.
    pub unflushed_bytes: u64,
}

impl Lane {
    /// A lane whose messages are all in segments.
    #[must_use]
    pub fn stored(start: u64, end: u64, segments: VecDeque<Segment>) -> Lane {
        Lane { start, end, flushed: end, segments, ..Lane::default() }
    }

    /// The sequence of the oldest message in memory.
    #[must_use]
    pub fn tail_first(&self) -> u64 {
        self.end - self.tail.len() as u64
    }

    /// A message, if it is in memory.
    #[must_use]
    pub fn entry(&self, sequence: u64) -> Option<&Entry> {
        self.tail.get(usize::try_from(sequence.checked_sub(self.tail_first())?).ok()?)
    }

    /// The messages in memory, oldest first, with their sequences.
    pub fn tail(&self) -> impl DoubleEndedIterator<Item = (u64, &Entry)> {
        let first = self.tail_first();
        self.tail.iter().map(move |(at, entry)| (first + at as u64, entry))
    }

    /// Appends a message; returns its cost.
    pub fn push(&mut self, entry: Entry) -> u64 {
        let cost = entry.body.head.cost();
        self.tail.push(entry);
        self.end += 1;
        self.bytes += cost;
        cost
    }

    /// Lets go of the messages in memory below `below` that segments have; returns the memory that they took.
    pub fn evict(&mut self, below: u64) -> u64 {
        let before = self.tail.bytes();
        while !self.tail.is_empty() && self.tail_first() < below.min(self.flushed) {
            self.tail.pop();
        }
        before - self.tail.bytes()
    }

    /// Lets go of all in memory; returns what it took.
    pub fn forget_tail(&mut self) -> u64 {
        std::mem::take(&mut self.tail).bytes()
    }

    /// Marks messages for one group alone.
    pub fn add_target(&mut self, range: Range<u64>, group: GroupId) {
        if let Some((_, (end, known))) = self.targets.range_mut(..range.start).next_back()
            && *end == range.start
            && *known == group
        {
            *end = range.end;
            return;
        }
        self.targets.insert(range.start, (range.end, group));
    }

    /// The messages at or above `from` that are not for `group`: erased, or another group's alone.
    #[must_use]
    pub fn not_for(&self, group: GroupId, from: u64) -> Ranges {
        let mut ranges = Ranges::default();
        for range in self.erased.within(from..self.end) {
            ranges.insert(range);
        }
        for (start, (end, target)) in &self.targets {
            if *target != group {
                ranges.insert((*start).max(from)..(*end).max(from));
            }
        }
        ranges
    }

    /// Takes the messages below `start` out of the log, and out of memory: nobody may read them any more, and those that
    /// no segment has need none.
    pub fn trim(&mut self, start: u64, bytes: u64) -> Trimmed {
        let start = start.min(self.end);
        let mut trimmed = Trimmed { messages: start.saturating_sub(self.start), ..Trimmed::default() };
        if trimmed.messages == 0 {
            return trimmed;
        }
        self.start = start;
        let unneeded = (self.flushed..start).filter_map(|sequence| self.entry(sequence));
        trimmed.unflushed_bytes = unneeded.map(|entry| entry.body.head.cost()).sum();
        self.flushed = self.flushed.max(start);
        trimmed.memory_bytes = self.evict(start);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.erased.remove_below(start);
        while let Some((&first, &(end, group))) = self.targets.first_key_value() {
            if first >= start {
                break;
            }
            self.targets.remove(&first);
            if end > start {
                self.targets.insert(start, (end, group));
            }
        }
        trimmed
    }

    /// The segment that holds a message.
    #[must_use]
    pub fn segment_of(&self, sequence: u64) -> Option<&Segment> {
        let at = self.segments.partition_point(|segment| segment.span.end <= sequence);
        self.segments.get(at).filter(|segment| segment.span.first <= sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::store::embedded::ops::Body;
    use crate::store::embedded::tests::message;

    #[test]
    fn what_leaves_the_log_leaves_memory_whether_a_segment_has_it_or_not() {
        let entry = |stamp| Entry { at: Timestamp(0), stamp, body: Body::new(&message(stamp, "payload"), None, true) };
        let (cost, memory) = (entry(0).body.head.cost(), entry(0).memory_bytes());
        let mut lane = Lane::default();
        (0..200).for_each(|stamp| assert_eq!(lane.push(entry(stamp)), cost));
        lane.flushed = 100;
        let trimmed = lane.trim(40, 40 * cost);
        assert_eq!(trimmed, Trimmed { messages: 40, memory_bytes: 40 * memory, unflushed_bytes: 0 });
        let trimmed = lane.trim(150, 110 * cost);
        assert_eq!(trimmed, Trimmed { messages: 110, memory_bytes: 110 * memory, unflushed_bytes: 50 * cost });
        assert_eq!((lane.start, lane.flushed, lane.tail_first()), (150, 150, 150));
        assert!(lane.entry(149).is_none());
        assert_eq!(lane.entry(150).map(|entry| entry.stamp), Some(150));
        assert_eq!(lane.trim(1000, 50 * cost).messages, 50);
        assert_eq!((lane.bytes, lane.forget_tail()), (0, 0));
    }
}
