//! Taking what can still be read out of a damaged catalog into a new one. Invariant: the damaged file is only read; a row is
//! taken whole or not at all, and only if it reads back as what it was; the sequences that numbers come from never fall. Of
//! SQLite alone, but for what a store says that is missing (`restore_…`, `raise_numbers`).

use std::path::Path;

use futures_util::StreamExt as _;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AnyConnection, AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};

use super::engine::Engine;
use super::{Catalog, CatalogError, Topic, subscriptions, topics};
use crate::message::TopicId;

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// Rows that were taken.
    pub rows: u64,
    /// What could not be, a sentence each.
    pub lost: Vec<String>,
}

/// A fault in the file of a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageFault {
    /// Where its page begins; 0 where SQLite names none.
    pub offset: u64,
    /// In SQLite's words.
    pub fault: String,
}

impl PageFault {
    fn new(fault: &str, page_bytes: u64) -> PageFault {
        let digits = fault.split("page ").nth(1).unwrap_or_default().split(|letter: char| !letter.is_ascii_digit());
        let page: u64 = digits.take(1).find_map(|page| page.parse().ok()).unwrap_or(1);
        PageFault { offset: page.saturating_sub(1) * page_bytes, fault: fault.to_owned() }
    }
}

impl Catalog {
    /// Looks through the pages of a file, whatever is in it.
    ///
    /// # Errors
    /// [`CatalogError::Unavailable`] when it cannot be looked at; that it is no catalog at all is a fault.
    pub async fn page_faults(path: &Path) -> Result<Vec<PageFault>, CatalogError> {
        let look = async {
            let mut connection = SqliteConnectOptions::new().filename(path).connect().await?;
            let page_bytes: i64 = sqlx::query_scalar("PRAGMA page_size").fetch_one(&mut connection).await?;
            // Up to 100 faults, some of several lines; "ok" if there is none. It may find some and then fail.
            let mut told: Vec<String> = Vec::new();
            let mut faults = sqlx::query_scalar("PRAGMA integrity_check").fetch(&mut connection);
            while let Some(fault) = faults.next().await {
                match fault {
                    Ok(fault) => told.push(fault),
                    Err(error) if told.is_empty() => return Err(error),
                    Err(_) => break,
                }
            }
            drop(faults);
            connection.close().await?;
            Ok::<_, sqlx::Error>((told, page_bytes.unsigned_abs()))
        };
        match look.await.map_err(CatalogError::from) {
            Ok((told, page_bytes)) => {
                let lines = told.iter().flat_map(|fault| fault.lines());
                // Lines with stars are headings.
                let faults = lines.filter(|line| *line != "ok" && !line.starts_with("***"));
                Ok(faults.map(|fault| PageFault::new(fault, page_bytes)).collect())
            }
            Err(CatalogError::Damaged(fault)) => Ok(vec![PageFault { offset: 0, fault }]),
            Err(other) => Err(other),
        }
    }

