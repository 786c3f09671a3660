//! CloudEvents 1.0 as clients publish them: in binary mode (`ce-…` headers, the body is the data), in structured mode and in
//! batches (JSON). Invariant: the data's bytes are what is stored; each attribute becomes a header of the message under the
//! binding's name, so that filters and stages see it and webhooks can give the event back as it was. Never decides what
//! becomes of a message.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, header};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::batch::ITEMS_MAX;
use super::publish_body::{LABEL_BYTES_MAX, Reading, binary_media_type, media_type};
use crate::api::extract::{Spare, Text, decode, decode_list, expect_json, is_media_type, pointer_of};
use crate::api::problem::{Code, Fault, Faults, Problem};
use crate::api::wire::Time;
use crate::catalog::model::Topic;
use crate::clock::Timestamp;
use crate::message::cloud_event::{
    DATA_CONTENT_TYPE, EXPIRY_TIME, PARTITION_KEY, PREFIX, REQUIRED, TRACE_PARENT, TRACE_STATE, check_name,
    check_value, from_header, header_bytes, identity, is_core,
};
use crate::message::{HEADERS_BYTES_MAX, HEADERS_MAX, TopicName, TraceContext, is_json, json_media_type};
use crate::publish::PublishRequest;
use crate::telemetry::{parse_traceparent, parse_tracestate};

/// What all media types of events begin with, whatever format they name.
const ANY_FORMAT: &str = "application/cloudevents";
const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";
const FORM: &str = "application/x-www-form-urlencoded";
/// The header that tells an event in binary mode.
const MARK: &str = "ce-specversion";
/// Where the topic's name stands.
const TOPIC: &str = "/topic";
/// Members of an event in JSON: attributes, and what is none.
const MEMBERS_MAX: usize = HEADERS_MAX + 3;

/// Finds a topic by its name, which stands at the pointer, and checks that the caller reaches it.
type Find<'f> = dyn Fn(&TopicName, &str) -> Result<Arc<Topic>, Problem> + 'f;

/// A CloudEvent in JSON. Any other member is an extension attribute: a string, a whole number of 32 bits, or a truth value.
/// `traceparent` and `tracestate` are the message's trace where the request has no valid header `traceparent`.
#[derive(Debug, ToSchema)]
#[schema(as = CloudEvent)]
#[expect(dead_code, reason = "what the documentation shows: it is read member by member")]
pub(super) struct CloudEventBody {
    /// `1.0`.
    specversion: String,
    /// Together with `source` it tells the event from all others: one that comes again is a duplicate.
    id: String,
    /// A URI reference.
    source: String,
    /// What kind of event it is.
    r#type: String,
    /// What it is about.
    subject: Option<String>,
    /// When it happened.
    time: Option<Time>,
    /// The data's media type (`application/json`; of `data_base64`, `application/octet-stream`).
    datacontenttype: Option<String>,
    /// An absolute URI.
    dataschema: Option<String>,
    /// Events of one key keep their order.
    partitionkey: Option<String>,
    /// Not delivered after this time.
    expirytime: Option<Time>,
    /// Any JSON value, whose exact text is stored; where `datacontenttype` is of no JSON, a string that holds the data.
    #[schema(value_type = Option<serde_json::Value>)]
    data: Option<()>,
    /// Instead of `data`: bytes that are no text.
    #[schema(format = Byte)]
    data_base64: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Binary,
    Structured,
    Batch,
}

/// By the binding's rules; none of a request that is no event.
fn mode(headers: &HeaderMap) -> Result<Option<Mode>, Problem> {
    let given = headers.get(header::CONTENT_TYPE).map(|given| given.as_bytes()).unwrap_or_default();
    let is_event = given.get(..ANY_FORMAT.len()).is_some_and(|start| start.eq_ignore_ascii_case(ANY_FORMAT.as_bytes()));
    if is_media_type(given, &[STRUCTURED]) {
        Ok(Some(Mode::Structured))
    } else if is_media_type(given, &[BATCH]) {
        Ok(Some(Mode::Batch))
    } else if is_event {
        Err(unsupported("CloudEvents come as JSON: application/cloudevents+json, or in binary mode."))
    } else {
        Ok(headers.contains_key(MARK).then_some(Mode::Binary))
    }
}

fn unsupported(detail: &'static str) -> Problem {
    Problem::new(Code::UnsupportedMediaType, detail)
}

