//! The schema registry: takes in JSON Schemas, and holds payloads against them. Invariant: what is registered is a valid
//! schema of a draft we know, and one that follows another keeps the compatibility that either of them declares. Never
//! fetches anything: a schema refers to itself and to the drafts' own meta-schemas only.

mod compatibility;
mod compile;

use std::sync::Arc;

use jsonschema::Validator;
use moka::sync::Cache;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

pub(crate) use self::compile::{compile, faults};

use crate::catalog::{Actor, Catalog, CatalogError, Compatibility, NewSchema, Registered, Schema, SchemaStatus};

/// Bytes of a definition. The largest public schemas (OpenAPI's, FHIR's parts) are a third of it.
pub const DEFINITION_BYTES_MAX: usize = 256 * 1024;
/// Bytes of an id, from the guide's `VARCHAR(255)`.
pub const SCHEMA_ID_BYTES_MAX: usize = 255;
/// Bytes of a version's name, from the guide's `VARCHAR(50)`.
pub const VERSION_BYTES_MAX: usize = 50;
/// Faults told at once: a sender mends a handful at a time, and a payload must not grow into an answer of a million lines.
pub const FAULTS_MAX: usize = 50;
/// Compiled schemas that are kept: a compiled one is some ten times its text, so this is at most a few hundred megabytes
/// with only the largest, and a few with usual ones.
const COMPILED_MAX: u64 = 128;

/// What is wrong with a schema, or with a payload under one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Fault {
    /// JSON Pointer: into the registration, or into the payload.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

/// Why the registry did not do it.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The registration is wrong; all faults at once.
    #[error("the schema is not valid")]
    Invalid(Vec<Fault>),
    /// The new version may change more than the declared compatibility allows.
    #[error("with compatibility {declared:?} a new version may only change annotations (title, description, examples, …); it also changes: {}", changed.join(", "))]
    Incompatible {
        /// What was declared.
        declared: Compatibility,
        /// JSON Pointers into the definition.
        changed: Vec<String>,
    },
    /// There is no such schema.
    #[error("there is no schema '{0}'")]
    NotFound(String),
    /// Only approved versions validate.
    #[error("the schema '{id}' is {status:?}, and only an Approved one validates")]
    NotApproved {
        /// The schema.
        id: String,
        /// Its status.
        status: SchemaStatus,
    },
    /// The catalog did not do it; a version's name that is used for other content is a conflict.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// There are as many versions as the settings allow.
    #[error("there are {0} versions of schemas, as many as schemas.versions_max allows: raise it")]
    Full(u64),
    /// The broker is stopping.
    #[error("the broker is stopping")]
    Stopping,
}

/// The registry. Cheap to clone; clones share the compiled schemas.
#[derive(Debug, Clone)]
pub struct Schemas {
    catalog: Catalog,
    /// By id and version. A version's text never changes, so an entry is never wrong.
    compiled: Cache<(Arc<str>, String), Arc<Validator>>,
    versions_max: u64,
}

impl Schemas {
    /// The registry over the catalog, with so many versions of all schemas at most.
    #[must_use]
    pub fn new(catalog: Catalog, versions_max: usize) -> Schemas {
        Schemas { catalog, compiled: Cache::new(COMPILED_MAX), versions_max: versions_max as u64 }
    }

    /// Registers a version, approved at once. The same version with the same definition again changes nothing. Where the
    /// version before it or this one declares a compatibility other than `None`, only changes of annotations pass, for
    /// these are compatible in both directions beyond doubt. (To make a breaking change, first register a version that
    /// declares `None` and changes nothing else.)
    ///
    /// # Errors
    /// [`SchemaError::Invalid`], [`SchemaError::Incompatible`], or the catalog's conflict.
    pub async fn register(&self, new: NewSchema, actor: &Actor) -> Result<(Schema, Registered), SchemaError> {
        let (new, definition, validator) = blocking(move || {
            check_names(&new)?;
            let (definition, validator) = compile::compile(&new.definition).map_err(SchemaError::Invalid)?;
            Ok((new, definition, validator))
        })
        .await?;
        let there = self.catalog.schema_versions_count().await?;
        // Known versions pass: registering one again adds none.
        if there >= self.versions_max && !self.is_known(&new).await? {
            return Err(SchemaError::Full(there));
        }
        let declared = new.compatibility;
        // JSON that is written differently is the same definition.
        let same = |known: &str, _: &str| serde_json::from_str::<Value>(known).is_ok_and(|known| known == definition);
        let judge = |before: &Schema| judge(before, declared, &definition);
        let (schema, registered) = self.catalog.register_schema(new, same, judge, actor).await?;
        self.compiled.insert((Arc::clone(&schema.id), schema.version.clone()), Arc::new(validator));
        Ok((schema, registered))
    }

