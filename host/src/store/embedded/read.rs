//! Finding and reading messages outside of leases: by id, in pages, by time. Invariant: blocks are read without holding the
//! state, and what was found is checked against it again. May read files: callers run it on a blocking thread.

use std::sync::Arc;

use super::core::Core;
use super::ops::{Entry, LaneId};
use super::segment::{Block, BlockRef, Segment, Span};
use super::state::offset;
use crate::clock::Timestamp;
use crate::message::{Message, MessageId, Offset, Partition, Position, TopicId};
use crate::store::{Page, ReadCursor, ReadFrom, ReadRequest, StoreError};

/// Blocks' places held in memory for segments that are not written to any more: 64 bytes each, so 16 MiB at most. Beyond,
/// those of one lane are dropped and read again when needed.
const SEALED_INDEX_BLOCKS_MAX: usize = 4096;

/// Where a message's data is.
enum Place {
    Memory(Entry),
    Segment(Segment),
    Gone,
}

impl Core {
    /// A message of a log, from memory or its segment; `None` if it is not there.
    ///
    /// # Errors
    /// `Damaged`, `Unavailable`.
    pub fn entry(&self, id: LaneId, sequence: u64) -> Result<Option<Entry>, StoreError> {
        let place = {
            let state = self.state.lock();
            let Some(lane) = state.lane(id) else { return Ok(None) };
            if sequence < lane.start || sequence >= lane.end {
                Place::Gone
            } else if let Some(entry) = lane.entry(sequence).or_else(|| state.cache.entry(id, sequence)) {
                Place::Memory(entry.clone())
            } else {
                lane.segment_of(sequence).cloned().map_or(Place::Gone, Place::Segment)
            }
        };
        match place {
            Place::Memory(entry) => Ok(Some(entry)),
            Place::Gone => Ok(None),
            Place::Segment(segment) => {
                let block = self.block(id, &segment, sequence)?;
                Ok(block.and_then(|block| block.get(sequence).cloned()))
            }
        }
    }

    /// The block of a message that memory does not have, put into the cache; `None` if the message left the log.
    ///
    /// # Errors
    /// `Damaged`, which is remembered for the partition; `Unavailable`.
    pub fn fetch(&self, id: LaneId, sequence: u64) -> Result<Option<Arc<Block>>, StoreError> {
        let segment = {
            let state = self.state.lock();
            let lane = state.lane(id).filter(|lane| sequence >= lane.start && sequence < lane.end);
            lane.and_then(|lane| lane.segment_of(sequence).cloned())
        };
        let Some(segment) = segment else { return Ok(None) };
        self.block(id, &segment, sequence)
    }

    /// Reads a block and remembers it, or its damage.
    fn block(&self, id: LaneId, segment: &Segment, sequence: u64) -> Result<Option<Arc<Block>>, StoreError> {
        let read = self.index(id, segment).and_then(|index| {
            let at = index.partition_point(|block| block.span.end <= sequence);
            let Some(block) = index.get(at).filter(|block| block.span.first <= sequence) else { return Ok(None) };
            // What is not in the log any more, erased or removed by retention, may be damaged: nobody reads it.
            let gone = |sequence| {
                let state = self.state.lock();
                state.lane(id).is_none_or(|lane| sequence < lane.start || lane.erased.contains(sequence))
            };
            self.segments.read(id, segment, block, &gone).map(|block| Some(Arc::new(block)))
        });
        let mut state = self.state.lock();
        match read {
            Ok(Some(block)) => {
                state.cache.insert(id, Arc::clone(&block));
                Ok(Some(block))
            }
            Ok(None) => Ok(None),
            // The file went while it was read: retention, or the topic, and not damage.
            Err(_) if state.lane(id).is_none_or(|lane| sequence < lane.start) => Ok(None),
            Err(error) => {
                if let StoreError::Damaged { .. } = &error
                    && let Some(part) =
                        state.topics.get_mut(&id.topic).and_then(|t| t.partitions.get_mut(usize::from(id.partition)))
                    && part.damage.is_none()
                {
                    tracing::error!(%error, topic = id.topic.0, partition = id.partition, "a segment is damaged");
                    part.damage = Some(error.clone());
                }
                Err(error)
            }
        }
    }

