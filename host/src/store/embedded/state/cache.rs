//! Blocks read back from segments, for consumers that lag behind what memory holds. Invariant: its bytes are bounded; what
//! it forgets can be read again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::message::TopicId;
use crate::store::embedded::ops::{Entry, LaneId};
use crate::store::embedded::segment::Block;

/// See the module.
#[derive(Debug)]
pub struct BlockCache {
    blocks: BTreeMap<(LaneId, u64), (Arc<Block>, u64)>,
    /// Oldest first. First in, first out: readers move forward, so an old block has been read.
    order: VecDeque<(LaneId, u64)>,
    bytes: u64,
    bytes_max: u64,
}

impl BlockCache {
    /// A cache of so many bytes.
    #[must_use]
    pub fn new(bytes_max: u64) -> BlockCache {
        BlockCache { blocks: BTreeMap::new(), order: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// A message, if its block is here.
    #[must_use]
    pub fn entry(&self, lane: LaneId, sequence: u64) -> Option<&Entry> {
        let (key, (block, _)) = self.blocks.range(..=(lane, sequence)).next_back()?;
        if key.0 == lane { block.get(sequence) } else { None }
    }

    /// Adds a block.
    pub fn insert(&mut self, lane: LaneId, block: Arc<Block>) {
        let key = (lane, block.first);
        let bytes = block.entries.iter().map(Entry::memory_bytes).sum();
        if let Some((_, old)) = self.blocks.insert(key, (block, bytes)) {
            self.bytes -= old;
        } else {
            self.order.push_back(key);
        }
        self.bytes += bytes;
        // The newest stays, whatever its size: someone is about to read it.
        while self.bytes > self.bytes_max && self.order.len() > 1 {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some((_, bytes)) = self.blocks.remove(&oldest) {
                self.bytes -= bytes;
            }
        }
    }

    /// Forgets the block that holds a message: it was erased.
    pub fn forget(&mut self, lane: LaneId, sequence: u64) {
        let Some((&key, (block, _))) = self.blocks.range(..=(lane, sequence)).next_back() else { return };
        if key.0 == lane && block.get(sequence).is_some() {
            self.remove(key);
        }
    }

    /// Forgets all blocks of a topic.
    pub fn forget_topic(&mut self, topic: TopicId) {
        let keys: Vec<_> = self.blocks.keys().filter(|key| key.0.topic == topic).copied().collect();
        keys.into_iter().for_each(|key| self.remove(key));
    }

    fn remove(&mut self, key: (LaneId, u64)) {
        if let Some((_, bytes)) = self.blocks.remove(&key) {
            self.bytes -= bytes;
            self.order.retain(|known| *known != key);
        }
    }
}
