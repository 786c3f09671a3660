//! A row of `grants`: what one answer to a lease held, and what of it is open. Invariant: an entry that is settled never
//! opens again; the row is gone when none is open.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::sql::{Place, Tx, damaged, failed, group_id, position};
use crate::message::{GroupId, MessageId, Position};
use crate::store::{Receipt, StoreError};

/// Bits of a receipt's grant that say which message of the answer is meant.
const NTH_BITS: u32 = 10;

/// One message of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub id: MessageId,
    pub lane: i16,
    pub seq: i64,
    pub stamp: i64,
    pub key: Option<i64>,
    pub attempt: u32,
    /// Whether `retries` has a row of it.
    pub again: bool,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    pub epoch: i64,
    pub number: i64,
    pub place: Place,
    pub group: i32,
    pub deadline: i64,
    pub holder: String,
    pub entries: Vec<Entry>,
    settled: Vec<u8>,
    /// Entries with a deadline of their own.
    extended: Vec<(u16, i64)>,
    /// That the row does not list its messages.
    following: Option<Following>,
    /// Whether `settled` or `extended` are not what they were when the row was read.
    changed: bool,
}

/// Messages of a grant that follow each other in the first lane, each attempted for the first time.
#[derive(Debug, Clone)]
struct Following {
    first: i64,
    count: i32,
    /// None of them came before.
    since: i64,
    /// Whether their ids, stamps and keys are known here.
    known: bool,
}

impl Following {
    /// Where they stand.
    fn entries(&self) -> Vec<Entry> {
        let id = MessageId(Uuid::nil());
        let entry = |seq| Entry { id, lane: 0, seq, stamp: 0, key: None, attempt: 1, again: false };
        (self.first..).take(usize::try_from(self.count).unwrap_or(0)).map(entry).collect()
    }
}

/// A query for rows of `grants`, which it calls `g`, as [`Grant::read`] wants them.
macro_rules! grants {
    ($from:literal) => {
        concat!(
            "SELECT g.epoch, g.number, g.topic, g.part, g.grp, g.deadline, g.holder, g.entries, g.settled, g.extended, g.first, g.count, \
             g.since FROM grants g ",
            $from
        )
    };
}
pub(super) use grants;

impl Grant {
    /// A new one, with all of it open.
    pub fn new(
        (epoch, number): (i64, i64),
        place: Place,
        group: i32,
        (deadline, holder): (i64, String),
        entries: Vec<Entry>,
    ) -> Grant {
        let settled = vec![0; entries.len().div_ceil(8)];
        Grant {
            epoch,
            number,
            place,
            group,
            deadline,
            holder,
            entries,
            settled,
            extended: Vec::new(),
            following: None,
            changed: false,
        }
    }

    /// Reads a row of `grants!`. Of some, ids, stamps and keys are known once they are looked up only ([`Grant::know`]).
    pub fn read(row: &PgRow) -> Result<Grant, StoreError> {
        let entries: Vec<u8> = row.try_get(7).map_err(failed)?;
        let extended: Option<Vec<u8>> = row.try_get(9).map_err(failed)?;
        let broken = |error: postcard::Error| damaged("grants", &error.to_string());
        let following = match row.try_get::<Option<i64>, _>(10).map_err(failed)? {
            Some(first) => {
                let (count, since) = (row.try_get(11).map_err(failed)?, row.try_get(12).map_err(failed)?);
                Some(Following { first, count, since, known: false })
            }
            None => None,
        };
        let grant = Grant {
            epoch: row.try_get(0).map_err(failed)?,
            number: row.try_get(1).map_err(failed)?,
            place: (row.try_get(2).map_err(failed)?, row.try_get(3).map_err(failed)?),
            group: row.try_get(4).map_err(failed)?,
            deadline: row.try_get(5).map_err(failed)?,
            holder: row.try_get(6).map_err(failed)?,
            entries: match &following {
                Some(known) => known.entries(),
                None => postcard::from_bytes(&entries).map_err(broken)?,
            },
            following,
            settled: row.try_get(8).map_err(failed)?,
            extended: extended.map_or(Ok(Vec::new()), |bytes| postcard::from_bytes(&bytes)).map_err(broken)?,
            changed: false,
        };
        if grant.settled.len() * 8 < grant.entries.len() {
            return Err(damaged("grants", "fewer bits than messages"));
        }
        Ok(grant)
    }

    /// Whether an entry is open.
    pub fn is_open(&self, nth: usize) -> bool {
        nth < self.entries.len() && self.settled[nth / 8] & (1 << (nth % 8)) == 0
    }

    /// The entries that are open.
    pub fn open(&self) -> impl Iterator<Item = (usize, &Entry)> {
        self.entries.iter().enumerate().filter(|(nth, _)| self.is_open(*nth))
    }

