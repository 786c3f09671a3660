//! Clients that hang up in the middle of a change. Invariant: what was begun is then there as a whole: in catalog, store
//! and pipelines.

use std::time::Duration;

use axum::body::Body;
use futures_util::FutureExt as _;
use http::Request;
use serde_json::json;
use tower::ServiceExt as _;

use super::{Bed, token};
use crate::api::auth::token::Role;

const PUBLISH: &str = "/api/v1/messages/publish";
/// Compiling a plugin on a busy machine, and then some.
const PATIENCE: Duration = Duration::from_secs(120);

impl Bed {
    /// Sends a request, hangs up where it first has to wait, and returns once what it began has ended.
    async fn hang_up_on(&self, method: &str, path: &str, body: &str) {
        self.hang_up_on_sending(method, path, "application/json", Body::from(body.to_owned())).await;
    }

    async fn hang_up_on_sending(&self, method: &str, path: &str, media_type: &str, body: Body) {
        let bearer = format!("Bearer {}", token(&[Role::Admin], None));
        let request = Request::builder().method(method).uri(path).header("authorization", bearer);
        let request = request.header("content-type", media_type).body(body).unwrap();
        let answered = self.app.clone().oneshot(request).now_or_never();
        assert!(answered.is_none(), "{method} {path} had to wait for something");
        self.broker.changes.finish(PATIENCE).await;
    }

    async fn publish(&self, payload: &str) -> super::Answer {
        self.ask("POST", PUBLISH, &format!(r#"{{"topicName":"orders","payload":{payload}}}"#)).await
    }
}

#[tokio::test]
async fn a_topic_and_all_that_belongs_to_it_is_made_and_removed_whole() {
    let bed = Bed::open().await;
    let before = bed.broker.store.topics().await.unwrap();
    let topic = "/api/v1/topics/orders";
    bed.hang_up_on("POST", "/api/v1/topics", r#"{"name":"orders","type":"PubSub"}"#).await;
    bed.ask("GET", topic, "").await.expect(200);
    bed.publish("1").await.expect(202);

    bed.hang_up_on("PUT", topic, r#"{"retentionPeriod":"P1D","schemaId":"s"}"#).await;
    assert_eq!(bed.ask("GET", topic, "").await.expect(200)["retentionPeriod"], "P1D");
    let schema = r#"{"schemaId":"s","version":"1","schemaDefinition":{"type":"integer"}}"#;
    bed.hang_up_on("POST", "/api/v1/schemas", schema).await;
    bed.publish("true").await.problem(422, "SCHEMA_VALIDATION_ERROR");

    let subscription = r#"{"topicName":"orders","consumerGroup":"g","type":"Pull"}"#;
    bed.hang_up_on("POST", "/api/v1/subscriptions", subscription).await;
    bed.publish("2").await.expect(202);
    let consumed = bed.ask("GET", "/api/v1/messages/consume/orders?consumerGroup=g", "").await.expect(200);
    assert_eq!(consumed["messages"].as_array().map(Vec::len), Some(1), "{consumed}");

    let stages = r#"{"stages":[{"name":"only","plugin":"filter","config":{"headerMatches":{"a":"b"}}}]}"#;
    bed.hang_up_on("PUT", &format!("{topic}/pipeline"), stages).await;
    assert_eq!(bed.publish("3").await.expect(202)["status"], "Dropped");

    bed.hang_up_on("DELETE", &format!("{topic}?force=true"), "").await;
    bed.ask("GET", topic, "").await.problem(404, "NOT_FOUND");
    assert_eq!(bed.ask("GET", "/api/v1/subscriptions", "").await.expect(200)["total"], json!(0));
    assert_eq!(bed.broker.store.topics().await.unwrap(), before, "the store keeps nothing of it");
}

#[tokio::test]
async fn what_is_purged_or_erased_is_gone_and_audited() {
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    let id = bed.publish("1").await.expect(202)["messageId"].as_str().unwrap().to_owned();
    bed.hang_up_on("DELETE", &format!("/api/v1/messages/{id}"), "").await;
    bed.ask("GET", &format!("/api/v1/messages/{id}"), "").await.problem(404, "NOT_FOUND");
    bed.publish("2").await.expect(202);
    bed.hang_up_on("POST", "/api/v1/topics/orders/purge", "").await;
    let figures = bed.ask("GET", "/api/v1/topics/orders/metrics", "").await.expect(200);
    assert_eq!(figures["groups"][0]["lag"], 0, "{figures}");
    let audit = bed.ask("GET", "/api/v1/audit-logs", "").await.expect(200);
    let events: Vec<_> = audit["auditLogs"].as_array().unwrap().iter().map(|entry| &entry["eventType"]).collect();
    assert!(events.contains(&&json!("message.erased")) && events.contains(&&json!("topic.purged")), "{audit}");
}

#[tokio::test]
async fn what_cannot_be_audited_is_neither_erased_nor_purged() {
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    let id = bed.publish("1").await.expect(202)["messageId"].as_str().unwrap().to_owned();
    let catalog = format!("sqlite://{}", bed.broker.config.data_dir.join("catalog.db").display());
    let catalog = sqlx::SqlitePool::connect(&catalog).await.unwrap();
    let refuse = "CREATE TRIGGER full BEFORE INSERT ON audit_logs BEGIN SELECT RAISE(ABORT, 'full'); END";
    sqlx::query(refuse).execute(&catalog).await.unwrap();
    bed.ask("DELETE", &format!("/api/v1/messages/{id}"), "").await.problem(503, "STORE_UNAVAILABLE");
    bed.ask("GET", &format!("/api/v1/messages/{id}"), "").await.expect(200);
    bed.ask("POST", "/api/v1/topics/orders/purge", "").await.problem(503, "STORE_UNAVAILABLE");
    let figures = bed.ask("GET", "/api/v1/topics/orders/metrics", "").await.expect(200);
    assert_eq!(figures["groups"][0]["lag"], 1, "{figures}");
}

#[tokio::test]
async fn an_upload_that_has_come_is_taken_in_whole() {
    let bed = Bed::open().await;
    let component = wat::parse_str(include_str!("../../../../tests/guests/raw.wat")).unwrap();
    let path = "/api/v1/plugins/raw/versions?version=1";
    bed.hang_up_on_sending("POST", path, "application/wasm", Body::from(component)).await;
    let plugin = bed.ask("GET", "/api/v1/plugins/raw", "").await.expect(200);
    assert_eq!((&plugin["versions"][0]["version"], &plugin["versions"][0]["latest"]), (&json!("1"), &json!(true)));
    let stages = r#"{"stages":[{"name":"only","plugin":"raw","config":{}}]}"#;
    bed.topic("orders", "Queue").await;
    bed.ask("PUT", "/api/v1/topics/orders/pipeline", stages).await.expect(200);
    bed.hang_up_on("DELETE", "/api/v1/plugins/raw/versions/1", "").await;
    bed.ask("GET", "/api/v1/plugins/raw", "").await.expect(200);
}
