//! Registered schemas. Invariant: a version's text never changes; `schemas` holds the version that validates now and
//! `schema_versions` all of them. Never reads a definition: [`crate::schemas`] judges what may be registered.

use serde_json::json;
use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;

use super::columns::{Columns, integer, name};
use super::engine::Engine;
use super::model::{Compatibility, Schema, SchemaStatus};
use super::{Actor, Catalog, CatalogError, Event, Writing};

/// A version to be registered.
#[derive(Debug, Clone)]
pub struct NewSchema {
    /// The schema's id.
    pub id: String,
    /// The version's name.
    pub version: String,
    /// JSON Schema.
    pub definition: String,
    /// What later versions may change.
    pub compatibility: Compatibility,
}

/// Whether a version was known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// It is new.
    New,
    /// The same had been registered before.
    Again,
}

impl Catalog {
    /// Registers a version, approved at once. `same` says whether two definitions are one; `judge` is asked whether the
    /// new version may follow the one that validates now, inside the transaction that makes it do so.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if the version's name is used for something else; what `judge` says.
    pub async fn register_schema<E: From<CatalogError>>(
        &self,
        new: NewSchema,
        same: impl FnOnce(&str, &str) -> bool + Send,
        judge: impl FnOnce(&Schema) -> Result<(), E> + Send,
        actor: &Actor,
    ) -> Result<(Schema, Registered), E> {
        let mut writing = self.write().await?;
        if let Some(known) = named(self.engine, &mut writing, &new.id, &new.version).await? {
            if known.compatibility == new.compatibility && same(&known.definition, &new.definition) {
                return Ok((known, Registered::Again));
            }
            let sentence =
                format!("version '{}' of the schema '{}' is registered with other content", new.version, new.id);
            return Err(CatalogError::Conflict(sentence).into());
        }
        let before = current(self.engine, &mut writing, &new.id).await?;
        if let Some(before) = &before {
            judge(before)?;
        }
        let now = self.clock.now();
        let after = Schema {
            id: new.id.into(),
            version: new.version,
            definition: new.definition,
            compatibility: new.compatibility,
            status: SchemaStatus::Approved,
            approved_by: None,
            approved_at: Some(now),
            created_at: now,
            deprecated_at: None,
        };
        insert(self.engine, &mut writing, &after).await?;
        let details = json!({ "before": before.as_ref().map(shown), "after": shown(&after) });
        let event = Event { event_type: "schema.registered", entity_type: "schema", entity_id: &after.id, details };
        self.audit(&mut writing, event, actor).await?;
        writing.commit().await.map_err(CatalogError::from)?;
        Ok((after, Registered::New))
    }

    /// A schema with the version that validates now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn schema(&self, id: &str) -> Result<Option<Schema>, CatalogError> {
        let row = sqlx::query(select(self.engine, "schemas WHERE schema_id = $1"))
            .bind(id)
            .fetch_optional(&mut *self.read().await?)
            .await?;
        row.as_ref().map(schema).transpose()
    }

    /// The schemas with that status, by id, and how many there are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn schemas(
        &self,
        status: Option<SchemaStatus>,
        limit: u64,
        offset: u64,
    ) -> Result<(Vec<Schema>, u64), CatalogError> {
        let status = status.map(name);
        let mut reading = self.read().await?;
        let total: i64 = sqlx::query_scalar("SELECT count(*) FROM schemas WHERE $1 IS NULL OR status = $1")
            .bind(&status)
            .fetch_one(&mut *reading)
            .await?;
        let page = "schemas WHERE $1 IS NULL OR status = $1 ORDER BY schema_id LIMIT $2 OFFSET $3";
        let rows = sqlx::query(select(self.engine, page))
            .bind(&status)
            .bind(integer(limit))
            .bind(integer(offset))
            .fetch_all(&mut *reading)
            .await?;
        Ok((rows.iter().map(schema).collect::<Result<_, _>>()?, total.unsigned_abs()))
    }

    /// How many versions of all schemas there are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn schema_versions_count(&self) -> Result<u64, CatalogError> {
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM schema_versions").fetch_one(&mut *self.read().await?).await?;
        Ok(count.unsigned_abs())
    }

    /// All versions of a schema, latest first; none if there is no such schema.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn schema_versions(&self, id: &str) -> Result<Vec<Schema>, CatalogError> {
        let rows = sqlx::query(select(self.engine, "schema_versions WHERE schema_id = $1 ORDER BY id DESC"))
            .bind(id)
            .fetch_all(&mut *self.read().await?)
            .await?;
        rows.iter().map(schema).collect()
    }
}

