//! `sluice topic`: topics. Invariant: an update changes what was asked for and keeps the rest. Never fills in defaults:
//! those are the broker's.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::arguments::{Noun, iso_duration, unset};
use super::client::{Client, Part, Query};
use super::failure::Failure;
use super::output::Column;

const COLUMNS: &[Column] = &[
    ("NAME", "/name"),
    ("TYPE", "/type"),
    ("GUARANTEE", "/deliveryGuarantee"),
    ("PARTITIONS", "/partitionCount"),
    ("RETENTION", "/retentionPeriod"),
    ("SCHEMA", "/schemaId"),
];

/// Options that an update can take away.
const UNSET: [(&str, &str); 2] = [("schema-id", "schemaId"), ("retention-bytes", "retentionBytes")];

pub(super) const AFTER_HELP: &str = "\
Examples:
  sluice topic create orders                   a Queue: each message to one consumer
  sluice topic create deployment.events --type PubSub --partitions 8 --retention P30D
  sluice topic update orders --schema-id orders.v1
  sluice topic metrics orders";

const CREATE_AFTER_HELP: &str = "\
Examples:
  sluice topic create orders                   a Queue: each message to one consumer
  sluice topic create deployment.events --type PubSub --partitions 8 --retention P30D";

const UPDATE_AFTER_HELP: &str = "\
Examples:
  sluice topic update orders --schema-id orders.v1 --retention P30D
  sluice topic update orders --unset schema-id    payloads are held against nothing";

/// Topics.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Make a topic
    #[command(after_help = CREATE_AFTER_HELP)]
    Create {
        /// Its name: letters, digits, dots, underscores, hyphens
        name: String,
        /// Queue (each message to one consumer) or PubSub (to every subscription); can't be changed
        #[arg(long = "type", value_name = "TYPE", default_value = "Queue", value_parser = ["Queue", "PubSub"])]
        kind: String,
        /// Partitions, 1 to 64; can't be changed [default: 1]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
        partitions: Option<u16>,
        /// Where its messages are: default (the broker's store) or redis; can't be changed [default: default]
        #[arg(long, value_name = "WHERE", value_parser = ["default", "redis"])]
        storage: Option<String>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Show all topics
    #[command(after_help = "Examples:\n  sluice topic list\n  sluice topic list --type PubSub --json")]
    List {
        /// Only this type
        #[arg(long = "type", value_name = "TYPE", value_parser = ["Queue", "PubSub"])]
        kind: Option<String>,
        #[command(flatten)]
        part: Part,
    },
    /// Show one topic
    #[command(after_help = "Example:\n  sluice topic get orders")]
    Get {
        /// Its name
        name: String,
    },
    /// Change a topic; what is not given stays
    #[command(after_help = UPDATE_AFTER_HELP)]
    Update {
        /// Its name
        name: String,
        #[command(flatten)]
        settings: Settings,
        /// Take this setting away; may be given again
        #[arg(long, value_name = "SETTING", value_parser = UNSET.map(|(option, _)| option))]
        unset: Vec<String>,
    },
    /// Delete a topic with its messages and dead letters
    #[command(after_help = "Example:\n  sluice topic delete orders --force")]
    Delete {
        /// Its name
        name: String,
        /// Also when it has subscriptions
        #[arg(long)]
        force: bool,
    },
    /// Show a topic's figures: what it holds, and how far each group is
    #[command(after_help = "Example:\n  sluice topic metrics orders")]
    Metrics {
        /// Its name
        name: String,
    },
    /// Discard all messages of a topic
    #[command(after_help = "Example:\n  sluice topic purge orders")]
    Purge {
        /// Its name
        name: String,
    },
}

/// What an owner chooses.
#[derive(Debug, Args)]
pub(super) struct Settings {
    /// For people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// The schema that payloads are held against
    #[arg(long, value_name = "ID")]
    schema_id: Option<String>,
    /// How often a message may reach a consumer [default: AtLeastOnce]
    #[arg(long, value_name = "GUARANTEE", value_parser = ["AtMostOnce", "AtLeastOnce", "ExactlyOnce"])]
    guarantee: Option<String>,
    /// How long messages are kept, ISO 8601 [default: P7D]
    #[arg(long, value_name = "DURATION", value_parser = iso_duration)]
    retention: Option<String>,
    /// In how many bytes at most
    #[arg(long, value_name = "BYTES")]
    retention_bytes: Option<u64>,
    /// Bytes of a payload at most [default: 1048576]
    #[arg(long, value_name = "BYTES")]
    max_message_size: Option<u64>,
    /// How long idempotency keys are remembered, ISO 8601 [default: PT10M]
    #[arg(long, value_name = "DURATION", value_parser = iso_duration)]
    dedup_window: Option<String>,
    /// How many idempotency keys are remembered at most [default: 1000000]
    #[arg(long, value_name = "COUNT")]
    dedup_max_keys: Option<u32>,
    /// What dead letters keep: original or none [default: original]
    #[arg(long, value_name = "WHAT", value_parser = ["original", "none"])]
    dead_letter_payload: Option<String>,
    /// Whether a message that expires undelivered becomes a dead letter [default: false]
    #[arg(long, value_name = "BOOL")]
    dead_letter_expired: Option<bool>,
    /// How many dead letters make the topic sluice.events tell of it [default: 100]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    dead_letter_threshold: Option<u64>,
    /// Keep what arrives for so long as it was before the stages, for dry runs, ISO 8601; `off` ends that [default: off]
    #[arg(long, value_name = "DURATION", value_parser = duration_or_off)]
    capture_input: Option<String>,
    /// In how many bytes [default: as many as before, at first 67108864]
    #[arg(long, value_name = "BYTES", requires = "capture_input")]
    capture_bytes: Option<u64>,
}