    /// Where a segment's blocks are.
    fn index(&self, id: LaneId, segment: &Segment) -> Result<Arc<Vec<BlockRef>>, StoreError> {
        if let Some(index) = &segment.index {
            return Ok(Arc::clone(index));
        }
        let index = Arc::new(self.segments.index(id, segment)?);
        let mut state = self.state.lock();
        let lane = state.topics.get_mut(&id.topic).and_then(|topic| topic.lane_mut(id.partition, id.lane));
        if let Some(lane) = lane {
            let held: usize =
                lane.segments.iter().filter_map(|known| known.index.as_ref()).map(|known| known.len()).sum();
            if held > SEALED_INDEX_BLOCKS_MAX {
                lane.segments.iter_mut().filter(|known| known.sealed).for_each(|known| known.index = None);
            }
            // Only if the segment did not grow meanwhile.
            let same = |known: &&mut Segment| known.span == segment.span && known.len == segment.len;
            if let Some(known) = lane.segments.iter_mut().find(same) {
                known.index = Some(Arc::clone(&index));
            }
        }
        Ok(index)
    }

    /// The first message of a lane that entered the log at or after `at`; the lane's end if there is none.
    ///
    /// # Errors
    /// `Damaged`, `Unavailable`.
    pub fn first_at(&self, id: LaneId, at: Timestamp) -> Result<u64, StoreError> {
        let (start, end, segment) = {
            let state = self.state.lock();
            let Some(lane) = state.lane(id) else { return Ok(0) };
            let segment =
                lane.segments.iter().find(|segment| segment.span.at_max >= at && segment.span.end > lane.start);
            match segment {
                Some(segment) => (lane.start, lane.end, segment.clone()),
                None => {
                    // What is in no segment is in memory.
                    let unflushed = lane.tail().filter(|(sequence, _)| *sequence >= lane.flushed.max(lane.start));
                    let found = unflushed.into_iter().find(|(_, entry)| entry.at >= at);
                    return Ok(found.map_or(lane.end, |(sequence, _)| sequence));
                }
            }
        };
        if segment.span.at_min >= at {
            // Times never fall, so nothing needs to be read.
            return Ok(segment.span.first.max(start));
        }
        let index = self.index(id, &segment)?;
        let Some(block) = index.iter().find(|block| block.span.at_max >= at && block.span.end > start) else {
            return Ok(end);
        };
        let mut sequence = block.span.first.max(start);
        while sequence < block.span.end && self.entry(id, sequence)?.is_some_and(|entry| entry.at < at) {
            sequence += 1;
        }
        Ok(sequence)
    }

    /// Where a message is, by its id.
    ///
    /// # Errors
    /// `Damaged`, `Unavailable`.
    pub fn find(&self, topic: TopicId, message: MessageId) -> Result<Option<(LaneId, u64, Entry)>, StoreError> {
        let lanes = {
            let state = self.state.lock();
            let Some(topic) = state.topics.get(&topic) else { return Ok(None) };
            let mut lanes: Vec<LaneId> = topic.lanes().map(|(id, _)| id).collect();
            // The partition that the id names first: it is almost always there.
            lanes.sort_by_key(|id| id.partition != message.partition());
            lanes
        };
        for id in lanes {
            if let Some((sequence, entry)) = self.find_in(id, message)? {
                return Ok(Some((id, sequence, entry)));
            }
        }
        Ok(None)
    }