/// All columns of a version, from what follows in `rest`.
fn select(engine: Engine, rest: &str) -> AssertSqlSafe<String> {
    let times = ["approved_at", "created_at", "deprecated_at"].map(|column| engine.time_as_millis(column)).join(", ");
    AssertSqlSafe(format!(
        "SELECT schema_id, schema_definition, version, compatibility, status, approved_by, {times} FROM {rest}"
    ))
}

async fn named(engine: Engine, writing: &mut Writing, id: &str, version: &str) -> Result<Option<Schema>, CatalogError> {
    let row = sqlx::query(select(engine, "schema_versions WHERE schema_id = $1 AND version = $2"))
        .bind(id)
        .bind(version)
        .fetch_optional(&mut **writing)
        .await?;
    row.as_ref().map(schema).transpose()
}

async fn current(engine: Engine, writing: &mut Writing, id: &str) -> Result<Option<Schema>, CatalogError> {
    let row =
        sqlx::query(select(engine, "schemas WHERE schema_id = $1")).bind(id).fetch_optional(&mut **writing).await?;
    row.as_ref().map(schema).transpose()
}

/// Writes the version into the history and makes it the one that validates.
async fn insert(engine: Engine, writing: &mut Writing, new: &Schema) -> Result<(), CatalogError> {
    let [approved_at, created_at, deprecated_at] = ["$7", "$8", "$9"].map(|parameter| engine.to_time(parameter));
    let values = format!(
        "(schema_id, schema_definition, version, compatibility, status, approved_by, approved_at, created_at, deprecated_at)
         VALUES ($1, $2, $3, $4, $5, $6, {approved_at}, {created_at}, {deprecated_at})"
    );
    for statement in [
        format!("INSERT INTO schema_versions {values}"),
        format!(
            "INSERT INTO schemas {values}
         ON CONFLICT (schema_id) DO UPDATE SET schema_definition = excluded.schema_definition,
             version = excluded.version, compatibility = excluded.compatibility, status = excluded.status,
             approved_by = excluded.approved_by, approved_at = excluded.approved_at, created_at = excluded.created_at,
             deprecated_at = excluded.deprecated_at"
        ),
    ] {
        sqlx::query(AssertSqlSafe(statement))
            .bind(&*new.id)
            .bind(&new.definition)
            .bind(&new.version)
            .bind(name(new.compatibility))
            .bind(name(new.status))
            .bind(&new.approved_by)
            .bind(new.approved_at.map(|at| at.0))
            .bind(new.created_at.0)
            .bind(new.deprecated_at.map(|at| at.0))
            .execute(&mut **writing)
            .await?;
    }
    Ok(())
}

fn schema(row: &AnyRow) -> Result<Schema, CatalogError> {
    let columns = Columns(row);
    Ok(Schema {
        id: columns.text("schema_id")?.into(),
        version: columns.text("version")?,
        definition: columns.text("schema_definition")?,
        compatibility: columns.named("compatibility")?,
        status: columns.named("status")?,
        approved_by: columns.text_opt("approved_by")?,
        approved_at: columns.time_opt("approved_at")?,
        created_at: columns.time("created_at")?,
        deprecated_at: columns.time_opt("deprecated_at")?,
    })
}

/// A version as the audit log shows it; the history has its text.
fn shown(schema: &Schema) -> serde_json::Value {
    json!({ "version": schema.version, "compatibility": schema.compatibility, "status": schema.status })
}
