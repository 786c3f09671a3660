//! Asking: a message is published, and the call waits for the reply to it. Invariant: 200 says that the request is durable,
//! and holds the reply if there was one to wait for; whatever else comes of the call is said by a problem. Never publishes
//! a request twice.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::publish::{PublishAnswer, destination, reading};
use super::publish_body::PublishBody;
use crate::api::auth::Caller;
use crate::api::extract::{Query, RawBody, expect_json};
use crate::api::problem::{Code, Problem};
use crate::api::wire::Seconds;
use crate::api::{answer, reach};
use crate::broker::Broker;
use crate::catalog::model::Topic;
use crate::clock::Timestamp;
use crate::delivery::envelope::Envelope;
use crate::delivery::replies::Awaited;
use crate::message::{Message, MessageId, Position, REPLIES_TOPIC, TopicName};
use crate::publish::{PublishRequest, Published, Status};

/// How long a call may wait, and waits where it does not say: below the idle time-outs of common proxies.
const TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// How long to wait.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RequestQuery {
    /// How long to wait for the reply: 1 to 30 s (30). The request expires with it, unless it says otherwise.
    #[param(value_type = Option<Seconds>)]
    timeout: Option<Seconds>,
}

/// A request, and the reply to it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RequestAnswer<'a> {
    /// What became of the request.
    request: PublishAnswer<'a>,
    /// The reply; absent where a stage took the request out of its way (`status` says so): then there is none to wait for.
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<Envelope<'a>>,
}

/// Publish a message and wait for the reply to it.
///
/// The message says where its reply is awaited (`replyTo`, by default the broker's own topic `sluice.replies`) and which one
/// it is (`correlationId`, by default one that nobody can guess). Whoever serves the request publishes to that topic with
/// that `correlationId`. A repeat under the same idempotency key waits for the reply to the first, or gets it again.
#[utoipa::path(
    post, path = "/api/v1/messages/request", tag = "messages", request_body = PublishBody,
    params(
        RequestQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Makes repeats harmless, as `idempotencyKey`"),
    ),
    responses((status = 200, description = "The reply; the request is durable", body = RequestAnswer)),
)]
pub(super) async fn request(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    query: Query<RequestQuery>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let timeout = query.check(|query, faults| {
        let timeout = query.timeout.map_or(TIMEOUT_MAX, |Seconds(timeout)| timeout);
        if timeout < Duration::from_secs(1) || timeout > TIMEOUT_MAX {
            faults.push("/timeout", "is from 1 to 30 seconds");
        }
        Some(timeout)
    })?;
    expect_json(&headers)?;
    let due = broker.clock.now().plus(timeout);
    let reading = reading(&broker, &headers, &body.bytes)?;
    let request = reading.message(&body.bytes, |name| destination(&broker, &caller, name, "/topicName"))?;
    let (request, address) = addressed(&broker, &caller, request, due)?;
    // Before the request is there, so that no reply is too quick.
    let expected = broker.replies.expect(address.topic.id, Arc::clone(&address.id)).await?;
    let published = broker.publisher.publish(request).await?;
    let awaited = match (published.status, &published.stage) {
        (Status::Dropped | Status::DeadLettered, _) | (Status::Duplicate, Some(_)) => None,
        (Status::Duplicate, None) => Some(to_the_first(&broker, &caller, &published, due).await?),
        _ => Some((expected.reply(due).await, address.topic)),
    };
    let published = PublishAnswer::of(&published, &*broker.store, false);
    match &awaited {
        None => Ok(answer::ok(&RequestAnswer { request: published, reply: None })),
        Some((Awaited::Reply(position, message), topic)) => {
            let reply = Some(Envelope::of(&topic.name, *position, message));
            Ok(answer::ok(&RequestAnswer { request: published, reply }))
        }
        Some((Awaited::Late, _)) => Err(late(published.id())),
        Some((Awaited::Ended, _)) => Err(Problem::new(
            Code::OutcomeUnknown,
            "The broker stops, or the topic for the reply is gone; sent again with the same `Idempotency-Key`, the request \
             waits for the reply to the first.",
        )),
    }
}

