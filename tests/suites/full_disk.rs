//! A disk without room: what asks for room is refused before anything of it is stored, what gives room back goes on, and
//! all of it works again with room, without a restart. Invariant: what was acknowledged is delivered, what was refused is
//! not. The room ends by a limit on the size of files, which needs no privileges; a file system that is full is the same
//! to a broker that survives both.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::{Answer, Broker, Client, Delivery, guest, wait};

/// Less than what the journal reserves for messages, and enough for what it needs to go on without them.
const LITTLE: u64 = 1 << 20;
/// Fills that in ten messages.
const LARGE: usize = 100_000;
/// Refused publishes after which the log must not have a line for each.
const REFUSED: usize = 300;
/// Far more than one disk could ever fill; only that no loop runs for ever.
const PUBLISHES_MAX: usize = 1000;

fn large(n: usize) -> String {
    format!("{n:06}-{}", "x".repeat(LARGE))
}

/// Publishes until the disk is full; how many were accepted, and the refusal.
async fn fill(broker: &Client, topic: &str) -> (usize, Answer) {
    for n in 0..PUBLISHES_MAX {
        let answer = broker.publish(topic, large(n)).answer().await;
        if answer.status != 202 {
            return (n, answer);
        }
    }
    panic!("the disk was never full");
}

fn is_full(answer: &Answer) {
    answer.expect_problem(503, "STORE_UNAVAILABLE");
}

fn numbers(deliveries: &[Delivery]) -> BTreeSet<String> {
    deliveries.iter().map(|delivery| delivery.payload().chars().take(6).collect()).collect()
}

/// Lets messages pass whose header `a` has this value.
fn gate(value: &str) -> Value {
    json!([{"name": "f", "plugin": "filter", "version": "latest", "config": {"headerMatches": {"a": value}}}])
}

