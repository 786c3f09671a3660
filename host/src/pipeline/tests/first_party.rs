//! The plugins that come with the binary, as components in the broker's engine. Invariant: every case of `plugins/*/cases` and
//! every required test of the official JSON-Schema-Test-Suite is run here. Never skips one that does not pass.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::catalog::{Compatibility, NewSchema};
use crate::pipeline::builtin::BUILTINS;
use crate::pipeline::component;
use crate::pipeline::draft::{Draft, Processed, Verdict};
use crate::pipeline::kv::{KvRun, Transaction};
use crate::schemas::Schemas;

use super::{Rig, SYSTEM, draft, guest, stage};

#[tokio::test(flavor = "multi_thread")]
async fn every_case_of_every_plugin_holds() {
    let rig = Rig::new().await;
    for builtin in BUILTINS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins").join(builtin.name).join("cases");
        let mut cases: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        cases.sort();
        assert!(cases.len() >= 3, "{} holds {} cases", folder.display(), cases.len());
        for case in cases {
            let read = |name: &str| -> Value {
                let text = std::fs::read_to_string(case.join(name)).unwrap();
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{} {name}: {error}", case.display()))
            };
            let stages = vec![stage("case", builtin.name, read("config.json"))];
            rig.pipelines.set(rig.scope(), stages, None, &SYSTEM).await.unwrap();
            let messages = match read("in.json") {
                Value::Array(messages) => messages,
                message => vec![message],
            };
            let drafts: Vec<Draft> = messages.iter().map(given).collect();
            // As a publish does it: what a plugin keeps is seen by the whole request, however it is cut into batches.
            let values = KvRun::of_all(&Arc::new(Transaction::new(drafts.len())));
            let ran = rig.pipelines.run_with(rig.scope(), &rig.topic, drafts.clone(), Some(values)).await;
            let processed = ran.unwrap().processed;
            let wanted = read("out.json");
            let wanted = wanted.as_array().expect("a list");
            assert_eq!(processed.len(), wanted.len(), "{}", case.display());
            for (i, ((before, after), wanted)) in drafts.iter().zip(&processed).zip(wanted).enumerate() {
                let wanted = wanted.as_object().expect("an object");
                // A message goes on as it came, but for what the case names.
                let mut expected = if after.verdict == Verdict::Pass { told(before) } else { Map::new() };
                if wanted.keys().any(|name| name.starts_with("payload")) {
                    expected.retain(|name, _| !name.starts_with("payload"));
                }
                expected.extend(wanted.clone());
                let made = outcome(after);
                let absent = Value::Null;
                let differing =
                    expected.iter().find(|(name, wanted)| !holds(made.get(*name).unwrap_or(&absent), wanted));
                assert!(differing.is_none(), "{}, message {i}: {differing:?} of {made:?}", case.display());
            }
        }
    }
}

fn given(message: &Value) -> Draft {
    let (text, base64) = (message["payloadText"].as_str(), message["payloadBase64"].as_str());
    let (payload, usual) = match (text, base64) {
        (Some(text), _) => (text.as_bytes().to_vec(), "text/plain; charset=utf-8"),
        (None, Some(base64)) => (STANDARD.decode(base64).unwrap(), "application/octet-stream"),
        (None, None) => (message["payload"].to_string().into_bytes(), "application/json"),
    };
    let mut draft = draft("", &[]);
    draft.payload = payload.into();
    let headers = message["headers"].as_object();
    let text = |value: &Value| value.as_str().unwrap().into();
    draft.headers = headers.into_iter().flatten().map(|(name, value)| (name.as_str().into(), text(value))).collect();
    draft.key = message["key"].as_str().map(Into::into);
    draft.content_type = message["contentType"].as_str().unwrap_or(usual).into();
    draft
}

/// A message as `out.json` writes it.
fn told(draft: &Draft) -> Map<String, Value> {
    let headers: BTreeMap<&str, &str> = draft.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
    let told = json!({
        "payload": serde_json::from_slice::<Value>(&draft.payload).ok(),
        "payloadText": String::from_utf8_lossy(&draft.payload),
        "contentType": &*draft.content_type,
        "headers": headers,
        "key": draft.key.as_deref(),
    });
    told.as_object().cloned().unwrap()
}

/// What became of it.
fn outcome(after: &Processed) -> Map<String, Value> {
    let mut outcome = told(&after.draft);
    outcome.insert("verdict".to_owned(), after.trail[0].word.as_str().into());
    match &after.verdict {
        Verdict::Drop { reason, .. } => drop(outcome.insert("reason".to_owned(), (**reason).into())),
        Verdict::Reject(rejection) => {
            let faults = rejection.faults.iter().map(
                |fault| json!({"code": &*fault.code, "message": &*fault.message, "pointer": fault.pointer.as_deref()}),
            );
            outcome.insert("faults".to_owned(), faults.collect());
        }
        Verdict::Pass | Verdict::Fault(_) => {}
    }
    outcome
}

/// What is wanted is there; in a list, as many, and of each what is named.
fn holds(made: &Value, wanted: &Value) -> bool {
    match (made, wanted) {
        (Value::Array(made), Value::Array(wanted)) if wanted.iter().all(Value::is_object) => {
            let named = |(made, wanted): (&Value, &Value)| {
                wanted.as_object().is_some_and(|wanted| wanted.iter().all(|(name, wanted)| made[name] == *wanted))
            };
            made.len() == wanted.len() && made.iter().zip(wanted).all(named)
        }
        _ => made == wanted,
    }
}

