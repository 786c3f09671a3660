//! `sluice dlq`: dead letters. Invariant: all of them are replayed only when that is said.

use clap::Subcommand;
use serde_json::{Value, json};

use super::arguments::Noun;
use super::client::{Client, LIST_ITEMS_MAX, Query};
use super::failure::Failure;
use super::output::Column;

const COLUMNS: &[Column] = &[
    ("MESSAGE", "/messageId"),
    ("GROUP", "/deadLetter/consumerGroup"),
    ("REASON", "/deadLetter/reason"),
    ("ATTEMPTS", "/deadLetter/attempts"),
    ("WHEN", "/deadLetter/failedAt"),
    ("DETAIL", "/deadLetter/detail"),
];

pub(super) const AFTER_HELP: &str = "\
Examples:
  sluice dlq list orders
  sluice dlq replay orders MESSAGE_ID          one message, to the group that it failed for
  sluice dlq replay orders --all --dry-run     how many it would be
  sluice dlq discard orders MESSAGE_ID";

const REPLAY_AFTER_HELP: &str = "\
Examples:
  sluice dlq replay orders MESSAGE_ID          one message, to the group that it failed for
  sluice dlq replay orders --all --dry-run     how many it would be
  sluice dlq replay orders --all --group billing --reason NACK";

/// Dead letters.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show a topic's dead letters
    #[command(after_help = "Example:\n  sluice dlq list orders --limit 20")]
    List {
        /// The topic
        topic: String,
        /// Dead letters at most [default: all, up to 10000]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=LIST_ITEMS_MAX))]
        limit: Option<u64>,
    },
    /// Deliver dead letters again
    #[command(after_help = REPLAY_AFTER_HELP)]
    Replay {
        /// The topic
        topic: String,
        /// One message
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        message_id: Option<String>,
        /// All of them
        #[arg(long)]
        all: bool,
        /// Of all, only those that failed for this group
        #[arg(long, requires = "all")]
        group: Option<String>,
        /// Of all, only those that failed for this reason, such as NACK
        #[arg(long, requires = "all")]
        reason: Option<String>,
        /// Only count them
        #[arg(long, requires = "all")]
        dry_run: bool,
    },
    /// Discard one dead letter
    #[command(after_help = "Example:\n  sluice dlq discard orders MESSAGE_ID")]
    Discard {
        /// The topic
        topic: String,
        /// The message
        message_id: String,
    },
}

/// Runs one of the actions.
pub(super) async fn run(args: &Noun<Action>) -> Result<(), Failure> {
    let (client, output) = (Client::new(&args.client)?, args.client.output());
    match &args.action {
        Action::List { topic, limit } => {
            let found = client.list_by_token(&["topics", topic, "dlq"], "deadLetters", *limit).await?;
            output.list(&found, COLUMNS, "no dead letters")
        }
        Action::Replay { topic, message_id: Some(id), .. } => {
            let answer = client.act(&["topics", topic, "dlq", id, "replay"], Query::default()).await?;
            output.done(&format!("replayed {id}"), &answer)
        }
        Action::Replay { topic, message_id: None, group, reason, dry_run, .. } => {
            let mut body = json!({ "dryRun": dry_run });
            for (name, value) in [("consumerGroup", group), ("reason", reason)] {
                if let Some(value) = value {
                    body[name] = json!(value);
                }
            }
            let answer = client.post(&["topics", topic, "dlq", "replay"], Query::default(), &body).await?;
            output.thing(&answer)
        }
        Action::Discard { topic, message_id } => {
            let answer: Value = client.delete(&["topics", topic, "dlq", message_id], Query::default()).await?;
            output.done(&format!("discarded {message_id}"), &answer)
        }
    }
}
