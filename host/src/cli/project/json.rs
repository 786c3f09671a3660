//! JSON documents of cases: read from files, compared by value. Invariant: a difference names its place by a JSON Pointer.
//! Never compares texts: 1.0 and 1 are one number, and the order of members means nothing.

use std::path::Path;

use serde_json::Value;

/// Differences of one document that are told; who has more has another document.
const DIFFERENCES_MAX: usize = 10;
/// Characters of a value in a difference.
const SHOWN_MAX: usize = 120;

/// The document in a file; none if there is no file.
pub(super) fn read(path: &Path) -> Result<Option<Value>, String> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| format!("{}: {error}", path.display()))
}

/// Where `found` is another document than `wanted`.
pub(super) fn differences(at: &str, wanted: &Value, found: &Value) -> Vec<String> {
    let mut all = Vec::new();
    compare(at, Some(wanted), Some(found), &mut all);
    all.truncate(DIFFERENCES_MAX);
    all
}

fn compare(at: &str, wanted: Option<&Value>, found: Option<&Value>, all: &mut Vec<String>) {
    match (wanted, found) {
        (Some(Value::Object(wanted)), Some(Value::Object(found))) => {
            for name in wanted.keys().chain(found.keys().filter(|name| !wanted.contains_key(*name))) {
                compare(&format!("{at}/{}", escaped(name)), wanted.get(name), found.get(name), all);
            }
        }
        (Some(Value::Array(wanted)), Some(Value::Array(found))) => {
            for index in 0..wanted.len().max(found.len()) {
                compare(&format!("{at}/{index}"), wanted.get(index), found.get(index), all);
            }
        }
        (Some(wanted), Some(found)) if same(wanted, found) => {}
        (Some(wanted), Some(found)) => all.push(format!("{at}: expected {}, it is {}", shown(wanted), shown(found))),
        (Some(wanted), None) => all.push(format!("{at}: expected {}, it is not there", shown(wanted))),
        (None, Some(found)) => all.push(format!("{at}: not expected, it is {}", shown(found))),
        (None, None) => {}
    }
}

fn same(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || (!(a.is_i64() && b.is_i64()) && a.as_f64().is_some() && a.as_f64() == b.as_f64())
        }
        _ => wanted == found,
    }
}

/// A value on one line.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_differ_by_value_and_place() {
        let wanted = json!({"a": 1, "b": [1, {"c/d": "x"}], "gone": null});
        let found = json!({"b": [1.0, {"c/d": "y"}, 3], "a": 1.0, "new": true});
        let differences = differences("/payload", &wanted, &found);
        assert_eq!(
            differences,
            [
                r#"/payload/b/1/c~1d: expected "x", it is "y""#,
                "/payload/b/2: not expected, it is 3",
                "/payload/gone: expected null, it is not there",
                "/payload/new: not expected, it is true",
            ]
        );
    }

    #[test]
    fn what_is_told_is_bounded() {
        let wanted = json!({"text": "ü".repeat(1000), "list": vec![0; 100]});
        let differences = differences("", &wanted, &json!({"text": "", "list": vec![1; 100]}));
        assert_eq!(differences.len(), DIFFERENCES_MAX);
        assert!(differences[0].len() < 400, "{}", differences[0]);
    }
}
