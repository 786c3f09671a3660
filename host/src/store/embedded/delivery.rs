//! Leasing, settling, ticking: the calls that work on leases. Invariant: a grant that does not reach its caller is taken
//! back. Reads files only on blocking threads, and only for what memory does not have.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::core::{Command, Core, Dying, SettleResults};
use super::ops::LaneId;
use super::state::grant::{Granted, Pin, Stop};
use super::state::settle::{Live, SettleItem};
use crate::clock::Timestamp;
use crate::message::{GroupId, Message, Position, TopicId};
use crate::store::{Lease, LeaseRequest, Leased, Mode, Settle, StoreError};

/// Scheduled messages that enter their logs in one frame.
const DUE_MAX: usize = 1000;
/// Messages that become dead letters in one frame: each brings its payload.
const DYING_MAX: usize = 100;

/// Grants that have not reached their caller yet; given back when dropped.
struct Unclaimed<'a> {
    core: &'a Core,
    granted: Vec<Granted>,
}

impl Drop for Unclaimed<'_> {
    fn drop(&mut self) {
        if self.granted.is_empty() {
            return;
        }
        let mut state = self.core.state.lock();
        for Granted { receipt, .. } in self.granted.drain(..) {
            if let Ok(group) = state.group_mut(receipt.position.topic, receipt.group) {
                group.ungrant(receipt.position.partition, receipt.position.offset, receipt.grant);
            }
        }
    }
}

/// See [`crate::store::MessageStore::lease`].
pub async fn lease(core: &Arc<Core>, request: LeaseRequest) -> Result<Leased, StoreError> {
    let mut unclaimed = Unclaimed { core, granted: Vec::new() };
    let more = collect(core, &request, &mut unclaimed.granted).await?;
    if request.mode == Mode::AtMostOnce && !unclaimed.granted.is_empty() {
        let once = unclaimed.granted.iter().map(|granted| Live {
            position: granted.position,
            group: request.group,
            grant: granted.receipt.grant,
            attempts: granted.attempt,
        });
        let (reply, answer) = oneshot::channel();
        core.send(Command::Once(once.collect(), reply), 0)?;
        let lived = received(answer.await)?;
        // What had ended before it became durable belongs to whoever has it next.
        let mut lived = lived.into_iter();
        unclaimed.granted.retain(|_| lived.next().unwrap_or(false));
    }
    let granted = std::mem::take(&mut unclaimed.granted);
    // A message that was erased between grant and here has no meta any more, and its lease has ended.
    let leases = granted.into_iter().filter_map(|granted| {
        let Granted { position, entry, attempt, deadline, receipt } = granted;
        Some(Lease { position, message: entry.body.message()?, attempt, deadline, receipt })
    });
    Ok(Leased { leases: leases.collect(), more })
}

