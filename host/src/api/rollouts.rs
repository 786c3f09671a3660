//! Versions that are tried on the stages of pipelines: begun, looked at, promoted, aborted. Invariant: what a caller may set
//! by hand it may try, and no more; each step answers with the revision that it made. Never shows more of messages than the
//! differences that a shadow found.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::extract::{IfMatch, Json, NoBody, Params2, not_null, nullable};
use super::pipelines::{PipelineView, plugin_of, shown, subscription_scope};
use super::problem::{Faults, Problem};
use super::wire::{Iso, Time};
use super::{Api, answer, pipelines, plugins, reach};
use crate::broker::Broker;
use crate::catalog::model::{PipelineRevision, RolloutLimits, Scope, Strategy, SubscriptionId};
use crate::message::TopicName;
use crate::pipeline::PipelineError;
use crate::pipeline::rollout::compare::{Comparison, Difference};
use crate::pipeline::rollout::{Figures, NewRollout, RolloutView};

/// Where the request does not say.
const CANARY_PERCENT: f64 = 10.0;
const SHADOW_PERCENT: f64 = 100.0;
/// A canary that fails on more than one of a hundred messages is taken back, unless its owner wants it otherwise.
const CANARY_ERROR_RATE: f64 = 0.01;
const WINDOW: Duration = Duration::from_secs(300);
const WINDOW_MIN: Duration = Duration::from_secs(1);
const WINDOW_MAX: Duration = Duration::from_secs(86_400);
const MIN_MESSAGES: u64 = 100;
const MIN_MESSAGES_MAX: u64 = 1_000_000;
/// Of a latency: as long as a call may take at all.
const LATENCY_MS_MAX: f64 = 60_000.0;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(topic_show, topic_begin))
        .routes(routes!(topic_promote))
        .routes(routes!(topic_abort))
        .routes(routes!(subscription_show, subscription_begin))
        .routes(routes!(subscription_promote))
        .routes(routes!(subscription_abort))
}

/// A version to be brought onto a stage.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RolloutBody {
    /// A version of the stage's plugin: its label, or `latest`, which is pinned to what it means now.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(required, nullable = false)]
    version: Option<String>,
    /// `immediate`: the stage runs it at once. `canary`: it runs for some of the messages, always the same ones of a key.
    /// `shadow`: it runs on copies beside the stage's version, and what it does is compared and thrown away.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(required, nullable = false)]
    strategy: Option<StrategyName>,
    /// Of a hundred messages, how many it is tried on: more than 0, to 100 (10 of a canary, all of a shadow).
    #[serde(default, deserialize_with = "not_null")]
    #[schema(minimum = 0.01, maximum = 100, nullable = false)]
    percent: Option<f64>,
    /// It is taken back when more of its messages fail than of those of the stage's version, by this share of them: 0 to 1
    /// (0.01 of a canary; null: never).
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 1)]
    max_error_rate: Option<Option<f64>>,
    /// It is taken back when it rejects this share of messages more than the stage's version: 0 to 1.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 1)]
    max_reject_delta: Option<Option<f64>>,
    /// It is taken back when it drops this share of messages more, or fewer, than the stage's version: 0 to 1.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 1)]
    max_drop_delta: Option<Option<f64>>,
    /// It is taken back when one of a hundred messages takes longer than so many milliseconds in it, and longer than in the
    /// stage's version.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(minimum = 0.001, maximum = 60000, nullable = false)]
    max_latency_ms: Option<f64>,
    /// How far back its figures are looked at: `PT1S` to `P1D` (`PT5M`).
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    window: Option<Iso>,
    /// Rates are not judged of fewer messages; failures count as though there were so many: 1 to 1000000 (100).
    #[serde(default, deserialize_with = "not_null")]
    #[schema(minimum = 1, maximum = 1_000_000, nullable = false)]
    min_messages: Option<u64>,
}

/// How a version is brought onto a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
enum StrategyName {
    Immediate,
    Canary,
    Shadow,
}

