//! Looking through the journal before anything is changed. Invariant: a frame that was acknowledged is found whole or
//! reported as damage; nothing is written, cut or removed. Reads one file at a time.
//!
//! How a torn end is told from damage: one frame is written at a time and the next only after its sync. So a frame that is
//! not whole and has a whole one behind it, or a further file that counts it as written, was whole once.
//!
//! An opening ends at the first damage. An inspection is told of it too ([`Judge`]) and goes on with the next whole frame.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::files::{DataFile, FileLayer, read_full};
use super::frame::{self, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FileKind, FrameHeader, HeaderFault};
use super::frames::read_whole;
use super::inspect::finding::Kind;
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
    /// Damaged parts before `used`, in order; an opening knows none.
    pub holes: Vec<Range<usize>>,
}

/// What the journal was found to be.
pub(super) struct Found {
    /// Its files, in order.
    pub sources: Vec<Source>,
    /// The sequence of the next frame.
    pub next: u64,
    /// The number of the next file.
    pub next_file: u64,
    /// Bodies that do not match their checksums and that nothing accounts for, in order.
    pub suspects: Vec<Suspect>,
}

/// A body that does not match its checksum: fine if it turns out to have been erased.
pub(super) struct Suspect {
    /// What it belongs to.
    pub owner: Owner,
    /// The file.
    pub file: String,
    /// Where it stands.
    pub offset: usize,
    /// The frame it is in.
    pub frame: u64,
}

/// Damage in the journal.
#[derive(Debug)]
pub(super) struct Fault {
    /// What kind.
    pub kind: Kind,
    /// The file.
    pub file: String,
    /// Where.
    pub offset: usize,
    /// The frames that cannot be read because of it.
    pub frames: Range<u64>,
    /// In words.
    pub detail: String,
}

/// Hears of damage.
pub(super) trait Judge {
    /// Whether to go on.
    fn damaged(&mut self, fault: Fault) -> Result<(), OpenError>;
    /// Whether bodies are looked at that the checkpoint makes needless.
    fn thorough(&self) -> bool;
}

/// An opening's judge.
pub(super) struct Strict;

impl Judge for Strict {
    fn damaged(&mut self, fault: Fault) -> Result<(), OpenError> {
        Err(OpenError::damaged(&fault.file, fault.offset, fault.detail))
    }

    fn thorough(&self) -> bool {
        false
    }
}

/// What is known of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// There is none.
    Absent,
    /// It is damaged, which has been told.
    Unreadable,
    /// It contains the frames up to this one.
    Applied(u64),
}

struct Walk<'a> {
    applied: u64,
    judge: &'a mut dyn Judge,
    suspects: HashMap<Owner, Suspect>,
}

/// Looks through the journal that follows a checkpoint, or is all there is.
///
/// # Errors
/// See [`OpenError`]; damage as far as the judge says so.
pub(super) fn walk(
    files: &dyn FileLayer,
    dir: &Path,
    checkpoint: Seen,
    judge: &mut dyn Judge,
) -> Result<Found, OpenError> {
    let names = files.list(dir).map_err(OpenError::io("listing the data directory"))?;
    let (mut sources, next_file) = sources(files, dir, &names, judge)?;
    let (applied, mut next) = beginning(checkpoint, &sources, &names, judge)?;
    let mut walk = Walk { applied, judge, suspects: HashMap::new() };
    let nexts: Vec<Next> = sources.iter().map(|source| Next { id: source.id, first: source.first }).collect();
    for (nth, source) in sources.iter_mut().enumerate() {
        if source.first > next {
            // Files are numbered one after the other, so a number that lacks is a file that is missing.
            let before = nth.checked_sub(1).map(|before| nexts[before].id);
            let file = before.filter(|id| id + 1 < source.id).map_or(source.name.clone(), |id| file_name(id + 1));
            let detail = format!("the journal lacks frames {next} to {}", source.first - 1);
            let (kind, frames) = (Kind::MissingFrames, next..source.first);
            walk.judge.damaged(Fault { kind, file, offset: 0, frames, detail })?;
        }
        let end = walk.file(source, nexts.get(nth + 1).copied())?;
        if nth + 1 == nexts.len() && end <= walk.applied {
            let detail = format!("the journal ends with frame {}, the checkpoint with frame {}", end - 1, walk.applied);
            let (kind, offset, frames) = (Kind::MissingFrames, source.used, end..walk.applied + 1);
            walk.judge.damaged(Fault { kind, file: source.name.clone(), offset, frames, detail })?;
        }
        next = next.max(end);
    }
    let mut suspects: Vec<Suspect> = walk.suspects.into_values().collect();
    suspects.sort_by(|left, right| (&left.file, left.offset).cmp(&(&right.file, right.offset)));
    Ok(Found { sources, next, next_file, suspects })
}

