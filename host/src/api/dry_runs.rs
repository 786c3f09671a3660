//! Versions tried on messages of the past. Invariant: a caller tries what it could put into the pipeline, on topics that it
//! reaches; nothing is changed by it; who goes away ends the run. Never shows more of messages than the differences.

mod pump;
mod wanted;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::HeaderMap;
use http::header;
use serde::Serialize;
use tokio::sync::mpsc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::pump::Pump;
use self::wanted::{DryRunBody, DryRunLine, DryRunQuery, Source, Wanted};
use super::auth::Caller;
use super::events::{self, KEEP_ALIVE, comment, event};
use super::extract::{Intake, Lines, Params2, Query};
use super::messages::is_ndjson;
use super::plugin_logs::LogLineAnswer;
use super::problem::{Code, Faults, Problem};
use super::rollouts::{DifferenceAnswer, FiguresAnswer};
use super::{Api, answer, pipelines, plugins, reach};
use crate::broker::Broker;
use crate::catalog::model::{DeadLetterPayload, Scope, StageSpec, Topic};
use crate::clock::Timestamp;
use crate::dry_run::{End, Inputs, Progress, Running};
use crate::message::GroupId;
use crate::pipeline::{DryRunSpec, Outcomes};
use crate::store::ReadFrom;

/// Runs of lines that wait for the stages.
const RUNS_AHEAD: usize = 1;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(dry_run))
}

/// What came of a dry run.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct DryRunAnswer {
    plugin: String,
    /// The stage in whose place the version was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<String>,
    inputs: Source,
    /// Messages that were read.
    messages: u64,
    /// Those of them that the stages before did not let through.
    not_reached: u64,
    /// Lines that are no messages, and are left out: of those that are sent, or of what was kept, where that is damaged.
    unreadable: u64,
    /// The first of them.
    unreadable_sample: Vec<UnreadableAnswer>,
    /// Messages that come out as with the version in use.
    same: u64,
    /// One keeps, drops or rejects what the other does not.
    verdict_differs: u64,
    /// Both keep it, but not alike.
    payload_differs: u64,
    /// Only the version that is tried fails.
    trapped: u64,
    /// The first of each kind.
    sample: Vec<DifferenceAnswer>,
    /// Values of the plugins that found no room, of 32 MiB: what came behind may be judged otherwise than where all are kept.
    values_lost: u64,
    /// The version that is tried.
    candidate: OutcomesAnswer,
    /// What it is compared with; absent where that is the message as it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    stable: Option<OutcomesAnswer>,
    /// What the version that is tried said last.
    log: Vec<LogLineAnswer>,
    took_ms: u64,
    /// `all`, `limit`, `stopped` or `broken`.
    end: &'static str,
    /// Why it broke off.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A line that is no message.
#[derive(Debug, Serialize, ToSchema)]
struct UnreadableAnswer {
    /// Which, from 1.
    line: u64,
    message: String,
}

/// What a version made of the messages.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct OutcomesAnswer {
    version: String,
    digest: String,
    /// Passed and changed.
    kept: u64,
    #[serde(flatten)]
    figures: FiguresAnswer,
    /// By cause.
    faults: std::collections::BTreeMap<&'static str, u64>,
    /// Microseconds of a message in it, on the average.
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_micros: Option<f64>,
    /// Bytes of guest memory at most.
    memory_bytes: usize,
}

/// How far a dry run is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ProgressAnswer {
    messages: u64,
    /// Of all that there is, 0 to 1, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    fraction: Option<f64>,
    same: u64,
    verdict_differs: u64,
    payload_differs: u64,
    trapped: u64,
    took_ms: u64,
}

