//! What follows behind the journal: segments, checkpoints, removed files, erased bytes. Invariant: a journal file goes only
//! after segment sync, checkpoint sync, rename and directory sync, in this order. One thread runs it and is the only one
//! that writes or removes segments; [`Maintenance::turn`] needs no thread: a simulator drives it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::core::{Core, Job};
use super::erase;
use super::frame::{FileHeader, FileKind, FrameHeader};
use super::ops::{Body, Entry, LaneId};
use super::segment::{BLOCK_BYTES, BLOCK_ENTRIES, Block, SEGMENT_BYTES, Segment};
use super::state::State;
use super::state::lane::Lane;
use crate::clock::Timestamp;
use crate::message::TopicId;
use crate::store::StoreError;

/// How long the thread sleeps when nobody calls it.
const PATIENCE: Duration = Duration::from_millis(50);
/// Jobs taken at once.
const JOBS: u64 = 64;
/// A checkpoint's name.
pub const CHECKPOINT: &str = "checkpoint";
/// Its name until it is whole.
pub const CHECKPOINT_TMP: &str = "checkpoint.tmp";

/// See the module.
pub struct Maintenance {
    core: Arc<Core>,
    /// Segments written to since their last sync.
    dirty: HashSet<(LaneId, u64)>,
    /// Whether files came or went since directories were synced: their topics.
    dirs: HashSet<u32>,
    /// A sync of a segment failed: what it held may be gone from the page cache though a later sync succeeds, so the
    /// journal keeps everything until the store is opened again and writes the segments anew.
    poisoned: Option<String>,
    /// The last checkpoint holds bodies of scheduled messages.
    bodies_in_checkpoint: bool,
}

