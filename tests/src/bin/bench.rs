//! `make bench`: what the broker does over HTTP, beside a bare server that only parses the same requests, measured in the
//! same run on the same machine. Invariant: both sides get the same requests from the same client code; figures are medians
//! of several rounds. Never compares across runs.

#[path = "bench/hostile.rs"]
mod hostile;

use std::borrow::Cow;
use std::hint::black_box;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use http::{HeaderMap, Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sluice_tests::token::is_signed;
use sluice_tests::{Broker, Client};
use tokio::net::TcpListener;

/// Keep-alive connections of the load; DESIGN §10 counts with 64.
const CONNECTIONS: usize = 64;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(3);
const BATCH: usize = 100;
const PAYLOAD_BYTES: usize = 300;
const TOPIC: &str = "bench";

/// Set for the process that is the bare server, to the key that it checks tokens with.
const BARE_SECRET: &str = "SLUICE_BENCH_BARE_SECRET";

#[tokio::main]
async fn main() {
    if let Ok(secret) = std::env::var(BARE_SECRET) {
        bare_server(secret.into_bytes()).await;
        return;
    }
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build; `make bench` measures the release build");
    }
    let broker = Broker::start().await;
    broker.create_topic(TOPIC, "Queue").await;
    let bare_process = BareProcess::start(&broker.secret());
    let bare = Client::new(&bare_process.url, broker.token());

    println!(
        "{CONNECTIONS} connections, {PAYLOAD_BYTES} B a message, medians of {ROUNDS} rounds of {ROUND:?}, client on this machine"
    );
    println!("{:<34} {:>14} {:>14} {:>7}", "", "sluice msg/s", "bare msg/s", "ratio");
    row("publish, one a call, durable", &broker, &bare, publish_one).await;
    row("publish, 100 a call, durable", &broker, &bare, publish_batch).await;
    // So that the rounds that consume do not run dry.
    for _ in 0..ROUNDS {
        rate(&broker, publish_batch).await;
    }
    row("consume 100 and ack 100", &broker, &bare, consume_and_ack).await;
    hostile::rows(&Broker::start().await).await;
}

/// The bare server, in a process of its own as the broker is.
struct BareProcess {
    child: Child,
    url: String,
}

impl BareProcess {
    fn start(secret: &[u8]) -> BareProcess {
        let program = std::env::current_exe().expect("a program knows its path");
        let secret = String::from_utf8(secret.to_vec()).expect("the harness's secret is text");
        let mut command = Command::new(program);
        let mut child = command.env(BARE_SECRET, secret).stdout(Stdio::piped()).spawn().expect("it starts again");
        let mut url = String::new();
        let stdout = child.stdout.take().expect("stdout is a pipe");
        BufReader::new(stdout).read_line(&mut url).expect("the bare server says where it is");
        BareProcess { child, url: url.trim().to_owned() }
    }
}

