//! The command line against a running broker, as a person and as a script would use it. Invariant: what is checked is what
//! goes to stdout and the exit code.

use serde_json::Value;
use sluice_tests::{Broker, Settings};

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn run(broker: &Broker, arguments: &[&str]) -> Ran {
    let output = broker.cli(arguments);
    Ran {
        code: output.status.code().expect("a command ends by itself"),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[track_caller]
fn done(broker: &Broker, arguments: &[&str]) -> String {
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
