//! Granting leases. Invariant: a message is granted only while nobody holds it, inside its retention and before its expiry,
//! under the lock of the cursor that it is taken from; grants follow offsets within a lane. A grant is not synced, except
//! where it settles.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;

use sqlx::{AssertSqlSafe, Row as _};

use super::Shared;
use super::choose::{Candidate, Chosen, PARKED_MAX, Part, by_lane, in_order};
use super::cursor::check_group;
use super::ends::{End, Ending, Totals, expired, originals};
use super::grant::{Entry, Grant, grants};
use super::log::array;
use super::sql::{LANES, Tx, commit, failed, g, lane_index, lane_number, ms, place_of, position, t, time};
use crate::clock::Timestamp;
use crate::message::TopicId;
use crate::store::{Lease, LeaseRequest, Leased, Mode, StoreError};

/// Messages of an ordered group that one call looks at beyond what it may grant.
const LOOK_AHEAD: usize = 1000;
/// Looks of one call, each of which passes over as many messages as it may grant.
const LOOKS_MAX: usize = 16;
/// Where `retries` says that a grant holds the message.
const HELD: i64 = i64::MAX;

impl Shared {
    /// See [`crate::store::MessageStore::lease`].
    pub(super) async fn lease(&self, request: &LeaseRequest) -> Result<Leased, StoreError> {
        let mut all = self.lease_as_usual(request).await?;
        if !all.leases.is_empty() {
            return Ok(all);
        }
        // What another broker has locked is passed over first, so that brokers take different partitions.
        let mut waits = false;
        for _ in 0..LOOKS_MAX {
            match self.try_lease(request, waits, &all.leases).await {
                Ok(Some((leased, is_short))) => {
                    all.leases.extend(leased.leases);
                    all.more = leased.more;
                    // Else what was looked at had expired, or has to wait for its key.
                    if !is_short || all.leases.len() >= request.max {
                        break;
                    }
                }
                Ok(None) if !all.leases.is_empty() => break,
                Ok(None) if waits => {
                    all.more = false;
                    break;
                }
                Ok(None) => waits = true,
                Err(error) if all.leases.is_empty() => return Err(error),
                // What was granted is not to wait for its deadline.
                Err(error) => {
                    tracing::debug!(%error, "a lease is smaller than it could be");
                    break;
                }
            }
        }
        Ok(all)
    }

    /// Grants what is left of a request, once `before` was granted; and whether there is more to look at for it.
    async fn try_lease(
        &self,
        request: &LeaseRequest,
        waits: bool,
        before: &[Lease],
    ) -> Result<Option<(Leased, bool)>, StoreError> {
        let mut tx = self.begin().await?;
        let (mut parts, now) = self.lock_cursors(&mut tx, request, waits).await?;
        if parts.is_empty() {
            if waits {
                check_group(&mut tx, request.topic, request.group).await?;
            }
            return Ok(None);
        }
        let mut woken = self.end_overdue(&mut tx, request, &parts, now).await?;
        let topic = self.topic_row(&mut tx, request.topic).await?;
        let (class, retention) = (topic.0, ms(topic.1.retention));
        self.read_candidates(&mut tx, request, &mut parts, class, now).await?;
        // Beginning with another one each time, so that none is always served first.
        let first = self.next_grant.load(Ordering::Relaxed) as usize % parts.len();
        parts.rotate_left(first);
        let cutoff = now - retention;
        let bytes = before.iter().map(|lease| lease.message.payload.len() as i64).sum();
        let chosen = Chosen { count: before.len(), bytes, ..Chosen::default() };
        let chosen = match request.ordered {
            true => in_order(chosen, &mut parts, request, now, cutoff),
            false => by_lane(chosen, &mut parts, request, now, cutoff),
        };
        let messages = bodies(&mut tx, request.topic, &chosen).await?;
        let buries = topic.1.dead_letter.is_some() && topic.1.dead_letter_expired;
        // What others have ended since the look began is among it: the new lease is to be told as one that began after the old.
        let since = if chosen.granted.is_empty() { now } else { super::sql::now(&mut tx, &self.clock).await? };
        let (grants, order) = self.grants_of(request, &chosen, since);
        woken.extend(self.write(&mut tx, request, &parts, &chosen, &grants, (now, buries)).await?);
        let deadline = Timestamp(since).plus(request.duration);
        let mut leases = Vec::with_capacity(order.len());
        for ((part, lane, candidate), (grant, nth)) in chosen.granted.iter().zip(order) {
            // A message that was erased since the look has no lease.
            let Some(message) = messages.get(&(*part, *lane, candidate.seq)) else { continue };
            let attempt = candidate.again.unwrap_or(0) + 1;
            let receipt = grants[grant].receipt(nth);
            let at = position((t(request.topic), *part), lane_number(*lane), candidate.seq);
            leases.push(Lease { position: at, message: message.clone(), attempt, deadline, receipt });
        }
        let more = chosen.more;
        commit(tx).await?;
        woken.into_iter().for_each(|topic| self.wake(topic));
        if leases.is_empty() && !waits && !more {
            return Ok(None);
        }
        Ok(Some((Leased { leases, more }, chosen.is_short)))
    }

