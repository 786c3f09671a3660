//! Who changed what. Invariant: the log is the whole broker's, so a token that reaches only some topics may not read it.
//! Never writes an entry.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::extract::Query;
use super::page::{Paging, Window};
use super::problem::{Code, Problem};
use super::wire::Time;
use super::{Api, answer};
use crate::broker::Broker;
use crate::catalog::AuditFilter;
use crate::catalog::model::AuditEntry;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list))
}

/// What to list; all that is given must hold.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// A type (`topic`), a name or id (`orders`), or both (`topic/orders`).
    entity: Option<String>,
    /// Who changed it: a token's `sub`, or `system`.
    user: Option<String>,
    /// Not before this time.
    #[param(value_type = Option<Time>)]
    from: Option<Time>,
    /// Entries at most.
    #[param(minimum = 1, maximum = 100, default = 100)]
    limit: Option<u64>,
    /// Entries left out before.
    offset: Option<u64>,
}

/// Something that someone changed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct AuditView {
    id: i64,
    event_type: String,
    entity_type: String,
    entity_id: String,
    user_id: String,
    /// Before and after, without secrets.
    details: serde_json::Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    created_at: Time,
}

impl From<AuditEntry> for AuditView {
    fn from(entry: AuditEntry) -> AuditView {
        AuditView {
            id: entry.id,
            event_type: entry.event_type,
            entity_type: entry.entity_type,
            entity_id: entry.entity_id,
            user_id: entry.user_id,
            details: entry.details,
            trace_id: entry.trace_id,
            created_at: Time(entry.created_at),
        }
    }
}

/// Some entries.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct AuditList {
    /// Newest first.
    audit_logs: Vec<AuditView>,
    #[serde(flatten)]
    paging: Paging,
}

/// List changes.
#[utoipa::path(
    get, path = "/api/v1/audit-logs", tag = "operations", params(ListQuery),
    responses((status = 200, description = "Newest first", body = AuditList)),
)]
async fn list(State(broker): State<Arc<Broker>>, caller: Caller, query: Query<ListQuery>) -> Result<Response, Problem> {
    if !caller.scope().is_all() {
        let detail = "The audit log is the whole broker's; it needs the role Admin in a token without `topics`.";
        return Err(Problem::new(Code::Forbidden, detail));
    }
    let (filter, window) = query.check(|query, faults| {
        let window = Window::read(query.limit, query.offset, faults)?;
        Some((AuditFilter { entity: query.entity, user: query.user, from: query.from.map(|Time(at)| at) }, window))
    })?;
    let (entries, total) = broker.catalog.audit_entries(&filter, window.limit, window.offset).await?;
    let audit_logs = entries.into_iter().map(AuditView::from).collect();
    Ok(answer::ok(&AuditList { audit_logs, paging: window.paging(total) }))
}