impl Drop for BareProcess {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One line of the table.
async fn row<F>(name: &str, sluice: &Client, bare: &Client, call: fn(Client) -> F)
where
    F: Future<Output = usize> + Send + 'static,
{
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (figures, client) in figures.iter_mut().zip([sluice, bare]) {
            figures.push(rate(client, call).await);
        }
    }
    let [sluice, bare] = figures.map(median);
    println!("{name:<34} {sluice:>14.0} {bare:>14.0} {:>7.2}", sluice / bare);
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Messages per second over one round.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn rate<F>(client: &Client, call: fn(Client) -> F) -> f64
where
    F: Future<Output = usize> + Send + 'static,
{
    let (done, begun) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let workers: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (client, done) = (client.clone(), done.clone());
            tokio::spawn(async move {
                while begun.elapsed() < ROUND {
                    done.fetch_add(call(client.clone()).await, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("a worker does not panic");
    }
    done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

fn message() -> Value {
    json!({"topicName": TOPIC, "payload": "x".repeat(PAYLOAD_BYTES)})
}

async fn publish_one(client: Client) -> usize {
    // Written once: the load must not cost more than what it measures.
    static BODY: LazyLock<Bytes> = LazyLock::new(|| message().to_string().into());
    let answer = client.send(Method::POST, "/messages/publish", JSON, BODY.clone()).await;
    assert_eq!(answer.status, 202, "{answer}");
    1
}

async fn publish_batch(client: Client) -> usize {
    static BODY: LazyLock<Bytes> = LazyLock::new(|| {
        let messages: Vec<Value> = (0..BATCH).map(|_| message()).collect();
        json!({ "messages": messages }).to_string().into()
    });
    let answer = client.send(Method::POST, "/messages/publish/batch", JSON, BODY.clone()).await;
    assert_eq!(answer.status, 200, "{answer}");
    BATCH
}

#[derive(Deserialize)]
struct Consumed<'a> {
    #[serde(borrow)]
    messages: Vec<Leased<'a>>,
}

#[derive(Deserialize)]
struct Leased<'a> {
    receipt: &'a str,
}

#[derive(Deserialize, Serialize)]
struct Ack<'a> {
    receipt: &'a str,
}

#[derive(Deserialize, Serialize)]
struct Acks<'a> {
    #[serde(borrow)]
    acks: Vec<Ack<'a>>,
}

async fn consume_and_ack(client: Client) -> usize {
    let answer = client.get(&format!("/messages/consume/{TOPIC}?consumerGroup=g&limit={BATCH}&ackTimeout=300")).await;
    assert_eq!(answer.status, 200, "{answer}");
    let consumed: Consumed<'_> = serde_json::from_slice(&answer.body).expect("the answer to a consume");
    let acks: Vec<Ack<'_>> = consumed.messages.iter().map(|leased| Ack { receipt: leased.receipt }).collect();
    let count = acks.len();
    assert!(count > 0, "the topic ran dry: the figures would be of empty answers");
    let body = serde_json::to_string(&Acks { acks }).expect("texts are JSON");
    let answer = client.send(Method::POST, "/messages/ack/batch", JSON, body).await;
    assert_eq!(answer.status, 200, "{answer}");
    count
}

/// What the bare server answers with.
#[derive(Clone)]
struct Bare {
    consumed: Bytes,
    secret: Arc<[u8]>,
}

/// Checks the token and parses the request, as any server would; answers a canned text, keeps nothing.
async fn bare_server(secret: Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let messages: Vec<Value> = (0..BATCH)
        .map(|n| {
            json!({"messageId": "018bcfe5-68fa-7000-8000-000000000000", "topicName": TOPIC,
                "payload": "x".repeat(PAYLOAD_BYTES), "contentType": "application/json", "headers": {}, "priority": 0,
                "partition": 0, "offset": n, "timestamp": "2026-01-31T12:00:00.250Z", "deliveryAttempt": 1,
                "ackDeadline": "2026-01-31T12:05:00.250Z", "receipt": format!("{n:046}")})
        })
        .collect();
    let consumed = json!({"messages": messages, "hasMore": true}).to_string().into();
    let app = Router::new()
        .route("/api/v1/messages/publish", post(bare_publish))
        .route("/api/v1/messages/publish/batch", post(bare_publish_batch))
        .route("/api/v1/messages/ack/batch", post(bare_ack_batch))
        .route("/api/v1/messages/consume/{topic}", get(bare_consume))
        .with_state(Bare { consumed, secret: secret.into() });
    println!("http://{address}");
    axum::serve(listener, app).await.expect("a local server runs until it is killed");
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Publish<'a> {
    #[serde(borrow)]
    topic_name: Cow<'a, str>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

#[derive(Deserialize)]
struct PublishBatch<'a> {
    #[serde(borrow)]
    messages: Vec<Publish<'a>>,
}

async fn bare_publish(State(bare): State<Bare>, headers: HeaderMap, body: Bytes) -> (StatusCode, &'static str) {
    check(&bare, &headers);
    let publish: Publish<'_> = serde_json::from_slice(&body).expect("the load sends JSON");
    black_box((publish.topic_name, publish.payload));
    (StatusCode::ACCEPTED, r#"{"messageId":"018bcfe5-68fa-7000-8000-000000000000","status":"Pending"}"#)
}

async fn bare_publish_batch(State(bare): State<Bare>, headers: HeaderMap, body: Bytes) -> &'static str {
    check(&bare, &headers);
    let batch: PublishBatch<'_> = serde_json::from_slice(&body).expect("the load sends JSON");
    black_box(batch.messages.len());
    r#"{"results":[]}"#
}

async fn bare_ack_batch(State(bare): State<Bare>, headers: HeaderMap, body: Bytes) -> &'static str {
    check(&bare, &headers);
    let acks: Acks<'_> = serde_json::from_slice(&body).expect("the load sends JSON");
    black_box(acks.acks.len());
    r#"{"results":[]}"#
}

async fn bare_consume(State(bare): State<Bare>, headers: HeaderMap) -> Bytes {
    check(&bare, &headers);
    bare.consumed
}

fn check(bare: &Bare, headers: &HeaderMap) {
    let token = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert!(is_signed(token.trim_start_matches("Bearer "), &bare.secret), "the load sends a good token");
}
