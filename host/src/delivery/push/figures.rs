//! What an endpoint did in the last minutes or hours. Invariant: kinds of failure are from a fixed list, so that memory is
//! bounded whatever endpoints answer. Counts only; decides nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::sender::{Outcome, Sent};
use crate::clock::Timestamp;
use crate::window::{Counters, Latencies, Sum, Windowed};

/// Kinds of failure.
const KINDS: [&str; 12] = [
    "TIMEOUT",
    "CONNECT",
    "DNS",
    "TLS",
    "CONNECTION_BROKEN",
    "ADDRESS_REFUSED",
    "HTTP_3XX",
    "HTTP_4XX",
    "HTTP_410",
    "HTTP_429",
    "HTTP_5XX",
    "OTHER",
];

fn kind_of(outcome: &Outcome) -> Option<usize> {
    let word = match outcome {
        Outcome::Delivered { .. } => return None,
        Outcome::Gone => "HTTP_410",
        Outcome::Retry { status: Some(429), .. } => "HTTP_429",
        Outcome::Retry { status: Some(300..=399), .. } => "HTTP_3XX",
        Outcome::Retry { status: Some(400..=499), .. } => "HTTP_4XX",
        Outcome::Retry { status: Some(500..), .. } => "HTTP_5XX",
        Outcome::Retry { reason, .. } => reason,
    };
    Some(KINDS.iter().position(|kind| *kind == word).unwrap_or(KINDS.len() - 1))
}

/// What is counted of attempts.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    delivered: u64,
    failures: [u32; KINDS.len()],
    retries: u64,
    body_bytes: u64,
    latencies: Latencies,
}

impl Figures {
    fn count(&mut self, attempt: u32, sent: &Sent) {
        match kind_of(&sent.outcome) {
            None => self.delivered += 1,
            Some(kind) => self.failures[kind] = self.failures[kind].saturating_add(1),
        }
        self.retries += u64::from(attempt > 1);
        self.body_bytes = self.body_bytes.saturating_add(sent.body_bytes);
        self.latencies.record(sent.latency);
    }
}

impl Counters for Figures {
    fn merge(&mut self, other: &Figures) {
        self.delivered += other.delivered;
        for (mine, theirs) in self.failures.iter_mut().zip(&other.failures) {
            *mine = mine.saturating_add(*theirs);
        }
        self.retries += other.retries;
        self.body_bytes = self.body_bytes.saturating_add(other.body_bytes);
        self.latencies.merge(&other.latencies);
    }
}

/// An endpoint's attempts in a window.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointMetrics {
    /// Since when these figures count: the begin of the window, on a full minute, or a full hour where the window is longer
    /// than one; later where the broker was started, or the subscription made, in between.
    #[serde(serialize_with = "super::endpoint::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub from: Timestamp,
    /// Until when: now.
    #[serde(serialize_with = "super::endpoint::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub to: Timestamp,
    /// Requests that were made.
    pub attempts: u64,
    /// Those that succeeded.
    pub delivered: u64,
    /// Those that did not.
    pub failed: u64,
    /// These by kind: `TIMEOUT`, `HTTP_5XX`, ….
    #[schema(value_type = std::collections::HashMap<String, u64>)]
    pub failures: BTreeMap<&'static str, u64>,
    /// Attempts that were not the first of their message.
    pub retries: u64,
    /// Share of attempts that succeeded, 0 to 1; none where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<f64>,
    /// Bytes of the bodies that were sent.
    pub body_bytes: u64,
    /// How long attempts took; none where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyFigures>,
}

/// How long attempts took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatencyFigures {
    /// Milliseconds that half of them took at most.
    pub p50_ms: f64,
    /// That nine in ten took at most.
    pub p90_ms: f64,
    /// That 99 in a hundred took at most.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl LatencyFigures {
    fn of(latencies: &Latencies) -> Option<LatencyFigures> {
        // Two digits after the point: the buckets are no finer.
        let ms = |latency: Duration| (latency.as_secs_f64() * 100_000.0).round() / 100.0;
        let quantile = |share| latencies.quantile(share).map(ms);
        Some(LatencyFigures {
            p50_ms: quantile(0.5)?,
            p90_ms: quantile(0.9)?,
            p99_ms: quantile(0.99)?,
            max_ms: latencies.max().map(ms)?,
        })
    }
}

