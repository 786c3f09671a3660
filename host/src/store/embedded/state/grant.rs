//! Granting leases. Invariant: a message is granted only while it has no live lease, is inside its retention and before
//! its expiry, and the grant order follows offsets within a lane. Works on what is in memory: a message that is not makes
//! it stop and say which, so that the caller can read it without holding the state.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::message::{Failures, Offset, Partition, Position};
use crate::store::embedded::ops::{Entry, LaneId, Op};
use crate::store::embedded::segment::Block;
use crate::store::{LeaseRequest, Mode, Receipt, StoreError};

use super::cache::BlockCache;
use super::cursor::{Exception, Held, Standing};
use super::group::{Group, KeyQueue, LANES};
use super::{PartitionState, State, offset};

/// Expired messages that one call passes over at most, so that a backlog of them cannot hold the state for long.
const PASSES_MAX: usize = 10_000;
/// The lowest lane has every so many-th grant.
const LOWEST_TURN: u64 = 8;

/// A grant, not yet decoded.
#[derive(Debug)]
pub struct Granted {
    /// Where the message stands.
    pub position: Position,
    /// It.
    pub entry: Entry,
    /// Which delivery this is.
    pub attempt: u32,
    /// Until.
    pub deadline: Timestamp,
    /// Settles it.
    pub receipt: Receipt,
}

/// Why granting stopped.
#[derive(Debug)]
pub enum Stop {
    /// All was granted that was asked for or waits; whether more waits.
    Done { more: bool },
    /// This message is not in memory.
    Need(LaneId, u64),
}

/// A message read back from its segment for this call.
pub type Pin = (LaneId, Arc<Block>);

enum Step {
    Granted,
    Empty,
    Enough,
    Need(LaneId, u64),
}

struct Granter<'a> {
    request: &'a LeaseRequest,
    now: Timestamp,
    cutoff: Timestamp,
    epoch: u64,
    exceptions_max: usize,
    parked_max: usize,
    partitions: &'a [PartitionState],
    group: &'a mut Group,
    cache: &'a BlockCache,
    pins: &'a [Pin],
    next_grant: &'a mut u64,
    out: &'a mut Vec<Granted>,
    first_new: usize,
    bytes: usize,
    passed: Vec<(Partition, Offset)>,
    /// Whether what has passed its expiry becomes a dead letter.
    buries: bool,
    buried: usize,
}

impl State {
    /// Grants what waits, adding to `out`.
    ///
    /// # Errors
    /// `NoTopic`, `NoGroup`, `Unavailable` when no more grants can be noted, or the damage of the partitions that are left
    /// when nothing else could be granted.
    pub fn grant(
        &mut self,
        request: &LeaseRequest,
        now: Timestamp,
        pins: &[Pin],
        out: &mut Vec<Granted>,
    ) -> Result<Stop, StoreError> {
        if self.notes.len() >= self.limits.notes_max {
            return Err(StoreError::Unavailable("more grants wait to be written than the store holds".to_owned()));
        }
        let has_dead_letters = self.dead_letter_of(request.topic).is_some();
        let topic = self.topics.get_mut(&request.topic).ok_or(StoreError::NoTopic)?;
        let cutoff = topic.cutoff(now);
        let group = topic.groups.get_mut(&request.group).ok_or(StoreError::NoGroup)?;
        if group.ordered != request.ordered {
            group.ordered = request.ordered;
            group.rewind(now);
        }
        let moved = group.run_timers(now);
        let first_new = out.len();
        let bytes = out.iter().map(|granted| granted.entry.body.payload.len()).sum();
        let mut granter = Granter {
            request,
            now,
            cutoff,
            epoch: self.epoch,
            exceptions_max: self.limits.exceptions_max,
            parked_max: self.limits.parked_max,
            partitions: &topic.partitions,
            group,
            cache: &self.cache,
            pins,
            next_grant: &mut self.next_grant,
            out,
            first_new,
            bytes,
            passed: Vec::new(),
            buries: has_dead_letters && topic.spec.dead_letter_expired,
            buried: 0,
        };
        let stop = if request.ordered { granter.ordered() } else { granter.by_lane() };
        let (passed, noted) = (std::mem::take(&mut granter.passed), granter.first_new);
        self.note_grants(request, &out[noted..], &passed);
        if moved {
            // Others wait too, and this call may not have taken all.
            self.topic(request.topic)?.wake();
        }
        stop
    }

