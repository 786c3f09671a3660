//! The catalog of a fleet, in PostgreSQL 15 or later. Invariant: tables are changed by migrations alone, each of which is one
//! file, one transaction and one row of `sluice_migrations`, whoever runs it (`sluice migrate up`, `psql -f`, several at once);
//! a broker works only on tables that it understands.
//!
//! What it needs of the server: a role with SELECT, INSERT, UPDATE, DELETE on the tables and USAGE on the sequences (migrations:
//! one that may create tables in the first schema of its search path), and 5 connections for each broker. A pooler may stand
//! between, also one that hands connections on after each transaction: nothing is left in a session, no statement has a name,
//! and the lock of the writer goes with its transaction. PgBouncer has to be told `ignore_startup_parameters =
//! extra_float_digits`, as for any client that sets that.
//!
//! Numbers come from sequences. Those of a standby that took over without having been synchronous may be behind: then it can
//! give out a number again, as it can miss any other change of the last moments.

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _, Row as _};

use super::engine::Engine;
use super::{Catalog, CatalogError};
use crate::clock::{Clock, Timestamp};
use crate::config::PostgresUrl;
use crate::database;
use crate::telemetry::Stopwatch;

/// One writes at a time, and a broker holds in memory what it reads often.
const CONNECTIONS_MAX: u32 = 4;
/// How long a caller waits for a connection, new or given back by another.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a look at the history may take, connecting included.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one migration may take, waiting for another one's end included: it may rewrite a table.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a server is let be that does not answer a broker that starts, and how often that is told.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
const AWAY_TOLD: Duration = Duration::from_secs(60);
/// How often one is run again that met brokers' locks in a circle.
const DEADLOCKS_MAX: u32 = 10;
/// How long one is tried again that brokers keep from its locks, and how long they are let go first each time.
const LOCKED_MAX: Duration = Duration::from_secs(20);
const LOCKED_PAUSE: Duration = Duration::from_secs(1);

/// A change of the tables that this binary brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// Its number; they rise from 1.
    pub version: i64,
    /// Its file.
    pub file: &'static str,
    /// What the file says.
    pub sql: &'static str,
}

macro_rules! migration {
    ($version:literal, $file:literal) => {
        Migration { version: $version, file: $file, sql: include_str!(concat!("../../../migrations/postgres/", $file)) }
    };
}

/// All of `migrations/postgres`, in order.
pub const MIGRATIONS: &[Migration] = &[
    migration!(1, "001_initial_schema.sql"),
    migration!(2, "002_message_store.sql"),
    migration!(3, "003_brokers.sql"),
    migration!(4, "004_broker_duty.sql"),
    migration!(5, "005_store_moves.sql"),
    migration!(6, "006_store_functions.sql"),
    migration!(7, "007_topic_storage.sql"),
    migration!(8, "008_grant_ranges.sql"),
    migration!(9, "009_urgent_partitions.sql"),
    migration!(10, "010_store_usual.sql"),
    migration!(11, "011_identity.sql"),
    migration!(12, "012_store_give.sql"),
];

/// A migration that a database has had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its number.
    pub version: i64,
    /// Its name.
    pub name: String,
    /// A Sluice that knows migrations up to this one works on the tables after it.
    pub readable_from: i64,
    /// When.
    pub at: Timestamp,
}

impl Catalog {
    /// Connects to the catalog of a fleet, whose tables are there already ([`migrate`]).
    ///
    /// # Errors
    /// [`CatalogError::Outdated`] before the migrations have run, [`CatalogError::Newer`] once a later Sluice has taken away
    /// what this one needs; [`CatalogError::Unavailable`] when the database does not answer.
    pub async fn connect(url: &PostgresUrl, clock: Clock) -> Result<Catalog, CatalogError> {
        check(&history(url).await?)?;
        Catalog::pooled(url, clock, CONNECTIONS_MAX)
    }