    /// When an entry's lease ends.
    pub fn deadline_of(&self, nth: usize) -> i64 {
        let own = self.extended.iter().find(|(known, _)| usize::from(*known) == nth);
        own.map_or(self.deadline, |(_, deadline)| *deadline)
    }

    /// Where an entry stands.
    pub fn position(&self, nth: usize) -> Position {
        let entry = &self.entries[nth];
        position(self.place, entry.lane, entry.seq)
    }

    /// Closes an entry.
    pub fn close(&mut self, nth: usize) {
        self.settled[nth / 8] |= 1 << (nth % 8);
        self.changed = true;
    }

    /// Gives an entry another deadline.
    pub fn extend(&mut self, nth: usize, deadline: i64) {
        let number = u16::try_from(nth).unwrap_or(u16::MAX);
        self.extended.retain(|(known, _)| *known != number);
        self.extended.push((number, deadline));
        self.changed = true;
    }

    /// The receipt of an entry.
    pub fn receipt(&self, nth: usize) -> Receipt {
        Receipt {
            position: self.position(nth),
            group: self.group_id(),
            epoch: self.epoch.cast_unsigned(),
            grant: self.number.cast_unsigned() << NTH_BITS | nth as u64,
            attempt: self.entries[nth].attempt,
        }
    }

    /// Whose it is.
    pub fn group_id(&self) -> GroupId {
        group_id(self.group)
    }

    fn ends(&self) -> i64 {
        self.open().map(|(nth, _)| self.deadline_of(nth)).min().unwrap_or(self.deadline)
    }

