//! `sluice verify` and `sluice repair` on the directories of real brokers, damaged as disks damage them. Invariant: what is
//! checked is what a script sees (exit code, JSON) and what a broker serves from a repaired directory.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sluice_tests::{Broker, broker};

struct Ran {
    code: i32,
    document: Value,
    stderr: String,
}

fn run(broker: &Broker, arguments: &[&str]) -> Ran {
    let output = broker.cli(arguments);
    Ran {
        code: output.status.code().expect("a command ends by itself"),
        document: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary folder's path is text")
}

fn verify(broker: &Broker, data_dir: &Path) -> Ran {
    run(broker, &["verify", "--json", "--data-dir", text(data_dir)])
}

/// Repairs a broker's directory and puts the result in its place; the damaged one is checked to be unchanged.
fn repair(broker: &Broker) -> Ran {
    let (data_dir, to) = (broker.data_dir(), broker.data_dir().with_extension("repaired"));
    let before = contents(&data_dir);
    let ran = run(broker, &["repair", "--json", "--data-dir", text(&data_dir), "--to", text(&to)]);
    assert_eq!(before, contents(&data_dir), "the damaged directory is only read");
    assert!(ran.code < 2, "{}", ran.stderr);
    fs::rename(&data_dir, data_dir.with_extension("damaged")).expect("a folder can be renamed");
    fs::rename(&to, &data_dir).expect("a folder can be renamed");
    ran
}

fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let all = broker::files_below(folder).into_iter();
    all.map(|path| (path.clone(), fs::read(&path).expect("a file of ours can be read"))).collect()
}

fn file(broker: &Broker, wanted: impl Fn(&str) -> bool) -> PathBuf {
    let files = broker::files_below(&broker.data_dir());
    files.into_iter().find(|path| wanted(text(path))).expect("there is such a file")
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("a file of ours can be read");
    bytes[at] ^= 0x10;
    fs::write(path, bytes).expect("a file of ours can be written");
}

/// A broker that was killed: a topic with two groups, one of which has taken ten of its hundred messages; a Queue with a
/// dead letter and a scheduled message. Its journal has only what came after a clean stop.
async fn killed() -> Broker {
    let mut broker = Broker::start().await;
    broker.create_topic("orders", "PubSub").await;
    broker.subscribe("orders", "billing").await;
    broker.subscribe("orders", "audit").await;
    broker.post("/topics", &json!({"name": "jobs", "type": "Queue"})).await.expect(201);
    for number in 0..100 {
        broker.publish("orders", json!({ "number": number, "filling": "x".repeat(4000) })).await;
    }
    for delivery in broker.consume("orders", "billing").limit(10).await {
        delivery.ack().await;
    }
    broker.publish("jobs", "later").field("delay", "PT60S").await;
    // The first stop writes a checkpoint, the second lets the journal of before go.
    for _ in 0..2 {
        assert!(broker.stop().await.success());
        broker.restart().await;
    }
    broker.publish("orders", json!({ "number": 100 })).await;
    broker.kill();
    broker
}

/// The numbers of the messages that come.
async fn numbers(broker: &Broker, group: &str, count: usize) -> Vec<u64> {
    let deliveries = broker.consume("orders", group).collect(count).await;
    let number =
        |payload: &str| serde_json::from_str::<Value>(payload).expect("JSON")["number"].as_u64().expect("a number");
    deliveries.iter().map(|delivery| number(delivery.message.payload.as_deref().expect("text"))).collect()
}

#[tokio::test]
async fn a_killed_broker_leaves_a_sound_directory_and_a_running_one_is_refused() {
    let mut broker = killed().await;
    let checked = verify(&broker, &broker.data_dir());
    assert_eq!((checked.code, &checked.document["sound"]), (0, &json!(true)), "{}", checked.stderr);
    assert_eq!(checked.document["findings"], json!([]));
    assert_eq!(checked.document["messages"], 101);
    broker.restart().await;
    let data_dir = broker.data_dir();
    for command in
        [&["verify", "--data-dir", text(&data_dir)][..], &["repair", "--data-dir", text(&data_dir), "--to", "x"]]
    {
        let refused = run(&broker, command);
        assert_eq!(refused.code, 5, "{}", refused.stderr);
        assert!(refused.stderr.contains("in use by another process"), "{}", refused.stderr);
    }
    assert_eq!(verify(&broker, Path::new("/nonexistent")).code, 5);
}

