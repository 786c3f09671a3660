//! What a caller reaches: topics, subscriptions, receipts, by name. Invariant: what comes back from here is in the
//! caller's scope, and a refusal tells nothing of what there is: a name out of scope is refused before it is looked up, and
//! what is found by number (a message, a receipt, a subscription) is as absent. Never changes anything.

use std::sync::Arc;

use super::auth::Caller;
use super::problem::{Code, Problem};
use crate::broker::Broker;
use crate::catalog::model::{Subscription, SubscriptionId, Topic};
use crate::message::{MessageId, TopicName};
use crate::store::Receipt;

/// The topic of this name.
///
/// # Errors
/// `FORBIDDEN`, `NOT_FOUND`.
pub fn topic(broker: &Broker, caller: &Caller, name: &TopicName) -> Result<Arc<Topic>, Problem> {
    caller.need_topic(name)?;
    broker.directory.topic(name).ok_or_else(|| Problem::not_found("topic", name))
}

/// The topic that a message was published to, by the number in its id.
///
/// # Errors
/// `NOT_FOUND`.
pub fn topic_of(broker: &Broker, caller: &Caller, message: MessageId) -> Result<Arc<Topic>, Problem> {
    let topic = broker.directory.topic_by_id(message.topic());
    let topic = topic.filter(|topic| caller.need_topic(&topic.name).is_ok());
    topic.ok_or_else(|| Problem::not_found("message", message))
}

/// The topic that a receipt is for.
///
/// # Errors
/// `LEASE_EXPIRED` when the topic is gone, or not the caller's.
pub fn topic_of_receipt(broker: &Broker, caller: &Caller, receipt: &Receipt) -> Result<Arc<Topic>, Problem> {
    let topic = broker.directory.topic_by_id(receipt.position.topic);
    topic.filter(|topic| caller.need_topic(&topic.name).is_ok()).ok_or_else(|| {
        Problem::new(Code::LeaseExpired, "The lease's topic is gone; drop the message and consume again.")
    })
}

/// The subscription of this id.
///
/// # Errors
/// `NOT_FOUND`.
pub fn subscription(broker: &Broker, caller: &Caller, id: SubscriptionId) -> Result<Arc<Subscription>, Problem> {
    let subscription = broker.directory.subscription(id);
    let subscription = subscription.filter(|subscription| caller.need_topic(&subscription.topic_name).is_ok());
    subscription.ok_or_else(|| Problem::not_found("subscription", id))
}
