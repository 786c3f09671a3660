//! Planning appends: what becomes of each item of a batch, against the state and what the frame already holds. Invariant:
//! a plan changes nothing but itself, so a frame that fails is forgotten by dropping it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::message::{GroupId, MessageId, Offset, Partition, Position, TopicId};
use crate::store::embedded::ops::{Body, Done, LaneId, Op};
use crate::store::{AppendOutcome, DedupOutcome, Fate, KvUse, KvWrite, StoreError, kv_cost};

use super::dedup::KeyHash;
use super::kv::KvSpace;
use super::room::Needs;
use super::settle::Live;
use super::{State, offset};

/// A batch, encoded.
#[derive(Debug)]
pub struct Batch {
    /// The topic.
    pub topic: TopicId,
    /// The pipeline revision.
    pub revision: u64,
    /// The items.
    pub items: Vec<Item>,
    /// All or none.
    pub all_or_nothing: bool,
    /// Plugins' writes.
    pub kv: Vec<KvWrite>,
    /// What stages read and wrote.
    pub values: KvUse,
    /// Dead letters taken off their list.
    pub replays: Vec<Position>,
}

/// One publish, encoded.
#[derive(Debug)]
pub struct Item {
    /// The hash of its key, and of its request.
    pub key: Option<(KeyHash, [u8; 16])>,
    /// It.
    pub entry: Prepared,
    /// What was emitted with it.
    pub emitted: Vec<Emitted>,
}

/// What a stage emitted, encoded.
#[derive(Debug)]
pub struct Emitted {
    /// Where it goes.
    pub lane: LaneId,
    /// It.
    pub body: Body,
    /// The pipeline revision of its own topic that it passed.
    pub revision: u64,
}

/// What becomes of a publish.
#[derive(Debug)]
pub enum Prepared {
    /// Into the log, now or when due.
    Log { lane: LaneId, body: Body, due: Option<Timestamp> },
    /// Into the dead-letter topic.
    Dead { lane: u8, body: Body, stage: Arc<str>, reason: Arc<str> },
    /// Only remembered.
    Dropped { id: MessageId, stage: Arc<str>, reason: Arc<str> },
}

/// What one frame will say, and what it will change that later items of it must see.
#[derive(Debug, Default)]
pub struct Plan {
    /// Ops with bodies, and what goes with them.
    pub appends: Vec<Op>,
    /// The bodies of `appends`, in order.
    pub bodies: Vec<Body>,
    /// Ends of leases.
    pub settles: Vec<Op>,
    /// Keys, revisions, plugins' values.
    pub side: Vec<Op>,
    /// Leases to be unmarked if the frame fails.
    pub marked: Vec<Live>,
    /// Messages that die in this frame.
    pub exhausted: HashSet<(TopicId, GroupId, Partition, Offset)>,
    /// Dead letters that leave their list in this frame.
    pub replayed: HashSet<Position>,
    /// Scheduled messages that leave their schedule in this frame.
    pub due: HashSet<(TopicId, u64)>,
    pub(super) next: HashMap<LaneId, u64>,
    pub(super) stamps: u64,
    pub(super) keys: HashMap<(TopicId, KeyHash), DedupOutcome>,
    pub(super) new_keys: HashMap<TopicId, usize>,
    pub(super) keys_before: Option<usize>,
    pub(super) revisions: HashMap<(TopicId, Partition), u64>,
    pub(super) kv: HashMap<(Arc<str>, Arc<str>), u64>,
    pub(super) kv_bytes: u64,
    /// What namespaces grow by in this frame.
    pub(super) kv_grown: HashMap<Arc<str>, KvSpace>,
    pub(super) kv_writes: u64,
    pub(super) bytes: HashMap<TopicId, u64>,
    /// Of the item that is being planned: kept for its memory.
    pub(super) needs: Needs,
    pub(super) trimmed: HashSet<TopicId>,
    pub(super) scheduled: usize,
    pub(super) scheduled_bytes: u64,
}

impl Plan {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.appends.is_empty() && self.settles.is_empty() && self.side.is_empty()
    }

    /// Adds a settled message.
    pub fn settled(&mut self, place: (TopicId, GroupId, Partition), kind: Done, offset: Offset) {
        if let Some(Op::Settled { topic, group, partition, done, offsets }) = self.settles.last_mut()
            && (*topic, *group, *partition) == place
            && *done == kind
        {
            offsets.push(offset);
            return;
        }
        let (topic, group, partition) = place;
        self.settles.push(Op::Settled { topic, group, partition, done: kind, offsets: vec![offset] });
    }
}

