//! What can go wrong, in the three sizes it comes in: a message that is wrong ([`Rejection`]), a stage that
//! can't work ([`Error`]), and either of them ([`Failure`]).
//! Invariant: one message's fault never becomes the whole batch's by `?`. Never decides what the broker does.

use std::{borrow::Cow, fmt};

/// The code of a rejection for a payload that is no JSON text.
pub const NOT_JSON: &str = "NOT_JSON";

/// The code of a rejection for a payload that is JSON, but not what the stage reads.
pub const UNEXPECTED_JSON: &str = "UNEXPECTED_JSON";

/// The stage can't do its work: a config that is not usable, or a fault that concerns the whole batch
/// (the stage's `onFault` decides what becomes of it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The plugin's own number for the kind of error; shown to people, not read by the broker.
    pub code: u32,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl Error {
    /// An error with code 0.
    pub fn new(message: impl Into<String>) -> Self {
        Self { code: 0, message: message.into() }
    }

    /// The same error under a number of the plugin's own.
    #[must_use]
    pub fn with_code(mut self, code: u32) -> Self {
        self.code = code;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// One thing that is wrong with one message. The stage's `onReject` decides what becomes of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// A word for programs, in capitals: `NOT_JSON`, `SCHEMA_VALIDATION_ERROR`.
    pub code: Cow<'static, str>,
    /// What is wrong, for people.
    pub message: String,
    /// A JSON Pointer (RFC 6901) into the payload to the place at fault.
    pub pointer: Option<String>,
}

impl Rejection {
    /// A rejection that names no place.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), pointer: None }
    }

    /// The same rejection with the place at fault, a JSON Pointer into the payload.
    #[must_use]
    pub fn at(mut self, pointer: impl Into<String>) -> Self {
        self.pointer = Some(pointer.into());
        self
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pointer {
            Some(pointer) => write!(f, "{} at {pointer:?}: {}", self.code, self.message),
            None => write!(f, "{}: {}", self.code, self.message),
        }
    }
}

impl std::error::Error for Rejection {}

impl From<serde_json::Error> for Rejection {
    /// Told apart by what serde_json found: text that is no JSON, or JSON of another shape.
    fn from(error: serde_json::Error) -> Self {
        let code = if error.is_data() { UNEXPECTED_JSON } else { NOT_JSON };
        Self::new(code, error.to_string())
    }
}

/// How a per-message function ends when it does not end well.
///
/// Both parts convert by `?`: a [`Rejection`] is a word about this message and the batch goes on; an
/// [`Error`] is the stage's own fault and ends the batch.
///
/// ```
/// # use sluice_plugin::{Failure, Message, Rejection, serde::Deserialize};
/// # #[derive(Deserialize)] #[serde(crate = "sluice_plugin::serde")] struct Order { total: i64 }
/// fn check(message: &Message) -> Result<(), Failure> {
///     let order: Order = message.json()?; // not JSON: this message is rejected
///     if order.total < 0 {
///         return Err(Rejection::new("NEGATIVE_TOTAL", "a total is never below 0").at("/total").into());
///     }
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The message is wrong; the others go on.
    Rejection(Rejection),
    /// The stage can't go on.
    Fault(Error),
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        Self::Rejection(rejection)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fault(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejection(rejection) => rejection.fmt(f),
            Self::Fault(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Failure {}
