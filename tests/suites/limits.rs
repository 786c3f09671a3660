//! Bounds that the whole broker keeps, each reached once over HTTP: beyond it the answer is early, says when to come again,
//! and there is room again when something has gone. Invariant: what is full for one is full for no probe: `/health` and
//! `/metrics` answer. The table of all bounds, and the test of each, is in docs/limits.md.

use std::time::Duration;

use serde_json::json;
use sluice_tests::consume::Consume;
use sluice_tests::{Answer, Broker, Settings, guest, wait};

/// Handles of which half are for connections.
const HANDLES: u64 = 160;
/// More than that half.
const CONNECTIONS: usize = 120;

fn limit(setting: &str, at_most: usize) -> Settings {
    Settings::new().env(&format!("SLUICE__{setting}"), &at_most.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_requests_are_under_way_and_one_more_is_told_to_come_later() {
    let broker = Broker::with(limit("LIMITS__REQUESTS_MAX", 3)).await;
    broker.create_topic("orders", "Queue").await;
    let polls: Vec<_> = (0..3).map(|_| tokio::spawn(until_taken(broker.consume("orders", "g").wait(30)))).collect();
    // A request that asks takes a place itself, and a poll may come just then.
    wait::until("the polls are under way", async || {
        let requests = broker.anonymous().get("//metrics").await.text();
        requests.contains("sluice_http_requests_in_flight 4\n").then_some(())
    })
    .await;
    let refused = wait::until("one more is refused", async || {
        let answer = broker.get("/topics").await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    refused.expect_problem(429, "BACKPRESSURE");
    broker.get("//health/live").await.expect(200);
    broker.get("//health/ready").await.expect(200);
    broker.clock().advance(Duration::from_secs(31)).await;
    for poll in polls {
        poll.await.expect("a poll ends").expect(200);
    }
    broker.publish("orders", "served again").await;
}

/// What it gets when it is not refused.
async fn until_taken(poll: Consume) -> Answer {
    loop {
        let answer = poll.try_answer().await.expect("it is answered");
        if answer.status != 429 {
            return answer;
        }
    }
}

#[tokio::test]
async fn so_many_streams_are_open_and_the_next_has_the_place_of_one_that_ends() {
    let broker = Broker::with(limit("LIMITS__STREAMS_MAX", 1)).await;
    broker.create_topic("orders", "Queue").await;
    let stream = broker.stream("orders", "g", 1).await;
    broker.get("/messages/stream/orders?consumerGroup=g").await.expect_problem(429, "BACKPRESSURE");
    drop(stream);
    wait::until("the place is free", async || broker.try_stream("orders", "g", 1).await.ok().map(drop)).await;
}

#[tokio::test]
async fn there_are_so_many_topics_subscriptions_and_schemas_until_some_are_deleted() {
    let settings = limit("LIMITS__TOPICS_MAX", 2).env("SLUICE__LIMITS__SUBSCRIPTIONS_MAX", "2");
    let broker = Broker::with(settings.env("SLUICE__SCHEMAS__VERSIONS_MAX", "2")).await;
    for topic in ["a", "b"] {
        broker.create_topic(topic, "PubSub").await;
    }
    let topic = json!({"name": "c", "type": "Queue"});
    let problem = broker.post("/topics", &topic).await.expect_problem(429, "BACKPRESSURE");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("limits.topics_max")), "{problem}");
    broker.post("/topics", &json!({"name": "a", "type": "PubSub"})).await.expect_problem(409, "CONFLICT");

    let first = broker.subscribe("a", "g").await["subscriptionId"].clone();
    broker.subscribe("b", "g").await;
    let subscription = json!({"topicName": "a", "consumerGroup": "h", "type": "Pull"});
    broker.post("/subscriptions", &subscription).await.expect_problem(429, "BACKPRESSURE");

    let schema = |version: &str| json!({"schemaId": "s", "schemaDefinition": {"type": "object"}, "version": version, "compatibility": "None"});
    for version in ["1", "2"] {
        broker.post("/schemas", &schema(version)).await.expect(201);
    }
    broker.post("/schemas", &schema("3")).await.expect_problem(429, "BACKPRESSURE");
    let again = broker.post("/schemas", &schema("2")).await;
    assert_eq!(again.status, 200, "what is there may be said again: {again}");

    let id = first.as_str().expect("a subscription has an id");
    broker.delete(&format!("/subscriptions/{id}")).await.expect(204);
    broker.post("/subscriptions", &subscription).await.expect(201);
    broker.delete("/topics/b?force=true").await.expect(204);
    broker.post("/topics", &topic).await.expect(201);
}

#[tokio::test]
async fn a_plugin_has_so_many_versions_and_the_ones_there_are_stay_in_force() {
    let broker = Broker::with(limit("PLUGINS__VERSIONS_MAX", 1)).await;
    let page = async || broker.get("/plugins/filter").await.expect(200);
    broker.place_plugin("filter.wasm", guest::filter_v2());
    let refused = wait::until("the version is refused", async || {
        let error = page().await["lastError"]["message"].clone();
        error.is_string().then_some(error)
    })
    .await;
    assert!(refused.to_string().contains("plugins.versions_max"), "{refused}");
    assert_eq!(page().await["versions"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_topic_that_is_full_of_bytes_says_so_until_its_messages_are_settled() {
    let broker = Broker::start().await;
    broker.post("/topics", &json!({"name": "small", "type": "Queue", "retentionBytes": 4096})).await.expect(201);
    let mut accepted = 0;
    let full = loop {
        let answer = broker.publish("small", "x".repeat(500)).answer().await;
        if answer.status != 202 {
            break answer;
        }
        accepted += 1;
    };
    full.expect_problem(429, "TOPIC_FULL");
    broker.consume("small", "g").drain(accepted).await;
    broker.publish("small", "x".repeat(500)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_leave_handles_for_files_and_the_log_is_no_line_a_connection() {
    let mut broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    broker.kill();
    broker.limit_open_files(Some(HANDLES));
    broker.restart().await;
    let address = broker.url().trim_start_matches("http://").to_owned();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(tokio::net::TcpStream::connect(&address).await.expect("the backlog takes it"));
    }
    let waits = broker.publish("orders", "waits for a place").try_answer();
    let waits = tokio::time::timeout(Duration::from_millis(500), waits).await;
    assert!(waits.is_err(), "no connection is left");
    let open = std::fs::read_dir(format!("/proc/{}/fd", broker.process_id())).expect("Linux lists handles").count();
    assert!((open as u64) < HANDLES, "{open} handles");
    drop(connections);
    broker.publish("orders", "served").await;
    assert!(broker.log().contains("ulimit -n"), "the operator is told");
    assert!(!broker.log().contains("could not be accepted"));
}
