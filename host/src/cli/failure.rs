//! How a command fails: what it says, and the exit code that scripts see. Invariant: 0 done · 1 the broker refused, or the
//! answer is no (not valid, damaged, lost) · 2 wrong usage or configuration · 3 no broker reached, or the connection broke ·
//! 4 refused for now (429, 503) · 5 this machine refused. Never prints.

use std::fmt;
use std::io;

use serde_json::Value;

use crate::broker::ServeError;
use crate::config::{ConfigError, SecretError};
use crate::offline::OfflineError;
use crate::telemetry::TelemetryError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The broker answered with a problem.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It was asked for something that can't be.
    #[error("{0}")]
    Usage(String),
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No answer came.
    #[error("no answer from {url}: {reason}")]
    Unreachable {
        /// Where it was sent.
        url: String,
        /// Why, down to the cause.
        reason: String,
    },
    /// What came is no answer of a broker.
    #[error("{url} does not answer like a Sluice broker: {reason}")]
    Foreign {
        /// Where it came from.
        url: String,
        /// What is odd.
        reason: String,
    },
    /// The system refused a file, a port, a thread.
    #[error("{what}: {source}")]
    Io {
        /// The file or thing.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// No signing secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// No logs.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// A data directory could not be looked at, or not be written.
    #[error(transparent)]
    Offline(OfflineError),
    /// The broker could not start, or not stop well.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl From<OfflineError> for Failure {
    fn from(error: OfflineError) -> Failure {
        match error {
            OfflineError::Target(why) => Failure::Usage(why),
            other => Failure::Offline(other),
        }
    }
}

impl Failure {
    /// For `map_err` on what the system refused.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
        let what = what.into();
        |source| Failure::Io { what, source }
    }

    /// The code that the process ends with.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Failure::Refused(refusal) if matches!(refusal.status, Some(429 | 503)) => 4,
            Failure::Refused(_) => 1,
            Failure::Usage(_) | Failure::Config(_) => 2,
            Failure::Unreachable { .. } | Failure::Foreign { .. } => 3,
            Failure::Io { .. }
            | Failure::Secret(_)
            | Failure::Telemetry(_)
            | Failure::Offline(_)
            | Failure::Serve(_) => 5,
        }
    }

    /// Whether our own output was closed by its reader.
    pub(super) fn is_closed_pipe(&self) -> bool {
        matches!(self, Failure::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// A problem document (RFC 9457), or a command's own word that the answer is a no.
#[derive(Debug, thiserror::Error)]
pub(super) struct Refusal {
    /// The HTTP status; none when the command itself reads a no out of an answer.
    pub(super) status: Option<u16>,
    /// The document.
    pub(super) problem: Value,
}

impl Refusal {
    /// From an item of a batch, which carries a problem of its own.
    pub(super) fn of_item(problem: &Value) -> Refusal {
        let status = problem["status"].as_u64().and_then(|status| u16::try_from(status).ok());
        Refusal { status, problem: problem.clone() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |name: &str| self.problem[name].as_str().filter(|text| !text.is_empty());
        let detail = text("detail").or_else(|| text("title")).unwrap_or("the broker gives no reason");
        match (text("code"), self.status) {
            (Some(code), Some(status)) => write!(f, "{detail} ({code}, {status})")?,
            (None, Some(status)) => write!(f, "{detail} ({status})")?,
            (_, None) => f.write_str(detail)?,
        }
        for fault in self.problem["errors"].as_array().into_iter().flatten() {
            let word = |name: &str| fault[name].as_str().unwrap_or_default();
            write!(f, "\n  {} {}", word("pointer"), word("message"))?;
        }
        if let Some(plugin) = text("plugin") {
            let version = text("pluginVersion").map(|version| format!("@{version}")).unwrap_or_default();
            write!(f, "\n  stage {} (plugin {plugin}{version})", text("stage").unwrap_or("?"))?;
        }
        if self.status == Some(401) {
            write!(f, "\n  give a token by --token or SLUICE_TOKEN; `sluice token` makes one")?;
        }
        if let Some(trace) = text("traceId").filter(|_| self.status.is_some_and(|status| status >= 500)) {
            write!(f, "\n  the broker's log has more under trace {trace}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(status: u16) -> Failure {
        Refusal { status: Some(status), problem: json!({"detail": "no"}) }.into()
    }

    #[test]
    fn exit_codes_are_as_documented() {
        let url = || "http://h".to_owned();
        for (failure, code) in [
            (refused(400), 1),
            (refused(404), 1),
            (refused(500), 1),
            (refused(429), 4),
            (refused(503), 4),
            (Failure::Usage("no".to_owned()), 2),
            (ConfigError { faults: vec![] }.into(), 2),
            (Failure::Unreachable { url: url(), reason: String::new() }, 3),
            (Failure::Foreign { url: url(), reason: String::new() }, 3),
            (Failure::io("f")(io::ErrorKind::NotFound.into()), 5),
            (SecretError::NotSet.into(), 5),
            (OfflineError::Target("d is not empty".to_owned()).into(), 2),
        ] {
            assert_eq!(failure.exit_code(), code, "{failure}");
        }
        assert!(Failure::io("stdout")(io::ErrorKind::BrokenPipe.into()).is_closed_pipe());
        assert!(!refused(400).is_closed_pipe());
    }

    #[test]
    fn problems_are_told_in_full() {
        let problem = json!({
            "title": "Bad", "detail": "The body is wrong.", "code": "VALIDATION_ERROR", "traceId": "abc",
            "errors": [{"pointer": "/priority", "message": "is from 0 to 9"}],
        });
        let text = Refusal { status: Some(400), problem }.to_string();
        assert_eq!(text, "The body is wrong. (VALIDATION_ERROR, 400)\n  /priority is from 0 to 9");
        let problem = json!({"title": "Oops", "traceId": "abc", "plugin": "p", "pluginVersion": "1", "stage": "s"});
        let text = Refusal { status: Some(503), problem }.to_string();
        let own = Refusal { status: None, problem: json!({"detail": "not valid"}) };
        assert_eq!(own.to_string(), "not valid");
        assert_eq!(text, "Oops (503)\n  stage s (plugin p@1)\n  the broker's log has more under trace abc");
    }
}
