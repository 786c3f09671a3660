//! The operator of a round: stops and continues the process, moves its clock past every lease, pauses and resumes,
//! creates and deletes topics. Invariant: what was confirmed holds after the crash; what was not may be either.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sluice_tests::broker::signal;
use sluice_tests::{Broker, Client, TestClock};
use tokio::task::JoinHandle;

use super::{GROUP, Round, clients, leases_ended, leases_may_end, passing_topic};

/// Longer than the consumers' leases.
pub(super) const PAST_EVERY_LEASE: Duration = Duration::from_secs(clients::LEASE_SECONDS as u64 + 1);

/// Its answers tell the broker's time; nobody consumes from it.
pub(super) const CLOCK_TOPIC: &str = "crash.clock";
/// Less than any step of the clock.
const SEEN_WITHIN_MS: i64 = 30_000;

/// A running operator.
pub(super) struct Operator(JoinHandle<Seen>);

/// What the operator was told.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Topic → whether it is there; absent where an answer is missing.
    topics: BTreeMap<String, bool>,
}

impl Operator {
    pub(super) fn start(round: Arc<Round>, broker: &Broker) -> Operator {
        let (clock, process) = (broker.clock().clone(), broker.process_id());
        let random = StdRng::seed_from_u64(round.number * 100 + 99);
        Operator(tokio::spawn(async move { operate(&round, &clock, process, random).await }))
    }

    pub(super) async fn stop(self) -> Seen {
        self.0.await.expect("the operator does not panic")
    }
}

async fn operate(round: &Round, clock: &TestClock, process: u32, mut random: StdRng) -> Seen {
    let mut seen = Seen::default();
    while round.running() {
        match random.random_range(0..4) {
            0 => stop_beyond_leases(round, clock, process).await,
            1 => pause_and_resume(round, &mut random).await,
            _ => create_and_delete(round, &mut seen, &mut random).await,
        }
    }
    seen
}

/// The process sleeps, and when it wakes all its leases are over: what it hands out now must not be held by another.
async fn stop_beyond_leases(round: &Round, clock: &TestClock, pid: u32) {
    let ending = leases_may_end(&round.lines);
    // Either may find the process gone: it is killed at any instant.
    let _ = signal(pid, "STOP");
    clock.advance(PAST_EVERY_LEASE).await;
    let _ = signal(pid, "CONT");
    until_seen(&round.client, clock, || round.running()).await;
    leases_ended(&round.lines, &ending);
}

/// Until the broker's clock is where ours is, which may take a starved process a while; or until it is gone.
pub(super) async fn until_seen(client: &Client, clock: &TestClock, running: impl Fn() -> bool) {
    let wanted = clock.now_ms() - SEEN_WITHIN_MS;
    while running() {
        let Ok(answer) = client.publish(CLOCK_TOPIC, "what time is it?").try_answer().await else { return };
        if answer.status != 202 {
            continue;
        }
        let at: jiff::Timestamp = answer.json()["publishedAt"].as_str().expect("a time").parse().expect("RFC 3339");
        if at.as_millisecond() >= wanted {
            return;
        }
    }
}

async fn pause_and_resume(round: &Round, random: &mut StdRng) {
    let line = &round.lines[random.random_range(0..round.lines.len())];
    let path = format!("/subscriptions?topicName={}&consumerGroup={GROUP}", line.topic);
    let Ok(answer) = round.client.try_send(Method::GET, &path, &[], Vec::new()).await else { return };
    if answer.status != 200 {
        return;
    }
    let listed = answer.json();
    let id = listed["subscriptions"][0]["subscriptionId"].as_str().expect("the group's subscription").to_owned();
    for action in ["pause", "resume"] {
        let path = format!("/subscriptions/{id}/{action}");
        if let Ok(answer) = round.client.try_send(Method::POST, &path, &[], Vec::new()).await {
            assert!(answer.status == 200 || answer.status >= 500, "{answer}");
        }
    }
}

async fn create_and_delete(round: &Round, seen: &mut Seen, random: &mut StdRng) {
    let name = round.tag("passing");
    let headers = [("content-type", "application/json")];
    let body = passing_topic(&name).to_string();
    match round.client.try_send(Method::POST, "/topics", &headers, body).await {
        Ok(answer) if answer.status == 201 => seen.topics.insert(name.clone(), true),
        Ok(answer) => panic!("{answer}"),
        Err(_) => return,
    };
    drop(round.client.publish(&name, "passing").try_answer().await);
    if random.random_range(0..3) == 0 {
        return;
    }
    match round.client.try_send(Method::DELETE, &format!("/topics/{name}?force=true"), &[], Vec::new()).await {
        Ok(answer) if answer.status == 204 => seen.topics.insert(name, false),
        Ok(answer) => panic!("{answer}"),
        Err(_) => seen.topics.remove(&name),
    };
}

impl Seen {
    /// After the restart each topic is there or gone as was confirmed, and every group is resumed: a kill may have come
    /// between pause and resume.
    pub(super) async fn assert_kept(self, broker: &Broker) {
        for (name, there) in self.topics {
            let answer = broker.get(&format!("/topics/{name}")).await;
            assert_eq!(answer.status, if there { 200 } else { 404 }, "{answer}");
            if there {
                broker.publish(&name, "after the restart").await;
                broker.delete(&format!("/topics/{name}?force=true")).await.expect(204);
            }
        }
        let listed = broker.get("/subscriptions?isActive=false").await.expect(200);
        for paused in listed["subscriptions"].as_array().expect("a list") {
            let id = paused["subscriptionId"].as_str().expect("an id");
            broker.post(&format!("/subscriptions/{id}/resume"), &serde_json::json!({})).await.expect(200);
        }
    }
}
