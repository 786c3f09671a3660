//! What the catalog remembers: topics, subscriptions, stages, plugins, schemas, audit entries. Invariant: these are plain
//! values, valid when built; numbers that name things (`TopicId`, `GroupId`) are never used twice. Never does I/O.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::message::{GroupId, TopicId, TopicName};

/// Who gets a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum TopicKind {
    /// One consumer.
    Queue,
    /// Every subscription.
    PubSub,
}

/// How often a message may reach a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum Guarantee {
    /// The grant settles it.
    AtMostOnce,
    /// Until it is settled.
    AtLeastOnce,
    /// As `AtLeastOnce`, with receipt and idempotency key demanded.
    ExactlyOnce,
}

/// What a dead letter keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum DeadLetterPayload {
    /// The payload as it was.
    Original,
    /// Only the facts.
    None,
}

/// Where a topic's messages are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Storage {
    /// In the broker's store.
    #[default]
    Default,
    /// In Redis.
    Redis,
}

/// A topic, or the dead-letter topic that comes with each one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its number in the store.
    pub id: TopicId,
    /// Its name.
    pub name: TopicName,
    /// For a topic: the one that takes its dead letters. For such a one: `None`.
    pub dead_letter: Option<TopicId>,
    /// What its owner chose.
    pub settings: TopicSettings,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its settings last changed.
    pub updated_at: Timestamp,
    /// Rises with each change of the settings; its `ETag`.
    pub version: u64,
}

/// What the owner of a topic chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSettings {
    /// For people.
    pub description: String,
    /// Queue or PubSub; fixed.
    pub kind: TopicKind,
    /// The schema that payloads are held against, registered or not yet.
    pub schema_id: Option<Arc<str>>,
    /// How often a message may reach a consumer.
    pub guarantee: Guarantee,
    /// Messages are kept this long.
    pub retention: Duration,
    /// And in at most so many bytes.
    pub retention_bytes: Option<u64>,
    /// 1–64; fixed.
    pub partition_count: u16,
    /// Bytes of a payload at most.
    pub max_message_size: u64,
    /// How long idempotency keys are remembered.
    pub dedup_window: Duration,
    /// How many at most.
    pub dedup_keys_max: u32,
    /// What its dead letters keep.
    pub dead_letter_payload: DeadLetterPayload,
    /// Whether a message that passes its `expires_at` undelivered becomes one.
    pub dead_letter_expired: bool,
    /// How many dead letters make somebody be told.
    pub dead_letter_threshold: Option<u64>,
    /// Whether what arrives is kept as it was before its stages, and how much of it.
    pub capture_input: Option<CaptureInput>,
    /// Where its messages are, and its dead letters; fixed.
    pub storage: Storage,
}

/// How what arrives is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureInput {
    /// So long at most.
    pub ttl: Duration,
    /// In so many bytes at most.
    pub bytes_max: u64,
}

/// So many, where its owner does not say.
pub const DEAD_LETTER_THRESHOLD: u64 = 100;

/// A subscription's id in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SubscriptionId(pub Uuid);

impl fmt::Display for SubscriptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for SubscriptionId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Uuid::try_parse(text).map(Self).map_err(|_| format!("'{text}' is not a subscription id (a UUID)"))
    }
}

/// Who sends: the broker to an endpoint, or the consumer fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum SubscriptionKind {
    /// Signed webhook.
    Push,
    /// `GET /messages/consume`.
    Pull,
}

/// How a webhook's body looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum PushFormat {
    /// The consume form, without receipt.
    Envelope,
    /// The payload alone.
    Raw,
    /// A CloudEvent in binary mode: the payload, and attributes as `ce-…` headers.
    CloudEvents,
    /// A CloudEvent in structured mode: one JSON document of attributes and payload.
    CloudEventsStructured,
}

/// Why a subscription does not deliver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// In a sentence: who paused it, or what the endpoint answered.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// A consumer group on a topic.
#[derive(Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Its id in the API.
    pub id: SubscriptionId,
    /// Its cursor in the store. On a Queue: [`GroupId::SHARED`].
    pub group: GroupId,
    /// The topic.
    pub topic: TopicId,
    /// The topic's name.
    pub topic_name: TopicName,
    /// The group's name, unique on the topic.
    pub consumer_group: Arc<str>,
    /// What its owner chose.
    pub settings: SubscriptionSettings,
    /// The signing secret of a Push subscription: `whsec_…`.
    pub secret: Option<Secret>,
    /// The secret before the last rotation and until when both sign.
    pub previous_secret: Option<(Secret, Timestamp)>,
    /// Set while it does not deliver.
    pub pause: Option<Pause>,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Rises with each change; its `ETag`.
    pub version: u64,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("id", &self.id)
            .field("group", &self.consumer_group)
            .finish_non_exhaustive()
    }
}

