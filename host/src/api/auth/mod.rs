//! Who is calling, and what they may do. Invariant: a caller exists only for a token that was verified and has not
//! expired by the broker's clock; a missing role or topic is named in the refusal. Never reads the catalog.

pub mod scope;
pub mod table;
pub mod token;

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;
use moka::sync::Cache;
use sha2::{Digest as _, Sha256};

use self::scope::Scope;
use self::token::{Claims, Role, TOKEN_BYTES_MAX, Verifier, verify};
use super::problem::{Code, Problem};
use crate::catalog::Actor;
use crate::clock::{Clock, Timestamp};
use crate::message::TopicName;

/// Verified tokens that are remembered, so that a client's next request costs a hash and no verification. About 5 MB.
const TOKENS_MAX: u64 = 10_000;

/// Who is calling: a verified token. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Caller(Arc<Identity>);

#[derive(Debug)]
struct Identity {
    subject: Arc<str>,
    roles: Vec<Role>,
    scope: Scope,
    expires_at_seconds: i64,
}

impl Caller {
    /// The holder of a token that says this.
    #[must_use]
    pub fn new(claims: &Claims) -> Caller {
        Caller(Arc::new(Identity {
            subject: claims.sub.as_str().into(),
            roles: claims.roles.clone(),
            scope: Scope::new(claims.topics.as_deref()),
            expires_at_seconds: claims.exp,
        }))
    }

    /// The token's `sub`.
    #[must_use]
    pub fn subject(&self) -> &Arc<str> {
        &self.0.subject
    }

    /// The topics it reaches.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.0.scope
    }

    /// Whether it has the role: Admin has all, and every role has Viewer.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        let roles = &self.0.roles;
        roles.contains(&role) || roles.contains(&Role::Admin) || (role == Role::Viewer && !roles.is_empty())
    }

    /// Whether its token has ended: for what outlives the request that the token was checked for.
    #[must_use]
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.0.expires_at_seconds <= now.0.div_euclid(1000)
    }

    /// When its token ends.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        Timestamp(self.0.expires_at_seconds.saturating_mul(1000))
    }

    /// Refuses a caller without the role.
    ///
    /// # Errors
    /// `FORBIDDEN`, naming the role.
    pub fn need(&self, role: Role) -> Result<(), Problem> {
        if self.has(role) {
            return Ok(());
        }
        Err(Problem::new(Code::Forbidden, format!("This needs the role {role}; ask for a token that has it.")))
    }

    /// Refuses a topic out of scope.
    ///
    /// # Errors
    /// `FORBIDDEN`, naming the topic.
    pub fn need_topic(&self, topic: &TopicName) -> Result<(), Problem> {
        if self.scope().allows_topic(topic.as_str()) {
            return Ok(());
        }
        Err(out_of_scope("topic", topic.as_str()))
    }

    /// Refuses a schema or plugin whose name no glob matches.
    ///
    /// # Errors
    /// `FORBIDDEN`, naming it.
    pub fn need_name(&self, noun: &str, name: &str) -> Result<(), Problem> {
        if self.scope().allows(name) { Ok(()) } else { Err(out_of_scope(noun, name)) }
    }

    /// As whom the catalog notes changes, under the current trace.
    #[must_use]
    pub fn actor(&self) -> Actor {
        Actor { user: self.subject().to_string(), trace_id: Some(crate::telemetry::trace_id()) }
    }
}

fn out_of_scope(noun: &str, name: &str) -> Problem {
    Problem::new(
        Code::Forbidden,
        format!("The token's `topics` do not include the {noun} '{name}'; ask for a token that reaches it."),
    )
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Caller, Problem> {
        // The edge put it there; a route that the table leaves open has none.
        parts.extensions.get::<Caller>().cloned().ok_or_else(unauthenticated)
    }
}

/// Turns tokens into callers.
#[derive(Debug)]
pub struct Gate {
    verifier: Verifier,
    known: Cache<[u8; 32], Caller>,
    clock: Clock,
}

impl Gate {
    /// Lets in what `verifier` accepts.
    #[must_use]
    pub fn new(verifier: Verifier, clock: Clock) -> Gate {
        Gate { verifier, known: Cache::new(TOKENS_MAX), clock }
    }

