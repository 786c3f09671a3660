//! A client of one broker with one token. Invariant: what it sends is what the test says, nothing is repeated or mended.
//! Cheap to clone; clones share connections.

use std::sync::{Arc, Once};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::Value;

use crate::Answer;
use crate::consume::Consume;
use crate::publish::Publish;
use crate::stream::Stream;

/// Longer than the longest poll of the API (30 s).
const ANSWER_WITHIN: Duration = Duration::from_secs(45);

/// Speaks HTTP to a broker.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: Arc<str>,
    token: Arc<str>,
}

impl Client {
    /// A client of the broker at `url` (`http://host:port`); an empty token sends none.
    #[must_use]
    pub fn new(url: &str, token: &str) -> Client {
        Client { http: http_client(), url: url.into(), token: token.into() }
    }

    /// The same broker with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Client {
        Client { token: token.into(), ..self.clone() }
    }

    /// The broker's URL, without a path.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The token it sends.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Publishes to a topic; await it for the broker's word, or set more first.
    pub fn publish(&self, topic: &str, payload: impl Into<Value>) -> Publish {
        Publish::new(self.clone(), topic, payload.into())
    }

    /// Consumes from a topic as a group; await it for the deliveries, or set more first.
    pub fn consume(&self, topic: &str, group: &str) -> Consume {
        Consume::new(self.clone(), topic, group)
    }

    /// Opens a stream of deliveries, so many at most in flight.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn stream(&self, topic: &str, group: &str, in_flight: u32) -> Stream {
        self.try_stream(topic, group, in_flight)
            .await
            .unwrap_or_else(|status| panic!("the stream is refused: {status}"))
    }

    /// Opens a stream of deliveries, where being refused with a status is an outcome too.
    ///
    /// # Errors
    /// The status.
    pub async fn try_stream(&self, topic: &str, group: &str, in_flight: u32) -> Result<Stream, u16> {
        self.open_stream(topic, group, in_flight, &[]).await.expect("the broker answers")
    }

    /// Opens a stream, again where one is given whose last event that arrived this is; none where it is refused or there
    /// is no answer.
    pub async fn reach_stream(&self, topic: &str, group: &str, in_flight: u32, last: Option<&str>) -> Option<Stream> {
        let headers: Vec<(&str, &str)> = last.map(|last| ("last-event-id", last)).into_iter().collect();
        self.open_stream(topic, group, in_flight, &headers).await.ok()?.ok()
    }

    /// Opens a stream again whose last event that arrived is this one.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn resume_stream(&self, topic: &str, group: &str, in_flight: u32, last: &str) -> Stream {
        let resumed = self.open_stream(topic, group, in_flight, &[("last-event-id", last)]).await;
        resumed.expect("the broker answers").unwrap_or_else(|status| panic!("the stream is refused: {status}"))
    }

    async fn open_stream(
        &self,
        topic: &str,
        group: &str,
        in_flight: u32,
        headers: &[(&str, &str)],
    ) -> Result<Result<Stream, u16>, reqwest::Error> {
        let query = format!("consumerGroup={group}&maxInFlight={in_flight}");
        let url = format!("{}/api/v1/messages/stream/{topic}?{query}", self.url);
        let request = self.http.get(url).headers(header_map(headers)).bearer_auth(&self.token);
        let response = request.send().await?;
        Ok(match response.status().as_u16() {
            200 => Ok(Stream::new(response, self.clone(), group)),
            refused => Err(refused),
        })
    }

    /// Opens a stream of events at `GET /api/v1{path}`.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn events(&self, path: &str) -> Stream {
        let request = self.http.get(format!("{}/api/v1{path}", self.url)).bearer_auth(&self.token);
        let response = request.send().await.expect("the broker answers");
        assert_eq!(response.status().as_u16(), 200, "{path}");
        Stream::new(response, self.clone(), "")
    }

    /// Creates a topic of this name and type (`Queue` or `PubSub`), else as by default.
    pub async fn create_topic(&self, name: &str, kind: &str) -> Value {
        self.post("/topics", &serde_json::json!({"name": name, "type": kind})).await.expect(201)
    }

    /// Creates a pull subscription and answers it.
    pub async fn subscribe(&self, topic: &str, group: &str) -> Value {
        let body = serde_json::json!({"topicName": topic, "consumerGroup": group, "type": "Pull"});
        self.post("/subscriptions", &body).await.expect(201)
    }

    /// Creates a push subscription to `endpoint` and answers it; `more` adds fields.
    pub async fn subscribe_push(&self, topic: &str, group: &str, endpoint: &str, more: Value) -> Value {
        let mut body = serde_json::json!({
            "topicName": topic, "consumerGroup": group, "type": "Push", "consumerEndpoint": endpoint
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        self.post("/subscriptions", &body).await.expect(201)
    }

    /// Puts stages before a topic.
    pub async fn put_pipeline(&self, topic: &str, stages: Value) -> Value {
        self.put(&format!("/topics/{topic}/pipeline"), &serde_json::json!({ "stages": stages })).await.expect(200)
    }

    /// `GET /api/v1{path}`; a path that begins with `//` is taken from the root.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Vec::new()).await
    }

    /// The value of a series of `/metrics`, by its name and labels as they are written there; none if it is not there.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let metrics = self.get("//metrics").await.text();
        metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    /// The sum of all series that begin so.
    pub async fn metric_sum(&self, start: &str) -> f64 {
        let metrics = self.get("//metrics").await.text();
        let of = |line: &str| line.strip_prefix(start)?.rsplit_once(' ')?.1.parse::<f64>().ok();
        metrics.lines().filter_map(of).sum()
    }

    /// `DELETE /api/v1{path}`.
    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], Vec::new()).await
    }

    /// `POST /api/v1{path}` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        let mut body = body.clone();
        if path == "/topics"
            && body.is_object()
            && std::env::var("SLUICE_TEST_STORAGE").as_deref() == Ok("redis-topics")
        {
            let storage = &mut body["storage"];
            *storage = if storage.is_null() { "redis".into() } else { storage.take() };
        }
        self.send(Method::POST, path, &[("content-type", "application/json")], body.to_string()).await
    }

    /// `PUT /api/v1{path}` with a JSON body.
    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, &[("content-type", "application/json")], body.to_string()).await
    }

    /// Any request.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let described = format!("{method} {path}");
        self.try_send(method, path, headers, body).await.unwrap_or_else(|error| panic!("{described}: {error:?}"))
    }

    /// Any request, where no answer is an outcome too: the broker may be killed meanwhile.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<Answer, reqwest::Error> {
        let url = match path.strip_prefix("//") {
            Some(from_root) => format!("{}/{from_root}", self.url),
            None => format!("{}/api/v1{path}", self.url),
        };
        let described = format!("{method} {url}");
        let mut request = self.http.request(method, url).headers(header_map(headers)).body(body.into());
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Ok(Answer { request: described, status, headers, body: answer.bytes().await? })
    }
}

fn header_map(headers: &[(&str, &str)]) -> HeaderMap {
    let parse = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().expect("a header name"), value.parse::<HeaderValue>().expect("a header value"))
    };
    headers.iter().map(parse).collect()
}

/// A client without TLS, proxies or redirects: the suites only speak to this machine.
#[must_use]
pub fn http_client() -> reqwest::Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Fails only if somebody has installed one before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    // Over a fleet each request is to come to the next broker.
    let idle = if std::env::var("SLUICE_TEST_STORAGE").as_deref() == Ok("fleet") { 0 } else { usize::MAX };
    reqwest::Client::builder()
        .pool_max_idle_per_host(idle)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(ANSWER_WITHIN)
        .build()
        .expect("a client without TLS roots can be built")
}
