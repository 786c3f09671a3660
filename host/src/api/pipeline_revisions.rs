//! Revisions of pipelines: one shown, two compared, one gone back to. Invariant: to go back needs what setting the same stages
//! would need: plugins, topics and secrets within the token's reach. Never runs a stage.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::extract::{IfMatch, NoBody, Param, Params2, Query};
use super::pipelines::{PipelineView, set, shown, subscription_scope};
use super::problem::{Faults, Problem};
use super::{Api, answer, reach};
use crate::broker::Broker;
use crate::catalog::model::{Scope, SubscriptionId};
use crate::message::TopicName;
use crate::pipeline::Difference;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(topic_revision))
        .routes(routes!(topic_diff))
        .routes(routes!(topic_rollback))
        .routes(routes!(subscription_revision))
        .routes(routes!(subscription_diff))
        .routes(routes!(subscription_rollback))
}

/// Which revisions to compare.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DiffQuery {
    /// The earlier one; 0 is the pipeline before anyone set it [by default the one before `to`]
    from: Option<u64>,
    /// The later one [by default the one in use]
    to: Option<u64>,
}

/// Where to go back to.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RollbackQuery {
    /// The revision whose stages run again
    #[param(required = true)]
    to: Option<u64>,
}

/// What is different between two revisions.
#[derive(Debug, Serialize, ToSchema)]
struct DiffAnswer {
    from: u64,
    to: u64,
    #[serde(flatten)]
    difference: Difference,
}

/// Show a revision of a topic's pipeline.
#[utoipa::path(
    get, path = "/api/v1/topics/{topic}/pipeline/history/{revision}", tag = "pipelines",
    params(
        ("topic" = String, Path, description = "Its name"),
        ("revision" = u64, Path, description = "The revision's number"),
    ),
    responses((status = 200, description = "As it was; the last 1000 are kept", body = PipelineView)),
)]
async fn topic_revision(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(name, number): Params2<TopicName, u64>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    revision(&broker, Scope::Topic(topic.id), number).await
}

/// Show a revision of a subscription's pipeline.
#[utoipa::path(
    get, path = "/api/v1/subscriptions/{id}/pipeline/history/{revision}", tag = "pipelines",
    params(
        ("id" = String, Path, description = "Its id"),
        ("revision" = u64, Path, description = "The revision's number"),
    ),
    responses((status = 200, description = "As it was; the last 1000 are kept", body = PipelineView)),
)]
async fn subscription_revision(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(id, number): Params2<SubscriptionId, u64>,
) -> Result<Response, Problem> {
    let scope = subscription_scope(&broker, &caller, id)?;
    revision(&broker, scope, number).await
}

/// Compare two revisions of a topic's pipeline.
#[utoipa::path(
    get, path = "/api/v1/topics/{topic}/pipeline/diff", tag = "pipelines",
    params(("topic" = String, Path, description = "Its name"), DiffQuery),
    responses((status = 200, description = "Stages added, removed, moved and changed", body = DiffAnswer)),
)]
async fn topic_diff(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
    query: Query<DiffQuery>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    diff(&broker, Scope::Topic(topic.id), query).await
}

/// Compare two revisions of a subscription's pipeline.
#[utoipa::path(
    get, path = "/api/v1/subscriptions/{id}/pipeline/diff", tag = "pipelines",
    params(("id" = String, Path, description = "Its id"), DiffQuery),
    responses((status = 200, description = "Stages added, removed, moved and changed", body = DiffAnswer)),
)]
async fn subscription_diff(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    query: Query<DiffQuery>,
) -> Result<Response, Problem> {
    let scope = subscription_scope(&broker, &caller, id)?;
    diff(&broker, scope, query).await
}

/// Go back to a revision of a topic's pipeline.
///
/// What ran then runs again, as a new revision: the same stages, each pinned to the version that it ran on, also where it had
/// said `latest`. 409 names versions that are gone.
#[utoipa::path(
    post, path = "/api/v1/topics/{topic}/pipeline/rollback", tag = "pipelines",
    params(
        ("topic" = String, Path, description = "Its name"),
        RollbackQuery,
        ("If-Match" = Option<String>, Header, description = "The revision that the change is made from"),
    ),
    responses((status = 200, description = "The new revision", body = PipelineView)),
)]
async fn topic_rollback(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
    query: Query<RollbackQuery>,
    if_match: IfMatch,
    _: NoBody,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    rollback(&broker, &caller, Scope::Topic(topic.id), query, if_match).await
}

/// Go back to a revision of a subscription's pipeline.
///
/// What ran then runs again, as a new revision: the same stages, each pinned to the version that it ran on, also where it had
/// said `latest`. 409 names versions that are gone.
#[utoipa::path(
    post, path = "/api/v1/subscriptions/{id}/pipeline/rollback", tag = "pipelines",
    params(
        ("id" = String, Path, description = "Its id"),
        RollbackQuery,
        ("If-Match" = Option<String>, Header, description = "The revision that the change is made from"),
    ),
    responses((status = 200, description = "The new revision", body = PipelineView)),
)]
async fn subscription_rollback(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    query: Query<RollbackQuery>,
    if_match: IfMatch,
    _: NoBody,
) -> Result<Response, Problem> {
    let scope = subscription_scope(&broker, &caller, id)?;
    rollback(&broker, &caller, scope, query, if_match).await
}

async fn revision(broker: &Broker, scope: Scope, number: u64) -> Result<Response, Problem> {
    let revision = broker.pipelines.revision_of(scope, number).await?;
    Ok(answer::ok(&PipelineView::of(Some(revision))))
}

async fn diff(broker: &Broker, scope: Scope, query: Query<DiffQuery>) -> Result<Response, Problem> {
    let DiffQuery { from, to } = query.plain()?;
    let to = to.unwrap_or_else(|| broker.pipelines.revision(scope));
    let from = from.unwrap_or_else(|| to.saturating_sub(1));
    let difference = broker.pipelines.difference(scope, from, to).await?;
    Ok(answer::ok(&DiffAnswer { from, to, difference }))
}

async fn rollback(
    broker: &Broker,
    caller: &Caller,
    scope: Scope,
    query: Query<RollbackQuery>,
    if_match: IfMatch,
) -> Result<Response, Problem> {
    let to = query.check(|query, faults: &mut Faults| faults.require("/to", query.to))?;
    if_match.expected()?;
    let stages = broker.pipelines.stages_as_they_ran(scope, to).await?;
    let revision = set(broker, caller, scope, stages, (if_match, &format!("rollback to {to}"))).await?;
    Ok(shown(revision))
}
