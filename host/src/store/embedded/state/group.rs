//! A group on a topic: its cursors, its leases and their clocks. Invariant: at most one live lease per message (an
//! exception has one standing), and each lease and each retry stands in exactly one timer. Never touches the log.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::message::{FailedAttempt, MessageId, Offset, PRIORITY_MAX, Partition};
use crate::store::GroupSpec;

use super::cursor::{Cursor, Exception, Standing};
use super::mark::Mark;
use super::ranges::Ranges;

/// Lanes of a partition: one a priority.
pub const LANES: usize = PRIORITY_MAX as usize + 1;

/// A moment at which something happens to a message.
type Timer = (Timestamp, Partition, Offset);

/// Who is first under a key, and who waits behind.
#[derive(Debug)]
pub struct KeyQueue {
    /// Leased, or waits for its retry, or may be granted.
    pub head: Offset,
    /// In the order of appending.
    pub parked: VecDeque<Offset>,
}

/// A group's state in one partition.
#[derive(Debug, Default)]
pub struct GroupPartition {
    /// One a lane; a lane without one has never had a message looked at.
    pub cursors: [Option<Box<Cursor>>; LANES],
    /// Keys that have an unsettled message below the frontier; only where order is kept.
    pub keys: HashMap<u64, KeyQueue>,
    /// Messages parked behind others of their key.
    pub parked: usize,
}

impl GroupPartition {
    /// The cursor of a lane. A lane that came after the group is wholly new to it: from 0.
    pub fn cursor(&mut self, lane: u8) -> &mut Cursor {
        self.cursors[usize::from(lane)].get_or_insert_default()
    }

    /// An exception.
    pub fn exception(&mut self, offset: Offset) -> Option<&mut Exception> {
        self.cursors.get_mut(usize::from(offset.lane()))?.as_mut()?.exceptions.get_mut(&offset.sequence())
    }
}

/// What a group has done since it was made.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
pub struct Totals {
    /// See [`crate::store::GroupStats`].
    pub acked: u64,
    /// See [`crate::store::GroupStats`].
    pub dead_lettered: u64,
    /// See [`crate::store::GroupStats`].
    pub expired: u64,
    /// See [`crate::store::GroupStats`].
    pub delivered: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Group {
    /// Its settings.
    pub spec: GroupSpec,
    /// One a partition.
    pub partitions: Vec<GroupPartition>,
    /// When leases end.
    pub deadlines: BTreeSet<Timer>,
    /// When retries may be granted.
    pub retries: BTreeSet<Timer>,
    /// What becomes a dead letter with the next tick.
    pub exhausted: BTreeSet<(Partition, Offset)>,
    /// Live leases by message, for settling without a receipt.
    pub held: HashMap<MessageId, (Partition, Offset)>,
    /// Grants so far, for the turns of the lowest lane.
    pub turns: u64,
    /// The partition that the next lease begins with.
    pub turn_partition: usize,
    /// Whether the last lease kept order.
    pub ordered: bool,
    /// Exceptions in all cursors.
    pub exceptions: usize,
    /// Counters.
    pub totals: Totals,
    /// Named snapshots of its position.
    pub marks: BTreeMap<Arc<str>, Mark>,
}

impl Group {
    /// A group without cursors.
    #[must_use]
    pub fn new(spec: GroupSpec, partitions: u16) -> Group {
        Group {
            spec,
            partitions: (0..partitions).map(|_| GroupPartition::default()).collect(),
            deadlines: BTreeSet::new(),
            retries: BTreeSet::new(),
            exhausted: BTreeSet::new(),
            held: HashMap::new(),
            turns: 0,
            turn_partition: 0,
            ordered: false,
            exceptions: 0,
            totals: Totals::default(),
            marks: BTreeMap::new(),
        }
    }

    /// An exception.
    #[must_use]
    pub fn exception(&self, partition: Partition, offset: Offset) -> Option<&Exception> {
        let cursor = self.partitions.get(usize::from(partition))?.cursors.get(usize::from(offset.lane()))?.as_ref()?;
        cursor.exceptions.get(&offset.sequence())
    }

