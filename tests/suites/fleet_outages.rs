//! What happens to a fleet when something of it fails: each heals by itself. Invariant: what was acknowledged is there, once,
//! whoever failed on the way; who could not be served was told to come again.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use sluice_tests::broker::signal;
use sluice_tests::client::Client;
use sluice_tests::link::{Link, State};
use sluice_tests::servers::{Options, Postgres, libfaketime};
use sluice_tests::steady::{Again, Counts, Steady, difference};
use sluice_tests::{Broker, Receiver, Settings, wait};
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

const TOPIC: &str = "orders";
const NODES: [&str; 2] = ["a", "b"];
/// A broker that was not seen for as long is lost to the others.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// Each way of what a broker and its database say, where that is slow.
const SLOWLY: Duration = Duration::from_millis(20);
/// Messages that an endpoint may get twice: those under way when something failed.
const TWICE_MAX: usize = 64;

/// Two brokers on a database of their own server, under load.
struct Bed {
    postgres: Postgres,
    brokers: [Broker; 2],
    load: Steady,
    /// Gets each message, too.
    receiver: Receiver,
}

impl Bed {
    async fn with(options: Options) -> Bed {
        let postgres = Postgres::start(options).await;
        let url = postgres.url();
        postgres.make_tables(&url);
        Bed::on(postgres, [url.clone(), url]).await
    }

    async fn on(postgres: Postgres, urls: [String; 2]) -> Bed {
        let [a, b] = [0, 1].map(|at| Broker::with(Settings::new().on(&urls[at], NODES[at])));
        let brokers = [a.await, b.await];
        let topic = json!({"name": TOPIC, "type": "PubSub", "deliveryGuarantee": "ExactlyOnce"});
        brokers[0].post("/topics", &topic).await.expect(201);
        let receiver = Receiver::start().await;
        brokers[0].subscribe(TOPIC, "g").await;
        brokers[1].subscribe_push(TOPIC, "pushed", &receiver.url(), json!({})).await;
        let clients: Vec<&Client> = brokers.iter().map(|broker| &**broker).collect();
        let load = Steady::begin(TOPIC, &clients, 2, Again::Refused);
        load.goes_on(20).await;
        Bed { postgres, brokers, load, receiver }
    }

