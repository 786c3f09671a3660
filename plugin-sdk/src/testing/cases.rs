//! Cases in folders: `in.json`, `config.json`, `out.json`, the ones that `sluice plugin test` runs in the broker's own engine.
//! Invariant: a message goes on as it came but for what a case names, so an edit that nobody expects is a difference; a
//! misspelt field is an error. Never passes over a folder.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Bench, Emitted, Input, Outcome, Verdict};
use crate::Stage;

/// The folder of what is registered: no case.
const SCHEMAS: &str = "schemas";

/// Runs the stage over every case in `folder`: each folder in it holds `in.json` (a message, a list of them, or `{topic,
/// messages}`), `config.json` (the stage's config), `stage.json` (`{emitTo, outbound}`; these two may also stand in `folder`
/// itself, for all) and `out.json` (a list with what becomes of each). `schemas/ID.json`, of the case or of all, is what is
/// registered as ID.
///
/// A message is `{payload | payloadText | payloadBase64, headers, key, contentType, messageId, correlationId, schemaVersion,
/// priority}`. An outcome is `{verdict}` and, for a message that goes on (`pass`, `changed`), what differs: `payload` (or
/// `payloadText`, `payloadBase64`), `contentType`, `headers`, `key`, `emitted`; for one that is `dropped` its `reason`, for one that
/// is `rejected` its `faults` (`{code, message, pointer}`, of which those fields are compared that are there); `fault` is the stage's
/// own.
///
/// # Panics
/// With the case and the difference, if an outcome is another one; if a file can't be read; if there is no case.
pub fn check_cases<S: Stage>(folder: impl AsRef<Path>) {
    let folder = folder.as_ref();
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut cases: Vec<_> = entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    cases.retain(|path| path.is_dir() && !path.ends_with(SCHEMAS));
    cases.sort();
    assert!(!cases.is_empty(), "{} holds no case", folder.display());
    for case in cases {
        check::<S>(&case);
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Messages {
    Several(Vec<Value>),
    Of { topic: String, messages: Vec<Value> },
    One(Value),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StageFile {
    #[serde(default)]
    emit_to: Vec<String>,
    #[serde(default)]
    outbound: bool,
    // Time and memory are the broker's engine's; they may stand there for it.
    #[serde(rename = "timeoutMs")]
    _timeout_ms: Option<u64>,
    #[serde(rename = "memoryMb")]
    _memory_mb: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Given {
    #[serde(default, deserialize_with = "present")]
    payload: Option<Value>,
    payload_text: Option<String>,
    payload_base64: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    key: Option<String>,
    content_type: Option<String>,
    message_id: Option<String>,
    correlation_id: Option<String>,
    schema_version: Option<String>,
    #[serde(default)]
    priority: u8,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wanted {
    verdict: String,
    #[serde(default, deserialize_with = "present")]
    payload: Option<Value>,
    payload_text: Option<String>,
    payload_base64: Option<String>,
    content_type: Option<String>,
    headers: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "present")]
    key: Option<Option<String>>,
    reason: Option<String>,
    faults: Option<Vec<Value>>,
    #[serde(default)]
    emitted: Vec<Value>,
    // The engine's word for a fault; natively there is but one.
    #[serde(rename = "cause")]
    _cause: Option<String>,
    #[serde(rename = "detail")]
    _detail: Option<String>,
}

/// A field that is there, also where it is null.
fn present<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = fs::read_to_string(path).ok()?;
    Some(parse(&path.display().to_string(), serde_json::from_str(&text)))
}

fn parse<T>(place: &str, parsed: serde_json::Result<T>) -> T {
    parsed.unwrap_or_else(|e| panic!("{place}: {e}"))
}

/// A file of the case, or of the folder that all cases are in.
fn own_or_shared<T: DeserializeOwned>(case: &Path, name: &str) -> Option<T> {
    read(&case.join(name)).or_else(|| read(&case.parent()?.join(name)))
}

/// What is registered, by id.
fn schemas(case: &Path) -> BTreeMap<String, String> {
    let dirs = [Some(case.join(SCHEMAS)), case.parent().map(|folder| folder.join(SCHEMAS))];
    let Some(dir) = dirs.into_iter().flatten().find(|dir| dir.is_dir()) else { return BTreeMap::new() };
    let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    let of = |path: std::path::PathBuf| {
        let id = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        (id, fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    };
    paths.map(of).collect()
}

fn check<S: Stage>(case: &Path) {
    let place = case.display();
    let config = own_or_shared(case, "config.json").unwrap_or_else(|| json!({}));
    let stage: StageFile = own_or_shared(case, "stage.json").unwrap_or_default();
    let messages = read(&case.join("in.json")).unwrap_or_else(|| panic!("{place} has no in.json"));
    let (topic, messages) = match messages {
        Messages::Several(messages) => (None, messages),
        Messages::Of { topic, messages } => (Some(topic), messages),
        Messages::One(message) => (None, vec![message]),
    };
    let wanted: Vec<Wanted> = read(&case.join("out.json")).unwrap_or_else(|| panic!("{place} has no out.json"));
    assert_eq!(messages.len(), wanted.len(), "{place}: messages in, and outcomes");
    let schemas = schemas(case);
    let schemas = schemas.iter().map(|(id, definition)| (id.as_str(), definition.as_str()));
    let mut bench = Bench::<S>::with_schemas(&config.to_string(), schemas).unwrap_or_else(|e| panic!("{place}: {e}"));
    bench = stage.emit_to.iter().fold(bench, |bench, topic| bench.emit_to(topic));
    bench = if stage.outbound { bench.on_the_way_out() } else { bench };
    bench = bench.topic(topic.as_deref().unwrap_or("test"));
    let inputs =
        messages.into_iter().map(|message| input(parse(&format!("{place}/in.json"), serde_json::from_value(message))));
    let inputs: Vec<Input> = inputs.map(|input| stored(input, stage.outbound)).collect();
    // A fault is the whole batch's; as the broker does, the messages are then run one by one.
    let outcomes: Vec<Option<Outcome>> = match bench.run(inputs.clone()) {
        Ok(outcomes) => outcomes.into_iter().map(Some).collect(),
        Err(_) => inputs.iter().map(|input| bench.run([input.clone()]).ok().map(|mut one| one.remove(0))).collect(),
    };
    for (i, ((before, outcome), wanted)) in inputs.iter().zip(&outcomes).zip(&wanted).enumerate() {
        compare(&format!("{place}, message {i}"), before, outcome.as_ref(), wanted);
    }
}

fn stored(mut input: Input, outbound: bool) -> Input {
    if outbound {
        (input.attempt, input.position) = (1, Some(crate::Position { partition: 0, offset: 0 }));
    }
    input
}

/// The bytes that a case names, and what they are unless it says so.
fn bytes(json: Option<&Value>, text: Option<&str>, base64: Option<&str>) -> Option<(Vec<u8>, &'static str)> {
    match (json, text, base64) {
        (Some(json), None, None) => Some((json.to_string().into_bytes(), "application/json")),
        (None, Some(text), None) => Some((text.as_bytes().to_vec(), "text/plain; charset=utf-8")),
        (None, None, Some(base64)) => Some((decode(base64), "application/octet-stream")),
        (None, None, None) => None,
        _ => panic!("one of `payload`, `payloadText` and `payloadBase64` is enough"),
    }
}

fn input(given: Given) -> Input {
    let payload = bytes(given.payload.as_ref(), given.payload_text.as_deref(), given.payload_base64.as_deref());
    let (payload, usual) = payload.expect("a message has `payload`, `payloadText` or `payloadBase64`");
    let input = Input::new(payload);
    Input {
        id: given.message_id.unwrap_or(input.id),
        content_type: given.content_type.unwrap_or_else(|| usual.to_owned()),
        schema_version: given.schema_version,
        headers: given.headers.into_iter().collect(),
        key: given.key,
        correlation_id: given.correlation_id,
        priority: given.priority,
        ..input
    }
}

fn compare(place: &str, before: &Input, outcome: Option<&Outcome>, wanted: &Wanted) {
    let verdict = match outcome.map(|outcome| &outcome.verdict) {
        None => "fault",
        Some(Verdict::Passed) => "pass",
        Some(Verdict::Changed) => "changed",
        Some(Verdict::Dropped(_)) => "dropped",
        Some(Verdict::Rejected(_)) => "rejected",
    };
    assert_eq!(verdict, wanted.verdict, "{place}: {outcome:?}");
    let Some(Outcome { message, emitted, verdict, .. }) = outcome else { return };
    match verdict {
        Verdict::Passed | Verdict::Changed => goes_on(place, before, message, wanted),
        Verdict::Dropped(reason) => {
            let wanted = wanted.reason.as_ref().unwrap_or(reason);
            assert_eq!(reason, wanted, "{place}");
        }
        Verdict::Rejected(faults) => {
            let shown = faults.iter().map(|f| json!({"code": f.code, "message": f.message, "pointer": f.pointer}));
            let shown: Vec<Value> = shown.collect();
            let wanted = wanted.faults.as_ref().unwrap_or(&shown);
            assert_eq!(shown.len(), wanted.len(), "{place}: {shown:?}");
            shown.iter().zip(wanted).for_each(|(made, wanted)| named(place, made, wanted));
        }
    }
    assert_eq!(emitted.len(), wanted.emitted.len(), "{place}: {emitted:?}");
    emitted.iter().zip(&wanted.emitted).for_each(|(made, wanted)| named(place, &shown(made), wanted));
}

fn goes_on(place: &str, before: &Input, after: &Input, wanted: &Wanted) {
    match (
        &wanted.payload,
        bytes(wanted.payload.as_ref(), wanted.payload_text.as_deref(), wanted.payload_base64.as_deref()),
    ) {
        (Some(wanted), _) => {
            let made: Value = parse(place, serde_json::from_slice(&after.payload));
            assert_eq!(made, *wanted, "{place}");
        }
        (None, wanted) => {
            let wanted = wanted.map_or_else(|| before.payload.clone(), |(bytes, _)| bytes);
            let [made, wanted] = [&after.payload, &wanted].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            assert_eq!(made, wanted, "{place}: the payload");
        }
    }
    assert_eq!(&after.content_type, wanted.content_type.as_ref().unwrap_or(&before.content_type), "{place}");
    let sorted = |input: &Input| -> BTreeMap<String, String> { input.headers.iter().cloned().collect() };
    assert_eq!(sorted(after), wanted.headers.clone().unwrap_or_else(|| sorted(before)), "{place}: the headers");
    assert_eq!(&after.key, wanted.key.as_ref().unwrap_or(&before.key), "{place}: the key");
}

/// Each member that is wanted is there, and says that.
fn named(place: &str, made: &Value, wanted: &Value) {
    let wanted = wanted.as_object().unwrap_or_else(|| panic!("{place}: {wanted} is no object"));
    for (name, wanted) in wanted {
        assert_eq!(&made[name], wanted, "{place}: {name} of {made}");
    }
}

fn shown(emitted: &Emitted) -> Value {
    let Emitted { topic, key, payload, headers } = emitted;
    let headers: BTreeMap<&String, &String> = headers.iter().map(|(name, value)| (name, value)).collect();
    let text = String::from_utf8_lossy(payload);
    let json = serde_json::from_slice::<Value>(payload).ok();
    json!({"topic": topic, "key": key, "payload": json, "payloadText": text, "headers": headers})
}

/// Base64 of RFC 4648 §4, padded or not.
fn decode(base64: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for digit in base64.trim_end_matches('=').bytes() {
        let six = ALPHABET.iter().position(|&letter| letter == digit).expect("payloadBase64 is base64");
        bits = bits << 6 | u32::try_from(six).expect("it is below 64");
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    bytes
}
