//! Whether the broker lives and serves. Invariant: `live` fails only when a restart would help, `ready` when requests
//! should go elsewhere. Never says more than that: these routes need no token.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::{Code, Problem};
use super::{Api, answer};
use crate::broker::Broker;
use crate::redis::Redis;
use crate::store::MessageStore as _;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(live)).routes(routes!(ready))
}

/// How the broker is.
#[derive(Debug, Serialize, ToSchema)]
struct HealthAnswer {
    /// `Healthy`, `Degraded`, `Draining` or `Stopping`.
    status: &'static str,
    parts: Parts,
}

/// How its parts are.
#[derive(Debug, Serialize, ToSchema)]
struct Parts {
    store: &'static str,
    catalog: &'static str,
    /// Whether the others on its database count it; only there.
    #[serde(skip_serializing_if = "Option::is_none")]
    fleet: Option<&'static str>,
    /// Whether Redis helps, and serves the topics in it; only where there is one. `Degraded`: these topics wait, and the broker is as
    /// ready for all others as with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<&'static str>,
}

impl Parts {
    async fn of(broker: &Broker) -> Parts {
        let word = |healthy: bool| if healthy { "Healthy" } else { "Unhealthy" };
        Parts {
            store: word(broker.store.health().is_ok()),
            catalog: word(broker.catalog.ping().await.is_ok()),
            fleet: broker.fleet.as_ref().map(|fleet| word(fleet.is_member())),
            redis: broker.streams.as_ref().map(|streams| {
                let helps = broker.redis.as_ref().is_none_or(Redis::helps);
                if helps && streams.health().is_ok() { "Healthy" } else { "Degraded" }
            }),
        }
    }

    /// What serves without help.
    fn are_healthy(&self) -> bool {
        self.store == "Healthy" && self.catalog == "Healthy" && self.fleet.is_none_or(|fleet| fleet == "Healthy")
    }
}

/// How the broker is.
#[utoipa::path(
    get, path = "/health", tag = "operations", security(()),
    responses((status = 200, description = "It answers; `status` and `parts` say how it is", body = HealthAnswer)),
)]
async fn health(State(broker): State<Arc<Broker>>) -> Response {
    let parts = Parts::of(&broker).await;
    let is_helped = parts.redis.is_none_or(|redis| redis == "Healthy");
    let status = match () {
        () if broker.stopping.is_cancelled() => "Stopping",
        () if !(parts.are_healthy() && is_helped) => "Degraded",
        () if broker.duty.is_drained() => "Draining",
        () => "Healthy",
    };
    answer::ok(&HealthAnswer { status, parts })
}

/// One word.
#[derive(Debug, Serialize, ToSchema)]
struct ProbeAnswer {
    /// `Live` or `Ready`.
    status: &'static str,
}

/// Whether the process lives.
#[utoipa::path(
    get, path = "/health/live", tag = "operations", security(()),
    responses((status = 200, description = "A restart would not help", body = ProbeAnswer)),
)]
async fn live() -> Response {
    answer::ok(&ProbeAnswer { status: "Live" })
}

/// Whether requests may come.
#[utoipa::path(
    get, path = "/health/ready", tag = "operations", security(()),
    responses((status = 200, description = "Requests may come", body = ProbeAnswer)),
)]
async fn ready(State(broker): State<Arc<Broker>>) -> Result<Response, Problem> {
    if broker.stopping.is_cancelled() {
        return Err(Problem::new(Code::ShuttingDown, "The broker is stopping; send requests elsewhere."));
    }
    if broker.duty.is_drained() {
        return Err(Problem::new(Code::ShuttingDown, "The broker is drained; send requests elsewhere."));
    }
    if !Parts::of(&broker).await.are_healthy() {
        return Err(Problem::new(Code::StoreUnavailable, "The broker cannot store now; send requests elsewhere."));
    }
    Ok(answer::ok(&ProbeAnswer { status: "Ready" }))
}
