//! Delivery by webhook: signed, repeated with the same bytes, paused when told to, and never to where it must not go.
//! Invariant: signatures are checked by the receiver's own code.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::receiver::{Request, Scripted};
use sluice_tests::{Broker, Receiver, wait};
use tokio::sync::Notify;

async fn topic_with_push(broker: &Broker, receiver: &Receiver, more: Value) -> Value {
    broker.create_topic("events", "PubSub").await;
    broker.subscribe_push("events", "hook", &receiver.url(), more).await
}

fn id_of(subscription: &Value) -> String {
    let id = subscription["subscriptionId"].as_str();
    id.unwrap_or_else(|| panic!("a subscription has an id: {subscription}")).to_owned()
}

#[tokio::test]
async fn a_webhook_is_signed_and_carries_the_message() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    let subscription = topic_with_push(&broker, &receiver, json!({"headers": {"X-Env": "test"}})).await;
    let secret = subscription["secret"].as_str().expect("the secret is in the first answer");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let published =
        broker.publish("events", json!({"n": 1})).header("kind", "test").http_header("traceparent", trace).await;

    let request = receiver.received(1).await.remove(0);
    request.verify(secret);
    assert_eq!(request.header("x-topic-name"), "events");
    assert_eq!(request.header("x-message-id"), published.message_id);
    assert_eq!(request.header("x-delivery-attempt"), "1");
    assert_eq!(request.header("x-env"), "test");
    assert_eq!(request.header("content-type"), "application/json");
    assert!(request.header("traceparent").starts_with("00-"), "{}", request.header("traceparent"));
    let message = request.message();
    assert_eq!(message.payload.as_deref(), Some(r#"{"n":1}"#));
    assert_eq!((message.headers["kind"].as_str(), message.receipt), ("test", None));

    let read = broker.get(&format!("/subscriptions/{}", id_of(&subscription))).await;
    read.expect(200);
    assert!(!read.text().contains("whsec_"), "the secret is shown once: {read}");
}

#[tokio::test]
async fn a_retry_sends_the_same_id_and_body_with_the_next_attempts_number() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    let subscription = topic_with_push(&broker, &receiver, json!({})).await;
    let secret = subscription["secret"].as_str().expect("a secret").to_owned();
    receiver.answers([500_u16, 302]);
    broker.publish("events", json!({"n": 1})).await;
    receiver.received(1).await;
    let requests = until_received(&broker, &receiver, 3).await;
    for (request, attempt) in requests.iter().zip(["1", "2", "3"]) {
        request.verify(&secret);
        assert_eq!(request.header("x-delivery-attempt"), attempt);
        assert_eq!(request.header("webhook-id"), requests[0].header("webhook-id"));
        assert_eq!(request.body, requests[0].body);
    }
}

/// Moves the clock until the retries have come: the backoff has jitter, so a test can't know to the millisecond.
async fn until_received(broker: &Broker, receiver: &Receiver, count: usize) -> Vec<Request> {
    until_received_by(Duration::from_secs(1), broker, receiver, count).await
}

/// The same in steps of another length.
async fn until_received_by(step: Duration, broker: &Broker, receiver: &Receiver, count: usize) -> Vec<Request> {
    wait::until(&format!("{count} webhooks with the clock moving"), async || {
        let requests = receiver.requests();
        if requests.len() >= count {
            return Some(requests);
        }
        broker.clock().advance(step).await;
        None
    })
    .await
}

#[tokio::test]
async fn an_endpoint_that_always_fails_makes_a_dead_letter_with_its_last_status() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    topic_with_push(&broker, &receiver, json!({"maxRetries": 1})).await;
    receiver.answers([500_u16, 502]);
    broker.publish("events", json!({"n": 1})).await;
    until_received(&broker, &receiver, 2).await;
    let letters = wait::until("the dead letter", async || {
        let listed = broker.get("/topics/events/dlq").await.expect(200);
        let letters = listed["deadLetters"].as_array().expect("a list").clone();
        (!letters.is_empty()).then_some(letters)
    })
    .await;
    let facts = &letters[0]["deadLetter"];
    assert_eq!((&facts["lastStatus"], &facts["attempts"]), (&json!(502), &json!(2)), "{letters:?}");
}

