//! What `/metrics` says of Redis. Invariant: labels are words from a fixed list. Counts only; decides nothing.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// The figures.
pub(super) struct RedisMetrics {
    /// Whether it helps.
    pub(super) up: IntGauge,
    /// Calls that failed.
    pub(super) failures: IntCounter,
    /// Topics that others were told of.
    pub(super) told: IntCounter,
    /// Topics that others have told of, and that somebody waits for here.
    pub(super) heard: IntCounter,
    /// Changes of the catalog that others have told of.
    pub(super) changes: IntCounter,
    /// Requests counted over all brokers.
    pub(super) by_fleet: IntCounter,
    /// Requests counted by this one alone.
    pub(super) by_broker: IntCounter,
}

impl RedisMetrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<RedisMetrics> {
        let up = IntGauge::new("sluice_redis_up", "Whether Redis helps now: 1, or 0 while the broker does without.")?;
        let failures =
            IntCounter::new("sluice_redis_failures_total", "Calls that Redis refused or did not answer in time.")?;
        let wakes = IntCounterVec::new(
            Opts::new("sluice_redis_wakes_total", "What brokers told each other through Redis."),
            &["of"],
        )?;
        let counted = IntCounterVec::new(
            Opts::new("sluice_rate_limited_requests_total", "Requests under a rate limit, by who counted them."),
            &["by"],
        )?;
        registry.register(Box::new(up.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        registry.register(Box::new(wakes.clone()))?;
        registry.register(Box::new(counted.clone()))?;
        Ok(RedisMetrics {
            up,
            failures,
            told: wakes.with_label_values(&["told"]),
            heard: wakes.with_label_values(&["heard"]),
            changes: wakes.with_label_values(&["changes"]),
            by_fleet: counted.with_label_values(&["fleet"]),
            by_broker: counted.with_label_values(&["broker"]),
        })
    }
}
