//! The `sample` stage: keeps a share of the messages and drops the others.
//! Invariant: whether a message is kept depends on its value (a key, an id, a place in the payload), the salt and the rate
//! alone, on every broker and in every version; what is kept at one rate is kept at every higher one. Never changes a message.

use serde::Deserialize;
use serde_json::Value;
use sluice_plugin::{Failure, Message, Stage};

/// Why a message is dropped.
const REASON: &str = "not in the sample";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    /// The share of values to keep, from 0 to 1.
    rate: f64,
    /// A JSON Pointer to what decides; the key, else the id, where there is none, or nothing there.
    pointer: Option<String>,
    /// Makes it another sample of the same share.
    salt: Option<String>,
}

/// The stage: what decides, and below which hash a message is kept.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Config")]
pub struct Sample {
    /// Of 2^64 hashes, so many are kept; one more than a `u64` holds at rate 1.
    below: u128,
    pointer: Option<String>,
    salt: String,
}

impl TryFrom<Config> for Sample {
    type Error = String;

    fn try_from(config: Config) -> Result<Self, String> {
        let Config { rate, pointer, salt } = config;
        if !(0.0..=1.0).contains(&rate) {
            return Err(format!("`rate` is {rate}; it is a share, from 0 to 1"));
        }
        if let Some(pointer) = pointer.as_deref().filter(|p| !p.is_empty() && !p.starts_with('/')) {
            return Err(format!("`pointer`: {pointer:?} is no JSON Pointer: it starts with `/` (RFC 6901)"));
        }
        // Exact at both ends; between them a double's steps are far below what anybody could count.
        let below = (rate * 2f64.powi(64)) as u128;
        Ok(Self { below, pointer, salt: salt.unwrap_or_default() })
    }
}

impl Stage for Sample {
    fn message(&self, message: &Message<'_>) -> Result<(), Failure> {
        if !self.keeps(&self.decider(message)) {
            message.drop(REASON);
        }
        Ok(())
    }
}

impl Sample {
    /// The text that decides. A payload is copied only where a pointer leads into it.
    fn decider(&self, message: &Message<'_>) -> String {
        let found = self.pointer.as_deref().and_then(|pointer| {
            let payload: Value = serde_json::from_slice(&message.payload()).ok()?;
            payload.pointer(pointer).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        });
        found.or_else(|| message.key()).unwrap_or_else(|| message.id())
    }

    fn keeps(&self, value: &str) -> bool {
        u128::from(hash(&self.salt, value)) < self.below
    }
}

/// FNV-1a of 64 bits over both texts with a zero byte between them, then the last step of MurmurHash3, since the high bits of
/// FNV alone say little of short texts. Part of the promise: another hash is another sample.
fn hash(salt: &str, value: &str) -> u64 {
    let bytes = salt.bytes().chain([0]).chain(value.bytes());
    let mixed = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

sluice_plugin::export!(Sample);

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference values of an implementation in another language (Python, by the description above).
    #[test]
    fn the_hash_is_for_ever() {
        for (salt, value, expected) in HASHES {
            assert_eq!(hash(salt, value), expected, "{salt:?} {value:?}");
        }
    }

    const HASHES: [(&str, &str, u64); 4] = [
        ("", "", 0xb903_4ad3_7056_f5fb),
        ("", "customer-7", 0x892b_646f_9aed_7a0f),
        ("a", "customer-7", 0xe74b_57f8_643f_109d),
        ("", "größe", 0x3de6_cf61_9d70_8526),
    ];
}
