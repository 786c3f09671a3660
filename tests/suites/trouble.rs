//! The promises hold through `kill -9`, pauses of the broker and of consumers beyond their leases, and a clock that jumps
//! forward, and back when the broker starts again. Seeded rounds: topics of every guarantee are published to with delays,
//! expiries, keys and priorities, and consumed by fetching, by event stream and by webhook at once, each group with a
//! history of its own; one checker judges them all. Invariant: when something was delivered is the broker's word (a lease's
//! deadline, a webhook's timestamp), never this process's.

mod consumers;
mod lanes;
mod operator;
mod publishers;
mod webhooks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use sluice_tests::history::{History, Promise};
use sluice_tests::{Broker, Client, Delivery, Receiver, TestClock, wait};
use tokio::task::JoinSet;

use self::publishers::Keyed;

/// Of the slice that every run of the tests has; `make soak` runs more.
const ROUNDS: u64 = 5;
const PUBLISHERS: usize = 3;
/// Longer than a round may take in real time, so that only the clock's jumps end a lease.
const LEASE: Duration = Duration::from_secs(300);
/// Longer than a webhook's lease too, which has time to wait in the broker.
const PAST_EVERY_LEASE: Duration = Duration::from_secs(600);
/// Messages of an at-most-once topic that a webhook's group has at once, and so what a kill or the end of all leases can
/// take from it: their grants have settled them. Few, so that a loss that has another cause is no excuse's; more with
/// other seeds, so that several go out at once.
const fn at_risk(seed: u64) -> usize {
    1 + (seed % 4) as usize
}
/// Past every delay that a publisher asks for, and every step back of the clock.
const DRAIN_STEP: Duration = Duration::from_secs(3600);

/// How a group gets its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Fetch,
    Stream,
    Push,
}

impl How {
    fn group(self) -> &'static str {
        match self {
            How::Fetch => "fetchers",
            How::Stream => "streams",
            How::Push => "hooks",
        }
    }
}

/// A group, and what its consumers have seen.
struct View {
    how: How,
    history: History,
    /// Tag and id of what the webhook has answered with 200.
    answered: parking_lot::Mutex<Vec<(String, String)>>,
    /// See [`at_risk`].
    at_risk: usize,
}

/// A topic and its groups.
struct Line {
    topic: &'static str,
    promise: Promise,
    views: Vec<Arc<View>>,
}

/// What the clients of one round share.
struct Round {
    number: u64,
    client: Client,
    clock: TestClock,
    lines: Arc<[Line]>,
    stop: AtomicBool,
    next_tag: AtomicUsize,
    /// Published under an idempotency key: repeated after the crash.
    keyed: parking_lot::Mutex<Vec<Keyed>>,
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

    fn random(&self, worker: u64) -> StdRng {
        StdRng::seed_from_u64(self.number * 1000 + worker)
    }
}

fn views(lines: &[Line]) -> impl Iterator<Item = &Arc<View>> {
    lines.iter().flat_map(|line| &line.views)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_pauses_and_clock_jumps_break_no_promise() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let rounds = number("SLUICE_TROUBLE_ROUNDS").unwrap_or(ROUNDS);
    let first = number("SLUICE_TROUBLE_SEED").unwrap_or(0);
    let mut broker = Broker::start().await;
    let (lines, _receivers) = set_up(&broker, first).await;
    for number in first..first + rounds {
        for delivery in one_round(&mut broker, number, &lines).await {
            delivery.try_ack().await.expect_problem(410, "LEASE_EXPIRED");
        }
    }
    drain(&broker, &lines).await;
    let mut violations = Vec::new();
    for (line, view) in lines.iter().flat_map(|line| line.views.iter().map(move |view| (line, view))) {
        let never = view.history.owed().len();
        println!("{rounds} rounds, {} {:?}: {}, {never} never came", line.topic, view.how, view.history.summary());
        let found = view.history.violations();
        violations.extend(found.into_iter().map(|found| format!("{} {:?}: {found}", line.topic, view.how)));
    }
    assert!(violations.is_empty(), "{} promises broken:\n{}", violations.len(), violations.join("\n"));
}

