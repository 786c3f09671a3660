//! Frames: how bytes are laid out in journal and segment files. Invariant: a frame is whole (all checksums agree) or it
//! is told from a whole one. Never touches a file.
//!
//! A file begins with a header of [`FILE_HEADER_BYTES`]: magic, format version, kind, id, first sequence, CRC-32C. Frames
//! follow, each a fixed header ([`FRAME_HEADER_BYTES`]: magic, lengths, CRC of the head, file id, sequence, CRC of these),
//! a head (postcard) and the bodies. The head holds the CRC-32C of each body, so a body can be erased by overwriting it
//! with [`ERASED_BYTE`] and the frame stays whole. Numbers are little-endian.

/// Version of the files' format. Another one is refused. Version 1 came before the first release: it knew no history of
/// failures.
pub const FORMAT_VERSION: u32 = 2;
/// Length of a file's header.
pub const FILE_HEADER_BYTES: usize = 40;
/// Length of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 36;
/// What erased bodies are overwritten with. Not zero: zeros are what preallocated files hold where nothing was written.
pub const ERASED_BYTE: u8 = 0xe5;

const FRAME_MAGIC: [u8; 4] = *b"SLf1";

/// What kind of file this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A journal file: the id rises from file to file, the first sequence is that of its first frame.
    Journal,
    /// A segment: the id names topic, partition and lane, the first sequence is that of its first message.
    Segment,
    /// A checkpoint: the sequence is the last frame of the journal that it contains.
    Checkpoint,
}

impl FileKind {
    fn magic(self) -> [u8; 8] {
        match self {
            FileKind::Journal => *b"SLUICEjr",
            FileKind::Segment => *b"SLUICEsg",
            FileKind::Checkpoint => *b"SLUICEcp",
        }
    }
}

/// A file's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// See [`FileKind`].
    pub id: u64,
    /// See [`FileKind`].
    pub first: u64,
}

/// Why a file's header was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderFault {
    /// Not a header of this kind of file, or damaged.
    Bad,
    /// Written in another version of the format.
    Version(u32),
}

impl FileHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(self, kind: FileKind) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0; FILE_HEADER_BYTES];
        bytes[..8].copy_from_slice(&kind.magic());
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header. The version is looked at before the checksum: another format may have another header. But if the
    /// checksum holds with our version in its place, the version is what is damaged; and no format has the version 0, which
    /// is what a header has that was torn behind its magic.
    ///
    /// # Errors
    /// See [`HeaderFault`].
    pub fn decode(kind: FileKind, bytes: &[u8]) -> Result<FileHeader, HeaderFault> {
        if bytes.len() < FILE_HEADER_BYTES || bytes[..8] != kind.magic() {
            return Err(HeaderFault::Bad);
        }
        let version = u32_at(bytes, 8);
        if version != FORMAT_VERSION {
            let mut ours = [0; 36];
            ours.copy_from_slice(&bytes[..36]);
            ours[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
            let flipped = u32_at(bytes, 36) == crc32c::crc32c(&ours);
            let no_other = flipped || version == 0;
            return Err(if no_other { HeaderFault::Bad } else { HeaderFault::Version(version) });
        }
        if u32_at(bytes, 36) != crc32c::crc32c(&bytes[..36]) {
            return Err(HeaderFault::Bad);
        }
        Ok(FileHeader { id: u64_at(bytes, 16), first: u64_at(bytes, 24) })
    }
}

/// A frame's fixed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the head.
    pub head_len: u32,
    /// Bytes of all bodies.
    pub body_len: u32,
    /// The file it was written to: bytes that strayed from elsewhere are not taken for a frame.
    pub file: u64,
    /// Its number.
    pub sequence: u64,
    head_crc: u32,
}

