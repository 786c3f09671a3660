//! Named snapshots of a subscription's position. Invariant: as `subscriptions.rs`. Never moves a cursor: `seek` does.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::auth::Caller;
use crate::api::extract::{NoBody, Param, Params2, Query};
use crate::api::page::{Paging, WindowQuery};
use crate::api::problem::{Code, Problem};
use crate::api::wire::Time;
use crate::api::{Api, answer, reach};
use crate::broker::Broker;
use crate::catalog::Event;
use crate::catalog::model::SubscriptionId;
use crate::clock::Timestamp;
use crate::store::SNAPSHOTS_MAX;

/// Bytes of a snapshot's name.
const NAME_BYTES_MAX: usize = 128;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(put, delete))
}

/// A snapshot's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SnapshotName(pub(super) Arc<str>);

impl FromStr for SnapshotName {
    type Err = String;

    fn from_str(text: &str) -> Result<SnapshotName, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(allowed) {
            return Err(format!("is 1 to {NAME_BYTES_MAX} letters, digits, or any of . _ -"));
        }
        Ok(SnapshotName(text.into()))
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A snapshot.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SnapshotView {
    #[schema(value_type = String)]
    name: Arc<str>,
    /// What was not settled then comes again after a seek to it, and what came later.
    created_at: Time,
}

impl From<(Arc<str>, Timestamp)> for SnapshotView {
    fn from((name, at): (Arc<str>, Timestamp)) -> SnapshotView {
        SnapshotView { name, created_at: Time(at) }
    }
}

/// Some snapshots.
#[derive(Debug, Serialize, ToSchema)]
struct SnapshotList {
    /// By name.
    snapshots: Vec<SnapshotView>,
    #[serde(flatten)]
    paging: Paging,
}

/// List snapshots.
#[utoipa::path(
    get, path = "/api/v1/subscriptions/{id}/snapshots", tag = "subscriptions",
    params(("id" = String, Path, description = "Its id"), WindowQuery),
    responses((status = 200, description = "At most 16", body = SnapshotList)),
)]
async fn list(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    query: Query<WindowQuery>,
) -> Result<Response, Problem> {
    let subscription = reach::subscription(&broker, &caller, id)?;
    let window = query.check(WindowQuery::window)?;
    let all = broker.store.snapshots(subscription.topic, subscription.group).await?;
    let (snapshots, paging) = window.of(all.into_iter().map(SnapshotView::from).collect());
    Ok(answer::ok(&SnapshotList { snapshots, paging }))
}

/// Keep where a subscription is under a name.
#[utoipa::path(
    put, path = "/api/v1/subscriptions/{id}/snapshots/{name}", tag = "subscriptions",
    params(("id" = String, Path, description = "Its id"), ("name" = String, Path, description = "The snapshot")),
    responses((status = 200, description = "Kept, in place of one of that name; to be sought by `snapshot`", body = SnapshotView)),
)]
async fn put(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(id, name): Params2<SubscriptionId, SnapshotName>,
    _: NoBody,
) -> Result<Response, Problem> {
    let subscription = reach::subscription(&broker, &caller, id)?;
    let place = (subscription.topic, subscription.group);
    let before = broker.store.snapshots(place.0, place.1).await?;
    if before.len() >= SNAPSHOTS_MAX && before.iter().all(|(known, _)| *known != name.0) {
        let detail = format!("A subscription has at most {SNAPSHOTS_MAX} snapshots; delete one first.");
        return Err(Problem::new(Code::Conflict, detail));
    }
    broker.store.put_snapshot(place.0, place.1, Arc::clone(&name.0)).await?;
    record(&broker, &caller, "subscription.snapshotPut", (id, &name)).await?;
    let after = broker.store.snapshots(place.0, place.1).await?;
    let made = after.into_iter().find(|(known, _)| *known == name.0);
    // Somebody else may have deleted it meanwhile.
    let made = made.unwrap_or_else(|| (name.0, broker.clock.now()));
    Ok(answer::ok(&SnapshotView::from(made)))
}

/// Delete a snapshot.
#[utoipa::path(
    delete, path = "/api/v1/subscriptions/{id}/snapshots/{name}", tag = "subscriptions",
    params(("id" = String, Path, description = "Its id"), ("name" = String, Path, description = "The snapshot")),
    responses((status = 204, description = "Deleted; no cursor moved")),
)]
async fn delete(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(id, name): Params2<SubscriptionId, SnapshotName>,
) -> Result<Response, Problem> {
    let subscription = reach::subscription(&broker, &caller, id)?;
    if !broker.store.delete_snapshot(subscription.topic, subscription.group, Arc::clone(&name.0)).await? {
        return Err(Problem::not_found("snapshot", name));
    }
    record(&broker, &caller, "subscription.snapshotDeleted", (id, &name)).await?;
    Ok(answer::no_content())
}

async fn record(
    broker: &Broker,
    caller: &Caller,
    event_type: &str,
    (id, name): (SubscriptionId, &SnapshotName),
) -> Result<(), Problem> {
    let (entity_id, details) = (id.to_string(), serde_json::json!({ "snapshot": &*name.0 }));
    let event = Event { event_type, entity_type: "subscription", entity_id: &entity_id, details };
    Ok(broker.catalog.record(event, &caller.actor()).await?)
}
