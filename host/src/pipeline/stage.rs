//! A stage that runs: a plugin version, its config and limits, and the instances made of them. Invariant: an instance is
//! used by one batch at a time and only ever with this stage's config. Never reads another stage's state.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use crate::catalog::Catalog;
use crate::catalog::model::ResolvedStage;
use crate::clock::{Clock, Timestamp};
use crate::message::TopicName;
use crate::store::MessageStore;
use crate::telemetry::Stopwatch;

use super::asked_schemas::AskedSchemas;
use super::breaker::Breaker;
use super::component::Loaded;
use super::draft::FaultCause;
use super::engine::Ticker;
use super::figures::{FigureFamilies, Figures};
use super::instance::{Failure, Instance, Recipe, StartError};
use super::kv::{Before, Scratch};
use super::limits::CALL_MESSAGES_MAX;
use super::metrics::{Metrics, PluginMetrics};
use super::plugin_log::{PluginLog, Speaker, StageLog};
use super::secrets::{self, Mask, Secrets};
use super::world::keeps_values;

/// What every stage needs of the broker.
pub struct Machine {
    /// Raises the epoch.
    pub ticker: Arc<Ticker>,
    /// What time it is.
    pub clock: Clock,
    /// For `/metrics`.
    pub metrics: Metrics,
    /// What configs may name.
    pub secrets: Secrets,
    /// What there is.
    pub catalog: Option<Catalog>,
    /// Where plugins' values are kept, once there is a store.
    pub store: OnceLock<Arc<dyn MessageStore>>,
    /// Plugins' own figures.
    pub figures: FigureFamilies,
    /// Set where stages are tried on messages of the past.
    pub rehearsal: Option<Rehearsal>,
    /// By plugin: its versions share them. As many as there are plugins.
    of_plugins: Mutex<HashMap<Arc<str>, Arc<Figures>>>,
    /// Stages whose idle instances can be dropped when the pool is full, or with time. Those gone are swept out.
    stages: Mutex<Vec<std::sync::Weak<Stage>>>,
}

/// What stages have in the place of what changes from one run to the next.
#[derive(Debug, Clone, Default)]
pub struct Rehearsal {
    /// What their randomness follows from.
    pub seed: u64,
    /// Plugins' values, in the place of those in the store.
    pub values: Option<Arc<Scratch>>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("ticker", &self.ticker).finish_non_exhaustive()
    }
}

impl Machine {
    /// With no stages yet.
    #[must_use]
    pub fn new(
        ticker: Arc<Ticker>,
        clock: Clock,
        (metrics, figures): (Metrics, FigureFamilies),
        catalog: Option<Catalog>,
        secrets: Secrets,
    ) -> Machine {
        let (store, of_plugins, stages) = (OnceLock::new(), Mutex::default(), Mutex::default());
        Machine { ticker, clock, metrics, secrets, catalog, store, figures, rehearsal: None, of_plugins, stages }
    }

    /// One whose stages do the same each time: what they draw follows from the seed, and no breaker opens.
    #[must_use]
    pub fn rehearsing(self, rehearsal: Rehearsal) -> Machine {
        Machine { rehearsal: Some(rehearsal), ..self }
    }

    /// Plugins' values as they are before a request.
    #[must_use]
    pub fn values(&self) -> Before {
        match self.rehearsal.as_ref().and_then(|rehearsal| rehearsal.values.clone()) {
            Some(scratch) => Before::Scratch(scratch),
            None => self.store.get().map_or(Before::Nothing, |store| Before::Store(Arc::clone(store))),
        }
    }

    /// The own figures of `plugin`.
    fn figures_of(&self, plugin: &str, log: &Arc<PluginLog>) -> Arc<Figures> {
        let mut of_plugins = self.of_plugins.lock();
        if let Some(known) = of_plugins.get(plugin) {
            return Arc::clone(known);
        }
        let plugin: Arc<str> = plugin.into();
        let figures = Figures::new(Arc::clone(&plugin), self.figures.clone(), Arc::clone(log));
        of_plugins.insert(plugin, Arc::clone(&figures));
        figures
    }

