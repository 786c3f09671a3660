//! Transactions on a database, over a network too. Invariant: whatever becomes of one, its connection serves again or is closed,
//! and nothing waits without end for a server, or a way to it, that has fallen silent.
//!
//! A statement over a network is sent as one without a name, and always inside a transaction: a pooler that hands a connection
//! on after each transaction then never meets what a session remembers.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::BoxStream;
use sqlx::error::BoxDynError;
use sqlx::{AnyConnection, Connection, Database, Either, Execute, Executor, Pool, Row as _, SqlStr};

pub mod desk;

/// How long an idle connection may take to show that it still works.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// What a lost answer is told as.
pub fn no_answer() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the database does not answer"))
}

/// Whether a connection that was idle, or used, can still be used. In time: one whose other end is cut off would keep its
/// place for hours.
pub async fn answers(connection: &mut impl Connection) -> Result<(), sqlx::Error> {
    tokio::time::timeout(PING_TIMEOUT, connection.ping()).await.unwrap_or_else(|_| Err(no_answer()))
}

/// Whether a connection can still be used to write, in time. After a fail-over one may lead to a server that only reads from now on:
/// a new one leads to where is written, as soon as the address does.
///
/// # Errors
/// When it does not answer.
pub async fn writes(connection: &mut AnyConnection) -> Result<bool, sqlx::Error> {
    let asking = sqlx::raw_sql("SHOW transaction_read_only").fetch_one(connection);
    let row = tokio::time::timeout(PING_TIMEOUT, asking).await.unwrap_or_else(|_| Err(no_answer()))?;
    Ok(row.try_get::<String, _>(0)? == "off")
}

/// A transaction; without a commit it never was.
pub struct Transaction<DB: Database>(Session<DB, sqlx::Transaction<'static, DB>>);

impl<DB: Database> fmt::Debug for Transaction<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transaction")
    }
}

impl<DB: Database> Transaction<DB> {
    /// Begins one by the statements in `begin`. With `patience`, each step of it is given up after so long: longer than the
    /// server takes to give up itself.
    ///
    /// # Errors
    /// When the database refuses, or does not answer.
    pub async fn begin(
        pool: &Pool<DB>,
        begin: &'static str,
        patience: Option<Duration>,
    ) -> Result<Transaction<DB>, sqlx::Error> {
        let transaction = in_time(patience, pool.begin_with(begin)).await?;
        Ok(Transaction(Session { held: transaction, patience, database: PhantomData }))
    }

    /// Commits.
    ///
    /// # Errors
    /// When the database refuses, or does not answer: then it may be committed or not.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        in_time(self.0.patience, self.0.held.commit()).await
    }
}

impl<DB: Database> Deref for Transaction<DB> {
    type Target = Session<DB, sqlx::Transaction<'static, DB>>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<DB: Database> DerefMut for Transaction<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// What statements run on: a transaction of a pool's connection, or one of a connection that is lent.
pub struct Session<DB: Database, H> {
    held: H,
    patience: Option<Duration>,
    database: PhantomData<DB>,
}

impl<DB: Database, H> fmt::Debug for Session<DB, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

async fn in_time<T>(
    patience: Option<Duration>,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    match patience {
        None => work.await,
        Some(patience) => tokio::time::timeout(patience, work).await.unwrap_or_else(|_| Err(no_answer())),
    }
}

impl<'c, DB, H> Executor<'c> for &'c mut Session<DB, H>
where
    DB: Database,
    H: DerefMut<Target = DB::Connection> + Send,
    for<'x> &'x mut DB::Connection: Executor<'x, Database = DB>,
{
    type Database = DB;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<DB::QueryResult, DB::Row>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let connection: &'c mut DB::Connection = &mut self.held;
        let Some(patience) = self.patience else { return connection.fetch_many(query) };
        let rows = tokio_stream::StreamExt::timeout(connection.fetch_many(Nameless(query)), patience);
        rows.map(|row| row.unwrap_or_else(|_| Err(no_answer()))).boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<DB::Row>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let connection: &'c mut DB::Connection = &mut self.held;
        match self.patience {
            None => connection.fetch_optional(query),
            patience => in_time(patience, connection.fetch_optional(Nameless(query))).boxed(),
        }
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, sqlx::Error>>
    where
        'c: 'e,
    {
        let connection: &'c mut DB::Connection = &mut self.held;
        connection.prepare_with(sql, parameters)
    }
}

/// A statement that leaves no name at the server. By itself sqlx gives each one a name, and with its cache switched off it
/// would never take it back.
struct Nameless<E>(E);

impl<'q, DB: Database, E: Execute<'q, DB>> Execute<'q, DB> for Nameless<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }
    fn statement(&self) -> Option<&DB::Statement> {
        self.0.statement()
    }
    fn take_arguments(&mut self) -> Result<Option<DB::Arguments>, BoxDynError> {
        self.0.take_arguments()
    }
    fn persistent(&self) -> bool {
        false
    }
}
