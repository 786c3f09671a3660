//! The store of a fleet beside the bare statements of its design, on one PostgreSQL server of its own. Invariant: both sides
//! have the same messages, the same number of tasks and connections, and commits that are synced where the design syncs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice::catalog::postgres::MIGRATIONS;
use sluice::clock::{Clock, Timestamp};
use sluice::entropy::Entropy;
use sluice::message::{Message, MessageId, MessageMeta};
use sluice::store::postgres::{PostgresOptions, PostgresStore};
use sluice::store::{LeaseRef, LeaseRequest, MessageStore, Mode, SeekTo, Settle, Settlement, TopicSpec};
use sluice_tests::servers::{Options, Postgres};
use sluice_tests::store_bed::{self, GROUP, TOPIC};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgPool, Row as _};
use uuid::Uuid;

use super::load::median;
use super::report::{Budget, Report, Row};
use super::{BATCH, PAIRS, ROUND};

/// Tasks, and connections, of each side.
const TASKS: u16 = 8;
const PARTITIONS: u16 = 16;
const BYTES: usize = 1024;
/// Messages that are there to be consumed.
const FILLED: usize = 100_000;

/// The rows.
pub async fn rows(report: &mut Report) {
    let server = Postgres::start(Options::new().set("shared_buffers", "512MB")).await;
    let sides = Sides::open(&server).await;
    let (mut publish, mut consume) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        publish.push((sides.rate(Work::Append).await, sides.rate(Work::RawAppend).await));
    }
    sides.fill().await;
    for _ in 0..PAIRS {
        consume.push((sides.rate(Work::Lease).await, sides.rate(Work::RawLease).await));
    }
    let work = [
        (
            format!("fleet: publish {BYTES} B by {BATCH}, {TASKS} connections"),
            "arrays inserted with a counter row",
            publish,
        ),
        (
            format!("fleet: lease and ack {BYTES} B by {BATCH}, {TASKS} connections"),
            "a range read, kept and settled",
            consume,
        ),
    ];
    for (work, baseline, pairs) in work {
        let (ours, theirs): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
        report.add(Row {
            work,
            ours: format!("{:.0} msg/s", median(ours)),
            baseline: format!("{baseline}: {:.0} msg/s", median(theirs)),
            figures: pairs.iter().map(|(ours, theirs)| ours / theirs).collect(),
            unit: "×",
            budget: Budget::AtLeast(0.6),
        });
    }
}

#[derive(Clone, Copy)]
enum Work {
    Append,
    RawAppend,
    Lease,
    RawLease,
}

struct Sides {
    store: Arc<PostgresStore>,
    raw: PgPool,
}

impl Sides {
    async fn open(server: &Postgres) -> Sides {
        let url = server.database("bench");
        let connect: PgConnectOptions = url.parse().expect("the server gives addresses");
        let raw = PgPoolOptions::new()
            .max_connections(u32::from(TASKS))
            .connect_with(connect.clone())
            .await
            .expect("the server answers");
        for tables in MIGRATIONS.iter().map(|migration| migration.sql).chain([RAW]) {
            sqlx::raw_sql(tables).execute(&raw).await.expect("an empty database takes the tables");
        }
        let (connections_max, clock) = (u32::from(TASKS), Clock::system());
        let options = PostgresOptions { connect, connections_max, node: "bench".into(), clock };
        let store = Arc::new(PostgresStore::open(options).await.expect("the store opens"));
        let topic = TopicSpec { partitions: PARTITIONS, ..store_bed::topic(TOPIC) };
        store.put_topic(topic).await.expect("the store takes a topic");
        store.put_group(store_bed::group(TOPIC, GROUP)).await.expect("the store takes a group");
        Sides { store, raw }
    }

    /// As many messages on both sides.
    async fn fill(&self) {
        for number in 0..FILLED / BATCH {
            let part = (number % usize::from(PARTITIONS)) as u16;
            append(&self.store, part).await;
            raw_append(&self.raw, part).await;
        }
        sqlx::raw_sql("VACUUM ANALYZE").execute(&self.raw).await.expect("the server answers");
    }

    /// Messages a second.
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
    async fn rate(&self, work: Work) -> f64 {
        if matches!(work, Work::Lease) {
            self.store.seek(TOPIC, GROUP, SeekTo::Earliest).await.expect("the group is there");
        }
        if matches!(work, Work::RawLease) {
            sqlx::query("UPDATE raw_cursors SET next = 0").execute(&self.raw).await.expect("the server answers");
        }
        let (done, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let begun = Instant::now();
        let tasks = (0..TASKS).map(|task| {
            let (store, raw) = (Arc::clone(&self.store), self.raw.clone());
            let (done, over) = (Arc::clone(&done), Arc::clone(&over));
            tokio::spawn(async move {
                let mut turn = task;
                while !over.load(Ordering::Relaxed) {
                    let part = turn % PARTITIONS;
                    turn = turn.wrapping_add(1);
                    let count = match work {
                        Work::Append => append(&store, part).await,
                        Work::RawAppend => raw_append(&raw, part).await,
                        Work::Lease => match lease(&store).await {
                            0 => {
                                store.seek(TOPIC, GROUP, SeekTo::Earliest).await.expect("the group is there");
                                0
                            }
                            count => count,
                        },
                        Work::RawLease => raw_lease(&raw, part).await,
                    };
                    done.fetch_add(count as u64, Ordering::Relaxed);
                }
            })
        });
        let tasks: Vec<_> = tasks.collect();
        tokio::time::sleep(ROUND).await;
        let rate = done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.expect("a task does not panic");
        }
        rate
    }
}

fn message(part: u16) -> Message {
    message_of(part, BYTES)
}

