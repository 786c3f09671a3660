//! Moving a cursor while consumers are at work. Invariant: from then on the group gets what stands behind the new place,
//! and nothing of what it held counts any more: leases, retries, attempts.

use std::time::Duration;

use serde_json::{Value, json};
use sluice::clock::Timestamp;
use sluice_tests::{Broker, Delivery, Receiver, wait};

const TOPIC: &str = "news";

async fn sought(broker: &Broker, subscription: &Value, to: impl Into<Value>) {
    let id = subscription["subscriptionId"].as_str().expect("an id");
    broker.post(&format!("/subscriptions/{id}/seek"), &json!({"to": to.into()})).await.expect(200);
}

fn payloads(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(Delivery::payload).collect()
}

/// A topic and its one subscription, whose leases last longer than any test is patient.
async fn news() -> (Broker, Value) {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, "PubSub").await;
    let body = json!({"topicName": TOPIC, "consumerGroup": "g", "type": "Pull", "ackTimeout": "PT1H"});
    let subscription = broker.post("/subscriptions", &body).await.expect(201);
    (broker, subscription)
}

/// Three messages, of which the first is done, the second is held, and the third waits.
async fn at_work() -> (Broker, Value, Delivery) {
    let (broker, subscription) = news().await;
    for payload in ["1", "2", "3"] {
        broker.publish(TOPIC, payload).await;
        broker.clock().advance(Duration::from_secs(60)).await;
    }
    broker.consume(TOPIC, "g").limit(1).await[0].ack().await;
    let held = broker.consume(TOPIC, "g").limit(1).await.remove(0);
    (broker, subscription, held)
}

#[tokio::test]
async fn a_seek_to_the_earliest_gives_all_again_and_ends_what_is_held() {
    let (broker, subscription, held) = at_work().await;
    sought(&broker, &subscription, "earliest").await;
    held.try_ack().await.expect_problem(410, "LEASE_EXPIRED");
    held.settle("nack", json!({})).await.expect_problem(410, "LEASE_EXPIRED");
    held.settle("extend", json!({"ackTimeout": 60})).await.expect_problem(410, "LEASE_EXPIRED");
    let again = broker.consume(TOPIC, "g").limit(10).await;
    assert_eq!(payloads(&again), ["1", "2", "3"]);
    assert!(again.iter().all(|delivery| delivery.message.delivery_attempt == 1), "attempts begin anew: {again:?}");
    for delivery in &again {
        delivery.ack().await;
    }
    broker.consume(TOPIC, "g").expect_nothing().await;
}

#[tokio::test]
async fn a_seek_to_the_latest_leaves_out_what_waits_what_is_held_and_what_would_be_tried_again() {
    let (broker, subscription, held) = at_work().await;
    broker.consume(TOPIC, "g").limit(1).await[0].nack_for("PT1H").await;
    sought(&broker, &subscription, "latest").await;
    held.try_ack().await.expect_problem(410, "LEASE_EXPIRED");
    broker.clock().advance(Duration::from_secs(2 * 3600)).await;
    broker.consume(TOPIC, "g").expect_nothing().await;
    broker.publish(TOPIC, "4").await;
    assert_eq!(payloads(&broker.consume(TOPIC, "g").limit(10).await), ["4"]);
    let metrics = broker.get("/topics/news/metrics").await.expect(200);
    let figures = &metrics["groups"][0];
    assert_eq!((&figures["lag"], &figures["inFlight"], &figures["retrying"]), (&json!(0), &json!(1), &json!(0)));
}

#[tokio::test]
async fn a_seek_goes_to_a_time_or_an_offset_before_or_behind_the_cursor() {
    let (broker, subscription, held) = at_work().await;
    let second = broker.get(&format!("/messages/{}", held.id())).await.expect(200);
    // Between the messages lies a minute.
    let time = second["timestamp"].as_str().expect("a time").to_owned();
    // It enters the log no earlier than its id says, however far the store's clock is behind the broker's.
    let by_its_id = i64::from_str_radix(&held.id().replace('-', "")[..12], 16).expect("a UUID with its time");
    assert_eq!(Timestamp::parse_rfc3339(&time), Ok(Timestamp(by_its_id)));
    for to in [json!(time), second["offset"].clone(), json!(second["offset"].to_string())] {
        sought(&broker, &subscription, to.clone()).await;
        assert_eq!(payloads(&broker.consume(TOPIC, "g").limit(10).await), ["2", "3"], "{to}");
    }
    sought(&broker, &subscription, broker.clock().now_rfc3339()).await;
    broker.consume(TOPIC, "g").expect_nothing().await;
    sought(&broker, &subscription, "2020-01-01T00:00:00Z").await;
    assert_eq!(payloads(&broker.consume(TOPIC, "g").limit(10).await), ["1", "2", "3"]);
    let last = second["offset"].as_u64().expect("a number") + 1;
    sought(&broker, &subscription, last).await;
    assert_eq!(payloads(&broker.consume(TOPIC, "g").limit(10).await), ["3"]);
}

