//! `sluice pipeline`: the stages of a topic or a subscription. Invariant: `set` replaces the revision that it has seen, or
//! fails.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::arguments::{Noun, read_text};
use super::client::{Client, Part, Query};
use super::failure::Failure;
use super::output::{Column, Output};

const STAGE_COLUMNS: &[Column] = &[
    ("STAGE", "/name"),
    ("PLUGIN", "/plugin"),
    ("VERSION", "/version"),
    ("ON REJECT", "/onReject"),
    ("ON FAULT", "/onFault"),
    ("CONFIG", "/config"),
];
const HISTORY_COLUMNS: &[Column] =
    &[("REVISION", "/revision"), ("WHEN", "/createdAt"), ("BY", "/createdBy"), ("REASON", "/reason")];

pub(super) const AFTER_HELP: &str = "\
Examples:
  sluice pipeline get --topic orders
  echo '[{\"name\": \"mask\", \"plugin\": \"redact\",
         \"config\": {\"rules\": [{\"pointer\": \"/card\", \"action\": \"mask\"}]}}]' |
      sluice pipeline set - --topic orders
  echo '[]' | sluice pipeline set - --topic orders    no stages
  sluice pipeline history --subscription SUBSCRIPTION_ID";

const SET_AFTER_HELP: &str = "\
What `sluice pipeline get --json` prints will do, too. A change that came between is not overwritten: it fails.

Examples:
  sluice pipeline set stages.json --topic orders
  echo '[]' | sluice pipeline set - --subscription SUBSCRIPTION_ID    no stages";

/// The stages of a topic or subscription.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show the stages
    #[command(
        after_help = "Examples:\n  sluice pipeline get --topic orders\n  sluice pipeline get --subscription SUBSCRIPTION_ID"
    )]
    Get {
        #[command(flatten)]
        owner: Owner,
    },
    /// Replace the stages
    #[command(after_help = SET_AFTER_HELP)]
    Set {
        /// A JSON file with the list of stages; - is standard input
        file: PathBuf,
        #[command(flatten)]
        owner: Owner,
    },
    /// Show all revisions
    #[command(after_help = "Example:\n  sluice pipeline history --topic orders")]
    History {
        #[command(flatten)]
        owner: Owner,
        #[command(flatten)]
        part: Part,
    },
}

/// Whose pipeline.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Owner {
    /// The stages before messages are stored in this topic
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// The stages on the way out to this subscription
    #[arg(long, value_name = "ID")]
    subscription: Option<String>,
}

impl Owner {
    pub(super) fn path(&self) -> [&str; 3] {
        match (&self.topic, &self.subscription) {
            (Some(topic), _) => ["topics", topic, "pipeline"],
            (None, id) => ["subscriptions", id.as_deref().unwrap_or_default(), "pipeline"],
        }
    }
}

/// Runs one of the actions.
pub(super) async fn run(args: &Noun<Action>) -> Result<(), Failure> {
    let (client, output) = (Client::new(&args.client)?, args.client.output());
    match &args.action {
        Action::Get { owner } => show(output, &client.get(&owner.path(), Query::default()).await?.body),
        Action::Set { file, owner } => {
            let stages = stages(&read_text(file)?).map_err(Failure::Usage)?;
            let known = client.get(&owner.path(), Query::default()).await?;
            let set = client.put(&owner.path(), known.etag.as_deref(), &json!({ "stages": stages })).await?;
            output.done(&format!("revision {} is in use", set["revision"]), &set)
        }
        Action::History { owner, part } => {
            let path = [&owner.path()[..], &["history"]].concat();
            let revisions = client.list(&path, "revisions", *part, &[]).await?;
            output.list(&revisions, HISTORY_COLUMNS, "never set")
        }
    }
}

fn show(output: Output, pipeline: &Value) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(pipeline);
    }
    output.note(&format!("revision {}", pipeline["revision"]))?;
    output.list(pipeline["stages"].as_array().map_or(&[][..], Vec::as_slice), STAGE_COLUMNS, "no stages")
}

/// A list, or what `pipeline get --json` prints.
fn stages(text: &str) -> Result<Value, String> {
    let mut document: Value = serde_json::from_str(text).map_err(|error| format!("the stages are no JSON: {error}"))?;
    let stages = if document.is_object() { document["stages"].take() } else { document };
    if stages.is_array() { Ok(stages) } else { Err("the stages are a JSON list".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_a_list_or_what_get_printed() {
        assert_eq!(stages("[]"), Ok(json!([])));
        assert_eq!(stages(r#"{"revision": 3, "stages": [1]}"#), Ok(json!([1])));
        for bad in ["", "{}", "3"] {
            assert!(stages(bad).is_err(), "{bad}");
        }
    }
}
