//! Connections to PostgreSQL that are lent and given back, for who asks it a thousand times a second. A pool asks each connection that
//! comes back whether it still serves, and had to be asked to do so in time as well: two ways there and back for the four of a short
//! transaction. Invariant: what is lent has nothing begun and no answer outstanding; one that may have is mended first, in time, or closed.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Postgres};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{PhantomData, Session, answers, in_time, no_answer};
use crate::telemetry::Stopwatch;

/// A connection that has served so lately is not asked whether it still does.
const FRESH: Duration = Duration::from_secs(1);
/// A connection is closed that has served for so long: what the server keeps for it grows with each statement that it has seen.
const LIFE: Duration = Duration::from_secs(30 * 60);
/// How long a server that is starting, or has no connection left, is let be before it is asked again.
const RETRY: Duration = Duration::from_millis(100);
/// How long a connection may take to take back what was begun on it.
const MEND_TIMEOUT: Duration = Duration::from_secs(2);

/// See the module.
pub struct Desk {
    options: PgConnectOptions,
    /// How long a call waits for a connection.
    patience: Duration,
    spare: Mutex<Vec<Spare>>,
    permits: Arc<Semaphore>,
}

/// A connection that nobody has.
struct Spare {
    known: Known,
    rested: Stopwatch,
}

/// A connection, and since when it is open.
struct Known {
    connection: PgConnection,
    opened: Stopwatch,
}

impl Desk {
    /// Lends so many at most; none is opened before it is asked for.
    #[must_use]
    pub fn new(options: PgConnectOptions, most: u32, patience: Duration) -> Arc<Desk> {
        let permits = Arc::new(Semaphore::new(most as usize));
        Arc::new(Desk { options, patience, spare: Mutex::default(), permits })
    }

    /// Lends a connection.
    ///
    /// # Errors
    /// When none is free in time, or none can be opened.
    pub async fn lend(self: &Arc<Desk>) -> Result<Lent, sqlx::Error> {
        let lending = async {
            let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
            let known = match self.spare().await {
                Some(known) => known,
                None => self.open().await?,
            };
            Ok(Lent { held: Some((known, permit)), desk: Arc::clone(self), is_clean: true })
        };
        tokio::time::timeout(self.patience, lending).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn spare(&self) -> Option<Known> {
        loop {
            // In a statement of its own: the lock is not held across the question.
            let spare = self.spare.lock().pop();
            let Spare { mut known, rested } = spare?;
            if rested.elapsed() < FRESH || answers(&mut known.connection).await.is_ok() {
                return Some(known);
            }
        }
    }

    async fn open(&self) -> Result<Known, sqlx::Error> {
        loop {
            match PgConnection::connect_with(&self.options).await {
                Ok(connection) => return Ok(Known { connection, opened: Stopwatch::start() }),
                Err(error) if may_pass(&error) => tokio::time::sleep(RETRY).await,
                Err(error) => return Err(error),
            }
        }
    }

    fn take_back(&self, known: Known) {
        if !self.permits.is_closed() && known.opened.elapsed() < LIFE {
            self.spare.lock().push(Spare { known, rested: Stopwatch::start() });
        }
    }

    /// Lends none any more, and closes those that are here.
    pub async fn close(&self) {
        self.permits.close();
        let spare = std::mem::take(&mut *self.spare.lock());
        for Spare { known, .. } in spare {
            let _closed = tokio::time::timeout(MEND_TIMEOUT, known.connection.close()).await;
        }
    }
}

/// A connection that is lent. It goes back when this is dropped.
pub struct Lent {
    /// Always there until it is dropped.
    held: Option<(Known, OwnedSemaphorePermit)>,
    desk: Arc<Desk>,
    /// Whether nothing is begun on it, and all that was asked is answered.
    is_clean: bool,
}

const HELD: &str = "it is held until it is dropped";

impl Deref for Lent {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        &self.held.as_ref().expect(HELD).0.connection
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.held.as_mut().expect(HELD).0.connection
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some((mut known, permit)) = self.held.take() else { return };
        if self.is_clean {
            self.desk.take_back(known);
            return;
        }
        let (desk, Ok(runtime)) = (Arc::clone(&self.desk), tokio::runtime::Handle::try_current()) else { return };
        runtime.spawn(async move {
            // The answer that nobody waits for comes first; a server that has nothing to take back says so with a warning.
            let mended = in_time(Some(MEND_TIMEOUT), sqlx::raw_sql("ROLLBACK").execute(&mut known.connection)).await;
            if mended.is_ok() {
                desk.take_back(known);
            }
            drop(permit);
        });
    }
}

impl Lent {
    /// Runs statements that are one transaction by themselves, in time; their rows.
    ///
    /// # Errors
    /// The server's, and when it does not answer.
    pub async fn ask(mut self, sql: String, patience: Duration) -> Result<Vec<sqlx::postgres::PgRow>, sqlx::Error> {
        self.is_clean = false;
        let asking = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).fetch_all(&mut *self);
        let rows = tokio::time::timeout(patience, asking).await.unwrap_or_else(|_| Err(no_answer()))?;
        self.is_clean = true;
        Ok(rows)
    }
}

/// A transaction on a connection that is lent; without a commit it never was.
pub struct Transaction(Session<Postgres, Lent>);

impl Transaction {
    /// Begins one by the statements in `begin`. Each step of it is given up after `patience`: longer than the server takes to give up
    /// itself.
    ///
    /// # Errors
    /// When the database refuses, or does not answer.
    pub async fn begin(desk: &Arc<Desk>, begin: &'static str, patience: Duration) -> Result<Transaction, sqlx::Error> {
        let mut held = desk.lend().await?;
        held.is_clean = false;
        let mut session = Session { held, patience: Some(patience), database: PhantomData };
        session.run(begin).await?;
        Ok(Transaction(session))
    }

    /// Commits.
    ///
    /// # Errors
    /// When the database refuses, or does not answer: then it may be committed or not.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.0.run("COMMIT").await?;
        self.0.held.is_clean = true;
        Ok(())
    }

    /// Takes all of it back, at once: one that is dropped is taken back in a moment.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn rollback(mut self) -> Result<(), sqlx::Error> {
        self.0.run("ROLLBACK").await?;
        self.0.held.is_clean = true;
        Ok(())
    }
}

impl Session<Postgres, Lent> {
    async fn run(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        in_time(self.patience, sqlx::raw_sql(sql).execute(&mut *self.held)).await.map(drop)
    }
}

impl Deref for Transaction {
    type Target = Session<Postgres, Lent>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// Whether a server that cannot be reached may be before long.
fn may_pass(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused
                | std::io::ErrorKind::ConnectionAborted
                | std::io::ErrorKind::ConnectionReset
        ),
        // It is starting, or stopping; it has no connection left.
        sqlx::Error::Database(refused) => refused.code().is_some_and(|code| ["57P03", "53300"].contains(&&*code)),
        _ => false,
    }
}
