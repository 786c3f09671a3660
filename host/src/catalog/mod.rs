//! The catalog: what topics, subscriptions, pipelines, plugins and schemas there are, and who changed what: of one broker in
//! `catalog.db` (SQLite), of a fleet in PostgreSQL. Invariant: a change and its audit entry are one transaction, synced before
//! the method returns; changes are made one at a time, whichever broker makes them; a number that names a topic or a cursor is
//! never given out twice, not even after a deletion. Never holds a message.
//!
//! The statements stay within what SQLite and PostgreSQL share (`$n`, `RETURNING`, `ON CONFLICT`; columns of integers, text and
//! bytes), so there is one of each; where the tables differ, `engine.rs` has both spellings.

mod audit;
mod columns;
mod engine;
mod identity;
pub mod members;
pub mod model;
pub mod moving;
mod pipelines;
mod plugins;
pub mod postgres;
mod powers;
mod salvage;
mod schemas;
mod sqlite;
mod subscriptions;
mod topics;

use sqlx::AnyPool;

use crate::clock::Clock;
use engine::{Engine, Purpose, Transaction as Writing};

pub use audit::{AuditFilter, Event};
pub use model::*;
pub use pipelines::NewRevision;
pub use plugins::{Accepted, NewPlugin};
pub use powers::AllowedPowers;
pub use salvage::{PageFault, Salvaged};
pub use schemas::{NewSchema, Registered};

/// Who asks for a change, for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The token's `sub`, or `system`.
    pub user: String,
    /// Finds the request in the logs.
    pub trace_id: Option<String>,
}

impl Actor {
    /// The broker itself.
    #[must_use]
    pub fn system() -> Actor {
        Actor { user: "system".to_owned(), trace_id: None }
    }
}

/// Why the catalog did not do it. Nothing was changed, except perhaps after [`CatalogError::Unavailable`].
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Something else is in the way: the sentence says what.
    #[error("{0}")]
    Conflict(String),
    /// There is no such thing: the sentence says which.
    #[error("{0}")]
    NotFound(String),
    /// It was changed since the caller read it.
    #[error("it was changed meanwhile and is at version {current}")]
    PreconditionFailed {
        /// Its version (or revision) now; 0 if it has none yet.
        current: u64,
    },
    /// The catalog was written by a newer Sluice.
    #[error(
        "the catalog was written by a newer version of Sluice (its schema is at {found}, this one knows {known}): run that version, or restore a backup from before the upgrade"
    )]
    Newer {
        /// The migration that the catalog has.
        found: i64,
        /// The last one that this binary has.
        known: i64,
    },
    /// The tables are not yet those that this Sluice needs.
    #[error(
        "the tables of the catalog are at migration {found} and this version of Sluice needs {known}: run `sluice migrate up`"
    )]
    Outdated {
        /// The migration that the catalog has; 0 if it has none.
        found: i64,
        /// The last one that this binary has.
        known: i64,
    },
    /// What is stored cannot be what was written.
    #[error("the catalog is damaged: {0}")]
    Damaged(String),
    /// The database failed; it may work later.
    #[error("the catalog is not available: {0}")]
    Unavailable(#[source] sqlx::Error),
}

impl From<sqlx::Error> for CatalogError {
    fn from(error: sqlx::Error) -> CatalogError {
        match &error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => CatalogError::Damaged(error.to_string()),
            sqlx::Error::Database(database) if engine::says_damage(&**database) => {
                CatalogError::Damaged(error.to_string())
            }
            sqlx::Error::Database(database) if engine::refuses_text(&**database) => {
                CatalogError::Conflict("text with the character U+0000 cannot be kept in PostgreSQL".to_owned())
            }
            _ => CatalogError::Unavailable(error),
        }
    }
}

/// The catalog. Cheap to clone; clones share one pool.
#[derive(Debug, Clone)]
pub struct Catalog {
    pool: AnyPool,
    engine: Engine,
    clock: Clock,
}

impl Catalog {
    /// Waits for what runs, then closes the file; later calls are [`CatalogError::Unavailable`]. Idempotent.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Whether the catalog answers.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn ping(&self) -> Result<(), CatalogError> {
        sqlx::query("SELECT 1").execute(&mut *self.read().await?).await?;
        Ok(())
    }

    /// Reads every page and index (of SQLite; PostgreSQL has tools of its own for that), and holds each plugin's bytes against
    /// their digest; an empty list says that all is well.
    ///
    /// # Errors
    /// When it cannot even be read.
    pub async fn verify(&self) -> Result<Vec<String>, CatalogError> {
        let mut faults: Vec<String> = match self.engine {
            // Up to 100 faults, and "ok" if there is none.
            Engine::Sqlite => sqlx::query_scalar("PRAGMA integrity_check").fetch_all(&self.pool).await?,
            Engine::Postgres => Vec::new(),
        };
        faults.retain(|fault| fault != "ok");
        let digests = sqlx::query_scalar("SELECT digest FROM plugin_blobs ORDER BY digest");
        let digests: Vec<String> = digests.fetch_all(&mut *self.read().await?).await?;
        for digest in digests {
            match self.plugin_bytes(&digest).await {
                Ok(_) => {}
                Err(CatalogError::Damaged(fault)) => faults.push(fault),
                Err(other) => return Err(other),
            }
        }
        Ok(faults)
    }

    /// Begins a transaction that sees one state of the catalog.
    async fn read(&self) -> Result<Writing, CatalogError> {
        Ok(self.engine.transaction(&self.pool, Purpose::Read).await?)
    }

    /// Begins a transaction that holds the write lock from the start.
    async fn write(&self) -> Result<Writing, CatalogError> {
        Ok(self.engine.transaction(&self.pool, Purpose::Write).await?)
    }

    /// Begins one that writes what no other broker has to notice: a number, an entry of the audit log.
    async fn write_aside(&self) -> Result<Writing, CatalogError> {
        Ok(self.engine.transaction(&self.pool, Purpose::WriteAside).await?)
    }
}

/// Turns "there is such a key already" into a conflict with a sentence for the caller.
fn conflict(error: sqlx::Error, sentence: impl FnOnce() -> String) -> CatalogError {
    if error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation) {
        CatalogError::Conflict(sentence())
    } else {
        error.into()
    }
}

/// Holds the version that the caller has seen against the stored one.
fn expect_version(expected: Option<u64>, current: u64) -> Result<(), CatalogError> {
    match expected {
        Some(expected) if expected != current => Err(CatalogError::PreconditionFailed { current }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
