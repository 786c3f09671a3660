//! What clients do, from the first call to the last.

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use super::{Bed, token};
use crate::api::auth::token::Role;

const PUBLISH: &str = "/api/v1/messages/publish";
const BATCH: &str = "/api/v1/messages/publish/batch";

fn with(headers: &[(&str, &str)], method: &str, path: &str, body: impl Into<Body>) -> Request<Body> {
    let token = token(&[Role::Admin], None);
    let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {token}"));
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(body.into()).unwrap()
}

#[tokio::test]
async fn the_guides_calls_work_as_written() {
    let bed = Bed::open().await;
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let topic = r#"{"name": "deployment.events", "type": "PubSub", "schemaId": "deployment.event.v1"}"#;
    let answer = bed.send(with(&form, "POST", "/api/v1/topics", topic)).await;
    assert_eq!(answer.headers["location"], "/api/v1/topics/deployment.events");
    assert_eq!(answer.expect(201)["schemaStatus"], "Unregistered");
    let subscription = r#"{"topicName": "deployment.events", "consumerGroup": "email-notifications",
        "consumerEndpoint": "https://notifications.example.com/webhook", "type": "Push"}"#;
    let made = bed.send(with(&form, "POST", "/api/v1/subscriptions", subscription)).await.expect(201);
    assert!(made["secret"].as_str().is_some_and(|secret| secret.starts_with("whsec_")), "{made}");
    let path = format!("/api/v1/subscriptions/{}", made["subscriptionId"].as_str().unwrap());
    assert!(bed.ask("GET", &path, "").await.expect(200)["secret"].is_null());
    let message = r#"{"topicName": "deployment.events", "payload": "{\"test\":\"message\"}", "schemaVersion": "1.0"}"#;
    let published = bed.send(with(&[("content-type", "application/json")], "POST", PUBLISH, message)).await.expect(202);
    assert_eq!((&published["status"], &published["durability"]), (&json!("Pending"), &json!("fsync")));
}

