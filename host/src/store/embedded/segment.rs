//! Segments: where a lane's messages stay, in blocks, once they are written behind from the journal. Invariant: what a
//! read returns has agreed with its checksums. Never decides when to write, sync or remove: `maintenance` does.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::files::{DataFile, FileLayer, read_full};
use super::frame::{self, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FileKind, FrameHeader};
use super::ops::{Body, Entry, Head, LaneId};
use crate::clock::Timestamp;
use crate::message::TopicId;
use crate::store::StoreError;

/// Bodies in one block: what one read from disk brings in, and what damage can spoil at most.
pub const BLOCK_BYTES: u64 = 128 << 10;
/// Messages in one block, so that its head stays small when bodies are.
pub const BLOCK_ENTRIES: usize = 1024;
/// A segment is closed at this size: the grain in which retention gives space back.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// What a block's head says of one message.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct BlockEntry {
    stamp: u64,
    at: Timestamp,
    head: Head,
}

/// Messages of one lane, one after the other, in memory.
#[derive(Debug)]
pub struct Block {
    /// The sequence of the first.
    pub first: u64,
    /// They.
    pub entries: Vec<Entry>,
}

impl Block {
    /// The message with this sequence.
    #[must_use]
    pub fn get(&self, sequence: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(sequence.checked_sub(self.first)?).ok()?)
    }
}

/// Ranges over some messages, for finding one by time or id without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The sequence of the first.
    pub first: u64,
    /// The sequence after the last.
    pub end: u64,
    /// What they count for.
    pub bytes: u64,
    /// The earliest time in their ids.
    pub id_min: Timestamp,
    /// The latest time in their ids.
    pub id_max: Timestamp,
    /// When the first entered the log.
    pub at_min: Timestamp,
    /// When the last entered the log.
    pub at_max: Timestamp,
}

impl Span {
    /// Over messages that follow one another from `first`.
    pub(super) fn of<'a>(first: u64, entries: impl Iterator<Item = (&'a Head, Timestamp)>) -> Span {
        let mut span = Span {
            first,
            end: first,
            bytes: 0,
            id_min: Timestamp::MAX,
            id_max: Timestamp(i64::MIN),
            at_min: Timestamp::MAX,
            at_max: Timestamp(i64::MIN),
        };
        for (head, at) in entries {
            span.end += 1;
            span.bytes += head.cost();
            span.id_min = span.id_min.min(head.id.timestamp());
            span.id_max = span.id_max.max(head.id.timestamp());
            span.at_min = span.at_min.min(at);
            span.at_max = span.at_max.max(at);
        }
        span
    }

    /// Over these and what follows them.
    pub(super) fn join(self, next: Span) -> Span {
        Span {
            first: self.first,
            end: next.end,
            bytes: self.bytes + next.bytes,
            id_min: self.id_min.min(next.id_min),
            id_max: self.id_max.max(next.id_max),
            at_min: self.at_min.min(next.at_min),
            at_max: self.at_max.max(next.at_max),
        }
    }

    /// Whether an id of this time may be here.
    #[must_use]
    pub fn may_have(&self, id_at: Timestamp) -> bool {
        self.id_min <= id_at && id_at <= self.id_max
    }
}

/// Where a block is.
#[derive(Debug, Clone, Copy)]
pub struct BlockRef {
    /// What it holds.
    pub span: Span,
    /// Where it begins in its file.
    pub offset: u64,
    /// Its length.
    pub len: u32,
}

/// One segment file as the state knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Segment {
    /// What it holds.
    pub span: Span,
    /// How much of the file is written.
    pub len: u64,
    /// Takes no more blocks.
    pub sealed: bool,
    /// Its blocks, if they are known: read from the file when they are first needed.
    #[serde(skip)]
    pub index: Option<Arc<Vec<BlockRef>>>,
}

/// Writes and reads segment files below one directory.
#[derive(Clone)]
pub struct SegmentFiles {
    files: Arc<dyn FileLayer>,
    dir: PathBuf,
}

