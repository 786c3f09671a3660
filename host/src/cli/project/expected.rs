//! What is to become of a case's messages, and what did. Invariant: a message goes on as it came, but for what is named; so
//! an edit that nobody expects is a difference. Never looks at how long anything took.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::case::Fields;
use super::json::{differences, shown};
use crate::message::is_json;
use crate::pipeline::draft::{Draft, Emitted, PayloadFault, Processed, Verdict};

/// The verdicts, as they are written.
const VERDICTS: [&str; 5] = ["pass", "changed", "dropped", "rejected", "fault"];

/// What a pipeline did to `before`, as `out.json` has it.
pub(super) fn outcome(before: &Draft, after: &Processed) -> Value {
    let mut out = Map::new();
    out.insert("verdict".to_owned(), word(after).into());
    match &after.verdict {
        Verdict::Pass => {
            let draft = &after.draft;
            if draft.payload != before.payload {
                let (name, value) = payload(&draft.payload, &draft.content_type);
                out.insert(name.to_owned(), value);
            }
            if draft.content_type != before.content_type {
                out.insert("contentType".to_owned(), json!(&*draft.content_type));
            }
            if draft.headers != before.headers {
                out.insert("headers".to_owned(), headers(&draft.headers));
            }
            if draft.key != before.key {
                out.insert("key".to_owned(), json!(draft.key.as_deref()));
            }
        }
        Verdict::Drop { reason, .. } => {
            out.insert("reason".to_owned(), json!(&**reason));
        }
        Verdict::Reject(rejection) => {
            out.insert("faults".to_owned(), rejection.faults.iter().map(fault).collect());
        }
        Verdict::Fault(fault) => {
            out.insert("cause".to_owned(), fault.cause.as_str().into());
            out.insert("detail".to_owned(), json!(&*fault.detail));
        }
    }
    if !after.emitted.is_empty() {
        out.insert("emitted".to_owned(), after.emitted.iter().map(emitted).collect());
    }
    Value::Object(out)
}

/// Where what became of `before` is not what is expected; an error if the expectation is none.
pub(super) fn unlike(expected: &Value, before: &Draft, after: &Processed) -> Result<Vec<String>, String> {
    let Value::Object(mut expected) = expected.clone() else { return Err("it is a JSON object".to_owned()) };
    let mut fields = Fields(&mut expected);
    let verdict = fields.text("verdict")?.ok_or_else(|| format!("it has no verdict: {}", VERDICTS.join(", ")))?;
    if !VERDICTS.contains(&verdict.as_str()) {
        return Err(format!("'{verdict}' is no verdict: {}", VERDICTS.join(", ")));
    }
    let mut unlike = Vec::new();
    if verdict != word(after) {
        let found = outcome(before, after);
        unlike.push(format!("/verdict: expected {verdict}, it is {}", shown(&found)));
        return Ok(unlike);
    }
    let emits = fields.0.shift_remove("emitted").unwrap_or_else(|| json!([]));
    match &after.verdict {
        Verdict::Pass => goes_on(&mut fields, before, &after.draft, &mut unlike)?,
        Verdict::Drop { reason, .. } => {
            if let Some(wanted) = fields.text("reason")? {
                unlike.extend(differences("/reason", &json!(wanted), &json!(&**reason)));
            }
        }
        Verdict::Reject(rejection) => {
            if let Some(wanted) = fields.0.shift_remove("faults") {
                let found: Value = rejection.faults.iter().map(fault).collect();
                unlike.extend(differences("/faults", &wanted, &narrowed(&wanted, found)));
            }
        }
        Verdict::Fault(fault) => {
            if let Some(wanted) = fields.text("cause")? {
                unlike.extend(differences("/cause", &json!(wanted), &json!(fault.cause.as_str())));
            }
            if let Some(part) = fields.text("detail")?.filter(|part| !fault.detail.contains(part.as_str())) {
                unlike.push(format!("/detail: expected {part:?} in it, it is {:?}", &*fault.detail));
            }
        }
    }
    if let Some(unknown) = fields.0.keys().next() {
        return Err(format!("a message that is '{verdict}' has no field '{unknown}'"));
    }
    emitted_unlike(&emits, &after.emitted, &mut unlike)?;
    Ok(unlike)
}