/// What the owner of a subscription chose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubscriptionSettings {
    /// Push or Pull; fixed.
    pub kind: SubscriptionKind,
    /// Where to send (Push): an absolute URL.
    pub endpoint: Option<String>,
    /// Only messages that match are delivered; runs as a `filter` stage before the subscription's own.
    pub filter: Option<Filter>,
    /// Deliveries after the first one fails.
    pub max_retries: u32,
    /// How long a lease lasts, and how long an endpoint may take.
    pub ack_timeout: Duration,
    /// How long to wait before the next attempt.
    pub backoff: Backoff,
    /// In order per partition key.
    pub ordered: bool,
    /// Leases at once at most (Push).
    pub max_in_flight: Option<u32>,
    /// Deliveries per second at most (Push).
    pub rate_limit: Option<u32>,
    /// How the body looks (Push).
    pub format: PushFormat,
    /// Extra headers (Push); their values are secret.
    pub headers: BTreeMap<String, Secret>,
    /// What proves to the endpoint who sends, beyond the signature (Push).
    pub authorization: Option<Authorization>,
    /// What is shown to an endpoint that asks for a certificate (Push).
    pub client_certificate: Option<ClientCertificate>,
    /// Authorities that vouch for the endpoint in place of the system's (Push): certificates in PEM.
    pub ca_certificate: Option<String>,
    /// Whether the beginnings of an endpoint's answers are kept (Push).
    pub attempt_bodies: AttemptBodies,
}

impl Eq for SubscriptionSettings {}

impl SubscriptionSettings {
    /// What holds unless its owner says something else.
    #[must_use]
    pub fn new(kind: SubscriptionKind) -> SubscriptionSettings {
        SubscriptionSettings {
            kind,
            endpoint: None,
            filter: None,
            max_retries: 3,
            ack_timeout: Duration::from_secs(30),
            backoff: Backoff::default(),
            ordered: false,
            max_in_flight: None,
            rate_limit: None,
            format: PushFormat::Envelope,
            headers: BTreeMap::new(),
            authorization: None,
            client_certificate: None,
            ca_certificate: None,
            attempt_bodies: AttemptBodies::Keep,
        }
    }
}

/// What goes out as a webhook's `Authorization`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Authorization {
    /// RFC 6750.
    Bearer {
        /// Sent as it is.
        token: Secret,
    },
}

/// A certificate that webhooks are sent with, and the key that goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientCertificate {
    /// The certificate, then those that lead to its authority: PEM.
    pub certificate: String,
    /// PKCS #8, PKCS #1 or SEC 1: PEM.
    pub private_key: Secret,
}

/// What the list of attempts remembers of answers' bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum AttemptBodies {
    /// Their beginnings.
    Keep,
    /// Nothing.
    Redact,
}

/// Texts by name, as someone writes them; a name that is there twice is an error, since one of the two values would
/// silently count for nothing.
///
/// # Errors
/// The source's, and that.
pub fn each_name_once<'de, D: Deserializer<'de>>(source: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct TextsVisitor;
    impl<'de> Visitor<'de> for TextsVisitor {
        type Value = BTreeMap<String, String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object of strings")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut texts = BTreeMap::new();
            while let Some((name, value)) = map.next_entry::<String, String>()? {
                if texts.contains_key(&name) {
                    return Err(serde::de::Error::custom(format_args!("the name '{name}' is there twice")));
                }
                texts.insert(name, value);
            }
            Ok(texts)
        }
    }
    source.deserialize_map(TextsVisitor)
}

/// Which messages a subscription wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// Headers that must have exactly these values.
    #[serde(default, deserialize_with = "each_name_once", skip_serializing_if = "BTreeMap::is_empty")]
    pub header_matches: BTreeMap<String, String>,
    /// RFC 9535's logical expression over `$`, the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_query: Option<String>,
}