    fn find_in(&self, id: LaneId, message: MessageId) -> Result<Option<(u64, Entry)>, StoreError> {
        let segments: Vec<Segment> = {
            let state = self.state.lock();
            let Some(lane) = state.lane(id) else { return Ok(None) };
            // Newest first: what is asked for is often what just came.
            let found = lane.tail().rev().find(|(_, entry)| entry.body.head.id == message);
            if let Some((sequence, entry)) = found {
                let there = sequence >= lane.start && !lane.erased.contains(sequence);
                return Ok(there.then(|| (sequence, entry.clone())));
            }
            let may = lane.segments.iter().filter(|segment| segment.span.may_have(message.timestamp()));
            may.cloned().collect()
        };
        for segment in segments {
            for block in self.index(id, &segment)?.iter().filter(|block| block.span.may_have(message.timestamp())) {
                let Some(whole) = self.block(id, &segment, block.span.first)? else { continue };
                let found = whole.entries.iter().position(|entry| entry.body.head.id == message);
                if let Some(nth) = found {
                    let sequence = whole.first + nth as u64;
                    let there = self
                        .state
                        .lock()
                        .lane(id)
                        .is_some_and(|lane| sequence >= lane.start && !lane.erased.contains(sequence));
                    return Ok(there.then(|| (sequence, whole.entries[nth].clone())));
                }
            }
        }
        Ok(None)
    }

    /// Reads a page.
    ///
    /// # Errors
    /// `NoTopic`, `Invalid`, `Damaged`, `Unavailable`.
    pub fn page(&self, request: &ReadRequest) -> Result<Page, StoreError> {
        let places = self.places(request)?;
        self.merge(request.topic, places, (request.limit, request.bytes_max), &|_, _| true)
    }

    /// Where each lane of a request begins.
    fn places(&self, request: &ReadRequest) -> Result<Vec<(LaneId, u64)>, StoreError> {
        let lanes: Vec<(LaneId, u64, u64)> = {
            let state = self.state.lock();
            let topic = state.topic(request.topic)?;
            if request.partition.is_some_and(|partition| partition >= topic.spec.partitions) {
                return Err(StoreError::Invalid("the topic has no such partition".to_owned()));
            }
            let wanted = |id: &LaneId| request.partition.is_none_or(|partition| partition == id.partition);
            topic.lanes().filter(|(id, _)| wanted(id)).map(|(id, lane)| (id, lane.start, lane.end)).collect()
        };
        let stamp = match (&request.from, request.partition) {
            (ReadFrom::Offset(_), None) => {
                return Err(StoreError::Invalid("reading from an offset needs a partition".to_owned()));
            }
            (ReadFrom::Offset(from), Some(partition)) => self.stamp_at(request.topic, partition, *from)?,
            _ => 0,
        };
        let mut places = Vec::with_capacity(lanes.len());
        for (id, start, end) in lanes {
            let sequence = match &request.from {
                ReadFrom::Earliest => start,
                ReadFrom::Latest => end,
                ReadFrom::Time(at) => self.first_at(id, *at)?,
                ReadFrom::Offset(from) if from.lane() == id.lane => from.sequence().clamp(start, end),
                ReadFrom::Offset(_) => self.first_stamped(id, start, end, stamp)?,
                ReadFrom::Cursor(ReadCursor(nexts)) => {
                    let next = nexts.iter().find(|(p, next)| *p == id.partition && next.lane() == id.lane);
                    // A lane that the page before did not know came later, so all of it is new.
                    next.map_or(start, |(_, next)| next.sequence().clamp(start, end))
                }
            };
            places.push((id, sequence));
        }
        Ok(places)
    }

    /// The place of an offset in the order of all appends.
    fn stamp_at(&self, topic: TopicId, partition: Partition, from: Offset) -> Result<u64, StoreError> {
        let id = LaneId { topic, partition, lane: from.lane() };
        let first = self.state.lock().lane(id).map_or(0, |lane| lane.start);
        Ok(self.entry(id, from.sequence().max(first))?.map_or(u64::MAX, |entry| entry.stamp))
    }

    /// The first message of a lane that comes after another one of its topic.
    ///
    /// # Errors
    /// `Damaged`, `Unavailable`.
    pub fn after(&self, id: LaneId, after: Position, range: (u64, u64)) -> Result<u64, StoreError> {
        if (id.partition, id.lane) == (after.partition, after.offset.lane()) {
            return Ok(after.offset.sequence() + 1);
        }
        let stamp = self.stamp_at(after.topic, after.partition, after.offset)?;
        self.first_stamped(id, range.0, range.1, stamp)
    }

