//! `sluice listen`: a topic's messages as webhooks to this machine, for developing what receives them. Invariant: what is sent
//! is what the broker would send, signature and all; a message counts as delivered once the receiver said so. Its own
//! subscription goes with it; dead letters that it made by failing stay.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::client::{Client, ClientArgs, Query};
use super::failure::Failure;
use super::output::Output;
use crate::catalog::model::{PushFormat, Secret, Subscription, SubscriptionId, SubscriptionKind, SubscriptionSettings};
use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::delivery::envelope::{ENVELOPE_CONTENT_TYPE, LEASE_FIELDS, PushBody};
use crate::delivery::push::sender::{Outcome, Sender, Sent};
use crate::delivery::push::signature::{Scheme, new_secret};
use crate::delivery::push::target::{Delivery, Target};
use crate::entropy::Entropy;
use crate::message::{GroupId, Message, MessageId, MessageMeta, Offset, Position, TopicId, TopicName, TraceContext};

/// How long one long poll waits, in seconds; below the idle time-outs of common proxies.
const WAIT_SECONDS: u32 = 20;
/// Messages of one request: each is sent before the next, and must be settled within its lease.
const AT_ONCE: u32 = 1;
/// Longer than a receiver may take, so that its answer is never too late.
const LEASE_SECONDS: u64 = 60;
/// The most that a subscription takes: a receiver that is being written fails often, and its failures are nobody's dead letters.
const MAX_RETRIES: u32 = 100;
/// How long the receiver may take.
const ANSWER_TIME: Duration = Duration::from_secs(30);

const AFTER_HELP: &str = "\
On a PubSub topic it makes a subscription of its own, which gets a copy of what is published from now on and goes when the \
command ends. --group uses one that is there, and leaves it. A Queue has no copies: there --take is needed, and what the \
receiver takes reaches nobody else.

Each message is a POST with the headers, body and signature of a webhook (Standard Webhooks). 2xx settles it; anything else \
gives it back, and it comes again after the subscription's backoff.

Examples:
  sluice listen deployment.events --forward http://localhost:3000/hooks
  sluice listen deployment.events --forward http://localhost:3000/ --filter '$.severity >= 7'
  sluice listen orders --forward http://localhost:3000/ --take --limit 1    end after one";

/// Send a topic's messages to a URL on this machine, as webhooks.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ListenArgs {
    /// The topic
    #[arg(required_unless_present = "topic_name", conflicts_with = "topic_name")]
    topic: Option<String>,
    /// The topic, too
    #[arg(long = "topic", value_name = "TOPIC")]
    topic_name: Option<String>,
    /// Where to: an http or https URL
    #[arg(long, value_name = "URL")]
    forward: String,
    /// A subscription that is there, instead of one that goes with this command
    #[arg(long)]
    group: Option<String>,
    /// On a Queue: take its messages away from whoever else consumes them
    #[arg(long)]
    take: bool,
    /// How the body looks
    #[arg(long, value_enum, default_value_t = Format::Envelope)]
    format: Format,
    /// Sign with this secret [default: a new one, which is shown]
    #[arg(long, value_name = "whsec_…")]
    secret: Option<String>,
    /// Only messages whose payload matches, such as "$.total > 100"
    #[arg(long, value_name = "QUERY", conflicts_with_all = ["group", "take"])]
    filter: Option<String>,
    /// Where to begin: earliest, latest, a time (RFC 3339) [default: latest]
    #[arg(long, value_name = "WHERE", conflicts_with_all = ["group", "take"])]
    from: Option<String>,
    /// End after so many messages that the receiver took [default: until interrupted]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    #[command(flatten)]
    client: ClientArgs,
}

/// As [`PushFormat`], for the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// The message with all that is known of it, as JSON
    Envelope,
    /// The payload alone
    Raw,
    /// A CloudEvent in binary mode
    #[value(name = "cloudEvents")]
    CloudEvents,
    /// A CloudEvent in structured mode
    #[value(name = "cloudEventsStructured")]
    CloudEventsStructured,
}

impl From<Format> for PushFormat {
    fn from(format: Format) -> PushFormat {
        match format {
            Format::Envelope => PushFormat::Envelope,
            Format::Raw => PushFormat::Raw,
            Format::CloudEvents => PushFormat::CloudEvents,
            Format::CloudEventsStructured => PushFormat::CloudEventsStructured,
        }
    }
}

impl ListenArgs {
    fn topic(&self) -> &str {
        self.topic.as_deref().or(self.topic_name.as_deref()).unwrap_or_default()
    }
}

