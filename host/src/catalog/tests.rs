//! What the catalog promises, on databases in temporary directories.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::clock::Timestamp;
use crate::message::{GroupId, TopicId};
use sha2::Digest as _;
use uuid::Uuid;

struct Fixture {
    dir: tempfile::TempDir,
    clock: Clock,
    catalog: Catalog,
}

impl Fixture {
    async fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(Timestamp(1_700_000_000_000));
        let catalog = Catalog::open(&dir.path().join("catalog.db"), clock.clone()).await.unwrap();
        Fixture { dir, clock, catalog }
    }

    async fn reopened(self) -> Fixture {
        self.catalog.close().await;
        let catalog = Catalog::open(&self.dir.path().join("catalog.db"), self.clock.clone()).await.unwrap();
        Fixture { catalog, ..self }
    }

    async fn topic(&self, name: &str, kind: TopicKind) -> Topic {
        let (topic, dead_letter) = self.unwritten_topic(name, kind).await;
        self.catalog.insert_topic(&topic, &dead_letter, &alice()).await.unwrap();
        topic
    }

    async fn unwritten_topic(&self, name: &str, kind: TopicKind) -> (Topic, Topic) {
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

    async fn subscription(&self, topic: &Topic, group: &str) -> Result<Subscription, CatalogError> {
        let new = Subscription {
            id: SubscriptionId(Uuid::from_u128(u128::from(self.catalog.reserve_group_id().await?.0) + 77)),
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
    async fn revise(&self, scope: Scope, expected: Option<u64>) -> Result<PipelineRevision, CatalogError> {
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

    async fn accept(
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

    async fn latest_plugin(&self) -> PluginVersion {
        self.catalog.plugin_versions().await.unwrap().pop().unwrap()
    }

    async fn register(&self, version: &str, definition: &str) -> Result<(Schema, Registered), CatalogError> {
        let new = NewSchema {
            id: "orders.v1".to_owned(),
            version: version.to_owned(),
            definition: definition.to_owned(),
            compatibility: Compatibility::None,
        };
        self.catalog.register_schema(new, |a, b| a == b, |_| Ok(()), &alice()).await
    }

    async fn audit(&self) -> Vec<AuditEntry> {
        self.catalog.audit_entries(&AuditFilter::default(), 1000, 0).await.unwrap().0
    }
}

fn alice() -> Actor {
    Actor { user: "alice".to_owned(), trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned()) }
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(sha2::Sha256::digest(bytes))
}

fn short(bytes: &[u8]) -> String {
    format!("sha-{}", &digest(bytes)[..12])
}

#[test]
fn every_migration_of_the_folder_is_listed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations/sqlite");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".sql"))
        .collect();
    files.sort();
    let listed: Vec<String> =
        MIGRATIONS.iter().map(|migration| format!("{:04}_{}.sql", migration.version, migration.description)).collect();
    assert_eq!(listed, files);
}

/// What catalogs hold that were written before is read for as long as these names stay.
#[test]
fn formats_are_stored_under_the_names_of_the_api() {
    for (format, name) in [
        (PushFormat::Envelope, "envelope"),
        (PushFormat::Raw, "raw"),
        (PushFormat::CloudEvents, "cloudEvents"),
        (PushFormat::CloudEventsStructured, "cloudEventsStructured"),
    ] {
        assert_eq!(columns::name(format), name);
    }
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let fixture = Fixture::new().await;
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    let subscription = fixture.subscription(&topic, "billing").await.unwrap();
    let until = Timestamp(1_700_000_360_000);
    let rotated = fixture
        .catalog
        .rotate_secret(subscription.id, Secret::new("whsec_second".to_owned()), until, &alice())
        .await
        .unwrap();
    let pause = Pause { reason: "410 Gone".to_owned(), since: fixture.clock.now() };
    let paused = fixture.catalog.set_pause(subscription.id, Some(pause.clone()), &alice()).await.unwrap();
    let of_topic = fixture.revise(Scope::Topic(topic.id), None).await.unwrap();
    let of_subscription = fixture.revise(Scope::Subscription(topic.id, subscription.id), Some(0)).await.unwrap();
    let (plugin, _) = fixture.accept(Some("1.0.0"), b"one").await.unwrap();
    let (schema, _) = fixture.register("1", r#"{"type":"object"}"#).await.unwrap();
    let audit = fixture.audit().await;

    let fixture = fixture.reopened().await;
    let topics = fixture.catalog.topics().await.unwrap();
    assert_eq!(topics[0], topic);
    assert_eq!((topics.len(), topics[1].name.as_str(), topics[1].dead_letter), (2, "orders.dlq", None));
    let expected = Subscription {
        secret: Some(Secret::new("whsec_second".to_owned())),
        previous_secret: Some((Secret::new("whsec_first".to_owned()), until)),
        pause: Some(pause),
        version: 3,
        ..subscription
    };
    assert_eq!(fixture.catalog.subscriptions().await.unwrap(), std::slice::from_ref(&expected));
    assert_eq!((rotated.version, paused), (2, expected));
    assert_eq!(fixture.catalog.pipelines().await.unwrap(), [of_subscription, of_topic.clone()]);
    assert_eq!(fixture.catalog.pipeline(Scope::Topic(topic.id)).await.unwrap(), Some(of_topic));
    assert_eq!(fixture.catalog.plugin_versions().await.unwrap(), [plugin]);
    assert_eq!(fixture.catalog.plugin_bytes(&digest(b"one")).await.unwrap().as_deref(), Some(&b"one"[..]));
    assert_eq!(fixture.catalog.schema("orders.v1").await.unwrap(), Some(schema));
    assert_eq!(fixture.audit().await, audit);
    assert!(fixture.catalog.verify().await.unwrap().is_empty());
}

#[tokio::test]
async fn of_concurrent_creations_one_wins_and_the_others_conflict() {
    let fixture = Arc::new(Fixture::new().await);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let fixture = Arc::clone(&fixture);
        tasks.spawn(async move {
            let (topic, dead_letter) = fixture.unwritten_topic("orders", TopicKind::Queue).await;
            fixture.catalog.insert_topic(&topic, &dead_letter, &alice()).await
        });
    }
    let results = tasks.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(CatalogError::Conflict(_)))), "{results:?}");
    assert_eq!(fixture.catalog.topics().await.unwrap().len(), 2);
    assert_eq!(fixture.audit().await.len(), 1, "a refused change leaves no entry");
}

