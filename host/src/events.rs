//! What those who look after topics and endpoints are told, as messages of the topic `sluice.events`. Invariant: telling
//! never waits and never fails its cause; what is told is told once a change, not once a message. Never acts on what it
//! tells.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::catalog::model::{Scope, Subscription, Topic};
use crate::clock::{Clock, Timestamp};
use crate::delivery::dead_letters::{DeadLetterError, DeadLetters};
use crate::directory::Directory;
use crate::message::{EVENTS_TOPIC, TopicId, TopicName, json_media_type};
use crate::pipeline::rollout::RolloutView;
use crate::publish::{PublishError, PublishRequest, Publisher};

/// Events that wait, besides those that are being published; beyond them they are counted, and left out.
const WAITING_MAX: usize = 1000;
/// How many of them are published as one.
const TOGETHER_MAX: usize = 200;
/// How often the publishing of one is tried while the store takes nothing.
const TRIES_MAX: u32 = 30;
/// Before it is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// A topic that is full again so soon is still full.
const STILL_FULL: Duration = Duration::from_secs(60);
/// The header that says what happened, so that a filter need not read the payload.
const TYPE_HEADER: &str = "type";

/// Why an endpoint is sent nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disabled {
    /// It answered 410: its subscription is paused until somebody resumes it.
    Gone,
    /// It keeps failing: its messages wait, and it is probed.
    BreakerOpen,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Event {
    /// `endpoint.disabled`, ….
    kind: &'static str,
    /// What it happened to: those of one subject keep their order.
    subject: String,
    /// The facts.
    facts: Value,
}

/// Where what happens is told. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    sender: mpsc::Sender<(Timestamp, Event)>,
    clock: Clock,
    left_out: IntCounter,
    /// When a topic was last found full.
    full: Arc<Mutex<HashMap<TopicId, Timestamp>>>,
}

/// What waits to be published.
pub struct Waiting {
    receiver: mpsc::Receiver<(Timestamp, Event)>,
    told: IntCounterVec,
    left_out: IntCounter,
}

/// A place to tell, and what [`Waiting::publish`] takes from it.
///
/// # Errors
/// When the metrics are registered already.
pub fn channel(clock: Clock, registry: &Registry) -> prometheus::Result<(Events, Waiting)> {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let told = IntCounterVec::new(Opts::new("sluice_events_total", "Messages of sluice.events, by type."), &["type"])?;
    let left_out = IntCounter::new(
        "sluice_events_left_out_total",
        "Events that could not be published: too many at once, or the store took none.",
    )?;
    registry.register(Box::new(told.clone()))?;
    registry.register(Box::new(left_out.clone()))?;
    let events = Events { sender, clock, left_out: left_out.clone(), full: Arc::default() };
    Ok((events, Waiting { receiver, told, left_out }))
}

impl Events {
    /// An endpoint is sent nothing any more, for now or for good.
    pub fn endpoint_disabled(&self, subscription: &Subscription, why: Disabled, detail: &str) {
        let reason = match why {
            Disabled::Gone => "GONE",
            Disabled::BreakerOpen => "BREAKER_OPEN",
        };
        self.of_endpoint("endpoint.disabled", subscription, json!({ "reason": reason, "detail": detail }));
    }

    /// A delivery succeeded after that.
    pub fn endpoint_recovered(&self, subscription: &Subscription) {
        self.of_endpoint("endpoint.recovered", subscription, json!({}));
    }

    fn of_endpoint(&self, kind: &'static str, subscription: &Subscription, mut facts: Value) {
        let subject = subscription.id.to_string();
        facts["subscriptionId"] = json!(subject);
        facts["topicName"] = json!(subscription.topic_name);
        facts["consumerGroup"] = json!(subscription.consumer_group);
        self.tell(Event { kind, subject, facts });
    }

    /// A topic took no message, because it is full.
    pub fn topic_full(&self, topic: &Topic) {
        if topic.name.as_str() == EVENTS_TOPIC {
            return; // There is no room to tell it in.
        }
        let now = self.clock.now();
        let mut full = self.full.lock();
        full.retain(|_, at| now.since(*at) < STILL_FULL);
        if full.insert(topic.id, now).is_some() {
            return;
        }
        drop(full);
        let facts = json!({ "topicName": topic.name, "retentionBytes": topic.settings.retention_bytes });
        self.tell(Event { kind: "topic.full", subject: topic.name.to_string(), facts });
    }

