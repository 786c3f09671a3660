//! Bodies of both codings, whole, cut, changed and much too large, read as a request's are.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt as _, stream};
use http::HeaderValue;
use proptest::prelude::*;
use zstd::stream::raw::CParameter;

use super::*;

const MIB: usize = 1 << 20;

fn headers(codings: &[&'static str]) -> HeaderMap {
    codings.iter().map(|coding| (header::CONTENT_ENCODING, HeaderValue::from_static(coding))).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

fn encode(coding: &str, bytes: &[u8]) -> Vec<u8> {
    if coding == "gzip" { gzip(bytes) } else { zstd(bytes) }
}

/// A frame whose header asks for this window, whatever is in it.
fn zstd_of_window(log: u32, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_parameter(CParameter::WindowLog(log)).unwrap();
    encoder.write_all(bytes).unwrap();
    // Before the end, so that the size is not known when the header is written.
    encoder.flush().unwrap();
    encoder.finish().unwrap()
}

/// Sends a body in pieces, and counts what was asked for.
fn sent(pieces: Vec<Bytes>) -> (Body, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&taken);
    let pieces = stream::iter(pieces).map(move |piece| {
        counting.fetch_add(piece.len(), Ordering::Relaxed);
        Ok::<_, io::Error>(piece)
    });
    (Body::from_stream(pieces), taken)
}

async fn read(coding: &'static str, pieces: Vec<Bytes>) -> Result<Vec<u8>, Fault> {
    let mut incoming = Incoming::new(&headers(&[coding]), sent(pieces).0, usize::MAX).unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = incoming.next().await {
        let chunk = chunk?;
        assert!(!chunk.is_empty() && chunk.len() <= CHUNK_BYTES_MAX, "{}", chunk.len());
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

fn message(fault: Fault) -> String {
    let problem = fault.into_problem(|| unreachable!("no bytes are too many"));
    assert_eq!(problem.code(), Code::ValidationError);
    problem.into_faults().remove(0).message
}

fn blocking<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_come_out_as_they_went_in_however_they_are_cut(
        members in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 1..5),
        repeated in 0_usize..40,
        piece in 1_usize..3000,
    ) {
        for coding in ["gzip", "zstd"] {
            let members: Vec<Vec<u8>> = members.iter().map(|member| member.repeat(repeated.max(1))).collect();
            let encoded: Vec<u8> = members.iter().flat_map(|member| encode(coding, member)).collect();
            let pieces = encoded.chunks(piece).map(Bytes::copy_from_slice).collect();
            prop_assert_eq!(blocking(read(coding, pieces)).unwrap(), members.concat());
        }
    }
}

#[tokio::test]
async fn whatever_is_cut_off_is_missed() {
    let text = "all of it, and all of it again; ".repeat(20);
    for coding in ["gzip", "zstd"] {
        let encoded = Bytes::from(encode(coding, text.as_bytes()));
        for end in 0..encoded.len() {
            let why = message(read(coding, vec![encoded.slice(..end)]).await.unwrap_err());
            assert!(why.contains("ends before"), "{coding} {end}: {why}");
            let (head, tail) = (encoded.clone(), encoded.slice(..end));
            let second = read(coding, vec![head, tail]).await;
            assert_eq!(second.is_ok(), end == 0, "{coding}: {end} bytes of a second one");
        }
    }
}

#[tokio::test]
async fn what_follows_the_end_or_is_changed_is_refused() {
    let text = "all of it";
    for coding in ["gzip", "zstd"] {
        let mut encoded = encode(coding, text.as_bytes());
        for more in [&b"x"[..], b"\0", b"more than a header of either", text.as_bytes()] {
            let fault = read(coding, vec![encoded.clone().into(), Bytes::from_static(more)]).await.unwrap_err();
            message(fault);
        }
        for junk in [text.as_bytes(), &[0; 64], &[0xff; 64]] {
            let why = message(read(coding, vec![Bytes::copy_from_slice(junk)]).await.unwrap_err());
            assert!(why.contains("can't be decoded"), "{coding}: {why}");
        }
        encoded[1] ^= 1;
        message(read(coding, vec![encoded.into()]).await.unwrap_err());
    }
    let mut wrong_sum = gzip(text.as_bytes());
    let at = wrong_sum.len() - 8;
    wrong_sum[at] ^= 1;
    message(read("gzip", vec![wrong_sum.into()]).await.unwrap_err());
}

#[tokio::test]
async fn a_bomb_is_decoded_no_further_than_its_reader_asks() {
    for coding in ["gzip", "zstd"] {
        // A GiB of zeros, 16 MiB at a time.
        let member = Bytes::from(encode(coding, &vec![0; 16 * MIB]));
        let (body, taken) = sent(vec![member.clone(); 64]);
        let mut incoming = Incoming::new(&headers(&[coding]), body, usize::MAX).unwrap();
        let mut bytes = 0;
        while bytes <= MIB {
            let chunk = incoming.next().await.unwrap().unwrap();
            assert!(chunk.len() <= CHUNK_BYTES_MAX && chunk.iter().all(|byte| *byte == 0));
            bytes += chunk.len();
        }
        assert!(bytes <= MIB + CHUNK_BYTES_MAX);
        assert_eq!(taken.load(Ordering::Relaxed), member.len(), "{coding}: one piece, not all of them");
        // What is left comes as it was sent.
        let rest = axum::body::to_bytes(incoming.into_rest(), usize::MAX).await.unwrap();
        assert_eq!(rest.len(), 63 * member.len());
    }
}

#[tokio::test]
async fn encoded_bytes_that_give_nothing_have_a_bound_too() {
    for coding in ["gzip", "zstd"] {
        let nothing = Bytes::from(encode(coding, b""));
        let (body, taken) = sent(vec![nothing.clone(); 1000]);
        let mut incoming = Incoming::new(&headers(&[coding]), body, 100 * nothing.len()).unwrap();
        let fault = incoming.next().await.unwrap().unwrap_err();
        assert!(matches!(fault, Fault::TooLong), "{coding}: {fault}");
        assert_eq!(taken.load(Ordering::Relaxed), 101 * nothing.len());
    }
}

#[tokio::test]
async fn others_have_their_turn_while_much_is_decoded() {
    let zeros = vec![0; 16 * MIB];
    for coding in ["gzip", "zstd"] {
        let nothings = encode(coding, b"").repeat(100_000);
        let turns = [
            (encode(coding, &zeros), 16 * MIB / TURN_DECODED_BYTES),
            (nothings.clone(), nothings.len() / TURN_ENCODED_BYTES),
        ];
        for (encoded, expected) in turns {
            let mut incoming = Incoming::new(&headers(&[coding]), Body::from(encoded), usize::MAX).unwrap();
            let mut pauses = 0;
            loop {
                let polled = poll_fn(|context| Poll::Ready(incoming.poll_next(context))).await;
                match polled {
                    Poll::Pending => pauses += 1,
                    Poll::Ready(Some(chunk)) => drop(chunk.unwrap()),
                    Poll::Ready(None) => break,
                }
            }
            assert!((expected - 1..=expected + 1).contains(&pauses), "{coding}: {pauses} of {expected}");
        }
    }
}

#[tokio::test]
async fn a_window_has_8_mib_and_no_more() {
    let text = b"a small thing that wants much";
    for log in [10, 20, ZSTD_WINDOW_LOG_MAX] {
        assert_eq!(read("zstd", vec![zstd_of_window(log, text).into()]).await.unwrap(), text);
    }
    for log in [ZSTD_WINDOW_LOG_MAX + 1, 27] {
        let why = message(read("zstd", vec![zstd_of_window(log, text).into()]).await.unwrap_err());
        assert!(why.contains("more than 8 MiB"), "{why}");
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_is_not_said_to_encode_badly() {
    for coding in ["identity", "gzip", "zstd"] {
        let pieces = [
            Ok(Bytes::from(encode(coding, b"all of it")).slice(..5)),
            Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        ];
        let body = Body::from_stream(stream::iter(pieces));
        let mut incoming = Incoming::new(&headers(&[coding]), body, usize::MAX).unwrap();
        let fault = loop {
            if let Err(fault) = incoming.next().await.expect("no end") {
                break fault;
            }
        };
        assert!(matches!(fault, Fault::BrokeOff(_)), "{coding}: {fault}");
    }
}

#[test]
fn one_coding_is_known_by_its_name_in_any_case() {
    let known = |codings: &[&'static str]| Coding::of(&headers(codings)).ok();
    for (codings, coding) in [
        (&[][..], Coding::Identity),
        (&["identity"], Coding::Identity),
        (&["Identity", "identity"], Coding::Identity),
        (&["gzip"], Coding::Gzip),
        (&["GZip"], Coding::Gzip),
        (&["x-gzip"], Coding::Gzip),
        (&[" zstd "], Coding::Zstd),
    ] {
        assert_eq!(known(codings), Some(coding), "{codings:?}");
    }
    for codings in [
        &[""][..],
        &["br"],
        &["deflate"],
        &["gzip, zstd"],
        &["identity, gzip"],
        &["gzip", "gzip"],
        &["identity", "gzip"],
        &["gzip", "identity"],
        &["gzip;q=1"],
    ] {
        let problem = Coding::of(&headers(codings)).unwrap_err();
        assert_eq!(problem.code(), Code::UnsupportedMediaType, "{codings:?}");
        assert_eq!(problem.accept_encoding(), Some("gzip, zstd"));
    }
}
