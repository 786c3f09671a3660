//! The `redact` stage: drops, masks or hashes the values that JSON Pointers name.
//! Invariant: what a rule names never leaves in the clear, and every other byte of the payload stays as it was.
//! Never passes a payload it can't read: what isn't JSON is rejected.

mod action;
mod edit;
mod pointer;

use serde::Deserialize;
use serde_json::value::RawValue;
use sluice_plugin::{Failure, Message, NOT_JSON, Rejection, Stage};

use action::{Action, Hasher};
use pointer::{Rule, Segment};

/// Rules per stage. Each level of the payload is matched against all of them.
const RULES_MAX: usize = 128;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    rules: Vec<RuleConfig>,
    /// Makes `hash` an HMAC-SHA-256, so that short values can't be found again by trying them all.
    hash_key: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleConfig {
    pointer: String,
    action: Action,
}

/// The stage: rules, parsed.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Config")]
pub struct Redact {
    rules: Vec<Rule>,
    hasher: Hasher,
}

impl TryFrom<Config> for Redact {
    type Error = String;

    fn try_from(config: Config) -> Result<Self, String> {
        if config.rules.len() > RULES_MAX {
            return Err(format!("{} rules; at most {RULES_MAX} are allowed", config.rules.len()));
        }
        let parse = |(i, rule): (usize, RuleConfig)| {
            let path = pointer::parse(&rule.pointer).map_err(|e| format!("rules[{i}].pointer: {e}"))?;
            if path.is_empty() && rule.action == Action::Drop {
                return Err(format!(
                    "rules[{i}]: the whole payload can't be dropped; the `filter` plugin drops messages"
                ));
            }
            Ok(Rule { path, action: rule.action })
        };
        let rules = config.rules.into_iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        Ok(Self { rules, hasher: Hasher::new(config.hash_key.as_deref())? })
    }
}

impl Stage for Redact {
    fn message(&self, message: &Message<'_>) -> Result<(), Failure> {
        let payload = message.payload();
        if let Some(redacted) = self.redact(&payload)? {
            message.set_payload(redacted);
        }
        Ok(())
    }
}

impl Redact {
    /// The payload without what the rules name; `None` where they name nothing in it.
    fn redact(&self, payload: &[u8]) -> Result<Option<Vec<u8>>, Rejection> {
        let not_json = |what: &dyn std::fmt::Display| Rejection::new(NOT_JSON, what.to_string());
        let text = std::str::from_utf8(payload).map_err(|e| not_json(&e))?;
        let root: &RawValue = serde_json::from_str(text).map_err(|e| not_json(&e))?;
        let rules: Vec<(&[Segment], Action)> = self.rules.iter().map(|r| (r.path.as_slice(), r.action)).collect();
        let mut edits = edit::Edits::new(text, &self.hasher);
        edits.visit(root, &rules).map_err(|e| not_json(&e))?;
        let redacted = edits.apply();
        Ok((redacted != text).then(|| redacted.into_bytes()))
    }
}

sluice_plugin::export!(Redact);
