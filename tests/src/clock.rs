//! The broker's clock, as a test moves it. Invariant: while a broker runs its clock only goes forward, whatever the file
//! says, and so does this one; the next one begins with what the file says. `advance` returns when the broker has seen it.
//! Never touches the system's clock.

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
    /// What the file says.
    said_ms: AtomicU64,
    /// What the broker that runs goes by: the most that the file has said since it started.
    ahead_ms: AtomicU64,
}

impl TestClock {
    /// A clock that does not run ahead yet, told to the broker through `file`.
    #[must_use]
    pub fn in_file(file: &Path) -> TestClock {
        let clock = TestClock(Arc::new(Inner {
            file: file.to_owned(),
            said_ms: AtomicU64::new(0),
            ahead_ms: AtomicU64::new(0),
        }));
        clock.write(0);
        clock
    }

    /// Moves the broker's time forward.
    pub async fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).expect("a test moves time by less than an age");
        let said = self.0.said_ms.fetch_add(millis, Ordering::SeqCst) + millis;
        self.0.ahead_ms.fetch_max(said, Ordering::SeqCst);
        self.write(said);
        wait::taken_up().await;
    }

    /// Sets the clock back, as far as to the system's time: a broker that runs goes on from where it is, the next one begins
    /// there.
    pub fn set_back(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).expect("a test moves time by less than an age");
        let back = |said: u64| Some(said.saturating_sub(millis));
        let before = self.0.said_ms.fetch_update(Ordering::SeqCst, Ordering::SeqCst, back).expect("always some");
        self.write(before.saturating_sub(millis));
    }

    /// A broker starts.
    pub(crate) fn begins(&self) {
        self.0.ahead_ms.store(self.0.said_ms.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// What time it is for the broker, in milliseconds since 1970: its own clock is never ahead of this.
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
