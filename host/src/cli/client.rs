//! Speaks the HTTP API to one broker. Invariant: a token made here goes to this machine only. Never retries: whether to
//! send again is the user's decision, since a lost answer may have been a yes.

use std::convert::Infallible;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clap::Args;
use futures_util::{Stream, StreamExt as _};
use http::Method;
use http::header::{ACCEPT, CONTENT_TYPE, DATE, ETAG, IF_MATCH};
use serde_json::Value;
use url::{Host, Url};

use super::failure::{Failure, Refusal};
use super::output::Output;
use super::token::{Wanted, make_token};
use crate::api::auth::token::Role;
use crate::clock::Clock;
use crate::config::{Config, Flags};
use crate::entropy::Entropy;

/// How long to wait for a connection: a broker that is there answers within a round trip.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for an answer: a long poll (30 s) and a slow plugin fit in.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// For a component on its way: some 50 MB, which are compiled before the answer comes.
const COMPONENT_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// For a request that goes on for as long as there is something to send.
const NO_TIMEOUT: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long the answer to such a request may say nothing: a broker that is there writes an empty line every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// Bytes of an answer at most, so that a wrong URL can't fill the memory; 1000 messages of 256 KiB fit.
const ANSWER_BYTES_MAX: usize = 512 << 20;
/// Bytes of a line of an answer that comes line by line: a problem with all its faults is some KiB.
const LINE_ANSWER_BYTES_MAX: usize = 1 << 20;
/// Items of one page, API.md's own bound.
const PAGE_ITEMS: u64 = 100;
/// Items of a whole list at most; who has more asks for parts with --limit and --offset.
pub(super) const LIST_ITEMS_MAX: u64 = 10_000;
/// Life of a token that is made for one command: what goes on for longer is ended by the broker, which says why.
const OWN_TOKEN_TTL: Duration = Duration::from_secs(86_400);

/// Which broker, and as whom.
#[derive(Debug, Args)]
#[command(next_help_heading = "Broker")]
pub(super) struct ClientArgs {
    /// The broker's address [default: on this machine, at the port that a broker with these settings listens on: 5000]
    #[arg(long, global = true, env = "SLUICE_URL", hide_env_values = true)]
    url: Option<String>,
    /// The token to show [default: made from the local development secret]
    #[arg(long, global = true, env = "SLUICE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Where to look for that secret [default: ./sluice-data]
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "token")]
    data_dir: Option<std::path::PathBuf>,
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
}

impl ClientArgs {
    /// Where results go.
    pub(super) fn output(&self) -> Output {
        Output::new(self.json)
    }

    /// What tells of the broker that is meant where no address is given.
    fn flags(&self) -> Flags {
        Flags { data_dir: self.data_dir.clone(), ..Flags::default() }
    }
}

/// The parameters of a request that were given.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(&'static str, String)>);

impl Query {
    /// Adds a parameter, if there is a value.
    pub(super) fn with<T: ToString>(mut self, name: &'static str, value: Option<T>) -> Query {
        self.0.extend(value.map(|value| (name, value.to_string())));
        self
    }
}

/// A connection to one broker.
#[derive(Debug)]
pub(super) struct Client {
    base: Url,
    token: Option<String>,
    http: reqwest::Client,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    /// The document; null when there is none.
    pub(super) body: Value,
    /// The version of what was read.
    pub(super) etag: Option<String>,
    /// When the broker answered, to the second.
    pub(super) date: Option<String>,
}

