//! One topic of the oracle: what may be granted, and in which order. Invariant: it looks at every message each time. Never
//! changes a state by itself.

use std::collections::BTreeMap;

use sluice::clock::Timestamp;
use sluice::message::{GroupId, Message, Offset, Partition, Position};
use sluice::store::LeaseRequest;

use super::{Delivery, FRESH, Kept, Log};

impl Log {
    pub(super) fn push(
        &mut self,
        partition: Partition,
        message: Message,
        target: Option<GroupId>,
        at: Timestamp,
    ) -> Position {
        let end = self.ends.entry((partition, message.meta.priority)).or_default();
        let position = Position { topic: self.spec.id, partition, offset: Offset::new(message.meta.priority, *end) };
        *end += 1;
        self.appended += 1;
        let kept = Kept { position, message, at, target, erased: false };
        for (_, cursor) in self.groups.iter_mut().filter(|(group, _)| kept.is_for(**group)) {
            cursor.states.insert(position, FRESH);
        }
        self.kept.push(kept);
        position
    }

    /// Whether a message may no longer be delivered.
    pub(super) fn is_past(&self, kept: &Kept, now: Timestamp) -> bool {
        kept.at <= now.minus(self.spec.retention) || kept.message.meta.expires_at.is_some_and(|at| at <= now)
    }

    /// What may be granted; whether it must be, before a store may say that nothing waits.
    pub(super) fn candidates(&self, request: &LeaseRequest, now: Timestamp) -> BTreeMap<Position, bool> {
        let cursor = &self.groups[&request.group];
        let mut candidates = BTreeMap::new();
        // Keys with an earlier message that is not settled; whether it surely bars the way.
        let mut barred: BTreeMap<(Partition, &str), bool> = BTreeMap::new();
        for kept in self.kept.iter().filter(|kept| kept.is_for(request.group)) {
            let state = cursor.states[&kept.position];
            let past = self.is_past(kept, now);
            let key = kept.message.meta.key.as_deref().map(|key| (kept.position.partition, key));
            let bar = key.filter(|_| request.ordered).and_then(|key| barred.get(&key).copied());
            if let Delivery::Waiting { from, .. } = state
                && from <= now
                && !past
                && bar != Some(true)
            {
                candidates.insert(kept.position, bar.is_none());
            }
            // One that is past bars the way until a store notices: perhaps not before its lease or its wait ends.
            let open = match state {
                Delivery::Settled => false,
                Delivery::Leased { .. } => true,
                Delivery::Waiting { from, .. } => !past || from > now,
            };
            if let (true, Some(key)) = (open, key) {
                *barred.entry(key).or_default() |= !past;
            }
        }
        candidates
    }

    /// With order, grants of a partition come in the order of appending.
    pub(super) fn check_append_order(&self, places: &[Position]) {
        let rank = |place: &Position| self.kept.iter().position(|kept| kept.position == *place);
        for partition in 0..self.spec.partitions {
            let ranks: Vec<_> = places.iter().filter(|place| place.partition == partition).map(rank).collect();
            assert!(ranks.is_sorted(), "not in the order of appending: {places:?}");
        }
    }

    pub(super) fn told(&self, group: GroupId, place: Position) -> String {
        let kept = self.kept.iter().find(|kept| kept.position == place);
        format!("{:?} {kept:?}", self.groups[&group].states.get(&place))
    }
}

impl Kept {
    pub(super) fn is_for(&self, group: GroupId) -> bool {
        self.target.is_none_or(|target| target == group)
    }

    pub(super) fn is_in(&self, partition: Partition, offset: Offset) -> bool {
        self.position.partition == partition && self.position.offset.lane() == offset.lane()
    }
}

/// Without order: offsets rise within a lane with none left out, and lanes are the highest but for every eighth.
pub(super) fn check_lanes(places: &[Position], left: &[Position], candidates: &BTreeMap<Position, bool>) {
    let lane = |place: &Position| (place.partition, place.offset.lane());
    for (number, place) in places.iter().enumerate() {
        let skipped = places[number + 1..]
            .iter()
            .chain(left)
            .find(|later| lane(later) == lane(place) && later.offset < place.offset);
        assert!(skipped.is_none(), "{place:?} before {skipped:?}");
    }
    if candidates.values().all(|certain| *certain) {
        let mut waiting: Vec<u8> = candidates.keys().map(|place| place.offset.lane()).collect();
        let mut lowest_turns = 0;
        for place in places {
            let (lane, highest) = (place.offset.lane(), waiting.iter().max().copied().unwrap_or_default());
            if lane != highest {
                assert_eq!(
                    Some(lane),
                    waiting.iter().min().copied(),
                    "neither the highest nor the lowest lane: {places:?}"
                );
                lowest_turns += 1;
            }
            let index = waiting.iter().position(|waiting| *waiting == lane).expect("a grant was a candidate");
            waiting.swap_remove(index);
        }
        assert!(lowest_turns <= places.len() / 8 + 1, "{lowest_turns} of {} from the lowest lane", places.len());
    }
}
