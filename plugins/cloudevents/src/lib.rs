//! The `cloudevents` stage: brings every message into one form, an event in binary or in structured mode, or no event at all.
//! Invariant: the forms are those that the broker takes and sends, so an event that passes through here is the same one for
//! its consumers. Never changes a message that has the form already.

mod attribute;
mod event;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use sluice_plugin::{Error, Failure, Message, Stage};

use attribute::{DATA_CONTENT_TYPE, PARTITION_KEY, PREFIX, REQUIRED, check_value, is_core, is_name, rfc3339};
use event::Event;

pub use event::NOT_A_CLOUDEVENT;

/// Characters of an attribute's name that is made of a header's: what the specification advises.
const MADE_NAME_MAX: usize = 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    /// The form that every message gets.
    to: Form,
    /// The `source` of a message that was no event; `/topics/` and the topic's name unless said.
    source: Option<String>,
    /// Its `type`; `sluice.message` unless said.
    r#type: Option<String>,
    /// A JSON Pointer to its `type` in the payload, tried first.
    type_pointer: Option<String>,
    /// A JSON Pointer to its `subject` in the payload.
    subject_pointer: Option<String>,
}

/// How a message can be one event, or none.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
enum Form {
    /// Attributes in `ce-…` headers, the data as payload.
    Binary,
    /// One JSON document.
    Structured,
    /// The data alone.
    Plain,
}

/// The stage: the form to bring messages into, and what they are told of as events.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Config")]
pub struct CloudEvents {
    to: Form,
    source: Option<String>,
    r#type: String,
    type_pointer: Option<String>,
    subject_pointer: Option<String>,
}

impl TryFrom<Config> for CloudEvents {
    type Error = String;

