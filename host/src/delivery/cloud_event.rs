//! A message as a CloudEvent 1.0, as webhooks send it: in binary mode (attributes in headers, payload as body) or in structured
//! mode (one JSON document). Invariant: a message that came in as an event goes out with the attributes that it came with and no
//! others; any other gets the attributes that are made here, from the message alone, so that all attempts send the same. Never
//! sends what no event may hold: that is left out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::envelope::{PushBody, text_of};
use crate::message::cloud_event::{
    DATA_CONTENT_TYPE, PARTITION_KEY, PREFIX, REQUIRED, VERSION, check_name, check_value, is_core, to_header,
};
use crate::message::{Message, TopicName, is_json, json_media_type};

/// The media type of an event in structured mode.
const STRUCTURED_CONTENT_TYPE: &str = "application/cloudevents+json";
/// The `type` of a message that says nothing else.
const TYPE: &str = "sluice.message";
/// Characters of a name that is made of a header's: what the specification advises, and some of its libraries demand.
const MADE_NAME_MAX: usize = 20;

/// In binary mode.
pub(super) fn binary(topic: &TopicName, message: &Message) -> PushBody {
    let header = |(name, value): (&Cow<'_, str>, &Cow<'_, str>)| {
        let name = HeaderName::try_from(format!("{PREFIX}{name}")).ok()?;
        Some((name, HeaderValue::try_from(to_header(value)).ok()?))
    };
    PushBody {
        bytes: message.payload.clone(),
        content_type: content_type(message).cloned(),
        headers: attributes(topic, message).iter().filter_map(header).collect(),
    }
}

/// In structured mode.
pub(super) fn structured(topic: &TopicName, message: &Message) -> PushBody {
    let content_type = content_type(message).map(|text| &**text);
    let document = Document { attributes: attributes(topic, message), content_type, data: Data::of(message) };
    let bytes = serde_json::to_vec(&document).expect("text under text keys is JSON, and so is the payload then");
    PushBody::new(bytes.into(), STRUCTURED_CONTENT_TYPE.into())
}

/// The data's media type. No payload is no data; unless another type was named, it has none then.
fn content_type(message: &Message) -> Option<&Arc<str>> {
    let named = &message.meta.content_type;
    (!message.payload.is_empty() || **named != *json_media_type()).then_some(named)
}

type Attributes<'m> = BTreeMap<Cow<'m, str>, Cow<'m, str>>;

/// All but `datacontenttype`.
fn attributes<'m>(topic: &TopicName, message: &'m Message) -> Attributes<'m> {
    let mut attributes = Attributes::new();
    for (header, value) in &message.meta.headers {
        if let Some(name) = header.strip_prefix(PREFIX)
            && name != DATA_CONTENT_TYPE
            && check_name(name).is_ok()
            && check_value(name, value).is_ok()
        {
            attributes.entry(name.into()).or_insert_with(|| (&**value).into());
        }
    }
    if !REQUIRED.iter().all(|name| attributes.contains_key(*name)) {
        complete(&mut attributes, topic, message);
    }
    attributes
}

/// What a message that came in as no event is told of as one.
fn complete<'m>(attributes: &mut Attributes<'m>, topic: &TopicName, message: &'m Message) {
    let meta = &message.meta;
    let mut offer = |name: Cow<'m, str>, value: Cow<'m, str>| {
        if check_value(&name, &value).is_ok() {
            attributes.entry(name).or_insert(value);
        }
    };
    offer("specversion".into(), VERSION.into());
    offer("id".into(), message.id.to_string().into());
    offer("source".into(), format!("/topics/{topic}", topic = topic.as_str()).into());
    offer("type".into(), TYPE.into());
    offer("time".into(), meta.published_at.rfc3339().into());
    let trace = meta.trace.as_ref();
    for (name, value) in [
        (PARTITION_KEY, meta.key.as_ref()),
        ("correlationid", meta.correlation_id.as_ref()),
        ("replyto", meta.reply_to.as_ref()),
        ("schemaversion", meta.schema_version.as_ref()),
        ("traceparent", trace.map(|trace| &trace.parent)),
        ("tracestate", trace.and_then(|trace| trace.state.as_ref())),
    ] {
        if let Some(value) = value {
            offer(name.into(), (&**value).into());
        }
    }
    if meta.priority > 0 {
        offer("priority".into(), meta.priority.to_string().into());
    }
    for (header, value) in meta.headers.iter().filter(|(header, _)| !header.starts_with(PREFIX)) {
        if let Some(name) = made_name(header) {
            offer(name.into(), (&**value).into());
        }
    }
}

