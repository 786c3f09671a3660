//! What tells SQLite and PostgreSQL apart, and the transactions that all statements run in. Invariant: a transaction that may
//! write holds the one write lock of the catalog from its start, so that what it has read stays true.

use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::sqlite::SqliteError;
use sqlx::{Any, AnyPool};

use crate::database;

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
        let patience = (self == Engine::Postgres).then_some(ANSWER_TIMEOUT);
        database::Transaction::begin(pool, self.begin(purpose), patience).await
    }
}

/// A transaction; without a commit it never was.
pub(super) type Transaction = database::Transaction<Any>;

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
