//! Sockets: connections are accepted, served and ended here. Invariant: connections are bounded, over all ports together;
//! one that sends no whole request head in time, takes no answer, or idles is closed; a stop finishes what is in flight,
//! for a bounded time. Never looks into a request.

mod activity;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;

use self::activity::{Activity, Pulse, Watched};
use crate::broker::Broker;
use crate::config::{Config, Limits};
use crate::process;

/// HTTP/2 requests at once on one connection: what most clients assume, and a bound on what one connection costs.
const STREAMS_MAX: u32 = 128;
/// Bytes of a head that hyper reads at least: the edge wants to answer one that is too large by itself, and can only where
/// hyper still reads it. Beyond, hyper answers, with a bare status.
const HEAD_BYTES_READ_MIN: usize = 64 * 1024;
/// Headers that hyper reads, for the same reason: many times what the edge lets in.
const HEADERS_READ_MAX: usize = 1024;
/// After a failed accept (no file handles, mostly): long enough not to spin, short enough to be back soon.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// After the time for a stop is over and connections are cut.
const CUT_WAIT: Duration = Duration::from_secs(1);

/// Where the API is served: the address of `listen` first.
///
/// # Errors
/// Which address cannot be listened on, and why.
pub async fn bind(config: &Config) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let another = config.messaging.broker_port.map(|port| SocketAddr::new(config.listen.ip(), port));
    let mut listeners = Vec::new();
    for address in std::iter::once(config.listen).chain(another) {
        listeners.push(TcpListener::bind(address).await.map_err(|source| (address, source))?);
    }
    Ok(listeners)
}

/// Serves the API on `listeners` until the broker is told to stop, then finishes what is in flight.
pub async fn serve(broker: Arc<Broker>, listeners: Vec<TcpListener>) {
    let (limits, stopping) = (bounded_by_handles(broker.config.limits.clone()), broker.stopping.clone());
    let app = super::app(&broker).expect("a broker has one API, so its metrics are not registered yet");
    run(listeners, app, &limits, stopping).await;
}

/// Connections take no handle that a file of the store may need: without them, nothing could be stored or read.
fn bounded_by_handles(mut limits: Limits) -> Limits {
    let open_files_max = process::open_files_max();
    let room = process::connections_within(open_files_max);
    if limits.connections_max > room {
        tracing::warn!(
            open_files_max,
            wanted = limits.connections_max,
            "at most {room} connections: the system allows no more open files (ulimit -n), and half are for files"
        );
        limits.connections_max = room;
    }
    limits
}

/// Serves `app` on `listeners` until `stopping`.
pub async fn run(listeners: Vec<TcpListener>, app: Router, limits: &Limits, stopping: CancellationToken) {
    let (connections, cut) = (TaskTracker::new(), CancellationToken::new());
    let free = Arc::new(Semaphore::new(limits.connections_max.min(Semaphore::MAX_PERMITS)));
    let server = Arc::new(Server {
        http: http(limits),
        app,
        pulse: Pulse::of(limits.request_timeout),
        stopping: stopping.clone(),
        cut: cut.clone(),
    });
    let mut turn = 0;
    while let Some((stream, permit)) = next(&listeners, turn, &free, &stopping).await {
        turn = (turn + 1) % listeners.len();
        let server = Arc::clone(&server);
        connections.spawn(async move {
            server.connection(stream).await;
            drop(permit);
        });
    }
    drop(listeners);
    connections.close();
    if tokio::time::timeout(limits.shutdown_timeout, connections.wait()).await.is_err() {
        tracing::warn!(open = connections.len(), "connections are cut: they did not end in time");
        cut.cancel();
        // Cut tasks end at their next poll; a task that does not is not worth waiting for.
        drop(tokio::time::timeout(CUT_WAIT, connections.wait()).await);
    }
}

/// The next connection, once there is room for one; none when the broker is to stop.
async fn next(
    listeners: &[TcpListener],
    turn: usize,
    free: &Arc<Semaphore>,
    stopping: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    loop {
        let accepted = async {
            let permit = Arc::clone(free).acquire_owned().await.expect("the semaphore is never closed");
            (accept(listeners, turn).await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = stopping.cancelled() => return None,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok(stream) => return Some((stream, permit)),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// From whichever has a connection, asked from that of this turn on, so that none waits behind all of another.
async fn accept(listeners: &[TcpListener], turn: usize) -> io::Result<TcpStream> {
    let (before, from) = listeners.split_at(turn);
    let ready = poll_fn(|context| {
        let mut asked = from.iter().chain(before).map(|listener| listener.poll_accept(context));
        asked.find(Poll::is_ready).unwrap_or(Poll::Pending)
    });
    ready.await.map(|(stream, _)| stream)
}

fn http(limits: &Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    let head_bytes_read = HEAD_BYTES_READ_MIN.max(limits.head_bytes_max * 2);
    builder
        .http1()
        // Slow heads are ended by `Activity`, at one timer a connection; hyper's own costs one a request.
        .header_read_timeout(None)
        .max_headers(HEADERS_READ_MAX)
        .max_buf_size(head_bytes_read);
    builder
        .http2()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(head_bytes_read).unwrap_or(u32::MAX));
    builder
}

struct Server {
    http: Builder<TokioExecutor>,
    app: Router,
    pulse: Pulse,
    stopping: CancellationToken,
    cut: CancellationToken,
}

impl Server {
    async fn connection(&self, stream: TcpStream) {
        // Answers are written whole; waiting for more to fill a packet would only delay them.
        drop(stream.set_nodelay(true));
        let activity = Arc::new(Activity::default());
        let io = TokioIo::new(Watched::new(stream, Arc::clone(&activity)));
        let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
            let begun = activity.begin();
            let answer = self.app.clone().call(request.map(Body::new));
            async move {
                let response = answer.await;
                drop(begun);
                response
            }
        });
        let mut connection = pin!(self.http.serve_connection(io, service));
        let mut beats = tokio::time::interval(self.pulse.every);
        let mut watch = self.pulse.watch();
        let mut ending = false;
        loop {
            tokio::select! {
                biased;
                // An error here is the client's: it broke off, or sent no HTTP.
                _ended = connection.as_mut() => return,
                () = self.stopping.cancelled(), if !ending => {
                    ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = self.cut.cancelled() => return,
                _ = beats.tick() => match watch.beat(&activity) {
                    activity::Verdict::Alive => {}
                    activity::Verdict::Idle => connection.as_mut().graceful_shutdown(),
                    activity::Verdict::Dead => return,
                },
            }
        }
    }
}
