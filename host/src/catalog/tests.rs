//! What the catalog in a file promises beyond what every catalog does: `tests/suites/catalog.rs` has the rules of all.

use std::path::Path;

use super::sqlite::MIGRATIONS;
use super::*;
use crate::clock::Timestamp;

async fn open(dir: &Path) -> Result<Catalog, CatalogError> {
    Catalog::open(&dir.join("catalog.db"), Clock::fixed(Timestamp(1_700_000_000_000))).await
}

#[test]
fn every_migration_of_the_folder_is_listed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations/sqlite");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".sql"))
        .collect();
    files.sort();
    let listed: Vec<String> =
        MIGRATIONS.iter().map(|migration| format!("{:04}_{}.sql", migration.version, migration.description)).collect();
    assert_eq!(listed, files);
}

/// What catalogs hold that were written before is read for as long as these names stay.
#[test]
fn formats_are_stored_under_the_names_of_the_api() {
    for (format, name) in [
        (PushFormat::Envelope, "envelope"),
        (PushFormat::Raw, "raw"),
        (PushFormat::CloudEvents, "cloudEvents"),
        (PushFormat::CloudEventsStructured, "cloudEventsStructured"),
    ] {
        assert_eq!(columns::name(format), name);
    }
}

#[tokio::test]
async fn a_catalog_of_a_newer_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', TRUE, x'00', 0)",
    )
    .execute(&catalog.pool)
    .await
    .unwrap();
    catalog.close().await;
    let opened = open(dir.path()).await;
    assert!(matches!(opened, Err(CatalogError::Newer { found: 9999, known: 8 })), "{opened:?}");
}

#[tokio::test]
async fn a_file_that_is_no_catalog_is_damage_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.db");
    let text = "not a database, and long enough to look like a page's worth of one. ".repeat(100);
    std::fs::write(&path, &text).unwrap();
    let opened = Catalog::open(&path, Clock::fixed(Timestamp(0))).await;
    assert!(matches!(opened, Err(CatalogError::Damaged(_))), "{opened:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[cfg(unix)]
#[tokio::test]
async fn the_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await.unwrap();
    catalog.reserve_topic_id().await.unwrap();
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(files.len() > 1, "the write-ahead log is beside it: {files:?}");
    for file in files {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.path());
    }
}

#[tokio::test]
async fn each_connection_syncs_its_commits_and_waits_for_the_lock() {
    // A folder whose name an address would have to escape.
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("a%20b?c#d..");
    std::fs::create_dir(&dir).unwrap();
    let catalog = open(&dir).await.unwrap();
    assert!(dir.join("catalog.db").exists());
    let mut connections = Vec::new();
    for _ in 0..4 {
        connections.push(catalog.pool.acquire().await.unwrap());
    }
    for connection in &mut connections {
        let mut asked = async |pragma: &'static str| -> i64 {
            sqlx::query_scalar(pragma).fetch_one(&mut **connection).await.unwrap()
        };
        // 2 is FULL.
        assert_eq!(asked("PRAGMA synchronous").await, 2);
        assert_eq!(asked("PRAGMA foreign_keys").await, 1);
        assert_eq!(asked("PRAGMA busy_timeout").await, 10_000);
        assert_eq!(asked("PRAGMA journal_size_limit").await, 16 * 1024 * 1024);
        let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut **connection).await.unwrap();
        assert_eq!(mode, "wal");
    }
}
