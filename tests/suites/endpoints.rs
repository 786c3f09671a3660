//! Webhooks' endpoints that ask who is there, that speak HTTP/2, and what is told of them: tokens, certificates, attempts,
//! figures. Invariant: secrets are looked for in everything that is shown, and certificates are checked by a real handshake.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::h2_receiver::{Act, H2Receiver};
use sluice_tests::raw_receiver::{Conduct, Identity};
use sluice_tests::receiver::Scripted;
use sluice_tests::{Broker, RawReceiver, Receiver, Settings, binary, wait};
use tokio::sync::Notify;

fn pem(name: &str) -> String {
    let path: PathBuf = binary::repository().join("tests/data/tls").join(name);
    std::fs::read_to_string(path).expect("a file of the repository")
}

fn client_certificate() -> Value {
    json!({"certificate": pem("client.pem"), "privateKey": pem("client.key")})
}

fn path_of(subscription: &Value) -> String {
    format!("/subscriptions/{}", subscription["subscriptionId"].as_str().expect("an id"))
}

async fn attempts(broker: &Broker, subscription: &Value) -> Vec<Value> {
    let listed = broker.get(&format!("{}/attempts", path_of(subscription))).await.expect(200);
    listed["attempts"].as_array().expect("a list").clone()
}

async fn attempted(broker: &Broker, subscription: &Value, count: usize) -> Vec<Value> {
    wait::until(&format!("{count} attempts"), async || {
        let attempts = attempts(broker, subscription).await;
        (attempts.len() >= count).then_some(attempts)
    })
    .await
}

#[tokio::test]
async fn a_bearer_token_goes_out_and_is_kept_until_it_is_taken_away() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    broker.create_topic("events", "PubSub").await;
    let authorization = json!({"type": "bearer", "token": "t0k3n"});
    let made = broker.subscribe_push("events", "g", &receiver.url(), json!({"authorization": authorization})).await;
    let path = path_of(&made);
    let redacted = json!({"type": "bearer", "token": "[redacted]"});
    assert_eq!(made["authorization"], redacted);
    // What is left out stays, and so does what stands for the token.
    for change in [json!({"maxRetries": 5}), json!({"authorization": redacted})] {
        assert_eq!(broker.put(&path, &change).await.expect(200)["authorization"], redacted);
    }
    broker.publish("events", "1").await;
    assert_eq!(receiver.received(1).await[0].header("authorization"), "Bearer t0k3n");
    let test = broker.post(&format!("{path}/test"), &json!({})).await;
    assert_eq!(test.expect(200)["request"]["headers"]["authorization"], "[redacted]");
    attempted(&broker, &made, 1).await;
    for shown in [path.clone(), "/subscriptions".to_owned(), format!("{path}/attempts"), "/audit-logs".to_owned()] {
        let text = broker.get(&shown).await.text();
        assert!(!text.contains("t0k3n"), "{shown}: {text}");
    }
    assert!(!broker.log().contains("t0k3n"));
    // A broker that is started again still knows it.
    let mut broker = broker;
    broker.stop().await;
    broker.restart().await;
    broker.publish("events", "2").await;
    assert_eq!(receiver.received(3).await[2].header("authorization"), "Bearer t0k3n");
    let without = broker.put(&path, &json!({"authorization": null})).await.expect(200);
    assert!(without.get("authorization").is_none(), "{without}");
    broker.publish("events", "3").await;
    assert!(!receiver.received(4).await[3].headers.contains_key("authorization"));
    let missing = broker.put(&path, &json!({"authorization": redacted})).await;
    assert_eq!(missing.expect_problem(400, "VALIDATION_ERROR")["errors"][0]["pointer"], "/authorization/token");
    let twice = json!({"authorization": authorization, "headers": {"AUTHORIZATION": "Basic eA=="}});
    let twice = broker.put(&path, &twice).await.expect_problem(400, "VALIDATION_ERROR");
    assert_eq!(twice["errors"][0]["pointer"], "/authorization");
}

