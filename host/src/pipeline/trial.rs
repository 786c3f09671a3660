//! One component as the only stage of a topic that does not exist: for its author, with no broker. Invariant: what runs is
//! the code that a broker runs, with its engine, its limits and its calls; time stands still and randomness begins with the same seed, so that the same messages get
//! the same verdicts. Never stores, sends or publishes anything.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::catalog::model::{ResolvedStage, Scope, StageSpec, SubscriptionId};
use crate::clock::{Clock, Timestamp};
use crate::message::{TopicId, TopicName};
use crate::telemetry::Stopwatch;

pub use super::component::Loaded;
use super::component::{self, Components};
use super::draft::{Draft, Processed, Verdict};
use super::engine::{self, Ticker};
use super::figures::FigureFamilies;
use super::instance::StartError;
use super::limits::{CALL_MESSAGES_MAX, RUN_GROWTH_BYTES_MAX};
use super::metrics::Metrics;
use super::plugin_log::PluginLog;
use super::revision::Revision;
use super::rollout::Step;
use super::secrets::{self, Secrets};
use super::stage::{Machine, Rehearsal, Stage};
use super::{LogLine, batch, validate};

/// Components whose machine code is kept for the next time: a dozen plugins that somebody works on.
const CODE_FILES_MAX: usize = 24;
/// How long the same messages are run again and again to tell what one of them costs.
const MEASURE: Duration = Duration::from_millis(20);
/// How often at most: enough for a mean of what takes a few microseconds.
const MEASURE_ROUNDS_MAX: u32 = 2000;

/// What a stage is given beside its messages.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The plugin's name.
    pub plugin: String,
    /// Handed to `configure`.
    pub config: Value,
    /// The messages' topic.
    pub topic: TopicName,
    /// Fields of a stage as a pipeline has them: `timeoutMs`, `memoryMb`, `emitTo`.
    pub stage: serde_json::Map<String, Value>,
    /// The schemas that are registered, by their ids.
    pub schemas: BTreeMap<String, String>,
    /// Whether it is a subscription's stage.
    pub outbound: bool,
    /// The topic's `maxMessageSize`.
    pub payload_bytes_max: u64,
}

/// What became of the messages.
#[derive(Debug)]
pub struct Tried {
    /// One per message, in order.
    pub processed: Vec<Processed>,
    /// What the plugin said.
    pub log: Vec<LogLine>,
    /// To make and configure the instance.
    pub start: Duration,
    /// Per message, once warm; none if a message failed, since a failure takes as long as it may.
    pub each: Option<Duration>,
    /// Bytes of guest memory at most.
    pub memory_bytes: usize,
}

/// Why nothing became of them.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The setting is not one that a pipeline may have: where, and why.
    #[error("{}", .0.iter().map(|(at, why)| format!("{at}: {why}")).collect::<Vec<_>>().join("; "))]
    Setting(Vec<(String, String)>),
    /// The plugin says that its config is not usable.
    #[error("it refused its config: {0}")]
    Config(String),
    /// It does not start.
    #[error("it does not start: {0}")]
    Start(String),
}

/// See the module.
pub struct Trial {
    components: Components,
    machine: Arc<Machine>,
    code: PathBuf,
}

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trial").field("code", &self.code).finish_non_exhaustive()
    }
}

impl Trial {
    /// With machine code kept in `code`, and the time of the stage's clock.
    ///
    /// # Errors
    /// When the directory can't be made, or the system refuses the engine what it needs.
    pub fn open(code: PathBuf, now: Timestamp) -> Result<Trial, String> {
        let registry = prometheus::Registry::new();
        let metrics = Metrics::new(&registry).map_err(|error| error.to_string())?;
        let figures = FigureFamilies::new(&registry).map_err(|error| error.to_string())?;
        let engine = engine::running().map_err(|error| format!("{error:#}"))?;
        let ticker = Arc::new(Ticker::start(&engine).map_err(|error| error.to_string())?);
        let components = Components::open(engine, code.clone(), metrics.clone())?;
        let secrets = Secrets::in_dir(None);
        let machine = Machine::new(ticker, Clock::fixed(now), (metrics, figures), None, secrets);
        let machine = Arc::new(machine.rehearsing(Rehearsal::default()));
        Ok(Trial { components, machine, code })
    }

    /// Checks and compiles a component, or finds what was compiled before.
    ///
    /// # Errors
    /// Why no broker of this release would take it.
    pub async fn load(&self, bytes: Bytes) -> Result<Arc<Loaded>, component::ComponentError> {
        let digest = component::digest(&bytes);
        let loaded = self.components.load(&digest, bytes).await;
        let kept = self.code.clone();
        // What can't be removed costs room and nothing else.
        let _ = tokio::task::spawn_blocking(move || forget_oldest(&kept)).await;
        loaded
    }

