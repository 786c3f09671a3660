//! Versions tried on messages of the past, over the real binary. Invariant: what a dry run tells is held against what the messages
//! are known to hold, and the broker is as it was. Never lets a run be judged by its time.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use sluice_tests::broker::Settings;
use sluice_tests::token::Claims;
use sluice_tests::{Answer, Broker, Client, broker, events, guest, wait};

use super::cli;

const TOPIC: &str = "orders.events";

/// A topic with a stage on the first of two versions of a plugin, which keeps what arrives, and its one consumer.
async fn set_up(broker: &Broker, versions: [&[u8]; 2]) -> String {
    broker.place_versions("orders.gate", &[("1.1.0", versions[1]), ("1.0.0", versions[0])]).await;
    let topic = json!({"name": TOPIC, "type": "PubSub", "captureInput": {"ttl": "PT1H"}});
    let topic = broker.post("/topics", &topic).await.expect(201);
    assert_eq!(topic["captureInput"], json!({"ttl": "PT1H", "maxBytes": 67_108_864}));
    let stage = json!({"name": "gate", "plugin": "orders.gate", "version": "1.0.0", "timeoutMs": 1000});
    broker.put_pipeline(TOPIC, json!([stage])).await;
    broker.subscribe(TOPIC, "all").await["subscriptionId"].as_str().expect("an id").to_owned()
}

fn path(version: &str) -> String {
    format!("/plugins/orders.gate/versions/{version}/dry-run")
}

async fn dry_run(client: &Client, version: &str, body: Value) -> Value {
    client.post(&path(version), &body).await.expect(200)
}

async fn send_lines(client: &Client, version: &str, query: &str, lines: impl Into<Bytes>) -> Answer {
    let path = format!("{}?{query}", path(version));
    client.send(Method::POST, &path, &[("content-type", "application/x-ndjson")], lines.into()).await
}

/// Files with what arrived that hold this word.
fn held(broker: &Broker, word: &str) -> usize {
    let files = broker::files_below(&broker.data_dir().join("captured"));
    files.iter().filter(|file| std::fs::read_to_string(file).is_ok_and(|text| text.contains(word))).count()
}

