//! Subscriptions: made, listed, changed, paused, moved, tested. Invariant: a signing secret is shown when it is made and
//! never again; a subscription is in the scope of its topic. Never delivers by itself.

mod body;
mod credentials;
mod endpoint;
mod operate;
mod snapshots;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::body::{SubscriptionBody, SubscriptionView, Wanted};
use super::auth::Caller;
use super::extract::{IfMatch, Json, Param, Query};
use super::page::{Paging, Window};
use super::problem::Problem;
use super::{Api, answer, reach};
use crate::broker::Broker;
use crate::catalog::model::{Storage, Subscription, SubscriptionId, Topic};
use crate::directory::NewSubscription;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get, put, delete))
        .merge(operate::routes())
        .merge(endpoint::routes())
        .merge(snapshots::routes())
}

/// Create a subscription.
#[utoipa::path(
    post, path = "/api/v1/subscriptions", tag = "subscriptions", request_body = SubscriptionBody,
    responses((status = 201, description = "Made; a Push subscription's signing secret is shown this once, or its public key", body = SubscriptionView)),
)]
async fn create(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    body: Json<SubscriptionBody>,
) -> Result<Response, Problem> {
    let new = body.check(|body, faults| body.create(&broker.config.push, broker.clock.now(), faults))?;
    let topic = reach::topic(&broker, &caller, &new.topic)?;
    let start = new.start(&topic)?;
    need_order(new.settings.ordered, &topic)?;
    let Wanted { consumer_group, settings, signature, .. } = new;
    let new = NewSubscription { topic, consumer_group, settings, signature, start };
    let subscription = broker.directory.create_subscription(new, &caller.actor()).await?;
    let location = format!("/api/v1/subscriptions/{}", subscription.id);
    Ok(answer::tagged(answer::created(location, &SubscriptionView::with_secret(&subscription)), subscription.version))
}

/// What to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only those on this topic.
    topic_name: Option<String>,
    /// Only those of this group.
    consumer_group: Option<String>,
    /// Only those that deliver, or only those that are paused.
    is_active: Option<bool>,
    /// Subscriptions at most.
    #[param(minimum = 1, maximum = 100, default = 100)]
    limit: Option<u64>,
    /// Subscriptions left out before.
    offset: Option<u64>,
}

impl ListQuery {
    fn fits(&self, subscription: &Subscription) -> bool {
        self.topic_name.as_deref().is_none_or(|name| name == subscription.topic_name.as_str())
            && self.consumer_group.as_deref().is_none_or(|group| group == &*subscription.consumer_group)
            && self.is_active.is_none_or(|active| active == subscription.pause.is_none())
    }
}

/// Some subscriptions.
#[derive(Debug, Serialize, ToSchema)]
struct SubscriptionList {
    /// Oldest first.
    subscriptions: Vec<SubscriptionView>,
    #[serde(flatten)]
    paging: Paging,
}

/// List subscriptions.
#[utoipa::path(
    get, path = "/api/v1/subscriptions", tag = "subscriptions", params(ListQuery),
    responses((status = 200, description = "Those on topics that the token reaches", body = SubscriptionList)),
)]
async fn list(State(broker): State<Arc<Broker>>, caller: Caller, query: Query<ListQuery>) -> Result<Response, Problem> {
    let (query, window) = query.check(|query, faults| {
        let window = Window::read(query.limit, query.offset, faults)?;
        Some((query, window))
    })?;
    let mut all = broker.directory.subscriptions();
    all.retain(|subscription| query.fits(subscription) && caller.need_topic(&subscription.topic_name).is_ok());
    let (part, paging) = window.of(all);
    let subscriptions = part.iter().map(|subscription| shown(&broker, subscription)).collect();
    Ok(answer::ok(&SubscriptionList { subscriptions, paging }))
}

/// Show a subscription.
#[utoipa::path(
    get, path = "/api/v1/subscriptions/{id}", tag = "subscriptions",
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "Its settings; `ETag` is their version", body = SubscriptionView)),
)]
async fn get(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
) -> Result<Response, Problem> {
    let subscription = reach::subscription(&broker, &caller, id)?;
    Ok(answer::tagged(answer::ok(&shown(&broker, &subscription)), subscription.version))
}

/// Order is kept where the topic's store can.
fn need_order(ordered: bool, topic: &Topic) -> Result<(), Problem> {
    if ordered && topic.settings.storage == Storage::Redis {
        let why = "is false on a topic in Redis, which keeps no order of keys: leave it out, or use a topic with the default storage";
        return Err(Problem::invalid_at("/ordered", why));
    }
    Ok(())
}

/// Change a subscription.
#[utoipa::path(
    put, path = "/api/v1/subscriptions/{id}", tag = "subscriptions", request_body = SubscriptionBody,
    params(
        ("id" = String, Path, description = "Its id"),
        ("If-Match" = Option<String>, Header, description = "The version that the change is made from"),
    ),
    responses((status = 200, description = "What is left out stays as it is; `null` takes it away", body = SubscriptionView)),
)]
async fn put(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    if_match: IfMatch,
    body: Json<SubscriptionBody>,
) -> Result<Response, Problem> {
    let before = reach::subscription(&broker, &caller, id)?;
    let by = (&broker.config.push, broker.clock.now());
    let settings = body.check(|body, faults| body.update(&before, by, faults))?;
    if let Some(topic) = broker.directory.topic_by_id(before.topic) {
        need_order(settings.ordered, &topic)?;
    }
    let expected = if_match.expected()?;
    let subscription = broker.directory.update_subscription(id, settings, expected, &caller.actor()).await?;
    Ok(answer::tagged(answer::ok(&shown(&broker, &subscription)), subscription.version))
}

/// Remove a subscription.
#[utoipa::path(
    delete, path = "/api/v1/subscriptions/{id}", tag = "subscriptions",
    params(
        ("id" = String, Path, description = "Its id"),
        ("If-Match" = Option<String>, Header, description = "The version that is meant"),
    ),
    responses((status = 204, description = "Gone with what waited for it; a Queue keeps its messages")),
)]
async fn delete(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(id): Param<SubscriptionId>,
    if_match: IfMatch,
) -> Result<Response, Problem> {
    reach::subscription(&broker, &caller, id)?;
    broker.directory.delete_subscription(id, if_match.expected()?, &caller.actor()).await?;
    Ok(answer::no_content())
}

fn shown(broker: &Broker, subscription: &Subscription) -> SubscriptionView {
    SubscriptionView::of(subscription, broker.push.status(subscription.id))
}
