//! A publish as clients write it. Invariant: the payload's exact text is what is stored: a string's content, or any other
//! JSON value's bytes as sent; a [`PublishRequest`] that comes out has passed every check of API.md that needs no store.
//! Never copies a payload that can be shared with the body.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::api::extract::{Spare, Text, decode};
use crate::api::problem::{Code, Faults, Problem};
use crate::api::wire::{Iso, Time};
use crate::catalog::model::Topic;
use crate::clock::Timestamp;
use crate::config::format_duration;
use crate::message::{
    HEADERS_BYTES_MAX, HEADERS_MAX, PRIORITY_MAX, TopicName, TraceContext, has_control, json_media_type,
};
use crate::publish::PublishRequest;

/// How far ahead a message may be scheduled, from API.md.
pub const DELAY_MAX: Duration = Duration::from_secs(366 * 86_400);
/// Bytes of a key, an id, a media type: they are kept in memory and indexes, so they are bounded well below a payload.
pub const LABEL_BYTES_MAX: usize = 1024;

const JSON: &str = "application/json";
const BINARY: &str = "application/octet-stream";

/// Shared by all messages that have it.
static BINARY_SHARED: LazyLock<Arc<str>> = LazyLock::new(|| BINARY.into());

/// One message to publish.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PublishBody<'a> {
    /// Where to.
    #[serde(borrow)]
    #[schema(value_type = String, example = "deployment.events")]
    topic_name: Option<Text<'a>>,
    /// A string that holds the document, or any JSON value inline: its exact text is stored.
    #[serde(borrow, default, deserialize_with = "raw")]
    #[schema(value_type = Option<serde_json::Value>)]
    payload: Option<&'a RawValue>,
    /// Instead of `payload`: bytes that are no text.
    #[serde(borrow)]
    #[schema(value_type = Option<String>, format = Byte)]
    payload_base64: Option<Text<'a>>,
    /// Media type: `application/json`; with `payloadBase64`, `application/octet-stream`.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    content_type: Option<Text<'a>>,
    /// The schema version that the publisher means.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    schema_version: Option<Text<'a>>,
    /// At most 64, 16 KiB in all.
    #[serde(borrow)]
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>)]
    headers: Option<Pairs<'a>>,
    /// 0 (the usual) to 9 (the most urgent).
    #[schema(minimum = 0, maximum = 9)]
    priority: Option<u8>,
    /// Not delivered after this time. Or `ttl`.
    #[schema(value_type = Option<Time>)]
    expires_at: Option<Time>,
    /// Not delivered after this long. Or `expiresAt`.
    #[schema(value_type = Option<Iso>)]
    ttl: Option<Iso>,
    /// Not delivered before this time, at most 366 days ahead. Or `delay`.
    #[schema(value_type = Option<Time>)]
    deliver_at: Option<Time>,
    /// Not delivered before this long, at most 366 days. Or `deliverAt`.
    #[schema(value_type = Option<Iso>)]
    delay: Option<Iso>,
    /// Names a conversation.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    correlation_id: Option<Text<'a>>,
    /// Where an answer is awaited.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    reply_to: Option<Text<'a>>,
    /// Messages of one key keep their order.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    partition_key: Option<Text<'a>>,
    /// Makes repeats harmless; the header `Idempotency-Key` says the same.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    idempotency_key: Option<Text<'a>>,
}

/// `null` is a payload too, so an option would not do.
fn raw<'de, D: Deserializer<'de>>(source: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(source).map(Some)
}

/// An object of strings, in order; a name that is there twice is an error.
#[derive(Debug, Default)]
struct Pairs<'a>(Vec<(Text<'a>, Text<'a>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Pairs<'a>, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs: Vec<(Text<'de>, Text<'de>)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<Text<'de>, Text<'de>>()? {
                    if pairs.iter().any(|(known, _)| *known == name) {
                        return Err(serde::de::Error::custom(format_args!("the header '{}' is there twice", name.0)));
                    }
                    // One more than is allowed is kept, so that the check below sees it.
                    if pairs.len() <= HEADERS_MAX {
                        pairs.push((name, value));
                    }
                }
                Ok(Pairs(pairs))
            }
        }
        source.deserialize_map(PairsVisitor)
    }
}

