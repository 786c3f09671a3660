//! The API as the running binary describes it: operations, their parameters, what their bodies may be. Invariant: nothing
//! about a route is known here that is not in its OpenAPI document, so that a new one is found. Never sends anything but
//! the question for the document.

use std::collections::BTreeMap;

use serde_json::Value;
use sluice_tests::Client;

/// The document.
pub(super) struct Document(Value);

/// A method on a path.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) method: String,
    /// With its parameters in braces.
    pub(super) path: String,
    described: Value,
}

/// What a value may be: one of these, references resolved.
#[derive(Debug, Clone)]
pub(super) struct Schema(Vec<Value>);

impl Document {
    /// Asks the broker for it.
    pub(super) async fn of(client: &Client) -> Document {
        Document(client.get("//openapi.json").await.expect(200))
    }

    /// All operations.
    pub(super) fn operations(&self) -> Vec<Operation> {
        let mut all = Vec::new();
        for (path, item) in self.0["paths"].as_object().expect("the document has paths") {
            for (method, described) in item.as_object().expect("a path has operations") {
                all.push(Operation { method: method.to_uppercase(), path: path.clone(), described: described.clone() });
            }
        }
        all
    }

    /// The parameters of an operation that are `place` (`path`, `query`, `header`).
    pub(super) fn parameters(&self, operation: &Operation, place: &str) -> BTreeMap<String, Schema> {
        let all = operation.described["parameters"].as_array().into_iter().flatten();
        let here = all.filter(|parameter| parameter["in"] == place);
        let named = |parameter: &Value| {
            (parameter["name"].as_str().expect("a parameter has a name").to_owned(), self.schema(&parameter["schema"]))
        };
        here.map(named).collect()
    }

    /// What an operation's body may be, if it takes one of this media type.
    pub(super) fn body(&self, operation: &Operation, media_type: &str) -> Option<Schema> {
        let content = &operation.described["requestBody"]["content"][media_type];
        content.is_object().then(|| self.schema(&content["schema"]))
    }

    /// Resolves a schema.
    pub(super) fn schema(&self, schema: &Value) -> Schema {
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.rsplit('/').next().expect("a reference has a name");
            return self.schema(&self.0["components"]["schemas"][name]);
        }
        match schema["oneOf"].as_array() {
            Some(all) => Schema(all.iter().flat_map(|one| self.schema(one).0).collect()),
            None => Schema(vec![schema.clone()]),
        }
    }

    /// What a field of an object may be; none if the object does not have it.
    pub(super) fn field(&self, object: &Schema, name: &str) -> Option<Schema> {
        let field = object.0.iter().find_map(|one| one["properties"].get(name))?;
        Some(self.schema(field))
    }

    /// What an array's items may be.
    pub(super) fn items(&self, array: &Schema) -> Option<Schema> {
        array.0.iter().find_map(|one| one.get("items")).map(|items| self.schema(items))
    }
}

impl Operation {
    /// As it is named in messages.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Whether it takes a body.
    pub(super) fn takes_body(&self) -> bool {
        self.described["requestBody"].is_object()
    }

    /// Whether it says that anybody may ask.
    pub(super) fn is_open(&self) -> bool {
        self.described["description"].as_str().is_some_and(|said| said.contains("Needs no token"))
    }

    /// How many segments of a request's path are literally in this one's; none if the path is another.
    pub(super) fn matches(&self, method: &str, path: &str) -> Option<usize> {
        let (own, given): (Vec<&str>, Vec<&str>) = (self.path.split('/').collect(), path.split('/').collect());
        let fits = |(own, given): (&&str, &&str)| own == given || own.starts_with('{');
        if self.method != method || own.len() != given.len() || !own.iter().zip(&given).all(fits) {
            return None;
        }
        Some(own.iter().zip(&given).filter(|(own, given)| own == given).count())
    }
}

impl Schema {
    /// Whether it may be a value of this JSON type; a schema that says nothing may be any.
    pub(super) fn may_be(&self, wanted: &str) -> bool {
        self.0.iter().any(|one| match &one["type"] {
            Value::Array(types) => types.iter().any(|known| is(known, wanted)),
            known @ Value::String(_) => is(known, wanted),
            _ => true,
        })
    }

    /// Whether it says nothing at all.
    pub(super) fn is_any(&self) -> bool {
        self.0.iter().any(|one| one["type"].is_null())
    }

    /// Whether whole numbers alone are taken.
    pub(super) fn is_whole(&self) -> bool {
        !self.0.iter().any(|one| one["type"] == "number")
    }

    /// A keyword's value.
    pub(super) fn keyword(&self, name: &str) -> Option<&Value> {
        self.0.iter().find_map(|one| one.get(name))
    }

    /// Whether it is an object with just the fields that it names.
    pub(super) fn is_closed(&self) -> bool {
        self.keyword("additionalProperties") == Some(&Value::Bool(false))
    }

    /// The fields that it names, and whether each is required.
    pub(super) fn fields(&self) -> BTreeMap<String, bool> {
        let required = self.keyword("required").and_then(Value::as_array).cloned().unwrap_or_default();
        let names = self.keyword("properties").and_then(Value::as_object).into_iter().flat_map(|fields| fields.keys());
        names.map(|name| (name.clone(), required.iter().any(|required| required == name))).collect()
    }
}

/// Whether a type that is named is the one that is wanted: each whole number is a number.
fn is(known: &Value, wanted: &str) -> bool {
    known == wanted || known == "integer" && wanted == "number"
}
