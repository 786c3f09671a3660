//! What is known of one endpoint: how much it takes, whether it works, what it answered last. Invariant: a send happens
//! under a [`Permit`], and each permit counts exactly once, whether its send ends, fails, or never takes place. Never
//! sends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::breaker::{Breaker, BreakerState, Gate};
use super::figures::{EndpointMetrics, History};
use super::limits::{Concurrency, Pacer};
use super::metrics::PushMetrics;
use super::sender::{Outcome, Sent};
use crate::catalog::model::{AttemptBodies, Authorization, ClientCertificate, Subscription, SubscriptionSettings};
use crate::clock::{Clock, Timestamp};
use crate::entropy::Entropy;
use crate::events::{Disabled, Events};
use crate::message::MessageId;

/// Attempts that are remembered per subscription: enough to see a pattern, at most some 110 KB.
pub const ATTEMPTS_MAX: usize = 100;
/// How much of a successful answer is remembered; failed ones are kept whole, as people read those.
const SUCCESS_BODY_CHARS: usize = 128;
/// Stands for an answer's body where none is remembered.
const REDACTED: &str = "[redacted]";
/// How long one `Retry-After` holds back the other messages of an endpoint at most. The message itself waits for as long
/// as it was asked to.
const HOLD_MAX: Duration = Duration::from_secs(300);

/// One delivery attempt, as people see it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptRecord {
    /// Which message.
    #[schema(value_type = String, format = Uuid)]
    pub message_id: MessageId,
    /// 1 for the first.
    pub attempt: u32,
    /// When it began.
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// How long it took.
    pub latency_ms: u64,
    /// `delivered`, `retry` or `gone`.
    pub outcome: &'static str,
    /// The endpoint's status, if it answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What went wrong, in a word and a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How the answer's body begins; `[redacted]` where the subscription says so.
    pub body_start: String,
}

/// How an answer's body begins, as far as the subscription lets it be seen.
#[must_use]
pub fn visible(body_start: &str, bodies: AttemptBodies) -> &str {
    match bodies {
        AttemptBodies::Redact if !body_start.is_empty() => REDACTED,
        _ => body_start,
    }
}

impl AttemptRecord {
    /// The record of a send.
    #[must_use]
    pub fn of(message_id: MessageId, attempt: u32, sent: &Sent, bodies: AttemptBodies) -> AttemptRecord {
        let (outcome, error) = match &sent.outcome {
            Outcome::Delivered { .. } => ("delivered", None),
            Outcome::Gone => ("gone", Some("HTTP_410: the endpoint wants no more".to_owned())),
            Outcome::Retry { reason, detail, .. } => ("retry", Some(format!("{reason}: {detail}"))),
        };
        let kept = if error.is_none() { SUCCESS_BODY_CHARS } else { usize::MAX };
        AttemptRecord {
            message_id,
            attempt,
            at: sent.at,
            latency_ms: u64::try_from(sent.latency.as_millis()).unwrap_or(u64::MAX),
            outcome,
            status: sent.status,
            error,
            body_start: visible(&sent.body_start, bodies).chars().take(kept).collect(),
        }
    }
}

/// An endpoint, as people see it. Of this broker alone, since it started.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Whether messages are sent, wait, or one is tried.
    pub breaker: BreakerState,
    /// Since when the breaker is in that state; none if it has never changed.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_rfc3339")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub breaker_since: Option<Timestamp>,
    /// When the next probe may go out, while the breaker is open.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_rfc3339")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_probe_at: Option<Timestamp>,
    /// When nothing will be sent before: the breaker is open, or the endpoint asked to wait.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_rfc3339")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub waits_until: Option<Timestamp>,
    /// How many may be under way now: adapts between 1 and `concurrencyMax`.
    pub concurrency: usize,
    /// How many may ever be: `push.concurrency_max`, or `maxInFlight`.
    pub concurrency_max: u32,
    /// How many are.
    pub in_flight: usize,
    /// It waits as all endpoints together have as many under way as may be (`push.requests_max`).
    pub waits_for_room: bool,
    /// Failures since the last success.
    pub consecutive_failures: u32,
    /// When a delivery last succeeded.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_rfc3339")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_success_at: Option<Timestamp>,
    /// When one last failed.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_rfc3339")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_failure_at: Option<Timestamp>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// Deliveries that succeeded.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed: u64,
}

