//! A fleet of three under chaos: brokers are killed, stopped beyond their leases and replaced, PostgreSQL crashes and falls silent,
//! Redis is killed, emptied and paused, and the links between them are cut, slow or half open, one after the other, while
//! clients publish, consume, ack and nack on topics of every guarantee through whichever broker they come to. Invariant: one
//! checker judges what the clients have seen; what a client can't know is never held against the fleet. Each trouble is told with
//! how long after its end all three brokers served again.

mod clients;
mod troubles;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use sluice_tests::client::Client;
use sluice_tests::history::{History, Moment, Promise};
use sluice_tests::{Broker, Receiver, Settings, wait};
use tokio::task::JoinSet;

use self::troubles::{Bed, Healed, Trouble};

const NODES: [&str; 3] = ["a", "b", "c"];
const GROUP: &str = "workers";
/// What is asked of each broker once a trouble is over.
const HEALED: &str = "chaos.healed";
const PUBLISHERS: usize = 3;
const CONSUMERS: usize = 3;
/// Troubles of the slice that every run of the tests has; `make soak` has all of them for half an hour.
const SLICE: [Trouble; 6] = [
    Trouble::BrokerKilled,
    Trouble::PostgresCrashes,
    Trouble::BrokerPaused,
    Trouble::RedisPaused,
    Trouble::LinkToPostgresSilent,
    Trouble::BrokerReplaced,
];
/// How soon a fleet is to serve again once a trouble is over.
const HEALS_WITHIN: Duration = Duration::from_secs(5);
/// Between two troubles all goes well for as long.
const PEACE: Duration = Duration::from_millis(500);

/// A topic, what its clients promise themselves of it, and what they have seen.
struct Line {
    topic: &'static str,
    history: History,
}

/// What the clients share.
struct Shared {
    brokers: [RwLock<Client>; 3],
    lines: Vec<Line>,
    stop: AtomicBool,
    next_tag: AtomicUsize,
    /// Published under an idempotency key, with the line: repeated at the end.
    keyed: Mutex<Vec<(usize, String)>>,
    /// Partition, offset and revision of what was accepted by the first line.
    revisions: Mutex<Vec<(u32, u64, u64)>>,
}

