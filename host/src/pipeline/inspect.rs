//! What a component's bytes tell without running it, for its author. Invariant: reads what the checks at upload read, and
//! says so also of what they refuse. Never compiles.

use serde_json::Value;
use wasmparser::{Parser, Payload};

use super::component::digest;
use super::world;

/// The custom section with a JSON Schema of the config.
pub const CONFIG_SCHEMA_SECTION: &str = "sluice:config-schema";

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
    let mut facts = Facts {
        digest: digest(bytes),
        bytes: bytes.len(),
        targets: None,
        imports: Vec::new(),
        exports: Vec::new(),
        functions: 0,
        function_bytes_max: 0,
        config_schema: None,
        refused,
    };
    // What can't be read is refused already; what came before it is told.
    let _ = facts.read(bytes);
    facts.targets = facts.exports.iter().find_map(|name| name.strip_prefix("sluice:plugin/stage@").map(str::to_owned));
    facts
}

/// The powers among `imports`, by name: what of them reaches beyond the batch.
#[must_use]
pub fn powers(imports: &[String]) -> Vec<String> {
    let ours = imports.iter().filter_map(|name| name.strip_prefix("sluice:plugin/"));
    let names = ours.filter_map(|name| name.split('@').next()).filter(|name| *name != "types");
    names.map(str::to_owned).collect()
}

impl Facts {
    fn read(&mut self, bytes: &[u8]) -> wasmparser::Result<()> {
        let mut depth = 0_u32;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::CodeSectionEntry(body) => {
                    self.functions += 1;
                    self.function_bytes_max = self.function_bytes_max.max(body.range().len());
                }
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        self.imports.push(import?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        self.exports.push(export?.name.name.to_owned());
                    }
                }
                Payload::CustomSection(section) if depth == 0 && section.name() == CONFIG_SCHEMA_SECTION => {
                    let schema = serde_json::from_slice(section.data());
                    self.config_schema = Some(schema.map_err(|error| error.to_string()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(powers(&imports), ["kv"]);
    }
}
