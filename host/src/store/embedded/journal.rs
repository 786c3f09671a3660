//! The journal: files of frames, each frame a group commit. Invariant: a frame is reported written only after its sync;
//! after a failed one no byte of it will ever be replayed. Never knows what a frame says.
//!
//! A file's header names the sequence of its first frame. A frame in an earlier file with that sequence or a higher one
//! is void: its sync failed, and the writer moved on to the new file without it.
//!
//! When room runs out, what takes room stops before what gives it back: see [`Purpose`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prometheus::Histogram;

use super::core::Core;
use super::files::{DataFile, FileLayer};
use super::frame::{FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FileKind, FrameHeader};
use crate::telemetry::Stopwatch;

/// The sizes of files.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Room in the largest, unless one frame is larger. A checkpoint frees whole files, so this is also the grain in which
    /// the journal's space comes back.
    most: u64,
    /// Room in the first file that a process makes, doubled from file to file: little, for stores that see little. The
    /// least that messages go into.
    least: u64,
    /// Room at the end of each file that messages leave for [`Purpose::Upkeep`]: some ten thousand settlements, and a file
    /// system of which the journal has the rest can be emptied by retention, purges and deletions.
    spare: u64,
    /// Room in a file that is made when there is none for more: for upkeep alone.
    last: u64,
}

impl Sizes {
    /// From 64 MiB: 4 MiB, 256 KiB, 64 KiB.
    fn new(most: u64) -> Sizes {
        Sizes { most, least: most / 16, spare: most / 256, last: most / 1024 }
    }

    /// What a frame of this purpose leaves free behind it.
    fn spare(&self, purpose: Purpose) -> u64 {
        match purpose {
            Purpose::Messages => self.spare,
            Purpose::Upkeep => 0,
        }
    }

    /// The size to try after `room`: the least that messages go into, then the least of all.
    fn next_smaller(&self, room: u64, last: u64) -> u64 {
        if room > self.least { self.least } else { last }
    }
}

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Messages: refused as soon as no file of the usual size can be made.
    Messages,
    /// Settlements, and what removes messages: written while there is room for it alone.
    Upkeep,
}

/// Why a frame was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Nothing of it is or will be stored.
    #[error("{0}")]
    NotWritten(String),
    /// It may be found after a crash.
    #[error("{0}")]
    Unknown(String),
}

/// Writes frames.
pub struct Journal {
    files: Arc<dyn FileLayer>,
    dir: PathBuf,
    sizes: Sizes,
    current: Option<Current>,
    /// The id of the next file.
    next_file: u64,
    /// The sequence of the next frame.
    next_sequence: u64,
    buffer: Vec<u8>,
    made: Vec<(u64, u64)>,
    room_next: u64,
    /// No file of the usual size could be made, the last time that it was tried.
    full: bool,
    syncs: Histogram,
}

struct Current {
    id: u64,
    file: Arc<dyn DataFile>,
    at: u64,
    room: u64,
}

/// A file's name.
#[must_use]
pub fn file_name(id: u64) -> String {
    format!("journal-{id:010}.log")
}

/// The id in a file's name.
#[must_use]
pub fn file_id(name: &str) -> Option<u64> {
    name.strip_prefix("journal-")?.strip_suffix(".log")?.parse().ok()
}

impl Journal {
    /// The journal of a store, which will write `next_sequence` into a new file `next_file`.
    #[must_use]
    pub fn new(core: &Core, next_file: u64, next_sequence: u64) -> Journal {
        let sizes = Sizes::new(core.limits.journal_file_bytes);
        Journal {
            files: Arc::clone(&core.files),
            dir: core.dir.clone(),
            sizes,
            current: None,
            next_file,
            next_sequence,
            buffer: Vec::new(),
            made: Vec::new(),
            room_next: sizes.least,
            full: false,
            syncs: core.syncs.clone(),
        }
    }