/// Try a version on messages of the past.
///
/// Nothing is changed by it. The answer comes when the run has ended; for `Accept: text/event-stream` it comes as the event `result`,
/// behind events `progress`. Who goes away ends the run. Clocks stand at the time at which the messages came, and randomness
/// follows from `seed`: the same run again has the same outcome. Values of plugins begin empty, and are thrown away.
#[utoipa::path(
    post, path = "/api/v1/plugins/{name}/versions/{version}/dry-run", tag = "plugins",
    params(
        ("name" = String, Path, description = "The plugin's name"),
        ("version" = String, Path, description = "Its label, or `latest`"),
        DryRunQuery,
    ),
    request_body(
        description = "What to try; or messages, one a line as they are published, where the query says what to try, or else \
                       the first line",
        content((DryRunBody = "application/json"), (DryRunLine = "application/x-ndjson")),
    ),
    responses((
        status = 200, description = "Counts, differences, and the time it takes",
        content((DryRunAnswer = "application/json"), (ProgressAnswer = "text/event-stream")),
    )),
)]
async fn dry_run(
    State(broker): State<Arc<Broker>>,
    State(intake): State<Arc<Intake>>,
    caller: Caller,
    Params2(name, label): Params2<String, String>,
    query: Query<DryRunQuery>,
    request: Request,
) -> Result<Response, Problem> {
    plugins::need(&broker, &caller, &name)?;
    let version = broker.pipelines.version(&name, &label);
    let version =
        version.ok_or_else(|| Problem::not_found("version", format_args!("{label}' of the plugin '{name}")))?;
    let (parts, body) = request.into_parts();
    let headers = parts.headers;
    let (wanted, place, lines) = if is_ndjson(&headers) {
        let body = intake.decoded(&headers, body)?;
        let mut lines = Lines::new(body, intake, broker.config.limits.body_bytes_max);
        let (wanted, place) = wanted::beside(query, &mut lines).await?;
        (wanted, place, Some(lines))
    } else {
        let of_lines = |query: DryRunQuery, faults: &mut Faults| {
            if !query.is_empty() {
                faults.push("", "the query says what to try where the body is lines; here the body does");
            }
            Some(())
        };
        query.check(of_lines)?;
        (wanted::in_body(&intake, &headers, body).await?, "", None)
    };
    let feed = begin((broker, caller), (name, version.version), wanted, lines).await;
    let feed = feed.map_err(|problem| problem.within(place))?;
    if wants_events(&headers) { Ok(feed.answer()) } else { feed.of.answer(feed.running).await }
}

/// Begins what is asked for.
async fn begin(
    (broker, caller): (Arc<Broker>, Caller),
    (name, version): (String, String),
    wanted: Wanted,
    lines: Option<Lines>,
) -> Result<Feed, Problem> {
    let owner = Owner::of(&broker, &caller, &wanted)?;
    need_secrets(&broker, &caller, (&name, owner.scope), &wanted)?;
    let place = broker.dry_runs.place().ok_or_else(|| {
        Problem::new(Code::Backpressure, "As many dry runs are under way as the broker serves; come again later.")
    })?;
    let source = wanted.source(&owner);
    let has_passed = source == Source::Stored && owner.subscription.is_none();
    let spec = DryRunSpec {
        plugin: name.clone(),
        version,
        against: wanted.against,
        config: wanted.config,
        scope: owner.scope,
        stage: wanted.stage,
        topic: owner.topic.name.clone(),
        payload_bytes_max: owner.topic.settings.max_message_size,
        seed: wanted.seed,
        has_passed,
    };
    let run = broker.pipelines.dry_run(spec).await?;
    let (inputs, send) = match lines {
        None => (owner.inputs(&broker, source, wanted.from).await?, None),
        Some(lines) => {
            let (send, sent) = mpsc::channel(RUNS_AHEAD);
            (Inputs::Sent(sent), Some((send, lines)))
        }
    };
    let running = broker.dry_runs.start((run, place), inputs, wanted.limit);
    let running = running.map_err(|error| Problem::internal(format!("no thread for a dry run: {error}")))?;
    if let Some((send, lines)) = send {
        let at = wanted.at.unwrap_or_else(|| broker.clock.now());
        let pump = Pump { lines, send, owner, at, broker: Arc::clone(&broker) };
        tokio::spawn(pump.run(running.ends.clone()));
    }
    let of = Of { plugin: name, source };
    Ok(Feed { of, running, broker, caller })
}

