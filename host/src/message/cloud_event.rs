//! The attributes of a CloudEvent, version 1.0: their names, what their values may be, how they are written into HTTP headers.
//! A message that is an event has each of them as a header of its own, named as the HTTP binding names it: `ce-id`,
//! `ce-type`, …. Invariant: an attribute that passes the checks can be written in every mode of the binding. Never reads a
//! request.

use std::sync::Arc;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};
use sha2::{Digest as _, Sha256};

use crate::clock::Timestamp;

/// The one version that is spoken.
pub const VERSION: &str = "1.0";
/// Before an attribute's name, in HTTP and in a message's headers.
pub const PREFIX: &str = "ce-";
/// What every event has, in the order in which they are stored.
pub const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];
/// The attribute that is the message's media type: it is no header, neither in HTTP nor of a message.
pub const DATA_CONTENT_TYPE: &str = "datacontenttype";
/// The attribute of the partitioning extension: messages of one key keep their order.
pub const PARTITION_KEY: &str = "partitionkey";
/// The attribute of the expiration extension: after this time nobody wants the event any more.
pub const EXPIRY_TIME: &str = "expirytime";
/// The attributes of the distributed tracing extension: the trace in which the event came to be.
pub const TRACE_PARENT: &str = "traceparent";
/// Goes with [`TRACE_PARENT`].
pub const TRACE_STATE: &str = "tracestate";

/// Bytes of an idempotency key that is made from an event's attributes; longer ones are hashed.
const IDENTITY_BYTES_MAX: usize = 1024;
/// Between the parts of such a key. Neither attributes nor the keys that publishers choose may hold it, so one event's key is
/// no other's and nobody's own.
const IDENTITY_SEPARATOR: char = '\u{1f}';

/// What the binding has percent-encoded, besides all that is not ASCII (HTTP binding, section 3.1.3.2).
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Whether this attribute is defined by the specification itself, not by an extension: those of JSON are strings.
#[must_use]
pub fn is_core(name: &str) -> bool {
    matches!(name, "specversion" | "id" | "source" | "type" | "subject" | "time" | "dataschema" | "datacontenttype")
}

/// Whether an attribute may have this name: lower-case letters and digits, and not `data`, which is no attribute.
///
/// # Errors
/// What a name is, as the end of a sentence.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name == "data" {
        return Err("is no attribute: the data of an event stands for itself");
    }
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
        return Err("is no attribute: their names are of lower-case letters and digits");
    }
    Ok(())
}

/// Whether the attribute may have this value.
///
/// # Errors
/// What it may have, as the end of a sentence.
pub fn check_value(name: &str, value: &str) -> Result<(), &'static str> {
    if value.chars().any(is_forbidden) {
        return Err("has a character that no attribute may have (a control character, or no character at all)");
    }
    match name {
        "specversion" if value != VERSION => Err("is 1.0: no other version of CloudEvents is spoken"),
        "id" | "type" | "subject" | PARTITION_KEY if value.is_empty() => Err("is not empty"),
        "source" if !is_uri_reference(value) => {
            Err("is a URI or a reference to one such as /sensors/7 (RFC 3986), not empty")
        }
        "dataschema" if !is_uri(value) => Err("is an absolute URI (RFC 3986)"),
        "time" | EXPIRY_TIME if !is_time(value) => Err("is an RFC 3339 time such as 2026-01-31T12:00:00Z"),
        _ => Ok(()),
    }
}

/// What no string of an event holds: control characters, and code points that are no characters.
fn is_forbidden(character: char) -> bool {
    let code = u32::from(character);
    character.is_control() || (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}

fn is_uri_reference(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
    let escaped = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    !text.is_empty()
        && text.bytes().all(allowed)
        && text.split('%').skip(1).all(escaped)
        && text.bytes().filter(|byte| *byte == b'#').count() <= 1
}

fn is_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let in_scheme = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(in_scheme)
        && !rest.is_empty()
        && is_uri_reference(text)
}

/// `2026-01-31T12:00:00.5+01:00`: what reads times for the API takes other forms of ISO 8601 too.
fn is_time(text: &str) -> bool {
    let digits = |text: &str, shape: &str| {
        text.len() == shape.len()
            && text.bytes().zip(shape.bytes()).all(|(byte, shape)| match shape {
                b'0' => byte.is_ascii_digit(),
                other => byte.eq_ignore_ascii_case(&other),
            })
    };
    let Some((start, rest)) = text.split_at_checked("0000-00-00T00:00:00".len()) else { return false };
    let fraction = rest.strip_prefix('.').map(|rest| rest.trim_start_matches(|digit: char| digit.is_ascii_digit()));
    let is_fraction = fraction.is_none_or(|zone| rest.len() > zone.len() + 1);
    let zone = fraction.unwrap_or(rest);
    digits(start, "0000-00-00T00:00:00")
        && is_fraction
        && (digits(zone, "Z") || digits(zone, "+00:00") || digits(zone, "-00:00"))
        && Timestamp::parse_rfc3339(text).is_ok()
}

/// The value as an HTTP header holds it.
#[must_use]
pub fn to_header(value: &str) -> String {
    utf8_percent_encode(value, ENCODED).to_string()
}

/// How many bytes [`to_header`] makes of the value.
#[must_use]
pub fn header_bytes(value: &str) -> usize {
    utf8_percent_encode(value, ENCODED).map(str::len).sum()
}

