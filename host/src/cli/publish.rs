//! `sluice publish`: one message, or a file with one payload a line. Invariant: bytes are sent exactly as given. Never sends
//! a batch again: after a broken connection it says from which line on nothing is known.

use std::io::{BufRead, BufReader, Read as _};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Map, Value, json};

use super::arguments::{INPUT_BYTES_MAX, LINE_BYTES_MAX, iso_duration, pair, read_input};
use super::client::{Client, ClientArgs, Query};
use super::failure::{Failure, Refusal};

/// Messages of one request: a tenth of what the API takes, so that progress shows and a failure concerns few.
const BATCH_ITEMS: u64 = 1000;
/// Bytes of one request: well below the broker's default for a body (16 MiB).
const BATCH_BYTES: u64 = 4 << 20;
/// Messages that can be stored all or none: what the API takes in one request.
const ATOMIC_ITEMS: u64 = 10_000;
/// Refused lines that are told; the rest are counted.
const REFUSALS_SHOWN: u64 = 10;

const AFTER_HELP: &str = "\
Examples:
  sluice publish orders '{\"id\": 1}' --key customer-7 --header region=eu
  sluice publish orders --file order.json --idempotency-key order-1
  date | sluice publish clock -
  sluice publish events --ndjson --file events.ndjson    one message a line, in batches
  sluice publish events --ndjson --atomic --file events.ndjson    all of them or none
  sluice publish reminders '{}' --delay PT10M
  sluice publish orders --cloud-event --file event.json    a CloudEvent with all its attributes";

/// Publish one message, or a file of them.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct PublishArgs {
    /// The topic
    topic: String,
    /// The payload; - reads standard input
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    payload: Option<String>,
    /// Read the payload from a file; - is standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Each line is a message
    #[arg(long, conflicts_with_all = ["idempotency_key", "explain"])]
    ndjson: bool,
    /// All lines are stored or none; at most 10000, and what the broker takes in one request
    #[arg(long, requires = "ndjson")]
    atomic: bool,
    /// What is given is a CloudEvent in JSON: its attributes say all that is to be said
    #[arg(long, conflicts_with_all = ["ndjson", "Envelope"])]
    cloud_event: bool,
    #[command(flatten)]
    envelope: Envelope,
    /// Makes repeats harmless: the same key stores once
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Show each stage's verdict and time
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// What stands around a payload.
#[derive(Debug, Args)]
pub(super) struct Envelope {
    /// Messages of one key keep their order
    #[arg(long)]
    key: Option<String>,
    /// A header; may be given again
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    header: Vec<(String, String)>,
    /// 0 (the usual) to 9 (the most urgent)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// Not delivered after this long, ISO 8601
    #[arg(long, value_name = "DURATION", value_parser = iso_duration, conflicts_with = "expires_at")]
    ttl: Option<String>,
    /// Not delivered after this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// Not delivered before this long, ISO 8601
    #[arg(long, value_name = "DURATION", value_parser = iso_duration, conflicts_with = "deliver_at")]
    delay: Option<String>,
    /// Not delivered before this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    deliver_at: Option<String>,
    /// Names a conversation
    #[arg(long, value_name = "ID")]
    correlation_id: Option<String>,
    /// Where an answer is awaited
    #[arg(long, value_name = "TOPIC")]
    reply_to: Option<String>,
    /// Media type of the payload [default: application/json]
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// The schema version that is meant
    #[arg(long, value_name = "VERSION")]
    schema_version: Option<String>,
}

impl Envelope {
    /// A publish request of this payload.
    pub(super) fn around(&self, topic: &str, payload: &[u8]) -> Map<String, Value> {
        let headers =
            || -> Map<String, Value> { self.header.iter().map(|(name, value)| (name.clone(), json!(value))).collect() };
        let mut body = Map::from_iter([("topicName".to_owned(), json!(topic))]);
        match std::str::from_utf8(payload) {
            Ok(text) => body.insert("payload".to_owned(), json!(text)),
            Err(_) => body.insert("payloadBase64".to_owned(), json!(STANDARD.encode(payload))),
        };
        let given = [
            ("partitionKey", self.key.as_ref().map(|it| json!(it))),
            ("headers", (!self.header.is_empty()).then(|| Value::Object(headers()))),
            ("priority", self.priority.map(|it| json!(it))),
            ("ttl", self.ttl.as_ref().map(|it| json!(it))),
            ("expiresAt", self.expires_at.as_ref().map(|it| json!(it))),
            ("delay", self.delay.as_ref().map(|it| json!(it))),
            ("deliverAt", self.deliver_at.as_ref().map(|it| json!(it))),
            ("correlationId", self.correlation_id.as_ref().map(|it| json!(it))),
            ("replyTo", self.reply_to.as_ref().map(|it| json!(it))),
            ("contentType", self.content_type.as_ref().map(|it| json!(it))),
            ("schemaVersion", self.schema_version.as_ref().map(|it| json!(it))),
        ];
        body.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        body
    }
}

