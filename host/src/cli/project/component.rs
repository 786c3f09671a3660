//! What becomes of a tool's output: a core module is made a component, and the config's schema is put into it. Invariant: a
//! schema that comes along is one. Never changes what the component does.

use serde_json::Value;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wit_component::ComponentEncoder;

use crate::pipeline::custom_section;

/// The component of a core module that carries its world's type, as `wasm-tools component new` makes it. What of WASI's
/// first preview it imports is carried over to the second.
pub(super) fn of_module(module: &[u8]) -> Result<Vec<u8>, String> {
    let encoder = ComponentEncoder::default().validate(true).module(module);
    let encoder = encoder.and_then(|encoder| {
        encoder.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER)
    });
    encoder.and_then(|mut encoder| encoder.encode()).map_err(|error| format!("it makes no component: {error:#}"))
}

/// The component with the config's schema in a custom section at its end.
pub(super) fn with_schema(mut component: Vec<u8>, schema: &str) -> Result<Vec<u8>, String> {
    let document: Value = serde_json::from_str(schema).map_err(|error| error.to_string())?;
    jsonschema::validator_for(&document).map_err(|error| format!("it is no JSON Schema: {error}"))?;
    custom_section::append(&mut component, custom_section::CONFIG_SCHEMA, document.to_string().as_bytes());
    Ok(component)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pipeline::inspect::facts;

    #[test]
    fn a_schema_is_found_where_it_was_put() {
        let component = wat::parse_str("(component)").unwrap();
        // Longer than one byte of LEB128 tells.
        let schema = json!({"type": "object", "description": "x".repeat(300)});
        let with = with_schema(component, &format!("{schema:#}")).unwrap();
        wasmparser::Validator::new_with_features(wasmparser::WasmFeatures::default()).validate_all(&with).unwrap();
        assert_eq!(facts(&with).config_schema, Some(Ok(schema)));
    }

    #[test]
    fn what_is_no_schema_is_refused() {
        assert!(with_schema(Vec::new(), "{").is_err());
        assert!(with_schema(Vec::new(), r#"{"type": "text"}"#).unwrap_err().contains("no JSON Schema"));
    }

    #[test]
    fn a_module_that_says_nothing_of_its_world_is_no_plugin() {
        assert!(of_module(b"hello").is_err());
        let component = of_module(&wat::parse_str("(module)").unwrap()).unwrap();
        assert!(facts(&component).refused.unwrap().contains("does not export"));
    }
}
