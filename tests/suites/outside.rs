//! Clients that others have written, unmodified: the official Standard Webhooks libraries check what Sluice sends, the official
//! CloudEvents SDKs write what it takes and read what it sends, and schemathesis holds the HTTP API against the document that
//! the broker serves. Invariant: what a library makes of a request is asked of the library.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};
use sluice_tests::receiver::{Request, Scripted};
use sluice_tests::{Broker, Receiver, outside};

/// Runs a script of an SDK.
type Run = fn(&str, &Value) -> Value;

/// A webhook as a library takes it, with what it must say of it.
struct Case {
    what: &'static str,
    secret: String,
    headers: Value,
    body: Vec<u8>,
    verifies: bool,
}

impl Case {
    fn of(what: &'static str, request: &Request, secret: &str, verifies: bool) -> Case {
        let header = |name: &str| (name.to_owned(), json!(request.header(name)));
        let headers = ["webhook-id", "webhook-timestamp", "webhook-signature"].map(header);
        Case {
            what,
            secret: secret.to_owned(),
            headers: headers.into_iter().collect(),
            body: request.body.to_vec(),
            verifies,
        }
    }

    fn changed(mut self, what: &'static str, change: impl FnOnce(&mut Case)) -> Case {
        (self.what, self.verifies) = (what, false);
        change(&mut self);
        self
    }
}

#[tokio::test]
async fn the_official_libraries_verify_every_delivery_also_while_a_secret_rotates_and_refuse_a_changed_byte() {
    let (broker, receiver) = (Broker::start().await, Receiver::start().await);
    broker.create_topic("events", "PubSub").await;
    let mut cases = Vec::new();
    for format in ["envelope", "raw"] {
        let subscription = broker.subscribe_push("events", format, &receiver.url(), json!({"format": format})).await;
        let (id, old) = (&subscription["subscriptionId"], subscription["secret"].as_str().expect("a secret"));
        let path = format!("/subscriptions/{}", id.as_str().expect("an id"));
        let before = receiver.requests().len();
        // The second attempt is signed anew.
        receiver.answers([Scripted::from(503).header("retry-after", "0")]);
        broker.publish("events", json!({"text": "grüße", "number": 1})).await;
        let sent = receiver.received(before + 2).await.split_off(before);
        cases.extend(sent.iter().map(|request| Case::of("a delivery", request, old, true)));

        let rotated = broker.post(&format!("{path}/secret/rotate"), &json!({})).await.expect(200);
        let new = rotated["secret"].as_str().expect("a secret");
        broker.publish("events", json!([])).await;
        let during = receiver.received(before + 3).await.remove(before + 2);
        cases.push(Case::of("the old secret during a rotation", &during, old, true));
        cases.push(Case::of("the new secret during a rotation", &during, new, true));

        let leaked = broker.post(&format!("{path}/secret/rotate"), &json!({"overlap": "PT0S"})).await.expect(200);
        broker.publish("events", json!({"number": 3})).await;
        let after = receiver.received(before + 4).await.remove(before + 3);
        let whole = || Case::of("a delivery", &after, leaked["secret"].as_str().expect("a secret"), true);
        cases.push(Case::of("a secret that was given up", &after, new, false));
        cases.push(whole().changed("a changed byte", |case| case.body[1] ^= 1));
        cases.push(whole().changed("another id", |case| case.headers["webhook-id"] = json!("another")));
        let later = after.header("webhook-timestamp").parse::<u64>().expect("seconds") + 1;
        cases
            .push(whole().changed("another time", |case| case.headers["webhook-timestamp"] = json!(later.to_string())));
        cases.push(whole());
        broker.delete(&path).await.expect(204);
    }
    let input: Vec<Value> = cases
        .iter()
        .map(|case| json!({"secret": case.secret, "headers": case.headers, "body": STANDARD.encode(&case.body)}))
        .collect();
    let expected: Vec<(&str, bool)> = cases.iter().map(|case| (case.what, case.verifies)).collect();
    for (library, said) in [
        ("PyPI", outside::python("verify_webhooks.py", &json!(input))),
        ("npm", outside::node("verify_webhooks.cjs", &json!(input))),
    ] {
        let said = said.as_array().expect("a list").iter().map(|verified| verified.as_bool().expect("a truth value"));
        let found: Vec<(&str, bool)> = cases.iter().map(|case| case.what).zip(said).collect();
        assert_eq!(found, expected, "the library of {library}");
    }
}

