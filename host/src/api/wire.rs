//! Values as JSON and queries have them: times, durations, seconds. Invariant: what is written here reads back as the same value.
//! Never checks ranges: those are the routes'.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{KnownFormat, RefOr, Schema, SchemaFormat};

use crate::clock::Timestamp;
use crate::config::{format_duration, parse_duration};

/// A time: RFC 3339, UTC when written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.rfc3339())
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Time, D::Error> {
        let text = Cow::<'de, str>::deserialize(source)?;
        Timestamp::parse_rfc3339(&text).map(Time).map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for Time {
    fn schema() -> RefOr<Schema> {
        let format = SchemaFormat::KnownFormat(KnownFormat::DateTime);
        ObjectBuilder::new().schema_type(Type::String).format(Some(format)).into()
    }
}

impl utoipa::ToSchema for Time {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Time")
    }
}

/// A duration: ISO 8601, `P7D`, `PT30S`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iso(pub Duration);

impl Serialize for Iso {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Iso {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Iso, D::Error> {
        let text = Cow::<'de, str>::deserialize(source)?;
        parse_duration(&text).map(Iso).map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for Iso {
    fn schema() -> RefOr<Schema> {
        let format = SchemaFormat::Custom("duration".to_owned());
        ObjectBuilder::new().schema_type(Type::String).format(Some(format)).examples(["PT30S"]).into()
    }
}

impl utoipa::ToSchema for Iso {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Duration")
    }
}

/// A short wait: whole seconds, as the guide's queries have them, or ISO 8601.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub Duration);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Seconds, D::Error> {
        struct SecondsVisitor;
        impl serde::de::Visitor<'_> for SecondsVisitor {
            type Value = Seconds;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of seconds, or a duration such as PT30S")
            }
            fn visit_u64<E: serde::de::Error>(self, seconds: u64) -> Result<Seconds, E> {
                Ok(Seconds(Duration::from_secs(seconds)))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Seconds, E> {
                match text.parse() {
                    Ok(seconds) => self.visit_u64(seconds),
                    Err(_) => parse_duration(text).map(Seconds).map_err(E::custom),
                }
            }
        }
        source.deserialize_any(SecondsVisitor)
    }
}

impl utoipa::PartialSchema for Seconds {
    fn schema() -> RefOr<Schema> {
        let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
        utoipa::openapi::OneOfBuilder::new()
            .item(number)
            .item(<Iso as utoipa::PartialSchema>::schema())
            .description(Some("Seconds, or an ISO 8601 duration"))
            .into()
    }
}

impl utoipa::ToSchema for Seconds {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Seconds")
    }
}
