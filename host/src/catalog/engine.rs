//! What tells SQLite and PostgreSQL apart, and the transactions that all statements run in. Invariant: a transaction that may
//! write holds the one write lock of the catalog from its start, so that what it has read stays true; whatever becomes of it,
//! its connection serves again or is closed, and over a network nothing waits without end.
//!
//! A statement on PostgreSQL is sent as one without a name, and always inside a transaction: a pooler that hands a connection
//! on after each transaction then never meets what a session remembers.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::BoxStream;
use sqlx::any::{AnyArguments, AnyQueryResult, AnyRow, AnyStatement, AnyTypeInfo};
use sqlx::error::{BoxDynError, DatabaseError};
use sqlx::sqlite::SqliteError;
use sqlx::{Any, AnyConnection, AnyPool, Either, Execute, Executor, SqlStr};

/// Longer than the server takes for a statement before it gives up (15 s): then it does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

const POSTGRES_READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '15s';
    SET LOCAL idle_in_transaction_session_timeout = '30s'";

/// The second last line is the lock: it goes with the transaction, also through a pooler, and who holds it and falls silent is
/// cut off. The last one tells the other brokers that something has changed, once it has.
const POSTGRES_WRITE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = '15s';
    SET LOCAL idle_in_transaction_session_timeout = '15s';
    SELECT pg_advisory_xact_lock(8317987319222330742);
    UPDATE catalog_version SET version = version + 1";

/// For what no other broker has to notice, and whose statements are safe beside each other: numbers from a sequence, entries of
/// the audit log.
const POSTGRES_WRITE_ASIDE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = '15s';
    SET LOCAL idle_in_transaction_session_timeout = '15s'";

/// What a transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Reads one state of the catalog.
    Read,
    /// Changes it.
    Write,
    /// Writes what nobody has to notice.
    WriteAside,
}

/// Which database the catalog is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    fn begin(self, purpose: Purpose) -> &'static str {
        match (self, purpose) {
            (Engine::Sqlite, Purpose::Read) => "BEGIN",
            // One that took the lock later could find that what it has read was changed, and fail.
            (Engine::Sqlite, Purpose::Write | Purpose::WriteAside) => "BEGIN IMMEDIATE",
            (Engine::Postgres, Purpose::Read) => POSTGRES_READ,
            (Engine::Postgres, Purpose::Write) => POSTGRES_WRITE,
            (Engine::Postgres, Purpose::WriteAside) => POSTGRES_WRITE_ASIDE,
        }
    }

    /// A parameter of milliseconds as what a column of the guide takes.
    pub(super) fn to_time(self, parameter: &str) -> String {
        match self {
            Engine::Sqlite => parameter.to_owned(),
            Engine::Postgres => format!("to_timestamp({parameter} / 1000.0)"),
        }
    }

    /// Such a column as milliseconds, under its own name.
    pub(super) fn time_as_millis(self, column: &str) -> String {
        match self {
            Engine::Sqlite => column.to_owned(),
            Engine::Postgres => format!("(extract(epoch FROM {column}) * 1000)::bigint AS {column}"),
        }
    }

    /// A parameter of text as what a column of JSON takes.
    pub(super) fn to_json(self, parameter: &str) -> String {
        match self {
            Engine::Sqlite => parameter.to_owned(),
            Engine::Postgres => format!("{parameter}::jsonb"),
        }
    }

    /// Such a column as text, under its own name.
    pub(super) fn json_as_text(self, column: &str) -> String {
        match self {
            Engine::Sqlite => column.to_owned(),
            Engine::Postgres => format!("{column}::text AS {column}"),
        }
    }

    /// Text that fits a column of the guide, which has a length there: what is longer is cut, rather than that a change fails
    /// because of what is said about it.
    pub(super) fn fitting(self, text: &str, chars_max: usize) -> &str {
        match (self, text.char_indices().nth(chars_max)) {
            (Engine::Postgres, Some((end, _))) => &text[..end],
            _ => text,
        }
    }

    /// JSON as its column takes it: PostgreSQL has no text with the character U+0000.
    pub(super) fn storable_json(self, json: &str) -> String {
        const NUL: &str = "\\u0000";
        match self {
            Engine::Postgres if json.contains(NUL) => {
                // Two backslashes before it are one of the text, which then goes on with a `u`.
                let parts = json.replace("\\\\", "\u{1}");
                parts.replace(NUL, "\\ufffd").replace('\u{1}', "\\\\")
            }
            _ => json.to_owned(),
        }
    }

    /// Begins a transaction.
    pub(super) async fn transaction(self, pool: &AnyPool, purpose: Purpose) -> Result<Transaction, sqlx::Error> {
        let begun = pool.begin_with(self.begin(purpose));
        let transaction = match self {
            Engine::Sqlite => begun.await?,
            Engine::Postgres => {
                tokio::time::timeout(ANSWER_TIMEOUT, begun).await.unwrap_or_else(|_| Err(no_answer()))?
            }
        };
        Ok(Transaction(Session { transaction, engine: self }))
    }
}

