//! What many of something cost: scheduled messages, leases, topics, subscriptions. Invariant: a row holds two sizes of the
//! same thing against each other, measured in the same run, and says how much more the larger costs than its share: 1 is
//! linear. Memory and time at the full size are in the row. `SLUICE_SCALE` divides the sizes, for a look at how it runs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_tests::{Broker, Settings};

use super::footprint::cpu_seconds;
use super::http_rows::publish_one;
use super::load::{self, Target, Work, median};
use super::report::{Budget, Report, Row, short};
use super::{BATCH, CONNECTIONS, PAIRS, ROUND, TOPIC};

const SCHEDULED: usize = 1_000_000;
const UNACKED: usize = 1_000_000;
/// What one group may hold at once.
const GROUP_HOLDS: usize = 100_000;
const SUBSCRIPTIONS: usize = 10_000;
const TOPICS: usize = 1_000;
/// Subscriptions of one topic that a publish is measured with.
const ON_ONE_TOPIC: [usize; 4] = [1, 10, 100, 1000];
/// The smaller of two sizes.
const FEWER: usize = 10;
/// What a measurement may be off.
const LINEAR: f64 = 1.2;
/// What the last of many may cost more than the first: a little, for a database's deeper trees.
const CREATING: f64 = 1.5;
/// Scheduled messages are held in memory, 256 MiB of them at most.
const SMALL_BYTES: usize = 100;
/// Messages of one lease at most.
const LEASE_MAX: usize = 1000;
/// Until what was allocated for a moment is given back.
const IDLE: Duration = Duration::from_secs(3);
const IDLE_LOOKS: usize = 20;
/// Of a processor.
const QUIET: f64 = 0.05;
const OPENINGS: usize = 3;
/// Connections that fill a topic.
const FILLERS: usize = 10;
/// Longer than a run; the most that a lease may last is 12 hours.
const HELD_SECONDS: u32 = 36_000;

/// What is kept.
#[derive(Debug, Clone, Copy)]
enum Kept {
    Scheduled,
    Unacked,
}

/// The rows.
pub async fn rows(report: &mut Report) {
    let divided_by = std::env::var("SLUICE_SCALE").ok().map_or(1, |text| text.parse().expect("a number"));
    let size = |full: usize| (full / divided_by).max(FEWER * FEWER);
    messages(report, Kept::Scheduled, size(SCHEDULED)).await;
    messages(report, Kept::Unacked, size(UNACKED)).await;
    creating(report, size(TOPICS), size(SUBSCRIPTIONS)).await;
    publishing(report, divided_by).await;
}

/// A row of two sizes, of which the larger is so many times the smaller.
fn linear(work: String, unit: &str, [many, fewer]: [f64; 2], times: f64) -> Row {
    Row {
        work,
        ours: format!("{} {unit}", short(many)),
        baseline: format!("with a {times}th of it: {} {unit}", short(fewer)),
        figures: vec![many / fewer / times],
        unit: "×",
        budget: Budget::AtMost(LINEAR),
    }
}

/// What a broker with so many messages needs.
#[derive(Debug, Clone, Copy)]
struct Needs {
    /// Beyond what it needs without.
    megabytes: f64,
    /// Seconds to open after a stop, and after a kill.
    clean: f64,
    abrupt: f64,
}

/// Memory and opening with so many messages and with a tenth of them.
async fn messages(report: &mut Report, kept: Kept, count: usize) {
    let (fewer, many) = (needs(kept, count / FEWER).await, needs(kept, count).await);
    let what = match kept {
        Kept::Scheduled => format!("{} scheduled messages of {SMALL_BYTES} B", short(count as f64)),
        Kept::Unacked => format!("{} messages that are held and not acked", short(count as f64)),
    };
    let times = FEWER as f64;
    report.add(linear(format!("memory for {what}"), "MB", [many.megabytes, fewer.megabytes], times));
    report.add(linear(
        format!("from start to ready with {what}, after a clean stop"),
        "s",
        [many.clean, fewer.clean],
        times,
    ));
    report.add(linear(
        format!("from start to ready with {what}, after a kill"),
        "s",
        [many.abrupt, fewer.abrupt],
        times,
    ));
}

