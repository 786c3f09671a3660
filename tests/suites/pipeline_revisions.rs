//! Revisions of pipelines: looked at, compared, gone back to. Invariant: to go back is to run what ran then, and where that can't
//! be, nothing changes.

use http::Method;
use serde_json::{Value, json};
use sluice_tests::{Broker, guest};

use super::cli::{done, json as cli_json, refused};
use super::plugin_versions::push;

fn stage(version: &str, config: Value) -> Value {
    json!({"name": "tag", "plugin": "orders.tag", "version": version, "config": config})
}

async fn tag_of(broker: &Broker) -> Value {
    broker.publish("orders", "x").await;
    let message = broker.consume("orders", "g").collect(1).await.remove(0);
    message.ack().await;
    json!(message.message.headers.get("tag"))
}

/// A topic whose pipeline follows `latest`, which was version 1.0.0 in its revision 1 and is 1.1.0 in its revision 2.
async fn set_up() -> Broker {
    let broker = Broker::start().await;
    broker.create_topic("orders", "Queue").await;
    push(&broker, "orders.tag", "1.0.0", guest::tag(1)).await.expect(201);
    broker.put_pipeline("orders", json!([stage("latest", json!({}))])).await;
    push(&broker, "orders.tag", "1.1.0", guest::tag(2)).await.expect(201);
    assert_eq!(tag_of(&broker).await, "tag-version-2");
    broker
}

#[tokio::test]
async fn going_back_runs_what_ran_then_and_stays_there() {
    let broker = set_up().await;
    let back = broker.post("/topics/orders/pipeline/rollback?to=1", &json!({})).await;
    assert_eq!(back.header("etag"), Some("\"3\""));
    let back = back.expect(200);
    assert_eq!((&back["revision"], &back["reason"]), (&json!(3), &json!("rollback to 1")), "{back}");
    assert_eq!((&back["stages"][0]["version"], &back["resolved"][0]["version"]), (&json!("1.0.0"), &json!("1.0.0")));
    assert_eq!(tag_of(&broker).await, "tag-version-1");
    push(&broker, "orders.tag", "1.2.0", guest::tag(3)).await.expect(201);
    assert_eq!(tag_of(&broker).await, "tag-version-1", "it is pinned");
    let audit = broker.get("/audit-logs?entity=topic/orders&limit=1").await.expect(200);
    let details = &audit["auditLogs"][0]["details"];
    assert_eq!(
        (&details["before"]["stages"][0]["version"], &details["after"]["stages"][0]["version"]),
        (&json!("1.1.0"), &json!("1.0.0"))
    );
    assert_eq!(details["after"]["reason"], "rollback to 1");

    let first = broker.get("/topics/orders/pipeline/history/1").await.expect(200);
    assert_eq!((&first["revision"], &first["resolved"][0]["version"]), (&json!(1), &json!("1.0.0")));
    for absent in ["/history/99", "/diff?from=99", "/diff?to=99"] {
        broker.get(&format!("/topics/orders/pipeline{absent}")).await.expect_problem(404, "NOT_FOUND");
    }
    broker.post("/topics/orders/pipeline/rollback?to=99", &json!({})).await.expect_problem(404, "NOT_FOUND");
    let missing = broker.post("/topics/orders/pipeline/rollback", &json!({})).await;
    assert_eq!(missing.expect_problem(400, "VALIDATION_ERROR")["errors"][0]["pointer"], "/to");
}

#[tokio::test]
async fn a_change_is_made_from_the_revision_that_was_seen() {
    let broker = set_up().await;
    let with = async |method: Method, path: &str, seen: &str, body: &Value| {
        let headers = [("content-type", "application/json"), ("if-match", seen)];
        broker.send(method, &format!("/topics/orders/pipeline{path}"), &headers, body.to_string()).await
    };
    let stages = json!({"stages": [stage("1.0.0", json!({}))]});
    for stale in ["\"1\"", "\"3\"", "W/\"2\"", "2"] {
        with(Method::PUT, "", stale, &stages).await.expect_problem(412, "PRECONDITION_FAILED");
        with(Method::POST, "/rollback?to=1", stale, &json!({})).await.expect_problem(412, "PRECONDITION_FAILED");
    }
    assert_eq!(broker.get("/topics/orders/pipeline").await.header("etag"), Some("\"2\""), "nothing has changed");
    with(Method::POST, "/rollback?to=1", "\"2\"", &json!({})).await.expect(200);
    with(Method::PUT, "", "\"3\"", &stages).await.expect(200);
}

