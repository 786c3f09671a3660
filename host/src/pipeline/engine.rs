//! The engine that runs plugins, and the clock that ends their calls. Invariant: the engine that compiles and the one
//! that runs have the same settings, so that what the one makes loads in the other. Never compiles on the running one.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Result};

use super::limits::{MEMORY_MB_MAX, TABLE_ELEMENTS_MAX, TICK};

/// Instances of all stages together. Those that are idle are dropped when another one needs a place.
const INSTANCES_MAX: u32 = 256;
/// A component is several core modules: the plugin's own and the adapters around it, a few dozen for a script language.
/// Beyond this one component would take the places of its neighbours, and so it is with its memories and tables.
const CORE_INSTANCES_OF_ONE_MAX: u32 = 64;
const MEMORIES_OF_ONE_MAX: u32 = 4;
const TABLES_OF_ONE_MAX: u32 = 16;
/// Of all instances together; most are of components with a handful.
const CORE_INSTANCES_MAX: u32 = INSTANCES_MAX * 8;
/// What one memory may hold at most. Only what a guest touches takes memory.
const MEMORY_BYTES: usize = MEMORY_MB_MAX as usize * 1024 * 1024;
/// All that a guest's addresses reach. A memory that has so much address space to itself needs no check of its bounds: what
/// is beyond them is not there, and the processor says so.
const ALL_ADDRESSES: u64 = 1 << 32;
/// After so many ticks without a call the ticker sleeps, so that an idle broker does not wake a thousand times a second.
const TICKS_IDLE: u32 = 100;

/// The engine that runs plugins.
///
/// # Errors
/// When the system refuses the pool's address space.
pub fn running() -> Result<Engine> {
    Engine::new(&pooled(reservation()))
}

/// Address space of one memory. The same for as long as the process runs.
fn reservation() -> u64 {
    static RESERVATION: OnceLock<u64> = OnceLock::new();
    *RESERVATION.get_or_init(|| fitting(ALL_ADDRESSES))
}

/// So many bytes of address space, or, where the system has no room for so many memories of that (addresses of 39 bits,
/// `ulimit -v`), as much as one may hold, and the bounds are checked.
fn fitting(reservation: u64) -> u64 {
    match Engine::new(&pooled(reservation)) {
        Ok(_) => reservation,
        Err(error) => {
            tracing::info!("plugins run with checks of bounds, since address space is short here: {error:#}");
            MEMORY_BYTES as u64
        }
    }
}

fn pooled(reservation: u64) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(INSTANCES_MAX)
        .total_core_instances(CORE_INSTANCES_MAX)
        .total_memories(INSTANCES_MAX + INSTANCES_MAX / 4)
        .total_tables(INSTANCES_MAX * 4)
        .max_core_instances_per_component(CORE_INSTANCES_OF_ONE_MAX)
        .max_memories_per_component(MEMORIES_OF_ONE_MAX)
        .max_tables_per_component(TABLES_OF_ONE_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(MEMORY_BYTES);
    let mut config = settings(reservation);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// The engine that compiles, on one thread.
///
/// # Errors
/// When the code generator can't be set up.
pub fn compiling() -> Result<Engine> {
    let mut config = settings(reservation());
    config.parallel_compilation(false);
    Engine::new(&config)
}

/// What decides how code is generated.
fn settings(reservation: u64) -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .epoch_interruption(true)
        .concurrency_support(false)
        .memory_reservation(reservation)
        .memory_init_cow(true);
    config
}

/// How a file of machine code is laid out: changes when that does.
const CODE_LAYOUT: u8 = 2;

/// Names artefacts that `engine` can load: it changes with wasmtime's version, the settings and the processor.
#[must_use]
pub fn fingerprint(engine: &Engine) -> String {
    let mut hasher = DefaultHasher::new();
    CODE_LAYOUT.hash(&mut hasher);
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Raises the engine's epoch while plugins run.
#[derive(Debug)]
pub struct Ticker {
    state: Arc<TickerState>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct TickerState {
    calls: AtomicUsize,
    parked: AtomicBool,
    stopping: AtomicBool,
}

/// A call under way; while one exists, the epoch rises.
#[derive(Debug)]
pub struct Ticking<'a>(&'a TickerState);

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Release);
    }
}

impl Ticker {
    /// Starts its thread.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(engine: &Engine) -> std::io::Result<Ticker> {
        let (state, engine) = (Arc::new(TickerState::default()), engine.weak());
        let thread = std::thread::Builder::new().name("plugin-ticker".to_owned()).spawn({
            let state = Arc::clone(&state);
            move || {
                let mut idle = 0;
                while !state.stopping.load(Ordering::Acquire) {
                    std::thread::sleep(TICK);
                    let Some(engine) = engine.upgrade() else { return };
                    engine.increment_epoch();
                    idle = if state.calls.load(Ordering::Acquire) == 0 { idle + 1 } else { 0 };
                    if idle > TICKS_IDLE {
                        state.rest();
                        idle = 0;
                    }
                }
            }
        })?;
        Ok(Ticker { state, thread: Some(thread) })
    }

    /// A call begins.
    pub fn begin(&self) -> Ticking<'_> {
        // Sequentially consistent against `rest`: either the ticker sees the call, or the call sees it parked.
        self.state.calls.fetch_add(1, Ordering::SeqCst);
        if self.state.parked.load(Ordering::SeqCst)
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
        Ticking(&self.state)
    }
}

impl TickerState {
    fn rest(&self) {
        self.parked.store(true, Ordering::SeqCst);
        while self.calls.load(Ordering::SeqCst) == 0 && !self.stopping.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.parked.store(false, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The last owner may be the ticker's own upgrade of nothing: it never owns a `Ticker`, so this can't deadlock.
            let _ended = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_engines_load_the_same_artefacts() {
        let (running, compiling) = (running().expect("the pool fits"), compiling().expect("it compiles"));
        assert_eq!(fingerprint(&running), fingerprint(&compiling));
    }

    #[test]
    fn where_address_space_is_short_memories_have_what_they_may_hold() {
        assert_eq!(fitting(1 << 45), MEMORY_BYTES as u64, "320 of them are more than a processor addresses");
        Engine::new(&pooled(MEMORY_BYTES as u64)).expect("the pool fits");
    }
}
