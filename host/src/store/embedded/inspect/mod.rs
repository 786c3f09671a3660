//! Looking at a data directory that no broker has open: what is damaged, and what that means. Invariant: nothing in the
//! directory is changed, not even opened for writing; every byte that an opening or a read relies on is checked. Reads
//! one journal file and one block at a time.
//!
//! It reads with the store's own code: `walk` finds the frames, `salvage` applies them to a state (without bodies), and
//! each lane of that state is then held against its segments. A rebuilding does the same and writes what it reads.

pub mod finding;
mod lanes;
mod means;
mod rebuild;
mod rescue;
pub mod salvage;
mod scan;
mod survey;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use self::finding::{Finding, Kind, Lost};
use self::lanes::Lanes;
use self::rebuild::Target;
use self::salvage::{Known, Loss, Salvage};
use super::files::{FileLayer, ReadOnlyDisk};
use super::frames::{each_frame, read_whole};
use super::lock::DirLock;
use super::maintenance::CHECKPOINT;
use super::ops::{Body, LaneId, Owner};
use super::recovery::{self, OpenError};
use super::state::{EmbeddedLimits, State};
use super::walk::{self, Fault, Found, Judge, Seen};
use crate::clock::{Clock, Timestamp};
use crate::message::TopicId;
use crate::store::{GroupSpec, TopicSpec};

/// How far long work is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Something new begins, of so many bytes.
    Begins(&'static str, u64),
    /// So many bytes are done.
    Did(u64),
}

/// Who is told of progress.
pub type Told<'a> = &'a dyn Fn(Progress);

/// What an inspection saw.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// What is wrong, and what an abrupt end left.
    pub findings: Vec<Finding>,
    /// Files that were read.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames of the journal behind the checkpoint.
    pub frames: u64,
    /// The topics that there are.
    pub topics: BTreeMap<TopicId, TopicSeen>,
    /// Messages that a segment lost and that the journal still has.
    pub rescued: u64,
}

/// A topic that the store has.
#[derive(Debug, Clone)]
pub struct TopicSeen {
    /// Its settings.
    pub spec: TopicSpec,
    /// Its groups.
    pub groups: Vec<GroupSpec>,
    /// Its messages, tombstones included.
    pub messages: u64,
}

/// A store that no broker has open. Brokers are kept out of it for as long as this lives.
#[derive(Debug)]
pub struct ClosedStore {
    dir: PathBuf,
    _lock: Option<DirLock>,
}

impl ClosedStore {
    /// Takes a store's directory, for reading.
    ///
    /// # Errors
    /// When a broker has it, or there is none.
    pub fn take(dir: &Path) -> Result<ClosedStore, OpenError> {
        if !dir.is_dir() {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(OpenError::io(format!("there is no store at {}", dir.display()))(missing));
        }
        Ok(ClosedStore { dir: dir.to_owned(), _lock: DirLock::take_for_reading(dir)? })
    }

    /// Looks at all of it. `known` is what the catalog says there is.
    ///
    /// # Errors
    /// When it cannot be looked at: newer, unreadable. Damage is no error.
    pub fn inspect(&self, known: &Known, now: Timestamp, told: Told<'_>) -> Result<Inspection, OpenError> {
        let mut inspector = Inspector::begin(&self.dir, known, now, told)?;
        let mut journal = inspector.journal()?;
        let ghost = inspector.ghost(&mut journal)?;
        Lanes::new(&mut inspector, &journal, &ghost, None).read()?;
        Ok(inspector.end(&ghost))
    }

    /// Looks at all of it, and writes what is left of it to the directory `to`, which is empty.
    ///
    /// # Errors
    /// As [`ClosedStore::inspect`], and when `to` cannot be written.
    pub fn rebuild(&self, to: &Path, known: &Known, clock: &Clock, told: Told<'_>) -> Result<Inspection, OpenError> {
        let mut inspector = Inspector::begin(&self.dir, known, clock.now(), told)?;
        let mut journal = inspector.journal()?;
        let ghost = inspector.ghost(&mut journal)?;
        let (mut target, _new) = Target::new(to, clock)?;
        Lanes::new(&mut inspector, &journal, &ghost, Some(&mut target)).read()?;
        target.finish(&inspector, &journal)?;
        Ok(inspector.end(&ghost))
    }
}