#[tokio::test]
async fn who_waits_for_messages_gets_those_behind_the_new_place_at_once() {
    let (broker, subscription) = news().await;
    broker.publish(TOPIC, "1").await;
    broker.consume(TOPIC, "g").limit(1).await[0].ack().await;
    let waiting = broker.consume(TOPIC, "g").wait(30);
    let poll = tokio::spawn(async move { waiting.await });
    wait::until("the poll waits", async || {
        (broker.metric("sluice_http_requests_in_flight").await? >= 2.0).then_some(())
    })
    .await;
    sought(&broker, &subscription, "earliest").await;
    // The broker's clock stands as good as still: what ended the wait is the seek.
    let got = poll.await.expect("the poll ends");
    assert_eq!(payloads(&got), ["1"]);
}

#[tokio::test]
async fn a_stream_that_holds_all_it_may_goes_on_behind_the_new_place() {
    let (broker, subscription) = news().await;
    for payload in ["1", "2", "3"] {
        broker.publish(TOPIC, payload).await;
    }
    let mut stream = broker.stream(TOPIC, "g", 2).await;
    let (first, second) = (stream.next().await, stream.next().await);
    sought(&broker, &subscription, "earliest").await;
    // Its places are free though nobody settled, and nobody could.
    let again = [stream.next().await, stream.next().await];
    assert_eq!(payloads(&again), ["1", "2"]);
    assert_eq!(again.each_ref().map(|delivery| delivery.message.delivery_attempt), [1, 1]);
    for ended in [first, second] {
        ended.try_ack().await.expect_problem(410, "LEASE_EXPIRED");
    }
    for delivery in again {
        delivery.ack().await;
    }
    assert_eq!(stream.next().await.payload(), "3");
}

#[tokio::test]
async fn a_stream_has_a_place_free_when_what_it_holds_is_erased() {
    let (broker, _) = news().await;
    broker.publish(TOPIC, "1").await;
    broker.publish(TOPIC, "2").await;
    let mut stream = broker.stream(TOPIC, "g", 1).await;
    let held = stream.next().await;
    broker.delete(&format!("/messages/{}", held.id())).await.expect(204);
    assert_eq!(stream.next().await.payload(), "2");
}

#[tokio::test]
async fn a_webhook_is_sent_again_what_stands_behind_the_new_place() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    broker.create_topic(TOPIC, "PubSub").await;
    // No attempt ends by the clock's jump, wherever it is made: a broker that was not answered does not wait.
    let patient = json!({"ordered": true, "ackTimeout": "PT1H"});
    let subscription = broker.subscribe_push(TOPIC, "hook", &receiver.url(), patient).await;
    for payload in ["1", "2"] {
        broker.publish(TOPIC, payload).key("k").await;
    }
    receiver.received(2).await;
    // One that is to be tried again in an hour is sent now.
    receiver.answers([sluice_tests::receiver::Scripted::from(503).header("retry-after", "3600")]);
    broker.publish(TOPIC, "3").key("k").await;
    receiver.received(3).await;
    wait::until("the third waits for its next attempt", async || {
        let metrics = broker.get("/topics/news/metrics").await.expect(200);
        (metrics["groups"][0]["retrying"] == 1).then_some(())
    })
    .await;
    sought(&broker, &subscription, "earliest").await;
    // The endpoint asked for an hour, of which its other messages wait five minutes at most.
    broker.clock().advance(Duration::from_secs(301)).await;
    let requests = receiver.received(6).await;
    let sent: Vec<String> = requests[3..].iter().filter_map(|request| request.message().payload).collect();
    assert_eq!(sent, ["1", "2", "3"]);
    assert!(requests[3..].iter().all(|request| request.header("x-delivery-attempt") == "1"));
}
