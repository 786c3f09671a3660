//! `payloadQuery`: RFC 9535's logical expression over a payload (`$`), with `contains(a, b)` added.
//! Invariant: parsing and evaluating are bounded by constants of this file, whatever the query and the payload.
//! Never does I/O and never panics on what it is given; the `filter` plugin and the broker's API share it.
//!
//! ```
//! use payload_query::Query;
//!
//! let query = Query::parse("$.event == 'deployment.completed' && $.severity >= 7")?;
//! assert!(query.matches(&serde_json::json!({"event": "deployment.completed", "severity": 9})));
//! assert!(!query.matches(&serde_json::json!({"event": "deployment.completed"})));
//!
//! let error = Query::parse("$.severity => 7").unwrap_err();
//! assert_eq!(error.position, 12);
//! # Ok::<(), payload_query::QueryError>(())
//! ```

mod ast;
mod compare;
mod cursor;
mod evaluate;
mod expression;
mod function;
mod path;
mod wanted;

use std::fmt;

use serde::de::DeserializeSeed as _;
use serde_json::Value;

/// The length of a query in characters. A page of conditions fits; a program does not.
pub const QUERY_CHARS_MAX: usize = 4096;

/// Parentheses, brackets and calls inside one another. Bounds the recursion of parser and evaluation.
pub const QUERY_DEPTH_MAX: usize = 32;

/// The length of a regular expression in characters, and the memory that it may take when compiled.
pub const PATTERN_CHARS_MAX: usize = 512;
pub(crate) const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Values looked at in one evaluation (long strings count more). Enough to walk any payload of the default
/// maximum size several times over; a query that multiplies a payload by itself runs out of it.
pub const EVALUATION_STEPS_MAX: u32 = 2_000_000;

/// A query that was understood: parse once, evaluate often.
#[derive(Clone, Debug)]
pub struct Query {
    condition: ast::Logical,
    wanted: wanted::Wanted,
}

impl Query {
    /// Reads a query. The error says where and what.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        if let Some((start, _)) = text.char_indices().nth(QUERY_CHARS_MAX) {
            return Err(QueryError::at(text, start, format!("the query goes on after {QUERY_CHARS_MAX} characters")));
        }
        let condition = cursor::Cursor::new(text).query()?;
        Ok(Self { wanted: wanted::Wanted::by(&condition), condition })
    }

    /// Reads of a payload what the query looks at, which is quicker by far than reading all of it; `None` where it is not
    /// JSON. What the query can't see is passed over: it must have the form of JSON, but may hold a number that is too large
    /// or half of a surrogate pair.
    ///
    /// ```
    /// # let query = payload_query::Query::parse("$.amount > 100")?;
    /// let seen = query.read(br#"{"amount": 250, "items": [1, 2, 3]}"#).ok_or("not JSON")?;
    /// assert_eq!(seen, serde_json::json!({"amount": 250}));
    /// assert!(query.matches(&seen));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read(&self, payload: &[u8]) -> Option<Value> {
        // What is passed over is not looked at byte by byte.
        let text = std::str::from_utf8(payload).ok()?;
        let mut json = serde_json::Deserializer::from_str(text);
        let seen = self.wanted.deserialize(&mut json).ok()?;
        json.end().ok()?;
        Some(seen)
    }

    /// Whether the condition holds for a payload. A payload that costs too much to tell does not match; where
    /// that must be told apart, [`evaluate`](Self::evaluate).
    pub fn matches(&self, payload: &Value) -> bool {
        self.evaluate(payload) == Ok(true)
    }

    /// Whether the condition holds for a payload, or that telling takes more than [`EVALUATION_STEPS_MAX`].
    pub fn evaluate(&self, payload: &Value) -> Result<bool, TooCostly> {
        evaluate::Evaluation::new(payload).holds(&self.condition, payload)
    }
}

/// A query that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryError {
    /// Where: the number of the character, from 1. One past the last where the query ends too soon.
    pub position: usize,
    /// What is wrong there and what was expected.
    pub message: String,
}

impl QueryError {
    pub(crate) fn at(text: &str, byte: usize, message: impl Into<String>) -> Self {
        Self { position: text[..byte].chars().count() + 1, message: message.into() }
    }
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at position {}: {}", self.position, self.message)
    }
}

impl std::error::Error for QueryError {}

/// The query looked at [`EVALUATION_STEPS_MAX`] values of a payload and still had no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooCostly;

impl fmt::Display for TooCostly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the query takes more than {EVALUATION_STEPS_MAX} steps on this payload")
    }
}

impl std::error::Error for TooCostly {}
