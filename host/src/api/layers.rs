//! The edge: what every request passes before and after its handler. Invariant: each answer, whatever happened, has an
//! `X-Request-Id`; each that is no success is a problem; nothing reaches a handler that the route table does not let in.
//! Never knows what a route does.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use http::Version;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span};

use super::auth::table::{Budget, Lookup, Need, Produces, Route, find};
use super::auth::token::Role;
use super::auth::{Caller, Gate};
use super::extract::read_query;
use super::http_metrics::HttpMetrics;
use super::problem::{Code, Problem};
use super::rate::{RateLimits, Standing};
use crate::changes::Changes;
use crate::duty::Duty;
use crate::fleet::Fleet;
use crate::message::TraceContext;
use crate::telemetry::{self, Stopwatch};

/// Bytes of a request's target at most: above any that this API has, and what most proxies pass.
const TARGET_BYTES_MAX: usize = 8 * 1024;
/// Headers of a request at most: a browser behind three proxies sends some 40.
const HEADERS_MAX: usize = 100;
/// Bytes of a caller's own `X-Request-Id` that is passed back.
const REQUEST_ID_BYTES_MAX: usize = 128;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the edge works with.
pub struct Edge {
    /// Turns tokens into callers.
    pub gate: Gate,
    /// Limits per subject.
    pub rates: RateLimits,
    /// Figures.
    pub metrics: HttpMetrics,
    /// What is carried to its end.
    pub changes: Changes,
    /// Whether this broker takes work.
    pub duty: Duty,
    /// The brokers that it serves with, if there are more.
    pub fleet: Option<Arc<Fleet>>,
    /// Bytes of a request's headers at most.
    pub head_bytes_max: usize,
    /// Requests under way at most: what each may hold is bounded, and this makes their sum so, however many streams of
    /// HTTP/2 they come by.
    pub requests_max: usize,
    /// Whether `/metrics` needs no token.
    pub public_metrics: bool,
    /// Whether the documentation needs no token.
    pub public_docs: bool,
    /// By a route's place in the table: whether it takes query parameters.
    pub takes_query: Vec<bool>,
}

/// Puts the edge around a router.
#[derive(Clone)]
pub struct EdgeLayer(pub Arc<Edge>);

impl<S> Layer<S> for EdgeLayer {
    type Service = EdgeService<S>;

    fn layer(&self, inner: S) -> EdgeService<S> {
        EdgeService { inner, edge: Arc::clone(&self.0) }
    }
}

/// A route with the edge around it.
#[derive(Clone)]
pub struct EdgeService<S> {
    inner: S,
    edge: Arc<Edge>,
}

/// The query of a route that takes none.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParameters {}

/// What the edge found out about a request before its handler ran.
#[derive(Default)]
struct Passage {
    route: Option<(usize, &'static Route)>,
    allow: Option<&'static str>,
    /// Under what limit its caller is, and who that is.
    to_count: Option<(Budget, Arc<str>)>,
    /// Whether the connection is its own: a header may end it.
    is_http1: bool,
    standing: Option<Standing>,
}

impl<S> Service<Request> for EdgeService<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let stopwatch = Stopwatch::start();
        let edge = Arc::clone(&self.edge);
        let in_flight = edge.metrics.begin();
        let upstream = upstream_trace(request.headers());
        let request_id = request_id(request.headers());
        let instance = request.uri().path().to_owned();
        let mut passage = Passage { is_http1: request.version() <= Version::HTTP_11, ..Passage::default() };
        let admitted = edge.admit(&mut request, &mut passage);
        let outlives_client = admitted.is_ok() && passage.route.is_some_and(|(_, route)| route.outlives_client);
        let carried_by = outlives_client.then(|| edge.changes.clone());
        let span = span(&request, passage.route, upstream.as_ref());
        let handled = admitted.map(|()| AssertUnwindSafe(self.inner.call(request)).catch_unwind());
        let trace = upstream.unwrap_or_else(telemetry::new_trace);
        let begun = Arc::clone(&trace.parent);
        let answer = async move {
            // What is handled has not begun before it is awaited.
            let handled = match handled {
                Ok(handled) => edge.count(&mut passage).await.map(|()| handled),
                Err(problem) => Err(problem),
            };
            let response = match handled {
                Err(problem) => problem.into_response(),
                Ok(handled) => match handled.await {
                    Ok(Ok(response)) => response,
                    Err(panic) => Problem::internal(format!("a panic: {}", panic_text(&*panic))).into_response(),
                },
            };
            let response = edge.finish(response, &passage, (request_id, &instance, &begun));
            let seconds = stopwatch.elapsed().as_secs_f64();
            edge.metrics.observe(passage.route.map(|(index, _)| index), response.status().as_u16(), seconds);
            drop(in_flight);
            Ok(response)
        };
        let answer = telemetry::in_trace(trace, answer);
        // Instrumenting costs even with a disabled span, so it is left out where nothing is exported.
        let answer: Self::Future =
            if span.is_disabled() { Box::pin(answer) } else { Box::pin(answer.instrument(span)) };
        match carried_by {
            Some(changes) => Box::pin(async move { changes.carry(answer).await }),
            None => answer,
        }
    }
}

