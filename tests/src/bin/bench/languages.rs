//! The worked examples of plugins, which are one header filter in four languages: what a message costs in each, as the broker
//! counts it, and what their instances need. Invariant: all get the same messages under the same config, in turn; each is built
//! by its own language's tools, and one that can't be installed ends the run. The native side is a function over the same
//! headers, on one thread.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use http::Method;
use serde_json::json;
use sluice_tests::workshop::Workshop;
use sluice_tests::{Broker, wait};

use super::load::median;
use super::report::{Budget, Report, Row, short};
use super::stages::{BATCH, microseconds, payload};
use super::{PAIRS, PATIENCE};

/// As they are called, and the folder of each below `plugins/examples`.
const LANGUAGES: [(&str, &str); 4] =
    [("Rust", "header-filter"), ("C", "c"), ("JavaScript", "js"), ("Python", "python")];
/// A usual batch, and the most that the broker hands to one call.
const BATCHES: [usize; 2] = [BATCH, 128];
/// DESIGN §10, of what the SDK makes of a stage that looks at one header.
const BUDGET_MICROSECONDS: f64 = 0.15;
const NATIVE_MESSAGES: usize = 1_000_000;

/// What a language's example came to.
struct Example {
    language: &'static str,
    /// The plugin's name and the topic's.
    name: String,
    component_bytes: usize,
    cold_start_ms: f64,
    compile_seconds: f64,
    /// By [`BATCHES`], one a pair.
    microseconds: [Vec<f64>; 2],
}

/// The rows.
pub async fn rows(report: &mut Report) {
    let (broker, workshop) = (Broker::start().await, Workshop::with_examples("bench"));
    let mut examples = Vec::new();
    for (language, folder) in LANGUAGES {
        examples.push(bring(&broker, &workshop, language, folder).await);
    }
    let mut native = Vec::new();
    for _ in 0..PAIRS {
        for example in &mut examples {
            for (batch, figures) in BATCHES.into_iter().zip(&mut example.microseconds) {
                figures.push(microseconds(&broker, &example.name, &example.name, batch).await);
            }
        }
        native.push(native_microseconds());
    }
    for example in &examples {
        report_time(report, example, &native);
    }
    for example in &examples {
        report_needs(report, &broker, example).await;
    }
}

/// Builds an example, uploads it and has a topic run it.
async fn bring(broker: &Broker, workshop: &Workshop, language: &'static str, folder: &str) -> Example {
    let name = format!("bench.{folder}");
    let built = workshop.done(&["build", &format!("plugins/examples/{folder}")]);
    let component = workshop.dir.join(built["component"].as_str().expect("it says what it built"));
    let component = std::fs::read(component).expect("it was built");
    let component_bytes = component.len();
    let path = format!("/plugins/{name}/versions?version=1.0.0");
    let compiled = broker.metric("sluice_plugin_compile_seconds_sum").await.unwrap_or_default();
    let headers = [("content-type", "application/wasm")];
    if let Ok(answer) = broker.try_send(Method::POST, &path, &headers, component).await {
        answer.expect(201);
    }
    // On a busy machine a client may lose its patience; what has come is carried to its end.
    let path = format!("/plugins/{name}/versions/1.0.0");
    wait::within(PATIENCE, "the example is compiled", async || (broker.get(&path).await.status == 200).then_some(()))
        .await;
    let compile_seconds = broker.metric("sluice_plugin_compile_seconds_sum").await.unwrap_or_default() - compiled;
    broker.create_topic(&name, "Queue").await;
    let before = cold_starts(broker).await;
    let config = json!({"header": "a", "value": "1"});
    let stage = json!({"name": "f", "plugin": name, "version": "1.0.0", "config": config, "timeoutMs": 5000});
    broker.put_pipeline(&name, json!([stage])).await;
    broker.publish(&name, payload()).header("a", "1").await;
    let after = cold_starts(broker).await;
    assert!(after.1 > before.1, "an instance was made for it");
    let cold_start_ms = (after.0 - before.0) * 1000.0 / (after.1 - before.1);
    let microseconds = [Vec::new(), Vec::new()];
    Example { language, name, component_bytes, cold_start_ms, compile_seconds, microseconds }
}

/// Seconds that making instances took so far, and how many.
async fn cold_starts(broker: &Broker) -> (f64, f64) {
    let of = async |what: &str| broker.metric_sum(&format!("sluice_plugin_cold_start_seconds_{what}{{")).await;
    (of("sum").await, of("count").await)
}

fn report_time(report: &mut Report, example: &Example, native: &[f64]) {
    for (batch, figures) in BATCHES.into_iter().zip(&example.microseconds) {
        report.add(Row {
            work: format!("the header filter in {}, {} B, batches of {batch}", example.language, payload().len()),
            ours: format!("{:.2} µs a message", median(figures.clone())),
            baseline: format!("a native function, one thread: {:.3} µs", median(native.to_vec())),
            figures: figures.clone(),
            unit: "µs",
            budget: if example.language == "Rust" { Budget::AtMost(BUDGET_MICROSECONDS) } else { Budget::None },
        });
    }
}

async fn report_needs(report: &mut Report, broker: &Broker, example: &Example) {
    let high = format!("sluice_plugin_memory_high_water_bytes{{plugin=\"{}\"", example.name);
    let megabytes = broker.metric_sum(&high).await / 1e6;
    let bytes = example.component_bytes as f64;
    for (what, figure, unit) in [
        ("making and configuring an instance", example.cold_start_ms, "ms"),
        ("the most memory that an instance held", megabytes, "MB"),
        ("bytes of the component", bytes / 1024.0, "KiB"),
        ("compiling it, once", example.compile_seconds, "s"),
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