#[tokio::test]
async fn what_is_gone_is_named_and_nothing_changes() {
    let broker = set_up().await;
    broker.delete("/plugins/orders.tag/versions/1.0.0").await.expect(204);
    let problem = broker.post("/topics/orders/pipeline/rollback?to=1", &json!({})).await;
    let problem = problem.expect_problem(409, "CONFLICT");
    assert!(problem["detail"].as_str().expect("words").contains("1.0.0 of 'orders.tag'"), "{problem}");
    // The label alone does not make it what ran.
    push(&broker, "orders.tag", "1.0.0", guest::tag(4)).await.expect(201);
    broker.post("/topics/orders/pipeline/rollback?to=1", &json!({})).await.expect_problem(409, "CONFLICT");
    broker.delete("/plugins/orders.tag/versions/1.1.0").await.expect(204);
    let ran = broker.get("/topics/orders/pipeline").await.expect(200);
    assert_eq!(ran["resolved"][0]["version"], "1.0.0", "of itself, with what is `latest` now: {ran}");
}

#[tokio::test]
async fn two_revisions_are_compared_down_to_the_values() {
    let broker = set_up().await;
    let redact = |pointer: &str| json!({"rules": [{"pointer": pointer, "action": "drop"}]});
    let drop = json!({"name": "drop", "plugin": "redact", "config": redact("/card")});
    broker.put_pipeline("orders", json!([stage("latest", json!({"stamp": true})), drop])).await;
    let drop = json!({"name": "drop", "plugin": "redact", "config": redact("/phone"), "timeoutMs": 20});
    broker.put_pipeline("orders", json!([drop, stage("1.0.0", json!({"stamp": true}))])).await;

    let upgraded = broker.get("/topics/orders/pipeline/diff?from=1&to=2").await.expect(200);
    assert_eq!(upgraded["changed"][0]["fields"], json!([]), "{upgraded}");
    let runs = &upgraded["changed"][0]["runs"];
    assert_eq!((&runs["before"]["version"], &runs["after"]["version"]), (&json!("1.0.0"), &json!("1.1.0")));

    let last = broker.get("/topics/orders/pipeline/diff").await.expect(200);
    assert_eq!((&last["from"], &last["to"]), (&json!(3), &json!(4)), "the last change");
    assert_eq!(last["moved"].as_array().map(Vec::len), Some(1), "{last}");
    let fields: Vec<&Value> = last["changed"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|it| it["fields"].as_array().expect("fields"))
        .collect();
    for wanted in [
        json!({"pointer": "/config/rules/0/pointer", "before": "/card", "after": "/phone"}),
        json!({"pointer": "/timeoutMs", "before": 50, "after": 20}),
        json!({"pointer": "/version", "before": "latest", "after": "1.0.0"}),
    ] {
        assert!(fields.contains(&&wanted), "no {wanted} in {last}");
    }
    assert_eq!(fields.len(), 3, "{last}");
    let all = broker.get("/topics/orders/pipeline/diff?from=0").await.expect(200);
    assert_eq!(all["added"].as_array().map(Vec::len), Some(2), "{all}");
    let back = broker.get("/topics/orders/pipeline/diff?from=4&to=3").await.expect(200);
    assert_eq!(back["moved"].as_array().map(Vec::len), Some(1), "either way round");

    let shown = done(&broker, &["pipeline", "diff", "--topic", "orders"]);
    assert!(shown.contains("~ drop /config/rules/0/pointer: \"/card\" -> \"/phone\""), "{shown}");
    assert!(shown.contains("runs 1.1.0 -> 1.0.0"), "{shown}");
    assert_eq!(cli_json(&broker, &["pipeline", "diff", "--topic", "orders", "--from", "1", "--to", "2"]), upgraded);
}

#[tokio::test]
async fn a_subscriptions_pipeline_has_the_same_and_so_has_the_command_line() {
    let broker = set_up().await;
    broker.create_topic("people", "PubSub").await;
    let id = broker.subscribe("people", "g").await["subscriptionId"].as_str().expect("an id").to_owned();
    let path = format!("/subscriptions/{id}/pipeline");
    for version in ["1.0.0", "1.1.0"] {
        broker.put(&path, &json!({"stages": [stage(version, json!({"out": true}))]})).await.expect(200);
    }
    let diff = broker.get(&format!("{path}/diff")).await.expect(200);
    assert_eq!(diff["changed"][0]["fields"][0]["pointer"], "/version", "{diff}");
    broker.post(&format!("{path}/rollback?to=1"), &json!({})).await.expect(200);
    let first = broker.get(&format!("{path}/history/1")).await.expect(200);
    let now = broker.get(&path).await.expect(200);
    assert_eq!((&now["resolved"], &now["revision"]), (&first["resolved"], &json!(3)));

    done(&broker, &["pipeline", "rollback", "--topic", "orders", "--to", "1"]);
    assert_eq!(tag_of(&broker).await, "tag-version-1");
    let shown = cli_json(&broker, &["pipeline", "get", "--topic", "orders", "--revision", "2"]);
    assert_eq!(shown["resolved"][0]["version"], "1.1.0");
    refused(&broker, &["pipeline", "rollback", "--topic", "orders", "--to", "9"], 1, "no revision 9");
}
