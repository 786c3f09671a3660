//! Secrets that configs name: `{"$secret": "name"}` stands for the content of a file. Invariant: a secret's text is handed to
//! the plugin's instance and to nothing else: catalog, history, audit and API hold the name, and what a plugin says while it
//! is configured is shown without it. Never writes.

use std::io::Read as _;
use std::path::PathBuf;

use serde_json::Value;

use super::registry::is_plugin_name;
use crate::catalog::model::ResolvedStage;

/// The one member of an object that names a secret.
const MEMBER: &str = "$secret";
/// Bytes of a secret: a chain of certificates fits.
pub const SECRET_BYTES_MAX: u64 = 64 * 1024;
/// Secrets that one config names.
pub const SECRETS_MAX: usize = 64;
/// Shorter lines of a secret that has several are not looked for by themselves: they would hide what is none.
const LINE_BYTES_MIN: usize = 8;
/// What is shown instead.
const HIDDEN: &str = "[secret]";
/// The plugin whose config is a schema: what stands in it is compared with payloads, by whoever may register a schema.
const LITERAL: &str = "json-schema";

/// Where secrets are.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    dir: Option<PathBuf>,
}

/// What must not be said.
#[derive(Clone, Default)]
pub struct Mask(Vec<String>);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mask([redacted])")
    }
}

/// Whether a stage's config may name secrets: what Sluice adds itself has none, and a schema is taken as it is.
#[must_use]
pub fn may_name(stage: &ResolvedStage) -> bool {
    !stage.implicit && stage.spec.plugin != LITERAL
}

/// The secrets that the config of a stage of `plugin` names.
#[must_use]
pub fn names<'c>(plugin: &str, config: &'c Value) -> Vec<&'c str> {
    let mut found = Vec::new();
    if plugin != LITERAL {
        gather(config, &mut found);
    }
    found
}

fn gather<'c>(value: &'c Value, found: &mut Vec<&'c str>) {
    match value {
        Value::Object(fields) => match fields.get(MEMBER) {
            Some(name) => found.extend(name.as_str()),
            None => fields.values().for_each(|value| gather(value, found)),
        },
        Value::Array(items) => items.iter().for_each(|value| gather(value, found)),
        _ => {}
    }
}

impl Secrets {
    /// Those in `dir`, one file each.
    #[must_use]
    pub fn in_dir(dir: Option<PathBuf>) -> Secrets {
        Secrets { dir }
    }

    /// The config with the secrets in their places, as they are now. Reads files.
    ///
    /// # Errors
    /// Each that can't be put in: JSON Pointers into the config, and words.
    pub fn resolve(&self, config: &Value) -> Result<(Value, Mask), Vec<(String, String)>> {
        let mut work = Work { secrets: self, read: Vec::new(), faults: Vec::new() };
        let resolved = work.put_in(config, "");
        if work.faults.is_empty() { Ok((resolved, Mask::of(&work.read))) } else { Err(work.faults) }
    }

    fn read(&self, name: &str) -> Result<String, String> {
        if !is_plugin_name(name) {
            return Err("a secret's name is [a-z0-9][a-z0-9.-]{0,127}".to_owned());
        }
        let Some(dir) = &self.dir else {
            return Err(format!("names the secret '{name}', and plugins.secrets_dir is not set"));
        };
        // The paths of this machine are not the caller's business.
        let missing = |error: std::io::Error| format!("the secret '{name}' can't be read: {}", error.kind());
        let file = std::fs::File::open(dir.join(name)).map_err(missing)?;
        let mut text = String::new();
        file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text).map_err(missing)?;
        if text.len() as u64 > SECRET_BYTES_MAX {
            return Err(format!("the secret '{name}' has more than {SECRET_BYTES_MAX} bytes"));
        }
        // Editors and `echo` end a file with a line end that nobody means.
        let trimmed = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text));
        let text = trimmed.unwrap_or(&text);
        if text.is_empty() { Err(format!("the secret '{name}' is empty")) } else { Ok(text.to_owned()) }
    }
}

struct Work<'s> {
    secrets: &'s Secrets,
    read: Vec<String>,
    faults: Vec<(String, String)>,
}

impl Work<'_> {
    fn put_in(&mut self, value: &Value, at: &str) -> Value {
        match value {
            Value::Object(fields) if fields.contains_key(MEMBER) => match self.secret(fields) {
                Ok(text) => {
                    self.read.push(text.clone());
                    Value::String(text)
                }
                Err(why) => {
                    self.faults.push((at.to_owned(), why));
                    Value::Null
                }
            },
            Value::Object(fields) => {
                let put = |(name, value): (&String, &Value)| {
                    let escaped = name.replace('~', "~0").replace('/', "~1");
                    (name.clone(), self.put_in(value, &format!("{at}/{escaped}")))
                };
                Value::Object(fields.iter().map(put).collect())
            }
            Value::Array(items) => {
                let put = |(n, value)| self.put_in(value, &format!("{at}/{n}"));
                Value::Array(items.iter().enumerate().map(put).collect())
            }
            other => other.clone(),
        }
    }

    fn secret(&self, fields: &serde_json::Map<String, Value>) -> Result<String, String> {
        if self.read.len() >= SECRETS_MAX {
            return Err(format!("a config names at most {SECRETS_MAX} secrets"));
        }
        let name = fields[MEMBER].as_str().filter(|_| fields.len() == 1);
        let name = name.ok_or_else(|| format!("a secret is named as {{\"{MEMBER}\": \"name\"}} and nothing else"))?;
        self.secrets.read(name)
    }
}

