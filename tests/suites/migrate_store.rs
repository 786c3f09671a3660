//! `sluice migrate-store` between the directory of a real broker and the database of real ones. Invariant: what consumers,
//! publishers and operators meet after a move is what they would have met without it; a move that is killed goes on.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use sluice::catalog::Catalog;
use sluice::clock::Clock;
use sluice::offline::moving::{compare_messages, copy_messages};
use sluice::store::embedded::{EmbeddedOptions, EmbeddedStore, Progress};
use sluice::store::postgres::{PostgresOptions, PostgresStore};
use sluice_tests::servers::Postgres;
use sluice_tests::{Broker, Delivery, Settings, binary, guest, wait};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};

const HOUR: Duration = Duration::from_secs(3600);

fn command(to: &str, data_dir: &Path, database: &str) -> Command {
    let mut command = Command::new(binary::sluice());
    command.args(["migrate-store", "--json", "--to", to, "--data-dir"]).arg(data_dir).args(["--database", database]);
    command
}

fn migrate(to: &str, data_dir: &Path, database: &str) -> Output {
    command(to, data_dir, database).output().expect("the CLI starts")
}

fn moved(ran: &Output) -> Value {
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).expect("it prints a document")
}

/// What is told where it does not do it, and the exit code.
fn refused(ran: &Output) -> (i32, String) {
    assert!(!ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
    (ran.status.code().unwrap_or(-1), String::from_utf8_lossy(&ran.stderr).into_owned())
}

/// Why a broker does not start.
fn start_refused(arguments: &[&str], env: &[(&str, &str)]) -> String {
    // One that serves is ended, and then not refused.
    let mut command = Command::new("timeout");
    command
        .arg("20")
        .arg(binary::sluice())
        .args(["serve", "--listen", "127.0.0.1:0", "--profile", "development"])
        .args(arguments);
    command.envs(env.iter().copied()).stdout(Stdio::null());
    let (code, said) = refused(&command.output().expect("it starts"));
    assert_eq!(code, 5, "{said}");
    said
}

async fn told(broker: &Broker, what: &str) -> Value {
    let published = broker.publish("counted", json!({})).header("do", what).await;
    broker.get(&format!("/messages/{}", published.message_id)).await.expect(200)["headers"].clone()
}

fn payloads(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| delivery.payload().to_owned()).collect()
}

/// A broker that has some of everything, and what its consumers have not had.
async fn filled() -> (Broker, String) {
    let broker = Broker::with(Settings::new()).await;
    let topic = json!({"name": "orders", "type": "PubSub", "partitionCount": 3});
    broker.post("/topics", &topic).await.expect(201);
    for group in ["billing", "audit"] {
        let body = json!({"topicName": "orders", "consumerGroup": group, "type": "Pull", "maxRetries": 2});
        broker.post("/subscriptions", &body).await.expect(201);
    }
    for number in 0..30 {
        let key = format!("key {}", number % 7);
        broker.publish("orders", format!("order {number}")).key(&key).idempotency_key(&format!("once {number}")).await;
    }
    let erased = broker.publish("orders", "nobody's business").await.message_id;
    broker.delete(&format!("/messages/{erased}")).await.expect(204);
    // Done, tried, held and untouched, in no order.
    let taken = broker.consume("orders", "billing").limit(20).await;
    for (nth, delivery) in taken.iter().enumerate() {
        match nth % 4 {
            0 | 1 => delivery.ack().await,
            2 => delivery.nack_for("PT1H").await,
            _ => {}
        }
    }
    // A queue with priorities, a dead letter, and something for later.
    broker.post("/topics", &json!({"name": "jobs", "type": "Queue"})).await.expect(201);
    let body = json!({"topicName": "jobs", "consumerGroup": "g", "type": "Pull", "maxRetries": 0});
    broker.post("/subscriptions", &body).await.expect(201);
    broker.publish("jobs", "bad").priority(9).await;
    broker.consume("jobs", "g").collect(1).await[0].nack().await;
    for (payload, priority) in [("low", 0), ("high", 9), ("middle", 5)] {
        broker.publish("jobs", payload).priority(priority).await;
    }
    broker.publish("jobs", "later").field("delay", "PT2H").await;
    // A plugin that counts.
    broker.place_plugin("powers.wasm", guest::powers());
    wait::within(4 * wait::PATIENCE, "the plugin is taken in", async || {
        (broker.get("/plugins/powers").await.status == 200).then_some(())
    })
    .await;
    broker.create_topic("counted", "Queue").await;
    let stage = json!({"name": "count", "plugin": "powers", "version": "latest", "timeoutMs": 1000});
    broker.put_pipeline("counted", json!([stage])).await;
    for _ in 0..3 {
        told(&broker, "count n").await;
    }
    let schema = json!({"schemaId": "order", "schemaDefinition": {"type": "object"}, "version": "1.0.0"});
    broker.post("/schemas", &schema).await.expect(201);
    (broker, erased)
}

