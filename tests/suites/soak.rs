//! Mixed load for as long as somebody cares to wait: memory, descriptors and threads stay flat, and the disk stays within
//! what retention allows. Everything at once: single, batch, keyed, delayed and idempotent publishes, priorities, a stage,
//! consumers that ack, nack and forget, a webhook, topics that come and go. Invariant: the broker lives in real time here,
//! and the length of a run is a number of looks. Never judges how fast anything is.

mod load;

use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::broker::files_below;
use sluice_tests::{Broker, Receiver, Settings, Usage, wait};

use self::load::Load;

/// Between two looks at the process.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks of the slice that every run of the tests has: retention by time comes round once.
const LOOKS: usize = 8;
/// Fewer looks than these say nothing of growth: caches and pools are still filling.
const LOOKS_TO_JUDGE: usize = 240;
/// A line of the table each.
const LOOKS_A_LINE: usize = 30;

/// Bytes that each topic's log may have.
const RETENTION_BYTES: u64 = 4 << 20;
/// Topics that have their own segments: those of the load, and a passing one at a time.
const TOPICS: u64 = load::TOPICS.len() as u64 + 1;
/// Each lane keeps what is in its oldest segment, an eighth of the limit, until all of it may go; a topic here has two
/// partitions with two priorities each. The other half is for what is stored with a message.
const TOPICS_DISK_MAX: u64 = 2 * RETENTION_BYTES * TOPICS;
/// The journal has a checkpoint every 256 MiB; what is written meanwhile, and a file of 64 MiB at each end, come on top.
const JOURNAL_DISK_MAX: u64 = (256 + 3 * 64) << 20;
/// The catalog with its audit log, and machine code of the plugins.
const OTHER_DISK_MAX: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixed_load_leaves_memory_descriptors_and_threads_flat_and_the_disk_within_retention() {
    let minutes = std::env::var("SLUICE_SOAK_MINUTES").ok().map(|text| text.parse::<usize>().expect("a number"));
    let looks = minutes.map_or(LOOKS, |minutes| minutes * 60 / LOOK_EVERY.as_secs() as usize);
    // Dead letters are kept for 30 days, as a rule: no run is that long.
    let settings = Settings::new().env("SLUICE__MESSAGING__DEAD_LETTER_RETENTION", "PT10S");
    let (broker, receiver) = (Broker::with(settings).await, Receiver::start().await);
    set_up(&broker, &receiver).await;
    let mut load = Load::start(&broker);
    let mut usage = Vec::with_capacity(looks);
    println!("   s  resident MB  descriptors  threads  disk MB  topics MB  {}", load::HEADINGS);
    for look in 0..looks {
        wait::pause(LOOK_EVERY).await;
        load.check();
        load.posted(receiver.take().len());
        let now = Usage::of(&broker);
        let topics = topics_disk_bytes(&broker);
        assert!(topics <= TOPICS_DISK_MAX, "{topics} bytes of topics on disk: at most {TOPICS_DISK_MAX}");
        let others = now.disk_bytes - topics;
        assert!(others <= JOURNAL_DISK_MAX + OTHER_DISK_MAX, "{others} bytes of journal and catalog on disk");
        if look % LOOKS_A_LINE == 0 || look + 1 == looks {
            println!("{:>4}  {}  {:>9.1}  {}", look, line(&now), mb(topics), load.counts());
        }
        usage.push(now);
    }
    load.stop().await;
    if looks >= LOOKS_TO_JUDGE {
        assert_flat(&usage);
    }
}

#[tokio::test]
async fn memory_that_is_given_back_is_not_filled_up_again_with_huge_pages() {
    let broker = Broker::start().await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.process_id())).expect("the broker runs");
    let allowed = status.lines().find_map(|line| line.strip_prefix("THP_enabled:")).expect("Linux says THP_enabled");
    assert_eq!(allowed.trim(), "0");
}

/// A topic whose messages go soon because there are many, and one whose messages go soon because they are old.
async fn set_up(broker: &Broker, receiver: &Receiver) {
    for (topic, kind) in load::TOPICS {
        let topic = json!({
            "name": topic, "type": kind, "partitionCount": 2, "retentionBytes": RETENTION_BYTES,
            "retentionPeriod": if kind == "Queue" { "PT5S" } else { "PT1H" }, "dedupWindow": "PT5S",
        });
        broker.post("/topics", &topic).await.expect(201);
    }
    let (topic, backoff) = (load::TOPICS[0].0, json!({"initial": "PT1S", "multiplier": 1, "max": "PT1S", "jitter": 0}));
    let pull = json!({"topicName": topic, "consumerGroup": load::GROUP, "type": "Pull", "backoff": backoff});
    broker.post("/subscriptions", &pull).await.expect(201);
    broker.subscribe_push(topic, "hook", &receiver.url(), json!({})).await;
    let filter = json!({"headerMatches": {"keep": "yes"}});
    let stage = json!({"name": "f", "plugin": "filter", "version": "latest", "config": filter, "timeoutMs": 1000});
    broker.put_pipeline(topic, json!([stage])).await;
}

/// Bytes on disk of the topics' own files.
fn topics_disk_bytes(broker: &Broker) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let of_a_topic = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "seg");
    let files = files_below(&broker.data_dir()).into_iter().filter(of_a_topic);
    files.filter_map(|path| std::fs::metadata(path).ok()).map(|file| file.blocks() * 512).sum()
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

fn line(usage: &Usage) -> String {
    let Usage { resident_bytes, descriptors, threads, disk_bytes } = usage;
    format!("{:>11.1}  {descriptors:>11}  {threads:>7}  {:>7.1}", mb(*resident_bytes), mb(*disk_bytes))
}

/// The last third against the one before: what fills once is full by then, and what grows goes on.
fn assert_flat(usage: &[Usage]) {
    let third = usage.len() / 3;
    let (before, last) = (median(&usage[third..2 * third]), median(&usage[2 * third..]));
    println!("medians of the second third {}", line(&before));
    println!("        and of the last one {}", line(&last));
    // What varies is what is in flight at a look; a leak of 100 bytes a message would be more than this in a minute.
    assert!(last.resident_bytes <= before.resident_bytes + before.resident_bytes / 20 + (4 << 20), "memory grows");
    assert!(last.descriptors <= before.descriptors + 8, "descriptors grow");
    assert!(last.threads <= before.threads + 8, "threads grow");
}

fn median(usage: &[Usage]) -> Usage {
    let of = |figure: fn(&Usage) -> u64| {
        let mut figures: Vec<u64> = usage.iter().map(figure).collect();
        figures.sort_unstable();
        figures[figures.len() / 2]
    };
    Usage {
        resident_bytes: of(|usage| usage.resident_bytes),
        descriptors: of(|usage| usage.descriptors),
        threads: of(|usage| usage.threads),
        disk_bytes: of(|usage| usage.disk_bytes),
    }
}

/// A topic that is created, used and deleted.
fn passing_topic(name: &str) -> Value {
    json!({"name": name, "type": "PubSub", "partitionCount": 2, "retentionBytes": RETENTION_BYTES})
}