#[tokio::test]
async fn damage_is_named_and_a_broker_serves_what_a_repair_saved() {
    let mut broker = killed().await;
    // The broker's own topics, and those of their dead letters, are 1 to 4.
    let segment = file(&broker, |path| path.ends_with("00-0-000000000000000.seg") && path.contains("topic-5/"));
    let middle = fs::metadata(&segment).expect("there").len() as usize / 2;
    flip(&segment, middle);
    let checked = verify(&broker, &broker.data_dir());
    assert_eq!(checked.code, 1, "{}", checked.stderr);
    let finding = &checked.document["findings"][0];
    let name = format!("store/topic-5/{}", segment.file_name().and_then(|name| name.to_str()).expect("text"));
    assert_eq!(
        (&finding["severity"], &finding["kind"], &finding["file"]),
        (&json!("damage"), &json!("bad_message"), &json!(name))
    );
    let offset = finding["offset"].as_u64().expect("a number") as usize;
    assert!(offset <= middle && middle < offset + 4300, "{finding}");
    let lost = &finding["lost"][0];
    assert_eq!((&lost["topic"], &lost["partition"], &lost["count"]), (&json!("orders"), &json!(0), &json!(1)));
    let gone = lost["firstOffset"].as_u64().expect("a number");
    let repaired = repair(&broker);
    assert_eq!((repaired.code, &repaired.document["messagesLost"]), (1, &json!(1)), "{}", repaired.stderr);
    assert_eq!(repaired.document["before"]["findings"], checked.document["findings"]);
    assert_eq!(verify(&broker, &broker.data_dir()).code, 0);
    broker.restart().await;
    assert_eq!(numbers(&broker, "audit", 100).await, (0..=100).filter(|number| *number != gone).collect::<Vec<_>>());
    assert_eq!(numbers(&broker, "billing", 90).await, (10..=100).filter(|number| *number != gone).collect::<Vec<_>>());
    broker.clock().advance(std::time::Duration::from_secs(61)).await;
    assert_eq!(broker.consume("jobs", "any").collect(1).await.len(), 1, "what was scheduled comes");
    let published = broker.publish("orders", json!({ "number": 101 })).await;
    assert_eq!(published.offset, Some(101), "offsets go on");
}

#[tokio::test]
async fn a_directory_is_repaired_into_an_empty_one_alone_and_never_into_itself() {
    let broker = killed().await;
    let data_dir = broker.data_dir();
    let full = broker.plugins_dir();
    fs::write(full.join("something"), "").expect("a file can be made");
    for to in [full.as_path(), &data_dir.join("inside")] {
        let refused = run(&broker, &["repair", "--data-dir", text(&data_dir), "--to", text(to)]);
        assert_eq!(refused.code, 2, "{}", refused.stderr);
    }
    assert!(!data_dir.join("inside").exists());
    assert_eq!(repair(&broker).code, 0, "nothing was damaged, so nothing is lost");
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let broker = killed().await;
    let journal = file(&broker, |path| path.ends_with(".log"));
    let mut bytes = fs::read(&journal).expect("there");
    // The version, and a field that this version leaves empty.
    (bytes[8], bytes[12]) = (9, 1);
    fs::write(&journal, bytes).expect("a file of ours can be written");
    let refused = verify(&broker, &broker.data_dir());
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert!(refused.stderr.contains("format version 9"), "{}", refused.stderr);
}

#[tokio::test]
async fn a_damaged_catalog_keeps_the_rows_that_can_be_read() {
    let mut broker = killed().await;
    let catalog = broker.data_dir().join("catalog.db");
    broker.restart().await;
    assert!(broker.stop().await.success(), "so that all is in the file, and no log beside it");
    let mut bytes = fs::read(&catalog).expect("there");
    let holds = |page: &[u8], text: &[u8]| page.windows(text.len()).any(|window| window == text);
    // A leaf of a table (its first byte says so) of the audit log.
    let page = bytes.chunks(4096).position(|page| page[0] == 0x0d && holds(page, b"subscription.created"));
    let page = page.expect("the audit log tells of subscriptions");
    bytes[page * 4096..page * 4096 + 64].fill(0xff);
    fs::write(&catalog, bytes).expect("a file of ours can be written");
    let checked = verify(&broker, &broker.data_dir());
    assert_eq!(checked.code, 1, "{}", checked.stderr);
    let findings = checked.document["findings"].as_array().expect("findings");
    assert!(findings.iter().all(|finding| finding["kind"] == "bad_catalog"), "{findings:?}");
    assert!(findings.iter().any(|finding| finding["offset"] == page * 4096), "{findings:?}");
    let repaired = repair(&broker);
    let lost = repaired.document["catalogLost"].to_string();
    assert!(repaired.code == 1 && lost.contains("audit_logs") && !lost.contains("topics"), "{lost}");
    broker.restart().await;
    assert_eq!(numbers(&broker, "billing", 91).await, (10..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn without_a_catalog_topics_and_groups_keep_their_messages_under_made_up_names() {
    let mut broker = killed().await;
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        drop(fs::remove_file(broker.data_dir().join(name)));
    }
    let checked = verify(&broker, &broker.data_dir());
    assert_eq!((checked.code, &checked.document["findings"][0]["kind"]), (1, &json!("missing_catalog")));
    let repaired = repair(&broker);
    assert_eq!((repaired.code, &repaired.document["messagesLost"]), (1, &json!(0)), "{}", repaired.stderr);
    broker.restart().await;
    let topics: Value = broker.get("/topics").await.expect_as(200);
    assert!(topics.to_string().contains("recovered-"), "{topics}");
    let taken = broker.consume("recovered-5", "billing").collect(91).await;
    assert_eq!(taken.len(), 91, "its position is kept");
    broker.publish("recovered-5", "goes on").await;
}