    fn note_grants(&mut self, request: &LeaseRequest, granted: &[Granted], passed: &[(Partition, Offset)]) {
        let (topic, group) = (request.topic, request.group);
        let mut rest = granted;
        // An at-most-once grant is its own settlement, which the caller journals before it hands the message out.
        while let Some(first) = rest.first().filter(|_| request.mode == Mode::AtLeastOnce) {
            let partition = first.position.partition;
            let run = rest.iter().take_while(|granted| granted.position.partition == partition).count();
            let grants = rest[..run].iter().map(|granted| (granted.position.offset, granted.attempt)).collect();
            self.note(|note| Op::Granted { note, topic, group, partition, grants });
            rest = &rest[run..];
        }
        let mut rest = passed;
        while let Some((partition, _)) = rest.first().copied() {
            let run = rest.iter().take_while(|(other, _)| *other == partition).count();
            let offsets = rest[..run].iter().map(|(_, offset)| *offset).collect();
            self.note(|note| Op::Passed { note, topic, group, partition, offsets });
            rest = &rest[run..];
        }
    }
}

impl Granter<'_> {
    /// Grants by lane: the highest first, every 8th from the lowest.
    fn by_lane(&mut self) -> Result<Stop, StoreError> {
        let turns = self.turns();
        let mut damage = None;
        let mut waiting: Vec<Vec<Partition>> = vec![Vec::new(); LANES];
        for partition in turns {
            if let Some(found) = self.damage(partition) {
                damage = Some(found);
                continue;
            }
            for (lane, waiting) in waiting.iter_mut().enumerate() {
                if self.candidate(partition, lane as u8).is_some() {
                    waiting.push(partition);
                }
            }
        }
        // Partitions are taken from the end.
        waiting.iter_mut().for_each(|partitions| partitions.reverse());
        loop {
            let lowest = (self.group.turns + 1).is_multiple_of(LOWEST_TURN);
            let mut lanes = (0..LANES).filter(|lane| !waiting[*lane].is_empty());
            let Some(lane) = (if lowest { lanes.next() } else { lanes.next_back() }) else {
                return self.end(false, damage);
            };
            if self.out.len() >= self.request.max || self.has_passed_enough() {
                let mut places = waiting.iter().enumerate().flat_map(|(lane, all)| all.iter().map(move |p| (*p, lane)));
                let more = places.any(|(partition, lane)| self.candidate(partition, lane as u8).is_some());
                return self.end(more, damage);
            }
            let Some(&partition) = waiting[lane].last() else { continue };
            match self.step(partition, lane as u8) {
                Step::Granted => {}
                Step::Empty => {
                    waiting[lane].pop();
                }
                Step::Enough => return self.end(true, damage),
                Step::Need(lane, sequence) => return Ok(Stop::Need(lane, sequence)),
            }
        }
    }

    /// Grants in the order of appending, one message of a key at a time.
    fn ordered(&mut self) -> Result<Stop, StoreError> {
        let mut damage = None;
        let turns = self.turns();
        for (nth, partition) in turns.iter().copied().enumerate() {
            if let Some(found) = self.damage(partition) {
                damage = Some(found);
                continue;
            }
            loop {
                if self.out.len() >= self.request.max || self.has_passed_enough() {
                    let more = turns[nth..].iter().any(|partition| self.may_have(*partition));
                    return self.end(more, damage);
                }
                match self.ordered_step(partition) {
                    Step::Granted => {}
                    Step::Empty => break,
                    Step::Enough => return self.end(true, damage),
                    Step::Need(lane, sequence) => return Ok(Stop::Need(lane, sequence)),
                }
            }
        }
        self.end(false, damage)
    }

    fn end(&self, more: bool, damage: Option<StoreError>) -> Result<Stop, StoreError> {
        match damage {
            Some(damage) if self.out.is_empty() => Err(damage),
            _ => Ok(Stop::Done { more }),
        }
    }

    /// The partitions, beginning with another one each call, so that none is always served first.
    fn turns(&mut self) -> Vec<Partition> {
        let count = self.partitions.len();
        if self.out.is_empty() {
            self.group.turn_partition = (self.group.turn_partition + 1) % count.max(1);
        }
        (0..count).map(|nth| ((self.group.turn_partition + nth) % count) as Partition).collect()
    }

    fn damage(&self, partition: Partition) -> Option<StoreError> {
        self.partitions[usize::from(partition)].damage.clone()
    }

    /// Whether a partition may have something to grant; where order is kept, its keys may yet hold it back.
    fn may_have(&mut self, partition: Partition) -> bool {
        self.damage(partition).is_none() && (0..LANES).any(|lane| self.candidate(partition, lane as u8).is_some())
    }

    fn lane_id(&self, partition: Partition, lane: u8) -> LaneId {
        LaneId { topic: self.request.topic, partition, lane }
    }

    /// The next message of a lane that might be granted.
    fn candidate(&mut self, partition: Partition, lane: u8) -> Option<u64> {
        let end = self.partitions[usize::from(partition)].lanes[usize::from(lane)].as_deref()?.end;
        let full = self.group.exceptions >= self.exceptions_max;
        let (now, ordered) = (self.now, self.request.ordered);
        let cursor = self.group.partitions[usize::from(partition)].cursor(lane);
        loop {
            if let Some(ready) = cursor.ready.first() {
                return Some(*ready);
            }
            let sequence = cursor.advance(end)?;
            match cursor.exceptions.get(&sequence).map(|exception| &exception.standing) {
                None => return (!full).then_some(sequence),
                // Its key has to be looked at first.
                Some(_) if ordered => return Some(sequence),
                Some(Standing::Waits(at)) if *at <= now => {
                    cursor.ready.insert(sequence);
                }
                Some(_) => {}
            }
            cursor.next = sequence + 1;
        }
    }

    /// Looks at lane after lane until one message is granted.
    fn step(&mut self, partition: Partition, lane: u8) -> Step {
        while let Some(sequence) = self.candidate(partition, lane) {
            let id = self.lane_id(partition, lane);
            let Some(entry) = self.entry(id, sequence) else { return Step::Need(id, sequence) };
            if self.is_past(&entry) {
                self.pass(id, sequence, &entry);
                if self.has_passed_enough() {
                    return Step::Enough;
                }
                continue;
            }
            return self.give(id, sequence, entry, None);
        }
        Step::Empty
    }

    fn ordered_step(&mut self, partition: Partition) -> Step {
        loop {
            if self.has_passed_enough() {
                return Step::Enough;
            }
            let mut first: Option<(Entry, LaneId, u64)> = None;
            for lane in 0..LANES as u8 {
                let Some(sequence) = self.candidate(partition, lane) else { continue };
                let id = self.lane_id(partition, lane);
                let Some(entry) = self.entry(id, sequence) else { return Step::Need(id, sequence) };
                if first.as_ref().is_none_or(|(known, ..)| entry.stamp < known.stamp) {
                    first = Some((entry, id, sequence));
                }
            }
            let Some((entry, id, sequence)) = first else { return Step::Empty };
            let held =
                self.group.exception(partition, offset(id, sequence)).is_some_and(|known| known.held().is_some());
            if self.is_past(&entry) && !held {
                self.pass(id, sequence, &entry);
                continue;
            }
            match self.queue_up(id, sequence, entry.body.head.key) {
                Turn::Go => return self.give(id, sequence, entry.clone(), entry.body.head.key),
                Turn::Next => {}
                Turn::Full => return Step::Empty,
            }
        }
    }

    /// Whether it is a message's turn under its key; if not, where it waits.
    fn queue_up(&mut self, id: LaneId, sequence: u64, key: Option<u64>) -> Turn {
        let (place, parked_max, now) = (offset(id, sequence), self.parked_max, self.now);
        let part = &mut self.group.partitions[usize::from(id.partition)];
        let ahead = key.and_then(|key| part.keys.get_mut(&key)).filter(|queue| queue.head != place);
        if let Some(queue) = ahead {
            if part.parked >= parked_max {
                return Turn::Full;
            }
            let Some(cursor) = &mut part.cursors[usize::from(id.lane)] else { return Turn::Next };
            cursor.next = cursor.next.max(sequence + 1);
            cursor.ready.remove(&sequence);
            let exception = cursor.exceptions.entry(sequence).or_insert_with(|| {
                self.group.exceptions += 1;
                Exception { attempts: 0, standing: Standing::Waits(Timestamp(0)), failures: Failures::default(), key }
            });
            exception.key = key;
            if let Standing::Waits(at) = exception.standing {
                exception.standing = Standing::Parked(at);
                part.parked += 1;
            }
            queue.parked.push_back(place);
            return Turn::Next;
        }
        if let Some(key) = key {
            part.keys.entry(key).or_insert_with(|| KeyQueue { head: place, parked: Default::default() });
        }
        let Some(cursor) = &mut part.cursors[usize::from(id.lane)] else { return Turn::Next };
        let Some(exception) = cursor.exceptions.get_mut(&sequence) else { return Turn::Go };
        exception.key = key;
        match exception.standing {
            Standing::Waits(at) if at <= now => Turn::Go,
            _ => {
                cursor.next = cursor.next.max(sequence + 1);
                Turn::Next
            }
        }
    }

    fn entry(&self, id: LaneId, sequence: u64) -> Option<Entry> {
        let lane = self.partitions[usize::from(id.partition)].lanes[usize::from(id.lane)].as_deref()?;
        let pinned = || self.pins.iter().find(|(pinned, _)| *pinned == id).and_then(|(_, block)| block.get(sequence));
        lane.entry(sequence).or_else(|| self.cache.entry(id, sequence)).or_else(pinned).cloned()
    }

    /// Whether a message may no longer be delivered.
    fn is_past(&self, entry: &Entry) -> bool {
        entry.at <= self.cutoff || entry.body.head.expires_at.is_some_and(|at| at <= self.now)
    }

    fn has_passed_enough(&self) -> bool {
        self.passed.len() + self.buried >= PASSES_MAX
    }

    /// Passes over a message that may no longer be delivered. What retention removes is gone in any case.
    fn pass(&mut self, id: LaneId, sequence: u64, entry: &Entry) {
        let (partition, place) = (id.partition, offset(id, sequence));
        if self.buries && entry.at > self.cutoff {
            self.group.exhaust(partition, place, self.now);
            self.buried += 1;
        } else if self.group.settle(partition, place, self.now) {
            self.group.totals.expired += 1;
            self.passed.push((partition, place));
        }
    }

    fn give(&mut self, id: LaneId, sequence: u64, entry: Entry, key: Option<u64>) -> Step {
        let payload = entry.body.payload.len();
        if !self.out.is_empty() && self.bytes + payload > self.request.bytes_max {
            return Step::Enough;
        }
        self.bytes += payload;
        let place = offset(id, sequence);
        let (grant, deadline) = (*self.next_grant, self.now.plus(self.request.duration));
        *self.next_grant += 1;
        let message = entry.body.head.id;
        let cursor = self.group.partitions[usize::from(id.partition)].cursor(id.lane);
        cursor.ready.remove(&sequence);
        cursor.next = cursor.next.max(sequence + 1);
        let exception = cursor.exceptions.entry(sequence).or_insert_with(|| {
            self.group.exceptions += 1;
            Exception { attempts: 0, standing: Standing::Exhausted, failures: Failures::default(), key }
        });
        exception.attempts = exception.attempts.saturating_add(1);
        let holder = Arc::clone(&self.request.holder);
        exception.standing = Standing::Held(Box::new(Held { grant, deadline, holder, id: message, settling: false }));
        let attempt = exception.attempts;
        self.group.deadlines.insert((deadline, id.partition, place));
        self.group.held.insert(message, (id.partition, place));
        self.group.turns += 1;
        if self.request.mode == Mode::AtLeastOnce {
            self.group.totals.delivered += 1;
        }
        let position = Position { topic: id.topic, partition: id.partition, offset: place };
        let receipt = Receipt { position, group: self.request.group, epoch: self.epoch, grant, attempt };
        self.out.push(Granted { position, entry, attempt, deadline, receipt });
        Step::Granted
    }
}

enum Turn {
    /// It may be granted.
    Go,
    /// It waits; look at the next.
    Next,
    /// Too many wait.
    Full,
}
