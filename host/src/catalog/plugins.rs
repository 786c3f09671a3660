//! Plugins' versions and their bytes. Invariant: a label names the same bytes for ever, and the bytes are those of their
//! SHA-256, which is checked whenever they are read (SQLite's pages have no checksums). `latest` is the version accepted
//! last. Never compiles or judges a component.

use bytes::Bytes;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use sqlx::any::AnyRow;

use super::columns::{self, Columns, integer, name};
use super::model::{PluginSource, PluginVersion};
use super::{Actor, Catalog, CatalogError, Event, Writing};

/// A component that has been found good.
#[derive(Debug, Clone)]
pub struct NewPlugin {
    /// The plugin's name.
    pub plugin: String,
    /// Its label, if it was given one; else the label under which these bytes are known, or `sha-` and 12 digits.
    pub version: Option<String>,
    /// The component.
    pub bytes: Bytes,
    /// Hex SHA-256 of `bytes`.
    pub digest: String,
    /// Where it came from.
    pub source: PluginSource,
    /// The interfaces it imports.
    pub imports: Vec<String>,
    /// The trusted key that signed it, in base64.
    pub signed_by: Option<String>,
    /// JSON Schema of its configs, as the component carries it.
    pub config_schema: Option<String>,
}

/// Whether a version was known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It is new.
    New,
    /// The same bytes had come before.
    Again,
}

impl Catalog {
    /// All versions of all plugins, by name and then in the order of their acceptance: the last of a name is `latest`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn plugin_versions(&self) -> Result<Vec<PluginVersion>, CatalogError> {
        let rows = sqlx::query("SELECT * FROM plugin_versions ORDER BY plugin, accepted")
            .fetch_all(&mut *self.read().await?)
            .await?;
        rows.iter().map(version).collect()
    }

    /// Takes in a version, or one that is known again, which becomes `latest` either way.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if the label names other bytes; [`CatalogError::Damaged`] if the bytes are not the digest's.
    pub async fn accept_plugin(
        &self,
        new: NewPlugin,
        actor: &Actor,
    ) -> Result<(PluginVersion, Accepted), CatalogError> {
        check_digest(new.bytes.clone(), new.digest.clone()).await?;
        if new.version.as_deref() == Some("latest") {
            return Err(CatalogError::Conflict(
                "'latest' names the version accepted last and cannot be a label".to_owned(),
            ));
        }
        let mut writing = self.write().await?;
        let latest = latest(&mut writing, &new.plugin).await?;
        let (after, accepted) = match known(&mut writing, &new).await? {
            // Already what `latest` means: a restart that finds the same files again changes nothing.
            Some(known) if latest.as_ref() == Some(&known) && !is_newly_signed(&known, &new) => {
                return Ok((known, Accepted::Again));
            }
            Some(known) => (accept_again(&mut writing, known, new.signed_by).await?, Accepted::Again),
            None => (self.insert_version(&mut writing, new, actor).await?, Accepted::New),
        };
        let details = json!({ "before": latest.as_ref().map(shown), "after": shown(&after) });
        self.audit(&mut writing, event("plugin.accepted", &after.plugin, details), actor).await?;
        writing.commit().await?;
        Ok((after, accepted))
    }

    /// The component with this digest.
    ///
    /// # Errors
    /// [`CatalogError::Damaged`] if what is stored has another one.
    pub async fn plugin_bytes(&self, digest: &str) -> Result<Option<Vec<u8>>, CatalogError> {
        let bytes: Option<Vec<u8>> = sqlx::query_scalar("SELECT bytes FROM plugin_blobs WHERE digest = $1")
            .bind(digest)
            .fetch_optional(&mut *self.read().await?)
            .await?;
        match bytes {
            None => Ok(None),
            Some(bytes) => Ok(Some(check_digest(bytes.into(), digest.to_owned()).await?.into())),
        }
    }

    /// The JSON Schema that a version has for its configs. Apart from the version: it may be large, and few ask.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn config_schema(&self, plugin: &str, label: &str) -> Result<Option<String>, CatalogError> {
        let schema: Option<Option<String>> =
            sqlx::query_scalar("SELECT config_schema FROM plugin_versions WHERE plugin = $1 AND version = $2")
                .bind(plugin)
                .bind(label)
                .fetch_optional(&mut *self.read().await?)
                .await?;
        Ok(schema.flatten())
    }

    /// Removes a version, and the bytes if no other version has them.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`]; [`CatalogError::Conflict`] while a pipeline runs it.
    pub async fn delete_plugin_version(&self, plugin: &str, label: &str, actor: &Actor) -> Result<(), CatalogError> {
        let mut writing = self.write().await?;
        let before = labelled(&mut writing, plugin, label)
            .await?
            .ok_or_else(|| CatalogError::NotFound(format!("there is no version '{label}' of the plugin '{plugin}'")))?;
        refuse_bound(&mut writing, &before).await?;
        sqlx::query("DELETE FROM plugin_versions WHERE plugin = $1 AND version = $2")
            .bind(plugin)
            .bind(label)
            .execute(&mut *writing)
            .await?;
        sqlx::query(
            "DELETE FROM plugin_blobs WHERE digest = $1
                 AND NOT EXISTS (SELECT 1 FROM plugin_versions WHERE plugin_versions.digest = $1)",
        )
        .bind(&before.digest)
        .execute(&mut *writing)
        .await?;
        if latest(&mut writing, plugin).await?.is_none() {
            self.remember_deleted(&mut writing, &before).await?;
        }
        let details = json!({ "before": shown(&before), "after": null });
        self.audit(&mut writing, event("plugin.versionDeleted", plugin, details), actor).await?;
        Ok(writing.commit().await?)
    }

    async fn insert_version(
        &self,
        writing: &mut Writing,
        new: NewPlugin,
        actor: &Actor,
    ) -> Result<PluginVersion, CatalogError> {
        let label = new.version.unwrap_or_else(|| short_label(&new.digest));
        sqlx::query("INSERT INTO plugin_blobs (digest, bytes) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING")
            .bind(&new.digest)
            .bind(&new.bytes[..])
            .execute(&mut **writing)
            .await?;
        let version = PluginVersion {
            plugin: new.plugin,
            version: label,
            digest: new.digest,
            size: new.bytes.len() as u64,
            source: new.source,
            imports: new.imports,
            signed_by: new.signed_by,
            created_by: actor.user.clone(),
            created_at: self.clock.now(),
            accepted: next_acceptance(writing).await?,
        };
        insert(writing, &version, new.config_schema.as_deref()).await?;
        sqlx::query("DELETE FROM deleted_plugins WHERE plugin = $1")
            .bind(&version.plugin)
            .execute(&mut **writing)
            .await?;
        Ok(version)
    }
}