    /// An exception, to be changed.
    pub fn exception_mut(&mut self, partition: Partition, offset: Offset) -> Option<&mut Exception> {
        self.partitions.get_mut(usize::from(partition))?.exception(offset)
    }

    /// How many leases live.
    #[must_use]
    pub fn held_count(&self) -> u64 {
        self.deadlines.len() as u64
    }

    /// Settles a message; false if it was settled before.
    pub fn settle(&mut self, partition: Partition, offset: Offset, now: Timestamp) -> bool {
        let Some(part) = self.partitions.get_mut(usize::from(partition)) else { return false };
        let Some(exception) = part.cursor(offset.lane()).settle(offset.sequence()) else { return false };
        if let Some(exception) = exception {
            self.drop_exception(partition, offset, &exception, now);
        }
        true
    }

    /// Puts a message back to wait until `at`; nothing if it is settled.
    pub fn wait(&mut self, place: (Partition, Offset), attempts: u32, at: Timestamp, failure: Option<FailedAttempt>) {
        let (partition, offset) = place;
        let Some(part) = self.partitions.get_mut(usize::from(partition)) else { return };
        let cursor = part.cursor(offset.lane());
        if cursor.is_settled(offset.sequence()) {
            return;
        }
        cursor.ready.remove(&offset.sequence());
        let below_frontier = offset.sequence() < cursor.next;
        let known = cursor.exceptions.remove(&offset.sequence());
        match &known {
            Some(exception) => self.clear_timers(place, exception),
            None => self.exceptions += 1,
        }
        let (key, mut failures) = known.map(|known| (known.key, known.failures)).unwrap_or_default();
        if let Some(failure) = failure {
            failures.push(failure);
        }
        let exception = Exception { attempts, standing: Standing::Waits(at), failures, key };
        let cursor = self.partitions[usize::from(partition)].cursor(offset.lane());
        cursor.exceptions.insert(offset.sequence(), exception);
        if at > Timestamp(0) {
            self.retries.insert((at, partition, offset));
        } else if below_frontier {
            cursor.ready.insert(offset.sequence());
        }
    }

    /// Ends the leases and retries of messages below `floor` in a lane; returns how many were not settled.
    pub fn raise(&mut self, partition: Partition, lane: u8, floor: u64, now: Timestamp) -> u64 {
        let Some(part) = self.partitions.get_mut(usize::from(partition)) else { return 0 };
        let cursor = part.cursor(lane);
        let kept = cursor.exceptions.split_off(&floor);
        let gone = std::mem::replace(&mut cursor.exceptions, kept);
        let expired = cursor.raise(floor);
        for (sequence, exception) in gone {
            self.drop_exception(partition, Offset::new(lane, sequence), &exception, now);
        }
        expired
    }

    /// Settles all below `end` in a lane but `kept`, which rises; returns how many were not.
    pub fn purge(&mut self, partition: Partition, lane: u8, end: u64, kept: &[u64], now: Timestamp) -> u64 {
        let mut settled = 0;
        if kept.is_empty() {
            return self.raise(partition, lane, end, now);
        }
        let Some(part) = self.partitions.get_mut(usize::from(partition)) else { return 0 };
        let cursor = part.cursor(lane);
        let floor = cursor.floor;
        let gone: Vec<u64> = cursor
            .exceptions
            .range(..end)
            .map(|(sequence, _)| *sequence)
            .filter(|sequence| kept.binary_search(sequence).is_err())
            .collect();
        for sequence in gone {
            settled += u64::from(self.settle(partition, Offset::new(lane, sequence), now));
        }
        let mut from = floor;
        for stop in kept.iter().copied().filter(|kept| *kept >= floor && *kept < end).chain([end]) {
            settled += self.partitions[usize::from(partition)].cursor(lane).settle_range(from..stop);
            from = stop + 1;
        }
        settled
    }

