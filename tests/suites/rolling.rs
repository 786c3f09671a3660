//! Brokers of a fleet replaced one by one under load. Invariant: whoever sends again what met a refused or reset connection, with its
//! key, is never refused otherwise; nothing is lost, and nothing comes twice, neither into a topic nor to an endpoint.

use serde_json::json;
use sluice_tests::client::Client;
use sluice_tests::servers::Postgres;
use sluice_tests::steady::{Again, Counts, Steady, difference};
use sluice_tests::{Broker, Receiver, Settings, binary};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};

const NODES: [&str; 3] = ["a", "b", "c"];
const SECRET: &str = "a-secret-of-the-suites-that-is-long-enough-for-hs256";

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

/// What a later version's migrations may do beside brokers of this one: add, to one table of the store in a transaction, as brokers
/// lock several.
const ADDS: [&str; 6] = [
    "ALTER TABLE topics ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE messages ADD COLUMN note TEXT",
    "ALTER TABLE grants ADD COLUMN note TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE cursors ADD COLUMN note TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE store_partitions ADD COLUMN note BIGINT NOT NULL DEFAULT 0",
    "INSERT INTO sluice_migrations (version, name, readable_from) VALUES (1000, 'notes', 1)",
];
/// What it may do once all brokers are its own: take away.
const TAKES_AWAY: &str = "INSERT INTO sluice_migrations (version, name, readable_from) VALUES (1001, 'fewer', 1001)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_upgrade_across_a_change_of_the_tables_refuses_nothing_and_loses_nothing() {
    let url = Postgres::shared_with_tables("upgraded");
    let [a, b] = ["a", "b"].map(|node| Broker::with(Settings::new().on(&url, node)));
    let mut brokers = [a.await, b.await];
    let topic = json!({"name": "orders", "type": "PubSub", "deliveryGuarantee": "ExactlyOnce", "partitionCount": 4});
    brokers[0].post("/topics", &topic).await.expect(201);
    brokers[1].subscribe("orders", "pulled").await;
    let load = {
        let clients: Vec<&Client> = brokers.iter().map(|broker| &**broker).collect();
        Steady::begin("orders", &clients, 4, Again::Broken)
    };
    load.goes_on(50).await;
    let mut sql = PgConnection::connect(&url).await.expect("the server answers");
    for adds in ADDS {
        sql.execute(adds).await.expect("brokers hold no lock for long");
        load.goes_on(20).await;
    }
    for (at, broker) in brokers.iter_mut().enumerate() {
        assert!(broker.stop().await.success());
        broker.restart().await;
        load.moved(at, broker.admin());
        load.goes_on(50).await;
    }
    let expected = load.end().await;
    let mut pulled = Counts::new();
    for delivery in brokers[0].consume("orders", "pulled").limit(1000).drain(expected.len()).await {
        *pulled.entry(delivery.payload().to_owned()).or_default() += 1;
    }
    assert!(pulled == expected, "{}", difference(&pulled, &expected));
    brokers[1].create_topic("later", "Queue").await;
    // Taken away too soon, the one that starts says what to do; the one that runs is left alone.
    sql.execute(TAKES_AWAY).await.expect("a row is taken");
    assert!(brokers[0].stop().await.success());
    let mut command = std::process::Command::new(binary::sluice());
    command.args(["serve", "--listen", "127.0.0.1:0"]).current_dir(brokers[0].data_dir());
    command.envs([("SLUICE__POSTGRES__URL", url.as_str()), ("SLUICE__NODE_ID", "a"), ("JWT__Secret", SECRET)]);
    let refused = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("newer version of Sluice"), "{said}");
    brokers[1].publish("later", "1").await;
}
