//! Cursors as such: moved, emptied, kept under a name; and the list of dead letters, which is what waits for the one group of
//! their topic. Invariant: what changes a cursor holds its rows, in the order of partitions.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sqlx::Row as _;

use super::Shared;
use super::control::{Lanes, lock_partitions, places};
use super::grant::{Entry, Grant, grants};
use super::log::array;
use super::sql::{LANES, Tx, commit, damaged, failed, g, lane_and_seq, lane_number, now, p, place_of, t};
use crate::clock::Timestamp;
use crate::message::{GroupId, Position, TopicId};
use crate::store::{SNAPSHOTS_MAX, SeekTo, StoreError};

/// Gaps that a snapshot keeps of what is settled between messages that are not; what is settled beyond them comes again.
const GAPS_MAX: usize = 10_000;

/// Where one lane stood, as a snapshot has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Mark {
    pub part: i16,
    pub lane: u8,
    /// All below was settled.
    pub floor: i64,
    /// What was settled above it.
    pub settled: Vec<(i64, i64)>,
}

/// A group's rows, locked.
pub(super) struct Standing {
    /// By partition.
    nexts: BTreeMap<i16, Vec<i64>>,
    pub parts: Vec<Lanes>,
    pub grants: Vec<Grant>,
    /// Partition, place, whether a grant holds it.
    retries: Vec<(i16, i64, bool)>,
    /// Partition, lane, range.
    settled: Vec<(i16, i16, i64, i64)>,
}

impl Standing {
    pub async fn lock(tx: &mut Tx, topic: TopicId, group: GroupId) -> Result<Standing, StoreError> {
        let (topic, group) = (t(topic), g(group));
        let rows: Vec<(i16, Vec<i64>)> =
            sqlx::query_as("SELECT part, nexts FROM cursors WHERE topic = $1 AND grp = $2 ORDER BY part FOR UPDATE")
                .bind(topic)
                .bind(group)
                .fetch_all(&mut **tx)
                .await
                .map_err(failed)?;
        let grants = sqlx::query(grants!("WHERE g.topic = $1 AND g.grp = $2 ORDER BY g.epoch, g.number FOR UPDATE"))
            .bind(topic)
            .bind(group)
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
        let grants = grants.iter().map(Grant::read).collect::<Result<Vec<_>, _>>()?;
        let parts = lock_partitions(tx, topic).await?;
        if parts.is_empty() {
            return Err(StoreError::NoTopic);
        }
        if rows.is_empty() {
            return Err(StoreError::NoGroup);
        }
        let retries: Vec<(i16, i64, bool)> =
            sqlx::query_as("SELECT part, place, at = 9223372036854775807 FROM retries WHERE topic = $1 AND grp = $2")
                .bind(topic)
                .bind(group)
                .fetch_all(&mut **tx)
                .await
                .map_err(failed)?;
        let settled: Vec<(i16, i16, i64, i64)> = sqlx::query_as(
            "SELECT part, lane, first, until FROM settled_ranges WHERE topic = $1 AND grp = $2 ORDER BY part, lane, first",
        )
        .bind(topic)
        .bind(group)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        Ok(Standing { nexts: rows.into_iter().collect(), parts, grants, retries, settled })
    }

    /// What is open below the cursors, by partition and place: leased, or waiting for another attempt.
    fn open(&self) -> BTreeSet<(i16, i64)> {
        let leased = self.grants.iter().flat_map(|grant| {
            grant.open().map(|(_, entry)| (grant.place.1, place_of(entry.lane, entry.seq))).collect::<Vec<_>>()
        });
        leased.chain(self.retries.iter().map(|(part, place, _)| (*part, *place))).collect()
    }
}

impl Shared {
    /// See [`crate::store::MessageStore::seek`].
    pub(super) async fn seek(&self, topic: TopicId, group: GroupId, to: SeekTo) -> Result<(), StoreError> {
        let mut tx = self.begin_slow().await?;
        let standing = Standing::lock(&mut tx, topic, group).await?;
        let moves = places(&mut tx, t(topic), &standing.parts, to).await?;
        self.place(&mut tx, (topic, group), standing, &moves, &[]).await?;
        commit(tx).await?;
        self.wake(topic);
        Ok(())
    }

