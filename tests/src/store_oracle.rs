//! What a message store should do, written as simply as possible: a list of messages, and for each message and group what
//! became of it. Invariant: it decides by looking at every message each time, and keeps nothing that it could work out. It
//! is no store: where the contract leaves a store free (which grants a power cut forgets, when an expired message is
//! counted), it says what is allowed and takes over what it is shown. A difference is a panic that says what was expected.

mod append;
mod log;

use std::collections::{BTreeMap, BTreeSet};

use sluice::clock::Timestamp;
use sluice::message::{DeadLetterFacts, GroupId, Message, MessageId, Partition, Position, TopicId};
use sluice::store::{
    Fate, GroupSpec, LeaseRequest, Leased, Mode, Receipt, SeekTo, SettleRefused, Settled, Settlement, TopicSpec,
    TopicStats,
};

use log::check_lanes;

/// All topics, and the time.
#[derive(Debug, Default, Clone)]
pub struct Oracle {
    /// The store's time.
    pub now: Timestamp,
    /// The topics.
    pub topics: BTreeMap<TopicId, Log>,
    /// What must turn up in the dead-letter topic.
    dying: Vec<Death>,
    /// The epoch of the last grant: never falls, and rises with an opening.
    epoch: u64,
    /// Whether several brokers have the store open, each with an epoch of its own.
    pub many_brokers: bool,
    /// The highest epoch of the openings before.
    epoch_before: u64,
    opened: bool,
}

/// One topic.
#[derive(Debug, Clone)]
pub struct Log {
    spec: TopicSpec,
    /// What is in the log, in the order of appending, and not removed by retention.
    pub kept: Vec<Kept>,
    /// What waits until it is due.
    pub scheduled: Vec<Scheduled>,
    keys: Vec<Key>,
    ends: BTreeMap<(Partition, u8), u64>,
    revisions: BTreeMap<Partition, u64>,
    /// The groups.
    pub groups: BTreeMap<GroupId, Cursor>,
    appended: u64,
}

/// A message in the log.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Where it stands.
    pub position: Position,
    /// It.
    pub message: Message,
    at: Timestamp,
    target: Option<GroupId>,
    erased: bool,
}

/// A message that waits until it is due.
#[derive(Debug, Clone)]
pub struct Scheduled {
    due: Timestamp,
    partition: Partition,
    /// It.
    pub message: Message,
    target: Option<GroupId>,
}

#[derive(Debug, Clone)]
struct Key {
    name: String,
    hash: [u8; 16],
    id: MessageId,
    fate: Fate,
    at: Timestamp,
}

/// One group.
#[derive(Debug, Clone)]
pub struct Cursor {
    spec: GroupSpec,
    /// What became of each message; none for those that are not for it.
    states: BTreeMap<Position, Delivery>,
    at_most_once: bool,
    acked: u64,
    dead: u64,
    expired: u64,
    delivered: (u64, u64),
    /// Whether it is still known how many messages were counted as expired.
    expired_known: bool,
    /// What was settled when each was made.
    snapshots: BTreeMap<u8, BTreeSet<Position>>,
}

#[derive(Debug, Clone, Copy)]
enum Delivery {
    Waiting { from: Timestamp, tries: Tries },
    Leased { receipt: Receipt, deadline: Timestamp, tries: Tries },
    Settled,
}

/// Attempts so far: as many as were counted, unless a power cut made the store forget some.
#[derive(Debug, Clone, Copy, Default)]
struct Tries {
    low: u32,
    high: u32,
    /// As the last settlement has it, which is on the disk.
    durable: u32,
}

#[derive(Debug, Clone)]
struct Death {
    group: GroupId,
    position: Position,
    /// Whether it may also not happen: the grant that was the last one may be forgotten.
    optional: bool,
}

/// The word of a dead letter that was never delivered in time.
const EXPIRED: &str = "EXPIRED";

const FRESH: Delivery = Delivery::Waiting { from: Timestamp(0), tries: Tries { low: 0, high: 0, durable: 0 } };

