//! A subscription as clients write and read it. Invariant: settings that come out of here are valid under the
//! configuration; a secret header's value goes in and never comes out. Never does I/O.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use payload_query::Query as PayloadQuery;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::credentials::{self, AuthorizationBody, AuthorizationView, ClientCertificateBody, ClientCertificateView};
use crate::api::extract::{Object, not_null, nullable, pointer_of};
use crate::api::messages::{ACK_TIMEOUT_MAX, offset};
use crate::api::problem::{Faults, Problem};
use crate::api::wire::{Iso, Time};
use crate::catalog::model::{
    AttemptBodies, Backoff, Filter, PushFormat, Secret, Subscription, SubscriptionId, SubscriptionKind,
    SubscriptionSettings, Topic, TopicKind, each_name_once,
};
use crate::clock::Timestamp;
use crate::config;
use crate::delivery::push::signature::{Scheme, public_key};
use crate::delivery::push::{EndpointStatus, validate_endpoint, validate_headers};
use crate::message::{HEADERS_BYTES_MAX, Offset, Partition, TopicName, has_control};
use crate::store::SeekTo;

/// Bytes of a group's name.
const GROUP_BYTES_MAX: usize = 255;
/// From API.md.
const RETRIES_MAX: u32 = 100;
/// A webhook's lease must end while somebody still remembers the request.
const BACKOFF_MAX: Duration = Duration::from_secs(7 * 86_400);
const BACKOFF_MULTIPLIER_MAX: f64 = 100.0;
/// Headers that a filter compares at most.
const FILTER_HEADERS_MAX: usize = 64;
/// Stands for a header's value where it is shown; written back, it keeps the value.
pub(super) const REDACTED: &str = "[redacted]";

/// A subscription to be made, or a change of one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SubscriptionBody {
    /// On which topic. Cannot change.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(required, nullable = false)]
    topic_name: Option<String>,
    /// The group's name, unique on the topic. Cannot change.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(required, nullable = false)]
    consumer_group: Option<String>,
    /// Cannot change.
    #[serde(rename = "type", default, deserialize_with = "not_null")]
    #[schema(required, nullable = false)]
    kind: Option<SubscriptionKind>,
    /// Where to send (Push): an absolute URL.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    consumer_endpoint: Option<String>,
    /// Only messages that match are delivered.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Filter>)]
    filter: Option<Option<Object<Filter>>>,
    /// Deliveries after the first one fails: 0 to 100 (3).
    #[serde(default, deserialize_with = "not_null")]
    #[schema(minimum = 0, maximum = 100, nullable = false)]
    max_retries: Option<u32>,
    /// How long a lease lasts, and how long an endpoint may take (`PT30S`).
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    ack_timeout: Option<Iso>,
    /// How long to wait before the next attempt.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = BackoffBody)]
    backoff: Option<Object<BackoffBody>>,
    /// Where it begins, on a PubSub topic: `latest` (the default), `earliest`, or an RFC 3339 time. Only at creation.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    start_from: Option<String>,
    /// In order per partition key.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    ordered: Option<bool>,
    /// Leases at once at most (Push).
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    max_in_flight: Option<Option<u32>>,
    /// Deliveries per second at most (Push).
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    rate_limit: Option<Option<u32>>,
    /// How a webhook's body looks (`envelope`).
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    format: Option<PushFormat>,
    /// How webhooks are signed (`hmac`). Only at creation; later it changes with the secret, by `secret/rotate`.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    signature: Option<Scheme>,
    /// Extra headers (Push); their values are never shown again.
    #[serde(default, deserialize_with = "headers_once")]
    #[schema(nullable = false)]
    headers: Option<BTreeMap<String, String>>,
    /// What proves to the endpoint who sends, beyond the signature (Push).
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<AuthorizationBody>)]
    authorization: Option<Option<Object<AuthorizationBody>>>,
    /// What is shown to an endpoint by https that asks for a certificate (Push).
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<ClientCertificateBody>)]
    client_certificate: Option<Option<Object<ClientCertificateBody>>>,
    /// Who vouches for the endpoint's own certificate in place of the authorities that the system trusts (Push): PEM.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    ca_certificate: Option<Option<String>>,
    /// Whether the beginnings of the endpoint's answers are kept among the attempts (Push, `keep`).
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    attempt_bodies: Option<AttemptBodies>,
}

