//! The consume form: how a message looks to those who receive it, in pull answers and in webhooks alike. Invariant: a
//! push body is a function of the message alone (never of the attempt or the lease), so all attempts send the same bytes.
//! Never does I/O.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::cloud_event;
use super::failure_view::DeadLetterView;
use crate::catalog::model::PushFormat;
use crate::message::{Message, MessageId, Partition, Position, TopicName};
use crate::store::Lease;

/// The media type of an envelope.
pub const ENVELOPE_CONTENT_TYPE: &str = "application/json";

/// A message as its receiver sees it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Envelope<'a> {
    /// Its id: the same in every delivery.
    #[schema(value_type = String, format = Uuid)]
    pub message_id: MessageId,
    /// The topic that it is delivered from.
    pub topic_name: &'a str,
    /// The payload's exact text. Absent when `payloadBase64` is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<&'a str>,
    /// The payload's bytes, when they are no text: by their media type, or because they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
    /// The payload's media type.
    pub content_type: &'a str,
    /// The schema version that the publisher named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<&'a str>,
    /// The publisher's headers.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub headers: HeaderPairs<'a>,
    /// 0 (the usual) to 9 (the most urgent).
    pub priority: u8,
    /// Names a conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<&'a str>,
    /// Where an answer is awaited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<&'a str>,
    /// The key that chose the partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition_key: Option<&'a str>,
    /// Where it stands.
    #[schema(value_type = u16)]
    pub partition: Partition,
    /// Where it stands in its partition.
    pub offset: u64,
    /// When the publish was accepted: RFC 3339, UTC.
    #[schema(format = DateTime)]
    pub timestamp: String,
    /// Why it is one, of a dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetterView<'a>>,
    /// W3C trace context of the publish. In pull answers; a webhook has it as headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<&'a str>,
    /// Goes with `traceparent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<&'a str>,
    /// 1 for the first delivery. In pull answers; a webhook has it in `X-Delivery-Attempt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery_attempt: Option<u32>,
    /// When the lease ends. In pull answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub ack_deadline: Option<String>,
    /// Settles the lease. In pull answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
}

/// Headers in the publisher's order, written as an object.
#[derive(Debug, Clone, Copy)]
pub struct HeaderPairs<'a>(pub &'a [(Arc<str>, Arc<str>)]);

impl Serialize for HeaderPairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            map.serialize_entry(&**name, &**value)?;
        }
        map.end()
    }
}

/// What [`Envelope::of_lease`] adds: fields of a pull answer that no webhook's body has.
pub const LEASE_FIELDS: [&str; 5] = ["traceparent", "tracestate", "deliveryAttempt", "ackDeadline", "receipt"];

impl<'a> Envelope<'a> {
    /// The part that is the same in every delivery: what a webhook's body holds.
    #[must_use]
    pub fn of(topic: &'a TopicName, position: Position, message: &'a Message) -> Envelope<'a> {
        let meta = &message.meta;
        let (payload, payload_base64) = match text_of(&message.payload, &meta.content_type) {
            Some(text) => (Some(text), None),
            None => (None, Some(STANDARD.encode(&message.payload))),
        };
        Envelope {
            message_id: message.id,
            topic_name: topic.as_str(),
            payload,
            payload_base64,
            content_type: &meta.content_type,
            schema_version: meta.schema_version.as_deref(),
            headers: HeaderPairs(&meta.headers),
            priority: meta.priority,
            correlation_id: meta.correlation_id.as_deref(),
            reply_to: meta.reply_to.as_deref(),
            partition_key: meta.key.as_deref(),
            partition: position.partition,
            offset: position.offset.0,
            timestamp: meta.published_at.rfc3339(),
            dead_letter: meta.dead_letter.as_deref().map(DeadLetterView::of),
            traceparent: None,
            tracestate: None,
            delivery_attempt: None,
            ack_deadline: None,
            receipt: None,
        }
    }

    /// With the lease's own fields: what a pull answer holds. `message` is what the subscription's pipeline made of the
    /// leased one.
    #[must_use]
    pub fn of_lease(topic: &'a TopicName, lease: &Lease, message: &'a Message) -> Envelope<'a> {
        let trace = message.meta.trace.as_ref();
        Envelope {
            traceparent: trace.map(|trace| &*trace.parent),
            tracestate: trace.and_then(|trace| trace.state.as_deref()),
            delivery_attempt: Some(lease.attempt),
            ack_deadline: Some(lease.deadline.rfc3339()),
            receipt: Some(lease.receipt.encode()),
            ..Envelope::of(topic, lease.position, message)
        }
    }
}

