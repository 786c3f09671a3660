//! A plugin's project: a folder on its author's machine. Invariant: nothing here asks a broker but `dev`, and what runs a
//! plugin is the broker's own code (`pipeline::trial`). Never changes a file of the project that its author has written,
//! but for `out.json` when asked.

pub(super) mod build;
mod case;
mod component;
pub(super) mod dev;
mod expected;
pub(super) mod inspect;
mod json;
mod language;
pub(super) mod new;
pub(super) mod test;
mod tools;
mod waiting;

use std::path::{Path, PathBuf};

use super::failure::{Failure, Refusal};

/// Where a build puts the component.
const DIST: &str = "dist";
/// Where the cases are, unless another folder is named.
const CASES: &str = "cases";

/// A word of the command's own that the answer is a no.
fn refusal(detail: impl Into<String>) -> Failure {
    Refusal { status: None, problem: serde_json::json!({ "detail": detail.into() }) }.into()
}

/// Where machine code is kept from one run to the next.
fn code_dir() -> Result<PathBuf, Failure> {
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = named("XDG_CACHE_HOME").or_else(|| named("HOME").map(|home| home.join(".cache")));
    let cache = cache.ok_or_else(|| {
        Failure::Usage("there is no place to keep what is compiled: set HOME or XDG_CACHE_HOME".to_owned())
    })?;
    let dir = cache.join("sluice/plugin-code");
    // Only its owner may put code there: it is run.
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
    builder.create(&dir).map_err(Failure::io(dir.display().to_string()))?;
    Ok(dir)
}

/// The component that is meant: the file, or the one that a build has put into the project's `dist`.
fn component_of(path: &Path) -> Result<PathBuf, Failure> {
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let dist = path.join(DIST);
    let is_component = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "wasm");
    let entries = std::fs::read_dir(&dist).map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())));
    let mut found: Vec<PathBuf> = entries.map(|paths| paths.filter(is_component).collect()).unwrap_or_default();
    match (found.pop(), found.is_empty()) {
        (Some(component), true) => Ok(component),
        (None, _) => Err(Failure::Usage(format!(
            "there is no component in {}: `sluice plugin build {}` makes it",
            dist.display(),
            path.display()
        ))),
        (Some(_), false) => {
            Err(Failure::Usage(format!("there are several components in {}: name the file", dist.display())))
        }
    }
}

/// `orders-filter.wasm` and `orders-filter@1.2.0.wasm` are of `orders-filter`.
fn plugin_name(component: &Path) -> String {
    let stem = component.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    stem.split('@').next().unwrap_or_default().replace('_', "-")
}

/// Bytes for people.
fn shown_bytes(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// A duration for people.
fn shown_time(time: std::time::Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    match micros {
        ..10.0 => format!("{micros:.2} µs"),
        ..1e4 => format!("{micros:.0} µs"),
        ..1e6 => format!("{:.0} ms", micros / 1e3),
        _ => format!("{:.1} s", micros / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn figures_are_shown_for_people() {
        let sizes = [7, 2048, 3 << 20].map(shown_bytes);
        assert_eq!(sizes, ["7 B", "2.0 KiB", "3.0 MiB"]);
        let times = [1_500, 2_000_000, 70_000_000, 1_500_000_000].map(|ns| shown_time(Duration::from_nanos(ns)));
        assert_eq!(times, ["1.50 µs", "2000 µs", "70 ms", "1.5 s"]);
    }

    #[test]
    fn the_component_is_the_file_or_the_only_one_that_was_built() {
        let dir = tempfile::tempdir().unwrap();
        assert!(component_of(dir.path()).unwrap_err().to_string().contains("sluice plugin build"));
        std::fs::create_dir(dir.path().join("dist")).unwrap();
        let file = dir.path().join("dist/orders-filter@1.2.0.wasm");
        std::fs::write(&file, "").unwrap();
        assert_eq!(component_of(dir.path()).unwrap(), file);
        assert_eq!(component_of(&file).unwrap(), file);
        assert_eq!(plugin_name(&file), "orders-filter");
        std::fs::write(dir.path().join("dist/other.wasm"), "").unwrap();
        assert!(component_of(dir.path()).unwrap_err().to_string().contains("name the file"));
    }
}
