//! One signed POST and what it came to. Invariant: a send begins only before its lease's deadline, follows no redirect,
//! reaches no address that the guard refuses, and reads a bounded part of the answer. Never repeats by itself what the
//! endpoint may have seen: that would be an attempt that nobody counts.

use std::error::Error as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, RETRY_AFTER};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::sign::SingleCertAndKey;
use tracing::Instrument as _;

use super::credentials::Credentials;
use super::guard::{AddressGuard, GuardedResolver, LookupError};
use super::target::{Delivery, Target};
use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::delivery::backoff::retry_after;
use crate::telemetry::{self, Stopwatch};

/// How much of an answer's body is kept for people to read.
pub const BODY_START_BYTES: usize = 1024;
/// How much of an answer's body is read so that its connection can be used again; beyond it a new connection is cheaper
/// than the rest of the body.
const BODY_READ_BYTES_MAX: usize = 16 * 1024;
/// How long an answer's body may take after its head: the status is known by then, only the connection is at stake.
const BODY_READ_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a connection may take to be made, where the time for the whole answer is longer.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// How long an idle connection is kept: less than the 5 s after which the most impatient common server (Node.js) closes
/// it, as a request that meets the closing is a failed attempt. One of HTTP/2 counts as idle from its last request on: it
/// takes no more then, and what is under way on it goes on.
const IDLE_TIME_MAX: Duration = Duration::from_secs(4);
/// How long a connection of HTTP/2 may be silent while requests wait on it before it is asked whether it is alive, and how
/// long it has to say so. A dead one would take all attempts with it until the system gives it up, after a quarter of an
/// hour.
const ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// HTTP clients for subscriptions with certificates of their own, those with the same ones sharing one: each weighs some ten
/// kilobytes and its connections.
const CLIENTS_MAX: u64 = 512;
/// How long such a client is kept though nothing is sent.
const CLIENT_IDLE_TIME_MAX: Duration = Duration::from_secs(600);
/// TLS sessions that such a client remembers: it has one endpoint, or few.
const SESSIONS_MAX: usize = 8;
/// Bytes of a failure's detail.
const DETAIL_BYTES_MAX: usize = 512;

/// Why webhooks cannot be sent at all.
#[derive(Debug, thiserror::Error)]
pub enum SenderError {
    /// `push.allow_networks` holds something else.
    #[error("push.allow_networks: {0}")]
    Networks(String),
    /// The HTTP client could not be made.
    #[error("the HTTP client for webhooks could not be made: {0}")]
    Client(#[from] reqwest::Error),
}

/// What a delivery came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx: the endpoint has it.
    Delivered {
        /// Which.
        status: u16,
    },
    /// 410: the endpoint wants no more.
    Gone,
    /// Anything else.
    Retry {
        /// The endpoint's status, if it answered.
        status: Option<u16>,
        /// In a word: `HTTP_503`, `TIMEOUT`, `CONNECT`, `DNS`, `TLS`, `CONNECTION_BROKEN`, `ADDRESS_REFUSED`, `INVALID`.
        reason: Arc<str>,
        /// In a sentence.
        detail: Arc<str>,
        /// How long a 429 or 503 asks to wait.
        retry_after: Option<Duration>,
    },
}

/// A send that took place.
#[derive(Debug, Clone)]
pub struct Sent {
    /// What it came to.
    pub outcome: Outcome,
    /// When it began.
    pub at: Timestamp,
    /// How long it took, for people and metrics.
    pub latency: Duration,
    /// The answer's status, if there was an answer.
    pub status: Option<u16>,
    /// How the answer's body begins.
    pub body_start: String,
    /// Bytes of the request's body.
    pub body_bytes: u64,
}

/// Sends webhooks. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Sender {
    client: reqwest::Client,
    guard: AddressGuard,
    clock: Clock,
    own: Arc<OwnClients>,
}

