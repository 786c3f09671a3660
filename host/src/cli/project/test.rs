//! `sluice plugin test`: cases run in the host's own engine. Invariant: every case is run, whatever became of the one before;
//! one that has no `out.json` fails. Writes nothing but `out.json`, and that only when asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::case::{Case, NOW, folders};
use super::expected::{outcome, unlike};
use super::waiting::Waiting;
use super::{CASES, code_dir, component_of, plugin_name, refusal, shown_bytes, shown_time};
use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::pipeline::LogLine;
use crate::pipeline::trial::{Trial, TrialError};

/// Lines of a plugin's log that are shown with a case that failed.
const LOG_LINES_SHOWN: usize = 20;

pub(in crate::cli) const AFTER_HELP: &str = "\
A case is a folder with in.json (a message, or a list of them) and out.json (what becomes of each); config.json is the \
stage's config, stage.json its limits. docs/plugins.md tells all fields.

Examples:
  sluice plugin test
  sluice plugin test dist/orders-filter.wasm --cases cases
  sluice plugin test --update    writes what happens now into each out.json";

/// Which component, and what is expected of it.
#[derive(Debug, Args)]
pub(in crate::cli) struct TestArgs {
    /// The project's folder, or a component
    #[arg(value_name = "DIR|FILE.wasm", default_value = ".")]
    path: PathBuf,
    /// The folder of the cases [default: cases, in the project]
    #[arg(long, value_name = "DIR")]
    cases: Option<PathBuf>,
    /// Write what becomes of the messages into each out.json instead of comparing
    #[arg(long)]
    update: bool,
}

/// A case that was run.
pub(super) struct Ran {
    name: String,
    /// Why it failed; empty if it didn't.
    differences: Vec<String>,
    updated: bool,
    messages: usize,
    outcomes: Vec<Value>,
    log: Vec<LogLine>,
    start: Option<Duration>,
    each: Option<Duration>,
    memory_bytes: Option<usize>,
}

/// All cases of a component.
pub(super) struct Report {
    component: PathBuf,
    bytes: usize,
    digest: String,
    pub(super) ran: Vec<Ran>,
}

/// Runs the command.
pub(in crate::cli) async fn run(args: &TestArgs, output: Output) -> Result<(), Failure> {
    let component = component_of(&args.path)?;
    let report = report(&component, &cases_of(args), args.update).await?;
    report.show(output)?;
    match report.failed() {
        0 => Ok(()),
        failed => Err(refusal(format!("{failed} of {} failed", cases(report.ran.len())))),
    }
}

fn cases_of(args: &TestArgs) -> PathBuf {
    match &args.cases {
        Some(cases) => cases.clone(),
        None if args.path.is_dir() => args.path.join(CASES),
        // `dist/NAME.wasm` of a project, or a component beside its cases.
        None => {
            let folder = args.path.parent().unwrap_or(Path::new(""));
            let beside = folder.join(CASES);
            if beside.is_dir() { beside } else { folder.join("..").join(CASES) }
        }
    }
}

/// Runs all cases in `dir` with `component`.
pub(super) async fn report(component: &Path, dir: &Path, update: bool) -> Result<Report, Failure> {
    let name = component.display().to_string();
    let bytes = std::fs::read(component).map_err(Failure::io(name.clone()))?;
    let folders = folders(dir).map_err(Failure::Usage)?;
    let trial = Trial::open(code_dir()?, NOW).map_err(|why| refusal(format!("plugins can't be run here: {why}")))?;
    let length = bytes.len();
    let loaded = {
        let _waiting = Waiting::on(format!("compiling {name}"));
        trial.load(bytes.into()).await.map_err(|error| refusal(format!("{name}: {error}")))?
    };
    let plugin = plugin_name(component);
    let digest = loaded.digest.clone();
    let trial = Arc::new(trial);
    let mut ran = Vec::with_capacity(folders.len());
    for folder in folders {
        let (trial, loaded, plugin) = (Arc::clone(&trial), Arc::clone(&loaded), plugin.clone());
        // The plugin's calls may block, and want this command's runtime to be free.
        let done = tokio::task::spawn_blocking(move || {
            let case = Case::read(&folder, &plugin);
            case.map_err(|why| (folder, why)).map(|case| {
                let tried = Trial::check_config(&loaded, &case.setting)
                    .and_then(|()| trial.run(&loaded, &case.setting, case.drafts.clone()));
                judged(case, tried, update)
            })
        });
        ran.push(match done.await {
            Ok(Ok(done)) => done,
            Ok(Err((folder, why))) => Ran::unread(&folder, why),
            Err(error) => return Err(refusal(format!("a case ended with a fault of ours: {error}"))),
        });
    }
    Ok(Report { component: component.to_owned(), bytes: length, digest, ran })
}

fn judged(case: Case, tried: Result<crate::pipeline::trial::Tried, TrialError>, update: bool) -> Ran {
    let mut ran = Ran {
        name: case.name.clone(),
        differences: Vec::new(),
        updated: false,
        messages: case.drafts.len(),
        outcomes: Vec::new(),
        log: Vec::new(),
        start: None,
        each: None,
        memory_bytes: None,
    };
    let found = match tried {
        Ok(tried) => {
            ran.outcomes =
                case.drafts.iter().zip(&tried.processed).map(|(before, after)| outcome(before, after)).collect();
            ran.log = tried.log;
            (ran.start, ran.each, ran.memory_bytes) = (Some(tried.start), tried.each, Some(tried.memory_bytes));
            if !update {
                ran.differences = unexpected(case.expected.as_ref(), &case.drafts, &tried.processed);
            }
            Value::Array(ran.outcomes.clone())
        }
        Err(TrialError::Config(why)) => {
            if !update {
                ran.differences = config_unexpected(case.expected.as_ref(), &why);
            }
            json!({ "configRefused": why })
        }
        Err(error) => {
            ran.differences = vec![error.to_string()];
            return ran;
        }
    };
    if update && case.expected.as_ref() != Some(&found) {
        match std::fs::write(&case.out, format!("{found:#}\n")) {
            Ok(()) => ran.updated = true,
            Err(error) => ran.differences.push(format!("{}: {error}", case.out.display())),
        }
    }
    ran
}

