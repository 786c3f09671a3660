//! A message's way in: key looked up → the topic's stages → one durable append → the answer. Invariant: `Ok` means that
//! the message is on stable storage (or dropped by a stage, its outcome kept under its key); any error but
//! `OutcomeUnknown` means that nothing was stored. Never waits for another topic's stages.

mod answer;
mod attempt;
mod emit;
mod metrics;
mod request;

use answer::{dropped, duplicate, fail_all, published};
use metrics::PublishMetrics;
pub use request::{PublishError, PublishRequest, Published, Status};

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::Registry;
use tracing::Instrument as _;

use crate::capture::Capture;
use crate::catalog::model::{Guarantee, OnFault, OnReject, Storage, Topic};
use crate::clock::{Clock, Timestamp};
use crate::directory::Directory;
use crate::entropy::Entropy;
use crate::events::Events;
use crate::message::{
    DeadLetterFacts, Failure, Message, MessageId, MessageMeta, Partition, Position, StageRef, TopicId,
};
use crate::pipeline::Pipelines;
use crate::pipeline::draft::{Draft, Processed, Verdict};
use crate::store::{DedupKey, Entry, MessageStore, StoreError};
use crate::telemetry::Stopwatch;

/// Look-ups of keys before other tasks of the same thread get their turn.
const LOOK_UPS_AT_ONCE: usize = 256;

/// Publishes.
pub struct Publisher {
    store: Arc<dyn MessageStore>,
    pipelines: Arc<Pipelines>,
    directory: Arc<Directory>,
    clock: Clock,
    entropy: Entropy,
    /// Spreads messages without a key over the partitions.
    next_partition: AtomicUsize,
    events: Events,
    capture: Capture,
    metrics: PublishMetrics,
}

/// The result of one request, once there is one.
type Answer = Option<Result<Published, PublishError>>;
/// What is stored along with a message.
type Emissions = Vec<(TopicId, Partition, Message)>;

/// One publish between the stages and the store.
struct Work {
    index: usize,
    request: PublishRequest,
    id: MessageId,
    /// When it came, which is the time that its id has: by that it enters the log where the store's clock is behind ours, so that who
    /// seeks it by its time finds it.
    came: Timestamp,
    dedup: Option<DedupKey>,
}

impl Publisher {
    /// A publisher into `store`.
    ///
    /// # Errors
    /// When its metrics are registered already.
    pub fn new(
        store: Arc<dyn MessageStore>,
        pipelines: Arc<Pipelines>,
        directory: Arc<Directory>,
        (clock, entropy): (Clock, Entropy),
        (events, capture): (Events, Capture),
        registry: &Registry,
    ) -> prometheus::Result<Publisher> {
        let next_partition = AtomicUsize::new(0);
        let metrics = PublishMetrics::new(registry)?;
        Ok(Publisher { store, pipelines, directory, clock, entropy, next_partition, events, capture, metrics })
    }

    /// Publishes one message.
    ///
    /// # Errors
    /// Nothing was stored, but for `OutcomeUnknown`.
    pub async fn publish(&self, request: PublishRequest) -> Result<Published, PublishError> {
        self.publish_batch(vec![request], false).await.pop().expect("one request gets one result")
    }

    /// Publishes many; one result each, in order. With `atomic`, all of them (of one topic) or none.
    pub async fn publish_batch(
        &self,
        requests: Vec<PublishRequest>,
        atomic: bool,
    ) -> Vec<Result<Published, PublishError>> {
        let stopwatch = Stopwatch::start();
        let mut results: Vec<Answer> = Vec::new();
        results.resize_with(requests.len(), || None);
        let several = requests.windows(2).any(|pair| pair[0].topic.id != pair[1].topic.id);
        if atomic && several {
            results.fill_with(|| Some(Err(PublishError::SeveralTopics)));
        } else {
            for (topic, work) in self.by_topic(requests, &mut results) {
                let span = publish_span(&topic, work.len());
                self.publish_to(&topic, work, atomic, &mut results).instrument(span).await;
            }
        }
        let results: Vec<_> =
            results.into_iter().map(|result| result.unwrap_or(Err(PublishError::NotAttempted))).collect();
        self.metrics.count(&results);
        self.metrics.duration.observe(stopwatch.elapsed().as_secs_f64());
        results
    }

