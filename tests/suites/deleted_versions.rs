//! What is in the way of deleting versions of plugins, and what is left of one. Invariant: what runs or is tried stays, and a name
//! keeps its history. Never asks who may upload.

use serde_json::{Value, json};
use sluice_tests::token::Claims;
use sluice_tests::{Broker, guest};

use super::cli::done;
use super::plugin_versions::push;

#[tokio::test]
async fn a_name_whose_versions_were_all_deleted_is_no_new_one() {
    let broker = Broker::start().await;
    let author = broker.client(&Claims::new("ann", &["PluginAuthor"]).topics(&["orders.*"]));
    push(&author, "orders.p", "1", guest::with_powers(&["metrics"], "1")).await.expect(201);
    author.delete("/plugins/orders.p/versions/1").await.expect(204);
    let with_kv = guest::with_powers(&["kv", "metrics"], "2");
    let problem = push(&author, "orders.p", "2", with_kv.clone()).await.expect_problem(409, "CONFLICT");
    let detail = problem["detail"].as_str().expect("words");
    assert!(
        detail.contains("the last version, which was deleted,") && detail.contains("allow orders.p kv`"),
        "{detail}"
    );
    assert_eq!(broker.get("/plugins/orders.p").await.expect(200)["versions"], json!([]), "but for the word on it");
    // What the last one had, and what an Admin allows.
    push(&author, "orders.p", "3", guest::with_powers(&["metrics"], "3")).await.expect(201);
    author.delete("/plugins/orders.p/versions/3").await.expect(204);
    author.put("/plugins/orders.p/powers", &json!({"allowed": ["kv"]})).await.expect_problem(403, "FORBIDDEN");
    done(&broker, &["plugin", "allow", "orders.p", "kv"]);
    push(&author, "orders.p", "2", with_kv).await.expect(201);
}

#[tokio::test]
async fn a_version_on_trial_is_not_deleted_and_a_difference_shows_it() {
    let broker = Broker::start().await;
    broker.create_topic("orders.new", "Queue").await;
    for digit in 1..=2 {
        push(&broker, "orders.tag", &digit.to_string(), guest::tag(digit)).await.expect(201);
    }
    let stage = json!({"name": "tag", "plugin": "orders.tag", "version": "1", "config": {}});
    broker.put_pipeline("orders.new", json!([stage])).await;
    let path = "/topics/orders.new/pipeline";
    let begin = async |percent: u32| {
        let rollout = json!({"version": "2", "strategy": "canary", "percent": percent, "window": "PT1M"});
        broker.post(&format!("{path}/stages/tag/rollout"), &rollout).await.expect(200)
    };
    begin(10).await;
    let bound = broker.delete("/plugins/orders.tag/versions/2").await.expect_problem(409, "CONFLICT");
    let detail = bound["detail"].as_str().expect("words");
    assert!(detail.contains("the topic 'orders.new'") && detail.contains("rollout"), "{detail}");
    let author = broker.client(&Claims::new("ann", &["PluginAuthor"]).topics(&["orders.t*"]));
    let bound = author.delete("/plugins/orders.tag/versions/2").await.expect_problem(409, "CONFLICT");
    assert!(bound["detail"].as_str().expect("words").contains("1 on topics that the token does not reach"), "{bound}");

    let diff = async |from: u64, to: u64| broker.get(&format!("{path}/diff?from={from}&to={to}")).await.expect(200);
    begin(20).await;
    let begun = diff(1, 2).await;
    let trial = &begun["changed"][0]["trial"];
    assert_eq!((&begun["changed"][0]["stage"], &trial["before"]), (&json!("tag"), &Value::Null), "{begun}");
    assert_eq!((&trial["after"]["version"], &trial["after"]["percent"]), (&json!("2"), &json!(10.0)), "{begun}");
    assert_eq!((&trial["after"]["strategy"], &trial["after"]["limits"]["window"]), (&json!("canary"), &json!("PT1M")));
    let changed = diff(2, 3).await["changed"][0]["trial"].clone();
    let percents = [&changed["before"]["percent"], &changed["after"]["percent"]];
    assert_eq!(percents, [&json!(10.0), &json!(20.0)]);
    let shown = done(&broker, &["pipeline", "diff", "--topic", "orders.new", "--from", "2", "--to", "3"]);
    assert!(shown.contains("~ tag tries 2 (canary, 10.0 %) -> 2 (canary, 20.0 %)"), "{shown}");
    broker.post(&format!("{path}/stages/tag/rollout/abort"), &json!({})).await.expect(200);
    let ended = diff(3, 4).await;
    assert_eq!(ended["changed"][0]["trial"]["after"], Value::Null, "{ended}");
    // To go back to a revision with a trial does not begin it again.
    broker.post(&format!("{path}/rollback?to=3"), &json!({})).await.expect(200);
    let now = broker.get(path).await.expect(200);
    assert_eq!((&now["resolved"][0]["version"], &now["resolved"][0]["rollout"]), (&json!("1"), &Value::Null), "{now}");
    broker.delete("/plugins/orders.tag/versions/2").await.expect(204);
}
