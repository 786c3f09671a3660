//! Figures for Prometheus. Invariant: figures of topics are read from the store when they are asked for. Never counts by
//! itself.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::header::{self, HeaderValue};
use prometheus::{Encoder as _, TextEncoder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::problem::Problem;
use crate::broker::Broker;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// Figures for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "All figures", body = String, content_type = "text/plain")),
)]
async fn metrics(State(broker): State<Arc<Broker>>) -> Result<Response, Problem> {
    broker.topic_metrics.refresh(&broker.directory, &*broker.store).await;
    let mut text = Vec::new();
    TextEncoder::new().encode(&broker.registry.gather(), &mut text).map_err(Problem::internal)?;
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT));
    Ok(response)
}
