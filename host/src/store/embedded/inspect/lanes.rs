//! Holding lanes against their segments. Invariant: every message that a lane has below what the journal brings is read and
//! checked; what cannot be read is looked for in the journal, and else lost, by its offset. What is read goes to the new
//! directory, if there is one.

use std::ops::Range;

use super::finding::{Finding, Kind, lost_messages};
use super::rebuild::Target;
use super::rescue::Rescue;
use super::scan::{Extent, Piece, scan};
use super::{Inspector, Journal, Progress, means};
use crate::store::embedded::ops::{Entry, LaneId};
use crate::store::embedded::recovery::OpenError;
use crate::store::embedded::segment::{Block, Segment, SegmentFiles, Span};
use crate::store::embedded::state::State;
use crate::store::embedded::state::lane::Lane;

/// See the module.
pub(super) struct Lanes<'i, 'a> {
    inspector: &'i mut Inspector<'a>,
    journal: &'i Journal,
    ghost: &'i State,
    target: Option<&'i mut Target>,
    /// Made when it is first needed.
    rescue: Option<Rescue<'i>>,
}

/// A segment that is being read.
struct Reading<'l> {
    id: LaneId,
    lane: &'l Lane,
    file: String,
    /// What its blocks hold, as long as none is missing.
    span: Option<Span>,
    whole: bool,
}

impl<'i, 'a> Lanes<'i, 'a> {
    /// For what the journal made of the checkpoint.
    pub fn new(
        inspector: &'i mut Inspector<'a>,
        journal: &'i Journal,
        ghost: &'i State,
        target: Option<&'i mut Target>,
    ) -> Lanes<'i, 'a> {
        Lanes { inspector, journal, ghost, target, rescue: None }
    }

    /// Reads all lanes.
    ///
    /// # Errors
    /// See [`OpenError`]; damage is none.
    pub fn read(mut self) -> Result<(), OpenError> {
        let ghost = self.ghost;
        let lanes = || ghost.topics.values().flat_map(|topic| topic.lanes());
        let bytes = lanes().flat_map(|(_, lane)| &lane.segments).map(|segment| segment.len).sum();
        (self.inspector.told)(Progress::Begins("segments", bytes));
        for (id, lane) in lanes() {
            self.lane(id, lane)?;
        }
        Ok(())
    }

    fn lane(&mut self, id: LaneId, lane: &Lane) -> Result<(), OpenError> {
        let mut next = lane.start;
        for segment in &lane.segments {
            let (first, file) = (segment.span.first, SegmentFiles::relative(id, segment.span.first));
            if first > next {
                let detail = format!("no segment has the messages before this one ({next} to {})", first - 1);
                let finding = Finding::new(Kind::MissingSegment, &file, 0, detail, "");
                self.gap(id, lane, next..first, finding)?;
            }
            self.segment(id, lane, segment, file)?;
            next = next.max(segment.span.end);
        }
        let stored = self.journal.stored.get(&id).copied().unwrap_or(0);
        if next < stored {
            let file = SegmentFiles::relative(id, next);
            let detail = format!("no segment has the lane's last messages ({next} to {})", stored - 1);
            self.gap(id, lane, next..stored, Finding::new(Kind::MissingSegment, &file, 0, detail, ""))?;
        }
        match &mut self.target {
            Some(target) => target.end_lane(id),
            None => Ok(()),
        }
    }

    fn segment(&mut self, id: LaneId, lane: &Lane, segment: &Segment, file: String) -> Result<(), OpenError> {
        if let Some(target) = &mut self.target {
            target.begin_segment(id, segment)?;
        }
        let mut reading = Reading { id, lane, file, span: None, whole: true };
        let extent = Extent { first: segment.span.first, end: Some((segment.span.end, segment.len)) };
        let (files, dir) = (self.inspector.files, self.inspector.dir);
        scan((&files, dir), id, extent, &mut |piece| self.piece(&mut reading, piece))?;
        if reading.whole && reading.span != Some(segment.span) {
            let detail = "the checkpoint says of this segment what its blocks do not";
            let finding = Finding::new(Kind::Inconsistent, &reading.file, 0, detail, means::SPAN);
            self.inspector.seen.findings.push(finding);
        }
        Ok(())
    }

