//! Requests that publish and settle, as anybody may send them, through the whole HTTP API of a broker without its socket.
//! Invariant: nothing that a client sends is the broker's fault (no 5xx), every refusal is a problem document, and what was
//! accepted is stored with the payload that JSON's own reader finds in the request.

use std::str::FromStr as _;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use sluice::broker::Broker;
use sluice::config::{Config, Flags};
use sluice::message::MessageId;
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

use super::{Seed, runtime, split_at};
use crate::token::Claims;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// Requests after which the broker does what it does now and then by itself: removes what its topics need not keep.
const REQUESTS_BETWEEN_UPKEEP: u32 = 512;

/// A request as HTTP/1.1 writes it: what follows `/api/v1/messages/` in its path, a line per header, an empty line, the body.
///
/// # Panics
/// When the broker breaks a promise.
pub fn run(input: &[u8]) {
    let Some((request, body)) = read(input) else { return };
    let server = server();
    let batch = request.uri().path().ends_with("/batch");
    let published = request.uri().path().starts_with("/api/v1/messages/publish");
    let mode = mode(&request);
    let (status, answer) = server.runtime.block_on(server.ask(request));
    assert!(!status.is_server_error(), "{status}: {answer}");
    if !status.is_success() {
        assert_eq!((answer["status"].as_u64(), answer["code"].is_string()), (Some(status.as_u16().into()), true));
        assert!(status != StatusCode::BAD_REQUEST || answer["detail"].is_string(), "{answer}");
    } else if published {
        server.runtime.block_on(server.is_stored(&body, &answer, (mode, batch)));
    }
}

/// How an accepted publish says what its payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// As messages of JSON.
    Message,
    /// As CloudEvents of JSON.
    Event,
    /// As the body itself.
    Data,
}

fn mode(request: &Request<Body>) -> Mode {
    let given = request.headers().get("content-type").map(|given| given.as_bytes()).unwrap_or_default();
    if given.to_ascii_lowercase().starts_with(b"application/cloudevents") {
        return Mode::Event;
    }
    let uri = reqwest::Url::parse(&format!("http://broker{}", request.uri()));
    let names_topic = uri.is_ok_and(|uri| uri.query_pairs().any(|(name, _)| name == "topic"));
    // No other publish is accepted with this parameter.
    if names_topic { Mode::Data } else { Mode::Message }
}

fn read(input: &[u8]) -> Option<(Request<Body>, Bytes)> {
    let (path, mut rest) = split_at(input, b'\n')?;
    let path = format!("/api/v1/messages/{}", std::str::from_utf8(path).ok()?);
    let uri = Uri::from_str(&path).ok()?;
    // Whoever consumes may wait, and here nobody waits for time to pass.
    if uri.path().contains("/consume") || uri.path().contains("/stream") {
        return None;
    }
    let mut request = Request::post(uri);
    let headers = request.headers_mut()?;
    loop {
        let (line, left) = split_at(rest, b'\n')?;
        rest = left;
        let Some((name, value)) = split_at(line, b':') else { break };
        let name = HeaderName::from_bytes(name).ok()?;
        headers.append(name, HeaderValue::from_bytes(value.trim_ascii()).ok()?);
    }
    if !headers.contains_key("authorization") {
        headers.insert("authorization", server().token.clone());
    }
    let body = Bytes::copy_from_slice(rest);
    Some((request.body(Body::from(body.clone())).ok()?, body))
}

/// A broker, and its routes.
struct Server {
    runtime: Runtime,
    app: Router,
    broker: Arc<Broker>,
    token: HeaderValue,
    asked: std::sync::atomic::AtomicU32,
    _dir: tempfile::TempDir,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let (runtime, dir) = (runtime(), tempfile::tempdir().expect("the system gives a temporary folder"));
        let _one_is_enough = rustls::crypto::ring::default_provider().install_default();
        let flags = Flags { data_dir: Some(dir.path().to_owned()), ..Flags::default() };
        let settings = [("JWT_SECRET".to_owned(), SECRET.to_owned())];
        let config = Config::load_from(&flags, &settings, dir.path()).expect("valid settings").config;
        let broker = runtime.block_on(Broker::open(config)).expect("a broker opens in an empty folder");
        let app = sluice::api::app(&broker).expect("its first API");
        let token = format!("Bearer {}", Claims::new("ann", &["Admin"]).sign(SECRET.as_bytes()));
        let token = token.parse().expect("a token is plain text");
        let server = Server { runtime, app, broker, token, asked: 0.into(), _dir: dir };
        server.runtime.block_on(server.prepare());
        server
    })
}

