//! A case: a folder with `in.json`, and beside it `config.json`, `stage.json`, `out.json` and `schemas/`. Invariant: a misspelt field is
//! an error, never ignored; the same files make the same messages. Never runs anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::json::read;
use crate::clock::Timestamp;
use crate::message::{MessageId, Offset, TopicId};
use crate::pipeline::draft::Draft;
use crate::pipeline::trial::Setting;

/// The time in all cases, 2026-01-01T00:00:00Z: what a stage makes of the time is the same in each run.
pub(super) const NOW: Timestamp = Timestamp(1_767_225_600_000);
/// Messages of one case: a few batches.
const MESSAGES_MAX: usize = 1000;
/// Schemas of one case: as many as a stage may ask for.
const SCHEMAS_MAX: usize = 64;
/// Cases of one folder.
const CASES_MAX: usize = 1000;
/// The largest message of a topic that says nothing of it.
const PAYLOAD_BYTES_MAX: u64 = 1024 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Case {
    /// The folder's name.
    pub(super) name: String,
    /// What the stage is given beside its messages.
    pub(super) setting: Setting,
    /// The messages.
    pub(super) drafts: Vec<Draft>,
    /// What is to become of them; none before it was written.
    pub(super) expected: Option<Value>,
    /// Where that stands.
    pub(super) out: PathBuf,
}

/// The folders of the cases below `dir`, by name.
pub(super) fn folders(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let unreadable = |error: std::io::Error| format!("{}: {error}", dir.display());
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.join("in.json").is_file() || path.join("out.json").is_file() {
            folders.push(path);
        }
    }
    folders.sort();
    if folders.is_empty() {
        return Err(format!("there is no case in {}: a case is a folder with an in.json", dir.display()));
    }
    if folders.len() > CASES_MAX {
        return Err(format!("there are {} cases in {}: at most {CASES_MAX}", folders.len(), dir.display()));
    }
    Ok(folders)
}

impl Case {
    /// Reads the case in `folder` for `plugin`. A `config.json` or `stage.json` beside the folder serves the cases that have
    /// none of their own.
    pub(super) fn read(folder: &Path, plugin: &str) -> Result<Case, String> {
        let own_or_shared = |name: &str| match read(&folder.join(name))? {
            Some(document) => Ok(Some(document)),
            None => folder.parent().map_or(Ok(None), |dir| read(&dir.join(name))),
        };
        let config = own_or_shared("config.json")?.unwrap_or_else(|| json!({}));
        let stage = own_or_shared("stage.json")?.unwrap_or_else(|| json!({}));
        let Value::Object(mut stage) = stage else { return Err("stage.json: it is a JSON object".to_owned()) };
        let mut fields = Fields(&mut stage);
        let outbound = fields.bool("outbound").map_err(of("stage.json"))?.unwrap_or(false);
        let payload_bytes_max = fields.number("maxMessageSize").map_err(of("stage.json"))?.unwrap_or(PAYLOAD_BYTES_MAX);
        let known = |name: &&String| !["timeoutMs", "memoryMb", "emitTo"].contains(&name.as_str());
        if let Some(unknown) = stage.keys().find(known) {
            return Err(format!("stage.json: there is no field '{unknown}'"));
        }
        let expected = read(&folder.join("out.json"))?;
        let (topic, messages) = match read(&folder.join("in.json"))? {
            Some(document) => messages(document).map_err(of("in.json"))?,
            None => (None, Vec::new()),
        };
        let drafts = messages.into_iter().enumerate().map(|(at, message)| {
            draft(at, message, outbound).map_err(|why| format!("in.json: message {}: {why}", at + 1))
        });
        let drafts = drafts.collect::<Result<Vec<Draft>, String>>()?;
        let topic = topic.as_deref().unwrap_or("test").parse().map_err(of("in.json: topic"))?;
        let schemas = schemas(folder)?;
        let setting = Setting { plugin: plugin.to_owned(), config, topic, stage, schemas, outbound, payload_bytes_max };
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Case { name, setting, drafts, expected, out: folder.join("out.json") })
    }
}

/// What `schemas/ID.json` of the case says is registered as ID, or of all cases if this one has no such folder.
fn schemas(folder: &Path) -> Result<BTreeMap<String, String>, String> {
    let shared = folder.parent().map(|dir| dir.join("schemas"));
    let dirs = [Some(folder.join("schemas")), shared];
    let Some(dir) = dirs.into_iter().flatten().find(|dir| dir.is_dir()) else { return Ok(BTreeMap::new()) };
    let entries = std::fs::read_dir(&dir).map_err(|error| format!("schemas: {error}"))?;
    let mut found = BTreeMap::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let id = name.strip_suffix(".json").ok_or_else(|| format!("schemas/{name}: it is called ID.json"))?;
        let document = read(&path)?.ok_or_else(|| format!("schemas/{name}: it is gone"))?;
        found.insert(id.to_owned(), document.to_string());
    }
    if found.len() > SCHEMAS_MAX {
        return Err(format!("schemas: there are {}, and a stage asks for {SCHEMAS_MAX} at most", found.len()));
    }
    Ok(found)
}

