//! Machine code of plugins, kept between the brokers of all tests: a broker compiles a component once for its data folder,
//! and each test has a new one. Invariant: a broker takes only what another one has written for the same component and the
//! same engine (both are in the file's name). Losing it costs time and nothing else, so no failure here fails a test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::binary;

/// Where a broker keeps its machine code, in its data folder.
const IN_DATA_DIR: &str = "plugin-cache";
/// The components that come with a broker, twice over. Only they are of use to another one, which removes at its start what it
/// does not know; tests bring dozens more in a run, so those go that no broker has had for longest.
const FILES_MAX: usize = 16;

/// Gives a broker that is about to start for the first time what others have compiled.
pub fn seed(data_dir: &Path) {
    let kept = code_in(&folder());
    let into = data_dir.join(IN_DATA_DIR);
    if fs::create_dir_all(&into).is_err() {
        return;
    }
    for path in kept {
        copy(&path, &into);
    }
}

/// Keeps what a broker has compiled, and in place of it lets go of what no broker has had for longest.
#[expect(clippy::disallowed_methods, reason = "files are as old as the system says")]
pub fn harvest(data_dir: &Path) {
    let into = folder();
    if fs::create_dir_all(&into).is_err() {
        return;
    }
    for path in code_in(&data_dir.join(IN_DATA_DIR)) {
        let Some(name) = path.file_name() else { continue };
        match File::open(into.join(name)) {
            Ok(kept) => drop(kept.set_modified(SystemTime::now())),
            Err(_) => copy(&path, &into),
        }
    }
    let mut kept: Vec<(SystemTime, PathBuf)> = code_in(&into)
        .into_iter()
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    kept.sort();
    for (_, path) in kept.iter().rev().skip(FILES_MAX) {
        // Another test may have removed it first.
        let _ = fs::remove_file(path);
    }
}

fn folder() -> PathBuf {
    binary::target_dir().join("sluice-tests-plugin-cache")
}

fn code_in(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "cwasm")).collect()
}

/// Whole at once: others look into the folder meanwhile.
fn copy(file: &Path, into: &Path) {
    static COPIES: AtomicU64 = AtomicU64::new(0);
    let Some(name) = file.file_name() else { return };
    let number = COPIES.fetch_add(1, Ordering::Relaxed);
    let draft = into.join(format!(".{}-{number}.draft", std::process::id()));
    if fs::copy(file, &draft).and_then(|_| fs::rename(&draft, into.join(name))).is_err() {
        let _ = fs::remove_file(&draft);
    }
}
