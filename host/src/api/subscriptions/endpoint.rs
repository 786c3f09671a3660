//! A webhook's endpoint, seen from here: tried, its attempts, its figures. Invariant: as `subscriptions.rs`. Never changes a
//! subscription.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::auth::Caller;
use crate::api::extract::{NoBody, Param, Query};
use crate::api::page::{FiguresQuery, Paging, WindowQuery};
use crate::api::problem::{Code, Problem};
use crate::api::wire::Iso;
use crate::api::{Api, answer, reach};
use crate::broker::Broker;
use crate::catalog::Event;
use crate::catalog::model::{Subscription, SubscriptionId, SubscriptionKind};
use crate::delivery::push::{AttemptRecord, EndpointMetrics, TestResult};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(test)).routes(routes!(attempts, clear_attempts)).routes(routes!(metrics))
}

fn need_endpoint(subscription: &Subscription, what: &'static str) -> Result<(), Problem> {
    if subscription.settings.kind == SubscriptionKind::Push {
        return Ok(());
    }
    Err(Problem::new(Code::Conflict, what))
}

/// Make a test delivery.
#[utoipa::path(
    post, path = "/api/v1/subscriptions/{id}/test", tag = "subscriptions",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "What was sent, and what came back", body = TestResult)),
)]
async fn test(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    _: NoBody,
) -> Result<Response, Problem> {
    let subscription = reach::subscription(&broker, &caller, id)?;
    need_endpoint(&subscription, "A Pull subscription has no endpoint to test.")?;
    let topic = reach::topic(&broker, &caller, &subscription.topic_name)?;
    Ok(answer::ok(&broker.push.test(&subscription, &topic).await))
}

/// Recent attempts.
#[derive(Debug, Serialize, ToSchema)]
struct AttemptList {
    /// Newest first; of this broker alone, since it started, at most 100.
    attempts: Vec<AttemptRecord>,
    #[serde(flatten)]
    paging: Paging,
}

/// List recent deliveries.
#[utoipa::path(
    get, path = "/api/v1/subscriptions/{id}/attempts", tag = "subscriptions",
    params(("id" = String, Path, description = "Its id"), WindowQuery),
    responses((status = 200, description = "Deliveries to the endpoint, newest first", body = AttemptList)),
)]
async fn attempts(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    query: Query<WindowQuery>,
) -> Result<Response, Problem> {
    reach::subscription(&broker, &caller, id)?;
    let window = query.check(WindowQuery::window)?;
    let (attempts, paging) = window.of(broker.push.attempts(id));
    Ok(answer::ok(&AttemptList { attempts, paging }))
}

/// Forget recent deliveries.
#[utoipa::path(
    delete, path = "/api/v1/subscriptions/{id}/attempts", tag = "subscriptions",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 204, description = "The list of this broker is empty; figures stay")),
)]
async fn clear_attempts(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
) -> Result<Response, Problem> {
    reach::subscription(&broker, &caller, id)?;
    let cleared = broker.push.clear_attempts(id);
    let (entity_id, details) = (id.to_string(), serde_json::json!({ "attempts": cleared }));
    let event_type = "subscription.attemptsCleared";
    let event = Event { event_type, entity_type: "subscription", entity_id: &entity_id, details };
    broker.catalog.record(event, &caller.actor()).await?;
    Ok(answer::no_content())
}

/// An endpoint's figures.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct MetricsView {
    #[schema(value_type = String, format = Uuid)]
    subscription_id: SubscriptionId,
    /// How far was looked back.
    window: Iso,
    #[serde(flatten)]
    figures: EndpointMetrics,
}

/// Figures of a webhook's endpoint.
#[utoipa::path(
    get, path = "/api/v1/subscriptions/{id}/metrics", tag = "subscriptions",
    params(("id" = String, Path, description = "Its id"), FiguresQuery),
    responses((status = 200, description = "Attempts of this broker in the window, since it started at most", body = MetricsView)),
)]
async fn metrics(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    query: Query<FiguresQuery>,
) -> Result<Response, Problem> {
    let subscription = reach::subscription(&broker, &caller, id)?;
    let window = query.check(FiguresQuery::window)?;
    need_endpoint(
        &subscription,
        "A Pull subscription has no endpoint; GET /topics/{topic}/metrics has its group's figures.",
    )?;
    let figures = broker.push.metrics(id, window);
    Ok(answer::ok(&MetricsView { subscription_id: id, window: Iso(window), figures }))
}
