//! Every setting there is: its name, what it takes, what it means. Invariant: a setting that is not in this table does
//! not exist, and each one in it reaches the `Config` (a test turns every one of them). Never reads anything.

use super::duration::format_duration;
use super::value::Kind;
use super::{Config, POSTGRES_CONNECTIONS, Profile};

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// Its path in `sluice.toml`; upper-cased, with `__` for dots and behind `SLUICE__`, its environment variable.
    pub path: &'static str,
    /// What it takes.
    pub(super) kind: Kind,
    /// What it means, with unit and default.
    pub doc: &'static str,
    /// How it stands in a configuration; secrets are not shown.
    pub show: fn(&Config) -> String,
}

const GIB: u64 = 1 << 30;
/// A payload is held in memory several times over on its way; beyond this a broker is the wrong tool.
pub(super) const MESSAGE_BYTES_MAX: u64 = 64 << 20;

fn unset<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "(unset)".to_owned(), T::to_string)
}

/// All settings, in the order of the `Config`.
pub static KEYS: &[Key] = &[
    Key {
        path: "profile",
        kind: Kind::Choice(&["development", "production"]),
        doc: "How safe the defaults are: development, or production where a secret and a data directory must be given",
        show: |c| match c.profile {
            Profile::Development => "development".to_owned(),
            Profile::Production => "production".to_owned(),
        },
    },
    Key {
        path: "data_dir",
        kind: Kind::Text,
        doc: "Directory of everything that is kept (development: sluice-data)",
        show: |c| c.data_dir.display().to_string(),
    },
    Key {
        path: "listen",
        kind: Kind::Text,
        doc: "Address and port of the HTTP API (development: 127.0.0.1:5000, production: 0.0.0.0:5000)",
        show: |c| c.listen.to_string(),
    },
    Key {
        path: "node_id",
        kind: Kind::Text,
        doc: "This broker's name in /brokers (the host's name)",
        show: |c| c.node_id.clone(),
    },
    Key {
        path: "storage",
        kind: Kind::Choice(&["embedded", "postgres"]),
        doc: "Where everything is kept: embedded in data_dir, or postgres, for one broker or a fleet of them (postgres where postgres.url is set, else embedded)",
        show: |c| if c.storage.is_some() { "postgres".to_owned() } else { "embedded".to_owned() },
    },
    Key {
        path: "postgres.url",
        kind: Kind::Secret,
        doc: "The fleet's database: postgres://user:password@host:5432/database, or Host=...;Database=...;Username=...;Password=... (unset)",
        show: |c| unset(c.storage.as_ref().map(|storage| &storage.url)),
    },
    Key {
        path: "postgres.connections_max",
        kind: Kind::Integer(2, 1000),
        doc: "Connections of this broker for messages at most; the catalog has 4 more (16)",
        show: |c| c.storage.as_ref().map_or(POSTGRES_CONNECTIONS, |storage| storage.connections_max).to_string(),
    },
    Key {
        path: "redis.url",
        kind: Kind::Secret,
        doc: "A Redis 7: it keeps the topics that are to be in it (storage redis), and helps a fleet, which does without it as well: redis://user:password@host:6379/0, rediss:// with TLS, redis-cluster://a,b, redis-sentinel://a,b/master, or host:6379,password=...,ssl=true (unset)",
        show: |c| unset(c.redis.as_ref().map(|redis| &redis.url)),
    },
    Key {
        path: "redis.ca_file",
        kind: Kind::Text,
        doc: "PEM file of the authorities that its certificate may be of (those that the system trusts)",
        show: |c| {
            let file = c.redis.as_ref().and_then(|redis| redis.ca_file.as_ref());
            unset(file.map(|file| file.display().to_string()).as_ref())
        },
    },
    Key {
        path: "messaging.broker_port",
        kind: Kind::Integer(1, 65_535),
        doc: "Another port at the address of listen, for the same API over HTTP/1.1 and HTTP/2 without TLS: the guide's 5050, inside of a cluster (unset)",
        show: |c| unset(c.messaging.broker_port.as_ref()),
    },
    Key {
        path: "messaging.default_delivery_guarantee",
        kind: Kind::Choice(&["AtMostOnce", "AtLeastOnce", "ExactlyOnce"]),
        doc: "deliveryGuarantee of a topic that does not say (AtLeastOnce)",
        show: |c| format!("{:?}", c.messaging.default_delivery_guarantee),
    },
    Key {
        path: "messaging.default_retention_period",
        kind: Kind::Duration,
        doc: "retentionPeriod of a topic that does not say (P7D)",
        show: |c| format_duration(c.messaging.default_retention_period),
    },
    Key {
        path: "messaging.max_message_size",
        kind: Kind::Integer(1, MESSAGE_BYTES_MAX),
        doc: "Bytes of a payload at most, and maxMessageSize of a topic that does not say (1048576)",
        show: |c| c.messaging.max_message_size.to_string(),
    },
    Key {
        path: "messaging.dead_letter_retention",
        kind: Kind::Duration,
        doc: "How long dead letters are kept (P30D)",
        show: |c| format_duration(c.messaging.dead_letter_retention),
    },
    Key {
        path: "jwt.secret",
        kind: Kind::Secret,
        doc: "HS256 key of tokens, at least 32 bytes (development: made at first start in DATA_DIR/jwt.secret)",
        show: |c| if c.jwt.secret.is_some() { "[redacted]".to_owned() } else { "(unset)".to_owned() },
    },
    Key {
        path: "jwt.issuer",
        kind: Kind::Text,
        doc: "Demanded in a token's iss when set, and written into tokens (unset)",
        show: |c| unset(c.jwt.issuer.as_ref()),
    },
    Key {
        path: "jwt.audience",
        kind: Kind::Text,
        doc: "Demanded in a token's aud when set, and written into tokens (unset)",
        show: |c| unset(c.jwt.audience.as_ref()),
    },
    Key {
        path: "jwt.expiration",
        kind: Kind::Duration,
        doc: "Life of a token that does not say (PT1H)",
        show: |c| format_duration(c.jwt.expiration),
    },
    Key {
        path: "push.allow_http",
        kind: Kind::Flag,
        doc: "Whether webhooks to http: URLs are accepted (development: true, production: false)",
        show: |c| c.push.allow_http.to_string(),
    },
    Key {
        path: "push.allow_networks",
        kind: Kind::List,
        doc: "CIDR networks that webhooks may reach though they are private, loopback or link-local (development: loopback, production: none)",
        show: |c| format!("[{}]", c.push.allow_networks.join(", ")),
    },
    Key {
        path: "push.concurrency_max",
        kind: Kind::Integer(1, 1024),
        doc: "Requests under way to one endpoint at most (32)",
        show: |c| c.push.concurrency_max.to_string(),
    },
    Key {
        path: "push.requests_max",
        kind: Kind::Integer(1, 100_000),
        doc: "Requests under way to all endpoints at most; beyond it endpoints wait, those with none first (1024)",
        show: |c| c.push.requests_max.to_string(),
    },
    Key {
        path: "plugins.dir",
        kind: Kind::Text,
        doc: "Directory that is watched for name.wasm and name@1.2.0.wasm (unset: none)",
        show: |c| unset(c.plugins.dir.as_ref().map(|dir| dir.display().to_string()).as_ref()),
    },
    Key {
        path: "plugins.workers",
        kind: Kind::Integer(1, 256),
        doc: "Threads that run plugins; there is one more, so that no topic holds all, and some for slow topics (one per core)",
        show: |c| c.plugins.workers.to_string(),
    },
    Key {
        path: "plugins.instances_per_stage_max",
        kind: Kind::Integer(1, 1024),
        doc: "Instances of one stage at most (16)",
        show: |c| c.plugins.instances_per_stage_max.to_string(),
    },
    Key {
        path: "plugins.idle_timeout",
        kind: Kind::Duration,
        doc: "An instance that was not used for this long is dropped (PT1M)",
        show: |c| format_duration(c.plugins.idle_timeout),
    },
    Key {
        path: "plugins.queue_batches_max",
        kind: Kind::Integer(1, 65_536),
        doc: "Batches per stage that wait for a worker at most; beyond it publishes get 429 (256)",
        show: |c| c.plugins.queue_batches_max.to_string(),
    },
    Key {
        path: "plugins.size_max",
        kind: Kind::Integer(1024, GIB),
        doc: "Bytes of a component at most (52428800)",
        show: |c| c.plugins.size_max.to_string(),
    },
    Key {
        path: "plugins.versions_max",
        kind: Kind::Integer(1, 100_000),
        doc: "Versions of one plugin that are kept at most; beyond it new ones are refused until some are deleted (1000)",
        show: |c| c.plugins.versions_max.to_string(),
    },
    Key {
        path: "plugins.quotas",
        kind: Kind::Quotas,
        doc: "What plugins and topics may have together by the prefix of their names, e.g. \"orders. plugins=20 bytes=67108864 share=0.25\" (none)",
        show: |c| format!("[{}]", c.plugins.quotas.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    },
    Key {
        path: "plugins.trusted_keys",
        kind: Kind::List,
        doc: "Ed25519 public keys whose signatures of components count: base64 of the 32 bytes, or paths of PEM files (none)",
        show: |c| format!("[{}]", c.plugins.trust.trusted_keys.join(", ")),
    },
    Key {
        path: "plugins.require_signature",
        kind: Kind::Flag,
        doc: "Whether uploads and files are refused without a signature of one of these keys (false)",
        show: |c| c.plugins.trust.require_signature.to_string(),
    },
    Key {
        path: "plugins.secrets_dir",
        kind: Kind::Text,
        doc: "Directory with a file for each secret that a stage's config names as {\"$secret\": \"name\"} (unset: none)",
        show: |c| unset(c.plugins.trust.secrets_dir.as_ref().map(|dir| dir.display().to_string()).as_ref()),
    },
    Key {
        path: "schemas.versions_max",
        kind: Kind::Integer(1, 1_000_000),
        doc: "Versions of all schemas at most; beyond it registrations get 429 (10000)",
        show: |c| c.schemas.versions_max.to_string(),
    },
    Key {
        path: "schemas.require_registered",
        kind: Kind::Flag,
        doc: "Whether a topic may only name a schema that is registered (false)",
        show: |c| c.schemas.require_registered.to_string(),
    },
    Key {
        path: "rate_limiting.publish",
        kind: Kind::Integer(1, 100_000_000),
        doc: "Publish calls per minute and token subject (unset: unlimited)",
        show: |c| unset(c.rate_limiting.publish.as_ref()),
    },
    Key {
        path: "rate_limiting.consume",
        kind: Kind::Integer(1, 100_000_000),
        doc: "Consume calls per minute and token subject (unset: unlimited)",
        show: |c| unset(c.rate_limiting.consume.as_ref()),
    },
    Key {
        path: "rate_limiting.topics",
        kind: Kind::Integer(1, 100_000_000),
        doc: "Calls that change topics per minute and token subject (unset: unlimited)",
        show: |c| unset(c.rate_limiting.topics.as_ref()),
    },
    Key {
        path: "limits.body_bytes_max",
        kind: Kind::Integer(64 << 10, GIB),
        doc: "Bytes of a request's body at most (16 MiB, or what the longest message needs)",
        show: |c| c.limits.body_bytes_max.to_string(),
    },
    Key {
        path: "limits.head_bytes_max",
        kind: Kind::Integer(16 << 10, 1 << 20),
        doc: "Bytes of a request's head at most (32768)",
        show: |c| c.limits.head_bytes_max.to_string(),
    },
    Key {
        path: "limits.request_timeout",
        kind: Kind::Duration,
        doc: "How long a client may take to send its request (PT30S)",
        show: |c| format_duration(c.limits.request_timeout),
    },
    Key {
        path: "limits.connections_max",
        kind: Kind::Integer(1, 1_000_000),
        doc: "Connections at once at most (10000)",
        show: |c| c.limits.connections_max.to_string(),
    },
    Key {
        path: "limits.requests_max",
        kind: Kind::Integer(1, 1_000_000),
        doc: "Requests under way at most, long polls included; beyond it they get 429 (10000)",
        show: |c| c.limits.requests_max.to_string(),
    },
    Key {
        path: "limits.streams_max",
        kind: Kind::Integer(1, 1_000_000),
        doc: "Event streams open at most; beyond it they get 429 (10000)",
        show: |c| c.limits.streams_max.to_string(),
    },
    Key {
        path: "limits.topics_max",
        kind: Kind::Integer(1, 1_000_000),
        doc: "Topics at most, not counting those of dead letters; beyond it new ones get 429 (10000)",
        show: |c| c.limits.topics_max.to_string(),
    },
    Key {
        path: "limits.subscriptions_max",
        kind: Kind::Integer(1, 1_000_000),
        doc: "Subscriptions of all topics at most; beyond it new ones get 429 (10000)",
        show: |c| c.limits.subscriptions_max.to_string(),
    },
    Key {
        path: "limits.captured_bytes_max",
        kind: Kind::Integer(64 << 10, GIB << 20),
        doc: "Bytes that all topics with captureInput keep together of what arrives; beyond it the oldest of a topic goes, or what arrives is left out (10737418240)",
        show: |c| c.limits.captured.bytes_max.to_string(),
    },
    Key {
        path: "limits.captured_free_bytes_min",
        kind: Kind::Integer(0, GIB << 20),
        doc: "Bytes of the data directory's disk that stay free of that: with less, nothing more is kept for captureInput (1073741824)",
        show: |c| c.limits.captured.free_bytes_min.to_string(),
    },
    Key {
        path: "limits.shutdown_timeout",
        kind: Kind::Duration,
        doc: "How long a stop waits for what is in flight (PT25S)",
        show: |c| format_duration(c.limits.shutdown_timeout),
    },
    Key {
        path: "telemetry.otlp_endpoint",
        kind: Kind::Text,
        doc: "Collector of traces by OTLP over HTTP, e.g. http://localhost:4318 (unset: off)",
        show: |c| unset(c.telemetry.otlp_endpoint.as_ref()),
    },
    Key {
        path: "telemetry.sampling_rate",
        kind: Kind::Share,
        doc: "Share of traces kept when nobody upstream decided, 0 to 1 (1)",
        show: |c| c.telemetry.sampling_rate.to_string(),
    },
    Key {
        path: "telemetry.log_json",
        kind: Kind::Flag,
        doc: "One JSON object a line on stderr instead of text (development: false, production: true)",
        show: |c| c.telemetry.log_json.to_string(),
    },
    Key {
        path: "telemetry.log_level",
        kind: Kind::Text,
        doc: "error, warn, info, debug, trace, or a list such as sluice=debug,warn (info)",
        show: |c| c.telemetry.log_level.clone(),
    },
    Key {
        path: "telemetry.public_metrics",
        kind: Kind::Flag,
        doc: "Whether /metrics needs no token (true)",
        show: |c| c.telemetry.public_metrics.to_string(),
    },
    Key {
        path: "telemetry.public_docs",
        kind: Kind::Flag,
        doc: "Whether /swagger and /openapi.json need no token (true)",
        show: |c| c.telemetry.public_docs.to_string(),
    },
    Key {
        path: "test_clock_file",
        kind: Kind::Text,
        doc: "File with the milliseconds that the broker's clock runs ahead; for tests, never with the production profile (unset)",
        show: |c| unset(c.test_clock_file.as_ref().map(|file| file.display().to_string()).as_ref()),
    },
];

/// The setting at `path`.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The names in `known` that someone who wrote `given` may have meant, nearest first, two at most.
pub(super) fn near<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let given = given.to_ascii_lowercase();
    let leaf = |path: &str| path.rsplit(['.', ':']).next().unwrap_or_default().to_ascii_lowercase();
    let mut rated: Vec<(usize, &str)> = known
        .filter_map(|path| {
            let whole = edits(&given, &path.to_ascii_lowercase());
            // The right name in the wrong section is as near as one wrong letter.
            let distance = if leaf(&given) == leaf(path) { 1 } else { whole };
            (distance <= given.len() / 4 + 1).then_some((distance, path))
        })
        .collect();
    rated.sort();
    rated.into_iter().map(|(_, path)| path).take(2).collect()
}

/// Levenshtein's distance.
fn edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested() {
        let suggest = |given: &str| near(given, KEYS.iter().map(|key| key.path));
        assert_eq!(suggest("messaging.max_mesage_size"), ["messaging.max_message_size"]);
        assert_eq!(suggest("limits.max_message_size"), ["messaging.max_message_size"]);
        assert_eq!(suggest("listn"), ["listen"]);
        assert!(suggest("warp_drive").is_empty());
    }

    #[test]
    fn paths_are_unique_and_explained() {
        for key in KEYS {
            assert_eq!(KEYS.iter().filter(|other| other.path == key.path).count(), 1, "{}", key.path);
            assert!(key.doc.len() > 10, "{}", key.path);
        }
    }
}