impl Shared {
    fn running(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn any(&self, random: &mut StdRng) -> Client {
        self.brokers[random.random_range(0..self.brokers.len())].read().clone()
    }

    fn tag(&self) -> String {
        format!("m{}", self.next_tag.fetch_add(1, Ordering::SeqCst))
    }

    /// What a broker that is lost had leased may end from here on.
    fn leases_may_end(&self) -> Vec<Moment> {
        self.lines.iter().map(|line| line.history.leases_may_end()).collect()
    }

    fn leases_ended(&self, since: &[Moment]) {
        for (line, since) in self.lines.iter().zip(since) {
            line.history.leases_ended(*since);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_under_chaos_breaks_no_promise() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("SLUICE_CHAOS_SEED").unwrap_or(0);
    let minutes = number("SLUICE_CHAOS_MINUTES");
    let mut bed = Bed::start().await;
    let receiver = Receiver::start().await;
    let shared = set_up(&bed, &receiver).await;
    let mut clients = JoinSet::new();
    for worker in 0..PUBLISHERS + CONSUMERS {
        let (shared, random) = (Arc::clone(&shared), StdRng::seed_from_u64(seed * 100 + worker as u64));
        clients.spawn(async move {
            if worker < PUBLISHERS {
                clients::publish(&shared, worker, random).await;
            } else {
                clients::consume(&shared, random).await;
            }
        });
    }
    clients.spawn(clients::swap(Arc::clone(&shared), StdRng::seed_from_u64(seed)));
    let mut random = StdRng::seed_from_u64(seed);
    let (mut told, begun) =
        (Vec::new(), jiff::Timestamp::from_millisecond(bed.brokers[0].clock().now_ms()).expect("a time"));
    for turn in 0.. {
        let trouble = match minutes {
            None => match SLICE.get(turn) {
                Some(trouble) => *trouble,
                None => break,
            },
            Some(minutes) => {
                let now = jiff::Timestamp::from_millisecond(bed.brokers[0].clock().now_ms()).expect("a time");
                if now.duration_since(begun).as_secs() >= minutes as i64 * 60 {
                    break;
                }
                Trouble::ALL[random.random_range(0..Trouble::ALL.len())]
            }
        };
        goes_on(&shared).await;
        tokio::time::sleep(PEACE).await;
        told.push(bed.befall(trouble, &shared, &mut random).await);
    }
    shared.stop.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client does not panic");
    }
    println!("{} troubles are over; {} keys are repeated", told.len(), shared.keyed.lock().len());
    clients::repeat_keyed(&shared, &mut random).await;
    println!("what is left is consumed");
    let draining = shared.lines.iter().map(|line| clients::drain(&shared, line, StdRng::seed_from_u64(seed)));
    futures_util::future::join_all(draining).await;
    let mut violations = clients::not_posted(&receiver, &shared.lines[0].history).await;
    violations.extend(clients::falling_revisions(&shared));
    for line in &shared.lines {
        println!("{}", line.history.summary());
        violations.extend(line.history.violations().into_iter().map(|found| format!("{}: {found}", line.topic)));
    }
    tell(&told);
    assert!(violations.is_empty(), "seed {seed}: {} promises broken:\n{}", violations.len(), violations.join("\n"));
}

/// How long each trouble was felt.
fn tell(told: &[Healed]) {
    for trouble in Trouble::ALL {
        let mut took: Vec<Duration> = told.iter().filter(|one| one.trouble == trouble).map(|one| one.took).collect();
        took.sort_unstable();
        if let (Some(median), Some(longest)) = (took.get(took.len() / 2), took.last()) {
            let late = took.iter().filter(|took| **took > HEALS_WITHIN).count();
            println!(
                "{trouble:?}: {} times, served again after {:.2} s (median), {:.2} s (longest); later than {} s: {late}",
                took.len(),
                median.as_secs_f64(),
                longest.as_secs_f64(),
                HEALS_WITHIN.as_secs()
            );
        }
    }
}

/// Waits until clients have done something since.
async fn goes_on(shared: &Shared) {
    let operations = || shared.lines.iter().map(|line| line.history.len()).sum::<usize>();
    let enough = operations() + 200;
    wait::within(Duration::from_secs(60), "clients get on", async || (operations() >= enough).then_some(())).await;
}

async fn set_up(bed: &Bed, receiver: &Receiver) -> Arc<Shared> {
    let line = |topic, promise| Line { topic, history: History::of(promise) };
    let lines = vec![
        line("chaos.least", Promise::AtLeastOnce),
        line("chaos.most", Promise::AtMostOnce),
        line("chaos.exactly", Promise::ExactlyOnce),
        line("chaos.ordered", Promise::Ordered),
    ];
    let broker: &Broker = &bed.brokers[0];
    broker.create_topic(HEALED, "Queue").await;
    for line in &lines {
        let promise = line.history.promise();
        let guarantee = match promise {
            Promise::AtMostOnce => "AtMostOnce",
            Promise::ExactlyOnce => "ExactlyOnce",
            _ => "AtLeastOnce",
        };
        let topic = json!({
            "name": line.topic, "type": "PubSub", "partitionCount": 3, "deliveryGuarantee": guarantee, "dedupWindow": "P1D",
        });
        broker.post("/topics", &topic).await.expect(201);
        let subscription = json!({
            "topicName": line.topic, "consumerGroup": GROUP, "type": "Pull", "maxRetries": 100,
            "ordered": promise == Promise::Ordered,
            "backoff": {"initial": "PT1S", "multiplier": 1, "max": "PT1S", "jitter": 0}
        });
        broker.post("/subscriptions", &subscription).await.expect(201);
    }
    broker.subscribe_push(lines[0].topic, "hook", &receiver.url(), json!({"maxRetries": 100})).await;
    let brokers = [0, 1, 2].map(|at| RwLock::new(bed.brokers[at].admin()));
    Arc::new(Shared {
        brokers,
        lines,
        stop: AtomicBool::new(false),
        next_tag: AtomicUsize::new(0),
        keyed: Mutex::default(),
        revisions: Mutex::default(),
    })
}

/// A broker behind links of its own.
async fn broker(at: usize, postgres: String, redis: String) -> Broker {
    Broker::with(Settings::new().on(&postgres, NODES[at]).env("SLUICE__REDIS__URL", &redis)).await
}
