//! Every way in which a value can be wrong, by what it may be. Invariant: apart from the one fault, what is made here is as
//! right as the right value it is made from. Never knows a route.

use serde_json::Value;

use super::document::Schema;

/// Levels of nesting: far beyond what any reader of JSON follows.
const LEVELS: usize = 10_000;
/// Characters of a text that is too long: more than any text of a request may have.
const CHARACTERS: usize = 100_000;
/// The same for a parameter, which the request's target has to hold.
const PARAMETER_CHARACTERS: usize = 5_000;
/// More than 64 bits.
const HUGE: &str = "99999999999999999999999999";

/// A value that is wrong, as it is written.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) what: &'static str,
    pub(super) written: Vec<u8>,
    /// Whether it is no JSON, or so deep that a reader may give up: then it has no place.
    pub(super) malformed: bool,
}

fn fault(what: &'static str, written: impl Into<Vec<u8>>) -> Fault {
    Fault { what, written: written.into(), malformed: false }
}

fn malformed(what: &'static str, written: impl Into<Vec<u8>>) -> Fault {
    Fault { malformed: true, ..fault(what, written) }
}

/// What is wrong where a value of `schema` stands in a JSON document; `right` is one that is right.
pub(super) fn of_value(schema: &Schema, right: &Value) -> Vec<Fault> {
    let deep = format!("{}{}", "[".repeat(LEVELS), "]".repeat(LEVELS));
    let mut faults = vec![malformed("deep", deep), malformed("no JSON", "NaN")];
    for (kind, what, written) in [
        ("string", "a string", r#""x""#),
        ("number", "a number", "5"),
        ("boolean", "a truth value", "true"),
        ("array", "an array", "[]"),
        ("object", "an object", "{}"),
        ("null", "null", "null"),
    ] {
        if schema.is_any() || !schema.may_be(kind) {
            faults.push(fault(what, written));
        }
    }
    if schema.may_be("number") {
        faults.extend(of_number(schema));
    }
    if schema.may_be("string") {
        faults.extend(of_text(schema, right.as_str().unwrap_or_default()));
    }
    if schema.keyword("additionalProperties").is_some_and(Value::is_object) {
        faults.extend(of_map());
    }
    if schema.keyword("items").is_some() {
        faults.push(fault("an array of null", "[null]"));
    }
    faults
}

fn of_number(schema: &Schema) -> Vec<Fault> {
    let mut faults: Vec<Fault> = bounds(schema).into_iter().map(|(what, number)| fault(what, number)).collect();
    faults.push(malformed("out of range", "1e400"));
    faults.push(fault("huge", HUGE));
    if schema.is_whole() {
        faults.push(fault("a fraction", "1.5"));
        faults.push(fault("the largest of 64 bits", u64::MAX.to_string()));
    }
    faults
}

/// Just beyond the bounds that are told.
fn bounds(schema: &Schema) -> Vec<(&'static str, String)> {
    let bound = |name: &str| schema.keyword(name).and_then(Value::as_f64);
    let mut beyond = vec![("negative", "-1".to_owned())];
    if let Some(minimum) = bound("minimum") {
        beyond.push(("too small", (minimum - 1.0).to_string()));
    }
    if let Some(maximum) = bound("maximum") {
        beyond.push(("too large", (maximum + 1.0).to_string()));
    }
    beyond
}

fn of_text(schema: &Schema, right: &str) -> Vec<Fault> {
    let quoted = |text: &str| Value::from(text).to_string();
    let mut faults = vec![
        fault("NUL", quoted(&format!("{right}\0"))),
        fault("too long", quoted(&format!("{right}{}", "x".repeat(CHARACTERS)))),
        malformed("half a character", r#""\ud800""#),
        malformed("not UTF-8", b"\"\xff\"".as_slice()),
        malformed("a bare control character", b"\"\x01\"".as_slice()),
    ];
    faults.extend(words(schema).into_iter().map(|(what, word)| fault(what, quoted(word))));
    faults
}

/// Texts that are no word, time or duration.
fn words(schema: &Schema) -> Vec<(&'static str, &'static str)> {
    match schema.keyword("format").and_then(Value::as_str) {
        Some("date-time") => vec![
            ("no time", "yesterday"),
            ("no such time", "2026-99-99T99:99:99Z"),
            ("a time beyond all", "+999999999-01-01T00:00:00Z"),
        ],
        Some("duration") => vec![
            ("no duration", "half an hour"),
            ("a negative duration", "-PT5S"),
            ("a huge duration", "P99999999999D"),
            ("a duration beyond 64 bits", "PT99999999999999999999999999S"),
        ],
        Some("uuid") => vec![("no UUID", "123e4567")],
        Some("byte") => vec![("no base64", "%%%")],
        _ if schema.keyword("enum").is_some() => vec![("no such word", "Nonsense"), ("no word", "")],
        _ => Vec::new(),
    }
}

fn of_map() -> Vec<Fault> {
    let many: Vec<String> = (0..1000).map(|n| format!(r#""k{n}":"v""#)).collect();
    vec![
        fault("a map of numbers", r#"{"k":5}"#),
        fault("a map of null", r#"{"k":null}"#),
        fault("a name twice", r#"{"k":"v","k":"w"}"#),
        fault("NUL in a name", r#"{"k\u0000":"v"}"#),
        fault("NUL in a value", r#"{"k":"v\u0000"}"#),
        fault("a value that is too long", format!(r#"{{"k":"{}"}}"#, "x".repeat(CHARACTERS))),
        fault("too many", format!("{{{}}}", many.join(","))),
    ]
}

/// What is wrong where a query parameter stands; percent-encoded.
pub(super) fn of_parameter(schema: &Schema, right: &str) -> Vec<Fault> {
    let long = |right: &str| format!("{right}{}", "x".repeat(PARAMETER_CHARACTERS));
    let mut faults = vec![
        fault("not UTF-8", format!("{right}%FF")),
        fault("NUL", format!("{right}%00")),
        fault("too long", long(right)),
    ];
    if schema.may_be("number") {
        faults.extend(bounds(schema).into_iter().map(|(what, number)| fault(what, number)));
        faults.extend(
            [("a fraction", "1.5"), ("no number", "x"), ("empty", ""), ("huge", HUGE)]
                .map(|(what, written)| fault(what, written)),
        );
        faults.push(fault("the largest of 64 bits", u64::MAX.to_string()));
    }
    if schema.may_be("boolean") {
        faults.extend([fault("no truth value", "maybe"), fault("empty", ""), fault("a number", "1")]);
    }
    faults
        .extend(words(schema).into_iter().map(|(what, word)| fault(what, word.replace('+', "%2B").replace(' ', "+"))));
    faults
}

/// What is wrong where a segment of the path stands.
pub(super) fn of_segment(right: &str) -> Vec<Fault> {
    vec![
        fault("not UTF-8", format!("{right}%FF")),
        fault("NUL", format!("{right}%00")),
        fault("negative", "-1"),
        fault("huge", HUGE),
        fault("upwards", "..%2F..%2Fetc%2Fpasswd"),
        fault("half a percent-encoding", format!("{right}%")),
        fault("too long", format!("{right}{}", "x".repeat(PARAMETER_CHARACTERS))),
        fault("too long for any target", "x".repeat(9_000)),
    ]
}

/// What is wrong where a header's value stands.
pub(super) fn of_header() -> Vec<Fault> {
    vec![
        fault("empty", ""),
        fault("not UTF-8", b"\xff".as_slice()),
        fault("too long", "x".repeat(PARAMETER_CHARACTERS)),
    ]
}