    /// Moves cursors in some lanes, with what is settled above them. Leases of other lanes live on.
    async fn place(
        &self,
        tx: &mut Tx,
        (topic, group): (TopicId, GroupId),
        standing: Standing,
        moves: &[(i16, usize, i64)],
        settled: &[(i16, i16, i64, i64)],
    ) -> Result<(), StoreError> {
        let Standing { mut nexts, mut grants, .. } = standing;
        // What was leased of a lane that is moved is forgotten, as all that was known of it.
        for grant in &mut grants {
            let moved = |entry: &Entry| {
                moves.iter().any(|(part, lane, _)| (*part, *lane as i16) == (grant.place.1, entry.lane))
            };
            let forgotten: Vec<usize> = grant.open().filter(|(_, entry)| moved(entry)).map(|(nth, _)| nth).collect();
            forgotten.into_iter().for_each(|nth| grant.close(nth));
        }
        Grant::write(&grants, tx).await?;
        for (part, lane, seq) in moves {
            if let Some(lanes) = nexts.get_mut(part) {
                lanes[*lane] = *seq;
            }
        }
        let (parts, lanes): (Vec<i16>, Vec<i16>) =
            moves.iter().map(|(part, lane, _)| (*part, lane_number(*lane))).unzip();
        // A lane that is moved forgets its exceptions.
        for sql in [
            "DELETE FROM retries r USING unnest($3::smallint[], $4::smallint[]) AS w(part, lane) \
             WHERE r.topic = $1 AND r.grp = $2 AND r.part = w.part AND r.place >> 48 = w.lane",
            "DELETE FROM settled_ranges s USING unnest($3::smallint[], $4::smallint[]) AS w(part, lane) \
             WHERE s.topic = $1 AND s.grp = $2 AND s.part = w.part AND s.lane = w.lane",
        ] {
            sqlx::query(sql)
                .bind(t(topic))
                .bind(g(group))
                .bind(&parts)
                .bind(&lanes)
                .execute(&mut **tx)
                .await
                .map_err(failed)?;
        }
        insert_ranges(tx, topic, group, settled).await?;
        write_nexts(tx, topic, group, &nexts, true).await
    }

    /// See [`crate::store::MessageStore::purge`].
    pub(super) async fn purge(&self, topic: TopicId, group: GroupId) -> Result<u64, StoreError> {
        let mut tx = self.begin_slow().await?;
        let standing = Standing::lock(&mut tx, topic, group).await?;
        let fresh = fresh(&mut tx, topic, group, &standing).await?;
        let again = standing.retries.iter().filter(|(.., held)| !held).count() as u64;
        sqlx::query("DELETE FROM retries WHERE topic = $1 AND grp = $2 AND at < 9223372036854775807")
            .bind(t(topic))
            .bind(g(group))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        sqlx::query("DELETE FROM settled_ranges WHERE topic = $1 AND grp = $2")
            .bind(t(topic))
            .bind(g(group))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        let heads = standing.parts.iter().map(|lanes| (lanes.part, lanes.heads.clone())).collect();
        write_nexts(&mut tx, topic, group, &heads, false).await?;
        commit(tx).await?;
        self.wake(topic);
        Ok(fresh + again)
    }

