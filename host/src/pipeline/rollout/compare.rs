//! What two versions of a stage made of the same message, side by side. Invariant: messages are the same only if nobody could
//! tell the one outcome from the other; what is kept of a difference is bounded. Never runs a stage.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::message::MessageId;

use super::super::draft::{Draft, Emitted, Processed, Said, Verdict};

/// Payload bytes from which on a difference is not worked out.
const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a difference, as JSON, that are kept.
const PATCH_BYTES_MAX: usize = 16 * 1024;
/// Differences of each kind that are kept.
const SAMPLE_MAX: usize = 10;

/// What a version made of a message.
#[derive(Debug, Clone)]
pub struct Made {
    /// In a word.
    pub said: Said,
    /// Why it goes no further.
    pub why: Option<Arc<str>>,
    /// As it was left.
    pub draft: Draft,
    /// What came with it.
    pub emitted: Vec<Emitted>,
    /// The share of it in the version's time.
    pub took: Duration,
}

/// How two outcomes compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// As good as each other.
    Same,
    /// One keeps, drops or rejects what the other does not.
    Verdict,
    /// Both keep it, but not alike.
    Payload,
    /// The one that is tried failed, and the other did not.
    Trapped,
}

impl Comparison {
    /// For answers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Comparison::Same => "same",
            Comparison::Verdict => "verdict",
            Comparison::Payload => "payload",
            Comparison::Trapped => "trapped",
        }
    }
}

/// A message of which two versions made something else.
#[derive(Debug, Clone)]
pub struct Difference {
    /// The message.
    pub message: MessageId,
    /// In a word.
    pub comparison: Comparison,
    /// What the stage's version said, and why.
    pub stable: (Said, Option<Arc<str>>),
    /// What the one that is tried said, and why.
    pub candidate: (Said, Option<Arc<str>>),
    /// What leads from the one message to the other, as RFC 6902 has it; none where it would be too large.
    pub patch: Option<Value>,
}

/// How many messages compared how, and some that differ.
#[derive(Debug, Clone, Default)]
pub struct Compared {
    /// Those that are the same.
    pub same: u64,
    /// Those of another verdict.
    pub verdict: u64,
    /// Those of another content.
    pub payload: u64,
    /// Those that the one that is tried failed on.
    pub trapped: u64,
    /// The first of each kind.
    pub sample: Vec<Difference>,
}

impl Compared {
    /// Compares what two versions made of `message`.
    pub fn add(&mut self, message: MessageId, stable: &Made, candidate: &Made) -> Comparison {
        let comparison = compare(stable, candidate);
        let count = match comparison {
            Comparison::Same => &mut self.same,
            Comparison::Verdict => &mut self.verdict,
            Comparison::Payload => &mut self.payload,
            Comparison::Trapped => &mut self.trapped,
        };
        *count += 1;
        let has_room = *count <= SAMPLE_MAX as u64;
        if comparison != Comparison::Same && has_room {
            let patch = if comparison == Comparison::Payload { patch(stable, candidate) } else { None };
            let word = |made: &Made| (made.said, made.why.clone());
            let (stable, candidate) = (word(stable), word(candidate));
            self.sample.push(Difference { message, comparison, stable, candidate, patch });
        }
        comparison
    }
}

impl Made {
    /// Of a message that passed one stage alone.
    #[must_use]
    pub fn of(processed: Processed) -> Made {
        let (said, took) = processed.trail.last().map_or((Said::Pass, Duration::ZERO), |word| (word.word, word.took));
        let why = why(&processed.verdict);
        Made { said, why, draft: processed.draft, emitted: processed.emitted, took }
    }
}

/// In the stage's words, why a message goes no further.
#[must_use]
pub fn why(verdict: &Verdict) -> Option<Arc<str>> {
    match verdict {
        Verdict::Pass => None,
        Verdict::Drop { reason, .. } => Some(Arc::clone(reason)),
        Verdict::Reject(rejection) => rejection.faults.first().map(|fault| Arc::clone(&fault.message)),
        Verdict::Fault(fault) => Some(format!("{}: {}", fault.cause.as_str(), fault.detail).into()),
    }
}

/// How two outcomes of one message compare.
#[must_use]
pub fn compare(stable: &Made, candidate: &Made) -> Comparison {
    let keeps = |made: &Made| matches!(made.said, Said::Pass | Said::Changed);
    match (keeps(stable), keeps(candidate)) {
        (true, true) if is_alike(stable, candidate) => Comparison::Same,
        (true, true) => Comparison::Payload,
        (false, false) if stable.said == candidate.said => Comparison::Same,
        _ if candidate.said == Said::Fault => Comparison::Trapped,
        _ => Comparison::Verdict,
    }
}

fn is_alike(a: &Made, b: &Made) -> bool {
    a.draft.payload == b.draft.payload
        && a.draft.content_type == b.draft.content_type
        && a.draft.key == b.draft.key
        && a.draft.headers == b.draft.headers
        && a.emitted == b.emitted
}

