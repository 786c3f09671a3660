//! Settling one lease. Invariant: 200 says that the settlement is durable; a lease that has ended gets 410. Never settles
//! for someone whose token does not reach the receipt's topic.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::consume::ack_timeout;
use super::slots::Slots;
use crate::api::auth::Caller;
use crate::api::extract::{Json, Param};
use crate::api::problem::{Faults, NUL_REFUSED, Problem};
use crate::api::wire::{Seconds, Time};
use crate::api::{answer, reach};
use crate::broker::Broker;
use crate::catalog::model::{Guarantee, TopicKind};
use crate::message::MessageId;
use crate::settle::{Held, Word};
use crate::store::{Receipt, Settled};

/// How far ahead a nack may put the next attempt: as far as a publish may be scheduled.
const DELAY_MAX: Duration = super::publish_body::DELAY_MAX;

/// Ends a lease.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AckBody {
    /// Whose lease; not needed with a receipt, nor on a Queue.
    consumer_group: Option<String>,
    /// From the consume answer. Without it, the caller's one live lease of the message counts.
    receipt: Option<String>,
}

/// Gives a message back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NackBody {
    /// Whose lease; not needed with a receipt, nor on a Queue.
    consumer_group: Option<String>,
    /// From the consume answer. Without it, the caller's one live lease of the message counts.
    receipt: Option<String>,
    /// Kept with the failure, for people.
    reason: Option<String>,
    /// How long to wait before the next attempt, instead of the subscription's backoff.
    #[schema(value_type = Option<Seconds>)]
    delay: Option<Seconds>,
}

/// Holds a message longer.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ExtendBody {
    /// Whose lease; not needed with a receipt, nor on a Queue.
    consumer_group: Option<String>,
    /// From the consume answer. Without it, the caller's one live lease of the message counts.
    receipt: Option<String>,
    /// How long from now on.
    #[schema(value_type = Seconds)]
    ack_timeout: Option<Seconds>,
}

/// What a settlement came to.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SettleAnswer {
    /// Which message, where the request named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Uuid)]
    pub(super) message_id: Option<MessageId>,
    pub(super) status: SettledStatus,
    /// When it comes again, at the earliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_at: Option<Time>,
    /// When the lease ends now.
    #[serde(skip_serializing_if = "Option::is_none")]
    ack_deadline: Option<Time>,
}

/// What became of a lease.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(super) enum SettledStatus {
    /// Done.
    Acked,
    /// It comes again at `retryAt`, or later.
    Retrying,
    /// Its last attempt failed.
    DeadLettered,
    /// It waits again, as if it had not been taken.
    Released,
    /// Held until `ackDeadline`.
    Extended,
}

impl SettleAnswer {
    pub(super) fn of(message_id: Option<MessageId>, settled: Settled) -> SettleAnswer {
        let (status, retry_at, ack_deadline) = match settled {
            Settled::Acked => (SettledStatus::Acked, None, None),
            Settled::Retrying { at } => (SettledStatus::Retrying, Some(Time(at)), None),
            Settled::DeadLettered => (SettledStatus::DeadLettered, None, None),
            Settled::Released => (SettledStatus::Released, None, None),
            Settled::Extended { until } => (SettledStatus::Extended, None, Some(Time(until))),
        };
        SettleAnswer { message_id, status, retry_at, ack_deadline }
    }
}

/// Acknowledge a message.
#[utoipa::path(
    post, path = "/api/v1/messages/{id}/ack", tag = "messages", request_body = AckBody,
    params(("id" = String, Path, description = "The message")),
    responses((status = 200, description = "Settled, durably", body = SettleAnswer)),
)]
pub(super) async fn ack(
    State(broker): State<Arc<Broker>>,
    State(slots): State<Arc<Slots>>,
    caller: Caller,
    Param(id): Param<MessageId>,
    body: Json<AckBody>,
) -> Result<Response, Problem> {
    let body = body.plain()?;
    settle(&broker, &slots, &caller, (id, body.consumer_group, body.receipt), Word::Ack).await
}

/// Give a message back.
#[utoipa::path(
    post, path = "/api/v1/messages/{id}/nack", tag = "messages", request_body = NackBody,
    params(("id" = String, Path, description = "The message")),
    responses((status = 200, description = "It comes again, or is a dead letter", body = SettleAnswer)),
)]
pub(super) async fn nack(
    State(broker): State<Arc<Broker>>,
    State(slots): State<Arc<Slots>>,
    caller: Caller,
    Param(id): Param<MessageId>,
    body: Json<NackBody>,
) -> Result<Response, Problem> {
    let (body, delay) = body.check(|body, faults| {
        let delay = delay("/delay", body.delay, faults);
        check_reason("/reason", body.reason.as_deref(), faults);
        Some((body, delay))
    })?;
    let word = Word::Nack { reason: body.reason, delay };
    settle(&broker, &slots, &caller, (id, body.consumer_group, body.receipt), word).await
}