    /// Both serve again, and have what was acknowledged.
    /// What an endpoint has answered may not have reached the store before it failed: it comes again, once.
    async fn healed(self) {
        let Bed { postgres: _postgres, brokers, load, receiver } = self;
        load.goes_on(20).await;
        for broker in &brokers {
            wait::until("it is ready again", async || (broker.get("//health/ready").await.status == 200).then_some(()))
                .await;
        }
        let expected = load.end().await;
        let mut got = Counts::new();
        for delivery in brokers[1].consume(TOPIC, "g").limit(1000).drain(expected.len()).await {
            *got.entry(delivery.payload().to_owned()).or_default() += 1;
        }
        brokers[0].consume(TOPIC, "g").expect_nothing().await;
        assert!(got == expected, "{}", difference(&got, &expected));
        let pushed = || {
            let mut pushed = Counts::new();
            for request in receiver.requests() {
                *pushed.entry(request.message().payload.expect("it is text")).or_default() += 1;
            }
            pushed
        };
        wait::within(Duration::from_secs(60), "the endpoint has all", async || {
            (pushed().len() >= expected.len()).then_some(())
        })
        .await;
        let pushed = pushed();
        let twice = pushed.values().filter(|times| **times > 1).count();
        assert!(
            pushed.keys().all(|known| expected.contains_key(known)) && twice <= TWICE_MAX,
            "{}",
            difference(&pushed, &expected)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_crashes_is_waited_for() {
    let mut bed = Bed::with(Options::new()).await;
    for _ in 0..2 {
        bed.postgres.kill();
        tokio::time::sleep(Duration::from_millis(700)).await;
        bed.postgres.restart().await;
        bed.load.goes_on(20).await;
    }
    bed.healed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_fails_over_to_its_synchronous_standby_loses_nothing() {
    let mut first = Postgres::start(Options::new()).await;
    let url = first.url();
    first.make_tables(&url);
    let standby = first.synchronous_standby().await;
    let link = Link::to(SocketAddr::from(([127, 0, 0, 1], first.port()))).await;
    let at_standby = SocketAddr::from(([127, 0, 0, 1], standby.port()));
    first.kill();
    first.restart().await;
    let bed = Bed::on(standby, [link.url(&url), link.url(&url)]).await;
    first.kill();
    tokio::time::sleep(Duration::from_millis(500)).await;
    bed.postgres.promote().await;
    link.lead_to(at_standby);
    bed.load.goes_on(50).await;
    bed.healed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_a_server_that_only_reads_are_not_kept() {
    let first = Postgres::start(Options::new()).await;
    let url = first.url();
    first.make_tables(&url);
    let standby = first.synchronous_standby().await;
    let [at_first, at_standby] = [&first, &standby].map(|server| SocketAddr::from(([127, 0, 0, 1], server.port())));
    let link = Link::to(at_first).await;
    let bed = Bed::on(first, [link.url(&url), link.url(&url)]).await;
    // As a name does that a fail-over has not moved yet.
    link.lead_to(at_standby);
    for broker in &bed.brokers {
        wait::until("it serves nothing", async || (broker.get("//health/ready").await.status == 503).then_some(()))
            .await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    link.lead_new_to(at_first);
    bed.healed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_comes_after_its_brokers_is_waited_for() {
    let mut postgres = Postgres::start(Options::new()).await;
    let url = postgres.url();
    postgres.make_tables(&url);
    postgres.kill();
    let starting = Broker::with(Settings::new().on(&url, "a"));
    let later = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        postgres.restart().await;
    };
    let (broker, ()) = tokio::join!(starting, later);
    broker.create_topic(TOPIC, "Queue").await;
    broker.publish(TOPIC, "x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_answers_nobody_for_a_while_is_waited_for() {
    let bed = Bed::with(Options::new()).await;
    bed.postgres.pause();
    tokio::time::sleep(LOST_AFTER + Duration::from_secs(2)).await;
    for broker in &bed.brokers {
        assert_eq!(broker.get("//health/live").await.status, 200, "a restart would not help");
        assert_eq!(broker.get("//health/ready").await.status, 503);
    }
    bed.postgres.resume();
    bed.healed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_a_connection_left_is_waited_for() {
    let bed = Bed::with(Options::new().set("max_connections", "60")).await;
    // What brokers have, they keep; what they would open more, they are refused.
    let mut taken = Vec::new();
    while let Ok(connection) = PgConnection::connect(&bed.postgres.url()).await {
        taken.push(connection);
        assert!(taken.len() < 60);
    }
    bed.load.goes_on(20).await;
    drop(taken);
    bed.healed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_cut_off_or_slow_leaves_the_work_to_the_other() {
    let postgres = Postgres::start(Options::new()).await;
    let url = postgres.url();
    postgres.make_tables(&url);
    let link = Link::to(SocketAddr::from(([127, 0, 0, 1], postgres.port()))).await;
    let bed = Bed::on(postgres, [link.url(&url), url]).await;
    for state in [State::Cut, State::Slow(SLOWLY), State::Silent] {
        link.be(state);
        tokio::time::sleep(LOST_AFTER).await;
        bed.load.goes_on(20).await;
        if state != State::Slow(SLOWLY) {
            assert_eq!(bed.brokers[1].get("/brokers").await.expect(200)["total"], 1);
            bed.brokers[0].publish(TOPIC, "x").answer().await.expect_problem(503, "STORE_UNAVAILABLE");
        }
        link.be(State::Good);
        wait::until("both are there", async || {
            (bed.brokers[1].get("/brokers").await.expect(200)["total"] == 2).then_some(())
        })
        .await;
    }
    bed.healed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_paused_beyond_its_leases_comes_back_in_step() {
    let bed = Bed::with(Options::new()).await;
    let [a, b] = &bed.brokers;
    let paused = a.process_id();
    assert!(signal(paused, "STOP"));
    wait::until("the other one counts it no more", async || {
        (b.get("/brokers").await.expect(200)["total"] == 1).then_some(())
    })
    .await;
    let keep = json!([{"name": "f", "plugin": "filter", "config": {"headerMatches": {"keep": "1"}}}]);
    b.create_topic("filtered", "Queue").await;
    b.put_pipeline("filtered", keep).await;
    assert!(signal(paused, "CONT"));
    // The first that it takes is judged by what was set while it was away.
    let answer = wait::until("it serves again", async || {
        let answer = a.publish("filtered", "1").answer().await;
        (answer.status == 202).then_some(answer)
    })
    .await;
    assert_eq!(answer.json()["status"], "Dropped");
    bed.healed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_clock_is_wrong_by_minutes_goes_by_the_databases() {
    let postgres = Postgres::start(Options::new()).await;
    let url = postgres.url();
    postgres.make_tables(&url);
    let wrong = |node: &str, by: &str| {
        let settings = Settings::new().on(&url, node).env("FAKETIME", by).env("DONT_FAKE_MONOTONIC", "1");
        let preload = libfaketime();
        assert!(preload.exists(), "{}", preload.display());
        Broker::with(settings.env("LD_PRELOAD", &preload.display().to_string()))
    };
    let (ahead, behind) = (wrong("ahead", "+600s").await, wrong("behind", "-600s").await);
    let skew = async |broker: &Broker| broker.metric("sluice_clock_skew_seconds").await.expect("it is told");
    assert!((590.0..610.0).contains(&skew(&ahead).await) && (-610.0..-590.0).contains(&skew(&behind).await));
    assert!(ahead.log().contains("this machine's clock is not the database's"));
    ahead.create_topic(TOPIC, "Queue").await;
    // What is to come in a second comes in a second, and what lives for a minute is there, whoever took it and whoever is asked.
    for (broker, payload) in [(&ahead, "by ahead"), (&behind, "by behind")] {
        broker.publish(TOPIC, payload).field("delay", "PT1S").field("ttl", "PT1M").await;
    }
    let mut got: Vec<String> = Vec::new();
    for delivery in behind.consume(TOPIC, "g").wait(10).collect(2).await {
        let at =
            delivery.message.ack_deadline.as_ref().expect("it is leased").parse::<jiff::Timestamp>().expect("a time");
        let left = at.as_second() - behind.clock().now_ms() / 1000;
        assert!((0..=60).contains(&left), "a lease ends in {left} s");
        got.push(delivery.payload().to_owned());
        ahead
            .post(
                &format!("/messages/{}/ack", delivery.id()),
                &json!({"consumerGroup": "g", "receipt": delivery.receipt()}),
            )
            .await
            .expect(200);
    }
    got.sort();
    assert_eq!(got, ["by ahead", "by behind"]);
}