impl Maintenance {
    /// For the state of `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Maintenance {
        // What the checkpoint of before holds is not known.
        let bodies_in_checkpoint = true;
        Maintenance { core, dirty: HashSet::new(), dirs: HashSet::new(), poisoned: None, bodies_in_checkpoint }
    }

    /// Runs until its queue is closed; returns itself for the last checkpoint.
    pub fn run(mut self) -> Maintenance {
        let core = Arc::clone(&self.core);
        let _ending = Ending(&core);
        while self.turn(PATIENCE) {}
        self
    }

    /// Does the jobs that wait, or that come within `patience`, and a step; false once the queue is closed and empty.
    pub fn turn(&mut self, patience: Duration) -> bool {
        let Some(jobs) = self.core.jobs.take(JOBS, patience, |_, _| true) else { return false };
        for job in jobs {
            self.job(job);
        }
        let result = self.step();
        self.report(result.err());
        true
    }

    /// Writes full blocks to segments, a checkpoint if one is due, and removes files that are not needed.
    ///
    /// # Errors
    /// What the file layer says; the same step can be tried again.
    pub fn step(&mut self) -> Result<(), StoreError> {
        // First what gives room back: on a full disk, nothing else succeeds before.
        let removed = self.remove_dead();
        self.flush_full()?;
        self.erase()?;
        let due = self.core.journal_bytes.load(Ordering::Relaxed) >= self.core.limits.checkpoint_bytes;
        if self.poisoned.is_none() && (due | self.can_make_room()) {
            self.checkpoint()?;
        }
        removed.and_then(|()| self.remove_dead())
    }

    /// Whether the journal wants room, and has files that a checkpoint replaces.
    fn can_make_room(&self) -> bool {
        self.core.room_wanted.swap(false, Ordering::Relaxed) && self.core.journal_files.lock().len() > 1
    }

    fn job(&mut self, job: Job) {
        let Job::Erase(reply) = job;
        let result = self.erase();
        // Whoever asked may have stopped waiting; what was done stands.
        let _gone = reply.send(result);
    }

    /// Overwrites what is erased and may still be in files.
    fn erase(&mut self) -> Result<(), StoreError> {
        let owners = self.core.state.lock().erasing.clone();
        if owners.is_empty() {
            return Ok(());
        }
        if self.poisoned.is_none() {
            // Overwriting syncs too: were it to fail while blocks wait for their sync, a later one would not bring them
            // back, and the next checkpoint would rest on what is not there.
            self.sync_segments()?;
        }
        erase::overwrite(&self.core, &owners)?;
        self.core.state.lock().erasing.drain(..owners.len());
        if self.bodies_in_checkpoint {
            // It may have been scheduled when the checkpoint was written.
            self.checkpoint()?;
        }
        Ok(())
    }

    fn report(&self, error: Option<StoreError>) {
        let fault = self.poisoned.clone().or_else(|| error.map(|error| error.to_string()));
        let mut known = self.core.maintenance_fault.lock();
        if let Some(fault) = fault.as_ref().filter(|fault| known.as_ref() != Some(fault)) {
            tracing::error!(%fault, "segments or checkpoints cannot be written; the journal keeps what they lack");
        }
        *known = fault;
    }

    /// Writes blocks of lanes that have a full one; all lanes' when memory runs out.
    pub fn flush_full(&mut self) -> Result<(), StoreError> {
        let (mut lanes, pressed) = {
            let state = self.core.state.lock();
            let pressed = state.unflushed_bytes > state.limits.unflushed_bytes_max / 2;
            let least = if pressed { 1 } else { BLOCK_BYTES };
            let lanes = state.unflushed.iter().filter(|(_, bytes)| **bytes >= least).map(|(id, bytes)| (*bytes, *id));
            (lanes.collect::<Vec<_>>(), pressed)
        };
        // The largest first: they free most memory with one write.
        lanes.sort_unstable_by(|left, right| right.cmp(left));
        for (_, id) in lanes {
            while self.flush_block(id, u64::MAX, pressed)? {}
        }
        Ok(())
    }

    /// Writes the next block of a lane, none of it at or above `end`; only a full one unless `any`. Whether it did.
    fn flush_block(&mut self, id: LaneId, end: u64, any: bool) -> Result<bool, StoreError> {
        let core = Arc::clone(&self.core);
        let Some((block, segment)) = next_block(&mut core.state.lock(), id, end, any) else { return Ok(false) };
        let mut segment = segment;
        let mut written = core.segments.write(id, segment.as_ref(), &block);
        if segment.is_some() && written.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            // While the journal is replayed, the checkpoint may name a segment whose removal comes later in the journal.
            // If it does not come, opening reports the segment as missing.
            segment = None;
            written = core.segments.write(id, None, &block);
        }
        let written = written.map_err(|error| StoreError::Unavailable(format!("writing a segment failed: {error}")))?;
        let first = written.span.first;
        self.dirty.insert((id, first));
        if segment.is_none() {
            self.dirs.insert(id.topic.0);
        }
        flushed(&mut core.state.lock(), id, segment.is_some(), written);
        Ok(true)
    }

    /// Brings all that is applied now into segments and a checkpoint, and removes the journal files it replaces.
    ///
    /// # Errors
    /// What the file layer says; the journal is then kept.
    pub fn checkpoint(&mut self) -> Result<(), StoreError> {
        if let Some(fault) = &self.poisoned {
            return Err(StoreError::Unavailable(fault.clone()));
        }
        let core = Arc::clone(&self.core);
        // Taken before the snapshot: what is written between the two counts for the next checkpoint.
        let journal_bytes = core.journal_bytes.load(Ordering::Relaxed);
        let (mut snapshot, has_bodies) = {
            let state = core.state.lock();
            (state.snapshot(), state.scheduled > 0)
        };
        for (id, end) in snapshot.ends() {
            while self.flush_block(id, end, true)? {}
        }
        self.sync_segments()?;
        snapshot.take_segments(&core.state.lock());
        let head = postcard::to_stdvec(&snapshot).expect("a snapshot has no type that postcard refuses");
        let failed = |error: std::io::Error| StoreError::Unavailable(format!("writing a checkpoint failed: {error}"));
        write_checkpoint(&core, snapshot.applied, &head).map_err(failed)?;
        self.bodies_in_checkpoint = has_bodies;
        core.journal_bytes.fetch_sub(journal_bytes, Ordering::Relaxed);
        self.remove_journal(snapshot.applied).map_err(failed)
    }

    fn sync_segments(&mut self) -> Result<(), StoreError> {
        let core = Arc::clone(&self.core);
        for (id, first) in std::mem::take(&mut self.dirty) {
            let result = core.segments.sync(id, first);
            // Removed meanwhile, with its topic or by retention.
            let gone = result.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
            if let (Err(error), false) = (result, gone) {
                return Err(self.poison(&error));
            }
        }
        let graves: HashSet<u32> = core.state.lock().graves.iter().map(|topic| topic.0).collect();
        let dirs = std::mem::take(&mut self.dirs);
        core.segments
            .sync_dirs(dirs.into_iter().filter(|topic| !graves.contains(topic)))
            .map_err(|error| self.poison(&error))
    }

    fn poison(&mut self, error: &std::io::Error) -> StoreError {
        let fault =
            format!("syncing a segment failed ({error}): open the store again to write it anew from the journal");
        self.poisoned = Some(fault.clone());
        StoreError::Unavailable(fault)
    }

    fn remove_journal(&self, applied: u64) -> std::io::Result<()> {
        let mut files = self.core.journal_files.lock();
        while let [(oldest, _), (_, next_first), ..] = files[..] {
            if next_first > applied + 1 {
                break;
            }
            self.core.files.remove(&self.core.dir.join(super::journal::file_name(oldest)))?;
            files.remove(0);
        }
        drop(files);
        self.core.files.sync_dir(&self.core.dir)
    }

    /// Removes the files of what left the log. The op that said so is in the journal, or in the checkpoint.
    fn remove_dead(&mut self) -> Result<(), StoreError> {
        let (mut segments, mut topics) = {
            let mut state = self.core.state.lock();
            (std::mem::take(&mut state.dead_segments), std::mem::take(&mut state.graves))
        };
        let result = self.remove_files(&mut segments, &mut topics);
        // What could not be removed is tried again with the next step.
        let mut state = self.core.state.lock();
        state.dead_segments.append(&mut segments);
        state.graves.append(&mut topics);
        result.map_err(|error| StoreError::Unavailable(format!("removing a file failed: {error}")))
    }

    fn remove_files(&mut self, segments: &mut Vec<(LaneId, u64)>, topics: &mut Vec<TopicId>) -> std::io::Result<()> {
        while let Some((id, first)) = segments.last().copied() {
            self.dirty.remove(&(id, first));
            self.core.segments.remove(id, first)?;
            segments.pop();
        }
        while let Some(topic) = topics.last().copied() {
            self.dirty.retain(|(id, _)| id.topic != topic);
            self.dirs.remove(&topic.0);
            self.core.files.remove_dir_all(&self.core.segments.topic_dir(topic.0))?;
            topics.pop();
        }
        Ok(())
    }
}

