//! `sluice migrate`: the tables of a fleet's PostgreSQL. Invariant: what is run are the files of `migrations/postgres/` and
//! nothing else, on the history that `psql -f` writes too. Never asks a broker.

use std::str::FromStr as _;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::failure::{Failure, Refusal};
use super::output::Output;
use crate::catalog::CatalogError;
use crate::catalog::postgres::{Applied, MIGRATIONS, Migration, history, migrate, missing};
use crate::config::PostgresUrl;
use crate::database::desk::may_pass;

/// The deployment guide's name of the setting.
pub(super) const SETTING: &str = "ConnectionStrings__PostgreSQL";

const AFTER_HELP: &str = "\
Brokers with `storage = \"postgres\"` keep everything there. Run the migrations first, then replace the brokers one by \
one, since those of the version before go on working. Each migration is one transaction; several may run this at \
once, or the files of migrations/postgres/ by `psql -f`.

In examples, DATABASE stands for where yours is.

Exit codes: 0 done, or nothing is missing · 1 the database refused, or (status) a migration is missing · 2 wrong usage · 3 the \
database was not reached

Examples:
  sluice migrate up --database DATABASE
  sluice migrate status --database DATABASE";

const UP_HELP: &str = "\
Examples:
  sluice migrate up --database DATABASE --dry-run > changes.sql
  ConnectionStrings__PostgreSQL=DATABASE sluice migrate up";

const STATUS_HELP: &str = "\
Exits with 1 while a migration is missing.

Example:
  until sluice migrate status --database DATABASE; do sleep 1; done";

/// Bring the tables of a fleet's PostgreSQL up to date: up, status
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct MigrateArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run the migrations that are missing
    #[command(after_help = UP_HELP)]
    Up {
        #[command(flatten)]
        database: Database,
        /// Print what would be run, as SQL, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// List the migrations, and when they were run
    #[command(after_help = STATUS_HELP)]
    Status {
        #[command(flatten)]
        database: Database,
    },
}

#[derive(Debug, Args)]
struct Database {
    /// The database: Host=…;Database=…;Username=…;Password=…, or postgres://user:password@host:5432/database
    #[arg(long, value_name = "DATABASE", env = SETTING, hide_env_values = true)]
    database: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Database {
    fn url(&self) -> Result<PostgresUrl, Failure> {
        PostgresUrl::from_str(&self.database).map_err(|fault| Failure::Usage(format!("--database {fault}")))
    }
}

/// Does it, and prints what was done.
pub(super) async fn run(args: &MigrateArgs) -> Result<(), Failure> {
    match &args.action {
        Action::Up { database, dry_run: false } => up(&database.url()?, Output::new(database.json)).await,
        Action::Up { database, dry_run: true } => dry_run(&database.url()?, Output::new(database.json)).await,
        Action::Status { database } => status(&database.url()?, Output::new(database.json)).await,
    }
}

async fn up(url: &PostgresUrl, output: Output) -> Result<(), Failure> {
    let done = migrate(url).await.map_err(|error| failure(url, error))?;
    let files: Vec<&str> = done.iter().map(|migration| migration.file).collect();
    let sentence = match files.as_slice() {
        [] => "nothing to do: the tables are up to date".to_owned(),
        files => format!("done: {}", files.join(", ")),
    };
    output.done(&sentence, &json!({ "applied": files }))
}

async fn dry_run(url: &PostgresUrl, output: Output) -> Result<(), Failure> {
    let before = history(url).await.map_err(|error| failure(url, error))?;
    let missing = missing(&before);
    if output.is_json() {
        let files: Vec<Value> =
            missing.iter().map(|migration| json!({ "file": migration.file, "sql": migration.sql })).collect();
        return output.document(&json!({ "missing": files }));
    }
    for Migration { file, sql, .. } in missing {
        output.line(&format!("-- {file}\n\n{sql}"))?;
    }
    Ok(())
}

async fn status(url: &PostgresUrl, output: Output) -> Result<(), Failure> {
    let before = history(url).await.map_err(|error| failure(url, error))?;
    let known = MIGRATIONS.iter().map(|migration| {
        let applied = before.iter().find(|had| had.version == migration.version);
        shown(migration.version, migration.file.trim_end_matches(".sql"), applied)
    });
    // What a later version has done.
    let later = before.iter().filter(|had| !MIGRATIONS.iter().any(|known| known.version == had.version));
    let later = later.map(|had| shown(had.version, &format!("{:03}_{}", had.version, had.name), Some(had)));
    let columns = [("MIGRATION", "/name"), ("STATE", "/state"), ("APPLIED", "/appliedAt")];
    output.list(&known.chain(later).collect::<Vec<_>>(), &columns, "")?;
    match missing(&before).len() {
        0 => Ok(()),
        1 => Err(no("a migration is missing: run `sluice migrate up`".to_owned())),
        several => Err(no(format!("{several} migrations are missing: run `sluice migrate up`"))),
    }
}

fn shown(version: i64, name: &str, applied: Option<&Applied>) -> Value {
    json!({
        "version": version,
        "name": name,
        "state": if applied.is_some() { "applied" } else { "missing" },
        "appliedAt": applied.map(|had| had.at.rfc3339()),
    })
}

fn failure(url: &PostgresUrl, error: CatalogError) -> Failure {
    match error {
        // It says that it is starting or stopping, or that it has no connection left: to be asked again.
        CatalogError::Unavailable(error) if may_pass(&error) => {
            Failure::Unreachable { url: url.to_string(), reason: error.to_string() }
        }
        // The database itself speaks.
        CatalogError::Unavailable(sqlx::Error::Database(error)) => no(error.to_string()),
        CatalogError::Unavailable(error) => Failure::Unreachable { url: url.to_string(), reason: error.to_string() },
        other => no(other.to_string()),
    }
}

fn no(sentence: String) -> Failure {
    Refusal { status: None, problem: json!({ "detail": sentence }) }.into()
}
