//! `sluice subscribe` and `sluice subscription`: consumer groups and webhooks. Invariant: a signing secret is shown when it
//! is made and at no other time; an update keeps what is not given.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::arguments::{Noun, iso_duration, pair, read_text, unset};
use super::client::{Client, ClientArgs, Part, Query};
use super::failure::Failure;
use super::output::{Column, Output};

const COLUMNS: &[Column] = &[
    ("ID", "/subscriptionId"),
    ("TOPIC", "/topicName"),
    ("GROUP", "/consumerGroup"),
    ("TYPE", "/type"),
    ("ACTIVE", "/isActive"),
    ("ENDPOINT", "/consumerEndpoint"),
];
const SNAPSHOT_COLUMNS: &[Column] = &[("NAME", "/name"), ("MADE", "/createdAt")];
const ATTEMPT_COLUMNS: &[Column] = &[
    ("WHEN", "/at"),
    ("MESSAGE", "/messageId"),
    ("ATTEMPT", "/attempt"),
    ("OUTCOME", "/outcome"),
    ("STATUS", "/status"),
    ("MS", "/latencyMs"),
    ("ERROR", "/error"),
];

/// Options that an update can take away.
const UNSET: [(&str, &str); 6] = [
    ("filter", "filter"),
    ("max-in-flight", "maxInFlight"),
    ("rate-limit", "rateLimit"),
    ("bearer-token", "authorization"),
    ("client-certificate", "clientCertificate"),
    ("ca-certificate", "caCertificate"),
];

pub(super) const AFTER_HELP: &str = "\
`sluice subscribe` makes one.

Examples:
  sluice subscription list --topic orders
  sluice subscription pause SUBSCRIPTION_ID
  sluice subscription seek SUBSCRIPTION_ID earliest    all that is there is delivered again
  sluice subscription attempts SUBSCRIPTION_ID";

const UPDATE_AFTER_HELP: &str = "\
Examples:
  sluice subscription update SUBSCRIPTION_ID --max-retries 10 --backoff-initial PT10S
  sluice subscription update SUBSCRIPTION_ID --unset filter --unset rate-limit";

const SEEK_AFTER_HELP: &str = "\
Examples:
  sluice subscription seek SUBSCRIPTION_ID earliest
  sluice subscription seek SUBSCRIPTION_ID 2026-01-31T12:00:00Z
  sluice subscription seek SUBSCRIPTION_ID 0 --partition 0";

const SNAPSHOT_AFTER_HELP: &str = "\
Examples:
  sluice subscription snapshot SUBSCRIPTION_ID before-release
  sluice subscription seek SUBSCRIPTION_ID --snapshot before-release
  sluice subscription snapshot SUBSCRIPTION_ID before-release --delete";

const SUBSCRIBE_AFTER_HELP: &str = "\
Examples:
  sluice subscribe orders --group billing              to be read with `sluice consume`
  sluice subscribe orders --group shop --endpoint https://shop.example.com/hook
  sluice subscribe deployment.events --group pager --endpoint https://pager.example.com \\
      --filter-query '$.severity >= 7' --filter-header region=eu --max-retries 10
  sluice subscribe orders --group mesh --endpoint https://broker.example.com --format cloudEvents
  sluice subscribe orders --group bank --endpoint https://bank.example.com \\
      --bearer-token-file token.txt

The answer to a webhook holds its signing secret (whsec_…): it is shown once.";

/// Create a subscription: a consumer group, or a webhook.
#[derive(Debug, Args)]
#[command(after_help = SUBSCRIBE_AFTER_HELP)]
pub(super) struct SubscribeArgs {
    /// The topic
    topic: String,
    /// The consumer group's name, unique on the topic
    #[arg(long)]
    group: String,
    /// Where to begin on a PubSub topic: earliest, latest or a time (RFC 3339) [default: latest]
    #[arg(long, value_name = "WHERE")]
    start_from: Option<String>,
    /// How webhooks are signed (Push) [default: hmac]
    #[arg(long, value_name = "SCHEME", value_parser = SCHEMES)]
    signature: Option<String>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    client: ClientArgs,
}