fn headers_once<'de, D: Deserializer<'de>>(source: D) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    each_name_once(source).map(Some)
}

/// How the wait between attempts grows.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BackoffBody {
    /// Before the second attempt (`PT2S`).
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    initial: Option<Iso>,
    /// Times this for each further one (2).
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100, nullable = false)]
    multiplier: Option<f64>,
    /// At most (`PT1H`).
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    max: Option<Iso>,
    /// Share by which it varies (0.2).
    #[serde(default, deserialize_with = "not_null", skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1, nullable = false)]
    jitter: Option<f64>,
}

/// A checked request for a subscription.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) topic: TopicName,
    pub(super) consumer_group: Arc<str>,
    pub(super) settings: SubscriptionSettings,
    pub(super) signature: Scheme,
    start: Option<SeekTo>,
}

impl Wanted {
    /// Where the cursor begins.
    ///
    /// # Errors
    /// A Queue's one cursor is there already.
    pub(super) fn start(&self, topic: &Topic) -> Result<SeekTo, Problem> {
        match (self.start, topic.settings.kind) {
            (Some(_), TopicKind::Queue) => {
                Err(Problem::invalid_at("/startFrom", "a Queue has one cursor already; move it by `seek`"))
            }
            (start, _) => Ok(start.unwrap_or(SeekTo::Latest)),
        }
    }
}

impl SubscriptionBody {
    pub(super) fn create(self, push: &config::Push, now: Timestamp, faults: &mut Faults) -> Option<Wanted> {
        let topic = faults.require("/topicName", self.topic_name.clone());
        let topic = topic.and_then(|name| faults.keep("/topicName", name.parse::<TopicName>()));
        let group = faults.require("/consumerGroup", self.consumer_group.clone());
        let group = group.and_then(|group| faults.keep("/consumerGroup", group_name(group)));
        let kind = faults.require("/type", self.kind);
        let start = self.start_from.as_deref().map(start_from).transpose();
        let start = faults.keep("/startFrom", start);
        if kind == Some(SubscriptionKind::Pull) && self.signature.is_some() {
            faults.push("/signature", "is for type Push alone");
        }
        let signature = self.signature.unwrap_or_default();
        let settings = self.over(SubscriptionSettings::new(kind?), (push, now), faults);
        Some(Wanted { topic: topic?, consumer_group: group?, settings, signature, start: start? })
    }

    /// What is left out stays.
    pub(super) fn update(
        self,
        before: &Subscription,
        by: (&config::Push, Timestamp),
        faults: &mut Faults,
    ) -> Option<SubscriptionSettings> {
        if self.topic_name.as_deref().is_some_and(|name| name != before.topic_name.as_str()) {
            faults.push("/topicName", "cannot change; make a new subscription");
        }
        if self.consumer_group.as_deref().is_some_and(|group| group != &*before.consumer_group) {
            faults.push("/consumerGroup", "cannot change; make a new subscription");
        }
        if self.signature.is_some_and(|wanted| before.secret.as_ref().map(Scheme::of) != Some(wanted)) {
            faults.push("/signature", "changes with the secret alone: POST …/secret/rotate takes it");
        }
        if self.start_from.is_some() {
            faults.push("/startFrom", "counts at creation only; move the cursor by `seek`");
        }
        Some(self.over(before.settings.clone(), by, faults))
    }

