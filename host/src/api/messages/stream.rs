//! Consuming as Server-Sent Events. Invariant: at most `maxInFlight` of the stream's leases are held at once; the stream
//! ends when the client goes, the broker stops, or the token expires. Never settles, but for leases whose events were lost.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::HeaderMap;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::IntoParams;

use super::consume::{ack_timeout, consumer_group};
use super::slots::{Slots, StreamSlots};
use crate::api::auth::Caller;
use crate::api::events::{self, KEEP_ALIVE, comment};
use crate::api::extract::{Param, Query};
use crate::api::problem::{Code, Faults, Problem};
use crate::api::reach;
use crate::api::wire::Seconds;
use crate::broker::Broker;
use crate::catalog::model::Topic;
use crate::delivery::envelope::Envelope;
use crate::delivery::pull::ConsumeRequest;
use crate::message::{TopicId, TopicName};
use crate::store::{Lease, LeaseRef, Receipt, Settle, Settlement};

/// Leases of one stream at once: what one answer of the consume route may hold.
const IN_FLIGHT_MAX: u32 = 1000;
/// How often a full stream of a fleet asks whether leases have ended elsewhere.
const ASK_EVERY: Duration = Duration::from_millis(50);
const IN_FLIGHT_DEFAULT: u32 = 10;

/// What to stream.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamQuery {
    /// For which group; a Queue has one cursor whatever is given.
    consumer_group: Option<String>,
    /// Leases at once; each settlement lets the next message through.
    #[param(minimum = 1, maximum = 1000, default = 10)]
    max_in_flight: Option<u32>,
    /// How long the leases last; by default as the subscription says (30 s).
    #[param(value_type = Option<Seconds>)]
    ack_timeout: Option<Seconds>,
}

/// Lease messages as they come.
#[utoipa::path(
    get, path = "/api/v1/messages/stream/{topic}", tag = "messages",
    params(
        ("topic" = String, Path, description = "From which topic"), StreamQuery,
        ("Last-Event-ID" = Option<String>, Header,
         description = "The last event that arrived: leases granted after it, whose events were lost, are given back"),
    ),
    responses((status = 200, description = "Events `message`; data: the consume form; id: what to resume from",
               body = Envelope, content_type = "text/event-stream")),
)]
pub(super) async fn stream(
    State(broker): State<Arc<Broker>>,
    State(slots): State<Arc<Slots>>,
    caller: Caller,
    Param(name): Param<TopicName>,
    query: Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let topic = reach::topic(&broker, &caller, &name)?;
    let (request, max) = query.check(|query, faults| request(topic, &caller, query, faults))?;
    let place = slots.begin().ok_or_else(|| {
        Problem::new(Code::Backpressure, "As many streams are open as the broker serves; come again later.")
    })?;
    give_back_lost(&broker, &slots, (&caller, request.topic.id), &headers).await?;
    let own = StreamSlots::new(Arc::clone(caller.subject()));
    // Also what earlier streams left is looked through here, so that it does not outlive its leases by much.
    slots.expire(&own, broker.clock.now());
    let feed = Feed { slots, own, broker, request, max, caller, _place: place };
    // The first look is made before the answer, so that a wrong group is a problem and not an empty stream.
    let first = feed.look(Duration::ZERO).await?;
    Ok(events::answer(feed.write(&first), feed.events()))
}

fn request(
    topic: Arc<Topic>,
    caller: &Caller,
    query: StreamQuery,
    faults: &mut Faults,
) -> Option<(ConsumeRequest, usize)> {
    let group = consumer_group(&topic, query.consumer_group, faults)?;
    let max = query.max_in_flight.unwrap_or(IN_FLIGHT_DEFAULT);
    if !(1..=IN_FLIGHT_MAX).contains(&max) {
        faults.push("/maxInFlight", format!("is from 1 to {IN_FLIGHT_MAX}"));
    }
    let ack_timeout = ack_timeout("/ackTimeout", query.ack_timeout, faults);
    let (holder, wait) = (Arc::clone(caller.subject()), Duration::ZERO);
    Some((ConsumeRequest { topic, group, limit: 0, ack_timeout, wait, holder }, max as usize))
}

/// An event's id: the receipt of what it carries, and the stream that it came by.
fn event_id(receipt: &Receipt, stream: u64) -> String {
    format!("{}.{stream:x}", receipt.encode())
}

