//! What queries mean, case by case. The rules are RFC 9535's; the section stands where a case is about one.

use payload_query::{EVALUATION_STEPS_MAX, Query, TooCostly};
use serde_json::{Value, json};

fn holds(query: &str, payload: &Value) -> bool {
    let query = Query::parse(query).unwrap_or_else(|e| panic!("{query}: {e}"));
    let said = query.evaluate(payload).expect("it is cheap");
    let seen = query.read(payload.to_string().as_bytes()).expect("it was written as JSON");
    assert_eq!(query.evaluate(&seen), Ok(said), "{query:?} on what it sees of {payload}, which is {seen}");
    said
}

#[track_caller]
fn check(payload: &Value, cases: &[(&str, bool)]) {
    for (query, expected) in cases {
        assert_eq!(holds(query, payload), *expected, "{query} on {payload}");
    }
}

#[test]
fn the_contracts_example_holds() {
    let query = "$.event == 'deployment.completed' && $.severity >= 7";
    assert!(holds(query, &json!({"event": "deployment.completed", "severity": 7})));
    assert!(!holds(query, &json!({"event": "deployment.completed", "severity": 6})));
    assert!(!holds(query, &json!({"severity": 9})));
}

#[test]
fn comparisons_follow_section_2_3_5_2_2() {
    let payload = json!({"n": 7, "s": "kilo", "t": true, "z": null, "a": [1, 2], "o": {"x": {"y": 1}}, "a2": [1.0, 2]});
    check(
        &payload,
        &[
            ("$.n == 7", true),
            ("$.n == 7.0", true),
            ("$.n == 70e-1", true),
            ("$.n != 8", true),
            ("$.n<8", true),
            ("7 <= $.n", true),
            ("$.n > 7", false),
            ("$.n == '7'", false),
            ("$.n < '8'", false),
            ("$.s == \"kilo\"", true),
            ("$.s < 'lima'", true),
            ("$.s >= 'kilo'", true),
            ("$.t == true", true),
            ("$.t > false", false),
            ("$.t >= true", true),
            ("$.z == null", true),
            ("$.z <= null", true),
            ("$.a == $.a2", true),
            ("$.a == $.o", false),
            ("$.a <= $.a2", true),
            ("$.o == $.o", true),
            ("true == true", true),
            ("$ == $", true),
        ],
    );
    // Nothing: what is not there equals only what is not there either, and is neither more nor less.
    check(
        &payload,
        &[
            ("$.no == $.nope", true),
            ("$.no <= $.nope", true),
            ("$.no == null", false),
            ("$.no != null", true),
            ("$.no < 1", false),
            ("$.no >= 1", false),
        ],
    );
}

#[test]
fn integers_are_compared_exactly() {
    let payload = json!({"id": 9_007_199_254_740_993_u64, "max": u64::MAX, "min": i64::MIN, "half": 0.5, "big": 1e300});
    check(
        &payload,
        &[
            ("$.id == 9007199254740993", true),
            ("$.id == 9007199254740992", false),
            ("$.id > 9007199254740992", true),
            ("$.id > 9007199254740992.0", true),
            ("$.max == 18446744073709551615", true),
            ("$.max > $.min", true),
            ("$.big > $.max", true),
            ("$.min > -1e300", true),
            ("$.half > 0", true),
            ("0 < $.half", true),
            ("1 < $.half", false),
            ("-1 < -0.5", true),
            ("-0 == 0", true),
        ],
    );
}

#[test]
fn logic_binds_as_usual_and_stops_early() {
    let payload = json!({"a": 1, "b": 2});
    check(
        &payload,
        &[
            ("$.a == 1 || $.a == 2 && $.b == 3", true),
            ("($.a == 1 || $.a == 2) && $.b == 3", false),
            ("!($.a == 1)", false),
            ("!$.c", true),
            ("! $.a || $.b", true),
            ("!(!$.a)", true),
            ("  $.a==1&&$.b==2  ", true),
            ("$.a == 1\n&&\t$.b == 2", true),
            ("((($.a)))", true),
        ],
    );
}

