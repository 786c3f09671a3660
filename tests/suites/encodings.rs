//! Bodies that are sent compressed. Invariant: they are taken as if they had been sent plain, to the bit, by every route; and
//! what they decode to is bounded, however little was sent.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};
use sluice_tests::{Answer, Broker, Settings};

const CODINGS: [&str; 2] = ["gzip", "zstd"];
const MIB: usize = 1 << 20;
/// The least that goes with messages of 32 KiB.
const BODY_BYTES_MAX: usize = 128 << 10;

fn encode(coding: &str, bytes: &[u8]) -> Vec<u8> {
    match coding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(bytes).expect("memory takes it");
            encoder.finish().expect("memory takes it")
        }
        "zstd" => zstd::encode_all(bytes, 3).expect("memory takes it"),
        other => panic!("no coding of ours: {other}"),
    }
}

async fn send_as(broker: &Broker, path: &str, coding: &str, more: &[(&str, &str)], body: Vec<u8>) -> Answer {
    let mut headers = vec![("content-encoding", coding)];
    headers.extend(more);
    broker.send(Method::POST, path, &headers, body).await
}

async fn send(broker: &Broker, path: &str, coding: &str, body: &Value) -> Answer {
    let json = [("content-type", "application/json")];
    send_as(broker, path, coding, &json, encode(coding, body.to_string().as_bytes())).await
}

/// Text that compresses, text that doesn't look like text, and some that is larger than any chunk.
fn payloads() -> Vec<String> {
    let long: String = (0..20_000).map(|n| format!("{n:x} ")).collect();
    vec!["\u{fc}\u{1f600} \"quoted\" \\ \u{7f}".to_owned(), "a".repeat(300_000), long, String::new()]
}

#[tokio::test]
async fn what_was_compressed_is_published_to_the_bit() {
    let broker = Broker::start().await;
    for coding in CODINGS {
        broker.create_topic(coding, "Queue").await;
        for payload in payloads() {
            let body = json!({"topicName": coding, "payload": payload});
            send(&broker, "/messages/publish", coding, &body).await.expect(202);
            let delivery = broker.consume(coding, "g").await.remove(0);
            assert_eq!(delivery.payload(), payload);
            delivery.ack().await;
        }
        let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let body = json!({"topicName": coding, "payloadBase64": STANDARD.encode(&bytes)});
        let body = encode(coding, body.to_string().as_bytes());
        send_as(&broker, "/messages/publish", &coding.to_uppercase(), &[], body).await.expect(202);
        let taken = broker.consume(coding, "g").answer().await.expect(200);
        let text = taken["messages"][0]["payloadBase64"].as_str().expect("bytes").to_owned();
        assert!(STANDARD.decode(text).expect("Base64") == bytes, "other bytes");
    }
}

