//! What the broker is compared with: a bare server that checks the token and parses the same requests, and for batches
//! writes them to a file with one `fdatasync` per group, as any durable log must. Invariant: it keeps nothing else and
//! answers canned texts; it runs in a process of its own, as the broker does.

use std::borrow::Cow;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use sluice_tests::token::is_signed;
use sluice_tests::{Broker, Client};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::load::Acks;
use super::{BATCH, PAYLOAD_BYTES, TOPIC};

/// Set for the process that is the bare server, to the key that it checks tokens with.
const SECRET: &str = "SLUICE_BENCH_BARE_SECRET";
/// Requests that may wait for the file.
const WAITING_MAX: usize = 1024;

/// The bare server's process.
pub struct Bare {
    child: Child,
    pub client: Client,
}

impl Bare {
    /// One that takes this broker's tokens.
    pub fn beside(broker: &Broker) -> Bare {
        let program = std::env::current_exe().expect("a program knows its path");
        let secret = String::from_utf8(broker.secret()).expect("the harness's secret is text");
        let mut command = Command::new(program);
        let mut child = command.env(SECRET, secret).stdout(Stdio::piped()).spawn().expect("it starts again");
        let mut url = String::new();
        let stdout = child.stdout.take().expect("stdout is a pipe");
        BufReader::new(stdout).read_line(&mut url).expect("the bare server says where it is");
        Bare { child, client: Client::new(url.trim(), broker.token()) }
    }

    /// Webhooks that came in so far.
    pub async fn hooks(&self) -> usize {
        let answer = self.client.get("//hooks").await;
        String::from_utf8_lossy(&answer.body).parse().expect("a number")
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether this process is to be the bare server; if so, it is one until it is killed.
pub async fn is_this_process() -> bool {
    let Ok(secret) = std::env::var(SECRET) else { return false };
    serve(secret.into_bytes()).await;
    true
}

#[derive(Clone)]
struct Server {
    consumed: Bytes,
    secret: Arc<[u8]>,
    log: mpsc::SyncSender<(Bytes, oneshot::Sender<()>)>,
    hooks: Arc<AtomicUsize>,
}

async fn serve(secret: Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let messages: Vec<_> = (0..BATCH)
        .map(|n| {
            json!({"messageId": "018bcfe5-68fa-7000-8000-000000000000", "topicName": TOPIC,
                "payload": "x".repeat(PAYLOAD_BYTES), "contentType": "application/json", "headers": {}, "priority": 0,
                "partition": 0, "offset": n, "timestamp": "2026-01-31T12:00:00.250Z", "deliveryAttempt": 1,
                "ackDeadline": "2026-01-31T12:05:00.250Z", "receipt": format!("{n:046}")})
        })
        .collect();
    let consumed = json!({"messages": messages, "hasMore": true}).to_string().into();
    let server = Server { consumed, secret: secret.into(), log: raw_log(), hooks: Arc::default() };
    let app = Router::new()
        .route("/api/v1/messages/publish", post(publish))
        .route("/api/v1/messages/publish/batch", post(publish_batch))
        .route("/api/v1/messages/ack/batch", post(ack_batch))
        .route("/api/v1/messages/consume/{topic}", get(consume))
        .route("/hook", post(hook))
        .route("/hooks", get(hooks))
        .with_state(server);
    println!("http://{address}");
    axum::serve(listener, app).await.expect("a local server runs until it is killed");
}

/// A thread that writes what waits with one write and one `fdatasync`, and then says so.
fn raw_log() -> mpsc::SyncSender<(Bytes, oneshot::Sender<()>)> {
    let (send, waiting) = mpsc::sync_channel::<(Bytes, oneshot::Sender<()>)>(WAITING_MAX);
    std::thread::spawn(move || {
        let mut file: File = tempfile::tempfile().expect("a temporary file");
        while let Ok(first) = waiting.recv() {
            let group: Vec<_> = std::iter::once(first).chain(waiting.try_iter()).collect();
            let bytes: Vec<u8> = group.iter().flat_map(|(body, _)| body.iter().copied()).collect();
            file.write_all(&bytes).expect("there is room");
            file.sync_data().expect("the file can be synced");
            for (_, written) in group {
                // The caller may have gone.
                let _ = written.send(());
            }
        }
    });
    send
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

async fn publish(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> (StatusCode, &'static str) {
    check(&server, &headers);
    let publish: Publish<'_> = serde_json::from_slice(&body).expect("the load sends JSON");
    black_box((publish.topic_name, publish.payload));
    (StatusCode::ACCEPTED, r#"{"messageId":"018bcfe5-68fa-7000-8000-000000000000","status":"Pending"}"#)
}

async fn publish_batch(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> &'static str {
    check(&server, &headers);
    let batch: PublishBatch<'_> = serde_json::from_slice(&body).expect("the load sends JSON");
    black_box(
        batch.messages.iter().map(|message| message.topic_name.len() + message.payload.get().len()).sum::<usize>(),
    );
    drop(batch);
    let (written, done) = oneshot::channel();
    server.log.try_send((body, written)).expect("fewer connections than may wait");
    done.await.expect("the log's thread answers");
    r#"{"results":[]}"#
}

async fn ack_batch(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> &'static str {
    check(&server, &headers);
    let acks: Acks<'_> = serde_json::from_slice(&body).expect("the load sends JSON");
    black_box(acks.acks.len());
    r#"{"results":[]}"#
}

async fn consume(State(server): State<Server>, headers: HeaderMap) -> Bytes {
    check(&server, &headers);
    server.consumed
}

async fn hook(State(server): State<Server>, body: Bytes) {
    black_box(body.len());
    server.hooks.fetch_add(1, Ordering::Relaxed);
}

async fn hooks(State(server): State<Server>) -> String {
    server.hooks.load(Ordering::Relaxed).to_string()
}

fn check(server: &Server, headers: &HeaderMap) {
    let token = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert!(is_signed(token.trim_start_matches("Bearer "), &server.secret), "the load sends a good token");
}
