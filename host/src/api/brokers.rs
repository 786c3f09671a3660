//! The brokers that serve together. Invariant: with the embedded store there is exactly one, this one; on one database those
//! that were seen there lately.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use prometheus::proto::{Metric, MetricFamily, MetricType};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::extract::{NoBody, Param, Query};
use super::page::{Paging, Window};
use super::problem::{Code, Problem};
use super::wire::{Iso, Seconds, Time};
use super::{Api, answer};
use crate::broker::Broker;
use crate::catalog::members::Member;
use crate::message::TopicName;
use crate::telemetry::Stopwatch;

/// How long a call may wait for that: below the idle time-outs of common proxies.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether a broker has drained.
const DRAIN_LOOK: Duration = Duration::from_millis(50);

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get))
        .routes(routes!(metrics))
        .routes(routes!(drain, undrain))
}

/// A broker.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct BrokerView {
    node_id: String,
    /// `Starting`, `Active`; `Draining` while it ends what it was asked to leave to others, then `Drained`; `Stopping`.
    status: &'static str,
    version: String,
    /// What "durable" means on it: `fsync`, ….
    durability: &'static str,
    started_at: Time,
    uptime: Iso,
    load: LoadView,
    plugins: PluginsView,
}

/// What a broker has to do, as of the last second.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct LoadView {
    /// Requests that wait for their answer.
    requests_in_flight: u64,
    /// Webhooks that wait for their answer.
    webhooks_in_flight: u64,
    /// Push subscriptions that it sends for.
    push_subscriptions: u64,
}

/// How a broker's plugins are.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct PluginsView {
    /// Whether it runs what the catalog says.
    in_step: bool,
    /// Pipelines that it runs.
    pipelines: u64,
    /// Those that stay on an older version of a plugin, until they can run the latest.
    lagging: u64,
    /// Plugins whose last file or upload it did not accept.
    refused: u64,
}

impl BrokerView {
    /// `version`: the catalog's.
    fn of(broker: &Broker, member: Member, version: u64) -> BrokerView {
        let uptime = Duration::from_secs(broker.clock.now().since(member.started_at).as_secs());
        let load = member.load;
        BrokerView {
            status: match () {
                () if member.stopping => "Stopping",
                () if !member.serving => "Starting",
                () if member.drain && load.senders > 0 => "Draining",
                () if member.drain => "Drained",
                () => "Active",
            },
            node_id: member.node,
            version: member.release,
            durability: broker.store.capabilities().durability,
            started_at: Time(member.started_at),
            uptime: Iso(uptime),
            load: LoadView {
                requests_in_flight: load.requests,
                webhooks_in_flight: load.webhooks,
                push_subscriptions: load.senders,
            },
            plugins: PluginsView {
                in_step: member.followed >= version,
                pipelines: load.pipelines,
                lagging: load.lagging,
                refused: load.refused,
            },
        }
    }

    /// All of them, by name.
    async fn all(broker: &Broker) -> Result<Vec<BrokerView>, Problem> {
        let (members, version) = match &broker.fleet {
            None => (vec![alone(broker)], 0),
            Some(fleet) => (fleet.members().await?, broker.catalog.version().await?),
        };
        Ok(members.into_iter().map(|member| BrokerView::of(broker, member, version)).collect())
    }

    async fn one(broker: &Broker, node_id: String) -> Result<BrokerView, Problem> {
        let known = BrokerView::all(broker).await?.into_iter().find(|known| known.node_id == node_id);
        known.ok_or_else(|| Problem::not_found("broker", node_id))
    }
}

/// The one broker of an embedded store.
fn alone(broker: &Broker) -> Member {
    Member {
        node: broker.config.node_id.clone(),
        instance: String::new(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: broker.started_at,
        serving: true,
        drain: broker.duty.is_drained(),
        load: broker.load(),
        followed: 0,
        prepared: 0,
        stopping: broker.stopping.is_cancelled(),
    }
}

/// What to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Brokers at most.
    #[param(minimum = 1, maximum = 100, default = 100)]
    limit: Option<u64>,
    /// Brokers left out before.
    offset: Option<u64>,
}

/// Some brokers.
#[derive(Debug, Serialize, ToSchema)]
struct BrokerList {
    brokers: Vec<BrokerView>,
    #[serde(flatten)]
    paging: Paging,
}

/// List brokers.
#[utoipa::path(
    get, path = "/api/v1/brokers", tag = "operations", params(ListQuery),
    responses((status = 200, description = "Those that serve together", body = BrokerList)),
)]
async fn list(State(broker): State<Arc<Broker>>, query: Query<ListQuery>) -> Result<Response, Problem> {
    let window = query.check(|query, faults| Window::read(query.limit, query.offset, faults))?;
    let (brokers, paging) = window.of(BrokerView::all(&broker).await?);
    Ok(answer::ok(&BrokerList { brokers, paging }))
}

/// Show a broker.
#[utoipa::path(
    get, path = "/api/v1/brokers/{nodeId}", tag = "operations",
    params(("nodeId" = String, Path, description = "Its name")),
    responses((status = 200, description = "Its state", body = BrokerView)),
)]
async fn get(State(broker): State<Arc<Broker>>, Param(node_id): Param<String>) -> Result<Response, Problem> {
    Ok(answer::ok(&BrokerView::one(&broker, node_id).await?))
}