/// Publishes.
pub(super) async fn run(args: &PublishArgs) -> Result<(), Failure> {
    let (client, output) = (Client::new(&args.client)?, args.client.output());
    if args.ndjson {
        return publish_lines(args, &client).await;
    }
    let payload = match (&args.payload, &args.file) {
        (Some(payload), _) if payload != "-" => payload.clone().into_bytes(),
        (_, Some(file)) => read_input(file)?,
        _ => read_input("-".as_ref())?,
    };
    let (path, query) = (["messages", "publish"], Query::default().with("explain", args.explain.then_some(true)));
    let answer = if args.cloud_event {
        let query = query.with("topic", Some(&args.topic));
        client.post_event(&path, query, args.idempotency_key.as_deref(), payload).await?
    } else {
        let mut body = args.envelope.around(&args.topic, &payload);
        body.extend(args.idempotency_key.as_ref().map(|key| ("idempotencyKey".to_owned(), json!(key))));
        client.post(&path, query, &Value::Object(body)).await?
    };
    output.thing(&answer)
}

/// What became of the lines so far.
#[derive(Debug, Default)]
struct Tally {
    sent: u64,
    accepted: u64,
    refused: u64,
}

async fn publish_lines(args: &PublishArgs, client: &Client) -> Result<(), Failure> {
    let name = args.file.as_ref().map_or_else(|| "standard input".to_owned(), |file| file.display().to_string());
    let mut lines = open_lines(args)?;
    let mut tally = Tally::default();
    loop {
        let (batch, items) = next_batch(args, &mut *lines).map_err(Failure::io(name.clone()))?;
        if items == 0 {
            return finish(args, &tally);
        }
        if args.atomic && !lines.fill_buf().map_err(Failure::io(name.clone()))?.is_empty() {
            return Err(Failure::Usage(format!("--atomic takes {ATOMIC_ITEMS} lines at most; nothing was sent")));
        }
        send_batch(args, client, (batch, items), &mut tally).await?;
    }
}

/// The lines of one request, as publish requests, and how many.
fn next_batch(args: &PublishArgs, lines: &mut dyn BufRead) -> std::io::Result<(String, u64)> {
    let (items_max, bytes_max) = if args.atomic { (ATOMIC_ITEMS, INPUT_BYTES_MAX) } else { (BATCH_ITEMS, BATCH_BYTES) };
    let (mut batch, mut items, mut line) = (String::new(), 0, Vec::new());
    while items < items_max && (batch.len() as u64) < bytes_max {
        line.clear();
        if (&mut *lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let payload = line.trim_ascii();
        if !payload.is_empty() {
            batch.push_str(&Value::Object(args.envelope.around(&args.topic, payload)).to_string());
            batch.push('\n');
            items += 1;
        }
    }
    Ok((batch, items))
}

fn open_lines(args: &PublishArgs) -> Result<Box<dyn BufRead>, Failure> {
    match (&args.file, args.payload.as_deref()) {
        (Some(file), _) if file.as_os_str() != "-" => {
            let opened = std::fs::File::open(file).map_err(Failure::io(file.display().to_string()))?;
            Ok(Box::new(BufReader::new(opened)))
        }
        (None, Some(payload)) if payload != "-" => Ok(Box::new(std::io::Cursor::new(payload.to_owned().into_bytes()))),
        _ => Ok(Box::new(BufReader::new(std::io::stdin()))),
    }
}

async fn send_batch(
    args: &PublishArgs,
    client: &Client,
    (batch, items): (String, u64),
    tally: &mut Tally,
) -> Result<(), Failure> {
    let query = Query::default().with("atomic", args.atomic.then_some(true));
    let sent = client.post_ndjson(&["messages", "publish", "batch"], query, batch).await;
    let answer = match sent {
        Ok(answer) => answer,
        Err(failure) => {
            args.client.output().note(&format!(
                "{} messages were answered ({} accepted); of the {items} after them nothing is known but what follows",
                tally.sent, tally.accepted
            ))?;
            return Err(failure);
        }
    };
    let results = answer["results"].as_array().map_or(&[][..], Vec::as_slice);
    for (index, result) in results.iter().enumerate() {
        let Some(error) = result.get("error") else {
            tally.accepted += 1;
            continue;
        };
        if tally.refused < REFUSALS_SHOWN {
            let refusal = Refusal::of_item(error);
            args.client.output().note(&format!("message {}: {refusal}", tally.sent + index as u64 + 1))?;
        }
        tally.refused += 1;
    }
    tally.sent += items;
    Ok(())
}

fn finish(args: &PublishArgs, tally: &Tally) -> Result<(), Failure> {
    let topic = &args.topic;
    let Tally { accepted, refused, .. } = *tally;
    let document = json!({"topicName": topic, "accepted": accepted, "refused": refused});
    args.client.output().done(&format!("{accepted} messages published to {topic}, {refused} refused"), &document)?;
    if refused == 0 {
        return Ok(());
    }
    let others = if args.atomic { "none is stored" } else { "the others are stored" };
    let detail = format!("{refused} of {} messages were refused; {others}", tally.sent);
    Err(Refusal { status: None, problem: json!({ "detail": detail }) }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_travel_as_they_are() {
        let envelope = Envelope {
            key: Some("k".to_owned()),
            header: vec![("a".to_owned(), "b".to_owned())],
            priority: None,
            ttl: None,
            expires_at: None,
            delay: None,
            deliver_at: None,
            correlation_id: None,
            reply_to: None,
            content_type: None,
            schema_version: None,
        };
        let text = Value::Object(envelope.around("t", b"{\"a\": 1.0}"));
        assert_eq!(
            text,
            json!({"topicName": "t", "payload": "{\"a\": 1.0}", "partitionKey": "k", "headers": {"a": "b"}})
        );
        assert_eq!(Value::Object(envelope.around("t", &[0xff]))["payloadBase64"], "/w==");
    }
}
