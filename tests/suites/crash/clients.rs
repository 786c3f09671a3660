//! Publishers and consumers of a round. Invariant: whatever they do is in the history before it is sent, and its outcome
//! after; a request without an answer has no outcome. Never judges.

use http::Method;
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use sluice_tests::consume::Consume;
use sluice_tests::history::{History, Promise};
use sluice_tests::{Answer, Delivery, Published};

use super::{GROUP, Line, Round};

/// Longer than a round may take in real time, so that only the operator's clock ends a lease.
pub(super) const LEASE_SECONDS: u32 = 300;

pub(super) async fn publish(round: &Round, worker: usize, mut random: StdRng) {
    while round.running() {
        let number = random.random_range(0..round.lines.len());
        let line = &round.lines[number];
        match (line.history.promise(), random.random_range(0..3)) {
            (Promise::Ordered, _) => {
                // A key has one publisher, which waits for each answer: only so is there an order to keep.
                let key = format!("{worker}-{}", random.random_range(0..3));
                publish_in_order(round, line, &key).await;
            }
            (Promise::ExactlyOnce, _) | (_, 1) => {
                let tag = round.tag("keyed");
                round.keyed.lock().push((number, tag.clone()));
                publish_keyed(round, line, &tag).await;
            }
            (_, 0) => publish_one(round, line).await,
            _ => publish_batch(round, line, random.random_range(2..20)).await,
        }
    }
}

/// Without an idempotency key nothing is repeated: it may or may not have been stored.
async fn publish_one(round: &Round, line: &Line) {
    let tag = round.tag("single");
    line.history.publish_asked(&tag);
    if let Ok(answer) = round.client.publish(line.topic, tag.as_str()).try_answer().await {
        note(&line.history, &tag, &answer);
    }
}

async fn publish_in_order(round: &Round, line: &Line, key: &str) {
    let tag = round.tag("ordered");
    line.history.publish_under_key_asked(&tag, key);
    if let Ok(answer) = round.client.publish(line.topic, tag.as_str()).key(key).try_answer().await {
        note(&line.history, &tag, &answer);
    }
}

async fn publish_keyed(round: &Round, line: &Line, tag: &str) {
    line.history.publish_asked(tag);
    if let Ok(answer) = round.client.publish(line.topic, tag).idempotency_key(tag).try_answer().await {
        note(&line.history, tag, &answer);
    }
}

/// Every publish of the round under an idempotency key, once more: what was stored answers as a duplicate of the first.
pub(super) async fn repeat_keyed(round: &Round) {
    let keyed = std::mem::take(&mut *round.keyed.lock());
    for (line, tag) in keyed {
        publish_keyed(round, &round.lines[line], &tag).await;
    }
}

async fn publish_batch(round: &Round, line: &Line, size: usize) {
    let tags: Vec<String> = (0..size).map(|_| round.tag("batch")).collect();
    for tag in &tags {
        line.history.publish_asked(tag);
    }
    let messages: Vec<Value> = tags.iter().map(|tag| json!({"topicName": line.topic, "payload": tag})).collect();
    let headers = [("content-type", "application/json")];
    let body = json!({ "messages": messages }).to_string();
    let Ok(answer) = round.client.try_send(Method::POST, "/messages/publish/batch", &headers, body).await else {
        return;
    };
    if answer.status != 200 {
        for tag in &tags {
            note(&line.history, tag, &answer);
        }
        return;
    }
    let answer = answer.json();
    let results = answer["results"].as_array().expect("a batch is answered item by item");
    assert_eq!(results.len(), size, "{answer}");
    for (tag, result) in tags.iter().zip(results) {
        match result["messageId"].as_str() {
            Some(id) => line.history.publish_accepted(tag, id),
            None if result["error"]["code"] == "OUTCOME_UNKNOWN" => {}
            None => line.history.publish_refused(tag),
        }
    }
}

fn note(history: &History, tag: &str, answer: &Answer) {
    if answer.status == 202 {
        let published: Published = answer.expect_as(202);
        history.publish_accepted(tag, &published.message_id);
    } else if !answer.text().contains("OUTCOME_UNKNOWN") {
        history.publish_refused(tag);
    }
}

pub(super) async fn consume(round: &Round, mut random: StdRng) {
    while round.running() {
        let line = &round.lines[random.random_range(0..round.lines.len())];
        let limit = random.random_range(1..10);
        let consume = round.client.consume(line.topic, GROUP).limit(limit).wait(1).ack_timeout(LEASE_SECONDS);
        let deliveries = deliveries(&line.history, &consume, limit).await;
        if line.history.promise() == Promise::AtMostOnce {
            continue;
        }
        for delivery in deliveries {
            match random.random_range(0..10) {
                0 => round.held.lock().push(delivery),
                1 => nack(&line.history, &delivery).await,
                _ => ack(&line.history, &delivery).await,
            }
        }
    }
}

pub(super) async fn deliveries(history: &History, consume: &Consume, limit: usize) -> Vec<Delivery> {
    let began = history.consume_began();
    let Ok(answer) = consume.try_answer().await else {
        history.consume_lost(limit);
        return Vec::new();
    };
    if answer.status != 200 {
        return Vec::new();
    }
    let deliveries = consume.deliveries(&answer);
    for delivery in &deliveries {
        history.delivered(delivery.payload(), delivery.id(), began);
    }
    deliveries
}

/// Acks what has to be acked: at most once is settled when it is handed out.
pub(super) async fn ack(history: &History, delivery: &Delivery) {
    if history.promise() == Promise::AtMostOnce {
        return;
    }
    history.ack_asked(delivery.payload());
    if delivery.try_settle("ack").await.is_ok_and(|answer| answer.status == 200) {
        history.ack_confirmed(delivery.payload());
    }
}

async fn nack(history: &History, delivery: &Delivery) {
    history.nack_asked(delivery.payload());
    // Refused or unanswered: then the lease ends by itself.
    drop(delivery.try_settle("nack").await);
}
