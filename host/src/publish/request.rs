//! What a publisher asks for and what it is told. Invariant: a [`PublishRequest`] has passed the checks that need no
//! store. Never does I/O.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::catalog::model::Topic;
use crate::clock::Timestamp;
use crate::message::{MessageId, Offset, Partition, TraceContext};
use crate::pipeline::PipelineError;
use crate::pipeline::draft::{Rejection, StageFault, Trail};
use crate::store::StoreError;

/// One message to publish.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// Where to.
    pub topic: Arc<Topic>,
    /// Exactly these bytes.
    pub payload: Bytes,
    /// Their media type.
    pub content_type: Arc<str>,
    /// The schema version that the publisher names.
    pub schema_version: Option<Arc<str>>,
    /// In order.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
    /// 0–9.
    pub priority: u8,
    /// Not delivered after.
    pub expires_at: Option<Timestamp>,
    /// Not delivered before.
    pub deliver_at: Option<Timestamp>,
    /// Names a conversation.
    pub correlation_id: Option<Arc<str>>,
    /// Where an answer is awaited.
    pub reply_to: Option<Arc<str>>,
    /// The broker chose `correlation_id`: a repeat of the request has another one.
    pub correlated_by_us: bool,
    /// Partition key.
    pub key: Option<Arc<str>>,
    /// Makes repeats harmless.
    pub idempotency_key: Option<Arc<str>>,
    /// `deliverAt`, `delay`, `expiresAt`, `ttl` in the request's own words: a repeat of `delay: PT10S` is the same request,
    /// though it comes out at another time.
    pub when: Option<Arc<str>>,
    /// W3C trace context of the request.
    pub trace: Option<TraceContext>,
    /// The dead letter that is published again by this.
    pub replay_of: Option<MessageId>,
}

impl PublishRequest {
    /// A payload, of which nothing else is said.
    #[must_use]
    pub fn new(topic: Arc<Topic>, payload: Bytes, content_type: Arc<str>) -> PublishRequest {
        PublishRequest {
            topic,
            payload,
            content_type,
            schema_version: None,
            headers: Vec::new(),
            priority: 0,
            expires_at: None,
            deliver_at: None,
            correlation_id: None,
            reply_to: None,
            correlated_by_us: false,
            key: None,
            idempotency_key: None,
            when: None,
            trace: None,
            replay_of: None,
        }
    }

    /// Tells a repeat of this request from another one: all that the publisher chose, length-prefixed, hashed.
    #[must_use]
    pub fn hash(&self) -> [u8; 16] {
        let mut hasher = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(&self.payload);
        field(self.content_type.as_bytes());
        let correlation_id = if self.correlated_by_us { &None } else { &self.correlation_id };
        for text in [&self.schema_version, correlation_id, &self.reply_to, &self.key, &self.when] {
            field(&[u8::from(text.is_some())]);
            field(text.as_deref().unwrap_or_default().as_bytes());
        }
        for (name, value) in &self.headers {
            field(name.as_bytes());
            field(value.as_bytes());
        }
        field(&[self.priority]);
        let digest = hasher.finalize();
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        short
    }
}

/// What became of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Stored, and to be delivered.
    Pending,
    /// Stored, and to be delivered when due.
    Scheduled,
    /// A stage dropped it.
    Dropped,
    /// A stage turned it away into the dead-letter topic.
    DeadLettered,
    /// The same request came before under its key.
    Duplicate,
}

impl Status {
    /// As the API and metrics say it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "Pending",
            Status::Scheduled => "Scheduled",
            Status::Dropped => "Dropped",
            Status::DeadLettered => "DeadLettered",
            Status::Duplicate => "Duplicate",
        }
    }
}

/// The answer to a publish: it is durable.
#[derive(Debug, Clone)]
pub struct Published {
    /// The message's id; for a duplicate, the first one's.
    pub message_id: MessageId,
    /// The topic.
    pub topic: Arc<Topic>,
    /// What became of it.
    pub status: Status,
    /// When.
    pub published_at: Timestamp,
    /// Where it stands, if it is in the log.
    pub position: Option<(Partition, Offset)>,
    /// The pipeline revision that it passed.
    pub revision: u64,
    /// The stage that dropped it or turned it away.
    pub stage: Option<Arc<str>>,
    /// In that stage's words.
    pub reason: Option<Arc<str>>,
    /// Each stage's word.
    pub trail: Trail,
}

/// Why nothing was stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// A stage said no.
    #[error("the stage {} rejected the message", .0.stage)]
    Rejected(Rejection),
    /// A stage failed.
    #[error("the stage {} failed: {}", .0.stage, .0.detail)]
    Fault(StageFault),
    /// The payload is over the topic's limit.
    #[error("the payload has {size} bytes; the topic takes {max}")]
    TooLarge {
        /// Its bytes.
        size: u64,
        /// The topic's limit.
        max: u64,
    },
    /// An ExactlyOnce topic, and no key.
    #[error("the topic is ExactlyOnce: an idempotency key is required")]
    KeyRequired,
    /// What the topic's store lacks.
    #[error("{what}")]
    Lacking {
        /// What asks for it, as a JSON Pointer.
        pointer: &'static str,
        /// What to do.
        what: &'static str,
    },
    /// Another request came before under this key.
    #[error("the idempotency key was used for another request")]
    KeyConflict,
    /// No room on the topic.
    #[error("the topic is full")]
    TopicFull,
    /// Another item kept an atomic batch from being stored.
    #[error("not stored, because another message of the atomic batch could not be")]
    NotAttempted,
    /// An atomic batch must go to one topic.
    #[error("an atomic batch must name one topic")]
    SeveralTopics,
    /// The pipeline's word.
    #[error(transparent)]
    Pipeline(Arc<PipelineError>),
    /// The store's word.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PublishError {
    /// Whether the same request may be taken later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            PublishError::TopicFull => true,
            PublishError::Pipeline(error) => error.is_passing(),
            PublishError::Store(error) => error.is_retryable(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chosen_field_changes_the_hash() {
        let request = crate::publish::tests::request("orders", "{}");
        let mut others = vec![request.clone(); 7];
        others[0].payload = Bytes::from_static(b"{ }");
        others[1].key = Some("k".into());
        others[2].correlation_id = Some("k".into());
        others[3].headers = vec![("a".into(), "b".into())];
        others[4].priority = 1;
        others[5].schema_version = Some("".into());
        others[6].when = Some("PT1S".into());
        for (index, other) in others.iter().enumerate() {
            assert_ne!(other.hash(), request.hash(), "{index}");
        }
        assert_eq!(request.clone().hash(), request.hash());
        let asked =
            |id: &str| PublishRequest { correlation_id: Some(id.into()), correlated_by_us: true, ..request.clone() };
        assert_eq!(asked("a").hash(), asked("b").hash());
    }
}