/// The clients of those that have certificates of their own.
struct OwnClients {
    settings: config::Push,
    resolver: GuardedResolver,
    /// Trusts whom the system trusts; read once, when it is first asked for.
    system: OnceLock<Arc<dyn ServerCertVerifier>>,
    /// By the digest of the certificates.
    clients: Cache<[u8; 32], reqwest::Client>,
}

/// An answer, as far as it was read.
struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: BodyRead,
}

struct BodyRead {
    start: Vec<u8>,
    /// Set when the connection broke inside the body.
    broken: Option<String>,
}

impl Sender {
    /// A sender within the settings' bounds.
    ///
    /// # Errors
    /// When a network is malformed or the HTTP client cannot be made.
    pub fn new(settings: &config::Push, clock: Clock) -> Result<Sender, SenderError> {
        // The first provider of the process stays; an error only says that one is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let guard = AddressGuard::new(settings).map_err(SenderError::Networks)?;
        let resolver = GuardedResolver::new(guard.clone());
        Sender::resolving(settings, (guard, resolver), clock)
    }

    fn resolving(
        settings: &config::Push,
        (guard, resolver): (AddressGuard, GuardedResolver),
        clock: Clock,
    ) -> Result<Sender, SenderError> {
        let client = builder(settings, &resolver).build().or_else(|error| {
            // A minimal image without certificates must not keep a broker from starting: webhooks by plain HTTP work, and
            // each one by https fails with its own word, `TLS`.
            tracing::warn!(%error, "no usable system certificates: webhooks to https endpoints will fail");
            builder(settings, &resolver).tls_certs_only([]).build()
        })?;
        let own = Arc::new(OwnClients::new(settings, resolver));
        Ok(Sender { client, guard, clock, own })
    }

    fn client_for(&self, target: &Target) -> Result<reqwest::Client, Outcome> {
        match &target.credentials {
            None => Ok(self.client.clone()),
            Some(credentials) => self.own.of(credentials).map_err(|why| failed("TLS", why)),
        }
    }

    /// Sends once. `None`: the deadline has passed or the message has expired, nothing was sent.
    pub async fn send(&self, target: &Target, delivery: &Delivery) -> Option<Sent> {
        let at = self.clock.now();
        if !delivery.may_begin(at) {
            return None;
        }
        let span = span(target, delivery);
        let headers = span.in_scope(|| self.traced_headers(target, delivery, at));
        let sent =
            self.post(target, headers, delivery.body.bytes.clone(), at.plus(target.timeout).min(delivery.deadline));
        let sent = sent.instrument(span.clone()).await;
        if let Some(status) = sent.status {
            span.record("http.response.status_code", status);
        }
        if let Outcome::Retry { reason, .. } = &sent.outcome {
            span.record("error.type", &**reason);
        }
        Some(sent)
    }

    /// A message that was published outside any trace begins one with its delivery, where spans are exported.
    fn traced_headers(&self, target: &Target, delivery: &Delivery, at: Timestamp) -> HeaderMap {
        if delivery.trace.is_some() {
            return target.headers(delivery, at);
        }
        target.headers(&Delivery { trace: telemetry::current_trace_context(), ..delivery.clone() }, at)
    }

    /// Sends a request with these headers, to be answered before `due`.
    pub async fn post(&self, target: &Target, headers: HeaderMap, body: Bytes, due: Timestamp) -> Sent {
        let at = self.clock.now();
        let watch = Stopwatch::start();
        let body_bytes = body.len() as u64;
        let answer = self.exchange(target, headers, body, due).await;
        let latency = watch.elapsed();
        match answer {
            Ok(answer) => Sent {
                outcome: judge(&answer),
                at,
                latency,
                status: Some(answer.status.as_u16()),
                body_start: String::from_utf8_lossy(&answer.body.start).into_owned(),
                body_bytes,
            },
            Err(outcome) => Sent { outcome, at, latency, status: None, body_start: String::new(), body_bytes },
        }
    }

