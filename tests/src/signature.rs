//! Standard Webhooks signatures, checked as a receiver would. Invariant: written from the specification, not from the
//! broker's own code, so that a fault on either side shows.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::HeaderMap;
use sha2::Sha256;

/// Whether one signature fits.
type Check = Box<dyn Fn(&str) -> bool>;

/// Checks `webhook-id`, `webhook-timestamp` and `webhook-signature` over the body with a `whsec_…` secret or a `whpk_…` key.
///
/// # Errors
/// A sentence saying what is wrong.
pub fn verify(secret: &str, headers: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let header =
        |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).ok_or_else(|| format!("no header {name}"));
    let (id, timestamp) = (header("webhook-id")?, header("webhook-timestamp")?);
    if timestamp.is_empty() || !timestamp.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("webhook-timestamp '{timestamp}' is not in seconds since 1970"));
    }
    let (signed, signatures) = ([format!("{id}.{timestamp}.").as_bytes(), body].concat(), header("webhook-signature")?);
    let fits: Check = match secret.strip_prefix("whpk_") {
        Some(encoded) => public(encoded, signed)?,
        None => shared(secret.strip_prefix("whsec_").ok_or("the secret does not begin with whsec_")?, signed)?,
    };
    if signatures.split(' ').any(fits) {
        return Ok(());
    }
    Err(format!("none of the signatures '{signatures}' fits"))
}

fn decoded(encoded: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(encoded).map_err(|error| format!("'{encoded}' is not base64: {error}"))
}

fn shared(encoded: &str, signed: Vec<u8>) -> Result<Check, String> {
    let key = decoded(encoded)?;
    if !(24..=64).contains(&key.len()) {
        return Err(format!("the secret has {} bytes; Standard Webhooks wants 24 to 64", key.len()));
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("HMAC takes keys of any length");
    mac.update(&signed);
    let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    Ok(Box::new(move |signature| signature == expected))
}

fn public(encoded: &str, signed: Vec<u8>) -> Result<Check, String> {
    let key = decoded(encoded)?.try_into().map_err(|_| "a public key has 32 bytes")?;
    let key = VerifyingKey::from_bytes(&key).map_err(|error| format!("'{encoded}' is no public key: {error}"))?;
    Ok(Box::new(move |signature| {
        let bytes = signature.strip_prefix("v1a,").and_then(|encoded| decoded(encoded).ok()?.try_into().ok());
        bytes.is_some_and(|bytes| key.verify_strict(&signed, &Signature::from_bytes(&bytes)).is_ok())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries.
    #[test]
    fn the_specifications_example_verifies() {
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek".parse().expect("a value"));
        headers.insert("webhook-timestamp", "1614265330".parse().expect("a value"));
        let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        headers.insert("webhook-signature", signature.parse().expect("a value"));
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        assert_eq!(verify(secret, &headers, br#"{"test": 2432232314}"#), Ok(()));
        assert!(verify(secret, &headers, b"{}").is_err());
    }
}
