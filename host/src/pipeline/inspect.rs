//! What a component's bytes tell without running it, for its author. Invariant: reads what the checks at upload read, and
//! says so also of what they refuse. Never compiles.

use serde_json::Value;

use super::component::digest;
use super::world::World;
use super::{config_schema, world};

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Hex SHA-256.
    pub digest: String,
    /// Its length.
    pub bytes: usize,
    /// The version of `sluice:plugin` whose stage it exports.
    pub targets: Option<String>,
    /// The interfaces that it imports, in order.
    pub imports: Vec<String>,
    /// What it exports.
    pub exports: Vec<String>,
    /// Functions of all its parts.
    pub functions: usize,
    /// Bytes of the longest one.
    pub function_bytes_max: usize,
    /// The config's schema, or why what stands for it is none.
    pub config_schema: Option<Result<Value, String>>,
    /// Why a broker of this release would not take it.
    pub refused: Option<String>,
}

/// Reads `bytes`, whatever they are.
#[must_use]
pub fn facts(bytes: &[u8]) -> Facts {
    let refused = world::check(bytes).err().map(|error| error.to_string());
    let mut world = World::default();
    // What can't be read is refused already; what came before it is told.
    let config_schema = world.read(bytes).ok().and_then(|()| config_schema::find(bytes).transpose());
    let config_schema = config_schema.map(|text| {
        let text = text.map_err(|error| error.to_string())?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    });
    Facts {
        digest: digest(bytes),
        bytes: bytes.len(),
        targets: world.exports.iter().find_map(|name| name.strip_prefix("sluice:plugin/stage@").map(str::to_owned)),
        imports: world.imports,
        exports: world.exports,
        functions: world.functions,
        function_bytes_max: world.function_bytes,
        config_schema,
        refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::powers_of;
    use crate::pipeline::tests::guest;

    #[test]
    fn a_component_tells_what_it_is() {
        let facts = facts(&guest("tag"));
        assert_eq!((facts.targets.as_deref(), facts.refused), (Some("1.0.0"), None));
        assert!(facts.functions > 10 && facts.function_bytes_max > 10);
        assert!(facts.imports.iter().any(|name| name == "sluice:plugin/types@1.0.0"), "{:?}", facts.imports);
        assert_eq!(facts.config_schema, None);
    }

    #[test]
    fn what_is_refused_is_told_as_well() {
        let facts = facts(b"\0asm\x01\0\0\0");
        assert!(facts.refused.is_some_and(|why| why.contains("core module")));
        assert_eq!(facts.bytes, 8);
    }

    #[test]
    fn powers_are_what_reaches_beyond_the_batch() {
        let imports = ["sluice:plugin/types@1.0.0", "sluice:plugin/kv@1.0.0", "wasi:io/poll@0.2.0"].map(str::to_owned);
        assert_eq!(powers_of(&imports), ["kv"]);
    }
}