/// Forwards until interrupted.
pub(super) async fn run(args: &ListenArgs) -> Result<(), Failure> {
    let (client, output) = (Client::new(&args.client)?, args.client.output());
    let topic = client.get(&["topics", args.topic()], Query::default()).await?.body;
    let queue = topic["type"] == "Queue";
    if queue && !args.take {
        return Err(Failure::Usage(format!(
            "{} is a Queue: a message goes to one consumer, so that what is sent on from here reaches nobody else; say \
             --take if that is meant",
            args.topic()
        )));
    }
    if !queue && args.take {
        return Err(Failure::Usage(format!("{} is no Queue: leave --take out", args.topic())));
    }
    let forward = Forward::new(args)?;
    // From here on it takes its subscription away, whatever ends it.
    let mut interrupted = Signals::new()?;
    let own = match (&args.group, queue) {
        (None, false) => Some(subscribe(args, &client).await?),
        _ => None,
    };
    let group = own.as_ref().map(|(group, _)| group.clone()).or_else(|| args.group.clone());
    output.note(&format!("forwarding {} to {}; signed with {}", args.topic(), args.forward, forward.secret))?;
    let ended = tokio::select! {
        ended = forward.all(args, &client, output, group.as_deref()) => ended,
        () = interrupted.any() => Ok(()),
    };
    let removed = match own {
        Some((_, id)) => client.delete(&["subscriptions", &id], Query::default()).await.map(drop),
        None => Ok(()),
    };
    ended.and(removed)
}

/// What ends the command: Ctrl-C, a `kill`, a terminal that is closed.
pub(super) struct Signals([Signal; 3]);

impl Signals {
    pub(super) fn new() -> Result<Signals, Failure> {
        let on = |kind| signal(kind).map_err(Failure::io("waiting for a signal"));
        Ok(Signals([on(SignalKind::terminate())?, on(SignalKind::interrupt())?, on(SignalKind::hangup())?]))
    }

    pub(super) async fn any(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {}, _ = hangup.recv() => {} }
    }
}

/// A subscription that goes with the command; its group and id.
async fn subscribe(args: &ListenArgs, client: &Client) -> Result<(String, String), Failure> {
    let group = format!("listen-{:08x}", Entropy::system().next_u64() >> 32);
    let mut body =
        json!({ "topicName": args.topic(), "consumerGroup": group, "type": "Pull", "maxRetries": MAX_RETRIES });
    if let Some(from) = &args.from {
        body["startFrom"] = json!(from);
    }
    if let Some(filter) = &args.filter {
        body["filter"] = json!({ "payloadQuery": filter });
    }
    let made = client.post(&["subscriptions"], Query::default(), &body).await?;
    match made["subscriptionId"].as_str() {
        Some(id) => Ok((group, id.to_owned())),
        None => Err(client.foreign("a subscription has an id".to_owned())),
    }
}

/// Sends what comes.
struct Forward {
    sender: Sender,
    target: Target,
    secret: String,
    clock: Clock,
}

impl Forward {
    fn new(args: &ListenArgs) -> Result<Forward, Failure> {
        let usage = |error: String| Failure::Usage(format!("--forward: {error}"));
        let (clock, entropy) = (Clock::system(), Entropy::system());
        let secret = args.secret.clone().map_or_else(|| new_secret(Scheme::Hmac, &entropy), Secret::new);
        let shown = secret.expose().to_owned();
        let topic_name: TopicName = args.topic().parse().map_err(Failure::Usage)?;
        let now = clock.now();
        let subscription = Subscription {
            id: SubscriptionId(MessageId::new(now, TopicId(0), 0, entropy.next_u64()).0),
            group: GroupId::SHARED,
            topic: TopicId(0),
            topic_name,
            consumer_group: "".into(),
            settings: SubscriptionSettings {
                endpoint: Some(args.forward.clone()),
                format: args.format.into(),
                ack_timeout: ANSWER_TIME,
                ..SubscriptionSettings::new(SubscriptionKind::Push)
            },
            secret: Some(secret),
            previous_secret: None,
            pause: None,
            created_by: String::new(),
            created_at: now,
            updated_at: now,
            version: 1,
        };
        let target = Target::of(&subscription).map_err(|error| usage(error.to_string()))?;
        if !matches!(target.url.scheme(), "http" | "https") {
            return Err(usage("is an http or https URL".to_owned()));
        }
        // Whoever runs this command may reach what this machine reaches.
        let anywhere = ["0.0.0.0/0", "::/0"].map(str::to_owned).to_vec();
        let settings = config::Push { allow_http: true, allow_networks: anywhere, concurrency_max: 1, requests_max: 1 };
        let sender = Sender::new(&settings, clock.clone()).map_err(|error| usage(error.to_string()))?;
        Ok(Forward { sender, target, secret: shown, clock })
    }

    async fn all(
        &self,
        args: &ListenArgs,
        client: &Client,
        output: Output,
        group: Option<&str>,
    ) -> Result<(), Failure> {
        let mut taken = 0;
        loop {
            let query = Query::default()
                .with("consumerGroup", group)
                .with("limit", Some(AT_ONCE))
                .with("ackTimeout", Some(LEASE_SECONDS))
                .with("wait", Some(WAIT_SECONDS));
            let answer = client.get(&["messages", "consume", args.topic()], query).await?.body;
            for handed in client.items(&answer, "messages")? {
                taken += u64::from(self.one(client, output, handed).await?);
                if args.limit.is_some_and(|limit| taken >= limit) {
                    return Ok(());
                }
            }
        }
    }