/// How the wait between attempts grows: `initial × multiplierⁿ`, at most `max`, then ± `jitter` of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Backoff {
    /// Before the second attempt.
    pub initial: Duration,
    /// Times this for each further one; at least 1.
    pub multiplier: f64,
    /// At most.
    pub max: Duration,
    /// 0 to 1.
    pub jitter: f64,
}

impl Eq for Backoff {}

impl Default for Backoff {
    /// 2, 4, 8, 16, 32 s … up to an hour, ± 20 %.
    fn default() -> Backoff {
        Backoff { initial: Duration::from_secs(2), multiplier: 2.0, max: Duration::from_secs(3600), jitter: 0.2 }
    }
}

/// Text that must not be shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes the text.
    #[must_use]
    pub fn new(text: String) -> Secret {
        Secret(text)
    }
    /// The text, for using it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What a pipeline belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Runs before a message is stored.
    Topic(TopicId),
    /// Runs on the way out. The topic and the subscription's id.
    Subscription(TopicId, SubscriptionId),
}

/// What becomes of a message that a stage rejects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnReject {
    /// The publish is answered with 422. On the way out: a dead letter for that group.
    #[default]
    Reject,
    /// A dead letter.
    DeadLetter,
    /// Dropped.
    Drop,
}

/// What becomes of a message that a stage fails on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnFault {
    /// The publish is answered with 503. On the way out: a failed attempt.
    #[default]
    Reject,
    /// A dead letter.
    DeadLetter,
    /// It goes on as if the stage were not there.
    Pass,
}

/// One step of a pipeline, as its owner set it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StageSpec {
    /// Its name, unique in the pipeline.
    pub name: String,
    /// The plugin's name.
    pub plugin: String,
    /// A version's label, or `latest`.
    #[serde(default = "latest")]
    pub version: String,
    /// Handed to the plugin's `configure`.
    #[serde(default = "empty_object")]
    #[schema(value_type = Object)]
    pub config: serde_json::Value,
    /// What becomes of a message that it rejects.
    #[serde(default)]
    pub on_reject: OnReject,
    /// What becomes of a message that it fails on.
    #[serde(default)]
    pub on_fault: OnFault,
    /// CPU milliseconds per call.
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u32,
    /// Mebibytes of guest memory.
    #[serde(default = "memory_mb")]
    pub memory_mb: u32,
    /// Topics that it may emit to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emit_to: Vec<String>,
}

fn latest() -> String {
    "latest".to_owned()
}
fn empty_object() -> serde_json::Value {
    serde_json::Value::Object(serde_json::Map::new())
}
fn timeout_ms() -> u32 {
    50
}
fn memory_mb() -> u32 {
    32
}

/// One revision of a pipeline; immutable once written.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineRevision {
    /// Whose.
    pub scope: Scope,
    /// Rises by one with every change.
    pub revision: u64,
    /// As its owner set them (without those that Sluice adds).
    pub stages: Vec<StageSpec>,
    /// What really runs: all stages in order, `latest` resolved, with each plugin's digest.
    pub resolved: Vec<ResolvedStage>,
    /// Why: `set`, `plugin filter changed`, `schema orders.v1 changed`, ….
    pub reason: String,
    /// Who.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
}

/// A stage with its plugin pinned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResolvedStage {
    /// As set, or as Sluice added it.
    pub spec: StageSpec,
    /// The version's label.
    pub version: String,
    /// Hex SHA-256 of the component.
    pub digest: String,
    /// Added by Sluice: a topic's `schemaId`, a subscription's `filter`.
    pub implicit: bool,
    /// The version that is tried beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

impl ResolvedStage {
    /// The stage as it runs without the version that is tried.
    #[must_use]
    pub fn stable(&self) -> ResolvedStage {
        ResolvedStage { rollout: None, ..self.clone() }
    }

    /// What is still tried on it once it runs the component with this digest: a version is not tried beside itself.
    #[must_use]
    pub fn still_tried(&self, digest: &str) -> Option<Rollout> {
        self.rollout.clone().filter(|rollout| rollout.digest != digest)
    }

