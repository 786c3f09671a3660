//! What each plugin that comes with the binary costs per message: the time that the broker itself counts for its calls, beside
//! the same crate run natively on the same messages, in memory, on one thread. Invariant: both sides get batches of sixteen of
//! the same payload under the same config. Never compares plugins with each other: they do different work.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sluice_tests::binary::{repository, target_dir};
use sluice_tests::{Broker, Client};

use super::load::{self, Target, Work, median};
use super::report::{Budget, Report, Row};
use super::stages::{BATCH, payload};
use super::{PAIRS, ROUND};

/// What each one does to the payload.
fn cases() -> [(&'static str, Value); 6] {
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
        ("filter", json!({"headerMatches": {"a": "1"}, "payloadQuery": "$.amount > 100"})),
        ("jq", json!({"program": "{orderId, amount, skus: [.items[].sku]}"})),
        ("json-schema", json!({"schema": schema})),
        ("redact", json!({"rules": rules, "hashKey": "a key of thirty-two bytes or so."})),
        ("sample", json!({"rate": 1, "pointer": "/orderId"})),
    ]
}

/// A row for each.
pub async fn rows(report: &mut Report) {
    let (broker, measurer) = (Broker::start().await, measurer());
    for (plugin, config) in cases() {
        broker.create_topic(plugin, "Queue").await;
        let stage = json!({"name": "s", "plugin": plugin, "version": "latest", "config": config.clone()});
        broker.put_pipeline(plugin, json!([stage])).await;
        let (mut wasm, mut natively) = (Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            wasm.push(microseconds(&broker, plugin).await);
            natively.push(native(&measurer, plugin, &config));
        }
        report.add(Row {
            work: format!("`{plugin}` with `{config}`, {} B, batches of {BATCH}", payload().len()),
            ours: format!("{:.2} µs a message", median(wasm.clone())),
            baseline: format!("the same crate natively: {:.2} µs", median(natively.clone())),
            figures: wasm.iter().zip(&natively).map(|(wasm, native)| wasm / native).collect(),
            unit: "×",
            budget: Budget::AtMost(3.0),
        });
    }
}

/// Of the plugin's time, over one round.
async fn microseconds(broker: &Broker, plugin: &str) -> f64 {
    let message = json!({"topicName": plugin, "payload": payload(), "headers": {"a": "1"}});
    let body = json!({"messages": vec![message; BATCH]}).to_string();
    let target = Target::of(broker);
    let request = target.request("POST", "/messages/publish/batch", body.as_bytes());
    let before = spent(broker, plugin).await;
    load::run(&target, &Work::Publish { request, status: 200, messages: BATCH }, 1, ROUND).await;
    let after = spent(broker, plugin).await;
    assert!(after.1 > before.1, "{plugin} has run");
    (after.0 - before.0) * 1e6 / (after.1 - before.1)
}

/// Seconds that the plugin's calls took so far, and its messages.
async fn spent(client: &Client, plugin: &str) -> (f64, f64) {
    let answer = client.get("//metrics").await;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let label = format!("plugin=\"{plugin}\"");
    let sum = |name: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(&label));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    (sum("sluice_plugin_run_duration_seconds_sum"), sum("sluice_plugin_messages_total"))
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
