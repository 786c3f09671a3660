//! A connection to Redis: one server, a Cluster, or the master that Sentinels name. Invariant: nothing waits for it without a
//! limit, and no password or key is in what it says of a failure. Knows no role of Redis.

use std::time::Duration;

use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::cluster::ClusterClientBuilder;
use ::redis::cluster_async::ClusterConnection;
use ::redis::cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo};
use ::redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo as _,
    ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, RedisResult, ServerErrorKind, TlsCertificates, TlsMode,
    Value,
};

use super::Trouble;
use crate::catalog::model::Secret;
use crate::config::{RedisKind, RedisUrl};

/// How long all of it may take to be there: names, handshakes, a Sentinel's word.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long one of several servers may take: the next one is asked then.
const CONNECT_ONE_MAX: Duration = Duration::from_secs(1);
/// How often a Cluster is asked again that has refused a command before it ran.
const REPEATS: u32 = 2;
/// And how soon.
const REPEAT_AFTER: Duration = Duration::from_millis(20);

/// Where to, whom to believe, and how long to wait.
#[derive(Debug)]
pub(crate) struct Address {
    pub(crate) url: RedisUrl,
    /// PEM of authorities; none: the system's.
    pub(crate) roots: Option<Vec<u8>>,
    /// No answer counts after this, whoever asked; callers may be less patient.
    pub(crate) patience: Duration,
}

/// One connection, for any number of callers.
#[derive(Clone)]
pub(crate) enum Link {
    /// To one server.
    Server(MultiplexedConnection),
    /// To all of a Cluster.
    Cluster(ClusterConnection),
}

/// Who is told what the server sends by itself. It is called by the connection's task: it must not wait.
pub(crate) type Told = std::sync::Arc<dyn Fn(PushInfo) + Send + Sync>;

impl Link {
    /// Connects.
    ///
    /// # Errors
    /// Why it could not.
    pub(crate) async fn connect(address: &Address, told: &Told) -> Result<Link, Trouble> {
        let connecting = async {
            match &address.url.kind {
                RedisKind::Single => address.server(told).await,
                RedisKind::Cluster => address.cluster(told).await,
                RedisKind::Sentinel(master) => address.master(master, told).await,
            }
        };
        match tokio::time::timeout(CONNECT_MAX, connecting).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(error)) if error.kind() == ErrorKind::RESP3NotSupported => {
                Err(Trouble::Refused("it is older than version 7".to_owned()))
            }
            Ok(Err(error)) => Err(Trouble::Away(error.to_string())),
            Err(_) => Err(Trouble::Away(format!("no connection within {} s", CONNECT_MAX.as_secs()))),
        }
    }

    /// Asks.
    ///
    /// # Errors
    /// The server's, and the network's.
    pub(crate) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        match self {
            Link::Server(server) => asked(server.clone(), command).await,
            Link::Cluster(cluster) => {
                for _ in 0..REPEATS {
                    match asked(cluster.clone(), command).await {
                        // The client learns meanwhile where it is now.
                        Err(error) if was_not_run(&error) => tokio::time::sleep(REPEAT_AFTER).await,
                        other => return other,
                    }
                }
                asked(cluster.clone(), command).await
            }
        }
    }

    /// What an error means to who asked.
    pub(crate) fn trouble(&self, error: &RedisError) -> Trouble {
        match (self, error.kind()) {
            (Link::Server(_), ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::CrossSlot)) => {
                Trouble::Refused(super::look::A_CLUSTERS.to_owned())
            }
            _ => Trouble::Away(error.to_string()),
        }
    }

    /// Asks each server that has something to tell, or to do, of its own.
    ///
    /// # Errors
    /// The first one's that did not do it, and the network's.
    pub(crate) async fn ask_each(&self, command: &Cmd) -> RedisResult<()> {
        match self {
            Link::Server(server) => asked::<Value>(server.clone(), command).await.map(drop),
            Link::Cluster(cluster) => {
                let each =
                    RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, Some(ResponsePolicy::AllSucceeded)));
                cluster.clone().route_command(command.clone(), each).await.map(drop)
            }
        }
    }

    /// Wants to be told what is published on a channel, as long as this connection lasts.
    ///
    /// # Errors
    /// The server's, and the network's.
    pub(crate) async fn subscribe(&self, channel: &str) -> RedisResult<()> {
        match self {
            Link::Server(server) => server.clone().subscribe(channel).await,
            Link::Cluster(cluster) => cluster.clone().subscribe(channel).await,
        }
    }

    /// Whether it is to a Cluster.
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Link::Cluster(_))
    }
}

async fn asked<T: FromRedisValue>(mut connection: impl ConnectionLike, command: &Cmd) -> RedisResult<T> {
    command.query_async(&mut connection).await
}

