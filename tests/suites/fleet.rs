//! Brokers on one PostgreSQL. Invariant: whichever of them is asked, the answer is that of all; what one has changed holds for
//! the others when it is answered.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use sluice_tests::receiver::Scripted;
use sluice_tests::servers::Postgres;
use sluice_tests::{Broker, Receiver, Settings, binary, guest};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};
use tokio::sync::Notify;

const NODES: [&str; 3] = ["a", "b", "c"];

async fn fleet(name: &str) -> [Broker; 3] {
    let url = Postgres::shared_with_tables(name);
    let [a, b, c] = NODES.map(|node| Broker::with(Settings::new().on(&url, node)));
    [a.await, b.await, c.await]
}

async fn nodes(broker: &Broker) -> Vec<String> {
    let listed = broker.get("/brokers").await.expect(200);
    let all = listed["brokers"].as_array().expect("a list").iter();
    all.map(|one| one["nodeId"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_on_a_database_keeps_what_it_was_given_over_a_crash() {
    let url = Postgres::shared_with_tables("one_broker");
    let mut broker = Broker::with(Settings::new().on(&url, "one")).await;
    broker.create_topic("orders", "Queue").await;
    for n in 0..10 {
        broker.publish("orders", format!("order {n}")).await;
    }
    broker.crash().await;
    let brokers = broker.get("/brokers").await.expect(200);
    assert_eq!((brokers["brokers"][0]["durability"].as_str(), brokers["total"].as_u64()), (Some("postgres"), Some(1)));
    let all = broker.consume("orders", "g").drain(10).await;
    assert_eq!(
        all.iter().map(|one| one.payload().to_owned()).collect::<Vec<_>>(),
        (0..10).map(|n| format!("order {n}")).collect::<Vec<_>>()
    );
    broker.consume("orders", "g").expect_nothing().await;
    assert_eq!(broker.get("//health").await.expect(200)["parts"]["fleet"], "Healthy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_broker_is_told_holds_for_all_when_it_is_answered() {
    let [a, b, c] = fleet("three_brokers").await;
    assert_eq!(nodes(&b).await, NODES);
    a.create_topic("orders", "Queue").await;
    b.publish("orders", "from b").await;
    c.consume("orders", "g").drain(1).await.iter().for_each(|got| assert_eq!(got.payload(), "from b"));
    // A filter that b is told is run by c and a at once, on a plugin that a was given.
    let wasm = [("content-type", "application/wasm")];
    let uploaded = a.send(Method::POST, "/plugins/own-filter/versions?version=2.0.0", &wasm, guest::filter_v2()).await;
    uploaded.expect(201);
    let stage =
        |value: &str| json!([{"name": "f", "plugin": "own-filter", "config": {"headerMatches": {"keep": value}}}]);
    for round in 0..5 {
        let [setting, publishing] = [[&a, &b, &c][round % 3], [&b, &c, &a][round % 3]];
        setting.put_pipeline("orders", stage(&round.to_string())).await;
        let kept = publishing.publish("orders", "kept").header("keep", &round.to_string()).answer().await;
        assert_eq!(kept.json()["status"], "Pending", "{}", kept.text());
        let dropped = c.publish("orders", "dropped").header("keep", "never").answer().await;
        assert_eq!(dropped.json()["status"], "Dropped", "{}", dropped.text());
    }
    b.consume("orders", "g").drain(5).await.iter().for_each(|got| assert_eq!(got.payload(), "kept"));
    c.delete("/topics/orders?force=true").await;
    a.publish("orders", "x").answer().await.expect_problem(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_gets_each_message_once_whichever_broker_takes_it() {
    let [a, b, c] = fleet("pushing_brokers").await;
    let receiver = Receiver::start().await;
    a.create_topic("news", "PubSub").await;
    b.subscribe_push("news", "g", &receiver.url(), json!({})).await;
    for n in 0..60 {
        [&a, &b, &c][n % 3].publish("news", n.to_string()).await;
    }
    receiver.received(60).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let requests = receiver.requests();
    let bodies: HashSet<String> = requests.iter().map(|one| one.json()["messageId"].to_string()).collect();
    assert_eq!((bodies.len(), requests.len()), (60, 60));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broker_that_crashed_was_about_to_send_is_sent_by_the_others() {
    let url = Postgres::shared_with_tables("crashing_brokers");
    let mut a = Broker::with(Settings::new().on(&url, "a")).await;
    let receiver = Receiver::start().await;
    // No answer ever: what is sent stays leased, for an hour.
    receiver.answers([Scripted::from(200).held_until(Arc::new(Notify::new()))]);
    a.create_topic("news", "PubSub").await;
    a.subscribe_push("news", "g", &receiver.url(), json!({"ackTimeout": "PT1H"})).await;
    a.create_topic("work", "Queue").await;
    a.publish("news", "1").await;
    a.publish("work", "2").await;
    receiver.received(1).await;
    let fetched = a.consume("work", "g").limit(1).ack_timeout(3600).await.remove(0);
    let b = Broker::with(Settings::new().on(&url, "b")).await;
    a.kill();
    let twice = receiver.received(2).await;
    assert_eq!(twice[0].json()["messageId"], twice[1].json()["messageId"]);
    // What was fetched from it is settled with another one, and was not given to anybody else meanwhile.
    b.consume("work", "g").expect_nothing().await;
    let receipt = json!({"consumerGroup": "g", "receipt": fetched.receipt()});
    b.post(&format!("/messages/{}/ack", fetched.id()), &receipt).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_has_one_broker_and_one_that_is_gone_is_not_listed() {
    let url = Postgres::shared_with_tables("names");
    let mut a = Broker::with(Settings::new().on(&url, "a")).await;
    let mut b = Broker::with(Settings::new().on(&url, "b")).await;
    assert_eq!(nodes(&a).await, ["a", "b"]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut twin = Command::new(binary::sluice());
    twin.args(["serve", "--profile", "development", "--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.path());
    twin.env("SLUICE__POSTGRES__URL", &url)
        .env("SLUICE__NODE_ID", "a")
        .env("JWT__Secret", "of thirty-two bytes, or some more");
    let twin = twin.output().expect("it starts");
    let said = String::from_utf8_lossy(&twin.stderr);
    assert!(!twin.status.success() && said.contains("a broker named 'a' is there already"), "{said}");
    assert!(b.stop().await.success());
    assert_eq!(nodes(&a).await, ["a"]);
    // One that crashed is waited for, and takes its own name again.
    a.crash().await;
    assert_eq!(nodes(&a).await, ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_lock_or_a_connection_is_told_so_and_served_again() {
    let url = Postgres::shared_with_tables("locked");
    let settings = Settings::new().on(&url, "a").env("SLUICE__POSTGRES__CONNECTIONS_MAX", "2");
    let a = Broker::with(settings).await;
    a.create_topic("orders", "Queue").await;
    a.publish("orders", "1").await;
    let lock = PgConnection::connect(&url).await.expect("the server answers");
    let mut lock = held_lock(lock).await;
    // The first two hold the connections until the server ends their statements, the others get none.
    let four = ["2", "3", "4", "5"].map(|payload| a.publish("orders", payload).answer());
    for answer in futures_util::future::join_all(four).await {
        answer.expect_problem(503, "STORE_UNAVAILABLE");
    }
    lock.execute("ROLLBACK").await.expect("the lock is given back");
    a.publish("orders", "6").await;
    let payloads: Vec<String> =
        a.consume("orders", "g").drain(2).await.iter().map(|one| one.payload().to_owned()).collect();
    assert_eq!(payloads, ["1", "6"]);
}

async fn held_lock(mut connection: PgConnection) -> PgConnection {
    connection.execute("BEGIN; LOCK TABLE store_partitions IN ACCESS EXCLUSIVE MODE").await.expect("it is free");
    connection
}
