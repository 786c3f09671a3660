//! What a broker knows of its own place in the fleet. Invariant: it is inside only while the others count it, and only once it
//! knows all that was changed before they did: who comes, or comes back, follows first.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::catalog::members::{ALIVE, Heard};
use crate::clock::Timestamp;
use crate::telemetry::Stopwatch;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Standing {
    now: Mutex<Now>,
    entered: Notify,
}

#[derive(Debug, Default)]
struct Now {
    /// Since it last showed itself; none while another one has its name.
    shown: Option<Stopwatch>,
    /// When that was, by the database's time.
    shown_at: Option<Timestamp>,
    /// Whether it takes requests, and says so.
    serves: bool,
    place: Place,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    Outside,
    /// Counted, and inside once it has followed up to this version of the catalog.
    Following(u64),
    Inside,
}

impl Now {
    fn is_counted(&self) -> bool {
        self.shown.as_ref().is_some_and(|shown| shown.elapsed() < ALIVE)
    }
}

impl Standing {
    /// What came of showing itself, which began with `watch`; whether it was not counted before that. A machine that stood still
    /// has not seen time pass: the database has.
    pub(super) fn heard(&self, heard: Option<&Heard>, watch: Stopwatch) -> bool {
        let mut now = self.now.lock();
        let at = heard.and_then(|heard| if let Heard::Counted { at, .. } = heard { Some(*at) } else { None });
        let stood_still = now.shown_at.zip(at).is_some_and(|(before, at)| at >= before.plus(ALIVE));
        now.shown_at = at.or(now.shown_at);
        let lapsed = !now.is_counted() || stood_still;
        if lapsed || matches!(heard, Some(Heard::Taken | Heard::Moved)) {
            now.place = Place::Outside;
        }
        match heard {
            Some(Heard::Counted { .. }) => now.shown = Some(watch),
            Some(Heard::Taken | Heard::Moved) => now.shown = None,
            None => {}
        }
        lapsed
    }

    /// It takes requests from now on, while it is inside.
    pub(super) fn serves(&self) {
        self.now.lock().serves = true;
    }

    pub(super) fn is_serving(&self) -> bool {
        self.now.lock().serves
    }

    /// Whether it is counted and does not know yet what it has to follow.
    pub(super) fn is_to_follow(&self) -> bool {
        let now = self.now.lock();
        now.place == Place::Outside && now.is_counted()
    }

    /// Asked after it was counted as one that serves.
    pub(super) fn follows(&self, version: u64) {
        let mut now = self.now.lock();
        if now.place == Place::Outside && now.is_counted() {
            now.place = Place::Following(version);
        }
    }

    pub(super) fn has_followed(&self, followed: u64) {
        let mut now = self.now.lock();
        if matches!(now.place, Place::Following(version) if followed >= version) && now.is_counted() {
            now.place = Place::Inside;
            self.entered.notify_waiters();
        }
    }

    pub(super) fn is_inside(&self) -> bool {
        let now = self.now.lock();
        now.place == Place::Inside && now.is_counted()
    }

    /// Waits until it is inside.
    pub(super) async fn inside(&self) {
        loop {
            let entered = self.entered.notified();
            if self.is_inside() {
                return;
            }
            entered.await;
        }
    }

    /// Waits until the others don't count it any more.
    pub(super) async fn lapse(&self) {
        let left = {
            let now = self.now.lock();
            now.shown
                .as_ref()
                .filter(|_| now.is_counted())
                .map_or(Duration::MAX, |shown| ALIVE.saturating_sub(shown.elapsed()))
        };
        if left == Duration::MAX {
            return std::future::pending().await;
        }
        tokio::time::sleep(left).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const COUNTED: Heard = Heard::Counted { drain: false, at: Timestamp(0) };

    #[tokio::test]
    async fn who_is_counted_is_inside_once_it_has_followed() {
        let standing = Standing::default();
        assert!(!standing.is_to_follow() && standing.inside().now_or_never().is_none());
        standing.heard(Some(&COUNTED), Stopwatch::start());
        standing.has_followed(100);
        assert!(standing.is_to_follow() && !standing.is_inside());
        standing.follows(7);
        standing.has_followed(6);
        assert!(!standing.is_inside() && !standing.is_to_follow());
        standing.has_followed(7);
        assert!(standing.is_inside() && standing.inside().now_or_never().is_some());
        // A database that does not answer for a while changes nothing yet.
        standing.heard(None, Stopwatch::start());
        assert!(standing.is_inside());
    }

    #[tokio::test]
    async fn who_has_lost_its_name_or_was_not_seen_for_long_follows_again() {
        let standing = Standing::default();
        let enter = || {
            standing.heard(Some(&COUNTED), Stopwatch::start());
            standing.follows(1);
            standing.has_followed(1);
        };
        enter();
        standing.heard(Some(&Heard::Taken), Stopwatch::start());
        assert!(!standing.is_inside());
        enter();
        assert!(standing.is_inside());
        tokio::time::timeout(ALIVE * 2, standing.lapse()).await.expect("it is not seen for too long");
        assert!(!standing.is_inside());
        // Shown again, it has to follow what was changed meanwhile, though it has followed that version.
        standing.heard(Some(&COUNTED), Stopwatch::start());
        standing.has_followed(1);
        assert!(!standing.is_inside() && standing.is_to_follow());
    }

    #[tokio::test]
    async fn who_stood_still_with_its_machine_follows_again() {
        let standing = Standing::default();
        let seen = |ms| standing.heard(Some(&Heard::Counted { drain: false, at: Timestamp(ms) }), Stopwatch::start());
        assert!(seen(1_000));
        standing.follows(1);
        standing.has_followed(1);
        assert!(!seen(1_500) && standing.is_inside());
        // Its own time has not passed meanwhile.
        assert!(seen(61_500) && !standing.is_inside() && standing.is_to_follow());
        standing.follows(2);
        standing.has_followed(2);
        // A database's clock that is set back says nothing.
        assert!(!seen(1_000) && !seen(1_500) && standing.is_inside());
    }
}
