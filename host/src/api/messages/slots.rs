//! Which leases were handed to event streams and are still held. Invariant: a stream holds at most its `maxInFlight`; a
//! slot is free again when its lease is ended through this broker, or at its deadline; in a fleet, when the store says that it
//! was ended through another one. Bounded by the number of streams and
//! their own bounds, as each entry ends with its lease.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::clock::Timestamp;
use crate::message::{GroupId, MessageId, Position, TopicId};
use crate::settle::Held;
use crate::store::{Lease, Receipt, Settled};

/// All streams' slots.
#[derive(Debug)]
pub struct Slots {
    held: Mutex<Entries>,
    /// Streams that may still begin.
    streams: Arc<Semaphore>,
    /// How many entries there are, so that settling costs nothing while nobody streams.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Entries {
    by_position: HashMap<(Position, GroupId), Entry>,
    by_message: HashMap<(MessageId, GroupId), Position>,
}

#[derive(Debug)]
struct Entry {
    stream: Arc<StreamSlots>,
    message: MessageId,
    receipt: Receipt,
    deadline: Timestamp,
}

/// One stream's slots.
#[derive(Debug)]
pub(super) struct StreamSlots {
    /// Tells it from the others of this process.
    pub(super) number: u64,
    /// The token's subject.
    holder: Arc<str>,
    held: AtomicUsize,
    /// The connection is gone; what it held stays held until its deadline.
    ended: std::sync::atomic::AtomicBool,
    freed: Notify,
}

impl StreamSlots {
    pub(super) fn new(holder: Arc<str>) -> Arc<StreamSlots> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(StreamSlots {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            holder,
            held: AtomicUsize::new(0),
            ended: std::sync::atomic::AtomicBool::new(false),
            freed: Notify::new(),
        })
    }

    /// Leases that are held now.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }

    /// Returns when a slot has been freed since the last call.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// The connection is gone.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

impl Slots {
    /// For so many streams at once.
    #[must_use]
    pub fn new(streams_max: usize) -> Slots {
        let streams = Arc::new(Semaphore::new(streams_max.min(Semaphore::MAX_PERMITS)));
        Slots { held: Mutex::default(), streams, count: AtomicUsize::new(0) }
    }

    /// A stream's place, until it is dropped; none if there are too many.
    pub(in crate::api) fn begin(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.streams).try_acquire_owned().ok()
    }

    /// Takes a slot for a lease that is about to be sent.
    pub(super) fn take(&self, stream: &Arc<StreamSlots>, lease: &Lease) {
        let group = lease.receipt.group;
        let entry = Entry {
            stream: Arc::clone(stream),
            message: lease.message.id,
            receipt: lease.receipt,
            deadline: lease.deadline,
        };
        stream.held.fetch_add(1, Ordering::AcqRel);
        let mut held = self.held.lock();
        held.by_message.insert((lease.message.id, group), lease.position);
        if let Some(before) = held.by_position.insert((lease.position, group), entry) {
            before.free();
        }
        self.count.store(held.by_position.len(), Ordering::Release);
    }

    /// A settlement went through: frees the lease's slot, or keeps it longer.
    pub(super) fn settled(&self, held: &Held, settled: Settled) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut entries = self.held.lock();
        let key = match held {
            Held::Receipt { receipt, .. } => (receipt.position, receipt.group),
            Held::By { group, message, .. } => match entries.by_message.get(&(*message, *group)) {
                Some(position) => (*position, *group),
                None => return,
            },
        };
        if let Settled::Extended { until } = settled {
            if let Some(entry) = entries.by_position.get_mut(&key) {
                entry.deadline = until;
            }
            return;
        }
        entries.remove(key);
        self.count.store(entries.by_position.len(), Ordering::Release);
    }

    /// A message was erased: its leases have ended.
    pub(super) fn erased(&self, message: MessageId) {
        self.end(|_, entry| entry.message == message);
    }

    fn end(&self, ended: impl Fn(&(Position, GroupId), &Entry) -> bool) {
        let mut entries = self.held.lock();
        let found: Vec<_> =
            entries.by_position.iter().filter(|(key, entry)| ended(key, entry)).map(|(key, _)| *key).collect();
        found.into_iter().for_each(|key| entries.remove(key));
        self.count.store(entries.by_position.len(), Ordering::Release);
    }

    /// Frees the slots of leases that have ended by themselves; returns when the next one of `stream` will.
    pub(super) fn expire(&self, stream: &Arc<StreamSlots>, now: Timestamp) -> Option<Timestamp> {
        self.end(|_, entry| entry.deadline <= now);
        let entries = self.held.lock();
        entries
            .by_position
            .values()
            .filter(|entry| Arc::ptr_eq(&entry.stream, stream))
            .map(|entry| entry.deadline)
            .min()
    }

    /// The leases that `holder`'s broken stream of this number was granted after `last`, the receipt of its last event that
    /// arrived: they were never received, so they need not stay held. What other streams were granted may have arrived there.
    pub(super) fn unreceived(&self, holder: &str, stream: u64, last: &Receipt) -> Vec<Receipt> {
        let entries = self.held.lock();
        let lost = |entry: &&Entry| {
            entry.stream.number == stream
                && entry.stream.ended.load(Ordering::Acquire)
                && *entry.stream.holder == *holder
                && entry.receipt.epoch == last.epoch
                && entry.receipt.grant > last.grant
        };
        entries.by_position.values().filter(lost).map(|entry| entry.receipt).collect()
    }

    /// These leases have ended: given back, or by a seek. Those that were granted since are others.
    pub(in crate::api) fn ended(&self, receipts: &[Receipt]) {
        self.end(|_, entry| receipts.contains(&entry.receipt));
    }

    /// The leases that a stream holds, as far as this broker knows.
    pub(super) fn of_stream(&self, stream: &Arc<StreamSlots>) -> Vec<Receipt> {
        let entries = self.held.lock();
        let of_stream = |entry: &&Entry| Arc::ptr_eq(&entry.stream, stream);
        entries.by_position.values().filter(of_stream).map(|entry| entry.receipt).collect()
    }

    /// The leases of a group whose cursor is about to be moved.
    pub(in crate::api) fn of_group(&self, topic: TopicId, group: GroupId) -> Vec<Receipt> {
        let entries = self.held.lock();
        let of_group = |(position, of): &(Position, GroupId)| (position.topic, *of) == (topic, group);
        entries.by_position.iter().filter(|(key, _)| of_group(key)).map(|(_, entry)| entry.receipt).collect()
    }
}

