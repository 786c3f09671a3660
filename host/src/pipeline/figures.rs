//! Figures of plugins' own, for `/metrics`. Invariant: a plugin has at most [`NAMES_MAX`] of them, each of one kind for as long
//! as the broker runs; what is left out is said once in the plugin's log. Never fails a call: a figure is no reason to.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, Result,
};

use super::plugin_log::{LogLevel, PluginLog};

/// Names of one plugin: `wit/sluice.wit` says so.
pub const NAMES_MAX: usize = 32;
/// Bytes of a name.
const NAME_BYTES_MAX: usize = 64;
/// What is measured is not known: by tens, from a thousandth (seconds) to a million (bytes), with a step in between where
/// most of it lies.
const BUCKETS: [f64; 14] =
    [0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0];

/// The families of all plugins.
#[derive(Debug, Clone)]
pub struct FigureFamilies {
    counters: IntCounterVec,
    gauges: GaugeVec,
    histograms: HistogramVec,
}

impl FigureFamilies {
    /// Makes and registers them.
    ///
    /// # Errors
    /// When one of the names is taken in `registry`.
    pub fn new(registry: &Registry) -> Result<FigureFamilies> {
        let labels = &["plugin", "name"];
        let opts = Opts::new("sluice_plugin_counter_total", "What a plugin counts itself, by its name for it.");
        let counters = IntCounterVec::new(opts, labels)?;
        let opts = Opts::new("sluice_plugin_gauge", "What a plugin measures itself, by its name for it.");
        let gauges = GaugeVec::new(opts, labels)?;
        let opts = HistogramOpts::new(
            "sluice_plugin_histogram",
            "What a plugin measures itself, how often in which range, by its name for it.",
        );
        let histograms = HistogramVec::new(opts.buckets(BUCKETS.to_vec()), labels)?;
        registry.register(Box::new(counters.clone()))?;
        registry.register(Box::new(gauges.clone()))?;
        registry.register(Box::new(histograms.clone()))?;
        Ok(FigureFamilies { counters, gauges, histograms })
    }
}

#[derive(Debug, Clone)]
enum Figure {
    Counter(IntCounter),
    Gauge(Gauge),
    Histogram(Histogram),
}

/// Those of one plugin, shared by its instances.
#[derive(Debug)]
pub struct Figures {
    plugin: Arc<str>,
    families: FigureFamilies,
    log: Arc<PluginLog>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<String, Figure>,
    /// Reasons that were said already: one each.
    said: HashSet<&'static str>,
}

impl Figures {
    /// Of `plugin`, which is told in its log what is left out.
    #[must_use]
    pub fn new(plugin: Arc<str>, families: FigureFamilies, log: Arc<PluginLog>) -> Arc<Figures> {
        Arc::new(Figures { plugin, families, log, state: Mutex::default() })
    }

    /// Adds to a counter. One that would overflow stays.
    pub fn add(&self, name: &str, by: u64) {
        let made = |labels: &[&str]| Figure::Counter(self.families.counters.with_label_values(labels));
        match self.figure(name, made) {
            Some(Figure::Counter(counter)) if counter.get().checked_add(by).is_some() => counter.inc_by(by),
            Some(Figure::Counter(_)) => self.left_out("a counter would overflow", name),
            Some(_) => self.left_out("it is of another kind already", name),
            None => {}
        }
    }

    /// Sets a gauge.
    pub fn set(&self, name: &str, value: f64) {
        if !value.is_finite() {
            return self.left_out("its value is no finite number", name);
        }
        match self.figure(name, |labels| Figure::Gauge(self.families.gauges.with_label_values(labels))) {
            Some(Figure::Gauge(gauge)) => gauge.set(value),
            Some(_) => self.left_out("it is of another kind already", name),
            None => {}
        }
    }

    /// Counts a value. A negative one would let the sum fall, which must only rise.
    pub fn observe(&self, name: &str, value: f64) {
        if !value.is_finite() {
            return self.left_out("its value is no finite number", name);
        }
        if value < 0.0 {
            return self.left_out("a histogram takes no negative value", name);
        }
        match self.figure(name, |labels| Figure::Histogram(self.families.histograms.with_label_values(labels))) {
            Some(Figure::Histogram(histogram)) => histogram.observe(value),
            Some(_) => self.left_out("it is of another kind already", name),
            None => {}
        }
    }

    fn figure(&self, name: &str, made: impl FnOnce(&[&str]) -> Figure) -> Option<Figure> {
        if !is_name(name) {
            self.left_out("a name is a small letter, then up to 63 of a-z, 0-9 and _", name);
            return None;
        }
        let full = {
            let mut state = self.state.lock();
            if let Some(known) = state.known.get(name) {
                return Some(known.clone());
            }
            if state.known.len() < NAMES_MAX {
                let figure = made(&[&*self.plugin, name]);
                state.known.insert(name.to_owned(), figure.clone());
                return Some(figure);
            }
            true
        };
        if full {
            self.left_out("a plugin has at most 32 names", name);
        }
        None
    }

    fn left_out(&self, why: &'static str, name: &str) {
        if self.state.lock().said.insert(why) {
            let name = super::limits::cut(name.to_owned(), NAME_BYTES_MAX);
            self.log.write(LogLevel::Warn, format!("the figure '{name}' is left out: {why} (said once)"));
        }
    }
}

fn is_name(name: &str) -> bool {
    let rest = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    name.len() <= NAME_BYTES_MAX && name.starts_with(|first: char| first.is_ascii_lowercase()) && name.bytes().all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, Timestamp};

    fn figures() -> (Registry, Arc<PluginLog>, Arc<Figures>) {
        let registry = Registry::new();
        let log = PluginLog::new("p".into(), Clock::fixed(Timestamp(0)));
        let figures = Figures::new("p".into(), FigureFamilies::new(&registry).unwrap(), Arc::clone(&log));
        (registry, log, figures)
    }

    fn series(registry: &Registry) -> usize {
        registry.gather().iter().map(|family| family.get_metric().len()).sum()
    }

    #[test]
    fn names_beyond_the_bound_and_bad_ones_are_left_out_and_said_once() {
        let (registry, log, figures) = figures();
        for n in 0..1000 {
            figures.add(&format!("n{n}"), 1);
            figures.set("Upper", 1.0);
            figures.observe(&"x".repeat(65), 1.0);
        }
        assert_eq!(series(&registry), NAMES_MAX);
        let lines = log.recent();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines.iter().any(|line| line.text.contains("n32") && line.text.contains("at most 32 names")));
    }

    #[test]
    fn a_figure_keeps_its_kind_and_takes_no_nonsense() {
        let (registry, log, figures) = figures();
        figures.add("a", 3);
        figures.add("a", u64::MAX);
        figures.set("a", 7.0);
        figures.observe("h", 2.0);
        for nonsense in [f64::NAN, f64::INFINITY, -1.0] {
            figures.observe("h", nonsense);
        }
        figures.set("g", -2.5);
        figures.set("g", f64::NAN);
        let value = |name: &str| {
            let families = registry.gather();
            families.into_iter().find(|family| family.name() == name).unwrap().take_metric().remove(0)
        };
        assert_eq!(value("sluice_plugin_counter_total").get_counter().get_value(), 3.0);
        assert_eq!(value("sluice_plugin_gauge").get_gauge().get_value(), -2.5);
        let histogram = value("sluice_plugin_histogram");
        assert_eq!(
            (histogram.get_histogram().get_sample_count(), histogram.get_histogram().get_sample_sum()),
            (1, 2.0)
        );
        assert_eq!(log.recent().len(), 4);
    }
}