#[tokio::test]
async fn a_queue_has_one_subscription_and_a_group_one_on_its_topic() {
    let fixture = Fixture::new().await;
    let queue = fixture.topic("jobs", TopicKind::Queue).await;
    fixture.subscription(&queue, "workers").await.unwrap();
    assert!(matches!(fixture.subscription(&queue, "others").await, Err(CatalogError::Conflict(_))));
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    fixture.subscription(&topic, "billing").await.unwrap();
    fixture.subscription(&topic, "shipping").await.unwrap();
    assert!(matches!(fixture.subscription(&topic, "billing").await, Err(CatalogError::Conflict(_))));
}

#[tokio::test]
async fn numbers_are_not_used_again_after_deletion_and_restart() {
    let fixture = Fixture::new().await;
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    let subscription = fixture.subscription(&topic, "billing").await.unwrap();
    let scope = Scope::Subscription(topic.id, subscription.id);
    fixture.revise(scope, None).await.unwrap();
    fixture.catalog.delete_topic(topic.id, &alice()).await.unwrap();
    assert!(fixture.catalog.topics().await.unwrap().is_empty(), "the dead-letter topic goes too");
    assert!(fixture.catalog.subscriptions().await.unwrap().is_empty());
    assert!(fixture.catalog.pipelines().await.unwrap().is_empty());

    let fixture = fixture.reopened().await;
    let again = fixture.topic("orders", TopicKind::PubSub).await;
    assert_eq!((topic.id, again.id), (TopicId(1), TopicId(3)));
    assert!(fixture.catalog.reserve_group_id().await.unwrap() > subscription.group);
}