/// Whether the body of a batch is one of events.
///
/// # Errors
/// `UNSUPPORTED_MEDIA_TYPE` for events that come otherwise.
pub(super) fn is_batch(headers: &HeaderMap) -> Result<bool, Problem> {
    match mode(headers)? {
        Some(Mode::Structured) => Err(unsupported(
            "One CloudEvent goes to /messages/publish; several come as application/cloudevents-batch+json.",
        )),
        mode => Ok(mode == Some(Mode::Batch)),
    }
}

/// Reads one message, be it an event or not.
///
/// # Errors
/// All that is wrong with it.
pub(super) fn message(
    reading: &Reading<'_>,
    headers: &HeaderMap,
    topic: Option<&str>,
    find: &Find<'_>,
) -> Result<PublishRequest, Problem> {
    let (spare, mut faults) = (Spare::default(), Faults::default());
    let event = match mode(headers)? {
        Some(Mode::Batch) => return Err(unsupported("Several CloudEvents go to /messages/publish/batch.")),
        Some(Mode::Structured) => structured(reading, reading.bytes(), &spare, &mut faults)?,
        Some(Mode::Binary) if topic.is_some() => Some(binary(reading, headers, &mut faults)),
        _ => return ordinary(reading, headers, topic, find),
    };
    let name = topic_name(topic, &mut faults);
    let (name, event) = faults.finish(name.zip(event))?;
    Ok(event.into_request(reading, find(&name, TOPIC)?))
}

/// Reads a batch of events, all for one topic.
///
/// # Errors
/// What is wrong with the whole of it; what is wrong with one event is that event's.
pub(super) fn batch(
    reading: &Reading<'_>,
    topic: Option<&str>,
    find: &Find<'_>,
) -> Result<Vec<Result<PublishRequest, Problem>>, Problem> {
    let mut faults = Faults::default();
    let name = topic_name(topic, &mut faults);
    let events = decode_list(reading.bytes(), ITEMS_MAX)?;
    if events.len() > ITEMS_MAX {
        faults.push("", format!("a batch has at most {ITEMS_MAX} events"));
    }
    let topic = find(&faults.finish(name)?, TOPIC)?;
    let one = |event: &RawValue| {
        let (spare, mut faults) = (Spare::default(), Faults::default());
        let event = structured(reading, event.get().as_bytes(), &spare, &mut faults)?;
        Ok(faults.finish(event)?.into_request(reading, Arc::clone(&topic)))
    };
    Ok(events.into_iter().map(one).collect())
}

fn topic_name(topic: Option<&str>, faults: &mut Faults) -> Option<TopicName> {
    let Some(topic) = topic else {
        faults.push(TOPIC, "is required: a CloudEvent names no topic itself, so name it as `?topic=NAME`");
        return None;
    };
    faults.keep(TOPIC, topic.parse())
}

/// A message that is no event, or does not say where an event would go.
fn ordinary(
    reading: &Reading<'_>,
    headers: &HeaderMap,
    topic: Option<&str>,
    find: &Find<'_>,
) -> Result<PublishRequest, Problem> {
    let read = expect_json(headers).and_then(|()| {
        if topic.is_some() {
            let message = "is for CloudEvents, which have the header `ce-specversion` or the type \
                           application/cloudevents+json; any other message has `topicName` in its body";
            return Err(Problem::invalid_at(TOPIC, message));
        }
        reading.message(reading.bytes(), |name| find(name, "/topicName"))
    });
    let is_marked = topic.is_none() && headers.contains_key(MARK);
    read.map_err(|problem| if is_marked { with_hint(problem) } else { problem })
}

/// What is marked as an event and can't be read as an ordinary publish was most likely meant as an event.
fn with_hint(problem: Problem) -> Problem {
    let code = problem.code();
    if !matches!(code, Code::ValidationError | Code::MalformedJson | Code::UnsupportedMediaType) {
        return problem;
    }
    let faults = problem.clone().into_faults();
    if code == Code::ValidationError && !faults.iter().any(|fault| matches!(&*fault.pointer, "" | "/topicName")) {
        return problem;
    }
    let message = "is required of a CloudEvent in binary mode: name the topic as `?topic=NAME` \
                   (without it the body is read as an ordinary publish)";
    let hint = Fault { pointer: TOPIC.to_owned(), message: message.to_owned() };
    Problem::invalid(std::iter::once(hint).chain(faults).collect())
}

/// One event, checked.
#[derive(Debug)]
struct Event<'e> {
    attributes: Vec<(Cow<'e, str>, Cow<'e, str>)>,
    content_type: Arc<str>,
    data: Bytes,
    expires_at: Option<Timestamp>,
}