    /// See [`crate::store::MessageStore::put_snapshot`].
    pub(super) async fn put_snapshot(&self, topic: TopicId, group: GroupId, name: &str) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let standing = Standing::lock(&mut tx, topic, group).await?;
        let now = now(&mut tx, &self.clock).await?;
        let others: i64 =
            sqlx::query_scalar("SELECT count(*) FROM snapshots WHERE topic = $1 AND grp = $2 AND name <> $3")
                .bind(t(topic))
                .bind(g(group))
                .bind(name)
                .fetch_one(&mut *tx)
                .await
                .map_err(failed)?;
        if others >= SNAPSHOTS_MAX as i64 {
            return Err(StoreError::Invalid(format!(
                "a group has at most {SNAPSHOTS_MAX} snapshots; delete one first"
            )));
        }
        let marks = marks(&standing, GAPS_MAX);
        let lanes = postcard::to_stdvec(&marks).map_err(|error| StoreError::Invalid(error.to_string()))?;
        sqlx::query(
            "INSERT INTO snapshots (topic, grp, name, at, lanes) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (topic, grp, name) DO UPDATE SET at = excluded.at, lanes = excluded.lanes",
        )
        .bind(t(topic))
        .bind(g(group))
        .bind(name)
        .bind(now)
        .bind(lanes)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        commit(tx).await
    }

    /// See [`crate::store::MessageStore::delete_snapshot`].
    pub(super) async fn delete_snapshot(
        &self,
        topic: TopicId,
        group: GroupId,
        name: Arc<str>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        check_group(&mut tx, topic, group).await?;
        let gone = sqlx::query("DELETE FROM snapshots WHERE topic = $1 AND grp = $2 AND name = $3")
            .bind(t(topic))
            .bind(g(group))
            .bind(&*name)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        commit(tx).await?;
        Ok(gone.rows_affected() > 0)
    }

    /// See [`crate::store::MessageStore::snapshots`].
    pub(super) async fn snapshots(
        &self,
        topic: TopicId,
        group: GroupId,
    ) -> Result<Vec<(Arc<str>, Timestamp)>, StoreError> {
        let mut tx = self.begin().await?;
        check_group(&mut tx, topic, group).await?;
        let found: Vec<(String, i64)> =
            sqlx::query_as("SELECT name, at FROM snapshots WHERE topic = $1 AND grp = $2 ORDER BY name COLLATE \"C\"")
                .bind(t(topic))
                .bind(g(group))
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
        Ok(found.into_iter().map(|(name, at)| (name.into(), Timestamp(at))).collect())
    }

    /// See [`crate::store::MessageStore::restore`].
    pub(super) async fn restore(&self, topic: TopicId, group: GroupId, name: &str) -> Result<bool, StoreError> {
        let mut tx = self.begin_slow().await?;
        let standing = Standing::lock(&mut tx, topic, group).await?;
        let found: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT lanes FROM snapshots WHERE topic = $1 AND grp = $2 AND name = $3")
                .bind(t(topic))
                .bind(g(group))
                .bind(name)
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed)?;
        let Some(bytes) = found else { return Ok(false) };
        let marks: Vec<Mark> =
            postcard::from_bytes(&bytes).map_err(|error| damaged("snapshots", &error.to_string()))?;
        let (mut moves, mut settled) = (Vec::new(), Vec::new());
        for lanes in &standing.parts {
            for lane in 0..LANES {
                let (start, head) = (lanes.starts[lane], lanes.heads[lane]);
                let mark = marks.iter().find(|mark| (mark.part, usize::from(mark.lane)) == (lanes.part, lane));
                let floor = mark.map_or(0, |mark| mark.floor).clamp(start, head);
                moves.push((lanes.part, lane, floor));
                for (first, until) in mark.into_iter().flat_map(|mark| mark.settled.iter().copied()) {
                    let (first, until) = (first.max(floor), until.min(head));
                    if first < until {
                        settled.push((lanes.part, lane_number(lane), first, until));
                    }
                }
            }
        }
        self.place(&mut tx, (topic, group), standing, &moves, &settled).await?;
        commit(tx).await?;
        self.wake(topic);
        Ok(true)
    }

    /// See [`crate::store::MessageStore::discard_dead_letters`].
    pub(super) async fn discard_dead_letters(&self, positions: &[Position]) -> Result<usize, StoreError> {
        let mut tx = self.begin().await?;
        let list = Discard::lock(&mut tx, positions).await?;
        let count = list.settle(&mut tx, 0..positions.len()).await?;
        commit(tx).await?;
        Ok(count)
    }
}

/// Dead letters that are to leave their list, with the cursors of their topics locked.
#[derive(Default)]
pub(super) struct Discard {
    positions: Vec<Position>,
    listed: Vec<bool>,
    below: Vec<bool>,
}

