//! What plugins are allowed. Invariant: only an Admin whose token reaches the plugin's name sets it. Never decides whether a
//! version needs a power.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::extract::{IfMatch, Json, Param};
use super::plugins::need;
use super::problem::{Faults, Problem};
use super::{Api, answer};
use crate::broker::Broker;
use crate::catalog::AllowedPowers;
use crate::pipeline::{POWERS, powers_of};

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(get, put))
}

/// What a plugin is to be allowed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PowersBody {
    /// All of it: `kv`, `metrics`, `schemas`.
    allowed: Option<Vec<String>>,
}

/// What a plugin may use beyond its batch and its log.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct PowersAnswer {
    /// What versions may use that come in from now on, beyond what the version in use does.
    allowed: Vec<String>,
    /// What the version in use imports.
    in_use: Vec<&'static str>,
}

/// Show what a plugin is allowed.
#[utoipa::path(
    get, path = "/api/v1/plugins/{name}/powers", tag = "plugins", params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "What it is allowed, and what it uses", body = PowersAnswer)),
)]
async fn get(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<String>,
) -> Result<Response, Problem> {
    need(&broker, &caller, &name)?;
    shown(&broker, &name, broker.pipelines.allowed_powers(&name).await?)
}

/// Set what a plugin is allowed.
///
/// What runs goes on. It counts for versions that come in from now on; a file in the plugins' folder that was refused for
/// it is tried again.
#[utoipa::path(
    put, path = "/api/v1/plugins/{name}/powers", tag = "plugins", request_body = PowersBody,
    params(
        ("name" = String, Path, description = "Its name"),
        ("If-Match" = Option<String>, Header, description = "The version that the change is made from"),
    ),
    responses((status = 200, description = "What it is allowed now", body = PowersAnswer)),
)]
async fn put(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<String>,
    if_match: IfMatch,
    body: Json<PowersBody>,
) -> Result<Response, Problem> {
    caller.need_name("plugin", &name)?;
    let allowed = body.check(powers)?;
    let set = broker.pipelines.allow_powers(&name, &allowed, if_match.expected()?, &caller.actor()).await?;
    shown(&broker, &name, set)
}

fn powers(body: PowersBody, faults: &mut Faults) -> Option<Vec<&'static str>> {
    let allowed = faults.require("/allowed", body.allowed)?;
    let mut known = Vec::with_capacity(POWERS.len());
    for (at, power) in allowed.iter().enumerate() {
        match POWERS.into_iter().find(|known| known == power) {
            Some(power) if !known.contains(&power) => known.push(power),
            Some(_) => faults.push(format!("/allowed/{at}"), "is there twice"),
            None => faults.push(format!("/allowed/{at}"), format!("is no power; there are {}", POWERS.join(", "))),
        }
    }
    Some(known)
}

fn shown(broker: &Broker, name: &str, powers: Option<AllowedPowers>) -> Result<Response, Problem> {
    let powers = powers.ok_or_else(|| Problem::not_found("plugin", name))?;
    let in_use = broker.pipelines.version(name, "latest").map(|version| powers_of(&version.imports));
    let answer = PowersAnswer { allowed: powers.allowed, in_use: in_use.unwrap_or_default() };
    Ok(answer::tagged(answer::ok(&answer), powers.version))
}
