//! The catalog in a file. Invariant: the file is its owner's alone, and each commit is synced (a write-ahead log, `FULL`).

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AnyPool, ConnectOptions as _, Connection as _, SqlSafeStr as _};

use super::engine::Engine;
use super::{Catalog, CatalogError};
use crate::clock::Clock;

/// All of `migrations/sqlite`, in order. Listed by hand: `sqlx::migrate!` would compile SQLite a second time, for the
/// compiler's own use.
pub(super) static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
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
        migration(8, "topic_storage", include_str!("../../../migrations/sqlite/0008_topic_storage.sql")),
    ])
});

/// SQLite writes one transaction at a time; the others serve reads beside it, and each costs a thread.
const CONNECTIONS_MAX: u32 = 4;
/// How long a transaction waits for another one's commit. All are short: only a stalled disk takes this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// The write-ahead log is cut back to this after a checkpoint (a plugin's bytes may have made it long).
const WAL_BYTES_KEPT: u32 = 16 * 1024 * 1024;

impl Catalog {
    /// Opens the catalog in the file `path`, creating it if need be, and brings its tables up to date.
    ///
    /// # Errors
    /// [`CatalogError::Newer`] if a later version of Sluice has written it; else damage or the file system's error.
    pub async fn open(path: &Path, clock: Clock) -> Result<Catalog, CatalogError> {
        create_private(path).await.map_err(|error| CatalogError::Unavailable(sqlx::Error::Io(error)))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            // Stays with the file.
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let mut first = options.connect().await?;
        let pool = match migrate(&mut first).await {
            Ok(()) => pool(path).await,
            Err(error) => Err(error),
        };
        // What it leaves in the write-ahead log, another connection has, or the next opening takes up.
        let _ = first.close().await;
        Ok(Catalog { pool: pool?, engine: Engine::Sqlite, clock })
    }
}

async fn pool(path: &Path) -> Result<AnyPool, CatalogError> {
    sqlx::any::install_default_drivers();
    // No slash is left in it, or dots between slashes would be taken away.
    let path = percent_encode(path.as_os_str().as_encoded_bytes(), NON_ALPHANUMERIC);
    let options: AnyConnectOptions = format!("sqlite:{path}").parse()?;
    // Beside what SQLite does by itself (FULL syncs the write-ahead log at each commit; NORMAL could lose the last ones in a
    // power cut) and what sqlx sets (foreign keys). Neither of these reads the file, so that none fails on a bad one.
    let settings =
        format!("PRAGMA busy_timeout = {}; PRAGMA journal_size_limit = {WAL_BYTES_KEPT}", BUSY_TIMEOUT.as_millis());
    // On a full disk SQLite ends a transaction by itself, and the connection goes on believing that it is in one: it would
    // refuse to begin another for ever.
    let pool = AnyPoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .before_acquire(|connection, _| {
            let usable = !connection.is_in_transaction();
            Box::pin(async move { Ok(usable) })
        })
        .after_connect(move |connection, _| {
            let settings = settings.clone();
            Box::pin(async move { sqlx::raw_sql(sqlx::AssertSqlSafe(settings)).execute(connection).await.map(drop) })
        })
        .connect_with(options)
        .await?;
    Ok(pool)
}

/// The catalog holds signing secrets, so the file is its owner's alone; SQLite gives its side files the same mode.
async fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = tokio::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    options.mode(0o600);
    options.open(path).await.map(drop)
}

async fn migrate(connection: &mut SqliteConnection) -> Result<(), CatalogError> {
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    match MIGRATIONS.run(connection).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(found)) if found > known => Err(CatalogError::Newer { found, known }),
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => Err(error.into()),
        Err(other) => Err(CatalogError::Damaged(other.to_string())),
    }
}