impl State {
    /// Plans a batch.
    ///
    /// # Errors
    /// What refuses the whole batch; the plan is then as before.
    pub fn plan_append(
        &mut self,
        batch: Batch,
        now: Timestamp,
        plan: &mut Plan,
    ) -> Result<Vec<AppendOutcome>, StoreError> {
        self.check_places(&batch)?;
        self.check_revisions(&batch, plan)?;
        self.check_kv(&batch.kv, &batch.values, plan)?;
        if batch.replays.iter().any(|position| !self.is_listed(*position, plan)) {
            // Another replay or a discard came first: stored now, it would be there twice.
            return Ok(vec![AppendOutcome::NotAttempted; batch.items.len()]);
        }
        if let Ok(topic) = self.topic_mut(batch.topic) {
            let window = topic.spec.dedup_window;
            topic.dedup.age(window, now);
        }
        if batch.all_or_nothing
            && let Some(outcomes) = self.refuse_all(&batch, now, plan)
        {
            return Ok(outcomes);
        }
        if let Some(refused) = self.refused_of(&batch, now, plan)
            && batch.values.linked.iter().any(|item| refused.get(*item).is_some_and(is_refused))
        {
            return Err(StoreError::KvConflict);
        }
        let mut outcomes = Vec::with_capacity(batch.items.len());
        for item in batch.items {
            outcomes.push(self.plan_item((batch.topic, batch.revision), item, now, plan));
        }
        // Writes of stages that ran for duplicates alone are thrown away with them.
        if outcomes.is_empty() || outcomes.iter().any(is_taken) {
            let whole = batch.kv.into_iter().map(|KvWrite { namespace, key, value, .. }| (namespace, key, value));
            self.plan_kv(whole, plan);
        }
        self.plan_values(batch.values, &outcomes, plan);
        plan_replays(&batch.replays, &outcomes, plan);
        Ok(outcomes)
    }

    /// Adds one message to a log.
    pub fn plan_entry(&self, place: (TopicId, Partition, u8), body: Body, now: Timestamp, plan: &mut Plan) -> Position {
        let (topic, partition, lane) = place;
        let id = LaneId { topic, partition, lane };
        let next = plan.next.entry(id).or_insert_with(|| self.lane(id).map_or(0, |lane| lane.end));
        let sequence = *next;
        *next += 1;
        let (this_stamp, this_at) = (self.next_stamp + plan.stamps, self.append_at(now));
        plan.stamps += 1;
        if let Some(used) = plan.bytes.get_mut(&topic) {
            *used += body.head.cost();
        }
        match plan.appends.last_mut() {
            Some(Op::Append { lane, first, stamp, at, heads })
                if *lane == id
                    && *at == this_at
                    && *first + heads.len() as u64 == sequence
                    && *stamp + heads.len() as u64 == this_stamp =>
            {
                heads.push(body.head);
            }
            _ => plan.appends.push(Op::Append {
                lane: id,
                first: sequence,
                stamp: this_stamp,
                at: this_at,
                heads: vec![body.head],
            }),
        }
        plan.bodies.push(body);
        Position { topic, partition, offset: offset(id, sequence) }
    }

    /// Plans that what is due enters its log.
    pub fn plan_due(&self, topic: TopicId, number: u64, now: Timestamp, plan: &mut Plan) {
        let Some(scheduled) = self.topics.get(&topic).and_then(|topic| topic.schedule.get(number)) else { return };
        if !plan.due.insert((topic, number)) {
            return;
        }
        let id = LaneId { topic, partition: scheduled.partition, lane: scheduled.lane };
        let next = plan.next.entry(id).or_insert_with(|| self.lane(id).map_or(0, |lane| lane.end));
        let (sequence, stamp) = (*next, self.next_stamp + plan.stamps);
        *next += 1;
        plan.stamps += 1;
        plan.appends.push(Op::Due { topic, number, lane: id, sequence, stamp, at: self.append_at(now) });
    }

    /// What would become of the items of a batch in which some read what was written for others.
    fn refused_of(&self, batch: &Batch, now: Timestamp, plan: &mut Plan) -> Option<Vec<AppendOutcome>> {
        if batch.values.linked.is_empty() { None } else { self.refuse_all(batch, now, plan) }
    }

