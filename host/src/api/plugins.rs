//! Plugins, as this broker sees them. Invariant: a caller sees those that its token reaches, and those that came with the
//! binary. Never takes one in.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::extract::{Param, Query};
use super::page::{Paging, Window};
use super::problem::Problem;
use super::wire::Time;
use super::{Api, answer};
use crate::broker::Broker;
use crate::catalog::model::{PluginSource, Scope, SubscriptionId};
use crate::message::TopicName;
use crate::pipeline::{Binding, ComponentState, Lag, PluginProblem, PluginView, VersionView, powers_of};

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get))
}

/// A plugin.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct PluginAnswer {
    name: String,
    /// The one accepted last, which `latest` means, comes first.
    versions: Vec<VersionAnswer>,
    /// Pipelines on topics that the token reaches which do not follow `latest` yet; they are tried again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lagging: Vec<LagAnswer>,
    /// What last went wrong with a file of it; gone once a version is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<PluginErrorAnswer>,
    /// Instances that exist on this broker.
    instances: usize,
}

/// A version of a plugin.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct VersionAnswer {
    version: String,
    /// Whether `latest` means this one.
    latest: bool,
    /// Hex SHA-256 of the component.
    digest: String,
    /// Bytes of the component.
    size: u64,
    source: PluginSource,
    /// The interfaces that it imports.
    imports: Vec<String>,
    /// Those that are powers.
    powers: Vec<&'static str>,
    /// The trusted key that signed it, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    signed_by: Option<String>,
    created_by: String,
    created_at: Time,
    /// `Idle`, `Compiling`, `Ready` or `Failed`, on this broker.
    state: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Where it runs, on topics that the token reaches.
    bound: Vec<BindingAnswer>,
}

/// A stage that runs a version.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct BindingAnswer {
    #[schema(value_type = String)]
    topic_name: TopicName,
    /// Whose pipeline it is, if not the topic's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Uuid)]
    subscription_id: Option<SubscriptionId>,
    stage: String,
    /// Added by Sluice.
    implicit: bool,
    /// Whether it is not asked for the moment, after repeated faults.
    breaker_open: bool,
}

/// A pipeline that does not run `latest` yet.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct LagAnswer {
    #[schema(value_type = String)]
    topic_name: TopicName,
    /// Whose pipeline it is, if not the topic's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Uuid)]
    subscription_id: Option<SubscriptionId>,
    /// What is in the way.
    message: String,
}

/// What went wrong with a file or an upload.
#[derive(Debug, Serialize, ToSchema)]
struct PluginErrorAnswer {
    file: String,
    message: String,
    at: Time,
}

impl From<PluginProblem> for PluginErrorAnswer {
    fn from(problem: PluginProblem) -> PluginErrorAnswer {
        PluginErrorAnswer { file: problem.file, message: problem.message, at: Time(problem.at) }
    }
}

/// What to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Plugins at most.
    #[param(minimum = 1, maximum = 100, default = 100)]
    limit: Option<u64>,
    /// Plugins left out before.
    offset: Option<u64>,
}

/// Some plugins.
#[derive(Debug, Serialize, ToSchema)]
struct PluginList {
    /// By name.
    plugins: Vec<PluginAnswer>,
    #[serde(flatten)]
    paging: Paging,
}

/// List plugins.
#[utoipa::path(
    get, path = "/api/v1/plugins", tag = "plugins", params(ListQuery),
    responses((status = 200, description = "Those that the token reaches", body = PluginList)),
)]
async fn list(State(broker): State<Arc<Broker>>, caller: Caller, query: Query<ListQuery>) -> Result<Response, Problem> {
    let window = query.check(|query, faults| Window::read(query.limit, query.offset, faults))?;
    let mut all = broker.pipelines.plugins();
    all.retain(|plugin| reaches(&caller, plugin));
    let (part, paging) = window.of(all);
    let plugins = part.into_iter().map(|plugin| view(&broker, &caller, plugin)).collect();
    Ok(answer::ok(&PluginList { plugins, paging }))
}

