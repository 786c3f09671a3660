//! `sluice health`: a broker's own word of how it is. Invariant: exit code 0 only when it is ready. Never needs a token.

use clap::Args;

use super::client::{Client, ClientArgs};
use super::failure::Failure;

const AFTER_HELP: &str = "\
Exit codes: 0 it is well · 3 nobody answers · 4 it answers but is not ready

Example:
  until sluice health --url http://broker:5000; do sleep 1; done";

/// Ask a broker how it is.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    client: ClientArgs,
}

/// Shows `/health`, and holds it against `/health/ready`.
pub(super) async fn run(args: &HealthArgs) -> Result<(), Failure> {
    let client = Client::new(&args.client)?;
    let answer = client.get_root(&["health"]).await?;
    args.client.output().thing(&answer.body)?;
    // `/health` describes; this one is refused while requests should go elsewhere.
    client.get_root(&["health", "ready"]).await.map(drop)
}