impl Address {
    async fn server(&self, told: &Told) -> RedisResult<Link> {
        let Some((host, port)) = self.url.servers.first() else { return Err(no_server()) };
        let info = self.place(host, *port).into_connection_info()?.set_redis_settings(self.login());
        let client = match self.certificates() {
            Some(certificates) => Client::build_with_tls(info, certificates)?,
            None => Client::open(info)?,
        };
        client.get_multiplexed_async_connection_with_config(&self.config(told)).await.map(Link::Server)
    }

    async fn cluster(&self, told: &Told) -> RedisResult<Link> {
        let places = self.url.servers.iter().map(|(host, port)| self.place(host, *port));
        let told = std::sync::Arc::clone(told);
        let mut builder = ClusterClientBuilder::new(places)
            .use_protocol(ProtocolVersion::RESP3)
            .connection_timeout(CONNECT_ONE_MAX)
            .response_timeout(self.patience)
            // It would also repeat what was sent and not answered, which may have been done: see [`was_not_run`].
            .retries(0)
            .push_sender(move |info| {
                told(info);
                Ok::<_, ::redis::aio::SendError>(())
            });
        if let Some(user) = &self.url.user {
            builder = builder.username(user);
        }
        if let Some(password) = self.password() {
            builder = builder.password(password);
        }
        if self.url.tls {
            builder = builder.tls(TlsMode::Secure);
        }
        if let Some(certificates) = self.certificates() {
            builder = builder.certs(certificates);
        }
        builder.build()?.get_async_connection().await.map(Link::Cluster)
    }

    /// The Sentinels are asked each time: the master may be another one than before.
    async fn master(&self, name: &str, told: &Told) -> RedisResult<Link> {
        match self.master_by_login(name, told, false).await {
            // They may ask for a password as the servers do, or for none.
            Err(error) if error.code() == Some("NOAUTH") || self.is_unknown_master(&error) => {
                self.master_by_login(name, told, true).await
            }
            other => other,
        }
    }

    /// A Sentinel that wants a password first tells the client nothing, which then knows no master.
    fn is_unknown_master(&self, error: &RedisError) -> bool {
        self.url.password.is_some() && error.kind() == ErrorKind::MasterNameNotFoundBySentinel
    }

    async fn master_by_login(&self, name: &str, told: &Told, is_known: bool) -> RedisResult<Link> {
        let places = self.url.servers.iter().map(|(host, port)| self.place(host, *port));
        let mut builder = SentinelClientBuilder::new(places, name, SentinelServerType::Master)?
            .set_client_to_redis_protocol(ProtocolVersion::RESP3)
            .set_client_to_redis_db(i64::from(self.url.database));
        if let Some(user) = &self.url.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = self.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if is_known {
            if let Some(user) = &self.url.user {
                builder = builder.set_client_to_sentinel_username(user);
            }
            if let Some(password) = self.password() {
                builder = builder.set_client_to_sentinel_password(password);
            }
        }
        if self.url.tls {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        }
        if let Some(certificates) = self.certificates() {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates);
        }
        builder.build()?.get_async_connection_with_config(&self.config(told)).await.map(Link::Server)
    }

    fn place(&self, host: &str, port: u16) -> ConnectionAddr {
        if self.url.tls {
            ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host.to_owned(), port)
        }
    }

    fn login(&self) -> RedisConnectionInfo {
        let mut login =
            RedisConnectionInfo::default().set_db(i64::from(self.url.database)).set_protocol(ProtocolVersion::RESP3);
        if let Some(user) = &self.url.user {
            login = login.set_username(user);
        }
        if let Some(password) = self.password() {
            login = login.set_password(password);
        }
        login
    }

    fn password(&self) -> Option<&str> {
        self.url.password.as_ref().map(Secret::expose)
    }

    fn config(&self, told: &Told) -> AsyncConnectionConfig {
        let told = std::sync::Arc::clone(told);
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_ONE_MAX))
            .set_response_timeout(Some(self.patience))
            .set_push_sender(move |info| {
                told(info);
                Ok::<_, ::redis::aio::SendError>(())
            })
    }

    fn certificates(&self) -> Option<TlsCertificates> {
        let roots = self.roots.clone()?;
        Some(TlsCertificates { client_tls: None, root_cert: Some(roots) })
    }
}

fn no_server() -> RedisError {
    RedisError::from((ErrorKind::InvalidClientConfig, "no server is named"))
}

/// Whether a Cluster has refused a command before it ran, or was not sent it, so that it may be sent again. An answer that was lost is
/// none of these: a script would run twice. Nor is `ASK` followed: while a slot moves, the keys of a script are here and there,
/// and where it does not find them it would begin them anew.
fn was_not_run(error: &RedisError) -> bool {
    use ServerErrorKind::{Moved, ReadOnly, TryAgain};
    matches!(error.kind(), ErrorKind::Server(Moved | ReadOnly | TryAgain) | ErrorKind::ClusterConnectionNotFound)
        && !is_of_a_script(error)
}

/// Whether a script ended with it, in its midst: Redis says where in the script it was.
pub(crate) fn is_of_a_script(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("on @user_script"))
}