pub(super) fn no_answer() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the database does not answer"))
}

/// Whether a connection that was idle, or used, can still be used. In time: one whose other end is cut off would keep its
/// place for hours.
pub(super) async fn answers(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    const PING_TIMEOUT: Duration = Duration::from_secs(2);
    let ping = sqlx::Connection::ping(connection);
    tokio::time::timeout(PING_TIMEOUT, ping).await.unwrap_or_else(|_| Err(no_answer()))
}

/// A transaction; without a commit it never was.
#[derive(Debug)]
pub(super) struct Transaction(Session);

impl Transaction {
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        let commit = self.0.transaction.commit();
        match self.0.engine {
            Engine::Sqlite => commit.await,
            Engine::Postgres => tokio::time::timeout(ANSWER_TIMEOUT, commit).await.unwrap_or_else(|_| Err(no_answer())),
        }
    }
}

impl Deref for Transaction {
    type Target = Session;
    fn deref(&self) -> &Session {
        &self.0
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.0
    }
}

/// What statements run on.
#[derive(Debug)]
pub(super) struct Session {
    transaction: sqlx::Transaction<'static, Any>,
    engine: Engine,
}

impl<'c> Executor<'c> for &'c mut Session {
    type Database = Any;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<AnyQueryResult, AnyRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        let connection = &mut *self.transaction;
        match self.engine {
            Engine::Sqlite => connection.fetch_many(query),
            Engine::Postgres => {
                let rows = tokio_stream::StreamExt::timeout(connection.fetch_many(Nameless(query)), ANSWER_TIMEOUT);
                rows.map(|row| row.unwrap_or_else(|_| Err(no_answer()))).boxed()
            }
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<AnyRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        let connection = &mut *self.transaction;
        match self.engine {
            Engine::Sqlite => connection.fetch_optional(query),
            Engine::Postgres => {
                let row = tokio::time::timeout(ANSWER_TIMEOUT, connection.fetch_optional(Nameless(query)));
                row.map(|row| row.unwrap_or_else(|_| Err(no_answer()))).boxed()
            }
        }
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [AnyTypeInfo],
    ) -> BoxFuture<'e, Result<AnyStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        self.transaction.prepare_with(sql, parameters)
    }
}

/// A statement that leaves no name at the server. By itself sqlx gives each one a name, and with its cache switched off it
/// would never take it back.
struct Nameless<E>(E);

impl<'q, E: Execute<'q, Any>> Execute<'q, Any> for Nameless<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }
    fn statement(&self) -> Option<&AnyStatement> {
        self.0.statement()
    }
    fn take_arguments(&mut self) -> Result<Option<AnyArguments>, BoxDynError> {
        self.0.take_arguments()
    }
    fn persistent(&self) -> bool {
        false
    }
}

impl<E> fmt::Debug for Nameless<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nameless")
    }
}

/// Whether a database says that what it holds is damaged.
pub(super) fn says_damage(error: &dyn DatabaseError) -> bool {
    let code = error.code().unwrap_or_default();
    match error.try_downcast_ref::<SqliteError>() {
        // SQLITE_CORRUPT and SQLITE_NOTADB, with their extended codes in the upper bytes.
        Some(_) => code.parse::<i32>().is_ok_and(|code| matches!(code & 0xff, 11 | 26)),
        // data_corrupted and index_corrupted.
        None => matches!(&*code, "XX001" | "XX002"),
    }
}

/// Whether PostgreSQL says that text has a character that it does not keep.
pub(super) fn refuses_text(error: &dyn DatabaseError) -> bool {
    matches!(error.code().as_deref(), Some("22021" | "22P05"))
}
