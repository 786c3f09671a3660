//! Redis beside a fleet. Invariant: what it is for, it does; killed, paused, full, emptied or wrongly set, no request fails by it,
//! and it helps again by itself. Its password is looked for in everything that a broker says.

use std::process::Command;

use sluice_tests::servers::{Options, Postgres, Redis, Sentinel};
use sluice_tests::token::Claims;
use sluice_tests::{Broker, Client, Settings, binary, wait};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};

const HEARD: &str = "sluice_redis_wakes_total{of=\"heard\"}";
const CHANGES: &str = "sluice_redis_wakes_total{of=\"changes\"}";
const BY_FLEET: &str = "sluice_rate_limited_requests_total{by=\"fleet\"}";
const BY_BROKER: &str = "sluice_rate_limited_requests_total{by=\"broker\"}";
const FAILURES: &str = "sluice_redis_failures_total";

fn settings(database: &str, node: &str, redis: &str) -> Settings {
    Settings::new().on(database, node).env("ConnectionStrings__Redis", redis)
}

async fn two(name: &str, redis: &str, with: impl Fn(Settings) -> Settings) -> [Broker; 2] {
    let database = Postgres::shared_with_tables(name);
    let [a, b] = ["a", "b"].map(|node| Broker::with(with(settings(&database, node, redis))));
    [a.await, b.await]
}

async fn is(broker: &Broker, word: &str) {
    wait::until(&format!("Redis is {word} to a broker"), async || {
        let health = broker.get("//health").await.expect(200);
        (health["parts"]["redis"] == word).then_some(())
    })
    .await;
}

async fn metric(broker: &Client, series: &str) -> f64 {
    broker.metric(series).await.unwrap_or_else(|| panic!("{series} is there"))
}

/// A message that is published on one broker while somebody waits for it on the other.
async fn exchange(a: &Broker, b: &Broker, topic: &str) {
    let consume = b.consume(topic, "g").wait(20);
    let publishing = async {
        wait::taken_up().await;
        a.publish(topic, "x").answer().await.expect(202);
    };
    let (answer, ()) = tokio::join!(consume.answer(), publishing);
    let deliveries = consume.deliveries(&answer);
    assert_eq!(deliveries.len(), 1);
    deliveries[0].ack().await;
}

/// Messages that are published on one broker until the other one has been woken by it through Redis.
async fn wakes_from_one_reach_the_other(a: &Broker, b: &Broker, topic: &str) {
    let before = metric(b, HEARD).await;
    wait::until("who waits on one broker is woken by the other", async || {
        exchange(a, b, topic).await;
        (metric(b, HEARD).await > before).then_some(())
    })
    .await;
}

fn says_no_password(broker: &Broker) {
    let log = broker.log();
    assert!(!log.contains("redis@word") && !log.contains("redis%40word"), "{log}");
}

