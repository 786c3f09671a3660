//! A plugin's file is replaced while messages flow: the next messages meet the new version within a second, none is lost,
//! and a broken file changes nothing but what is said of it. Invariant: every message is accounted for by name: dropped, or
//! delivered exactly as one version would have it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use sluice_tests::consume::Received;
use sluice_tests::{Broker, Client, guest, wait};

const TOPIC: &str = "deployment.events";
/// A message that the first-party filter drops and the other version passes.
const CRITICAL: &[(&str, &str)] = &[("environment", "staging"), ("severity", "critical")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_file_is_in_force_at_once_and_a_broken_one_changes_nothing() {
    let broker = Broker::start().await;
    let good = guest::first_party("filter");
    set_up(&broker).await;
    let flow = Flow::start(&broker);

    assert_eq!(probe(&broker).await, "Dropped", "the first-party filter is in force");
    broker.place_plugin("filter.wasm", guest::filter_v2());
    let better = until_probe_is(&broker, "Pending").await;

    broker.place_plugin("filter.wasm", &guest::filter_v2()[..1000]);
    let broken = wait::timed("the broken file is named in the plugin's page", async || {
        let page = broker.get("/plugins/filter").await.expect(200);
        let error = &page["lastError"];
        (error["file"] == "filter.wasm" && error["message"].is_string()).then_some(())
    })
    .await;
    assert_eq!(probe(&broker).await, "Pending", "the broken file changes nothing");
    assert!(broker.log().contains("filter.wasm"), "the log names the file");

    broker.place_plugin("filter.wasm", &good);
    let restored = until_probe_is(&broker, "Dropped").await;

    println!("from the rename to the effect: better {better:?}, broken named {broken:?}, restored {restored:?}");
    account(&broker, flow.stop().await).await;
}

async fn set_up(broker: &Broker) {
    broker.post("/topics", &json!({"name": TOPIC, "type": "PubSub", "partitionCount": 2})).await.expect(201);
    broker.subscribe(TOPIC, "all").await;
    let config = json!({"headerMatches": {"environment": "production"}});
    let stages = json!([{"name": "gate", "plugin": "filter", "version": "latest", "config": config}]);
    broker.put_pipeline(TOPIC, stages).await;
}

/// Publishes a message that the two versions treat differently, and answers what became of it.
async fn probe(broker: &Broker) -> String {
    let publish = broker.publish(TOPIC, "probe");
    let publish = CRITICAL.iter().fold(publish, |publish, (name, value)| publish.header(name, value));
    publish.await.status
}

/// How long it takes until a message meets the version that treats it so. A second is promised on an idle machine; suites
/// run beside each other in a debug build, so it is printed and not judged.
async fn until_probe_is(broker: &Broker, status: &str) -> Duration {
    let met = async || (probe(broker).await == status).then_some(());
    wait::timed(&format!("a probe is {status}"), met).await
}

/// Publishes from several clients without a pause, and notes what the broker said of each message.
struct Flow {
    stop: Arc<AtomicBool>,
    publishers: Vec<tokio::task::JoinHandle<BTreeMap<String, String>>>,
}

impl Flow {
    fn start(broker: &Broker) -> Flow {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |publisher| tokio::spawn(publish(broker.admin(), publisher, stop.clone()));
        Flow { publishers: (0..3).map(start).collect(), stop }
    }

    /// Tag → status of everything that was published.
    async fn stop(self) -> BTreeMap<String, String> {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = BTreeMap::new();
        for publisher in self.publishers {
            all.extend(publisher.await.expect("a publisher does not panic"));
        }
        all
    }
}

async fn publish(client: Client, publisher: usize, stop: Arc<AtomicBool>) -> BTreeMap<String, String> {
    let mut published = BTreeMap::new();
    while !stop.load(Ordering::SeqCst) {
        let number = published.len();
        let tag = format!("{publisher}-{number:06}");
        let environment = if number % 2 == 0 { "production" } else { "staging" };
        let severity = if number % 3 == 0 { "critical" } else { "low" };
        let publish = client.publish(TOPIC, tag.as_str()).key(&format!("key-{publisher}")).idempotency_key(&tag);
        let publish = publish.header("environment", environment).header("severity", severity);
        published.insert(tag, publish.await.status);
    }
    published
}

/// Every message was dropped by a version that drops it, or is delivered once, in order of its key, as the version that
/// passed it leaves it.
async fn account(broker: &Broker, published: BTreeMap<String, String>) {
    let pending = published.values().filter(|status| *status == "Pending").count();
    let dropped = published.values().filter(|status| *status == "Dropped").count();
    assert_eq!(pending + dropped, published.len(), "nothing was turned away: {published:?}");
    assert!(dropped > 0 && pending > 0);
    let mut delivered: Vec<Received> = Vec::new();
    while delivered.iter().filter(|message| message.payload.as_deref() != Some("probe")).count() < pending {
        for delivery in broker.consume(TOPIC, "all").limit(1000).collect(1).await {
            delivery.ack().await;
            delivered.push(delivery.message);
        }
    }
    let mut last: BTreeMap<String, String> = BTreeMap::new();
    let mut by_v2 = 0;
    for message in delivered.iter().filter(|message| message.payload.as_deref() != Some("probe")) {
        let tag = message.payload.clone().expect("text");
        assert_eq!(published.get(&tag).map(String::as_str), Some("Pending"), "{tag} was dropped and delivered");
        let before = last.insert(tag[..1].to_owned(), tag.clone());
        assert!(before.as_ref().is_none_or(|before| *before < tag), "{before:?} came before {tag}");
        by_v2 += usize::from(follows_a_version(message));
    }
    assert!(by_v2 > 0, "the second version has run");
    broker.consume(TOPIC, "all").expect_nothing().await;
    println!(
        "{} published = {dropped} dropped + {pending} delivered, {by_v2} of them by the second version",
        published.len()
    );
}

/// Whether the second version passed it; demands that one of the two would have.
fn follows_a_version(message: &Received) -> bool {
    let headers: &BTreeMap<String, String> = &message.headers;
    let production = headers["environment"] == "production";
    let by_v2 = headers.get("passed-by").is_some_and(|by| by == "filter-v2");
    assert!(production || by_v2 && headers["severity"] == "critical", "{headers:?} passed and should not have");
    by_v2
}
