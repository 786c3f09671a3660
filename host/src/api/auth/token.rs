//! JSON Web Tokens: what one says, and how it is signed and checked. Invariant: the algorithm is HS256 whatever the
//! token's head asks for, and a token without an end is refused. Never decides what a role may do.

use std::fmt;
use std::str::FromStr;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::catalog::model::Secret;
use crate::clock::Clock;

/// Bytes of a token at most. It travels in each request's head; this is far above any that Sluice makes.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a signing secret at least: HS256's own key size (RFC 7518 §3.2).
pub const SECRET_BYTES_MIN: usize = 32;
/// How far the issuer's clock may run ahead of ours before `nbf` refuses a token that was just made.
const CLOCK_SKEW_SECONDS: i64 = 5;

/// What a token's holder may do; API.md says what each one grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Everything.
    Admin,
    /// Publish, create topics, register schemas.
    Producer,
    /// Consume, settle, subscriptions.
    Consumer,
    /// Upload plugins, set pipelines.
    PluginAuthor,
    /// Read.
    Viewer,
}

impl Role {
    /// All of them, for messages and completions.
    pub const ALL: [Role; 5] = [Role::Admin, Role::Producer, Role::Consumer, Role::PluginAuthor, Role::Viewer];

    /// Its name in a token.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Admin => "Admin",
            Role::Producer => "Producer",
            Role::Consumer => "Consumer",
            Role::PluginAuthor => "PluginAuthor",
            Role::Viewer => "Viewer",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Role, String> {
        Role::ALL
            .into_iter()
            .find(|role| role.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| format!("'{text}' is not a role; the roles are {}", Role::ALL.map(Role::as_str).join(", ")))
    }
}

/// What a token says of its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who: the name in audit entries, rate limits and leases.
    pub sub: String,
    /// What the holder may do. Names that Sluice does not know grant nothing and are left out.
    #[serde(default, deserialize_with = "known_roles")]
    pub roles: Vec<Role>,
    /// On which topics, as globs (`*` matches any characters); absent: on all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topics: Option<Vec<String>>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// For whom.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_many",
        serialize_with = "as_one"
    )]
    pub aud: Vec<String>,
    /// Until when, in seconds since 1970.
    #[serde(deserialize_with = "numeric_date")]
    pub exp: i64,
    /// From when on.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "numeric_date_option")]
    pub nbf: Option<i64>,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "numeric_date_option")]
    pub iat: Option<i64>,
    /// Its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
}

/// Why a token is refused. The text may be shown to its sender: it says nothing that the token doesn't.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than [`TOKEN_BYTES_MAX`].
    #[error("the token is longer than 8 KiB")]
    TooLong,
    /// Not three parts of base64url, or claims of the wrong type.
    #[error("the token is not a well-formed JWT with the claims sub and exp")]
    Malformed,
    /// Its head names another algorithm.
    #[error("the token is not signed with HS256")]
    Algorithm,
    /// Its head names extensions that whoever reads it must understand (RFC 7515 §4.1.11).
    #[error("the token's head demands extensions (crit), and Sluice knows none")]
    Critical,
    /// Signed with another secret, or changed since.
    #[error("the token's signature is wrong: it was made with another secret or changed since")]
    Signature,
    /// `exp` is past.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is still to come.
    #[error("the token is not valid yet (nbf)")]
    NotYet,
    /// `iss` is missing or another one.
    #[error("the token was made by another issuer (iss)")]
    Issuer,
    /// `aud` is missing or another one.
    #[error("the token was made for another audience (aud)")]
    Audience,
}

/// Signs the claims with HS256.
#[must_use]
pub fn sign(claims: &Claims, secret: &Secret) -> String {
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key)
        .expect("HS256 takes any key and the claims are plain JSON")
}

/// What tokens are held against.
pub struct Verifier {
    key: DecodingKey,
    rules: Validation,
    clock: Clock,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("iss", &self.rules.iss).field("aud", &self.rules.aud).finish_non_exhaustive()
    }
}

