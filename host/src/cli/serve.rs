//! `sluice serve`: a broker in this process. Invariant: the ready line is printed once, when requests are answered. Never
//! goes to the background.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use super::arguments::ConfigFlags;
use super::failure::Failure;
use crate::config::{Config, Flags};
use crate::entropy::Entropy;
use crate::{broker, process, telemetry};

/// How long threads that are still busy after the stop may take: the broker has finished what counts by then.
const LINGER: Duration = Duration::from_secs(2);

const AFTER_HELP: &str = "\
Settings come from sluice.toml, then the environment (SLUICE__SECTION__KEY, or the names of the deployment guide \
such as Messaging__MaxMessageSize), then these flags; later ones win. `sluice config` shows the result.

Examples:
  sluice serve                          development: data in ./sluice-data, on 127.0.0.1:5000
  sluice serve --listen 127.0.0.1:0     a free port; it is in the line `listening on http://…`
  sluice serve --plugins-dir plugins    each name.wasm there is a plugin, whenever it changes
  JWT_SECRET=$(head -c 32 /dev/urandom | base64) \\
  sluice serve --profile production --data-dir /var/lib/sluice";

/// Run a broker.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigFlags,
    /// Address of the HTTP API; port 0 takes a free one [default: 127.0.0.1:5000, in production 0.0.0.0:5000]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Directory that is watched for plugins: name.wasm, name@1.2.0.wasm [default: none]
    #[arg(long, value_name = "DIR")]
    plugins_dir: Option<std::path::PathBuf>,
}

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(args: ServeArgs) -> Result<(), Failure> {
    process::survive_file_size_limit();
    let flags = Flags { listen: args.listen, plugins_dir: args.plugins_dir, ..args.config.flags() };
    let loaded = Config::load(&flags)?;
    let mut config = loaded.config;
    // Dropped last, when the runtime is gone: what it still says is sent to the collector, too.
    let _telemetry = telemetry::init(&config.telemetry, &config.node_id)?;
    telemetry::log_panics();
    for warning in loaded.warnings {
        tracing::warn!("{warning}");
    }
    config.jwt.secret = Some(config.signing_secret(&Entropy::system())?);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::io("the runtime"))?;
    let served = runtime.block_on(broker::serve(config, announce));
    runtime.shutdown_timeout(LINGER);
    Ok(served?)
}

fn announce(address: SocketAddr) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = writeln!(stdout, "listening on http://{address}").and_then(|()| stdout.flush()) {
        // Whoever started us doesn't listen; the broker serves all the same.
        tracing::warn!(%error, %address, "the ready line could not be written to stdout");
    }
}
