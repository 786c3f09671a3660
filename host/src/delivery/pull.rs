//! Consumers that fetch. Invariant: a call returns as soon as there is something, or when its wait is over; it holds
//! nothing when it returns empty; those of a group that wait are served in the order in which they came. Never polls the
//! store while nothing changes.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounter, Registry};
use tracing::Instrument as _;

use crate::catalog::model::{Subscription, SubscriptionKind, Topic, TopicKind};
use crate::clock::{Clock, Timestamp};
use crate::delivery::liveness::Liveness;
use crate::delivery::outbound::{Ask, Outbound, OutboundError, Prepared};
use crate::delivery::turns::{Place, Turn, Turns};
use crate::directory::Directory;
use crate::duty::Duty;
use crate::message::GroupId;
use crate::store::MessageStore;

/// Payload bytes in one answer: bounds what a consumer with a high limit makes the broker hold.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Before looking again for a consumer whose messages are dropped by stages: others get their turn.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Serves consumers.
pub struct Consumers {
    liveness: Arc<Liveness>,
    outbound: Arc<Outbound>,
    directory: Arc<Directory>,
    store: Arc<dyn MessageStore>,
    clock: Clock,
    duty: Duty,
    turns: Turns,
    delivered: IntCounter,
}

/// What a consumer asks for.
#[derive(Debug, Clone)]
pub struct ConsumeRequest {
    /// From which topic.
    pub topic: Arc<Topic>,
    /// For which group; on a Queue any name, or none.
    pub group: String,
    /// Messages at most.
    pub limit: usize,
    /// How long the leases last; the subscription's `ackTimeout` if it does not say.
    pub ack_timeout: Option<Duration>,
    /// How long to wait for the first message.
    pub wait: Duration,
    /// The token's subject.
    pub holder: Arc<str>,
}

/// Why a consumer gets nothing.
#[derive(Debug, thiserror::Error)]
pub enum ConsumeError {
    /// A PubSub topic without that group.
    #[error("the topic has no consumer group '{0}'; make a subscription first")]
    NoGroup(String),
    /// The group is served by push.
    #[error("the group '{0}' is delivered by push; consuming from it would take its messages away")]
    Push(String),
    /// The way out is blocked.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
}

/// Of a request, or of an event stream, whose looks come after its request.
fn span(request: &ConsumeRequest) -> tracing::Span {
    if !crate::telemetry::is_sampled_here() {
        return tracing::Span::none();
    }
    tracing::info_span!(
        "consume",
        otel.name = format!("receive {}", request.topic.name),
        otel.kind = "consumer",
        messaging.system = "sluice",
        messaging.operation.name = "consume",
        messaging.operation.type = "receive",
        messaging.destination.name = %request.topic.name,
        messaging.consumer.group.name = request.group,
        messaging.batch.message_count = tracing::field::Empty,
    )
}

impl Consumers {
    /// Serves from `outbound`. Off duty, nobody is kept waiting.
    ///
    /// # Errors
    /// When its metric is registered already.
    pub fn new(
        liveness: Arc<Liveness>,
        outbound: Arc<Outbound>,
        directory: Arc<Directory>,
        store: Arc<dyn MessageStore>,
        (clock, duty): (Clock, Duty),
        registry: &Registry,
    ) -> prometheus::Result<Consumers> {
        let delivered =
            IntCounter::new("sluice_pull_delivered_messages_total", "Messages handed to consumers that fetch.")?;
        registry.register(Box::new(delivered.clone()))?;
        Ok(Consumers { liveness, outbound, directory, store, clock, duty, turns: Turns::default(), delivered })
    }

    /// Leases messages for a consumer, waiting up to `request.wait` for the first.
    ///
    /// # Errors
    /// Nothing is held then.
    pub async fn consume(&self, request: &ConsumeRequest) -> Result<Prepared, ConsumeError> {
        let until = self.clock.now().plus(request.wait);
        let span = span(request);
        let prepared = self.first(request, until).instrument(span.clone()).await?;
        span.record("messaging.batch.message_count", prepared.leases.len());
        for lease in &prepared.leases {
            if let Some(trace) = &lease.message.meta.trace {
                crate::telemetry::link_to(&span, trace);
            }
        }
        self.delivered.inc_by(prepared.leases.len() as u64);
        Ok(prepared)
    }

