//! Outcomes under idempotency keys of one topic. Invariant: at most `dedup_keys_max` keys, each until its window has
//! passed. Keys are kept as the first 16 bytes of their SHA-256: of fixed size, and no one's text.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::clock::Timestamp;
use crate::store::DedupOutcome;

/// A key's hash.
pub type KeyHash = [u8; 16];

/// Outcomes in one chunk: a checkpoint shares whole chunks with the state instead of copying them under its lock.
const CHUNK: usize = 1024;

/// One key and its outcome.
pub type Record = (KeyHash, DedupOutcome);

/// See the module.
#[derive(Debug, Default)]
pub struct Dedup {
    chunks: VecDeque<Arc<Vec<Record>>>,
    /// The number of the first record of the first chunk.
    first: u64,
    /// How many records of the first chunk have aged out.
    aged: usize,
    index: HashMap<KeyHash, u64>,
}

/// The hash of a key.
#[must_use]
pub fn key_hash(key: &str) -> KeyHash {
    let digest = Sha256::digest(key.as_bytes());
    digest[..16].try_into().expect("a SHA-256 has 32 bytes")
}

impl Dedup {
    /// How many keys are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// The outcome under a key, if its window has not passed.
    #[must_use]
    pub fn get(&self, key: &KeyHash, window: Duration, now: Timestamp) -> Option<&DedupOutcome> {
        let outcome = self.record(*self.index.get(key)?)?;
        (outcome.1.at.plus(window) > now).then_some(&outcome.1)
    }

    /// Remembers an outcome. Times rise from call to call.
    pub fn insert(&mut self, key: KeyHash, outcome: DedupOutcome) {
        if self.chunks.back().is_none_or(|chunk| chunk.len() >= CHUNK) {
            self.chunks.push_back(Arc::new(Vec::with_capacity(16)));
        }
        let number = self.first + ((self.chunks.len() - 1) * CHUNK) as u64;
        if let Some(chunk) = self.chunks.back_mut() {
            let chunk = Arc::make_mut(chunk);
            self.index.insert(key, number + chunk.len() as u64);
            chunk.push((key, outcome));
        }
    }

    /// Forgets what is past its window.
    pub fn age(&mut self, window: Duration, now: Timestamp) {
        while let Some(chunk) = self.chunks.front() {
            let Some((key, outcome)) = chunk.get(self.aged) else {
                if chunk.len() < CHUNK {
                    return;
                }
                self.chunks.pop_front();
                self.first += CHUNK as u64;
                self.aged = 0;
                continue;
            };
            if outcome.at.plus(window) > now {
                return;
            }
            // The key may have been used again since; then the index names the later record.
            if self.index.get(key) == Some(&(self.first + self.aged as u64)) {
                self.index.remove(key);
            }
            self.aged += 1;
        }
    }

    /// All records, oldest first, in chunks that are cheap to hold on to.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Arc<Vec<Record>>> {
        self.chunks.iter().cloned().collect()
    }

    /// Whether there is an outcome under a key, in its window or not.
    #[must_use]
    pub fn has(&self, key: &KeyHash) -> bool {
        self.index.contains_key(key)
    }

    /// All keys with their outcomes, oldest first, in their windows or not, but for the first `skipped`.
    pub fn held(&self, skipped: usize) -> impl Iterator<Item = &Record> {
        let numbered = (self.first..).zip(self.chunks.iter().flat_map(|chunk| chunk.iter()));
        numbered
            .filter(|(number, (key, _))| self.index.get(key) == Some(number))
            .map(|(_, record)| record)
            .skip(skipped)
    }

    fn record(&self, number: u64) -> Option<&Record> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.chunks.get(at / CHUNK)?.get(at % CHUNK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{MessageId, TopicId};
    use crate::store::Fate;

    fn outcome(at: i64) -> DedupOutcome {
        let id = MessageId::new(Timestamp(at), TopicId(1), 0, 0);
        DedupOutcome { request_hash: [0; 16], id, fate: Fate::Scheduled, at: Timestamp(at), revision: 1 }
    }

    #[test]
    fn keys_age_out_in_order_and_may_come_again() {
        let (mut dedup, window) = (Dedup::default(), Duration::from_millis(100));
        for n in 0..3000_i64 {
            dedup.insert(key_hash(&n.to_string()), outcome(n));
        }
        assert_eq!(dedup.len(), 3000);
        assert!(dedup.get(&key_hash("0"), window, Timestamp(99)).is_some());
        assert!(dedup.get(&key_hash("0"), window, Timestamp(100)).is_none());
        dedup.insert(key_hash("0"), outcome(3000));
        dedup.age(window, Timestamp(3000));
        assert_eq!(dedup.len(), 100);
        assert!(dedup.get(&key_hash("0"), window, Timestamp(3000)).is_some());
        assert!(dedup.get(&key_hash("2901"), window, Timestamp(3000)).is_some());
        dedup.age(window, Timestamp(9000));
        assert_eq!(dedup.len(), 0);
    }
}