fn refused_start(database: &str, redis: &str) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut broker = Command::new(binary::sluice());
    broker.args(["serve", "--profile", "development", "--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.path());
    broker
        .env("SLUICE__POSTGRES__URL", database)
        .env("SLUICE__REDIS__URL", redis)
        .env("JWT__Secret", "of thirty-two bytes, or some more");
    let ended = broker.output().expect("it starts");
    assert!(!ended.status.success(), "it must not start");
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_forgets_is_refused_at_start_and_not_used_later_until_it_is_mended() {
    let redis = Redis::start(Options::new().set("maxmemory", "6mb").set("maxmemory-policy", "allkeys-lru")).await;
    let database = Postgres::shared_with_tables("forgetful");
    let said = refused_start(&database, &redis.url());
    assert!(said.contains("maxmemory-policy is 'allkeys-lru'"), "{said}");
    assert!(said.contains("Set maxmemory-policy noeviction") && !said.contains("redis%40word"), "{said}");
    assert_eq!(redis.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]), "OK");
    let broker = Broker::with(settings(&database, "a", &redis.url())).await;
    broker.create_topic("orders", "Queue").await;
    is(&broker, "Healthy").await;
    assert_eq!(redis.ask(&["CONFIG", "SET", "maxmemory-policy", "volatile-lru"]), "OK");
    is(&broker, "Degraded").await;
    assert_eq!(broker.get("//health").await.expect(200)["status"], "Degraded");
    broker.get("//health/ready").await.expect(200);
    broker.publish("orders", "x").answer().await.expect(202);
    assert!(broker.log().contains("maxmemory-policy is 'volatile-lru'"), "{}", broker.log());
    assert_eq!(redis.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]), "OK");
    is(&broker, "Healthy").await;
    // Full is another way not to keep what it is given.
    assert_eq!(redis.ask(&["SETRANGE", "big", "8000000", "x"]), "8000001");
    is(&broker, "Degraded").await;
    broker.publish("orders", "x").answer().await.expect(202);
    assert_eq!(redis.ask(&["DEL", "big"]), "1");
    is(&broker, "Healthy").await;
    says_no_password(&broker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_on_another_broker_is_woken_though_no_broker_looks() {
    let redis = Redis::start(Options::new()).await;
    let database = Postgres::shared_with_tables("woken");
    let [a, b] = ["a", "b"].map(|node| Broker::with(settings(&database, node, &redis.url())));
    let (a, b) = (a.await, b.await);
    a.create_topic("orders", "Queue").await;
    b.consume("orders", "g").expect_nothing().await;
    assert!(metric(&b, CHANGES).await >= 1.0, "the topic was made on the other broker");
    let heard = metric(&b, HEARD).await;
    // What a broker looks for now and again begins and ends with what is scheduled: it waits for this lock, a message does not.
    let mut lock = PgConnection::connect(&database).await.expect("the server answers");
    lock.execute("BEGIN; LOCK TABLE scheduled IN ACCESS EXCLUSIVE MODE").await.expect("it is free");
    let mut watching = PgConnection::connect(&database).await.expect("the server answers");
    wait::until("neither broker looks any more", async || {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND relation = 'scheduled'::regclass \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
        .fetch_one(&mut watching)
        .await
        .expect("the server answers");
        (waiting == 2).then_some(())
    })
    .await;
    for _ in 0..3 {
        exchange(&a, &b, "orders").await;
    }
    lock.execute("ROLLBACK").await.expect("the lock is given back");
    // Figures of topics count what is scheduled: they are told after the lock.
    assert!(metric(&a, "sluice_redis_wakes_total{of=\"told\"}").await >= 1.0);
    assert!(metric(&b, HEARD).await > heard);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_limit_counts_over_all_brokers() {
    let redis = Redis::start(Options::new()).await;
    let with = |settings: Settings| settings.env("RateLimiting__Publish", "5");
    let [a, b] = two("counted", &redis.url(), with).await;
    a.create_topic("orders", "Queue").await;
    let alone = async || metric(&a, BY_BROKER).await + metric(&b, BY_BROKER).await;
    // A machine that is too busy for an answer in time counts by broker; then a subject is counted again.
    for round in 0..10 {
        let claims = Claims::new(&format!("producer-{round}"), &["Producer"]);
        let (before, mut passed, mut left) = (alone().await, 0, Vec::new());
        for n in 0..12 {
            let answer = [&a, &b][n % 2].client(&claims).publish("orders", "x").answer().await;
            match answer.status {
                202 => passed += 1,
                _ => _ = answer.expect_problem(429, "RATE_LIMITED"),
            }
            left.push(answer.header("x-ratelimit-remaining").expect("each answer says it").to_owned());
        }
        if alone().await > before {
            continue;
        }
        assert_eq!((passed, &left[..6]), (5, &["4", "3", "2", "1", "0", "0"].map(str::to_owned)[..]));
        let keys = redis.ask(&["KEYS", "sluice:*:rate:publish:*"]);
        assert!(!keys.is_empty() && !keys.contains("producer"), "{keys}");
        assert!(metric(&a, BY_FLEET).await >= 6.0);
        // A server that has lost all counts gives whole minutes.
        redis.flush();
        return;
    }
    panic!("Redis has never answered in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_paused_killed_or_emptied_stops_nothing_and_helps_again() {
    let mut redis = Redis::start(Options::new()).await;
    let with = |settings: Settings| settings.env("RateLimiting__Publish", "100000");
    let [a, b] = two("without", &redis.url(), with).await;
    a.create_topic("orders", "Queue").await;
    wakes_from_one_reach_the_other(&a, &b, "orders").await;
    let works = async || {
        for n in 0..20 {
            [&a, &b][n % 2].publish("orders", "x").answer().await.expect(202);
        }
        assert_eq!(b.consume("orders", "g").drain(20).await.len(), 20);
    };
    redis.pause();
    works().await;
    for broker in [&a, &b] {
        is(broker, "Degraded").await;
        broker.get("//health/ready").await.expect(200);
    }
    let failures = metric(&a, FAILURES).await;
    works().await;
    // One that does not answer is not asked: who comes does not wait for it.
    assert_eq!(metric(&a, FAILURES).await, failures);
    redis.resume();
    for broker in [&a, &b] {
        is(broker, "Healthy").await;
    }
    wakes_from_one_reach_the_other(&a, &b, "orders").await;
    redis.kill();
    works().await;
    is(&a, "Degraded").await;
    redis.restart_empty().await;
    for broker in [&a, &b] {
        is(broker, "Healthy").await;
    }
    wakes_from_one_reach_the_other(&b, &a, "orders").await;
    redis.flush();
    works().await;
    let log = a.log();
    assert!(log.contains("Redis does not help") && log.contains("Redis helps again"), "{log}");
    for broker in [&a, &b] {
        says_no_password(broker);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_starts_without_its_redis_and_finds_it_later() {
    let mut redis = Redis::start(Options::new()).await;
    redis.kill();
    let [a, b] = two("later", &redis.url(), |settings| settings).await;
    assert_eq!(a.get("//health").await.expect(200)["parts"]["redis"], "Degraded");
    a.create_topic("orders", "Queue").await;
    a.publish("orders", "x").await;
    b.consume("orders", "g").drain(1).await;
    redis.restart().await;
    for broker in [&a, &b] {
        is(broker, "Healthy").await;
    }
    wakes_from_one_reach_the_other(&a, &b, "orders").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_helps_as_one_server_does_and_goes_on_without_one_of_its_own() {
    let mut nodes = Redis::start_cluster().await;
    let database = Postgres::shared_with_tables("clustered");
    let said = refused_start(&database, &nodes[0].url());
    assert!(said.contains("redis-cluster://"), "{said}");
    let with = |settings: Settings| settings.env("RateLimiting__Publish", "100000");
    let [a, b] = two("clustered", &Redis::cluster_url(&nodes), with).await;
    a.create_topic("orders", "Queue").await;
    for broker in [&a, &b] {
        is(broker, "Healthy").await;
    }
    wakes_from_one_reach_the_other(&a, &b, "orders").await;
    assert!(metric(&a, BY_FLEET).await >= 1.0);
    nodes[1].kill();
    for n in 0..20 {
        [&a, &b][n % 2].publish("orders", "x").answer().await.expect(202);
    }
    b.consume("orders", "g").drain(20).await;
    nodes[1].restart().await;
    for broker in [&a, &b] {
        is(broker, "Healthy").await;
        says_no_password(broker);
    }
    wakes_from_one_reach_the_other(&a, &b, "orders").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_master_that_a_sentinel_names_helps() {
    let redis = Redis::start(Options::new()).await;
    let sentinel = Sentinel::start(&redis, false).await;
    let [a, b] = two("watched", &sentinel.url(), |settings| settings).await;
    a.create_topic("orders", "Queue").await;
    for broker in [&a, &b] {
        is(broker, "Healthy").await;
        says_no_password(broker);
    }
    wakes_from_one_reach_the_other(&a, &b, "orders").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_master_helps_when_the_one_before_is_gone() {
    let follower = || Redis::start(Options::new().set("masterauth", "a/redis@word"));
    let (mut master, replica) = (follower().await, follower().await);
    assert_eq!(replica.ask(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]), "OK");
    let sentinel = Sentinel::start(&master, true).await;
    sentinel.knows(&replica).await;
    let [a, b] = two("succeeded", &sentinel.url(), |settings| settings).await;
    a.create_topic("orders", "Queue").await;
    for broker in [&a, &b] {
        is(broker, "Healthy").await;
    }
    master.kill();
    a.publish("orders", "x").answer().await.expect(202);
    b.consume("orders", "g").drain(1).await;
    sentinel.names(&replica).await;
    for broker in [&a, &b] {
        is(broker, "Healthy").await;
        says_no_password(broker);
    }
    wakes_from_one_reach_the_other(&a, &b, "orders").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_with_a_server_whose_certificate_is_right_alone() {
    let redis = Redis::start_with_tls().await;
    let ca = binary::repository().join("tests/data/tls/ca.pem").display().to_string();
    let [a, b] = two("encrypted", &redis.tls_url(), |settings| settings.env("SLUICE__REDIS__CA_FILE", &ca)).await;
    a.create_topic("orders", "Queue").await;
    for broker in [&a, &b] {
        is(broker, "Healthy").await;
    }
    wakes_from_one_reach_the_other(&a, &b, "orders").await;
    // By its words too, and trusted by nobody.
    let port = redis.tls_url().rsplit_once(':').expect("a port").1.to_owned();
    let words = format!("127.0.0.1:{port},password={},ssl=true,abortConnect=false", redis.password());
    let database = Postgres::shared_with_tables("distrusted");
    let distrusting = Broker::with(settings(&database, "c", &words)).await;
    assert_eq!(distrusting.get("//health").await.expect(200)["parts"]["redis"], "Degraded");
    assert!(distrusting.log().to_lowercase().contains("certificate"), "{}", distrusting.log());
    for broker in [&a, &b, &distrusting] {
        says_no_password(broker);
    }
}
