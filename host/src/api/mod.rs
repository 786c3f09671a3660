//! The HTTP API: API.md is its contract. A request passes the `server` (sockets), the `layers` (token, role, limits), an
//! extractor (`extract`), one handler of its noun, and leaves as an `answer` or a `problem`. Invariant: handlers read,
//! make one call to the domain, and answer; only `problem` knows statuses. Never holds SQL, retries or business rules.

pub mod answer;
mod audit;
pub mod auth;
mod brokers;
mod dlq;
mod dry_runs;
mod events;
pub mod extract;
mod health;
mod http_metrics;
pub mod layers;
mod messages;
mod metrics;
mod openapi;
pub mod page;
mod pipeline_revisions;
mod pipelines;
mod plugin_logs;
mod plugin_powers;
mod plugin_versions;
mod plugins;
pub mod problem;
mod rate;
mod reach;
mod rollouts;
mod schemas;
pub mod server;
mod subscriptions;
mod topics;
pub mod wire;

use std::sync::Arc;

use axum::Router;
use axum::extract::FromRef;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use self::auth::Gate;
use self::auth::token::Verifier;
use self::extract::Intake;
use self::http_metrics::HttpMetrics;
use self::layers::{Edge, EdgeLayer};
use self::messages::Slots;
use self::openapi::Document;
use self::plugin_versions::Components;
use self::rate::RateLimits;
use crate::broker::Broker;
use crate::catalog::model::Secret;

/// What handlers work with.
#[derive(Clone)]
pub struct Api {
    broker: Arc<Broker>,
    intake: Arc<Intake>,
    slots: Arc<Slots>,
    components: Arc<Components>,
    document: Document,
}

impl FromRef<Api> for Arc<Broker> {
    fn from_ref(api: &Api) -> Arc<Broker> {
        Arc::clone(&api.broker)
    }
}

impl FromRef<Api> for Arc<Intake> {
    fn from_ref(api: &Api) -> Arc<Intake> {
        Arc::clone(&api.intake)
    }
}

impl FromRef<Api> for Arc<Slots> {
    fn from_ref(api: &Api) -> Arc<Slots> {
        Arc::clone(&api.slots)
    }
}

impl FromRef<Api> for Document {
    fn from_ref(api: &Api) -> Document {
        api.document.clone()
    }
}

/// All routes of a broker, with the edge around them.
///
/// # Errors
/// When the API's metrics are registered already.
pub fn app(broker: &Arc<Broker>) -> prometheus::Result<Router> {
    let (router, mut document) = described();
    let edge = Arc::new(edge(broker, openapi::takes_query(&mut document))?);
    let api = Api {
        broker: Arc::clone(broker),
        intake: Arc::new(Intake::new(&broker.config.limits)),
        slots: Arc::new(Slots::new(broker.config.limits.streams_max)),
        components: Arc::new(Components::new(&broker.config)),
        document: Document::of(&document),
    };
    Ok(router.merge(openapi::routes()).with_state(api).layer(EdgeLayer(edge)))
}

/// The routes that the OpenAPI document describes, and the document.
fn described() -> (Router<Api>, OpenApi) {
    let (router, document) = OpenApiRouter::with_openapi(openapi::base())
        .merge(messages::routes())
        .merge(topics::routes())
        .merge(dlq::routes())
        .merge(subscriptions::routes())
        .merge(schemas::routes())
        .merge(pipelines::routes())
        .merge(rollouts::routes())
        .merge(plugins::routes())
        .merge(plugin_versions::routes())
        .merge(plugin_powers::routes())
        .merge(dry_runs::routes())
        .merge(pipeline_revisions::routes())
        .merge(plugin_logs::routes())
        .merge(brokers::routes())
        .merge(audit::routes())
        .merge(health::routes())
        .merge(metrics::routes())
        .split_for_parts();
    (router, openapi::complete(document))
}

fn edge(broker: &Broker, takes_query: Vec<bool>) -> prometheus::Result<Edge> {
    let (config, clock) = (&broker.config, &broker.clock);
    let secret = config.jwt.secret.clone().unwrap_or_else(|| unguessable(broker));
    let verifier = Verifier::new(&secret, config.jwt.issuer.as_deref(), config.jwt.audience.as_deref(), clock.clone());
    Ok(Edge {
        gate: Gate::new(verifier, clock.clone()),
        rates: RateLimits::new(config.rate_limiting, clock, broker.redis.clone()),
        metrics: HttpMetrics::new(broker.requests.clone(), &broker.registry)?,
        changes: broker.changes.clone(),
        duty: broker.duty.clone(),
        fleet: broker.fleet.clone(),
        head_bytes_max: config.limits.head_bytes_max,
        requests_max: config.limits.requests_max,
        public_metrics: config.telemetry.public_metrics,
        public_docs: config.telemetry.public_docs,
        takes_query,
    })
}

/// Without a configured secret no token is valid.
fn unguessable(broker: &Broker) -> Secret {
    let mut bytes = [0; 32];
    broker.entropy.fill(&mut bytes);
    Secret::new(hex::encode(bytes))
}

#[cfg(test)]
mod tests;
