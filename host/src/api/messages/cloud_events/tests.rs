//! Events read in every mode, refused with the place of each fault, and given back by webhooks as they came.

use http::{HeaderName, HeaderValue};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::catalog::model::PushFormat;
use crate::clock::Timestamp;
use crate::delivery::envelope::PushBody;
use crate::message::{Message, MessageId, MessageMeta, Offset, Position, TopicId};

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const EVENT: &str = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t""#;

type Read = Result<PublishRequest, Vec<(String, String)>>;

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    let mut headers = HeaderMap::new();
    for (name, value) in pairs.iter().map(pair) {
        headers.append(name, value);
    }
    headers
}

fn read(headers: &HeaderMap, topic: Option<&str>, body: &[u8]) -> Read {
    let bytes = Bytes::copy_from_slice(body);
    let reading = Reading::new(&bytes, NOW, None, None);
    let found = crate::publish::tests::request("orders", "{}").topic;
    message(&reading, headers, topic, &|_, _| Ok(Arc::clone(&found))).map_err(|problem| {
        let body = problem.item_body();
        if body.errors.is_empty() {
            return vec![(body.code.as_str().to_owned(), body.detail)];
        }
        body.errors.into_iter().map(|fault| (fault.pointer, fault.message)).collect()
    })
}

fn read_structured(event: &str) -> Read {
    read(&headers(&[("content-type", "application/cloudevents+json; charset=UTF-8")]), Some("orders"), event.as_bytes())
}

fn with(members: &str) -> String {
    format!("{EVENT}{members}}}")
}

fn pointers(read: Read) -> Vec<String> {
    read.expect_err("it is wrong").into_iter().map(|(pointer, _)| pointer).collect()
}

fn attributes(request: &PublishRequest) -> Vec<(&str, &str)> {
    request.headers.iter().map(|(name, value)| (&**name, &**value)).collect()
}

#[test]
fn a_binary_event_is_its_headers_and_its_body() {
    let request = read(
        &headers(&[
            ("content-type", "image/png"),
            ("Ce-Type", "t"),
            ("ce-zeta", "Euro%20%E2%82%AC"),
            ("ce-partitionkey", "k"),
            ("ce-source", "/s"),
            ("ce-specversion", "1.0"),
            ("ce-id", "\"quoted 1\""),
            ("x-other", "x"),
        ]),
        Some("orders"),
        b"\x00\xff",
    )
    .expect("right");
    assert_eq!((&request.payload[..], &*request.content_type), (&b"\x00\xff"[..], "image/png"));
    let expected = [
        ("ce-specversion", "1.0"),
        ("ce-id", "quoted 1"),
        ("ce-source", "/s"),
        ("ce-type", "t"),
        ("ce-partitionkey", "k"),
        ("ce-zeta", "Euro €"),
    ];
    assert_eq!(attributes(&request), expected);
    assert_eq!(request.key.as_deref(), Some("k"));
    assert_eq!(request.idempotency_key, Some(identity("/s", "quoted 1")));
}

