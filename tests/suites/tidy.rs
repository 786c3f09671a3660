//! Rules about the source itself, that no compiler checks: headers, sizes, names, leftovers, documents that keep up with the
//! code. Invariant: looks at what git knows, or would take, so that builds are never searched. Changes nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use sluice_tests::binary::repository;

/// A file longer than this has more than one concern; 400 is the aim.
const LINES_MAX: usize = 700;

/// Names that say nothing about what is in a file.
const EMPTY_NAMES: [&str; 8] = ["util", "utils", "common", "helper", "helpers", "manager", "misc", "shared"];

/// All files of the repository whose name ends so.
fn files(ending: &str) -> Vec<PathBuf> {
    let listed = Command::new("git")
        .current_dir(repository())
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .output()
        .expect("git starts");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).expect("file names are text");
    let paths = names.split('\0').filter(|name| name.ends_with(ending)).map(PathBuf::from);
    // A file that was deleted and not yet committed is still known.
    paths.filter(|path| repository().join(path).is_file()).collect()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn none(faults: Vec<String>) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn every_source_file_opens_by_saying_what_it_is() {
    let headless = files(".rs").into_iter().filter(|path| !text(path).starts_with("//! "));
    none(headless.map(|path| format!("{} does not open with a `//!` header", path.display())).collect());
}

#[test]
fn no_source_file_is_too_long() {
    let measured = files(".rs").into_iter().map(|path| (text(&path).lines().count(), path));
    let long = measured.filter(|(lines, _)| *lines > LINES_MAX);
    none(long.map(|(lines, path)| format!("{} has {lines} lines", path.display())).collect());
}

#[test]
fn every_file_is_named_after_what_is_in_it() {
    let mut faults = Vec::new();
    for path in files(".rs") {
        for part in path.with_extension("").iter().filter_map(|part| part.to_str()) {
            if EMPTY_NAMES.contains(&part) {
                faults.push(format!("{}: '{part}' says nothing", path.display()));
            }
        }
    }
    none(faults);
}

/// The words are put together here, or this file would find itself.
fn leftovers() -> Vec<String> {
    let words =
        [("TO", "DO"), ("FIX", "ME"), ("XX", "X:"), ("to", "do!("), ("unimpl", "emented!("), ("not impl", "emented")];
    words.iter().map(|(first, second)| format!("{first}{second}")).collect()
}

