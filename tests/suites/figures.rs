//! What operators see of topics, groups and consumers. Invariant: what lately happened adds up to what was done, and who
//! consumes is seen while it does.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::token::Claims;
use sluice_tests::{Broker, wait};

const MINUTE: Duration = Duration::from_secs(60);

async fn metrics(broker: &Broker, window: &str) -> Value {
    broker.get(&format!("/topics/orders/metrics?window={window}")).await.expect(200)
}

fn group(metrics: &Value) -> &Value {
    &metrics["groups"][0]
}

#[tokio::test]
async fn what_lately_happened_is_told_by_its_window() {
    let mut broker = Broker::start().await;
    broker.create_topic("orders", "PubSub").await;
    broker.subscribe("orders", "g").await;
    for number in 0..10 {
        broker.publish("orders", number).await;
    }
    for delivery in broker.consume("orders", "g").limit(4).await {
        delivery.ack().await;
    }
    let now = metrics(&broker, "PT1M").await;
    assert_eq!((&now["window"]["published"], &group(&now)["window"]["acked"]), (&json!(10), &json!(4)), "{now}");
    assert!(now["window"]["publishedPerSecond"].as_f64().expect("a number") > 0.0, "{now}");

    broker.clock().advance(MINUTE * 10).await;
    broker.publish("orders", "later").await;
    let short = metrics(&broker, "PT5M").await;
    assert_eq!((&short["window"]["published"], &group(&short)["window"]["acked"]), (&json!(1), &json!(0)), "{short}");
    let hour = metrics(&broker, "PT1H").await;
    assert_eq!((&hour["window"]["published"], &group(&hour)["window"]["acked"]), (&json!(11), &json!(4)), "{hour}");
    broker.get("/topics/orders/metrics?window=PT1S").await.expect_problem(400, "VALIDATION_ERROR");
    broker.get("/topics/orders/metrics?window=P2D").await.expect_problem(400, "VALIDATION_ERROR");

    // Totals are the store's, what happened lately is this process's.
    broker.crash().await;
    let fresh = metrics(&broker, "P1D").await;
    assert_eq!((&fresh["publishedTotal"], &fresh["window"]["published"]), (&json!(11), &json!(0)), "{fresh}");
}

#[tokio::test]
async fn who_consumes_is_seen_while_it_does() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "PubSub").await;
    broker.subscribe("orders", "g").await;
    assert_eq!(group(&metrics(&broker, "PT1H").await)["consumers"], json!([]));
    let consumer = |name: &str| broker.client(&Claims::new(name, &["Consumer"]));
    let (worker, poller) = (consumer("worker"), consumer("poller"));
    let polling = tokio::spawn(async move { poller.consume("orders", "g").limit(1).wait(30).await });
    let known = async |count: usize| {
        wait::until("who consumes is seen", async || {
            let metrics = metrics(&broker, "PT1H").await;
            let consumers = group(&metrics)["consumers"].as_array().expect("a list").clone();
            (consumers.len() == count).then_some(consumers)
        })
        .await
    };
    let waiting = known(1).await;
    assert_eq!((&waiting[0]["subject"], &waiting[0]["waiting"]), (&json!("poller"), &json!(1)), "{waiting:?}");
    assert!(waiting[0]["lastSettledAt"].is_null() && waiting[0]["lastSeenAt"].is_string(), "{waiting:?}");
    broker.publish("orders", "for the one that waits").await;
    polling.await.expect("no panic")[0].ack().await;
    broker.publish("orders", "for the other").await;
    worker.consume("orders", "g").collect(1).await[0].ack().await;
    let both = known(2).await;
    assert!(both.iter().all(|one| one["waiting"] == 0 && one["lastSettledAt"].is_string()), "{both:?}");
    broker.clock().advance(MINUTE * 61).await;
    known(0).await;
}