    fn piece(&mut self, reading: &mut Reading<'_>, piece: Piece) -> Result<(), OpenError> {
        match piece {
            Piece::Block { block, bad, erased, bytes } => {
                let of = Span::of(block.first, block.entries.iter().map(|entry| (&entry.body.head, entry.at)));
                reading.span = Some(reading.span.map_or(of, |span| span.join(of)));
                self.block(reading, block, &bad, &erased)?;
                (self.inspector.told)(Progress::Did(bytes));
                Ok(())
            }
            Piece::Gap { kind: Kind::BadHeader, offset, detail, .. } => {
                let finding = Finding::new(Kind::BadHeader, &reading.file, offset, detail, means::SEGMENT_HEADER);
                self.inspector.seen.findings.push(finding);
                Ok(())
            }
            Piece::Gap { messages, kind, offset, detail, bytes } => {
                reading.whole = false;
                (self.inspector.told)(Progress::Did(bytes));
                let finding = Finding::new(kind, &reading.file, offset, detail, "");
                self.gap(reading.id, reading.lane, messages, finding)
            }
        }
    }

    fn block(
        &mut self,
        reading: &Reading<'_>,
        block: Block,
        bad: &[(u64, u64)],
        erased: &[u64],
    ) -> Result<(), OpenError> {
        let (id, lane) = (reading.id, reading.lane);
        let mut bad = bad.iter().copied().peekable();
        for (sequence, entry) in (block.first..).zip(block.entries) {
            if let Some((_, offset)) = bad.next_if(|(at, _)| *at == sequence)
                && !lane.erased.contains(sequence)
            {
                let detail = "a message does not match its checksum";
                let finding = Finding::new(Kind::BadMessage, &reading.file, offset, detail, "");
                self.gap(id, lane, sequence..sequence + 1, finding)?;
                continue;
            }
            if sequence >= lane.start
                && let Some(target) = &mut self.target
            {
                // Overwritten without a tombstone: the frame that said so is lost.
                let unreadable = lane.erased.contains(sequence) || erased.contains(&sequence);
                target.put(id, sequence, entry, unreadable)?;
            }
        }
        Ok(())
    }

    /// Messages that no whole block has.
    fn gap(&mut self, id: LaneId, lane: &Lane, range: Range<u64>, mut finding: Finding) -> Result<(), OpenError> {
        let mut rescued = 0;
        for sequence in range.start.max(lane.start)..range.end.max(lane.start) {
            let erased = lane.erased.contains(sequence);
            let entry = if erased { None } else { self.rescued(id, sequence)? };
            rescued += u64::from(entry.is_some());
            if entry.is_none() && !erased {
                finding.lose(lost_messages(id, sequence..sequence + 1));
            }
            if let Some(target) = &mut self.target {
                match entry {
                    Some(entry) => target.put(id, sequence, entry, false)?,
                    None => target.put_tombstone(id, sequence)?,
                }
            }
        }
        self.inspector.seen.rescued += rescued;
        finding.means = means::messages(finding.messages_lost(), rescued);
        self.tell(finding);
        Ok(())
    }

    /// Bad messages that follow one another are one finding.
    fn tell(&mut self, finding: Finding) {
        let findings = &mut self.inspector.seen.findings;
        match findings.last_mut() {
            Some(last)
                if (last.kind, &last.file, finding.kind) == (Kind::BadMessage, &finding.file, Kind::BadMessage)
                    && last.is_followed_by(&finding) =>
            {
                finding.lost.into_iter().for_each(|lost| last.lose(lost));
                last.means = means::messages(last.messages_lost(), 0);
            }
            _ => findings.push(finding),
        }
    }

    fn rescued(&mut self, id: LaneId, sequence: u64) -> Result<Option<Entry>, OpenError> {
        let rescue = match &mut self.rescue {
            Some(rescue) => rescue,
            none => none.insert(Rescue::look(&self.journal.found)?),
        };
        rescue.entry(id, sequence)
    }
}
