//! A bar on stderr for long work. Invariant: draws only on a terminal, and never on stdout.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::store::embedded::Progress;

/// Parts of a bar that is known by its share.
const SHARES: u64 = 10_000;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct WorkBar(ProgressBar);

impl WorkBar {
    /// A bar that is not drawn yet.
    pub(super) fn new() -> WorkBar {
        let bar = ProgressBar::no_length();
        let style = ProgressStyle::with_template("{prefix:>9} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        // Drawn from a thread of its own, so that it lives while one large file is read.
        bar.enable_steady_tick(Duration::from_millis(200));
        WorkBar(bar)
    }

    /// A bar for what is known by its share alone.
    pub(super) fn of_share() -> WorkBar {
        let bar = ProgressBar::no_length();
        let style = ProgressStyle::with_template("[{bar:40}] {percent:>3} % {msg} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        bar.enable_steady_tick(Duration::from_millis(200));
        WorkBar(bar)
    }

    /// Shows which share of the work is done, 0 to 1, where that is known.
    pub(super) fn share(&self, done: Option<f64>, said: String) {
        self.0.set_message(said);
        if let Some(done) = done {
            self.0.set_length(SHARES);
            self.0.set_position((done * SHARES as f64) as u64);
        }
    }

    /// Shows how far the work is.
    pub(super) fn show(&self, progress: Progress) {
        match progress {
            Progress::Begins(what, bytes) => {
                self.0.set_prefix(what);
                self.0.reset();
                self.0.set_length(bytes);
            }
            Progress::Did(bytes) => self.0.inc(bytes),
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}
