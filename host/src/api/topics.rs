//! Topics: made, listed, changed, purged, removed. Invariant: a change that the caller made from an older version is
//! refused. Never touches a message by itself.

mod body;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::body::{TopicBody, TopicView};
use super::auth::Caller;
use super::extract::{IfMatch, Json, NoBody, Param, Query};
use super::page::{Paging, Window};
use super::problem::Problem;
use super::wire::Time;
use super::{Api, answer, reach};
use crate::broker::Broker;
use crate::catalog::Event;
use crate::catalog::model::{Topic, TopicKind};
use crate::clock::Timestamp;
use crate::message::{GroupId, TopicName};
use crate::schemas::SchemaError;
use crate::store::GroupStats;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get, put, delete))
        .routes(routes!(purge))
        .routes(routes!(metrics))
}

/// Create a topic.
#[utoipa::path(
    post, path = "/api/v1/topics", tag = "topics", request_body = TopicBody,
    responses((status = 201, description = "Made, with the topic for its dead letters", body = TopicView)),
)]
async fn create(State(broker): State<Arc<Broker>>, caller: Caller, body: Json<TopicBody>) -> Result<Response, Problem> {
    let (name, settings) = body.check(|body, faults| body.create(&broker.config, faults))?;
    caller.need_topic(&name)?;
    need_schema(&broker, settings.schema_id.as_deref()).await?;
    let topic = broker.directory.create_topic(name, settings, &caller.actor()).await?;
    let location = format!("/api/v1/topics/{}", topic.name);
    Ok(answer::tagged(answer::created(location, &view(&broker, &topic).await?), topic.version))
}

/// What to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only Queues, or only PubSub topics.
    #[serde(rename = "type")]
    #[param(rename = "type")]
    kind: Option<TopicKind>,
    /// Topics at most.
    #[param(minimum = 1, maximum = 100, default = 100)]
    limit: Option<u64>,
    /// Topics left out before.
    offset: Option<u64>,
}

/// Some topics.
#[derive(Debug, Serialize, ToSchema)]
struct TopicList {
    /// By name.
    topics: Vec<TopicView>,
    #[serde(flatten)]
    paging: Paging,
}

/// List topics.
#[utoipa::path(
    get, path = "/api/v1/topics", tag = "topics", params(ListQuery),
    responses((status = 200, description = "Those that the token reaches, without the broker's own (`sluice.…`)",
               body = TopicList)),
)]
async fn list(State(broker): State<Arc<Broker>>, caller: Caller, query: Query<ListQuery>) -> Result<Response, Problem> {
    let (kind, window) =
        query.check(|query, faults| Some((query.kind, Window::read(query.limit, query.offset, faults)?)))?;
    let mut all = broker.directory.topics();
    all.retain(|topic| {
        let wanted = kind.is_none_or(|kind| topic.settings.kind == kind) && !topic.name.is_system();
        wanted && caller.need_topic(&topic.name).is_ok()
    });
    let (part, paging) = window.of(all);
    let mut topics = Vec::with_capacity(part.len());
    for topic in &part {
        topics.push(view(&broker, topic).await?);
    }
    Ok(answer::ok(&TopicList { topics, paging }))
}

/// Show a topic.
#[utoipa::path(
    get, path = "/api/v1/topics/{topic}", tag = "topics", params(("topic" = String, Path, description = "Its name")),
    responses((status = 200, description = "Its settings; `ETag` is their version", body = TopicView)),
)]
async fn get(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    Ok(answer::tagged(answer::ok(&view(&broker, &topic).await?), topic.version))
}

/// Change a topic.
#[utoipa::path(
    put, path = "/api/v1/topics/{topic}", tag = "topics", request_body = TopicBody,
    params(
        ("topic" = String, Path, description = "Its name"),
        ("If-Match" = Option<String>, Header, description = "The version that the change is made from"),
    ),
    responses((status = 200, description = "What is left out stays as it is; `null` takes it away", body = TopicView)),
)]
async fn put(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
    if_match: IfMatch,
    body: Json<TopicBody>,
) -> Result<Response, Problem> {
    let before = reach::topic(&broker, &caller, &name)?;
    let settings = body.check(|body, faults| body.update(&before, &broker.config, faults))?;
    need_schema(&broker, settings.schema_id.as_deref()).await?;
    let topic = broker.directory.update_topic(&name, settings, if_match.expected()?, &caller.actor()).await?;
    Ok(answer::tagged(answer::ok(&view(&broker, &topic).await?), topic.version))
}

/// How to delete.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DeleteQuery {
    /// Also with live subscriptions.
    force: bool,
}

/// Remove a topic.
#[utoipa::path(
    delete, path = "/api/v1/topics/{topic}", tag = "topics",
    params(
        ("topic" = String, Path, description = "Its name"), DeleteQuery,
        ("If-Match" = Option<String>, Header, description = "The version that is meant"),
    ),
    responses((status = 204, description = "Gone, with its messages, dead letters, subscriptions and pipelines")),
)]
async fn delete(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
    query: Query<DeleteQuery>,
    if_match: IfMatch,
) -> Result<Response, Problem> {
    caller.need_topic(&name)?;
    broker.directory.delete_topic(&name, (query.plain()?.force, if_match.expected()?), &caller.actor()).await?;
    Ok(answer::no_content())
}

/// What a purge took away.
#[derive(Debug, Serialize, ToSchema)]
struct PurgeAnswer {
    /// Messages that waited, counted once per group that they waited for.
    purged: u64,
}