#[tokio::test]
async fn an_endpoint_that_asks_for_a_certificate_is_shown_it() {
    let broker = Broker::start().await;
    let receiver = RawReceiver::start(Identity::AsksForCertificate, says_ok()).await;
    broker.create_topic("events", "PubSub").await;
    // The broker's system does not know the authority of the tests.
    let untrusted = broker.subscribe_push("events", "untrusted", &receiver.url(), json!({"maxRetries": 0})).await;
    let nobody = json!({"caCertificate": pem("ca.pem"), "maxRetries": 0});
    let nobody = broker.subscribe_push("events", "nobody", &receiver.url(), nobody).await;
    let both = json!({"caCertificate": pem("ca.pem"), "clientCertificate": client_certificate(), "maxRetries": 0});
    let known = broker.subscribe_push("events", "known", &receiver.url(), both).await;
    broker.publish("events", "1").await;
    for (subscription, outcome) in [(&untrusted, "retry"), (&nobody, "retry"), (&known, "delivered")] {
        let attempt = attempted(&broker, subscription, 1).await.remove(0);
        assert_eq!(attempt["outcome"], outcome, "{attempt}");
        if outcome == "retry" {
            let error = attempt["error"].as_str().expect("it says why");
            assert!(error.starts_with("TLS") || error.starts_with("CONNECTION_BROKEN"), "{error}");
        }
    }
    assert_eq!(receiver.requests(), 1, "who shows nothing gets no answer");
    let read = broker.get(&path_of(&known)).await;
    let shown = read.expect(200)["clientCertificate"].clone();
    assert_eq!(shown["notAfter"], "2120-01-01T00:00:00.000Z", "{shown}");
    assert_eq!(shown["sha256"].as_str().map(str::len), Some(64), "{shown}");
    assert!(!read.text().contains("PRIVATE KEY") && !broker.get("/audit-logs").await.text().contains("PRIVATE KEY"));
    // What is set later counts from the next delivery on.
    let set = json!({"clientCertificate": client_certificate(), "maxRetries": 3});
    broker.put(&path_of(&nobody), &set).await.expect(200);
    broker.publish("events", "2").await;
    let attempt = attempted(&broker, &nobody, 2).await.remove(0);
    assert_eq!(attempt["outcome"], "delivered", "{attempt}");
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_refused_when_they_are_set() {
    let broker = Broker::start().await;
    broker.create_topic("events", "PubSub").await;
    let body = |endpoint: &str, more: Value| {
        let mut body = json!({
            "topicName": "events", "consumerGroup": "g", "type": "Push", "consumerEndpoint": endpoint
        });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        body
    };
    let pair = |certificate: &str, key: &str| json!({"certificate": pem(certificate), "privateKey": pem(key)});
    let key = "/clientCertificate/privateKey";
    for (endpoint, more, pointer) in [
        ("http://127.0.0.1:9/", json!({"clientCertificate": client_certificate()}), "/clientCertificate"),
        ("http://127.0.0.1:9/", json!({"caCertificate": pem("ca.pem")}), "/caCertificate"),
        ("https://127.0.0.1:9/", json!({"clientCertificate": pair("client-rsa.pem", "client.key")}), key),
        ("https://127.0.0.1:9/", json!({"clientCertificate": pair("client.pem", "client.pem")}), key),
        (
            "https://127.0.0.1:9/",
            json!({"clientCertificate": pair("client-expired.pem", "client.key")}),
            "/clientCertificate/certificate",
        ),
        ("https://127.0.0.1:9/", json!({"caCertificate": "none"}), "/caCertificate"),
        // A file with both: the key would be kept, and shown, as part of the certificate.
        (
            "https://127.0.0.1:9/",
            json!({"clientCertificate": {"certificate": pem("client.pem") + &pem("client.key"), "privateKey": pem("client.key")}}),
            "/clientCertificate/certificate",
        ),
        ("https://127.0.0.1:9/", json!({"caCertificate": pem("client.key") + &pem("ca.pem")}), "/caCertificate"),
    ] {
        let refused = broker.post("/subscriptions", &body(endpoint, more)).await;
        let problem = refused.expect_problem(400, "VALIDATION_ERROR");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
        assert!(!refused.text().contains("PRIVATE KEY"), "{problem}");
    }
}

#[tokio::test]
async fn what_was_given_for_one_endpoint_is_not_sent_to_another() {
    let (broker, stranger) = (Broker::start().await, sluice_tests::Receiver::start().await);
    broker.create_topic("orders", "PubSub").await;
    let secrets = json!({
        "headers": {"x-api-key": "hidden"}, "authorization": {"type": "bearer", "token": "hidden-too"},
    });
    let made = broker.subscribe_push("orders", "hook", "http://127.0.0.1:9/a", secrets).await;
    let path = path_of(&made);
    let moves = async |more: Value| {
        let mut body = json!({"consumerEndpoint": stranger.url()});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        broker.put(&path, &body).await
    };
    let pointers = |problem: &Value| -> Vec<String> {
        let errors = problem["errors"].as_array().expect("faults").iter();
        errors.map(|fault| fault["pointer"].as_str().expect("a text").to_owned()).collect()
    };
    let refused = moves(json!({})).await.expect_problem(400, "VALIDATION_ERROR");
    assert_eq!(pointers(&refused), ["/authorization", "/headers"]);
    let kept = json!({
        "headers": {"x-api-key": "[redacted]"}, "authorization": {"type": "bearer", "token": "[redacted]"},
    });
    let refused = moves(kept).await.expect_problem(400, "VALIDATION_ERROR");
    assert_eq!(pointers(&refused), ["/authorization/token", "/headers/x-api-key"]);
    // Another path of the same server is the same endpoint to be trusted; what is given anew may go anywhere.
    broker.put(&path, &json!({"consumerEndpoint": "http://127.0.0.1:9/b"})).await.expect(200);
    moves(json!({"headers": {"x-api-key": "new"}, "authorization": null})).await.expect(200);
    broker.publish("orders", "1").await;
    let sent = stranger.received(1).await.remove(0);
    assert_eq!((sent.header("x-api-key"), sent.headers.get("authorization")), ("new", None));
}

fn says_ok() -> Conduct {
    Conduct::Says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned())
}

