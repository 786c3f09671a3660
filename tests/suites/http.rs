//! The HTTP contract: problem documents for every way to be wrong, roles and scopes, limits, and a stop that finishes what
//! is in flight. Invariant: each expectation is a line of the API's contract.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use sluice_tests::servers::free_port;
use sluice_tests::{Broker, Client, Settings, wait};

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

#[tokio::test]
async fn what_cannot_be_answered_is_a_problem_that_says_so() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;

    broker.get("/nowhere").await.expect_problem(404, "NOT_FOUND");
    broker.get("/topics/absent").await.expect_problem(404, "NOT_FOUND");
    let answer = broker.send(Method::PUT, "/messages/publish", JSON, "{}").await;
    answer.expect_problem(405, "METHOD_NOT_ALLOWED");
    assert!(answer.header("allow").is_some_and(|allow| allow.contains("POST")), "{answer}");
    let answer = broker.send(Method::GET, "/topics", &[("accept", "text/html")], "").await;
    answer.expect_problem(406, "NOT_ACCEPTABLE");
    let answer = broker.send(Method::POST, "/topics", &[("content-type", "text/xml")], "<a/>").await;
    answer.expect_problem(415, "UNSUPPORTED_MEDIA_TYPE");
    for broken in ["", "{", "[1,", "nul", "\u{feff}{}", r#"{"name":"a","name":"b"}"#] {
        let answer = broker.send(Method::POST, "/topics", JSON, broken).await;
        assert!(matches!(answer.status, 400), "{broken}: {answer}");
    }
    broker.send(Method::POST, "/topics", JSON, "{").await.expect_problem(400, "MALFORMED_JSON");
    broker.get("/topics?nonsense=1").await.expect_problem(400, "VALIDATION_ERROR");
    broker.post("/topics", &json!({"name": "orders", "type": "Queue"})).await.expect_problem(409, "CONFLICT");
}

#[tokio::test]
async fn all_faults_of_a_request_are_named_at_once_by_pointer() {
    let broker = Broker::start().await;
    let topic = json!({"name": "not a name", "type": "Heap", "partitionCount": 65, "surprise": 1});
    let problem = broker.post("/topics", &topic).await.expect_problem(400, "VALIDATION_ERROR");
    assert!(!problem["errors"].as_array().expect("faults are listed").is_empty(), "{problem}");

    let topic = json!({"name": "not a name", "type": "Queue", "partitionCount": 65, "retentionPeriod": "PT0S"});
    let problem = broker.post("/topics", &topic).await.expect_problem(400, "VALIDATION_ERROR");
    assert_eq!(pointers(&problem), ["/name", "/partitionCount", "/retentionPeriod"], "{problem}");

    let publish = json!({"topicName": "", "payload": "{}", "priority": 10, "delay": "P367D"});
    let problem = broker.post("/messages/publish", &publish).await.expect_problem(400, "VALIDATION_ERROR");
    assert_eq!(pointers(&problem), ["/delay", "/priority", "/topicName"], "{problem}");
}

fn pointers(problem: &Value) -> Vec<&str> {
    let faults = problem["errors"].as_array().expect("faults are listed");
    let mut pointers: Vec<&str> =
        faults.iter().map(|fault| fault["pointer"].as_str().expect("each names its place")).collect();
    pointers.sort_unstable();
    pointers
}