    /// Sends a dead letter that never got into its topic through the topic's pipeline again.
    ///
    /// # Errors
    /// As [`Publisher::publish`]; the dead letter stays where it is.
    pub async fn replay(&self, request: PublishRequest, dead_letter: Position) -> Result<Published, PublishError> {
        let topic = Arc::clone(&request.topic);
        check_size(&request)?;
        let work = vec![self.work(0, request, self.clock.now(), self.turn())];
        let mut results = vec![None];
        self.attempt(&topic, work, (false, vec![dead_letter]), &mut results).await;
        results.pop().flatten().unwrap_or(Err(PublishError::NotAttempted))
    }

    /// Those requests that can be taken, by their topics, in order; the others have their result.
    fn by_topic(&self, requests: Vec<PublishRequest>, results: &mut [Answer]) -> Vec<(Arc<Topic>, Vec<Work>)> {
        let (now, count) = (self.clock.now(), requests.len());
        let mut groups: Vec<(Arc<Topic>, Vec<Work>)> = Vec::new();
        let mut places = HashMap::new();
        let turn = self.turn();
        for (index, request) in requests.into_iter().enumerate() {
            if let Err(error) = check(&request) {
                results[index] = Some(Err(error));
                continue;
            }
            let topic = Arc::clone(&request.topic);
            let work = self.work(index, request, now, turn);
            match groups.last_mut() {
                // Most batches go to one topic.
                Some((last, works)) if last.id == topic.id => works.push(work),
                None => {
                    places.insert(topic.id, 0);
                    let mut works = Vec::with_capacity(count);
                    works.push(work);
                    groups.push((topic, works));
                }
                Some(_) => {
                    let place = *places.entry(topic.id).or_insert_with(|| {
                        groups.push((topic, Vec::new()));
                        groups.len() - 1
                    });
                    groups[place].1.push(work);
                }
            }
        }
        groups
    }

    fn work(&self, index: usize, request: PublishRequest, now: Timestamp, turn: u32) -> Work {
        let partition = partition(&request.topic, request.key.as_deref(), turn);
        let enters = request.deliver_at.map_or(now, |due| due.max(now));
        let id = MessageId::new(enters, request.topic.id, partition, self.entropy.next_u64());
        let key = request.idempotency_key.as_ref();
        let dedup = key.map(|key| DedupKey { key: Arc::clone(key), request_hash: request.hash() });
        Work { index, request, id, came: now, dedup }
    }

    async fn publish_to(&self, topic: &Arc<Topic>, mut work: Vec<Work>, atomic: bool, results: &mut [Answer]) {
        let places: Vec<usize> = places(&work).collect();
        if let Err(error) = self.answer_duplicates(topic, &mut work, results).await {
            fail_all(places, &PublishError::Store(error), results);
            return;
        }
        if atomic && results.iter().any(|result| matches!(result, Some(Err(_)))) {
            return;
        }
        let is_kept = topic.settings.capture_input.is_some();
        let arrived: Vec<(usize, Draft)> = match is_kept {
            true => work.iter().map(|work| (work.index, draft(work))).collect(),
            false => Vec::new(),
        };
        self.attempt(topic, work, (atomic, Vec::new()), results).await;
        if is_kept {
            // What may be taken later comes again, and what is replayed has arrived before. It is kept under the id that its
            // publisher is told, also where that is a dead letter's: by it, it can be erased.
            self.capture.take(topic, || {
                arrived.into_iter().filter_map(|(index, draft)| match results[index].as_ref()? {
                    Ok(published) if published.status == Status::Duplicate => None,
                    Ok(published) => Some(Draft { id: published.message_id, ..draft }),
                    Err(error) => (!error.is_retryable()).then_some(draft),
                })
            });
        }
    }

    /// Spares repeats the pipeline; `append` looks again, since two can race.
    async fn answer_duplicates(
        &self,
        topic: &Arc<Topic>,
        work: &mut Vec<Work>,
        results: &mut [Answer],
    ) -> Result<(), StoreError> {
        if work.iter().all(|work| work.dedup.is_none()) {
            return Ok(());
        }
        let mut new = Vec::with_capacity(work.len());
        for (looked_up, one) in std::mem::take(work).into_iter().enumerate() {
            if looked_up % LOOK_UPS_AT_ONCE == LOOK_UPS_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let known = match &one.dedup {
                Some(dedup) => self.store.dedup_lookup(topic.id, &dedup.key).await?.map(|outcome| (dedup, outcome)),
                None => None,
            };
            results[one.index] = match known {
                None => {
                    new.push(one);
                    continue;
                }
                Some((dedup, outcome)) if dedup.request_hash == outcome.request_hash => {
                    Some(Ok(duplicate(topic, outcome)))
                }
                Some(_) => Some(Err(PublishError::KeyConflict)),
            };
        }
        *work = new;
        Ok(())
    }

