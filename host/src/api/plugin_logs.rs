//! What plugins say, read back and followed. Invariant: a caller reads the logs of plugins that its token reaches; who follows
//! too slowly loses lines and is told how many, and nobody waits for them; lines and verdicts are told of topics that
//! the token reaches. Never asks an instance.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::events::{self, KEEP_ALIVE, comment, event};
use super::extract::{Param, Query};
use super::messages::Slots;
use super::plugins;
use super::problem::{Code, Problem};
use super::wire::Time;
use super::{Api, answer};
use crate::broker::Broker;
use crate::message::{MessageId, TopicName};
use crate::pipeline::{FollowingLines, FollowingVerdicts, Heard, LogLevel, LogLine, Reaches, ToldVerdict};

/// Lines that are kept of a plugin.
const LINES_MAX: u64 = 200;
const LINES_DEFAULT: u64 = 100;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(logs))
}

/// What to read.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct LogsQuery {
    /// Of the lines that are kept, so many of the last.
    #[param(minimum = 1, maximum = 200, default = 100)]
    limit: Option<u64>,
    /// Go on with the lines to come, as Server-Sent Events: `line` carries one, `lost` how many came too fast.
    #[param(default = false)]
    follow: Option<bool>,
    /// With `follow`: what the plugin's stages make of messages, too. `verdict` carries it of one message; of a stage, 50 a
    /// second are told, and `lost` says how many were not.
    #[param(default = false)]
    verdicts: Option<bool>,
}

/// A line of a plugin's log.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LogLineAnswer {
    at: Time,
    level: LogLevel,
    /// The plugin's version, if a stage that ran it said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// The stage that ran it.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<String>,
    text: String,
}

/// What an event carries.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "for the description: events are written one by one")]
enum LogEventAnswer {
    Line(LogLineAnswer),
    Verdict(VerdictAnswer),
}

/// Some lines of a plugin's log.
#[derive(Debug, Serialize, ToSchema)]
struct LogList {
    /// Oldest first.
    lines: Vec<LogLineAnswer>,
}

/// What a stage made of one message.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct VerdictAnswer {
    at: Time,
    #[schema(value_type = String)]
    topic_name: TopicName,
    #[schema(value_type = String, format = Uuid)]
    message_id: MessageId,
    version: String,
    stage: String,
    /// `pass`, `changed`, `dropped`, `rejected` or `fault`.
    verdict: &'static str,
    /// Why it goes no further, in the plugin's words; of a fault, its cause and where it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Of a rejected one, what is wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<VerdictFault>,
    /// What leads from the message as it came to what it is now (RFC 6902): its payload, headers, key, what was emitted with
    /// it. None where it would be too large.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    patch: Option<serde_json::Value>,
    /// Its share in the stage's time.
    duration_us: u64,
}

/// One thing wrong with a message.
#[derive(Debug, Serialize, ToSchema)]
struct VerdictFault {
    code: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pointer: Option<String>,
}

/// What was lost.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
enum Lost {
    Lines(u64),
    Verdicts(u64),
}

/// Read what a plugin says.
#[utoipa::path(
    get, path = "/api/v1/plugins/{name}/logs", tag = "plugins",
    params(("name" = String, Path, description = "The plugin"), LogsQuery),
    responses((
        status = 200, description = "Its last lines on this broker; with `follow`, events",
        content((LogList = "application/json"), (LogEventAnswer = "text/event-stream")),
    )),
)]
async fn logs(
    State(broker): State<Arc<Broker>>,
    State(slots): State<Arc<Slots>>,
    caller: Caller,
    Param(name): Param<String>,
    query: Query<LogsQuery>,
) -> Result<Response, Problem> {
    plugins::need(&broker, &caller, &name)?;
    let (limit, follow, verdicts) = query.check(|query, faults| {
        let limit = query.limit.unwrap_or(LINES_DEFAULT);
        if !(1..=LINES_MAX).contains(&limit) {
            faults.push("/limit", format!("is from 1 to {LINES_MAX}"));
        }
        let (follow, verdicts) = (query.follow.unwrap_or(false), query.verdicts.unwrap_or(false));
        if verdicts && !follow {
            faults.push("/verdicts", "goes with follow=true: they are not kept");
        }
        Some((usize::try_from(limit).unwrap_or(usize::MAX), follow, verdicts))
    })?;
    if broker.pipelines.plugin(&name).is_none() {
        return Err(Problem::not_found("plugin", &name));
    }
    if !follow {
        let lines = broker.pipelines.plugin_log(&name);
        let lines = last(lines, limit, &reaches(&name, &caller)).map(LogLineAnswer::from).collect();
        return Ok(answer::ok(&LogList { lines }));
    }
    let place = slots.begin().ok_or_else(|| {
        Problem::new(Code::Backpressure, "As many streams are open as the broker serves; come again later.")
    })?;
    let (recent, to_come) = broker.pipelines.follow_plugin_log(&name, reaches(&name, &caller));
    let recent = last(recent, limit, &reaches(&name, &caller));
    let before: Vec<u8> = recent.flat_map(|line| event("line", &LogLineAnswer::from(line))).collect();
    let verdicts = verdicts.then(|| broker.pipelines.follow_verdicts(&name, reaches(&name, &caller)));
    let feed = Feed { broker, caller, to_come, verdicts, _place: place };
    Ok(events::answer(before.into(), feed.events()))
}

