//! The domain's errors as problems. Invariant: every variant is decided here, and the compiler asks when one is added.
//! Never leaks a file's path, an address or a library's text into an answer.

use std::time::Duration;

use super::{Code, Fault, Problem};
use crate::catalog::CatalogError;
use crate::delivery::dead_letters::DeadLetterError;
use crate::delivery::outbound::OutboundError;
use crate::delivery::pull::ConsumeError;
use crate::directory::DirectoryError;
use crate::pipeline::PipelineError;
use crate::pipeline::draft::{Rejection, StageFault};
use crate::publish::PublishError;
use crate::schemas::SchemaError;
use crate::store::{SettleRefused, StoreError};

/// A full topic empties as fast as its consumers are: asking again at once would not help.
const FULL_WAIT: Duration = Duration::from_secs(5);
/// Before somebody has deleted what is not needed, asking again is in vain.
const NO_MORE_WAIT: Duration = Duration::from_secs(60);
/// The stage that holds payloads against a topic's schema.
const SCHEMA_PLUGIN: &str = "json-schema";

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        let problem = match &error {
            StoreError::NoTopic | StoreError::NoGroup => Problem::new(Code::NotFound, sentence(&error)),
            StoreError::StaleRevision { .. } | StoreError::KvConflict => Problem::new(
                Code::StoreUnavailable,
                "The topic's pipeline keeps changing; nothing was stored, send it again.",
            ),
            StoreError::Unavailable(_) => Problem::new(
                Code::StoreUnavailable,
                "The store takes no writes now; nothing was stored, send it again.",
            ),
            StoreError::Busy(_) => {
                Problem::new(Code::Backpressure, "More waits to be stored than the broker holds; send it later.")
            }
            StoreError::OutcomeUnknown(_) => Problem::new(
                Code::OutcomeUnknown,
                "It may or may not be done; a publish sent again with the same `Idempotency-Key` finds out.",
            ),
            StoreError::Damaged { .. } => Problem::new(
                Code::StoreUnavailable,
                "Part of what is stored is damaged; the operator finds file and byte in the log.",
            ),
            StoreError::Unsupported(what) => {
                Problem::new(Code::Conflict, format!("This topic's store cannot do that: {what}."))
            }
            StoreError::Invalid(what) => Problem::invalid_at("", what.clone()),
        };
        problem.because(error)
    }
}

impl From<CatalogError> for Problem {
    fn from(error: CatalogError) -> Problem {
        match error {
            CatalogError::Conflict(_) => Problem::new(Code::Conflict, sentence(&error)),
            CatalogError::NotFound(_) => Problem::new(Code::NotFound, sentence(&error)),
            CatalogError::PreconditionFailed { current } => Problem::new(
                Code::PreconditionFailed,
                format!("It was changed meanwhile and is at version {current}; read it again and repeat the change."),
            ),
            CatalogError::Newer { .. } | CatalogError::Outdated { .. } | CatalogError::Damaged(_) => {
                Problem::internal(error)
            }
            CatalogError::Unavailable(_) => {
                Problem::new(Code::StoreUnavailable, "The catalog is not available; send it again.").because(error)
            }
        }
    }
}

impl From<PipelineError> for Problem {
    fn from(error: PipelineError) -> Problem {
        match error {
            PipelineError::Overloaded => Problem::new(
                Code::Backpressure,
                "Too many messages wait for the stages of this pipeline; send it later.",
            ),
            PipelineError::Stopping => stopping(),
            PipelineError::Invalid(faults) => {
                Problem::invalid(faults.into_iter().map(|(pointer, message)| Fault { pointer, message }).collect())
            }
            PipelineError::Unusable(_) | PipelineError::TooLarge { .. } => {
                Problem::new(Code::PluginInvalid, sentence(&error))
            }
            PipelineError::Powers { .. } | PipelineError::Bound(_) => Problem::new(Code::Conflict, sentence(&error)),
            PipelineError::Full(_) | PipelineError::Quota(_) => no_more(&error),
            PipelineError::NotNow(_) => {
                Problem::new(Code::Backpressure, "A plugin can't be started for the moment; send it again.")
                    .because(error)
            }
            PipelineError::Catalog(error) => error.into(),
            PipelineError::Internal(_) | PipelineError::Watch { .. } => Problem::internal(error),
        }
    }
}

impl From<SchemaError> for Problem {
    fn from(error: SchemaError) -> Problem {
        match error {
            SchemaError::Invalid(faults) => Problem::invalid(faults.into_iter().map(from_schema).collect()),
            SchemaError::Incompatible { changed, declared } => {
                let message = format!("with compatibility {declared:?}, only annotations may change");
                let faults = changed.into_iter().map(|pointer| Fault { pointer, message: message.clone() }).collect();
                let detail = "The new version may break what is declared; register it under another id, or first a \
                              version that declares `None`.";
                Problem::new(Code::Conflict, detail).with_faults(faults)
            }
            SchemaError::NotFound(_) => Problem::new(Code::NotFound, sentence(&error)),
            SchemaError::Full(_) => no_more(&error),
            SchemaError::NotApproved { .. } => Problem::new(Code::Conflict, sentence(&error)),
            SchemaError::Catalog(error) => error.into(),
            SchemaError::Stopping => stopping(),
        }
    }
}

