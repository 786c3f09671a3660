//! What a request must not hold. Invariant: what the broker would not heed is refused, by its place, and one fault hides no
//! other.

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use super::{Bed, token};
use crate::api::auth::token::Role;

const PUBLISH: &str = "/api/v1/messages/publish";
const SETTLE: &str = "/api/v1/messages/ack/batch";
const SUBSCRIPTIONS: &str = "/api/v1/subscriptions";

fn pointers(problem: &Value) -> Vec<&str> {
    problem["errors"].as_array().unwrap().iter().filter_map(|fault| fault["pointer"].as_str()).collect()
}

impl Bed {
    async fn refused(&self, method: &str, path: &str, body: &str) -> Value {
        self.ask(method, path, body).await.problem(400, "VALIDATION_ERROR")
    }

    /// A topic `news` with a Push subscription, by its path.
    async fn subscribed(&self) -> String {
        self.topic("news", "PubSub").await;
        let body = r#"{"topicName":"news","consumerGroup":"g","type":"Push","consumerEndpoint":"http://127.0.0.1:9/",
            "headers":{"X-Key":"hidden"}}"#;
        let made = self.ask("POST", SUBSCRIPTIONS, body).await.expect(201);
        format!("{SUBSCRIPTIONS}/{}", made["subscriptionId"].as_str().unwrap())
    }
}