/// A rollout, as it stands or as the last one of the stage ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct RolloutAnswer {
    stage: String,
    plugin: String,
    /// What the stage runs, or ran.
    stable_version: String,
    version: String,
    /// Hex SHA-256 of the component that is tried.
    digest: String,
    strategy: Strategy,
    percent: f64,
    #[serde(flatten)]
    limits: LimitsAnswer,
    started_at: Time,
    /// `running`, `promoted`, `aborted`, `rolledBack` or `replaced`.
    state: &'static str,
    /// Why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<Time>,
    /// Of the stage's version, since the rollout began on this broker.
    stable: FiguresAnswer,
    /// Of the version that is tried.
    candidate: FiguresAnswer,
    /// The same in the window before now, which is what it is judged by.
    recent: RecentAnswer,
    /// How what both made of the same messages compares.
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<ShadowAnswer>,
}

/// What ends a rollout by itself.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct LimitsAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_error_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_reject_delta: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_drop_delta: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_latency_ms: Option<f64>,
    window: Iso,
    min_messages: u64,
}

/// Of both versions.
#[derive(Debug, Serialize, ToSchema)]
struct RecentAnswer {
    stable: FiguresAnswer,
    candidate: FiguresAnswer,
}

/// What a version made of its messages.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct FiguresAnswer {
    messages: u64,
    passed: u64,
    changed: u64,
    dropped: u64,
    rejected: u64,
    faulted: u64,
    emitted: u64,
    /// Milliseconds that half of the messages took at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_p50_ms: Option<f64>,
    /// Milliseconds that 99 of 100 messages took at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_p99_ms: Option<f64>,
}

/// How messages compare.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ShadowAnswer {
    same: u64,
    /// One keeps, drops or rejects what the other does not.
    verdict_differs: u64,
    /// Both keep it, but not alike.
    payload_differs: u64,
    /// Only the version that is tried failed.
    trapped: u64,
    /// Not compared: there was no room, traffic went first.
    shed: u64,
    /// The first of each kind.
    sample: Vec<DifferenceAnswer>,
}

/// A message of which the versions made something else.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct DifferenceAnswer {
    message_id: String,
    /// `verdict`, `payload` or `trapped`.
    kind: &'static str,
    stable: WordAnswer,
    candidate: WordAnswer,
    /// What leads from the one to the other, of `{payload, contentType, headers, key, emitted}`: a JSON Patch (RFC 6902).
    /// Absent where it would be too large.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    diff: Option<Value>,
}

/// What a version said.
#[derive(Debug, Serialize, ToSchema)]
struct WordAnswer {
    /// `pass`, `changed`, `dropped`, `rejected` or `fault`.
    verdict: &'static str,
    /// Why, if it goes no further.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    reason: Option<Arc<str>>,
}

impl From<Figures> for FiguresAnswer {
    fn from(figures: Figures) -> FiguresAnswer {
        let ms = |share| figures.latency.quantile(share).map(|time| time.as_micros() as f64 / 1000.0);
        FiguresAnswer {
            messages: figures.messages,
            passed: figures.passed,
            changed: figures.changed,
            dropped: figures.dropped,
            rejected: figures.rejected,
            faulted: figures.faulted,
            emitted: figures.emitted,
            latency_p50_ms: ms(0.5),
            latency_p99_ms: ms(0.99),
        }
    }
}

impl From<Difference> for DifferenceAnswer {
    fn from(of: Difference) -> DifferenceAnswer {
        let word = |(said, reason): (crate::pipeline::draft::Said, Option<Arc<str>>)| WordAnswer {
            verdict: said.as_str(),
            reason,
        };
        DifferenceAnswer {
            message_id: of.message.to_string(),
            kind: Comparison::as_str(of.comparison),
            stable: word(of.stable),
            candidate: word(of.candidate),
            diff: of.patch,
        }
    }
}