    /// Writes a new row.
    pub async fn insert(grants: &[Grant], tx: &mut Tx) -> Result<(), StoreError> {
        if grants.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::with_capacity(grants.len());
        for grant in grants {
            entries.push(postcard::to_stdvec(&grant.entries).map_err(|error| StoreError::Invalid(error.to_string()))?);
        }
        sqlx::query(
            "INSERT INTO grants (epoch, number, topic, part, grp, open, deadline, ends, holder, settled, entries) \
             SELECT epoch, number, topic, part, grp, open, deadline, deadline, holder, settled, entries \
             FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::smallint[], $5::integer[], $6::integer[], \
             $7::bigint[], $8::text[], $9::bytea[], $10::bytea[]) \
             AS w(epoch, number, topic, part, grp, open, deadline, holder, settled, entries)",
        )
        .bind(grants.iter().map(|grant| grant.epoch).collect::<Vec<_>>())
        .bind(grants.iter().map(|grant| grant.number).collect::<Vec<_>>())
        .bind(grants.iter().map(|grant| grant.place.0).collect::<Vec<_>>())
        .bind(grants.iter().map(|grant| grant.place.1).collect::<Vec<_>>())
        .bind(grants.iter().map(|grant| grant.group).collect::<Vec<_>>())
        .bind(grants.iter().map(|grant| i32::try_from(grant.entries.len()).unwrap_or(i32::MAX)).collect::<Vec<_>>())
        .bind(grants.iter().map(|grant| grant.deadline).collect::<Vec<_>>())
        .bind(grants.iter().map(|grant| grant.holder.clone()).collect::<Vec<_>>())
        .bind(grants.iter().map(|grant| grant.settled.clone()).collect::<Vec<_>>())
        .bind(entries)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    /// Looks up what rows do not list of messages that are open. What is not there any more is none of them.
    pub async fn know(grants: &mut [Grant], tx: &mut Tx) -> Result<(), StoreError> {
        let unknown = |grant: &&mut Grant| grant.following.as_ref().is_some_and(|following| !following.known);
        let mut unknown: Vec<&mut Grant> = grants.iter_mut().filter(unknown).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let column =
            |of: fn(&Following) -> i64| unknown.iter().filter_map(|grant| grant.following.as_ref().map(of)).collect();
        let (firsts, sinces): (Vec<i64>, Vec<i64>) =
            (column(|following| following.first), column(|following| following.since));
        let rows = sqlx::query("SELECT * FROM store_following($1, $2, $3, $4, $5)")
            .bind(unknown.iter().map(|grant| grant.place.0).collect::<Vec<i32>>())
            .bind(unknown.iter().map(|grant| grant.place.1).collect::<Vec<i16>>())
            .bind(firsts)
            .bind(
                unknown
                    .iter()
                    .map(|grant| i32::try_from(grant.entries.len()).unwrap_or(i32::MAX))
                    .collect::<Vec<i32>>(),
            )
            .bind(sinces)
            .fetch_all(&mut **tx)
            .await
            .map_err(failed)?;
        let mut found: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); unknown.len()];
        for row in &rows {
            let (grant, seq): (i64, i64) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
            let at = usize::try_from(grant - 1).unwrap_or(usize::MAX);
            let Some((grant, found)) = unknown.get_mut(at).zip(found.get_mut(at)) else { continue };
            let first = grant.entries.first().map_or(0, |first| first.seq);
            let nth = usize::try_from(seq - first).unwrap_or(usize::MAX);
            let Some(entry) = grant.entries.get_mut(nth) else { continue };
            entry.id = MessageId(row.try_get(2).map_err(failed)?);
            (entry.stamp, entry.key) = (row.try_get(3).map_err(failed)?, row.try_get(4).map_err(failed)?);
            found.insert(nth);
        }
        for (grant, found) in unknown.into_iter().zip(found) {
            let gone: Vec<usize> = grant.open().map(|(nth, _)| nth).filter(|nth| !found.contains(nth)).collect();
            gone.into_iter().for_each(|nth| grant.close(nth));
            grant.following = grant.following.take().map(|following| Following { known: true, ..following });
        }
        Ok(())
    }

    /// Its list, where the row is to have one from now on: settled one by one, it is not looked up each time.
    fn list(&self) -> Result<Option<Vec<u8>>, StoreError> {
        if !self.following.as_ref().is_some_and(|following| following.known) {
            return Ok(None);
        }
        postcard::to_stdvec(&self.entries).map(Some).map_err(|error| StoreError::Invalid(error.to_string()))
    }

    /// Whether it has nothing open any more.
    pub fn is_done(&self) -> bool {
        self.open().next().is_none()
    }

    /// Writes what changed of rows that are locked; those with nothing open go.
    pub async fn write(grants: &[Grant], tx: &mut Tx) -> Result<(), StoreError> {
        let (gone, kept): (Vec<&Grant>, Vec<&Grant>) =
            grants.iter().filter(|grant| grant.changed).partition(|grant| grant.open().next().is_none());
        if !gone.is_empty() {
            sqlx::query(
                "DELETE FROM grants g USING unnest($1::bigint[], $2::bigint[]) AS w(epoch, number) \
                 WHERE g.epoch = w.epoch AND g.number = w.number",
            )
            .bind(gone.iter().map(|grant| grant.epoch).collect::<Vec<_>>())
            .bind(gone.iter().map(|grant| grant.number).collect::<Vec<_>>())
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        }
        if kept.is_empty() {
            return Ok(());
        }
        let extended = |grant: &&Grant| match grant.extended.is_empty() {
            true => Ok(None),
            false => postcard::to_stdvec(&grant.extended).map(Some),
        };
        let extended: Result<Vec<Option<Vec<u8>>>, _> = kept.iter().map(extended).collect();
        let extended = extended.map_err(|error| StoreError::Invalid(error.to_string()))?;
        let lists: Result<Vec<Option<Vec<u8>>>, _> = kept.iter().map(|grant| grant.list()).collect();
        sqlx::query(
            "UPDATE grants g SET settled = w.settled, extended = w.extended, open = w.open, ends = w.ends, \
             entries = coalesce(w.entries, g.entries), first = CASE WHEN w.entries IS NULL THEN g.first END \
             FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[], $5::integer[], $6::bigint[], $7::bytea[]) \
             AS w(epoch, number, settled, extended, open, ends, entries) WHERE g.epoch = w.epoch AND g.number = w.number",
        )
        .bind(kept.iter().map(|grant| grant.epoch).collect::<Vec<_>>())
        .bind(kept.iter().map(|grant| grant.number).collect::<Vec<_>>())
        .bind(kept.iter().map(|grant| grant.settled.clone()).collect::<Vec<_>>())
        .bind(extended)
        .bind(kept.iter().map(|grant| i32::try_from(grant.open().count()).unwrap_or(i32::MAX)).collect::<Vec<_>>())
        .bind(kept.iter().map(|grant| grant.ends()).collect::<Vec<_>>())
        .bind(lists?)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        Ok(())
    }
}

/// The receipt of an answer's nth message, attempted for the first time.
pub(super) fn first_receipt((epoch, number): (i64, i64), nth: usize, position: Position, group: GroupId) -> Receipt {
    let grant = number.cast_unsigned() << NTH_BITS | nth as u64;
    Receipt { position, group, epoch: epoch.cast_unsigned(), grant, attempt: 1 }
}

/// Which row a receipt names, and which entry of it.
pub(super) fn named_by(receipt: &Receipt) -> ((i64, i64), usize) {
    let nth = receipt.grant & ((1 << NTH_BITS) - 1);
    ((receipt.epoch.cast_signed(), (receipt.grant >> NTH_BITS).cast_signed()), nth as usize)
}
