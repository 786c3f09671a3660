//! The plugin directory: files that appear or change become versions. Invariant: a file is taken in only once it has
//! stopped changing, and complained of only once it has stopped for longer; what is in a good file's way for the moment is
//! waited out; a deletion changes nothing. Never writes there.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use crate::catalog::Actor;
use crate::catalog::model::PluginSource;
use crate::clock::Timestamp;

use super::component;
use super::follow::pause_after;
use super::signature::{self, SIGNATURE_BYTES};
use super::{NewComponent, PipelineError, Pipelines};

/// How long events are gathered before a look: a copy makes many.
const GATHER: Duration = Duration::from_millis(10);
/// A file that has not changed between two looks this far apart is taken to be whole.
const SETTLE: Duration = Duration::from_millis(80);
/// The directory is looked at this often without an event: network and overlay file systems don't send all of them.
const POLL: Duration = Duration::from_millis(250);
/// A bad file is only complained of after it has stayed the same for so many looks more, since a slow copy pauses.
const BAD_LOOKS: u32 = 3;
/// Of a signature's file: it takes 88, and a line end.
const SIGNATURE_FILE_BYTES_MAX: u64 = 1024;
/// Files that are looked at.
const FILES_MAX: usize = 4096;

/// From a file's change to the look that takes it in, or to the one that names it if it is bad: a second is promised,
/// and what is left of it is for compiling.
const TAKEN_IN_AFTER_MS: u128 = POLL.as_millis() + GATHER.as_millis() + SETTLE.as_millis();
const _: () = assert!(TAKEN_IN_AFTER_MS + SETTLE.as_millis() * BAD_LOOKS as u128 <= 600);

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    len: u64,
    inode: u64,
    /// When its signature, in the file beside it, was written, and how long that is.
    signature: Option<(i64, i64, u64)>,
}

#[derive(Debug)]
struct Seen {
    stamp: Stamp,
    /// Whether it was there, like this, when the watch began.
    at_start: bool,
    phase: Phase,
}

/// How far a file, as it is now, has come.
#[derive(Debug)]
enum Phase {
    /// Seen once.
    New,
    /// Refused for good; named after so many looks more.
    Bad(PipelineError, u32),
    /// Something else was in the way, so many times; named once, and tried again from then on.
    Later(u32, Timestamp),
    /// Taken in, or refused and named.
    Done,
}

/// The state of the watch.
struct Watch {
    pipelines: Weak<Pipelines>,
    dir: PathBuf,
    files: HashMap<PathBuf, Seen>,
    /// Until the directory has been looked at once.
    first: bool,
}

