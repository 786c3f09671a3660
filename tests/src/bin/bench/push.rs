//! Delivering to a webhook: a backlog to a receiver that answers at once, beside a loop of the same HTTP client that signs
//! and posts the same bytes. Invariant: both post to the same receiver, in a process of its own; what is counted is what
//! it has received.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use sluice_tests::{Broker, wait};

use super::PAIRS;
use super::bare::Bare;
use super::load::{self, Target, Work, median};
use super::report::{Budget, Report, Row, short};

const MESSAGES: usize = 40_000;
const BATCH: usize = 100;
const PAYLOAD_BYTES: usize = 1024;
const PUBLISHERS: usize = 4;
/// As many as the broker has at an endpoint at most.
const POSTERS: usize = 64;
const TOPIC: &str = "hooks";

/// The row.
pub async fn rows(report: &mut Report) {
    let broker = Broker::start().await;
    let bare = Bare::beside(&broker);
    let endpoint = format!("{}/hook", bare.client.url());
    broker.create_topic(TOPIC, "PubSub").await;
    let subscription = broker.subscribe_push(TOPIC, "g", &endpoint, json!({"maxInFlight": POSTERS})).await;
    let id = subscription["subscriptionId"].as_str().expect("an id").to_owned();
    let (mut pushed, mut posted) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        pushed.push(push(&broker, &bare, &id).await);
        posted.push(post(&bare, &endpoint).await);
    }
    report.add(Row {
        work: format!("push of a backlog of {MESSAGES}, {PAYLOAD_BYTES} B, signed, keep-alive, ≤ {POSTERS} in flight"),
        ours: format!("{} msg/s", short(median(pushed.clone()))),
        baseline: format!("a loop of the same client: {} posts/s", short(median(posted.clone()))),
        figures: pushed.iter().zip(&posted).map(|(pushed, posted)| pushed / posted).collect(),
        unit: "×",
        budget: Budget::AtLeast(0.6),
    });
}

/// Messages per second from a resume on until all that had waited are received.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn push(broker: &Broker, bare: &Bare, id: &str) -> f64 {
    broker.post(&format!("/subscriptions/{id}/pause"), &json!({})).await.expect(200);
    let target = Target::of(broker);
    let message = json!({"topicName": TOPIC, "payload": "x".repeat(PAYLOAD_BYTES)});
    let body = json!({"messages": vec![message; BATCH]}).to_string();
    let request = target.request("POST", "/messages/publish/batch", body.as_bytes());
    let work = Work::Publish { request, status: 200, messages: BATCH };
    load::run_times(&target, &work, PUBLISHERS, MESSAGES / BATCH / PUBLISHERS).await;
    let before = bare.hooks().await;
    let begun = Instant::now();
    broker.post(&format!("/subscriptions/{id}/resume"), &json!({})).await.expect(200);
    wait::within(super::PATIENCE, "all are received", async || (bare.hooks().await >= before + MESSAGES).then_some(()))
        .await;
    MESSAGES as f64 / begun.elapsed().as_secs_f64()
}

/// Posts per second of the bare loop.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn post(bare: &Bare, endpoint: &str) -> f64 {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client without TLS");
    let body: Arc<str> = envelope().to_string().into();
    let next = Arc::new(AtomicUsize::new(0));
    let before = bare.hooks().await;
    let begun = Instant::now();
    let posters = (0..POSTERS).map(|_| {
        let (client, body, next, endpoint) =
            (client.clone(), Arc::clone(&body), Arc::clone(&next), endpoint.to_owned());
        tokio::spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < MESSAGES {
                let request = client.post(&endpoint).header("content-type", "application/json");
                let request = request.header("webhook-id", "018bcfe5-68fa-7000-8000-000000000000");
                let request =
                    request.header("webhook-timestamp", "1700000000").header("webhook-signature", sign(&body));
                let answer = request.body(String::from(&*body)).send().await.expect("the receiver answers");
                assert!(answer.status().is_success());
            }
        })
    });
    for poster in posters.collect::<Vec<_>>() {
        poster.await.expect("a poster does not panic");
    }
    assert_eq!(bare.hooks().await, before + MESSAGES);
    MESSAGES as f64 / begun.elapsed().as_secs_f64()
}

/// About what the broker sends.
fn envelope() -> Value {
    json!({"messageId": "018bcfe5-68fa-7000-8000-000000000000", "topicName": TOPIC, "payload": "x".repeat(PAYLOAD_BYTES),
        "contentType": "application/json", "headers": {}, "priority": 0, "partition": 0, "offset": 123_456,
        "timestamp": "2026-01-31T12:00:00.250Z", "deliveryAttempt": 1})
}

fn sign(body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(b"a secret of 32 bytes for the load").expect("keys of any length");
    mac.update(b"018bcfe5-68fa-7000-8000-000000000000.1700000000.");
    mac.update(body.as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}
