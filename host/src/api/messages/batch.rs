//! Publishing many messages at once. Invariant: one result per item, in order; with `atomic`, all are stored or none.
//! Never holds more than [`ITEMS_MAX`] items.

use std::fmt;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, header};
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::cloud_events::{self, CloudEventBody};
use super::publish::{PublishAnswer, destination, reading};
use super::publish_body::{PublishBody, Reading};
use crate::api::answer;
use crate::api::auth::Caller;
use crate::api::extract::{Object, Query, RawBody, Spare, decode, expect_json, is_media_type};
use crate::api::problem::{Faults, Problem, ProblemBody};
use crate::broker::Broker;
use crate::catalog::model::Topic;
use crate::message::TopicName;
use crate::publish::{PublishError, PublishRequest, Published};
use crate::store::MessageStore;

/// Items of one batch, from API.md.
pub(super) const ITEMS_MAX: usize = 10_000;
/// What most results have, rounded up: an answer of this size need not grow.
const RESULT_BYTES: usize = 320;

/// How to publish a batch.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BatchQuery {
    /// All messages (of one topic) are stored, or none.
    atomic: bool,
    /// The topic of CloudEvents, which name none themselves. For `application/cloudevents-batch+json` alone.
    #[param(required = false, nullable = false)]
    topic: Option<String>,
}

/// Many messages.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "what the documentation shows: it is read message by message")]
pub(super) struct BatchBody<'a> {
    /// At most 10 000.
    #[serde(borrow)]
    #[schema(value_type = Vec<PublishBody>, max_items = 10_000)]
    messages: Vec<Object<PublishBody<'a>>>,
}

/// The same, with each message still unread: for finding which ones are wrong.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnreadBody<'a> {
    #[serde(borrow)]
    messages: Vec<&'a RawValue>,
}

/// What became of each message.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchAnswer<'a> {
    /// Messages taken: durable, dropped by a stage, or duplicates.
    accepted: usize,
    /// Messages that were refused.
    refused: usize,
    /// One per message, in order.
    results: Vec<ItemAnswer<'a>>,
}

/// What became of one message.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum ItemAnswer<'a> {
    /// Taken.
    Accepted(PublishAnswer<'a>),
    /// Refused; nothing of it is stored.
    Refused {
        /// `Rejected`.
        status: &'static str,
        /// Why.
        error: Box<ProblemBody>,
    },
}

/// Publish many messages, or CloudEvents to `?topic=`.
#[utoipa::path(
    post, path = "/api/v1/messages/publish/batch", tag = "messages", params(BatchQuery),
    request_body(
        description = "JSON, or one message a line; or a batch of CloudEvents",
        content(
            (BatchBody = "application/json"), (PublishBody = "application/x-ndjson"),
            (Vec<CloudEventBody> = "application/cloudevents-batch+json"),
        ),
    ),
    responses((status = 200, description = "A result per message, in order", body = BatchAnswer)),
)]
pub(super) async fn publish_batch(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    query: Query<BatchQuery>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let BatchQuery { atomic, topic } = query.plain()?;
    let items = items(&broker, &caller, &headers, (&body, topic.as_deref()))?;
    let results = publish_items(&broker, items, atomic).await;
    Ok(answer::ok_of_bytes(&summary(&results, &*broker.store), (results.len() + 1) * RESULT_BYTES))
}

type Item = Result<PublishRequest, Problem>;

fn items(
    broker: &Broker,
    caller: &Caller,
    headers: &HeaderMap,
    (body, topic): (&RawBody, Option<&str>),
) -> Result<Vec<Item>, Problem> {
    // One key would make all items but the first a duplicate or a conflict; each item has its own.
    if headers.contains_key("idempotency-key") {
        return Err(Problem::invalid_at(
            "",
            "a batch takes no header `Idempotency-Key`; give items an `idempotencyKey` (events have their `source` and `id`)",
        ));
    }
    let reading = reading(broker, headers, &body.bytes)?;
    if cloud_events::is_batch(headers)? {
        return cloud_events::batch(&reading, topic, &|name, pointer| destination(broker, caller, name, pointer));
    }
    let find = |name: &TopicName| destination(broker, caller, name, "/topicName");
    let lines = is_ndjson(headers);
    if !lines {
        expect_json(headers)?;
    }
    if topic.is_some() {
        return Err(Problem::invalid_at(
            "/topic",
            "is for CloudEvents: send them as application/cloudevents-batch+json",
        ));
    }
    if lines { from_lines(&reading, &find) } else { from_json(&reading, &find) }
}

/// Whether a body has one message a line.
pub(in crate::api) fn is_ndjson(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|given| is_media_type(given.as_bytes(), NDJSON))
}