/// What a publish is read with.
#[derive(Debug, Clone)]
pub struct Reading<'r> {
    /// The text that the body borrows from, so that a payload can share it.
    bytes: &'r Bytes,
    now: Timestamp,
    /// The header `Idempotency-Key`.
    idempotency_key: Option<Arc<str>>,
    trace: Option<TraceContext>,
    /// Whether the client named that trace.
    is_trace_given: bool,
    /// Where a message goes that does not say.
    default: Option<Arc<Topic>>,
    /// Where the message before went: most batches go to one topic, which is then looked up once.
    before: RefCell<Option<Arc<Topic>>>,
}

impl<'r> Reading<'r> {
    /// Reads messages of `bytes`, which came at `now`, under the header `Idempotency-Key`, as a part of `trace`.
    #[must_use]
    pub fn new(
        bytes: &'r Bytes,
        now: Timestamp,
        idempotency_key: Option<Arc<str>>,
        trace: Option<TraceContext>,
    ) -> Reading<'r> {
        Reading { bytes, now, idempotency_key, trace, is_trace_given: false, default: None, before: RefCell::default() }
    }

    /// Says whether the client named the trace itself, so that it counts before one that an event brings.
    #[must_use]
    pub fn with_trace_given(self, is_trace_given: bool) -> Reading<'r> {
        Reading { is_trace_given, ..self }
    }

    /// For messages of `topic`, which need not say so.
    #[must_use]
    pub fn with_topic(self, topic: Arc<Topic>) -> Reading<'r> {
        Reading { default: Some(topic), ..self }
    }

    /// For what came before now.
    #[must_use]
    pub fn with_now(self, now: Timestamp) -> Reading<'r> {
        Reading { now, ..self }
    }

    /// When what is read came.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The whole text.
    #[must_use]
    pub fn bytes(&self) -> &'r Bytes {
        self.bytes
    }

    /// The header `Idempotency-Key`.
    #[must_use]
    pub fn header_key(&self) -> Option<Arc<str>> {
        self.idempotency_key.clone()
    }

    /// The trace that an event is a part of: the one that the client named for the request, else the one in which the
    /// event came to be, as its attributes say, else the request's own.
    #[must_use]
    pub fn trace_of_event(&self, own: impl FnOnce() -> Option<TraceContext>) -> Option<TraceContext> {
        let own = if self.is_trace_given { None } else { own() };
        own.or_else(|| self.trace.clone())
    }

    /// Reads one message; `topic` finds its topic and checks that the caller reaches it.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn message(
        &self,
        text: &[u8],
        topic: impl FnOnce(&TopicName) -> Result<Arc<Topic>, Problem>,
    ) -> Result<PublishRequest, Problem> {
        let (spare, mut faults) = (Spare::default(), Faults::default());
        let body = decode::<PublishBody<'_>>(text, &spare, &mut faults)?;
        self.request(body, faults, topic)
    }

    /// Checks what was read.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn request(
        &self,
        body: Option<PublishBody<'_>>,
        mut faults: Faults,
        topic: impl FnOnce(&TopicName) -> Result<Arc<Topic>, Problem>,
    ) -> Result<PublishRequest, Problem> {
        let Some(body) = body else { return faults.finish(None) };
        let default = self.default.as_ref().filter(|_| body.topic_name.is_none());
        let name = match default {
            Some(_) => None,
            None => faults.require("/topicName", body.topic_name.as_ref()),
        };
        let same = |before: &Arc<Topic>| name.is_some_and(|name| before.name.as_str() == name.0);
        let before = default.cloned().or_else(|| self.before.borrow().clone().filter(same));
        let name = match &before {
            Some(before) => Some(before.name.clone()),
            None => name.and_then(|name| faults.keep("/topicName", name.0.parse::<TopicName>())),
        };
        let when = when(&body);
        let payload = self.payload(&body, &mut faults);
        let content_type = content_type(&body, &mut faults);
        let headers = headers(body.headers.unwrap_or_default(), &mut faults);
        let priority = priority(body.priority, &mut faults);
        let expires_at = self.expires_at(body.expires_at, body.ttl, &mut faults);
        let deliver_at = self.deliver_at(body.deliver_at, body.delay, &mut faults);
        if let (Some(expires), Some(due)) = (expires_at, deliver_at)
            && expires <= due
        {
            faults.push(if body.ttl.is_some() { "/ttl" } else { "/expiresAt" }, "ends before the message is due");
        }
        let idempotency_key = self.key(body.idempotency_key, &mut faults);
        let mut label = |pointer: &str, text: Option<Text<'_>>| label(pointer, text, &mut faults);
        let schema_version = label("/schemaVersion", body.schema_version);
        let correlation_id = label("/correlationId", body.correlation_id);
        let reply_to = label("/replyTo", body.reply_to);
        let key = label("/partitionKey", body.partition_key);
        let (name, payload) = faults.finish(name.zip(payload))?;
        let topic = match before {
            Some(before) => before,
            None => Arc::clone(self.before.borrow_mut().insert(topic(&name)?)),
        };
        Ok(PublishRequest {
            schema_version,
            headers,
            priority,
            expires_at,
            deliver_at,
            correlation_id,
            reply_to,
            key,
            idempotency_key,
            when,
            trace: self.trace.clone(),
            ..PublishRequest::new(topic, payload, content_type)
        })
    }

    fn payload(&self, body: &PublishBody<'_>, faults: &mut Faults) -> Option<Bytes> {
        match (body.payload, &body.payload_base64) {
            (Some(_), Some(_)) => {
                faults.push("/payloadBase64", "give `payload` or `payloadBase64`, not both");
                None
            }
            (None, None) => {
                if !faults.mentions("/payload") && !faults.mentions("/payloadBase64") {
                    faults.push("/payload", "is required (or `payloadBase64`)");
                }
                None
            }
            (None, Some(text)) => match STANDARD.decode(text.0.as_bytes()) {
                Ok(bytes) => Some(bytes.into()),
                Err(error) => {
                    faults.push("/payloadBase64", format!("is not base64: {error}"));
                    None
                }
            },
            (Some(raw), None) if !raw.get().starts_with('"') => Some(self.share(raw.get())),
            (Some(raw), None) => match serde_json::from_str::<Text<'_>>(raw.get()) {
                Ok(Text(std::borrow::Cow::Borrowed(text))) => Some(self.share(text)),
                Ok(Text(std::borrow::Cow::Owned(text))) => Some(text.into()),
                Err(error) => {
                    faults.push("/payload", format!("is not a string of Unicode text: {error}"));
                    None
                }
            },
        }
    }

    /// The body's own bytes where the text is part of it; repaired texts are copied.
    #[must_use]
    pub fn share(&self, text: &str) -> Bytes {
        let (body, part) = (self.bytes.as_ptr_range(), text.as_bytes().as_ptr_range());
        if body.start <= part.start && part.end <= body.end {
            return self.bytes.slice_ref(text.as_bytes());
        }
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn expires_at(&self, at: Option<Time>, ttl: Option<Iso>, faults: &mut Faults) -> Option<Timestamp> {
        match (at, ttl) {
            (Some(_), Some(_)) => faults.push("/ttl", "give `expiresAt` or `ttl`, not both"),
            (Some(Time(at)), None) if at <= self.now => faults.push("/expiresAt", "is past"),
            (None, Some(Iso(Duration::ZERO))) => faults.push("/ttl", "is more than nothing"),
            (Some(Time(at)), None) => return Some(at),
            (None, Some(Iso(ttl))) => return Some(self.now.plus(ttl)),
            (None, None) => {}
        }
        None
    }

    fn deliver_at(&self, at: Option<Time>, delay: Option<Iso>, faults: &mut Faults) -> Option<Timestamp> {
        let (pointer, at) = match (at, delay) {
            (Some(_), Some(_)) => {
                faults.push("/delay", "give `deliverAt` or `delay`, not both");
                return None;
            }
            (Some(Time(at)), None) => ("/deliverAt", at),
            (None, Some(Iso(delay))) => ("/delay", self.now.plus(delay)),
            (None, None) => return None,
        };
        if at.since(self.now) > DELAY_MAX {
            faults.push(pointer, "is at most 366 days ahead");
        }
        Some(at)
    }

    fn key(&self, given: Option<Text<'_>>, faults: &mut Faults) -> Option<Arc<str>> {
        let given = label("/idempotencyKey", given, faults);
        if given.as_deref() == Some("") {
            faults.push("/idempotencyKey", "is not empty");
        }
        match (&self.idempotency_key, given) {
            (Some(header), Some(given)) if **header != *given => {
                faults.push("/idempotencyKey", "differs from the header `Idempotency-Key`");
                None
            }
            (Some(header), _) => Some(Arc::clone(header)),
            (None, given) => given,
        }
    }
}

