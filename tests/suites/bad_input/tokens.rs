//! Tokens that are none, or somebody else's: malformed, forged, of another time, issuer, audience or key. Invariant: each is
//! 401 `UNAUTHENTICATED` with a challenge, whatever it claims to be, nothing is stored for who sent it, and the right one is
//! served all the while.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::token::{Claims, seal};
use sluice_tests::{Answer, Broker, Client, Settings};

use super::document::Document;
use super::stored::{difference, stored};
use super::wire::{self, Wire};

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "sluice";
/// What an issuer with another algorithm would publish: no secret, so it must not pass for one.
const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAziXEzBbw8xswXvxA3Rth
AgHITtmg5Go7h/gbVOFrapuJCttftF/PxiiGsfZ1eVnhfzM08VUlC5C8icwi8bJm
eDVvVGeraUF/WJohtTlv3StxZUYwqxKJoCCIdlGVMBQBiNrdTYllZl60FZkqs0e5
hEM4Jjk2ZwB517iz+8AtTePlGao7jR2Y0m0gzH4tq5Jqr4/AiSnAx0m8w0wg+cMM
QdMBfKMNw4PQGVYqA7mPN9aax9LRWClhk4iUntOqFqhP//uGv7eRTvCSZ91KOUmC
G7UZQAhm0wyh3fvlmFg0/ucSoJWdF/jfKuuFOhOkwDfN5hG4U140OTf2/PRZQurb
iwIDAQAB
-----END PUBLIC KEY-----
";

/// A broker that demands an issuer and an audience.
struct Bed {
    broker: Broker,
    secret: Vec<u8>,
    right: Claims,
    admin: Client,
}

impl Bed {
    async fn start() -> Bed {
        let broker = Broker::with(Settings::new().env("JWT__Issuer", ISSUER).env("JWT__Audience", AUDIENCE)).await;
        let right = Claims::new("somebody", &["Admin"]).with("iss", ISSUER).with("aud", AUDIENCE);
        Bed { secret: broker.secret(), admin: broker.client(&right), broker, right }
    }

    /// Asks for a topic with these `Authorization` headers.
    async fn ask(&self, authorization: &[&[u8]]) -> Answer {
        let headers: Vec<(&str, &[u8])> = authorization.iter().map(|value| ("authorization", *value)).collect();
        let body = br#"{"name":"forged","type":"Queue"}"#;
        let mut wire = Wire::to(&self.admin).await;
        wire.send(&wire::request(&self.broker.anonymous(), ("POST", "/api/v1/topics"), &headers, Some(body))).await;
        wire.expect_answer().await
    }

    async fn expect_refused(&self, tokens: Vec<(&str, String)>) {
        let before = stored(&self.admin).await;
        for (what, token) in tokens {
            expect_refused(what, &self.ask(&[format!("Bearer {token}").as_bytes()]).await);
            self.admin.get("/topics").await.expect(200);
        }
        assert_eq!(difference(&before, &stored(&self.admin).await), None);
    }

    /// Under a head of their own, signed with the right secret.
    fn headed(&self, head: Value) -> String {
        self.right.sign_as(&head, &self.secret)
    }

    fn with(&self, name: &str, value: impl Into<Value>) -> String {
        self.right.clone().with(name, value).sign(&self.secret)
    }

    fn without(&self, name: &str) -> String {
        self.right.clone().without(name).sign(&self.secret)
    }
}

fn expect_refused(what: &str, answer: &Answer) {
    assert_eq!(answer.status, 401, "{what}: {answer}");
    answer.expect_problem(401, "UNAUTHENTICATED");
    let challenge = answer.header("www-authenticate");
    assert!(challenge.is_some_and(|scheme| scheme.starts_with("Bearer")), "{what}: {answer}");
}

