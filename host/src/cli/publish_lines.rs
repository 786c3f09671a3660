//! `sluice publish --ndjson`: each line of a file or of standard input is a message. Invariant: lines go out in order, as they come
//! (with `--atomic` in one request), and what is told as accepted is durable. Never sends a line again: after a broken
//! connection it says up to which one is known.

use std::io::{self, BufRead as _, BufReader, Read};
use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::arguments::{INPUT_BYTES_MAX, LINE_BYTES_MAX};
use super::client::{Client, Query};
use super::failure::{Failure, Refusal};
use super::publish::{Envelope, PublishArgs};
use super::work_bar::WorkBar;
use crate::store::embedded::Progress;

/// Messages that can be stored all or none: what the API takes in one request.
const ATOMIC_ITEMS: u64 = 10_000;
/// Refused lines that are told; the rest are counted.
const REFUSALS_SHOWN: u64 = 10;
/// Bytes that go out together when lines come faster than they are taken.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that wait to go out.
const CHUNKS_AHEAD: usize = 2;

/// What became of the lines so far.
#[derive(Debug, Default)]
struct Tally {
    accepted: u64,
    refused: u64,
}

impl Tally {
    fn answered(&self) -> u64 {
        self.accepted + self.refused
    }
}

/// Publishes all lines.
pub(super) async fn run(args: &PublishArgs, client: &Client) -> Result<(), Failure> {
    let mut tally = Tally::default();
    let input = Input::of(args)?;
    if args.atomic {
        all_or_none(args, client, input, &mut tally).await?;
    } else {
        as_they_come(args, client, input, &mut tally).await?;
    }
    finish(args, &tally)
}

/// What is known, for who has to decide what to send again.
fn note(args: &PublishArgs, tally: &Tally, of_the_others: &str) -> Result<(), Failure> {
    let (answered, accepted) = (tally.answered(), tally.accepted);
    args.client.output().note(&format!("{answered} messages were answered ({accepted} accepted); {of_the_others}"))
}

/// One stream of lines, and of answers.
async fn as_they_come(args: &PublishArgs, client: &Client, input: Input, tally: &mut Tally) -> Result<(), Failure> {
    let Input { name, lines, bytes } = input;
    let bar = bytes.map(|bytes| {
        let bar = WorkBar::new();
        bar.show(Progress::Begins("sending", bytes));
        bar
    });
    let (chunks, sent) = mpsc::channel(CHUNKS_AHEAD);
    let (has_read, reading) = oneshot::channel();
    let envelope = Some(args.envelope.clone());
    let feed = Feed { envelope, topic: args.topic.clone(), lines_max: u64::MAX, chunks, bar: bar.clone() };
    // A thread of its own, which nobody waits for: standard input may not end, and can't be asked whether there is more.
    std::thread::spawn(move || {
        let read = feed.read(lines);
        // Said before the last chunk's sender is dropped with `feed`, and so before the broker can know that it was the last.
        drop(has_read.send(read));
        drop(feed);
    });
    let ended = told(args, client, sent, tally).await;
    if let Some(bar) = bar {
        bar.end();
    }
    if ended.is_err() {
        note(args, tally, "of those after them nothing is known but what follows")?;
        return ended;
    }
    let read = reading.await.unwrap_or_else(|_| Err(io::Error::other("reading it broke off")));
    if read.is_err() {
        note(args, tally, "none was sent after them")?;
    }
    read.map_err(Failure::io(name))
}

/// Takes the answers, to the last.
async fn told(
    args: &PublishArgs,
    client: &Client,
    sent: mpsc::Receiver<Bytes>,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let mut answers = client.post_lines(&["messages", "publish", "stream"], ReceiverStream::new(sent)).await?;
    while let Some(answer) = answers.next().await? {
        if answer.get("summary").is_some() {
            return answer.get("error").map_or(Ok(()), |error| Err(Refusal::of_item(error).into()));
        }
        take(args, tally, answer["line"].as_u64().unwrap_or_default(), answer.get("error"))?;
    }
    Err(client.foreign("the stream of answers ends without its last line".to_owned()))
}

fn take(args: &PublishArgs, tally: &mut Tally, line: u64, error: Option<&Value>) -> Result<(), Failure> {
    let Some(error) = error else {
        tally.accepted += 1;
        return Ok(());
    };
    tally.refused += 1;
    if tally.refused > REFUSALS_SHOWN {
        return Ok(());
    }
    args.client.output().note(&format!("message {line}: {}", Refusal::of_item(error)))
}

/// Reads lines, and makes messages of them.
pub(super) struct Feed {
    /// What stands around a payload; none: each line is a message already.
    pub(super) envelope: Option<Envelope>,
    /// Where messages go.
    pub(super) topic: String,
    /// Not more than so many lines.
    pub(super) lines_max: u64,
    /// Where to.
    pub(super) chunks: mpsc::Sender<Bytes>,
    /// Shows how much was read.
    pub(super) bar: Option<WorkBar>,
}

