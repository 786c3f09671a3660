//! Standard Webhooks signatures: secrets are made, read and used here. Invariant: a signature covers id, timestamp and the
//! very bytes that are sent. Never shows a key: `Debug` redacts it.
//!
//! Source: the Standard Webhooks specification 1.0 (<https://www.standardwebhooks.com>): a secret is `whsec_` and the base64
//! of 24 to 64 bytes; the header `webhook-signature` is `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`,
//! one per secret in use, separated by spaces.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::catalog::model::{Secret, Subscription};
use crate::clock::Timestamp;
use crate::entropy::Entropy;

/// What every secret begins with.
pub const SECRET_PREFIX: &str = "whsec_";
/// Bytes of a secret that Sluice makes: as many as the hash has, beyond which HMAC gains nothing.
const SECRET_BYTES: usize = 32;
/// The specification's bounds for a secret.
const SECRET_BYTES_RANGE: std::ops::RangeInclusive<usize> = 24..=64;

/// Why a secret cannot sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It does not begin with `whsec_`.
    #[error("a signing secret begins with `whsec_`")]
    Prefix,
    /// What follows is not base64.
    #[error("a signing secret is `whsec_` and base64")]
    Encoding,
    /// Too short or too long.
    #[error("a signing secret holds 24 to 64 bytes")]
    Length,
}

/// A new signing secret.
#[must_use]
pub fn new_secret(entropy: &Entropy) -> Secret {
    let mut bytes = [0_u8; SECRET_BYTES];
    entropy.fill(&mut bytes);
    Secret::new(format!("{SECRET_PREFIX}{}", STANDARD.encode(bytes)))
}

/// A secret, ready to sign: the key's two hash blocks are computed once, not per message.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey([redacted])")
    }
}

impl SigningKey {
    /// Reads `whsec_…`.
    ///
    /// # Errors
    /// When it is no such secret.
    pub fn parse(secret: &Secret) -> Result<SigningKey, SecretError> {
        let encoded = secret.expose().strip_prefix(SECRET_PREFIX).ok_or(SecretError::Prefix)?;
        let bytes =
            STANDARD.decode(encoded).or_else(|_| STANDARD_NO_PAD.decode(encoded)).map_err(|_| SecretError::Encoding)?;
        if !SECRET_BYTES_RANGE.contains(&bytes.len()) {
            return Err(SecretError::Length);
        }
        Ok(SigningKey(Hmac::new_from_slice(&bytes).expect("HMAC takes keys of any length")))
    }
}

/// The keys of one subscription: the current one and, during a rotation, the one before.
#[derive(Debug, Clone)]
pub struct SigningKeys {
    current: SigningKey,
    previous: Option<(SigningKey, Timestamp)>,
}

impl SigningKeys {
    /// The keys of a Push subscription.
    ///
    /// # Errors
    /// When its secret is missing or is none.
    pub fn of(subscription: &Subscription) -> Result<SigningKeys, SecretError> {
        let secret = subscription.secret.as_ref().ok_or(SecretError::Prefix)?;
        let previous = subscription.previous_secret.as_ref();
        Ok(SigningKeys {
            current: SigningKey::parse(secret)?,
            previous: previous.map(|(old, until)| SigningKey::parse(old).map(|key| (key, *until))).transpose()?,
        })
    }

    /// The value of `webhook-signature` for a request that is sent `now`.
    #[must_use]
    pub fn sign(&self, id: &str, now: Timestamp, body: &[u8]) -> String {
        let seconds = now.0.div_euclid(1000);
        let mut value = signature(&self.current, id, seconds, body);
        if let Some((key, _)) = self.previous.as_ref().filter(|(_, until)| now < *until) {
            value.push(' ');
            value.push_str(&signature(key, id, seconds, body));
        }
        value
    }
}

fn signature(key: &SigningKey, id: &str, timestamp_s: i64, body: &[u8]) -> String {
    let mut mac = key.0.clone();
    mac.update(id.as_bytes());
    mac.update(format!(".{timestamp_s}.").as_bytes());
    mac.update(body);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that the specification's own libraries are tested with.
    const EXAMPLE_KEY: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const EXAMPLE_ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const EXAMPLE_AT: Timestamp = Timestamp(1_614_265_330_000);
    const EXAMPLE_BODY: &[u8] = br#"{"test": 2432232314}"#;
    const EXAMPLE_SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn key(text: &str) -> Result<SigningKey, SecretError> {
        SigningKey::parse(&Secret::new(text.to_owned()))
    }

    #[test]
    fn the_published_example_is_signed_as_published() {
        let keys = SigningKeys { current: key(&format!("{SECRET_PREFIX}{EXAMPLE_KEY}")).unwrap(), previous: None };
        assert_eq!(keys.sign(EXAMPLE_ID, EXAMPLE_AT, EXAMPLE_BODY), EXAMPLE_SIGNATURE);
    }

    #[test]
    fn both_secrets_sign_until_the_rotation_ends() {
        let new = key(new_secret(&Entropy::seeded(1)).expose()).unwrap();
        let old = key(&format!("{SECRET_PREFIX}{EXAMPLE_KEY}")).unwrap();
        let until = EXAMPLE_AT.plus(std::time::Duration::from_millis(1));
        let keys = SigningKeys { current: new, previous: Some((old, until)) };
        let during = keys.sign(EXAMPLE_ID, EXAMPLE_AT, EXAMPLE_BODY);
        let signatures: Vec<&str> = during.split(' ').collect();
        assert_eq!((signatures.len(), signatures[1]), (2, EXAMPLE_SIGNATURE));
        assert_ne!(signatures[0], EXAMPLE_SIGNATURE);
        let after = keys.sign(EXAMPLE_ID, until, EXAMPLE_BODY);
        assert_eq!(after, signatures[0], "the old secret no longer signs");
    }

    #[test]
    fn made_secrets_are_read_and_differ() {
        let entropy = Entropy::system();
        let (one, two) = (new_secret(&entropy), new_secret(&entropy));
        assert_ne!(one, two);
        assert!(key(one.expose()).is_ok());
        assert_eq!(STANDARD.decode(&one.expose()[SECRET_PREFIX.len()..]).unwrap().len(), SECRET_BYTES);
    }

    #[test]
    fn secrets_outside_the_specification_are_refused() {
        let of = |bytes: usize| format!("{SECRET_PREFIX}{}", STANDARD.encode(vec![7; bytes]));
        assert_eq!(key(EXAMPLE_KEY).unwrap_err(), SecretError::Prefix);
        assert_eq!(key("whsec_%%%").unwrap_err(), SecretError::Encoding);
        assert_eq!(key(&of(23)).unwrap_err(), SecretError::Length);
        assert_eq!(key(&of(65)).unwrap_err(), SecretError::Length);
        assert!(key(&of(24)).is_ok() && key(&of(64)).is_ok());
        assert!(!format!("{:?}", key(&of(24)).unwrap()).contains("Bw"), "a key is never shown");
    }
}
