//! Plugins' values beyond what single writes do: looking them over, and their end with their topic. Invariant: `kv_bytes` is
//! what all of them cost. Never reads into a value.

use std::ops::Bound;
use std::sync::Arc;

use crate::message::TopicId;
use crate::store::{KvHead, kv_namespace};

use super::State;
use super::apply::kv_cost;

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

    /// The topic is gone, and its values with it.
    pub(super) fn forget_values(&mut self, topic: TopicId) {
        let prefix = kv_namespace(topic, "");
        let of_topic = self.kv.range((Arc::clone(&prefix), Arc::from(""))..);
        let keys: Vec<_> =
            of_topic.map(|(key, _)| key.clone()).take_while(|(space, _)| space.starts_with(&*prefix)).collect();
        for key in keys {
            if let Some(value) = self.kv.remove(&key) {
                self.kv_bytes -= kv_cost(&key.0, &key.1) + value.value.len() as u64;
            }
        }
    }
}
