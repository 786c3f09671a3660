//! What plugins cost and say, for `/metrics`. Invariant: labels are plugin names (bounded by the registry), the versions that
//! stages run at the moment and some that they ran last, and fixed words. Never labelled by topic, stage or message.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    Result,
};

use super::draft::FaultCause;
use super::rollout::Figures;

/// From a header-only stage over one message to the longest call that `timeoutMs` allows.
const RUN_BUCKETS: [f64; 12] =
    [0.000_01, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 5.0];
/// From a small instance to a script language's.
const COLD_BUCKETS: [f64; 8] = [0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.025, 0.1, 1.0];
/// From a small component to a script language's on a slow core.
const COMPILE_BUCKETS: [f64; 8] = [0.05, 0.1, 0.25, 1.0, 2.5, 5.0, 15.0, 60.0];

/// Versions that are told though nothing runs them any more: one that comes back goes on counting where it was.
const RETIRED_MAX: usize = 32;
/// What is known of each version that runs.
const VERSION: [&str; 2] = ["plugin", "version"];

fn run_seconds() -> Result<HistogramVec> {
    let opts = HistogramOpts::new("sluice_plugin_run_duration_seconds", "Time of one batch in one stage.");
    HistogramVec::new(opts.buckets(RUN_BUCKETS.to_vec()), &VERSION)
}

fn cold_start_seconds() -> Result<HistogramVec> {
    let opts = HistogramOpts::new("sluice_plugin_cold_start_seconds", "Time to make and configure an instance.");
    HistogramVec::new(opts.buckets(COLD_BUCKETS.to_vec()), &VERSION)
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
}

/// All of them.
#[derive(Debug, Clone)]
pub struct Metrics {
    versions: Arc<Versions>,
    /// How long a component takes to compile. It is no version yet: `compiled_in` tells those that became one.
    pub compile_seconds: Histogram,
    reload_errors: IntCounterVec,
    /// Runs that were turned away because too much was waiting.
    pub overloads: IntCounter,
    /// Messages that wait for a worker.
    pub queued: IntGauge,
}

/// Those that are told apart by version.
#[derive(Debug)]
struct Versions {
    runs: IntCounterVec,
    messages: IntCounterVec,
    emitted: IntCounterVec,
    faults: IntCounterVec,
    run_seconds: HistogramVec,
    instances: IntGaugeVec,
    cold_starts: IntCounterVec,
    cold_start_seconds: HistogramVec,
    memory: IntGaugeVec,
    compiled_in: GaugeVec,
    told: Mutex<Told>,
}

/// The versions that are told, by plugin and version.
#[derive(Debug, Default)]
struct Told {
    /// Those that stages run.
    live: HashMap<(String, String), Weak<PluginMetrics>>,
    /// Those that they ran, the first to go first.
    retired: VecDeque<(String, String)>,
}

/// Those of one version of a plugin, looked up once and shared by its stages.
#[derive(Debug)]
pub struct PluginMetrics {
    of: Arc<Versions>,
    /// Plugin and version.
    name: (String, String),
    /// Batches.
    pub runs: IntCounter,
    /// Messages that went on as they were.
    passed: IntCounter,
    /// Messages that went on, changed.
    changed: IntCounter,
    /// Messages that were dropped.
    dropped: IntCounter,
    /// Messages that were rejected.
    rejected: IntCounter,
    /// Messages that the stage failed on.
    faulted: IntCounter,
    /// Messages that were emitted.
    emitted: IntCounter,
    /// Wall time of a batch in the stage.
    pub run_seconds: Histogram,
    /// Instances that exist.
    pub instances: IntGauge,
    /// Instances that were made.
    pub cold_starts: IntCounter,
    /// How long a new instance takes until its first batch.
    pub cold_start_seconds: Histogram,
    memory: IntGauge,
    faults: [IntCounter; 5],
}

const VERDICTS: [&str; 5] = ["pass", "changed", "dropped", "rejected", "fault"];
const CAUSES: [FaultCause; 5] =
    [FaultCause::Failed, FaultCause::TimedOut, FaultCause::OutOfMemory, FaultCause::Trapped, FaultCause::BreakerOpen];

