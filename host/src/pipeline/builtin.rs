//! The plugins that come with the binary. Invariant: they are the ones that `build.rs` made of `plugins/` when the binary
//! was built. Never a special case beyond their bytes: anyone can bind them.

use std::sync::OnceLock;

use super::component::digest;

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Builtin {
    /// Its name.
    pub name: &'static str,
    /// The component.
    pub bytes: &'static [u8],
}

/// All of them.
pub const BUILTINS: [Builtin; 3] = [
    Builtin { name: "filter", bytes: include_bytes!(concat!(env!("OUT_DIR"), "/filter.wasm")) },
    Builtin { name: "json-schema", bytes: include_bytes!(concat!(env!("OUT_DIR"), "/json-schema.wasm")) },
    Builtin { name: "redact", bytes: include_bytes!(concat!(env!("OUT_DIR"), "/redact.wasm")) },
];

/// The digest of a built-in plugin, as it came with this binary.
#[must_use]
pub fn digest_of(name: &str) -> Option<&'static str> {
    static DIGESTS: OnceLock<[String; BUILTINS.len()]> = OnceLock::new();
    let digests = DIGESTS.get_or_init(|| BUILTINS.map(|builtin| digest(builtin.bytes)));
    BUILTINS.iter().position(|builtin| builtin.name == name).map(|at| digests[at].as_str())
}
