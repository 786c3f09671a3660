//! Connections to PostgreSQL that are lent and given back, for who asks it a thousand times a second. A pool asks each connection that
//! comes back whether it still serves, and had to be asked to do so in time as well: two ways there and back for the four of a short
//! transaction. Invariant: what is lent has nothing begun and no answer outstanding; one that may have is mended first, in time, or closed.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{Connection as _, Postgres};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{PhantomData, Session, answers, in_time, no_answer};
use crate::telemetry::Stopwatch;

/// A connection that has served so lately is not asked whether it still does.
const FRESH: Duration = Duration::from_secs(1);
/// A connection that nobody has needed for so long is closed.
const IDLE: Duration = Duration::from_secs(10 * 60);
/// A connection is closed that has served for so long: what the server keeps for it grows with each statement that it has seen.
const LIFE: Duration = Duration::from_secs(30 * 60);
/// How long a server that is starting, or has no connection left, is let be before it is asked again: twice as long each time.
const RETRY: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// How long a connection may take to take back what was begun on it.
const MEND_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the end of the desk waits for what is lent.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);

/// See the module.
pub struct Desk {
    options: PgConnectOptions,
    most: u32,
    /// How long a call waits for a connection.
    patience: Duration,
    spares: Mutex<Spares>,
    permits: Arc<Semaphore>,
}

/// Connections that nobody has, the longest rested first.
#[derive(Default)]
struct Spares {
    rested: VecDeque<Spare>,
    is_closed: bool,
}

impl Spares {
    /// Those that have rested for so long are taken out.
    fn rested_for(&mut self, time: Duration) -> Vec<Spare> {
        let old = self.rested.iter().take_while(|spare| spare.since.elapsed() >= time).count();
        self.rested.drain(..old).collect()
    }
}

struct Spare {
    known: Known,
    since: Stopwatch,
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
        Arc::new(Desk { options, most, patience, spares: Mutex::default(), permits })
    }

    /// Lends a connection.
    ///
    /// # Errors
    /// When none is free in time, or none can be opened.
    pub async fn lend(self: &Arc<Desk>) -> Result<Lent, sqlx::Error> {
        let lending = async {
            let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
            let known = self.known().await?;
            Ok(Lent { held: Some((known, permit)), desk: Arc::clone(self), state: State::Clean })
        };
        tokio::time::timeout(self.patience, lending).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    /// One that rests, or a new one.
    async fn known(&self) -> Result<Known, sqlx::Error> {
        let mut wait = RETRY;
        loop {
            // In a statement of its own: the lock is not held across the question.
            let spare = self.spares.lock().rested.pop_back();
            if let Some(Spare { mut known, since }) = spare {
                if since.elapsed() < FRESH || answers(&mut known.connection).await.is_ok() {
                    return Ok(known);
                }
                // What has rested longer will not answer either: to ask them one by one would take all the time that there is.
                let silent = self.spares.lock().rested_for(FRESH);
                drop(silent);
            }
            match PgConnection::connect_with(&self.options).await {
                Ok(connection) => return Ok(Known { connection, opened: Stopwatch::start() }),
                Err(error) if may_pass(&error) => tokio::time::sleep(wait).await,
                Err(error) => return Err(error),
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    fn take_back(&self, known: Known) {
        let mut old = Vec::new();
        let mut spares = self.spares.lock();
        if spares.is_closed || known.opened.elapsed() >= LIFE {
            old.push(Spare { known, since: Stopwatch::start() });
        } else {
            spares.rested.push_back(Spare { known, since: Stopwatch::start() });
        }
        old.extend(spares.rested_for(IDLE));
        drop(spares);
        // Closed without the lock.
        drop(old);
    }

    /// Lends none any more, waits for those that are lent, and closes all.
    pub async fn close(&self) {
        let waited = tokio::time::timeout(CLOSE_TIMEOUT, self.permits.acquire_many(self.most)).await;
        if waited.is_err() {
            tracing::warn!("a call to the database has not ended; its connection is left to it");
        }
        self.permits.close();
        let spares = {
            let mut spares = self.spares.lock();
            spares.is_closed = true;
            std::mem::take(&mut spares.rested)
        };
        for Spare { known, .. } in spares {
            let _closed = tokio::time::timeout(MEND_TIMEOUT, known.connection.close()).await;
        }
    }
}

/// What a connection may have that is not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing.
    Clean,
    /// An answer is outstanding, of what is a transaction by itself.
    Asked,
    /// A transaction is begun.
    Begun,
}

/// A connection that is lent. It goes back when this is dropped.
pub struct Lent {
    /// Always there until it is dropped.
    held: Option<(Known, OwnedSemaphorePermit)>,
    desk: Arc<Desk>,
    state: State,
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
        let (desk, state) = (Arc::clone(&self.desk), self.state);
        if state == State::Clean {
            desk.take_back(known);
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            drop(known);
            return;
        };
        runtime.spawn(async move {
            if mended(&mut known.connection, state).await {
                desk.take_back(known);
            } else {
                // Before the permit: there are not to be more than that at once.
                drop(known);
            }
            drop(permit);
        });
    }
}

/// Whether a connection serves again: all answers are here that nobody has waited for, and nothing is begun. One to a server that only
/// reads does not serve: after a fail-over, a new one leads to where is written.
async fn mended(connection: &mut PgConnection, state: State) -> bool {
    let sql = match state {
        State::Begun => "ROLLBACK; SHOW transaction_read_only",
        State::Clean | State::Asked => "SHOW transaction_read_only",
    };
    let asking = async {
        let rows = sqlx::raw_sql(sql).fetch_all(connection).await?;
        rows.first().map(|row| sqlx::Row::try_get::<String, _>(row, 0)).transpose()
    };
    in_time(Some(MEND_TIMEOUT), asking).await.is_ok_and(|reads_only| reads_only.as_deref() == Some("off"))
}

impl Lent {
    /// Runs statements that are one transaction by themselves, in time; their rows.
    ///
    /// # Errors
    /// The server's, and when it does not answer.
    pub async fn ask(mut self, sql: String, patience: Duration) -> Result<Vec<PgRow>, sqlx::Error> {
        self.state = State::Asked;
        let asking = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).fetch_all(&mut *self);
        let rows = tokio::time::timeout(patience, asking).await.unwrap_or_else(|_| Err(no_answer()))?;
        self.state = State::Clean;
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
        held.state = State::Begun;
        let mut session = Session { held, patience: Some(patience), database: PhantomData };
        session.run(begin).await?;
        Ok(Transaction(session))
    }

    /// Commits.
    ///
    /// # Errors
    /// When the database refuses, or does not answer: then it may be committed or not.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.end("COMMIT").await
    }

    /// Takes all of it back, at once: one that is dropped is taken back in a moment.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, how: &'static str) -> Result<(), sqlx::Error> {
        let ended = self.0.run(how).await;
        match &ended {
            Ok(()) => self.0.held.state = State::Clean,
            // Nothing is begun behind it.
            Err(sqlx::Error::Database(_)) => self.0.held.state = State::Asked,
            // It may not even have been sent.
            Err(_) => {}
        }
        ended
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
#[must_use]
pub fn may_pass(error: &sqlx::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    match error {
        sqlx::Error::Io(error) => [ConnectionRefused, ConnectionAborted, ConnectionReset].contains(&error.kind()),
        // It is starting, or stopping; it has no connection left.
        sqlx::Error::Database(refused) => {
            refused.code().is_some_and(|code| ["57P01", "57P02", "57P03", "53300"].contains(&&*code))
        }
        _ => false,
    }
}
