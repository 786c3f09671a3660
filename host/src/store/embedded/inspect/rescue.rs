//! Messages that a segment lost and that the journal still has: a file of it goes only as a whole, so it often has frames
//! that the checkpoint made needless. Invariant: what is given out matches its checksum. Knows where messages stand, and
//! holds the bodies of one frame.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::message::TopicId;
use crate::store::embedded::files::read_full;
use crate::store::embedded::frame;
use crate::store::embedded::frames::{each_frame, read_whole, take_apart};
use crate::store::embedded::ops::{Body, Entry, LaneId, Op, Owner};
use crate::store::embedded::recovery::OpenError;
use crate::store::embedded::walk::{Found, Source};

/// Where a frame stands: which of the journal's files, where it begins, its length.
type Place = (usize, usize, usize);

/// Messages that follow one another and entered the log together.
#[derive(Debug, Clone, Copy)]
struct Run {
    count: u64,
    stamp: u64,
    at: Timestamp,
    place: Place,
    /// For one that had waited: under this number.
    scheduled: Option<(TopicId, u64)>,
}

/// See the module.
pub(super) struct Rescue<'a> {
    sources: &'a [Source],
    runs: BTreeMap<(LaneId, u64), Run>,
    frame: Option<(Place, HashMap<Owner, Body>)>,
}

impl<'a> Rescue<'a> {
    /// Looks through all that is whole in the journal.
    pub fn look(found: &'a Found) -> Result<Rescue<'a>, OpenError> {
        let mut rescue = Rescue { sources: &found.sources, runs: BTreeMap::new(), frame: None };
        let mut waiting: HashMap<(TopicId, u64), Place> = HashMap::new();
        for (nth, source) in found.sources.iter().enumerate() {
            let bytes = read_whole(&*source.file, &source.name)?;
            each_frame(source, &bytes, 0, &mut |frame| {
                frame.ops.iter().for_each(|op| rescue.note((nth, frame.at, frame.len), op, &mut waiting));
                Ok(())
            })?;
        }
        Ok(rescue)
    }

    fn note(&mut self, place: Place, op: &Op, waiting: &mut HashMap<(TopicId, u64), Place>) {
        match op {
            Op::Append { lane, first, stamp, at, heads } => {
                let (count, scheduled) = (heads.len() as u64, None);
                self.runs.insert((*lane, *first), Run { count, stamp: *stamp, at: *at, place, scheduled });
            }
            Op::Scheduled { topic, number, .. } => {
                waiting.insert((*topic, *number), place);
            }
            Op::Due { topic, number, lane, sequence, stamp, at } => {
                if let Some(place) = waiting.get(&(*topic, *number)).copied() {
                    let scheduled = Some((*topic, *number));
                    self.runs.insert((*lane, *sequence), Run { count: 1, stamp: *stamp, at: *at, place, scheduled });
                }
            }
            _ => {}
        }
    }

    /// A message, if the journal has it whole.
    pub fn entry(&mut self, lane: LaneId, sequence: u64) -> Result<Option<Entry>, OpenError> {
        // Not a run of the lane before.
        let Some(((_, first), run)) = self.runs.range((lane, 0)..=(lane, sequence)).next_back() else {
            return Ok(None);
        };
        let (nth, run) = (sequence - first, *run);
        if nth >= run.count {
            return Ok(None);
        }
        self.load(run.place)?;
        let owner = run.scheduled.map_or(Owner::Log(lane, sequence), |(topic, number)| Owner::Scheduled(topic, number));
        let body = self.frame.as_ref().and_then(|(_, bodies)| bodies.get(&owner)).cloned();
        Ok(body.map(|body| Entry { at: run.at, stamp: run.stamp + nth, body }))
    }

    fn load(&mut self, place: Place) -> Result<(), OpenError> {
        if self.frame.as_ref().is_some_and(|(known, _)| *known == place) {
            return Ok(());
        }
        let source = &self.sources[place.0];
        let (_, at, len) = place;
        let mut bytes = vec![0; len];
        read_full(&*source.file, &mut bytes, at as u64).map_err(OpenError::io(format!("reading {}", source.name)))?;
        let bytes = Bytes::from(bytes);
        let mut whole = HashMap::new();
        if let Some((_, head, bodies)) = frame::split(source.id, &bytes)
            && let Ok((ops, bodies)) = take_apart(head, &bytes.slice_ref(bodies))
        {
            let owners = ops.iter().flat_map(Op::bodies).map(|(owner, _)| owner);
            let matching =
                |body: &Body| crc32c::crc32c_append(crc32c::crc32c(&body.meta), &body.payload) == body.head.crc;
            whole.extend(owners.zip(bodies).filter(|(_, body)| matching(body)));
        }
        self.frame = Some((place, whole));
        Ok(())
    }
}
