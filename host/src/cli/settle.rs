//! `sluice ack`, `sluice nack`, `sluice extend`: what becomes of messages that were taken. Invariant: each receipt is sent
//! once and its result printed, and the exit code tells whether one was refused. Never settles again: the answer that was
//! lost may have been a yes.

use std::io::{BufRead as _, BufReader, Read};

use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::arguments::{LINE_BYTES_MAX, iso_duration};
use super::client::{Client, ClientArgs, Query};
use super::failure::{Failure, Refusal};
use super::output::Output;

/// Receipts of one request: as many as the API takes.
const BATCH_ITEMS: usize = 10_000;
/// Bytes of standard input that are read ahead: thousands of receipts are settled by one request.
const READ_AHEAD_BYTES: usize = 1 << 20;

const ACK_AFTER_HELP: &str = "\
A line of standard input is a receipt, or a message as `sluice consume --json` prints it. \
Of many, each gets a line with its result, and exit code 1 tells that one was refused.

Examples:
  sluice ack MESSAGE_ID --group billing
  sluice ack --receipt RECEIPT_1 --receipt RECEIPT_2
  sluice consume orders --json | sluice ack -    all that come
  sluice ack - < receipts.txt";

const NACK_AFTER_HELP: &str = "\
A message that has no deliveries left becomes a dead letter. A line of standard input is a receipt, or a message as \
`sluice consume --json` prints it. Of many, each gets a line with its result, and exit code 1 tells that one was refused.

Examples:
  sluice nack MESSAGE_ID --group billing --reason 'no such customer'
  sluice nack --receipt RECEIPT_1 --receipt RECEIPT_2 --delay PT5M
  sluice nack - --reason 'the database is away' < receipts.txt";

const EXTEND_AFTER_HELP: &str = "\
Examples:
  sluice extend MESSAGE_ID --group billing --ack-timeout 300
  sluice extend MESSAGE_ID --receipt RECEIPT --ack-timeout 60";

/// Settle messages that were taken: done.
#[derive(Debug, Args)]
#[command(after_help = ACK_AFTER_HELP)]
pub(super) struct AckArgs {
    #[command(flatten)]
    leases: Leases,
    #[command(flatten)]
    client: ClientArgs,
}

/// Give messages back: failed.
#[derive(Debug, Args)]
#[command(after_help = NACK_AFTER_HELP)]
pub(super) struct NackArgs {
    #[command(flatten)]
    leases: Leases,
    /// Kept with the failure, for people
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// How long to wait before the next delivery, ISO 8601 [default: the subscription's backoff]
    #[arg(long, value_name = "DURATION", value_parser = iso_duration)]
    delay: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Hold a message longer.
#[derive(Debug, Args)]
#[command(after_help = EXTEND_AFTER_HELP)]
pub(super) struct ExtendArgs {
    /// The message
    message_id: String,
    /// The consumer group that took it; not needed with a receipt, nor on a Queue
    #[arg(long)]
    group: Option<String>,
    /// The receipt of its delivery [default: your one live lease of it counts]
    #[arg(long)]
    receipt: Option<String>,
    /// How long from now on, in seconds, at most 12 hours
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=43_200))]
    ack_timeout: u32,
    #[command(flatten)]
    client: ClientArgs,
}

/// What is settled: one message, or many receipts.
#[derive(Debug, Args)]
struct Leases {
    /// The message; - takes receipts from standard input, one a line
    #[arg(required_unless_present = "receipt")]
    message_id: Option<String>,
    /// The consumer group that took it; not needed with a receipt, nor on a Queue
    #[arg(long)]
    group: Option<String>,
    /// The receipt of a delivery; without a message's id it may be given again
    #[arg(long)]
    receipt: Vec<String>,
}

/// Runs `sluice ack`.
pub(super) async fn ack(args: &AckArgs) -> Result<(), Failure> {
    settle(&args.client, &args.leases, "ack", Map::new()).await
}

/// Runs `sluice nack`.
pub(super) async fn nack(args: &NackArgs) -> Result<(), Failure> {
    let given = [("reason", &args.reason), ("delay", &args.delay)];
    let more = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?))));
    settle(&args.client, &args.leases, "nack", more.collect()).await
}

/// Runs `sluice extend`.
pub(super) async fn extend(args: &ExtendArgs) -> Result<(), Failure> {
    let more = Map::from_iter([("ackTimeout".to_owned(), json!(args.ack_timeout))]);
    let word = Word { action: "extend", group: args.group.as_deref(), more };
    one(&args.client, &args.message_id, args.receipt.as_deref(), &word).await
}

