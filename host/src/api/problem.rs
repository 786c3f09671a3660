//! Where errors become answers: the only place that knows statuses. Invariant: every answer that is no success is an
//! RFC 9457 problem with a code of API.md, and nothing internal leaks into it. Never decides what an error means for the
//! domain.

mod convert;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

/// Faults listed in one answer at most: enough for any honest request, and an answer's size stays bounded.
pub const FAULTS_MAX: usize = 50;

/// What went wrong, as clients tell it apart (API.md, "Errors").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// The request is wrong.
    ValidationError,
    /// The body is no JSON.
    MalformedJson,
    /// No or bad token.
    Unauthenticated,
    /// The token's roles or topics do not suffice.
    Forbidden,
    /// There is none.
    NotFound,
    /// Another method.
    MethodNotAllowed,
    /// The answer's type is not accepted.
    NotAcceptable,
    /// The request did not arrive in time.
    RequestTimeout,
    /// Too large a head.
    HeadersTooLarge,
    /// Too long a target.
    UriTooLong,
    /// It exists, or the change is illegal.
    Conflict,
    /// `If-Match` names another version.
    PreconditionFailed,
    /// The lease has ended.
    LeaseExpired,
    /// Too large a body or payload.
    MessageTooLarge,
    /// Another media type.
    UnsupportedMediaType,
    /// A schema says no.
    SchemaValidationError,
    /// A stage says no.
    PluginRejected,
    /// A plugin or its configuration cannot be used.
    PluginInvalid,
    /// Too many requests of this subject.
    RateLimited,
    /// Too much at once.
    Backpressure,
    /// The topic has no room.
    TopicFull,
    /// A fault of ours.
    Internal,
    /// The store takes nothing now.
    StoreUnavailable,
    /// A stage failed.
    PluginFault,
    /// The broker is stopping.
    ShuttingDown,
    /// It may or may not be stored.
    OutcomeUnknown,
    /// The request is stored, and no reply came in time.
    ReplyTimeout,
}

impl Code {
    /// The status that goes with it.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Code::ValidationError | Code::MalformedJson => StatusCode::BAD_REQUEST,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::Forbidden => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Code::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Code::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Code::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Code::UriTooLong => StatusCode::URI_TOO_LONG,
            Code::Conflict => StatusCode::CONFLICT,
            Code::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Code::LeaseExpired => StatusCode::GONE,
            Code::MessageTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::SchemaValidationError | Code::PluginRejected | Code::PluginInvalid => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Code::RateLimited | Code::Backpressure | Code::TopicFull => StatusCode::TOO_MANY_REQUESTS,
            Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Code::StoreUnavailable | Code::PluginFault | Code::ShuttingDown | Code::OutcomeUnknown => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Code::ReplyTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// `VALIDATION_ERROR`, ….
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Code::ValidationError => "VALIDATION_ERROR",
            Code::MalformedJson => "MALFORMED_JSON",
            Code::Unauthenticated => "UNAUTHENTICATED",
            Code::Forbidden => "FORBIDDEN",
            Code::NotFound => "NOT_FOUND",
            Code::MethodNotAllowed => "METHOD_NOT_ALLOWED",
            Code::NotAcceptable => "NOT_ACCEPTABLE",
            Code::RequestTimeout => "REQUEST_TIMEOUT",
            Code::HeadersTooLarge => "HEADERS_TOO_LARGE",
            Code::UriTooLong => "URI_TOO_LONG",
            Code::Conflict => "CONFLICT",
            Code::PreconditionFailed => "PRECONDITION_FAILED",
            Code::LeaseExpired => "LEASE_EXPIRED",
            Code::MessageTooLarge => "MESSAGE_TOO_LARGE",
            Code::UnsupportedMediaType => "UNSUPPORTED_MEDIA_TYPE",
            Code::SchemaValidationError => "SCHEMA_VALIDATION_ERROR",
            Code::PluginRejected => "PLUGIN_REJECTED",
            Code::PluginInvalid => "PLUGIN_INVALID",
            Code::RateLimited => "RATE_LIMITED",
            Code::Backpressure => "BACKPRESSURE",
            Code::TopicFull => "TOPIC_FULL",
            Code::Internal => "INTERNAL",
            Code::StoreUnavailable => "STORE_UNAVAILABLE",
            Code::PluginFault => "PLUGIN_FAULT",
            Code::ShuttingDown => "SHUTTING_DOWN",
            Code::OutcomeUnknown => "OUTCOME_UNKNOWN",
            Code::ReplyTimeout => "REPLY_TIMEOUT",
        }
    }

    /// A word for people, the same for every problem of the code.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Code::ValidationError => "The request is not valid",
            Code::MalformedJson => "The body is not JSON",
            Code::Unauthenticated => "A valid token is needed",
            Code::Forbidden => "The token does not allow this",
            Code::NotFound => "There is no such thing",
            Code::MethodNotAllowed => "The method is not allowed here",
            Code::NotAcceptable => "The answer's media type is not accepted",
            Code::RequestTimeout => "The request took too long to arrive",
            Code::HeadersTooLarge => "The request's head is too large",
            Code::UriTooLong => "The request's target is too long",
            Code::Conflict => "This conflicts with what is there",
            Code::PreconditionFailed => "It has changed meanwhile",
            Code::LeaseExpired => "The lease has ended",
            Code::MessageTooLarge => "Too large",
            Code::UnsupportedMediaType => "The media type is not supported",
            Code::SchemaValidationError => "The payload does not match the topic's schema",
            Code::PluginRejected => "A stage rejected the message",
            Code::PluginInvalid => "The plugin cannot be used like this",
            Code::RateLimited => "Too many requests",
            Code::Backpressure => "Too much at once",
            Code::TopicFull => "The topic is full",
            Code::Internal => "A fault of the broker",
            Code::StoreUnavailable => "The store is not available",
            Code::PluginFault => "A stage failed",
            Code::ShuttingDown => "The broker is stopping",
            Code::OutcomeUnknown => "It is not known whether it was stored",
            Code::ReplyTimeout => "No reply came in time",
        }
    }

    /// Whether the answer carries `Retry-After` even when nobody said how long.
    fn retries(self) -> bool {
        matches!(self.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
    }
}

