//! What a webhook's connection is made with: the certificate that the endpoint asks for, and the authorities that vouch for
//! the endpoint. Invariant: what passes the checks here can be used for a connection; an error never holds what was given.
//! Never connects, and never asks the time.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};

use crate::catalog::model::{Authorization, ClientCertificate, SubscriptionSettings};
use crate::clock::Timestamp;

/// Bytes of certificates in PEM: some ten of the usual ones.
const CERTIFICATES_BYTES_MAX: usize = 32 * 1024;
/// Certificates from the endpoint's to its authority's: handshakes of more are refused by many.
const CHAIN_MAX: usize = 8;
/// Authorities of one subscription.
const AUTHORITIES_MAX: usize = 16;
/// Bytes of a private key in PEM: RSA of 16 384 bits.
const KEY_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a token: half of what common servers take as a line of a head.
const TOKEN_BYTES_MAX: usize = 4096;

/// Checks a token.
///
/// # Errors
/// A sentence for the sender, without the token.
pub fn validate_token(token: &str) -> Result<(), String> {
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("is 1 to {TOKEN_BYTES_MAX} visible ASCII characters, without the word Bearer"));
    }
    Ok(())
}

/// What of a client's certificate is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The certificates.
    Certificate,
    /// The key.
    PrivateKey,
}

/// Why certificates cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct CredentialsError {
    /// What is wrong.
    pub part: Part,
    /// In a sentence.
    pub why: String,
}

fn wrong(part: Part, why: impl fmt::Display) -> CredentialsError {
    CredentialsError { part, why: why.to_string() }
}

/// What may be shown of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Hex SHA-256 of it.
    pub sha256: String,
    /// Its last moment.
    pub not_after: Timestamp,
}

/// Checks a client's certificate and its key; the chain's earliest end must be after `now`.
///
/// # Errors
/// What of it is wrong.
pub fn validate_client_certificate(given: &ClientCertificate, now: Timestamp) -> Result<(), CredentialsError> {
    certified_key(given)?;
    check_dates(&certificates(&given.certificate, CHAIN_MAX)?, now)
}

/// Checks certificates of authorities.
///
/// # Errors
/// What is wrong.
pub fn validate_authorities(pem: &str, now: Timestamp) -> Result<(), CredentialsError> {
    authorities(pem)?;
    check_dates(&certificates(pem, AUTHORITIES_MAX)?, now)
}

/// What may be shown of a client's certificate; nothing of one that never passed the checks.
#[must_use]
pub fn facts(of: &ClientCertificate) -> Option<CertificateFacts> {
    let chain = certificates(&of.certificate, CHAIN_MAX).ok()?;
    let first = chain.first()?;
    Some(CertificateFacts { sha256: hex::encode(Sha256::digest(first)), not_after: not_after(first)? })
}

fn check_dates(chain: &[CertificateDer<'_>], now: Timestamp) -> Result<(), CredentialsError> {
    for certificate in chain {
        let until = not_after(certificate)
            .ok_or_else(|| wrong(Part::Certificate, "is no X.509 certificate whose dates can be read"))?;
        if until <= now {
            return Err(wrong(Part::Certificate, format!("expired at {}", until.rfc3339())));
        }
    }
    Ok(())
}

fn certificates(pem: &str, max: usize) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    if pem.len() > CERTIFICATES_BYTES_MAX {
        return Err(wrong(Part::Certificate, format!("is at most {CERTIFICATES_BYTES_MAX} bytes of PEM")));
    }
    if !is_text(pem) {
        return Err(wrong(Part::Certificate, "holds control characters, which no PEM has"));
    }
    // The text is kept, and shown: whatever else stood in it, a key above all, would be too.
    if pem.matches("-----BEGIN ").count() != pem.matches("-----BEGIN CERTIFICATE-----").count() {
        return Err(wrong(Part::Certificate, "holds more than certificates; take the key, and all else, out of it"));
    }
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let read = read.map_err(|_| wrong(Part::Certificate, "is not PEM"))?;
    if read.is_empty() || read.len() > max {
        return Err(wrong(Part::Certificate, format!("holds 1 to {max} certificates (-----BEGIN CERTIFICATE-----)")));
    }
    Ok(read)
}

fn is_text(pem: &str) -> bool {
    !pem.contains(|letter: char| letter.is_control() && !matches!(letter, '\t' | '\r' | '\n'))
}

