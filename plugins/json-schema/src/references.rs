//! What a reference finds that does not lead into the schema itself: the schemas that the config names, and registered ones.
//! Invariant: nothing is fetched, and what is not found refuses the config in words. Never looks at a schema that nothing refers to.

use std::{collections::BTreeMap, sync::Arc};

use jsonschema::{Retrieve, Uri};
use serde_json::Value;
use sluice_plugin::schemas;

/// What references are resolved against in a schema that has no `$id`: what is behind it is the id of a registered schema.
pub(crate) const BASE: &str = "sluice:/schemas/";

/// Schemas, or the ids of registered ones, by the URIs under which they are referred to.
#[derive(Clone)]
pub(crate) struct References(Arc<BTreeMap<String, Value>>);

impl References {
    pub(crate) fn new(named: BTreeMap<String, Value>) -> Self {
        Self(Arc::new(named))
    }

    /// Those among them that say how `schema` is read: the one that its `$schema` names, the one that that one's does, and so on.
    pub(crate) fn meta_schemas(&self, schema: &Value) -> impl Iterator<Item = (&str, &Value)> {
        let next = |schema: &Value| {
            let uri = schema.get("$schema")?.as_str()?;
            self.0.get_key_value(uri).map(|(uri, meta)| (uri.as_str(), meta))
        };
        // One that names itself would go on for ever.
        std::iter::successors(next(schema), move |(_, meta)| next(meta)).take(self.0.len())
    }
}

impl Retrieve for References {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        let uri = uri.as_str();
        let id = match self.0.get(uri) {
            Some(Value::String(id)) => Some(id.as_str()),
            Some(schema) => return Ok(schema.clone()),
            None => uri.strip_prefix(BASE),
        };
        let id = id.ok_or_else(|| format!("{uri} is not among `references`, and a plugin has no network"))?;
        let definition =
            schemas::get(id).ok_or_else(|| format!("there is no approved schema {id:?}; register it first"))?;
        Ok(serde_json::from_str(&definition)?)
    }
}
