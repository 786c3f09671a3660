//! `sluice token`: tokens from the signing secret. Invariant: a token is printed alone on stdout, so that a shell can take
//! it. Never asks a broker: who can read the secret may sign.

use std::time::Duration;

use clap::Args;

use super::arguments::ConfigFlags;
use super::failure::Failure;
use super::output::Output;
use crate::api::auth::token::{Claims, Role, sign};
use crate::catalog::model::Secret;
use crate::clock::Clock;
use crate::config::{Config, Jwt, parse_duration};
use crate::entropy::Entropy;

const AFTER_HELP: &str = "\
Examples:
  sluice token --role Admin
  sluice token --role Producer,Consumer --topics 'orders.*,returns' --ttl PT8H --sub shop
  export SLUICE_TOKEN=$(sluice token --role Admin --ttl P1D)
  curl -H \"Authorization: Bearer $(sluice token --role Viewer)\" localhost:5000/api/v1/topics";

/// Make a token for the HTTP API.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct TokenArgs {
    /// What its holder may do: Admin, Producer, Consumer, PluginAuthor, Viewer
    #[arg(long, value_name = "ROLES", required = true, value_delimiter = ',')]
    role: Vec<Role>,
    /// On which topics, as globs; * matches any characters [default: all]
    #[arg(long, value_name = "GLOBS", value_delimiter = ',')]
    topics: Option<Vec<String>>,
    /// How long it holds, ISO 8601 [default: jwt.expiration, PT1H]
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    ttl: Option<Duration>,
    /// Whose name stands in audit entries
    #[arg(long, default_value = "cli")]
    sub: String,
    #[command(flatten)]
    config: ConfigFlags,
}

fn ttl(text: &str) -> Result<Duration, String> {
    // A token's times are whole seconds.
    parse_duration(text).and_then(|ttl| if ttl.as_secs() > 0 { Ok(ttl) } else { Err("is a second or more".to_owned()) })
}

/// Prints one token.
pub(super) fn run(args: &TokenArgs) -> Result<(), Failure> {
    let config = Config::load(&args.config.flags())?.config;
    let entropy = Entropy::system();
    let secret = config.signing_secret(&entropy)?;
    let wanted = Wanted {
        subject: args.sub.clone(),
        roles: args.role.clone(),
        topics: args.topics.clone(),
        ttl: args.ttl.unwrap_or(config.jwt.expiration),
    };
    Output::new(false).line(&make_token(&config.jwt, &secret, wanted, (&Clock::system(), &entropy)))
}

/// What a token is to say.
pub(super) struct Wanted {
    pub(super) subject: String,
    pub(super) roles: Vec<Role>,
    pub(super) topics: Option<Vec<String>>,
    pub(super) ttl: Duration,
}

/// Signs a token that a broker with these settings takes.
pub(super) fn make_token(
    settings: &Jwt,
    secret: &Secret,
    wanted: Wanted,
    (clock, entropy): (&Clock, &Entropy),
) -> String {
    let now_seconds = clock.now().0.div_euclid(1000);
    let claims = Claims {
        sub: wanted.subject,
        roles: wanted.roles,
        topics: wanted.topics,
        iss: settings.issuer.clone(),
        aud: settings.audience.iter().cloned().collect(),
        exp: now_seconds.saturating_add(i64::try_from(wanted.ttl.as_secs()).unwrap_or(i64::MAX)),
        nbf: Some(now_seconds),
        iat: Some(now_seconds),
        jti: Some(format!("{:016x}{:016x}", entropy.next_u64(), entropy.next_u64())),
    };
    sign(&claims, secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::auth::token::{Verifier, verify};
    use crate::clock::Timestamp;

    #[test]
    fn a_broker_with_the_same_settings_takes_the_token() {
        let secret = Secret::new("s".repeat(32));
        let settings = Jwt {
            secret: Some(secret.clone()),
            issuer: Some("i".to_owned()),
            audience: Some("a".to_owned()),
            expiration: Duration::from_secs(60),
        };
        let clock = Clock::fixed(Timestamp(1_800_000_000_000));
        let topics = Some(vec!["orders.*".to_owned()]);
        let wanted =
            Wanted { subject: "x".to_owned(), roles: vec![Role::Producer], topics, ttl: Duration::from_secs(60) };
        let token = make_token(&settings, &secret, wanted, (&clock, &Entropy::seeded(1)));
        let claims = verify(&token, &Verifier::new(&secret, Some("i"), Some("a"), clock)).expect("taken");
        assert_eq!((claims.sub.as_str(), claims.exp), ("x", 1_800_000_060));
        assert_eq!(claims.topics.as_deref(), Some(&["orders.*".to_owned()][..]));
    }
}