    /// Locks the cursors of partitions that have something for the group.
    async fn lock_cursors(
        &self,
        tx: &mut Tx,
        request: &LeaseRequest,
        waits: bool,
    ) -> Result<(Vec<Part>, i64), StoreError> {
        let (given, ahead) = time(&self.clock);
        let sync = if request.mode == Mode::AtMostOnce { "on" } else { "off" };
        let skip = if waits { "" } else { "SKIP LOCKED" };
        let sql = format!(
            "WITH c AS MATERIALIZED (SELECT store_now($3, $4) AS now, set_config('synchronous_commit', $5, true) AS sync), \
             locked AS MATERIALIZED (SELECT k.part, k.nexts, k.seen, q.heads, q.starts, k.granted \
             FROM cursors k JOIN store_partitions q USING (topic, part) CROSS JOIN c \
             WHERE k.topic = $1 AND k.grp = $2 AND (q.heads <> k.nexts \
                 OR EXISTS (SELECT 1 FROM retries r WHERE r.topic = k.topic AND r.grp = k.grp AND r.part = k.part AND r.at <= c.now) \
                 OR EXISTS (SELECT 1 FROM grants x WHERE x.topic = k.topic AND x.grp = k.grp AND x.part = k.part AND x.ends <= c.now)) \
             ORDER BY k.part FOR UPDATE OF k {skip}) \
             SELECT l.part, l.nexts, l.seen, l.heads, l.starts, \
                 (SELECT store_now($3, $4) FROM (SELECT count(*) AS all_of_them FROM locked) n WHERE n.all_of_them > 0), l.granted \
             FROM locked l ORDER BY l.part"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(t(request.topic))
            .bind(g(request.group))
            .bind(given)
            .bind(ahead)
            .bind(sync)
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
        let (mut parts, mut now) = (Vec::with_capacity(rows.len()), 0);
        for row in &rows {
            let mut nexts = super::log::lanes(row.try_get(1).map_err(failed)?)?;
            let starts = super::log::lanes(row.try_get(4).map_err(failed)?)?;
            nexts.iter_mut().zip(&starts).for_each(|(next, start)| *next = (*next).max(*start));
            now = row.try_get(5).map_err(failed)?;
            parts.push(Part {
                part: row.try_get(0).map_err(failed)?,
                nexts,
                heads: super::log::lanes(row.try_get(3).map_err(failed)?)?,
                seen: row.try_get(2).map_err(failed)?,
                granted: row.try_get(6).map_err(failed)?,
                queues: vec![VecDeque::new(); LANES],
                cut: vec![false; LANES],
                taken: vec![None; LANES],
                held: HashSet::new(),
                parked: 0,
            });
        }
        Ok((parts, now))
    }

    /// Leases of these partitions that are past their deadline end, so that what they held may go.
    async fn end_overdue(
        &self,
        tx: &mut Tx,
        request: &LeaseRequest,
        parts: &[Part],
        now: i64,
    ) -> Result<BTreeSet<TopicId>, StoreError> {
        let rows = sqlx::query(grants!(
            "WHERE g.topic = $1 AND g.grp = $2 AND g.part = ANY($3) AND g.ends <= $4 \
             ORDER BY g.epoch, g.number LIMIT 100 FOR UPDATE"
        ))
        .bind(t(request.topic))
        .bind(g(request.group))
        .bind(parts.iter().map(|part| part.part).collect::<Vec<_>>())
        .bind(now)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        let grants = rows.iter().map(Grant::read).collect::<Result<Vec<_>, _>>()?;
        if grants.is_empty() { Ok(BTreeSet::new()) } else { self.end_leases(tx, grants, now, false).await }
    }

    async fn topic_row(&self, tx: &mut Tx, topic: TopicId) -> Result<(i16, crate::store::TopicSpec), StoreError> {
        let row: Option<(i16, String)> = sqlx::query_as("SELECT class, spec::text FROM store_topics WHERE topic = $1")
            .bind(t(topic))
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed)?;
        let (class, spec) = row.ok_or(StoreError::NoTopic)?;
        Ok((class, super::control::topic_spec(&spec)?))
    }