/// The times as the request gives them, so that a repeat of `delay: PT10S` is the same request.
fn when(body: &PublishBody<'_>) -> Option<Arc<str>> {
    let time = |at: Option<Time>| at.map(|Time(at)| at.rfc3339()).unwrap_or_default();
    let span = |span: Option<Iso>| span.map(|Iso(span)| format_duration(span)).unwrap_or_default();
    let (expires_at, ttl, deliver_at, delay) = (body.expires_at, body.ttl, body.deliver_at, body.delay);
    if expires_at.is_none() && ttl.is_none() && deliver_at.is_none() && delay.is_none() {
        return None;
    }
    Some(format!("{}|{}|{}|{}", time(expires_at), span(ttl), time(deliver_at), span(delay)).into())
}

fn content_type(body: &PublishBody<'_>, faults: &mut Faults) -> Arc<str> {
    let Some(Text(given)) = &body.content_type else {
        return if body.payload_base64.is_some() { binary_media_type() } else { json_media_type() };
    };
    media_type("/contentType", given, faults)
}

/// The media type of bytes of which none was told.
#[must_use]
pub fn binary_media_type() -> Arc<str> {
    Arc::clone(&BINARY_SHARED)
}

/// A media type that can be sent as a header.
pub fn media_type(pointer: &str, given: &str, faults: &mut Faults) -> Arc<str> {
    let token = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic());
    let essence = given.split(';').next().unwrap_or_default().trim();
    let well_formed = essence.split_once('/').is_some_and(|(family, sub)| token(family) && token(sub));
    let header = given.len() <= LABEL_BYTES_MAX && http::HeaderValue::from_str(given).is_ok();
    if !well_formed || !header {
        faults.push(pointer, "is a media type such as application/json");
    }
    if given == JSON { json_media_type() } else { given.into() }
}