/// A broker, an endpoint that speaks HTTP/2, and a subscription that trusts it.
async fn over_http2(more: Value) -> (Broker, H2Receiver, Value) {
    let (broker, receiver) = (Broker::start().await, H2Receiver::start().await);
    broker.create_topic("events", "PubSub").await;
    let mut settings = json!({"caCertificate": pem("ca.pem"), "ackTimeout": "PT60S"});
    settings.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let subscription = broker.subscribe_push("events", "g", &receiver.url(), settings).await;
    (broker, receiver, subscription)
}

#[tokio::test]
async fn what_an_endpoint_says_that_was_replaced_meanwhile_does_not_pause_the_new_one() {
    let (broker, old, new) = (Broker::start().await, Receiver::start().await, Receiver::start().await);
    broker.create_topic("events", "PubSub").await;
    let made = broker.subscribe_push("events", "g", &old.url(), json!({})).await;
    let release = Arc::new(Notify::new());
    old.answers([Scripted::from(410).held_until(Arc::clone(&release))]);
    broker.publish("events", "1").await;
    old.received(1).await;
    broker.put(&path_of(&made), &json!({"consumerEndpoint": new.url()})).await.expect(200);
    // What goes to the new one says that the change has arrived.
    broker.publish("events", "2").await;
    new.received(1).await;
    release.notify_one();
    let told = attempted(&broker, &made, 2).await;
    assert!(told.iter().any(|attempt| attempt["status"] == 410), "{told:?}");
    let sent = new.received(2).await;
    let payloads: Vec<Option<String>> = sent.iter().map(|request| request.message().payload).collect();
    assert_eq!(payloads, [Some("2".to_owned()), Some("1".to_owned())]);
    broker.publish("events", "3").await;
    new.received(3).await;
    assert_eq!(broker.get(&path_of(&made)).await.expect(200)["isActive"], true);
    assert_eq!(old.requests().len(), 1);
}

#[tokio::test]
async fn deliveries_go_over_one_connection_of_http_2() {
    let (broker, receiver, subscription) = over_http2(json!({})).await;
    for n in 1..=20 {
        broker.publish("events", json!(n)).await;
        attempted(&broker, &subscription, n).await;
    }
    assert_eq!(receiver.requests(), vec![(0, Act::Accepts); 20]);
}

#[tokio::test]
async fn a_request_that_is_never_answered_keeps_no_other_one_of_its_connection_waiting() {
    let (broker, receiver, subscription) = over_http2(json!({})).await;
    broker.publish("events", "first").await;
    attempted(&broker, &subscription, 1).await;
    receiver.acts([Act::Hangs]);
    for n in 2..=10 {
        broker.publish("events", json!(n)).await;
    }
    let done = attempted(&broker, &subscription, 9).await;
    assert!(done.iter().all(|attempt| attempt["outcome"] == "delivered"), "{done:?}");
    assert!(receiver.requests().iter().all(|(connection, _)| *connection == 0), "{:?}", receiver.requests());
    broker.clock().advance(Duration::from_secs(60)).await;
    let done = attempted(&broker, &subscription, 10).await;
    assert!(done[0]["error"].as_str().is_some_and(|error| error.starts_with("TIMEOUT")), "{}", done[0]);
}

