//! Standard Webhooks signatures: secrets are made, read and used here. Invariant: a signature covers id, timestamp and the
//! very bytes that are sent. Never shows a key: `Debug` redacts it.
//!
//! Source: the Standard Webhooks specification 1.0 (<https://www.standardwebhooks.com>). The header `webhook-signature` holds
//! a signature over `id.timestamp.body` for each key in use, separated by spaces: `v1,` and the base64 of HMAC-SHA256 under a
//! shared secret (`whsec_` and the base64 of 24 to 64 bytes), or `v1a,` and that of Ed25519 under a private key (`whsk_`),
//! which receivers check with the public one (`whpk_` and the base64 of 32 bytes).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ed25519_dalek::Signer as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use utoipa::ToSchema;

use crate::catalog::model::{Secret, Subscription};
use crate::clock::Timestamp;
use crate::entropy::Entropy;

/// What a shared secret begins with.
pub const SECRET_PREFIX: &str = "whsec_";
/// What a private key begins with, and a public one.
const PRIVATE_PREFIX: &str = "whsk_";
const PUBLIC_PREFIX: &str = "whpk_";
/// Bytes of a secret that Sluice makes: as many as the hash has, beyond which HMAC gains nothing.
const SECRET_BYTES: usize = 32;
/// The specification's bounds for a secret.
const SECRET_BYTES_RANGE: std::ops::RangeInclusive<usize> = 24..=64;

/// How webhooks are signed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Scheme {
    /// `v1`: HMAC-SHA256 under a secret that the receiver knows too.
    #[default]
    Hmac,
    /// `v1a`: Ed25519, which the receiver checks with a public key: whoever reads its configuration can't sign.
    Ed25519,
}

impl Scheme {
    /// What this secret signs by.
    #[must_use]
    pub fn of(secret: &Secret) -> Scheme {
        if secret.expose().starts_with(PRIVATE_PREFIX) { Scheme::Ed25519 } else { Scheme::Hmac }
    }
}

/// Why a secret cannot sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It begins with neither `whsec_` nor `whsk_`.
    #[error("a signing secret begins with `whsec_` or `whsk_`")]
    Prefix,
    /// What follows is not base64.
    #[error("behind its prefix a signing secret is base64")]
    Encoding,
    /// Too short or too long.
    #[error("a signing secret holds 24 to 64 bytes, a private key 32")]
    Length,
}

/// A new signing secret.
#[must_use]
pub fn new_secret(scheme: Scheme, entropy: &Entropy) -> Secret {
    let mut bytes = [0_u8; SECRET_BYTES];
    entropy.fill(&mut bytes);
    let prefix = match scheme {
        Scheme::Hmac => SECRET_PREFIX,
        Scheme::Ed25519 => PRIVATE_PREFIX,
    };
    Secret::new(format!("{prefix}{}", STANDARD.encode(bytes)))
}

/// What receivers check signatures with, where that is not the secret itself: `whpk_…`.
#[must_use]
pub fn public_key(secret: &Secret) -> Option<String> {
    match SigningKey::parse(secret) {
        Ok(SigningKey::Ed25519(key)) => Some(format!("{PUBLIC_PREFIX}{}", STANDARD.encode(key.verifying_key()))),
        Ok(SigningKey::Hmac(_)) | Err(_) => None,
    }
}

/// A secret, ready to sign: what can be computed once is not computed per message.
#[derive(Clone)]
pub enum SigningKey {
    /// With the key's two hash blocks.
    Hmac(Box<Hmac<Sha256>>),
    /// With its public half.
    Ed25519(Box<ed25519_dalek::SigningKey>),
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey([redacted])")
    }
}

impl SigningKey {
    /// Reads `whsec_…` or `whsk_…`.
    ///
    /// # Errors
    /// When it is no such secret.
    pub fn parse(secret: &Secret) -> Result<SigningKey, SecretError> {
        let decode = |encoded: &str| {
            STANDARD.decode(encoded).or_else(|_| STANDARD_NO_PAD.decode(encoded)).map_err(|_| SecretError::Encoding)
        };
        if let Some(encoded) = secret.expose().strip_prefix(PRIVATE_PREFIX) {
            let bytes: [u8; SECRET_BYTES] = decode(encoded)?.try_into().map_err(|_| SecretError::Length)?;
            return Ok(SigningKey::Ed25519(Box::new(ed25519_dalek::SigningKey::from_bytes(&bytes))));
        }
        let bytes = decode(secret.expose().strip_prefix(SECRET_PREFIX).ok_or(SecretError::Prefix)?)?;
        if !SECRET_BYTES_RANGE.contains(&bytes.len()) {
            return Err(SecretError::Length);
        }
        Ok(SigningKey::Hmac(Box::new(Hmac::new_from_slice(&bytes).expect("HMAC takes keys of any length"))))
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
    let stamp = format!(".{timestamp_s}.");
    match key {
        SigningKey::Hmac(mac) => {
            let mut mac = mac.clone();
            mac.update(id.as_bytes());
            mac.update(stamp.as_bytes());
            mac.update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        }
        SigningKey::Ed25519(key) => {
            let signed = key.sign(&[id.as_bytes(), stamp.as_bytes(), body].concat());
            format!("v1a,{}", STANDARD.encode(signed.to_bytes()))
        }
    }
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
        let new = key(new_secret(Scheme::Hmac, &Entropy::seeded(1)).expose()).unwrap();
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

    /// RFC 8032 §7.1, test 1: the key of these bytes has this public half.
    #[test]
    fn what_ed25519_signs_the_public_key_verifies() {
        let hex = |text: &str| -> Vec<u8> {
            text.as_bytes()
                .chunks(2)
                .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
                .collect()
        };
        let seed = hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let public = hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        let secret = Secret::new(format!("{PRIVATE_PREFIX}{}", STANDARD.encode(seed)));
        assert_eq!(public_key(&secret), Some(format!("{PUBLIC_PREFIX}{}", STANDARD.encode(&public))));
        assert_eq!((Scheme::of(&secret), SigningKey::parse(&secret).is_ok()), (Scheme::Ed25519, true));

        let keys = SigningKeys { current: SigningKey::parse(&secret).unwrap(), previous: None };
        let header = keys.sign(EXAMPLE_ID, EXAMPLE_AT, EXAMPLE_BODY);
        let signature: [u8; 64] = STANDARD.decode(header.strip_prefix("v1a,").unwrap()).unwrap().try_into().unwrap();
        let verifies = |body: &[u8]| {
            let key = ed25519_dalek::VerifyingKey::from_bytes(&public.clone().try_into().unwrap()).unwrap();
            let signed = [EXAMPLE_ID.as_bytes(), b".1614265330.", body].concat();
            key.verify_strict(&signed, &ed25519_dalek::Signature::from_bytes(&signature)).is_ok()
        };
        assert!(verifies(EXAMPLE_BODY) && !verifies(b"another"));
    }

    #[test]
    fn made_secrets_are_read_and_differ() {
        let entropy = Entropy::system();
        let (one, two) = (new_secret(Scheme::Hmac, &entropy), new_secret(Scheme::Hmac, &entropy));
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
        let private = |bytes: usize| format!("{PRIVATE_PREFIX}{}", STANDARD.encode(vec![7; bytes]));
        assert_eq!([31, 32, 33].map(|bytes| key(&private(bytes)).is_ok()), [false, true, false]);
        assert!(public_key(&Secret::new(of(24))).is_none());
        assert!(!format!("{:?}", key(&of(24)).unwrap()).contains("Bw"), "a key is never shown");
    }
}
