//! Groups of a fleet's store on the move. Invariant: what is settled for a group after it was taken is what was settled before,
//! message for message; what was leased waits again with its attempt counted.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use sqlx::Row as _;

use super::number_of;
use crate::clock::Timestamp;
use crate::message::{Failures, GroupId, TopicId};
use crate::store::StoreError;
use crate::store::moving::{CursorMove, GroupMove, LaneMove, LaneStanding, SnapshotMove, TopicMove, Tried};
use crate::store::postgres::Shared;
use crate::store::postgres::control::group_spec;
use crate::store::postgres::cursor::{Mark, Standing, marks};
use crate::store::postgres::ends::failures_of;
use crate::store::postgres::sql::{LANES, Tx, commit, damaged, failed, g, n, p, place_of, t};

/// Where a message stands: partition, lane, sequence.
type Spot = (i16, i16, i64);

/// A message that is not settled below its cursor: partition, place, and what is known of it if it has been tried.
type Waiting<'a> = (i16, i64, Option<&'a Tried>);

/// Rows of one statement.
const BATCH: usize = 10_000;

impl Shared {
    pub(super) async fn move_groups(&self, moved: &TopicMove) -> Result<Vec<GroupMove>, StoreError> {
        let topic = moved.spec.id;
        let mut tx = self.begin_slow().await?;
        let specs: Vec<String> =
            sqlx::query_scalar("SELECT spec::text FROM store_groups WHERE topic = $1 ORDER BY grp")
                .bind(t(topic))
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
        let mut groups = Vec::with_capacity(specs.len());
        for spec in specs {
            let spec = group_spec(&spec)?;
            let standing = Standing::lock(&mut tx, topic, spec.group).await?;
            let absent = absent(&mut tx, topic, spec.group).await?;
            let mut cursors = standings(&moved.lanes, &marks(&standing, usize::MAX), &absent);
            let tried = tried(&mut tx, topic, spec.group, &standing).await?;
            for ((part, lane, seq), (attempts, at, failures)) in tried {
                let of = |cursor: &&mut CursorMove| {
                    (p(cursor.standing.partition), number_of(cursor.standing.lane)) == (part, lane)
                };
                let Some(cursor) = cursors.iter_mut().find(of) else { continue };
                let blank = attempts == 0 && failures.is_empty() && at <= 0;
                if !blank && !cursor.standing.is_settled(seq.cast_unsigned()) {
                    cursor.tried.push((seq.cast_unsigned(), attempts, Timestamp(at), failures));
                }
            }
            groups.push(GroupMove {
                totals: totals(&mut tx, topic, spec.group).await?,
                snapshots: snapshots(&mut tx, topic, spec.group, &moved.lanes).await?,
                cursors,
                spec,
            });
        }
        commit(tx).await?;
        Ok(groups)
    }

