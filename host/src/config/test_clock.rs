//! Lets a test move the clock of a whole running broker through a file. Invariant: time only ever moves forward. Never
//! started with the production profile, which refuses the setting.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock::Clock;

/// How often the file is read: a test waits this long for time to move.
const EVERY: Duration = Duration::from_millis(5);

/// Reads the milliseconds that `clock` is to run ahead from `file`, for as long as the runtime lives. A file that is
/// missing or holds anything else leaves the clock as it is.
pub fn follow_test_clock(file: PathBuf, clock: Clock) {
    tokio::spawn(async move {
        loop {
            if let Some(ahead) = read(&file) {
                clock.set_offset(ahead);
            }
            tokio::time::sleep(EVERY).await;
        }
    });
}

/// A number that is only half written is a smaller one, and the clock ignores those.
fn read(file: &Path) -> Option<Duration> {
    let text = std::fs::read_to_string(file).ok()?;
    text.trim().parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[tokio::test]
    async fn the_clock_follows_the_file_forward() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("ahead");
        let clock = Clock::fixed(Timestamp(0));
        follow_test_clock(file.clone(), clock.clone());
        std::fs::write(&file, "60000\n").expect("written");
        clock.sleep_until(Timestamp(60_000)).await;
        std::fs::write(&file, "10").expect("written");
        tokio::time::sleep(EVERY * 4).await;
        assert_eq!(clock.now(), Timestamp(60_000));
    }
}
