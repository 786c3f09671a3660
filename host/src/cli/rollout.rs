//! `sluice plugin rollout`: a version is tried on a stage, looked at, promoted or aborted. Invariant: a change is made from the
//! revision that was seen, or fails. Never decides how a version does.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::client::{Client, Query};
use super::failure::Failure;
use super::output::{Column, Output};
use super::pipeline::Owner;

const COLUMNS: &[Column] = &[
    ("VERSION", "/version"),
    ("MESSAGES", "/messages"),
    ("PASSED", "/passed"),
    ("CHANGED", "/changed"),
    ("DROPPED", "/dropped"),
    ("REJECTED", "/rejected"),
    ("FAULTED", "/faulted"),
    ("P99 MS", "/latencyP99Ms"),
];

pub(super) const AFTER_HELP: &str = "\
Pin the stage to a version first: one that binds `latest` runs a new version as soon as it is uploaded.

Examples:
  sluice plugin rollout start --topic orders --stage gate --version 1.3.0 --strategy canary
  sluice plugin rollout show --topic orders --stage gate
  sluice plugin rollout promote --topic orders --stage gate
  sluice plugin rollout abort --topic orders --stage gate";

const START_AFTER_HELP: &str = "\
Started again with the same version, the rollout goes on under what is given now: that changes the percentage.

Examples:
  sluice plugin rollout start --topic orders --stage gate --version 1.3.0 --strategy shadow
  sluice plugin rollout start --topic orders --stage gate --version 1.3.0 \\
      --strategy canary --percent 25
  sluice plugin rollout start --subscription SUBSCRIPTION_ID --stage mask --version 1.3.0 \\
      --strategy canary --max-error-rate 0.001";

/// Versions on trial.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Try a version on a stage, or run it at once
    #[command(after_help = START_AFTER_HELP)]
    Start {
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        trial: Trial,
    },
    /// Show how the version that is tried does beside the stage's own
    #[command(
        after_help = "Examples:\n  sluice plugin rollout show --topic orders --stage gate\n  sluice plugin rollout show --subscription SUBSCRIPTION_ID --stage mask"
    )]
    Show {
        #[command(flatten)]
        of: Of,
    },
    /// Let the stage run the version that is tried
    #[command(
        after_help = "Examples:\n  sluice plugin rollout promote --topic orders --stage gate\n  sluice plugin rollout promote --subscription SUBSCRIPTION_ID --stage mask"
    )]
    Promote {
        #[command(flatten)]
        of: Of,
    },
    /// End the trial; the stage runs what it runs
    #[command(
        after_help = "Examples:\n  sluice plugin rollout abort --topic orders --stage gate\n  sluice plugin rollout abort --subscription SUBSCRIPTION_ID --stage mask"
    )]
    Abort {
        #[command(flatten)]
        of: Of,
    },
}

/// Which stage.
#[derive(Debug, Args)]
pub(super) struct Of {
    #[command(flatten)]
    owner: Owner,
    /// The stage
    #[arg(long, value_name = "NAME")]
    stage: String,
}

/// What is tried, and how.
#[derive(Debug, Args)]
pub(super) struct Trial {
    /// The version
    #[arg(long)]
    version: String,
    /// How it is tried
    #[arg(long)]
    strategy: Strategy,
    /// On how many of a hundred messages [default: 10 of a canary, 100 of a shadow]
    #[arg(long)]
    percent: Option<f64>,
    /// Taken back if this share more of its messages fail [default: 0.01 of a canary]
    #[arg(long, value_name = "SHARE")]
    max_error_rate: Option<f64>,
    /// Taken back if it rejects this share more
    #[arg(long, value_name = "SHARE")]
    max_reject_delta: Option<f64>,
    /// Taken back if it drops this share more or fewer
    #[arg(long, value_name = "SHARE")]
    max_drop_delta: Option<f64>,
    /// Taken back if one of a hundred messages takes longer
    #[arg(long, value_name = "MILLISECONDS")]
    max_latency_ms: Option<f64>,
    /// How far back figures are looked at [default: PT5M]
    #[arg(long, value_name = "DURATION")]
    window: Option<String>,
    /// Rates are not judged of fewer messages [default: 100]
    #[arg(long, value_name = "COUNT")]
    min_messages: Option<u64>,
}

