//! The plugins that come with the binary. Invariant: they are the ones that `build.rs` made of `plugins/` when the binary
//! was built. Never a special case beyond their bytes: anyone can bind them.

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Builtin {
    /// Its name.
    pub name: &'static str,
    /// The component.
    pub bytes: &'static [u8],
    /// Its hex SHA-256.
    pub digest: &'static str,
}

macro_rules! builtin {
    ($name:literal) => {
        Builtin {
            name: $name,
            bytes: include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".wasm")),
            digest: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".sha256")),
        }
    };
}

/// All of them.
pub const BUILTINS: [Builtin; 3] = [builtin!("filter"), builtin!("json-schema"), builtin!("redact")];

/// The digest of a built-in plugin, as it came with this binary.
#[must_use]
pub fn digest_of(name: &str) -> Option<&'static str> {
    BUILTINS.iter().find(|builtin| builtin.name == name).map(|builtin| builtin.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_bytes() {
        for builtin in BUILTINS {
            assert_eq!(builtin.digest, crate::pipeline::component::digest(builtin.bytes), "{}", builtin.name);
        }
    }
}