/// Where a reply is awaited.
struct Address {
    topic: Arc<Topic>,
    id: Arc<str>,
}

/// The request with what it does not say by itself.
fn addressed(
    broker: &Broker,
    caller: &Caller,
    mut request: PublishRequest,
    due: Timestamp,
) -> Result<(PublishRequest, Address), Problem> {
    if request.deliver_at.is_some_and(|at| at >= due) {
        return Err(Problem::invalid_at("/deliverAt", "is within the time that the reply is waited for"));
    }
    let topic = match &request.reply_to {
        None => replies_topic(broker)?,
        Some(name) => {
            let name: TopicName = name.parse().map_err(|error: String| Problem::invalid_at("/replyTo", error))?;
            if name.as_str() == REPLIES_TOPIC { replies_topic(broker)? } else { reach::topic(broker, caller, &name)? }
        }
    };
    if topic.name.as_str() == REPLIES_TOPIC && request.correlation_id.is_some() {
        // Whoever knows the id hears the reply: on a topic that everybody shares, only one that nobody can guess will do.
        let message =
            "is chosen by the broker where the reply comes by `sluice.replies`; name a topic of your own in `replyTo`";
        return Err(Problem::invalid_at("/correlationId", message));
    }
    request.reply_to = Some(topic.name.as_str().into());
    request.expires_at = request.expires_at.or(Some(due));
    let id = match &request.correlation_id {
        Some(id) => Arc::clone(id),
        _ => {
            request.correlated_by_us = true;
            format!("{:016x}{:016x}", broker.entropy.next_u64(), broker.entropy.next_u64()).into()
        }
    };
    request.correlation_id = Some(Arc::clone(&id));
    Ok((request, Address { topic, id }))
}

fn replies_topic(broker: &Broker) -> Result<Arc<Topic>, Problem> {
    let name: TopicName = REPLIES_TOPIC.parse().map_err(Problem::internal)?;
    broker.directory.topic(&name).ok_or_else(|| Problem::not_found("topic", name))
}

/// The reply to the request that came first under this key: here already, or still to come.
async fn to_the_first(
    broker: &Broker,
    caller: &Caller,
    published: &Published,
    due: Timestamp,
) -> Result<(Awaited, Arc<Topic>), Problem> {
    let first = broker.store.get(published.message_id).await?.map(|found| found.message.meta);
    let address = first.and_then(|meta| Some((meta.reply_to?, meta.correlation_id?)));
    let Some((name, id)) = address else {
        let detail = "The first request under this key is out of retention, or was a publish that awaits no reply.";
        return Err(Problem::new(Code::Conflict, detail));
    };
    let name: TopicName = name.parse().map_err(|error: String| Problem::invalid_at("/replyTo", error))?;
    let topic =
        if name.as_str() == REPLIES_TOPIC { replies_topic(broker)? } else { reach::topic(broker, caller, &name)? };
    // First whom to tell, then what was there before: nothing falls in between.
    let expected = broker.replies.expect(topic.id, Arc::clone(&id)).await?;
    let earlier: Option<(Position, Message)> = tokio::select! {
        earlier = broker.replies.earlier(topic.id, &id, published.published_at) => earlier?,
        () = broker.clock.sleep_until(due) => None,
        // Who waits is told so.
        () = broker.stopping.cancelled() => None,
    };
    let awaited = match earlier {
        Some((position, message)) => Awaited::Reply(position, Arc::new(message)),
        None => expected.reply(due).await,
    };
    Ok((awaited, topic))
}

fn late(request: MessageId) -> Problem {
    let detail = format!(
        "No reply came in time to the request {request}; is somebody consuming its topic? If it has a longer `ttl`, it can still \
         be served: sent again with the same `Idempotency-Key`, it waits for the reply to the first."
    );
    Problem::new(Code::ReplyTimeout, detail)
}