/// What is the caller's to read: a plugin that is everybody's runs on topics that are not, and what it says may be what they
/// carry. What it says of no topic is for those whose plugin it is.
fn reaches(plugin: &str, caller: &Caller) -> Reaches {
    let (plugin, caller) = (plugin.to_owned(), caller.clone());
    Box::new(move |topic| match topic {
        Some(topic) => caller.need_topic(topic).is_ok(),
        None => caller.need_name("plugin", &plugin).is_ok(),
    })
}

fn last(mut lines: Vec<LogLine>, limit: usize, reaches: &Reaches) -> impl Iterator<Item = LogLine> + use<> {
    lines.retain(|line| reaches(line.topic()));
    let before = lines.len().saturating_sub(limit);
    lines.into_iter().skip(before)
}

impl From<LogLine> for LogLineAnswer {
    fn from(line: LogLine) -> LogLineAnswer {
        LogLineAnswer {
            at: Time(line.at),
            level: line.level,
            version: line.from.as_ref().map(|from| from.version.to_string()),
            stage: line.from.as_ref().map(|from| from.stage.to_string()),
            text: line.text.to_string(),
        }
    }
}

/// One follower and what it needs.
struct Feed {
    broker: Arc<Broker>,
    caller: Caller,
    to_come: FollowingLines,
    verdicts: Option<FollowingVerdicts>,
    /// Among all streams.
    _place: OwnedSemaphorePermit,
}

impl Feed {
    fn events(self) -> impl Stream<Item = Bytes> + Send + 'static {
        stream::unfold(self, |mut feed| async move { Some((feed.next().await?, feed)) })
    }

    /// The next event, or a comment when there is none for a while; none when the stream is over.
    async fn next(&mut self) -> Option<Bytes> {
        // No longer than the token is good for.
        let quiet_until = self.broker.clock.now().plus(KEEP_ALIVE).min(self.caller.expires_at());
        if self.broker.stopping.is_cancelled() || self.caller.has_expired(self.broker.clock.now()) {
            return None;
        }
        tokio::select! {
            // A line about a message comes before what became of it.
            biased;
            () = self.broker.stopping.cancelled() => None,
            heard = self.to_come.next() => Some(match heard? {
                Heard::Told(line) => event("line", &LogLineAnswer::from(line)),
                Heard::Lost(lines) => event("lost", &Lost::Lines(lines)),
            }),
            heard = heard(&mut self.verdicts) => Some(heard),
            () = self.broker.clock.sleep_until(quiet_until) => {
                if self.caller.has_expired(self.broker.clock.now()) {
                    return None;
                }
                let lost = self.verdicts.as_mut().and_then(FollowingVerdicts::lost);
                Some(lost.map_or_else(comment, |lost| event("lost", &Lost::Verdicts(lost))))
            }
        }
    }
}

/// The next verdict; waits for ever where none are followed.
async fn heard(verdicts: &mut Option<FollowingVerdicts>) -> Bytes {
    let Some(verdicts) = verdicts else { return std::future::pending().await };
    match verdicts.next().await {
        Some(Heard::Told(told)) => event("verdict", &VerdictAnswer::from(*told)),
        Some(Heard::Lost(lost)) => event("lost", &Lost::Verdicts(lost)),
        None => std::future::pending().await,
    }
}

impl From<ToldVerdict> for VerdictAnswer {
    fn from(told: ToldVerdict) -> VerdictAnswer {
        let fault = |fault: &crate::pipeline::draft::PayloadFault| VerdictFault {
            code: fault.code.to_string(),
            message: fault.message.to_string(),
            pointer: fault.pointer.as_ref().map(ToString::to_string),
        };
        VerdictAnswer {
            at: Time(told.at),
            message_id: told.before.draft.id,
            version: told.from.version.to_string(),
            stage: told.from.stage.to_string(),
            verdict: told.after.said.as_str(),
            reason: told.after.why.as_ref().map(ToString::to_string),
            errors: told.faults.iter().map(fault).collect(),
            patch: told.patch(),
            duration_us: u64::try_from(told.after.took.as_micros()).unwrap_or(u64::MAX),
            topic_name: told.topic,
        }
    }
}