fn certified_key(given: &ClientCertificate) -> Result<CertifiedKey, CredentialsError> {
    let chain = certificates(&given.certificate, CHAIN_MAX)?;
    for certificate in &chain {
        rustls::server::ParsedCertificate::try_from(certificate)
            .map_err(|_| wrong(Part::Certificate, "is no X.509 certificate of version 3"))?;
    }
    let pem = given.private_key.expose();
    if pem.len() > KEY_BYTES_MAX {
        return Err(wrong(Part::PrivateKey, format!("is at most {KEY_BYTES_MAX} bytes of PEM")));
    }
    if !is_text(pem) {
        return Err(wrong(Part::PrivateKey, "holds control characters, which no PEM has"));
    }
    // Their errors are not shown: nobody has promised that they never hold a piece of the key.
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
        wrong(Part::PrivateKey, "holds no key in PEM: PKCS #8, PKCS #1 or SEC 1, and not encrypted with a password")
    })?;
    let provider = rustls::crypto::ring::default_provider();
    let key = provider.key_provider.load_private_key(key).map_err(|_| {
        wrong(Part::PrivateKey, "is a key that cannot be used: RSA of 2048 to 4096 bits, P-256, P-384 and Ed25519 can")
    })?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|_| wrong(Part::PrivateKey, "does not belong to the certificate"))?;
    Ok(certified)
}

fn authorities(pem: &str) -> Result<RootCertStore, CredentialsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem, AUTHORITIES_MAX)? {
        store.add(certificate).map_err(|_| wrong(Part::Certificate, "holds what is no X.509 certificate"))?;
    }
    Ok(store)
}

/// What a connection is made with beyond the system's own.
#[derive(Clone)]
pub struct Credentials {
    /// Equal for equal ones, so that connections are shared by those and by nobody else.
    pub digest: [u8; 32],
    /// The certificate to show, with its key.
    pub certified_key: Option<CertifiedKey>,
    /// Who vouches for the endpoint, where it is not who the system trusts.
    pub authorities: Option<Arc<RootCertStore>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("digest", &hex::encode(self.digest)).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Of a subscription; `None` where it has none.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn of(settings: &SubscriptionSettings) -> Result<Option<Credentials>, CredentialsError> {
        let (certificate, trusted) = (&settings.client_certificate, &settings.ca_certificate);
        if certificate.is_none() && trusted.is_none() {
            return Ok(None);
        }
        let mut digest = Sha256::new();
        let texts = [
            certificate.as_ref().map(|both| both.certificate.as_str()),
            certificate.as_ref().map(|both| both.private_key.expose()),
            trusted.as_deref(),
        ];
        for text in texts.map(Option::unwrap_or_default) {
            digest.update((text.len() as u64).to_be_bytes());
            digest.update(text);
        }
        Ok(Some(Credentials {
            digest: digest.finalize().into(),
            certified_key: certificate.as_ref().map(certified_key).transpose()?,
            authorities: trusted.as_deref().map(authorities).transpose()?.map(Arc::new),
        }))
    }
}

/// The header that an authorization is sent as.
#[must_use]
pub fn authorization_value(of: &Authorization) -> String {
    let Authorization::Bearer { token } = of;
    format!("Bearer {}", token.expose())
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const EXPLICIT_VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The last moment of an X.509 certificate (RFC 5280, 4.1), read as far as that takes.
fn not_after(certificate: &[u8]) -> Option<Timestamp> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (mut rest, _) = expect(certificate, SEQUENCE)?;
    if let Some((_, after)) = expect(rest, EXPLICIT_VERSION) {
        rest = after;
    }
    // Serial number, signature algorithm, issuer.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        (_, rest) = expect(rest, tag)?;
    }
    let (validity, _) = expect(rest, SEQUENCE)?;
    let (_, _, rest) = element(validity)?;
    let (tag, time, _) = element(rest)?;
    let text = std::str::from_utf8(time).ok().filter(|text| text.is_ascii())?;
    let full = match tag {
        // RFC 5280, 4.1.2.5.1: two digits of the year, from 1950 to 2049.
        UTC_TIME if text.len() == 13 => format!("{}{text}", if text.as_bytes()[0] >= b'5' { "19" } else { "20" }),
        GENERALIZED_TIME if text.len() == 15 => text.to_owned(),
        _ => return None,
    };
    let part = |from: usize, to: usize| &full[from..to];
    let (date, time) =
        ([part(0, 4), part(4, 6), part(6, 8)].join("-"), [part(8, 10), part(10, 12), part(12, 14)].join(":"));
    Timestamp::parse_rfc3339(&format!("{date}T{time}{}", part(14, 15))).ok()
}

/// The content of the element at the beginning, if it has this tag, and what comes after it.
fn expect(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    element(input).filter(|(found, ..)| *found == tag).map(|(_, content, rest)| (content, rest))
}

