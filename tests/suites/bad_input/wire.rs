//! One HTTP/1.1 connection, byte by byte. Invariant: what is sent is what the test says, right or wrong; no wait is longer
//! than the suites' patience. Never repeats or mends anything.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use sluice_tests::{Answer, Client, wait};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A connection to a broker, and what was read of it and not yet looked at.
pub(super) struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    /// Connects.
    pub(super) async fn to(broker: &Client) -> Wire {
        let address = broker.url().trim_start_matches("http://");
        Wire { stream: TcpStream::connect(address).await.expect("the broker listens"), read: Vec::new() }
    }

    /// Sends bytes. That the broker has hung up meanwhile shows in what comes back.
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        // Whether all of it was taken is not what a test is about.
        drop(tokio::time::timeout(wait::PATIENCE, self.stream.write_all(bytes)).await);
    }

    /// Says that nothing more will be sent.
    pub(super) async fn finish(&mut self) {
        self.stream.shutdown().await.expect("an open connection can be half closed");
    }

    /// Breaks the connection off, so that the broker gets a reset.
    pub(super) fn reset(self) {
        self.stream.set_zero_linger().expect("a connection can be reset");
    }

    /// The next answer; none if the connection ends before.
    pub(super) async fn answer(&mut self) -> Option<Answer> {
        loop {
            if let Some((answer, length)) = parse(&self.read) {
                self.read.drain(..length);
                return Some(answer);
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// The next answer.
    ///
    /// # Panics
    /// When the connection ends before.
    pub(super) async fn expect_answer(&mut self) -> Answer {
        self.answer().await.expect("the broker answers")
    }

    /// Waits until the broker has ended the connection, and has sent nothing more.
    pub(super) async fn expect_end(&mut self) {
        while self.more().await {}
        assert!(self.read.is_empty(), "no more than the end: {}", String::from_utf8_lossy(&self.read));
    }

    /// Whether the broker has ended the connection by now.
    pub(super) fn has_ended(&mut self) -> bool {
        let mut bytes = [0; 1024];
        match self.stream.try_read(&mut bytes) {
            Ok(0) => true,
            Ok(read) => {
                self.read.extend_from_slice(&bytes[..read]);
                false
            }
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }

    /// Whether an answer has come by now.
    pub(super) fn has_answered(&mut self) -> bool {
        self.has_ended() || parse(&self.read).is_some()
    }

    /// Waits until the broker has ended the connection, whatever it says before that is no HTTP/1.1.
    pub(super) async fn expect_end_of_frames(&mut self) {
        while self.more().await {}
        self.read.clear();
    }

    async fn more(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        let read = tokio::time::timeout(wait::PATIENCE, self.stream.read(&mut bytes)).await;
        let read = read.expect("the broker answers, or ends the connection");
        // A reset is an end.
        let read = read.unwrap_or(0);
        self.read.extend_from_slice(&bytes[..read]);
        read > 0
    }
}

/// The first answer in `bytes` and its length, once it is whole. A body without a length is not looked at.
fn parse(bytes: &[u8]) -> Option<(Answer, usize)> {
    let head_end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().expect("an answer begins with its status");
    let headers: HeaderMap = lines
        .filter_map(|line| line.split_once(':'))
        .filter_map(|(name, value)| Some((name.parse::<HeaderName>().ok()?, value.trim().parse::<HeaderValue>().ok()?)))
        .collect();
    if headers.get("content-type").is_some_and(|given| given == "application/x-ndjson") {
        let (body, length) = chunks(&bytes[head_end..])?;
        return Some((Answer { request: String::new(), status, headers, body }, head_end + length));
    }
    let length = headers.get("content-length").map_or(0, |length| {
        length.to_str().ok().and_then(|length| length.parse::<usize>().ok()).expect("a length is a number")
    });
    let body = Bytes::copy_from_slice(bytes.get(head_end..head_end + length)?);
    Some((Answer { request: String::new(), status, headers, body }, head_end + length))
}

/// A body in chunks and their length, once it is whole.
fn chunks(bytes: &[u8]) -> Option<(Bytes, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let size_end = bytes.get(at..)?.windows(2).position(|window| window == b"\r\n")? + at;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..size_end]).expect("a size is text"), 16);
        let size = size.expect("a size is a number");
        let begin = size_end + 2;
        body.extend_from_slice(bytes.get(begin..begin + size)?);
        at = begin + size + 2;
        if size == 0 {
            return (bytes.len() >= at).then(|| (body.into(), at));
        }
    }
}

/// A request as it should be, with the client's token.
pub(super) fn request(
    client: &Client,
    (method, target): (&str, &str),
    headers: &[(&str, &[u8])],
    body: Option<&[u8]>,
) -> Vec<u8> {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nhost: broker\r\n").into_bytes();
    let bearer = format!("Bearer {}", client.token());
    let length = body.map(|body| body.len().to_string());
    let token = (!client.token().is_empty()).then_some(("authorization", bearer.as_bytes()));
    let length = length.as_ref().map(|length| ("content-length", length.as_bytes()));
    for (name, value) in token.into_iter().chain(length).chain(headers.iter().copied()) {
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body.unwrap_or_default());
    bytes
}