impl Discard {
    /// Locks the lists that `positions` are on.
    pub async fn lock(tx: &mut Tx, positions: &[Position]) -> Result<Discard, StoreError> {
        if positions.is_empty() {
            return Ok(Discard::default());
        }
        let topics: Vec<i32> = positions.iter().map(|position| t(position.topic)).collect();
        let parts: Vec<i16> = positions.iter().map(|position| p(position.partition)).collect();
        sqlx::query(
            "SELECT 1 FROM cursors c JOIN (SELECT DISTINCT * FROM unnest($1::integer[], $2::smallint[]) AS u(topic, part)) w \
             USING (topic, part) WHERE c.grp = 0 ORDER BY c.topic, c.part FOR UPDATE OF c",
        )
        .bind(&topics)
        .bind(&parts)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        let places: Vec<i64> =
            positions.iter().map(|at| lane_and_seq(at.offset)).map(|(lane, seq)| place_of(lane, seq)).collect();
        let rows = sqlx::query(
            "SELECT w.nth, s.seq >= q.starts[s.lane + 1] AND s.seq < q.heads[s.lane + 1] AS there, \
                 s.seq < c.nexts[s.lane + 1] AS below, \
                 EXISTS (SELECT 1 FROM retries r WHERE r.topic = w.topic AND r.grp = 0 AND r.part = w.part AND r.place = w.place) AS again, \
                 EXISTS (SELECT 1 FROM settled_ranges x WHERE x.topic = w.topic AND x.grp = 0 AND x.part = w.part \
                     AND x.lane = s.lane AND x.first <= s.seq AND x.until > s.seq) AS settled, \
                 EXISTS (SELECT 1 FROM erased e WHERE e.topic = w.topic AND e.part = w.part AND e.lane = s.lane AND e.seq = s.seq) AS erased \
             FROM unnest($1::integer[], $2::smallint[], $3::bigint[]) WITH ORDINALITY AS w(topic, part, place, nth) \
             CROSS JOIN LATERAL (SELECT (w.place >> 48)::integer AS lane, w.place & 281474976710655 AS seq) s \
             JOIN cursors c ON c.topic = w.topic AND c.part = w.part AND c.grp = 0 \
             JOIN store_partitions q ON q.topic = w.topic AND q.part = w.part",
        )
        .bind(&topics)
        .bind(&parts)
        .bind(&places)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        let mut listed = vec![false; positions.len()];
        let mut below = vec![false; positions.len()];
        for row in rows {
            let nth = usize::try_from(row.try_get::<i64, _>(0).map_err(failed)? - 1).unwrap_or(0);
            let flag = |at: usize| row.try_get::<Option<bool>, _>(at).map(Option::unwrap_or_default).map_err(failed);
            let (there, under, again, settled, erased) = (flag(1)?, flag(2)?, flag(3)?, flag(4)?, flag(5)?);
            listed[nth] = there && !erased && if under { again } else { !settled };
            below[nth] = under;
        }
        let mut list = Discard { positions: positions.to_vec(), listed, below };
        list.look_at_leased(tx).await?;
        Ok(list)
    }

    /// A dead letter that somebody holds is on the list, too.
    async fn look_at_leased(&mut self, tx: &mut Tx) -> Result<(), StoreError> {
        if !self.below.iter().zip(&self.listed).any(|(below, listed)| *below && !listed) {
            return Ok(());
        }
        for grant in self.grants(tx).await? {
            for (nth, _) in grant.open() {
                let at = grant.position(nth);
                for (known, listed) in self.positions.iter().zip(&mut self.listed) {
                    *listed |= *known == at;
                }
            }
        }
        Ok(())
    }

    async fn grants(&self, tx: &mut Tx) -> Result<Vec<Grant>, StoreError> {
        let topics: BTreeSet<i32> = self.positions.iter().map(|position| t(position.topic)).collect();
        let rows = sqlx::query(grants!("WHERE g.topic = ANY($1) AND g.grp = 0 ORDER BY g.epoch, g.number FOR UPDATE"))
            .bind(topics.into_iter().collect::<Vec<_>>())
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
        rows.iter().map(Grant::read).collect()
    }

