//! What those who look after topics and endpoints are told on `sluice.events`. Invariant: each change is told once, and can be
//! subscribed to like any message.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::{Broker, Receiver, wait};

/// All that was told so far of one type.
async fn told(broker: &Broker, kind: &str) -> Vec<Value> {
    let listed = broker.get("/topics/sluice.events/messages").await.expect(200);
    let events = listed["messages"].as_array().expect("a list").iter();
    let events = events.filter(|event| event["headers"]["type"] == kind);
    events.map(|event| serde_json::from_str(event["payload"].as_str().expect("a text")).expect("JSON")).collect()
}

/// So many of one type, once they are there, and no more.
async fn told_once(broker: &Broker, kind: &str, count: usize) -> Vec<Value> {
    wait::until(&format!("{count} times {kind}"), async || {
        let events = told(broker, kind).await;
        assert!(events.len() <= count, "{events:?}");
        (events.len() == count).then_some(events)
    })
    .await
}

#[tokio::test]
async fn a_topic_that_comes_to_have_many_dead_letters_is_told_of_once() {
    let broker = Broker::start().await;
    let topic = json!({"name": "jobs", "type": "Queue", "deadLetterThreshold": 3});
    broker.post("/topics", &topic).await.expect(201);
    let queue = json!({"topicName": "jobs", "consumerGroup": "g", "type": "Pull", "maxRetries": 0});
    broker.post("/subscriptions", &queue).await.expect(201);
    let bury = async |count: usize| {
        for _ in 0..count {
            broker.publish("jobs", "bad").await;
            broker.consume("jobs", "g").collect(1).await[0].nack().await;
        }
        // Longer than the time between two looks.
        broker.clock().advance(Duration::from_secs(6)).await;
    };
    bury(2).await;
    bury(1).await;
    let first = told_once(&broker, "deadletter.threshold", 1).await.remove(0);
    assert_eq!(
        (&first["topicName"], &first["deadLetters"], &first["threshold"]),
        (&json!("jobs"), &json!(3), &json!(3))
    );
    assert!(first["oldestFailedAt"].is_string() && first["at"].is_string(), "{first}");
    bury(2).await;
    // Fewer, and then as many again: that is news.
    broker.post("/topics/jobs/dlq/replay", &json!({})).await.expect(200);
    for delivery in broker.consume("jobs", "g").collect(5).await {
        delivery.ack().await;
    }
    broker.clock().advance(Duration::from_secs(6)).await;
    wait::until("the list is looked at", async || {
        broker.clock().advance(Duration::from_secs(6)).await;
        let metrics = broker.get("/topics/jobs/metrics").await.expect(200);
        (metrics["deadLetters"] == 0).then_some(())
    })
    .await;
    // The list is looked at every five seconds of the broker's clock, by a task that nothing else holds up.
    for _ in 0..10 {
        wait::pause(Duration::from_millis(100)).await;
        broker.clock().advance(Duration::from_secs(6)).await;
    }
    bury(3).await;
    told_once(&broker, "deadletter.threshold", 2).await;
    let quiet = json!({"name": "quiet", "type": "Queue", "deadLetterThreshold": null});
    assert!(broker.post("/topics", &quiet).await.expect(201)["deadLetterThreshold"].is_null());
}

#[tokio::test]
async fn a_full_topic_is_told_of_once_while_it_lasts_and_the_news_can_be_subscribed_to() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    let alarm = broker.subscribe_push("sluice.events", "alarm", &receiver.url(), json!({})).await;
    broker.post("/topics", &json!({"name": "small", "type": "Queue", "retentionBytes": 4096})).await.expect(201);
    let fill = async || {
        while broker.publish("small", "x".repeat(500)).answer().await.status == 202 {}
        broker.publish("small", "x".repeat(500)).answer().await.expect_problem(429, "TOPIC_FULL");
    };
    fill().await;
    let request = receiver.received(1).await.remove(0);
    request.verify(alarm["secret"].as_str().expect("a secret"));
    let event: Value = serde_json::from_str(&request.message().payload.expect("a text")).expect("JSON");
    assert_eq!(
        (&event["type"], &event["topicName"], &event["retentionBytes"]),
        (&json!("topic.full"), &json!("small"), &json!(4096))
    );
    told_once(&broker, "topic.full", 1).await;
    broker.clock().advance(Duration::from_secs(120)).await;
    fill().await;
    told_once(&broker, "topic.full", 2).await;
    assert_eq!(broker.metric(r#"sluice_events_total{type="topic.full"}"#).await, Some(2.0));
}

#[tokio::test]
async fn an_endpoint_that_is_sent_nothing_is_told_of_once_and_so_is_its_recovery() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    broker.create_topic("orders", "PubSub").await;
    let made = broker.subscribe_push("orders", "hook", &receiver.url(), json!({"maxRetries": 100})).await;
    let id = made["subscriptionId"].as_str().expect("an id").to_owned();
    // Ten failures in a row open the breaker; one probe fails, the next one does not.
    receiver.answers([500_u16; 11]);
    for number in 0..12 {
        broker.publish("orders", number).await;
    }
    let disabled = told_once(&broker, "endpoint.disabled", 1).await.remove(0);
    let detail = disabled["detail"].as_str().expect("a text");
    assert!(disabled["reason"] == "BREAKER_OPEN" && detail.starts_with("HTTP_500"), "{disabled}");
    assert_eq!(
        (&disabled["subscriptionId"], &disabled["topicName"], &disabled["consumerGroup"]),
        (&json!(id), &json!("orders"), &json!("hook"))
    );
    let recovered = wait::until("it works again", async || {
        broker.clock().advance(Duration::from_secs(20)).await;
        told(&broker, "endpoint.recovered").await.pop()
    })
    .await;
    assert_eq!(recovered["subscriptionId"], json!(id));
    told_once(&broker, "endpoint.disabled", 1).await;
    wait::until("all came", async || {
        broker.clock().advance(Duration::from_secs(60)).await;
        (receiver.requests().len() >= 23).then_some(())
    })
    .await;

    receiver.answers([410_u16]);
    broker.publish("orders", "gone").await;
    let gone = told_once(&broker, "endpoint.disabled", 2).await.pop().expect("there are two");
    assert_eq!(gone["reason"], "GONE", "{gone}");
    wait::until("it is paused", async || {
        let shown = broker.get(&format!("/subscriptions/{id}")).await.expect(200);
        (shown["isActive"] == false).then_some(())
    })
    .await;
    broker.post(&format!("/subscriptions/{id}/resume"), &json!({})).await.expect(200);
    told_once(&broker, "endpoint.recovered", 2).await;
}
