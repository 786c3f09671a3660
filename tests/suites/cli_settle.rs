//! Messages settled by commands: one by its id, many by their receipts. Invariant: what a message came to is read from the
//! broker afterwards, not only from what the command says.

use std::path::Path;

use serde_json::Value;
use sluice_tests::Broker;

use super::cli::{Ran, done, json, refused, run};

/// A broker whose group `billing` is to get so many orders.
async fn with_orders(count: usize) -> Broker {
    let broker = Broker::start().await;
    broker.create_topic("orders", "PubSub").await;
    broker.subscribe("orders", "billing").await;
    for number in 0..count {
        broker.publish("orders", number).await;
    }
    broker
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Takes all orders that are there, and answers them as `(message, receipt)`.
fn taken(broker: &Broker) -> Vec<(String, String)> {
    let text = |message: &Value, name: &str| message[name].as_str().expect("a text").to_owned();
    let messages = lines(&done(broker, &["consume", "orders", "--group", "billing", "--json"]));
    messages.iter().map(|message| (text(message, "messageId"), text(message, "receipt"))).collect()
}

/// How `billing` stands to a message.
fn group(broker: &Broker, id: &str) -> Value {
    json(broker, &["message", "get", id])["groups"][0].take()
}

fn bash(broker: &Broker, script: &str) -> Ran {
    broker.bash(Path::new("/"), script).output().expect("bash starts").into()
}

#[tokio::test]
async fn a_message_is_settled_by_its_id() {
    let broker = with_orders(3).await;
    let orders = taken(&broker);
    let [(done_with, _), (failed, _), (kept, receipt)] = &orders[..] else { panic!("three orders: {orders:?}") };

    assert_eq!(done(&broker, &["ack", done_with, "--group", "billing"]).trim(), format!("acked {done_with}"));
    assert_eq!(group(&broker, done_with)["status"], "Settled");
    refused(&broker, &["ack", done_with, "--group", "billing"], 1, "LEASE_EXPIRED");

    let nacked = ["nack", failed, "--group", "billing", "--reason", "no such customer", "--delay", "PT5M"];
    let said = done(&broker, &nacked);
    let state = group(&broker, failed);
    assert_eq!((&state["status"], &state["attempts"]), (&"Retrying".into(), &1.into()), "{state}");
    assert_eq!(state["failures"][0]["detail"], "no such customer", "{state}");
    let shown = done(&broker, &["message", "get", failed]);
    assert!(shown.contains("FAILED FOR") && shown.contains("no such customer"), "{shown}");
    assert!(said.contains(state["retryAt"].as_str().expect("a time")), "{said} {state}");

    let extended = json(&broker, &["extend", kept, "--receipt", receipt, "--ack-timeout", "300"]);
    assert_eq!(extended["status"], "Extended", "{extended}");
    broker.clock().advance(std::time::Duration::from_secs(200)).await;
    assert_eq!(group(&broker, kept)["status"], "Leased", "it would have ended after 30 s");
    done(&broker, &["ack", kept, "--receipt", receipt]);
    assert_eq!(group(&broker, kept)["status"], "Settled");
}

#[tokio::test]
async fn each_of_many_receipts_gets_a_result() {
    let broker = with_orders(4).await;
    let orders = taken(&broker);
    let receipts: Vec<&str> = orders.iter().map(|(_, receipt)| receipt.as_str()).collect();

    let ran = run(&broker, &["ack", "--receipt", receipts[0], "--receipt", "nonsense", "--receipt", receipts[1]]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let said: Vec<&str> = ran.stdout.lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!((said[0], said[2]), (&*format!("acked {}", receipts[0]), &*format!("acked {}", receipts[1])));
    assert!(said[1].starts_with("refused nonsense: "), "{said:?}");
    assert!(ran.stderr.contains("1 of 3 were refused; the others are settled"), "{}", ran.stderr);
    assert_eq!(group(&broker, &orders[1].0)["status"], "Settled");

    let results = ["nack", "--receipt", receipts[2], "--receipt", receipts[3], "--reason", "away", "--json"];
    let results = lines(&done(&broker, &results));
    for (result, (id, receipt)) in results.iter().zip(&orders[2..]) {
        assert_eq!((&result["receipt"], &result["status"]), (&receipt.as_str().into(), &"Retrying".into()), "{result}");
        assert_eq!(group(&broker, id)["failures"][0]["detail"], "away");
    }
    let ran = run(&broker, &["nack", "--receipt", receipts[2], "--json"]);
    let results = lines(&ran.stdout);
    assert_eq!((ran.code, &results[0]["error"]["code"]), (1, &"LEASE_EXPIRED".into()), "{results:?}");
}

#[tokio::test]
async fn a_pipe_from_consume_settles_what_was_taken() {
    let broker = with_orders(3).await;
    let ran = bash(&broker, "sluice consume orders --group billing --json --limit 2 | sluice ack - --json");
    let results = lines(&ran.stdout);
    assert_eq!((ran.code, results.len()), (0, 2), "{}", ran.stderr);
    assert!(results.iter().all(|result| result["status"] == "Acked"), "{results:?}");

    let orders = taken(&broker);
    let [(id, receipt)] = &orders[..] else { panic!("the third is left: {orders:?}") };
    let ran = bash(&broker, &format!("printf '\\n%s\\n' '{receipt}' | sluice nack - --reason away"));
    assert_eq!((ran.code, &group(&broker, id)["status"]), (0, &"Retrying".into()), "{}", ran.stderr);
    let ran = bash(&broker, "sluice consume orders --group billing --json | sluice ack -");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "nothing came, and nothing is wrong: {}", ran.stderr);
}

#[tokio::test]
async fn more_receipts_than_one_request_takes_are_settled_all_the_same() {
    let broker = with_orders(1).await;
    let orders = taken(&broker);
    let [(id, receipt)] = &orders[..] else { panic!("one order: {orders:?}") };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("receipts.txt");
    std::fs::write(&file, format!("{}{receipt}\n", "x\n".repeat(10_000))).expect("written");
    let ran = bash(&broker, &format!("sluice ack - --json < '{}'", file.display()));
    let results = lines(&ran.stdout);
    assert_eq!((ran.code, results.len()), (1, 10_001), "{}", ran.stderr);
    assert_eq!((&results[10_000]["status"], &group(&broker, id)["status"]), (&"Acked".into(), &"Settled".into()));
}

#[tokio::test]
async fn a_settlement_that_names_no_lease_is_wrong_usage() {
    let broker = with_orders(1).await;
    let orders = taken(&broker);
    let (id, receipt) = (orders[0].0.as_str(), orders[0].1.as_str());
    for (arguments, words) in [
        (&["ack", "--group", "billing"][..], "MESSAGE_ID"),
        (&["ack", id, "--receipt", receipt, "--receipt", receipt], "a message has one receipt"),
        (&["nack", "-", "--receipt", receipt], "not both ways"),
        (&["nack", id, "--delay", "soon"], "soon"),
        (&["extend", id, "--group", "billing"], "--ack-timeout"),
        (&["extend", id, "--group", "billing", "--ack-timeout", "0"], "--ack-timeout"),
    ] {
        refused(&broker, arguments, 2, words);
    }
    let ran = bash(&broker, r#"printf '%s\n{"messageId": "1"}\n' x | sluice ack -"#);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "nothing was sent: {}", ran.stderr);
    assert!(ran.stderr.contains("line 2: the message has no receipt"), "{}", ran.stderr);
    refused(&broker, &["ack", id], 1, "/consumerGroup");
    refused(&broker, &["ack", id, "--group", "nobody"], 1, "NOT_FOUND");
    assert_eq!(group(&broker, id)["status"], "Leased", "none of these settled it");
}