    /// Whether all of them are on their lists.
    pub fn all_listed(&self) -> bool {
        self.listed.iter().all(|listed| *listed)
    }

    /// Takes some of them off their lists; returns how many were on them.
    pub async fn settle(&self, tx: &mut Tx, wanted: impl Iterator<Item = usize>) -> Result<usize, StoreError> {
        let wanted: HashSet<Position> = wanted.filter(|nth| self.listed[*nth]).map(|nth| self.positions[nth]).collect();
        if wanted.is_empty() {
            return Ok(0);
        }
        let of = |below: bool| {
            let places = self.positions.iter().zip(&self.below).filter(move |(_, known)| **known == below);
            places.map(|(at, _)| *at).filter(|at| wanted.contains(at)).collect::<BTreeSet<Position>>()
        };
        let (below, above) = (of(true), of(false));
        if !below.is_empty() {
            let mut grants = self.grants(tx).await?;
            for grant in &mut grants {
                let open: Vec<usize> = grant.open().map(|(nth, _)| nth).collect();
                for nth in open {
                    if below.contains(&grant.position(nth)) {
                        grant.close(nth);
                    }
                }
            }
            Grant::write(&grants, tx).await?;
            let places = |at: &Position| lane_and_seq(at.offset);
            sqlx::query(
                "DELETE FROM retries r USING unnest($1::integer[], $2::smallint[], $3::bigint[]) AS w(topic, part, place) \
                 WHERE r.topic = w.topic AND r.grp = 0 AND r.part = w.part AND r.place = w.place",
            )
            .bind(below.iter().map(|at| t(at.topic)).collect::<Vec<_>>())
            .bind(below.iter().map(|at| p(at.partition)).collect::<Vec<_>>())
            .bind(below.iter().map(places).map(|(lane, seq)| place_of(lane, seq)).collect::<Vec<_>>())
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        }
        let mut by_topic: BTreeMap<TopicId, Vec<(i16, i16, i64, i64)>> = BTreeMap::new();
        for at in above {
            let (lane, seq) = lane_and_seq(at.offset);
            by_topic.entry(at.topic).or_default().push((p(at.partition), lane, seq, seq + 1));
        }
        for (topic, ranges) in by_topic {
            insert_ranges(tx, topic, GroupId::SHARED, &ranges).await?;
        }
        Ok(wanted.len())
    }
}

/// Adds what is settled above cursors, joined with what touches it.
pub(super) async fn insert_ranges(
    tx: &mut Tx,
    topic: TopicId,
    group: GroupId,
    ranges: &[(i16, i16, i64, i64)],
) -> Result<(), StoreError> {
    let mut joined: Vec<(i16, i16, i64, i64)> = Vec::new();
    for (part, lane, mut first, mut until) in ranges.iter().copied() {
        let touching: Vec<(i64, i64)> = sqlx::query_as(
            "DELETE FROM settled_ranges WHERE topic = $1 AND grp = $2 AND part = $3 AND lane = $4 \
             AND first <= $6 AND until >= $5 RETURNING first, until",
        )
        .bind(t(topic))
        .bind(g(group))
        .bind(part)
        .bind(lane)
        .bind(first)
        .bind(until)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        for (other_first, other_until) in touching {
            first = first.min(other_first);
            until = until.max(other_until);
        }
        joined.retain(|(other_part, other_lane, other_first, other_until)| {
            let touches = (*other_part, *other_lane) == (part, lane) && *other_first <= until && *other_until >= first;
            if touches {
                first = first.min(*other_first);
                until = until.max(*other_until);
            }
            !touches
        });
        joined.push((part, lane, first, until));
    }
    if joined.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO settled_ranges (topic, grp, part, lane, first, until) \
         SELECT $1, $2, * FROM unnest($3::smallint[], $4::smallint[], $5::bigint[], $6::bigint[])",
    )
    .bind(t(topic))
    .bind(g(group))
    .bind(joined.iter().map(|(part, ..)| *part).collect::<Vec<_>>())
    .bind(joined.iter().map(|(_, lane, ..)| *lane).collect::<Vec<_>>())
    .bind(joined.iter().map(|(.., first, _)| *first).collect::<Vec<_>>())
    .bind(joined.iter().map(|(.., until)| *until).collect::<Vec<_>>())
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(())
}

