//! The `json-schema` stage: rejects the messages that a JSON Schema rejects, naming every fault by its place.
//! Invariant: a message that passes is valid under the schema, and untouched. Never fetches anything: a schema
//! refers to itself and to the drafts' own meta-schemas only.

use jsonschema::{Draft, Validator};
use serde::Deserialize;
use serde_json::Value;
use sluice_plugin::{Failure, Message, Rejection, Stage};

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
}

/// The stage: a schema, compiled.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Config")]
pub struct JsonSchema {
    validator: Validator,
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
        Ok(Self { validator: compile(&schema)? })
    }
}

fn compile(schema: &Value) -> Result<Validator, String> {
    jsonschema::options()
        .offline()
        // `format` is an annotation: what it asserts differs from validator to validator.
        .should_validate_formats(false)
        .build(schema)
        .map_err(|e| format!("`schema` is no usable JSON Schema, at {:?}: {e}", e.instance_path().as_str()))
}

impl JsonSchema {
    /// The draft that the schema is read as: the one that `$schema` names, else 2020-12.
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
        for fault in self.validator.iter_errors(&payload).take(FAULTS_MAX) {
            // Masked, so that payloads don't end up in answers and logs; the pointer shows where to look.
            let text: String = fault.masked().to_string().chars().take(FAULT_CHARS_MAX).collect();
            message.reject(Rejection::new(SCHEMA_VALIDATION_ERROR, text).at(fault.instance_path().as_str()));
        }
        Ok(())
    }
}

sluice_plugin::export!(JsonSchema);
