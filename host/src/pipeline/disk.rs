//! The plugin directory: files that appear or change become versions. Invariant: a file is taken in only once it has
//! stopped changing, and complained of only once it has stopped for longer; a deletion changes nothing. Never writes there.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use notify_debouncer_full::new_debouncer;
use notify_debouncer_full::notify::RecursiveMode;
use tokio::sync::mpsc;

use crate::catalog::Actor;
use crate::catalog::model::PluginSource;

use super::component;
use super::{NewComponent, PipelineError, Pipelines};

/// How long events are gathered: a copy makes many.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// A file that has not changed between two looks this far apart is taken to be whole.
const SETTLE: Duration = Duration::from_millis(80);
/// The directory is looked at this often without an event: network and overlay file systems don't send all of them.
const POLL: Duration = Duration::from_millis(500);
/// A bad file is only complained of after it has stayed the same for so many looks, since a slow copy pauses.
const BAD_LOOKS: u32 = 3;
/// Files that are looked at.
const FILES_MAX: usize = 4096;

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    len: u64,
    inode: u64,
}

#[derive(Debug)]
struct Seen {
    stamp: Stamp,
    phase: Phase,
}

/// How far a file, as it is now, has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Seen once.
    New,
    /// It was refused; seen so many times since.
    Bad(u32),
    /// Taken in, or refused for good.
    Done,
}

/// The state of the watch.
struct Watch {
    pipelines: Weak<Pipelines>,
    dir: PathBuf,
    files: HashMap<PathBuf, Seen>,
    /// During the first look at the directory, versions that the catalog has seen before stay what they are.
    first: bool,
}

impl Pipelines {
    /// Starts watching `plugins.dir`, if one is set, after a first look at what is in it.
    ///
    /// # Errors
    /// [`PipelineError::Watch`] if the directory can neither be read nor made.
    pub fn watch(self: &Arc<Self>) -> Result<(), PipelineError> {
        let Some(dir) = self.options.plugins.dir.clone() else { return Ok(()) };
        let failed = |why: String| PipelineError::Watch { dir: dir.clone(), why };
        std::fs::create_dir_all(&dir).map_err(|error| failed(error.to_string()))?;
        std::fs::read_dir(&dir).map_err(|error| failed(error.to_string()))?;
        // One place: that something has changed is all that is said.
        let (changed, mut changes) = mpsc::channel::<()>(1);
        let say = move |_events| {
            // Full means that a look is due anyway.
            let _ = changed.try_send(());
        };
        let mut debouncer = new_debouncer(DEBOUNCE, None, say).map_err(|error| failed(error.to_string()))?;
        if let Err(error) = debouncer.watch(&dir, RecursiveMode::NonRecursive) {
            tracing::warn!(dir = %dir.display(), %error, "no file events: the plugin directory is polled");
        }
        let mut watch = Watch { pipelines: Arc::downgrade(self), dir, files: HashMap::new(), first: true };
        let task = tokio::spawn(async move {
            let _watching = debouncer;
            loop {
                let Some(unsettled) = watch.look().await else { return };
                let wait = if unsettled { SETTLE } else { POLL };
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    // A closed channel is the debouncer's end, which this task owns.
                    Some(()) = changes.recv(), if !unsettled => {}
                }
            }
        });
        self.tasks.lock().push(task.abort_handle());
        Ok(())
    }
}