#[tokio::test]
async fn a_role_may_do_what_it_is_for_and_a_scope_limits_it() {
    let broker = Broker::start().await;
    broker.create_topic("orders.eu", "Queue").await;
    broker.create_topic("invoices", "Queue").await;

    let producer = broker.producer("orders.*");
    producer.publish("orders.eu", json!({"a": 1})).await;
    producer.publish("invoices", json!({})).answer().await.expect_problem(403, "FORBIDDEN");
    producer.consume("orders.eu", "g").answer().await.expect_problem(403, "FORBIDDEN");
    producer.get("/topics/orders.eu").await.expect(200);

    let consumer = broker.consumer("orders.*");
    consumer.consume("orders.eu", "g").await[0].ack().await;
    consumer.consume("invoices", "g").answer().await.expect_problem(403, "FORBIDDEN");
    let problem = consumer.publish("orders.eu", json!({})).answer().await.expect_problem(403, "FORBIDDEN");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("Producer")), "names the role: {problem}");

    let viewer = broker.viewer();
    viewer.get("/topics").await.expect(200);
    viewer.post("/topics", &json!({"name": "t", "type": "Queue"})).await.expect_problem(403, "FORBIDDEN");
    viewer.delete("/topics/invoices").await.expect_problem(403, "FORBIDDEN");
    producer.delete("/topics/orders.eu").await.expect_problem(403, "FORBIDDEN");
    broker.delete("/topics/invoices").await.expect(204);
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_costs_anything() {
    let broker = Broker::start().await;
    let topic = json!({"name": "small", "type": "Queue", "maxMessageSize": 1000});
    broker.post("/topics", &topic).await.expect(201);
    broker.publish("small", "x".repeat(1000)).await;
    let answer = broker.publish("small", "x".repeat(1001)).answer().await;
    answer.expect_problem(413, "MESSAGE_TOO_LARGE");
    let answer = broker.send(Method::POST, "/messages/publish", JSON, vec![b' '; 17 * 1024 * 1024]).await;
    answer.expect_problem(413, "MESSAGE_TOO_LARGE");
    let long = "x".repeat(40 * 1024);
    let answer = broker.send(Method::GET, "/topics", &[("x-long", &long)], "").await;
    assert_eq!(answer.status, 431, "{answer}");
    let answer = broker.get(&format!("/topics?x={long}")).await;
    assert!(matches!(answer.status, 414 | 431), "{answer}");
    let headers = (0..65).fold(broker.publish("small", "x"), |publish, n| publish.header(&format!("h{n}"), "v"));
    headers.answer().await.expect_problem(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn rates_are_limited_per_subject_when_they_are_set() {
    let broker = Broker::with(Settings::new().env("RateLimiting__Publish", "3")).await;
    broker.create_topic("orders", "Queue").await;
    for _ in 0..3 {
        let answer = broker.publish("orders", json!({})).answer().await;
        answer.expect(202);
        assert_eq!(answer.header("x-ratelimit-limit"), Some("3"), "{answer}");
    }
    let answer = broker.publish("orders", json!({})).answer().await;
    answer.expect_problem(429, "RATE_LIMITED");
    broker.producer("*").publish("orders", json!({})).await;
    broker.clock().advance(Duration::from_secs(60)).await;
    broker.publish("orders", json!({})).await;
}

#[tokio::test]
async fn one_key_stores_one_message_and_another_body_under_it_is_a_conflict() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let first = broker.publish("orders", json!({"n": 1})).idempotency_key("k").await;
    let again = broker.publish("orders", json!({"n": 1})).idempotency_key("k").await;
    assert_eq!((again.status.as_str(), &again.message_id), ("Duplicate", &first.message_id));
    let other = broker.publish("orders", json!({"n": 2})).idempotency_key("k").answer().await;
    other.expect_problem(409, "CONFLICT");
    assert_eq!(broker.consume("orders", "g").await.len(), 1);
}

#[tokio::test]
async fn a_changed_thing_is_only_overwritten_by_who_has_seen_it() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let seen = broker.get("/topics/orders").await;
    let etag = seen.header("etag").expect("changeable things carry an ETag").to_owned();
    let change = json!({"name": "orders", "type": "Queue", "description": "changed"}).to_string();
    let headers = [("content-type", "application/json"), ("if-match", etag.as_str())];
    broker.send(Method::PUT, "/topics/orders", &headers, change.clone()).await.expect(200);
    let stale = broker.send(Method::PUT, "/topics/orders", &headers, change).await;
    stale.expect_problem(412, "PRECONDITION_FAILED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_loses_nothing_that_was_accepted_and_cuts_no_answer_off() {
    let mut broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let under_way = Arc::new(AtomicUsize::new(0));
    let publishers: Vec<_> = (0..8)
        .map(|publisher| tokio::spawn(publish_until_refused(broker.admin(), publisher, under_way.clone())))
        .collect();
    wait::until("publishes are under way", async || (under_way.load(Ordering::SeqCst) >= 100).then_some(())).await;
    let status = broker.stop().await;
    assert!(status.success(), "a stop that was asked for ends with 0: {status}");
    let mut accepted = Vec::new();
    for publisher in publishers {
        accepted.extend(publisher.await.expect("a publisher ends"));
    }
    broker.restart().await;
    let stored = broker.consume("orders", "g").collect(accepted.len()).await;
    let stored: BTreeSet<&str> = stored.iter().map(sluice_tests::Delivery::payload).collect();
    let lost: Vec<&String> = accepted.iter().filter(|tag| !stored.contains(tag.as_str())).collect();
    assert!(lost.is_empty(), "accepted and gone: {lost:?}");
}

#[tokio::test]
async fn another_port_serves_the_same_over_both_versions_of_http_until_the_stop() {
    let port = free_port();
    let mut broker = Broker::with(Settings::new().env("Messaging__BrokerPort", &port.to_string())).await;
    let url = format!("http://127.0.0.1:{port}");
    let inside = Client::new(&url, broker.admin().token());
    inside.create_topic("orders", "Queue").await;
    // At both at once.
    let publishing = async |client: &Client| {
        for n in 0..20 {
            client.publish("orders", n).await;
        }
    };
    tokio::join!(publishing(&broker), publishing(&inside));
    broker.consume("orders", "g").drain(40).await;
    let http2 = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
    let answer = http2.get(format!("{url}/health/live")).send().await.expect("it answers");
    assert_eq!((answer.status().as_u16(), answer.version()), (200, http::Version::HTTP_2));
    assert!(broker.stop().await.success());
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err(), "nobody listens there any more");
}

/// Publishes one after the other until the broker says that it is stopping or nobody listens; answers what was accepted.
async fn publish_until_refused(client: Client, publisher: usize, count: Arc<AtomicUsize>) -> Vec<String> {
    let mut accepted = Vec::new();
    loop {
        let tag = format!("{publisher}-{}", accepted.len());
        match client.publish("orders", tag.as_str()).try_answer().await {
            Ok(answer) if answer.status == 202 => accepted.push(tag),
            Ok(answer) => {
                answer.expect_problem(503, "SHUTTING_DOWN");
                return accepted;
            }
            Err(error) => {
                // Nothing was sent: no connection, or a kept one that the broker had closed before.
                assert!(!error.is_body() && !error.is_decode(), "an answer was cut off: {error:?}");
                return accepted;
            }
        }
        count.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_long_poll_does_not_hold_up_a_stop() {
    let mut broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let waiting = broker.consume("orders", "g").wait(30);
    let poll = tokio::spawn(async move { waiting.try_answer().await });
    // Whether the poll has arrived or not by now, the stop must not take as long as it would.
    broker.get("//health/live").await.expect(200);
    broker.ask_to_stop();
    let status = broker.stopped_within(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}");
    if let Ok(answer) = poll.await.expect("the poll ends") {
        assert!(matches!(answer.status, 200 | 503), "{answer}");
    }
}