#[tokio::test]
async fn a_revision_is_not_used_again_after_its_subscription_was_deleted() {
    let fixture = Fixture::new().await;
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    let subscription = fixture.subscription(&topic, "billing").await.unwrap();
    let scope = Scope::Subscription(topic.id, subscription.id);
    fixture.revise(scope, None).await.unwrap();
    fixture.catalog.delete_subscription(subscription.id, &alice()).await.unwrap();
    assert!(fixture.catalog.pipelines().await.unwrap().is_empty());
    assert!(matches!(fixture.revise(scope, None).await, Err(CatalogError::NotFound(_))));
    fixture.catalog.insert_subscription(&subscription, &alice()).await.unwrap();
    assert_eq!(fixture.revise(scope, None).await.unwrap().revision, 2);
}

#[tokio::test]
async fn a_change_based_on_an_old_version_is_refused() {
    let fixture = Fixture::new().await;
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    let mut changed = topic.clone();
    changed.settings.description = "other".to_owned();
    fixture.clock.advance(Duration::from_secs(1));
    let after = fixture.catalog.update_topic(&changed, Some(1), &alice()).await.unwrap();
    assert_eq!((after.version, after.updated_at), (2, fixture.clock.now()));
    assert_eq!(fixture.catalog.topics().await.unwrap()[0], after);
    let late = fixture.catalog.update_topic(&changed, Some(1), &alice()).await;
    assert!(matches!(late, Err(CatalogError::PreconditionFailed { current: 2 })), "{late:?}");
    changed.settings.partition_count = 4;
    assert!(matches!(fixture.catalog.update_topic(&changed, None, &alice()).await, Err(CatalogError::Conflict(_))));

    let subscription = fixture.subscription(&topic, "billing").await.unwrap();
    let late = fixture.catalog.update_subscription(&subscription, Some(9), &alice()).await;
    assert!(matches!(late, Err(CatalogError::PreconditionFailed { current: 1 })), "{late:?}");

    let scope = Scope::Topic(topic.id);
    assert!(matches!(fixture.revise(scope, Some(1)).await, Err(CatalogError::PreconditionFailed { current: 0 })));
    assert_eq!(fixture.revise(scope, Some(0)).await.unwrap().revision, 1);
    assert_eq!(fixture.revise(scope, None).await.unwrap().revision, 2);
    assert!(matches!(fixture.revise(scope, Some(1)).await, Err(CatalogError::PreconditionFailed { current: 2 })));
    let (history, total) = fixture.catalog.pipeline_history(scope, 1, 1).await.unwrap();
    assert_eq!((history.len(), history[0].revision, total), (1, 1, 2));
}

#[tokio::test]
async fn settings_change_and_secrets_stay() {
    let fixture = Fixture::new().await;
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    let subscription = fixture.subscription(&topic, "billing").await.unwrap();
    let mut changed = Subscription { secret: None, pause: None, ..subscription.clone() };
    changed.settings.max_retries = 100;
    changed.settings.filter = None;
    let after = fixture.catalog.update_subscription(&changed, Some(1), &alice()).await.unwrap();
    assert_eq!((&after.settings, &after.secret), (&changed.settings, &subscription.secret));
    assert_eq!(fixture.catalog.subscriptions().await.unwrap(), [after]);
    changed.settings.kind = SubscriptionKind::Pull;
    let refused = fixture.catalog.update_subscription(&changed, None, &alice()).await;
    assert!(matches!(refused, Err(CatalogError::Conflict(_))));
}

