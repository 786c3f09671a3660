//! What a plugin can reach: nothing but its batch, its log, clocks and randomness. Invariant: no file, socket, address
//! lookup, variable or argument is behind WASI's interfaces, and no call of them waits. Never grants more by configuration.

use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Engine, Error, Result};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder};

use crate::clock::Clock;

use super::bindings::Plugin;
use super::host_state::HostState;
use super::limits::RANDOM_BYTES_MAX;
use super::plugin_log::LogStream;

/// The version of WASI 0.2 that the host links; a component may have been built against any earlier one.
const WASI_VERSION: &str = "0.2.12";

/// Functions that are linked, since libraries import them, and trap when they are called: the first two would keep a
/// worker waiting without using CPU time, the others have nothing behind them.
const REFUSED: [(&str, &str); 5] = [
    ("wasi:clocks/monotonic-clock", "subscribe-instant"),
    ("wasi:clocks/monotonic-clock", "subscribe-duration"),
    ("wasi:sockets/tcp-create-socket", "create-tcp-socket"),
    ("wasi:sockets/udp-create-socket", "create-udp-socket"),
    ("wasi:sockets/ip-name-lookup", "resolve-addresses"),
];

/// Everything that a component may import.
///
/// # Errors
/// When wasmtime's and our interfaces don't fit together, which the tests rule out.
pub fn linker(engine: &Engine) -> Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_sync(&mut linker)?;
    Plugin::add_to_linker::<HostState, HasSelf<HostState>>(&mut linker, |state| state)?;
    linker.allow_shadowing(true);
    for (interface, function) in REFUSED {
        let mut instance = linker.instance(&format!("{interface}@{WASI_VERSION}"))?;
        instance.func_new(function, move |_, _, _, _| {
            Err(Error::msg(format!(
                "{interface}.{function} was called: a plugin can neither wait nor reach the network"
            )))
        })?;
    }
    linker.allow_shadowing(false);
    Ok(linker)
}

/// WASI's context of one instance. With a seed all that it draws, and the time that it measures, follow from that and from
/// `clock`.
#[must_use]
pub fn context(clock: Clock, seed: Option<u64>, stdout: LogStream, stderr: LogStream) -> WasiCtx {
    let mut context = WasiCtxBuilder::new();
    if let Some(seed) = seed {
        foresee(&mut context, seed, &clock);
    }
    context
        .stdout(stdout)
        .stderr(stderr)
        .wall_clock(BrokerClock(clock))
        .max_random_size(RANDOM_BYTES_MAX)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .allow_blocking_current_thread(true)
        .build()
}

/// The same messages are to get the same verdicts.
fn foresee(context: &mut WasiCtxBuilder, seed: u64, clock: &Clock) {
    context
        .secure_random(SmallRng::seed_from_u64(seed))
        .insecure_random(SmallRng::seed_from_u64(seed.wrapping_add(1)))
        .insecure_random_seed(seed.into())
        .monotonic_clock(MeasuredClock(clock.clone()));
}

/// Stands still between two moves of the clock.
struct MeasuredClock(Clock);

impl HostMonotonicClock for MeasuredClock {
    fn resolution(&self) -> u64 {
        1_000_000
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.now().0).unwrap_or(0).saturating_mul(1_000_000)
    }
}

/// The broker's clock, so that a test that moves it moves the plugins' time too.
struct BrokerClock(Clock);

impl HostWallClock for BrokerClock {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.now().0).unwrap_or(0))
    }
}
