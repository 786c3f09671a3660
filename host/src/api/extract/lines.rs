//! A body of lines. Invariant: lines are cut wherever frames end, and one that is too long is told and passed over; no more is
//! read than is taken. Never reads what stands in a line.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http_body::Body as _;
use tokio::sync::OwnedSemaphorePermit;

use super::Intake;
use crate::api::problem::Problem;

/// Lines of one run: what they cost together is shared, and the first one's result does not wait for long.
const RUN_LINES_MAX: usize = 256;
/// Bytes from which on a run is not waited for to grow.
const RUN_BYTES: usize = 256 * 1024;

/// Lines that came together.
#[derive(Debug)]
pub struct LineRun {
    /// All of them.
    pub bytes: Bytes,
    /// Each.
    pub lines: Vec<Line>,
}

/// One that is not empty.
#[derive(Debug)]
pub struct Line {
    /// Which, from 1.
    pub number: u64,
    /// Where it stands in the run; none if it is too long.
    pub range: Option<std::ops::Range<usize>>,
}

/// A body, cut into lines as it comes.
#[derive(Debug)]
pub struct Lines {
    body: Body,
    intake: Arc<Intake>,
    line_bytes_max: usize,
    /// What has come of lines that were not taken yet.
    held: BytesMut,
    /// Of it, where the line that is not whole yet begins.
    begun: usize,
    /// Up to where it was looked for an end.
    looked: usize,
    /// Whole lines in `held`.
    whole: Vec<Line>,
    /// What came with the first line, which was asked for by itself.
    ahead: Option<LineRun>,
    number: u64,
    /// The rest of a line that is too long is passed over.
    skips: bool,
    ended: bool,
    /// It broke off: said once what came whole is published.
    broken: Option<Problem>,
    /// Its share of what all large bodies may take.
    budget: Option<OwnedSemaphorePermit>,
}

impl Lines {
    /// Lines of `body` of at most so many bytes.
    #[must_use]
    pub fn new(body: Body, intake: Arc<Intake>, line_bytes_max: usize) -> Lines {
        Lines {
            body,
            intake,
            line_bytes_max,
            held: BytesMut::new(),
            begun: 0,
            looked: 0,
            whole: Vec::new(),
            ahead: None,
            number: 0,
            skips: false,
            ended: false,
            broken: None,
            budget: None,
        }
    }

