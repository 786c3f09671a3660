//! Where in the guest's code a call ended, in its own functions' names. Invariant: so many frames, each cut, whatever the
//! component calls its functions. Never shown to publishers in full: it is a part of a fault's detail, which is bounded.

use std::fmt::Write as _;

use wasmtime::{Error, WasmBacktrace};

use super::limits::cut;

/// Frames that are told: the innermost ones.
const FRAMES_MAX: usize = 10;
/// Bytes of a frame's name.
const NAME_BYTES_MAX: usize = 60;
/// What a panic passes through before it ends the guest: of no use to who wrote the plugin.
const MACHINERY: [&str; 9] =
    ["std::", "core::", "alloc::", "rust_", "__rust", "abort", "__rustc", "panic_abort::", "<std::"];

/// `inner < outer < …`, innermost first; none if the error came from no guest code.
#[must_use]
pub fn told(error: &Error) -> Option<String> {
    let backtrace = error.downcast_ref::<WasmBacktrace>()?;
    let name = |frame: &wasmtime::FrameInfo| match frame.func_name() {
        Some(name) => format!("{:#}", rustc_demangle::demangle(name)),
        // Its component was stripped of names.
        None => format!("function {}", frame.func_index()),
    };
    let all: Vec<String> = backtrace.frames().iter().map(name).collect();
    let own: Vec<&String> = all.iter().filter(|name| !is_machinery(name)).collect();
    let shown = if own.is_empty() { all.iter().collect() } else { own };
    let mut told = String::new();
    for name in shown.into_iter().take(FRAMES_MAX) {
        let separator = if told.is_empty() { "" } else { " < " };
        let _written = write!(told, "{separator}{}", cut(name.clone(), NAME_BYTES_MAX));
    }
    (!told.is_empty()).then_some(told)
}

fn is_machinery(name: &str) -> bool {
    MACHINERY.iter().any(|prefix| name.starts_with(prefix))
}
