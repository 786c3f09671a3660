//! Compiling components. Invariant: never on a thread that messages wait for, and of the lowest priority as long as that
//! gets it anywhere; a machine that is busy throughout delays a compilation, and does not keep it from ending
//! (docs/adr/0033-compiling-gives-way-while-it-gets-on.md).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::telemetry::Stopwatch;

use super::component::ComponentError;
use super::engine;
use super::limits::{ThreadClock, give_way};
use super::metrics::Metrics;

/// At once. Two, so that a small plugin does not wait for a large one; each is compiled on one thread.
const COMPILING_MAX: usize = 2;
/// How long others may keep a compilation from a processor before it is begun again as one of them. At the lowest
/// priority, a sixtieth beside each, half a second of work takes minutes where every processor has five others to run.
const KEPT_WAITING_MAX: Duration = Duration::from_secs(2);
/// How many times as long as it ran it has to have waited, too: one that gets on is not begun again.
const WAITS_A_RUN: u32 = 4;
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Machine code, and how long it took.
type Compiled = Result<(Vec<u8>, Duration), ComponentError>;

/// Compiles components, a few at a time.
#[derive(Clone)]
pub struct Compiler {
    turns: Arc<Semaphore>,
    /// Attempts of the lowest priority that others have overtaken and that still run.
    overtaken: Arc<AtomicUsize>,
    metrics: Metrics,
}

/// The priority of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Priority {
    Lowest,
    Usual,
}

/// A thread that compiles.
struct Attempt {
    compiled: oneshot::Receiver<Compiled>,
    turn: Arc<Turn>,
}

/// What an attempt holds until it ends.
struct Turn {
    /// `None` once another attempt has it.
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    overtaken: Arc<AtomicUsize>,
    since: Stopwatch,
    clock: Mutex<Option<ThreadClock>>,
}

impl Compiler {
    pub fn new(metrics: Metrics) -> Compiler {
        let turns = Arc::new(Semaphore::new(COMPILING_MAX));
        Compiler { turns, overtaken: Arc::default(), metrics }
    }

    /// On a thread that gives way: compiling takes seconds, and traffic must not feel it. If the machine leaves it nothing,
    /// on another one that does not: who mends what keeps it busy must not wait until it has ended. The threads end with
    /// it, and give back what they took, which is a hundred times what comes out.
    ///
    /// # Errors
    /// [`ComponentError::Unusable`] if it does not compile.
    pub async fn compile(&self, bytes: Bytes) -> Compiled {
        let permit = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| stopping())?;
        // Apart from the caller, who may go: what has begun is looked after until it ends.
        let compiling = tokio::spawn(self.clone().compile_in_turn(bytes, permit));
        compiling.await.unwrap_or_else(|_| Err(stopping()))
    }

    async fn compile_in_turn(self, bytes: Bytes, permit: OwnedSemaphorePermit) -> Compiled {
        // While an overtaken one still runs, another fares no better; and so no more are overtaken than have turns.
        if self.overtaken.load(Ordering::Acquire) > 0 {
            return self.attempt(bytes, permit, Priority::Usual)?.ended().await;
        }
        let mut first = self.attempt(bytes.clone(), permit, Priority::Lowest)?;
        let turn = Arc::clone(&first.turn);
        let overtaken = tokio::select! {
            compiled = first.ended() => return compiled,
            permit = turn.is_kept_waiting() => permit,
        };
        // It has just ended.
        let Some(permit) = overtaken else { return first.ended().await };
        tracing::info!(
            "a plugin is compiled at the usual priority: the machine is too busy for it to end at the lowest"
        );
        let Ok(mut second) = self.attempt(bytes, permit, Priority::Usual) else { return first.ended().await };
        tokio::select! {
            compiled = first.ended() => compiled,
            compiled = second.ended() => compiled,
        }
    }

    fn attempt(
        &self,
        bytes: Bytes,
        permit: OwnedSemaphorePermit,
        priority: Priority,
    ) -> Result<Attempt, ComponentError> {
        let (reply, compiled) = oneshot::channel();
        let (permit, overtaken) = (Mutex::new(Some(permit)), Arc::clone(&self.overtaken));
        let turn = Arc::new(Turn { permit, overtaken, since: Stopwatch::start(), clock: Mutex::default() });
        let (ends, metrics) = (EndsTurn(Arc::clone(&turn)), self.metrics.clone());
        let compiling = move || {
            let _ends = ends;
            *_ends.0.clock.lock() = ThreadClock::own();
            if priority == Priority::Lowest {
                give_way();
            }
            let watch = Stopwatch::start();
            let compiled = code_of(&bytes);
            let took = watch.elapsed();
            // Of two attempts the one that ends first counts, before anybody knows of it.
            if !reply.is_closed() {
                metrics.compiled(took);
            }
            // Whoever asked may have gone.
            let _ = reply.send(compiled.map(|code| (code, took)));
        };
        let started = thread::Builder::new().name("plugin-compiler".to_owned()).spawn(compiling);
        started.map_err(|error| ComponentError::Unavailable(format!("a thread can't be started: {error}")))?;
        Ok(Attempt { compiled, turn })
    }
}