/// Hold a message longer.
#[utoipa::path(
    post, path = "/api/v1/messages/{id}/extend", tag = "messages", request_body = ExtendBody,
    params(("id" = String, Path, description = "The message")),
    responses((status = 200, description = "Held until `ackDeadline`", body = SettleAnswer)),
)]
pub(super) async fn extend(
    State(broker): State<Arc<Broker>>,
    State(slots): State<Arc<Slots>>,
    caller: Caller,
    Param(id): Param<MessageId>,
    body: Json<ExtendBody>,
) -> Result<Response, Problem> {
    let (body, duration) = body.check(|body, faults| {
        let duration = ack_timeout("/ackTimeout", body.ack_timeout, faults);
        Some((body, faults.require("/ackTimeout", duration)?))
    })?;
    settle(&broker, &slots, &caller, (id, body.consumer_group, body.receipt), Word::Extend(duration)).await
}

/// How long a nacked message waits.
pub(super) fn delay(pointer: &str, given: Option<Seconds>, faults: &mut Faults) -> Option<Duration> {
    let Seconds(delay) = given?;
    if delay > DELAY_MAX {
        faults.push(pointer, "is at most 366 days");
    }
    Some(delay)
}

/// A reason may have as many lines as it likes; what is too long is cut where it is kept.
pub(super) fn check_reason(pointer: &str, given: Option<&str>, faults: &mut Faults) {
    if given.is_some_and(|reason| reason.contains('\0')) {
        faults.push(pointer, NUL_REFUSED);
    }
}

async fn settle(
    broker: &Broker,
    slots: &Slots,
    caller: &Caller,
    (id, group, receipt): (MessageId, Option<String>, Option<String>),
    word: Word,
) -> Result<Response, Problem> {
    let lease = LeaseNamed { message: Some(id), group: group.as_deref(), receipt: receipt.as_deref() };
    let held = lease.held(broker, caller)?;
    let results = broker.settler.settle(vec![(held.clone(), word)]).await?;
    let settled = results.into_iter().next().expect("one word gets one result")?;
    slots.settled(&held, settled);
    broker.liveness.settles(held.cursor(), caller.subject());
    Ok(answer::ok(&SettleAnswer::of(lease.message, settled)))
}

/// How a request names the lease that it settles.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeaseNamed<'a> {
    pub(super) message: Option<MessageId>,
    pub(super) group: Option<&'a str>,
    pub(super) receipt: Option<&'a str>,
}

impl LeaseNamed<'_> {
    /// The lease, if the caller reaches its topic.
    ///
    /// # Errors
    /// `VALIDATION_ERROR`, `FORBIDDEN`, `NOT_FOUND`, `LEASE_EXPIRED`.
    pub(super) fn held(&self, broker: &Broker, caller: &Caller) -> Result<Held, Problem> {
        let Some(receipt) = self.receipt else { return self.held_by(broker, caller) };
        let receipt = Receipt::decode(receipt)
            .ok_or_else(|| Problem::invalid_at("/receipt", "is no receipt; give the one from the consume answer"))?;
        let topic = reach::topic_of_receipt(broker, caller, &receipt)?;
        if let Some(group) = self.group
            && topic.settings.kind == TopicKind::PubSub
            && broker.directory.cursor(&topic, group).is_none_or(|(cursor, _)| cursor != receipt.group)
        {
            return Err(Problem::invalid_at("/consumerGroup", "the receipt is another group's"));
        }
        Ok(Held::Receipt { receipt, message: self.message })
    }

    fn held_by(&self, broker: &Broker, caller: &Caller) -> Result<Held, Problem> {
        let Some(message) = self.message else {
            return Err(Problem::invalid_at("/receipt", "is required (or `messageId` and `consumerGroup`)"));
        };
        let topic = reach::topic_of(broker, caller, message)?;
        if topic.settings.guarantee == Guarantee::ExactlyOnce {
            return Err(Problem::invalid_at("/receipt", "is required: the topic is ExactlyOnce"));
        }
        let group = match (self.group, topic.settings.kind) {
            (Some(group), _) => group,
            (None, TopicKind::Queue) => "",
            (None, TopicKind::PubSub) => {
                return Err(Problem::invalid_at("/consumerGroup", "is required (or `receipt`)"));
            }
        };
        let cursor = broker.directory.cursor(&topic, group);
        let (group, _) = cursor.ok_or_else(|| Problem::not_found("consumer group", group))?;
        Ok(Held::By { topic, group, message, holder: Arc::clone(caller.subject()) })
    }
}