impl Verifier {
    /// Tokens signed with `secret`, and with these `iss` and `aud` where they are given.
    #[must_use]
    pub fn new(secret: &Secret, issuer: Option<&str>, audience: Option<&str>, clock: Clock) -> Verifier {
        let mut rules = Validation::new(Algorithm::HS256);
        // The library would ask the system for the time; `check_times` asks the broker's clock.
        rules.validate_exp = false;
        rules.validate_nbf = false;
        rules.validate_aud = audience.is_some();
        let mut required = vec!["exp", "sub"];
        if let Some(issuer) = issuer {
            rules.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = audience {
            rules.set_audience(&[audience]);
            required.push("aud");
        }
        rules.set_required_spec_claims(&required);
        Verifier { key: DecodingKey::from_secret(secret.expose().as_bytes()), rules, clock }
    }
}

/// Checks a token and reads what it says.
///
/// # Errors
/// Why it is refused.
pub fn verify(token: &str, verifier: &Verifier) -> Result<Claims, TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::TooLong);
    }
    let token =
        jsonwebtoken::decode::<Claims>(token, &verifier.key, &verifier.rules).map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature => TokenError::Signature,
            ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
                TokenError::Algorithm
            }
            ErrorKind::InvalidIssuer => TokenError::Issuer,
            ErrorKind::InvalidAudience => TokenError::Audience,
            ErrorKind::MissingRequiredClaim(name) if name == "iss" => TokenError::Issuer,
            ErrorKind::MissingRequiredClaim(name) if name == "aud" => TokenError::Audience,
            _ => TokenError::Malformed,
        })?;
    if token.header.crit.is_some() {
        return Err(TokenError::Critical);
    }
    check_times(&token.claims, verifier.clock.now().0.div_euclid(1000))?;
    Ok(token.claims)
}

/// RFC 7519 §4.1.4: refused on or after `exp`.
fn check_times(claims: &Claims, now_seconds: i64) -> Result<(), TokenError> {
    if now_seconds >= claims.exp {
        return Err(TokenError::Expired);
    }
    if claims.nbf.is_some_and(|nbf| nbf > now_seconds.saturating_add(CLOCK_SKEW_SECONDS)) {
        return Err(TokenError::NotYet);
    }
    Ok(())
}

fn known_roles<'de, D: Deserializer<'de>>(source: D) -> Result<Vec<Role>, D::Error> {
    let names = one_or_many(source)?;
    Ok(names.iter().filter_map(|name| Role::ALL.into_iter().find(|role| role.as_str() == name)).collect())
}

/// RFC 7519 §4.1.3 lets `aud` be one string; some issuers write a single role so, too.
fn one_or_many<'de, D: Deserializer<'de>>(source: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(source)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}

fn as_one<S: Serializer>(values: &[String], target: S) -> Result<S::Ok, S::Error> {
    if let [one] = values { one.serialize(target) } else { values.serialize(target) }
}

/// RFC 7519 §2: seconds, which may have a fraction.
fn numeric_date<'de, D: Deserializer<'de>>(source: D) -> Result<i64, D::Error> {
    let number = serde_json::Number::deserialize(source)?;
    number
        .as_i64()
        .or_else(|| number.as_f64().filter(|seconds| seconds.abs() < 1e15).map(|seconds| seconds as i64))
        .ok_or_else(|| serde::de::Error::custom("a time is a number of seconds since 1970"))
}

