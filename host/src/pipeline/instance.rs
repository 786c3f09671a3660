//! One instance of a plugin with its config. Invariant: after a trap an instance is never entered again. Never judges what
//! a failure means for a message.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::Resource;
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, UpdateDeadline};

use crate::clock::{Clock, Timestamp};

use super::asked_schemas::AskedSchemas;
use super::backtrace;
use super::bindings::Plugin;
use super::call::Call;
use super::component::Loaded;
use super::draft::FaultCause;
use super::engine::Ticker;
use super::figures::Figures;
use super::host_state::HostState;
use super::limits::{CONFIGURE_TIMEOUT, HOSTCALL_BYTES_MAX, REASON_BYTES_MAX, cut};
use super::plugin_log::StageLog;
use super::secrets::Mask;

/// A failure of the plugin, as opposed to its word on a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// In a word.
    pub cause: FaultCause,
    /// In a sentence.
    pub detail: Arc<str>,
}

/// Why there is no instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartError {
    /// All of the pool's places are taken.
    PoolFull,
    /// The system refused something that an instance needs: memory, a descriptor.
    System(String),
    /// The plugin says that its config is not usable.
    Config(String),
    /// The plugin failed.
    Failed(Failure),
}

impl Failure {
    /// The same, without what must not be said.
    #[must_use]
    pub fn without(self, mask: &Mask) -> Failure {
        if mask.is_empty() { self } else { Failure { detail: mask.hide(self.detail.to_string()).into(), ..self } }
    }
}

impl StartError {
    /// The same, without what must not be said.
    #[must_use]
    pub fn without(self, mask: &Mask) -> StartError {
        match self {
            StartError::Config(why) => StartError::Config(mask.hide(why)),
            StartError::Failed(failure) => StartError::Failed(failure.without(mask)),
            other => other,
        }
    }
}

/// What an instance is made of.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The component.
    pub loaded: Arc<Loaded>,
    /// Handed to `configure`.
    pub config: Arc<str>,
    /// Bytes that it may hold.
    pub memory_bytes: usize,
    /// Where it logs.
    pub log: StageLog,
    /// What time it is.
    pub clock: Clock,
    /// What its randomness follows from, where that is to be known.
    pub seed: Option<u64>,
    /// The plugin's own.
    pub figures: Arc<Figures>,
    /// What the stage's instances have asked for.
    pub schemas: Arc<AskedSchemas>,
}

/// An instance, configured.
pub struct Instance {
    store: Store<HostState>,
    plugin: Plugin,
    /// Bytes that it held once configured.
    baseline: usize,
    fresh: bool,
    /// When it last ran.
    pub last_used: Timestamp,
    /// What must not be said of its config.
    pub mask: Mask,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance").field("last_used", &self.last_used).finish_non_exhaustive()
    }
}

impl Instance {
    /// Makes one and configures it.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(recipe: &Recipe, ticker: &Ticker) -> Result<Instance, StartError> {
        let mut store = Store::new(recipe.loaded.pre.engine(), HostState::new(recipe));
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        store.epoch_deadline_callback(|mut context| {
            Ok(context.data_mut().cpu.tick().map_or(UpdateDeadline::Interrupt, UpdateDeadline::Continue))
        });
        let _ticking = ticker.begin();
        begin(&mut store, CONFIGURE_TIMEOUT);
        let plugin = match recipe.loaded.pre.instantiate(&mut store) {
            Ok(plugin) => plugin,
            Err(error) if error.is::<PoolConcurrencyLimitError>() => return Err(StartError::PoolFull),
            Err(error) if error.chain().any(|cause| cause.is::<std::io::Error>()) => {
                return Err(StartError::System(format!("an instance could not be made: {error:#}")));
            }
            Err(error) => return Err(StartError::Failed(failure(&store, &error))),
        };
        match plugin.sluice_plugin_stage().call_configure(&mut store, &recipe.config) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(StartError::Config(cut(error.message, REASON_BYTES_MAX))),
            Err(error) => return Err(StartError::Failed(failure(&store, &error))),
        }
        store.data_mut().schemas = None;
        let baseline = store.data().memory.used();
        Ok(Instance { store, plugin, baseline, fresh: true, last_used: recipe.clock.now(), mask: Mask::default() })
    }

    /// Hands it one window of a batch. The instance must be dropped if the failure is not [`FaultCause::Failed`]; the
    /// call comes back either way.
    pub fn process(&mut self, call: Call, timeout: Duration, ticker: &Ticker) -> (Call, Result<(), Failure>) {
        let _ticking = ticker.begin();
        begin(&mut self.store, timeout);
        self.fresh = false;
        self.store.data_mut().call = Some(call);
        let said = self.plugin.sluice_plugin_stage().call_process(&mut self.store, Resource::new_borrow(0));
        let call = self.store.data_mut().call.take().expect("only this function takes the call out");
        let said = match said {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                let message = cut(error.message, REASON_BYTES_MAX);
                Err(Failure { cause: FaultCause::Failed, detail: format!("{message} (code {})", error.code).into() })
            }
            Err(error) => Err(failure(&self.store, &error)),
        };
        (call, said.map_err(|failure| failure.without(&self.mask)))
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.store.data().memory.used()
    }

    /// Whether it has not seen a batch yet.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Whether it holds so much more than when it was configured that it is better made anew: half of what it could
    /// still take. A guest's memory never shrinks.
    #[must_use]
    pub fn is_bloated(&self) -> bool {
        let memory = &self.store.data().memory;
        memory.used() > self.baseline + (memory.limit() - self.baseline) / 2
    }
}

fn begin(store: &mut Store<HostState>, timeout: Duration) {
    store.data_mut().cpu.start(timeout);
    store.set_epoch_deadline(1);
}

/// What a trap was about. The memory's limit shows as an error of its own kind, deep recursion as a memory access.
fn failure(store: &Store<HostState>, error: &wasmtime::Error) -> Failure {
    let state = store.data();
    let (cause, what) = if state.cpu.is_exhausted() {
        (
            FaultCause::TimedOut,
            format!("it used more CPU time than the {} ms it may have", state.cpu.limit().as_millis()),
        )
    } else if state.memory.is_exceeded() {
        (FaultCause::OutOfMemory, error.root_cause().to_string())
    } else {
        (
            FaultCause::Trapped,
            error.downcast_ref::<Trap>().map_or_else(|| error.root_cause().to_string(), Trap::to_string),
        )
    };
    // Only a panic ends an instance right after it spoke; anything else there may be about another batch.
    let said = state.last_words().filter(|said| said.contains("panicked at"));
    let what = backtrace::told(error).map_or_else(|| what.clone(), |frames| format!("{what}, in {frames}"));
    let detail = said.map_or_else(|| what.clone(), |said| format!("{what}; it said: {said}"));
    Failure { cause, detail: cut(detail, REASON_BYTES_MAX).into() }
}
