//! Values that have ended are removed, so that their room comes free. Invariant: one step looks at a bounded number of values
//! and removes only what nobody has set anew meanwhile. Never reads a value beyond its head.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::message::TopicId;
use crate::store::{AppendBatch, KvHead, KvUse, KvWrite, MessageStore, StoreError};

use super::kv::{HEAD_BYTES, has_ended};

/// Values of one look: some tens of microseconds under the store's lock.
const PAGE: usize = 1024;
/// Looks of one step.
const PAGES_MAX: usize = 16;

/// Where the looking over stands.
#[derive(Debug, Default)]
pub struct ValueSweep {
    after: Option<(Arc<str>, Arc<str>)>,
}

impl ValueSweep {
    /// Removes what has ended among the next values; after the last one it begins again. How many were removed.
    ///
    /// # Errors
    /// The store's.
    pub async fn step(&mut self, store: &dyn MessageStore, now: Timestamp) -> Result<usize, StoreError> {
        let mut removed = 0;
        for _ in 0..PAGES_MAX {
            let page = store.kv_heads(self.after.take(), PAGE, HEAD_BYTES).await?;
            let last = page.last().map(|head| (Arc::clone(&head.namespace), Arc::clone(&head.key)));
            let is_end = page.len() < PAGE;
            for (topic, writes) in ended(page, now) {
                removed += remove(store, topic, writes).await?;
            }
            if is_end {
                return Ok(removed);
            }
            self.after = last;
        }
        Ok(removed)
    }
}

/// Removals of what has ended, by topic.
fn ended(page: Vec<KvHead>, now: Timestamp) -> BTreeMap<TopicId, Vec<KvWrite>> {
    let mut by_topic: BTreeMap<TopicId, Vec<KvWrite>> = BTreeMap::new();
    for KvHead { namespace, key, version, head } in page {
        let topic = namespace.split_once('/').and_then(|(topic, _)| topic.parse().ok());
        if let (Some(topic), Ok(true)) = (topic, has_ended(&head, now)) {
            let write = KvWrite { namespace, key, expected_version: version, value: None };
            by_topic.entry(TopicId(topic)).or_default().push(write);
        }
    }
    by_topic
}

async fn remove(store: &dyn MessageStore, topic: TopicId, kv: Vec<KvWrite>) -> Result<usize, StoreError> {
    let (removed, items) = (kv.len(), Vec::new());
    let (values, replays) = (KvUse::default(), Vec::new());
    let batch = AppendBatch { topic, revision: 0, items, all_or_nothing: false, kv, values, replays };
    match store.append(batch).await {
        Ok(_) => Ok(removed),
        // One of them was set anew, or the topic has just gone with them: the next round finds what is left.
        Err(StoreError::KvConflict | StoreError::NoTopic) => Ok(0),
        Err(error) => Err(error),
    }
}
