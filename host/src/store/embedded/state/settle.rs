//! Planning settlements: whether a lease still lives, and what follows from how it ends. Invariant: a lease that is being
//! settled is marked until the outcome is known, so it neither expires nor is settled twice. Writes nothing.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::message::{
    DeadLetterFacts, FailedAttempt, Failure, GroupId, Message, MessageId, Offset, Partition, Position, TopicId,
};
use crate::store::embedded::ops::{Body, Done, Op, key_hash};
use crate::store::{LeaseRef, Settle, SettleRefused, Settled, Settlement};

use super::State;
use super::append::Plan;
use super::cursor::{Held, Standing};

/// A settlement with what it may need.
#[derive(Debug)]
pub struct SettleItem {
    /// What is asked.
    pub settle: Settle,
    /// The message, if it may become a dead letter.
    pub message: Option<Message>,
}

/// A live lease.
#[derive(Debug, Clone, Copy)]
pub struct Live {
    /// Where the message stands.
    pub position: Position,
    /// For whom.
    pub group: GroupId,
    /// Which grant.
    pub grant: u64,
    /// Which delivery.
    pub attempts: u32,
}

/// The reason given when a lease ends by itself for the last time.
pub const LEASE_EXPIRED: &str = "LEASE_EXPIRED";
/// The reason given when a message passes its expiry before it is delivered.
pub const EXPIRED: &str = "EXPIRED";

impl State {
    /// The lease that is meant, if it lives and is not being settled.
    ///
    /// # Errors
    /// Why it cannot be settled.
    pub fn live(&self, lease: &LeaseRef, now: Timestamp) -> Result<Live, SettleRefused> {
        let (position, group_id, fence) = match lease {
            LeaseRef::Receipt { receipt, .. } => (receipt.position, receipt.group, Some(receipt)),
            LeaseRef::Holder { topic, group, message, .. } => {
                let found = self.topics.get(topic).and_then(|topic| topic.groups.get(group));
                let found = found.ok_or(SettleRefused::NotFound)?;
                let (partition, offset) = *found.held.get(message).ok_or(SettleRefused::LeaseExpired)?;
                (Position { topic: *topic, partition, offset }, *group, None)
            }
        };
        let topic = self.topics.get(&position.topic).ok_or(SettleRefused::NotFound)?;
        let group = topic.groups.get(&group_id).ok_or(SettleRefused::NotFound)?;
        if fence.is_some_and(|receipt| receipt.epoch != self.epoch) {
            return Err(SettleRefused::LeaseExpired);
        }
        let exception = group.exception(position.partition, position.offset).ok_or(SettleRefused::LeaseExpired)?;
        let held = exception.held().ok_or(SettleRefused::LeaseExpired)?;
        let fits = match lease {
            LeaseRef::Receipt { receipt, message } => {
                if receipt.grant == held.grant && message.is_some_and(|message| message != held.id) {
                    return Err(SettleRefused::WrongMessage);
                }
                receipt.grant == held.grant
            }
            LeaseRef::Holder { holder, .. } => *holder == held.holder,
        };
        if !fits || held.settling || held.deadline <= now {
            return Err(SettleRefused::LeaseExpired);
        }
        Ok(Live { position, group: group_id, grant: held.grant, attempts: exception.attempts })
    }

    /// Whether this settlement may make a dead letter of its message.
    #[must_use]
    pub fn may_die(&self, settle: &Settle, now: Timestamp) -> Option<Position> {
        let dies = match settle.settlement {
            Settlement::DeadLetter { .. } => true,
            Settlement::Retry { .. } => false,
            _ => return None,
        };
        let live = self.live(&settle.lease, now).ok()?;
        let topic = self.topics.get(&live.position.topic)?;
        topic.spec.dead_letter.filter(|dead| self.topics.contains_key(dead))?;
        let group = topic.groups.get(&live.group)?;
        (dies || live.attempts >= group.spec.attempts_max).then_some(live.position)
    }

