//! Pipelines of topics and subscriptions: shown, set, their history. Invariant: a caller sets only plugins that its token
//! reaches (those that came with the binary are everyone's), and stages that emit only to topics that it reaches. Never
//! runs a stage.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::extract::{IfMatch, Json, Object, Param, Query};
use super::page::{Paging, WindowQuery};
use super::problem::{Faults, Problem};
use super::wire::Time;
use super::{Api, answer, plugins, reach};
use crate::broker::Broker;
use crate::catalog::model::{PipelineRevision, Scope, StageSpec, Strategy, SubscriptionId, Topic};
use crate::message::TopicName;
use crate::pipeline::{PipelineError, secret_names};

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(topic_get, topic_put))
        .routes(routes!(topic_history))
        .routes(routes!(subscription_get, subscription_put))
        .routes(routes!(subscription_history))
}

/// The stages of a pipeline, in order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PipelineBody {
    /// All of them: what is not here is taken out.
    #[schema(value_type = Vec<StageSpec>)]
    stages: Option<Vec<Object<StageSpec>>>,
}

/// One revision of a pipeline.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PipelineView {
    /// Rises with every change; 0 if nothing was ever set.
    revision: u64,
    /// As its owner set them.
    stages: Vec<StageSpec>,
    /// What really runs: those that Sluice adds (the topic's schema, the subscription's filter) first, versions pinned.
    resolved: Vec<ResolvedView>,
    /// Why there is this revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<Time>,
}

/// A stage as it runs.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ResolvedView {
    name: String,
    plugin: String,
    version: String,
    /// Hex SHA-256 of the component.
    digest: String,
    /// Added by Sluice.
    implicit: bool,
    /// What is tried on it; `…/stages/{stage}/rollout` tells how it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout: Option<TriedView>,
}

/// A version that is tried on a stage.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct TriedView {
    version: String,
    /// Hex SHA-256 of the component.
    digest: String,
    strategy: Strategy,
    percent: f64,
    started_at: Time,
}

impl PipelineView {
    pub(super) fn of(revision: Option<PipelineRevision>) -> PipelineView {
        let Some(revision) = revision else {
            let (stages, resolved) = (Vec::new(), Vec::new());
            return PipelineView { revision: 0, stages, resolved, reason: None, created_by: None, created_at: None };
        };
        let resolved = revision.resolved.into_iter().map(|stage| ResolvedView {
            name: stage.spec.name,
            plugin: stage.spec.plugin,
            version: stage.version,
            digest: stage.digest,
            implicit: stage.implicit,
            rollout: stage.rollout.map(|tried| TriedView {
                version: tried.version,
                digest: tried.digest,
                strategy: tried.strategy,
                percent: tried.percent,
                started_at: Time(tried.started_at),
            }),
        });
        PipelineView {
            revision: revision.revision,
            stages: revision.stages,
            resolved: resolved.collect(),
            reason: Some(revision.reason),
            created_by: Some(revision.created_by),
            created_at: Some(Time(revision.created_at)),
        }
    }
}

/// Show a topic's pipeline.
#[utoipa::path(
    get, path = "/api/v1/topics/{topic}/pipeline", tag = "pipelines",
    params(("topic" = String, Path, description = "Its name")),
    responses((status = 200, description = "What runs before a message is stored; `ETag` is the revision", body = PipelineView)),
)]
async fn topic_get(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    Ok(shown(PipelineView::of(broker.pipelines.current(Scope::Topic(topic.id)))))
}

/// Set a topic's pipeline.
#[utoipa::path(
    put, path = "/api/v1/topics/{topic}/pipeline", tag = "pipelines", request_body = PipelineBody,
    params(
        ("topic" = String, Path, description = "Its name"),
        ("If-Match" = Option<String>, Header, description = "The revision that the change is made from"),
    ),
    responses((status = 200, description = "The new revision; batches under way end on theirs", body = PipelineView)),
)]
async fn topic_put(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
    if_match: IfMatch,
    body: Json<PipelineBody>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    let stages = body.check(stages)?;
    Ok(shown(set(&broker, &caller, Scope::Topic(topic.id), stages, (if_match, "set")).await?))
}

/// Show a subscription's pipeline.
#[utoipa::path(
    get, path = "/api/v1/subscriptions/{id}/pipeline", tag = "pipelines",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "What runs on the way out; `ETag` is the revision", body = PipelineView)),
)]
async fn subscription_get(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
) -> Result<Response, Problem> {
    let scope = subscription_scope(&broker, &caller, id)?;
    Ok(shown(PipelineView::of(broker.pipelines.current(scope))))
}

/// Set a subscription's pipeline.
#[utoipa::path(
    put, path = "/api/v1/subscriptions/{id}/pipeline", tag = "pipelines", request_body = PipelineBody,
    params(
        ("id" = String, Path, description = "Its id"),
        ("If-Match" = Option<String>, Header, description = "The revision that the change is made from"),
    ),
    responses((status = 200, description = "The new revision; a message's retries keep theirs", body = PipelineView)),
)]
async fn subscription_put(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    if_match: IfMatch,
    body: Json<PipelineBody>,
) -> Result<Response, Problem> {
    let scope = subscription_scope(&broker, &caller, id)?;
    let stages = body.check(stages)?;
    Ok(shown(set(&broker, &caller, scope, stages, (if_match, "set")).await?))
}

