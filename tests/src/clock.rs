//! The broker's clock, as a test moves it. Invariant: it only goes forward, and `advance` returns when the broker has
//! seen it. Never touches the system's clock.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::wait;

/// The broker reads the file every 5 ms.
#[derive(Debug, Clone)]
pub struct TestClock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    ahead_ms: AtomicU64,
}

impl TestClock {
    /// A clock that does not run ahead yet, told to the broker through `file`.
    #[must_use]
    pub fn in_file(file: &Path) -> TestClock {
        let clock = TestClock(Arc::new(Inner { file: file.to_owned(), ahead_ms: AtomicU64::new(0) }));
        clock.write(0);
        clock
    }

    /// Moves the broker's time forward.
    pub async fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).expect("a test moves time by less than an age");
        let ahead = self.0.ahead_ms.fetch_add(millis, Ordering::SeqCst) + millis;
        self.write(ahead);
        wait::taken_up().await;
    }

    /// What time it is for the broker, in milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        system_ms() + i64::try_from(self.0.ahead_ms.load(Ordering::SeqCst)).expect("less than an age")
    }

    /// What time it is for the broker, as RFC 3339.
    #[must_use]
    pub fn now_rfc3339(&self) -> String {
        jiff::Timestamp::from_millisecond(self.now_ms()).expect("a time of this age").to_string()
    }

    /// Written beside and moved into place, so that the broker never reads half a number.
    fn write(&self, ahead_ms: u64) {
        let beside = self.0.file.with_extension("new");
        std::fs::write(&beside, ahead_ms.to_string()).expect("the clock file can be written");
        std::fs::rename(&beside, &self.0.file).expect("the clock file can be replaced");
    }
}

#[expect(clippy::disallowed_methods, reason = "the suites stand outside the broker and live in the system's time")]
fn system_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).expect("a time of this age")
}
