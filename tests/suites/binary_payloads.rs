//! Payloads that are no text, from end to end. Invariant: the bytes that were published are the bytes that each way out
//! brings, whichever bytes they are; none of it is ever half text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};
use sluice_tests::{Answer, Broker, Receiver, wait};

/// What breaks those who take bytes for text: every byte, broken UTF-8, NUL, nothing, and what happens to be text.
fn payloads() -> Vec<Vec<u8>> {
    vec![(0..=255).collect(), vec![0xff, 0xfe], b"\0".to_vec(), Vec::new(), b"plain text".to_vec(), vec![0xc3]]
}

async fn publish(broker: &Broker, topic: &str, bytes: &[u8]) -> Answer {
    let body =
        json!({"topicName": topic, "payloadBase64": STANDARD.encode(bytes), "contentType": "application/octet-stream"});
    broker.post("/messages/publish", &body).await
}

/// The bytes of a message in an answer, which has them in Base64 alone.
fn bytes_of(message: &Value) -> Vec<u8> {
    assert!(message["payload"].is_null(), "no text beside the bytes: {message}");
    assert_eq!(message["contentType"], "application/octet-stream", "{message}");
    let text = message["payloadBase64"].as_str().unwrap_or_else(|| panic!("bytes: {message}"));
    STANDARD.decode(text).expect("standard Base64, padded")
}

#[tokio::test]
async fn bytes_come_out_as_they_went_in_whichever_way_they_take() {
    let (broker, envelopes, raw) = (Broker::start().await, Receiver::start().await, Receiver::start().await);
    broker.create_topic("blobs", "PubSub").await;
    let body = json!({"topicName": "blobs", "consumerGroup": "g", "type": "Pull", "maxRetries": 0});
    broker.post("/subscriptions", &body).await.expect(201);
    broker.subscribe_push("blobs", "envelopes", &envelopes.url(), json!({"ordered": true})).await;
    let secret = broker.subscribe_push("blobs", "raw", &raw.url(), json!({"format": "raw", "ordered": true})).await;
    let secret = secret["secret"].as_str().expect("a secret").to_owned();
    for (number, bytes) in payloads().iter().enumerate() {
        let published = publish(&broker, "blobs", bytes).await.expect(202);

        let sent = envelopes.received(number + 1).await.pop().expect("it came");
        assert_eq!(&bytes_of(&sent.json()), bytes);
        let sent = raw.received(number + 1).await.pop().expect("it came");
        assert_eq!((&sent.body[..], sent.header("content-type")), (&bytes[..], "application/octet-stream"));
        sent.verify(&secret);

        let consumed = broker.consume("blobs", "g").answer().await.expect(200);
        let message = &consumed["messages"][0];
        assert_eq!(&bytes_of(message), bytes);
        let id = published["messageId"].as_str().expect("an id");
        assert_eq!(&bytes_of(&broker.get(&format!("/messages/{id}")).await.expect(200)), bytes);
        let browsed = broker.get("/topics/blobs/messages").await.expect(200);
        assert_eq!(&bytes_of(&browsed["messages"][number]), bytes);

        let nack = json!({"consumerGroup": "g", "receipt": message["receipt"]});
        broker.post(&format!("/messages/{id}/nack"), &nack).await.expect(200);
        let letters = wait::until("the dead letter", async || {
            let listed = broker.get("/topics/blobs/dlq").await.expect(200);
            let letters = listed["deadLetters"].as_array().expect("a list").clone();
            (!letters.is_empty()).then_some(letters)
        })
        .await;
        assert_eq!(&bytes_of(&letters[0]), bytes);
        let letter = letters[0]["messageId"].as_str().expect("an id");
        broker.post(&format!("/topics/blobs/dlq/{letter}/replay"), &json!({})).await.expect(200);
        let replayed = broker.consume("blobs", "g").answer().await.expect(200);
        assert_eq!(&bytes_of(&replayed["messages"][0]), bytes);
        let receipt = &replayed["messages"][0]["receipt"];
        broker.post("/messages/ack/batch", &json!({"acks": [{"receipt": receipt}]})).await.expect(200);
        // The replay is a message of its own in the log.
        let latest = broker.get(&format!("/messages/{}", text(&replayed["messages"][0]["messageId"]))).await;
        broker.delete(&format!("/messages/{}", text(&latest.expect(200)["messageId"]))).await.expect(204);
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("a text: {value}"))
}

#[tokio::test]
async fn a_stream_a_batch_and_a_restart_keep_bytes_too() {
    let mut broker = Broker::start().await;
    broker.create_topic("blobs", "Queue").await;
    let item = |bytes: &Vec<u8>| json!({"topicName": "blobs", "payloadBase64": STANDARD.encode(bytes)});
    let messages: Vec<Value> = payloads().iter().map(item).collect();
    let answer = broker.post("/messages/publish/batch", &json!({ "messages": messages })).await.expect(200);
    assert_eq!(answer["accepted"], payloads().len(), "{answer}");
    broker.crash().await;
    let browsed = broker.get("/topics/blobs/messages").await.expect(200);
    let stored: Vec<Vec<u8>> = browsed["messages"].as_array().expect("a list").iter().map(bytes_of).collect();
    assert_eq!(stored, payloads());
    let mut stream = broker.stream("blobs", "g", 10).await;
    for bytes in payloads() {
        let delivery = stream.next().await;
        assert_eq!(delivery.message.payload, None, "{delivery:?}");
        let read = broker.get(&format!("/messages/{}", delivery.id())).await.expect(200);
        assert_eq!(bytes_of(&read), bytes);
        delivery.ack().await;
    }
}

#[tokio::test]
async fn lines_keep_bytes_too() {
    let broker = Broker::start().await;
    broker.create_topic("blobs", "Queue").await;
    let line = |bytes: &Vec<u8>| json!({"topicName": "blobs", "payloadBase64": STANDARD.encode(bytes)}).to_string();
    let lines: Vec<String> = payloads().iter().map(line).collect();
    let headers = [("content-type", "application/x-ndjson")];
    let answer = broker.send(Method::POST, "/messages/publish/batch", &headers, lines.join("\n")).await.expect(200);
    assert_eq!(answer["accepted"], payloads().len(), "{answer}");
    let browsed = broker.get("/topics/blobs/messages").await.expect(200);
    let stored: Vec<Vec<u8>> = browsed["messages"].as_array().expect("a list").iter().map(bytes_of).collect();
    assert_eq!(stored, payloads());
}

#[tokio::test]
async fn what_is_no_base64_or_both_kinds_at_once_is_refused() {
    let broker = Broker::start().await;
    broker.create_topic("blobs", "Queue").await;
    for wrong in ["a", "aGk", "aGk=\n", "a-_=", "====", "\u{fc}"] {
        let answer = broker.post("/messages/publish", &json!({"topicName": "blobs", "payloadBase64": wrong})).await;
        let problem = answer.expect_problem(400, "VALIDATION_ERROR");
        assert_eq!(problem["errors"][0]["pointer"], "/payloadBase64", "{wrong}: {problem}");
    }
    let both = json!({"topicName": "blobs", "payloadBase64": "aGk=", "payload": "hi"});
    broker.post("/messages/publish", &both).await.expect_problem(400, "VALIDATION_ERROR");
    broker.consume("blobs", "g").expect_nothing().await;
}
