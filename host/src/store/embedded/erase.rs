//! Taking erased bytes out of the files. Invariant: runs after the tombstone is synced, so a crash half-way leaves bodies
//! that do not match their checksums but that the tombstone accounts for, and the next opening goes on. Called by the
//! maintenance thread alone.

use std::collections::HashSet;
use std::sync::Arc;

use super::core::Core;
use super::files::{DataFile, read_all};
use super::frame::{self, FILE_HEADER_BYTES, FRAME_HEADER_BYTES};
use super::journal;
use super::ops::{LaneId, Op, Owner};
use super::segment::BlockRef;
use crate::store::StoreError;

/// Overwrites the bodies of these messages in segments and journal, and syncs.
///
/// # Errors
/// `Unavailable`; what is erased stays unreadable.
pub fn overwrite(core: &Core, owners: &[Owner]) -> Result<(), StoreError> {
    for owner in owners {
        let Owner::Log(id, sequence) = owner else { continue };
        match overwrite_block(core, *id, *sequence) {
            // Where its block is damaged nobody can say where it stands; the damage is reported on reading.
            Err(error @ StoreError::Damaged { .. }) => {
                tracing::error!(%error, "an erased message cannot be overwritten")
            }
            other => other?,
        }
    }
    let failed = |error: std::io::Error| StoreError::Unavailable(format!("erasing in the journal failed: {error}"));
    let mut files = Vec::new();
    let ids: Vec<u64> = core.journal_files.lock().iter().map(|(id, _)| *id).collect();
    for id in ids {
        files.push((id, core.files.open(&core.dir.join(journal::file_name(id))).map_err(failed)?));
    }
    let mut owners: HashSet<Owner> = owners.iter().copied().collect();
    // What was scheduled has its body where it was scheduled: a first round finds out which that is.
    for (id, file) in &files {
        for_each_frame(*id, &**file, &mut |_, ops| {
            let due = ops.iter().filter_map(|op| match op {
                Op::Due { topic, number, lane, sequence, .. } => {
                    Some((Owner::Log(*lane, *sequence), Owner::Scheduled(*topic, *number)))
                }
                _ => None,
            });
            let found: Vec<Owner> = due.filter(|(log, _)| owners.contains(log)).map(|(_, was)| was).collect();
            owners.extend(found);
            Ok(())
        })
        .map_err(failed)?;
    }
    for (id, file) in &files {
        overwrite_frames(*id, &**file, &owners).map_err(failed)?;
    }
    Ok(())
}

fn overwrite_block(core: &Core, id: LaneId, sequence: u64) -> Result<(), StoreError> {
    let segment = core.state.lock().lane(id).and_then(|lane| lane.segment_of(sequence).cloned());
    // What no segment has yet is written blank.
    let Some(segment) = segment else { return Ok(()) };
    let index: Arc<Vec<BlockRef>> = match &segment.index {
        Some(index) => Arc::clone(index),
        None => Arc::new(core.segments.index(id, &segment)?),
    };
    let at = index.partition_point(|block| block.span.end <= sequence);
    index.get(at).map_or(Ok(()), |block| core.segments.erase(id, &segment, block, sequence))
}

fn overwrite_frames(file_id: u64, file: &dyn DataFile, owners: &HashSet<Owner>) -> std::io::Result<()> {
    let mut touched = false;
    for_each_frame(file_id, file, &mut |mut at, ops| {
        for (owner, head) in ops.iter().flat_map(Op::bodies) {
            if owners.contains(&owner) {
                file.write_at(&vec![frame::ERASED_BYTE; head.body_len as usize], at)?;
                touched = true;
            }
            at += u64::from(head.body_len);
        }
        Ok(())
    })?;
    if touched { file.sync() } else { Ok(()) }
}

/// Shows the ops of each whole frame, and where its bodies begin. A frame that is being written is not whole yet; what is
/// erased was seen, so its frame is.
fn for_each_frame(
    file_id: u64,
    file: &dyn DataFile,
    look: &mut dyn FnMut(u64, &[Op]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let bytes = read_all(file)?;
    let mut at = FILE_HEADER_BYTES;
    while let Some((header, head, _)) = bytes.get(at..).and_then(|rest| frame::split(file_id, rest)) {
        let ops: Vec<Op> = postcard::from_bytes(head).map_err(std::io::Error::other)?;
        look((at + FRAME_HEADER_BYTES + head.len()) as u64, &ops)?;
        at += header.frame_len();
    }
    Ok(())
}
