//! Tokens as a client of the broker would be given them. Invariant: signed by this file's own few lines, not by the code
//! under test, so that a fault there shows. Never used outside tests.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::Sha256;

/// `exp` of tokens that a test does not date: far behind every clock that a test moves (the year 2200).
const NEVER: i64 = 7_258_118_400;

/// What a token says.
#[derive(Debug, Clone)]
pub struct Claims(Value);

impl Claims {
    /// A token of `subject` with these roles, on all topics.
    #[must_use]
    pub fn new(subject: &str, roles: &[&str]) -> Claims {
        Claims(json!({"sub": subject, "roles": roles, "exp": NEVER, "iat": 0, "jti": format!("test-{subject}")}))
    }

    /// Only these topics.
    #[must_use]
    pub fn topics(mut self, globs: &[&str]) -> Claims {
        self.0["topics"] = json!(globs);
        self
    }

    /// Any claim.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Claims {
        self.0[name] = value.into();
        self
    }

    /// Without a claim.
    #[must_use]
    pub fn without(mut self, name: &str) -> Claims {
        self.0.as_object_mut().expect("claims are an object").shift_remove(name);
        self
    }

    /// Signed with HS256.
    #[must_use]
    pub fn sign(&self, secret: &[u8]) -> String {
        self.sign_as(&json!({"alg": "HS256", "typ": "JWT"}), secret)
    }

    /// Signed with HS256 whatever the header says, for tokens that must be refused.
    #[must_use]
    pub fn sign_as(&self, header: &Value, secret: &[u8]) -> String {
        seal(header.to_string(), self.0.to_string(), secret)
    }
}

/// Any two texts as a token's head and claims, signed with HS256.
#[must_use]
pub fn seal(head: impl AsRef<[u8]>, claims: impl AsRef<[u8]>, secret: &[u8]) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

/// What one of a token's first two parts says. Bytes that are no text may stand where nobody reads them.
#[must_use]
pub fn part<T: DeserializeOwned>(part: &str) -> Option<T> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_str(&String::from_utf8_lossy(&bytes)).ok()
}

/// Whether the token's signature is right under HS256: what any server does first with each request.
#[must_use]
pub fn is_signed(token: &str, secret: &[u8]) -> bool {
    let Some((signed, signature)) = token.rsplit_once('.') else { return false };
    let Ok(signature) = URL_SAFE_NO_PAD.decode(signature) else { return false };
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(signed.as_bytes());
    mac.verify_slice(&signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_signed_by_its_secret_alone() {
        let token = Claims::new("somebody", &["Viewer"]).sign(b"one");
        assert!(is_signed(&token, b"one"));
        assert!(!is_signed(&token, b"another") && !is_signed("noise", b"one"));
    }
}
