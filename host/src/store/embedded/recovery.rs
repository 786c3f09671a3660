//! Opening a data directory: checkpoint, cut segments, replay the journal. Invariant: every frame that was acknowledged is
//! applied, or opening fails and says where the damage is; only a torn end, which was never acknowledged, is set aside.
//!
//! How a torn end is told from damage: one frame is written at a time and the next only after its sync. So a frame that is
//! not whole and has a whole one behind it, or a further file that counts it as written, was whole once.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::core::Core;
use super::erase;
use super::files::{DataFile, FileLayer, read_all};
use super::frame::{self, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FileKind, FrameHeader, HeaderFault};
use super::journal::{Journal, file_id, file_name};
use super::maintenance::{CHECKPOINT, CHECKPOINT_TMP, Maintenance};
use super::ops::{Body, LaneId, Op};
use super::segment::SegmentFiles;
use super::state::snapshot::Snapshot;
use super::state::{Applying, State};
use crate::message::TopicId;
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
    /// A later version of Sluice wrote it.
    #[error("{file} has format version {found}; this version of Sluice reads up to {known}")]
    NewerFormat {
        /// The file, relative to the data directory.
        file: String,
        /// Its version.
        found: u32,
        /// The newest known.
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

    fn damaged(file: &str, offset: usize, detail: impl Into<String>) -> OpenError {
        OpenError::Damaged { file: file.to_owned(), offset: offset as u64, detail: detail.into() }
    }
}

/// What opening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Frames read from the journal.
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

/// A body that does not match its checksum: fine if it was erased.
struct Suspect {
    file: String,
    offset: usize,
}

/// What a body belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Owner {
    Log(LaneId, u64),
    Scheduled(TopicId, u64),
}

