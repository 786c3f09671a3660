//! What a dry run is asked for: in a JSON body; or, where the body is messages, in the query or a first line. Invariant: what is
//! wrong is told with its place in the form that it came in. Never looks at what the broker has.

use axum::body::Body;
use http::HeaderMap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::Owner;
use crate::api::extract::{Intake, Lines, Query, Spare, decode, expect_json, not_null};
use crate::api::messages::PublishBody;
use crate::api::problem::{Faults, Problem};
use crate::catalog::model::SubscriptionId;
use crate::clock::Timestamp;
use crate::message::TopicName;
use crate::pipeline::STAGE_CONFIG_BYTES_MAX;

/// Messages of a run that does not say.
const LIMIT_DEFAULT: u64 = 10_000;
/// What is held does not grow with them, but a run is to end.
const LIMIT_MAX: u64 = 100_000_000;
/// Where a first line of a body of messages says what to try.
const FIRST_LINE: &str = "/dryRun";

/// Which messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum Source {
    /// What arrived at the topic, as it was before its stages; the topic's `captureInput` keeps that.
    Captured,
    /// What is stored: as a subscription's stages get it. For a topic, whose stages it has passed, the stages before the one
    /// that is tried are left out.
    Stored,
    /// Dead letters that wait: of a topic those that its stages turned away, of a subscription its own.
    DeadLetters,
    /// What the request brings, a line each.
    Sent,
}

/// A body with the fields that both forms have. Were they a struct that both flatten, serde would neither say in which of them
/// something is wrong, nor know which fields there are.
macro_rules! body {
    ($(#[$about:meta])* $vis:vis struct $name:ident { $($own:tt)* }) => {
        $(#[$about])*
        #[derive(Debug, Default, Deserialize, ToSchema)]
        #[serde(default, rename_all = "camelCase", deny_unknown_fields)]
        $vis struct $name {
            /// Whose pipeline.
            #[serde(deserialize_with = "not_null")]
            #[schema(nullable = false)]
            topic: Option<String>,
            /// Instead of `topic`.
            #[serde(deserialize_with = "not_null")]
            #[schema(value_type = Option<String>, format = Uuid, nullable = false)]
            subscription_id: Option<SubscriptionId>,
            $($own)*
            /// Messages at most: 1 to 100000000 (10000).
            #[serde(deserialize_with = "not_null")]
            #[schema(minimum = 1, maximum = 100_000_000, nullable = false)]
            limit: Option<u64>,
            /// In the place of the stage's config.
            #[serde(deserialize_with = "not_null")]
            #[schema(value_type = Option<Object>, nullable = false)]
            config: Option<Value>,
            /// The version that it is compared with: by default the one that the stage runs.
            #[serde(deserialize_with = "not_null")]
            #[schema(nullable = false)]
            against: Option<String>,
            /// What randomness follows from (0): the same seed, the same numbers.
            #[serde(deserialize_with = "not_null")]
            #[schema(nullable = false)]
            seed: Option<u64>,
        }
    };
}

body! {
    /// What to try, and on which messages. `topic` or `subscriptionId` is required.
    pub(super) struct DryRunBody {
        /// The stage in whose place the version is tried: by default the one that runs the plugin. Where none does, the version is
        /// tried alone, and compared with the messages as they come.
        #[serde(deserialize_with = "not_null")]
        #[schema(nullable = false)]
        stage: Option<String>,
        /// `captured` (the default for a topic), `stored` (for a subscription) or `deadLetters`.
        #[serde(deserialize_with = "not_null")]
        #[schema(nullable = false)]
        inputs: Option<Source>,
        /// `earliest` (the default), or an RFC 3339 time.
        #[serde(deserialize_with = "not_null")]
        #[schema(nullable = false)]
        from: Option<String>,
    }
}

/// The same, where the body is the messages.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DryRunQuery {
    /// With lines: whose pipeline.
    topic: Option<String>,
    /// With lines: instead of `topic`.
    #[param(value_type = Option<String>, format = Uuid)]
    subscription_id: Option<SubscriptionId>,
    /// With lines: as in the body.
    stage: Option<String>,
    /// With lines: messages at most.
    #[param(minimum = 1, maximum = 100_000_000, default = 10_000)]
    limit: Option<u64>,
    /// With lines: in the place of the stage's config, as JSON.
    config: Option<String>,
    /// With lines: the version that it is compared with.
    against: Option<String>,
    /// With lines: what randomness follows from.
    seed: Option<u64>,
    /// With lines: when they came, for the stages (now).
    at: Option<String>,
}

body! {
    /// What to try on the messages behind it. `topic` or `subscriptionId` is required.
    struct DryRunSentBody {
        /// The stage in whose place the version is tried, as in the other form.
        #[serde(deserialize_with = "not_null")]
        #[schema(nullable = false)]
        stage: Option<String>,
        /// When the messages came, for the stages, RFC 3339 (now).
        #[serde(deserialize_with = "not_null")]
        #[schema(nullable = false)]
        at: Option<String>,
    }
}

/// The first line of a body of messages, where no parameter of the query says what to try.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DryRunFirstLine<'a> {
    /// No message has this field.
    #[serde(borrow)]
    #[schema(value_type = DryRunSentBody)]
    dry_run: Option<&'a RawValue>,
}

