//! CloudEvents 1.0 over HTTP, in and out: binary mode, structured mode, batches; refusals, repeats, filters. Invariant: an event
//! that a webhook hands on has the attributes and the data that it was published with.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use sluice_tests::receiver::Request;
use sluice_tests::{Answer, Broker, Client, Receiver, wait};

const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

/// The attributes that every event has, as headers.
fn required(id: &str) -> Vec<(&str, &str)> {
    vec![("ce-specversion", "1.0"), ("ce-id", id), ("ce-source", "/shop"), ("ce-type", "order.created")]
}

fn event(id: &str, more: Value) -> Value {
    let mut event = json!({"specversion": "1.0", "id": id, "source": "/shop", "type": "order.created"});
    event.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    event
}

async fn publish(client: &Client, topic: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
    client.send(Method::POST, &format!("/messages/publish?topic={topic}"), headers, body.into()).await
}

async fn publish_structured(client: &Client, topic: &str, event: &Value) -> Answer {
    publish(client, topic, &[("content-type", STRUCTURED)], event.to_string()).await
}

async fn publish_batch(client: &Client, query: &str, events: &Value) -> Answer {
    let path = format!("/messages/publish/batch?{query}");
    client.send(Method::POST, &path, &[("content-type", BATCH)], events.to_string()).await
}

/// A broker with a topic, and a webhook on it in this format.
async fn pushing(format: &str) -> (Broker, Receiver, String) {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    broker.create_topic("orders", "PubSub").await;
    let made = broker.subscribe_push("orders", "hook", &receiver.url(), json!({ "format": format })).await;
    assert_eq!(made["format"], format);
    let secret = made["secret"].as_str().expect("a new subscription shows its secret").to_owned();
    (broker, receiver, secret)
}

/// The attributes of an event in binary mode, as they were sent.
fn attributes(request: &Request) -> BTreeMap<&str, &str> {
    let attribute = |name: &http::HeaderName| name.as_str().starts_with("ce-");
    let all = request.headers.iter().filter(|(name, _)| attribute(name));
    all.map(|(name, value)| (&name.as_str()[3..], value.to_str().expect("printable ASCII"))).collect()
}

#[tokio::test]
async fn a_binary_event_is_stored_with_its_attributes_as_headers() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let mut headers = required("A 1");
    headers.extend([("content-type", "image/png"), ("ce-subject", "gr%C3%B6%C3%9Fe"), ("ce-partitionkey", "k")]);
    let answer = publish(&broker, "orders", &headers, [0x89, b'P', 0xff]).await.expect(202);
    assert_eq!((&answer["status"], &answer["topicName"]), (&json!("Pending"), &json!("orders")));
    let taken = broker.get("/messages/consume/orders?consumerGroup=g").await.expect(200);
    let message = &taken["messages"][0];
    let expected = json!({
        "ce-specversion": "1.0", "ce-id": "A 1", "ce-source": "/shop", "ce-type": "order.created",
        "ce-partitionkey": "k", "ce-subject": "größe",
    });
    assert_eq!(message["headers"], expected);
    assert_eq!((&message["payloadBase64"], &message["contentType"]), (&json!("iVD/"), &json!("image/png")));
    assert_eq!(message["partitionKey"], "k");
}

