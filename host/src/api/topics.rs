//! Topics: made, listed, changed, purged, removed. Invariant: a change that the caller made from an older version is
//! refused. Never touches a message by itself.

mod body;
mod figures;

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
use super::{Api, answer, reach};
use crate::broker::Broker;
use crate::catalog::Event;
use crate::catalog::model::{Topic, TopicKind};
use crate::message::TopicName;
use crate::schemas::SchemaError;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get, put, delete))
        .routes(routes!(purge))
        .routes(routes!(figures::metrics))
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
    match topic.settings.capture_input {
        Some(how) => broker.capture.wanted(topic.id, how),
        // Also where it was not wanted before: an attempt to end it may have failed half way.
        None => end_arrivals(&broker, &topic).await?,
    }
    Ok(answer::tagged(answer::ok(&view(&broker, &topic).await?), topic.version))
}

/// What was kept of a topic as it arrived goes with what it was kept of.
async fn forget_arrivals(broker: &Broker, topic: &Topic) -> Result<(), Problem> {
    removed(broker.capture.forget(topic.id).await)
}

/// It goes, and none comes any more.
async fn end_arrivals(broker: &Broker, topic: &Topic) -> Result<(), Problem> {
    removed(broker.capture.end(topic.id).await)
}

fn removed(done: std::io::Result<()>) -> Result<(), Problem> {
    done.map_err(|error| Problem::internal(format!("what arrived can't be removed: {error}")))
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
    let topic = reach::topic(&broker, &caller, &name)?;
    broker.directory.delete_topic(&name, (query.plain()?.force, if_match.expected()?), &caller.actor()).await?;
    end_arrivals(&broker, &topic).await?;
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
    forget_arrivals(&broker, &topic).await?;
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

async fn view(broker: &Broker, topic: &Topic) -> Result<TopicView, Problem> {
    let status = match &topic.settings.schema_id {
        None => None,
        Some(id) => match broker.schemas.get(id).await {
            Ok(schema) => Some(Some(schema.status)),
            Err(SchemaError::NotFound(_)) => Some(None),
            Err(error) => return Err(error.into()),
        },
    };
    Ok(TopicView::of(topic, status, broker.store.capabilities_of(topic.id).durability))
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
