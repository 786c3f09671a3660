//! Idempotency keys over HTTP: the first outcome is kept, for as long as the topic says and through a crash. Invariant: time
//! is moved, never waited for.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::Broker;

const GUARANTEES: [&str; 2] = ["AtLeastOnce", "ExactlyOnce"];

async fn broker_with(topic: &str, more: Value) -> Broker {
    let broker = Broker::start().await;
    let mut body = json!({"name": topic, "type": "Queue"});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    broker.post("/topics", &body).await.expect(201);
    broker
}

/// A stage that lets only `a: 1` pass.
fn gate() -> Value {
    json!([{"name": "gate", "plugin": "filter", "version": "latest", "config": {"headerMatches": {"a": "1"}}}])
}

#[tokio::test]
async fn a_repeat_after_a_crash_gets_the_first_outcome_and_stores_nothing() {
    for guarantee in GUARANTEES {
        let mut broker = broker_with("payments", json!({"deliveryGuarantee": guarantee, "partitionCount": 4})).await;
        let first = broker.publish("payments", "one").idempotency_key("k").await;
        broker.crash().await;
        let again = broker.publish("payments", "one").idempotency_key("k").await;
        assert_eq!((again.status.as_str(), &again.message_id), ("Duplicate", &first.message_id), "{guarantee}");
        assert_eq!((again.partition, again.offset), (first.partition, first.offset), "{guarantee}");
        let other = broker.publish("payments", "two").idempotency_key("k").answer().await;
        other.expect_problem(409, "CONFLICT");
        let stored = broker.consume("payments", "g").collect(1).await;
        assert_eq!((stored.len(), stored[0].payload()), (1, "one"), "{guarantee}");
        broker.consume("payments", "g").expect_nothing().await;
    }
}

#[tokio::test]
async fn a_key_is_forgotten_with_its_window_and_no_sooner() {
    let broker = broker_with("payments", json!({"dedupWindow": "PT1M"})).await;
    let first = broker.publish("payments", "one").idempotency_key("k").await;
    broker.clock().advance(Duration::from_secs(59)).await;
    assert_eq!(broker.publish("payments", "one").idempotency_key("k").await.status, "Duplicate");
    broker.clock().advance(Duration::from_secs(2)).await;
    let second = broker.publish("payments", "one").idempotency_key("k").await;
    assert_eq!(second.status, "Pending");
    assert_ne!(second.message_id, first.message_id);
    // A window that is made shorter forgets what is older.
    broker.put("/topics/payments", &json!({"dedupWindow": "PT1S"})).await.expect(200);
    broker.clock().advance(Duration::from_secs(2)).await;
    assert_eq!(broker.publish("payments", "other").idempotency_key("k").await.status, "Pending");
}

#[tokio::test]
async fn a_drop_is_an_outcome_that_is_kept_whatever_the_stages_say_by_then() {
    let mut broker = broker_with("orders", json!({})).await;
    broker.put_pipeline("orders", gate()).await;
    let publish = |broker: &Broker| broker.publish("orders", "one").header("a", "2").idempotency_key("k").answer();
    let first = publish(&broker).await.expect(202);
    assert_eq!((&first["status"], &first["stage"]), (&json!("Dropped"), &json!("gate")), "{first}");
    broker.put_pipeline("orders", json!([])).await;
    broker.crash().await;
    let again = publish(&broker).await.expect(202);
    assert_eq!((&again["status"], &again["stage"]), (&json!("Duplicate"), &json!("gate")), "{again}");
    assert_eq!(again["messageId"], first["messageId"]);
    broker.consume("orders", "g").expect_nothing().await;
}

#[tokio::test]
async fn a_topic_whose_keys_are_full_refuses_new_keys_alone_until_some_age_out() {
    let broker = broker_with("orders", json!({"dedupMaxKeys": 2, "dedupWindow": "PT1M"})).await;
    let view = broker.get("/topics/orders").await.expect(200);
    assert_eq!(view["dedupMaxKeys"], 2);
    for key in ["a", "b"] {
        broker.publish("orders", key).idempotency_key(key).await;
    }
    let refused = broker.publish("orders", "c").idempotency_key("c").answer().await;
    refused.expect_problem(429, "TOPIC_FULL");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(broker.publish("orders", "a").idempotency_key("a").await.status, "Duplicate");
    assert_eq!(broker.publish("orders", "without").await.status, "Pending");
    broker.put("/topics/orders", &json!({"dedupMaxKeys": 3})).await.expect(200);
    assert_eq!(broker.publish("orders", "c").idempotency_key("c").await.status, "Pending");
    broker.publish("orders", "d").idempotency_key("d").answer().await.expect_problem(429, "TOPIC_FULL");
    broker.clock().advance(Duration::from_secs(61)).await;
    assert_eq!(broker.publish("orders", "d").idempotency_key("d").await.status, "Pending");
    for wrong in [json!(0), json!(-1), json!(1_000_001), json!("many"), json!(1.5), json!(null)] {
        broker.put("/topics/orders", &json!({"dedupMaxKeys": wrong})).await.expect_problem(400, "VALIDATION_ERROR");
    }
}

#[tokio::test]
async fn a_key_counts_for_its_topic_alone() {
    let broker = broker_with("orders", json!({})).await;
    broker.create_topic("others", "Queue").await;
    for topic in ["orders", "others"] {
        assert_eq!(broker.publish(topic, "one").idempotency_key("k").await.status, "Pending", "{topic}");
    }
}