    fn try_from(config: Config) -> Result<Self, String> {
        let Config { to, source, r#type, type_pointer, subject_pointer } = config;
        let r#type = r#type.unwrap_or_else(|| "sluice.message".into());
        for (name, value) in [("source", source.as_deref()), ("type", Some(&*r#type))] {
            value.map_or(Ok(()), |value| check_value(name, value)).map_err(|what| format!("`{name}` {what}"))?;
        }
        for (name, pointer) in [("typePointer", &type_pointer), ("subjectPointer", &subject_pointer)] {
            if let Some(pointer) = pointer.as_deref().filter(|p| !p.is_empty() && !p.starts_with('/')) {
                return Err(format!("`{name}`: {pointer:?} is no JSON Pointer: it starts with `/` (RFC 6901)"));
            }
        }
        Ok(Self { to, source, r#type, type_pointer, subject_pointer })
    }
}

impl Stage for CloudEvents {
    fn process(&self, batch: &sluice_plugin::Batch<'_>) -> Result<(), Error> {
        let source = self.source.clone().unwrap_or_else(|| format!("/topics/{}", batch.topic()));
        for message in batch {
            match self.convert(&message, &source) {
                Ok(()) => {}
                Err(Failure::Rejection(rejection)) => message.reject(rejection),
                Err(Failure::Fault(error)) => return Err(error),
            }
        }
        Ok(())
    }
}

/// How a message comes in.
enum Found {
    Structured,
    /// With its attributes.
    Binary(BTreeMap<String, String>),
    /// With those attributes that it has all the same.
    Plain(BTreeMap<String, String>),
}

impl CloudEvents {
    fn convert(&self, message: &Message<'_>, source: &str) -> Result<(), Failure> {
        match (found(message), self.to) {
            (Found::Structured, Form::Structured)
            | (Found::Binary(_), Form::Binary)
            | (Found::Plain(_), Form::Plain) => {}
            (Found::Structured, to) => match Event::read(&message.payload()) {
                Ok(event) => unpack(message, event, to == Form::Binary),
                Err(faults) => faults.into_iter().for_each(|fault| message.reject(fault)),
            },
            (Found::Binary(attributes), Form::Structured) => pack(message, attributes)?,
            (Found::Binary(_), _) => remove_attributes(message),
            (Found::Plain(own), Form::Binary) => {
                for (name, value) in self.told(message, own, source) {
                    message.set_header(&format!("{PREFIX}{name}"), &value);
                }
            }
            (Found::Plain(own), _) => {
                let mut attributes = self.told(message, own, source);
                of_headers(message, &mut attributes);
                pack(message, attributes)?;
            }
        }
        Ok(())
    }

    /// The attributes of a message that was no event: what it says itself comes first.
    fn told(&self, message: &Message<'_>, own: BTreeMap<String, String>, source: &str) -> BTreeMap<String, String> {
        let payload = (self.type_pointer.is_some() || self.subject_pointer.is_some())
            .then(|| serde_json::from_slice::<Value>(&message.payload()).ok())
            .flatten();
        let at = |pointer: &Option<String>| {
            let value = payload.as_ref()?.pointer(pointer.as_deref()?)?;
            match value {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            }
        };
        let r#type = at(&self.type_pointer).filter(|found| check_value("type", found).is_ok());
        let priority = message.priority();
        let mut attributes = own;
        for (name, value) in [
            ("specversion", Some("1.0".to_owned())),
            ("id", Some(message.id())),
            ("source", Some(source.to_owned())),
            ("type", Some(r#type.unwrap_or_else(|| self.r#type.clone()))),
            ("subject", at(&self.subject_pointer)),
            ("time", Some(rfc3339(message.published_at_ms()))),
            (PARTITION_KEY, message.key()),
            ("correlationid", message.correlation_id()),
            ("schemaversion", message.schema_version()),
            ("priority", (priority > 0).then(|| priority.to_string())),
        ] {
            if let Some(value) = value.filter(|value| check_value(name, value).is_ok()) {
                attributes.entry(name.to_owned()).or_insert(value);
            }
        }
        attributes
    }
}

fn found(message: &Message<'_>) -> Found {
    if event::essence(&message.content_type()).eq_ignore_ascii_case(event::STRUCTURED) {
        return Found::Structured;
    }
    let attribute = |header: String| {
        let name = header.strip_prefix(PREFIX).filter(|name| is_name(name) && *name != DATA_CONTENT_TYPE)?;
        let value = message.header(&header)?;
        check_value(name, &value).ok().map(|()| (name.to_owned(), value))
    };
    let attributes: BTreeMap<String, String> = message.header_names().into_iter().filter_map(attribute).collect();
    let is_event = REQUIRED.iter().all(|name| attributes.contains_key(*name));
    if is_event { Found::Binary(attributes) } else { Found::Plain(attributes) }
}

/// Extension attributes of the message's other headers, as webhooks get them: `X-Env` is `xenv`.
fn of_headers(message: &Message<'_>, attributes: &mut BTreeMap<String, String>) {
    for header in message.header_names() {
        let letters = header.chars().filter(char::is_ascii_alphanumeric);
        let name: String = letters.map(|letter| letter.to_ascii_lowercase()).collect();
        let is_free = !attributes.contains_key(&name) && name.len() <= MADE_NAME_MAX && !is_core(&name);
        if header.starts_with(PREFIX) || !is_free || !is_name(&name) {
            continue;
        }
        if let Some(value) = message.header(&header).filter(|value| check_value(&name, value).is_ok()) {
            attributes.insert(name, value);
        }
    }
}

/// Into structured mode.
fn pack(message: &Message<'_>, attributes: BTreeMap<String, String>) -> Result<(), Error> {
    let event = Event { attributes, content_type: message.content_type(), data: message.payload() };
    let document = event.write().map_err(|e| Error::new(format!("the event can't be written: {e}")))?;
    remove_attributes(message);
    message.set_content_type(event::STRUCTURED);
    message.set_payload(document);
    Ok(())
}

/// Out of structured mode: into binary mode, or into a message that is no event.
fn unpack(message: &Message<'_>, event: Event, with_attributes: bool) {
    remove_attributes(message);
    // The broker takes an event's key from it as well; on the way out a message's key is what it is.
    if let Some(key) = event.attributes.get(PARTITION_KEY)
        && message.position().is_none()
        && message.key().is_none()
    {
        message.set_key(Some(key));
    }
    if with_attributes {
        for (name, value) in &event.attributes {
            message.set_header(&format!("{PREFIX}{name}"), value);
        }
    }
    message.set_content_type(&event.content_type);
    message.set_payload(event.data);
}

fn remove_attributes(message: &Message<'_>) {
    for header in message.header_names().iter().filter(|header| header.starts_with(PREFIX)) {
        message.remove_header(header);
    }
}

sluice_plugin::export!(CloudEvents);
