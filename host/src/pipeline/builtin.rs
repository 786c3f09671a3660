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
pub const BUILTINS: [Builtin; 7] = [
    builtin!("cloudevents"),
    builtin!("dedup"),
    builtin!("filter"),
    builtin!("jq"),
    builtin!("json-schema"),
    builtin!("redact"),
    builtin!("sample"),
];

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

    /// What a config is held against before the plugin sees it, read from the component by another reader of WebAssembly.
    #[test]
    fn each_carries_the_schema_of_its_config() {
        for builtin in BUILTINS {
            let mut schemas = Vec::new();
            let mut depth = 0_u32;
            for payload in wasmparser::Parser::new(0).parse_all(builtin.bytes) {
                match payload.unwrap() {
                    wasmparser::Payload::ModuleSection { .. } | wasmparser::Payload::ComponentSection { .. } => {
                        depth += 1
                    }
                    wasmparser::Payload::End(_) => depth = depth.saturating_sub(1),
                    wasmparser::Payload::CustomSection(section)
                        if depth == 0 && section.name() == crate::pipeline::custom_section::CONFIG_SCHEMA =>
                    {
                        schemas.push(section.data());
                    }
                    _ => {}
                }
            }
            let [schema] = schemas[..] else { panic!("{} has {} schemas", builtin.name, schemas.len()) };
            let schema: serde_json::Value = serde_json::from_slice(schema).unwrap();
            assert_eq!(schema["title"], builtin.name);
            let validator = jsonschema::validator_for(&schema).unwrap();
            let misspelt = serde_json::json!({ "no such setting": 1 });
            assert!(!validator.is_valid(&misspelt), "{}: what no plugin takes passes its schema", builtin.name);
            let cases =
                std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins").join(builtin.name).join("cases");
            for case in std::fs::read_dir(cases).unwrap() {
                let config = case.unwrap().path().join("config.json");
                let config_text = std::fs::read_to_string(&config).unwrap();
                let value = serde_json::from_str(&config_text).unwrap();
                assert!(validator.is_valid(&value), "{}: its config is refused by the schema", config.display());
            }
        }
    }
}