impl SegmentFiles {
    /// Below the data directory `dir`.
    #[must_use]
    pub fn new(files: Arc<dyn FileLayer>, dir: PathBuf) -> SegmentFiles {
        SegmentFiles { files, dir }
    }

    /// The directory of a topic's segments, relative to the data directory.
    #[must_use]
    pub fn topic_dir_name(topic: u32) -> String {
        format!("topic-{topic}")
    }

    /// The directory of a topic's segments.
    #[must_use]
    pub fn topic_dir(&self, topic: u32) -> PathBuf {
        self.dir.join(Self::topic_dir_name(topic))
    }

    /// A segment's file name in its topic's directory.
    #[must_use]
    pub fn file_name(lane: LaneId, first: u64) -> String {
        format!("{:02}-{}-{first:015}.seg", lane.partition, lane.lane)
    }

    /// What a segment's file name says: its lane, and its first message.
    #[must_use]
    pub fn parse_name(topic: TopicId, name: &str) -> Option<(LaneId, u64)> {
        let mut parts = name.strip_suffix(".seg")?.split('-');
        let (partition, lane, first) = (parts.next()?, parts.next()?, parts.next()?);
        let id = LaneId { topic, partition: partition.parse().ok()?, lane: lane.parse().ok()? };
        let first = first.parse().ok()?;
        (Self::file_name(id, first) == name).then_some((id, first))
    }

    /// A segment's name relative to the data directory, as errors give it.
    #[must_use]
    pub fn relative(lane: LaneId, first: u64) -> String {
        format!("{}/{}", Self::topic_dir_name(lane.topic.0), Self::file_name(lane, first))
    }

    /// A segment's path.
    #[must_use]
    pub fn path(&self, lane: LaneId, first: u64) -> PathBuf {
        self.topic_dir(lane.topic.0).join(Self::file_name(lane, first))
    }

    /// Writes a block behind the last one of `segment`, or the first block of a new segment. Not synced.
    ///
    /// # Errors
    /// The file layer's; the segment is then as before.
    pub fn write(&self, lane: LaneId, segment: Option<&Segment>, block: &Block) -> std::io::Result<Segment> {
        let span = Span::of(block.first, block.entries.iter().map(|entry| (&entry.body.head, entry.at)));
        let first = segment.map_or(block.first, |segment| segment.span.first);
        let bytes = encode(lane, block);
        let (file, at) = match segment {
            Some(segment) => (self.files.open(&self.path(lane, first))?, segment.len),
            None => {
                self.files.create_dir_all(&self.topic_dir(lane.topic.0))?;
                let file = self.files.create(&self.path(lane, first))?;
                file.write_at(&FileHeader { id: lane_number(lane), first }.encode(FileKind::Segment), 0)?;
                (file, FILE_HEADER_BYTES as u64)
            }
        };
        file.write_at(&bytes, at)?;
        let block_ref = BlockRef { span, offset: at, len: bytes.len() as u32 };
        let index = match segment {
            None => Some(Arc::new(vec![block_ref])),
            Some(segment) => segment.index.clone().map(|mut index| {
                Arc::make_mut(&mut index).push(block_ref);
                index
            }),
        };
        let span = segment.map_or(span, |segment| segment.span.join(span));
        Ok(Segment { span, len: at + bytes.len() as u64, sealed: false, index })
    }

    /// Syncs a segment's file.
    ///
    /// # Errors
    /// The file layer's.
    pub fn sync(&self, lane: LaneId, first: u64) -> std::io::Result<()> {
        self.files.open(&self.path(lane, first))?.sync()
    }

    /// Syncs the directories that hold segments of these topics.
    ///
    /// # Errors
    /// The file layer's.
    pub fn sync_dirs(&self, topics: impl Iterator<Item = u32>) -> std::io::Result<()> {
        for topic in topics {
            self.files.sync_dir(&self.topic_dir(topic))?;
        }
        self.files.sync_dir(&self.dir)
    }