impl FrameHeader {
    /// The header of a frame with this head; `None` if that has 4 GiB or more.
    #[must_use]
    pub fn new(file: u64, sequence: u64, head: &[u8], body_len: u32) -> Option<FrameHeader> {
        let head_len = u32::try_from(head.len()).ok()?;
        Some(FrameHeader { head_len, body_len, file, sequence, head_crc: crc32c::crc32c(head) })
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        FRAME_HEADER_BYTES + self.head_len as usize + self.body_len as usize
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[..4].copy_from_slice(&FRAME_MAGIC);
        bytes[4..8].copy_from_slice(&self.head_len.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.head_crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.file.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header that belongs to `file`; `None` if these bytes are none.
    #[must_use]
    pub fn decode(file: u64, bytes: &[u8]) -> Option<FrameHeader> {
        if bytes.len() < FRAME_HEADER_BYTES || bytes[..4] != FRAME_MAGIC {
            return None;
        }
        let header = FrameHeader {
            head_len: u32_at(bytes, 4),
            body_len: u32_at(bytes, 8),
            head_crc: u32_at(bytes, 12),
            file: u64_at(bytes, 16),
            sequence: u64_at(bytes, 24),
        };
        (u32_at(bytes, 32) == crc32c::crc32c(&bytes[..32]) && header.file == file).then_some(header)
    }

    /// Whether this is the head that the header was made for.
    #[must_use]
    pub fn head_matches(&self, head: &[u8]) -> bool {
        head.len() == self.head_len as usize && crc32c::crc32c(head) == self.head_crc
    }
}

/// The frame at the start of `bytes` if its header and head are whole: header, head, bodies (not checked).
#[must_use]
pub fn split(file: u64, bytes: &[u8]) -> Option<(FrameHeader, &[u8], &[u8])> {
    let header = FrameHeader::decode(file, bytes)?;
    let head_end = FRAME_HEADER_BYTES + header.head_len as usize;
    let head = bytes.get(FRAME_HEADER_BYTES..head_end)?;
    let bodies = bytes.get(head_end..header.frame_len())?;
    header.head_matches(head).then_some((header, head, bodies))
}

/// The first place at or after `from` where a frame of `file` with a sequence above `after` has a whole header and head:
/// what tells damage in the middle from a torn end.
#[must_use]
pub fn find_later(file: u64, bytes: &[u8], from: usize, after: u64) -> Option<usize> {
    let mut at = from;
    while at + FRAME_HEADER_BYTES <= bytes.len() {
        let step = bytes[at..].iter().position(|byte| *byte == FRAME_MAGIC[0])?;
        at += step;
        if bytes[at..].starts_with(&FRAME_MAGIC)
            && let Some((header, _, _)) = split(file, &bytes[at..])
            && header.sequence > after
        {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// Whether a body was erased.
#[must_use]
pub fn is_erased(body: &[u8]) -> bool {
    !body.is_empty() && body.iter().all(|byte| *byte == ERASED_BYTE)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(file: u64, sequence: u64, head: &[u8], bodies: &[u8]) -> Vec<u8> {
        let header = FrameHeader::new(file, sequence, head, bodies.len() as u32).unwrap();
        [&header.encode()[..], head, bodies].concat()
    }

    #[test]
    fn a_frame_reads_back_and_no_flipped_or_missing_byte_passes() {
        let bytes = frame(3, 9, b"the head", b"and bodies");
        let (header, head, bodies) = split(3, &bytes).expect("a whole frame");
        assert_eq!((header.sequence, head, bodies), (9, &b"the head"[..], &b"and bodies"[..]));
        assert!(split(4, &bytes).is_none(), "another file's frame");
        for at in 0..FRAME_HEADER_BYTES + head.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(split(3, &bad).is_none(), "byte {at}");
        }
        for cut in 0..bytes.len() {
            assert!(split(3, &bytes[..cut]).is_none(), "cut at {cut}");
        }
    }

    #[test]
    fn a_later_frame_is_found_behind_damage() {
        let mut bytes = frame(1, 5, b"first", b"SLf1 in a payload");
        let second = bytes.len();
        bytes.extend(frame(1, 6, b"second", b""));
        bytes[3] ^= 1;
        assert_eq!(find_later(1, &bytes, 1, 5), Some(second));
        assert_eq!(find_later(1, &bytes, 1, 6), None);
    }

    #[test]
    fn file_headers_tell_damage_from_another_version() {
        let header = FileHeader { id: 7, first: 100 };
        let bytes = header.encode(FileKind::Journal);
        assert_eq!(FileHeader::decode(FileKind::Journal, &bytes), Ok(header));
        assert_eq!(FileHeader::decode(FileKind::Segment, &bytes), Err(HeaderFault::Bad));
        let mut flipped = bytes;
        flipped[8] ^= 4;
        assert_eq!(FileHeader::decode(FileKind::Journal, &flipped), Err(HeaderFault::Bad));
        for version in [1, 3] {
            let mut other = bytes;
            other[8] = version;
            other[12] = 1;
            assert_eq!(FileHeader::decode(FileKind::Journal, &other), Err(HeaderFault::Version(version.into())));
        }
        let mut bad = bytes;
        bad[20] ^= 1;
        assert_eq!(FileHeader::decode(FileKind::Journal, &bad), Err(HeaderFault::Bad));
    }
}