impl Server {
    /// A topic of each kind, which keep next to nothing.
    async fn prepare(&self) {
        for (name, kind, guarantee) in
            [("queue", "Queue", "AtLeastOnce"), ("events", "PubSub", "AtLeastOnce"), ("once", "PubSub", "ExactlyOnce")]
        {
            let topic = serde_json::json!({
                "name": name, "type": kind, "deliveryGuarantee": guarantee, "retentionPeriod": "PT1S",
                "partitionCount": 2,
            });
            let request = Request::post("/api/v1/topics").header("authorization", self.token.clone());
            let (status, answer) = self.ask(request.body(Body::from(topic.to_string())).expect("a request")).await;
            assert_eq!(status, StatusCode::CREATED, "{answer}");
        }
    }

    async fn ask(&self, request: Request<Body>) -> (StatusCode, Value) {
        let asked = self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if asked.is_multiple_of(REQUESTS_BETWEEN_UPKEEP) {
            self.broker.store.retain().await.expect("the store does it");
        }
        let response = self.app.clone().oneshot(request).await.expect("the edge never fails");
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 64 << 20).await.expect("a body");
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// What the answer calls stored is there, as it was sent.
    async fn is_stored(&self, body: &Bytes, answer: &Value, (mode, batch): (Mode, bool)) {
        if !batch {
            return self.is_message_stored(&payload(mode, body), answer).await;
        }
        let results = answer["results"].as_array().expect("a batch is answered item by item");
        let sent = sent_in_batch(mode, body);
        assert_eq!(sent.len(), results.len(), "{answer}");
        let refused = results.iter().filter(|result| result["status"] == "Rejected").count();
        assert_eq!((answer["refused"].as_u64(), answer["accepted"].as_u64()), {
            (Some(refused as u64), Some((results.len() - refused) as u64))
        });
        for (sent, result) in sent.iter().zip(results) {
            if result["status"] != "Rejected" {
                self.is_message_stored(&payload(mode, sent.as_bytes()), result).await;
            }
        }
    }

    async fn is_message_stored(&self, payload: &[u8], result: &Value) {
        let id: MessageId = result["messageId"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        if result["status"] == "Duplicate" {
            return;
        }
        let Some(found) = self.broker.store.get(id).await.expect("the store answers") else {
            // One that is late by a second is gone with its topic's retention.
            return;
        };
        assert_eq!(found.message.payload, payload, "{result}");
        assert_eq!(found.due.is_some(), result["status"] == "Scheduled", "{result}");
    }
}

/// What an accepted message or event has for its payload.
fn payload(mode: Mode, sent: &[u8]) -> Vec<u8> {
    let json = "what is accepted is JSON";
    match mode {
        Mode::Message => serde_json::from_slice::<Sent<'_>>(sent).expect(json).payload(),
        Mode::Event => serde_json::from_slice::<SentEvent<'_>>(sent).expect(json).payload(),
        Mode::Data => sent.to_vec(),
    }
}

/// An event as JSON's own reader sees it.
#[derive(Deserialize)]
struct SentEvent<'a> {
    #[serde(borrow, default, deserialize_with = "there")]
    data: Option<&'a RawValue>,
    data_base64: Option<String>,
    datacontenttype: Option<String>,
}

/// `null` is data too.
fn there<'de, D: serde::Deserializer<'de>>(source: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(source).map(Some)
}

impl SentEvent<'_> {
    fn payload(&self) -> Vec<u8> {
        let is_json = sluice::message::is_json(self.datacontenttype.as_deref().unwrap_or("application/json"));
        match (&self.data_base64, self.data) {
            (Some(text), _) => STANDARD.decode(text).expect("what is accepted is base64"),
            (None, None) => Vec::new(),
            (None, Some(raw)) if is_json => raw.get().as_bytes().to_vec(),
            (None, Some(raw)) => serde_json::from_str::<String>(raw.get()).expect("a string").into_bytes(),
        }
    }
}

/// A message as JSON's own reader sees it.
#[derive(Deserialize)]
struct Sent<'a> {
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(rename = "payloadBase64")]
    base64: Option<String>,
}

impl Sent<'_> {
    fn payload(&self) -> Vec<u8> {
        match (&self.base64, self.payload) {
            (Some(text), _) => STANDARD.decode(text).expect("what is accepted is base64"),
            (None, None) => b"null".to_vec(),
            (None, Some(raw)) => match serde_json::from_str::<String>(raw.get()) {
                Ok(text) => text.into_bytes(),
                Err(_) => raw.get().as_bytes().to_vec(),
            },
        }
    }
}

/// The items of a batch: of an array, or one a line.
fn sent_in_batch(mode: Mode, body: &[u8]) -> Vec<String> {
    if mode == Mode::Event {
        let events: Vec<&RawValue> = serde_json::from_slice(body).expect("what is accepted is JSON");
        return events.into_iter().map(|event| event.get().to_owned()).collect();
    }
    #[derive(Deserialize)]
    struct Items<'a> {
        #[serde(borrow)]
        messages: Vec<&'a RawValue>,
    }
    match serde_json::from_slice::<Items<'_>>(body) {
        Ok(items) => items.messages.into_iter().map(|item| item.get().to_owned()).collect(),
        Err(_) => {
            let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
            lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect()
        }
    }
}

