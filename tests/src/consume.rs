//! Consuming, as a sentence: `for delivery in broker.consume("orders", "billing").limit(10).await { delivery.ack().await }`.
//! Invariant: awaiting or settling demands that the broker agreed; who expects anything else uses the `try_` forms.

use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::pin::Pin;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Answer, Client, wait};

/// A consume that was not sent yet.
#[derive(Debug, Clone)]
#[must_use = "a consume is sent when it is awaited"]
pub struct Consume {
    client: Client,
    topic: String,
    group: String,
    query: Vec<(&'static str, String)>,
}

/// A message as it is handed out, in pull answers and in webhooks' envelopes.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Received {
    /// The message's id.
    pub message_id: String,
    /// The topic.
    pub topic_name: String,
    /// The payload, where it is text.
    pub payload: Option<String>,
    /// Media type of the payload.
    pub content_type: Option<String>,
    /// The message's headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// 0 to 9.
    #[serde(default)]
    pub priority: u8,
    /// The partition.
    pub partition: u32,
    /// Where it stands there.
    pub offset: u64,
    /// 1 for the first; in webhooks a header has it instead, so that all attempts send one body.
    #[serde(default)]
    pub delivery_attempt: u32,
    /// Names a conversation.
    pub correlation_id: Option<String>,
    /// Where an answer is awaited.
    pub reply_to: Option<String>,
    /// Why it is one, of a dead letter.
    #[serde(default)]
    pub dead_letter: serde_json::Value,
    /// When the lease ends by itself; webhooks do not say.
    pub ack_deadline: Option<String>,
    /// Settles the lease; webhooks have none.
    pub receipt: Option<String>,
}

/// A message that this client holds.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// What was handed out.
    pub message: Received,
    client: Client,
    group: String,
}

#[derive(Deserialize)]
struct Consumed {
    messages: Vec<Received>,
}

impl Consume {
    pub(crate) fn new(client: Client, topic: &str, group: &str) -> Consume {
        Consume { client, topic: topic.to_owned(), group: group.to_owned(), query: Vec::new() }
    }

    /// Messages at most.
    pub fn limit(self, limit: usize) -> Consume {
        self.parameter("limit", limit)
    }

    /// Seconds to wait for the first message.
    pub fn wait(self, seconds: u32) -> Consume {
        self.parameter("wait", seconds)
    }

    /// Seconds that the leases last.
    pub fn ack_timeout(self, seconds: u32) -> Consume {
        self.parameter("ackTimeout", seconds)
    }

    fn parameter(mut self, name: &'static str, value: impl ToString) -> Consume {
        self.query.retain(|(known, _)| *known != name);
        self.query.push((name, value.to_string()));
        self
    }

    /// Sends it and answers whatever the broker says.
    pub async fn answer(&self) -> Answer {
        self.client.get(&self.path()).await
    }

    /// Sends it, where no answer is an outcome too.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub async fn try_answer(&self) -> Result<Answer, reqwest::Error> {
        self.client.try_send(http::Method::GET, &self.path(), &[], Vec::new()).await
    }

    /// The deliveries of an answer of 200.
    #[must_use]
    pub fn deliveries(&self, answer: &Answer) -> Vec<Delivery> {
        let consumed: Consumed = answer.expect_as(200);
        let hold = |message| Delivery::new(message, self.client.clone(), &self.group);
        consumed.messages.into_iter().map(hold).collect()
    }

    /// Consumes again and again until `count` messages have come, at most for [`wait::PATIENCE`].
    pub async fn collect(self, count: usize) -> Vec<Delivery> {
        let mut all: Vec<Delivery> = Vec::new();
        let waited_for = format!("{count} messages of {} for {}", self.topic, self.group);
        wait::until(&waited_for, async || {
            all.extend(self.clone().wait(1).limit(1000).await);
            (all.len() >= count).then(|| std::mem::take(&mut all))
        })
        .await
    }

    /// Consumes and acks again and again until `count` messages are acked, at most for [`wait::PATIENCE`] without a new
    /// one. In an ordered subscription a key's next message comes only after the ack of the one before.
    pub async fn drain(self, count: usize) -> Vec<Delivery> {
        let mut all: Vec<Delivery> = Vec::new();
        while all.len() < count {
            let next = self.clone().collect(1).await;
            for delivery in next {
                delivery.ack().await;
                all.push(delivery);
            }
        }
        all
    }

    /// Demands that nothing waits for the group now.
    ///
    /// # Panics
    /// When something does.
    pub async fn expect_nothing(self) {
        let deliveries = self.await;
        assert!(deliveries.is_empty(), "nothing should wait, but there was {:?}", deliveries.first());
    }

    fn path(&self) -> String {
        let mut path = format!("/messages/consume/{}?consumerGroup={}", self.topic, self.group);
        for (name, value) in &self.query {
            path.push_str(&format!("&{name}={value}"));
        }
        path
    }
}

