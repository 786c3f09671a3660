//! `sluice plugin inspect`: what a component is, and whether a broker of this release takes it. Invariant: it is tried as at
//! upload: checked, compiled, started. Never asks a broker.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::case::NOW;
use super::waiting::Waiting;
use super::{code_dir, component_of, plugin_name, shown_bytes};
use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::pipeline::inspect::{Facts, facts};
use crate::pipeline::powers_of;
use crate::pipeline::trial::{Setting, Trial, TrialError};

pub(in crate::cli) const AFTER_HELP: &str = "\
Example:
  sluice plugin inspect dist/orders-filter.wasm";

/// Which component.
#[derive(Debug, Args)]
pub(in crate::cli) struct InspectArgs {
    /// A component, or a project's folder
    #[arg(value_name = "FILE.wasm|DIR", default_value = ".")]
    path: PathBuf,
}

/// Whether it can be used.
struct Word {
    taken: bool,
    why: String,
    memory_bytes: Option<usize>,
}

/// Runs the command: it succeeds whatever the component is, as long as it can be read.
pub(in crate::cli) async fn run(args: &InspectArgs, output: Output) -> Result<(), Failure> {
    let component = component_of(&args.path)?;
    let bytes = std::fs::read(&component).map_err(Failure::io(component.display().to_string()))?;
    let facts = facts(&bytes);
    let name = plugin_name(&component);
    let word = match &facts.refused {
        Some(why) => Word { taken: false, why: why.clone(), memory_bytes: None },
        None => {
            let _waiting = Waiting::on(format!("compiling {}", component.display()));
            tried(name, bytes).await?
        }
    };
    if output.is_json() { output.document(&document(&facts, &word)) } else { show(&facts, &word, output) }
}

async fn tried(plugin: String, bytes: Vec<u8>) -> Result<Word, Failure> {
    let no = |why: String| Word { taken: false, why, memory_bytes: None };
    let trial = match Trial::open(code_dir()?, NOW) {
        Ok(trial) => trial,
        Err(why) => return Ok(no(why)),
    };
    let loaded = match trial.load(bytes.into()).await {
        Ok(loaded) => loaded,
        Err(error) => return Ok(no(error.to_string())),
    };
    let setting = Setting {
        // A file may be called anything.
        plugin: if crate::pipeline::is_plugin_name(&plugin) { plugin } else { "plugin".to_owned() },
        config: json!({}),
        topic: "test".parse().map_err(Failure::Usage)?,
        stage: serde_json::Map::from_iter([("memoryMb".to_owned(), json!(crate::pipeline::STAGE_MEMORY_MB_MAX))]),
        schemas: std::collections::BTreeMap::new(),
        outbound: false,
        payload_bytes_max: 0,
    };
    let ran = tokio::task::spawn_blocking(move || trial.run(&loaded, &setting, Vec::new())).await;
    Ok(match ran {
        Ok(Ok(tried)) => Word {
            taken: true,
            why: "it starts with an empty config".to_owned(),
            memory_bytes: Some(tried.memory_bytes),
        },
        Ok(Err(TrialError::Config(why))) => {
            Word { taken: true, why: format!("it starts; an empty config it refuses: {why}"), memory_bytes: None }
        }
        Ok(Err(error)) => no(error.to_string()),
        Err(error) => no(error.to_string()),
    })
}

fn document(facts: &Facts, word: &Word) -> Value {
    json!({
        "digest": facts.digest,
        "bytes": facts.bytes,
        "targets": facts.targets,
        "serves": crate::pipeline::served_version(),
        "powers": powers_of(&facts.imports),
        "imports": facts.imports,
        "exports": facts.exports,
        "functions": facts.functions,
        "functionBytesMax": facts.function_bytes_max,
        "memoryBytes": word.memory_bytes,
        "configSchema": facts.config_schema.as_ref().and_then(|schema| schema.as_ref().ok()),
        "taken": word.taken,
        "why": word.why,
    })
}

fn show(facts: &Facts, word: &Word, output: Output) -> Result<(), Failure> {
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let wasi = facts.imports.iter().filter(|name| name.starts_with("wasi:")).count();
    let other: Vec<String> = facts.imports.iter().filter(|name| !name.starts_with("wasi:")).cloned().collect();
    let imports = match wasi {
        0 => list(&other),
        wasi => format!("{}, and {wasi} of WASI (nothing is behind them but clocks and randomness)", list(&other)),
    };
    let schema = match &facts.config_schema {
        None => "none".to_owned(),
        Some(Ok(schema)) => schema.to_string(),
        Some(Err(why)) => format!("not readable: {why}"),
    };
    output.thing(&json!({
        "digest": facts.digest,
        "size": shown_bytes(facts.bytes),
        "targets": facts.targets.as_ref().map(|version| format!("sluice:plugin {version} (this release serves {})", crate::pipeline::served_version())),
        "powers": list(&powers_of(&facts.imports).into_iter().map(str::to_owned).collect::<Vec<_>>()),
        "imports": imports,
        "exports": list(&facts.exports),
        "functions": format!("{}, the longest of {}", facts.functions, shown_bytes(facts.function_bytes_max)),
        "memory at start": word.memory_bytes.map(shown_bytes),
        "config schema": schema,
        "taken": format!("{}: {}", if word.taken { "yes" } else { "no" }, word.why),
    }))
}
