//! A request's body, whole and decoded. Invariant: never more than the limit, never longer than the time a client has, and all
//! large bodies together within one budget. Never looks into it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRef, FromRequest, Request};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, header};
use http_body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::encoding::{DECODER_BYTES_MAX, Fault, Incoming};
use crate::api::problem::{Code, Problem};
use crate::config::Limits;

/// Bodies up to this size are not counted against the budget: with the limit on connections they are bounded already,
/// and they are what most requests have.
const SMALL_BODY_BYTES: usize = 64 * 1024;
/// KiB of large bodies in memory at once: 16 of the largest that are allowed by default.
const LARGE_BODIES_KIB: usize = 256 * 1024;

/// Bytes of a refused body that are still taken from the client: one that is cut off while it sends may never see why.
const DRAIN_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// And for how long.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// What bodies may cost.
#[derive(Debug)]
pub struct Intake {
    body_bytes_max: usize,
    timeout: Duration,
    large_kib: Arc<Semaphore>,
    large_kib_max: usize,
}

impl Intake {
    /// From the configuration.
    #[must_use]
    pub fn new(limits: &Limits) -> Intake {
        // One body must always fit, whatever the limit is set to.
        let largest = limits.body_bytes_max.saturating_add(DECODER_BYTES_MAX);
        let large_kib_max = LARGE_BODIES_KIB.max(largest.div_ceil(1024) + 1).min(u32::MAX as usize);
        Intake {
            body_bytes_max: limits.body_bytes_max,
            timeout: limits.request_timeout,
            large_kib: Arc::new(Semaphore::new(large_kib_max)),
            large_kib_max,
        }
    }