#[test]
fn a_path_alone_asks_whether_it_leads_anywhere() {
    let payload = json!({"z": null, "f": false, "list": [{"x": 1}, {"y": [2]}], "odd name": 1, "ünïcode": 1, "": 2});
    check(
        &payload,
        &[
            ("$", true),
            ("$.z", true),
            ("$.f", true),
            ("$.list[*].x", true),
            ("$.list[5]", false),
            ("$.list[-1].y", true),
            ("$.list[-3]", false),
            ("$.list[0:1].y", false),
            ("$.list[::-1].y", true),
            ("$.list[1:].y", true),
            ("$.list[::0]", false),
            ("$..y", true),
            ("$..[0]", true),
            ("$..*", true),
            ("$..nope", false),
            ("$['odd name']", true),
            ("$.ünïcode", true),
            ("$['']", true),
            ("$['no','z']", true),
            ("$ .list [ 0 ] .x", true),
        ],
    );
    for scalar in [json!(5), json!("s"), json!(null), json!([]), json!({})] {
        check(&scalar, &[("$", true), ("$.*", false), ("!$.a", true), ("$[0]", false)]);
    }
    check(&json!(5), &[("$ == 5", true)]);
    check(&json!("on"), &[("$ == 'on'", true), ("length($) == 2", true)]);
}

#[test]
fn filters_look_at_children_and_may_look_back_at_the_payload() {
    let payload = json!({"limit": 10, "items": [{"price": 5, "tags": ["a"]}, {"price": 15, "tags": ["b", "c"]}]});
    check(
        &payload,
        &[
            ("$.items[?@.price > $.limit]", true),
            ("$.items[?@.price > 20]", false),
            ("$.items[?@.price < 10].tags[?@ == 'a']", true),
            ("$.items[?@.tags[?@ == 'c'] && @.price == 15]", true),
            ("$.items[?@.tags[?@ == 'c'] && @.price == 5]", false),
            ("count($.items[?@.price > 1]) == 2", true),
            ("$[?@ == 10]", true),
            ("$.items[?!@.price]", false),
            ("$.items[?count(@.tags[*]) == 2]", true),
            ("$.items[0, ?@.price == 15].tags[1]", true),
        ],
    );
}

#[test]
fn negative_indices_work_in_comparisons() {
    check(&json!({"a": [1, 2, 3]}), &[("$.a[-1] == 3", true), ("$.a[-3] == 1", true), ("$.a[-4] == 1", false)]);
}

#[test]
fn functions_do_what_section_2_4_says() {
    let payload =
        json!({"s": "añb", "list": [1, [2]], "obj": {"a": 1}, "day": "1974-05-11", "two": "x\ny", "one": {"c": "red"}});
    check(
        &payload,
        &[
            ("length($.s) == 3", true),
            ("length($.list) == 2", true),
            ("length($.obj) == 1", true),
            ("length($.obj.a) == 1", false),
            ("length('four') == 4", true),
            ("length($.nope) == $.nope", true),
            ("count($.list[*]) == 2", true),
            ("count($..*) > 8", true),
            ("value($..c) == 'red'", true),
            ("value($.list[*]) == 1", false),
            ("length(value($..c)) == 3", true),
            ("match($.day, '1974-05-..')", true),
            ("match($.day, '1974')", false),
            ("match($.day, '19|1974-05-11')", true),
            ("search($.day, '4-0')", true),
            ("search($.day, '[a-z]')", false),
            ("match($.two, 'x.y')", false),
            (r"match($.s, '\\p{L}+')", true),
            ("match($.list, '.*')", false),
            ("!search($.day, 'x')", true),
        ],
    );
}

#[test]
fn contains_looks_into_strings_and_arrays() {
    let payload = json!({"title": "disk almost full", "tags": ["prod", 7, {"a": [1.0]}, null], "want": {"a": [1]}, "o": {"k": 1}});
    check(
        &payload,
        &[
            ("contains($.title, 'almost')", true),
            ("contains($.title, '')", true),
            ("contains($.title, 'Almost')", false),
            ("contains($.title, 7)", false),
            ("contains($.tags, 'prod')", true),
            ("contains($.tags, 'pro')", false),
            ("contains($.tags, 7.0)", true),
            ("contains($.tags, null)", true),
            ("contains($.tags, $.want)", true),
            ("contains($.tags, $.nope)", false),
            ("contains($.o, 'k')", false),
            ("contains('abc', 'b') && !contains($.tags, 'x')", true),
            ("$[?contains(@, 'disk')]", true),
        ],
    );
}

