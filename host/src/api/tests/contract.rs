//! Each status of API.md, and what a problem looks like.

use axum::body::Body;
use http::Request;

use super::{Bed, token};
use crate::api::auth::token::Role;

const PUBLISH: &str = "/api/v1/messages/publish";

fn admin(method: &str, path: &str) -> http::request::Builder {
    let token = token(&[Role::Admin], None);
    Request::builder().method(method).uri(path).header("authorization", format!("Bearer {token}"))
}

#[tokio::test]
async fn what_is_not_there_or_not_so_is_a_problem() {
    let bed = Bed::open().await;
    bed.ask("GET", "/nowhere", "").await.problem(404, "NOT_FOUND");
    bed.ask("GET", "/api/v1/topics/absent", "").await.problem(404, "NOT_FOUND");
    bed.ask("GET", "/api/v1/messages/noid", "").await.problem(400, "VALIDATION_ERROR");
    let answer = bed.ask("PATCH", "/api/v1/topics/t", "").await;
    assert_eq!(answer.headers["allow"], "GET, HEAD, PUT, DELETE");
    answer.problem(405, "METHOD_NOT_ALLOWED");
    let picky = admin("GET", "/api/v1/topics").header("accept", "text/html, application/json;q=0");
    bed.send(picky.body(Body::empty()).unwrap()).await.problem(406, "NOT_ACCEPTABLE");
    for good in ["*/*", "text/html, application/*;q=0.1", "application/json"] {
        let request = admin("GET", "/api/v1/topics").header("accept", good).body(Body::empty()).unwrap();
        bed.send(request).await.expect(200);
    }
    let xml = admin("POST", "/api/v1/topics").header("content-type", "text/xml").body(Body::from("<a/>")).unwrap();
    bed.send(xml).await.problem(415, "UNSUPPORTED_MEDIA_TYPE");
    bed.ask("GET", "/api/v1/topics?limit=0&nonsense=1", "").await.problem(400, "VALIDATION_ERROR");
    let problem = bed.ask("GET", "/api/v1/topics/orders?nonsense=1", "").await.problem(400, "VALIDATION_ERROR");
    assert_eq!(problem["errors"][0]["pointer"], "/nonsense", "{problem}");
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let bed = Bed::open().await;
    bed.ask("POST", PUBLISH, &" ".repeat((1 << 20) + 1)).await.problem(413, "MESSAGE_TOO_LARGE");
    bed.ask("GET", &format!("/api/v1/topics?x={}", "x".repeat(8192)), "").await.problem(414, "URI_TOO_LONG");
    let request = admin("GET", "/api/v1/topics").header("x-long", "x".repeat(17 * 1024)).body(Body::empty()).unwrap();
    bed.send(request).await.problem(431, "HEADERS_TOO_LARGE");
    let deep = format!(r#"{{"name":{}"#, "[".repeat(100_000));
    bed.ask("POST", "/api/v1/topics", &deep).await.problem(400, "MALFORMED_JSON");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_a_problem_over_a_socket_too() {
    let bed = Bed::open().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api/v1/topics", listener.local_addr().unwrap());
    let (app, stopping) = (bed.app.clone(), bed.broker.stopping.clone());
    let limits = bed.broker.config.limits.clone();
    let served = tokio::spawn(async move { crate::api::server::run(vec![listener], app, &limits, stopping).await });
    let http1 = reqwest::Client::new();
    let http2 = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    for client in [http1, http2] {
        let many = (0..200).fold(client.get(&url), |request, n| request.header(format!("x-{n}"), "v"));
        let large = client.get(&url).header("x-large", "x".repeat(20 * 1024));
        for request in [many, large] {
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 431);
            let problem: serde_json::Value = answer.json().await.unwrap();
            assert_eq!(problem["code"], "HEADERS_TOO_LARGE", "{problem}");
        }
    }
    bed.broker.stopping.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn a_problem_names_every_fault_and_its_trace() {
    let bed = Bed::open().await;
    let request = admin("POST", "/api/v1/topics")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .header("x-request-id", "mine-1")
        .body(Body::from(r#"{"name":"a b","partitionCount":65,"retentionPeriod":"7 days","surprise":1}"#));
    let answer = bed.send(request.unwrap()).await;
    assert_eq!(answer.headers["x-request-id"], "mine-1");
    insta::assert_snapshot!("validation_problem", super::pretty(&answer.problem(400, "VALIDATION_ERROR")));
    let body = r#"{"topicName":"absent","payload":1}"#;
    let request =
        admin("POST", PUBLISH).header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let answer = bed.send(request.body(Body::from(body)).unwrap()).await;
    assert_eq!(answer.headers["x-request-id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    insta::assert_snapshot!("not_found_problem", super::pretty(&answer.problem(404, "NOT_FOUND")));
}

#[tokio::test]
async fn limited_routes_say_how_much_is_left() {
    let bed = Bed::with(|config| config.rate_limiting.publish = Some(2)).await;
    bed.topic("orders", "Queue").await;
    let publish = || bed.ask("POST", PUBLISH, r#"{"topicName":"orders","payload":1}"#);
    let answer = publish().await;
    assert_eq!(answer.headers["x-ratelimit-remaining"], "1");
    assert_eq!(answer.headers["ratelimit-policy"], "\"publish\";q=2;w=60");
    answer.expect(202);
    publish().await.expect(202);
    let answer = publish().await;
    assert_eq!(
        (&answer.headers["x-ratelimit-remaining"], &answer.headers["retry-after"]),
        (&"0".parse().unwrap(), &"30".parse().unwrap())
    );
    answer.problem(429, "RATE_LIMITED");
    bed.ask("GET", "/api/v1/topics", "").await.expect(200);
}

#[tokio::test]
async fn documentation_and_figures_are_open_unless_closed() {
    let open = Bed::open().await;
    let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    let document = open.send(get("/openapi.json")).await.expect(200);
    assert_eq!(document["openapi"].as_str().map(|version| &version[..2]), Some("3."));
    assert!(open.send(get("/swagger/")).await.expect(200).to_string().contains("swagger"));
    assert!(open.send(get("/metrics")).await.expect(200).to_string().contains("sluice_http_requests_total"));
    let closed = Bed::with(|config| {
        config.telemetry.public_docs = false;
        config.telemetry.public_metrics = false;
    });
    let closed = closed.await;
    for path in ["/openapi.json", "/swagger", "/swagger/index.html", "/metrics"] {
        closed.send(get(path)).await.problem(401, "UNAUTHENTICATED");
    }
    closed.ask("GET", "/metrics", "").await.expect(200);
}

#[tokio::test]
async fn readiness_ends_with_the_broker_and_life_does_not() {
    let bed = Bed::open().await;
    bed.ask("GET", "/health/ready", "").await.expect(200);
    bed.broker.stopping.cancel();
    bed.ask("GET", "/health/ready", "").await.problem(503, "SHUTTING_DOWN");
    bed.ask("GET", "/health/live", "").await.expect(200);
    assert_eq!(bed.ask("GET", "/health", "").await.expect(200)["status"], "Stopping");
}
