//! Every route and who may use it. Invariant: what is not in this table is not answered: the edge looks each request up
//! here before the handler sees it, and a test holds the table against the OpenAPI document of the registered routes.
//! Never knows who is asking.

use std::collections::HashMap;
use std::sync::LazyLock;

use http::Method;

use super::token::Role;

/// What a caller must bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// Nothing, or the role Viewer where the configuration does not make `/metrics` public.
    Metrics,
    /// Nothing, or the role Viewer where the configuration does not make the documentation public.
    Docs,
    /// This role (Admin has every role, every role but Viewer has Viewer).
    Role(Role),
}

/// Which rate limit a route counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// `rate_limiting.publish`.
    Publish,
    /// `rate_limiting.consume`.
    Consume,
    /// `rate_limiting.topics`.
    Topics,
}

/// The media type that a route answers with, when all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Produces {
    /// `application/json`.
    Json,
    /// `text/event-stream`.
    Events,
    /// `application/x-ndjson`.
    Lines,
    /// `application/wasm`.
    Wasm,
    /// Whatever it is, no header asks for anything else.
    Anything,
}

/// The methods in use. `http::Method` cannot stand in a table made at compile time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// `GET`, and `HEAD`, which is the same without the body.
    Get,
    /// `POST`.
    Post,
    /// `PUT`.
    Put,
    /// `DELETE`.
    Delete,
}

impl Verb {
    /// As in a request.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "GET",
            Verb::Post => "POST",
            Verb::Put => "PUT",
            Verb::Delete => "DELETE",
        }
    }

    fn is(self, method: &Method) -> bool {
        match self {
            Verb::Get => method == Method::GET,
            Verb::Post => method == Method::POST,
            Verb::Put => method == Method::PUT,
            Verb::Delete => method == Method::DELETE,
        }
    }
}

/// One route.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// Its method.
    pub method: Verb,
    /// Its path, as the router has it.
    pub path: &'static str,
    /// What a caller must bring.
    pub need: Need,
    /// What it counts against.
    pub budget: Option<Budget>,
    /// What it answers.
    pub produces: Produces,
    /// Whether asking changes nothing, so that HEAD may ask too. Consuming leases.
    pub safe: bool,
    /// Whether it is carried to its end even if its client hangs up (`changes.rs`).
    pub outlives_client: bool,
}

impl Route {
    fn takes(&self, method: &Method) -> bool {
        self.method.is(method) || (self.safe && method == Method::HEAD)
    }
}

const fn route(method: Verb, path: &'static str, need: Need) -> Route {
    let safe = matches!(method, Verb::Get);
    Route { method, path, need, budget: None, produces: Produces::Json, safe, outlives_client: !safe }
}

const fn get(path: &'static str, role: Role) -> Route {
    route(Verb::Get, path, Need::Role(role))
}

const fn post(path: &'static str, role: Role) -> Route {
    route(Verb::Post, path, Need::Role(role))
}

const fn put(path: &'static str, role: Role) -> Route {
    route(Verb::Put, path, Need::Role(role))
}

const fn delete(path: &'static str, role: Role) -> Route {
    route(Verb::Delete, path, Need::Role(role))
}

const fn within(budget: Budget, route: Route) -> Route {
    Route { budget: Some(budget), ..route }
}

/// What is one step of the store, or changes nothing: there is no half of it that would need an end.
const fn one_step(route: Route) -> Route {
    Route { outlives_client: false, ..route }
}

const fn open(path: &'static str, need: Need, produces: Produces) -> Route {
    Route { produces, ..route(Verb::Get, path, need) }
}

use Budget::{Consume, Publish, Topics};
use Role::{Admin, Consumer, PluginAuthor, Producer, Viewer};