#[tokio::test]
async fn a_message_is_published_leased_extended_and_settled() {
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    let body = r#"{"topicName":"orders","payload":{"a" : 1.0},"headers":{"h":"v"},"partitionKey":"k"}"#;
    let id = bed.ask("POST", PUBLISH, body).await.expect(202)["messageId"].clone();
    let leased = bed.ask("GET", "/api/v1/messages/consume/orders?ackTimeout=60&wait=1", "").await.expect(200);
    let message = &leased["messages"][0];
    assert_eq!((&message["messageId"], &message["payload"]), (&id, &json!(r#"{"a" : 1.0}"#)));
    let (path, receipt) = (format!("/api/v1/messages/{}", id.as_str().unwrap()), message["receipt"].as_str().unwrap());
    let settle = |word: &str, rest: &str| {
        let body = format!(r#"{{"consumerGroup":"any","receipt":"{receipt}"{rest}}}"#);
        let path = format!("{path}/{word}");
        let bed = &bed;
        async move { bed.ask("POST", &path, &body).await }
    };
    assert_eq!(settle("extend", r#","ackTimeout":"PT2M""#).await.expect(200)["status"], "Extended");
    let status = bed.ask("GET", &path, "").await.expect(200);
    assert_eq!((&status["status"], &status["groups"][0]["status"]), (&json!("Stored"), &json!("Leased")), "{status}");
    assert_eq!(settle("ack", "").await.expect(200)["status"], "Acked");
    settle("ack", "").await.problem(410, "LEASE_EXPIRED");
    settle("nack", r#","delay":0"#).await.problem(410, "LEASE_EXPIRED");
    bed.ask("POST", &format!("{path}/ack"), r#"{"receipt":"x"}"#).await.problem(400, "VALIDATION_ERROR");
    bed.ask("DELETE", &path, "").await.expect(204);
    bed.ask("GET", &path, "").await.problem(404, "NOT_FOUND");
    let log = bed.ask("GET", "/api/v1/audit-logs?entity=message", "").await.expect(200);
    assert_eq!(log["auditLogs"][0]["eventType"], "message.erased", "{log}");
}

#[tokio::test]
async fn a_settlement_without_receipt_counts_for_the_holder_alone() {
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    let id = bed.ask("POST", PUBLISH, r#"{"topicName":"orders","payload":1}"#).await.expect(202)["messageId"].clone();
    bed.ask("GET", "/api/v1/messages/consume/orders", "").await.expect(200);
    let body = format!(r#"{{"acks":[{{"messageId":{id}}},{{"receipt":"x"}}],"nacks":[{{"messageId":{id}}}]}}"#);
    let results = bed.ask("POST", "/api/v1/messages/ack/batch", &body).await.expect(200);
    let results = results["results"].as_array().unwrap();
    assert_eq!(results[0]["status"], "Acked", "{results:?}");
    assert_eq!(results[1]["error"]["code"], "VALIDATION_ERROR");
    assert_eq!(results[2]["error"]["code"], "LEASE_EXPIRED");
}

#[tokio::test]
async fn a_batch_answers_for_each_item_and_an_atomic_one_for_all() {
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    let good = r#"{"topicName":"orders","payload":1}"#;
    let bad = r#"{"topicName":"orders","payload":1,"priority":10}"#;
    let answer = bed.ask("POST", BATCH, &format!(r#"{{"messages":[{good},{bad},{good}]}}"#)).await.expect(200);
    assert_eq!((&answer["accepted"], &answer["refused"]), (&json!(2), &json!(1)), "{answer}");
    assert_eq!(answer["results"][1]["error"]["errors"][0]["pointer"], "/priority", "{answer}");
    let body = format!(r#"{{"messages":[{good},{bad}]}}"#);
    let answer = bed.ask("POST", &format!("{BATCH}?atomic=true"), &body).await.expect(200);
    assert_eq!((&answer["accepted"], &answer["refused"]), (&json!(0), &json!(2)), "{answer}");
    let lines = format!("{good}\nnot json\n\n{good}\n");
    let answer = bed.send(with(&[("content-type", "application/x-ndjson")], "POST", BATCH, lines)).await.expect(200);
    assert_eq!((&answer["accepted"], &answer["results"][1]["error"]["code"]), (&json!(2), &json!("MALFORMED_JSON")));
    bed.ask("POST", BATCH, r#"{"messages":[]}"#).await.problem(400, "VALIDATION_ERROR");
    bed.ask("POST", BATCH, r#"{"messages":[],"more":1}"#).await.problem(400, "VALIDATION_ERROR");
    let page = bed.ask("GET", "/api/v1/topics/orders/messages?limit=3", "").await.expect(200);
    assert_eq!((page["messages"].as_array().map(Vec::len), &page["hasMore"]), (Some(3), &json!(true)), "{page}");
    let next = format!("/api/v1/topics/orders/messages?nextToken={}", page["nextToken"].as_str().unwrap());
    let page = bed.ask("GET", &next, "").await.expect(200);
    assert_eq!((page["messages"].as_array().map(Vec::len), &page["hasMore"]), (Some(1), &json!(false)), "{page}");
    bed.ask("GET", "/api/v1/topics/orders/messages?filter=$.a%20==", "").await.problem(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn a_key_makes_repeats_harmless() {
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    let publish = |payload: &str| {
        let body = format!(r#"{{"topicName":"orders","payload":{payload}}}"#);
        bed.send(with(&[("idempotency-key", "k")], "POST", PUBLISH, body))
    };
    let first = publish("1").await.expect(202);
    let again = publish("1").await.expect(202);
    assert_eq!((&again["status"], &again["messageId"]), (&json!("Duplicate"), &first["messageId"]));
    publish("2").await.problem(409, "CONFLICT");
}

#[tokio::test]
async fn changes_are_made_from_what_was_seen() {
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    let path = "/api/v1/topics/orders";
    let tag = bed.ask("GET", path, "").await.headers["etag"].to_str().unwrap().to_owned();
    let put = |body: &'static str| bed.send(with(&[("if-match", &tag)], "PUT", path, body));
    let changed = put(r#"{"retentionPeriod":"P1D","schemaId":"a"}"#).await.expect(200);
    assert_eq!((&changed["retentionPeriod"], &changed["schemaId"]), (&json!("P1D"), &json!("a")));
    put(r#"{"description":"x"}"#).await.problem(412, "PRECONDITION_FAILED");
    let changed = bed.ask("PUT", path, r#"{"description":"x","schemaId":null}"#).await.expect(200);
    assert_eq!((&changed["retentionPeriod"], &changed["schemaId"]), (&json!("P1D"), &Value::Null));
    bed.ask("PUT", path, r#"{"type":"PubSub"}"#).await.problem(409, "CONFLICT");
    bed.ask("PUT", path, r#"{"name":"other"}"#).await.problem(400, "VALIDATION_ERROR");
    bed.ask("DELETE", path, "").await.expect(204);
}

#[tokio::test]
async fn a_subscription_is_checked_whole_and_hides_its_headers() {
    let bed = Bed::open().await;
    bed.topic("news", "PubSub").await;
    let bad = r#"{"topicName":"news","consumerGroup":"","type":"Push","maxRetries":101,"ackTimeout":"PT0S",
        "backoff":{"multiplier":0.5},"filter":{"payloadQuery":"$.a =="},"consumerEndpoint":"nowhere"}"#;
    let problem = bed.ask("POST", "/api/v1/subscriptions", bad).await.problem(400, "VALIDATION_ERROR");
    let pointers: Vec<&str> =
        problem["errors"].as_array().unwrap().iter().filter_map(|fault| fault["pointer"].as_str()).collect();
    let expected = [
        "/consumerGroup",
        "/maxRetries",
        "/ackTimeout",
        "/backoff/multiplier",
        "/filter/payloadQuery",
        "/consumerEndpoint",
    ];
    assert_eq!(pointers, expected, "{problem}");
    let good = r#"{"topicName":"news","consumerGroup":"g","type":"Push","consumerEndpoint":"http://127.0.0.1:9/",
        "headers":{"x-key":"hidden"}}"#;
    let made = bed.ask("POST", "/api/v1/subscriptions", good).await.expect(201);
    assert_eq!(made["headers"]["x-key"], "[redacted]");
    let path = format!("/api/v1/subscriptions/{}", made["subscriptionId"].as_str().unwrap());
    bed.ask("POST", &format!("{path}/pause"), "").await.expect(200);
    assert_eq!(bed.ask("GET", &path, "").await.expect(200)["isActive"], false);
    bed.ask("POST", &format!("{path}/resume"), "").await.expect(200);
    bed.ask("POST", &format!("{path}/seek"), r#"{"to":"earliest"}"#).await.expect(200);
    bed.ask("POST", &format!("{path}/seek"), r#"{"to":0,"partition":3}"#).await.problem(400, "VALIDATION_ERROR");
    let list = bed.ask("GET", "/api/v1/subscriptions?topicName=news&isActive=true", "").await.expect(200);
    assert_eq!((&list["total"], &list["hasMore"]), (&json!(1), &json!(false)));
    bed.ask("DELETE", &path, "").await.expect(204);
}

#[tokio::test]
async fn an_event_stream_lets_through_what_its_slots_take() {
    use futures_util::StreamExt as _;
    use tower::ServiceExt as _;
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    for n in 0..3 {
        bed.ask("POST", PUBLISH, &format!(r#"{{"topicName":"orders","payload":{n}}}"#)).await.expect(202);
    }
    let request = with(&[], "GET", "/api/v1/messages/stream/orders?maxInFlight=2", Body::empty());
    let response = bed.app.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut events = response.into_body().into_data_stream();
    let first = String::from_utf8(events.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert_eq!(first.matches("event: message").count(), 2, "{first}");
    let data = first.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let message: Value = serde_json::from_str(data).unwrap();
    let path = format!("/api/v1/messages/{}/ack", message["messageId"].as_str().unwrap());
    bed.ask("POST", &path, &format!(r#"{{"receipt":{}}}"#, message["receipt"])).await.expect(200);
    let next = String::from_utf8(events.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert_eq!(next.matches("event: message").count(), 1, "{next}");
    bed.broker.stopping.cancel();
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_schema_registered_later_begins_to_validate() {
    let bed = Bed::open().await;
    bed.ask("POST", "/api/v1/topics", r#"{"name":"t","type":"Queue","schemaId":"s"}"#).await.expect(201);
    bed.ask("POST", PUBLISH, r#"{"topicName":"t","payload":"no json"}"#).await.expect(202);
    let schema = r#"{"schemaId":"s","version":"1","schemaDefinition":{"type":"object","required":["n"]}}"#;
    bed.ask("POST", "/api/v1/schemas", schema).await.expect(201);
    bed.ask("POST", "/api/v1/schemas", schema).await.expect(200);
    let problem =
        bed.ask("POST", PUBLISH, r#"{"topicName":"t","payload":{}}"#).await.problem(422, "SCHEMA_VALIDATION_ERROR");
    assert_eq!(
        (&problem["plugin"], problem["errors"].as_array().map(Vec::len)),
        (&json!("json-schema"), Some(1)),
        "{problem}"
    );
    let explained =
        bed.ask("POST", &format!("{PUBLISH}?explain=true"), r#"{"topicName":"t","payload":{"n":1}}"#).await.expect(202);
    assert_eq!(explained["explain"][0]["verdict"], "pass", "{explained}");
    let answer = bed.ask("POST", "/api/v1/schemas/s/validate", r#"{"payload":null}"#).await.expect(200);
    assert_eq!(answer["isValid"], false);
}

#[tokio::test]
async fn a_pipeline_is_set_from_the_revision_that_was_seen() {
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    let path = "/api/v1/topics/orders/pipeline";
    let body = r#"{"stages":[{"name":"only","plugin":"filter","config":{"headerMatches":{"a":"b"}}}]}"#;
    let before = bed.ask("GET", path, "").await;
    assert_eq!(before.headers["etag"], "\"0\"");
    let set = bed.send(with(&[("if-match", "\"0\"")], "PUT", path, body)).await.expect(200);
    assert_eq!(set["resolved"][0]["plugin"], "filter", "{set}");
    bed.send(with(&[("if-match", "\"0\"")], "PUT", path, body)).await.problem(412, "PRECONDITION_FAILED");
    let wrong = r#"{"stages":[{"name":"only","plugin":"absent"}]}"#;
    let problem = bed.ask("PUT", path, wrong).await.problem(400, "VALIDATION_ERROR");
    assert_eq!(problem["errors"][0]["pointer"], "/stages/0/plugin", "{problem}");
    let dropped = bed.ask("POST", PUBLISH, r#"{"topicName":"orders","payload":1}"#).await.expect(202);
    assert_eq!((&dropped["status"], &dropped["stage"]), (&json!("Dropped"), &json!("only")), "{dropped}");
    let history = bed.ask("GET", &format!("{path}/history"), "").await.expect(200);
    assert_eq!(history["revisions"][0]["revision"], set["revision"], "{history}");
    let plugin = bed.ask("GET", "/api/v1/plugins/filter", "").await.expect(200);
    assert_eq!(plugin["versions"][0]["bound"][0]["topicName"], "orders", "{plugin}");
}

#[tokio::test]
async fn a_message_that_expires_is_counted_until_its_topic_goes() {
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    bed.ask("POST", PUBLISH, r#"{"topicName":"orders","payload":1,"ttl":"PT1S"}"#).await.expect(202);
    bed.broker.clock.advance(std::time::Duration::from_secs(2));
    let consumed = bed.ask("GET", "/api/v1/messages/consume/orders?consumerGroup=g", "").await.expect(200);
    assert_eq!(consumed["messages"], json!([]));
    let shown = r#"sluice_group_ended_messages_total{end="expired",group="",topic="orders"} 1"#;
    for _ in 0..2 {
        let text = bed.ask("GET", "/metrics", "").await.expect(200);
        assert!(text.as_str().unwrap().lines().any(|line| line == shown), "{text}");
    }
    bed.ask("DELETE", "/api/v1/topics/orders", "").await.expect(204);
    let text = bed.ask("GET", "/metrics", "").await.expect(200);
    assert!(!text.as_str().unwrap().contains("sluice_group_ended_messages_total{"), "{text}");
}
