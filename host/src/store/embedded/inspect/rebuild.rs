//! Writing what is left of a store into a new directory. Invariant: the directory that is read is not changed; every
//! message that can be read keeps its offset, and a tombstone, as an erasure leaves one, stands where one is lost. The new
//! directory holds no checkpoint, and so no store, until all of it is written and synced.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use super::salvage::tombstone;
use super::{Inspector, Journal, Progress};
use crate::clock::{Clock, Timestamp};
use crate::store::StoreError;
use crate::store::embedded::core::Core;
use crate::store::embedded::files::{Disk, FileLayer};
use crate::store::embedded::frames::{each_frame, read_whole};
use crate::store::embedded::journal::Journal as NewJournal;
use crate::store::embedded::lock::DirLock;
use crate::store::embedded::maintenance::{Maintenance, blank};
use crate::store::embedded::ops::{Entry, LaneId};
use crate::store::embedded::recovery::OpenError;
use crate::store::embedded::segment::{BLOCK_BYTES, BLOCK_ENTRIES, Block, Segment};
use crate::store::embedded::state::{EmbeddedLimits, State, offset};
use crate::store::embedded::writer::Writer;

/// No receipt given out before is taken after, also not by openings whose record is lost: more than a store is ever opened.
const EPOCHS_SKIPPED: u64 = 1 << 20;

/// A directory that is being written.
pub(super) struct Target {
    core: Arc<Core>,
    lanes: HashMap<LaneId, LaneOut>,
    /// Lanes with messages that are not what they were.
    tombstoned: Vec<LaneId>,
}

/// A lane that is being written.
struct LaneOut {
    segments: VecDeque<Segment>,
    open: Option<Segment>,
    /// Whether the open one takes no more blocks afterwards.
    sealed: bool,
    first: u64,
    pending: Vec<Entry>,
    bytes: u64,
    /// The place in the order of appends, and the time, of the last message: a tombstone takes the same.
    last: (u64, Timestamp),
    unreadable: Vec<u64>,
}

impl LaneOut {
    fn next(&self) -> u64 {
        self.first + self.pending.len() as u64
    }
}

impl Target {
    /// Takes an empty directory.
    pub fn new(to: &Path, clock: &Clock) -> Result<(Target, DirLock), OpenError> {
        std::fs::create_dir_all(to).map_err(OpenError::io("making the new store"))?;
        let (files, limits): (Arc<dyn FileLayer>, _) = (Arc::new(Disk), EmbeddedLimits::default());
        let lock = DirLock::take(to)?;
        let core = Core::new(files, to.to_owned(), clock.clone(), limits);
        Ok((Target { core: Arc::new(core), lanes: HashMap::new(), tombstoned: Vec::new() }, lock))
    }

    /// What follows stood in this segment: it gets one of its own again.
    pub fn begin_segment(&mut self, id: LaneId, segment: &Segment) -> Result<(), OpenError> {
        self.end_segment(id)?;
        let lane = self.lane(id);
        lane.sealed = segment.sealed;
        lane.last.1 = lane.last.1.max(segment.span.at_min);
        Ok(())
    }

    /// Adds the next message of a lane; without its content if that is not to be read.
    pub fn put(&mut self, id: LaneId, sequence: u64, entry: Entry, unreadable: bool) -> Result<(), OpenError> {
        let lane = self.lane(id);
        if lane.pending.is_empty() {
            lane.first = lane.first.max(sequence);
        }
        if sequence < lane.next() {
            return Ok(());
        }
        lane.last = (entry.stamp, entry.at);
        lane.bytes += entry.body.head.cost();
        lane.pending.push(if unreadable { blank(&entry) } else { entry });
        if unreadable {
            lane.unreadable.push(sequence);
        }
        if lane.bytes >= BLOCK_BYTES || lane.pending.len() >= BLOCK_ENTRIES {
            self.write(id)?;
        }
        Ok(())
    }

    /// Adds what stands for a message that is lost, or erased and gone.
    pub fn put_tombstone(&mut self, id: LaneId, sequence: u64) -> Result<(), OpenError> {
        let (stamp, at) = self.lane(id).last;
        self.put(id, sequence, Entry { at, stamp, body: tombstone(id, at) }, true)
    }

    /// All of a lane was added.
    pub fn end_lane(&mut self, id: LaneId) -> Result<(), OpenError> {
        self.end_segment(id)
    }

    fn lane(&mut self, id: LaneId) -> &mut LaneOut {
        self.lanes.entry(id).or_insert_with(|| LaneOut {
            segments: VecDeque::new(),
            open: None,
            sealed: true,
            first: 0,
            pending: Vec::new(),
            bytes: 0,
            last: (0, Timestamp(0)),
            unreadable: Vec::new(),
        })
    }