fn of(file: &'static str) -> impl Fn(String) -> String {
    move |why| format!("{file}: {why}")
}

/// One message, a list of them, or `{"topic": …, "messages": […]}`.
fn messages(document: Value) -> Result<(Option<String>, Vec<Value>), String> {
    let (topic, messages) = match document {
        Value::Array(messages) => (None, messages),
        Value::Object(mut whole) => {
            let topic = Fields(&mut whole).text("topic")?;
            match whole.shift_remove("messages") {
                Some(Value::Array(messages)) if whole.is_empty() => (topic, messages),
                Some(Value::Array(_)) => return Err("beside 'messages' stands nothing but 'topic'".to_owned()),
                Some(_) => return Err("'messages' is a list".to_owned()),
                None => (topic, vec![Value::Object(whole)]),
            }
        }
        _ => return Err("it is a message, a list of messages, or an object with 'messages'".to_owned()),
    };
    if messages.len() > MESSAGES_MAX {
        return Err(format!("{} messages: a case has at most {MESSAGES_MAX}", messages.len()));
    }
    Ok((topic, messages))
}

fn draft(at: usize, message: Value, outbound: bool) -> Result<Draft, String> {
    let Value::Object(mut message) = message else { return Err("it is a JSON object".to_owned()) };
    let mut fields = Fields(&mut message);
    let payload = fields.payload()?.ok_or("it has no payload, payloadText or payloadBase64")?;
    let content_type = fields.text("contentType")?.map_or_else(|| payload.content_type.into(), Into::into);
    let published_at = match fields.text("publishedAt")? {
        Some(text) => Timestamp::parse_rfc3339(&text)?,
        None => NOW,
    };
    let id = match fields.text("messageId")? {
        Some(text) => text.parse()?,
        None => MessageId::new(published_at, TopicId(1), 0, at as u64),
    };
    let (partition, offset) = (fields.small("partition", 63)?, fields.number("offset")?);
    let position = match (partition, offset) {
        (None, None) if outbound => Some((0, Offset::new(0, at as u64))),
        (None, None) => None,
        (partition, offset) => Some((u16::from(partition.unwrap_or(0)), Offset(offset.unwrap_or(0)))),
    };
    let draft = Draft {
        id,
        published_at,
        payload: payload.bytes,
        content_type,
        schema_version: fields.text("schemaVersion")?.map(Into::into),
        headers: fields.headers()?.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        key: fields.text("key")?.map(Into::into),
        correlation_id: fields.text("correlationId")?.map(Into::into),
        priority: fields.small("priority", 9)?.unwrap_or(0),
        attempt: u32::from(fields.small("attempt", 255)?.unwrap_or(u8::from(outbound))),
        position,
        drawn: None,
    };
    match message.keys().next() {
        Some(unknown) => Err(format!("there is no field '{unknown}'")),
        None => Ok(draft),
    }
}

/// A payload as a file gives it.
pub(super) struct Payload {
    /// Its bytes.
    pub(super) bytes: Bytes,
    /// What it is, unless its message says so.
    content_type: &'static str,
}

/// The fields of an object, taken out as they are read: what is left at the end is misspelt.
pub(super) struct Fields<'a>(pub(super) &'a mut Map<String, Value>);

