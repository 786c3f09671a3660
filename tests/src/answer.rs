//! An HTTP answer as a test looks at it. Invariant: an expectation that fails shows the request and the whole answer.

use bytes::Bytes;
use http::HeaderMap;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Status, headers and body, read to the end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Method and URL, for messages.
    pub request: String,
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }

    /// The header's value, if it is there.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body, if the status is the one expected.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self}");
        if self.body.is_empty() { Value::Null } else { self.json() }
    }

    /// The body in a type of its own, if the status is the one expected.
    ///
    /// # Panics
    /// When status or shape differ.
    #[track_caller]
    pub fn expect_as<T: DeserializeOwned>(&self, status: u16) -> T {
        assert_eq!(self.status, status, "{self}");
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("another shape ({error}): {self}"))
    }

    /// The problem document, after checking what all of them have in common: its media type, its members, and that it
    /// repeats the status and the code.
    ///
    /// # Panics
    /// When it is anything else.
    #[track_caller]
    pub fn expect_problem(&self, status: u16, code: &str) -> Value {
        let problem = self.problem().unwrap_or_else(|fault| panic!("{fault}: {self}"));
        assert_eq!((self.status, problem["code"].as_str()), (status, Some(code)), "{self}");
        problem
    }

    /// The problem document, whichever it is.
    ///
    /// # Errors
    /// What it lacks of what all of them have in common.
    pub fn problem(&self) -> Result<Value, String> {
        if self.header("content-type") != Some("application/problem+json") {
            return Err("no problem document".to_owned());
        }
        let problem: Value = serde_json::from_slice(&self.body).map_err(|error| format!("no JSON ({error})"))?;
        if problem["status"] != self.status {
            return Err("the document's status is another one".to_owned());
        }
        let is_empty = |member: &&&str| problem[**member].as_str().is_none_or(str::is_empty);
        if let Some(member) = ["code", "type", "title", "detail", "traceId"].iter().find(is_empty) {
            return Err(format!("no {member}"));
        }
        // The path that was asked; of a CONNECT there is none.
        if !problem["instance"].is_string() {
            return Err("no instance".to_owned());
        }
        if self.header("x-request-id").is_none() {
            return Err("no X-Request-Id".to_owned());
        }
        let retries = self.status == 429 || self.status == 503 && problem["code"] != "OUTCOME_UNKNOWN";
        if retries && self.header("retry-after").is_none() {
            return Err("no Retry-After".to_owned());
        }
        Ok(problem)
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} answered {}", self.request, self.status)?;
        for (name, value) in &self.headers {
            writeln!(f, "  {name}: {}", value.to_str().unwrap_or("(not text)"))?;
        }
        let text = self.text();
        let shown: String = text.chars().take(4000).collect();
        write!(f, "{shown}")
    }
}
