//! What the segments alone tell, when the checkpoint is lost. Invariant: a lane goes from the first message that a segment
//! has to the last one. Reads all of them.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use super::salvage::{Known, guessed_topic};
use super::scan::{Extent, Piece, scan};
use crate::clock::Timestamp;
use crate::message::TopicId;
use crate::store::embedded::files::FileLayer;
use crate::store::embedded::frame::FILE_HEADER_BYTES;
use crate::store::embedded::ops::{LaneId, Op};
use crate::store::embedded::recovery::OpenError;
use crate::store::embedded::segment::{Block, Segment, SegmentFiles, Span};
use crate::store::embedded::state::lane::Lane;
use crate::store::embedded::state::{Applying, State};

/// Makes the topics that the catalog knows and the lanes that segments have.
pub(super) fn survey(
    place: (&dyn FileLayer, &Path),
    known: &Known,
    state: &mut State,
    now: Timestamp,
) -> Result<(), OpenError> {
    let make = |state: &mut State, spec| state.apply(Op::Topic(spec), &mut std::iter::empty(), now, Applying::Replay);
    known.topics.iter().for_each(|spec| make(state, spec.clone()));
    for (id, firsts) in lanes(place)? {
        if !state.topics.contains_key(&id.topic) {
            make(state, guessed_topic(id.topic));
        }
        let mut lane = Lane::stored(firsts[0], firsts[0], VecDeque::new());
        let mut stamps = (state.next_stamp, state.last_at);
        for first in firsts {
            segment(place, id, first, &mut lane, &mut stamps)?;
        }
        (state.next_stamp, state.last_at) = stamps;
        lane.flushed = lane.end;
        let Some(topic) = state.topics.get_mut(&id.topic) else { continue };
        topic.appended_total += lane.end - lane.start;
        if let Some(found) = topic.lane_mut(id.partition, id.lane) {
            *found = lane;
        }
    }
    Ok(())
}

/// The segments that there are: of each lane, the first messages.
fn lanes((files, dir): (&dyn FileLayer, &Path)) -> Result<BTreeMap<LaneId, Vec<u64>>, OpenError> {
    let listing = || OpenError::io(format!("listing {}", dir.display()));
    let mut lanes: BTreeMap<LaneId, Vec<u64>> = BTreeMap::new();
    for topic_dir in files.list(dir).map_err(listing())? {
        let Some(topic) = topic_dir.strip_prefix("topic-").and_then(|number| number.parse().ok()) else { continue };
        // Sorted by name, and so by first message.
        for name in files.list(&dir.join(&topic_dir)).map_err(listing())? {
            if let Some((id, first)) = SegmentFiles::parse_name(TopicId(topic), &name) {
                lanes.entry(id).or_default().push(first);
            }
        }
    }
    Ok(lanes)
}

fn segment(
    place: (&dyn FileLayer, &Path),
    id: LaneId,
    first: u64,
    lane: &mut Lane,
    stamps: &mut (u64, Timestamp),
) -> Result<(), OpenError> {
    if first < lane.end {
        // The one before has these messages.
        return Ok(());
    }
    let (mut span, mut len): (Option<Span>, u64) = (None, FILE_HEADER_BYTES as u64);
    scan(place, id, Extent { first, end: None }, &mut |piece| {
        match piece {
            Piece::Gap { bytes, .. } => len += bytes,
            Piece::Block { block, erased, bytes, .. } => {
                len += bytes;
                let heads = block.entries.iter().map(|entry| (&entry.body.head, entry.at));
                let of = Span::of(block.first, heads);
                span = Some(span.map_or(Span { first, ..of }, |span| span.join(of)));
                for sequence in erased {
                    lane.erased.insert(sequence..sequence + 1);
                }
                note(&block, lane, stamps);
            }
        }
        Ok(())
    })?;
    if let Some(span) = span {
        lane.end = span.end;
        lane.bytes += span.bytes;
        lane.segments.push_back(Segment { span, len, sealed: true, index: None });
    }
    Ok(())
}

fn note(block: &Block, lane: &mut Lane, stamps: &mut (u64, Timestamp)) {
    for (sequence, entry) in (block.first..).zip(&block.entries) {
        *stamps = (stamps.0.max(entry.stamp + 1), stamps.1.max(entry.at));
        if let Some(group) = entry.body.head.target {
            lane.add_target(sequence..sequence + 1, group);
        }
    }
}
