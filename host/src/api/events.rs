//! Server-Sent Events (WHATWG HTML, section 9.2), as all streams of the API write them. Invariant: the head goes out at once,
//! and an event is whole in what carries it. Never knows what an event tells.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _};
use http::header::{self, HeaderValue};
use serde::Serialize;

/// What such an answer is called.
pub(super) const MEDIA_TYPE: &str = "text/event-stream";
/// A comment is sent this often when there is nothing else, so that proxies keep the connection and a client that went away
/// is noticed.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// An answer of events: `opening`, then what `rest` brings. The head goes out with the first bytes, so there are some at once.
pub(super) fn answer(opening: Bytes, rest: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    let opening = if opening.is_empty() { comment() } else { opening };
    let events = stream::iter([opening]).chain(rest).map(Ok::<_, Infallible>);
    (headers, Body::from_stream(events)).into_response()
}

/// One event.
pub(super) fn event<T: Serialize>(name: &str, data: &T) -> Bytes {
    let mut event = Vec::new();
    append(&mut event, name, None, data);
    event.into()
}

/// One more event, which a client that comes again may name by `id`.
pub(super) fn append<T: Serialize>(events: &mut Vec<u8>, name: &str, id: Option<&str>, data: &T) {
    events.extend_from_slice(b"event: ");
    events.extend_from_slice(name.as_bytes());
    if let Some(id) = id {
        events.extend_from_slice(b"\nid: ");
        events.extend_from_slice(id.as_bytes());
    }
    events.extend_from_slice(b"\ndata: ");
    // In one line: JSON has its line ends escaped.
    serde_json::to_writer(&mut *events, data).expect("an event carries plain JSON, written into memory");
    events.extend_from_slice(b"\n\n");
}

/// Says that there is nothing to say.
pub(super) fn comment() -> Bytes {
    Bytes::from_static(b": still here\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_begins_at_once_and_each_event_is_a_name_and_a_line() {
        let rest = || stream::iter([event("line", &"one\ntwo"), comment()]);
        let answered = answer(Bytes::new(), rest());
        assert_eq!(answered.headers()["content-type"], "text/event-stream");
        assert_eq!(answered.headers()["cache-control"], "no-cache");
        let text = axum::body::to_bytes(answered.into_body(), 1000).await.unwrap();
        assert_eq!(text, ": still here\n\nevent: line\ndata: \"one\\ntwo\"\n\n: still here\n\n");
        let mut opening = Vec::new();
        for (number, id) in [(1, Some("a.1")), (2, None)] {
            append(&mut opening, "message", id, &number);
        }
        let text = axum::body::to_bytes(answer(opening.into(), rest().take(0)).into_body(), 1000).await.unwrap();
        assert_eq!(text, "event: message\nid: a.1\ndata: 1\n\nevent: message\ndata: 2\n\n");
    }
}
