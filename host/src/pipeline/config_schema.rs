//! The JSON Schema that a component may carry of its configs, in a custom section. Invariant: a config is held against it
//! before the plugin sees it; a section that is no usable schema makes the component unusable. Never fetches anything.

use bytes::Bytes;
use jsonschema::Validator;
use serde_json::Value;
use wasmparser::{Parser, Payload};

use super::component::ComponentError;
use super::custom_section::CONFIG_SCHEMA as SECTION;
use super::limits::{REASON_BYTES_MAX, cut};
use crate::schemas;

/// Bytes of it: schemas of configs have a few thousand.
pub const SECTION_BYTES_MAX: usize = 64 * 1024;

/// A schema, ready to be used.
pub struct ConfigSchema {
    /// As the component has it.
    pub text: String,
    validator: Validator,
}

impl ConfigSchema {
    /// What is wrong with `config`: JSON Pointers into it, and words. What the words repeat of it may be a secret.
    #[must_use]
    pub fn faults(&self, config: &Value) -> Vec<(String, String)> {
        let faults = schemas::faults(self.validator.iter_errors(config), "");
        faults.into_iter().map(|fault| (fault.path, fault.message)).collect()
    }
}

/// The schema that the component carries, if any.
///
/// # Errors
/// [`ComponentError::Unusable`] for a section that is too long, no JSON Schema, or one of several.
pub async fn of(bytes: Bytes) -> Result<Option<ConfigSchema>, ComponentError> {
    let read = tokio::task::spawn_blocking(move || find(&bytes)?.map(compile).transpose());
    read.await.unwrap_or_else(|_| Err(ComponentError::Unavailable("the broker is stopping".to_owned())))
}

/// Its text, at the top of the component or in any part of it.
pub fn find(bytes: &[u8]) -> Result<Option<String>, ComponentError> {
    let mut found: Option<&[u8]> = None;
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(|error| unusable(&format!("it is no valid component: {error}")))?;
        let Payload::CustomSection(section) = payload else { continue };
        if section.name() != SECTION {
            continue;
        }
        if found.is_some_and(|found| found != section.data()) {
            return Err(unusable(&format!("it has several sections {SECTION}: keep one")));
        }
        found = Some(section.data());
    }
    let Some(data) = found else { return Ok(None) };
    if data.len() > SECTION_BYTES_MAX {
        let why = format!("its section {SECTION} has {} bytes: at most {SECTION_BYTES_MAX} are allowed", data.len());
        return Err(unusable(&why));
    }
    let text = std::str::from_utf8(data).map_err(|_| unusable(&format!("its section {SECTION} is not UTF-8")))?;
    Ok(Some(text.to_owned()))
}

fn compile(text: String) -> Result<ConfigSchema, ComponentError> {
    let compiled = schemas::compile(&text).map_err(|faults| {
        let first = faults.into_iter().next();
        let why = first.map_or_else(String::new, |fault| {
            let place = fault.path.strip_prefix("/schemaDefinition").unwrap_or_default();
            format!("{place} {}", fault.message)
        });
        unusable(&format!("its section {SECTION} is no usable JSON Schema: {}", why.trim_start()))
    })?;
    Ok(ConfigSchema { text, validator: compiled.1 })
}

fn unusable(why: &str) -> ComponentError {
    ComponentError::Unusable(cut(why.to_owned(), REASON_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A component with these sections, at its top or in a module within it.
    fn component(sections: &[&[u8]], nested: bool) -> Vec<u8> {
        let escaped = |data: &[u8]| data.iter().map(|byte| format!("\\{byte:02x}")).collect::<String>();
        let customs: String =
            sections.iter().map(|data| format!("(@custom \"{SECTION}\" \"{}\")", escaped(data))).collect();
        let text = match nested {
            true => format!("(component (core module {customs}))"),
            false => format!("(component {customs})"),
        };
        wat::parse_str(text).unwrap()
    }

    fn why(sections: &[&[u8]]) -> String {
        let read = find(&component(sections, false)).and_then(|text| text.map(compile).transpose());
        read.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_schema_is_found_wherever_it_is_and_told_by_pointers() {
        let text = br#"{"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}"#;
        for nested in [false, true] {
            let schema = compile(find(&component(&[text], nested)).unwrap().unwrap()).unwrap();
            assert!(schema.faults(&json!({"n": 1})).is_empty());
            assert_eq!(schema.faults(&json!({"n": "x"}))[0].0, "/n");
            assert_eq!(schema.faults(&json!({}))[0].0, "");
        }
        assert_eq!(find(&component(&[], false)).unwrap(), None);
        assert!(find(&component(&[text, text], false)).unwrap().is_some(), "the same twice is the same");
    }

    #[test]
    fn a_section_that_is_no_schema_is_refused() {
        assert!(why(&[b"{"]).contains("not JSON"), "{}", why(&[b"{"]));
        assert!(why(&[b"\xff"]).contains("UTF-8"));
        assert!(why(&[br#"{"type": "nothing"}"#]).contains("/type"));
        assert!(why(&[br#"{"$ref": "https://example.com/x"}"#]).contains("no usable JSON Schema"));
        assert!(why(&[b"{}", b"true"]).contains("several"));
        let long = format!("{{\"title\": \"{}\"}}", "x".repeat(SECTION_BYTES_MAX));
        assert!(why(&[long.as_bytes()]).contains("at most"));
    }
}
