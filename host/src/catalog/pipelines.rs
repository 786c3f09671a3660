//! Pipeline revisions. Invariant: a revision is never changed once written, and a scope's numbers only rise, also past a
//! deletion. Never runs a stage.

use serde_json::{Value, json};
use sqlx::any::AnyRow;

use super::columns::{self, Columns, integer};
use super::model::{PipelineRevision, ResolvedStage, Scope, StageSpec};
use super::{Actor, Catalog, CatalogError, Event, Writing, expect_version};
use crate::message::TopicId;

/// Revisions of one scope that are kept: a year of a plugin's file changing thrice a day.
const HISTORY_MAX: u64 = 1000;

/// A revision to be written.
#[derive(Debug, Clone)]
pub struct NewRevision {
    /// Whose.
    pub scope: Scope,
    /// As its owner set them.
    pub stages: Vec<StageSpec>,
    /// What really runs.
    pub resolved: Vec<ResolvedStage>,
    /// Why: `set`, `plugin filter changed`, ….
    pub reason: String,
    /// The revision that it follows, if the caller insists (0: the first); `None`: whichever is last.
    pub expected: Option<u64>,
}

impl Catalog {
    /// The latest revision of every scope that has one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pipelines(&self) -> Result<Vec<PipelineRevision>, CatalogError> {
        let rows = sqlx::query(
            "SELECT r.* FROM pipeline_revisions r
             JOIN pipeline_counters c ON c.scope = r.scope AND c.last_revision = r.revision ORDER BY r.scope",
        )
        .fetch_all(&mut *self.read().await?)
        .await?;
        rows.iter().map(revision).collect()
    }

    /// The latest revision of one scope.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pipeline(&self, scope: Scope) -> Result<Option<PipelineRevision>, CatalogError> {
        let rows = sqlx::query("SELECT * FROM pipeline_revisions WHERE scope = $1 ORDER BY revision DESC LIMIT 1")
            .bind(scope_key(scope))
            .fetch_all(&mut *self.read().await?)
            .await?;
        rows.first().map(revision).transpose()
    }

    /// One revision of a scope, if it is kept.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pipeline_revision(&self, scope: Scope, number: u64) -> Result<Option<PipelineRevision>, CatalogError> {
        let row = sqlx::query("SELECT * FROM pipeline_revisions WHERE scope = $1 AND revision = $2")
            .bind(scope_key(scope))
            .bind(integer(number))
            .fetch_optional(&mut *self.read().await?)
            .await?;
        row.as_ref().map(revision).transpose()
    }

    /// The revisions of one scope that are kept (the last 1000), latest first, and how many there are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pipeline_history(
        &self,
        scope: Scope,
        limit: u64,
        offset: u64,
    ) -> Result<(Vec<PipelineRevision>, u64), CatalogError> {
        let key = scope_key(scope);
        let mut reading = self.read().await?;
        let total: i64 = sqlx::query_scalar("SELECT count(*) FROM pipeline_revisions WHERE scope = $1")
            .bind(&key)
            .fetch_one(&mut *reading)
            .await?;
        let rows =
            sqlx::query("SELECT * FROM pipeline_revisions WHERE scope = $1 ORDER BY revision DESC LIMIT $2 OFFSET $3")
                .bind(&key)
                .bind(integer(limit))
                .bind(integer(offset))
                .fetch_all(&mut *reading)
                .await?;
        Ok((rows.iter().map(revision).collect::<Result<_, _>>()?, total.unsigned_abs()))
    }

    /// Writes the next revision of a scope.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] without its topic or subscription; [`CatalogError::PreconditionFailed`].
    pub async fn add_revision(&self, new: NewRevision, actor: &Actor) -> Result<PipelineRevision, CatalogError> {
        let mut writing = self.write().await?;
        let entity = entity(&mut writing, new.scope).await?;
        let key = scope_key(new.scope);
        let last: Option<i64> = sqlx::query_scalar("SELECT last_revision FROM pipeline_counters WHERE scope = $1")
            .bind(&key)
            .fetch_optional(&mut *writing)
            .await?;
        let last = last.map_or(0, i64::unsigned_abs);
        expect_version(new.expected, last)?;
        let before = latest(&mut writing, &key).await?;
        let after = PipelineRevision {
            scope: new.scope,
            revision: last + 1,
            stages: new.stages,
            resolved: new.resolved,
            reason: new.reason,
            created_by: actor.user.clone(),
            created_at: self.clock.now(),
        };
        insert(&mut writing, &key, &after).await?;
        let details = json!({ "before": before.as_ref().map(shown), "after": shown(&after) });
        let (entity_type, entity_id) = (entity.0, entity.1.as_str());
        self.audit(&mut writing, Event { event_type: "pipeline.changed", entity_type, entity_id, details }, actor)
            .await?;
        writing.commit().await?;
        Ok(after)
    }
}