/// What the journal and the checkpoint are.
struct Journal {
    found: Found,
    base: Base,
    /// Bodies behind the checkpoint that do not match their checksums, and the finding that tells of each.
    bad: HashMap<Owner, usize>,
    /// What segments have to hold: the ends of lanes in the checkpoint.
    stored: HashMap<LaneId, u64>,
}

/// What the journal is applied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    /// Nothing: the journal has all there ever was.
    Nothing,
    /// A checkpoint.
    Checkpoint,
    /// What the segments themselves say, because the checkpoint is lost.
    Segments,
}

/// Gathers findings.
struct Inspector<'a> {
    files: ReadOnlyDisk,
    dir: &'a Path,
    known: &'a Known,
    now: Timestamp,
    told: Told<'a>,
    applied: u64,
    seen: Inspection,
    /// Findings by which frames are lost, with those frames.
    missing: Vec<(usize, Range<u64>)>,
}

impl Judge for Inspector<'_> {
    fn damaged(&mut self, fault: Fault) -> Result<(), OpenError> {
        let Fault { kind, file, offset, frames, detail } = fault;
        let behind = frames.end > self.applied + 1;
        let means = match kind {
            Kind::BadHeader => means::JOURNAL_HEADER,
            Kind::MissingCheckpoint => means::NO_CHECKPOINT,
            _ if !behind => means::OLD_FRAMES,
            _ => means::FRAMES,
        };
        if kind == Kind::MissingCheckpoint || (behind && !frames.is_empty()) {
            self.missing.push((self.seen.findings.len(), frames));
        }
        self.seen.findings.push(Finding::new(kind, &file, offset as u64, detail, means));
        Ok(())
    }

    fn thorough(&self) -> bool {
        true
    }
}

