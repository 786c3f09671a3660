//! What each plugin that comes with the binary costs per message: in the broker's own pipeline, batch after batch, beside the
//! same crate run natively on the same messages, each on one thread. Invariant: both sides get batches of sixteen of the same
//! payload under the same config. Never compares plugins with each other: they do different work.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sluice_tests::binary::{repository, target_dir};
use sluice_tests::guest;

use super::PAIRS;
use super::load::median;
use super::report::{Budget, Report, Row};
use super::stages::{BATCH, payload};
use super::warm_stage::Bench;

/// What each one does to the payload.
fn cases() -> [(&'static str, Value); 7] {
    let schema = json!({"type": "object", "required": ["orderId", "amount", "items"], "properties": {
        "amount": {"type": "integer", "minimum": 1},
        "currency": {"enum": ["EUR", "USD"]},
        "items": {"type": "array", "items": {"type": "object", "required": ["sku", "count"], "properties": {
            "sku": {"type": "string", "pattern": "^article-[0-9]{4}$"}, "count": {"type": "integer"}}}},
    }});
    let rules =
        json!([{"pointer": "/items/*/note", "action": "mask"}, {"pointer": "/customer/name", "action": "hash"}]);
    [
        ("cloudevents", json!({"to": "structured", "typePointer": "/currency"})),
        // Of which all but the first were seen before.
        ("dedup", json!({"pointer": "/orderId", "window": "P1D"})),
        ("filter", json!({"headerMatches": {"a": "1"}, "payloadQuery": "$.amount > 100"})),
        ("jq", json!({"program": "{orderId, amount, skus: [.items[].sku]}"})),
        ("json-schema", json!({"schema": schema})),
        ("redact", json!({"rules": rules, "hashKey": "a key of thirty-two bytes or so."})),
        ("sample", json!({"rate": 1, "pointer": "/orderId"})),
    ]
}

/// A row for each; DESIGN §10 has the limit for JSON filters, which is held against all of them.
pub async fn rows(report: &mut Report) {
    let (bench, measurer) = (Bench::new(), measurer());
    for (plugin, config) in cases() {
        let loaded = bench.load(guest::first_party(plugin)).await;
        let (mut wasm, mut natively) = (Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            wasm.push(bench.microseconds(&loaded, plugin, &config, BATCH).0);
            natively.push(native(&measurer, plugin, &config));
        }
        report.add(Row {
            work: format!("`{plugin}` with `{config}`, {} B, batches of {BATCH}", payload().len()),
            ours: format!("{:.2} µs a message", median(wasm.clone())),
            baseline: format!("the same crate natively: {:.2} µs", median(natively.clone())),
            figures: wasm.iter().zip(&natively).map(|(wasm, native)| wasm / native).collect(),
            unit: "×",
            budget: Budget::None,
        });
    }
}

/// The program in `plugins/native` that runs a plugin natively, built as the components are: for speed.
fn measurer() -> PathBuf {
    let (manifest, target) = (repository().join("plugins/Cargo.toml"), target_dir().join("native"));
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--locked", "--package", "native", "--example", "measure", "--manifest-path"]);
    cargo.arg(manifest).arg("--target-dir").arg(&target);
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(name);
    }
    assert!(cargo.status().expect("cargo runs").success(), "the plugins build natively");
    target.join("release/examples/measure")
}

/// Microseconds a message, natively.
fn native(measurer: &Path, plugin: &str, config: &Value) -> f64 {
    let work = json!({"plugin": plugin, "config": config, "payload": payload(), "headers": {"a": "1"}, "batch": BATCH});
    let mut child = Command::new(measurer).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("it was piped");
    stdin.write_all(work.to_string().as_bytes()).expect("it reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.trim().parse().unwrap_or_else(|error| panic!("{plugin}: {error}: {said}"))
}