async fn set_up(broker: &Broker, seed: u64) -> (Arc<[Line]>, Vec<Receiver>) {
    const ALL: &[How] = &[How::Fetch, How::Stream, How::Push];
    let line = |topic, promise, hows: &[How]| {
        let view = |how| View {
            how,
            history: History::of(promise),
            answered: parking_lot::Mutex::default(),
            at_risk: at_risk(seed),
        };
        Line { topic, promise, views: hows.iter().map(|how| Arc::new(view(*how))).collect() }
    };
    let lines: Arc<[Line]> = Arc::new([
        line("trouble.least", Promise::AtLeastOnce, ALL),
        line("trouble.exactly", Promise::ExactlyOnce, ALL),
        line("trouble.ordered", Promise::Ordered, ALL),
        // Of a stream nobody knows how much was under way when it broke.
        line("trouble.most", Promise::AtMostOnce, &[How::Fetch, How::Push]),
        line("trouble.lanes", Promise::Lanes, &[How::Fetch]),
    ]);
    broker.create_topic(operator::CLOCK_TOPIC, "Queue").await;
    let mut receivers = Vec::new();
    for line in lines.iter() {
        let guarantee = match line.promise {
            Promise::AtMostOnce => "AtMostOnce",
            Promise::ExactlyOnce => "ExactlyOnce",
            _ => "AtLeastOnce",
        };
        let topic = json!({
            "name": line.topic, "type": "PubSub", "deliveryGuarantee": guarantee, "dedupWindow": "P7D",
            "partitionCount": if line.promise == Promise::Lanes { 1 } else { 3 }, "retentionPeriod": "P365D",
        });
        broker.post("/topics", &topic).await.expect(201);
        for view in &line.views {
            let mut subscription = json!({
                "topicName": line.topic, "consumerGroup": view.how.group(), "type": "Pull", "maxRetries": 100,
                "ordered": line.promise == Promise::Ordered, "ackTimeout": format!("PT{}S", LEASE.as_secs()),
                "backoff": {"initial": "PT1S", "multiplier": 1, "max": "PT1S", "jitter": 0}
            });
            if view.how == How::Push {
                let receiver = webhooks::start(view, StdRng::seed_from_u64(seed)).await;
                subscription["type"] = json!("Push");
                subscription["consumerEndpoint"] = json!(receiver.url());
                receivers.push(receiver);
                if line.promise == Promise::AtMostOnce {
                    subscription["maxInFlight"] = json!(view.at_risk);
                }
            }
            broker.post("/subscriptions", &subscription).await.expect(201);
        }
    }
    (lines, receivers)
}

async fn one_round(broker: &mut Broker, number: u64, lines: &Arc<[Line]>) -> Vec<Delivery> {
    let round = Arc::new(Round {
        number,
        client: broker.admin(),
        clock: broker.clock().clone(),
        lines: lines.clone(),
        stop: AtomicBool::new(false),
        next_tag: AtomicUsize::new(0),
        keyed: parking_lot::Mutex::default(),
        held: parking_lot::Mutex::default(),
    });
    let mut clients = start_clients(&round);
    let operator = operator::Operator::start(Arc::clone(&round), broker.process_id());
    let operations = || views(lines).map(|view| view.history.len()).sum::<usize>();
    let enough = operations() + round.random(998).random_range(500..4000_usize);
    wait::until("enough operations to kill the broker in their midst", async || (operations() >= enough).then_some(()))
        .await;
    let ending: Vec<_> = views(lines).map(|view| view.history.leases_may_end()).collect();
    broker.kill();
    round.stop.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client does not panic");
    }
    operator.stop().await;
    let reached = round.clock.now_ms();
    views(lines).for_each(|view| view.history.killed(reached));
    broker.restart().await;
    views(lines).zip(ending).for_each(|(view, since)| view.history.leases_ended(since));
    grants_may_be_lost(lines);
    publishers::repeat_keyed(&round).await;
    std::mem::take(&mut *round.held.lock())
}

