//! Publishing line by line, for as long as the client sends. Invariant: each line gets its result, in order, and a result says
//! that its message is durable; no more is read while results are not taken, or while the broker has no room. Never holds
//! more than one run of lines.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use futures_util::stream::{self, Stream};
use http::HeaderMap;
use http::header::{self, HeaderValue};
use http_body::Body as _;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use super::batch::{ItemAnswer, is_ndjson, item_answer, publish_items};
use super::publish::{destination, reading};
use super::publish_body::PublishBody;
use super::slots::Slots;
use crate::api::auth::Caller;
use crate::api::extract::Intake;
use crate::api::problem::{Code, Problem, ProblemBody};
use crate::broker::Broker;
use crate::clock::Timestamp;
use crate::message::TopicName;
use crate::publish::{PublishRequest, Published};

/// Lines of one run: what they cost together is shared, and the first one's result does not wait for long.
const RUN_LINES_MAX: usize = 256;
/// Bytes from which on a run is not waited for to grow.
const RUN_BYTES: usize = 256 * 1024;
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
    async fn publish(&mut self, run: Run) -> Bytes {
        let results = self.until_there_is_room(&run).await;
        let durability = self.broker.store.capabilities().durability;
        let mut bytes = Vec::new();
        for (line, result) in run.lines.iter().zip(&results) {
            *if result.is_ok() { &mut self.summary.accepted } else { &mut self.summary.refused } += 1;
            write_line(&mut bytes, &LineAnswer { line: line.number, item: item_answer(result, durability) });
        }
        bytes.into()
    }

    /// Publishes all lines of a run, and those that found the broker busy again and again: the client waits meanwhile, as no
    /// more is read. They are read again too, since what is published is given away, and copies of all for the sake of the
    /// few that ever come back would cost every run.
    async fn until_there_is_room(&mut self, run: &Run) -> Vec<Result<Published, Problem>> {
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
    fn read(&self, run: &Run, places: &[usize], came: Timestamp) -> Vec<Result<PublishRequest, Problem>> {
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

/// Lines that are published together.
struct Run {
    bytes: Bytes,
    lines: Vec<Line>,
}

/// One that is not empty.
struct Line {
    number: u64,
    /// Where it stands in the run; none if it is too long.
    range: Option<std::ops::Range<usize>>,
}

/// A body, cut into lines as it comes.
struct Lines {
    body: Body,
    intake: Arc<Intake>,
    line_bytes_max: usize,
    /// What has come of lines that were not taken yet.
    held: BytesMut,
    /// Of it, where the line that is not whole yet begins.
    begun: usize,
    /// Up to where it was looked for an end.
    looked: usize,
    /// Whole lines in `held`.
    whole: Vec<Line>,
    number: u64,
    /// The rest of a line that is too long is passed over.
    skips: bool,
    ended: bool,
    /// It broke off: said once what came whole is published.
    broken: Option<Problem>,
    /// Its share of what all large bodies may take.
    budget: Option<OwnedSemaphorePermit>,
}

impl Lines {
    fn new(body: Body, intake: Arc<Intake>, line_bytes_max: usize) -> Lines {
        Lines {
            body,
            intake,
            line_bytes_max,
            held: BytesMut::new(),
            begun: 0,
            looked: 0,
            whole: Vec::new(),
            number: 0,
            skips: false,
            ended: false,
            broken: None,
            budget: None,
        }
    }

    /// Some lines, as soon as there is one and no more are here already; none at the end. Dropped while it waits, it goes on where
    /// it was.
    async fn next(&mut self) -> Result<Option<Run>, Problem> {
        loop {
            let enough = self.whole.len() >= RUN_LINES_MAX || self.begun >= RUN_BYTES;
            match &self.broken {
                Some(problem) if self.whole.is_empty() => return Err(problem.clone()),
                // What came whole is published first: the client sent it.
                None if !self.ended && !enough => {}
                _ => return Ok(self.take()),
            }
            let mut frame = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context));
            let frame = if self.whole.is_empty() {
                frame.await
            } else {
                match (&mut frame).now_or_never() {
                    Some(frame) => frame,
                    None => return Ok(self.take()),
                }
            };
            match frame {
                None => self.end(),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.came(&data)?;
                    }
                }
                Some(Err(error)) => self.broken = Some(self.intake.broke_off(error)),
            }
        }
    }

    fn came(&mut self, data: &[u8]) -> Result<(), Problem> {
        self.held.extend_from_slice(data);
        self.intake.book(&mut self.budget, self.held.len())?;
        while let Some(at) = self.held[self.looked..].iter().position(|byte| *byte == b'\n') {
            let end = self.looked + at;
            self.line(end);
            self.begun = end + 1;
            self.looked = self.begun;
        }
        self.looked = self.held.len();
        if self.looked - self.begun > self.line_bytes_max {
            self.skips = true;
        }
        if self.skips {
            self.held.truncate(self.begun);
            self.looked = self.begun;
        }
        Ok(())
    }

    /// The line up to `end` is whole.
    fn line(&mut self, end: usize) {
        self.number += 1;
        let range = self.begun..end;
        if std::mem::take(&mut self.skips) || range.len() > self.line_bytes_max {
            self.whole.push(Line { number: self.number, range: None });
        } else if !self.held[range.clone()].trim_ascii().is_empty() {
            self.whole.push(Line { number: self.number, range: Some(range) });
        }
    }

    /// The last line needs no end.
    fn end(&mut self) {
        self.ended = true;
        if self.skips || self.begun < self.held.len() {
            self.line(self.held.len());
            self.begun = self.held.len();
            self.looked = self.begun;
        }
    }

    fn take(&mut self) -> Option<Run> {
        if self.whole.is_empty() {
            return None;
        }
        let bytes = self.held.split_to(self.begun).freeze();
        self.looked -= self.begun;
        self.begun = 0;
        let run = Run { bytes, lines: std::mem::take(&mut self.whole) };
        // The share is given back with the run's bytes, nearly: what is booked anew is for what is left.
        self.budget = None;
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;

    fn lines(frames: &[&str], line_bytes_max: usize) -> Lines {
        let frames: Vec<Result<Bytes, Infallible>> =
            frames.iter().map(|frame| Ok(Bytes::copy_from_slice(frame.as_bytes()))).collect();
        let limits = Limits {
            body_bytes_max: 1 << 20,
            head_bytes_max: 1 << 15,
            request_timeout: Duration::from_secs(1),
            connections_max: 1,
            requests_max: 1,
            streams_max: 1,
            topics_max: 1,
            subscriptions_max: 1,
            shutdown_timeout: Duration::from_secs(1),
        };
        Lines::new(Body::from_stream(stream::iter(frames)), Arc::new(Intake::new(&limits)), line_bytes_max)
    }

    /// All lines with their numbers; `!` for one that is too long.
    async fn all(mut lines: Lines) -> Vec<(u64, String)> {
        let mut found = Vec::new();
        while let Some(run) = lines.next().await.unwrap() {
            for line in run.lines {
                let text =
                    line.range.map_or("!".into(), |range| String::from_utf8_lossy(&run.bytes[range]).into_owned());
                found.push((line.number, text));
            }
        }
        found
    }

    fn numbered(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
        expected.iter().map(|(number, text)| (*number, (*text).to_owned())).collect()
    }

    #[tokio::test]
    async fn lines_are_cut_wherever_frames_end() {
        let text = "one\n\ntwo\r\n  \nthree";
        let expected = numbered(&[(1, "one"), (3, "two\r"), (5, "three")]);
        for size in 1..=text.len() {
            let frames: Vec<&str> =
                text.as_bytes().chunks(size).map(|part| std::str::from_utf8(part).unwrap()).collect();
            assert_eq!(all(lines(&frames, 100)).await, expected, "frames of {size}");
        }
        assert_eq!(all(lines(&[], 100)).await, []);
        assert_eq!(all(lines(&["\n\n"], 100)).await, []);
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_told_and_the_others_are_read() {
        let text = "12345\n123456\n1\n1234567890123\n12345";
        let expected = numbered(&[(1, "12345"), (2, "!"), (3, "1"), (4, "!"), (5, "12345")]);
        for size in 1..=text.len() {
            let frames: Vec<&str> =
                text.as_bytes().chunks(size).map(|part| std::str::from_utf8(part).unwrap()).collect();
            let mut lines = lines(&frames, 5);
            let mut most = 0;
            let mut found = Vec::new();
            while let Some(run) = lines.next().await.unwrap() {
                most = most.max(lines.held.len());
                for line in run.lines {
                    let range = line.range.map(|range| String::from_utf8_lossy(&run.bytes[range]).into_owned());
                    found.push((line.number, range.unwrap_or("!".into())));
                }
            }
            assert_eq!(found, expected, "frames of {size}");
            assert!(most <= text.len(), "{most}");
        }
    }

    #[tokio::test]
    async fn a_run_ends_with_so_many_lines() {
        let text = "x\n".repeat(RUN_LINES_MAX * 2 + 3);
        let frames: Vec<&str> = text.as_bytes().chunks(64).map(|part| std::str::from_utf8(part).unwrap()).collect();
        let mut lines = lines(&frames, 100);
        let mut counts = Vec::new();
        while let Some(run) = lines.next().await.unwrap() {
            counts.push(run.lines.len());
        }
        assert!(counts.iter().all(|count| *count <= RUN_LINES_MAX + 64), "{counts:?}");
        assert_eq!(counts.iter().sum::<usize>(), RUN_LINES_MAX * 2 + 3);
    }
}
