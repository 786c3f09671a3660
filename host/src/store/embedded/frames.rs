//! The frames of a journal file that was walked: read one after the other, and taken apart. Invariant: shows what `walk` found
//! whole and nothing else. Never judges and never writes.

use bytes::Bytes;

use super::files::{DataFile, read_all};
use super::frame::{self, FILE_HEADER_BYTES};
use super::ops::{Body, Op};
use super::recovery::OpenError;
use super::walk::Source;

/// A whole frame.
pub(super) struct Whole {
    /// Its number.
    pub sequence: u64,
    /// Where it begins in its file.
    pub at: usize,
    /// Its length.
    pub len: usize,
    /// What it says.
    pub ops: Vec<Op>,
    /// The bodies that belong to it, in order.
    pub bodies: Vec<Body>,
}

/// Shows the whole frames of a file whose number is above `after`, in order.
///
/// # Errors
/// `Damaged` if the file is not any more as the walk found it; what `show` says.
pub(super) fn each_frame(
    source: &Source,
    bytes: &Bytes,
    after: u64,
    show: &mut dyn FnMut(Whole) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let mut at = FILE_HEADER_BYTES;
    let mut holes = source.holes.iter().peekable();
    while at < source.used {
        if let Some(hole) = holes.next_if(|hole| hole.start == at) {
            at = hole.end;
            continue;
        }
        let Some((header, head, bodies)) = bytes.get(at..).and_then(|rest| frame::split(source.id, rest)) else {
            return Err(OpenError::damaged(&source.name, at, "the file changed while it was read"));
        };
        if header.sequence > after {
            let (ops, bodies) = take_apart(head, &bytes.slice_ref(bodies)).map_err(|detail| {
                OpenError::damaged(&source.name, at, format!("a frame's head cannot be read: {detail}"))
            })?;
            show(Whole { sequence: header.sequence, at, len: header.frame_len(), ops, bodies })?;
        }
        at += header.frame_len();
    }
    Ok(())
}

/// The ops of a frame, and the bodies that belong to them, in order.
pub(super) fn take_apart(head: &[u8], all: &Bytes) -> Result<(Vec<Op>, Vec<Body>), postcard::Error> {
    let (ops, mut offset): (Vec<Op>, _) = (postcard::from_bytes(head)?, 0);
    let mut bodies = Vec::new();
    for (_, head) in ops.iter().flat_map(Op::bodies) {
        // A copy, so that a message does not keep the whole file in memory.
        let end = offset + head.body_len as usize;
        let body = Bytes::copy_from_slice(all.get(offset..end).unwrap_or_default());
        bodies.extend(Body::from_parts(*head, &body));
        offset = end;
    }
    Ok((ops, bodies))
}

/// A whole file.
pub(super) fn read_whole(file: &dyn DataFile, name: &str) -> Result<Bytes, OpenError> {
    Ok(Bytes::from(read_all(file).map_err(OpenError::io(format!("reading {name}")))?))
}