impl Client {
    /// Prepares requests; nothing is sent yet.
    pub(super) fn new(args: &ClientArgs) -> Result<Client, Failure> {
        let url = args.url.clone().unwrap_or_else(|| Config::own_url(&args.flags()));
        let base = Url::parse(&url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some())
            .ok_or_else(|| Failure::Usage(format!("--url takes http://HOST:PORT, not '{url}'")))?;
        let token = args.token.clone().or_else(|| own_token(&base, args));
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("sluice-cli/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::Usage(format!("no HTTP client can be made: {}", causes(&error))))?;
        Ok(Client { base, token, http })
    }

    /// GET under `/api/v1`.
    pub(super) async fn get(&self, path: &[&str], query: Query) -> Result<Answer, Failure> {
        self.send(self.request(Method::GET, &api(path), query)).await
    }

    /// GET outside `/api/v1`.
    pub(super) async fn get_root(&self, path: &[&str]) -> Result<Answer, Failure> {
        self.send(self.request(Method::GET, path, Query::default())).await
    }

    /// POST of a JSON document.
    pub(super) async fn post(&self, path: &[&str], query: Query, body: &Value) -> Result<Value, Failure> {
        Ok(self.send(self.request(Method::POST, &api(path), query).json(body)).await?.body)
    }

    /// POST with no body.
    pub(super) async fn act(&self, path: &[&str], query: Query) -> Result<Value, Failure> {
        Ok(self.send(self.request(Method::POST, &api(path), query)).await?.body)
    }

    /// POST with no body, over the version that was read.
    pub(super) async fn act_over(&self, path: &[&str], query: Query, version: Option<&str>) -> Result<Value, Failure> {
        let mut request = self.request(Method::POST, &api(path), query);
        if let Some(version) = version {
            request = request.header(IF_MATCH, version);
        }
        Ok(self.send(request).await?.body)
    }

    /// POST of bytes under these headers, however many they are.
    pub(super) async fn post_bytes(
        &self,
        path: &[&str],
        query: Query,
        headers: &[(&'static str, String)],
        body: reqwest::Body,
    ) -> Result<Value, Failure> {
        let request = self.request(Method::POST, &api(path), query).timeout(COMPONENT_TIMEOUT).body(body);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        Ok(self.send(request).await?.body)
    }

    /// GET of bytes.
    pub(super) async fn get_bytes(&self, path: &[&str]) -> Result<Vec<u8>, Failure> {
        let request = self.request(Method::GET, &api(path), Query::default()).timeout(COMPONENT_TIMEOUT);
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        if response.status().is_success() {
            return self.bytes(response).await;
        }
        self.read(response).await?;
        Err(self.foreign("no bytes came".to_owned()))
    }

    /// POST of one JSON document a line.
    pub(super) async fn post_ndjson(&self, path: &[&str], query: Query, lines: Vec<u8>) -> Result<Value, Failure> {
        let request = self.request(Method::POST, &api(path), query).header(CONTENT_TYPE, "application/x-ndjson");
        Ok(self.send(request.body(lines)).await?.body)
    }

    /// POST of lines as they come, which are answered one by one meanwhile.
    pub(super) async fn post_lines(
        &self,
        path: &[&str],
        lines: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<LineAnswers<'_>, Failure> {
        let body = reqwest::Body::wrap_stream(lines.map(Ok::<Bytes, Infallible>));
        let request = self.request(Method::POST, &api(path), Query::default()).timeout(NO_TIMEOUT);
        self.stream(request.header(CONTENT_TYPE, "application/x-ndjson").body(body), false).await
    }

    /// GET of Server-Sent Events, whose data are read.
    pub(super) async fn get_events(&self, path: &[&str], query: Query) -> Result<LineAnswers<'_>, Failure> {
        let request = self.request(Method::GET, &api(path), query).timeout(NO_TIMEOUT);
        self.stream(request.header(ACCEPT, "text/event-stream"), true).await
    }

    /// POST whose answer comes as Server-Sent Events, whose data are read.
    pub(super) async fn post_for_events(
        &self,
        path: &[&str],
        query: Query,
        (media_type, body): (&'static str, reqwest::Body),
    ) -> Result<LineAnswers<'_>, Failure> {
        let request = self.request(Method::POST, &api(path), query).timeout(NO_TIMEOUT);
        let request = request.header(ACCEPT, "text/event-stream").header(CONTENT_TYPE, media_type);
        self.stream(request.body(body), true).await
    }

    async fn stream(&self, request: reqwest::RequestBuilder, events: bool) -> Result<LineAnswers<'_>, Failure> {
        // The head comes at once, whatever is sent; a refusal comes whole.
        let begun = async {
            let response = request.send().await.map_err(|error| self.unreachable(error))?;
            if response.status().is_success() {
                return Ok(response);
            }
            self.read(response).await?;
            Err(self.foreign("no stream of answers came".to_owned()))
        };
        let response = tokio::time::timeout(SILENCE_MAX, begun).await.unwrap_or_else(|_| Err(self.silent()))?;
        Ok(LineAnswers { client: self, response, held: BytesMut::new(), events })
    }

    /// POST of a CloudEvent in JSON, under a key of its publisher's own if there is one.
    pub(super) async fn post_event(
        &self,
        path: &[&str],
        query: Query,
        key: Option<&str>,
        event: Vec<u8>,
    ) -> Result<Value, Failure> {
        let request = self.request(Method::POST, &api(path), query);
        let mut request = request.header(CONTENT_TYPE, "application/cloudevents+json");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        Ok(self.send(request.body(event)).await?.body)
    }

    /// PUT of a JSON document, over the version that was read.
    pub(super) async fn put(&self, path: &[&str], version: Option<&str>, body: &Value) -> Result<Value, Failure> {
        let mut request = self.request(Method::PUT, &api(path), Query::default()).json(body);
        if let Some(version) = version {
            request = request.header(IF_MATCH, version);
        }
        Ok(self.send(request).await?.body)
    }

    /// POST, with a JSON document unless it is null, over the version that was read.
    pub(super) async fn post_from(&self, path: &[&str], version: Option<&str>, body: &Value) -> Result<Value, Failure> {
        let mut request = self.request(Method::POST, &api(path), Query::default());
        if !body.is_null() {
            request = request.json(body);
        }
        if let Some(version) = version {
            request = request.header(IF_MATCH, version);
        }
        Ok(self.send(request).await?.body)
    }

    /// DELETE.
    pub(super) async fn delete(&self, path: &[&str], query: Query) -> Result<Value, Failure> {
        Ok(self.send(self.request(Method::DELETE, &api(path), query)).await?.body)
    }

    /// A whole list, page by page, or the one page that is asked for.
    pub(super) async fn list(
        &self,
        path: &[&str],
        noun: &str,
        part: Part,
        filters: &[(&'static str, Option<String>)],
    ) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        loop {
            let left = part.limit.unwrap_or(LIST_ITEMS_MAX) - items.len() as u64;
            let mut query = Query::default()
                .with("limit", Some(left.min(PAGE_ITEMS)))
                .with("offset", Some(part.offset + items.len() as u64));
            for (name, value) in filters {
                query = query.with(name, value.as_ref());
            }
            let page = self.get(path, query).await?.body;
            let found = self.items(&page, noun)?;
            items.extend(found.iter().cloned());
            let wanted = part.limit.unwrap_or(LIST_ITEMS_MAX);
            if found.is_empty() || page["hasMore"] != true || items.len() as u64 >= wanted {
                return Ok(items);
            }
        }
    }

    /// A whole list of those that go on by token.
    pub(super) async fn list_by_token(
        &self,
        path: &[&str],
        noun: &str,
        limit: Option<u64>,
    ) -> Result<Vec<Value>, Failure> {
        let wanted = limit.unwrap_or(LIST_ITEMS_MAX);
        let (mut items, mut token) = (Vec::new(), None);
        loop {
            let left = wanted - items.len() as u64;
            let query = Query::default().with("limit", Some(left.min(PAGE_ITEMS))).with("nextToken", token.as_ref());
            let page = self.get(path, query).await?.body;
            items.extend(self.items(&page, noun)?.iter().cloned());
            token = page["nextToken"].as_str().map(str::to_owned);
            if token.is_none() || items.len() as u64 >= wanted {
                return Ok(items);
            }
        }
    }

    /// What a page holds.
    pub(super) fn items<'a>(&self, page: &'a Value, noun: &str) -> Result<&'a [Value], Failure> {
        let items = page[noun].as_array().map(Vec::as_slice);
        items.ok_or_else(|| self.foreign(format!("the answer has no '{noun}'")))
    }

