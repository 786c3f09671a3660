//! What a topic's publishers feel of a hostile neighbour: the time of each publish to a topic with a cheap stage, at a part
//! of what the topic could take, without and with another topic whose stage misbehaves as fast as it is asked to.
//! Invariant: the two are measured in turn, pair by pair, on one broker; sends are due by the clock, so that a slow answer
//! does not thin out the load. Never asserts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use sluice_tests::{Broker, Client, guest, wait};

use super::load::median;
use super::report::{Budget, Report, Row};

const HEALTHY: &str = "healthy";
const HOSTILE: &str = "hostile";
/// Share of the healthy topic's most that is sent: DESIGN §10.
const LOAD: f64 = 0.3;
const PAIRS: usize = 5;
const ROUND: Duration = Duration::from_secs(4);
/// Publishers of the healthy topic, and of the hostile one.
const CONNECTIONS: usize = 16;
const HAMMERS: usize = 8;
/// One that never ends, one that just never fails, one that floods the log.
const MISDEEDS: [&str; 3] = ["spin", "drip", "print"];

/// A row for each misdeed.
pub async fn rows(report: &mut Report) {
    let broker = &Broker::start().await;
    set_up(broker).await;
    let per_second = most(broker).await * LOAD;
    for misdeed in MISDEEDS {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            without.push(p99_ms(broker, per_second).await);
            let hammers = Hammers::start(broker, misdeed);
            with.push(p99_ms(broker, per_second).await);
            hammers.stop().await;
        }
        report.add(Row {
            work: format!(
                "p99 of a publish at {LOAD} load beside a stage that does `{misdeed}`, {per_second:.0} msg/s"
            ),
            ours: format!("{:.2} ms", median(with.clone())),
            baseline: format!("without it: {:.2} ms", median(without.clone())),
            figures: with.iter().zip(&without).map(|(with, without)| with / without).collect(),
            unit: "×",
            budget: Budget::AtMost(1.5),
        });
    }
}

async fn set_up(broker: &Broker) {
    broker.create_topic(HEALTHY, "Queue").await;
    broker.create_topic(HOSTILE, "Queue").await;
    broker.place_plugin("hostile.wasm", guest::hostile());
    wait::until("the hostile guest is taken in", async || {
        (broker.get("/plugins/hostile").await.status == 200).then_some(())
    })
    .await;
    let cheap = json!({"name": "f", "plugin": "filter", "version": "latest", "config": {"headerMatches": {"a": "1"}}});
    broker.put_pipeline(HEALTHY, json!([cheap])).await;
    let hostile = json!({"name": "h", "plugin": "hostile", "version": "latest", "config": {}, "onFault": "pass"});
    broker.put_pipeline(HOSTILE, json!([hostile])).await;
}

async fn healthy(client: &Client) {
    let status = client.publish(HEALTHY, "x").header("a", "1").await.status;
    assert_eq!(status, "Pending");
}

/// Messages per second with all connections busy.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn most(broker: &Broker) -> f64 {
    let (done, begun) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let publisher = |client: Client, done: Arc<AtomicUsize>| async move {
        while begun.elapsed() < ROUND {
            healthy(&client).await;
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    let publishers: Vec<_> =
        (0..CONNECTIONS).map(|_| tokio::spawn(publisher(broker.admin(), Arc::clone(&done)))).collect();
    for publisher in publishers {
        publisher.await.expect("a publisher does not panic");
    }
    done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
}

/// Milliseconds from when a publish was due to its answer, for all but one in a hundred.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn p99_ms(broker: &Broker, per_second: f64) -> f64 {
    let between = Duration::from_secs_f64(CONNECTIONS as f64 / per_second);
    let begun = Instant::now();
    let publisher = |client: Client, number: usize| async move {
        let mut took = Vec::new();
        let mut due = begun + between.mul_f64(number as f64 / CONNECTIONS as f64);
        while due < begun + ROUND {
            tokio::time::sleep_until(due.into()).await;
            healthy(&client).await;
            took.push(due.elapsed().as_secs_f64() * 1000.0);
            due += between;
        }
        took
    };
    let publishers: Vec<_> = (0..CONNECTIONS).map(|number| tokio::spawn(publisher(broker.admin(), number))).collect();
    let mut all = Vec::new();
    for publisher in publishers {
        all.extend(publisher.await.expect("a publisher does not panic"));
    }
    all.sort_by(f64::total_cmp);
    all[all.len() * 99 / 100]
}

/// Publishers of the hostile topic, each again as soon as it is answered, whatever the answer.
struct Hammers {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Hammers {
    fn start(broker: &Broker, misdeed: &'static str) -> Hammers {
        let stop = Arc::new(AtomicBool::new(false));
        let hammer = |client: Client, stop: Arc<AtomicBool>| async move {
            while !stop.load(Ordering::Relaxed) {
                client.publish(HOSTILE, "x").header("do", misdeed).answer().await;
            }
        };
        let tasks = (0..HAMMERS).map(|_| tokio::spawn(hammer(broker.admin(), Arc::clone(&stop)))).collect();
        Hammers { stop, tasks }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a hammer does not panic");
        }
    }
}
