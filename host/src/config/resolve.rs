//! From what was said to a valid [`Config`]: defaults by profile, and the relations between settings. Invariant: every
//! fault is found at once. Never touches the file system or the network.

use std::path::PathBuf;
use std::time::Duration;

use figment::Figment;
use serde::de::DeserializeOwned;

use super::duration::parse_duration;
use super::keys::find;
use super::{
    Config, DEVELOPMENT_DATA_DIR, Jwt, Limits, Messaging, POSTGRES_CONNECTIONS, PluginTrust, Plugins, Postgres,
    PostgresUrl, Profile, Push, RateLimiting, Redis, RedisUrl, Schemas, Telemetry, check, guide,
};
use crate::capture::Room;
use crate::catalog::model::{Guarantee, Secret};

const DAY: Duration = Duration::from_secs(86_400);
const MIB: u64 = 1 << 20;

/// What the process knows of its host.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) cores: usize,
}

/// Builds the configuration.
pub(super) fn resolve(merged: &Figment, host: &Host) -> Result<Config, Vec<String>> {
    let values = Values { merged };
    let mut faults = Vec::new();
    let profile = match values.text("profile") {
        Some(word) if word.eq_ignore_ascii_case("production") => Profile::Production,
        _ => Profile::Development,
    };
    let development = profile == Profile::Development;
    let default_listen = if development { "127.0.0.1:5000" } else { "0.0.0.0:5000" };
    let listen = values.text("listen").unwrap_or_else(|| default_listen.to_owned());
    let listen = guide::listen_address(&listen).unwrap_or_else(|wrong| {
        faults.push(format!("listen {wrong}"));
        ([127, 0, 0, 1], 0).into()
    });
    if !development && values.text("data_dir").is_none() {
        faults.push(
            "data_dir is not set: with the production profile say where messages are kept (--data-dir DIR)".to_owned(),
        );
    }
    let messaging = messaging(&values);
    let config = Config {
        profile,
        data_dir: values.path("data_dir").unwrap_or_else(|| DEVELOPMENT_DATA_DIR.into()),
        listen,
        node_id: values.text("node_id").unwrap_or_else(|| host.name.clone()),
        jwt: Jwt {
            secret: values.text("jwt.secret").map(Secret::new),
            issuer: values.text("jwt.issuer"),
            audience: values.text("jwt.audience"),
            expiration: values.duration("jwt.expiration", Duration::from_secs(3600)),
        },
        push: push(&values, development),
        plugins: plugins(&values, host.cores),
        schemas: Schemas {
            require_registered: values.get("schemas.require_registered").unwrap_or(false),
            versions_max: values.get("schemas.versions_max").unwrap_or(10_000),
        },
        rate_limiting: RateLimiting {
            publish: values.get("rate_limiting.publish"),
            consume: values.get("rate_limiting.consume"),
            topics: values.get("rate_limiting.topics"),
        },
        limits: limits(&values, messaging.max_message_size),
        messaging,
        storage: storage(&values, &mut faults),
        redis: redis(&values, &mut faults),
        telemetry: telemetry(&values, development),
        test_clock_file: values.path("test_clock_file"),
    };
    check::check(&config, &mut faults);
    if faults.is_empty() { Ok(config) } else { Err(faults) }
}

/// Reads settings that the layers have checked.
struct Values<'a> {
    merged: &'a Figment,
}

impl Values<'_> {
    fn get<T: DeserializeOwned>(&self, path: &str) -> Option<T> {
        debug_assert!(find(path).is_some(), "{path} is not in the table of settings");
        self.merged.extract_inner(path).ok()
    }

    fn text(&self, path: &str) -> Option<String> {
        self.get(path)
    }

    fn path(&self, path: &str) -> Option<PathBuf> {
        self.text(path).map(PathBuf::from)
    }

    fn duration(&self, path: &str, default: Duration) -> Duration {
        self.text(path).and_then(|text| parse_duration(&text).ok()).unwrap_or(default)
    }
}

fn storage(values: &Values<'_>, faults: &mut Vec<String>) -> Option<Postgres> {
    let (word, url) = (values.text("storage"), values.text("postgres.url"));
    let wants = |storage: &str| word.as_ref().is_some_and(|word| word.eq_ignore_ascii_case(storage));
    let Some(url) = url else {
        if wants("postgres") {
            faults.push("storage is postgres, but postgres.url does not say where that is".to_owned());
        }
        return None;
    };
    // So that one word switches, whatever else is set.
    if wants("embedded") {
        return None;
    }
    let url = url.parse::<PostgresUrl>().map_err(|wrong| faults.push(format!("postgres.url {wrong}"))).ok()?;
    let connections_max = values.get("postgres.connections_max").unwrap_or(POSTGRES_CONNECTIONS);
    Some(Postgres { url, connections_max })
}