async fn wait_until_ready(broker: &Broker) {
    wait::until("the broker is ready", async || (broker.get("//health/ready").await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn what_is_refused_on_a_full_disk_is_not_stored_and_what_was_accepted_is_kept() {
    let mut broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    broker.limit_file_size(Some(LITTLE));
    let (accepted, refusal) = fill(&broker, "orders").await;
    is_full(&refusal);
    assert!(accepted > 0, "there was room for some");

    // In every form, and small ones too: "early" is before a disk has to be asked for the last byte.
    is_full(&broker.publish("orders", "refused").answer().await);
    is_full(&broker.publish("orders", "refused").idempotency_key("k").answer().await);
    is_full(&broker.publish("orders", "refused").key("a").priority(9).answer().await);
    is_full(&broker.publish("orders", "refused").field("delay", "PT1H").answer().await);
    let messages = json!({"messages": [
        {"topicName": "orders", "payload": "refused"}, {"topicName": "orders", "payload": "refused"}
    ]});
    for route in ["/messages/publish/batch", "/messages/publish/batch?atomic=true"] {
        let answer = broker.post(route, &messages).await.expect(200);
        assert_eq!((&answer["accepted"], &answer["refused"]), (&json!(0), &json!(2)), "{answer}");
        assert_eq!(answer["results"][0]["error"]["code"], "STORE_UNAVAILABLE", "{answer}");
    }

    // With room, it serves again as it is; a key that was refused was not used up.
    broker.limit_file_size(None);
    assert_eq!(broker.publish("orders", "999999").idempotency_key("k").await.status, "Pending");
    wait_until_ready(&broker).await;
    broker.crash().await;
    let stored = broker.consume("orders", "g").collect(accepted + 1).await;
    let mut wanted: BTreeSet<String> = (0..accepted).map(|n| format!("{n:06}")).collect();
    wanted.insert("999999".to_owned());
    assert_eq!(numbers(&stored), wanted);
    broker.consume("orders", "g").expect_nothing().await;
}

#[tokio::test]
async fn consumers_go_on_while_the_disk_is_full_and_so_does_what_makes_room() {
    let mut broker = Broker::start().await;
    for topic in ["orders", "others"] {
        broker.create_topic(topic, "Queue").await;
    }
    broker.publish("others", "kept").await;
    broker.limit_file_size(Some(LITTLE));
    let (accepted, _) = fill(&broker, "orders").await;

    let held = broker.consume("orders", "g").limit(2).await;
    held[0].ack().await;
    held[1].nack_for("PT1H").await;
    let purged = broker.post("/topics/others/purge", &json!({})).await;
    assert!(matches!(purged.status, 200 | 503), "{purged}");
    broker.get("//health/live").await.expect(200);
    is_full(&broker.get("//health/ready").await);
    let health = broker.get("//health").await.expect(200);
    assert_eq!((&health["status"], &health["parts"]["store"]), (&json!("Degraded"), &json!("Unhealthy")), "{health}");

    // What was settled meanwhile is settled after a crash, and a broker that starts on a full disk serves what it has.
    broker.crash().await;
    is_full(&broker.publish("orders", "refused").answer().await);
    is_full(&broker.get("//health/ready").await);
    let rest = broker.consume("orders", "g").collect(accepted - 2).await;
    rest[0].ack().await;
    broker.limit_file_size(None);
    wait_until_ready(&broker).await;
    broker.publish("orders", "999999").await;
    rest[1].ack().await;
    let last = broker.consume("orders", "g").collect(1).await;
    assert_eq!(numbers(&last), BTreeSet::from(["999999".to_owned()]));
}

#[tokio::test]
async fn without_a_byte_of_room_every_change_is_a_problem_and_none_is_half_made() {
    let mut broker = Broker::start().await;
    broker.create_topic("orders", "PubSub").await;
    let subscription = broker.subscribe("orders", "g").await["subscriptionId"].clone();
    let subscription = subscription.as_str().expect("a subscription has an id").to_owned();
    // Compiled before: how long that takes is not what this is about.
    broker.put_pipeline("orders", gate("0")).await;
    let published = broker.publish("orders", "first").header("a", "0").await;
    broker.limit_file_size(Some(0));

    is_full(&broker.publish("orders", "refused").header("a", "0").answer().await);
    let held = broker.consume("orders", "g").await;
    assert_eq!(held.len(), 1, "what is stored can be had");
    is_full(&held[0].try_ack().await);
    let schema =
        json!({"schemaId": "s", "schemaDefinition": {"type": "object"}, "version": "1", "compatibility": "None"});
    let stages = json!({"stages": gate("1")});
    is_full(&broker.post("/topics", &json!({"name": "new", "type": "Queue"})).await);
    is_full(&broker.put("/topics/orders", &json!({"name": "orders", "type": "PubSub", "description": "n"})).await);
    is_full(&broker.delete("/topics/orders?force=true").await);
    let pull = json!({"topicName": "orders", "consumerGroup": "h", "type": "Pull"});
    is_full(&broker.post("/subscriptions", &pull).await);
    is_full(&broker.post(&format!("/subscriptions/{subscription}/pause"), &json!({})).await);
    is_full(&broker.delete(&format!("/subscriptions/{subscription}")).await);
    is_full(&broker.post("/schemas", &schema).await);
    is_full(&broker.put("/topics/orders/pipeline", &stages).await);
    is_full(&broker.delete(&format!("/messages/{}", published.message_id)).await);
    broker.get("//health/live").await.expect(200);

    broker.limit_file_size(None);
    held[0].ack().await;
    broker.create_topic("new", "Queue").await;
    broker.subscribe("orders", "h").await;
    broker.post("/schemas", &schema).await.expect(201);
    broker.put("/topics/orders/pipeline", &stages).await.expect(200);
    broker.crash().await;
    let topics = broker.get("/topics").await.expect(200);
    let names: Vec<&Value> = topics["topics"].as_array().expect("a list").iter().map(|topic| &topic["name"]).collect();
    assert_eq!(names, ["new", "orders"], "{topics}");
    broker.publish("orders", "second").header("a", "1").await;
    assert_eq!(broker.consume("orders", "g").await.len(), 1, "the subscription is as it was");
}

#[tokio::test]
async fn a_plugin_that_is_placed_while_the_disk_is_full_is_taken_in_with_room() {
    let mut broker = Broker::start().await;
    // The same bytes under another name: compiling them is not what this is about.
    broker.place_plugin("compiled.wasm", guest::filter_v2());
    wait::until("it is compiled", async || (broker.get("/plugins/compiled").await.status == 200).then_some(())).await;
    broker.limit_file_size(Some(0));
    broker.place_plugin("placed.wasm", guest::filter_v2());
    wait::until("what is in the way is told", async || {
        let answer = broker.get("/plugins/placed").await;
        (answer.status == 200 && answer.json()["lastError"].is_object()).then_some(())
    })
    .await;
    broker.limit_file_size(None);
    wait::until("the plugin is taken in", async || {
        // It is tried again after a pause that grows, of the broker's time.
        broker.clock().advance(Duration::from_secs(31)).await;
        let answer = broker.get("/plugins/placed").await;
        (answer.status == 200 && answer.json()["versions"][0]["version"].is_string()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_log_of_a_full_disk_is_no_line_a_request() {
    let mut broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    broker.limit_file_size(Some(LITTLE));
    fill(&broker, "orders").await;
    for _ in 0..REFUSED {
        is_full(&broker.publish("orders", "refused").answer().await);
    }
    let log = broker.log();
    let lines = |word: &str| log.lines().filter(|line| line.contains(word)).count();
    assert!(lines("a request failed") < REFUSED / 2, "{} lines", lines("a request failed"));
    assert!((1..10).contains(&lines("the journal could not be written")), "told when it begins");
    let metrics = broker.anonymous().get("//metrics").await.text();
    let left_out = metrics.lines().find_map(|line| line.strip_prefix("sluice_log_lines_left_out_total "));
    assert!(left_out.is_some_and(|count| count != "0"), "{left_out:?}");
}