impl From<RolloutView> for RolloutAnswer {
    fn from(view: RolloutView) -> RolloutAnswer {
        let RolloutLimits { max_error_rate, max_reject_delta, max_drop_delta, max_latency_ms, .. } =
            view.rollout.limits;
        let window = Iso(Duration::from_millis(view.rollout.limits.window_ms));
        let min_messages = view.rollout.limits.min_messages;
        let (state, reason, ended_at) = match view.ended {
            None => ("running", None, None),
            Some((end, reason, at)) => (end.as_str(), Some(reason), Some(Time(at))),
        };
        let shadow = (view.rollout.strategy == Strategy::Shadow).then(|| ShadowAnswer {
            same: view.compared.same,
            verdict_differs: view.compared.verdict,
            payload_differs: view.compared.payload,
            trapped: view.compared.trapped,
            shed: view.shed,
            sample: view.compared.sample.into_iter().map(DifferenceAnswer::from).collect(),
        });
        RolloutAnswer {
            stage: view.stage,
            plugin: view.plugin,
            stable_version: view.stable,
            version: view.rollout.version,
            digest: view.rollout.digest,
            strategy: view.rollout.strategy,
            percent: view.rollout.percent,
            limits: LimitsAnswer {
                max_error_rate,
                max_reject_delta,
                max_drop_delta,
                max_latency_ms,
                window,
                min_messages,
            },
            started_at: Time(view.rollout.started_at),
            state,
            reason,
            ended_at,
            stable: view.totals.stable.into(),
            candidate: view.totals.candidate.into(),
            recent: RecentAnswer { stable: view.recent.stable.into(), candidate: view.recent.candidate.into() },
            shadow,
        }
    }
}

/// Show what is tried on a topic's stage.
#[utoipa::path(
    get, path = "/api/v1/topics/{topic}/pipeline/stages/{stage}/rollout", tag = "pipelines",
    params(("topic" = String, Path, description = "Its name"), ("stage" = String, Path, description = "The stage's name")),
    responses((status = 200, description = "What is tried, or how the last one ended", body = RolloutAnswer)),
)]
async fn topic_show(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(name, stage): Params2<TopicName, String>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    show(&broker, Scope::Topic(topic.id), &stage)
}

/// Bring a version onto a topic's stage.
#[utoipa::path(
    post, path = "/api/v1/topics/{topic}/pipeline/stages/{stage}/rollout", tag = "pipelines", request_body = RolloutBody,
    params(
        ("topic" = String, Path, description = "Its name"),
        ("stage" = String, Path, description = "The stage's name"),
        ("If-Match" = Option<String>, Header, description = "The revision that the change is made from"),
    ),
    responses((status = 200, description = "The new revision", body = PipelineView)),
)]
async fn topic_begin(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(name, stage): Params2<TopicName, String>,
    if_match: IfMatch,
    body: Json<RolloutBody>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    begin(&broker, &caller, (Scope::Topic(topic.id), &stage), if_match, body).await
}

/// Let a topic's stage run what is tried on it.
#[utoipa::path(
    post, path = "/api/v1/topics/{topic}/pipeline/stages/{stage}/rollout/promote", tag = "pipelines",
    params(
        ("topic" = String, Path, description = "Its name"),
        ("stage" = String, Path, description = "The stage's name"),
        ("If-Match" = Option<String>, Header, description = "The revision that the change is made from"),
    ),
    responses((status = 200, description = "The new revision", body = PipelineView)),
)]
async fn topic_promote(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(name, stage): Params2<TopicName, String>,
    if_match: IfMatch,
    _: NoBody,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    promote(&broker, &caller, (Scope::Topic(topic.id), &stage), if_match).await
}

/// End the trial on a topic's stage.
#[utoipa::path(
    post, path = "/api/v1/topics/{topic}/pipeline/stages/{stage}/rollout/abort", tag = "pipelines",
    params(
        ("topic" = String, Path, description = "Its name"),
        ("stage" = String, Path, description = "The stage's name"),
        ("If-Match" = Option<String>, Header, description = "The revision that the change is made from"),
    ),
    responses((status = 200, description = "The new revision", body = PipelineView)),
)]
async fn topic_abort(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(name, stage): Params2<TopicName, String>,
    if_match: IfMatch,
    _: NoBody,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    abort(&broker, &caller, (Scope::Topic(topic.id), &stage), if_match).await
}

