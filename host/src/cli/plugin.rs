//! `sluice plugin`: what code there is for topics. Invariant: only reads; plugins come from `plugins.dir`.

use clap::{Args, Subcommand};

use super::client::{Client, ClientArgs, Part, Query};
use super::failure::Failure;
use super::output::Column;

const COLUMNS: &[Column] = &[
    ("NAME", "/name"),
    ("LATEST", "/latest"),
    ("SOURCE", "/source"),
    ("BOUND TO", "/boundTo"),
    ("ERROR", "/lastError"),
];

const AFTER_HELP: &str = "\
A plugin comes from the directory of `sluice serve --plugins-dir`: put name.wasm or name@1.2.0.wasm there.

Examples:
  sluice plugin list
  sluice plugin get redact";

/// Plugins.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct PluginArgs {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show all plugins
    List {
        #[command(flatten)]
        part: Part,
    },
    /// Show one plugin: its versions, where it is bound, its last error
    Get {
        /// Its name
        name: String,
    },
}

/// Runs one of the actions.
pub(super) async fn run(args: &PluginArgs) -> Result<(), Failure> {
    let (client, output) = (Client::new(&args.client)?, args.client.output());
    match &args.action {
        Action::List { part } => {
            output.list(&client.list(&["plugins"], "plugins", *part, &[]).await?, COLUMNS, "no plugins")
        }
        Action::Get { name } => output.thing(&client.get(&["plugins", name], Query::default()).await?.body),
    }
}
