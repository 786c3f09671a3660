//! `sluice plugin`: what code there is for topics. Invariant: only reads; plugins come from `plugins.dir`.

use clap::Subcommand;
use serde_json::{Value, json};

use super::arguments::Noun;
use super::client::{Client, Part, Query};
use super::failure::Failure;
use super::output::{Column, Output};
use super::plugin_logs;

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
  sluice plugin get redact
  sluice plugin logs redact --follow";

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
    #[command(after_help = "Examples:\n  sluice plugin logs redact\n  sluice plugin logs redact --follow")]
    Logs {
        /// Its name
        name: String,
        /// Go on with what it says from now on, until interrupted
        #[arg(long, short)]
        follow: bool,
        /// So many of the last lines that are kept
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=200))]
        limit: u64,
    },
    /// Show one plugin: its versions, where it is bound, its last error
    #[command(after_help = "Example:\n  sluice plugin get redact")]
    Get {
        /// Its name
        name: String,
    },
}

/// Runs one of the actions.
pub(super) async fn run(args: &Noun<Action>) -> Result<(), Failure> {
    let (client, output) = (Client::new(&args.client)?, args.client.output());
    match &args.action {
        Action::List { part } => {
            let plugins = client.list(&["plugins"], "plugins", *part, &[]).await?;
            show(output, &Value::Array(plugins.clone()), &plugins)
        }
        Action::Logs { name, follow, limit } => plugin_logs::run(&client, output, name, (*limit, *follow)).await,
        Action::Get { name } => {
            let plugin = client.get(&["plugins", name], Query::default()).await?.body;
            show(output, &plugin, std::slice::from_ref(&plugin))
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