    async fn decide(
        &self,
        topic: &Arc<Topic>,
        work: &Work,
        (revision, processed): (u64, Processed),
        beside: &mut emit::Beside<'_>,
    ) -> Result<(Published, Entry, Emissions), PublishError> {
        let draft = processed.draft;
        let verdict = match processed.verdict {
            Verdict::Pass if draft.payload.len() as u64 > topic.settings.max_message_size => {
                let (size, max) = (draft.payload.len() as u64, topic.settings.max_message_size);
                return Err(PublishError::TooLarge { size, max });
            }
            other => other,
        };
        let mut published = published(topic, work, draft.published_at, revision);
        match verdict {
            Verdict::Pass => {
                let due = work.request.deliver_at.filter(|due| *due > draft.published_at);
                let partition = self.final_partition(topic, work, &draft);
                let id = work.id.in_partition(partition);
                published.message_id = id;
                let emitted = self.emitted(topic, id, processed.emitted, beside).await?;
                let message = message(work, draft, (id, revision, None));
                Ok((published, Entry::Log { partition, message, due, target: None }, emitted))
            }
            Verdict::Drop { stage, reason } => Ok(dropped(published, work.id, (stage, reason))),
            Verdict::Reject(rejection) if rejection.on == OnReject::Reject => Err(PublishError::Rejected(rejection)),
            Verdict::Reject(rejection) => {
                let word = rejection.faults.first().map_or_else(|| "".into(), |fault| Arc::clone(&fault.message));
                if rejection.on == OnReject::Drop {
                    return Ok(dropped(published, work.id, (rejection.stage, word)));
                }
                Ok(self.turned_away(topic, work, published, ("REJECTED", rejection.stage_ref(), word)))
            }
            Verdict::Fault(fault) if fault.on == OnFault::DeadLetter => {
                let word: Arc<str> = format!("{}: {}", fault.cause.as_str(), fault.detail).into();
                Ok(self.turned_away(topic, work, published, ("FAULT", fault.stage_ref(), word)))
            }
            Verdict::Fault(fault) => Err(PublishError::Fault(fault)),
        }
    }

    /// A dead letter holds the message as it was published: replaying it is publishing it again.
    fn turned_away(
        &self,
        topic: &Topic,
        work: &Work,
        mut published: Published,
        (reason, stage, detail): (&str, StageRef, Arc<str>),
    ) -> (Published, Entry, Emissions) {
        let now = published.published_at;
        let home = topic.dead_letter.unwrap_or(topic.id);
        let id = MessageId::new(now, home, 0, self.entropy.next_u64());
        let name = Arc::clone(&stage.name);
        let last =
            Failure { reason: reason.into(), detail: Arc::clone(&detail), stage: Some(stage), last_status: None };
        let facts = DeadLetterFacts::turned_away(id, last, now);
        let message = message(work, draft(work), (id, published.revision, Some(Box::new(facts))));
        published.message_id = id;
        published.status = Status::DeadLettered;
        (published.stage, published.reason) = (Some(name), Some(detail));
        (published, Entry::DeadLetter { message }, Vec::new())
    }

    /// Calls take partitions in turn. All of one call without a key goes to one: whoever stores it waits for no other.
    fn turn(&self) -> u32 {
        self.next_partition.fetch_add(1, Ordering::Relaxed) as u32
    }

    fn final_partition(&self, topic: &Topic, work: &Work, draft: &Draft) -> Partition {
        if draft.key == work.request.key {
            work.id.partition()
        } else {
            partition(topic, draft.key.as_deref(), self.turn())
        }
    }
}

/// The key's partition, always the same one; without a key, the one whose turn it is.
fn partition(topic: &Topic, key: Option<&str>, turn: u32) -> Partition {
    let count = u32::from(topic.settings.partition_count.max(1));
    let number = key.map_or(turn, |key| crc32c::crc32c(key.as_bytes()));
    (number % count) as Partition
}

fn places(work: &[Work]) -> impl Iterator<Item = usize> {
    work.iter().map(|work| work.index)
}