const NDJSON: &[&str] = &["application/x-ndjson", "application/ndjson"];

type Find<'f> = dyn Fn(&TopicName) -> Result<Arc<Topic>, Problem> + 'f;

fn from_json(reading: &Reading<'_>, find: &Find<'_>) -> Result<Vec<Item>, Problem> {
    let mut text = serde_json::Deserializer::from_slice(reading.bytes());
    if let Ok(items) = text.deserialize_map(Batch { reading, find })
        && text.end().is_ok()
        && !items.is_empty()
    {
        return Ok(items);
    }
    let (spare, mut faults) = (Spare::default(), Faults::default());
    let body = decode::<UnreadBody<'_>>(reading.bytes(), &spare, &mut faults)?;
    let body = faults.finish(body)?;
    check_count(body.messages.len())?;
    Ok(body.messages.into_iter().map(|message| reading.message(message.get().as_bytes(), find)).collect())
}

/// Reads a right body in one go: each message becomes a request before the next one is read, so that no list of half-read
/// ones is made. A body that is not right is read again by others, who say what is wrong with it.
struct Batch<'b> {
    reading: &'b Reading<'b>,
    find: &'b Find<'b>,
}

/// The list, inside of the body.
impl<'de> DeserializeSeed<'de> for Batch<'_> {
    type Value = Vec<Item>;
    fn deserialize<D: Deserializer<'de>>(self, list: D) -> Result<Vec<Item>, D::Error> {
        list.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Batch<'_> {
    type Value = Vec<Item>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a list of messages")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut body: A) -> Result<Vec<Item>, A::Error> {
        let only = "has the one field `messages`";
        if body.next_key::<&str>()? != Some("messages") {
            return Err(serde::de::Error::custom(only));
        }
        let items = body.next_value_seed(self)?;
        if body.next_key::<&str>()?.is_some() {
            return Err(serde::de::Error::custom(only));
        }
        Ok(items)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Item>, A::Error> {
        let mut items = Vec::new();
        while let Some(Object(message)) = list.next_element::<Object<PublishBody<'_>>>()? {
            if items.len() == ITEMS_MAX {
                return Err(serde::de::Error::custom("too many"));
            }
            items.push(self.reading.request(Some(message), Faults::default(), self.find));
        }
        Ok(items)
    }
}

fn from_lines(reading: &Reading<'_>, find: &Find<'_>) -> Result<Vec<Item>, Problem> {
    let lines = reading.bytes().split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let lines: Vec<&[u8]> = lines.take(ITEMS_MAX + 1).collect();
    check_count(lines.len())?;
    Ok(lines.into_iter().map(|line| reading.message(line, find)).collect())
}

fn check_count(count: usize) -> Result<(), Problem> {
    if (1..=ITEMS_MAX).contains(&count) {
        return Ok(());
    }
    Err(Problem::invalid_at("/messages", format!("a batch has 1 to {ITEMS_MAX} messages")))
}

pub(super) async fn publish_items(broker: &Broker, items: Vec<Item>, atomic: bool) -> Vec<Result<Published, Problem>> {
    if atomic && items.iter().any(Result::is_err) {
        let refuse = |item: Item| Err(item.err().unwrap_or_else(|| PublishError::NotAttempted.into()));
        return items.into_iter().map(refuse).collect();
    }
    let mut requests = Vec::with_capacity(items.len());
    let mut results: Vec<Option<Problem>> = Vec::with_capacity(items.len());
    for item in items {
        match item {
            Ok(request) => {
                requests.push(request);
                results.push(None);
            }
            Err(problem) => results.push(Some(problem)),
        }
    }
    let mut published = broker.publisher.publish_batch(requests, atomic).await.into_iter();
    let next = |refused: Option<Problem>| match refused {
        Some(problem) => Err(problem),
        None => published.next().expect("one result for each request").map_err(Problem::from),
    };
    results.into_iter().map(next).collect()
}

fn summary<'a>(results: &'a [Result<Published, Problem>], store: &dyn MessageStore) -> BatchAnswer<'a> {
    let accepted = results.iter().filter(|result| result.is_ok()).count();
    let results_of = results.iter().map(|result| item_answer(result, store)).collect();
    BatchAnswer { accepted, refused: results.len() - accepted, results: results_of }
}

/// What the publisher of one of many is told.
pub(super) fn item_answer<'a>(result: &'a Result<Published, Problem>, store: &dyn MessageStore) -> ItemAnswer<'a> {
    match result {
        Ok(published) => ItemAnswer::Accepted(PublishAnswer::of(published, store, false)),
        Err(problem) => ItemAnswer::Refused { status: "Rejected", error: Box::new(problem.item_body()) },
    }
}