    /// Of each key the last write of an item that is stored.
    fn plan_values(&self, values: KvUse, outcomes: &[AppendOutcome], plan: &mut Plan) {
        let kept = |item: Option<usize>| item.is_none_or(|item| outcomes.get(item).is_some_and(is_taken));
        let mut last = HashMap::new();
        for (nth, write) in values.written.iter().enumerate().filter(|(_, write)| kept(write.item)) {
            last.insert((Arc::clone(&write.namespace), Arc::clone(&write.key)), nth);
        }
        let lasting: HashSet<usize> = last.into_values().collect();
        let written = values.written.into_iter().enumerate().filter(|(nth, _)| lasting.contains(nth));
        self.plan_kv(written.map(|(_, write)| (write.namespace, write.key, write.value)), plan);
    }

    fn plan_kv(&self, writes: impl Iterator<Item = (Arc<str>, Arc<str>, Option<Vec<u8>>)>, plan: &mut Plan) {
        for (namespace, key, value) in writes {
            let version = self.next_kv_version + plan.kv_writes;
            plan.kv_writes += 1;
            if let Some(value) = &value {
                let cost = kv_cost(&namespace, &key, value.len());
                plan.kv_bytes += cost;
                let grown = plan.kv_grown.entry(Arc::clone(&namespace)).or_default();
                self.grow(grown, (&namespace, &key), cost);
            }
            plan.kv.insert((Arc::clone(&namespace), Arc::clone(&key)), if value.is_some() { version } else { 0 });
            plan.side.push(Op::Kv { namespace, key, version, value });
        }
    }

    /// The outcomes if one item of a batch keeps the others out.
    fn refuse_all(&self, batch: &Batch, now: Timestamp, plan: &mut Plan) -> Option<Vec<AppendOutcome>> {
        let (mut seen, mut refused, mut keys) = (HashSet::new(), false, 0);
        let mut needs = Needs::default();
        let mut outcomes = Vec::with_capacity(batch.items.len());
        let mut waiting = (0, 0);
        for item in &batch.items {
            let mut outcome = self.known(batch.topic, item, now, plan);
            if let Some((key, _)) = &item.key
                && outcome.is_none()
            {
                keys += 1;
                // A repeat inside the batch has no outcome to repeat: the first is not stored either.
                outcome = (!seen.insert(*key)).then_some(AppendOutcome::KeyConflict);
            }
            if outcome.is_none() {
                self.needs(batch.topic, item, now, &mut needs, &mut waiting);
                let mut fits = self.room_for_keys(batch.topic, keys, plan) && self.room_to_wait(waiting, plan);
                for (topic, need) in needs.iter() {
                    fits &= self.room(topic, need, plan);
                }
                outcome = (!fits).then_some(AppendOutcome::TopicFull);
            }
            refused |= outcome.is_some();
            outcomes.push(outcome.unwrap_or(AppendOutcome::NotAttempted));
        }
        refused.then_some(outcomes)
    }

    /// The outcome of an item whose key was used before.
    fn known(&self, topic: TopicId, item: &Item, now: Timestamp, plan: &Plan) -> Option<AppendOutcome> {
        let (key, request_hash) = item.key.as_ref()?;
        let topic = self.topics.get(&topic)?;
        let outcome =
            plan.keys.get(&(topic.spec.id, *key)).or_else(|| topic.dedup.get(key, topic.spec.dedup_window, now))?;
        Some(if outcome.request_hash == *request_hash {
            AppendOutcome::Duplicate(outcome.clone())
        } else {
            AppendOutcome::KeyConflict
        })
    }

    fn plan_item(&self, batch: (TopicId, u64), item: Item, now: Timestamp, plan: &mut Plan) -> AppendOutcome {
        let (topic, revision) = batch;
        if let Some(known) = self.known(topic, &item, now, plan) {
            return known;
        }
        let (mut needs, mut waiting) = (std::mem::take(&mut plan.needs), (0, 0));
        needs.clear();
        self.needs(topic, &item, now, &mut needs, &mut waiting);
        let fits = self.room_for_keys(topic, usize::from(item.key.is_some()), plan)
            && self.room_to_wait(waiting, plan)
            && needs.iter().all(|(topic, need)| self.room(topic, need, plan));
        plan.needs = needs;
        if !fits || !self.room_for_target(&item) {
            return AppendOutcome::TopicFull;
        }
        let (id, outcome, fate) = self.plan_prepared(topic, revision, item.entry, now, plan);
        for Emitted { lane, body, revision } in item.emitted {
            self.plan_revision((lane.topic, lane.partition), revision, plan);
            self.plan_entry((lane.topic, lane.partition, lane.lane), body, now, plan);
        }
        if let Some((key, request_hash)) = item.key {
            let outcome = DedupOutcome { request_hash, id, fate, at: self.append_at(now), revision };
            plan.keys.insert((topic, key), outcome.clone());
            *plan.new_keys.entry(topic).or_default() += 1;
            plan.side.push(Op::Dedup { topic, key, outcome });
        }
        outcome
    }