async fn subscription(broker: &Broker, group: &str) -> String {
    let listed = broker.get("/subscriptions?limit=100").await.expect(200);
    let all = listed["subscriptions"].as_array().expect("a list");
    let found = all.iter().find(|one| one["consumerGroup"] == group).expect("it is listed");
    found["subscriptionId"].as_str().expect("an id").to_owned()
}

/// What the consumers of [`filled`] get that had not had it, and what else is there.
async fn has_all(broker: &Broker, erased: &str, count: u64) {
    let listed = broker.get("/topics/jobs/dlq").await.expect(200);
    let letter = &listed["deadLetters"][0];
    assert_eq!((&letter["payload"], &letter["deadLetter"]["attempts"]), (&json!("bad"), &json!(1)), "{letter}");
    broker.get(&format!("/messages/{erased}")).await.expect_problem(404, "NOT_FOUND");
    // The same publish again is the one of before.
    let again = broker.publish("orders", "order 3").key("key 3").idempotency_key("once 3").await;
    assert_eq!(again.status, "Duplicate");
    assert_eq!(told(broker, "count n").await["count"], json!(count.to_string()));
    assert_eq!(broker.get("/schemas/order").await.expect(200)["version"], "1.0.0");
    let audit = broker.get("/audit-logs?limit=100").await;
    assert!(audit.text().matches("topic.created").count() >= 3, "{audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_a_broker_keeps_goes_to_a_fleet_and_back() {
    let (mut broker, erased) = filled().await;
    let url = Postgres::shared_with_tables("moved_store");
    // Not while a broker runs on it.
    let (code, said) = refused(&migrate("postgres", &broker.data_dir(), &url));
    assert!(code == 5 && said.contains("in use"), "{code}: {said}");
    assert!(broker.stop().await.success());
    let document = moved(&migrate("postgres", &broker.data_dir(), &url));
    let orders = document["topics"].as_array().expect("a list").iter().find(|topic| topic["topic"] == "orders");
    let orders = orders.expect("it was moved");
    assert_eq!((&orders["messages"], &orders["groups"], &orders["keys"]), (&json!(31), &json!(2), &json!(30)));
    // What was left is not served by accident.
    let data_dir = broker.data_dir();
    let left = start_refused(&["--data-dir", data_dir.to_str().expect("text")], &[]);
    assert!(left.contains("was moved to") && left.contains("serve it from there"), "{left}");
    let (code, said) = refused(&migrate("postgres", &broker.data_dir(), &url));
    assert!(code == 2 && said.contains("was moved to"), "{code}: {said}");

    let [a, b] = ["a", "b"].map(|node| Broker::with(Settings::new().on(&url, node)));
    let (mut a, mut b) = (a.await, b.await);
    has_all(&a, &erased, 4).await;
    // Ten are done; the tried wait for their hour, the held and the untouched come now, at either broker.
    let mut now = a.consume("orders", "billing").limit(9).await;
    now.extend(b.consume("orders", "billing").limit(6).await);
    assert_eq!(now.len(), 15, "{:?}", payloads(&now));
    b.consume("orders", "billing").expect_nothing().await;
    let again = now.iter().filter(|delivery| delivery.message.delivery_attempt == 2).count();
    assert_eq!(again, 5, "what was held comes again, its attempt counted");
    for delivery in &now {
        delivery.ack().await;
    }
    assert_eq!(payloads(&b.consume("jobs", "g").drain(3).await), ["high", "middle", "low"]);
    // A subscription that is made now, and one that was, read the same log.
    assert_eq!(a.consume("orders", "audit").limit(3).await.len(), 3);
    let page = format!("/subscriptions/{}", subscription(&a, "billing").await);
    a.put(&format!("{page}/snapshots/in-fleet"), &json!({})).await.expect(200);
    b.publish("orders", "from the fleet").await;

    // Back, with what has come there.
    let dir = tempfile::tempdir().expect("the system gives a temporary folder");
    let back = dir.path().join("back");
    let (code, said) = refused(&migrate("embedded", &back, &url));
    assert!(code == 2 && said.contains("stop them first (a, b)"), "{code}: {said}");
    assert!(a.stop().await.success() && b.stop().await.success());
    moved(&migrate("embedded", &back, &url));
    let away = start_refused(
        &[],
        &[
            ("SLUICE__POSTGRES__URL", &url),
            ("SLUICE__NODE_ID", "a"),
            ("JWT__Secret", "a-secret-of-the-suites-that-is-long-enough-for-hs256"),
            ("SLUICE__DATA_DIR", dir.path().join("a").to_str().expect("text")),
        ],
    );
    assert!(away.contains("was moved to"), "{away}");
    fs::remove_dir_all(&data_dir).expect("a folder of ours goes");
    fs::rename(&back, &data_dir).expect("a folder can be renamed");
    broker.restart().await;
    has_all(&broker, &erased, 5).await;
    assert_eq!(payloads(&broker.consume("orders", "billing").limit(1).await), ["from the fleet"]);
    broker.consume("orders", "billing").expect_nothing().await;
    let listed = broker.get(&format!("{page}/snapshots")).await.expect(200);
    assert_eq!(listed["snapshots"][0]["name"], "in-fleet");
    broker.clock().advance(HOUR + HOUR / 2).await;
    let tried = broker.consume("orders", "billing").collect(6).await;
    assert_eq!(tried.iter().filter(|delivery| delivery.message.delivery_attempt == 2).count(), 6, "{tried:?}");
    broker.clock().advance(HOUR).await;
    assert_eq!(payloads(&broker.consume("jobs", "g").collect(1).await), ["later"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_killed_goes_on_or_is_abandoned() {
    const MESSAGES: usize = 4000;
    let mut broker = Broker::with(Settings::new()).await;
    broker.create_topic("large", "PubSub").await;
    broker.subscribe("large", "g").await;
    let filling = "x".repeat(3000);
    for batch in 0..MESSAGES / 100 {
        let of =
            |number: usize| json!({"topicName": "large", "payload": format!("{} {filling}", batch * 100 + number)});
        let body = json!({"messages": (0..100).map(of).collect::<Vec<_>>()});
        broker.post("/messages/publish/batch", &body).await.expect(200);
    }
    for delivery in broker.consume("large", "g").limit(50).await.iter().step_by(3) {
        delivery.ack().await;
    }
    broker.publish("large", "later").field("delay", "PT2H").await;
    assert!(broker.stop().await.success());
    let (data_dir, copy) = (broker.data_dir(), broker.data_dir().with_extension("copy"));
    let copied = Command::new("cp").arg("-a").arg(&data_dir).arg(&copy).status().expect("cp starts");
    assert!(copied.success());
    let (whole, broken) = (Postgres::shared_with_tables("moved_whole"), Postgres::shared_with_tables("moved_broken"));
    let expected = moved(&migrate("postgres", &copy, &whole));

    // Killed at its very start, and later each time, until it comes through.
    let (mut kills, mut looked, mut patience) = (0, false, Duration::from_millis(20));
    let document = loop {
        let mut running = command("postgres", &data_dir, &broken)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        tokio::time::sleep(patience).await;
        if running.try_wait().expect("it is ours").is_some() {
            let ran = running.wait_with_output().expect("it has ended");
            if kills > 0 && ran.status.code() == Some(2) {
                // The one before was killed when all was done, and only to be told.
                assert!(refused(&ran).1.contains("was moved to"));
                break None;
            }
            break Some(moved(&ran));
        }
        running.kill().expect("it is ours");
        running.wait().expect("it is ours");
        kills += 1;
        if !std::mem::replace(&mut looked, data_dir.join("moved.json").exists()) && looked {
            // Neither end serves meanwhile, and another target is none.
            let refusal = start_refused(&["--data-dir", data_dir.to_str().expect("text")], &[]);
            assert!(refusal.contains("--abandon"), "{refusal}");
            let (code, said) = refused(&migrate("postgres", &data_dir, &whole));
            assert!(code == 2 && said.contains("is being moved to"), "{code}: {said}");
        }
        patience += Duration::from_millis(60);
    };
    assert!(kills > 0 && looked, "it was too quick to be killed");
    if let Some(document) = document {
        assert_eq!((&document["topics"], &document["values"]), (&expected["topics"], &expected["values"]));
    }

    // A move back that is given up leaves the fleet as it was, and no half of a directory.
    let back = data_dir.with_extension("back");
    let mut running =
        command("embedded", &back, &broken).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    wait::until("it copies", async || back.join("moved.json").exists().then_some(())).await;
    running.kill().expect("it is ours");
    running.wait().expect("it is ours");
    let refusal = start_refused(&["--data-dir", back.to_str().expect("text")], &[]);
    assert!(refusal.contains("not whole"), "{refusal}");
    let mut abandoning = command("embedded", &back, &broken);
    let done = abandoning.arg("--abandon").output().expect("the CLI starts");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(!back.join("store").exists() && !back.join("catalog.db").exists());
    let mut abandoning = command("embedded", &back, &broken);
    let (code, said) = refused(&abandoning.arg("--abandon").output().expect("the CLI starts"));
    assert!(code == 2 && said.contains("nothing to abandon"), "{code}: {said}");
    let serving = Broker::with(Settings::new().on(&broken, "a")).await;
    assert_eq!(serving.consume("large", "g").limit(100).await.len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_moved_is_refused_with_what_to_do() {
    let (used, fresh) = (Postgres::shared_with_tables("moved_used"), Postgres::shared().database("moved_bare"));
    let dir = tempfile::tempdir().expect("the system gives a temporary folder");
    let (code, said) = refused(&migrate("postgres", &dir.path().join("nothing"), &used));
    assert!(code == 2 && said.contains("no data directory"), "{code}: {said}");
    let mut broker = Broker::with(Settings::new()).await;
    broker.create_topic("orders", "Queue").await;
    assert!(broker.stop().await.success());
    let (code, said) = refused(&migrate("postgres", &broker.data_dir(), &fresh));
    assert!(code == 5 && said.contains("sluice migrate up"), "{code}: {said}");
    let mut there = Broker::with(Settings::new().on(&used, "a")).await;
    there.create_topic("orders", "Queue").await;
    assert!(there.stop().await.success());
    let (code, said) = refused(&migrate("postgres", &broker.data_dir(), &used));
    assert!(code == 2 && said.contains("is not empty"), "{code}: {said}");
    // Nothing was marked by that.
    broker.restart().await;
    broker.publish("orders", "still here").await;
    there.restart().await;
    there.publish("orders", "still here").await;
}

/// Ways in which a target can be other than its source, and back.
const TAMPERED: [(&str, &str); 8] = [
    ("UPDATE messages SET stamp = stamp + 1", "UPDATE messages SET stamp = stamp - 1"),
    ("UPDATE messages SET expires = 1 WHERE seq = 0", "UPDATE messages SET expires = NULL WHERE seq = 0"),
    ("UPDATE scheduled SET due = due + 1", "UPDATE scheduled SET due = due - 1"),
    ("UPDATE retries SET attempts = attempts + 1", "UPDATE retries SET attempts = attempts - 1"),
    (
        "UPDATE cursors SET nexts[1] = 1 WHERE grp = (SELECT max(grp) FROM cursors)",
        "UPDATE cursors SET nexts[1] = 0 WHERE grp = (SELECT max(grp) FROM cursors)",
    ),
    (
        "UPDATE plugin_values SET value = value || decode('00', 'hex')",
        "UPDATE plugin_values SET value = substring(value FOR length(value) - 1)",
    ),
    (
        "CREATE TABLE kept AS SELECT * FROM dedup_outcomes; DELETE FROM dedup_outcomes WHERE at = (SELECT max(at) FROM dedup_outcomes)",
        "DELETE FROM dedup_outcomes; INSERT INTO dedup_outcomes SELECT * FROM kept",
    ),
    ("UPDATE group_totals SET acked = acked + 1", "UPDATE group_totals SET acked = acked - 1"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_reading_finds_whatever_is_not_the_same() {
    let (mut broker, _) = filled().await;
    assert!(broker.stop().await.success());
    let (url, clock) = (Postgres::shared_with_tables("moved_tampered"), Clock::system());
    let options = EmbeddedOptions::new(&broker.data_dir().join("store"), clock.clone());
    let source = EmbeddedStore::open(options).expect("the store opens");
    let connect = url.parse().expect("an address");
    let options = PostgresOptions { connect, connections_max: 4, node: "test".into(), clock: clock.clone() };
    let target = PostgresStore::open(options).await.expect("the store opens");
    let copied = async || {
        let bytes = AtomicU64::new(0);
        let count = |progress| {
            if let Progress::Did(more) = progress {
                bytes.fetch_add(more, Ordering::Relaxed);
            }
        };
        copy_messages(&source, &target, &clock, &count).await.expect("both work");
        bytes.into_inner()
    };
    let all = copied().await;
    assert!(all > 0 && copied().await >= all, "what is there already is told as copied");
    let same = async || {
        let compared = compare_messages(&source, &target, &|_| {}).await;
        compared.is_ok_and(|compared| compared.differing.is_empty() && compared.rest_is_same)
    };
    let mut sql = PgConnection::connect(&url).await.expect("the server answers");
    assert!(same().await);
    for (tampered, mended) in TAMPERED {
        sql.execute(sqlx::raw_sql(tampered)).await.expect("it is SQL");
        assert!(!same().await, "{tampered}");
        sql.execute(sqlx::raw_sql(mended)).await.expect("it is SQL");
        assert!(same().await, "{mended}");
    }
    sql.execute("DELETE FROM messages WHERE seq = 1").await.expect("it is SQL");
    assert!(!same().await, "a message is missing");
    // The catalog's tables, too.
    let file = Catalog::open(&broker.data_dir().join("catalog.db"), clock.clone()).await.expect("it opens");
    let database = Catalog::connect(&url.parse().expect("an address"), clock).await.expect("it opens");
    let shape = database.shape(&file).await.expect("both are of this version");
    file.copy_to(&database, &shape).await.expect("both work");
    let was = file.digests(&shape).await.expect("it can be read");
    assert_eq!(was, database.digests(&shape).await.expect("it can be read"));
    for tampered in [
        "UPDATE topics SET description = 'x'",
        "DELETE FROM audit_logs WHERE id = 1",
        "SELECT nextval('topic_ids_id_seq')",
    ] {
        let before = database.digests(&shape).await.expect("it can be read");
        sql.execute(tampered).await.expect("it is SQL");
        assert_ne!(before, database.digests(&shape).await.expect("it can be read"), "{tampered}");
    }
}