fn numeric_date_option<'de, D: Deserializer<'de>>(source: D) -> Result<Option<i64>, D::Error> {
    numeric_date(source).map(Some)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;
    use crate::clock::Timestamp;

    const NOW_SECONDS: i64 = 1_800_000_000;

    fn secret() -> Secret {
        Secret::new("0123456789abcdef0123456789abcdef".to_owned())
    }

    fn claims() -> Claims {
        Claims {
            sub: "ann".to_owned(),
            roles: vec![Role::Producer, Role::Viewer],
            topics: Some(vec!["orders.*".to_owned()]),
            iss: Some("https://issuer".to_owned()),
            aud: vec!["sluice".to_owned()],
            exp: NOW_SECONDS + 60,
            nbf: Some(NOW_SECONDS),
            iat: Some(NOW_SECONDS),
            jti: Some("1".to_owned()),
        }
    }

    fn verifier(issuer: Option<&str>, audience: Option<&str>) -> Verifier {
        Verifier::new(&secret(), issuer, audience, Clock::fixed(Timestamp(NOW_SECONDS * 1000)))
    }

    /// A token with any head and claims, signed with the right secret.
    fn forged(head: &str, claims: &str) -> String {
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(claims));
        let key = EncodingKey::from_secret(secret().expose().as_bytes());
        let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256).expect("HS256 signs");
        format!("{text}.{signature}")
    }

    #[test]
    fn a_token_reads_back_as_signed() {
        for (issuer, audience) in [(None, None), (Some("https://issuer"), Some("sluice"))] {
            assert_eq!(verify(&sign(&claims(), &secret()), &verifier(issuer, audience)), Ok(claims()));
        }
    }

    #[test]
    fn claims_are_held_against_the_rules() {
        let edit = |change: fn(&mut Claims)| {
            let mut claims = claims();
            change(&mut claims);
            claims
        };
        let rows: [(Claims, TokenError); 6] = [
            (edit(|it| it.exp = NOW_SECONDS), TokenError::Expired),
            (edit(|it| it.nbf = Some(NOW_SECONDS + 60)), TokenError::NotYet),
            (edit(|it| it.iss = Some("else".to_owned())), TokenError::Issuer),
            (edit(|it| it.iss = None), TokenError::Issuer),
            (edit(|it| it.aud = vec!["else".to_owned()]), TokenError::Audience),
            (edit(|it| it.aud = vec![]), TokenError::Audience),
        ];
        let verifier = verifier(Some("https://issuer"), Some("sluice"));
        for (claims, error) in rows {
            assert_eq!(verify(&sign(&claims, &secret()), &verifier), Err(error), "{claims:?}");
        }
    }

    #[test]
    fn an_expired_token_follows_the_brokers_clock() {
        let clock = Clock::fixed(Timestamp(NOW_SECONDS * 1000));
        let verifier = Verifier::new(&secret(), None, None, clock.clone());
        let token = sign(&claims(), &secret());
        assert!(verify(&token, &verifier).is_ok());
        clock.advance(std::time::Duration::from_secs(60));
        assert_eq!(verify(&token, &verifier), Err(TokenError::Expired));
    }

    #[test]
    fn other_algorithms_and_secrets_are_refused() {
        let body = r#"{"sub":"eve","exp":1900000000,"roles":["Admin"]}"#;
        let verifier = verifier(None, None);
        assert!(verify(&forged(r#"{"alg":"HS256"}"#, body), &verifier).is_ok());
        for head in [r#"{"alg":"HS512"}"#, r#"{"alg":"RS256"}"#] {
            assert_eq!(verify(&forged(head, body), &verifier), Err(TokenError::Algorithm), "{head}");
        }
        let critical = forged(r#"{"alg":"HS256","crit":["x"],"x":true}"#, body);
        assert_eq!(verify(&critical, &verifier), Err(TokenError::Critical));
        let unsigned = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(body));
        assert!(verify(&unsigned, &verifier).is_err());
        let other = Secret::new("another secret of thirty-two bytes".to_owned());
        assert_eq!(verify(&sign(&claims(), &other), &verifier), Err(TokenError::Signature));
        let mut changed = sign(&claims(), &secret());
        let at = changed.find('.').expect("three parts") + 5;
        changed.replace_range(at..=at, if &changed[at..=at] == "A" { "B" } else { "A" });
        assert!(verify(&changed, &verifier).is_err());
    }

    #[test]
    fn odd_tokens_are_refused_and_lenient_ones_read() {
        let verifier = verifier(None, None);
        let head = r#"{"alg":"HS256"}"#;
        for (body, error) in [
            (r#"{"sub":"ann"}"#, TokenError::Malformed),
            (r#"{"exp":1900000000}"#, TokenError::Malformed),
            (r#"{"sub":"ann","exp":"soon"}"#, TokenError::Malformed),
            (r#"{"sub":"ann","exp":1900000000,"topics":"all"}"#, TokenError::Malformed),
            (r#"{"sub":"ann","exp":-1}"#, TokenError::Malformed),
            (r#"{"sub":"ann","exp":1}"#, TokenError::Expired),
        ] {
            assert_eq!(verify(&forged(head, body), &verifier), Err(error), "{body}");
        }
        for odd in ["", ".", "..", "a.b.c", "ü.ü.ü"] {
            assert_eq!(verify(odd, &verifier), Err(TokenError::Malformed), "{odd}");
        }
        assert_eq!(verify(&"a".repeat(TOKEN_BYTES_MAX + 1), &verifier), Err(TokenError::TooLong));
        let lenient = r#"{"sub":"ann","exp":1900000000.5,"roles":["Admin","Wizard"],"aud":["a","b"],"extra":1}"#;
        let read = verify(&forged(head, lenient), &verifier).expect("valid");
        assert_eq!((read.exp, read.roles, read.aud.len()), (1_900_000_000, vec![Role::Admin], 2));
    }

    #[test]
    fn roles_are_named_in_the_error() {
        assert_eq!("pluginauthor".parse(), Ok(Role::PluginAuthor));
        assert!("Root".parse::<Role>().expect_err("unknown").contains("Admin, Producer"));
    }
}
