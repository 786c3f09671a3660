//! Pipelines: the stages that a topic's messages pass before they are stored, and a subscription's on their way out.
//! Invariant: a batch runs wholly on one revision; a topic's work never waits inside another topic's; a plugin can hurt
//! neither the process nor its neighbours. Never stores a message, and never decides an HTTP status.

mod accept;
mod asked_schemas;
mod backtrace;
mod batch;
mod bindings;
mod breaker;
mod builtin;
mod call;
mod change;
mod compiler;
mod component;
mod config_schema;
pub mod custom_section;
mod diff;
mod disk;
pub mod draft;
mod dry_run;
mod engine;
mod figures;
mod follow;
mod followers;
mod host_powers;
mod host_state;
mod in_turn;
pub mod inspect;
mod instance;
pub mod kv;
pub mod kv_sweep;
mod limits;
mod metrics;
mod named_schema;
mod plugin_log;
mod powers;
mod queue;
mod quotas;
mod registry;
mod revision;
mod rollback;
pub mod rollout;
mod sandbox;
mod secrets;
mod shares;
mod signature;
mod stage;
#[cfg(test)]
pub(crate) mod tests;
pub mod trial;
mod validate;
mod verdicts;
mod worker;
mod world;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::catalog::model::{PluginSource, Scope, Topic};
use crate::catalog::{Catalog, CatalogError};
use crate::clock::Clock;
use crate::config::Plugins;
use crate::fleet::Fleet;
use crate::store::MessageStore;

use self::component::{Components, Loaded};
use self::draft::{Draft, Processed, Trail, Verdict};
use self::engine::Ticker;
use self::figures::FigureFamilies;
use self::follow::Lagging;
use self::kv::KvRun;
use self::metrics::Metrics;
use self::queue::QueueLimits;
use self::quotas::QuotaMetrics;
use self::registry::PluginRegistry;
use self::revision::Revision;
use self::rollout::{RolloutMetrics, Rollouts};
use self::secrets::Secrets;
use self::shares::Shares;
use self::signature::TrustedKeys;
use self::stage::{Machine, Stage};
use self::worker::Pool;

pub use self::component::ComponentState;
pub use self::diff::Difference;
pub use self::dry_run::{DryRun, DryRunReport, DryRunSpec, Outcomes};
pub use self::followers::{Heard, Reaches};
pub use self::limits::{CONFIG_BYTES_MAX as STAGE_CONFIG_BYTES_MAX, MEMORY_MB_MAX as STAGE_MEMORY_MB_MAX, give_way};
pub use self::limits::{KV_RERUNS_MAX, RUN_GROWTH_BYTES_MAX};
pub use self::plugin_log::{Following as FollowingLines, LogLevel, LogLine};
pub use self::powers::{POWERS, powers_of};
pub use self::registry::{Binding, Lag, PluginProblem, PluginView, VersionView, is_label, is_plugin_name};
pub use self::secrets::names as secret_names;
pub use self::signature::{SIGNATURE_BYTES, TrustedKeys as PluginKeys, parse as parse_signature};
pub use self::verdicts::{Following as FollowingVerdicts, Told as ToldVerdict};

/// Where machine code is kept, in the data directory.
const CACHE_DIR: &str = "plugin-cache";

/// What pipelines are told at start.
#[derive(Debug, Clone)]
pub struct PipelineOptions {
    /// The section of the configuration.
    pub plugins: Plugins,
    /// Where machine code is kept, in its own directory.
    pub data_dir: PathBuf,
    /// Whether the built-in plugins are compiled after the start, so that the first stage that wants one need not wait.
    pub warm_up: bool,
    /// The brokers that run the same pipelines: a new revision takes effect once all have its plugins.
    pub fleet: Option<Arc<Fleet>>,
}

impl PipelineOptions {
    /// From the configuration.
    #[must_use]
    pub fn new(plugins: &Plugins, data_dir: &std::path::Path) -> PipelineOptions {
        PipelineOptions { plugins: plugins.clone(), data_dir: data_dir.to_owned(), warm_up: true, fleet: None }
    }
}

