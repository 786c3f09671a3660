//! Figures over the last minutes or hours: counters in fixed buckets of time, and latencies in fixed buckets of length.
//! Invariant: an event costs the same whatever came before it, and memory is bounded by the number of buckets, whatever
//! happens. Never asks the time, and forgets all at a restart.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Timestamp;

/// The longest window that is kept.
pub const WINDOW_MAX: Duration = Duration::from_secs(86_400);
/// The shortest: one fine bucket.
pub const WINDOW_MIN: Duration = Duration::from_secs(60);

/// Milliseconds of a fine bucket.
const MINUTE_MS: i64 = 60_000;
/// Milliseconds of a coarse bucket.
const HOUR_MS: i64 = 60 * MINUTE_MS;
/// Fine buckets: an hour of them, and the minute that is under way.
const MINUTES_MAX: usize = 61;
/// Coarse buckets: a day of them, and the hour that is under way. A day of minutes would be seventeen times as many.
const HOURS_MAX: usize = 25;
/// The longest window that is made of fine buckets.
const FINE_MAX: Duration = Duration::from_secs(3600);

/// What is counted.
pub trait Counters: Default {
    /// Adds what another bucket counted.
    fn merge(&mut self, other: &Self);
}

/// Counters over the time that has just passed.
#[derive(Debug, Clone)]
pub struct Windowed<C> {
    minutes: Buckets<C>,
    hours: Buckets<C>,
    since: Timestamp,
}

/// What was counted in a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum<C> {
    /// The counters.
    pub counted: C,
    /// When the first bucket of it begins: windows begin on a full minute, or a full hour where they are longer than one
    /// hour, and never before counting began.
    pub from: Timestamp,
}

impl<C: Counters> Windowed<C> {
    /// Begins to count at `now`.
    #[must_use]
    pub fn new(now: Timestamp) -> Windowed<C> {
        Windowed { minutes: Buckets::new(MINUTE_MS, MINUTES_MAX), hours: Buckets::new(HOUR_MS, HOURS_MAX), since: now }
    }

    /// Counts something that happens `now`.
    pub fn record(&mut self, now: Timestamp, count: impl Fn(&mut C)) {
        count(self.minutes.at(now));
        count(self.hours.at(now));
    }

    /// What was counted in the `window` before `now`; a longer one than is kept is as long as that.
    #[must_use]
    pub fn sum(&self, now: Timestamp, window: Duration) -> Sum<C> {
        let window = window.clamp(WINDOW_MIN, WINDOW_MAX);
        let buckets = if window <= FINE_MAX { &self.minutes } else { &self.hours };
        let first = buckets.start_of(now.minus(window));
        Sum { counted: buckets.sum_from(first), from: Timestamp(first).max(self.since) }
    }

    /// Since when there are figures.
    #[must_use]
    pub fn since(&self) -> Timestamp {
        self.since
    }
}

/// Buckets that a window of its own length is made of.
const SLICES: usize = 30;
/// Milliseconds of the shortest of them.
const SLICE_MS_MIN: i64 = 100;

/// Counters over a window of one length.
#[derive(Debug, Clone)]
pub struct Sliding<C> {
    window: Duration,
    slices: Buckets<C>,
}

impl<C: Counters> Sliding<C> {
    /// Over this long a window.
    #[must_use]
    pub fn new(window: Duration) -> Sliding<C> {
        let window_ms = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
        let length_ms = (window_ms / SLICES as i64).max(SLICE_MS_MIN);
        Sliding { window, slices: Buckets::new(length_ms, SLICES + 1) }
    }

    /// Counts something that happens `now`.
    pub fn record(&mut self, now: Timestamp, count: impl FnOnce(&mut C)) {
        count(self.slices.at(now));
    }

    /// What was counted in the window before `now`.
    #[must_use]
    pub fn sum(&self, now: Timestamp) -> C {
        self.slices.sum_from(self.slices.start_of(now.minus(self.window)))
    }
}

/// Buckets of one length, oldest first; those in which nothing happened are not there.
#[derive(Debug, Clone)]
struct Buckets<C> {
    length_ms: i64,
    max: usize,
    kept: VecDeque<Bucket<C>>,
}

#[derive(Debug, Clone)]
struct Bucket<C> {
    start: i64,
    counted: C,
}

impl<C: Counters> Buckets<C> {
    fn new(length_ms: i64, max: usize) -> Buckets<C> {
        Buckets { length_ms, max, kept: VecDeque::new() }
    }

