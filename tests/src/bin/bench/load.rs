//! The load: keep-alive connections that send requests written beforehand. Invariant: the broker and the bare server get the
//! same bytes from the same code, which does as little as it can, since it runs on the same processors. Every answer is
//! read whole and its status checked.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sluice_tests::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Who is asked.
#[derive(Debug, Clone)]
pub struct Target {
    authority: Arc<str>,
    token: Arc<str>,
}

impl Target {
    pub fn of(client: &Client) -> Target {
        let authority = client.url().trim_start_matches("http://").into();
        Target { authority, token: client.token().into() }
    }

    /// A request of the API.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Bytes {
        let head = format!(
            "{method} /api/v1{path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            self.authority,
            self.token,
            body.len()
        );
        [head.as_bytes(), body].concat().into()
    }
}

/// One keep-alive connection.
pub struct Connection {
    stream: TcpStream,
    read: BytesMut,
}

impl Connection {
    async fn open(target: &Target) -> Connection {
        let stream = TcpStream::connect(&*target.authority).await.expect("the server listens");
        stream.set_nodelay(true).expect("a TCP socket has the option");
        Connection { stream, read: BytesMut::with_capacity(64 * 1024) }
    }

    /// Sends a request, checks the answer's status and hands out its body.
    pub async fn ask(&mut self, request: &[u8], status: u16) -> Bytes {
        self.stream.write_all(request).await.expect("the server reads");
        loop {
            if let Some((answered, head, body)) = head(&self.read)
                && self.read.len() >= head + body
            {
                let answer = self.read.split_to(head + body).freeze().slice(head..);
                assert_eq!(answered, status, "{}", String::from_utf8_lossy(&answer));
                return answer;
            }
            let read = self.stream.read_buf(&mut self.read).await.expect("the server answers");
            assert!(read > 0, "the server closed the connection");
        }
    }
}

/// Status, bytes of the head and of the body, once the head is whole.
fn head(bytes: &[u8]) -> Option<(u16, usize, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes).expect("the server speaks HTTP/1.1") {
        httparse::Status::Complete(head) => head,
        httparse::Status::Partial => return None,
    };
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
    Some((response.code?, head, length.expect("answers say how long they are")))
}

/// What each connection does again and again.
#[derive(Debug, Clone)]
pub enum Work {
    /// Sends this and expects this status; it holds so many messages.
    Publish { request: Bytes, status: u16, messages: usize },
    /// Takes messages and acknowledges them, with requests to this target.
    ConsumeAndAck { consume: Bytes, target: Target },
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
pub struct Ack<'a> {
    receipt: &'a str,
}

/// The body of a batch of acknowledgements.
#[derive(Deserialize, Serialize)]
pub struct Acks<'a> {
    #[serde(borrow)]
    pub acks: Vec<Ack<'a>>,
}

impl Work {
    async fn once(&self, connection: &mut Connection) -> usize {
        match self {
            Work::Publish { request, status, messages } => {
                connection.ask(request, *status).await;
                *messages
            }
            Work::ConsumeAndAck { consume, target } => {
                let answer = connection.ask(consume, 200).await;
                let consumed: Consumed<'_> = serde_json::from_slice(&answer).expect("the answer to a consume");
                let acks: Vec<Ack<'_>> =
                    consumed.messages.iter().map(|leased| Ack { receipt: leased.receipt }).collect();
                let count = acks.len();
                assert!(count > 0, "the topic ran dry: the figures would be of empty answers");
                let body = serde_json::to_vec(&Acks { acks }).expect("texts are JSON");
                connection.ask(&target.request("POST", "/messages/ack/batch", &body), 200).await;
                count
            }
        }
    }
}

/// What a round came to.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    pub messages: usize,
    pub took: Duration,
}

impl Done {
    pub fn per_second(self) -> f64 {
        self.messages as f64 / self.took.as_secs_f64()
    }
}

/// Does `work` over so many connections for `round`.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
pub async fn run(target: &Target, work: &Work, connections: usize, round: Duration) -> Done {
    let begun = Instant::now();
    each(target, work, connections, move |_| begun.elapsed() < round).await
}

/// Does `work` so many times over each of so many connections.
pub async fn run_times(target: &Target, work: &Work, connections: usize, times: usize) -> Done {
    each(target, work, connections, move |done| done < times).await
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn each<F>(target: &Target, work: &Work, connections: usize, more: F) -> Done
where
    F: Fn(usize) -> bool + Copy + Send + 'static,
{
    let mut opened = Vec::new();
    for _ in 0..connections {
        opened.push(Connection::open(target).await);
    }
    let (done, begun) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let workers = opened.into_iter().map(|mut connection| {
        let (work, done) = (work.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let mut times = 0;
            while more(times) {
                done.fetch_add(work.once(&mut connection).await, Ordering::Relaxed);
                times += 1;
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.expect("a connection does not panic");
    }
    Done { messages: done.load(Ordering::Relaxed), took: begun.elapsed() }
}

/// The middle one.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
