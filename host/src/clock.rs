//! Time, as a value that is passed around. Invariant: nothing else in the broker asks the operating system what time
//! it is (`clippy.toml` bans it), so a test can move time for a whole running broker. Never goes backwards within one
//! process, even when the system's clock is set back; but where it goes by another one's time ([`Clock::keep_to`]) that is far back.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use jiff::fmt::temporal::DateTimePrinter;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The end of time: what never happens.
    pub const MAX: Timestamp = Timestamp(i64::MAX);

    /// This time plus `duration`, at most [`Timestamp::MAX`].
    #[must_use]
    pub fn plus(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// This time minus `duration`.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not after.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// RFC 3339 in UTC with milliseconds: `2026-01-31T12:00:00.250Z`.
    #[must_use]
    pub fn rfc3339(self) -> String {
        /// Right into a text that has room: each message of an answer has two of these.
        const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
        let millis = self.0.clamp(-377_705_023_201_000, 253_402_207_200_000);
        let mut text = String::with_capacity("2026-01-31T12:00:00.250Z".len());
        if let Ok(at) = jiff::Timestamp::from_millisecond(millis) {
            PRINTER.print_timestamp(&at, &mut text).expect("a text in memory takes it");
        }
        text
    }

    /// Reads RFC 3339 with any offset.
    ///
    /// # Errors
    /// A sentence for the sender when the text is no such time.
    pub fn parse_rfc3339(text: &str) -> Result<Timestamp, String> {
        text.parse::<jiff::Timestamp>()
            .map(|at| Timestamp(at.as_millisecond()))
            .map_err(|_| format!("'{text}' is not an RFC 3339 time such as 2026-01-31T12:00:00Z"))
    }
}

/// Where time comes from. Cheap to clone; all clones move together.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Source,
    /// What another clock says, less what has passed since [`STARTED`]; [`NOBODYS`] while nobody's is followed.
    others: AtomicI64,
    /// Milliseconds that tests have added.
    offset: AtomicI64,
    /// The latest time given out, so that time never runs backwards.
    latest: AtomicI64,
    moved: watch::Sender<i64>,
}

#[derive(Debug)]
enum Source {
    System,
    Fixed(i64),
}

impl Clock {
    /// The system's time.
    #[must_use]
    pub fn system() -> Clock {
        Clock::from(Source::System)
    }

    /// A clock that stands at `start` until [`Clock::advance`] moves it.
    #[must_use]
    pub fn fixed(start: Timestamp) -> Clock {
        Clock::from(Source::Fixed(start.0))
    }

    fn from(source: Source) -> Clock {
        Clock(Arc::new(Inner {
            source,
            others: AtomicI64::new(NOBODYS),
            offset: AtomicI64::new(0),
            latest: AtomicI64::new(i64::MIN),
            moved: watch::channel(0).0,
        }))
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let base = match self.0.source {
            Source::System => match self.0.others.load(Ordering::Acquire) {
                NOBODYS => system_millis(),
                others => others + passed_millis(),
            },
            Source::Fixed(start) => start,
        };
        let now = base.saturating_add(self.0.offset.load(Ordering::Acquire));
        Timestamp(self.0.latest.fetch_max(now, Ordering::AcqRel).max(now))
    }

    /// Goes by another clock from now on, which says `there` at this moment: its own may be wrong by minutes, and be set while
    /// it runs. Told again and again, it is corrected where it is off by more than `tolerance`: forward at once, backward by
    /// standing still, or, where that would last, at once as well. Returns how far the system's clock is ahead of the other one.
    pub fn keep_to(&self, there: Timestamp, tolerance: Duration) -> i64 {
        let Source::System = self.0.source else { return 0 };
        let (others, tolerance) = (there.0 - passed_millis(), i64::try_from(tolerance.as_millis()).unwrap_or(i64::MAX));
        let before = self.0.others.load(Ordering::Acquire);
        if before == NOBODYS || (before - others).abs() > tolerance {
            self.0.others.store(others, Ordering::Release);
            self.0.moved.send_modify(|_| {});
        }
        if self.now().0 - there.0 > STANDS_STILL_MAX_MS {
            self.0.latest.store(i64::MIN, Ordering::Release);
            self.0.moved.send_modify(|_| {});
        }
        system_millis() - there.0
    }

    /// What has passed since some moment: as the time, but for what sets that back or ahead outside of tests.
    #[must_use]
    pub fn passed(&self) -> Duration {
        let base = match self.0.source {
            Source::System => passed_millis(),
            Source::Fixed(start) => start,
        };
        Duration::from_millis(base.saturating_add(self.ahead_ms()).unsigned_abs())
    }

    /// Moves time forward for every holder of this clock and wakes all sleepers.
    pub fn advance(&self, by: Duration) {
        let millis = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        let total = self.0.offset.fetch_add(millis, Ordering::AcqRel) + millis;
        self.0.moved.send_replace(total);
    }

