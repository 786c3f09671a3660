//! Powers that an Admin allows to plugins. Invariant: what is allowed is what somebody set last, and each change is in the
//! audit log with what was before. Never decides whether a version needs one.

use serde_json::json;

use super::columns::{self, Columns, integer};
use super::model::PluginVersion;
use super::{Actor, Catalog, CatalogError, Event, Writing, expect_version};

/// Plugins that are remembered once all their versions are deleted. Beyond it the oldest is forgotten, and its name is as new.
const DELETED_MAX: i64 = 10_000;

/// What a plugin is allowed beyond what its version in use has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedPowers {
    /// Their names.
    pub allowed: Vec<String>,
    /// Rises with each change; 0: nobody ever set it.
    pub version: u64,
}

impl Catalog {
    /// What `plugin` is allowed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn allowed_powers(&self, plugin: &str) -> Result<AllowedPowers, CatalogError> {
        let row = sqlx::query("SELECT allowed, version FROM plugin_powers WHERE plugin = $1")
            .bind(plugin)
            .fetch_optional(&mut *self.read().await?)
            .await?;
        row.as_ref().map_or_else(|| Ok(AllowedPowers::default()), read)
    }

    /// What the last version of `plugin` imported, if all of them were deleted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn imports_when_deleted(&self, plugin: &str) -> Result<Option<Vec<String>>, CatalogError> {
        let row = sqlx::query("SELECT imports FROM deleted_plugins WHERE plugin = $1")
            .bind(plugin)
            .fetch_optional(&mut *self.read().await?)
            .await?;
        row.as_ref().map(|row| Columns(row).json("imports")).transpose()
    }

    /// The last version of a plugin is gone.
    pub(super) async fn remember_deleted(
        &self,
        writing: &mut Writing,
        last: &PluginVersion,
    ) -> Result<(), CatalogError> {
        sqlx::query(
            "INSERT INTO deleted_plugins (plugin, imports, deleted_at) VALUES ($1, $2, $3)
             ON CONFLICT (plugin) DO UPDATE SET imports = excluded.imports, deleted_at = excluded.deleted_at",
        )
        .bind(&last.plugin)
        .bind(columns::json(&last.imports))
        .bind(self.clock.now().0)
        .execute(&mut **writing)
        .await?;
        sqlx::query(
            "DELETE FROM deleted_plugins WHERE plugin NOT IN
                 (SELECT plugin FROM deleted_plugins ORDER BY deleted_at DESC, plugin LIMIT $1)",
        )
        .bind(DELETED_MAX)
        .execute(&mut **writing)
        .await?;
        Ok(())
    }

    /// Sets what `plugin` is allowed, over the version that the caller has seen, if it insists.
    ///
    /// # Errors
    /// [`CatalogError::PreconditionFailed`]; the database's.
    pub async fn allow_powers(
        &self,
        plugin: &str,
        allowed: Vec<String>,
        expected: Option<u64>,
        actor: &Actor,
    ) -> Result<AllowedPowers, CatalogError> {
        let mut writing = self.write().await?;
        let before = current(&mut writing, plugin).await?;
        expect_version(expected, before.version)?;
        if before.allowed == allowed && before.version > 0 {
            return Ok(before);
        }
        let after = AllowedPowers { allowed, version: before.version + 1 };
        sqlx::query(
            "INSERT INTO plugin_powers (plugin, allowed, version, updated_by, updated_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (plugin) DO UPDATE SET allowed = excluded.allowed, version = excluded.version,
                 updated_by = excluded.updated_by, updated_at = excluded.updated_at",
        )
        .bind(plugin)
        .bind(columns::json(&after.allowed))
        .bind(integer(after.version))
        .bind(&actor.user)
        .bind(self.clock.now().0)
        .execute(&mut *writing)
        .await?;
        let details = json!({ "before": { "allowed": before.allowed }, "after": { "allowed": after.allowed } });
        let event = Event { event_type: "plugin.powersChanged", entity_type: "plugin", entity_id: plugin, details };
        self.audit(&mut writing, event, actor).await?;
        writing.commit().await?;
        Ok(after)
    }
}

async fn current(writing: &mut Writing, plugin: &str) -> Result<AllowedPowers, CatalogError> {
    let row = sqlx::query("SELECT allowed, version FROM plugin_powers WHERE plugin = $1")
        .bind(plugin)
        .fetch_optional(&mut **writing)
        .await?;
    row.as_ref().map_or_else(|| Ok(AllowedPowers::default()), read)
}

fn read(row: &sqlx::any::AnyRow) -> Result<AllowedPowers, CatalogError> {
    let columns = Columns(row);
    Ok(AllowedPowers { allowed: columns.json("allowed")?, version: columns.number("version")? })
}
