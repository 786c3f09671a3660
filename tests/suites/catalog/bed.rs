//! A catalog under test, on either engine, with values to put into it. Invariant: each has a database of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use sha2::Digest as _;
use sluice::catalog::*;
use sluice::clock::{Clock, Timestamp};
use sluice::config::PostgresUrl;
use sluice::message::GroupId;
use sluice_tests::servers::{Pooler, Postgres};
use sqlx::{AnyConnection, Connection as _};

/// Where a catalog is.
#[derive(Debug, Clone, Copy)]
pub enum Engine {
    /// In a file.
    Sqlite,
    /// In PostgreSQL.
    Postgres,
    /// The same, through a pooler that hands connections on after each transaction.
    Pooled,
}

/// What a catalog can be opened again from.
enum Place {
    File(tempfile::TempDir),
    Server(PostgresUrl),
}

pub struct Bed {
    place: Place,
    pub clock: Clock,
    pub catalog: Catalog,
}

/// An empty database of PostgreSQL, without tables.
pub async fn database(engine: Engine, rule: &str) -> PostgresUrl {
    let direct = Postgres::shared().database(rule);
    let url = match engine {
        Engine::Pooled => Pooler::shared().url(&direct),
        Engine::Sqlite | Engine::Postgres => direct,
    };
    url.parse().unwrap()
}

impl Bed {
    pub async fn new(engine: Engine, rule: &str) -> Bed {
        let place = match engine {
            Engine::Sqlite => Place::File(tempfile::tempdir().unwrap()),
            Engine::Postgres | Engine::Pooled => {
                let url = database(engine, rule).await;
                postgres::migrate(&url).await.unwrap();
                Place::Server(url)
            }
        };
        let clock = Clock::fixed(Timestamp(1_700_000_000_000));
        let catalog = open(&place, &clock).await;
        Bed { place, clock, catalog }
    }

    pub async fn reopened(self) -> Bed {
        self.catalog.close().await;
        let catalog = open(&self.place, &self.clock).await;
        Bed { catalog, ..self }
    }

    /// The catalog as another broker of the fleet has it.
    pub async fn beside(&self) -> Catalog {
        open(&self.place, &self.clock).await
    }

    /// All plugins' bytes are others than they were.
    pub async fn spoil_plugins(&self) {
        self.sql(match &self.place {
            Place::File(_) => "UPDATE plugin_blobs SET bytes = x'00'",
            Place::Server(_) => r"UPDATE plugin_blobs SET bytes = '\x00'",
        })
        .await;
    }

