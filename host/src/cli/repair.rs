//! `sluice repair`: writes what is left of a damaged data directory to a new one. Invariant: the old one is not changed;
//! exit code 0 only if nothing is lost. Never asks a broker.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::failure::Failure;
use super::output::Output;
use super::verify::{damage, document, sentence};
use super::work_bar::WorkBar;
use crate::clock::Clock;
use crate::config::DEVELOPMENT_DATA_DIR;
use crate::offline::{self, Repaired};

const AFTER_HELP: &str = "\
The new directory gets every message that can be read, at the offset that it had, with the positions of subscriptions, dead \
letters, scheduled messages, idempotency keys and the catalog. In the place of a lost message stands a tombstone, as an \
erased one leaves it: consumers pass over it, and offsets and positions stay right. What is lost is listed: topic, \
partition, offsets. The result is checked as `sluice verify` does before it is reported.

Exit codes: 0 nothing is lost · 1 written, and something is lost · 2 wrong usage, the new directory is not empty · 5 it could \
not be read or written

Examples:
  sluice repair --data-dir /var/lib/sluice --to /var/lib/sluice.repaired
  sluice serve --data-dir /var/lib/sluice.repaired
  sluice repair --to another-copy --json > lost.json";

/// Write what is left of a damaged data directory to a new one
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct RepairArgs {
    /// The directory that is damaged; it is only read
    #[arg(long, value_name = "DIR", env = "SLUICE__DATA_DIR", hide_env_values = true, default_value = DEVELOPMENT_DATA_DIR)]
    data_dir: PathBuf,
    /// The new directory: empty, or not there yet
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Repairs, and prints what is lost.
pub(super) async fn run(args: &RepairArgs) -> Result<(), Failure> {
    let (output, bar) = (Output::new(args.json), WorkBar::new());
    let repaired = offline::repair(&args.data_dir, &args.to, &Clock::system(), &|progress| bar.show(progress)).await?;
    bar.end();
    if output.is_json() {
        output.document(&json!({
            "lostNothing": repaired.lost_nothing(),
            "messagesLost": messages_lost(&repaired),
            "messagesFromJournal": repaired.before.rescued,
            "catalogLost": repaired.catalog_lost,
            "before": document(&repaired.before),
            "after": document(&repaired.after),
        }))?;
    } else {
        tell(&repaired, args, output)?;
    }
    match messages_lost(&repaired) {
        _ if repaired.lost_nothing() => Ok(()),
        0 => Err(damage("no message is lost, but what is listed above is".to_owned())),
        1 => Err(damage("1 message is lost".to_owned())),
        count => Err(damage(format!("{count} messages are lost"))),
    }
}

fn messages_lost(repaired: &Repaired) -> u64 {
    repaired.before.findings.iter().map(|finding| finding.messages_lost()).sum()
}

fn tell(repaired: &Repaired, args: &RepairArgs, output: Output) -> Result<(), Failure> {
    let Repaired { before, catalog_lost, after } = repaired;
    for finding in before.findings.iter().filter(|finding| finding.kind.is_damage()) {
        output.line(&format!("damage  {}  byte {}  {}", finding.file, finding.offset, finding.kind.name()))?;
        for lost in &finding.lost {
            output.line(&format!("  lost: {}", sentence(lost, &before.names)))?;
        }
    }
    for lost in catalog_lost {
        output.line(&format!("lost of the catalog: {lost}"))?;
    }
    if before.rescued > 0 {
        output.line(&format!("messages taken from the journal instead of damaged segments: {}", before.rescued))?;
    }
    let lost = messages_lost(repaired);
    output.line(&format!(
        "wrote and checked {}: topics {}, messages {}, of them tombstones of lost ones {lost}",
        args.to.display(),
        after.topics,
        after.messages
    ))
}
