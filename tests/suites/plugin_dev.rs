//! `sluice plugin dev` against a real broker, and the verdicts that it tells. Invariant: what the command says is held against
//! what the broker does with the next message. In C, whose builds take half a second.

mod choices;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use sluice_tests::broker::signal;
use sluice_tests::token::Claims;
use sluice_tests::workshop::Workshop;
use sluice_tests::{Broker, binary, guest, wait};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

/// A session; it ends with the test.
struct Session {
    child: Child,
    said: PathBuf,
    errors: PathBuf,
    /// Of what it said, so much has been looked at.
    seen: usize,
}

impl Session {
    fn start(workshop: &Workshop, broker: &Broker, arguments: &[&str]) -> Session {
        let (said, errors) = (workshop.dir.join("said"), workshop.dir.join("errors"));
        let file = |path: &PathBuf| fs::File::create(path).expect("a file can be made");
        let mut command = workshop.command(binary::sluice());
        command.args(["plugin", "dev", "--json"]).args(arguments);
        command.env("SLUICE_URL", broker.url()).env("SLUICE_TOKEN", broker.admin().token());
        command.stdin(Stdio::null()).stdout(file(&said)).stderr(file(&errors));
        Session { child: command.spawn().expect("sluice starts"), said, errors, seen: 0 }
    }

    /// The next event of this kind; what comes before it is passed over.
    async fn next(&mut self, kind: &str) -> Value {
        let found = wait::within(std::time::Duration::from_secs(120), kind, async || {
            let said = fs::read_to_string(&self.said).expect("a file of ours");
            let (whole, _) = said.rsplit_once('\n').unwrap_or_default();
            let events = whole.lines().enumerate().skip(self.seen);
            let parsed = |line: &str| serde_json::from_str::<Value>(line).expect("each line is an event");
            events.map(|(at, line)| (at, parsed(line))).find(|(_, event)| event["event"] == kind)
        })
        .await;
        self.seen = found.0 + 1;
        found.1
    }

    async fn interrupted(&mut self) -> ExitStatus {
        assert!(signal(self.child.id(), "INT"), "it still runs");
        wait::until("it ends", async || self.child.try_wait().expect("a child of ours")).await
    }