/// The version that the same bytes have already, under the label given or, without one, under any.
async fn known(writing: &mut Writing, new: &NewPlugin) -> Result<Option<PluginVersion>, CatalogError> {
    let Some(label) = &new.version else {
        let row = sqlx::query(
            "SELECT * FROM plugin_versions WHERE plugin = $1 AND digest = $2 ORDER BY accepted DESC LIMIT 1",
        )
        .bind(&new.plugin)
        .bind(&new.digest)
        .fetch_optional(&mut **writing)
        .await?;
        return match row.as_ref().map(version).transpose()? {
            Some(known) => Ok(Some(known)),
            None => match_label(writing, new, &short_label(&new.digest)).await,
        };
    };
    match_label(writing, new, label).await
}

async fn match_label(
    writing: &mut Writing,
    new: &NewPlugin,
    label: &str,
) -> Result<Option<PluginVersion>, CatalogError> {
    match labelled(writing, &new.plugin, label).await? {
        Some(known) if known.digest != new.digest => Err(CatalogError::Conflict(format!(
            "the version '{label}' of the plugin '{}' has other bytes (SHA-256 {}): give these another label",
            new.plugin, known.digest
        ))),
        known => Ok(known),
    }
}

async fn labelled(writing: &mut Writing, plugin: &str, label: &str) -> Result<Option<PluginVersion>, CatalogError> {
    let row = sqlx::query("SELECT * FROM plugin_versions WHERE plugin = $1 AND version = $2")
        .bind(plugin)
        .bind(label)
        .fetch_optional(&mut **writing)
        .await?;
    row.as_ref().map(version).transpose()
}

async fn latest(writing: &mut Writing, plugin: &str) -> Result<Option<PluginVersion>, CatalogError> {
    let row = sqlx::query("SELECT * FROM plugin_versions WHERE plugin = $1 ORDER BY accepted DESC LIMIT 1")
        .bind(plugin)
        .fetch_optional(&mut **writing)
        .await?;
    row.as_ref().map(version).transpose()
}

/// Whether bytes that are known come with a signature that they had not.
fn is_newly_signed(known: &PluginVersion, new: &NewPlugin) -> bool {
    new.signed_by.is_some() && new.signed_by != known.signed_by
}

