//! How many requests a subject may make. Invariant: a limit counts per token subject and minute, in a bounded table of
//! subjects; without a configured number there is no limit. Over all brokers while Redis counts, by each for itself otherwise.
//! Delays a request by Redis's answer at most: it passes or is refused.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use governor::clock::Clock as _;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use http::{HeaderMap, HeaderName, HeaderValue};
use moka::sync::Cache;
use parking_lot::Mutex;

use super::auth::table::Budget;
use super::problem::{Code, Problem};
use crate::clock::Clock;
use crate::config::RateLimiting;
use crate::redis::{Redis, Taken};
use crate::telemetry::Stopwatch;

/// Subjects counted at once; the one unseen for longest makes room. Subjects come from signed tokens alone, so nobody
/// can make up new ones to be forgotten by. About 2 MB.
const SUBJECTS_MAX: u64 = 10_000;
/// A subject that was silent for this long has its whole minute again, so it need not be remembered.
const IDLE: Duration = Duration::from_secs(120);
/// What was taken ahead is the subject's for as long as its minute takes to be whole again.
const MINUTE: Duration = Duration::from_secs(60);
/// A broker takes this part of a minute ahead, so that most requests need not wait for Redis: what others are refused by it is as
/// little.
const AHEAD_SHARE: u32 = 600;
/// And so many at most.
const AHEAD_MAX: u32 = 100;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STANDARD: HeaderName = HeaderName::from_static("ratelimit");

type Bucket = RateLimiter<NotKeyed, InMemoryState, Ticks, StateInformationMiddleware>;

/// The broker's clock as governor reads it.
#[derive(Debug, Clone)]
struct Ticks(Clock);

