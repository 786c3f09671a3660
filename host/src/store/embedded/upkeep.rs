//! Retention, erasure, figures: calls that look through what is stored. Invariant: what they remove is journaled before a
//! file is touched. Run on blocking threads as far as they read.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::core::{Command, Core, Job};
use super::delivery::{blocking, received};
use super::ops::{LaneId, LaneStart};
use super::segment::Span;
use super::state::control::{Answer, Control, Cut};
use super::state::offset;
use crate::clock::Timestamp;
use crate::message::{GroupId, MessageId, Position, TopicId};
use crate::store::{DeliveryState, Found, GroupStatus, Page, RetainReport, SeekTo, StoreError, TopicStats};

/// Payload bytes of one page of dead letters.
const DEAD_LETTERS_BYTES: usize = 16 << 20;

/// Sends a control to the writer and waits for its answer.
pub async fn control(core: &Core, control: Control) -> Result<Answer, StoreError> {
    let (reply, answer) = oneshot::channel();
    core.send(Command::Control(control, reply), 0)?;
    received(answer.await)
}

/// See [`crate::store::MessageStore::retain`].
pub async fn retain(core: &Arc<Core>) -> Result<RetainReport, StoreError> {
    let reader = Arc::clone(core);
    let cuts = blocking(move || Ok(reader.cuts())).await?;
    let report = if cuts.is_empty() {
        RetainReport::default()
    } else {
        match control(core, Control::Trim(cuts)).await? {
            Answer::Retained(report) => report,
            Answer::Count(_) => RetainReport::default(),
        }
    };
    core.jobs.nudge();
    Ok(report)
}

/// Places by time, for a cursor.
pub async fn by_time(core: &Arc<Core>, topic: TopicId, to: SeekTo) -> Result<Vec<LaneStart>, StoreError> {
    let SeekTo::Time(at) = to else { return Ok(Vec::new()) };
    let reader = Arc::clone(core);
    blocking(move || {
        let lanes: Vec<LaneId> = reader.state.lock().topic(topic)?.lanes().map(|(id, _)| id).collect();
        let mut starts = Vec::with_capacity(lanes.len());
        for id in lanes {
            let sequence = reader.first_at(id, at)?;
            starts.push(LaneStart { partition: id.partition, offset: offset(id, sequence) });
        }
        Ok(starts)
    })
    .await
}

/// See [`crate::store::MessageStore::erase`].
pub async fn erase(core: &Arc<Core>, message: MessageId) -> Result<bool, StoreError> {
    // A scheduled message may enter its log between the two steps, once.
    Ok(try_erase(core, message).await? || try_erase(core, message).await?)
}

async fn try_erase(core: &Arc<Core>, message: MessageId) -> Result<bool, StoreError> {
    let reader = Arc::clone(core);
    let (waiting, places) = blocking(move || reader.all_of(message)).await?;
    let mut count = 0;
    if let Some((topic, number)) = waiting {
        count += control(core, Control::Unschedule(topic, number)).await?.count();
    }
    if !places.is_empty() {
        count += control(core, Control::Erase(places)).await?.count();
    }
    if count > 0 {
        let (reply, answer) = oneshot::channel();
        let overwritten = match core.send_job(Job::Erase(reply)) {
            Ok(()) => received(answer.await),
            Err(error) => Err(error),
        };
        // Unreadable it is, for good; the bytes go with the next step that succeeds.
        overwritten.map_err(|error| {
            StoreError::OutcomeUnknown(format!("the message is unreadable, but its bytes are still in a file: {error}"))
        })?;
    }
    Ok(count > 0)
}

/// A scheduled message, and places in logs.
type Everywhere = (Option<(TopicId, u64)>, Vec<(LaneId, u64)>);

impl Core {
    /// The topics that may hold a message of this id: the one it names, then where that one's dead letters go.
    fn topics_of(&self, message: MessageId) -> Vec<TopicId> {
        let state = self.state.lock();
        // An id holds the low 24 bits only.
        let named = |topic: &TopicId| topic.0 & 0xff_ffff == message.topic().0;
        let mut topics: Vec<TopicId> = state.topics.keys().copied().filter(named).collect();
        let dead: Vec<TopicId> = topics.iter().filter_map(|topic| state.dead_letter_of(*topic)).collect();
        topics.extend(dead);
        topics
    }

