//! Publishing line by line, for as long as the client sends. Invariant: each line gets its result, in order, and a result says
//! that its message is durable; no more is read while results are not taken, or while the broker has no room. Never holds
//! more than one run of lines.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::HeaderMap;
use http::header::{self, HeaderValue};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use super::batch::{ItemAnswer, is_ndjson, item_answer, publish_items};
use super::publish::{destination, reading};
use super::publish_body::PublishBody;
use super::slots::Slots;
use crate::api::auth::Caller;
use crate::api::extract::{Intake, LineRun, Lines};
use crate::api::problem::{Code, Problem, ProblemBody};
use crate::broker::Broker;
use crate::clock::Timestamp;
use crate::message::TopicName;
use crate::publish::{PublishRequest, Published};

/// An empty line is sent this often when there is nothing else, so that proxies keep the connection and a client that
/// went away is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Before what found no room is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// For how long: then the lines are told.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of a line.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LineAnswer<'a> {
    /// Which, from 1; empty lines count, and have no answer.
    line: u64,
    #[serde(flatten)]
    item: ItemAnswer<'a>,
}

/// The last line: without it the stream broke off.
#[derive(Debug, Serialize)]
struct LastLine {
    summary: Summary,
    /// Why the stream ends before the client ended it: nothing behind the last line answered is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Box<ProblemBody>>,
}

#[derive(Debug, Default, Serialize)]
struct Summary {
    accepted: u64,
    refused: u64,
}

