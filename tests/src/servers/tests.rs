//! What the servers promise to who tests over them.

use std::time::Duration;

use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use super::*;

async fn number(url: &str, sql: &'static str) -> Result<i64, sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    let number = sqlx::query_scalar(sql).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(number)
}

#[tokio::test]
async fn a_postgres_is_there_is_gone_and_has_what_it_acknowledged() {
    let mut postgres = Postgres::start(Options::new().set("max_connections", "17")).await;
    let url = postgres.database("kept");
    number(&url, "WITH made AS (SELECT 1) SELECT 1::bigint FROM made").await.unwrap();
    let made = postgres.psql(&url, &["-c", "CREATE TABLE t AS SELECT 7::bigint AS x"]);
    assert!(made.status.success(), "{}", crate::outside::said(&made));
    assert_eq!(number(&url, "SELECT current_setting('max_connections')::bigint").await.unwrap(), 17);
    assert!(number(&url.replace("word@", "wrong@"), "SELECT 1::bigint").await.is_err(), "a password is asked for");
    let superusers = "SELECT count(*) FROM pg_roles WHERE rolname = current_user AND rolsuper";
    assert_eq!(number(&url, superusers).await.unwrap(), 0);
    assert_eq!(number(&postgres.superuser_url(), superusers).await.unwrap(), 1);
    assert_ne!(postgres.database("kept"), url);
    assert!(postgres.socket_dir().join(format!(".s.PGSQL.{}", postgres.port())).exists());
    postgres.kill();
    assert!(number(&url, "SELECT x FROM t").await.is_err());
    postgres.restart().await;
    assert_eq!(number(&url, "SELECT x FROM t").await.unwrap(), 7);
}

#[tokio::test]
async fn a_paused_postgres_answers_nobody_until_it_is_resumed() {
    let postgres = Postgres::start(Options::new().set("fsync", "off")).await;
    let mut connection = PgConnection::connect(&postgres.url()).await.unwrap();
    postgres.pause();
    let late = tokio::time::timeout(Duration::from_millis(300), connection.ping()).await;
    assert!(late.is_err(), "its children are paused too");
    postgres.resume();
    assert_eq!(number(&postgres.url(), "SELECT 1::bigint").await.unwrap(), 1);
}

#[tokio::test]
async fn a_pooler_gives_a_session_to_others_between_transactions() {
    let postgres = Postgres::shared();
    let pooler = Pooler::before(postgres).await;
    let url = pooler.url(&postgres.url());
    let mut connections = Vec::new();
    for _ in 0..8 {
        let mut connection = PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql("BEGIN; SELECT 1; COMMIT").execute(&mut connection).await.unwrap();
        connections.push(connection);
    }
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = '' AND datname = 'messaging' \
                    AND backend_type = 'client backend'";
    assert!(number(&postgres.superuser_url(), sessions).await.unwrap() <= 4);
}

#[tokio::test]
async fn a_redis_is_there_is_gone_and_has_what_it_wrote() {
    let mut redis = Redis::start(Options::new().set("appendfsync", "always").set("maxmemory", "64mb")).await;
    assert_eq!(redis.ask(&["CONFIG", "GET", "maxmemory-policy"]), "maxmemory-policy\nnoeviction");
    assert_eq!(redis.ask(&["CONFIG", "GET", "maxmemory"]), "maxmemory\n67108864");
    assert_eq!(redis.ask(&["SET", "a", "1"]), "OK");
    redis.restart().await;
    assert_eq!(redis.ask(&["GET", "a"]), "1");
    redis.pause();
    redis.resume();
    redis.flush();
    assert_eq!(redis.ask(&["GET", "a"]), "");
    assert_eq!(redis.ask(&["SET", "a", "1"]), "OK");
    redis.restart_empty().await;
    assert_eq!(redis.ask(&["DBSIZE"]), "0");
    assert!(redis.url().starts_with("redis://:a%2Fredis%40word@127.0.0.1:"));
}