fn read_event_id(text: &str) -> Option<(Receipt, u64)> {
    let (receipt, stream) = text.rsplit_once('.')?;
    Some((Receipt::decode(receipt)?, u64::from_str_radix(stream, 16).ok()?))
}

async fn give_back_lost(
    broker: &Broker,
    slots: &Slots,
    (caller, topic): (&Caller, TopicId),
    headers: &HeaderMap,
) -> Result<(), Problem> {
    let Some(last) = headers.get("last-event-id") else { return Ok(()) };
    let last = last.to_str().ok().and_then(read_event_id);
    let last = last.filter(|(receipt, _)| receipt.position.topic == topic);
    let refused = || Problem::invalid_at("/Last-Event-ID", "is no id of an event of this topic's streams");
    let (last, stream) = last.ok_or_else(refused)?;
    let lost = slots.unreceived(caller.subject(), stream, &last);
    if lost.is_empty() {
        return Ok(());
    }
    let release =
        |receipt| Settle { lease: LeaseRef::Receipt { receipt, message: None }, settlement: Settlement::Release };
    // One that has ended meanwhile is refused: it waits again, or is settled.
    broker.store.settle(lost.iter().copied().map(release).collect()).await?;
    slots.ended(&lost);
    Ok(())
}

/// One stream and what it needs.
struct Feed {
    broker: Arc<Broker>,
    slots: Arc<Slots>,
    own: Arc<StreamSlots>,
    request: ConsumeRequest,
    max: usize,
    caller: Caller,
    /// Among all streams.
    _place: OwnedSemaphorePermit,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.own.end();
    }
}

impl Feed {
    /// Leases what the free slots take, waiting up to `wait` for the first.
    async fn look(&self, wait: Duration) -> Result<Vec<Lease>, Problem> {
        let free = self.max.saturating_sub(self.own.held());
        if free == 0 {
            return Ok(Vec::new());
        }
        let request = ConsumeRequest { limit: free, wait, ..self.request.clone() };
        let prepared = self.broker.consumers.consume(&request).await?;
        prepared.leases.iter().for_each(|lease| self.slots.take(&self.own, lease));
        Ok(prepared.leases)
    }

    fn events(self) -> impl Stream<Item = Bytes> + Send + 'static {
        stream::unfold(self, |feed| async move { Some((feed.next().await?, feed)) })
    }

    /// The next events, or a comment when there are none for a while; none when the stream is over.
    async fn next(&self) -> Option<Bytes> {
        let quiet_until = self.broker.clock.now().plus(KEEP_ALIVE);
        loop {
            if !self.broker.duty.is_on() || self.caller.has_expired(self.broker.clock.now()) {
                return None;
            }
            let now = self.broker.clock.now();
            if now >= quiet_until {
                self.slots.expire(&self.own, now);
                return Some(comment());
            }
            // Looking through all slots costs their number, so it is done only when none is free.
            let full = self.own.held() >= self.max;
            let next_end = if full { self.slots.expire(&self.own, now) } else { None };
            if self.own.held() < self.max {
                // A failure ends the stream; the client comes again and is told what is wrong.
                let leases = self.look(quiet_until.since(now)).await.ok()?;
                if leases.is_empty() {
                    continue;
                }
                return Some(self.write(&leases));
            }
            let mut until = next_end.map_or(quiet_until, |end| end.min(quiet_until));
            if self.broker.fleet.is_some() {
                // What is settled through another broker is not told here. A store that does not answer is asked again.
                let held = self.slots.of_stream(&self.own);
                if let Ok(ended) = self.broker.store.ended(&held).await
                    && !ended.is_empty()
                {
                    self.slots.ended(&ended);
                    continue;
                }
                until = until.min(now.plus(ASK_EVERY));
            }
            tokio::select! {
                () = self.own.freed() => {}
                () = self.broker.clock.sleep_until(until) => {}
                () = self.broker.duty.off() => {}
            }
        }
    }

    fn write(&self, leases: &[Lease]) -> Bytes {
        let mut written = Vec::new();
        for lease in leases {
            let envelope = Envelope::of_lease(&self.request.topic.name, lease, &lease.message);
            let id = event_id(&lease.receipt, self.own.number);
            events::append(&mut written, "message", Some(&id), &envelope);
        }
        written.into()
    }
}