    /// The files made since this was last asked: id, and the sequence of the first frame.
    pub fn take_made(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.made)
    }

    /// Whether no file of the usual size could be made, the last time that it was tried.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Where it is full, tries again to make a file of the usual size.
    ///
    /// # Errors
    /// `NotWritten`: there is still no room.
    pub fn make_room(&mut self) -> Result<(), JournalError> {
        if self.full { self.rotate(0, Purpose::Messages) } else { Ok(()) }
    }

    /// Writes one frame and syncs it; returns its sequence.
    ///
    /// # Errors
    /// See [`JournalError`]; the journal can be used again after either.
    pub fn write<'a>(
        &mut self,
        purpose: Purpose,
        head: &[u8],
        bodies: impl Iterator<Item = &'a [u8]>,
    ) -> Result<u64, JournalError> {
        let sequence = self.next_sequence;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.resize(FRAME_HEADER_BYTES, 0);
        buffer.extend_from_slice(head);
        bodies.for_each(|body| buffer.extend_from_slice(body));
        let result = self.write_buffer((purpose, sequence), head, &mut buffer);
        // One huge frame must not pin its memory for ever.
        if buffer.capacity() <= 16 << 20 {
            self.buffer = buffer;
        }
        result
    }

    fn write_buffer(
        &mut self,
        (purpose, sequence): (Purpose, u64),
        head: &[u8],
        buffer: &mut [u8],
    ) -> Result<u64, JournalError> {
        let len = buffer.len() as u64;
        let needed = len + self.sizes.spare(purpose);
        let body_len = u32::try_from(buffer.len() - FRAME_HEADER_BYTES - head.len())
            .map_err(|_| JournalError::NotWritten("a batch of more than 4 GiB".to_owned()))?;
        if self.current.as_ref().is_none_or(|current| current.at + needed > current.room) {
            self.rotate(len, purpose)?;
        }
        let Some(current) = &mut self.current else {
            return Err(JournalError::NotWritten("the journal has no file to write to".to_owned()));
        };
        let Some(header) = FrameHeader::new(current.id, sequence, head, body_len) else {
            return Err(JournalError::NotWritten("a frame with a head of more than 4 GiB".to_owned()));
        };
        buffer[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        if let Err(error) = current.file.write_at(buffer, current.at) {
            return Err(self.undo_write(&error));
        }
        let watch = Stopwatch::start();
        let synced = current.file.sync();
        self.syncs.observe(watch.elapsed().as_secs_f64());
        if let Err(error) = synced {
            // What the page cache holds now is not to be trusted, and a later sync that succeeds proves nothing. The
            // next write opens a file that declares this frame void.
            self.current = None;
            return Err(JournalError::Unknown(format!("syncing the journal failed: {error}")));
        }
        current.at += len;
        self.next_sequence += 1;
        Ok(sequence)
    }

    /// Takes back whatever part of a frame reached the file.
    fn undo_write(&mut self, error: &std::io::Error) -> JournalError {
        let Some(current) = self.current.take() else {
            return JournalError::NotWritten(error.to_string());
        };
        // The rest of the preallocated file goes with it; the next write starts a new file.
        let undone = current.file.set_len(current.at).and_then(|()| current.file.sync());
        match undone {
            Ok(()) => JournalError::NotWritten(format!("writing the journal failed: {error}")),
            Err(undo) => {
                JournalError::Unknown(format!("writing the journal failed ({error}), and so did undoing ({undo})"))
            }
        }
    }

    /// Starts a new file with room for a frame of `frame_bytes`: of the size that is next, or a smaller one where there is
    /// no room for that.
    fn rotate(&mut self, frame_bytes: u64, purpose: Purpose) -> Result<(), JournalError> {
        let id = self.next_file;
        let path = self.dir.join(file_name(id));
        let needed = FILE_HEADER_BYTES as u64 + frame_bytes + self.sizes.spare(purpose);
        let (file, room) = match self.reserve(&path, needed, purpose) {
            Ok(reserved) => reserved,
            Err(error) => {
                // It has no header yet, so it says nothing; the current file goes on taking what still fits.
                self.full = true;
                return Err(self.give_up(&path, &error));
            }
        };
        let header = FileHeader { id, first: self.next_sequence }.encode(FileKind::Journal);
        let made = file.write_at(&header, 0).and_then(|()| file.sync()).and_then(|()| self.files.sync_dir(&self.dir));
        if let Err(error) = made {
            // The header may be durable, and it voids this sequence in all earlier files: they take no more frames.
            self.current = None;
            return Err(self.give_up(&path, &error));
        }
        self.current = Some(Current { id, file, at: FILE_HEADER_BYTES as u64, room });
        self.next_file = id + 1;
        self.made.push((id, self.next_sequence));
        self.full = room < self.sizes.least;
        if room >= self.room_next {
            self.room_next = (self.room_next * 2).min(self.sizes.most);
        }
        Ok(())
    }

    /// A file at `path` with room for at least `needed` bytes, and the room it has.
    fn reserve(&self, path: &Path, needed: u64, purpose: Purpose) -> std::io::Result<(Arc<dyn DataFile>, u64)> {
        let last = match purpose {
            Purpose::Messages => self.sizes.least,
            Purpose::Upkeep => self.sizes.last,
        };
        let mut room = self.room_next.max(needed);
        loop {
            // Created anew each time: a reservation that failed may have taken some of the room.
            match self.files.create(path).and_then(|file| file.preallocate(room).map(|()| file)) {
                Ok(file) => return Ok((file, room)),
                Err(_) if room > last.max(needed) => room = self.sizes.next_smaller(room, last).max(needed),
                Err(error) => return Err(error),
            }
        }
    }

    fn give_up(&self, path: &Path, error: &std::io::Error) -> JournalError {
        if let Err(error) = self.files.remove(path) {
            tracing::warn!(file = %path.display(), %error, "a journal file that could not be made stays behind");
        }
        JournalError::NotWritten(format!("no room for a new journal file: {error}"))
    }
}
