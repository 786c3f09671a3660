//! The `jq` stage as the broker runs it, natively.

use jq::{JQ_ERROR, Jq};
use serde_json::json;
use sluice_plugin::testing::{Bench, Input, Outcome, Verdict, check_cases, logs, run};

fn one(program: &str, payload: impl Into<Vec<u8>>) -> Outcome {
    let config = json!({"program": program}).to_string();
    run::<Jq>(&config, [Input::new(payload)]).expect("the program is good").remove(0)
}

#[track_caller]
fn makes(program: &str, payload: &str, expected: &str) {
    let outcome = one(program, payload);
    assert_eq!(outcome.message.text(), expected, "{program} on {payload}");
    let verdict = if payload == expected { Verdict::Passed } else { Verdict::Changed };
    assert_eq!(outcome.verdict, verdict, "{program} on {payload}");
}

fn rejection(outcome: Outcome) -> (String, String) {
    match outcome.verdict {
        Verdict::Rejected(mut faults) => (faults[0].code.to_string(), faults.remove(0).message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_cases_hold() {
    check_cases::<Jq>(concat!(env!("CARGO_MANIFEST_DIR"), "/cases"));
}

#[test]
fn the_first_output_is_the_payload() {
    makes(".", r#"{"a":1}"#, r#"{"a":1}"#);
    makes(
        "{id: .order.id, total: ([.items[].price] | add)}",
        r#"{"order":{"id":7},"items":[{"price":1},{"price":2.5}]}"#,
        r#"{"id":7,"total":3.5}"#,
    );
    makes(".[]", "[1,2]", "1");
    makes("def f: if . > 100 then . else . * 2 | f end; f", "3", "192");
    makes("repeat(.)", "1", "1");
    makes(r#"if test("^a.c$") then ascii_upcase else . end"#, r#""abc""#, r#""ABC""#);
    makes("map(select(.n > 1)) | sort_by(.n) | first", r#"[{"n":3},{"n":2},{"n":1}]"#, r#"{"n":2}"#);
    makes("1700000000 | todate", "null", r#""2023-11-14T22:13:20Z""#);
    makes(".a |= . + 1", r#"{"a":99999999999,"b":1.10}"#, r#"{"a":100000000000,"b":1.10}"#);
    makes("@base64", r#""hi""#, r#""aGk=""#);
}

#[test]
fn no_output_drops_and_an_error_rejects() {
    assert_eq!(one("select(.a > 1)", r#"{"a":1}"#).verdict, Verdict::Dropped("the program has no output".into()));
    assert_eq!(one("empty", "1").verdict, Verdict::Dropped("the program has no output".into()));
    assert_eq!(rejection(one(r#"error("no total")"#, "{}")), (JQ_ERROR.into(), "no total".into()));
    assert_eq!(rejection(one(".a.b", r#"{"a":1}"#)).0, JQ_ERROR);
    makes("1, error(\"never asked for\")", "{}", "1");
    assert_eq!(rejection(one("halt", "{}")), (JQ_ERROR.into(), "it halted".into()));
    for not_json in ["nan", "infinite", "{(1): 2}"] {
        let (code, message) = rejection(one(not_json, "{}"));
        assert_eq!((code.as_str(), message.as_str()), (JQ_ERROR, "its output is no JSON"), "{not_json}");
    }
    let long = rejection(one("error", format!("\"{}\"", "é".repeat(5000)))).1;
    assert_eq!(long.chars().count(), 200);
}

#[test]
fn what_is_not_json_is_rejected() {
    for payload in ["", "plain", "{", "NaN", "{a:1}", "1 2", "# comment\n1", "[1,]"] {
        assert_eq!(rejection(one(".", payload)).0, "NOT_JSON", "{payload:?}");
    }
    assert_eq!(rejection(one(".", *b"\"\xff\"")).0, "NOT_JSON");
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    makes(".", &nested(128), &nested(128));
    makes(".", r#"["[[\"{",{"a":[]}]"#, r#"["[[\"{",{"a":[]}]"#);
    assert_eq!(rejection(one(".", nested(129))).0, "NOT_JSON");
    assert_eq!(rejection(one(".", nested(100_000))).0, "NOT_JSON");
}

#[test]
fn the_program_sees_the_message() {
    let config = json!({"program": "$message"}).to_string();
    let input = Input::new("{}").header("kind", "order").key("k");
    let outcome = run::<Jq>(&config, [input]).unwrap().remove(0);
    let seen: serde_json::Value = serde_json::from_str(outcome.message.text()).unwrap();
    let expected = json!({"id": outcome.message.id, "key": "k", "contentType": "application/json",
        "publishedAt": 1.7e9, "headers": {"kind": "order"}});
    assert_eq!(seen, expected);
}

#[test]
fn what_it_says_for_debugging_is_in_the_plugins_log() {
    let _ = logs();
    makes("debug | .a", r#"{"a":1}"#, "1");
    let lines = logs();
    assert!(lines.iter().any(|(_, line)| line.contains(r#"{"a":1}"#)), "{lines:?}");
}

#[test]
fn a_bad_config_is_refused_with_the_place() {
    for (config, reason) in [
        ("{}".to_owned(), "missing field `program`"),
        (json!({"program": ".", "files": []}).to_string(), "unknown field `files`"),
        (json!({"program": ".a | "}).to_string(), "at its end: expected"),
        (json!({"program": ".a | )"}).to_string(), "at byte 5: expected"),
        (json!({"program": "{a: (1}"}).to_string(), "expected closing parenthesis"),
        (json!({"program": ". | nosuch(1)"}).to_string(), "at byte 4: undefined filter \"nosuch\""),
        (json!({"program": "$x"}).to_string(), "undefined variable \"$x\""),
        (json!({"program": "input"}).to_string(), "undefined filter \"input\""),
        (json!({"program": "import \"m\" as m; ."}).to_string(), "no modules"),
        (json!({"program": " ".repeat(65_537)}).to_string(), "at most 65536"),
    ] {
        let error = Bench::<Jq>::new(&config).err().unwrap_or_else(|| panic!("{config} is taken"));
        assert!(error.message.contains(reason), "{config}: {error}");
    }
}
