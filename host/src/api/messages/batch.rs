//! Publishing many messages at once. Invariant: one result per item, in order; with `atomic`, all are stored or none.
//! Never holds more than [`ITEMS_MAX`] items.

use std::cell::RefCell;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

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

/// Items of one batch, from API.md.
const ITEMS_MAX: usize = 10_000;

/// How to publish a batch.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BatchQuery {
    /// All messages (of one topic) are stored, or none.
    atomic: bool,
}

/// Many messages.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
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
enum ItemAnswer<'a> {
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

/// Publish many messages.
#[utoipa::path(
    post, path = "/api/v1/messages/publish/batch", tag = "messages", params(BatchQuery),
    request_body(
        description = "JSON, or one message a line",
        content((BatchBody = "application/json"), (PublishBody = "application/x-ndjson")),
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
    let atomic = query.plain()?.atomic;
    let items = items(&broker, &caller, &headers, &body)?;
    let results = publish_items(&broker, items, atomic).await;
    let durability = broker.store.capabilities().durability;
    Ok(answer::ok(&summary(&results, durability)))
}

type Item = Result<PublishRequest, Problem>;

fn items(broker: &Broker, caller: &Caller, headers: &HeaderMap, body: &RawBody) -> Result<Vec<Item>, Problem> {
    // One key would make all items but the first a duplicate or a conflict; each item has its own.
    if headers.contains_key("idempotency-key") {
        return Err(Problem::invalid_at(
            "",
            "a batch takes no header `Idempotency-Key`; give items an `idempotencyKey`",
        ));
    }
    let reading = reading(broker, headers, &body.bytes)?;
    let last = RefCell::new(None::<Arc<Topic>>);
    let find = |name: &TopicName| {
        // Most batches go to one topic, which is then looked up once.
        if let Some(topic) = last.borrow().as_ref().filter(|topic| topic.name == *name) {
            return Ok(Arc::clone(topic));
        }
        let topic = destination(broker, caller, name)?;
        *last.borrow_mut() = Some(Arc::clone(&topic));
        Ok(topic)
    };
    let lines = headers.get(header::CONTENT_TYPE).is_some_and(|given| is_media_type(given.as_bytes(), NDJSON));
    if lines {
        return from_lines(&reading, &find);
    }
    expect_json(headers)?;
    from_json(&reading, &find)
}

const NDJSON: &[&str] = &["application/x-ndjson", "application/ndjson"];

type Find<'f> = dyn Fn(&TopicName) -> Result<Arc<Topic>, Problem> + 'f;

fn from_json(reading: &Reading<'_>, find: &Find<'_>) -> Result<Vec<Item>, Problem> {
    if let Ok(Object(body)) = serde_json::from_slice::<Object<BatchBody<'_>>>(reading.bytes) {
        check_count(body.messages.len())?;
        let read = |Object(message)| reading.request(Some(message), Faults::default(), find);
        return Ok(body.messages.into_iter().map(read).collect());
    }
    let (spare, mut faults) = (Spare::default(), Faults::default());
    let body = decode::<UnreadBody<'_>>(reading.bytes, &spare, &mut faults)?;
    let body = faults.finish(body)?;
    check_count(body.messages.len())?;
    Ok(body.messages.into_iter().map(|message| reading.message(message.get().as_bytes(), find)).collect())
}

fn from_lines(reading: &Reading<'_>, find: &Find<'_>) -> Result<Vec<Item>, Problem> {
    let lines = reading.bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
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

async fn publish_items(broker: &Broker, items: Vec<Item>, atomic: bool) -> Vec<Result<Published, Problem>> {
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

fn summary<'a>(results: &'a [Result<Published, Problem>], durability: &'static str) -> BatchAnswer<'a> {
    let accepted = results.iter().filter(|result| result.is_ok()).count();
    let item = |result: &'a Result<Published, Problem>| match result {
        Ok(published) => ItemAnswer::Accepted(PublishAnswer::of(published, durability, false)),
        Err(problem) => ItemAnswer::Refused { status: "Rejected", error: Box::new(problem.item_body()) },
    };
    BatchAnswer { accepted, refused: results.len() - accepted, results: results.iter().map(item).collect() }
}