/// The extension attribute that a header becomes: `X-Env` is `xenv`. What would take the place of an attribute of the
/// specification, or is too long, becomes none.
fn made_name(header: &str) -> Option<String> {
    let kept = header.chars().filter(char::is_ascii_alphanumeric);
    let name: String = kept.map(|character| character.to_ascii_lowercase()).collect();
    (name.len() <= MADE_NAME_MAX && check_name(&name).is_ok() && !is_core(&name)).then_some(name)
}

/// A payload as JSON has it.
enum Data<'m> {
    None,
    /// As it is.
    Json(&'m RawValue),
    Text(&'m str),
    Binary(&'m [u8]),
}

impl<'m> Data<'m> {
    fn of(message: &'m Message) -> Data<'m> {
        let (payload, content_type) = (&message.payload[..], &*message.meta.content_type);
        if payload.is_empty() {
            return Data::None;
        }
        if is_json(content_type) {
            // What says that it is JSON and is none would be another thing as a JSON string.
            return serde_json::from_slice(payload).map_or(Data::Binary(payload), Data::Json);
        }
        text_of(payload, content_type).map_or(Data::Binary(payload), Data::Text)
    }
}

struct Document<'m> {
    attributes: Attributes<'m>,
    content_type: Option<&'m str>,
    data: Data<'m>,
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in &self.attributes {
            map.serialize_entry(name, value)?;
        }
        if let Some(content_type) = self.content_type {
            map.serialize_entry(DATA_CONTENT_TYPE, content_type)?;
        }
        match self.data {
            Data::None => {}
            Data::Json(raw) => map.serialize_entry("data", raw)?,
            Data::Text(text) => map.serialize_entry("data", text)?,
            Data::Binary(bytes) => map.serialize_entry("data_base64", &STANDARD.encode(bytes))?,
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::clock::Timestamp;
    use crate::message::{MessageId, MessageMeta, TopicId, TraceContext};

    fn message(payload: &'static [u8], content_type: &str, headers: &[(&str, &str)]) -> Message {
        Message {
            id: MessageId::new(Timestamp(1_700_000_000_250), TopicId(7), 3, 42),
            payload: Bytes::from_static(payload),
            meta: MessageMeta {
                content_type: content_type.into(),
                schema_version: None,
                headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
                priority: 0,
                key: None,
                correlation_id: None,
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

    fn topic() -> TopicName {
        "orders".parse().unwrap()
    }

    fn document(message: &Message) -> Value {
        let body = structured(&topic(), message);
        assert_eq!(body.content_type.as_deref(), Some("application/cloudevents+json"));
        assert!(body.headers.is_empty());
        serde_json::from_slice(&body.bytes).unwrap()
    }

    fn headers(message: &Message) -> BTreeMap<String, String> {
        let body = binary(&topic(), message);
        assert_eq!(body.bytes, message.payload);
        let text = |(name, value): (HeaderName, HeaderValue)| (name.to_string(), value.to_str().unwrap().to_owned());
        body.headers.into_iter().map(text).collect()
    }

    #[test]
    fn a_message_that_is_no_event_gets_the_attributes_that_are_documented() {
        let mut message = message(b"{\"a\": 1.50}", "application/json", &[]);
        let id = message.id.to_string();
        assert_eq!(
            document(&message),
            json!({
                "specversion": "1.0", "id": id, "source": "/topics/orders", "type": "sluice.message",
                "time": "2023-11-14T22:13:20.250Z", "datacontenttype": "application/json", "data": {"a": 1.50},
            })
        );
        message.meta.key = Some("größe 1".into());
        message.meta.priority = 5;
        message.meta.correlation_id = Some("c".into());
        message.meta.reply_to = Some("answers".into());
        message.meta.schema_version = Some("2".into());
        message.meta.trace = Some(TraceContext { parent: "00-a-b-01".into(), state: Some("v=1".into()) });
        let expected = [
            ("ce-correlationid", "c"),
            ("ce-id", &*id),
            ("ce-partitionkey", "gr%C3%B6%C3%9Fe%201"),
            ("ce-priority", "5"),
            ("ce-replyto", "answers"),
            ("ce-schemaversion", "2"),
            ("ce-source", "/topics/orders"),
            ("ce-specversion", "1.0"),
            ("ce-time", "2023-11-14T22:13:20.250Z"),
            ("ce-traceparent", "00-a-b-01"),
            ("ce-tracestate", "v=1"),
            ("ce-type", "sluice.message"),
        ];
        assert_eq!(headers(&message), expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        assert_eq!(document(&message)["partitionkey"], "größe 1");
    }

    #[test]
    fn headers_become_extensions_where_a_name_can_be_made_of_theirs() {
        let own = [
            ("kind", "test"),
            ("X-Env", "prod"),
            ("x_env", "second"),
            ("source", "ci"),
            ("data", "x"),
            ("datacontenttype", "x"),
            ("a-header-whose-name-is-too-long", "x"),
            ("--", "x"),
            ("tab", "a\tb"),
            ("ce-type", "order.created"),
            ("ce-time", "yesterday"),
            ("ce-Upper", "x"),
        ];
        let written = document(&message(b"", "application/json", &own));
        let names: Vec<&str> = written.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["id", "kind", "source", "specversion", "time", "type", "xenv"]);
        assert_eq!((&written["kind"], &written["xenv"]), (&json!("test"), &json!("prod")));
        assert_eq!((&written["type"], &written["source"]), (&json!("order.created"), &json!("/topics/orders")));
        assert_eq!(written["time"], "2023-11-14T22:13:20.250Z");
    }

    #[test]
    fn an_event_goes_out_with_its_own_attributes_and_no_others() {
        let own = [
            ("ce-specversion", "1.0"),
            ("ce-id", "A 1"),
            ("ce-source", "/mine"),
            ("ce-type", "t"),
            ("ce-ext", "€"),
            ("kind", "set by a stage"),
        ];
        let mut message = message(b"<a/>", "text/xml", &own);
        message.meta.key = Some("k".into());
        message.meta.trace = Some(TraceContext { parent: "00-a-b-01".into(), state: None });
        let written = document(&message);
        let expected = json!({
            "specversion": "1.0", "id": "A 1", "source": "/mine", "type": "t", "ext": "€",
            "datacontenttype": "text/xml", "data": "<a/>",
        });
        assert_eq!(written, expected);
        let headers = headers(&message);
        assert_eq!((headers.len(), &*headers["ce-id"], &*headers["ce-ext"]), (5, "A%201", "%E2%82%AC"));
    }

    #[test]
    fn data_is_json_text_or_base64_as_it_is() {
        let cases: [(&'static [u8], &str, Value); 9] = [
            (b"{\"a\":1}", "application/json", json!({"data": {"a": 1}})),
            (b" null ", "Text/JSON; charset=utf-8", json!({"data": null})),
            (b"\"x\"", "application/vnd.x+json", json!({"data": "x"})),
            (b"{half", "application/json", json!({"data_base64": "e2hhbGY="})),
            (b"a,b", "text/csv", json!({"data": "a,b"})),
            (b"ascii", "application/octet-stream", json!({"data_base64": "YXNjaWk="})),
            (b"\xff", "text/plain", json!({"data_base64": "/w=="})),
            (b"", "text/plain", json!({})),
            (b"", "application/json", json!({})),
        ];
        for (payload, content_type, expected) in cases {
            let written = document(&message(payload, content_type, &[]));
            let has_type = written.get("datacontenttype").is_some();
            assert_eq!(has_type, !payload.is_empty() || content_type != "application/json", "{content_type}");
            for member in ["data", "data_base64"] {
                assert_eq!(written.get(member), expected.get(member), "{content_type}: {written}");
            }
        }
        let exact = structured(&topic(), &message(b"{\"a\" : 1.50}", "application/json", &[])).bytes;
        assert!(exact.ends_with(b"\"data\":{\"a\" : 1.50}}"), "{exact:?}");
        assert_eq!(binary(&topic(), &message(b"", "application/json", &[])).content_type, None);
        assert_eq!(binary(&topic(), &message(b"", "text/csv", &[])).content_type.as_deref(), Some("text/csv"));
    }
}
