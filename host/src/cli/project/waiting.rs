//! A line on stderr that says what is waited for. Invariant: draws only on a terminal, and never on stdout.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// See the module; taken away when it is dropped.
#[derive(Debug)]
pub(super) struct Waiting(ProgressBar);

impl Waiting {
    /// For `what`.
    pub(super) fn on(what: impl Into<String>) -> Waiting {
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message(what.into());
        bar.enable_steady_tick(Duration::from_millis(100));
        Waiting(bar)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
