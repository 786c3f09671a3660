//! Reading the log without a cursor: pages, and the list of dead letters. Invariant: a page is of one snapshot of the
//! database, in the order of appending, and says where the next one begins. Moves nothing.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, Row as _};

use super::Shared;
use super::control::{Lanes, first_at};
use super::grant::{Grant, grants};
use super::sql::{LANES, STORED, Stored, Tx, commit, failed, lane_and_seq, lane_index, lane_number, ms, n, now, p, t};
use crate::message::{Offset, Position, TopicId};
use crate::store::{Page, ReadCursor, ReadFrom, ReadRequest, StoreError};

impl Shared {
    /// See [`crate::store::MessageStore::read`].
    pub(super) async fn read(&self, request: ReadRequest) -> Result<Page, StoreError> {
        let mut tx = self.look().await?;
        let (parts, cutoff) = self.view(&mut tx, request.topic).await?;
        if request.partition.is_some_and(|partition| usize::from(partition) >= parts.len()) {
            return Err(StoreError::Invalid("the topic has no such partition".to_owned()));
        }
        let parts: Vec<Lanes> =
            parts.into_iter().filter(|lanes| request.partition.is_none_or(|wanted| p(wanted) == lanes.part)).collect();
        let mut places = BTreeMap::new();
        for lanes in &parts {
            for lane in 0..LANES {
                places.insert((lanes.part, lane), lanes.starts[lane]);
            }
        }
        match &request.from {
            ReadFrom::Earliest => {}
            ReadFrom::Latest => {
                for lanes in &parts {
                    for lane in 0..LANES {
                        places.insert((lanes.part, lane), lanes.heads[lane]);
                    }
                }
            }
            ReadFrom::Time(at) => {
                for (part, lane, seq) in first_at(&mut tx, t(request.topic), &parts, at.0).await? {
                    places.insert((part, lane), seq);
                }
            }
            ReadFrom::Offset(from) => {
                let partition = request
                    .partition
                    .ok_or_else(|| StoreError::Invalid("reading from an offset needs a partition".to_owned()))?;
                let stamp = stamp_at(&mut tx, request.topic, p(partition), *from).await?;
                for (part, lane, seq) in first_stamped(&mut tx, request.topic, &parts, stamp).await? {
                    places.insert((part, lane), seq);
                }
                let (lane, seq) = lane_and_seq(*from);
                let lane = lane_index(lane);
                for lanes in parts.iter().filter(|_| lane < LANES) {
                    places.insert((lanes.part, lane), seq.clamp(lanes.starts[lane], lanes.heads[lane]));
                }
            }
            ReadFrom::Cursor(ReadCursor(nexts)) => {
                for (partition, next) in nexts {
                    let (lane, seq) = lane_and_seq(*next);
                    let key = (p(*partition), lane_index(lane));
                    let bounds = parts.iter().find(|lanes| lanes.part == key.0).filter(|_| key.1 < LANES);
                    if let Some(lanes) = bounds {
                        places.insert(key, seq.clamp(lanes.starts[key.1], lanes.heads[key.1]));
                    }
                }
            }
        }
        let page = merge(&mut tx, request.topic, places, &parts, (request.limit, request.bytes_max), cutoff).await?;
        commit(tx).await?;
        Ok(page)
    }