    /// Reads the whole body and decodes it; the limit holds for both, as it is sent and as it is then.
    ///
    /// # Errors
    /// `UNSUPPORTED_MEDIA_TYPE`, `MESSAGE_TOO_LARGE`, `REQUEST_TIMEOUT`, `BACKPRESSURE`, `VALIDATION_ERROR` for one that
    /// is not encoded as it says, or `MALFORMED_JSON` for a body that breaks off.
    pub async fn read(&self, headers: &HeaderMap, body: Body) -> Result<RawBody, Problem> {
        let body = Incoming::new(headers, body, self.body_bytes_max)?;
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > self.body_bytes_max as u64) {
            // Reading what a client waits to be asked for (`Expect: 100-continue`) would be to ask for it.
            if announced.is_some_and(|length| length <= DRAIN_BYTES_MAX) && !headers.contains_key(header::EXPECT) {
                drain(body.into_rest()).await;
            }
            return Err(self.too_large());
        }
        let mut reading = std::pin::pin!(self.collect(body));
        // Most bodies are here already: only a client that has to be waited for costs a timer.
        let first = poll_fn(|context| Poll::Ready(reading.as_mut().poll(context))).await;
        match first {
            Poll::Ready(read) => read,
            Poll::Pending => self.in_time(reading).await,
        }
    }

    /// What `reading` brings, in the time that a client has for that.
    ///
    /// # Errors
    /// `REQUEST_TIMEOUT`, or its own.
    pub async fn in_time<T>(&self, reading: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
        tokio::time::timeout(self.timeout, reading).await.unwrap_or_else(|_| {
            Err(Problem::new(
                Code::RequestTimeout,
                format!("The body did not arrive within {} s; send it faster or in parts.", self.timeout.as_secs()),
            ))
        })
    }

    /// Takes what is still sent of a body that is refused unread, within bounds: a client that is cut off while it sends may
    /// never see why.
    pub async fn turn_away(&self, headers: &HeaderMap, body: Body) {
        // One that waits to be asked is not asked.
        if !headers.contains_key(header::EXPECT) {
            drain(body).await;
        }
    }

    async fn collect(&self, mut body: Incoming) -> Result<RawBody, Problem> {
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        let mut budget: Option<OwnedSemaphorePermit> = None;
        // Given back with the decoder.
        let mut decoder_budget: Option<OwnedSemaphorePermit> = None;
        let is_decoded = body.decoder_bytes(0) > 0;
        self.book(&mut decoder_budget, body.decoder_bytes(0))?;
        while let Some(read) = body.next().await {
            let held = first.as_ref().map_or(rest.len(), Bytes::len);
            let fits =
                |data: Bytes| if held + data.len() > self.body_bytes_max { Err(Fault::TooLong) } else { Ok(data) };
            let data = match read.and_then(fits) {
                Ok(data) => data,
                Err(fault) => {
                    drop((first, rest, budget, decoder_budget));
                    if !matches!(fault, Fault::BrokeOff(_)) {
                        drain(body.into_rest()).await;
                    }
                    return Err(fault.into_problem(|| self.too_large()));
                }
            };
            self.book(&mut budget, held + data.len())?;
            self.book(&mut decoder_budget, body.decoder_bytes(held + data.len()))?;
            // A body of one frame, the usual case, is not copied. One that is decoded is: its chunk is a part of a large
            // room, which a small message would keep.
            match first.take() {
                None if rest.is_empty() && !is_decoded => first = Some(data),
                None => rest.extend_from_slice(&data),
                Some(begun) => {
                    rest.extend_from_slice(&begun);
                    rest.extend_from_slice(&data);
                }
            }
        }
        Ok(RawBody { bytes: first.unwrap_or_else(|| rest.freeze()), _budget: budget })
    }

    /// What is said of a body that can't be read on.
    pub fn broke_off(&self, error: axum::Error) -> Problem {
        let fault = match error.into_inner().downcast::<axum::Error>() {
            // A body in a body wraps its errors once more.
            Ok(inner) => return self.broke_off(*inner),
            Err(error) => error.downcast::<Fault>(),
        };
        let fault = fault.map_or_else(|error| Fault::BrokeOff(axum::Error::new(error)), |fault| *fault);
        fault.into_problem(|| self.too_large())
    }

    /// The body as it is decoded, for who reads it as it comes, however long it is. Its decoder is part of the budget.
    ///
    /// # Errors
    /// `UNSUPPORTED_MEDIA_TYPE` for one that is coded as nobody here knows, `BACKPRESSURE`.
    pub fn decoded(self: &Arc<Intake>, headers: &HeaderMap, body: Body) -> Result<Body, Problem> {
        let body = Incoming::new(headers, body, usize::MAX)?;
        if body.decoder_bytes(0) == 0 {
            return Ok(body.into_rest());
        }
        let mut budget = None;
        self.book(&mut budget, body.decoder_bytes(0))?;
        let intake = Arc::clone(self);
        let chunks = stream::unfold(Some((body, budget, 0_usize)), move |reading| {
            let intake = Arc::clone(&intake);
            async move {
                let (mut body, mut budget, given) = reading?;
                let read = body.next().await?.and_then(|data| {
                    let given = given.saturating_add(data.len());
                    intake.book(&mut budget, body.decoder_bytes(given)).map_err(Fault::NoRoom)?;
                    Ok((data, given))
                });
                Some(match read {
                    Ok((data, given)) => (Ok(data), Some((body, budget, given))),
                    Err(fault) => (Err(fault), None),
                })
            }
        });
        Ok(Body::from_stream(chunks))
    }

    /// Books what a body, or its decoder, of `bytes` needs beyond what it has booked.
    ///
    /// # Errors
    /// `BACKPRESSURE`.
    pub fn book(&self, budget: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), Problem> {
        if bytes <= SMALL_BODY_BYTES {
            return Ok(());
        }
        let wanted = bytes.div_ceil(1024).min(self.large_kib_max);
        let held = budget.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if wanted <= held {
            return Ok(());
        }
        let more = u32::try_from(wanted - held).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&self.large_kib).try_acquire_many_owned(more) else {
            return Err(Problem::new(Code::Backpressure, "Too many large bodies are being received; send it later."));
        };
        match budget {
            Some(budget) => budget.merge(permit),
            None => *budget = Some(permit),
        }
        Ok(())
    }

    fn too_large(&self) -> Problem {
        let max = self.body_bytes_max;
        Problem::new(Code::MessageTooLarge, format!("A body has at most {max} bytes; send less at once."))
    }
}

