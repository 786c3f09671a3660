//! Taking erased bytes out of the files. Invariant: runs after the tombstone is synced, so a crash half-way leaves bodies
//! that do not match their checksums but that the tombstone accounts for. Called by the maintenance thread alone.

use std::collections::HashSet;
use std::sync::Arc;

use super::core::{Core, Erasure};
use super::files::{DataFile, read_all};
use super::frame::{self, FILE_HEADER_BYTES, FRAME_HEADER_BYTES};
use super::journal;
use super::ops::{Head, Op};
use super::segment::BlockRef;
use crate::message::MessageId;
use crate::store::StoreError;

/// Overwrites the bodies of these messages in segments and journal, and syncs.
///
/// # Errors
/// `Unavailable` or `Damaged`; what is erased stays unreadable.
pub fn overwrite(core: &Core, erasures: &[Erasure]) -> Result<(), StoreError> {
    for (id, sequence) in erasures.iter().filter_map(|erasure| erasure.place.as_ref()) {
        let segment = core.state.lock().lane(*id).and_then(|lane| lane.segment_of(*sequence).cloned());
        // What no segment has yet is written blank.
        let Some(segment) = segment else { continue };
        let index: Arc<Vec<BlockRef>> = match &segment.index {
            Some(index) => Arc::clone(index),
            None => Arc::new(core.segments.index(*id, &segment)?),
        };
        let at = index.partition_point(|block| block.span.end <= *sequence);
        if let Some(block) = index.get(at) {
            core.segments.erase(*id, &segment, block, *sequence)?;
        }
    }
    let ids: HashSet<MessageId> = erasures.iter().map(|erasure| erasure.id).collect();
    let files: Vec<u64> = core.journal_files.lock().iter().map(|(id, _)| *id).collect();
    for file_id in files {
        let path = core.dir.join(journal::file_name(file_id));
        let failed = |error: std::io::Error| StoreError::Unavailable(format!("erasing in the journal failed: {error}"));
        let file = core.files.open(&path).map_err(failed)?;
        overwrite_frames(file_id, &*file, &ids).map_err(failed)?;
    }
    Ok(())
}

fn overwrite_frames(file_id: u64, file: &dyn DataFile, ids: &HashSet<MessageId>) -> std::io::Result<()> {
    let bytes = read_all(file)?;
    let (mut at, mut touched) = (FILE_HEADER_BYTES, false);
    // A frame that is being written is not whole yet; what is erased was seen, so its frame is.
    while let Some((header, head, _)) = bytes.get(at..).and_then(|rest| frame::split(file_id, rest)) {
        let mut body_at = at + FRAME_HEADER_BYTES + head.len();
        let ops: Vec<Op> = postcard::from_bytes(head).unwrap_or_default();
        for head in ops.iter().flat_map(heads) {
            if ids.contains(&head.id) {
                file.write_at(&vec![frame::ERASED_BYTE; head.body_len as usize], body_at as u64)?;
                touched = true;
            }
            body_at += head.body_len as usize;
        }
        at += header.frame_len();
    }
    if touched { file.sync() } else { Ok(()) }
}

/// The heads of the bodies that belong to an op.
pub fn heads(op: &Op) -> &[Head] {
    match op {
        Op::Append { heads, .. } => heads,
        Op::Scheduled { head, .. } => std::slice::from_ref(head),
        _ => &[],
    }
}