impl Edge {
    /// All that can refuse a request before its handler; a caller goes into the request's extensions.
    fn admit(&self, request: &mut Request, passage: &mut Passage) -> Result<(), Problem> {
        let target_bytes = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        if target_bytes > TARGET_BYTES_MAX {
            let detail = format!("A target has at most {TARGET_BYTES_MAX} bytes; this one has {target_bytes}.");
            return Err(Problem::new(Code::UriTooLong, detail));
        }
        let headers = request.headers().len();
        if headers > HEADERS_MAX {
            let detail = format!("A request has at most {HEADERS_MAX} headers; this one has {headers}.");
            return Err(Problem::new(Code::HeadersTooLarge, detail));
        }
        let head_bytes: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if head_bytes > self.head_bytes_max {
            let detail = format!("Headers have at most {} bytes; these have {head_bytes}.", self.head_bytes_max);
            return Err(Problem::new(Code::HeadersTooLarge, detail));
        }
        let route = match request.extensions().get::<MatchedPath>().map(|path| find(request.method(), path.as_str())) {
            Some(Lookup::Found(index, route)) => {
                passage.route = Some((index, route));
                route
            }
            Some(Lookup::OtherMethods(allow)) => {
                passage.allow = Some(allow);
                return Err(Problem::new(Code::MethodNotAllowed, format!("This path takes {allow}.")));
            }
            Some(Lookup::None) | None => {
                return Err(Problem::new(Code::NotFound, "No route has this path; /swagger lists them all."));
            }
        };
        accepts(request.headers(), route.produces)?;
        let query = request.uri().query().unwrap_or_default();
        if !query.is_empty() && passage.route.is_some_and(|(index, _)| !self.takes_query[index]) {
            read_query::<NoParameters>(query).plain()?;
        }
        let Some(role) = self.role(route.need) else { return Ok(()) };
        if self.metrics.in_flight() > self.requests_max {
            let detail = format!("More than {} requests are under way; send it later.", self.requests_max);
            return Err(Problem::new(Code::Backpressure, detail));
        }
        if self.fleet.as_ref().is_some_and(|fleet| !fleet.is_member()) {
            // It may not know what the others have been told, and they may send what it was about to.
            let detail = "The other brokers don't count this one: its database did not answer, or it has only just come. \
                          Send the request to another one, or here again in a moment.";
            return Err(Problem::new(Code::StoreUnavailable, detail));
        }
        let caller = self.gate.admit(request.headers())?;
        caller.need(role)?;
        if let Some(budget) = route.budget {
            passage.to_count = self.rates.limits(budget).then(|| (budget, Arc::clone(caller.subject())));
        }
        request.extensions_mut().insert::<Caller>(caller);
        Ok(())
    }

    /// Counts a request that is under a limit.
    async fn count(&self, passage: &mut Passage) -> Result<(), Problem> {
        let Some((budget, subject)) = passage.to_count.take() else { return Ok(()) };
        match self.rates.count(budget, &subject).await {
            Ok(standing) => passage.standing = standing,
            Err((problem, standing)) => {
                passage.standing = Some(standing);
                return Err(problem);
            }
        }
        Ok(())
    }

    fn role(&self, need: Need) -> Option<Role> {
        match need {
            Need::Nothing => None,
            Need::Metrics => (!self.public_metrics).then_some(Role::Viewer),
            Need::Docs => (!self.public_docs).then_some(Role::Viewer),
            Need::Role(role) => Some(role),
        }
    }