#[tokio::test]
async fn an_action_takes_no_fields() {
    let bed = Bed::open().await;
    let subscription = bed.subscribed().await;
    let actions = [
        "/api/v1/topics/news/purge".to_owned(),
        "/api/v1/topics/news/dlq/018f0000-0000-7000-8000-000000000000/replay".to_owned(),
        format!("{subscription}/pause"),
        format!("{subscription}/resume"),
        format!("{subscription}/test"),
        format!("{subscription}/secret/rotate"),
    ];
    for path in actions {
        assert_eq!(pointers(&bed.refused("POST", &path, r#"{"partition":1}"#).await), ["/partition"], "{path}");
        for nothing in ["", "{}"] {
            let answer = bed.ask("POST", &path, nothing).await;
            assert!(answer.status == 200 || path.contains("dlq") && answer.status == 404, "{path}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_malformed_item_fails_alone() {
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    bed.ask("POST", PUBLISH, r#"{"topicName":"orders","payload":1}"#).await.expect(202);
    let leased = bed.ask("GET", "/api/v1/messages/consume/orders?consumerGroup=g", "").await.expect(200);
    let receipt = &leased["messages"][0]["receipt"];
    let body = json!({
        "acks": [{"receipt": 5}, [receipt], {"receipt": receipt}, {"messageId": "none", "extra": 1}],
        "nacks": ["word", {"receipt": "x", "delay": "P367D"}],
    });
    let settled = bed.ask("POST", SETTLE, &body.to_string()).await.expect(200);
    let results = settled["results"].as_array().unwrap();
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["Refused", "Refused", "Acked", "Refused", "Refused", "Refused"], "{settled}");
    let of = |at: usize| pointers(&results[at]["error"]);
    assert_eq!((of(0), of(1), of(4)), (vec!["/receipt"], vec![""], vec![""]), "{settled}");
    assert_eq!((of(3), of(5)), (vec!["/messageId", "/extra"], vec!["/delay"]), "{settled}");
    for envelope in ["[]", "{}", r#"{"acks":{}}"#, r#"{"acks":[{"receipt":"x"}],"surplus":[]}"#, "[[{}],[]]"] {
        bed.refused("POST", SETTLE, envelope).await;
    }
}

#[tokio::test]
async fn a_target_that_is_not_there_hides_no_other_fault_of_a_pipeline() {
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    let stages = json!({"stages": [
        {"name": "a", "plugin": "filter", "emitTo": ["absent"]},
        {"name": "a b", "plugin": "filter"},
        {"name": "c", "plugin": "filter", "config": {"unknown": 1}},
        {"name": "d", "plugin": "absent"},
    ]});
    let problem = bed.refused("PUT", "/api/v1/topics/orders/pipeline", &stages.to_string()).await;
    let mut found = pointers(&problem);
    found.sort_unstable();
    let expected = ["/stages/0/emitTo/0", "/stages/1/name", "/stages/2/config", "/stages/3/plugin"];
    assert_eq!(found, expected, "{problem}");
}

#[tokio::test]
async fn a_coded_body_is_not_read_as_a_plain_one() {
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    let publish = |coding: &str| {
        let bearer = format!("Bearer {}", token(&[Role::Admin], None));
        let request = Request::post(PUBLISH).header("authorization", bearer).header("content-encoding", coding);
        bed.send(request.body(Body::from(r#"{"topicName":"orders","payload":1}"#)).unwrap())
    };
    for coding in ["br", "identity, gzip", "gzip, gzip", ""] {
        publish(coding).await.problem(415, "UNSUPPORTED_MEDIA_TYPE");
    }
    for coding in ["gzip", "zstd"] {
        publish(coding).await.problem(400, "VALIDATION_ERROR");
    }
    publish("Identity").await.expect(202);
}

#[tokio::test]
async fn null_takes_away_only_what_can_be_missing() {
    let bed = Bed::open().await;
    let subscription = bed.subscribed().await;
    let topic = r#"{"description":null,"retentionPeriod":null,"dedupWindow":null,"maxMessageSize":null,
        "deliveryGuarantee":null,"deadLetterPayload":null,"schemaId":null,"retentionBytes":null}"#;
    let problem = bed.refused("PUT", "/api/v1/topics/news", topic).await;
    let kept = ["description", "retentionPeriod", "dedupWindow", "maxMessageSize", "deliveryGuarantee"];
    let expected: Vec<String> = kept.iter().chain(&["deadLetterPayload"]).map(|name| format!("/{name}")).collect();
    assert_eq!(pointers(&problem), expected, "{problem}");
    let body = r#"{"backoff":null,"headers":null,"maxRetries":null,"ackTimeout":null,"ordered":null,"format":null,
        "consumerEndpoint":null,"filter":null,"maxInFlight":null,"rateLimit":null}"#;
    let problem = bed.refused("PUT", &subscription, body).await;
    let expected = ["/backoff", "/headers", "/maxRetries", "/ackTimeout", "/ordered", "/format", "/consumerEndpoint"];
    assert_eq!(pointers(&problem), expected, "{problem}");
    let problem = bed.refused("PUT", &subscription, r#"{"backoff":{"initial":null,"jitter":null}}"#).await;
    assert_eq!(pointers(&problem), ["/backoff/initial", "/backoff/jitter"], "{problem}");
    bed.ask("PUT", &subscription, r#"{"filter":null,"maxInFlight":null,"rateLimit":null}"#).await.expect(200);
}

#[tokio::test]
async fn an_array_is_not_taken_for_an_object() {
    let bed = Bed::open().await;
    let subscription = bed.subscribed().await;
    for (method, path, body, pointer) in [
        ("PUT", subscription.as_str(), r#"{"backoff":["PT1S"]}"#, "/backoff"),
        ("PUT", &subscription, r#"{"filter":[{}]}"#, "/filter"),
        ("PUT", &subscription, r#"{"filter":{"headerMatches":[]}}"#, "/filter/headerMatches"),
        ("PUT", "/api/v1/topics/news/pipeline", r#"{"stages":[["a","filter"]]}"#, "/stages/0"),
        ("PUT", "/api/v1/topics/news/pipeline", r#"[[{"name":"a","plugin":"filter"}]]"#, ""),
        ("POST", "/api/v1/messages/publish/batch", r#"[[{"topicName":"news","payload":1}]]"#, ""),
    ] {
        assert_eq!(pointers(&bed.refused(method, path, body).await), [pointer], "{body}");
    }
    let batch = r#"{"messages":[["news",1]]}"#;
    let answer = bed.ask("POST", "/api/v1/messages/publish/batch", batch).await.expect(200);
    assert_eq!(pointers(&answer["results"][0]["error"]), [""], "{answer}");
}

#[tokio::test]
async fn a_header_is_named_once_and_never_stands_for_a_secret_that_is_not_there() {
    let bed = Bed::open().await;
    let subscription = bed.subscribed().await;
    let made = |headers: &str| {
        format!(
            r#"{{"topicName":"news","consumerGroup":"h","type":"Push","consumerEndpoint":"http://127.0.0.1:9/","headers":{headers}}}"#
        )
    };
    let redacted = made(r#"{"a/b":"[redacted]"}"#);
    assert_eq!(pointers(&bed.refused("POST", SUBSCRIPTIONS, &redacted).await), ["/headers/a~1b"]);
    let twice = made(r#"{"X-Key":"1","x-key":"2"}"#);
    assert_eq!(pointers(&bed.refused("POST", SUBSCRIPTIONS, &twice).await), ["/headers/x-key"]);
    let other = r#"{"headers":{"x-key":"[redacted]","x-other":"[redacted]"}}"#;
    assert_eq!(pointers(&bed.refused("PUT", &subscription, other).await), ["/headers/x-other"]);
    bed.ask("PUT", &subscription, r#"{"headers":{"x-key":"[redacted]"}}"#).await.expect(200);
}

#[tokio::test]
async fn no_text_holds_what_it_would_lose_on_its_way() {
    let bed = Bed::open().await;
    let subscription = bed.subscribed().await;
    for label in ["schemaVersion", "correlationId", "replyTo", "partitionKey", "idempotencyKey"] {
        for text in ["a\0b", "a\r\nb", "a\u{7f}"] {
            let body = json!({"topicName": "news", "payload": "\0", label: text}).to_string();
            assert_eq!(pointers(&bed.refused("POST", PUBLISH, &body).await), [format!("/{label}")], "{body}");
        }
    }
    let nack = "/api/v1/messages/018f0000-0000-7000-8000-000000000000/nack";
    let filter = |name: &str, value: &str| json!({"filter": {"headerMatches": {name: value}}}).to_string();
    let endpoint = |url: &str| json!({"consumerEndpoint": url}).to_string();
    for (method, path, body, pointer) in [
        ("PUT", "/api/v1/topics/news", r#"{"description":"a\u0000b"}"#.to_owned(), "/description"),
        ("POST", nack, r#"{"reason":"a\u0000b"}"#.to_owned(), "/reason"),
        ("PUT", &subscription, filter("k\n", "v"), "/filter/headerMatches/k\n"),
        ("PUT", &subscription, filter("k", "\0"), "/filter/headerMatches/k"),
        ("PUT", &subscription, filter("k", &"v".repeat(16 * 1024)), "/filter/headerMatches"),
        ("PUT", &subscription, endpoint("http://127.0.0.1:9/a\0"), "/consumerEndpoint"),
        ("PUT", &subscription, endpoint(" http://127.0.0.1:9/a b"), "/consumerEndpoint"),
    ] {
        assert_eq!(pointers(&bed.refused(method, path, &body).await), [pointer], "{body}");
    }
    bed.ask("PUT", "/api/v1/topics/news", r#"{"description":"two\nlines"}"#).await.expect(200);
}

#[tokio::test]
async fn a_name_is_there_once() {
    let bed = Bed::open().await;
    let subscription = bed.subscribed().await;
    let twice = r#"{"k":"v","k":"w"}"#;
    for (body, within) in [
        (format!(r#"{{"headers":{twice}}}"#), "/headers"),
        (format!(r#"{{"filter":{{"headerMatches":{twice}}}}}"#), "/filter/headerMatches"),
    ] {
        let problem = bed.refused("PUT", &subscription, &body).await;
        assert!(pointers(&problem).iter().all(|pointer| pointer.starts_with(within)), "{problem}");
    }
}