/// What a run made of its messages.
#[derive(Debug)]
pub struct Run {
    /// The revision that all of them ran on.
    pub revision: u64,
    /// One per draft, in order.
    pub processed: Vec<Processed>,
}

/// A component that someone brings.
#[derive(Debug, Clone)]
pub struct NewComponent {
    /// The plugin's name.
    pub name: String,
    /// A label for the version, if it has one.
    pub version: Option<String>,
    /// The component.
    pub bytes: Bytes,
    /// Where it came from.
    pub source: PluginSource,
    /// Ed25519 over the component's SHA-256, if it came with one.
    pub signature: Option<[u8; SIGNATURE_BYTES]>,
}

/// Why pipelines did not do it.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// Too much waits for this pipeline: later.
    #[error("the pipeline is busy: too many messages wait for its stages")]
    Overloaded,
    /// The broker is going down.
    #[error("the broker is stopping")]
    Stopping,
    /// A fault of ours.
    #[error("the pipeline failed: {0}")]
    Internal(String),
    /// Nobody's fault: the same may go later.
    #[error("{0}")]
    NotNow(String),
    /// The request is wrong: JSON Pointers into it, and what is wrong there.
    #[error("the pipeline is not valid: {}", .0.iter().map(|(at, why)| format!("{at}: {why}")).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<(String, String)>),
    /// The component is not usable: what to do about it.
    #[error("{0}")]
    Unusable(String),
    /// The component imports powers that are new to the plugin, and that nobody has allowed.
    #[error(
        "it imports what {last} of '{plugin}' has not: {list}; an Admin allows it with `sluice plugin allow {plugin} {names}` \
         (PUT /plugins/{plugin}/powers)",
        last = .in_use.as_ref().map_or_else(
            || "the last version, which was deleted,".to_owned(),
            |label| format!("the version in use ('{label}')"),
        ),
        list = .powers.join(", "), names = .powers.join(" ")
    )]
    Powers {
        /// Whose.
        plugin: String,
        /// What is `latest`; none: all versions were deleted.
        in_use: Option<String>,
        /// Which.
        powers: Vec<&'static str>,
    },
    /// Pipelines run the version.
    #[error("{} pipelines run this version: change them first", .0.len())]
    Bound(Vec<Scope>),
    /// There are as many as are kept: what to do about it.
    #[error("{0}")]
    Full(String),
    /// Its quota has no room for it: what to do about it.
    #[error("{0}")]
    Quota(String),
    /// The component is larger than allowed.
    #[error("the component has {size} bytes: at most {max} are allowed")]
    TooLarge {
        /// Its bytes.
        size: u64,
        /// `plugins.sizeMax`.
        max: u64,
    },
    /// The catalog's word: no such topic, a conflict, changed meanwhile, unavailable.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The plugin directory can't be watched.
    #[error("the plugin directory {} can't be watched: {why}", .dir.display())]
    Watch {
        /// The directory.
        dir: PathBuf,
        /// Why.
        why: String,
    },
}

impl PipelineError {
    /// Whether the same may go later with nothing done about it, so that it is worth trying again.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            PipelineError::Overloaded | PipelineError::Stopping | PipelineError::Internal(_) => true,
            PipelineError::NotNow(_) | PipelineError::Catalog(CatalogError::Unavailable(_)) => true,
            PipelineError::Invalid(_) | PipelineError::Unusable(_) | PipelineError::TooLarge { .. } => false,
            PipelineError::Full(_) | PipelineError::Quota(_) => false,
            PipelineError::Powers { .. } | PipelineError::Bound(_) => false,
            PipelineError::Catalog(_) | PipelineError::Watch { .. } => false,
        }
    }
}

/// A scope's pipeline: the revision that new batches begin on.
#[derive(Debug)]
pub struct Lane {
    /// Whose.
    pub scope: Scope,
    current: ArcSwap<Revision>,
    forgotten: AtomicBool,
    value_turns: Arc<tokio::sync::RwLock<()>>,
}

impl Lane {
    fn new(scope: Scope, revision: Revision) -> Arc<Lane> {
        let (current, forgotten) = (ArcSwap::from_pointee(revision), AtomicBool::new(false));
        Arc::new(Lane { scope, current, forgotten, value_turns: Arc::default() })
    }

