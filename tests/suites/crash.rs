//! `kill -9` at any instant breaks no promise. Seeded rounds: clients publish (single, batch, with keys), consume, ack and
//! nack; the broker is killed in their midst and started again; at the end a checker judges what the clients have seen.
//! Invariant: a round is killed after a number of operations that its seed chooses, not after a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use sluice_tests::consume::Consume;
use sluice_tests::history::History;
use sluice_tests::{Broker, Client, Delivery, Published, Receiver, wait};
use tokio::task::JoinSet;

const TOPIC: &str = "crash";
const GROUP: &str = "workers";
const PUBLISHERS: usize = 3;
const CONSUMERS: usize = 2;
/// Enough that a kill meets every step of a message's way; `make soak` runs more.
const ROUNDS: u64 = 20;

/// What the clients of one round share.
struct Round {
    number: u64,
    client: Client,
    history: Arc<History>,
    stop: AtomicBool,
    next_tag: AtomicUsize,
    /// Tags that were published under a key: repeated after the crash.
    keyed: parking_lot::Mutex<Vec<String>>,
    /// Leases that nobody has settled: after the crash they must be refused.
    held: parking_lot::Mutex<Vec<Delivery>>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_instant_breaks_no_promise() {
    let rounds = std::env::var("SLUICE_CRASH_ROUNDS").ok().map_or(ROUNDS, |text| text.parse().expect("a number"));
    let mut broker = Broker::start().await;
    broker.post("/topics", &json!({"name": TOPIC, "type": "PubSub", "partitionCount": 3})).await.expect(201);
    // A crash ends leases, which counts as attempts: with the usual three retries messages would become dead letters.
    let subscription = json!({
        "topicName": TOPIC, "consumerGroup": GROUP, "type": "Pull", "maxRetries": 100,
        "backoff": {"initial": "PT1S", "multiplier": 1, "max": "PT1S", "jitter": 0}
    });
    broker.post("/subscriptions", &subscription).await.expect(201);
    let receiver = Receiver::start().await;
    broker.subscribe_push(TOPIC, "hook", &receiver.url(), json!({"maxRetries": 100})).await;
    let history = Arc::new(History::default());
    for number in 0..rounds {
        let held = one_round(&mut broker, number, &history).await;
        assert_late_receipts_are_refused(&held).await;
    }
    drain(&broker, &history).await;
    assert_each_was_posted(&broker, &receiver, &history).await;
    println!("{rounds} rounds: {}", history.summary());
    let violations = history.violations();
    assert!(violations.is_empty(), "{} promises broken:\n{}", violations.len(), violations.join("\n"));
}

async fn one_round(broker: &mut Broker, number: u64, history: &Arc<History>) -> Vec<Delivery> {
    let round = Arc::new(Round {
        number,
        client: broker.admin(),
        history: history.clone(),
        stop: AtomicBool::new(false),
        next_tag: AtomicUsize::new(0),
        keyed: parking_lot::Mutex::default(),
        held: parking_lot::Mutex::default(),
    });
    let mut clients = JoinSet::new();
    for worker in 0..PUBLISHERS + CONSUMERS {
        let (round, seed) = (round.clone(), number * 100 + worker as u64);
        clients.spawn(async move {
            let random = StdRng::seed_from_u64(seed);
            if worker < PUBLISHERS { publish(&round, random).await } else { consume(&round, random).await }
        });
    }
    let operations = history.len() + StdRng::seed_from_u64(number).random_range(30..400_usize);
    wait::until("enough operations to kill the broker in their midst", async || {
        (history.len() >= operations).then_some(())
    })
    .await;
    broker.kill();
    round.stop.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client does not panic");
    }
    broker.restart().await;
    repeat_unanswered(&round).await;
    std::mem::take(&mut *round.held.lock())
}

