//! One signed delivery on request, shown with its answer, so that an endpoint can be tried before messages depend on it.
//! Invariant: it touches no cursor, no breaker and no counter, and shows no secret. Never repeated.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::endpoint::{AttemptRecord, visible};
use super::sender::Sender;
use super::target::{Delivery, Target};
use crate::catalog::model::{Subscription, Topic};
use crate::clock::Clock;
use crate::delivery::envelope::PushBody;
use crate::entropy::Entropy;
use crate::message::{Message, MessageId, MessageMeta, Offset, Position};

/// How long the endpoint may take: someone is waiting, and the API's own time limit is 30 s.
const TEST_TIME_MAX: Duration = Duration::from_secs(15);
/// The header that tells a test from a message, in the request and in the envelope.
const TEST_HEADER: &str = "x-sluice-test";

/// What was sent and what came back.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TestResult {
    /// Whether a message would have been acked.
    pub delivered: bool,
    /// The request; none when nothing could be sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<TestRequest>,
    /// The answer; none when there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<TestResponse>,
    /// How long it took.
    pub latency_ms: u64,
    /// What went wrong, in a word and a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A request as it was sent.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TestRequest {
    /// `POST`.
    pub method: &'static str,
    /// Where to.
    pub url: String,
    /// All headers; the values of the subscription's own are redacted.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
}

/// An answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TestResponse {
    /// Its status.
    pub status: u16,
    /// How its body begins; `[redacted]` where the subscription says so.
    pub body_start: String,
}

/// Sends a made-up message to the subscription's endpoint.
pub(super) async fn send(
    sender: &Sender,
    subscription: &Subscription,
    topic: &Topic,
    clock: &Clock,
    entropy: &Entropy,
) -> TestResult {
    let target = match Target::of(subscription) {
        Ok(target) => target,
        Err(error) => {
            return TestResult {
                delivered: false,
                request: None,
                response: None,
                latency_ms: 0,
                error: Some(format!("INVALID: {error}")),
            };
        }
    };
    let now = clock.now();
    let due = now.plus(target.timeout.min(TEST_TIME_MAX));
    let message = test_message(subscription, topic, clock, entropy);
    let position = Position { topic: topic.id, partition: 0, offset: Offset(0) };
    let body = PushBody::of(target.format, &target.topic, position, &message);
    let delivery = Delivery { id: message.id, body, attempt: 1, deadline: due, expires_at: None, trace: None };
    let mut headers = target.headers(&delivery, now);
    headers.insert(TEST_HEADER, http::HeaderValue::from_static("true"));
    let request = TestRequest {
        method: "POST",
        url: target.url.to_string(),
        headers: target.shown(&headers),
        body: String::from_utf8_lossy(&delivery.body.bytes).into_owned(),
    };
    let sent = sender.post(&target, headers, delivery.body.bytes, due).await;
    let bodies = subscription.settings.attempt_bodies;
    let record = AttemptRecord::of(message.id, 1, &sent, bodies);
    let body_start = visible(&sent.body_start, bodies).to_owned();
    TestResult {
        delivered: record.error.is_none(),
        request: Some(request),
        response: sent.status.map(|status| TestResponse { status, body_start }),
        latency_ms: record.latency_ms,
        error: record.error,
    }
}

fn test_message(subscription: &Subscription, topic: &Topic, clock: &Clock, entropy: &Entropy) -> Message {
    let now = clock.now();
    let payload = json!({
        "type": "sluice.test",
        "subscriptionId": subscription.id.to_string(),
        "consumerGroup": &*subscription.consumer_group,
        "sentAt": now.rfc3339(),
    });
    Message {
        id: MessageId::new(now, topic.id, 0, entropy.next_u64()),
        payload: Bytes::from(payload.to_string()),
        meta: MessageMeta {
            content_type: "application/json".into(),
            schema_version: None,
            headers: vec![(TEST_HEADER.into(), "true".into())],
            priority: 0,
            key: None,
            correlation_id: None,
            reply_to: None,
            published_at: now,
            expires_at: None,
            trace: crate::telemetry::current_trace_context(),
            revision: 0,
            dead_letter: None,
            replay_of: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::signature::SigningKeys;
    use super::super::testing::{Receiver, answer, settings, subscription, topic};
    use super::*;
    use crate::catalog::model::{AttemptBodies, Authorization, Guarantee, Secret};
    use crate::clock::Timestamp;

    async fn test(subscription: &Subscription) -> TestResult {
        let clock = Clock::system();
        let sender = Sender::new(&settings(), clock.clone()).unwrap();
        send(&sender, subscription, &topic(Guarantee::AtLeastOnce), &clock, &Entropy::seeded(1)).await
    }

    #[tokio::test]
    async fn it_shows_request_and_answer_without_secrets() {
        let receiver = Receiver::start(|_, _| answer("422 Unprocessable Content", "")).await;
        let mut subscription = subscription(&receiver.url);
        subscription.settings.headers.insert("authorization".to_owned(), Secret::new("Bearer hidden".to_owned()));
        let result = test(&subscription).await;
        let received = &receiver.received()[0];
        assert_eq!(received.header("authorization"), Some("Bearer hidden"));
        assert_eq!(received.header(TEST_HEADER), Some("true"));
        let request = result.request.as_ref().unwrap();
        assert_eq!((request.body.as_bytes(), request.url.as_str()), (&received.body[..], receiver.url.as_str()));
        let seconds: i64 = received.header("webhook-timestamp").unwrap().parse().unwrap();
        let keys = SigningKeys::of(&subscription).unwrap();
        let signed = keys.sign(received.header("webhook-id").unwrap(), Timestamp(seconds * 1000), &received.body);
        assert_eq!(request.headers["webhook-signature"], signed);
        let response = result.response.as_ref().unwrap();
        assert_eq!((result.delivered, response.status, response.body_start.as_str()), (false, 422, "ok"));
        let shown = serde_json::to_string(&result).unwrap();
        assert!(!shown.contains("hidden") && !shown.contains("whsec_"), "{shown}");
    }

    #[tokio::test]
    async fn neither_token_nor_answer_is_shown_where_the_owner_says_so() {
        let receiver = Receiver::start(|_, _| answer("200 OK", "")).await;
        let mut subscription = subscription(&receiver.url);
        subscription.settings.attempt_bodies = AttemptBodies::Redact;
        let token = Secret::new("hidden".to_owned());
        subscription.settings.authorization = Some(Authorization::Bearer { token });
        let result = test(&subscription).await;
        assert_eq!(receiver.received()[0].header("authorization"), Some("Bearer hidden"));
        let shown = serde_json::to_value(&result).unwrap();
        assert_eq!(shown["request"]["headers"]["authorization"], "[redacted]");
        assert_eq!(shown["response"]["bodyStart"], "[redacted]");
    }

    #[tokio::test]
    async fn an_endpoint_that_cannot_be_sent_to_is_an_error_and_not_a_failure_of_the_call() {
        let mut subscription = subscription("http://127.0.0.1/");
        subscription.secret = None;
        assert!(test(&subscription).await.error.unwrap().starts_with("INVALID"));
    }
}