/// Its clock is that of the connection, which no test moves: it is silent for ten seconds, asked, and given up ten later.
/// The system would give it up after a quarter of an hour, and the subscription after ten minutes.
#[tokio::test]
async fn a_connection_that_answers_no_ping_is_given_up_and_the_next_delivery_takes_a_new_one() {
    let backoff = json!({"initial": "PT1S", "jitter": 0});
    let (broker, receiver, subscription) = over_http2(json!({"ackTimeout": "PT600S", "backoff": backoff})).await;
    broker.publish("events", "1").await;
    attempted(&broker, &subscription, 1).await;
    receiver.acts([Act::GoesSilent]);
    broker.publish("events", "2").await;
    let failed = wait::within(wait::PATIENCE * 3, "the attempt is over", async || {
        let attempts = attempts(&broker, &subscription).await;
        (attempts.len() >= 2).then(|| attempts[0].clone())
    })
    .await;
    let error = failed["error"].as_str().expect("it says why");
    assert!(failed["outcome"] == "retry" && error.starts_with("CONNECTION_BROKEN"), "{failed}");
    broker.clock().advance(Duration::from_secs(2)).await;
    let done = attempted(&broker, &subscription, 3).await.remove(0);
    assert_eq!((&done["outcome"], &done["attempt"]), (&json!("delivered"), &json!(2)), "{done}");
    let requests = receiver.requests();
    let of_the_silent = requests.iter().find(|(_, act)| *act == Act::GoesSilent).expect("it came in").0;
    let (last, act) = requests[requests.len() - 1];
    assert!(last != of_the_silent && act == Act::Accepts, "{requests:?}");
}

#[tokio::test]
async fn what_the_endpoint_has_not_looked_at_is_sent_again_and_is_no_attempt() {
    for act in [Act::Refuses, Act::GoesAway] {
        let (broker, receiver, subscription) = over_http2(json!({"maxRetries": 0})).await;
        broker.publish("events", "1").await;
        attempted(&broker, &subscription, 1).await;
        receiver.acts([act]);
        broker.publish("events", "2").await;
        let done = attempted(&broker, &subscription, 2).await;
        assert_eq!((&done[0]["outcome"], &done[0]["attempt"]), (&json!("delivered"), &json!(1)), "{act:?}: {done:?}");
        let acts: Vec<Act> = receiver.requests().iter().map(|(_, act)| *act).collect();
        assert_eq!(acts, [Act::Accepts, act, Act::Accepts]);
        let other = receiver.requests()[2].0 != 0;
        assert_eq!(other, act == Act::GoesAway, "a new connection where the old one is closed");
    }
}

#[tokio::test]
async fn what_the_endpoint_may_have_seen_is_a_failed_attempt_that_comes_again() {
    for (act, error) in
        [(Act::Resets, "CONNECTION_BROKEN"), (Act::Breaks, "CONNECTION_BROKEN"), (Act::Fails, "HTTP_500")]
    {
        let backoff = json!({"initial": "PT1S", "jitter": 0});
        let (broker, receiver, subscription) = over_http2(json!({"backoff": backoff})).await;
        receiver.acts([act]);
        broker.publish("events", "1").await;
        let failed = attempted(&broker, &subscription, 1).await.remove(0);
        assert_eq!(failed["outcome"], "retry", "{act:?}: {failed}");
        assert!(failed["error"].as_str().is_some_and(|told| told.starts_with(error)), "{act:?}: {failed}");
        broker.clock().advance(Duration::from_secs(2)).await;
        let done = attempted(&broker, &subscription, 2).await.remove(0);
        assert_eq!((&done["outcome"], &done["attempt"]), (&json!("delivered"), &json!(2)), "{act:?}: {done}");
    }
}

