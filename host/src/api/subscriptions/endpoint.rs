//! A webhook's endpoint, seen from here: tried, its attempts, its figures. Invariant: as `subscriptions.rs`. Never changes a
//! subscription.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::auth::Caller;
use crate::api::extract::{NoBody, Param, Query};
use crate::api::page::{Paging, WindowQuery};
use crate::api::problem::{Code, Faults, Problem};
use crate::api::wire::Iso;
use crate::api::{Api, answer, reach};
use crate::broker::Broker;
use crate::catalog::Event;
use crate::catalog::model::{Subscription, SubscriptionId, SubscriptionKind};
use crate::delivery::push::{AttemptRecord, EndpointMetrics, TestResult};
use crate::window::{WINDOW_MAX, WINDOW_MIN};

/// The window of figures for which none is asked.
const WINDOW: Duration = Duration::from_secs(3600);

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

/// How far to look back.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct MetricsQuery {
    /// From `PT1M` to `P1D` (`PT1H`): to a full minute, to a full hour where it is longer than one.
    window: Option<Iso>,
}

impl MetricsQuery {
    fn window(self, faults: &mut Faults) -> Option<Duration> {
        let window = self.window.map_or(WINDOW, |Iso(window)| window);
        if !(WINDOW_MIN..=WINDOW_MAX).contains(&window) {
            faults.push("/window", "is from PT1M to P1D");
        }
        Some(window)
    }
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
    params(("id" = String, Path, description = "Its id"), MetricsQuery),
    responses((status = 200, description = "Attempts of this broker in the window, since it started at most", body = MetricsView)),
)]
async fn metrics(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    query: Query<MetricsQuery>,
) -> Result<Response, Problem> {
    let subscription = reach::subscription(&broker, &caller, id)?;
    let window = query.check(MetricsQuery::window)?;
    need_endpoint(
        &subscription,
        "A Pull subscription has no endpoint; GET /topics/{topic}/metrics has its group's figures.",
    )?;
    let figures = broker.push.metrics(id, window);
    Ok(answer::ok(&MetricsView { subscription_id: id, window: Iso(window), figures }))
}