/// The version sees the secrets of its config: they must be the caller's to name, as where a stage is set.
fn need_secrets(
    broker: &Broker,
    caller: &Caller,
    (plugin, scope): (&str, Scope),
    wanted: &Wanted,
) -> Result<(), Problem> {
    let need = |config| pipelines::need_secrets(caller, plugin, config);
    if let Some(config) = &wanted.config {
        need(config)?;
    }
    let stages = broker.pipelines.current(scope).map(|record| record.stages).unwrap_or_default();
    let is_meant =
        |stage: &&StageSpec| stage.plugin == plugin && wanted.stage.as_ref().is_none_or(|name| *name == stage.name);
    // What it is compared with runs on the stage's own config.
    let is_inherited = wanted.config.is_none() || wanted.against.is_some();
    stages.iter().filter(is_meant).filter(|_| is_inherited).try_for_each(|stage| need(&stage.config))
}

fn wants_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|accepts| accepts.to_str().ok());
    accepted.flat_map(|accepts| accepts.split(',')).any(|kind| kind.trim().starts_with(events::MEDIA_TYPE))
}

/// Whose pipeline it is.
#[derive(Debug)]
struct Owner {
    topic: Arc<Topic>,
    scope: Scope,
    subscription: Option<GroupId>,
}

impl Owner {
    fn of(broker: &Broker, caller: &Caller, wanted: &Wanted) -> Result<Owner, Problem> {
        if let Some(name) = &wanted.topic {
            let topic = reach::topic(broker, caller, name)?;
            return Ok(Owner { scope: Scope::Topic(topic.id), topic, subscription: None });
        }
        let id = wanted.subscription.ok_or_else(|| Problem::invalid_at("/topic", "is required"))?;
        let subscription = reach::subscription(broker, caller, id)?;
        let topic = reach::topic(broker, caller, &subscription.topic_name)?;
        let scope = Scope::Subscription(subscription.topic, id);
        Ok(Owner { topic, scope, subscription: Some(subscription.group) })
    }

    async fn inputs(&self, broker: &Broker, source: Source, from: Option<Timestamp>) -> Result<Inputs, Problem> {
        let (topic, store) = (&self.topic, Arc::clone(&broker.store));
        match source {
            Source::Captured => {
                let how = topic.settings.capture_input.ok_or_else(|| {
                    let message = "nothing that arrives at the topic is kept: set its `captureInput` and let traffic come, \
                                   send messages as application/x-ndjson, or give `stored`";
                    Problem::invalid_at("/inputs", message)
                })?;
                let read = broker.capture.read(topic.id, how, from.unwrap_or(Timestamp(0))).await;
                let reader = read.map_err(|error| Problem::internal(format!("what arrived can't be read: {error}")))?;
                Ok(Inputs::Captured(reader))
            }
            Source::Stored | Source::Sent => {
                let total = store.stats(topic.id).await?.messages;
                Ok(Inputs::Stored {
                    store,
                    topic: topic.id,
                    from: from.map_or(ReadFrom::Earliest, ReadFrom::Time),
                    total,
                    inbound: self.subscription.is_none(),
                })
            }
            Source::DeadLetters => {
                if topic.settings.dead_letter_payload == DeadLetterPayload::None {
                    let message = "the topic's dead letters keep no payload (`deadLetterPayload`)";
                    return Err(Problem::invalid_at("/inputs", message));
                }
                let home = topic.dead_letter.ok_or_else(|| Problem::not_found("topic", &topic.name))?;
                let (total, _) = broker.dead_letters.count(topic).await?;
                Ok(Inputs::DeadLetters { store, topic: home, after: None, group: self.subscription, total })
            }
        }
    }
}

/// What is said of a run beside its figures.
#[derive(Debug)]
struct Of {
    plugin: String,
    source: Source,
}

