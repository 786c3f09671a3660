//! Whether a connection is still of use. Invariant: one without a request under way ends after [`IDLE_BEATS`] beats
//! without a byte written, after [`HEAD_BEATS`] if its client has begun a request head. Never ends one that is answering.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Two beats are the configured time for a request to arrive.
const HEAD_BEATS: u32 = 2;
/// Kept open between requests for four times as long: most clients' pools give up sooner.
const IDLE_BEATS: u32 = 8;

/// What a connection does, as seen from outside. All loads and stores are hints for a timer, so they are relaxed.
#[derive(Debug, Default)]
pub(super) struct Activity {
    requests: AtomicUsize,
    /// Bytes came in since the last request began or ended: the start of a head.
    head_begun: AtomicBool,
    wrote: AtomicBool,
}

impl Activity {
    /// A request's head is complete; the returned guard ends the request.
    pub(super) fn begin(self: &Arc<Activity>) -> Begun {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.head_begun.store(false, Ordering::Relaxed);
        Begun(Arc::clone(self))
    }
}

/// A request under way.
pub(super) struct Begun(Arc<Activity>);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.head_begun.store(false, Ordering::Relaxed);
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How often connections are looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pulse {
    /// Between two looks.
    pub(super) every: Duration,
}

impl Pulse {
    /// For clients that have this long to send a request's head.
    pub(super) fn of(request_timeout: Duration) -> Pulse {
        Pulse { every: (request_timeout / HEAD_BEATS).max(Duration::from_millis(1)) }
    }

    /// Watches one connection.
    pub(super) fn watch(self) -> Watch {
        Watch { silent_beats: 0 }
    }
}

/// What is remembered of one connection between beats.
#[derive(Debug)]
pub(super) struct Watch {
    silent_beats: u32,
}

/// What to do with a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Alive,
    /// End it between requests.
    Idle,
    /// Cut it.
    Dead,
}

impl Watch {
    pub(super) fn beat(&mut self, activity: &Activity) -> Verdict {
        let wrote = activity.wrote.swap(false, Ordering::Relaxed);
        if wrote || activity.requests.load(Ordering::Relaxed) > 0 {
            self.silent_beats = 0;
            return Verdict::Alive;
        }
        self.silent_beats += 1;
        match self.silent_beats {
            // One beat more: the first may have come right after the last byte.
            beats if beats > HEAD_BEATS && activity.head_begun.load(Ordering::Relaxed) => Verdict::Dead,
            beats if beats > IDLE_BEATS => Verdict::Dead,
            IDLE_BEATS => Verdict::Idle,
            _ => Verdict::Alive,
        }
    }
}

/// A stream that notes when bytes come and go.
pub(super) struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>) -> Watched {
        Watched { stream, activity }
    }

    fn wrote(&self, done: &Poll<io::Result<usize>>) {
        if matches!(done, Poll::Ready(Ok(1..))) {
            self.activity.wrote.store(true, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.head_begun.store(true, Ordering::Relaxed);
        }
        done
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(&done);
        done
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(&done);
        done
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(watch: &mut Watch, activity: &Activity, count: u32) -> Vec<Verdict> {
        (0..count).map(|_| watch.beat(activity)).filter(|verdict| *verdict != Verdict::Alive).collect()
    }

    #[test]
    fn a_slow_head_ends_sooner_than_an_idle_connection() {
        let pulse = Pulse::of(Duration::from_secs(30));
        let activity = Arc::new(Activity::default());
        assert_eq!(beats(&mut pulse.watch(), &activity, 9), [Verdict::Idle, Verdict::Dead]);
        activity.head_begun.store(true, Ordering::Relaxed);
        assert_eq!(beats(&mut pulse.watch(), &activity, 3), [Verdict::Dead]);
    }

    #[test]
    fn who_is_answering_or_being_answered_stays() {
        let activity = Arc::new(Activity::default());
        let mut watch = Pulse::of(Duration::from_secs(30)).watch();
        let begun = activity.begin();
        activity.head_begun.store(true, Ordering::Relaxed);
        assert!(beats(&mut watch, &activity, 100).is_empty());
        drop(begun);
        assert!(!activity.head_begun.load(Ordering::Relaxed));
        for _ in 0..20 {
            assert!(beats(&mut watch, &activity, IDLE_BEATS - 1).is_empty());
            activity.wrote.store(true, Ordering::Relaxed);
        }
    }
}