fn check_size(request: &PublishRequest) -> Result<(), PublishError> {
    let (size, max) = (request.payload.len() as u64, request.topic.settings.max_message_size);
    if size > max { Err(PublishError::TooLarge { size, max }) } else { Ok(()) }
}

fn check(request: &PublishRequest) -> Result<(), PublishError> {
    check_size(request)?;
    if request.topic.settings.guarantee == Guarantee::ExactlyOnce && request.idempotency_key.is_none() {
        return Err(PublishError::KeyRequired);
    }
    if request.topic.settings.storage == Storage::Redis {
        check_for_redis(request)?;
    }
    Ok(())
}

/// A stream has no lanes, and nothing waits for its time in it.
fn check_for_redis(request: &PublishRequest) -> Result<(), PublishError> {
    let lacking = |pointer, what| Err(PublishError::Lacking { pointer, what });
    if request.priority != 0 {
        return lacking(
            "/priority",
            "is 0 on a topic in Redis, whose messages go in their order: leave it out, or use a topic with the default storage",
        );
    }
    if request.deliver_at.is_some() {
        return lacking(
            "/deliverAt",
            "is not for topics in Redis, which has no schedule: leave deliverAt (delay) out, or use a topic with the default storage",
        );
    }
    Ok(())
}

fn draft(work: &Work) -> Draft {
    let request = &work.request;
    Draft {
        id: work.id,
        published_at: work.came,
        payload: request.payload.clone(),
        content_type: Arc::clone(&request.content_type),
        schema_version: request.schema_version.clone(),
        headers: request.headers.clone(),
        key: request.key.clone(),
        correlation_id: request.correlation_id.clone(),
        priority: request.priority,
        attempt: 0,
        position: None,
        drawn: None,
    }
}

fn message(
    work: &Work,
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
        reply_to: work.request.reply_to.clone(),
        published_at: draft.published_at,
        expires_at: work.request.expires_at,
        trace: work.request.trace.clone(),
        revision,
        dead_letter,
        replay_of: work.request.replay_of,
    };
    Message { id, payload: draft.payload, meta }
}

fn publish_span(topic: &Topic, count: usize) -> tracing::Span {
    tracing::info_span!(
        "publish",
        otel.name = format!("send {}", topic.name),
        otel.kind = "producer",
        messaging.system = "sluice",
        messaging.operation.name = "publish",
        messaging.operation.type = "send",
        messaging.destination.name = %topic.name,
        messaging.batch.message_count = count,
    )
}

#[cfg(test)]
pub(crate) mod tests {
    mod values;

    use super::*;
    use crate::catalog::model::{DeadLetterPayload, Storage, TopicKind, TopicSettings};
    use std::time::Duration;

    /// A topic as the API makes it by default.
    pub(crate) fn topic(name: &str) -> Topic {
        Topic {
            id: TopicId(1),
            name: name.parse().expect("a valid name"),
            dead_letter: Some(TopicId(2)),
            settings: TopicSettings {
                description: String::new(),
                kind: TopicKind::Queue,
                schema_id: None,
                guarantee: Guarantee::AtLeastOnce,
                retention: Duration::from_secs(7 * 86_400),
                retention_bytes: None,
                partition_count: 4,
                max_message_size: 1 << 20,
                dedup_window: Duration::from_secs(600),
                dedup_keys_max: 1000,
                dead_letter_payload: DeadLetterPayload::Original,
                dead_letter_expired: false,
                dead_letter_threshold: None,
                capture_input: None,
                storage: Storage::Default,
            },
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
            version: 1,
        }
    }

    /// A plain request.
    pub(crate) fn request(name: &str, payload: &'static str) -> PublishRequest {
        let payload = bytes::Bytes::from_static(payload.as_bytes());
        PublishRequest::new(Arc::new(topic(name)), payload, "application/json".into())
    }

    #[test]
    fn an_exactly_once_topic_demands_a_key_and_size_is_limited() {
        let mut strict = topic("t");
        strict.settings.guarantee = Guarantee::ExactlyOnce;
        let to = |topic: &Topic| PublishRequest { topic: Arc::new(topic.clone()), ..request("t", "{}") };
        assert!(matches!(check(&to(&strict)), Err(PublishError::KeyRequired)));
        strict.settings.max_message_size = 1;
        assert!(matches!(check(&to(&strict)), Err(PublishError::TooLarge { size: 2, max: 1 })));
    }
}