/// The last frame that need not be applied, and the first that the journal has to have.
fn beginning(
    checkpoint: Seen,
    sources: &[Source],
    names: &[String],
    judge: &mut dyn Judge,
) -> Result<(u64, u64), OpenError> {
    let first = sources.first().map(|source| source.first);
    let mut missing = |kind, frames, detail: String| {
        judge.damaged(Fault { kind, file: CHECKPOINT.to_owned(), offset: 0, frames, detail })
    };
    match (checkpoint, first) {
        (Seen::Absent, Some(first)) if first != 1 => {
            let detail = format!("the checkpoint that frames 1 to {} went into is missing", first - 1);
            missing(Kind::MissingCheckpoint, 1..first, detail)?;
        }
        (Seen::Absent, None) if names.iter().any(|name| name.starts_with("topic-")) => {
            let detail = "there are segments, but neither checkpoint nor journal".to_owned();
            missing(Kind::MissingCheckpoint, 0..0, detail)?;
        }
        (Seen::Applied(applied), None) => {
            let detail = "the checkpoint needs a journal behind it, and there is none".to_owned();
            missing(Kind::MissingFrames, applied + 1..applied + 2, detail)?;
        }
        _ => {}
    }
    Ok(match checkpoint {
        Seen::Applied(applied) => (applied, applied + 1),
        // Without a checkpoint the journal begins where it begins: that has been judged.
        Seen::Absent | Seen::Unreadable => (0, first.unwrap_or(1)),
    })
}

/// The journal's files in order, and the number of the next. A last one without a header never held a frame: it is
/// overwritten by the next.
fn sources(
    files: &dyn FileLayer,
    dir: &Path,
    names: &[String],
    judge: &mut dyn Judge,
) -> Result<(Vec<Source>, u64), OpenError> {
    let mut ids: Vec<u64> = names.iter().filter_map(|name| file_id(name)).collect();
    ids.sort_unstable();
    let mut next_file = ids.last().map_or(1, |last| last + 1);
    let mut sources = Vec::with_capacity(ids.len());
    for (nth, id) in ids.iter().enumerate() {
        let name = file_name(*id);
        let reading = || format!("reading {name}");
        let file = files.open(&dir.join(&name)).map_err(OpenError::io(reading()))?;
        let mut header = [0; FILE_HEADER_BYTES];
        let got = read_full(&*file, &mut header, 0).map_err(OpenError::io(reading()))?;
        let first = match FileHeader::decode(FileKind::Journal, &header[..got]) {
            Ok(header) if header.id == *id => header.first,
            Err(HeaderFault::Version(found)) => {
                return Err(OpenError::OtherFormat { file: name, found, known: frame::FORMAT_VERSION });
            }
            _ => {
                let bytes = read_whole(&*file, &name)?;
                let first = frame::find_later(*id, &bytes, 0, 0).and_then(|at| FrameHeader::decode(*id, &bytes[at..]));
                if first.is_none() && nth + 1 == ids.len() {
                    next_file = *id;
                    continue;
                }
                let detail = "the file's header is not what was written".to_owned();
                judge.damaged(Fault { kind: Kind::BadHeader, file: name.clone(), offset: 0, frames: 0..0, detail })?;
                let Some(first) = first else { continue };
                first.sequence
            }
        };
        sources.push(Source { id: *id, name, file, first, used: 0, torn: false, holes: Vec::new() });
    }
    Ok((sources, next_file))
}

/// The file that follows in the journal.
#[derive(Debug, Clone, Copy)]
struct Next {
    id: u64,
    /// From here on, frames of the file before failed to sync and were never acknowledged.
    first: u64,
}

/// What a place without a whole frame means.
enum Broken {
    /// Nothing was written there.
    Unused,
    /// A frame that was never finished.
    Torn,
    /// Damage, and no frame behind it; the next frame is this one.
    Ends(u64),
    /// Damage, and a whole frame behind it: where, and its number.
    Resumes(usize, u64),
}