    async fn read_candidates(
        &self,
        tx: &mut Tx,
        request: &LeaseRequest,
        parts: &mut [Part],
        class: i16,
        now: i64,
    ) -> Result<(), StoreError> {
        let limit = request.max + if request.ordered { LOOK_AHEAD } else { 0 };
        self.read_retries(tx, request, parts, limit, now).await?;
        let (mut numbers, mut lanes, mut nexts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut seen, mut heads) = (Vec::new(), Vec::new());
        for part in parts.iter() {
            for lane in (0..LANES).filter(|lane| part.nexts[*lane] < part.heads[*lane]) {
                numbers.push(part.part);
                lanes.push(lane_number(lane));
                nexts.push(part.nexts[lane]);
                seen.push(part.seen);
                heads.push(part.heads[lane]);
            }
        }
        if numbers.is_empty() {
            return Ok(());
        }
        // Not beyond the heads that were read with the cursors: what came since may be older than what was taken meanwhile of
        // another lane, and this call's look at its own lane is over.
        let rows = sqlx::query(
            "SELECT w.part, w.lane, m.seq, m.stamp, m.at, m.id, m.expires, m.key, m.len \
             FROM unnest($3::smallint[], $4::smallint[], $5::bigint[], $6::bigint[], $9::bigint[]) AS w(part, lane, next, seen, head) \
             CROSS JOIN LATERAL (SELECT m.seq, m.stamp, m.at, m.id, m.expires, m.key, \
                     (octet_length(m.body) - m.meta_len)::bigint AS len FROM messages m \
                 WHERE m.topic = $1 AND m.part = w.part AND m.lane = w.lane AND m.class = $2 AND m.seq >= w.next AND m.seq < w.head AND m.at >= w.seen \
                     AND (m.target IS NULL OR m.target = $8) \
                     AND NOT EXISTS (SELECT 1 FROM settled_ranges s WHERE s.topic = $1 AND s.grp = $8 AND s.part = w.part \
                         AND s.lane = w.lane AND s.first <= m.seq AND s.until > m.seq) \
                 ORDER BY m.seq LIMIT $7) m",
        )
        .bind(t(request.topic))
        .bind(class)
        .bind(&numbers)
        .bind(&lanes)
        .bind(&nexts)
        .bind(&seen)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind(g(request.group))
        .bind(&heads)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        let mut counts: HashMap<(i16, usize), usize> = HashMap::new();
        for row in &rows {
            let (number, lane, candidate) = Candidate::read(row).map_err(failed)?;
            let lane = lane_index(lane);
            *counts.entry((number, lane)).or_default() += 1;
            if let Some(part) = parts.iter_mut().find(|part| part.part == number) {
                part.queues[lane].push_back(candidate);
            }
        }
        for part in parts.iter_mut() {
            for lane in 0..LANES {
                part.cut[lane] |= counts.get(&(part.part, lane)).is_some_and(|count| *count >= limit);
            }
        }
        Ok(())
    }

