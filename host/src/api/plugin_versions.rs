//! Versions of plugins: brought, shown, fetched, deleted. Invariant: a version is brought or deleted only where the token reaches
//! the plugin's name; a body is held against its digest before anything is made of it; few components are in memory at
//! once. Never looks into a component.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRef, Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{self, HeaderValue};
use http_body_util::{BodyExt as _, Full};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::extract::{
    CONTENT_DIGEST, ContentDigest, IfNoneMatch, Intake, Param, Params2, Query, RawBody, content_digest, is_media_type,
};
use super::plugins::{VersionAnswer, need, version_view};
use super::problem::{Code, Problem};
use super::{Api, answer};
use crate::broker::Broker;
use crate::catalog::Accepted;
use crate::catalog::model::{PluginSource, PluginVersion, Scope};
use crate::config::Config;
use crate::pipeline::{NewComponent, PipelineError, SIGNATURE_BYTES, is_label, is_plugin_name, parse_signature};

/// Components that are received or sent at once: each may have `plugins.size_max` bytes, and its compiler takes many times
/// that.
const COMPONENTS_MAX: usize = 4;
/// So many times `limits.request_timeout` a client has to send a component: it may be larger than any other body.
const TIMES_LONGER: u32 = 10;
/// What a signature comes in.
const SIGNATURE: &str = "sluice-plugin-signature";
const MEDIA_TYPE: &str = "application/wasm";

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(upload)).routes(routes!(get, delete)).routes(routes!(fetch))
}

/// Room for components on their way in and out.
#[derive(Debug)]
pub struct Components {
    intake: Intake,
    places: Arc<Semaphore>,
}

impl FromRef<Api> for Arc<Components> {
    fn from_ref(api: &Api) -> Arc<Components> {
        Arc::clone(&api.components)
    }
}

impl Components {
    /// From the configuration. The bodies' own limits and budget: a component may be larger than other bodies.
    #[must_use]
    pub fn new(config: &Config) -> Components {
        let mut limits = config.limits.clone();
        limits.body_bytes_max = usize::try_from(config.plugins.size_max).unwrap_or(usize::MAX);
        limits.request_timeout = limits.request_timeout.checked_mul(TIMES_LONGER).unwrap_or(Duration::MAX);
        Components { intake: Intake::new(&limits), places: Arc::new(Semaphore::new(COMPONENTS_MAX)) }
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let detail = format!("{COMPONENTS_MAX} components are on their way already; come again later.");
            Problem::new(Code::Backpressure, detail)
        })
    }

    /// The body, if it is the one that `digest` speaks of.
    async fn receive(&self, headers: &HeaderMap, body: Body, digest: ContentDigest) -> Result<RawBody, Problem> {
        let (body, watched) = digest.watch(body);
        let received = self.intake.read(headers, body).await?;
        watched.check()?;
        Ok(received)
    }
}

/// Which version it is.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct UploadQuery {
    /// Its label, such as `1.2.0` [by default the one that these bytes have, or `sha-` and 12 digits of the digest]
    version: Option<String>,
}

/// One version, with what few ask.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct OneVersion {
    /// The plugin's.
    name: String,
    #[serde(flatten)]
    version: VersionAnswer,
    /// JSON Schema of its configs, if the component carries one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    config_schema: Option<serde_json::Value>,
}

/// What comes with a component.
struct Head {
    label: Option<String>,
    digest: ContentDigest,
    signature: Option<[u8; SIGNATURE_BYTES]>,
}