async fn needs(kept: Kept, count: usize) -> Needs {
    let mut broker = Broker::start().await;
    match kept {
        Kept::Scheduled => broker.create_topic(TOPIC, "Queue").await,
        Kept::Unacked => broker.create_topic(TOPIC, "PubSub").await,
    };
    // What compiles plugins at a first start takes memory for a while.
    assert!(broker.stop().await.success());
    broker.restart().await;
    let without = settled_megabytes(&broker).await;
    match kept {
        Kept::Scheduled => schedule(&broker, count).await,
        Kept::Unacked => hold(&broker, count).await,
    }
    let megabytes = settled_megabytes(&broker).await - without;
    let (mut clean, mut abrupt) = (Vec::new(), Vec::new());
    for _ in 0..OPENINGS {
        broker.kill();
        abrupt.push(opening(&mut broker).await);
    }
    for _ in 0..OPENINGS {
        assert!(broker.stop().await.success());
        clean.push(opening(&mut broker).await);
    }
    Needs { megabytes, clean: median(clean), abrupt: median(abrupt) }
}

async fn settled_megabytes(broker: &Broker) -> f64 {
    idle_share(broker).await;
    broker.resident_bytes() as f64 / 1e6
}

/// The share of a processor that a broker takes when nobody asks it for anything: once what a start or a load has left to
/// do is done, or what it is after a while.
async fn idle_share(broker: &Broker) -> f64 {
    let mut share = 0.0;
    for _ in 0..IDLE_LOOKS {
        let before = cpu_seconds(broker);
        tokio::time::sleep(IDLE).await;
        share = (cpu_seconds(broker) - before) / IDLE.as_secs_f64();
        if share < QUIET {
            break;
        }
    }
    share
}

/// Publishes so many that are due in a year.
async fn schedule(broker: &Broker, count: usize) {
    let message = json!({"topicName": TOPIC, "payload": "x".repeat(SMALL_BYTES), "delay": "P365D"});
    fill(broker, &message, count).await;
    let scheduled = broker.get(&format!("/topics/{TOPIC}/metrics")).await.expect(200)["scheduled"].as_u64();
    assert!(scheduled >= Some(count as u64), "{scheduled:?} of {count} are scheduled");
}

/// At least so many messages; what there is no room for is refused one by one.
async fn fill(broker: &Broker, message: &Value, count: usize) {
    let target = Target::of(broker);
    let body = json!({"messages": vec![message; BATCH]}).to_string();
    let request = target.request("POST", "/messages/publish/batch", body.as_bytes());
    let work = Work::Publish { request, status: 200, messages: BATCH };
    load::run_times(&target, &work, FILLERS, count.div_ceil(BATCH * FILLERS)).await;
}

/// Leases so many messages, by as many groups as it takes.
async fn hold(broker: &Broker, count: usize) {
    let groups: Vec<String> = (0..count.div_ceil(GROUP_HOLDS)).map(|group| format!("group-{group}")).collect();
    for group in &groups {
        broker.subscribe(TOPIC, group).await;
    }
    let each = count.div_ceil(groups.len());
    fill(broker, &json!({"topicName": TOPIC, "payload": "x".repeat(SMALL_BYTES)}), each).await;
    for group in &groups {
        let mut held = 0;
        while held < each {
            let limit = LEASE_MAX.min(each - held);
            let leased = broker.consume(TOPIC, group).limit(limit).ack_timeout(HELD_SECONDS).await.len();
            assert!(leased > 0, "{group} holds {held} of {each} and gets no more");
            held += leased;
        }
    }
}

/// Seconds from the start of the process until it says that it listens.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn opening(broker: &mut Broker) -> f64 {
    let begun = Instant::now();
    broker.restart().await;
    begun.elapsed().as_secs_f64()
}

