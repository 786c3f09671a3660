//! Everything that changes plugins, racing under load: uploads, files, deletions, powers, pipelines that are set and rolled
//! back, versions on trial. Rounds: publishers and consumers of three topics and all writers run at once, then everything
//! comes to rest, a judge looks at each message, and the process must hold what it held before. Invariant: what a message
//! may show is what the history says of the revision that its publisher was told; writers take any answer that the API
//! documents, and no other. Never asks how long anything took.

mod book;
mod judge;
mod writers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use sluice_tests::broker::files_below;
use sluice_tests::consume::Received;
use sluice_tests::swap_record::{Delivered, SwapRecord};
use sluice_tests::{Broker, Usage, wait};

use self::book::{Book, DISK, QUIET, UP};
use self::judge::Revision;
use self::writers::Writers;
use super::swaps::load::{Load, Shape};

const GROUPS: [&str; 2] = ["plain", "staged"];
const TOPICS: [&str; 3] = ["races.one", "races.two", "races.three"];
/// The stages of each topic, and of the subscription of its second group.
const STAGES: [[&[(&str, &str)]; 2]; 3] = [
    [&[("a", UP)], &[("z", DISK)]],
    [&[("a", DISK), ("b", UP), ("q", QUIET)], &[("z", UP)]],
    [&[("a", UP), ("b", UP)], &[("y", UP), ("z", DISK)]],
];
/// A slice of every run of the tests; `make soak` does as many rounds as ten minutes hold.
const ROUNDS: usize = 2;
const STEPS: usize = 10;
/// Rounds of a longer run: enough that all that may race has met, few enough that the record stays small.
const STEPS_OF_A_LONG_ROUND: usize = 40;
/// Fewer rounds than these say nothing of memory: caches and pools are still filling.
const ROUNDS_TO_JUDGE: usize = 9;
/// What a busy broker may have more at rest: the catalog's connections have a thread each, shadows have one, and blocking work
/// keeps some for a moment.
const THREADS_MORE: u64 = 12;
/// After so long an idle instance is let go of, at the latest.
const IDLE: Duration = Duration::from_secs(300);
const INSTANCES: &str = "sluice_plugin_instances{plugin=\"races.";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_plugins_that_race_lose_double_and_mix_nothing_and_leave_nothing_behind() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (seed, minutes) = (number("SLUICE_RACES_SEED").unwrap_or(1), number("SLUICE_RACES_MINUTES"));
    let is_over = Arc::new(AtomicBool::new(false));
    if let Some(minutes) = minutes {
        let is_over = Arc::clone(&is_over);
        tokio::spawn(async move {
            wait::pause(Duration::from_secs(60 * minutes)).await;
            is_over.store(true, Ordering::SeqCst);
        });
    }
    let steps = if minutes.is_some() { STEPS_OF_A_LONG_ROUND } else { STEPS };
    let broker = Broker::start().await;
    let pipelines = set_up(&broker).await;
    let book = Book::start(&broker).await;
    at_rest(&broker, &pipelines, &book).await;
    let before = Held::of(&broker);
    println!("before: {before:?}");
    let (mut held, counts) = (Vec::new(), Mutex::default());
    for round in 0.. {
        let is_enough = if minutes.is_some() { is_over.load(Ordering::SeqCst) } else { round == ROUNDS };
        if is_enough {
            break;
        }
        let found = race(&broker, &pipelines, &book, (seed * 10_000 + round as u64, steps), &counts).await;
        let shown = found.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
        assert!(found.is_empty(), "round {round} of seed {seed}: {} promises broken:\n{shown}", found.len());
        at_rest(&broker, &pipelines, &book).await;
        held.push(Held::of(&broker));
        println!("round {round}: {:?}", held[round]);
    }
    // Threads for blocking work end when they have been idle for a while; a round has more of them than this.
    wait::until("idle threads end", async || {
        (Usage::of(&broker).threads <= before.usage.threads + THREADS_MORE).then_some(())
    })
    .await;
    println!("answers to writers: {:#?}", counts.into_inner());
    for end in ["promoted", "aborted", "rolledBack", "replaced"] {
        let of = |plugin| format!("sluice_plugin_rollouts_ended_total{{end=\"{end}\",plugin=\"{plugin}\"}}");
        let [up, disk] = [broker.metric(&of(UP)).await, broker.metric(&of(DISK)).await];
        println!("rollouts {end}: {}", up.unwrap_or_default() + disk.unwrap_or_default());
    }
    assert_flat(before, &held);
}

/// A pipeline under change.
#[derive(Debug, Clone)]
pub(crate) struct Pipeline {
    /// Which topic's it is.
    topic: usize,
    is_subscriptions: bool,
    path: String,
    stages: &'static [(&'static str, &'static str)],
}

async fn set_up(broker: &Broker) -> Vec<Pipeline> {
    // What came with the binary is compiled first: that takes 100 MB, which would hide what races take.
    wait::within(4 * wait::PATIENCE, "the plugins that came with the binary are compiled", async || {
        let states = broker.get("/plugins").await.expect(200)["plugins"].clone();
        let ready = |plugin: &Value| plugin["versions"][0]["state"] == "Ready";
        states.as_array().expect("a list of plugins").iter().all(ready).then_some(())
    })
    .await;
    let mut pipelines = Vec::new();
    for (topic, [stages, on_the_way_out]) in STAGES.into_iter().enumerate() {
        let name = TOPICS[topic];
        let body = json!({"name": name, "type": "PubSub", "partitionCount": 4, "retentionBytes": 2 << 20});
        broker.post("/topics", &body).await.expect(201);
        let path = format!("/topics/{name}/pipeline");
        pipelines.push(Pipeline { topic, is_subscriptions: false, path, stages });
        for group in GROUPS {
            let id = broker.subscribe(name, group).await["subscriptionId"].as_str().expect("an id").to_owned();
            if group == GROUPS[1] {
                let path = format!("/subscriptions/{id}/pipeline");
                pipelines.push(Pipeline { topic, is_subscriptions: true, path, stages: on_the_way_out });
            }
        }
    }
    pipelines
}