/// All routes.
pub static ROUTES: &[Route] = &[
    one_step(within(Publish, post("/api/v1/messages/publish", Producer))),
    one_step(within(Publish, post("/api/v1/messages/publish/batch", Producer))),
    within(Publish, Route { produces: Produces::Lines, ..one_step(post("/api/v1/messages/publish/stream", Producer)) }),
    one_step(within(Publish, post("/api/v1/messages/request", Producer))),
    within(Consume, Route { safe: false, ..get("/api/v1/messages/consume/{topic}", Consumer) }),
    within(
        Consume,
        Route { safe: false, produces: Produces::Events, ..get("/api/v1/messages/stream/{topic}", Consumer) },
    ),
    one_step(post("/api/v1/messages/{id}/ack", Consumer)),
    one_step(post("/api/v1/messages/{id}/nack", Consumer)),
    one_step(post("/api/v1/messages/{id}/extend", Consumer)),
    one_step(post("/api/v1/messages/ack/batch", Consumer)),
    get("/api/v1/messages/{id}", Viewer),
    delete("/api/v1/messages/{id}", Admin),
    within(Topics, post("/api/v1/topics", Producer)),
    get("/api/v1/topics", Viewer),
    get("/api/v1/topics/{topic}", Viewer),
    within(Topics, put("/api/v1/topics/{topic}", Admin)),
    within(Topics, delete("/api/v1/topics/{topic}", Admin)),
    within(Topics, post("/api/v1/topics/{topic}/purge", Admin)),
    get("/api/v1/topics/{topic}/metrics", Viewer),
    get("/api/v1/topics/{topic}/messages", Viewer),
    get("/api/v1/topics/{topic}/dlq", Viewer),
    post("/api/v1/topics/{topic}/dlq/replay", Consumer),
    post("/api/v1/topics/{topic}/dlq/{messageId}/replay", Consumer),
    delete("/api/v1/topics/{topic}/dlq/{messageId}", Consumer),
    get("/api/v1/topics/{topic}/pipeline", PluginAuthor),
    put("/api/v1/topics/{topic}/pipeline", PluginAuthor),
    get("/api/v1/topics/{topic}/pipeline/history", PluginAuthor),
    get("/api/v1/topics/{topic}/pipeline/stages/{stage}/rollout", PluginAuthor),
    post("/api/v1/topics/{topic}/pipeline/stages/{stage}/rollout", PluginAuthor),
    post("/api/v1/topics/{topic}/pipeline/stages/{stage}/rollout/promote", PluginAuthor),
    post("/api/v1/topics/{topic}/pipeline/stages/{stage}/rollout/abort", PluginAuthor),
    post("/api/v1/subscriptions", Consumer),
    get("/api/v1/subscriptions", Viewer),
    get("/api/v1/subscriptions/{id}", Viewer),
    put("/api/v1/subscriptions/{id}", Consumer),
    delete("/api/v1/subscriptions/{id}", Consumer),
    post("/api/v1/subscriptions/{id}/pause", Consumer),
    post("/api/v1/subscriptions/{id}/resume", Consumer),
    post("/api/v1/subscriptions/{id}/seek", Consumer),
    one_step(post("/api/v1/subscriptions/{id}/test", Consumer)),
    get("/api/v1/subscriptions/{id}/attempts", Viewer),
    delete("/api/v1/subscriptions/{id}/attempts", Consumer),
    get("/api/v1/subscriptions/{id}/metrics", Viewer),
    get("/api/v1/subscriptions/{id}/snapshots", Viewer),
    put("/api/v1/subscriptions/{id}/snapshots/{name}", Consumer),
    delete("/api/v1/subscriptions/{id}/snapshots/{name}", Consumer),
    post("/api/v1/subscriptions/{id}/secret/rotate", Consumer),
    get("/api/v1/subscriptions/{id}/pipeline", PluginAuthor),
    put("/api/v1/subscriptions/{id}/pipeline", PluginAuthor),
    get("/api/v1/subscriptions/{id}/pipeline/history", PluginAuthor),
    get("/api/v1/subscriptions/{id}/pipeline/stages/{stage}/rollout", PluginAuthor),
    post("/api/v1/subscriptions/{id}/pipeline/stages/{stage}/rollout", PluginAuthor),
    post("/api/v1/subscriptions/{id}/pipeline/stages/{stage}/rollout/promote", PluginAuthor),
    post("/api/v1/subscriptions/{id}/pipeline/stages/{stage}/rollout/abort", PluginAuthor),
    post("/api/v1/schemas", Producer),
    get("/api/v1/schemas", Viewer),
    get("/api/v1/schemas/{id}", Viewer),
    get("/api/v1/schemas/{id}/versions", Viewer),
    one_step(post("/api/v1/schemas/{id}/validate", Viewer)),
    get("/api/v1/plugins", Viewer),
    get("/api/v1/plugins/{name}", Viewer),
    post("/api/v1/plugins/{name}/versions", PluginAuthor),
    get("/api/v1/plugins/{name}/versions/{version}", PluginAuthor),
    delete("/api/v1/plugins/{name}/versions/{version}", PluginAuthor),
    Route { produces: Produces::Wasm, ..get("/api/v1/plugins/{name}/versions/{version}/wasm", PluginAuthor) },
    one_step(Route {
        produces: Produces::Anything,
        ..post("/api/v1/plugins/{name}/versions/{version}/dry-run", PluginAuthor)
    }),
    get("/api/v1/plugins/{name}/powers", Viewer),
    put("/api/v1/plugins/{name}/powers", Admin),
    get("/api/v1/topics/{topic}/pipeline/history/{revision}", PluginAuthor),
    get("/api/v1/topics/{topic}/pipeline/diff", PluginAuthor),
    post("/api/v1/topics/{topic}/pipeline/rollback", PluginAuthor),
    get("/api/v1/subscriptions/{id}/pipeline/history/{revision}", PluginAuthor),
    get("/api/v1/subscriptions/{id}/pipeline/diff", PluginAuthor),
    post("/api/v1/subscriptions/{id}/pipeline/rollback", PluginAuthor),
    // Events, if it is to follow; `Accept` is free.
    Route { produces: Produces::Anything, ..get("/api/v1/plugins/{name}/logs", PluginAuthor) },
    get("/api/v1/brokers", Viewer),
    get("/api/v1/brokers/{nodeId}", Viewer),
    get("/api/v1/brokers/{nodeId}/metrics", Viewer),
    one_step(post("/api/v1/brokers/{nodeId}/drain", Admin)),
    one_step(delete("/api/v1/brokers/{nodeId}/drain", Admin)),
    get("/api/v1/audit-logs", Admin),
    open("/health", Need::Nothing, Produces::Json),
    open("/health/live", Need::Nothing, Produces::Json),
    open("/health/ready", Need::Nothing, Produces::Json),
    open("/metrics", Need::Metrics, Produces::Anything),
    open("/openapi.json", Need::Docs, Produces::Json),
    open("/swagger", Need::Docs, Produces::Anything),
    open("/swagger/", Need::Docs, Produces::Anything),
    open("/swagger/{*file}", Need::Docs, Produces::Anything),
];