/// A line of a body of messages.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "for the description: lines are read one by one")]
pub(super) enum DryRunLine<'a> {
    First(DryRunFirstLine<'a>),
    Message(Box<PublishBody<'a>>),
}

/// As a JSON body has it.
pub(super) async fn in_body(intake: &Intake, headers: &HeaderMap, body: Body) -> Result<Wanted, Problem> {
    expect_json(headers)?;
    let body = intake.read(headers, body).await?;
    read_as::<DryRunBody>(&body.bytes, Wanted::of_body)
}

/// Beside messages: by parameters, or else in the first of the lines; and where its parts stand.
pub(super) async fn beside(query: Query<DryRunQuery>, lines: &mut Lines) -> Result<(Wanted, &'static str), Problem> {
    let of_query = query
        .check(|query, faults| if query.is_empty() { Some(None) } else { Wanted::of_query(query, faults).map(Some) })?;
    if let Some(wanted) = of_query {
        return Ok((wanted, ""));
    }
    let missing = "is required: what to try, where no parameter says it";
    let run = lines.first().await?.ok_or_else(|| Problem::invalid_at(FIRST_LINE, missing))?;
    let range = run.lines.first().and_then(|line| line.range.clone());
    let line = &run.bytes[range.ok_or_else(|| Problem::invalid_at(FIRST_LINE, "is longer than a body may be"))?];
    let (spare, mut faults) = (Spare::default(), Faults::default());
    let said = decode::<DryRunFirstLine<'_>>(line, &spare, &mut faults)?.and_then(|first| first.dry_run);
    if said.is_none() && !faults.mentions(FIRST_LINE) {
        faults.push(FIRST_LINE, missing);
    }
    let said = faults.finish(said)?.get();
    let wanted = read_as::<DryRunSentBody>(said.as_bytes(), Wanted::of_lines);
    Ok((wanted.map_err(|problem| problem.within(FIRST_LINE))?, FIRST_LINE))
}

fn read_as<T: DeserializeOwned>(
    text: &[u8],
    check: impl FnOnce(T, &mut Faults) -> Option<Wanted>,
) -> Result<Wanted, Problem> {
    let (spare, mut faults) = (Spare::default(), Faults::default());
    let read = decode::<T>(text, &spare, &mut faults)?;
    let wanted = read.and_then(|read| check(read, &mut faults));
    faults.finish(wanted)
}

impl DryRunQuery {
    pub(super) fn is_empty(&self) -> bool {
        let DryRunQuery { topic, subscription_id, stage, limit, config, against, seed, at } = self;
        topic.is_none()
            && (subscription_id.is_none() && stage.is_none() && limit.is_none() && config.is_none())
            && (against.is_none() && seed.is_none() && at.is_none())
    }
}

fn topic(name: Option<String>, faults: &mut Faults) -> Option<TopicName> {
    name.and_then(|name| faults.keep("/topic", name.parse()))
}

/// What a request asks for.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) topic: Option<TopicName>,
    pub(super) subscription: Option<SubscriptionId>,
    pub(super) stage: Option<String>,
    inputs: Option<Source>,
    pub(super) from: Option<Timestamp>,
    pub(super) limit: u64,
    pub(super) config: Option<Value>,
    pub(super) against: Option<String>,
    pub(super) seed: u64,
    pub(super) at: Option<Timestamp>,
}