    fn start_of(&self, at: Timestamp) -> i64 {
        at.0.div_euclid(self.length_ms).saturating_mul(self.length_ms)
    }

    /// What was counted since `first`, where a bucket begins.
    fn sum_from(&self, first: i64) -> C {
        let mut counted = C::default();
        for bucket in self.kept.iter().rev().take_while(|bucket| bucket.start >= first) {
            counted.merge(&bucket.counted);
        }
        counted
    }

    /// The bucket of this time. A clock that went back counts into the last one, so that they stay in order.
    fn at(&mut self, now: Timestamp) -> &mut C {
        let start = self.start_of(now);
        if self.kept.back().is_none_or(|last| last.start < start) {
            if self.kept.len() == self.max {
                self.kept.pop_front();
            }
            self.kept.push_back(Bucket { start, counted: C::default() });
        }
        &mut self.kept.back_mut().expect("one was pushed if there was none").counted
    }
}

/// Octaves of microseconds below this one share the first bucket: 2⁸ µs is a quarter of a millisecond.
const OCTAVE_MIN: u32 = 8;
/// Octaves that have buckets of their own, two each: up to 67 s.
const OCTAVES: usize = 18;
const LATENCY_BUCKETS: usize = OCTAVES * 2;

/// How long things took, in buckets of which each is half as long as its octave: quantiles are right to a third at worst,
/// and usually far better, as values are taken to lie evenly in their bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latencies {
    buckets: [u32; LATENCY_BUCKETS],
    max_us: u64,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { buckets: [0; LATENCY_BUCKETS], max_us: 0 }
    }
}

impl Latencies {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        self.record_many(latency, 1);
    }

    /// Counts several that took as long as each other.
    pub fn record_many(&mut self, latency: Duration, count: u32) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = &mut self.buckets[bucket_of(us)];
        *bucket = bucket.saturating_add(count);
        self.max_us = self.max_us.max(us);
    }

    /// How long the slowest took; nothing where none was counted.
    #[must_use]
    pub fn max(&self) -> Option<Duration> {
        (self.count() > 0).then(|| Duration::from_micros(self.max_us))
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|count| u64::from(*count)).sum()
    }

    /// What this share of them (0 to 1) took at most; nothing where none was counted.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = share.clamp(0.0, 1.0) * count as f64;
        let mut below = 0.0;
        for (number, in_bucket) in self.buckets.iter().enumerate() {
            let in_bucket = f64::from(*in_bucket);
            if in_bucket > 0.0 && below + in_bucket >= rank {
                let (low, high) = (lower_bound(number) as f64, self.upper_bound(number) as f64);
                let us = low + (high - low) * ((rank - below) / in_bucket);
                return Some(Duration::from_micros(us.min(self.max_us as f64) as u64));
            }
            below += in_bucket;
        }
        self.max()
    }

    /// The last bucket ends where the slowest does.
    fn upper_bound(&self, number: usize) -> u64 {
        if number + 1 == LATENCY_BUCKETS { self.max_us } else { lower_bound(number + 1) }
    }
}

impl Counters for Latencies {
    fn merge(&mut self, other: &Latencies) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine = mine.saturating_add(*theirs);
        }
        self.max_us = self.max_us.max(other.max_us);
    }
}

fn bucket_of(us: u64) -> usize {
    let octave = us.max(1).ilog2();
    if octave < OCTAVE_MIN {
        return 0;
    }
    let upper_half = us >> (octave - 1) & 1;
    let number = (octave - OCTAVE_MIN) as usize * 2 + upper_half as usize;
    number.min(LATENCY_BUCKETS - 1)
}

