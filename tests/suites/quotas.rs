//! Quotas of plugins and topics by the prefix of their names, over the real binary. Invariant: a team that is over its quota is
//! told so and waits for itself; its neighbours have what they had. Never asks how long anything took.

use serde_json::{Value, json};
use sluice_tests::{Answer, Broker, Settings, guest, wait};

use super::plugin_versions::push;

fn quotas(text: &str) -> Settings {
    Settings::new().env("SLUICE__PLUGINS__QUOTAS", text)
}

fn small(mark: &str) -> Vec<u8> {
    guest::with_powers(&[], mark)
}

fn detail(refused: Answer) -> String {
    let problem = refused.expect_problem(429, "BACKPRESSURE");
    problem["detail"].as_str().expect("a detail").to_owned()
}

async fn used(broker: &Broker, of: &str) -> Option<f64> {
    broker.metric(&format!("sluice_plugin_quota_used{{of=\"{of}\",prefix=\"orders.\"}}")).await
}

#[tokio::test]
async fn plugins_of_a_prefix_have_a_quota_by_upload_and_by_disk_and_room_again_when_one_goes() {
    let component = small("a");
    let bytes = 2 * component.len() + 10;
    let text = format!("orders. plugins=2 bytes={bytes}, orders.eu. plugins=1");
    let broker = Broker::with(quotas(&text)).await;
    push(&broker, "orders.a", "1", component.clone()).await.expect(201);
    // The same bytes are stored once.
    push(&broker, "orders.a", "2", component.clone()).await.expect(201);
    push(&broker, "orders.b", "1", small("b")).await.expect(201);
    assert_eq!(used(&broker, "plugins").await, Some(2.0));
    assert_eq!(used(&broker, "bytes").await, Some(2.0 * component.len() as f64));
    assert_eq!(broker.metric("sluice_plugin_quota_limit{of=\"bytes\",prefix=\"orders.\"}").await, Some(bytes as f64));

    let full = detail(push(&broker, "orders.c", "1", small("c")).await);
    assert!(full.contains("'orders.'") && full.contains("2 plugins"), "{full}");
    let full = detail(push(&broker, "orders.b", "2", small("d")).await);
    assert!(full.contains("'orders.'") && full.contains(&format!("{bytes} bytes of components")), "{full}");
    // What is there already takes no more, and the neighbours have quotas of their own, or none.
    push(&broker, "orders.b", "1", small("b")).await.expect(200);
    push(&broker, "orders.eu.a", "1", small("e")).await.expect(201);
    detail(push(&broker, "orders.eu.b", "1", small("f")).await);
    for (name, mark) in [("billing.a", "g"), ("billing.b", "h"), ("billing.c", "i")] {
        push(&broker, name, "1", small(mark)).await.expect(201);
    }

    broker.place_plugin("orders.c.wasm", &small("c"));
    let refused = wait::until("the file is refused", async || {
        let answer = broker.get("/plugins/orders.c").await;
        if answer.status != 200 {
            return None;
        }
        answer.json()["lastError"]["message"].as_str().map(str::to_owned)
    })
    .await;
    assert!(refused.contains("2 plugins"), "{refused}");
    assert_eq!(used(&broker, "plugins").await, Some(2.0), "a name without a version is no plugin");
    broker.delete("/plugins/orders.b/versions/1").await.expect(204);
    broker.clock().advance(std::time::Duration::from_secs(60)).await;
    wait::until("the file is taken in once there is room", async || {
        let page = broker.get("/plugins/orders.c").await.expect(200);
        (page["versions"].as_array().map(Vec::len) == Some(1)).then_some(())
    })
    .await;
    assert_eq!(used(&broker, "plugins").await, Some(2.0));
}

#[tokio::test]
async fn what_is_there_stays_under_a_quota_that_was_lowered_and_no_more_comes() {
    let mut broker = Broker::with(quotas("orders. plugins=2")).await;
    for (name, mark) in [("orders.a", "a"), ("orders.b", "b")] {
        push(&broker, name, "1", small(mark)).await.expect(201);
    }
    broker.stop().await;
    broker.restart_with(quotas("orders. plugins=1")).await;
    for (name, mark) in [("orders.a", "a"), ("orders.b", "b")] {
        let known = broker.get(&format!("/plugins/{name}")).await.expect(200);
        assert_eq!(known["versions"].as_array().map(Vec::len), Some(1), "{known}");
        push(&broker, name, "1", small(mark)).await.expect(200);
    }
    detail(push(&broker, "orders.c", "1", small("c")).await);
    broker.delete("/plugins/orders.b/versions/1").await.expect(204);
    detail(push(&broker, "orders.c", "1", small("c")).await);
    broker.delete("/plugins/orders.a/versions/1").await.expect(204);
    push(&broker, "orders.c", "1", small("c")).await.expect(201);
}

/// One message occupies a thread for five seconds of its time. There are two for what is quick or new: without a share the two
/// topics would hold both, and a third would wait for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_its_share_of_the_threads_a_stage_waits_and_its_neighbours_do_not() {
    const WAITING: &str = "sluice_plugin_quota_waiting_messages{prefix=\"orders.\"}";
    let broker = Broker::with(quotas("orders. share=0.5").env("SLUICE__PLUGINS__WORKERS", "1")).await;
    broker.place_plugin("hostile.wasm", guest::hostile());
    wait::within(4 * wait::PATIENCE, "the plugin is taken in", async || {
        (broker.get("/plugins/hostile").await.status == 200).then_some(())
    })
    .await;
    for topic in ["orders.a", "orders.b", "billing.x"] {
        broker.create_topic(topic, "Queue").await;
        let stage = json!({"name": "s", "plugin": "hostile", "version": "latest", "config": {}, "timeoutMs": 5000});
        broker.put_pipeline(topic, json!([stage])).await;
    }
    let client = broker.admin();
    let spinning = ["orders.a", "orders.b"].map(|topic| {
        let spin = json!({"topicName": topic, "payload": {}, "headers": {"do": "spin"}});
        let client = client.clone();
        tokio::spawn(async move { client.post("/messages/publish", &spin).await })
    });
    wait::until("one runs and one waits", async || {
        let (held, waiting) = (used(&broker, "threads").await, broker.metric(WAITING).await);
        ((held, waiting) == (Some(1.0), Some(1.0))).then_some(())
    })
    .await;
    for n in 0..20 {
        let published: Value = broker.publish("billing.x", n).answer().await.expect(202);
        assert_eq!(published["status"], "Pending", "{published}");
    }
    assert!(spinning.iter().all(|publish| !publish.is_finished()), "all of the neighbour's came before any of theirs");
    assert_eq!((used(&broker, "threads").await, broker.metric(WAITING).await), (Some(1.0), Some(1.0)));
    for publish in spinning {
        publish.await.expect("it ends").expect_problem(503, "PLUGIN_FAULT");
    }
    wait::until("the threads are given back", async || {
        let (held, waiting) = (used(&broker, "threads").await, broker.metric(WAITING).await);
        ((held, waiting) == (Some(0.0), Some(0.0))).then_some(())
    })
    .await;
}
