//! `sluice plugin new`: a folder with a plugin that works, to be changed from there. Invariant: it builds with nothing of
//! Sluice's repository at hand: the contract comes along, and for Rust the SDK. Never writes into a folder that has anything
//! in it.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::language::Language;
use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::pipeline::is_plugin_name;

/// Files by their path, from `plugin-sdk/`: `TEMPLATES` and `SDK`.
mod files {
    include!(concat!(env!("OUT_DIR"), "/project_files.rs"));
}

const WIT: &str = include_str!("../../../../wit/sluice.wit");

pub(in crate::cli) const AFTER_HELP: &str = "\
Example:
  sluice plugin new --lang rust orders-filter    then: sluice plugin build orders-filter";

/// What to make.
#[derive(Debug, Args)]
pub(in crate::cli) struct NewArgs {
    /// The plugin's name
    name: String,
    /// The language that it is written in
    #[arg(long, value_enum)]
    lang: Language,
    /// Where to make it [default: a folder of that name]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs the command.
pub(in crate::cli) fn run(args: &NewArgs, output: Output) -> Result<(), Failure> {
    if !is_plugin_name(&args.name) {
        let why = format!("'{}' is no plugin's name: it must match [a-z0-9][a-z0-9.-]{{0,127}}", args.name);
        return Err(Failure::Usage(why));
    }
    // What cargo takes for a package's name.
    if args.lang == Language::Rust && (args.name.contains('.') || args.name.as_bytes()[0].is_ascii_digit()) {
        let why = format!("'{}' is no name of a Rust package: letters first, and no dots", args.name);
        return Err(Failure::Usage(why));
    }
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    make(&dir, &args.name, args.lang)?;
    let shown = dir.display();
    let document = json!({"dir": shown.to_string(), "name": args.name, "lang": args.lang.folder()});
    output.done(&format!("made {shown}; {shown}/README.md has the next steps"), &document)
}

fn make(dir: &Path, name: &str, language: Language) -> Result<(), Failure> {
    let is_empty = std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    if !is_empty {
        return Err(Failure::Usage(format!("there is something in {} already", dir.display())));
    }
    let own = format!("{}/", language.folder());
    for (path, bytes) in files::TEMPLATES {
        let shared = ["cases/", "config.schema.json", "gitignore"].iter().any(|shared| path.starts_with(shared));
        if let Some(path) = path.strip_prefix(&own).or_else(|| shared.then_some(*path)) {
            let (path, bytes) = filled(path, bytes, name);
            write(&dir.join(path), &bytes)?;
        }
    }
    write(&dir.join("wit/sluice.wit"), WIT.as_bytes())?;
    if language == Language::Rust {
        for (path, bytes) in files::SDK {
            write(&dir.join("sdk").join(path), bytes)?;
        }
    }
    Ok(())
}

/// A template's file as it is written: `.in` says that the name is to be filled in, also into the file's own name.
fn filled(path: &str, bytes: &[u8], name: &str) -> (String, Vec<u8>) {
    match path.strip_suffix(".in") {
        Some("plugin.c") => (format!("{name}.c"), bytes.to_vec()),
        Some(path) => (path.to_owned(), String::from_utf8_lossy(bytes).replace("{{name}}", name).into_bytes()),
        None if path == "gitignore" => (".gitignore".to_owned(), bytes.to_vec()),
        None => (path.to_owned(), bytes.to_vec()),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(path, bytes))
        .map_err(Failure::io(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::super::language::Project;
    use super::*;

    #[test]
    fn every_language_makes_a_project_that_is_known_again() {
        for language in Language::value_variants() {
            let dir = tempfile::tempdir().unwrap();
            make(dir.path(), "orders-filter", *language).unwrap();
            let project = Project::open(dir.path()).unwrap();
            assert_eq!((project.language, project.name.as_str()), (*language, "orders-filter"));
            let there = ["README.md", ".gitignore", "config.schema.json", "wit/sluice.wit", "cases/kept/in.json"];
            for file in there {
                assert!(dir.path().join(file).is_file(), "{language:?} has no {file}");
            }
            assert_eq!(dir.path().join("sdk/src/lib.rs").is_file(), *language == Language::Rust);
            let again = make(dir.path(), "orders-filter", *language).unwrap_err();
            assert!(again.to_string().contains("something in"), "{again}");
        }
    }
}
