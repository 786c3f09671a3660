//! Settling many leases at once. Invariant: one result per item, in order, acks before nacks; one item's refusal does not
//! touch the others. Never settles more than [`ITEMS_MAX`].

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::settle::{LeaseNamed, SettleAnswer, check_reason, delay};
use super::slots::Slots;
use crate::api::answer;
use crate::api::auth::Caller;
use crate::api::extract::{Object, Parsed, RawBody, Spare, Text, decode, expect_json};
use crate::api::problem::{Faults, Problem, ProblemBody};
use crate::api::wire::Seconds;
use crate::broker::Broker;
use crate::message::MessageId;
use crate::settle::{Held, Word};

/// Settlements in one call: as many as a batch publish has messages.
const ITEMS_MAX: usize = 10_000;
/// What most results have, rounded up: an answer of this size need not grow.
const RESULT_BYTES: usize = 64;

/// Ends many leases.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SettleBatchBody<'a> {
    /// Done.
    #[serde(borrow, default)]
    #[schema(value_type = Vec<AckItem>)]
    acks: Vec<Object<AckItem<'a>>>,
    /// Failed.
    #[serde(borrow, default)]
    #[schema(value_type = Vec<NackItem>)]
    nacks: Vec<Object<NackItem<'a>>>,
}

/// The same, with each item still unread: for finding which ones are wrong.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnreadBody<'a> {
    #[serde(borrow, default)]
    acks: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    nacks: Vec<&'a RawValue>,
}

/// One lease that ends well: its receipt, or message and group.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AckItem<'a> {
    /// From the consume answer.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    receipt: Option<Text<'a>>,
    /// Which message.
    #[schema(value_type = Option<String>, format = Uuid)]
    message_id: Option<Parsed<MessageId>>,
    /// Whose lease.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    consumer_group: Option<Text<'a>>,
}

/// One lease that ends badly.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NackItem<'a> {
    /// From the consume answer.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    receipt: Option<Text<'a>>,
    /// Which message.
    #[schema(value_type = Option<String>, format = Uuid)]
    message_id: Option<Parsed<MessageId>>,
    /// Whose lease.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    consumer_group: Option<Text<'a>>,
    /// Kept with the failure, for people.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    reason: Option<Text<'a>>,
    /// How long to wait before the next attempt, instead of the subscription's backoff.
    #[schema(value_type = Option<Seconds>)]
    delay: Option<Seconds>,
}

/// What became of each lease.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SettleBatchAnswer {
    /// One per item, acks before nacks.
    results: Vec<SettleItemAnswer>,
}

/// What became of one lease.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum SettleItemAnswer {
    /// Settled, durably.
    Settled(SettleAnswer),
    /// Refused.
    Refused {
        status: RefusedStatus,
        /// Why.
        error: Box<ProblemBody>,
    },
}

/// What became of a lease that was not settled.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
enum RefusedStatus {
    /// Nothing; `error` says why.
    Refused,
}

/// Settle many messages.
#[utoipa::path(
    post, path = "/api/v1/messages/ack/batch", tag = "messages", request_body = SettleBatchBody,
    responses((status = 200, description = "A result per item: acks, then nacks", body = SettleBatchAnswer)),
)]
pub(super) async fn settle_batch(
    State(broker): State<Arc<Broker>>,
    State(slots): State<Arc<Slots>>,
    caller: Caller,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    expect_json(&headers)?;
    let items = read(&broker, &caller, &body)?;
    let results = settle_items(&broker, &slots, &caller, items).await?;
    let bytes = (results.len() + 1) * RESULT_BYTES;
    Ok(answer::ok_of_bytes(&SettleBatchAnswer { results }, bytes))
}

struct Item {
    message: Option<MessageId>,
    wanted: Result<(Held, Word), Problem>,
}