/// What the audit log calls the scope's owner.
async fn entity(writing: &mut Writing, scope: Scope) -> Result<(&'static str, String), CatalogError> {
    let (entity_type, found): (_, Option<String>) = match scope {
        Scope::Topic(topic) => {
            let name = sqlx::query_scalar("SELECT name FROM topics WHERE topic_id = $1").bind(i64::from(topic.0));
            ("topic", name.fetch_optional(&mut **writing).await?)
        }
        Scope::Subscription(topic, id) => {
            let known = "SELECT subscription_id FROM subscriptions WHERE subscription_id = $1 AND topic_id = $2";
            let known = sqlx::query_scalar(known).bind(id.to_string()).bind(i64::from(topic.0));
            ("subscription", known.fetch_optional(&mut **writing).await?)
        }
    };
    let missing = || CatalogError::NotFound(format!("there is no such {entity_type}"));
    Ok((entity_type, found.ok_or_else(missing)?))
}

async fn latest(writing: &mut Writing, key: &str) -> Result<Option<PipelineRevision>, CatalogError> {
    let row = sqlx::query("SELECT * FROM pipeline_revisions WHERE scope = $1 ORDER BY revision DESC LIMIT 1")
        .bind(key)
        .fetch_optional(&mut **writing)
        .await?;
    row.as_ref().map(revision).transpose()
}

/// Writes the revision, moves the counter, and lets go of what is too old to be kept.
async fn insert(writing: &mut Writing, key: &str, new: &PipelineRevision) -> Result<(), CatalogError> {
    let (topic, subscription) = match new.scope {
        Scope::Topic(topic) => (topic, None),
        Scope::Subscription(topic, subscription) => (topic, Some(subscription.to_string())),
    };
    sqlx::query(
        "INSERT INTO pipeline_counters (scope, last_revision) VALUES ($1, $2)
         ON CONFLICT (scope) DO UPDATE SET last_revision = excluded.last_revision",
    )
    .bind(key)
    .bind(integer(new.revision))
    .execute(&mut **writing)
    .await?;
    sqlx::query(
        "INSERT INTO pipeline_revisions (scope, revision, topic_id, subscription_id, stages, resolved, reason, created_by,
             created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(key)
    .bind(integer(new.revision))
    .bind(i64::from(topic.0))
    .bind(subscription)
    .bind(columns::json(&new.stages))
    .bind(columns::json(&new.resolved))
    .bind(&new.reason)
    .bind(&new.created_by)
    .bind(new.created_at.0)
    .execute(&mut **writing)
    .await?;
    sqlx::query("DELETE FROM pipeline_revisions WHERE scope = $1 AND revision <= $2")
        .bind(key)
        .bind(integer(new.revision.saturating_sub(HISTORY_MAX)))
        .execute(&mut **writing)
        .await?;
    Ok(())
}

fn revision(row: &AnyRow) -> Result<PipelineRevision, CatalogError> {
    let columns = Columns(row);
    let topic = TopicId(columns.number("topic_id")?);
    let scope = match columns.text_opt("subscription_id")? {
        None => Scope::Topic(topic),
        Some(_) => Scope::Subscription(topic, columns.parsed("subscription_id")?),
    };
    Ok(PipelineRevision {
        scope,
        revision: columns.number("revision")?,
        stages: columns.json("stages")?,
        resolved: columns.json("resolved")?,
        reason: columns.text("reason")?,
        created_by: columns.text("created_by")?,
        created_at: columns.time("created_at")?,
    })
}

/// A scope's key in the tables.
fn scope_key(scope: Scope) -> String {
    match scope {
        Scope::Topic(topic) => format!("topic/{}", topic.0),
        Scope::Subscription(_, subscription) => format!("subscription/{subscription}"),
    }
}

/// A revision as the audit log shows it. Without configurations: they may hold secrets, and the history has them.
fn shown(revision: &PipelineRevision) -> Value {
    let stages: Vec<Value> = revision
        .resolved
        .iter()
        .map(|stage| {
            let mut shown = json!({
                "name": stage.spec.name, "plugin": stage.spec.plugin, "version": stage.version, "digest": stage.digest,
            });
            if let Some(rollout) = &stage.rollout {
                shown["rollout"] = json!(rollout);
            }
            shown
        })
        .collect();
    json!({ "revision": revision.revision, "reason": revision.reason, "stages": stages })
}