/// Microseconds at which a bucket begins.
fn lower_bound(number: usize) -> u64 {
    if number == 0 {
        return 0;
    }
    let start = 1_u64 << (OCTAVE_MIN as usize + number / 2);
    if number.is_multiple_of(2) { start } else { start + start / 2 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default, Clone, PartialEq, Eq)]
    struct Count(u64);

    impl Counters for Count {
        fn merge(&mut self, other: &Count) {
            self.0 += other.0;
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);
    /// A full hour.
    const START: Timestamp = Timestamp(1_699_999_200_000);

    fn counted(window: &Windowed<Count>, now: Timestamp, length: Duration) -> u64 {
        window.sum(now, length).counted.0
    }

    #[test]
    fn what_left_the_window_counts_no_more() {
        let mut window = Windowed::<Count>::new(START);
        let mut now = START;
        for _ in 0..180 {
            window.record(now, |count| count.0 += 1);
            now = now.plus(MINUTE);
        }
        let last = now.minus(MINUTE);
        assert_eq!(counted(&window, last, MINUTE), 2, "the minute that is under way and the one before it");
        assert_eq!(counted(&window, last, MINUTE * 10), 11);
        assert_eq!(counted(&window, last, HOUR), 61);
        assert_eq!(counted(&window, last, HOUR * 2), 180);
        assert_eq!(counted(&window, last.plus(HOUR * 30), WINDOW_MAX), 0);
    }

    #[test]
    fn it_says_since_when_it_has_figures() {
        let mut window = Windowed::<Count>::new(START.plus(Duration::from_secs(90)));
        let now = START.plus(MINUTE * 5);
        window.record(now, |count| count.0 += 1);
        assert_eq!(window.sum(now, HOUR).from, window.since());
        assert_eq!(window.sum(now, MINUTE * 2).from, START.plus(MINUTE * 3));
    }

    #[test]
    fn memory_is_bounded_however_long_it_counts() {
        let mut window = Windowed::<Count>::new(START);
        for minute in 0..10_000 {
            window.record(START.plus(MINUTE * minute), |count| count.0 += 1);
        }
        assert_eq!((window.minutes.kept.len(), window.hours.kept.len()), (MINUTES_MAX, HOURS_MAX));
        let now = START.plus(MINUTE * 9_999);
        assert!((24 * 60..=25 * 60).contains(&counted(&window, now, WINDOW_MAX)));
        assert_eq!(window.sum(now, WINDOW_MAX * 9), window.sum(now, WINDOW_MAX));
    }

    #[test]
    fn a_window_of_its_own_length_forgets_what_left_it() {
        let mut window = Sliding::<Count>::new(MINUTE);
        for second in 0..300 {
            window.record(START.plus(Duration::from_secs(second)), |count| count.0 += 1);
        }
        let last = START.plus(Duration::from_secs(299));
        assert!((60..=63).contains(&window.sum(last).0), "{}", window.sum(last).0);
        assert_eq!(window.slices.kept.len(), SLICES + 1);
        assert_eq!(window.sum(last.plus(MINUTE * 2)).0, 0);
    }

    #[test]
    fn a_clock_that_goes_back_loses_nothing() {
        let mut window = Windowed::<Count>::new(START);
        for at in [START.plus(HOUR), START, START.plus(HOUR)] {
            window.record(at, |count| count.0 += 1);
        }
        assert_eq!(counted(&window, START.plus(HOUR), HOUR), 3);
    }

    #[test]
    fn quantiles_of_an_even_spread_are_near() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.quantile(0.5), latencies.max()), (None, None));
        (1..=1000).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        for (share, expected_ms) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0)] {
            let ms = latencies.quantile(share).expect("there are some").as_secs_f64() * 1000.0;
            assert!((ms / expected_ms - 1.0).abs() < 0.05, "{share}: {ms} ms");
        }
        assert_eq!(latencies.max(), Some(Duration::from_secs(1)));
        assert_eq!(latencies.quantile(1.0), latencies.max());
    }

    proptest! {
        #[test]
        fn a_quantile_is_in_the_bucket_of_the_value_that_it_is_of(mut us in prop::collection::vec(0_u64..200_000_000, 1..50), share in 0.0..1.0_f64) {
            let mut latencies = Latencies::default();
            let (mut left, mut right) = (Latencies::default(), Latencies::default());
            for (number, us) in us.iter().enumerate() {
                latencies.record(Duration::from_micros(*us));
                if number % 2 == 0 { &mut left } else { &mut right }.record(Duration::from_micros(*us));
            }
            left.merge(&right);
            prop_assert_eq!(&left, &latencies);
            us.sort_unstable();
            let rank = ((share * us.len() as f64).ceil() as usize).max(1);
            let found = latencies.quantile(share).expect("there are some").as_micros() as u64;
            let bucket = bucket_of(us[rank - 1]);
            prop_assert!(lower_bound(bucket) <= found && found <= latencies.upper_bound(bucket));
        }

        #[test]
        fn each_length_is_between_its_buckets_bounds(us in 0_u64..u64::MAX / 2) {
            let bucket = bucket_of(us);
            prop_assert!(lower_bound(bucket) <= us);
            prop_assert!(bucket + 1 == LATENCY_BUCKETS || us < lower_bound(bucket + 1));
        }
    }
}
