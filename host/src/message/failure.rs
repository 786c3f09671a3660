//! What went wrong with deliveries, and how much of it is remembered. Invariant: of one message at most [`FAILURES_MAX`]
//! attempts are kept, the latest ones, and only the last with its sentence: a hundred thousand messages that fail for hours
//! must fit in memory. Never decides what follows from a failure.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{GroupId, Message, MessageId, Position};
use crate::clock::Timestamp;

/// Failed attempts that are remembered of one message.
pub const FAILURES_MAX: usize = 8;
/// Characters of a remembered word or sentence; longer ones are cut.
const TEXT_CHARS_MAX: usize = 256;

/// A stage that had a word, and what it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRef {
    /// The stage's name; empty where the broker itself turned the message away.
    pub name: Arc<str>,
    /// The plugin.
    pub plugin: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
}

/// What went wrong with one delivery.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// In a word: `NACK`, `HTTP_500`, `TIMEOUT`, `REJECTED`, ….
    pub reason: Arc<str>,
    /// In a sentence.
    pub detail: Arc<str>,
    /// The stage that said so.
    pub stage: Option<StageRef>,
    /// The endpoint's status.
    pub last_status: Option<u16>,
}

/// A delivery that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAttempt {
    /// Which, from 1.
    pub attempt: u32,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub failure: Failure,
}

/// The failed attempts of one message that are remembered, oldest first. Small where there are none, as with most.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::box_collection, reason = "a message in flight has none, and there may be a million of these")]
pub struct Failures(Option<Box<Vec<FailedAttempt>>>);

impl Failures {
    /// Adds the latest one. The ones before keep their word, and lose their sentence.
    pub fn push(&mut self, latest: FailedAttempt) {
        let all = self.0.get_or_insert_default();
        let mut latest = FailedAttempt { failure: shortened(latest.failure), ..latest };
        if let Some(before) = all.last_mut() {
            before.failure.detail = Arc::default();
            if before.failure.reason == latest.failure.reason {
                latest.failure.reason = Arc::clone(&before.failure.reason);
            }
        }
        if all.len() >= FAILURES_MAX {
            all.remove(0);
        }
        all.push(latest);
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// Oldest first.
    #[must_use]
    pub fn as_slice(&self) -> &[FailedAttempt] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

fn shortened(failure: Failure) -> Failure {
    let short = |text: &Arc<str>| -> Arc<str> {
        match text.char_indices().nth(TEXT_CHARS_MAX) {
            Some((at, _)) => text[..at].into(),
            None => Arc::clone(text),
        }
    };
    Failure { reason: short(&failure.reason), detail: short(&failure.detail), ..failure }
}

/// Why a message is a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterFacts {
    /// Its id in the topic it came from.
    pub original_id: MessageId,
    /// Where it stood there; none if a stage turned it away before it was stored.
    pub original: Option<Position>,
    /// The subscription that it failed for; none if it never got into its topic.
    pub group: Option<GroupId>,
    /// That subscription's group name; empty where there is none.
    pub group_name: Arc<str>,
    /// What was said last: the consumer's reason, the stage's word, the endpoint's answer.
    pub last: Failure,
    /// The attempts that failed, the last one among them.
    pub failures: Failures,
    /// Deliveries that were tried.
    pub attempts: u32,
    /// When it became a dead letter.
    pub at: Timestamp,
}

impl DeadLetterFacts {
    /// Of a message that was turned away before it was stored: its own id is the only one it has.
    #[must_use]
    pub fn turned_away(original_id: MessageId, last: Failure, at: Timestamp) -> DeadLetterFacts {
        let (group_name, failures) = (Arc::default(), Failures::default());
        DeadLetterFacts { original_id, original: None, group: None, group_name, last, failures, attempts: 0, at }
    }

    /// Of a message that failed on its way to `group`.
    #[must_use]
    pub fn failed(
        (message, position): (&Message, Position),
        (group, group_name): (GroupId, Arc<str>),
        (attempts, failures): (u32, Failures),
        last: Failure,
        at: Timestamp,
    ) -> DeadLetterFacts {
        DeadLetterFacts {
            original_id: message.id,
            original: Some(position),
            group: Some(group),
            group_name,
            last,
            failures,
            attempts,
            at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(attempt: u32, detail: &str) -> FailedAttempt {
        let failure = Failure { reason: "NACK".into(), detail: detail.into(), ..Failure::default() };
        FailedAttempt { attempt, at: Timestamp(i64::from(attempt)), failure }
    }

    #[test]
    fn the_latest_attempts_are_kept_and_the_last_one_whole() {
        let mut failures = Failures::default();
        assert!(failures.is_empty());
        for nth in 1..=20 {
            failures.push(attempt(nth, &"ü".repeat(1000)));
        }
        let kept: Vec<u32> = failures.as_slice().iter().map(|failed| failed.attempt).collect();
        assert_eq!(kept, [13, 14, 15, 16, 17, 18, 19, 20]);
        let (last, before) = failures.as_slice().split_last().expect("there are some");
        assert_eq!(last.failure.detail.chars().count(), TEXT_CHARS_MAX);
        assert!(before.iter().all(|failed| &*failed.failure.reason == "NACK" && failed.failure.detail.is_empty()));
        assert!(Arc::ptr_eq(&before[0].failure.reason, &last.failure.reason), "one word is kept once");
    }

    #[test]
    fn none_take_no_more_than_a_pointer() {
        assert_eq!(size_of::<Failures>(), size_of::<usize>());
        assert_eq!(postcard::to_stdvec(&Failures::default()).expect("encodes"), [0]);
    }
}