fn headers(pairs: Pairs<'_>, faults: &mut Faults) -> Vec<(Arc<str>, Arc<str>)> {
    let bytes: usize = pairs.0.iter().map(|(name, value)| name.0.len() + value.0.len()).sum();
    if pairs.0.len() > HEADERS_MAX {
        faults.push("/headers", format!("are at most {HEADERS_MAX}"));
    } else if bytes > HEADERS_BYTES_MAX {
        faults.push("/headers", format!("have at most {HEADERS_BYTES_MAX} bytes in all; these have {bytes}"));
    } else if pairs.0.iter().any(|(name, _)| name.0.is_empty()) {
        faults.push("/headers/", "a header has a name");
    } else if let Some((name, _)) = pairs.0.iter().find(|(name, value)| has_control(&name.0) || has_control(&value.0)) {
        let pointer = format!("/headers/{}", name.0.replace('~', "~0").replace('/', "~1"));
        faults.push(pointer, "has a control character; only tabs are taken");
    }
    pairs.0.into_iter().map(|(name, value)| (name.0.into(), value.0.into())).collect()
}

fn priority(given: Option<u8>, faults: &mut Faults) -> u8 {
    let priority = given.unwrap_or(0);
    if priority > PRIORITY_MAX {
        faults.push("/priority", format!("is from 0 to {PRIORITY_MAX}"));
    }
    priority
}