/// Subscriptions.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show subscriptions
    #[command(
        after_help = "Examples:\n  sluice subscription list --topic orders\n  sluice subscription list --active false"
    )]
    List {
        /// Only those on this topic
        #[arg(long)]
        topic: Option<String>,
        /// Only those of this group
        #[arg(long)]
        group: Option<String>,
        /// Only those that deliver (true) or are paused (false)
        #[arg(long, value_name = "BOOL")]
        active: Option<bool>,
        #[command(flatten)]
        part: Part,
    },
    /// Show one subscription
    #[command(after_help = "Example:\n  sluice subscription get SUBSCRIPTION_ID")]
    Get {
        /// Its id
        id: String,
    },
    /// Change a subscription; what is not given stays
    #[command(after_help = UPDATE_AFTER_HELP)]
    Update {
        /// Its id
        id: String,
        #[command(flatten)]
        settings: Box<Settings>,
        /// Take this setting away; may be given again
        #[arg(long, value_name = "SETTING", value_parser = UNSET.map(|(option, _)| option))]
        unset: Vec<String>,
    },
    /// Stop delivering; messages wait
    #[command(after_help = "Example:\n  sluice subscription pause SUBSCRIPTION_ID")]
    Pause {
        /// Its id
        id: String,
    },
    /// Deliver again
    #[command(after_help = "Example:\n  sluice subscription resume SUBSCRIPTION_ID")]
    Resume {
        /// Its id
        id: String,
    },
    /// Delete a subscription with its cursor
    #[command(after_help = "Example:\n  sluice subscription delete SUBSCRIPTION_ID")]
    Delete {
        /// Its id
        id: String,
    },
    /// Move the cursor: back delivers again, on skips
    #[command(after_help = SEEK_AFTER_HELP)]
    Seek {
        /// Its id
        id: String,
        /// earliest, latest, a time (RFC 3339) or an offset
        #[arg(required_unless_present = "snapshot")]
        to: Option<String>,
        /// A snapshot, in place of all these
        #[arg(long, value_name = "NAME", conflicts_with_all = ["to", "partition"])]
        snapshot: Option<String>,
        /// The partition that an offset belongs to
        #[arg(long, value_name = "N")]
        partition: Option<u16>,
    },
    /// Keep where the cursor is under a name, to seek back to it
    #[command(after_help = SNAPSHOT_AFTER_HELP)]
    Snapshot {
        /// Its id
        id: String,
        /// The snapshot's name
        name: String,
        /// Delete it instead
        #[arg(long)]
        delete: bool,
    },
    /// Show the snapshots of a subscription
    #[command(after_help = "Example:\n  sluice subscription snapshots SUBSCRIPTION_ID")]
    Snapshots {
        /// Its id
        id: String,
        #[command(flatten)]
        part: Part,
    },
    /// Send one signed test delivery and show what came back
    #[command(after_help = "Example:\n  sluice subscription test SUBSCRIPTION_ID")]
    Test {
        /// Its id
        id: String,
    },
    /// Show recent deliveries, newest first
    #[command(
        after_help = "Examples:\n  sluice subscription attempts SUBSCRIPTION_ID --limit 20\n  sluice subscription attempts SUBSCRIPTION_ID --clear"
    )]
    Attempts {
        /// Its id
        id: String,
        #[command(flatten)]
        part: Part,
        /// Forget them instead
        #[arg(long)]
        clear: bool,
    },
    /// Show what became of deliveries in the last minutes or hours
    #[command(
        after_help = "Examples:\n  sluice subscription metrics SUBSCRIPTION_ID\n  sluice subscription metrics SUBSCRIPTION_ID --window P1D"
    )]
    Metrics {
        /// Its id
        id: String,
        /// How far to look back, ISO 8601, PT1M to P1D [default: PT1H]
        #[arg(long, value_name = "DURATION", value_parser = iso_duration)]
        window: Option<String>,
    },
    /// Make a new signing secret; the old one signs beside it for a while
    #[command(
        after_help = "Examples:\n  sluice subscription rotate SUBSCRIPTION_ID\n  sluice subscription rotate SUBSCRIPTION_ID --overlap PT0S"
    )]
    Rotate {
        /// Its id
        id: String,
        /// How long the old secret signs too, ISO 8601; PT0S where it has leaked [default: P1D]
        #[arg(long, value_name = "DURATION", value_parser = iso_duration)]
        overlap: Option<String>,
        /// How webhooks are signed from now on [default: as before]
        #[arg(long, value_name = "SCHEME", value_parser = SCHEMES)]
        signature: Option<String>,
    },
}

