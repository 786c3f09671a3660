//! Messages that are leased and not yet sent. Invariant: two messages of one partition key are never handed out at the
//! same time, and those of one key come out in the order in which they went in. Never waits and never sends.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::store::Lease;

/// A partition key, if the message has one. Messages without are independent of each other.
pub type Key = Option<Arc<str>>;

/// What waits to be sent to one endpoint. Bounded by whoever fills it.
#[derive(Debug, Default)]
pub struct Queue {
    /// What may go out next: at most one message of a key.
    ready: VecDeque<Lease>,
    /// The keys that have a message in `ready` or under way.
    keys: HashMap<Arc<str>, KeyState>,
    len: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct KeyState {
    under_way: bool,
    /// Behind the one that is ready or under way.
    parked: VecDeque<Lease>,
}

impl Queue {
    /// Messages in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Their payloads' bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The deadline that passes first, with so much time before it, or the expiry.
    #[must_use]
    pub fn stale_at(&self, margin: Duration) -> Option<Timestamp> {
        let all = self.ready.iter().chain(self.keys.values().flat_map(|state| &state.parked));
        all.map(|lease| stale_at(lease, margin)).min()
    }

    /// Whether [`Queue::pop`] has something.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Adds a message at the end.
    pub fn push(&mut self, lease: Lease) {
        self.len += 1;
        self.bytes += lease.message.payload.len();
        if let Some(key) = &lease.message.meta.key {
            if let Some(state) = self.keys.get_mut(key) {
                state.parked.push_back(lease);
                return;
            }
            self.keys.insert(Arc::clone(key), KeyState::default());
        }
        self.ready.push_back(lease);
    }

    /// The next message whose key is free; its key is under way until [`Queue::done`].
    pub fn pop(&mut self) -> Option<Lease> {
        let lease = self.ready.pop_front()?;
        if let Some(state) = lease.message.meta.key.as_ref().and_then(|key| self.keys.get_mut(key)) {
            state.under_way = true;
        }
        self.left(&lease);
        Some(lease)
    }

    /// A message that was handed out is no longer under way: the next of its key may follow. It queues behind the other
    /// keys, so a busy key does not keep them waiting.
    pub fn done(&mut self, key: &Key) {
        let Some(key) = key else { return };
        let Some(state) = self.keys.get_mut(key) else { return };
        match state.parked.pop_front() {
            Some(next) => {
                state.under_way = false;
                self.ready.push_back(next);
            }
            None => drop(self.keys.remove(key)),
        }
    }

    /// Takes out what could no longer be sent so long before its deadline, or has expired, with everything else of the same
    /// keys: a message must not overtake an earlier one of its key that goes back.
    pub fn take_stale(&mut self, now: Timestamp, margin: Duration) -> Vec<Lease> {
        let all = || self.ready.iter().chain(self.keys.values().flat_map(|state| &state.parked));
        let is_stale = |lease: &Lease| stale_at(lease, margin) <= now;
        let stale = |lease: &&Lease| is_stale(lease);
        if !all().any(|lease| stale(&lease)) {
            return Vec::new();
        }
        let keys: HashSet<Arc<str>> = all().filter(stale).filter_map(|lease| lease.message.meta.key.clone()).collect();
        self.take(|lease| is_stale(lease) || lease.message.meta.key.as_ref().is_some_and(|key| keys.contains(key)))
    }

    /// Takes out all messages of this key.
    pub fn take_key(&mut self, key: &Key) -> Vec<Lease> {
        if key.is_none() { Vec::new() } else { self.take(|lease| lease.message.meta.key == *key) }
    }

    /// Takes out everything.
    pub fn take_all(&mut self) -> Vec<Lease> {
        self.take(|_| true)
    }

    /// `wanted` takes all messages of a key or none of them.
    fn take(&mut self, wanted: impl Fn(&Lease) -> bool) -> Vec<Lease> {
        let mut taken = Vec::new();
        for lease in std::mem::take(&mut self.ready) {
            if !wanted(&lease) {
                self.ready.push_back(lease);
                continue;
            }
            // With the one that was ready goes the key, and what is parked behind it.
            let state = lease.message.meta.key.as_ref().and_then(|key| self.keys.remove(key));
            taken.push(lease);
            taken.extend(state.into_iter().flat_map(|state| state.parked));
        }
        for state in self.keys.values_mut() {
            if state.parked.front().is_some_and(&wanted) {
                taken.extend(state.parked.drain(..));
            }
        }
        for lease in &taken {
            self.left(lease);
        }
        taken
    }

