//! Which brokers serve together. Invariant: a name has one broker at a time, and one that was not seen for [`ALIVE`] is none,
//! by the database's clock. Only for a catalog that brokers share. Never decides what follows from that.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::columns::{self, Columns, integer};
use super::{Catalog, CatalogError};
use crate::clock::Timestamp;

/// How long a broker counts without being seen: several times what lies between two signs of it.
pub const ALIVE: Duration = Duration::from_secs(3);

/// How long a component is wanted for a revision to come: longer than that waits for brokers.
const WANTED_MS: i64 = 600_000;

/// The database's time in milliseconds.
const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint";

/// A broker of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub node: String,
    /// Another one each time that it starts.
    pub instance: String,
    /// The version of Sluice.
    pub release: String,
    /// When it started, by its own clock.
    pub started_at: Timestamp,
    /// Whether it takes requests: one that starts does not yet.
    pub serving: bool,
    /// Whether it is asked to take no work.
    pub drain: bool,
    /// What it has to do.
    pub load: Load,
    /// The version of the catalog that it works on.
    pub followed: u64,
    /// The last of the wanted components that it has made ready.
    pub prepared: u64,
    /// Whether it finishes what is in flight.
    pub stopping: bool,
}

/// What a broker has to do, and how its plugins are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Load {
    /// Requests under way.
    pub requests: u64,
    /// Webhooks under way.
    pub webhooks: u64,
    /// Subscriptions that it sends for: while there is one, it may have leased something.
    pub senders: u64,
    /// Pipelines that run.
    pub pipelines: u64,
    /// Those that stay on an older version of a plugin.
    pub lagging: u64,
    /// Plugins whose last file or upload was refused.
    pub refused: u64,
}

/// What a broker is told when it shows that it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Another one has its name.
    Taken,
    /// What is there is moved elsewhere, or was: nobody serves it.
    Moved,
    /// It is counted.
    Counted {
        /// Whether it is asked to take no work.
        drain: bool,
        /// What time it is for the database.
        at: Timestamp,
    },
}

