//! Many messages in one call: in order, item by item, or all or none. Invariant: every answer is held against what can then
//! be consumed.

use http::Method;
use serde_json::{Value, json};
use sluice_tests::{Broker, Delivery};

fn item(payload: Value) -> Value {
    json!({"topicName": "orders", "payload": payload})
}

#[tokio::test]
async fn one_bad_item_keeps_no_other_out() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let messages = json!([item(json!(1)), {"topicName": "absent", "payload": 2}, item(json!(3)), {"payload": 4}]);
    let answer = broker.post("/messages/publish/batch", &json!({ "messages": messages })).await.expect(200);
    assert_eq!((&answer["accepted"], &answer["refused"]), (&json!(2), &json!(2)), "{answer}");
    let codes: Vec<&Value> = (0..4).map(|n| &answer["results"][n]["error"]["code"]).collect();
    assert_eq!(codes, [&Value::Null, &json!("NOT_FOUND"), &Value::Null, &json!("VALIDATION_ERROR")], "{answer}");
    let stored: Vec<String> =
        broker.consume("orders", "g").await.iter().map(|delivery| delivery.payload().to_owned()).collect();
    assert_eq!(stored, ["1", "3"]);
}

#[tokio::test]
async fn a_batch_over_several_topics_keeps_each_ones_order_and_reach() {
    let broker = Broker::start().await;
    for topic in ["orders.eu", "orders.us", "billing"] {
        broker.create_topic(topic, "Queue").await;
    }
    let item = |topic: &str, payload: u32| json!({"topicName": topic, "payload": payload});
    let messages = [
        item("orders.eu", 0),
        item("billing", 1),
        item("orders.us", 2),
        item("orders.eu.dlq", 3),
        item("orders.eu", 4),
    ];
    let producer = broker.producer("orders.*");
    let answer = producer.post("/messages/publish/batch", &json!({ "messages": messages })).await.expect(200);
    let taken: Vec<Option<&str>> = (0..5).map(|n| answer["results"][n]["topicName"].as_str()).collect();
    assert_eq!(taken, [Some("orders.eu"), None, Some("orders.us"), None, Some("orders.eu")], "{answer}");
    let codes = [&answer["results"][1]["error"]["code"], &answer["results"][3]["error"]["code"]];
    assert_eq!(codes, ["FORBIDDEN", "VALIDATION_ERROR"], "{answer}");
    for (topic, expected) in [("orders.eu", vec!["0", "4"]), ("orders.us", vec!["2"]), ("billing", vec![])] {
        let stored = broker.consume(topic, "g").await;
        assert_eq!(stored.iter().map(|delivery| delivery.payload()).collect::<Vec<_>>(), expected, "{topic}");
    }
    let messages = json!({"messages": [item("orders.eu", 5), item("orders.us", 6)]});
    let answer = producer.post("/messages/publish/batch?atomic=true", &messages).await.expect(200);
    assert_eq!(answer["accepted"], 0, "{answer}");
    for topic in ["orders.eu", "orders.us"] {
        broker.consume(topic, "g").expect_nothing().await;
    }
}

#[tokio::test]
async fn an_atomic_batch_is_stored_whole_or_not_at_all() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    broker.publish("orders", json!("first")).idempotency_key("k").await;
    let mut conflict = item(json!("another"));
    conflict["idempotencyKey"] = json!("k");
    let messages = json!({"messages": [item(json!(1)), conflict]});
    let answer = broker.post("/messages/publish/batch?atomic=true", &messages).await;
    assert!(answer.status == 409 || answer.json()["accepted"] == json!(0), "{answer}");
    let messages = json!({"messages": [item(json!(2)), item(json!(3))]});
    let answer = broker.post("/messages/publish/batch?atomic=true", &messages).await.expect(200);
    assert_eq!(answer["accepted"], 2, "{answer}");
    let stored: Vec<String> =
        broker.consume("orders", "g").await.iter().map(|delivery| delivery.payload().to_owned()).collect();
    assert_eq!(stored, ["first", "2", "3"]);
}