    /// Holds the config against the component's own schema, as a broker does before the plugin sees it. One that names a
    /// secret is not: there are none here, which is said when it starts.
    ///
    /// # Errors
    /// [`TrialError::Config`], with a pointer to each fault.
    pub fn check_config(loaded: &Loaded, setting: &Setting) -> Result<(), TrialError> {
        let Some(schema) = loaded.config_schema.as_ref() else { return Ok(()) };
        if !secrets::names(&setting.plugin, &setting.config).is_empty() {
            return Ok(());
        }
        let faults = schema.faults(&setting.config);
        if faults.is_empty() {
            return Ok(());
        }
        let said: Vec<String> = faults.into_iter().map(|(at, why)| format!("/config{at}: {why}")).collect();
        Err(TrialError::Config(said.join("; ")))
    }

    /// Runs `drafts` through the component as one batch. Blocks, and wants a runtime that is not busy with the caller.
    ///
    /// # Errors
    /// See [`TrialError`].
    pub fn run(&self, loaded: &Arc<Loaded>, setting: &Setting, drafts: Vec<Draft>) -> Result<Tried, TrialError> {
        let (scope, spec) = checked(setting)?;
        let log = PluginLog::new(setting.plugin.as_str().into(), self.machine.clock.clone());
        let (version, digest) = ("trial".to_owned(), loaded.digest.clone());
        let resolved = ResolvedStage { spec, version, digest, implicit: false, rollout: None };
        let stage = Stage::new(resolved, Ok(Arc::clone(loaded)), Arc::clone(&log), &self.machine);
        stage.take_schemas(setting.schemas.iter());
        let watch = Stopwatch::start();
        let instance = stage.start().map_err(|error| match error {
            StartError::Config(why) => TrialError::Config(why),
            StartError::Failed(failure) => TrialError::Start(format!("{}: {}", failure.cause.as_str(), failure.detail)),
            StartError::PoolFull => TrialError::Start(super::change::POOL_FULL.to_owned()),
            StartError::System(why) => TrialError::Start(why),
        })?;
        let start = watch.elapsed();
        stage.put_back(instance);
        let steps = vec![Step { stage: Arc::clone(&stage), candidate: None }];
        let revision = Revision { number: 1, record: None, steps, machine: Arc::clone(&self.machine) };
        let pass = |drafts: Vec<Draft>| run_all(&revision, scope, setting, drafts, &self.machine.clock);
        let processed = pass(drafts.clone());
        let said = log.recent();
        let well = processed.iter().all(|processed| !matches!(processed.verdict, Verdict::Fault(_)));
        let each = (well && !drafts.is_empty()).then(|| measure(&drafts, pass));
        Ok(Tried { processed, log: said, start, each, memory_bytes: stage.memory_peak() })
    }
}

/// The stage and its scope, once a pipeline might have it.
fn checked(setting: &Setting) -> Result<(Scope, StageSpec), TrialError> {
    let scope = if setting.outbound {
        Scope::Subscription(TopicId(1), SubscriptionId(uuid::Uuid::nil()))
    } else {
        Scope::Topic(TopicId(1))
    };
    let mut fields = setting.stage.clone();
    fields.extend([
        ("name".to_owned(), json!("trial")),
        ("plugin".to_owned(), json!(setting.plugin)),
        ("config".to_owned(), setting.config.clone()),
    ]);
    let spec: StageSpec = serde_json::from_value(Value::Object(fields))
        .map_err(|error| TrialError::Setting(vec![("/".to_owned(), error.to_string())]))?;
    let faults = validate::faults(scope, std::slice::from_ref(&spec));
    if faults.is_empty() {
        return Ok((scope, spec));
    }
    let within = |(at, why): (String, String)| (at.trim_start_matches("/stages/0").to_owned(), why);
    Err(TrialError::Setting(faults.into_iter().map(within).collect()))
}

/// In batches of the size that a broker makes.
fn run_all(revision: &Revision, scope: Scope, setting: &Setting, drafts: Vec<Draft>, clock: &Clock) -> Vec<Processed> {
    let mut all = Vec::new();
    let mut growable = RUN_GROWTH_BYTES_MAX;
    let mut drafts = drafts;
    while !drafts.is_empty() {
        let rest = drafts.split_off(drafts.len().min(revision.batch_messages_max().min(CALL_MESSAGES_MAX)));
        let some = std::mem::replace(&mut drafts, rest);
        let payload_bytes_max = setting.payload_bytes_max;
        let of = batch::Of { scope, topic: &setting.topic, payload_bytes_max, growable, kv: None };
        let (processed, grown) = batch::run(revision, of, some, clock);
        growable = growable.saturating_sub(grown);
        // Usually there is one.
        if all.is_empty() { all = processed } else { all.extend(processed) }
    }
    all
}