    /// See [`crate::store::MessageStore::get`].
    pub fn get(&self, message: MessageId) -> Result<Option<Found>, StoreError> {
        let topics = self.topics_of(message);
        for topic in &topics {
            let state = self.state.lock();
            if let Some((_, scheduled)) = state.topics.get(topic).and_then(|topic| topic.schedule.find(message)) {
                let Some(message) = scheduled.body.message() else { continue };
                return Ok(Some(Found { message, position: None, due: Some(scheduled.due), groups: Vec::new() }));
            }
        }
        for topic in topics {
            let Some((id, sequence, entry)) = self.find(topic, message)? else { continue };
            let (Some(message), mut state) = (entry.body.message(), self.state.lock()) else { continue };
            let now = self.clock.now();
            let Ok(topic) = state.topic_mut(topic) else { continue };
            if entry.at <= topic.cutoff(now) {
                continue;
            }
            topic.run_timers(now);
            let position = super::read::position(id, sequence);
            let groups = topic.groups.keys().map(|group| status(topic, *group, position)).collect();
            return Ok(Some(Found { message, position: Some(position), due: None, groups }));
        }
        Ok(None)
    }

    /// A message wherever it is, its dead letters included.
    fn all_of(&self, message: MessageId) -> Result<Everywhere, StoreError> {
        let (mut waiting, mut places) = (None, Vec::new());
        for topic in self.topics_of(message) {
            let found = self.state.lock().topics.get(&topic).and_then(|t| Some(t.schedule.find(message)?.0));
            waiting = waiting.or(found.map(|number| (topic, number)));
            if let Some((id, sequence, _)) = self.find(topic, message)? {
                places.push((id, sequence));
            }
            let dead = self.state.lock().dead_letter_of(topic);
            if let Some(dead) = dead {
                self.copies_of(dead, message, &mut places)?;
            }
        }
        Ok((waiting, places))
    }

    /// Dead letters of a message. Their ids do not follow from it, so all of the topic since it came is read.
    fn copies_of(&self, dead: TopicId, message: MessageId, places: &mut Vec<(LaneId, u64)>) -> Result<(), StoreError> {
        let lanes: Vec<LaneId> = self.state.lock().topic(dead)?.lanes().map(|(id, _)| id).collect();
        for id in lanes {
            let mut sequence = self.state.lock().lane(id).map_or(0, |lane| lane.start);
            while let Some(entry) = self.entry(id, sequence)? {
                let facts = entry.body.message().and_then(|known| known.meta.dead_letter);
                if facts.is_some_and(|facts| facts.original_id == message) {
                    places.push((id, sequence));
                }
                sequence += 1;
            }
        }
        Ok(())
    }

    /// See [`crate::store::MessageStore::dead_letters`].
    pub fn dead_letters(&self, topic: TopicId, after: Option<Position>, limit: usize) -> Result<Page, StoreError> {
        let lanes: Vec<(LaneId, u64, u64)> = {
            let state = self.state.lock();
            let topic = state.topic(topic)?;
            let group = topic.groups.get(&GroupId::SHARED).ok_or(StoreError::NoGroup)?;
            let floor = |id: LaneId| {
                let part = &group.partitions[usize::from(id.partition)];
                part.cursors[usize::from(id.lane)].as_deref().map_or(0, |cursor| cursor.floor)
            };
            topic.lanes().map(|(id, lane)| (id, lane.start.max(floor(id)), lane.end)).collect()
        };
        let mut places = Vec::with_capacity(lanes.len());
        for (id, start, end) in lanes {
            let from = match after {
                Some(after) => self.after(id, after, (start, end))?,
                None => start,
            };
            places.push((id, from.max(start)));
        }
        let listed = |id: LaneId, sequence: u64| {
            let state = self.state.lock();
            let topic = state.topics.get(&topic);
            topic.is_some_and(|topic| !topic.is_settled(GroupId::SHARED, id.partition, offset(id, sequence)))
        };
        self.merge(topic, places, (limit, DEAD_LETTERS_BYTES), &listed)
    }

    /// Times and groups of the figures that memory alone does not know.
    pub fn stats(&self, topic: TopicId) -> Result<TopicStats, StoreError> {
        let now = self.clock.now();
        let mut figures = self.state.lock().figures(topic, now)?;
        figures.stats.oldest = self.earliest(&figures.oldest)?;
        for (group, firsts) in figures.stats.groups.iter_mut().zip(&figures.unsettled) {
            group.oldest_unsettled = self.earliest(firsts)?;
        }
        Ok(figures.stats)
    }

