//! Opening a data directory: checkpoint, cut segments, replay the journal. Invariant: every frame that was acknowledged is
//! applied, or opening fails and says where the damage is; only a torn end, which was never acknowledged, is set aside.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::core::Core;
use super::files::{FileLayer, read_all};
use super::frame::{self, FILE_HEADER_BYTES, FileHeader, FileKind, HeaderFault};
use super::journal::Journal;
use super::maintenance::{CHECKPOINT, CHECKPOINT_TMP, Maintenance};
use super::ops::LaneId;
use super::replay::Replay;
use super::segment::SegmentFiles;
use super::state::snapshot::Snapshot;
use super::walk::{self, Seen, Strict, Suspect};
use crate::store::StoreError;

/// Why a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the data directory {dir} is in use by another process ({holder})")]
    Locked {
        /// The directory.
        dir: String,
        /// What the lock file says of the holder.
        holder: String,
    },
    /// Another version of Sluice wrote it.
    #[error("{file} has format version {found}; this version of Sluice reads {known}")]
    OtherFormat {
        /// The file, relative to the data directory.
        file: String,
        /// Its version.
        found: u32,
        /// The one that is read.
        known: u32,
    },
    /// What was acknowledged is not there any more as it was written.
    #[error("damaged data in {file} at byte {offset}: {detail}")]
    Damaged {
        /// The file, relative to the data directory.
        file: String,
        /// The byte.
        offset: u64,
        /// What is wrong with it.
        detail: String,
    },
    /// The file system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
        let what = what.into();
        move |source| OpenError::Io { what, source }
    }

    pub(super) fn damaged(file: &str, offset: usize, detail: impl Into<String>) -> OpenError {
        OpenError::Damaged { file: file.to_owned(), offset: offset as u64, detail: detail.into() }
    }
}

/// What opening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Frames of the journal that the checkpoint did not have.
    pub frames: u64,
    /// The end of the journal that was cut off: never acknowledged.
    pub torn: Option<Torn>,
    /// Segments that are missing or shorter than they were: their partitions refuse reads of them.
    pub damaged_segments: Vec<String>,
}

/// A torn end of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// The file, relative to the data directory.
    pub file: String,
    /// Where it began.
    pub offset: u64,
    /// How long it was.
    pub bytes: u64,
    /// Where it was saved.
    pub saved_as: String,
}

/// What the store goes on with.
pub struct Recovered {
    /// Takes the next frame.
    pub journal: Journal,
    /// Knows the segments that the replay wrote and nobody synced.
    pub maintenance: Maintenance,
    /// What was found.
    pub report: OpenReport,
}

/// Reads everything back into `core`, whose state is empty.
///
/// # Errors
/// See [`OpenError`].
pub fn recover(core: &Arc<Core>) -> Result<Recovered, OpenError> {
    // Nothing is changed before all that was written is known to be there.
    let snapshot = read_checkpoint(&*core.files, &core.dir)?;
    let seen = snapshot.as_ref().map_or(Seen::Absent, |snapshot| Seen::Applied(snapshot.applied));
    let found = walk::walk(&*core.files, &core.dir, seen, &mut Strict)?;
    if let Some(Suspect { file, offset, .. }) = found.suspects.first() {
        return Err(OpenError::damaged(file, *offset, "a message does not match its checksum"));
    }
    let unfinished = core.files.remove(&core.dir.join(CHECKPOINT_TMP));
    unfinished.map_err(OpenError::io("removing an unfinished checkpoint"))?;
    cut_segments(core, snapshot.as_ref())?;
    if let Some(snapshot) = snapshot {
        core.state.lock().restore(snapshot);
    }
    let maintenance = Maintenance::new(Arc::clone(core));
    let mut replay = Replay { core: Arc::clone(core), report: OpenReport::default(), maintenance };
    replay.replay(&found)?;
    let Replay { mut report, maintenance, .. } = replay;
    check_segments(core, &mut report)?;
    finish(core);
    let journal = Journal::new(core, found.next_file, found.next);
    Ok(Recovered { journal, maintenance, report })
}

/// All leases of before have ended.
fn finish(core: &Core) {
    let now = core.clock.now();
    let mut state = core.state.lock();
    for topic in state.topics.values_mut() {
        let window = topic.spec.dedup_window;
        topic.dedup.age(window, now);
        topic.groups.values_mut().for_each(|group| group.rewind(now));
    }
}

