//! Delivery by pull: who gets what, when it comes again, where it ends. Invariant: time is moved, never waited for.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::{Broker, Delivery, wait};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn payloads(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(Delivery::payload).collect()
}

#[tokio::test]
async fn a_queue_gives_each_message_to_one_consumer_whatever_group_it_names() {
    let broker = Broker::start().await;
    broker.create_topic("jobs", "Queue").await;
    for n in 0..4 {
        broker.publish("jobs", format!("{n}")).await;
    }
    let first = broker.consume("jobs", "a").limit(2).await;
    let second = broker.consume("jobs", "b").limit(10).await;
    assert_eq!((payloads(&first), payloads(&second)), (vec!["0", "1"], vec!["2", "3"]));
    broker.consume("jobs", "c").expect_nothing().await;
    let body = json!({"topicName": "jobs", "consumerGroup": "one", "type": "Pull"});
    broker.post("/subscriptions", &body).await.expect(201);
    let body = json!({"topicName": "jobs", "consumerGroup": "two", "type": "Pull"});
    broker.post("/subscriptions", &body).await.expect_problem(409, "CONFLICT");
}

#[tokio::test]
async fn a_pubsub_topic_gives_each_subscription_its_own_copy_from_its_creation_on() {
    let broker = Broker::start().await;
    broker.create_topic("news", "PubSub").await;
    broker.publish("news", "before").await;
    broker.subscribe("news", "late").await;
    let body = json!({"topicName": "news", "consumerGroup": "all", "type": "Pull", "startFrom": "earliest"});
    broker.post("/subscriptions", &body).await.expect(201);
    broker.publish("news", "after").await;
    assert_eq!(payloads(&broker.consume("news", "late").collect(1).await), ["after"]);
    assert_eq!(payloads(&broker.consume("news", "all").collect(2).await), ["before", "after"]);
    broker.consume("news", "unknown").answer().await.expect_problem(404, "NOT_FOUND");
}

#[tokio::test]
async fn an_expired_lease_is_redelivered_once_and_its_receipt_is_refused() {
    let broker = Broker::start().await;
    broker.create_topic("jobs", "Queue").await;
    broker.publish("jobs", "work").await;
    let first = broker.consume("jobs", "g").ack_timeout(30).await.remove(0);
    broker.consume("jobs", "g").expect_nothing().await;
    broker.clock().advance(seconds(31)).await;
    let second = broker.consume("jobs", "g").collect(1).await.remove(0);
    assert_eq!((second.id(), second.message.delivery_attempt), (first.id(), 2));
    first.try_ack().await.expect_problem(410, "LEASE_EXPIRED");
    second.ack().await;
    second.try_ack().await.expect_problem(410, "LEASE_EXPIRED");
    broker.clock().advance(seconds(3600)).await;
    broker.consume("jobs", "g").expect_nothing().await;
}

#[tokio::test]
async fn a_lease_that_is_extended_outlives_its_first_deadline() {
    let broker = Broker::start().await;
    broker.create_topic("jobs", "Queue").await;
    broker.publish("jobs", "work").await;
    let delivery = broker.consume("jobs", "g").ack_timeout(30).await.remove(0);
    broker.clock().advance(seconds(20)).await;
    delivery.extend(60).await;
    broker.clock().advance(seconds(40)).await;
    broker.consume("jobs", "g").expect_nothing().await;
    delivery.ack().await;
}

#[tokio::test]
async fn a_nacked_message_comes_again_when_its_delay_is_over() {
    let broker = Broker::start().await;
    broker.create_topic("jobs", "Queue").await;
    broker.publish("jobs", "work").await;
    broker.consume("jobs", "g").await[0].nack_for("PT1M").await;
    broker.clock().advance(seconds(50)).await;
    broker.consume("jobs", "g").expect_nothing().await;
    broker.clock().advance(seconds(11)).await;
    let again = broker.consume("jobs", "g").collect(1).await.remove(0);
    assert_eq!(again.message.delivery_attempt, 2);
    again.ack().await;
}