    async fn is_known(&self, new: &NewSchema) -> Result<bool, SchemaError> {
        let versions = self.catalog.schema_versions(&new.id).await?;
        Ok(versions.iter().any(|known| known.version == new.version))
    }

    /// A schema with the version that validates now.
    ///
    /// # Errors
    /// [`SchemaError::NotFound`].
    pub async fn get(&self, id: &str) -> Result<Schema, SchemaError> {
        self.catalog.schema(id).await?.ok_or_else(|| SchemaError::NotFound(id.to_owned()))
    }

    /// The schemas with that status, by id, and how many there are.
    ///
    /// # Errors
    /// The catalog's.
    pub async fn list(
        &self,
        status: Option<SchemaStatus>,
        limit: u64,
        offset: u64,
    ) -> Result<(Vec<Schema>, u64), SchemaError> {
        Ok(self.catalog.schemas(status, limit, offset).await?)
    }

    /// All versions of a schema, latest first.
    ///
    /// # Errors
    /// [`SchemaError::NotFound`].
    pub async fn versions(&self, id: &str) -> Result<Vec<Schema>, SchemaError> {
        let versions = self.catalog.schema_versions(id).await?;
        if versions.is_empty() { Err(SchemaError::NotFound(id.to_owned())) } else { Ok(versions) }
    }

    /// The faults of a payload (the first [`FAULTS_MAX`]); none if it is valid. `format` is an annotation, as the drafts
    /// have it by default, and asserts nothing.
    ///
    /// # Errors
    /// [`SchemaError::NotFound`], [`SchemaError::NotApproved`].
    pub async fn validate(&self, id: &str, payload: Value) -> Result<Vec<Fault>, SchemaError> {
        let schema = self.get(id).await?;
        if schema.status != SchemaStatus::Approved {
            return Err(SchemaError::NotApproved { id: id.to_owned(), status: schema.status });
        }
        let compiled = self.compiled.clone();
        blocking(move || {
            let validator = compiled
                .try_get_with((Arc::clone(&schema.id), schema.version.clone()), || {
                    compile::compile(&schema.definition).map(|(_, validator)| Arc::new(validator))
                })
                .map_err(|faults| damaged(&schema, &faults))?;
            // Most payloads are valid, and this asks that alone, several times faster than collecting faults.
            if validator.is_valid(&payload) {
                return Ok(Vec::new());
            }
            Ok(compile::faults(validator.iter_errors(&payload), ""))
        })
        .await
    }
}

/// Compiling and validating take as long as a schema and a payload ask for: not on the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SchemaError> + Send + 'static,
) -> Result<T, SchemaError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(SchemaError::Stopping))
}

/// A registered definition compiled when it was registered.
fn damaged(schema: &Schema, faults: &[Fault]) -> SchemaError {
    let (id, version) = (&schema.id, &schema.version);
    let fault = faults.first().map_or("", |fault| &fault.message);
    CatalogError::Damaged(format!("the schema '{id}', version '{version}', does not compile any more: {fault}")).into()
}

fn check_names(new: &NewSchema) -> Result<(), SchemaError> {
    let mut faults = Vec::new();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    for (path, text, max) in
        [("/schemaId", &new.id, SCHEMA_ID_BYTES_MAX), ("/version", &new.version, VERSION_BYTES_MAX)]
    {
        if text.is_empty() || text.len() > max || !text.bytes().all(allowed) {
            let message = format!("must be 1 to {max} letters, digits, dots, underscores or hyphens");
            faults.push(Fault { path: path.to_owned(), message });
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(SchemaError::Invalid(faults)) }
}

/// Both declarations bind: the one before promised what may follow it, and this one promises how it follows.
fn judge(before: &Schema, declared: Compatibility, definition: &Value) -> Result<(), SchemaError> {
    let declared = if before.compatibility == Compatibility::None { declared } else { before.compatibility };
    if declared == Compatibility::None {
        return Ok(());
    }
    let old = serde_json::from_str(&before.definition)
        .map_err(|error| CatalogError::Damaged(format!("the schema '{}' is not JSON any more: {error}", before.id)))?;
    let changed = compatibility::changes(&old, definition);
    if changed.is_empty() { Ok(()) } else { Err(SchemaError::Incompatible { declared, changed }) }
}

#[cfg(test)]
mod tests;