    /// Drops the instances that have not run since `before`; with the end of time, all that are idle.
    pub fn drop_idle(&self, before: Timestamp) {
        let stages: Vec<Arc<Stage>> = {
            let mut stages = self.stages.lock();
            stages.retain(|stage| stage.strong_count() > 0);
            stages.iter().filter_map(std::sync::Weak::upgrade).collect()
        };
        for stage in stages {
            stage.drop_idle(before);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Stage {
    /// As the catalog has it.
    pub resolved: ResolvedStage,
    /// Its name.
    pub name: Arc<str>,
    /// Its plugin.
    pub plugin: Arc<str>,
    /// The plugin's version.
    pub version: Arc<str>,
    /// CPU time per call.
    pub timeout: Duration,
    /// Where it may emit to.
    pub emit_to: Arc<[TopicName]>,
    /// Opens after repeated faults.
    pub breaker: Breaker,
    /// For `/metrics`.
    pub metrics: Arc<PluginMetrics>,
    /// Messages per call; fewer after a call took too long though each of its messages is fine.
    call_messages: AtomicUsize,
    /// `Err`: the plugin could not be loaded, and every message is a fault.
    recipe: Result<Recipe, Arc<str>>,
    /// Whether its plugin keeps values.
    pub keeps_values: bool,
    /// What it says, and what is said of it.
    pub log: StageLog,
    idle: Mutex<Vec<Instance>>,
    /// Bytes of the largest instance that there was.
    memory_peak: AtomicUsize,
    machine: Arc<Machine>,
}

impl Stage {
    /// A stage without instances.
    #[must_use]
    pub fn new(
        resolved: ResolvedStage,
        loaded: Result<Arc<Loaded>, Arc<str>>,
        log: Arc<PluginLog>,
        machine: &Arc<Machine>,
    ) -> Arc<Stage> {
        let spec = &resolved.spec;
        let figures = machine.figures_of(&spec.plugin, &log);
        let metrics = machine.metrics.of(&spec.plugin, &resolved.version);
        if let Some(took) = loaded.as_ref().ok().and_then(|loaded| loaded.compiled_in) {
            metrics.compiled_in(took);
        }
        let from = Speaker {
            version: resolved.version.as_str().into(),
            stage: spec.name.as_str().into(),
            topic: OnceLock::new(),
        };
        let log = StageLog::new(log, from);
        let keeps_values = loaded.as_ref().is_ok_and(|loaded| keeps_values(&loaded.imports));
        let recipe = loaded.map(|loaded| Recipe {
            loaded,
            config: spec.config.to_string().into(),
            memory_bytes: spec.memory_mb as usize * 1024 * 1024,
            log: log.clone(),
            clock: machine.clock.clone(),
            seed: machine.rehearsal.as_ref().map(|rehearsal| rehearsal.seed),
            figures,
            schemas: AskedSchemas::new(machine.catalog.clone()),
        });
        let stage = Arc::new(Stage {
            name: spec.name.as_str().into(),
            plugin: spec.plugin.as_str().into(),
            version: resolved.version.as_str().into(),
            timeout: Duration::from_millis(spec.timeout_ms.into()),
            // Names that are no topic names could not be set; were there one, it could not be emitted to.
            emit_to: spec.emit_to.iter().filter_map(|name| name.parse().ok()).collect(),
            breaker: if machine.rehearsal.is_some() { Breaker::never() } else { Breaker::default() },
            metrics,
            call_messages: AtomicUsize::new(CALL_MESSAGES_MAX),
            recipe,
            keeps_values,
            log,
            idle: Mutex::default(),
            memory_peak: AtomicUsize::new(0),
            machine: Arc::clone(machine),
            resolved,
        });
        machine.stages.lock().push(Arc::downgrade(&stage));
        stage
    }

    /// An instance: one that is idle, or a new one.
    ///
    /// # Errors
    /// The failure that every message of the batch suffers.
    pub fn instance(&self) -> Result<Instance, Failure> {
        // The one used last is the warmest, and those at the bottom grow old enough to be dropped.
        let idle = self.idle.lock().pop();
        match idle {
            Some(instance) => Ok(instance),
            None => self.start().map_err(|error| match error {
                StartError::Failed(failure) => failure,
                StartError::Config(why) => {
                    Failure { cause: FaultCause::Failed, detail: format!("it refused its config: {why}").into() }
                }
                StartError::PoolFull => Failure { cause: FaultCause::Failed, detail: super::change::POOL_FULL.into() },
                StartError::System(why) => Failure { cause: FaultCause::Failed, detail: why.into() },
            }),
        }
    }

    /// Makes an instance.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(&self) -> Result<Instance, StartError> {
        let recipe = match &self.recipe {
            Ok(recipe) => recipe,
            Err(why) => {
                return Err(StartError::Failed(Failure { cause: FaultCause::Failed, detail: Arc::clone(why) }));
            }
        };
        let watch = Stopwatch::start();
        let (recipe, mask) = self.with_secrets(recipe)?;
        let started = match Instance::start(&recipe, &self.machine.ticker) {
            Err(StartError::PoolFull) => {
                self.machine.drop_idle(Timestamp::MAX);
                Instance::start(&recipe, &self.machine.ticker)
            }
            started => started,
        };
        let mut instance = started.map_err(|error| error.without(&mask))?;
        instance.mask = mask;
        self.metrics.cold_start_seconds.observe(watch.elapsed().as_secs_f64());
        self.metrics.cold_starts.inc();
        self.metrics.instances.inc();
        Ok(instance)
    }

    /// The recipe with the secrets that the config names, as they are now: an instance that is made after one was replaced
    /// gets the new one. And what must not be said of them.
    fn with_secrets<'r>(&self, recipe: &'r Recipe) -> Result<(Cow<'r, Recipe>, Mask), StartError> {
        let config = &self.resolved.spec.config;
        if !secrets::may_name(&self.resolved) || secrets::names(&self.plugin, config).is_empty() {
            return Ok((Cow::Borrowed(recipe), Mask::default()));
        }
        let (config, mask) = self.machine.secrets.resolve(config).map_err(|faults| {
            let said: Vec<String> = faults.into_iter().map(|(at, why)| format!("{at}: {why}")).collect();
            StartError::Config(said.join("; "))
        })?;
        Ok((Cow::Owned(Recipe { config: config.to_string().into(), ..recipe.clone() }), mask))
    }

    /// Gives back an instance that ended its batch well.
    pub fn put_back(&self, mut instance: Instance) {
        self.metrics.holds(instance.memory_bytes());
        self.memory_peak.fetch_max(instance.memory_bytes(), Ordering::Relaxed);
        if instance.is_bloated() {
            return self.dispose(instance);
        }
        instance.last_used = self.machine.clock.now();
        self.idle.lock().push(instance);
    }

    /// Gives up an instance.
    pub fn dispose(&self, instance: Instance) {
        self.metrics.holds(instance.memory_bytes());
        self.memory_peak.fetch_max(instance.memory_bytes(), Ordering::Relaxed);
        drop(instance);
        self.metrics.instances.dec();
    }

    /// Whether its plugin has asked for the schema `id`, and its definition is another one `now`.
    #[must_use]
    pub fn is_outdated(&self, id: &str, now: Option<&str>) -> bool {
        self.recipe.as_ref().is_ok_and(|recipe| recipe.schemas.is_outdated(id, now))
    }

    /// Whether its plugin has asked for schemas.
    #[must_use]
    pub fn asks_for_schemas(&self) -> bool {
        self.recipe.as_ref().is_ok_and(|recipe| !recipe.schemas.is_empty())
    }

    /// Takes these, by their ids, for what is registered.
    pub fn take_schemas<'s>(&self, schemas: impl Iterator<Item = (&'s String, &'s String)>) {
        if let Ok(recipe) = &self.recipe {
            schemas.for_each(|(id, definition)| recipe.schemas.take(id, definition));
        }
    }