/// Tag, content and what comes after: DER, lengths up to four bytes.
fn element(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = input.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match *first {
        short @ 0..0x80 => (usize::from(short), rest),
        long => {
            let bytes = usize::from(long & 0x7f);
            if bytes == 0 || bytes > 4 {
                return None;
            }
            let (digits, rest) = rest.split_at_checked(bytes)?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::model::Secret;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn file(name: &str) -> String {
        let path = format!("{}/../tests/data/tls/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    }

    fn pair(certificate: &str, key: &str) -> ClientCertificate {
        ClientCertificate { certificate: file(certificate), private_key: Secret::new(file(key)) }
    }

    fn part(of: &ClientCertificate) -> Option<Part> {
        validate_client_certificate(of, NOW).err().map(|error| error.part)
    }

    #[test]
    fn keys_in_each_form_are_taken_with_their_certificate() {
        for (certificate, key) in [
            ("client.pem", "client.key"),
            ("client.pem", "client-sec1.key"),
            ("client-rsa.pem", "client-rsa.key"),
            ("client-rsa.pem", "client-rsa-pkcs1.key"),
        ] {
            assert_eq!(part(&pair(certificate, key)), None, "{certificate} {key}");
        }
        let facts = facts(&pair("client.pem", "client.key")).unwrap();
        assert_eq!((facts.sha256.len(), facts.not_after.rfc3339().as_str()), (64, "2120-01-01T00:00:00.000Z"));
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_its_part() {
        assert_eq!(part(&pair("client-rsa.pem", "client.key")), Some(Part::PrivateKey), "another's key");
        assert_eq!(part(&pair("client-expired.pem", "client.key")), Some(Part::Certificate));
        assert_eq!(part(&pair("client.pem", "client.pem")), Some(Part::PrivateKey), "a certificate is no key");
        assert_eq!(part(&pair("client.key", "client.key")), Some(Part::Certificate), "a key is no certificate");
        let text = |certificate: &str, key: &str| ClientCertificate {
            certificate: certificate.to_owned(),
            private_key: Secret::new(key.to_owned()),
        };
        let (good, key) = (file("client.pem"), file("client.key"));
        assert_eq!(part(&text("", &key)), Some(Part::Certificate));
        assert_eq!(part(&text(&good.repeat(CHAIN_MAX + 1), &key)), Some(Part::Certificate));
        assert_eq!(part(&text(&" ".repeat(CERTIFICATES_BYTES_MAX + 1), &key)), Some(Part::Certificate));
        assert_eq!(part(&text(&good, &" ".repeat(KEY_BYTES_MAX + 1))), Some(Part::PrivateKey));
        assert_eq!(part(&text(&format!("{good}\0"), &key)), Some(Part::Certificate));
        assert_eq!(part(&text(&good, &format!("{key}\0"))), Some(Part::PrivateKey));
        let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(part(&text(no_certificate, &key)), Some(Part::Certificate));
        let no_key = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
        let error = validate_client_certificate(&text(&good, no_key), NOW).unwrap_err();
        assert!(error.part == Part::PrivateKey && !error.why.contains("c2Vj"), "{error}");
        assert_eq!(validate_authorities(&file("ca.pem"), NOW), Ok(()));
        assert!(validate_authorities(no_certificate, NOW).is_err());
        assert!(validate_authorities(&file("expired.pem"), NOW).unwrap_err().why.contains("2020-01-02"));
    }

    #[test]
    fn credentials_are_the_same_for_the_same_texts_only() {
        let mut settings = SubscriptionSettings::new(crate::catalog::model::SubscriptionKind::Push);
        assert!(Credentials::of(&settings).unwrap().is_none());
        settings.client_certificate = Some(pair("client.pem", "client.key"));
        let first = Credentials::of(&settings).unwrap().unwrap();
        assert_eq!(Credentials::of(&settings).unwrap().unwrap().digest, first.digest);
        settings.ca_certificate = Some(file("ca.pem"));
        assert_ne!(Credentials::of(&settings).unwrap().unwrap().digest, first.digest);
        assert!(!format!("{first:?}").contains("PRIVATE"));
    }

    #[test]
    fn tokens_are_visible_text() {
        assert_eq!(validate_token("eyJhbGciOi.J9_-~+/="), Ok(()));
        for bad in ["", "a b", "line\nbreak", "ümlaut", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
            assert!(validate_token(bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_looked_at_for_a_date(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..600, at in 0_usize..600, with: u8) {
            not_after(&bytes);
            let mut real = CertificateDer::from_pem_slice(file("client.pem").as_bytes()).unwrap().to_vec();
            let at = at % real.len();
            real[at] = with;
            real.truncate(real.len().min(cut));
            not_after(&real);
        }
    }
}
