//! A catalog as one end of a move between a file and PostgreSQL. Invariant: all rows of all tables that both have arrive in one
//! transaction, with the numbers that were given out; what a broker keeps of itself (that it is there) does not move.

use sha2::{Digest as _, Sha256};
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::engine::Engine;
use super::{Catalog, CatalogError, Writing};

/// Tables in an order in which none refers to a later one, each with its key.
const TABLES: [(&str, &[&str]); 14] = [
    ("topic_ids", &["id"]),
    ("group_ids", &["id"]),
    ("topics", &["topic_id"]),
    ("subscriptions", &["subscription_id"]),
    ("pipeline_counters", &["scope"]),
    ("pipeline_revisions", &["scope", "revision"]),
    ("plugin_blobs", &["digest"]),
    ("plugin_acceptances", &["id"]),
    ("plugin_versions", &["plugin", "version"]),
    ("plugin_powers", &["plugin"]),
    ("deleted_plugins", &["plugin"]),
    ("schemas", &["schema_id"]),
    ("schema_versions", &["id"]),
    ("audit_logs", &["id"]),
];
/// Those whose `id` comes from a sequence.
const NUMBERED: [&str; 5] = ["topic_ids", "group_ids", "plugin_acceptances", "schema_versions", "audit_logs"];
/// Tables that have no counterpart in the other database, as what is in them is none of the catalog's content.
#[cfg(test)]
const NOT_MOVED: [&str; 5] = ["catalog_version", "brokers", "wanted_plugins", "store_moves", "identity"];

/// Rows of a page; plugins are large.
fn page_of(table: &str) -> usize {
    if table == "plugin_blobs" { 2 } else { 100 }
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Int,
    Real,
    /// Up to so many characters.
    Text(Option<usize>),
    Bytes,
    /// Milliseconds in SQLite.
    Time,
    /// Text in SQLite.
    Json,
}

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Int(Option<i64>),
    Real(Option<f64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

/// The columns that a move is about, by table.
#[derive(Debug)]
pub struct Shape(Vec<Vec<(String, Kind)>>);

/// What a table holds, in figures that are the same in both databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDigest {
    /// Its name.
    pub table: &'static str,
    /// Its rows.
    pub rows: u64,
    /// Over all of them, in no order, and the last number given out.
    pub sha256: [u8; 32],
}

