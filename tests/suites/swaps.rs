//! Swaps under full load: publishers and consumers on several connections, while a plugin's file and the pipelines' configs
//! are replaced in turn. At the end a checker judges what the clients have seen, and the process holds no more than it did
//! when it was warm. Invariant: nobody's request fails, and nothing is repeated or mended on the way. Never asks how long
//! anything took.

pub(crate) mod load;
mod operator;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::broker::files_below;
use sluice_tests::consume::Received;
use sluice_tests::swap_record::{Delivered, SwapRecord};
use sluice_tests::{Broker, Settings, Usage, guest, wait};

use self::load::{Load, Shape};
use self::operator::{BUILDS, Operator};

const TOPIC: &str = "swaps.orders";
/// A group whose messages come as they are stored, and one whose messages pass a stage on the way out.
const GROUPS: [&str; 2] = ["plain", "staged"];
const SHAPE: Shape = Shape { topic: TOPIC, groups: &GROUPS, singles: 6, batches: 2, read: delivered };
/// Enough that each build has come and gone; `make soak` does a hundred.
const SWAPS: usize = 20;
/// Messages that meet each revision before the next swap: swaps are to fall between messages under way.
const UNDER_EACH: usize = 60;
/// Figures are medians of so many swaps: a single look may fall into a burst.
const LOOKS: usize = 5;
const WORKERS: u64 = 2;
/// Plugins that come with the binary, whose machine code is kept too.
const BUILT_IN: usize = 7;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_under_load_lose_duplicate_reorder_and_mix_nothing_and_leave_nothing_behind() {
    let swaps = std::env::var("SLUICE_SWAPS").map_or(SWAPS, |text| text.parse().expect("a number"));
    let broker = Broker::with(Settings::new().env("SLUICE__PLUGINS__WORKERS", &WORKERS.to_string())).await;
    let record = Arc::new(SwapRecord::of(&GROUPS));
    set_up(&broker).await;
    let mut operator = Operator::start(&broker, &record).await;
    let load = Load::start(&broker, &record, SHAPE);
    let mut usage = Vec::new();
    for swap in 0..swaps {
        let revision = if swap % 2 == 0 { operator.swap_file().await } else { operator.swap_configs().await };
        wait::until("messages meet the revision", async || (record.stored_since(revision) >= UNDER_EACH).then_some(()))
            .await;
        usage.push(Usage::of(&broker));
    }
    load.stop().await;
    println!("{swaps} swaps: {}", record.summary());
    let violations = record.violations();
    let shown = violations.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(violations.is_empty(), "{} promises broken:\n{shown}", violations.len());
    assert_flat(&usage);
    assert_left_behind(&broker).await;
}

/// What bears no stamp bears one that no revision makes.
fn delivered(group: &str, message: Received) -> Delivered {
    let stamp = |tag: &str, config: &str| match (message.headers.get(tag), message.headers.get(config)) {
        (Some(tag), Some(config)) => format!("{tag} {config}"),
        _ => "none".to_owned(),
    };
    Delivered {
        stamp: stamp("tag", "config"),
        out: (group == GROUPS[1]).then(|| stamp("out-tag", "out-config")),
        trail: String::new(),
        tag: message.payload.clone().unwrap_or_default(),
        id: message.message_id.clone(),
        partition: message.partition,
        offset: message.offset,
    }
}

async fn set_up(broker: &Broker) {
    broker.place_plugin("tag.wasm", &guest::tag(1));
    wait::until("the plugin is taken in", async || (broker.get("/plugins/tag").await.status == 200).then_some(()))
        .await;
    compiled(broker).await;
    // What is settled leaves the log soon, so that memory that the log may have is full when the load is warm.
    let topic = json!({"name": TOPIC, "type": "PubSub", "partitionCount": 4, "retentionBytes": 2 << 20});
    broker.post("/topics", &topic).await.expect(201);
    for group in GROUPS {
        broker.subscribe(TOPIC, group).await;
    }
}

/// A new broker compiles the plugins that came with it when there is time: the largest takes some 100 MB for many seconds,
/// which would hide what swaps take.
async fn compiled(broker: &Broker) {
    wait::within(4 * wait::PATIENCE, "the plugins that came with the binary are compiled", async || {
        let states = broker.get("/plugins").await.expect(200)["plugins"].clone();
        let ready = |plugin: &Value| plugin["versions"][0]["state"] == "Ready";
        states.as_array().expect("a list of plugins").iter().all(ready).then_some(())
    })
    .await;
}

/// A stage of the guest; a call of a few messages at most, so that a request is cut into several.
fn stage(config: Value) -> Value {
    json!([{"name": "tag", "plugin": "tag", "version": "latest", "config": config, "timeoutMs": 500}])
}

/// Holds what the process held after the last swaps against what it held when it was warm.
fn assert_flat(usage: &[Usage]) {
    let warm_at = (usage.len() / 2).min(SWAPS);
    let (warm, last) = (&usage[warm_at.saturating_sub(LOOKS)..warm_at], &usage[usage.len().saturating_sub(LOOKS)..]);
    let compare = |figure: fn(&Usage) -> u64| (median(warm, figure), median(last, figure));
    let (memory, descriptors, threads) =
        (compare(|usage| usage.resident_bytes), compare(|usage| usage.descriptors), compare(|usage| usage.threads));
    println!(
        "resident bytes {memory:?}, descriptors {descriptors:?}, threads {threads:?}: after {warm_at} swaps, at the end"
    );
    // A leaked instance has 64 KiB of memory and its pages of the pool, a leaked component its machine code, some 300 KiB:
    // a leak a swap would be seen in a hundred. What varies is what the load has in flight.
    assert!(memory.1 <= memory.0 + memory.0 / 8 + (4 << 20), "memory grows: {memory:?}");
    // Files that the store has open at the moment, and connections that the clients have made anew.
    assert!(descriptors.1 <= descriptors.0 + 8, "descriptors grow: {descriptors:?}");
    // The runtime ends threads for blocking work when they are idle, and starts others.
    assert!(threads.1 <= threads.0 + 8, "threads grow: {threads:?}");
}

fn median(usage: &[Usage], figure: fn(&Usage) -> u64) -> u64 {
    let mut figures: Vec<u64> = usage.iter().map(figure).collect();
    figures.sort_unstable();
    figures[figures.len() / 2]
}

/// No instance, version or machine code but of what is in use or may be again.
async fn assert_left_behind(broker: &Broker) {
    const INSTANCES: &str = "sluice_plugin_instances{plugin=\"tag\",";
    let instances = broker.metric_sum(INSTANCES).await;
    assert!(instances > 0.0, "the plugin has run");
    // One a worker for each of the two stages.
    assert!(instances <= (2 * WORKERS) as f64, "{instances} instances");
    let versions = broker.get("/plugins/tag").await.expect(200)["versions"].clone();
    assert_eq!(versions.as_array().map(Vec::len), Some(usize::from(BUILDS)), "{versions}");
    let code = files_below(&broker.data_dir().join("plugin-cache"));
    assert_eq!(code.len(), usize::from(BUILDS) + BUILT_IN, "{code:?}");
    // Instances of revisions that are gone would stay when those in use are let go of.
    broker.clock().advance(Duration::from_secs(300)).await;
    wait::until("idle instances are let go of", async || (broker.metric_sum(INSTANCES).await == 0.0).then_some(()))
        .await;
    broker.publish(TOPIC, "one more").await;
    assert_eq!(broker.metric_sum(INSTANCES).await, 1.0, "and one is made when it is needed");
}