fn start_clients(round: &Arc<Round>) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for worker in 0..PUBLISHERS {
        let (round, random) = (Arc::clone(round), round.random(worker as u64));
        clients.spawn(async move { publishers::publish(&round, worker, random).await });
    }
    let mut worker = 100;
    for (at, line) in round.lines.iter().enumerate() {
        for view in line.views.iter().filter(|view| view.how != How::Push) {
            let (round, view, random) = (Arc::clone(round), Arc::clone(view), round.random(worker));
            worker += 1;
            clients.spawn(async move {
                let topic = round.lines[at].topic;
                match (round.lines[at].promise, view.how) {
                    (Promise::Lanes, _) => lanes::publish_and_consume(&round, topic, &view.history, random).await,
                    (_, How::Stream) => consumers::stream(&round, topic, &view, random).await,
                    _ => consumers::fetch(&round, topic, &view, random).await,
                }
            });
        }
    }
    clients
}

/// Takes all that is left, moving the clock past every delay, retry and lease; then all that was stored is accounted for.
async fn drain(broker: &Broker, lines: &[Line]) {
    let pushed = || views(lines).filter(|view| view.how == How::Push && view.history.promise() != Promise::AtMostOnce);
    wait::within(wait::PATIENCE * 4, "all is delivered and settled", async || {
        let ending: Vec<_> = views(lines).map(|view| view.history.leases_may_end()).collect();
        broker.clock().advance(DRAIN_STEP).await;
        operator::until_seen(broker, broker.clock(), lines, || true).await;
        views(lines).zip(ending).for_each(|(view, since)| view.history.leases_ended(since));
        grants_may_be_lost(lines);
        let mut empty = true;
        for line in lines {
            for view in line.views.iter().filter(|view| view.how != How::Push) {
                empty &= !consumers::take_all(broker, line.topic, view).await;
            }
        }
        let settled = are_settled(broker, lines).await;
        (empty && settled && pushed().all(|view| view.history.owed().is_empty())).then_some(())
    })
    .await;
    for line in lines {
        assert_all_accounted_for(broker, line.topic).await;
    }
}

/// All leases have ended: what was granted at most once and not posted until then never is.
fn grants_may_be_lost(lines: &[Line]) {
    let pushed = views(lines).filter(|view| view.how == How::Push && view.history.promise() == Promise::AtMostOnce);
    pushed.for_each(|view| view.history.consume_lost(view.at_risk));
}

async fn are_settled(broker: &Broker, lines: &[Line]) -> bool {
    for line in lines {
        let figures = broker.get(&format!("/topics/{}/metrics", line.topic)).await.expect(200);
        let groups = figures["groups"].as_array().expect("a list");
        let open = |group: &serde_json::Value| {
            ["lag", "inFlight", "retrying"].iter().map(|name| group[*name].as_u64().expect("a number")).sum::<u64>()
        };
        if figures["scheduled"] != 0 || groups.iter().any(|group| open(group) > 0) {
            return false;
        }
    }
    true
}

/// Each message that ever entered the log was acked, or expired and was counted.
async fn assert_all_accounted_for(broker: &Broker, topic: &str) {
    let figures = broker.get(&format!("/topics/{topic}/metrics")).await.expect(200);
    for group in figures["groups"].as_array().expect("a list") {
        let total = |name: &str| group[name].as_u64().expect("a number");
        assert_eq!(figures["publishedTotal"], total("ackedTotal") + total("expiredTotal"), "{topic}: {figures}");
        assert_eq!(group["deadLetteredTotal"], 0, "{topic}: {figures}");
    }
}