#[test]
fn the_same_event_is_the_same_request_in_both_modes() {
    let binary = headers(&[
        ("ce-type", "t"),
        ("ce-specversion", "1.0"),
        ("content-type", "application/json"),
        ("ce-source", "/s"),
        ("ce-b", "true"),
        ("ce-a", "5"),
        ("ce-id", "1"),
    ]);
    let binary = read(&binary, Some("orders"), b"{\"x\": 1.50}").expect("right");
    let structured = read_structured(&with(r#","data":{"x": 1.50},"a":5,"b":true,"c":null"#)).expect("right");
    assert_eq!(attributes(&structured), attributes(&binary));
    assert_eq!(structured.payload, binary.payload);
    assert_eq!(structured.hash(), binary.hash());
}

#[test]
fn data_is_what_its_media_type_says() {
    for (members, payload, content_type) in [
        (r#","data":{"a" : 1.50}"#, &b"{\"a\" : 1.50}"[..], "application/json"),
        (r#","data":"text""#, b"\"text\"", "application/json"),
        (r#","data":null"#, b"null", "application/json"),
        (r#","data":"<a\u002f>","datacontenttype":"text/xml""#, b"<a/>", "text/xml"),
        (r#","data":[1],"datacontenttype":"application/vnd.x+json; v=1""#, b"[1]", "application/vnd.x+json; v=1"),
        (r#","data_base64":"AP8=""#, b"\x00\xff", "application/octet-stream"),
        (r#","data_base64":"AP8=","datacontenttype":"image/png""#, b"\x00\xff", "image/png"),
        (r#","data_base64":null"#, b"", "application/json"),
        ("", b"", "application/json"),
    ] {
        let request = read_structured(&with(members)).expect(members);
        assert_eq!((&request.payload[..], &*request.content_type), (payload, content_type), "{members}");
    }
    let mark = ("ce-specversion", "1.0");
    let required = [mark, ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")];
    for (given, body, content_type) in [
        (None, &b"x"[..], "application/octet-stream"),
        (None, b"", "application/json"),
        (Some(FORM), b"a=1", FORM),
        (Some(FORM), b"", "application/json"),
    ] {
        let given = given.map(|given| ("content-type", given));
        let all: Vec<_> = required.into_iter().chain(given).collect();
        let request = read(&headers(&all), Some("orders"), body).expect("right");
        assert_eq!((&request.payload[..], &*request.content_type), (body, content_type));
    }
}

#[test]
fn an_event_has_as_many_attributes_and_bytes_as_a_message_has_of_headers() {
    let many: String = (4..HEADERS_MAX).map(|n| format!(r#","a{n}":"v""#)).collect();
    let request = read_structured(&with(&format!("{many},\"data\":1"))).expect("right");
    assert_eq!(request.headers.len(), HEADERS_MAX);
    let bytes = |request: &PublishRequest| -> usize {
        request.headers.iter().map(|(name, value)| name.len() + value.len()).sum()
    };
    let room = HEADERS_BYTES_MAX - bytes(&read_structured(&with(r#","a":"""#)).expect("right"));
    let request = read_structured(&with(&format!(r#","a":"{}""#, "x".repeat(room)))).expect("right");
    assert_eq!(bytes(&request), HEADERS_BYTES_MAX);
    assert_eq!(pointers(read_structured(&with(&format!(r#","a":"{}""#, "x".repeat(room + 1))))), ["/a"]);

    // A space is three bytes in a header, so a webhook never gets more than the bound.
    let spaces =
        |more: usize| read_structured(&with(&format!(r#","a":"{}{}""#, " ".repeat(room / 3), "x".repeat(more))));
    spaces(room % 3).expect("right");
    assert_eq!(pointers(spaces(room % 3 + 1)), ["/a"]);
}

#[test]
fn an_event_expires_when_it_says() {
    let request = read_structured(&with(r#","expirytime":"2023-11-14T23:13:21+01:00""#)).expect("right");
    assert_eq!(request.expires_at, Some(Timestamp(NOW.0 + 1000)));
    assert!(attributes(&request).contains(&("ce-expirytime", "2023-11-14T23:13:21+01:00")), "kept as it was written");
    for wrong in [r#""2023-11-14T22:13:20Z""#, r#""1900-01-01T00:00:00Z""#, r#""soon""#, "60"] {
        assert_eq!(pointers(read_structured(&with(&format!(r#","expirytime":{wrong}"#)))), ["/expirytime"], "{wrong}");
    }
    let past = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/s"),
        ("ce-type", "t"),
        ("ce-expirytime", "2000-01-01T00:00:00Z"),
    ];
    assert_eq!(pointers(read(&headers(&past), Some("orders"), b"x")), ["/ce-expirytime"]);
    assert_eq!(read_structured(&with("")).expect("right").expires_at, None);
}

#[test]
fn an_events_trace_counts_where_the_request_names_none() {
    let trace = |at: char| TraceContext {
        parent: format!("00-{}-b7ad6b7169203331-01", at.to_string().repeat(32)).into(),
        state: None,
    };
    let of = |members: &str, requests: Option<TraceContext>, is_given: bool| {
        let bytes = Bytes::from(with(members));
        let reading = Reading::new(&bytes, NOW, None, requests).with_trace_given(is_given);
        let found = crate::publish::tests::request("orders", "{}").topic;
        let headers = headers(&[("content-type", STRUCTURED)]);
        message(&reading, &headers, Some("orders"), &|_, _| Ok(Arc::clone(&found))).expect("right").trace
    };
    let own = format!(r#","traceparent":"{}","tracestate":"a=1,b=2""#, trace('a').parent);
    let expected = TraceContext { state: Some("a=1,b=2".into()), ..trace('a') };
    assert_eq!(of(&own, None, false), Some(expected.clone()));
    assert_eq!(of(&own, Some(trace('b')), false), Some(expected), "a span that the broker began");
    assert_eq!(of(&own, Some(trace('b')), true), Some(trace('b')), "the header");
    let half = format!(r#","traceparent":"{}","tracestate":"no state""#, trace('a').parent);
    assert_eq!(of(&half, None, false), Some(trace('a')), "the state alone is malformed");
    for none in ["", r#","traceparent":"mine""#, r#","traceparent":"","tracestate":"a=1""#] {
        assert_eq!(of(none, Some(trace('b')), false), Some(trace('b')), "{none}");
    }
}

#[test]
fn every_fault_of_a_structured_event_has_its_pointer() {
    let long = "x".repeat(HEADERS_BYTES_MAX);
    let many: String = (0..61).map(|n| format!(r#","a{n}":"v""#)).collect();
    for (members, expected) in [
        (r#","data":1,"data_base64":"AA==""#.to_owned(), vec!["/data_base64"]),
        (r#","data_base64":"?""#.to_owned(), vec!["/data_base64"]),
        (r#","data":5,"datacontenttype":"text/plain""#.to_owned(), vec!["/data"]),
        (r#","datacontenttype":"json""#.to_owned(), vec!["/datacontenttype"]),
        (r#","time":"yesterday","subject":"","dataschema":"x""#.to_owned(), vec!["/time", "/subject", "/dataschema"]),
        (r#","myExt":1,"my-ext":"x","a/b":"x""#.to_owned(), vec!["/myExt", "/my-ext", "/a~1b"]),
        (r#","a":1.5,"b":[],"c":{},"d":2147483648"#.to_owned(), vec!["/a", "/b", "/c", "/d"]),
        (r#","subject":5,"time":true"#.to_owned(), vec!["/subject", "/time"]),
        (r#","a":"\u0000","b":"\ud800""#.to_owned(), vec!["/b", "/a"]),
        (r#","a":"1","a":"2""#.to_owned(), vec!["/a"]),
        (format!(r#","a":"{long}""#), vec!["/a"]),
        (format!(r#","partitionkey":"{}""#, "x".repeat(LABEL_BYTES_MAX + 1)), vec!["/partitionkey"]),
        (many, vec![""]),
    ] {
        assert_eq!(pointers(read_structured(&with(&members))), expected, "{members}");
    }
    assert_eq!(pointers(read_structured("{}")), ["/specversion", "/id", "/source", "/type"]);
    assert_eq!(
        pointers(read_structured(r#"{"specversion":"0.3","id":"","source":"a b","type":null}"#)),
        ["/specversion", "/id", "/source", "/type"]
    );
    assert_eq!(pointers(read_structured("[]")), [""]);
    assert_eq!(pointers(read_structured("{")), ["MALFORMED_JSON"]);
    let wide: String = (0..MEMBERS_MAX + 9).map(|n| format!(r#","a{n}":null"#)).collect();
    assert_eq!(pointers(read_structured(&with(&wide))), [""]);
}

#[test]
fn every_fault_of_a_binary_event_names_its_header() {
    let wrong = headers(&[
        ("content-type", "png"),
        ("ce-specversion", "0.3"),
        ("ce-id", "%FF"),
        ("ce-type", "a"),
        ("ce-type", "b"),
        ("ce-datacontenttype", "text/plain"),
        ("ce-my-ext", "x"),
        ("ce-data", "x"),
        ("ce-time", "x"),
    ]);
    let mut found = pointers(read(&wrong, Some("orders"), b""));
    found.sort();
    let expected = [
        "/ce-data",
        "/ce-datacontenttype",
        "/ce-id",
        "/ce-my-ext",
        "/ce-source",
        "/ce-specversion",
        "/ce-time",
        "/ce-type",
        "/content-type",
    ];
    assert_eq!(found, expected);
}

#[test]
fn an_event_is_told_by_its_type_or_its_mark_and_a_topic() {
    let mark = ("ce-specversion", "1.0");
    let publish = br#"{"topicName":"orders","payload":1}"#;
    let ordinary = read(&headers(&[mark, ("ce-id", "1")]), None, publish).expect("an ordinary publish");
    assert!(ordinary.headers.is_empty() && ordinary.idempotency_key.is_none());
    let json = ("content-type", "application/json");
    for (given, topic, body, expected) in [
        (&[mark, json][..], None, &b"{}"[..], vec!["/topic", "/topicName", "/payload"]),
        (&[mark, json], None, b"half", vec!["/topic"]),
        (&[mark, ("content-type", "text/xml")], None, b"<a/>", vec!["/topic"]),
        (&[mark, json], None, br#"{"topicName":"a","payload":1,"priority":10}"#, vec!["/priority"]),
        (&[json], Some("orders"), publish, vec!["/topic"]),
        (&[("content-type", "text/xml")], Some("orders"), b"<a/>", vec!["UNSUPPORTED_MEDIA_TYPE"]),
        (&[("content-type", STRUCTURED)], None, b"{}", vec!["/specversion", "/id", "/source", "/type", "/topic"]),
        (&[("content-type", STRUCTURED)], Some("a b"), with("").as_bytes(), vec!["/topic"]),
        (&[("content-type", BATCH)], Some("orders"), b"[]", vec!["UNSUPPORTED_MEDIA_TYPE"]),
        (&[mark, ("content-type", "Application/CloudEvents+xml")], Some("orders"), b"", vec!["UNSUPPORTED_MEDIA_TYPE"]),
    ] {
        assert_eq!(pointers(read(&headers(given), topic, body)), expected, "{given:?} {topic:?}");
    }
}

#[test]
fn a_batch_has_a_result_for_each_event() {
    let good = with(r#","data":1"#);
    let body = Bytes::from(format!("[{good}, {{}}, 5, {good}]"));
    let reading = Reading::new(&body, NOW, None, None);
    let found = crate::publish::tests::request("orders", "{}").topic;
    let find = |_: &TopicName, _: &str| Ok(Arc::clone(&found));
    let results = batch(&reading, Some("orders"), &find).expect("a batch");
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, false, true]);
    assert!(batch(&reading, None, &find).is_err());
    let body = Bytes::from(format!("[{}]", vec!["1"; ITEMS_MAX + 1].join(",")));
    assert!(batch(&Reading::new(&body, NOW, None, None), Some("orders"), &find).is_err());
    let empty = Bytes::from_static(b"[]");
    assert!(batch(&Reading::new(&empty, NOW, None, None), Some("orders"), &find).expect("none").is_empty());
}

/// The message that a publish becomes.
fn stored(request: &PublishRequest) -> Message {
    Message {
        id: MessageId::new(NOW, TopicId(1), 0, 1),
        payload: request.payload.clone(),
        meta: MessageMeta {
            content_type: Arc::clone(&request.content_type),
            schema_version: None,
            headers: request.headers.clone(),
            priority: 0,
            key: request.key.clone(),
            correlation_id: None,
            reply_to: None,
            published_at: NOW,
            expires_at: None,
            trace: None,
            revision: 1,
            dead_letter: None,
            replay_of: None,
        },
    }
}

/// What a webhook's receiver would publish if it handed the event on.
fn handed_on(format: PushFormat, message: &Message) -> PublishRequest {
    let position = Position { topic: TopicId(1), partition: 0, offset: Offset::new(0, 0) };
    let body = PushBody::of(format, &"orders".parse().unwrap(), position, message);
    let mut sent: HeaderMap = body.headers.into_iter().collect();
    if let Some(content_type) = &body.content_type {
        sent.insert(header::CONTENT_TYPE, HeaderValue::try_from(&**content_type).unwrap());
    }
    read(&sent, Some("orders"), &body.bytes).expect("what is sent can be read")
}

/// Characters that attributes may have.
fn text() -> impl Strategy<Value = String> {
    "[^\\p{C}]{1,20}".prop_filter("no noncharacters", |text| check_value("any", text).is_ok())
}

fn data() -> impl Strategy<Value = (Value, Option<&'static str>)> {
    let json_value = prop_oneof![
        Just(json!(null)),
        any::<i64>().prop_map(|number| json!(number)),
        any::<String>().prop_map(|text| json!(text)),
        proptest::collection::btree_map(".{0,5}", any::<bool>(), 0..4).prop_map(|map| json!(map)),
    ];
    prop_oneof![
        Just((json!({}), None)),
        json_value.clone().prop_map(|value| (json!({"data": value}), None)),
        json_value.prop_map(|value| (json!({"data": value}), Some("application/vnd.x+json"))),
        ".{1,40}".prop_map(|text| (json!({"data": text}), Some("text/plain; charset=utf-8"))),
        proptest::collection::vec(any::<u8>(), 1..40)
            .prop_map(|bytes| (json!({"data_base64": STANDARD.encode(bytes)}), Some("image/png"))),
    ]
}

proptest! {
    /// In, stored, out, and in again.
    #[test]
    fn an_event_is_given_back_as_it_came(
        required in (text(), "[a-z/:.#]{1,9}", text()).prop_filter("a reference", |(_, source, _)| check_value("source", source).is_ok()),
        subject in proptest::option::of(text()),
        extensions in proptest::collection::btree_map("x[a-z0-9]{0,19}", "[^\\p{C}]{0,20}", 0..5),
        (data, content_type) in data(),
    ) {
        let (id, source, kind) = &required;
        let mut event = json!({"specversion": "1.0", "id": id, "source": source, "type": kind, "subject": subject});
        let members = event.as_object_mut().unwrap();
        members.extend(extensions.iter().filter(|(name, value)| check_value(name, value).is_ok()).map(|(name, value)| (name.clone(), json!(value))));
        members.extend(content_type.map(|given| ("datacontenttype".to_owned(), json!(given))));
        members.extend(data.as_object().unwrap().clone());
        let first = read_structured(&event.to_string()).expect("right");
        let message = stored(&first);
        for format in [PushFormat::CloudEvents, PushFormat::CloudEventsStructured] {
            let again = handed_on(format, &message);
            prop_assert_eq!(attributes(&again), attributes(&first));
            prop_assert_eq!(&again.payload, &first.payload);
            prop_assert_eq!(&again.content_type, &first.content_type);
            prop_assert_eq!(again.hash(), first.hash());
        }
    }
}