    /// The same, once the server answers: after a machine's start a broker is there before its database.
    ///
    /// # Errors
    /// As [`Catalog::connect`], but for a server that is away or starting.
    pub async fn connect_once_there(url: &PostgresUrl, clock: Clock) -> Result<Catalog, CatalogError> {
        let mut told: Option<Stopwatch> = None;
        loop {
            match Catalog::connect(url, clock.clone()).await {
                Err(CatalogError::Unavailable(error)) if may_come(&error) => {
                    if told.as_ref().is_none_or(|told| told.elapsed() >= AWAY_TOLD) {
                        tracing::warn!(%error, "the database cannot be reached yet; trying again each second");
                        told = Some(Stopwatch::start());
                    }
                    tokio::time::sleep(AWAY_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// The same catalog by one connection more, which waits for none of the others.
    ///
    /// # Errors
    /// When the address is none; whether the database answers is seen at the first call.
    pub fn aside(url: &PostgresUrl, clock: Clock) -> Result<Catalog, CatalogError> {
        Catalog::pooled(url, clock, 1)
    }

    fn pooled(url: &PostgresUrl, clock: Clock, connections_max: u32) -> Result<Catalog, CatalogError> {
        sqlx::any::install_default_drivers();
        // Whether a connection still serves is asked with less patience than the pool has by itself, also of one that comes
        // back: it may have been given up in the middle of something, or been refused as one to a server that only reads.
        let pool = AnyPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, _| Box::pin(database::writes(connection)))
            .after_release(|connection, _| Box::pin(database::writes(connection)))
            .connect_lazy_with(AnyConnectOptions::from_str(url.expose())?);
        Ok(Catalog { pool, engine: Engine::Postgres, clock })
    }

    /// A number that rises with each change, whichever broker makes it. Cheap to ask often: who finds it as it was when they
    /// began to read (asked before that) has read what there is. A catalog in a file has one broker, behind whose back nothing
    /// changes: always 0.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn version(&self) -> Result<u64, CatalogError> {
        if self.engine == Engine::Sqlite {
            return Ok(0);
        }
        // Without values it is one message to the server, which needs no transaction to go through a pooler.
        let ask = async {
            let mut connection = self.pool.acquire().await?;
            sqlx::raw_sql("SELECT version FROM catalog_version").fetch_one(&mut *connection).await
        };
        let version: i64 = within(LOOK_TIMEOUT, ask).await?.try_get(0)?;
        Ok(version.unsigned_abs())
    }
}

/// What migrations the database has had, in order.
///
/// # Errors
/// When it does not answer.
pub async fn history(url: &PostgresUrl) -> Result<Vec<Applied>, CatalogError> {
    let look = async {
        let mut connection = PgConnection::connect_with(&url.options()).await?;
        let found = applied(&mut connection).await;
        let _ = connection.close().await;
        found
    };
    within(LOOK_TIMEOUT, look).await
}

/// Runs the migrations that the database has not had, in order; answers which. Safe beside others that do the same.
///
/// # Errors
/// [`CatalogError::Newer`] when a later Sluice has taken away what this one needs; the database's.
pub async fn migrate(url: &PostgresUrl) -> Result<Vec<&'static Migration>, CatalogError> {
    let options = url.options();
    let mut connection = within(LOOK_TIMEOUT, PgConnection::connect_with(&options)).await?;
    let done = run_missing(&mut connection).await;
    // After a failure it is in a transaction of the file's that is to end without a commit: with the connection.
    let _ = connection.close().await;
    done
}

/// The migrations that are missing where these were applied.
#[must_use]
pub fn missing(applied: &[Applied]) -> Vec<&'static Migration> {
    MIGRATIONS.iter().filter(|known| !applied.iter().any(|had| had.version == known.version)).collect()
}

async fn run_missing(connection: &mut PgConnection) -> Result<Vec<&'static Migration>, CatalogError> {
    let before = within(LOOK_TIMEOUT, applied(connection)).await?;
    refuse_newer(&before)?;
    let missing = missing(&before);
    for migration in &missing {
        let (mut left, begun) = (DEADLOCKS_MAX, Stopwatch::start());
        while let Err(error) = within(MIGRATION_TIMEOUT, connection.execute(sqlx::raw_sql(migration.sql))).await {
            // What waits for it meanwhile goes first.
            let pause = match sqlstate(&error).as_deref() {
                // Brokers lock several tables, and so may a migration: who is ended begins again.
                Some("40P01") if left > 0 => Duration::ZERO,
                Some("55P03") if begun.elapsed() < LOCKED_MAX => LOCKED_PAUSE,
                _ => return Err(error),
            };
            left = left.saturating_sub(1);
            within(LOOK_TIMEOUT, connection.execute(sqlx::raw_sql("ROLLBACK"))).await?;
            tokio::time::sleep(pause).await;
        }
    }
    Ok(missing)
}

/// Whether a server may answer before long: it is starting, or the way to it is. Not where a name is none.
fn may_come(error: &sqlx::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, HostUnreachable, NetworkUnreachable, TimedOut, UnexpectedEof};
    let on_the_way = [BrokenPipe, HostUnreachable, NetworkUnreachable, TimedOut, UnexpectedEof];
    database::desk::may_pass(error) || matches!(error, sqlx::Error::Io(error) if on_the_way.contains(&error.kind()))
}

fn sqlstate(error: &CatalogError) -> Option<String> {
    let CatalogError::Unavailable(sqlx::Error::Database(error)) = error else { return None };
    error.code().map(Into::into)
}

/// Simple messages all: through a pooler too, each is answered whole by one session.
async fn applied(connection: &mut PgConnection) -> Result<Vec<Applied>, sqlx::Error> {
    let there = "SELECT to_regclass('sluice_migrations') IS NOT NULL";
    if !connection.fetch_one(sqlx::raw_sql(there)).await?.try_get::<bool, _>(0)? {
        return Ok(Vec::new());
    }
    let all = "SELECT version, name, readable_from, (extract(epoch FROM applied_at) * 1000)::bigint
               FROM sluice_migrations ORDER BY version";
    let rows = connection.fetch_all(sqlx::raw_sql(all)).await?;
    let read = |row: &sqlx::postgres::PgRow| {
        Ok(Applied {
            version: row.try_get(0)?,
            name: row.try_get(1)?,
            readable_from: row.try_get(2)?,
            at: Timestamp(row.try_get(3)?),
        })
    };
    rows.iter().map(read).collect()
}

fn check(applied: &[Applied]) -> Result<(), CatalogError> {
    refuse_newer(applied)?;
    if missing(applied).is_empty() {
        return Ok(());
    }
    let found = applied.iter().map(|had| had.version).max().unwrap_or(0);
    Err(CatalogError::Outdated { found, known: known() })
}

/// Tables that have only been added to are no hindrance: that is what lets brokers of two versions run beside each other.
fn refuse_newer(applied: &[Applied]) -> Result<(), CatalogError> {
    match applied.iter().find(|had| had.readable_from > known()) {
        Some(newer) => Err(CatalogError::Newer { found: newer.version, known: known() }),
        None => Ok(()),
    }
}

fn known() -> i64 {
    MIGRATIONS.last().map_or(0, |last| last.version)
}

async fn within<T>(time: Duration, asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, CatalogError> {
    Ok(tokio::time::timeout(time, asked).await.unwrap_or_else(|_| Err(database::no_answer()))?)
}