/// Bring a version of a plugin.
///
/// It is checked, compiled and tried with each config in use before anything is stored, which may take seconds; then it is
/// what `latest` means. A request that is broken off meanwhile is carried to its end.
#[utoipa::path(
    post, path = "/api/v1/plugins/{name}/versions", tag = "plugins",
    params(
        ("name" = String, Path, description = "The plugin's name"),
        UploadQuery,
        ("Content-Digest" = Option<String>, Header, description = "RFC 9530, `sha-256` or `sha-512`: what the body must come to"),
        ("Sluice-Plugin-Signature" = Option<String>, Header, description = "Base64 of an ed25519 signature over the component's SHA-256"),
    ),
    request_body(description = "The component", content((Vec<u8> = "application/wasm"))),
    responses(
        (status = 201, description = "It is new", body = OneVersion),
        (status = 200, description = "The same bytes were there", body = OneVersion),
    ),
)]
async fn upload(
    State(broker): State<Arc<Broker>>,
    State(components): State<Arc<Components>>,
    caller: Caller,
    Param(name): Param<String>,
    query: Query<UploadQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let begun = head(&caller, &name, query, &parts.headers).and_then(|head| Ok((head, components.place()?)));
    let (Head { label, digest, signature }, place) = match begun {
        Ok(begun) => begun,
        Err(problem) => {
            // A client that is cut off while it sends may never see why.
            components.intake.turn_away(&parts.headers, body).await;
            return Err(problem);
        }
    };
    let received = components.receive(&parts.headers, body, digest).await?;
    let bytes = received.bytes.clone();
    let new = NewComponent { name, version: label, bytes, source: PluginSource::Upload, signature };
    let (version, accepted) = broker.pipelines.accept(new, &caller.actor()).await?;
    drop((received, place));
    let view = view(&broker, &caller, &version).await?;
    Ok(match accepted {
        Accepted::New => {
            let location = format!("/api/v1/plugins/{}/versions/{}", version.plugin, version.version);
            answer::created(location, &view)
        }
        Accepted::Again => answer::ok(&view),
    })
}

/// All that can be refused before the body is read.
fn head(caller: &Caller, name: &str, query: Query<UploadQuery>, headers: &HeaderMap) -> Result<Head, Problem> {
    caller.need_name("plugin", name)?;
    let label = query.check(|query, faults| {
        if !is_plugin_name(name) {
            faults.push("/name", "a plugin's name is [a-z0-9][a-z0-9.-]{0,127}");
        }
        if query.version.as_ref().is_some_and(|label| !is_label(label)) {
            faults.push(
                "/version",
                "a version is 1 to 64 letters, digits, dots, hyphens, plus signs or underscores, and not `latest`",
            );
        }
        Some(query.version)
    })?;
    let media_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if !is_media_type(media_type, &[MEDIA_TYPE]) {
        return Err(Problem::new(Code::UnsupportedMediaType, format!("Send the component as {MEDIA_TYPE}.")));
    }
    let signature = headers.get(SIGNATURE).map(|value| value.to_str().map_err(|_| ()));
    let signature = signature.map(|text| parse_signature(text.unwrap_or_default())).transpose();
    let signature = signature
        .map_err(|why| Problem::invalid_at("", format!("the header Sluice-Plugin-Signature can't be read: {why}")))?;
    Ok(Head { label, digest: ContentDigest::read(headers)?, signature })
}

/// Show a version.
#[utoipa::path(
    get, path = "/api/v1/plugins/{name}/versions/{version}", tag = "plugins",
    params(
        ("name" = String, Path, description = "The plugin's name"),
        ("version" = String, Path, description = "Its label, or `latest`"),
    ),
    responses((status = 200, description = "The version, where it runs, what its configs look like", body = OneVersion)),
)]
async fn get(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(name, label): Params2<String, String>,
) -> Result<Response, Problem> {
    need(&broker, &caller, &name)?;
    let version = find(&broker, &name, &label)?;
    Ok(answer::ok(&view(&broker, &caller, &version).await?))
}

/// Fetch a version's component.
#[utoipa::path(
    get, path = "/api/v1/plugins/{name}/versions/{version}/wasm", tag = "plugins",
    params(
        ("name" = String, Path, description = "The plugin's name"),
        ("version" = String, Path, description = "Its label, or `latest`"),
        ("If-None-Match" = Option<String>, Header, description = "The components that the caller has, by `ETag`"),
    ),
    responses(
        (status = 200, description = "The component; `ETag` is its SHA-256, `Content-Digest` too",
         body = Vec<u8>, content_type = "application/wasm"),
        (status = 304, description = "The caller has it"),
    ),
)]
async fn fetch(
    State(broker): State<Arc<Broker>>,
    State(components): State<Arc<Components>>,
    caller: Caller,
    Params2(name, label): Params2<String, String>,
    known: IfNoneMatch,
) -> Result<Response, Problem> {
    need(&broker, &caller, &name)?;
    let version = find(&broker, &name, &label)?;
    if known.holds(&version.digest) {
        return Ok(answer::not_modified(&version.digest));
    }
    let place = components.place()?;
    let bytes = broker.catalog.plugin_bytes(&version.digest).await?.ok_or_else(|| missing(&name, &label))?;
    Ok(component(&version, bytes.into(), place))
}