    /// Copies into this catalog, which is new, all rows of the file `damaged` that can be read.
    ///
    /// # Errors
    /// When this catalog cannot be written. That nothing can be read is no error.
    pub async fn salvage(&self, damaged: &Path) -> Result<Salvaged, CatalogError> {
        let mut salvaged = Salvaged::default();
        let mut connection = self.pool.acquire().await?;
        // Rows come in any order, and some that others point to may never come.
        sqlx::query("PRAGMA foreign_keys = OFF").execute(&mut *connection).await?;
        let path = damaged.to_string_lossy().into_owned();
        let attached = sqlx::query("ATTACH DATABASE $1 AS damaged").bind(path).execute(&mut *connection).await;
        let tables = "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'
                      AND name NOT LIKE '\\_sqlx%' ESCAPE '\\' ORDER BY name";
        if let Err(error) = attached {
            salvaged.lost.push(format!("all of it: {error}"));
        } else {
            let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut *connection).await?;
            for table in tables {
                copy_table(&mut connection, &table, &mut salvaged).await?;
            }
            copy_sequences(&mut connection).await?;
            // A lost counter would give a revision's number out again.
            let counters = "INSERT INTO main.pipeline_counters (scope, last_revision)
                            SELECT scope, max(revision) FROM main.pipeline_revisions WHERE true GROUP BY scope
                            ON CONFLICT (scope) DO UPDATE SET last_revision = max(last_revision, excluded.last_revision)";
            sqlx::query(counters).execute(&mut *connection).await?;
            sqlx::query("DETACH DATABASE damaged").execute(&mut *connection).await?;
        }
        drop_unreadable(&mut connection, &mut salvaged).await?;
        sqlx::query("PRAGMA foreign_keys = ON").execute(&mut *connection).await?;
        drop(connection);
        self.drop_bad_plugins(&mut salvaged).await?;
        Ok(salvaged)
    }

    /// Removes rows that point to rows which are lost; one sentence for each.
    ///
    /// # Errors
    /// When this catalog cannot be written.
    pub async fn drop_dangling(&self) -> Result<Vec<String>, CatalogError> {
        let mut lost = Vec::new();
        let mut connection = self.pool.acquire().await?;
        sqlx::query("PRAGMA foreign_keys = OFF").execute(&mut *connection).await?;
        loop {
            let dangling = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut *connection).await?;
            if dangling.is_empty() {
                break;
            }
            for row in dangling {
                let (table, rowid, parent): (String, i64, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                let delete = AssertSqlSafe(format!("DELETE FROM {table} WHERE rowid = $1"));
                sqlx::query(delete).bind(rowid).execute(&mut *connection).await?;
                lost.push(format!("a row of {table}, because its row of {parent} is lost"));
            }
        }
        sqlx::query("PRAGMA foreign_keys = ON").execute(&mut *connection).await?;
        lost.sort();
        lost.dedup();
        Ok(lost)
    }

    /// Writes a topic alone, as it was before a row was lost.
    ///
    /// # Errors
    /// [`CatalogError::Conflict`] if its name is taken.
    pub async fn restore_topic(&self, topic: &Topic) -> Result<(), CatalogError> {
        let mut writing = self.write().await?;
        topics::insert(&mut writing, topic).await?;
        Ok(writing.commit().await?)
    }

    /// Sets a topic's number of partitions to what the store has.
    ///
    /// # Errors
    /// When this catalog cannot be written.
    pub async fn restore_partitions(&self, topic: TopicId, partitions: u16) -> Result<(), CatalogError> {
        let update = sqlx::query("UPDATE topics SET partition_count = $2 WHERE topic_id = $1");
        let mut writing = self.write().await?;
        update.bind(i64::from(topic.0)).bind(i64::from(partitions)).execute(&mut *writing).await?;
        Ok(writing.commit().await?)
    }

    /// No number is given out again that the store has seen. Not while numbers are given out.
    ///
    /// # Errors
    /// When this catalog cannot be written.
    pub async fn raise_numbers(&self, topic: u32, group: u32) -> Result<(), CatalogError> {
        if self.engine == Engine::Postgres {
            let mut writing = self.write().await?;
            for (table, last) in [("topic_ids", topic), ("group_ids", group)] {
                let raise = format!("SELECT setval('{table}_id_seq', $1) FROM {table}_id_seq WHERE last_value < $1");
                sqlx::query(AssertSqlSafe(raise)).bind(i64::from(last)).execute(&mut *writing).await?;
            }
            return Ok(writing.commit().await?);
        }
        let mut connection = self.pool.acquire().await?;
        raise(&mut connection, "topic_ids", i64::from(topic)).await?;
        raise(&mut connection, "group_ids", i64::from(group)).await
    }

    /// Plugins whose bytes are not what they were.
    async fn drop_bad_plugins(&self, salvaged: &mut Salvaged) -> Result<(), CatalogError> {
        let digests: Vec<String> =
            sqlx::query_scalar("SELECT digest FROM plugin_blobs").fetch_all(&mut *self.read().await?).await?;
        for digest in digests {
            if let Err(CatalogError::Damaged(fault)) = self.plugin_bytes(&digest).await {
                let mut writing = self.write().await?;
                for table in ["plugin_versions", "plugin_blobs"] {
                    let delete = AssertSqlSafe(format!("DELETE FROM {table} WHERE digest = $1"));
                    sqlx::query(delete).bind(&digest).execute(&mut *writing).await?;
                }
                writing.commit().await?;
                salvaged.lost.push(format!("a plugin's bytes and the versions that name them: {fault}"));
            }
        }
        Ok(())
    }
}

/// Takes a table at once, or row by row where that fails.
async fn copy_table(connection: &mut AnyConnection, table: &str, salvaged: &mut Salvaged) -> Result<(), CatalogError> {
    let columns: Vec<String> =
        sqlx::query_scalar("SELECT name FROM pragma_table_info($1)").bind(table).fetch_all(&mut *connection).await?;
    let columns = columns.join(", ");
    let copy = format!(
        "INSERT OR IGNORE INTO main.{table} ({columns}) SELECT {columns} FROM damaged.{table} NOT INDEXED WHERE \
         rowid BETWEEN $1 AND $2"
    );
    let mut copied = Copied { connection, table, copy, rows: 0, failed: 0, gaps: 0 };
    if !copied.take(i64::MIN, i64::MAX).await {
        copied.row_by_row().await;
    }
    let Copied { rows, failed, gaps, .. } = copied;
    salvaged.rows += rows;
    if failed > 0 {
        salvaged.lost.push(format!("{failed} rows of {table}"));
    }
    if gaps > 0 {
        salvaged.lost.push(format!("rows of {table} in {gaps} unreadable places"));
    }
    Ok(())
}

/// A table that is being copied.
struct Copied<'a> {
    connection: &'a mut AnyConnection,
    table: &'a str,
    copy: String,
    rows: u64,
    failed: u64,
    gaps: u64,
}

