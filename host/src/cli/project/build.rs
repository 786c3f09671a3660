//! `sluice plugin build`: a project's sources become `dist/NAME.wasm`. Invariant: what is there afterwards is whole, and a
//! broker of this release takes it; a build that fails leaves what was there. Never asks a broker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::language::{Language, Project};
use super::{component, refusal, shown_bytes, shown_time, tools};
use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::pipeline::inspect::facts;
use crate::telemetry::Stopwatch;

/// The file with the JSON Schema of the config.
const CONFIG_SCHEMA: &str = "config.schema.json";

pub(in crate::cli) const AFTER_HELP: &str = "\
The language is told by what is in the folder: Cargo.toml, package.json, pyproject.toml, or NAME.c. A config.schema.json \
becomes part of the component, and the broker holds configs against it.

Example:
  sluice plugin build orders-filter";

/// Which project.
#[derive(Debug, Args)]
pub(in crate::cli) struct BuildArgs {
    /// The project's folder
    #[arg(default_value = ".")]
    dir: PathBuf,
}

/// What came out.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) component: PathBuf,
    pub(super) bytes: usize,
    pub(super) digest: String,
    pub(super) took: Duration,
}

/// Runs the command.
pub(in crate::cli) fn run(args: &BuildArgs, output: Output) -> Result<(), Failure> {
    let project = Project::open(&args.dir).map_err(Failure::Usage)?;
    let built = build(&project)?;
    let document = json!({
        "component": built.component.display().to_string(),
        "bytes": built.bytes,
        "digest": built.digest,
        "milliseconds": built.took.as_millis() as u64,
    });
    output.done(&built.summary(), &document)
}

/// Builds `project`.
pub(super) fn build(project: &Project) -> Result<Built, Failure> {
    let watch = Stopwatch::start();
    let made = tools::run(project).map_err(refusal)?;
    let mut bytes = std::fs::read(&made).map_err(Failure::io(made.display().to_string()))?;
    if project.language == Language::C {
        bytes = component::of_module(&bytes).map_err(refusal)?;
    }
    let schema = project.dir.join(CONFIG_SCHEMA);
    if schema.is_file() {
        let text = crate::cli::arguments::read_text(&schema)?;
        bytes = component::with_schema(bytes, &text)
            .map_err(|why| Failure::Usage(format!("{}: {why}", schema.display())))?;
    }
    let facts = facts(&bytes);
    if let Some(why) = facts.refused {
        return Err(refusal(format!("what was built is no plugin: {why}")));
    }
    let component = project.component();
    // Whoever reads it meanwhile, a watched directory say, finds the old one or the new one.
    let beside = component.with_extension("wasm.tmp");
    write(&beside, &bytes)
        .and_then(|()| std::fs::rename(&beside, &component))
        .map_err(Failure::io(component.display().to_string()))?;
    if project.language != Language::Rust {
        // It lies in `dist`, and costs room only.
        let _ = std::fs::remove_file(&made);
    }
    Ok(Built { component, bytes: bytes.len(), digest: facts.digest, took: watch.elapsed() })
}

fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::write(path, bytes)
}

impl Built {
    /// For people.
    pub(super) fn summary(&self) -> String {
        format!("{}: {}, built in {}", self.component.display(), shown_bytes(self.bytes), shown_time(self.took))
    }
}
