//! A topic as clients write and read it. Invariant: settings that come out of here are valid under the configuration.
//! Never does I/O.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::extract::{Object, not_null, nullable};
use crate::api::problem::{Faults, NUL_REFUSED};
use crate::api::wire::{Iso, Time};
use crate::catalog::model::{
    CaptureInput, DEAD_LETTER_THRESHOLD, DeadLetterPayload, Guarantee, SchemaStatus, Storage, Topic, TopicKind,
    TopicSettings,
};
use crate::config::Config;
use crate::message::{DEAD_LETTER_SUFFIX, PARTITIONS_MAX, SYSTEM_PREFIX, TOPIC_NAME_BYTES_MAX, TopicName};
use crate::schemas::SCHEMA_ID_BYTES_MAX;

/// `dedupWindow` of a topic that does not say, from API.md.
const DEDUP_WINDOW_DEFAULT: Duration = Duration::from_secs(600);
/// Keys must fit into memory: a longer window is a database's task.
const DEDUP_WINDOW_MAX: Duration = Duration::from_secs(7 * 86_400);
/// `dedupMaxKeys` of a topic that does not say, and the most that one may have. About 200 MB.
const DEDUP_KEYS_MAX: u32 = 1_000_000;
/// Less would be gone before anyone could consume it.
const RETENTION_MIN: Duration = Duration::from_secs(1);
const DESCRIPTION_BYTES_MAX: usize = 4096;
const DEAD_LETTER_THRESHOLD_MAX: u64 = 1_000_000;
/// What arrives is not redacted yet: it is not to lie there for longer than it is of use.
const CAPTURE_TTL_DEFAULT: Duration = Duration::from_secs(86_400);
const CAPTURE_TTL_MIN: Duration = Duration::from_secs(1);
const CAPTURE_TTL_MAX: Duration = Duration::from_secs(7 * 86_400);
const CAPTURE_BYTES_DEFAULT: u64 = 64 << 20;
const CAPTURE_BYTES_MIN: u64 = 64 << 10;
const CAPTURE_BYTES_MAX: u64 = 10 << 30;

/// A topic to be made, or a change of one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TopicBody {
    /// Letters, digits, `.`, `_`, `-`; not ending in `.dlq`. Cannot change.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(required, pattern = "^[A-Za-z0-9._-]{1,255}$", example = "deployment.events", nullable = false)]
    name: Option<String>,
    /// For people.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    description: Option<String>,
    /// One consumer, or every subscription. Cannot change.
    #[serde(rename = "type", default, deserialize_with = "not_null")]
    #[schema(required, nullable = false)]
    kind: Option<TopicKind>,
    /// The schema that payloads are held against; it may be registered later.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    schema_id: Option<Option<String>>,
    /// By default as configured (`AtLeastOnce`).
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    delivery_guarantee: Option<Guarantee>,
    /// Messages are kept this long; by default as configured (`P7D`).
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    retention_period: Option<Iso>,
    /// And in at most so many bytes.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>, minimum = 1)]
    retention_bytes: Option<Option<u64>>,
    /// 1 to 64 (1). Cannot change.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(minimum = 1, maximum = 64, nullable = false)]
    partition_count: Option<u16>,
    /// Bytes of a payload at most; by default, and at most, as configured (1 MiB).
    #[serde(default, deserialize_with = "not_null")]
    #[schema(minimum = 1, nullable = false)]
    max_message_size: Option<u64>,
    /// How long idempotency keys are remembered (`PT10M`), at most `P7D`.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    dedup_window: Option<Iso>,
    /// How many idempotency keys are remembered at most, 1 to 1 000 000 (1 000 000); beyond it, publishes with a new key get 429.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(minimum = 1, maximum = 1_000_000, nullable = false)]
    dedup_max_keys: Option<u32>,
    /// What dead letters keep (`original`).
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    dead_letter_payload: Option<DeadLetterPayload>,
    /// Whether a message that expires before it is delivered becomes a dead letter (false); otherwise it is counted. Either is
    /// noticed when a consumer or a webhook looks for messages.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    dead_letter_expired: Option<bool>,
    /// How many dead letters on the list make `sluice.events` tell of it, 1 to 1 000 000 (100); `null`: never.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 1_000_000)]
    dead_letter_threshold: Option<Option<u64>>,
    /// Keep what arrives as it was before the topic's stages, for dry runs (not kept). Payloads are kept that no stage has redacted.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<CaptureInputBody>)]
    capture_input: Option<Option<Object<CaptureInputBody>>>,
    /// Where messages are kept: `default`, the broker's store, or `redis`, which is fast, bounded by its memory, and as durable as its
    /// server says. Cannot change.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    storage: Option<Storage>,
}

/// How what arrives is kept for dry runs.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CaptureInputBody {
    /// How long, `PT1S` to `P7D` (`P1D`).
    #[serde(default = "capture_ttl")]
    ttl: Iso,
    /// In how many bytes, of each broker's disk: 65536 to 10737418240 (67108864). What is oldest goes first.
    #[serde(default = "capture_bytes")]
    #[schema(minimum = 65_536, maximum = 10_737_418_240_u64)]
    max_bytes: u64,
}

