//! Versions that are tried on live traffic. Invariant: what the broker tells of a rollout is held against what is stored of
//! each message. Never knows which messages a version gets but by what became of them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sluice_tests::token::Claims;
use sluice_tests::{Broker, Client, events, guest, wait};

const TOPIC: &str = "orders.events";

/// A topic with a stage on the first of two versions of a plugin, and its one consumer.
async fn set_up(broker: &Broker, versions: [&[u8]; 2]) -> String {
    // The first version has the powers that it imports; those of a later one would have to be allowed.
    broker.place_versions("orders.gate", &[("1.1.0", versions[1]), ("1.0.0", versions[0])]).await;
    broker.create_topic(TOPIC, "PubSub").await;
    let stage = json!({"name": "gate", "plugin": "orders.gate", "version": "1.0.0", "timeoutMs": 1000});
    broker.put_pipeline(TOPIC, json!([stage])).await;
    broker.subscribe(TOPIC, "all").await["subscriptionId"].as_str().expect("an id").to_owned()
}

fn rollout(more: &str) -> String {
    format!("/topics/{TOPIC}/pipeline/stages/gate/rollout{more}")
}

/// What the stored messages say in this header, and how often.
async fn stored(broker: &Broker, header: &str) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    loop {
        let deliveries = broker.consume(TOPIC, "all").limit(100).await;
        if deliveries.is_empty() {
            return found;
        }
        for delivery in deliveries {
            *found.entry(delivery.message.headers.get(header).cloned().unwrap_or_default()).or_default() += 1;
            delivery.ack().await;
        }
    }
}

