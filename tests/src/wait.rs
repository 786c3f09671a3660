//! Waiting for a condition. Invariant: every wait ends, and one that ends in vain says what it waited for. The only
//! place in the suites that lets real time pass; nothing here decides what time it is for the broker.

use std::time::Duration;

/// Long enough for a debug build on a busy machine with two cores; a condition that holds ends the wait at once.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks: often enough that a suite does not feel it, seldom enough that looking costs nothing.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Polls until `look` returns `Some`, at most [`PATIENCE`].
///
/// # Panics
/// When the time is up, with `what` was awaited.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look).await
}

/// Polls until `look` returns `Some`, at most `patience`.
///
/// # Panics
/// When the time is up, with `what` was awaited.
pub async fn within<T>(patience: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    match tokio::time::timeout(patience, looking).await {
        Ok(found) => found,
        Err(_) => panic!("waited {patience:?} in vain: {what}"),
    }
}

/// Polls until `count` is at least `enough`, for as long as it grows within [`PATIENCE`].
///
/// # Panics
/// When it stands still, with `what` is counted and how far it came.
pub async fn while_it_grows(what: &str, enough: usize, count: impl Fn() -> usize) {
    loop {
        let so_far = count();
        if so_far >= enough {
            return;
        }
        until(&format!("{what}: {so_far} of {enough}"), async || (count() > so_far).then_some(())).await;
    }
}

/// Polls until `look` returns `Some`, and answers how long that took: to be printed, never judged. At most four times [`PATIENCE`]: it is
/// for plugins that are taken in, and brokers of a fleet compile them one after the other.
///
/// # Panics
/// When the time is up, with `what` was awaited.
#[expect(clippy::disallowed_methods, reason = "the suites stand outside the broker and live in the system's time")]
pub async fn timed(what: &str, look: impl AsyncFnMut() -> Option<()>) -> Duration {
    let began = std::time::Instant::now();
    within(4 * PATIENCE, what, look).await;
    began.elapsed()
}

/// Lets so much time pass, for load that is to last or to leave room for others. What a test asserts waits for a condition.
pub async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Returns when a broker that polls a file every 5 ms has certainly read it, were it starved for twenty of its turns.
pub async fn taken_up() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}