fn capture_ttl() -> Iso {
    Iso(CAPTURE_TTL_DEFAULT)
}

fn capture_bytes() -> u64 {
    CAPTURE_BYTES_DEFAULT
}

impl From<CaptureInputBody> for CaptureInput {
    fn from(body: CaptureInputBody) -> CaptureInput {
        CaptureInput { ttl: body.ttl.0, bytes_max: body.max_bytes }
    }
}

impl TopicBody {
    pub(super) fn create(self, config: &Config, faults: &mut Faults) -> Option<(TopicName, TopicSettings)> {
        let name = faults.require("/name", self.name.clone());
        let name = name.and_then(|name| faults.keep("/name", topic_name(&name)));
        let kind = faults.require("/type", self.kind);
        let defaults = TopicSettings {
            description: String::new(),
            kind: kind.unwrap_or(TopicKind::Queue),
            schema_id: None,
            guarantee: config.messaging.default_delivery_guarantee,
            retention: config.messaging.default_retention_period,
            retention_bytes: None,
            partition_count: 1,
            max_message_size: config.messaging.max_message_size,
            dedup_window: DEDUP_WINDOW_DEFAULT,
            dedup_keys_max: DEDUP_KEYS_MAX,
            dead_letter_payload: DeadLetterPayload::Original,
            dead_letter_expired: false,
            dead_letter_threshold: Some(DEAD_LETTER_THRESHOLD),
            capture_input: None,
            storage: Storage::Default,
        };
        let settings = self.over(defaults, config, faults);
        kind?;
        Some((name?, settings))
    }

    /// What is left out stays; what cannot change is refused by the directory.
    pub(super) fn update(self, before: &Topic, config: &Config, faults: &mut Faults) -> Option<TopicSettings> {
        if self.name.as_deref().is_some_and(|name| name != before.name.as_str()) {
            faults.push("/name", "cannot change");
        }
        Some(self.over(before.settings.clone(), config, faults))
    }

    fn over(self, base: TopicSettings, config: &Config, faults: &mut Faults) -> TopicSettings {
        let settings = TopicSettings {
            description: self.description.unwrap_or(base.description),
            kind: self.kind.unwrap_or(base.kind),
            schema_id: self.schema_id.map_or(base.schema_id, |id| id.map(Arc::from)),
            guarantee: self.delivery_guarantee.unwrap_or(base.guarantee),
            retention: self.retention_period.map_or(base.retention, |Iso(period)| period),
            retention_bytes: self.retention_bytes.unwrap_or(base.retention_bytes),
            partition_count: self.partition_count.unwrap_or(base.partition_count),
            max_message_size: self.max_message_size.unwrap_or(base.max_message_size),
            dedup_window: self.dedup_window.map_or(base.dedup_window, |Iso(window)| window),
            dedup_keys_max: self.dedup_max_keys.unwrap_or(base.dedup_keys_max),
            dead_letter_payload: self.dead_letter_payload.unwrap_or(base.dead_letter_payload),
            dead_letter_expired: self.dead_letter_expired.unwrap_or(base.dead_letter_expired),
            dead_letter_threshold: self.dead_letter_threshold.unwrap_or(base.dead_letter_threshold),
            capture_input: self.capture_input.map_or(base.capture_input, |how| how.map(|Object(how)| how.into())),
            storage: self.storage.unwrap_or(base.storage),
        };
        check(&settings, config, faults);
        settings
    }
}