    fn over(
        self,
        base: SubscriptionSettings,
        (push, now): (&config::Push, Timestamp),
        faults: &mut Faults,
    ) -> SubscriptionSettings {
        let moves = base.endpoint.is_some()
            && self.consumer_endpoint.as_deref().is_some_and(|to| !same_origin(base.endpoint.as_deref(), to));
        if moves {
            let kept = [
                ("/authorization", base.authorization.is_some() && self.authorization.is_none()),
                ("/clientCertificate", base.client_certificate.is_some() && self.client_certificate.is_none()),
                ("/headers", !base.headers.is_empty() && self.headers.is_none()),
            ];
            for (pointer, _) in kept.into_iter().filter(|(_, kept)| *kept) {
                faults.push(pointer, MOVED);
            }
        }
        // What stands for a stored value does so at the endpoint that it was given for.
        let none = BTreeMap::new();
        let known_headers = if moves { &none } else { &base.headers };
        let token_moves = moves
            && self.authorization.as_ref().is_some_and(|given| given.as_ref().is_some_and(|Object(it)| it.is_kept()));
        if token_moves {
            faults.push("/authorization/token", MOVED);
        }
        let given = credentials::Given {
            authorization: self.authorization,
            client_certificate: self.client_certificate,
            ca_certificate: self.ca_certificate,
        };
        let headers = match self.headers {
            Some(headers) => merged(headers, known_headers, faults),
            None => base.headers,
        };
        let mut settings = SubscriptionSettings {
            kind: self.kind.unwrap_or(base.kind),
            endpoint: self.consumer_endpoint.or(base.endpoint),
            filter: self.filter.map_or(base.filter, |filter| filter.map(|Object(filter)| filter)),
            max_retries: self.max_retries.unwrap_or(base.max_retries),
            ack_timeout: self.ack_timeout.map_or(base.ack_timeout, |Iso(timeout)| timeout),
            backoff: backoff(self.backoff, base.backoff),
            ordered: self.ordered.unwrap_or(base.ordered),
            max_in_flight: self.max_in_flight.unwrap_or(base.max_in_flight),
            rate_limit: self.rate_limit.unwrap_or(base.rate_limit),
            format: self.format.unwrap_or(base.format),
            headers,
            authorization: base.authorization,
            client_certificate: base.client_certificate,
            ca_certificate: base.ca_certificate,
            attempt_bodies: self.attempt_bodies.unwrap_or(base.attempt_bodies),
        };
        given.over(&mut settings, now, faults);
        check(&settings, faults);
        check_endpoint(&settings, push, faults);
        settings
    }
}

const MOVED: &str =
    "is secret, and was given for another endpoint: give it again with the new `consumerEndpoint`, or `null`";

/// Whether two URLs are of one scheme, host and port.
fn same_origin(before: Option<&str>, after: &str) -> bool {
    let origin = |url: &str| url::Url::parse(url).ok().map(|url| url.origin());
    before.is_some_and(|before| origin(before).is_some() && origin(before) == origin(after))
}

/// The values of headers as written; what stands for a value that is stored keeps it.
fn merged(
    headers: BTreeMap<String, String>,
    before: &BTreeMap<String, Secret>,
    faults: &mut Faults,
) -> BTreeMap<String, Secret> {
    let mut merged: BTreeMap<String, Secret> = BTreeMap::new();
    for (name, value) in headers {
        let named = |(known, _): &(&String, &Secret)| known.eq_ignore_ascii_case(&name);
        if merged.iter().any(|known| named(&known)) {
            faults.push(pointer_of(["headers", &name]), "is there twice: case does not tell headers apart");
        }
        let value = match before.iter().find(named) {
            Some((_, kept)) if value == REDACTED => kept.clone(),
            None if value == REDACTED => {
                faults.push(pointer_of(["headers", &name]), "has no value yet that this could stand for; give one");
                continue;
            }
            _ => Secret::new(value),
        };
        merged.insert(name, value);
    }
    merged
}

fn backoff(given: Option<Object<BackoffBody>>, base: Backoff) -> Backoff {
    let Object(given) = given.unwrap_or_default();
    Backoff {
        initial: given.initial.map_or(base.initial, |Iso(initial)| initial),
        multiplier: given.multiplier.unwrap_or(base.multiplier),
        max: given.max.map_or(base.max, |Iso(max)| max),
        jitter: given.jitter.unwrap_or(base.jitter),
    }
}

fn check(settings: &SubscriptionSettings, faults: &mut Faults) {
    if settings.max_retries > RETRIES_MAX {
        faults.push("/maxRetries", format!("is from 0 to {RETRIES_MAX}"));
    }
    if settings.ack_timeout < Duration::from_secs(1) || settings.ack_timeout > ACK_TIMEOUT_MAX {
        faults.push("/ackTimeout", "is from PT1S to PT12H");
    }
    let backoff = &settings.backoff;
    if !(1.0..=BACKOFF_MULTIPLIER_MAX).contains(&backoff.multiplier) {
        faults.push("/backoff/multiplier", format!("is from 1 to {BACKOFF_MULTIPLIER_MAX}"));
    }
    if !(0.0..=1.0).contains(&backoff.jitter) {
        faults.push("/backoff/jitter", "is from 0 to 1");
    }
    if backoff.max > BACKOFF_MAX || backoff.initial > backoff.max {
        faults.push("/backoff/max", "is at least `initial` and at most P7D");
    }
    for (pointer, bound) in [("/maxInFlight", settings.max_in_flight), ("/rateLimit", settings.rate_limit)] {
        if bound == Some(0) {
            faults.push(pointer, "is at least 1; to stop deliveries, pause the subscription");
        }
    }
    if let Some(filter) = &settings.filter {
        if filter.header_matches.len() > FILTER_HEADERS_MAX {
            faults.push("/filter/headerMatches", format!("are at most {FILTER_HEADERS_MAX}"));
        }
        check_header_matches(&filter.header_matches, faults);
        let query = filter.payload_query.as_deref().map(PayloadQuery::parse).transpose();
        faults.keep("/filter/payloadQuery", query);
    }
}

