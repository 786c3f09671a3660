//! Stages before and after the log: what their verdicts lead to, on which revision a message ran, and who may set them.
//! Invariant: the plugins are those that come with the binary.

use serde_json::{Value, json};
use sluice_tests::{Broker, Receiver};

/// A stage that lets only objects with a whole number `n` through.
fn check(on_reject: &str) -> Value {
    let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    json!({"name": "check", "plugin": "json-schema", "version": "latest", "config": {"schema": schema}, "onReject": on_reject})
}

fn redact(pointer: &str) -> Value {
    let rules = json!([{"pointer": pointer, "action": "drop"}]);
    json!({"name": "redact", "plugin": "redact", "version": "latest", "config": {"rules": rules}})
}

#[tokio::test]
async fn a_rejected_message_is_refused_kept_aside_or_dropped_as_the_stage_says() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    broker.put_pipeline("orders", json!([check("reject")])).await;
    let answer = broker.publish("orders", json!({"n": "one"})).answer().await;
    let problem = answer.expect_problem(422, "SCHEMA_VALIDATION_ERROR");
    assert_eq!((&problem["plugin"], &problem["stage"]), (&json!("json-schema"), &json!("check")), "{problem}");
    assert!(problem["pluginVersion"].is_string(), "{problem}");
    assert_eq!(problem["errors"][0]["pointer"], "/payload/n", "{problem}");

    broker.put_pipeline("orders", json!([check("deadLetter")])).await;
    let aside = broker.publish("orders", json!({"n": "two"})).await;
    assert_eq!(aside.status, "DeadLettered");
    let letters = broker.get("/topics/orders/dlq").await.expect(200);
    assert_eq!(letters["deadLetters"][0]["payload"], r#"{"n":"two"}"#, "{letters}");

    broker.put_pipeline("orders", json!([check("drop")])).await;
    assert_eq!(broker.publish("orders", json!({"n": "three"})).await.status, "Dropped");
    let passed = broker.publish("orders", json!({"n": 4})).await;
    assert_eq!((passed.status.as_str(), passed.pipeline_revision), ("Pending", Some(3)));
    let deliveries = broker.consume("orders", "g").limit(10).await;
    assert_eq!(deliveries.len(), 1, "nothing else was stored");
    assert_eq!(deliveries[0].json(), json!({"n": 4}));
    let history = broker.get("/topics/orders/pipeline/history").await.expect(200);
    assert_eq!(history["revisions"].as_array().map(Vec::len), Some(3), "{history}");
}

#[tokio::test]
async fn a_subscriptions_stages_change_what_that_group_gets_and_nobody_else() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    broker.create_topic("people", "PubSub").await;
    broker.subscribe("people", "inside").await;
    let outside = broker.subscribe_push("people", "outside", &receiver.url(), json!({})).await;
    let path = format!("/subscriptions/{}/pipeline", outside["subscriptionId"].as_str().expect("an id"));
    broker.put(&path, &json!({"stages": [redact("/email")]})).await.expect(200);
    broker.publish("people", json!({"name": "Ada", "email": "ada@example.org"})).await;
    let inside = broker.consume("people", "inside").collect(1).await;
    assert_eq!(inside[0].json(), json!({"name": "Ada", "email": "ada@example.org"}));
    let request = receiver.received(1).await.remove(0);
    assert_eq!(request.message().payload.as_deref(), Some(r#"{"name":"Ada"}"#));
}

#[tokio::test]
async fn a_publisher_may_ask_what_each_stage_said() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    broker.put_pipeline("orders", json!([check("drop"), redact("/card")])).await;
    let publish = json!({"topicName": "orders", "payload": {"n": 1, "card": "4111"}});
    let answer = broker.post("/messages/publish?explain=true", &publish).await.expect(202);
    let stages: Vec<&Value> =
        answer["explain"].as_array().expect("a word a stage").iter().map(|word| &word["stage"]).collect();
    assert_eq!(stages, ["check", "redact"], "{answer}");
    assert_eq!(broker.consume("orders", "g").await[0].payload(), r#"{"n":1}"#);
}

#[tokio::test]
async fn a_stage_that_cannot_run_is_refused_when_it_is_set() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let put = async |stages: Value| broker.put("/topics/orders/pipeline", &json!({ "stages": stages })).await;
    let unknown = put(json!([{"name": "x", "plugin": "absent", "version": "latest", "config": {}}])).await;
    assert!(matches!(unknown.status, 400 | 404 | 422), "{unknown}");
    let broken =
        put(json!([{"name": "x", "plugin": "redact", "version": "latest", "config": {"rules": "none"}}])).await;
    let problem = broken.expect_problem(400, "VALIDATION_ERROR");
    assert_eq!(problem["errors"][0]["pointer"], "/stages/0/config/rules", "{problem}");
    let twice = put(json!([redact("/a"), redact("/b")])).await;
    twice.expect_problem(400, "VALIDATION_ERROR");
    assert_eq!(broker.publish("orders", json!({})).await.pipeline_revision, Some(0), "nothing has changed");
    let viewer = broker.viewer().put("/topics/orders/pipeline", &json!({"stages": []})).await;
    viewer.expect_problem(403, "FORBIDDEN");
}

#[tokio::test]
async fn stages_survive_a_crash_and_run_on() {
    let mut broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    broker.put_pipeline("orders", json!([redact("/card")])).await;
    broker.crash().await;
    let published = broker.publish("orders", json!({"card": "4111"})).await;
    assert_eq!(published.pipeline_revision, Some(1));
    assert_eq!(broker.consume("orders", "g").await[0].payload(), "{}");
}