/// A message that goes on.
fn goes_on(fields: &mut Fields<'_>, before: &Draft, after: &Draft, unlike: &mut Vec<String>) -> Result<(), String> {
    let json = fields.0.get("payload").cloned();
    match (json, fields.payload()?) {
        (Some(wanted), _) => unlike.extend(payload_unlike("/payload", &wanted, &after.payload)),
        (None, Some(wanted)) if wanted.bytes == after.payload => {}
        (None, None) if before.payload == after.payload => {}
        (None, wanted) => {
            let wanted = wanted.map_or_else(|| before.payload.clone(), |wanted| wanted.bytes);
            let [wanted, found] = [wanted, after.payload.clone()].map(|bytes| payload(&bytes, &after.content_type).1);
            unlike.push(format!("/payload: expected {}, it is {}", shown(&wanted), shown(&found)));
        }
    }
    let content_type = fields.text("contentType")?.unwrap_or_else(|| before.content_type.to_string());
    unlike.extend(differences("/contentType", &json!(content_type), &json!(&*after.content_type)));
    let named = fields.0.contains_key("headers");
    let given: Map<String, Value> = fields.headers()?.into_iter().map(|(name, value)| (name, value.into())).collect();
    let wanted = if named { Value::Object(given) } else { headers(&before.headers) };
    unlike.extend(differences("/headers", &wanted, &headers(&after.headers)));
    let named = fields.0.contains_key("key");
    let key = fields.text("key")?;
    let wanted = if named { json!(key) } else { json!(before.key.as_deref()) };
    unlike.extend(differences("/key", &wanted, &json!(after.key.as_deref())));
    Ok(())
}

fn emitted_unlike(wanted: &Value, found: &[Emitted], unlike: &mut Vec<String>) -> Result<(), String> {
    let Some(wanted) = wanted.as_array() else { return Err("'emitted' is a list".to_owned()) };
    if wanted.len() != found.len() {
        let found: Value = found.iter().map(emitted).collect();
        unlike.push(format!(
            "/emitted: expected {} messages, there are {}: {}",
            wanted.len(),
            found_len(&found),
            shown(&found)
        ));
        return Ok(());
    }
    for (at, (wanted, found)) in wanted.iter().zip(found).enumerate() {
        let Value::Object(mut wanted) = wanted.clone() else { return Err(format!("emitted/{at} is an object")) };
        let place = |name: &str| format!("/emitted/{at}/{name}");
        let mut fields = Fields(&mut wanted);
        let topic = fields.text("topic")?.ok_or_else(|| format!("emitted/{at} has no topic"))?;
        unlike.extend(differences(&place("topic"), &json!(topic), &json!(found.topic.as_str())));
        let json = fields.0.get("payload").cloned();
        match (json, fields.payload()?) {
            (Some(wanted), _) => unlike.extend(payload_unlike(&place("payload"), &wanted, &found.payload)),
            (None, Some(wanted)) if wanted.bytes != found.payload => {
                unlike.push(format!("{}: it is {}", place("payload"), shown(&payload(&found.payload, "").1)));
            }
            (None, Some(_)) => {}
            (None, None) => return Err(format!("emitted/{at} has no payload")),
        }
        unlike.extend(differences(&place("key"), &json!(fields.text("key")?), &json!(found.key.as_deref())));
        let given: Map<String, Value> =
            fields.headers()?.into_iter().map(|(name, value)| (name, value.into())).collect();
        unlike.extend(differences(&place("headers"), &Value::Object(given), &headers(&found.headers)));
        if let Some(unknown) = wanted.keys().next() {
            return Err(format!("emitted/{at} has no field '{unknown}'"));
        }
    }
    Ok(())
}

fn found_len(found: &Value) -> usize {
    found.as_array().map_or(0, Vec::len)
}

fn word(processed: &Processed) -> &'static str {
    processed.trail.last().map_or("pass", |stage| stage.word.as_str())
}

fn payload_unlike(at: &str, wanted: &Value, found: &[u8]) -> Vec<String> {
    match serde_json::from_slice::<Value>(found) {
        Ok(found) => differences(at, wanted, &found),
        Err(_) => vec![format!("{at}: expected {}, it is no JSON: {}", shown(wanted), shown(&payload(found, "").1))],
    }
}

/// A payload under the name that shows it best.
fn payload(bytes: &[u8], content_type: &str) -> (&'static str, Value) {
    if is_json(content_type)
        && let Ok(value) = serde_json::from_slice(bytes)
    {
        return ("payload", value);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => ("payloadText", text.into()),
        Err(_) => ("payloadBase64", STANDARD.encode(bytes).into()),
    }
}

fn headers<T: AsRef<str>>(headers: &[(T, T)]) -> Value {
    let pair = |(name, value): &(T, T)| (name.as_ref().to_owned(), Value::from(value.as_ref()));
    Value::Object(headers.iter().map(pair).collect())
}

fn fault(fault: &PayloadFault) -> Value {
    let mut out = json!({"code": &*fault.code, "message": &*fault.message});
    if let Some(pointer) = &fault.pointer {
        out["pointer"] = json!(&**pointer);
    }
    out
}

/// Of the faults that were found, only the fields that are asked for.
fn narrowed(wanted: &Value, found: Value) -> Value {
    let (Some(wanted), Value::Array(mut found)) = (wanted.as_array(), found) else { return Value::Null };
    for (wanted, found) in wanted.iter().zip(&mut found) {
        if let (Some(wanted), Some(found)) = (wanted.as_object(), found.as_object_mut()) {
            found.retain(|name, _| wanted.contains_key(name));
        }
    }
    Value::Array(found)
}