fn counts(result: &Value) -> [u64; 4] {
    ["same", "verdictDiffers", "payloadDiffers", "trapped"].map(|name| result[name].as_u64().expect("a count"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_changes_one_field_is_told_for_exactly_the_right_messages() {
    let broker = Broker::start().await;
    set_up(&broker, [&guest::louder(1), &guest::louder(2)]).await;
    let events = events::github();
    let opened = events.iter().filter(|event| event.action.as_deref() == Some("opened")).count() as u64;
    let mut ids = BTreeMap::new();
    for event in &events {
        let payload: Value = serde_json::from_str(event.payload.get()).expect("events hold JSON");
        ids.insert(broker.publish(TOPIC, payload).await.message_id, event.action.clone());
    }
    let before = broker.get(&format!("/topics/{TOPIC}/pipeline")).await.expect(200);
    let all = events.len() as u64;
    let result = dry_run(&broker, "1.1.0", json!({"topic": TOPIC})).await;
    assert_eq!(counts(&result), [all - opened, 0, opened, 0], "{result}");
    assert_eq!(
        (&result["inputs"], &result["stage"], &result["end"]),
        (&json!("captured"), &json!("gate"), &json!("all"))
    );
    assert_eq!((&result["stable"]["version"], &result["stable"]["passed"]), (&json!("1.0.0"), &json!(all)));
    assert_eq!((&result["candidate"]["changed"], &result["candidate"]["kept"]), (&json!(opened), &json!(all)));
    let sample = result["sample"].as_array().expect("a sample");
    assert_eq!(sample.len() as u64, opened.min(10));
    for found in sample {
        let id = found["messageId"].as_str().expect("an id");
        assert_eq!(ids[id].as_deref(), Some("opened"));
        assert_eq!(found["diff"], json!([{"op": "replace", "path": "/payload/action", "value": "OPENED"}]));
    }

    // The same again is the same, but for time.
    let timeless = |mut result: Value| {
        result["tookMs"] = Value::Null;
        for arm in ["stable", "candidate"] {
            for name in ["meanMicros", "latencyP50Ms", "latencyP99Ms"] {
                result[arm][name] = Value::Null;
            }
        }
        result
    };
    let again = dry_run(&broker, "1.1.0", json!({"topic": TOPIC})).await;
    assert_eq!(timeless(again), timeless(result.clone()));

    // So it is with the same events from a file, and with those that are stored.
    let lines: Vec<String> = events.iter().map(|event| json!({"payload": event.payload.get()}).to_string()).collect();
    let sent = send_lines(&broker, "1.1.0", &format!("topic={TOPIC}"), lines.join("\n")).await.expect(200);
    assert_eq!((counts(&sent), &sent["inputs"]), (counts(&result), &json!("sent")));
    let stored = dry_run(&broker, "1.1.0", json!({"topic": TOPIC, "inputs": "stored"})).await;
    assert_eq!(counts(&stored), counts(&result));

    // Against what it is itself nothing differs, and of the first ten there are ten.
    let itself = dry_run(&broker, "1.1.0", json!({"topic": TOPIC, "against": "1.1.0", "limit": 10})).await;
    assert_eq!((counts(&itself), &itself["end"]), ([10, 0, 0, 0], &json!("limit")));

    assert_eq!(broker.get(&format!("/topics/{TOPIC}/pipeline")).await.expect(200), before);
    let figure = "sluice_plugin_messages_total{plugin=\"orders.gate\",version=\"1.1.0\"";
    assert_eq!(broker.metric_sum(figure).await, 0.0, "no figure counts what was not live");
    assert_eq!(broker.consume(TOPIC, "all").limit(100).drain(events.len()).await.len(), events.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_sees_how_far_it_is_and_scripts_have_gates() {
    let broker = Broker::start().await;
    let subscription = set_up(&broker, [&guest::louder(1), &guest::louder(2)]).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("events.ndjson");
    let line = |number: usize| {
        if number.is_multiple_of(100) { "{\"action\": \"opened\"}\n" } else { "{\"action\": \"closed\"}\n" }
    };
    std::fs::write(&file, (0..2000).map(line).collect::<String>() + "no\u{0}json\n").expect("written");
    let file = file.to_str().expect("a path");
    let base = ["plugin", "dry-run", "orders.gate", "1.1.0", "--topic", TOPIC, "--ndjson", file];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    let told = cli::done(&broker, &with(&["--fail-on", "changed>1%", "--fail-on", "trapped>0"]));
    assert!(told.contains("2001 messages on the stage 'gate', beside version 1.0.0: 1981 the same"), "{told}");
    assert!(told.contains(r#"{"op":"replace","path":"/payload/action","value":"OPENED"}"#), "{told}");
    let ran = cli::run(&broker, &with(&["--fail-on", "changed>0.1%"]));
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("changed>0.1%: 20 of 2001 messages (1.000 %)"), "{}", ran.stderr);
    assert_eq!(cli::json(&broker, &with(&["--limit", "50"]))["messages"], 50);

    for number in 0..300 {
        broker.publish(TOPIC, json!({"action": "opened", "number": number})).await;
    }
    let of_subscription =
        ["plugin", "dry-run", "orders.gate", "1.1.0", "--subscription", &subscription, "--json", "--limit", "1000"];
    let result = cli::json(&broker, &of_subscription[..of_subscription.len() - 3]);
    // No stage of the subscription runs the plugin: what it makes is compared with the messages as they are.
    assert_eq!((counts(&result), &result["stable"], &result["stage"]), ([0, 0, 300, 0], &Value::Null, &Value::Null));

    let request = sluice_tests::client::http_client().post(format!("{}/api/v1{}", broker.url(), path("1.1.0")));
    let request = request.bearer_auth(broker.token()).header("accept", "text/event-stream");
    let answer = request.json(&json!({"topic": TOPIC})).send().await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let text = answer.text().await.expect("events");
    let result = text.split("event: result\ndata: ").nth(1).expect("a result");
    let result: Value = serde_json::from_str(result.trim()).expect("JSON");
    assert_eq!(counts(&result), [0, 0, 300, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mended_version_is_tried_on_the_dead_letters_and_then_takes_them() {
    let broker = Broker::start().await;
    broker.place_versions("orders.gate", &[("1.0.0", guest::hostile()), ("1.1.0", &guest::tag(1))]).await;
    broker.create_topic(TOPIC, "PubSub").await;
    let stage = |version: &str| {
        let stage = json!({"name": "gate", "plugin": "orders.gate", "version": version, "onFault": "deadLetter"});
        json!([stage])
    };
    broker.put_pipeline(TOPIC, stage("1.0.0")).await;
    broker.subscribe(TOPIC, "all").await;
    for number in 0..5 {
        let word = if number == 0 { "nothing" } else { "panic" };
        broker.publish(TOPIC, json!({ "number": number })).field("headers", json!({ "do": word })).await;
    }
    let body = json!({"topic": TOPIC, "inputs": "deadLetters"});
    let result = dry_run(&broker, "1.1.0", body.clone()).await;
    assert_eq!((counts(&result), &result["candidate"]["kept"]), ([0, 4, 0, 0], &json!(4)), "{result}");
    assert_eq!(result["stable"]["faults"], json!({"TRAPPED": 4}), "the version in use fails on them as it did");
    let worse = dry_run(&broker, "1.0.0", body).await;
    assert_eq!(counts(&worse), [4, 0, 0, 0]);

    broker.put_pipeline(TOPIC, stage("1.1.0")).await;
    let replayed = cli::json(&broker, &["dlq", "replay", TOPIC, "--all"]);
    assert_eq!(replayed["replayed"], 4, "{replayed}");
    let deliveries = broker.consume(TOPIC, "all").drain(5).await;
    let tagged = deliveries.iter().filter(|delivery| delivery.message.headers.contains_key("tag")).count();
    assert_eq!(tagged, 4, "they came through the mended version");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_is_kept_for_a_while_and_goes_with_what_it_was_kept_of() {
    let mut broker = Broker::start().await;
    set_up(&broker, [&guest::tag(1), &guest::tag(2)]).await;
    let arrived = async |broker: &Broker| dry_run(broker, "1.1.0", json!({"topic": TOPIC})).await["messages"].clone();
    let erased = broker.publish(TOPIC, json!({"secret": "hunter2"})).await.message_id;
    broker.publish(TOPIC, json!({"secret": "swordfish"})).await;
    assert_eq!(arrived(&broker).await, 2);
    broker.delete(&format!("/messages/{erased}")).await.expect(204);
    assert_eq!((held(&broker, "hunter2"), held(&broker, "swordfish")), (0, 1));
    broker.crash().await;
    assert_eq!(arrived(&broker).await, 1);
    let later = broker.clock().now_rfc3339();
    broker.clock().advance(Duration::from_secs(60)).await;
    broker.publish(TOPIC, json!({})).await;
    let late = dry_run(&broker, "1.1.0", json!({"topic": TOPIC, "from": later})).await;
    assert_eq!(late["messages"], 1);
    broker.clock().advance(Duration::from_secs(3570)).await;
    assert_eq!(arrived(&broker).await, 1, "what is older than the topic's ttl is not read");
    broker.post(&format!("/topics/{TOPIC}/purge"), &json!({})).await;
    assert_eq!(arrived(&broker).await, 0);

    broker.publish(TOPIC, json!({"secret": "abracadabra"})).await;
    assert_eq!(arrived(&broker).await, 1);
    cli::done(&broker, &["topic", "update", TOPIC, "--capture-input", "off"]);
    assert_eq!(held(&broker, "abracadabra"), 0);
    let refused = broker.post(&path("1.1.0"), &json!({"topic": TOPIC})).await.expect_problem(400, "VALIDATION_ERROR");
    assert!(refused["errors"][0]["message"].as_str().is_some_and(|why| why.contains("captureInput")), "{refused}");
    cli::done(&broker, &["topic", "update", TOPIC, "--capture-input", "P1D", "--capture-bytes", "100000"]);
    cli::done(&broker, &["topic", "update", TOPIC, "--capture-input", "P2D"]);
    let topic = broker.get(&format!("/topics/{TOPIC}")).await.expect(200);
    assert_eq!(topic["captureInput"], json!({"ttl": "P2D", "maxBytes": 100_000}), "what is not given stays");
    broker.publish(TOPIC, json!({"secret": "open sesame"})).await;
    assert_eq!((arrived(&broker).await, held(&broker, "open sesame")), (json!(1), 1));
    broker.delete(&format!("/topics/{TOPIC}?force=true")).await.expect(204);
    assert_eq!(held(&broker, "open sesame"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_messages_take_no_memory() {
    const LINES: usize = 60_000;
    let broker = Broker::start().await;
    set_up(&broker, [&guest::tag(1), &guest::tag(2)]).await;
    send_lines(&broker, "1.1.0", &format!("topic={TOPIC}"), "{\"payload\": 1}\n".repeat(1000)).await.expect(200);
    let before = broker.resident_bytes();
    let line = json!({"payload": "x".repeat(1000)}).to_string() + "\n";
    let chunk = Bytes::from(line.repeat(100));
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(
        (0..LINES / 100).map(move |_| Ok::<_, std::io::Error>(chunk.clone())),
    ));
    let request = sluice_tests::client::http_client().post(format!(
        "{}/api/v1{}?topic={TOPIC}&limit={LINES}",
        broker.url(),
        path("1.1.0")
    ));
    let request = request.bearer_auth(broker.token()).header("content-type", "application/x-ndjson");
    let answer = request.header("accept", "text/event-stream").body(body).send().await.expect("an answer");
    let text = answer.text().await.expect("events");
    let result = text.split("event: result\ndata: ").nth(1).expect("a result");
    let result: Value = serde_json::from_str(result.trim()).expect("JSON");
    assert_eq!((&result["messages"], &result["end"]), (&json!(LINES), &json!("limit")), "{result}");
    assert!(text.contains("event: progress"), "progress is told on the way");
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{LINES} messages of 1 KiB took {} MiB", grown >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_ends_with_the_one_who_asked_for_it() {
    let broker = Broker::start().await;
    set_up(&broker, [&guest::tag(1), &guest::tag(2)]).await;
    let unended = || {
        let some = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from("{\"payload\": 1}\n"))]);
        let lines = futures_util::StreamExt::chain(some, futures_util::stream::pending());
        let request = sluice_tests::client::http_client().post(format!(
            "{}/api/v1{}?topic={TOPIC}&limit=100000000",
            broker.url(),
            path("1.1.0")
        ));
        let request = request.bearer_auth(broker.token()).header("content-type", "application/x-ndjson");
        request.header("accept", "text/event-stream").body(reqwest::Body::wrap_stream(lines)).send()
    };
    let (one, two) = (unended().await.expect("an answer"), unended().await.expect("an answer"));
    assert_eq!((one.status().as_u16(), two.status().as_u16()), (200, 200));
    let third = async || send_lines(&broker, "1.1.0", &format!("topic={TOPIC}"), "{\"payload\": 1}").await;
    third().await.expect_problem(429, "BACKPRESSURE");
    drop((one, two));
    let again = async || {
        wait::until("there is a place again", async || {
            let answer = third().await;
            (answer.status == 200).then(|| answer.json())
        })
        .await
    };
    let result = again().await;
    assert_eq!((&result["messages"], &result["end"]), (&json!(1), &json!("all")));

    // Also who waits for one answer, and not for events.
    let waits = async |client: Client| {
        loop {
            let some = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from("{\"payload\": 1}\n"))]);
            let lines = futures_util::StreamExt::chain(some, futures_util::stream::pending());
            let url = format!("{}/api/v1{}?topic={TOPIC}", client.url(), path("1.1.0"));
            let request = sluice_tests::client::http_client().post(url).bearer_auth(client.token());
            let request = request.header("content-type", "application/x-ndjson");
            // Who looks whether both run may have been quicker.
            let answer = request.body(reqwest::Body::wrap_stream(lines)).send().await.expect("an answer");
            assert_eq!(answer.status().as_u16(), 429);
        }
    };
    let waiting = [waits(broker.admin()), waits(broker.admin())].map(tokio::spawn);
    wait::until("both run", async || (third().await.status == 429).then_some(())).await;
    for one in waiting {
        one.abort();
    }
    assert_eq!(again().await["end"], json!("all"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_shown_no_secret_that_its_author_may_not_name() {
    let secrets = tempfile::tempdir().expect("a folder");
    std::fs::write(secrets.path().join("billing.key"), "hunter2").expect("a file");
    let folder = secrets.path().to_str().expect("a name");
    let broker = Broker::with(Settings::new().env("SLUICE__PLUGINS__SECRETS_DIR", folder)).await;
    set_up(&broker, [&guest::tag(1), &guest::tag(2)]).await;
    let author = broker.client(&Claims::new("author", &["PluginAuthor"]).topics(&["orders.*"]));
    let config = json!({"key": {"$secret": "billing.key"}});
    let body = json!({"topic": TOPIC, "config": config});
    let refused = author.post(&path("1.1.0"), &body).await.expect_problem(403, "FORBIDDEN");
    assert!(refused["detail"].as_str().is_some_and(|said| said.contains("secret 'billing.key'")), "{refused}");
    let query = format!("topic={TOPIC}&config={}", "%7B%22key%22%3A%7B%22%24secret%22%3A%22billing.key%22%7D%7D");
    send_lines(&author, "1.1.0", &query, "{\"payload\": 1}").await.expect_problem(403, "FORBIDDEN");
    dry_run(&broker, "1.1.0", body).await;

    // Nor by the config that an Admin has set, which another version would be given: tried, or let loose.
    let stage = json!({"name": "gate", "plugin": "orders.gate", "version": "1.0.0", "config": config});
    broker.put_pipeline(TOPIC, json!([stage])).await;
    let rollout = format!("/topics/{TOPIC}/pipeline/stages/gate/rollout");
    let canary = json!({"version": "1.1.0", "strategy": "canary"});
    author.post(&path("1.1.0"), &json!({"topic": TOPIC})).await.expect_problem(403, "FORBIDDEN");
    author
        .post(&path("1.1.0"), &json!({"topic": TOPIC, "config": {}, "against": "1.0.0"}))
        .await
        .expect_problem(403, "FORBIDDEN");
    author.post(&rollout, &canary).await.expect_problem(403, "FORBIDDEN");
    author.post(&path("1.1.0"), &json!({"topic": TOPIC, "config": {}})).await.expect(200);
    broker.post(&rollout, &canary).await.expect(200);
}

#[tokio::test]
async fn only_who_may_set_a_stage_may_try_it_and_what_is_wrong_is_told_by_its_place() {
    let broker = Broker::start().await;
    let subscription = set_up(&broker, [&guest::tag(1), &guest::tag(2)]).await;
    let author = |topics: &str| broker.client(&Claims::new("author", &["PluginAuthor"]).topics(&[topics]));
    let body = json!({"topic": TOPIC});
    author("billing.*").post(&path("1.1.0"), &body).await.expect_problem(403, "FORBIDDEN");
    broker.viewer().post(&path("1.1.0"), &body).await.expect_problem(403, "FORBIDDEN");
    author("orders.*").post(&path("1.1.0"), &body).await.expect(200);
    // A plugin that came with the binary is everybody's; the topic is not.
    let of_redact = "/plugins/redact/versions/latest/dry-run";
    author("billing.*").post(of_redact, &body).await.expect_problem(403, "FORBIDDEN");
    broker.post(&path("9.9.9"), &body).await.expect_problem(404, "NOT_FOUND");
    broker.post(&path("1.1.0"), &json!({"topic": "orders.none"})).await.expect_problem(404, "NOT_FOUND");
    for (body, pointer) in [
        (json!({}), "/topic"),
        (json!({"topic": "a b"}), "/topic"),
        (json!({"topic": TOPIC, "subscriptionId": subscription}), "/subscriptionId"),
        (json!({"subscriptionId": subscription, "inputs": "captured"}), "/inputs"),
        (json!({"topic": TOPIC, "inputs": "sent"}), "/inputs"),
        (json!({"topic": TOPIC, "limit": 0}), "/limit"),
        (json!({"topic": TOPIC, "limit": 100_000_001}), "/limit"),
        (json!({"topic": TOPIC, "from": "yesterday"}), "/from"),
        (json!({"topic": TOPIC, "config": 1}), "/config"),
        (json!({"topic": TOPIC, "stage": "none"}), "/stage"),
        (json!({"topic": TOPIC, "against": "none"}), "/against"),
        (json!({"topic": TOPIC, "verson": "1"}), "/verson"),
    ] {
        let problem = broker.post(&path("1.1.0"), &body).await.expect_problem(400, "VALIDATION_ERROR");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}: {problem}");
    }
    let query = format!("{}?topic={TOPIC}", path("1.1.0"));
    broker.post(&query, &body).await.expect_problem(400, "VALIDATION_ERROR");
    let lines = "{\"payload\": 1}\nnonsense\n{\"payload\": 2, \"topicName\": \"elsewhere\"}\n{\"priority\": 3}\n";
    let result = send_lines(&broker, "1.1.0", &format!("topic={TOPIC}"), lines).await.expect(200);
    assert_eq!((&result["messages"], &result["unreadable"]), (&json!(2), &json!(2)));
    assert_eq!(result["unreadableSample"][0]["line"], 2, "{result}");
    assert!(result["unreadableSample"][1]["message"].as_str().is_some_and(|why| why.contains("/payload")), "{result}");
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_lines_a_config_may_be_as_large_as_a_stages() {
    let broker = Broker::start().await;
    set_up(&broker, [&guest::tag(1), &guest::tag(2)]).await;
    let config = |bytes: usize| json!({"schema": {"required": ["id"], "description": "x".repeat(bytes)}});
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("a path").to_owned()
    };
    let lines = file("events.ndjson", "no JSON\u{0}\n{\"id\": 1}\n{\"name\": 2}\n".to_owned());
    let large = file("large.json", config(900_000).to_string());
    let of = ["plugin", "dry-run", "json-schema", "latest", "--topic", TOPIC, "--ndjson", &lines, "--config"];
    let result = cli::json(&broker, &[&of[..], &[&large]].concat());
    assert_eq!((&result["messages"], &result["end"]), (&json!(3), &json!("all")), "{result}");
    assert_eq!((&result["candidate"]["kept"], &result["candidate"]["rejected"]), (&json!(1), &json!(2)), "{result}");
    let larger = file("larger.json", config(1 << 20).to_string());
    cli::refused(&broker, &[&of[..], &[&larger]].concat(), 1, "a config has at most 1048576 bytes");

    // Lines are counted without the first one, and what is wrong in that has its place there.
    let first = |wanted: Value| format!("{}\n", json!({ "dryRun": wanted }));
    let messages = "{\"payload\": {\"id\": 1}}\nnonsense\n{\"dryRun\": {}}\n";
    let wanted = json!({"topic": TOPIC, "config": {}, "seed": 3, "limit": 10, "at": "2026-01-01T00:00:00Z"});
    let result = send_lines(&broker, "1.1.0", "", first(wanted) + messages).await.expect(200);
    assert_eq!((&result["messages"], &result["inputs"]), (&json!(1), &json!("sent")), "{result}");
    let unreadable = &result["unreadableSample"];
    assert_eq!((&unreadable[0]["line"], &unreadable[1]["line"]), (&json!(2), &json!(3)), "{result}");
    for (line, pointer) in [
        (String::new(), "/dryRun"),
        ("{}\n".to_owned(), "/dryRun"),
        ("{\"payload\": 1}\n".to_owned(), "/payload"),
        (first(json!({})), "/dryRun/topic"),
        (first(json!({"topic": TOPIC, "inputs": "stored"})), "/dryRun/inputs"),
        (first(json!({"topic": TOPIC, "against": "none"})), "/dryRun/against"),
        (first(json!({"topic": TOPIC, "config": {"$": "x".repeat(1 << 20)}})), "/dryRun/config"),
        (first(json!({"topic": TOPIC, "config": "x".repeat(17 << 20)})), "/dryRun"),
    ] {
        let problem = send_lines(&broker, "1.1.0", "", line).await.expect_problem(400, "VALIDATION_ERROR");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    // Where the query says what to try, each line is a message.
    let result = send_lines(&broker, "1.1.0", &format!("topic={TOPIC}"), messages).await.expect(200);
    assert_eq!((&result["messages"], &result["unreadable"]), (&json!(1), &json!(2)), "{result}");
}

/// Lines for the guest `powers`, whose headers say what it does.
fn told(words: &[&str]) -> String {
    words.iter().map(|words| format!("{}\n", json!({"payload": 1, "headers": {"do": words}}))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_refused_message_wrote_is_not_there_for_those_behind_it() {
    let broker = Broker::start().await;
    broker.place_versions("orders.powers", &[("1.0.0", guest::powers())]).await;
    broker.create_topic(TOPIC, "PubSub").await;
    let lines = told(&["count k", "count k; reject", "count k"]);
    let path = format!("/plugins/orders.powers/versions/1.0.0/dry-run?topic={TOPIC}");
    let result =
        broker.send(Method::POST, &path, &[("content-type", "application/x-ndjson")], Bytes::from(lines)).await;
    let result = result.expect(200);
    assert_eq!((&result["candidate"]["rejected"], &result["valuesLost"]), (&json!(1), &json!(0)), "{result}");
    let counted: Vec<&Value> =
        result["sample"].as_array().expect("a sample").iter().map(|found| &found["diff"]).collect();
    let counted: Vec<&Value> =
        counted.iter().filter_map(|diff| diff.as_array()?.iter().find(|op| op["path"] == "/headers/count")).collect();
    let counted: Vec<&Value> = counted.into_iter().map(|operation| &operation["value"]).collect();
    assert_eq!(counted, [&json!("1"), &json!("2")], "as where they are published: {result}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stages_see_the_time_at_which_each_message_came() {
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, "PubSub").await;
    for _ in 0..5 {
        broker.publish(TOPIC, json!({"order": 7})).await;
        broker.clock().advance(Duration::from_secs(60)).await;
    }
    let config = json!({"pointer": "/order", "window": "PT10S"});
    let body = |config: &Value| json!({"topic": TOPIC, "inputs": "stored", "config": config});
    let path = "/plugins/dedup/versions/latest/dry-run";
    let result = broker.post(path, &body(&config)).await.expect(200);
    assert_eq!(
        (&result["candidate"]["kept"], &result["same"]),
        (&json!(5), &json!(5)),
        "none is in another's window: {result}"
    );
    let result = broker.post(path, &body(&json!({"pointer": "/order", "window": "PT150S"}))).await.expect(200);
    assert_eq!((&result["candidate"]["kept"], &result["candidate"]["dropped"]), (&json!(2), &json!(3)), "{result}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_way_out_the_stages_before_read_the_values_of_now() {
    let broker = Broker::start().await;
    broker.place_versions("orders.powers", &[("1.0.0", guest::powers())]).await;
    broker.create_topic(TOPIC, "PubSub").await;
    let powers = json!({"name": "look", "plugin": "orders.powers", "version": "1.0.0"});
    broker.put_pipeline(TOPIC, json!([powers])).await;
    let id = broker.subscribe(TOPIC, "all").await["subscriptionId"].as_str().expect("an id").to_owned();
    let gate = json!({"name": "gate", "plugin": "filter", "config": {"headerMatches": {}}});
    broker.put(&format!("/subscriptions/{id}/pipeline"), &json!({"stages": [powers, gate]})).await.expect(200);
    for words in ["set k seen", "get k"] {
        let message = json!({"topicName": TOPIC, "payload": 1, "headers": {"do": words}});
        broker.post("/messages/publish", &message).await.expect(202);
    }
    let config = json!({"headerMatches": {"got": "seen"}});
    let body = json!({"subscriptionId": id, "stage": "gate", "config": config});
    let result = broker.post("/plugins/filter/versions/latest/dry-run", &body).await.expect(200);
    // The first one sets what can't be set on the way out.
    assert_eq!((&result["notReached"], &result["candidate"]["kept"]), (&json!(1), &json!(1)), "{result}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_to_which_nothing_comes_ends() {
    let broker = Broker::start().await;
    set_up(&broker, [&guest::tag(1), &guest::tag(2)]).await;
    let lines = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
    let url = format!("{}/api/v1{}?topic={TOPIC}", broker.url(), path("1.1.0"));
    let request = sluice_tests::client::http_client().post(url).bearer_auth(broker.token());
    let request = request.header("content-type", "application/x-ndjson").header("accept", "text/event-stream");
    let answer = request.body(reqwest::Body::wrap_stream(lines)).send().await.expect("an answer");
    let told = tokio::spawn(answer.text());
    // Again, should the broker have begun to wait after it.
    wait::until("it ends", async || {
        broker.clock().advance(Duration::from_secs(61)).await;
        told.is_finished().then_some(())
    })
    .await;
    let told = told.await.expect("no panic").expect("it ends");
    assert!(told.contains("no line came for 60 s"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_turned_away_is_erased_where_it_arrived_and_what_comes_again_is_kept_once() {
    let broker = Broker::start().await;
    broker.place_versions("orders.powers", &[("1.0.0", guest::powers())]).await;
    let topic = json!({"name": TOPIC, "type": "Queue", "retentionBytes": 4096, "captureInput": {"ttl": "PT1H"}});
    broker.post("/topics", &topic).await.expect(201);
    let stage = json!({"name": "gate", "plugin": "orders.powers", "onReject": "deadLetter"});
    broker.put_pipeline(TOPIC, json!([stage])).await;
    let message =
        |words: &str, payload: &str| json!({"topicName": TOPIC, "payload": payload, "headers": {"do": words}});
    let refused = broker.post("/messages/publish", &message("reject", "hunter2")).await.expect(202);
    assert_eq!(refused["status"], "DeadLettered");
    let arrived = async || {
        let body = json!({"topic": TOPIC, "stage": "gate"});
        broker.post("/plugins/orders.powers/versions/1.0.0/dry-run", &body).await.expect(200)["messages"].clone()
    };
    assert_eq!(arrived().await, 1);
    let id = refused["messageId"].as_str().expect("an id");
    assert_eq!(broker.delete(&format!("/messages/{id}")).await.status, 204);
    assert_eq!(arrived().await, 0);
    let held = broker::files_below(&broker.data_dir().join("captured"));
    let holds =
        |file: &std::path::PathBuf| String::from_utf8_lossy(&std::fs::read(file).expect("a file")).contains("hunter2");
    assert!(!held.iter().any(holds), "{held:?}");

    // Also by the id that its replay has.
    let refused = broker.post("/messages/publish", &message("reject", "hunter3")).await.expect(202);
    let id = refused["messageId"].as_str().expect("an id");
    assert_eq!(arrived().await, 1);
    broker.put_pipeline(TOPIC, json!([])).await;
    let replayed = broker.post(&format!("/topics/{TOPIC}/dlq/{id}/replay"), &json!({})).await.expect(200);
    broker.put_pipeline(TOPIC, json!([stage])).await;
    let id = replayed["messageId"].as_str().expect("an id");
    assert_eq!(broker.delete(&format!("/messages/{id}")).await.status, 204);
    assert_eq!(arrived().await, 0);

    // Of what finds no room nothing is kept: it comes again.
    let large = "x".repeat(1500);
    let publish = async || broker.post("/messages/publish", &message("", &large)).await.status;
    let mut stored = 0;
    while publish().await == 202 {
        stored += 1;
    }
    assert_eq!((publish().await, publish().await), (429, 429));
    assert!(stored > 0);
    assert_eq!(arrived().await, stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_is_erased_by_the_last_of_a_chain_of_replays() {
    let broker = Broker::start().await;
    let topic = json!({"name": TOPIC, "type": "PubSub", "captureInput": {}});
    broker.post("/topics", &topic).await.expect(201);
    let subscription = json!({"topicName": TOPIC, "consumerGroup": "g", "type": "Pull", "maxRetries": 0});
    broker.post("/subscriptions", &subscription).await.expect(201);
    let body = json!({"topic": TOPIC, "config": {"headerMatches": {}}});
    let arrived =
        async || broker.post("/plugins/filter/versions/latest/dry-run", &body).await.expect(200)["messages"].clone();
    for erased in ["the dead letter", "its replay"] {
        broker.publish(TOPIC, "hunter2").await;
        for _ in 0..3 {
            broker.consume(TOPIC, "g").collect(1).await[0].nack().await;
            let replayed = cli::json(&broker, &["dlq", "replay", TOPIC, "--all"]);
            assert_eq!(replayed["replayed"], 1, "{replayed}");
        }
        assert_eq!((arrived().await, held(&broker, "hunter2")), (json!(1), 1), "a replay has arrived before");
        let delivery = broker.consume(TOPIC, "g").collect(1).await.remove(0);
        let id = if erased == "its replay" {
            delivery.id().to_string()
        } else {
            delivery.nack().await;
            let listed = broker.get(&format!("/topics/{TOPIC}/dlq")).await.expect(200);
            listed["deadLetters"][0]["messageId"].as_str().expect("an id").to_owned()
        };
        broker.delete(&format!("/messages/{id}")).await.expect(204);
        assert_eq!((arrived().await, held(&broker, "hunter2")), (json!(0), 0), "{erased}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_is_looked_for_behind_so_many_replays_and_no_more() {
    let broker = Broker::start().await;
    broker.post("/topics", &json!({"name": TOPIC, "type": "PubSub", "captureInput": {}})).await.expect(201);
    let subscription = json!({"topicName": TOPIC, "consumerGroup": "g", "type": "Pull", "maxRetries": 0});
    broker.post("/subscriptions", &subscription).await.expect(201);
    // Beside its own id the last message has two of each replay: of 64, those of 31.
    for (replays, left) in [(31, 0), (32, 1)] {
        broker.publish(TOPIC, "hunter2").await;
        for _ in 0..replays {
            broker.consume(TOPIC, "g").collect(1).await[0].nack().await;
            let replayed = broker.post(&format!("/topics/{TOPIC}/dlq/replay"), &json!({})).await.expect(200);
            assert_eq!(replayed["replayed"], 1, "{replayed}");
        }
        let last = broker.consume(TOPIC, "g").collect(1).await.remove(0);
        broker.delete(&format!("/messages/{}", last.id())).await.expect(204);
        assert_eq!(held(&broker, "hunter2"), left, "behind {replays} replays");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_whole_after_a_stop_and_what_is_damaged_is_counted() {
    const COUNT: u64 = 200;
    let mut broker = Broker::start().await;
    set_up(&broker, [&guest::tag(1), &guest::tag(2)]).await;
    for number in 0..COUNT {
        broker.publish(TOPIC, json!({"number": number})).await;
    }
    assert!(broker.stop().await.success());
    let mut files = broker::files_below(&broker.data_dir().join("captured"));
    files.sort();
    let texts = files.iter().map(|file| std::fs::read_to_string(file).expect("text"));
    assert_eq!(texts.map(|text| text.lines().count() as u64).sum::<u64>(), COUNT);
    let last = files.last().expect("a file");
    let text = std::fs::read_to_string(last).expect("text");
    std::fs::write(last, text.replacen("\"priority\"", "\"prioritx\"", 1) + "{\"messageId\":").expect("written");
    broker.restart().await;
    let result = dry_run(&broker, "1.1.0", json!({"topic": TOPIC})).await;
    assert_eq!((&result["messages"], &result["unreadable"]), (&json!(COUNT - 1), &json!(2)), "{result}");
    assert_eq!(result["unreadableSample"][1]["line"], COUNT + 1, "{result}");
    let told = cli::run(
        &broker,
        &["plugin", "dry-run", "orders.gate", "1.1.0", "--topic", TOPIC, "--fail-on", "unreadable>0"],
    );
    assert_eq!(told.code, 1);
    assert!(told.stdout.contains("2 lines are no messages:"), "{}", told.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_disk_with_little_room_messages_are_taken_and_not_kept_for_dry_runs() {
    const COUNT: u64 = 50;
    let settings = Settings::new().env("SLUICE__LIMITS__CAPTURED_FREE_BYTES_MIN", &(1_u64 << 50).to_string());
    let broker = Broker::with(settings).await;
    set_up(&broker, [&guest::tag(1), &guest::tag(2)]).await;
    for number in 0..COUNT {
        broker.publish(TOPIC, json!({"number": number})).await;
    }
    assert_eq!(dry_run(&broker, "1.1.0", json!({"topic": TOPIC})).await["messages"], 0);
    assert_eq!(broker.metric("sluice_captured_inputs_lost_total").await, Some(COUNT as f64));
    assert_eq!(broker.metric("sluice_captured_inputs_total").await, Some(0.0));
    let log = broker.log();
    assert_eq!(log.matches("limits.captured_free_bytes_min").count(), 1, "{log}");
    assert_eq!(broker.consume(TOPIC, "all").limit(100).drain(COUNT as usize).await.len() as u64, COUNT);
}