impl Fields<'_> {
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name)
    }

    /// A text; null is none.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        match self.take(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("'{name}' is a text")),
        }
    }

    fn number(&mut self, name: &str) -> Result<Option<u64>, String> {
        let number = self.take(name).map(|value| value.as_u64().ok_or_else(|| format!("'{name}' is a whole number")));
        number.transpose()
    }

    fn small(&mut self, name: &str, most: u8) -> Result<Option<u8>, String> {
        let small = |number| u8::try_from(number).ok().filter(|number| *number <= most);
        let number = self.number(name)?;
        number.map(|number| small(number).ok_or_else(|| format!("'{name}' is at most {most}"))).transpose()
    }

    fn bool(&mut self, name: &str) -> Result<Option<bool>, String> {
        let value = self.take(name).map(|value| value.as_bool().ok_or_else(|| format!("'{name}' is true or false")));
        value.transpose()
    }

    /// In order.
    pub(super) fn headers(&mut self) -> Result<Vec<(String, String)>, String> {
        let headers = match self.take("headers") {
            None => return Ok(Vec::new()),
            Some(Value::Object(headers)) => headers,
            Some(_) => return Err("'headers' is an object".to_owned()),
        };
        let texts = headers.into_iter().map(|(name, value)| match value {
            Value::String(value) => Ok((name, value)),
            _ => Err(format!("the header '{name}' is a text")),
        });
        texts.collect()
    }

    /// Under one of three names.
    pub(super) fn payload(&mut self) -> Result<Option<Payload>, String> {
        let json = self
            .take("payload")
            .map(|value| Payload { bytes: value.to_string().into(), content_type: "application/json" });
        let text = self
            .text("payloadText")?
            .map(|text| Payload { bytes: text.into(), content_type: "text/plain; charset=utf-8" });
        let binary = match self.text("payloadBase64")? {
            Some(text) => {
                let bytes = STANDARD.decode(&text).map_err(|error| format!("payloadBase64: {error}"))?;
                Some(Payload { bytes: bytes.into(), content_type: "application/octet-stream" })
            }
            None => None,
        };
        let mut given = [json, text, binary].into_iter().flatten();
        match (given.next(), given.next()) {
            (payload, None) => Ok(payload),
            (_, Some(_)) => Err("one of payload, payloadText and payloadBase64 is enough".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(files: &[(&str, &str)]) -> Result<Case, String> {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("one");
        std::fs::create_dir(&folder).unwrap();
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
        Case::read(&folder, "p")
    }

    #[test]
    fn a_case_is_one_message_a_list_or_a_topic_with_messages() {
        let one = written(&[("in.json", r#"{"topic": "orders", "payload": {"b": 1, "a": 2}, "key": "k"}"#)]).unwrap();
        assert_eq!((one.setting.topic.as_str(), &one.drafts[0].payload[..]), ("orders", &br#"{"b":1,"a":2}"#[..]));
        assert_eq!((one.drafts[0].key.as_deref(), one.expected), (Some("k"), None));
        let list = written(&[("in.json", r#"[{"payloadText": "x"}, {"payloadBase64": "AP8="}]"#)]).unwrap();
        assert_eq!((list.setting.topic.as_str(), list.drafts.len()), ("test", 2));
        assert_eq!(&*list.drafts[0].content_type, "text/plain; charset=utf-8");
        assert_eq!(&list.drafts[1].payload[..], [0, 255]);
        let whole = r#"{"topic": "t", "messages": [{"payload": null, "headers": {"b": "1", "a": "2"}}]}"#;
        let whole = written(&[("in.json", whole)]).unwrap();
        assert_eq!(&whole.drafts[0].payload[..], b"null");
        assert_eq!(whole.drafts[0].headers.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["b", "a"]);
    }

    #[test]
    fn schemas_are_the_cases_own_or_those_of_all() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("schemas/money.json", r#"{"type": "integer"}"#),
            ("a/in.json", "[]"),
            ("b/in.json", "[]"),
            ("b/schemas/orders.v1.json", "true"),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let of = |case: &str| Case::read(&dir.path().join(case), "p").map(|case| case.setting.schemas);
        assert_eq!(of("a").unwrap(), BTreeMap::from([("money".to_owned(), r#"{"type":"integer"}"#.to_owned())]));
        assert_eq!(of("b").unwrap(), BTreeMap::from([("orders.v1".to_owned(), "true".to_owned())]));
        std::fs::write(dir.path().join("b/schemas/notes.txt"), "").unwrap();
        assert!(of("b").unwrap_err().contains("schemas/notes.txt"));
        assert_eq!(folders(dir.path()).unwrap().len(), 2, "they are no case");
    }

    #[test]
    fn on_the_way_out_messages_are_stored_and_attempted() {
        let out = written(&[("in.json", r#"{"payload": 1}"#), ("stage.json", r#"{"outbound": true}"#)]).unwrap();
        assert_eq!((out.drafts[0].attempt, out.drafts[0].position), (1, Some((0, Offset::new(0, 0)))));
        assert!(out.setting.outbound && out.setting.stage.is_empty());
    }

    #[test]
    fn what_is_misspelt_is_told_with_its_file() {
        for (files, why) in [
            ([("in.json", r#"{"payload": 1, "header": {}}"#)], "in.json: message 1: there is no field 'header'"),
            ([("in.json", r#"[{"payload": 1, "payloadText": ""}]"#)], "in.json: message 1: one of payload"),
            ([("in.json", r#"[{"key": "k"}]"#)], "in.json: message 1: it has no payload"),
            ([("in.json", r#"{"messages": [], "key": "k"}"#)], "in.json: beside 'messages'"),
            ([("in.json", r#"{"payload": 1, "priority": 10}"#)], "in.json: message 1: 'priority' is at most 9"),
            ([("in.json", r#"{"payload": 1, "headers": {"a": 1}}"#)], "in.json: message 1: the header 'a'"),
            ([("in.json", "3")], "in.json: it is a message"),
            ([("stage.json", r#"{"timeout": 1}"#)], "stage.json: there is no field 'timeout'"),
        ] {
            let said = written(&files).unwrap_err();
            assert!(said.starts_with(why), "{said}");
        }
        assert!(written(&[("in.json", "{")]).unwrap_err().contains("in.json: "));
    }

    #[test]
    fn what_stands_beside_the_cases_serves_those_that_have_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"shared": true}"#).unwrap();
        for (name, config) in [("a", None), ("b", Some(r#"{"own": true}"#))] {
            let folder = dir.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("in.json"), "[]").unwrap();
            if let Some(config) = config {
                std::fs::write(folder.join("config.json"), config).unwrap();
            }
        }
        let folders = folders(dir.path()).unwrap();
        let configs: Vec<Value> =
            folders.iter().map(|folder| Case::read(folder, "p").unwrap().setting.config).collect();
        assert_eq!(configs, [json!({"shared": true}), json!({"own": true})]);
        assert!(super::folders(&folders[0]).unwrap_err().contains("there is no case"));
    }
}
