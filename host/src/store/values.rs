//! Words of the store about plugins' values, where they go with messages. Invariant: what was read is named with the version that
//! was read, what is written with the item that it is written for. Never knows how a value is laid out.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::message::TopicId;

/// The turn of some values, until it is dropped.
pub type ValueTurn = Box<dyn Any + Send>;

/// What the stages of a batch did with plugins' values. Each key counts with the version that was read first.
#[derive(Debug, Clone, Default)]
pub struct KvUse {
    /// What was read: if one of them has another version by now, the whole batch fails with [`super::StoreError::KvConflict`].
    pub read: Vec<KvRead>,
    /// What is to be written, a later write of a key over an earlier one.
    pub written: Vec<ItemWrite>,
    /// Items whose writes others of the batch have read: if one of them is not stored, the others stand on what never
    /// was, and the whole batch fails with [`super::StoreError::KvConflict`].
    pub linked: Vec<usize>,
    /// Namespaces of which the caller has the turn ([`super::MessageStore::value_turn`]).
    pub turn: Vec<Arc<str>>,
}

impl KvUse {
    /// The namespaces of what was read and is to be written.
    #[must_use]
    pub fn namespaces(&self) -> BTreeSet<Arc<str>> {
        let read = self.read.iter().map(|read| Arc::clone(&read.namespace));
        read.chain(self.written.iter().map(|write| Arc::clone(&write.namespace))).collect()
    }
}

/// One read of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvRead {
    /// Separates plugins and topics.
    pub namespace: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    /// The version that was read; 0: it was not there.
    pub version: u64,
}

/// One write of a plugin for the sake of an item: carried out if that one is stored (or its outcome kept), else thrown away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemWrite {
    /// The item's place in the batch; none for a message of which nothing is kept, and whose writes are.
    pub item: Option<usize>,
    /// Separates plugins and topics.
    pub namespace: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    /// `None` removes it.
    pub value: Option<Vec<u8>>,
}

/// The start of a plugin's stored value, for looking many over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvHead {
    /// Separates plugins and topics.
    pub namespace: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    /// As [`super::KvValue::version`].
    pub version: u64,
    /// The value's first bytes.
    pub head: Vec<u8>,
}

/// What a namespace has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvRoom {
    /// Bytes, by [`kv_cost`], that may be added.
    pub bytes: u64,
    /// Keys that may be added.
    pub keys: u64,
    /// What the key that was asked for takes now; 0: it is not there.
    pub taken: u64,
}

/// What a value of so many bytes costs with its key: the map's own share is rounded up.
#[must_use]
pub fn kv_cost(namespace: &str, key: &str, value_bytes: usize) -> u64 {
    (namespace.len() + key.len() + value_bytes + 96) as u64
}

/// The namespace of a plugin's values on a topic. They go with the topic.
#[must_use]
pub fn kv_namespace(topic: TopicId, plugin: &str) -> Arc<str> {
    format!("{}/{plugin}", topic.0).into()
}
