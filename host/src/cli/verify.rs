//! `sluice verify`: says what is damaged in a data directory that no broker runs on. Invariant: the directory is not
//! changed; exit code 0 only if nothing is damaged. Never asks a broker.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::failure::{Failure, Refusal};
use super::output::Output;
use super::work_bar::WorkBar;
use crate::clock::Clock;
use crate::config::DEVELOPMENT_DATA_DIR;
use crate::message::TopicId;
use crate::offline::{self, Report};
use crate::store::embedded::{Finding, Lost};

const AFTER_HELP: &str = "\
Reads everything that is kept: the journal's frames, segments, checkpoint, catalog, and whether they belong together. \
What an abrupt end leaves behind (the torn end of the journal) is told apart from damage.

Exit codes: 0 nothing is damaged · 1 something is · 2 wrong usage · 5 it could not be checked: a broker runs on it, a later \
version wrote it, a file cannot be read

Examples:
  sluice verify --data-dir /var/lib/sluice
  sluice verify --data-dir /var/lib/sluice --json > findings.json
  sluice verify || sluice repair --to sluice-data.repaired";

/// Check a data directory that no broker runs on
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct VerifyArgs {
    /// The directory that a broker was started with
    #[arg(long, value_name = "DIR", env = "SLUICE__DATA_DIR", hide_env_values = true, default_value = DEVELOPMENT_DATA_DIR)]
    data_dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints what is found.
pub(super) async fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let (output, bar) = (Output::new(args.json), WorkBar::new());
    let report = offline::verify(&args.data_dir, &Clock::system(), &|progress| bar.show(progress)).await?;
    bar.end();
    if output.is_json() {
        output.document(&document(&report))?;
    } else {
        for finding in &report.findings {
            output.line(&told(finding, &report.names))?;
        }
        output.line(&checked(&report))?;
    }
    match damaged(&report) {
        0 => Ok(()),
        1 => Err(damage("1 place is damaged".to_owned())),
        places => Err(damage(format!("{places} places are damaged"))),
    }
}

fn damaged(report: &Report) -> usize {
    report.findings.iter().filter(|finding| finding.kind.is_damage()).count()
}

/// The answer is no.
pub(super) fn damage(sentence: String) -> Failure {
    Refusal { status: None, problem: json!({ "detail": sentence }) }.into()
}

fn checked(report: &Report) -> String {
    let notes = report.findings.len() - damaged(report);
    format!(
        "checked the catalog and {} files of the store ({} bytes): topics {}, messages {}; damaged places {}, notes {notes}",
        report.files,
        report.bytes,
        report.topics,
        report.messages,
        damaged(report)
    )
}

/// A finding, for people.
pub(super) fn told(finding: &Finding, names: &HashMap<TopicId, String>) -> String {
    let severity = if finding.kind.is_damage() { "damage" } else { "note" };
    let mut text = format!(
        "{severity}  {}  byte {}  {}\n  {}\n  {}",
        finding.file,
        finding.offset,
        finding.kind.name(),
        finding.detail,
        finding.means
    );
    for lost in &finding.lost {
        write!(text, "\n  lost: {}", sentence(lost, names)).expect("text takes text");
    }
    text
}

/// What is lost, for people.
pub(super) fn sentence(lost: &Lost, names: &HashMap<TopicId, String>) -> String {
    match lost {
        Lost::Messages(run) => {
            let (topic, partition, first) = (name(run.topic, names), run.partition, run.first.0);
            match run.count {
                1 => format!("{topic} partition {partition}: offset {first}"),
                count => {
                    format!("{topic} partition {partition}: offsets {first} to {} ({count} messages)", run.last().0)
                }
            }
        }
        Lost::Scheduled { topic, message, due } => {
            format!("{}: message {message}, which was to come at {}", name(*topic, names), due.rfc3339())
        }
        Lost::Settings { topic, guessed: true } => format!("{}: its settings", name(*topic, names)),
        Lost::Settings { topic, guessed: false } => {
            format!("{}: what the store knew of it; the catalog has its settings", name(*topic, names))
        }
        Lost::Position { topic, group, name: known } => {
            let group = if known.is_empty() { format!("cursor {}", group.0) } else { format!("group {known}") };
            format!("{}: the position of {group}; it begins with the oldest message", name(*topic, names))
        }
    }
}

fn name(topic: TopicId, names: &HashMap<TopicId, String>) -> String {
    names.get(&topic).cloned().unwrap_or_else(|| format!("topic {}", topic.0))
}

/// A report, for machines.
pub(super) fn document(report: &Report) -> Value {
    json!({
        "sound": report.is_sound(),
        "files": report.files,
        "bytes": report.bytes,
        "topics": report.topics,
        "messages": report.messages,
        "findings": report.findings.iter().map(|finding| as_json(finding, &report.names)).collect::<Vec<_>>(),
    })
}

fn as_json(finding: &Finding, names: &HashMap<TopicId, String>) -> Value {
    json!({
        "severity": if finding.kind.is_damage() { "damage" } else { "note" },
        "kind": finding.kind,
        "file": finding.file,
        "offset": finding.offset,
        "detail": finding.detail,
        "means": finding.means,
        "lost": finding.lost.iter().map(|lost| lost_as_json(lost, names)).collect::<Vec<_>>(),
    })
}

fn lost_as_json(lost: &Lost, names: &HashMap<TopicId, String>) -> Value {
    match lost {
        Lost::Messages(run) => json!({
            "what": "messages",
            "topic": name(run.topic, names),
            "partition": run.partition,
            "firstOffset": run.first.0,
            "lastOffset": run.last().0,
            "count": run.count,
        }),
        Lost::Scheduled { topic, message, due } => json!({
            "what": "scheduled", "topic": name(*topic, names), "messageId": message.to_string(), "due": due.rfc3339(),
        }),
        Lost::Settings { topic, guessed } => json!({
            "what": "settings", "topic": name(*topic, names), "inCatalog": !guessed,
        }),
        Lost::Position { topic, name: group, .. } => json!({
            "what": "position", "topic": name(*topic, names), "consumerGroup": group,
        }),
    }
}
