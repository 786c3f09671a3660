//! `make bench`: each path of the broker beside what it is compared with, in one run on one machine; writes
//! `docs/benchmarks.md` if told to. Invariant: both sides of a pair get the same work from the same code, in turn; figures
//! are medians of pairs. Never compares across runs.

#[path = "bench/bare.rs"]
mod bare;
#[path = "bench/bloat.rs"]
mod bloat;
#[path = "bench/brokers.rs"]
mod brokers;
#[path = "bench/endpoints.rs"]
mod endpoints;
#[path = "bench/first_party.rs"]
mod first_party;
#[path = "bench/fleet.rs"]
mod fleet;
#[path = "bench/footprint.rs"]
mod footprint;
#[path = "bench/hostile.rs"]
mod hostile;
#[path = "bench/http_rows.rs"]
mod http_rows;
#[path = "bench/languages.rs"]
mod languages;
#[path = "bench/load.rs"]
mod load;
#[path = "bench/push.rs"]
mod push;
#[path = "bench/report.rs"]
mod report;
#[path = "bench/scale.rs"]
mod scale;
#[path = "bench/shadow.rs"]
mod shadow;
#[path = "bench/stages.rs"]
mod stages;
#[path = "bench/swaps.rs"]
mod swaps;
#[path = "bench/wake.rs"]
mod wake;
#[path = "bench/warm_stage.rs"]
mod warm_stage;

use std::path::Path;
use std::time::Duration;

use self::report::Report;

/// The broker's own: what runs in this process is measured as it runs there, and so is what it is held against.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keep-alive connections of the load; DESIGN §10 counts with 64.
const CONNECTIONS: usize = 64;
const PAIRS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
const BATCH: usize = 100;
const PAYLOAD_BYTES: usize = 300;
const TOPIC: &str = "bench";
/// For what should take seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// The groups of rows, by the names that choose them.
const GROUPS: [&str; 18] = [
    "publish",
    "batch",
    "consume",
    "wake",
    "stages",
    "languages",
    "plugins",
    "shadow",
    "push",
    "endpoints",
    "telemetry",
    "footprint",
    "scale",
    "hostile",
    "swaps",
    "fleet",
    "brokers",
    "bloat",
];

#[tokio::main]
async fn main() {
    if bare::is_this_process().await {
        return;
    }
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build; `make bench` measures the release build");
    }
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = chosen.iter().find(|name| !GROUPS.contains(&name.as_str())) {
        eprintln!("no group '{unknown}': sluice-bench [{}]...", GROUPS.join("|"));
        std::process::exit(2);
    }
    let mut report = Report::default();
    for group in GROUPS.into_iter().filter(|group| chosen.is_empty() || chosen.iter().any(|name| name == group)) {
        match group {
            "publish" => http_rows::publish(&mut report).await,
            "batch" => http_rows::batch(&mut report).await,
            "consume" => http_rows::consume(&mut report).await,
            "wake" => wake::rows(&mut report).await,
            "stages" => stages::rows(&mut report).await,
            "languages" => languages::rows(&mut report).await,
            "shadow" => shadow::rows(&mut report).await,
            "plugins" => first_party::rows(&mut report).await,
            "push" => push::rows(&mut report).await,
            "endpoints" => endpoints::rows(&mut report).await,
            "telemetry" => footprint::telemetry(&mut report).await,
            "footprint" => footprint::rows(&mut report).await,
            "scale" => scale::rows(&mut report).await,
            "hostile" => hostile::rows(&mut report).await,
            "swaps" => swaps::rows(&mut report).await,
            "fleet" => fleet::rows(&mut report).await,
            "brokers" => brokers::rows(&mut report).await,
            _ => bloat::rows(&mut report).await,
        }
    }
    // Only a whole run becomes the page.
    if let Some(file) = std::env::var_os("SLUICE_BENCHMARKS").filter(|_| chosen.is_empty()) {
        let how = format!(
            "{CONNECTIONS} connections where nothing else is said; medians of {PAIRS} pairs of rounds of {} s; the load runs \
             on the same machine, on two threads of its own.",
            ROUND.as_secs()
        );
        report.write(Path::new(&file), &how).expect("the page can be written");
    }
}