impl From<DirectoryError> for Problem {
    fn from(error: DirectoryError) -> Problem {
        match error {
            DirectoryError::NotFound(_) => Problem::new(Code::NotFound, sentence(&error)),
            DirectoryError::Conflict(_) => Problem::new(Code::Conflict, sentence(&error)),
            DirectoryError::Full(_) => no_more(&error),
            DirectoryError::Catalog(error) => error.into(),
            DirectoryError::Store(error) => error.into(),
            DirectoryError::Pipeline(error) => error.into(),
            DirectoryError::Schemas(error) => error.into(),
        }
    }
}

impl From<OutboundError> for Problem {
    fn from(error: OutboundError) -> Problem {
        match error {
            OutboundError::Store(error) => error.into(),
            OutboundError::Pipeline(error) => error.into(),
        }
    }
}

impl From<ConsumeError> for Problem {
    fn from(error: ConsumeError) -> Problem {
        match error {
            ConsumeError::NoGroup(_) => Problem::new(Code::NotFound, sentence(&error)),
            ConsumeError::Push(_) => Problem::new(Code::Conflict, sentence(&error)),
            ConsumeError::Outbound(error) => error.into(),
        }
    }
}

impl From<SettleRefused> for Problem {
    fn from(error: SettleRefused) -> Problem {
        match error {
            SettleRefused::LeaseExpired => Problem::new(
                Code::LeaseExpired,
                "The lease has ended: past its deadline, settled before, or of an earlier start of the broker. Drop the \
                 message; it comes again unless it was settled.",
            ),
            SettleRefused::WrongMessage => Problem::invalid_at("/receipt", "is another message's"),
            SettleRefused::NotFound => Problem::new(Code::NotFound, "There is no such message for this group."),
        }
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Problem {
        match error {
            PublishError::Rejected(rejection) => rejected(rejection),
            PublishError::Fault(fault) => failed(fault),
            PublishError::TooLarge { .. } => Problem::new(Code::MessageTooLarge, sentence(&error)),
            PublishError::KeyRequired => {
                Problem::invalid_at("/idempotencyKey", "is required: the topic is ExactlyOnce")
            }
            PublishError::Lacking { pointer, what } => Problem::invalid_at(pointer, what),
            PublishError::KeyConflict => Problem::new(
                Code::Conflict,
                "The idempotency key was used for another request; use a new key for a new message.",
            ),
            PublishError::TopicFull => Problem::new(
                Code::TopicFull,
                "The topic (or its memory of idempotency keys) is full; wait until consumers have caught up.",
            )
            .retry_after(FULL_WAIT),
            PublishError::NotAttempted | PublishError::SeveralTopics => Problem::new(Code::Conflict, sentence(&error)),
            PublishError::Pipeline(error) => pipeline_word(&error),
            PublishError::Store(error) => error.into(),
        }
    }
}

impl From<DeadLetterError> for Problem {
    fn from(error: DeadLetterError) -> Problem {
        match error {
            DeadLetterError::NotFound(_) => Problem::new(Code::NotFound, sentence(&error)),
            DeadLetterError::Conflict(_) => Problem::new(Code::Conflict, sentence(&error)),
            DeadLetterError::Publish(error) => error.into(),
            DeadLetterError::Store(error) => error.into(),
        }
    }
}

/// A pipeline's word on a batch is shared by its messages, so it cannot be taken apart.
fn pipeline_word(error: &PipelineError) -> Problem {
    match error {
        PipelineError::Overloaded => PipelineError::Overloaded.into(),
        PipelineError::Stopping => stopping(),
        other => Problem::internal(other),
    }
}

fn rejected(rejection: Rejection) -> Problem {
    let code = if &*rejection.plugin == SCHEMA_PLUGIN { Code::SchemaValidationError } else { Code::PluginRejected };
    let fault = |fault: &crate::pipeline::draft::PayloadFault| Fault {
        pointer: format!("/payload{}", fault.pointer.as_deref().unwrap_or_default()),
        message: fault.message.to_string(),
    };
    let faults = rejection.faults.iter().take(super::FAULTS_MAX).map(fault).collect();
    let said = rejection.faults.first().map_or_else(String::new, |fault| format!(": {}", fault.message));
    Problem::new(code, format!("The stage '{}' rejected the message{said}.", rejection.stage))
        .with_faults(faults)
        .of_stage(rejection.stage, rejection.plugin, rejection.version)
}

fn failed(fault: StageFault) -> Problem {
    let detail =
        format!("The stage '{}' failed ({}); nothing was stored, send it again.", fault.stage, fault.cause.as_str());
    Problem::new(Code::PluginFault, detail).because(&fault.detail).of_stage(fault.stage, fault.plugin, fault.version)
}

fn from_schema(fault: crate::schemas::Fault) -> Fault {
    Fault { pointer: fault.path, message: fault.message }
}

/// As many as the settings allow: only an operator's act makes room.
fn no_more(error: &impl std::fmt::Display) -> Problem {
    Problem::new(Code::Backpressure, sentence(error)).retry_after(NO_MORE_WAIT)
}

fn stopping() -> Problem {
    Problem::new(Code::ShuttingDown, "The broker is stopping; send it to another one, or to this one once it is back.")
}

/// An error's own words, as a sentence.
fn sentence(error: &impl std::fmt::Display) -> String {
    let said = error.to_string();
    let mut chars = said.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    let end = if said.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{first}{}{end}", chars.as_str())
}