/// Writes where cursors are; `anew` where they may have gone back, and what comes next is no longer known to be new.
pub(super) async fn write_nexts(
    tx: &mut Tx,
    topic: TopicId,
    group: GroupId,
    nexts: &BTreeMap<i16, Vec<i64>>,
    anew: bool,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE cursors c SET nexts = w.nexts::bigint[], seen = CASE WHEN $5 THEN 0 ELSE c.seen END \
         FROM unnest($3::smallint[], $4::text[]) AS w(part, nexts) WHERE c.topic = $1 AND c.grp = $2 AND c.part = w.part",
    )
    .bind(t(topic))
    .bind(g(group))
    .bind(nexts.keys().copied().collect::<Vec<_>>())
    .bind(nexts.values().map(|lanes| array(lanes)).collect::<Vec<_>>())
    .bind(anew)
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(())
}

/// How many messages above the cursors wait for the group.
async fn fresh(tx: &mut Tx, topic: TopicId, group: GroupId, standing: &Standing) -> Result<u64, StoreError> {
    let mut count = 0;
    for lanes in &standing.parts {
        let Some(nexts) = standing.nexts.get(&lanes.part) else { continue };
        for (next, (head, start)) in nexts.iter().zip(lanes.heads.iter().zip(&lanes.starts)) {
            count += (head - next.max(start)).max(0);
        }
    }
    for (.., first, until) in &standing.settled {
        count -= until - first;
    }
    let absent: i64 = sqlx::query_scalar(super::stats::ABSENT)
        .bind(t(topic))
        .bind(g(group))
        .fetch_one(&mut **tx)
        .await
        .map_err(failed)?;
    Ok((count - absent).max(0).cast_unsigned())
}

/// Where each lane of a group stands, with so many ranges above the floors at most.
pub(super) fn marks(standing: &Standing, gaps_max: usize) -> Vec<Mark> {
    let open = standing.open();
    let (mut marks, mut gaps) = (Vec::new(), 0);
    for lanes in &standing.parts {
        for lane in 0..LANES {
            let (start, head) = (lanes.starts[lane], lanes.heads[lane]);
            let number = lane_number(lane);
            let next = standing.nexts.get(&lanes.part).map_or(start, |nexts| nexts[lane]).clamp(start, head);
            let of_lane = open.range((lanes.part, place_of(number, start))..(lanes.part, place_of(number, next)));
            let unsettled: Vec<i64> = of_lane.map(|(_, place)| place & 0xffff_ffff_ffff).collect();
            let floor = unsettled.first().copied().unwrap_or(next);
            let mut settled = Vec::new();
            let mut from = floor;
            for seq in unsettled {
                settled.push((from, seq));
                from = seq + 1;
            }
            settled.push((from, next));
            let above = standing.settled.iter().filter(|(part, known, ..)| (*part, *known) == (lanes.part, number));
            settled.extend(above.map(|(.., first, until)| (*first, *until)));
            settled.retain(|(first, until)| first < until);
            settled.truncate(gaps_max.saturating_sub(gaps));
            gaps += settled.len();
            marks.push(Mark { part: lanes.part, lane: u8::try_from(lane).unwrap_or(0), floor, settled });
        }
    }
    marks
}

/// Whether there is such a group.
pub(super) async fn check_group(tx: &mut Tx, topic: TopicId, group: GroupId) -> Result<(), StoreError> {
    let row: Option<Option<i32>> = sqlx::query_scalar(
        "SELECT g.grp FROM store_topics t LEFT JOIN store_groups g ON g.topic = t.topic AND g.grp = $2 WHERE t.topic = $1",
    )
    .bind(t(topic))
    .bind(g(group))
    .fetch_optional(&mut **tx)
    .await
    .map_err(failed)?;
    match row {
        None => Err(StoreError::NoTopic),
        Some(None) => Err(StoreError::NoGroup),
        Some(Some(_)) => Ok(()),
    }
}