    /// The revision that a batch begins on now.
    #[must_use]
    pub fn current(&self) -> Arc<Revision> {
        self.current.load_full()
    }

    fn is_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::Acquire)
    }
}

/// All pipelines of a broker, and the plugins they run.
pub struct Pipelines {
    options: PipelineOptions,
    catalog: Catalog,
    machine: Arc<Machine>,
    components: Components,
    registry: PluginRegistry,
    trusted: TrustedKeys,
    lanes: RwLock<HashMap<Scope, Arc<Lane>>>,
    pool: Pool,
    /// Changes one at a time: each reads what is resolved now, and writes what follows from it.
    changing: tokio::sync::Mutex<()>,
    lagging: Lagging,
    rollouts: Rollouts,
    quota_metrics: QuotaMetrics,
    tasks: Mutex<Vec<tokio::task::AbortHandle>>,
    /// The version of the catalog whose changes by other brokers are known here.
    taken_over: AtomicU64,
    /// Pipelines that were behind the latest versions at the last look.
    behind: Mutex<HashSet<Scope>>,
    /// Components that are ready for a revision to come.
    wanted: Mutex<Vec<Arc<Loaded>>>,
}

impl std::fmt::Debug for Pipelines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipelines").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Pipelines {
    /// Registers the built-in plugins in the catalog if their digests were never seen, loads all current revisions and
    /// starts the workers.
    ///
    /// # Errors
    /// When the catalog fails, or the system has no room for the pool, its threads or its directory.
    pub async fn open(
        options: PipelineOptions,
        catalog: Catalog,
        clock: Clock,
        registry: &prometheus::Registry,
    ) -> Result<Arc<Pipelines>, PipelineError> {
        let internal = |error: &dyn std::fmt::Display| PipelineError::Internal(error.to_string());
        let metrics = Metrics::new(registry).map_err(|error| internal(&error))?;
        let engine = engine::running().map_err(|error| internal(&format!("{error:#}")))?;
        let ticker = Arc::new(Ticker::start(&engine).map_err(|error| internal(&error))?);
        let components = Components::open(engine, options.data_dir.join(CACHE_DIR), metrics.clone())
            .map_err(|error| internal(&error))?;
        let plugins = &options.plugins;
        let workers = plugins.workers.max(1);
        let running_max = plugins.instances_per_stage_max.clamp(1, workers);
        let limits = QueueLimits { workers, running_max, waiting_max: plugins.queue_batches_max.max(1) };
        let rollouts = Rollouts::new(RolloutMetrics::new(registry).map_err(|error| internal(&error))?);
        let quota_metrics = QuotaMetrics::new(registry).map_err(|error| internal(&error))?;
        let shares = Shares::new(&plugins.quotas, &limits, &quota_metrics);
        let pool = Pool::start((limits, shares), clock.clone(), (metrics.clone(), rollouts.shadow.clone()))
            .map_err(|error| internal(&error))?;
        let trust = &options.plugins.trust;
        let trusted = TrustedKeys::read(&trust.trusted_keys).map_err(|error| internal(&error))?;
        let secrets = Secrets::in_dir(trust.secrets_dir.clone());
        let figures = FigureFamilies::new(registry).map_err(|error| internal(&error))?;
        let machine = Machine::new(ticker, clock.clone(), (metrics, figures), Some(catalog.clone()), secrets);
        let known = PluginRegistry::new(catalog.plugin_versions().await?, clock);
        let pipelines = Arc::new(Pipelines {
            options,
            catalog,
            machine: Arc::new(machine),
            components,
            registry: known,
            trusted,
            lanes: RwLock::default(),
            pool,
            changing: tokio::sync::Mutex::new(()),
            lagging: Lagging::default(),
            rollouts,
            quota_metrics,
            tasks: Mutex::default(),
            taken_over: AtomicU64::new(0),
            behind: Mutex::default(),
            wanted: Mutex::default(),
        });
        pipelines.register_builtins().await?;
        pipelines.count_quotas();
        pipelines.components.prune(&pipelines.registry.digests());
        pipelines.restore().await?;
        pipelines.start_following();
        pipelines.start_watching_rollouts();
        if pipelines.options.warm_up {
            pipelines.warm_up();
        }
        pipelines.start_idle_sweep();
        Ok(pipelines)
    }

    /// Whether messages of `scope` pass any stage.
    #[must_use]
    pub fn has_stages(&self, scope: Scope) -> bool {
        self.revision_without_stages(scope).is_none()
    }

    /// The number of the current revision if it has no stages, so that `run` need not be called: one look, so that a
    /// revision with stages cannot come between the question and the number.
    #[must_use]
    pub fn revision_without_stages(&self, scope: Scope) -> Option<u64> {
        let lanes = self.lanes.read();
        let Some(lane) = lanes.get(&scope) else { return Some(0) };
        let current = lane.current.load();
        current.steps.is_empty().then_some(current.number)
    }

    /// The number of the current revision; 0 if there never was one.
    #[must_use]
    pub fn revision(&self, scope: Scope) -> u64 {
        self.lanes.read().get(&scope).map_or(0, |lane| lane.current.load().number)
    }

    /// Runs `drafts`, all of `topic`, through the stages of `scope`: one verdict per draft, in order. What waits for the
    /// same scope at the same time is run together.
    ///
    /// # Errors
    /// [`PipelineError::Overloaded`], [`PipelineError::Stopping`], or a fault of ours.
    pub async fn run(&self, scope: Scope, topic: &Topic, drafts: Vec<Draft>) -> Result<Run, PipelineError> {
        self.run_with(scope, topic, drafts, None).await
    }

    /// As [`Pipelines::run`]; what the stages do with values is part of `kv`. Without that it is thrown away.
    ///
    /// # Errors
    /// As [`Pipelines::run`].
    pub async fn run_with(
        &self,
        scope: Scope,
        topic: &Topic,
        drafts: Vec<Draft>,
        kv: Option<KvRun>,
    ) -> Result<Run, PipelineError> {
        let lane = self.lane(scope);
        let revision = lane.as_ref().map(|lane| lane.current());
        let (Some(lane), Some(revision)) = (lane, revision) else {
            return Ok(Run { revision: 0, processed: drafts.into_iter().map(pass).collect() });
        };
        if drafts.is_empty() || revision.steps.is_empty() {
            return Ok(Run { revision: revision.number, processed: drafts.into_iter().map(pass).collect() });
        }
        let answer = self.pool.push(&lane, topic, drafts, kv)?;
        answer
            .await
            .map_err(|_| PipelineError::Internal("a worker ended without an answer; the log has the cause".to_owned()))
    }

    /// Where plugins' values are from now on. Until then a plugin that asks for one traps.
    pub fn keep_values_in(&self, store: &Arc<dyn MessageStore>) {
        // Told once, at start; who comes second changes nothing.
        let _first = self.machine.store.set(Arc::clone(store));
    }

    /// The turns of requests on a scope whose stages keep values: held together by those that try, alone by one that has
    /// met a conflict, so that it ends. None if no stage of now keeps values.
    #[must_use]
    pub fn value_turns(&self, scope: Scope) -> Option<Arc<tokio::sync::RwLock<()>>> {
        let lane = self.lane(scope)?;
        lane.current.load().keeps_values().then(|| Arc::clone(&lane.value_turns))
    }

    /// The topic or subscription is gone. What runs for it ends on its own.
    pub async fn forget(&self, scope: Scope) {
        let _one_at_a_time = self.changing.lock().await;
        let removed = self.lanes.write().remove(&scope);
        if let Some(lane) = removed {
            lane.forgotten.store(true, Ordering::Release);
            self.pool.forget(&lane);
            self.rollouts.forget(scope);
        }
    }

    /// All plugins, by name.
    #[must_use]
    pub fn plugins(&self) -> Vec<PluginView> {
        let running = self.running_stages();
        self.registry
            .all()
            .into_iter()
            .map(|(name, versions, error)| self.view(name, versions, error, &running))
            .collect()
    }

    /// How many pipelines run, how many of them stay on older versions, and of how many plugins the last file or upload was
    /// refused.
    #[must_use]
    pub fn state(&self) -> (u64, u64, u64) {
        let (lanes, lagging) = (self.lanes.read().len(), self.lagging.len());
        (lanes as u64, lagging as u64, self.registry.refused() as u64)
    }

    /// One plugin.
    #[must_use]
    pub fn plugin(&self, name: &str) -> Option<PluginView> {
        self.plugins().into_iter().find(|view| view.name == name)
    }

    /// The version that `label` (or `latest`) means.
    #[must_use]
    pub fn version(&self, name: &str, label: &str) -> Option<crate::catalog::model::PluginVersion> {
        self.registry.resolve(name, label)
    }

    /// What a plugin last said, oldest first.
    #[must_use]
    pub fn plugin_log(&self, name: &str) -> Vec<LogLine> {
        self.registry.log(name).recent()
    }

    /// What a plugin last said, oldest first, and what it says from now on about what `reaches` names.
    #[must_use]
    pub fn follow_plugin_log(&self, name: &str, reaches: Reaches) -> (Vec<LogLine>, FollowingLines) {
        self.registry.log(name).follow(reaches)
    }

    /// What the stages of a plugin make of messages from now on, on the topics that `reaches` names.
    #[must_use]
    pub fn follow_verdicts(&self, name: &str, reaches: Reaches) -> FollowingVerdicts {
        self.registry.log(name).verdicts.follow(reaches)
    }

    /// Ends what waits, then the workers. Later runs are [`PipelineError::Stopping`].
    pub async fn shutdown(&self) {
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        self.rollouts.shadow.stop();
        self.pool.stop().await;
        self.machine.drop_idle(crate::clock::Timestamp::MAX);
    }

    fn lane(&self, scope: Scope) -> Option<Arc<Lane>> {
        self.lanes.read().get(&scope).cloned()
    }

    fn running_stages(&self) -> Vec<(Scope, Arc<Stage>)> {
        let lanes: Vec<Arc<Lane>> = self.lanes.read().values().cloned().collect();
        let of =
            |lane: Arc<Lane>| lane.current().stages().map(|stage| (lane.scope, Arc::clone(stage))).collect::<Vec<_>>();
        lanes.into_iter().flat_map(of).collect()
    }

    fn view(
        &self,
        name: String,
        versions: Vec<crate::catalog::model::PluginVersion>,
        last_error: Option<PluginProblem>,
        running: &[(Scope, Arc<Stage>)],
    ) -> PluginView {
        let binding = |(scope, stage): &(Scope, Arc<Stage>)| Binding {
            scope: *scope,
            stage: stage.resolved.spec.name.clone(),
            implicit: stage.resolved.implicit,
            breaker_open: stage.breaker.is_open(),
        };
        let versions = versions.into_iter().enumerate().map(|(at, version)| {
            let runs = |stage: &Stage| *stage.plugin == version.plugin && *stage.version == version.version;
            let mut bound: Vec<Binding> = running.iter().filter(|(_, stage)| runs(stage)).map(binding).collect();
            bound.sort_by(|a, b| (a.scope, &a.stage).cmp(&(b.scope, &b.stage)));
            VersionView { latest: at == 0, state: self.components.state(&version.digest), bound, version }
        });
        let instances = usize::try_from(self.machine.metrics.instances_of(&name)).unwrap_or(0);
        let (versions, lagging) = (versions.collect(), self.lagging(&name));
        PluginView { versions, lagging, last_error, instances, name }
    }

    /// Scale to zero: instances that have not run for `plugins.idleTimeout` are dropped.
    fn start_idle_sweep(self: &Arc<Self>) {
        let (machine, idle) = (Arc::downgrade(&self.machine), self.options.plugins.idle_timeout);
        let clock = self.machine.clock.clone();
        let task = tokio::spawn(async move {
            loop {
                clock.sleep((idle / 2).max(Duration::from_secs(1))).await;
                let Some(machine) = machine.upgrade() else { return };
                machine.drop_idle(clock.now().minus(idle));
            }
        });
        self.tasks.lock().push(task.abort_handle());
    }
}

/// The version of the plugin contract that this host serves.
#[must_use]
pub fn served_version() -> String {
    world::SERVED.to_string()
}

fn pass(draft: Draft) -> Processed {
    Processed { draft, verdict: Verdict::Pass, emitted: Vec::new(), trail: Trail::new() }
}