pub(super) fn rfc3339<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&at.rfc3339())
}

fn optional_rfc3339<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    at.map(Timestamp::rfc3339).serialize(serializer)
}

/// Why a send cannot begin now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// As many are under way as may be.
    Slot,
    /// The rate limit says so.
    Pace(Timestamp),
    /// The endpoint asked for it, or its breaker is open. What is leased is better given back.
    Blocked(Timestamp),
    /// A probe is under way. What is leased is better given back.
    Probing,
}

/// One endpoint; outlives the workers that send to it.
pub struct Endpoint {
    state: Mutex<State>,
    concurrency_max: u32,
    clock: Clock,
    entropy: Entropy,
    metrics: PushMetrics,
    /// None: nobody is told.
    news: Option<News>,
}

/// Where it is told that an endpoint is sent nothing any more, and that it works again.
pub struct News {
    /// There.
    pub events: Events,
    /// Whose endpoint it is.
    pub subscription: Arc<Subscription>,
}

/// What makes an endpoint another one: where it is, and how one gets in.
#[derive(Debug, Default, PartialEq, Eq)]
struct Reach {
    url: Option<String>,
    authorization: Option<Authorization>,
    client_certificate: Option<ClientCertificate>,
    ca_certificate: Option<String>,
}

impl Reach {
    fn of(settings: &SubscriptionSettings) -> Reach {
        Reach {
            url: settings.endpoint.clone(),
            authorization: settings.authorization.clone(),
            client_certificate: settings.client_certificate.clone(),
            ca_certificate: settings.ca_certificate.clone(),
        }
    }
}

struct State {
    reach: Reach,
    /// Rises with the reach: what is under way to the old one counts for nothing any more.
    generation: u64,
    rate: Option<u32>,
    concurrency: Concurrency,
    concurrency_max: u32,
    pacer: Option<Pacer>,
    breaker: Breaker,
    breaker_since: Option<Timestamp>,
    waits_for_room: bool,
    held_until: Timestamp,
    in_flight: usize,
    next_ticket: u64,
    delivered: u64,
    failed: u64,
    last_success_at: Option<Timestamp>,
    last_failure: Option<(Timestamp, String)>,
    attempts: VecDeque<AttemptRecord>,
    bodies: AttemptBodies,
    /// It was told that nothing is sent.
    disabled: bool,
    /// And this, because it answered 410.
    gone: bool,
    history: History,
}

impl Endpoint {
    /// Nothing is known of it yet.
    #[must_use]
    pub fn new(
        concurrency_max: u32,
        (clock, entropy): (Clock, Entropy),
        metrics: PushMetrics,
        news: Option<News>,
    ) -> Arc<Endpoint> {
        let state = Mutex::new(State {
            reach: Reach::default(),
            generation: 0,
            rate: None,
            concurrency: Concurrency::new(concurrency_max),
            concurrency_max,
            pacer: None,
            breaker: Breaker::default(),
            breaker_since: None,
            waits_for_room: false,
            held_until: Timestamp(i64::MIN),
            in_flight: 0,
            next_ticket: 0,
            delivered: 0,
            failed: 0,
            last_success_at: None,
            last_failure: None,
            attempts: VecDeque::new(),
            bodies: AttemptBodies::Keep,
            disabled: false,
            gone: false,
            history: History::new(clock.now()),
        });
        Arc::new(Endpoint { state, concurrency_max, clock, entropy, metrics, news })
    }

