//! What plugins cost and say, for `/metrics`. Invariant: labels are plugin names (bounded by the registry) and fixed words.
//! Never labelled by topic, stage or message.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, Result,
};

use super::draft::FaultCause;

/// From a header-only stage over one message to the longest call that `timeoutMs` allows.
const RUN_BUCKETS: [f64; 12] =
    [0.000_01, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 5.0];
/// From a small instance to a script language's.
const COLD_BUCKETS: [f64; 8] = [0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.025, 0.1, 1.0];
/// From a small component to a script language's on a slow core.
const COMPILE_BUCKETS: [f64; 8] = [0.05, 0.1, 0.25, 1.0, 2.5, 5.0, 15.0, 60.0];

fn run_seconds() -> Result<HistogramVec> {
    let opts = HistogramOpts::new("sluice_plugin_run_duration_seconds", "Time of one batch in one stage.");
    HistogramVec::new(opts.buckets(RUN_BUCKETS.to_vec()), &["plugin"])
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
}

/// All of them.
#[derive(Debug, Clone)]
pub struct Metrics {
    runs: IntCounterVec,
    messages: IntCounterVec,
    faults: IntCounterVec,
    run_seconds: HistogramVec,
    instances: IntGaugeVec,
    cold_starts: IntCounterVec,
    /// How long a new instance takes until its first batch.
    pub cold_start_seconds: Histogram,
    /// How long a component takes to compile.
    pub compile_seconds: Histogram,
    reload_errors: IntCounterVec,
    /// Runs that were turned away because too much was waiting.
    pub overloads: IntCounter,
    /// Messages that wait for a worker.
    pub queued: IntGauge,
}

/// Those of one plugin, looked up once.
#[derive(Debug, Clone)]
pub struct PluginMetrics {
    /// Batches.
    pub runs: IntCounter,
    /// Messages that went on as they were.
    pub passed: IntCounter,
    /// Messages that went on, changed.
    pub changed: IntCounter,
    /// Messages that were dropped.
    pub dropped: IntCounter,
    /// Messages that were rejected.
    pub rejected: IntCounter,
    /// Messages that the stage failed on.
    pub faulted: IntCounter,
    /// Wall time of a batch in the stage.
    pub run_seconds: Histogram,
    /// Instances that exist.
    pub instances: IntGauge,
    /// Instances that were made.
    pub cold_starts: IntCounter,
    faults: [IntCounter; 5],
}

const CAUSES: [FaultCause; 5] =
    [FaultCause::Failed, FaultCause::TimedOut, FaultCause::OutOfMemory, FaultCause::Trapped, FaultCause::BreakerOpen];

impl PluginMetrics {
    /// Messages that failed for `cause`.
    #[must_use]
    pub fn faults(&self, cause: FaultCause) -> &IntCounter {
        let at = CAUSES.iter().position(|known| *known == cause).expect("CAUSES lists every cause");
        &self.faults[at]
    }
}

impl Metrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// When one of the names is taken in `registry`.
    pub fn new(registry: &Registry) -> Result<Metrics> {
        let counters = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let metrics = Metrics {
            runs: counters("sluice_plugin_runs_total", "Batches that a plugin's stages were given.", &["plugin"])?,
            messages: counters(
                "sluice_plugin_messages_total",
                "Messages that a plugin's stages were given, by what came of them.",
                &["plugin", "verdict"],
            )?,
            faults: counters(
                "sluice_plugin_faults_total",
                "Messages that a plugin's stages failed on.",
                &["plugin", "cause"],
            )?,
            run_seconds: run_seconds()?,
            instances: IntGaugeVec::new(
                Opts::new("sluice_plugin_instances", "Instances of a plugin that exist."),
                &["plugin"],
            )?,
            cold_starts: counters(
                "sluice_plugin_cold_starts_total",
                "Instances of a plugin that were made.",
                &["plugin"],
            )?,
            cold_start_seconds: histogram(
                "sluice_plugin_cold_start_seconds",
                "Time to make and configure an instance.",
                &COLD_BUCKETS,
            )?,
            compile_seconds: histogram(
                "sluice_plugin_compile_seconds",
                "Time to compile a component.",
                &COMPILE_BUCKETS,
            )?,
            reload_errors: counters(
                "sluice_plugin_reload_errors_total",
                "Files in the plugin directory and uploads that were not accepted.",
                &["plugin"],
            )?,
            overloads: IntCounter::new(
                "sluice_plugin_overloads_total",
                "Runs turned away because the queue was full.",
            )?,
            queued: IntGauge::new("sluice_plugin_queued_messages", "Messages that wait for a plugin worker.")?,
        };
        metrics.register(registry)?;
        Ok(metrics)
    }

    fn register(&self, registry: &Registry) -> Result<()> {
        registry.register(Box::new(self.runs.clone()))?;
        registry.register(Box::new(self.messages.clone()))?;
        registry.register(Box::new(self.faults.clone()))?;
        registry.register(Box::new(self.run_seconds.clone()))?;
        registry.register(Box::new(self.instances.clone()))?;
        registry.register(Box::new(self.cold_starts.clone()))?;
        registry.register(Box::new(self.cold_start_seconds.clone()))?;
        registry.register(Box::new(self.compile_seconds.clone()))?;
        registry.register(Box::new(self.reload_errors.clone()))?;
        registry.register(Box::new(self.overloads.clone()))?;
        registry.register(Box::new(self.queued.clone()))
    }

    /// Those of `plugin`, a name that the registry knows.
    #[must_use]
    pub fn of(&self, plugin: &str) -> PluginMetrics {
        let messages = |verdict| self.messages.with_label_values(&[plugin, verdict]);
        PluginMetrics {
            runs: self.runs.with_label_values(&[plugin]),
            passed: messages("pass"),
            changed: messages("changed"),
            dropped: messages("dropped"),
            rejected: messages("rejected"),
            faulted: messages("fault"),
            run_seconds: self.run_seconds.with_label_values(&[plugin]),
            instances: self.instances.with_label_values(&[plugin]),
            cold_starts: self.cold_starts.with_label_values(&[plugin]),
            faults: CAUSES.map(|cause| self.faults.with_label_values(&[plugin, cause.as_str()])),
        }
    }

    /// A component of `plugin` was not accepted; without a name if it is none.
    pub fn reload_error(&self, plugin: Option<&str>) {
        self.reload_errors.with_label_values(&[plugin.unwrap_or("")]).inc();
    }

    /// A component took `took` to compile.
    pub fn compiled(&self, took: Duration) {
        self.compile_seconds.observe(took.as_secs_f64());
    }
}