    /// What the block with a message holds; `None` if no segment has it.
    ///
    /// # Errors
    /// `Damaged`, `Unavailable`.
    pub fn block_span(&self, id: LaneId, sequence: u64) -> Result<Option<Span>, StoreError> {
        let segment = self.state.lock().lane(id).and_then(|lane| lane.segment_of(sequence).cloned());
        let Some(segment) = segment else { return Ok(None) };
        let index = self.index(id, &segment)?;
        let at = index.partition_point(|block| block.span.end <= sequence);
        Ok(index.get(at).map(|block| block.span))
    }

    /// The first message of a lane at or after a place in the order of all appends.
    fn first_stamped(&self, id: LaneId, start: u64, end: u64, stamp: u64) -> Result<u64, StoreError> {
        let (mut low, mut high) = (start, end);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.entry(id, middle)? {
                Some(entry) if entry.stamp >= stamp => high = middle,
                _ => low = middle + 1,
            }
        }
        Ok(low)
    }

    /// Reads lanes in the order of appending, what `wanted` lets through.
    pub fn merge(
        &self,
        topic: TopicId,
        mut places: Vec<(LaneId, u64)>,
        most: (usize, usize),
        wanted: &dyn Fn(LaneId, u64) -> bool,
    ) -> Result<Page, StoreError> {
        let (limit, bytes_max) = most;
        let cutoff = self.state.lock().topic(topic)?.cutoff(self.clock.now());
        let mut heads: Vec<Option<Entry>> = Vec::with_capacity(places.len());
        for place in &mut places {
            heads.push(self.next_readable(place, cutoff, wanted)?);
        }
        let (mut messages, mut bytes) = (Vec::new(), 0);
        loop {
            let first = heads.iter().enumerate().filter_map(|(nth, head)| Some((head.as_ref()?.stamp, nth))).min();
            let size = first.and_then(|(_, nth)| heads[nth].as_ref()).map_or(0, |head| head.body.payload.len());
            let full = messages.len() >= limit || (!messages.is_empty() && bytes + size > bytes_max);
            let Some((_, nth)) = first.filter(|_| !full) else {
                let reached = places.iter().map(|(id, next)| (id.partition, offset(*id, *next))).collect();
                return Ok(Page { messages, reached: ReadCursor(reached), more: first.is_some() });
            };
            bytes += size;
            let (id, sequence) = places[nth];
            if let Some(message) = heads[nth].take().and_then(|head| head.body.message()) {
                messages.push((position(id, sequence), message));
            }
            places[nth].1 += 1;
            heads[nth] = self.next_readable(&mut places[nth], cutoff, wanted)?;
        }
    }

    /// The next message of a lane that may be read; moves the place to it.
    fn next_readable(
        &self,
        place: &mut (LaneId, u64),
        cutoff: Timestamp,
        wanted: &dyn Fn(LaneId, u64) -> bool,
    ) -> Result<Option<Entry>, StoreError> {
        loop {
            let (id, sequence) = *place;
            let (next, end) = {
                let state = self.state.lock();
                let Some(lane) = state.lane(id) else { return Ok(None) };
                let next = sequence.max(lane.start);
                (lane.erased.around(next).map_or(next, |erased| erased.end), lane.end)
            };
            place.1 = next.min(end);
            if next >= end {
                return Ok(None);
            }
            if wanted(id, next)
                && let Some(entry) = self.entry(id, next)?
                && entry.at > cutoff
            {
                return Ok(Some(entry));
            }
            place.1 = next + 1;
        }
    }

    /// A message of a log, decoded; `None` if it is not there or erased.
    ///
    /// # Errors
    /// `Damaged`, `Unavailable`.
    pub fn message_at(&self, at: Position) -> Result<Option<Message>, StoreError> {
        let id = LaneId { topic: at.topic, partition: at.partition, lane: at.offset.lane() };
        Ok(self.entry(id, at.offset.sequence())?.and_then(|entry| entry.body.message()))
    }
}

/// A place in a log as callers know it.
#[must_use]
pub fn position(id: LaneId, sequence: u64) -> Position {
    Position { topic: id.topic, partition: id.partition, offset: offset(id, sequence) }
}