/// Settle all that waits on a topic.
#[utoipa::path(
    post, path = "/api/v1/topics/{topic}/purge", tag = "topics",
    params(("topic" = String, Path, description = "Its name")),
    responses((status = 200, description = "Nothing that waited is delivered any more", body = PurgeAnswer)),
)]
async fn purge(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
    _: NoBody,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    let (actor, entity_id) = (caller.actor(), name.as_str());
    let event = |event_type, details| Event { event_type, entity_type: "topic", entity_id, details };
    // What is meant is written down first: a crash between the two must not hide who did it.
    broker.catalog.record(event("topic.purgeBegun", json!({})), &actor).await?;
    let purged = purge_groups(&broker, &topic).await?;
    broker.catalog.record(event("topic.purged", json!({ "messages": purged })), &actor).await?;
    Ok(answer::ok(&PurgeAnswer { purged }))
}

async fn purge_groups(broker: &Broker, topic: &Topic) -> Result<u64, Problem> {
    let mut purged = 0;
    for group in broker.store.groups(topic.id).await? {
        purged += broker.store.purge(topic.id, group).await?;
    }
    Ok(purged)
}

/// Figures of a topic. Totals count from its creation.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct TopicMetricsView {
    #[schema(value_type = String)]
    topic_name: TopicName,
    /// In the log.
    messages: u64,
    /// On disk.
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_message_at: Option<Time>,
    /// Waiting until they are due.
    scheduled: u64,
    /// On the dead-letter list.
    dead_letters: u64,
    /// When the oldest of them was put there.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_dead_letter_at: Option<Time>,
    published_total: u64,
    removed_total: u64,
    idempotency_keys: u64,
    groups: Vec<GroupMetricsView>,
}

/// Figures of one group.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct GroupMetricsView {
    /// Empty for a Queue without a subscription.
    #[schema(value_type = String)]
    consumer_group: Arc<str>,
    /// Granted to nobody, and due now.
    lag: u64,
    /// Seconds since the oldest message that it has not settled entered the log; 0 where there is none.
    lag_seconds: u64,
    in_flight: u64,
    retrying: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_unsettled_at: Option<Time>,
    delivered_total: u64,
    acked_total: u64,
    dead_lettered_total: u64,
    expired_total: u64,
}

/// Figures of a topic.
#[utoipa::path(
    get, path = "/api/v1/topics/{topic}/metrics", tag = "topics",
    params(("topic" = String, Path, description = "Its name")),
    responses((status = 200, description = "As of now", body = TopicMetricsView)),
)]
async fn metrics(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    Ok(answer::ok(&figures(&broker, &topic).await?))
}

async fn figures(broker: &Broker, topic: &Topic) -> Result<TopicMetricsView, Problem> {
    let stats = broker.store.stats(topic.id).await?;
    let list = match topic.dead_letter {
        Some(id) => broker.store.stats(id).await?.groups.into_iter().find(|group| group.group == GroupId::SHARED),
        None => None,
    };
    let now = broker.clock.now();
    let subscriptions = broker.directory.subscriptions_of(topic.id);
    let named = |group: &GroupStats| {
        let known = subscriptions.iter().find(|subscription| subscription.group == group.group);
        group_figures(known.map_or_else(|| "".into(), |known| Arc::clone(&known.consumer_group)), group, now)
    };
    Ok(TopicMetricsView {
        topic_name: topic.name.clone(),
        messages: stats.messages,
        bytes: stats.bytes,
        oldest_message_at: stats.oldest.map(Time),
        scheduled: stats.scheduled,
        dead_letters: list.as_ref().map_or(0, |list| list.waiting),
        oldest_dead_letter_at: list.and_then(|list| list.oldest_unsettled).map(Time),
        published_total: stats.appended_total,
        removed_total: stats.removed_total,
        idempotency_keys: stats.dedup_keys,
        groups: stats.groups.iter().map(named).collect(),
    })
}

fn group_figures(consumer_group: Arc<str>, group: &GroupStats, now: Timestamp) -> GroupMetricsView {
    GroupMetricsView {
        consumer_group,
        lag: group.waiting,
        lag_seconds: group.oldest_unsettled.map_or(0, |oldest| now.since(oldest).as_secs()),
        in_flight: group.leased,
        retrying: group.retrying,
        oldest_unsettled_at: group.oldest_unsettled.map(Time),
        delivered_total: group.delivered_total,
        acked_total: group.acked_total,
        dead_lettered_total: group.dead_lettered_total,
        expired_total: group.expired_total,
    }
}

async fn view(broker: &Broker, topic: &Topic) -> Result<TopicView, Problem> {
    let status = match &topic.settings.schema_id {
        None => None,
        Some(id) => match broker.schemas.get(id).await {
            Ok(schema) => Some(Some(schema.status)),
            Err(SchemaError::NotFound(_)) => Some(None),
            Err(error) => return Err(error.into()),
        },
    };
    Ok(TopicView::of(topic, status, broker.store.capabilities().durability))
}

/// With `schemas.requireRegistered`, a topic may only name a schema that is there.
async fn need_schema(broker: &Broker, id: Option<&str>) -> Result<(), Problem> {
    let Some(id) = id.filter(|_| broker.config.schemas.require_registered) else { return Ok(()) };
    match broker.schemas.get(id).await {
        Ok(_) => Ok(()),
        Err(SchemaError::NotFound(_)) => Err(Problem::invalid_at("/schemaId", "is not registered; register it first")),
        Err(error) => Err(error.into()),
    }
}
