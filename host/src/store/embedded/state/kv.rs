//! Plugins' values beyond what single writes do: what they take, looking them over, and their end with their topic. Invariant:
//! `kv_bytes` is what all of them cost, `kv_spaces` what those of each namespace do. Never reads into a value.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::message::TopicId;
use crate::store::{KvHead, KvRoom, KvUse, KvValue, KvWrite, StoreError, kv_cost, kv_namespace};

use super::State;
use super::append::Plan;

/// What a namespace takes, or grows by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KvSpace {
    /// Bytes, by [`kv_cost`].
    pub bytes: u64,
    /// Keys.
    pub keys: u64,
}

impl State {
    /// The first `head` bytes of up to `limit` values behind `after`.
    #[must_use]
    pub fn kv_heads(&self, after: Option<(Arc<str>, Arc<str>)>, limit: usize, head: usize) -> Vec<KvHead> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let values = self.kv.range((from, Bound::Unbounded)).take(limit);
        let shortened = values.map(|((namespace, key), value)| KvHead {
            namespace: Arc::clone(namespace),
            key: Arc::clone(key),
            version: value.version,
            head: value.value[..value.value.len().min(head)].to_vec(),
        });
        shortened.collect()
    }

    /// What may be added to a namespace, and what `key` takes.
    #[must_use]
    pub fn kv_room(&self, namespace: &str, key: &str) -> KvRoom {
        let used = self.kv_spaces.get(namespace).copied().unwrap_or_default();
        let (bytes_max, keys_max) = (self.limits.kv_namespace_bytes_max, self.limits.kv_namespace_keys_max);
        let taken = self.kv.get(&(namespace.into(), key.into()));
        KvRoom {
            bytes: bytes_max.saturating_sub(used.bytes),
            keys: keys_max.saturating_sub(used.keys),
            taken: taken.map_or(0, |value| kv_cost(namespace, key, value.value.len())),
        }
    }

    /// Refuses writes that there is no room for, each key counted with its largest.
    pub(super) fn check_kv_room(&self, writes: &[KvWrite], values: &KvUse, plan: &Plan) -> Result<(), StoreError> {
        let writes = writes.iter().map(|write| (&write.namespace, &write.key, &write.value));
        let of_items = values.written.iter().map(|write| (&write.namespace, &write.key, &write.value));
        let mut bytes = 0;
        let mut largest: HashMap<(&Arc<str>, &Arc<str>), u64> = HashMap::new();
        for (space, key, value) in writes.chain(of_items) {
            if let Some(value) = value {
                let cost = kv_cost(space, key, value.len());
                bytes += cost;
                let known = largest.entry((space, key)).or_default();
                *known = cost.max(*known);
            }
        }
        if bytes > 0 && self.kv_bytes + plan.kv_bytes + bytes > self.limits.kv_bytes_max {
            return Err(StoreError::Unavailable("the plugins' key-value space is full".to_owned()));
        }
        // What a removal gives back counts from the next batch on: it may be of a message that is not stored.
        let mut grown: HashMap<&Arc<str>, KvSpace> = HashMap::new();
        for ((space, key), cost) in largest {
            self.grow(grown.entry(space).or_default(), (space, key), cost);
        }
        for (space, grown) in grown.into_iter().filter(|(_, grown)| *grown != KvSpace::default()) {
            let planned = plan.kv_grown.get(space).copied().unwrap_or_default();
            let room = self.kv_room(space, "");
            if planned.bytes + grown.bytes > room.bytes || planned.keys + grown.keys > room.keys {
                return Err(StoreError::KvConflict);
            }
        }
        Ok(())
    }

    /// Adds what a value that costs so much takes beyond the one that is stored.
    pub(super) fn grow(&self, grown: &mut KvSpace, (space, key): (&Arc<str>, &Arc<str>), cost: u64) {
        let stored = self.kv.get(&(Arc::clone(space), Arc::clone(key)));
        grown.keys += u64::from(stored.is_none());
        grown.bytes += cost.saturating_sub(stored.map_or(0, |value| kv_cost(space, key, value.value.len())));
    }

    pub(super) fn apply_kv(&mut self, key: (Arc<str>, Arc<str>), version: u64, value: Option<Vec<u8>>) {
        self.next_kv_version = self.next_kv_version.max(version + 1);
        self.remove_value(&key);
        if let Some(value) = value {
            self.insert_value(key, KvValue { version, value });
        }
    }

    /// Puts in a value that is not there.
    pub(super) fn insert_value(&mut self, key: (Arc<str>, Arc<str>), value: KvValue) {
        let cost = kv_cost(&key.0, &key.1, value.value.len());
        self.kv_bytes += cost;
        let space = self.kv_spaces.entry(Arc::clone(&key.0)).or_default();
        space.bytes += cost;
        space.keys += 1;
        self.kv.insert(key, value);
    }

    fn remove_value(&mut self, key: &(Arc<str>, Arc<str>)) {
        let Some(old) = self.kv.remove(key) else { return };
        let cost = kv_cost(&key.0, &key.1, old.value.len());
        self.kv_bytes -= cost;
        if let Some(space) = self.kv_spaces.get_mut(&key.0) {
            space.bytes -= cost;
            space.keys -= 1;
            if space.keys == 0 {
                self.kv_spaces.remove(&key.0);
            }
        }
    }

    /// The topic is gone, and its values with it.
    pub(super) fn forget_values(&mut self, topic: TopicId) {
        let prefix = kv_namespace(topic, "");
        let of_topic = self.kv.range((Arc::clone(&prefix), Arc::from(""))..);
        let keys: Vec<_> =
            of_topic.map(|(key, _)| key.clone()).take_while(|(space, _)| space.starts_with(&*prefix)).collect();
        for key in keys {
            self.remove_value(&key);
        }
    }
}