    /// Some lines, as soon as there is one and no more are here already; none at the end. Dropped while it waits, it goes on where
    /// it was.
    ///
    /// # Errors
    /// When the body breaks off, or there is no room for it.
    pub async fn next(&mut self) -> Result<Option<LineRun>, Problem> {
        if let Some(run) = self.ahead.take() {
            return Ok(Some(run));
        }
        loop {
            let enough = self.whole.len() >= RUN_LINES_MAX || self.begun >= RUN_BYTES;
            match &self.broken {
                Some(problem) if self.whole.is_empty() => return Err(problem.clone()),
                // What came whole is published first: the client sent it.
                None if !self.ended && !enough => {}
                _ => return Ok(self.take()),
            }
            let mut frame = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context));
            let frame = if self.whole.is_empty() {
                frame.await
            } else {
                match (&mut frame).now_or_never() {
                    Some(frame) => frame,
                    None => return Ok(self.take()),
                }
            };
            match frame {
                None => self.end(),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.came(&data)?;
                    }
                }
                Some(Err(error)) => self.broken = Some(self.intake.broke_off(error)),
            }
        }
    }

    /// The first line by itself, in the time that a body has; none if there is no line. Those behind it are counted from 1.
    ///
    /// # Errors
    /// As for `next`; `REQUEST_TIMEOUT`.
    pub async fn first(&mut self) -> Result<Option<LineRun>, Problem> {
        let intake = Arc::clone(&self.intake);
        let Some(mut run) = intake.in_time(self.next()).await? else { return Ok(None) };
        let mut behind = run.lines.split_off(1);
        let before = run.lines.first().map_or(0, |first| first.number);
        self.number -= before;
        behind.iter_mut().for_each(|line| line.number -= before);
        self.ahead = (!behind.is_empty()).then(|| LineRun { bytes: run.bytes.clone(), lines: behind });
        Ok(Some(run))
    }

    fn came(&mut self, data: &[u8]) -> Result<(), Problem> {
        self.held.extend_from_slice(data);
        self.intake.book(&mut self.budget, self.held.len())?;
        while let Some(at) = self.held[self.looked..].iter().position(|byte| *byte == b'\n') {
            let end = self.looked + at;
            self.line(end);
            self.begun = end + 1;
            self.looked = self.begun;
        }
        self.looked = self.held.len();
        if self.looked - self.begun > self.line_bytes_max {
            self.skips = true;
        }
        if self.skips {
            self.held.truncate(self.begun);
            self.looked = self.begun;
        }
        Ok(())
    }

    /// The line up to `end` is whole.
    fn line(&mut self, end: usize) {
        self.number += 1;
        let range = self.begun..end;
        if std::mem::take(&mut self.skips) || range.len() > self.line_bytes_max {
            self.whole.push(Line { number: self.number, range: None });
        } else if !self.held[range.clone()].trim_ascii().is_empty() {
            self.whole.push(Line { number: self.number, range: Some(range) });
        }
    }

    /// The last line needs no end.
    fn end(&mut self) {
        self.ended = true;
        if self.skips || self.begun < self.held.len() {
            self.line(self.held.len());
            self.begun = self.held.len();
            self.looked = self.begun;
        }
    }

    fn take(&mut self) -> Option<LineRun> {
        if self.whole.is_empty() {
            return None;
        }
        let bytes = self.held.split_to(self.begun).freeze();
        self.looked -= self.begun;
        self.begun = 0;
        let run = LineRun { bytes, lines: std::mem::take(&mut self.whole) };
        // The share is given back with the run's bytes, nearly: what is booked anew is for what is left.
        self.budget = None;
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use futures_util::stream;

    use super::*;
    use crate::config::Limits;

    fn lines(frames: &[&str], line_bytes_max: usize) -> Lines {
        let frames: Vec<Result<Bytes, Infallible>> =
            frames.iter().map(|frame| Ok(Bytes::copy_from_slice(frame.as_bytes()))).collect();
        let limits = Limits {
            body_bytes_max: 1 << 20,
            head_bytes_max: 1 << 15,
            request_timeout: Duration::from_secs(1),
            connections_max: 1,
            requests_max: 1,
            streams_max: 1,
            topics_max: 1,
            subscriptions_max: 1,
            captured: crate::capture::Room { bytes_max: 1 << 30, free_bytes_min: 0 },
            shutdown_timeout: Duration::from_secs(1),
        };
        Lines::new(Body::from_stream(stream::iter(frames)), Arc::new(Intake::new(&limits)), line_bytes_max)
    }

    /// All lines with their numbers; `!` for one that is too long.
    async fn all(mut lines: Lines) -> Vec<(u64, String)> {
        let mut found = Vec::new();
        while let Some(run) = lines.next().await.unwrap() {
            for line in run.lines {
                let text =
                    line.range.map_or("!".into(), |range| String::from_utf8_lossy(&run.bytes[range]).into_owned());
                found.push((line.number, text));
            }
        }
        found
    }

    fn numbered(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
        expected.iter().map(|(number, text)| (*number, (*text).to_owned())).collect()
    }

    #[tokio::test]
    async fn lines_are_cut_wherever_frames_end() {
        let text = "one\n\ntwo\r\n  \nthree";
        let expected = numbered(&[(1, "one"), (3, "two\r"), (5, "three")]);
        for size in 1..=text.len() {
            let frames: Vec<&str> =
                text.as_bytes().chunks(size).map(|part| std::str::from_utf8(part).unwrap()).collect();
            assert_eq!(all(lines(&frames, 100)).await, expected, "frames of {size}");
        }
        assert_eq!(all(lines(&[], 100)).await, []);
        assert_eq!(all(lines(&["\n\n"], 100)).await, []);
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_told_and_the_others_are_read() {
        let text = "12345\n123456\n1\n1234567890123\n12345";
        let expected = numbered(&[(1, "12345"), (2, "!"), (3, "1"), (4, "!"), (5, "12345")]);
        for size in 1..=text.len() {
            let frames: Vec<&str> =
                text.as_bytes().chunks(size).map(|part| std::str::from_utf8(part).unwrap()).collect();
            let mut lines = lines(&frames, 5);
            let mut most = 0;
            let mut found = Vec::new();
            while let Some(run) = lines.next().await.unwrap() {
                most = most.max(lines.held.len());
                for line in run.lines {
                    let range = line.range.map(|range| String::from_utf8_lossy(&run.bytes[range]).into_owned());
                    found.push((line.number, range.unwrap_or("!".into())));
                }
            }
            assert_eq!(found, expected, "frames of {size}");
            assert!(most <= text.len(), "{most}");
        }
    }

    #[tokio::test]
    async fn the_first_line_comes_by_itself_and_those_behind_it_are_counted_without_it() {
        let text = "\nfirst\n\ntwo\nthree\n";
        for size in 1..=text.len() {
            let frames: Vec<&str> =
                text.as_bytes().chunks(size).map(|part| std::str::from_utf8(part).unwrap()).collect();
            let mut lines = lines(&frames, 100);
            let first = lines.first().await.unwrap().unwrap();
            assert_eq!(first.lines.len(), 1);
            assert_eq!(&first.bytes[first.lines[0].range.clone().unwrap()], b"first");
            assert_eq!(all(lines).await, numbered(&[(2, "two"), (3, "three")]), "frames of {size}");
        }
        assert!(lines(&["\n"], 100).first().await.unwrap().is_none());
        let mut long = lines(&["123456\n1\n"], 5);
        assert!(long.first().await.unwrap().unwrap().lines[0].range.is_none());
        assert_eq!(all(long).await, numbered(&[(1, "1")]));
    }

    #[tokio::test]
    async fn a_run_ends_with_so_many_lines() {
        let text = "x\n".repeat(RUN_LINES_MAX * 2 + 3);
        let frames: Vec<&str> = text.as_bytes().chunks(64).map(|part| std::str::from_utf8(part).unwrap()).collect();
        let mut lines = lines(&frames, 100);
        let mut counts = Vec::new();
        while let Some(run) = lines.next().await.unwrap() {
            counts.push(run.lines.len());
        }
        assert!(counts.iter().all(|count| *count <= RUN_LINES_MAX + 64), "{counts:?}");
        assert_eq!(counts.iter().sum::<usize>(), RUN_LINES_MAX * 2 + 3);
    }
}
