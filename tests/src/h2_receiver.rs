//! A webhook receiver that speaks HTTP/2 over TLS, frame by frame (RFC 9113), and does to each request what the test says.
//! Invariant: it counts every connection and every request that came in whole. It knows as much of the protocol as one
//! sender needs: it reads no header, and answers with a status alone.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::raw_receiver::{Identity, acceptor};

/// What is done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Answers 200.
    Accepts,
    /// Answers 500.
    Fails,
    /// Says that it has not looked at it: RST_STREAM with REFUSED_STREAM.
    Refuses,
    /// Ends it with RST_STREAM and INTERNAL_ERROR.
    Resets,
    /// Closes the connection in good order, and says that this request came too late for it: GOAWAY.
    GoesAway,
    /// Closes the connection without a word.
    Breaks,
    /// Says nothing to it.
    Hangs,
    /// Says and reads nothing any more by its connection, and keeps it open: as a machine that is gone.
    GoesSilent,
}

#[derive(Debug, Default)]
struct Record {
    connections: usize,
    /// Of each request: the connection that it came by, and what was done.
    requests: Vec<(usize, Act)>,
    script: VecDeque<Act>,
}

/// A receiver on a free port; stops when dropped.
#[derive(Debug)]
pub struct H2Receiver {
    address: SocketAddr,
    record: Arc<Mutex<Record>>,
    server: JoinHandle<()>,
}

impl Drop for H2Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl H2Receiver {
    /// Listens on a free port of the loopback interface with [`Identity::Good`].
    ///
    /// # Panics
    /// When there is none, or a certificate cannot be read.
    pub async fn start() -> H2Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let record = Arc::new(Mutex::new(Record::default()));
        let acceptor = acceptor(Identity::Good, &[b"h2"]).expect("it has TLS");
        let kept = Arc::clone(&record);
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, record) = (acceptor.clone(), Arc::clone(&kept));
                connections.spawn(async move {
                    // An error is the sender's end of the connection.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = serve(stream, &record).await;
                    }
                });
            }
        });
        H2Receiver { address, record, server }
    }

    /// The endpoint to subscribe.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}/hook", self.address)
    }

    /// What is done with the next requests; those after them are accepted.
    pub fn acts(&self, acts: impl IntoIterator<Item = Act>) {
        self.record.lock().script.extend(acts);
    }

    /// Of each request so far: the connection that it came by, and what was done.
    #[must_use]
    pub fn requests(&self) -> Vec<(usize, Act)> {
        self.record.lock().requests.clone()
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
/// `:status` 200 and 500, as HPACK's static table has them.
const STATUS_200: u8 = 0x88;
const STATUS_500: u8 = 0x8e;

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let [a, b, c, kind, flags, s0, s1, s2, s3] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await?;
    Ok(Frame { kind, flags, stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff, payload })
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small frames").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, record: &Mutex<Record>) -> std::io::Result<()> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    assert_eq!(preface, PREFACE, "HTTP/2 was agreed on");
    let connection = {
        let mut record = record.lock();
        record.connections += 1;
        record.connections - 1
    };
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    stream.flush().await?;
    loop {
        let got = read(&mut stream).await?;
        let mut answer = match got.kind {
            SETTINGS if got.flags & ACK == 0 => frame(SETTINGS, ACK, 0, &[]),
            PING if got.flags & ACK == 0 => frame(PING, ACK, 0, &got.payload),
            // Room for as many bytes as came.
            DATA if !got.payload.is_empty() => {
                let bytes = u32::try_from(got.payload.len()).expect("small frames");
                frame(WINDOW_UPDATE, 0, 0, &bytes.to_be_bytes())
            }
            _ => Vec::new(),
        };
        if matches!(got.kind, DATA | HEADERS) && got.flags & END_STREAM != 0 {
            let act = {
                let mut record = record.lock();
                let act = record.script.pop_front().unwrap_or(Act::Accepts);
                record.requests.push((connection, act));
                act
            };
            let head = |status: u8| frame(HEADERS, END_STREAM | END_HEADERS, got.stream, &[status]);
            let reset = |code: u32| frame(RST_STREAM, 0, got.stream, &code.to_be_bytes());
            answer.extend(match act {
                Act::Accepts => head(STATUS_200),
                Act::Fails => head(STATUS_500),
                Act::Refuses => reset(REFUSED_STREAM),
                Act::Resets => reset(INTERNAL_ERROR),
                Act::GoesAway => {
                    let last = got.stream.saturating_sub(2);
                    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), 0_u32.to_be_bytes()].concat())
                }
                Act::Breaks => return Ok(()),
                Act::Hangs => Vec::new(),
                Act::GoesSilent => std::future::pending().await,
            });
        }
        stream.write_all(&answer).await?;
        stream.flush().await?;
    }
}
