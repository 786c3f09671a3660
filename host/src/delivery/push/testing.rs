//! What the tests of webhooks share: a subscription, leases, and a receiver on a real socket. Only built for tests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use uuid::Uuid;

use super::signature::{Scheme, new_secret};
use crate::catalog::model::{
    DeadLetterPayload, Guarantee, Storage, Subscription, SubscriptionId, SubscriptionKind, SubscriptionSettings, Topic,
    TopicKind, TopicSettings,
};
use crate::clock::Timestamp;
use crate::config;
use crate::entropy::Entropy;
use crate::message::{GroupId, Message, MessageId, MessageMeta, Offset, Position, TopicId};
use crate::store::{Lease, Receipt};

pub(super) fn topic(guarantee: Guarantee) -> Topic {
    Topic {
        id: TopicId(1),
        name: "orders".parse().unwrap(),
        dead_letter: Some(TopicId(2)),
        settings: TopicSettings {
            description: String::new(),
            kind: TopicKind::PubSub,
            schema_id: None,
            guarantee,
            retention: Duration::from_secs(3600),
            retention_bytes: None,
            partition_count: 1,
            max_message_size: 1 << 20,
            dedup_window: Duration::from_secs(600),
            dedup_keys_max: 1000,
            dead_letter_payload: DeadLetterPayload::Original,
            dead_letter_expired: false,
            dead_letter_threshold: None,
            capture_input: None,
            storage: Storage::Default,
        },
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
        version: 1,
    }
}

pub(super) fn subscription(endpoint: &str) -> Subscription {
    Subscription {
        id: SubscriptionId(Uuid::from_u128(7)),
        group: GroupId(1),
        topic: TopicId(1),
        topic_name: "orders".parse().unwrap(),
        consumer_group: "billing".into(),
        settings: SubscriptionSettings {
            endpoint: Some(endpoint.to_owned()),
            ..SubscriptionSettings::new(SubscriptionKind::Push)
        },
        secret: Some(new_secret(Scheme::Hmac, &Entropy::seeded(1))),
        previous_secret: None,
        pause: None,
        created_by: "test".to_owned(),
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
        version: 1,
    }
}

/// Loopback allowed, as in the development profile.
pub(super) fn settings() -> config::Push {
    config::Push {
        allow_http: true,
        allow_networks: vec!["127.0.0.0/8".to_owned(), "::1/128".to_owned()],
        concurrency_max: 32,
        requests_max: 1024,
    }
}

pub(super) fn lease(sequence: u64, key: Option<&str>) -> Lease {
    let position = Position { topic: TopicId(1), partition: 0, offset: Offset::new(0, sequence) };
    Lease {
        position,
        message: Message {
            id: MessageId::new(Timestamp(1_700_000_000_000), TopicId(1), 0, sequence),
            payload: Bytes::from(format!("{{\"n\":{sequence}}}")),
            meta: MessageMeta {
                content_type: "application/json".into(),
                schema_version: None,
                headers: Vec::new(),
                priority: 0,
                key: key.map(Into::into),
                correlation_id: None,
                reply_to: None,
                published_at: Timestamp(1_700_000_000_000),
                expires_at: None,
                trace: None,
                revision: 1,
                dead_letter: None,
                replay_of: None,
            },
        },
        attempt: 1,
        deadline: Timestamp::MAX,
        receipt: Receipt { position, group: GroupId(1), epoch: 1, grant: sequence, attempt: 1 },
    }
}

/// What a receiver does with a request.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    /// Writes these bytes and keeps the connection.
    Bytes(Vec<u8>),
    /// Writes these bytes and closes.
    BytesThenClose(Vec<u8>),
    /// Writes these bytes after a while.
    Slow(Duration, Vec<u8>),
    /// Writes these bytes when it is told to.
    Held(Arc<Notify>, Vec<u8>),
    /// Says nothing.
    Hang,
}

/// An answer with a status line, headers and a short body.
pub(super) fn answer(status: &str, headers: &str) -> Reply {
    Reply::Bytes(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n{headers}\r\nok").into_bytes())
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub head: String,
    pub body: Vec<u8>,
    /// Which connection it came by.
    pub connection: usize,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// An endpoint on a real socket.
pub(super) struct Receiver {
    pub url: String,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Receiver {
    /// `reply` sees the request and how many came before it.
    pub async fn start(reply: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let (seen, reply) = (Arc::clone(&received), Arc::new(reply));
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                tokio::spawn(serve(stream, connection, Arc::clone(&seen), Arc::clone(&reply)));
            }
        });
        Receiver { url, received }
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    connection: usize,
    seen: Arc<Mutex<Vec<Received>>>,
    reply: Arc<impl Fn(&Received, usize) -> Reply>,
) {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer, connection).await {
        let before = {
            let mut seen = seen.lock();
            seen.push(request.clone());
            seen.len() - 1
        };
        match reply(&request, before) {
            Reply::Bytes(bytes) => stream.write_all(&bytes).await.unwrap_or_default(),
            Reply::BytesThenClose(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
                return;
            }
            Reply::Slow(pause, bytes) => {
                tokio::time::sleep(pause).await;
                stream.write_all(&bytes).await.unwrap_or_default();
            }
            Reply::Held(release, bytes) => {
                release.notified().await;
                stream.write_all(&bytes).await.unwrap_or_default();
            }
            Reply::Hang => std::future::pending().await,
        }
    }
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>, connection: usize) -> Option<Received> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            let mut request = Received { head, body: Vec::new(), connection };
            let length: usize = request.header("content-length").unwrap_or("0").parse().unwrap();
            if buffer.len() >= end + 4 + length {
                request.body = buffer[end + 4..end + 4 + length].to_vec();
                buffer.drain(..end + 4 + length);
                return Some(request);
            }
        }
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await.ok().filter(|read| *read > 0)?;
        buffer.extend_from_slice(&chunk[..read]);
    }
}
