//! `sluice migrate-store`: all that a broker keeps, to a fleet's PostgreSQL or back. Invariant: exit code 0 only once a second
//! reading of both ends has found the same. Never asks a broker.

use std::path::PathBuf;
use std::str::FromStr as _;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::failure::Failure;
use super::migrate::SETTING;
use super::output::Output;
use super::work_bar::WorkBar;
use crate::clock::Clock;
use crate::config::{DEVELOPMENT_DATA_DIR, PostgresUrl};
use crate::offline::moving::{End, Ends, Moved, abandon, migrate_store};

const AFTER_HELP: &str = "\
Topics with their messages, offsets and times, subscriptions with their positions and retries, dead letters, scheduled messages, \
idempotency keys, snapshots, pipelines, plugins and their values, schemas and the audit log arrive as they are. What was leased \
waits again, its attempt counted. What is not moved: settings, tokens' secrets, and what a topic with captureInput has captured. Topics in \
Redis have to be deleted before.

Stop all brokers first. The target is empty: a database that has had `sluice migrate up` and no broker, or a directory that is \
not there yet. Both ends are marked, so that no broker starts on them meanwhile. Broken off, the same command goes on where it \
was; --abandon takes out what was copied and has brokers serve from the source again. At the end both are read once more and \
held against each other by counts and SHA-256; the source stays, marked as left.

In examples, DATABASE stands for where yours is.

Exit codes: 0 moved and verified · 2 wrong usage: a broker runs, the target is not empty · 5 it could not be read or written, or \
is not the same

Examples:
  sluice migrate up --database DATABASE
  sluice migrate-store --to postgres --data-dir /var/lib/sluice --database DATABASE
  sluice migrate-store --to embedded --data-dir /var/lib/sluice-again --database DATABASE";

/// Move all that a broker keeps to a fleet's PostgreSQL, or back
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct MigrateStoreArgs {
    /// Where it goes; it comes from the other one
    #[arg(long, value_enum)]
    to: Target,
    /// The directory that a broker with `storage = "embedded"` is started with
    #[arg(long, value_name = "DIR", env = "SLUICE__DATA_DIR", hide_env_values = true, default_value = DEVELOPMENT_DATA_DIR)]
    data_dir: PathBuf,
    /// The database of brokers with `storage = "postgres"`: Host=…;Database=…;Username=…;Password=…, or postgres://user:password@host:5432/database
    #[arg(long, value_name = "DATABASE", env = SETTING, hide_env_values = true)]
    database: String,
    /// Give up a move that was broken off
    #[arg(long)]
    abandon: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Target {
    /// The database, where several brokers serve from
    Postgres,
    /// The data directory of one broker
    Embedded,
}

/// Does it, and prints what was moved.
pub(super) async fn run(args: &MigrateStoreArgs) -> Result<(), Failure> {
    let database =
        PostgresUrl::from_str(&args.database).map_err(|fault| Failure::Usage(format!("--database {fault}")))?;
    let to = match args.to {
        Target::Postgres => End::Postgres,
        Target::Embedded => End::Embedded,
    };
    let (ends, output) = (Ends { data_dir: args.data_dir.clone(), database, to }, Output::new(args.json));
    if args.abandon {
        abandon(&ends, &Clock::system()).await?;
        return output.done("abandoned: brokers may serve from the source again", &json!({ "abandoned": true }));
    }
    let bar = WorkBar::new();
    let moved = migrate_store(&ends, &Clock::system(), &|progress| bar.show(progress)).await;
    bar.end();
    tell(&moved?, output)
}

fn tell(moved: &Moved, output: Output) -> Result<(), Failure> {
    let topics: Vec<Value> = moved
        .topics
        .iter()
        .map(|(name, digest)| {
            json!({
                "topic": name,
                "messages": digest.messages,
                "scheduled": digest.scheduled,
                "keys": digest.keys,
                "groups": digest.groups,
                "sha256": hex::encode(digest.sha256),
            })
        })
        .collect();
    let tables: Vec<Value> = moved
        .tables
        .iter()
        .map(|table| json!({ "table": table.table, "rows": table.rows, "sha256": hex::encode(table.sha256) }))
        .collect();
    if output.is_json() {
        return output.document(&json!({ "topics": topics, "tables": tables, "values": moved.values }));
    }
    let columns = [
        ("TOPIC", "/topic"),
        ("MESSAGES", "/messages"),
        ("SCHEDULED", "/scheduled"),
        ("KEYS", "/keys"),
        ("GROUPS", "/groups"),
        ("SHA-256", "/sha256"),
    ];
    output.list(&topics, &columns, "")?;
    let rows: u64 = moved.tables.iter().map(|table| table.rows).sum();
    let messages: u64 = moved.topics.iter().map(|(_, digest)| digest.messages + digest.scheduled).sum();
    output.line(&format!(
        "moved and verified: {messages} messages, {} values of plugins, {rows} rows of the catalog",
        moved.values
    ))
}