impl governor::clock::Clock for Ticks {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        // Not the time: where that is set back, a subject would be refused until it is what it was.
        Nanos::from(u64::try_from(self.0.passed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// All limits.
pub struct RateLimits {
    publish: Option<Limit>,
    consume: Option<Limit>,
    topics: Option<Limit>,
}

struct Limit {
    name: &'static str,
    per_minute: NonZeroU32,
    clock: Ticks,
    /// Counts over all brokers, where there are others and while it is there.
    redis: Option<Redis>,
    /// Requests that are taken ahead at once.
    ahead: u32,
    subjects: Cache<Arc<str>, Arc<Subject>>,
}

/// A subject, as this broker counts it.
struct Subject {
    /// Of its own.
    bucket: Bucket,
    held: Mutex<Held>,
    /// Whether somebody is taking ahead for it.
    taking: AtomicBool,
}

/// What is known of a subject's minute over all brokers.
#[derive(Default)]
struct Held {
    /// Requests that were taken and not made yet, and since when.
    taken: u32,
    /// Those that were left to all brokers then.
    remaining: u32,
    /// Since when there are none, and for how long at least.
    none: Option<(Stopwatch, Duration)>,
    since: Option<Stopwatch>,
}

/// What memory says of one more request.
enum Known {
    /// It was taken already; so many are left.
    May(u32),
    /// There are none, for so long.
    Not(Duration),
}

/// What a limited answer says of its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    name: &'static str,
    limit: u32,
    remaining: u32,
    reset_seconds: u64,
}

impl RateLimits {
    /// From the configuration; over all brokers where a Redis counts.
    #[must_use]
    pub fn new(settings: RateLimiting, clock: &Clock, redis: Option<Redis>) -> RateLimits {
        let limit = |name, per_minute: Option<u32>| {
            let per_minute = NonZeroU32::new(per_minute?)?;
            Some(Limit {
                name,
                per_minute,
                clock: Ticks(clock.clone()),
                redis: redis.clone(),
                ahead: (per_minute.get() / AHEAD_SHARE).clamp(1, AHEAD_MAX),
                subjects: Cache::builder().max_capacity(SUBJECTS_MAX).time_to_idle(IDLE).build(),
            })
        };
        RateLimits {
            publish: limit("publish", settings.publish),
            consume: limit("consume", settings.consume),
            topics: limit("topics", settings.topics),
        }
    }

    /// Whether requests of this kind are counted at all.
    #[must_use]
    pub fn limits(&self, budget: Budget) -> bool {
        self.limit(budget).is_some()
    }

    /// Counts one request of `subject`.
    ///
    /// # Errors
    /// `RATE_LIMITED` with what the answer says of the limit.
    pub async fn count(&self, budget: Budget, subject: &Arc<str>) -> Result<Option<Standing>, (Problem, Standing)> {
        match self.limit(budget) {
            Some(limit) => limit.count(subject).await.map(Some),
            None => Ok(None),
        }
    }

    fn limit(&self, budget: Budget) -> Option<&Limit> {
        match budget {
            Budget::Publish => self.publish.as_ref(),
            Budget::Consume => self.consume.as_ref(),
            Budget::Topics => self.topics.as_ref(),
        }
    }
}

impl Limit {
    async fn count(&self, subject: &Arc<str>) -> Result<Standing, (Problem, Standing)> {
        let known = match self.subjects.get(subject) {
            Some(known) => known,
            None => self.subjects.get_with(Arc::clone(subject), || Arc::new(self.subject())),
        };
        let Some(redis) = &self.redis else { return self.count_here(&known) };
        let counted = self.count_over_all(redis, subject, &known).await;
        redis.has_counted(counted.is_some());
        match counted {
            Some(Ok(remaining)) => {
                // So that its minute is not whole again when this broker has to count alone.
                let _here = known.bucket.check();
                Ok(self.standing(remaining))
            }
            Some(Err(wait)) => Err(self.refused(wait)),
            None => self.count_here(&known),
        }
    }

    fn count_here(&self, subject: &Subject) -> Result<Standing, (Problem, Standing)> {
        match subject.bucket.check() {
            Ok(state) => Ok(self.standing(state.remaining_burst_capacity())),
            Err(until) => Err(self.refused(until.wait_time_from(self.clock.now()))),
        }
    }

    /// How many requests are left, or when there is one. None: Redis does not say.
    async fn count_over_all(&self, redis: &Redis, name: &str, subject: &Subject) -> Option<Result<u32, Duration>> {
        if !redis.helps() {
            subject.held.lock().none = None;
            return None;
        }
        match subject.known() {
            Some(Known::May(remaining)) => return Some(Ok(remaining)),
            Some(Known::Not(wait)) => return Some(Err(wait)),
            None => {}
        }
        // One takes ahead; who comes meanwhile takes what it needs, or a crowd would take the minute for itself.
        let turn = Taking::begin(subject);
        let want = if turn.is_some() { self.ahead } else { 1 };
        let taken = redis.take((self.name, self.per_minute.get()), name, want).await.ok()?;
        Some(subject.hold(taken))
    }

    fn refused(&self, wait: Duration) -> (Problem, Standing) {
        let detail = format!(
            "The subject may make {} {} requests a minute; wait as `Retry-After` says.",
            self.per_minute, self.name
        );
        (Problem::new(Code::RateLimited, detail).retry_after(wait), self.standing(0))
    }

    fn subject(&self) -> Subject {
        let bucket =
            RateLimiter::direct_with_clock(Quota::per_minute(self.per_minute), self.clock.clone()).with_middleware();
        Subject { bucket, held: Mutex::default(), taking: AtomicBool::new(false) }
    }

    fn standing(&self, remaining: u32) -> Standing {
        let limit = self.per_minute.get();
        let remaining = remaining.min(limit);
        let used = u64::from(limit - remaining);
        Standing { name: self.name, limit, remaining, reset_seconds: (used * 60).div_ceil(u64::from(limit)) }
    }
}

impl Subject {
    /// Spends what was taken ahead.
    fn known(&self) -> Option<Known> {
        let mut held = self.held.lock();
        if held.since.as_ref().is_some_and(|since| since.elapsed() >= MINUTE) {
            held.taken = 0;
        }
        if held.taken > 0 {
            held.taken -= 1;
            return Some(Known::May(held.remaining.saturating_add(held.taken)));
        }
        let left = held.none.as_ref().and_then(|(since, wait)| wait.checked_sub(since.elapsed()));
        left.filter(|left| !left.is_zero()).map(Known::Not)
    }

    /// Keeps what was taken, but for the request that is made now.
    fn hold(&self, taken: Taken) -> Result<u32, Duration> {
        let mut held = self.held.lock();
        if taken.granted > 0 {
            held.taken += taken.granted - 1;
            held.remaining = taken.remaining;
            held.since = Some(Stopwatch::start());
            held.none = None;
            return Ok(held.remaining.saturating_add(held.taken));
        }
        if held.taken > 0 {
            // Somebody took ahead meanwhile.
            held.taken -= 1;
            return Ok(held.taken);
        }
        held.none = Some((Stopwatch::start(), taken.wait));
        Err(taken.wait)
    }
}

/// The turn to take ahead for a subject, until it is dropped.
struct Taking<'a>(&'a Subject);

impl Taking<'_> {
    fn begin(subject: &Subject) -> Option<Taking<'_>> {
        (!subject.taking.swap(true, Ordering::AcqRel)).then_some(Taking(subject))
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.0.taking.store(false, Ordering::Release);
    }
}

