//! Subscriptions in operation: paused, resumed, moved, their secrets. Invariant: as `subscriptions.rs`.
//! Never changes a subscription's settings.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::{SubscriptionView, seek_to};
use super::shown;
use super::snapshots::SnapshotName;
use crate::api::auth::Caller;
use crate::api::extract::{IfMatch, Json, NoBody, OptionalJson, Param, not_null};
use crate::api::messages::Slots;
use crate::api::problem::{Faults, Problem};
use crate::api::wire::Iso;
use crate::api::{Api, answer, reach};
use crate::broker::Broker;
use crate::catalog::Event;
use crate::catalog::model::{Pause, SubscriptionId};
use crate::delivery::push::signature::Scheme;
use crate::directory::paused_by;
use crate::message::Partition;
use crate::store::SeekTo;

/// How long the secret before a rotation still signs: long enough to change a receiver's in working hours.
const ROTATION_OVERLAP: Duration = Duration::from_secs(86_400);
const ROTATION_OVERLAP_MAX: Duration = Duration::from_secs(30 * 86_400);

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(seek))
        .routes(routes!(rotate_secret))
}

/// Stop delivering.
#[utoipa::path(
    post, path = "/api/v1/subscriptions/{id}/pause", tag = "subscriptions",
    params(
        ("id" = String, Path, description = "Its id"),
        ("If-Match" = Option<String>, Header, description = "The version that is meant"),
    ),
    responses((status = 200, description = "Its messages wait", body = SubscriptionView)),
)]
async fn pause(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    if_match: IfMatch,
    _: NoBody,
) -> Result<Response, Problem> {
    let pause = paused_by(&caller.actor(), broker.clock.now());
    set_pause(&broker, &caller, (id, if_match), Some(pause)).await
}

/// Deliver again.
#[utoipa::path(
    post, path = "/api/v1/subscriptions/{id}/resume", tag = "subscriptions",
    params(
        ("id" = String, Path, description = "Its id"),
        ("If-Match" = Option<String>, Header, description = "The version that is meant"),
    ),
    responses((status = 200, description = "Its messages go on", body = SubscriptionView)),
)]
async fn resume(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    if_match: IfMatch,
    _: NoBody,
) -> Result<Response, Problem> {
    set_pause(&broker, &caller, (id, if_match), None).await
}

async fn set_pause(
    broker: &Broker,
    caller: &Caller,
    (id, if_match): (SubscriptionId, IfMatch),
    pause: Option<Pause>,
) -> Result<Response, Problem> {
    reach::subscription(broker, caller, id)?;
    let subscription = broker.directory.pause(id, (pause, if_match.expected()?), &caller.actor()).await?;
    Ok(answer::tagged(answer::ok(&shown(broker, &subscription)), subscription.version))
}

/// Where to move a cursor.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SeekBody {
    /// `earliest`, `latest`, an RFC 3339 time, or an offset (a number) of `partition`.
    #[schema(value_type = Option<String>, example = "earliest")]
    to: Option<serde_json::Value>,
    /// A snapshot's name, in place of `to`.
    snapshot: Option<String>,
    /// The partition that an offset belongs to; the others stay.
    #[schema(value_type = Option<u16>)]
    partition: Option<Partition>,
}

/// Move a cursor.
#[utoipa::path(
    post, path = "/api/v1/subscriptions/{id}/seek", tag = "subscriptions", request_body = SeekBody,
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "Its leases have ended and its retries are forgotten", body = SubscriptionView)),
)]
async fn seek(
    State(broker): State<Arc<Broker>>,
    State(slots): State<Arc<Slots>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    body: Json<SeekBody>,
) -> Result<Response, Problem> {
    let subscription = reach::subscription(&broker, &caller, id)?;
    let topic = reach::topic(&broker, &caller, &subscription.topic_name)?;
    let to = body.check(|body, faults| sought(body, topic.settings.partition_count, faults))?;
    let held = slots.of_group(topic.id, subscription.group);
    let told = match to {
        Sought::Place(to) => {
            broker.store.seek(topic.id, subscription.group, to).await?;
            format!("{to:?}")
        }
        Sought::Snapshot(name) => {
            if !broker.store.restore(topic.id, subscription.group, Arc::clone(&name.0)).await? {
                return Err(Problem::not_found("snapshot", name));
            }
            format!("snapshot {name}")
        }
    };
    slots.ended(&held);
    let (entity_id, details) = (id.to_string(), serde_json::json!({ "to": told }));
    let event =
        Event { event_type: "subscription.sought", entity_type: "subscription", entity_id: &entity_id, details };
    broker.catalog.record(event, &caller.actor()).await?;
    Ok(answer::tagged(answer::ok(&shown(&broker, &subscription)), subscription.version))
}

/// Where a cursor goes.
enum Sought {
    Place(SeekTo),
    Snapshot(SnapshotName),
}

fn sought(body: SeekBody, partitions: u16, faults: &mut Faults) -> Option<Sought> {
    let Some(name) = body.snapshot else {
        let to = faults.require("/to", body.to)?;
        return faults.keep("/to", seek_to(&to, body.partition, partitions)).map(Sought::Place);
    };
    if body.to.is_some() || body.partition.is_some() {
        faults.push("/snapshot", "stands alone: give it, or `to`");
    }
    faults.keep("/snapshot", name.parse()).map(Sought::Snapshot)
}

/// How to rotate a secret.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct RotateBody {
    /// How long the old one signs too (`P1D`), at most `P30D`; `PT0S` where it has leaked.
    #[serde(deserialize_with = "not_null")]
    #[schema(nullable = false)]
    overlap: Option<Iso>,
    /// How webhooks are signed from now on; as before unless given.
    #[serde(deserialize_with = "not_null")]
    #[schema(nullable = false)]
    signature: Option<Scheme>,
}

/// Rotate the signing secret.
#[utoipa::path(
    post, path = "/api/v1/subscriptions/{id}/secret/rotate", tag = "subscriptions", request_body = RotateBody,
    params(
        ("id" = String, Path, description = "Its id"),
        ("If-Match" = Option<String>, Header, description = "The version that is meant"),
    ),
    responses((status = 200, description = "The new secret, shown this once, or the new public key; the old secret signs too for a while", body = SubscriptionView)),
)]
async fn rotate_secret(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    if_match: IfMatch,
    OptionalJson(body): OptionalJson<RotateBody>,
) -> Result<Response, Problem> {
    reach::subscription(&broker, &caller, id)?;
    let how = body.check(|body, faults| {
        let overlap = body.overlap.map_or(ROTATION_OVERLAP, |Iso(overlap)| overlap);
        if overlap > ROTATION_OVERLAP_MAX {
            faults.push("/overlap", "is at most P30D: two secrets are twice as many that can leak");
        }
        Some((body.signature, overlap))
    })?;
    let subscription = broker.directory.rotate_secret(id, if_match.expected()?, how, &caller.actor()).await?;
    Ok(answer::tagged(answer::ok(&SubscriptionView::with_secret(&subscription)), subscription.version))
}
