//! The `dedup` stage as the broker runs it, natively.

use std::time::Duration;

use dedup::Dedup;
use sluice_plugin::testing::{Bench, Input, Verdict, check_cases, run};

const BY_HEADER: &str = r#"{"header":"event-id","window":"PT10M"}"#;

fn event(id: &str) -> Input {
    Input::new("{}").header("event-id", id)
}

fn passed(bench: &Bench<Dedup>, inputs: impl IntoIterator<Item = Input>) -> Vec<bool> {
    let outcomes = bench.run(inputs).expect("the stage runs");
    outcomes.iter().map(|outcome| outcome.verdict == Verdict::Passed).collect()
}

#[test]
fn the_cases_hold() {
    check_cases::<Dedup>(concat!(env!("CARGO_MANIFEST_DIR"), "/cases"));
}

#[test]
fn a_value_passes_once_in_a_window() {
    let bench = Bench::<Dedup>::new(BY_HEADER).unwrap();
    assert_eq!(passed(&bench, [event("a"), event("b"), event("a")]), [true, true, false]);
    assert_eq!(passed(&bench, [event("a"), event("c")]), [false, true]);
    bench.advance(Duration::from_secs(599));
    assert_eq!(passed(&bench, [event("a")]), [false], "seeing it again does not lengthen the window");
    bench.advance(Duration::from_secs(1));
    assert_eq!(passed(&bench, [event("a"), event("a")]), [true, false]);
}

#[test]
fn the_first_one_is_named() {
    let (mut first, mut second) = (event("a"), event("a"));
    (first.id, second.id) = ("id-1".into(), "id-2".into());
    let outcome = run::<Dedup>(BY_HEADER, [first, second]).unwrap().remove(1);
    let reason = "its value was seen within PT10M, first in message id-1";
    assert_eq!(outcome.verdict, Verdict::Dropped(reason.into()));
}

#[test]
fn values_are_told_apart_by_what_they_are_and_what_is_none_passes() {
    let bench = Bench::<Dedup>::new(r#"{"pointer":"/order/id","window":"P1D"}"#).unwrap();
    let inputs = [
        r#"{"order":{"id":7}}"#,
        r#"{"order":{"id":"7"}}"#,
        r#"{"n":1,"order":{"n":2,"id": 7}}"#,
        r#"{"order":{"id":{"a":1,"b":2}}}"#,
        r#"{"order":{"id":{"b":2,"a":1}}}"#,
        r#"{"order":{}}"#,
        r#"{"order":{}}"#,
        "no json",
        "no json",
    ];
    let expected = [true, true, false, true, false, true, true, true, true];
    assert_eq!(passed(&bench, inputs.map(Input::new)), expected);
    let bench = Bench::<Dedup>::new(BY_HEADER).unwrap();
    assert_eq!(passed(&bench, [Input::new("{}"), Input::new("{}"), event(""), event("")]), [true, true, true, false]);
}

#[test]
fn values_are_kept_as_hashes() {
    let bench = Bench::<Dedup>::new(BY_HEADER).unwrap();
    assert_eq!(passed(&bench, [event(&"long".repeat(10_000))]), [true]);
    // `printf 'header\0event-id\0a' | sha256sum`
    assert_eq!(passed(&bench, [event("a")]), [true]);
    assert!(bench.kv("d:f4a6cfbdbfba0644489febdbdd27202e38e38868474b2a144776b41e3d1e62b7").is_some());
}

#[test]
fn on_the_way_out_it_is_a_fault_in_words() {
    let bench = Bench::<Dedup>::new(BY_HEADER).unwrap().on_the_way_out();
    let mut stored = event("a");
    stored.position = Some(sluice_plugin::Position { partition: 0, offset: 1 });
    assert!(bench.run([stored]).unwrap_err().message.contains("bind it to the topic"));
}

#[test]
fn a_bad_config_is_refused_with_a_reason() {
    for (config, reason) in [
        (r#"{"header":"a"}"#, "missing field `window`"),
        (r#"{"window":"PT1M"}"#, "one of `header` and `pointer`"),
        (r#"{"header":"a","pointer":"/a","window":"PT1M"}"#, "one of `header` and `pointer`"),
        (r#"{"header":"","window":"PT1M"}"#, "`header` is empty"),
        (r#"{"pointer":"a","window":"PT1M"}"#, "JSON Pointer"),
        (r#"{"header":"a","window":"10m"}"#, "`window`: \"10m\""),
        (r#"{"header":"a","window":"P2000D"}"#, "more than P366D"),
        (r#"{"header":"a","window":"PT1M","ttl":1}"#, "unknown field `ttl`"),
    ] {
        let error = Bench::<Dedup>::new(config).err().expect(config);
        assert!(error.message.contains(reason), "{config}: {error}");
    }
}