    /// Statements behind the catalog's back.
    pub async fn sql(&self, statements: &'static str) {
        sqlx::any::install_default_drivers();
        let url = match &self.place {
            Place::File(dir) => format!("sqlite:{}", dir.path().join("catalog.db").display()),
            Place::Server(url) => url.expose().to_owned(),
        };
        let mut connection = AnyConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    pub async fn topic(&self, name: &str, kind: TopicKind) -> Topic {
        let (topic, dead_letter) = self.unwritten_topic(name, kind).await;
        self.catalog.insert_topic(&topic, &dead_letter, &alice()).await.unwrap();
        topic
    }

    pub async fn unwritten_topic(&self, name: &str, kind: TopicKind) -> (Topic, Topic) {
        let id = self.catalog.reserve_topic_id().await.unwrap();
        let dead_letter = self.catalog.reserve_topic_id().await.unwrap();
        let now = self.clock.now();
        let topic = Topic {
            id,
            name: name.parse().unwrap(),
            dead_letter: Some(dead_letter),
            settings: TopicSettings {
                description: "for people".to_owned(),
                kind,
                schema_id: Some("orders.v1".into()),
                guarantee: Guarantee::AtLeastOnce,
                retention: Duration::from_secs(7 * 86_400),
                retention_bytes: Some(u64::MAX / 4),
                partition_count: 3,
                max_message_size: 1_048_576,
                dedup_window: Duration::from_millis(600_001),
                dedup_keys_max: u32::MAX,
                dead_letter_payload: DeadLetterPayload::Original,
                dead_letter_expired: false,
                dead_letter_threshold: Some(100),
                capture_input: Some(CaptureInput { ttl: Duration::from_secs(60), bytes_max: 1 << 20 }),
                storage: Storage::Redis,
            },
            created_at: now,
            updated_at: now,
            version: 1,
        };
        let mut settings = topic.settings.clone();
        settings.kind = TopicKind::PubSub;
        let dead_letter =
            Topic { id: dead_letter, name: topic.name.dead_letter(), dead_letter: None, settings, ..topic.clone() };
        (topic, dead_letter)
    }

    pub async fn subscription(&self, topic: &Topic, group: &str) -> Result<Subscription, CatalogError> {
        let new = Subscription {
            id: subscription_id(self.catalog.reserve_group_id().await?.0),
            group: match topic.settings.kind {
                TopicKind::Queue => GroupId::SHARED,
                TopicKind::PubSub => self.catalog.reserve_group_id().await?,
            },
            topic: topic.id,
            topic_name: topic.name.clone(),
            consumer_group: group.into(),
            settings: SubscriptionSettings {
                kind: SubscriptionKind::Push,
                endpoint: Some("https://bob:hunter2@example.com/hook?token=t0ps3cret".to_owned()),
                filter: Some(Filter {
                    header_matches: BTreeMap::from([("tenant".to_owned(), "a".to_owned())]),
                    payload_query: Some("$.severity >= 7".to_owned()),
                }),
                max_retries: 3,
                ack_timeout: Duration::from_secs(30),
                backoff: Backoff::default(),
                ordered: true,
                max_in_flight: Some(10),
                rate_limit: None,
                format: PushFormat::CloudEventsStructured,
                headers: BTreeMap::from([("authorization".to_owned(), Secret::new("Bearer s3cr3t".to_owned()))]),
                authorization: Some(Authorization::Bearer { token: Secret::new("t0k3n".to_owned()) }),
                client_certificate: Some(ClientCertificate {
                    certificate: "a certificate".to_owned(),
                    private_key: Secret::new("pr1vate".to_owned()),
                }),
                ca_certificate: Some("an authority".to_owned()),
                attempt_bodies: AttemptBodies::Redact,
            },
            secret: Some(Secret::new("whsec_first".to_owned())),
            previous_secret: None,
            pause: None,
            created_by: "alice".to_owned(),
            created_at: self.clock.now(),
            updated_at: self.clock.now(),
            version: 1,
        };
        self.catalog.insert_subscription(&new, &alice()).await.map(|()| new)
    }

    /// A revision of a pipeline with one stage.
    pub async fn revise(&self, scope: Scope, expected: Option<u64>) -> Result<PipelineRevision, CatalogError> {
        let spec: StageSpec = serde_json::from_value(
            serde_json::json!({"name": "only", "plugin": "filter", "config": {"password": "c0nf1g"}}),
        )
        .unwrap();
        let resolved = ResolvedStage {
            spec: spec.clone(),
            version: short(b"one"),
            digest: digest(b"one"),
            implicit: false,
            rollout: None,
        };
        let new =
            NewRevision { scope, stages: vec![spec], resolved: vec![resolved], reason: "set".to_owned(), expected };
        self.catalog.add_revision(new, &alice()).await
    }

    pub async fn accept(
        &self,
        version: Option<&str>,
        bytes: &'static [u8],
    ) -> Result<(PluginVersion, Accepted), CatalogError> {
        let new = NewPlugin {
            plugin: "filter".to_owned(),
            version: version.map(str::to_owned),
            bytes: bytes.into(),
            digest: digest(bytes),
            source: PluginSource::Disk,
            imports: vec!["sluice:plugin/log@1.0.0".to_owned()],
            signed_by: None,
            config_schema: None,
        };
        self.catalog.accept_plugin(new, &alice()).await
    }

    pub async fn latest_plugin(&self) -> PluginVersion {
        self.catalog.plugin_versions().await.unwrap().pop().unwrap()
    }

    pub async fn register(&self, version: &str, definition: &str) -> Result<(Schema, Registered), CatalogError> {
        let new = NewSchema {
            id: "orders.v1".to_owned(),
            version: version.to_owned(),
            definition: definition.to_owned(),
            compatibility: Compatibility::None,
        };
        self.catalog.register_schema(new, |a, b| a == b, |_| Ok(()), &alice()).await
    }

    pub async fn audit(&self) -> Vec<AuditEntry> {
        self.catalog.audit_entries(&AuditFilter::default(), 1000, 0).await.unwrap().0
    }
}

pub fn alice() -> Actor {
    Actor { user: "alice".to_owned(), trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned()) }
}

pub fn digest(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn short(bytes: &[u8]) -> String {
    format!("sha-{}", &digest(bytes)[..12])
}

fn subscription_id(number: u32) -> SubscriptionId {
    format!("00000000-0000-0000-0000-{:012}", number + 77).parse().unwrap()
}

async fn open(place: &Place, clock: &Clock) -> Catalog {
    match place {
        Place::File(dir) => Catalog::open(&dir.path().join("catalog.db"), clock.clone()).await.unwrap(),
        Place::Server(url) => Catalog::connect(url, clock.clone()).await.unwrap(),
    }
}