#[tokio::test]
async fn a_message_that_fails_too_often_is_a_dead_letter_until_it_is_replayed() {
    let broker = Broker::start().await;
    broker.create_topic("jobs", "Queue").await;
    let body = json!({"topicName": "jobs", "consumerGroup": "g", "type": "Pull", "maxRetries": 2});
    broker.post("/subscriptions", &body).await.expect(201);
    let published = broker.publish("jobs", json!({"n": 1})).header("kind", "hard").await;
    for attempt in 1..=3 {
        let delivery = broker.consume("jobs", "g").collect(1).await.remove(0);
        assert_eq!(delivery.message.delivery_attempt, attempt);
        delivery.nack().await;
        broker.clock().advance(seconds(3600)).await;
    }
    broker.consume("jobs", "g").expect_nothing().await;

    let letters = dead_letters(&broker, "jobs").await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0]["deadLetter"]["attempts"], 3, "{letters:?}");
    assert_eq!(letters[0]["deadLetter"]["detail"], "the test says so", "{letters:?}");
    let id = letters[0]["messageId"].as_str().expect("a dead letter has an id").to_owned();
    broker.post(&format!("/topics/jobs/dlq/{id}/replay"), &json!({})).await.expect(200);
    let again = broker.consume("jobs", "g").collect(1).await.remove(0);
    assert_eq!((again.json(), again.message.headers["kind"].as_str()), (json!({"n": 1}), "hard"));
    again.ack().await;
    assert!(dead_letters(&broker, "jobs").await.is_empty(), "what was replayed is off the list");
    assert_ne!(again.id(), published.message_id, "a replay is a message of its own");
}

#[tokio::test]
async fn a_replay_is_held_against_its_topics_limit_of_now() {
    let broker = Broker::start().await;
    broker.create_topic("jobs", "Queue").await;
    let config = json!({"schema": {"type": "object"}});
    let stage = json!({"name": "s", "plugin": "json-schema", "version": "latest", "config": config,
        "onReject": "deadLetter", "timeoutMs": 1000});
    broker.put_pipeline("jobs", json!([stage])).await;
    broker.publish("jobs", "x".repeat(2000)).await;
    broker.put_pipeline("jobs", json!([])).await;
    broker.put("/topics/jobs", &json!({"maxMessageSize": 1000})).await.expect(200);
    let letters = dead_letters(&broker, "jobs").await;
    let id = letters[0]["messageId"].as_str().expect("a dead letter has an id").to_owned();
    let answer = broker.post(&format!("/topics/jobs/dlq/{id}/replay"), &json!({})).await;
    assert_eq!(answer.status, 413, "{answer}");
    assert_eq!(dead_letters(&broker, "jobs").await.len(), 1, "it stays where it is");
    broker.consume("jobs", "g").expect_nothing().await;
}

async fn dead_letters(broker: &Broker, topic: &str) -> Vec<Value> {
    let listed = broker.get(&format!("/topics/{topic}/dlq")).await.expect(200);
    listed["deadLetters"].as_array().unwrap_or_else(|| panic!("a list of dead letters: {listed}")).clone()
}

#[tokio::test]
async fn a_paused_subscription_gets_nothing_and_misses_nothing() {
    let broker = Broker::start().await;
    broker.create_topic("news", "PubSub").await;
    let subscription = broker.subscribe("news", "g").await;
    let id = subscription["subscriptionId"].as_str().expect("an id").to_owned();
    broker.post(&format!("/subscriptions/{id}/pause"), &json!({})).await.expect(200);
    broker.publish("news", "meanwhile").await;
    let answer = broker.consume("news", "g").answer().await;
    assert!(answer.status == 409 || answer.json()["messages"] == json!([]), "{answer}");
    broker.post(&format!("/subscriptions/{id}/resume"), &json!({})).await.expect(200);
    assert_eq!(payloads(&broker.consume("news", "g").collect(1).await), ["meanwhile"]);
}

#[tokio::test]
async fn the_most_urgent_message_comes_first_and_none_starves() {
    let broker = Broker::start().await;
    broker.create_topic("jobs", "Queue").await;
    broker.publish("jobs", "low").await;
    for n in 0..20 {
        broker.publish("jobs", format!("high {n}")).priority(9).await;
    }
    let deliveries = broker.consume("jobs", "g").limit(21).collect(21).await;
    let place = deliveries.iter().position(|delivery| delivery.payload() == "low").expect("it is there");
    assert!((1..=8).contains(&place), "every 8th grant goes to the lowest waiting lane, this one was {place}");
}

#[tokio::test]
async fn a_delayed_message_comes_when_it_is_due_and_an_expired_one_never() {
    let broker = Broker::start().await;
    broker.create_topic("jobs", "Queue").await;
    let later = broker.publish("jobs", "later").field("delay", "PT1H").await;
    assert_eq!(later.status, "Scheduled");
    broker.publish("jobs", "brief").field("ttl", "PT1M").await;
    broker.clock().advance(seconds(120)).await;
    broker.consume("jobs", "g").expect_nothing().await;
    broker.clock().advance(seconds(3600)).await;
    assert_eq!(payloads(&broker.consume("jobs", "g").collect(1).await), ["later"]);
}

