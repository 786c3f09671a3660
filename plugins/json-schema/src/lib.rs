//! The `json-schema` stage: rejects the messages that a JSON Schema rejects, naming every fault by its place.
//! Invariant: a message that passes is valid under the schema, and untouched. Never fetches anything: a schema refers to
//! itself, to the drafts' own meta-schemas, to what the config names, and to registered schemas.

mod references;

use std::collections::BTreeMap;

use jsonschema::{Draft, Registry, Validator};
use serde::Deserialize;
use serde_json::Value;
use sluice_plugin::{Failure, Message, Rejection, Stage};

use references::References;

/// The code of a rejection by the schema; the same word as the API's problem code.
pub const SCHEMA_VALIDATION_ERROR: &str = "SCHEMA_VALIDATION_ERROR";

/// Faults reported per message. A publisher mends a handful at a time, and a payload of a million wrong items
/// must not become an answer of a million lines.
const FAULTS_MAX: usize = 20;

/// The length of one fault's text: the validator lists unexpected names, which the payload chooses.
const FAULT_CHARS_MAX: usize = 512;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    /// The schema, as JSON or as a string holding JSON.
    schema: Option<Value>,
    /// The registered schema. The broker resolves it: beside `schema` it says where that one came from.
    schema_id: Option<String>,
    /// Other schemas, by the absolute URIs under which they are referred to: each inline, or the id of a registered one.
    #[serde(default)]
    references: BTreeMap<String, Value>,
    /// How schemas are read that don't say which draft they are of.
    draft: Option<Named>,
}

/// A draft as people call it.
#[derive(Clone, Copy, Deserialize)]
enum Named {
    #[serde(rename = "2020-12")]
    Draft202012,
    #[serde(rename = "2019-09")]
    Draft201909,
    #[serde(rename = "7")]
    Draft7,
    #[serde(rename = "6")]
    Draft6,
    #[serde(rename = "4")]
    Draft4,
}

impl Named {
    fn draft(self) -> Draft {
        match self {
            Self::Draft202012 => Draft::Draft202012,
            Self::Draft201909 => Draft::Draft201909,
            Self::Draft7 => Draft::Draft7,
            Self::Draft6 => Draft::Draft6,
            Self::Draft4 => Draft::Draft4,
        }
    }
}

/// What a schema is compiled with.
struct Surroundings {
    found: References,
    draft: Option<Draft>,
}

/// The stage: a schema, compiled.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Config")]
pub struct JsonSchema {
    validator: Validator,
    union: Option<Union>,
}

/// A schema that is a choice at its root ("one of these events"), as schemas of whole topics often are.
///
/// Asked for its faults, the validator would collect and copy those of every alternative, just to say that none
/// fits: for webhooks of 8 KB under 66 alternatives that took 190 times as long as passing a valid one, enough to
/// run a batch out of its CPU time. So the faults are asked of the rest of the schema, and where it has none, the
/// choice is what failed.
#[derive(Debug)]
struct Union {
    keyword: &'static str,
    rest: Validator,
}

impl Union {
    fn of(schema: &Value, around: &Surroundings) -> Result<Option<Self>, String> {
        let Some(root) = schema.as_object() else { return Ok(None) };
        let keyword = match (root.contains_key("oneOf"), root.contains_key("anyOf")) {
            (true, false) => "oneOf",
            (false, true) => "anyOf",
            _ => return Ok(None),
        };
        // These look at what the choice has matched; without it they would find faults that are none.
        if root.contains_key("unevaluatedProperties") || root.contains_key("unevaluatedItems") {
            return Ok(None);
        }
        let mut rest = root.clone();
        rest.remove(keyword);
        Ok(Some(Self { keyword, rest: compile(&Value::Object(rest), around)? }))
    }
}

impl TryFrom<Config> for JsonSchema {
    type Error = String;

    fn try_from(config: Config) -> Result<Self, String> {
        let schema = match (config.schema, config.schema_id) {
            (Some(Value::String(text)), _) => {
                serde_json::from_str(&text).map_err(|e| format!("`schema` is a string that holds no JSON: {e}"))?
            }
            (Some(schema), _) => schema,
            (None, Some(id)) => {
                return Err(format!(
                    "schemaId {id:?} came without its schema: the broker puts it into `schema` before the stage \
                     starts, so check that this schema is registered and approved"
                ));
            }
            (None, None) => return Err("one of `schema` and `schemaId` is required".into()),
        };
        let around = Surroundings { found: References::new(config.references), draft: config.draft.map(Named::draft) };
        Ok(Self { validator: compile(&schema, &around)?, union: Union::of(&schema, &around)? })
    }
}

fn compile(schema: &Value, around: &Surroundings) -> Result<Validator, String> {
    let read_as = around.draft.unwrap_or_default();
    let mut registry = Registry::new().retriever(around.found.clone()).draft(read_as);
    // A meta-schema of one's own must be known before anything is looked up by it.
    for (uri, meta) in around.found.meta_schemas(schema) {
        registry = registry.add(uri, meta).map_err(|e| format!("`references`: {e}"))?;
    }
    let registry = registry.prepare().map_err(|e| format!("`references`: {e}"))?;
    let mut options = jsonschema::options()
        .with_registry(&registry)
        .with_retriever(around.found.clone())
        .with_base_uri(references::BASE)
        // `format` is an annotation: what it asserts differs from validator to validator.
        .should_validate_formats(false);
    let says = schema.get("$schema").is_some();
    if let Some(draft) = around.draft.filter(|_| !says) {
        options = options.with_draft(draft);
    }
    let compiled = options.build(schema);
    compiled.map_err(|e| format!("`schema` is no usable JSON Schema, at {:?}: {e}", e.instance_path().as_str()))
}

impl JsonSchema {
    /// The draft that the schema is read as: the one that `$schema` names, else the config's `draft`, else 2020-12.
    pub fn draft(&self) -> Draft {
        self.validator.draft()
    }
}

impl Stage for JsonSchema {
    fn message(&self, message: &Message<'_>) -> Result<(), Failure> {
        let payload: Value = message.json()?;
        // Most messages are valid, and this asks that alone, several times faster than collecting faults.
        if self.validator.is_valid(&payload) {
            return Ok(());
        }
        let mut found = false;
        let explaining = self.union.as_ref().map_or(&self.validator, |union| &union.rest);
        for fault in explaining.iter_errors(&payload).take(FAULTS_MAX) {
            found = true;
            // Masked, so that payloads don't end up in answers and logs; the pointer shows where to look.
            let text: String = fault.masked().to_string().chars().take(FAULT_CHARS_MAX).collect();
            message.reject(Rejection::new(SCHEMA_VALIDATION_ERROR, text).at(fault.instance_path().as_str()));
        }
        if !found {
            message.reject(self.choice_fault());
        }
        Ok(())
    }
}

impl JsonSchema {
    /// The fault of a message that is at odds with the schema, but with nothing that could be named.
    fn choice_fault(&self) -> Rejection {
        let text = match &self.union {
            Some(Union { keyword: "oneOf", .. }) => "value is not valid under exactly one of the schemas of 'oneOf'",
            Some(_) => "value is not valid under any of the schemas of 'anyOf'",
            None => "value is not valid under the schema",
        };
        Rejection::new(SCHEMA_VALIDATION_ERROR, text).at("")
    }
}

sluice_plugin::export!(JsonSchema);