#[tokio::test]
async fn the_version_accepted_last_is_latest_and_a_label_keeps_its_bytes() {
    let fixture = Fixture::new().await;
    let (first, accepted) = fixture.accept(None, b"one").await.unwrap();
    assert_eq!((first.version.as_str(), accepted), (short(b"one").as_str(), Accepted::New));
    let (second, _) = fixture.accept(Some("1.2.0"), b"two").await.unwrap();
    assert_eq!(fixture.latest_plugin().await, second);
    let (back, accepted) = fixture.accept(None, b"one").await.unwrap();
    assert_eq!((&back.version, accepted), (&first.version, Accepted::Again));
    assert!(back.accepted > second.accepted);
    assert_eq!(fixture.latest_plugin().await, back);
    let entries = fixture.audit().await.len();
    assert_eq!(fixture.accept(None, b"one").await.unwrap(), (back, Accepted::Again), "nothing to do");
    assert_eq!(fixture.audit().await.len(), entries);
    assert!(matches!(fixture.accept(Some("1.2.0"), b"three").await, Err(CatalogError::Conflict(_))));
    assert!(matches!(fixture.accept(Some("latest"), b"three").await, Err(CatalogError::Conflict(_))));
    // Without a label, bytes are known by the label that they have.
    assert_eq!(fixture.accept(None, b"two").await.unwrap().0.version, "1.2.0");
}

#[tokio::test]
async fn a_bound_version_stays_and_an_unbound_one_goes_with_its_bytes() {
    let fixture = Fixture::new().await;
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    let (one, _) = fixture.accept(None, b"one").await.unwrap();
    fixture.accept(Some("2.0.0"), b"two").await.unwrap();
    fixture.accept(Some("2.0.1"), b"two").await.unwrap();
    fixture.revise(Scope::Topic(topic.id), None).await.unwrap();
    let delete = async |label: &str| fixture.catalog.delete_plugin_version("filter", label, &alice()).await;
    assert!(matches!(delete(&one.version).await, Err(CatalogError::Conflict(_))));
    delete("2.0.0").await.unwrap();
    assert!(fixture.catalog.plugin_bytes(&digest(b"two")).await.unwrap().is_some(), "2.0.1 still has them");
    delete("2.0.1").await.unwrap();
    assert!(fixture.catalog.plugin_bytes(&digest(b"two")).await.unwrap().is_none());
    assert!(matches!(delete("2.0.1").await, Err(CatalogError::NotFound(_))));
}

#[tokio::test]
async fn a_name_whose_versions_are_deleted_is_remembered_and_so_many_are() {
    let fixture = Fixture::new().await;
    let known = async || fixture.catalog.imports_when_deleted("filter").await.unwrap();
    let delete = async |label: &str| fixture.catalog.delete_plugin_version("filter", label, &alice()).await.unwrap();
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
                INSERT INTO deleted_plugins SELECT 'gone-' || i, '[]', -i FROM n";
    sqlx::query(many).execute(&fixture.catalog.pool).await.unwrap();
    fixture.accept(Some("1"), b"one").await.unwrap();
    fixture.accept(Some("2"), b"two").await.unwrap();
    delete("1").await;
    assert_eq!(known().await, None, "there is another");
    delete("2").await;
    assert!(known().await.is_some());
    assert_eq!(fixture.catalog.imports_when_deleted("gone-10000").await.unwrap(), None, "the oldest");
    assert!(fixture.catalog.imports_when_deleted("gone-9999").await.unwrap().is_some());
    fixture.accept(Some("3"), b"three").await.unwrap();
    assert_eq!(known().await, None, "it has a version again");
}

#[tokio::test]
async fn bytes_that_are_not_their_digests_are_damage() {
    let fixture = Fixture::new().await;
    fixture.accept(None, b"one").await.unwrap();
    sqlx::query("UPDATE plugin_blobs SET bytes = $1").bind(&b"two"[..]).execute(&fixture.catalog.pool).await.unwrap();
    let read = fixture.catalog.plugin_bytes(&digest(b"one")).await;
    assert!(matches!(read, Err(CatalogError::Damaged(_))), "{read:?}");
    assert_eq!(fixture.catalog.verify().await.unwrap().len(), 1);
    let wrong = NewPlugin {
        plugin: "filter".to_owned(),
        version: None,
        bytes: b"three"[..].into(),
        digest: digest(b"four"),
        source: PluginSource::Upload,
        imports: Vec::new(),
        signed_by: None,
        config_schema: None,
    };
    assert!(matches!(fixture.catalog.accept_plugin(wrong, &alice()).await, Err(CatalogError::Damaged(_))));
}