/// A webhook's body, and what its format says of it in headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushBody {
    /// The bytes that are signed and sent.
    pub bytes: Bytes,
    /// Their media type; none where there are no bytes that could have one.
    pub content_type: Option<Arc<str>>,
    /// The attributes of a CloudEvent in binary mode: `ce-…`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl PushBody {
    /// The one body for all attempts to deliver this message in this format.
    #[must_use]
    pub fn of(format: PushFormat, topic: &TopicName, position: Position, message: &Message) -> PushBody {
        match format {
            PushFormat::Raw => PushBody::new(message.payload.clone(), Arc::clone(&message.meta.content_type)),
            PushFormat::Envelope => {
                let envelope = Envelope::of(topic, position, message);
                let bytes = serde_json::to_vec(&envelope).expect("strings and numbers under string keys are JSON");
                PushBody::new(bytes.into(), ENVELOPE_CONTENT_TYPE.into())
            }
            PushFormat::CloudEvents => cloud_event::binary(topic, message),
            PushFormat::CloudEventsStructured => cloud_event::structured(topic, message),
        }
    }

    /// Bytes of a type, about which no header says more.
    pub fn new(bytes: Bytes, content_type: Arc<str>) -> PushBody {
        PushBody { bytes, content_type: Some(content_type), headers: Vec::new() }
    }
}

/// The payload as text, if that is what it is. A binary media type is never text, not even when its bytes happen to be
/// UTF-8: a receiver of images must not have to look in two places.
#[must_use]
pub fn text_of<'a>(payload: &'a [u8], content_type: &str) -> Option<&'a str> {
    if is_binary(content_type) { None } else { std::str::from_utf8(payload).ok() }
}