impl IntoFuture for Consume {
    type Output = Vec<Delivery>;
    type IntoFuture = Pin<Box<dyn Future<Output = Vec<Delivery>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.deliveries(&self.answer().await) })
    }
}

impl Delivery {
    pub(crate) fn new(message: Received, client: Client, group: &str) -> Delivery {
        Delivery { message, client, group: group.to_owned() }
    }

    /// The message's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.message.message_id
    }

    /// The payload's text.
    ///
    /// # Panics
    /// When the payload is not text.
    #[must_use]
    pub fn payload(&self) -> &str {
        self.message.payload.as_deref().expect("the payload is text")
    }

    /// When the lease ends by itself, in milliseconds since 1970.
    ///
    /// # Panics
    /// When the delivery does not say.
    #[must_use]
    pub fn deadline_ms(&self) -> i64 {
        let text = self.message.ack_deadline.as_deref().expect("a lease has a deadline");
        text.parse::<jiff::Timestamp>().expect("RFC 3339").as_millisecond()
    }

    /// The payload as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(self.payload()).expect("the payload is JSON")
    }

    /// The receipt.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn receipt(&self) -> &str {
        self.message.receipt.as_deref().expect("a lease has a receipt")
    }

    /// Acknowledges it.
    pub async fn ack(&self) {
        self.try_ack().await.expect(200);
    }

    /// Hands it back, to come again when the subscription's backoff says.
    pub async fn nack(&self) {
        self.settle("nack", json!({"reason": "the test says so"})).await.expect(200);
    }

    /// Hands it back, to come again after `delay` (ISO 8601).
    pub async fn nack_for(&self, delay: &str) {
        self.settle("nack", json!({"reason": "the test says so", "delay": delay})).await.expect(200);
    }

    /// Holds it for so many seconds from now.
    pub async fn extend(&self, seconds: u32) -> Value {
        self.settle("extend", json!({"ackTimeout": seconds})).await.expect(200)
    }

    /// Acknowledges it, and answers whatever the broker says.
    pub async fn try_ack(&self) -> Answer {
        self.settle("ack", json!({})).await
    }

    /// Settles it by `how` (`ack`, `nack`, `extend`).
    pub async fn settle(&self, how: &str, more: Value) -> Answer {
        let mut body = json!({"consumerGroup": self.group, "receipt": self.receipt()});
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        self.client.post(&format!("/messages/{}/{how}", self.id()), &body).await
    }

    /// Settles it where no answer is an outcome too.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub async fn try_settle(&self, how: &str) -> Result<Answer, reqwest::Error> {
        let body = json!({"consumerGroup": self.group, "receipt": self.receipt()});
        let headers = [("content-type", "application/json")];
        self.client
            .try_send(http::Method::POST, &format!("/messages/{}/{how}", self.id()), &headers, body.to_string())
            .await
    }
}
