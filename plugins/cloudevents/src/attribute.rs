//! The attributes of a CloudEvent 1.0: their names, and what their values may be.
//! Invariant: what passes here, the broker takes as an attribute and sends as one. Never reads a message.

/// Before an attribute's name, in a message's headers.
pub(crate) const PREFIX: &str = "ce-";
/// What every event has.
pub(crate) const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];
/// The attribute that is the message's media type.
pub(crate) const DATA_CONTENT_TYPE: &str = "datacontenttype";
/// The attribute that is the message's key.
pub(crate) const PARTITION_KEY: &str = "partitionkey";

/// Whether this attribute is defined by the specification itself, not by an extension.
pub(crate) fn is_core(name: &str) -> bool {
    REQUIRED.contains(&name) || matches!(name, "subject" | "time" | "dataschema" | "datacontenttype")
}

pub(crate) fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name != "data" && !name.is_empty() && name.bytes().all(letter)
}

/// What the attribute may be, as the end of a sentence, where it is not.
pub(crate) fn check_value(name: &str, value: &str) -> Result<(), &'static str> {
    if value.chars().any(is_forbidden) {
        return Err("has a character that no attribute may have");
    }
    match name {
        "specversion" if value != "1.0" => Err("is 1.0: no other version of CloudEvents is spoken"),
        "id" | "type" | "subject" | PARTITION_KEY if value.is_empty() => Err("is not empty"),
        "source" if !is_uri_reference(value) => Err("is a URI or a reference to one (RFC 3986), not empty"),
        "dataschema" if !is_uri(value) => Err("is an absolute URI (RFC 3986)"),
        "time" | "expirytime" if !is_time(value) => Err("is an RFC 3339 time such as 2026-01-31T12:00:00Z"),
        _ => Ok(()),
    }
}

/// Control characters, and code points that are no characters.
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

/// RFC 3339: `2026-01-31T12:00:00.5+01:00`.
fn is_time(text: &str) -> bool {
    let Some((start, rest)) = text.split_at_checked("0000-00-00T00:00:00".len()) else { return false };
    let (Some(year), Some([month, day, hour, minute, second])) = (number(&start[..4]), fields(start)) else {
        return false;
    };
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => {
            let zone = fraction.trim_start_matches(|digit: char| digit.is_ascii_digit());
            if zone.len() == fraction.len() {
                return false;
            }
            zone
        }
        None => rest,
    };
    let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    (1..=days).contains(&day) && hour <= 23 && minute <= 59 && second <= 60 && is_zone(zone)
}

/// Month, day, hour, minute and second of `0000-00-00T00:00:00`.
fn fields(start: &str) -> Option<[u32; 5]> {
    let shape = |(at, byte): (usize, u8)| match at {
        4 | 7 => byte == b'-',
        10 => byte.eq_ignore_ascii_case(&b'T'),
        13 | 16 => byte == b':',
        _ => byte.is_ascii_digit(),
    };
    if !start.bytes().enumerate().all(shape) {
        return None;
    }
    let at = |from: usize| number(&start[from..from + 2]);
    Some([at(5)?, at(8)?, at(11)?, at(14)?, at(17)?])
}

fn is_zone(zone: &str) -> bool {
    if zone.eq_ignore_ascii_case("z") {
        return true;
    }
    let Some(offset) = zone.strip_prefix(['+', '-']) else { return false };
    let Some((hours, minutes)) = offset.split_once(':') else { return false };
    let below = |text: &str, bound| text.len() == 2 && number(text).is_some_and(|n| n < bound);
    below(hours, 24) && below(minutes, 60)
}

fn number(digits: &str) -> Option<u32> {
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// Milliseconds since 1970 as the broker writes times: `2023-11-14T22:13:20.250Z`.
pub(crate) fn rfc3339(ms: u64) -> String {
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    // Days from 0000-03-01, by eras of 400 years; H. Hinnant's `civil_from_days`.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (hour, minute, second, ms) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60, rest % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attribute_has_its_rule() {
        for (name, value) in [
            ("specversion", "1.0"),
            ("source", "/mycontext"),
            ("source", "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66"),
            ("source", "https://example.com/a%20b?c=d#e"),
            ("subject", "größer ☃"),
            ("dataschema", "https://example.com/schema"),
            ("time", "2018-04-05T17:31:00Z"),
            ("time", "2018-04-05t17:31:00.123456789+01:00"),
            ("time", "2024-02-29T23:59:60-08:00"),
            ("empty", ""),
        ] {
            assert_eq!(check_value(name, value), Ok(()), "{name}: {value}");
        }
        for (name, value) in [
            ("specversion", "0.3"),
            ("id", ""),
            ("type", ""),
            ("partitionkey", ""),
            ("source", ""),
            ("source", "a b"),
            ("source", "/é"),
            ("source", "/%zz"),
            ("source", "#a#b"),
            ("dataschema", "/relative"),
            ("time", "yesterday"),
            ("time", "2018-04-05"),
            ("time", "2018-04-05 17:31:00Z"),
            ("time", "2018-04-05T17:31:00"),
            ("time", "2018-04-05T17:31:00.Z"),
            ("time", "2018-13-05T17:31:00Z"),
            ("time", "2023-02-29T17:31:00Z"),
            ("time", "2018-04-05T17:31:00+01"),
            ("time", "2018-04-05T17:31:00+1:000"),
            ("expirytime", "60"),
            ("any", "a\tb"),
            ("any", "\u{ffff}"),
        ] {
            assert!(check_value(name, value).is_err(), "{name}: {value}");
        }
        assert!(is_name("com1") && !is_name("data") && !is_name("Id") && !is_name("my-ext") && !is_name(""));
    }

    #[test]
    fn times_are_written_as_the_broker_does() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_700_000_000_250, "2023-11-14T22:13:20.250Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(ms), text);
        }
    }
}