impl Wanted {
    fn of_body(body: DryRunBody, faults: &mut Faults) -> Option<Wanted> {
        let time = |text: &str| Timestamp::parse_rfc3339(text);
        let from = body.from.filter(|from| from != "earliest");
        let from = faults.keep("/from", from.map(|from| time(&from)).transpose());
        if body.inputs == Some(Source::Sent) {
            faults.push("/inputs", "messages are sent one a line, as application/x-ndjson");
        }
        let wanted = Wanted {
            topic: topic(body.topic, faults),
            subscription: body.subscription_id,
            stage: body.stage,
            inputs: body.inputs,
            from: from.flatten(),
            limit: body.limit.unwrap_or(LIMIT_DEFAULT),
            config: body.config,
            against: body.against,
            seed: body.seed.unwrap_or(0),
            at: None,
        };
        wanted.checked(faults)
    }

    fn of_query(query: DryRunQuery, faults: &mut Faults) -> Option<Wanted> {
        let config = query.config.map(|text| serde_json::from_str(&text)).transpose();
        let config = faults.keep("/config", config.map_err(|error| format!("is not JSON: {error}"))).flatten();
        let DryRunQuery { topic, subscription_id, stage, limit, against, seed, at, .. } = query;
        Wanted::of_lines(DryRunSentBody { topic, subscription_id, stage, limit, config, against, seed, at }, faults)
    }

    fn of_lines(body: DryRunSentBody, faults: &mut Faults) -> Option<Wanted> {
        let at = faults.keep("/at", body.at.map(|at| Timestamp::parse_rfc3339(&at)).transpose());
        let wanted = Wanted {
            topic: topic(body.topic, faults),
            subscription: body.subscription_id,
            stage: body.stage,
            inputs: Some(Source::Sent),
            from: None,
            limit: body.limit.unwrap_or(LIMIT_DEFAULT),
            config: body.config,
            against: body.against,
            seed: body.seed.unwrap_or(0),
            at: at.flatten(),
        };
        wanted.checked(faults)
    }

    fn checked(self, faults: &mut Faults) -> Option<Wanted> {
        match (&self.topic, &self.subscription) {
            (Some(_), Some(_)) => faults.push("/subscriptionId", "give `topic` or `subscriptionId`, not both"),
            (None, None) if !faults.mentions("/topic") => faults.push("/topic", "is required (or `subscriptionId`)"),
            _ => {}
        }
        if self.subscription.is_some() && self.inputs == Some(Source::Captured) {
            faults.push("/inputs", "what a subscription's stages get is stored: give `stored` or `deadLetters`");
        }
        if !(1..=LIMIT_MAX).contains(&self.limit) {
            faults.push("/limit", format!("is from 1 to {LIMIT_MAX}"));
        }
        if self.config.as_ref().is_some_and(|config| !config.is_object()) {
            faults.push("/config", "is an object");
        } else if self.config.as_ref().is_some_and(|config| config.to_string().len() > STAGE_CONFIG_BYTES_MAX) {
            faults.push("/config", format!("a config has at most {STAGE_CONFIG_BYTES_MAX} bytes"));
        }
        if self.from.is_some() && self.inputs == Some(Source::DeadLetters) {
            faults.push("/from", "dead letters are read from the first one on");
        }
        Some(self)
    }

    pub(super) fn source(&self, owner: &Owner) -> Source {
        let of_owner = if owner.subscription.is_some() { Source::Stored } else { Source::Captured };
        self.inputs.unwrap_or(of_owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::problem::Fault;

    fn places<T: DeserializeOwned>(text: &str, check: fn(T, &mut Faults) -> Option<Wanted>) -> Vec<String> {
        let problem = read_as(text.as_bytes(), check).expect_err("something is wrong");
        problem.item_body().errors.into_iter().map(|Fault { pointer, .. }| pointer).collect()
    }

    #[test]
    fn what_is_wrong_in_either_form_has_its_place() {
        let shared = r#""subscriptionId":1,"stage":null,"limit":"many","seed":-1,"against":{},"config":null,"limt":1"#;
        let expected = ["/subscriptionId", "/stage", "/limit", "/seed", "/against", "/limt"];
        let of_body = places(&format!(r#"{{"topic":"orders",{shared},"at":"now"}}"#), Wanted::of_body);
        assert_eq!(of_body, [&expected[..], &["/at", "/config"]].concat());
        let of_lines = places(&format!(r#"{{"topic":"orders",{shared},"inputs":"stored"}}"#), Wanted::of_lines);
        assert_eq!(of_lines, [&expected[..], &["/inputs", "/config"]].concat());
        assert_eq!(places(r#"{"topic":"orders","topic":"orders"}"#, Wanted::of_lines), ["/topic"], "it is there twice");
    }
}
