//! The sources of a project, watched. Invariant: what a build writes is no source, so a build never asks for the next one; a
//! change is told once what is written has come to rest. Never reads a file.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// An editor writes a file in several steps: this long after the last one it is done.
const SETTLE: Duration = Duration::from_millis(100);
/// Where there are no file events, as on some network file systems, a change is found this much later.
const POLL: Duration = Duration::from_secs(2);
/// Files that are looked at: a project has dozens.
const FILES_MAX: usize = 10_000;
/// Folders that tools make and fill.
const MADE: [&str; 5] = ["dist", "target", "node_modules", "venv", "__pycache__"];
/// Files that tools write while they build.
const WRITTEN: [&str; 1] = ["Cargo.lock"];

/// What tells one state of a file from another.
type Stamp = (Option<SystemTime>, u64);

/// The files of a project as they are now, and the folders that they are in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    files: BTreeMap<PathBuf, Stamp>,
    folders: Vec<PathBuf>,
}

impl Sources {
    /// Below `dir`. Hidden files are no sources, nor is what is behind a link to a folder.
    pub(super) fn of(dir: &Path) -> Sources {
        let mut sources = Sources::default();
        let mut waiting = vec![dir.to_owned()];
        while let Some(folder) = waiting.pop() {
            // A folder that goes meanwhile has no files.
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let (path, name) = (entry.path(), entry.file_name());
                if is_made(&name) || sources.files.len() >= FILES_MAX {
                    continue;
                }
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => waiting.push(path),
                    // Through a link, the file that it leads to counts.
                    Ok(_) => {
                        if let Ok(facts) = std::fs::metadata(&path)
                            && facts.is_file()
                        {
                            sources.files.insert(path, (facts.modified().ok(), facts.len()));
                        }
                    }
                    Err(_) => {}
                }
            }
            sources.folders.push(folder);
        }
        sources.folders.sort();
        sources
    }

    /// How many files.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }
}

fn is_made(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with('.') || MADE.contains(&&*name) || WRITTEN.contains(&&*name)
}

/// Says each time when the files below `dir` are other than `known`, and than the last time. Never ends.
pub(super) async fn changes(dir: &Path, mut known: Sources, changed: mpsc::Sender<()>) {
    let (event, mut events) = mpsc::channel::<()>(1);
    let say = move |what: notify::Result<notify::Event>| {
        // To read a file is an event, too; full means that a look is due anyway.
        if what.map_or(true, |what| !what.kind.is_access()) {
            let _ = event.try_send(());
        }
    };
    // Without events it is looked every now and then.
    let mut watcher = notify::recommended_watcher(say).ok();
    let mut watched: Vec<PathBuf> = Vec::new();
    loop {
        if let Some(watcher) = &mut watcher {
            // Each on its own, so that nothing is watched that tools fill with thousands of files.
            for folder in known.folders.iter().filter(|folder| !watched.contains(folder)) {
                let _ = watcher.watch(folder, RecursiveMode::NonRecursive);
            }
            watched = known.folders.clone();
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            Some(()) = events.recv() => {}
        }
        let mut now = Sources::of(dir);
        if now == known {
            continue;
        }
        loop {
            tokio::time::sleep(SETTLE).await;
            let later = Sources::of(dir);
            if later == now {
                break;
            }
            now = later;
        }
        known = now;
        // Full: that something has changed is known already.
        let _ = changed.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_what_people_write() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["src/lib.rs", "sdk/src/lib.rs", "Cargo.toml", "cases/a/in.json"] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let before = Sources::of(dir.path());
        assert_eq!((before.len(), before.folders.len()), (4, 6));
        for file in
            ["target/release/a.d", "dist/a.wasm", "Cargo.lock", ".git/HEAD", "src/.lib.rs.swp", "node_modules/a"]
        {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        assert_eq!(Sources::of(dir.path()), before, "what is built is no source");
        std::fs::write(dir.path().join("src/lib.rs"), "other").unwrap();
        assert_ne!(Sources::of(dir.path()), before);
    }

    #[test]
    fn so_many_files_are_looked_at_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..FILES_MAX + 5 {
            std::fs::File::create(dir.path().join(number.to_string())).unwrap();
        }
        assert_eq!(Sources::of(dir.path()).len(), FILES_MAX);
    }

    #[tokio::test]
    async fn a_change_is_told_also_in_a_folder_that_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let (changed, mut changes_told) = mpsc::channel(1);
        let watched = dir.path().to_owned();
        let known = Sources::of(&watched);
        let task = tokio::spawn(async move { changes(&watched, known, changed).await });
        for file in ["a.rs", "src/b.rs", "src/b.rs"] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text = format!("{file} {:?}", path.exists());
            std::fs::write(path, text).unwrap();
            changes_told.recv().await.unwrap();
        }
        task.abort();
    }
}
