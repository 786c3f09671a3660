//! Which of the messages that were read a lease grants. Invariant: the highest lane goes first, and every 8th grant goes to the
//! lowest; or the order of appending is kept, with one message of a key at a time. Never goes on beyond what was read of a
//! lane. Touches no database.

use std::collections::{HashSet, VecDeque};

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::sql::LANES;
use crate::message::MessageId;
use crate::store::LeaseRequest;

/// The lowest lane has every so many-th grant.
const LOWEST_TURN: i64 = 8;
/// Messages parked behind others of their key, per group and partition; beyond, the partition waits.
pub(super) const PARKED_MAX: usize = 4096;

/// A message that may be granted.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub seq: i64,
    pub stamp: i64,
    pub at: i64,
    pub id: MessageId,
    pub expires: Option<i64>,
    pub key: Option<i64>,
    pub len: i64,
    /// Attempts so far, where `retries` has it.
    pub again: Option<u32>,
    /// Whether it may go now; false for those that only keep their key.
    pub ready: bool,
}

impl Candidate {
    /// Partition, lane, and a new message, of a row that begins with these and `seq, stamp, at, id, expires, key`, its length.
    pub fn read(row: &PgRow) -> Result<(i16, i16, Candidate), sqlx::Error> {
        let candidate = Candidate {
            seq: row.try_get(2)?,
            stamp: row.try_get(3)?,
            at: row.try_get(4)?,
            id: MessageId(row.try_get(5)?),
            expires: row.try_get(6)?,
            key: row.try_get(7)?,
            len: row.try_get(8)?,
            again: None,
            ready: true,
        };
        Ok((row.try_get(0)?, row.try_get(1)?, candidate))
    }

    /// Whether it is past its expiry, or older than its topic keeps messages.
    pub fn is_past(&self, now: i64, cutoff: i64) -> bool {
        self.at <= cutoff || self.expires.is_some_and(|at| at <= now)
    }
}

/// A partition whose cursor is locked.
pub(super) struct Part {
    pub part: i16,
    pub nexts: Vec<i64>,
    pub heads: Vec<i64>,
    pub seen: i64,
    pub granted: i64,
    /// By lane, in the order of offsets: first what waits again, then what is new.
    pub queues: Vec<VecDeque<Candidate>>,
    /// Lanes of which there may be more behind what was read.
    pub cut: Vec<bool>,
    /// By lane, when the last new message that was taken had come.
    pub taken: Vec<Option<i64>>,
    /// Keys that are held.
    pub held: HashSet<i64>,
    pub parked: usize,
}

/// What is decided.
#[derive(Default)]
pub(super) struct Chosen {
    /// In grant order: partition, lane, message.
    pub granted: Vec<(i16, usize, Candidate)>,
    pub passed: Vec<(i16, usize, Candidate)>,
    pub parked: Vec<(i16, usize, Candidate)>,
    /// Messages, and their bytes, with those of the call's looks before this one.
    pub count: usize,
    pub bytes: i64,
    pub more: bool,
    /// Whether what was read was not enough to go on: what comes next is behind it.
    pub is_short: bool,
}

impl Chosen {
    /// Whether a message of so many bytes is more than was asked for; the first is granted whatever its size.
    pub fn is_full(&self, request: &LeaseRequest, len: i64) -> bool {
        let bytes_max = i64::try_from(request.bytes_max).unwrap_or(i64::MAX);
        self.count >= request.max || (self.count > 0 && self.bytes + len > bytes_max)
    }

    pub fn grant(&mut self, part: i16, lane: usize, candidate: Candidate) {
        self.count += 1;
        self.bytes += candidate.len;
        self.granted.push((part, lane, candidate));
    }

    pub fn fell_short(mut self) -> Chosen {
        (self.more, self.is_short) = (true, true);
        self
    }
}

impl Part {
    /// Takes the first message of a lane, and moves the cursor behind it.
    pub fn take(&mut self, lane: usize) -> Option<Candidate> {
        let candidate = self.queues[lane].pop_front()?;
        if candidate.again.is_none() {
            self.nexts[lane] = candidate.seq + 1;
            self.taken[lane] = Some(candidate.at);
        }
        if self.queues[lane].is_empty() && !self.cut[lane] {
            // What is missing up to the head was erased.
            self.nexts[lane] = self.nexts[lane].max(self.heads[lane]);
        }
        Some(candidate)
    }