impl PluginMetrics {
    /// What a run made of its messages.
    pub fn count(&self, run: &Figures) {
        let of = [&self.passed, &self.changed, &self.dropped, &self.rejected, &self.faulted, &self.emitted];
        let counts = [run.passed, run.changed, run.dropped, run.rejected, run.faulted, run.emitted];
        for (counter, count) in of.into_iter().zip(counts).filter(|(_, count)| *count > 0) {
            counter.inc_by(count);
        }
    }

    /// Messages that failed for `cause`.
    #[must_use]
    pub fn faults(&self, cause: FaultCause) -> &IntCounter {
        let at = CAUSES.iter().position(|known| *known == cause).expect("CAUSES lists every cause");
        &self.faults[at]
    }

    /// An instance holds so many bytes.
    pub fn holds(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        // Two at once may each find the other's lower: the next one to say how much it holds mends that.
        if bytes > self.memory.get() {
            self.memory.set(bytes);
        }
    }

    /// The version was compiled since this broker started.
    pub fn compiled_in(&self, took: Duration) {
        self.of.compiled_in.with_label_values(&self.labels()).set(took.as_secs_f64());
    }

    fn labels(&self) -> [&str; 2] {
        [&self.name.0, &self.name.1]
    }
}

impl Drop for PluginMetrics {
    fn drop(&mut self) {
        let mut told = self.of.told.lock();
        // Others may have been made for the same version in the meantime.
        if told.live.get(&self.name).is_none_or(|others| others.strong_count() == 0) {
            told.live.remove(&self.name);
            told.retired.push_back(self.name.clone());
            if told.retired.len() > RETIRED_MAX
                && let Some((plugin, version)) = told.retired.pop_front()
            {
                self.of.forget([&plugin, &version]);
            }
        }
    }
}