#[tokio::test]
async fn the_official_sdks_write_events_that_are_taken_and_read_them_back_as_they_were() {
    // The one for Node leaves what the binding percent-encodes in headers as it is (10.0.0), so it gets none of that.
    let sdks: [(&str, Run, [&str; 3]); 2] = [
        ("PyPI", outside::python, ["cloud_events.py", "größe \"1\" 100%", "ü x"]),
        ("npm", outside::node, ["cloud_events.cjs", "size-1", "x"]),
    ];
    let events = |subject: &str, extension: &str| {
        [
            json!({"id": "json", "source": "/shop/orders", "type": "com.example.order", "specversion": "1.0",
            "datacontenttype": "application/json", "subject": subject, "dataschema": "https://example.com/s",
            "time": "2026-01-31T12:00:00.123000+00:00", "comexample": extension, "data": {"a": [1, 2.5, null], "s": "ü"}}),
            json!({"id": "bytes", "source": "urn:x:y", "type": "com.example.bytes", "specversion": "1.0",
            "time": "2026-01-31T12:00:00.000000+00:00", "datacontenttype": "application/octet-stream", "data_base64": "AP8B"}),
            json!({"id": "text", "source": "/texts", "type": "com.example.text", "specversion": "1.0",
            "time": "2026-01-31T12:00:00.000000+00:00", "datacontenttype": "text/plain", "data": "hällo"}),
        ]
    };
    for (name, run, [script, subject, extension]) in sdks {
        let events = events(subject, extension);
        let (broker, receiver) = (Broker::start().await, Receiver::start().await);
        broker.create_topic("events", "PubSub").await;
        for format in ["cloudEvents", "cloudEventsStructured"] {
            broker.subscribe_push("events", format, &receiver.url(), json!({"format": format})).await;
        }
        let written = run(script, &json!({"write": events, "read": []}))["written"].clone();
        let written = written.as_array().expect("a list");
        assert_eq!(written.len(), 2 * events.len());
        for message in written {
            let headers = message["headers"].as_object().expect("headers");
            let headers: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (&**name, value.as_str().expect("a text"))).collect();
            let body = STANDARD.decode(message["body"].as_str().expect("a text")).expect("base64");
            let answer = broker.send(Method::POST, "/messages/publish?topic=events", &headers, body).await;
            assert_eq!(answer.expect(202)["status"], "Pending", "{name}: {message}");
        }
        let requests: Vec<Value> = receiver.received(2 * written.len()).await.iter().map(as_read).collect();
        let read = run(script, &json!({"write": [], "read": requests}))["read"].clone();
        for event in &events {
            for mode in ["binary", "structured"] {
                let id = format!("{}-{mode}", event["id"].as_str().expect("an id"));
                let found: Vec<Value> =
                    read.as_array().expect("a list").iter().filter(|read| read["id"] == *id).map(normal).collect();
                let mut expected = normal(event);
                expected["id"] = json!(id);
                assert_eq!(found, [expected.clone(), expected], "{name}, in both formats");
            }
        }
    }
}

/// A webhook as a script reads it.
fn as_read(request: &Request) -> Value {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers: serde_json::Map<String, Value> =
        request.headers.iter().map(|(name, value)| (name.to_string(), json!(text(value)))).collect();
    json!({"headers": headers, "body": STANDARD.encode(&request.body)})
}

/// An event with its time and its data in one form: SDKs differ in how they show them, not in what they are.
fn normal(event: &Value) -> Value {
    let mut event = event.clone();
    let time = event["time"].as_str().expect("a time");
    event["time"] = json!(time.parse::<jiff::Timestamp>().expect("RFC 3339").to_string());
    if let Some(text) = event["data"].as_str() {
        event["data_base64"] = json!(STANDARD.encode(text));
        event.as_object_mut().expect("an object").remove("data");
    }
    let sorted: std::collections::BTreeMap<String, Value> =
        event.as_object().expect("an object").clone().into_iter().filter(|(_, value)| !value.is_null()).collect();
    json!(sorted)
}

#[tokio::test]
async fn schemathesis_finds_no_answer_that_the_document_does_not_have() {
    let broker = Broker::start().await;
    let output = outside::schemathesis()
        .args(["run", &format!("{}/openapi.json", broker.admin().url())])
        .args(["--header", &format!("Authorization: Bearer {}", broker.admin().token())])
        .args(["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"])
        .args(["--checks", "response_schema_conformance,response_headers_conformance"])
        // Fixed, so that a run finds what the last one found; a long poll takes half a minute.
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--seed", "1", "--workers", "1"])
        .args(["--generation-deterministic", "--request-timeout", "60", "--no-color"])
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", outside::said(&output));
}