/// One thing wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = RequestFault)]
pub struct Fault {
    /// JSON Pointer (RFC 6901) into the request's body, payload or parameters.
    pub pointer: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Said of a text for people: line ends are its own business, but what follows a NUL is lost to many who read it.
pub const NUL_REFUSED: &str = "holds the character NUL; leave it out";

/// All that is wrong with a request, gathered before it is answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Notes one; beyond [`FAULTS_MAX`] they are not kept.
    pub fn push(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        if self.0.len() < FAULTS_MAX {
            self.0.push(Fault { pointer: pointer.into(), message: message.into() });
        }
    }

    /// The value, or `None` with its error noted.
    pub fn keep<T, E: fmt::Display>(&mut self, pointer: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.push(pointer, error.to_string())).ok()
    }

    /// The required value, or `None` with its absence noted (unless it is there and wrong, which has been noted).
    pub fn require<T>(&mut self, pointer: &str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.mentions(pointer) {
            self.push(pointer, "is required");
        }
        value
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them is at `pointer`.
    #[must_use]
    pub fn mentions(&self, pointer: &str) -> bool {
        self.0.iter().any(|fault| fault.pointer == pointer)
    }

    /// Takes `value` if there are no faults.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` with all of them.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Problem> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Problem::invalid(self.0)),
        }
    }
}

/// An answer that is no success. The edge renders it, because only there its trace id and path are known.
#[derive(Debug, Clone)]
pub struct Problem(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    code: Code,
    detail: Cow<'static, str>,
    faults: Vec<Fault>,
    retry_after: Option<Duration>,
    stage: Option<StageRef>,
    accept_encoding: Option<&'static str>,
    /// For our log alone.
    cause: Option<Arc<str>>,
}

#[derive(Debug, Clone)]
struct StageRef {
    stage: Arc<str>,
    plugin: Arc<str>,
    version: Arc<str>,
}