fn label(pointer: &str, text: Option<Text<'_>>, faults: &mut Faults) -> Option<Arc<str>> {
    let text = text?.0;
    if text.len() > LABEL_BYTES_MAX {
        faults.push(pointer, format!("has at most {LABEL_BYTES_MAX} bytes"));
        return None;
    }
    if has_control(&text) {
        faults.push(pointer, "has a control character; only tabs are taken");
        return None;
    }
    Some(text.into())
}

/// The header `Idempotency-Key`.
///
/// # Errors
/// When it is no text of 1 to [`LABEL_BYTES_MAX`] characters.
pub fn idempotency_key(headers: &http::HeaderMap) -> Result<Option<Arc<str>>, Problem> {
    let mut all = headers.get_all("idempotency-key").into_iter();
    let Some(given) = all.next() else { return Ok(None) };
    if all.next().is_some() {
        return Err(Problem::new(Code::ValidationError, "The header `Idempotency-Key` is given once."));
    }
    match given.to_str() {
        Ok(key) if (1..=LABEL_BYTES_MAX).contains(&key.len()) => Ok(Some(key.into())),
        _ => Err(Problem::new(
            Code::ValidationError,
            format!("The header `Idempotency-Key` has 1 to {LABEL_BYTES_MAX} visible ASCII characters."),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::problem::Fault;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn topic() -> Arc<Topic> {
        crate::publish::tests::request("orders", "{}").topic
    }

    fn read(text: &str) -> Result<PublishRequest, Vec<(String, String)>> {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let reading = Reading::new(&bytes, NOW, None, None);
        reading.message(&bytes, |_| Ok(topic())).map_err(|problem| {
            problem.item_body().errors.into_iter().map(|Fault { pointer, message }| (pointer, message)).collect()
        })
    }

    fn pointers(text: &str) -> Vec<String> {
        read(text).expect_err("it is wrong").into_iter().map(|(pointer, _)| pointer).collect()
    }

    #[test]
    fn the_exact_text_is_the_payload() {
        for (json, stored) in [
            (r#""{\"test\":\"message\"}""#, r#"{"test":"message"}"#),
            (r#""plain""#, "plain"),
            (r#""""#, ""),
            (r#"{"a" : 1.50,"a":2}"#, r#"{"a" : 1.50,"a":2}"#),
            ("null", "null"),
            ("[1,  2]", "[1,  2]"),
            ("1e400", "1e400"),
            ("\"ü\\u00fc\"", "üü"),
        ] {
            let request = read(&format!(r#"{{"topicName":"orders","payload":{json}}}"#)).expect(json);
            assert_eq!(request.payload, stored);
            assert_eq!(&*request.content_type, JSON);
        }
        let binary = read(r#"{"topicName":"orders","payloadBase64":"AAH/"}"#).expect("base64");
        assert_eq!((&*binary.payload, &*binary.content_type), (&[0, 1, 255][..], BINARY));
    }

    #[test]
    fn a_payload_without_escapes_shares_the_body() {
        let bytes = Bytes::from_static(br#"{"topicName":"orders","payload":{"a":1}}"#);
        let reading = Reading::new(&bytes, NOW, None, None);
        let request = reading.message(&bytes, |_| Ok(topic())).unwrap();
        assert!(bytes.as_ptr_range().contains(&request.payload.as_ptr()));
    }

    #[test]
    fn every_rule_has_its_pointer() {
        let long = "x".repeat(LABEL_BYTES_MAX + 1);
        for (json, expected) in [
            ("{}", vec!["/topicName", "/payload"]),
            (
                r#"{"topicName":"","payload":1,"priority":10,"delay":"P367D"}"#,
                vec!["/topicName", "/priority", "/delay"],
            ),
            (r#"{"topicName":"a","payload":1,"payloadBase64":""}"#, vec!["/payloadBase64"]),
            (r#"{"topicName":"a","payloadBase64":"?"}"#, vec!["/payloadBase64"]),
            (r#"{"topicName":"a","payload":"\ud800"}"#, vec!["/payload"]),
            (r#"{"topicName":"a","payload":1,"priority":10}"#, vec!["/priority"]),
            (r#"{"topicName":"a","payload":1,"priority":-1,"extra":1}"#, vec!["/priority", "/extra"]),
            (r#"{"topicName":"a","payload":1,"ttl":"PT1S","expiresAt":"2030-01-01T00:00:00Z"}"#, vec!["/ttl"]),
            (r#"{"topicName":"a","payload":1,"expiresAt":"2000-01-01T00:00:00Z"}"#, vec!["/expiresAt"]),
            (r#"{"topicName":"a","payload":1,"delay":"PT1S","deliverAt":"2030-01-01T00:00:00Z"}"#, vec!["/delay"]),
            (r#"{"topicName":"a","payload":1,"delay":"P367D"}"#, vec!["/delay"]),
            (r#"{"topicName":"a","payload":1,"delay":"soon"}"#, vec!["/delay"]),
            (r#"{"topicName":"a","payload":1,"headers":{"a":"1","a":"2"}}"#, vec!["/headers"]),
            (r#"{"topicName":"a","payload":1,"headers":{"a":1}}"#, vec!["/headers/a"]),
            (r#"{"topicName":"a","payload":1,"contentType":"json"}"#, vec!["/contentType"]),
            (r#"{"topicName":"a","payload":1,"idempotencyKey":""}"#, vec!["/idempotencyKey"]),
            (&format!(r#"{{"topicName":"a","payload":1,"replyTo":"{long}"}}"#), vec!["/replyTo"]),
        ] {
            assert_eq!(pointers(json), expected, "{json}");
        }
    }

    #[test]
    fn headers_are_bounded_in_number_and_bytes() {
        let body = |headers: &str| format!(r#"{{"topicName":"a","payload":1,"headers":{{{headers}}}}}"#);
        let many: Vec<String> = (0..65).map(|n| format!(r#""h{n}":"v""#)).collect();
        assert_eq!(pointers(&body(&many.join(","))), ["/headers"]);
        assert!(read(&body(&many[..64].join(","))).is_ok());
        assert_eq!(pointers(&body(&format!(r#""h":"{}""#, "x".repeat(HEADERS_BYTES_MAX)))), ["/headers"]);
    }

    #[test]
    fn times_count_from_now() {
        let request = read(r#"{"topicName":"a","payload":1,"ttl":"PT1M","delay":"PT10S"}"#).expect("right");
        assert_eq!(request.expires_at, Some(NOW.plus(Duration::from_secs(60))));
        assert_eq!(request.deliver_at, Some(NOW.plus(Duration::from_secs(10))));
        assert_eq!(request.when.as_deref(), Some("|PT1M||PT10S"));
    }

    #[test]
    fn header_and_field_must_agree_on_the_key() {
        let bytes = Bytes::from_static(br#"{"topicName":"a","payload":1,"idempotencyKey":"k"}"#);
        let read = |key: &str| {
            let reading = Reading::new(&bytes, NOW, Some(key.into()), None);
            reading.message(&bytes, |_| Ok(topic()))
        };
        assert_eq!(read("k").unwrap().idempotency_key.as_deref(), Some("k"));
        assert_eq!(read("other").unwrap_err().item_body().errors[0].pointer, "/idempotencyKey");
    }
}
