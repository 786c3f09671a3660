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
  sluice pipeline history --subscription SUBSCRIPTION_ID
  sluice pipeline diff --topic orders --from 1 --to 2
  sluice pipeline rollback --topic orders --to 1";

const GET_AFTER_HELP: &str = "\
Examples:
  sluice pipeline get --topic orders
  sluice pipeline get --topic orders --revision 2
  sluice pipeline get --subscription SUBSCRIPTION_ID --revision 1";

const DIFF_AFTER_HELP: &str = "\
Examples:
  sluice pipeline diff --topic orders                 the last change
  sluice pipeline diff --topic orders --from 1        since revision 1
  sluice pipeline diff --subscription SUBSCRIPTION_ID --from 1 --to 2";

const ROLLBACK_AFTER_HELP: &str = "\
What ran in that revision runs again, as a new one. Each stage is pinned to the version that it ran on, also where it had said
latest: to follow the latest version again, set it so. It fails if one of the versions is gone, or if another change came between.

Examples:
  sluice pipeline rollback --topic orders --to 1
  sluice pipeline rollback --subscription SUBSCRIPTION_ID --to 1";

const SET_AFTER_HELP: &str = "\
What `sluice pipeline get --json` prints will do, too. A change that came between is not overwritten: it fails.

Examples:
  sluice pipeline set stages.json --topic orders
  echo '[]' | sluice pipeline set - --subscription SUBSCRIPTION_ID    no stages";

/// The stages of a topic or subscription.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show the stages
    #[command(after_help = GET_AFTER_HELP)]
    Get {
        #[command(flatten)]
        owner: Owner,
        /// As they were in this revision [default: as they are]
        #[arg(long, value_name = "N")]
        revision: Option<u64>,
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
    /// Show what is different between two revisions
    #[command(after_help = DIFF_AFTER_HELP)]
    Diff {
        #[command(flatten)]
        owner: Owner,
        /// The earlier one [default: the one before --to]
        #[arg(long, value_name = "N")]
        from: Option<u64>,
        /// The later one [default: the one in use]
        #[arg(long, value_name = "N")]
        to: Option<u64>,
    },
    /// Go back to the stages of a revision
    #[command(after_help = ROLLBACK_AFTER_HELP)]
    Rollback {
        #[command(flatten)]
        owner: Owner,
        /// The revision
        #[arg(long, value_name = "N")]
        to: u64,
    },
}

/// Whose pipeline.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Owner {
    /// The stages before messages are stored in this topic
    #[arg(long, value_name = "NAME")]
    pub(super) topic: Option<String>,
    /// The stages on the way out to this subscription
    #[arg(long, value_name = "ID")]
    pub(super) subscription: Option<String>,
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
        Action::Get { owner, revision: None } => show(output, &client.get(&owner.path(), Query::default()).await?.body),
        Action::Get { owner, revision: Some(number) } => {
            let number = number.to_string();
            let path = [&owner.path()[..], &["history", &number]].concat();
            show(output, &client.get(&path, Query::default()).await?.body)
        }
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
        Action::Diff { owner, from, to } => {
            let path = [&owner.path()[..], &["diff"]].concat();
            let query = Query::default().with("from", *from).with("to", *to);
            show_difference(output, &client.get(&path, query).await?.body)
        }
        Action::Rollback { owner, to } => {
            let known = client.get(&owner.path(), Query::default()).await?;
            let path = [&owner.path()[..], &["rollback"]].concat();
            let query = Query::default().with("to", Some(to));
            let set = client.act_over(&path, query, known.etag.as_deref()).await?;
            output.done(&format!("revision {} is in use, as {to} was", set["revision"]), &set)
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

/// For people: a line per difference.
fn show_difference(output: Output, difference: &Value) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(difference);
    }
    let lines = lines(difference);
    output.note(&format!("from revision {} to {}", difference["from"], difference["to"]))?;
    if lines.is_empty() {
        return output.note("no difference");
    }
    lines.iter().try_for_each(|line| output.foreign_line(line))
}

fn lines(difference: &Value) -> Vec<String> {
    let all = |name: &str| difference[name].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let known = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    let mut lines = Vec::new();
    for (sign, name) in [("+", "added"), ("-", "removed")] {
        lines.extend(all(name).map(|it| {
            let plugin = text(&it["spec"]["plugin"]);
            format!("{sign} {} ({plugin} {}) at {}", text(&it["stage"]), text(&it["runs"]["version"]), it["at"])
        }));
    }
    lines.extend(all("moved").map(|it| format!("> {} from {} to {}", text(&it["stage"]), it["from"], it["to"])));
    for changed in all("changed") {
        let stage = text(&changed["stage"]);
        if let Some(runs) = changed.get("runs") {
            let [before, after] = ["before", "after"].map(|when| text(&runs[when]["version"]));
            lines.push(format!("~ {stage} runs {before} -> {after}"));
        }
        if let Some(trial) = changed.get("trial") {
            let [before, after] = ["before", "after"].map(|when| tried(trial.get(when)));
            lines.push(format!("~ {stage} tries {before} -> {after}"));
        }
        lines.extend(changed["fields"].as_array().into_iter().flatten().map(|field| {
            let [before, after] = ["before", "after"].map(|when| known(field.get(when)));
            format!("~ {stage} {}: {before} -> {after}", text(&field["pointer"]))
        }));
    }
    lines
}

/// A version on trial, in a few words.
fn tried(trial: Option<&Value>) -> String {
    let Some(trial) = trial else { return "nothing".to_owned() };
    let [version, strategy] = ["version", "strategy"].map(|name| trial[name].as_str().unwrap_or_default());
    format!("{version} ({strategy}, {} %)", trial["percent"])
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
