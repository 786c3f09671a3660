//! `sluice plugin`: what code there is for topics, what it is allowed, how it comes onto their stages, and how its authors make
//! it (see `project`). Invariant: `allow` adds to what it has seen, or fails; what is local asks no broker.

use clap::Subcommand;
use serde_json::{Value, json};

use super::arguments::Noun;
use super::client::{Client, Part, Query};
use super::dry_run;
use super::failure::Failure;
use super::output::{Column, Output};
use super::plugin_logs;
use super::plugin_push::{self, PULL_AFTER_HELP, PUSH_AFTER_HELP, PullArgs, PushArgs};
use super::project;
use super::rollout;

const COLUMNS: &[Column] = &[
    ("NAME", "/name"),
    ("VERSION", "/version"),
    ("LATEST", "/latest"),
    ("STATE", "/state"),
    ("SOURCE", "/source"),
    ("BOUND TO", "/bound"),
];

pub(super) const AFTER_HELP: &str = "\
A plugin is pushed, or comes from the directory of `sluice serve --plugins-dir`: put name.wasm or name@1.2.0.wasm there.

Examples:
  sluice plugin list
  sluice plugin get redact
  sluice plugin logs jq --follow
  sluice plugin push orders-check@1.3.0.wasm
  sluice plugin allow orders-check kv";

const ALLOW_AFTER_HELP: &str = "\
A version that imports more than the version in use is refused until an Admin allows it: kv, metrics, schemas.

Examples:
  sluice plugin allow orders-check kv
  sluice plugin allow orders-check kv metrics --only    and nothing else any more
  sluice plugin allow orders-check --only               nothing any more";

/// Plugins.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show all plugins
    #[command(after_help = "Example:\n  sluice plugin list")]
    List {
        #[command(flatten)]
        part: Part,
    },
    /// Show what a plugin says
    #[command(after_help = "Examples:\n  sluice plugin logs jq\n  sluice plugin logs jq --follow --verdicts")]
    Logs {
        /// Its name
        name: String,
        /// Go on with what it says from now on, until interrupted
        #[arg(long, short)]
        follow: bool,
        /// So many of the last lines that are kept
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=200))]
        limit: u64,
        /// With --follow: what its stages make of messages, too
        #[arg(long, requires = "follow")]
        verdicts: bool,
    },
    /// Show one plugin: its versions, where it is bound, its last error
    #[command(after_help = "Example:\n  sluice plugin get redact")]
    Get {
        /// Its name
        name: String,
    },
    /// Try a version on messages of the past, with nothing changed by it
    #[command(after_help = dry_run::AFTER_HELP)]
    DryRun(dry_run::DryRunArgs),
    /// Try a version on a stage: for some messages, or beside it
    #[command(after_help = rollout::AFTER_HELP)]
    Rollout {
        #[command(subcommand)]
        action: rollout::Action,
    },
    /// Bring a version
    #[command(after_help = PUSH_AFTER_HELP)]
    Push(PushArgs),
    /// Fetch a version's component
    #[command(after_help = PULL_AFTER_HELP)]
    Pull(PullArgs),
    /// Delete a version that no pipeline runs
    #[command(after_help = "Example:\n  sluice plugin delete orders-check 1.1.0")]
    Delete {
        /// The plugin's name
        name: String,
        /// The version's label
        version: String,
    },
    /// Show what a plugin may use beyond its messages and its log
    #[command(after_help = "Example:\n  sluice plugin powers orders-check")]
    Powers {
        /// Its name
        name: String,
    },
    /// Allow a plugin to use more than its version in use does
    #[command(after_help = ALLOW_AFTER_HELP)]
    Allow {
        /// Its name
        name: String,
        /// What to allow: kv, metrics, schemas
        #[arg(required_unless_present = "only")]
        power: Vec<String>,
        /// Nothing but these
        #[arg(long)]
        only: bool,
    },
    /// Make a project for a plugin of one's own
    #[command(after_help = project::new::AFTER_HELP)]
    New(project::new::NewArgs),
    /// Build a project's component into its dist
    #[command(after_help = project::build::AFTER_HELP)]
    Build(project::build::BuildArgs),
    /// Run a plugin's cases in the broker's own engine, with no broker
    #[command(after_help = project::test::AFTER_HELP)]
    Test(project::test::TestArgs),
    /// Build a project at each change and run it on a broker meanwhile
    #[command(after_help = project::dev::AFTER_HELP)]
    Dev(project::dev::DevArgs),
    /// Show what a component is, and whether this release takes it
    #[command(after_help = project::inspect::AFTER_HELP)]
    Inspect(project::inspect::InspectArgs),
}

