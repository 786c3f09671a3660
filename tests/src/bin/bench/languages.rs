//! The worked examples of plugins, which are one header filter in four languages: what a message costs in each with nothing in
//! its way, and what their instances need. Invariant: all get the same messages under the same config, in turn; each is built
//! by its own language's tools, and one that can't be installed ends the run. The native side is a function over the same
//! headers, on one thread.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use sluice::pipeline::trial::Loaded;
use sluice_tests::workshop::Workshop;

use super::PAIRS;
use super::load::median;
use super::report::{Budget, Report, Row, short};
use super::stages::{BATCH, payload};
use super::warm_stage::Bench;

/// As they are called, and the folder of each below `plugins/examples`.
const LANGUAGES: [(&str, &str); 4] =
    [("Rust", "header-filter"), ("C", "c"), ("JavaScript", "js"), ("Python", "python")];
/// A usual batch, and the most that the broker hands to one call.
const BATCHES: [usize; 2] = [BATCH, 128];
const NATIVE_MESSAGES: usize = 1_000_000;

/// What a language's example came to.
struct Example {
    language: &'static str,
    component_bytes: usize,
    loaded: Arc<Loaded>,
    cold_start_ms: f64,
    memory_bytes: usize,
    /// By [`BATCHES`], one a pair.
    microseconds: [Vec<f64>; 2],
}

/// The rows.
pub async fn rows(report: &mut Report) {
    let (bench, workshop) = (Bench::new(), Workshop::with_examples("bench"));
    let mut examples = Vec::new();
    for (language, folder) in LANGUAGES {
        examples.push(bring(&bench, &workshop, language, folder).await);
    }
    let mut native = Vec::new();
    for _ in 0..PAIRS {
        for example in &mut examples {
            for (batch, figures) in BATCHES.into_iter().zip(&mut example.microseconds) {
                figures.push(bench.microseconds(&example.loaded, "bench.example", &config(), batch).0);
            }
        }
        native.push(native_microseconds());
    }
    for example in &examples {
        report_time(report, example, &native);
    }
    for example in &examples {
        report_needs(report, example);
    }
}

fn config() -> Value {
    json!({"header": "a", "value": "1"})
}

/// Builds an example and compiles it.
async fn bring(bench: &Bench, workshop: &Workshop, language: &'static str, folder: &str) -> Example {
    let built = workshop.done(&["build", &format!("plugins/examples/{folder}")]);
    let component = workshop.dir.join(built["component"].as_str().expect("it says what it built"));
    let component = std::fs::read(component).expect("it was built");
    let component_bytes = component.len();
    let loaded = bench.load(component).await;
    let (_, tried) = bench.microseconds(&loaded, "bench.example", &config(), BATCH);
    let cold_start_ms = tried.start.as_secs_f64() * 1000.0;
    let (memory_bytes, microseconds) = (tried.memory_bytes, [Vec::new(), Vec::new()]);
    Example { language, component_bytes, loaded, cold_start_ms, memory_bytes, microseconds }
}

fn report_time(report: &mut Report, example: &Example, native: &[f64]) {
    for (batch, figures) in BATCHES.into_iter().zip(&example.microseconds) {
        report.add(Row {
            work: format!("the header filter in {}, {} B, batches of {batch}", example.language, payload().len()),
            ours: format!("{:.2} µs a message", median(figures.clone())),
            baseline: format!("a native function, one thread: {:.3} µs", median(native.to_vec())),
            figures: figures.clone(),
            unit: "µs",
            budget: Budget::None,
        });
    }
}

fn report_needs(report: &mut Report, example: &Example) {
    let compiled = example.loaded.compiled_in.expect("nothing was kept of a run before").as_secs_f64();
    for (what, figure, unit) in [
        ("making and configuring an instance", example.cold_start_ms, "ms"),
        ("the most memory that an instance held", example.memory_bytes as f64 / 1e6, "MB"),
        ("bytes of the component", example.component_bytes as f64 / 1024.0, "KiB"),
        ("compiling it, once", compiled, "s"),
    ] {
        report.add(Row {
            work: format!("the header filter in {}: {what}", example.language),
            ours: format!("{} {unit}", short(figure)),
            baseline: "nothing".to_owned(),
            figures: vec![figure],
            unit,
            budget: Budget::None,
        });
    }
}

/// What the filter does, of headers in a map: looks one up and compares it.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn native_microseconds() -> f64 {
    let headers = || BTreeMap::from([("a".to_owned(), "1".to_owned())]);
    let batch: Vec<BTreeMap<String, String>> = (0..BATCH).map(|_| headers()).collect();
    let (rounds, begun) = (NATIVE_MESSAGES / BATCH, Instant::now());
    for _ in 0..rounds {
        for headers in black_box(&batch) {
            assert!(black_box(headers.get(black_box("a")).is_some_and(|value| value == black_box("1"))));
        }
    }
    begun.elapsed().as_secs_f64() * 1e6 / (rounds * BATCH) as f64
}
