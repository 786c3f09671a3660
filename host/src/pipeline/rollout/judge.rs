//! Whether a version that is tried does worse than the one that a stage runs. Invariant: it follows from the figures and the
//! limits alone, and comes with the figures that it rests on. Never ends a rollout.

use crate::catalog::model::RolloutLimits;

use super::figures::{Both, Figures};

/// The share of messages that its latency is judged by.
const LATENCY_SHARE: f64 = 0.99;

/// What is wrong with the version that is tried, in a sentence; `None` while it is within its limits.
#[must_use]
pub fn breach(limits: &RolloutLimits, of: &Both) -> Option<String> {
    errors(limits, of).or_else(|| rejections(limits, of)).or_else(|| drops(limits, of)).or_else(|| latency(limits, of))
}

/// Of few messages one that fails says little: they are taken as though the rest of the least number had been well. So many
/// failures that nothing could make up for them count at once.
fn errors(limits: &RolloutLimits, of: &Both) -> Option<String> {
    let at_most = limits.max_error_rate?;
    let Figures { messages, faulted, .. } = of.candidate;
    let rate = share(faulted, messages.max(limits.min_messages));
    let stable = share(of.stable.faulted, of.stable.messages);
    (rate - stable > at_most).then(|| {
        format!(
            "{} of its {messages} messages failed, {} of the {} of the stage's version: at most {} more may fail",
            faulted,
            of.stable.faulted,
            of.stable.messages,
            percent(at_most)
        )
    })
}

fn rejections(limits: &RolloutLimits, of: &Both) -> Option<String> {
    let at_most = limits.max_reject_delta?;
    let (candidate, stable) = comparable(limits, of)?;
    let more = share(candidate.rejected, candidate.messages) - share(stable.rejected, stable.messages);
    (more > at_most).then(|| {
        format!(
            "{} of its {} messages were rejected, {} of the {} of the stage's version: at most {} more may be",
            candidate.rejected,
            candidate.messages,
            stable.rejected,
            stable.messages,
            percent(at_most)
        )
    })
}

fn drops(limits: &RolloutLimits, of: &Both) -> Option<String> {
    let at_most = limits.max_drop_delta?;
    let (candidate, stable) = comparable(limits, of)?;
    let other = share(candidate.dropped, candidate.messages) - share(stable.dropped, stable.messages);
    (other.abs() > at_most).then(|| {
        format!(
            "{} of its {} messages were dropped, {} of the {} of the stage's version: at most {} more or fewer may be",
            candidate.dropped,
            candidate.messages,
            stable.dropped,
            stable.messages,
            percent(at_most)
        )
    })
}

/// A stage that is slow by itself is not held against the version that is tried.
fn latency(limits: &RolloutLimits, of: &Both) -> Option<String> {
    let at_most = limits.max_latency_ms?;
    if of.candidate.messages < limits.min_messages {
        return None;
    }
    let ms = |figures: &Figures| figures.latency.quantile(LATENCY_SHARE).map(|time| time.as_secs_f64() * 1000.0);
    let candidate = ms(&of.candidate)?;
    let stable = ms(&of.stable).unwrap_or(0.0);
    (candidate > at_most && candidate > stable).then(|| {
        format!(
            "99 of 100 of its messages take up to {candidate:.2} ms, those of the stage's version {stable:.2} ms: at most \
             {at_most} ms is allowed"
        )
    })
}

/// Both, once there are enough of each to compare them.
fn comparable<'a>(limits: &RolloutLimits, of: &'a Both) -> Option<(&'a Figures, &'a Figures)> {
    let enough = |figures: &Figures| figures.messages >= limits.min_messages.max(1);
    (enough(&of.candidate) && enough(&of.stable)).then_some((&of.candidate, &of.stable))
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn percent(share: f64) -> String {
    format!("{} %", (share * 1e6).round() / 1e4)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn limits() -> RolloutLimits {
        RolloutLimits {
            max_error_rate: Some(0.01),
            max_reject_delta: Some(0.05),
            max_drop_delta: Some(0.05),
            max_latency_ms: Some(10.0),
            window_ms: 60_000,
            min_messages: 100,
        }
    }

    fn figures(messages: u64) -> Figures {
        let mut figures = Figures { messages, passed: messages, ..Figures::default() };
        figures.latency.record_many(Duration::from_millis(1), messages as u32);
        figures
    }

    fn both(stable: u64, candidate: u64, change: impl FnOnce(&mut Figures)) -> Both {
        let mut both = Both { stable: figures(stable), candidate: figures(candidate) };
        change(&mut both.candidate);
        both
    }

    fn word(of: &Both) -> Option<String> {
        breach(&limits(), of)
    }

    #[test]
    fn failures_count_against_the_least_number_and_the_stages_own() {
        assert_eq!(word(&both(0, 1, |of| of.faulted = 1)), None, "1 of 100 is no more than 1 %");
        assert!(word(&both(0, 2, |of| of.faulted = 2)).unwrap().contains("2 of its 2 messages failed"));
        assert_eq!(word(&both(0, 1000, |of| of.faulted = 10)), None);
        assert!(word(&both(0, 1000, |of| of.faulted = 11)).unwrap().contains("at most 1 % more"));
        let mut alike = both(1000, 1000, |of| of.faulted = 100);
        alike.stable.faulted = 95;
        assert_eq!(word(&alike), None, "the stage's version fails as often");
    }

    #[test]
    fn rejections_and_drops_are_compared_once_there_are_enough_of_both() {
        assert_eq!(word(&both(99, 1000, |of| of.rejected = 500)), None);
        assert!(
            word(&both(100, 1000, |of| of.rejected = 51)).unwrap().contains("51 of its 1000 messages were rejected")
        );
        assert_eq!(word(&both(100, 1000, |of| of.rejected = 50)), None);
        assert!(word(&both(100, 100, |of| of.dropped = 6)).unwrap().contains("dropped"));
        let mut fewer = both(100, 100, |_| ());
        fewer.stable.dropped = 6;
        assert!(word(&fewer).unwrap().contains("0 of its 100 messages were dropped"), "also fewer");
    }

    #[test]
    fn a_slow_version_is_not_blamed_where_the_stages_own_is_slower() {
        let slow = |ms| {
            move |of: &mut Figures| {
                of.latency = crate::window::Latencies::default();
                of.latency.record_many(Duration::from_millis(ms), 100);
            }
        };
        assert!(word(&both(0, 100, slow(40))).unwrap().contains("at most 10 ms"));
        assert_eq!(word(&both(0, 99, slow(40))), None, "too few");
        let mut both_slow = both(100, 100, slow(40));
        slow(80)(&mut both_slow.stable);
        assert_eq!(word(&both_slow), None);
    }

    #[test]
    fn what_has_no_limit_is_not_judged() {
        let none = RolloutLimits {
            max_error_rate: None,
            max_reject_delta: None,
            max_drop_delta: None,
            max_latency_ms: None,
            ..limits()
        };
        let bad = both(1000, 1000, |of| (of.faulted, of.rejected, of.dropped) = (1000, 1000, 1000));
        assert_eq!(breach(&none, &bad), None);
    }
}
