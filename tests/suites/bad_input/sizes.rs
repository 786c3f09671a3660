//! The largest that is taken, and one more. Invariant: at a limit of the contract all is well; one beyond it is refused with
//! its code, and nothing of it is stored.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};
use sluice_tests::{Answer, Broker, Settings};

use super::stored::{difference, stored};
use super::wire::Wire;

/// `messaging.max_message_size`, by default.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// `limits.body_bytes_max`, as it is set here.
const BODY_BYTES_MAX: usize = 4 << 20;

const TOO_LARGE: (u16, &str) = (413, "MESSAGE_TOO_LARGE");
const INVALID: (u16, &str) = (400, "VALIDATION_ERROR");

/// What has a limit.
struct Size {
    what: &'static str,
    limit: usize,
    /// The request that has so much of it.
    request: fn(usize) -> Request,
    /// What one too many is answered.
    refused: (u16, &'static str),
}

struct Request {
    method: Method,
    path: &'static str,
    media_type: &'static str,
    body: Vec<u8>,
}

fn json_to(method: Method, path: &'static str, body: &Value) -> Request {
    Request { method, path, media_type: "application/json", body: body.to_string().into_bytes() }
}

fn post(path: &'static str, body: &Value) -> Request {
    json_to(Method::POST, path, body)
}

fn x(count: usize) -> String {
    "x".repeat(count)
}

/// A message with one more field.
fn message(field: &str, value: impl Into<Value>) -> Value {
    let mut message = json!({"topicName": "jobs", "payload": {}});
    message[field] = value.into();
    message
}

fn publish(field: &str, value: impl Into<Value>) -> Request {
    post("/messages/publish", &message(field, value))
}

fn batch(messages: &[Value]) -> Request {
    post("/messages/publish/batch", &json!({ "messages": messages }))
}

fn lines(messages: &[Value]) -> Request {
    let body = messages.iter().map(|message| format!("{message}\n")).collect::<String>().into_bytes();
    Request { method: Method::POST, path: "/messages/publish/batch", media_type: "application/x-ndjson", body }
}

/// Pairs whose names and values have so many bytes together.
fn pairs(count: usize, bytes: usize) -> Value {
    let name = |n: usize| format!("h{n:03}");
    let last = bytes.saturating_sub(count * 4);
    (0..count)
        .map(|n| (name(n), Value::from(if n == 0 { x(last) } else { String::new() })))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn topic(field: &str, value: impl Into<Value>) -> Request {
    let mut topic = json!({"name": format!("t-{field}"), "type": "Queue"});
    topic[field] = value.into();
    post("/topics", &topic)
}

fn schema(field: &str, value: impl Into<Value>) -> Request {
    let mut schema = json!({"schemaId": format!("s-{field}"), "version": "1", "schemaDefinition": {}});
    schema[field] = value.into();
    post("/schemas", &schema)
}

fn subscription(field: &str, value: impl Into<Value>) -> Request {
    let value = value.into();
    // Each has a group of its own.
    let group = format!("{field}-{}", value.to_string().len());
    let mut push = json!({
        "topicName": "news", "consumerGroup": group, "type": "Push", "consumerEndpoint": "http://127.0.0.1:9/",
    });
    push[field] = value;
    post("/subscriptions", &push)
}

fn pipeline(stages: Vec<Value>) -> Request {
    json_to(Method::PUT, "/topics/staged/pipeline", &json!({ "stages": stages }))
}

fn stage(name: &str, config: Value) -> Value {
    json!({"name": name, "plugin": "filter", "config": config})
}

/// A document of so many bytes: `before`, filled up, `after`.
fn filled(before: &str, bytes: usize, after: &str) -> String {
    format!("{before}{}{after}", x(bytes - before.len() - after.len()))
}

fn size(what: &'static str, limit: usize, refused: (u16, &'static str), request: fn(usize) -> Request) -> Size {
    Size { what, limit, request, refused }
}

fn sizes() -> Vec<Size> {
    [payloads(), fields(), definitions()].into_iter().flatten().collect()
}

fn payloads() -> Vec<Size> {
    vec![
        size("a payload", MESSAGE_BYTES_MAX, TOO_LARGE, |n| publish("payload", x(n))),
        size("a payload inline", MESSAGE_BYTES_MAX, TOO_LARGE, |n| publish("payload", json!([x(n - 4)]))),
        size("a payload as base64", MESSAGE_BYTES_MAX, TOO_LARGE, |n| {
            post("/messages/publish", &json!({"topicName": "jobs", "payloadBase64": STANDARD.encode(x(n))}))
        }),
        size("a payload of characters", MESSAGE_BYTES_MAX, TOO_LARGE, |n| {
            publish("payload", "é".repeat(n / 2) + &x(n % 2))
        }),
        size("a payload in a batch", MESSAGE_BYTES_MAX, TOO_LARGE, |n| batch(&[message("payload", x(n))])),
        size("a payload in a line", MESSAGE_BYTES_MAX, TOO_LARGE, |n| lines(&[message("payload", x(n))])),
        size("a body", BODY_BYTES_MAX, TOO_LARGE, |n| {
            let mut request = publish("payload", "small");
            request.body.resize(n, b' ');
            request
        }),
        size("a body of lines", BODY_BYTES_MAX, TOO_LARGE, |n| {
            let mut request = lines(&[message("payload", "small")]);
            request.body.resize(n, b'\n');
            request
        }),
        size("messages in a batch", 10_000, INVALID, |n| batch(&vec![message("payload", 1); n])),
        size("messages in lines", 10_000, INVALID, |n| lines(&vec![message("payload", 1); n])),
        size("settlements in a batch", 10_000, INVALID, |n| {
            post("/messages/ack/batch", &json!({"acks": vec![json!({"receipt": "x"}); n]}))
        }),
    ]
}

fn fields() -> Vec<Size> {
    vec![
        size("headers", 64, INVALID, |n| publish("headers", pairs(n, 0))),
        size("bytes of headers", 16 * 1024, INVALID, |n| publish("headers", pairs(4, n))),
        size("a correlation id", 1024, INVALID, |n| publish("correlationId", x(n))),
        size("a place for answers", 1024, INVALID, |n| publish("replyTo", x(n))),
        size("a partition key", 1024, INVALID, |n| publish("partitionKey", x(n))),
        size("an idempotency key", 1024, INVALID, |n| publish("idempotencyKey", x(n))),
        size("a schema's version that is meant", 1024, INVALID, |n| publish("schemaVersion", x(n))),
        size("a media type", 1024, INVALID, |n| publish("contentType", filled("a/", n, ""))),
        size("a priority", 9, INVALID, |n| publish("priority", n)),
        size("a topic's name", 251, INVALID, |n| topic("name", x(n))),
        size("a topic's description", 4096, INVALID, |n| topic("description", x(n))),
        size("a topic's schema", 255, INVALID, |n| topic("schemaId", x(n))),
        size("a topic's partitions", 64, INVALID, |n| topic("partitionCount", n)),
        size("a topic's messages", MESSAGE_BYTES_MAX, INVALID, |n| topic("maxMessageSize", n)),
        size("a group's name", 255, INVALID, |n| subscription("consumerGroup", x(n))),
        size("an endpoint", 2048, INVALID, |n| subscription("consumerEndpoint", filled("http://127.0.0.1:9/", n, ""))),
        size("a subscription's headers", 64, INVALID, |n| subscription("headers", pairs(n, n * 5))),
        size("retries", 100, INVALID, |n| subscription("maxRetries", n)),
        size("headers that a filter compares", 64, INVALID, |n| {
            subscription("filter", json!({"headerMatches": pairs(n, 0)}))
        }),
        size("bytes that a filter compares", 16 * 1024, INVALID, |n| {
            subscription("filter", json!({"headerMatches": pairs(4, n), "payloadQuery": "$.a == 1"}))
        }),
    ]
}

fn definitions() -> Vec<Size> {
    vec![
        size("a schema's id", 255, INVALID, |n| schema("schemaId", x(n))),
        size("a schema's version", 50, INVALID, |n| schema("version", x(n))),
        size("a schema's definition", 256 * 1024, INVALID, |n| {
            schema("schemaDefinition", filled(r#"{"description":""#, n, r#""}"#))
        }),
        size("a stage's name", 64, INVALID, |n| pipeline(vec![stage(&x(n), json!({}))])),
        size("a stage's config", 1 << 20, INVALID, |n| {
            let config = filled(r#"{"headerMatches":{"k":""#, n, r#""}}"#);
            pipeline(vec![stage("large", serde_json::from_str(&config).expect("JSON"))])
        }),
        size("a stage's CPU time", 5000, INVALID, |n| {
            let mut stage = stage("slow", json!({}));
            stage["timeoutMs"] = n.into();
            pipeline(vec![stage])
        }),
        size("a stage's memory", 64, INVALID, |n| {
            let mut stage = stage("large", json!({}));
            stage["memoryMb"] = n.into();
            pipeline(vec![stage])
        }),
        size("stages", 16, INVALID, |n| pipeline((0..n).map(|at| stage(&format!("s{at}"), json!({}))).collect())),
    ]
}

async fn start() -> Broker {
    let broker = Broker::with(Settings::new().env("SLUICE__LIMITS__BODY_BYTES_MAX", "4194304")).await;
    for (topic, kind) in [("jobs", "Queue"), ("staged", "Queue"), ("news", "PubSub")] {
        broker.create_topic(topic, kind).await;
    }
    broker
}

async fn ask(broker: &Broker, request: Request) -> Answer {
    broker.send(request.method, request.path, &[("content-type", request.media_type)], request.body).await
}

/// What is wrong with an answer, a batch's own or its first item's.
fn refusal(answer: &Answer) -> Option<Value> {
    match answer.status {
        200..300 => answer.json()["results"][0].get("error").cloned(),
        _ => Some(answer.problem().unwrap_or_else(|fault| panic!("{fault}: {answer}"))),
    }
}

#[tokio::test]
async fn one_beyond_a_limit_is_refused_and_the_limit_itself_is_taken() {
    let broker = start().await;
    let mut faults = Vec::new();
    for Size { what, limit, request, refused } in sizes() {
        let before = stored(&broker).await;
        let answer = ask(&broker, request(limit + 1)).await;
        let problem = refusal(&answer).unwrap_or_default();
        if problem["status"] != refused.0 || problem["code"] != refused.1 {
            faults.push(format!("{what}, {limit} and one more: not {refused:?}: {answer}"));
        } else if let Some(difference) = difference(&before, &stored(&broker).await) {
            faults.push(format!("{what}, {limit} and one more: {difference}"));
        }
        let answer = ask(&broker, request(limit)).await;
        // Of settlements, the number is right and each names no lease.
        let settled = request(limit).path == "/messages/ack/batch" && answer.status == 200;
        if !settled && let Some(problem) = refusal(&answer) {
            faults.push(format!("{what}, {limit}: {problem}"));
        }
    }
    let shorten = |fault: &String| fault.chars().take(600).collect::<String>();
    assert!(faults.is_empty(), "{}", faults.iter().map(shorten).collect::<Vec<_>>().join("\n"));
}

/// Without a length that is announced, what comes is counted.
#[tokio::test]
async fn a_body_without_a_length_is_counted_as_it_comes() {
    let broker = start().await;
    let before = stored(&broker).await;
    for (bytes, status) in [(BODY_BYTES_MAX + 1, 413), (BODY_BYTES_MAX, 202)] {
        let mut body = message("payload", "small").to_string().into_bytes();
        body.resize(bytes, b' ');
        let head = format!(
            "POST /api/v1/messages/publish HTTP/1.1\r\nhost: broker\r\nauthorization: Bearer {}\r\n\
             transfer-encoding: chunked\r\n\r\n{:x}\r\n",
            broker.token(),
            body.len()
        );
        let mut wire = Wire::to(&broker).await;
        wire.send(&[head.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat()).await;
        let answer = wire.expect_answer().await;
        assert_eq!(answer.status, status, "{answer}");
        if status == 413 {
            answer.expect_problem(413, "MESSAGE_TOO_LARGE");
            assert_eq!(difference(&before, &stored(&broker).await), None);
        }
    }
}