#[tokio::test]
async fn an_endpoints_attempts_are_counted_told_and_forgotten_when_asked_for() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    broker.create_topic("events", "PubSub").await;
    let backoff = json!({"initial": "PT1S", "jitter": 0});
    let made = broker.subscribe_push("events", "g", &receiver.url(), json!({"backoff": backoff})).await;
    let path = path_of(&made);
    let empty = broker.get(&format!("{path}/metrics")).await.expect(200);
    assert_eq!((&empty["attempts"], empty.get("successRate")), (&json!(0), None), "{empty}");
    receiver.answers([503_u16]);
    broker.publish("events", "1").await;
    attempted(&broker, &made, 1).await;
    broker.clock().advance(Duration::from_secs(2)).await;
    attempted(&broker, &made, 2).await;
    let figures = broker.get(&format!("{path}/metrics?window=PT5M")).await.expect(200);
    let expected = json!({"attempts": 2, "delivered": 1, "failed": 1, "failures": {"HTTP_5XX": 1}, "retries": 1});
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&figures[name], value, "{name}: {figures}");
    }
    assert_eq!((&figures["successRate"], &figures["window"]), (&json!(0.5), &json!("PT5M")), "{figures}");
    assert!(figures["latency"]["p99Ms"].as_f64() <= figures["latency"]["maxMs"].as_f64(), "{figures}");
    let state = broker.get(&path).await.expect(200)["endpoint"].clone();
    assert_eq!((&state["breaker"], &state["waitsForRoom"]), (&json!("closed"), &json!(false)), "{state}");
    // Ten minutes later the last five hold nothing, the hour does.
    broker.clock().advance(Duration::from_secs(600)).await;
    let later = broker.get(&format!("{path}/metrics?window=PT5M")).await.expect(200);
    assert_eq!(later["attempts"], 0, "{later}");
    assert_eq!(broker.get(&format!("{path}/metrics")).await.expect(200)["attempts"], 2);
    for window in ["PT1S", "P2D"] {
        let wrong = broker.get(&format!("{path}/metrics?window={window}")).await;
        wrong.expect_problem(400, "VALIDATION_ERROR");
    }
    broker.delete(&format!("{path}/attempts")).await.expect(204);
    assert_eq!(attempts(&broker, &made).await, [] as [Value; 0]);
    assert!(broker.get("/audit-logs").await.text().contains("subscription.attemptsCleared"));
    assert_eq!(broker.get(&format!("{path}/metrics")).await.expect(200)["attempts"], 2, "figures stay");
    let pull = broker.subscribe("events", "pull").await;
    broker.get(&format!("{}/metrics", path_of(&pull))).await.expect_problem(409, "CONFLICT");
}

#[tokio::test]
async fn what_answers_say_is_shown_unless_the_owner_redacts_it() {
    let broker = Broker::start().await;
    let says = "HTTP/1.1 500 Oh\r\ncontent-length: 8\r\n\r\ncustomer";
    let receiver = RawReceiver::start(Identity::Plain, Conduct::Says(says.to_owned())).await;
    broker.create_topic("events", "PubSub").await;
    let made = broker.subscribe_push("events", "g", &receiver.url(), json!({"maxRetries": 0})).await;
    assert_eq!(made["attemptBodies"], "keep");
    broker.publish("events", "1").await;
    assert_eq!(attempted(&broker, &made, 1).await[0]["bodyStart"], "customer");
    broker.put(&path_of(&made), &json!({"attemptBodies": "redact"})).await.expect(200);
    broker.publish("events", "2").await;
    attempted(&broker, &made, 2).await;
    let test = broker.post(&format!("{}/test", path_of(&made)), &json!({})).await;
    assert_eq!(test.expect(200)["response"]["bodyStart"], "[redacted]");
    let listed = broker.get(&format!("{}/attempts", path_of(&made))).await.text();
    assert!(!listed.contains("customer") && listed.contains("[redacted]"), "{listed}");
}

/// Requests to two endpoints that hang take the room of the whole broker but for what is left over for a third one.
#[tokio::test]
async fn endpoints_that_hang_leave_room_for_one_that_does_not() {
    let broker = Broker::with(Settings::new().env("SLUICE__PUSH__REQUESTS_MAX", "4")).await;
    let (hanging, well) =
        (RawReceiver::start(Identity::Plain, Conduct::Says(String::new())).await, Receiver::start().await);
    for topic in ["a", "b", "well"] {
        broker.create_topic(topic, "PubSub").await;
    }
    let first = broker.subscribe_push("a", "g", &hanging.url(), json!({})).await;
    let second = broker.subscribe_push("b", "g", &hanging.url(), json!({})).await;
    broker.subscribe_push("well", "g", &well.url(), json!({})).await;
    for n in 0..10 {
        broker.publish("a", json!(n)).await;
        broker.publish("b", json!(n)).await;
    }
    for subscription in [&first, &second] {
        wait::until("it waits for room", async || {
            let state = broker.get(&path_of(subscription)).await.expect(200)["endpoint"].clone();
            (state["waitsForRoom"] == json!(true)).then_some(())
        })
        .await;
    }
    assert_eq!(broker.metric("sluice_push_waiting_endpoints").await, Some(2.0));
    for n in 0..50 {
        broker.publish("well", json!(n)).await;
    }
    well.received(50).await;
    assert_eq!(hanging.requests(), 3, "two of four, and one of what was left");
}