fn redis(values: &Values<'_>, faults: &mut Vec<String>) -> Option<Redis> {
    let (url, ca_file) = (values.text("redis.url"), values.path("redis.ca_file"));
    let Some(url) = url else {
        if ca_file.is_some() {
            faults.push("redis.ca_file is set, but redis.url does not say where a Redis is".to_owned());
        }
        return None;
    };
    let url = url.parse::<RedisUrl>().map_err(|wrong| faults.push(format!("redis.url {wrong}"))).ok()?;
    if ca_file.is_some() && !url.tls {
        faults.push("redis.ca_file is set, but redis.url asks for no TLS: rediss://…, or ssl=true".to_owned());
    }
    Some(Redis { url, ca_file })
}

fn messaging(values: &Values<'_>) -> Messaging {
    let guarantee = values.text("messaging.default_delivery_guarantee").unwrap_or_default();
    Messaging {
        broker_port: values.get("messaging.broker_port"),
        default_delivery_guarantee: match guarantee.to_ascii_lowercase().as_str() {
            "atmostonce" => Guarantee::AtMostOnce,
            "exactlyonce" => Guarantee::ExactlyOnce,
            _ => Guarantee::AtLeastOnce,
        },
        default_retention_period: values.duration("messaging.default_retention_period", 7 * DAY),
        max_message_size: values.get("messaging.max_message_size").unwrap_or(MIB),
        dead_letter_retention: values.duration("messaging.dead_letter_retention", 30 * DAY),
    }
}

fn push(values: &Values<'_>, development: bool) -> Push {
    let loopback = || vec!["127.0.0.0/8".to_owned(), "::1/128".to_owned()];
    Push {
        allow_http: values.get("push.allow_http").unwrap_or(development),
        allow_networks: values
            .get("push.allow_networks")
            .unwrap_or_else(|| if development { loopback() } else { Vec::new() }),
        concurrency_max: values.get("push.concurrency_max").unwrap_or(32),
        requests_max: values.get("push.requests_max").unwrap_or(1024),
    }
}

fn plugins(values: &Values<'_>, cores: usize) -> Plugins {
    Plugins {
        dir: values.path("plugins.dir"),
        workers: values.get("plugins.workers").unwrap_or(cores),
        instances_per_stage_max: values.get("plugins.instances_per_stage_max").unwrap_or(16),
        idle_timeout: values.duration("plugins.idle_timeout", Duration::from_secs(60)),
        queue_batches_max: values.get("plugins.queue_batches_max").unwrap_or(256),
        size_max: values.get("plugins.size_max").unwrap_or(50 * MIB),
        versions_max: values.get("plugins.versions_max").unwrap_or(1000),
        quotas: values.get("plugins.quotas").unwrap_or_default(),
        trust: PluginTrust {
            trusted_keys: values.get("plugins.trusted_keys").unwrap_or_default(),
            require_signature: values.get("plugins.require_signature").unwrap_or(false),
            secrets_dir: values.path("plugins.secrets_dir"),
        },
    }
}

fn limits(values: &Values<'_>, max_message_size: u64) -> Limits {
    // Who raises the size of messages alone means that they can be sent, too.
    let body = (16 * MIB).max(check::body_bytes_for(max_message_size));
    Limits {
        body_bytes_max: values.get("limits.body_bytes_max").unwrap_or(usize::try_from(body).unwrap_or(usize::MAX)),
        head_bytes_max: values.get("limits.head_bytes_max").unwrap_or(32 << 10),
        request_timeout: values.duration("limits.request_timeout", Duration::from_secs(30)),
        connections_max: values.get("limits.connections_max").unwrap_or(10_000),
        requests_max: values.get("limits.requests_max").unwrap_or(10_000),
        streams_max: values.get("limits.streams_max").unwrap_or(10_000),
        topics_max: values.get("limits.topics_max").unwrap_or(10_000),
        subscriptions_max: values.get("limits.subscriptions_max").unwrap_or(10_000),
        captured: Room {
            // As much as one topic may want.
            bytes_max: values.get("limits.captured_bytes_max").unwrap_or(10 << 30),
            // The store's journal may take 256 MiB before a checkpoint replaces it, its segments what it has.
            free_bytes_min: values.get("limits.captured_free_bytes_min").unwrap_or(1 << 30),
        },
        shutdown_timeout: values.duration("limits.shutdown_timeout", Duration::from_secs(25)),
    }
}

fn telemetry(values: &Values<'_>, development: bool) -> Telemetry {
    Telemetry {
        otlp_endpoint: values.text("telemetry.otlp_endpoint"),
        sampling_rate: values.get("telemetry.sampling_rate").unwrap_or(1.0),
        log_json: values.get("telemetry.log_json").unwrap_or(!development),
        log_level: values.text("telemetry.log_level").unwrap_or_else(|| "info".to_owned()),
        public_metrics: values.get("telemetry.public_metrics").unwrap_or(true),
        public_docs: values.get("telemetry.public_docs").unwrap_or(true),
    }
}