#[tokio::test]
async fn batches_lines_events_and_schemas_are_taken_compressed() {
    let broker = Broker::start().await;
    for coding in CODINGS {
        broker.create_topic(coding, "Queue").await;
        let item = |n: usize| json!({"topicName": coding, "payload": {"n": n}});
        let messages: Vec<Value> = (0..500).map(item).collect();
        let answer = send(&broker, "/messages/publish/batch", coding, &json!({ "messages": messages })).await;
        assert_eq!(answer.expect(200)["accepted"], 500);

        let lines: String = (500..1000).map(|n| format!("{}\n", item(n))).collect();
        let ndjson = [("content-type", "application/x-ndjson")];
        let lines = encode(coding, lines.as_bytes());
        let answer = send_as(&broker, "/messages/publish/batch", coding, &ndjson, lines).await.expect(200);
        assert_eq!(answer["accepted"], 500, "{answer}");
        let taken = broker.consume(coding, "g").drain(1000).await;
        let numbers: Vec<Value> = taken.iter().map(|delivery| delivery.json()["n"].clone()).collect();
        assert_eq!(numbers, (0..1000).map(|n| json!(n)).collect::<Vec<_>>());

        let event = [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/shop"),
            ("ce-type", "t"),
            ("content-type", "image/png"),
        ];
        let data = encode(coding, &[0x89, b'P', 0xff, 0]);
        send_as(&broker, &format!("/messages/publish?topic={coding}"), coding, &event, data).await.expect(202);
        let taken = broker.consume(coding, "g").answer().await.expect(200);
        let message = &taken["messages"][0];
        assert_eq!(message["payloadBase64"], STANDARD.encode([0x89, b'P', 0xff, 0]), "{message}");
        assert!(message["headers"].get("content-encoding").is_none(), "it is no longer encoded: {message}");

        let definition = json!({"type": "object", "description": "d".repeat(10_000)}).to_string();
        let schema = json!({"schemaId": coding, "version": "1.0.0", "schemaDefinition": definition});
        send(&broker, "/schemas", coding, &schema).await.expect(201);
        let kept = broker.get(&format!("/schemas/{coding}")).await.text();
        assert!(kept.contains(&"d".repeat(10_000)), "{coding}");
    }
    broker.create_topic("plain", "Queue").await;
    let body = json!({"topicName": "plain", "payload": 1}).to_string().into_bytes();
    send_as(&broker, "/messages/publish", "identity", &[], body.clone()).await.expect(202);
    send_as(&broker, "/messages/publish", "x-gzip", &[], encode("gzip", &body)).await.expect(202);
    let parts = [encode("zstd", &body[..10]), encode("zstd", &body[10..])].concat();
    send_as(&broker, "/messages/publish", "zstd", &[], parts).await.expect(202);
    assert_eq!(broker.consume("plain", "g").limit(10).await.len(), 3);
}

#[tokio::test]
async fn a_bomb_is_refused_before_it_is_large() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    broker.publish("orders", "before").await;
    let before = broker.resident_bytes();
    for coding in CODINGS {
        // A GiB of zeros in some hundred kB.
        let bomb = encode(coding, &vec![0; 64 * MIB]).repeat(16);
        for path in ["/messages/publish", "/messages/publish/batch", "/schemas", "/topics"] {
            let answers = (0..4).map(|_| send_as(&broker, path, coding, &[], bomb.clone()));
            for answer in futures_util::future::join_all(answers).await {
                answer.expect_problem(413, "MESSAGE_TOO_LARGE");
            }
        }
    }
    let grown = broker.resident_bytes().saturating_sub(before);
    // Four bodies of 16 MiB at once, and what the allocator keeps of them.
    assert!(grown < 256 << 20, "{} MiB more", grown >> 20);
    assert_eq!(broker.consume("orders", "g").await.len(), 1, "it goes on");
}

#[tokio::test]
async fn the_limit_of_a_body_is_the_one_of_what_it_decodes_to() {
    let settings = Settings::new().env("SLUICE__LIMITS__BODY_BYTES_MAX", &BODY_BYTES_MAX.to_string());
    let broker = Broker::with(settings.env("SLUICE__MESSAGING__MAX_MESSAGE_SIZE", "32768")).await;
    broker.create_topic("orders", "Queue").await;
    for coding in CODINGS {
        let padded = |bytes: usize| {
            let body = json!({"topicName": "orders", "payload": 1}).to_string();
            let space = " ".repeat(bytes - body.len());
            encode(coding, (body + &space).as_bytes())
        };
        send_as(&broker, "/messages/publish", coding, &[], padded(BODY_BYTES_MAX)).await.expect(202);
        let beyond = send_as(&broker, "/messages/publish", coding, &[], padded(BODY_BYTES_MAX + 1)).await;
        beyond.expect_problem(413, "MESSAGE_TOO_LARGE");
        // What gives nothing counts as it is sent.
        let nothings = encode(coding, b"").repeat(20_000);
        assert!(nothings.len() > BODY_BYTES_MAX);
        send_as(&broker, "/messages/publish", coding, &[], nothings.clone())
            .await
            .expect_problem(413, "MESSAGE_TOO_LARGE");
        let pieces = futures_util::stream::iter(
            nothings.chunks(1000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect::<Vec<_>>(),
        );
        let body = reqwest::Body::wrap_stream(pieces);
        let answer = broker.send(Method::POST, "/messages/publish", &[("content-encoding", coding)], body).await;
        answer.expect_problem(413, "MESSAGE_TOO_LARGE");
    }
}

#[tokio::test]
async fn another_coding_is_refused_with_those_that_are_known() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let body = json!({"topicName": "orders", "payload": 1}).to_string().into_bytes();
    for coding in ["br", "deflate", "gzip, zstd", "identity, gzip", "gzip, gzip", ""] {
        let answer = send_as(&broker, "/messages/publish", coding, &[], body.clone()).await;
        answer.expect_problem(415, "UNSUPPORTED_MEDIA_TYPE");
        assert_eq!(answer.header("accept-encoding"), Some("gzip, zstd"), "{answer}");
    }
    // It is not the coding that is wrong here (RFC 9110 §12.5.3).
    let xml = [("content-type", "text/xml")];
    let answer = send_as(&broker, "/messages/publish", "gzip", &xml, encode("gzip", &body)).await;
    answer.expect_problem(415, "UNSUPPORTED_MEDIA_TYPE");
    assert_eq!(answer.header("accept-encoding"), None, "{answer}");
    broker.consume("orders", "g").expect_nothing().await;
}

