//! The `cloudevents` stage as the broker runs it, natively.

use cloudevents::{CloudEvents, NOT_A_CLOUDEVENT};
use serde_json::{Value, json};
use sluice_plugin::testing::{Bench, Input, Outcome, Verdict, check_cases, run};

const STRUCTURED: &str = "application/cloudevents+json";

fn one(config: &str, input: Input) -> Outcome {
    run::<CloudEvents>(config, [input]).expect("the config is good").remove(0)
}

fn to(form: &str, input: Input) -> Outcome {
    one(&json!({"to": form}).to_string(), input)
}

fn typed(payload: impl Into<Vec<u8>>, content_type: &str) -> Input {
    Input { content_type: content_type.into(), ..Input::new(payload) }
}

fn event(input: Input) -> Input {
    let attributes = [("ce-specversion", "1.0"), ("ce-id", "A 1"), ("ce-source", "/mine"), ("ce-type", "t")];
    attributes.iter().fold(input, |input, (name, value)| input.header(name, value))
}

fn document(outcome: &Outcome) -> Value {
    assert_eq!((&outcome.verdict, outcome.message.content_type.as_str()), (&Verdict::Changed, STRUCTURED));
    serde_json::from_slice(&outcome.message.payload).expect("an event is JSON")
}

#[test]
fn the_cases_hold() {
    check_cases::<CloudEvents>(concat!(env!("CARGO_MANIFEST_DIR"), "/cases"));
}

