//! `sluice message`: one stored message, by its id. Invariant: it is erased only when that is said twice, by the command and
//! by --yes, since nothing brings it back. Never takes a message: that is `consume`.

use clap::Subcommand;
use serde_json::Value;

use super::arguments::Noun;
use super::client::{Client, Query};
use super::failure::Failure;
use super::output::{Column, Output};

const GROUP_COLUMNS: &[Column] = &[
    ("GROUP", "/consumerGroup"),
    ("STATUS", "/status"),
    ("ATTEMPTS", "/attempts"),
    ("HELD UNTIL", "/ackDeadline"),
    ("AGAIN AT", "/retryAt"),
];
const FAILURE_COLUMNS: &[Column] = &[
    ("FAILED FOR", "/consumerGroup"),
    ("ATTEMPT", "/attempt"),
    ("WHEN", "/at"),
    ("REASON", "/reason"),
    ("HTTP STATUS", "/lastStatus"),
    ("DETAIL", "/detail"),
];

pub(super) const AFTER_HELP: &str = "\
`sluice tail` looks at a topic's messages, `sluice dlq` at its dead letters.

Examples:
  sluice message get MESSAGE_ID
  sluice message erase MESSAGE_ID --yes";

/// Stored messages.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show a message as it is stored, and how far each group is with it
    #[command(after_help = "Examples:\n  sluice message get MESSAGE_ID\n  sluice message get MESSAGE_ID --json")]
    Get {
        /// The message
        message_id: String,
    },
    /// Erase a message: unreadable at once, its bytes gone from the disk within an hour
    #[command(after_help = "Example:\n  sluice message erase MESSAGE_ID --yes")]
    Erase {
        /// The message
        message_id: String,
        /// Yes, for good: nothing brings it back
        #[arg(long, required = true)]
        yes: bool,
    },
}

/// Runs one of the actions.
pub(super) async fn run(args: &Noun<Action>) -> Result<(), Failure> {
    let (client, output) = (Client::new(&args.client)?, args.client.output());
    match &args.action {
        Action::Get { message_id } => show(output, client.get(&["messages", message_id], Query::default()).await?.body),
        Action::Erase { message_id, .. } => {
            let answer = client.delete(&["messages", message_id], Query::default()).await?;
            output.done(&format!("erased {message_id}"), &answer)
        }
    }
}

/// For people: the message, below it a row per group, and below that a row per attempt that failed.
fn show(output: Output, mut message: Value) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(&message);
    }
    let groups = message["groups"].take();
    output.thing(&message)?;
    output.line("")?;
    let groups = groups.as_array().map_or(&[][..], Vec::as_slice);
    output.list(groups, GROUP_COLUMNS, "no group is to get it")?;
    let failures: Vec<Value> = groups.iter().flat_map(failures_of).collect();
    if failures.is_empty() {
        return Ok(());
    }
    output.line("")?;
    output.list(&failures, FAILURE_COLUMNS, "")
}

/// A group's failures, each with the group's name.
fn failures_of(group: &Value) -> impl Iterator<Item = Value> {
    let failures = group["failures"].as_array().map_or(&[][..], Vec::as_slice);
    failures.iter().map(|failed| {
        let mut failed = failed.clone();
        failed["consumerGroup"] = group["consumerGroup"].clone();
        failed
    })
}