#[tokio::test]
async fn what_is_cut_off_or_not_what_it_says_is_refused_and_stores_nothing() {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    let body = json!({"topicName": "orders", "payload": "x"}).to_string().into_bytes();
    for coding in CODINGS {
        let whole = encode(coding, &body);
        let cut = whole[..whole.len() - 1].to_vec();
        let followed = [whole.clone(), b"x".to_vec()].concat();
        for (wrong, word) in
            [(cut, "ends before"), (Vec::new(), "ends before"), (body.clone(), "can't be decoded"), (followed, coding)]
        {
            let problem = send_as(&broker, "/messages/publish", coding, &[], wrong).await;
            let problem = problem.expect_problem(400, "VALIDATION_ERROR");
            let message = problem["errors"][0]["message"].as_str().expect("a word");
            assert!(message.contains(word) && message.contains(coding), "{problem}");
        }
    }
    broker.consume("orders", "g").expect_nothing().await;
}

#[tokio::test]
async fn a_stream_of_lines_is_decoded_as_it_comes_however_long_it_is() {
    let broker = Broker::start().await;
    let ndjson = [("content-type", "application/x-ndjson")];
    let stream = "/messages/publish/stream";
    let answers = |answer: &Answer| -> Vec<Value> {
        assert_eq!(answer.status, 200, "{answer}");
        let lines = answer.text();
        let answers = lines.lines().filter(|line| line.starts_with('{'));
        answers.map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    for coding in CODINGS {
        broker.create_topic(coding, "Queue").await;
        let line = |n: usize| json!({"topicName": coding, "payload": n}).to_string() + "\n";
        let lines: String = (0..2000).map(line).collect();
        let whole = encode(coding, lines.as_bytes());
        let told = answers(&send_as(&broker, stream, coding, &ndjson, whole.clone()).await);
        assert_eq!(told.last(), Some(&json!({"summary": {"accepted": 2000, "refused": 0}})));
        let stored = broker.consume(coding, "g").drain(2000).await;
        assert!(stored.iter().map(|delivery| delivery.json()).eq((0..2000).map(|n| json!(n))), "in order");

        let cut = whole[..whole.len() - 1].to_vec();
        let told = answers(&send_as(&broker, stream, coding, &ndjson, cut).await);
        let last = told.last().expect("a last line");
        assert_eq!(last["error"]["code"], "VALIDATION_ERROR", "{last}");

        let before = broker.resident_bytes();
        let endless = encode(coding, &vec![0; 64 * MIB]).repeat(4);
        let told = answers(&send_as(&broker, stream, coding, &ndjson, endless).await);
        assert_eq!(told[0]["error"]["code"], "MESSAGE_TOO_LARGE", "{told:?}");
        let grown = broker.resident_bytes().saturating_sub(before);
        assert!(grown < 128 << 20, "{} MiB more", grown >> 20);
        let answer = send_as(&broker, stream, "br", &ndjson, Vec::new()).await;
        answer.expect_problem(415, "UNSUPPORTED_MEDIA_TYPE");
        assert_eq!(answer.header("accept-encoding"), Some("gzip, zstd"), "{answer}");
    }
}