impl Watch {
    /// Looks at all files once. `Some(true)`: some need another look soon. `None`: the pipelines are gone.
    async fn look(&mut self) -> Option<bool> {
        let pipelines = self.pipelines.upgrade()?;
        let dir = self.dir.clone();
        let found = match tokio::task::spawn_blocking(move || list(&dir)).await.ok()? {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(dir = %self.dir.display(), %error, "the plugin directory can't be read");
                return Some(false);
            }
        };
        self.files.retain(|path, _| found.iter().any(|(known, _)| known == path));
        let mut unsettled = false;
        for (path, stamp) in found {
            let phase = match self.files.get(&path) {
                Some(seen) if seen.stamp == stamp => match seen.phase {
                    Phase::Done => continue,
                    phase => self.take_in(&pipelines, &path, stamp, phase).await,
                },
                _ => Phase::New,
            };
            unsettled |= phase == Phase::New;
            self.files.insert(path, Seen { stamp, phase });
        }
        // Once everything that was there at the start has been taken in, changes are news.
        self.first &= unsettled;
        Some(unsettled)
    }

    /// Takes in a file that was the same at the last look.
    async fn take_in(&self, pipelines: &Pipelines, path: &Path, stamp: Stamp, phase: Phase) -> Phase {
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (name, version) = name_and_version(&file);
        let looks = if let Phase::Bad(looks) = phase { looks } else { 0 };
        match self.accept(pipelines, path, (stamp, looks), (&name, version)).await {
            Ok(true) => Phase::Done,
            // It changed while it was read.
            Ok(false) => Phase::New,
            Err(_) if looks + 1 < BAD_LOOKS => Phase::Bad(looks + 1),
            Err(error) => {
                pipelines.not_accepted(&name, file, &error);
                Phase::Done
            }
        }
    }

    async fn accept(
        &self,
        pipelines: &Pipelines,
        path: &Path,
        (stamp, looks): (Stamp, u32),
        (name, version): (&str, Option<String>),
    ) -> Result<bool, PipelineError> {
        let max = pipelines.options.plugins.size_max;
        if stamp.len > max {
            return Err(PipelineError::TooLarge { size: stamp.len, max });
        }
        let unreadable = |error: std::io::Error| PipelineError::Unusable(format!("it can't be read: {error}"));
        let bytes = tokio::fs::read(path).await.map_err(unreadable)?;
        let now = tokio::fs::metadata(path).await.map_err(unreadable)?;
        if stamp_of(&now) != stamp || bytes.len() as u64 != stamp.len {
            return Ok(false);
        }
        if self.first && looks == 0 && is_history(pipelines, name, &bytes) {
            return Ok(true);
        }
        let new = NewComponent { name: name.to_owned(), version, bytes: bytes.into(), source: PluginSource::Disk };
        pipelines.take_in(new, &Actor::system()).await.map(|_| true)
    }
}

/// At start the catalog wins: a file whose bytes it has seen changes nothing, and a difference is reported.
fn is_history(pipelines: &Pipelines, name: &str, bytes: &[u8]) -> bool {
    let digest = component::digest(bytes);
    let Some(known) = pipelines.registry.with_digest(name, &digest) else { return false };
    let latest = pipelines.registry.resolve(name, "latest");
    if latest.as_ref().is_some_and(|latest| latest.digest != digest) {
        let latest = latest.map(|latest| latest.version).unwrap_or_default();
        tracing::warn!(
            plugin = name,
            file = known.version,
            latest,
            "the plugin file is an older version than the one accepted last, which stays: touch the file to go back to it"
        );
    }
    true
}

/// `name@1.2.0.wasm` as name and version.
fn name_and_version(file: &str) -> (String, Option<String>) {
    let stem = file.strip_suffix(".wasm").unwrap_or(file);
    match stem.split_once('@') {
        Some((name, version)) => (name.to_owned(), Some(version.to_owned())),
        None => (stem.to_owned(), None),
    }
}

fn list(dir: &Path) -> std::io::Result<Vec<(PathBuf, Stamp)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)?.take(FILES_MAX) {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "wasm") {
            continue;
        }
        // Follows links, as Kubernetes mounts volumes; one that vanishes meanwhile is not there.
        if let Ok(metadata) = std::fs::metadata(&path)
            && metadata.is_file()
        {
            found.push((path, stamp_of(&metadata)));
        }
    }
    // Oldest first, so that of two versions found at once the newer file becomes `latest`.
    found.sort_by(|(a, left), (b, right)| (left.modified, a).cmp(&(right.modified, b)));
    Ok(found)
}

fn stamp_of(metadata: &std::fs::Metadata) -> Stamp {
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    Stamp { modified, len: metadata.len(), inode: metadata.ino() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_says_plugin_and_version() {
        assert_eq!(name_and_version("filter.wasm"), ("filter".to_owned(), None));
        assert_eq!(name_and_version("filter@1.2.0.wasm"), ("filter".to_owned(), Some("1.2.0".to_owned())));
        assert_eq!(name_and_version("a.b@1.wasm"), ("a.b".to_owned(), Some("1".to_owned())));
    }
}
