//! Dead letters: listed, replayed, discarded. Invariant: a dead letter belongs to its topic, so the token's scope is held
//! against that. Never replays by itself.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::extract::{NoBody, OptionalJson, Param, Params2, Query};
use super::messages::{FailureView, MessageView};
use super::page::LIMIT_MAX;
use super::problem::{Faults, Problem};
use super::wire::Time;
use super::{Api, answer, reach};
use crate::broker::Broker;
use crate::delivery::dead_letters::{ReplayReport, Which};
use crate::message::{DeadLetterFacts, MessageId, Position, TopicName};

/// Characters of a `nextToken`: one place, as base64.
const TOKEN_CHARS_MAX: usize = 64;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(replay_all))
        .routes(routes!(replay))
        .routes(routes!(discard))
}

/// Why a message is a dead letter.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeadLetterView<'a> {
    /// Its id in the topic that it came from.
    #[schema(value_type = String, format = Uuid)]
    original_message_id: MessageId,
    /// For which group; absent if it never got into its topic.
    #[serde(skip_serializing_if = "str::is_empty")]
    consumer_group: &'a str,
    /// In a word: `NACK`, `REJECTED`, ….
    reason: &'a str,
    /// In a sentence: the consumer's, the stage's, the endpoint's.
    detail: &'a str,
    /// The stage that turned it away.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<&'a str>,
    /// What that stage ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin_version: Option<&'a str>,
    /// The endpoint's last HTTP status.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_status: Option<u16>,
    /// Deliveries that were tried.
    attempts: u32,
    /// The attempts that failed, oldest first: the last 8.
    failures: Vec<FailureView<'a>>,
    /// When it became a dead letter.
    failed_at: Time,
}

impl<'a> DeadLetterView<'a> {
    pub(super) fn of(facts: &'a DeadLetterFacts) -> DeadLetterView<'a> {
        let stage = facts.last.stage.as_ref();
        DeadLetterView {
            original_message_id: facts.original_id,
            consumer_group: &facts.group_name,
            reason: &facts.last.reason,
            detail: &facts.last.detail,
            stage: stage.map(|stage| &*stage.name),
            plugin: stage.map(|stage| &*stage.plugin),
            plugin_version: stage.map(|stage| &*stage.version),
            last_status: facts.last.last_status,
            attempts: facts.attempts,
            failures: facts.failures.as_slice().iter().map(FailureView::of).collect(),
            failed_at: Time(facts.at),
        }
    }
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
    let next = page.next.as_ref().and_then(|_| page.messages.last()).map(|(position, _)| encode(*position));
    let home = topic.dead_letter.and_then(|id| broker.directory.topic_by_id(id)).unwrap_or(topic);
    let dead_letters =
        page.messages.iter().map(|(position, message)| MessageView::of(&home, Some(*position), message)).collect();
    Ok(answer::ok(&DeadLetterList { dead_letters, has_more: next.is_some(), next_token: next }))
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

/// Which dead letters to replay.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct ReplayBody {
    /// Only those that failed for this group.
    consumer_group: Option<String>,
    /// Only those that failed for this reason: `NACK`, `REJECTED`, ….
    reason: Option<String>,
    /// Only count them.
    dry_run: bool,
}

/// What a replay of many came to.
#[derive(Debug, Serialize, ToSchema)]
struct ReplayAllAnswer {
    /// Dead letters that fit.
    matched: u64,
    /// Of these, replayed.
    replayed: u64,
    /// Of these, refused: the first few.
    failed: Vec<ReplayFailure>,
}

/// A dead letter that was not replayed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ReplayFailure {
    #[schema(value_type = String, format = Uuid)]
    message_id: MessageId,
    reason: String,
}

impl From<ReplayReport> for ReplayAllAnswer {
    fn from(report: ReplayReport) -> ReplayAllAnswer {
        let failure = |(message_id, reason)| ReplayFailure { message_id, reason };
        let failed = report.failed.into_iter().map(failure).collect();
        ReplayAllAnswer { matched: report.matched, replayed: report.replayed, failed }
    }
}

/// Replay many dead letters.
#[utoipa::path(
    post, path = "/api/v1/topics/{topic}/dlq/replay", tag = "dead letters", request_body = ReplayBody,
    params(("topic" = String, Path, description = "The topic that they failed on")),
    responses((status = 200, description = "How many fit and were replayed", body = ReplayAllAnswer)),
)]
async fn replay_all(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
    OptionalJson(body): OptionalJson<ReplayBody>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    let ReplayBody { consumer_group: group, reason, dry_run } = body.plain()?;
    let report = broker.dead_letters.replay_all(&topic, &Which { group, reason }, dry_run).await?;
    Ok(answer::ok(&ReplayAllAnswer::from(report)))
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

fn encode(position: Position) -> String {
    URL_SAFE_NO_PAD.encode(postcard::to_stdvec(&position).expect("a position is plain numbers"))
}

fn decode(token: &str) -> Option<Position> {
    if token.len() > TOKEN_CHARS_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (position, rest) = postcard::take_from_bytes(&bytes).ok()?;
    rest.is_empty().then_some(position)
}