impl Walk<'_> {
    /// Goes through a file's frames below the first that the next file declares its own; returns the next sequence.
    fn file(&mut self, source: &mut Source, next_file: Option<Next>) -> Result<u64, OpenError> {
        let bytes = read_whole(&*source.file, &source.name)?;
        let mut sequence = source.first;
        source.used = FILE_HEADER_BYTES.min(bytes.len());
        while next_file.is_none_or(|next| sequence < next.first) {
            let rest = &bytes[source.used..];
            let whole = frame::split(source.id, rest).filter(|(header, ..)| header.sequence == sequence);
            let Some((header, head, bodies)) = whole else {
                match self.broken(source, &bytes, sequence, next_file)? {
                    Broken::Unused => return Ok(sequence),
                    Broken::Torn => {
                        source.torn = true;
                        return Ok(sequence);
                    }
                    Broken::Ends(next) => return Ok(next),
                    Broken::Resumes(at, next) => {
                        source.holes.push(source.used..at);
                        (source.used, sequence) = (at, next);
                        continue;
                    }
                }
            };
            if sequence > self.applied || self.judge.thorough() {
                let behind = source.used + header.frame_len();
                let may_be_last = sequence > self.applied && next_file.is_none();
                let last = || may_be_last && frame::find_later(source.id, &bytes, behind, sequence).is_none();
                match self.frame(source, header, head, bodies, &last)? {
                    Bodies::Torn => {
                        source.torn = true;
                        return Ok(sequence);
                    }
                    Bodies::Unreadable => source.holes.push(source.used..behind),
                    Bodies::Read => {}
                }
            }
            source.used += header.frame_len();
            sequence += 1;
        }
        Ok(sequence)
    }

    fn broken(
        &mut self,
        source: &Source,
        bytes: &[u8],
        sequence: u64,
        next_file: Option<Next>,
    ) -> Result<Broken, OpenError> {
        let (at, rest) = (source.used, &bytes[source.used..]);
        let is_next = next_file.is_some_and(|next| next.id == source.id + 1);
        if !is_next && rest.iter().all(|byte| *byte == 0) {
            // Reserved room that nothing was written to; if frames lack, they were in a file that is missing.
            return Ok(Broken::Unused);
        }
        let void_from = next_file.map(|next| next.first);
        // If the frame's own header is whole, what its bodies look like says nothing about frames behind it.
        let own = FrameHeader::decode(source.id, rest).filter(|header| header.sequence == sequence);
        let after = own.map_or(at, |header| at + header.frame_len());
        let later = frame::find_later(source.id, bytes, after, sequence)
            .and_then(|later| Some((later, FrameHeader::decode(source.id, &bytes[later..])?.sequence)))
            .filter(|(_, number)| void_from.is_none_or(|void| *number < void));
        let mut damaged = |frames: Range<u64>, detail| {
            self.judge.damaged(Fault { kind: Kind::BadFrame, file: source.name.clone(), offset: at, frames, detail })
        };
        match (later, void_from) {
            (Some((later, number)), _) => {
                let detail = format!("frame {sequence} is not whole, and a later one at byte {later} is");
                damaged(sequence..number, detail)?;
                Ok(Broken::Resumes(later, number))
            }
            (None, Some(void)) => {
                let detail = format!("frame {sequence} is not whole, and frames up to {} were written", void - 1);
                damaged(sequence..void, detail)?;
                Ok(Broken::Ends(void))
            }
            (None, None) => Ok(Broken::Torn),
        }
    }

    /// Checks one frame's bodies. They are torn if they do not match and the frame is the last one.
    fn frame(
        &mut self,
        source: &Source,
        header: FrameHeader,
        head: &[u8],
        bodies: &[u8],
        last: &dyn Fn() -> bool,
    ) -> Result<Bodies, OpenError> {
        let sequence = header.sequence;
        let mut unreadable = |offset, detail| {
            let (kind, frames) = (Kind::BadFrame, sequence..sequence + 1);
            self.judge.damaged(Fault { kind, file: source.name.clone(), offset, frames, detail })
        };
        let ops: Vec<Op> = match postcard::from_bytes(head) {
            Ok(ops) => ops,
            Err(error) => {
                unreadable(source.used, format!("a frame's head cannot be read: {error}"))?;
                return Ok(Bodies::Unreadable);
            }
        };
        let (mut offset, mut suspects) = (0, Vec::new());
        for (owner, head) in ops.iter().flat_map(Op::bodies) {
            let place = source.used + FRAME_HEADER_BYTES + header.head_len as usize + offset;
            let end = offset + head.body_len as usize;
            let Some(body) = bodies.get(offset..end).filter(|_| head.meta_len <= head.body_len) else {
                unreadable(place, "a body is shorter than its head says".to_owned())?;
                return Ok(Bodies::Unreadable);
            };
            if crc32c::crc32c(body) != head.crc && !frame::is_erased(body) {
                suspects.push(Suspect { owner, file: source.name.clone(), offset: place, frame: sequence });
            }
            offset = end;
        }
        if !suspects.is_empty() && last() {
            return Ok(Bodies::Torn);
        }
        self.suspects.extend(suspects.into_iter().map(|suspect| (suspect.owner, suspect)));
        if !self.suspects.is_empty() {
            ops.iter().for_each(|op| self.excuse(op));
        }
        Ok(Bodies::Read)
    }

    /// What an op says of bodies before it that do not match: erased, or gone with their topic or by retention.
    fn excuse(&mut self, op: &Op) {
        match op {
            Op::Erased { lane, sequence } => drop(self.suspects.remove(&Owner::Log(*lane, *sequence))),
            Op::Unscheduled { topic, number } => drop(self.suspects.remove(&Owner::Scheduled(*topic, *number))),
            Op::Due { topic, number, lane, sequence, .. } => {
                if let Some(suspect) = self.suspects.remove(&Owner::Scheduled(*topic, *number)) {
                    let owner = Owner::Log(*lane, *sequence);
                    self.suspects.insert(owner, Suspect { owner, ..suspect });
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

/// What became of looking at a frame's bodies.
enum Bodies {
    Read,
    Torn,
    Unreadable,
}