impl Feed {
    pub(super) fn read(&self, mut lines: Lines) -> io::Result<()> {
        let (mut chunk, mut line) = (Vec::new(), Vec::new());
        let (mut seen, mut left) = (0, self.lines_max);
        loop {
            let read = next_line(&mut lines, &mut line);
            if read.is_ok() && !line.trim_ascii().is_empty() {
                left -= 1;
                match &self.envelope {
                    Some(envelope) => append(&mut chunk, envelope, &self.topic, &line),
                    None => chunk.extend([line.trim_ascii(), b"\n"].concat()),
                }
            }
            seen += line.len() as u64;
            let last = !matches!(read, Ok(true)) || left == 0;
            // What has come goes out before more is waited for.
            if (last || chunk.len() >= CHUNK_BYTES || !lines.buffer().contains(&b'\n')) && !chunk.is_empty() {
                if self.chunks.blocking_send(std::mem::take(&mut chunk).into()).is_err() {
                    return Ok(()); // The broker has ended the stream, and said why.
                }
                if let Some(bar) = &self.bar {
                    bar.show(Progress::Did(std::mem::take(&mut seen)));
                }
            }
            if last {
                return read.map(drop);
            }
        }
    }
}

/// Reads a line; false if there is none.
fn next_line(lines: &mut Lines, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', line)?;
    if line.len() as u64 == LINE_BYTES_MAX && !line.ends_with(b"\n") {
        return Err(io::Error::other(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
    }
    Ok(!line.is_empty())
}

fn append(chunk: &mut Vec<u8>, envelope: &Envelope, topic: &str, line: &[u8]) {
    let message = Value::Object(envelope.around(topic, line.trim_ascii()));
    chunk.extend_from_slice(message.to_string().as_bytes());
    chunk.push(b'\n');
}

/// One request with all lines.
async fn all_or_none(args: &PublishArgs, client: &Client, input: Input, tally: &mut Tally) -> Result<(), Failure> {
    let Input { name, mut lines, .. } = input;
    let (mut batch, mut line, mut items) = (Vec::new(), Vec::new(), 0);
    while next_line(&mut lines, &mut line).map_err(Failure::io(name.clone()))? {
        if line.trim_ascii().is_empty() {
            continue;
        }
        items += 1;
        if items > ATOMIC_ITEMS {
            return Err(Failure::Usage(format!("--atomic takes {ATOMIC_ITEMS} lines at most; nothing was sent")));
        }
        append(&mut batch, &args.envelope, &args.topic, &line);
        if batch.len() as u64 > INPUT_BYTES_MAX {
            return Err(Failure::Usage(format!("--atomic takes {INPUT_BYTES_MAX} bytes at most; nothing was sent")));
        }
    }
    if items == 0 {
        return Ok(());
    }
    let query = Query::default().with("atomic", Some(true));
    let sent = client.post_ndjson(&["messages", "publish", "batch"], query, batch).await;
    if matches!(sent, Err(Failure::Unreachable { .. } | Failure::Foreign { .. })) {
        note(args, tally, "all are stored or none, and which is not known")?;
    }
    let answer = sent?;
    for (line, result) in (1..).zip(client.items(&answer, "results")?) {
        take(args, tally, line, result.get("error"))?;
    }
    Ok(())
}

pub(super) type Lines = BufReader<Box<dyn Read + Send>>;

/// The lines of a file, or of standard input.
pub(super) fn lines_of(path: &Path) -> Result<Lines, Failure> {
    if is_stdin(path) {
        return Ok(BufReader::with_capacity(CHUNK_BYTES, Box::new(io::stdin())));
    }
    let file = std::fs::File::open(path).map_err(Failure::io(path.display().to_string()))?;
    Ok(BufReader::with_capacity(CHUNK_BYTES, Box::new(file)))
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Where lines come from.
struct Input {
    name: String,
    lines: Lines,
    /// How many there are, if that is known.
    bytes: Option<u64>,
}

impl Input {
    fn of(args: &PublishArgs) -> Result<Input, Failure> {
        let (name, read, bytes): (_, Box<dyn Read + Send>, _) = match (&args.file, args.payload.as_deref()) {
            (Some(path), _) if !is_stdin(path) => {
                let name = path.display().to_string();
                let file = std::fs::File::open(path).map_err(Failure::io(name.clone()))?;
                let bytes = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
                (name, Box::new(file), bytes)
            }
            (None, Some(text)) if text != "-" => {
                ("the payload".to_owned(), Box::new(io::Cursor::new(text.to_owned().into_bytes())), None)
            }
            _ => ("standard input".to_owned(), Box::new(io::stdin()), None),
        };
        Ok(Input { name, lines: BufReader::with_capacity(CHUNK_BYTES, read), bytes })
    }
}

fn finish(args: &PublishArgs, tally: &Tally) -> Result<(), Failure> {
    let topic = &args.topic;
    let Tally { accepted, refused } = *tally;
    let document = json!({"topicName": topic, "accepted": accepted, "refused": refused});
    args.client.output().done(&format!("{accepted} messages published to {topic}, {refused} refused"), &document)?;
    if refused == 0 {
        return Ok(());
    }
    let others = if args.atomic { "none is stored" } else { "the others are stored" };
    let detail = format!("{refused} of {} messages were refused; {others}", tally.answered());
    Err(Refusal { status: None, problem: json!({ "detail": detail }) }.into())
}