/// Publish messages, one a line, with a result for each as soon as it is durable.
///
/// Results come while the body is still being sent, in the order of the lines: read them while you write. Neither the number of
/// lines nor the length of the body is bounded. The last line is `{"summary": {"accepted": …, "refused": …}}`, with `error` where the
/// broker ended the stream. Empty lines say that the stream is still there.
#[utoipa::path(
    post, path = "/api/v1/messages/publish/stream", tag = "messages",
    request_body(description = "One message a line", content((PublishBody = "application/x-ndjson"))),
    responses((status = 200, description = "A result per line, in order, and a summary", body = LineAnswer,
               content_type = "application/x-ndjson")),
)]
pub(super) async fn publish_stream(
    State(broker): State<Arc<Broker>>,
    State(slots): State<Arc<Slots>>,
    State(intake): State<Arc<Intake>>,
    caller: Caller,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let headers = parts.headers;
    if !is_ndjson(&headers) {
        return Err(Problem::new(Code::UnsupportedMediaType, "Send one message a line, as application/x-ndjson."));
    }
    if headers.contains_key("idempotency-key") {
        let message = "a stream takes no header `Idempotency-Key`; give lines an `idempotencyKey`";
        return Err(Problem::invalid_at("", message));
    }
    let body = intake.decoded(&headers, body)?;
    let place = slots.begin().ok_or_else(|| {
        Problem::new(Code::Backpressure, "As many streams are open as the broker serves; come again later.")
    })?;
    let lines = Lines::new(body, intake, broker.config.limits.body_bytes_max);
    let feed = Feed { broker, caller, headers, lines, summary: Summary::default(), _place: place };
    let mut response = Response::new(Body::from_stream(feed.results()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that gather an answer before they pass it on would keep the client from its results.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// One stream and what it needs.
struct Feed {
    broker: Arc<Broker>,
    caller: Caller,
    headers: HeaderMap,
    lines: Lines,
    summary: Summary,
    /// Among all streams.
    _place: OwnedSemaphorePermit,
}

impl Feed {
    fn results(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
        // The head goes out with the first bytes, so there are some at once.
        let begun = stream::once(std::future::ready(Ok(Bytes::from_static(b"\n"))));
        let rest = stream::unfold(Some(self), |feed| async move {
            let mut feed = feed?;
            let (bytes, goes_on) = feed.next().await;
            Some((Ok(bytes), goes_on.then_some(feed)))
        });
        futures_util::StreamExt::chain(begun, rest)
    }

    /// The next results, or an empty line when there are none for a while; false with the last ones.
    async fn next(&mut self) -> (Bytes, bool) {
        if self.caller.has_expired(self.broker.clock.now()) {
            return self
                .last(Some(Problem::new(Code::Unauthenticated, "The token has expired; go on with a new one.")));
        }
        let quiet_until = self.broker.clock.now().plus(KEEP_ALIVE);
        let run = tokio::select! {
            run = self.lines.next() => run,
            () = self.broker.clock.sleep_until(quiet_until) => return (Bytes::from_static(b"\n"), true),
            () = self.broker.stopping.cancelled() => {
                let detail = "The broker is stopping; nothing behind the last line that was answered is stored.";
                return self.last(Some(Problem::new(Code::ShuttingDown, detail)));
            }
        };
        match run {
            Ok(Some(run)) => (self.publish(run).await, true),
            Ok(None) => self.last(None),
            Err(problem) => self.last(Some(problem)),
        }
    }

    fn last(&mut self, problem: Option<Problem>) -> (Bytes, bool) {
        let error = problem.map(|problem| Box::new(problem.item_body()));
        let last = LastLine { summary: std::mem::take(&mut self.summary), error };
        let mut bytes = Vec::new();
        write_line(&mut bytes, &last);
        (bytes.into(), false)
    }

    /// Publishes a run of lines; their results.
    async fn publish(&mut self, run: LineRun) -> Bytes {
        let results = self.until_there_is_room(&run).await;
        let mut bytes = Vec::new();
        for (line, result) in run.lines.iter().zip(&results) {
            *if result.is_ok() { &mut self.summary.accepted } else { &mut self.summary.refused } += 1;
            write_line(&mut bytes, &LineAnswer { line: line.number, item: item_answer(result, &*self.broker.store) });
        }
        bytes.into()
    }

    /// Publishes all lines of a run, and those that found the broker busy again and again: the client waits meanwhile, as no
    /// more is read. They are read again too, since what is published is given away, and copies of all for the sake of the
    /// few that ever come back would cost every run.
    async fn until_there_is_room(&mut self, run: &LineRun) -> Vec<Result<Published, Problem>> {
        let mut results: Vec<Option<Result<Published, Problem>>> = run.lines.iter().map(|_| None).collect();
        let mut left: Vec<usize> = (0..run.lines.len()).collect();
        // What they say of time they said when they came.
        let came = self.broker.clock.now();
        while !left.is_empty() {
            let items = self.read(run, &left, came);
            let published = publish_items(&self.broker, items, false).await;
            let is_last = self.broker.clock.now().since(came) >= PATIENCE || self.broker.stopping.is_cancelled();
            let places = std::mem::take(&mut left);
            for (place, result) in places.into_iter().zip(published) {
                let busy = matches!(&result, Err(problem) if problem.code() == Code::Backpressure);
                if busy && !is_last {
                    left.push(place);
                } else {
                    results[place] = Some(result);
                }
            }
            if !left.is_empty() {
                self.broker.clock.sleep_until(self.broker.clock.now().plus(TRY_AGAIN)).await;
            }
        }
        results.into_iter().flatten().collect()
    }

    /// Those of a run's lines that stand at these places of it; they came then.
    fn read(&self, run: &LineRun, places: &[usize], came: Timestamp) -> Vec<Result<PublishRequest, Problem>> {
        let find = |name: &TopicName| destination(&self.broker, &self.caller, name, "/topicName");
        let reading = match reading(&self.broker, &self.headers, &run.bytes) {
            Ok(reading) => reading.with_now(came),
            Err(problem) => return places.iter().map(|_| Err(problem.clone())).collect(),
        };
        let item = |place: &usize| match run.lines[*place].range.clone() {
            Some(range) => reading.message(&run.bytes[range], find),
            None => {
                Err(Problem::new(Code::MessageTooLarge, "The line is longer than a body may be; send less at once."))
            }
        };
        places.iter().map(item).collect()
    }
}

fn write_line<T: Serialize>(bytes: &mut Vec<u8>, line: &T) {
    serde_json::to_writer(&mut *bytes, line).expect("an answer is plain JSON, written into memory");
    bytes.push(b'\n');
}