#[tokio::test]
async fn an_endpoint_that_is_gone_pauses_its_subscription() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    let subscription = topic_with_push(&broker, &receiver, json!({})).await;
    let path = format!("/subscriptions/{}", id_of(&subscription));
    receiver.answers([410_u16]);
    broker.publish("events", "one").await;
    wait::until("the subscription is paused", async || {
        let read = broker.get(&path).await.expect(200);
        (read["isActive"] == json!(false)).then_some(())
    })
    .await;
    broker.publish("events", "two").await;
    broker.post(&format!("{path}/resume"), &json!({})).await.expect(200);
    let requests = until_received(&broker, &receiver, 3).await;
    let mut after: Vec<String> = requests[1..].iter().filter_map(|request| request.message().payload).collect();
    after.sort_unstable();
    assert_eq!(after, ["one", "two"], "nothing is lost by a pause");
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    topic_with_push(&broker, &receiver, json!({})).await;
    receiver.answers([Scripted::from(503).header("retry-after", "600")]);
    let published = broker.publish("events", "work").await;
    receiver.received(1).await;
    // Not while the answer is under way: its lease would end first.
    wait::until("the answer is taken", async || {
        let message = broker.get(&format!("/messages/{}", published.message_id)).await.expect(200);
        (message["groups"][0]["status"] == "Retrying").then_some(())
    })
    .await;
    broker.clock().advance(Duration::from_secs(300)).await;
    assert_eq!(receiver.requests().len(), 1, "not before the endpoint wants it");
    until_received_by(Duration::from_secs(30), &broker, &receiver, 2).await;
}

#[tokio::test]
async fn a_slow_endpoint_delays_no_other() {
    let (broker, slow, quick) = (Broker::start().await, Receiver::start().await, Receiver::start().await);
    let release = Arc::new(Notify::new());
    slow.answers((0..50).map(|_| Scripted::from(200).held_until(release.clone())));
    broker.create_topic("events", "PubSub").await;
    broker.subscribe_push("events", "slow", &slow.url(), json!({"ackTimeout": "PT10M"})).await;
    broker.subscribe_push("events", "quick", &quick.url(), json!({})).await;
    for n in 0..50 {
        broker.publish("events", format!("{n}")).await;
    }
    quick.received(50).await;
    release.notify_waiters();
}

#[tokio::test]
async fn an_ordered_webhook_keeps_each_keys_order_through_failures() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    topic_with_push(&broker, &receiver, json!({"ordered": true, "maxRetries": 20})).await;
    receiver.answers([200_u16, 500, 200, 500]);
    for n in 0..6 {
        broker.publish("events", format!("{n}")).key("k").await;
    }
    let requests = until_received(&broker, &receiver, 8).await;
    let sent: Vec<String> = requests.iter().filter_map(|request| request.message().payload).collect();
    assert_eq!(sent, ["0", "1", "1", "2", "2", "3", "4", "5"]);
}

#[tokio::test]
async fn an_endpoint_that_webhooks_may_not_reach_is_no_endpoint() {
    let broker = Broker::start().await;
    broker.create_topic("events", "PubSub").await;
    let refused = |endpoint: &str| json!({"topicName": "events", "consumerGroup": "g", "type": "Push", "consumerEndpoint": endpoint});
    for endpoint in [
        "not a url",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://user:pass@example.com/",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://[fd00::1]/",
    ] {
        broker.post("/subscriptions", &refused(endpoint)).await.expect_problem(400, "VALIDATION_ERROR");
    }
}

#[tokio::test]
async fn a_rotated_secret_signs_beside_the_old_one() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    let subscription = topic_with_push(&broker, &receiver, json!({})).await;
    let old = subscription["secret"].as_str().expect("a secret").to_owned();
    let path = format!("/subscriptions/{}/secret/rotate", id_of(&subscription));
    let rotated = broker.post(&path, &json!({})).await.expect(200);
    let new = rotated["secret"].as_str().expect("a new secret");
    assert_ne!(old, new);
    broker.publish("events", "work").await;
    let request = receiver.received(1).await.remove(0);
    request.verify(&old);
    request.verify(new);
}

