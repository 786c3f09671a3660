//! Plugins' values. Invariant: whoever reads or writes a namespace in an append holds its row, so that what was read is
//! still so when the append commits; turns only spare brokers conflicts (ADR 32). Decides as the embedded store does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sqlx::Row as _;

use super::Shared;
use super::sql::{Tx, failed, n};
use crate::store::{KvHead, KvRoom, KvUse, KvValue, KvWrite, StoreError, ValueTurn, kv_cost};

/// Bytes that one plugin has on one topic; beyond, `KvConflict`.
const NAMESPACE_BYTES_MAX: u64 = 16 << 20;
/// Keys that one plugin has on one topic; beyond, `KvConflict`.
const NAMESPACE_KEYS_MAX: u64 = 100_000;

/// How long a turn is waited for while others of this broker have all that it may have.
const TURN_PATIENCE: Duration = Duration::from_secs(3);

type Key = (Arc<str>, Arc<str>);

/// The namespaces of a batch, locked, and what is under its keys.
#[derive(Default)]
pub(super) struct Values {
    /// Bytes and keys.
    spaces: HashMap<Arc<str>, (u64, u64)>,
    /// Version and bytes of the value.
    stored: HashMap<Key, (u64, usize)>,
}

impl Shared {
    /// See [`crate::store::MessageStore::value_turn`].
    pub(super) async fn value_turn(&self, namespaces: Vec<Arc<str>>) -> Option<ValueTurn> {
        let permit = Arc::clone(&self.turns).acquire_owned();
        let Ok(Ok(permit)) = tokio::time::timeout(TURN_PATIENCE, permit).await else { return None };
        let turn = async {
            let mut tx = self.begin_patient().await?;
            sqlx::query(
                "SELECT pg_advisory_xact_lock(hashtext('sluice.values'), w.hash) \
                 FROM (SELECT DISTINCT hashtext(n) AS hash FROM unnest($1::text[]) n ORDER BY 1) w",
            )
            .bind(namespaces.iter().map(|name| &**name).collect::<Vec<_>>())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
            Ok::<_, StoreError>(tx)
        };
        match turn.await {
            Ok(tx) => Some(Box::new((tx, permit))),
            Err(error) => {
                tracing::debug!(%error, ?namespaces, "no turn of values");
                None
            }
        }
    }
}

/// Keeps turns of what a batch uses from others until it is stored. Before anything else is locked, and never waiting for them: whoever
/// has a turn may want what is locked, or the connection.
///
/// # Errors
/// `KvConflict`, where somebody else has the turn.
pub(super) async fn hold_off_turns(tx: &mut Tx, values: &KvUse) -> Result<(), StoreError> {
    let names = values.namespaces();
    let names: Vec<&str> = names.iter().filter(|name| !values.turn.contains(name)).map(|name| &**name).collect();
    if names.is_empty() {
        return Ok(());
    }
    let held: bool = sqlx::query_scalar(
        "SELECT bool_and(pg_try_advisory_xact_lock_shared(hashtext('sluice.values'), hashtext(n))) FROM unnest($1::text[]) n",
    )
    .bind(names)
    .fetch_one(&mut **tx)
    .await
    .map_err(failed)?;
    if held { Ok(()) } else { Err(StoreError::KvConflict) }
}

