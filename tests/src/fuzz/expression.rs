//! The language of `payloadQuery`: texts and payloads as anybody may send them. Invariant: a text is a query or is refused
//! with the place of its fault; a query says yes or no, or that it costs too much, and the same each time; its negation says
//! the opposite. That evaluation ends is the time-out's of the fuzzer to tell.

use payload_query::{Query, TooCostly};
use serde_json::{Value, json};

use super::{Seed, split_at};

/// The first line is a query, the rest a payload; where that is no JSON, one that has a bit of everything.
///
/// # Panics
/// When the language breaks a promise.
pub fn run(input: &[u8]) {
    let (query, payload) = split_at(input, b'\n').unwrap_or((input, b""));
    let Ok(text) = std::str::from_utf8(query) else { return };
    let query = match Query::parse(text) {
        Ok(query) => query,
        Err(error) => {
            let place = 1..=text.chars().count() + 1;
            assert!(place.contains(&error.position) && !error.message.is_empty(), "{text:?}: {error}");
            return;
        }
    };
    let whole = serde_json::from_slice(payload);
    let seen = query.read(payload);
    assert!(whole.is_err() || seen.is_some(), "{text:?}: what can be read whole can be read in part");
    let payload = whole.unwrap_or_else(|_| something());
    let said = query.evaluate(&payload);
    let seen = query.read(payload.to_string().as_bytes()).expect("it was written as JSON");
    assert_eq!(query.evaluate(&seen), said, "{text:?}, on what it sees of the payload");
    assert_eq!(query.evaluate(&payload), said, "{text:?}, the second time");
    assert_eq!(query.matches(&payload), said == Ok(true), "{text:?}");
    for (around, expected) in [
        (format!("!({text})"), said.map(|said| !said)),
        (format!("({text})&&({text})"), said),
        (format!("({text})||({text})"), said),
    ] {
        // Longer and deeper, it may be too long or too deep.
        let Ok(query) = Query::parse(&around) else { continue };
        let found = query.evaluate(&payload);
        // Each takes a few steps more, and two of the three evaluate the query twice.
        assert!(found == expected || found == Err(TooCostly), "{around:?}: {found:?}, but {text:?}: {said:?}");
    }
}

fn something() -> Value {
    json!({
        "a": 1, "b": {"c": [1, 2.5, -3, 9_007_199_254_740_993_u64], "d": "deploy éé"}, "e": [], "f": null, "g": true,
        "h": [{"a": 1}, {"a": 2, "b": "x"}, [0, [1, [2]]]], "": "no name",
    })
}

/// Queries of each form, on payloads that they are about.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    let seed = |query: &str, payload: &str| format!("{query}\n{payload}").into_bytes();
    vec![
        (
            "readme",
            seed(
                "$.event == 'deployment.completed' && $.severity >= 7",
                r#"{"event":"deployment.completed","severity":9}"#,
            ),
        ),
        ("contains", seed("contains($.repository.topics, 'rust') || contains($.ref, \"main\")", r#"{"ref":"main"}"#)),
        ("filter", seed("$.commits[?@.author.name == 'ann' && count(@.files[*]) > 2]", r#"{"commits":[]}"#)),
        ("nested_filter", seed("$..[?@[?@.a == $.a]]", "")),
        ("slice", seed("!$.b.c[-3:10:2] && $.h[::-1][0,'a',*]", "")),
        ("functions", seed("length($.b.d) == 9 && value($..d) != null && count($..*) < 1e3", "")),
        ("match", seed(r"match($.b.d, 'dep\\w+ .*') || search($['b']['d'], '[^a-z]\\p{L}?')", "")),
        ("numbers", seed("$.b.c[3] == 9007199254740993 && $.a < 1.0000001 && $.a >= -0.0", "")),
        ("strings", seed(r#"$["\u00e9\ud83d\ude00"] == 'it\'s \n' || $.é == "\/""#, "")),
        ("deep", seed(&format!("{}$.a{}", "(".repeat(31), ")".repeat(31)), "[]")),
        ("fault", seed("$.severity => 7", "1")),
    ]
}
