//! Messages that failed for good: listed, replayed, discarded. Invariant: a replay is stored and its dead letter taken off
//! the list in one unit, so a crash neither loses nor doubles it. Never replays by itself.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use payload_query::Query as PayloadQuery;
use serde::{Deserialize, Serialize};

use crate::catalog::model::{DeadLetterPayload, Scope, Topic};
use crate::clock::{Clock, Timestamp};
use crate::entropy::Entropy;
use crate::message::{DeadLetterFacts, GroupId, Message, MessageId, Position};
use crate::pipeline::Pipelines;
use crate::publish::{PublishError, PublishRequest, Publisher};
use crate::store::{AppendBatch, AppendItem, AppendOutcome, Entry, KvUse, MessageStore, Page, StoreError};

/// Dead letters read at once while replaying many.
const PAGE: usize = 100;
/// Times that a replay is tried again because the topic's pipeline changed under it.
const REVISION_RETRIES_MAX: usize = 8;

/// Lists and replays.
pub struct DeadLetters {
    store: Arc<dyn MessageStore>,
    pipelines: Arc<Pipelines>,
    publisher: Arc<Publisher>,
    clock: Clock,
    entropy: Entropy,
}

/// Which dead letters.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// Those that failed for this group.
    pub group: Option<String>,
    /// Those that failed for this reason: `NACK`, `REJECTED`, ….
    pub reason: Option<String>,
    /// Those that failed at this time or later.
    pub from: Option<Timestamp>,
    /// Those that failed before this time.
    pub until: Option<Timestamp>,
    /// Those whose JSON payload fits.
    pub filter: Option<PayloadQuery>,
}

/// A replay of many.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Of these.
    pub which: Which,
    /// Only counts them.
    pub dry_run: bool,
    /// At most so many that fit.
    pub at_most: u64,
    /// So many a second at most.
    pub rate: Option<NonZeroU32>,
    /// Where the call before ended.
    pub after: Option<ReplayCursor>,
    /// When this call ends, done or not.
    pub due: Timestamp,
}

/// Where a replay of many goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayCursor {
    /// Behind this one; none: before the first.
    after: Option<Position>,
    /// When the replay began: what dies again while it runs comes later in the list, and must not be replayed without end.
    begun: Timestamp,
    /// When its rate lets the next one through.
    next_at: Timestamp,
}

/// What a replay of many came to, in one call.
#[derive(Debug, Clone, Default)]
pub struct ReplayReport {
    /// Dead letters that fit.
    pub matched: u64,
    /// Of these, replayed.
    pub replayed: u64,
    /// How many fit, by their reason.
    pub reasons: BTreeMap<Arc<str>, u64>,
    /// Of those that fit, refused: the first few, with the reason.
    pub failed: Vec<(MessageId, String)>,
    /// Where to go on; none at the end of the list.
    pub next: Option<ReplayCursor>,
}

/// Refusals that a report names.
const FAILURES_NAMED_MAX: usize = 20;
/// Reasons that a report counts apart; a consumer's own words may be many.
const REASONS_MAX: usize = 50;
/// What the others are counted as.
const OTHER_REASONS: &str = "OTHER";

/// Why a dead letter was not replayed or discarded.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// There is no such dead letter, or the topic has none.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be replayed.
    #[error("{0}")]
    Conflict(String),
    /// It went through the topic's stages again and was not stored.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The store's word.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What dead letters are made of.
pub struct DeadLettersParts {
    /// Where they are.
    pub store: Arc<dyn MessageStore>,
    /// Knows the revisions.
    pub pipelines: Arc<Pipelines>,
    /// Publishes those again that never got into their topic.
    pub publisher: Arc<Publisher>,
    /// The time.
    pub clock: Clock,
    /// For new ids.
    pub entropy: Entropy,
}

impl DeadLetters {
    /// Works on `parts.store`.
    #[must_use]
    pub fn new(parts: DeadLettersParts) -> DeadLetters {
        let DeadLettersParts { store, pipelines, publisher, clock, entropy } = parts;
        DeadLetters { store, pipelines, publisher, clock, entropy }
    }

