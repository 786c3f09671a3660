//! The `filter` stage as the broker runs it, natively.

use filter::{Filter, QUERY_TOO_COSTLY};
use sluice_plugin::testing::{Bench, Input, Verdict, check_cases, run};

const DIFFERS: &str = "payloadQuery does not hold";
const NOT_JSON: &str = "the payload is not JSON, so payloadQuery does not hold";

#[test]
fn the_cases_hold() {
    check_cases::<Filter>(concat!(env!("CARGO_MANIFEST_DIR"), "/cases"));
}

#[test]
fn headers_and_query_decide() {
    let order = || Input::new(r#"{"event":"deployment.completed","severity":9}"#).header("kind", "order");
    let header = |name: &str| Err(format!("header {name:?} does not match"));
    let cases: [(&str, Input, Result<(), String>); 16] = [
        ("", order(), Ok(())),
        ("{}", order(), Ok(())),
        (r#"{"headerMatches":{}}"#, Input::new("anything"), Ok(())),
        (r#"{"headerMatches":null,"payloadQuery":null}"#, order(), Ok(())),
        (r#"{"headerMatches":{"kind":"order"}}"#, order(), Ok(())),
        (r#"{"headerMatches":{"kind":"refund"}}"#, order(), header("kind")),
        (r#"{"headerMatches":{"Kind":"order"}}"#, order(), header("Kind")),
        (r#"{"headerMatches":{"kind":""}}"#, Input::new("{}"), header("kind")),
        (r#"{"headerMatches":{"kind":""}}"#, Input::new("{}").header("kind", ""), Ok(())),
        (r#"{"headerMatches":{"kind":"order","site":"eu"}}"#, order(), header("site")),
        (r#"{"headerMatches":{"kind":"order","site":"eu"}}"#, order().header("site", "eu"), Ok(())),
        (r#"{"payloadQuery":"$.event == 'deployment.completed' && $.severity >= 7"}"#, order(), Ok(())),
        (r#"{"payloadQuery":"$.severity >= 10"}"#, order(), Err(DIFFERS.into())),
        (r#"{"payloadQuery":"!$.severity"}"#, Input::new("not json"), Err(NOT_JSON.into())),
        (r#"{"payloadQuery":"!$.severity"}"#, Input::new(*b"\"\xff\""), Err(NOT_JSON.into())),
        (r#"{"headerMatches":{"kind":"order"},"payloadQuery":"contains($.event,'deploy')"}"#, order(), Ok(())),
    ];
    for (config, input, expected) in cases {
        let outcome = run::<Filter>(config, [input.clone()]).unwrap().remove(0);
        let expected = expected.map_or_else(Verdict::Dropped, |()| Verdict::Passed);
        assert_eq!(outcome.verdict, expected, "{config} on {input:?}");
        assert_eq!(outcome.message, input, "a filter changes nothing");
    }
}

#[test]
fn payloads_are_read_for_a_query_only_and_only_where_headers_match() {
    let inputs = || ["a", "b", "a"].map(|kind| Input::new("{}").header("kind", kind));
    let reads = |config: &str| -> Vec<usize> {
        run::<Filter>(config, inputs()).unwrap().iter().map(|outcome| outcome.payload_reads).collect()
    };
    assert_eq!(reads(r#"{"headerMatches":{"kind":"a"}}"#), [0, 0, 0]);
    assert_eq!(reads(r#"{"headerMatches":{"kind":"a"},"payloadQuery":"$"}"#), [1, 0, 1]);
}

#[test]
fn each_message_of_a_large_batch_gets_its_own_verdict() {
    let inputs = (0..300)
        .map(|n| Input::new(format!("{{\"n\":{n}}}")).header("parity", if n % 2 == 0 { "even" } else { "odd" }));
    let outcomes = run::<Filter>(r#"{"headerMatches":{"parity":"even"},"payloadQuery":"$.n >= 100"}"#, inputs).unwrap();
    for (n, outcome) in outcomes.iter().enumerate() {
        assert_eq!(outcome.verdict == Verdict::Passed, n % 2 == 0 && n >= 100, "message {n}");
    }
    assert_eq!(outcomes.len(), 300);
}

#[test]
fn a_query_that_costs_too_much_rejects_and_does_not_drop() {
    let payload = format!("[{}]", vec!["[1,2]"; 3000].join(","));
    let outcomes = run::<Filter>(r#"{"payloadQuery":"$..[?$..[?@ == 3]]"}"#, [Input::new(payload)]).unwrap();
    let Verdict::Rejected(rejections) = &outcomes[0].verdict else { panic!("{:?}", outcomes[0].verdict) };
    assert_eq!(rejections[0].code, QUERY_TOO_COSTLY);
}

#[test]
fn a_bad_config_is_refused_with_a_reason() {
    let many = (0..65).map(|n| format!("\"h{n}\":\"\"")).collect::<Vec<_>>().join(",");
    for (config, reason) in [
        (r#"{"payloadQuery":"$.a = 1"}"#, "payloadQuery, at position 5: `=` is no operator"),
        (r#"{"payloadQuery":""}"#, "at position 1"),
        (r#"{"payloadQuery":7}"#, "expected a string"),
        (r#"{"headerMatch":{}}"#, "unknown field `headerMatch`"),
        (r#"{"headerMatches":{"n":1}}"#, "expected a string"),
        (r#"{"headerMatches":[]}"#, "expected a map"),
        (r#"[]"#, "the config is not usable"),
        ("{", "the config is not usable"),
        (&format!("{{\"headerMatches\":{{{many}}}}}"), "at most 64"),
    ] {
        let error = Bench::<Filter>::new(config).err().expect(config);
        assert!(error.message.contains(reason), "{config}: {error}");
    }
}
