//! Tokens as anybody may send them. Invariant: what is let in was signed with the secret, exactly as it is written, with
//! HS256, names somebody, has not ended, and is for whom it says; checked here by a few lines of our own. Never asks the
//! system's clock.

use std::sync::OnceLock;

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use sluice::api::auth::token::{Claims as Accepted, TokenError, Verifier, sign, verify};
use sluice::catalog::model::Secret;
use sluice::clock::{Clock, Timestamp};

use super::{Seed, split_at};
use crate::token::{Claims, is_signed, seal};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const NOW_SECONDS: i64 = 1_800_000_000;
const ISSUER: &str = "https://issuer";
const AUDIENCE: &str = "sluice";

/// An input of two lines is a head and claims, which get the right signature; any other is a token as it stands.
///
/// # Panics
/// When a token is let in that must not be.
pub fn run(input: &[u8]) {
    let token = match split_at(input, b'\n') {
        Some((head, claims)) => seal(head, claims, SECRET.as_bytes()),
        None => match std::str::from_utf8(input) {
            Ok(token) => token.to_owned(),
            Err(_) => return,
        },
    };
    let (open, strict) = verifiers();
    let said = verify(&token, open);
    let strictly = verify(&token, strict);
    if let Ok(accepted) = &said {
        is_right(&token, accepted);
        let again = sign(accepted, &Secret::new(SECRET.to_owned()));
        assert_eq!(verify(&again, open).as_ref(), Ok(accepted), "what was read, signed again: {again}");
    }
    match strictly {
        Ok(accepted) => {
            assert_eq!(said.as_ref(), Ok(&accepted));
            assert_eq!(accepted.iss.as_deref(), Some(ISSUER), "{token}");
            assert!(accepted.aud.iter().any(|audience| audience == AUDIENCE), "{token}");
        }
        Err(TokenError::Issuer | TokenError::Audience) => {}
        Err(error) => assert_eq!(said, Err(error), "{token}"),
    }
}

/// What a server must see in a token before it lets anyone in.
fn is_right(token: &str, accepted: &Accepted) {
    assert!(is_signed(token, SECRET.as_bytes()), "{token} was signed by somebody else");
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!(parts.len(), 3, "{token}");
    // What nobody reads may be what no reader takes, such as a number beyond all bounds.
    let head: Option<Head> = crate::token::part(parts[0]);
    let claims: Option<Said> = crate::token::part(parts[1]);
    let (Some(Head { alg }), Some(Said(claims))) = (head, claims) else { panic!("{token} is no JSON") };
    assert_eq!(alg, "HS256");
    assert_eq!(claims["sub"].as_str(), Some(accepted.sub.as_str()), "{claims}");
    assert!(claims["exp"].as_f64().is_some_and(|until| until > NOW_SECONDS as f64), "{claims}");
    assert!(claims["nbf"].is_null() || claims["nbf"].as_f64().is_some_and(|from| from < NOW_SECONDS as f64 + 6.0));
    // A scope that was sent is never lost: without one, all topics are reached.
    assert_eq!(claims["topics"].is_null(), accepted.topics.is_none(), "{claims}");
}

/// The member of a head that matters here. Claims that stand there, once or twice, are nobody's.
#[derive(Deserialize)]
struct Head {
    alg: Value,
}

/// The claims that matter here.
struct Said(Value);

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Said, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Members {
            sub: Value,
            exp: Value,
            nbf: Value,
            topics: Value,
        }
        let Members { sub, exp, nbf, topics } = Members::deserialize(source)?;
        Ok(Said(json!({"sub": sub, "exp": exp, "nbf": nbf, "topics": topics})))
    }
}

fn verifiers() -> &'static (Verifier, Verifier) {
    static VERIFIERS: OnceLock<(Verifier, Verifier)> = OnceLock::new();
    VERIFIERS.get_or_init(|| {
        let (secret, clock) = (Secret::new(SECRET.to_owned()), Clock::fixed(Timestamp(NOW_SECONDS * 1000)));
        let open = Verifier::new(&secret, None, None, clock.clone());
        (open, Verifier::new(&secret, Some(ISSUER), Some(AUDIENCE), clock))
    })
}

/// Tokens as clients send them, and some that are refused.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    let head = r#"{"alg":"HS256","typ":"JWT"}"#;
    let full = format!(
        "{head}\n{}",
        r#"{"sub":"ann","roles":["Producer","Viewer"],"topics":["orders.*"],"iss":"https://issuer","aud":"sluice","exp":1800000060,"nbf":1800000000,"iat":1800000000,"jti":"1"}"#
    );
    let lenient =
        format!("{head}\n{}", r#"{"sub":"ann","exp":1900000000.5,"roles":"Admin","aud":["a","sluice"],"extra":1}"#);
    let none = "{\"alg\":\"none\"}\n{\"sub\":\"eve\",\"exp\":1900000000,\"roles\":[\"Admin\"]}".to_owned();
    let past = format!("{head}\n{}", r#"{"sub":"ann","exp":1,"nbf":9e99,"topics":null}"#);
    let whole = Claims::new("ann", &["Admin"]);
    vec![
        ("full", full.into_bytes()),
        ("lenient", lenient.into_bytes()),
        ("unsigned", none.into_bytes()),
        ("past", past.into_bytes()),
        ("whole", whole.sign(SECRET.as_bytes()).into_bytes()),
        ("another", whole.sign(b"another secret of thirty-two bytes").into_bytes()),
    ]
}
