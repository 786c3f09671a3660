//! Bodies that were sent compressed (RFC 9110 §8.4), decoded as they are read. Invariant: what is made of one chunk is
//! bounded, however much it decodes to, and no client keeps a thread for long; a body that ends too early, or goes on
//! after its end, is an error. Never counts what comes out: that is its reader's part.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::Stream;
use http::{HeaderMap, header};
use http_body::Body as _;
use tokio::io::AsyncRead;
use tokio_util::io::{StreamReader, poll_read_buf};

use crate::api::problem::{Code, Problem};

/// What `Accept-Encoding` says where another coding is refused.
const CODINGS: &str = "gzip, zstd";

/// Decoded bytes of one chunk at most.
const CHUNK_BYTES_MAX: usize = 16 * 1024;
/// Bytes that a decoder is given at once.
const SLICE_BYTES_MAX: usize = 16 * 1024;
/// Encoded and decoded bytes after which others have their turn. Encoded ones count too: a gzip member of nothing is 20
/// bytes and costs as much as one of some KiB.
const TURN_ENCODED_BYTES: usize = 64 * 1024;
const TURN_DECODED_BYTES: usize = 256 * 1024;

/// The window that RFC 8878 §3.1.1.1.2 wants every decoder to have; what needs more is refused.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
const ZSTD_WINDOW_BYTES_MAX: usize = 1 << ZSTD_WINDOW_LOG_MAX;
/// What a decoder of zstd takes beside its window: its tables, a block as it came, two as they are, and a chunk.
const ZSTD_STATE_BYTES: usize = 512 * 1024;
/// And one of gzip with its window, which is small and there from the beginning.
const GZIP_STATE_BYTES: usize = 96 * 1024;

/// What one decoder takes at most.
pub(super) const DECODER_BYTES_MAX: usize = ZSTD_STATE_BYTES + ZSTD_WINDOW_BYTES_MAX;

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// Not at all.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// # Errors
    /// `UNSUPPORTED_MEDIA_TYPE` for any but one coding of those that are known.
    fn of(headers: &HeaderMap) -> Result<Coding, Problem> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let Some(first) = values.next() else { return Ok(Coding::Identity) };
        let is_identity = |coding| coding == Some(Coding::Identity);
        match Coding::named(first.as_bytes()) {
            Some(coding)
                if values.all(|more| is_identity(Some(coding)) && is_identity(Coding::named(more.as_bytes()))) =>
            {
                Ok(coding)
            }
            _ => Err(Problem::new(
                Code::UnsupportedMediaType,
                "Send the body as it is, or with one Content-Encoding: gzip or zstd.",
            )
            .with_accept_encoding(CODINGS)),
        }
    }

    fn named(name: &[u8]) -> Option<Coding> {
        let name = name.trim_ascii();
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        // RFC 9110 §8.4.1.3: `x-gzip` is the same.
        let known = [(&b"identity"[..], Coding::Identity), (b"gzip", Coding::Gzip), (b"x-gzip", Coding::Gzip)];
        known.into_iter().chain([(&b"zstd"[..], Coding::Zstd)]).find_map(|(known, coding)| is(known).then_some(coding))
    }

    fn name(self) -> &'static str {
        match self {
            Coding::Identity => "identity",
            Coding::Gzip => "gzip",
            Coding::Zstd => "zstd",
        }
    }
}

/// Why a body can't be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// It broke off.
    #[error(transparent)]
    BrokeOff(axum::Error),
    /// It has more bytes, as they are sent, than its reader takes.
    #[error("too many encoded bytes")]
    TooLong,
    /// There is no room for its decoder to go on.
    #[error("no room for a decoder")]
    NoRoom(Problem),
    /// It is not what its Content-Encoding says.
    #[error("no {}: {error}", .coding.name())]
    Undecodable {
        /// What it says.
        coding: Coding,
        /// The decoder's word.
        error: io::Error,
    },
}

impl Fault {
    fn of(coding: Coding, error: io::Error) -> Fault {
        // What the decoder passes on of its source comes back as it was.
        error.downcast::<Fault>().unwrap_or_else(|error| Fault::Undecodable { coding, error })
    }

    /// The answer; `too_large` is the reader's word for a body beyond its limit.
    pub(crate) fn into_problem(self, too_large: impl FnOnce() -> Problem) -> Problem {
        match self {
            Fault::BrokeOff(error) => {
                Problem::new(Code::MalformedJson, "The body broke off; send the whole request again.").because(error)
            }
            Fault::TooLong => too_large(),
            Fault::NoRoom(problem) => problem,
            Fault::Undecodable { coding, error } => {
                let name = coding.name();
                let message = if error.kind() == io::ErrorKind::UnexpectedEof {
                    format!("is {name} by its Content-Encoding and ends before that does; send all of it")
                } else if error.to_string().contains("too much memory") {
                    "needs a zstd window of more than 8 MiB; compress it with a smaller one".to_owned()
                } else {
                    format!(
                        "is {name} by its Content-Encoding and can't be decoded; send valid {name} and nothing after it"
                    )
                };
                Problem::invalid_at("", message).because(error)
            }
        }
    }
}

/// A request's body, whose chunks are those of what was encoded.
#[derive(Debug)]
pub(crate) struct Incoming {
    source: Source,
    /// Where the next chunk is decoded to.
    room: BytesMut,
    turn: Turn,
}