    /// See [`crate::store::MessageStore::dead_letters`].
    pub(super) async fn dead_letters(
        &self,
        topic: TopicId,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let mut tx = self.look().await?;
        let (_, cutoff) = self.view(&mut tx, topic).await?;
        let mut stamp = 0;
        if let Some(after) = after {
            let (lane, seq) = lane_and_seq(after.offset);
            let next = Offset::new(u8::try_from(lane).unwrap_or(0), (seq + 1).cast_unsigned());
            let at: Option<i64> = sqlx::query_scalar(
                "SELECT stamp FROM messages WHERE topic = $1 AND part = $2 AND lane = $3 AND seq = $4",
            )
            .bind(t(topic))
            .bind(p(after.partition))
            .bind(lane)
            .bind(seq)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
            stamp = match at {
                Some(stamp) => stamp + 1,
                // It is gone: from what came after it on.
                None => stamp_at(&mut tx, topic, p(after.partition), next).await?,
            };
        }
        let held = open_places(&mut tx, topic).await?;
        let sql = format!(
            "SELECT {STORED} FROM messages m JOIN cursors c ON c.topic = m.topic AND c.grp = 0 AND c.part = m.part \
             JOIN store_partitions q ON q.topic = m.topic AND q.part = m.part \
             WHERE m.topic = $1 AND m.stamp >= $2 AND m.at > $3 AND m.seq >= q.starts[m.lane + 1] AND ( \
                 (m.seq >= c.nexts[m.lane + 1] AND NOT EXISTS (SELECT 1 FROM settled_ranges s WHERE s.topic = m.topic AND s.grp = 0 \
                     AND s.part = m.part AND s.lane = m.lane AND s.first <= m.seq AND s.until > m.seq)) \
                 OR EXISTS (SELECT 1 FROM retries r WHERE r.topic = m.topic AND r.grp = 0 AND r.part = m.part \
                     AND r.place = m.lane::bigint << 48 | m.seq) \
                 OR (m.lane::bigint << 48 | m.seq) = ANY($5)) \
             ORDER BY m.stamp LIMIT $4"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(t(topic))
            .bind(stamp)
            .bind(cutoff)
            .bind(n(limit as u64) + 1)
            .bind(&held)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        let mut messages = Vec::with_capacity(rows.len());
        for row in rows.iter().take(limit) {
            let stored = Stored::read(row)?;
            messages.push((stored.position(), stored.message()?));
        }
        commit(tx).await?;
        let reached = messages.iter().map(|(at, _): &(Position, _)| (at.partition, Offset(at.offset.0 + 1)));
        let reached = ReadCursor(reached.collect());
        Ok(Page { messages, reached, more: rows.len() > limit })
    }

    /// The partitions of a topic as this transaction sees them, and how old is too old.
    async fn view(&self, tx: &mut Tx, topic: TopicId) -> Result<(Vec<Lanes>, i64), StoreError> {
        let now = now(tx, &self.clock).await?;
        let rows = sqlx::query(
            "SELECT q.part, q.heads, q.starts, s.spec::text FROM store_partitions q JOIN store_topics s USING (topic) \
             WHERE q.topic = $1 ORDER BY q.part",
        )
        .bind(t(topic))
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        let (mut parts, mut cutoff) = (Vec::with_capacity(rows.len()), 0);
        for row in &rows {
            parts.push(Lanes {
                part: row.try_get(0).map_err(failed)?,
                heads: super::log::lanes(row.try_get(1).map_err(failed)?)?,
                starts: super::log::lanes(row.try_get(2).map_err(failed)?)?,
            });
            let spec: String = row.try_get(3).map_err(failed)?;
            cutoff = now - ms(super::control::topic_spec(&spec)?.retention);
        }
        if parts.is_empty() { Err(StoreError::NoTopic) } else { Ok((parts, cutoff)) }
    }
}

/// Reads lanes in the order of appending.
async fn merge(
    tx: &mut Tx,
    topic: TopicId,
    mut places: BTreeMap<(i16, usize), i64>,
    parts: &[Lanes],
    (limit, bytes_max): (usize, usize),
    cutoff: i64,
) -> Result<Page, StoreError> {
    let columns = |of: fn((&(i16, usize), &i64)) -> i64| places.iter().map(of).collect::<Vec<i64>>();
    // Sizes first: the bodies of what does not fit are not fetched.
    let heads = sqlx::query(
        "SELECT w.part::smallint, w.lane::smallint, m.seq, m.len FROM unnest($2::bigint[], $3::bigint[], $4::bigint[]) AS w(part, lane, next) \
         CROSS JOIN LATERAL (SELECT m.seq, m.stamp, (octet_length(m.body) - m.meta_len)::bigint AS len FROM messages m \
             WHERE m.topic = $1 AND m.part = w.part AND m.lane = w.lane AND m.seq >= w.next AND m.at > $5 \
             ORDER BY m.seq LIMIT $6) m ORDER BY m.stamp LIMIT $6",
    )
    .bind(t(topic))
    .bind(columns(|((part, _), _)| i64::from(*part)))
    .bind(columns(|((_, lane), _)| i64::try_from(*lane).unwrap_or(0)))
    .bind(columns(|(_, next)| *next))
    .bind(cutoff)
    .bind(n(limit as u64).saturating_add(1))
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)?;
    let (mut wanted, mut bytes, mut more) = (Vec::new(), 0, false);
    for row in &heads {
        let (part, lane): (i16, i16) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        let (seq, len): (i64, i64) = (row.try_get(2).map_err(failed)?, row.try_get(3).map_err(failed)?);
        let full =
            wanted.len() >= limit || (!wanted.is_empty() && bytes + len > i64::try_from(bytes_max).unwrap_or(i64::MAX));
        if full {
            more = true;
            break;
        }
        bytes += len;
        wanted.push(((t(topic), part), lane, seq));
    }
    let mut found = super::ends::originals(tx, &wanted).await?;
    let mut messages = Vec::with_capacity(wanted.len());
    for key in &wanted {
        if let Some(stored) = found.remove(key) {
            messages.push((stored.position(), stored.message()?));
        }
        let ((_, part), lane, seq) = *key;
        places.insert((part, lane_index(lane)), seq + 1);
    }
    if !more {
        for lanes in parts {
            for lane in 0..LANES {
                places.insert((lanes.part, lane), lanes.heads[lane]);
            }
        }
    }
    let reached = places.into_iter().filter(|(_, next)| *next > 0).map(|((part, lane), next)| {
        (part.cast_unsigned(), Offset::new(u8::try_from(lane).unwrap_or(0), next.cast_unsigned()))
    });
    Ok(Page { messages, reached: ReadCursor(reached.collect()), more })
}

