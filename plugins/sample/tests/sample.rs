//! The `sample` stage as the broker runs it, natively.

use sample::Sample;
use sluice_plugin::testing::{Bench, Input, Outcome, Verdict, check_cases, run};

fn keys(n: u32) -> impl Iterator<Item = Input> {
    (0..n).map(|i| Input::new("{}").key(&format!("key-{i}")))
}

fn kept(config: &str, inputs: impl IntoIterator<Item = Input>) -> Vec<bool> {
    let is_kept = |outcome: Outcome| match outcome.verdict {
        Verdict::Passed => true,
        Verdict::Dropped(reason) if reason == "not in the sample" => false,
        other => panic!("{other:?}"),
    };
    run::<Sample>(config, inputs).expect("the config is right").into_iter().map(is_kept).collect()
}

#[test]
fn the_cases_hold() {
    check_cases::<Sample>(concat!(env!("CARGO_MANIFEST_DIR"), "/cases"));
}

/// 20 000 keys: of a share of a tenth, four standard deviations are 170.
#[test]
fn the_share_is_kept_and_a_higher_rate_keeps_more_of_the_same() {
    let tenth = kept(r#"{"rate":0.1}"#, keys(20_000));
    let count = tenth.iter().filter(|kept| **kept).count();
    assert!((1_830..=2_170).contains(&count), "{count}");
    let fifth = kept(r#"{"rate":0.2}"#, keys(20_000));
    assert!(tenth.iter().zip(&fifth).all(|(tenth, fifth)| !tenth || *fifth), "what a tenth keeps, a fifth keeps too");
    assert!(kept(r#"{"rate":1}"#, keys(500)).iter().all(|kept| *kept));
    assert!(!kept(r#"{"rate":0}"#, keys(500)).contains(&true));
}

#[test]
fn one_value_has_one_fate_wherever_it_stands() {
    let with_id = |id: &str| {
        let mut input = Input::new("no json");
        input.id = id.to_owned();
        input
    };
    let names: Vec<String> = (0..200).map(|i| format!("value-{i}")).collect();
    let by_key = kept(r#"{"rate":0.5}"#, names.iter().map(|name| Input::new("{}").key(name)));
    let by_id = kept(r#"{"rate":0.5}"#, names.iter().map(|name| with_id(name)));
    let pointer = r#"{"rate":0.5,"pointer":"/a/0"}"#;
    let by_pointer = kept(pointer, names.iter().map(|name| Input::new(format!(r#"{{"a":["{name}"]}}"#)).key("always")));
    let falling_back = kept(pointer, names.iter().map(|name| Input::new("no json").key(name)));
    assert!(by_key == by_id && by_key == by_pointer && by_key == falling_back);
    let numbers = |text: &'static str| kept(pointer, [Input::new(text)])[0];
    assert_eq!(numbers(r#"{"a":[17]}"#), numbers(r#"{"a":["17"]}"#));
    let salted = kept(r#"{"rate":0.5,"salt":"b"}"#, names.iter().map(|name| Input::new("{}").key(name)));
    let same = salted.iter().zip(&by_key).filter(|(salted, plain)| salted == plain).count();
    assert!((60..=140).contains(&same), "another sample: {same} of 200 have the same fate");
}

#[test]
fn payloads_are_read_for_a_pointer_only() {
    let read = |config: &str| {
        let outcomes = run::<Sample>(config, keys(8)).unwrap();
        outcomes.iter().map(|outcome| outcome.payload_reads).sum::<usize>()
    };
    assert_eq!((read(r#"{"rate":0.5}"#), read(r#"{"rate":0.5,"pointer":""}"#)), (0, 8));
}

#[test]
fn a_bad_config_is_refused_with_a_reason() {
    for (config, reason) in [
        ("{}", "missing field `rate`"),
        (r#"{"rate":1.01}"#, "from 0 to 1"),
        (r#"{"rate":-0.1}"#, "from 0 to 1"),
        (r#"{"rate":"half"}"#, "invalid type"),
        (r#"{"rate":0.5,"pointer":"a"}"#, "JSON Pointer"),
        (r#"{"rate":0.5,"share":1}"#, "unknown field `share`"),
    ] {
        let error = Bench::<Sample>::new(config).err().expect(config);
        assert!(error.message.contains(reason), "{config}: {error}");
    }
}