#[tokio::test]
async fn a_catalog_of_a_newer_version_is_refused() {
    let fixture = Fixture::new().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', TRUE, x'00', 0)",
    )
    .execute(&fixture.catalog.pool)
    .await
    .unwrap();
    fixture.catalog.close().await;
    let opened = Catalog::open(&fixture.dir.path().join("catalog.db"), fixture.clock.clone()).await;
    assert!(matches!(opened, Err(CatalogError::Newer { found: 9999, known: 7 })), "{opened:?}");
}

#[tokio::test]
async fn a_file_that_is_no_catalog_is_damage_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.db");
    let text = "not a database, and long enough to look like a page's worth of one. ".repeat(100);
    std::fs::write(&path, &text).unwrap();
    let opened = Catalog::open(&path, Clock::fixed(Timestamp(0))).await;
    assert!(matches!(opened, Err(CatalogError::Damaged(_))), "{opened:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn a_column_that_was_never_written_so_is_damage() {
    let fixture = Fixture::new().await;
    fixture.topic("orders", TopicKind::PubSub).await;
    sqlx::query("UPDATE topics SET type = 'Stream'").execute(&fixture.catalog.pool).await.unwrap();
    assert!(matches!(fixture.catalog.topics().await, Err(CatalogError::Damaged(_))));
}

#[tokio::test]
async fn every_change_is_told_without_secrets() {
    let fixture = Fixture::new().await;
    let topic = fixture.topic("orders", TopicKind::PubSub).await;
    let subscription = fixture.subscription(&topic, "billing").await.unwrap();
    fixture.catalog.update_subscription(&subscription, None, &alice()).await.unwrap();
    let rotated = Secret::new("whsec_second".to_owned());
    fixture.catalog.rotate_secret(subscription.id, rotated, Timestamp(5), &alice()).await.unwrap();
    fixture.catalog.set_pause(subscription.id, None, &alice()).await.unwrap();
    fixture.revise(Scope::Topic(topic.id), None).await.unwrap();
    fixture.accept(None, b"one").await.unwrap();
    fixture.register("1", "{}").await.unwrap();
    fixture.catalog.delete_subscription(subscription.id, &alice()).await.unwrap();
    fixture.catalog.delete_topic(topic.id, &alice()).await.unwrap();
    let purge = Event {
        event_type: "topic.purged",
        entity_type: "topic",
        entity_id: "orders",
        details: serde_json::json!({"messages": 3}),
    };
    fixture.clock.advance(Duration::from_secs(60));
    fixture.catalog.record(purge, &Actor::system()).await.unwrap();

    let entries = fixture.audit().await;
    let events: Vec<&str> = entries.iter().rev().map(|entry| entry.event_type.as_str()).collect();
    let expected = [
        "topic.created",
        "subscription.created",
        "subscription.updated",
        "subscription.secretRotated",
        "subscription.resumed",
        "pipeline.changed",
        "plugin.accepted",
        "schema.registered",
        "subscription.deleted",
        "topic.deleted",
        "topic.purged",
    ];
    assert_eq!(events, expected);
    let text = format!("{entries:?}");
    for secret in ["whsec_", "s3cr3t", "hunter2", "t0ps3cret", "c0nf1g", "t0k3n", "pr1vate"] {
        assert!(!text.contains(secret), "{secret} is in the audit log");
    }
    let debug = format!("{:?}", subscription.settings);
    assert!(!debug.contains("t0k3n") && !debug.contains("pr1vate"), "{debug}");
    assert_eq!(entries[10].details["after"]["name"], "orders");
    assert_eq!(entries[10].trace_id, alice().trace_id);

    let find = async |filter: AuditFilter| fixture.catalog.audit_entries(&filter, 2, 0).await.unwrap();
    let (page, total) = find(AuditFilter { entity: Some("topic/orders".to_owned()), ..AuditFilter::default() }).await;
    assert_eq!((page.len(), total), (2, 4));
    let (page, _) = find(AuditFilter { user: Some("system".to_owned()), ..AuditFilter::default() }).await;
    assert_eq!(page, entries[..1]);
    let from = Some(fixture.clock.now());
    assert_eq!(find(AuditFilter { from, ..AuditFilter::default() }).await.1, 1);
    assert_eq!(fixture.catalog.trim_audit(fixture.clock.now(), 1000).await.unwrap(), 10);
    assert_eq!(fixture.audit().await.len(), 1);
}