    fn left(&mut self, lease: &Lease) {
        self.len -= 1;
        self.bytes -= lease.message.payload.len();
    }
}

/// From when on a lease is not to be sent: so long before its deadline (at that very time it still may), or its message's
/// expiry.
#[must_use]
pub fn stale_at(lease: &Lease, margin: Duration) -> Timestamp {
    let too_late = lease.deadline.minus(margin).plus(Duration::from_millis(1));
    lease.message.meta.expires_at.map_or(too_late, |expires| expires.min(too_late))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::lease;
    use super::*;

    fn sequence(lease: &Lease) -> u64 {
        lease.position.offset.sequence()
    }

    #[test]
    fn messages_of_one_key_go_one_after_another_while_others_proceed() {
        let mut queue = Queue::default();
        for (at, key) in [(0, Some("a")), (1, Some("a")), (2, Some("b")), (3, None), (4, None), (5, Some("a"))] {
            queue.push(lease(at, key));
        }
        let out: Vec<u64> = std::iter::from_fn(|| queue.pop()).map(|lease| sequence(&lease)).collect();
        assert_eq!(out, [0, 2, 3, 4]);
        assert_eq!(queue.len(), 2);
        queue.done(&Some("a".into()));
        assert_eq!(queue.pop().map(|lease| sequence(&lease)), Some(1));
        assert!(queue.pop().is_none());
        queue.push(lease(6, Some("a")));
        queue.done(&Some("a".into()));
        assert_eq!(queue.pop().map(|lease| sequence(&lease)), Some(5));
    }

    #[test]
    fn what_goes_stale_takes_the_rest_of_its_key_with_it() {
        let mut queue = Queue::default();
        for (at, key, deadline) in
            [(0, Some("a"), 10), (1, Some("a"), 99), (2, Some("b"), 99), (3, None, 10), (4, None, 99)]
        {
            queue.push(Lease { deadline: Timestamp(deadline), ..lease(at, key) });
        }
        let mut stale: Vec<u64> =
            queue.take_stale(Timestamp(40), Duration::from_millis(10)).iter().map(sequence).collect();
        stale.sort_unstable();
        assert_eq!(stale, [0, 1, 3]);
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.stale_at(Duration::from_millis(10)), Some(Timestamp(90)));
        assert!(queue.take_stale(Timestamp(89), Duration::from_millis(10)).is_empty());
        assert_eq!(queue.take_all().len(), 2);
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }

    proptest! {
        #[test]
        fn order_per_key_holds_whatever_happens(steps in prop::collection::vec((0..4_u8, 0..4_usize), 1..200)) {
            let keys = [Some("a"), Some("b"), Some("c"), None];
            let mut queue = Queue::default();
            let mut under_way: Vec<Lease> = Vec::new();
            let mut last: HashMap<String, u64> = HashMap::new();
            let (mut pushed, mut seen) = (0_u64, 0_u64);
            let finish = |queue: &mut Queue, under_way: &mut Vec<Lease>, at: usize| {
                let lease = under_way.remove(at % under_way.len());
                queue.done(&lease.message.meta.key);
            };
            let mut begin = |queue: &mut Queue, under_way: &mut Vec<Lease>| {
                let Some(lease) = queue.pop() else { return false };
                if let Some(key) = &lease.message.meta.key {
                    assert!(under_way.iter().all(|other| other.message.meta.key.as_ref() != Some(key)), "two at once");
                    let before = last.insert(key.to_string(), sequence(&lease));
                    assert!(before.is_none_or(|before| before < sequence(&lease)), "out of order");
                }
                under_way.push(lease);
                seen += 1;
                true
            };
            for (step, at) in steps {
                match step {
                    0 | 1 => {
                        queue.push(lease(pushed, keys[at]));
                        pushed += 1;
                    }
                    2 => {
                        begin(&mut queue, &mut under_way);
                    }
                    _ if under_way.is_empty() => {}
                    _ => finish(&mut queue, &mut under_way, at),
                }
            }
            while begin(&mut queue, &mut under_way) || !under_way.is_empty() {
                if !under_way.is_empty() {
                    finish(&mut queue, &mut under_way, 0);
                }
            }
            prop_assert_eq!((seen, queue.len(), queue.bytes()), (pushed, 0, 0));
        }
    }
}
