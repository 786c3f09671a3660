//! Consuming: messages are leased to a caller that asks. Invariant: what is answered is held by the caller until its
//! `ackDeadline`. Never settles.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::auth::Caller;
use crate::api::extract::{Param, Query};
use crate::api::problem::{Faults, Problem};
use crate::api::wire::Seconds;
use crate::api::{answer, reach};
use crate::broker::Broker;
use crate::catalog::model::{Topic, TopicKind};
use crate::delivery::envelope::Envelope;
use crate::delivery::pull::ConsumeRequest;
use crate::message::TopicName;

/// Messages of one answer, from API.md.
const LIMIT_MAX: u32 = 1000;
const LIMIT_DEFAULT: u32 = 10;
/// What most envelopes have beside the payload, rounded up: an answer of this size need not grow.
const BESIDE_PAYLOAD_BYTES: usize = 640;
/// How long a call may wait, from API.md: below the idle time-outs of common proxies.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// How long a lease may last: a working day.
pub(in crate::api) const ACK_TIMEOUT_MAX: Duration = Duration::from_secs(12 * 3600);

/// What to consume.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ConsumeQuery {
    /// For which group; a Queue has one cursor whatever is given.
    consumer_group: Option<String>,
    /// Messages at most.
    #[param(minimum = 1, maximum = 1000, default = 10)]
    limit: Option<u32>,
    /// How long the leases last; by default as the subscription says (30 s).
    #[param(value_type = Option<Seconds>)]
    ack_timeout: Option<Seconds>,
    /// How long to wait for the first message, at most 30 s (0).
    #[param(value_type = Option<Seconds>)]
    wait: Option<Seconds>,
}

/// Leased messages.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConsumeAnswer<'a> {
    /// In grant order.
    messages: Vec<Envelope<'a>>,
    /// Whether more waits right now.
    has_more: bool,
}

/// Lease messages.
#[utoipa::path(
    get, path = "/api/v1/messages/consume/{topic}", tag = "messages",
    params(("topic" = String, Path, description = "From which topic"), ConsumeQuery),
    responses((status = 200, description = "Leases; none when nothing came within `wait`", body = ConsumeAnswer)),
)]
pub(super) async fn consume(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<TopicName>,
    query: Query<ConsumeQuery>,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    let request = query.check(|query, faults| request(topic, &caller, query, faults))?;
    let prepared = broker.consumers.consume(&request).await?;
    let envelope = |lease| Envelope::of_lease(&request.topic.name, lease, &lease.message);
    let messages = prepared.leases.iter().map(envelope).collect();
    let bytes = prepared.leases.iter().map(|lease| lease.message.payload.len() + BESIDE_PAYLOAD_BYTES).sum();
    Ok(answer::ok_of_bytes(&ConsumeAnswer { messages, has_more: prepared.more }, bytes))
}

fn request(topic: Arc<Topic>, caller: &Caller, query: ConsumeQuery, faults: &mut Faults) -> Option<ConsumeRequest> {
    let group = consumer_group(&topic, query.consumer_group, faults)?;
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        faults.push("/limit", format!("is from 1 to {LIMIT_MAX}"));
    }
    let wait = query.wait.map_or(Duration::ZERO, |Seconds(wait)| wait);
    if wait > WAIT_MAX {
        faults.push("/wait", "is at most 30 seconds");
    }
    Some(ConsumeRequest {
        topic,
        group,
        limit: limit as usize,
        ack_timeout: ack_timeout("/ackTimeout", query.ack_timeout, faults),
        wait,
        holder: Arc::clone(caller.subject()),
    })
}

/// The group to consume for; a Queue needs none.
pub(super) fn consumer_group(topic: &Topic, given: Option<String>, faults: &mut Faults) -> Option<String> {
    match given {
        Some(group) => Some(group),
        None if topic.settings.kind == TopicKind::Queue => Some(String::new()),
        None => faults.require("/consumerGroup", None),
    }
}

/// How long leases are to last.
pub(super) fn ack_timeout(pointer: &str, given: Option<Seconds>, faults: &mut Faults) -> Option<Duration> {
    let Seconds(timeout) = given?;
    if timeout < Duration::from_secs(1) || timeout > ACK_TIMEOUT_MAX {
        faults.push(pointer, "is from 1 second to 12 hours");
    }
    Some(timeout)
}