/// Runs one of the actions.
pub(super) async fn run(args: &Noun<Action>) -> Result<(), Failure> {
    let output = args.client.output();
    match &args.action {
        Action::New(new) => project::new::run(new, output),
        Action::Build(build) => project::build::run(build, output),
        Action::Test(test) => project::test::run(test, output).await,
        Action::Inspect(inspect) => project::inspect::run(inspect, output).await,
        Action::Dev(dev) => project::dev::run(dev, &Client::new(&args.client)?, output).await,
        Action::DryRun(dry) => dry_run::run(&Client::new(&args.client)?, output, dry).await,
        Action::Rollout { action } => rollout::run(&Client::new(&args.client)?, output, action).await,
        Action::Push(push) => plugin_push::push(&Client::new(&args.client)?, output, push).await,
        Action::Pull(pull) => plugin_push::pull(&Client::new(&args.client)?, output, pull).await,
        Action::List { part } => {
            let client = Client::new(&args.client)?;
            let plugins = client.list(&["plugins"], "plugins", *part, &[]).await?;
            show(output, &Value::Array(plugins.clone()), &plugins)
        }
        Action::Logs { name, follow, limit, verdicts } => {
            let wanted = plugin_logs::Wanted { limit: *limit, follow: *follow, verdicts: *verdicts };
            plugin_logs::run(&Client::new(&args.client)?, output, name, &wanted).await
        }
        Action::Get { name } => {
            let client = Client::new(&args.client)?;
            let plugin = client.get(&["plugins", name], Query::default()).await?.body;
            show(output, &plugin, std::slice::from_ref(&plugin))
        }
        Action::Delete { name, version } => {
            let client = Client::new(&args.client)?;
            let gone = client.delete(&["plugins", name, "versions", version], Query::default()).await?;
            output.done(&format!("{name} {version} is deleted"), &gone)
        }
        Action::Powers { name } => {
            let client = Client::new(&args.client)?;
            output.thing(&client.get(&["plugins", name, "powers"], Query::default()).await?.body)
        }
        Action::Allow { name, power, only } => allow(&Client::new(&args.client)?, output, name, power, *only).await,
    }
}

async fn allow(client: &Client, output: Output, name: &str, powers: &[String], only: bool) -> Result<(), Failure> {
    let path = ["plugins", name, "powers"];
    let known = client.get(&path, Query::default()).await?;
    let before = known.body["allowed"].as_array().filter(|_| !only).map(Vec::as_slice).unwrap_or_default();
    let mut allowed: Vec<Value> = before.to_vec();
    for power in powers.iter().map(|power| json!(power)) {
        if !allowed.contains(&power) {
            allowed.push(power);
        }
    }
    let set = client.put(&path, known.etag.as_deref(), &json!({ "allowed": allowed })).await?;
    let named: Vec<&str> = set["allowed"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let named = if named.is_empty() { "nothing".to_owned() } else { named.join(", ") };
    output.done(&format!("{name} is allowed {named}"), &set)
}

/// For people: a row per version, and after them what went wrong with a file.
fn show(output: Output, document: &Value, plugins: &[Value]) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(document);
    }
    let rows: Vec<Value> = plugins.iter().flat_map(rows).collect();
    output.list(&rows, COLUMNS, "no plugins")?;
    for plugin in plugins {
        if let (Some(name), Some(error)) = (plugin["name"].as_str(), plugin["lastError"]["message"].as_str()) {
            let file = plugin["lastError"]["file"].as_str().unwrap_or_default();
            output.note(&format!("{name}: {file} was not accepted: {error}"))?;
        }
    }
    Ok(())
}

fn rows(plugin: &Value) -> Vec<Value> {
    let owner = |binding: &Value| {
        let text = |name: &str| binding[name].as_str().unwrap_or_default().to_owned();
        match binding["subscriptionId"].as_str() {
            Some(id) => format!("{}/{id}", text("topicName")),
            None => text("topicName"),
        }
    };
    let row = |version: &Value| {
        let bound: Vec<String> = version["bound"].as_array().into_iter().flatten().map(owner).collect();
        json!({
            "name": plugin["name"],
            "version": version["version"],
            "latest": if version["latest"] == true { "yes" } else { "" },
            "state": version["state"],
            "source": version["source"],
            "bound": bound.join(" "),
        })
    };
    plugin["versions"].as_array().into_iter().flatten().map(row).collect()
}