#[tokio::test]
async fn the_audit_log_keeps_so_many_entries_however_young() {
    let fixture = Fixture::new().await;
    for number in 0..5 {
        let id = number.to_string();
        let event = Event { event_type: "x", entity_type: "x", entity_id: &id, details: serde_json::json!({}) };
        fixture.catalog.record(event, &Actor::system()).await.unwrap();
    }
    assert_eq!(fixture.catalog.trim_audit(Timestamp(0), 3).await.unwrap(), 2);
    let kept: Vec<String> = fixture.audit().await.into_iter().map(|entry| entry.entity_id).collect();
    assert_eq!(kept.len(), 3);
    assert!(!kept.contains(&"1".to_owned()) && kept.contains(&"4".to_owned()), "{kept:?}");
}

#[tokio::test]
async fn details_of_an_audit_entry_are_left_out_where_they_are_long() {
    let fixture = Fixture::new().await;
    let details = serde_json::json!({ "long": "x".repeat(65 * 1024) });
    let event = Event { event_type: "x", entity_type: "x", entity_id: "x", details };
    fixture.catalog.record(event, &Actor::system()).await.unwrap();
    assert!(fixture.audit().await[0].details["omittedBytes"].as_u64().is_some_and(|bytes| bytes > 64 * 1024));
}

#[tokio::test]
async fn a_history_keeps_its_latest_revisions() {
    let fixture = Fixture::new().await;
    let scope = Scope::Topic(fixture.topic("orders", TopicKind::Queue).await.id);
    for _ in 0..3 {
        fixture.revise(scope, None).await.unwrap();
    }
    // As if there had been many more.
    sqlx::query("UPDATE pipeline_counters SET last_revision = 1001").execute(&fixture.catalog.pool).await.unwrap();
    assert_eq!(fixture.revise(scope, None).await.unwrap().revision, 1002);
    let (kept, total) = fixture.catalog.pipeline_history(scope, 10, 0).await.unwrap();
    assert_eq!((kept.iter().map(|revision| revision.revision).collect::<Vec<_>>(), total), (vec![1002, 3], 2));
}

#[tokio::test]
async fn versions_of_a_schema_are_kept_and_the_last_one_validates() {
    let fixture = Fixture::new().await;
    fixture.register("1", "{}").await.unwrap();
    assert_eq!(fixture.register("1", "{}").await.unwrap().1, Registered::Again);
    assert!(matches!(fixture.register("1", "true").await, Err(CatalogError::Conflict(_))));
    fixture.register("2", "true").await.unwrap();
    let versions = fixture.catalog.schema_versions("orders.v1").await.unwrap();
    assert_eq!(versions.iter().map(|schema| schema.version.as_str()).collect::<Vec<_>>(), ["2", "1"]);
    let (approved, total) = fixture.catalog.schemas(Some(SchemaStatus::Approved), 10, 0).await.unwrap();
    assert_eq!((approved, total), (vec![versions[0].clone()], 1));
    assert_eq!(fixture.catalog.schemas(Some(SchemaStatus::Draft), 10, 0).await.unwrap(), (Vec::new(), 0));
}

#[cfg(unix)]
#[tokio::test]
async fn the_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let fixture = Fixture::new().await;
    fixture.topic("orders", TopicKind::Queue).await;
    for file in std::fs::read_dir(fixture.dir.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.path());
    }
}

#[tokio::test]
async fn a_closed_catalog_says_so() {
    let fixture = Fixture::new().await;
    fixture.catalog.ping().await.unwrap();
    fixture.catalog.close().await;
    fixture.catalog.close().await;
    assert!(matches!(fixture.catalog.ping().await, Err(CatalogError::Unavailable(_))));
}