impl Round {
    fn running(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn tag(&self, kind: &str) -> String {
        format!("{kind}-{}-{}", self.number, self.next_tag.fetch_add(1, Ordering::SeqCst))
    }
}

async fn publish(round: &Round, mut random: StdRng) {
    while round.running() {
        match random.random_range(0..3) {
            0 => publish_one(round).await,
            1 => {
                let tag = round.tag("keyed");
                round.keyed.lock().push(tag.clone());
                publish_keyed(round, &tag).await;
            }
            _ => publish_batch(round, random.random_range(2..20)).await,
        }
    }
}

/// Without a key nothing is repeated: it may or may not have been stored.
async fn publish_one(round: &Round) {
    let tag = round.tag("single");
    round.history.publish_asked(&tag);
    if let Ok(answer) = round.client.publish(TOPIC, tag.as_str()).try_answer().await {
        note(&round.history, &tag, answer.status, &answer.body);
    }
}

/// With a key: what was not answered is repeated after the restart, under the same key.
async fn publish_keyed(round: &Round, tag: &str) {
    round.history.publish_asked(tag);
    if let Ok(answer) = round.client.publish(TOPIC, tag).idempotency_key(tag).try_answer().await {
        note(&round.history, tag, answer.status, &answer.body);
    }
}

/// Every keyed publish of the round, once more: those that were stored answer as duplicates of the first.
async fn repeat_unanswered(round: &Round) {
    let keyed = std::mem::take(&mut *round.keyed.lock());
    for tag in keyed {
        publish_keyed(round, &tag).await;
    }
}

async fn publish_batch(round: &Round, size: usize) {
    let tags: Vec<String> = (0..size).map(|_| round.tag("batch")).collect();
    for tag in &tags {
        round.history.publish_asked(tag);
    }
    let messages: Vec<Value> = tags.iter().map(|tag| json!({"topicName": TOPIC, "payload": tag})).collect();
    let headers = [("content-type", "application/json")];
    let body = json!({ "messages": messages }).to_string();
    let Ok(answer) = round.client.try_send(Method::POST, "/messages/publish/batch", &headers, body).await else {
        return;
    };
    if answer.status != 200 {
        for tag in &tags {
            note(&round.history, tag, answer.status, &answer.body);
        }
        return;
    }
    let answer = answer.json();
    let results = answer["results"].as_array().expect("a batch is answered item by item");
    assert_eq!(results.len(), size, "{answer}");
    for (tag, result) in tags.iter().zip(results) {
        match result["messageId"].as_str() {
            Some(id) => round.history.publish_accepted(tag, id),
            None if result["error"]["code"] == "OUTCOME_UNKNOWN" => {}
            None => round.history.publish_refused(tag),
        }
    }
}

fn note(history: &History, tag: &str, status: u16, body: &[u8]) {
    if status == 202 {
        let published: Published = serde_json::from_slice(body).expect("the answer to a publish");
        history.publish_accepted(tag, &published.message_id);
    } else if !String::from_utf8_lossy(body).contains("OUTCOME_UNKNOWN") {
        history.publish_refused(tag);
    }
}

async fn consume(round: &Round, mut random: StdRng) {
    while round.running() {
        let consume = round.client.consume(TOPIC, GROUP).limit(random.random_range(1..10)).wait(1);
        for delivery in deliveries(&round.history, &consume).await {
            match random.random_range(0..10) {
                0 => round.held.lock().push(delivery),
                1 => drop(delivery.try_settle("nack").await),
                _ => ack(&round.history, &delivery).await,
            }
        }
    }
}

async fn deliveries(history: &History, consume: &Consume) -> Vec<Delivery> {
    let began = history.consume_began();
    let Ok(answer) = consume.try_answer().await else { return Vec::new() };
    if answer.status != 200 {
        return Vec::new();
    }
    let deliveries = consume.deliveries(&answer);
    for delivery in &deliveries {
        history.delivered(delivery.payload(), delivery.id(), began);
    }
    deliveries
}

async fn ack(history: &History, delivery: &Delivery) {
    if delivery.try_settle("ack").await.is_ok_and(|answer| answer.status == 200) {
        history.ack_confirmed(delivery.payload());
    }
}

/// What was accepted reaches the webhook too, at least once.
async fn assert_each_was_posted(broker: &Broker, receiver: &Receiver, history: &History) {
    let accepted = history.accepted();
    wait::until("every accepted message is posted", async || {
        let posted: BTreeSet<String> =
            receiver.requests().iter().filter_map(|request| request.message().payload).collect();
        broker.clock().advance(Duration::from_secs(60)).await;
        accepted.is_subset(&posted).then_some(())
    })
    .await;
}

async fn assert_late_receipts_are_refused(held: &[Delivery]) {
    for delivery in held {
        delivery.try_ack().await.expect_problem(410, "LEASE_EXPIRED");
    }
}

/// Acks all that is left, moving the clock past every retry and lease.
async fn drain(broker: &Broker, history: &History) {
    let consume = broker.consume(TOPIC, GROUP).limit(1000);
    let mut empty = 0;
    while empty < 3 {
        let deliveries = deliveries(history, &consume).await;
        empty = if deliveries.is_empty() { empty + 1 } else { 0 };
        for delivery in deliveries {
            ack(history, &delivery).await;
        }
        broker.clock().advance(Duration::from_secs(60)).await;
    }
}