    /// The caller that the request's token names.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, saying what is wrong with the token.
    pub fn admit(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        let token = bearer(headers).ok_or_else(unauthenticated)?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(refused(token::TokenError::TooLong));
        }
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(caller) = self.known.get(&key) {
            if !caller.has_expired(self.clock.now()) {
                return Ok(caller);
            }
            self.known.invalidate(&key);
            return Err(refused(token::TokenError::Expired));
        }
        let caller = Caller::new(&verify(token, &self.verifier).map_err(refused)?);
        self.known.insert(key, caller.clone());
        Ok(caller)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (all.next(), all.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn unauthenticated() -> Problem {
    Problem::new(Code::Unauthenticated, "Send `Authorization: Bearer <token>`; `sluice token` prints one.")
}

fn refused(error: token::TokenError) -> Problem {
    let said = error.to_string();
    Problem::new(Code::Unauthenticated, format!("{}{}; get a new one.", said[..1].to_uppercase(), &said[1..]))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::catalog::model::Secret;

    pub(crate) fn secret() -> Secret {
        Secret::new("0123456789abcdef0123456789abcdef".to_owned())
    }

    pub(crate) fn claims(roles: &[Role], topics: Option<&[&str]>) -> Claims {
        Claims {
            sub: "ann".to_owned(),
            roles: roles.to_vec(),
            topics: topics.map(|globs| globs.iter().map(|glob| (*glob).to_owned()).collect()),
            iss: None,
            aud: Vec::new(),
            exp: 60,
            nbf: None,
            iat: None,
            jti: None,
        }
    }

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn admin_has_every_role_and_every_role_reads() {
        let has = |roles: &[Role], role| Caller::new(&claims(roles, None)).has(role);
        for role in Role::ALL {
            assert!(has(&[Role::Admin], role));
            assert!(has(&[role], role) && has(&[role], Role::Viewer));
            assert!(!has(&[], role));
            assert_eq!(has(&[Role::Producer], role), matches!(role, Role::Producer | Role::Viewer));
        }
        let refusal = Caller::new(&claims(&[Role::Viewer], None)).need(Role::Producer).unwrap_err();
        assert!(refusal.item_body().detail.contains("role Producer"));
    }

    #[test]
    fn a_remembered_token_ends_with_its_time() {
        let clock = Clock::fixed(Timestamp(0));
        let gate = Gate::new(Verifier::new(&secret(), None, None, clock.clone()), clock.clone());
        let token = headers(&format!("bearer {}", token::sign(&claims(&[Role::Viewer], None), &secret())));
        for _ in 0..3 {
            assert_eq!(&**gate.admit(&token).unwrap().subject(), "ann");
        }
        clock.advance(Duration::from_secs(60));
        for _ in 0..2 {
            assert_eq!(gate.admit(&token).unwrap_err().code(), Code::Unauthenticated);
        }
    }

    #[test]
    fn what_is_no_bearer_token_is_refused() {
        let clock = Clock::fixed(Timestamp(0));
        let gate = Gate::new(Verifier::new(&secret(), None, None, clock.clone()), clock);
        for bad in ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer a.b.c", "Bearer ü"] {
            let headers =
                HeaderMap::from_iter([(AUTHORIZATION, http::HeaderValue::from_bytes(bad.as_bytes()).unwrap())]);
            assert_eq!(gate.admit(&headers).unwrap_err().code(), Code::Unauthenticated, "{bad}");
        }
        assert!(gate.admit(&HeaderMap::new()).is_err());
        let good = token::sign(&claims(&[], None), &secret());
        let mut twice = headers(&format!("Bearer {good}"));
        assert!(gate.admit(&twice).is_ok());
        twice.append(AUTHORIZATION, format!("Bearer {good}").parse().unwrap());
        assert!(gate.admit(&twice).is_err());
    }

    #[test]
    fn scopes_are_named_in_the_refusal() {
        let caller = Caller::new(&claims(&[Role::Admin], Some(&["orders.*"])));
        assert!(caller.need_topic(&"orders.eu".parse().unwrap()).is_ok());
        let refusal = caller.need_topic(&"billing".parse().unwrap()).unwrap_err();
        assert_eq!(refusal.code(), Code::Forbidden);
        assert!(refusal.item_body().detail.contains("billing"));
    }
}
