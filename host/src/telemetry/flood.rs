//! What keeps the log's growth in bounds. Invariant: each place in the code writes at most [`LINES_MAX`] lines in a
//! [`SPAN`] of real time, whatever clients, plugins or a full disk do; what is left out is counted and told. Lines of
//! `debug` and `trace` pass: who asks for them wants them all. So do plugins' own, which have a bound of theirs.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntCounter;
use tracing::callsite::Identifier;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

use super::Stopwatch;

/// Lines of one place in the code in one span: enough to show a pattern, too few to fill a disk.
const LINES_MAX: u32 = 50;
/// How long they have to last.
const SPAN: Duration = Duration::from_secs(10);
/// Plugins' lines are bounded per plugin, and shown to their authors.
const PLUGINS: &str = "sluice::plugin";

/// Counted beside any registry: the log is there before the first one is made.
static LEFT_OUT: LazyLock<IntCounter> = LazyLock::new(|| {
    IntCounter::new("sluice_log_lines_left_out_total", "Lines that the log left out: the same was said too often.")
        .expect("the name is well formed")
});

/// The counter of lines that were left out.
#[must_use]
pub fn left_out() -> IntCounter {
    LEFT_OUT.clone()
}

/// Lets lines through, or not.
#[derive(Debug, Default)]
pub(super) struct Flood {
    /// One a place in the code, so their number is that of the binary's.
    places: Mutex<HashMap<Identifier, Window>>,
}

#[derive(Debug)]
struct Window {
    began: Stopwatch,
    lines: u32,
}

impl Window {
    /// Whether one more line fits, `elapsed` after this span began.
    fn takes(&mut self, elapsed: Duration) -> bool {
        if elapsed >= SPAN {
            *self = Window { began: Stopwatch::start(), lines: 0 };
        }
        self.lines = self.lines.saturating_add(1);
        self.lines <= LINES_MAX
    }
}

impl Flood {
    fn lets_through(&self, meta: &'static Metadata<'static>) -> bool {
        if *meta.level() > Level::INFO || meta.target() == PLUGINS {
            return true;
        }
        let mut places = self.places.lock();
        let new = || Window { began: Stopwatch::start(), lines: 0 };
        let window = places.entry(meta.callsite()).or_insert_with(new);
        let through = window.takes(window.began.elapsed());
        drop(places);
        if !through {
            LEFT_OUT.inc();
        }
        through
    }
}

impl<S: Subscriber> Filter<S> for Flood {
    fn enabled(&self, meta: &Metadata<'_>, _context: &Context<'_, S>) -> bool {
        !meta.is_span()
    }

    /// Spans are the collector's: a log that writes down their fields costs every request, and without a collector nobody
    /// else wants them, so they are not even made.
    fn callsite_enabled(&self, meta: &'static Metadata<'static>) -> Interest {
        if meta.is_span() { Interest::never() } else { Interest::sometimes() }
    }

    fn event_enabled(&self, event: &Event<'_>, _context: &Context<'_, S>) -> bool {
        self.lets_through(event.metadata())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_alone_makes_no_spans() {
        use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
        let log = tracing_subscriber::fmt::layer().with_writer(std::io::sink).with_filter(Flood::default());
        let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(log));
        assert!(tracing::error_span!("of nobody").is_disabled());
        assert!(tracing::enabled!(Level::INFO));
    }

    #[test]
    fn a_place_says_the_same_so_often_and_again_when_the_span_is_over() {
        let mut window = Window { began: Stopwatch::start(), lines: 0 };
        let said = (0..LINES_MAX + 10).filter(|_| window.takes(Duration::ZERO)).count();
        assert_eq!(said, LINES_MAX as usize);
        assert!(window.takes(SPAN));
    }
}