    /// Takes over its subscription's settings. Another URL is another endpoint, and so is one that is come to with other
    /// credentials: what was learnt of the old one is forgotten, but for the attempts.
    pub fn configure(&self, settings: &SubscriptionSettings) {
        let max = settings.max_in_flight.unwrap_or(u32::MAX).min(self.concurrency_max);
        let mut state = self.state.lock();
        let reach = Reach::of(settings);
        if state.reach != reach {
            state.reach = reach;
            state.generation += 1;
            state.in_flight = 0;
            state.concurrency = Concurrency::new(max);
            state.breaker = Breaker::default();
            state.breaker_since = None;
            state.held_until = Timestamp(i64::MIN);
        }
        state.bodies = settings.attempt_bodies;
        if state.bodies == AttemptBodies::Redact {
            for record in &mut state.attempts {
                record.body_start = visible(&record.body_start, AttemptBodies::Redact).to_owned();
            }
        }
        state.concurrency.set_max(max);
        state.concurrency_max = max.max(1);
        if state.rate != settings.rate_limit {
            state.rate = settings.rate_limit;
            state.pacer = settings.rate_limit.map(Pacer::new);
        }
    }

    /// Why a send cannot begin now, if it cannot.
    #[must_use]
    pub fn obstacle(&self) -> Option<Wait> {
        self.state.lock().obstacle(self.clock.now())
    }

    /// Whether the next send is a probe.
    #[must_use]
    pub fn probe_is_due(&self) -> bool {
        self.state.lock().breaker.gate(self.clock.now()) == Gate::Probe
    }

    /// How many may be under way.
    #[must_use]
    pub fn concurrency(&self) -> usize {
        self.state.lock().concurrency.limit()
    }

    /// A send begins.
    ///
    /// # Errors
    /// Why it may not.
    pub fn begin(self: &Arc<Endpoint>) -> Result<Permit, Wait> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        if let Some(wait) = state.obstacle(now) {
            return Err(wait);
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.in_flight += 1;
        if let Some(pacer) = &mut state.pacer {
            pacer.take(now);
        }
        self.watched(&mut state, |breaker| breaker.begin(ticket));
        self.metrics.begun();
        Ok(Permit { endpoint: Arc::clone(self), ticket, generation: state.generation, ended: false })
    }

    /// Whether it waits for the room that all endpoints share.
    pub fn waits_for_room(&self, waits: bool) {
        self.state.lock().waits_for_room = waits;
    }

    /// Says why nothing can be sent at all.
    pub fn broken(&self, why: String) {
        self.state.lock().last_failure = Some((self.clock.now(), why));
    }

    /// Nothing is sent for this long.
    pub fn hold(&self, how_long: Duration) {
        let until = self.clock.now().plus(how_long);
        let mut state = self.state.lock();
        state.held_until = state.held_until.max(until);
    }

    /// What people are told.
    #[must_use]
    pub fn status(&self) -> EndpointStatus {
        let (now, state) = (self.clock.now(), self.state.lock());
        let held = Some(state.held_until).filter(|until| *until > now);
        EndpointStatus {
            breaker: state.breaker.state(),
            breaker_since: state.breaker_since,
            next_probe_at: state.breaker.opens_until(),
            waits_until: held.max(state.breaker.opens_until()),
            concurrency: state.concurrency.limit(),
            concurrency_max: state.concurrency_max,
            in_flight: state.in_flight,
            waits_for_room: state.waits_for_room,
            consecutive_failures: state.breaker.failures(),
            last_success_at: state.last_success_at,
            last_failure_at: state.last_failure.as_ref().map(|(at, _)| *at),
            last_failure: state.last_failure.as_ref().map(|(_, why)| why.clone()),
            delivered: state.delivered,
            failed: state.failed,
        }
    }

    /// The latest attempts, newest first.
    #[must_use]
    pub fn attempts(&self) -> Vec<AttemptRecord> {
        self.state.lock().attempts.iter().rev().cloned().collect()
    }

    /// Forgets the attempts; says how many there were.
    pub fn clear_attempts(&self) -> usize {
        std::mem::take(&mut self.state.lock().attempts).len()
    }

    /// What it did in the `window` before now.
    #[must_use]
    pub fn metrics(&self, window: Duration) -> EndpointMetrics {
        self.state.lock().history.metrics(self.clock.now(), window)
    }

