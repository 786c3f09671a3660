//! What a broker is told at start. Invariant: a `Config` that exists is valid: unknown keys, bad values and relations
//! between limits are refused before a socket opens. Never changes while the broker runs. `keys.rs` lists the settings,
//! `layers.rs` where they come from, `guide.rs` the names of the deployment guide, `check.rs` the relations.

mod check;
mod connection;
mod duration;
mod guide;
mod keys;
mod layers;
mod quotas;
mod redis;
mod resolve;
mod secret;
mod test_clock;
mod value;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::capture::Room;
use crate::catalog::model::{Guarantee, Secret};

pub use connection::PostgresUrl;
pub use duration::{format_duration, parse_duration};
pub use keys::{KEYS, Key};
pub use quotas::{PluginQuota, longest as longest_prefix};
pub use redis::{RedisKind, RedisUrl};
pub use secret::SecretError;
pub use test_clock::follow_test_clock;

/// Where a development broker keeps everything when it is not told, under the current directory.
pub const DEVELOPMENT_DATA_DIR: &str = "sluice-data";

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config`: the file to read instead of `sluice.toml`.
    pub config: Option<PathBuf>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--listen`.
    pub listen: Option<String>,
    /// `--plugins-dir`.
    pub plugins_dir: Option<PathBuf>,
    /// `--profile`.
    pub profile: Option<Profile>,
}

/// A configuration, and how it came about.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// What the operator should hear, once logs are set up.
    pub warnings: Vec<String>,
    /// Where each setting that is not a default was written.
    pub origins: BTreeMap<&'static str, String>,
}

/// All that is wrong with a configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration is refused:{}", .faults.iter().map(|fault| format!("\n  - {fault}")).collect::<String>())]
pub struct ConfigError {
    /// One sentence each.
    pub faults: Vec<String>,
}

impl Config {
    /// Reads the settings of this process: file, environment, flags.
    ///
    /// # Errors
    /// All faults at once.
    pub fn load(flags: &Flags) -> Result<Loaded, ConfigError> {
        Config::load_from(flags, &environment(), Path::new(""))
    }

    /// Where a broker with the settings of this process listens, seen from this machine, whatever else is wrong with them.
    #[must_use]
    pub fn own_url(flags: &Flags) -> String {
        let merged = layers::gather(flags, &environment(), Path::new("")).merged;
        let listen = merged.extract_inner::<String>("listen").ok();
        let listen = listen.and_then(|text| guide::listen_address(&text).ok()).filter(|address| address.port() != 0);
        let mut address = listen.unwrap_or_else(|| ([127, 0, 0, 1], 5000).into());
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        format!("http://{address}")
    }

    /// Reads the settings from these sources; `directory` stands for the current one.
    ///
    /// # Errors
    /// All faults at once.
    pub fn load_from(flags: &Flags, env: &[(String, String)], directory: &Path) -> Result<Loaded, ConfigError> {
        let layers::Layers { merged, mut warnings, mut faults } = layers::gather(flags, env, directory);
        let resolved = resolve::resolve(&merged, &host());
        let config = match resolved {
            Ok(config) if faults.is_empty() => config,
            Ok(_) => return Err(ConfigError { faults }),
            Err(more) => {
                faults.extend(more);
                return Err(ConfigError { faults });
            }
        };
        warnings.extend(check::warnings(&config));
        if config.storage.is_none() && merged.find_value("postgres.url").is_ok() {
            warnings.push("storage is embedded: the database that postgres.url names is not used".to_owned());
        }
        let origins =
            KEYS.iter().filter_map(|key| Some((key.path, merged.find_metadata(key.path)?.name.to_string()))).collect();
        Ok(Loaded { config, warnings, origins })
    }
}

/// A name or value that is not UTF-8 can't be one of ours: every setting is text.
fn environment() -> Vec<(String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

fn host() -> resolve::Host {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    resolve::Host {
        name: name
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "sluice".to_owned()),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(256),
    }
}

/// How safe the defaults are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// On a laptop: a signing secret is made at first start, webhooks to loopback by plain HTTP are allowed.
    Development,
    /// Everything must be said.
    Production,
}

/// All settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// How safe the defaults are.
    pub profile: Profile,
    /// Everything that is kept.
    pub data_dir: PathBuf,
    /// The HTTP API.
    pub listen: SocketAddr,
    /// This broker's name in `/brokers`; by default the host's.
    pub node_id: String,
    /// The database that messages and everything else are kept in; none: files in the data directory.
    pub storage: Option<Postgres>,
    /// What helps the brokers of one database; none: they do without.
    pub redis: Option<Redis>,
    /// Topics and messages.
    pub messaging: Messaging,
    /// Tokens.
    pub jwt: Jwt,
    /// Webhooks.
    pub push: Push,
    /// Plugins.
    pub plugins: Plugins,
    /// Schemas.
    pub schemas: Schemas,
    /// Requests per minute and token subject; off unless set.
    pub rate_limiting: RateLimiting,
    /// What a request may cost.
    pub limits: Limits,
    /// Logs, traces, metrics.
    pub telemetry: Telemetry,
    /// A file that holds how many milliseconds the broker's clock runs ahead; only with the development profile, for tests.
    pub test_clock_file: Option<PathBuf>,
}

/// Connections of a broker for messages.
const POSTGRES_CONNECTIONS: u32 = 16;