#[tokio::test]
async fn a_structured_event_is_stored_with_the_exact_text_of_its_data() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let body = r#"{"specversion":"1.0","id":"1","source":"/shop","type":"t","n":5,"data":{"price" : 1.50}}"#;
    publish(&broker, "orders", &[("content-type", STRUCTURED)], body).await.expect(202);
    let delivery = broker.consume("orders", "g").await.remove(0);
    assert_eq!((delivery.payload(), delivery.message.headers["ce-n"].as_str()), (r#"{"price" : 1.50}"#, "5"));
    assert_eq!(delivery.message.content_type.as_deref(), Some("application/json"));
}

#[tokio::test]
async fn an_event_goes_out_in_binary_mode_as_it_came() {
    let (broker, receiver, secret) = pushing("cloudEvents").await;
    let mut headers = required("A 1");
    let more = [
        ("content-type", "image/png"),
        ("ce-time", "2026-01-31T12:00:00.5+01:00"),
        ("ce-subject", "Euro%20%E2%82%AC"),
        ("ce-dataschema", "https://example.com/s"),
        ("ce-traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    headers.extend(more);
    let published = publish(&broker, "orders", &headers, [0x00, 0xff]).await.expect(202);
    let request = receiver.received(1).await.remove(0);
    request.verify(&secret);
    assert_eq!((&request.body[..], request.header("content-type")), (&[0x00, 0xff][..], "image/png"));
    assert_eq!(request.header("x-message-id"), published["messageId"]);
    assert_eq!(&request.header("traceparent")[3..35], "0af7651916cd43dd8448eb211c80319c", "the event's own trace");
    let expected = [
        ("dataschema", "https://example.com/s"),
        ("id", "A%201"),
        ("source", "/shop"),
        ("specversion", "1.0"),
        ("subject", "Euro%20%E2%82%AC"),
        ("time", "2026-01-31T12:00:00.5+01:00"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("type", "order.created"),
    ];
    assert_eq!(attributes(&request), BTreeMap::from(expected));
}

#[tokio::test]
async fn an_event_goes_out_in_structured_mode_as_it_came() {
    let (broker, receiver, secret) = pushing("cloudEventsStructured").await;
    let events = [
        event(
            "1",
            json!({"time": "2026-01-31T12:00:00Z", "myext": "größe", "datacontenttype": "application/json", "data": {"a": [1.5, null]}}),
        ),
        event("2", json!({"subject": "s", "datacontenttype": "text/xml", "data": "<a/>"})),
        event("3", json!({"datacontenttype": "image/png", "data_base64": "AP8="})),
        event("4", json!({})),
    ];
    for event in &events {
        publish_structured(&broker, "orders", event).await.expect(202);
    }
    let requests = receiver.received(events.len()).await;
    let mut sent: Vec<Value> = requests.iter().map(Request::json).collect();
    sent.sort_by_key(|event| event["id"].to_string());
    assert_eq!(sent, events);
    for request in &requests {
        request.verify(&secret);
        assert_eq!(request.header("content-type"), STRUCTURED);
        assert!(attributes(request).is_empty());
    }
}

#[tokio::test]
async fn any_other_message_is_made_an_event() {
    for format in ["cloudEvents", "cloudEventsStructured"] {
        let (broker, receiver, secret) = pushing(format).await;
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let message = broker.publish("orders", json!({"n": 1})).header("X-Env", "prod").key("k 1").priority(3);
        let published = message.http_header("traceparent", trace).await;
        let request = receiver.received(1).await.remove(0);
        request.verify(&secret);
        let (attributes, data): (Value, Value) = match format {
            "cloudEvents" => (json!(attributes(&request)), request.json()),
            _ => (request.json(), request.json()["data"].clone()),
        };
        let is = |name: &str, value: &str| assert_eq!(attributes[name], value, "{format}: {attributes}");
        is("specversion", "1.0");
        is("id", &published.message_id);
        is("source", "/topics/orders");
        is("type", "sluice.message");
        is("partitionkey", if format == "cloudEvents" { "k%201" } else { "k 1" });
        is("priority", "3");
        is("xenv", "prod");
        assert!(attributes["time"].is_string() && attributes["traceparent"].is_string(), "{attributes}");
        assert_eq!(data, json!({"n": 1}));
    }
}

#[tokio::test]
async fn all_attempts_send_one_event() {
    for format in ["cloudEvents", "cloudEventsStructured"] {
        let (broker, receiver, secret) = pushing(format).await;
        receiver.answers([500_u16, 503]);
        publish_structured(&broker, "orders", &event("1", json!({"data": {"a": 1}}))).await.expect(202);
        let requests = wait::until("three attempts with the clock moving", async || {
            let requests = receiver.requests();
            if requests.len() >= 3 {
                return Some(requests);
            }
            broker.clock().advance(Duration::from_secs(1)).await;
            None
        })
        .await;
        for request in &requests {
            request.verify(&secret);
            assert_eq!(request.body, requests[0].body);
            assert_eq!(attributes(request), attributes(&requests[0]));
        }
    }
}

#[tokio::test]
async fn an_event_that_has_expired_is_not_delivered() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let in_hours = |hours: i64| {
        let at = broker.clock().now_ms() + hours * 3_600_000;
        jiff::Timestamp::from_millisecond(at).expect("a time of this age").to_string()
    };
    let (soon, late) = (in_hours(1), in_hours(48));
    publish_structured(&broker, "orders", &event("1", json!({"expirytime": soon}))).await.expect(202);
    let headers = [&required("2")[..], &[("ce-expirytime", &late)]].concat();
    publish(&broker, "orders", &headers, "x").await.expect(202);
    broker.clock().advance(Duration::from_secs(2 * 3600)).await;
    let taken = broker.get("/messages/consume/orders?consumerGroup=g&limit=10").await.expect(200);
    let taken = taken["messages"].as_array().expect("a list");
    let headers: Vec<&Value> = taken.iter().map(|message| &message["headers"]).collect();
    assert_eq!(headers.len(), 1, "{headers:?}");
    assert_eq!((&headers[0]["ce-id"], &headers[0]["ce-expirytime"]), (&json!("2"), &json!(late)));
    let past = publish_structured(&broker, "orders", &event("3", json!({"expirytime": soon}))).await;
    assert_eq!(past.expect_problem(400, "VALIDATION_ERROR")["errors"][0]["pointer"], "/expirytime");
}

#[tokio::test]
async fn a_test_delivery_is_an_event_too() {
    let (broker, receiver, _) = pushing("cloudEvents").await;
    let listed = broker.get("/subscriptions?topicName=orders").await.expect(200);
    let id = listed["subscriptions"][0]["subscriptionId"].as_str().expect("an id");
    let shown = broker.post(&format!("/subscriptions/{id}/test"), &json!({})).await.expect(200);
    assert_eq!(attributes(&receiver.received(1).await[0])["type"], "sluice.message");
    assert_eq!(shown["request"]["headers"]["ce-type"], "sluice.message", "{shown}");
}

#[tokio::test]
async fn a_filter_sees_attributes_as_headers() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    broker.create_topic("orders", "PubSub").await;
    let filter = json!({"format": "cloudEvents", "filter": {"headerMatches": {"ce-type": "order.paid"}}});
    broker.subscribe_push("orders", "paid", &receiver.url(), filter).await;
    for (id, kind) in [("1", "order.created"), ("2", "order.paid"), ("3", "order.created"), ("4", "order.paid")] {
        publish_structured(&broker, "orders", &event(id, json!({"type": kind}))).await.expect(202);
    }
    let requests = receiver.received(2).await;
    let mut ids: Vec<&str> = requests.iter().map(|request| request.header("ce-id")).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["2", "4"]);
}

#[tokio::test]
async fn a_batch_of_events_has_a_result_for_each() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let events = json!([
        event("1", json!({"data": 1})),
        {"specversion": "1.0", "id": "2"},
        event("3", json!({"data_base64": "AP8="})),
        event("1", json!({"data": 1})),
    ]);
    let answer = publish_batch(&broker, "topic=orders", &events).await.expect(200);
    assert_eq!((&answer["accepted"], &answer["refused"]), (&json!(3), &json!(1)), "{answer}");
    let errors = answer["results"][1]["error"]["errors"].as_array().expect("faults").iter();
    let named: Vec<&str> = errors.filter_map(|fault| fault["pointer"].as_str()).collect();
    assert_eq!(named, ["/source", "/type"], "{answer}");
    assert_eq!(answer["results"][3]["status"], "Duplicate", "{answer}");
    assert_eq!(broker.consume("orders", "g").await.len(), 2);

    let atomic = json!([event("5", json!({})), {}]);
    let answer = publish_batch(&broker, "topic=orders&atomic=true", &atomic).await.expect(200);
    assert_eq!(answer["accepted"], 0, "{answer}");
    let answer = publish_batch(&broker, "topic=orders", &json!([])).await.expect(200);
    assert_eq!((&answer["accepted"], &answer["results"]), (&json!(0), &json!([])), "an empty batch is one");
    publish_batch(&broker, "atomic=true", &events).await.expect_problem(400, "VALIDATION_ERROR");
    broker.consume("orders", "g").expect_nothing().await;
}