/// How to drain.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DrainQuery {
    /// How long to wait until it has ended what it had begun, at most 30 s (0).
    #[param(value_type = Option<Seconds>)]
    wait: Option<Seconds>,
}

/// Drain a broker.
#[utoipa::path(
    post, path = "/api/v1/brokers/{nodeId}/drain", tag = "operations",
    params(("nodeId" = String, Path, description = "Its name"), DrainQuery),
    responses((
        status = 200,
        description = "It is not ready any more, sends no webhooks and keeps no consumer waiting; requests are still answered",
        body = BrokerView
    )),
)]
async fn drain(
    State(broker): State<Arc<Broker>>,
    Param(node_id): Param<String>,
    query: Query<DrainQuery>,
    _: NoBody,
) -> Result<Response, Problem> {
    let wait = query.check(|query, faults| {
        let wait = query.wait.map_or(Duration::ZERO, |Seconds(wait)| wait);
        if wait > DRAIN_WAIT_MAX {
            faults.push("/wait", "is at most 30 seconds");
        }
        Some(wait)
    })?;
    ask_to_drain(&broker, &node_id, true).await?;
    let until = Stopwatch::start();
    loop {
        let view = BrokerView::one(&broker, node_id.clone()).await?;
        if view.status == "Drained" || view.status == "Stopping" || until.elapsed() >= wait {
            return Ok(answer::ok(&view));
        }
        tokio::time::sleep(DRAIN_LOOK).await;
    }
}

/// Let a drained broker work again.
#[utoipa::path(
    delete, path = "/api/v1/brokers/{nodeId}/drain", tag = "operations",
    params(("nodeId" = String, Path, description = "Its name")),
    responses((status = 200, description = "It takes work again within a second", body = BrokerView)),
)]
async fn undrain(State(broker): State<Arc<Broker>>, Param(node_id): Param<String>) -> Result<Response, Problem> {
    ask_to_drain(&broker, &node_id, false).await?;
    Ok(answer::ok(&BrokerView::one(&broker, node_id).await?))
}

async fn ask_to_drain(broker: &Broker, node_id: &str, drain: bool) -> Result<(), Problem> {
    let is_there = match &broker.fleet {
        Some(fleet) => fleet.ask_to_drain(node_id, drain).await?,
        None => {
            let is_there = node_id == broker.config.node_id;
            if is_there {
                broker.duty.drain(drain);
            }
            is_there
        }
    };
    if is_there { Ok(()) } else { Err(Problem::not_found("broker", node_id)) }
}

/// Figures of a broker.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct BrokerMetricsView {
    node_id: String,
    /// The figures of `/metrics`, without those of topics that the token does not reach; of histograms, sum and count.
    metrics: Vec<MetricView>,
}

/// One figure.
#[derive(Debug, Serialize, ToSchema)]
struct MetricView {
    name: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Figures of a broker.
#[utoipa::path(
    get, path = "/api/v1/brokers/{nodeId}/metrics", tag = "operations",
    params(("nodeId" = String, Path, description = "Its name")),
    responses((status = 200, description = "As of now", body = BrokerMetricsView)),
)]
async fn metrics(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(node_id): Param<String>,
) -> Result<Response, Problem> {
    if node_id != broker.config.node_id {
        // Each tells its own.
        let known = BrokerView::all(&broker).await?.into_iter().any(|known| known.node_id == node_id);
        let elsewhere =
            || Problem::new(Code::Conflict, "The figures of a broker are told by itself: ask its own address.");
        return Err(if known { elsewhere() } else { Problem::not_found("broker", node_id) });
    }
    broker.topic_metrics.refresh(&broker.directory, &*broker.store).await;
    let mut metrics: Vec<MetricView> = broker.registry.gather().iter().flat_map(family).collect();
    metrics.retain(|metric| reaches(&caller, &metric.labels));
    Ok(answer::ok(&BrokerMetricsView { node_id, metrics }))
}

fn reaches(caller: &Caller, labels: &BTreeMap<String, String>) -> bool {
    let topic = labels.get("topic").and_then(|name| name.parse::<TopicName>().ok());
    topic.is_none_or(|topic| caller.need_topic(&topic).is_ok())
}

fn family(family: &MetricFamily) -> Vec<MetricView> {
    let one = |metric: &Metric| {
        let labels: BTreeMap<String, String> =
            metric.get_label().iter().map(|label| (label.name().to_owned(), label.value().to_owned())).collect();
        let figure = |suffix: &str, value: f64| MetricView {
            name: format!("{}{suffix}", family.name()),
            labels: labels.clone(),
            value,
        };
        match family.get_field_type() {
            MetricType::COUNTER => vec![figure("", metric.get_counter().get_value())],
            MetricType::GAUGE | MetricType::UNTYPED => vec![figure("", metric.get_gauge().get_value())],
            MetricType::HISTOGRAM => {
                let histogram = metric.get_histogram();
                vec![figure("_sum", histogram.get_sample_sum()), figure("_count", histogram.get_sample_count() as f64)]
            }
            MetricType::SUMMARY => Vec::new(),
        }
    };
    family.get_metric().iter().flat_map(one).collect()
}
