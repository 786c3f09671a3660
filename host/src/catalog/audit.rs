//! Who changed what, and when. Invariant: an entry is written in the transaction of the change it tells of, and never
//! changed after; no entry holds a secret. Never decides whether something may be changed.

use serde_json::Value;
use sqlx::any::AnyRow;

use super::columns::{Columns, integer};
use super::engine::Engine;
use super::model::AuditEntry;
use super::{Actor, Catalog, CatalogError, Writing};
use crate::clock::Timestamp;

/// An entry's details are cut to a word above this: they are for people, and a list of entries is one answer.
const DETAILS_BYTES_MAX: usize = 64 * 1024;

/// The guide's `VARCHAR(100)` and `VARCHAR(255)`.
const EVENT_TYPE_CHARS_MAX: usize = 100;
const NAME_CHARS_MAX: usize = 255;

/// Something that happened, without who and when.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    /// `topic.created`, `topic.purged`, ….
    pub event_type: &'a str,
    /// `topic`, `subscription`, ….
    pub entity_type: &'a str,
    /// Its name or id.
    pub entity_id: &'a str,
    /// `{"before": …, "after": …}`, without secrets.
    pub details: Value,
}

/// Which entries to show; all that is set must hold.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// An entity's type (`topic`), its name or id (`orders`), or both (`topic/orders`).
    pub entity: Option<String>,
    /// Who changed it.
    pub user: Option<String>,
    /// Not before this time.
    pub from: Option<Timestamp>,
}

/// What the filter lets through; its values are the first three.
fn matching(engine: Engine) -> String {
    format!(
        "FROM audit_logs WHERE ($1 IS NULL OR entity_type = $1 OR entity_id = $1 OR entity_type || '/' || entity_id = $1)
         AND ($2 IS NULL OR user_id = $2) AND ($3 IS NULL OR created_at >= {})",
        engine.to_time("$3")
    )
}

impl Catalog {
    /// Writes an entry for what changes nothing in the catalog: a purge, an erased message, a drained broker.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record(&self, event: Event<'_>, actor: &Actor) -> Result<(), CatalogError> {
        let mut writing = self.write_aside().await?;
        self.audit(&mut writing, event, actor).await?;
        Ok(writing.commit().await?)
    }

    /// The entries that match, newest first, and how many match in all.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn audit_entries(
        &self,
        filter: &AuditFilter,
        limit: u64,
        offset: u64,
    ) -> Result<(Vec<AuditEntry>, u64), CatalogError> {
        let matching = matching(self.engine);
        let (details, created_at) = (self.engine.json_as_text("details"), self.engine.time_as_millis("created_at"));
        let columns = format!("id, event_type, entity_type, entity_id, user_id, {details}, trace_id, {created_at}");
        // One transaction, so that the total belongs to the page.
        let mut reading = self.read().await?;
        let from = filter.from.map(|from| from.0);
        let total: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) {matching}")))
            .bind(&filter.entity)
            .bind(&filter.user)
            .bind(from)
            .fetch_one(&mut *reading)
            .await?;
        let page = format!("SELECT {columns} {matching} ORDER BY id DESC LIMIT $4 OFFSET $5");
        let rows = sqlx::query(sqlx::AssertSqlSafe(page))
            .bind(&filter.entity)
            .bind(&filter.user)
            .bind(from)
            .bind(integer(limit))
            .bind(integer(offset))
            .fetch_all(&mut *reading)
            .await?;
        Ok((rows.iter().map(entry).collect::<Result<_, _>>()?, total.unsigned_abs()))
    }

    /// Removes entries from before `keep_from`, and the oldest beyond `entries_max`, so that the log does not grow for ever;
    /// returns how many.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn trim_audit(&self, keep_from: Timestamp, entries_max: u64) -> Result<u64, CatalogError> {
        let mut writing = self.write_aside().await?;
        let delete = sqlx::AssertSqlSafe(format!(
            "DELETE FROM audit_logs WHERE created_at < {} OR id <= (SELECT max(id) FROM audit_logs) - $2",
            self.engine.to_time("$1")
        ));
        let done = sqlx::query(delete).bind(keep_from.0).bind(integer(entries_max)).execute(&mut *writing).await?;
        writing.commit().await?;
        Ok(done.rows_affected())
    }

    /// Writes an entry as part of `writing`.
    pub(super) async fn audit(
        &self,
        writing: &mut Writing,
        event: Event<'_>,
        actor: &Actor,
    ) -> Result<(), CatalogError> {
        let mut details = event.details.to_string();
        if details.len() > DETAILS_BYTES_MAX {
            details = serde_json::json!({ "omittedBytes": details.len() }).to_string();
        }
        let engine = self.engine;
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "INSERT INTO audit_logs (event_type, entity_type, entity_id, user_id, details, trace_id, created_at)
             VALUES ($1, $2, $3, $4, {}, $6, {})",
            engine.to_json("$5"),
            engine.to_time("$7")
        )))
        .bind(engine.fitting(event.event_type, EVENT_TYPE_CHARS_MAX))
        .bind(engine.fitting(event.entity_type, EVENT_TYPE_CHARS_MAX))
        .bind(engine.fitting(event.entity_id, NAME_CHARS_MAX))
        .bind(engine.fitting(&actor.user, NAME_CHARS_MAX))
        .bind(engine.storable_json(&details))
        .bind(actor.trace_id.as_deref().map(|id| engine.fitting(id, NAME_CHARS_MAX)))
        .bind(self.clock.now().0)
        .execute(&mut **writing)
        .await?;
        Ok(())
    }
}

fn entry(row: &AnyRow) -> Result<AuditEntry, CatalogError> {
    let columns = Columns(row);
    Ok(AuditEntry {
        id: columns.int("id")?,
        event_type: columns.text("event_type")?,
        entity_type: columns.text_opt("entity_type")?.unwrap_or_default(),
        entity_id: columns.text_opt("entity_id")?.unwrap_or_default(),
        user_id: columns.text_opt("user_id")?.unwrap_or_default(),
        details: columns.json_opt("details")?.unwrap_or_default(),
        trace_id: columns.text_opt("trace_id")?,
        created_at: columns.time("created_at")?,
    })
}