/// The place of an offset in the order of all appends.
async fn stamp_at(tx: &mut Tx, topic: TopicId, part: i16, from: Offset) -> Result<i64, StoreError> {
    let (lane, seq) = lane_and_seq(from);
    let stamp: Option<i64> = sqlx::query_scalar(
        "SELECT stamp FROM messages WHERE topic = $1 AND part = $2 AND lane = $3 AND seq >= $4 ORDER BY seq LIMIT 1",
    )
    .bind(t(topic))
    .bind(part)
    .bind(lane)
    .bind(seq)
    .fetch_optional(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(stamp.unwrap_or(i64::MAX))
}

/// The first message of each lane that comes with or after a place in the order of all appends; its end if there is none.
async fn first_stamped(
    tx: &mut Tx,
    topic: TopicId,
    parts: &[Lanes],
    stamp: i64,
) -> Result<Vec<(i16, usize, i64)>, StoreError> {
    let mut found = Vec::new();
    for lanes in parts {
        for lane in (0..LANES).filter(|lane| lanes.starts[*lane] < lanes.heads[*lane]) {
            let seq: Option<i64> = sqlx::query_scalar(
                "SELECT seq FROM messages WHERE topic = $1 AND part = $2 AND lane = $3 AND seq >= $4 AND stamp >= $5 \
                 ORDER BY seq LIMIT 1",
            )
            .bind(t(topic))
            .bind(lanes.part)
            .bind(lane_number(lane))
            .bind(lanes.starts[lane])
            .bind(stamp)
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed)?;
            found.push((lanes.part, lane, seq.unwrap_or(lanes.heads[lane])));
        }
    }
    Ok(found)
}

/// Offsets that the one group of a dead-letter topic holds.
async fn open_places(tx: &mut Tx, topic: TopicId) -> Result<Vec<i64>, StoreError> {
    let rows = sqlx::query(grants!("WHERE g.topic = $1 AND g.grp = 0"))
        .bind(t(topic))
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    let mut places = Vec::new();
    for row in &rows {
        let grant = Grant::read(row)?;
        places.extend(grant.open().map(|(_, entry)| super::sql::place_of(entry.lane, entry.seq)));
    }
    Ok(places)
}
