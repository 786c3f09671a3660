//! Real events: webhook bodies as GitHub sends them, with what two independent validators say of each. Derived from the
//! npm packages @octokit/webhooks-examples and @octokit/webhooks-schemas 7.6.1 (MIT). Never changed by a test.

use std::io::Read as _;
use std::path::PathBuf;

use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// One event.
#[derive(Debug, Deserialize)]
pub struct Event {
    /// `push`, `issues`, …
    pub event: String,
    /// `opened`, …; none for events without.
    pub action: Option<String>,
    /// Whether the payload is valid under [`schema`].
    pub valid: bool,
    /// The body, byte for byte.
    pub payload: Box<RawValue>,
}

impl Event {
    /// The value at a JSON Pointer of the payload, if it is a string.
    #[must_use]
    pub fn text_at(&self, pointer: &str) -> Option<String> {
        let payload: Value = serde_json::from_str(self.payload.get()).expect("events hold JSON");
        payload.pointer(pointer).and_then(Value::as_str).map(str::to_owned)
    }
}

/// All events, in the order of the file.
#[must_use]
pub fn github() -> Vec<Event> {
    let text = unpacked("github-events.ndjson.gz");
    text.lines().map(|line| serde_json::from_str(line).expect("each line is an event")).collect()
}

/// The JSON Schema of all of them.
#[must_use]
pub fn schema() -> Value {
    serde_json::from_str(&unpacked("github-webhooks.schema.json.gz")).expect("a schema is JSON")
}

fn unpacked(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data").join(name);
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut text = String::new();
    GzDecoder::new(file).read_to_string(&mut text).expect("a gzip file of text");
    text
}
