//! Powers that a plugin imports by name, over the real binary: values across kills, figures, schemas, and what a plugin says.
//! Invariant: the guest is `tests/guests/powers`, told by headers. Never asks how long anything took.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::Method;
use serde_json::{Value, json};
use sluice_tests::token::Claims;
use sluice_tests::{Broker, Client, guest, wait};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

async fn broker_with_guest() -> Broker {
    let broker = Broker::start().await;
    broker.place_plugin("powers.wasm", guest::powers());
    wait::within(4 * wait::PATIENCE, "the plugin is taken in", async || {
        (broker.get("/plugins/powers").await.status == 200).then_some(())
    })
    .await;
    broker
}

async fn counted_topic(broker: &Broker, name: &str, config: Value) {
    broker.create_topic(name, "Queue").await;
    let stage = json!({"name": "count", "plugin": "powers", "version": "latest", "config": config, "timeoutMs": 1000});
    broker.put_pipeline(name, json!([stage])).await;
}

fn told(topic: &str, what: &str) -> Value {
    json!({"topicName": topic, "payload": {}, "headers": {"do": what}})
}

/// What the guest answers with in a header.
async fn asked(broker: &Client, topic: &str, what: &str, header: &str) -> String {
    let published = broker.post("/messages/publish", &told(topic, what)).await.expect(202);
    let id = published["messageId"].as_str().expect("an id");
    let stored = broker.get(&format!("/messages/{id}")).await.expect(200);
    stored["headers"][header].as_str().map_or_else(|| panic!("{stored}"), str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_is_as_many_as_are_stored_across_kills() {
    const CLIENTS: usize = 3;
    const ROUNDS: usize = 4;
    let mut broker = broker_with_guest().await;
    counted_topic(&broker, "counted", json!({})).await;
    for round in 0..ROUNDS {
        let (stop, acknowledged) = (AtomicBool::new(false), AtomicUsize::new(0));
        let client: Client = broker.admin();
        let publishing = (0..CLIENTS).map(|_| async {
            let batch = json!({"messages": [told("counted", "count n"), told("counted", "count n"), told("counted", "count n")]});
            while !stop.load(Ordering::SeqCst) {
                // One that meets the kill has no answer.
                let Ok(answer) = client.try_send(Method::POST, "/messages/publish/batch", &JSON, batch.to_string()).await else { return };
                if answer.status < 300 {
                    acknowledged.fetch_add(3, Ordering::SeqCst);
                }
            }
        });
        let killing = async {
            wait::until("there is load", async || (acknowledged.load(Ordering::SeqCst) >= 30).then_some(())).await;
            broker.kill();
            stop.store(true, Ordering::SeqCst);
        };
        tokio::join!(futures_util::future::join_all(publishing), killing);
        broker.restart().await;
        let stored = broker.get("/topics/counted/metrics").await.expect(200)["messages"].as_u64().expect("a number");
        assert!(stored >= acknowledged.load(Ordering::SeqCst) as u64, "what was acknowledged is there");
        // It is counted itself, as each round's last one.
        let counted = asked(&broker, "counted", "count n", "count").await;
        assert_eq!(counted, (stored + 1).to_string(), "round {round}: as many as are stored");
    }
}

#[tokio::test]
async fn a_plugins_own_figures_are_told_with_the_brokers() {
    let broker = broker_with_guest().await;
    counted_topic(&broker, "figures", json!({})).await;
    let what = "add orders 3; add orders 4; gauge depth -2.5; observe seconds 0.2; observe seconds nan; gauge orders 1";
    broker.post("/messages/publish", &told("figures", what)).await.expect(202);
    let series = async |name: &str| broker.metric(name).await;
    assert_eq!(series("sluice_plugin_counter_total{name=\"orders\",plugin=\"powers\"}").await, Some(7.0));
    assert_eq!(series("sluice_plugin_gauge{name=\"depth\",plugin=\"powers\"}").await, Some(-2.5));
    assert_eq!(series("sluice_plugin_histogram_count{name=\"seconds\",plugin=\"powers\"}").await, Some(1.0));
    assert_eq!(series("sluice_plugin_gauge{name=\"orders\",plugin=\"powers\"}").await, None, "its kind stays");
    let memory = broker.metric_sum("sluice_plugin_memory_high_water_bytes{plugin=\"powers\",").await;
    assert!(memory > 65_536.0, "{memory}");
    assert!(broker.metric_sum("sluice_plugin_compiled_in_seconds{plugin=\"powers\",").await > 0.0);
}

#[tokio::test]
async fn a_stage_is_configured_anew_when_a_schema_that_it_asked_for_changes() {
    let broker = broker_with_guest().await;
    let register = async |version: &str, title: &str| {
        let definition = json!({"type": "object", "title": title});
        let schema = json!({"schemaId": "order", "version": version, "schemaDefinition": definition});
        broker.post("/schemas", &schema).await
    };
    counted_topic(&broker, "schemas", json!({"schema": "order"})).await;
    assert_eq!(asked(&broker, "schemas", "schema", "schema").await, "none");
    for (version, title) in [("1.0.0", "first"), ("2.0.0", "second")] {
        let answer = register(version, title).await;
        assert!(answer.status < 300, "{answer}");
        let definition = asked(&broker, "schemas", "schema", "schema").await;
        assert!(definition.contains(title), "{definition}");
    }
    let before = broker.get("/topics/schemas/pipeline/history").await.expect(200);
    let newest = &before["revisions"][0];
    assert_eq!((&newest["revision"], &newest["reason"]), (&json!(3), &json!("schema order changed")), "{before}");
    // Known already: nothing changes.
    assert!(register("2.0.0", "second").await.status < 300);
    assert_eq!(broker.get("/topics/schemas/pipeline").await.expect(200)["revision"], json!(3));
}

#[tokio::test]
async fn what_a_plugin_says_is_read_back_and_followed() {
    let broker = broker_with_guest().await;
    counted_topic(&broker, "talk", json!({})).await;
    let say = async |word: &str| {
        broker.post("/messages/publish", &told("talk", &format!("say {word}"))).await.expect(202);
    };
    say("before").await;
    let lines = broker.get("/plugins/powers/logs?limit=1").await.expect(200)["lines"].clone();
    let [line] = &lines.as_array().expect("a list")[..] else { panic!("{lines}") };
    assert_eq!((&line["text"], &line["level"], &line["stage"]), (&json!("before"), &json!("warn"), &json!("count")));
    assert!(line["version"].is_string() && line["at"].is_string(), "{line}");

    let mut events = broker.events("/plugins/powers/logs?follow=true&limit=1").await;
    assert_eq!(events.next_json().await["text"], "before");
    say("after").await;
    assert_eq!(events.next_json().await["text"], "after");
    let trapped = broker.post("/messages/publish", &told("talk", "trap")).await;
    trapped.expect_problem(503, "PLUGIN_FAULT");
    let mut said = String::new();
    while !said.contains("TRAPPED") {
        said = events.next_json().await["text"].as_str().expect("a text").to_owned();
    }
    assert!(said.contains("powers::deep_down < ") && said.contains("told to trap"), "{said}");

    let told = broker.cli(&["plugin", "logs", "powers", "--limit", "200"]);
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(text.contains("count: before") && text.contains("count: after"), "{text}");
    for limit in ["0", "201", "x"] {
        broker.get(&format!("/plugins/powers/logs?limit={limit}")).await.expect_problem(400, "VALIDATION_ERROR");
    }
    broker.get("/plugins/absent/logs").await.expect_problem(404, "NOT_FOUND");
}

#[tokio::test]
async fn a_plugins_log_is_for_authors_whose_token_reaches_it() {
    let broker = broker_with_guest().await;
    let author = |plugins: &str| broker.client(&Claims::new("author", &["PluginAuthor"]).topics(&[plugins]));
    assert_eq!(author("powers").get("/plugins/powers/logs").await.status, 200);
    assert_eq!(author("billing.*").get("/plugins/powers/logs").await.status, 403);
    assert_eq!(author("billing.*").get("/plugins/powers/logs?follow=true").await.status, 403);
    assert_eq!(broker.viewer().get("/plugins/powers/logs").await.status, 403);
}
