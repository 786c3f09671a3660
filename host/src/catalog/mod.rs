//! The catalog: what topics, subscriptions, pipelines, plugins and schemas there are, and who changed what, in
//! `catalog.db` (SQLite). Invariant: a change and its audit entry are one transaction, synced before the method
//! returns; a number that names a topic or a cursor is never given out twice, not even after a deletion. Never holds a
//! message, and never touches the network.
//!
//! The SQL stays within what SQLite and PostgreSQL share (`$n`, `RETURNING`, `ON CONFLICT`): a fleet will run the same
//! statements on PostgreSQL.

mod audit;
mod columns;
pub mod model;
mod pipelines;
mod plugins;
mod powers;
mod salvage;
mod schemas;
mod subscriptions;
mod topics;

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, SqlSafeStr as _, SqlitePool};

use crate::clock::Clock;

pub use audit::{AuditFilter, Event};
pub use model::*;
pub use pipelines::NewRevision;
pub use plugins::{Accepted, NewPlugin};
pub use powers::AllowedPowers;
pub use salvage::{PageFault, Salvaged};
pub use schemas::{NewSchema, Registered};

/// All of `migrations/sqlite`, in order. Listed by hand: `sqlx::migrate!` would compile SQLite a second time, for the
/// compiler's own use.
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let migration = |version, description: &'static str, sql: &'static str| {
        Migration::new(version, description.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        migration(1, "catalog", include_str!("../../../migrations/sqlite/0001_catalog.sql")),
        migration(2, "expired_dead_letters", include_str!("../../../migrations/sqlite/0002_expired_dead_letters.sql")),
        migration(3, "endpoint_credentials", include_str!("../../../migrations/sqlite/0003_endpoint_credentials.sql")),
        migration(
            4,
            "dead_letter_threshold",
            include_str!("../../../migrations/sqlite/0004_dead_letter_threshold.sql"),
        ),
        migration(5, "plugins", include_str!("../../../migrations/sqlite/0005_plugins.sql")),
        migration(6, "capture_input", include_str!("../../../migrations/sqlite/0006_capture_input.sql")),
        migration(7, "deleted_plugins", include_str!("../../../migrations/sqlite/0007_deleted_plugins.sql")),
    ])
});

/// SQLite writes one transaction at a time; the others serve reads beside it, and each costs a thread.
const CONNECTIONS_MAX: u32 = 4;
/// How long a transaction waits for another one's commit. All are short: only a stalled disk takes this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// The write-ahead log is cut back to this after a checkpoint (a plugin's bytes may have made it long).
const WAL_BYTES_KEPT: u32 = 16 * 1024 * 1024;

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
            // SQLITE_CORRUPT and SQLITE_NOTADB, with their extended codes in the upper bytes.
            sqlx::Error::Database(database)
                if database
                    .code()
                    .and_then(|code| code.parse::<i32>().ok())
                    .is_some_and(|c| matches!(c & 0xff, 11 | 26)) =>
            {
                CatalogError::Damaged(error.to_string())
            }
            _ => CatalogError::Unavailable(error),
        }
    }
}

/// The catalog. Cheap to clone; clones share one pool.
#[derive(Debug, Clone)]
pub struct Catalog {
    pool: SqlitePool,
    clock: Clock,
}

/// A transaction that may write.
type Writing = sqlx::Transaction<'static, sqlx::Sqlite>;

impl Catalog {
    /// Opens the catalog in the file `path`, creating it if need be, and brings its tables up to date.
    ///
    /// # Errors
    /// [`CatalogError::Newer`] if a later version of Sluice has written it; else damage or the file system's error.
    pub async fn open(path: &Path, clock: Clock) -> Result<Catalog, CatalogError> {
        create_private(path).await.map_err(|error| CatalogError::Unavailable(sqlx::Error::Io(error)))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            // FULL syncs the write-ahead log at each commit; NORMAL could lose the last ones in a power cut.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("journal_size_limit", WAL_BYTES_KEPT.to_string());
        // On a full disk SQLite ends a transaction by itself, and the connection goes on believing that it is in one: it
        // would refuse to begin another for ever.
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .before_acquire(|connection, _| {
                let usable = !connection.is_in_transaction();
                Box::pin(async move { Ok(usable) })
            })
            .connect_with(options)
            .await?;
        if let Err(error) = migrate(&pool).await {
            pool.close().await;
            return Err(error);
        }
        Ok(Catalog { pool, clock })
    }

    /// Waits for what runs, then closes the file; later calls are [`CatalogError::Unavailable`]. Idempotent.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Whether the catalog answers.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn ping(&self) -> Result<(), CatalogError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Reads every page and index, and holds each plugin's bytes against their digest; an empty list says that all is well.
    ///
    /// # Errors
    /// When it cannot even be read.
    pub async fn verify(&self) -> Result<Vec<String>, CatalogError> {
        // SQLite reports up to 100 faults, and "ok" if there is none.
        let mut faults: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check").fetch_all(&self.pool).await?;
        faults.retain(|fault| fault != "ok");
        let digests: Vec<String> =
            sqlx::query_scalar("SELECT digest FROM plugin_blobs ORDER BY digest").fetch_all(&self.pool).await?;
        for digest in digests {
            match self.plugin_bytes(&digest).await {
                Ok(_) => {}
                Err(CatalogError::Damaged(fault)) => faults.push(fault),
                Err(other) => return Err(other),
            }
        }
        Ok(faults)
    }

    /// Begins a transaction that holds the write lock from the start: one that took it later could find that what it
    /// has read was changed, and fail.
    async fn write(&self) -> Result<Writing, CatalogError> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }
}

/// The catalog holds signing secrets, so the file is its owner's alone; SQLite gives its side files the same mode.
async fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = tokio::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    options.mode(0o600);
    options.open(path).await.map(drop)
}

async fn migrate(pool: &SqlitePool) -> Result<(), CatalogError> {
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    match MIGRATIONS.run(pool).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(found)) if found > known => Err(CatalogError::Newer { found, known }),
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => Err(error.into()),
        Err(other) => Err(CatalogError::Damaged(other.to_string())),
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
