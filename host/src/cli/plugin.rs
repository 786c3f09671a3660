//! `sluice plugin`: what code there is for topics, and how its authors make it (see `project`). Invariant: what is local asks
//! no broker.

use clap::Subcommand;
use serde_json::{Value, json};

use super::arguments::Noun;
use super::client::{Client, Part, Query};
use super::failure::Failure;
use super::output::{Column, Output};
use super::project;

const COLUMNS: &[Column] = &[
    ("NAME", "/name"),
    ("VERSION", "/version"),
    ("LATEST", "/latest"),
    ("STATE", "/state"),
    ("SOURCE", "/source"),
    ("BOUND TO", "/bound"),
];

pub(super) const AFTER_HELP: &str = "\
A plugin comes from the directory of `sluice serve --plugins-dir`: put name.wasm or name@1.2.0.wasm there.

Examples:
  sluice plugin list
  sluice plugin get redact";

/// Plugins.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show all plugins
    #[command(after_help = "Example:\n  sluice plugin list")]
    List {
        #[command(flatten)]
        part: Part,
    },
    /// Show one plugin: its versions, where it is bound, its last error
    #[command(after_help = "Example:\n  sluice plugin get redact")]
    Get {
        /// Its name
        name: String,
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
        asking => ask(asking, &Client::new(&args.client)?, output).await,
    }
}

/// Those that ask a broker.
async fn ask(action: &Action, client: &Client, output: Output) -> Result<(), Failure> {
    match action {
        Action::List { part } => {
            let plugins = client.list(&["plugins"], "plugins", *part, &[]).await?;
            show(output, &Value::Array(plugins.clone()), &plugins)
        }
        Action::Get { name } => {
            let plugin = client.get(&["plugins", name], Query::default()).await?.body;
            show(output, &plugin, std::slice::from_ref(&plugin))
        }
        Action::New(_) | Action::Build(_) | Action::Test(_) | Action::Inspect(_) => {
            unreachable!("`run` carries these out")
        }
    }
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