/// What is said of a lease.
struct Word<'a> {
    /// The route's name for it.
    action: &'static str,
    group: Option<&'a str>,
    more: Map<String, Value>,
}

impl Word<'_> {
    fn of(&self, receipt: Option<&str>) -> Value {
        let mut body = self.more.clone();
        for (name, value) in [("consumerGroup", self.group), ("receipt", receipt)] {
            body.extend(value.map(|value| (name.to_owned(), json!(value))));
        }
        Value::Object(body)
    }
}

async fn settle(
    client: &ClientArgs,
    leases: &Leases,
    action: &'static str,
    more: Map<String, Value>,
) -> Result<(), Failure> {
    let word = Word { action, group: leases.group.as_deref(), more };
    match (leases.message_id.as_deref(), leases.receipt.as_slice()) {
        (Some("-"), []) => {
            let mut many = Many::new(client, &word)?;
            let mut lines = Lines::new(std::io::stdin());
            while let Some(receipts) = lines.next_batch()? {
                many.send(&receipts).await?;
            }
            many.finish()
        }
        (Some("-"), _) => {
            Err(Failure::Usage("receipts come by --receipt or from standard input, not both ways".to_owned()))
        }
        (Some(id), []) => one(client, id, None, &word).await,
        (Some(id), [receipt]) => one(client, id, Some(receipt), &word).await,
        (Some(_), _) => {
            Err(Failure::Usage("a message has one receipt; leave its id out to settle several receipts".to_owned()))
        }
        (None, receipts) => {
            let mut many = Many::new(client, &word)?;
            for batch in receipts.chunks(BATCH_ITEMS) {
                many.send(batch).await?;
            }
            many.finish()
        }
    }
}

async fn one(args: &ClientArgs, id: &str, receipt: Option<&str>, word: &Word<'_>) -> Result<(), Failure> {
    let client = Client::new(args)?;
    let answer = client.post(&["messages", id, word.action], Query::default(), &word.of(receipt)).await?;
    args.output().done(&sentence(id, &answer), &answer)
}

/// Receipts that get the same word, and what became of them so far.
struct Many<'a> {
    client: Client,
    output: Output,
    word: &'a Word<'a>,
    settled: u64,
    refused: u64,
}

impl<'a> Many<'a> {
    fn new(args: &ClientArgs, word: &'a Word<'a>) -> Result<Many<'a>, Failure> {
        Ok(Many { client: Client::new(args)?, output: args.output(), word, settled: 0, refused: 0 })
    }

    async fn send(&mut self, receipts: &[String]) -> Result<(), Failure> {
        let items: Vec<Value> = receipts.iter().map(|receipt| self.word.of(Some(receipt))).collect();
        let body = json!({ (format!("{}s", self.word.action)): items });
        let answer = match self.client.post(&["messages", "ack", "batch"], Query::default(), &body).await {
            Ok(answer) => answer,
            Err(failure) => {
                let (answered, sent) = (self.settled + self.refused, receipts.len());
                self.output.note(&format!(
                    "{answered} receipts were answered; of the {sent} after them nothing is known but what follows"
                ))?;
                return Err(failure);
            }
        };
        let results = self.client.items(&answer, "results")?;
        if results.len() != receipts.len() {
            return Err(self.client.foreign(format!("{} results for {} receipts", results.len(), receipts.len())));
        }
        for (receipt, result) in receipts.iter().zip(results) {
            self.print(receipt, result)?;
            if result.get("error").is_some() {
                self.refused += 1;
            } else {
                self.settled += 1;
            }
        }
        self.output.flush()
    }

    fn print(&self, receipt: &str, result: &Value) -> Result<(), Failure> {
        if !self.output.is_json() {
            return self.output.line(&sentence(receipt, result));
        }
        let mut line = json!({ "receipt": receipt });
        for (name, value) in result.as_object().into_iter().flatten() {
            line[name] = value.clone();
        }
        self.output.line(&line.to_string())
    }

    fn finish(&self) -> Result<(), Failure> {
        let Many { settled, refused, .. } = *self;
        if settled + refused == 0 {
            return self.output.note("no receipts");
        }
        if refused == 0 {
            return Ok(());
        }
        let detail = format!("{refused} of {} were refused; the others are settled", settled + refused);
        Err(Refusal { status: None, problem: json!({ "detail": detail }) }.into())
    }
}