    /// The dead letters of a topic, oldest first.
    ///
    /// # Errors
    /// `NotFound` for a topic that is itself one of dead letters.
    pub async fn list(&self, topic: &Topic, after: Option<Position>, limit: usize) -> Result<Page, DeadLetterError> {
        let home = home(topic)?;
        // A place comes back from a client, who may have made it up.
        if after.is_some_and(|after| after.topic != home || after.partition != 0 || !after.offset.is_plausible()) {
            return Err(StoreError::Invalid("`nextToken` is of another list".to_owned()).into());
        }
        Ok(self.store.dead_letters(home, after, limit).await?)
    }

    /// How many a topic has, and when the oldest of them became one.
    ///
    /// # Errors
    /// `NotFound` for a topic that is itself one of dead letters.
    pub async fn count(&self, topic: &Topic) -> Result<(u64, Option<Timestamp>), DeadLetterError> {
        let listed =
            self.store.stats(home(topic)?).await?.groups.into_iter().find(|group| group.group == GroupId::SHARED);
        Ok(listed.map_or((0, None), |list| (list.waiting, list.oldest_unsettled)))
    }

    /// Replays one; returns the id under which it is delivered again.
    ///
    /// # Errors
    /// The dead letter stays on the list.
    pub async fn replay(&self, topic: &Arc<Topic>, id: MessageId) -> Result<MessageId, DeadLetterError> {
        let (position, message) = self.find(topic, id).await?;
        self.replay_one(topic, position, message).await
    }

    /// Replays those that fit, until the list ends, there are enough, or the call's time is over; or until the topic has no
    /// room or the store fails.
    ///
    /// # Errors
    /// Where nothing fitted before the store failed or the topic was full. Single refusals are in the report.
    pub async fn replay_many(&self, topic: &Arc<Topic>, replay: &Replay) -> Result<ReplayReport, DeadLetterError> {
        let now = self.clock.now();
        let mut report = ReplayReport::default();
        let mut cursor = replay.after.unwrap_or(ReplayCursor { after: None, begun: now, next_at: now });
        loop {
            let page = match self.list(topic, cursor.after, PAGE).await {
                Ok(page) => page,
                Err(error) => return report.broken_off(cursor, error),
            };
            if page.messages.is_empty() {
                return Ok(report);
            }
            for (position, message) in page.messages {
                let fits = match self.fits(topic, &replay.which, &message, cursor.begun).await {
                    Ok(fits) => fits,
                    Err(error) => return report.broken_off(cursor, error),
                };
                if fits && !replay.dry_run && !self.is_its_turn(replay, &mut cursor).await {
                    report.next = Some(cursor);
                    return Ok(report);
                }
                if fits && !replay.dry_run {
                    let counted = reason_of(&message);
                    if let Err(error) = self.replay_into(topic, position, message, &mut report).await {
                        return report.broken_off(cursor, error);
                    }
                    report.count(counted);
                } else if fits {
                    report.count(reason_of(&message));
                }
                cursor.after = Some(position);
                if report.matched >= replay.at_most || self.clock.now() >= replay.due {
                    report.next = Some(cursor);
                    return Ok(report);
                }
            }
        }
    }

    /// Waits until the rate lets one more through; false where that is after the call's end.
    async fn is_its_turn(&self, replay: &Replay, cursor: &mut ReplayCursor) -> bool {
        let Some(rate) = replay.rate else { return true };
        if cursor.next_at >= replay.due {
            return false;
        }
        self.clock.sleep_until(cursor.next_at).await;
        // Counted from now where it was late: what was missed is not made up for by a burst.
        let now = self.clock.now();
        cursor.next_at = cursor.next_at.max(now).plus(Duration::from_millis(u64::from(1000_u32.div_ceil(rate.get()))));
        true
    }

