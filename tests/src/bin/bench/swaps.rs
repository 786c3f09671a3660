//! What a topic's publishers feel of swaps: messages per second and the time of a publish with all connections busy, without
//! swaps and with them, a file and a config in turn. Invariant: the two are measured in turn, pair by pair, on one broker;
//! swaps are due by the clock, and each is in force before the next. Never asserts: what is not stored is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use sluice_tests::{Broker, Client, guest, wait};

use super::load::median;
use super::report::{Budget, Report, Row, short};

const TOPIC: &str = "swaps";
const PAIRS: usize = 5;
const ROUND: Duration = Duration::from_secs(4);
/// A hundred in all.
const SWAPS_A_ROUND: u32 = 20;
const CONNECTIONS: usize = 64;

/// The rows.
pub async fn rows(report: &mut Report) {
    let broker = Broker::start().await;
    let mut operator = Operator::start(&broker).await;
    let errors = Arc::new(AtomicUsize::new(0));
    let mut pairs = Vec::new();
    // What comes first is slower: connections, caches, the first builds.
    round(&broker, TOPIC, CONNECTIONS, &errors).await;
    operator.every_build().await;
    for _ in 0..PAIRS {
        let without = round(&broker, TOPIC, CONNECTIONS, &errors).await;
        let (with, ()) = tokio::join!(round(&broker, TOPIC, CONNECTIONS, &errors), operator.swap_for_a_round());
        pairs.push([without, with]);
    }
    let each =
        |of: Of| -> [f64; 2] { [0, 1].map(|which: usize| median(pairs.iter().map(|pair| of(&pair[which])).collect())) };
    let ratios = |of: Of| pairs.iter().map(|[without, with]| of(with) / of(without)).collect();
    let (per_second, p99): (Of, Of) = (|measured| measured.per_second, |measured| measured.p99_ms);
    let [without, with] = each(per_second);
    report.add(Row {
        work: format!("publish, one a call, while its stage is swapped {SWAPS_A_ROUND} times in {} s", ROUND.as_secs()),
        ours: format!("{} msg/s", short(with)),
        baseline: format!("without swaps: {} msg/s", short(without)),
        figures: ratios(per_second),
        unit: "×",
        budget: Budget::AtLeast(0.9),
    });
    let [without, with] = each(p99);
    report.add(Row {
        work: "the same: p99 of a publish".to_owned(),
        ours: format!("{with:.2} ms"),
        baseline: format!("without swaps: {without:.2} ms"),
        figures: ratios(p99),
        unit: "×",
        budget: Budget::AtMost(1.5),
    });
    report.add(Row {
        work: format!("the same: publishes not stored, over {} swaps", operator.swaps),
        ours: errors.load(Ordering::Relaxed).to_string(),
        baseline: "nothing".to_owned(),
        figures: vec![errors.load(Ordering::Relaxed) as f64],
        unit: "errors",
        budget: Budget::AtMost(0.0),
    });
}

/// What a round came to.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    pub per_second: f64,
    pub p99_ms: f64,
}

/// One of its figures.
type Of = fn(&Measured) -> f64;

/// Publishes for a round, each connection again as soon as it is answered.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
pub async fn round(broker: &Broker, topic: &str, connections: usize, errors: &Arc<AtomicUsize>) -> Measured {
    let body: bytes::Bytes =
        json!({"topicName": topic, "payload": "x".repeat(super::PAYLOAD_BYTES)}).to_string().into();
    let begun = Instant::now();
    let publisher = |client: Client, body: bytes::Bytes, errors: Arc<AtomicUsize>| async move {
        let mut took = Vec::new();
        while begun.elapsed() < ROUND {
            let sent = Instant::now();
            let answer = client
                .try_send(Method::POST, "/messages/publish", &[("content-type", "application/json")], body.clone())
                .await;
            took.push(sent.elapsed().as_secs_f64() * 1000.0);
            if answer.map_or(true, |answer| answer.status != 202) {
                errors.fetch_add(1, Ordering::Relaxed);
            }
        }
        took
    };
    let publishers: Vec<_> =
        (0..connections).map(|_| tokio::spawn(publisher(broker.admin(), body.clone(), Arc::clone(errors)))).collect();
    let mut all = Vec::new();
    for publisher in publishers {
        all.extend(publisher.await.expect("a publisher does not panic"));
    }
    let per_second = all.len() as f64 / begun.elapsed().as_secs_f64();
    all.sort_by(f64::total_cmp);
    Measured { per_second, p99_ms: all[all.len() * 99 / 100] }
}

struct Operator<'a> {
    broker: &'a Broker,
    digit: u8,
    swaps: u64,
}

impl<'a> Operator<'a> {
    async fn start(broker: &'a Broker) -> Operator<'a> {
        broker.create_topic(TOPIC, "Queue").await;
        broker.place_plugin("tag.wasm", &guest::tag(1));
        wait::until("the guest is taken in", async || (broker.get("/plugins/tag").await.status == 200).then_some(()))
            .await;
        let mut operator = Operator { broker, digit: 1, swaps: 0 };
        operator.swap_config().await;
        operator
    }

    /// So that none is compiled while it is measured: what a compiler takes is not what a swap takes.
    async fn every_build(&mut self) {
        self.swap_file().await;
        self.swap_file().await;
        self.swaps = 0;
    }

    #[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
    async fn swap_for_a_round(&mut self) {
        let begun = Instant::now();
        for swap in 0..SWAPS_A_ROUND {
            tokio::time::sleep_until((begun + ROUND * swap / SWAPS_A_ROUND).into()).await;
            if swap % 2 == 0 { self.swap_file().await } else { self.swap_config().await }
        }
    }

    async fn swap_file(&mut self) {
        self.digit = 3 - self.digit;
        let before = self.revision().await;
        self.broker.place_plugin("tag.wasm", &guest::tag(self.digit));
        wait::until("the build is in force", async || (self.revision().await > before).then_some(())).await;
        self.swaps += 1;
    }

    async fn swap_config(&mut self) {
        self.swaps += 1;
        let config = json!({"stamp": self.swaps});
        let stage = json!({"name": "tag", "plugin": "tag", "version": "latest", "config": config, "timeoutMs": 500});
        self.broker.put_pipeline(TOPIC, json!([stage])).await;
    }

    async fn revision(&self) -> u64 {
        let pipeline: Value = self.broker.get(&format!("/topics/{TOPIC}/pipeline")).await.expect(200);
        pipeline["revision"].as_u64().expect("a pipeline has a revision")
    }
}
