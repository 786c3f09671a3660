//! Whether one version of a schema may follow another under a declared compatibility. The check is conservative: two
//! schemas that differ in annotations alone accept the same documents, which makes them compatible both ways; of any
//! other difference nothing is concluded, and it is named. Invariant: schemas without a named difference accept the same
//! documents. Never compiles a schema.

use serde_json::{Map, Value};

/// Differences that are named: enough to see what happened.
const CHANGES_MAX: usize = 50;

/// Keywords that assert nothing, in every draft (2020-12 validation §9, core §8.3). `format` and `content…` are not
/// among them, for a consumer may assert those.
const ANNOTATIONS: [&str; 8] =
    ["title", "description", "$comment", "default", "examples", "deprecated", "readOnly", "writeOnly"];

/// Keywords whose value is a schema, or a list of them.
const SCHEMAS: [&str; 16] = [
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "oneOf",
    "prefixItems",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Keywords whose value is an object of schemas by name.
const NAMED_SCHEMAS: [&str; 6] =
    ["$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"];

/// JSON Pointers to what differs beyond annotations; none if the two accept the same documents.
pub(super) fn changes(old: &Value, new: &Value) -> Vec<String> {
    let mut walk =
        Walk { changes: Vec::new(), annotations_count: refers_into_annotation(old) || refers_into_annotation(new) };
    walk.schema("", old, new);
    walk.changes
}

struct Walk {
    changes: Vec<String>,
    /// Whether an annotation's value is used as a schema by some reference, so that it can't be left out.
    annotations_count: bool,
}

impl Walk {
    fn schema(&mut self, path: &str, old: &Value, new: &Value) {
        let (Value::Object(old), Value::Object(new)) = (old, new) else {
            return self.data(path, Some(old), Some(new));
        };
        for (keyword, old, new) in pairs(old, new) {
            let path = format!("{path}/{}", escaped(keyword));
            if !self.annotations_count && ANNOTATIONS.contains(&keyword) {
                continue;
            }
            match (old, new) {
                (Some(Value::Object(old)), Some(Value::Object(new))) if NAMED_SCHEMAS.contains(&keyword) => {
                    for (name, old, new) in pairs(old, new) {
                        self.schema_opt(&format!("{path}/{}", escaped(name)), old, new);
                    }
                }
                (Some(Value::Array(old)), Some(Value::Array(new)))
                    if SCHEMAS.contains(&keyword) && old.len() == new.len() =>
                {
                    for (index, (old, new)) in old.iter().zip(new).enumerate() {
                        self.schema(&format!("{path}/{index}"), old, new);
                    }
                }
                (old, new) if SCHEMAS.contains(&keyword) => self.schema_opt(&path, old, new),
                (old, new) => self.data(&path, old, new),
            }
        }
    }

    fn schema_opt(&mut self, path: &str, old: Option<&Value>, new: Option<&Value>) {
        match (old, new) {
            (Some(old), Some(new)) => self.schema(path, old, new),
            (old, new) => self.data(path, old, new),
        }
    }

    fn data(&mut self, path: &str, old: Option<&Value>, new: Option<&Value>) {
        if old != new && self.changes.len() < CHANGES_MAX {
            self.changes.push(if path.is_empty() { "/".to_owned() } else { path.to_owned() });
        }
    }
}

/// All members of two objects, side by side.
fn pairs<'a>(
    old: &'a Map<String, Value>,
    new: &'a Map<String, Value>,
) -> impl Iterator<Item = (&'a str, Option<&'a Value>, Option<&'a Value>)> {
    let kept = old.iter().map(|(name, value)| (name.as_str(), Some(value), new.get(name)));
    let added =
        new.iter().filter(|(name, _)| !old.contains_key(*name)).map(|(name, value)| (name.as_str(), None, Some(value)));
    kept.chain(added)
}

/// Whether some `$ref` leads through an annotation's name, such as `#/properties/x/default`. (It may also be a property
/// of that name; then annotations count although they need not, which errs on the safe side.)
fn refers_into_annotation(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(refers_into_annotation),
        Value::Object(members) => members.iter().any(|(name, value)| match value {
            Value::String(target) if matches!(name.as_str(), "$ref" | "$dynamicRef" | "$recursiveRef") => {
                target.split(['/', '#']).any(|part| ANNOTATIONS.contains(&part)) || target.contains('%')
            }
            value => refers_into_annotation(value),
        }),
        _ => false,
    }
}

/// RFC 6901 §3.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn annotations_may_change_wherever_a_schema_stands() {
        let old = json!({"title": "a", "properties": {"title": {"type": "string", "description": "x"}},
            "items": [{"default": 1}], "allOf": [{"examples": [1]}], "$defs": {"d": {"deprecated": true}}});
        let new = json!({"$comment": "b", "properties": {"title": {"description": "y", "type": "string"}},
            "items": [{"default": 2}], "allOf": [{}], "$defs": {"d": {"readOnly": true}}});
        assert_eq!(changes(&old, &new), Vec::<String>::new());
    }

    #[test]
    fn everything_else_is_named() {
        let cases = [
            (json!({"type": "string"}), json!({"type": "integer"}), vec!["/type"]),
            (json!({"properties": {}}), json!({"properties": {"title": {}}}), vec!["/properties/title"]),
            (json!({"const": {"title": 1}}), json!({"const": {"title": 2}}), vec!["/const"]),
            (json!({"enum": [{"title": 1}]}), json!({"enum": [{"title": 2}]}), vec!["/enum"]),
            (json!({"x-of-ours": {"title": 1}}), json!({"x-of-ours": {"title": 2}}), vec!["/x-of-ours"]),
            (json!({"anyOf": [{}]}), json!({"anyOf": [{}, {}]}), vec!["/anyOf"]),
            (json!({"format": "date"}), json!({}), vec!["/format"]),
            (json!(true), json!(false), vec!["/"]),
            (json!({}), json!(true), vec!["/"]),
            (
                json!({"properties": {"a/b": {"minLength": 1, "items": {"type": "null"}}}}),
                json!({"properties": {"a/b": {"minLength": 2, "items": {"type": "array"}}}}),
                vec!["/properties/a~1b/minLength", "/properties/a~1b/items/type"],
            ),
        ];
        for (old, new, expected) in cases {
            assert_eq!(changes(&old, &new), expected, "{old} to {new}");
        }
    }

    #[test]
    fn an_annotation_that_is_referred_to_is_a_schema() {
        let with = |kind: &str| json!({"default": {"type": kind}, "properties": {"a": {"$ref": "#/default"}}});
        assert_eq!(changes(&with("string"), &with("null")), ["/default"]);
    }
}