    async fn replay_into(
        &self,
        topic: &Arc<Topic>,
        position: Position,
        message: Message,
        report: &mut ReplayReport,
    ) -> Result<(), DeadLetterError> {
        let id = message.id;
        match self.replay_one(topic, position, message).await {
            Ok(_) => report.replayed += 1,
            // No word on this one: the next would fare no better now.
            Err(error @ DeadLetterError::Store(_)) => return Err(error),
            Err(DeadLetterError::Publish(error)) if error.is_retryable() => return Err(error.into()),
            Err(refused) if report.failed.len() < FAILURES_NAMED_MAX => report.failed.push((id, refused.to_string())),
            Err(_) => {}
        }
        Ok(())
    }

    async fn fits(
        &self,
        topic: &Topic,
        which: &Which,
        message: &Message,
        begun: Timestamp,
    ) -> Result<bool, DeadLetterError> {
        let Some(facts) = message.meta.dead_letter.as_deref() else { return Ok(false) };
        if facts.at > begun || !which.fits(facts) {
            return Ok(false);
        }
        let Some(filter) = &which.filter else { return Ok(true) };
        match self.payload(topic, message, facts).await {
            Ok(payload) => Ok(filter.read(&payload).is_some_and(|payload| filter.matches(&payload))),
            Err(DeadLetterError::Store(error)) => Err(error.into()),
            // What is not kept fits nothing.
            Err(_) => Ok(false),
        }
    }

    /// Takes one off the list for good.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn discard(&self, topic: &Topic, id: MessageId) -> Result<(), DeadLetterError> {
        let (position, _) = self.find(topic, id).await?;
        match self.store.discard_dead_letters(vec![position]).await? {
            0 => Err(not_found(topic, id)),
            _ => Ok(()),
        }
    }

    async fn find(&self, topic: &Topic, id: MessageId) -> Result<(Position, Message), DeadLetterError> {
        let home = home(topic)?;
        let found = self.store.get(id).await?.ok_or_else(|| not_found(topic, id))?;
        let listed = found
            .groups
            .iter()
            .any(|status| status.group == GroupId::SHARED && status.state != crate::store::DeliveryState::Settled);
        match found.position {
            Some(position) if position.topic == home && listed => Ok((position, found.message)),
            _ => Err(not_found(topic, id)),
        }
    }

    async fn replay_one(
        &self,
        topic: &Arc<Topic>,
        position: Position,
        message: Message,
    ) -> Result<MessageId, DeadLetterError> {
        let facts = message.meta.dead_letter.clone().ok_or_else(|| not_found(topic, message.id))?;
        let payload = self.payload(topic, &message, &facts).await?;
        match (facts.group, facts.original) {
            (Some(group), Some(original)) => {
                self.to_group(topic, (group, original), Message { payload, ..message }, position).await
            }
            _ => {
                let request = publish_again(Arc::clone(topic), payload, &message);
                Ok(self.publisher.replay(request, position).await?.message_id)
            }
        }
    }

    /// Back into the log, for the one group that it failed for.
    async fn to_group(
        &self,
        topic: &Topic,
        (group, original): (GroupId, Position),
        message: Message,
        dead_letter: Position,
    ) -> Result<MessageId, DeadLetterError> {
        if !self.store.groups(topic.id).await?.contains(&group) {
            return Err(DeadLetterError::Conflict(
                "the subscription that it failed for is gone; discard it, or publish its payload anew".to_owned(),
            ));
        }
        let (now, dead_letter_id) = (self.clock.now(), message.id);
        let id = MessageId::new(now, topic.id, original.partition, self.entropy.next_u64());
        for _ in 0..REVISION_RETRIES_MAX {
            let revision = self.pipelines.revision(Scope::Topic(topic.id));
            let mut message = Message { id, ..message.clone() };
            message.meta.dead_letter = None;
            message.meta.replay_of = Some(dead_letter_id);
            message.meta.expires_at = None;
            message.meta.revision = revision;
            let entry = Entry::Log { partition: original.partition, message, due: None, target: Some(group) };
            let item = AppendItem { dedup: None, entry, emitted: Vec::new() };
            let batch = AppendBatch {
                topic: topic.id,
                revision,
                items: vec![item],
                all_or_nothing: true,
                kv: Vec::new(),
                values: KvUse::default(),
                replays: vec![dead_letter],
            };
            match self.store.append(batch).await {
                Ok(outcomes) if matches!(outcomes.first(), Some(AppendOutcome::Stored(_))) => return Ok(id),
                Ok(outcomes) if matches!(outcomes.first(), Some(AppendOutcome::TopicFull)) => {
                    return Err(PublishError::TopicFull.into());
                }
                // Another replay of it came first.
                Ok(_) => return Err(not_found(topic, dead_letter_id)),
                Err(StoreError::StaleRevision { .. })
                    if self.publisher.knows_more_than(Scope::Topic(topic.id), revision).await => {}
                Err(StoreError::StaleRevision { .. }) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Unavailable("the topic's pipeline keeps changing".to_owned()).into())
    }

    /// Its own payload; where only the facts were kept, the original's, as long as that is there.
    async fn payload(
        &self,
        topic: &Topic,
        message: &Message,
        facts: &DeadLetterFacts,
    ) -> Result<Bytes, DeadLetterError> {
        let kept = topic.settings.dead_letter_payload == DeadLetterPayload::Original || !message.payload.is_empty();
        if kept || facts.original.is_none() {
            return Ok(message.payload.clone());
        }
        match self.store.get(facts.original_id).await? {
            Some(found) => Ok(found.message.payload),
            None => Err(DeadLetterError::Conflict(
                "its payload was not kept (deadLetterPayload: none) and the original is out of retention".to_owned(),
            )),
        }
    }
}