/// What the last of many topics and subscriptions cost beside the first, and what a broker with all of them needs.
async fn creating(report: &mut Report, topics: usize, subscriptions: usize) {
    let limit = |setting: &str, most: usize| (format!("SLUICE__LIMITS__{setting}"), most.to_string());
    let limits = [limit("TOPICS_MAX", topics), limit("SUBSCRIPTIONS_MAX", subscriptions)];
    let settings = limits.iter().fold(Settings::new(), |settings, (name, most)| settings.env(name, most));
    let mut broker = Broker::with(settings).await;
    let name = |topic: usize| format!("topic-{topic}");
    let mut times = Vec::new();
    for topic in 0..topics {
        times.push(created(&broker, "/topics", json!({"name": name(topic), "type": "PubSub"})).await);
    }
    report.add(first_and_last(topics, "topic", &times));
    times.clear();
    for subscription in 0..subscriptions {
        let group = format!("group-{}", subscription / topics);
        let body = json!({"topicName": name(subscription % topics), "consumerGroup": group, "type": "Pull"});
        times.push(created(&broker, "/subscriptions", body).await);
    }
    report.add(first_and_last(subscriptions, "subscription", &times));
    let what = format!("{} subscriptions of {} topics", short(subscriptions as f64), short(topics as f64));
    assert!(broker.stop().await.success());
    let opened = opening(&mut broker).await;
    let resident = settled_megabytes(&broker).await;
    let idle = idle_share(&broker).await;
    let row = |work: &str, ours: f64, unit: &'static str, most: f64| Row {
        work: format!("{work} with {what}"),
        ours: format!("{} {unit}", short(ours)),
        baseline: "nothing".to_owned(),
        figures: vec![ours],
        unit,
        budget: Budget::AtMost(most),
    };
    report.add(row("resident memory, idle,", resident, "MB", 250.0));
    report.add(row("from start to ready, after a clean stop,", opened, "s", 5.0));
    report.add(row("processor time, idle,", idle * 100.0, "%", 5.0));
}

/// Seconds that it took.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn created(broker: &Broker, path: &str, body: Value) -> f64 {
    let begun = Instant::now();
    broker.post(path, &body).await.expect(201);
    begun.elapsed().as_secs_f64()
}

/// One that costs the same however many there are would be 1; one that looks at all there are, ten.
fn first_and_last(count: usize, what: &str, times: &[f64]) -> Row {
    let tenth = count / FEWER;
    let (first, last) = (median(times[..tenth].to_vec()), median(times[count - tenth..].to_vec()));
    Row {
        work: format!("creating a {what}, the last tenth of {}", short(count as f64)),
        ours: format!("{:.1} ms", last * 1e3),
        baseline: format!("the first tenth: {:.1} ms", first * 1e3),
        figures: vec![last / first],
        unit: "×",
        budget: Budget::AtMost(CREATING),
    }
}

/// A publish to a topic with many subscriptions beside one to a topic with one.
async fn publishing(report: &mut Report, divided_by: usize) {
    let mut brokers = Vec::new();
    for subscriptions in ON_ONE_TOPIC {
        let broker = Broker::start().await;
        broker.create_topic(TOPIC, "PubSub").await;
        for group in 0..subscriptions.div_ceil(divided_by) {
            broker.subscribe(TOPIC, &format!("group-{group}")).await;
        }
        brokers.push(broker);
    }
    let mut rounds = Vec::new();
    for _ in 0..PAIRS {
        let mut round = Vec::new();
        for broker in &brokers {
            round.push(cost(broker).await);
        }
        rounds.push(round);
    }
    let of = |which: usize, cost: fn(&Cost) -> f64| median(rounds.iter().map(|round| cost(&round[which])).collect());
    for (what, cost) in [("time", Cost::latency as fn(&Cost) -> f64), ("processor time", Cost::cpu)] {
        for (which, subscriptions) in ON_ONE_TOPIC.iter().enumerate().skip(1) {
            report.add(Row {
                work: format!(
                    "{what} of a publish to a topic with {subscriptions} subscriptions, {CONNECTIONS} connections"
                ),
                ours: format!("{:.1} µs", of(which, cost) * 1e6),
                baseline: format!("with one: {:.1} µs", of(0, cost) * 1e6),
                figures: rounds.iter().map(|round| cost(&round[which]) / cost(&round[0])).collect(),
                unit: "×",
                budget: Budget::AtMost(LINEAR),
            });
        }
    }
}

/// Seconds of a publish.
#[derive(Debug, Clone, Copy)]
struct Cost {
    latency: f64,
    cpu: f64,
}

impl Cost {
    fn latency(&self) -> f64 {
        self.latency
    }

    fn cpu(&self) -> f64 {
        self.cpu
    }
}

async fn cost(broker: &Broker) -> Cost {
    let target = Target::of(broker);
    let before = cpu_seconds(broker);
    let done = load::run(&target, &publish_one(&target), CONNECTIONS, ROUND).await;
    let cpu = (cpu_seconds(broker) - before) / done.messages as f64;
    Cost { latency: CONNECTIONS as f64 / done.per_second(), cpu }
}