/// Show what is tried on a subscription's stage.
#[utoipa::path(
    get, path = "/api/v1/subscriptions/{id}/pipeline/stages/{stage}/rollout", tag = "pipelines",
    params(("id" = String, Path, description = "Its id"), ("stage" = String, Path, description = "The stage's name")),
    responses((status = 200, description = "What is tried, or how the last one ended", body = RolloutAnswer)),
)]
async fn subscription_show(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(id, stage): Params2<SubscriptionId, String>,
) -> Result<Response, Problem> {
    show(&broker, subscription_scope(&broker, &caller, id)?, &stage)
}

/// Bring a version onto a subscription's stage.
#[utoipa::path(
    post, path = "/api/v1/subscriptions/{id}/pipeline/stages/{stage}/rollout", tag = "pipelines",
    request_body = RolloutBody,
    params(
        ("id" = String, Path, description = "Its id"),
        ("stage" = String, Path, description = "The stage's name"),
        ("If-Match" = Option<String>, Header, description = "The revision that the change is made from"),
    ),
    responses((status = 200, description = "The new revision", body = PipelineView)),
)]
async fn subscription_begin(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(id, stage): Params2<SubscriptionId, String>,
    if_match: IfMatch,
    body: Json<RolloutBody>,
) -> Result<Response, Problem> {
    let scope = subscription_scope(&broker, &caller, id)?;
    begin(&broker, &caller, (scope, &stage), if_match, body).await
}

/// Let a subscription's stage run what is tried on it.
#[utoipa::path(
    post, path = "/api/v1/subscriptions/{id}/pipeline/stages/{stage}/rollout/promote", tag = "pipelines",
    params(
        ("id" = String, Path, description = "Its id"),
        ("stage" = String, Path, description = "The stage's name"),
        ("If-Match" = Option<String>, Header, description = "The revision that the change is made from"),
    ),
    responses((status = 200, description = "The new revision", body = PipelineView)),
)]
async fn subscription_promote(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(id, stage): Params2<SubscriptionId, String>,
    if_match: IfMatch,
    _: NoBody,
) -> Result<Response, Problem> {
    let scope = subscription_scope(&broker, &caller, id)?;
    promote(&broker, &caller, (scope, &stage), if_match).await
}

/// End the trial on a subscription's stage.
#[utoipa::path(
    post, path = "/api/v1/subscriptions/{id}/pipeline/stages/{stage}/rollout/abort", tag = "pipelines",
    params(
        ("id" = String, Path, description = "Its id"),
        ("stage" = String, Path, description = "The stage's name"),
        ("If-Match" = Option<String>, Header, description = "The revision that the change is made from"),
    ),
    responses((status = 200, description = "The new revision", body = PipelineView)),
)]
async fn subscription_abort(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(id, stage): Params2<SubscriptionId, String>,
    if_match: IfMatch,
    _: NoBody,
) -> Result<Response, Problem> {
    let scope = subscription_scope(&broker, &caller, id)?;
    abort(&broker, &caller, (scope, &stage), if_match).await
}

fn show(broker: &Broker, scope: Scope, stage: &str) -> Result<Response, Problem> {
    Ok(answer::ok(&RolloutAnswer::from(broker.pipelines.rollout(scope, stage)?)))
}

async fn begin(
    broker: &Broker,
    caller: &Caller,
    (scope, stage): (Scope, &str),
    if_match: IfMatch,
    body: Json<RolloutBody>,
) -> Result<Response, Problem> {
    let new = body.check(new_rollout)?;
    need_plugin(broker, caller, (scope, stage))?;
    need_secrets(broker, caller, (scope, stage))?;
    revised(broker.pipelines.roll_out((scope, stage), new, if_match.expected()?, &caller.actor()).await)
}

async fn promote(
    broker: &Broker,
    caller: &Caller,
    (scope, stage): (Scope, &str),
    if_match: IfMatch,
) -> Result<Response, Problem> {
    need_plugin(broker, caller, (scope, stage))?;
    revised(broker.pipelines.promote((scope, stage), if_match.expected()?, &caller.actor()).await)
}

async fn abort(
    broker: &Broker,
    caller: &Caller,
    (scope, stage): (Scope, &str),
    if_match: IfMatch,
) -> Result<Response, Problem> {
    need_plugin(broker, caller, (scope, stage))?;
    revised(broker.pipelines.abort((scope, stage), if_match.expected()?, &caller.actor()).await)
}