impl Problem {
    /// A problem; `detail` says what to do about it.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem(Box::new(Inner {
            code,
            detail: detail.into(),
            faults: Vec::new(),
            retry_after: None,
            stage: None,
            accept_encoding: None,
            cause: None,
        }))
    }

    /// `VALIDATION_ERROR` with these faults.
    #[must_use]
    pub fn invalid(faults: Vec<Fault>) -> Problem {
        Problem::new(Code::ValidationError, "Correct what `errors` names and send the request again.")
            .with_faults(faults)
    }

    /// `VALIDATION_ERROR` with one fault.
    #[must_use]
    pub fn invalid_at(pointer: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem::invalid(vec![Fault { pointer: pointer.into(), message: message.into() }])
    }

    /// `NOT_FOUND`: there is no such `noun`.
    #[must_use]
    pub fn not_found(noun: &str, name: impl fmt::Display) -> Problem {
        Problem::new(Code::NotFound, format!("There is no {noun} '{name}'."))
    }

    /// `INTERNAL`; the cause goes to our log alone.
    #[must_use]
    pub fn internal(cause: impl fmt::Display) -> Problem {
        Problem::new(Code::Internal, "This is a fault of the broker. Report it with the `traceId`.").because(cause)
    }

    /// Adds faults.
    #[must_use]
    pub fn with_faults(mut self, faults: Vec<Fault>) -> Problem {
        self.0.faults = faults;
        self
    }

    /// The same of a part of the body, which stands at `place`.
    #[must_use]
    pub fn within(mut self, place: &str) -> Problem {
        self.0.faults.iter_mut().for_each(|fault| fault.pointer.insert_str(0, place));
        self
    }

    /// Its faults; it is no more then.
    #[must_use]
    pub fn into_faults(self) -> Vec<Fault> {
        self.0.faults
    }

    /// Says when to come again.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Problem {
        self.0.retry_after = Some(wait);
        self
    }

    /// Names the stage whose word this is.
    #[must_use]
    pub fn of_stage(mut self, stage: Arc<str>, plugin: Arc<str>, version: Arc<str>) -> Problem {
        self.0.stage = Some(StageRef { stage, plugin, version });
        self
    }

    /// Says which codings a body may have, where it was refused for its own: only there (RFC 9110 §12.5.3).
    #[must_use]
    pub fn with_accept_encoding(mut self, codings: &'static str) -> Problem {
        self.0.accept_encoding = Some(codings);
        self
    }

    /// What `Accept-Encoding` says in the answer.
    #[must_use]
    pub fn accept_encoding(&self) -> Option<&'static str> {
        self.0.accept_encoding
    }

    /// Keeps the cause for our log; it is never answered.
    #[must_use]
    pub fn because(mut self, cause: impl fmt::Display) -> Problem {
        self.0.cause = Some(cause.to_string().into());
        self
    }

    /// Its code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The cause, for our log.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        self.0.cause.as_deref()
    }

    /// Whole seconds for `Retry-After`, at least one.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u64> {
        match self.0.retry_after {
            Some(wait) => Some((wait.as_millis().div_ceil(1000) as u64).max(1)),
            None => self.0.code.retries().then_some(1),
        }
    }

    /// The body, for the answer to `instance` under this trace.
    #[must_use]
    pub fn body(&self, instance: &str, trace_id: &str) -> ProblemBody {
        ProblemBody {
            r#type: format!("urn:sluice:problem:{}", self.0.code.as_str()),
            status: self.0.code.status().as_u16(),
            instance: Some(instance.to_owned()),
            trace_id: Some(trace_id.to_owned()),
            ..self.item_body()
        }
    }

    /// The body as one item of a batch carries it: without what the whole answer says.
    #[must_use]
    pub fn item_body(&self) -> ProblemBody {
        let inner = &*self.0;
        let stage = inner.stage.as_ref();
        ProblemBody {
            r#type: format!("urn:sluice:problem:{}", inner.code.as_str()),
            title: inner.code.title(),
            status: inner.code.status().as_u16(),
            detail: inner.detail.to_string(),
            instance: None,
            code: inner.code,
            errors: inner.faults.clone(),
            trace_id: None,
            plugin: stage.map(|stage| stage.plugin.to_string()),
            plugin_version: stage.map(|stage| stage.version.to_string()),
            stage: stage.map(|stage| stage.stage.to_string()),
        }
    }
}

impl IntoResponse for Problem {
    /// Carries the problem to the edge (`layers.rs`), which writes the body.
    fn into_response(self) -> Response {
        let mut response = self.0.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// RFC 9457 with Sluice's members.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// `urn:sluice:problem:` and the code.
    pub r#type: String,
    /// The same for every problem of the code.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What to do about it.
    pub detail: String,
    /// The request's path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// What went wrong, for programs.
    pub code: Code,
    /// Every fault found in the request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
    /// Finds the request in logs and traces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The plugin whose word this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin_version: Option<String>,
    /// The stage whose word this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
}