fn binary(reading: &Reading<'_>, headers: &HeaderMap, faults: &mut Faults) -> Event<'static> {
    let mut attributes = Vec::new();
    for name in headers.keys() {
        let Some(attribute) = name.as_str().strip_prefix(PREFIX) else { continue };
        let pointer = pointer_of([name.as_str()]);
        let mut values = headers.get_all(name).into_iter();
        match (values.next(), values.next()) {
            (_, Some(_)) => faults.push(pointer, "is there twice"),
            _ if attribute == DATA_CONTENT_TYPE => faults.push(pointer, "is the header `Content-Type` in binary mode"),
            (value, None) => {
                let value = from_header(value.map(|value| value.as_bytes()).unwrap_or_default());
                let value = faults.keep(&pointer, value);
                attributes.extend(value.map(|value| (Cow::Owned(attribute.to_owned()), Cow::Owned(value))));
            }
        }
    }
    check(&attributes, PREFIX, faults);
    let expires_at = expiry(reading, &attributes, PREFIX, faults);
    let is_empty = reading.bytes().is_empty();
    let content_type = match headers.get(header::CONTENT_TYPE) {
        // Clients that are given no type send this one by themselves; nobody sends a form without fields.
        Some(given) if is_empty && is_media_type(given.as_bytes(), &[FORM]) => json_media_type(),
        Some(given) => media_type("/content-type", given.to_str().unwrap_or_default(), faults),
        // Without data there is nothing that could have a type; the usual one stands for none.
        None if is_empty => json_media_type(),
        None => binary_media_type(),
    };
    Event { attributes, content_type, data: reading.bytes().clone(), expires_at }
}

/// The members of an event in JSON; a name that is there twice is an error.
#[derive(Debug)]
struct Members<'a> {
    members: Vec<(Text<'a>, &'a RawValue)>,
    /// There are more than an event may have.
    too_many: bool,
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Members<'a>, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let (mut members, mut too_many) = (Vec::<(Text<'de>, &'de RawValue)>::new(), false);
                while let Some(name) = map.next_key::<Text<'de>>()? {
                    if members.iter().any(|(known, _)| *known == name) {
                        return Err(serde::de::Error::custom(format_args!("duplicate field `{}`", name.0)));
                    }
                    if members.len() < MEMBERS_MAX {
                        members.push((name, map.next_value()?));
                    } else {
                        map.next_value::<IgnoredAny>()?;
                        too_many = true;
                    }
                }
                Ok(Members { members, too_many })
            }
        }
        source.deserialize_map(MembersVisitor)
    }
}

fn structured<'t>(
    reading: &Reading<'_>,
    text: &'t [u8],
    spare: &'t Spare,
    faults: &mut Faults,
) -> Result<Option<Event<'t>>, Problem> {
    let Some(Members { members, too_many }) = decode::<Members<'t>>(text, spare, faults)? else { return Ok(None) };
    if too_many {
        faults.push("", format!("an event has at most {HEADERS_MAX} attributes"));
    }
    let (mut attributes, mut content_type, mut data, mut base64) = (Vec::new(), None, None, None);
    for (Text(name), raw) in members {
        match &*name {
            "data" => data = Some(raw),
            // Here `null` says that there is none; as `data` it is a value like any other.
            "data_base64" => base64 = Some(raw).filter(|raw| raw.get() != "null"),
            DATA_CONTENT_TYPE => content_type = attribute(&name, raw, faults),
            _ => {
                let value = attribute(&name, raw, faults);
                attributes.extend(value.map(|value| (name, value)));
            }
        }
    }
    check(&attributes, "", faults);
    let expires_at = expiry(reading, &attributes, "", faults);
    let content_type = match content_type {
        Some(given) => media_type("/datacontenttype", &given, faults),
        None if base64.is_some() => binary_media_type(),
        None => json_media_type(),
    };
    let data = match (data, base64) {
        (Some(_), Some(_)) => {
            faults.push("/data_base64", "give `data` or `data_base64`, not both");
            None
        }
        (None, None) => Some(Bytes::new()),
        (None, Some(raw)) => string("/data_base64", raw, faults).and_then(|text| {
            let decoded = STANDARD.decode(text.as_bytes()).map_err(|error| format!("is not base64: {error}"));
            faults.keep("/data_base64", decoded).map(Bytes::from)
        }),
        (Some(raw), None) if is_json(&content_type) => Some(reading.share(raw.get())),
        (Some(raw), None) => string("/data", raw, faults).map(|text| match text {
            Cow::Borrowed(text) => reading.share(text),
            Cow::Owned(text) => text.into(),
        }),
    };
    Ok(data.map(|data| Event { attributes, content_type, data, expires_at }))
}