    fn watched(&self, state: &mut State, change: impl FnOnce(&mut Breaker)) {
        let before = state.breaker.state();
        change(&mut state.breaker);
        let after = state.breaker.state();
        if before != after {
            state.breaker_since = Some(self.clock.now());
            self.metrics.breaker(after);
        }
        if before == BreakerState::Closed && after == BreakerState::Open {
            self.disabled(state, Disabled::BreakerOpen);
        }
    }

    fn disabled(&self, state: &mut State, why: Disabled) {
        state.disabled = true;
        if let Some(news) = &self.news {
            let detail = state.last_failure.as_ref().map_or("", |(_, why)| why);
            news.events.endpoint_disabled(&news.subscription, why, detail);
        }
    }

    fn delivered(&self, state: &mut State) {
        state.gone = false;
        if std::mem::take(&mut state.disabled)
            && let Some(news) = &self.news
        {
            news.events.endpoint_recovered(&news.subscription);
        }
    }
}

impl State {
    fn obstacle(&self, now: Timestamp) -> Option<Wait> {
        if now < self.held_until {
            return Some(Wait::Blocked(self.held_until));
        }
        match self.breaker.gate(now) {
            Gate::Until(until) => return Some(Wait::Blocked(until)),
            Gate::AfterProbe => return Some(Wait::Probing),
            // What was under way when it opened does not keep the probe waiting.
            Gate::Probe => return None,
            Gate::Pass => {}
        }
        if self.in_flight >= self.concurrency.limit() {
            return Some(Wait::Slot);
        }
        let ready = self.pacer.as_ref().map_or(now, |pacer| pacer.ready_at(now));
        (ready > now).then_some(Wait::Pace(ready))
    }
}

/// The right to send once.
#[must_use = "a permit that is dropped counts as a send that did not take place"]
pub struct Permit {
    endpoint: Arc<Endpoint>,
    ticket: u64,
    generation: u64,
    ended: bool,
}

impl Permit {
    /// The send took place.
    pub fn end(mut self, message: MessageId, attempt: u32, sent: &Sent) {
        self.ended = true;
        let endpoint = &self.endpoint;
        let now = endpoint.clock.now();
        let mut state = endpoint.state.lock();
        let record = AttemptRecord::of(message, attempt, sent, state.bodies);
        state.history.count(now, attempt, sent);
        let delivered = matches!(sent.outcome, Outcome::Delivered { .. });
        if delivered {
            state.delivered += 1;
            state.last_success_at = Some(now);
        } else {
            state.failed += 1;
            state.last_failure = record.error.clone().map(|why| (now, why));
        }
        if state.attempts.len() == ATTEMPTS_MAX {
            state.attempts.pop_front();
        }
        state.attempts.push_back(record);
        if self.generation == state.generation {
            self.learn(&mut state, sent, delivered);
        }
        drop(state);
        endpoint.metrics.ended();
        endpoint.metrics.sent(sent);
    }

