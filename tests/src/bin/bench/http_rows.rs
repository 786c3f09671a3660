//! Publishing and consuming over HTTP, each beside the bare server. Invariant: broker and bare server take turns, pair by
//! pair; a ratio is of one pair.

use std::sync::LazyLock;

use bytes::Bytes;
use serde_json::{Value, json};
use sluice_tests::Broker;

use super::bare::Bare;
use super::load::{self, Done, Target, Work, median};
use super::report::{Budget, Report, Row, short};
use super::{BATCH, CONNECTIONS, PAIRS, PAYLOAD_BYTES, ROUND, TOPIC};

static ONE: LazyLock<Bytes> = LazyLock::new(|| message().to_string().into());
static MANY: LazyLock<Bytes> = LazyLock::new(|| {
    let messages: Vec<Value> = (0..BATCH).map(|_| message()).collect();
    json!({ "messages": messages }).to_string().into()
});

fn message() -> Value {
    json!({"topicName": TOPIC, "payload": "x".repeat(PAYLOAD_BYTES)})
}

/// One message a call.
pub fn publish_one(target: &Target) -> Work {
    Work::Publish { request: target.request("POST", "/messages/publish", &ONE), status: 202, messages: 1 }
}

/// [`BATCH`] messages a call.
pub fn publish_batch(target: &Target) -> Work {
    Work::Publish { request: target.request("POST", "/messages/publish/batch", &MANY), status: 200, messages: BATCH }
}

fn consume_and_ack(target: &Target) -> Work {
    let path = format!("/messages/consume/{TOPIC}?consumerGroup=g&limit={BATCH}&ackTimeout=300");
    Work::ConsumeAndAck { consume: target.request("GET", &path, b""), target: target.clone() }
}

/// A broker with the topic, and the bare server beside it.
struct Sides {
    targets: [Target; 2],
    _broker: Broker,
    _bare: Bare,
}

impl Sides {
    async fn start() -> Sides {
        let broker = Broker::start().await;
        broker.create_topic(TOPIC, "Queue").await;
        let bare = Bare::beside(&broker);
        Sides { targets: [Target::of(&broker), Target::of(&bare.client)], _broker: broker, _bare: bare }
    }
}

/// Publishing one by one.
pub async fn publish(report: &mut Report) {
    let sides = Sides::start().await;
    let ones = pairs(&sides.targets, publish_one).await;
    report.add(row("publish, one a call", ones, "axum, JWT, parse", 0.7));
}

/// Publishing many at once.
pub async fn batch(report: &mut Report) {
    let sides = Sides::start().await;
    let batches = pairs(&sides.targets, publish_batch).await;
    let bare = "axum, JWT, parse, one write and fdatasync per group";
    report.add(row(&format!("publish, {BATCH} a call"), batches, bare, 0.5));
}

/// Consuming and acknowledging many at once.
pub async fn consume(report: &mut Report) {
    let sides = Sides::start().await;
    // So that the rounds do not run dry.
    for _ in 0..PAIRS {
        load::run(&sides.targets[0], &publish_batch(&sides.targets[0]), CONNECTIONS, ROUND).await;
    }
    let consumed = pairs(&sides.targets, consume_and_ack).await;
    let bare = format!("axum serving {BATCH} canned messages, parsing {BATCH} receipts");
    report.add(row(&format!("consume and ack, {BATCH} a call"), consumed, &bare, 0.5));
}

fn row(work: &str, pairs: Vec<[Done; 2]>, baseline: &str, least: f64) -> Row {
    let per_second = |which: usize| short(median(pairs.iter().map(|pair| pair[which].per_second()).collect()));
    Row {
        work: format!("{work}, {PAYLOAD_BYTES} B, JWT, durable, {CONNECTIONS} connections"),
        ours: format!("{} msg/s", per_second(0)),
        baseline: format!("{baseline}: {} msg/s", per_second(1)),
        figures: pairs.iter().map(|pair| pair[0].per_second() / pair[1].per_second()).collect(),
        unit: "×",
        budget: Budget::AtLeast(least),
    }
}

async fn pairs(targets: &[Target; 2], work: fn(&Target) -> Work) -> Vec<[Done; 2]> {
    let mut pairs = Vec::new();
    for _ in 0..PAIRS {
        let sluice = load::run(&targets[0], &work(&targets[0]), CONNECTIONS, ROUND).await;
        let bare = load::run(&targets[1], &work(&targets[1]), CONNECTIONS, ROUND).await;
        pairs.push([sluice, bare]);
    }
    pairs
}
