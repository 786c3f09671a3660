//! `sluice request`: asks over a topic and waits for the reply. Invariant: the reply's payload is printed as it came. Never asks
//! twice.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::arguments::read_input;
use super::client::{Client, ClientArgs, Query};
use super::consume;
use super::failure::{Failure, Refusal};
use super::publish::Envelope;

const AFTER_HELP: &str = "\
Whoever consumes the topic replies by publishing to the message's replyTo, with its correlationId. \
Without --reply-to that is the topic sluice.replies, to which everybody who may publish can reply.

Examples:
  sluice request quotes '{\"id\": 1}'
  sluice request quotes '{\"id\": 1}' --timeout 5 --idempotency-key quote-1 --json";

/// Publish a message and wait for the reply to it.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct RequestArgs {
    /// The topic
    topic: String,
    /// The payload; - reads standard input
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    payload: Option<String>,
    /// Read the payload from a file; - is standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// How long to wait for the reply, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=30))]
    timeout: u32,
    #[command(flatten)]
    envelope: Envelope,
    /// Makes repeats harmless: the same key asks once, and waits for the reply to the first
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Asks.
pub(super) async fn run(args: &RequestArgs) -> Result<(), Failure> {
    let (client, output) = (Client::new(&args.client)?, args.client.output());
    let payload = match (&args.payload, &args.file) {
        (Some(payload), _) if payload != "-" => payload.clone().into_bytes(),
        (_, Some(file)) => read_input(file)?,
        _ => read_input("-".as_ref())?,
    };
    let mut body = args.envelope.around(&args.topic, &payload);
    body.extend(args.idempotency_key.as_ref().map(|key| ("idempotencyKey".to_owned(), json!(key))));
    let query = Query::default().with("timeout", Some(args.timeout));
    let answer = client.post(&["messages", "request"], query, &Value::Object(body)).await?;
    if answer["reply"].is_null() {
        let text = |name: &str| answer["request"][name].as_str().unwrap_or_default();
        let detail = format!(
            "there is no reply to wait for: the stage '{}' took the request out of its way: {}",
            text("stage"),
            text("reason")
        );
        return Err(Refusal { status: None, problem: json!({ "detail": detail }) }.into());
    }
    if output.is_json() {
        return output.document(&answer);
    }
    consume::print(output, &answer["reply"])
}