/// What no message's headers can be would match none, ever.
fn check_header_matches(wanted: &BTreeMap<String, String>, faults: &mut Faults) {
    let bytes: usize = wanted.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > HEADERS_BYTES_MAX {
        let message =
            format!("have at most {HEADERS_BYTES_MAX} bytes in all, as a message's headers; these have {bytes}");
        faults.push("/filter/headerMatches", message);
    }
    if let Some((name, _)) = wanted.iter().find(|(name, value)| has_control(name) || has_control(value)) {
        let message = "has a control character, which no message's header has; only tabs are taken";
        faults.push(pointer_of(["filter", "headerMatches", name]), message);
    }
}

fn check_endpoint(settings: &SubscriptionSettings, push: &config::Push, faults: &mut Faults) {
    match (settings.kind, settings.endpoint.as_deref()) {
        (SubscriptionKind::Push, None) => faults.push("/consumerEndpoint", "is required for type Push"),
        (SubscriptionKind::Push, Some(url)) => {
            faults.keep("/consumerEndpoint", validate_endpoint(url, push).map(drop));
            faults.keep("/headers", validate_headers(&settings.headers));
            credentials::check(settings, faults);
        }
        (SubscriptionKind::Pull, endpoint) => {
            let push_only = [
                ("/consumerEndpoint", endpoint.is_some()),
                ("/headers", !settings.headers.is_empty()),
                ("/maxInFlight", settings.max_in_flight.is_some()),
                ("/rateLimit", settings.rate_limit.is_some()),
                ("/format", settings.format != PushFormat::Envelope),
                ("/authorization", settings.authorization.is_some()),
                ("/clientCertificate", settings.client_certificate.is_some()),
                ("/caCertificate", settings.ca_certificate.is_some()),
                ("/attemptBodies", settings.attempt_bodies != AttemptBodies::Keep),
            ];
            for (pointer, _) in push_only.into_iter().filter(|(_, given)| *given) {
                faults.push(pointer, "is for type Push alone");
            }
        }
    }
}

fn group_name(text: String) -> Result<Arc<str>, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':' | b'/' | b'@');
    if text.is_empty() || text.len() > GROUP_BYTES_MAX || !text.bytes().all(allowed) {
        return Err(format!("is 1 to {GROUP_BYTES_MAX} letters, digits, or any of . _ - : / @"));
    }
    Ok(text.into())
}

fn start_from(text: &str) -> Result<SeekTo, String> {
    match text {
        "earliest" => Ok(SeekTo::Earliest),
        "latest" => Ok(SeekTo::Latest),
        other => Timestamp::parse_rfc3339(other)
            .map(SeekTo::Time)
            .map_err(|_| format!("'{other}' is neither earliest, latest, nor an RFC 3339 time")),
    }
}

/// Where a seek goes: a word, a time, or an offset as number or text.
pub(super) fn seek_to(to: &serde_json::Value, partition: Option<Partition>, partitions: u16) -> Result<SeekTo, String> {
    let text = match to {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Number(number) => number.to_string(),
        _ => return Err("is earliest, latest, an RFC 3339 time, or an offset".to_owned()),
    };
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let place: Offset = offset(&text)?;
        return match partition.or((partitions == 1).then_some(0)) {
            Some(partition) if partition < partitions => Ok(SeekTo::Offset(partition, place)),
            Some(_) => Err(format!("the topic has partitions 0 to {}", partitions - 1)),
            None => Err("an offset belongs to a partition: give `partition` too".to_owned()),
        };
    }
    if partition.is_some() {
        return Err("only an offset belongs to a partition".to_owned());
    }
    start_from(&text)
}

