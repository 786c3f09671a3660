//! Whom plugins and pipelines are whose: every route of them, from outside of a token's reach and from inside. Invariant: what is
//! refused changes nothing and leaves no entry in the audit log; each change leaves one, with what was before and what is after.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};
use sluice_tests::token::Claims;
use sluice_tests::{Answer, Broker, Client, guest};

use super::plugin_versions::push;

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];
const WASM: [(&str, &str); 1] = [("content-type", "application/wasm")];

/// A request, by its route.
struct Ask {
    method: Method,
    route: String,
    /// What stands for the parameters, and the query.
    path: String,
    body: Vec<u8>,
}

fn component(mark: &str) -> Vec<u8> {
    guest::with_powers(&[], mark)
}

fn stages(plugin: &str, version: &str, emit_to: &[&str]) -> Value {
    let stage = json!({"name": "check", "plugin": plugin, "version": version, "config": {}, "emitTo": emit_to});
    json!({ "stages": [stage] })
}

fn canary(percent: u32) -> Value {
    json!({"version": "2", "strategy": "canary", "percent": percent})
}

/// Every request about one plugin, and about the pipelines of a topic and of a subscription.
fn all_about(plugin: &str, topic: &str, subscription: &str) -> Vec<Ask> {
    let ask = |method: Method, route: &str, path: &str, body: Value| {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into() };
        Ask { method, route: route.to_owned(), path: path.to_owned(), body }
    };
    let (get, put, post) = (Method::GET, Method::PUT, Method::POST);
    let none = || Value::Null;
    let of = |rest: &str| (format!("/plugins/{{name}}{rest}"), format!("/plugins/{plugin}{rest}"));
    let mut all = Vec::new();
    let version = "/versions/{version}";
    for (method, (route, path), body) in [
        (get.clone(), of(""), none()),
        (post.clone(), of("/versions"), none()),
        (get.clone(), of(version), none()),
        (Method::DELETE, of(version), none()),
        (get.clone(), of(&format!("{version}/wasm")), none()),
        (get.clone(), of("/powers"), none()),
        (put.clone(), of("/powers"), json!({"allowed": ["kv"]})),
        (get.clone(), of("/logs"), none()),
    ] {
        all.push(ask(method, &route, &path.replace("{version}", "1"), body));
    }
    for ask in all.iter_mut().filter(|ask| ask.route.ends_with("/versions")) {
        ask.path.push_str("?version=9");
        ask.body = component("of somebody else");
    }
    for (route, path) in [
        ("/topics/{topic}/pipeline", format!("/topics/{topic}/pipeline")),
        ("/subscriptions/{id}/pipeline", format!("/subscriptions/{subscription}/pipeline")),
    ] {
        for (method, rest, concrete, body) in [
            (&get, "", "", none()),
            (&put, "", "", json!({"stages": []})),
            (&get, "/history", "/history", none()),
            (&get, "/history/{revision}", "/history/1", none()),
            (&get, "/diff", "/diff", none()),
            (&post, "/rollback", "/rollback?to=1", none()),
            (&get, "/stages/{stage}/rollout", "/stages/check/rollout", none()),
            (&post, "/stages/{stage}/rollout", "/stages/check/rollout", canary(10)),
            (&post, "/stages/{stage}/rollout/promote", "/stages/check/rollout/promote", none()),
            (&post, "/stages/{stage}/rollout/abort", "/stages/check/rollout/abort", none()),
        ] {
            all.push(ask(method.clone(), &format!("{route}{rest}"), &format!("{path}{concrete}"), body));
        }
    }
    all
}

async fn send(client: &Client, ask: &Ask) -> Answer {
    let headers: &[(&str, &str)] = match ask.body.first() {
        None => &[],
        Some(b'{') => &JSON,
        Some(_) => &WASM,
    };
    client.send(ask.method.clone(), &ask.path, headers, ask.body.clone()).await
}

