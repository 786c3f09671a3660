//! What stages emit: further messages, each through its own topic's stages, committed with the message they came from.
//! Invariant: an emitted message's id follows from (parent, stage, n), so that running a batch again makes the same ids;
//! after [`HOPS_MAX`] hops nothing is emitted any more, so topics that emit to each other come to an end. Never stores.

use std::collections::VecDeque;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::{PublishError, Publisher};
use crate::catalog::model::{OnReject, Scope, Topic};
use crate::message::{DeadLetterFacts, Message, MessageId, MessageMeta, Partition, TopicId};
use crate::pipeline::draft::{Draft, Emitted, Processed, Verdict};

/// From DESIGN §5: a message, and what came of it, is emitted on four times at most.
const HOPS_MAX: u32 = 4;
/// Messages that one publish may cause in all: four hops must not multiply into a flood.
const EMITTED_MAX: usize = 256;

impl Publisher {
    /// The messages to be stored along with the one of id `parent`.
    pub(super) async fn emitted(
        &self,
        from: &Topic,
        parent: MessageId,
        emitted: Vec<Emitted>,
    ) -> Result<super::Emissions, PublishError> {
        let mut stored = Vec::new();
        let mut waiting: VecDeque<(MessageId, Emitted, usize, u32)> =
            emitted.into_iter().enumerate().map(|(n, emitted)| (parent, emitted, n, 1)).collect();
        while let Some((parent, emitted, n, hop)) = waiting.pop_front() {
            if hop > HOPS_MAX || stored.len() >= EMITTED_MAX {
                tracing::warn!(topic = %from.name, to = %emitted.topic, hop, "an emitted message goes too far: dropped");
                continue;
            }
            let Some(target) = self.directory.topic(&emitted.topic) else {
                tracing::warn!(topic = %from.name, to = %emitted.topic, "the topic that a stage emits to is gone: dropped");
                continue;
            };
            let (revision, processed) = self.run_emitted(&target, parent, emitted, n).await?;
            let id = processed.draft.id;
            waiting.extend(processed.emitted.into_iter().enumerate().map(|(n, next)| (id, next, n, hop + 1)));
            stored.extend(place(&target, processed.draft, processed.verdict, revision));
        }
        Ok(stored)
    }

    async fn run_emitted(
        &self,
        target: &Topic,
        parent: MessageId,
        emitted: Emitted,
        n: usize,
    ) -> Result<(u64, Processed), PublishError> {
        let now = self.clock.now();
        let partition = self.partition(target, Some(emitted.key.as_deref().unwrap_or(&parent.to_string())));
        let draft = Draft {
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
        };
        let scope = Scope::Topic(target.id);
        if let Some(revision) = self.pipelines.revision_without_stages(scope) {
            let processed = Processed { draft, verdict: Verdict::Pass, emitted: Vec::new(), trail: Vec::new() };
            return Ok((revision, processed));
        }
        let ran = self.pipelines.run(scope, &target.name, vec![draft]).await;
        let mut ran = ran.map_err(|error| PublishError::Pipeline(Arc::new(error)))?;
        let processed = ran.processed.pop().expect("one draft gets one answer");
        Ok((ran.revision, processed))
    }
}

/// Where an emitted message goes after its topic's stages: the log, the dead letters, or nowhere.
fn place(target: &Topic, draft: Draft, verdict: Verdict, revision: u64) -> Option<(TopicId, Partition, Message)> {
    let (reason, stage, detail) = match verdict {
        Verdict::Pass if draft.payload.len() as u64 > target.settings.max_message_size => {
            ("TOO_LARGE", "".into(), "the payload is over the topic's maxMessageSize".into())
        }
        Verdict::Pass => {
            let (id, partition) = (draft.id, draft.id.partition());
            return Some((target.id, partition, emitted_message(draft, (id, revision, None))));
        }
        Verdict::Drop { .. } => return None,
        Verdict::Reject(rejection) if rejection.on == OnReject::Drop => return None,
        Verdict::Reject(rejection) => {
            let detail = rejection.faults.first().map_or_else(|| "".into(), |fault| Arc::clone(&fault.message));
            ("REJECTED", rejection.stage, detail)
        }
        Verdict::Fault(fault) => ("FAULT", fault.stage, fault.detail),
    };
    let home = target.dead_letter?;
    let at = draft.published_at;
    let facts = DeadLetterFacts {
        original_id: draft.id,
        original: None,
        group: None,
        group_name: "".into(),
        reason: reason.into(),
        detail,
        stage: Some(stage),
        last_status: None,
        attempts: 0,
        at,
    };
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

    #[test]
    fn the_same_parent_stage_and_number_make_the_same_id() {
        let parent = MessageId::new(Timestamp(1), TopicId(1), 0, 7);
        assert_eq!(child_entropy(parent, "split", 0), child_entropy(parent, "split", 0));
        assert_ne!(child_entropy(parent, "split", 0), child_entropy(parent, "split", 1));
        assert_ne!(child_entropy(parent, "split", 0), child_entropy(parent, "join", 0));
    }
}