fn check(settings: &TopicSettings, config: &Config, faults: &mut Faults) {
    if settings.description.len() > DESCRIPTION_BYTES_MAX {
        faults.push("/description", format!("has at most {DESCRIPTION_BYTES_MAX} bytes"));
    }
    if settings.description.contains('\0') {
        faults.push("/description", NUL_REFUSED);
    }
    if let Some(id) = settings.schema_id.as_deref() {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if id.is_empty() || id.len() > SCHEMA_ID_BYTES_MAX || !id.bytes().all(allowed) {
            let message = "is 1 to 255 letters, digits, dots, underscores or hyphens";
            faults.push("/schemaId", message);
        }
    }
    if settings.retention < RETENTION_MIN {
        faults.push("/retentionPeriod", "is at least PT1S");
    }
    if settings.retention_bytes == Some(0) {
        faults.push("/retentionBytes", "is at least 1");
    }
    if settings.dead_letter_threshold.is_some_and(|threshold| !(1..=DEAD_LETTER_THRESHOLD_MAX).contains(&threshold)) {
        faults.push("/deadLetterThreshold", format!("is from 1 to {DEAD_LETTER_THRESHOLD_MAX}"));
    }
    if let Some(CaptureInput { ttl, bytes_max }) = settings.capture_input {
        if !(CAPTURE_TTL_MIN..=CAPTURE_TTL_MAX).contains(&ttl) {
            faults.push("/captureInput/ttl", "is from PT1S to P7D");
        }
        if !(CAPTURE_BYTES_MIN..=CAPTURE_BYTES_MAX).contains(&bytes_max) {
            faults.push("/captureInput/maxBytes", format!("is from {CAPTURE_BYTES_MIN} to {CAPTURE_BYTES_MAX}"));
        }
    }
    if settings.storage == Storage::Redis {
        if config.redis.is_none() {
            faults.push(
                "/storage",
                "is redis, and this broker has none: set redis.url (SLUICE__REDIS__URL), or leave storage out",
            );
        }
        if settings.guarantee != Guarantee::AtLeastOnce {
            faults.push(
                "/deliveryGuarantee",
                "is AtLeastOnce on a topic in Redis: choose that, or leave storage out, for a topic in the broker's own store",
            );
        }
    }
    if !(1..=PARTITIONS_MAX).contains(&settings.partition_count) {
        faults.push("/partitionCount", format!("is from 1 to {PARTITIONS_MAX}"));
    }
    let size_max = config.messaging.max_message_size;
    if !(1..=size_max).contains(&settings.max_message_size) {
        faults.push("/maxMessageSize", format!("is from 1 to {size_max} (the broker's Messaging__MaxMessageSize)"));
    }
    if settings.dedup_window.is_zero() || settings.dedup_window > DEDUP_WINDOW_MAX {
        faults.push("/dedupWindow", "is more than nothing and at most P7D");
    }
    if !(1..=DEDUP_KEYS_MAX).contains(&settings.dedup_keys_max) {
        faults.push("/dedupMaxKeys", format!("is from 1 to {DEDUP_KEYS_MAX}"));
    }
}

/// A name for a topic of one's own. Its dead-letter topic's name must fit too.
fn topic_name(text: &str) -> Result<TopicName, String> {
    let name: TopicName = text.parse()?;
    if name.is_dead_letter() {
        return Err(format!("does not end in {DEAD_LETTER_SUFFIX}: such topics come with the topic they belong to"));
    }
    if text.starts_with(SYSTEM_PREFIX) {
        return Err(format!("does not begin with {SYSTEM_PREFIX}: such topics are the broker's own"));
    }
    if text.len() + DEAD_LETTER_SUFFIX.len() > TOPIC_NAME_BYTES_MAX {
        return Err(format!("has at most {} bytes", TOPIC_NAME_BYTES_MAX - DEAD_LETTER_SUFFIX.len()));
    }
    Ok(name)
}

/// A topic.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TopicView {
    #[schema(value_type = String)]
    name: TopicName,
    description: String,
    #[serde(rename = "type")]
    kind: TopicKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    schema_id: Option<Arc<str>>,
    /// `Unregistered`, or the status of the schema's version: only an `Approved` one validates.
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_status: Option<String>,
    delivery_guarantee: Guarantee,
    retention_period: Iso,
    #[serde(skip_serializing_if = "Option::is_none")]
    retention_bytes: Option<u64>,
    partition_count: u16,
    max_message_size: u64,
    dedup_window: Iso,
    dedup_max_keys: u32,
    dead_letter_payload: DeadLetterPayload,
    dead_letter_expired: bool,
    /// How many dead letters make `sluice.events` tell of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letter_threshold: Option<u64>,
    /// How what arrives is kept for dry runs; absent where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    capture_input: Option<CaptureInputBody>,
    /// Where its dead letters are; absent for such a topic itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    dead_letter_topic: Option<TopicName>,
    storage: Storage,
    /// What "durable" means for it: `fsync`, `postgres`, ….
    durability: &'static str,
    created_at: Time,
    updated_at: Time,
}

impl TopicView {
    /// `schema`: `None` without a schema, `Some(None)` for one that is not registered.
    pub(super) fn of(topic: &Topic, schema: Option<Option<SchemaStatus>>, durability: &'static str) -> TopicView {
        let settings = &topic.settings;
        let status = |status: Option<SchemaStatus>| {
            status.map_or_else(|| "Unregistered".to_owned(), |status| format!("{status:?}"))
        };
        TopicView {
            name: topic.name.clone(),
            description: settings.description.clone(),
            kind: settings.kind,
            schema_id: settings.schema_id.clone(),
            schema_status: schema.map(status),
            delivery_guarantee: settings.guarantee,
            retention_period: Iso(settings.retention),
            retention_bytes: settings.retention_bytes,
            partition_count: settings.partition_count,
            max_message_size: settings.max_message_size,
            dedup_window: Iso(settings.dedup_window),
            dedup_max_keys: settings.dedup_keys_max,
            dead_letter_payload: settings.dead_letter_payload,
            dead_letter_expired: settings.dead_letter_expired,
            dead_letter_threshold: settings.dead_letter_threshold,
            capture_input: settings
                .capture_input
                .map(|CaptureInput { ttl, bytes_max }| CaptureInputBody { ttl: Iso(ttl), max_bytes: bytes_max }),
            dead_letter_topic: topic.dead_letter.map(|_| topic.name.dead_letter()),
            storage: settings.storage,
            durability,
            created_at: Time(topic.created_at),
            updated_at: Time(topic.updated_at),
        }
    }
}