/// One round; what it has shown of broken promises.
async fn race(
    broker: &Broker,
    pipelines: &[Pipeline],
    book: &Book,
    (seed, steps): (u64, usize),
    counts: &Mutex<BTreeMap<String, usize>>,
) -> Vec<String> {
    let records: Vec<Arc<SwapRecord>> = TOPICS.iter().map(|_| Arc::new(SwapRecord::of(&GROUPS))).collect();
    let mut first = Vec::new();
    for pipeline in pipelines {
        first.push(broker.get(&pipeline.path).await.expect(200)["revision"].as_u64().expect("a revision"));
    }
    book.begin(&records);
    let shape = |topic| Shape { topic, groups: &GROUPS, singles: 2, batches: 1, read };
    let loads: Vec<Load> =
        TOPICS.iter().zip(&records).map(|(topic, record)| Load::start(broker, record, shape(topic))).collect();
    let mut found =
        Writers { broker, pipelines, book, records: &records, counts, found: Mutex::default() }.run(seed, steps).await;
    for load in loads {
        load.stop().await;
    }
    for (topic, record) in records.iter().enumerate() {
        println!("{}: {}", TOPICS[topic], record.summary());
        found.extend(record.violations());
        let mut histories = [Vec::new(), Vec::new()];
        for (pipeline, first) in pipelines.iter().zip(&first).filter(|(pipeline, _)| pipeline.topic == topic) {
            histories[usize::from(pipeline.is_subscriptions)] = history(broker, pipeline, *first).await;
        }
        found.extend(judge::violations(record, topic, &histories, book));
    }
    found
}

/// All revisions from this one on; 0, which nobody has set, has none.
async fn history(broker: &Broker, pipeline: &Pipeline, first: u64) -> Vec<Revision> {
    let mut revisions = Vec::new();
    if first == 0 {
        revisions.push(Revision::default());
    }
    loop {
        let path = format!("{}/history?limit=100&offset={}", pipeline.path, revisions.len());
        let page = broker.get(&path).await.expect(200);
        let page: Vec<Revision> = page["revisions"]
            .as_array()
            .expect("a page")
            .iter()
            .map(Revision::of)
            .filter(|it| it.number >= first)
            .collect();
        let is_last = page.len() < 100;
        revisions.extend(page);
        if is_last {
            return revisions;
        }
    }
}

/// Every pipeline runs the first version of its plugins, no other version is left, no instance lives.
async fn at_rest(broker: &Broker, pipelines: &[Pipeline], book: &Book) {
    for pipeline in pipelines {
        // A config that is new: what is tried on a stage that stays as it was is tried on.
        let number = book.config();
        let stages = pipeline.stages.iter().map(|(name, plugin)| book::stage(name, plugin, book.base(plugin), number));
        broker.put(&pipeline.path, &json!({"stages": stages.collect::<Vec<_>>()})).await.expect(200);
    }
    book.settle_versions(broker).await;
    wait::until("idle instances are let go of", async || {
        broker.clock().advance(IDLE).await;
        (broker.metric_sum(INSTANCES).await == 0.0).then_some(())
    })
    .await;
}

/// What a broker at rest holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    usage: Usage,
    /// Files of machine code, and those of them that are mapped.
    code: usize,
    mapped: usize,
}

impl Held {
    fn of(broker: &Broker) -> Held {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", broker.process_id())).expect("the broker runs");
        let code = files_below(&broker.data_dir().join("plugin-cache"));
        let paths = maps.lines().filter(|line| line.contains(".cwasm")).filter_map(|line| line.split('/').next_back());
        let mapped: BTreeSet<&str> = paths.collect();
        Held { usage: Usage::of(broker), code: code.len(), mapped: mapped.len() }
    }
}

/// At rest the same versions are there and run as at rest before; what the process holds must be the same.
fn assert_flat(before: Held, held: &[Held]) {
    for (round, now) in held.iter().enumerate() {
        assert_eq!((now.code, now.mapped), (before.code, before.mapped), "machine code is left after round {round}");
    }
    let (Some(warm), Some(last)) = (held.first(), held.last()) else { return };
    // Connections that clients keep, and files that the store has open at the moment.
    assert!(last.usage.descriptors <= warm.usage.descriptors + 8, "descriptors grow: {warm:?}, {last:?}");
    if held.len() < ROUNDS_TO_JUDGE {
        return;
    }
    let third = held.len() / 3;
    let median = |held: &[Held]| {
        let mut bytes: Vec<u64> = held.iter().map(|held| held.usage.resident_bytes).collect();
        bytes.sort_unstable();
        bytes[bytes.len() / 2]
    };
    let (middle, end) = (median(&held[third..2 * third]), median(&held[2 * third..]));
    println!("resident bytes: {middle} in the second third of {} rounds, {end} in the last", held.len());
    // A component that stays has some 300 KiB of machine code and metadata, and a round brings dozens.
    assert!(end <= middle + middle / 10 + (4 << 20), "memory grows from {middle} to {end}");
}

/// What a message shows of the stages that it passed.
fn read(_: &str, message: Received) -> Delivered {
    Delivered {
        stamp: String::new(),
        out: None,
        trail: message.headers.get("trail").cloned().unwrap_or_default(),
        tag: message.payload.clone().unwrap_or_default(),
        id: message.message_id.clone(),
        partition: message.partition,
        offset: message.offset,
    }
}