#[test]
fn nothing_is_left_for_later() {
    let leftovers = leftovers();
    let mut faults = Vec::new();
    for path in [files(".rs"), files(".wit"), files(".toml"), files("Makefile")].concat() {
        for (number, line) in text(&path).lines().enumerate() {
            if let Some(word) = leftovers.iter().find(|word| line.contains(word.as_str())) {
                faults.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    none(faults);
}

#[test]
fn no_test_is_switched_off_and_no_lint_silently() {
    let forbidden = [format!("#[{}", "ignore"), format!("#[{}(", "allow"), format!("#![{}(", "allow")];
    let mut faults = Vec::new();
    for path in files(".rs") {
        for (number, line) in text(&path).lines().enumerate() {
            if let Some(word) = forbidden.iter().find(|word| line.trim_start().starts_with(word.as_str())) {
                faults.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    none(faults);
}

#[test]
fn no_path_of_a_machine_is_in_the_tree() {
    let root = format!("{}/", repository().display());
    let home = std::env::var("HOME").map(|home| format!("{home}/")).unwrap_or_default();
    let mut faults = Vec::new();
    for path in
        [".rs", ".toml", ".md", ".wit", ".sql", ".yml", ".yaml", ".sh", "Makefile", "/run", ".snap"].map(files).concat()
    {
        let text = text(&path);
        for wanted in [&root, &home].into_iter().filter(|wanted| wanted.len() > 2) {
            if text.contains(wanted.as_str()) {
                faults.push(format!("{} names {wanted}", path.display()));
            }
        }
    }
    none(faults);
}

#[test]
fn the_sdk_carries_the_world_that_the_host_serves() {
    let host = files(".wit").into_iter().filter(|path| path.starts_with("wit"));
    let mut compared = 0;
    for path in host {
        let copy = Path::new("plugin-sdk").join(&path);
        assert_eq!(text(&path), text(&copy), "{} and {} differ", path.display(), copy.display());
        compared += 1;
    }
    assert!(compared > 0, "wit/ is empty");
}

/// What a guest does is in `tests/guests/behaviours.rs`, whose rows do not compile without their tests. This is about
/// whole guests.
#[test]
fn every_guest_program_is_in_a_test() {
    let tests: String = files(".rs")
        .iter()
        .filter(|path| path.starts_with("host/src/pipeline/tests") || path.starts_with("tests/src"))
        .map(|path| text(path))
        .collect();
    let folders: Vec<String> = files("Cargo.toml")
        .iter()
        .filter_map(|path| path.strip_prefix("tests/guests").ok()?.parent()?.to_str().map(str::to_owned))
        .filter(|folder| !folder.is_empty())
        .collect();
    assert!(folders.len() >= 3, "the guests are not where they were: {folders:?}");
    let unused = folders.into_iter().filter(|folder| !tests.contains(&format!("(\"{folder}\"")));
    none(unused.map(|folder| format!("tests/guests/{folder} is in no test")).collect());
}

#[test]
fn every_route_is_in_the_documents() {
    let documents: String = files(".md").iter().map(|path| text(path)).collect();
    let table = text(Path::new("host/src/api/auth/table.rs"));
    let routes: BTreeSet<&str> = table.split('"').filter(|part| part.starts_with("/api/v1/")).collect();
    assert!(routes.len() > 30, "the table of routes is not where it was: {routes:?}");
    let missing = routes.into_iter().filter(|route| !documents.contains(route.trim_start_matches("/api/v1")));
    none(missing.map(|route| format!("{route} is in no document")).collect());
}

#[test]
fn the_metrics_and_their_page_name_the_same() {
    let is_name =
        |part: &&str| part.starts_with("sluice_") && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let sources: String =
        files(".rs").iter().filter(|path| path.starts_with("host/src")).map(|path| text(path)).collect();
    let page = text(Path::new("docs/metrics.md"));
    let made: BTreeSet<&str> = sources.split('"').filter(is_name).collect();
    let told: BTreeSet<&str> = page.split('`').filter(is_name).collect();
    assert!(made.len() > 30, "metrics are not named where they were: {made:?}");
    none(
        made.symmetric_difference(&told)
            .map(|name| format!("{name} is in the code or in docs/metrics.md alone"))
            .collect(),
    );
}

/// Each row of a table in docs/limits.md ends with the tests that reach the limit; `log` and `oversized` are rows of
/// `tests/guests/behaviours.rs`, which become tests of that name.
#[test]
fn every_limit_names_a_test_that_reaches_it() {
    let sources: String = files(".rs").iter().map(|path| text(path)).collect();
    let page = text(Path::new("docs/limits.md"));
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what |"));
    let (mut faults, mut seen) = (Vec::new(), 0);
    for row in rows {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        let tests: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        if tests.is_empty() {
            faults.push(format!("no test: {row}"));
        }
        let missing = tests.iter().filter(|test| !sources.contains(&format!("fn {test}(")));
        faults.extend(missing.map(|test| format!("{test} is in no source")));
        seen += 1;
    }
    assert!(seen > 30, "the tables are not where they were");
    none(faults);
}

/// What `sluice config` shows under `limits.` is on the page of limits.
#[test]
fn every_setting_of_a_limit_is_on_the_page_of_limits() {
    let keys = text(Path::new("host/src/config/keys.rs"));
    let page = text(Path::new("docs/limits.md"));
    let paths = keys.lines().filter_map(|line| line.trim().strip_prefix("path: \"")?.strip_suffix("\","));
    let settings: Vec<&str> = paths.filter(|path| path.starts_with("limits.") || path.ends_with("_max")).collect();
    assert!(settings.len() > 8, "settings are not where they were: {settings:?}");
    let missing = settings.into_iter().filter(|setting| !page.contains(&format!("`{setting}`")));
    none(missing.map(|setting| format!("{setting} is not in docs/limits.md")).collect());
}

#[test]
fn relative_links_lead_somewhere() {
    let mut faults = Vec::new();
    for path in files(".md") {
        let folder = repository().join(path.parent().unwrap_or(Path::new("")));
        for link in links(&text(&path)) {
            let target = link.split('#').next().unwrap_or_default();
            if !target.is_empty() && !folder.join(target).exists() {
                faults.push(format!("{}: {link}", path.display()));
            }
        }
    }
    none(faults);
}

/// Targets of Markdown links that stay within the repository, outside blocks of code.
fn links(markdown: &str) -> Vec<String> {
    let mut links = Vec::new();
    for prose in markdown.split("```").step_by(2) {
        for rest in prose.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if !target.contains("://") && !target.starts_with("mailto:") {
                links.push(target.to_owned());
            }
        }
    }
    links
}

#[test]
fn every_decision_is_in_the_index() {
    let index = text(Path::new("docs/adr/README.md"));
    let records = files(".md").into_iter().filter(|path| path.starts_with("docs/adr") && !path.ends_with("README.md"));
    let mut known = 0;
    for path in records {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a file has a name");
        assert!(index.contains(name), "{name} is not in docs/adr/README.md");
        known += 1;
    }
    assert!(known > 0, "no decision is recorded");
}