    pub(super) async fn take_groups(&self, topic: &TopicMove, groups: Vec<GroupMove>) -> Result<(), StoreError> {
        let id = topic.spec.id;
        for group in groups {
            self.put_group(&group.spec).await?;
            let mut tx = self.begin_slow().await?;
            place_group(&mut tx, id, topic.spec.partitions, &group).await?;
            commit(tx).await?;
        }
        let mut tx = self.begin().await?;
        for (part, appended, removed) in (0..p(topic.spec.partitions))
            .map(|part| if part == 0 { (0, topic.appended_total, topic.removed_total) } else { (part, 0, 0) })
        {
            sqlx::query("UPDATE store_partitions SET appended = $3, removed = $4 WHERE topic = $1 AND part = $2")
                .bind(t(id))
                .bind(part)
                .bind(n(appended))
                .bind(n(removed))
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        commit(tx).await
    }
}

/// Puts a group that is there to its position, whatever it had.
async fn place_group(tx: &mut Tx, topic: TopicId, partitions: u16, group: &GroupMove) -> Result<(), StoreError> {
    let number = g(group.spec.group);
    for sql in [
        "DELETE FROM retries WHERE topic = $1 AND grp = $2",
        "DELETE FROM settled_ranges WHERE topic = $1 AND grp = $2",
        "DELETE FROM snapshots WHERE topic = $1 AND grp = $2",
        "DELETE FROM group_totals WHERE topic = $1 AND grp = $2",
    ] {
        sqlx::query(sql).bind(t(topic)).bind(number).execute(&mut **tx).await.map_err(failed)?;
    }
    let replays = replays_of_others(tx, topic, group.spec.group).await?;
    let mut nexts: BTreeMap<i16, Vec<i64>> = (0..p(partitions)).map(|part| (part, vec![0; LANES])).collect();
    let (mut waiting, mut settled) = (Vec::new(), Vec::new());
    for CursorMove { standing, tried } in &group.cursors {
        let (part, lane) = (p(standing.partition), number_of(standing.lane));
        let next = tried.last().map_or(standing.floor, |(last, ..)| (last + 1).max(standing.floor));
        if let Some(lanes) = nexts.get_mut(&part) {
            lanes[usize::from(standing.lane).min(LANES - 1)] = n(next);
        }
        // Below the cursor, what is not settled is a row.
        let known: HashMap<u64, &Tried> = tried.iter().map(|one| (one.0, one)).collect();
        let mut from = standing.floor;
        for gap in standing.settled.iter().filter(|range| range.start < next).chain([&(next..next)]) {
            for sequence in from..gap.start {
                waiting.push((part, place_of(lane, n(sequence)), known.get(&sequence).copied()));
            }
            from = gap.end;
        }
        let above = standing.settled.iter().map(|range| range.start.max(next)..range.end);
        for range in above.filter(|range| !range.is_empty()) {
            settled
                .extend(without(range, &replays, (part, lane)).map(|range| (part, lane, n(range.start), n(range.end))));
        }
    }
    crate::store::postgres::cursor::write_nexts(tx, topic, group.spec.group, &nexts, true).await?;
    for waiting in waiting.chunks(BATCH) {
        insert_waiting(tx, topic, group.spec.group, waiting).await?;
    }
    for settled in settled.chunks(BATCH) {
        sqlx::query(
            "INSERT INTO settled_ranges (topic, grp, part, lane, first, until) \
             SELECT $1, $2, * FROM unnest($3::smallint[], $4::smallint[], $5::bigint[], $6::bigint[])",
        )
        .bind(t(topic))
        .bind(number)
        .bind(settled.iter().map(|(part, ..)| *part).collect::<Vec<_>>())
        .bind(settled.iter().map(|(_, lane, ..)| *lane).collect::<Vec<_>>())
        .bind(settled.iter().map(|(.., first, _)| *first).collect::<Vec<_>>())
        .bind(settled.iter().map(|(.., until)| *until).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    }
    for SnapshotMove { name, at, lanes } in &group.snapshots {
        let marks: Vec<Mark> = lanes.iter().map(mark_of).collect();
        let lanes = postcard::to_stdvec(&marks).map_err(|error| StoreError::Invalid(error.to_string()))?;
        sqlx::query("INSERT INTO snapshots (topic, grp, name, at, lanes) VALUES ($1, $2, $3, $4, $5)")
            .bind(t(topic))
            .bind(number)
            .bind(&**name)
            .bind(at.0)
            .bind(lanes)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
    }
    let [acked, dead_lettered, expired, delivered] = group.totals;
    sqlx::query(
        "INSERT INTO group_totals (topic, grp, slot, acked, dead_lettered, expired, delivered) VALUES ($1, $2, 0, $3, $4, $5, $6)",
    )
    .bind(t(topic))
    .bind(number)
    .bind(n(acked))
    .bind(n(dead_lettered))
    .bind(n(expired))
    .bind(n(delivered))
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(())
}

async fn insert_waiting(
    tx: &mut Tx,
    topic: TopicId,
    group: GroupId,
    waiting: &[Waiting<'_>],
) -> Result<(), StoreError> {
    let mut failures = Vec::with_capacity(waiting.len());
    for (.., known) in waiting {
        let all = known.map(|(.., failures)| failures).filter(|all| !all.is_empty());
        let bytes = all.map(postcard::to_stdvec).transpose();
        failures.push(bytes.map_err(|error| StoreError::Invalid(error.to_string()))?);
    }
    let written = sqlx::query(
        "INSERT INTO retries (topic, grp, part, place, at, attempts, stamp, key, failures) \
         SELECT $1, $2, w.part, w.place, w.at, w.attempts, m.stamp, m.key, w.failures \
         FROM unnest($3::smallint[], $4::bigint[], $5::bigint[], $6::integer[], $7::bytea[]) AS w(part, place, at, attempts, failures) \
         JOIN messages m ON m.topic = $1 AND m.part = w.part AND m.lane = w.place >> 48 AND m.seq = w.place & 281474976710655",
    )
    .bind(t(topic))
    .bind(g(group))
    .bind(waiting.iter().map(|(part, ..)| *part).collect::<Vec<_>>())
    .bind(waiting.iter().map(|(_, place, _)| *place).collect::<Vec<_>>())
    .bind(waiting.iter().map(|(.., known)| known.map_or(0, |(.., at, _)| at.0)).collect::<Vec<_>>())
    .bind(waiting.iter().map(|(.., known)| known.map_or(0, |(_, tries, ..)| tries.cast_signed())).collect::<Vec<_>>())
    .bind(failures)
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    if written.rows_affected() != waiting.len() as u64 {
        return Err(damaged("messages", "a message that waits for a group is not there"));
    }
    Ok(())
}

/// What each lane's cursor has settled, with what is not for the group.
fn standings(lanes: &[LaneMove], marks: &[Mark], absent: &[Spot]) -> Vec<CursorMove> {
    let one = |lane: &LaneMove| {
        let standing = standing_of(lane, marks);
        let place = (p(lane.partition), number_of(lane.lane));
        let of_lane = absent.iter().filter(|(part, number, _)| (*part, *number) == place);
        let not_for = of_lane.map(|(.., seq)| seq.cast_unsigned()..seq.cast_unsigned() + 1);
        let settled = standing.settled.iter().cloned().chain(not_for).collect();
        let standing = LaneStanding { settled, ..standing }.within(lane.first, lane.end);
        CursorMove { standing, tried: Vec::new() }
    };
    lanes.iter().map(one).collect()
}

fn standing_of(lane: &LaneMove, marks: &[Mark]) -> LaneStanding {
    let mark = marks.iter().find(|mark| (mark.part, mark.lane) == (p(lane.partition), lane.lane));
    let settled = mark.into_iter().flat_map(|mark| &mark.settled);
    LaneStanding {
        partition: lane.partition,
        lane: lane.lane,
        floor: mark.map_or(0, |mark| mark.floor.cast_unsigned()),
        settled: settled.map(|(first, until)| first.cast_unsigned()..until.cast_unsigned()).collect(),
    }
    .within(lane.first, lane.end)
}

fn mark_of(standing: &LaneStanding) -> Mark {
    Mark {
        part: p(standing.partition),
        lane: standing.lane,
        floor: n(standing.floor),
        settled: standing.settled.iter().map(|range| (n(range.start), n(range.end))).collect(),
    }
}

/// The parts of a range that have none of `spots`.
fn without(range: Range<u64>, spots: &[Spot], place: (i16, i16)) -> impl Iterator<Item = Range<u64>> {
    let inside: Vec<u64> = spots
        .iter()
        .filter(|(part, lane, _)| (*part, *lane) == place)
        .map(|(.., seq)| seq.cast_unsigned())
        .filter(|seq| range.contains(seq))
        .collect();
    let (mut from, end) = (range.start, range.end);
    inside.into_iter().chain([end]).filter_map(move |stop| {
        let part = from..stop;
        from = stop + 1;
        (!part.is_empty()).then_some(part)
    })
}

/// Messages that another group alone gets, in the order of lanes.
async fn replays_of_others(tx: &mut Tx, topic: TopicId, group: GroupId) -> Result<Vec<Spot>, StoreError> {
    sqlx::query_as(
        "SELECT part, lane, seq FROM messages WHERE topic = $1 AND target IS NOT NULL AND target <> $2 ORDER BY part, lane, seq",
    )
    .bind(t(topic))
    .bind(g(group))
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)
}

/// Messages that are not for a group: others' replays, and what was erased.
async fn absent(tx: &mut Tx, topic: TopicId, group: GroupId) -> Result<Vec<Spot>, StoreError> {
    let mut absent = replays_of_others(tx, topic, group).await?;
    let erased: Vec<Spot> = sqlx::query_as("SELECT part, lane, seq FROM erased WHERE topic = $1")
        .bind(t(topic))
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    absent.extend(erased);
    Ok(absent)
}

/// What has been tried, or is: attempts, when it may be granted again, what went wrong.
async fn tried(
    tx: &mut Tx,
    topic: TopicId,
    group: GroupId,
    standing: &Standing,
) -> Result<BTreeMap<Spot, (u32, i64, Failures)>, StoreError> {
    let rows = sqlx::query("SELECT part, place, at, attempts, failures FROM retries WHERE topic = $1 AND grp = $2")
        .bind(t(topic))
        .bind(g(group))
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    let mut tried = BTreeMap::new();
    for row in &rows {
        let (part, place): (i16, i64) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        // At the end of time: held by a grant.
        let at: i64 = Some(row.try_get(2).map_err(failed)?).filter(|at| *at < i64::MAX).unwrap_or(0);
        let attempts: i32 = row.try_get(3).map_err(failed)?;
        let failures: Option<Vec<u8>> = row.try_get(4).map_err(failed)?;
        let lane = i16::try_from(place >> 48).unwrap_or(0);
        let spot = (part, lane, place & 0xffff_ffff_ffff);
        tried.insert(spot, (attempts.cast_unsigned(), at, failures_of(failures.as_deref())?));
    }
    for grant in &standing.grants {
        for (_, entry) in grant.open() {
            let known = tried.entry((grant.place.1, entry.lane, entry.seq)).or_default();
            (known.0, known.1) = (entry.attempt, 0);
        }
    }
    Ok(tried)
}

async fn totals(tx: &mut Tx, topic: TopicId, group: GroupId) -> Result<[u64; 4], StoreError> {
    let (acked, dead_lettered, expired, delivered): (i64, i64, i64, i64) = sqlx::query_as(
        "SELECT coalesce(sum(acked), 0)::bigint, coalesce(sum(dead_lettered), 0)::bigint, coalesce(sum(expired), 0)::bigint, \
         (coalesce(sum(delivered), 0) + (SELECT coalesce(sum(k.given), 0) FROM cursors k WHERE k.topic = $1 AND k.grp = $2))::bigint \
         FROM group_totals WHERE topic = $1 AND grp = $2",
    )
    .bind(t(topic))
    .bind(g(group))
    .fetch_one(&mut **tx)
    .await
    .map_err(failed)?;
    Ok([acked, dead_lettered, expired, delivered].map(i64::cast_unsigned))
}

async fn snapshots(
    tx: &mut Tx,
    topic: TopicId,
    group: GroupId,
    lanes: &[LaneMove],
) -> Result<Vec<SnapshotMove>, StoreError> {
    let rows: Vec<(String, i64, Vec<u8>)> = sqlx::query_as(
        "SELECT name, at, lanes FROM snapshots WHERE topic = $1 AND grp = $2 ORDER BY name COLLATE \"C\"",
    )
    .bind(t(topic))
    .bind(g(group))
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)?;
    let read = |(name, at, bytes): (String, i64, Vec<u8>)| {
        let marks: Vec<Mark> =
            postcard::from_bytes(&bytes).map_err(|error| damaged("snapshots", &error.to_string()))?;
        let lanes = lanes.iter().map(|lane| standing_of(lane, &marks)).collect();
        Ok(SnapshotMove { name: name.into(), at: Timestamp(at), lanes })
    };
    rows.into_iter().map(read).collect()
}
