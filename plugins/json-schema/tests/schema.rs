//! The `json-schema` stage as the broker runs it, natively.

use std::io::Read;

use flate2::read::GzDecoder;
use json_schema::{JsonSchema, SCHEMA_VALIDATION_ERROR};
use serde_json::{Value, json};
use sluice_plugin::{
    Rejection,
    testing::{Bench, Input, Verdict, check_cases, run},
};

fn faults(schema: &Value, payload: &str) -> Vec<Rejection> {
    let config = json!({ "schema": schema }).to_string();
    match run::<JsonSchema>(&config, [Input::new(payload)]).expect("the schema is good").remove(0).verdict {
        Verdict::Passed => Vec::new(),
        Verdict::Rejected(rejections) => rejections,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_cases_hold() {
    check_cases::<JsonSchema>(concat!(env!("CARGO_MANIFEST_DIR"), "/cases"));
}

#[test]
fn every_fault_is_reported_by_its_place() {
    let schema = json!({
        "type": "object",
        "required": ["id"],
        "properties": {"items": {"items": {"properties": {"a/b": {"type": "integer", "minimum": 0}}}}}
    });
    assert_eq!(faults(&schema, r#"{"id":1,"items":[{"a/b":3}]}"#), []);
    let faults = faults(&schema, r#"{"items":[{"a/b":-1},{"a/b":"x"}]}"#);
    let mut at: Vec<_> = faults.iter().map(|f| (f.pointer.as_deref().unwrap(), f.message.as_str())).collect();
    at.sort_unstable();
    assert_eq!(
        at,
        [
            ("", "\"id\" is a required property"),
            ("/items/0/a~1b", "value is less than the minimum of 0"),
            ("/items/1/a~1b", "value is not of type \"integer\""),
        ]
    );
    assert!(faults.iter().all(|f| f.code == SCHEMA_VALIDATION_ERROR));
}

#[test]
fn each_draft_is_read_as_itself() {
    // `exclusiveMinimum` was a flag of `minimum` in draft 4 and a number since; `prefixItems` came with 2020-12,
    // `dependentRequired` with 2019-09, `if` with 7, `const` with 6.
    let drafts = [
        ("http://json-schema.org/draft-04/schema#", json!({"minimum": 1, "exclusiveMinimum": true}), "1"),
        ("http://json-schema.org/draft-06/schema#", json!({"const": 1}), "2"),
        ("http://json-schema.org/draft-07/schema#", json!({"if": {"type": "integer"}, "then": {"minimum": 5}}), "1"),
        ("https://json-schema.org/draft/2019-09/schema", json!({"dependentRequired": {"a": ["b"]}}), r#"{"a":1}"#),
        ("https://json-schema.org/draft/2020-12/schema", json!({"prefixItems": [{"type": "string"}]}), "[1]"),
    ];
    for (uri, mut schema, payload) in drafts {
        schema["$schema"] = uri.into();
        assert_eq!(faults(&schema, payload).len(), 1, "{uri}");
    }
    assert_eq!(faults(&json!({"prefixItems": [{"type": "string"}]}), "[1]").len(), 1, "2020-12 unless said");
    let seven = json!({"$schema": "http://json-schema.org/draft-07/schema#", "prefixItems": [{"type": "string"}]});
    assert_eq!(faults(&seven, "[1]"), [], "unknown to draft 7");
}

#[test]
fn formats_are_annotations_and_booleans_are_schemas() {
    assert_eq!(faults(&json!({"format": "email"}), r#""no address""#), []);
    let seven = json!({"$schema": "http://json-schema.org/draft-07/schema#", "format": "date-time"});
    assert_eq!(faults(&seven, r#""today""#), []);
    assert_eq!(faults(&json!(true), "1"), []);
    assert_eq!(faults(&json!(false), "1").len(), 1);
    assert_eq!(faults(&json!(r#"{"type":"string"}"#), "1").len(), 1, "a schema as text");
}

#[test]
fn a_choice_at_the_root_is_one_fault_beside_those_of_the_rest() {
    let schema = json!({
        "required": ["id"],
        "oneOf": [{"properties": {"kind": {"const": "a"}}}, {"properties": {"kind": {"const": "b"}}}]
    });
    assert_eq!(faults(&schema, r#"{"id":1,"kind":"a"}"#), []);
    for neither_or_both in [r#"{"id":1,"kind":"c"}"#, r#"{"id":1}"#] {
        let faults = faults(&schema, neither_or_both);
        assert_eq!((faults.len(), faults[0].pointer.as_deref()), (1, Some("")), "{faults:?}");
        assert!(faults[0].message.contains("exactly one"));
    }
    assert!(faults(&schema, r#"{"kind":"c"}"#)[0].message.contains("\"id\" is a required property"));
    assert!(faults(&json!({"anyOf": [false, {"type": "null"}]}), "1")[0].message.contains("any of"));
    let unevaluated = json!({"oneOf": [{"properties": {"a": {}}, "required": ["a"]}], "unevaluatedProperties": false});
    assert_eq!(faults(&unevaluated, r#"{"a":1}"#), []);
    assert_eq!(faults(&unevaluated, r#"{"a":1,"b":1}"#).len(), 1);
}

#[test]
fn faults_are_bounded_and_show_no_values() {
    let payload = json!(vec!["secret"; 1000]).to_string();
    let all = faults(&json!({"items": {"type": "integer"}}), &payload);
    assert_eq!(all.len(), 20);
    assert!(all.iter().all(|fault| !fault.message.contains("secret")), "{all:?}");
    let names: Value = (0..1000).map(|n| (format!("name{n}"), json!(1))).collect();
    let one = faults(&json!({"additionalProperties": false}), &names.to_string());
    assert!(one[0].message.chars().count() <= 512);
}

#[test]
fn a_payload_that_is_not_json_is_rejected() {
    for payload in ["", "{", "plain", "{}{}"] {
        let faults = faults(&json!(true), payload);
        assert_eq!(faults[0].code, "NOT_JSON", "{payload:?}");
    }
}

#[test]
fn references_inside_the_schema_resolve_and_others_refuse_it() {
    let schema = json!({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}});
    assert_eq!(faults(&schema, "1"), []);
    assert_eq!(faults(&schema, "\"x\"").len(), 1);
}

#[test]
fn references_lead_to_what_the_config_names() {
    let config = json!({
        "schema": {"$id": "https://example.com/orders/order", "properties": {"total": {"$ref": "money#/$defs/amount"}}},
        "references": {"https://example.com/orders/money": {"$defs": {"amount": {"type": "integer"}}}},
    });
    let payloads = [r#"{"total":1}"#, r#"{"total":"x"}"#].map(Input::new);
    let outcomes = run::<JsonSchema>(&config.to_string(), payloads).unwrap();
    assert_eq!(outcomes[0].verdict, Verdict::Passed);
    let Verdict::Rejected(faults) = &outcomes[1].verdict else { panic!("{:?}", outcomes[1].verdict) };
    assert_eq!(faults[0].pointer.as_deref(), Some("/total"));
}

#[test]
fn references_lead_to_registered_schemas() {
    let registered = [
        ("money", r##"{"$defs": {"amount": {"type": "integer"}}}"##),
        (
            "order",
            r##"{"properties": {"total": {"$ref": "#/$defs/amount"}}, "$defs": {"amount": {"type": "integer"}}}"##,
        ),
    ];
    let verdicts = |config: Value| {
        let bench = Bench::<JsonSchema>::with_schemas(&config.to_string(), registered).unwrap();
        let outcomes = bench.run([r#"{"total":1}"#, r#"{"total":"x"}"#].map(Input::new)).unwrap();
        outcomes.iter().map(|outcome| outcome.verdict == Verdict::Passed).collect::<Vec<_>>()
    };
    assert_eq!(verdicts(json!({"schema": {"$ref": "order"}})), [true, false], "by its id");
    let inline = json!({"schema": {"properties": {"total": {"$ref": "money#/$defs/amount"}}}});
    assert_eq!(verdicts(inline), [true, false], "into one of them: a broker registers none that leads out of itself");
    let by_uri = json!({
        "schema": {"$id": "https://example.com/a/b", "properties": {"total": {"$ref": "money#/$defs/amount"}}},
        "references": {"https://example.com/a/money": "money"},
    });
    assert_eq!(verdicts(by_uri), [true, false]);
    let unknown = json!({"schema": {"$ref": "refund"}}).to_string();
    let error = Bench::<JsonSchema>::with_schemas(&unknown, registered).err().unwrap();
    assert!(error.message.contains("no approved schema \"refund\""), "{error}");
}

#[test]
fn a_schema_that_names_no_draft_is_of_the_configs() {
    let read_as = |draft: &str, schema: Value| {
        let config = json!({"schema": schema, "draft": draft}).to_string();
        run::<JsonSchema>(&config, [Input::new("1")]).unwrap().remove(0).verdict == Verdict::Passed
    };
    let exclusive = || json!({"minimum": 1, "exclusiveMinimum": true});
    assert!(!read_as("4", exclusive()));
    let mut of_six = json!({"const": 2});
    assert!(!read_as("6", of_six.clone()) && !read_as("7", of_six.clone()));
    of_six["$schema"] = "http://json-schema.org/draft-04/schema#".into();
    assert!(read_as("7", of_six), "what the schema says itself comes first: draft 4 has no `const`");
}

#[test]
fn a_bad_config_is_refused_with_a_reason() {
    for (config, reason) in [
        ("{}", "one of `schema` and `schemaId` is required"),
        (r#"{"schemaId":"orders"}"#, "schemaId \"orders\" came without its schema"),
        (r#"{"schema":{"type":"intger"}}"#, "no usable JSON Schema"),
        (r#"{"schema":{"properties":{"a":{"minimum":"x"}}}}"#, "/properties/a/minimum"),
        (r#"{"schema":"{"}"#, "holds no JSON"),
        (r#"{"schema":7}"#, "no usable JSON Schema"),
        (r#"{"schema":{"pattern":"("}}"#, "no usable JSON Schema"),
        (r#"{"schema":{"$ref":"https://example.com/other.json"}}"#, "no usable JSON Schema"),
        (r##"{"schema":{"$ref":"#/$defs/none"}}"##, "no usable JSON Schema"),
        (r#"{"schema":{"$schema":"https://example.com/own"}}"#, "no usable JSON Schema"),
        (r#"{"schemas":{}}"#, "unknown field `schemas`"),
        (r#"{"schema":{"$ref":"order"}}"#, "no approved schema \"order\""),
        (r#"{"schema":{"$ref":"https://example.com/a"}}"#, "not among `references`"),
        (
            r#"{"schema":{"$ref":"https://example.com/a"},"references":{"https://example.com/a":{"$ref":"b"}}}"#,
            "example.com/b is",
        ),
        (r#"{"schema":{},"draft":"3"}"#, "unknown variant `3`"),
    ] {
        let error = Bench::<JsonSchema>::new(config).err().expect(config);
        assert!(error.message.contains(reason), "{config}: {error}");
    }
    Bench::<JsonSchema>::new(r#"{"schema":{},"schemaId":"orders"}"#).unwrap();
}

fn unpack(name: &str) -> String {
    let path = format!("{}/../../tests/data/{name}.gz", env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    let file = std::fs::File::open(path).expect("the data is in the repository");
    GzDecoder::new(file).read_to_string(&mut text).expect("it unpacks");
    text
}

#[test]
fn real_webhooks_are_judged_as_by_two_other_validators() {
    let schema: Value = serde_json::from_str(&unpack("github-webhooks.schema.json")).unwrap();
    let bench = Bench::<JsonSchema>::new(&json!({ "schema": schema }).to_string()).unwrap();
    let events: Vec<Value> = unpack("github-events.ndjson").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(events.len(), 244);
    let outcomes = bench.run(events.iter().map(|event| Input::new(event["payload"].to_string()))).unwrap();
    for (event, outcome) in events.iter().zip(&outcomes) {
        let valid = outcome.verdict == Verdict::Passed;
        assert_eq!(json!(valid), event["valid"], "{} {}: {:?}", event["event"], event["action"], outcome.verdict);
    }
    assert_eq!(outcomes.iter().filter(|o| o.verdict == Verdict::Passed).count(), 204);
}