    /// Puts the cursor of a lane elsewhere: its leases end, its retries are forgotten.
    pub fn place(&mut self, partition: Partition, lane: u8, floor: u64, settled: Ranges) {
        let Some(part) = self.partitions.get_mut(usize::from(partition)) else { return };
        let gone = std::mem::take(&mut part.cursor(lane).exceptions);
        for (sequence, exception) in gone {
            self.clear_timers((partition, Offset::new(lane, sequence)), &exception);
            self.exceptions -= 1;
        }
        *self.partitions[usize::from(partition)].cursor(lane) = Cursor::at(floor, settled);
    }

    /// Ends leases whose deadline has come and readies retries that are due; whether anything may now be granted.
    pub fn run_timers(&mut self, now: Timestamp) -> bool {
        let mut moved = false;
        while let Some(&(deadline, partition, offset)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            moved |= self.end_lease(partition, offset);
        }
        while let Some(&(at, partition, offset)) = self.retries.first() {
            if at > now {
                break;
            }
            self.retries.pop_first();
            let part = &mut self.partitions[usize::from(partition)];
            let cursor = part.cursor(offset.lane());
            if let Some(Standing::Waits(_)) = cursor.exceptions.get(&offset.sequence()).map(|known| &known.standing)
                && offset.sequence() < cursor.next
            {
                cursor.ready.insert(offset.sequence());
            }
            moved = true;
        }
        moved
    }

    /// Makes a message that nobody holds a dead letter with the next tick. What waits behind it under its key may go.
    pub fn exhaust(&mut self, partition: Partition, offset: Offset, now: Timestamp) {
        let Some(part) = self.partitions.get_mut(usize::from(partition)) else { return };
        let cursor = part.cursor(offset.lane());
        cursor.ready.remove(&offset.sequence());
        cursor.next = cursor.next.max(offset.sequence() + 1);
        let known = cursor.exceptions.remove(&offset.sequence());
        match &known {
            Some(exception) => self.clear_timers((partition, offset), exception),
            None => self.exceptions += 1,
        }
        let (attempts, failures, key) =
            known.map(|known| (known.attempts, known.failures, known.key)).unwrap_or_default();
        let exception = Exception { attempts, standing: Standing::Exhausted, failures, key: None };
        self.partitions[usize::from(partition)].cursor(offset.lane()).exceptions.insert(offset.sequence(), exception);
        self.exhausted.insert((partition, offset));
        if let Some(key) = key {
            self.next_of_key(partition, key, offset, now);
        }
    }

    /// Ends a lease by its deadline; whether the message may be granted again. The attempt counts.
    fn end_lease(&mut self, partition: Partition, offset: Offset) -> bool {
        let attempts_max = self.spec.attempts_max;
        let Some(exception) = self.exception_mut(partition, offset) else { return false };
        let Standing::Held(held) = &exception.standing else { return false };
        if held.settling {
            return false;
        }
        let (id, exhausted) = (held.id, exception.attempts >= attempts_max);
        exception.standing = if exhausted { Standing::Exhausted } else { Standing::Waits(Timestamp(0)) };
        self.held.remove(&id);
        if exhausted {
            self.exhausted.insert((partition, offset));
        } else {
            // Beyond the frontier it waits for the frontier, like all that a rewind put there.
            let cursor = self.partitions[usize::from(partition)].cursor(offset.lane());
            if offset.sequence() < cursor.next {
                cursor.ready.insert(offset.sequence());
            }
        }
        true
    }

    /// Gives a lease back that never reached anyone, as if it had not been granted.
    pub fn ungrant(&mut self, partition: Partition, offset: Offset, grant: u64) {
        let Some(exception) = self.exception_mut(partition, offset) else { return };
        // One that is being settled on the disk is left to that.
        if exception.held().is_some_and(|held| held.grant == grant && !held.settling) {
            let attempts = exception.attempts - 1;
            self.wait((partition, offset), attempts, Timestamp(0), None);
        }
    }