/// The place is given back once the component is sent, or the client has gone.
fn component(version: &PluginVersion, bytes: Bytes, place: OwnedSemaphorePermit) -> Response {
    let length = bytes.len();
    let body = Full::new(bytes).map_frame(move |frame| {
        let _held: &OwnedSemaphorePermit = &place;
        frame
    });
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let ascii = |text: String| HeaderValue::try_from(text).expect("digests are plain ASCII");
    headers.insert(header::ETAG, ascii(format!("\"{}\"", version.digest)));
    headers.insert(CONTENT_DIGEST, ascii(content_digest(&version.digest)));
    response
}

/// Delete a version that no pipeline runs.
#[utoipa::path(
    delete, path = "/api/v1/plugins/{name}/versions/{version}", tag = "plugins",
    params(
        ("name" = String, Path, description = "The plugin's name"),
        ("version" = String, Path, description = "Its label"),
    ),
    responses((status = 204, description = "It is gone")),
)]
async fn delete(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Params2(name, label): Params2<String, String>,
) -> Result<Response, Problem> {
    caller.need_name("plugin", &name)?;
    match broker.pipelines.delete_version(&name, &label, &caller.actor()).await {
        Ok(()) => Ok(answer::no_content()),
        Err(PipelineError::Bound(scopes)) => Err(bound(&broker, &caller, &scopes)),
        Err(error) => Err(error.into()),
    }
}

/// Which pipelines are in the way: those on topics that the token reaches by name, the others by number.
fn bound(broker: &Broker, caller: &Caller, scopes: &[Scope]) -> Problem {
    let named = scopes.iter().filter_map(|scope| {
        let (topic, subscription) = super::plugins::owner(broker, caller, *scope)?;
        Some(match subscription {
            None => format!("the topic '{topic}'"),
            Some(id) => format!("the subscription {id} of '{topic}'"),
        })
    });
    let named: Vec<String> = named.collect();
    let hidden = scopes.len() - named.len();
    let others = match (hidden, named.is_empty()) {
        (0, _) => String::new(),
        (hidden, true) => format!("{hidden} on topics that the token does not reach"),
        (hidden, false) => format!(" and {hidden} on topics that the token does not reach"),
    };
    let detail = format!(
        "Pipelines run this version, or try it: {}{others}; change them, or end the rollout, first.",
        named.join(", ")
    );
    Problem::new(Code::Conflict, detail)
}

fn find(broker: &Broker, name: &str, label: &str) -> Result<PluginVersion, Problem> {
    broker.pipelines.version(name, label).ok_or_else(|| missing(name, label))
}

fn missing(name: &str, label: &str) -> Problem {
    Problem::not_found("version", format_args!("{label}' of the plugin '{name}"))
}

async fn view(broker: &Broker, caller: &Caller, version: &PluginVersion) -> Result<OneVersion, Problem> {
    let (name, label) = (&version.plugin, &version.version);
    let plugin = broker.pipelines.plugin(name).ok_or_else(|| missing(name, label))?;
    // It may have been deleted meanwhile.
    let shown = plugin.versions.into_iter().find(|known| known.version.version == *label);
    let shown = shown.ok_or_else(|| missing(name, label))?;
    let config_schema = broker.catalog.config_schema(name, label).await?;
    let config_schema = config_schema.and_then(|text| match serde_json::from_str(&text) {
        Ok(schema) => Some(schema),
        // It was read before it was stored. The version is shown without it; configs are held against the component's own.
        Err(error) => {
            tracing::error!(plugin = name, version = label, %error, "the stored schema of a plugin's configs can't be read");
            None
        }
    });
    Ok(OneVersion { name: name.clone(), version: version_view(broker, caller, shown), config_schema })
}
