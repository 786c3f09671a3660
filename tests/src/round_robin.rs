//! The smallest load balancer: a proxy of TCP before several servers. Invariant: each connection goes to the next server in turn,
//! and past those that refuse it; it never looks into what it carries, and waits for no test: one that waits for a command of its own
//! lets nothing else run on its thread.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

static TURN: AtomicUsize = AtomicUsize::new(0);
/// What all of them run on.
static CARRYING: LazyLock<Runtime> = LazyLock::new(|| {
    let one_thread = Builder::new_multi_thread().worker_threads(1).thread_name("round-robin").enable_all().build();
    one_thread.expect("there is room for a thread")
});

/// A running one; ends when it is dropped, but for the connections that there are.
#[derive(Debug)]
pub struct RoundRobin {
    address: SocketAddr,
    listening: JoinHandle<()>,
}

impl RoundRobin {
    /// One before these servers.
    ///
    /// # Panics
    /// When it cannot listen at `address`.
    pub async fn before(servers: Vec<SocketAddr>, address: &str) -> RoundRobin {
        let address = address.to_owned();
        let binding = CARRYING.spawn(async { TcpListener::bind(address).await.expect("the address is free") });
        let listener = binding.await.expect("it is bound");
        let address = listener.local_addr().expect("it is bound");
        let listening = CARRYING.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, servers.clone()));
            }
        });
        RoundRobin { address, listening }
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for RoundRobin {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn carry(mut client: TcpStream, servers: Vec<SocketAddr>) {
    let first = TURN.fetch_add(1, Ordering::Relaxed);
    for turn in 0..servers.len() {
        if let Ok(mut server) = TcpStream::connect(servers[(first + turn) % servers.len()]).await {
            let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
            // Either end may hang up, and says so to the other by that.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn saying(byte: u8) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(&[byte]).await.expect("it is read");
            }
        });
        address
    }

    #[tokio::test]
    async fn servers_take_turns_and_one_that_refuses_is_passed_over() {
        let gone = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let nobody = gone.local_addr().expect("it is bound");
        drop(gone);
        let servers = vec![saying(b'a').await, nobody, saying(b'b').await];
        let proxy = RoundRobin::before(servers, "127.0.0.1:0").await;
        let mut said = Vec::new();
        for _ in 0..6 {
            let mut stream = TcpStream::connect(proxy.address).await.expect("it listens");
            said.push(stream.read_u8().await.expect("somebody answers"));
        }
        said.sort_unstable();
        assert_eq!(said, b"aabbbb");
    }
}