/// The database of a fleet.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// Where it is.
    pub url: PostgresUrl,
    /// Connections for messages at most (16); the catalog has some of its own.
    pub connections_max: u32,
}

/// The Redis of a fleet.
#[derive(Debug, Clone)]
pub struct Redis {
    /// Where it is.
    pub url: RedisUrl,
    /// PEM of the authorities that its certificate may be of, instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// Defaults for topics.
#[derive(Debug, Clone)]
pub struct Messaging {
    /// Another port at the address of `listen`, for the same API (none).
    pub broker_port: Option<u16>,
    /// `deliveryGuarantee` of a topic that does not say (`AtLeastOnce`).
    pub default_delivery_guarantee: Guarantee,
    /// `retentionPeriod` of a topic that does not say (`P7D`).
    pub default_retention_period: Duration,
    /// `maxMessageSize` of a topic that does not say, and its upper bound: bytes (1 MiB).
    pub max_message_size: u64,
    /// How long dead letters are kept (`P30D`).
    pub dead_letter_retention: Duration,
}

/// Tokens.
#[derive(Debug, Clone)]
pub struct Jwt {
    /// HS256 key. In development it is made at first start: `DATA_DIR/jwt.secret`, mode 0600.
    pub secret: Option<Secret>,
    /// Demanded in `iss` when set, and written into tokens.
    pub issuer: Option<String>,
    /// Demanded in `aud` when set, and written into tokens.
    pub audience: Option<String>,
    /// Life of a token that does not say (60 min).
    pub expiration: Duration,
}

/// Webhooks.
#[derive(Debug, Clone)]
pub struct Push {
    /// Whether `http:` endpoints are accepted.
    pub allow_http: bool,
    /// CIDR networks that may be reached though they are private, loopback or link-local.
    pub allow_networks: Vec<String>,
    /// Requests under way to one endpoint at most.
    pub concurrency_max: u32,
    /// Requests under way to all endpoints at most (1024).
    pub requests_max: usize,
}

/// Plugins.
#[derive(Debug, Clone)]
pub struct Plugins {
    /// Watched for `name.wasm` and `name@1.2.0.wasm`; none: not watched.
    pub dir: Option<PathBuf>,
    /// Threads that run plugins; by default one per core.
    pub workers: usize,
    /// Instances of one stage at most.
    pub instances_per_stage_max: usize,
    /// An instance that was not used for this long is dropped.
    pub idle_timeout: Duration,
    /// Batches that wait for a worker at most, per stage; beyond it publishes get 429.
    pub queue_batches_max: usize,
    /// Bytes of a component at most (50 MiB).
    pub size_max: u64,
    /// Versions of one plugin at most (1000).
    pub versions_max: usize,
    /// What plugins and topics may have together, by the prefix of their names (none).
    pub quotas: Vec<PluginQuota>,
    /// Whose components are taken in, and what their configs may name.
    pub trust: PluginTrust,
}

/// Whose components are taken in, and what their configs may name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PluginTrust {
    /// Ed25519 public keys whose signatures count: base64 of 32 bytes, or paths of PEM files.
    pub trusted_keys: Vec<String>,
    /// Whether a component is refused without a signature of one of them.
    pub require_signature: bool,
    /// A directory with a file for each secret that configs may name; none: they name none.
    pub secrets_dir: Option<PathBuf>,
}

/// Schemas.
#[derive(Debug, Clone)]
pub struct Schemas {
    /// Whether a topic may only name a schema that is registered.
    pub require_registered: bool,
    /// Versions of all schemas at most (10 000).
    pub versions_max: usize,
}

/// Requests per minute and token subject; off unless set.
#[derive(Debug, Clone, Copy, Default)]
pub struct RateLimiting {
    /// Publish calls.
    pub publish: Option<u32>,
    /// Consume calls.
    pub consume: Option<u32>,
    /// Calls that change topics.
    pub topics: Option<u32>,
}

/// What a request may cost.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request's body (16 MiB; a batch of 10 000 must fit).
    pub body_bytes_max: usize,
    /// Bytes of a request's head (32 KiB).
    pub head_bytes_max: usize,
    /// How long a client may take to send its request (30 s).
    pub request_timeout: Duration,
    /// Connections at once (10 000).
    pub connections_max: usize,
    /// Requests under way at once (10 000).
    pub requests_max: usize,
    /// Event streams at once (10 000).
    pub streams_max: usize,
    /// Topics (10 000).
    pub topics_max: usize,
    /// Subscriptions of all topics (10 000).
    pub subscriptions_max: usize,
    /// What all topics keep of what arrives (10 GiB, and 1 GiB of the disk stays free).
    pub captured: Room,
    /// How long a stop waits for what is in flight (25 s).
    pub shutdown_timeout: Duration,
}

/// Logs, traces, metrics.
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// OTLP over HTTP, e.g. `http://localhost:4318`; off unless set.
    pub otlp_endpoint: Option<String>,
    /// Share of traces kept when nobody upstream decided: 0 to 1 (1).
    pub sampling_rate: f64,
    /// One JSON object a line instead of text.
    pub log_json: bool,
    /// `info`, or a directive list such as `sluice=debug,warn`.
    pub log_level: String,
    /// Whether `/metrics` needs no token (yes).
    pub public_metrics: bool,
    /// Whether `/swagger` and `/openapi.json` need no token (yes).
    pub public_docs: bool,
}

#[cfg(test)]
pub(crate) mod tests;