impl Values {
    /// Locks what a batch reads and writes.
    pub async fn lock(tx: &mut Tx, writes: &[KvWrite], values: &KvUse) -> Result<Values, StoreError> {
        let mut keys: BTreeSet<Key> = BTreeSet::new();
        keys.extend(writes.iter().map(|write| (Arc::clone(&write.namespace), Arc::clone(&write.key))));
        keys.extend(values.read.iter().map(|read| (Arc::clone(&read.namespace), Arc::clone(&read.key))));
        keys.extend(values.written.iter().map(|write| (Arc::clone(&write.namespace), Arc::clone(&write.key))));
        let mut locked = Values::default();
        if keys.is_empty() {
            return Ok(locked);
        }
        let names: BTreeSet<&str> = keys.iter().map(|(namespace, _)| &**namespace).collect();
        let names: Vec<&str> = names.into_iter().collect();
        sqlx::query(
            "INSERT INTO value_spaces (namespace) SELECT * FROM unnest($1::text[]) ORDER BY 1 ON CONFLICT DO NOTHING",
        )
        .bind(&names)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        let spaces: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT namespace, bytes, keys FROM value_spaces WHERE namespace = ANY($1) ORDER BY namespace FOR UPDATE",
        )
        .bind(&names)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        for (namespace, bytes, count) in spaces {
            locked.spaces.insert(namespace.into(), (bytes.cast_unsigned(), count.cast_unsigned()));
        }
        let stored: Vec<(String, String, i64, i32)> = sqlx::query_as(
            "SELECT v.namespace, v.key, v.version, octet_length(v.value) FROM plugin_values v \
             JOIN unnest($1::text[], $2::text[]) AS w(namespace, key) USING (namespace, key)",
        )
        .bind(keys.iter().map(|(namespace, _)| &**namespace).collect::<Vec<_>>())
        .bind(keys.iter().map(|(_, key)| &**key).collect::<Vec<_>>())
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        for (namespace, key, version, len) in stored {
            let len = usize::try_from(len).unwrap_or(0);
            locked.stored.insert((namespace.into(), key.into()), (version.cast_unsigned(), len));
        }
        Ok(locked)
    }

    /// Holds what was read against what is there, and what is to be written against the room.
    ///
    /// # Errors
    /// `KvConflict`.
    pub fn check(&self, writes: &[KvWrite], values: &KvUse) -> Result<(), StoreError> {
        let written = writes.iter().map(|write| (&write.namespace, &write.key, write.expected_version));
        let read = values.read.iter().map(|read| (&read.namespace, &read.key, read.version));
        for (namespace, key, expected) in written.chain(read) {
            let found = self.stored.get(&(Arc::clone(namespace), Arc::clone(key)));
            if found.map_or(0, |(version, _)| *version) != expected {
                return Err(StoreError::KvConflict);
            }
        }
        let whole = writes.iter().map(|write| (&write.namespace, &write.key, &write.value));
        let of_items = values.written.iter().map(|write| (&write.namespace, &write.key, &write.value));
        let mut largest: HashMap<Key, u64> = HashMap::new();
        for (namespace, key, value) in whole.chain(of_items) {
            if let Some(value) = value {
                let known = largest.entry((Arc::clone(namespace), Arc::clone(key))).or_default();
                *known = kv_cost(namespace, key, value.len()).max(*known);
            }
        }
        // What a removal gives back counts from the next batch on: it may be of a message that is not stored.
        let mut grown: HashMap<Arc<str>, (u64, u64)> = HashMap::new();
        for (key, cost) in largest {
            let before = self.cost(&key);
            let (bytes, keys) = grown.entry(Arc::clone(&key.0)).or_default();
            *bytes += cost.saturating_sub(before);
            *keys += u64::from(before == 0);
        }
        for (namespace, (bytes, keys)) in grown {
            let (used, count) = self.spaces.get(&namespace).copied().unwrap_or_default();
            let grows = bytes > 0 || keys > 0;
            if grows && (used + bytes > NAMESPACE_BYTES_MAX || count + keys > NAMESPACE_KEYS_MAX) {
                return Err(StoreError::KvConflict);
            }
        }
        Ok(())
    }

    /// What a key costs now; 0: it is not there.
    fn cost(&self, key: &Key) -> u64 {
        self.stored.get(key).map_or(0, |(_, len)| kv_cost(&key.0, &key.1, *len))
    }

    /// Writes what goes with the batch as a whole, and with those of its items that are `kept`; a later write of a key over
    /// an earlier one.
    pub async fn write(
        &self,
        tx: &mut Tx,
        whole: impl Iterator<Item = &KvWrite>,
        values: &KvUse,
        kept: impl Fn(usize) -> bool,
    ) -> Result<(), StoreError> {
        let mut last: BTreeMap<Key, Option<&Vec<u8>>> = BTreeMap::new();
        for write in whole {
            last.insert((Arc::clone(&write.namespace), Arc::clone(&write.key)), write.value.as_ref());
        }
        for write in values.written.iter().filter(|write| write.item.is_none_or(&kept)) {
            last.insert((Arc::clone(&write.namespace), Arc::clone(&write.key)), write.value.as_ref());
        }
        if last.is_empty() {
            return Ok(());
        }
        let mut changes: BTreeMap<Arc<str>, (i64, i64)> = BTreeMap::new();
        let (mut set, mut removed) = (Vec::new(), Vec::new());
        for (key, value) in last {
            let before = self.cost(&key);
            let after = value.map_or(0, |value| kv_cost(&key.0, &key.1, value.len()));
            let (bytes, keys) = changes.entry(Arc::clone(&key.0)).or_default();
            *bytes += n(after) - n(before);
            *keys += i64::from(after > 0) - i64::from(before > 0);
            match value {
                Some(value) => set.push((key, value)),
                None => removed.push(key),
            }
        }
        sqlx::query(
            "INSERT INTO plugin_values (namespace, key, version, value) \
             SELECT w.namespace, w.key, nextval('value_versions'), w.value \
             FROM unnest($1::text[], $2::text[], $3::bytea[]) AS w(namespace, key, value) \
             ON CONFLICT (namespace, key) DO UPDATE SET version = excluded.version, value = excluded.value",
        )
        .bind(set.iter().map(|(key, _)| &*key.0).collect::<Vec<_>>())
        .bind(set.iter().map(|(key, _)| &*key.1).collect::<Vec<_>>())
        .bind(set.iter().map(|(_, value)| value.as_slice()).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        sqlx::query(
            "DELETE FROM plugin_values v USING unnest($1::text[], $2::text[]) AS w(namespace, key) \
             WHERE v.namespace = w.namespace AND v.key = w.key",
        )
        .bind(removed.iter().map(|key| &*key.0).collect::<Vec<_>>())
        .bind(removed.iter().map(|key| &*key.1).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        sqlx::query(
            "UPDATE value_spaces s SET bytes = s.bytes + w.bytes, keys = s.keys + w.keys \
             FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS w(namespace, bytes, keys) WHERE s.namespace = w.namespace",
        )
        .bind(changes.keys().map(|namespace| &**namespace).collect::<Vec<_>>())
        .bind(changes.values().map(|(bytes, _)| *bytes).collect::<Vec<_>>())
        .bind(changes.values().map(|(_, keys)| *keys).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        Ok(())
    }
}

impl Shared {
    /// See [`crate::store::MessageStore::kv_get`].
    pub(super) async fn kv_get(&self, namespace: &str, key: &str) -> Result<Option<KvValue>, StoreError> {
        let found: Option<(i64, Vec<u8>)> =
            sqlx::query_as("SELECT version, value FROM plugin_values WHERE namespace = $1 AND key = $2")
                .bind(namespace)
                .bind(key)
                .fetch_optional(&mut *self.look().await?)
                .await
                .map_err(failed)?;
        Ok(found.map(|(version, value)| KvValue { version: version.cast_unsigned(), value }))
    }

    /// See [`crate::store::MessageStore::kv_room`].
    pub(super) async fn kv_room(&self, namespace: &str, key: &str) -> Result<KvRoom, StoreError> {
        let row = sqlx::query(
            "SELECT coalesce((SELECT bytes FROM value_spaces WHERE namespace = $1), 0), \
             coalesce((SELECT keys FROM value_spaces WHERE namespace = $1), 0), \
             (SELECT octet_length(value) FROM plugin_values WHERE namespace = $1 AND key = $2)",
        )
        .bind(namespace)
        .bind(key)
        .fetch_one(&mut *self.look().await?)
        .await
        .map_err(failed)?;
        let (bytes, keys): (i64, i64) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        let len: Option<i32> = row.try_get(2).map_err(failed)?;
        Ok(KvRoom {
            bytes: NAMESPACE_BYTES_MAX.saturating_sub(bytes.cast_unsigned()),
            keys: NAMESPACE_KEYS_MAX.saturating_sub(keys.cast_unsigned()),
            taken: len.map_or(0, |len| kv_cost(namespace, key, usize::try_from(len).unwrap_or(0))),
        })
    }

    /// See [`crate::store::MessageStore::kv_heads`].
    pub(super) async fn kv_heads(
        &self,
        after: Option<(Arc<str>, Arc<str>)>,
        limit: usize,
        head: usize,
    ) -> Result<Vec<KvHead>, StoreError> {
        let (namespace, key) = after.as_ref().map_or(("", ""), |(namespace, key)| (&**namespace, &**key));
        let found: Vec<(String, String, i64, Vec<u8>)> = sqlx::query_as(
            "SELECT namespace, key, version, substring(value FROM 1 FOR $4) FROM plugin_values \
             WHERE (namespace, key) > ($1, $2) ORDER BY namespace, key LIMIT $3",
        )
        .bind(namespace)
        .bind(key)
        .bind(n(limit as u64))
        .bind(i32::try_from(head).unwrap_or(i32::MAX))
        .fetch_all(&mut *self.look().await?)
        .await
        .map_err(failed)?;
        let head = |(namespace, key, version, head): (String, String, i64, Vec<u8>)| KvHead {
            namespace: namespace.into(),
            key: key.into(),
            version: version.cast_unsigned(),
            head,
        };
        Ok(found.into_iter().map(head).collect())
    }
}