impl<'a> Inspector<'a> {
    fn begin(dir: &'a Path, known: &'a Known, now: Timestamp, told: Told<'a>) -> Result<Inspector<'a>, OpenError> {
        let (files, seen) = (ReadOnlyDisk, Inspection::default());
        let mut inspector = Inspector { files, dir, known, now, told, applied: 0, seen, missing: Vec::new() };
        inspector.measure(dir)?;
        Ok(inspector)
    }

    /// Counts files, and tells what earlier starts saved.
    fn measure(&mut self, dir: &Path) -> Result<(), OpenError> {
        let listing = || OpenError::io(format!("listing {}", dir.display()));
        for name in self.files.list(dir).map_err(listing())? {
            let path = dir.join(&name);
            if path.is_dir() {
                self.measure(&path)?;
                continue;
            }
            let bytes = std::fs::metadata(&path).map_err(listing())?.len();
            self.seen.files += 1;
            self.seen.bytes += bytes;
            if name.ends_with(".torn") {
                let detail = format!("{bytes} bytes of a frame that was never finished, saved by an earlier start");
                self.seen.findings.push(Finding::new(Kind::SavedTornTail, &name, 0, detail, means::SAVED_TORN));
            }
        }
        Ok(())
    }

    /// Reads the checkpoint and looks through the journal.
    fn journal(&mut self) -> Result<Journal, OpenError> {
        let seen = self.checkpoint()?;
        let (files, dir) = (self.files, self.dir);
        let found = walk::walk(&files, dir, seen, self)?;
        for source in found.sources.iter().filter(|source| source.torn) {
            let detail = "the journal ends in a frame that was never finished";
            let finding = Finding::new(Kind::TornTail, &source.name, source.used as u64, detail, means::TORN);
            self.seen.findings.push(finding);
        }
        let first = found.sources.first().map(|source| source.first);
        let base = match (seen, first) {
            (Seen::Applied(_), _) => Base::Checkpoint,
            (_, Some(1)) => Base::Nothing,
            (Seen::Absent, None) if self.seen.findings.is_empty() => Base::Nothing,
            _ => Base::Segments,
        };
        if let (Base::Segments, Seen::Unreadable) = (base, seen) {
            let told = self.seen.findings.iter().position(|finding| finding.kind == Kind::BadCheckpoint);
            self.missing.insert(0, (told.unwrap_or(0), 0..first.unwrap_or(1)));
        }
        Ok(Journal { found, base, bad: HashMap::new(), stored: HashMap::new() })
    }

    fn checkpoint(&mut self) -> Result<Seen, OpenError> {
        match recovery::read_checkpoint(&self.files, self.dir) {
            Ok(None) => Ok(Seen::Absent),
            Ok(Some(snapshot)) => {
                self.applied = snapshot.applied;
                Ok(Seen::Applied(snapshot.applied))
            }
            Err(OpenError::Damaged { file, offset, detail }) => {
                let finding = Finding::new(Kind::BadCheckpoint, &file, offset, detail, means::BAD_CHECKPOINT);
                self.seen.findings.push(finding);
                Ok(Seen::Unreadable)
            }
            Err(error) => Err(error),
        }
    }

    /// The state that the journal's frames are applied to.
    fn base(&self, journal: &Journal) -> Result<State, OpenError> {
        let mut state = State::new(EmbeddedLimits::default());
        match journal.base {
            Base::Nothing => {}
            Base::Checkpoint => {
                if let Some(snapshot) = recovery::read_checkpoint(&self.files, self.dir)? {
                    state.restore(snapshot);
                }
            }
            Base::Segments => survey::survey((&self.files, self.dir), self.known, &mut state, self.now)?,
        }
        Ok(state)
    }

    /// Applies the journal to a state that keeps no bodies of logs; lists what is lost by what it lacks.
    fn ghost(&mut self, journal: &mut Journal) -> Result<State, OpenError> {
        let mut state = self.base(journal)?;
        self.check(&state);
        journal.stored =
            state.topics.values().flat_map(|topic| topic.lanes()).map(|(id, lane)| (id, lane.end)).collect();
        self.tell_bad_bodies(journal);
        if journal.base == Base::Segments {
            // What dead letters are listed is a position, too.
            for group in state.topics.values().flat_map(|topic| topic.groups.values()) {
                let GroupSpec { topic, group, name, .. } = group.spec.clone();
                let lost = Lost::Position { topic, group, name: name.to_string() };
                self.attribute(Loss { lost, frame: 1, body: None }, &journal.bad);
            }
        }
        let bytes = journal.found.sources.iter().map(|source| source.used as u64).sum();
        (self.told)(Progress::Begins("journal", bytes));
        let mut salvage = self.salvage(journal);
        let mut frames = 0;
        for source in &journal.found.sources {
            let bytes = read_whole(&*source.file, &source.name)?;
            each_frame(source, &bytes, self.applied, &mut |frame| {
                let bodies = frame.bodies.into_iter().map(without_content).collect();
                salvage.frame(&mut state, frame.sequence, frame.ops, bodies);
                forget(&mut state);
                frames += 1;
                Ok(())
            })?;
            (self.told)(Progress::Did(source.used as u64));
        }
        salvage.complete(&mut state);
        forget(&mut state);
        let losses = salvage.losses;
        self.seen.frames = frames;
        losses.into_iter().for_each(|loss| self.attribute(loss, &journal.bad));
        self.tell_stale_bodies(journal, &state);
        Ok(state)
    }

    fn salvage<'j>(&self, journal: &'j Journal) -> Salvage<'j>
    where
        'a: 'j,
    {
        let holes = !self.missing.is_empty() || journal.base == Base::Segments;
        Salvage::new(self.known, &journal.bad, holes, self.now)
    }

    /// What a checkpoint says must hold together. Its lanes are held against their segments later.
    fn check(&mut self, state: &State) {
        for topic in state.topics.values() {
            for (id, lane) in topic.lanes() {
                let ahead = topic.groups.values().any(|group| {
                    let part = group.partitions.get(usize::from(id.partition));
                    let cursor = part.and_then(|part| part.cursors[usize::from(id.lane)].as_deref());
                    cursor.is_some_and(|cursor| cursor.floor > lane.end)
                });
                if ahead || lane.start > lane.end {
                    let detail = format!("topic {} partition {}: a place beyond the end", id.topic.0, id.partition);
                    let finding = Finding::new(Kind::Inconsistent, CHECKPOINT, 0, detail, means::INCONSISTENT);
                    self.seen.findings.push(finding);
                }
            }
        }
    }