    fn plan_prepared(
        &self,
        topic: TopicId,
        revision: u64,
        entry: Prepared,
        now: Timestamp,
        plan: &mut Plan,
    ) -> (MessageId, AppendOutcome, Fate) {
        match entry {
            Prepared::Log { lane, body, due } => {
                self.plan_revision((topic, lane.partition), revision, plan);
                let id = body.head.id;
                if let Some(due) = due.filter(|due| *due > now) {
                    self.plan_schedule(lane, body, due, plan);
                    return (id, AppendOutcome::Scheduled, Fate::Scheduled);
                }
                let position = self.plan_entry((topic, lane.partition, lane.lane), body, now, plan);
                (id, AppendOutcome::Stored(position), Fate::Stored(position))
            }
            Prepared::Dead { lane, body, stage, reason } => {
                let dead = self.dead_letter_of(topic).expect("`check_places` found the dead-letter topic");
                let id = body.head.id;
                let position = self.plan_entry((dead, 0, lane), body, now, plan);
                (id, AppendOutcome::DeadLettered(position), Fate::DeadLettered { position, stage, reason })
            }
            Prepared::Dropped { id, stage, reason } => (id, AppendOutcome::Dropped, Fate::Dropped { stage, reason }),
        }
    }

    fn plan_schedule(&self, lane: LaneId, body: Body, due: Timestamp, plan: &mut Plan) {
        let number = self.next_scheduled + plan.scheduled as u64;
        plan.scheduled += 1;
        plan.scheduled_bytes += body.head.cost();
        if let Some(used) = plan.bytes.get_mut(&lane.topic) {
            *used += body.head.cost();
        }
        let (topic, partition, head) = (lane.topic, lane.partition, body.head);
        plan.appends.push(Op::Scheduled { topic, partition, lane: lane.lane, due, number, head });
        plan.bodies.push(body);
    }

    fn plan_revision(&self, place: (TopicId, Partition), revision: u64, plan: &mut Plan) {
        let known = plan.revisions.entry(place).or_insert_with(|| self.revision(place));
        if revision > *known {
            *known = revision;
            plan.side.push(Op::Revision { topic: place.0, partition: place.1, revision });
        }
    }
}

/// Whether something of the item is kept: it, or its outcome.
#[must_use]
pub fn is_taken(outcome: &AppendOutcome) -> bool {
    matches!(
        outcome,
        AppendOutcome::Stored(_) | AppendOutcome::Scheduled | AppendOutcome::DeadLettered(_) | AppendOutcome::Dropped
    )
}

/// Whether an item of a batch of which nothing was stored was itself the reason.
#[must_use]
pub fn is_refused(outcome: &AppendOutcome) -> bool {
    !matches!(outcome, AppendOutcome::NotAttempted)
}

/// Which of so many dead letters leave their list: those whose replay is stored, or was before.
pub fn off_their_list(replays: usize, outcomes: &[AppendOutcome]) -> impl Iterator<Item = usize> {
    let kept = |outcome: &AppendOutcome| {
        matches!(outcome, AppendOutcome::TopicFull | AppendOutcome::KeyConflict | AppendOutcome::NotAttempted)
    };
    let one_each = replays == outcomes.len();
    (0..replays).filter(move |nth| !if one_each { kept(&outcomes[*nth]) } else { outcomes.iter().any(kept) })
}

fn plan_replays(replays: &[Position], outcomes: &[AppendOutcome], plan: &mut Plan) {
    for position in off_their_list(replays.len(), outcomes).map(|nth| replays[nth]) {
        if plan.replayed.insert(position) {
            plan.settled((position.topic, GroupId::SHARED, position.partition), Done::Discarded, position.offset);
        }
    }
}
