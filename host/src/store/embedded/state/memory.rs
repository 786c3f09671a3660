//! What lanes hold in memory, over all topics. Invariant: within its bound, but for what no segment has; what it keeps of
//! the order in which memory is given back follows what is in memory, not what ever was. Never reads a file.

use std::collections::VecDeque;

use crate::message::TopicId;
use crate::store::embedded::ops::LaneId;

use super::State;

/// Fewer records than these are not worth a look.
const SWEEP_MIN: usize = 1024;

/// What segments took, oldest first.
#[derive(Debug, Default)]
pub struct Flushed {
    records: VecDeque<(LaneId, u64)>,
    /// Records that nothing in memory belongs to are swept out beyond this many.
    sweep_at: usize,
}

impl Flushed {
    fn push(&mut self, id: LaneId, end: u64, in_memory: impl Fn(LaneId, u64) -> bool) {
        self.records.push_back((id, end));
        if self.records.len() > self.sweep_at.max(SWEEP_MIN) {
            // Retention takes from memory what no record's turn has come for.
            self.records.retain(|(id, end)| in_memory(*id, *end));
            self.sweep_at = 2 * self.records.len();
        }
    }

    /// Forgets a topic.
    pub(super) fn forget_topic(&mut self, topic: TopicId) {
        self.records.retain(|(id, _)| id.topic != topic);
    }
}

impl State {
    /// A segment has a lane's messages below `end`, of which those that none had before cost `bytes`.
    pub fn flushed_until(&mut self, id: LaneId, end: u64, bytes: u64) {
        let topics = &self.topics;
        self.flushed.push(id, end, |id, end| {
            let lane = topics.get(&id.topic).and_then(|topic| topic.lane(id.partition, id.lane));
            lane.is_some_and(|lane| lane.tail_first() < end)
        });
        self.need_no_flush(id, bytes);
        self.evict();
    }

    /// Messages of a lane that no segment had need none any more.
    pub(super) fn need_no_flush(&mut self, id: LaneId, bytes: u64) {
        self.unflushed_bytes = self.unflushed_bytes.saturating_sub(bytes);
        if let Some(known) = self.unflushed.get_mut(&id) {
            *known = known.saturating_sub(bytes);
            if *known == 0 {
                self.unflushed.remove(&id);
            }
        }
    }

    /// Gives memory back until what lanes hold is within bounds; only what segments have goes.
    pub fn evict(&mut self) {
        while self.tail_bytes > self.limits.tail_bytes {
            let Some((id, end)) = self.flushed.records.pop_front() else { return };
            let lane = self.topics.get_mut(&id.topic).and_then(|topic| topic.lane_mut(id.partition, id.lane));
            self.tail_bytes -= lane.map_or(0, |lane| lane.evict(end));
        }
    }

    /// All that lanes held is gone from memory.
    pub fn forget_memory(&mut self) {
        (self.tail_bytes, self.unflushed_bytes) = (0, 0);
        self.flushed = Flushed::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::store::embedded::ops::{Body, Op};
    use crate::store::embedded::state::{Applying, EmbeddedLimits};
    use crate::store::embedded::tests::{TOPIC, message, topic};

    const LANE: LaneId = LaneId { topic: TOPIC, partition: 0, lane: 0 };

    /// Ten messages come, and segments take them or not.
    fn ten(state: &mut State, first: u64, taken: bool) {
        let bodies: Vec<Body> =
            (first..first + 10).map(|number| Body::new(&message(number, "payload"), None, true)).collect();
        let heads = bodies.iter().map(|body| body.head).collect();
        let op = Op::Append { lane: LANE, first, stamp: first, at: Timestamp(0), heads };
        state.apply(op, &mut bodies.into_iter(), Timestamp(0), Applying::Live);
        if taken {
            let lane = lane(state);
            let new = lane.tail().filter(|(sequence, _)| *sequence >= lane.flushed);
            let cost = new.map(|(_, entry)| entry.body.head.cost()).sum();
            lane.flushed = lane.end;
            state.flushed_until(LANE, first + 10, cost);
        }
        state.evict();
    }

    fn lane(state: &mut State) -> &mut crate::store::embedded::state::lane::Lane {
        state.topics.get_mut(&TOPIC).unwrap().lane_mut(0, 0).unwrap()
    }

    fn with_a_topic(limits: EmbeddedLimits) -> State {
        let mut state = State::new(limits);
        state.apply(Op::Topic(topic(TOPIC)), &mut std::iter::empty(), Timestamp(0), Applying::Live);
        state
    }

    #[test]
    fn memory_follows_what_is_in_the_logs_and_not_what_ever_was() {
        let mut state = with_a_topic(EmbeddedLimits::default());
        for round in 0..5000 {
            ten(&mut state, round * 10, round % 3 > 0);
            let start = round * 10 + 5;
            let trim = Op::Trim { lane: LANE, start, bytes: 0 };
            state.apply(trim, &mut std::iter::empty(), Timestamp(0), Applying::Live);
            let held: u64 = lane(&mut state).tail().map(|(_, entry)| entry.memory_bytes()).sum();
            assert_eq!((lane(&mut state).tail_first(), state.tail_bytes), (start, held), "round {round}");
            assert!(state.flushed.records.len() <= SWEEP_MIN, "round {round}: {}", state.flushed.records.len());
        }
        let end = Op::Trim { lane: LANE, start: 50_000, bytes: 0 };
        state.apply(end, &mut std::iter::empty(), Timestamp(0), Applying::Live);
        assert_eq!((state.tail_bytes, state.unflushed_bytes, state.unflushed.len()), (0, 0, 0));
    }

    #[test]
    fn the_oldest_that_segments_have_makes_room_in_memory() {
        let mut state = with_a_topic(EmbeddedLimits { tail_bytes: 10_000, ..EmbeddedLimits::default() });
        (0..100).for_each(|round| ten(&mut state, round * 10, true));
        assert!(state.tail_bytes <= 10_000 && state.tail_bytes > 5_000, "{}", state.tail_bytes);
        let first = lane(&mut state).tail_first();
        assert_eq!(first % 10, 0, "what one write took goes together");
        (100..200).for_each(|round| ten(&mut state, round * 10, false));
        assert_eq!(lane(&mut state).tail_first(), 1000, "what no segment has stays");
    }
}