impl Catalog {
    /// Whether nobody has made anything in it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn is_empty(&self) -> Result<bool, CatalogError> {
        let sql = "SELECT (SELECT count(*) FROM topics) + (SELECT count(*) FROM schemas) + (SELECT count(*) FROM plugin_versions)";
        let rows: i64 = sqlx::query_scalar(sql).fetch_one(&mut *self.read().await?).await?;
        Ok(rows == 0)
    }

    /// The columns of this catalog, which is PostgreSQL's, held against those of one in a file.
    ///
    /// # Errors
    /// [`CatalogError::Damaged`] where they are not the same: then a later version has made one of them.
    pub async fn shape(&self, file: &Catalog) -> Result<Shape, CatalogError> {
        let (mut reading, mut beside) = (self.read().await?, file.read().await?);
        let mut shape = Vec::with_capacity(TABLES.len());
        for (table, _) in TABLES {
            let rows = sqlx::query(
                "SELECT column_name::text, data_type::text, coalesce(character_maximum_length, 0)::bigint \
                 FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = $1 \
                 ORDER BY ordinal_position",
            )
            .bind(table)
            .fetch_all(&mut *reading)
            .await?;
            let columns: Vec<(String, Kind)> = rows.iter().map(column).collect::<Result<_, _>>()?;
            let known: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_info($1)")
                .bind(table)
                .fetch_all(&mut *beside)
                .await?;
            let differs = |name: &String| !columns.iter().any(|(column, _)| column == name);
            if known.len() != columns.len() || known.iter().any(differs) {
                return Err(CatalogError::Damaged(format!(
                    "the table {table} has other columns in the other database"
                )));
            }
            shape.push(columns);
        }
        Ok(Shape(shape))
    }

    /// Puts all rows into another catalog, which is empty, as one change.
    ///
    /// # Errors
    /// Nothing is changed then.
    pub async fn copy_to(&self, other: &Catalog, shape: &Shape) -> Result<(), CatalogError> {
        let mut writing = other.write().await?;
        for ((table, key), columns) in TABLES.into_iter().zip(&shape.0) {
            let mut after = None;
            loop {
                let page = self.page((table, key), columns, after.as_deref()).await?;
                let Some(last) = page.last() else { break };
                after = Some(key_of(last, key, columns));
                insert(&mut writing, other.engine, (table, columns), page).await?;
            }
        }
        for table in NUMBERED {
            let last = self.last_number(table).await?;
            other.set_number(&mut writing, table, last).await?;
        }
        Ok(writing.commit().await?)
    }

    /// What the tables hold.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn digests(&self, shape: &Shape) -> Result<Vec<TableDigest>, CatalogError> {
        let mut digests = Vec::with_capacity(TABLES.len());
        for ((table, key), columns) in TABLES.into_iter().zip(&shape.0) {
            let (mut after, mut rows, mut sum) = (None, 0, [0; 32]);
            loop {
                let page = self.page((table, key), columns, after.as_deref()).await?;
                let Some(last) = page.last() else { break };
                after = Some(key_of(last, key, columns));
                for row in &page {
                    rows += 1;
                    let one: [u8; 32] = digest(row, columns).into();
                    sum.iter_mut().zip(one).for_each(|(sum, byte)| *sum ^= byte);
                }
            }
            let last = if NUMBERED.contains(&table) { self.last_number(table).await? } else { 0 };
            let sha256 = Sha256::new().chain_update(sum).chain_update(last.to_be_bytes()).finalize().into();
            digests.push(TableDigest { table, rows, sha256 });
        }
        Ok(digests)
    }

    /// Takes everything out that a move has put in, messages included, where PostgreSQL has them.
    ///
    /// # Errors
    /// Nothing is changed then.
    pub async fn empty_out(&self) -> Result<(), CatalogError> {
        const MESSAGES: &str = "TRUNCATE store_topics, store_partitions, erased, scheduled, dedup_outcomes, value_spaces, \
             plugin_values, store_groups, cursors, settled_ranges, grants, retries, snapshots, group_totals RESTART IDENTITY; \
             DO $$ DECLARE part regclass; BEGIN \
                 FOR part IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'messages'::regclass LOOP \
                     EXECUTE format('DROP TABLE %s', part); \
                 END LOOP; \
             END $$";
        let mut writing = self.write().await?;
        let tables: Vec<&str> = TABLES.iter().map(|(table, _)| *table).collect();
        let sql = format!("TRUNCATE {} RESTART IDENTITY; {MESSAGES}", tables.join(", "));
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *writing).await?;
        Ok(writing.commit().await?)
    }

    /// Has PostgreSQL look at what came, so that it plans by what there is.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn analyze(&self) -> Result<(), CatalogError> {
        sqlx::raw_sql("SET statement_timeout = 0; ANALYZE; RESET statement_timeout").execute(&self.pool).await?;
        Ok(())
    }

    /// What says that the database is one end of a move.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn move_mark(&self) -> Result<Option<String>, CatalogError> {
        Ok(sqlx::query_scalar("SELECT mark FROM store_moves").fetch_optional(&mut *self.read().await?).await?)
    }

    /// Sets that, or takes it away.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_move_mark(&self, mark: Option<&str>) -> Result<(), CatalogError> {
        let mut writing = self.write().await?;
        sqlx::query("DELETE FROM store_moves").execute(&mut *writing).await?;
        if let Some(mark) = mark {
            sqlx::query("INSERT INTO store_moves (mark) VALUES ($1)").bind(mark).execute(&mut *writing).await?;
        }
        Ok(writing.commit().await?)
    }

    async fn page(
        &self,
        (table, key): (&str, &[&str]),
        columns: &[(String, Kind)],
        after: Option<&[Value]>,
    ) -> Result<Vec<Vec<Value>>, CatalogError> {
        let shown = |(name, kind): &(String, Kind)| match kind {
            Kind::Time => self.engine.time_as_millis(name),
            Kind::Json => self.engine.json_as_text(name),
            _ => name.clone(),
        };
        let (names, keys) = (columns.iter().map(shown).collect::<Vec<_>>().join(", "), key.join(", "));
        let parameters: Vec<String> = (1..=key.len()).map(|nth| format!("${nth}")).collect();
        let behind =
            if after.is_some() { format!("WHERE ({keys}) > ({})", parameters.join(", ")) } else { String::new() };
        let sql = format!("SELECT {names} FROM {table} {behind} ORDER BY {keys} LIMIT {}", page_of(table));
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for value in after.unwrap_or_default() {
            query = bind(query, value.clone());
        }
        let rows = query.fetch_all(&mut *self.read().await?).await?;
        rows.iter().map(|row| read(row, columns)).collect()
    }

    async fn last_number(&self, table: &str) -> Result<i64, CatalogError> {
        let sql = match self.engine {
            Engine::Sqlite => "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = $1), 0)",
            Engine::Postgres => {
                "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence($1, 'id')::regclass), 0)"
            }
        };
        Ok(sqlx::query_scalar(sql).bind(table).fetch_one(&mut *self.read().await?).await?)
    }

    async fn set_number(&self, writing: &mut Writing, table: &str, last: i64) -> Result<(), CatalogError> {
        if last == 0 {
            return Ok(());
        }
        if self.engine == Engine::Sqlite {
            sqlx::query("DELETE FROM sqlite_sequence WHERE name = $1").bind(table).execute(&mut **writing).await?;
        }
        let sql = match self.engine {
            Engine::Sqlite => "INSERT INTO sqlite_sequence (name, seq) VALUES ($1, $2)",
            Engine::Postgres => "SELECT setval(pg_get_serial_sequence($1, 'id')::regclass, $2)",
        };
        sqlx::query(sql).bind(table).bind(last).execute(&mut **writing).await?;
        Ok(())
    }
}

