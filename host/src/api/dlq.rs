//! Dead letters: listed, replayed, discarded. Invariant: a dead letter belongs to its topic, so the token's scope is held
//! against that. Never replays by itself.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use payload_query::Query as PayloadQuery;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::extract::{NoBody, OptionalJson, Param, Params2, Query};
use super::messages::MessageView;
use super::page::LIMIT_MAX;
use super::problem::{Faults, Problem};
use super::wire::Time;
use super::{Api, answer, reach};
use crate::broker::Broker;
use crate::clock::Timestamp;
use crate::delivery::dead_letters::{Replay, ReplayReport, Which};
use crate::message::{MessageId, Position, TopicName};

/// Characters of a `nextToken`: one place, as base64.
const TOKEN_CHARS_MAX: usize = 64;
/// Dead letters that one call replays at most.
const REPLAYED_MAX: u64 = 1_000_000;
/// Dead letters that are replayed in a second at most, where a rate is given.
const RATE_MAX: u32 = 1000;
const RATE_RANGE: &str = "is from 1 to 1000 a second";
/// How long one call replays: well within the time of a request.
const REPLAY_TIME_MAX: Duration = Duration::from_secs(10);

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(replay_many))
        .routes(routes!(replay))
        .routes(routes!(discard))
}

/// What to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Dead letters at most.
    #[param(minimum = 1, maximum = 100, default = 100)]
    limit: Option<u64>,
    /// Where the page before ended.
    next_token: Option<String>,
}

/// Some dead letters.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct DeadLetterList<'a> {
    /// Oldest first.
    dead_letters: Vec<MessageView<'a>>,
    /// Where the next page begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
    /// Whether there are more.
    has_more: bool,
    /// All that are on the list.
    total: u64,
    /// When the oldest of them was put there.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_failed_at: Option<Time>,
}

/// List dead letters.
#[utoipa::path(
    get, path = "/api/v1/topics/{topic}/dlq", tag = "dead letters",
    params(("topic" = String, Path, description = "The topic that they failed on"), ListQuery),
    responses((status = 200, description = "Those neither replayed nor discarded", body = DeadLetterList)),
)]
async fn list(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
    query: Query<ListQuery>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    let (limit, after) = query.check(window)?;
    let page = broker.dead_letters.list(&topic, after, limit).await?;
    let next = page.next().and_then(|_| page.messages.last()).map(|(position, _)| encode(position));
    let (total, oldest) = broker.dead_letters.count(&topic).await?;
    let home = topic.dead_letter.and_then(|id| broker.directory.topic_by_id(id)).unwrap_or(topic);
    let dead_letters =
        page.messages.iter().map(|(position, message)| MessageView::of(&home, Some(*position), message)).collect();
    let (has_more, oldest_failed_at) = (next.is_some(), oldest.map(Time));
    Ok(answer::ok(&DeadLetterList { dead_letters, has_more, next_token: next, total, oldest_failed_at }))
}

fn window(query: ListQuery, faults: &mut Faults) -> Option<(usize, Option<Position>)> {
    let limit = query.limit.unwrap_or(LIMIT_MAX);
    if !(1..=LIMIT_MAX).contains(&limit) {
        faults.push("/limit", format!("is from 1 to {LIMIT_MAX}"));
    }
    let Some(token) = query.next_token else { return Some((limit as usize, None)) };
    let after = faults.keep("/nextToken", decode(&token).ok_or("is no token of this route"))?;
    Some((limit as usize, Some(after)))
}

/// A replayed message.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ReplayAnswer {
    /// The id under which it is delivered again.
    #[schema(value_type = String, format = Uuid)]
    message_id: MessageId,
}

/// Replay one dead letter.
#[utoipa::path(
    post, path = "/api/v1/topics/{topic}/dlq/{messageId}/replay", tag = "dead letters",
    params(
        ("topic" = String, Path, description = "The topic that it failed on"),
        ("messageId" = String, Path, description = "The dead letter's own id"),
    ),
    responses((status = 200, description = "Delivered again, to the group that it failed for", body = ReplayAnswer)),
)]
async fn replay(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(name, id): Params2<TopicName, MessageId>,
    _: NoBody,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    let message_id = broker.dead_letters.replay(&topic, id).await?;
    Ok(answer::ok(&ReplayAnswer { message_id }))
}

/// Which dead letters to replay. Without any field: all.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct ReplayBody {
    /// Only those that failed for this group.
    consumer_group: Option<String>,
    /// Only those that failed for this reason: `NACK`, `REJECTED`, ….
    reason: Option<String>,
    /// Only those that failed at this time or later.
    from: Option<Time>,
    /// Only those that failed before this time.
    until: Option<Time>,
    /// Only those whose JSON payload fits this `payloadQuery`.
    filter: Option<String>,
    /// So many at most, in this call (a million).
    #[schema(minimum = 1, maximum = 1_000_000)]
    limit: Option<u64>,
    /// So many a second at most; by default as fast as they can be stored.
    #[schema(minimum = 1, maximum = 1000)]
    rate: Option<u64>,
    /// Only count them.
    dry_run: bool,
    /// Where the call before ended.
    next_token: Option<String>,
}