impl Oracle {
    /// A topic is there.
    pub fn put_topic(&mut self, spec: TopicSpec) {
        let id = spec.id;
        let log = Log {
            spec,
            kept: Vec::new(),
            scheduled: Vec::new(),
            keys: Vec::new(),
            ends: BTreeMap::new(),
            revisions: BTreeMap::new(),
            groups: BTreeMap::new(),
            appended: 0,
        };
        self.topics.insert(id, log);
    }

    /// A group is there; nothing if it was before.
    pub fn put_group(&mut self, spec: GroupSpec) {
        let log = self.topics.get_mut(&spec.topic).expect("the model knows its topics");
        if log.groups.contains_key(&spec.group) {
            return;
        }
        let mut cursor = Cursor {
            spec: spec.clone(),
            states: BTreeMap::new(),
            at_most_once: false,
            acked: 0,
            dead: 0,
            expired: 0,
            delivered: (0, 0),
            expired_known: true,
            snapshots: BTreeMap::new(),
        };
        for kept in log.kept.iter().filter(|kept| kept.is_for(spec.group)) {
            let waits = match spec.start {
                SeekTo::Earliest => true,
                SeekTo::Latest => false,
                SeekTo::Time(time) => kept.at >= time,
                // Elsewhere than in the named lane a new cursor begins with the oldest.
                SeekTo::Offset(partition, offset) => !kept.is_in(partition, offset) || kept.position.offset >= offset,
            };
            cursor.states.insert(kept.position, if waits && !kept.erased { FRESH } else { Delivery::Settled });
        }
        log.groups.insert(spec.group, cursor);
    }

    fn log(&mut self, topic: TopicId) -> &mut Log {
        self.topics.get_mut(&topic).expect("the model knows its topics")
    }

    fn take_off(&mut self, position: Position) {
        let cursor = self.log(position.topic).groups.get_mut(&GroupId::SHARED).expect("a list has its cursor");
        if let Some(state) = cursor.states.get_mut(&position) {
            *state = Delivery::Settled;
        }
    }

    /// Checks how many of these dead letters were on their list, and takes them off.
    pub fn discard(&mut self, positions: &[Position], answer: usize) {
        let listed: BTreeSet<Position> = self.listed(positions[0].topic).into_iter().collect();
        let asked: BTreeSet<Position> = positions.iter().copied().collect();
        assert_eq!(answer, asked.intersection(&listed).count());
        asked.into_iter().for_each(|position| self.take_off(position));
    }

    /// The dead letters on the list of a dead-letter topic, oldest first.
    #[must_use]
    pub fn listed(&self, topic: TopicId) -> Vec<Position> {
        let log = &self.topics[&topic];
        let waits =
            |kept: &&Kept| matches!(log.groups[&GroupId::SHARED].states[&kept.position], Delivery::Waiting { .. });
        log.kept.iter().filter(|kept| !kept.erased).filter(waits).map(|kept| kept.position).collect()
    }

    /// Checks what was granted, and grants it.
    pub fn lease(&mut self, request: &LeaseRequest, granted: &Leased) {
        self.lease_up_to(request, granted, true);
    }

    /// The same where a read may have failed in the midst: there may be more.
    pub fn lease_in_part(&mut self, request: &LeaseRequest, granted: &Leased) {
        self.lease_up_to(request, granted, false);
    }

    /// Takes over what was granted by a store with another past: a message that is settled in this one stays so.
    pub fn lease_unseen(&mut self, request: &LeaseRequest, granted: &Leased) {
        let Some(cursor) = self.log(request.topic).groups.get_mut(&request.group) else { return };
        let count = granted.leases.len() as u64;
        cursor.delivered = (cursor.delivered.0 + count, cursor.delivered.1 + count);
        for lease in &granted.leases {
            let state = cursor.states.get_mut(&lease.position);
            if let Some(state) = state
                && let Delivery::Waiting { tries: Tries { durable, .. }, .. } = *state
            {
                let tries = Tries { low: lease.attempt, high: lease.attempt, durable };
                *state = Delivery::Leased { receipt: lease.receipt, deadline: lease.deadline, tries };
            }
        }
        self.epoch = granted.leases.last().map_or(self.epoch, |lease| lease.receipt.epoch);
    }

