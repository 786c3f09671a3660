//! Where a worker's messages come from and where its settlements go: the seam between sending and the rest of the broker,
//! so that the worker is tested with neither. Invariant: settlements are repeated until they are durable, refused, or
//! known to be of no use. Never sends.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::metrics::PushMetrics;
use crate::catalog::Actor;
use crate::catalog::model::{Pause, Subscription, SubscriptionId, Topic};
use crate::clock::Clock;
use crate::delivery::outbound::{Ask, Outbound, OutboundError, Prepared};
use crate::directory::Directory;
use crate::message::TopicId;
use crate::store::{MessageStore, Settle, SettleRefused, Settled, StoreError};

/// How often a settlement is tried: with the pauses below about 10 s, the margin that leases have for it and some more.
const SETTLE_TRIES_MAX: u32 = 8;
/// The pause after the first failed try; it doubles.
const SETTLE_PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The pause at most.
const SETTLE_PAUSE_MAX: Duration = Duration::from_secs(5);

/// How much a worker takes.
#[derive(Debug, Clone, Copy)]
pub struct Want {
    /// Messages at most.
    pub max: usize,
    /// Payload bytes at most.
    pub bytes_max: usize,
    /// How long the leases last.
    pub duration: Duration,
}

/// What a worker needs of the broker.
#[async_trait]
pub trait Feed: Send + Sync + 'static {
    /// The topic, as it is now.
    fn topic(&self) -> Option<Arc<Topic>>;
    /// Changes whenever there may be something to lease.
    fn wakes(&self) -> Option<watch::Receiver<u64>>;
    /// Leases and runs the subscription's stages.
    async fn next(
        &self,
        subscription: Arc<Subscription>,
        topic: Arc<Topic>,
        want: Want,
    ) -> Result<Prepared, OutboundError>;
    /// Ends leases.
    async fn settle(&self, settles: Vec<Settle>) -> Result<Vec<Result<Settled, SettleRefused>>, StoreError>;
    /// Pauses the subscription.
    async fn pause(&self, reason: String) -> Result<(), String>;
}

/// The broker's own parts.
pub struct BrokerFeed {
    /// Whose topic.
    pub topic: TopicId,
    /// Which subscription.
    pub subscription: SubscriptionId,
    /// Where the messages are.
    pub store: Arc<dyn MessageStore>,
    /// Knows topic and subscription.
    pub directory: Arc<Directory>,
    /// Leases and prepares.
    pub outbound: Arc<Outbound>,
    /// The time.
    pub clock: Clock,
    /// This broker, as leases know it.
    pub holder: Arc<str>,
}

#[async_trait]
impl Feed for BrokerFeed {
    fn topic(&self) -> Option<Arc<Topic>> {
        self.directory.topic_by_id(self.topic)
    }

    fn wakes(&self) -> Option<watch::Receiver<u64>> {
        self.store.appended(self.topic)
    }

    async fn next(
        &self,
        subscription: Arc<Subscription>,
        topic: Arc<Topic>,
        want: Want,
    ) -> Result<Prepared, OutboundError> {
        let ask = Ask {
            topic,
            group: subscription.group,
            subscription: Some(subscription),
            max: want.max,
            bytes_max: want.bytes_max,
            duration: want.duration,
            holder: Arc::clone(&self.holder),
        };
        self.outbound.next(&ask).await
    }

    async fn settle(&self, settles: Vec<Settle>) -> Result<Vec<Result<Settled, SettleRefused>>, StoreError> {
        self.outbound.settle(settles).await
    }

    async fn pause(&self, reason: String) -> Result<(), String> {
        let pause = Pause { reason, since: self.clock.now() };
        let paused = self.directory.pause(self.subscription, (Some(pause), None), &Actor::system()).await;
        paused.map(drop).map_err(|error| error.to_string())
    }
}

/// Settles, trying again while the store says that it may work later. What is given up comes again when its lease ends.
pub(super) async fn settle_durably(feed: Arc<dyn Feed>, clock: Clock, metrics: PushMetrics, settles: Vec<Settle>) {
    let count = settles.len();
    let mut pause = SETTLE_PAUSE_FIRST;
    for tried in 1..=SETTLE_TRIES_MAX {
        match feed.settle(settles.clone()).await {
            Ok(results) => {
                let refused = results.iter().filter(|result| result.is_err()).count();
                if refused > 0 {
                    // After an unknown outcome that is what the repeat of a settlement that did count looks like.
                    tracing::debug!(refused, "settlements of webhooks came after the end of their leases");
                    metrics.unsettled("refused", refused);
                }
                return;
            }
            Err(error) if error.is_retryable() && tried < SETTLE_TRIES_MAX => {
                clock.sleep(pause).await;
                pause = (pause * 2).min(SETTLE_PAUSE_MAX);
            }
            Err(error) => {
                tracing::error!(%error, count, "webhooks could not be settled; they come again when their leases end");
                metrics.unsettled("failed", count);
                return;
            }
        }
    }
}