#[tokio::test]
async fn what_is_no_token_lets_nobody_in() {
    let bed = Bed::start().await;
    let token = bed.right.sign(&bed.secret);
    let [head, claims, signature] = token.split('.').collect::<Vec<_>>().try_into().expect("a token has three parts");
    let bearer = format!("Bearer {token}");
    let wrong: [(&str, &[&[u8]]); 9] = [
        ("none", &[]),
        ("empty", &[b""]),
        ("the scheme alone", &[b"Bearer"]),
        ("the scheme and a space", &[b"Bearer "]),
        ("another scheme", &[b"Basic c29tZWJvZHk6c2VjcmV0"]),
        ("no scheme", &[token.as_bytes()]),
        ("two headers", &[bearer.as_bytes(), bearer.as_bytes()]),
        ("a right and a wrong one", &[bearer.as_bytes(), b"Bearer x"]),
        ("not UTF-8", &[b"Bearer \xff\xfe"]),
    ];
    for (what, authorization) in wrong {
        expect_refused(what, &bed.ask(authorization).await);
    }
    bed.expect_refused(vec![
        ("one part", "noise".to_owned()),
        ("two parts", format!("{head}.{claims}")),
        ("four parts", format!("{token}.{signature}")),
        ("five parts, as an encrypted one has", format!("{token}.x.y")),
        ("no signature", format!("{head}.{claims}.")),
        ("empty parts", "..".to_owned()),
        ("a head that is no base64", format!("!!!.{claims}.{signature}")),
        ("claims that are no base64", format!("{head}.!!!.{signature}")),
        ("a signature that is no base64", format!("{head}.{claims}.!!!")),
        ("a padded signature", format!("{token}=")),
        ("half a token", token[..token.len() / 2].to_owned()),
        ("a comma and another", format!("{token},{token}")),
        ("a head that is no JSON", seal("{", "{}", &bed.secret)),
        ("a head that is a list", seal("[]", "{}", &bed.secret)),
        ("claims that are no JSON", seal(r#"{"alg":"HS256"}"#, "{", &bed.secret)),
        ("claims that are a list", seal(r#"{"alg":"HS256"}"#, "[]", &bed.secret)),
        ("claims that are not UTF-8", seal(r#"{"alg":"HS256"}"#, b"{\"sub\":\"\xff\"}", &bed.secret)),
        ("10 KiB", bed.with("jti", "x".repeat(10 * 1024))),
    ])
    .await;
    assert_eq!(bed.ask(&[bearer.as_bytes()]).await.status, 201, "the right one is served");
}

/// What is longer than any head may be is refused as that, before it is read as a token.
#[tokio::test]
async fn a_token_larger_than_any_head_is_not_looked_at() {
    let bed = Bed::start().await;
    let before = stored(&bed.admin).await;
    let large = bed.with("jti", "x".repeat(33 * 1024));
    bed.ask(&[format!("Bearer {large}").as_bytes()]).await.expect_problem(431, "HEADERS_TOO_LARGE");
    // Here hyper answers: a bare status.
    let huge = bed.with("jti", "x".repeat(64 * 1024));
    let answer = bed.ask(&[format!("Bearer {huge}").as_bytes()]).await;
    assert_eq!((answer.status, answer.body.len()), (431, 0), "{answer}");
    assert_eq!(difference(&before, &stored(&bed.admin).await), None);
}

#[tokio::test]
async fn a_forged_token_lets_nobody_in() {
    let bed = Bed::start().await;
    let token = bed.right.sign(&bed.secret);
    let modest = bed.right.clone().with("roles", json!(["Viewer"])).sign(&bed.secret);
    let part = |token: &str, at: usize| token.split('.').nth(at).expect("a token has three parts").to_owned();
    let right = serde_json::to_string(&json!({"alg": "HS256", "typ": "JWT"})).expect("plain JSON");
    let twice = right.replace("\"alg\"", "\"alg\":\"none\",\"alg\"");
    let mut tokens = vec![
        ("another secret", bed.right.sign(b"another-secret-that-is-just-as-long-as-it-is")),
        ("an empty secret", bed.right.sign(b"")),
        ("a secret that goes on", bed.right.sign(&[bed.secret.as_slice(), b"x"].concat())),
        ("a public key as the secret", bed.right.sign(PUBLIC_KEY.as_bytes())),
        (
            "a public key as the secret, said to be RS256",
            bed.right.sign_as(&json!({"alg": "RS256"}), PUBLIC_KEY.as_bytes()),
        ),
        ("another's claims", format!("{}.{}.{}", part(&modest, 0), part(&token, 1), part(&modest, 2))),
        (
            "another head",
            format!("{}.{}.{}", part(&bed.headed(json!({"alg": "HS512"})), 0), part(&token, 1), part(&token, 2)),
        ),
        ("no algorithm at all", bed.headed(json!({"typ": "JWT"}))),
        ("two algorithms", seal(twice, "{}", &bed.secret)),
        ("its own key", bed.right.sign_as(&json!({"alg": "HS256", "jwk": {"kty": "oct", "k": "b3du"}}), b"own")),
        ("a key elsewhere", bed.right.sign_as(&json!({"alg": "HS256", "jku": "http://127.0.0.1:9/keys"}), b"own")),
        (
            "a key that is an empty file",
            bed.right.sign_as(&json!({"alg": "HS256", "kid": "../../../../dev/null"}), b""),
        ),
        ("a key out of a database", bed.right.sign_as(&json!({"alg": "HS256", "kid": "x' UNION SELECT 'own"}), b"own")),
        // RFC 7515 §4.1.11: who does not know what is critical refuses.
        ("a demand that nobody knows", bed.headed(json!({"alg": "HS256", "crit": ["x"], "x": true}))),
    ];
    for algorithm in ["none", "None", "nOnE", "NONE", "", "HS512", "HS384", "RS256", "PS256", "ES256", "EdDSA", "hs256"]
    {
        let signed = bed.headed(json!({"alg": algorithm, "typ": "JWT"}));
        tokens
            .push(("the algorithm of its own choice, unsigned", format!("{}.{}.", part(&signed, 0), part(&signed, 1))));
        tokens.push(("the algorithm of its own choice", signed));
    }
    for at in [5, token.find('.').unwrap_or(0) + 5, token.len() - 5] {
        let other = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
        tokens.push(("a changed character", format!("{}{other}{}", &token[..at], &token[at + 1..])));
    }
    bed.expect_refused(tokens).await;
    // The name of a key plays no part: there is one.
    let named = bed.headed(json!({"alg": "HS256", "kid": "../../../../dev/null"}));
    bed.admin.with_token(&named).get("/topics").await.expect(200);
}

#[tokio::test]
async fn a_token_of_another_time_issuer_or_audience_lets_nobody_in() {
    let bed = Bed::start().await;
    let now = bed.broker.clock().now_ms() / 1000;
    let twice =
        format!(r#"{{"sub":"s","roles":["Admin"],"iss":"{ISSUER}","aud":"{AUDIENCE}","exp":1,"exp":{}}}"#, now + 60);
    bed.expect_refused(vec![
        ("expired", bed.with("exp", now - 1)),
        ("expired long ago", bed.with("exp", 1.5)),
        ("expired before time began", bed.with("exp", -1)),
        ("without an end", bed.without("exp")),
        ("an end that is a text", bed.with("exp", (now + 60).to_string())),
        ("an end that is null", bed.with("exp", Value::Null)),
        ("an end that is true", bed.with("exp", true)),
        ("an end beyond all", bed.with("exp", 1e300)),
        ("an end beyond 64 bits", bed.with("exp", u64::MAX)),
        ("two ends", seal(r#"{"alg":"HS256"}"#, twice, &bed.secret)),
        ("not yet", bed.with("nbf", now + 60)),
        ("from a text on", bed.with("nbf", "now")),
        ("from beyond all on", bed.with("nbf", 1e300)),
        ("no issuer", bed.without("iss")),
        ("another issuer", bed.with("iss", "https://issuer.example.net")),
        ("an issuer's beginning", bed.with("iss", "https://issuer")),
        ("many issuers", bed.with("iss", json!([ISSUER, "https://other.example"]))),
        ("an issuer that is a number", bed.with("iss", 5)),
        ("no audience", bed.without("aud")),
        ("another audience", bed.with("aud", "sluice-staging")),
        ("an audience in other letters", bed.with("aud", "SLUICE")),
        ("an empty audience", bed.with("aud", json!([]))),
        ("audiences without this one", bed.with("aud", json!(["a", "b"]))),
        ("no subject", bed.without("sub")),
        ("a subject that is a number", bed.with("sub", 5)),
        ("a role that is a number", bed.with("roles", json!([5]))),
        ("topics that are one text", bed.with("topics", "*")),
    ])
    .await;
    let among_others = bed.with("aud", json!(["other", AUDIENCE]));
    bed.admin.with_token(&among_others).get("/topics").await.expect(200);
}

#[tokio::test]
async fn a_token_that_was_right_is_refused_once_it_has_expired() {
    let bed = Bed::start().await;
    let now = bed.broker.clock().now_ms() / 1000;
    let client = bed.admin.with_token(&bed.with("exp", now + 3600));
    client.get("/topics").await.expect(200);
    bed.broker.clock().advance(Duration::from_secs(3601)).await;
    expect_refused("expired since", &client.get("/topics").await);
}

#[tokio::test]
async fn every_route_wants_a_token_and_a_role_unless_it_says_that_it_does_not() {
    let bed = Bed::start().await;
    let before = stored(&bed.admin).await;
    let document = Document::of(&bed.broker.anonymous()).await;
    let powerless = [bed.with("roles", json!([])), bed.with("roles", json!(["Root", "admin"])), bed.without("roles")];
    let mut closed = 0;
    for operation in document.operations() {
        let segment = |segment: &str| if segment.starts_with('{') { "x".to_owned() } else { segment.to_owned() };
        let path = operation.path.split('/').map(segment).collect::<Vec<_>>().join("/");
        let method = operation.method.parse::<http::Method>().expect("a method");
        let ask = async |client: &Client| client.send(method.clone(), &format!("/{path}"), &[], "").await;
        let answer = ask(&bed.broker.anonymous()).await;
        if operation.is_open() {
            assert_eq!(answer.status, 200, "{answer}");
            continue;
        }
        expect_refused(&operation.name(), &answer);
        for token in &powerless {
            ask(&bed.admin.with_token(token)).await.expect_problem(403, "FORBIDDEN");
        }
        closed += 1;
    }
    assert!(closed > 40, "the document has become small: {closed}");
    assert_eq!(difference(&before, &stored(&bed.admin).await), None);
}
