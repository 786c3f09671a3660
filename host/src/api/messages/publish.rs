//! Publishing one message. Invariant: 202 says that the message is durable. Never retries.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::cloud_events::{self, CloudEventBody};
use super::publish_body::{PublishBody, Reading, idempotency_key};
use crate::api::auth::Caller;
use crate::api::extract::{Query, RawBody};
use crate::api::problem::Problem;
use crate::api::wire::Time;
use crate::api::{answer, reach};
use crate::broker::Broker;
use crate::catalog::model::Topic;
use crate::message::{MessageId, REPLIES_TOPIC, TopicName};
use crate::pipeline::draft::StageWord;
use crate::publish::Published;
use crate::store::MessageStore;
use crate::telemetry::parse_traceparent;

/// How to publish.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PublishQuery {
    /// Adds each stage's verdict and time to the answer.
    explain: bool,
    /// The topic of a CloudEvent, which names none itself. For CloudEvents alone.
    #[param(required = false, nullable = false)]
    topic: Option<String>,
}

/// What became of a publish.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PublishAnswer<'a> {
    /// Its id; for a duplicate, the first one's.
    #[schema(value_type = String, format = Uuid)]
    message_id: MessageId,
    /// Where it went.
    topic_name: &'a str,
    /// `Pending`, `Scheduled`, `Dropped`, `DeadLettered` or `Duplicate`.
    status: &'static str,
    /// When it was accepted.
    published_at: Time,
    /// Where it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<u16>,
    /// Where it stands in its partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// The revision of the topic's pipeline that it passed.
    pipeline_revision: u64,
    /// What "durable" means here: `fsync`, `postgres`, ….
    durability: &'static str,
    /// The stage that dropped it or turned it away.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<&'a str>,
    /// In that stage's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// Each stage's word, with `?explain=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<Vec<Explained<'a>>>,
}

/// One stage's word.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Explained<'a> {
    /// The stage.
    stage: &'a str,
    /// `pass`, `changed`, `dropped`, `rejected` or `fault`.
    verdict: &'static str,
    /// Microseconds: this message's share of the stage's time.
    micros: f64,
}

impl<'a> PublishAnswer<'a> {
    /// The message's id.
    pub(super) fn id(&self) -> MessageId {
        self.message_id
    }

    pub(super) fn of(published: &'a Published, store: &dyn MessageStore, explain: bool) -> PublishAnswer<'a> {
        let explained = |word: &'a StageWord| Explained {
            stage: &word.stage,
            verdict: word.word.as_str(),
            micros: word.took.as_nanos() as f64 / 1000.0,
        };
        PublishAnswer {
            message_id: published.message_id,
            topic_name: published.topic.name.as_str(),
            status: published.status.as_str(),
            published_at: Time(published.published_at),
            partition: published.position.map(|(partition, _)| partition),
            offset: published.position.map(|(_, offset)| offset.0),
            pipeline_revision: published.revision,
            durability: store.capabilities_of(published.topic.id).durability,
            stage: published.stage.as_deref(),
            reason: published.reason.as_deref(),
            explain: explain.then(|| published.trail.iter().map(explained).collect()),
        }
    }
}

/// Publish a message, or a CloudEvent to `?topic=`.
///
/// An event comes in structured mode (`application/cloudevents+json`), or in binary mode: with `ce-…` headers, and a body of
/// any media type as its data. It is binary where both the header `ce-specversion` and `?topic=` are there.
#[utoipa::path(
    post, path = "/api/v1/messages/publish", tag = "messages", params(
        PublishQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Makes repeats harmless, as `idempotencyKey`; of a CloudEvent, its `source` and `id` do otherwise"),
        ("ce-specversion" = Option<String>, Header, description = "`1.0`: a CloudEvent in binary mode, with `?topic=`; any other attribute has a header `ce-…` too"),
        ("ce-id" = Option<String>, Header, description = "With `ce-source` it tells the event from all others"),
        ("ce-source" = Option<String>, Header, description = "A URI reference"),
        ("ce-type" = Option<String>, Header, description = "What kind of event it is"),
        ("ce-subject" = Option<String>, Header, description = "What it is about"),
        ("ce-time" = Option<String>, Header, description = "RFC 3339"),
        ("ce-dataschema" = Option<String>, Header, description = "An absolute URI"),
        ("ce-partitionkey" = Option<String>, Header, description = "Events of one key keep their order"),
        ("ce-expirytime" = Option<String>, Header, description = "RFC 3339: not delivered after this time"),
    ),
    request_body(
        description = "A message; a CloudEvent in structured mode; the data of one in binary mode",
        content((PublishBody = "application/json"), (CloudEventBody = "application/cloudevents+json"), ("*/*")),
    ),
    responses((status = 202, description = "Durable (or dropped by a stage, as `status` says)", body = PublishAnswer)),
)]
pub(super) async fn publish(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    query: Query<PublishQuery>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let PublishQuery { explain, topic } = query.plain()?;
    let reading = reading(&broker, &headers, &body.bytes)?;
    let find = |name: &TopicName, pointer: &str| destination(&broker, &caller, name, pointer);
    let request = cloud_events::message(&reading, &headers, topic.as_deref(), &find)?;
    let published = broker.publisher.publish(request).await?;
    Ok(answer::json(StatusCode::ACCEPTED, &PublishAnswer::of(&published, &*broker.store, explain)))
}

/// What this request's messages are read with.
pub(super) fn reading<'r>(broker: &Broker, headers: &HeaderMap, bytes: &'r Bytes) -> Result<Reading<'r>, Problem> {
    let trace = trace_to_store(broker, headers);
    // A malformed one counts for nothing, as W3C Trace Context has it.
    let given = headers.get("traceparent").and_then(|given| given.to_str().ok());
    let is_given = given.and_then(parse_traceparent).is_some();
    Ok(Reading::new(bytes, broker.clock.now(), idempotency_key(headers)?, trace).with_trace_given(is_given))
}

/// The trace that deliveries link to: the request's span where spans are exported, else what the publisher sent, if
/// anything (a trace that nobody collects is not worth its bytes in the log).
fn trace_to_store(broker: &Broker, headers: &HeaderMap) -> Option<crate::message::TraceContext> {
    if broker.config.telemetry.otlp_endpoint.is_none() && !headers.contains_key("traceparent") {
        return None;
    }
    crate::telemetry::current_trace_context()
}

/// A topic that may be published to; `pointer` is where its name stands.
pub(super) fn destination(
    broker: &Broker,
    caller: &Caller,
    name: &TopicName,
    pointer: &str,
) -> Result<Arc<Topic>, Problem> {
    if name.as_str() == REPLIES_TOPIC {
        // Open to all who publish: whom a reply is for is said by its `correlationId`, which only the one asked knows.
        return broker.directory.topic(name).ok_or_else(|| Problem::not_found("topic", name));
    }
    let topic = reach::topic(broker, caller, name)?;
    if topic.name.is_dead_letter() {
        let message = "dead letters come to this topic by themselves; publish to the topic whose they are";
        return Err(Problem::invalid_at(pointer, message));
    }
    if topic.name.is_system() {
        return Err(Problem::invalid_at(pointer, "what this topic tells is told by the broker itself"));
    }
    Ok(topic)
}