/// The value that an HTTP header holds, by the binding's two steps: one string in double quotes is taken out of them, as
/// earlier versions of the binding wrote values, then percent-encodings are resolved, once.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub fn from_header(written: &[u8]) -> Result<String, &'static str> {
    let unquoted = unquoted(written);
    let decoded = percent_decode(unquoted.as_deref().unwrap_or(written)).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| "is UTF-8, percent-encoded where it is not printable ASCII")
}

/// What stands in the double quotes; none if this is not one quoted string from its beginning to its end.
fn unquoted(written: &[u8]) -> Option<Vec<u8>> {
    let inner = written.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let (mut text, mut bytes) = (Vec::with_capacity(inner.len()), inner.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => text.push(*bytes.next()?),
            b'"' => return None,
            other => text.push(*other),
        }
    }
    Some(text)
}

/// The idempotency key of an event whose publisher gave none: an event is identified by its source and id, so what has both
/// again is the same one again.
#[must_use]
pub fn identity(source: &str, id: &str) -> Arc<str> {
    let key = format!("ce{IDENTITY_SEPARATOR}{source}{IDENTITY_SEPARATOR}{id}");
    if key.len() <= IDENTITY_BYTES_MAX {
        return key.into();
    }
    format!("ce{IDENTITY_SEPARATOR}{}", hex::encode(Sha256::digest(key.as_bytes()))).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_of_lower_case_letters_and_digits() {
        for good in ["id", "traceparent", "com1", "1", "averyveryverylongnamethatisonlyadvisedagainst"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "data", "data_base64", "Id", "my-ext", "my.ext", "é"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_attribute_has_its_rule() {
        for (name, value) in [
            ("specversion", "1.0"),
            ("id", "A234-1234-1234"),
            ("source", "/mycontext"),
            ("source", "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66"),
            ("source", "mailto:cncf@example.com"),
            ("source", "https://example.com/a%20b?c=d#e"),
            ("subject", "größer ☃"),
            ("dataschema", "https://example.com/schema"),
            ("time", "2018-04-05T17:31:00Z"),
            ("time", "2018-04-05t17:31:00.123456789+01:00"),
            ("time", "1985-04-12T23:20:50.52-08:00"),
            ("expirytime", "2018-04-05T17:31:00Z"),
            ("empty", ""),
        ] {
            assert_eq!(check_value(name, value), Ok(()), "{name}: {value}");
        }
        for (name, value) in [
            ("specversion", "0.3"),
            ("id", ""),
            ("type", ""),
            ("subject", ""),
            ("partitionkey", ""),
            ("source", ""),
            ("source", "a b"),
            ("source", "/é"),
            ("source", "/%zz"),
            ("source", "#a#b"),
            ("dataschema", "/relative"),
            ("dataschema", "https:"),
            ("time", "yesterday"),
            ("time", "2018-04-05"),
            ("time", "2018-04-05 17:31:00Z"),
            ("time", "2018-04-05T17:31Z"),
            ("time", "2018-04-05T17:31:00"),
            ("time", "2018-04-05T17:31:00.Z"),
            ("time", "2018-13-05T17:31:00Z"),
            ("time", "2018-04-05T17:31:00+01"),
            ("expirytime", "60"),
            ("expirytime", ""),
            ("any", "a\tb"),
            ("any", "\u{85}"),
            ("any", "\u{ffff}"),
            ("any", "\u{fdd0}"),
            ("any", "\u{1fffe}"),
        ] {
            assert!(check_value(name, value).is_err(), "{name}: {value}");
        }
    }

    /// The example of the binding, and what it says must be taken.
    #[test]
    fn values_are_percent_encoded_as_the_binding_says() {
        assert_eq!(to_header("Euro € 😀"), "Euro%20%E2%82%AC%20%F0%9F%98%80");
        assert_eq!(to_header("100%\"~!"), "100%25%22~!");
        for (written, value) in [
            (&b"Euro%20%e2%82%ac"[..], "Euro €"),
            (b"%41bc", "Abc"),
            (b"\"a \\\"b\\\\ %41\"", "a \"b\\ A"),
            (b"\"half", "\"half"),
            (b"\"two\" \"strings\"", "\"two\" \"strings\""),
            ("é".as_bytes(), "é"),
            (b"100%", "100%"),
            (b"", ""),
        ] {
            assert_eq!(from_header(written).as_deref(), Ok(value), "{}", String::from_utf8_lossy(written));
        }
        for bad in [&b"%C0%A0"[..], b"\xff", b"%ff"] {
            assert!(from_header(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_identity_is_that_of_one_event() {
        let long = "x".repeat(IDENTITY_BYTES_MAX);
        let all = [identity("/a", "b"), identity("/ab", ""), identity(&long, "1"), identity(&long, "2")];
        for (at, one) in all.iter().enumerate() {
            assert!(one.len() <= IDENTITY_BYTES_MAX && all[at + 1..].iter().all(|other| other != one), "{one}");
        }
        assert_eq!(identity("/a", "b"), identity("/a", "b"));
    }

    proptest! {
        #[test]
        fn what_is_written_into_a_header_is_read_back(value in any::<String>()) {
            let written = to_header(&value);
            prop_assert!(written.bytes().all(|byte| (0x21..=0x7e).contains(&byte)));
            prop_assert_eq!(header_bytes(&value), written.len());
            prop_assert_eq!(from_header(written.as_bytes()), Ok(value));
        }
    }
}