    fn earliest(&self, places: &[(LaneId, u64)]) -> Result<Option<Timestamp>, StoreError> {
        let mut earliest = None;
        for (id, sequence) in places {
            let at = self.entry(*id, *sequence)?.map(|entry| entry.at);
            earliest = earliest.into_iter().chain(at).min();
        }
        Ok(earliest)
    }

    /// What retention removes now. A damaged lane is left as it is: its damage is known, and the others go on.
    fn cuts(&self) -> Vec<Cut> {
        let now = self.clock.now();
        let topics: Vec<TopicId> = self.state.lock().topics.keys().copied().collect();
        let mut cuts = Vec::new();
        for topic in topics {
            cuts.extend(self.cuts_of(topic, now));
        }
        cuts
    }

    fn cuts_of(&self, topic: TopicId, now: Timestamp) -> Vec<Cut> {
        let (cutoff, over, lanes) = {
            let state = self.state.lock();
            let Some(topic) = state.topics.get(&topic) else { return Vec::new() };
            let over = topic.spec.retention_bytes.map_or(0, |limit| topic.bytes().saturating_sub(limit));
            let lanes: Vec<(LaneId, u64, u64)> =
                topic.lanes().map(|(id, lane)| (id, lane.start, topic.settled_below(id))).collect();
            (topic.cutoff(now), over, lanes)
        };
        let (mut cuts, mut freed) = (Vec::new(), 0);
        for (id, from, settled) in lanes {
            let cut = self.first_at(id, Timestamp(cutoff.0.saturating_add(1))).and_then(|by_time| {
                let (start, bytes) = self.walk(id, from, by_time.max(from), u64::MAX)?;
                let need = over.saturating_sub(freed + bytes);
                let (start, more) = self.walk(id, start, settled.max(start), need)?;
                Ok(Cut { lane: id, from, start, bytes: bytes + more })
            });
            match cut {
                Ok(cut) if cut.start > from => {
                    freed += cut.bytes;
                    cuts.push(cut);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, topic = topic.0, "retention could not read a lane"),
            }
        }
        cuts
    }

    /// What the segment holds that begins with this message, if one does.
    fn segment_from(&self, id: LaneId, sequence: u64) -> Option<Span> {
        let state = self.state.lock();
        let span = state.lane(id)?.segment_of(sequence)?.span;
        (span.first == sequence).then_some(span)
    }

    /// Goes from `from` towards `limit` until `need` bytes are passed; where it got, and what lies between.
    fn walk(&self, id: LaneId, from: u64, limit: u64, need: u64) -> Result<(u64, u64), StoreError> {
        let (mut at, mut bytes) = (from, 0);
        while at < limit && bytes < need {
            // Whole segments count by what is known of them, so that one that cannot be read does not stay for ever.
            if let Some(span) = self.segment_from(id, at).filter(|span| span.end <= limit && bytes + span.bytes <= need)
            {
                (at, bytes) = (span.end, bytes + span.bytes);
                continue;
            }
            // Whole blocks count by their index, so that a long backlog is not read to be removed.
            match self.block_span(id, at)? {
                Some(span) if span.first == at && span.end <= limit && bytes + span.bytes <= need => {
                    at = span.end;
                    bytes += span.bytes;
                }
                _ => {
                    let Some(entry) = self.entry(id, at)? else { break };
                    bytes += entry.body.head.cost();
                    at += 1;
                }
            }
        }
        Ok((at, bytes))
    }
}

/// A message's state for a group.
fn status(topic: &super::state::Topic, group: GroupId, at: Position) -> GroupStatus {
    use super::state::cursor::Standing;
    let known = topic.groups.get(&group).and_then(|group| group.exception(at.partition, at.offset));
    let state = if topic.is_settled(group, at.partition, at.offset) {
        DeliveryState::Settled
    } else {
        match known.map(|known| (&known.standing, known.attempts)) {
            Some((Standing::Held(held), attempt)) => DeliveryState::Leased { attempt, deadline: held.deadline },
            Some((Standing::Waits(due), attempts)) if *due > Timestamp(0) => {
                DeliveryState::Retrying { attempts, at: *due }
            }
            _ => DeliveryState::Waiting,
        }
    };
    let failures = known.map(|known| known.failures.clone()).unwrap_or_default();
    GroupStatus { group, state, failures }
}
