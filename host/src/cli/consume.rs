//! `sluice consume`: takes messages. Invariant: with --ack a message is settled after it was printed and flushed, so one
//! that never reached the reader is delivered again.

use clap::Args;
use serde_json::{Value, json};

use super::client::{Client, ClientArgs, Query};
use super::failure::{Failure, Refusal};
use super::output::Output;

/// How long one long poll waits when following, in seconds; below the idle time-outs of common proxies.
const FOLLOW_WAIT_SECONDS: u32 = 20;

const AFTER_HELP: &str = "\
Without --ack the messages are only held for --ack-timeout seconds and come again after it. \
Payloads are printed one a line; --json prints each message whole, one a line, with the receipt that settles it.

Examples:
  sluice consume orders --limit 100 --ack
  sluice consume deployment.events --group email --follow --ack | tee -a events.ndjson
  sluice consume orders --json --wait 30 > taken.ndjson    settled later by `sluice ack -`";

/// Take messages, and settle them with --ack.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ConsumeArgs {
    /// The topic
    topic: String,
    /// The consumer group; a Queue needs none
    #[arg(long)]
    group: Option<String>,
    /// Messages at most; with --follow, of one request
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// How long the messages are held, in seconds [default: as the subscription says, 30]
    #[arg(long, value_name = "SECONDS")]
    ack_timeout: Option<u32>,
    /// How long to wait for the first message, in seconds, at most 30 [default: 0, with --follow 20]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=30))]
    wait: Option<u32>,
    /// Go on until interrupted
    #[arg(long)]
    follow: bool,
    /// Settle each message once it is printed
    #[arg(long)]
    ack: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// Consumes once, or until interrupted.
pub(super) async fn run(args: &ConsumeArgs) -> Result<(), Failure> {
    let (client, output) = (Client::new(&args.client)?, args.client.output());
    let wait = args.wait.or(args.follow.then_some(FOLLOW_WAIT_SECONDS));
    loop {
        let query = Query::default()
            .with("consumerGroup", args.group.as_ref())
            .with("limit", Some(args.limit))
            .with("ackTimeout", args.ack_timeout)
            .with("wait", wait);
        let answer = client.get(&["messages", "consume", &args.topic], query).await?.body;
        let messages = client.items(&answer, "messages")?;
        for message in messages {
            print(output, message)?;
        }
        output.flush()?;
        if args.ack && !messages.is_empty() {
            settle(&client, messages).await?;
        }
        if !args.follow {
            return if messages.is_empty() { output.note("no messages") } else { Ok(()) };
        }
    }
}

/// One message: whole for machines, its payload for people.
pub(super) fn print(output: Output, message: &Value) -> Result<(), Failure> {
    if output.is_json() {
        return output.line(&message.to_string());
    }
    let payload = message["payload"].as_str().or_else(|| message["payloadBase64"].as_str()).unwrap_or_default();
    output.foreign_line(payload)
}

async fn settle(client: &Client, messages: &[Value]) -> Result<(), Failure> {
    // An at-most-once message is settled by being granted and has no receipt.
    let acks: Vec<Value> = messages
        .iter()
        .filter(|message| message["receipt"].is_string())
        .map(|message| json!({"receipt": message["receipt"]}))
        .collect();
    if acks.is_empty() {
        return Ok(());
    }
    let answer = client.post(&["messages", "ack", "batch"], Query::default(), &json!({ "acks": acks })).await?;
    let results = answer["results"].as_array().map_or(&[][..], Vec::as_slice);
    match results.iter().find_map(|result| result.get("error")) {
        None => Ok(()),
        Some(error) => Err(Refusal::of_item(error).into()),
    }
}