#[tokio::test]
async fn an_ordered_subscription_keeps_each_keys_order_through_retries() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "PubSub").await;
    let body = json!({"topicName": "orders", "consumerGroup": "g", "type": "Pull", "ordered": true});
    broker.post("/subscriptions", &body).await.expect(201);
    for (key, payload) in [("a", "a1"), ("a", "a2"), ("b", "b1"), ("a", "a3")] {
        broker.publish("orders", payload).key(key).await;
    }
    let first = broker.consume("orders", "g").limit(10).await;
    assert_eq!(payloads(&first).iter().filter(|payload| payload.starts_with('a')).count(), 1, "{:?}", payloads(&first));
    first.iter().find(|delivery| delivery.payload() == "a1").expect("a1 comes first").nack_for("PT1M").await;
    broker.clock().advance(seconds(50)).await;
    let meanwhile = broker.consume("orders", "g").limit(10).await;
    assert!(payloads(&meanwhile).iter().all(|payload| payload.starts_with('b')), "{:?}", payloads(&meanwhile));
    broker.clock().advance(seconds(3600)).await;
    let mut of_a = Vec::new();
    while of_a.len() < 3 {
        for delivery in broker.consume("orders", "g").collect(1).await {
            if delivery.payload().starts_with('a') {
                of_a.push(delivery.payload().to_owned());
            }
            delivery.ack().await;
        }
    }
    assert_eq!(of_a, ["a1", "a2", "a3"]);
}

