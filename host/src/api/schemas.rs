//! The schema registry: registered, read, asked. Invariant: a registration that breaks what is declared is refused with
//! every break. Never approves.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::extract::{Json, Param, Query};
use super::page::{Paging, Window, WindowQuery};
use super::problem::{Faults, Problem};
use super::wire::Time;
use super::{Api, answer};
use crate::broker::Broker;
use crate::catalog::model::{Compatibility, Schema, SchemaStatus};
use crate::catalog::{NewSchema, Registered};
use crate::schemas::Fault;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(register, list))
        .routes(routes!(get))
        .routes(routes!(versions))
        .routes(routes!(validate))
}

/// A version to be registered.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SchemaBody {
    /// Letters, digits, `.`, `_`, `-`.
    #[schema(value_type = String, example = "deployment.event.v1")]
    schema_id: Option<String>,
    /// JSON Schema: inline, or as text.
    #[schema(value_type = serde_json::Value)]
    schema_definition: Option<Box<RawValue>>,
    /// The version's name.
    #[schema(value_type = String, example = "1.0")]
    version: Option<String>,
    /// What later versions may change (`None`).
    compatibility: Option<Compatibility>,
}

impl SchemaBody {
    fn check(self, faults: &mut Faults) -> Option<NewSchema> {
        let id = faults.require("/schemaId", self.schema_id);
        let version = faults.require("/version", self.version);
        let definition = faults.require("/schemaDefinition", self.schema_definition);
        let definition = definition.and_then(|raw| faults.keep("/schemaDefinition", text_of(&raw)));
        let compatibility = self.compatibility.unwrap_or_default();
        Some(NewSchema { id: id?, version: version?, definition: definition?, compatibility })
    }
}

/// `null` is a payload too, so an option alone would not do.
fn present<'de, D: serde::Deserializer<'de>>(source: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(source).map(Some)
}

/// A string's content, or any other value's exact text.
fn text_of(raw: &RawValue) -> Result<String, serde_json::Error> {
    if raw.get().starts_with('"') { serde_json::from_str(raw.get()) } else { Ok(raw.get().to_owned()) }
}

/// A schema's version.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SchemaView {
    #[schema(value_type = String)]
    schema_id: Arc<str>,
    version: String,
    /// JSON Schema, as registered.
    schema_definition: String,
    compatibility: Compatibility,
    status: SchemaStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    approved_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approved_at: Option<Time>,
    created_at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    deprecated_at: Option<Time>,
}

impl From<Schema> for SchemaView {
    fn from(schema: Schema) -> SchemaView {
        SchemaView {
            schema_id: schema.id,
            version: schema.version,
            schema_definition: schema.definition,
            compatibility: schema.compatibility,
            status: schema.status,
            approved_by: schema.approved_by,
            approved_at: schema.approved_at.map(Time),
            created_at: Time(schema.created_at),
            deprecated_at: schema.deprecated_at.map(Time),
        }
    }
}

/// Register a schema's version.
#[utoipa::path(
    post, path = "/api/v1/schemas", tag = "schemas", request_body = SchemaBody,
    responses(
        (status = 201, description = "Registered, and used by the topics that name it", body = SchemaView),
        (status = 200, description = "It had been registered before", body = SchemaView),
    ),
)]
async fn register(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    body: Json<SchemaBody>,
) -> Result<Response, Problem> {
    let new = body.check(SchemaBody::check)?;
    caller.need_name("schema", &new.id)?;
    let actor = caller.actor();
    let (schema, registered) = broker.schemas.register(new, &actor).await?;
    // Also when it was known: a broker that stopped between the two steps is caught up with.
    broker.directory.schema_changed(&schema.id, &actor).await?;
    let location = format!("/api/v1/schemas/{}", schema.id);
    let view = SchemaView::from(schema);
    Ok(if registered == Registered::New { answer::created(location, &view) } else { answer::ok(&view) })
}