    fn request(&self, method: Method, path: &[&str], query: Query) -> reqwest::RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.0.is_empty() {
            url.query_pairs_mut().extend_pairs(query.0);
        }
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        self.read(response).await
    }

    async fn read(&self, response: reqwest::Response) -> Result<Answer, Failure> {
        let status = response.status();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (etag, date) = (header(ETAG), header(DATE));
        let bytes = self.bytes(response).await?;
        let body = if bytes.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&bytes) };
        match body {
            Ok(body) if status.is_success() => Ok(Answer { body, etag, date }),
            Ok(problem) if status.is_client_error() || status.is_server_error() => {
                Err(Refusal { status: Some(status.as_u16()), problem }.into())
            }
            _ => Err(self.foreign(format!("status {status} without the JSON that goes with it"))),
        }
    }

    /// The whole of an answer, within bounds.
    async fn bytes(&self, mut response: reqwest::Response) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(error))? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(self.foreign(format!("the answer is longer than {ANSWER_BYTES_MAX} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        let hint = if error.is_connect() { " (is a broker running there? `sluice serve` starts one)" } else { "" };
        Failure::Unreachable { url: self.base.to_string(), reason: format!("{}{hint}", causes(&error.without_url())) }
    }

    fn silent(&self) -> Failure {
        let reason = format!("nothing came for {} seconds", SILENCE_MAX.as_secs());
        Failure::Unreachable { url: self.base.to_string(), reason }
    }

    /// What came is no answer of a broker.
    pub(super) fn foreign(&self, reason: String) -> Failure {
        Failure::Foreign { url: self.base.to_string(), reason }
    }
}

/// Answers that come line by line.
pub(super) struct LineAnswers<'a> {
    client: &'a Client,
    response: reqwest::Response,
    held: BytesMut,
    /// They are the data of events, with lines around them that say nothing else.
    events: bool,
}

