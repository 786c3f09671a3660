//! The end of a delivery: a consumer's word on a message it holds. Invariant: a settlement counts only under the one live
//! lease, named by its receipt or held by the same subject; `Ok` means that it is durable. Never delivers.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounterVec, Registry};

use crate::catalog::model::{Backoff, Topic};
use crate::clock::Clock;
use crate::delivery::outbound::Outbound;
use crate::directory::Directory;
use crate::message::{GroupId, MessageId, TopicId};
use crate::store::{
    DeliveryState, Failure, LeaseRef, MessageStore, Receipt, Settle, SettleRefused, Settled, Settlement, StoreError,
};

/// Bytes of a consumer's reason that are kept.
const REASON_BYTES_MAX: usize = 1024;

/// Settles for consumers.
pub struct Settler {
    store: Arc<dyn MessageStore>,
    directory: Arc<Directory>,
    outbound: Arc<Outbound>,
    clock: Clock,
    settlements: IntCounterVec,
}

/// Which lease a consumer means.
#[derive(Debug, Clone)]
pub enum Held {
    /// The one of this receipt.
    Receipt {
        /// The receipt.
        receipt: Receipt,
        /// The message that it must be for, if the caller names one.
        message: Option<MessageId>,
    },
    /// The one that this subject holds.
    By {
        /// The topic.
        topic: Arc<Topic>,
        /// Whose cursor.
        group: GroupId,
        /// The message.
        message: MessageId,
        /// The token's subject.
        holder: Arc<str>,
    },
}

impl Held {
    /// Whose cursor it is on.
    #[must_use]
    pub fn cursor(&self) -> (TopicId, GroupId) {
        match self {
            Held::Receipt { receipt, .. } => (receipt.position.topic, receipt.group),
            Held::By { topic, group, .. } => (topic.id, *group),
        }
    }
}

/// What a consumer says.
#[derive(Debug, Clone)]
pub enum Word {
    /// Done.
    Ack,
    /// Failed: again after `delay`, or after the subscription's backoff.
    Nack {
        /// For people, kept with the failure.
        reason: Option<String>,
        /// Instead of the backoff.
        delay: Option<Duration>,
    },
    /// Still at it.
    Extend(Duration),
}

impl Settler {
    /// Settles in `store`.
    ///
    /// # Errors
    /// When its metric is registered already.
    pub fn new(
        store: Arc<dyn MessageStore>,
        directory: Arc<Directory>,
        outbound: Arc<Outbound>,
        clock: Clock,
        registry: &Registry,
    ) -> prometheus::Result<Settler> {
        let settlements = IntCounterVec::new(
            prometheus::opts!("sluice_settlements_total", "Consumers' words on leases, by what came of them."),
            &["outcome"],
        )?;
        registry.register(Box::new(settlements.clone()))?;
        Ok(Settler { store, directory, outbound, clock, settlements })
    }

    /// Carries out each word, one result each, in order.
    ///
    /// # Errors
    /// When the store takes no writes: nothing is settled.
    pub async fn settle(&self, words: Vec<(Held, Word)>) -> Result<Vec<Result<Settled, SettleRefused>>, StoreError> {
        let span = tracing::info_span!(
            "settle",
            otel.name = "settle",
            otel.kind = "client",
            messaging.system = "sluice",
            messaging.operation.name = "settle",
            messaging.operation.type = "settle",
            messaging.batch.message_count = words.len(),
        );
        let mut settles = Vec::with_capacity(words.len());
        for (held, word) in words {
            let settlement = self.settlement(&held, word).await?;
            settles.push(Settle { lease: lease_ref(held), settlement });
        }
        let results = tracing::Instrument::instrument(self.outbound.settle(settles), span).await?;
        // Looked up once a run: most calls have one outcome.
        for run in results.chunk_by(|one, next| outcome(one) == outcome(next)) {
            self.settlements.with_label_values(&[outcome(&run[0])]).inc_by(run.len() as u64);
        }
        Ok(results)
    }

    async fn settlement(&self, held: &Held, word: Word) -> Result<Settlement, StoreError> {
        Ok(match word {
            Word::Ack => Settlement::Ack,
            Word::Extend(duration) => Settlement::Extend { duration },
            Word::Nack { reason, delay } => {
                let at = match delay {
                    Some(delay) => self.clock.now().plus(delay),
                    None => self.outbound.retry_at(&self.backoff(held), self.attempt(held).await?),
                };
                let detail = cut(reason.as_deref().unwrap_or("the consumer gave no reason"));
                let failure = Failure { reason: "NACK".into(), detail: detail.into(), stage: None, last_status: None };
                Settlement::Retry { at, failure }
            }
        })
    }

    fn backoff(&self, held: &Held) -> Backoff {
        let (topic, group): (TopicId, GroupId) = match held {
            Held::Receipt { receipt, .. } => (receipt.position.topic, receipt.group),
            Held::By { topic, group, .. } => (topic.id, *group),
        };
        let subscriptions = self.directory.subscriptions_of(topic);
        let known = subscriptions.iter().find(|subscription| subscription.group == group);
        known.map_or_else(Backoff::default, |subscription| subscription.settings.backoff)
    }

    async fn attempt(&self, held: &Held) -> Result<u32, StoreError> {
        match held {
            Held::Receipt { receipt, .. } => Ok(receipt.attempt),
            Held::By { group, message, .. } => {
                let found = self.store.get(*message).await?;
                let states = found.map(|found| found.groups).unwrap_or_default();
                let held = states.iter().find(|status| status.group == *group).map(|status| status.state);
                Ok(if let Some(DeliveryState::Leased { attempt, .. }) = held { attempt } else { 1 })
            }
        }
    }
}

fn lease_ref(held: Held) -> LeaseRef {
    match held {
        Held::Receipt { receipt, message } => LeaseRef::Receipt { receipt, message },
        Held::By { topic, group, message, holder } => LeaseRef::Holder { topic: topic.id, group, message, holder },
    }
}

fn outcome(result: &Result<Settled, SettleRefused>) -> &'static str {
    match result {
        Ok(Settled::Acked) => "acked",
        Ok(Settled::Retrying { .. }) => "retrying",
        Ok(Settled::DeadLettered) => "dead_lettered",
        Ok(Settled::Released) => "released",
        Ok(Settled::Extended { .. }) => "extended",
        Err(_) => "refused",
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let long = "ü".repeat(REASON_BYTES_MAX);
        assert_eq!(cut(&long).len(), REASON_BYTES_MAX);
        assert_eq!(cut(&format!("x{long}")).len(), REASON_BYTES_MAX - 1);
        assert_eq!(cut("short"), "short");
    }
}