/// What the document says that there is.
async fn routes(broker: &Broker) -> BTreeSet<(String, String)> {
    let document = broker.get("//openapi.json").await.expect(200);
    let paths = document["paths"].as_object().expect("paths").iter();
    let about = |path: &str| path.contains("/plugins/") || path.contains("/pipeline");
    paths
        .filter(|(path, _)| about(path))
        .flat_map(|(path, methods)| {
            let path = path.trim_start_matches("/api/v1").to_owned();
            methods.as_object().expect("methods").keys().map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect()
}

async fn audit(broker: &Broker) -> Vec<Value> {
    let mut entries = Vec::new();
    loop {
        let page = broker.get(&format!("/audit-logs?limit=100&offset={}", entries.len())).await.expect(200);
        entries.extend(page["auditLogs"].as_array().expect("entries").iter().cloned());
        if page["hasMore"] != json!(true) {
            entries.reverse();
            return entries;
        }
    }
}

/// Two teams, each with a plugin of two versions, a topic and a subscription; an Admin has set the pipelines of `billing`.
async fn teams() -> (Broker, [String; 2]) {
    let broker = Broker::start().await;
    let mut subscriptions = Vec::new();
    for topic in ["orders.new", "billing.new"] {
        broker.create_topic(topic, "PubSub").await;
        subscriptions.push(broker.subscribe(topic, "all").await["subscriptionId"].as_str().expect("an id").to_owned());
    }
    for (version, mark) in [("1", "b1"), ("2", "b2")] {
        push(&broker, "billing.check", version, component(mark)).await.expect(201);
    }
    for path in ["/topics/billing.new/pipeline".to_owned(), format!("/subscriptions/{}/pipeline", subscriptions[1])] {
        broker.put(&path, &stages("billing.check", "1", &[])).await.expect(200);
        broker.post(&format!("{path}/stages/check/rollout"), &canary(10)).await.expect(200);
    }
    let [orders, billing] = [subscriptions.remove(0), subscriptions.remove(0)];
    (broker, [orders, billing])
}

fn ann(broker: &Broker) -> Client {
    broker.client(&Claims::new("ann", &["PluginAuthor"]).topics(&["orders.*"]))
}

#[tokio::test]
async fn an_author_of_orders_reaches_nothing_of_billing_by_any_route() {
    let (broker, [_, billing]) = teams().await;
    let all = all_about("billing.check", "billing.new", &billing);
    let asked: BTreeSet<(String, String)> = all.iter().map(|ask| (ask.method.to_string(), ask.route.clone())).collect();
    assert_eq!(asked, routes(&broker).await, "each route about plugins and pipelines is asked here");
    let (author, before) = (ann(&broker), audit(&broker).await);
    let pipelines = async || {
        let of_topic = broker.get("/topics/billing.new/pipeline").await.expect(200);
        (of_topic, broker.get(&format!("/subscriptions/{billing}/pipeline")).await.expect(200))
    };
    let ran = pipelines().await;
    for ask in &all {
        let refused = send(&author, ask).await;
        // Whose subscription a number is, is not told either.
        let (status, code) =
            if ask.route.starts_with("/subscriptions") { (404, "NOT_FOUND") } else { (403, "FORBIDDEN") };
        assert_eq!(refused.status, status, "{} {}: {refused}", ask.method, ask.path);
        refused.expect_problem(status, code);
    }
    let listed = author.get("/plugins?limit=100").await.expect(200).to_string();
    assert!(listed.contains("\"redact\"") && !listed.contains("billing"), "{listed}");
    assert_eq!(audit(&broker).await, before, "nothing has changed, and nobody is said to have changed it");
    assert_eq!(pipelines().await, ran);
    // The same requests, but for those that end what the ones before began, are good ones: an Admin may.
    for ask in all.iter().filter(|ask| ask.method == Method::GET) {
        assert_eq!(send(&broker, ask).await.status, 200, "{}", ask.path);
    }
}

/// What of `billing` could come in by a pipeline of `orders`.
#[tokio::test]
async fn an_author_of_orders_brings_nothing_of_billing_into_orders() {
    let (broker, [subscription, _]) = teams().await;
    let author = ann(&broker);
    push(&author, "orders.check", "1", component("o1")).await.expect(201);
    for path in ["/topics/orders.new/pipeline".to_owned(), format!("/subscriptions/{subscription}/pipeline")] {
        let is_topic = path.starts_with("/topics");
        // By an Admin's hand; the emits of a subscription's stage nobody may set.
        broker.put(&path, &stages("billing.check", "1", &[])).await.expect(200);
        if is_topic {
            broker.put(&path, &stages("orders.check", "1", &["billing.new"])).await.expect(200);
        }
        broker.put(&path, &stages("orders.check", "1", &[])).await.expect(200);
        let before = audit(&broker).await;
        let forbidden = async |answer: Answer, what: &str| {
            assert_eq!(answer.status, 403, "{path} {what}: {answer}");
            answer.expect_problem(403, "FORBIDDEN");
        };
        forbidden(author.put(&path, &stages("billing.check", "1", &[])).await, "its plugin").await;
        forbidden(author.post(&format!("{path}/rollback?to=1"), &json!({})).await, "its plugin, as it was").await;
        if is_topic {
            forbidden(author.put(&path, &stages("orders.check", "1", &["billing.new"])).await, "an emit").await;
            forbidden(author.post(&format!("{path}/rollback?to=2"), &json!({})).await, "an emit, as it was").await;
        }
        assert_eq!(audit(&broker).await, before);
        // What an Admin has put there is not to be tried in another version, or left to run in it.
        broker.put(&path, &stages("billing.check", "1", &[])).await.expect(200);
        let rollout = format!("{path}/stages/check/rollout");
        forbidden(author.post(&rollout, &canary(10)).await, "its plugin on trial").await;
        broker.post(&rollout, &canary(10)).await.expect(200);
        let before = audit(&broker).await;
        forbidden(author.post(&format!("{rollout}/promote"), &json!({})).await, "its plugin promoted").await;
        assert_eq!(audit(&broker).await, before);
    }
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_with_before_and_after() {
    let (broker, [subscription, _]) = teams().await;
    let (author, begun) = (ann(&broker), audit(&broker).await.len());
    let mut expected: Vec<(&str, &str, &str, Value, Value)> = Vec::new();
    for (version, mark) in [("1", "o1"), ("2", "o2")] {
        push(&author, "orders.check", version, component(mark)).await.expect(201);
    }
    expected.push(("ann", "plugin.accepted", "/version", Value::Null, json!("1")));
    expected.push(("ann", "plugin.accepted", "/version", json!("1"), json!("2")));
    broker.put("/plugins/orders.check/powers", &json!({"allowed": ["kv"]})).await.expect(200);
    expected.push(("admin", "plugin.powersChanged", "/allowed", json!([]), json!(["kv"])));

    for path in ["/topics/orders.new/pipeline".to_owned(), format!("/subscriptions/{subscription}/pipeline")] {
        let rollout = format!("{path}/stages/check/rollout");
        let mut changed = |at, before, after| expected.push(("ann", "pipeline.changed", at, before, after));
        author.put(&path, &stages("orders.check", "1", &[])).await.expect(200);
        changed("/stages/0/version", Value::Null, json!("1"));
        author.put(&path, &stages("orders.check", "2", &[])).await.expect(200);
        changed("/stages/0/version", json!("1"), json!("2"));
        author.post(&format!("{path}/rollback?to=1"), &json!({})).await.expect(200);
        changed("/stages/0/version", json!("2"), json!("1"));
        for percent in [10, 20] {
            author.post(&rollout, &canary(percent)).await.expect(200);
        }
        changed("/stages/0/rollout/version", Value::Null, json!("2"));
        changed("/stages/0/rollout/percent", json!(10.0), json!(20.0));
        author.post(&format!("{rollout}/abort"), &json!({})).await.expect(200);
        changed("/stages/0/rollout/percent", json!(20.0), Value::Null);
        author.post(&rollout, &json!({"version": "2", "strategy": "shadow"})).await.expect(200);
        changed("/stages/0/rollout/strategy", Value::Null, json!("shadow"));
        author.post(&format!("{rollout}/promote"), &json!({})).await.expect(200);
        changed("/stages/0/version", json!("1"), json!("2"));
        author.post(&rollout, &json!({"version": "1", "strategy": "immediate"})).await.expect(200);
        changed("/stages/0/version", json!("2"), json!("1"));
        author.put(&path, &json!({"stages": []})).await.expect(200);
        changed("/stages/0/version", json!("1"), Value::Null);
    }
    author.delete("/plugins/orders.check/versions/1").await.expect(204);
    expected.push(("ann", "plugin.versionDeleted", "/version", json!("1"), Value::Null));

    let entries = audit(&broker).await.split_off(begun);
    let at =
        |entry: &Value, when: &str, place: &str| entry["details"][when].pointer(place).cloned().unwrap_or_default();
    for (entry, (user, event, place, before, after)) in entries.iter().zip(&expected) {
        assert_eq!((entry["userId"].as_str(), entry["eventType"].as_str()), (Some(*user), Some(*event)), "{entry}");
        assert_eq!((&at(entry, "before", place), &at(entry, "after", place)), (before, after), "{place} of {entry}");
        let details = entry["details"].as_object().expect("details");
        assert!(details.contains_key("before") && details.contains_key("after"), "{entry}");
    }
    assert_eq!(entries.len(), expected.len(), "one for each, and no other: {entries:#?}");
}
