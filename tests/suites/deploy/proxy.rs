//! The proxy of the production's compose file, as it is configured, before three real brokers on a real PostgreSQL. Invariant:
//! only addresses, ports, and how many connections there may be are changed.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::json;
use sluice_tests::outside::said;
use sluice_tests::servers::{Haproxy, Postgres, free_port};
use sluice_tests::{Broker, Client, Settings, binary, wait};

use super::{PRODUCTION, compose, folder, text, words};

/// The configuration with these servers, and the addresses of its two sides.
async fn proxy(servers: &[String]) -> (Haproxy, String) {
    let config = text(&folder().join("haproxy.cfg"));
    let line = config.lines().find(|line| line.trim().starts_with("server-template ")).expect("brokers");
    let how = line.split("messaging-api:5000").nth(1).and_then(|how| how.split(" resolvers").next()).expect("checks");
    let lines: Vec<String> =
        servers.iter().enumerate().map(|(number, at)| format!("    server broker{number} {at}{how}")).collect();
    let [api, own] = [(); 2].map(|()| free_port());
    assert!(config.contains("    maxconn 20000\n"), "{config}");
    let config = config
        // It does not start where it may not open two files for each.
        .replace("    maxconn 20000\n", "    maxconn 500\n")
        .replace(line, &lines.join("\n"))
        .replace("bind :5000", &format!("bind 127.0.0.1:{api}"))
        .replace("bind :8404", &format!("bind 127.0.0.1:{own}"));
    let proxy = Haproxy::start(&config, &format!("http://127.0.0.1:{own}/health")).await;
    (proxy, format!("http://127.0.0.1:{api}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_brokers_behind_the_proxy_are_one_and_one_that_goes_is_not_missed() {
    let server = Postgres::shared();
    let url = server.database("deploy");
    let name = url.rsplit('/').next().expect("a database").to_owned();
    let services = compose(PRODUCTION)["services"].clone();
    // The words of the compose file, for the server here.
    let database = services["migrate"]["environment"]["ConnectionStrings__PostgreSQL"].as_str().expect("words");
    let database = database
        .replace("Host=postgres;", &format!("Host=127.0.0.1;Port={};", server.port()))
        .replace("Database=messaging;", &format!("Database={name};"));
    let migrated = Command::new(binary::sluice())
        .args(words(&services["migrate"]["command"]))
        .env("ConnectionStrings__PostgreSQL", &database)
        .output()
        .expect("sluice starts");
    assert!(migrated.status.success(), "{}", said(&migrated));
    let mut brokers = Vec::new();
    for node in ["a", "b", "c"] {
        brokers.push(Broker::with(Settings::new().on(&database, node)).await);
    }
    let addresses: Vec<String> =
        brokers.iter().map(|broker| broker.url().trim_start_matches("http://").to_owned()).collect();
    let (_proxy, address) = proxy(&addresses).await;
    let client = Client::new(&address, brokers[0].admin().token());

    // In turn.
    client.create_topic("orders", "Queue").await;
    client.subscribe("orders", "g").await;
    for n in 0..12 {
        client.publish("orders", format!("order {n}")).await;
    }
    for broker in &brokers {
        assert!(broker.metric_sum("sluice_published_messages_total").await >= 2.0, "each has its share");
    }
    client.consume("orders", "g").drain(12).await;
    assert_eq!(client.get("//metrics").await.status, 404);

    // Bodies as large as brokers take them, and no larger.
    let large = "x".repeat(900 << 10);
    let batch: Vec<_> = (0..12).map(|_| json!({"topicName": "orders", "payload": large})).collect();
    client.post("/messages/publish/batch", &json!({"messages": batch})).await.expect(200);
    client.consume("orders", "g").drain(12).await;

    // Events come when they happen, not when a buffer is full.
    client.create_topic("news", "PubSub").await;
    client.subscribe("news", "readers").await;
    let mut stream = client.stream("news", "readers", 10).await;
    client.publish("news", "first").await;
    assert_eq!(stream.next().await.payload(), "first");
    drop(stream);

    // Who hangs up in a long poll is given nothing.
    let gone = Client::new(&address, client.token());
    let waiting = tokio::spawn(async move { drop(gone.consume("orders", "g").wait(30).try_answer().await) });
    wait::until("somebody waits", async || in_flight(&brokers).await.then_some(())).await;
    waiting.abort();
    wait::until("nobody waits", async || (!in_flight(&brokers).await).then_some(())).await;
    client.publish("orders", "for who is there").await;
    let mut got = client.consume("orders", "g").collect(1).await;
    assert_eq!(got[0].message.delivery_attempt, 1);
    got.remove(0).ack().await;

    // One is stopped: what it has begun it finishes, and what it does not take any more the others take. It may close a connection
    // at the moment at which the proxy sends the next request on it: who repeats that one under its key is not stored twice.
    let publishers: Vec<_> = (0..4)
        .map(|publisher| {
            // Each with connections of its own.
            let client = Client::new(&address, client.token());
            tokio::spawn(async move {
                for n in 0..60 {
                    let key = format!("{publisher} {n}");
                    let publish = || client.publish("news", format!("while one stops {n}")).idempotency_key(&key);
                    let answer = match publish().try_answer().await {
                        Ok(answer) => answer,
                        Err(_) => publish().answer().await,
                    };
                    answer.expect(202);
                }
            })
        })
        .collect();
    assert!(brokers[2].stop().await.success());
    for publisher in publishers {
        publisher.await.expect("every publish is taken");
    }
    assert_eq!(client.get("/topics/news/metrics").await.expect(200)["messages"], 1 + 4 * 60);

    // One is lost: the others are asked instead, also before it is known.
    brokers[1].kill();
    for n in 0..30 {
        client.publish("orders", format!("after {n}")).answer().await.expect(202);
    }
    client.consume("orders", "g").drain(30).await;
    // And when it is back, it is asked again.
    brokers[1].restart().await;
    wait::until("it is asked again", async || {
        client.publish("orders", "again").answer().await;
        (brokers[1].metric_sum("sluice_published_messages_total").await > 0.0).then_some(())
    })
    .await;
}

/// Whether one of these has a request that waits, beside the one that asks.
async fn in_flight(brokers: &[Broker]) -> bool {
    for broker in brokers {
        if broker.metric("sluice_http_requests_in_flight").await.unwrap_or_default() > 1.5 {
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_that_was_sent_is_not_sent_again() {
    // Says that it is ready, and hangs up on all else once it has read it.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it has one").to_string();
    let posts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&posts);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut read = [0; 4096];
            let length = stream.read(&mut read).unwrap_or_default();
            if read[..length].starts_with(b"POST") {
                counted.fetch_add(1, Ordering::SeqCst);
            } else {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            }
        }
    });
    let (_proxy, proxied) = proxy(&[address.clone(), address]).await;
    let client = Client::new(&proxied, "");
    let answer = client.try_send(Method::POST, "/messages/publish", &[], "{}").await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 502));
    wait::pause(Duration::from_millis(300)).await;
    assert_eq!(posts.load(Ordering::SeqCst), 1);
}