/// Some revisions.
#[derive(Debug, Serialize, ToSchema)]
struct RevisionList {
    /// Latest first.
    revisions: Vec<PipelineView>,
    #[serde(flatten)]
    paging: Paging,
}

/// List a topic's revisions.
#[utoipa::path(
    get, path = "/api/v1/topics/{topic}/pipeline/history", tag = "pipelines",
    params(("topic" = String, Path, description = "Its name"), WindowQuery),
    responses((status = 200, description = "Latest first", body = RevisionList)),
)]
async fn topic_history(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
    query: Query<WindowQuery>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    history(&broker, Scope::Topic(topic.id), query).await
}

/// List a subscription's revisions.
#[utoipa::path(
    get, path = "/api/v1/subscriptions/{id}/pipeline/history", tag = "pipelines",
    params(("id" = String, Path, description = "Its id"), WindowQuery),
    responses((status = 200, description = "Latest first", body = RevisionList)),
)]
async fn subscription_history(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    query: Query<WindowQuery>,
) -> Result<Response, Problem> {
    let scope = subscription_scope(&broker, &caller, id)?;
    history(&broker, scope, query).await
}

pub(super) fn subscription_scope(broker: &Broker, caller: &Caller, id: SubscriptionId) -> Result<Scope, Problem> {
    let subscription = reach::subscription(broker, caller, id)?;
    Ok(Scope::Subscription(subscription.topic, id))
}

/// The plugin of a pipeline's own stage.
pub(super) fn plugin_of(record: &PipelineRevision, stage: &str) -> Option<String> {
    record.stages.iter().find(|spec| spec.name == stage).map(|spec| spec.plugin.clone())
}

pub(super) fn shown(view: PipelineView) -> Response {
    answer::tagged(answer::ok(&view), view.revision)
}

fn stages(body: PipelineBody, faults: &mut Faults) -> Option<Vec<StageSpec>> {
    let stages = faults.require("/stages", body.stages)?;
    Some(stages.into_iter().map(|Object(stage)| stage).collect())
}

/// The secrets that a config names must be the caller's to name: a version of the plugin sees them.
pub(super) fn need_secrets(caller: &Caller, plugin: &str, config: &serde_json::Value) -> Result<(), Problem> {
    secret_names(plugin, config).into_iter().try_for_each(|secret| caller.need_name("secret", secret))
}

/// Whether a topic is in another store than those of a pipeline.
fn is_elsewhere(broker: &Broker, scope: Scope, target: &Topic) -> bool {
    let (Scope::Topic(topic) | Scope::Subscription(topic, _)) = scope;
    broker.directory.topic_by_id(topic).is_some_and(|topic| topic.settings.storage != target.settings.storage)
}

/// Sets stages for this reason, if the caller reaches all that they name.
pub(super) async fn set(
    broker: &Broker,
    caller: &Caller,
    scope: Scope,
    stages: Vec<StageSpec>,
    (if_match, reason): (IfMatch, &str),
) -> Result<PipelineView, Problem> {
    let mut faults = Vec::new();
    for (at, stage) in stages.iter().enumerate() {
        plugins::need(broker, caller, &stage.plugin)?;
        need_secrets(caller, &stage.plugin, &stage.config)?;
        for (index, target) in stage.emit_to.iter().enumerate() {
            // What is no name is told with all else.
            let Ok(name) = target.parse::<TopicName>() else { continue };
            caller.need_topic(&name)?;
            let fault = match broker.directory.topic(&name) {
                None => format!("there is no topic '{name}'"),
                Some(target) if is_elsewhere(broker, scope, &target) => format!(
                    "the topic '{name}' has another storage than this one: what a stage emits is stored with its message as one \
                     unit, so both are in one store"
                ),
                Some(_) => continue,
            };
            faults.push((format!("/stages/{at}/emitTo/{index}"), fault));
        }
    }
    if !faults.is_empty() {
        faults.extend(broker.pipelines.faults(scope, &stages).await);
        return Err(PipelineError::Invalid(faults).into());
    }
    let why = (reason, &caller.actor());
    let revision = broker.pipelines.set_because(scope, stages, if_match.expected()?, why).await?;
    Ok(PipelineView::of(Some(revision)))
}

async fn history(broker: &Broker, scope: Scope, query: Query<WindowQuery>) -> Result<Response, Problem> {
    let window = query.check(WindowQuery::window)?;
    let (revisions, total) = broker.catalog.pipeline_history(scope, window.limit, window.offset).await?;
    let revisions = revisions.into_iter().map(|revision| PipelineView::of(Some(revision))).collect();
    Ok(answer::ok(&RevisionList { revisions, paging: window.paging(total) }))
}