    fn finish(
        &self,
        mut response: Response,
        passage: &Passage,
        (request_id, instance, begun): (Option<HeaderValue>, &str, &str),
    ) -> Response {
        let span = Span::current();
        // The span's own trace where there is one; else the one that was begun (or taken over) here.
        let begun = || begun.get(3..35).unwrap_or_default().to_owned();
        let trace_id = if span.is_disabled() { begun() } else { telemetry::trace_id() };
        if let Some(problem) = response.extensions_mut().remove::<Problem>() {
            log(&problem, passage, &trace_id);
            response = render(&problem, instance, &trace_id);
            if let (Code::MethodNotAllowed, Some(allow)) = (problem.code(), passage.allow) {
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
            }
        }
        if !span.is_disabled() {
            span.record("http.response.status_code", response.status().as_u16());
            if response.status().is_server_error() {
                span.record("otel.status_code", "ERROR");
                span.record("error.type", response.status().as_str());
            }
        }
        let headers = response.headers_mut();
        if let Some(standing) = passage.standing {
            standing.write(headers);
        }
        let id = request_id
            .unwrap_or_else(|| HeaderValue::try_from(trace_id).expect("hexadecimal digits are a header's value"));
        headers.insert(REQUEST_ID, id);
        if passage.is_http1 && !self.duty.is_on() {
            // The next request finds its way to a broker that takes work.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Named by OpenTelemetry's HTTP conventions.
fn span(request: &Request, route: Option<(usize, &'static Route)>, upstream: Option<&TraceContext>) -> Span {
    if !telemetry::is_sampled(upstream) {
        return Span::none();
    }
    let route = route.map_or("", |(_, route)| route.path);
    let span = tracing::info_span!(
        "request",
        otel.name = format!("{} {route}", request.method()),
        otel.kind = "server",
        otel.status_code = tracing::field::Empty,
        http.request.method = %request.method(),
        http.route = route,
        url.path = request.uri().path(),
        http.response.status_code = tracing::field::Empty,
        error.type = tracing::field::Empty,
    );
    if let Some(upstream) = upstream {
        telemetry::set_parent(&span, upstream);
    }
    span
}

/// The answer that a problem becomes.
fn render(problem: &Problem, instance: &str, trace_id: &str) -> Response {
    let body = serde_json::to_vec(&problem.body(instance, trace_id)).expect("a problem is plain strings and numbers");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = problem.code().status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(seconds) = problem.retry_after_seconds() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(codings) = problem.accept_encoding() {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(codings));
    }
    if problem.code() == Code::Unauthenticated {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"sluice\""));
    }
    response
}

/// Faults of ours are logged here, once, under the id that the client was told.
fn log(problem: &Problem, passage: &Passage, trace_id: &str) {
    let route = passage.route.map_or("", |(_, route)| route.path);
    let (code, cause) = (problem.code().as_str(), problem.cause().unwrap_or_default());
    match problem.code() {
        Code::Internal => tracing::error!(code, route, trace_id, cause, "a request failed"),
        other if other.status().is_server_error() => tracing::warn!(code, route, trace_id, cause, "a request failed"),
        _ => tracing::debug!(code, route, trace_id, cause, "a request was refused"),
    }
}

fn upstream_trace(headers: &HeaderMap) -> Option<TraceContext> {
    let parent = headers.get("traceparent")?.to_str().ok()?;
    let mut context = telemetry::parse_traceparent(parent)?;
    context.state = headers.get("tracestate").and_then(|state| telemetry::parse_tracestate(state.to_str().ok()?));
    Some(context)
}

/// The caller's own id, if it is a decent one.
fn request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let given = headers.get(REQUEST_ID)?;
    let decent = (1..=REQUEST_ID_BYTES_MAX).contains(&given.len()) && given.as_bytes().iter().all(u8::is_ascii_graphic);
    decent.then(|| given.clone())
}

/// Whether `Accept` leaves room for what the route answers (RFC 9110 §12.5.1; a range with `q=0` does not).
fn accepts(headers: &HeaderMap, produces: Produces) -> Result<(), Problem> {
    let wanted = match produces {
        Produces::Json => "application/json",
        Produces::Events => super::events::MEDIA_TYPE,
        Produces::Lines => "application/x-ndjson",
        Produces::Wasm => "application/wasm",
        Produces::Anything => return Ok(()),
    };
    let mut given = headers.get_all(header::ACCEPT).iter().peekable();
    if given.peek().is_none() || given.any(|value| value.to_str().is_ok_and(|ranges| covers(ranges, wanted))) {
        return Ok(());
    }
    Err(Problem::new(Code::NotAcceptable, format!("This route answers {wanted}; accept that.")))
}

fn covers(ranges: &str, wanted: &str) -> bool {
    let family = wanted.split('/').next().unwrap_or_default();
    ranges.split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let fits = media == "*/*"
            || media.eq_ignore_ascii_case(wanted)
            || media.strip_suffix("/*").is_some_and(|of| of.eq_ignore_ascii_case(family));
        let refused = |part: &str| part.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q <= 0.0));
        fits && !parts.any(refused)
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}