    /// Sends one message on; whether the receiver took it.
    async fn one(&self, client: &Client, output: Output, handed: &Value) -> Result<bool, Failure> {
        let read: Handed =
            serde_json::from_value(handed.clone()).map_err(|error| client.foreign(format!("a message: {error}")))?;
        let (id, attempt, receipt) = (read.message_id, read.delivery_attempt, read.receipt.clone());
        let deadline = self.clock.now().plus(Duration::from_secs(LEASE_SECONDS));
        let (position, message) = read.message().map_err(|error| client.foreign(error))?;
        let body = match self.target.format {
            PushFormat::Envelope => envelope(handed),
            other => PushBody::of(other, &self.target.topic, position, &message),
        };
        let trace = message.meta.trace;
        let delivery = Delivery { id, body, attempt, deadline, expires_at: None, trace };
        let Some(sent) = self.sender.send(&self.target, &delivery).await else { return Ok(false) };
        let refused = refusal(&sent);
        show(output, &sent, &delivery, refused.as_deref())?;
        if let Some(receipt) = receipt {
            let (verb, body) = match &refused {
                None => ("ack", json!({ "receipt": receipt })),
                Some(reason) => ("nack", json!({ "receipt": receipt, "reason": reason })),
            };
            let settled = client.post(&["messages", &id.to_string(), verb], Query::default(), &body).await;
            match settled {
                // The lease ended meanwhile: it comes again.
                Err(Failure::Refused(refusal)) if refusal.status == Some(410) => output.note(&refusal.to_string())?,
                other => drop(other?),
            }
        }
        Ok(refused.is_none())
    }
}

/// What a webhook says of a message is what the broker says of it here, but for the lease.
fn envelope(handed: &Value) -> PushBody {
    let mut envelope = handed.clone();
    if let Some(fields) = envelope.as_object_mut() {
        fields.retain(|name, _| !LEASE_FIELDS.contains(&name.as_str()));
    }
    PushBody::new(envelope.to_string().into(), ENVELOPE_CONTENT_TYPE.into())
}

/// Why the receiver did not take it.
fn refusal(sent: &Sent) -> Option<String> {
    match &sent.outcome {
        Outcome::Delivered { .. } => None,
        Outcome::Gone => Some("HTTP_410: the endpoint answered 410 Gone".to_owned()),
        Outcome::Retry { reason, detail, .. } => Some(format!("{reason}: {detail}")),
    }
}

fn show(output: Output, sent: &Sent, delivery: &Delivery, refused: Option<&str>) -> Result<(), Failure> {
    let millis = u64::try_from(sent.latency.as_millis()).unwrap_or(u64::MAX);
    if output.is_json() {
        let line = json!({
            "messageId": delivery.id.to_string(), "attempt": delivery.attempt, "status": sent.status,
            "latencyMs": millis, "error": refused,
        });
        output.line(&line.to_string())?;
    } else {
        let outcome = refused.map_or_else(|| format!("{}", sent.status.unwrap_or_default()), str::to_owned);
        let line = format!("{} {} attempt {} {millis} ms ", sent.at.rfc3339(), delivery.id, delivery.attempt);
        output.foreign_line(&format!("{line}{outcome}"))?;
    }
    output.flush()
}

/// A message as a consumer is handed it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Handed {
    message_id: MessageId,
    payload: Option<String>,
    payload_base64: Option<String>,
    content_type: String,
    schema_version: Option<Arc<str>>,
    #[serde(default)]
    headers: serde_json::Map<String, Value>,
    #[serde(default)]
    priority: u8,
    correlation_id: Option<Arc<str>>,
    reply_to: Option<Arc<str>>,
    partition_key: Option<Arc<str>>,
    partition: u16,
    offset: u64,
    timestamp: String,
    traceparent: Option<Arc<str>>,
    tracestate: Option<Arc<str>>,
    #[serde(default)]
    delivery_attempt: u32,
    receipt: Option<String>,
}

impl Handed {
    /// As the broker has it.
    fn message(self) -> Result<(Position, Message), String> {
        let payload = match (self.payload, self.payload_base64) {
            (Some(text), _) => Bytes::from(text),
            (None, Some(text)) => STANDARD.decode(text).map_err(|error| error.to_string())?.into(),
            (None, None) => return Err("a message has a payload".to_owned()),
        };
        let text = |value: Value| value.as_str().map(Arc::from);
        let headers = self.headers.into_iter().filter_map(|(name, value)| Some((name.into(), text(value)?))).collect();
        let position = Position { topic: TopicId(0), partition: self.partition, offset: Offset(self.offset) };
        let meta = MessageMeta {
            content_type: self.content_type.into(),
            schema_version: self.schema_version,
            headers,
            priority: self.priority,
            key: self.partition_key,
            correlation_id: self.correlation_id,
            reply_to: self.reply_to,
            published_at: Timestamp::parse_rfc3339(&self.timestamp)?,
            expires_at: None,
            trace: self.traceparent.map(|parent| TraceContext { parent, state: self.tracestate }),
            revision: 0,
            dead_letter: None,
            replay_of: None,
        };
        Ok((position, Message { id: self.message_id, payload, meta }))
    }
}
