//! The `redact` stage as the broker runs it, natively.

use redact::Redact;
use sluice_plugin::testing::{Bench, Input, Verdict, check_cases, run};

fn config(rules: &[(&str, &str)]) -> String {
    let rules: Vec<_> = rules.iter().map(|(p, a)| format!(r#"{{"pointer":"{p}","action":"{a}"}}"#)).collect();
    format!(r#"{{"rules":[{}]}}"#, rules.join(","))
}

#[track_caller]
fn check(rules: &[(&str, &str)], payload: &str, expected: &str) {
    let outcome = run::<Redact>(&config(rules), [Input::new(payload)]).expect("the config is good").remove(0);
    assert_eq!(outcome.message.text(), expected, "{rules:?} on {payload}");
    let verdict = if payload == expected { Verdict::Passed } else { Verdict::Changed };
    assert_eq!(outcome.verdict, verdict, "{rules:?} on {payload}");
}

#[test]
fn the_cases_hold() {
    check_cases::<Redact>(concat!(env!("CARGO_MANIFEST_DIR"), "/cases"));
}

#[test]
fn mask_replaces_values_of_any_kind() {
    check(&[("/a", "mask")], r#"{"a":"secret","b":1}"#, r#"{"a":"***","b":1}"#);
    check(&[("/a", "mask")], r#"{"a":{"deep":[1,2]},"b":1}"#, r#"{"a":"***","b":1}"#);
    check(&[("/a/1", "mask")], r#"{"a":[1,2,3]}"#, r#"{"a":[1,"***",3]}"#);
    check(&[("", "mask")], r#" {"a":1} "#, r#" "***" "#);
    check(&[("/*", "mask")], r#"{"a":1,"b":null}"#, r#"{"a":"***","b":"***"}"#);
    check(
        &[("/cards/*/no", "mask")],
        r#"{"cards":[{"no":1},{"x":2},{"no":"3"}]}"#,
        r#"{"cards":[{"no":"***"},{"x":2},{"no":"***"}]}"#,
    );
    check(&[("/*/*", "mask")], r#"{"a":[1],"b":{"c":2},"d":3}"#, r#"{"a":["***"],"b":{"c":"***"},"d":3}"#);
}

#[test]
fn drop_takes_as_many_commas_as_members() {
    let three = r#"{ "a" : 1 , "b" : 2 , "c" : 3 }"#;
    check(&[("/a", "drop")], three, r#"{ "b" : 2 , "c" : 3 }"#);
    check(&[("/b", "drop")], three, r#"{ "a" : 1 , "c" : 3 }"#);
    check(&[("/c", "drop")], three, r#"{ "a" : 1 , "b" : 2 }"#);
    check(&[("/b", "drop"), ("/c", "drop")], three, r#"{ "a" : 1 }"#);
    check(&[("/a", "drop"), ("/c", "drop")], three, r#"{ "b" : 2 }"#);
    check(&[("/a", "drop"), ("/b", "drop")], three, r#"{ "c" : 3 }"#);
    check(&[("/*", "drop")], three, "{  }");
    check(&[("/*/x", "drop")], r#"[{"x":1},{"x":2,"y":3}]"#, r#"[{},{"y":3}]"#);
    check(&[("/0", "drop"), ("/2", "drop")], "[1, 2, 3]", "[2]");
    check(&[("/*", "drop")], "[1,2]", "[]");
}

#[test]
fn hash_is_the_digest_of_the_values_text() {
    // One digest, whether it stands as a string, with an escape, or as a number.

    let one = |payload: &str| {
        run::<Redact>(&config(&[("/a", "hash")]), [Input::new(payload)]).unwrap().remove(0).message.text().to_owned()
    };
    let string = one(r#"{"a":"4111"}"#);
    assert_eq!(string, one(r#"{"a":4111}"#));
    assert_eq!(string, one(r#"{"a":"4\u0031\u0031\u0031"}"#));
    assert_ne!(string, one(r#"{"a":"4112"}"#));
    assert_eq!(string.len(), r#"{"a":""}"#.len() + 64);
    check(
        &[("/a", "hash")],
        r#"{"a":"abc"}"#,
        r#"{"a":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}"#,
    );
    // RFC 4231, test case 2.
    let keyed = r#"{"rules":[{"pointer":"/a","action":"hash"}],"hashKey":"Jefe"}"#;
    let outcome = run::<Redact>(keyed, [Input::new(r#"{"a":"what do ya want for nothing?"}"#)]).unwrap().remove(0);
    assert_eq!(outcome.message.text(), r#"{"a":"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"}"#);
    // Half a surrogate pair can't be decoded; the value must still go.
    let hidden = one(r#"{"a":"\ud800"}"#);
    assert!(!hidden.contains("ud800"), "{hidden}");
}

#[test]
fn what_is_not_named_stays_byte_for_byte() {
    let rules = [("/secret", "mask"), ("/list/*/pin", "drop")];
    for payload in [
        r#"{"z":1,"a":2}"#,
        "{\n  \"big\": 123456789012345678901234567890.1000, \"e\": 1E+2, \"u\": \"\\u00e9\\/\"\n}\n",
        "[1,2]",
        "7",
        r#""secret""#,
        r#"{"list":[{"x":1},[],"pin",null]}"#,
        r#"{"list":{"pin":1}}"#,
    ] {
        check(&rules, payload, payload);
    }
    check(
        &rules,
        "{\n  \"n\": 1.50, \"secret\" : \"x\",\n  \"\\u00e9\": 1e400\n}",
        "{\n  \"n\": 1.50, \"secret\" : \"***\",\n  \"\\u00e9\": 1e400\n}",
    );
}

#[test]
fn nothing_named_gets_through_by_spelling() {
    // Doubled members, escaped names, escaped pointers.
    check(&[("/a", "mask")], r#"{"a":1,"a":2}"#, r#"{"a":"***","a":"***"}"#);
    check(&[("/a", "drop")], r#"{"a":1,"b":0,"a":2}"#, r#"{"b":0}"#);
    check(&[("/a/x", "mask")], r#"{"a":{"x":1},"a":{"x":2}}"#, r#"{"a":{"x":"***"},"a":{"x":"***"}}"#);
    check(&[("/a", "mask")], r#"{"\u0061":1}"#, r#"{"\u0061":"***"}"#);
    check(&[("/a~1b/~0", "mask")], r#"{"a/b":{"~":1}}"#, r#"{"a/b":{"~":"***"}}"#);
    check(&[("/~2", "mask")], r#"{"*":1,"a":2}"#, r#"{"*":"***","a":2}"#);
    check(&[("/~02", "mask")], r#"{"*":1,"~2":2}"#, r#"{"*":1,"~2":"***"}"#);
    check(&[("/01", "mask"), ("/-", "mask")], "[0,1]", "[0,1]");
    check(&[("/01", "mask")], r#"{"01":1}"#, r#"{"01":"***"}"#);
}

#[test]
fn of_several_rules_the_strongest_wins() {
    check(&[("/a", "mask"), ("/a", "drop"), ("/*", "hash")], r#"{"a":1}"#, "{}");
    check(&[("/a", "mask"), ("/a/b", "drop")], r#"{"a":{"b":1}}"#, r#"{"a":"***"}"#);
    check(&[("/a/b", "drop"), ("/a/c", "mask")], r#"{"a":{"b":1,"c":2}}"#, r#"{"a":{"c":"***"}}"#);
}

#[test]
fn a_payload_that_cannot_be_read_is_rejected() {
    for payload in [&b"plain"[..], b"", b"{", b"{}{}", b"{\"a\":1,}", b"\xff", b"{\"a\":\"\n\"}"] {
        let outcome = run::<Redact>(&config(&[("/a", "mask")]), [Input::new(payload)]).unwrap().remove(0);
        let Verdict::Rejected(rejections) = outcome.verdict else { panic!("{payload:?} got through") };
        assert_eq!(rejections[0].code, "NOT_JSON", "{payload:?}");
    }
}

#[test]
fn deep_and_wide_payloads_are_read() {
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    check(&[("/x", "mask")], &deep, &deep);
    let (open, close) = ("{\"a\":".repeat(32), "}".repeat(32));
    check(&[(&"/a".repeat(32), "mask")], &format!("{open}1{close}"), &format!("{open}\"***\"{close}"));
}

#[test]
fn a_bad_config_is_refused_with_a_reason() {
    for (config, reason) in [
        ("{}", "missing field `rules`"),
        (r#"{"rules":[],"rule":1}"#, "unknown field `rule`"),
        (r#"{"rules":[{"pointer":"/a","action":"burn"}]}"#, "unknown variant `burn`"),
        (r#"{"rules":[{"pointer":"/a","action":"mask","to":"x"}]}"#, "unknown field `to`"),
        (r#"{"rules":[{"pointer":"/a","action":"mask"},{"pointer":"a","action":"mask"}]}"#, "rules[1].pointer"),
        (r#"{"rules":[{"pointer":"","action":"drop"}]}"#, "whole payload"),
        (r#"{"rules":[{"pointer":"/a","action":"hash"}],"hashKey":""}"#, "hashKey"),
        (&config(&[("/a", "mask"); 129]), "at most 128"),
    ] {
        let error = Bench::<Redact>::new(config).err().expect(config);
        assert!(error.message.contains(reason), "{config}: {error}");
    }
}