    /// Removes a segment's file.
    ///
    /// # Errors
    /// The file layer's.
    pub fn remove(&self, lane: LaneId, first: u64) -> std::io::Result<()> {
        self.files.remove(&self.path(lane, first))
    }

    /// Reads where a segment's blocks are: headers and heads, not bodies.
    ///
    /// # Errors
    /// `Damaged` where a header or head does not agree with its checksum, or the file is shorter than it was.
    pub fn index(&self, lane: LaneId, segment: &Segment) -> Result<Vec<BlockRef>, StoreError> {
        let file = self.open(lane, segment)?;
        let mut blocks = Vec::new();
        let mut at = FILE_HEADER_BYTES as u64;
        let mut next = segment.span.first;
        while at < segment.len {
            let mut header_bytes = [0; FRAME_HEADER_BYTES];
            self.fill(&*file, &mut header_bytes, lane, segment, at)?;
            let header = FrameHeader::decode(lane_number(lane), &header_bytes)
                .filter(|header| header.sequence == next)
                .ok_or_else(|| damaged(lane, segment, at, "a block's header is not what was written"))?;
            let mut head = vec![0; header.head_len as usize];
            self.fill(&*file, &mut head, lane, segment, at + FRAME_HEADER_BYTES as u64)?;
            let entries = decode_head(&header, &head)
                .ok_or_else(|| damaged(lane, segment, at, "a block's head does not match its checksum"))?;
            let span = Span::of(header.sequence, entries.iter().map(|entry| (&entry.head, entry.at)));
            blocks.push(BlockRef { span, offset: at, len: header.frame_len() as u32 });
            next = span.end;
            at += header.frame_len() as u64;
        }
        Ok(blocks)
    }

    /// Reads one block. A body that does not match its checksum is damage unless `gone` says that the message is not in
    /// the log any more.
    ///
    /// # Errors
    /// `Damaged`, or `Unavailable` if the file cannot be read.
    pub fn read(
        &self,
        lane: LaneId,
        segment: &Segment,
        block: &BlockRef,
        gone: &dyn Fn(u64) -> bool,
    ) -> Result<Block, StoreError> {
        let file = self.open(lane, segment)?;
        let mut bytes = vec![0; block.len as usize];
        self.fill(&*file, &mut bytes, lane, segment, block.offset)?;
        let bytes = Bytes::from(bytes);
        let (header, head, bodies) = frame::split(lane_number(lane), &bytes)
            .ok_or_else(|| damaged(lane, segment, block.offset, "a block does not match its checksum"))?;
        let bodies = bytes.slice_ref(bodies);
        let entries =
            take_apart(&header, head, &bodies, &mut |sequence, _, body| frame::is_erased(body) || gone(sequence));
        let entries = entries.map_err(|(at, detail)| damaged(lane, segment, block.offset + at as u64, detail))?;
        Ok(Block { first: block.span.first, entries })
    }

    /// Overwrites the body of one message and syncs.
    ///
    /// # Errors
    /// The file layer's.
    pub fn erase(&self, lane: LaneId, segment: &Segment, block: &BlockRef, sequence: u64) -> Result<(), StoreError> {
        let whole = self.read(lane, segment, block, &|_| true)?;
        let bodies: usize = whole.entries.iter().map(|entry| entry.body.head.body_len as usize).sum();
        let before: usize = whole
            .entries
            .iter()
            .take((sequence - whole.first) as usize)
            .map(|entry| entry.body.head.body_len as usize)
            .sum();
        let Some(entry) = whole.get(sequence) else { return Ok(()) };
        let fill = vec![frame::ERASED_BYTE; entry.body.head.body_len as usize];
        let at = block.offset + (block.len as usize - bodies + before) as u64;
        let file = self.open(lane, segment)?;
        file.write_at(&fill, at).and_then(|()| file.sync()).map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    fn open(&self, lane: LaneId, segment: &Segment) -> Result<Arc<dyn DataFile>, StoreError> {
        self.files.open(&self.path(lane, segment.span.first)).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                damaged(lane, segment, 0, "the file is missing")
            } else {
                StoreError::Unavailable(format!("opening a segment failed: {error}"))
            }
        })
    }

    fn fill(
        &self,
        file: &dyn DataFile,
        buf: &mut [u8],
        lane: LaneId,
        segment: &Segment,
        at: u64,
    ) -> Result<(), StoreError> {
        match read_full(file, buf, at) {
            Ok(got) if got == buf.len() => Ok(()),
            Ok(_) => Err(damaged(lane, segment, at, "the file is shorter than what was written")),
            // What the disk refuses to give back is damage too, and it names the place.
            Err(error) => Err(damaged(lane, segment, at, &format!("reading failed: {error}"))),
        }
    }
}

