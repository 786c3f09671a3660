//! The `dedup` stage: drops messages whose value (a header, a place in the payload) was seen within a window.
//! Invariant: a value counts as seen once its message is stored, and not before: it is kept together with that message. Never
//! keeps a value itself, only its hash.

mod window;

use std::fmt::Write as _;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sluice_plugin::{Error, Failure, Message, Stage, kv};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    /// The header whose value tells messages apart.
    header: Option<String>,
    /// A JSON Pointer to the value that does.
    pointer: Option<String>,
    /// How long a value counts as seen, as an ISO 8601 duration.
    window: String,
}

/// The stage: what tells messages apart, and for how long.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Config")]
pub struct Dedup {
    by: By,
    window: Duration,
    /// As it was written, for people.
    shown: String,
}

#[derive(Debug)]
enum By {
    Header(String),
    Pointer(String),
}

impl TryFrom<Config> for Dedup {
    type Error = String;

    fn try_from(config: Config) -> Result<Self, String> {
        let by = match (config.header, config.pointer) {
            (Some(header), None) if !header.is_empty() => By::Header(header),
            (Some(_), None) => return Err("`header` is empty".into()),
            (None, Some(pointer)) if pointer.is_empty() || pointer.starts_with('/') => By::Pointer(pointer),
            (None, Some(pointer)) => {
                return Err(format!("`pointer`: {pointer:?} is no JSON Pointer: it starts with `/` (RFC 6901)"));
            }
            _ => return Err("one of `header` and `pointer` is required, and not both".into()),
        };
        let window = window::parse(&config.window).map_err(|e| format!("`window`: {e}"))?;
        Ok(Self { by, window, shown: config.window })
    }
}

impl Stage for Dedup {
    fn message(&self, message: &Message<'_>) -> Result<(), Failure> {
        if message.position().is_some() {
            let why = "dedup keeps what it has seen, which a subscription's stage can't: bind it to the topic";
            return Err(Error::new(why).into());
        }
        let Some(key) = self.key(message) else { return Ok(()) };
        if let Some(first) = kv::get(&key) {
            let first = String::from_utf8_lossy(&first);
            message.drop(&format!("its value was seen within {}, first in message {first}", self.shown));
            return Ok(());
        }
        message.kv_set(&key, message.id(), Some(self.window));
        Ok(())
    }
}

impl Dedup {
    /// Where the message's value is kept, if it has one. Values are hashed: they may be secret, and longer than a key.
    fn key(&self, message: &Message<'_>) -> Option<String> {
        let mut hasher = Sha256::new();
        // What tells messages apart is part of the key, so that another config does not find this one's values.
        match &self.by {
            By::Header(name) => {
                hasher.update(format!("header\0{name}\0"));
                hasher.update(message.header(name)?);
            }
            By::Pointer(pointer) => {
                let payload: Value = serde_json::from_slice(&message.payload()).ok()?;
                hasher.update(format!("pointer\0{pointer}\0"));
                // Its JSON, members sorted: a string is told from a number, and spacing does not matter.
                hasher.update(payload.pointer(pointer)?.to_string());
            }
        }
        let mut key = String::with_capacity(66);
        key.push_str("d:");
        for byte in hasher.finalize() {
            write!(key, "{byte:02x}").expect("writing to a String does not fail");
        }
        Some(key)
    }
}

sluice_plugin::export!(Dedup);