impl ReplayBody {
    fn read(self, due: Timestamp, faults: &mut Faults) -> Option<Replay> {
        let filter = faults.keep("/filter", self.filter.map(|text| PayloadQuery::parse(&text)).transpose());
        if self.limit.is_some_and(|limit| !(1..=REPLAYED_MAX).contains(&limit)) {
            faults.push("/limit", format!("is from 1 to {REPLAYED_MAX}"));
        }
        let rate = self.rate.map(|rate| {
            u32::try_from(rate).ok().filter(|rate| *rate <= RATE_MAX).and_then(NonZeroU32::new).ok_or(RATE_RANGE)
        });
        let rate = faults.keep("/rate", rate.transpose());
        if self.from.zip(self.until).is_some_and(|(from, until)| from.0 >= until.0) {
            faults.push("/until", "is after `from`");
        }
        let after = self.next_token.map(|token| decode(&token).ok_or("is no token of this route"));
        let after = faults.keep("/nextToken", after.transpose());
        let (from, until) = (self.from.map(|Time(at)| at), self.until.map(|Time(at)| at));
        let which = Which { group: self.consumer_group, reason: self.reason, from, until, filter: filter? };
        let at_most = self.limit.unwrap_or(REPLAYED_MAX);
        Some(Replay { which, dry_run: self.dry_run, at_most, rate: rate?, after: after?, due })
    }
}

/// What a replay of many came to, in this call.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ReplayManyAnswer {
    /// Dead letters that fit.
    matched: u64,
    /// Of these, replayed.
    replayed: u64,
    /// How many fit, by their reason.
    #[schema(value_type = BTreeMap<String, u64>)]
    reasons: BTreeMap<Arc<str>, u64>,
    /// Of those that fit, refused: the first few.
    failed: Vec<ReplayFailure>,
    /// Where to go on: a call ends after some seconds, or with its `limit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
    /// Whether some were not looked at.
    has_more: bool,
}

/// A dead letter that was not replayed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ReplayFailure {
    #[schema(value_type = String, format = Uuid)]
    message_id: MessageId,
    reason: String,
}

impl From<ReplayReport> for ReplayManyAnswer {
    fn from(report: ReplayReport) -> ReplayManyAnswer {
        let ReplayReport { matched, replayed, reasons, failed, next } = report;
        let failed = failed.into_iter().map(|(message_id, reason)| ReplayFailure { message_id, reason }).collect();
        let next_token = next.as_ref().map(encode);
        ReplayManyAnswer { matched, replayed, reasons, failed, has_more: next_token.is_some(), next_token }
    }
}

/// Replay many dead letters.
///
/// A call ends with the list, or after some seconds: then `hasMore` is true, and `nextToken` goes on where it ended. What
/// dies again meanwhile is not replayed again.
#[utoipa::path(
    post, path = "/api/v1/topics/{topic}/dlq/replay", tag = "dead letters", request_body = ReplayBody,
    params(("topic" = String, Path, description = "The topic that they failed on")),
    responses((status = 200, description = "How many fit and were replayed", body = ReplayManyAnswer)),
)]
async fn replay_many(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
    OptionalJson(body): OptionalJson<ReplayBody>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    let time = REPLAY_TIME_MAX.min(broker.config.limits.request_timeout / 2);
    let replay = body.check(|body, faults| body.read(broker.clock.now().plus(time), faults))?;
    let report = broker.dead_letters.replay_many(&topic, &replay).await?;
    Ok(answer::ok(&ReplayManyAnswer::from(report)))
}

/// Discard a dead letter.
#[utoipa::path(
    delete, path = "/api/v1/topics/{topic}/dlq/{messageId}", tag = "dead letters",
    params(
        ("topic" = String, Path, description = "The topic that it failed on"),
        ("messageId" = String, Path, description = "The dead letter's own id"),
    ),
    responses((status = 204, description = "Off the list for good")),
)]
async fn discard(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(name, id): Params2<TopicName, MessageId>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    broker.dead_letters.discard(&topic, id).await?;
    Ok(answer::no_content())
}

fn encode<T: Serialize>(place: &T) -> String {
    URL_SAFE_NO_PAD.encode(postcard::to_stdvec(place).expect("a place is plain numbers"))
}

fn decode<T: DeserializeOwned>(token: &str) -> Option<T> {
    if token.len() > TOKEN_CHARS_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (place, rest) = postcard::take_from_bytes(&bytes).ok()?;
    rest.is_empty().then_some(place)
}
