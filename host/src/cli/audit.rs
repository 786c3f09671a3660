//! `sluice audit`: who changed what. Invariant: only reads.

use clap::Args;

use super::client::{Client, ClientArgs, Part};
use super::failure::Failure;
use super::output::Column;

const COLUMNS: &[Column] =
    &[("WHEN", "/createdAt"), ("WHO", "/userId"), ("WHAT", "/eventType"), ("ON", "/entityType"), ("ID", "/entityId")];

const AFTER_HELP: &str = "\
--json shows what stood there before and after, too.

Examples:
  sluice audit --limit 20
  sluice audit --entity orders --from 2026-01-31T00:00:00Z";

/// Who changed what.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct AuditArgs {
    /// Only changes of this thing
    #[arg(long, value_name = "ID")]
    entity: Option<String>,
    /// Only changes by this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Only changes from this time on, RFC 3339
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    #[command(flatten)]
    part: Part,
    #[command(flatten)]
    client: ClientArgs,
}

/// Shows the audit log.
pub(super) async fn run(args: &AuditArgs) -> Result<(), Failure> {
    let filters = [("entity", args.entity.clone()), ("user", args.user.clone()), ("from", args.from.clone())];
    let found = Client::new(&args.client)?.list(&["audit-logs"], "auditLogs", args.part, &filters).await?;
    args.client.output().list(&found, COLUMNS, "nothing was changed")
}