fn message_of(part: u16, bytes: usize) -> Message {
    let (entropy, mut payload) = (Entropy::system(), vec![0; bytes]);
    entropy.fill(&mut payload);
    let at = Clock::system().now();
    let meta = MessageMeta {
        content_type: "application/octet-stream".into(),
        schema_version: None,
        headers: Vec::new(),
        priority: 0,
        key: None,
        correlation_id: None,
        reply_to: None,
        published_at: at,
        expires_at: None,
        trace: None,
        revision: 1,
        dead_letter: None,
        replay_of: None,
    };
    Message { id: MessageId::new(at, TOPIC, part, entropy.next_u64()), payload: Bytes::from(payload), meta }
}

async fn append(store: &PostgresStore, part: u16) -> usize {
    append_of(store, part, BYTES).await
}

/// Appends a batch of messages of so many bytes each.
pub async fn append_of(store: &PostgresStore, part: u16, bytes: usize) -> usize {
    let batch = store_bed::batch((0..BATCH).map(|_| store_bed::item(message_of(part, bytes))).collect());
    store.append(batch).await.expect("the store takes messages").len()
}

/// Leases a batch and acknowledges it; how many those were.
pub async fn lease(store: &PostgresStore) -> usize {
    let request = LeaseRequest {
        topic: TOPIC,
        group: GROUP,
        max: BATCH,
        bytes_max: 64 << 20,
        duration: Duration::from_secs(60),
        holder: "bench".into(),
        mode: Mode::AtLeastOnce,
        ordered: false,
    };
    let leased = store.lease(request).await.expect("the group is there");
    if leased.leases.is_empty() {
        return 0;
    }
    let settle = |lease: &sluice::store::Lease| Settle {
        lease: LeaseRef::Receipt { receipt: lease.receipt, message: None },
        settlement: Settlement::Ack,
    };
    let results = store.settle(leased.leases.iter().map(settle).collect()).await.expect("the store answers");
    results.iter().filter(|result| result.is_ok()).count()
}

/// The bare design: a log, a counter, a cursor, and the ranges that were given out.
const RAW: &str = "CREATE TABLE raw_messages (part smallint, seq bigint, at bigint, id uuid, body bytea); \
     CREATE INDEX ON raw_messages (part, seq); \
     ALTER TABLE raw_messages ALTER COLUMN body SET STORAGE EXTERNAL; \
     CREATE TABLE raw_counters (part smallint PRIMARY KEY, next bigint NOT NULL) WITH (fillfactor = 40); \
     INSERT INTO raw_counters SELECT generate_series(0, 15), 0; \
     CREATE TABLE raw_cursors (part smallint PRIMARY KEY, next bigint NOT NULL) WITH (fillfactor = 40); \
     INSERT INTO raw_cursors SELECT generate_series(0, 15), 0; \
     CREATE TABLE raw_ranges (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, part smallint, first bigint, deadline bigint)";

async fn raw_append(raw: &PgPool, part: u16) -> usize {
    let messages: Vec<Message> = (0..BATCH).map(|_| message(part)).collect();
    sqlx::query(
        "WITH c AS (UPDATE raw_counters SET next = next + $2 WHERE part = $1 RETURNING next - $2 AS first) \
         INSERT INTO raw_messages (part, seq, at, id, body) \
         SELECT $1, c.first + w.nth, $3, w.id, w.body FROM c, unnest($4::uuid[], $5::bytea[]) WITH ORDINALITY AS w(id, body, nth)",
    )
    .bind(part.cast_signed())
    .bind(BATCH as i64)
    .bind(Timestamp::default().0)
    .bind(messages.iter().map(|message| message.id.0).collect::<Vec<Uuid>>())
    .bind(messages.iter().map(|message| message.payload.to_vec()).collect::<Vec<_>>())
    .execute(raw)
    .await
    .expect("the server takes rows");
    BATCH
}

async fn raw_lease(raw: &PgPool, part: u16) -> usize {
    let mut tx = raw.begin().await.expect("the server answers");
    let first: i64 = sqlx::query_scalar(
        "UPDATE raw_cursors SET next = next + $2 WHERE part = $1 \
         RETURNING next - $2 + CASE WHEN set_config('synchronous_commit', 'off', true) = 'off' THEN 0 END",
    )
    .bind(part.cast_signed())
    .bind(BATCH as i64)
    .fetch_one(&mut *tx)
    .await
    .expect("there is a cursor");
    let rows =
        sqlx::query("SELECT seq, id, body FROM raw_messages WHERE part = $1 AND seq >= $2 ORDER BY seq LIMIT $3")
            .bind(part.cast_signed())
            .bind(first)
            .bind(BATCH as i64)
            .fetch_all(&mut *tx)
            .await
            .expect("the server answers");
    let range: i64 =
        sqlx::query_scalar("INSERT INTO raw_ranges (part, first, deadline) VALUES ($1, $2, 0) RETURNING id")
            .bind(part.cast_signed())
            .bind(first)
            .fetch_one(&mut *tx)
            .await
            .expect("the server takes rows");
    tx.commit().await.expect("the server answers");
    let bytes: usize = rows.iter().map(|row| row.get::<&[u8], _>(2).len()).sum();
    if rows.is_empty() {
        sqlx::query("UPDATE raw_cursors SET next = 0 WHERE part = $1")
            .bind(part.cast_signed())
            .execute(raw)
            .await
            .expect("the server answers");
    }
    sqlx::query("DELETE FROM raw_ranges WHERE id = $1").bind(range).execute(raw).await.expect("the server answers");
    if bytes > 0 { rows.len() } else { 0 }
}