    /// A version that was tried on a stage did worse than its limits allow, and was taken back.
    pub fn rolled_back(&self, of: &RolloutView, directory: &Directory) {
        let (topic, subscription) = match of.scope {
            Scope::Topic(topic) => (topic, None),
            Scope::Subscription(topic, subscription) => (topic, Some(subscription)),
        };
        let Some(topic) = directory.topic_by_id(topic) else { return };
        let mut facts = json!({
            "topicName": topic.name, "stage": of.stage, "plugin": of.plugin, "version": of.rollout.version,
            "stableVersion": of.stable, "reason": of.ended.as_ref().map(|(_, why, _)| why),
        });
        if let Some(subscription) = subscription {
            facts["subscriptionId"] = json!(subscription.to_string());
        }
        self.tell(Event { kind: "rollout.rolledBack", subject: topic.name.to_string(), facts });
    }

    fn dead_letters(&self, topic: &Topic, count: u64, threshold: u64, oldest: Option<Timestamp>) {
        let facts = json!({
            "topicName": topic.name, "deadLetters": count, "threshold": threshold,
            "oldestFailedAt": oldest.map(Timestamp::rfc3339),
        });
        self.tell(Event { kind: "deadletter.threshold", subject: topic.name.to_string(), facts });
    }

    fn tell(&self, event: Event) {
        if self.sender.try_send((self.clock.now(), event)).is_err() {
            self.left_out.inc();
        }
    }
}

impl Waiting {
    /// Publishes what comes; once `ending`, what is there already, each tried twice more at most.
    pub async fn publish(
        mut self,
        publisher: Arc<Publisher>,
        directory: Arc<Directory>,
        (clock, ending): (Clock, CancellationToken),
    ) {
        let Ok(name) = EVENTS_TOPIC.parse::<TopicName>() else { return };
        let mut events = Vec::with_capacity(TOGETHER_MAX);
        loop {
            let came = tokio::select! {
                came = self.receiver.recv_many(&mut events, TOGETHER_MAX) => came,
                () = ending.cancelled(), if !self.receiver.is_closed() => {
                    self.receiver.close();
                    continue;
                }
            };
            if came == 0 {
                return;
            }
            let Some(topic) = directory.topic(&name) else {
                events.clear();
                continue;
            };
            let all = events.drain(..).map(|(at, event)| (event.kind, request(Arc::clone(&topic), at, event)));
            self.publish_together(all.unzip(), &publisher, (&clock, &ending)).await;
        }
    }

    /// As one, which is on stable storage as soon as any of them alone; or none, and then one by one, so that each keeps its
    /// place among those of its subject.
    async fn publish_together(
        &self,
        (kinds, requests): (Vec<&'static str>, Vec<PublishRequest>),
        publisher: &Publisher,
        (clock, ending): (&Clock, &CancellationToken),
    ) {
        if publisher.publish_batch(requests.clone(), true).await.iter().all(Result::is_ok) {
            kinds.iter().for_each(|kind| self.told.with_label_values(&[kind]).inc());
            return;
        }
        for (kind, request) in kinds.into_iter().zip(requests) {
            match published(publisher, &request, clock, ending).await {
                Ok(()) => self.told.with_label_values(&[kind]).inc(),
                Err(error) => {
                    tracing::error!(%error, event = kind, "an event could not be published: it is left out");
                    self.left_out.inc();
                }
            }
        }
    }
}

/// Tries for as long as a store usually takes to come back.
async fn published(
    publisher: &Publisher,
    request: &PublishRequest,
    clock: &Clock,
    ending: &CancellationToken,
) -> Result<(), PublishError> {
    let mut tries = 1;
    loop {
        // Looked at first: what fails while it ends has been tried since.
        let last = tries == TRIES_MAX || ending.is_cancelled();
        match publisher.publish(request.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) if last || !error.is_retryable() => return Err(error),
            Err(_) => tokio::select! {
                () = clock.sleep_until(clock.now().plus(TRY_AGAIN)) => {}
                () = ending.cancelled() => {}
            },
        }
        tries += 1;
    }
}

fn request(topic: Arc<Topic>, at: Timestamp, event: Event) -> PublishRequest {
    let Event { kind, subject, facts } = event;
    let mut payload = json!({ "type": kind, "at": at.rfc3339() });
    for (name, value) in facts.as_object().into_iter().flatten() {
        payload[name] = value.clone();
    }
    let payload = payload.to_string();
    PublishRequest {
        // A repeat, after an outcome that was not known, is the same event.
        idempotency_key: Some(format!("{kind} {subject} {}", hex::encode(&Sha256::digest(&payload)[..16])).into()),
        headers: vec![(TYPE_HEADER.into(), kind.into())],
        key: Some(subject.into()),
        ..PublishRequest::new(topic, payload.into(), json_media_type())
    }
}

