//! How failures look to people and consumers: in a message's history, on the list of dead letters, and in what consumers of
//! dead letters receive. Invariant: what is shown is what is kept. Never decides anything.

use serde::Serialize;
use utoipa::ToSchema;

use crate::message::{DeadLetterFacts, FailedAttempt, Failure, MessageId};

/// Why a message is a dead letter.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterView<'a> {
    /// Its id in the topic that it came from.
    #[schema(value_type = String, format = Uuid)]
    original_message_id: MessageId,
    /// For which group; absent if it never got into its topic.
    #[serde(skip_serializing_if = "str::is_empty")]
    consumer_group: &'a str,
    /// In a word: `NACK`, `REJECTED`, ….
    reason: &'a str,
    /// In a sentence: the consumer's, the stage's, the endpoint's.
    detail: &'a str,
    /// The stage that turned it away.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<&'a str>,
    /// What that stage ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin_version: Option<&'a str>,
    /// The endpoint's last HTTP status.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_status: Option<u16>,
    /// Deliveries that were tried.
    attempts: u32,
    /// The attempts that failed, oldest first: the last 8.
    failures: Vec<FailureView<'a>>,
    /// When it became a dead letter.
    #[schema(format = DateTime)]
    failed_at: String,
}

impl<'a> DeadLetterView<'a> {
    /// As it is kept.
    #[must_use]
    pub fn of(facts: &'a DeadLetterFacts) -> DeadLetterView<'a> {
        let stage = facts.last.stage.as_ref();
        DeadLetterView {
            original_message_id: facts.original_id,
            consumer_group: &facts.group_name,
            reason: &facts.last.reason,
            detail: &facts.last.detail,
            stage: stage.map(|stage| &*stage.name),
            plugin: stage.map(|stage| &*stage.plugin),
            plugin_version: stage.map(|stage| &*stage.version),
            last_status: facts.last.last_status,
            attempts: facts.attempts,
            failures: facts.failures.as_slice().iter().map(FailureView::of).collect(),
            failed_at: facts.at.rfc3339(),
        }
    }
}

/// An attempt that failed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailureView<'a> {
    /// Which, from 1.
    attempt: u32,
    /// When.
    #[schema(format = DateTime)]
    at: String,
    /// In a word: `NACK`, `HTTP_500`, `TIMEOUT`, ….
    reason: &'a str,
    /// In a sentence, which only the last one keeps.
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    /// The stage that said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<&'a str>,
    /// What that stage ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin_version: Option<&'a str>,
    /// The endpoint's status.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_status: Option<u16>,
}

impl<'a> FailureView<'a> {
    /// As it is kept.
    #[must_use]
    pub fn of(failed: &'a FailedAttempt) -> FailureView<'a> {
        let FailedAttempt { attempt, at, failure: Failure { reason, detail, stage, last_status } } = failed;
        FailureView {
            attempt: *attempt,
            at: at.rfc3339(),
            reason,
            detail,
            stage: stage.as_ref().map(|stage| &*stage.name),
            plugin: stage.as_ref().map(|stage| &*stage.plugin),
            plugin_version: stage.as_ref().map(|stage| &*stage.version),
            last_status: *last_status,
        }
    }
}