impl Entries {
    fn remove(&mut self, key: (Position, GroupId)) {
        if let Some(entry) = self.by_position.remove(&key) {
            self.by_message.remove(&(entry.message, key.1));
            entry.free();
        }
    }
}

impl Entry {
    fn free(&self) {
        self.stream.held.fetch_sub(1, Ordering::AcqRel);
        self.stream.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::{Message, MessageMeta, Offset};

    fn lease(grant: u64) -> Lease {
        let position = Position { topic: TopicId(1), partition: 0, offset: Offset(grant) };
        let meta = MessageMeta {
            content_type: "application/json".into(),
            schema_version: None,
            headers: Vec::new(),
            priority: 0,
            key: None,
            correlation_id: None,
            reply_to: None,
            published_at: Timestamp(0),
            expires_at: None,
            trace: None,
            revision: 0,
            dead_letter: None,
            replay_of: None,
        };
        let id = MessageId::new(Timestamp(0), TopicId(1), 0, grant);
        Lease {
            position,
            message: Message { id, payload: bytes::Bytes::new(), meta },
            attempt: 1,
            deadline: Timestamp(1000),
            receipt: Receipt { position, group: GroupId(3), epoch: 1, grant, attempt: 1 },
        }
    }

    #[test]
    fn a_settlement_frees_its_slot_however_it_names_the_lease() {
        let (slots, stream) = (Slots::new(1), StreamSlots::new("ann".into()));
        let (first, second) = (lease(1), lease(2));
        slots.take(&stream, &first);
        slots.take(&stream, &second);
        assert_eq!(stream.held(), 2);
        let receipt = Held::Receipt { receipt: first.receipt, message: None };
        slots.settled(&receipt, Settled::Extended { until: Timestamp(5000) });
        slots.settled(&Held::Receipt { receipt: second.receipt, message: None }, Settled::Acked);
        assert_eq!(stream.held(), 1);
        assert_eq!(slots.expire(&stream, Timestamp(1000)), Some(Timestamp(5000)));
        slots.settled(&receipt, Settled::Acked);
        slots.settled(&receipt, Settled::Acked);
        assert_eq!((stream.held(), slots.count.load(Ordering::Acquire)), (0, 0));
        assert!(slots.held.lock().by_message.is_empty());
    }

    #[test]
    fn a_lease_that_ends_by_itself_frees_its_slot() {
        let (slots, stream) = (Slots::new(1), StreamSlots::new("ann".into()));
        slots.take(&stream, &lease(1));
        assert_eq!(slots.expire(&stream, Timestamp(999)), Some(Timestamp(1000)));
        assert_eq!(slots.expire(&stream, Timestamp(0).plus(Duration::from_secs(1))), None);
        assert_eq!(stream.held(), 0);
    }

    #[test]
    fn a_lease_that_ends_by_a_seek_or_with_its_message_frees_its_slot() {
        let (slots, stream) = (Slots::new(1), StreamSlots::new("ann".into()));
        (1..=3).for_each(|grant| slots.take(&stream, &lease(grant)));
        slots.erased(lease(2).message.id);
        assert_eq!(stream.held(), 2);
        for (topic, group) in [(TopicId(1), GroupId(4)), (TopicId(2), GroupId(3))] {
            assert!(slots.of_group(topic, group).is_empty(), "another group's cursor, another topic's");
        }
        let before = slots.of_group(TopicId(1), GroupId(3));
        // Granted while the cursor was moved: it is not of those.
        slots.take(&stream, &lease(4));
        slots.ended(&before);
        assert_eq!((stream.held(), slots.count.load(Ordering::Acquire)), (1, 1));
    }

    #[test]
    fn only_what_the_holders_broken_stream_was_granted_later_is_lost() {
        let slots = Slots::new(2);
        let [stream, other] = [(); 2].map(|()| StreamSlots::new("ann".into()));
        (1..=3).for_each(|grant| slots.take(&stream, &lease(grant)));
        (4..=5).for_each(|grant| slots.take(&other, &lease(grant)));
        let last = lease(1).receipt;
        let lost = |holder: &str| {
            let mut grants: Vec<u64> =
                slots.unreceived(holder, stream.number, &last).iter().map(|receipt| receipt.grant).collect();
            grants.sort_unstable();
            grants
        };
        assert!(lost("ann").is_empty(), "it is not broken");
        stream.end();
        other.end();
        assert!(lost("bob").is_empty());
        assert_eq!(lost("ann"), [2, 3], "what the other stream was granted may have arrived there");
        slots.ended(&slots.unreceived("ann", stream.number, &last));
        assert_eq!((stream.held(), other.held()), (1, 2));
    }
}