impl Mask {
    fn of(secrets: &[String]) -> Mask {
        let mut hidden = Vec::new();
        for secret in secrets {
            hidden.push(secret.clone());
            // As it stands in the JSON that the plugin was given.
            let quoted = Value::String(secret.clone()).to_string();
            hidden.push(quoted[1..quoted.len() - 1].to_owned());
            // A message may hold a line of it alone: the last one that a panic wrote.
            hidden.extend(secret.lines().filter(|line| line.len() >= LINE_BYTES_MIN).map(str::to_owned));
        }
        // The longest first: a part of it must not be taken out of its middle.
        hidden.sort_by_key(|text| std::cmp::Reverse(text.len()));
        hidden.dedup();
        Mask(hidden)
    }

    /// Whether anything may be said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `text` without the secrets, also without the beginning of one at its end, where it was cut.
    #[must_use]
    pub fn hide(&self, mut text: String) -> String {
        for secret in &self.0 {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), HIDDEN);
            }
        }
        let begun = |secret: &String| {
            let ends = secret.char_indices().map(|(at, _)| at).filter(|at| *at >= LINE_BYTES_MIN / 2);
            ends.filter(|at| text.ends_with(&secret[..*at])).max()
        };
        if let Some(begun) = self.0.iter().filter_map(begun).max() {
            text.truncate(text.len() - begun);
            text.push_str(HIDDEN);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secrets(files: &[(&str, &str)]) -> (tempfile::TempDir, Secrets) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let secrets = Secrets::in_dir(Some(dir.path().to_owned()));
        (dir, secrets)
    }

    #[test]
    fn a_secret_is_put_in_wherever_it_is_named() {
        let (_dir, secrets) = secrets(&[("key", "hunter2-hunter2\n"), ("db.password", "a\"b\r\n")]);
        let config = json!({"a": {"$secret": "key"}, "b": [{"c": {"$secret": "db.password"}}], "d": "$secret"});
        let (resolved, _) = secrets.resolve(&config).unwrap();
        assert_eq!(resolved, json!({"a": "hunter2-hunter2", "b": [{"c": "a\"b"}], "d": "$secret"}));
        assert_eq!(names("redact", &config), ["key", "db.password"]);
        assert!(names("json-schema", &config).is_empty(), "a schema is taken as it is");
    }

    #[test]
    fn what_cannot_be_put_in_is_told_by_its_place() {
        let (dir, secrets) = secrets(&[("empty", "\n"), ("long", &"x".repeat(SECRET_BYTES_MAX as usize + 1))]);
        std::fs::write(dir.path().join("binary"), [0xff, 0xfe]).unwrap();
        let bad = [
            json!({"$secret": "absent"}),
            json!({"$secret": "../etc/passwd"}),
            json!({"$secret": ".."}),
            json!({"$secret": ""}),
            json!({"$secret": 3}),
            json!({"$secret": "empty", "more": 1}),
            json!({"$secret": "empty"}),
            json!({"$secret": "long"}),
            json!({"$secret": "binary"}),
        ];
        let faults = secrets.resolve(&json!({"a/b": bad})).unwrap_err();
        let places: Vec<_> = faults.iter().map(|(at, _)| at.clone()).collect();
        assert_eq!(places, (0..9).map(|n| format!("/a~1b/{n}")).collect::<Vec<_>>(), "{faults:?}");
        assert!(!faults.iter().any(|(_, why)| why.contains(&dir.path().display().to_string())), "{faults:?}");
        let unset = Secrets::default().resolve(&json!({"a": {"$secret": "key"}})).unwrap_err();
        assert!(unset[0].1.contains("plugins.secrets_dir"), "{unset:?}");
        let many: Vec<_> = (0..SECRETS_MAX + 1).map(|_| json!({"$secret": "k"})).collect();
        std::fs::write(dir.path().join("k"), "k").unwrap();
        assert_eq!(secrets.resolve(&json!(many)).unwrap_err()[0].0, format!("/{SECRETS_MAX}"));
    }

    #[test]
    fn what_is_said_is_said_without_it() {
        let (_dir, secrets) = secrets(&[("key", "hunter2-hunter2"), ("pem", "-- begin --\nab\"cdefghij\n-- end --")]);
        let (_, mask) = secrets.resolve(&json!([{"$secret": "key"}, {"$secret": "pem"}])).unwrap();
        let hidden = |text: &str| mask.hide(text.to_owned());
        assert_eq!(hidden("bad key hunter2-hunter2!"), "bad key [secret]!");
        assert_eq!(hidden(r#"{"pem":"-- begin --\nab\"cdefghij\n-- end --"}"#), r#"{"pem":"[secret]"}"#);
        assert_eq!(hidden("panicked: ab\"cdefghij"), "panicked: [secret]");
        assert_eq!(hidden("it was cut: hunter2-h"), "it was cut: [secret]");
        assert_eq!(hidden("no secret in it"), "no secret in it");
        assert_eq!(format!("{mask:?}"), "Mask([redacted])");
    }
}