/// What leads from the one message to the other, as RFC 6902 has it; none where it is too much to work out.
#[must_use]
pub fn patch(stable: &Made, candidate: &Made) -> Option<Value> {
    let small = |made: &Made| {
        let emitted: usize = made.emitted.iter().map(|emitted| emitted.payload.len()).sum();
        made.draft.payload.len() + emitted <= PAYLOAD_BYTES_MAX
    };
    if !small(stable) || !small(candidate) {
        return None;
    }
    let patch = json!(json_patch::diff(&document(stable), &document(candidate)));
    (patch.to_string().len() <= PATCH_BYTES_MAX).then_some(patch)
}

/// A message as one document.
fn document(made: &Made) -> Value {
    let draft = &made.draft;
    let emitted: Vec<Value> = made
        .emitted
        .iter()
        .map(|emitted| {
            json!({
                "topic": emitted.topic, "key": emitted.key, "headers": headers(&emitted.headers),
                "payload": payload(&emitted.payload),
            })
        })
        .collect();
    json!({
        "payload": payload(&draft.payload),
        "contentType": draft.content_type,
        "headers": headers(&draft.headers),
        "key": draft.key,
        "emitted": emitted,
    })
}

fn headers(headers: &[(Arc<str>, Arc<str>)]) -> BTreeMap<&str, &str> {
    headers.iter().map(|(name, value)| (&**name, &**value)).collect()
}

/// JSON as it is, other text as text, anything else in base64.
fn payload(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| {
        std::str::from_utf8(bytes).map_or_else(|_| json!(STANDARD.encode(bytes)), |text| json!(text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::draft;

    fn made(said: Said, payload: &str, headers: &[(&str, &str)]) -> Made {
        Made { said, why: None, draft: draft(payload, headers), emitted: Vec::new(), took: Duration::ZERO }
    }

    #[test]
    fn outcomes_are_told_apart_by_what_comes_of_them() {
        let kept = made(Said::Pass, "{}", &[]);
        let cases = [
            (&kept, made(Said::Changed, "{}", &[]), Comparison::Same),
            (&kept, made(Said::Changed, "{ }", &[]), Comparison::Payload),
            (&kept, made(Said::Changed, "{}", &[("a", "1")]), Comparison::Payload),
            (&kept, made(Said::Dropped, "{}", &[]), Comparison::Verdict),
            (&kept, made(Said::Fault, "{}", &[]), Comparison::Trapped),
            (&made(Said::Rejected, "1", &[]), made(Said::Rejected, "2", &[]), Comparison::Same),
            (&made(Said::Rejected, "{}", &[]), made(Said::Dropped, "{}", &[]), Comparison::Verdict),
            (&made(Said::Fault, "{}", &[]), made(Said::Fault, "{}", &[]), Comparison::Same),
            (&made(Said::Fault, "{}", &[]), made(Said::Pass, "{}", &[]), Comparison::Verdict),
        ];
        for (stable, candidate, wanted) in cases {
            assert_eq!(compare(stable, &candidate), wanted, "{:?} and {:?}", stable.said, candidate.said);
        }
    }

    #[test]
    fn a_difference_is_a_patch_from_one_to_the_other() {
        let before = made(Said::Pass, r#"{"user": {"name": "Ada", "age": 36}}"#, &[("kind", "a")]);
        let after = made(Said::Changed, r#"{"user": {"name": "A."}}"#, &[("kind", "b")]);
        let mut compared = Compared::default();
        assert_eq!(compared.add(before.draft.id, &before, &after), Comparison::Payload);
        let patch: json_patch::Patch = serde_json::from_value(compared.sample[0].patch.clone().unwrap()).unwrap();
        let paths: Vec<String> = patch.0.iter().map(|operation| operation.path().to_string()).collect();
        assert_eq!(paths.len(), 3, "{paths:?}");
        let mut patched = document(&before);
        json_patch::patch(&mut patched, &patch).unwrap();
        assert_eq!(patched, document(&after));
    }

    #[test]
    fn what_is_kept_of_differences_is_bounded() {
        let (before, after) = (made(Said::Pass, "1", &[]), made(Said::Changed, "2", &[]));
        let dropped = made(Said::Dropped, "1", &[]);
        let mut compared = Compared::default();
        for _ in 0..1000 {
            compared.add(before.draft.id, &before, &after);
            compared.add(before.draft.id, &before, &dropped);
            compared.add(before.draft.id, &before, &before);
        }
        assert_eq!((compared.same, compared.verdict, compared.payload), (1000, 1000, 1000));
        assert_eq!(compared.sample.len(), 2 * SAMPLE_MAX);
        let large = made(Said::Changed, &"x".repeat(PAYLOAD_BYTES_MAX + 1), &[]);
        let text = made(Said::Changed, &"y".repeat(PAYLOAD_BYTES_MAX / 2), &[]);
        assert!(patch(&before, &large).is_none() && patch(&before, &text).is_none());
    }
}