    /// Looks until there is something, the wait is over, or the broker goes off duty.
    async fn first(&self, request: &ConsumeRequest, until: Timestamp) -> Result<Prepared, ConsumeError> {
        let cursor = (request.topic.id, self.cursor(request)?.0);
        let _open = self.liveness.asks(cursor, &request.holder);
        // Who waits does not push in before those who do.
        if self.clock.now() >= until || !self.turns.has_line(cursor) {
            let prepared = self.once(request).await?;
            if self.is_over(&prepared, until) {
                return Ok(prepared);
            }
        }
        let place = self.turns.stand(cursor);
        loop {
            let turn = tokio::select! {
                turn = place.turn() => turn,
                () = self.clock.sleep_until(until) => return Ok(Prepared::default()),
                () = self.duty.off() => return Ok(Prepared::default()),
            };
            if !place.has_plenty() {
                return self.watch(request, &place, until, turn).await;
            }
            // The next one looks at the same time.
            drop(turn);
            let prepared = self.look(request, &place).await?;
            if self.is_over(&prepared, until) {
                return Ok(prepared);
            }
        }
    }

    fn is_over(&self, prepared: &Prepared, until: Timestamp) -> bool {
        !prepared.leases.is_empty() || self.clock.now() >= until || !self.duty.is_on()
    }

    /// What the first in line does until its turn is over.
    async fn watch(
        &self,
        request: &ConsumeRequest,
        place: &Place<'_>,
        until: Timestamp,
        _turn: Turn<'_>,
    ) -> Result<Prepared, ConsumeError> {
        loop {
            // Subscribed before looking, so that nothing that comes in between is missed.
            let mut appended = self.store.appended(request.topic.id);
            let mut changes = self.directory.changes();
            let prepared = self.look(request, place).await?;
            if self.is_over(&prepared, until) {
                return Ok(prepared);
            }
            if prepared.more {
                // Stages dropped, or time took, all that one call may look at, and there is more behind it.
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            let arrival = async {
                match &mut appended {
                    Some(appended) => drop(appended.changed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = arrival => {}
                _ = changes.changed() => {}
                () = self.clock.sleep_until(until) => {}
                () = self.duty.off() => {}
            }
        }
    }

    async fn look(&self, request: &ConsumeRequest, place: &Place<'_>) -> Result<Prepared, ConsumeError> {
        let looked = self.once(request).await;
        place.saw(looked.as_ref().is_ok_and(|prepared| prepared.more && !prepared.leases.is_empty()));
        looked
    }

    async fn once(&self, request: &ConsumeRequest) -> Result<Prepared, ConsumeError> {
        let (group, subscription) = self.cursor(request)?;
        if subscription.as_ref().is_some_and(|subscription| subscription.pause.is_some()) {
            return Ok(Prepared::default());
        }
        let default = subscription.as_ref().map_or(Duration::from_secs(30), |known| known.settings.ack_timeout);
        let ask = Ask {
            topic: Arc::clone(&request.topic),
            group,
            subscription,
            max: request.limit,
            bytes_max: ANSWER_BYTES_MAX,
            duration: request.ack_timeout.unwrap_or(default),
            holder: Arc::clone(&request.holder),
        };
        Ok(self.outbound.next(&ask).await?)
    }

    fn cursor(&self, request: &ConsumeRequest) -> Result<(GroupId, Option<Arc<Subscription>>), ConsumeError> {
        let Some((group, subscription)) = self.directory.cursor(&request.topic, &request.group) else {
            return Err(ConsumeError::NoGroup(request.group.clone()));
        };
        let push = subscription.as_ref().is_some_and(|known| known.settings.kind == SubscriptionKind::Push);
        if push && request.topic.settings.kind == TopicKind::PubSub {
            return Err(ConsumeError::Push(request.group.clone()));
        }
        Ok((group, subscription))
    }
}