impl Catalog {
    /// Shows that a broker is there. Another instance's wish that this one take no work is none of its own.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn beat(&self, member: &Member) -> Result<Heard, CatalogError> {
        let mut writing = self.write_aside().await?;
        let sql = format!(
            "INSERT INTO brokers AS b (node, instance, release, started_at, seen, followed, prepared, stopping, serving, load, drain)
             SELECT $1, $2, $3, $4, {NOW}, $5, $6, $7, $9, $10, $11 WHERE NOT EXISTS (SELECT FROM store_moves)
             ON CONFLICT (node) DO UPDATE SET instance = $2, release = $3, started_at = $4, seen = {NOW}, followed = $5,
                 prepared = $6, stopping = $7, serving = $9, load = $10, drain = b.drain AND b.instance = $2
             WHERE b.instance = $2 OR b.seen <= {NOW} - $8
             RETURNING drain, seen"
        );
        let told: Option<(bool, i64)> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(&member.node)
            .bind(&member.instance)
            .bind(&member.release)
            .bind(member.started_at.0)
            .bind(integer(member.followed))
            .bind(integer(member.prepared))
            .bind(member.stopping)
            .bind(alive())
            .bind(member.serving)
            .bind(columns::json(&member.load))
            // Should its row have gone meanwhile.
            .bind(member.drain)
            .fetch_optional(&mut *writing)
            .await?;
        let moved = match told {
            Some(_) => false,
            None => sqlx::query("SELECT 1 FROM store_moves").fetch_optional(&mut *writing).await?.is_some(),
        };
        writing.commit().await?;
        Ok(match told {
            Some((drain, at)) => Heard::Counted { drain, at: Timestamp(at) },
            None if moved => Heard::Moved,
            None => Heard::Taken,
        })
    }

    /// Asks a broker to take no work, or to take it again; false if it is not there. It is told as it is told of any change.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn ask_to_drain(&self, node: &str, drain: bool) -> Result<bool, CatalogError> {
        let mut writing = self.write().await?;
        let sql = format!("UPDATE brokers SET drain = $2 WHERE node = $1 AND seen > {NOW} - $3");
        let asked = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(node).bind(drain).bind(alive());
        let asked = asked.execute(&mut *writing).await?.rows_affected() == 1;
        writing.commit().await?;
        Ok(asked)
    }

    /// The brokers that are there, by name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn members(&self) -> Result<Vec<Member>, CatalogError> {
        let sql = format!(
            "SELECT node, instance, release, started_at, followed, prepared, stopping, serving, drain, load FROM brokers
             WHERE seen > {NOW} - $1 ORDER BY node"
        );
        let mut reading = self.read().await?;
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(alive()).fetch_all(&mut *reading).await?;
        rows.iter().map(member).collect()
    }

    /// Has all brokers make these components ready; the number of the last.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn want_plugins(&self, digests: &[String]) -> Result<u64, CatalogError> {
        let mut writing = self.write().await?;
        let old = format!("DELETE FROM wanted_plugins WHERE at < {NOW} - $1");
        sqlx::query(sqlx::AssertSqlSafe(old)).bind(WANTED_MS).execute(&mut *writing).await?;
        let mut last: i64 = 0;
        for digest in digests {
            let new = format!("INSERT INTO wanted_plugins (digest, at) VALUES ($1, {NOW}) RETURNING id");
            last = sqlx::query_scalar(sqlx::AssertSqlSafe(new)).bind(digest).fetch_one(&mut *writing).await?;
        }
        writing.commit().await?;
        Ok(last.cast_unsigned())
    }

    /// The components that are to be ready, with their numbers; without a name where it is done with.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn wanted_plugins(&self) -> Result<Vec<(u64, Option<String>)>, CatalogError> {
        let mut reading = self.read().await?;
        // What was deleted since, or is wanted no more, is none that anybody waits for.
        let sql = format!(
            "SELECT w.id, CASE WHEN w.at >= {NOW} - $1 AND EXISTS (SELECT 1 FROM plugin_blobs b WHERE b.digest = w.digest) \
                 THEN w.digest END FROM wanted_plugins w ORDER BY w.id"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(WANTED_MS).fetch_all(&mut *reading).await?;
        let wanted = |row: &AnyRow| Ok((row.try_get::<i64, _>(0)?.cast_unsigned(), row.try_get(1)?));
        rows.iter().map(wanted).collect::<Result<_, sqlx::Error>>().map_err(CatalogError::from)
    }

    /// A broker is there no more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn leave(&self, node: &str, instance: &str) -> Result<(), CatalogError> {
        let mut writing = self.write_aside().await?;
        let sql = sqlx::query("DELETE FROM brokers WHERE node = $1 AND instance = $2");
        sql.bind(node).bind(instance).execute(&mut *writing).await?;
        Ok(writing.commit().await?)
    }

    /// Other brokers that had not been seen for too long at `when`, a time of the database's: their names and instances.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn lost(&self, own: &str, when: Timestamp) -> Result<Vec<(String, String)>, CatalogError> {
        let mut reading = self.read().await?;
        let sql = sqlx::query_as("SELECT node, instance FROM brokers WHERE seen <= $1 AND node <> $2 ORDER BY node");
        Ok(sql.bind(when.0 - alive()).bind(own).fetch_all(&mut *reading).await?)
    }

    /// One of them is there no more, unless it has shown itself since.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_lost(&self, (node, instance): (&str, &str), when: Timestamp) -> Result<(), CatalogError> {
        let mut writing = self.write_aside().await?;
        let sql = sqlx::query("DELETE FROM brokers WHERE node = $1 AND instance = $2 AND seen <= $3");
        sql.bind(node).bind(instance).bind(when.0 - alive()).execute(&mut *writing).await?;
        Ok(writing.commit().await?)
    }
}

fn alive() -> i64 {
    i64::try_from(ALIVE.as_millis()).unwrap_or(i64::MAX)
}

fn member(row: &AnyRow) -> Result<Member, CatalogError> {
    Ok(Member {
        node: row.try_get("node")?,
        instance: row.try_get("instance")?,
        release: row.try_get("release")?,
        started_at: Timestamp(row.try_get("started_at")?),
        serving: row.try_get("serving")?,
        drain: row.try_get("drain")?,
        load: Columns(row).json("load")?,
        followed: row.try_get::<i64, _>("followed")?.cast_unsigned(),
        prepared: row.try_get::<i64, _>("prepared")?.cast_unsigned(),
        stopping: row.try_get("stopping")?,
    })
}
