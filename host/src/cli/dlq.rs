//! `sluice dlq`: dead letters. Invariant: all of them are replayed only when that is said.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Subcommand;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::arguments::Noun;
use super::client::{Client, LIST_ITEMS_MAX, Query};
use super::failure::{Failure, Refusal};
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
  sluice dlq replay orders --all --group billing --reason NACK
  sluice dlq replay orders --all --filter \"$.total > 100\" --rate 50 --limit 1000";

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
        /// Of all, only those that failed at this time or later (RFC 3339)
        #[arg(long, requires = "all", value_name = "TIME")]
        from: Option<String>,
        /// Of all, only those that failed before this time (RFC 3339)
        #[arg(long, requires = "all", value_name = "TIME")]
        until: Option<String>,
        /// Of all, only those whose JSON payload fits, such as "$.total > 100"
        #[arg(long, requires = "all", value_name = "QUERY")]
        filter: Option<String>,
        /// So many at most
        #[arg(long, requires = "all", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
        /// So many a second at most [default: as fast as they can be stored]
        #[arg(long, requires = "all", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
        rate: Option<u64>,
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
        Action::Replay { topic, message_id: None, .. } => {
            let answer = replay_many(&client, topic, &args.action).await?;
            output.thing(&answer)?;
            let refused = answer["failed"].as_array().map_or(0, Vec::len);
            if refused == 0 {
                return Ok(());
            }
            let detail =
                format!("{refused} or more of {} dead letters were refused, and stay on the list", answer["matched"]);
            Err(Refusal { status: None, problem: json!({ "detail": detail }) }.into())
        }
        Action::Discard { topic, message_id } => {
            let answer: Value = client.delete(&["topics", topic, "dlq", message_id], Query::default()).await?;
            output.done(&format!("discarded {message_id}"), &answer)
        }
    }
}

/// One call after the other until all are done: a call ends after some seconds.
async fn replay_many(client: &Client, topic: &str, action: &Action) -> Result<Value, Failure> {
    let Action::Replay { group, reason, from, until, filter, limit, rate, dry_run, .. } = action else {
        return Ok(Value::Null);
    };
    let mut body = json!({ "dryRun": dry_run, "rate": rate });
    for (name, value) in
        [("consumerGroup", group), ("reason", reason), ("from", from), ("until", until), ("filter", filter)]
    {
        if let Some(value) = value {
            body[name] = json!(value);
        }
    }
    let (mut sum, bar) = (Sum::default(), ProgressBar::new_spinner());
    bar.enable_steady_tick(Duration::from_millis(200));
    loop {
        if let Some(limit) = limit {
            body["limit"] = json!(limit.saturating_sub(sum.matched));
        }
        let answer = client.post(&["topics", topic, "dlq", "replay"], Query::default(), &body).await?;
        sum.add(&answer);
        bar.set_message(format!("{} of {} replayed", sum.replayed, sum.matched));
        body["nextToken"] = answer["nextToken"].clone();
        if body["nextToken"].is_null() || limit.is_some_and(|limit| sum.matched >= limit) {
            bar.finish_and_clear();
            return Ok(sum.into_value(&answer));
        }
    }
}

/// Of all calls of one replay.
#[derive(Default)]
struct Sum {
    matched: u64,
    replayed: u64,
    reasons: BTreeMap<String, u64>,
    failed: Vec<Value>,
}

/// Refusals that are shown, as one call shows them.
const FAILURES_SHOWN_MAX: usize = 20;

impl Sum {
    fn add(&mut self, answer: &Value) {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        self.matched += number(&answer["matched"]);
        self.replayed += number(&answer["replayed"]);
        for (reason, count) in answer["reasons"].as_object().into_iter().flatten() {
            *self.reasons.entry(reason.clone()).or_default() += number(count);
        }
        let room = FAILURES_SHOWN_MAX.saturating_sub(self.failed.len());
        self.failed.extend(answer["failed"].as_array().into_iter().flatten().take(room).cloned());
    }

    fn into_value(self, last: &Value) -> Value {
        let Sum { matched, replayed, reasons, failed } = self;
        json!({
            "matched": matched, "replayed": replayed, "reasons": reasons, "failed": failed,
            "hasMore": last["hasMore"],
        })
    }
}
