//! `sluice schema`: JSON Schemas. Invariant: a definition is sent as it is written.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::arguments::{Noun, read_text};
use super::client::{Client, Part, Query};
use super::failure::{Failure, Refusal};
use super::output::Column;

const COLUMNS: &[Column] = &[
    ("ID", "/schemaId"),
    ("VERSION", "/version"),
    ("STATUS", "/status"),
    ("COMPATIBILITY", "/compatibility"),
    ("CREATED", "/createdAt"),
];

pub(super) const AFTER_HELP: &str = "\
Examples:
  sluice schema register orders.v1 --file orders.schema.json --compatibility Backward
  sluice schema validate orders.v1 --file order.json    exit code 1 when it is not valid";

const VALIDATE_AFTER_HELP: &str = "\
Exit code 1 when it is not valid.

Examples:
  sluice schema validate orders.v1 '{\"id\": 1}'
  sluice schema validate orders.v1 --file order.json";

/// Schemas.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Register a schema, or a new version of one
    #[command(
        after_help = "Example:\n  sluice schema register orders.v1 --file orders.schema.json --compatibility Backward"
    )]
    Register {
        /// Its id
        id: String,
        /// The JSON Schema; - is standard input
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// The version's name
        #[arg(long, default_value = "1.0")]
        version: String,
        /// What the next version may change [default: None]
        #[arg(long, value_name = "RULE", value_parser = ["None", "Backward", "Forward", "Full"])]
        compatibility: Option<String>,
    },
    /// Show one schema
    #[command(after_help = "Example:\n  sluice schema get orders.v1")]
    Get {
        /// Its id
        id: String,
    },
    /// Show all schemas
    #[command(after_help = "Example:\n  sluice schema list --status Approved")]
    List {
        /// Only those of this status
        #[arg(long, value_parser = ["Draft", "PendingApproval", "Approved", "Deprecated"])]
        status: Option<String>,
        #[command(flatten)]
        part: Part,
    },
    /// Show all versions of a schema
    #[command(after_help = "Example:\n  sluice schema versions orders.v1")]
    Versions {
        /// Its id
        id: String,
        #[command(flatten)]
        part: Part,
    },
    /// Hold a document against a schema
    #[command(after_help = VALIDATE_AFTER_HELP)]
    Validate {
        /// Its id
        id: String,
        /// The document
        #[arg(required_unless_present = "file", conflicts_with = "file")]
        payload: Option<String>,
        /// Read the document from a file; - is standard input
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// Runs one of the actions.
pub(super) async fn run(args: &Noun<Action>) -> Result<(), Failure> {
    let (client, output) = (Client::new(&args.client)?, args.client.output());
    match &args.action {
        Action::Register { id, file, version, compatibility } => {
            let mut body = json!({"schemaId": id, "schemaDefinition": read_text(file)?, "version": version});
            if let Some(rule) = compatibility {
                body["compatibility"] = json!(rule);
            }
            let schema = client.post(&["schemas"], Query::default(), &body).await?;
            output.done(&format!("registered {id} {version}"), &schema)
        }
        Action::Get { id } => output.thing(&client.get(&["schemas", id], Query::default()).await?.body),
        Action::List { status, part } => {
            let schemas = client.list(&["schemas"], "schemas", *part, &[("status", status.clone())]).await?;
            output.list(&schemas, COLUMNS, "no schemas")
        }
        Action::Versions { id, part } => {
            let versions = client.list(&["schemas", id, "versions"], "versions", *part, &[]).await?;
            output.list(&versions, COLUMNS, "no versions")
        }
        Action::Validate { id, payload, file } => {
            let text = match (payload, file) {
                (Some(payload), _) => payload.clone(),
                (None, Some(file)) => read_text(file)?,
                (None, None) => return Err(Failure::Usage("give a document or --file".to_owned())),
            };
            let body = json!({ "payload": text });
            let answer = client.post(&["schemas", id, "validate"], Query::default(), &body).await?;
            if answer["isValid"] == true {
                return output.done("valid", &answer);
            }
            if output.is_json() {
                output.document(&answer)?;
            }
            Err(not_valid(&answer).into())
        }
    }
}

fn not_valid(answer: &Value) -> Refusal {
    let fault = |error: &Value| json!({"pointer": error["path"], "message": error["message"]});
    let errors: Vec<Value> = answer["errors"].as_array().into_iter().flatten().map(fault).collect();
    Refusal { status: None, problem: json!({"detail": "the document is not valid", "errors": errors}) }
}
