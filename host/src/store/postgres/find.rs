//! One message by its id: found, and erased. Invariant: what was erased is in no table from the commit on. That its bytes
//! leave the files is a vacuum's, which nothing here asks for.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, Row as _};

use super::Shared;
use super::control::lock_partitions;
use super::ends::failures_of;
use super::grant::{Grant, grants};
use super::sql::{STORED, Stored, Tx, body_at, commit, failed, group_id, now, place_of, topic_id};
use crate::clock::Timestamp;
use crate::message::{Failures, MessageId};
use crate::store::{DeliveryState, Found, GroupStatus, StoreError};

impl Shared {
    /// See [`crate::store::MessageStore::get`].
    pub(super) async fn get(&self, id: MessageId) -> Result<Option<Found>, StoreError> {
        let mut tx = self.look().await?;
        let now = now(&mut tx, &self.clock).await?;
        let Some(stored) = find(&mut tx, id).await? else { return self.get_scheduled(&mut tx, id).await };
        let position = stored.position();
        let groups = statuses(&mut tx, &stored, now).await?;
        let message = stored.message()?;
        commit(tx).await?;
        Ok(Some(Found { message, position: Some(position), due: None, groups }))
    }

    async fn get_scheduled(&self, tx: &mut Tx, id: MessageId) -> Result<Option<Found>, StoreError> {
        let row = sqlx::query("SELECT due, id, expires, key, target, meta_len, crc, body FROM scheduled WHERE id = $1")
            .bind(id.0)
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed)?;
        let Some(row) = row else { return Ok(None) };
        let due = Some(Timestamp(row.try_get(0).map_err(failed)?));
        let message = body_at(&row, 1)?.message();
        Ok(message.map(|message| Found { message, position: None, due, groups: Vec::new() }))
    }

    /// See [`crate::store::MessageStore::erase`].
    pub(super) async fn erase(&self, id: MessageId) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let scheduled: Vec<(i32, i16, i64)> = sqlx::query_as(
            "DELETE FROM scheduled WHERE id = $1 RETURNING topic, part, octet_length(body)::bigint + 64",
        )
        .bind(id.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        for (topic, part, cost) in &scheduled {
            sqlx::query("UPDATE store_partitions SET bytes = bytes - $3 WHERE topic = $1 AND part = $2")
                .bind(topic)
                .bind(part)
                .bind(cost)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        let found = find(&mut tx, id).await?;
        let copies: Vec<(i32, i16, i16, i64)> = sqlx::query_as(
            "SELECT m.topic, m.part, m.lane, m.seq FROM messages m JOIN store_topics USING (topic) WHERE m.original = $1",
        )
        .bind(id.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        let mut places: BTreeSet<(i32, i16, i16, i64)> = copies.into_iter().collect();
        places.extend(found.map(|stored| (stored.place.0, stored.place.1, stored.lane, stored.seq)));
        let any = !places.is_empty() || !scheduled.is_empty();
        self.erase_places(&mut tx, &places).await?;
        commit(tx).await?;
        places.into_iter().map(|(topic, ..)| topic_id(topic)).for_each(|topic| self.wake(topic));
        Ok(any)
    }

    async fn erase_places(&self, tx: &mut Tx, places: &BTreeSet<(i32, i16, i16, i64)>) -> Result<(), StoreError> {
        let topics: BTreeSet<i32> = places.iter().map(|(topic, ..)| *topic).collect();
        let topics: Vec<i32> = topics.into_iter().collect();
        // No lease is to come between: it would hold what is not there any more.
        sqlx::query("SELECT 1 FROM cursors WHERE topic = ANY($1) ORDER BY topic, grp, part FOR UPDATE")
            .bind(&topics)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        let rows = sqlx::query(grants!("WHERE g.topic = ANY($1) ORDER BY g.epoch, g.number FOR UPDATE"))
            .bind(&topics)
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
        let mut grants = rows.iter().map(Grant::read).collect::<Result<Vec<_>, _>>()?;
        for topic in &topics {
            lock_partitions(tx, *topic).await?;
        }
        for grant in &mut grants {
            let erased: Vec<usize> = grant
                .open()
                .filter(|(_, entry)| places.contains(&(grant.place.0, grant.place.1, entry.lane, entry.seq)))
                .map(|(nth, _)| nth)
                .collect();
            erased.into_iter().for_each(|nth| grant.close(nth));
        }
        Grant::write(&grants, tx).await?;
        for sql in [
            "DELETE FROM retries r USING unnest($1::integer[], $2::smallint[], $3::smallint[], $4::bigint[]) AS w(topic, part, lane, seq) \
             WHERE r.topic = w.topic AND r.part = w.part AND r.place = w.lane::bigint << 48 | w.seq",
            "INSERT INTO erased SELECT * FROM unnest($1::integer[], $2::smallint[], $3::smallint[], $4::bigint[]) ON CONFLICT DO NOTHING",
            "WITH gone AS (DELETE FROM messages m \
                 USING unnest($1::integer[], $2::smallint[], $3::smallint[], $4::bigint[]) AS w(topic, part, lane, seq) \
                 WHERE m.topic = w.topic AND m.part = w.part AND m.lane = w.lane AND m.seq = w.seq \
                 RETURNING m.topic, m.part, m.lane, m.seq, octet_length(m.body)::bigint + 64 AS cost), \
             counted AS (SELECT g.topic, g.part, sum(g.cost)::bigint AS cost FROM gone g JOIN store_partitions q USING (topic, part) \
                 WHERE g.seq >= q.starts[g.lane + 1] GROUP BY g.topic, g.part) \
             UPDATE store_partitions q SET bytes = q.bytes - c.cost FROM counted c WHERE q.topic = c.topic AND q.part = c.part",
        ] {
            sqlx::query(sql)
                .bind(places.iter().map(|(topic, ..)| *topic).collect::<Vec<_>>())
                .bind(places.iter().map(|(_, part, ..)| *part).collect::<Vec<_>>())
                .bind(places.iter().map(|(.., lane, _)| *lane).collect::<Vec<_>>())
                .bind(places.iter().map(|(.., seq)| *seq).collect::<Vec<_>>())
                .execute(&mut **tx)
                .await
                .map_err(failed)?;
        }
        Ok(())
    }
}

/// A message in a log.
async fn find(tx: &mut Tx, id: MessageId) -> Result<Option<Stored>, StoreError> {
    let sql = format!(
        "SELECT {STORED} FROM messages m JOIN store_partitions q USING (topic, part) \
         WHERE m.id = $1 AND m.seq >= q.starts[m.lane + 1]"
    );
    let row = sqlx::query(AssertSqlSafe(sql)).bind(id.0).fetch_optional(&mut **tx).await.map_err(failed)?;
    row.as_ref().map(Stored::read).transpose()
}

/// A message's state for each group of its topic.
async fn statuses(tx: &mut Tx, stored: &Stored, now: i64) -> Result<Vec<GroupStatus>, StoreError> {
    let place = place_of(stored.lane, stored.seq);
    let rows = sqlx::query(
        "SELECT c.grp, c.nexts[$4 + 1], r.at, r.attempts, r.failures, \
             EXISTS (SELECT 1 FROM settled_ranges s WHERE s.topic = c.topic AND s.grp = c.grp AND s.part = c.part \
                 AND s.lane = $4 AND s.first <= $5 AND s.until > $5) \
         FROM cursors c LEFT JOIN retries r ON r.topic = c.topic AND r.grp = c.grp AND r.part = c.part AND r.place = $3 \
         WHERE c.topic = $1 AND c.part = $2 ORDER BY c.grp",
    )
    .bind(stored.place.0)
    .bind(stored.place.1)
    .bind(place)
    .bind(i32::from(stored.lane))
    .bind(stored.seq)
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)?;
    let grants = sqlx::query(grants!("WHERE g.topic = $1 AND g.part = $2"))
        .bind(stored.place.0)
        .bind(stored.place.1)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
    let grants = grants.iter().map(Grant::read).collect::<Result<Vec<_>, _>>()?;
    let mut statuses = Vec::with_capacity(rows.len());
    for row in &rows {
        let group: i32 = row.try_get(0).map_err(failed)?;
        let next: i64 = row.try_get(1).map_err(failed)?;
        let at: Option<i64> = row.try_get(2).map_err(failed)?;
        let attempts = row.try_get::<Option<i32>, _>(3).map_err(failed)?.unwrap_or(0).cast_unsigned();
        let failures: Option<Vec<u8>> = row.try_get(4).map_err(failed)?;
        let above: bool = row.try_get(5).map_err(failed)?;
        let held = grants.iter().filter(|grant| grant.group == group).find_map(|grant| {
            let found = grant.open().find(|(_, entry)| (entry.lane, entry.seq) == (stored.lane, stored.seq));
            found.map(|(nth, entry)| (entry.attempt, grant.deadline_of(nth)))
        });
        let foreign = stored.body.head.target.is_some_and(|target| target != group_id(group));
        let state = match (held, at) {
            (Some((attempt, deadline)), _) if deadline > now => {
                DeliveryState::Leased { attempt, deadline: Timestamp(deadline) }
            }
            (Some(_), _) => DeliveryState::Waiting,
            (None, Some(at)) if at > now => DeliveryState::Retrying { attempts, at: Timestamp(at) },
            (None, Some(_)) => DeliveryState::Waiting,
            (None, None) if stored.seq >= next && !above && !foreign => DeliveryState::Waiting,
            (None, None) => DeliveryState::Settled,
        };
        let failures =
            if state == DeliveryState::Settled { Failures::default() } else { failures_of(failures.as_deref())? };
        statuses.push(GroupStatus { group: group_id(group), state, failures });
    }
    Ok(statuses)
}