#[tokio::test]
async fn what_is_wrong_with_an_event_is_said_of_its_attribute() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let pointers = |problem: Value| -> Vec<String> {
        let faults = problem["errors"].as_array().into_iter().flatten();
        faults.filter_map(|fault| fault["pointer"].as_str().map(str::to_owned)).collect()
    };
    for (wrong, expected) in [
        (json!({"specversion": "1.0"}), vec!["/id", "/source", "/type"]),
        (event("1", json!({"specversion": "0.3", "time": "noon"})), vec!["/specversion", "/time"]),
        (event("1", json!({"data": 1, "data_base64": "AA=="})), vec!["/data_base64"]),
        (event("1", json!({"my-ext": "x", "nested": {}})), vec!["/nested", "/my-ext"]),
    ] {
        let answer = publish_structured(&broker, "orders", &wrong).await;
        assert_eq!(pointers(answer.expect_problem(400, "VALIDATION_ERROR")), expected, "{wrong}");
    }
    let binary = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-type", "t"), ("ce-time", "noon")];
    let answer = publish(&broker, "orders", &binary, "x").await;
    let mut found = pointers(answer.expect_problem(400, "VALIDATION_ERROR"));
    found.sort_unstable();
    assert_eq!(found, ["/ce-source", "/ce-time"]);

    // Where to is said by the query, and by nothing else.
    for (content_type, body) in [(STRUCTURED, event("1", json!({}))), ("application/json", json!({"a": 1}))] {
        let headers = [&required("1")[..], &[("content-type", content_type)]].concat();
        let answer = broker.send(Method::POST, "/messages/publish", &headers, body.to_string()).await;
        let problem = answer.expect_problem(400, "VALIDATION_ERROR");
        let said = problem["errors"].as_array().expect("faults").iter().find(|fault| fault["pointer"] == "/topic");
        assert!(said.is_some_and(|fault| fault["message"].to_string().contains("?topic=")), "{problem}");
    }
    publish_structured(&broker, "absent", &event("1", json!({}))).await.expect_problem(404, "NOT_FOUND");
    publish_structured(&broker, "orders.dlq", &event("1", json!({}))).await.expect_problem(400, "VALIDATION_ERROR");
    let stranger = broker.producer("others.*");
    publish_structured(&stranger, "orders", &event("1", json!({}))).await.expect_problem(403, "FORBIDDEN");
    let xml = [("content-type", "application/cloudevents+xml")];
    publish(&broker, "orders", &xml, "<a/>").await.expect_problem(415, "UNSUPPORTED_MEDIA_TYPE");
    let large = event("1", json!({"data": "x".repeat(1 << 20)}));
    publish_structured(&broker, "orders", &large).await.expect_problem(413, "MESSAGE_TOO_LARGE");
    broker.consume("orders", "g").expect_nothing().await;
}