    /// Plans one settlement.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn plan_settle(&mut self, item: SettleItem, now: Timestamp, plan: &mut Plan) -> Result<Settled, SettleRefused> {
        let live = self.live(&item.settle.lease, now)?;
        let Position { topic, partition, offset } = live.position;
        match item.settle.settlement {
            Settlement::Ack => {
                self.mark(&live, plan);
                plan.settled((topic, live.group, partition), Done::Acked, offset);
                Ok(Settled::Acked)
            }
            Settlement::Retry { at, failure } => {
                let last = self.topics[&topic].groups[&live.group].spec.attempts_max <= live.attempts;
                // Without the message at hand it was not the last attempt when the caller looked; it is so from now on.
                if last && (item.message.is_some() || self.dead_letter_of(topic).is_none()) {
                    self.plan_dead_letter(&live, item.message.as_ref(), failure, now, plan);
                    return Ok(Settled::DeadLettered);
                }
                self.plan_wait(&live, live.attempts, at, Some(failed(&live, failure, now)), plan);
                Ok(Settled::Retrying { at })
            }
            Settlement::DeadLetter { failure } => {
                if item.message.is_none() && self.dead_letter_of(topic).is_some() {
                    // The dead-letter topic came to be after the caller looked: again, so that there is a copy.
                    self.plan_wait(&live, live.attempts, now, Some(failed(&live, failure, now)), plan);
                    return Ok(Settled::Retrying { at: now });
                }
                self.plan_dead_letter(&live, item.message.as_ref(), failure, now, plan);
                Ok(Settled::DeadLettered)
            }
            Settlement::Release => {
                self.plan_wait(&live, live.attempts.saturating_sub(1), Timestamp(0), None, plan);
                Ok(Settled::Released)
            }
            Settlement::Extend { duration } => {
                // Leases end with the process, so a longer one has nothing to write.
                let until = now.plus(duration);
                self.extend(&live, until);
                Ok(Settled::Extended { until })
            }
        }
    }

    /// Plans that a message waits again.
    fn plan_wait(
        &mut self,
        live: &Live,
        attempts: u32,
        at: Timestamp,
        failure: Option<FailedAttempt>,
        plan: &mut Plan,
    ) {
        self.mark(live, plan);
        let (Position { topic, partition, offset }, group) = (live.position, live.group);
        plan.settles.push(Op::Retry { topic, group, partition, offset, attempts, at, failure });
    }

    /// Plans the settlement that an at-most-once grant is; for each, whether it was still alive. One that is not was or
    /// will be granted to someone else, and must not be handed out.
    pub fn plan_once(&mut self, live: &[Live], now: Timestamp, plan: &mut Plan) -> Vec<bool> {
        live.iter()
            .map(|live| {
                let Position { topic, partition, offset } = live.position;
                let lives = self.held(live).is_some_and(|held| !held.settling && held.deadline > now);
                if lives {
                    self.mark(live, plan);
                    plan.settled((topic, live.group, partition), Done::Once, offset);
                }
                lives
            })
            .collect()
    }

    /// The lease of a grant, if it still is this one's.
    fn held(&self, live: &Live) -> Option<&Held> {
        let group = self.topics.get(&live.position.topic)?.groups.get(&live.group)?;
        let held = group.exception(live.position.partition, live.position.offset)?.held()?;
        (held.grant == live.grant).then_some(held)
    }

    /// Plans the dead letter of a message whose last lease ended by itself.
    pub fn plan_exhausted(
        &mut self,
        place: (TopicId, GroupId, Partition, Offset),
        message: Option<&Message>,
        now: Timestamp,
        plan: &mut Plan,
    ) {
        let (topic, group, partition, offset) = place;
        let Some(found) = self.topics.get(&topic).and_then(|topic| topic.groups.get(&group)) else { return };
        let Some(exception) = found.exception(partition, offset) else { return };
        // Without its message there is no copy to make: the next tick tries again.
        let lacks_copy = message.is_none() && self.dead_letter_of(topic).is_some();
        if !matches!(exception.standing, Standing::Exhausted) || lacks_copy || !plan.exhausted.insert(place) {
            return;
        }
        let past = message.is_some_and(|message| message.meta.expires_at.is_some_and(|at| at <= now));
        let (reason, detail) = match past && exception.attempts < found.spec.attempts_max {
            true => (EXPIRED, "it was not delivered before its expiresAt"),
            false => (LEASE_EXPIRED, "the last delivery was not settled before its deadline"),
        };
        let failure = Failure { reason: reason.into(), detail: detail.into(), ..Failure::default() };
        let position = Position { topic, partition, offset };
        let live = Live { position, group, grant: 0, attempts: exception.attempts };
        self.plan_dead_letter(&live, message, failure, now, plan);
    }

    /// The topic that takes a topic's dead letters, if there is one.
    #[must_use]
    pub fn dead_letter_of(&self, topic: TopicId) -> Option<TopicId> {
        self.topics.get(&topic)?.spec.dead_letter.filter(|dead| self.topics.contains_key(dead))
    }

    /// The copy and the end of the lease, in one frame.
    fn plan_dead_letter(
        &mut self,
        live: &Live,
        message: Option<&Message>,
        failure: Failure,
        now: Timestamp,
        plan: &mut Plan,
    ) {
        let Position { topic, partition, offset } = live.position;
        self.mark(live, plan);
        if let (Some(dead), Some(message)) = (self.dead_letter_of(topic), message) {
            let (spec, group) = (&self.topics[&topic].spec, &self.topics[&topic].groups[&live.group]);
            let mut failures =
                group.exception(partition, offset).map(|known| known.failures.clone()).unwrap_or_default();
            if &*failure.reason != EXPIRED {
                failures.push(failed(live, failure.clone(), now));
            }
            let mut copy = message.clone();
            copy.id = dead_letter_id(now, dead, message.id, live.group);
            let (origin, group) = ((message, live.position), (live.group, Arc::clone(&group.spec.name)));
            let facts = DeadLetterFacts::failed(origin, group, (live.attempts, failures), failure, now);
            copy.meta.dead_letter = Some(Box::new(facts));
            if !spec.dead_letter_payload {
                copy.payload = bytes::Bytes::new();
            }
            let lane = copy.meta.priority.min(crate::message::PRIORITY_MAX);
            let body = Body::new(&copy, None, false);
            self.plan_entry((dead, 0, lane), body, now, plan);
        }
        plan.settled((topic, live.group, partition), Done::DeadLettered, offset);
    }

    fn mark(&mut self, live: &Live, plan: &mut Plan) {
        let Position { topic, partition, offset } = live.position;
        let Ok(group) = self.group_mut(topic, live.group) else { return };
        let Some(exception) = group.exception_mut(partition, offset) else { return };
        if let Standing::Held(held) = &mut exception.standing
            && held.grant == live.grant
        {
            held.settling = true;
            plan.marked.push(*live);
        }
    }

    fn extend(&mut self, live: &Live, until: Timestamp) {
        let Position { topic, partition, offset } = live.position;
        let Ok(group) = self.group_mut(topic, live.group) else { return };
        let Some(exception) = group.exception_mut(partition, offset) else { return };
        if let Standing::Held(held) = &mut exception.standing {
            let before = std::mem::replace(&mut held.deadline, until);
            group.deadlines.remove(&(before, partition, offset));
            group.deadlines.insert((until, partition, offset));
        }
    }
}

fn failed(live: &Live, failure: Failure, at: Timestamp) -> FailedAttempt {
    FailedAttempt { attempt: live.attempts, at, failure }
}

/// The id of a dead letter: the same for the same message and group at the same time.
#[must_use]
pub fn dead_letter_id(now: Timestamp, topic: TopicId, original: MessageId, group: GroupId) -> MessageId {
    let mut bytes = original.0.as_bytes().to_vec();
    bytes.extend(group.0.to_le_bytes());
    // The entropy's low 44 bits are used: fold the hash so that all of it counts.
    let hash = key_hash(&bytes);
    MessageId::new(now, topic, 0, hash ^ hash >> 31)
}