impl LineAnswers<'_> {
    /// The next one; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, Failure> {
        let mut looked = 0;
        loop {
            if let Some(end) = self.held[looked..].iter().position(|byte| *byte == b'\n') {
                let line = self.held.split_to(looked + end + 1);
                looked = 0;
                let data = if self.events { line.strip_prefix(b"data:").unwrap_or_default() } else { &line[..] };
                if data.trim_ascii().is_empty() {
                    continue; // The broker is there, and has nothing to say.
                }
                let read = serde_json::from_slice(data);
                return read.map(Some).map_err(|error| self.client.foreign(format!("a line of the answer: {error}")));
            }
            looked = self.held.len();
            if looked > LINE_ANSWER_BYTES_MAX {
                let why = format!("a line of the answer is longer than {LINE_ANSWER_BYTES_MAX} bytes");
                return Err(self.client.foreign(why));
            }
            let chunk = match tokio::time::timeout(SILENCE_MAX, self.response.chunk()).await {
                Ok(chunk) => chunk.map_err(|error| self.client.unreachable(error))?,
                Err(_) => return Err(self.client.silent()),
            };
            match chunk {
                Some(chunk) => self.held.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

/// Which part of a list.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Part {
    /// Items at most [default: all, up to 10000]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=LIST_ITEMS_MAX))]
    limit: Option<u64>,
    /// Items to leave out before
    #[arg(long, default_value_t = 0)]
    offset: u64,
}

fn api<'a>(path: &[&'a str]) -> Vec<&'a str> {
    ["api", "v1"].iter().chain(path).copied().collect()
}

