//! Replaying the journal. Invariant: a frame that was acknowledged is applied or reported as damage; a torn end is saved
//! aside and cut off. Reads one file at a time.
//!
//! How a torn end is told from damage: one frame is written at a time and the next only after its sync. So a frame that is
//! not whole and has a whole one behind it, or a further file that counts it as written, was whole once.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::core::Core;
use super::erase;
use super::files::{DataFile, read_all, read_full};
use super::frame::{self, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FileKind, FrameHeader, HeaderFault};
use super::journal::{file_id, file_name};
use super::maintenance::Maintenance;
use super::ops::{Body, LaneId, Op};
use super::recovery::{OpenError, OpenReport, Torn};
use super::state::Applying;
use crate::message::TopicId;
use crate::store::StoreError;

/// A body that does not match its checksum: fine if it was erased.
pub(super) struct Suspect {
    file: String,
    offset: usize,
}

/// What a body belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    Log(LaneId, u64),
    Scheduled(TopicId, u64),
}

/// A replay under way.
pub(super) struct Replay {
    /// What it fills.
    pub core: Arc<Core>,
    /// What was found.
    pub report: OpenReport,
    /// Bodies that have to turn out erased.
    pub suspects: HashMap<Owner, Suspect>,
    /// Writes segments when memory is full.
    pub maintenance: Maintenance,
}

/// A journal file.
struct Source {
    id: u64,
    name: String,
    file: Arc<dyn DataFile>,
    first: u64,
    /// Its content, while it is replayed: one file at a time.
    bytes: Bytes,
}

impl Replay {
    /// Applies all frames after the checkpoint; returns the next file's id and the next sequence.
    pub(super) fn replay(&mut self) -> Result<(u64, u64), OpenError> {
        let core = Arc::clone(&self.core);
        let mut sources = self.sources()?;
        let firsts: Vec<u64> = sources.iter().map(|source| source.first).collect();
        let mut next = core.state.lock().applied + 1;
        let mut total = 0;
        for (nth, source) in sources.iter_mut().enumerate() {
            if source.first > next {
                let detail = format!("the journal lacks frames {next} to {}", source.first - 1);
                return Err(OpenError::damaged(&source.name, 0, detail));
            }
            source.bytes = read_whole(&*source.file, &source.name)?;
            let (end, used) = self.replay_file(source, firsts.get(nth + 1).copied())?;
            source.bytes = Bytes::new();
            next = next.max(end);
            total += used as u64;
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
            let mut header = [0; FILE_HEADER_BYTES];
            read_full(&*file, &mut header, 0).map_err(OpenError::io(reading()))?;
            match FileHeader::decode(FileKind::Journal, &header) {
                Ok(header) if header.id == *id => {
                    sources.push(Source { id: *id, name, file, first: header.first, bytes: Bytes::new() });
                }
                Err(HeaderFault::Newer(found)) => {
                    return Err(OpenError::NewerFormat { file: name, found, known: frame::FORMAT_VERSION });
                }
                _ if nth + 1 == ids.len() && frame::find_later(*id, &read_whole(&*file, &name)?, 0, 0).is_none() => {
                    core.files
                        .remove(&path)
                        .map_err(OpenError::io(format!("removing {name}, which was never used")))?;
                }
                _ => return Err(OpenError::damaged(&name, 0, "the file's header is not what was written")),
            }
        }
        Ok(sources)
    }

    /// Applies a file's frames below `void_from`, which the next file declares its own; returns the next sequence, and
    /// how much of the file is in use.
    fn replay_file(&mut self, source: &Source, void_from: Option<u64>) -> Result<(u64, usize), OpenError> {
        let (mut at, mut sequence) = (FILE_HEADER_BYTES, source.first);
        loop {
            if void_from == Some(sequence) {
                // What follows, if anything, failed to sync and was never acknowledged.
                return Ok((sequence, at));
            }
            let rest = &source.bytes[at.min(source.bytes.len())..];
            let whole = frame::split(source.id, rest).filter(|(header, ..)| header.sequence == sequence);
            let Some((header, head, bodies)) = whole else {
                self.end_of(source, at, sequence, void_from)?;
                return Ok((sequence, at));
            };
            let last = void_from.is_none() && !self.has_later(source, at + header.frame_len(), sequence);
            let skip = sequence <= self.core.state.lock().applied;
            if !skip && !self.replay_frame(source, (at, header), head, bodies, last)? {
                self.set_torn(source, at)?;
                return Ok((sequence, at));
            }
            self.report.frames += u64::from(!skip);
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
    fn end_of(&mut self, source: &Source, at: usize, sequence: u64, void_from: Option<u64>) -> Result<(), OpenError> {
        let rest = source.bytes.get(at..).unwrap_or_default();
        if let Some(void_from) = void_from {
            let detail = format!("frame {sequence} is not whole, and frames up to {} were written", void_from - 1);
            return Err(OpenError::damaged(&source.name, at, detail));
        }
        if rest.iter().all(|byte| *byte == 0) {
            // Reserved room that nothing was written to, and nothing will be: this opening has a file of its own.
            return source.file.set_len(at as u64).map_err(OpenError::io(format!("cutting {}", source.name)));
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
        self.report.torn = Some(Torn { file: source.name.clone(), offset: at as u64, bytes: bytes as u64, saved_as });
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
            let io =
                |error: StoreError| OpenError::Io { what: "replaying".to_owned(), source: io::Error::other(error) };
            self.maintenance.flush_full().map_err(io)?;
        }
        Ok(true)
    }

    /// Bodies that do not match their checksums must have been erased, or be gone with their topic or by retention.
    pub(super) fn check_suspects(&self) -> Result<(), OpenError> {
        let state = self.core.state.lock();
        for (owner, suspect) in &self.suspects {
            let excused = match owner {
                Owner::Log(id, sequence) => {
                    state.lane(*id).is_none_or(|lane| *sequence < lane.start || lane.erased.contains(*sequence))
                }
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
}

fn read_whole(file: &dyn DataFile, name: &str) -> Result<Bytes, OpenError> {
    Ok(Bytes::from(read_all(file).map_err(OpenError::io(format!("reading {name}")))?))
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
    Body { head: body.head, meta: Bytes::copy_from_slice(&body.meta), payload: Bytes::copy_from_slice(&body.payload) }
}
