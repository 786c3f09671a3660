//! Looking through the journal before anything is changed. Invariant: a frame that was acknowledged is found whole or
//! reported as damage; nothing is written, cut or removed. Reads one file at a time.
//!
//! How a torn end is told from damage: one frame is written at a time and the next only after its sync. So a frame that is
//! not whole and has a whole one behind it, or a further file that counts it as written, was whole once.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::core::Core;
use super::files::{DataFile, read_all, read_full};
use super::frame::{self, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FileKind, FrameHeader, HeaderFault};
use super::journal::{file_id, file_name};
use super::maintenance::CHECKPOINT;
use super::ops::{Op, Owner};
use super::recovery::OpenError;

/// A journal file.
pub(super) struct Source {
    /// Its number.
    pub id: u64,
    /// Its name in the data directory.
    pub name: String,
    /// It.
    pub file: Arc<dyn DataFile>,
    /// The sequence of its first frame.
    pub first: u64,
    /// Where its last whole frame ends.
    pub used: usize,
    /// What follows was begun and never finished.
    pub torn: bool,
}

/// What the journal was found to be.
pub(super) struct Found {
    /// Its files, in order.
    pub sources: Vec<Source>,
    /// The sequence of the next frame.
    pub next: u64,
    /// The number of the next file.
    pub next_file: u64,
}

/// A body that does not match its checksum: fine if it turns out to have been erased.
struct Suspect {
    file: String,
    offset: usize,
}

struct Walk {
    applied: u64,
    suspects: HashMap<Owner, Suspect>,
}

/// Looks through the journal that follows a checkpoint, or is all there is.
///
/// # Errors
/// See [`OpenError`].
pub(super) fn walk(core: &Core, applied: Option<u64>) -> Result<Found, OpenError> {
    let names = core.files.list(&core.dir).map_err(OpenError::io("listing the data directory"))?;
    let (mut sources, next_file) = sources(core, &names)?;
    match (applied, sources.first()) {
        (None, Some(first)) if first.first != 1 => {
            let detail = format!("the checkpoint that frames 1 to {} went into is missing", first.first - 1);
            return Err(OpenError::damaged(CHECKPOINT, 0, detail));
        }
        (None, None) if names.iter().any(|name| name.starts_with("topic-")) => {
            return Err(OpenError::damaged(CHECKPOINT, 0, "there are segments, but neither checkpoint nor journal"));
        }
        (Some(_), None) => {
            return Err(OpenError::damaged(
                CHECKPOINT,
                0,
                "the checkpoint needs a journal behind it, and there is none",
            ));
        }
        _ => {}
    }
    let mut walk = Walk { applied: applied.unwrap_or(0), suspects: HashMap::new() };
    let firsts: Vec<u64> = sources.iter().map(|source| source.first).collect();
    let mut next = walk.applied + 1;
    for (nth, source) in sources.iter_mut().enumerate() {
        if source.first > next {
            let detail = format!("the journal lacks frames {next} to {}", source.first - 1);
            return Err(OpenError::damaged(&source.name, 0, detail));
        }
        let end = walk.file(source, firsts.get(nth + 1).copied())?;
        if nth + 1 == firsts.len() && end <= walk.applied {
            let detail = format!("the journal ends with frame {}, the checkpoint with frame {}", end - 1, walk.applied);
            return Err(OpenError::damaged(&source.name, source.used, detail));
        }
        next = next.max(end);
    }
    match walk.suspects.into_values().min_by_key(|suspect| (suspect.file.clone(), suspect.offset)) {
        Some(Suspect { file, offset }) => {
            Err(OpenError::damaged(&file, offset, "a message does not match its checksum"))
        }
        None => Ok(Found { sources, next, next_file }),
    }
}

/// The journal's files in order, and the number of the next. A last one without a header never held a frame: it is
/// overwritten by the next.
fn sources(core: &Core, names: &[String]) -> Result<(Vec<Source>, u64), OpenError> {
    let mut ids: Vec<u64> = names.iter().filter_map(|name| file_id(name)).collect();
    ids.sort_unstable();
    let mut next_file = ids.last().map_or(1, |last| last + 1);
    let mut sources = Vec::with_capacity(ids.len());
    for (nth, id) in ids.iter().enumerate() {
        let name = file_name(*id);
        let reading = || format!("reading {name}");
        let file = core.files.open(&core.dir.join(&name)).map_err(OpenError::io(reading()))?;
        let mut header = [0; FILE_HEADER_BYTES];
        read_full(&*file, &mut header, 0).map_err(OpenError::io(reading()))?;
        match FileHeader::decode(FileKind::Journal, &header) {
            Ok(header) if header.id == *id => {
                sources.push(Source { id: *id, name, file, first: header.first, used: 0, torn: false });
            }
            Err(HeaderFault::Newer(found)) => {
                return Err(OpenError::NewerFormat { file: name, found, known: frame::FORMAT_VERSION });
            }
            _ if nth + 1 == ids.len() && frame::find_later(*id, &read_whole(&*file, &name)?, 0, 0).is_none() => {
                next_file = *id;
            }
            _ => return Err(OpenError::damaged(&name, 0, "the file's header is not what was written")),
        }
    }
    Ok((sources, next_file))
}