#[tokio::test]
async fn an_ordinary_publish_is_no_event_whatever_headers_come_with_it() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let body = json!({"topicName": "orders", "payload": "work"});
    let headers = [&required("1")[..], &[("content-type", "application/json")]].concat();
    for _ in 0..2 {
        let answer = broker.send(Method::POST, "/messages/publish", &headers, body.to_string()).await;
        assert_eq!(answer.expect(202)["status"], "Pending");
    }
    let stored = broker.consume("orders", "g").await;
    assert!(stored.len() == 2 && stored.iter().all(|delivery| delivery.message.headers.is_empty()));
    let answer = broker.post("/messages/publish?topic=orders", &body).await;
    assert_eq!(answer.expect_problem(400, "VALIDATION_ERROR")["errors"][0]["pointer"], "/topic");
}

#[tokio::test]
async fn an_event_that_comes_again_is_a_duplicate() {
    let broker = Broker::start().await;
    let topic = json!({"name": "orders", "type": "Queue", "deliveryGuarantee": "ExactlyOnce"});
    broker.post("/topics", &topic).await.expect(201);
    let first = publish_structured(&broker, "orders", &event("1", json!({"data": {"a": 1}}))).await.expect(202);
    let headers = [&required("1")[..], &[("content-type", "application/json")]].concat();
    let again = publish(&broker, "orders", &headers, r#"{"a":1}"#).await.expect(202);
    assert_eq!((&again["status"], &again["messageId"]), (&json!("Duplicate"), &first["messageId"]));

    // Two events can't have one source and id.
    publish(&broker, "orders", &headers, "other").await.expect_problem(409, "CONFLICT");
    let elsewhere = event("1", json!({"source": "/other", "data": {"a": 1}}));
    assert_eq!(publish_structured(&broker, "orders", &elsewhere).await.expect(202)["status"], "Pending");

    // A key of the publisher's own counts instead.
    let keyed = [&headers[..], &[("idempotency-key", "mine")]].concat();
    assert_eq!(publish(&broker, "orders", &keyed, "other").await.expect(202)["status"], "Pending");
    assert_eq!(publish(&broker, "orders", &keyed, "other").await.expect(202)["status"], "Duplicate");
    assert_eq!(broker.consume("orders", "g").await.len(), 3);
}