/// Even a panic must not leave callers waiting for a thread that is gone.
struct Ending<'a>(&'a Core);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.jobs.abandon();
        if std::thread::panicking() {
            *self.0.maintenance_fault.lock() = Some("the thread that writes segments ended".to_owned());
        }
    }
}

/// The next block of a lane that no segment has, and the segment it goes behind.
fn next_block(state: &mut State, id: LaneId, end: u64, any: bool) -> Option<(Block, Option<Segment>)> {
    let topic = state.topics.get_mut(&id.topic)?;
    let (retention, retention_bytes) = (topic.spec.retention, topic.spec.retention_bytes);
    let lane = topic.lane_mut(id.partition, id.lane)?;
    let first = lane.flushed;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    let mut sequence = first;
    while sequence < end.min(lane.end) && entries.len() < BLOCK_ENTRIES && bytes < BLOCK_BYTES {
        let entry = lane.entry(sequence)?;
        bytes += entry.body.head.cost();
        entries.push(if lane.erased.contains(sequence) { blank(entry) } else { entry.clone() });
        sequence += 1;
    }
    let full = bytes >= BLOCK_BYTES || entries.len() >= BLOCK_ENTRIES;
    if entries.is_empty() || !(full || any) {
        return None;
    }
    // Small topics and short retention get small segments, so that space comes back in proportion.
    let bytes_max = retention_bytes.map_or(SEGMENT_BYTES, |limit| SEGMENT_BYTES.min(limit / 8).max(BLOCK_BYTES));
    let at: Timestamp = entries.first()?.at;
    let segment = lane.segments.back().filter(|segment| {
        !segment.sealed
            && segment.span.end == first
            && segment.len < bytes_max
            && at.since(segment.span.at_min) <= retention / 8
    });
    Some((Block { first, entries }, segment.cloned()))
}

fn flushed(state: &mut State, id: LaneId, extended: bool, written: Segment) {
    let Some(lane) = state.topics.get_mut(&id.topic).and_then(|topic| topic.lane_mut(id.partition, id.lane)) else {
        return;
    };
    let (first, end) = (written.span.first, written.span.end);
    // What retention took out of the log meanwhile is flushed already.
    let bytes = cost(lane, lane.flushed, end);
    lane.flushed = lane.flushed.max(end);
    if extended && lane.segments.back().is_some_and(|last| last.span.first == first) {
        lane.segments.pop_back();
    } else if let Some(last) = lane.segments.back_mut() {
        last.sealed = true;
    }
    let start = lane.start;
    lane.segments.push_back(written);
    // Retention may have taken the segment while it grew; it lives if what it grew by does.
    state.dead_segments.retain(|dead| *dead != (id, first));
    if end <= start {
        state.dead_segments.push((id, first));
        if let Some(lane) = state.topics.get_mut(&id.topic).and_then(|topic| topic.lane_mut(id.partition, id.lane)) {
            lane.segments.pop_back();
        }
    }
    state.flushed_until(id, end, bytes);
}

fn cost(lane: &Lane, from: u64, end: u64) -> u64 {
    (from..end).filter_map(|sequence| lane.entry(sequence)).map(|entry| entry.body.head.cost()).sum()
}

/// What is written in place of an erased message.
pub(super) fn blank(entry: &Entry) -> Entry {
    let fill = |len: usize| bytes::Bytes::from(vec![super::frame::ERASED_BYTE; len]);
    let (meta, payload) = (fill(entry.body.meta.len()), fill(entry.body.payload.len()));
    Entry { body: Body { head: entry.body.head, meta, payload }, ..entry.clone() }
}

fn write_checkpoint(core: &Core, applied: u64, head: &[u8]) -> std::io::Result<()> {
    let path = core.dir.join(CHECKPOINT_TMP);
    let file = core.files.create(&path)?;
    let header = FileHeader { id: 0, first: applied }.encode(FileKind::Checkpoint);
    let frame =
        FrameHeader::new(0, applied, head, 0).ok_or_else(|| std::io::Error::other("more than 4 GiB of state"))?;
    file.write_at(&[&header[..], &frame.encode()[..], head].concat(), 0)?;
    file.sync()?;
    core.files.rename(&path, &core.dir.join(CHECKPOINT))?;
    core.files.sync_dir(&core.dir)
}