#[test]
fn strings_are_read_with_their_escapes() {
    check(
        &json!({"s": "a'b\"c\\d\n\u{1F600}é"}),
        &[
            (r#"$.s == 'a\'b"c\\d\n\uD83D\uDE00\u00e9'"#, true),
            (r#"$.s == "a'b\"c\\d\n😀é""#, true),
            (r#"contains($.s, '\/')"#, false),
        ],
    );
}

#[test]
fn a_bad_query_is_told_by_position_and_reason() {
    for (query, position, reason) in [
        ("", 1, "the query ends here"),
        ("   ", 4, "the query ends here"),
        ("$.a = 1", 5, "`==`"),
        ("($.a = 1)", 6, "`==`"),
        ("$.a => 1", 5, "`==`"),
        ("$.a == ", 8, "the query ends here"),
        ("$.a == b", 8, "$.b"),
        ("$.é == b", 8, "$.b"),
        ("$.a == 1 and $.b", 10, "expected `&&`"),
        ("$.a == 1 &&", 12, "the query ends here"),
        ("$.a === 1", 7, "expected a path"),
        ("($.a == 1", 10, "expected `)`"),
        ("$.a == 1)", 9, "found ')'"),
        ("$.a], [?$.b", 4, "found ']'"),
        ("$.a, $.b", 4, "found ','"),
        ("$.a == 'x", 8, "not closed"),
        ("$.a == 'x\u{1}'", 10, "control character"),
        (r"$.a == '\x'", 10, "no escape"),
        (r"$.a == '\uD800'", 10, "surrogate"),
        (r"$.a == '\uDC00'", 10, "surrogate"),
        (r"$.a == '\u12'", 11, "hex"),
        ("$.a == 01", 8, "no number"),
        ("$.a == 1.", 8, "no number"),
        ("$.a == 1e999", 8, "no number"),
        ("$.a[01]", 5, "leading zero"),
        ("$.a[-0]", 5, "minus zero"),
        ("$.a[9007199254740992]", 5, "2^53"),
        ("$.a[]", 5, "expected a name"),
        ("$.a[1", 6, "expected `]`"),
        ("$.a[b]", 5, "expected a name"),
        ("$.", 3, "expected a name"),
        ("$. a", 3, "expected a name"),
        ("$.1a", 3, "expected a name"),
        ("$.a-b == 1", 4, "found '-'"),
        ("@.a == 1", 1, "`@`"),
        ("$.a == @", 8, "`@`"),
        ("$.a[?@.b] && @.c", 14, "`@`"),
        ("1", 1, "no condition"),
        ("true", 1, "no condition"),
        ("length($.a)", 1, "no condition"),
        ("!length($.a)", 2, "no condition"),
        ("!$.a == 1", 2, "`!`"),
        ("!!$.a", 2, "expected a path"),
        ("$.a[*] == 1", 1, "several values"),
        ("$..a == 1", 1, "several values"),
        ("1 == $.a[0,1]", 6, "several values"),
        ("$.a[0:1] == 1", 1, "several values"),
        ("length($.a[*]) == 1", 8, "several values"),
        ("contains($.a, 'x') == true", 1, "yes or no"),
        ("contains($.a)", 13, "another argument"),
        ("contains($.a, 'x', 'y')", 18, "expected `)`"),
        ("count(1) == 1", 7, "expected a path"),
        ("nope($.a)", 1, "contains"),
        ("match($.a, $.b)", 12, "string literal"),
        ("match($.a, '[')", 12, "RFC 9485"),
        ("match($.a, 'a)|(b')", 12, "RFC 9485"),
        ("search($.a, '\\\\p{L}{999}{999}')", 13, "RFC 9485"),
    ] {
        let error = Query::parse(query).expect_err(query);
        assert_eq!(error.position, position, "{query:?}: {error}");
        assert!(error.message.contains(reason), "{query:?}: {error}");
    }
}

#[test]
fn length_and_depth_are_bounded() {
    let long = format!("$.a == '{}'", "x".repeat(5000));
    assert_eq!(Query::parse(&long).unwrap_err().position, 4097);
    let terms = vec!["$.a"; 585].join(" && ");
    assert!(terms.chars().count() <= 4096);
    assert!(holds(&terms, &json!({"a": 1})));
    for (open, close) in [("(", ")"), ("$[?", "]"), ("$.a[?@", "]"), ("$[?count(", ")]"), ("!(", ")"), ("length(", ")")]
    {
        let nested = |n: usize| format!("{}$.a{}", open.repeat(n), close.repeat(n));
        let error = Query::parse(&nested(300)).unwrap_err();
        assert!(error.message.contains("deep") || error.message.contains("found '$'"), "{open}: {error}");
    }
    assert!(holds(&format!("{}$.a{}", "(".repeat(32), ")".repeat(32)), &json!({"a": 1})));
}

#[test]
fn nested_filters_parse_in_linear_time() {
    // A parser that tries alternatives reads the inner filter once per alternative and level: 2^31 times here.
    let query = format!("{}@.a{}", "$[?@".to_owned() + &"[?@".repeat(30), "]".repeat(31));
    Query::parse(&query).unwrap_err(); // `@@` at the innermost: seen once, and told
    let query = format!("$[?@{}{}", "[?@".repeat(30), "]".repeat(31));
    assert!(!holds(&query, &json!([[[]]])));
}

#[test]
fn a_query_that_multiplies_the_payload_by_itself_runs_out_of_steps() {
    let payload = json!(vec![json!([1, 2]); 2000]);
    for query in ["$..[?$..[?@ == 3]]", "$[?count($..*) == 1]", "$..[?contains($, @)] && $..[?$[?@ == 3]]"] {
        let query = Query::parse(query).unwrap();
        assert_eq!(query.evaluate(&payload), Err(TooCostly));
        assert!(!query.matches(&payload));
    }
    let text = json!({"big": "x".repeat(1 << 20), "many": vec!["y"; 10_000]});
    let query = Query::parse("$.many[?contains($.big, @)]").unwrap();
    assert_eq!(query.evaluate(&text), Err(TooCostly));
    assert!(TooCostly.to_string().contains(&EVALUATION_STEPS_MAX.to_string()));
}

#[test]
fn of_a_payload_only_what_the_query_sees_is_read() {
    let payload = br#"{"a": {"b": 1, "c": [2]}, "d": "x", "a": {"b": [1, {"b": 2}], "b": 3, "e": 4}, "f": {"g": 5}}"#;
    for (query, seen) in [
        ("$.a.b == 3", json!({"a": {"b": 3}})),
        ("$.a.b == 3 && $['d'] == 'x'", json!({"a": {"b": 3}, "d": "x"})),
        ("$.a['b', 'e']", json!({"a": {"b": 3, "e": 4}})),
        ("$.d.e == 1 || $.no", json!({"d": null})),
        ("length($.f) == 1 && $.f.g", json!({"f": {"g": 5}})),
        ("$.f[?@ == $.a.e]", json!({"f": {"g": 5}, "a": {"e": 4}})),
        ("$.f.*", json!({"f": {"g": 5}})),
    ] {
        assert_eq!(Query::parse(query).unwrap().read(payload), Some(seen), "{query}");
    }
    // `$`, and what leads everywhere, see all of it.
    for query in ["$ == 1", "$..g", "$.*", "$[0]"] {
        assert_eq!(Query::parse(query).unwrap().read(payload), serde_json::from_slice(payload).ok(), "{query}");
    }
    let query = Query::parse("$.a == 1").unwrap();
    for text in [&b""[..], b"{", b"{\"a\": 1} 2", b"[1, 2", b"{\"b\": tru}", b"{\"b\": \"\xff\"}", b"{\"a\": 1e999}"] {
        assert_eq!(query.read(text), None, "{}", String::from_utf8_lossy(text));
    }
    for text in [&b"7"[..], b"\"a\"", b"null", b"[{\"a\": 1}]", b"true", b"-1.5", b"{}"] {
        assert!(query.read(text).is_some_and(|seen| !query.matches(&seen)), "{}", String::from_utf8_lossy(text));
    }
    // Passed over, it need only have the form.
    assert_eq!(query.read(br#"{"b": [1e999, "\ud800"], "a": 1}"#), Some(json!({"a": 1})));
}
