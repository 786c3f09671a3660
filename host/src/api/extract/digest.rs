//! `Content-Digest` (RFC 9530): what a body must come to. Invariant: a body that differs is refused before anything is made of
//! it; algorithms that are not known here are ignored, as the RFC says. Never keeps the body.

use std::sync::Arc;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256, Sha512};

use crate::api::problem::Problem;

/// The header's name.
pub const CONTENT_DIGEST: &str = "content-digest";

/// What a client says that its body comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContentDigest {
    sha256: Option<Vec<u8>>,
    sha512: Option<Vec<u8>>,
}

/// A body's digest, as it is being read.
#[derive(Debug)]
pub struct Watched {
    wanted: ContentDigest,
    hashes: Arc<Mutex<Hashes>>,
}

#[derive(Debug, Default)]
struct Hashes {
    sha256: Option<Sha256>,
    sha512: Option<Sha512>,
}

impl ContentDigest {
    /// Reads the header; without one, nothing is demanded.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` for what is no dictionary of byte sequences (RFC 8941), or no digest of its algorithm.
    pub fn read(headers: &HeaderMap) -> Result<ContentDigest, Problem> {
        let mut wanted = ContentDigest::default();
        for value in headers.get_all(CONTENT_DIGEST) {
            let members = value.to_str().ok().and_then(members);
            let members = members.ok_or_else(|| malformed("it is `sha-256=:BASE64:`, or several, by commas"))?;
            for (algorithm, digest) in members {
                // Of the same key twice the last one counts (RFC 8941 §3.2).
                match (algorithm, digest.len()) {
                    ("sha-256", 32) => wanted.sha256 = Some(digest),
                    ("sha-512", 64) => wanted.sha512 = Some(digest),
                    ("sha-256", _) => return Err(malformed("a sha-256 has 32 bytes")),
                    ("sha-512", _) => return Err(malformed("a sha-512 has 64 bytes")),
                    _ => {}
                }
            }
        }
        Ok(wanted)
    }

    /// The body, looked at as it is read: as it was sent, before it is decoded, which is what the header speaks of.
    pub fn watch(self, body: Body) -> (Body, Watched) {
        let hashes = Hashes {
            sha256: self.sha256.as_ref().map(|_| Sha256::new()),
            sha512: self.sha512.as_ref().map(|_| Sha512::new()),
        };
        let hashes = Arc::new(Mutex::new(hashes));
        let watched = Watched { wanted: self, hashes: Arc::clone(&hashes) };
        if watched.wanted == ContentDigest::default() {
            return (body, watched);
        }
        let body = body.map_frame(move |frame| {
            if let Some(data) = frame.data_ref() {
                let mut hashes = hashes.lock();
                if let Some(hash) = &mut hashes.sha256 {
                    hash.update(data);
                }
                if let Some(hash) = &mut hashes.sha512 {
                    hash.update(data);
                }
            }
            frame
        });
        (Body::new(body), watched)
    }
}

impl Watched {
    /// Whether the body, which has been read to its end, is the one that was announced.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` with what it comes to.
    pub fn check(self) -> Result<(), Problem> {
        let hashes = std::mem::take(&mut *self.hashes.lock());
        let found = [
            ("sha-256", self.wanted.sha256, hashes.sha256.map(|hash| hash.finalize().to_vec())),
            ("sha-512", self.wanted.sha512, hashes.sha512.map(|hash| hash.finalize().to_vec())),
        ];
        for (algorithm, wanted, found) in found {
            if let Some(found) = found.filter(|found| wanted.as_ref() != Some(found)) {
                let found = STANDARD.encode(found);
                let why = format!("the body that arrived has the Content-Digest {algorithm}=:{found}:; send it again");
                return Err(Problem::invalid_at("", why));
            }
        }
        Ok(())
    }
}

/// The header that says what `digest`, a SHA-256 in hex, is of.
#[must_use]
pub fn content_digest(digest: &str) -> String {
    format!("sha-256=:{}:", STANDARD.encode(hex::decode(digest).unwrap_or_default()))
}

fn malformed(why: &str) -> Problem {
    Problem::invalid_at("", format!("the header Content-Digest can't be read: {why}"))
}

/// A dictionary whose members are byte sequences. Their parameters, which mean nothing, are not kept.
fn members(text: &str) -> Option<Vec<(&str, Vec<u8>)>> {
    text.split(',').map(|member| one(member.trim_matches([' ', '\t']))).collect()
}

fn one(member: &str) -> Option<(&str, Vec<u8>)> {
    let (key, value) = member.split_once('=')?;
    let mut bytes = key.bytes();
    let begins = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'*');
    let goes_on =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'.' | b'*');
    if !begins || !bytes.all(goes_on) {
        return None;
    }
    let (sequence, parameters) = value.strip_prefix(':')?.split_once(':')?;
    if !parameters.is_empty() && !parameters.trim_start().starts_with(';') {
        return None;
    }
    Some((key, STANDARD.decode(sequence).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_HELLO_256: &str = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:";
    const OF_HELLO_512: &str =
        "sha-512=:m3HSJL1i83hdltRq0+o9czGb+8KJDKra4t/3JRlnPKcjI8PZm6XBHXx6zG4UuMXaDEZjR1wuXDre9G9zvN7AQw==:";

    fn read(values: &[&str]) -> Result<ContentDigest, Problem> {
        ContentDigest::read(
            &values.iter().map(|value| (CONTENT_DIGEST.parse().unwrap(), value.parse().unwrap())).collect(),
        )
    }

    async fn holds(values: &[&str], body: &'static str) -> Result<(), Problem> {
        let (body, watched) = read(values).unwrap().watch(Body::from(body));
        body.collect().await.unwrap();
        watched.check()
    }

    #[tokio::test]
    async fn a_body_is_held_against_every_digest_that_is_known() {
        let both = format!("{OF_HELLO_256}, {OF_HELLO_512}");
        for good in [&[OF_HELLO_256][..], &[OF_HELLO_512], &[&both], &[OF_HELLO_256, OF_HELLO_512], &[]] {
            assert!(holds(good, "hello").await.is_ok(), "{good:?}");
        }
        for good in [&[&both[..]][..], &[OF_HELLO_256], &[OF_HELLO_512, "md5=:AAAA:"]] {
            let problem = holds(good, "hullo").await.unwrap_err();
            assert!(problem.item_body().errors[0].message.contains("that arrived has"), "{good:?}");
        }
        // One right, one wrong.
        let mixed = format!("{OF_HELLO_256}, sha-512=:{}:", STANDARD.encode([0; 64]));
        assert!(holds(&[&mixed], "hello").await.is_err());
        assert!(holds(&["md5=:AAAA:, unixsum=:AA==:"], "hello").await.is_ok(), "unknown ones are ignored");
        assert!(holds(&[&format!("{OF_HELLO_256};note=1")], "hello").await.is_ok());
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        for bad in [
            "",
            "sha-256",
            "sha-256=",
            "sha-256=abc",
            "sha-256=:abc:",
            "sha-256=:AAAA:",
            "sha-512=:AAAA:",
            "SHA-256=:AAAA:",
            "md5=AAAA",
            "=:AAAA:",
            "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:x",
            "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:,",
        ] {
            assert!(read(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let written = content_digest("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert_eq!(written, OF_HELLO_256);
        assert!(read(&[&written]).unwrap().sha256.is_some());
    }
}
