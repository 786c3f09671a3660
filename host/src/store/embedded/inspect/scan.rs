//! Reading a segment that may be damaged. Invariant: every whole block is shown, in order, and what lies between is named
//! by its messages, its place and what is wrong. Holds one block in memory, and the rest of one segment where it has to
//! search for the next whole block.

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;

use super::finding::Kind;
use crate::store::embedded::files::{DataFile, FileLayer, read_full};
use crate::store::embedded::frame::{
    self, FILE_HEADER_BYTES, FORMAT_VERSION, FRAME_HEADER_BYTES, FileHeader, FileKind, FrameHeader, HeaderFault,
};
use crate::store::embedded::ops::LaneId;
use crate::store::embedded::recovery::OpenError;
use crate::store::embedded::segment::{Block, SegmentFiles, lane_number, take_apart};

/// What should be in a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// The sequence of its first message.
    pub first: u64,
    /// The sequence after the last, and the bytes written. Unknown without a checkpoint: then what follows the last whole
    /// block is not missed.
    pub end: Option<(u64, u64)>,
}

/// A part of a segment.
pub(super) enum Piece {
    /// A block, and those of its messages that do not match their checksums: their sequences, and where they stand.
    Block { block: Block, bad: Vec<(u64, u64)>, erased: Vec<u64>, bytes: u64 },
    /// Messages that no whole block has. The range is empty for a bad header of the file.
    Gap { messages: Range<u64>, kind: Kind, offset: u64, detail: String, bytes: u64 },
}

/// Reads a segment from its beginning to its end.
///
/// # Errors
/// `OtherFormat`; `Io` where the disk refuses; what `show` says.
pub(super) fn scan(
    (files, dir): (&dyn FileLayer, &Path),
    lane: LaneId,
    extent: Extent,
    show: &mut dyn FnMut(Piece) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let name = SegmentFiles::relative(lane, extent.first);
    let file = match files.open(&dir.join(&name)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let Some((end, _)) = extent.end else { return Ok(()) };
            let (messages, detail) = (extent.first..end, "the file is missing".to_owned());
            return show(Piece::Gap { messages, kind: Kind::MissingSegment, offset: 0, detail, bytes: 0 });
        }
        Err(error) => return Err(OpenError::io(format!("opening {name}"))(error)),
    };
    let len = file.len().map_err(OpenError::io(format!("reading {name}")))?;
    let limit = extent.end.map_or(len, |(_, written)| written.min(len));
    let scan = Scan { file: &*file, name, lane, extent, len, limit };
    scan.header(show)?;
    scan.blocks(show)
}

struct Scan<'a> {
    file: &'a dyn DataFile,
    name: String,
    lane: LaneId,
    extent: Extent,
    len: u64,
    limit: u64,
}