impl Attempt {
    async fn ended(&mut self) -> Compiled {
        (&mut self.compiled).await.unwrap_or_else(|_| Err(stopping()))
    }
}

impl Turn {
    /// Ends once it has waited for a processor for too long, with its turn for another attempt if it has not ended itself.
    async fn is_kept_waiting(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let ran = self.clock.lock().as_ref().and_then(ThreadClock::cpu_time).unwrap_or_default();
            if self.since.elapsed().saturating_sub(ran) > KEPT_WAITING_MAX.max(ran * WAITS_A_RUN) {
                return self.overtake();
            }
        }
    }

    /// Takes the turn from the attempt that holds it, unless it has ended.
    fn overtake(&self) -> Option<OwnedSemaphorePermit> {
        let mut held = self.permit.lock();
        let permit = held.take()?;
        self.overtaken.fetch_add(1, Ordering::AcqRel);
        Some(permit)
    }
}

/// Gives the turn back where the thread ends, however it does.
struct EndsTurn(Arc<Turn>);

impl Drop for EndsTurn {
    fn drop(&mut self) {
        if self.0.permit.lock().take().is_none() {
            self.0.overtaken.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// By an engine of its own: one that is kept keeps the room that its largest component took, some 20 MB, for the next.
fn compile(bytes: &[u8]) -> Result<Vec<u8>, ComponentError> {
    let engine = engine::compiling().map_err(|error| ComponentError::Unavailable(format!("{error:#}")))?;
    let unusable = |error: wasmtime::Error| ComponentError::Unusable(format!("it does not compile: {error:#}"));
    engine.precompile_component(bytes).map_err(unusable)
}

#[cfg(not(test))]
use self::compile as code_of;

/// The tests make some hundred brokers, which run the same dozens of plugins.
#[cfg(test)]
fn code_of(bytes: &[u8]) -> Result<Vec<u8>, ComponentError> {
    static MADE: Mutex<std::collections::BTreeMap<String, Vec<u8>>> = Mutex::new(std::collections::BTreeMap::new());
    let digest = super::component::digest(bytes);
    if let Some(code) = MADE.lock().get(&digest) {
        return Ok(code.clone());
    }
    let code = compile(bytes)?;
    MADE.lock().insert(digest, code.clone());
    Ok(code)
}

fn stopping() -> ComponentError {
    ComponentError::Unavailable("the broker is stopping".to_owned())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// Keeps all processors busy with threads of the usual priority, until it is dropped.
    struct Busy(Arc<AtomicBool>);

    impl Busy {
        fn machine() -> Busy {
            let over = Arc::new(AtomicBool::new(false));
            for _ in 0..3 * thread::available_parallelism().unwrap().get() {
                let over = Arc::clone(&over);
                thread::spawn(move || while !over.load(Ordering::Relaxed) {});
            }
            Busy(over)
        }
    }

    impl Drop for Busy {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Takes some tenths of a second to compile.
    fn large(functions: usize) -> Bytes {
        let mut wat = "(component (core module ".to_owned();
        for number in 0..functions {
            let _ = write!(wat, "(func (export \"f{number}\") (param i64 i64) (result i64) local.get 0");
            for step in 0..40 {
                let _ = write!(wat, " local.get 1 i64.mul i64.const {step} i64.add local.get 0 i64.xor");
            }
            wat.push(')');
        }
        wat.push_str("))");
        wat::parse_str(wat).unwrap().into()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_busy_machine_does_not_keep_a_compilation_from_ending() {
        let compiler = Compiler::new(Metrics::new(&prometheus::Registry::new()).unwrap());
        let (first, second) = (large(1000), large(999));
        let busy = Busy::machine();
        compiler.compile(first).await.unwrap();
        assert_eq!(compiler.overtaken.load(Ordering::Acquire), 1, "it has ended at the usual priority");
        // Nor the next one, which is not overtaken beside the first.
        compiler.compile(second).await.unwrap();
        assert!(compiler.overtaken.load(Ordering::Acquire) <= 1);
        drop(busy);
        let all_have_ended = async {
            while compiler.overtaken.load(Ordering::Acquire) > 0 || compiler.turns.available_permits() < COMPILING_MAX {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(600), all_have_ended).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_does_not_compile_gives_its_turn_back() {
        let compiler = Compiler::new(Metrics::new(&prometheus::Registry::new()).unwrap());
        for _ in 0..=COMPILING_MAX {
            let refused = compiler.compile(Bytes::from_static(b"no component"));
            let refused = tokio::time::timeout(Duration::from_secs(600), refused).await.unwrap();
            assert!(matches!(refused, Err(ComponentError::Unusable(_))), "{refused:?}");
        }
    }
}