    fn write(&mut self, id: LaneId) -> Result<(), OpenError> {
        let core = Arc::clone(&self.core);
        let lane = self.lane(id);
        if lane.pending.is_empty() {
            return Ok(());
        }
        let next = lane.next();
        let block = Block { first: lane.first, entries: std::mem::take(&mut lane.pending) };
        let written = core.segments.write(id, lane.open.as_ref(), &block);
        // Without its index: that of a large store would fill the memory.
        lane.open = Some(Segment { index: None, ..written.map_err(OpenError::io("writing a segment"))? });
        (lane.first, lane.bytes) = (next, 0);
        Ok(())
    }

    fn end_segment(&mut self, id: LaneId) -> Result<(), OpenError> {
        self.write(id)?;
        let core = Arc::clone(&self.core);
        let lane = self.lane(id);
        if let Some(open) = lane.open.take() {
            core.segments.sync(id, open.span.first).map_err(OpenError::io("syncing a segment"))?;
            lane.segments.push_back(Segment { sealed: lane.sealed, ..open });
        }
        Ok(())
    }

    /// Writes all that is not in segments: replays the journal onto them, then writes checkpoint and journal.
    pub fn finish(mut self, inspector: &Inspector<'_>, journal: &Journal) -> Result<(), OpenError> {
        let mut state = inspector.base(journal)?;
        state.limits = self.core.limits.clone();
        self.take_over(&mut state);
        *self.core.state.lock() = state;
        let topics: Vec<u32> = self.core.state.lock().topics.keys().map(|topic| topic.0).collect();
        let written = topics.into_iter().filter(|topic| self.core.segments.topic_dir(*topic).is_dir());
        self.core.segments.sync_dirs(written).map_err(OpenError::io("syncing directories"))?;
        let mut maintenance = Maintenance::new(Arc::clone(&self.core));
        self.replay(inspector, journal, &mut maintenance)?;
        let applied = {
            let mut state = self.core.state.lock();
            state.applied = state.applied.max(journal.found.next - 1);
            state.epoch += EPOCHS_SKIPPED;
            if inspector.known.revisions_lost {
                // Or every batch would be refused as outdated.
                state.topics.values_mut().flat_map(|topic| &mut topic.partitions).for_each(|part| part.revision = 0);
            }
            recount(&mut state, &self.tombstoned);
            state.applied
        };
        let failed = |error: StoreError| OpenError::io("writing the new store")(std::io::Error::other(error));
        maintenance.step().and_then(|()| maintenance.checkpoint()).map_err(failed)?;
        let new = NewJournal::new(&self.core, 1, applied + 1);
        Writer::new(Arc::clone(&self.core), new).begin_epoch()
    }

    /// Gives lanes the segments that were written in place of those that were read.
    fn take_over(&mut self, state: &mut State) {
        for topic in state.topics.values_mut() {
            let ids: Vec<LaneId> = topic.lanes().map(|(id, _)| id).collect();
            for id in ids {
                let out = self.lanes.remove(&id);
                let (segments, unreadable) = out.map(|out| (out.segments, out.unreadable)).unwrap_or_default();
                let Some(lane) = topic.lane_mut(id.partition, id.lane) else { continue };
                lane.segments = segments;
                if !unreadable.is_empty() {
                    self.tombstoned.push(id);
                }
                for sequence in &unreadable {
                    lane.erased.insert(*sequence..*sequence + 1);
                }
                for group in topic.groups.values_mut() {
                    for sequence in &unreadable {
                        group.settle(id.partition, offset(id, *sequence), Timestamp(0));
                    }
                }
            }
        }
    }

    fn replay(
        &self,
        inspector: &Inspector<'_>,
        journal: &Journal,
        maintenance: &mut Maintenance,
    ) -> Result<(), OpenError> {
        let bytes = journal.found.sources.iter().map(|source| source.used as u64).sum();
        (inspector.told)(Progress::Begins("replay", bytes));
        let core = &self.core;
        let mut salvage = inspector.salvage(journal);
        for source in &journal.found.sources {
            let bytes = read_whole(&*source.file, &source.name)?;
            each_frame(source, &bytes, inspector.applied, &mut |frame| {
                let mut state = core.state.lock();
                salvage.frame(&mut state, frame.sequence, frame.ops, frame.bodies);
                state.evict();
                let full = state.unflushed_bytes > state.limits.unflushed_bytes_max;
                drop(state);
                let failed = |error: StoreError| OpenError::io("writing segments")(std::io::Error::other(error));
                if full { maintenance.flush_full().map_err(failed) } else { Ok(()) }
            })?;
            (inspector.told)(Progress::Did(source.used as u64));
        }
        salvage.complete(&mut core.state.lock());
        Ok(())
    }
}

/// What these lanes count for: with what is lost, that changed.
fn recount(state: &mut State, lanes: &[LaneId]) {
    for id in lanes {
        let lane = state.topics.get_mut(&id.topic).and_then(|topic| topic.lane_mut(id.partition, id.lane));
        let Some(lane) = lane else { continue };
        let stored: u64 = lane.segments.iter().map(|segment| segment.span.bytes).sum();
        let first = lane.flushed.max(lane.start);
        let rest = lane.tail().filter(|(sequence, _)| *sequence >= first).map(|(_, entry)| entry.body.head.cost());
        lane.bytes = stored + rest.sum::<u64>();
    }
}