/// Publishes messages; how many were stored, and how many were refused since a stage failed on them.
async fn publish(broker: &Broker, messages: Vec<Value>) -> (u64, u64) {
    let (mut stored, mut faulted) = (0, 0);
    for batch in messages.chunks(500) {
        let batch = broker.post("/messages/publish/batch", &json!({ "messages": batch })).await.expect(200);
        for result in batch["results"].as_array().expect("results") {
            match result["error"]["code"].as_str() {
                None => stored += 1,
                Some("PLUGIN_FAULT") => faulted += 1,
                Some(other) => panic!("{other}: {result}"),
            }
        }
    }
    (stored, faulted)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_traps_on_one_of_a_thousand_rolls_itself_back_and_stable_traffic_sees_no_fault() {
    let mut broker = Broker::start().await;
    set_up(&broker, [&guest::tag(1), guest::hostile()]).await;
    broker.subscribe("sluice.events", "operators").await;
    let canary = json!({
        "version": "1.1.0", "strategy": "canary", "percent": 10, "maxErrorRate": 0.0005, "window": "PT10M",
    });
    let revision = broker.post(&rollout(""), &canary).await.expect(200);
    assert_eq!(revision["resolved"][0]["rollout"]["version"], "1.1.0");

    // One of a thousand: of those that the canary gets, some.
    let (mut number, mut accepted, mut refused) = (0, 0, 0);
    let view = loop {
        let messages = (0..1000).map(|at| {
            number += 1;
            let what = if at == 500 { "panic" } else { "nothing" };
            json!({"topicName": TOPIC, "payload": {"n": number}, "partitionKey": format!("k{number}"), "headers": {"do": what}})
        });
        let (stored, faulted) = publish(&broker, messages.collect()).await;
        (accepted, refused) = (accepted + stored, refused + faulted);
        let view = broker.get(&rollout("")).await.expect(200);
        if view["state"] != "running" {
            break view;
        }
        assert!(number < 200_000, "it is still there: {view}");
    };
    let ended = view["state"].as_str();
    let reason = view["reason"].as_str().expect("a reason");
    assert!(ended == Some("rolledBack") && reason.contains("messages failed"), "{view}");
    let (candidate, stable) = (&view["candidate"], &view["stable"]);
    assert_eq!(stable["faulted"], 0, "{view}");
    let faulted = candidate["faulted"].as_u64().expect("a number");
    assert_eq!(refused, faulted, "who was refused met the version on trial");

    // The stage's version leaves its mark, the other none: what is stored says who met which.
    let after = (0..500).map(|n| json!({"topicName": TOPIC, "payload": {}, "partitionKey": format!("k{n}")}));
    assert_eq!(publish(&broker, after.collect()).await, (500, 0));
    let stored = stored(&broker, "tag").await;
    let passed = candidate["messages"].as_u64().expect("a number") - faulted;
    assert_eq!(stored.get("").copied().unwrap_or_default(), passed, "{view}");
    assert_eq!(stored.get("tag-version-1").copied(), Some(accepted + 500 - passed), "{view}");

    let told = broker.consume("sluice.events", "operators").wait(10).collect(1).await;
    assert_eq!(
        (told[0].json()["type"].as_str(), told[0].json()["reason"].as_str()),
        (Some("rollout.rolledBack"), Some(reason))
    );
    let history = broker.get(&format!("/topics/{TOPIC}/pipeline/history")).await.expect(200);
    let said = history["revisions"][0]["reason"].as_str().expect("a reason").to_owned();
    assert!(said.contains(reason), "{said}");
    let audit = broker.get("/audit-logs?limit=1").await.expect(200);
    let change = &audit["auditLogs"][0]["details"];
    assert!(
        change["after"]["reason"] == said.as_str() && change["before"]["stages"][0]["rollout"]["version"] == "1.1.0",
        "{audit}"
    );
    assert_eq!(
        broker.metric("sluice_plugin_rollouts_ended_total{end=\"rolledBack\",plugin=\"orders.gate\"}").await,
        Some(1.0)
    );
    assert!(broker.log().contains("a version that was tried is taken back"));
    broker.stop().await;
    broker.restart().await;
    let pipeline = broker.get(&format!("/topics/{TOPIC}/pipeline")).await.expect(200);
    assert!(pipeline["resolved"][0]["rollout"].is_null() && pipeline["resolved"][0]["version"] == "1.0.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_of_a_version_that_changes_one_field_tells_exactly_the_right_messages() {
    let broker = Broker::start().await;
    set_up(&broker, [&guest::louder(1), &guest::louder(2)]).await;
    broker.post(&rollout(""), &json!({"version": "1.1.0", "strategy": "shadow"})).await.expect(200);
    let events = events::github();
    let opened = events.iter().filter(|event| event.action.as_deref() == Some("opened")).count() as u64;
    assert!(opened >= 5 && events.len() as u64 > 2 * opened, "{opened} of {} are opened", events.len());
    let mut ids = BTreeMap::new();
    for event in &events {
        let payload: Value = serde_json::from_str(event.payload.get()).expect("events hold JSON");
        let published = broker.publish(TOPIC, payload).await;
        ids.insert(published.message_id, event.action.clone());
    }
    let view = wait::until("all are compared", async || {
        let view = broker.get(&rollout("")).await.expect(200);
        let of = |name: &str| view["shadow"][name].as_u64().unwrap_or_default();
        (of("same") + of("payloadDiffers") + of("shed") == events.len() as u64).then_some(view)
    })
    .await;
    let shadow = &view["shadow"];
    let none = (&json!(0), &json!(0), &json!(0));
    assert_eq!((&shadow["shed"], &shadow["verdictDiffers"], &shadow["trapped"]), none, "{view}");
    assert_eq!(
        (shadow["payloadDiffers"].as_u64(), view["candidate"]["changed"].as_u64()),
        (Some(opened), Some(opened))
    );
    for different in shadow["sample"].as_array().expect("a sample") {
        let id = different["messageId"].as_str().expect("an id");
        assert_eq!(ids[id].as_deref(), Some("opened"));
        assert_eq!(different["diff"], json!([{"op": "replace", "path": "/payload/action", "value": "OPENED"}]));
    }
    let stored: u64 = stored(&broker, "none").await.values().sum();
    assert_eq!(stored, events.len() as u64, "live traffic is all there");
}

#[tokio::test]
async fn rollouts_are_their_plugins_authors_alone() {
    let broker = Broker::start().await;
    let subscription = set_up(&broker, [&guest::tag(1), &guest::tag(2)]).await;
    let author = |topics: &str| broker.client(&Claims::new("author", &["PluginAuthor"]).topics(&[topics]));
    let canary = json!({"version": "1.1.0", "strategy": "canary"});
    let of_subscription = format!("/subscriptions/{subscription}/pipeline/stages/gate/rollout");
    let billing: Client = author("billing.*");
    billing.post(&rollout(""), &canary).await.expect_problem(403, "FORBIDDEN");
    for path in [rollout("/promote"), rollout("/abort")] {
        billing.post(&path, &json!({})).await.expect_problem(403, "FORBIDDEN");
    }
    billing.get(&rollout("")).await.expect_problem(403, "FORBIDDEN");
    billing.post(&of_subscription, &canary).await.expect_problem(404, "NOT_FOUND");
    author("orders.*").post(&rollout(""), &canary).await.expect(200);
    broker.viewer().get(&rollout("")).await.expect_problem(403, "FORBIDDEN");
}

/// So many messages with keys of their own, and which version's mark each of those that `consumer` gets of `topic` has.
async fn marks(broker: &Broker, messages: usize, (topic, consumer): (&str, &str)) -> BTreeMap<String, u64> {
    let message = |n| json!({"topicName": TOPIC, "payload": {}, "partitionKey": format!("k{n}"), "headers": {"do": "emit-allowed"}});
    assert_eq!(publish(broker, (0..messages).map(message).collect()).await, (messages as u64, 0));
    let mut found = BTreeMap::new();
    loop {
        let deliveries = broker.consume(topic, consumer).limit(100).await;
        if deliveries.is_empty() {
            return found;
        }
        for delivery in deliveries {
            *found.entry(delivery.message.headers.get("tag").cloned().unwrap_or_default()).or_default() += 1;
            delivery.ack().await;
        }
    }
}

/// The one that is tried on the first topic emits, with one key for all: without their parents' lots, all that is emitted would
/// meet the same version of the second topic's stage.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_canary_emits_meets_the_version_on_trial_where_its_parent_would() {
    let broker = Broker::start().await;
    broker.place_versions("orders.gate", &[("1.1.0", guest::hostile()), ("1.0.0", &guest::tag(1))]).await;
    broker.place_versions("orders.mark", &[("1.0.0", &guest::tag(1)), ("1.1.0", &guest::tag(2))]).await;
    for topic in [TOPIC, "allowed"] {
        broker.create_topic(topic, "PubSub").await;
    }
    broker.subscribe("allowed", "all").await;
    let stage =
        |name: &str, plugin: &str| json!({"name": name, "plugin": plugin, "version": "1.0.0", "timeoutMs": 1000});
    let mut gate = stage("gate", "orders.gate");
    gate["emitTo"] = json!(["allowed"]);
    broker.put_pipeline(TOPIC, json!([gate])).await;
    broker.put_pipeline("allowed", json!([stage("mark", "orders.mark")])).await;
    let canary = async |topic: &str, stage: &str, percent: u64| {
        let body = json!({"version": "1.1.0", "strategy": "canary", "percent": percent});
        broker.post(&format!("/topics/{topic}/pipeline/stages/{stage}/rollout"), &body).await.expect(200);
    };
    canary(TOPIC, "gate", 30).await;
    canary("allowed", "mark", 30).await;
    let few = marks(&broker, 200, ("allowed", "all")).await;
    let emitted = few.get("tag-version-2").copied().unwrap_or_default();
    assert!((30..=90).contains(&emitted) && few.len() == 1, "30 % of 200 emit, and all of that is among 30 %: {few:?}");
    canary(TOPIC, "gate", 60).await;
    let more = marks(&broker, 200, ("allowed", "all")).await;
    assert_eq!(more.get("tag-version-2").copied(), Some(emitted), "the same parents' as before: {more:?}");
    assert!(more.get("tag-version-1").is_some_and(|others| *others >= 30), "{more:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_on_the_way_out_gets_the_same_keys_until_it_is_promoted() {
    let broker = Broker::start().await;
    let subscription = set_up(&broker, [&guest::tag(1), &guest::tag(2)]).await;
    broker.put_pipeline(TOPIC, json!([])).await;
    let path = format!("/subscriptions/{subscription}/pipeline");
    let stage = json!({"name": "gate", "plugin": "orders.gate", "version": "1.0.0", "timeoutMs": 1000});
    broker.put(&path, &json!({"stages": [stage]})).await.expect(200);
    let rollout = format!("{path}/stages/gate/rollout");
    broker.post(&rollout, &json!({"version": "1.1.0", "strategy": "canary", "percent": 50})).await.expect(200);
    let first = marks(&broker, 200, (TOPIC, "all")).await;
    let tried = first.get("tag-version-2").copied().unwrap_or_default();
    assert!((60..=140).contains(&tried) && first.get("tag-version-1") == Some(&(200 - tried)), "{first:?}");
    assert_eq!(marks(&broker, 200, (TOPIC, "all")).await, first, "a key stays with its version");
    let view = broker.get(&rollout).await.expect(200);
    let messages = |arm: &str| view[arm]["messages"].as_u64();
    assert_eq!((messages("candidate"), messages("stable")), (Some(2 * tried), Some(400 - 2 * tried)), "{view}");
    let promoted = broker.cli(&["plugin", "rollout", "promote", "--subscription", &subscription, "--stage", "gate"]);
    assert!(promoted.status.success(), "{promoted:?}");
    assert_eq!(marks(&broker, 200, (TOPIC, "all")).await, BTreeMap::from([("tag-version-2".to_owned(), 200)]));
}
