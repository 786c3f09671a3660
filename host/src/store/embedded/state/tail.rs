//! The newest messages of a lane, in memory. Invariant: it takes what it says that it takes, but for what an allocator
//! rounds up and the room of a chunk at either end; what goes gives its memory back. Never reads a file.

use std::collections::VecDeque;

use crate::store::embedded::ops::Entry;

/// Messages that memory is taken and given back for at once: some 10 KiB. One piece for all of a lane would be copied
/// under the state's lock whenever it grows, and be twice as large as what is in it.
const CHUNK: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Tail {
    /// The first may have lost messages, the last may take more; all between are full.
    chunks: VecDeque<VecDeque<Entry>>,
    len: usize,
    bytes: u64,
}

impl Tail {
    /// How many messages it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory that they take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds the newest.
    pub fn push(&mut self, entry: Entry) {
        self.bytes += entry.memory_bytes();
        self.len += 1;
        match self.chunks.back_mut().filter(|chunk| chunk.len() < CHUNK) {
            Some(chunk) => chunk.push_back(entry),
            None => self.chunks.push_back(VecDeque::from([entry])),
        }
    }

    /// Takes out the oldest.
    pub fn pop(&mut self) -> Option<Entry> {
        let chunk = self.chunks.front_mut()?;
        let entry = chunk.pop_front()?;
        if chunk.is_empty() {
            self.chunks.pop_front();
        }
        self.bytes -= entry.memory_bytes();
        self.len -= 1;
        Some(entry)
    }

    /// One by its place, counted from the oldest.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<&Entry> {
        let first = self.chunks.front()?;
        match at.checked_sub(first.len()) {
            None => first.get(at),
            Some(at) => self.chunks.get(1 + at / CHUNK)?.get(at % CHUNK),
        }
    }

    /// All, oldest first, with their places.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (usize, &Entry)> {
        let first = self.chunks.front().map_or(0, VecDeque::len);
        self.chunks.iter().enumerate().flat_map(move |(nth, chunk)| {
            let before = if nth == 0 { 0 } else { first + (nth - 1) * CHUNK };
            chunk.iter().enumerate().map(move |(at, entry)| (before + at, entry))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Timestamp;
    use crate::store::embedded::ops::Body;
    use crate::store::embedded::tests::message;

    fn entry(stamp: u64) -> Entry {
        let payload = "x".repeat(stamp as usize % 50);
        Entry { at: Timestamp(0), stamp, body: Body::new(&message(stamp, &payload), None, true) }
    }

    proptest! {
        #[test]
        fn it_is_a_queue_that_knows_what_it_takes(steps in prop::collection::vec((any::<bool>(), 1..200_usize), 1..20)) {
            let (mut tail, mut model, mut next) = (Tail::default(), VecDeque::new(), 0);
            for (adds, count) in steps {
                for _ in 0..count {
                    if adds {
                        tail.push(entry(next));
                        model.push_back(next);
                        next += 1;
                    } else {
                        prop_assert_eq!(tail.pop().map(|entry| entry.stamp), model.pop_front());
                    }
                }
                let listed: Vec<(usize, u64)> = tail.iter().map(|(at, entry)| (at, entry.stamp)).collect();
                prop_assert_eq!(&listed, &model.iter().copied().enumerate().collect::<Vec<_>>());
                let mut backwards: Vec<(usize, u64)> = tail.iter().rev().map(|(at, entry)| (at, entry.stamp)).collect();
                backwards.reverse();
                prop_assert_eq!(&listed, &backwards);
                for (at, stamp) in listed {
                    prop_assert_eq!(tail.get(at).map(|entry| entry.stamp), Some(stamp));
                }
                prop_assert!(tail.get(model.len()).is_none());
                let bytes: u64 = tail.iter().map(|(_, entry)| entry.memory_bytes()).sum();
                prop_assert_eq!((tail.len(), tail.is_empty(), tail.bytes()), (model.len(), model.is_empty(), bytes));
            }
        }
    }
}
