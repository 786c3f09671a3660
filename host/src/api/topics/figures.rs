//! A topic's figures: as of now, in all, and lately. Invariant: what is shown is what the store counts; what happened lately,
//! and who consumes, is as this broker has seen it. Never counts by itself.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::auth::Caller;
use crate::api::extract::{Param, Query};
use crate::api::page::FiguresQuery;
use crate::api::problem::Problem;
use crate::api::wire::Time;
use crate::api::{answer, reach};
use crate::broker::Broker;
use crate::catalog::model::Topic;
use crate::clock::Timestamp;
use crate::delivery::liveness::Seen;
use crate::message::{GroupId, TopicName};
use crate::store::GroupStats;
use crate::topic_history::GroupCounts;

/// Figures of a topic. Totals count from its creation.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct TopicMetricsView {
    #[schema(value_type = String)]
    topic_name: TopicName,
    /// In the log.
    messages: u64,
    /// On disk.
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_message_at: Option<Time>,
    /// Waiting until they are due.
    scheduled: u64,
    /// On the dead-letter list.
    dead_letters: u64,
    /// When the oldest of them was put there.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_dead_letter_at: Option<Time>,
    published_total: u64,
    removed_total: u64,
    idempotency_keys: u64,
    /// What happened lately, as far as this broker saw it.
    window: TopicWindowView,
    groups: Vec<GroupMetricsView>,
}

/// What happened to a topic in a window.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct TopicWindowView {
    /// Since when it counts: the begin of the window, on a full minute, or a full hour where the window is longer than one;
    /// later where the broker was started, or the topic made, in between.
    from: Time,
    /// Until when: now.
    to: Time,
    /// Messages that entered the log.
    published: u64,
    /// On average.
    published_per_second: f64,
    /// Messages that left the log.
    removed: u64,
}

/// What a group did in that window.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct GroupWindowView {
    delivered: u64,
    acked: u64,
    dead_lettered: u64,
    expired: u64,
}

/// One who consumes, by the subject of its token.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ConsumerView {
    #[schema(value_type = String)]
    subject: Arc<str>,
    /// When it last asked for messages, or settled some.
    last_seen_at: Time,
    /// When it last settled some.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_settled_at: Option<Time>,
    /// Long polls and streams of it that wait for messages right now.
    waiting: usize,
}

/// Two digits after the point.
fn per_second(count: u64, time: Duration) -> f64 {
    (count as f64 / time.as_secs_f64().max(1.0) * 100.0).round() / 100.0
}

/// Figures of one group.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct GroupMetricsView {
    /// Empty for a Queue without a subscription.
    #[schema(value_type = String)]
    consumer_group: Arc<str>,
    /// Granted to nobody, and due now.
    lag: u64,
    /// Seconds since the oldest message that it has not settled entered the log; 0 where there is none.
    lag_seconds: u64,
    in_flight: u64,
    retrying: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_unsettled_at: Option<Time>,
    delivered_total: u64,
    acked_total: u64,
    dead_lettered_total: u64,
    expired_total: u64,
    /// What it did lately, as far as this broker saw it.
    window: GroupWindowView,
    /// Who consumes by pull or stream, as this broker has seen it in the last hour; at most 100.
    consumers: Vec<ConsumerView>,
}

/// Figures of a topic.
#[utoipa::path(
    get, path = "/api/v1/topics/{topic}/metrics", tag = "topics",
    params(("topic" = String, Path, description = "Its name"), FiguresQuery),
    responses((status = 200, description = "As of now, and over the window", body = TopicMetricsView)),
)]
pub(super) async fn metrics(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
    query: Query<FiguresQuery>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    let window = query.check(FiguresQuery::window)?;
    Ok(answer::ok(&figures(&broker, &topic, window).await?))
}

async fn figures(broker: &Broker, topic: &Topic, window: Duration) -> Result<TopicMetricsView, Problem> {
    let stats = broker.store.stats(topic.id).await?;
    let list = match topic.dead_letter {
        Some(id) => broker.store.stats(id).await?.groups.into_iter().find(|group| group.group == GroupId::SHARED),
        None => None,
    };
    let lately = broker.topic_history.window((topic.id, topic.created_at), &stats, window);
    let now = broker.clock.now();
    let subscriptions = broker.directory.subscriptions_of(topic.id);
    let named = |group: &GroupStats| {
        let known = subscriptions.iter().find(|subscription| subscription.group == group.group);
        let name = known.map_or_else(|| "".into(), |known| Arc::clone(&known.consumer_group));
        let lately = lately.groups.get(&group.group).copied().unwrap_or_default();
        let consumers = broker.liveness.of((topic.id, group.group));
        group_figures(name, group, now, (lately, consumers))
    };
    Ok(TopicMetricsView {
        topic_name: topic.name.clone(),
        messages: stats.messages,
        bytes: stats.bytes,
        oldest_message_at: stats.oldest.map(Time),
        scheduled: stats.scheduled,
        dead_letters: list.as_ref().map_or(0, |list| list.waiting),
        oldest_dead_letter_at: list.and_then(|list| list.oldest_unsettled).map(Time),
        published_total: stats.appended_total,
        removed_total: stats.removed_total,
        idempotency_keys: stats.dedup_keys,
        window: TopicWindowView {
            from: Time(lately.topic.from),
            to: Time(now),
            published: lately.topic.counted.published,
            published_per_second: per_second(lately.topic.counted.published, now.since(lately.topic.from)),
            removed: lately.topic.counted.removed,
        },
        groups: stats.groups.iter().map(named).collect(),
    })
}

fn group_figures(
    consumer_group: Arc<str>,
    group: &GroupStats,
    now: Timestamp,
    (lately, consumers): (GroupCounts, Vec<(Arc<str>, Seen)>),
) -> GroupMetricsView {
    let consumer = |(subject, seen): (Arc<str>, Seen)| ConsumerView {
        subject,
        last_seen_at: Time(seen.last_seen),
        last_settled_at: seen.last_settled.map(Time),
        waiting: seen.open,
    };
    GroupMetricsView {
        consumer_group,
        lag: group.waiting,
        lag_seconds: group.oldest_unsettled.map_or(0, |oldest| now.since(oldest).as_secs()),
        in_flight: group.leased,
        retrying: group.retrying,
        oldest_unsettled_at: group.oldest_unsettled.map(Time),
        delivered_total: group.delivered_total,
        acked_total: group.acked_total,
        dead_lettered_total: group.dead_lettered_total,
        expired_total: group.expired_total,
        window: GroupWindowView {
            delivered: lately.delivered,
            acked: lately.acked,
            dead_lettered: lately.dead_lettered,
            expired: lately.expired,
        },
        consumers: consumers.into_iter().map(consumer).collect(),
    }
}