impl Which {
    fn fits(&self, facts: &DeadLetterFacts) -> bool {
        self.group.as_deref().is_none_or(|group| group == &*facts.group_name)
            && self.reason.as_deref().is_none_or(|reason| reason == &*facts.last.reason)
            && self.from.is_none_or(|from| facts.at >= from)
            && self.until.is_none_or(|until| facts.at < until)
    }
}

fn reason_of(message: &Message) -> Arc<str> {
    message.meta.dead_letter.as_deref().map_or_else(Arc::default, |facts| Arc::clone(&facts.last.reason))
}

impl ReplayReport {
    /// What was done is told, and the next call begins with what failed; where nothing was done, the failure is told.
    fn broken_off(mut self, at: ReplayCursor, error: DeadLetterError) -> Result<ReplayReport, DeadLetterError> {
        if self.matched == 0 {
            return Err(error);
        }
        self.next = Some(at);
        Ok(self)
    }

    fn count(&mut self, reason: Arc<str>) {
        self.matched += 1;
        let is_one_more = self.reasons.len() >= REASONS_MAX && !self.reasons.contains_key(&reason);
        *self.reasons.entry(if is_one_more { OTHER_REASONS.into() } else { reason }).or_default() += 1;
    }
}

fn home(topic: &Topic) -> Result<crate::message::TopicId, DeadLetterError> {
    topic.dead_letter.ok_or_else(|| {
        DeadLetterError::NotFound(format!(
            "the topic '{}' holds dead letters itself and has none of its own",
            topic.name
        ))
    })
}

fn not_found(topic: &Topic, id: MessageId) -> DeadLetterError {
    DeadLetterError::NotFound(format!("the topic '{}' has no dead letter {id}", topic.name))
}

fn publish_again(topic: Arc<Topic>, payload: Bytes, message: &Message) -> PublishRequest {
    let meta = &message.meta;
    PublishRequest {
        schema_version: meta.schema_version.clone(),
        headers: meta.headers.clone(),
        priority: meta.priority,
        correlation_id: meta.correlation_id.clone(),
        reply_to: meta.reply_to.clone(),
        key: meta.key.clone(),
        trace: meta.trace.clone(),
        replay_of: Some(message.id),
        ..PublishRequest::new(topic, payload, Arc::clone(&meta.content_type))
    }
}