    fn lease_up_to(&mut self, request: &LeaseRequest, granted: &Leased, whole: bool) {
        let now = self.now;
        let log = self.topics.get_mut(&request.topic).expect("the model knows its topics");
        let candidates = log.candidates(request, now);
        let places: Vec<Position> = granted.leases.iter().map(|lease| lease.position).collect();
        let distinct: BTreeSet<Position> = places.iter().copied().collect();
        assert!(distinct.len() == places.len() && places.len() <= request.max, "{places:?}");
        for place in &places {
            assert!(
                candidates.contains_key(place),
                "{place:?} is not to be granted now: {:?}",
                log.told(request.group, *place)
            );
        }
        let left: Vec<Position> = candidates
            .iter()
            .filter(|(place, certain)| **certain && !distinct.contains(place))
            .map(|(place, _)| *place)
            .collect();
        assert!(
            !whole || places.len() == request.max || left.is_empty(),
            "{left:?} wait and were not granted; {places:?} were, more {}: {request:?}",
            granted.more
        );
        assert!(granted.more || left.is_empty(), "{left:?} wait, and there is said to be no more");
        if request.ordered {
            log.check_append_order(&places);
        } else {
            check_lanes(&places, &left, &candidates);
        }
        for lease in &granted.leases {
            let message =
                &log.kept.iter().find(|kept| kept.position == lease.position).expect("a candidate is kept").message;
            assert_eq!(lease.message, *message);
            assert_eq!(lease.deadline, now.plus(request.duration));
            let receipt = lease.receipt;
            assert_eq!(
                (receipt.position, receipt.group, receipt.attempt),
                (lease.position, request.group, lease.attempt)
            );
            if self.opened {
                self.epoch_before = self.epoch;
            }
            let same = self.many_brokers || self.opened || self.epoch == 0 || receipt.epoch == self.epoch;
            assert!(same && receipt.epoch > self.epoch_before, "epoch {} after {}", receipt.epoch, self.epoch);
            (self.epoch, self.opened) = (receipt.epoch.max(self.epoch), false);
            let cursor = log.groups.get_mut(&request.group).expect("it was leased for");
            let state = cursor.states.get_mut(&lease.position).expect("a candidate has a state");
            let Delivery::Waiting { tries, .. } = *state else { unreachable!("a candidate waits") };
            let allowed = tries.low + 1..=tries.high + 1;
            assert!(allowed.contains(&lease.attempt), "attempt {} where {allowed:?} is possible", lease.attempt);
            let tries = Tries { low: lease.attempt, high: lease.attempt, durable: tries.durable };
            *state = match request.mode {
                Mode::AtLeastOnce => Delivery::Leased { receipt, deadline: lease.deadline, tries },
                Mode::AtMostOnce => Delivery::Settled,
            };
            cursor.at_most_once |= request.mode == Mode::AtMostOnce;
            cursor.delivered = (cursor.delivered.0 + 1, cursor.delivered.1 + 1);
        }
    }

    /// Checks what a settlement came to, and settles.
    pub fn settle(&mut self, receipt: &Receipt, settlement: &Settlement, result: Result<Settled, SettleRefused>) {
        assert_eq!(result, self.settle_unseen(receipt, settlement), "{receipt:?}");
    }