impl Walk {
    /// Goes through a file's frames below `void_from`, which the next file declares its own; returns the next sequence.
    fn file(&mut self, source: &mut Source, void_from: Option<u64>) -> Result<u64, OpenError> {
        let bytes = read_whole(&*source.file, &source.name)?;
        let mut sequence = source.first;
        source.used = FILE_HEADER_BYTES.min(bytes.len());
        // From where the next file begins on, frames failed to sync and were never acknowledged.
        while void_from != Some(sequence) {
            let rest = &bytes[source.used..];
            let whole = frame::split(source.id, rest).filter(|(header, ..)| header.sequence == sequence);
            let Some((header, head, bodies)) = whole else {
                source.torn = end_of(source, &bytes, sequence, void_from)?;
                return Ok(sequence);
            };
            let len = header.frame_len();
            if sequence > self.applied {
                let last = void_from.is_none() && !has_later(source, &bytes, source.used + len, sequence);
                if !self.frame(source, header, head, bodies, last)? {
                    source.torn = true;
                    return Ok(sequence);
                }
            }
            source.used += len;
            sequence += 1;
        }
        Ok(sequence)
    }

    /// Checks one frame's bodies; false if they are torn, which only the last frame's can be.
    fn frame(
        &mut self,
        source: &Source,
        header: FrameHeader,
        head: &[u8],
        bodies: &[u8],
        last: bool,
    ) -> Result<bool, OpenError> {
        let ops = decode(source, head)?;
        let (mut offset, mut suspects) = (0, Vec::new());
        for op in &ops {
            for (owner, head) in op.bodies() {
                let place = source.used + FRAME_HEADER_BYTES + header.head_len as usize + offset;
                let end = offset + head.body_len as usize;
                let Some(body) = bodies.get(offset..end).filter(|_| head.meta_len <= head.body_len) else {
                    return Err(OpenError::damaged(&source.name, place, "a body is shorter than its head says"));
                };
                if crc32c::crc32c(body) != head.crc && !frame::is_erased(body) {
                    suspects.push((owner, Suspect { file: source.name.clone(), offset: place }));
                }
                offset = end;
            }
        }
        if last && !suspects.is_empty() {
            return Ok(false);
        }
        self.suspects.extend(suspects);
        if !self.suspects.is_empty() {
            ops.iter().for_each(|op| self.excuse(op));
        }
        Ok(true)
    }

    /// What an op says of bodies before it that do not match: erased, or gone with their topic or by retention.
    fn excuse(&mut self, op: &Op) {
        match op {
            Op::Erased { lane, sequence } => drop(self.suspects.remove(&Owner::Log(*lane, *sequence))),
            Op::Unscheduled { topic, number } => drop(self.suspects.remove(&Owner::Scheduled(*topic, *number))),
            Op::Due { topic, number, lane, sequence, .. } => {
                if let Some(suspect) = self.suspects.remove(&Owner::Scheduled(*topic, *number)) {
                    self.suspects.insert(Owner::Log(*lane, *sequence), suspect);
                }
            }
            Op::Trim { lane, start, .. } => {
                self.suspects.retain(|owner, _| !matches!(owner, Owner::Log(id, at) if id == lane && at < start));
            }
            Op::TopicGone(gone) => self.suspects.retain(|owner, _| match owner {
                Owner::Log(id, _) => id.topic != *gone,
                Owner::Scheduled(topic, _) => topic != gone,
            }),
            _ => {}
        }
    }
}

fn has_later(source: &Source, bytes: &[u8], at: usize, sequence: u64) -> bool {
    let rest = bytes.get(at..).unwrap_or_default();
    // The next frame begins right here, almost always.
    frame::split(source.id, rest).is_some() || frame::find_later(source.id, bytes, at, sequence).is_some()
}

/// What a place without a whole frame means: whether it is a torn end, rather than the end.
fn end_of(source: &Source, bytes: &[u8], sequence: u64, void_from: Option<u64>) -> Result<bool, OpenError> {
    let (at, rest) = (source.used, &bytes[source.used..]);
    if let Some(void_from) = void_from {
        let detail = format!("frame {sequence} is not whole, and frames up to {} were written", void_from - 1);
        return Err(OpenError::damaged(&source.name, at, detail));
    }
    if rest.iter().all(|byte| *byte == 0) {
        // Reserved room that nothing was written to.
        return Ok(false);
    }
    // If the frame's own header is whole, what its bodies look like says nothing about frames behind it.
    let after = FrameHeader::decode(source.id, rest).map_or(at + 1, |header| at + header.frame_len());
    if let Some(later) = frame::find_later(source.id, bytes, after, sequence) {
        let detail = format!("frame {sequence} is not whole, and a later one at byte {later} is");
        return Err(OpenError::damaged(&source.name, at, detail));
    }
    Ok(true)
}

/// The ops of a frame.
pub(super) fn decode(source: &Source, head: &[u8]) -> Result<Vec<Op>, OpenError> {
    postcard::from_bytes(head).map_err(|error| {
        OpenError::damaged(&source.name, source.used, format!("a frame's head cannot be read: {error}"))
    })
}

/// A whole file.
pub(super) fn read_whole(file: &dyn DataFile, name: &str) -> Result<Bytes, OpenError> {
    Ok(Bytes::from(read_all(file).map_err(OpenError::io(format!("reading {name}")))?))
}