/// How webhooks may be signed.
const SCHEMES: [&str; 2] = ["hmac", "ed25519"];

/// What an owner chooses.
#[derive(Debug, Args)]
pub(super) struct Settings {
    /// Send to this URL (a Push subscription); without it consumers fetch (Pull)
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Only messages whose payload matches, e.g. '$.severity >= 7 && $.kind == "order"'
    #[arg(long, value_name = "QUERY")]
    filter_query: Option<String>,
    /// Only messages with this header; may be given again
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    filter_header: Vec<(String, String)>,
    /// Deliveries after the first one fails, 0 to 100 [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100))]
    max_retries: Option<u32>,
    /// How long to wait before the second delivery, ISO 8601 [default: PT2S]
    #[arg(long, value_name = "DURATION", value_parser = iso_duration)]
    backoff_initial: Option<String>,
    /// Times this before each further one, 1 to 100 [default: 2]
    #[arg(long, value_name = "FACTOR")]
    backoff_multiplier: Option<f64>,
    /// But at most so long, ISO 8601 [default: PT1H]
    #[arg(long, value_name = "DURATION", value_parser = iso_duration)]
    backoff_max: Option<String>,
    /// Share by which the wait varies, 0 to 1 [default: 0.2]
    #[arg(long, value_name = "SHARE")]
    backoff_jitter: Option<f64>,
    /// How long a lease lasts and an endpoint may take, ISO 8601 [default: PT30S]
    #[arg(long, value_name = "DURATION", value_parser = iso_duration)]
    ack_timeout: Option<String>,
    /// Keep the order per partition key
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ordered: Option<bool>,
    /// Deliveries under way at most (Push)
    #[arg(long, value_name = "N")]
    max_in_flight: Option<u32>,
    /// Deliveries per second at most (Push)
    #[arg(long, value_name = "N")]
    rate_limit: Option<u32>,
    /// Form of a delivery: envelope, raw, cloudEvents or cloudEventsStructured (Push) [default: envelope]
    #[arg(long, value_name = "FORMAT", value_parser = ["envelope", "raw", "cloudEvents", "cloudEventsStructured"])]
    format: Option<String>,
    /// An extra header of each delivery (Push); its value is kept secret; may be given again
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    header: Vec<(String, String)>,
    /// Send the token in this file as `Authorization: Bearer` (Push); - is standard input
    #[arg(long, value_name = "FILE")]
    bearer_token_file: Option<PathBuf>,
    /// Show this certificate (PEM) to an endpoint that asks for one (Push)
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_certificate: Option<PathBuf>,
    /// The certificate's private key (PEM, without a password)
    #[arg(long, value_name = "FILE", requires = "client_certificate")]
    client_key: Option<PathBuf>,
    /// Authorities (PEM) that vouch for the endpoint in place of those that the broker's system trusts (Push)
    #[arg(long, value_name = "FILE")]
    ca_certificate: Option<PathBuf>,
    /// Whether the beginnings of answers are kept among the attempts (Push) [default: keep]
    #[arg(long, value_name = "WHAT", value_parser = ["keep", "redact"])]
    attempt_bodies: Option<String>,
}

