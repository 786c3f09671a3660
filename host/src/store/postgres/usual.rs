//! The usual lease, which is nearly each: new messages of one partition after the other, without priorities, order, retries or
//! anything that is due. Invariant: where anything is not so, nothing is granted here, and `lease` decides. Two questions and two
//! answers for a partition, since what is asked most often costs most.

use std::sync::atomic::Ordering;

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::Shared;
use super::grant::{Entry, Grant};
use super::sql::{Stored, Tx, body_at, commit, failed, g, ms, t, time};
use crate::clock::Timestamp;
use crate::store::{Lease, LeaseRequest, Leased, Mode, StoreError};

/// Partitions that one call takes from.
const PARTITIONS_MAX: usize = 16;

/// What one partition gave.
struct Taken {
    leases: Vec<Lease>,
    /// Whether another partition has something.
    others: bool,
    /// Whether this one has.
    rest: bool,
}

impl Shared {
    /// Leases that need no look at anything else; none where they do, or where there are none.
    pub(super) async fn lease_as_usual(&self, request: &LeaseRequest) -> Result<Leased, StoreError> {
        let mut all = Leased { leases: Vec::new(), more: true };
        if request.ordered || request.mode != Mode::AtLeastOnce {
            return Ok(all);
        }
        let mut bytes = 0;
        for _ in 0..PARTITIONS_MAX {
            let taken = match self.take(request, all.leases.len(), bytes).await {
                Ok(Some(taken)) => taken,
                // What was granted is not to wait for its deadline.
                Err(error) if !all.leases.is_empty() => {
                    tracing::debug!(%error, "a lease is smaller than it could be");
                    break;
                }
                taken => {
                    taken?;
                    break;
                }
            };
            bytes += taken.leases.iter().map(|lease| lease.message.payload.len()).sum::<usize>();
            all.leases.extend(taken.leases);
            all.more = taken.others || taken.rest;
            if !taken.others || taken.rest || all.leases.len() >= request.max || bytes >= request.bytes_max {
                break;
            }
        }
        Ok(all)
    }

    async fn take(&self, request: &LeaseRequest, count: usize, bytes: usize) -> Result<Option<Taken>, StoreError> {
        let (given, ahead) = time(&self.clock);
        let bytes_left = i64::try_from(request.bytes_max - bytes).unwrap_or(i64::MAX);
        let number = self.next_grant.fetch_add(1, Ordering::Relaxed).cast_signed();
        let mut tx = self.begin().await?;
        let rows = sqlx::query("SELECT * FROM store_take($1, $2, $3, $4, $5, $6, $7)")
            .bind(t(request.topic))
            .bind(g(request.group))
            .bind(i64::try_from(request.max - count).unwrap_or(i64::MAX))
            .bind(bytes_left)
            // Brokers begin with different partitions, and with another one each time.
            .bind(self.epoch.wrapping_mul(7).wrapping_add(number) & i64::from(i32::MAX))
            .bind(given)
            .bind(ahead)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        let Some(first) = rows.first() else { return unusual(tx).await };
        let (part, now, others, head) = of_partition(first).map_err(failed)?;
        let place = (t(request.topic), part);
        let (mut entries, mut messages, mut since) =
            (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()), 0);
        for row in &rows {
            let (lane, seq) = (row.try_get(5).map_err(failed)?, row.try_get(6).map_err(failed)?);
            let body = body_at(row, 7)?;
            if body.head.expires_at.is_some_and(|at| at.0 <= now) {
                return unusual(tx).await;
            }
            let stamp = row.try_get(14).map_err(failed)?;
            since = row.try_get(15).map_err(failed)?;
            let key = body.head.key.map(u64::cast_signed);
            entries.push(Entry { id: body.head.id, lane, seq, stamp, key, attempt: 1, again: false });
            messages.push(Stored { place, lane, seq, body }.message()?);
        }
        let fits = |len: usize| i64::try_from(len).is_ok_and(|len| len <= bytes_left);
        if count > 0 && messages.first().is_some_and(|first| !fits(first.payload.len())) {
            // Only the first of all is granted whatever its size.
            return unusual(tx).await;
        }
        let next = entries.last().map_or(0, |last| last.seq + 1);
        let held = (now.saturating_add(ms(request.duration)), request.holder.to_string());
        let grant = Grant::new((self.epoch, number), place, g(request.group), held, entries);
        grant.give(&mut tx, (next, since), self.slot()).await?;
        commit(tx).await?;
        let deadline = Timestamp(now).plus(request.duration);
        let lease = |(nth, message)| Lease {
            position: grant.position(nth),
            message,
            attempt: 1,
            deadline,
            receipt: grant.receipt(nth),
        };
        let leases = messages.into_iter().enumerate().map(lease).collect();
        Ok(Some(Taken { leases, others, rest: next < head }))
    }
}

/// Lets go of the cursor before the general lease looks at it: one that is dropped with its transaction stays locked for a moment,
/// and would be passed over.
async fn unusual(tx: Tx) -> Result<Option<Taken>, StoreError> {
    commit(tx).await?;
    Ok(None)
}

/// Its number, the time, whether others have something, and where it ends.
fn of_partition(row: &PgRow) -> Result<(i16, i64, bool, i64), sqlx::Error> {
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
}