    async fn exchange(
        &self,
        target: &Target,
        headers: HeaderMap,
        body: Bytes,
        due: Timestamp,
    ) -> Result<Answer, Outcome> {
        self.guard.check_literal(&target.url).map_err(|refused| failed("ADDRESS_REFUSED", refused.to_string()))?;
        let client = self.client_for(target)?;
        let request = client.post(target.url.clone()).headers(headers).body(body).send();
        let response = tokio::select! {
            response = request => response.map_err(|error| classify(&error))?,
            () = self.clock.sleep_until(due) => {
                return Err(failed("TIMEOUT", format!("no answer within {:?}", target.timeout)));
            }
        };
        let status = response.status();
        let retry_after = match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let value = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
                value.and_then(|value| retry_after(value, self.clock.now()))
            }
            _ => None,
        };
        let due = due.min(self.clock.now().plus(BODY_READ_TIME_MAX));
        let mut body = BodyRead { start: Vec::new(), broken: None };
        tokio::select! {
            () = read_body(response, &mut body) => {}
            () = self.clock.sleep_until(due) => {}
        }
        Ok(Answer { status, retry_after, body })
    }
}

impl OwnClients {
    fn new(settings: &config::Push, resolver: GuardedResolver) -> OwnClients {
        let clients = Cache::builder()
            .max_capacity(CLIENTS_MAX)
            // Whoever sends now counts more than who has sent often.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(CLIENT_IDLE_TIME_MAX)
            .build();
        OwnClients { settings: settings.clone(), resolver, system: OnceLock::new(), clients }
    }

    /// Made once for equal certificates, as long as it is in use.
    fn of(&self, credentials: &Credentials) -> Result<reqwest::Client, String> {
        self.clients.try_get_with(credentials.digest, || self.make(credentials)).map_err(|why| why.to_string())
    }

    fn make(&self, credentials: &Credentials) -> Result<reqwest::Client, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let config = match &credentials.authorities {
            Some(authorities) => config.with_root_certificates(Arc::clone(authorities)),
            None => config.dangerous().with_custom_certificate_verifier(self.system(provider)?),
        };
        let mut config = match &credentials.certified_key {
            Some(key) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone()))),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        let builder = builder(&self.settings, &self.resolver).tls_backend_preconfigured(config);
        builder.build().map_err(|error| error.to_string())
    }

    /// As the client without certificates checks them.
    fn system(&self, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, String> {
        if let Some(known) = self.system.get() {
            return Ok(Arc::clone(known));
        }
        let verifier = rustls_platform_verifier::Verifier::new(provider).map_err(|error| error.to_string())?;
        Ok(Arc::clone(self.system.get_or_init(|| Arc::new(verifier))))
    }
}

/// What the endpoint says that it has not looked at (HTTP/2's REFUSED_STREAM, and requests beyond its last one when it
/// closes a connection in good order, as servers do every thousand requests) is sent again at once, twice at most and
/// before the same deadline: it is the client's own rule, and no attempt.
fn builder(settings: &config::Push, resolver: &GuardedResolver) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .dns_resolver(Arc::new(resolver.clone()))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .http2_keep_alive_interval(ALIVE_INTERVAL)
        .http2_keep_alive_timeout(ALIVE_INTERVAL)
        .connect_timeout(CONNECT_TIME_MAX)
        .pool_idle_timeout(IDLE_TIME_MAX)
        .pool_max_idle_per_host(settings.concurrency_max as usize)
        .tcp_nodelay(true)
}

/// Reads as much as makes the connection usable again, and keeps the beginning.
async fn read_body(mut response: reqwest::Response, body: &mut BodyRead) {
    let mut read = 0;
    while read <= BODY_READ_BYTES_MAX {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                read += chunk.len();
                let room = BODY_START_BYTES - body.start.len();
                body.start.extend_from_slice(&chunk[..chunk.len().min(room)]);
            }
            Ok(None) => return,
            Err(error) => {
                body.broken = Some(innermost(&error));
                return;
            }
        }
    }
}