#[tokio::test]
async fn how_long_the_old_secret_signs_is_the_owners_choice() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    let subscription = topic_with_push(&broker, &receiver, json!({})).await;
    let secret = |view: &Value| view["secret"].as_str().expect("a secret").to_owned();
    let path = format!("/subscriptions/{}/secret/rotate", id_of(&subscription));
    let rotated = broker.post(&path, &json!({"overlap": "PT1H"})).await.expect(200);
    assert!(rotated["previousSecretUntil"].is_string(), "{rotated}");
    let (first, second) = (secret(&subscription), secret(&rotated));
    broker.clock().advance(Duration::from_secs(3601)).await;
    broker.publish("events", "after the hour").await;
    let request = receiver.received(1).await.remove(0);
    request.verify(&second);
    assert!(request.is_forged(&first), "the old one's hour is over");

    let leaked = broker.post(&path, &json!({"overlap": "PT0S"})).await.expect(200);
    broker.publish("events", "at once").await;
    let request = receiver.received(2).await.remove(1);
    request.verify(&secret(&leaked));
    assert!(request.is_forged(&second), "a secret that has leaked signs nothing more");
    for wrong in [json!({"overlap": "P31D"}), json!({"signature": "rsa"}), json!({"overlap": null})] {
        broker.post(&path, &wrong).await.expect_problem(400, "VALIDATION_ERROR");
    }
}

#[tokio::test]
async fn a_webhook_signed_with_a_private_key_is_checked_with_the_public_one() {
    let (mut broker, receiver) = (Broker::start().await, Receiver::start().await);
    let subscription = topic_with_push(&broker, &receiver, json!({"signature": "ed25519"})).await;
    let key = subscription["publicKey"].as_str().expect("a public key").to_owned();
    assert!(subscription["secret"].is_null() && key.starts_with("whpk_"), "{subscription}");
    broker.publish("events", "work").await;
    let request = receiver.received(1).await.remove(0);
    request.verify(&key);
    assert!(request.header("webhook-signature").starts_with("v1a,"));

    let page = format!("/subscriptions/{}", id_of(&subscription));
    let refused = broker.put(&page, &json!({"signature": "hmac"})).await.expect_problem(400, "VALIDATION_ERROR");
    assert_eq!(refused["errors"][0]["pointer"], "/signature");
    let rotated = broker.post(&format!("{page}/secret/rotate"), &json!({"signature": "hmac"})).await.expect(200);
    assert!(rotated["publicKey"].is_null() && rotated["signature"] == "hmac", "{rotated}");
    broker.crash().await;
    broker.publish("events", "work").await;
    let request = receiver.received(2).await.remove(1);
    request.verify(&key);
    request.verify(rotated["secret"].as_str().expect("a secret"));
}

#[tokio::test]
async fn a_test_delivery_shows_request_and_response() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    let subscription = topic_with_push(&broker, &receiver, json!({})).await;
    let path = format!("/subscriptions/{}/test", id_of(&subscription));
    broker.post(&path, &json!({})).await.expect(200);
    let request = receiver.received(1).await.remove(0);
    request.verify(subscription["secret"].as_str().expect("a secret"));
    broker.consume("events", "hook").answer().await;
    assert_eq!(receiver.requests().len(), 1, "a test stores nothing");
}

#[tokio::test]
async fn what_expires_behind_another_of_its_key_is_not_posted_but_counted() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    broker.create_topic("orders", "PubSub").await;
    broker.subscribe_push("orders", "hook", &receiver.url(), json!({})).await;
    let release = Arc::new(Notify::new());
    receiver.answers([Scripted::from(200).held_until(Arc::clone(&release))]);
    broker.publish("orders", "first").key("k").await;
    receiver.received(1).await;
    broker.publish("orders", "second").key("k").field("ttl", "PT10S").await;
    let figure = async |name: &str| broker.get("/topics/orders/metrics").await.expect(200)["groups"][0][name].clone();
    wait::until("the second waits behind the first", async || (figure("inFlight").await == 2).then_some(())).await;
    broker.clock().advance(Duration::from_secs(11)).await;
    release.notify_one();
    wait::until("the first is acked", async || (figure("ackedTotal").await == 1).then_some(())).await;
    wait::until("the second is counted", async || (figure("expiredTotal").await == 1).then_some(())).await;
    assert_eq!(receiver.requests().len(), 1);
}