/// The attempts of one endpoint over time.
#[derive(Debug)]
pub(super) struct History(Windowed<Figures>);

impl History {
    pub(super) fn new(now: Timestamp) -> History {
        History(Windowed::new(now))
    }

    pub(super) fn count(&mut self, now: Timestamp, attempt: u32, sent: &Sent) {
        self.0.record(now, |figures| figures.count(attempt, sent));
    }

    pub(super) fn metrics(&self, now: Timestamp, window: Duration) -> EndpointMetrics {
        let Sum { counted, from } = self.0.sum(now, window);
        let failures: BTreeMap<&'static str, u64> =
            KINDS.into_iter().zip(counted.failures.map(u64::from)).filter(|(_, count)| *count > 0).collect();
        let failed = failures.values().sum::<u64>();
        let attempts = counted.delivered + failed;
        EndpointMetrics {
            from,
            to: now,
            attempts,
            delivered: counted.delivered,
            failed,
            failures,
            retries: counted.retries,
            success_rate: (attempts > 0).then(|| counted.delivered as f64 / attempts as f64),
            body_bytes: counted.body_bytes,
            latency: LatencyFigures::of(&counted.latencies),
        }
    }
}

impl EndpointMetrics {
    /// Of an endpoint that nothing was sent to yet.
    #[must_use]
    pub fn none(now: Timestamp) -> EndpointMetrics {
        History::new(now).metrics(now, Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(outcome: Outcome, ms: u64) -> Sent {
        let latency = Duration::from_millis(ms);
        Sent { outcome, at: Timestamp(0), latency, status: None, body_start: String::new(), body_bytes: 100 }
    }

    fn retry(status: Option<u16>, reason: &str) -> Outcome {
        Outcome::Retry { status, reason: reason.into(), detail: "".into(), retry_after: None }
    }

    #[test]
    fn attempts_are_told_by_kind_for_as_long_as_they_are_in_the_window() {
        let start = Timestamp(1_699_999_200_000);
        let mut history = History::new(start);
        assert!(history.metrics(start, Duration::from_secs(3600)).latency.is_none());
        history.count(start, 1, &sent(Outcome::Delivered { status: 204 }, 10));
        let later = start.plus(Duration::from_secs(1800));
        let outcomes = [
            retry(Some(503), "HTTP_503"),
            retry(Some(404), "HTTP_404"),
            retry(Some(302), "HTTP_302"),
            retry(Some(429), "HTTP_429"),
            Outcome::Gone,
            retry(None, "TIMEOUT"),
            retry(Some(200), "CONNECTION_BROKEN"),
            retry(None, "INVALID"),
            retry(Some(101), "HTTP_101"),
        ];
        for outcome in outcomes {
            history.count(later, 2, &sent(outcome, 1000));
        }
        let hour = history.metrics(later, Duration::from_secs(3600));
        assert_eq!((hour.attempts, hour.delivered, hour.failed, hour.retries), (10, 1, 9, 9));
        assert_eq!((hour.success_rate, hour.body_bytes, hour.from), (Some(0.1), 1000, start));
        let one = |kind: &str| hour.failures.get(kind).copied().unwrap_or(0);
        for kind in ["HTTP_5XX", "HTTP_4XX", "HTTP_3XX", "HTTP_429", "HTTP_410", "TIMEOUT", "CONNECTION_BROKEN"] {
            assert_eq!(one(kind), 1, "{kind}");
        }
        assert_eq!(one("OTHER"), 2);
        assert_eq!(hour.latency.unwrap().max_ms, 1000.0);
        let minute = history.metrics(later, Duration::from_secs(60));
        assert_eq!((minute.attempts, minute.delivered, minute.success_rate), (9, 0, Some(0.0)));
    }
}
