//! A webhook receiver. Invariant: it records every request before it answers, in the order of arrival, and answers what
//! the test has scripted, then 200; or what the test decides, which then records by itself. Bounded by the test: nothing is thrown away while it runs, unless the test takes it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, Uri};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::consume::Received;
use crate::{signature, wait};

/// One request as it came in.
#[derive(Debug, Clone)]
pub struct Request {
    /// The path and query.
    pub uri: Uri,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// One answer to give.
#[derive(Debug, Clone)]
pub struct Scripted {
    status: u16,
    headers: Vec<(&'static str, String)>,
    hold: Option<Arc<Notify>>,
}

impl From<u16> for Scripted {
    fn from(status: u16) -> Scripted {
        Scripted { status, headers: Vec::new(), hold: None }
    }
}

impl Scripted {
    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Scripted {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// Given only when `release` is notified.
    #[must_use]
    pub fn held_until(mut self, release: Arc<Notify>) -> Scripted {
        self.hold = Some(release);
        self
    }
}

#[derive(Debug, Default)]
struct Recorder {
    requests: Mutex<Vec<Request>>,
    script: Mutex<VecDeque<Scripted>>,
}

/// What a test makes of each request.
type Decide = dyn Fn(&Request) -> u16 + Send + Sync;

/// A receiver on a free port; stops when dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    recorder: Arc<Recorder>,
    server: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Receiver {
    /// Listens on a free port of the loopback interface.
    pub async fn start() -> Receiver {
        let recorder = Arc::new(Recorder::default());
        Receiver::serve(recorder.clone(), Router::new().fallback(record).with_state(recorder)).await
    }

    /// The same, answering each request with the status that `decide` makes of it.
    pub async fn deciding(decide: impl Fn(&Request) -> u16 + Send + Sync + 'static) -> Receiver {
        let decide: Arc<Decide> = Arc::new(decide);
        Receiver::serve(Arc::default(), Router::new().fallback(answer).with_state(decide)).await
    }

    async fn serve(recorder: Arc<Recorder>, app: Router) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let server = tokio::spawn(async move {
            axum::serve(listener, app).await.expect("a local server runs until it is aborted");
        });
        Receiver { address, recorder, server }
    }

    /// The endpoint to subscribe.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// The next answers, in order; after them, 200.
    pub fn answers<S: Into<Scripted>>(&self, script: impl IntoIterator<Item = S>) {
        self.recorder.script.lock().extend(script.into_iter().map(Into::into));
    }

    /// What has come in so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.recorder.requests.lock().clone()
    }

    /// What has come in since this was last asked, so that a long run does not pile it up.
    #[must_use]
    pub fn take(&self) -> Vec<Request> {
        std::mem::take(&mut *self.recorder.requests.lock())
    }

    /// Waits until at least `count` requests have come in, and answers all.
    pub async fn received(&self, count: usize) -> Vec<Request> {
        wait::until(&format!("{count} webhooks"), async || {
            let requests = self.requests();
            (requests.len() >= count).then_some(requests)
        })
        .await
    }
}

async fn record(State(recorder): State<Arc<Recorder>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let answer = {
        let mut requests = recorder.requests.lock();
        requests.push(Request { uri, headers, body });
        recorder.script.lock().pop_front().unwrap_or_else(|| 200.into())
    };
    if let Some(hold) = answer.hold {
        hold.notified().await;
    }
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response.body(axum::body::Body::empty()).expect("the script holds valid headers")
}

async fn answer(State(decide): State<Arc<Decide>>, uri: Uri, headers: HeaderMap, body: Bytes) -> http::StatusCode {
    http::StatusCode::from_u16(decide(&Request { uri, headers, body })).expect("a test decides on a status")
}

impl Request {
    /// The header's text.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_else(|| panic!("no header {name}"))
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    /// The message in an envelope.
    ///
    /// # Panics
    /// When the body is none.
    #[must_use]
    pub fn message(&self) -> Received {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no envelope ({error}): {}", String::from_utf8_lossy(&self.body)))
    }

    /// Whether no signature was made with this secret.
    #[must_use]
    pub fn is_forged(&self, secret: &str) -> bool {
        signature::verify(secret, &self.headers, &self.body).is_err()
    }

    /// Demands a right signature.
    ///
    /// # Panics
    /// When it is wrong.
    #[track_caller]
    pub fn verify(&self, secret: &str) {
        signature::verify(secret, &self.headers, &self.body).expect("the webhook is signed");
    }
}