impl Versions {
    fn new() -> Result<Versions> {
        let counters = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let gauges = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &VERSION);
        Ok(Versions {
            runs: counters("sluice_plugin_runs_total", "Batches that a plugin's stages were given.", &VERSION)?,
            messages: counters(
                "sluice_plugin_messages_total",
                "Messages that a plugin's stages were given, by what came of them.",
                &["plugin", "version", "verdict"],
            )?,
            emitted: counters("sluice_plugin_emitted_total", "Messages that a plugin's stages emitted.", &VERSION)?,
            faults: counters(
                "sluice_plugin_faults_total",
                "Messages that a plugin's stages failed on.",
                &["plugin", "version", "cause"],
            )?,
            run_seconds: run_seconds()?,
            instances: gauges("sluice_plugin_instances", "Instances of a plugin that exist.")?,
            cold_starts: counters(
                "sluice_plugin_cold_starts_total",
                "Instances of a plugin that were made.",
                &VERSION,
            )?,
            cold_start_seconds: cold_start_seconds()?,
            memory: gauges("sluice_plugin_memory_high_water_bytes", "The most that an instance has held.")?,
            compiled_in: GaugeVec::new(
                Opts::new("sluice_plugin_compiled_in_seconds", "Time that compiling took, if it was since the start."),
                &VERSION,
            )?,
            told: Mutex::default(),
        })
    }

    fn register(&self, registry: &Registry) -> Result<()> {
        registry.register(Box::new(self.runs.clone()))?;
        registry.register(Box::new(self.messages.clone()))?;
        registry.register(Box::new(self.emitted.clone()))?;
        registry.register(Box::new(self.faults.clone()))?;
        registry.register(Box::new(self.run_seconds.clone()))?;
        registry.register(Box::new(self.instances.clone()))?;
        registry.register(Box::new(self.cold_starts.clone()))?;
        registry.register(Box::new(self.cold_start_seconds.clone()))?;
        registry.register(Box::new(self.memory.clone()))?;
        registry.register(Box::new(self.compiled_in.clone()))
    }

    /// Nothing runs this version any more. What was never said of it is not there to be removed.
    fn forget(&self, of: [&str; 2]) {
        let [plugin, version] = of;
        let _ = self.runs.remove_label_values(&of);
        let _ = self.emitted.remove_label_values(&of);
        let _ = self.run_seconds.remove_label_values(&of);
        let _ = self.instances.remove_label_values(&of);
        let _ = self.cold_starts.remove_label_values(&of);
        let _ = self.cold_start_seconds.remove_label_values(&of);
        let _ = self.memory.remove_label_values(&of);
        let _ = self.compiled_in.remove_label_values(&of);
        for verdict in VERDICTS {
            let _ = self.messages.remove_label_values(&[plugin, version, verdict]);
        }
        for cause in CAUSES {
            let _ = self.faults.remove_label_values(&[plugin, version, cause.as_str()]);
        }
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
            versions: Arc::new(Versions::new()?),
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
        self.versions.register(registry)?;
        registry.register(Box::new(self.compile_seconds.clone()))?;
        registry.register(Box::new(self.reload_errors.clone()))?;
        registry.register(Box::new(self.overloads.clone()))?;
        registry.register(Box::new(self.queued.clone()))
    }

    /// Those of a version of `plugin`, a name that the registry knows: a stage runs it.
    #[must_use]
    pub fn of(&self, plugin: &str, version: &str) -> Arc<PluginMetrics> {
        let name = (plugin.to_owned(), version.to_owned());
        let mut told = self.versions.told.lock();
        if let Some(known) = told.live.get(&name).and_then(Weak::upgrade) {
            return known;
        }
        told.retired.retain(|retired| *retired != name);
        let (of, labels) = (&self.versions, [plugin, version]);
        let messages = |verdict| of.messages.with_label_values(&[plugin, version, verdict]);
        let made = Arc::new(PluginMetrics {
            of: Arc::clone(of),
            runs: of.runs.with_label_values(&labels),
            passed: messages("pass"),
            changed: messages("changed"),
            dropped: messages("dropped"),
            rejected: messages("rejected"),
            faulted: messages("fault"),
            emitted: of.emitted.with_label_values(&labels),
            run_seconds: of.run_seconds.with_label_values(&labels),
            instances: of.instances.with_label_values(&labels),
            cold_starts: of.cold_starts.with_label_values(&labels),
            cold_start_seconds: of.cold_start_seconds.with_label_values(&labels),
            memory: of.memory.with_label_values(&labels),
            faults: CAUSES.map(|cause| of.faults.with_label_values(&[plugin, version, cause.as_str()])),
            name: name.clone(),
        });
        told.live.insert(name, Arc::downgrade(&made));
        made
    }

    /// Instances of `plugin` that exist, of all versions.
    #[must_use]
    pub fn instances_of(&self, plugin: &str) -> i64 {
        // They are let go of outside of the lock: the last one takes it.
        let live: Vec<_> = {
            let told = self.versions.told.lock();
            told.live.iter().filter(|(name, _)| name.0 == plugin).filter_map(|(_, live)| live.upgrade()).collect()
        };
        live.iter().map(|of_version| of_version.instances.get()).sum()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_nothing_runs_are_told_for_a_while_and_then_no_more() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let series = |version: &str| {
            let families = registry.gather();
            let all = families.iter().flat_map(|family| family.get_metric());
            all.filter(|metric| metric.get_label().iter().any(|label| label.value() == version)).count()
        };
        let (first, again) = (metrics.of("p", "1.0.0"), metrics.of("p", "1.0.0"));
        first.instances.inc();
        first.compiled_in(Duration::from_secs(1));
        first.holds(10);
        first.holds(5);
        assert_eq!((first.memory.get(), metrics.instances_of("p")), (10, 1));
        let all = series("1.0.0");
        drop((first, again));
        assert_eq!(metrics.of("p", "1.0.0").memory.get(), 10, "it goes on where it was");
        for n in 0..RETIRED_MAX {
            assert_eq!(series("1.0.0"), all);
            drop(metrics.of("p", &format!("2.0.{n}")));
        }
        assert_eq!(series("1.0.0"), 0);
        let told = metrics.versions.told.lock();
        assert_eq!((told.live.len(), told.retired.len()), (0, RETIRED_MAX));
    }
}
