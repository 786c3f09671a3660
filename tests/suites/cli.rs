//! The command line against a running broker, as a person and as a script would use it. Invariant: what is checked is what
//! goes to stdout and the exit code.

use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;
use sluice_tests::{Broker, Settings, wait};

/// How a command ended.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            code: output.status.code().expect("a command ends by itself"),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

pub(crate) fn run(broker: &Broker, arguments: &[&str]) -> Ran {
    broker.cli(arguments).into()
}

/// What a command of `--json` answers.
#[track_caller]
pub(crate) fn json(broker: &Broker, arguments: &[&str]) -> Value {
    let stdout = done(broker, &[arguments, &["--json"]].concat());
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {stdout}"))
}

/// A command that fails with this exit code and these words on stderr, and prints no result.
#[track_caller]
pub(crate) fn refused(broker: &Broker, arguments: &[&str], code: i32, words: &str) {
    let ran = run(broker, arguments);
    assert_eq!(ran.code, code, "{arguments:?}\n{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains(words) && ran.stdout.is_empty(), "{arguments:?}\n{}\n{}", ran.stdout, ran.stderr);
}

#[track_caller]
pub(crate) fn done(broker: &Broker, arguments: &[&str]) -> String {
    let ran = run(broker, arguments);
    assert_eq!(ran.code, 0, "{arguments:?}\n{}\n{}", ran.stdout, ran.stderr);
    ran.stdout
}

#[tokio::test]
async fn a_message_goes_its_way_by_commands_alone() {
    let broker = Broker::start().await;
    done(&broker, &["topic", "create", "orders", "--type", "PubSub"]);
    done(&broker, &["subscribe", "orders", "--group", "billing"]);
    done(&broker, &["publish", "orders", r#"{"id": 1}"#, "--key", "customer-7"]);
    let taken = done(&broker, &["consume", "orders", "--group", "billing", "--ack"]);
    assert_eq!(taken.trim(), r#"{"id": 1}"#, "the exact text");
    assert_eq!(done(&broker, &["consume", "orders", "--group", "billing", "--ack"]).trim(), "");
    let listed: Value = serde_json::from_str(&done(&broker, &["topic", "list", "--json"])).expect("JSON");
    assert!(listed.to_string().contains("\"orders\""), "{listed}");
    assert!(done(&broker, &["topic", "list"]).contains("orders"));
}

#[tokio::test]
async fn a_script_can_tell_why_a_command_failed() {
    let mut broker = Broker::start().await;
    let refused = run(&broker, &["topic", "get", "absent"]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(!refused.stderr.is_empty() && refused.stdout.is_empty(), "errors go to stderr");
    assert_eq!(run(&broker, &["topic", "paint", "orders"]).code, 2);
    done(&broker, &["health"]);
    broker.kill();
    assert_eq!(run(&broker, &["topic", "list"]).code, 3);
}

#[tokio::test]
async fn a_token_is_made_from_the_development_secret() {
    let broker = Broker::with(Settings::new().own_secret()).await;
    let data_dir = broker.data_dir();
    let data_dir = data_dir.to_str().expect("a temporary folder's path is text");
    let token = done(
        &broker,
        &["token", "--role", "Producer", "--topics", "orders.*", "--ttl", "PT1H", "--data-dir", data_dir],
    );
    let producer = broker.with_token(token.trim());
    producer.get("/topics").await.expect(200);
    broker.create_topic("orders.eu", "Queue").await;
    broker.create_topic("other", "Queue").await;
    producer.publish("orders.eu", "x").await;
    producer.publish("other", "x").answer().await.expect_problem(403, "FORBIDDEN");
    broker.clock().advance(std::time::Duration::from_secs(3601)).await;
    producer.get("/topics").await.expect_problem(401, "UNAUTHENTICATED");
}

#[tokio::test]
async fn a_message_is_looked_at_by_its_id_and_erased() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "PubSub").await;
    broker.subscribe("orders", "billing").await;
    let id = broker.publish("orders", "a secret").await.message_id;
    let shown = done(&broker, &["message", "get", &id]);
    assert!(["a secret", "billing", "Waiting"].iter().all(|word| shown.contains(word)), "{shown}");
    assert_eq!(json(&broker, &["message", "get", &id])["groups"][0]["status"], "Waiting");

    refused(&broker, &["message", "erase", &id], 2, "--yes");
    assert_eq!(json(&broker, &["message", "get", &id])["payload"], "a secret", "nothing was erased");
    assert_eq!(done(&broker, &["message", "erase", &id, "--yes"]).trim(), format!("erased {id}"));
    refused(&broker, &["message", "get", &id], 1, "NOT_FOUND");
    refused(&broker, &["message", "erase", &id, "--yes"], 1, "NOT_FOUND");
    refused(&broker, &["message", "get", "17"], 1, "VALIDATION_ERROR");
}

#[tokio::test]
async fn brokers_are_shown_with_their_figures() {
    let broker = Broker::with(Settings::new().env("SLUICE__NODE_ID", "node-7")).await;
    assert!(done(&broker, &["broker", "list"]).contains("node-7"));
    assert_eq!(json(&broker, &["broker", "list"])[0]["nodeId"], "node-7");
    assert_eq!(json(&broker, &["broker", "get", "node-7"])["status"], "Active");
    let figures = done(&broker, &["broker", "metrics", "node-7"]);
    assert!(figures.contains("sluice_http_requests_total"), "{figures}");
    assert!(json(&broker, &["broker", "metrics", "node-7"])[0]["value"].is_number());
    for action in ["get", "metrics"] {
        refused(&broker, &["broker", action, "nobody"], 1, "NOT_FOUND");
    }
}

#[tokio::test]
async fn what_was_set_can_be_taken_away() {
    let broker = Broker::start().await;
    done(&broker, &["topic", "create", "orders", "--schema-id", "orders.v1", "--retention-bytes", "1000000"]);
    done(&broker, &["topic", "update", "orders", "--unset", "schema-id", "--description", "all of them"]);
    let topic = json(&broker, &["topic", "get", "orders"]);
    assert_eq!((&topic["schemaId"], &topic["retentionBytes"]), (&Value::Null, &1_000_000.into()), "{topic}");
    refused(
        &broker,
        &["topic", "update", "orders", "--schema-id", "s", "--unset", "schema-id"],
        2,
        "both given and unset",
    );

    let made = json(
        &broker,
        &["subscribe", "orders", "--group", "g", "--filter-query", "$.a == 1", "--backoff-initial", "PT5S"],
    );
    let id = made["subscriptionId"].as_str().expect("an id");
    assert_eq!((&made["backoff"]["initial"], &made["backoff"]["max"]), (&"PT5S".into(), &"PT1H".into()), "{made}");
    let changed = json(&broker, &["subscription", "update", id, "--unset", "filter", "--backoff-multiplier", "3"]);
    assert_eq!((&changed["filter"], &changed["backoff"]["initial"]), (&Value::Null, &"PT5S".into()), "{changed}");
    assert_eq!(changed["backoff"]["multiplier"], 3.0, "{changed}");
}

#[tokio::test]
async fn a_file_of_messages_is_stored_whole_or_not_at_all() {
    let broker = Broker::start().await;
    done(&broker, &["topic", "create", "events", "--max-message-size", "10"]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let publish = |lines: String, more: &[&str]| {
        let file = folder.path().join("events.ndjson");
        std::fs::write(&file, lines).expect("written");
        let file = file.to_str().expect("a temporary folder's path is text").to_owned();
        run(&broker, &[&["publish", "events", "--ndjson", "--file", &file], more].concat())
    };
    let stored = || done(&broker, &["tail", "events"]).lines().count();

    let one_is_too_long = "{}\n\"longer than ten\"\n".to_owned();
    let ran = publish(one_is_too_long.clone(), &["--atomic"]);
    assert_eq!((ran.code, stored()), (1, 0), "{}", ran.stderr);
    assert!(ran.stderr.contains("none is stored"), "{}", ran.stderr);
    let ran = publish("{}\n".repeat(10_001), &["--atomic"]);
    assert_eq!((ran.code, stored()), (2, 0), "{}", ran.stderr);
    let ran = publish(one_is_too_long, &[]);
    assert_eq!((ran.code, stored()), (1, 1), "{}", ran.stderr);
    let ran = publish("{}\n{}\n".to_owned(), &["--atomic"]);
    assert_eq!((ran.code, stored()), (0, 3), "{}", ran.stderr);
    // Nothing was sent, and nothing is said of it.
    let ran = run(&broker, &["publish", "events", "--ndjson", "--file", "/nonexistent"]);
    assert!(ran.code == 5 && !ran.stderr.contains("answered"), "{}", ran.stderr);
    // A folder opens, and can't be read.
    let ran = run(&broker, &["publish", "events", "--ndjson", "--file", "/"]);
    assert!(
        ran.code == 5 && ran.stderr.contains("0 messages were answered (0 accepted); none was sent"),
        "{}",
        ran.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_are_stored_as_they_come_and_what_a_stop_leaves_open_is_told() {
    let mut broker = Broker::start().await;
    done(&broker, &["topic", "create", "events", "--max-message-size", "10"]);
    let stored = async |broker: &Broker, count: usize| {
        wait::until(&format!("{count} are stored"), async || {
            let listed = broker.get("/topics/events/messages?from=earliest").await.expect(200);
            (listed["messages"].as_array().map(Vec::len) == Some(count)).then_some(())
        })
        .await;
    };
    let begin = |broker: &Broker| {
        let mut bash = broker.bash(Path::new("/"), "exec sluice publish events - --ndjson --key k");
        bash.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bash starts")
    };
    let mut publishing = begin(&broker);
    let mut lines = publishing.stdin.take().expect("a pipe");
    lines.write_all(b"1\n").expect("it reads");
    stored(&broker, 1).await;
    lines.write_all(b"\n\"longer than ten\"\n2\n3").expect("it reads");
    stored(&broker, 2).await;
    drop(lines);
    let ended = publishing.wait_with_output().expect("it ends");
    let (told, stderr) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert_eq!((ended.status.code(), &*told), (Some(1), "3 messages published to events, 1 refused\n"), "{stderr}");
    assert!(stderr.contains("message 2: The payload has 17 bytes") && stderr.contains("1 of 4 messages"), "{stderr}");
    stored(&broker, 3).await;

    let mut publishing = begin(&broker);
    let mut lines = publishing.stdin.take().expect("a pipe");
    lines.write_all(b"4\n").expect("it reads");
    stored(&broker, 4).await;
    assert!(broker.stop().await.success());
    // Standard input is open still: it does not wait for more.
    let ended = publishing.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains("1 messages were answered (1 accepted)") && stderr.contains("SHUTTING_DOWN"), "{stderr}");
    drop(lines);

    broker.restart().await;
    let mut publishing = begin(&broker);
    let mut lines = publishing.stdin.take().expect("a pipe");
    lines.write_all(b"5\n").expect("it reads");
    stored(&broker, 5).await;
    broker.kill();
    let ended = publishing.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("of those after them nothing is known") && stderr.contains("no answer from"), "{stderr}");
    drop(lines);
}