    /// What waits again; where order is kept also what only keeps its key.
    async fn read_retries(
        &self,
        tx: &mut Tx,
        request: &LeaseRequest,
        parts: &mut [Part],
        limit: usize,
        now: i64,
    ) -> Result<(), StoreError> {
        let numbers: Vec<i16> = parts.iter().map(|part| part.part).collect();
        // First what is held: whatever ends from here on is among what waits again below.
        if request.ordered {
            let rows = sqlx::query(grants!("WHERE g.topic = $1 AND g.grp = $2 AND g.part = ANY($3)"))
                .bind(t(request.topic))
                .bind(g(request.group))
                .bind(&numbers)
                .fetch_all(&mut **tx)
                .await
                .map_err(failed)?;
            let mut grants = rows.iter().map(Grant::read).collect::<Result<Vec<_>, _>>()?;
            Grant::know(&mut grants, tx).await?;
            for grant in &grants {
                if let Some(part) = parts.iter_mut().find(|part| part.part == grant.place.1) {
                    part.held.extend(grant.open().filter_map(|(_, entry)| entry.key));
                }
            }
        }
        let (all, limit) = (request.ordered, if request.ordered { PARKED_MAX * 4 } else { limit });
        let rows = sqlx::query(
            "SELECT w.part, (r.place >> 48)::smallint, r.place & 281474976710655, r.stamp, r.came, r.id, r.expires, r.key, \
                 r.len, r.attempts, r.at <= $6, r.at = 9223372036854775807 \
             FROM unnest($3::smallint[]) AS w(part) CROSS JOIN generate_series(0, 9) AS l(lane) \
             CROSS JOIN LATERAL (SELECT r.*, m.at AS came, m.id, m.expires, (octet_length(m.body) - m.meta_len)::bigint AS len \
                 FROM retries r JOIN messages m ON m.topic = r.topic AND m.part = r.part AND m.lane = l.lane \
                     AND m.seq = r.place & 281474976710655 \
                 WHERE r.topic = $1 AND r.grp = $2 AND r.part = w.part \
                 AND r.place >= l.lane::bigint << 48 AND r.place < (l.lane + 1)::bigint << 48 AND ($4 OR r.at <= $6) \
                 ORDER BY r.place LIMIT $5) r \
             ORDER BY w.part, r.place",
        )
        .bind(t(request.topic))
        .bind(g(request.group))
        .bind(&numbers)
        .bind(all)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind(now)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        let mut counts: HashMap<(i16, usize), usize> = HashMap::new();
        for row in &rows {
            let (number, lane, new) = Candidate::read(row).map_err(failed)?;
            let attempts: i32 = row.try_get(9).map_err(failed)?;
            let (ready, held): (bool, bool) = (row.try_get(10).map_err(failed)?, row.try_get(11).map_err(failed)?);
            let candidate = Candidate { again: Some(attempts.cast_unsigned()), ready, ..new };
            let lane = lane_index(lane);
            *counts.entry((number, lane)).or_default() += 1;
            let Some(part) = parts.iter_mut().find(|part| part.part == number) else { continue };
            if held {
                part.held.extend(candidate.key);
                continue;
            }
            part.parked += 1;
            part.queues[lane].push_back(candidate);
        }
        for part in parts.iter_mut() {
            for lane in 0..LANES {
                part.cut[lane] |= counts.get(&(part.part, lane)).is_some_and(|count| *count >= limit);
            }
        }
        Ok(())
    }

    /// One row a partition of what was granted; for each message in grant order its row and its number there.
    fn grants_of(&self, request: &LeaseRequest, chosen: &Chosen, now: i64) -> (Vec<Grant>, Vec<(usize, usize)>) {
        let deadline = now.saturating_add(ms(request.duration));
        let (mut by_part, mut order): (BTreeMap<i16, usize>, Vec<(usize, usize)>) = Default::default();
        let mut entries: Vec<(i16, Vec<Entry>)> = Vec::new();
        for (part, lane, candidate) in &chosen.granted {
            let grant = *by_part.entry(*part).or_insert_with(|| {
                entries.push((*part, Vec::new()));
                entries.len() - 1
            });
            order.push((grant, entries[grant].1.len()));
            entries[grant].1.push(entry(*lane, candidate, candidate.again.unwrap_or(0) + 1));
        }
        let new = |(part, entries): (i16, Vec<Entry>)| {
            let number = self.next_grant.fetch_add(1, Ordering::Relaxed).cast_signed();
            let (place, held) = ((t(request.topic), part), (deadline, request.holder.to_string()));
            Grant::new((self.epoch, number), place, g(request.group), held, entries)
        };
        (entries.into_iter().map(new).collect(), order)
    }