/// A subscription.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SubscriptionView {
    #[schema(value_type = String, format = Uuid)]
    subscription_id: SubscriptionId,
    #[schema(value_type = String)]
    topic_name: TopicName,
    #[schema(value_type = String)]
    consumer_group: Arc<str>,
    #[serde(rename = "type")]
    kind: SubscriptionKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumer_endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<Filter>,
    max_retries: u32,
    ack_timeout: Iso,
    backoff: BackoffBody,
    ordered: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_in_flight: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<PushFormat>,
    /// Names of the extra headers; values are `[redacted]`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, &'static str>,
    /// What goes out as `Authorization`, without the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    authorization: Option<AuthorizationView>,
    /// The certificate that is shown to the endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_certificate: Option<ClientCertificateView>,
    /// Who vouches for the endpoint, where it is not who the system trusts: PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_certificate: Option<String>,
    /// Whether the beginnings of answers are kept among the attempts (Push).
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt_bodies: Option<AttemptBodies>,
    is_active: bool,
    /// Why and since when it does not deliver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pause: Option<PauseView>,
    /// Its endpoint, as this broker sees it (Push).
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<EndpointStatus>,
    /// How webhooks are signed (Push).
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<Scheme>,
    /// What receivers check `ed25519` signatures with: `whpk_…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    /// The signing secret of `hmac`, `whsec_…`: at creation and rotation only.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    /// Until when the secret before the last rotation signs too.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_secret_until: Option<Time>,
    created_by: String,
    created_at: Time,
    updated_at: Time,
}

/// Why a subscription does not deliver.
#[derive(Debug, Serialize, ToSchema)]
struct PauseView {
    reason: String,
    since: Time,
}

impl SubscriptionView {
    pub(super) fn of(subscription: &Subscription, endpoint: Option<EndpointStatus>) -> SubscriptionView {
        let settings = &subscription.settings;
        let pause = subscription.pause.as_ref();
        SubscriptionView {
            subscription_id: subscription.id,
            topic_name: subscription.topic_name.clone(),
            consumer_group: Arc::clone(&subscription.consumer_group),
            kind: settings.kind,
            consumer_endpoint: settings.endpoint.clone(),
            filter: settings.filter.clone(),
            max_retries: settings.max_retries,
            ack_timeout: Iso(settings.ack_timeout),
            backoff: BackoffBody {
                initial: Some(Iso(settings.backoff.initial)),
                multiplier: Some(settings.backoff.multiplier),
                max: Some(Iso(settings.backoff.max)),
                jitter: Some(settings.backoff.jitter),
            },
            ordered: settings.ordered,
            max_in_flight: settings.max_in_flight,
            rate_limit: settings.rate_limit,
            format: (settings.kind == SubscriptionKind::Push).then_some(settings.format),
            headers: settings.headers.keys().map(|name| (name.clone(), REDACTED)).collect(),
            authorization: settings.authorization.as_ref().map(AuthorizationView::of),
            client_certificate: settings.client_certificate.as_ref().and_then(ClientCertificateView::of),
            ca_certificate: settings.ca_certificate.clone(),
            attempt_bodies: (settings.kind == SubscriptionKind::Push).then_some(settings.attempt_bodies),
            is_active: pause.is_none(),
            pause: pause.map(|pause| PauseView { reason: pause.reason.clone(), since: Time(pause.since) }),
            endpoint,
            signature: subscription.secret.as_ref().map(Scheme::of),
            public_key: subscription.secret.as_ref().and_then(public_key),
            secret: None,
            previous_secret_until: subscription.previous_secret.as_ref().map(|(_, until)| Time(*until)),
            created_by: subscription.created_by.clone(),
            created_at: Time(subscription.created_at),
            updated_at: Time(subscription.updated_at),
        }
    }

    /// As it is shown the one time that its secret may be. A private key never is: nobody but this broker needs it.
    pub(super) fn with_secret(subscription: &Subscription) -> SubscriptionView {
        let shared = subscription.secret.as_ref().filter(|secret| Scheme::of(secret) == Scheme::Hmac);
        let secret = shared.map(|secret| secret.expose().to_owned());
        SubscriptionView { secret, ..SubscriptionView::of(subscription, None) }
    }
}