impl Settings {
    fn write(&self, body: &mut Map<String, Value>) -> Result<(), Failure> {
        self.write_credentials(body)?;
        let pairs = |pairs: &[(String, String)]| -> Map<String, Value> {
            pairs.iter().map(|(name, value)| (name.clone(), json!(value))).collect()
        };
        let mut filter = Map::new();
        if !self.filter_header.is_empty() {
            filter.insert("headerMatches".to_owned(), Value::Object(pairs(&self.filter_header)));
        }
        if let Some(query) = &self.filter_query {
            filter.insert("payloadQuery".to_owned(), json!(query));
        }
        let backoff = [
            ("initial", self.backoff_initial.as_ref().map(|it| json!(it))),
            ("multiplier", self.backoff_multiplier.map(|it| json!(it))),
            ("max", self.backoff_max.as_ref().map(|it| json!(it))),
            ("jitter", self.backoff_jitter.map(|it| json!(it))),
        ];
        let backoff: Map<_, _> =
            backoff.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        let given = [
            ("consumerEndpoint", self.endpoint.as_ref().map(|it| json!(it))),
            ("filter", (!filter.is_empty()).then_some(Value::Object(filter))),
            ("maxRetries", self.max_retries.map(|it| json!(it))),
            ("backoff", (!backoff.is_empty()).then_some(Value::Object(backoff))),
            ("ackTimeout", self.ack_timeout.as_ref().map(|it| json!(it))),
            ("ordered", self.ordered.map(|it| json!(it))),
            ("maxInFlight", self.max_in_flight.map(|it| json!(it))),
            ("rateLimit", self.rate_limit.map(|it| json!(it))),
            ("format", self.format.as_ref().map(|it| json!(it))),
            ("attemptBodies", self.attempt_bodies.as_ref().map(|it| json!(it))),
            ("headers", (!self.header.is_empty()).then(|| Value::Object(pairs(&self.header)))),
        ];
        body.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        Ok(())
    }

    fn write_credentials(&self, body: &mut Map<String, Value>) -> Result<(), Failure> {
        if let Some(file) = &self.bearer_token_file {
            let token = read_text(file)?;
            body.insert("authorization".to_owned(), json!({"type": "bearer", "token": token.trim()}));
        }
        if let (Some(certificate), Some(key)) = (&self.client_certificate, &self.client_key) {
            let both = json!({"certificate": read_text(certificate)?, "privateKey": read_text(key)?});
            body.insert("clientCertificate".to_owned(), both);
        }
        if let Some(file) = &self.ca_certificate {
            body.insert("caCertificate".to_owned(), json!(read_text(file)?));
        }
        Ok(())
    }
}

/// Runs `sluice subscribe`.
pub(super) async fn subscribe(args: &SubscribeArgs) -> Result<(), Failure> {
    let (client, output) = (Client::new(&args.client)?, args.client.output());
    let kind = if args.settings.endpoint.is_some() { "Push" } else { "Pull" };
    let mut body = Map::from_iter(
        [("topicName", &*args.topic), ("consumerGroup", &args.group), ("type", kind)]
            .map(|(name, value)| (name.to_owned(), json!(value))),
    );
    body.extend(args.signature.as_ref().map(|scheme| ("signature".to_owned(), json!(scheme))));
    body.extend(args.start_from.as_ref().map(|place| ("startFrom".to_owned(), json!(place))));
    args.settings.write(&mut body)?;
    let made = client.post(&["subscriptions"], Query::default(), &Value::Object(body)).await?;
    show_secret(output, &format!("subscribed {} to {}", args.group, args.topic), &made)
}

fn show_secret(output: Output, sentence: &str, subscription: &Value) -> Result<(), Failure> {
    let mut text = sentence.to_owned();
    let shown = [
        ("subscriptionId", "id"),
        ("secret", "signing secret, shown this once"),
        ("publicKey", "public key, to check signatures with"),
        ("previousSecretUntil", "the old secret signs too until"),
    ];
    for (name, heading) in shown {
        if let Some(value) = subscription[name].as_str() {
            text.push_str(&format!("\n{heading}: {value}"));
        }
    }
    output.done(&text, subscription)
}