    /// Settles, and says what that must come to.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn settle_unseen(&mut self, receipt: &Receipt, settlement: &Settlement) -> Result<Settled, SettleRefused> {
        let now = self.now;
        let log = self.topics.get_mut(&receipt.position.topic).expect("the model knows its topics");
        let dead_letters = log.spec.dead_letter.is_some();
        let Some(cursor) = log.groups.get_mut(&receipt.group) else {
            return Err(SettleRefused::NotFound);
        };
        let state = cursor.states.get_mut(&receipt.position);
        let live = match state.as_deref() {
            Some(Delivery::Leased { receipt: held, deadline, tries }) if held == receipt && *deadline > now => {
                Some(*tries)
            }
            _ => None,
        };
        let (Some(state), Some(tries)) = (state, live) else {
            return Err(SettleRefused::LeaseExpired);
        };
        let last = tries.high >= cursor.spec.attempts_max;
        Ok(match settlement {
            Settlement::Ack => {
                *state = Delivery::Settled;
                cursor.acked += 1;
                Settled::Acked
            }
            Settlement::Retry { at, .. } if !last => {
                *state = Delivery::Waiting { from: *at, tries: Tries { durable: tries.high, ..tries } };
                Settled::Retrying { at: *at }
            }
            Settlement::Retry { .. } | Settlement::DeadLetter { .. } => {
                *state = Delivery::Settled;
                cursor.dead += 1;
                if dead_letters {
                    self.dying.push(Death { group: receipt.group, position: receipt.position, optional: false });
                }
                Settled::DeadLettered
            }
            Settlement::Release => {
                let before = tries.high - 1;
                *state = Delivery::Waiting {
                    from: Timestamp(0),
                    tries: Tries { low: before, high: before, durable: before },
                };
                Settled::Released
            }
            Settlement::Extend { duration } => {
                let deadline = now.plus(*duration);
                *state = Delivery::Leased { receipt: *receipt, deadline, tries };
                Settled::Extended { until: deadline }
            }
        })
    }

    /// Ends the leases whose deadline has passed; what was scheduled and is due is told by [`Oracle::observe`].
    pub fn tick(&mut self) {
        for log in self.topics.values_mut() {
            for cursor in log.groups.values_mut() {
                let (attempts_max, mut dead) = (cursor.spec.attempts_max, Vec::new());
                for (position, state) in &mut cursor.states {
                    let Delivery::Leased { deadline, tries, .. } = *state else { continue };
                    if deadline > self.now {
                        continue;
                    }
                    *state = Delivery::Waiting { from: Timestamp(0), tries };
                    if tries.high >= attempts_max {
                        *state = Delivery::Settled;
                        dead.push(*position);
                    }
                }
                cursor.dead += dead.len() as u64;
                let group = cursor.spec.group;
                self.dying.extend(dead.into_iter().map(|position| Death { group, position, optional: false }));
            }
        }
    }

    /// All leases end. What is not on the disk may be forgotten: that a message was granted at all.
    pub fn reopen(&mut self, crashed: bool) {
        self.opened = true;
        for log in self.topics.values_mut() {
            for cursor in log.groups.values_mut() {
                if crashed {
                    // Counted from what the last settlement wrote: nothing less is sure.
                    cursor.delivered.0 = 0;
                    cursor.expired_known = false;
                }
                let (attempts_max, group) = (cursor.spec.attempts_max, cursor.spec.group);
                for (position, state) in &mut cursor.states {
                    let (from, mut tries) = match *state {
                        Delivery::Leased { tries, .. } => (Timestamp(0), tries),
                        Delivery::Waiting { from, tries } => (from, tries),
                        Delivery::Settled => continue,
                    };
                    if crashed {
                        tries.low = tries.durable.min(tries.low);
                    } else {
                        tries.durable = tries.low;
                    }
                    *state = Delivery::Waiting { from, tries };
                    if tries.high >= attempts_max {
                        self.dying.push(Death { group, position: *position, optional: tries.low < attempts_max });
                    }
                }
            }
        }
    }

    /// Retention removes what is too old.
    pub fn retain(&mut self) {
        let now = self.now;
        for log in self.topics.values_mut() {
            let cutoff = now.minus(log.spec.retention);
            let (old, kept) = std::mem::take(&mut log.kept).into_iter().partition(|kept| kept.at <= cutoff);
            log.kept = kept;
            let old: Vec<Kept> = old;
            for cursor in log.groups.values_mut() {
                for kept in &old {
                    let state = cursor.states.remove(&kept.position);
                    cursor.expired +=
                        u64::from(matches!(state, Some(Delivery::Waiting { .. } | Delivery::Leased { .. })));
                }
            }
        }
    }

    /// Moves a cursor.
    pub fn seek(&mut self, topic: TopicId, group: GroupId, to: SeekTo) {
        let now = self.now;
        let log = self.log(topic);
        let past: Vec<bool> = log.kept.iter().map(|kept| log.is_past(kept, now)).collect();
        let cursor = log.groups.get_mut(&group).expect("the model asks for groups that are there");
        cursor.expired_known &= !past.contains(&true);
        for kept in log.kept.iter().filter(|kept| kept.is_for(group)) {
            let waits = match to {
                SeekTo::Earliest => true,
                SeekTo::Latest => false,
                SeekTo::Time(time) => kept.at >= time,
                SeekTo::Offset(partition, offset) if kept.is_in(partition, offset) => kept.position.offset >= offset,
                SeekTo::Offset(..) => continue,
            };
            cursor.states.insert(kept.position, if waits && !kept.erased { FRESH } else { Delivery::Settled });
        }
    }

    /// Keeps what a group has not settled under a name.
    pub fn put_snapshot(&mut self, topic: TopicId, group: GroupId, name: u8) {
        let cursor = self.log(topic).groups.get_mut(&group).expect("the model asks for groups that are there");
        let settled = cursor.states.iter().filter(|(_, state)| matches!(state, Delivery::Settled));
        let settled = settled.map(|(position, _)| *position).collect();
        cursor.snapshots.insert(name, settled);
    }

    /// Checks whether a snapshot was there, and forgets it.
    pub fn delete_snapshot(&mut self, topic: TopicId, group: GroupId, name: u8, answer: bool) {
        let cursor = self.log(topic).groups.get_mut(&group).expect("the model asks for groups that are there");
        assert_eq!(answer, cursor.snapshots.remove(&name).is_some(), "whether snapshot {name} was there");
    }

    /// Checks whether a snapshot was there, and moves the cursor back to it.
    pub fn restore(&mut self, topic: TopicId, group: GroupId, name: u8, answer: bool) {
        let now = self.now;
        let log = self.log(topic);
        let past = log.kept.iter().any(|kept| log.is_past(kept, now));
        let cursor = log.groups.get_mut(&group).expect("the model asks for groups that are there");
        let snapshot = cursor.snapshots.get(&name).cloned();
        assert_eq!(answer, snapshot.is_some(), "whether snapshot {name} was there");
        let Some(settled) = snapshot else { return };
        cursor.expired_known &= !past;
        for kept in log.kept.iter().filter(|kept| kept.is_for(group)) {
            let waits = !settled.contains(&kept.position) && !kept.erased;
            cursor.states.insert(kept.position, if waits { FRESH } else { Delivery::Settled });
        }
    }

    /// Checks how much a purge settled, and settles it.
    pub fn purge(&mut self, topic: TopicId, group: GroupId, answer: u64) {
        let now = self.now;
        let log = self.log(topic);
        let past: BTreeSet<Position> =
            log.kept.iter().filter(|kept| log.is_past(kept, now)).map(|kept| kept.position).collect();
        let cursor = log.groups.get_mut(&group).expect("the model asks for groups that are there");
        let (mut sure, mut possible) = (0, 0);
        for (position, state) in &mut cursor.states {
            if matches!(state, Delivery::Waiting { .. }) {
                possible += 1;
                // What is past may have been counted as expired before, by a note that a power cut forgets.
                if !past.contains(position) {
                    *state = Delivery::Settled;
                    sure += 1;
                }
            }
        }
        cursor.expired_known &= past.is_empty();
        assert!((sure..=possible).contains(&answer), "{answer} were purged where {sure} to {possible} wait");
    }

    /// Checks whether an erased message was there, and erases it and the dead letters that are copies of it.
    pub fn erase(&mut self, id: MessageId, answer: bool) {
        assert_eq!(answer, self.erase_unseen(id), "whether {id} was there");
    }

    /// Erases a message and the dead letters that are copies of it; whether there was anything to erase.
    pub fn erase_unseen(&mut self, id: MessageId) -> bool {
        let (now, mut found) = (self.now, false);
        for log in self.topics.values_mut() {
            let before = log.scheduled.len();
            log.scheduled.retain(|scheduled| scheduled.message.id != id);
            found |= log.scheduled.len() < before;
            let past: Vec<bool> = log.kept.iter().map(|kept| log.is_past(kept, now)).collect();
            for (kept, past) in log.kept.iter_mut().zip(past) {
                let copy_of = kept.message.meta.dead_letter.as_ref().map(|facts| facts.original_id);
                if (kept.message.id == id || copy_of == Some(id)) && !kept.erased {
                    (kept.erased, found) = (true, true);
                    for cursor in log.groups.values_mut() {
                        cursor.states.entry(kept.position).and_modify(|state| *state = Delivery::Settled);
                        cursor.expired_known &= !past;
                    }
                }
            }
        }
        found
    }

    /// Checks a topic's log and figures against what the store shows, and takes over where new messages stand: those that
    /// were due or died by themselves.
    pub fn observe(&mut self, topic: TopicId, read: &[(Position, Message)], stats: &TopicStats) {
        self.observe_log(topic, read);
        self.observe_stats(topic, stats);
    }

    fn observe_log(&mut self, topic: TopicId, read: &[(Position, Message)]) {
        let now = self.now;
        let known: BTreeSet<Position> = self.topics[&topic].kept.iter().map(|kept| kept.position).collect();
        let mut last_due = Timestamp(0);
        for (position, message) in read.iter().filter(|(position, _)| !known.contains(position)) {
            let died = |facts: &&DeadLetterFacts| {
                facts.original.is_some() && (!self.dying.is_empty() || &*facts.last.reason == EXPIRED)
            };
            if let Some(facts) = message.meta.dead_letter.as_deref().filter(died) {
                self.bury(topic, *position, message, facts);
                continue;
            }
            let log = self.log(topic);
            let due =
                log.scheduled.iter().position(|scheduled| scheduled.message.id == message.id && scheduled.due <= now);
            let scheduled =
                log.scheduled.remove(due.unwrap_or_else(|| panic!("{position:?} was never stored: {message:?}")));
            assert!(scheduled.due >= last_due, "what is due first enters first");
            last_due = scheduled.due;
            assert_eq!(*message, scheduled.message);
            let pushed = log.push(scheduled.partition, scheduled.message, scheduled.target, now);
            assert_eq!(*position, pushed, "a message that was due");
        }
        let log = &self.topics[&topic];
        let late: Vec<&Scheduled> = log.scheduled.iter().filter(|scheduled| scheduled.due <= now).collect();
        assert!(late.is_empty(), "due, and not in the log: {late:?}");
        let in_retention = |position: &Position| {
            log.kept
                .iter()
                .find(|kept| kept.position == *position)
                .is_some_and(|kept| kept.at > now.minus(log.spec.retention))
        };
        let read: Vec<_> = read.iter().filter(|(position, _)| in_retention(position)).collect();
        let expected: Vec<_> = log.kept.iter().filter(|kept| !kept.erased && in_retention(&kept.position)).collect();
        let places = |places: &mut dyn Iterator<Item = Position>| places.collect::<Vec<_>>();
        assert_eq!(
            places(&mut read.iter().map(|(position, _)| *position)),
            places(&mut expected.iter().map(|kept| kept.position)),
            "the log of {topic:?}"
        );
        assert!(read.iter().zip(&expected).all(|((_, message), kept)| *message == kept.message));
    }

    /// A message that passed its expiry while it waited, where that makes a dead letter of it: a store may notice when it
    /// likes.
    fn expired(&self, facts: &DeadLetterFacts) -> Option<Death> {
        let (position, group) = (facts.original?, facts.group?);
        let log = &self.topics[&position.topic];
        let kept = log.kept.iter().find(|kept| kept.position == position)?;
        let waits = matches!(log.groups[&group].states[&position], Delivery::Waiting { .. });
        let noticed = log.spec.dead_letter_expired && waits && log.is_past(kept, self.now);
        (noticed && &*facts.last.reason == EXPIRED).then_some(Death { group, position, optional: true })
    }

    /// A dead letter that turned up must be one that was to come.
    fn bury(&mut self, topic: TopicId, position: Position, message: &Message, facts: &DeadLetterFacts) {
        let now = self.now;
        let expected = |death: &Death| Some(death.position) == facts.original && Some(death.group) == facts.group;
        let death = match self.dying.iter().position(expected) {
            Some(index) => self.dying.remove(index),
            None => self.expired(facts).unwrap_or_else(|| panic!("nothing of the kind died: {facts:?}")),
        };
        let log = self.log(death.position.topic);
        let cursor = log.groups.get_mut(&death.group).expect("it died for a group");
        assert_eq!(facts.group_name, cursor.spec.name);
        if let Some(state @ Delivery::Waiting { .. }) = cursor.states.get_mut(&death.position) {
            // Its last lease ended with the opening.
            *state = Delivery::Settled;
            cursor.dead += 1;
        }
        if let Some(original) = log.kept.iter().find(|kept| kept.position == death.position) {
            assert_eq!((facts.original_id, &message.payload), (original.message.id, &original.message.payload));
        }
        let pushed = self.log(topic).push(position.partition, message.clone(), None, now);
        assert_eq!(position, pushed, "a dead letter");
    }

    /// What was to die and did not is alive, if that is allowed.
    pub fn no_more_deaths(&mut self) {
        for death in std::mem::take(&mut self.dying) {
            let log = self.log(death.position.topic);
            let trimmed = log.kept.iter().all(|kept| kept.position != death.position || kept.erased);
            assert!(death.optional || trimmed, "no dead letter of {:?} for {:?}", death.position, death.group);
            let Some(cursor) = log.groups.get_mut(&death.group) else { continue };
            let most = cursor.spec.attempts_max - 1;
            if let Some(Delivery::Waiting { tries, .. }) = cursor.states.get_mut(&death.position) {
                tries.high = tries.high.min(most);
            }
        }
    }

    fn observe_stats(&mut self, topic: TopicId, stats: &TopicStats) {
        let now = self.now;
        let log = self.log(topic);
        log.keys.retain(|key| key.at.plus(log.spec.dedup_window) > now);
        let erased = log.kept.iter().filter(|kept| kept.erased).count() as u64;
        let (kept, most) = (log.kept.len() as u64 - erased, log.kept.len() as u64);
        assert!((kept..=most).contains(&stats.messages), "{} messages where {kept} to {most} are", stats.messages);
        assert_eq!(stats.appended_total, log.appended);
        assert_eq!(stats.scheduled, log.scheduled.len() as u64);
        assert_eq!(stats.dedup_keys, log.keys.len() as u64);
        assert_eq!(stats.groups.len(), log.groups.len());
        let past: BTreeSet<Position> =
            log.kept.iter().filter(|kept| log.is_past(kept, now)).map(|kept| kept.position).collect();
        for figures in &stats.groups {
            let cursor = log.groups.get_mut(&figures.group).expect("no group but those that were put");
            let (mut waiting, mut retrying, mut leased, mut passing) = (0, 0, 0, 0);
            for (position, state) in &cursor.states {
                match state {
                    Delivery::Leased { .. } => leased += 1,
                    Delivery::Waiting { .. } if past.contains(position) => passing += 1,
                    Delivery::Waiting { from, .. } if *from > now => retrying += 1,
                    Delivery::Waiting { .. } => waiting += 1,
                    Delivery::Settled => {}
                }
            }
            let told = format!("group {:?}: {figures:?}", figures.group);
            assert!((waiting..=waiting + passing).contains(&figures.waiting), "{waiting} wait: {told}");
            assert!((retrying..=retrying + passing).contains(&figures.retrying), "{retrying} retry: {told}");
            assert_eq!(figures.leased, leased, "{told}");
            // Whether an at-most-once grant counts as an ack is a store's choice.
            assert!(cursor.at_most_once || figures.acked_total == cursor.acked, "{} acked: {told}", cursor.acked);
            assert_eq!(figures.dead_lettered_total, cursor.dead, "{told}");
            let sum = figures.waiting + figures.retrying + figures.expired_total;
            if cursor.expired_known {
                assert_eq!(sum, waiting + retrying + passing + cursor.expired, "{passing} past: {told}");
            } else {
                cursor.expired = (sum).saturating_sub(waiting + retrying + passing);
                cursor.expired_known = past.is_empty();
            }
            let delivered = cursor.delivered.0..=cursor.delivered.1;
            assert!(delivered.contains(&figures.delivered_total), "{delivered:?} delivered: {told}");
            cursor.delivered = (figures.delivered_total, figures.delivered_total);
        }
    }
}