const OFF: &str = "off";

fn duration_or_off(text: &str) -> Result<String, String> {
    if text == OFF { Ok(text.to_owned()) } else { iso_duration(text) }
}

impl Settings {
    fn write(&self, body: &mut Map<String, Value>) {
        let given = [
            ("description", self.description.as_ref().map(|it| json!(it))),
            ("schemaId", self.schema_id.as_ref().map(|it| json!(it))),
            ("deliveryGuarantee", self.guarantee.as_ref().map(|it| json!(it))),
            ("retentionPeriod", self.retention.as_ref().map(|it| json!(it))),
            ("retentionBytes", self.retention_bytes.map(|it| json!(it))),
            ("maxMessageSize", self.max_message_size.map(|it| json!(it))),
            ("dedupWindow", self.dedup_window.as_ref().map(|it| json!(it))),
            ("dedupMaxKeys", self.dedup_max_keys.map(|it| json!(it))),
            ("deadLetterPayload", self.dead_letter_payload.as_ref().map(|it| json!(it))),
            ("deadLetterExpired", self.dead_letter_expired.map(|it| json!(it))),
            ("deadLetterThreshold", self.dead_letter_threshold.map(|it| json!(it))),
            ("captureInput", self.capture_input.as_deref().map(|ttl| self.capture(ttl))),
        ];
        body.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    }

    /// Whether the time alone is said: of the broker's settings it takes the whole.
    fn keeps_capture_bytes(&self) -> bool {
        self.capture_bytes.is_none() && self.capture_input.as_deref().is_some_and(|ttl| ttl != OFF)
    }

    fn capture(&self, ttl: &str) -> Value {
        match (ttl, self.capture_bytes) {
            (OFF, _) => Value::Null,
            (ttl, None) => json!({ "ttl": ttl }),
            (ttl, Some(bytes)) => json!({ "ttl": ttl, "maxBytes": bytes }),
        }
    }
}

/// Runs one of the actions.
pub(super) async fn run(args: &Noun<Action>) -> Result<(), Failure> {
    let (client, output) = (Client::new(&args.client)?, args.client.output());
    match &args.action {
        Action::Create { name, kind, partitions, storage, settings } => {
            let mut body = Map::from_iter([("name".to_owned(), json!(name)), ("type".to_owned(), json!(kind))]);
            body.extend(partitions.map(|count| ("partitionCount".to_owned(), json!(count))));
            body.extend(storage.as_ref().map(|place| ("storage".to_owned(), json!(place))));
            settings.write(&mut body);
            let topic = client.post(&["topics"], Query::default(), &Value::Object(body)).await?;
            output.done(&format!("created the {kind} {name}"), &topic)
        }
        Action::List { kind, part } => {
            let topics = client.list(&["topics"], "topics", *part, &[("type", kind.clone())]).await?;
            output.list(&topics, COLUMNS, "no topics; `sluice topic create NAME` makes one")
        }
        Action::Get { name } => output.thing(&client.get(&["topics", name], Query::default()).await?.body),
        Action::Update { name, settings, unset: away } => {
            let mut body = Map::new();
            settings.write(&mut body);
            if settings.keeps_capture_bytes() {
                let known = client.get(&["topics", name], Query::default()).await?.body;
                if let Some(bytes) = known.pointer("/captureInput/maxBytes") {
                    body["captureInput"]["maxBytes"] = bytes.clone();
                }
            }
            unset(&mut body, away, &UNSET)?;
            if body.is_empty() {
                return Err(Failure::Usage(
                    "nothing to change; `sluice topic update --help` lists the settings".to_owned(),
                ));
            }
            let topic = client.put(&["topics", name], None, &Value::Object(body)).await?;
            output.done(&format!("changed {name}"), &topic)
        }
        Action::Delete { name, force } => {
            let query = Query::default().with("force", force.then_some(true));
            let answer = client.delete(&["topics", name], query).await?;
            output.done(&format!("deleted {name}"), &answer)
        }
        Action::Metrics { name } => {
            output.thing(&client.get(&["topics", name, "metrics"], Query::default()).await?.body)
        }
        Action::Purge { name } => {
            let answer = client.act(&["topics", name, "purge"], Query::default()).await?;
            output.done(&format!("purged {name}"), &answer)
        }
    }
}