#[derive(Debug)]
enum Source {
    Plain(Body),
    Gzip(Box<GzipDecoder<Encoded>>),
    Zstd(Box<ZstdDecoder<Encoded>>),
}

type Encoded = StreamReader<Slices, Bytes>;

impl Incoming {
    /// The body of a request with these headers. One that is encoded may have so many bytes as it is sent.
    ///
    /// # Errors
    /// `UNSUPPORTED_MEDIA_TYPE` where it is encoded in another way than gzip or zstd. Nothing has been read then.
    pub(crate) fn new(headers: &HeaderMap, body: Body, encoded_bytes_max: usize) -> Result<Incoming, Problem> {
        let encoded = |body| StreamReader::new(Slices::of(body, encoded_bytes_max));
        let source = match Coding::of(headers)? {
            Coding::Identity => Source::Plain(body),
            Coding::Gzip => {
                let mut decoder = GzipDecoder::new(encoded(body));
                // RFC 1952 §2.2 and RFC 8878 §3: what was put together of several is one.
                decoder.multiple_members(true);
                Source::Gzip(Box::new(decoder))
            }
            Coding::Zstd => {
                let window = DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX);
                let mut decoder = ZstdDecoder::with_params(encoded(body), &[window]);
                decoder.multiple_members(true);
                Source::Zstd(Box::new(decoder))
            }
        };
        Ok(Incoming { source, room: BytesMut::new(), turn: Turn::default() })
    }

    /// What its decoder takes at most when it has given so many bytes; nothing, where there is none.
    pub(crate) fn decoder_bytes(&self, given: usize) -> usize {
        match self.source {
            Source::Plain(_) => 0,
            Source::Gzip(_) => GZIP_STATE_BYTES,
            // Its window is filled by what it gives.
            Source::Zstd(_) => ZSTD_STATE_BYTES + given.min(ZSTD_WINDOW_BYTES_MAX),
        }
    }

    /// The next chunk; `None` after the last one.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, Fault>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// What was not read yet, as it is sent.
    pub(crate) fn into_rest(self) -> Body {
        match self.source {
            Source::Plain(body) => body,
            Source::Gzip(decoder) => decoder.into_inner().into_inner().body,
            Source::Zstd(decoder) => decoder.into_inner().into_inner().body,
        }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        let Incoming { source, room, turn } = self;
        let (coding, decoder): (Coding, &mut (dyn AsyncRead + Send + Unpin)) = match source {
            Source::Plain(body) => return poll_data(body, context).map_err(Fault::BrokeOff),
            Source::Gzip(decoder) => (Coding::Gzip, decoder),
            Source::Zstd(decoder) => (Coding::Zstd, decoder),
        };
        ready!(turn.poll(context, TURN_DECODED_BYTES));
        // The same room each time, if the last chunk is gone.
        room.reserve(CHUNK_BYTES_MAX.saturating_sub(room.capacity()));
        let read = poll_read_buf(Pin::new(decoder), context, &mut (&mut *room).limit(CHUNK_BYTES_MAX));
        match ready!(read) {
            Ok(0) => Poll::Ready(None),
            Ok(bytes) => {
                turn.used += bytes;
                Poll::Ready(Some(Ok(room.split().freeze())))
            }
            Err(error) => Poll::Ready(Some(Err(Fault::of(coding, error)))),
        }
    }
}

/// The next bytes of a body; its trailers are nobody's.
fn poll_data(body: &mut Body, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, axum::Error>>> {
    loop {
        match ready!(Pin::new(&mut *body).poll_frame(context)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Poll::Ready(Some(Ok(data)));
                }
            }
        }
    }
}

/// An encoded body in slices, so that a decoder that is given much comes back in between.
#[derive(Debug)]
struct Slices {
    body: Body,
    data: Bytes,
    bytes_left: usize,
    turn: Turn,
}

impl Slices {
    fn of(body: Body, bytes_max: usize) -> Slices {
        Slices { body, data: Bytes::new(), bytes_left: bytes_max, turn: Turn::default() }
    }
}

impl Stream for Slices {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let Slices { body, data, bytes_left, turn } = &mut *self;
        ready!(turn.poll(context, TURN_ENCODED_BYTES));
        while data.is_empty() {
            let next = match ready!(poll_data(body, context)) {
                None => return Poll::Ready(None),
                Some(next) => next.map_err(Fault::BrokeOff),
            };
            let counted = next.and_then(|next| {
                *bytes_left = bytes_left.checked_sub(next.len()).ok_or(Fault::TooLong)?;
                Ok(next)
            });
            match counted {
                Ok(next) => *data = next,
                Err(fault) => return Poll::Ready(Some(Err(io::Error::other(fault)))),
            }
        }
        let slice = data.split_to(data.len().min(SLICE_BYTES_MAX));
        turn.used += slice.len();
        Poll::Ready(Some(Ok(slice)))
    }
}

/// Lets others have their turn: what is here already would be decoded to its end otherwise, all in one.
#[derive(Debug, Default)]
struct Turn {
    used: usize,
}

impl Turn {
    fn poll(&mut self, context: &Context<'_>, bytes_max: usize) -> Poll<()> {
        if self.used < bytes_max {
            return Poll::Ready(());
        }
        self.used = 0;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