/// Looks at how many dead letters topics have.
#[derive(Default)]
pub struct Thresholds {
    /// Those that have as many as was to be told, and of which it was.
    told: HashSet<TopicId>,
}

impl Thresholds {
    /// Tells of topics that came to have as many as their owners want to know of. Told again when there were fewer in between.
    ///
    /// # Errors
    /// Why some could not be looked at; the others were.
    pub async fn look(
        &mut self,
        directory: &Directory,
        dead_letters: &DeadLetters,
        events: &Events,
    ) -> Result<(), DeadLetterError> {
        let topics = directory.topics();
        let (mut above, mut looked) = (HashSet::new(), Ok(()));
        for topic in topics {
            let Some(threshold) = topic.settings.dead_letter_threshold else { continue };
            let (count, oldest) = match dead_letters.count(&topic).await {
                Ok(counted) => counted,
                Err(error) => {
                    // Not known now: as it was. A topic that was deleted meanwhile is not looked at again.
                    above.extend(self.told.contains(&topic.id).then_some(topic.id));
                    looked = looked.and(directory.topic_by_id(topic.id).map_or(Ok(()), |_| Err(error)));
                    continue;
                }
            };
            if count < threshold {
                continue;
            }
            above.insert(topic.id);
            if !self.told.contains(&topic.id) {
                events.dead_letters(&topic, count, threshold, oldest);
            }
        }
        self.told = above;
        looked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Broker;
    use crate::config::Config;
    use crate::store::{ReadFrom, ReadRequest};

    #[tokio::test]
    async fn what_is_told_beyond_the_bound_is_counted_and_left_out() {
        let clock = Clock::fixed(Timestamp(0));
        let (events, mut waiting) = channel(clock, &Registry::new()).unwrap();
        for number in 0..WAITING_MAX + 3 {
            let subject = number.to_string();
            events.tell(Event { kind: "topic.full", subject, facts: json!({}) });
        }
        assert_eq!(events.left_out.get(), 3);
        let mut told = 0;
        while waiting.receiver.try_recv().is_ok() {
            told += 1;
        }
        assert_eq!(told, WAITING_MAX);
    }

    #[test]
    fn a_topic_that_stays_full_is_told_of_once() {
        let clock = Clock::fixed(Timestamp(0));
        let (events, mut waiting) = channel(clock.clone(), &Registry::new()).unwrap();
        let topic = crate::publish::tests::topic("orders");
        for _ in 0..10 {
            events.topic_full(&topic);
            clock.advance(STILL_FULL / 2);
        }
        assert!(waiting.receiver.try_recv().is_ok() && waiting.receiver.try_recv().is_err());
        clock.advance(STILL_FULL);
        events.topic_full(&topic);
        assert!(waiting.receiver.try_recv().is_ok(), "it had room in between");
    }

    #[tokio::test]
    async fn one_that_cannot_be_published_keeps_no_other_from_it_nor_from_its_place() {
        let root = tempfile::tempdir().unwrap();
        let config = Config { data_dir: root.path().join("data"), ..crate::config::tests::development() };
        let broker = Broker::open(config).await.unwrap();
        let topic = broker.directory.topic(&EVENTS_TOPIC.parse().unwrap()).unwrap();
        let (events, waiting) = channel(broker.clock.clone(), &Registry::new()).unwrap();
        let too_long = "x".repeat(usize::try_from(topic.settings.max_message_size).unwrap());
        for fact in ["one", &too_long, "two", "three"] {
            events.tell(Event { kind: "topic.full", subject: "orders".to_owned(), facts: json!({ "fact": fact }) });
        }
        let (told, ending) = (waiting.told.clone(), CancellationToken::new());
        ending.cancel();
        let clock = broker.clock.clone();
        waiting.publish(Arc::clone(&broker.publisher), Arc::clone(&broker.directory), (clock, ending)).await;
        assert_eq!((told.with_label_values(&["topic.full"]).get(), events.left_out.get()), (3, 1));
        let all =
            ReadRequest { topic: topic.id, partition: None, from: ReadFrom::Earliest, limit: 10, bytes_max: 1 << 20 };
        let stored = broker.store.read(all).await.unwrap().messages;
        let facts = stored.iter().map(|(_, message)| serde_json::from_slice::<Value>(&message.payload).unwrap());
        assert_eq!(facts.map(|of| of["fact"].clone()).collect::<Vec<_>>(), ["one", "two", "three"]);
    }
}
