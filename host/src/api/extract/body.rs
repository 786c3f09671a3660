//! A request's body, whole. Invariant: never more than the limit, never longer than the time a client has, and all
//! large bodies together within one budget. Never looks into it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRef, FromRequest, Request};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use http_body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
        let large_kib_max = LARGE_BODIES_KIB.max(limits.body_bytes_max.div_ceil(1024)).min(u32::MAX as usize);
        Intake {
            body_bytes_max: limits.body_bytes_max,
            timeout: limits.request_timeout,
            large_kib: Arc::new(Semaphore::new(large_kib_max)),
            large_kib_max,
        }
    }

    /// Reads the whole body.
    ///
    /// # Errors
    /// `MESSAGE_TOO_LARGE`, `REQUEST_TIMEOUT`, `BACKPRESSURE`, or `MALFORMED_JSON` for a body that breaks off.
    pub async fn read(&self, headers: &HeaderMap, body: Body) -> Result<RawBody, Problem> {
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > self.body_bytes_max as u64) {
            // Reading what a client waits to be asked for (`Expect: 100-continue`) would be to ask for it.
            if announced.is_some_and(|length| length <= DRAIN_BYTES_MAX) && !headers.contains_key(header::EXPECT) {
                drain(body).await;
            }
            return Err(self.too_large());
        }
        let mut reading = std::pin::pin!(self.collect(body));
        // Most bodies are here already: only a client that has to be waited for costs a timer.
        let first = poll_fn(|context| Poll::Ready(reading.as_mut().poll(context))).await;
        match first {
            Poll::Ready(read) => read,
            Poll::Pending => tokio::time::timeout(self.timeout, reading).await.unwrap_or_else(|_| {
                Err(Problem::new(
                    Code::RequestTimeout,
                    format!("The body did not arrive within {} s; send it faster or in parts.", self.timeout.as_secs()),
                ))
            }),
        }
    }

    async fn collect(&self, mut body: Body) -> Result<RawBody, Problem> {
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        let mut budget: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let frame = frame.map_err(|error| self.broke_off(error))?;
            let Ok(data) = frame.into_data() else { continue };
            let held = first.as_ref().map_or(rest.len(), Bytes::len);
            if held + data.len() > self.body_bytes_max {
                drop((first, rest, budget));
                drain(body).await;
                return Err(self.too_large());
            }
            self.book(&mut budget, held + data.len())?;
            // A body of one frame, the usual case, is not copied.
            match first.take() {
                None if rest.is_empty() => first = Some(data),
                None => rest.extend_from_slice(&data),
                Some(begun) => {
                    rest.extend_from_slice(&begun);
                    rest.extend_from_slice(&data);
                }
            }
        }
        Ok(RawBody { bytes: first.unwrap_or_else(|| rest.freeze()), _budget: budget })
    }

    /// What is said of a body whose connection ends in it.
    pub fn broke_off(&self, error: axum::Error) -> Problem {
        Problem::new(Code::MalformedJson, "The body broke off; send the whole request again.").because(error)
    }

    /// The body as it is, for who reads it as it comes.
    ///
    /// # Errors
    /// `UNSUPPORTED_MEDIA_TYPE` for one that is coded.
    pub fn decoded(&self, headers: &HeaderMap, body: Body) -> Result<Body, Problem> {
        expect_uncoded(headers)?;
        Ok(body)
    }

    /// Books what a body of `bytes` needs beyond what it has booked.
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
        expect_uncoded(&parts.headers)?;
        Arc::<Intake>::from_ref(state).read(&parts.headers, body).await
    }
}

/// A compressed body would be read as what it is not.
fn expect_uncoded(headers: &HeaderMap) -> Result<(), Problem> {
    let coded = |coding: &HeaderValue| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().any(coded) {
        return Err(Problem::new(Code::UnsupportedMediaType, "Send the body as it is, without a Content-Encoding."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

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
}
