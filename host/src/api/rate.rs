//! How many requests a subject may make. Invariant: a limit counts per token subject and minute, in a bounded table of
//! subjects; without a configured number there is no limit. Never delays a request: it passes or is refused.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock as _;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use http::{HeaderMap, HeaderName, HeaderValue};
use moka::sync::Cache;

use super::auth::table::Budget;
use super::problem::{Code, Problem};
use crate::clock::Clock;
use crate::config::RateLimiting;

/// Subjects counted at once; the one unseen for longest makes room. Subjects come from signed tokens alone, so nobody
/// can make up new ones to be forgotten by. About 2 MB.
const SUBJECTS_MAX: u64 = 10_000;
/// A subject that was silent for this long has its whole minute again, so it need not be remembered.
const IDLE: Duration = Duration::from_secs(120);

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
        let millis = u64::try_from(self.0.now().0).unwrap_or(0);
        Nanos::from(millis.saturating_mul(1_000_000))
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
    subjects: Cache<Arc<str>, Arc<Bucket>>,
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
    /// From the configuration.
    #[must_use]
    pub fn new(settings: RateLimiting, clock: &Clock) -> RateLimits {
        let limit = |name, per_minute: Option<u32>| {
            Some(Limit {
                name,
                per_minute: NonZeroU32::new(per_minute?)?,
                clock: Ticks(clock.clone()),
                subjects: Cache::builder().max_capacity(SUBJECTS_MAX).time_to_idle(IDLE).build(),
            })
        };
        RateLimits {
            publish: limit("publish", settings.publish),
            consume: limit("consume", settings.consume),
            topics: limit("topics", settings.topics),
        }
    }

    /// Counts one request of `subject`.
    ///
    /// # Errors
    /// `RATE_LIMITED` with what the answer says of the limit.
    pub fn count(&self, budget: Budget, subject: &Arc<str>) -> Result<Option<Standing>, (Problem, Standing)> {
        let limit = match budget {
            Budget::Publish => &self.publish,
            Budget::Consume => &self.consume,
            Budget::Topics => &self.topics,
        };
        limit.as_ref().map(|limit| limit.count(subject)).transpose()
    }
}

impl Limit {
    fn count(&self, subject: &Arc<str>) -> Result<Standing, (Problem, Standing)> {
        let bucket = match self.subjects.get(subject) {
            Some(bucket) => bucket,
            None => self.subjects.get_with(Arc::clone(subject), || Arc::new(self.bucket())),
        };
        match bucket.check() {
            Ok(state) => Ok(self.standing(state.remaining_burst_capacity())),
            Err(until) => {
                let wait = until.wait_time_from(self.clock.now());
                let detail = format!(
                    "The subject may make {} {} requests a minute; wait as `Retry-After` says.",
                    self.per_minute, self.name
                );
                Err((Problem::new(Code::RateLimited, detail).retry_after(wait), self.standing(0)))
            }
        }
    }

    fn bucket(&self) -> Bucket {
        RateLimiter::direct_with_clock(Quota::per_minute(self.per_minute), self.clock.clone()).with_middleware()
    }

    fn standing(&self, remaining: u32) -> Standing {
        let limit = self.per_minute.get();
        let used = u64::from(limit.saturating_sub(remaining));
        Standing { name: self.name, limit, remaining, reset_seconds: (used * 60).div_ceil(u64::from(limit)) }
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

    #[test]
    fn a_subject_spends_its_minute_and_gets_it_back() {
        let clock = Clock::fixed(Timestamp(1_000_000));
        let limits = RateLimits::new(RateLimiting { publish: Some(3), ..RateLimiting::default() }, &clock);
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        for remaining in [2, 1, 0] {
            let standing = limits.count(Budget::Publish, &ann).unwrap().unwrap();
            assert_eq!((standing.limit, standing.remaining), (3, remaining));
        }
        let (problem, standing) = limits.count(Budget::Publish, &ann).unwrap_err();
        assert_eq!((problem.code(), problem.retry_after_seconds()), (Code::RateLimited, Some(20)));
        assert_eq!((standing.remaining, standing.reset_seconds), (0, 60));
        assert!(limits.count(Budget::Publish, &bob).is_ok());
        assert_eq!(limits.count(Budget::Consume, &ann).unwrap(), None);
        clock.advance(Duration::from_secs(20));
        assert!(limits.count(Budget::Publish, &ann).is_ok());
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
