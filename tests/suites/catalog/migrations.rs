//! How the tables of a fleet come about, and change.

use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use sluice::catalog::postgres::{Applied, MIGRATIONS, history, migrate, missing};
use sluice::catalog::{Catalog, CatalogError};
use sluice::clock::{Clock, Timestamp};
use sluice::config::PostgresUrl;
use sluice_tests::binary::repository;
use sluice_tests::outside::said;
use sluice_tests::servers::Postgres;
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;

use crate::bed::{Engine, database};

fn folder() -> PathBuf {
    repository().join("migrations/postgres")
}

/// Runs a file of the folder as an operator would.
fn psql(server: &Postgres, url: &PostgresUrl, file: &str) -> Output {
    server.psql(url.expose(), &["-f", folder().join(file).to_str().unwrap()])
}

async fn sql(url: &PostgresUrl, statements: &'static str) {
    let mut connection = PgConnection::connect(url.expose()).await.unwrap();
    sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn texts(url: &PostgresUrl, query: &'static str) -> Vec<String> {
    let mut connection = PgConnection::connect(url.expose()).await.unwrap();
    let texts = sqlx::query_scalar(query).fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    texts
}

fn versions(applied: &[Applied]) -> Vec<i64> {
    applied.iter().map(|had| had.version).collect()
}

/// The last migration that this binary brings.
fn last() -> i64 {
    MIGRATIONS.last().unwrap().version
}

fn all() -> Vec<i64> {
    MIGRATIONS.iter().map(|migration| migration.version).collect()
}

async fn connect(url: &PostgresUrl) -> Result<Catalog, CatalogError> {
    Catalog::connect(url, Clock::fixed(Timestamp(0))).await
}

#[test]
fn every_migration_of_the_folder_is_listed_and_records_itself() {
    let mut files: Vec<String> =
        std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(MIGRATIONS.iter().map(|known| known.file).collect::<Vec<_>>(), files);
    // A number may be missing: it is that of a change that comes another way.
    assert!(MIGRATIONS.is_sorted_by(|earlier, later| earlier.version < later.version));
    for migration in MIGRATIONS {
        let number = migration.version;
        let (numbered, name) = migration.file.trim_end_matches(".sql").split_once('_').unwrap();
        assert_eq!(numbered.parse::<i64>().unwrap(), number);
        for part in [
            "BEGIN ISOLATION LEVEL READ COMMITTED;".to_owned(),
            "SELECT pg_advisory_xact_lock(8317987319222330741);".to_owned(),
            format!("WHERE version = {number})"),
            format!("VALUES ({number}, '{name}', "),
        ] {
            assert!(migration.sql.contains(&part), "{} lacks: {part}", migration.file);
        }
    }
}

#[tokio::test]
async fn psql_and_sluice_write_one_history() {
    let server = Postgres::shared();
    let by_psql = database(Engine::Postgres, "by_psql").await;
    let outdated = connect(&by_psql).await;
    assert!(matches!(outdated, Err(CatalogError::Outdated { found: 0, known }) if known == last()));
    assert_eq!(missing(&history(&by_psql).await.unwrap()).len(), MIGRATIONS.len());
    for migration in MIGRATIONS {
        let output = psql(server, &by_psql, migration.file);
        assert!(output.status.success(), "{}", said(&output));
    }
    assert_eq!(versions(&history(&by_psql).await.unwrap()), all());
    assert!(migrate(&by_psql).await.unwrap().is_empty(), "nothing is left to do");
    connect(&by_psql).await.unwrap().ping().await.unwrap();

    let by_sluice = database(Engine::Postgres, "by_sluice").await;
    assert_eq!(migrate(&by_sluice).await.unwrap().len(), MIGRATIONS.len());
    let before = history(&by_sluice).await.unwrap();
    let output = psql(server, &by_sluice, MIGRATIONS[0].file);
    assert!(output.status.success() && said(&output).contains("is applied already"), "{}", said(&output));
    assert_eq!(history(&by_sluice).await.unwrap(), before);
    assert_eq!(before[0].name, "initial_schema");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_that_migrate_at_once_each_succeeds_and_one_does_it() {
    let server = Postgres::shared();
    let url = database(Engine::Postgres, "at_once").await;
    let mut tasks = JoinSet::new();
    for number in 0..8 {
        let url = url.clone();
        tasks.spawn(async move {
            if number % 2 == 0 {
                migrate(&url).await.map(drop).map_err(|error| error.to_string())
            } else {
                let output = tokio::task::spawn_blocking(move || psql(server, &url, MIGRATIONS[0].file)).await.unwrap();
                if output.status.success() { Ok(()) } else { Err(said(&output)) }
            }
        });
    }
    for done in tasks.join_all().await {
        done.unwrap();
    }
    assert_eq!(versions(&history(&url).await.unwrap()), all());
    assert_eq!(connect(&url).await.unwrap().version().await.unwrap(), 0);
}

#[tokio::test]
async fn a_migration_that_fails_leaves_nothing() {
    let url = database(Engine::Postgres, "fails").await;
    // The last table that the file makes is there already.
    sql(&url, "CREATE TABLE audit_logs (id BIGINT)").await;
    assert!(matches!(migrate(&url).await, Err(CatalogError::Unavailable(_))));
    assert!(history(&url).await.unwrap().is_empty());
    assert_eq!(texts(&url, "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'").await, ["audit_logs"]);
    sql(&url, "DROP TABLE audit_logs").await;
    assert_eq!(migrate(&url).await.unwrap().len(), MIGRATIONS.len());
}

#[tokio::test]
async fn a_migration_gives_way_to_brokers_and_changes_nothing() {
    let url = database(Engine::Postgres, "gives_way").await;
    // As somebody would who holds a lock on a table for long.
    let mut other = PgConnection::connect(url.expose()).await.unwrap();
    sqlx::raw_sql("BEGIN; CREATE TABLE topics (x BIGINT)").execute(&mut other).await.unwrap();
    let refused = tokio::time::timeout(Duration::from_secs(30), migrate(&url)).await;
    assert!(matches!(&refused, Ok(Err(CatalogError::Unavailable(_)))), "{refused:?}");
    assert!(history(&url).await.unwrap().is_empty());
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    assert_eq!(migrate(&url).await.unwrap().len(), MIGRATIONS.len());
}

#[tokio::test]
async fn tables_of_a_later_version_are_used_while_nothing_is_taken_away() {
    let url = database(Engine::Postgres, "later").await;
    migrate(&url).await.unwrap();
    sql(&url, "ALTER TABLE topics ADD COLUMN colour TEXT; ALTER TABLE schemas ADD COLUMN colour TEXT").await;
    let mut connection = PgConnection::connect(url.expose()).await.unwrap();
    let mut record = async |version: i64, name: &str, readable_from: i64| {
        let insert = "INSERT INTO sluice_migrations (version, name, readable_from) VALUES ($1, $2, $3)";
        let insert = sqlx::query(insert).bind(version).bind(name).bind(readable_from);
        insert.execute(&mut connection).await.unwrap();
    };
    let (known, later) = (last(), last() + 2);
    record(known + 1, "colours", known).await;
    let catalog = connect(&url).await.unwrap();
    assert!(catalog.topics().await.unwrap().is_empty());
    assert!(migrate(&url).await.unwrap().is_empty());
    record(later, "less", known + 1).await;
    let refused = |error| matches!(error, CatalogError::Newer { found, known: had } if (found, had) == (later, known));
    assert!(refused(connect(&url).await.unwrap_err()));
    assert!(refused(migrate(&url).await.unwrap_err()));
}

/// `db/migrations/001_initial_schema.sql` of the deployment guide, but for its TIMESTAMP columns, which know no time zone.
#[tokio::test]
async fn the_guides_tables_have_its_columns_and_indexes() {
    let url = database(Engine::Postgres, "guide").await;
    migrate(&url).await.unwrap();
    let columns = "SELECT table_name || '.' || column_name || ' ' || data_type
                       || coalesce('(' || character_maximum_length || ')', '')
                       || CASE WHEN is_nullable = 'NO' THEN ' not null' ELSE '' END
                   FROM information_schema.columns WHERE table_name IN ('schemas', 'audit_logs')
                   ORDER BY table_name DESC, ordinal_position";
    let expected = [
        "schemas.schema_id character varying(255) not null",
        "schemas.schema_definition text not null",
        "schemas.version character varying(50) not null",
        "schemas.compatibility character varying(50) not null",
        "schemas.status character varying(50) not null",
        "schemas.approved_by character varying(255)",
        "schemas.approved_at timestamp with time zone",
        "schemas.created_at timestamp with time zone not null",
        "schemas.deprecated_at timestamp with time zone",
        "audit_logs.id bigint not null",
        "audit_logs.event_type character varying(100) not null",
        "audit_logs.entity_type character varying(100)",
        "audit_logs.entity_id character varying(255)",
        "audit_logs.user_id character varying(255)",
        "audit_logs.details jsonb",
        "audit_logs.trace_id character varying(255)",
        "audit_logs.created_at timestamp with time zone not null",
    ];
    assert_eq!(texts(&url, columns).await, expected);
    let defaults = "INSERT INTO schemas (schema_id, schema_definition, version) VALUES ('a', '{}', '1');
                    INSERT INTO audit_logs (event_type) VALUES ('x')";
    sql(&url, defaults).await;
    let written =
        "SELECT compatibility || ' ' || status || ' ' || (created_at > now() - interval '1 minute')::text FROM schemas";
    assert_eq!(texts(&url, written).await, ["None Draft true"]);
    let indexes =
        "SELECT indexdef FROM pg_indexes WHERE tablename = 'audit_logs' AND indexname LIKE 'idx%' ORDER BY indexname";
    let indexes = texts(&url, indexes).await;
    let named = |name: &str, on: &str| {
        assert!(indexes.iter().any(|index| index.contains(name) && index.ends_with(on)), "{name}: {indexes:?}");
    };
    named("idx_audit_logs_created_at", "(created_at DESC)");
    named("idx_audit_logs_entity", "(entity_type, entity_id)");
}
