//! `sluice listen` and `sluice request`, as a developer runs them. Invariant: what reaches the local receiver is what the
//! broker's own webhook would send, and nothing is left behind.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use sluice_tests::{Broker, Receiver, wait};

use super::cli::{done, refused};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forwarded_is_what_a_webhook_would_send_and_nothing_stays() {
    let (broker, hook, local) = (Broker::start().await, Receiver::start().await, Receiver::start().await);
    broker.create_topic("orders", "PubSub").await;
    broker.subscribe_push("orders", "hook", &hook.url(), json!({"format": "cloudEvents"})).await;
    let script = format!(
        "exec sluice listen orders --forward '{}' --format cloudEvents --secret {SECRET} --limit 2 --json",
        local.url()
    );
    let mut bash = broker.bash(Path::new("/"), &script);
    let listening = bash.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bash starts");
    wait::until("it has subscribed", async || {
        let listed = broker.get("/subscriptions?topicName=orders").await.expect(200);
        (listed["total"] == 2).then_some(())
    })
    .await;
    // The first is given back once, and comes again.
    local.answers([500_u16]);
    let published = broker.publish("orders", json!({"total": 1})).header("region", "eu").key("k").await;
    let bytes = json!({"topicName": "orders", "payloadBase64": "AAEC/w==", "headers": {"ce-type": "made"}});
    let requests = wait::until("it comes a second time", async || {
        broker.clock().advance(std::time::Duration::from_secs(5)).await;
        let requests = local.requests();
        (requests.len() == 2).then_some(requests)
    })
    .await;
    broker.post("/messages/publish", &bytes).await.expect(202);
    let output = listening.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let statuses: Vec<(&Value, &Value)> = told.iter().map(|line| (&line["status"], &line["attempt"])).collect();
    assert_eq!(statuses, [(&json!(500), &json!(1)), (&json!(200), &json!(2)), (&json!(200), &json!(1))], "{told:?}");
    assert_eq!(told[1]["messageId"], published.message_id);

    let (ours, theirs) = (local.requests(), hook.received(2).await);
    for (local, hook) in [(&ours[1], &theirs[0]), (&ours[2], &theirs[1])] {
        local.verify(SECRET);
        assert_eq!(local.body, hook.body);
        for name in ["ce-id", "ce-source", "ce-type", "ce-partitionkey", "content-type", "x-topic-name", "x-message-id"]
        {
            assert_eq!(local.headers.get(name), hook.headers.get(name), "{name}");
        }
    }
    assert_eq!(requests[0].body, requests[1].body);
    let left = broker.get("/subscriptions?topicName=orders").await.expect(200);
    assert_eq!(left["total"], 1, "{left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_forwarded_with_what_became_of_them() {
    let (broker, hook, local) = (Broker::start().await, Receiver::start().await, Receiver::start().await);
    broker.create_topic("jobs", "Queue").await;
    broker.subscribe_push("jobs.dlq", "hook", &hook.url(), json!({})).await;
    let queue = json!({"topicName": "jobs", "consumerGroup": "g", "type": "Pull", "maxRetries": 0});
    broker.post("/subscriptions", &queue).await.expect(201);
    broker.publish("jobs", json!({"a": "\u{e9} \u{7f}"})).header("b", "1").await;
    broker.consume("jobs", "g").collect(1).await[0].nack().await;
    let theirs = hook.received(1).await.remove(0);
    done(&broker, &["listen", "jobs.dlq", "--forward", &local.url(), "--from", "earliest", "--limit", "1"]);
    let ours = local.received(1).await.remove(0);
    let said: Value = serde_json::from_slice(&ours.body).expect("an envelope");
    assert_eq!(said["deadLetter"]["reason"], "NACK", "{said}");
    assert_eq!(String::from_utf8_lossy(&ours.body), String::from_utf8_lossy(&theirs.body));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_is_listened_to_only_by_who_means_it() {
    let (broker, local) = (Broker::start().await, Receiver::start().await);
    broker.create_topic("jobs", "Queue").await;
    broker.publish("jobs", "one").await;
    let url = local.url();
    refused(&broker, &["listen", "jobs", "--forward", &url], 2, "--take");
    refused(&broker, &["listen", "jobs", "--forward", "ftp://localhost/", "--take"], 2, "http or https");
    refused(&broker, &["listen", "--topic", "nothing", "--forward", &url], 1, "NOT_FOUND");
    let shown = done(&broker, &["listen", "jobs", "--forward", &url, "--take", "--limit", "1"]);
    assert!(shown.contains(" 200"), "{shown}");
    assert_eq!(local.received(1).await[0].message().payload.as_deref(), Some("one"));
    broker.consume("jobs", "").expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_is_printed_and_none_is_told() {
    let broker = Broker::start().await;
    broker.create_topic("quotes", "Queue").await;
    let client = broker.admin();
    let serving = tokio::spawn(async move {
        for delivery in client.consume("quotes", "").wait(30).await {
            let (to, id) = (&delivery.message.reply_to, &delivery.message.correlation_id);
            let reply = json!({"topicName": to, "correlationId": id, "payload": {"price": 1}});
            client.post("/messages/publish", &reply).await.expect(202);
        }
    });
    let mut bash = broker.bash(Path::new("/"), "sluice request quotes '{}'");
    let asking = tokio::task::spawn_blocking(move || bash.output().expect("bash starts"));
    serving.await.expect("no panic");
    let output = asking.await.expect("no panic");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), r#"{"price":1}"#);
    let stage = json!([{"name": "none", "plugin": "filter", "config": {"headerMatches": {"no": "such"}}}]);
    broker.put_pipeline("quotes", stage).await;
    refused(&broker, &["request", "quotes", "{}"], 1, "no reply to wait for");
}
