//! The registered schemas that a stage's plugin asks for in `configure`. Invariant: all instances of a stage see the same
//! definitions; a stage that was asked for by a schema that changes is made anew, never changed. Never more than
//! [`SCHEMAS_MAX`] of a stage.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use wasmtime::{Error, Result};

use crate::catalog::Catalog;
use crate::catalog::model::SchemaStatus;

use super::limits::cut;

/// Schemas that one stage may ask for: their definitions are kept for its instances to come.
pub const SCHEMAS_MAX: usize = 64;
/// Bytes of an id that is looked up; no schema has a longer one.
const ID_BYTES_MAX: usize = 255;

/// What the instances of one stage have asked for.
#[derive(Debug)]
pub struct AskedSchemas {
    /// None without a broker: no schema is registered there.
    catalog: Option<Catalog>,
    /// By id; none within: it is being looked up.
    known: Mutex<BTreeMap<String, Option<Found>>>,
}

/// The definition, if one is approved.
type Found = Option<Arc<str>>;

impl AskedSchemas {
    /// Of a stage that has asked for nothing yet.
    #[must_use]
    pub fn new(catalog: Option<Catalog>) -> Arc<AskedSchemas> {
        Arc::new(AskedSchemas { catalog, known: Mutex::default() })
    }

    /// Whether `id` was asked for, and the answer was, or may have been, another one than `now`.
    #[must_use]
    pub fn is_outdated(&self, id: &str, now: Option<&str>) -> bool {
        match self.known.lock().get(id) {
            None => false,
            Some(None) => true,
            Some(Some(found)) => found.as_deref() != now,
        }
    }

    /// Whether nothing was asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.lock().is_empty()
    }

    /// Takes `definition` for what is registered as `id`: where no broker is.
    pub fn take(&self, id: &str, definition: &str) {
        self.known.lock().insert(id.to_owned(), Some(Some(definition.into())));
    }

    /// The definition that validates now.
    ///
    /// # Errors
    /// What the call traps with.
    pub fn get(&self, id: &str) -> Result<Option<String>> {
        if id.len() > ID_BYTES_MAX {
            return Ok(None);
        }
        {
            let mut known = self.known.lock();
            if let Some(Some(found)) = known.get(id) {
                return Ok(found.as_ref().map(|definition| definition.to_string()));
            }
            if known.len() >= SCHEMAS_MAX && !known.contains_key(id) {
                return Err(Error::msg(format!("it asked for more than {SCHEMAS_MAX} schemas")));
            }
            // Noted before it is read: a change that comes in between finds that this stage has asked.
            known.insert(id.to_owned(), None);
        }
        let found = match &self.catalog {
            Some(catalog) => tokio::runtime::Handle::current().block_on(catalog.schema(id)),
            None => Ok(None),
        };
        let found = found.map_err(|error| {
            Error::msg(format!("the schema '{}' could not be read: {error}", cut(id.to_owned(), ID_BYTES_MAX)))
        })?;
        let approved = found.filter(|schema| schema.status == SchemaStatus::Approved);
        let definition: Found = approved.map(|schema| schema.definition.into());
        let mut known = self.known.lock();
        // Another instance may have been quicker; all of them see the same.
        let kept = known.entry(id.to_owned()).or_default().get_or_insert(definition);
        Ok(kept.as_ref().map(|definition| definition.to_string()))
    }
}