/// Grants, fetching blocks as they are needed.
async fn collect(core: &Arc<Core>, request: &LeaseRequest, granted: &mut Vec<Granted>) -> Result<bool, StoreError> {
    // The last block read of each lane of one partition: where order is kept, all of them are looked at together.
    let mut pins: Vec<Pin> = Vec::new();
    // A fetch brings at least one message nearer; the rest allows for messages that leave the log meanwhile.
    let rounds_max = request.max.saturating_mul(2) + 64;
    for _ in 0..rounds_max {
        let stop = core.state.lock().grant(request, core.clock.now(), &pins, granted);
        let (id, sequence) = match stop {
            Ok(Stop::Done { more }) => return Ok(more),
            Ok(Stop::Need(id, sequence)) => (id, sequence),
            Err(_) if !granted.is_empty() => return Ok(true),
            Err(error) => return Err(error),
        };
        let reader = Arc::clone(core);
        match blocking(move || reader.fetch(id, sequence)).await {
            Ok(block) => {
                pins.retain(|(known, _)| known.partition == id.partition && *known != id);
                pins.extend(block.map(|block| (id, block)));
            }
            // The partition is marked; the others are still served.
            Err(StoreError::Damaged { .. }) => {}
            Err(_) if !granted.is_empty() => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// See [`crate::store::MessageStore::settle`].
pub async fn settle(core: &Arc<Core>, settles: Vec<Settle>) -> Result<SettleResults, StoreError> {
    if settles.is_empty() {
        return Ok(Vec::new());
    }
    let dying: Vec<Option<Position>> = {
        let (state, now) = (core.state.lock(), core.clock.now());
        settles.iter().map(|settle| state.may_die(settle, now)).collect()
    };
    let messages = if dying.iter().any(Option::is_some) { load(core, dying).await? } else { Vec::new() };
    let mut messages = messages.into_iter();
    let items: Vec<SettleItem> =
        settles.into_iter().map(|settle| SettleItem { settle, message: messages.next().flatten() }).collect();
    let bytes = items.iter().map(|item| 128 + item.message.as_ref().map_or(0, |message| message.payload.len() as u64));
    let bytes = bytes.sum();
    let (reply, answer) = oneshot::channel();
    core.send(Command::Settle(items, reply), bytes)?;
    received(answer.await)
}

/// Messages by place, from memory or their segments.
async fn load(core: &Arc<Core>, places: Vec<Option<Position>>) -> Result<Vec<Option<Message>>, StoreError> {
    let (mut loaded, mut missing) = (Vec::with_capacity(places.len()), false);
    {
        let state = core.state.lock();
        for place in &places {
            let entry = place.and_then(|at| {
                let id = LaneId { topic: at.topic, partition: at.partition, lane: at.offset.lane() };
                let sequence = at.offset.sequence();
                state.lane(id)?.entry(sequence).or_else(|| state.cache.entry(id, sequence)).cloned()
            });
            missing |= place.is_some() && entry.is_none();
            loaded.push(entry);
        }
    }
    let mut messages: Vec<Option<Message>> =
        loaded.into_iter().map(|entry| entry.and_then(|entry| entry.body.message())).collect();
    if missing {
        let reader = Arc::clone(core);
        messages = blocking(move || {
            for (place, message) in places.iter().zip(&mut messages) {
                if let (Some(at), None) = (place, &message) {
                    *message = reader.message_at(*at)?;
                }
            }
            Ok(messages)
        })
        .await?;
    }
    Ok(messages)
}

/// See [`crate::store::MessageStore::tick`].
pub async fn tick(core: &Arc<Core>) -> Result<Option<Timestamp>, StoreError> {
    let due = look(core, core.clock.now());
    let full = due.scheduled.len() >= DUE_MAX || due.dying.len() >= DYING_MAX;
    let work = due.noted || !due.scheduled.is_empty() || !due.dying.is_empty();
    if work {
        let dying = read_dying(core, due.dying).await;
        let bytes =
            dying.iter().filter_map(|(_, message)| message.as_ref()).map(|message| message.payload.len() as u64).sum();
        let (reply, answer) = oneshot::channel();
        core.send(Command::Tick(due.scheduled, dying, reply), bytes)?;
        received(answer.await)?;
    }
    Ok(if full { Some(core.clock.now()) } else { due.next })
}

/// What a tick finds to do.
struct Due {
    scheduled: Vec<(TopicId, u64)>,
    dying: Vec<super::core::Dying>,
    noted: bool,
    next: Option<Timestamp>,
}

fn look(core: &Core, now: Timestamp) -> Due {
    let mut state = core.state.lock();
    let mut due = Due { scheduled: Vec::new(), dying: Vec::new(), noted: !state.notes.is_empty(), next: None };
    let mut next = Timestamp::MAX;
    let mut dying: Vec<(TopicId, GroupId)> = Vec::new();
    for (id, topic) in &mut state.topics {
        topic.run_timers(now);
        let window = topic.spec.dedup_window;
        topic.dedup.age(window, now);
        let room = DUE_MAX - due.scheduled.len();
        due.scheduled.extend(topic.schedule.due(now).take(room).map(|number| (*id, number)));
        next = topic.schedule.due_after(now).map_or(next, |at| next.min(at));
        for (group_id, group) in &topic.groups {
            if !group.exhausted.is_empty() {
                dying.push((*id, *group_id));
            }
            let timers = group.deadlines.first().into_iter().chain(group.retries.first());
            next = timers.map(|(at, ..)| *at).fold(next, Timestamp::min);
        }
    }
    // Each has its share of what one tick buries, so that one topic's dead letters keep no other's waiting.
    let share = (DYING_MAX / dying.len().max(1)).max(1);
    for (id, group) in dying {
        let Some(exhausted) = state.topics.get(&id).and_then(|topic| topic.groups.get(&group)) else { continue };
        let places = exhausted.exhausted.iter().take(share);
        due.dying.extend(places.map(|(partition, offset)| ((id, group, *partition, *offset), None)));
    }
    due.next = (next < Timestamp::MAX).then_some(next);
    due
}

/// Brings the messages of those that die. What cannot be read stays as it is: its partition's damage is known by then.
async fn read_dying(core: &Arc<Core>, dying: Vec<Dying>) -> Vec<Dying> {
    let mut read = Vec::with_capacity(dying.len());
    for (place, _) in dying {
        let (topic, _, partition, offset) = place;
        let message = if core.state.lock().dead_letter_of(topic).is_some() {
            let loaded = load(core, vec![Some(Position { topic, partition, offset })]).await;
            match loaded {
                Ok(messages) => messages.into_iter().next().flatten(),
                Err(_) => continue,
            }
        } else {
            None
        };
        read.push((place, message));
    }
    read
}

/// Runs something that may read files.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Unavailable(format!("a reading thread ended: {error}"))),
    }
}

/// The writer's answer. Without one it ended in the middle, and what it was doing may be on the disk.
pub fn received<T>(answer: Result<Result<T, StoreError>, oneshot::error::RecvError>) -> Result<T, StoreError> {
    answer.unwrap_or_else(|_| Err(StoreError::OutcomeUnknown("the store's writer ended".to_owned())))
}
