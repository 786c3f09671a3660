//! Brokers of a fleet replaced one by one under load. Invariant: whoever sends again what met a refused or reset connection, with its
//! key, is never refused otherwise; nothing is lost, and nothing comes twice, neither into a topic nor to an endpoint.

use serde_json::json;
use sluice_tests::client::Client;
use sluice_tests::servers::Postgres;
use sluice_tests::steady::{Again, Counts, Steady, difference};
use sluice_tests::{Broker, Receiver, Settings};

const NODES: [&str; 3] = ["a", "b", "c"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_refuses_nothing_loses_nothing_and_doubles_nothing() {
    let url = Postgres::shared_with_tables("rolling");
    let [a, b, c] = NODES.map(|node| Broker::with(Settings::new().on(&url, node)));
    let mut brokers = [a.await, b.await, c.await];
    let receiver = Receiver::start().await;
    let topic = json!({"name": "orders", "type": "PubSub", "deliveryGuarantee": "ExactlyOnce"});
    brokers[0].post("/topics", &topic).await.expect(201);
    brokers[1].subscribe("orders", "pulled").await;
    brokers[1].subscribe_push("orders", "pushed", &receiver.url(), json!({})).await;
    let load = {
        let clients: Vec<&Client> = brokers.iter().map(|broker| &**broker).collect();
        Steady::begin("orders", &clients, 4, Again::Broken)
    };
    for (at, broker) in brokers.iter_mut().enumerate() {
        load.goes_on(50).await;
        assert!(broker.stop().await.success());
        load.goes_on(50).await;
        broker.restart().await;
        load.moved(at, broker.admin());
    }
    load.goes_on(50).await;
    assert!(load.tried_again() > 0, "no publisher has met a broker that stopped");
    let expected = load.end().await;
    let mut pulled = Counts::new();
    for delivery in brokers[0].consume("orders", "pulled").limit(1000).drain(expected.len()).await {
        *pulled.entry(delivery.payload().to_owned()).or_default() += 1;
    }
    brokers[2].consume("orders", "pulled").expect_nothing().await;
    assert!(pulled == expected, "{}", difference(&pulled, &expected));
    receiver.received(expected.len()).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let mut pushed = Counts::new();
    for request in receiver.requests() {
        *pushed.entry(request.message().payload.expect("it is text")).or_default() += 1;
    }
    assert!(pushed == expected, "{}", difference(&pushed, &expected));
}