/// Requests as clients send them; the events are real ones of GitHub's.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    let request = |head: &str, body: &str| format!("{head}\n\n{body}").into_bytes();
    let full = concat!(
        r#"{"topicName":"queue","payload":"{\"a\":1}","contentType":"application/json; charset=utf-8","#,
        r#""schemaVersion":"1.0.0","headers":{"source":"ci","empty":""},"priority":9,"ttl":"PT1H","delay":"PT0S","#,
        r#""correlationId":"c","replyTo":"answers","partitionKey":"k","idempotencyKey":"full"}"#
    );
    let lines =
        "{\"topicName\":\"events\",\"payload\":[1, 2.50]}\n\n{\"topicName\":\"nowhere\",\"payload\":null}\n{]\n";
    let batch = concat!(
        r#"{"messages":[{"topicName":"events","payload":1e400},{"topicName":"once","payload":{"b" : 2},"#,
        r#""idempotencyKey":"b"},{"topicName":"once","payload":"no key"},{"nmae":1}]}"#
    );
    let wire = "content-type: application/cloudevents+json";
    let cloud_event = concat!(
        r#"{"specversion":"1.0","id":"e\u0031","source":"/s?a=%20#f","type":"t","time":"2026-01-31T12:00:00.5+01:00","#,
        r#""subject":null,"n":-5,"b":true,"partitionkey":"k","datacontenttype":"text/xml","data":"<a\u002f>"}"#
    );
    let cloud_events = concat!(
        r#"[{"specversion":"1.0","id":"1","source":"s","type":"t","data":{"a" : 1e400}}, 5, {"id":7,"my-ext":[]},"#,
        r#"{"specversion":"1.0","id":"2","source":"s","type":"t","data_base64":"AAEC/w==","datacontenttype":"a/b"}]"#
    );
    let attributes = "ce-specversion: 1.0\nce-id: \"a \\\"1\"\nce-source: /s\nce-type: Euro%20%e2%82%ac\nce-ext: x";
    let id = "018f0000-0000-7000-8000-000000000000";
    let receipt = "A".repeat(51);
    let event = real_event();
    vec![
        ("event", request("publish?explain=true", &format!(r#"{{"topicName":"events","payload":{event}}}"#))),
        ("full", request("publish\ncontent-type: application/json", full)),
        ("base64", request("publish", r#"{"topicName":"events","payloadBase64":"AAEC/w==","headers":{}}"#)),
        ("escaped", request("publish", r#"{"topicName":"events","payload":"\u00e9\ud83d\ude00\n\"","priority":0}"#)),
        ("times", request("publish", r#"{"topicName":"queue","payload":0,"expiresAt":"2099-01-01T00:00:00+01:00"}"#)),
        ("key", request("publish\nidempotency-key: k\ntraceparent: 00-0-0-01", r#"{"topicName":"once","payload":{}}"#)),
        ("faults", request("publish", r#"{"topicName":5,"headers":{"a":1},"priority":10,"ttl":"1h","a/b":0}"#)),
        ("batch", request("publish/batch", batch)),
        ("batch_atomic", request("publish/batch?atomic=true", batch)),
        ("lines", request("publish/batch\ncontent-type: application/x-ndjson", lines)),
        ("cloud_event", request(&format!("publish?topic=once&explain=true\n{wire}"), cloud_event)),
        (
            "cloud_events",
            request(
                "publish/batch?topic=events\ncontent-type: application/cloudevents-batch+json; charset=utf-8",
                cloud_events,
            ),
        ),
        ("cloud_event_binary", request(&format!("publish?topic=events\n{attributes}\ncontent-type: a/b"), "\0<a/>")),
        ("ack", request(&format!("{id}/ack"), &format!(r#"{{"receipt":"{receipt}","consumerGroup":"g"}}"#))),
        ("nack", request(&format!("{id}/nack"), r#"{"consumerGroup":"g","reason":"later","delay":30}"#)),
        ("extend", request(&format!("{id}/extend"), r#"{"ackTimeout":"PT30S"}"#)),
        (
            "settle",
            request(
                "ack/batch",
                &format!(r#"{{"acks":[{{"receipt":"{receipt}"}}],"nacks":[{{"messageId":"{id}"}}]}}"#),
            ),
        ),
    ]
}

/// The shortest of `tests/data/github-events.ndjson.gz`.
fn real_event() -> String {
    let packed: &[u8] = include_bytes!("../../data/github-events.ndjson.gz");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(packed), &mut text).expect("it unpacks");
    text.lines().min_by_key(|line| line.len()).expect("there are some").to_owned()
}