/// What API.md makes of an answer. A 2xx whose connection breaks before its end is a broken connection: at least once
/// permits the repeat, and the endpoint may have failed half-way.
fn judge(answer: &Answer) -> Outcome {
    let status = answer.status.as_u16();
    if answer.status == StatusCode::GONE {
        return Outcome::Gone;
    }
    if answer.status.is_success() {
        return match &answer.body.broken {
            None => Outcome::Delivered { status },
            Some(detail) => Outcome::Retry {
                status: Some(status),
                reason: "CONNECTION_BROKEN".into(),
                detail: cut(format!("the connection broke inside the answer: {detail}")),
                retry_after: None,
            },
        };
    }
    let detail = match answer.status.canonical_reason() {
        Some(words) => format!("the endpoint answered {status} {words}"),
        None => format!("the endpoint answered {status}"),
    };
    let hint = if answer.status.is_redirection() { "; redirects are not followed" } else { "" };
    Outcome::Retry {
        status: Some(status),
        reason: format!("HTTP_{status}").into(),
        detail: cut(detail + hint),
        retry_after: answer.retry_after,
    }
}

fn failed(reason: &str, detail: String) -> Outcome {
    Outcome::Retry { status: None, reason: reason.into(), detail: cut(detail), retry_after: None }
}

/// A word for an error of the client. Its text never holds the URL, which may carry a secret in its query.
fn classify(error: &reqwest::Error) -> Outcome {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(lookup) = cause.downcast_ref::<LookupError>() {
            let reason = if matches!(lookup, LookupError::Refused { .. }) { "ADDRESS_REFUSED" } else { "DNS" };
            return failed(reason, lookup.to_string());
        }
        if let Some(tls) = tls_error(cause) {
            return failed("TLS", tls.to_string());
        }
        source = cause.source();
    }
    let detail = innermost(error);
    if error.is_builder() {
        failed("INVALID", detail)
    } else if error.is_connect() {
        failed("CONNECT", format!("no connection: {detail}"))
    } else {
        failed("CONNECTION_BROKEN", format!("the connection broke before the answer: {detail}"))
    }
}

/// An error of the handshake in what an I/O error wraps, however often: `source()` passes over what was wrapped.
fn tls_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = cause;
    while let Some(wrapped) = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        cause = wrapped;
    }
    cause.downcast_ref()
}

fn innermost(error: &reqwest::Error) -> String {
    let mut innermost: Option<&dyn std::error::Error> = error.source();
    while let Some(deeper) = innermost.and_then(std::error::Error::source) {
        innermost = Some(deeper);
    }
    innermost.map_or_else(|| "the request could not be made".to_owned(), ToString::to_string)
}

fn cut(mut detail: String) -> Arc<str> {
    let mut end = detail.len().min(DETAIL_BYTES_MAX);
    while !detail.is_char_boundary(end) {
        end -= 1;
    }
    detail.truncate(end);
    detail.into()
}

