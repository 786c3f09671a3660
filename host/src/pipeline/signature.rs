//! Who vouches for a component. Invariant: a version says that a key signed it only if that key is trusted and its signature
//! is over these very bytes. Never signs, and never reads a private key.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::pkcs8::DecodePublicKey as _;
use ed25519_dalek::{Signature, VerifyingKey};

/// Of an ed25519 key, and of the digest that is signed.
const KEY_BYTES: usize = 32;
/// Of a signature.
pub const SIGNATURE_BYTES: usize = 64;
/// Bytes of a key's file: a PEM of one takes some hundred.
const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;

/// The keys whose signatures count.
#[derive(Debug, Clone, Default)]
pub struct TrustedKeys(Vec<(String, VerifyingKey)>);

impl TrustedKeys {
    /// Reads keys, each the base64 of its 32 bytes or the path of a PEM file (`BEGIN PUBLIC KEY`).
    ///
    /// # Errors
    /// Which is none, and why.
    pub fn read(texts: &[String]) -> Result<TrustedKeys, String> {
        texts.iter().map(|text| trusted(text)).collect::<Result<_, _>>().map(TrustedKeys)
    }

    /// The key that signed the component with this SHA-256, in base64; none if it is unsigned, or if no key is trusted.
    ///
    /// # Errors
    /// A sentence for whoever brought it: it had to be signed and is not, or no trusted key made the signature.
    pub fn judge(
        &self,
        digest: &[u8; KEY_BYTES],
        signature: Option<&[u8; SIGNATURE_BYTES]>,
        required: bool,
    ) -> Result<Option<String>, String> {
        let Some(signature) = signature else {
            return match required {
                false => Ok(None),
                true => {
                    Err("it is not signed, and plugins.require_signature wants a signature of a trusted key over its \
                             SHA-256"
                        .to_owned())
                }
            };
        };
        if self.0.is_empty() && !required {
            return Ok(None);
        }
        let signature = Signature::from_bytes(signature);
        let signer = self.0.iter().find(|(_, key)| key.verify_strict(digest, &signature).is_ok());
        let unknown = || "none of plugins.trusted_keys made its signature over these bytes".to_owned();
        signer.map(|(name, _)| Some(name.clone())).ok_or_else(unknown)
    }
}

/// A signature as it is written: base64 of 64 bytes.
///
/// # Errors
/// What it has to be.
pub fn parse(text: &str) -> Result<[u8; SIGNATURE_BYTES], String> {
    let decoded = STANDARD.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
    decoded.ok_or_else(|| {
        format!("a signature is the base64 of {SIGNATURE_BYTES} bytes: ed25519 over the component's SHA-256")
    })
}

fn trusted(text: &str) -> Result<(String, VerifyingKey), String> {
    let bytes: Option<[u8; KEY_BYTES]> = STANDARD.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
    let key = match bytes {
        Some(bytes) => VerifyingKey::from_bytes(&bytes).map_err(|_| format!("'{text}' is no ed25519 key"))?,
        None => from_file(Path::new(text))?,
    };
    Ok((STANDARD.encode(key.as_bytes()), key))
}

fn from_file(path: &Path) -> Result<VerifyingKey, String> {
    let shown = path.display();
    let refused = |why: &dyn std::fmt::Display| {
        format!("'{shown}' is neither the base64 of an ed25519 key's 32 bytes nor a file that can be read: {why}")
    };
    let size = std::fs::metadata(path).map_err(|error| refused(&error))?.len();
    if size > KEY_FILE_BYTES_MAX {
        return Err(format!("the file '{shown}' has {size} bytes: that is no key"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| refused(&error))?;
    VerifyingKey::from_public_key_pem(&text).map_err(|_| {
        format!("the file '{shown}' is no PEM of an ed25519 public key (`openssl pkey -in KEY.pem -pubout` writes one)")
    })
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    /// Made by `openssl genpkey -algorithm ed25519`, its public half by `openssl pkey -pubout`.
    const PEM: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
    /// The same (the first test key of RFC 8032).
    const BASE64: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

    #[test]
    fn keys_are_base64_or_pem_files_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.pem");
        std::fs::write(&file, PEM).unwrap();
        let file = file.display().to_string();
        let keys = TrustedKeys::read(&[BASE64.to_owned(), file.clone()]).unwrap();
        assert!(keys.0[0] == keys.0[1] && keys.0[1].0 == BASE64);
        for bad in ["", "AAAA", "/no/such/file", &directory.path().display().to_string()] {
            assert!(TrustedKeys::read(&[bad.to_owned()]).is_err(), "{bad}");
        }
        std::fs::write(&file, PEM.replace("MCow", "MCoy")).unwrap();
        assert!(TrustedKeys::read(&[file]).is_err());
    }

    #[test]
    fn only_a_trusted_keys_signature_over_these_bytes_counts() {
        let [ours, other] = [[1; 32], [2; 32]].map(|seed| SigningKey::from_bytes(&seed));
        let ours_named = STANDARD.encode(ours.verifying_key().as_bytes());
        let keys = TrustedKeys::read(std::slice::from_ref(&ours_named)).unwrap();
        let digest = [7; 32];
        let by = |key: &SigningKey, digest: &[u8; 32]| key.sign(digest).to_bytes();
        assert_eq!(keys.judge(&digest, Some(&by(&ours, &digest)), true), Ok(Some(ours_named)));
        for required in [true, false] {
            assert!(keys.judge(&digest, Some(&by(&other, &digest)), required).unwrap_err().contains("none of"));
            assert!(keys.judge(&digest, Some(&by(&ours, &[8; 32])), required).is_err(), "over other bytes");
        }
        assert_eq!(keys.judge(&digest, None, false), Ok(None));
        assert!(keys.judge(&digest, None, true).unwrap_err().contains("not signed"));
        let nobody = TrustedKeys::default();
        assert_eq!(nobody.judge(&digest, Some(&by(&ours, &digest)), false), Ok(None), "nobody is asked");
        assert!(nobody.judge(&digest, Some(&by(&ours, &digest)), true).is_err());
    }

    #[test]
    fn a_signature_is_64_bytes_of_base64() {
        assert_eq!(parse(&format!(" {}\n", STANDARD.encode([9; 64]))), Ok([9; 64]));
        for bad in ["", "x", &STANDARD.encode([9; 63]), &STANDARD.encode([9; 65])] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
