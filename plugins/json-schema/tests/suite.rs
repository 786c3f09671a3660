//! The official JSON-Schema-Test-Suite through the stage, natively: every required test of every draft. That the component says
//! the same in the broker's engine is shown by the broker's own tests.

use std::{collections::BTreeMap, io::Read};

use flate2::read::GzDecoder;
use json_schema::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use sluice_plugin::testing::{Bench, Input, Verdict};

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

fn suite() -> Suite {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/json-schema-suite.json.gz");
    let packed = std::fs::read(path).expect("the suite is there");
    let mut text = String::new();
    GzDecoder::new(packed.as_slice()).read_to_string(&mut text).expect("it is packed");
    serde_json::from_str(&text).expect("it is JSON")
}

/// The remote schemas that a draft's tests refer to: those of its own folder, and those of no draft.
fn remotes(suite: &Suite, draft: &str) -> BTreeMap<String, Value> {
    let folder = |uri: &str| {
        uri.trim_start_matches("http://localhost:1234/").split_once('/').map(|(folder, _)| folder.to_owned())
    };
    let is_of = |uri: &str| match folder(uri) {
        Some(folder) if folder.starts_with("draft") => folder == format!("draft{draft}"),
        _ => true,
    };
    suite.remotes.iter().filter(|(uri, _)| is_of(uri)).map(|(uri, schema)| (uri.clone(), schema.clone())).collect()
}

#[test]
fn every_required_test_of_every_draft_passes() {
    let suite = suite();
    let (mut ran, mut wrong) = (0, Vec::new());
    for (draft, files) in &suite.tests {
        let remotes = remotes(&suite, draft);
        for (file, groups) in files {
            for group in groups {
                // Other schemas are given where the schema may refer to them: what it doesn't need can't help it.
                let refers = group.schema.to_string().contains("localhost:1234");
                let references = if refers { json!(remotes) } else { json!({}) };
                let config = json!({"schema": group.schema, "draft": draft, "references": references}).to_string();
                let place = format!("{draft} {file}: {}", group.description);
                let bench = match Bench::<JsonSchema>::new(&config) {
                    Ok(bench) => bench,
                    Err(error) => {
                        wrong.push(format!("{place}: {error}"));
                        continue;
                    }
                };
                let inputs = group.tests.iter().map(|test| Input::new(test.data.to_string()));
                for (test, outcome) in group.tests.iter().zip(bench.run(inputs).unwrap()) {
                    ran += 1;
                    if (outcome.verdict == Verdict::Passed) != test.valid {
                        wrong.push(format!("{place}: {}: {:?}", test.description, outcome.verdict));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {ran}:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(ran, 4836, "none is passed over");
}
