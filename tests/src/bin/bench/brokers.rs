//! One, two and three brokers on one PostgreSQL, under the same load over HTTP: where the next limit is. Invariant: brokers, server
//! and load are on this machine, so the figures say what each costs, not how far a fleet on machines of its own goes.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use sluice_tests::servers::{Options, Postgres};
use sluice_tests::{Broker, Settings};
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use super::http_rows::publish_batch;
use super::load::{self, Target, median};
use super::report::{Budget, Report, Row, short};
use super::{BATCH, CONNECTIONS, PAIRS, PAYLOAD_BYTES, ROUND, TOPIC};

const NODES: [&str; 3] = ["a", "b", "c"];

/// What a round came to.
struct Round {
    per_second: f64,
    /// Bytes of the server's log of changes, a message.
    wal: f64,
    /// Processor time of the server's processes, a message, in microseconds.
    server_us: f64,
    /// The same of the brokers.
    brokers_us: f64,
}

/// The rows.
pub async fn rows(report: &mut Report) {
    let server = Postgres::start(Options::new().set("shared_buffers", "512MB")).await;
    let mut alone = 0.0;
    for count in 1..=NODES.len() {
        let rounds = of(&server, count).await;
        let figure = |of: fn(&Round) -> f64| median(rounds.iter().map(of).collect());
        let rate = figure(|round| round.per_second);
        if count == 1 {
            alone = rate;
        }
        report.add(Row {
            work: format!("{count} brokers on one PostgreSQL: publish, {BATCH} a call, {PAYLOAD_BYTES} B, {CONNECTIONS} connections"),
            ours: format!(
                "{} msg/s; a message: {} B of WAL, {} µs of PostgreSQL, {} µs of brokers",
                short(rate),
                short(figure(|round| round.wal)),
                short(figure(|round| round.server_us)),
                short(figure(|round| round.brokers_us))
            ),
            baseline: format!("one broker: {} msg/s", short(alone)),
            figures: rounds.iter().map(|round| round.per_second / alone).collect(),
            unit: "×",
            budget: Budget::None,
        });
    }
}

async fn of(server: &Postgres, count: usize) -> Vec<Round> {
    let url = server.database("brokers");
    server.make_tables(&url);
    let brokers = join_all(NODES[..count].iter().map(|node| Broker::with(Settings::new().on(&url, node)))).await;
    let topic = json!({"name": TOPIC, "type": "Queue", "partitionCount": 16});
    brokers[0].post("/topics", &topic).await.expect(201);
    let targets: Vec<Target> = brokers.iter().map(|broker| Target::of(broker)).collect();
    let load = async || {
        let each = targets
            .iter()
            .map(async |target| load::run(target, &publish_batch(target), CONNECTIONS / targets.len(), ROUND).await);
        join_all(each).await
    };
    load().await;
    let mut sql = PgConnection::connect(&server.superuser_url()).await.expect("the server answers");
    let mut rounds = Vec::new();
    for _ in 0..PAIRS {
        let before = (wal(&mut sql).await, server_time(&mut sql).await, brokers_time(&brokers));
        let done = load().await;
        let after = (wal(&mut sql).await, server_time(&mut sql).await, brokers_time(&brokers));
        let messages: usize = done.iter().map(|done| done.messages).sum();
        let a_message = |before: f64, after: f64| (after - before) / messages as f64;
        rounds.push(Round {
            per_second: done.iter().map(|done| done.per_second()).sum(),
            wal: a_message(before.0, after.0),
            server_us: a_message(micros(before.1), micros(after.1)),
            brokers_us: a_message(micros(before.2), micros(after.2)),
        });
    }
    rounds
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

async fn wal(sql: &mut PgConnection) -> f64 {
    let bytes: i64 = sqlx::query_scalar("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")
        .fetch_one(sql)
        .await
        .expect("the server answers");
    bytes as f64
}

/// Of all its processes that are there: connections stay while brokers do.
async fn server_time(sql: &mut PgConnection) -> Duration {
    let all: Vec<i32> =
        sqlx::query_scalar("SELECT pid FROM pg_stat_activity").fetch_all(sql).await.expect("the server answers");
    all.into_iter().map(|process| time_of(process.unsigned_abs())).sum()
}

fn brokers_time(brokers: &[Broker]) -> Duration {
    brokers.iter().map(|broker| time_of(broker.process_id())).sum()
}

/// Processor time of a process, in its own work and the system's for it.
fn time_of(process: u32) -> Duration {
    /// Of a clock tick, which Linux shows everybody as a hundredth of a second.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything: state is the first, user and system time are the 12th and 13th.
    let fields: Vec<u32> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().map(|one| one.parse().unwrap_or(0)).collect();
    TICK * fields.get(11..13).map_or(0, |times| times.iter().sum())
}
