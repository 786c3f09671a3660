//! Machine code of plugins, kept between the brokers of all tests: a broker compiles a component once for its data folder,
//! and each test has a new one. Invariant: a broker takes only what another one has written for the same component and the
//! same engine (both are in the file's name). Losing it costs time and nothing else, so no failure here fails a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::binary;

/// Where a broker keeps its machine code, in its data folder.
const IN_DATA_DIR: &str = "plugin-cache";
/// Components of one build, several times over; beyond it the folder holds what older builds have left.
const FILES_MAX: usize = 32;

/// Gives a broker that is about to start for the first time what others have compiled.
pub fn seed(data_dir: &Path) {
    let kept = code_in(&folder());
    if kept.len() > FILES_MAX {
        // Another test may have removed it first.
        let _ = fs::remove_dir_all(folder());
        return;
    }
    let into = data_dir.join(IN_DATA_DIR);
    if fs::create_dir_all(&into).is_err() {
        return;
    }
    for path in kept {
        copy(&path, &into);
    }
}

/// Keeps what a broker has compiled.
pub fn harvest(data_dir: &Path) {
    let into = folder();
    if fs::create_dir_all(&into).is_err() {
        return;
    }
    for path in code_in(&data_dir.join(IN_DATA_DIR)) {
        if path.file_name().is_some_and(|name| !into.join(name).exists()) {
            copy(&path, &into);
        }
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