    /// Whether there is, or may be, something of a lane.
    pub fn has(&self, lane: usize) -> bool {
        self.cut[lane] || !self.queues[lane].is_empty()
    }

    /// Before when no message has come that is still to be taken.
    pub fn seen_now(&self) -> i64 {
        let (mut first, mut last) = (None, self.seen);
        for lane in 0..LANES {
            let waiting = self.queues[lane].iter().find(|candidate| candidate.again.is_none());
            let behind = self.nexts[lane] < self.heads[lane];
            let bound = waiting.map(|candidate| candidate.at);
            let bound = bound.or(behind.then(|| self.taken[lane].unwrap_or(self.seen)));
            first = first.into_iter().chain(bound).min();
            last = self.taken[lane].map_or(last, |at| at.max(last));
        }
        // What comes later comes after all that was taken.
        first.unwrap_or(last).max(self.seen)
    }

    /// Lanes that had nothing at all to show: what is missing in them was erased.
    pub fn close_empty_lanes(&mut self) {
        for lane in 0..LANES {
            if self.queues[lane].is_empty() && !self.cut[lane] {
                self.nexts[lane] = self.nexts[lane].max(self.heads[lane]);
            }
        }
    }
}

/// Chooses by lane: the highest first, every 8th from the lowest.
pub(super) fn by_lane(mut chosen: Chosen, parts: &mut [Part], request: &LeaseRequest, now: i64, cutoff: i64) -> Chosen {
    let mut turn: i64 = parts.iter().map(|part| part.granted).sum();
    parts.iter_mut().for_each(Part::close_empty_lanes);
    loop {
        let lowest = (turn + 1) % LOWEST_TURN == 0;
        // With those of which there may be more than was read.
        let mut lanes = (0..LANES).filter(|lane| parts.iter().any(|part| part.has(*lane)));
        let Some(lane) = (if lowest { lanes.next() } else { lanes.next_back() }) else { return chosen };
        let Some(part) = parts.iter_mut().find(|part| !part.queues[lane].is_empty()) else {
            return chosen.fell_short();
        };
        let Some(first) = part.queues[lane].front() else { return chosen };
        let past = first.is_past(now, cutoff);
        if !past && chosen.is_full(request, first.len) {
            chosen.more = true;
            return chosen;
        }
        let number = part.part;
        let Some(candidate) = part.take(lane) else { return chosen };
        if past {
            chosen.passed.push((number, lane, candidate));
        } else {
            turn += 1;
            chosen.grant(number, lane, candidate);
        }
    }
}

/// Chooses in the order of appending, one message of a key at a time.
pub(super) fn in_order(
    mut chosen: Chosen,
    parts: &mut [Part],
    request: &LeaseRequest,
    now: i64,
    cutoff: i64,
) -> Chosen {
    for part in parts.iter_mut() {
        part.close_empty_lanes();
        let mut parked = part.parked;
        loop {
            let firsts = (0..LANES).filter_map(|lane| Some((part.queues[lane].front()?.stamp, lane)));
            let first = firsts.min();
            // Behind the end of what was read of a lane there may be an earlier one than this.
            if (0..LANES).any(|other| part.cut[other] && part.queues[other].is_empty()) {
                (chosen.more, chosen.is_short) = (true, true);
                break;
            }
            let Some((_, lane)) = first else { break };
            let Some(first) = part.queues[lane].front().cloned() else { break };
            let number = part.part;
            if first.is_past(now, cutoff) {
                chosen.passed.extend(part.take(lane).map(|candidate| (number, lane, candidate)));
                continue;
            }
            let blocked = first.key.is_some_and(|key| part.held.contains(&key));
            if blocked || !first.ready {
                part.held.extend(first.key);
                if first.again.is_none() {
                    if parked >= PARKED_MAX {
                        break;
                    }
                    parked += 1;
                    chosen.parked.push((number, lane, first));
                }
                part.take(lane);
                continue;
            }
            if chosen.is_full(request, first.len) {
                chosen.more = true;
                return chosen;
            }
            part.held.extend(first.key);
            if let Some(candidate) = part.take(lane) {
                chosen.grant(number, lane, candidate);
            }
        }
    }
    chosen
}
