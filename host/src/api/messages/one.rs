//! One message, by its id. Invariant: what is shown is what is stored. Never changes it, but for erasing it whole.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::slots::Slots;
use crate::api::auth::Caller;
use crate::api::extract::Param;
use crate::api::problem::Problem;
use crate::api::wire::Time;
use crate::api::{answer, reach};
use crate::broker::Broker;
use crate::catalog::Event;
use crate::catalog::model::Topic;
use crate::delivery::envelope::{HeaderPairs, text_of};
use crate::delivery::failure_view::{DeadLetterView, FailureView};
use crate::message::{Message, MessageId, Position};
use crate::store::{DeliveryState, Found, GroupStatus, StoreError};

/// Ids under which a message is looked for where it arrived: each replay adds two, and is an operator's act.
const ARRIVALS_MAX: usize = 64;

/// A stored message.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) struct MessageView<'a> {
    #[schema(value_type = String, format = Uuid)]
    message_id: MessageId,
    topic_name: &'a str,
    /// `Scheduled` until it is due, then `Stored`.
    status: &'static str,
    /// The exact text. Absent when `payloadBase64` is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    /// The bytes, when they are no text: by their media type, or because they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    content_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_version: Option<&'a str>,
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    headers: HeaderPairs<'a>,
    priority: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// When the publish was accepted.
    timestamp: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Time>,
    /// When it is due, while it is scheduled.
    #[serde(skip_serializing_if = "Option::is_none")]
    deliver_at: Option<Time>,
    /// The revision of the topic's pipeline that it passed.
    pipeline_revision: u64,
    /// The dead letter that it was before it was replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Uuid)]
    replay_of: Option<MessageId>,
    /// Why it is here, on a dead-letter topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letter: Option<DeadLetterView<'a>>,
}

impl<'a> MessageView<'a> {
    pub(in crate::api) fn of(topic: &'a Topic, position: Option<Position>, message: &'a Message) -> MessageView<'a> {
        let meta = &message.meta;
        let text = text_of(&message.payload, &meta.content_type);
        MessageView {
            message_id: message.id,
            topic_name: topic.name.as_str(),
            status: if position.is_some() { "Stored" } else { "Scheduled" },
            payload: text,
            payload_base64: text.is_none().then(|| STANDARD.encode(&message.payload)),
            content_type: &meta.content_type,
            schema_version: meta.schema_version.as_deref(),
            headers: HeaderPairs(&meta.headers),
            priority: meta.priority,
            partition_key: meta.key.as_deref(),
            correlation_id: meta.correlation_id.as_deref(),
            reply_to: meta.reply_to.as_deref(),
            partition: position.map(|position| position.partition),
            offset: position.map(|position| position.offset.0),
            timestamp: Time(meta.published_at),
            expires_at: meta.expires_at.map(Time),
            deliver_at: None,
            pipeline_revision: meta.revision,
            replay_of: meta.replay_of,
            dead_letter: meta.dead_letter.as_deref().map(DeadLetterView::of),
        }
    }
}

/// A stored message, and what became of it.
#[derive(Debug, Serialize, ToSchema)]
struct MessageDetail<'a> {
    #[serde(flatten)]
    message: MessageView<'a>,
    /// Its state for each group.
    groups: Vec<GroupView<'a>>,
}

/// A message's state for one group.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct GroupView<'a> {
    /// The group's name; empty for a Queue without a subscription.
    #[schema(value_type = String)]
    consumer_group: Arc<str>,
    /// `Waiting`, `Leased`, `Retrying` or `Settled`.
    status: &'static str,
    /// Deliveries so far, while it is leased or waits for its next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    /// When the lease ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    ack_deadline: Option<Time>,
    /// When it comes again, at the earliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_at: Option<Time>,
    /// The attempts that failed, oldest first: the last 8, as long as it is not settled. Those in between without a word
    /// ended with their lease.
    failures: Vec<FailureView<'a>>,
}