/// What to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only those with this status.
    status: Option<SchemaStatus>,
    /// Schemas at most.
    #[param(minimum = 1, maximum = 100, default = 100)]
    limit: Option<u64>,
    /// Schemas left out before.
    offset: Option<u64>,
}

/// Some schemas.
#[derive(Debug, Serialize, ToSchema)]
struct SchemaList {
    /// By id, each with the version that validates now.
    schemas: Vec<SchemaView>,
    #[serde(flatten)]
    paging: Paging,
}

/// List schemas.
#[utoipa::path(
    get, path = "/api/v1/schemas", tag = "schemas", params(ListQuery),
    responses((status = 200, description = "Each with the version that validates now", body = SchemaList)),
)]
async fn list(State(broker): State<Arc<Broker>>, query: Query<ListQuery>) -> Result<Response, Problem> {
    let (status, window) =
        query.check(|query, faults| Some((query.status, Window::read(query.limit, query.offset, faults)?)))?;
    let (schemas, total) = broker.schemas.list(status, window.limit, window.offset).await?;
    let schemas = schemas.into_iter().map(SchemaView::from).collect();
    Ok(answer::ok(&SchemaList { schemas, paging: window.paging(total) }))
}

/// Show a schema.
#[utoipa::path(
    get, path = "/api/v1/schemas/{id}", tag = "schemas", params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "With the version that validates now", body = SchemaView)),
)]
async fn get(State(broker): State<Arc<Broker>>, Param(id): Param<String>) -> Result<Response, Problem> {
    Ok(answer::ok(&SchemaView::from(broker.schemas.get(&id).await?)))
}

/// Some versions.
#[derive(Debug, Serialize, ToSchema)]
struct VersionList {
    /// Latest first.
    versions: Vec<SchemaView>,
    #[serde(flatten)]
    paging: Paging,
}

/// List a schema's versions.
#[utoipa::path(
    get, path = "/api/v1/schemas/{id}/versions", tag = "schemas",
    params(("id" = String, Path, description = "Its id"), WindowQuery),
    responses((status = 200, description = "Latest first", body = VersionList)),
)]
async fn versions(
    State(broker): State<Arc<Broker>>,
    Param(id): Param<String>,
    query: Query<WindowQuery>,
) -> Result<Response, Problem> {
    let window = query.check(WindowQuery::window)?;
    let (versions, paging) = window.of(broker.schemas.versions(&id).await?);
    Ok(answer::ok(&VersionList { versions: versions.into_iter().map(SchemaView::from).collect(), paging }))
}

/// A payload to be checked.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ValidateBody {
    /// A string that holds the document, or any JSON value inline, as in a publish.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = serde_json::Value)]
    payload: Option<Box<RawValue>>,
}

/// Whether a payload matches.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ValidateAnswer {
    is_valid: bool,
    /// What is wrong, by JSON Pointer into the payload; the first 50.
    errors: Vec<Fault>,
}

/// Check a payload.
#[utoipa::path(
    post, path = "/api/v1/schemas/{id}/validate", tag = "schemas", request_body = ValidateBody,
    params(("id" = String, Path, description = "Its id")),
    responses((status = 200, description = "Whether it matches the version that validates now", body = ValidateAnswer)),
)]
async fn validate(
    State(broker): State<Arc<Broker>>,
    Param(id): Param<String>,
    body: Json<ValidateBody>,
) -> Result<Response, Problem> {
    let text = body.check(|body, faults| {
        let raw = faults.require("/payload", body.payload)?;
        faults.keep("/payload", text_of(&raw))
    })?;
    let errors = match serde_json::from_str(&text) {
        Ok(payload) => broker.schemas.validate(&id, payload).await?,
        Err(error) => vec![Fault { path: String::new(), message: format!("is not JSON: {error}") }],
    };
    Ok(answer::ok(&ValidateAnswer { is_valid: errors.is_empty(), errors }))
}
