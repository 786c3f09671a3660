//! What the broker needs when nothing happens, how long it takes to open what it keeps, and what telling of its work costs.
//! Invariant: processor time is the broker's own, as the system counts it; never of the load.

use std::time::{Duration, Instant};

use sluice_tests::{Broker, Collector, Settings};

use super::http_rows::{publish_batch, publish_one};
use super::load::{self, Target, median};
use super::report::{Budget, Report, Row, short};
use super::{BATCH, CONNECTIONS, PAIRS, ROUND, TOPIC};

const KEPT: usize = 1_000_000;
/// Until what a start allocates for a moment is given back.
const IDLE: Duration = Duration::from_secs(3);
/// `USER_HZ`, which Linux has fixed for programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// The rows of memory and opening.
pub async fn rows(report: &mut Report) {
    let mut broker = Broker::start().await;
    tokio::time::sleep(IDLE).await;
    let empty = megabytes(&broker);
    report.add(memory("idle, nothing kept", empty));
    broker.create_topic(TOPIC, "Queue").await;
    let target = Target::of(&broker);
    let per_connection = KEPT / BATCH / CONNECTIONS + 1;
    load::run_times(&target, &publish_batch(&target), CONNECTIONS, per_connection).await;
    let (mut clean, mut abrupt) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        assert!(broker.stop().await.success());
        clean.push(opening(&mut broker).await);
    }
    tokio::time::sleep(IDLE).await;
    let full = megabytes(&broker);
    report.add(memory("idle after a start with a million messages", full));
    for _ in 0..PAIRS {
        // What was published since the last checkpoint is what an abrupt end leaves to be read again.
        load::run(&target, &publish_batch(&target), CONNECTIONS, ROUND).await;
        broker.kill();
        abrupt.push(opening(&mut broker).await);
    }
    for (what, figures) in [("after a clean stop", clean), ("after a kill under load", abrupt)] {
        report.add(Row {
            work: format!("from start to ready with {} messages and more, {what}", short(KEPT as f64)),
            ours: format!("{:.2} s", median(figures.clone())),
            baseline: "nothing".to_owned(),
            figures,
            unit: "s",
            budget: Budget::AtMost(0.5),
        });
    }
}

fn memory(what: &str, megabytes: f64) -> Row {
    Row {
        work: format!("resident memory, {what}"),
        ours: format!("{megabytes:.0} MB"),
        baseline: "nothing".to_owned(),
        figures: vec![megabytes],
        unit: "MB",
        budget: Budget::AtMost(60.0),
    }
}

fn megabytes(broker: &Broker) -> f64 {
    broker.resident_bytes() as f64 / 1e6
}

/// Seconds from the start of the process until it says that it listens.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn opening(broker: &mut Broker) -> f64 {
    let begun = Instant::now();
    broker.restart().await;
    begun.elapsed().as_secs_f64()
}

/// The rows of telemetry: every trace, and one of ten, as the guide has it in production.
pub async fn telemetry(report: &mut Report) {
    let collector = Collector::start().await;
    let exporting = |rate: &str| {
        let settings = Settings::new().env("SLUICE__TELEMETRY__OTLP_ENDPOINT", &collector.url());
        settings.env("SLUICE__TELEMETRY__SAMPLING_RATE", rate)
    };
    let brokers = [Broker::start().await, Broker::with(exporting("1.0")).await, Broker::with(exporting("0.1")).await];
    for broker in &brokers {
        broker.create_topic(TOPIC, "Queue").await;
    }
    let mut rounds = Vec::new();
    for _ in 0..PAIRS {
        let [without, all, tenth] = &brokers;
        rounds.push([cpu_per_message(without).await, cpu_per_message(all).await, cpu_per_message(tenth).await]);
    }
    let of = |which: usize| median(rounds.iter().map(|round| round[which] * 1e6).collect());
    for (which, exported) in [(1, "every trace"), (2, "one trace of ten")] {
        report.add(Row {
            work: format!("processor time of a publish with {exported} exported"),
            ours: format!("{:.1} µs", of(which)),
            baseline: format!("without a collector: {:.1} µs", of(0)),
            figures: rounds.iter().map(|round| round[which] / round[0]).collect(),
            unit: "×",
            budget: Budget::AtMost(1.05),
        });
    }
}

/// Seconds of the broker's processor time for each message of a round.
async fn cpu_per_message(broker: &Broker) -> f64 {
    let target = Target::of(broker);
    let before = cpu_seconds(broker);
    let done = load::run(&target, &publish_one(&target), CONNECTIONS, ROUND).await;
    (cpu_seconds(broker) - before) / done.messages as f64
}

/// Of the broker, since it started.
pub fn cpu_seconds(broker: &Broker) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", broker.process_id())).expect("the broker runs");
    // The name in brackets may hold spaces; user and system time are the 12th and 13th fields behind it.
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name in brackets").1.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}
