//! What a rule does to a value, and the hash that stands for one.
//! Invariant: a replacement is JSON and shows nothing of the value (a hash shows that two are equal, which is its use).
//! Never depends on where the value stood.

use std::fmt::{self, Write as _};

use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// What happens to a value that a rule names. Where several rules name one value, the later in this order wins.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Action {
    /// Replaced by the hex digest of its text: equal values stay equal.
    Hash,
    /// Replaced by `"***"`.
    Mask,
    /// Removed, with its name.
    Drop,
}

/// What stands in for a masked value, as JSON.
pub(crate) const MASK: &str = r#""***""#;

/// SHA-256, or HMAC-SHA-256 under a key.
pub(crate) struct Hasher(Option<Hmac<Sha256>>);

impl Hasher {
    pub(crate) fn new(key: Option<&str>) -> Result<Self, String> {
        match key {
            None => Ok(Self(None)),
            // An empty key would look like a keyed hash and protect nothing.
            Some("") => Err("`hashKey` is empty: leave it out, or give it 16 random bytes or more".into()),
            Some(key) => {
                Ok(Self(Some(Hmac::new_from_slice(key.as_bytes()).expect("HMAC takes keys of any length (RFC 2104)"))))
            }
        }
    }

    /// The digest of a value's text, as a JSON string. The text of a string is what it says, of anything else
    /// the JSON as it stands in the payload.
    pub(crate) fn json(&self, raw: &str) -> String {
        let decoded = serde_json::from_str::<String>(raw);
        let text = decoded.as_deref().unwrap_or(raw);
        let digest = match &self.0 {
            None => Sha256::digest(text.as_bytes()),
            Some(hmac) => hmac.clone().chain_update(text.as_bytes()).finalize().into_bytes(),
        };
        let mut json = String::with_capacity(66);
        json.push('"');
        for byte in digest {
            write!(json, "{byte:02x}").expect("writing to a String does not fail");
        }
        json.push('"');
        json
    }
}

impl fmt::Debug for Hasher {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "HmacSha256(..)" } else { "Sha256" })
    }
}
