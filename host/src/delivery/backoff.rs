//! How long to wait before the next attempt: [`Backoff`]'s own arithmetic, and an endpoint's `Retry-After`. Invariant: a
//! wait is never negative, never overflows, and never exceeds its bound by more than its jitter. Pure: no clock, no I/O.

use std::time::Duration;

use crate::catalog::model::Backoff;
use crate::clock::Timestamp;
use crate::entropy::Entropy;

/// The longest `Retry-After` that is believed: an endpoint that asks for a year would park its messages past their
/// retention, and a day is longer than any maintenance window that is announced this way.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

impl Backoff {
    /// The wait after `attempts` failed deliveries: `initial × multiplier^(attempts − 1)`, at most `max`, ± `jitter` of it.
    #[must_use]
    pub fn wait(&self, attempts: u32, entropy: &Entropy) -> Duration {
        self.wait_at(attempts, entropy.fraction())
    }

    /// [`Backoff::wait`] with the random number given: `fraction` in `[0, 1)`, where 0.5 stands for no deviation.
    #[must_use]
    pub fn wait_at(&self, attempts: u32, fraction: f64) -> Duration {
        let exponent = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
        let max = self.max.as_secs_f64();
        // Zero times an infinite power is no number: without a first wait there is none later either.
        let grown = if self.initial.is_zero() {
            0.0
        } else {
            self.initial.as_secs_f64() * self.multiplier.max(1.0).powi(exponent)
        };
        let capped = if grown.is_finite() { grown.min(max) } else { max };
        let deviation = 1.0 + self.jitter.clamp(0.0, 1.0) * (2.0 * fraction.clamp(0.0, 1.0) - 1.0);
        Duration::try_from_secs_f64(capped * deviation).unwrap_or(Duration::MAX)
    }
}

/// Reads `Retry-After` (RFC 9110 §10.2.3): seconds, or an HTTP date, which is taken relative to `now`. At most
/// [`RETRY_AFTER_MAX`]. `None` for anything else, and where it asks for no wait, by a zero or a date that has passed: all
/// attempts that a message has would be used up in a moment.
#[must_use]
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    let wait = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are more than the cap.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        http_date(value)?.since(now)
    };
    (!wait.is_zero()).then_some(wait.min(RETRY_AFTER_MAX))
}

/// The three forms that RFC 9110 §5.6.7 demands of a recipient: IMF-fixdate, RFC 850's, and C's `asctime`.
fn http_date(value: &str) -> Option<Timestamp> {
    // No valid form is longer than RFC 850's with `Wednesday`.
    if value.len() > 40 {
        return None;
    }
    ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"].iter().find_map(|form| {
        let civil = jiff::fmt::strtime::parse(form, value).ok()?.to_datetime().ok()?;
        // By the calendar, as the last days of year 9999 are valid dates but beyond jiff's timestamps.
        let since_epoch = civil.duration_since(jiff::civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0));
        i64::try_from(since_epoch.as_millis()).ok().map(Timestamp)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_doubles_from_two_seconds_up_to_an_hour() {
        let backoff = Backoff::default();
        let seconds: Vec<u64> = (1..=13).map(|attempts| backoff.wait_at(attempts, 0.5).as_secs()).collect();
        assert_eq!(seconds, [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600]);
    }

    #[test]
    fn jitter_spreads_to_both_sides() {
        let backoff = Backoff { jitter: 0.5, ..Backoff::default() };
        assert_eq!(backoff.wait_at(1, 0.0), Duration::from_secs(1));
        assert_eq!(backoff.wait_at(1, 1.0), Duration::from_secs(3));
        let entropy = Entropy::seeded(7);
        let waits: Vec<Duration> = (0..100).map(|_| backoff.wait(1, &entropy)).collect();
        assert!(waits.iter().any(|wait| *wait < Duration::from_millis(1500)));
        assert!(waits.iter().any(|wait| *wait > Duration::from_millis(2500)));
    }

    #[test]
    fn retry_after_is_seconds_or_any_http_date() {
        let now = Timestamp::parse_rfc3339("1994-11-06T08:49:07Z").unwrap();
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after(" 1 ", now), Some(Duration::from_secs(1)));
        for date in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(retry_after(date, now), Some(Duration::from_secs(30)), "{date}");
        }
    }

    #[test]
    fn retry_after_that_asks_for_no_wait_is_none() {
        let past = "Sun, 06 Nov 1994 08:49:37 GMT";
        let now = Timestamp::parse_rfc3339("1994-11-06T08:49:37Z").unwrap();
        for (value, now) in [("0", now), ("000", now), (past, now), (past, now.plus(Duration::from_secs(3600)))] {
            assert_eq!(retry_after(value, now), None, "{value}");
        }
    }

    #[test]
    fn retry_after_is_capped_and_nonsense_is_ignored() {
        assert_eq!(retry_after("99999999999999999999999999", Timestamp(0)), Some(RETRY_AFTER_MAX));
        assert_eq!(retry_after("Fri, 31 Dec 9999 23:59:59 GMT", Timestamp(0)), Some(RETRY_AFTER_MAX));
        for bad in ["", "-1", "1.5", "soon", "Sun, 06 Nov 1994", &"9 ".repeat(50)] {
            assert_eq!(retry_after(bad, Timestamp(0)), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_wait_never_overflows_nor_leaves_its_bounds(
            initial_ms in 0..=u64::MAX, multiplier in 0.0..1e300_f64, max_ms in 0..=u64::MAX,
            jitter in 0.0..=1.0_f64, attempts in 0..=u32::MAX, fraction in 0.0..1.0_f64,
        ) {
            let backoff = Backoff {
                initial: Duration::from_millis(initial_ms), multiplier, max: Duration::from_millis(max_ms), jitter,
            };
            let wait = backoff.wait_at(attempts, fraction);
            prop_assert!(wait.as_secs_f64() <= backoff.max.as_secs_f64() * (1.0 + jitter) + 1e-3);
        }

        #[test]
        fn without_jitter_waits_never_shrink(
            initial_ms in 0..100_000_u64, multiplier in 1.0..10.0_f64, max_ms in 0..10_000_000_u64, attempts in 1..1000_u32,
        ) {
            let backoff = Backoff {
                initial: Duration::from_millis(initial_ms), multiplier, max: Duration::from_millis(max_ms), jitter: 0.0,
            };
            prop_assert!(backoff.wait_at(attempts, 0.1) <= backoff.wait_at(attempts + 1, 0.9));
        }

        #[test]
        fn any_retry_after_is_read_without_a_panic(value in ".{0,64}", now in 0..4_102_444_800_000_i64) {
            prop_assert!(retry_after(&value, Timestamp(now)).is_none_or(|wait| wait <= RETRY_AFTER_MAX));
        }
    }
}