/// How a version is brought onto a stage.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Strategy {
    /// For some of the messages, always the same ones of a key
    Canary,
    /// On copies beside the stage's version; what it does is compared and thrown away
    Shadow,
    /// For all messages, at once
    Immediate,
}

impl Of {
    fn path<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&self.owner.path()[..], &["stages", &self.stage, "rollout"], more].concat()
    }
}

impl Trial {
    fn body(&self) -> Value {
        let strategy = match self.strategy {
            Strategy::Canary => "canary",
            Strategy::Shadow => "shadow",
            Strategy::Immediate => "immediate",
        };
        let mut body = Map::new();
        body.insert("version".to_owned(), json!(self.version));
        body.insert("strategy".to_owned(), json!(strategy));
        let optional = [
            ("percent", self.percent.map(Value::from)),
            ("maxErrorRate", self.max_error_rate.map(Value::from)),
            ("maxRejectDelta", self.max_reject_delta.map(Value::from)),
            ("maxDropDelta", self.max_drop_delta.map(Value::from)),
            ("maxLatencyMs", self.max_latency_ms.map(Value::from)),
            ("window", self.window.clone().map(Value::from)),
            ("minMessages", self.min_messages.map(Value::from)),
        ];
        let given = optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        body.extend(given);
        Value::Object(body)
    }
}

/// Runs one of the actions.
pub(super) async fn run(client: &Client, output: Output, action: &Action) -> Result<(), Failure> {
    let set = match action {
        Action::Show { of } => return show(output, &client.get(&of.path(&[]), Query::default()).await?.body),
        Action::Start { of, trial } => change(client, of, (&[], &trial.body())).await?,
        Action::Promote { of } => change(client, of, (&["promote"], &Value::Null)).await?,
        Action::Abort { of } => change(client, of, (&["abort"], &Value::Null)).await?,
    };
    output.done(&format!("revision {} is in use: {}", set["revision"], text(&set["reason"])), &set)
}

/// From the revision that is in use now.
async fn change(client: &Client, of: &Of, (more, body): (&[&str], &Value)) -> Result<Value, Failure> {
    let known = client.get(&of.owner.path(), Query::default()).await?;
    client.post_from(&of.path(more), known.etag.as_deref(), body).await
}

fn show(output: Output, rollout: &Value) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(rollout);
    }
    let (state, strategy) = (text(&rollout["state"]), text(&rollout["strategy"]));
    let reason = rollout["reason"].as_str().map_or_else(String::new, |reason| format!(": {reason}"));
    output.note(&format!("{strategy} at {} %, {state}{reason}", rollout["percent"]))?;
    let row = |arm: &str, version: &str| {
        let mut row = rollout[arm].clone();
        row["version"] = rollout[version].clone();
        row
    };
    output.list(&[row("stable", "stableVersion"), row("candidate", "version")], COLUMNS, "")?;
    let Some(shadow) = rollout["shadow"].as_object() else { return Ok(()) };
    let count = |name: &str| shadow.get(name).and_then(Value::as_u64).unwrap_or(0);
    output.note(&format!(
        "same {}, verdict differs {}, payload differs {}, trapped {}, left out {}",
        count("same"),
        count("verdictDiffers"),
        count("payloadDiffers"),
        count("trapped"),
        count("shed")
    ))?;
    for difference in shadow.get("sample").and_then(Value::as_array).into_iter().flatten() {
        let word = |arm: &str| text(&difference[arm]["verdict"]).to_owned();
        let diff = difference.get("diff").map_or_else(String::new, |diff| format!(" {diff}"));
        let id = text(&difference["messageId"]);
        output.note(&format!("{id}: {} → {}{diff}", word("stable"), word("candidate")))?;
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