fn emitted(emitted: &Emitted) -> Value {
    let (name, value) = payload(&emitted.payload, "application/json");
    let mut out = json!({"topic": emitted.topic.as_str(), name: value});
    if let Some(key) = &emitted.key {
        out["key"] = json!(&**key);
    }
    if !emitted.headers.is_empty() {
        out["headers"] = headers(&emitted.headers);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Timestamp;
    use crate::message::{MessageId, TopicId};
    use crate::pipeline::draft::{Said, StageWord};

    fn before() -> Draft {
        Draft {
            id: MessageId::new(Timestamp(0), TopicId(1), 0, 0),
            published_at: Timestamp(0),
            payload: r#"{"a":1}"#.into(),
            content_type: "application/json".into(),
            schema_version: None,
            headers: vec![("kind".into(), "order".into())],
            key: Some("k".into()),
            correlation_id: None,
            priority: 0,
            attempt: 0,
            position: None,
            drawn: None,
        }
    }

    fn after(word: Said, verdict: Verdict, change: impl FnOnce(&mut Draft)) -> Processed {
        let mut draft = before();
        change(&mut draft);
        let trail = smallvec::smallvec![StageWord { stage: "trial".into(), word, took: Duration::ZERO }];
        Processed { draft, verdict, emitted: Vec::new(), trail }
    }

    fn told(expected: Value, after: &Processed) -> Vec<String> {
        unlike(&expected, &before(), after).unwrap()
    }

    #[test]
    fn what_is_written_down_is_what_is_expected() {
        let dropped = Verdict::Drop { stage: "s".into(), reason: "old".into() };
        let mut emitting = after(Said::Pass, Verdict::Pass, |_| {});
        emitting.emitted.push(Emitted {
            topic: "audit".parse().unwrap(),
            key: Some("k".into()),
            payload: "{}".into(),
            headers: vec![("a".into(), "b".into())],
            stage: "s".into(),
            lot: before().lot(),
        });
        for after in [
            after(Said::Pass, Verdict::Pass, |_| {}),
            after(Said::Dropped, dropped, |_| {}),
            after(Said::Changed, Verdict::Pass, |draft| {
                draft.payload = "[1, 2]".into();
                draft.headers.clear();
                draft.key = None;
            }),
            after(Said::Changed, Verdict::Pass, |draft| {
                draft.payload = vec![0, 255].into();
                draft.content_type = "application/octet-stream".into();
            }),
            emitting,
        ] {
            let written = outcome(&before(), &after);
            assert_eq!(told(written.clone(), &after), Vec::<String>::new(), "{written}");
        }
    }

    #[test]
    fn an_edit_that_is_not_named_is_a_difference() {
        let changed = after(Said::Changed, Verdict::Pass, |draft| {
            draft.payload = r#"{"a":2}"#.into();
            draft.headers.push(("site".into(), "eu".into()));
            draft.key = None;
        });
        let all = told(json!({"verdict": "changed"}), &changed);
        assert_eq!(
            all,
            [
                r#"/payload: expected {"a":1}, it is {"a":2}"#,
                r#"/headers/site: not expected, it is "eu""#,
                r#"/key: expected "k", it is null"#
            ]
        );
        let named = json!({"verdict": "changed", "payload": {"a": 2.0}, "headers": {"kind": "order", "site": "eu"}, "key": null});
        assert_eq!(told(named, &changed), Vec::<String>::new());
        assert_eq!(told(json!({"verdict": "pass"}), &changed).len(), 1, "another verdict is all there is to say");
    }

    #[test]
    fn faults_are_compared_by_what_is_asked_for() {
        let faults = vec![PayloadFault { code: "C".into(), message: "m".into(), pointer: Some("/a".into()) }];
        let name = || "s".into();
        let rejection = crate::pipeline::draft::Rejection {
            stage: name(),
            plugin: name(),
            version: name(),
            faults,
            on: Default::default(),
        };
        let rejected = after(Said::Rejected, Verdict::Reject(rejection), |_| {});
        for (expected, differences) in [
            (json!({"verdict": "rejected"}), 0),
            (json!({"verdict": "rejected", "faults": [{"code": "C"}]}), 0),
            (json!({"verdict": "rejected", "faults": [{"code": "C", "pointer": "/b"}]}), 1),
            (json!({"verdict": "rejected", "faults": []}), 1),
        ] {
            assert_eq!(told(expected.clone(), &rejected).len(), differences, "{expected}");
        }
    }

    #[test]
    fn an_expectation_that_says_nothing_is_refused() {
        let passed = after(Said::Pass, Verdict::Pass, |_| {});
        for wrong in [json!({}), json!(1), json!({"verdict": "passed"}), json!({"verdict": "pass", "reason": "r"})] {
            assert!(unlike(&wrong, &before(), &passed).is_err(), "{wrong}");
        }
        let emits = json!({"verdict": "pass", "emitted": [{"topic": "t", "payload": 1}]});
        assert!(told(emits, &passed)[0].starts_with("/emitted: expected 1 messages, there are 0"));
    }
}
