//! From a definition's text to a validator. Invariant: what compiles is bounded in size, valid under its draft's
//! meta-schema, and refers to nothing outside itself. Never does I/O.

use jsonschema::{PatternOptions, ValidationError, Validator};
use serde_json::Value;

use super::{DEFINITION_BYTES_MAX, FAULTS_MAX, Fault};

/// Where the definition stands in a registration.
const DEFINITION: &str = "/schemaDefinition";
/// Steps back that one pattern may take on one text: a pattern that takes more is no match, and can't stop a thread.
const BACKTRACKS_MAX: usize = 100_000;
/// Bytes of one compiled pattern, and of the states that it keeps while matching.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;
/// Characters of one fault: the validator shows what it met, and a payload chooses how long that is.
const FAULT_CHARS_MAX: usize = 512;

/// Reads and compiles a definition; else all that is wrong with it, by pointers into the registration.
pub(crate) fn compile(definition: &str) -> Result<(Value, Validator), Vec<Fault>> {
    let fault = |path: &str, message: String| vec![Fault { path: format!("{DEFINITION}{path}"), message }];
    if definition.len() > DEFINITION_BYTES_MAX {
        return Err(fault("", format!("is longer than {DEFINITION_BYTES_MAX} bytes")));
    }
    let schema: Value = serde_json::from_str(definition).map_err(|error| fault("", format!("is not JSON: {error}")))?;
    let Ok(meta) = jsonschema::meta::validator_for(&schema) else {
        let known = "names none of the drafts that are known: 2020-12, 2019-09, 7, 6 and 4";
        return Err(fault("/$schema", known.to_owned()));
    };
    let faults = faults(meta.iter_errors(&schema), DEFINITION);
    if !faults.is_empty() {
        return Err(faults);
    }
    let patterns = PatternOptions::fancy_regex()
        .backtrack_limit(BACKTRACKS_MAX)
        .size_limit(PATTERN_BYTES_MAX)
        .dfa_size_limit(PATTERN_BYTES_MAX);
    let validator = jsonschema::options()
        .offline()
        .should_validate_formats(false)
        .with_pattern_options(patterns)
        .build(&schema)
        .map_err(|error| fault(error.instance_path().as_str(), clipped(&error)))?;
    Ok((schema, validator))
}

/// The first faults, as the API tells them; each path begins with `prefix`.
pub(crate) fn faults<'e>(errors: impl Iterator<Item = ValidationError<'e>>, prefix: &str) -> Vec<Fault> {
    errors
        .take(FAULTS_MAX)
        .map(|error| Fault { path: format!("{prefix}{}", error.instance_path().as_str()), message: clipped(&error) })
        .collect()
}

fn clipped(error: &ValidationError<'_>) -> String {
    let text = error.to_string();
    match text.char_indices().nth(FAULT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