/// What the table says of a request.
#[derive(Debug)]
pub enum Lookup {
    /// This route, and its place in [`ROUTES`].
    Found(usize, &'static Route),
    /// The path is there, with these methods only.
    OtherMethods(&'static str),
    /// No such path.
    None,
}

struct Entry {
    routes: Vec<usize>,
    /// For `Allow`.
    methods: String,
}

static BY_PATH: LazyLock<HashMap<&'static str, Entry>> = LazyLock::new(|| {
    let mut paths: HashMap<&'static str, Entry> = HashMap::new();
    for (index, route) in ROUTES.iter().enumerate() {
        let entry = paths.entry(route.path).or_insert_with(|| Entry { routes: Vec::new(), methods: String::new() });
        entry.routes.push(index);
        let separator = if entry.methods.is_empty() { "" } else { ", " };
        entry.methods.push_str(separator);
        entry.methods.push_str(route.method.as_str());
        if route.safe {
            entry.methods.push_str(", HEAD");
        }
    }
    paths
});

/// Looks up the path that the router matched. HEAD is GET without the body, where that changes nothing.
#[must_use]
pub fn find(method: &Method, matched_path: &str) -> Lookup {
    let Some(entry) = BY_PATH.get(matched_path) else { return Lookup::None };
    match entry.routes.iter().find(|index| ROUTES[**index].takes(method)) {
        Some(index) => Lookup::Found(*index, &ROUTES[*index]),
        None => Lookup::OtherMethods(&entry.methods),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_route_is_there_once() {
        let mut seen = HashSet::new();
        for route in ROUTES {
            assert!(seen.insert((route.method, route.path)), "{route:?}");
        }
    }

    #[test]
    fn only_health_needs_nothing_whatever_the_configuration() {
        for route in ROUTES {
            assert_eq!(route.need == Need::Nothing, route.path.starts_with("/health"), "{}", route.path);
            assert_eq!(matches!(route.need, Need::Role(_)), route.path.starts_with("/api/v1/"), "{}", route.path);
        }
    }

    #[test]
    fn changes_need_more_than_viewer() {
        for route in ROUTES.iter().filter(|route| route.method != Verb::Get) {
            let checks_only = route.path == "/api/v1/schemas/{id}/validate";
            assert_eq!(route.need == Need::Role(Viewer), checks_only, "{route:?}");
        }
    }

    #[test]
    fn all_but_work_on_single_messages_and_checks_outlives_its_client() {
        for route in ROUTES {
            let one_step = match route.path.strip_prefix("/api/v1/messages/") {
                Some(_) => route.method != Verb::Delete,
                None => ["/validate", "/test", "/dry-run", "/drain"].iter().any(|end| route.path.ends_with(end)),
            };
            assert_eq!(route.outlives_client, route.method != Verb::Get && !one_step, "{route:?}");
        }
    }

    #[test]
    fn a_lookup_knows_other_methods_and_head() {
        assert!(matches!(find(&Method::HEAD, "/health"), Lookup::Found(_, route) if route.method == Verb::Get));
        assert!(matches!(find(&Method::PATCH, "/api/v1/topics"), Lookup::OtherMethods("POST, GET, HEAD")));
        assert!(matches!(find(&Method::HEAD, "/api/v1/messages/consume/{topic}"), Lookup::OtherMethods("GET")));
        assert!(matches!(find(&Method::HEAD, "/api/v1/messages/stream/{topic}"), Lookup::OtherMethods("GET")));
        assert!(matches!(find(&Method::GET, "/nowhere"), Lookup::None));
    }
}
