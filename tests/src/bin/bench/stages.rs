//! What a stage costs per message: with nothing in its way, and in a broker that has nothing else to do, as that counts it
//! itself. Invariant: all get batches of sixteen of the same message, so that a call is one batch; a header is read by column,
//! a payload is held beside native loops that evaluate the same query on the same text on one thread: one that parses it, as the
//! design's prototype did, and one that skips what the query does not ask for, as the stage does.

use std::hint::black_box;
use std::time::Instant;

use payload_query::Query;
use serde_json::{Value, json};
use sluice_tests::{Broker, Client, guest};

use super::load::{self, Target, Work, median};
use super::report::{Budget, Report, Row};
use super::warm_stage::Bench;
use super::{PAIRS, ROUND};

pub const BATCH: usize = 16;
const QUERY: &str = "$.amount > 100";
const NATIVE_ROUNDS: usize = 50_000;

/// A payload of about 1 KiB, of some fields.
pub fn payload() -> String {
    let items: Vec<Value> = (0..8)
        .map(|n| json!({"sku": format!("article-{n:04}"), "count": n, "price": 12.5, "note": "as it was ordered last time"}))
        .collect();
    json!({"orderId": "018bcfe5-68fa-7000-8000-000000000000", "amount": 250, "currency": "EUR", "customer":
        {"name": "A Customer", "city": "Some Town"}, "items": items, "comment": "x".repeat(120)})
    .to_string()
}

/// A row for each of the two, and what a broker counts.
pub async fn rows(report: &mut Report) {
    let column = json!({"headerMatches": {"a": "1"}});
    let query = json!({"payloadQuery": QUERY});
    let (broker, bench) = (Broker::start().await, Bench::new());
    let filter = bench.load(guest::first_party("filter")).await;
    for (topic, config) in [("by-column", &column), ("by-query", &query)] {
        broker.create_topic(topic, "Queue").await;
        let stage = json!({"name": "f", "plugin": "filter", "version": "latest", "config": config});
        broker.put_pipeline(topic, json!([stage])).await;
    }
    let (mut by_column, mut by_query) = (Vec::new(), Vec::new());
    let (mut parsing, mut skipping) = (Vec::new(), Vec::new());
    let (mut column_in_broker, mut query_in_broker) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        by_column.push(bench.microseconds(&filter, "filter", &column, BATCH).0);
        by_query.push(bench.microseconds(&filter, "filter", &query, BATCH).0);
        parsing.push(native_microseconds(|_, payload| serde_json::from_slice(payload).expect("JSON")));
        skipping.push(native_microseconds(|query, payload| query.read(payload).expect("JSON")));
        column_in_broker.push(microseconds(&broker, "by-column", "filter", BATCH).await);
        query_in_broker.push(microseconds(&broker, "by-query", "filter", BATCH).await);
    }
    let bytes = payload().len();
    report.add(Row {
        work: format!("a stage that reads one header by column, {bytes} B, batches of {BATCH}"),
        ours: format!("{:.2} µs a message", median(by_column.clone())),
        baseline: "its own time alone".to_owned(),
        figures: by_column,
        unit: "µs",
        budget: Budget::AtMost(0.15),
    });
    for (baseline, native, budget) in [
        ("native, one thread, the payload parsed", parsing, Budget::AtMost(2.0)),
        ("native, one thread, skipping what is not asked for", skipping, Budget::None),
    ] {
        report.add(Row {
            work: format!("a stage that asks `{QUERY}` of JSON, {bytes} B, batches of {BATCH}"),
            ours: format!("{:.2} µs a message", median(by_query.clone())),
            baseline: format!("{baseline}: {:.2} µs", median(native.clone())),
            figures: by_query.iter().zip(&native).map(|(wasm, native)| wasm / native).collect(),
            unit: "×",
            budget,
        });
    }
    for (what, figures) in [("reads one header by column", column_in_broker), ("asks that of JSON", query_in_broker)] {
        report.add(Row {
            work: format!("the same in a broker that wakes for each batch, one connection: {what}"),
            ours: format!("{:.2} µs a message", median(figures.clone())),
            baseline: "nothing".to_owned(),
            figures,
            unit: "µs",
            budget: Budget::None,
        });
    }
}

/// What a message costs in the stages of `plugin`, as the broker counts it: microseconds, over one round of batches of so many
/// to the topic, from one connection.
async fn microseconds(broker: &Broker, topic: &str, plugin: &str, batch: usize) -> f64 {
    let message = json!({"topicName": topic, "payload": payload(), "headers": {"a": "1"}});
    let body = json!({"messages": vec![message; batch]}).to_string();
    let target = Target::of(broker);
    let request = target.request("POST", "/messages/publish/batch", body.as_bytes());
    let before = spent(broker, plugin).await;
    load::run(&target, &Work::Publish { request, status: 200, messages: batch }, 1, ROUND).await;
    let after = spent(broker, plugin).await;
    assert!(after.1 > before.1, "{plugin} has run");
    (after.0 - before.0) * 1e6 / (after.1 - before.1)
}

/// Seconds that the plugin's calls took so far, and its messages.
async fn spent(client: &Client, plugin: &str) -> (f64, f64) {
    let of = |name: &str| format!("{name}{{plugin=\"{plugin}\"");
    let seconds = client.metric_sum(&of("sluice_plugin_run_duration_seconds_sum")).await;
    (seconds, client.metric_sum(&of("sluice_plugin_messages_total")).await)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn native_microseconds(read: impl Fn(&Query, &[u8]) -> Value) -> f64 {
    let (query, payload) = (Query::parse(QUERY).expect("a query"), payload());
    let begun = Instant::now();
    for _ in 0..NATIVE_ROUNDS {
        let seen = read(&query, black_box(payload.as_bytes()));
        assert!(query.matches(black_box(&seen)), "the amount is above");
    }
    begun.elapsed().as_secs_f64() * 1e6 / NATIVE_ROUNDS as f64
}