#[tokio::test]
async fn a_subscriptions_filter_lets_only_its_messages_through() {
    let broker = Broker::start().await;
    broker.create_topic("events", "PubSub").await;
    let body = json!({"topicName": "events", "consumerGroup": "g", "type": "Pull", "filter": {
        "headerMatches": {"region": "eu"},
        "payloadQuery": "$.event == 'deployment.completed' && $.severity >= 7"
    }});
    broker.post("/subscriptions", &body).await.expect(201);
    let event = |severity: u32| json!({"event": "deployment.completed", "severity": severity});
    broker.publish("events", event(3)).header("region", "eu").await;
    broker.publish("events", event(8)).header("region", "us").await;
    broker.publish("events", event(9)).header("region", "eu").await;
    let deliveries = broker.consume("events", "g").collect(1).await;
    assert_eq!(deliveries[0].json(), event(9));
    broker.consume("events", "g").expect_nothing().await;

    let mut bad = body;
    bad["consumerGroup"] = json!("h");
    bad["filter"] = json!({"payloadQuery": "$.a == "});
    broker.post("/subscriptions", &bad).await.expect_problem(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn a_topics_schema_turns_wrong_payloads_away_and_says_where() {
    let broker = Broker::start().await;
    let topic = json!({"name": "orders", "type": "Queue", "schemaId": "order"});
    let created = broker.post("/topics", &topic).await.expect(201);
    assert_eq!(created["schemaStatus"], "Unregistered");
    broker.publish("orders", json!({"anything": true})).await;

    let definition = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    let schema =
        json!({"schemaId": "order", "schemaDefinition": definition, "version": "1.0", "compatibility": "Backward"});
    broker.post("/schemas", &schema).await.expect(201);
    let rejected = wait::until("the schema is in force", async || {
        let answer = broker.publish("orders", json!({"n": "one"})).answer().await;
        (answer.status != 202).then_some(answer)
    })
    .await;
    let problem = rejected.expect_problem(422, "SCHEMA_VALIDATION_ERROR");
    assert_eq!(problem["errors"][0]["pointer"], "/payload/n", "{problem}");
    broker.publish("orders", json!({"n": 1})).await;

    let breaking = json!({"type": "object", "required": ["n", "m"], "properties": {"n": {"type": "integer"}}});
    let schema =
        json!({"schemaId": "order", "schemaDefinition": breaking, "version": "2.0", "compatibility": "Backward"});
    broker.post("/schemas", &schema).await.expect_problem(409, "CONFLICT");
}

#[tokio::test]
async fn an_exactly_once_topic_demands_key_and_receipt() {
    let broker = Broker::start().await;
    let topic = json!({"name": "payments", "type": "Queue", "deliveryGuarantee": "ExactlyOnce"});
    broker.post("/topics", &topic).await.expect(201);
    broker.publish("payments", json!({})).answer().await.expect_problem(400, "VALIDATION_ERROR");
    broker.publish("payments", json!({})).idempotency_key("p1").await;
    let delivery = broker.consume("payments", "g").await.remove(0);
    let path = format!("/messages/{}/ack", delivery.id());
    broker.post(&path, &json!({"consumerGroup": "g"})).await.expect_problem(400, "VALIDATION_ERROR");
    delivery.ack().await;
}

#[tokio::test]
async fn an_at_most_once_message_is_never_handed_out_twice() {
    let mut broker = Broker::start().await;
    let topic = json!({"name": "pings", "type": "Queue", "deliveryGuarantee": "AtMostOnce"});
    broker.post("/topics", &topic).await.expect(201);
    broker.publish("pings", "once").await;
    assert_eq!(broker.consume("pings", "g").await.len(), 1);
    broker.crash().await;
    broker.clock().advance(seconds(3600)).await;
    broker.consume("pings", "g").expect_nothing().await;
}

#[tokio::test]
async fn what_is_erased_is_gone_for_readers_and_consumers() {
    let broker = Broker::start().await;
    broker.create_topic("people", "Queue").await;
    let published = broker.publish("people", json!({"name": "Ada"})).await;
    broker.get(&format!("/messages/{}", published.message_id)).await.expect(200);
    broker.delete(&format!("/messages/{}", published.message_id)).await.expect(204);
    broker.get(&format!("/messages/{}", published.message_id)).await.expect_problem(404, "NOT_FOUND");
    broker.consume("people", "g").expect_nothing().await;
}

#[tokio::test]
async fn a_topic_tells_how_far_its_groups_are_behind_in_messages_and_in_seconds() {
    let broker = Broker::start().await;
    broker.create_topic("news", "PubSub").await;
    broker.subscribe("news", "slow").await;
    broker.subscribe("news", "quick").await;
    let figures = async |group: &str| {
        let metrics = broker.get("/topics/news/metrics").await.expect(200);
        let groups = metrics["groups"].as_array().expect("a list").clone();
        let found = groups.into_iter().find(|figures| figures["consumerGroup"] == group);
        found.unwrap_or_else(|| panic!("{metrics} has {group}"))
    };
    assert_eq!((&figures("slow").await["lag"], &figures("slow").await["lagSeconds"]), (&json!(0), &json!(0)));
    broker.publish("news", "1").await;
    broker.clock().advance(seconds(90)).await;
    broker.publish("news", "2").await;
    for delivery in broker.consume("news", "quick").collect(2).await {
        delivery.ack().await;
    }
    let held = broker.consume("news", "slow").limit(1).await;
    let (slow, quick) = (figures("slow").await, figures("quick").await);
    assert_eq!((&slow["lag"], &slow["inFlight"]), (&json!(1), &json!(1)), "{slow}");
    assert!((90..100).contains(&slow["lagSeconds"].as_u64().expect("a number")), "{slow}");
    assert_eq!((&quick["lag"], &quick["lagSeconds"]), (&json!(0), &json!(0)), "{quick}");

    held[0].ack().await;
    let slow = figures("slow").await;
    assert!(slow["lagSeconds"].as_u64().expect("a number") < 10, "{slow}");
}

#[tokio::test]
async fn a_seek_to_a_snapshot_brings_back_what_was_not_settled_then() {
    let mut broker = Broker::start().await;
    broker.create_topic("events", "PubSub").await;
    let subscription = broker.subscribe("events", "g").await;
    let page = format!("/subscriptions/{}", subscription["subscriptionId"].as_str().expect("an id"));
    for payload in ["a", "b"] {
        broker.publish("events", payload).await;
    }
    broker.consume("events", "g").limit(1).await[0].ack().await;
    let made = broker.put(&format!("{page}/snapshots/release-1"), &json!({})).await.expect(200);
    assert!(made["name"] == "release-1" && made["createdAt"].is_string(), "{made}");
    broker.publish("events", "c").await;
    broker.consume("events", "g").drain(2).await;

    broker.crash().await;
    let listed = broker.get(&format!("{page}/snapshots")).await.expect(200);
    assert_eq!((&listed["total"], &listed["snapshots"][0]), (&json!(1), &made), "{listed}");
    broker.post(&format!("{page}/seek"), &json!({"snapshot": "release-1"})).await.expect(200);
    let back = broker.consume("events", "g").collect(2).await;
    assert_eq!(back.iter().map(|delivery| delivery.payload()).collect::<Vec<_>>(), ["b", "c"]);

    broker.delete(&format!("{page}/snapshots/release-1")).await.expect(204);
    broker.delete(&format!("{page}/snapshots/release-1")).await.expect_problem(404, "NOT_FOUND");
    broker.post(&format!("{page}/seek"), &json!({"snapshot": "release-1"})).await.expect_problem(404, "NOT_FOUND");
    for number in 0..16 {
        broker.put(&format!("{page}/snapshots/{number}"), &json!({})).await.expect(200);
    }
    broker.put(&format!("{page}/snapshots/0"), &json!({})).await.expect(200);
    broker.put(&format!("{page}/snapshots/one-more"), &json!({})).await.expect_problem(409, "CONFLICT");
}
