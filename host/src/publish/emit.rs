//! What stages emit: further messages, each through its own topic's stages, committed with the message they came from.
//! Invariant: an emitted message's id follows from (parent, stage, n), so that running a batch again makes the same ids;
//! after [`HOPS_MAX`] hops nothing is emitted any more, so topics that emit to each other come to an end; what goes beyond
//! a bound is counted. Never stores.

use std::collections::VecDeque;
use std::sync::Arc;

use prometheus::IntCounter;
use sha2::{Digest as _, Sha256};

use super::{PublishError, Publisher};
use crate::catalog::model::{OnReject, Scope, Topic};
use crate::message::{DeadLetterFacts, Failure, Message, MessageId, MessageMeta, Partition, TopicId, TopicName};
use crate::pipeline::RUN_GROWTH_BYTES_MAX;
use crate::pipeline::draft::{Draft, Emitted, Processed, Trail, Verdict};
use crate::pipeline::kv::{KvRun, Transaction};

/// From DESIGN §5: a message, and what came of it, is emitted on four times at most.
const HOPS_MAX: u32 = 4;
/// Messages that one publish may cause in all: four hops must not multiply into a flood.
const EMITTED_MAX: usize = 256;
/// Bytes of all messages that one request may cause: they are held until all of them can be stored. As many as stages may
/// add to a request's own messages, so that what a stage emits first always fits.
pub(super) const EMITTED_BYTES_MAX: u64 = RUN_GROWTH_BYTES_MAX;

/// What a message's emissions share with the rest of its request.
pub(super) struct Beside<'a> {
    /// Bytes that the request may still cause.
    pub room: &'a mut u64,
    /// What its stages do with values.
    pub values: &'a Arc<Transaction>,
    /// The message's place in the request.
    pub message: usize,
    /// What came to topics that keep what arrives: it has arrived once it is stored.
    pub arrived: &'a mut Vec<(Arc<Topic>, Draft)>,
}

/// What came of one message, and waits to go through its topic's stages.
struct Chain<'a> {
    from: &'a Topic,
    waiting: VecDeque<(MessageId, Emitted, usize, u32)>,
    admitted: usize,
    /// Bytes that the request may still cause.
    room: &'a mut u64,
    dropped: &'a IntCounter,
}

impl Chain<'_> {
    fn admit(&mut self, parent: MessageId, emitted: Vec<Emitted>, hop: u32) {
        for (n, emitted) in emitted.into_iter().enumerate() {
            if hop > HOPS_MAX || self.admitted >= EMITTED_MAX || !self.take(emitted.payload.len()) {
                self.drop(&emitted.topic, "it goes too far, or is too much");
                continue;
            }
            self.admitted += 1;
            self.waiting.push_back((parent, emitted, n, hop));
        }
    }

    fn take(&mut self, bytes: usize) -> bool {
        let left = self.room.checked_sub(bytes as u64);
        *self.room = left.unwrap_or(*self.room);
        left.is_some()
    }

    fn drop(&self, to: &TopicName, why: &str) {
        self.dropped.inc();
        tracing::warn!(topic = %self.from.name, %to, why, "an emitted message is dropped");
    }
}

impl Publisher {
    /// The messages to be stored along with the one of id `parent`, as long as the request has `room` for their bytes.
    pub(super) async fn emitted(
        &self,
        from: &Topic,
        parent: MessageId,
        emitted: Vec<Emitted>,
        beside: &mut Beside<'_>,
    ) -> Result<super::Emissions, PublishError> {
        let mut stored = Vec::new();
        let dropped = &self.metrics.emitted_dropped;
        let Beside { room, values, message, arrived } = beside;
        let mut chain = Chain { from, waiting: VecDeque::new(), admitted: 0, room, dropped };
        chain.admit(parent, emitted, 1);
        while let Some((parent, emitted, n, hop)) = chain.waiting.pop_front() {
            let Some(target) = self.directory.topic(&emitted.topic) else {
                chain.drop(&emitted.topic, "the topic is gone");
                continue;
            };
            // Allowed to be emitted to, then made anew: with its cause it would be no one unit.
            if target.settings.storage != from.settings.storage {
                chain.drop(&emitted.topic, "the topic is kept in another store");
                continue;
            }
            let bytes = emitted.payload.len();
            let owner = values.owner_beside(*message);
            let run = KvRun::of_one(values, owner);
            let draft = self.emitted_draft(&target, parent, (emitted, n));
            let came = target.settings.capture_input.map(|_| draft.clone());
            let (revision, processed) = self.run_emitted(&target, draft, run).await?;
            if !chain.take(processed.draft.payload.len().saturating_sub(bytes)) {
                values.refuse(owner);
                chain.drop(&target.name, "it goes too far, or is too much");
                continue;
            }
            chain.admit(processed.draft.id, processed.emitted, hop + 1);
            if !keeps_writes(&target, &processed.draft, &processed.verdict) {
                values.refuse(owner);
            }
            let placed = place(&target, processed.draft, processed.verdict, revision);
            if let Some(came) = came {
                // Under the id of what becomes of it: by that, it can be erased.
                let id = placed.as_ref().map_or(came.id, |(_, _, message)| message.id);
                arrived.push((target, Draft { id, ..came }));
            }
            stored.extend(placed);
        }
        Ok(stored)
    }

    fn emitted_draft(&self, target: &Topic, parent: MessageId, (emitted, n): (Emitted, usize)) -> Draft {
        let now = self.clock.now();
        let partition = super::partition(target, Some(emitted.key.as_deref().unwrap_or(&parent.to_string())), 0);
        Draft {
            id: MessageId::new(now, target.id, partition, child_entropy(parent, &emitted.stage, n)),
            published_at: now,
            payload: emitted.payload,
            content_type: "application/json".into(),
            schema_version: None,
            headers: emitted.headers,
            key: emitted.key,
            correlation_id: None,
            priority: 0,
            attempt: 0,
            position: None,
            drawn: Some(emitted.lot),
        }
    }