fn read(broker: &Broker, caller: &Caller, body: &RawBody) -> Result<Vec<Item>, Problem> {
    let ack = |ack: AckItem<'_>, faults| ack.named().item(broker, caller, (Word::Ack, faults));
    let nack = |mut nack: NackItem<'_>, mut faults| {
        let word = nack.word(&mut faults);
        nack.named().item(broker, caller, (word, faults))
    };
    if let Ok(Object(body)) = serde_json::from_slice::<Object<SettleBatchBody<'_>>>(&body.bytes) {
        check_count(body.acks.len() + body.nacks.len())?;
        let acks = body.acks.into_iter().map(|Object(item)| ack(item, Faults::default()));
        let nacks = body.nacks.into_iter().map(|Object(item)| nack(item, Faults::default()));
        return Ok(acks.chain(nacks).collect());
    }
    let (spare, mut faults) = (Spare::default(), Faults::default());
    let body = decode::<UnreadBody<'_>>(&body.bytes, &spare, &mut faults)?;
    let body = faults.finish(body)?;
    check_count(body.acks.len() + body.nacks.len())?;
    let acks = body.acks.into_iter().map(|raw| {
        let (spare, mut faults) = (Spare::default(), Faults::default());
        let item = decode::<AckItem<'_>>(raw.get().as_bytes(), &spare, &mut faults);
        read_item(item, faults, ack)
    });
    let nacks = body.nacks.into_iter().map(|raw| {
        let (spare, mut faults) = (Spare::default(), Faults::default());
        let item = decode::<NackItem<'_>>(raw.get().as_bytes(), &spare, &mut faults);
        read_item(item, faults, nack)
    });
    Ok(acks.chain(nacks).collect())
}

fn check_count(count: usize) -> Result<(), Problem> {
    if (1..=ITEMS_MAX).contains(&count) {
        return Ok(());
    }
    Err(Problem::invalid_at("", format!("1 to {ITEMS_MAX} `acks` and `nacks` together")))
}

/// One item, or what is wrong with it: its neighbours are no worse for it.
fn read_item<T>(item: Result<Option<T>, Problem>, faults: Faults, read: impl FnOnce(T, Faults) -> Item) -> Item {
    match item {
        Ok(Some(item)) => read(item, faults),
        Ok(None) => Item { message: None, wanted: faults.finish(None) },
        Err(problem) => Item { message: None, wanted: Err(problem) },
    }
}

impl<'a> AckItem<'a> {
    fn named(self) -> Named<'a> {
        Named { receipt: self.receipt, message: self.message_id, group: self.consumer_group }
    }
}

impl<'a> NackItem<'a> {
    fn word(&mut self, faults: &mut Faults) -> Word {
        let reason = self.reason.take().map(|Text(reason)| reason.into_owned());
        check_reason("/reason", reason.as_deref(), faults);
        Word::Nack { reason, delay: delay("/delay", self.delay, faults) }
    }

    fn named(self) -> Named<'a> {
        Named { receipt: self.receipt, message: self.message_id, group: self.consumer_group }
    }
}

struct Named<'a> {
    receipt: Option<Text<'a>>,
    message: Option<Parsed<MessageId>>,
    group: Option<Text<'a>>,
}

impl Named<'_> {
    fn item(self, broker: &Broker, caller: &Caller, (word, faults): (Word, Faults)) -> Item {
        fn text<'t>(text: Option<&'t Text<'_>>) -> Option<&'t str> {
            text.map(|Text(text): &Text<'_>| Cow::as_ref(text))
        }
        let message = self.message.as_ref().map(|Parsed(id)| *id);
        let lease = LeaseNamed { message, group: text(self.group.as_ref()), receipt: text(self.receipt.as_ref()) };
        let held = || lease.held(broker, caller).map(|held| (held, word));
        Item { message, wanted: faults.finish(Some(())).and_then(|()| held()) }
    }
}

async fn settle_items(
    broker: &Broker,
    slots: &Slots,
    caller: &Caller,
    items: Vec<Item>,
) -> Result<Vec<SettleItemAnswer>, Problem> {
    let mut last = None;
    let words: Vec<(Held, Word)> = items.iter().filter_map(|item| item.wanted.as_ref().ok().cloned()).collect();
    let results = if words.is_empty() { Vec::new() } else { broker.settler.settle(words).await? };
    let mut results = results.into_iter();
    let next = |item: Item| {
        let settled = item.wanted.and_then(|(held, _)| {
            let settled = results.next().expect("one result for each word")?;
            slots.settled(&held, settled);
            // Most batches are of one group.
            if last.replace(held.cursor()) != Some(held.cursor()) {
                broker.liveness.settles(held.cursor(), caller.subject());
            }
            Ok(settled)
        });
        match settled {
            Ok(settled) => SettleItemAnswer::Settled(SettleAnswer::of(item.message, settled)),
            Err(problem) => {
                SettleItemAnswer::Refused { status: RefusedStatus::Refused, error: Box::new(problem.item_body()) }
            }
        }
    };
    Ok(items.into_iter().map(next).collect())
}