/// The cause that helps is usually the innermost.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// A token from the local development secret, for a broker on this machine alone: no other may learn one.
fn own_token(base: &Url, args: &ClientArgs) -> Option<String> {
    // Where a broker of this machine listens, by its own settings, is this machine only if the address is one of its own.
    let own = |address: IpAddr| args.url.is_none() && UdpSocket::bind((address, 0)).is_ok();
    let local = match base.host()? {
        Host::Domain(name) => name == "localhost",
        Host::Ipv4(address) => address.is_loopback() || own(address.into()),
        Host::Ipv6(address) => address.is_loopback() || own(address.into()),
    };
    if !local {
        return None;
    }
    let config = Config::load(&args.flags()).ok()?.config;
    let secret = config.existing_secret()?;
    let wanted = Wanted { subject: "cli".to_owned(), roles: vec![Role::Admin], topics: None, ttl: OWN_TOKEN_TTL };
    Some(make_token(&config.jwt, &secret, wanted, (&Clock::system(), &Entropy::system())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(url: &str, token: Option<&str>) -> ClientArgs {
        ClientArgs { url: Some(url.to_owned()), token: token.map(str::to_owned), data_dir: None, json: false }
    }

    fn client(url: &str) -> Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::new(&args(url, Some("t"))).expect("a client")
    }

    #[test]
    fn paths_are_escaped_under_the_base() {
        let request = client("http://gate:1/sluice/")
            .request(
                Method::GET,
                &api(&["topics", "a/b ?c"]),
                Query::default().with("limit", Some(5)).with("x", None::<u8>),
            )
            .build()
            .expect("a request");
        assert_eq!(request.url().as_str(), "http://gate:1/sluice/api/v1/topics/a%2Fb%20%3Fc?limit=5");
        assert_eq!(request.headers()["authorization"], "Bearer t");
    }

    #[test]
    fn only_http_urls_are_taken() {
        for url in ["localhost:5000", "ftp://h", "http://", ""] {
            assert!(matches!(Client::new(&args(url, None)), Err(Failure::Usage(_))), "{url}");
        }
    }

    #[test]
    fn a_token_is_made_for_this_machine_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let local = |url: &str| {
            let args = ClientArgs { data_dir: Some(directory.path().to_owned()), ..args(url, None) };
            own_token(&Url::parse(url).expect("a URL"), &args)
        };
        assert_eq!(local("http://localhost:5000"), None, "there is no secret yet");
        std::fs::write(directory.path().join("jwt.secret"), "x".repeat(64)).expect("written");
        for url in ["http://localhost:5000", "http://127.0.0.2:1", "http://[::1]:1"] {
            assert!(local(url).is_some(), "{url}");
        }
        for url in ["http://example.com", "http://10.0.0.1", "http://localhost.example.com"] {
            assert_eq!(local(url), None, "{url}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_exit_code_3() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
        let failure = client(&format!("http://{free}")).get(&["topics"], Query::default()).await.expect_err("nobody");
        assert_eq!(failure.exit_code(), 3, "{failure}");
        assert!(failure.to_string().contains("sluice serve"), "{failure}");
    }

    /// Answers one request with `answer`.
    async fn once(answer: &'static str) -> Client {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = client(&format!("http://{}", listener.local_addr().expect("bound")));
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await.expect("a request");
            stream.write_all(answer.as_bytes()).await.expect("answered");
        });
        client
    }

    #[tokio::test]
    async fn answers_are_told_apart() {
        let ok = once("HTTP/1.1 200 OK\r\nETag: \"7\"\r\nContent-Length: 2\r\n\r\n{}").await;
        assert_eq!(ok.get(&["topics"], Query::default()).await.expect("fine").etag.as_deref(), Some("\"7\""));
        for (answer, code) in [
            ("HTTP/1.1 409 Conflict\r\nContent-Length: 19\r\n\r\n{\"code\":\"CONFLICT\"}", 1),
            ("HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\n{}", 4),
            ("HTTP/1.1 502 Bad\r\nContent-Length: 4\r\n\r\n<h1>", 3),
            ("HTTP/1.1 302 Found\r\nContent-Length: 2\r\n\r\n{}", 3),
            ("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"cut", 3),
        ] {
            let failure = once(answer).await.get(&["topics"], Query::default()).await.expect_err("no success");
            assert_eq!(failure.exit_code(), code, "{answer}: {failure}");
        }
    }

    #[tokio::test]
    async fn lines_of_an_answer_are_read_wherever_chunks_end_and_its_end_is_told_from_a_break() {
        let answers = async |answer: &'static str| {
            let client = once(answer).await;
            let mut found = Vec::new();
            // What is sent goes on and on: it is the broker that ends it.
            let mut lines = match client.post_lines(&["x"], futures_util::stream::pending()).await {
                Ok(lines) => lines,
                Err(failure) => return (found, Some(failure.exit_code())),
            };
            loop {
                match lines.next().await {
                    Ok(Some(line)) => found.push(line.to_string()),
                    Ok(None) => return (found, None),
                    Err(failure) => return (found, Some(failure.exit_code())),
                }
            }
        };
        let refused = answers("HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\n{}").await;
        assert_eq!(refused, (vec![], Some(1)));
        let busy = answers("HTTP/1.1 429 No\r\nContent-Length: 2\r\n\r\n{}").await;
        assert_eq!(busy, (vec![], Some(4)));
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                      1\r\n\n\r\n8\r\n{\"line\":\r\n4\r\n 1}\n\r\n4\r\n\n{}\n\r\n0\r\n\r\n";
        assert_eq!(answers(chunks).await, (vec!["{\"line\":1}".to_owned(), "{}".to_owned()], None));
        let cut = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}\n{}\r\n";
        assert_eq!(answers(cut).await, (vec!["{}".to_owned()], Some(3)));
        let garbage = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nx\n\r\n0\r\n\r\n";
        assert_eq!(answers(garbage).await, (vec![], Some(3)));
    }
}
