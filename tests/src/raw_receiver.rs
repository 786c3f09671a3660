//! A webhook receiver that keeps to no rule: it reads a request and then does to its connection what the test says, byte
//! by byte, with or without TLS. Invariant: it counts every request and every byte that the sender took. Bounded by the
//! sender, which is what is tested: it goes on until its connection ends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::{binary, wait};

/// Bytes that are written at once where much is written.
const PIECE_BYTES: usize = 64 * 1024;

/// What is done with each request.
#[derive(Debug, Clone)]
pub enum Conduct {
    /// Writes this, and keeps the connection.
    Says(String),
    /// Writes this, and closes the connection.
    Closes(String),
    /// Writes this, and resets the connection.
    Resets(String),
    /// Writes the first at once, and the second again and again, once a second, for ever.
    Drips(String, &'static str),
    /// Writes the first, and the second again and again, as fast as it is taken, so many bytes.
    Pours(String, &'static str, u64),
}

/// What a receiver shows of itself in a TLS handshake: a file of `tests/data/tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// None: it speaks plain HTTP.
    Plain,
    /// A certificate that [`authority`] signed for its address.
    Good,
    /// One for another host.
    OtherHost,
    /// One whose time is over.
    Expired,
    /// One that nobody else signed.
    SelfSigned,
    /// As [`Identity::Good`], and it answers only who shows a certificate that `clients-ca.pem` signed.
    AsksForCertificate,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    bytes: AtomicU64,
}

/// A receiver on a free port; stops when dropped.
#[derive(Debug)]
pub struct RawReceiver {
    address: SocketAddr,
    identity: Identity,
    counts: Arc<Counts>,
    server: JoinHandle<()>,
}

impl Drop for RawReceiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The certificates that a broker has to trust (`SSL_CERT_FILE`) to send to [`Identity::Good`].
#[must_use]
pub fn authority() -> PathBuf {
    file("ca.pem")
}

fn file(name: &str) -> PathBuf {
    binary::repository().join("tests/data/tls").join(name)
}

impl RawReceiver {
    /// Listens on a free port of the loopback interface.
    ///
    /// # Panics
    /// When there is none, or a certificate cannot be read.
    pub async fn start(identity: Identity, conduct: Conduct) -> RawReceiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let counts = Arc::new(Counts::default());
        let (counted, acceptor) = (Arc::clone(&counts), acceptor(identity, &[]));
        let server = tokio::spawn(async move {
            // Ends with the server: nothing of a receiver outlives its test.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, acceptor.clone(), conduct.clone(), Arc::clone(&counted)));
            }
        });
        RawReceiver { address, identity, counts, server }
    }

    /// The endpoint to subscribe.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.identity == Identity::Plain { "http" } else { "https" };
        format!("{scheme}://{}/hook", self.address)
    }

    /// The same under a name for the address.
    #[must_use]
    pub fn url_at(&self, host: &str) -> String {
        format!("http://{host}:{}/hook", self.address.port())
    }

    /// Whole requests that have come in.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::SeqCst)
    }

    /// Bytes of answers that the system took: those that the sender read, and what lies in buffers on the way.
    #[must_use]
    pub fn bytes_taken(&self) -> u64 {
        self.counts.bytes.load(Ordering::SeqCst)
    }
}

/// With these protocols to choose from.
pub(crate) fn acceptor(identity: Identity, protocols: &[&[u8]]) -> Option<TlsAcceptor> {
    let name = match identity {
        Identity::Plain => return None,
        Identity::Good | Identity::AsksForCertificate => "good.pem",
        Identity::OtherHost => "other-host.pem",
        Identity::Expired => "expired.pem",
        Identity::SelfSigned => "self-signed.pem",
    };
    let certificate = CertificateDer::from_pem_file(file(name)).expect("a certificate of the repository");
    let key = PrivateKeyDer::from_pem_file(file("receiver.key")).expect("the key of the repository");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring has what TLS takes");
    let config = if identity == Identity::AsksForCertificate {
        let mut clients = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(file("clients-ca.pem")).expect("a certificate of the repository");
        clients.add(authority).expect("an authority");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(clients), provider).build();
        config.with_client_cert_verifier(verifier.expect("it has an authority"))
    } else {
        config.with_no_client_auth()
    };
    let mut config = config.with_single_cert(vec![certificate], key).expect("key and certificate belong together");
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Some(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(stream: TcpStream, acceptor: Option<TlsAcceptor>, conduct: Conduct, counts: Arc<Counts>) {
    if matches!(conduct, Conduct::Resets(_)) {
        stream.set_zero_linger().expect("a socket that is open");
    }
    // An error is the sender's end of the connection, which is where a receiver stops.
    let _ = match acceptor {
        None => answer(stream, &conduct, &counts).await,
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(stream) => answer(stream, &conduct, &counts).await,
            Err(error) => Err(error),
        },
    };
}

async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    conduct: &Conduct,
    counts: &Counts,
) -> std::io::Result<()> {
    while read_request(&mut stream).await? {
        counts.requests.fetch_add(1, Ordering::SeqCst);
        match conduct {
            Conduct::Says(text) => write(&mut stream, text.as_bytes(), counts).await?,
            Conduct::Closes(text) => {
                write(&mut stream, text.as_bytes(), counts).await?;
                return stream.shutdown().await;
            }
            Conduct::Resets(text) => return write(&mut stream, text.as_bytes(), counts).await,
            Conduct::Drips(first, drop) => {
                write(&mut stream, first.as_bytes(), counts).await?;
                loop {
                    wait::pause(Duration::from_secs(1)).await;
                    write(&mut stream, drop.as_bytes(), counts).await?;
                }
            }
            Conduct::Pours(first, piece, bytes) => {
                write(&mut stream, first.as_bytes(), counts).await?;
                let much = piece.repeat((PIECE_BYTES / piece.len()).max(1));
                let end = counts.bytes.load(Ordering::SeqCst) + bytes;
                while counts.bytes.load(Ordering::SeqCst) < end {
                    write(&mut stream, much.as_bytes(), counts).await?;
                }
            }
        }
    }
    Ok(())
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8], counts: &Counts) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await?;
    counts.bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
    Ok(())
}

/// Reads one request to its end; false at the end of the connection.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<bool> {
    let mut received = Vec::new();
    loop {
        if let Some(head) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&received[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
            if received.len() >= head + 4 + length {
                return Ok(true);
            }
        }
        if stream.read_buf(&mut received).await? == 0 {
            return Ok(false);
        }
    }
}
