//! The API against a whole broker, request by request without sockets, and the route table against what is served.

mod contract;
mod flows;
mod hang_ups;
mod strictness;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use serde_json::Value;
use tower::ServiceExt as _;
use utoipa::openapi::path::PathItem;

use super::auth::table::{ROUTES, Verb};
use super::auth::tests::{claims, secret};
use super::auth::token::{Claims, Role, sign};
use crate::broker::Broker;
use crate::catalog::model::Guarantee;
use crate::config::{
    Config, Jwt, Limits, Messaging, PluginTrust, Plugins, Profile, Push, RateLimiting, Schemas, Telemetry,
};

/// A broker in a directory of its own, and its routes.
struct Bed {
    app: Router,
    broker: Arc<Broker>,
    _dir: tempfile::TempDir,
}

/// An answer, read whole.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    #[track_caller]
    fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.headers.contains_key("x-request-id"), "{self:?}");
        self.body
    }

    #[track_caller]
    fn problem(self, status: u16, code: &str) -> Value {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        let body = self.expect(status);
        assert_eq!((&body["code"], &body["status"]), (&code.into(), &status.into()), "{body}");
        for member in ["type", "title", "detail", "instance", "traceId"] {
            assert!(body[member].is_string(), "{member}: {body}");
        }
        body
    }
}

fn config(data_dir: PathBuf) -> Config {
    Config {
        profile: Profile::Development,
        data_dir,
        listen: ([127, 0, 0, 1], 0).into(),
        node_id: "node-1".to_owned(),
        storage: None,
        redis: None,
        messaging: Messaging {
            broker_port: None,
            default_delivery_guarantee: Guarantee::AtLeastOnce,
            default_retention_period: Duration::from_secs(7 * 86_400),
            max_message_size: 1 << 20,
            dead_letter_retention: Duration::from_secs(30 * 86_400),
        },
        jwt: Jwt { secret: Some(secret()), issuer: None, audience: None, expiration: Duration::from_secs(3600) },
        push: Push {
            allow_http: true,
            allow_networks: vec!["127.0.0.0/8".to_owned()],
            concurrency_max: 8,
            requests_max: 1024,
        },
        plugins: Plugins {
            dir: None,
            workers: 1,
            instances_per_stage_max: 1,
            idle_timeout: Duration::from_secs(60),
            queue_batches_max: 64,
            size_max: 50 << 20,
            versions_max: 100,
            quotas: Vec::new(),
            trust: PluginTrust::default(),
        },
        schemas: Schemas { require_registered: false, versions_max: 100 },
        rate_limiting: RateLimiting::default(),
        limits: Limits {
            body_bytes_max: 1 << 20,
            head_bytes_max: 16 * 1024,
            request_timeout: Duration::from_secs(30),
            connections_max: 100,
            requests_max: 100,
            streams_max: 100,
            topics_max: 100,
            subscriptions_max: 100,
            captured: crate::capture::Room { bytes_max: 1 << 30, free_bytes_min: 0 },
            shutdown_timeout: Duration::from_secs(5),
        },
        telemetry: Telemetry {
            otlp_endpoint: None,
            sampling_rate: 1.0,
            log_json: false,
            log_level: "info".to_owned(),
            public_metrics: true,
            public_docs: true,
        },
        test_clock_file: None,
    }
}

fn token(roles: &[Role], topics: Option<&[&str]>) -> String {
    sign(&Claims { exp: 4_000_000_000, ..claims(roles, topics) }, &secret())
}

impl Bed {
    async fn open() -> Bed {
        Bed::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Bed {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut config = config(dir.path().to_owned());
        change(&mut config);
        let _ = rustls::crypto::ring::default_provider().install_default();
        let broker = Broker::open(config).await.expect("a broker opens in an empty directory");
        let app = super::app(&broker).expect("its first API");
        Bed { app, broker, _dir: dir }
    }

    /// A request as `curl` would send it, by an Admin.
    async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.ask_as(&token(&[Role::Admin], None), method, path, body).await
    }

    async fn ask_as(&self, token: &str, method: &str, path: &str, body: &str) -> Answer {
        let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {token}"));
        self.send(request.body(Body::from(body.to_owned())).expect("a request")).await
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.app.clone().oneshot(request).await.expect("the edge never fails");
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 16 << 20).await.expect("a body");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::String(text));
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn topic(&self, name: &str, kind: &str) {
        self.ask("POST", "/api/v1/topics", &format!(r#"{{"name":"{name}","type":"{kind}"}}"#)).await.expect(201);
    }
}

fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain JSON")
}