    /// Sets how far the clock runs ahead of its source; a smaller value than before is ignored.
    pub fn set_offset(&self, ahead: Duration) {
        let millis = i64::try_from(ahead.as_millis()).unwrap_or(i64::MAX);
        if self.0.offset.fetch_max(millis, Ordering::AcqRel) < millis {
            self.0.moved.send_replace(millis);
        }
    }

    /// The time, where it stands still but for what moves it.
    #[must_use]
    pub fn fixed_now(&self) -> Option<Timestamp> {
        match self.0.source {
            Source::System => None,
            Source::Fixed(_) => Some(self.now()),
        }
    }

    /// Milliseconds that it was moved ahead of its source.
    #[must_use]
    pub fn ahead_ms(&self) -> i64 {
        self.0.offset.load(Ordering::Acquire)
    }

    /// Returns at `due` by this clock, also when the clock is moved.
    pub async fn sleep_until(&self, due: Timestamp) {
        let mut moved = self.0.moved.subscribe();
        let (mut due, mut before) = (due, self.now());
        loop {
            moved.borrow_and_update();
            let now = self.now();
            if now < before && due < Timestamp::MAX {
                // Set back, it leaves as much to wait as there was.
                due = now.plus(due.since(before));
            }
            before = now;
            if now >= due {
                return;
            }
            let moved_again = async {
                if moved.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            match self.0.source {
                // A day at most: timers of the runtime need not be trusted with the end of time.
                Source::System => {
                    let wait = due.since(now).min(Duration::from_secs(86_400));
                    tokio::select! { () = tokio::time::sleep(wait) => {}, () = moved_again => {} }
                }
                Source::Fixed(_) => moved_again.await,
            }
        }
    }

    /// Returns after `duration` by this clock.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now().plus(duration)).await;
    }
}

/// A clock that is further ahead than that of the one that it follows goes back: standing still for as long, it would stop all that
/// waits for it.
const STANDS_STILL_MAX_MS: i64 = 5_000;
/// Nobody's clock is followed.
const NOBODYS: i64 = i64::MIN;

#[expect(
    clippy::disallowed_methods,
    reason = "what passes between two moments, whatever becomes of the system's clock"
)]
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

fn passed_millis() -> i64 {
    i64::try_from(STARTED.elapsed().as_millis()).unwrap_or(i64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "the one place where the broker asks the system for the time")]
fn system_millis() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back_as_written() {
        let at = Timestamp(1_700_000_000_250);
        assert_eq!(at.rfc3339(), "2023-11-14T22:13:20.250Z");
        assert_eq!(Timestamp::parse_rfc3339(&at.rfc3339()), Ok(at));
        assert_eq!(Timestamp::parse_rfc3339("2023-11-14T23:13:20.25+01:00"), Ok(at));
        assert!(Timestamp::parse_rfc3339("yesterday").is_err());
    }

    #[test]
    fn a_clock_that_goes_by_another_one_is_corrected() {
        const MINUTES: Duration = Duration::from_secs(300);
        let (clock, tolerance) = (Clock::system(), Duration::from_millis(500));
        let (system, near) = (clock.now(), Duration::from_secs(60));
        // The system's is ahead of the other one.
        let ahead = clock.keep_to(system.minus(MINUTES), tolerance);
        assert!((290_000..=310_000).contains(&ahead), "{ahead}");
        let there = clock.now();
        assert!(there < system.minus(MINUTES).plus(near) && there >= system.minus(MINUTES));
        // Within the tolerance nothing moves, beyond it forwards at once.
        clock.keep_to(there.plus(Duration::from_millis(100)), tolerance);
        assert!(clock.now() < there.plus(near));
        clock.keep_to(there.plus(MINUTES), tolerance);
        assert!(clock.now() >= there.plus(MINUTES));
        // A little backwards it stands still, far backwards it goes.
        let before = clock.now();
        clock.keep_to(before.minus(Duration::from_secs(2)), tolerance);
        assert_eq!(clock.now(), before);
        clock.keep_to(there, tolerance);
        assert!(clock.now() < before);
    }

    #[tokio::test]
    async fn who_waits_waits_as_long_where_the_clock_is_set_back() {
        const MINUTES: Duration = Duration::from_secs(600);
        let clock = Clock::system();
        let passed = clock.passed();
        clock.keep_to(clock.now(), Duration::ZERO);
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_millis(300)).await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        clock.keep_to(clock.now().minus(MINUTES), Duration::ZERO);
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished(), "it has not passed yet");
        tokio::time::timeout(MINUTES / 10, sleeper).await.expect("it does not last until then again").expect("it ends");
        assert!(clock.passed() > passed && clock.passed() < passed + MINUTES / 2);
    }

    #[tokio::test]
    async fn a_sleeper_wakes_when_the_clock_is_moved() {
        let clock = Clock::fixed(Timestamp(0));
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_secs(3600)).await }
        });
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(3600));
        sleeper.await.expect("the sleeper ends");
        assert_eq!(clock.now(), Timestamp(3_600_000));
    }
}