/// The broker's own documents of the same message, from its tests.
#[test]
fn a_plain_message_is_told_of_as_the_broker_does() {
    let mut input = typed(r#"{"a": 1.50}"#, "application/json").header("X-Env", "prod").header("source", "ci");
    input.published_at_ms = 1_700_000_000_250;
    let expected = json!({
        "specversion": "1.0", "id": input.id, "source": "/topics/test", "type": "sluice.message",
        "time": "2023-11-14T22:13:20.250Z", "datacontenttype": "application/json", "data": {"a": 1.50}, "xenv": "prod",
    });
    let outcome = to("structured", input.clone());
    assert_eq!(document(&outcome), expected);
    assert!(outcome.message.text().ends_with(r#""data":{"a": 1.50}}"#), "{}", outcome.message.text());
    assert_eq!(outcome.message.header_value("X-Env"), Some("prod"), "other headers stay");

    (input.key, input.priority, input.correlation_id) = (Some("größe 1".into()), 5, Some("c".into()));
    input.schema_version = Some("2".into());
    let binary = to("binary", input.header("ce-type", "order.created").header("ce-time", "yesterday"));
    let header = |name: &str| binary.message.header_value(name);
    assert_eq!((header("ce-partitionkey"), header("ce-priority")), (Some("größe 1"), Some("5")));
    assert_eq!((header("ce-correlationid"), header("ce-schemaversion")), (Some("c"), Some("2")));
    assert_eq!((header("ce-type"), header("ce-source")), (Some("order.created"), Some("/topics/test")));
    assert_eq!(header("ce-time"), Some("2023-11-14T22:13:20.250Z"), "what is no attribute is replaced");
    assert_eq!((binary.message.text(), binary.message.content_type.as_str()), (r#"{"a": 1.50}"#, "application/json"));
}

#[test]
fn a_message_that_has_the_form_is_not_touched() {
    let structured = typed(r#"{"anything": "at all"}"#, "Application/CloudEvents+JSON; charset=utf-8");
    for (form, input) in [("binary", event(Input::new("x"))), ("structured", structured), ("plain", Input::new("x"))] {
        let outcome = to(form, input.clone());
        assert_eq!((outcome.verdict, outcome.message, outcome.payload_reads), (Verdict::Passed, input, 0), "{form}");
    }
}

#[test]
fn an_event_is_the_same_one_after_a_round_through_all_forms() {
    for (payload, content_type, member) in [
        (&br#"{"a" : 1.50}"#[..], "application/json", "data"),
        (b"\"x\"", "application/vnd.x+json", "data"),
        (b"{half", "application/json", "data_base64"),
        (b"<a/>", "text/xml", "data"),
        (b"ascii", "application/octet-stream", "data_base64"),
        (b"\xff", "text/plain", "data_base64"),
        (b"", "text/plain", "none"),
        (b"", "application/json", "none"),
    ] {
        let input = event(typed(payload, content_type)).header("ce-ext", "€").header("kind", "set by a stage");
        let packed = to("structured", input.clone());
        let written = document(&packed);
        let data = ["data", "data_base64"].into_iter().find(|member| written.get(member).is_some());
        assert_eq!(data.unwrap_or("none"), member, "{written}");
        assert_eq!((&written["id"], &written["ext"], &written["kind"]), (&json!("A 1"), &json!("€"), &Value::Null));
        assert!(packed.message.headers.iter().all(|(name, _)| !name.starts_with("ce-")), "{:?}", packed.message);
        let mut unpacked = to("binary", packed.message.clone()).message;
        let mut wanted = input.clone();
        unpacked.headers.sort();
        wanted.headers.sort();
        assert_eq!(unpacked, wanted);
        for whole in [packed.message, input] {
            let plain = to("plain", whole).message;
            assert_eq!((&*plain.payload, plain.content_type.as_str()), (payload, content_type));
            assert_eq!(plain.headers, [("kind".to_owned(), "set by a stage".to_owned())]);
        }
    }
}

#[test]
fn data_is_what_its_media_type_says() {
    for (members, payload, content_type) in [
        (r#","data":{"a" : 1.50}"#, &b"{\"a\" : 1.50}"[..], "application/json"),
        (r#","data":"text""#, b"\"text\"", "application/json"),
        (r#","data":null"#, b"null", "application/json"),
        (r#","data":"<a\u002f>","datacontenttype":"text/xml""#, b"<a/>", "text/xml"),
        (r#","data_base64":"AP8=""#, b"\x00\xff", "application/octet-stream"),
        (r#","data_base64":"AP8=","datacontenttype":"image/png""#, b"\x00\xff", "image/png"),
        (r#","data_base64":null"#, b"", "application/json"),
        ("", b"", "application/json"),
    ] {
        let text =
            format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","n":5,"b":true,"c":null{members}}}"#);
        let message = to("binary", typed(text, STRUCTURED)).message;
        assert_eq!((&*message.payload, message.content_type.as_str()), (payload, content_type), "{members}");
        assert_eq!((message.header_value("ce-n"), message.header_value("ce-b")), (Some("5"), Some("true")));
        assert_eq!(message.header_value("ce-c"), None);
    }
}

#[test]
fn the_key_of_an_event_is_the_messages_unless_it_has_one() {
    let text = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","partitionkey":"k"}"#;
    assert_eq!(to("plain", typed(text, STRUCTURED)).message.key.as_deref(), Some("k"));
    assert_eq!(to("binary", typed(text, STRUCTURED).key("own")).message.key.as_deref(), Some("own"));
    let mut stored = typed(text, STRUCTURED);
    stored.position = Some(sluice_plugin::Position { partition: 0, offset: 1 });
    let bench = Bench::<CloudEvents>::new(r#"{"to":"binary"}"#).unwrap().on_the_way_out();
    assert_eq!(bench.run([stored]).unwrap()[0].message.key, None);
}

#[test]
fn what_is_no_event_is_rejected_with_every_fault() {
    let faults = |text: &str| -> Vec<(String, String)> {
        match to("binary", typed(text, STRUCTURED)).verdict {
            Verdict::Rejected(faults) => {
                faults.into_iter().map(|f| (f.code.to_string(), f.pointer.unwrap_or_default())).collect()
            }
            other => panic!("{text}: {other:?}"),
        }
    };
    let at = |pointers: &[&str]| -> Vec<(String, String)> {
        pointers.iter().map(|pointer| (NOT_A_CLOUDEVENT.to_owned(), (*pointer).to_owned())).collect()
    };
    assert_eq!(faults("{}"), at(&["/specversion", "/id", "/source", "/type"]));
    let with = |members: &str| format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t"{members}}}"#);
    assert_eq!(faults(&with(r#","My-Ext":"x","n":1.5,"o":{},"time":"now""#)), at(&["/My-Ext", "/n", "/o", "/time"]));
    assert_eq!(faults(&with(r#","data":1,"data_base64":"AA==""#)), at(&["/data_base64"]));
    assert_eq!(faults(&with(r#","data_base64":"?""#)), at(&["/data_base64"]));
    assert_eq!(faults(&with(r#","a/b~c":"x""#)), at(&["/a~1b~0c"]));
    let many: String = (0..61).map(|i| format!(r#","e{i}":"x""#)).collect();
    assert_eq!(faults(&with(&many)), at(&[""]));
    for (text, code) in [("no json", "NOT_JSON"), ("[]", "UNEXPECTED_JSON"), (&with(r#","id":"2""#), "UNEXPECTED_JSON")]
    {
        assert_eq!(faults(text)[0].0, code, "{text}");
    }
}

#[test]
fn type_and_subject_come_from_the_payload_where_they_are_there() {
    let config = r#"{"to":"binary","source":"/shop","type":"order","typePointer":"/kind","subjectPointer":"/id"}"#;
    let attributes = |payload: &str| {
        let message = one(config, Input::new(payload)).message;
        ["ce-source", "ce-type", "ce-subject"].map(|name| message.header_value(name).unwrap_or("-").to_owned())
    };
    assert_eq!(attributes(r#"{"kind":"order.paid","id":7}"#), ["/shop", "order.paid", "7"]);
    for payload in [r#"{"kind":"","id":""}"#, r#"{"kind":{},"id":null}"#, "no json"] {
        assert_eq!(attributes(payload), ["/shop", "order", "-"], "{payload}");
    }
}

#[test]
fn a_bad_config_is_refused_with_a_reason() {
    for (config, reason) in [
        ("{}", "missing field `to`"),
        (r#"{"to":"batch"}"#, "unknown variant `batch`"),
        (r#"{"to":"binary","source":"a b"}"#, "`source` is a URI"),
        (r#"{"to":"binary","type":""}"#, "`type` is not empty"),
        (r#"{"to":"binary","typePointer":"kind"}"#, "`typePointer`"),
        (r#"{"to":"binary","id":"x"}"#, "unknown field `id`"),
    ] {
        let error = Bench::<CloudEvents>::new(config).err().expect(config);
        assert!(error.message.contains(reason), "{config}: {error}");
    }
}