/// The stage's plugin must be the caller's, as when it is set.
fn need_plugin(broker: &Broker, caller: &Caller, (scope, stage): (Scope, &str)) -> Result<(), Problem> {
    let plugin = broker.pipelines.current(scope).and_then(|record| plugin_of(&record, stage));
    plugin.map_or(Ok(()), |plugin| plugins::need(broker, caller, &plugin))
}

/// So must the secrets of its config, which the other version gets.
fn need_secrets(broker: &Broker, caller: &Caller, (scope, stage): (Scope, &str)) -> Result<(), Problem> {
    let stages = broker.pipelines.current(scope).map(|record| record.stages).unwrap_or_default();
    let mut named = stages.iter().filter(|spec| spec.name == stage);
    named.try_for_each(|spec| pipelines::need_secrets(caller, &spec.plugin, &spec.config))
}

fn revised(revision: Result<PipelineRevision, PipelineError>) -> Result<Response, Problem> {
    Ok(shown(PipelineView::of(Some(revision?))))
}

fn new_rollout(body: RolloutBody, faults: &mut Faults) -> Option<NewRollout> {
    let strategy = faults.require("/strategy", body.strategy);
    let version = faults.require("/version", body.version);
    let trial = match strategy {
        Some(StrategyName::Canary) => Some(Strategy::Canary),
        Some(StrategyName::Shadow) => Some(Strategy::Shadow),
        Some(StrategyName::Immediate) | None => None,
    };
    let given = [
        ("/percent", body.percent.is_some()),
        ("/maxErrorRate", body.max_error_rate.is_some()),
        ("/maxRejectDelta", body.max_reject_delta.is_some()),
        ("/maxDropDelta", body.max_drop_delta.is_some()),
        ("/maxLatencyMs", body.max_latency_ms.is_some()),
        ("/window", body.window.is_some()),
        ("/minMessages", body.min_messages.is_some()),
    ];
    if strategy == Some(StrategyName::Immediate) {
        for (pointer, _) in given.into_iter().filter(|(_, given)| *given) {
            faults.push(pointer, "is for a canary or a shadow");
        }
    }
    let (percent, error_rate) = match trial {
        Some(Strategy::Shadow) => (SHADOW_PERCENT, None),
        _ => (CANARY_PERCENT, Some(CANARY_ERROR_RATE)),
    };
    let percent = body.percent.unwrap_or(percent);
    if !(0.01..=100.0).contains(&percent) {
        faults.push("/percent", "is from 0.01 to 100");
    }
    let mut share = |pointer: &str, given: Option<Option<f64>>, usual: Option<f64>| {
        let share = given.unwrap_or(usual);
        if share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            faults.push(pointer, "is a share: from 0 to 1");
        }
        share
    };
    let max_error_rate = share("/maxErrorRate", body.max_error_rate, error_rate);
    let max_reject_delta = share("/maxRejectDelta", body.max_reject_delta, None);
    let max_drop_delta = share("/maxDropDelta", body.max_drop_delta, None);
    let max_latency_ms = body.max_latency_ms;
    if max_latency_ms.is_some_and(|ms| !(0.001..=LATENCY_MS_MAX).contains(&ms)) {
        faults.push("/maxLatencyMs", "is from 0.001 to 60000");
    }
    let window = body.window.map_or(WINDOW, |Iso(window)| window);
    if !(WINDOW_MIN..=WINDOW_MAX).contains(&window) {
        faults.push("/window", "is from PT1S to P1D");
    }
    let min_messages = body.min_messages.unwrap_or(MIN_MESSAGES);
    if !(1..=MIN_MESSAGES_MAX).contains(&min_messages) {
        faults.push("/minMessages", "is from 1 to 1000000");
    }
    let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
    let limits =
        RolloutLimits { max_error_rate, max_reject_delta, max_drop_delta, max_latency_ms, window_ms, min_messages };
    Some(NewRollout { version: version?, strategy: trial, percent, limits })
}