/// Takes a whole block apart. `accepts` is asked about each body that does not match its checksum: its sequence, its place
/// in the block, itself.
///
/// # Errors
/// Where in the block something is wrong, and what.
pub(super) fn take_apart(
    header: &FrameHeader,
    head: &[u8],
    bodies: &Bytes,
    accepts: &mut dyn FnMut(u64, usize, &Bytes) -> bool,
) -> Result<Vec<Entry>, (usize, &'static str)> {
    let heads = decode_head(header, head).ok_or((0, "a block's head cannot be read"))?;
    let mut entries = Vec::with_capacity(heads.len());
    let mut at = 0;
    for (sequence, entry) in (header.sequence..).zip(heads) {
        let (place, end) = (FRAME_HEADER_BYTES + head.len() + at, at + entry.head.body_len as usize);
        let body = (end <= bodies.len()).then(|| bodies.slice(at..end));
        let body = body.ok_or((place, "a block is shorter than its head says"))?;
        if crc32c::crc32c(&body) != entry.head.crc && !accepts(sequence, place, &body) {
            return Err((place, "a message does not match its checksum"));
        }
        let body =
            Body::from_parts(entry.head, &body).ok_or((place, "a message's length is not what its head says"))?;
        entries.push(Entry { at: entry.at, stamp: entry.stamp, body });
        at = end;
    }
    Ok(entries)
}

fn damaged(lane: LaneId, segment: &Segment, offset: u64, detail: &str) -> StoreError {
    StoreError::Damaged { file: SegmentFiles::relative(lane, segment.span.first), offset, detail: detail.to_owned() }
}

/// A lane as a number, for the headers of its files.
#[must_use]
pub(super) fn lane_number(lane: LaneId) -> u64 {
    u64::from(lane.topic.0) << 24 | u64::from(lane.partition) << 8 | u64::from(lane.lane)
}

fn encode(lane: LaneId, block: &Block) -> Vec<u8> {
    let heads: Vec<BlockEntry> = block
        .entries
        .iter()
        .map(|entry| BlockEntry { stamp: entry.stamp, at: entry.at, head: entry.body.head })
        .collect();
    let head = postcard::to_stdvec(&heads).expect("plain numbers have no type that postcard refuses");
    let body_len: usize = block.entries.iter().map(|entry| entry.body.head.body_len as usize).sum();
    let header = FrameHeader::new(lane_number(lane), block.first, &head, body_len as u32)
        .expect("a block's head is bounded by `BLOCK_ENTRIES`");
    let mut bytes = Vec::with_capacity(header.frame_len());
    bytes.extend_from_slice(&header.encode());
    bytes.extend_from_slice(&head);
    for entry in &block.entries {
        bytes.extend_from_slice(&entry.body.meta);
        bytes.extend_from_slice(&entry.body.payload);
    }
    bytes
}

fn decode_head(header: &FrameHeader, head: &[u8]) -> Option<Vec<BlockEntry>> {
    if !header.head_matches(head) {
        return None;
    }
    postcard::from_bytes(head).ok()
}
