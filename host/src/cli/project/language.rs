//! The languages that projects are in, told by what is in their folders. Invariant: a project is of one language, and its
//! plugin has one name. Never runs a tool.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use figment::Figment;
use figment::providers::{Format as _, Json, Toml};

use crate::pipeline::is_plugin_name;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Language {
    /// Small and fast; with the SDK
    Rust,
    /// By componentize-js (needs Node.js)
    Js,
    /// By componentize-py
    Python,
    /// By zig or clang; the smallest
    C,
}

/// A project's folder, once it is known what it is.
#[derive(Debug, Clone)]
pub(super) struct Project {
    /// The folder.
    pub(super) dir: PathBuf,
    /// What it is written in.
    pub(super) language: Language,
    /// The plugin's name.
    pub(super) name: String,
    /// The world that it is built for, where its tool asks.
    pub(super) world: String,
}

impl Language {
    /// Its folder among the templates.
    pub(super) fn folder(self) -> &'static str {
        match self {
            Language::Rust => "rust",
            Language::Js => "js",
            Language::Python => "python",
            Language::C => "c",
        }
    }
}

impl Project {
    /// The project in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Project, String> {
        let there = |name: &str| dir.join(name).is_file();
        let found = if there("Cargo.toml") {
            let manifest = Figment::from(Toml::file(dir.join("Cargo.toml")));
            Some((Language::Rust, text(&manifest, "package.name", "Cargo.toml")?, None))
        } else if there("package.json") {
            let manifest = Figment::from(Json::file(dir.join("package.json")));
            let name = text(&manifest, "name", "package.json")?;
            Some((Language::Js, name, optional(&manifest, "sluice.world", "package.json")?))
        } else if there("pyproject.toml") {
            let manifest = Figment::from(Toml::file(dir.join("pyproject.toml")));
            let name = text(&manifest, "project.name", "pyproject.toml")?;
            Some((Language::Python, name, optional(&manifest, "tool.sluice.world", "pyproject.toml")?))
        } else {
            source_in_c(dir)?.map(|name| (Language::C, name, None))
        };
        let (language, name, world) = found.ok_or_else(|| {
            format!(
                "{} is no plugin's project: there is no Cargo.toml, package.json, pyproject.toml or NAME.c",
                dir.display()
            )
        })?;
        if !is_plugin_name(&name) {
            return Err(format!("'{name}' is no plugin's name: it must match [a-z0-9][a-z0-9.-]{{0,127}}"));
        }
        let world = world.unwrap_or_else(|| "plugin".to_owned());
        Ok(Project { dir: dir.to_owned(), language, name, world })
    }

    /// Where its component comes to be.
    pub(super) fn component(&self) -> PathBuf {
        self.dir.join(super::DIST).join(format!("{}.wasm", self.name))
    }
}

fn text(manifest: &Figment, key: &str, file: &str) -> Result<String, String> {
    manifest.extract_inner(key).map_err(|error| format!("{file}: {key}: {error}"))
}

fn optional(manifest: &Figment, key: &str, file: &str) -> Result<Option<String>, String> {
    // That a key is not there and that it has no text are two things.
    match manifest.find_value(key) {
        Err(_) => Ok(None),
        Ok(_) => text(manifest, key, file).map(Some),
    }
}

/// The name of the one source in C that lies at the top.
fn source_in_c(dir: &Path) -> Result<Option<String>, String> {
    let entries = std::fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut sources = paths.filter(|path| path.extension().is_some_and(|extension| extension == "c"));
    match (sources.next(), sources.next()) {
        (None, _) => Ok(None),
        (Some(source), None) => Ok(source.file_stem().map(|stem| stem.to_string_lossy().into_owned())),
        (Some(_), Some(_)) => {
            Err(format!("there are several sources in {}: one names the plugin, the others go to src/", dir.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(files: &[(&str, &str)]) -> Result<(Language, String, String), String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Project::open(dir.path()).map(|project| (project.language, project.name, project.world))
    }

    #[test]
    fn a_project_is_told_by_its_files() {
        for (file, text, language, world) in [
            ("Cargo.toml", "[package]\nname = \"mine\"", Language::Rust, "plugin"),
            ("package.json", r#"{"name": "mine", "sluice": {"world": "other"}}"#, Language::Js, "other"),
            ("package.json", r#"{"name": "mine"}"#, Language::Js, "plugin"),
            (
                "pyproject.toml",
                "[project]\nname = \"mine\"\n[tool.sluice]\nworld = \"other\"",
                Language::Python,
                "other",
            ),
            ("mine.c", "", Language::C, "plugin"),
        ] {
            assert_eq!(opened(&[(file, text)]), Ok((language, "mine".to_owned(), world.to_owned())), "{file}");
        }
    }

    #[test]
    fn what_is_no_project_is_told_why() {
        for (files, why) in [
            (&[][..], "is no plugin's project"),
            (&[("a.c", ""), ("b.c", "")], "several sources"),
            (&[("package.json", r#"{"name": "@me/mine"}"#)], "no plugin's name"),
            (&[("package.json", "{}")], "package.json: name"),
            (&[("pyproject.toml", "[project]\nname = \"a\"\n[tool.sluice]\nworld = 1")], "tool.sluice.world"),
        ] {
            let said = opened(files).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