/// What became of a lease, named by its message or its receipt.
fn sentence(lease: &str, result: &Value) -> String {
    let time = |name: &str| result[name].as_str().unwrap_or("an unknown time");
    if let Some(error) = result.get("error") {
        return format!("refused {lease}: {}", Refusal::of_item(error));
    }
    match result["status"].as_str().unwrap_or("settled") {
        "Acked" => format!("acked {lease}"),
        "Retrying" => format!("nacked {lease}: it comes again at {}", time("retryAt")),
        "DeadLettered" => format!("nacked {lease}: it is a dead letter now"),
        "Extended" => format!("extended {lease}: it is held until {}", time("ackDeadline")),
        other => format!("{other} {lease}"),
    }
}

/// Receipts, a line each.
struct Lines<R> {
    source: BufReader<R>,
    read: u64,
}

/// What counts of a consumed message.
#[derive(Deserialize)]
struct Taken {
    receipt: Option<String>,
}

impl<R: Read> Lines<R> {
    fn new(source: R) -> Lines<R> {
        Lines { source: BufReader::with_capacity(READ_AHEAD_BYTES, source), read: 0 }
    }

    /// As many as are there; waits for the first, and not for more: a consumer's leases don't wait either. None at the
    /// end.
    fn next_batch(&mut self) -> Result<Option<Vec<String>>, Failure> {
        let (mut receipts, mut line) = (Vec::new(), Vec::new());
        while receipts.is_empty() || (receipts.len() < BATCH_ITEMS && self.source.buffer().contains(&b'\n')) {
            line.clear();
            let taken = self.source.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            if taken.map_err(Failure::io("standard input"))? == 0 {
                break;
            }
            self.read += 1;
            let receipt = receipt(&line).map_err(|reason| Failure::Usage(format!("line {}: {reason}", self.read)))?;
            receipts.extend(receipt);
        }
        Ok(Some(receipts).filter(|receipts| !receipts.is_empty()))
    }
}

/// The receipt in a line; an empty line has none.
fn receipt(line: &[u8]) -> Result<Option<String>, &'static str> {
    let line = line.trim_ascii();
    if line.starts_with(b"{") {
        let message: Taken = serde_json::from_slice(line).map_err(|_| "is no message in JSON")?;
        return message.receipt.map(Some).ok_or("the message has no receipt, so nobody holds it");
    }
    let text = std::str::from_utf8(line).map_err(|_| "is no text")?;
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_receipt_or_a_message_that_has_one() {
        assert_eq!(receipt(b" abc \r\n"), Ok(Some("abc".to_owned())));
        assert_eq!(receipt(br#"{"payload": "{}", "receipt": "abc"}"#), Ok(Some("abc".to_owned())));
        assert_eq!(receipt(b"\n"), Ok(None));
        for bad in [&b"{"[..], br#"{"messageId": "1"}"#, b"\xff"] {
            assert!(receipt(bad).is_err(), "{bad:?}");
        }
    }

    /// Hands out one piece a call, as a pipe does.
    struct Pipe(Vec<&'static [u8]>);

    impl Read for Pipe {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            into[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn what_a_pipe_brings_is_settled_without_waiting_for_more() {
        let mut lines = Lines::new(Pipe(vec![b"a\nb\n", b"\nc\nd", b"e\n", b"f"]));
        let batches = std::iter::from_fn(|| lines.next_batch().expect("read")).map(|batch| batch.join(" "));
        assert_eq!(batches.collect::<Vec<_>>(), ["a b", "c", "de", "f"]);
    }

    #[test]
    fn a_batch_is_no_larger_than_the_api_takes() {
        let text: &'static [u8] = "r\n".repeat(BATCH_ITEMS + 1).leak().as_bytes();
        let mut lines = Lines::new(Pipe(vec![text]));
        let sizes = [(); 3].map(|()| lines.next_batch().expect("read").map(|batch| batch.len()));
        assert_eq!(sizes, [Some(BATCH_ITEMS), Some(1), None]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let mut lines = Lines::new(Pipe(vec![b"a\n\n{}\n"]));
        let failure = lines.next_batch().expect_err("no receipt");
        assert_eq!((failure.exit_code(), failure.to_string().starts_with("line 3: ")), (2, true), "{failure}");
    }
}