/// Reads on and keeps nothing.
async fn drain(mut body: Body) {
    let reading = async {
        let mut drained = 0;
        while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            drained += frame.data_ref().map_or(0, Bytes::len) as u64;
            if drained > DRAIN_BYTES_MAX {
                return;
            }
        }
    };
    // Whether it ended or not: the answer is the same.
    drop(tokio::time::timeout(DRAIN_TIME_MAX, reading).await);
}

/// A body and its share of the budget, given back when the request is done with it.
#[derive(Debug)]
pub struct RawBody {
    /// The bytes.
    pub bytes: Bytes,
    _budget: Option<OwnedSemaphorePermit>,
}

impl<S> FromRequest<S> for RawBody
where
    S: Send + Sync,
    Arc<Intake>: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<RawBody, Problem> {
        let (parts, body) = request.into_parts();
        Arc::<Intake>::from_ref(state).read(&parts.headers, body).await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    fn intake(body_bytes_max: usize) -> Intake {
        Intake::new(&Limits {
            body_bytes_max,
            head_bytes_max: 32 * 1024,
            request_timeout: Duration::from_millis(50),
            connections_max: 10,
            requests_max: 10,
            streams_max: 10,
            topics_max: 100,
            subscriptions_max: 100,
            captured: crate::capture::Room { bytes_max: 1 << 30, free_bytes_min: 0 },
            shutdown_timeout: Duration::from_secs(1),
        })
    }

    fn chunks(parts: &'static [&'static str]) -> Body {
        Body::from_stream(stream::iter(
            parts.iter().map(|part| Ok::<_, std::io::Error>(Bytes::from_static(part.as_bytes()))),
        ))
    }

    #[tokio::test]
    async fn a_body_is_put_together_up_to_its_limit() {
        let intake = intake(6);
        let read = intake.read(&HeaderMap::new(), chunks(&["ab", "cd", "ef"])).await.unwrap();
        assert_eq!(read.bytes, "abcdef");
        let error = intake.read(&HeaderMap::new(), chunks(&["abcd", "efg"])).await.unwrap_err();
        assert_eq!(error.code(), Code::MessageTooLarge);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, "7".parse().unwrap());
        let error = intake.read(&headers, Body::empty()).await.unwrap_err();
        assert_eq!(error.code(), Code::MessageTooLarge);
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_times_out() {
        let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let error = intake(6).read(&HeaderMap::new(), never).await.unwrap_err();
        assert_eq!(error.code(), Code::RequestTimeout);
    }

    #[tokio::test]
    async fn a_client_that_waits_to_be_asked_is_not_asked_for_too_much() {
        let asked = Body::from_stream(stream::poll_fn(|_| -> Poll<Option<Result<Bytes, std::io::Error>>> {
            unreachable!("reading is asking")
        }));
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, "7".parse().unwrap());
        headers.insert(header::EXPECT, "100-continue".parse().unwrap());
        let error = intake(6).read(&headers, asked).await.unwrap_err();
        assert_eq!(error.code(), Code::MessageTooLarge);
    }

    #[tokio::test]
    async fn large_bodies_share_a_budget_and_give_it_back() {
        let large = 1024 * 1024 * 200;
        let intake = intake(large);
        let body = || Body::from(vec![b'x'; large]);
        let first = intake.read(&HeaderMap::new(), body()).await.unwrap();
        let error = intake.read(&HeaderMap::new(), body()).await.unwrap_err();
        assert_eq!(error.code(), Code::Backpressure);
        drop(first);
        assert!(intake.read(&HeaderMap::new(), body()).await.is_ok());
    }

    #[tokio::test]
    async fn the_limit_holds_for_what_a_body_decodes_to() {
        let zeros = zstd::encode_all(&[0; 100][..], 3).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, "zstd".parse().unwrap());
        let read = intake(100).read(&headers, Body::from(zeros.clone())).await.unwrap();
        assert_eq!(read.bytes, [0; 100][..]);
        let error = intake(99).read(&headers, Body::from(zeros)).await.unwrap_err();
        assert_eq!(error.code(), Code::MessageTooLarge);
        let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let error = intake(100).read(&headers, never).await.unwrap_err();
        assert_eq!(error.code(), Code::RequestTimeout);
    }

    #[tokio::test]
    async fn decoders_are_part_of_the_budget_and_give_it_back() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, "zstd".parse().unwrap());
        let intake = Arc::new(intake(1024 * 1024));
        let first = Bytes::from(zstd::encode_all(&[0; 100][..], 3).unwrap()).slice(..8);
        let slow = || {
            let body = stream::iter([Ok::<_, std::io::Error>(first.clone())]).chain(stream::pending());
            let (intake, headers) = (Arc::clone(&intake), headers.clone());
            Box::pin(async move { intake.read(&headers, Body::from_stream(body)).await })
        };
        let mut waiting = Vec::new();
        let refused = loop {
            let mut reading = slow();
            match poll_fn(|context| Poll::Ready(reading.as_mut().poll(context))).await {
                Poll::Pending => waiting.push(reading),
                Poll::Ready(read) => break read.unwrap_err(),
            }
        };
        assert_eq!(refused.code(), Code::Backpressure);
        assert!((300..1000).contains(&waiting.len()), "{}", waiting.len());
        drop(waiting);
        assert_eq!(intake.large_kib.available_permits(), intake.large_kib_max);
        let whole = Body::from(zstd::encode_all(&[0; 100][..], 3).unwrap());
        let read = intake.read(&headers, whole).await.unwrap();
        assert_eq!(intake.large_kib.available_permits(), intake.large_kib_max, "a small body, and its decoder is gone");
        drop(read);
    }

    #[tokio::test]
    async fn a_body_that_is_read_as_it_comes_is_decoded_as_it_comes() {
        use std::io::Write as _;
        for coding in ["gzip", "zstd"] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_ENCODING, coding.parse().unwrap());
            let intake = Arc::new(intake(100));
            // A client that flushes wants what it has written so far to be read.
            let parts = if coding == "gzip" {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(b"one\n").unwrap();
                encoder.flush().unwrap();
                encoder.get_ref().clone()
            } else {
                let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
                encoder.write_all(b"one\n").unwrap();
                encoder.flush().unwrap();
                encoder.get_ref().clone()
            };
            let begun = || stream::iter([Ok::<_, std::io::Error>(Bytes::from(parts.clone()))]);
            let body = intake.decoded(&headers, Body::from_stream(begun().chain(stream::pending()))).unwrap();
            let mut chunks = body.into_data_stream();
            assert_eq!(chunks.next().await.unwrap().unwrap(), "one\n");
            assert!(intake.large_kib.available_permits() < intake.large_kib_max);
            drop(chunks);
            assert_eq!(intake.large_kib.available_permits(), intake.large_kib_max);
            let body = intake.decoded(&headers, Body::from_stream(begun())).unwrap();
            let mut chunks = body.into_data_stream();
            assert_eq!(chunks.next().await.unwrap().unwrap(), "one\n");
            let problem = intake.broke_off(chunks.next().await.unwrap().unwrap_err());
            assert_eq!(problem.code(), Code::ValidationError, "{coding}: it ends too early");
            assert!(chunks.next().await.is_none());
        }
    }
}
