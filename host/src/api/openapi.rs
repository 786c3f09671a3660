//! The API's own description: `/openapi.json`, and Swagger UI at `/swagger`. Invariant: the document is made from the
//! routes that are served, with each one's role from the route table. Never describes what is not there.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing;
use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderValue};
use utoipa::OpenApi as _;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};

use super::Api;
use super::auth::table::{Lookup, Need, ROUTES, Route, find};
use super::problem::{Problem, ProblemBody};

/// What the document says of itself.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Sluice",
        description = "A message broker whose topics run your own WebAssembly logic. \
            A request's body may have a `Content-Encoding` of `gzip` or `zstd`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(ProblemBody)),
    security(("bearer" = [])),
    tags(
        (name = "messages", description = "Published, consumed, settled"),
        (name = "topics", description = "Where messages go"),
        (name = "dead letters", description = "What failed for good"),
        (name = "subscriptions", description = "Who gets messages, and how"),
        (name = "schemas", description = "What payloads must look like"),
        (name = "pipelines", description = "What runs on messages"),
        (name = "plugins", description = "What can run"),
        (name = "operations", description = "The broker itself"),
    ),
)]
struct Description;

/// The document's beginning, before any route.
#[must_use]
pub fn base() -> OpenApi {
    let mut document = Description::openapi();
    let scheme = SecurityScheme::Http(Http::builder().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build());
    document.components.get_or_insert_default().add_security_scheme("bearer", scheme);
    document
}

/// Adds to each operation what is the same for all: its role, and that its refusals are problems.
#[must_use]
pub fn complete(mut document: OpenApi) -> OpenApi {
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            let Lookup::Found(_, route) = find(&method, path) else { continue };
            describe(operation, route);
            // Handlers of different nouns have the same names; an operation's id must be its own.
            operation.operation_id = Some(operation_id(route));
        }
    }
    document
}

/// `getTopicsByTopicPipeline` for `GET /api/v1/topics/{topic}/pipeline`.
fn operation_id(route: &Route) -> String {
    let path = route.path.trim_start_matches("/api/v1");
    let words = path.split(['/', '-']).filter(|word| !word.is_empty()).map(|word| {
        let name = word.trim_matches(['{', '}']);
        let by = if name.len() < word.len() { "By" } else { "" };
        format!("{by}{}{}", name[..1].to_uppercase(), &name[1..])
    });
    std::iter::once(route.method.as_str().to_lowercase()).chain(words).collect()
}

/// By a route's place in the table: whether it takes query parameters. The documentation's own files take any, as
/// browsers add some.
#[must_use]
pub fn takes_query(document: &mut OpenApi) -> Vec<bool> {
    let mut takes: Vec<bool> = ROUTES.iter().map(|route| matches!(route.need, Need::Docs)).collect();
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            let Lookup::Found(index, _) = find(&method, path) else { continue };
            let is_query = |parameter: &RefOr<Parameter>| matches!(parameter, RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query);
            takes[index] = operation.parameters.iter().flatten().any(is_query);
        }
    }
    takes
}

fn operations(item: &mut PathItem) -> Vec<(http::Method, &mut Operation)> {
    let all = [
        (http::Method::GET, item.get.as_mut()),
        (http::Method::POST, item.post.as_mut()),
        (http::Method::PUT, item.put.as_mut()),
        (http::Method::DELETE, item.delete.as_mut()),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation?))).collect()
}

fn describe(operation: &mut Operation, route: &Route) {
    let need = match route.need {
        Need::Nothing => "Needs no token.".to_owned(),
        Need::Metrics | Need::Docs => "Needs no token, unless so configured.".to_owned(),
        Need::Role(role) => format!("Needs the role {role}."),
    };
    let said = operation.description.take().map(|said| format!("{said}\n\n")).unwrap_or_default();
    operation.description = Some(said + &need);
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let problem = ResponseBuilder::new()
        .description("A problem (RFC 9457); `code` says which")
        .content("application/problem+json", content)
        .build();
    operation.responses.responses.insert("default".to_owned(), problem.into());
}

/// The document as it is served, written once.
#[derive(Debug, Clone)]
pub struct Document(pub Bytes);

impl Document {
    /// Writes the document.
    #[must_use]
    pub fn of(document: &OpenApi) -> Document {
        Document(serde_json::to_vec(document).expect("an OpenAPI document is plain JSON").into())
    }
}

/// Its routes. They describe the API and are no part of its description.
pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/openapi.json", routing::get(document))
        .route("/swagger", routing::get(|| async { to_index() }))
        .route("/swagger/", routing::get(|| async { swagger("index.html") }))
        .route("/swagger/{*file}", routing::get(|Path(file): Path<String>| async move { swagger(&file) }))
}

async fn document(State(document): State<Document>) -> Response {
    let mut response = Response::new(Body::from(document.0));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The page's own links are relative, so it needs the slash.
fn to_index() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/swagger/"));
    response
}

static SWAGGER: LazyLock<Arc<utoipa_swagger_ui::Config<'static>>> =
    LazyLock::new(|| Arc::new(utoipa_swagger_ui::Config::from("/openapi.json")));

fn swagger(file: &str) -> Result<Response, Problem> {
    let found = utoipa_swagger_ui::serve(file, Arc::clone(&SWAGGER)).map_err(Problem::internal)?;
    let found = found.ok_or_else(|| Problem::not_found("file", file))?;
    let mut response = Response::new(Body::from(found.bytes.into_owned()));
    let content_type = HeaderValue::try_from(found.content_type).map_err(Problem::internal)?;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}
