//! Versions on trial that keep values, over the real binary. Invariant: a value counts what is stored, whichever version has run on
//! it; what a shadow sets is nowhere. The guest is `tests/guests/powers`, told by headers.

use serde_json::{Value, json};
use sluice_tests::{Broker, Client, guest, wait};

const ROLLOUT: &str = "/topics/orders.counted/pipeline/stages/count/rollout";

/// A topic whose stage runs the first of two versions of the guest, which share their values.
async fn counted() -> Broker {
    let broker = Broker::start().await;
    let other = guest::with_section(guest::powers(), "mark", b"another version");
    broker.place_versions("orders.count", &[("1.0.0", guest::powers()), ("1.1.0", &other)]).await;
    broker.create_topic("orders.counted", "Queue").await;
    let stage = json!({"name": "count", "plugin": "orders.count", "version": "1.0.0", "config": {}, "timeoutMs": 1000});
    broker.put_pipeline("orders.counted", json!([stage])).await;
    broker
}

fn told(what: &str, key: &str) -> Value {
    json!({"topicName": "orders.counted", "payload": {}, "headers": {"do": what}, "partitionKey": key})
}

/// The answer once it is taken: what has failed three times in a row runs again after a while only.
async fn taken(broker: &Broker, what: &str) -> Value {
    wait::until("it is taken", async || {
        let answer = broker.post("/messages/publish", &told(what, "k")).await;
        if answer.status == 503 {
            assert!(answer.text().contains("BREAKER_OPEN"), "{answer}");
            return None;
        }
        Some(answer.expect(202))
    })
    .await
}

/// What the counter says, read by a message that is not counted.
async fn count(broker: &Broker) -> String {
    let published = taken(broker, "get n").await;
    let id = published["messageId"].as_str().expect("an id");
    let stored = broker.get(&format!("/messages/{id}")).await.expect(200);
    stored["headers"]["got"].as_str().map_or_else(|| panic!("{stored}"), str::to_owned)
}

/// Publishes batches in which some messages are counted and then rejected, dropped, or failed on: how many were accepted to count,
/// dropped ones among them.
async fn publish(client: Client, whose: &'static str) -> usize {
    let mut counted = 0;
    for batch in 0..15 {
        let message = |n: usize| {
            let what = match (batch + n) % 8 {
                3 => "count n; reject",
                5 => "count n; trap",
                6 => "count n; drop",
                _ => "count n",
            };
            told(what, &format!("{whose} {n}"))
        };
        let messages: Vec<Value> = (0..16).map(message).collect();
        let answer = client.post("/messages/publish/batch", &json!({ "messages": messages })).await.expect(200);
        let results = answer["results"].as_array().expect("results").clone();
        counted += results.iter().filter(|result| result["error"].is_null()).count();
        assert!(results.iter().any(|result| !result["error"].is_null()), "{answer}");
    }
    counted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_and_two_clients_on_one_counter_count_what_is_stored_and_nothing_else() {
    let broker = counted().await;
    // It does as badly as the other: it is not to be taken back for that.
    let all_alike = json!({"version": "1.1.0", "strategy": "canary", "percent": 50, "maxErrorRate": 1});
    broker.post(ROLLOUT, &all_alike).await.expect(200);
    let (one, two) = tokio::join!(publish(broker.admin(), "one"), publish(broker.admin(), "two"));
    let view = broker.get(ROLLOUT).await.expect(200);
    for arm in ["stable", "candidate"] {
        for what in ["messages", "rejected", "faulted", "dropped"] {
            assert!(view[arm][what].as_u64() > Some(0), "{arm} {what}: {view}");
        }
    }
    assert_eq!(count(&broker).await, (one + two).to_string(), "{view}");
    broker.post(&format!("{ROLLOUT}/abort"), &json!({})).await.expect(200);
    taken(&broker, "count n").await;
    assert_eq!(count(&broker).await, (one + two + 1).to_string(), "the values are there when the version has gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_shadow_sets_is_thrown_away_and_what_it_reads_is_there() {
    const MESSAGES: u64 = 60;
    let broker = counted().await;
    broker.post(ROLLOUT, &json!({"version": "1.1.0", "strategy": "shadow"})).await.expect(200);
    for n in 0..MESSAGES {
        let what = if n % 3 == 0 { "count n; delete m; set m live" } else { "count n" };
        broker.post("/messages/publish", &told(what, "k")).await.expect(202);
    }
    let view = wait::until("all are compared", async || {
        let view = broker.get(ROLLOUT).await.expect(200);
        let of = |name: &str| view["shadow"][name].as_u64().unwrap_or_default();
        (of("same") + of("payloadDiffers") + of("verdictDiffers") + of("trapped") + of("shed") == MESSAGES)
            .then_some(view)
    })
    .await;
    let shadow = &view["shadow"];
    assert_eq!((&shadow["trapped"], &shadow["verdictDiffers"]), (&json!(0), &json!(0)), "setting is no fault: {view}");
    assert!(view["candidate"]["messages"].as_u64() > Some(0), "{view}");
    assert_eq!(count(&broker).await, MESSAGES.to_string(), "once for each message, not twice");
}