fn measure(drafts: &[Draft], pass: impl Fn(Vec<Draft>) -> Vec<Processed>) -> Duration {
    let (mut spent, mut rounds) = (Duration::ZERO, 0);
    while spent < MEASURE && rounds < MEASURE_ROUNDS_MAX {
        let again = drafts.to_vec();
        let watch = Stopwatch::start();
        let processed = pass(again);
        spent += watch.elapsed();
        drop(processed);
        rounds += 1;
    }
    let messages = rounds.saturating_mul(u32::try_from(drafts.len()).unwrap_or(u32::MAX));
    spent / messages.max(1)
}

/// Keeps the machine code that was made last.
fn forget_oldest(dir: &std::path::Path) -> std::io::Result<()> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        files.push((entry.metadata()?.modified()?, entry.path()));
    }
    files.sort_by(|a, b| b.cmp(a));
    for (_, path) in files.into_iter().skip(CODE_FILES_MAX) {
        // Somebody else may be at it, too.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{draft, guest};

    fn setting(stage: Value) -> Setting {
        let Value::Object(stage) = stage else { panic!("an object") };
        Setting {
            plugin: "edits".to_owned(),
            config: json!({}),
            topic: "orders".parse().unwrap(),
            stage,
            schemas: BTreeMap::new(),
            outbound: false,
            payload_bytes_max: 1 << 20,
        }
    }

    async fn tried(guest_name: &str, setting: Setting, drafts: Vec<Draft>) -> Result<Tried, TrialError> {
        let dir = tempfile::tempdir().unwrap();
        let trial = Trial::open(dir.path().to_owned(), Timestamp(0)).unwrap();
        let loaded = trial.load(guest(guest_name)).await.unwrap();
        tokio::task::spawn_blocking(move || trial.run(&loaded, &setting, drafts)).await.unwrap()
    }

    #[tokio::test]
    async fn a_stage_runs_with_the_limits_of_a_broker() {
        let drafts = vec![draft("{}", &[("do", "nothing")]), draft("{}", &[("do", "spin")])];
        let tried = tried("hostile", setting(json!({"timeoutMs": 20})), drafts).await.unwrap();
        assert_eq!(tried.processed[0].verdict, Verdict::Pass);
        let Verdict::Fault(fault) = &tried.processed[1].verdict else { panic!("{:?}", tried.processed[1].verdict) };
        assert_eq!(fault.cause.as_str(), "TIMED_OUT");
        assert!(tried.memory_bytes >= 64 * 1024 && tried.each.is_none());
    }

    #[tokio::test]
    async fn a_config_is_held_against_the_components_schema_before_the_plugin_sees_it() {
        let dir = tempfile::tempdir().unwrap();
        let trial = Trial::open(dir.path().to_owned(), Timestamp(0)).unwrap();
        let schema = br#"{"required": ["n"], "properties": {"n": {"type": "integer"}}}"#;
        let name = super::super::custom_section::CONFIG_SCHEMA;
        let mut bytes = guest("edits").to_vec();
        let section = [&[name.len() as u8][..], name.as_bytes(), &schema[..]].concat();
        // Both lengths have one byte in LEB128: they are below 128.
        assert!(section.len() < 128);
        bytes.extend([&[0, section.len() as u8][..], &section[..]].concat());
        let loaded = trial.load(bytes.into()).await.unwrap();
        let with = |config: Value| Setting { config, ..setting(json!({})) };
        let (missing, wrong) = (with(json!({})), with(json!({"n": "x"})));
        let [missing, wrong] =
            [missing, wrong].map(|setting| Trial::check_config(&loaded, &setting).unwrap_err().to_string());
        Trial::check_config(&loaded, &with(json!({"n": 1}))).unwrap();
        Trial::check_config(&loaded, &with(json!({"n": {"$secret": "number"}}))).unwrap();
        assert!(missing.contains("/config: ") && missing.contains("\"n\""), "{missing}");
        assert!(wrong.contains("/config/n: "), "{wrong}");
    }

    #[tokio::test]
    async fn what_a_pipeline_could_not_have_is_refused_by_field() {
        let refused = tried("hostile", setting(json!({"memoryMb": 4096})), vec![]).await.unwrap_err();
        assert!(refused.to_string().starts_with("/memoryMb: "), "{refused}");
    }

    #[test]
    fn only_so_much_machine_code_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..CODE_FILES_MAX + 3 {
            std::fs::write(dir.path().join(number.to_string()), "").unwrap();
        }
        forget_oldest(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), CODE_FILES_MAX);
    }
}