    /// Messages per call now.
    #[must_use]
    pub fn call_messages(&self) -> usize {
        self.call_messages.load(Ordering::Relaxed)
    }

    /// A call of `messages` timed out, but each of them alone is fine: fewer from now on.
    pub fn ask_less(&self, messages: usize) {
        self.call_messages.store((messages / 4).max(1), Ordering::Relaxed);
    }

    /// A call with all the messages allowed ended well: a few more from now on.
    pub fn ask_more(&self, messages: usize) {
        let now = self.call_messages();
        if now < CALL_MESSAGES_MAX && messages >= now {
            self.call_messages.store((now + 1).min(CALL_MESSAGES_MAX), Ordering::Relaxed);
        }
    }

    /// Bytes of guest memory that the largest instance had when it was given back.
    #[must_use]
    pub fn memory_peak(&self) -> usize {
        self.memory_peak.load(Ordering::Relaxed)
    }

    /// Instances that no batch has at the moment.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.idle.lock().len()
    }

    fn drop_idle(&self, before: Timestamp) {
        let dropped: Vec<Instance> = {
            let mut idle = self.idle.lock();
            let (old, fresh) = std::mem::take(&mut *idle).into_iter().partition(|instance| instance.last_used < before);
            *idle = fresh;
            old
        };
        for instance in dropped {
            self.dispose(instance);
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let idle = self.idle.get_mut().len();
        self.metrics.instances.sub(i64::try_from(idle).unwrap_or(i64::MAX));
    }
}