#[tokio::test]
async fn lines_are_a_batch_too_and_receipts_settle_as_one() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let lines: String = (0..200).map(|n| format!("{}\n", item(json!(n)))).collect();
    let headers = [("content-type", "application/x-ndjson")];
    let answer = broker.send(Method::POST, "/messages/publish/batch", &headers, lines).await.expect(200);
    assert_eq!(answer["accepted"], 200, "{answer}");
    let held = broker.consume("orders", "g").limit(200).await;
    assert_eq!(held.len(), 200);
    let acks: Vec<Value> = held.iter().map(|delivery| json!({"receipt": delivery.receipt()})).collect();
    let mut acks_and_one_twice = acks.clone();
    acks_and_one_twice.push(acks[0].clone());
    let body = json!({ "acks": acks_and_one_twice });
    let answer = broker.post("/messages/ack/batch", &body).await.expect(200);
    let results = answer["results"].as_array().expect("a result an item");
    assert_eq!(results.len(), 201);
    assert!(results[..200].iter().all(|result| result["error"].is_null()), "{answer}");
    assert_eq!(results[200]["error"]["code"], "LEASE_EXPIRED", "{answer}");
    broker.consume("orders", "g").expect_nothing().await;
}

#[tokio::test]
async fn a_thousand_settlements_are_each_judged_alone() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    broker.create_topic("private", "Queue").await;
    let messages: Vec<Value> = (0..1000).map(|n| item(json!(n))).collect();
    broker.post("/messages/publish/batch", &json!({ "messages": messages })).await.expect(200);
    broker.publish("private", "secret").await;
    let consumer = broker.consumer("orders");
    let short = consumer.consume("orders", "g").limit(200).ack_timeout(5).await;
    let held = consumer.consume("orders", "g").limit(800).ack_timeout(3600).await;
    let foreign = broker.consume("private", "g").await.remove(0);
    assert_eq!((short.len(), held.len()), (200, 800));
    broker.clock().advance(std::time::Duration::from_secs(6)).await;

    // Of every ten acks five are good, one of them without its receipt; the others are each bad in its own way.
    let (mut held, mut short) = (held.iter(), short.iter());
    let mut acks = Vec::new();
    let mut expected = Vec::new();
    for _ in 0..100 {
        let mut add = |ack: Value, code: Option<&'static str>| {
            acks.push(ack);
            expected.push(code);
        };
        let by_receipt = |delivery: &Delivery| json!({"receipt": delivery.receipt()});
        let good: Vec<&Delivery> = held.by_ref().take(5).collect();
        good[..4].iter().for_each(|delivery| add(by_receipt(delivery), None));
        add(by_receipt(good[0]), Some("LEASE_EXPIRED"));
        add(by_receipt(short.next().expect("enough")), Some("LEASE_EXPIRED"));
        add(json!({"messageId": good[4].id(), "consumerGroup": "g"}), None);
        add(json!({"receipt": "nonsense"}), Some("VALIDATION_ERROR"));
        add(json!({"receipt": good[1].receipt(), "surprise": 1}), Some("VALIDATION_ERROR"));
        // Out of the token's scope: nothing is told of it.
        add(by_receipt(&foreign), Some("LEASE_EXPIRED"));
    }
    let nacks: Vec<Value> =
        held.by_ref().take(100).map(|delivery| json!({"receipt": delivery.receipt(), "delay": "PT1H"})).collect();
    let answer = consumer.post("/messages/ack/batch", &json!({"acks": acks, "nacks": nacks})).await.expect(200);
    let results = answer["results"].as_array().expect("a result an item");
    assert_eq!((results.len(), expected.len()), (1100, 1000));
    for (number, (result, code)) in results.iter().zip(&expected).enumerate() {
        assert_eq!(result["error"]["code"].as_str(), *code, "{number}: {} {result}", acks[number]);
    }
    assert!(results[1000..].iter().all(|result| result["error"].is_null()), "{answer}");

    let metrics = broker.get("/topics/orders/metrics").await.expect(200);
    let figures = &metrics["groups"][0];
    assert_eq!(
        (&figures["ackedTotal"], &figures["lag"], &figures["inFlight"], &figures["retrying"]),
        (&json!(500), &json!(200), &json!(200), &json!(100)),
        "{figures}"
    );
    // What expired can be had again, and what is foreign is still held.
    assert_eq!(consumer.consume("orders", "g").limit(1000).await.len(), 200);
    foreign.ack().await;
}