/// The SDK has all powers; what is listed at an upload must be what the plugin calls.
#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_imports_no_power_that_it_does_not_call() {
    let example = ("header-filter", guest("header_filter"));
    let builtins = BUILTINS.map(|builtin| (builtin.name, Bytes::from_static(builtin.bytes)));
    for (name, bytes) in builtins.into_iter().chain([example]) {
        let imports = component::check(bytes).await.unwrap();
        let ours: Vec<&str> = imports.iter().filter_map(|import| import.strip_prefix("sluice:plugin/")).collect();
        let wanted: &[&str] = match name {
            "dedup" => &["kv@1.0.0", "types@1.0.0"],
            "jq" => &["log@1.0.0", "types@1.0.0"],
            "json-schema" => &["schemas@1.0.0", "types@1.0.0"],
            _ => &["types@1.0.0"],
        };
        let ours: BTreeSet<&str> = ours.into_iter().collect();
        assert_eq!(ours, wanted.iter().copied().collect(), "{name}");
    }
}

/// Registered schemas that refer to nothing, and one in the config that refers to them: by an id, and by a URI.
#[tokio::test(flavor = "multi_thread")]
async fn a_reference_leads_to_a_registered_schema_and_to_its_version_of_now() {
    let rig = Rig::new().await;
    let register = async |version: &str, kind: &str| {
        let new = NewSchema {
            id: "money".to_owned(),
            version: version.to_owned(),
            definition: json!({"$defs": {"amount": {"type": kind}}}).to_string(),
            compatibility: Compatibility::None,
        };
        Schemas::new(rig.catalog.clone(), 100).register(new, &SYSTEM).await.unwrap();
    };
    let valid = async || -> Vec<bool> {
        let drafts = [r#"{"total":1}"#, r#"{"total":"x"}"#, r#"{"fee":1}"#, r#"{"fee":"x"}"#];
        let processed = rig.run(drafts.map(|payload| draft(payload, &[])).to_vec()).await;
        processed.iter().map(|processed| processed.verdict == Verdict::Pass).collect()
    };
    let config = json!({
        "schema": {"properties": {
            "total": {"$ref": "money#/$defs/amount"},
            "fee": {"$ref": "https://example.com/money#/$defs/amount"},
        }},
        "references": {"https://example.com/money": "money"},
    });
    let stages = || vec![stage("check", "json-schema", config.clone())];
    let refused = rig.pipelines.set(rig.scope(), stages(), None, &SYSTEM).await.unwrap_err();
    assert!(format!("{refused:?}").contains("no approved schema"), "{refused:?}");
    register("1", "integer").await;
    rig.pipelines.set(rig.scope(), stages(), None, &SYSTEM).await.unwrap();
    assert_eq!(valid().await, [true, false, true, false]);
    register("2", "string").await;
    rig.pipelines.schema_changed("money", &SYSTEM).await.unwrap();
    assert_eq!(valid().await, [false, true, false, true]);
}

#[derive(Deserialize)]
struct Suite {
    tests: BTreeMap<String, BTreeMap<String, Vec<Group>>>,
    remotes: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Group {
    description: String,
    schema: Value,
    tests: Vec<Test>,
}

#[derive(Deserialize)]
struct Test {
    description: String,
    data: Value,
    valid: bool,
}

/// Of the draft's own folder, and of none.
fn is_of(uri: &str, draft: &str) -> bool {
    let path = uri.trim_start_matches("http://localhost:1234/");
    match path.split_once('/') {
        Some((folder, _)) if folder.starts_with("draft") => folder == format!("draft{draft}"),
        _ => true,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_required_test_of_the_schema_suite_passes_inside_the_component() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/json-schema-suite.json.gz");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*std::fs::read(path).unwrap()).read_to_string(&mut text).unwrap();
    let suite: Suite = serde_json::from_str(&text).unwrap();
    let rig = Rig::new().await;
    let (mut ran, mut wrong) = (0, Vec::new());
    for (named, files) in &suite.tests {
        let remotes: BTreeMap<&String, &Value> = suite.remotes.iter().filter(|(uri, _)| is_of(uri, named)).collect();
        for (file, group) in files.iter().flat_map(|(file, groups)| groups.iter().map(move |group| (file, group))) {
            let place = format!("{named} {file}: {}", group.description);
            let refers = group.schema.to_string().contains("localhost:1234");
            let references = if refers { json!(remotes) } else { json!({}) };
            let config = json!({"schema": group.schema, "draft": named, "references": references});
            let stages = vec![stage("suite", "json-schema", config)];
            if let Err(error) = rig.pipelines.set(rig.scope(), stages, None, &SYSTEM).await {
                wrong.push(format!("{place}: {error}"));
                continue;
            }
            let drafts = group.tests.iter().map(|test| draft(&test.data.to_string(), &[])).collect();
            for (test, processed) in group.tests.iter().zip(rig.run(drafts).await) {
                ran += 1;
                let agrees = match &processed.verdict {
                    Verdict::Pass => test.valid,
                    Verdict::Reject(rejection) => {
                        !test.valid && &*rejection.faults[0].code == "SCHEMA_VALIDATION_ERROR"
                    }
                    Verdict::Drop { .. } | Verdict::Fault(_) => false,
                };
                if !agrees {
                    wrong.push(format!("{place}: {}: {:?}", test.description, processed.verdict));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {ran}:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(ran, 4836, "none is passed over");
}
