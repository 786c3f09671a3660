//! A TCP connection that is as bad as a test wants it: a proxy before a server. Invariant: without trouble it hands on what comes
//! as it comes, in both directions, and ends a connection when either side does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How the link is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// It hands on.
    #[default]
    Good,
    /// Connections are reset, new ones too.
    Cut,
    /// Nothing goes through, and nobody is told: as when a cable is pulled.
    Silent,
    /// Each piece takes this much longer.
    Slow(Duration),
}

/// A running link; ends when it is dropped.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    server: Arc<Mutex<SocketAddr>>,
    state: Arc<watch::Sender<State>>,
    /// Ends connections of before.
    moves: Arc<watch::Sender<()>>,
    listening: JoinHandle<()>,
}

impl Link {
    /// A good one before the server at this address.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn to(server: SocketAddr) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(watch::Sender::new(State::Good));
        let moves = Arc::new(watch::Sender::new(()));
        let (told, moved, server) = (Arc::clone(&state), Arc::clone(&moves), Arc::new(Mutex::new(server)));
        let leads_to = Arc::clone(&server);
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = *leads_to.lock();
                tokio::spawn(carry(client, server, told.subscribe(), moved.subscribe()));
            }
        });
        Link { address, server, state, moves, listening }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads to another server from now on, as an address does that a fail-over moves; connections of before are reset.
    pub fn lead_to(&self, server: SocketAddr) {
        *self.server.lock() = server;
        self.moves.send_replace(());
    }

    /// The same, but connections of before stay where they are.
    pub fn lead_new_to(&self, server: SocketAddr) {
        *self.server.lock() = server;
    }

    /// Makes it so, for connections of before and of later.
    pub fn be(&self, state: State) {
        self.state.send_replace(state);
    }

    /// The URL of a server, through this.
    ///
    /// # Panics
    /// When it is none with a host and a port.
    #[must_use]
    pub fn url(&self, url: &str) -> String {
        let mut url = reqwest::Url::parse(url).expect("a URL");
        url.set_ip_host(self.address.ip()).expect("it has a host");
        url.set_port(Some(self.address.port())).expect("it has a port");
        url.to_string()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.listening.abort();
        self.state.send_replace(State::Cut);
    }
}

async fn carry(
    client: TcpStream,
    server: SocketAddr,
    mut state: watch::Receiver<State>,
    mut moved: watch::Receiver<()>,
) {
    let carried = {
        let mut state = state.clone();
        async move {
            // A connection that begins while all is silent gets no answer, not even a refusal.
            if state.wait_for(|state| *state != State::Silent).await.is_err() {
                return;
            }
            let Ok(server) = TcpStream::connect(server).await else { return };
            let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::select! {
                () = hand_on(from_client, to_server, state.clone()) => {}
                () = hand_on(from_server, to_client, state.clone()) => {}
            }
        }
    };
    tokio::select! {
        () = carried => {}
        _ = state.wait_for(|state| *state == State::Cut) => {}
        _ = moved.changed() => {}
    }
}

async fn hand_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut piece = vec![0; 64 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut piece).await else { return };
        let Ok(now) = state.wait_for(|state| *state != State::Silent).await.map(|state| *state) else { return };
        if let State::Slow(longer) = now {
            tokio::time::sleep(longer).await;
        }
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    async fn said(stream: &mut TcpStream) -> std::io::Result<u8> {
        stream.write_all(b"x").await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn a_link_is_good_silent_good_and_cut() {
        let link = Link::to(echo().await).await;
        let mut stream = TcpStream::connect(link.address()).await.expect("it listens");
        assert_eq!(said(&mut stream).await.expect("it answers"), b'x');
        link.be(State::Silent);
        let answered = tokio::time::timeout(Duration::from_millis(200), said(&mut stream)).await;
        assert!(answered.is_err(), "nothing comes through");
        link.be(State::Slow(Duration::from_millis(1)));
        assert_eq!(stream.read_u8().await.expect("what was held comes"), b'x');
        link.be(State::Cut);
        assert!(said(&mut stream).await.is_err());
        link.be(State::Good);
        let mut again = TcpStream::connect(link.address()).await.expect("it listens");
        assert_eq!(said(&mut again).await.expect("it answers"), b'x');
    }
}