impl Pipelines {
    /// Starts watching `plugins.dir`, if one is set, after a first look at what is in it.
    ///
    /// # Errors
    /// [`PipelineError::Watch`] if the directory can't be read.
    pub fn watch(self: &Arc<Self>) -> Result<(), PipelineError> {
        let Some(dir) = self.options.plugins.dir.clone() else { return Ok(()) };
        let failed = |why: String| PipelineError::Watch { dir: dir.clone(), why };
        std::fs::read_dir(&dir).map_err(|error| failed(error.to_string()))?;
        // One place: that something has changed is all that is said.
        let (changed, mut changes) = mpsc::channel::<()>(1);
        let say = move |event: notify::Result<notify::Event>| {
            // Looking at the directory and reading its files are events too.
            if event.map_or(true, |event| !event.kind.is_access()) {
                // Full means that a look is due anyway.
                let _ = changed.try_send(());
            }
        };
        let mut events = notify::recommended_watcher(say).map_err(|error| failed(error.to_string()))?;
        if let Err(error) = events.watch(&dir, RecursiveMode::NonRecursive) {
            tracing::warn!(dir = %dir.display(), %error, "no file events: the plugin directory is polled");
        }
        let mut watch = Watch { pipelines: Arc::downgrade(self), dir, files: HashMap::new(), first: true };
        let task = tokio::spawn(async move {
            let _watching = events;
            loop {
                let Some(unsettled) = watch.look().await else { return };
                let wait = if unsettled { SETTLE } else { POLL };
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    // A closed channel is the end of the events, which this task owns.
                    Some(()) = changes.recv(), if !unsettled => tokio::time::sleep(GATHER).await,
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
            let seen = match self.files.remove(&path) {
                Some(seen) if seen.stamp == stamp => {
                    let Seen { at_start, phase, .. } = seen;
                    Seen { stamp, at_start, phase: next(&pipelines, &path, (stamp, at_start), phase).await }
                }
                _ => Seen { stamp, at_start: self.first, phase: Phase::New },
            };
            unsettled |= matches!(seen.phase, Phase::New | Phase::Bad(..));
            self.files.insert(path, seen);
        }
        self.first = false;
        Some(unsettled)
    }
}

/// The next phase of a file that is the same as at the last look.
async fn next(pipelines: &Pipelines, path: &Path, (stamp, at_start): (Stamp, bool), phase: Phase) -> Phase {
    let now = pipelines.machine.clock.now();
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (name, version) = name_and_version(&file);
    let tries = match phase {
        Phase::Later(_, at) if now < at => return phase,
        Phase::Bad(error, looks) if looks > 1 => return Phase::Bad(error, looks - 1),
        Phase::Bad(error, _) => {
            pipelines.not_accepted(&name, file, &error);
            return Phase::Done;
        }
        Phase::Done => return Phase::Done,
        Phase::New => 0,
        Phase::Later(tries, _) => tries,
    };
    match accept(pipelines, path, (stamp, at_start), (&name, version)).await {
        Ok(true) => Phase::Done,
        // It changed while it was read.
        Ok(false) => Phase::New,
        // What nobody has allowed yet may be allowed while it lies there, and a quota may get room.
        Err(error) if error.is_passing() || matches!(error, PipelineError::Powers { .. } | PipelineError::Quota(_)) => {
            if tries == 0 {
                pipelines.not_accepted(&name, file, &error);
            }
            Phase::Later(tries + 1, now.plus(pause_after(tries + 1)))
        }
        Err(error) => Phase::Bad(error, BAD_LOOKS),
    }
}

async fn accept(
    pipelines: &Pipelines,
    path: &Path,
    (stamp, at_start): (Stamp, bool),
    (name, version): (&str, Option<String>),
) -> Result<bool, PipelineError> {
    let max = pipelines.options.plugins.size_max;
    if stamp.len > max {
        return Err(PipelineError::TooLarge { size: stamp.len, max });
    }
    // Rights are changed and network file systems come back without the file looking any different.
    let unreadable = |error: std::io::Error| PipelineError::NotNow(format!("it can't be read: {error}"));
    let bytes = read(path, stamp.len).await.map_err(unreadable)?;
    let now = tokio::fs::metadata(path).await.map_err(unreadable)?;
    let signature = read_signature(path, stamp.signature.is_some()).await?;
    if stamp_of(path, &now) != stamp || bytes.len() as u64 != stamp.len {
        return Ok(false);
    }
    if at_start && is_history(pipelines, name, &bytes) {
        return Ok(true);
    }
    let new =
        NewComponent { name: name.to_owned(), version, bytes: bytes.into(), source: PluginSource::Disk, signature };
    pipelines.take_in(new, &Actor::system()).await.map(|_| true)
}

/// What is in the file, and no more than a byte beyond what it had: it may grow while it is read.
async fn read(path: &Path, len: u64) -> std::io::Result<Vec<u8>> {
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    file.take(len + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// The signature in the file beside it.
async fn read_signature(path: &Path, there: bool) -> Result<Option<[u8; SIGNATURE_BYTES]>, PipelineError> {
    if !there {
        return Ok(None);
    }
    let unreadable = |error: std::io::Error| PipelineError::NotNow(format!("its signature can't be read: {error}"));
    let text = read(&beside(path), SIGNATURE_FILE_BYTES_MAX).await.map_err(unreadable)?;
    let parsed = String::from_utf8(text).map_err(|error| error.to_string()).and_then(|text| signature::parse(&text));
    parsed.map(Some).map_err(|why| PipelineError::Unusable(format!("the file beside it is no signature: {why}")))
}

/// `name.wasm.sig`.
fn beside(path: &Path) -> PathBuf {
    path.with_added_extension("sig")
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
            let stamp = stamp_of(&path, &metadata);
            found.push((path, stamp));
        }
    }
    // Oldest first, so that of two versions found at once the newer file becomes `latest`.
    found.sort_by(|(a, left), (b, right)| (left.modified, a).cmp(&(right.modified, b)));
    Ok(found)
}

fn stamp_of(path: &Path, metadata: &std::fs::Metadata) -> Stamp {
    let modified = (metadata.mtime(), metadata.mtime_nsec());
    let signature = std::fs::metadata(beside(path)).ok().filter(std::fs::Metadata::is_file);
    let signature = signature.map(|it| (it.mtime(), it.mtime_nsec(), it.len()));
    Stamp { modified, len: metadata.len(), inode: metadata.ino(), signature }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::{Rig, tag};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_good_file_is_taken_in_at_the_second_look_and_a_bad_one_named_three_later() {
        let rig = Rig::new().await;
        let dir = rig.dir.path().to_owned();
        std::fs::write(dir.join("good.wasm"), tag(1)).unwrap();
        std::fs::write(dir.join("bad.wasm"), b"no component").unwrap();
        let mut watch = Watch { pipelines: Arc::downgrade(&rig.pipelines), dir, files: HashMap::new(), first: true };
        let has = |name: &str| rig.pipelines.plugin(name).is_some();
        assert_eq!(watch.look().await, Some(true));
        assert!(!has("good"), "it may still be growing");
        assert_eq!(watch.look().await, Some(true));
        assert!(has("good") && !has("bad"), "it may still be growing");
        for _ in 1..BAD_LOOKS {
            assert_eq!(watch.look().await, Some(true));
            assert!(!has("bad"));
        }
        assert_eq!(watch.look().await, Some(false));
        assert!(has("bad"));
        watch.look().await;
        assert_eq!(rig.metric("sluice_plugin_reload_errors_total", "bad"), 1.0, "it is named once");
    }

    #[test]
    fn a_file_name_says_plugin_and_version() {
        assert_eq!(name_and_version("filter.wasm"), ("filter".to_owned(), None));
        assert_eq!(name_and_version("filter@1.2.0.wasm"), ("filter".to_owned(), Some("1.2.0".to_owned())));
        assert_eq!(name_and_version("a.b@1.wasm"), ("a.b".to_owned(), Some("1".to_owned())));
    }
}