    /// Lets a lease be settled or expire again after a settlement did not reach the disk.
    pub fn unmark(&mut self, partition: Partition, offset: Offset, grant: u64) {
        let Some(exception) = self.exception_mut(partition, offset) else { return };
        let Standing::Held(held) = &mut exception.standing else { return };
        if held.grant == grant {
            held.settling = false;
            // Its timer may have fired meanwhile and found it being settled.
            let deadline = held.deadline;
            self.deadlines.insert((deadline, partition, offset));
        }
    }

    /// Begins again at the floor, looking at each unsettled message anew: after an opening, and when order comes or goes.
    /// Leases live on.
    pub fn rewind(&mut self, now: Timestamp) {
        self.retries.clear();
        let attempts_max = self.spec.attempts_max;
        for (number, part) in self.partitions.iter_mut().enumerate() {
            part.keys.clear();
            part.parked = 0;
            for (lane, cursor) in part.cursors.iter_mut().enumerate() {
                let Some(cursor) = cursor else { continue };
                cursor.next = cursor.floor;
                cursor.ready.clear();
                let before = cursor.exceptions.len();
                // One that is to be a dead letter is in that queue, and stays what it is.
                let stays = |known: &Exception| known.held().is_some() || matches!(known.standing, Standing::Exhausted);
                cursor.exceptions.retain(|_, exception| stays(exception) || !exception.is_blank());
                self.exceptions -= before - cursor.exceptions.len();
                for (sequence, exception) in &mut cursor.exceptions {
                    let offset = Offset::new(lane as u8, *sequence);
                    exception.key = None;
                    let (Standing::Waits(at) | Standing::Parked(at)) = exception.standing else { continue };
                    if exception.attempts >= attempts_max && at <= Timestamp(0) {
                        exception.standing = Standing::Exhausted;
                        self.exhausted.insert((number as Partition, offset));
                        continue;
                    }
                    exception.standing = Standing::Waits(at);
                    if at > now {
                        self.retries.insert((at, number as Partition, offset));
                    }
                }
            }
        }
    }

    /// What goes with an exception that is gone: timers, and the turn of the next under its key.
    fn drop_exception(&mut self, partition: Partition, offset: Offset, exception: &Exception, now: Timestamp) {
        self.clear_timers((partition, offset), exception);
        self.exceptions -= 1;
        let part = &mut self.partitions[usize::from(partition)];
        if matches!(exception.standing, Standing::Parked(_)) {
            // Its place in the queue stays behind; it is passed over when its turn comes.
            part.parked = part.parked.saturating_sub(1);
        }
        if let Some(key) = exception.key {
            self.next_of_key(partition, key, offset, now);
        }
    }

    /// Lets the next message under a key go, if `offset` was the one before it.
    fn next_of_key(&mut self, partition: Partition, key: u64, offset: Offset, now: Timestamp) {
        let part = &mut self.partitions[usize::from(partition)];
        let Some(queue) = part.keys.get_mut(&key).filter(|queue| queue.head == offset) else { return };
        while let Some(next) = queue.parked.pop_front() {
            let Some(cursor) = &mut part.cursors[usize::from(next.lane())] else { continue };
            let Some(exception) = cursor.exceptions.get_mut(&next.sequence()) else { continue };
            let Standing::Parked(at) = exception.standing else { continue };
            exception.standing = Standing::Waits(at);
            part.parked = part.parked.saturating_sub(1);
            queue.head = next;
            if at > now {
                self.retries.insert((at, partition, next));
            } else {
                cursor.ready.insert(next.sequence());
            }
            return;
        }
        part.keys.remove(&key);
    }

    fn clear_timers(&mut self, place: (Partition, Offset), exception: &Exception) {
        let (partition, offset) = place;
        match &exception.standing {
            Standing::Held(held) => {
                self.deadlines.remove(&(held.deadline, partition, offset));
                self.held.remove(&held.id);
            }
            Standing::Waits(at) | Standing::Parked(at) => {
                self.retries.remove(&(*at, partition, offset));
            }
            Standing::Exhausted => {
                self.exhausted.remove(&(partition, offset));
            }
        }
    }
}
