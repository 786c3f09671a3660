//! Figures of the plugin's own, shown with those of the broker under the plugin's name.
//! Invariant: counting never fails and never blocks. A name is `[a-z][a-z0-9_]{0,63}`, and a plugin has at most
//! [`NAMES_MAX`] of them; what it says under further names is left out.
//!
//! ```
//! # use sluice_plugin::{Failure, Message, metrics};
//! # fn stage(message: &Message) -> Result<(), Failure> {
//! metrics::add("orders_total", 1);
//! metrics::observe("order_bytes", message.payload_len() as f64);
//! # Ok(()) }
//! ```

/// How many names a plugin has at most.
pub const NAMES_MAX: usize = 32;

/// Adds to a counter.
pub fn add(name: &str, by: u64) {
    #[cfg(target_family = "wasm")]
    crate::host::bindings::sluice::plugin::metrics::add(name, by);
    #[cfg(not(target_family = "wasm"))]
    crate::testing::powers::count(name, |figures, name| *figures.counters.entry(name).or_default() += by);
}

/// Sets a gauge.
pub fn set(name: &str, value: f64) {
    #[cfg(target_family = "wasm")]
    crate::host::bindings::sluice::plugin::metrics::set(name, value);
    #[cfg(not(target_family = "wasm"))]
    crate::testing::powers::count(name, |figures, name| {
        figures.gauges.insert(name, value);
    });
}

/// Counts a value in a histogram.
pub fn observe(name: &str, value: f64) {
    #[cfg(target_family = "wasm")]
    crate::host::bindings::sluice::plugin::metrics::observe(name, value);
    #[cfg(not(target_family = "wasm"))]
    crate::testing::powers::count(name, |figures, name| figures.observed.entry(name).or_default().push(value));
}
