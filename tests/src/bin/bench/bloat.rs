//! What ten million messages leave in a fleet's tables: dead rows, and indexes that are larger than what they name. Invariant: the
//! server's own vacuum has run as it would, with the settings that the tables have; nothing is vacuumed by hand before it is looked.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sluice::clock::Clock;
use sluice::store::postgres::{PostgresOptions, PostgresStore};
use sluice::store::{MessageStore, TopicSpec};
use sluice_tests::servers::{Options, Postgres};
use sluice_tests::store_bed::{self, GROUP, TOPIC};
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use super::fleet::{append_of, lease};
use super::report::{Budget, Report, Row, short};
use super::{BATCH, PAYLOAD_BYTES};

/// Unless `SLUICE_BLOAT_MESSAGES` says otherwise.
const MESSAGES: usize = 10_000_000;
const PARTITIONS: u16 = 16;
const TASKS: u16 = 4;
/// How often it is told how far it is.
const TELL_EVERY: usize = 1_000_000;

/// The rows.
pub async fn rows(report: &mut Report) {
    let number = std::env::var("SLUICE_BLOAT_MESSAGES").ok().map(|text| text.parse().expect("a number"));
    let messages = number.unwrap_or(MESSAGES);
    let server = Postgres::start(Options::new().set("shared_buffers", "512MB").set("max_wal_size", "4GB")).await;
    let url = server.database("bloat");
    server.make_tables(&url);
    let connect = url.parse().expect("the server gives addresses");
    let options = PostgresOptions {
        connect,
        connections_max: 2 * u32::from(TASKS),
        node: "bench".into(),
        clock: Clock::system(),
    };
    let store = Arc::new(PostgresStore::open(options).await.expect("the store opens"));
    store.put_topic(TopicSpec { partitions: PARTITIONS, ..store_bed::topic(TOPIC) }).await.expect("a topic is taken");
    store.put_group(store_bed::group(TOPIC, GROUP)).await.expect("a group is taken");
    let (sent, acked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let (store, sent) = (Arc::clone(&store), Arc::clone(&sent));
        tasks.push(tokio::spawn(async move {
            let mut part = task;
            while sent.fetch_add(BATCH, Ordering::Relaxed) < messages {
                append_of(&store, part % PARTITIONS, PAYLOAD_BYTES).await;
                part = part.wrapping_add(1);
            }
        }));
    }
    for _ in 0..TASKS {
        let (store, acked) = (Arc::clone(&store), Arc::clone(&acked));
        tasks.push(tokio::spawn(async move {
            while acked.load(Ordering::Relaxed) < messages {
                let count = lease(&store).await;
                let before = acked.fetch_add(count, Ordering::Relaxed);
                if before / TELL_EVERY != (before + count) / TELL_EVERY {
                    eprintln!("{} messages acknowledged", before + count);
                }
                if count == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }));
    }
    for task in tasks {
        task.await.expect("a task does not panic");
    }
    let mut sql = PgConnection::connect(&url).await.expect("the server answers");
    for (table, live, dead, updated, hot, table_bytes, index_bytes) in figures(&mut sql).await {
        report.add(Row {
            work: format!("{} messages through the store, by {BATCH}: {table}", short(messages as f64)),
            ours: format!(
                "{} live rows, {} dead, {} updates ({} in place); {} B, indexes {} B",
                short(live as f64),
                short(dead as f64),
                short(updated as f64),
                short(hot as f64),
                short(table_bytes as f64),
                short(index_bytes as f64)
            ),
            baseline: "nothing updated for a message".to_owned(),
            figures: vec![updated as f64 / messages as f64],
            unit: "updates a message",
            budget: Budget::None,
        });
    }
}

type Figures = (String, i64, i64, i64, i64, i64, i64);

async fn figures(sql: &mut PgConnection) -> Vec<Figures> {
    sqlx::query_as(
        "SELECT relname::text, n_live_tup, n_dead_tup, n_tup_upd, n_tup_hot_upd, pg_table_size(relid), pg_indexes_size(relid) \
         FROM pg_stat_user_tables WHERE n_tup_ins + n_tup_upd + n_tup_del > 0 ORDER BY pg_total_relation_size(relid) DESC",
    )
    .fetch_all(sql)
    .await
    .expect("the server answers")
}
