//! `sluice publish`: one message, or a file with one payload a line. Invariant: bytes are sent exactly as given.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Map, Value, json};

use super::arguments::{iso_duration, pair, read_input};
use super::client::{Client, ClientArgs, Query};
use super::failure::Failure;
use super::publish_lines;

const AFTER_HELP: &str = "\
Examples:
  sluice publish orders '{\"id\": 1}' --key customer-7 --header region=eu
  sluice publish orders --file order.json --idempotency-key order-1
  date | sluice publish clock -
  sluice publish events --ndjson --file events.ndjson    one message a line, sent as they come
  sluice publish events --ndjson --atomic --file events.ndjson    all of them or none
  sluice publish reminders '{}' --delay PT10M
  sluice publish orders --cloud-event --file event.json    a CloudEvent with all its attributes";

/// Publish one message, or a file of them.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct PublishArgs {
    /// The topic
    pub(super) topic: String,
    /// The payload; - reads standard input
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub(super) payload: Option<String>,
    /// Read the payload from a file; - is standard input
    #[arg(long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Each line is a message, stored by itself as soon as it has come
    #[arg(long, conflicts_with_all = ["idempotency_key", "explain"])]
    ndjson: bool,
    /// All lines are stored or none; at most 10000, and what the broker takes in one request
    #[arg(long, requires = "ndjson")]
    pub(super) atomic: bool,
    /// What is given is a CloudEvent in JSON: its attributes say all that is to be said
    #[arg(long, conflicts_with_all = ["ndjson", "Envelope"])]
    cloud_event: bool,
    #[command(flatten)]
    pub(super) envelope: Envelope,
    /// Makes repeats harmless: the same key stores once
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Show each stage's verdict and time
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// What stands around a payload.
#[derive(Debug, Clone, Default, Args)]
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
        return publish_lines::run(args, &client).await;
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