    /// The components that it runs.
    pub fn digests(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.digest).chain(self.rollout.as_ref().map(|rollout| &rollout.digest))
    }

    /// The stage as it would run on the version that is tried; `None` if none is.
    #[must_use]
    pub fn candidate(&self) -> Option<ResolvedStage> {
        let rollout = self.rollout.as_ref()?;
        let spec = StageSpec { version: rollout.version.clone(), ..self.spec.clone() };
        let (version, digest) = (rollout.version.clone(), rollout.digest.clone());
        Some(ResolvedStage { spec, version, digest, implicit: self.implicit, rollout: None })
    }
}

/// How a version is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Strategy {
    /// It runs in the place of the stage's version for some of the messages.
    Canary,
    /// It runs beside the stage's version, and what it does is compared and thrown away.
    Shadow,
}

/// A version that is tried on a stage, beside the one that it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// The version's label.
    pub version: String,
    /// Hex SHA-256 of the component.
    pub digest: String,
    /// How it is tried.
    pub strategy: Strategy,
    /// On how many of a hundred messages.
    pub percent: f64,
    /// What ends it by itself.
    pub limits: RolloutLimits,
    /// Since when.
    pub started_at: Timestamp,
}

/// How much worse than the stage's version a version that is tried may be. Rates are shares of the messages, 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutLimits {
    /// So many more of its messages may fail.
    pub max_error_rate: Option<f64>,
    /// So many more of its messages may be rejected.
    pub max_reject_delta: Option<f64>,
    /// So many more, or fewer, of its messages may be dropped.
    pub max_drop_delta: Option<f64>,
    /// Milliseconds that 99 of 100 messages may take, unless those of the stage's version take longer.
    pub max_latency_ms: Option<f64>,
    /// The time that is looked back, in milliseconds.
    pub window_ms: u64,
    /// Rates are not judged of fewer messages.
    pub min_messages: u64,
}

/// Where a plugin's version came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum PluginSource {
    /// It came with the binary.
    Builtin,
    /// A file in `plugins.dir`.
    Disk,
    /// Uploaded.
    Upload,
}

/// An immutable version of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginVersion {
    /// The plugin's name.
    pub plugin: String,
    /// The label: a semantic version where one was given, else `sha-` and 12 digits of the digest.
    pub version: String,
    /// Hex SHA-256 of the component.
    pub digest: String,
    /// Bytes of the component.
    pub size: u64,
    /// Where it came from.
    pub source: PluginSource,
    /// The interfaces it imports.
    pub imports: Vec<String>,
    /// The trusted key that signed it, in base64; none: it came unsigned.
    pub signed_by: Option<String>,
    /// Who brought it.
    pub created_by: String,
    /// When it first came.
    pub created_at: Timestamp,
    /// Rises with each acceptance of any version of the plugin: the highest is `latest`.
    pub accepted: u64,
}

/// A schema, and the version of it that validates now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// Its id.
    pub id: Arc<str>,
    /// Its version's name.
    pub version: String,
    /// JSON Schema, as registered.
    pub definition: String,
    /// `None`, `Backward`, `Forward` or `Full`.
    pub compatibility: Compatibility,
    /// Only `Approved` ones validate.
    pub status: SchemaStatus,
    /// Who approved it.
    pub approved_by: Option<String>,
    /// When.
    pub approved_at: Option<Timestamp>,
    /// When it was registered.
    pub created_at: Timestamp,
    /// When it was deprecated.
    pub deprecated_at: Option<Timestamp>,
}

/// What a new version of a schema may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub enum Compatibility {
    /// Anything.
    #[default]
    None,
    /// New readers read old messages.
    Backward,
    /// Old readers read new messages.
    Forward,
    /// Both.
    Full,
}

/// The life of a schema's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum SchemaStatus {
    /// Written down.
    Draft,
    /// Waits for an Admin.
    PendingApproval,
    /// Validates.
    Approved,
    /// Validates no more.
    Deprecated,
}

/// Something that someone changed.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEntry {
    /// Rises.
    pub id: i64,
    /// `topic.created`, `pipeline.changed`, ….
    pub event_type: String,
    /// `topic`, `subscription`, ….
    pub entity_type: String,
    /// Its name or id.
    pub entity_id: String,
    /// The token's `sub`, or `system`.
    pub user_id: String,
    /// Before and after, without secrets.
    pub details: serde_json::Value,
    /// Finds the request in the logs.
    pub trace_id: Option<String>,
    /// When.
    pub created_at: Timestamp,
}