    /// One finding for messages that follow one another in a frame.
    fn tell_bad_bodies(&mut self, journal: &mut Journal) {
        let mut before: Option<(u64, Owner)> = None;
        for suspect in journal.found.suspects.iter().filter(|suspect| suspect.frame > self.applied) {
            let follows = matches!((before, suspect.owner), (Some((frame, Owner::Log(lane, at))), Owner::Log(id, next))
                if frame == suspect.frame && lane == id && at + 1 == next);
            if !follows {
                let (file, offset) = (&suspect.file, suspect.offset as u64);
                let detail = "a message does not match its checksum";
                self.seen.findings.push(Finding::new(Kind::BadPayload, file, offset, detail, means::BODY));
            }
            before = Some((suspect.frame, suspect.owner));
            journal.bad.insert(suspect.owner, self.seen.findings.len() - 1);
        }
    }

    /// Bodies that the checkpoint made needless: nothing is lost by them, but the disk has changed a byte.
    fn tell_stale_bodies(&mut self, journal: &Journal, ghost: &State) {
        let overwritten: HashSet<Owner> = ghost.erasing.iter().copied().collect();
        for suspect in journal.found.suspects.iter().filter(|suspect| suspect.frame <= self.applied) {
            let needed = match suspect.owner {
                Owner::Log(id, sequence) => {
                    ghost.lane(id).is_some_and(|lane| sequence >= lane.start && !lane.erased.contains(sequence))
                }
                Owner::Scheduled(topic, _) => ghost.topics.contains_key(&topic),
            };
            if needed && !overwritten.contains(&suspect.owner) {
                let (file, offset) = (&suspect.file, suspect.offset as u64);
                let detail = "a message does not match its checksum";
                self.seen.findings.push(Finding::new(Kind::BadPayload, file, offset, detail, means::STALE_BODY));
            }
        }
    }

    /// Writes a loss to the finding that explains it.
    fn attribute(&mut self, loss: Loss, bad: &HashMap<Owner, usize>) {
        let by_body = loss.body.and_then(|body| bad.get(&body)).copied();
        let by_frame = || self.missing.iter().rev().find(|(_, frames)| frames.start <= loss.frame).map(|(at, _)| *at);
        if let Some(finding) = by_body.or_else(by_frame).and_then(|at| self.seen.findings.get_mut(at)) {
            finding.lose(loss.lost);
            return;
        }
        let (kind, detail, means) = match &loss.lost {
            Lost::Settings { .. } => (Kind::MissingTopic, "the catalog has a topic that the store lacks", means::TOPIC),
            Lost::Position { .. } => {
                (Kind::MissingPosition, "the catalog has a subscription that the store lacks", means::POSITION)
            }
            _ => (Kind::Inconsistent, "the journal's frames do not follow one another", means::INCONSISTENT),
        };
        let mut finding = Finding::new(kind, CHECKPOINT, 0, detail, means);
        finding.lose(loss.lost);
        self.seen.findings.push(finding);
    }

    fn end(mut self, ghost: &State) -> Inspection {
        for (id, topic) in &ghost.topics {
            let messages = topic.lanes().map(|(_, lane)| lane.end - lane.start.min(lane.end)).sum();
            let groups = topic.groups.values().map(|group| group.spec.clone()).collect();
            self.seen.topics.insert(*id, TopicSeen { spec: topic.spec.clone(), groups, messages });
        }
        self.seen
    }
}

/// A body of which only the head matters.
fn without_content(body: Body) -> Body {
    Body { head: body.head, meta: Bytes::new(), payload: Bytes::new() }
}

/// Lets go of all messages: the journal is read to know what there is, not to hold it.
fn forget(state: &mut State) {
    let lanes: Vec<LaneId> = state.unflushed.drain().map(|(id, _)| id).collect();
    for id in lanes {
        if let Some(lane) = state.topics.get_mut(&id.topic).and_then(|topic| topic.lane_mut(id.partition, id.lane)) {
            lane.forget_tail();
            lane.flushed = lane.end;
        }
    }
    state.forget_memory();
}