    /// What the endpoint's answer says of how it is to be treated.
    fn learn(&self, state: &mut State, sent: &Sent, delivered: bool) {
        let (endpoint, now) = (&self.endpoint, self.endpoint.clock.now());
        let (in_flight, next) = (state.in_flight, state.next_ticket);
        state.in_flight -= 1;
        if delivered {
            state.concurrency.succeeded(in_flight);
            endpoint.watched(state, Breaker::succeeded);
            endpoint.delivered(state);
        } else {
            state.concurrency.failed(self.ticket, next);
            let fraction = endpoint.entropy.fraction();
            endpoint.watched(state, |breaker| breaker.failed(self.ticket, now, fraction));
        }
        if sent.outcome == Outcome::Gone && !std::mem::replace(&mut state.gone, true) {
            endpoint.disabled(state, Disabled::Gone);
        }
        if let Outcome::Retry { retry_after: Some(wait), .. } = &sent.outcome {
            state.held_until = state.held_until.max(now.plus((*wait).min(HOLD_MAX)));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.endpoint.metrics.ended();
        let mut state = self.endpoint.state.lock();
        if self.generation == state.generation {
            state.in_flight -= 1;
            let (ticket, now) = (self.ticket, self.endpoint.clock.now());
            self.endpoint.watched(&mut state, |breaker| breaker.abandoned(ticket, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::super::breaker::FAILURES_TO_OPEN;
    use super::super::testing::{lease, subscription};
    use super::*;

    fn endpoint(clock: &Clock) -> Arc<Endpoint> {
        let metrics = PushMetrics::new(&Registry::new()).unwrap();
        let endpoint = Endpoint::new(32, (clock.clone(), Entropy::seeded(1)), metrics, None);
        endpoint.configure(&subscription("http://127.0.0.1/").settings);
        endpoint
    }

    fn sent(outcome: Outcome) -> Sent {
        let status = if let Outcome::Delivered { status } = outcome { Some(status) } else { None };
        let latency = Duration::from_millis(5);
        Sent { outcome, at: Timestamp(0), latency, status, body_start: "x".repeat(500), body_bytes: 10 }
    }

    fn failed(retry_after: Option<Duration>) -> Sent {
        sent(Outcome::Retry { status: None, reason: "TIMEOUT".into(), detail: "no answer".into(), retry_after })
    }

    fn end(permit: Permit, sent: &Sent) {
        permit.end(lease(1, None).message.id, 1, sent);
    }

    fn open(endpoint: &Arc<Endpoint>) {
        for _ in 0..FAILURES_TO_OPEN {
            end(endpoint.begin().unwrap(), &failed(None));
        }
    }

    #[test]
    fn it_grows_with_success_and_halves_with_failure() {
        let endpoint = endpoint(&Clock::fixed(Timestamp(0)));
        let permits: Vec<Permit> = (0..4).map(|_| endpoint.begin().unwrap()).collect();
        assert_eq!(endpoint.begin().err(), Some(Wait::Slot));
        permits.into_iter().for_each(|permit| end(permit, &sent(Outcome::Delivered { status: 200 })));
        let grown = endpoint.concurrency();
        assert!(grown > 4, "{grown}");
        end(endpoint.begin().unwrap(), &failed(None));
        assert_eq!(endpoint.concurrency(), grown / 2);
        assert_eq!((endpoint.status().delivered, endpoint.status().failed, endpoint.status().in_flight), (4, 1, 0));
    }

    #[test]
    fn an_open_breaker_blocks_until_one_probe_succeeds() {
        let clock = Clock::fixed(Timestamp(0));
        let endpoint = endpoint(&clock);
        open(&endpoint);
        assert!(matches!(endpoint.obstacle(), Some(Wait::Blocked(_))));
        assert_eq!(endpoint.status().breaker, BreakerState::Open);
        clock.advance(Duration::from_secs(6));
        assert!(endpoint.probe_is_due());
        let probe = endpoint.begin().unwrap();
        assert_eq!(endpoint.begin().err(), Some(Wait::Probing));
        end(probe, &sent(Outcome::Delivered { status: 200 }));
        assert_eq!((endpoint.status().breaker, endpoint.obstacle()), (BreakerState::Closed, None));
    }

    #[test]
    fn a_permit_that_is_dropped_gives_its_place_back() {
        let clock = Clock::fixed(Timestamp(0));
        let endpoint = endpoint(&clock);
        open(&endpoint);
        clock.advance(Duration::from_secs(6));
        drop(endpoint.begin().unwrap());
        assert!(endpoint.probe_is_due());
        assert_eq!(endpoint.status().in_flight, 0);
    }

    #[test]
    fn retry_after_holds_the_endpoint_for_a_bounded_time() {
        let clock = Clock::fixed(Timestamp(0));
        let endpoint = endpoint(&clock);
        end(endpoint.begin().unwrap(), &failed(Some(Duration::from_secs(7))));
        assert_eq!(endpoint.obstacle(), Some(Wait::Blocked(Timestamp(7000))));
        clock.advance(Duration::from_secs(7));
        end(endpoint.begin().unwrap(), &failed(Some(Duration::from_secs(86_400))));
        assert_eq!(endpoint.status().waits_until, Some(Timestamp(307_000)));
    }

    #[test]
    fn another_url_is_another_endpoint_but_attempts_stay() {
        let endpoint = endpoint(&Clock::fixed(Timestamp(0)));
        let old: Vec<Permit> = (0..3).map(|_| endpoint.begin().unwrap()).collect();
        endpoint.configure(&subscription("http://127.0.0.2/").settings);
        assert_eq!((endpoint.obstacle(), endpoint.status().in_flight), (None, 0));
        old.into_iter().for_each(|permit| end(permit, &failed(None)));
        assert_eq!(endpoint.attempts().len(), 3);
        assert_eq!((endpoint.status().in_flight, endpoint.concurrency()), (0, 4), "the old one taught nothing");
    }

    #[test]
    fn attempts_are_bounded_and_newest_first() {
        let endpoint = endpoint(&Clock::fixed(Timestamp(0)));
        for attempt in 1..=150 {
            let permit = endpoint.begin().unwrap();
            permit.end(lease(1, None).message.id, attempt, &sent(Outcome::Delivered { status: 200 }));
        }
        let attempts = endpoint.attempts();
        assert_eq!((attempts.len(), attempts[0].attempt, attempts[99].attempt), (ATTEMPTS_MAX, 150, 51));
        let written = serde_json::to_value(&attempts[0]).unwrap();
        assert_eq!((&written["at"], &written["latencyMs"]), (&"1970-01-01T00:00:00.000Z".into(), &5.into()));
        assert_eq!(attempts[0].body_start.len(), SUCCESS_BODY_CHARS);
    }

    #[test]
    fn bodies_of_answers_are_forgotten_when_their_owner_says_so() {
        let endpoint = endpoint(&Clock::fixed(Timestamp(0)));
        end(endpoint.begin().unwrap(), &failed(None));
        let mut settings = subscription("http://127.0.0.1/").settings;
        settings.attempt_bodies = AttemptBodies::Redact;
        endpoint.configure(&settings);
        end(endpoint.begin().unwrap(), &failed(None));
        let bodies: Vec<String> = endpoint.attempts().into_iter().map(|attempt| attempt.body_start).collect();
        assert_eq!(bodies, [REDACTED, REDACTED]);
        assert_eq!((endpoint.clear_attempts(), endpoint.attempts().len()), (2, 0));
        assert_eq!(endpoint.status().failed, 2, "figures stay");
    }

    #[test]
    fn the_breakers_state_is_told_with_its_times_and_other_credentials_are_a_new_start() {
        let clock = Clock::fixed(Timestamp(0));
        let endpoint = endpoint(&clock);
        assert_eq!((endpoint.status().breaker_since, endpoint.status().next_probe_at), (None, None));
        clock.advance(Duration::from_secs(1));
        open(&endpoint);
        let status = endpoint.status();
        assert_eq!(status.breaker_since, Some(Timestamp(1000)));
        assert!(status.next_probe_at.is_some_and(|at| at > Timestamp(4000)), "{status:?}");
        assert_eq!(endpoint.metrics(Duration::from_secs(60)).failed, u64::from(FAILURES_TO_OPEN));
        let mut settings = subscription("http://127.0.0.1/").settings;
        endpoint.configure(&settings);
        assert_eq!(endpoint.status().breaker, BreakerState::Open);
        let token = crate::catalog::model::Secret::new("new".to_owned());
        settings.authorization = Some(Authorization::Bearer { token });
        endpoint.configure(&settings);
        assert_eq!((endpoint.status().breaker, endpoint.obstacle()), (BreakerState::Closed, None));
    }

    #[test]
    fn the_rate_limit_paces() {
        let clock = Clock::fixed(Timestamp(0));
        let endpoint = endpoint(&clock);
        let mut settings = subscription("http://127.0.0.1/").settings;
        settings.rate_limit = Some(2);
        endpoint.configure(&settings);
        let _first = endpoint.begin().unwrap();
        assert_eq!(endpoint.begin().err(), Some(Wait::Pace(Timestamp(500))));
        clock.advance(Duration::from_millis(500));
        assert!(endpoint.begin().is_ok());
    }
}
