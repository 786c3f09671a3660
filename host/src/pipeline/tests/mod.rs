//! A broker's pipelines over a real catalog, real plugins and a clock that tests move. Invariant: each test has its own
//! directory and catalog; guests are built once. Never sleeps to let time pass.

mod changes;
mod disk;
mod dry_runs;
mod fairness;
mod first_party;
mod follow;
mod frozen;
mod hostile;
mod load;
mod machine_code;
mod rollouts;
mod spans;
mod told;
mod verdicts;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::catalog::model::{
    DeadLetterPayload, Guarantee, PluginSource, Scope, StageSpec, Storage, SubscriptionId, Topic, TopicKind,
    TopicSettings,
};
use crate::catalog::{Actor, Catalog};
use crate::clock::{Clock, Timestamp};
use crate::config::{PluginTrust, Plugins};
use crate::message::{MessageId, TopicId, TopicName};

use super::draft::{Draft, Processed, Verdict};
use super::{NewComponent, PipelineError, PipelineOptions, Pipelines};

/// Who changes things here.
pub(super) static SYSTEM: std::sync::LazyLock<Actor> = std::sync::LazyLock::new(Actor::system);

/// The compiled guest `name` of `tests/guests`.
pub(crate) fn guest(name: &str) -> Bytes {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let dir = BUILT.get_or_init(|| {
        let out = Path::new(env!("OUT_DIR"));
        let profile = out.ancestors().find(|dir| dir.ends_with("build")).and_then(Path::parent);
        let target = profile.and_then(Path::parent).expect("OUT_DIR is in a target directory").join("wasm");
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/guests/Cargo.toml");
        let mut cargo = Command::new("cargo");
        cargo.args(["build", "--release", "--locked", "--target", "wasm32-wasip2", "--manifest-path"]).arg(manifest);
        cargo.arg("--target-dir").arg(&target);
        for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WORKSPACE_WRAPPER"] {
            cargo.env_remove(name);
        }
        let built = cargo.output().expect("cargo runs");
        assert!(built.status.success(), "the guests build: {}", String::from_utf8_lossy(&built.stderr));
        target.join("wasm32-wasip2/release")
    });
    std::fs::read(dir.join(format!("{name}.wasm"))).expect("the guest was built").into()
}

/// The guest `tag` that says `version`, one digit.
pub(super) fn tag(version: u8) -> Bytes {
    let mut bytes = guest("tag").to_vec();
    let (found, wanted) = (b"tag-version-1", format!("tag-version-{version}"));
    let places: Vec<usize> = (0..bytes.len() - found.len()).filter(|at| bytes[*at..].starts_with(found)).collect();
    assert!(!places.is_empty(), "the guest holds its version");
    for at in places {
        bytes[at..at + found.len()].copy_from_slice(wanted.as_bytes());
    }
    bytes.into()
}

pub(super) struct Rig {
    pub dir: tempfile::TempDir,
    pub clock: Clock,
    pub catalog: Catalog,
    pub metrics: prometheus::Registry,
    pub pipelines: Arc<Pipelines>,
    pub topic: Topic,
}

pub(super) fn plugins(dir: &Path) -> Plugins {
    Plugins {
        dir: Some(dir.join("plugins")),
        workers: 2,
        instances_per_stage_max: 2,
        idle_timeout: Duration::from_secs(60),
        queue_batches_max: 64,
        size_max: 50 << 20,
        versions_max: 100,
        quotas: Vec::new(),
        trust: PluginTrust::default(),
    }
}

