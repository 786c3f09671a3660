//! An event apart from the form that it comes in, and its structured form: one JSON document.
//! Invariant: the bytes of the data stay what they are in every form; a JSON document that is no event is told every fault of
//! it. Never looks at a message.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value, value::RawValue};
use sluice_plugin::Rejection;

use crate::attribute::{DATA_CONTENT_TYPE, REQUIRED, check_value, is_name};

/// The media type of the structured form.
pub(crate) const STRUCTURED: &str = "application/cloudevents+json";
/// What data is that doesn't say.
pub(crate) const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";
/// Attributes of an event: as many as a message may have headers.
const ATTRIBUTES_MAX: usize = 64;

/// The code of a rejection of what says that it is an event and is none.
pub const NOT_A_CLOUDEVENT: &str = "NOT_A_CLOUDEVENT";

/// An event, whatever form it came in.
#[derive(Debug)]
pub(crate) struct Event {
    /// All but `datacontenttype`.
    pub attributes: BTreeMap<String, String>,
    pub content_type: String,
    pub data: Vec<u8>,
}

fn fault(member: &str, what: &str) -> Rejection {
    let pointer = format!("/{}", member.replace('~', "~0").replace('/', "~1"));
    Rejection::new(NOT_A_CLOUDEVENT, format!("{member} {what}")).at(pointer)
}

impl Event {
    /// Reads the structured form.
    pub fn read(document: &[u8]) -> Result<Self, Vec<Rejection>> {
        let Members(members) = serde_json::from_slice(document).map_err(|e| vec![e.into()])?;
        let said: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
        let missing = REQUIRED.iter().filter(|name| !said.contains(name)).map(|name| fault(name, "is required"));
        let mut faults: Vec<Rejection> = missing.collect();
        let (mut attributes, mut data, mut base64) = (BTreeMap::new(), None, None);
        for (name, raw) in &members {
            let is_null = raw.get() == "null";
            match name.as_str() {
                "data" => data = Some(*raw),
                "data_base64" if is_null => {}
                "data_base64" => base64 = Some(*raw),
                name if is_null && !REQUIRED.contains(&name) => {}
                name => match attribute(name, raw) {
                    Ok(value) => drop(attributes.insert(name.to_owned(), value)),
                    Err(what) => faults.push(fault(name, what)),
                },
            }
        }
        if attributes.len() > ATTRIBUTES_MAX {
            let why = format!("it has {} attributes; at most {ATTRIBUTES_MAX} are allowed", attributes.len());
            faults.push(Rejection::new(NOT_A_CLOUDEVENT, why).at(""));
        }
        let named = attributes.remove(DATA_CONTENT_TYPE);
        let (data, usual) = match (data, base64) {
            (Some(_), Some(_)) => {
                faults.push(fault("data_base64", "excludes data"));
                (Vec::new(), JSON)
            }
            (None, Some(raw)) => {
                let decoded =
                    serde_json::from_str::<String>(raw.get()).ok().and_then(|text| STANDARD.decode(text).ok());
                if decoded.is_none() {
                    faults.push(fault("data_base64", "is a string of base64"));
                }
                (decoded.unwrap_or_default(), BYTES)
            }
            // A string stands for its text where the data is of no JSON; all else stays the text that it is.
            (Some(raw), None) => {
                let is_text = named.as_deref().is_some_and(|named| !is_json(named));
                let text = if is_text { serde_json::from_str::<String>(raw.get()).ok() } else { None };
                (text.unwrap_or_else(|| raw.get().to_owned()).into_bytes(), JSON)
            }
            (None, None) => (Vec::new(), JSON),
        };
        let content_type = named.unwrap_or_else(|| usual.to_owned());
        if faults.is_empty() { Ok(Self { attributes, content_type, data }) } else { Err(faults) }
    }

    /// The structured form.
    pub fn write(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

/// The text of an attribute: strings, whole numbers and truth values have one.
fn attribute(name: &str, raw: &RawValue) -> Result<String, &'static str> {
    if !is_name(name) {
        return Err("is no attribute: their names are of lower-case letters and digits");
    }
    let value = match serde_json::from_str(raw.get()) {
        Ok(Value::String(text)) => text,
        Ok(Value::Bool(truth)) => truth.to_string(),
        Ok(Value::Number(number)) if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => number.to_string(),
        _ => return Err("is a string, a whole number of 32 bits, or a truth value"),
    };
    check_value(name, &value).map(|()| value)
}

impl Serialize for Event {
    /// As the broker writes events for webhooks: JSON inline, other text as a string, base64 else.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in &self.attributes {
            map.serialize_entry(name, value)?;
        }
        if !self.data.is_empty() || self.content_type != JSON {
            map.serialize_entry(DATA_CONTENT_TYPE, &self.content_type)?;
        }
        if self.data.is_empty() {
            return map.end();
        }
        let text = if is_binary(&self.content_type) { None } else { std::str::from_utf8(&self.data).ok() };
        match serde_json::from_slice::<&RawValue>(&self.data) {
            Ok(raw) if is_json(&self.content_type) => map.serialize_entry("data", raw)?,
            _ if is_json(&self.content_type) => map.serialize_entry("data_base64", &STANDARD.encode(&self.data))?,
            _ => match text {
                Some(text) => map.serialize_entry("data", text)?,
                None => map.serialize_entry("data_base64", &STANDARD.encode(&self.data))?,
            },
        }
        map.end()
    }
}

/// A media type without its parameters.
pub(crate) fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

pub(crate) fn is_json(content_type: &str) -> bool {
    let Some((_, name)) = essence(content_type).rsplit_once('/') else { return false };
    let suffix = name.rsplit_once('+').map_or(name, |(_, suffix)| suffix);
    suffix.eq_ignore_ascii_case("json")
}

/// Whether data of this type is no text even where its bytes look like one.
fn is_binary(content_type: &str) -> bool {
    const KINDS: [&str; 4] = ["image", "audio", "video", "font"];
    const TYPES: [&str; 13] = [
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
    let Some((kind, name)) = essence(content_type).split_once('/') else { return false };
    if name.ends_with("+xml") || name.ends_with("+json") {
        return false;
    }
    let is = |known: &&str, this: &str| known.eq_ignore_ascii_case(this);
    KINDS.iter().any(|known| is(known, kind))
        || (kind.eq_ignore_ascii_case("application") && TYPES.iter().any(|known| is(known, name)))
}

/// The members of an object, each once, their values as they are written.
struct Members<'d>(Vec<(String, &'d RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event, a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members: BTreeMap<String, &'de RawValue> = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, _>()? {
                    if members.insert(name.clone(), value).is_some() {
                        return Err(serde::de::Error::custom(format!("{name} stands there twice")));
                    }
                }
                Ok(Members(members.into_iter().collect()))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}