#[test]
fn the_table_and_the_document_have_the_same_routes() {
    let (_, document) = super::described();
    let methods = |(path, item): (&String, &PathItem)| {
        let all = [("GET", &item.get), ("POST", &item.post), ("PUT", &item.put), ("DELETE", &item.delete)];
        assert!(item.patch.is_none() && item.head.is_none() && item.options.is_none(), "{path}");
        let path = path.clone();
        all.into_iter()
            .filter(|(_, it)| it.is_some())
            .map(move |(method, _)| (method, path.clone()))
            .collect::<Vec<_>>()
    };
    let described: BTreeSet<(&str, String)> = document.paths.paths.iter().flat_map(methods).collect();
    let docs = |path: &str| path == "/openapi.json" || path.starts_with("/swagger");
    let listed: BTreeSet<(&str, String)> = ROUTES
        .iter()
        .filter(|route| !docs(route.path))
        .map(|route| (route.method.as_str(), route.path.to_owned()))
        .collect();
    assert_eq!(described, listed);
}

#[test]
fn the_openapi_document_changes_only_on_purpose() {
    let (_, document) = super::described();
    let ids: Vec<_> =
        document.paths.paths.values().flat_map(|item| [&item.get, &item.post, &item.put, &item.delete]).collect();
    let ids: Vec<_> = ids.into_iter().flatten().filter_map(|operation| operation.operation_id.as_deref()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "an operation's id is its own: {ids:?}");
    insta::assert_snapshot!("openapi", pretty(&document));
}

/// The route's path with something in each place.
fn filled(path: &str) -> String {
    let parts = path.split('/').map(|part| match part {
        "{topic}" => "orders",
        "{id}" | "{messageId}" => "018f0000-0000-7000-8000-000000000000",
        "{name}" => "filter",
        "{nodeId}" => "node-1",
        "{revision}" => "1",
        "{version}" => "1.0.0",
        "{*file}" => "index.css",
        other => other,
    });
    parts.collect::<Vec<_>>().join("/")
}

#[tokio::test]
async fn every_route_is_served_and_lets_in_only_whom_the_table_says() {
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    for route in ROUTES {
        let (method, path) = (route.method.as_str(), filled(route.path));
        let super::auth::table::Need::Role(needed) = route.need else {
            let answer = bed.send(Request::get(&path).body(Body::empty()).expect("a request")).await;
            assert!(answer.status.is_success() || answer.status.is_redirection(), "{path}: {answer:?}");
            continue;
        };
        let anonymous = Request::builder().method(method).uri(&path).body(Body::empty()).expect("a request");
        bed.send(anonymous).await.problem(401, "UNAUTHENTICATED");
        for role in Role::ALL {
            let answer = bed.ask_as(&token(&[role], Some(&["nothing"])), method, &path, "").await;
            let allowed = role == needed || role == Role::Admin || needed == Role::Viewer;
            if allowed {
                assert_ne!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
                let detail = answer.body["detail"].as_str().unwrap_or_default();
                assert!(!detail.contains("needs the role") || path.contains("audit"), "{method} {path}: {answer:?}");
                assert!(!detail.contains("No route"), "{method} {path}: {answer:?}");
            } else {
                let problem = answer.problem(403, "FORBIDDEN");
                assert!(problem["detail"].as_str().is_some_and(|said| said.contains(needed.as_str())), "{problem}");
            }
        }
    }
    bed.broker.stopping.cancel();
}

#[tokio::test]
async fn every_route_on_a_topic_holds_the_tokens_scope_against_it() {
    let bed = Bed::open().await;
    bed.topic("orders", "Queue").await;
    let id = bed.ask("POST", "/api/v1/messages/publish", r#"{"topicName":"orders","payload":1}"#).await.expect(202);
    let id = id["messageId"].as_str().expect("an id").to_owned();
    let stranger = token(&[Role::Admin], Some(&["billing.*"]));
    let on_topic =
        ROUTES.iter().filter(|route| route.path.contains("{topic}") || route.path.contains("/messages/{id}"));
    let mut checked = 0;
    for route in on_topic {
        let path = filled(route.path).replace("018f0000-0000-7000-8000-000000000000", &id);
        let body = match route.method {
            Verb::Get | Verb::Delete => "",
            _ if route.path.ends_with("/pipeline") => r#"{"stages":[]}"#,
            _ if route.path.ends_with("/extend") => r#"{"ackTimeout":30}"#,
            _ => "{}",
        };
        let answer = bed.ask_as(&stranger, route.method.as_str(), &path, body).await;
        // An id out of scope is as one that is not there: a 403 would tell that it is.
        let (status, code) = if route.path.contains("{id}") { (404, "NOT_FOUND") } else { (403, "FORBIDDEN") };
        answer.problem(status, code);
        checked += 1;
    }
    assert!(checked >= 20, "{checked}");
    let publish = bed.ask_as(&stranger, "POST", "/api/v1/messages/publish", r#"{"topicName":"orders","payload":1}"#);
    publish.await.problem(403, "FORBIDDEN");
}
