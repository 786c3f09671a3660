//! `kill -9` at any instant breaks no promise. Seeded rounds: clients publish (single, batch, with keys), consume, ack and
//! nack on topics of every guarantee, an operator stops and continues the process, moves its clock past every lease,
//! pauses, creates and deletes; the broker is killed in their midst and started again; at the end a checker judges what
//! the clients have seen. Invariant: a round is killed after a number of operations that its seed chooses, not after a time.

mod clients;
mod operator;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use sluice_tests::history::{History, Moment, Promise};
use sluice_tests::{Broker, Client, Delivery, Receiver, wait};
use tokio::task::JoinSet;

const GROUP: &str = "workers";
const PUBLISHERS: usize = 3;
const CONSUMERS: usize = 3;
/// Enough that a kill meets every step of a message's way; `make soak` runs more.
const ROUNDS: u64 = 20;

/// A topic, what its clients promise themselves of it, and what they have seen.
struct Line {
    topic: &'static str,
    history: History,
}

/// What the clients of one round share.
struct Round {
    number: u64,
    client: Client,
    lines: Arc<[Line]>,
    stop: AtomicBool,
    next_tag: AtomicUsize,
    /// Topic and tag of what was published under an idempotency key: repeated after the crash.
    keyed: parking_lot::Mutex<Vec<(usize, String)>>,
    /// Leases that nobody has settled: after the crash they must be refused.
    held: parking_lot::Mutex<Vec<Delivery>>,
}

impl Round {
    fn running(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn tag(&self, kind: &str) -> String {
        format!("{kind}-{}-{}", self.number, self.next_tag.fetch_add(1, Ordering::SeqCst))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_instant_breaks_no_promise() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let rounds = number("SLUICE_CRASH_ROUNDS").unwrap_or(ROUNDS);
    let first = number("SLUICE_CRASH_SEED").unwrap_or(0);
    let mut broker = Broker::start().await;
    let receiver = Receiver::start().await;
    let lines = set_up(&broker, &receiver).await;
    for number in first..first + rounds {
        let held = one_round(&mut broker, number, &lines).await;
        for delivery in held {
            delivery.try_ack().await.expect_problem(410, "LEASE_EXPIRED");
        }
    }
    for line in lines.iter() {
        drain(&broker, line).await;
    }
    assert_each_was_posted(&broker, &receiver, &lines[0].history).await;
    let mut violations = Vec::new();
    for line in lines.iter() {
        println!("{rounds} rounds: {}", line.history.summary());
        violations.extend(line.history.violations());
    }
    assert!(violations.is_empty(), "{} promises broken:\n{}", violations.len(), violations.join("\n"));
}

async fn set_up(broker: &Broker, receiver: &Receiver) -> Arc<[Line]> {
    let line = |topic, promise| Line { topic, history: History::of(promise) };
    let lines: Arc<[Line]> = Arc::new([
        line("crash.least", Promise::AtLeastOnce),
        line("crash.most", Promise::AtMostOnce),
        line("crash.exactly", Promise::ExactlyOnce),
        line("crash.ordered", Promise::Ordered),
        line("crash.brief", Promise::Brief),
    ]);
    broker.create_topic(operator::CLOCK_TOPIC, "Queue").await;
    for line in lines.iter() {
        let promise = line.history.promise();
        let guarantee = match promise {
            Promise::AtMostOnce => "AtMostOnce",
            Promise::ExactlyOnce => "ExactlyOnce",
            _ => "AtLeastOnce",
        };
        // The clock moves by minutes a round: nothing but the brief topic's messages may grow too old meanwhile.
        let topic = json!({
            "name": line.topic, "type": "PubSub", "partitionCount": 3, "deliveryGuarantee": guarantee,
            "dedupWindow": "P7D", "retentionPeriod": if promise == Promise::Brief { "PT10M" } else { "P365D" },
        });
        broker.post("/topics", &topic).await.expect(201);
        // A crash ends leases, which counts as attempts: with the usual three retries messages would become dead letters.
        let subscription = json!({
            "topicName": line.topic, "consumerGroup": GROUP, "type": "Pull", "maxRetries": 100,
            "ordered": promise == Promise::Ordered,
            "backoff": {"initial": "PT1S", "multiplier": 1, "max": "PT1S", "jitter": 0}
        });
        broker.post("/subscriptions", &subscription).await.expect(201);
    }
    broker.subscribe_push(lines[0].topic, "hook", &receiver.url(), json!({"maxRetries": 100})).await;
    lines
}

/// What a killed broker leaves is no damage, where it keeps messages in its directory.
fn assert_sound(broker: &Broker) {
    let data_dir = broker.data_dir();
    if !data_dir.join("store").is_dir() {
        return;
    }
    let checked = broker.cli(&["verify", "--data-dir", data_dir.to_str().expect("a temporary folder's path is text")]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

async fn one_round(broker: &mut Broker, number: u64, lines: &Arc<[Line]>) -> Vec<Delivery> {
    let round = Arc::new(Round {
        number,
        client: broker.admin(),
        lines: lines.clone(),
        stop: AtomicBool::new(false),
        next_tag: AtomicUsize::new(0),
        keyed: parking_lot::Mutex::default(),
        held: parking_lot::Mutex::default(),
    });
    let mut clients = JoinSet::new();
    for worker in 0..PUBLISHERS + CONSUMERS {
        let round = round.clone();
        let random = StdRng::seed_from_u64(number * 100 + worker as u64);
        clients.spawn(async move {
            if worker < PUBLISHERS {
                clients::publish(&round, worker, random).await;
            } else {
                clients::consume(&round, random).await;
            }
        });
    }
    let operator = operator::Operator::start(round.clone(), broker);
    let operations = || lines.iter().map(|line| line.history.len()).sum::<usize>();
    let enough = operations() + StdRng::seed_from_u64(number).random_range(30..600_usize);
    wait::until("enough operations to kill the broker in their midst", async || (operations() >= enough).then_some(()))
        .await;
    let ending = leases_may_end(lines);
    broker.kill();
    round.stop.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client does not panic");
    }
    let seen = operator.stop().await;
    assert_sound(broker);
    broker.restart().await;
    leases_ended(lines, &ending);
    clients::repeat_keyed(&round).await;
    seen.assert_kept(broker).await;
    std::mem::take(&mut *round.held.lock())
}

fn leases_may_end(lines: &[Line]) -> Vec<Moment> {
    lines.iter().map(|line| line.history.leases_may_end()).collect()
}

fn leases_ended(lines: &[Line], since: &[Moment]) {
    for (line, since) in lines.iter().zip(since) {
        line.history.leases_ended(*since);
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

/// Acks all that is left, moving the clock past every retry and lease.
async fn drain(broker: &Broker, line: &Line) {
    let consume = broker.consume(line.topic, GROUP).limit(1000).ack_timeout(clients::LEASE_SECONDS);
    let mut empty = 0;
    while empty < 3 {
        let deliveries = clients::deliveries(&line.history, &consume, 1000).await;
        empty = if deliveries.is_empty() { empty + 1 } else { 0 };
        for delivery in deliveries {
            clients::ack(&line.history, &delivery).await;
        }
        let ending = line.history.leases_may_end();
        broker.clock().advance(operator::PAST_EVERY_LEASE).await;
        operator::until_seen(broker, broker.clock(), || true).await;
        line.history.leases_ended(ending);
    }
}

/// A topic as an operator creates it for a moment.
fn passing_topic(name: &str) -> Value {
    json!({"name": name, "type": "Queue", "partitionCount": 2})
}
