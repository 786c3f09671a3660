//! The brokers that serve together. Invariant: with the embedded store there is exactly one, this one; on one database those
//! that were seen there lately. Never decides membership.

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
use super::extract::{Param, Query};
use super::page::{Paging, Window};
use super::problem::{Code, Problem};
use super::wire::{Iso, Time};
use super::{Api, answer};
use crate::broker::Broker;
use crate::catalog::members::Member;
use crate::message::TopicName;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get)).routes(routes!(metrics))
}

/// A broker.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct BrokerView {
    node_id: String,
    /// `Active`, or `Stopping` while it finishes what is in flight.
    status: &'static str,
    version: String,
    /// What "durable" means on it: `fsync`, ….
    durability: &'static str,
    started_at: Time,
    uptime: Iso,
}

impl BrokerView {
    fn of(broker: &Broker) -> BrokerView {
        let uptime = Duration::from_secs(broker.clock.now().since(broker.started_at).as_secs());
        BrokerView {
            node_id: broker.config.node_id.clone(),
            status: if broker.stopping.is_cancelled() { "Stopping" } else { "Active" },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            durability: broker.store.capabilities().durability,
            started_at: Time(broker.started_at),
            uptime: Iso(uptime),
        }
    }

    fn of_member(broker: &Broker, member: Member) -> BrokerView {
        let uptime = Duration::from_secs(broker.clock.now().since(member.started_at).as_secs());
        BrokerView {
            node_id: member.node,
            status: if member.stopping { "Stopping" } else { "Active" },
            version: member.release,
            durability: broker.store.capabilities().durability,
            started_at: Time(member.started_at),
            uptime: Iso(uptime),
        }
    }

    /// All of them, by name.
    async fn all(broker: &Broker) -> Result<Vec<BrokerView>, Problem> {
        let Some(fleet) = &broker.fleet else { return Ok(vec![BrokerView::of(broker)]) };
        let members = fleet.members().await?;
        Ok(members.into_iter().map(|member| BrokerView::of_member(broker, member)).collect())
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
    let known = BrokerView::all(&broker).await?.into_iter().find(|known| known.node_id == node_id);
    Ok(answer::ok(&known.ok_or_else(|| Problem::not_found("broker", node_id))?))
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