/// Bytes that come unsigned keep the signature that they had: it is as good as before.
async fn accept_again(
    writing: &mut Writing,
    known: PluginVersion,
    signed_by: Option<String>,
) -> Result<PluginVersion, CatalogError> {
    let accepted = next_acceptance(writing).await?;
    let signed_by = signed_by.or(known.signed_by);
    sqlx::query("UPDATE plugin_versions SET accepted = $3, signed_by = $4 WHERE plugin = $1 AND version = $2")
        .bind(&known.plugin)
        .bind(&known.version)
        .bind(integer(accepted))
        .bind(&signed_by)
        .execute(&mut **writing)
        .await?;
    Ok(PluginVersion { accepted, signed_by, ..known })
}

async fn next_acceptance(writing: &mut Writing) -> Result<u64, CatalogError> {
    let next: i64 = sqlx::query_scalar("INSERT INTO plugin_acceptances DEFAULT VALUES RETURNING id")
        .fetch_one(&mut **writing)
        .await?;
    sqlx::query("DELETE FROM plugin_acceptances").execute(&mut **writing).await?;
    Ok(next.unsigned_abs())
}

async fn insert(
    writing: &mut Writing,
    version: &PluginVersion,
    config_schema: Option<&str>,
) -> Result<(), CatalogError> {
    sqlx::query(
        "INSERT INTO plugin_versions (plugin, version, digest, size, source, imports, created_by, created_at, accepted,
             signed_by, config_schema)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(&version.plugin)
    .bind(&version.version)
    .bind(&version.digest)
    .bind(integer(version.size))
    .bind(name(version.source))
    .bind(columns::json(&version.imports))
    .bind(&version.created_by)
    .bind(version.created_at.0)
    .bind(integer(version.accepted))
    .bind(&version.signed_by)
    .bind(config_schema)
    .execute(&mut **writing)
    .await?;
    Ok(())
}

/// Refuses while the latest revision of some pipeline runs this version.
async fn refuse_bound(writing: &mut Writing, of: &PluginVersion) -> Result<(), CatalogError> {
    let rows = sqlx::query(
        "SELECT r.scope, r.resolved FROM pipeline_revisions r
         JOIN pipeline_counters c ON c.scope = r.scope AND c.last_revision = r.revision",
    )
    .fetch_all(&mut **writing)
    .await?;
    for row in &rows {
        let columns = Columns(row);
        let stages: Vec<super::model::ResolvedStage> = columns.json("resolved")?;
        let runs = |stage: &super::model::ResolvedStage| {
            let tries = stage.rollout.as_ref().is_some_and(|rollout| rollout.version == of.version);
            stage.spec.plugin == of.plugin && (stage.version == of.version || tries)
        };
        if stages.iter().any(runs) {
            let scope = columns.text("scope")?;
            return Err(CatalogError::Conflict(format!(
                "the pipeline of {scope} runs this version: change that first"
            )));
        }
    }
    Ok(())
}

/// Hashing megabytes takes milliseconds: not on the runtime's threads.
async fn check_digest(bytes: Bytes, digest: String) -> Result<Bytes, CatalogError> {
    let hashed = tokio::task::spawn_blocking(move || {
        let found = hex::encode(Sha256::digest(&bytes));
        if found == digest {
            Ok(bytes)
        } else {
            Err(CatalogError::Damaged(format!("the plugin bytes under the digest {digest} have the digest {found}")))
        }
    });
    match hashed.await {
        Ok(checked) => checked,
        // Hashing does not panic, so the runtime is going down.
        Err(_) => Err(CatalogError::Unavailable(sqlx::Error::WorkerCrashed)),
    }
}

fn short_label(digest: &str) -> String {
    format!("sha-{}", digest.get(..12).unwrap_or(digest))
}

fn version(row: &AnyRow) -> Result<PluginVersion, CatalogError> {
    let columns = Columns(row);
    Ok(PluginVersion {
        plugin: columns.text("plugin")?,
        version: columns.text("version")?,
        digest: columns.text("digest")?,
        size: columns.number("size")?,
        source: columns.named("source")?,
        imports: columns.json("imports")?,
        signed_by: columns.text_opt("signed_by")?,
        created_by: columns.text("created_by")?,
        created_at: columns.time("created_at")?,
        accepted: columns.number("accepted")?,
    })
}

fn event<'a>(event_type: &'a str, plugin: &'a str, details: serde_json::Value) -> Event<'a> {
    Event { event_type, entity_type: "plugin", entity_id: plugin, details }
}

fn shown(version: &PluginVersion) -> serde_json::Value {
    json!({
        "version": version.version,
        "digest": version.digest,
        "size": version.size,
        "source": version.source,
        "imports": version.imports,
        "signedBy": version.signed_by,
        "accepted": version.accepted,
    })
}