impl Of {
    async fn answer(&self, mut running: Running) -> Result<Response, Problem> {
        // It fails only with the thread, which has said before what came of it.
        let _ended = running.progress.wait_for(|progress| progress.end.is_some()).await.is_ok();
        let last = running.progress.borrow().clone();
        match last.end {
            Some(End::Broken(why)) if self.source == Source::Sent => Err(Problem::invalid_at("", why)),
            Some(End::Broken(why)) => Err(Problem::internal(why)),
            _ => Ok(answer::ok(&self.result(last))),
        }
    }

    fn result(&self, progress: Progress) -> DryRunAnswer {
        let report = progress.report;
        let (end, error) = match progress.end {
            Some(End::All) => ("all", None),
            Some(End::Limit) => ("limit", None),
            Some(End::Stopped) | None => ("stopped", None),
            Some(End::Broken(why)) => ("broken", Some(why)),
        };
        let unreadable = |(line, message)| UnreadableAnswer { line, message };
        DryRunAnswer {
            plugin: self.plugin.clone(),
            stage: report.stage,
            inputs: self.source,
            messages: report.messages,
            not_reached: report.not_reached,
            unreadable: progress.unreadable,
            unreadable_sample: progress.unreadable_sample.into_iter().map(unreadable).collect(),
            same: report.compared.same,
            verdict_differs: report.compared.verdict,
            payload_differs: report.compared.payload,
            trapped: report.compared.trapped,
            sample: report.compared.sample.into_iter().map(DifferenceAnswer::from).collect(),
            values_lost: report.values_lost,
            candidate: report.candidate.into(),
            stable: report.stable.map(OutcomesAnswer::from),
            log: report.log.into_iter().map(LogLineAnswer::from).collect(),
            took_ms: u64::try_from(progress.took.as_millis()).unwrap_or(u64::MAX),
            end,
            error,
        }
    }
}

impl From<Outcomes> for OutcomesAnswer {
    fn from(of: Outcomes) -> OutcomesAnswer {
        let messages = of.figures.messages;
        OutcomesAnswer {
            version: of.version,
            digest: of.digest,
            kept: of.figures.passed + of.figures.changed,
            figures: of.figures.into(),
            faults: of.faults,
            mean_micros: (messages > 0).then(|| of.took.as_nanos() as f64 / 1000.0 / messages as f64),
            memory_bytes: of.memory_bytes,
        }
    }
}

/// One who watches a run.
struct Feed {
    of: Of,
    running: Running,
    broker: Arc<Broker>,
    caller: Caller,
}

impl Feed {
    fn answer(self) -> Response {
        events::answer(Bytes::new(), self.events())
    }

    fn events(self) -> impl Stream<Item = Bytes> + Send + 'static {
        stream::unfold(Some(self), |feed| async move {
            let mut feed = feed?;
            let (bytes, goes_on) = feed.next().await;
            Some((bytes, goes_on.then_some(feed)))
        })
    }

    /// The next event, or a comment when there is none for a while; false with the last one.
    async fn next(&mut self) -> (Bytes, bool) {
        let quiet_until = self.broker.clock.now().plus(KEEP_ALIVE);
        let changed = tokio::select! {
            changed = self.running.progress.changed() => changed,
            () = self.broker.clock.sleep_until(quiet_until) => return (comment(), true),
        };
        let mut progress = self.running.progress.borrow_and_update().clone();
        if progress.end.is_none() && self.caller.has_expired(self.broker.clock.now()) {
            progress.end = Some(End::Broken("the token has expired; run it with a new one".to_owned()));
        }
        if progress.end.is_some() || changed.is_err() {
            return (event("result", &self.of.result(progress)), false);
        }
        let compared = &progress.report.compared;
        let told = ProgressAnswer {
            messages: progress.report.messages,
            fraction: progress.fraction,
            same: compared.same,
            verdict_differs: compared.verdict,
            payload_differs: compared.payload,
            trapped: compared.trapped,
            took_ms: u64::try_from(progress.took.as_millis()).unwrap_or(u64::MAX),
        };
        (event("progress", &told), true)
    }
}