const NO_EXPECTATION: &str = "there is no out.json: `sluice plugin test --update` writes what happens now";

fn unexpected(
    expected: Option<&Value>,
    before: &[crate::pipeline::draft::Draft],
    after: &[crate::pipeline::draft::Processed],
) -> Vec<String> {
    let expected = match expected {
        None => return vec![NO_EXPECTATION.to_owned()],
        Some(Value::Array(expected)) => expected.clone(),
        Some(refused) if refused["configRefused"].is_string() => {
            return vec!["expected the config to be refused, it was accepted".to_owned()];
        }
        Some(one) => vec![one.clone()],
    };
    if expected.len() != after.len() {
        return vec![format!("out.json: it is about {} messages, in.json has {}", expected.len(), after.len())];
    }
    let mut all = Vec::new();
    for (at, ((expected, before), after)) in expected.iter().zip(before).zip(after).enumerate() {
        match unlike(expected, before, after) {
            Ok(unlike) => all.extend(unlike.into_iter().map(|what| format!("message {}: {what}", at + 1))),
            Err(why) => all.push(format!("out.json: message {}: {why}", at + 1)),
        }
    }
    all
}

fn config_unexpected(expected: Option<&Value>, why: &str) -> Vec<String> {
    match expected.map(|expected| expected["configRefused"].as_str()) {
        Some(Some(part)) if why.contains(part) => Vec::new(),
        Some(Some(part)) => vec![format!("/configRefused: expected {part:?} in it, it is {why:?}")],
        Some(None) => vec![format!("it refused its config: {why}")],
        None => vec![NO_EXPECTATION.to_owned()],
    }
}

impl Ran {
    fn unread(folder: &Path, why: String) -> Ran {
        Ran {
            name: folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            differences: vec![why],
            updated: false,
            messages: 0,
            outcomes: Vec::new(),
            log: Vec::new(),
            start: None,
            each: None,
            memory_bytes: None,
        }
    }

    pub(super) fn failed(&self) -> bool {
        !self.differences.is_empty()
    }

    fn document(&self) -> Value {
        let log = |line: &LogLine| json!({"level": line.level, "text": &*line.text});
        json!({
            "case": self.name,
            "ok": !self.failed(),
            "updated": self.updated,
            "differences": self.differences,
            "messages": self.messages,
            "startMicroseconds": self.start.map(|start| start.as_micros() as u64),
            "nanosecondsPerMessage": self.each.map(|each| each.as_nanos() as u64),
            "memoryBytes": self.memory_bytes,
            "outcomes": self.outcomes,
            "log": self.log.iter().map(log).collect::<Vec<_>>(),
        })
    }
}

impl Report {
    pub(super) fn failed(&self) -> usize {
        self.ran.iter().filter(|ran| ran.failed()).count()
    }

    pub(super) fn document(&self) -> Value {
        json!({
            "component": self.component.display().to_string(),
            "digest": self.digest,
            "bytes": self.bytes,
            "failed": self.failed(),
            "cases": self.ran.iter().map(Ran::document).collect::<Vec<_>>(),
        })
    }

    pub(super) fn show(&self, output: Output) -> Result<(), Failure> {
        if output.is_json() {
            return output.document(&self.document());
        }
        let width = self.ran.iter().map(|ran| ran.name.chars().count()).max().unwrap_or(0);
        for ran in &self.ran {
            let word = match (ran.failed(), ran.updated) {
                (true, _) => "FAILED",
                (false, true) => "written",
                (false, false) => "ok",
            };
            let mut line = format!("{:width$}  {word:7}", ran.name);
            if let Some(memory) = ran.memory_bytes {
                let each = ran.each.map_or_else(String::new, |each| format!("{} each", shown_time(each)));
                line += &format!("  {:12}  {each:>13}  {:>9}", messages(ran.messages), shown_bytes(memory));
            }
            output.foreign_line(line.trim_end())?;
            if ran.failed() {
                ran.explain(output)?;
            }
        }
        let start = self.ran.iter().filter_map(|ran| ran.start).max();
        let start = start.map_or_else(String::new, |start| format!(", {} to start", shown_time(start)));
        let passed = self.ran.len() - self.failed();
        output.line(&format!(
            "{} ok, {} failed ({}, {}{start})",
            cases(passed),
            self.failed(),
            plugin_name(&self.component),
            shown_bytes(self.bytes)
        ))
    }
}

impl Ran {
    fn explain(&self, output: Output) -> Result<(), Failure> {
        for difference in &self.differences {
            output.foreign_line(&format!("    {difference}"))?;
        }
        let left_out = self.log.len().saturating_sub(LOG_LINES_SHOWN);
        for line in &self.log[left_out..] {
            let level = format!("{:?}", line.level).to_lowercase();
            output.foreign_line(&format!("    log {level}: {}", line.text))?;
        }
        Ok(())
    }
}

fn cases(number: usize) -> String {
    if number == 1 { "1 case".to_owned() } else { format!("{number} cases") }
}

fn messages(number: usize) -> String {
    if number == 1 { "1 message".to_owned() } else { format!("{number} messages") }
}