impl Scan<'_> {
    fn header(&self, show: &mut dyn FnMut(Piece) -> Result<(), OpenError>) -> Result<(), OpenError> {
        let header = self.bytes(0, (FILE_HEADER_BYTES as u64).min(self.len))?;
        let expected = FileHeader { id: lane_number(self.lane), first: self.extent.first };
        match FileHeader::decode(FileKind::Segment, &header) {
            Ok(header) if header == expected => Ok(()),
            Err(HeaderFault::Version(found)) => {
                Err(OpenError::OtherFormat { file: self.name.clone(), found, known: FORMAT_VERSION })
            }
            // Shorter than that, it is told with the blocks that are missing.
            _ if header.len() < FILE_HEADER_BYTES => Ok(()),
            _ => {
                let detail = "the file's header is not what was written".to_owned();
                show(Piece::Gap { messages: 0..0, kind: Kind::BadHeader, offset: 0, detail, bytes: 0 })
            }
        }
    }

    fn blocks(&self, show: &mut dyn FnMut(Piece) -> Result<(), OpenError>) -> Result<(), OpenError> {
        let (mut at, mut next) = (FILE_HEADER_BYTES as u64, self.extent.first);
        while self.extent.end.map_or(at < self.limit, |(end, _)| next < end) {
            match self.block(at, next)? {
                Ok(piece) => {
                    let Piece::Block { block, bytes, .. } = &piece else { return Ok(()) };
                    (at, next) = (at + bytes, block.first + block.entries.len() as u64);
                    show(piece)?;
                }
                Err(detail) => {
                    let (resumes, then) = match self.later(at, next)? {
                        Some(later) => later,
                        None => return self.rest(at, next, detail, show),
                    };
                    let (messages, kind, bytes) = (next..then, Kind::BadBlock, resumes - at);
                    show(Piece::Gap { messages, kind, offset: at, detail: detail.to_owned(), bytes })?;
                    (at, next) = (resumes, then);
                }
            }
        }
        Ok(())
    }

    /// What follows the last whole block.
    fn rest(
        &self,
        at: u64,
        next: u64,
        detail: &str,
        show: &mut dyn FnMut(Piece) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        let Some((end, written)) = self.extent.end else { return Ok(()) };
        let (messages, bytes) = (next..end, self.limit.saturating_sub(at));
        if self.len >= written {
            let detail = detail.to_owned();
            return show(Piece::Gap { messages, kind: Kind::BadBlock, offset: at, detail, bytes });
        }
        let detail = format!("the file has {} bytes, and {written} were written", self.len);
        show(Piece::Gap { messages, kind: Kind::TruncatedSegment, offset: self.len, detail, bytes })
    }

    /// The block that begins here; what is wrong if there is none.
    fn block(&self, at: u64, next: u64) -> Result<Result<Piece, &'static str>, OpenError> {
        let header = self.bytes(at, (self.limit.saturating_sub(at)).min(FRAME_HEADER_BYTES as u64))?;
        let Some(header) = FrameHeader::decode(lane_number(self.lane), &header).filter(|found| found.sequence == next)
        else {
            return Ok(Err("a block's header is not what was written"));
        };
        let len = header.frame_len() as u64;
        if at + len > self.limit {
            return Ok(Err("a block goes beyond the end of the file"));
        }
        let bytes = Bytes::from(self.bytes(at, len)?);
        let Some((header, head, bodies)) = frame::split(lane_number(self.lane), &bytes) else {
            return Ok(Err("a block's head does not match its checksum"));
        };
        let (mut bad, mut erased) = (Vec::new(), Vec::new());
        let entries = take_apart(&header, head, &bytes.slice_ref(bodies), &mut |sequence, place, body| {
            if frame::is_erased(body) {
                erased.push(sequence);
            } else {
                bad.push((sequence, at + place as u64));
            }
            true
        });
        Ok(entries.map_err(|(_, detail)| detail).and_then(|entries| {
            // A block without messages would be read for ever.
            let block = Some(Block { first: next, entries }).filter(|block| !block.entries.is_empty());
            let block = block.ok_or("a block has no messages")?;
            Ok(Piece::Block { block, bad, erased, bytes: len })
        }))
    }

    /// The next whole block behind a bad one: where it begins, and its first message.
    fn later(&self, at: u64, next: u64) -> Result<Option<(u64, u64)>, OpenError> {
        let rest = self.bytes(at, self.limit.saturating_sub(at))?;
        let number = lane_number(self.lane);
        // If the block's own header is whole, what its messages look like says nothing about blocks behind it.
        let own = FrameHeader::decode(number, &rest).filter(|header| header.sequence == next);
        let from = own.map_or(0, |header| header.frame_len());
        Ok(frame::find_later(number, &rest, from, next).and_then(|place| {
            let first = FrameHeader::decode(number, &rest[place..])?.sequence;
            let end = self.extent.end.map_or(u64::MAX, |(end, _)| end);
            (first < end).then_some((at + place as u64, first))
        }))
    }

    fn bytes(&self, at: u64, len: u64) -> Result<Vec<u8>, OpenError> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        let reading = || OpenError::io(format!("reading {} at byte {at}", self.name));
        let got = read_full(self.file, &mut bytes, at).map_err(reading())?;
        bytes.truncate(got);
        Ok(bytes)
    }
}