/// Show a message.
#[utoipa::path(
    get, path = "/api/v1/messages/{id}", tag = "messages", params(("id" = String, Path, description = "The message")),
    responses((status = 200, description = "As it is stored, and its state for each group", body = MessageDetail)),
)]
pub(super) async fn get(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<MessageId>,
) -> Result<Response, Problem> {
    let topic = reach::topic_of(&broker, &caller, id)?;
    let found = broker.store.get(id).await?.ok_or_else(|| Problem::not_found("message", id))?;
    Ok(answer::ok(&detail(&broker, &topic, &found)))
}

fn detail<'a>(broker: &Broker, topic: &'a Topic, found: &'a Found) -> MessageDetail<'a> {
    let subscriptions = broker.directory.subscriptions_of(topic.id);
    let name = |status: &GroupStatus| {
        let known = subscriptions.iter().find(|subscription| subscription.group == status.group);
        known.map_or_else(|| "".into(), |subscription| Arc::clone(&subscription.consumer_group))
    };
    let mut message = MessageView::of(topic, found.position, &found.message);
    message.deliver_at = found.due.map(Time);
    MessageDetail { message, groups: found.groups.iter().map(|status| group(name(status), status)).collect() }
}

fn group(consumer_group: Arc<str>, status: &GroupStatus) -> GroupView<'_> {
    let (word, attempts, ack_deadline, retry_at) = match status.state {
        DeliveryState::Waiting => ("Waiting", None, None, None),
        DeliveryState::Leased { attempt, deadline } => ("Leased", Some(attempt), Some(Time(deadline)), None),
        DeliveryState::Retrying { attempts, at } => ("Retrying", Some(attempts), None, Some(Time(at))),
        DeliveryState::Settled => ("Settled", None, None, None),
    };
    let failures = status.failures.as_slice().iter().map(FailureView::of).collect();
    GroupView { consumer_group, status: word, attempts, ack_deadline, retry_at, failures }
}

/// Erase a message.
#[utoipa::path(
    delete, path = "/api/v1/messages/{id}", tag = "messages", params(("id" = String, Path, description = "The message")),
    responses((status = 204, description = "Unreadable from now on; its bytes are gone from the disk within an hour")),
)]
pub(super) async fn erase(
    State(broker): State<Arc<Broker>>,
    State(slots): State<Arc<Slots>>,
    caller: Caller,
    Param(id): Param<MessageId>,
) -> Result<Response, Problem> {
    let topic = reach::topic_of(&broker, &caller, id)?;
    let (actor, entity_id, details) = (caller.actor(), id.to_string(), json!({ "topic": topic.name }));
    let event = |event_type| {
        let details = details.clone();
        Event { event_type, entity_type: "message", entity_id: &entity_id, details }
    };
    // What is meant is written down first: a crash between the two must not hide who did it.
    broker.catalog.record(event("message.eraseBegun"), &actor).await?;
    let arrivals = arrivals_of(&broker, id).await?;
    // What arrived has the id of what became of it, also where that is a dead letter.
    let arrived_at = broker.directory.source_of_dead_letters(topic.id).unwrap_or_else(|| Arc::clone(&topic));
    let erased = broker.capture.erase(arrived_at.id, arrivals).await;
    erased.map_err(|error| Problem::internal(format!("what arrived can't be erased: {error}")))?;
    if !broker.store.erase(id).await? {
        return Err(Problem::not_found("message", id));
    }
    slots.erased(id);
    broker.catalog.record(event("message.erased"), &actor).await?;
    Ok(answer::no_content())
}

/// The ids under which a message may have arrived: its own, and those of what it was before it became a dead letter or was
/// replayed, each time.
async fn arrivals_of(broker: &Broker, id: MessageId) -> Result<Vec<MessageId>, StoreError> {
    let (mut ids, mut looked_at) = (vec![id], 0);
    while let Some(at) = ids.get(looked_at).copied()
        && ids.len() < ARRIVALS_MAX
    {
        looked_at += 1;
        let Some(found) = broker.store.get(at).await? else { continue };
        let meta = found.message.meta;
        let original = meta.dead_letter.map(|facts| facts.original_id);
        let before = [meta.replay_of, original].into_iter().flatten();
        ids.extend(before.filter(|before| !ids.contains(before)).collect::<Vec<_>>());
    }
    Ok(ids)
}