impl Standing {
    /// Writes the headers: the customary ones, and those of draft-ietf-httpapi-ratelimit-headers.
    pub fn write(self, headers: &mut HeaderMap) {
        headers.insert(LIMIT, HeaderValue::from(self.limit));
        headers.insert(REMAINING, HeaderValue::from(self.remaining));
        headers.insert(RESET, HeaderValue::from(self.reset_seconds));
        let standard = [
            (POLICY, format!("\"{}\";q={};w=60", self.name, self.limit)),
            (STANDARD, format!("\"{}\";r={};t={}", self.name, self.remaining, self.reset_seconds)),
        ];
        for (name, text) in standard {
            headers.insert(name, HeaderValue::try_from(text).expect("digits and a plain word are a header's value"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[tokio::test]
    async fn a_subject_spends_its_minute_and_gets_it_back() {
        let clock = Clock::fixed(Timestamp(1_000_000));
        let limits = RateLimits::new(RateLimiting { publish: Some(3), ..RateLimiting::default() }, &clock, None);
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        for remaining in [2, 1, 0] {
            let standing = limits.count(Budget::Publish, &ann).await.unwrap().unwrap();
            assert_eq!((standing.limit, standing.remaining), (3, remaining));
        }
        let (problem, standing) = limits.count(Budget::Publish, &ann).await.unwrap_err();
        assert_eq!((problem.code(), problem.retry_after_seconds()), (Code::RateLimited, Some(20)));
        assert_eq!((standing.remaining, standing.reset_seconds), (0, 60));
        assert!(limits.count(Budget::Publish, &bob).await.is_ok());
        assert_eq!(limits.count(Budget::Consume, &ann).await.unwrap(), None);
        clock.advance(Duration::from_secs(20));
        assert!(limits.count(Budget::Publish, &ann).await.is_ok());
    }

    #[test]
    fn what_was_taken_ahead_is_spent_before_more_is_taken_and_a_refusal_lasts_as_long_as_it_said() {
        let limits =
            RateLimits::new(RateLimiting { publish: Some(6000), ..RateLimiting::default() }, &Clock::system(), None);
        let limit = limits.limit(Budget::Publish).unwrap();
        assert_eq!(limit.ahead, 10);
        let subject = limit.subject();
        assert!(subject.known().is_none());
        let taken = |granted, remaining, wait| Taken { granted, remaining, wait: Duration::from_secs(wait) };
        assert_eq!(subject.hold(taken(3, 97, 0)), Ok(99));
        let spent = || match subject.known() {
            Some(Known::May(left)) => Ok(left),
            Some(Known::Not(wait)) => Err(Some(wait)),
            None => Err(None),
        };
        assert_eq!((spent(), spent(), spent()), (Ok(98), Ok(97), Err(None)));
        assert_eq!(subject.hold(taken(0, 0, 7)), Err(Duration::from_secs(7)));
        assert!(spent().is_err_and(|wait| wait.is_some_and(|wait| wait > Duration::from_secs(6))));
        assert_eq!(subject.hold(taken(1, 5, 0)), Ok(5));
        assert_eq!(spent(), Err(None));
        let turn = Taking::begin(&subject);
        assert!(turn.is_some() && Taking::begin(&subject).is_none());
        drop(turn);
        assert!(Taking::begin(&subject).is_some());
    }

    #[test]
    fn both_kinds_of_headers_are_written() {
        let mut headers = HeaderMap::new();
        Standing { name: "publish", limit: 100, remaining: 40, reset_seconds: 36 }.write(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"publish\";q=100;w=60");
        assert_eq!(headers["ratelimit"], "\"publish\";r=40;t=36");
        assert_eq!(headers["x-ratelimit-remaining"], "40");
    }
}