impl Copied<'_> {
    /// Takes the rows of a range; false if that fails, and then it took none.
    async fn take(&mut self, first: i64, last: i64) -> bool {
        let copy = sqlx::query(AssertSqlSafe(self.copy.clone())).bind(first).bind(last);
        match copy.execute(&mut *self.connection).await {
            Ok(done) => {
                self.rows += done.rows_affected();
                true
            }
            Err(_) => false,
        }
    }

    async fn row_by_row(&mut self) {
        // Rows are numbered from 1.
        let mut at = 1;
        loop {
            match self.next(at).await {
                Ok(None) => return,
                Ok(Some(row)) => {
                    self.take_one(row).await;
                    let Some(next) = row.checked_add(1) else { return };
                    at = next;
                }
                Err(_) => {
                    self.gaps += 1;
                    let beyond = self.beyond(at).await;
                    // What lies between, from the other side.
                    let mut back = beyond.map_or(i64::MAX, |row| row - 1);
                    while let Ok(Some(row)) = self.previous(back, at).await {
                        self.take_one(row).await;
                        back = row - 1;
                    }
                    let Some(row) = beyond else { return };
                    at = row;
                }
            }
        }
    }

    async fn take_one(&mut self, row: i64) {
        if !self.take(row, row).await {
            self.failed += 1;
        }
    }

    /// The first row at or after `at`.
    async fn next(&mut self, at: i64) -> Result<Option<i64>, sqlx::Error> {
        let table = self.table;
        let next = format!("SELECT rowid FROM damaged.{table} NOT INDEXED WHERE rowid >= $1 ORDER BY rowid LIMIT 1");
        sqlx::query_scalar(AssertSqlSafe(next)).bind(at).fetch_optional(&mut *self.connection).await
    }

    /// The last row at or before `at`, but not before `first`.
    async fn previous(&mut self, at: i64, first: i64) -> Result<Option<i64>, sqlx::Error> {
        let table = self.table;
        let previous = format!(
            "SELECT rowid FROM damaged.{table} NOT INDEXED WHERE rowid BETWEEN $1 AND $2 ORDER BY rowid DESC LIMIT 1"
        );
        sqlx::query_scalar(AssertSqlSafe(previous)).bind(first).bind(at).fetch_optional(&mut *self.connection).await
    }

    /// A row behind an unreadable place, found by steps that double.
    async fn beyond(&mut self, at: i64) -> Option<i64> {
        let steps = (0..63).map_while(|step| at.checked_add(1 << step));
        for from in steps {
            match self.next(from).await {
                Ok(Some(row)) => return Some(row),
                Ok(None) => return None,
                Err(_) => {}
            }
        }
        None
    }
}

async fn copy_sequences(connection: &mut AnyConnection) -> Result<(), CatalogError> {
    let known = sqlx::query("SELECT name, seq FROM damaged.sqlite_sequence").fetch_all(&mut *connection).await;
    for row in known.unwrap_or_default() {
        if let (Ok(name), Ok(last)) = (row.try_get::<String, _>(0), row.try_get::<i64, _>(1)) {
            raise(connection, &name, last).await?;
        }
    }
    Ok(())
}

async fn raise(connection: &mut AnyConnection, table: &str, last: i64) -> Result<(), CatalogError> {
    let raised = sqlx::query("UPDATE main.sqlite_sequence SET seq = max(seq, $2) WHERE name = $1")
        .bind(table)
        .bind(last)
        .execute(&mut *connection)
        .await?;
    if raised.rows_affected() == 0 {
        let insert = sqlx::query("INSERT INTO main.sqlite_sequence (name, seq) VALUES ($1, $2)");
        insert.bind(table).bind(last).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Rows that SQLite can read and this catalog can't: a flipped bit in a name or a number.
async fn drop_unreadable(connection: &mut AnyConnection, salvaged: &mut Salvaged) -> Result<(), CatalogError> {
    for (table, select) in [
        ("topics", "SELECT * FROM topics WHERE rowid = $1"),
        ("subscriptions", "SELECT s.*, 'any' AS topic_name FROM subscriptions s WHERE s.rowid = $1"),
    ] {
        let places: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(format!("SELECT rowid FROM {table} ORDER BY rowid")))
            .fetch_all(&mut *connection)
            .await?;
        for place in places {
            // One by one: text that is none fails its row before a column of it is asked for.
            let row = sqlx::query(select).bind(place).fetch_one(&mut *connection).await;
            let read = row.map_err(CatalogError::from).and_then(|row| match table {
                "topics" => topics::topic(&row).map(drop),
                _ => subscriptions::subscription(&row).map(drop),
            });
            match read {
                Ok(()) => continue,
                Err(CatalogError::Damaged(_)) => {}
                Err(other) => return Err(other),
            }
            let delete = AssertSqlSafe(format!("DELETE FROM main.{table} WHERE rowid = $1"));
            sqlx::query(delete).bind(place).execute(&mut *connection).await?;
            salvaged.lost.push(format!("a row of {table}: it is not what was written"));
        }
    }
    Ok(())
}
