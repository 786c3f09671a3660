//! The plugin world as Rust traits and types, generated from `wit/`. Invariant: every host function may trap, and a trap
//! keeps its message. Never edited: the contract is the WIT file.

wasmtime::component::bindgen!({
    path: "../wit",
    world: "plugin-with-powers",
    imports: { default: trappable },
    ownership: Borrowing { duplicate_if_necessary: true },
});

pub use self::PluginWithPowers as Plugin;
pub use self::PluginWithPowersPre as PluginPre;
pub use self::sluice::plugin::{kv, log, metrics, schemas, types};