/// An attribute's value as text; none of one that is unset (`null`), or wrong.
fn attribute<'t>(name: &str, raw: &'t RawValue, faults: &mut Faults) -> Option<Cow<'t, str>> {
    let (written, pointer) = (raw.get(), pointer_of([name]));
    let is_string = is_core(name) || name == PARTITION_KEY || written.starts_with('"');
    match written.parse::<i32>() {
        _ if written == "null" => None,
        _ if is_string => string(&pointer, raw, faults),
        Ok(number) => Some(number.to_string().into()),
        Err(_) if matches!(written, "true" | "false") => Some(written.into()),
        Err(_) => {
            faults.push(pointer, "is a string, a whole number of 32 bits, or true or false");
            None
        }
    }
}

fn string<'t>(pointer: &str, raw: &'t RawValue, faults: &mut Faults) -> Option<Cow<'t, str>> {
    let text = serde_json::from_str::<Text<'t>>(raw.get());
    faults.keep(pointer, text.map_err(|_| "is a string of Unicode text")).map(|Text(text)| text)
}

/// Checks names, values, and whether they fit into a message; `prefix` is what the request has before the names.
fn check(attributes: &[(Cow<'_, str>, Cow<'_, str>)], prefix: &str, faults: &mut Faults) {
    let pointer = |name: &str| pointer_of([format!("{prefix}{name}")]);
    for (name, value) in attributes {
        faults.keep(&pointer(name), check_name(name).and_then(|()| check_value(name, value)));
        if name == PARTITION_KEY && value.len() > LABEL_BYTES_MAX {
            faults.push(pointer(name), format!("has at most {LABEL_BYTES_MAX} bytes"));
        }
    }
    for name in REQUIRED {
        faults.require(&pointer(name), attributes.iter().find(|(known, _)| known == name));
    }
    if attributes.len() > HEADERS_MAX {
        faults.push("", format!("an event has at most {HEADERS_MAX} attributes"));
    }
    let bytes = |(name, value): &(Cow<'_, str>, Cow<'_, str>)| PREFIX.len() + name.len() + header_bytes(value);
    let all: usize = attributes.iter().map(bytes).sum();
    if let Some((largest, _)) = attributes.iter().max_by_key(|attribute| bytes(attribute))
        && all > HEADERS_BYTES_MAX
    {
        let message =
            format!("attributes have at most {HEADERS_BYTES_MAX} bytes in all, as `ce-…` headers; these have {all}");
        faults.push(pointer(largest), message);
    }
}

/// When the event expires, by its own word.
fn expiry(
    reading: &Reading<'_>,
    attributes: &[(Cow<'_, str>, Cow<'_, str>)],
    prefix: &str,
    faults: &mut Faults,
) -> Option<Timestamp> {
    let (_, given) = attributes.iter().find(|(name, _)| name == EXPIRY_TIME)?;
    // What is no time at all was said of the attribute already.
    let at = Timestamp::parse_rfc3339(given).ok()?;
    if at <= reading.now() {
        faults.push(pointer_of([format!("{prefix}{EXPIRY_TIME}")]), "is past");
    }
    Some(at)
}

impl Event<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// The trace in which the event came to be; none of what is malformed, which stays an attribute like any other.
    fn trace(&self) -> Option<TraceContext> {
        let mut context = parse_traceparent(self.get(TRACE_PARENT)?)?;
        context.state = self.get(TRACE_STATE).and_then(parse_tracestate);
        Some(context)
    }

    fn into_request(mut self, reading: &Reading<'_>, topic: Arc<Topic>) -> PublishRequest {
        // One order for all modes and clients, since a repeat is told by what is stored.
        let rank = |name: &str| REQUIRED.iter().position(|required| *required == name).unwrap_or(REQUIRED.len());
        self.attributes.sort_unstable_by(|(a, _), (b, _)| (rank(a), a).cmp(&(rank(b), b)));
        let by_identity = || Some(identity(self.get("source")?, self.get("id")?));
        PublishRequest {
            key: self.get(PARTITION_KEY).map(Arc::from),
            idempotency_key: reading.header_key().or_else(by_identity),
            trace: reading.trace_of_event(|| self.trace()),
            headers: self
                .attributes
                .iter()
                .map(|(name, value)| (format!("{PREFIX}{name}").into(), (&**value).into()))
                .collect(),
            expires_at: self.expires_at,
            ..PublishRequest::new(topic, self.data, self.content_type)
        }
    }
}

#[cfg(test)]
mod tests;
