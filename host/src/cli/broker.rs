//! `sluice broker`: the brokers that serve together. Invariant: asks one of them, whichever is
//! meant.

use clap::Subcommand;

use super::arguments::Noun;
use super::client::{Client, Part, Query};
use super::failure::Failure;
use super::output::Column;

const COLUMNS: &[Column] = &[
    ("NODE", "/nodeId"),
    ("STATUS", "/status"),
    ("VERSION", "/version"),
    ("DURABILITY", "/durability"),
    ("UP FOR", "/uptime"),
];
const METRIC_COLUMNS: &[Column] = &[("NAME", "/name"), ("LABELS", "/labels"), ("VALUE", "/value")];

pub(super) const AFTER_HELP: &str = "\
Examples:
  sluice broker list
  sluice broker metrics NODE_ID | grep http_requests
  sluice broker drain NODE_ID --wait 30";

/// Brokers.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show all brokers
    #[command(after_help = "Example:\n  sluice broker list")]
    List {
        #[command(flatten)]
        part: Part,
    },
    /// Show one broker
    #[command(after_help = "Example:\n  sluice broker get NODE_ID")]
    Get {
        /// Its name
        node_id: String,
    },
    /// Show a broker's figures as of now: those of /metrics, of histograms sum and count
    #[command(after_help = "Example:\n  sluice broker metrics NODE_ID | grep http_requests")]
    Metrics {
        /// Its name
        node_id: String,
    },
    /// Have a broker leave its work to the others, before it is stopped: it is not ready any more, sends no webhooks and keeps no
    /// consumer waiting; requests are still answered
    #[command(after_help = "Example:\n  sluice broker drain NODE_ID --wait 30")]
    Drain {
        /// Its name
        node_id: String,
        /// Seconds to wait until it has ended what it had begun, at most 30
        #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=30))]
        wait: u64,
    },
    /// Let a drained broker work again
    #[command(after_help = "Example:\n  sluice broker undrain NODE_ID")]
    Undrain {
        /// Its name
        node_id: String,
    },
}

/// Runs one of the actions.
pub(super) async fn run(args: &Noun<Action>) -> Result<(), Failure> {
    let (client, output) = (Client::new(&args.client)?, args.client.output());
    match &args.action {
        Action::List { part } => {
            let brokers = client.list(&["brokers"], "brokers", *part, &[]).await?;
            output.list(&brokers, COLUMNS, "no brokers")
        }
        Action::Get { node_id } => output.thing(&client.get(&["brokers", node_id], Query::default()).await?.body),
        Action::Metrics { node_id } => {
            let answer = client.get(&["brokers", node_id, "metrics"], Query::default()).await?.body;
            output.list(client.items(&answer, "metrics")?, METRIC_COLUMNS, "no figures")
        }
        Action::Drain { node_id, wait } => {
            let query = Query::default().with("wait", Some(wait));
            output.thing(&client.act(&["brokers", node_id, "drain"], query).await?)
        }
        Action::Undrain { node_id } => {
            output.thing(&client.delete(&["brokers", node_id, "drain"], Query::default()).await?)
        }
    }
}
