//! Publishing, as a sentence: `broker.publish("orders", json!({…})).key("a").await`. Invariant: awaiting it demands that
//! the broker accepted the message; who expects anything else asks for `.answer()`.

use std::future::{Future, IntoFuture};
use std::pin::Pin;

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Answer, Client};

/// A publish that was not sent yet.
#[derive(Debug, Clone)]
#[must_use = "a publish is sent when it is awaited"]
pub struct Publish {
    client: Client,
    body: Value,
    headers: Vec<(String, String)>,
}

/// What the broker says of a publish it accepted.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// The message's id.
    pub message_id: String,
    /// `Pending`, `Scheduled`, `Dropped`, `DeadLettered` or `Duplicate`.
    pub status: String,
    /// The partition, where it has one.
    pub partition: Option<u32>,
    /// Where it stands in its partition.
    pub offset: Option<u64>,
    /// The pipeline revision it passed.
    pub pipeline_revision: Option<u64>,
    /// How durable the store is.
    pub durability: Option<String>,
}

impl Publish {
    pub(crate) fn new(client: Client, topic: &str, payload: Value) -> Publish {
        Publish { client, body: json!({"topicName": topic, "payload": payload}), headers: Vec::new() }
    }

    /// Any field of the request.
    pub fn field(mut self, name: &str, value: impl Into<Value>) -> Publish {
        self.body[name] = value.into();
        self
    }

    /// The partition key.
    pub fn key(self, key: &str) -> Publish {
        self.field("partitionKey", key)
    }

    /// The idempotency key, in its header.
    pub fn idempotency_key(self, key: &str) -> Publish {
        self.http_header("Idempotency-Key", key)
    }

    /// 0 to 9.
    pub fn priority(self, priority: u8) -> Publish {
        self.field("priority", priority)
    }

    /// A header of the message.
    pub fn header(mut self, name: &str, value: &str) -> Publish {
        self.body["headers"][name] = json!(value);
        self
    }

    /// A header of the HTTP request.
    pub fn http_header(mut self, name: &str, value: &str) -> Publish {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The body as it would be sent, for a batch.
    #[must_use]
    pub fn into_body(self) -> Value {
        self.body
    }

    /// Sends it and answers whatever the broker says.
    pub async fn answer(self) -> Answer {
        self.try_answer().await.expect("the broker answers")
    }

    /// Sends it, where no answer is an outcome too.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub async fn try_answer(self) -> Result<Answer, reqwest::Error> {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        self.client.try_send(Method::POST, "/messages/publish", &headers, self.body.to_string()).await
    }
}

impl IntoFuture for Publish {
    type Output = Published;
    type IntoFuture = Pin<Box<dyn Future<Output = Published> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.answer().await.expect_as(202) })
    }
}