impl Rig {
    pub async fn new() -> Rig {
        Rig::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Plugins)) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("plugins")).unwrap();
        let clock = Clock::fixed(Timestamp(1_700_000_000_000));
        let catalog = Catalog::open(&dir.path().join("catalog.db"), clock.clone()).await.unwrap();
        let metrics = prometheus::Registry::new();
        let mut options = PipelineOptions {
            plugins: plugins(dir.path()),
            data_dir: dir.path().to_owned(),
            warm_up: false,
            fleet: None,
        };
        change(&mut options.plugins);
        let pipelines = Pipelines::open(options, catalog.clone(), clock.clone(), &metrics).await.unwrap();
        let mut rig = Rig { topic: topic_named("orders", 1), dir, clock, catalog, metrics, pipelines };
        rig.topic = rig.add_topic("orders").await;
        rig
    }

    /// The same data directory, as after a restart.
    pub async fn reopened(self) -> Rig {
        self.pipelines.shutdown().await;
        let metrics = prometheus::Registry::new();
        let options = PipelineOptions {
            plugins: plugins(self.dir.path()),
            data_dir: self.dir.path().to_owned(),
            warm_up: false,
            fleet: None,
        };
        let pipelines = Pipelines::open(options, self.catalog.clone(), self.clock.clone(), &metrics).await.unwrap();
        Rig { pipelines, metrics, ..self }
    }

    pub async fn add_topic(&self, name: &str) -> Topic {
        let mut topic = topic_named(name, 0);
        topic.id = self.catalog.reserve_topic_id().await.unwrap();
        let mut dead_letter = topic_named(&format!("{name}.dlq"), 0);
        dead_letter.id = self.catalog.reserve_topic_id().await.unwrap();
        topic.dead_letter = Some(dead_letter.id);
        self.catalog.insert_topic(&topic, &dead_letter, &Actor::system()).await.unwrap();
        topic
    }

    pub fn scope(&self) -> Scope {
        Scope::Topic(self.topic.id)
    }

    pub async fn accept(
        &self,
        name: &str,
        bytes: Bytes,
    ) -> Result<crate::catalog::model::PluginVersion, PipelineError> {
        let new =
            NewComponent { name: name.to_owned(), version: None, bytes, source: PluginSource::Upload, signature: None };
        self.pipelines.accept(new, &Actor::system()).await.map(|(version, _)| version)
    }

    /// One stage of the guest `name`, which is uploaded first.
    pub async fn with_stage(&self, name: &str, change: impl FnOnce(&mut StageSpec)) {
        self.accept(name, guest(name)).await.unwrap();
        let mut stage = stage(name, name, json!({}));
        change(&mut stage);
        self.pipelines.set(self.scope(), vec![stage], None, &Actor::system()).await.unwrap();
    }

    /// Messages enough for the scope to be known as quick: what comes next is run in whole batches.
    pub async fn warmed(&self) {
        assert!(self.obey(&["nothing"; 256]).await.iter().all(|processed| processed.verdict == Verdict::Pass));
    }

    pub async fn run(&self, drafts: Vec<Draft>) -> Vec<Processed> {
        self.pipelines.run(self.scope(), &self.topic, drafts).await.unwrap().processed
    }

    /// Messages that tell the guest `hostile` what to do.
    pub async fn obey(&self, whats: &[&str]) -> Vec<Processed> {
        self.run(whats.iter().map(|what| draft("{}", &[("do", what)])).collect()).await
    }

    /// The value of a metric, over all label values that contain `label`.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.metrics.gather();
        let family = families.iter().find(|family| family.name() == name);
        let of = |metric: &prometheus::proto::Metric| {
            let labelled = label.is_empty() || metric.get_label().iter().any(|pair| pair.value() == label);
            let value = metric.get_counter().get_value() + metric.get_gauge().get_value();
            if labelled { value + metric.get_histogram().get_sample_count() as f64 } else { 0.0 }
        };
        family.map_or(0.0, |family| family.get_metric().iter().map(of).sum())
    }
}

/// Lets every row that `condition` describes be refused by the catalog's `table`, as by a disk that is full.
pub(super) async fn broken(rig: &Rig, table: &str, condition: &str) {
    let trigger = format!(
        "CREATE TRIGGER broken_{table} BEFORE INSERT ON {table} WHEN {condition} BEGIN SELECT RAISE(ABORT, 'full'); END"
    );
    execute(rig, trigger).await;
}

/// Undoes [`broken`].
pub(super) async fn mended(rig: &Rig, table: &str) {
    execute(rig, format!("DROP TRIGGER broken_{table}")).await;
}

async fn execute(rig: &Rig, statement: String) {
    let file = format!("sqlite://{}", rig.dir.path().join("catalog.db").display());
    let pool = sqlx::SqlitePool::connect(&file).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&pool).await.unwrap();
    pool.close().await;
}

pub(super) fn subscription_scope(topic: TopicId) -> Scope {
    Scope::Subscription(topic, SubscriptionId(uuid::Uuid::from_u128(7)))
}

/// Its time is ample: what time allows is set by those tests that are about it, and no slow machine decides the others.
/// With more, a batch would be of a few messages alone: it is sized to end within seconds in any case.
pub(crate) fn stage(name: &str, plugin: &str, config: Value) -> StageSpec {
    serde_json::from_value(json!({ "name": name, "plugin": plugin, "config": config, "timeoutMs": 1000 })).unwrap()
}

pub(crate) fn draft(payload: &str, headers: &[(&str, &str)]) -> Draft {
    Draft {
        id: MessageId::new(Timestamp(1_700_000_000_000), TopicId(1), 0, 1),
        published_at: Timestamp(1_700_000_000_000),
        payload: payload.to_owned().into(),
        content_type: "application/json".into(),
        schema_version: None,
        headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        key: None,
        correlation_id: None,
        priority: 0,
        attempt: 0,
        position: None,
        drawn: None,
    }
}

pub(super) fn header<'a>(processed: &'a Processed, name: &str) -> Option<&'a str> {
    processed.draft.headers.iter().find(|(known, _)| &**known == name).map(|(_, value)| &**value)
}

/// The cause and detail of a fault.
pub(super) fn fault(processed: &Processed) -> (&'static str, String) {
    match &processed.verdict {
        Verdict::Fault(fault) => (fault.cause.as_str(), fault.detail.to_string()),
        other => panic!("no fault: {other:?}"),
    }
}

fn topic_named(name: &str, id: u32) -> Topic {
    let settings = TopicSettings {
        description: String::new(),
        kind: TopicKind::PubSub,
        schema_id: None,
        guarantee: Guarantee::AtLeastOnce,
        retention: Duration::from_secs(3600),
        retention_bytes: None,
        partition_count: 1,
        max_message_size: 1 << 20,
        dedup_window: Duration::from_secs(60),
        dedup_keys_max: 1000,
        dead_letter_payload: DeadLetterPayload::Original,
        dead_letter_expired: false,
        dead_letter_threshold: None,
        capture_input: None,
        storage: Storage::Default,
    };
    let name: TopicName = name.parse().unwrap();
    let (created_at, updated_at) = (Timestamp(0), Timestamp(0));
    Topic { id: TopicId(id), name, dead_letter: None, settings, created_at, updated_at, version: 1 }
}