    async fn write(
        &self,
        tx: &mut Tx,
        request: &LeaseRequest,
        parts: &[Part],
        chosen: &Chosen,
        grants: &[Grant],
        (now, buries): (i64, bool),
    ) -> Result<BTreeSet<TopicId>, StoreError> {
        let (topic, group) = (t(request.topic), g(request.group));
        let mut totals = Totals::default();
        totals.delivered(topic, group, chosen.granted.len() as i64);
        let ending = |part: i16, lane: usize, candidate: &Candidate, end: End| Ending {
            place: (topic, part),
            group,
            entry: entry(lane, candidate, candidate.again.unwrap_or(0)),
            end,
        };
        let mut endings = Vec::new();
        for (part, lane, candidate) in &chosen.passed {
            let past = candidate.expires.is_some_and(|at| at <= now);
            let end = if buries && past {
                End::Bury { attempts: candidate.again.unwrap_or(0), failure: expired(), failed: false }
            } else {
                totals.expired(topic, group, 1);
                End::Done
            };
            endings.push(ending(*part, *lane, candidate, end));
        }
        for (part, lane, candidate) in &chosen.parked {
            let end = End::Wait { at: 0, attempts: 0, failure: None };
            endings.push(ending(*part, *lane, candidate, end));
        }
        if request.mode == Mode::AtMostOnce {
            endings.extend(
                chosen.granted.iter().map(|(part, lane, candidate)| ending(*part, *lane, candidate, End::Done)),
            );
        } else {
            Grant::insert(grants, tx).await?;
            let again: Vec<_> = chosen.granted.iter().filter(|(.., candidate)| candidate.again.is_some()).collect();
            if !again.is_empty() {
                sqlx::query(
                    "UPDATE retries r SET at = $5 FROM unnest($3::smallint[], $4::bigint[]) AS w(part, place) \
                     WHERE r.topic = $1 AND r.grp = $2 AND r.part = w.part AND r.place = w.place",
                )
                .bind(topic)
                .bind(group)
                .bind(again.iter().map(|(part, ..)| *part).collect::<Vec<_>>())
                .bind(
                    again
                        .iter()
                        .map(|(_, lane, candidate)| place_of(lane_number(*lane), candidate.seq))
                        .collect::<Vec<_>>(),
                )
                .bind(HELD)
                .execute(&mut **tx)
                .await
                .map_err(failed)?;
            }
        }
        self.write_cursors(tx, request, parts, chosen).await?;
        self.drop_ranges(tx, request, parts).await?;
        let woken = match endings.is_empty() {
            true => BTreeSet::new(),
            false => self.carry_out(tx, &endings, &mut totals, now).await?,
        };
        totals.write(self, tx).await?;
        Ok(woken.into_iter().filter(|topic| *topic != request.topic).collect())
    }

    async fn write_cursors(
        &self,
        tx: &mut Tx,
        request: &LeaseRequest,
        parts: &[Part],
        chosen: &Chosen,
    ) -> Result<(), StoreError> {
        let granted = |part: i16| chosen.granted.iter().filter(|(known, ..)| *known == part).count() as i64;
        sqlx::query(
            "UPDATE cursors c SET nexts = w.nexts::bigint[], granted = c.granted + w.granted, seen = w.seen \
             FROM unnest($3::smallint[], $4::text[], $5::bigint[], $6::bigint[]) AS w(part, nexts, granted, seen) \
             WHERE c.topic = $1 AND c.grp = $2 AND c.part = w.part",
        )
        .bind(t(request.topic))
        .bind(g(request.group))
        .bind(parts.iter().map(|part| part.part).collect::<Vec<_>>())
        .bind(parts.iter().map(|part| array(&part.nexts)).collect::<Vec<_>>())
        .bind(parts.iter().map(|part| granted(part.part)).collect::<Vec<_>>())
        .bind(parts.iter().map(Part::seen_now).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    /// What cursors have come past needs no range any more.
    async fn drop_ranges(&self, tx: &mut Tx, request: &LeaseRequest, parts: &[Part]) -> Result<(), StoreError> {
        sqlx::query(
            "DELETE FROM settled_ranges s USING cursors c WHERE s.topic = $1 AND s.grp = $2 AND s.part = ANY($3) \
             AND c.topic = s.topic AND c.grp = s.grp AND c.part = s.part AND s.until <= c.nexts[s.lane + 1]",
        )
        .bind(t(request.topic))
        .bind(g(request.group))
        .bind(parts.iter().map(|part| part.part).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        Ok(())
    }
}

fn entry(lane: usize, candidate: &Candidate, attempt: u32) -> Entry {
    Entry {
        id: candidate.id,
        lane: lane_number(lane),
        seq: candidate.seq,
        stamp: candidate.stamp,
        key: candidate.key,
        attempt,
        again: candidate.again.is_some(),
    }
}

/// The messages of what was chosen, by partition, lane and sequence.
async fn bodies(
    tx: &mut Tx,
    topic: TopicId,
    chosen: &Chosen,
) -> Result<HashMap<(i16, usize, i64), crate::message::Message>, StoreError> {
    if chosen.granted.is_empty() {
        return Ok(HashMap::new());
    }
    let places: Vec<_> = chosen
        .granted
        .iter()
        .map(|(part, number, candidate)| ((t(topic), *part), lane_number(*number), candidate.seq))
        .collect();
    let mut found = HashMap::with_capacity(places.len());
    for ((place, lane, seq), stored) in originals(tx, &places).await? {
        found.insert((place.1, lane_index(lane), seq), stored.message()?);
    }
    Ok(found)
}
