//! What `/metrics` says of webhooks. Invariant: labels are words from a fixed list, never names that users choose. Counts
//! and measures only; decides nothing.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};

use super::breaker::BreakerState;
use super::sender::{Outcome, Sent};

/// Seconds: from a neighbour on the same machine to the usual `ackTimeout`.
const DURATION_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 30.0];

/// The metrics of all webhooks of this broker. Cheap to clone.
#[derive(Clone)]
pub struct PushMetrics {
    deliveries: IntCounterVec,
    duration: Histogram,
    in_flight: IntGauge,
    transitions: IntCounterVec,
    unsettled: IntCounterVec,
    waiting: IntGauge,
}

impl PushMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<PushMetrics> {
        let metrics = PushMetrics {
            deliveries: IntCounterVec::new(
                Opts::new(
                    "sluice_push_deliveries_total",
                    "Webhooks by outcome: delivered, retry, gone, expired unsent.",
                ),
                &["outcome"],
            )?,
            duration: Histogram::with_opts(
                HistogramOpts::new(
                    "sluice_push_duration_seconds",
                    "From the begin of a webhook to the end of its answer.",
                )
                .buckets(DURATION_BUCKETS.to_vec()),
            )?,
            in_flight: IntGauge::new("sluice_push_deliveries_in_flight", "Webhooks under way.")?,
            transitions: IntCounterVec::new(
                Opts::new("sluice_push_breaker_transitions_total", "Changes of endpoints' breakers, by the new state."),
                &["to"],
            )?,
            unsettled: IntCounterVec::new(
                Opts::new(
                    "sluice_push_unsettled_total",
                    "Settlements of webhooks that did not count: refused, failed.",
                ),
                &["reason"],
            )?,
            waiting: IntGauge::new(
                "sluice_push_waiting_endpoints",
                "Endpoints that wait because as many webhooks are under way as may be (push.requests_max).",
            )?,
        };
        registry.register(Box::new(metrics.deliveries.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.transitions.clone()))?;
        registry.register(Box::new(metrics.unsettled.clone()))?;
        registry.register(Box::new(metrics.waiting.clone()))?;
        Ok(metrics)
    }

    /// Webhooks under way.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.get().unsigned_abs()
    }

    /// How many endpoints wait for room.
    pub(super) fn waiting(&self) -> IntGauge {
        self.waiting.clone()
    }

    pub(super) fn begun(&self) {
        self.in_flight.inc();
    }

    pub(super) fn ended(&self) {
        self.in_flight.dec();
    }

    pub(super) fn sent(&self, sent: &Sent) {
        let outcome = match sent.outcome {
            Outcome::Delivered { .. } => "delivered",
            Outcome::Gone => "gone",
            Outcome::Retry { .. } => "retry",
        };
        self.deliveries.with_label_values(&[outcome]).inc();
        self.observe(sent.latency);
    }

    /// Leases ended before they could be sent.
    pub(super) fn expired(&self, count: usize) {
        self.deliveries.with_label_values(&["expired"]).inc_by(count as u64);
    }

    pub(super) fn breaker(&self, to: BreakerState) {
        self.transitions.with_label_values(&[to.as_str()]).inc();
    }

    pub(super) fn unsettled(&self, reason: &str, count: usize) {
        self.unsettled.with_label_values(&[reason]).inc_by(count as u64);
    }

    fn observe(&self, latency: Duration) {
        self.duration.observe(latency.as_secs_f64());
    }
}
