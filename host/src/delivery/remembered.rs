//! What stages made of messages on their way out, so that a retry gets the same bytes. Invariant: bounded in bytes, and
//! only of messages that may come again; what it forgets, the stages make anew. Never stores anything.

use std::sync::Arc;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::catalog::model::SubscriptionId;
use crate::message::{GroupId, Position};
use crate::pipeline::draft::Draft;
use crate::store::{LeaseRef, Receipt, Settle, SettleRefused, Settled};

/// Changed messages that are remembered for their retries.
const BYTES_MAX: u64 = 32 << 20;

/// What it is of: a group's message.
type Place = (GroupId, Position);

/// See the module.
pub struct Remembered {
    /// With whose stages made it, and on which revision of them: the queue's group outlives its subscription.
    drafts: Cache<Place, (SubscriptionId, u64, Arc<Draft>)>,
}

impl Remembered {
    /// Nothing.
    #[must_use]
    pub fn new() -> Remembered {
        let weigh = |_: &Place, (_, _, draft): &(SubscriptionId, u64, Arc<Draft>)| weight(draft);
        // The newest is what a retry asks for next, whatever was asked for often before.
        let drafts = Cache::builder().max_capacity(BYTES_MAX).eviction_policy(EvictionPolicy::lru()).weigher(weigh);
        Remembered { drafts: drafts.build() }
    }

    /// What a revision of a subscription's stages made of a message.
    #[must_use]
    pub fn get(&self, of: &Receipt, (subscription, revision): (SubscriptionId, u64)) -> Option<Arc<Draft>> {
        let (by, on, draft) = self.drafts.get(&(of.group, of.position))?;
        (by == subscription && on == revision).then_some(draft)
    }

    /// Remembers it.
    pub fn insert(&self, of: &Receipt, (subscription, revision): (SubscriptionId, u64), draft: Arc<Draft>) {
        self.drafts.insert((of.group, of.position), (subscription, revision, draft));
    }

    /// The messages that these settle; none while nothing is remembered, as where no stage changes anything.
    #[must_use]
    pub fn places(&self, settles: &[Settle]) -> Vec<Option<Place>> {
        if self.drafts.entry_count() == 0 {
            return Vec::new();
        }
        // Without a receipt nobody says where a message is: it is forgotten when there is no room for it.
        let place = |settle: &Settle| match &settle.lease {
            LeaseRef::Receipt { receipt, .. } => Some((receipt.group, receipt.position)),
            LeaseRef::Holder { .. } => None,
        };
        settles.iter().map(place).collect()
    }

    /// Forgets those that do not come again.
    pub fn settled(&self, places: Vec<Option<Place>>, results: &[Result<Settled, SettleRefused>]) {
        for (place, result) in places.into_iter().zip(results) {
            if let (Some(place), Ok(Settled::Acked | Settled::DeadLettered)) = (place, result) {
                self.drafts.invalidate(&place);
            }
        }
    }
}

/// What a remembered message takes: its payload may be the stored one's, its headers never are.
fn weight(draft: &Draft) -> u32 {
    /// The draft itself, and the cache's own books.
    const BESIDE: usize = 768;
    /// Two texts, each in an allocation that counts its owners.
    const HEADER_BESIDE: usize = 80;
    let headers: usize = draft.headers.iter().map(|(name, value)| name.len() + value.len() + HEADER_BESIDE).sum();
    u32::try_from(draft.payload.len() + headers + BESIDE).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::message::{MessageId, Offset, TopicId};
    use crate::store::Settlement;

    fn draft(payload: usize, header: usize) -> Draft {
        Draft {
            id: MessageId::new(Timestamp(0), TopicId(1), 0, 0),
            published_at: Timestamp(0),
            payload: vec![0; payload].into(),
            content_type: "text/plain".into(),
            schema_version: None,
            headers: vec![("h".into(), "v".repeat(header).into())],
            key: None,
            correlation_id: None,
            priority: 0,
            attempt: 1,
            position: None,
            drawn: None,
        }
    }

    fn receipt(sequence: u64) -> Receipt {
        let position = Position { topic: TopicId(1), partition: 0, offset: Offset::new(0, sequence) };
        Receipt { position, group: GroupId(1), epoch: 1, grant: sequence, attempt: 1 }
    }

    #[test]
    fn what_is_remembered_weighs_its_payload_and_its_headers() {
        assert!(weight(&draft(1 << 20, 0)) > 1 << 20);
        assert!(weight(&draft(0, 16 << 10)) > 16 << 10);
    }

    #[test]
    fn what_does_not_come_again_is_forgotten_and_what_does_is_of_its_revision() {
        let (remembered, by) = (Remembered::new(), SubscriptionId(uuid::Uuid::nil()));
        let settle = |sequence| {
            let lease = LeaseRef::Receipt { receipt: receipt(sequence), message: None };
            Settle { lease, settlement: Settlement::Ack }
        };
        assert!(remembered.places(&[settle(0)]).is_empty(), "nothing is remembered");
        for sequence in 0..4 {
            remembered.insert(&receipt(sequence), (by, 7), Arc::new(draft(10, 10)));
        }
        remembered.drafts.run_pending_tasks();
        let places = remembered.places(&[settle(0), settle(1), settle(2), settle(3)]);
        let retrying = Ok(Settled::Retrying { at: Timestamp(1) });
        let results = [Ok(Settled::Acked), retrying, Ok(Settled::DeadLettered), Err(SettleRefused::LeaseExpired)];
        remembered.settled(places, &results);
        let kept = |sequence| remembered.get(&receipt(sequence), (by, 7)).is_some();
        assert_eq!([kept(0), kept(1), kept(2), kept(3)], [false, true, false, true]);
        assert!(remembered.get(&receipt(1), (by, 8)).is_none(), "the stages are others now");
        assert!(remembered.get(&receipt(1), (SubscriptionId(uuid::Uuid::max()), 7)).is_none());
    }
}