/// Segments that are not as long as they were: the partition refuses their messages, the rest goes on.
fn check_segments(core: &Core, report: &mut OpenReport) -> Result<(), OpenError> {
    let mut state = core.state.lock();
    for topic in state.topics.values_mut() {
        let id = topic.spec.id;
        for (number, part) in topic.partitions.iter_mut().enumerate() {
            for (lane, state) in part.lanes.iter_mut().enumerate() {
                let Some(state) = state else { continue };
                let id = LaneId { topic: id, partition: number as u16, lane: lane as u8 };
                for segment in &mut state.segments {
                    let path = core.segments.path(id, segment.span.first);
                    let len = match core.files.open(&path).and_then(|file| file.len()) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                        // A file that cannot be opened now is not one that is gone.
                        len => len.map_err(OpenError::io("looking at a segment"))?,
                    };
                    if len >= segment.len {
                        continue;
                    }
                    segment.sealed = true;
                    let file = SegmentFiles::relative(id, segment.span.first);
                    tracing::error!(%file, len, expected = segment.len, "a segment is missing or too short");
                    let detail = "the file is missing or shorter than what was written".to_owned();
                    part.damage = Some(StoreError::Damaged { file: file.clone(), offset: len, detail });
                    report.damaged_segments.push(file);
                }
            }
        }
    }
    Ok(())
}

/// The checkpoint; `None` if there is none.
///
/// # Errors
/// See [`OpenError`].
pub(super) fn read_checkpoint(files: &dyn FileLayer, dir: &Path) -> Result<Option<Snapshot>, OpenError> {
    let file = match files.open(&dir.join(CHECKPOINT)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(OpenError::io("opening the checkpoint"))?,
    };
    let bytes = read_all(&*file).map_err(OpenError::io("reading the checkpoint"))?;
    match FileHeader::decode(FileKind::Checkpoint, &bytes) {
        Ok(_) => {}
        Err(HeaderFault::Version(found)) => {
            return Err(OpenError::OtherFormat { file: CHECKPOINT.to_owned(), found, known: frame::FORMAT_VERSION });
        }
        Err(HeaderFault::Bad) => return Err(OpenError::damaged(CHECKPOINT, 0, "the header is not what was written")),
    }
    let (_, head, _) = frame::split(0, &bytes[FILE_HEADER_BYTES..])
        .ok_or_else(|| OpenError::damaged(CHECKPOINT, FILE_HEADER_BYTES, "the content does not match its checksum"))?;
    let snapshot = postcard::from_bytes(head)
        .map_err(|error| OpenError::damaged(CHECKPOINT, FILE_HEADER_BYTES, format!("it cannot be read: {error}")))?;
    Ok(Some(snapshot))
}

/// Removes what the checkpoint does not know: the journal has it, and writes it anew.
fn cut_segments(core: &Core, snapshot: Option<&Snapshot>) -> Result<(), OpenError> {
    let mut known: HashMap<String, HashMap<String, u64>> = HashMap::new();
    for (id, segment) in snapshot.iter().flat_map(|snapshot| snapshot.segments()) {
        let dir = known.entry(SegmentFiles::topic_dir_name(id.topic.0)).or_default();
        dir.insert(SegmentFiles::file_name(id, segment.span.first), segment.len);
    }
    let cutting = || OpenError::io("cutting segments back to the checkpoint");
    let names = core.files.list(&core.dir).map_err(cutting())?;
    for dir_name in names.iter().filter(|name| name.starts_with("topic-")) {
        let dir = core.dir.join(dir_name);
        let Some(known) = known.get(dir_name) else {
            core.files.remove_dir_all(&dir).map_err(cutting())?;
            continue;
        };
        for name in core.files.list(&dir).map_err(cutting())? {
            let path = dir.join(&name);
            match known.get(&name) {
                None => core.files.remove(&path).map_err(cutting())?,
                Some(len) => {
                    let file = core.files.open(&path).map_err(cutting())?;
                    if file.len().map_err(cutting())? > *len {
                        file.set_len(*len).map_err(cutting())?;
                    }
                }
            }
        }
    }
    Ok(())
}
