//! Brokers on one PostgreSQL. Invariant: whichever of them is asked, the answer is that of all; what one has changed holds for
//! the others when it is answered.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use sluice_tests::broker::files_below;
use sluice_tests::link::{Link, State};
use sluice_tests::receiver::Scripted;
use sluice_tests::servers::Postgres;
use sluice_tests::{Broker, Receiver, Settings, binary, guest};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};
use tokio::sync::Notify;

const JSON: (&str, &str) = ("content-type", "application/json");
const NODES: [&str; 3] = ["a", "b", "c"];
/// What every append needs.
const PARTITIONS: &str = "LOCK TABLE store_partitions IN ACCESS EXCLUSIVE MODE";
/// What every change of the catalog needs.
const CATALOG: &str = "SELECT pg_advisory_xact_lock(8317987319222330742)";

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
async fn brokers_start_for_the_first_time_at_one_moment() {
    for round in 0..3 {
        let url = Postgres::shared_with_tables(&format!("first_start_{round}"));
        let starting = NODES.map(|node| Broker::with(Settings::new().on(&url, node)));
        let brokers = futures_util::future::join_all(starting).await;
        assert_eq!(nodes(&brokers[0]).await, NODES);
        brokers[1].create_topic("orders", "Queue").await;
        brokers[2].publish("orders", "1").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streams_places_are_free_when_others_are_told_of_the_end_of_its_leases() {
    let [a, b, c] = fleet("streams_elsewhere").await;
    a.create_topic("orders", "Queue").await;
    let mut stream = a.stream("orders", "g", 2).await;
    for number in 0..20 {
        b.publish("orders", format!("order {number}")).await;
    }
    // Leases last for half a minute: acknowledged at the others, each makes room for the next at once.
    for number in 0..20 {
        let got = stream.next().await;
        assert_eq!(got.payload(), format!("order {number}"));
        let other = if number % 2 == 0 { &b } else { &c };
        let ack = json!({"consumerGroup": "g", "receipt": got.receipt()});
        other.post(&format!("/messages/{}/ack", got.id()), &ack).await.expect(200);
    }
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
async fn changes_of_one_pipeline_at_several_brokers_follow_each_other() {
    const ROUNDS: u64 = 5;
    let brokers = fleet("racing_brokers").await;
    let [a, b, c] = &brokers;
    a.create_topic("orders", "Queue").await;
    let stages = |value: &str| json!({"stages": [{"name": "f", "plugin": "filter", "config": {"headerMatches": {"keep": value}}}]});
    let set = async |broker: &Broker, who: usize| {
        let mut made = Vec::new();
        for round in 0..ROUNDS {
            let answer = broker.put("/topics/orders/pipeline", &stages(&format!("{who} {round}"))).await;
            made.push(answer.expect(200)["revision"].as_u64().expect("a number"));
        }
        made
    };
    let (by_a, by_b, by_c) = tokio::join!(set(a, 0), set(b, 1), set(c, 2));
    let mut all = [by_a, by_b, by_c].concat();
    all.sort_unstable();
    // None was lost or overwritten unseen: each is a revision of its own, with its own stages.
    assert_eq!(all, (1..=3 * ROUNDS).collect::<Vec<_>>());
    let history = b.get("/topics/orders/pipeline/history?limit=100").await.expect(200);
    let values = history["revisions"].as_array().expect("a list").iter();
    let values: HashSet<String> =
        values.map(|one| one["stages"][0]["config"]["headerMatches"]["keep"].to_string()).collect();
    assert_eq!(values.len() as u64, 3 * ROUNDS);
    let now =
        [a.get("/topics/orders/pipeline").await, c.get("/topics/orders/pipeline").await].map(|one| one.expect(200));
    assert_eq!((&now[0], now[0]["revision"].as_u64()), (&now[1], Some(3 * ROUNDS)));
    // Of those who insist on what they have seen, one is first.
    let insisting = async |broker: &Broker| {
        let seen = format!("\"{}\"", 3 * ROUNDS);
        let body = stages("insists").to_string();
        broker.send(Method::PUT, "/topics/orders/pipeline", &[("if-match", &seen), JSON], body).await.status
    };
    let (one, two, three) = tokio::join!(insisting(a), insisting(b), insisting(c));
    let mut statuses = [one, two, three];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412, 412]);
}

/// The broker that makes a change is the first to store on it: what others run at that moment is outdated before they hear of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broker_takes_messages_while_their_pipeline_changes() {
    const CHANGES: usize = 6;
    let brokers = fleet("changing_pipeline").await;
    brokers[0].create_topic("orders", "Queue").await;
    let done = AtomicBool::new(false);
    let publish = async |broker: &Broker| {
        let mut taken = 0;
        while !done.load(Ordering::SeqCst) {
            assert_eq!(broker.publish("orders", "x").header("keep", "me").await.status, "Pending");
            taken += 1;
        }
        taken
    };
    let change = async {
        for number in 0..CHANGES {
            let config = json!({"headerMatches": {"keep": "me"}});
            let stages = json!([{"name": format!("f{number}"), "plugin": "filter", "config": config}]);
            brokers[number % 3].put_pipeline("orders", stages).await;
        }
        done.store(true, Ordering::SeqCst);
    };
    let (by_a, by_b, by_c, ()) = tokio::join!(publish(&brokers[0]), publish(&brokers[1]), publish(&brokers[2]), change);
    let stored = brokers[1].get("/topics/orders/metrics").await.expect(200)["messages"].clone();
    assert_eq!(stored, by_a + by_b + by_c);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_not_undone_by_one_that_another_broker_makes_at_the_same_moment() {
    let [a, b, c] = fleet("colliding_brokers").await;
    let schema = json!({"type": "object", "required": ["id"]}).to_string();
    let schema = json!({"schemaId": "order.v1", "schemaDefinition": schema, "version": "1.0"});
    a.post("/schemas", &schema).await.expect(201);
    for round in 0..10 {
        let topic = format!("orders{round}");
        a.create_topic(&topic, "Queue").await;
        let described = json!({"name": topic, "type": "Queue", "schemaId": "order.v1"});
        let path = format!("/topics/{topic}");
        let (described, ..) = tokio::join!(
            a.put(&path, &described),
            b.put_pipeline(&topic, keeping("b")),
            c.put_pipeline(&topic, keeping("c"))
        );
        described.expect(200);
        let now = b.get(&format!("/topics/{topic}/pipeline")).await.expect(200);
        let stages: Vec<&str> =
            now["resolved"].as_array().expect("a list").iter().filter_map(|stage| stage["name"].as_str()).collect();
        assert_eq!(stages, ["schema", "f"], "in round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_version_and_a_new_pipeline_at_once_both_hold() {
    let brokers = fleet("uploading_brokers").await;
    let [a, b, c] = &brokers;
    let wasm = [("content-type", "application/wasm")];
    let upload = async |version: &str, bytes: &'static [u8]| {
        let path = format!("/plugins/own-filter/versions?version={version}");
        a.send(Method::POST, &path, &wasm, bytes).await.expect(201)
    };
    upload("1.0.0", guest::first_party("filter").leak()).await;
    a.create_topic("orders", "Queue").await;
    let stage =
        |value: &str| json!([{"name": "f", "plugin": "own-filter", "config": {"headerMatches": {"keep": value}}}]);
    b.put_pipeline("orders", stage("first")).await;
    let (uploaded, ..) = tokio::join!(
        upload("2.0.0", guest::filter_v2()),
        b.put_pipeline("orders", stage("second")),
        c.put_pipeline("orders", stage("second"))
    );
    // Who is late runs it a moment later.
    sluice_tests::wait::until("the pipeline is on the new version everywhere", async || {
        for broker in &brokers {
            let now = broker.get("/topics/orders/pipeline").await.expect(200);
            let stage = &now["resolved"][0];
            let is_it = stage["digest"] == uploaded["digest"]
                && now["stages"][0]["config"]["headerMatches"]["keep"] == "second";
            is_it.then_some(())?;
        }
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_broker_has_deleted_leaves_no_machine_code() {
    let brokers = fleet("deleting_brokers").await;
    let [a, b, c] = &brokers;
    let wasm = [("content-type", "application/wasm")];
    let uploaded = a.send(Method::POST, "/plugins/own-tag/versions?version=1", &wasm, guest::tag(1)).await.expect(201);
    let digest = uploaded["digest"].as_str().expect("a digest").trim_start_matches("sha256:").to_owned();
    b.create_topic("orders", "Queue").await;
    let count = || {
        let kept = |broker: &&Broker| {
            let maps = std::fs::read_to_string(format!("/proc/{}/maps", broker.process_id())).expect("the broker runs");
            let mut files = files_below(&broker.data_dir().join("plugin-cache")).into_iter();
            maps.contains(&digest) || files.any(|file| file.to_string_lossy().contains(&digest))
        };
        brokers.iter().filter(kept).count()
    };
    b.put_pipeline("orders", json!([{"name": "t", "plugin": "own-tag"}])).await;
    sluice_tests::wait::until("all have it", async || (count() == 3).then_some(())).await;
    a.put_pipeline("orders", json!([])).await;
    c.delete("/plugins/own-tag/versions/1").await.expect(204);
    sluice_tests::wait::until("none has it", async || {
        // What ran it is let go of when it has been idle for a while.
        for broker in &brokers {
            broker.clock().advance(Duration::from_secs(60)).await;
        }
        (count() == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_broker_leaves_its_work_to_the_others_until_it_is_asked_back() {
    let url = Postgres::shared_with_tables("drained");
    let a = Broker::with(Settings::new().on(&url, "a")).await;
    let b = Broker::with(Settings::new().on(&url, "b")).await;
    let (receiver, release) = (Receiver::start().await, Arc::new(Notify::new()));
    receiver.answers([Scripted::from(200).held_until(Arc::clone(&release))]);
    a.create_topic("news", "PubSub").await;
    a.subscribe_push("news", "g", &receiver.url(), json!({})).await;
    a.create_topic("work", "Queue").await;
    a.publish("news", "0").await;
    receiver.received(1).await;
    let sender = sluice_tests::wait::until("one of them says that it sends", async || {
        let sends = async |node| of(&a, node).await["load"]["webhooksInFlight"] == 1;
        if sends("a").await { Some("a") } else { sends("b").await.then_some("b") }
    })
    .await;
    let (drained, other) = if sender == "a" { (&a, &b) } else { (&b, &a) };
    let waiting = async { drained.consume("work", "g").wait(30).answer().await };
    let asking = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        // Any broker can be asked. What is under way is waited for.
        let answer = other.post(&format!("/brokers/{sender}/drain?wait=PT1S"), &json!({})).await.expect(200);
        assert_eq!(answer["status"], "Draining");
    };
    let (waited, ()) = tokio::join!(waiting, asking);
    assert_eq!(waited.expect(200)["messages"], json!([]), "nobody is kept waiting");
    drained.get("//health/ready").await.expect_problem(503, "SHUTTING_DOWN");
    release.notify_one();
    let answer = other.post(&format!("/brokers/{sender}/drain?wait=PT30S"), &json!({})).await.expect(200);
    assert_eq!(answer["status"], "Drained");
    // It still answers, and the other one sends.
    for n in 1..20 {
        drained.publish("news", n.to_string()).await;
    }
    receiver.received(20).await;
    let told = of(other, sender).await;
    assert_eq!((&told["load"]["pushSubscriptions"], &told["load"]["webhooksInFlight"]), (&json!(0), &json!(0)));
    drained.delete(&format!("/brokers/{sender}/drain")).await;
    sluice_tests::wait::until("it takes work again", async || {
        (of(other, sender).await["status"] == "Active").then_some(())?;
        (drained.get("//health/ready").await.status == 200).then_some(())
    })
    .await;
    other.post(&format!("/brokers/{sender}/drain"), &json!({})).await.expect(200);
    other.post("/brokers/nobody/drain", &json!({})).await.expect_problem(404, "NOT_FOUND");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let ids: HashSet<String> = receiver.requests().iter().map(|one| one.json()["messageId"].to_string()).collect();
    assert_eq!((ids.len(), receiver.requests().len()), (20, 20));
}

/// What a broker says that does not start.
fn refused(url: &str, node: &str) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut broker = Command::new(binary::sluice());
    broker.args(["serve", "--profile", "development", "--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.path());
    broker.env("SLUICE__POSTGRES__URL", url).env("SLUICE__NODE_ID", node);
    broker.env("JWT__Secret", "of thirty-two bytes, or some more");
    let broker = broker.output().expect("it starts");
    assert!(!broker.status.success());
    String::from_utf8_lossy(&broker.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_acknowledges_what_it_may_lose_is_refused() {
    let url = Postgres::shared_with_tables("asynchronous");
    let name = url.rsplit('/').next().expect("it names a database");
    let mut sql = PgConnection::connect(&Postgres::shared().superuser_url()).await.expect("the server answers");
    let off = format!("ALTER DATABASE \"{name}\" SET synchronous_commit = off");
    sql.execute(sqlx::AssertSqlSafe(off)).await.expect("the superuser may");
    let said = refused(&url, "a");
    assert!(said.contains("synchronous_commit is off") && said.contains("ALTER ROLE"), "{said}");
}

async fn of(broker: &Broker, node: &str) -> serde_json::Value {
    broker.get(&format!("/brokers/{node}")).await.expect(200)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_its_database_does_not_hear_serves_nothing_until_it_knows_what_was_changed() {
    let url = Postgres::shared_with_tables("unheard");
    let link = Link::to(([127, 0, 0, 1], Postgres::shared().port()).into()).await;
    let a = Broker::with(Settings::new().on(&link.url(&url), "a")).await;
    let b = Broker::with(Settings::new().on(&url, "b")).await;
    a.create_topic("orders", "Queue").await;
    b.put_pipeline("orders", keeping("before")).await;
    a.publish("orders", "1").header("keep", "before").await;
    link.be(State::Silent);
    sluice_tests::wait::until("the others count it no more", async || (nodes(&b).await == ["b"]).then_some(())).await;
    sluice_tests::wait::until("it serves nothing", async || {
        (a.get("//health").await.expect(200)["parts"]["fleet"] == "Unhealthy").then_some(())
    })
    .await;
    a.publish("orders", "2").answer().await.expect_problem(503, "STORE_UNAVAILABLE");
    a.get("/topics").await.expect_problem(503, "STORE_UNAVAILABLE");
    a.get("//health/live").await.expect(200);
    // Nobody waits for it, and what is changed now it does not know.
    b.put_pipeline("orders", keeping("after")).await;
    link.be(State::Good);
    let answer = sluice_tests::wait::until("it serves again", async || {
        let answer = a.publish("orders", "3").header("keep", "before").answer().await;
        (answer.status == 202).then_some(answer)
    })
    .await;
    assert_eq!(answer.json()["status"], "Dropped", "it serves only once it runs what the others run");
    assert_eq!(nodes(&b).await, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_catalog_does_not_know_goes_after_a_while() {
    let url = Postgres::shared_with_tables("strays");
    let a = Broker::with(Settings::new().on(&url, "a")).await;
    a.create_topic("orders", "Queue").await;
    let mut sql = PgConnection::connect(&url).await.expect("the server answers");
    let made = "INSERT INTO store_topics SELECT (jsonb_populate_record(t, '{\"topic\": 999999}')).* FROM store_topics t LIMIT 1";
    sql.execute(made).await.expect("it is as the others");
    let count = "SELECT count(*) FROM store_topics WHERE topic = 999999";
    sluice_tests::wait::until("it is gone", async || {
        a.clock().advance(Duration::from_secs(1000)).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let left = sqlx::query_scalar::<_, i64>(count).fetch_one(&mut sql).await.expect("a number");
        (left == 0).then_some(())
    })
    .await;
    a.publish("orders", "1").await;
}

fn keeping(value: &str) -> serde_json::Value {
    json!([{"name": "f", "plugin": "filter", "config": {"headerMatches": {"keep": value}}}])
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
async fn all_brokers_send_what_one_of_them_was_given_and_tell_what_they_do() {
    let [a, b, c] = fleet("sending_brokers").await;
    let (receiver, release) = (Receiver::start().await, Arc::new(Notify::new()));
    receiver.answers((0..2000).map(|_| Scripted::from(200).held_until(Arc::clone(&release))));
    a.create_topic("news", "PubSub").await;
    a.subscribe_push("news", "g", &receiver.url(), json!({})).await;
    let batch: Vec<_> = (0..500).map(|n| json!({"topicName": "news", "payload": n})).collect();
    for _ in 0..4 {
        a.post("/messages/publish/batch", &json!({ "messages": batch })).await.expect(200);
    }
    sluice_tests::wait::until("each of them sends", async || {
        for node in NODES {
            (of(&b, node).await["load"]["webhooksInFlight"].as_u64() > Some(0)).then_some(())?;
        }
        Some(())
    })
    .await;
    // A file that is none, at one of them: any broker that is asked tells of it.
    std::fs::write(b.plugins_dir().join("broken.wasm"), "none").expect("the folder takes a file");
    sluice_tests::wait::until("it is told", async || (of(&c, "b").await["plugins"]["refused"] == 1).then_some(()))
        .await;
    assert_eq!(of(&c, "a").await["plugins"]["refused"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_comes_once_each_broker_has_its_plugins_ready() {
    let url = Postgres::shared_with_tables("prepared_brokers");
    let [a, b, _c] = NODES.map(|node| Broker::with(Settings::new().on(&url, node)));
    let (a, b, _c) = (a.await, b.await, _c.await);
    let wasm = [("content-type", "application/wasm")];
    a.send(Method::POST, "/plugins/own-filter/versions?version=1.0.0", &wasm, guest::filter_v2()).await.expect(201);
    b.create_topic("orders", "Queue").await;
    // The database itself refuses a revision that comes too early.
    let mut sql = PgConnection::connect(&url).await.expect("the server answers");
    let watch = "CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF NOT EXISTS (SELECT FROM wanted_plugins) OR (SELECT count(*) FROM brokers WHERE serving AND (node = 'a' OR prepared >= \
             (SELECT max(id) FROM wanted_plugins))) <> 3 THEN RAISE EXCEPTION 'too early'; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER watch BEFORE INSERT ON pipeline_revisions FOR EACH ROW EXECUTE FUNCTION watch()";
    sql.execute(watch).await.expect("the owner may");
    let stages = json!([{"name": "f", "plugin": "own-filter", "config": {"headerMatches": {"keep": "me"}}}]);
    a.put_pipeline("orders", stages).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_somebody_holds_keeps_nothing_else_from_coming_when_it_is_due() {
    let url = Postgres::shared_with_tables("held_topic");
    let [a, b] = ["a", "b"].map(|node| Broker::with(Settings::new().on(&url, node)));
    let (a, b) = (a.await, b.await);
    for topic in ["held", "buried", "free"] {
        a.create_topic(topic, "Queue").await;
    }
    let last_try = json!({"topicName": "buried", "consumerGroup": "g", "type": "Pull", "maxRetries": 0});
    a.post("/subscriptions", &last_try).await.expect(201);
    a.subscribe("free", "g").await;
    a.publish("buried", "never acknowledged").await;
    a.publish("free", "again").await;
    assert_eq!(
        a.consume("buried", "g").ack_timeout(60).await.len() + a.consume("free", "g").ack_timeout(60).await.len(),
        2
    );
    for n in 0..1200 {
        a.publish("held", n).field("delay", "PT30S").await;
    }
    a.publish("free", "later").field("delay", "PT31S").await;
    let mut holder = PgConnection::connect(&url).await.expect("the server answers");
    holder
        .execute(
            "BEGIN; SELECT 1 FROM store_partitions p JOIN topics t ON t.topic_id = p.topic \
             WHERE t.name IN ('held', 'buried.dlq') FOR UPDATE OF p",
        )
        .await
        .expect("nobody has them");
    tokio::join!(a.clock().advance(Duration::from_secs(61)), b.clock().advance(Duration::from_secs(61)));
    let mut came: Vec<String> =
        a.consume("free", "g").drain(2).await.iter().map(|one| one.payload().to_owned()).collect();
    came.sort_unstable();
    assert_eq!(came, ["again", "later"]);
    holder.execute("ROLLBACK").await.expect("they are given back");
    a.consume("held", "g").drain(1200).await;
    sluice_tests::wait::until("it is buried", async || {
        let letters = a.get("/topics/buried/dlq").await.expect(200);
        (letters["deadLetters"].as_array().map(Vec::len) == Some(1)).then_some(())
    })
    .await;
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
    // Pods have another name each time.
    let mut sql = PgConnection::connect(&url).await.expect("the server answers");
    sql.execute("INSERT INTO store_openings (node) SELECT 'pod-' || n FROM generate_series(1, 10100) n")
        .await
        .expect("a table");
    let said = refused(&url, "a");
    assert!(said.contains("a broker named 'a' is there already"), "{said}");
    assert!(b.stop().await.success());
    assert_eq!(nodes(&a).await, ["a"]);
    // One that crashed is waited for, and takes its own name again.
    a.crash().await;
    let known: i64 =
        sqlx::query_scalar("SELECT count(*) FROM store_openings").fetch_one(&mut sql).await.expect("a number");
    assert!((9_000..=10_010).contains(&known), "{known} starts are kept");
    assert_eq!(nodes(&a).await, ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_database_is_moved_away_under_it_takes_no_requests() {
    let url = Postgres::shared_with_tables("moved_away");
    let a = Broker::with(Settings::new().on(&url, "a")).await;
    a.create_topic("orders", "Queue").await;
    // As a move that began while this broker could not reach its database.
    let mut sql = PgConnection::connect(&url).await.expect("the server answers");
    sql.execute("INSERT INTO store_moves (mark) VALUES ('{}')").await.expect("nothing is moved yet");
    let ready = async |status: u16| {
        sluice_tests::wait::until(&format!("it is ready: {status}"), async || {
            (a.get("//health/ready").await.status == status).then_some(())
        })
        .await;
    };
    ready(503).await;
    a.publish("orders", "1").answer().await.expect_problem(503, "STORE_UNAVAILABLE");
    sql.execute("DELETE FROM store_moves").await.expect("it is given up");
    ready(200).await;
    a.publish("orders", "2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_lock_or_a_connection_is_told_so_and_served_again() {
    let url = Postgres::shared_with_tables("locked");
    let settings = Settings::new().on(&url, "a").env("SLUICE__POSTGRES__CONNECTIONS_MAX", "2");
    let a = Broker::with(settings).await;
    a.create_topic("orders", "Queue").await;
    a.publish("orders", "1").await;
    let mut lock = holding(&url, PARTITIONS).await;
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

/// A transaction that has `lock`, and keeps others waiting for it.
async fn holding(url: &str, lock: &'static str) -> PgConnection {
    let mut connection = PgConnection::connect(url).await.expect("the server answers");
    connection.execute("BEGIN").await.expect("the server answers");
    connection.execute(lock).await.expect("it is free");
    connection
}

/// Waits until a statement with these words waits for a lock.
async fn waits(url: &str, words: &str) {
    let mut connection = PgConnection::connect(url).await.expect("the server answers");
    let waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' \
        AND strpos(query, $1) > 0";
    sluice_tests::wait::until(words, async || {
        sqlx::query(waiting).bind(words).fetch_optional(&mut connection).await.expect("the server answers").map(drop)
    })
    .await;
}

/// What is published once a subscription has stages goes through them, also where it is leased by a look that began before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stages_that_are_set_while_a_lease_is_waited_for_hold_for_what_is_published_then() {
    let url = Postgres::shared_with_tables("held_lease");
    let a = Broker::with(Settings::new().on(&url, "a")).await;
    for (guarantee, looks) in [("AtLeastOnce", "store_give"), ("AtMostOnce", "FOR UPDATE OF k")] {
        let topic = format!("people.{guarantee}");
        a.post("/topics", &json!({"name": topic, "type": "PubSub", "deliveryGuarantee": guarantee})).await.expect(201);
        let subscription = a.subscribe(&topic, "outside").await;
        let mut lock = holding(&url, "LOCK TABLE cursors IN EXCLUSIVE MODE").await;
        let lease = tokio::spawn(a.consume(&topic, "outside").into_future());
        waits(&url, looks).await;
        let path = format!("/subscriptions/{}/pipeline", subscription["subscriptionId"].as_str().expect("an id"));
        let config = json!({"rules": [{"pointer": "/email", "action": "drop"}]});
        a.put(&path, &json!({"stages": [{"name": "r", "plugin": "redact", "config": config}]})).await.expect(200);
        a.publish(&topic, json!({"name": "Ada", "email": "ada@example.org"})).await;
        lock.execute("COMMIT").await.expect("the lock is given back");
        let leased = lease.await.expect("no panic");
        assert_eq!(leased.iter().map(|one| one.payload()).collect::<Vec<_>>(), [r#"{"name":"Ada"}"#], "{guarantee}");
    }
}

/// What was changed here is known, whatever else is under way here that hearing of others' changes would wait for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_a_change_made_here_has_outdated_does_not_wait_for_further_changes() {
    let url = Postgres::shared_with_tables("held_change");
    let a = Broker::with(Settings::new().on(&url, "a")).await;
    a.create_topic("orders", "Queue").await;
    a.create_topic("others", "Queue").await;
    a.put_pipeline("orders", keeping("me")).await;
    let mut storing = holding(&url, PARTITIONS).await;
    let publish = tokio::spawn(a.publish("orders", "x").header("keep", "me").into_future());
    waits(&url, "store_append").await;
    a.put_pipeline("orders", json!([])).await;
    let mut changing = holding(&url, CATALOG).await;
    let client = a.admin();
    let change = tokio::spawn(async move { client.put_pipeline("others", json!([])).await });
    waits(&url, CATALOG).await;
    // As another broker does that has stored on the new revision already.
    storing.execute("UPDATE store_partitions SET revision = 2").await.expect("the partitions are there");
    storing.execute("COMMIT").await.expect("the lock is given back");
    assert_eq!(publish.await.expect("no panic").pipeline_revision, Some(2));
    assert!(!change.is_finished(), "it is still under way");
    changing.execute("ROLLBACK").await.expect("the lock is given back");
    change.await.expect("no panic");
}
