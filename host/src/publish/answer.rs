//! What a publisher is told. Invariant: an answer says no more than what the stages and the store have said. Never does I/O.

use std::sync::Arc;

use super::{Answer, Emissions, PublishError, Published, Status, Work};
use crate::catalog::model::Topic;
use crate::clock::Timestamp;
use crate::message::MessageId;
use crate::pipeline::draft::Trail;
use crate::store::{AppendOutcome, DedupOutcome, Entry, Fate};

/// The answer before the stages and the store have had their word.
pub(super) fn published(topic: &Arc<Topic>, work: &Work, at: Timestamp, revision: u64) -> Published {
    Published {
        message_id: work.id,
        topic: Arc::clone(topic),
        status: Status::Pending,
        published_at: at,
        position: None,
        revision,
        stage: None,
        reason: None,
        trail: Trail::new(),
    }
}

/// A stage dropped it.
pub(super) fn dropped(
    mut published: Published,
    id: MessageId,
    (stage, reason): (Arc<str>, Arc<str>),
) -> (Published, Entry, Emissions) {
    published.status = Status::Dropped;
    (published.stage, published.reason) = (Some(Arc::clone(&stage)), Some(Arc::clone(&reason)));
    (published, Entry::Dropped { id, stage, reason }, Vec::new())
}

/// The same request came before.
pub(super) fn duplicate(topic: &Arc<Topic>, outcome: DedupOutcome) -> Published {
    let (position, stage, reason) = match outcome.fate {
        Fate::Stored(position) => (Some((position.partition, position.offset)), None, None),
        Fate::Dropped { stage, reason } | Fate::DeadLettered { stage, reason, .. } => (None, Some(stage), Some(reason)),
        Fate::Scheduled => (None, None, None),
    };
    Published {
        message_id: outcome.id,
        topic: Arc::clone(topic),
        status: Status::Duplicate,
        published_at: outcome.at,
        position,
        revision: outcome.revision,
        stage,
        reason,
        trail: Trail::new(),
    }
}

/// After the store's word.
pub(super) fn answer(
    topic: &Arc<Topic>,
    mut published: Published,
    outcome: AppendOutcome,
) -> Result<Published, PublishError> {
    match outcome {
        AppendOutcome::Stored(position) => published.position = Some((position.partition, position.offset)),
        AppendOutcome::Scheduled => published.status = Status::Scheduled,
        AppendOutcome::DeadLettered(_) | AppendOutcome::Dropped => {}
        AppendOutcome::Duplicate(outcome) => return Ok(duplicate(topic, outcome)),
        AppendOutcome::KeyConflict => return Err(PublishError::KeyConflict),
        AppendOutcome::TopicFull => return Err(PublishError::TopicFull),
        AppendOutcome::NotAttempted => return Err(PublishError::NotAttempted),
    }
    Ok(published)
}

/// For those of these places that have no answer yet.
pub(super) fn fail_all(places: impl IntoIterator<Item = usize>, error: &PublishError, results: &mut [Answer]) {
    for place in places {
        if results[place].is_none() {
            results[place] = Some(Err(error.clone()));
        }
    }
}
