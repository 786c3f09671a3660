//! Messages that failed for good: listed, replayed, discarded. Invariant: a replay is stored and its dead letter taken off
//! the list in one unit, so a crash neither loses nor doubles it. Never replays by itself.

use std::sync::Arc;

use bytes::Bytes;

use crate::catalog::model::{DeadLetterPayload, Scope, Topic};
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::message::{DeadLetterFacts, GroupId, Message, MessageId, Position};
use crate::pipeline::Pipelines;
use crate::publish::{PublishError, PublishRequest, Publisher};
use crate::store::{AppendBatch, AppendItem, AppendOutcome, Entry, MessageStore, Page, StoreError};

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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Which {
    /// Those that failed for this group.
    pub group: Option<String>,
    /// Those that failed for this reason: `NACK`, `REJECTED`, ….
    pub reason: Option<String>,
}

/// What a replay of many came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Dead letters that fit.
    pub matched: u64,
    /// Of these, replayed.
    pub replayed: u64,
    /// Of these, refused, with the reason of the first few.
    pub failed: Vec<(MessageId, String)>,
}

/// Refusals that a report names.
const FAILURES_NAMED_MAX: usize = 20;

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
        Ok(self.store.dead_letters(home(topic)?, after, limit).await?)
    }

    /// Replays one; returns the id under which it is delivered again.
    ///
    /// # Errors
    /// The dead letter stays on the list.
    pub async fn replay(&self, topic: &Arc<Topic>, id: MessageId) -> Result<MessageId, DeadLetterError> {
        let (position, message) = self.find(topic, id).await?;
        self.replay_one(topic, position, message).await
    }

    /// Replays all that fit; with `dry_run`, only counts them.
    ///
    /// # Errors
    /// When the list cannot be read. Single refusals are in the report.
    pub async fn replay_all(
        &self,
        topic: &Arc<Topic>,
        which: &Which,
        dry_run: bool,
    ) -> Result<ReplayReport, DeadLetterError> {
        let mut report = ReplayReport::default();
        let mut after = None;
        // What dies again while this runs comes later in the list; it must not be replayed without end.
        let begun = self.clock.now();
        loop {
            let page = self.list(topic, after, PAGE).await?;
            let Some((last, _)) = page.messages.last() else { return Ok(report) };
            after = Some(*last);
            for (position, message) in page.messages {
                let Some(facts) = message.meta.dead_letter.as_deref() else { continue };
                if facts.at > begun || !which.fits(facts) {
                    continue;
                }
                report.matched += 1;
                if dry_run {
                    continue;
                }
                let id = message.id;
                match self.replay_one(topic, position, message).await {
                    Ok(_) => report.replayed += 1,
                    Err(DeadLetterError::Store(error)) => return Err(error.into()),
                    Err(refused) if report.failed.len() < FAILURES_NAMED_MAX => {
                        report.failed.push((id, refused.to_string()));
                    }
                    Err(_) => {}
                }
            }
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
                replays: vec![dead_letter],
            };
            match self.store.append(batch).await {
                Ok(outcomes) if matches!(outcomes.first(), Some(AppendOutcome::Stored(_))) => return Ok(id),
                Ok(outcomes) if matches!(outcomes.first(), Some(AppendOutcome::TopicFull)) => {
                    return Err(PublishError::TopicFull.into());
                }
                // Another replay of it came first.
                Ok(_) => return Err(not_found(topic, dead_letter_id)),
                Err(StoreError::StaleRevision { .. }) => {}
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
        topic,
        payload,
        content_type: Arc::clone(&meta.content_type),
        schema_version: meta.schema_version.clone(),
        headers: meta.headers.clone(),
        priority: meta.priority,
        expires_at: None,
        deliver_at: None,
        correlation_id: meta.correlation_id.clone(),
        reply_to: meta.reply_to.clone(),
        key: meta.key.clone(),
        idempotency_key: None,
        when: None,
        trace: meta.trace.clone(),
        replay_of: Some(message.id),
    }
}