/// Show a plugin.
#[utoipa::path(
    get, path = "/api/v1/plugins/{name}", tag = "plugins", params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "Its versions, and where they run", body = PluginAnswer)),
)]
async fn get(
    State(broker): State<Arc<Broker>>,
    caller: Caller,
    Param(name): Param<String>,
) -> Result<Response, Problem> {
    need(&broker, &caller, &name)?;
    let plugin = broker.pipelines.plugin(&name).ok_or_else(|| Problem::not_found("plugin", &name))?;
    Ok(answer::ok(&view(&broker, &caller, plugin)))
}

/// Refuses a plugin that the token does not reach. One that is not there is refused by name alone.
pub(super) fn need(broker: &Broker, caller: &Caller, name: &str) -> Result<(), Problem> {
    let scoped = caller.need_name("plugin", name);
    if scoped.is_ok() || broker.pipelines.plugin(name).is_some_and(|plugin| is_first_party(&plugin)) {
        return Ok(());
    }
    scoped
}

fn reaches(caller: &Caller, plugin: &PluginView) -> bool {
    is_first_party(plugin) || caller.scope().allows(&plugin.name)
}

fn is_first_party(plugin: &PluginView) -> bool {
    plugin.versions.iter().any(|version| version.version.source == PluginSource::Builtin)
}

fn view(broker: &Broker, caller: &Caller, plugin: PluginView) -> PluginAnswer {
    PluginAnswer {
        name: plugin.name,
        versions: plugin.versions.into_iter().map(|version| version_view(broker, caller, version)).collect(),
        lagging: plugin.lagging.into_iter().filter_map(|lag| lag_view(broker, caller, lag)).collect(),
        last_error: plugin.last_error.map(PluginErrorAnswer::from),
        instances: plugin.instances,
    }
}

pub(super) fn version_view(broker: &Broker, caller: &Caller, view: VersionView) -> VersionAnswer {
    let (state, error) = match view.state {
        ComponentState::Idle => ("Idle", None),
        ComponentState::Compiling => ("Compiling", None),
        ComponentState::Ready => ("Ready", None),
        ComponentState::Failed(why) => ("Failed", Some(why)),
    };
    let version = view.version;
    VersionAnswer {
        version: version.version,
        latest: view.latest,
        digest: version.digest,
        size: version.size,
        source: version.source,
        powers: powers_of(&version.imports),
        imports: version.imports,
        signed_by: version.signed_by,
        created_by: version.created_by,
        created_at: Time(version.created_at),
        state,
        error,
        bound: view.bound.into_iter().filter_map(|binding| binding_view(broker, caller, binding)).collect(),
    }
}

fn binding_view(broker: &Broker, caller: &Caller, binding: Binding) -> Option<BindingAnswer> {
    let (topic_name, subscription_id) = owner(broker, caller, binding.scope)?;
    Some(BindingAnswer {
        topic_name,
        subscription_id,
        stage: binding.stage,
        implicit: binding.implicit,
        breaker_open: binding.breaker_open,
    })
}

fn lag_view(broker: &Broker, caller: &Caller, lag: Lag) -> Option<LagAnswer> {
    let (topic_name, subscription_id) = owner(broker, caller, lag.scope)?;
    Some(LagAnswer { topic_name, subscription_id, message: lag.why })
}

/// Whose pipeline it is, if the caller reaches the topic.
pub(super) fn owner(broker: &Broker, caller: &Caller, scope: Scope) -> Option<(TopicName, Option<SubscriptionId>)> {
    let (topic, subscription) = match scope {
        Scope::Topic(topic) => (topic, None),
        Scope::Subscription(topic, subscription) => (topic, Some(subscription)),
    };
    let topic = broker.directory.topic_by_id(topic).filter(|topic| caller.need_topic(&topic.name).is_ok())?;
    Some((topic.name.clone(), subscription))
}