/// Reads everything back into `core`, whose state is empty; returns the journal to go on with.
///
/// # Errors
/// See [`OpenError`].
pub fn recover(core: &Arc<Core>) -> Result<(Journal, OpenReport), OpenError> {
    let mut recovery = Recovery {
        core: Arc::clone(core),
        report: OpenReport::default(),
        suspects: HashMap::new(),
        maintenance: Maintenance::new(Arc::clone(core)),
    };
    recovery.checkpoint()?;
    let (next_file, next_sequence) = recovery.replay()?;
    recovery.check_suspects()?;
    recovery.check_segments();
    finish(core);
    Ok((Journal::new(Arc::clone(&core.files), &core.dir, next_file, next_sequence), recovery.report))
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

struct Recovery {
    core: Arc<Core>,
    report: OpenReport,
    suspects: HashMap<Owner, Suspect>,
    maintenance: Maintenance,
}

/// A journal file.
struct Source {
    id: u64,
    name: String,
    file: Arc<dyn DataFile>,
    bytes: Bytes,
    first: u64,
}

impl Recovery {
    fn checkpoint(&mut self) -> Result<(), OpenError> {
        let core = Arc::clone(&self.core);
        core.files.remove(&core.dir.join(CHECKPOINT_TMP)).map_err(OpenError::io("removing an unfinished checkpoint"))?;
        let snapshot = read_checkpoint(&*core.files, &core.dir)?;
        cut_segments(&core, snapshot.as_ref())?;
        if let Some(snapshot) = snapshot {
            core.state.lock().restore(snapshot);
        }
        Ok(())
    }

    /// Applies all frames after the checkpoint; returns the next file's id and the next sequence.
    fn replay(&mut self) -> Result<(u64, u64), OpenError> {
        let core = Arc::clone(&self.core);
        let sources = self.sources()?;
        let mut next = core.state.lock().applied + 1;
        let mut total = 0;
        for (nth, source) in sources.iter().enumerate() {
            if source.first > next {
                let detail = format!("the journal lacks frames {next} to {}", source.first - 1);
                return Err(OpenError::damaged(&source.name, 0, detail));
            }
            let void_from = sources.get(nth + 1).map(|later| later.first);
            let end = self.replay_file(source, void_from)?;
            next = next.max(end);
            total += source.bytes.len() as u64;
            core.journal_files.lock().push((source.id, source.first));
        }
        core.journal_bytes.store(total, std::sync::atomic::Ordering::Relaxed);
        let next_file = sources.last().map_or(1, |last| last.id + 1);
        Ok((next_file, next))
    }

    /// The journal's files in order. A last one without a header never held a frame and goes.
    fn sources(&mut self) -> Result<Vec<Source>, OpenError> {
        let core = Arc::clone(&self.core);
        let names = core.files.list(&core.dir).map_err(OpenError::io("listing the data directory"))?;
        let mut ids: Vec<u64> = names.iter().filter_map(|name| file_id(name)).collect();
        ids.sort_unstable();
        let mut sources = Vec::with_capacity(ids.len());
        for (nth, id) in ids.iter().enumerate() {
            let name = file_name(*id);
            let path = core.dir.join(&name);
            let reading = || format!("reading {name}");
            let file = core.files.open(&path).map_err(OpenError::io(reading()))?;
            let bytes = Bytes::from(read_all(&*file).map_err(OpenError::io(reading()))?);
            match FileHeader::decode(FileKind::Journal, &bytes) {
                Ok(header) if header.id == *id => {
                    sources.push(Source { id: *id, name, file, bytes, first: header.first });
                }
                Err(HeaderFault::Newer(found)) => {
                    return Err(OpenError::NewerFormat { file: name, found, known: frame::FORMAT_VERSION });
                }
                _ if nth + 1 == ids.len() && frame::find_later(*id, &bytes, 0, 0).is_none() => {
                    core.files.remove(&path).map_err(OpenError::io(format!("removing {name}, which was never used")))?;
                }
                _ => return Err(OpenError::damaged(&name, 0, "the file's header is not what was written")),
            }
        }
        Ok(sources)
    }

    /// Applies a file's frames below `void_from`, which the next file declares its own; returns the next sequence.
    fn replay_file(&mut self, source: &Source, void_from: Option<u64>) -> Result<u64, OpenError> {
        let (mut at, mut sequence) = (FILE_HEADER_BYTES, source.first);
        loop {
            if void_from == Some(sequence) {
                // What follows, if anything, failed to sync and was never acknowledged.
                return Ok(sequence);
            }
            let rest = &source.bytes[at.min(source.bytes.len())..];
            let whole = frame::split(source.id, rest).filter(|(header, ..)| header.sequence == sequence);
            let Some((header, head, bodies)) = whole else {
                self.end_of(source, at, sequence, void_from)?;
                return Ok(sequence);
            };
            let last = void_from.is_none() && !self.has_later(source, at + header.frame_len(), sequence);
            let skip = sequence <= self.core.state.lock().applied;
            if !skip && !self.replay_frame(source, (at, header), head, bodies, last)? {
                self.set_torn(source, at)?;
                return Ok(sequence);
            }
            self.report.frames += 1;
            at += header.frame_len();
            sequence += 1;
        }
    }

    fn has_later(&self, source: &Source, at: usize, sequence: u64) -> bool {
        let rest = source.bytes.get(at..).unwrap_or_default();
        // The next frame begins right here, almost always.
        frame::split(source.id, rest).is_some() || frame::find_later(source.id, &source.bytes, at, sequence).is_some()
    }

    /// What a place without a whole frame means.
    fn end_of(
        &mut self,
        source: &Source,
        at: usize,
        sequence: u64,
        void_from: Option<u64>,
    ) -> Result<(), OpenError> {
        let rest = source.bytes.get(at..).unwrap_or_default();
        if let Some(void_from) = void_from {
            let detail = format!("frame {sequence} is not whole, and frames up to {} were written", void_from - 1);
            return Err(OpenError::damaged(&source.name, at, detail));
        }
        if rest.iter().all(|byte| *byte == 0) {
            // Reserved room that nothing was written to.
            return Ok(());
        }
        // If the frame's own header is whole, what its bodies look like says nothing about frames behind it.
        let after = FrameHeader::decode(source.id, rest).map_or(at + 1, |header| at + header.frame_len());
        if let Some(later) = frame::find_later(source.id, &source.bytes, after, sequence) {
            let detail = format!("frame {sequence} is not whole, and a later one at byte {later} is");
            return Err(OpenError::damaged(&source.name, at, detail));
        }
        self.set_torn(source, at)
    }

    /// Saves the torn end and cuts it off.
    fn set_torn(&mut self, source: &Source, at: usize) -> Result<(), OpenError> {
        let core = Arc::clone(&self.core);
        let rest = source.bytes.get(at..).unwrap_or_default();
        let bytes = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let saved_as = format!("{}-{at}.torn", source.name);
        let saving = || format!("saving the torn end of {}", source.name);
        let file = core.files.create(&core.dir.join(&saved_as)).map_err(OpenError::io(saving()))?;
        file.write_at(&rest[..bytes], 0)
            .and_then(|()| file.sync())
            .and_then(|()| core.files.sync_dir(&core.dir))
            .and_then(|()| source.file.set_len(at as u64))
            .and_then(|()| source.file.sync())
            .map_err(OpenError::io(saving()))?;
        tracing::warn!(
            file = %source.name, offset = at, bytes, %saved_as,
            "the journal ends in a frame that was never finished nor acknowledged; it was cut off and saved"
        );
        self.report.torn =
            Some(Torn { file: source.name.clone(), offset: at as u64, bytes: bytes as u64, saved_as });
        Ok(())
    }

    /// Applies one frame; false if its bodies are torn, which only the last frame's can be.
    fn replay_frame(
        &mut self,
        source: &Source,
        place: (usize, FrameHeader),
        head: &[u8],
        bodies: &[u8],
        last: bool,
    ) -> Result<bool, OpenError> {
        let (at, header) = place;
        let ops: Vec<Op> = postcard::from_bytes(head)
            .map_err(|error| OpenError::damaged(&source.name, at, format!("a frame's head cannot be read: {error}")))?;
        let all = source.bytes.slice_ref(bodies);
        let (mut parts, mut offset, mut suspects) = (Vec::new(), 0, Vec::new());
        for op in &ops {
            for (nth, head) in erase::heads(op).iter().enumerate() {
                let end = offset + head.body_len as usize;
                let place = at + FRAME_HEADER_BYTES + header.head_len as usize + offset;
                let body = (end <= all.len()).then(|| all.slice(offset..end));
                let Some(body) = body.and_then(|body| Body::from_parts(*head, &body).map(|whole| (body, whole))) else {
                    return Err(OpenError::damaged(&source.name, place, "a body is shorter than its head says"));
                };
                if crc32c::crc32c(&body.0) != head.crc && !frame::is_erased(&body.0) {
                    suspects.push((owner(op, nth as u64), Suspect { file: source.name.clone(), offset: place }));
                }
                parts.push(detached(body.1));
                offset = end;
            }
        }
        if last && !suspects.is_empty() {
            return Ok(false);
        }
        self.suspects.extend(suspects.into_iter().filter_map(|(owner, suspect)| Some((owner?, suspect))));
        self.apply(ops, parts, header.sequence)
    }

    fn apply(&mut self, ops: Vec<Op>, bodies: Vec<Body>, sequence: u64) -> Result<bool, OpenError> {
        let core = Arc::clone(&self.core);
        let now = core.clock.now();
        let mut state = core.state.lock();
        let mut bodies = bodies.into_iter();
        for op in ops {
            if let Op::Due { topic, number, lane, sequence, .. } = &op
                && let Some(suspect) = self.suspects.remove(&Owner::Scheduled(*topic, *number))
            {
                self.suspects.insert(Owner::Log(*lane, *sequence), suspect);
            }
            state.apply(op, &mut bodies, now, Applying::Replay);
        }
        state.applied = sequence;
        state.evict();
        let full = state.unflushed_bytes > state.limits.unflushed_bytes_max;
        drop(state);
        if full {
            let io = |error: StoreError| OpenError::Io { what: "replaying".to_owned(), source: io::Error::other(error) };
            self.maintenance.flush_full().map_err(io)?;
        }
        Ok(true)
    }

    /// Bodies that do not match their checksums must have been erased, or be gone with their topic or by retention.
    fn check_suspects(&self) -> Result<(), OpenError> {
        let state = self.core.state.lock();
        for (owner, suspect) in &self.suspects {
            let excused = match owner {
                Owner::Log(id, sequence) => state.lane(*id).is_none_or(|lane| {
                    *sequence < lane.start || lane.erased.contains(*sequence)
                }),
                Owner::Scheduled(topic, number) => {
                    state.topics.get(topic).is_none_or(|topic| topic.schedule.get(*number).is_none())
                }
            };
            if !excused {
                return Err(OpenError::damaged(&suspect.file, suspect.offset, "a message does not match its checksum"));
            }
        }
        Ok(())
    }

    /// Segments that are not as long as they were: the partition refuses their messages, the rest goes on.
    fn check_segments(&mut self) {
        let core = Arc::clone(&self.core);
        let mut state = core.state.lock();
        for topic in state.topics.values_mut() {
            let id = topic.spec.id;
            for (number, part) in topic.partitions.iter_mut().enumerate() {
                for (lane, state) in part.lanes.iter_mut().enumerate() {
                    let Some(state) = state else { continue };
                    let id = LaneId { topic: id, partition: number as u16, lane: lane as u8 };
                    for segment in &mut state.segments {
                        let path = core.segments.path(id, segment.span.first);
                        let len = core.files.open(&path).and_then(|file| file.len()).unwrap_or(0);
                        if len >= segment.len {
                            continue;
                        }
                        segment.sealed = true;
                        let file = SegmentFiles::relative(id, segment.span.first);
                        tracing::error!(%file, len, expected = segment.len, "a segment is missing or too short");
                        let detail = "the file is missing or shorter than what was written".to_owned();
                        part.damage = Some(StoreError::Damaged { file: file.clone(), offset: len, detail });
                        self.report.damaged_segments.push(file);
                    }
                }
            }
        }
    }
}

fn owner(op: &Op, nth: u64) -> Option<Owner> {
    match op {
        Op::Append { lane, first, .. } => Some(Owner::Log(*lane, first + nth)),
        Op::Scheduled { topic, number, .. } => Some(Owner::Scheduled(*topic, *number)),
        _ => None,
    }
}

/// A copy that does not keep the whole journal file in memory.
fn detached(body: Body) -> Body {
    Body {
        head: body.head,
        meta: Bytes::copy_from_slice(&body.meta),
        payload: Bytes::copy_from_slice(&body.payload),
    }
}

fn read_checkpoint(files: &dyn FileLayer, dir: &Path) -> Result<Option<Snapshot>, OpenError> {
    let file = match files.open(&dir.join(CHECKPOINT)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(OpenError::io("opening the checkpoint"))?,
    };
    let bytes = read_all(&*file).map_err(OpenError::io("reading the checkpoint"))?;
    match FileHeader::decode(FileKind::Checkpoint, &bytes) {
        Ok(_) => {}
        Err(HeaderFault::Newer(found)) => {
            return Err(OpenError::NewerFormat { file: CHECKPOINT.to_owned(), found, known: frame::FORMAT_VERSION });
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

/// An empty state for `core`.
#[must_use]
pub fn empty(core_limits: &super::state::EmbeddedLimits) -> State {
    State::new(core_limits.clone())
}