fn span(target: &Target, delivery: &Delivery) -> tracing::Span {
    if !telemetry::is_sampled(delivery.trace.as_ref()) {
        return tracing::Span::none();
    }
    let span = tracing::info_span!(
        "push",
        otel.name = format!("process {}", target.topic),
        otel.kind = "client",
        messaging.system = "sluice",
        messaging.operation.name = "push",
        messaging.operation.type = "process",
        messaging.destination.name = %target.topic,
        messaging.message.id = %delivery.id,
        messaging.message.body.size = delivery.body.bytes.len(),
        sluice.delivery.attempt = delivery.attempt,
        server.address = target.url.host_str(),
        http.response.status_code = tracing::field::Empty,
        error.type = tracing::field::Empty,
    );
    if let Some(trace) = &delivery.trace {
        telemetry::link_to(&span, trace);
    }
    span
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;

    use super::super::testing::{Receiver, Reply, answer, lease, settings, subscription};
    use super::*;
    use crate::store::Lease;

    fn sender() -> Sender {
        Sender::new(&settings(), Clock::system()).unwrap()
    }

    async fn send_to(url: &str, timeout: Duration) -> Sent {
        send_with(&sender(), url, timeout, &lease(1, None)).await
    }

    async fn send_with(sender: &Sender, url: &str, timeout: Duration, lease: &Lease) -> Sent {
        let mut subscription = subscription(url);
        subscription.settings.ack_timeout = timeout;
        let target = Target::of(&subscription).unwrap();
        sender.send(&target, &Delivery::of(&target, lease)).await.expect("the deadline is far away")
    }

    const LONG: Duration = Duration::from_secs(20);

    fn retry(sent: &Sent) -> (&str, Option<u16>, Option<Duration>) {
        match &sent.outcome {
            Outcome::Retry { status, reason, retry_after, .. } => (reason, *status, *retry_after),
            other => panic!("{other:?} is no retry"),
        }
    }

    #[tokio::test]
    async fn a_2xx_is_delivered_and_the_connection_is_kept() {
        let receiver =
            Receiver::start(|_, before| answer(if before == 0 { "200 OK" } else { "204 No Content" }, "")).await;
        let sender = sender();
        let first = send_with(&sender, &receiver.url, LONG, &lease(1, None)).await;
        assert_eq!((first.outcome, first.body_start.as_str()), (Outcome::Delivered { status: 200 }, "ok"));
        send_with(&sender, &receiver.url, LONG, &lease(2, None)).await;
        let received = receiver.received();
        assert_eq!(received.iter().map(|request| request.connection).collect::<Vec<_>>(), [0, 0]);
        assert!(received[0].head.starts_with("POST /hook HTTP/1.1"), "{}", received[0].head);
    }

    #[tokio::test]
    async fn the_receiver_can_verify_the_signature_and_every_attempt_has_the_same_body() {
        let receiver = Receiver::start(|_, _| answer("500 Internal Server Error", "")).await;
        for attempt in 1..=3 {
            let lease = Lease { attempt, ..lease(1, Some("key")) };
            send_with(&sender(), &receiver.url, LONG, &lease).await;
        }
        let received = receiver.received();
        let keys = super::super::signature::SigningKeys::of(&subscription(&receiver.url)).unwrap();
        for (at, request) in received.iter().enumerate() {
            let id = request.header("webhook-id").unwrap();
            let seconds: i64 = request.header("webhook-timestamp").unwrap().parse().unwrap();
            let expected = keys.sign(id, Timestamp(seconds * 1000), &request.body);
            assert_eq!(request.header("webhook-signature"), Some(expected.as_str()));
            assert_eq!(request.header("x-delivery-attempt"), Some((at + 1).to_string().as_str()));
            assert_eq!((id, &request.body), (received[0].header("webhook-id").unwrap(), &received[0].body));
        }
        assert_eq!(received.len(), 3);
    }

    #[tokio::test]
    async fn each_status_has_its_outcome() {
        for (line, headers, reason, wait) in [
            ("400 Bad Request", "", "HTTP_400", None),
            ("404 Not Found", "Retry-After: 9\r\n", "HTTP_404", None),
            ("429 Too Many Requests", "Retry-After: 7\r\n", "HTTP_429", Some(7)),
            ("500 Internal Server Error", "", "HTTP_500", None),
            ("503 Service Unavailable", "Retry-After: 120\r\n", "HTTP_503", Some(120)),
            ("503 Service Unavailable", "Retry-After: later\r\n", "HTTP_503", None),
        ] {
            let receiver = Receiver::start(move |_, _| answer(line, headers)).await;
            let sent = send_to(&receiver.url, LONG).await;
            let status = line[..3].parse().ok();
            assert_eq!(retry(&sent), (reason, status, wait.map(Duration::from_secs)), "{line}");
        }
        let receiver = Receiver::start(|_, _| answer("410 Gone", "")).await;
        assert_eq!(send_to(&receiver.url, LONG).await.outcome, Outcome::Gone);
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let other = Receiver::start(|_, _| answer("200 OK", "")).await;
        let to = format!("Location: {}\r\n", other.url);
        let receiver = Receiver::start(move |_, _| answer("302 Found", &to)).await;
        assert_eq!(retry(&send_to(&receiver.url, LONG).await).0, "HTTP_302");
        assert!(other.received().is_empty());
    }

    #[tokio::test]
    async fn a_receiver_that_says_nothing_times_out() {
        let receiver = Receiver::start(|_, _| Reply::Hang).await;
        let sent = send_to(&receiver.url, Duration::from_millis(150)).await;
        assert_eq!(retry(&sent), ("TIMEOUT", None, None));
        assert!(sent.latency < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_a_retry_wherever_it_breaks() {
        for bytes in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"] {
            let receiver = Receiver::start(move |_, _| Reply::BytesThenClose(bytes.to_vec())).await;
            let sent = send_to(&receiver.url, LONG).await;
            assert_eq!(retry(&sent).0, "CONNECTION_BROKEN", "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[tokio::test]
    async fn a_huge_or_endless_answer_is_cut_and_its_status_counts() {
        let huge = [b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n".to_vec(), vec![b'x'; 1 << 20]].concat();
        let receiver = Receiver::start(move |_, _| Reply::Bytes(huge.clone())).await;
        let sent = send_to(&receiver.url, LONG).await;
        assert_eq!(sent.outcome, Outcome::Delivered { status: 200 });
        assert_eq!(sent.body_start.len(), BODY_START_BYTES);
        let slow = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx".to_vec();
        let receiver = Receiver::start(move |_, _| Reply::Bytes(slow.clone())).await;
        assert_eq!(send_to(&receiver.url, LONG).await.outcome, Outcome::Delivered { status: 200 });
    }

    #[tokio::test]
    async fn refused_addresses_are_refused_before_any_connection() {
        let receiver = Receiver::start(|_, _| answer("200 OK", "")).await;
        let port = receiver.url.rsplit(':').next().unwrap().to_owned();
        let strict = config::Push { allow_networks: Vec::new(), ..settings() };
        let sender = Sender::new(&strict, Clock::system()).unwrap();
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f.1", "10.0.0.1", "169.254.169.254"] {
            let sent = send_with(&sender, &format!("http://{host}:{port}"), LONG, &lease(1, None)).await;
            assert_eq!(retry(&sent).0, "ADDRESS_REFUSED", "{host}");
        }
        assert!(receiver.received().is_empty());
    }

    #[tokio::test]
    async fn equal_certificates_share_a_client_and_clients_are_bounded() {
        let own = sender().own;
        let credentials = |number: u64| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&number.to_be_bytes());
            Credentials { digest, certified_key: None, authorities: Some(Arc::new(rustls::RootCertStore::empty())) }
        };
        for number in 0..CLIENTS_MAX + 100 {
            own.of(&credentials(number)).unwrap();
            own.of(&credentials(number)).unwrap();
            own.clients.run_pending_tasks();
            assert!(own.clients.entry_count() <= CLIENTS_MAX, "{number}");
            assert!(number > 0 || own.clients.entry_count() == 1, "one for both");
        }
        assert!(own.clients.contains_key(&credentials(CLIENTS_MAX + 99).digest), "the newest is kept");
    }

    /// A sender for which all names have these addresses, those of the first look-up first; the last stay.
    fn resolving(settings: &config::Push, answers: Vec<Vec<&str>>) -> (Sender, Arc<AtomicUsize>) {
        let looked_up = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&looked_up);
        let answers: Vec<Vec<SocketAddr>> = answers
            .into_iter()
            .map(|addresses| addresses.into_iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)).collect())
            .collect();
        let names = move |_| {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Ok(answers[number.min(answers.len() - 1)].clone())).boxed()
        };
        let guard = AddressGuard::new(settings).unwrap();
        let resolver = GuardedResolver::asking(guard.clone(), Arc::new(move |host| names(host)));
        (Sender::resolving(settings, (guard, resolver), Clock::system()).unwrap(), looked_up)
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_an_address_of_ours_is_refused() {
        for address in ["10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "fd00::1", "fe80::1", "::ffff:10.0.0.1"] {
            let (sender, _) =
                resolving(&config::Push { allow_networks: Vec::new(), ..settings() }, vec![vec![address]]);
            let sent = send_with(&sender, "http://hook.example/", LONG, &lease(1, None)).await;
            assert_eq!(retry(&sent), ("ADDRESS_REFUSED", None, None), "{address}");
        }
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_a_connection_so_it_cannot_show_the_check_another_address() {
        let receiver = Receiver::start(|_, _| answer("200 OK", "Connection: close\r\n")).await;
        let port = receiver.url.trim_end_matches("/hook").rsplit(':').next().unwrap().to_owned();
        let url = format!("http://rebinds.example:{port}/hook");
        // The second answer would be what a check that looks up for itself leaves to the connection.
        let (sender, looked_up) = resolving(&settings(), vec![vec!["127.0.0.1"], vec!["10.0.0.1"]]);
        let sent = send_with(&sender, &url, LONG, &lease(1, None)).await;
        assert_eq!(sent.outcome, Outcome::Delivered { status: 200 });
        assert_eq!((looked_up.load(Ordering::SeqCst), receiver.received().len()), (1, 1));
        let sent = send_with(&sender, &url, LONG, &lease(2, None)).await;
        assert_eq!(retry(&sent).0, "ADDRESS_REFUSED", "what passed before counts for nothing");
        assert_eq!((looked_up.load(Ordering::SeqCst), receiver.received().len()), (2, 1));
    }

    #[tokio::test]
    async fn of_a_names_addresses_only_those_that_pass_are_tried() {
        let receiver = Receiver::start(|_, _| answer("200 OK", "")).await;
        let url = receiver.url.replace("127.0.0.1", "mixed.example");
        let (sender, _) = resolving(&settings(), vec![vec!["10.0.0.1", "127.0.0.1", "169.254.169.254"]]);
        let sent = send_with(&sender, &url, LONG, &lease(1, None)).await;
        assert_eq!(sent.outcome, Outcome::Delivered { status: 200 });
    }

    #[tokio::test]
    async fn a_port_that_nothing_listens_on_and_a_name_that_is_none_have_their_own_words() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let sent = send_to(&format!("http://{free}/?token=hidden"), LONG).await;
        assert_eq!(retry(&sent).0, "CONNECT");
        assert!(!format!("{:?}", sent.outcome).contains("hidden"), "an error never shows the URL");
        assert_eq!(retry(&send_to("http://no-such-host.invalid/", LONG).await).0, "DNS");
        let plain = Receiver::start(|_, _| answer("400 Bad Request", "")).await;
        let sent = send_to(&plain.url.replace("http://", "https://"), Duration::from_secs(2)).await;
        assert_ne!(retry(&sent).0, "HTTP_400", "plain HTTP is not spoken to an https endpoint");
    }

    #[tokio::test]
    async fn nothing_is_sent_after_the_deadline_or_the_expiry() {
        let receiver = Receiver::start(|_, _| answer("200 OK", "")).await;
        let clock = Clock::fixed(Timestamp(1_700_000_000_000));
        let sender = Sender::new(&settings(), clock.clone()).unwrap();
        let target = Target::of(&subscription(&receiver.url)).unwrap();
        let delivery = Delivery::of(&target, &lease(1, None));
        let late = Delivery { deadline: clock.now(), ..delivery.clone() };
        assert!(sender.send(&target, &late).await.is_none());
        let expired = Delivery { expires_at: Some(clock.now()), ..delivery };
        assert!(sender.send(&target, &expired).await.is_none());
        assert!(receiver.received().is_empty());
    }
}