fn is_binary(content_type: &str) -> bool {
    const BINARY_KINDS: [&str; 4] = ["image", "audio", "video", "font"];
    const BINARY_TYPES: [&str; 13] = [
        "octet-stream",
        "protobuf",
        "x-protobuf",
        "vnd.google.protobuf",
        "msgpack",
        "x-msgpack",
        "cbor",
        "avro",
        "zip",
        "gzip",
        "zstd",
        "pdf",
        "wasm",
    ];
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let Some((kind, name)) = essence.split_once('/') else { return false };
    // `image/svg+xml` is text.
    if name.ends_with("+xml") || name.ends_with("+json") {
        return false;
    }
    let is = |known: &&str, this: &str| known.eq_ignore_ascii_case(this);
    BINARY_KINDS.iter().any(|known| is(known, kind))
        || (kind.eq_ignore_ascii_case("application") && BINARY_TYPES.iter().any(|known| is(known, name)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clock::Timestamp;
    use crate::message::{GroupId, MessageMeta, Offset, TopicId, TraceContext};
    use crate::store::Receipt;

    fn message(payload: &'static [u8], content_type: &str) -> Message {
        Message {
            id: MessageId::new(Timestamp(1_700_000_000_250), TopicId(7), 3, 42),
            payload: Bytes::from_static(payload),
            meta: MessageMeta {
                content_type: content_type.into(),
                schema_version: Some("1.0".into()),
                headers: vec![("source".into(), "ci".into()), ("a".into(), "\"".into())],
                priority: 5,
                key: Some("order-1".into()),
                correlation_id: Some("c-1".into()),
                reply_to: None,
                published_at: Timestamp(1_700_000_000_250),
                expires_at: None,
                trace: None,
                revision: 1,
                dead_letter: None,
                replay_of: None,
            },
        }
    }

    fn position() -> Position {
        Position { topic: TopicId(7), partition: 3, offset: Offset::new(0, 12) }
    }

    fn lease(attempt: u32) -> Lease {
        Lease {
            position: position(),
            message: message(b"{\"a\": 1}", "application/json"),
            attempt,
            deadline: Timestamp(1_700_000_030_250),
            receipt: Receipt { position: position(), group: GroupId(1), epoch: 1, grant: u64::from(attempt), attempt },
        }
    }

    #[test]
    fn a_pull_answer_has_every_field_of_the_contract() {
        let topic: TopicName = "orders".parse().unwrap();
        let lease = lease(2);
        let written = serde_json::to_value(Envelope::of_lease(&topic, &lease, &lease.message)).unwrap();
        assert_eq!(
            written,
            json!({
                "messageId": lease.message.id.to_string(), "topicName": "orders", "payload": "{\"a\": 1}",
                "contentType": "application/json", "schemaVersion": "1.0", "headers": {"source": "ci", "a": "\""},
                "priority": 5, "correlationId": "c-1", "partitionKey": "order-1", "partition": 3, "offset": 12,
                "timestamp": "2023-11-14T22:13:20.250Z", "deliveryAttempt": 2,
                "ackDeadline": "2023-11-14T22:13:50.250Z", "receipt": lease.receipt.encode(),
            })
        );
    }

    #[test]
    fn a_pull_answer_without_the_lease_is_a_webhooks_body() {
        let topic: TopicName = "orders".parse().unwrap();
        let mut lease = lease(2);
        lease.message.meta.trace = Some(TraceContext { parent: "p".into(), state: Some("s".into()) });
        let mut written = serde_json::to_value(Envelope::of_lease(&topic, &lease, &lease.message)).unwrap();
        let fields = written.as_object_mut().unwrap();
        assert!(LEASE_FIELDS.iter().all(|name| fields.contains_key(*name)));
        fields.retain(|name, _| !LEASE_FIELDS.contains(&name.as_str()));
        let body = PushBody::of(PushFormat::Envelope, &topic, lease.position, &lease.message);
        assert_eq!(written.to_string(), String::from_utf8_lossy(&body.bytes));
    }

    #[test]
    fn one_push_body_serves_all_attempts() {
        let topic: TopicName = "orders".parse().unwrap();
        let bodies: Vec<PushBody> = (1..=3)
            .map(|attempt| {
                let lease = lease(attempt);
                PushBody::of(PushFormat::Envelope, &topic, lease.position, &lease.message)
            })
            .collect();
        assert!(bodies.iter().all(|body| *body == bodies[0]));
        let written: serde_json::Value = serde_json::from_slice(&bodies[0].bytes).unwrap();
        for absent in ["deliveryAttempt", "ackDeadline", "receipt", "payloadBase64"] {
            assert!(written.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn a_raw_body_is_the_payload_under_its_own_media_type() {
        let message = message(b"a,b\n1,2\n", "text/csv");
        let body = PushBody::of(PushFormat::Raw, &"orders".parse().unwrap(), position(), &message);
        assert_eq!((&body.bytes[..], body.content_type.as_deref()), (&b"a,b\n1,2\n"[..], Some("text/csv")));
    }

    #[test]
    fn what_is_no_text_travels_as_base64() {
        let cases: [(&'static [u8], &str, bool); 8] = [
            (b"plain", "text/plain; charset=utf-8", true),
            (b"{}", "application/cloudevents+json", true),
            (b"<svg/>", "image/svg+xml", true),
            (b"whatever", "x-unknown", true),
            (b"ascii", "application/octet-stream", false),
            (b"ascii", "Image/PNG", false),
            (b"\xff\x00", "text/plain", false),
            (b"", "application/json", true),
        ];
        for (payload, content_type, is_text) in cases {
            let message = message(payload, content_type);
            let topic = "t".parse().unwrap();
            let envelope = Envelope::of(&topic, position(), &message);
            assert_eq!(envelope.payload.is_some(), is_text, "{content_type}");
            assert_eq!(envelope.payload_base64.is_some(), !is_text, "{content_type}");
        }
    }
}