/// Runs one of the actions of `sluice subscription`.
pub(super) async fn run(args: &Noun<Action>) -> Result<(), Failure> {
    let (client, output) = (Client::new(&args.client)?, args.client.output());
    match &args.action {
        Action::List { topic, group, active, part } => {
            let filters = [
                ("topicName", topic.clone()),
                ("consumerGroup", group.clone()),
                ("isActive", active.map(|active| active.to_string())),
            ];
            let found = client.list(&["subscriptions"], "subscriptions", *part, &filters).await?;
            output.list(&found, COLUMNS, "no subscriptions; `sluice subscribe TOPIC --group NAME` makes one")
        }
        Action::Get { id } => output.thing(&client.get(&["subscriptions", id], Query::default()).await?.body),
        Action::Update { id, settings, unset: away } => {
            let mut body = Map::new();
            settings.write(&mut body)?;
            unset(&mut body, away, &UNSET)?;
            update(&client, output, id, body).await
        }
        Action::Pause { id } => act(&client, output, id, &["pause"], "paused").await,
        Action::Resume { id } => act(&client, output, id, &["resume"], "resumed").await,
        Action::Delete { id } => {
            let answer = client.delete(&["subscriptions", id], Query::default()).await?;
            output.done(&format!("deleted {id}"), &answer)
        }
        Action::Seek { id, to, snapshot, partition } => {
            let place = to.as_ref().or(snapshot.as_ref()).map_or("", String::as_str);
            let mut body = if snapshot.is_some() { json!({ "snapshot": place }) } else { json!({ "to": place }) };
            if let Some(partition) = partition {
                body["partition"] = json!(partition);
            }
            let answer = client.post(&["subscriptions", id, "seek"], Query::default(), &body).await?;
            output.done(&format!("moved {id} to {place}"), &answer)
        }
        Action::Snapshot { id, name, delete: true } => {
            let answer = client.delete(&["subscriptions", id, "snapshots", name], Query::default()).await?;
            output.done(&format!("deleted the snapshot {name}"), &answer)
        }
        Action::Snapshot { id, name, delete: false } => {
            let answer = client.put(&["subscriptions", id, "snapshots", name], None, &json!({})).await?;
            output.done(&format!("kept where {id} is as {name}"), &answer)
        }
        Action::Snapshots { id, part } => {
            let found = client.list(&["subscriptions", id, "snapshots"], "snapshots", *part, &[]).await?;
            output.list(&found, SNAPSHOT_COLUMNS, "no snapshots; `sluice subscription snapshot ID NAME` makes one")
        }
        Action::Test { id } => output.thing(&client.act(&["subscriptions", id, "test"], Query::default()).await?),
        Action::Attempts { id, clear: true, .. } => {
            let answer = client.delete(&["subscriptions", id, "attempts"], Query::default()).await?;
            output.done(&format!("forgot the deliveries of {id}"), &answer)
        }
        Action::Metrics { id, window } => {
            let asked = Query::default().with("window", window.as_ref());
            output.thing(&client.get(&["subscriptions", id, "metrics"], asked).await?.body)
        }
        Action::Attempts { id, part, clear: false } => {
            let attempts = client.list(&["subscriptions", id, "attempts"], "attempts", *part, &[]).await?;
            output.list(&attempts, ATTEMPT_COLUMNS, "no deliveries yet")
        }
        Action::Rotate { id, overlap, signature } => {
            let given = [("overlap", overlap), ("signature", signature)];
            let given = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?))));
            let body = Value::Object(given.collect());
            let made = client.post(&["subscriptions", id, "secret", "rotate"], Query::default(), &body).await?;
            show_secret(output, "a new secret signs from now on", &made)
        }
    }
}

async fn act(client: &Client, output: Output, id: &str, action: &[&str], done: &str) -> Result<(), Failure> {
    let answer = client.act(&[&["subscriptions", id], action].concat(), Query::default()).await?;
    output.done(&format!("{done} {id}"), &answer)
}

async fn update(client: &Client, output: Output, id: &str, body: Map<String, Value>) -> Result<(), Failure> {
    if body.is_empty() {
        return Err(Failure::Usage(
            "nothing to change; `sluice subscription update --help` lists the settings".to_owned(),
        ));
    }
    let changed = client.put(&["subscriptions", id], None, &Value::Object(body)).await?;
    output.done(&format!("changed {id}"), &changed)
}
