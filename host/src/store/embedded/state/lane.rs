//! One log: a priority of a partition. Invariant: messages `start..end` are its content; `flushed..end` are in memory,
//! `..flushed` in segments (the newest of them also in memory). Never reads a file.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::message::GroupId;
use crate::store::embedded::ops::Entry;
use crate::store::embedded::segment::Segment;

use super::ranges::Ranges;

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
    tail: VecDeque<Entry>,
    /// The cost of the tail's messages.
    tail_bytes: u64,
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
        self.tail.iter().enumerate().map(move |(at, entry)| (first + at as u64, entry))
    }

    /// Appends a message; returns its cost.
    pub fn push(&mut self, entry: Entry) -> u64 {
        let cost = entry.body.head.cost();
        self.tail.push_back(entry);
        self.tail_bytes += cost;
        self.end += 1;
        self.bytes += cost;
        cost
    }

    /// Lets go of the oldest message in memory if a segment has it; returns its cost.
    pub fn evict_one(&mut self, below: u64) -> Option<u64> {
        if self.tail.is_empty() || self.tail_first() >= below.min(self.flushed) {
            return None;
        }
        let cost = self.tail.pop_front()?.body.head.cost();
        self.tail_bytes -= cost;
        if self.tail.is_empty() && self.tail.capacity() > 64 {
            self.tail = VecDeque::new();
        }
        Some(cost)
    }

    /// Lets go of all in memory; returns its cost.
    pub fn forget_tail(&mut self) -> u64 {
        self.tail = VecDeque::new();
        std::mem::take(&mut self.tail_bytes)
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

    /// Takes the messages below `start` out of the log; returns how many there were.
    pub fn trim(&mut self, start: u64, bytes: u64) -> u64 {
        let start = start.min(self.end);
        let removed = start.saturating_sub(self.start);
        if removed == 0 {
            return 0;
        }
        self.start = start;
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
        removed
    }

    /// The segment that holds a message.
    #[must_use]
    pub fn segment_of(&self, sequence: u64) -> Option<&Segment> {
        let at = self.segments.partition_point(|segment| segment.span.end <= sequence);
        self.segments.get(at).filter(|segment| segment.span.first <= sequence)
    }
}