    fn all(&self) -> String {
        [&self.said, &self.errors].map(|file| fs::read_to_string(file).unwrap_or_default()).join("\n")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.all());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// At once: a file that is half written would be a change of its own.
fn replace(file: &Path, text: &str) {
    let beside = file.with_file_name(".written");
    fs::write(&beside, text).expect("written");
    fs::rename(&beside, file).expect("renamed");
}

async fn publish(broker: &Broker, kind: &str) {
    let message = json!({"topicName": "orders", "payload": {"id": 1}, "headers": {"kind": kind}});
    let answer = broker.post("/messages/publish", &message).await;
    assert!(matches!(answer.status, 200 | 202), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_in_force_at_each_change_and_told_and_in_the_end_all_is_as_it_was() {
    let (broker, workshop) = (Broker::start().await, Workshop::empty("dev-c"));
    broker.create_topic("orders", "PubSub").await;
    let other = json!([{"name": "any", "plugin": "filter", "config": {}}]);
    let before = broker.put_pipeline("orders", other).await;
    workshop.done(&["new", "--lang", "c", "orders-filter"]);
    let file = |name: &str| workshop.dir.join("orders-filter").join(name);
    let edit = |name: &str, from: &str, to: &str| {
        let text = fs::read_to_string(file(name)).expect("a file of the project");
        assert!(text.contains(from), "{name} has no {from}");
        replace(&file(name), &text.replace(from, to));
    };

    let mut session = Session::start(&workshop, &broker, &["orders-filter", "--topic", "orders"]);
    let in_force = session.next("inForce").await;
    assert_eq!((&in_force["stage"], &in_force["revision"]), (&json!("orders-filter"), &json!(2)), "{in_force}");
    session.next("following").await;
    publish(&broker, "invoice").await;
    let told = session.next("verdict").await;
    assert_eq!((&told["of"]["verdict"], &told["of"]["reason"]), (&json!("dropped"), &json!("another value")), "{told}");
    publish(&broker, "order").await;
    let changed = session.next("verdict").await;
    let patch = json!([{"op": "add", "path": "/payload/site", "value": "eu-1"}]);
    assert_eq!((&changed["of"]["verdict"], &changed["of"]["patch"]), (&json!("changed"), &patch), "{changed}");

    // A case that fails leaves what runs; once it is as expected, the next message meets the new one.
    edit("orders-filter.c", "another value", "not wanted");
    let failed = session.next("failed").await;
    assert!(failed["text"].as_str().is_some_and(|text| text.contains("cases fail")), "{failed}");
    publish(&broker, "invoice").await;
    assert_eq!(session.next("verdict").await["of"]["reason"], "another value");
    edit("cases/dropped/out.json", "another value", "not wanted");
    let in_force = session.next("inForce").await;
    assert_eq!(in_force["revision"], 3, "{in_force}");
    publish(&broker, "invoice").await;
    assert_eq!(session.next("verdict").await["of"]["reason"], "not wanted");
    let plugin = broker.get("/plugins/orders-filter").await.expect(200);
    let versions = plugin["versions"].as_array().expect("versions");
    assert!(versions.len() == 1 && versions[0]["version"] == in_force["version"], "no old ones are kept: {plugin}");

    // What the compiler says is told, and what runs goes on.
    edit("orders-filter.c", "static bool has_field;", "static bool has_field = nothing;");
    let failed = session.next("failed").await;
    assert!(failed["text"].as_str().is_some_and(|text| text.contains("nothing")), "{failed}");
    publish(&broker, "invoice").await;
    assert_eq!(session.next("verdict").await["of"]["reason"], "not wanted");

    assert!(signal(session.child.id(), "INT"), "it still runs");
    let status = wait::until("it ends", async || session.child.try_wait().expect("a child of ours")).await;
    assert!(status.success(), "{status}");
    let after = broker.get("/topics/orders/pipeline").await.expect(200);
    assert_eq!((&after["stages"], &after["resolved"]), (&before["stages"], &before["resolved"]));
    assert_eq!(broker.get("/plugins/orders-filter").await.status, 404, "nothing of it stays");
    let built = session.all().matches("\"event\":\"built\"").count();
    assert_eq!(built, 3, "one build for each change: {}", session.all());

    once_leaves_it_there_and_a_session_gives_a_stage_and_latest_back(&broker, &workshop).await;
}

/// With what was built before.
async fn once_leaves_it_there_and_a_session_gives_a_stage_and_latest_back(broker: &Broker, workshop: &Workshop) {
    let source = workshop.dir.join("orders-filter/orders-filter.c");
    let text = fs::read_to_string(&source).expect("a source");
    fs::write(&source, text.replace(" = nothing", "")).expect("written");
    let once = |more: &[&str]| {
        let mut command = workshop.command(binary::sluice());
        command.args(["plugin", "dev", "orders-filter", "--once"]).args(more);
        command.env("SLUICE_URL", broker.url()).env("SLUICE_TOKEN", broker.admin().token());
        command.output().expect("sluice starts")
    };
    let missing = once(&["--topic", "absent"]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    assert_eq!(
        broker.get("/plugins/orders-filter").await.status,
        404,
        "nothing is uploaded for a topic that is not there"
    );
    let placed = once(&["--topic", "orders", "--stage", "gate"]);
    assert!(placed.status.success(), "{placed:?}");
    let kept = broker.get("/topics/orders/pipeline").await.expect(200);
    assert_eq!((&kept["stages"][1]["name"], &kept["resolved"][1]["plugin"]), (&json!("gate"), &json!("orders-filter")));

    // Another component, so that another version is uploaded.
    fs::write(&source, text.replace(" = nothing", "").replace("not wanted", "not wanted here")).expect("written");
    let mut session = Session::start(workshop, broker, &["orders-filter", "--topic", "orders", "--anyway"]);
    let in_force = session.next("inForce").await;
    assert_eq!(in_force["stage"], "gate", "the stage that runs it already: {in_force}");
    assert!(signal(session.child.id(), "TERM"), "it still runs");
    let status = wait::until("it ends", async || session.child.try_wait().expect("a child of ours")).await;
    assert!(status.success(), "{status}");
    let after = broker.get("/topics/orders/pipeline").await.expect(200);
    assert_eq!((&after["stages"], &after["resolved"]), (&kept["stages"], &kept["resolved"]));
    let plugin = broker.get("/plugins/orders-filter").await.expect(200);
    let versions = plugin["versions"].as_array().expect("versions");
    assert!(versions.len() == 1 && versions[0]["version"] == kept["resolved"][1]["version"], "{plugin}");
    assert!(session.all().contains("means"), "that `latest` is as it was is told: {}", session.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_it_says_so_and_goes_on_and_once_it_fails() {
    let workshop = Workshop::empty("dev-alone");
    workshop.done(&["new", "--lang", "c", "alone"]);
    let broker = Broker::start().await;
    let wrong = ["alone", "--once", "--url", "http://127.0.0.1:9", "--token", "t"];
    let mut command = workshop.command(binary::sluice());
    let output = command.args(["plugin", "dev"]).args(wrong).output().expect("sluice starts");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let (url, asked) = silent().await;
    let mut session = Session::start(&workshop, &broker, &["alone", "--url", &url]);
    let failed = session.next("failed").await;
    assert!(failed["text"].as_str().is_some_and(|text| text.contains("no answer")), "{failed}");
    // One asks after the other: when it is asked for the third time, what came of the second was told.
    let asked_again = async || {
        let before = asked.load(Ordering::Relaxed);
        wait::until("it is asked again", async || (asked.load(Ordering::Relaxed) >= before + 3).then_some(())).await;
    };
    asked_again().await;
    replace(&workshop.dir.join("alone/README.md"), "other");
    session.next("built").await;
    asked_again().await;
    assert_eq!(session.all().matches("no answer").count(), 1, "it is asked again and again, and told once");
}

/// Where nobody answers, and how often it was asked.
async fn silent() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            // Read to its end, so that each time it ends alike.
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.is_ok_and(|read| read > 0) {}
        }
    });
    (url, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_built_without_a_broker_is_in_force_once_there_is_one() {
    let (mut broker, workshop) = (Broker::start().await, Workshop::empty("dev-later"));
    broker.create_topic("orders", "PubSub").await;
    broker.stop().await;
    workshop.done(&["new", "--lang", "c", "orders-filter"]);
    let mut session = Session::start(&workshop, &broker, &["orders-filter", "--topic", "orders"]);
    let failed = session.next("failed").await;
    assert!(failed["text"].as_str().is_some_and(|text| text.contains("no answer")), "{failed}");
    broker.restart().await;
    let in_force = session.next("inForce").await;
    assert_eq!(in_force["stage"], "orders-filter", "{in_force}");
    assert_eq!(session.all().matches("\"event\":\"built\"").count(), 1, "{}", session.all());
}

fn once(workshop: &Workshop, broker: &Broker, more: &[&str]) -> std::process::Output {
    let mut command = workshop.command(binary::sluice());
    command.args(["plugin", "dev", "orders-filter", "--once"]).args(more);
    command.env("SLUICE_URL", broker.url()).env("SLUICE_TOKEN", broker.admin().token());
    command.output().expect("sluice starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_of_others_is_refused_and_what_they_change_meanwhile_stays() {
    let (broker, workshop) = (Broker::start().await, Workshop::empty("dev-others"));
    broker.create_topic("orders", "PubSub").await;
    workshop.done(&["new", "--lang", "c", "orders-filter"]);
    let refused = |arguments: &[&str], word: &str| {
        let output = once(&workshop, &broker, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(word), "{output:?}");
    };
    // A stage that has the plugin's name by chance.
    broker.put_pipeline("orders", json!([{"name": "orders-filter", "plugin": "filter", "config": {}}])).await;
    refused(&["--topic", "orders"], "runs another plugin");
    // A stage whose rollout would end.
    for (version, mark) in [("1", "one"), ("2", "two")] {
        super::plugin_versions::push(&broker, "gate", version, guest::with_powers(&[], mark)).await.expect(201);
    }
    broker.put_pipeline("orders", json!([{"name": "gate", "plugin": "gate", "version": "1", "config": {}}])).await;
    let rollout = "/topics/orders/pipeline/stages/gate/rollout";
    broker.post(rollout, &json!({"version": "2", "strategy": "canary", "percent": 10})).await.expect(200);
    refused(&["--topic", "orders", "--stage", "gate"], "a rollout of the stage 'gate' is under way");
    assert_eq!(broker.get(rollout).await.status, 200, "it goes on");
    // One that can't take it: the config is refused by the plugin that is bound.
    let config = workshop.dir.join("bad.json");
    fs::write(&config, "{\"field\": 7, \"unknown\": []}").expect("written");
    refused(&["--topic", "orders", "--stage", "new", "--config", "bad.json"], "config");
    assert_eq!(broker.get("/plugins/orders-filter").await.status, 404, "nothing of it stays");

    broker.put_pipeline("orders", json!([{"name": "gate", "plugin": "filter", "config": {}}])).await;
    let config = workshop.dir.join("orders-filter/cases/config.json").display().to_string();
    let arguments = ["orders-filter", "--topic", "orders", "--stage", "gate", "--config", &config];
    let mut session = Session::start(&workshop, &broker, &arguments);
    session.next("inForce").await;
    let mut now = broker.get("/topics/orders/pipeline").await.expect(200)["stages"].clone();
    now[0]["timeoutMs"] = json!(77);
    broker.put_pipeline("orders", now).await;
    let status = session.interrupted().await;
    assert!(status.success(), "{status}");
    let after = broker.get("/topics/orders/pipeline").await.expect(200)["stages"][0].clone();
    assert_eq!(
        (&after["plugin"], &after["config"], &after["timeoutMs"]),
        (&json!("filter"), &json!({}), &json!(77)),
        "{after}"
    );

    // A topic that is gone keeps nothing from being cleaned up.
    let mut session = Session::start(&workshop, &broker, &arguments);
    session.next("inForce").await;
    broker.delete("/topics/orders").await.expect(204);
    let status = session.interrupted().await;
    assert!(status.success(), "{status}");
    assert_eq!(broker.get("/plugins/orders-filter").await.status, 404, "nothing of it stays");
}

/// The broker carries an upload to its end, whatever becomes of its client.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_under_way_is_waited_for_and_then_taken_back() {
    let (broker, workshop) = (Broker::start().await, Workshop::empty("dev-midway"));
    broker.create_topic("orders", "PubSub").await;
    workshop.done(&["new", "--lang", "c", "orders-filter"]);
    let mut session = Session::start(&workshop, &broker, &["orders-filter", "--topic", "orders"]);
    session.next("cases").await;
    // The place that uploads are compiled in shows in no answer: whatever is sent by now is far from its end.
    let status = session.interrupted().await;
    assert!(status.success(), "{status}");
    // What was sent before this one is taken in before it.
    let component = fs::read(workshop.dir.join("orders-filter/dist/orders-filter.wasm")).expect("what was built");
    super::plugin_versions::push(&broker, "later", "1", component).await.expect(201);
    assert_eq!(broker.get("/plugins/orders-filter").await.status, 404, "nothing of it stays");
    let pipeline = broker.get("/topics/orders/pipeline").await;
    assert!(!pipeline.to_string().contains("orders-filter"), "{pipeline}");
}

/// `jq` says what it sees, and is everybody's.
#[tokio::test]
async fn what_a_plugin_of_everybody_says_is_read_by_those_who_reach_the_topic() {
    let broker = Broker::start().await;
    for topic in ["orders.a", "billing.a"] {
        broker.create_topic(topic, "PubSub").await;
        broker.put_pipeline(topic, json!([{"name": "look", "plugin": "jq", "config": {"program": "debug"}}])).await;
    }
    let author = broker.client(&Claims::new("author", &["PluginAuthor"]).topics(&["orders.*"]));
    let mut events = author.events("/plugins/jq/logs?follow=true&limit=1").await;
    for topic in ["billing.a", "orders.a"] {
        let message = json!({"topicName": topic, "payload": {"of": topic}});
        broker.post("/messages/publish", &message).await.expect(202);
    }
    let line = events.next_json().await;
    assert!(line["text"].as_str().is_some_and(|text| text.contains("orders.a")), "{line}");
    let of_author = author.get("/plugins/jq/logs").await.expect(200).to_string();
    assert!(of_author.contains("orders.a") && !of_author.contains("billing.a"), "{of_author}");
    let of_admin = broker.get("/plugins/jq/logs").await.expect(200).to_string();
    assert!(of_admin.contains("orders.a") && of_admin.contains("billing.a"), "{of_admin}");
}

#[tokio::test]
async fn verdicts_are_told_to_those_whose_token_reaches_plugin_and_topic() {
    let broker = Broker::start().await;
    for topic in ["orders.a", "billing.a"] {
        broker.create_topic(topic, "PubSub").await;
        let config = json!({"headerMatches": {"kind": "order"}});
        broker.put_pipeline(topic, json!([{"name": "gate", "plugin": "filter", "config": config}])).await;
    }
    broker.get("/plugins/filter/logs?verdicts=true").await.expect_problem(400, "VALIDATION_ERROR");
    let author = broker.client(&Claims::new("author", &["PluginAuthor"]).topics(&["orders.*"]));
    let mut events = author.events("/plugins/filter/logs?follow=true&verdicts=true&limit=1").await;
    for (topic, kind) in [("billing.a", "order"), ("orders.a", "order"), ("billing.a", "x"), ("orders.a", "x")] {
        let message = json!({"topicName": topic, "payload": {}, "headers": {"kind": kind}});
        let answer = broker.post("/messages/publish", &message).await;
        assert!(answer.status < 300 || answer.status == 422, "{answer}");
    }
    for verdict in ["pass", "rejected"] {
        let told = events.next_json().await;
        assert!(told["topicName"] == "orders.a" && told["stage"] == "gate" && told["verdict"] != Value::Null, "{told}");
        let found = told["verdict"].as_str().expect("a word");
        assert!(found == verdict || (verdict == "rejected" && found == "dropped"), "{told}");
    }
    // Where a plugin fails, its functions are named.
    broker.place_versions("orders.gate", &[("1.0.0", guest::hostile())]).await;
    broker.put_pipeline("orders.a", json!([{"name": "gate", "plugin": "orders.gate", "timeoutMs": 1000}])).await;
    let mut events = author.events("/plugins/orders.gate/logs?follow=true&verdicts=true&limit=1").await;
    let message = json!({"topicName": "orders.a", "payload": {}, "headers": {"do": "panic"}});
    broker.post("/messages/publish", &message).await.expect_problem(503, "PLUGIN_FAULT");
    let told = loop {
        let event = events.next_json().await;
        if event["verdict"].is_string() {
            break event;
        }
    };
    let reason = told["reason"].as_str().unwrap_or_default();
    assert!(told["verdict"] == "fault" && reason.starts_with("TRAPPED") && reason.contains("hostile::"), "{told}");
}