    async fn run_emitted(&self, target: &Topic, draft: Draft, values: KvRun) -> Result<(u64, Processed), PublishError> {
        let scope = Scope::Topic(target.id);
        if let Some(revision) = self.pipelines.revision_without_stages(scope) {
            let processed = Processed { draft, verdict: Verdict::Pass, emitted: Vec::new(), trail: Trail::new() };
            return Ok((revision, processed));
        }
        let ran = self.pipelines.run_with(scope, target, vec![draft], Some(values)).await;
        let mut ran = ran.map_err(|error| PublishError::Pipeline(Arc::new(error)))?;
        let processed = ran.processed.pop().expect("one draft gets one answer");
        Ok((ran.revision, processed))
    }
}

/// Whether what stages set for the sake of a message lasts: it goes on to its topic, or a stage drops it, and that is well.
/// What is turned away comes again through all stages once it is replayed.
pub(super) fn keeps_writes(topic: &Topic, draft: &Draft, verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Pass => draft.payload.len() as u64 <= topic.settings.max_message_size,
        Verdict::Drop { .. } => true,
        Verdict::Reject(_) | Verdict::Fault(_) => false,
    }
}

/// Where an emitted message goes after its topic's stages: the log, the dead letters, or nowhere.
fn place(target: &Topic, draft: Draft, verdict: Verdict, revision: u64) -> Option<(TopicId, Partition, Message)> {
    let (reason, stage, detail) = match verdict {
        Verdict::Pass if draft.payload.len() as u64 > target.settings.max_message_size => {
            ("TOO_LARGE", None, "the payload is over the topic's maxMessageSize".into())
        }
        Verdict::Pass => {
            let (id, partition) = (draft.id, draft.id.partition());
            return Some((target.id, partition, emitted_message(draft, (id, revision, None))));
        }
        Verdict::Drop { .. } => return None,
        Verdict::Reject(rejection) if rejection.on == OnReject::Drop => return None,
        Verdict::Reject(rejection) => {
            let detail = rejection.faults.first().map_or_else(|| "".into(), |fault| Arc::clone(&fault.message));
            ("REJECTED", Some(rejection.stage_ref()), detail)
        }
        Verdict::Fault(fault) => ("FAULT", Some(fault.stage_ref()), fault.detail),
    };
    let home = target.dead_letter?;
    let at = draft.published_at;
    let last = Failure { reason: reason.into(), detail, stage, last_status: None };
    let facts = DeadLetterFacts::turned_away(draft.id, last, at);
    let id = MessageId::new(at, home, 0, draft.id.0.as_u64_pair().1);
    Some((home, 0, emitted_message(draft, (id, revision, Some(Box::new(facts))))))
}

fn emitted_message(
    draft: Draft,
    (id, revision, dead_letter): (MessageId, u64, Option<Box<DeadLetterFacts>>),
) -> Message {
    let meta = MessageMeta {
        content_type: draft.content_type,
        schema_version: draft.schema_version,
        headers: draft.headers,
        priority: draft.priority,
        key: draft.key,
        correlation_id: draft.correlation_id,
        reply_to: None,
        published_at: draft.published_at,
        expires_at: None,
        trace: None,
        revision,
        dead_letter,
        replay_of: None,
    };
    Message { id, payload: draft.payload, meta }
}

fn child_entropy(parent: MessageId, stage: &str, n: usize) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(parent.0.as_bytes());
    hasher.update(stage.as_bytes());
    hasher.update((n as u64).to_le_bytes());
    hasher.finalize()[..8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::pipeline::draft::Lot;
    use crate::publish::tests::topic;

    #[test]
    fn what_one_message_causes_is_bounded_in_number_and_bytes_and_counted() {
        let (from, dropped) = (topic("a"), IntCounter::new("dropped", "Dropped.").unwrap());
        let parent = MessageId::new(Timestamp(1), TopicId(1), 0, 7);
        let emitted = |count: usize, bytes: usize| {
            let payload = bytes::Bytes::from(vec![0; bytes]);
            let lot = Lot::of(b"k");
            let topic = "b".parse().unwrap();
            let one = Emitted { topic, key: None, payload, headers: vec![], stage: "s".into(), lot };
            vec![one; count]
        };
        let mut room = 1000;
        let mut chain =
            Chain { from: &from, waiting: VecDeque::new(), admitted: 0, room: &mut room, dropped: &dropped };
        chain.admit(parent, emitted(3, 300), 1);
        chain.admit(parent, emitted(1, 101), 2);
        assert_eq!((chain.waiting.len(), dropped.get()), (3, 1), "101 bytes are more than the 100 that are left");
        chain.admit(parent, emitted(EMITTED_MAX, 0), HOPS_MAX);
        assert_eq!((chain.waiting.len(), dropped.get()), (EMITTED_MAX, 4));
        chain.waiting.clear();
        chain.admit(parent, emitted(1, 0), HOPS_MAX + 1);
        assert!(chain.waiting.is_empty() && dropped.get() == 5);
    }

    #[test]
    fn the_same_parent_stage_and_number_make_the_same_id() {
        let parent = MessageId::new(Timestamp(1), TopicId(1), 0, 7);
        assert_eq!(child_entropy(parent, "split", 0), child_entropy(parent, "split", 0));
        assert_ne!(child_entropy(parent, "split", 0), child_entropy(parent, "split", 1));
        assert_ne!(child_entropy(parent, "split", 0), child_entropy(parent, "join", 0));
    }
}