fn column(row: &AnyRow) -> Result<(String, Kind), CatalogError> {
    let (name, kind, longest): (String, String, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let kind = match kind.as_str() {
        "bigint" => Kind::Int,
        "double precision" => Kind::Real,
        "text" => Kind::Text(None),
        "character varying" => Kind::Text(usize::try_from(longest).ok()),
        "bytea" => Kind::Bytes,
        "timestamp with time zone" => Kind::Time,
        "jsonb" => Kind::Json,
        other => return Err(CatalogError::Damaged(format!("the column {name} has the unknown type {other}"))),
    };
    Ok((name, kind))
}

/// A row as PostgreSQL can have it, whichever database it is from.
fn read(row: &AnyRow, columns: &[(String, Kind)]) -> Result<Vec<Value>, CatalogError> {
    let value = |(nth, (_, kind)): (usize, &(String, Kind))| {
        Ok(match kind {
            Kind::Int | Kind::Time => Value::Int(row.try_get(nth)?),
            Kind::Real => Value::Real(row.try_get(nth)?),
            Kind::Bytes => Value::Bytes(row.try_get(nth)?),
            Kind::Json => {
                let text: Option<String> = row.try_get(nth)?;
                Value::Text(text.map(|text| Engine::Postgres.storable_json(&text)))
            }
            Kind::Text(longest) => {
                let text: Option<String> = row.try_get(nth)?;
                let longest = longest.unwrap_or(usize::MAX);
                Value::Text(text.map(|text| Engine::Postgres.fitting(&text, longest).to_owned()))
            }
        })
    };
    columns.iter().enumerate().map(value).collect()
}

fn key_of(row: &[Value], key: &[&str], columns: &[(String, Kind)]) -> Vec<Value> {
    let at = |name: &&str| columns.iter().position(|(column, _)| column == name).unwrap_or(0);
    key.iter().map(|name| row[at(name)].clone()).collect()
}

async fn insert(
    writing: &mut Writing,
    engine: Engine,
    (table, columns): (&str, &[(String, Kind)]),
    page: Vec<Vec<Value>>,
) -> Result<(), CatalogError> {
    let mut parameter = 0;
    let mut one = |kind: &Kind| {
        parameter += 1;
        let parameter = format!("${parameter}");
        match kind {
            Kind::Time => engine.to_time(&parameter),
            Kind::Json => engine.to_json(&parameter),
            _ => parameter,
        }
    };
    let rows: Vec<String> = page
        .iter()
        .map(|_| format!("({})", columns.iter().map(|(_, kind)| one(kind)).collect::<Vec<_>>().join(", ")))
        .collect();
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    let sql = format!("INSERT INTO {table} ({}) VALUES {}", names.join(", "), rows.join(", "));
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for value in page.into_iter().flatten() {
        query = bind(query, value);
    }
    query.execute(&mut **writing).await?;
    Ok(())
}

type Query = sqlx::query::Query<'static, sqlx::Any, sqlx::any::AnyArguments>;

fn bind(query: Query, value: Value) -> Query {
    match value {
        Value::Int(value) => query.bind(value),
        Value::Real(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
    }
}

fn digest(row: &[Value], columns: &[(String, Kind)]) -> impl Into<[u8; 32]> + use<> {
    let mut hash = Sha256::new();
    // The order of columns is each database's own.
    let mut named: Vec<(&str, Kind, &Value)> =
        columns.iter().zip(row).map(|((name, kind), value)| (name.as_str(), *kind, value)).collect();
    named.sort_by_key(|(name, ..)| *name);
    for (name, kind, value) in named {
        hash.update(name);
        let bytes = match value {
            Value::Int(value) => value.map(|value| value.to_be_bytes().to_vec()),
            Value::Real(value) => value.map(|value| value.to_be_bytes().to_vec()),
            Value::Bytes(value) => value.clone(),
            Value::Text(Some(text)) if kind == Kind::Json => Some(canonical(text).into_bytes()),
            Value::Text(value) => value.clone().map(String::into_bytes),
        };
        hash.update([u8::from(bytes.is_some())]);
        let bytes = bytes.unwrap_or_default();
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(&bytes);
    }
    hash.finalize()
}

/// JSON with the names of its objects in order and its numbers in one form, neither of which `jsonb` keeps.
fn canonical(text: &str) -> String {
    fn sorted(value: serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Object(members) => {
                let ordered: std::collections::BTreeMap<_, _> =
                    members.into_iter().map(|(name, value)| (name, sorted(value))).collect();
                serde_json::Value::Object(ordered.into_iter().collect())
            }
            serde_json::Value::Array(items) => serde_json::Value::Array(items.into_iter().map(sorted).collect()),
            // `jsonb` writes out what is whole, and knows no zero below zero.
            serde_json::Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) if float.fract() == 0.0 && float.abs() < 9e18 => (float as i64).into(),
                _ => serde_json::Value::Number(number),
            },
            other => other,
        }
    }
    serde_json::from_str(text).map_or_else(|_| text.to_owned(), |value| sorted(value).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn json_is_the_same_in_any_order() {
        assert_eq!(canonical("[1e17, -0.0, 0.5, 7]"), canonical("[100000000000000000, 0, 0.50, 7]"));
        assert_eq!(canonical(r#"{"b": [ {"d":1,"c":"x"} ], "a": null}"#), r#"{"a":null,"b":[{"c":"x","d":1}]}"#);
    }

    /// A table that a migration adds is moved, or it is said that it is not.
    #[tokio::test]
    async fn every_table_is_moved_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&dir.path().join("catalog.db"), Clock::system()).await.unwrap();
        let mut reading = catalog.read().await.unwrap();
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name NOT LIKE '_sqlx%'",
        )
        .fetch_all(&mut *reading)
        .await
        .unwrap();
        for table in &tables {
            assert!(TABLES.iter().any(|(known, _)| known == table) || NOT_MOVED.contains(&table.as_str()), "{table}");
        }
        assert!(TABLES.iter().all(|(known, _)| tables.iter().any(|table| table == known)));
        let postgres: String = super::super::postgres::MIGRATIONS.iter().map(|migration| migration.sql).collect();
        let made = postgres.split("CREATE TABLE ").skip(1).filter_map(|rest| rest.split_whitespace().next());
        for table in made.filter(|table| *table != "IF") {
            let of_store = include_str!("../../../migrations/postgres/002_message_store.sql");
            let known = TABLES.iter().any(|(known, _)| *known == table)
                || NOT_MOVED.contains(&table)
                || table.ends_with("_migrations")
                || of_store.contains(&format!("CREATE TABLE {table} "));
            assert!(known, "{table}");
        }
    }
}
