//! What stages say and do, well-behaved ones. Invariant: each verdict and each kind of edit of the plugin world has a test
//! here. Never anything that misbehaves: see `hostile`.

use serde_json::json;

use crate::catalog::Actor;
use crate::catalog::model::{OnFault, OnReject};
use crate::message::Offset;
use crate::pipeline::draft::Verdict;

use super::{Rig, draft, fault, header, stage, subscription_scope};

#[tokio::test(flavor = "multi_thread")]
async fn without_stages_messages_pass_as_they_are() {
    let rig = Rig::new().await;
    assert!(!rig.pipelines.has_stages(rig.scope()));
    assert_eq!(rig.pipelines.revision(rig.scope()), 0);
    let processed = rig.run(vec![draft("{}", &[])]).await;
    assert_eq!((processed.len(), &processed[0].verdict), (1, &Verdict::Pass));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_gets_its_own_verdict_in_order() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |_| {}).await;
    let processed = rig.obey(&["nothing", "drop", "reject", "key", "nothing"]).await;
    assert_eq!(processed[0].verdict, Verdict::Pass);
    assert_eq!(processed[0].trail[0].word.as_str(), "pass");
    let Verdict::Drop { stage, reason } = &processed[1].verdict else { panic!("{:?}", processed[1].verdict) };
    assert_eq!((&**stage, &**reason), ("hostile", "told to drop"));
    let Verdict::Reject(rejection) = &processed[2].verdict else { panic!("{:?}", processed[2].verdict) };
    assert_eq!((&*rejection.faults[0].code, rejection.faults[0].pointer.as_deref()), ("NO", Some("/a")));
    assert_eq!(rejection.on, OnReject::Reject);
    assert_eq!(&processed[2].draft.payload[..], b"{}", "what it edited before it rejected is not kept");
    assert_eq!((processed[3].draft.key.as_deref(), processed[3].trail[0].word.as_str()), (Some("k2"), "changed"));
    assert_eq!(processed[4].verdict, Verdict::Pass);
    assert_eq!(rig.metric("sluice_plugin_messages_total", "dropped"), 1.0);
    assert_eq!(rig.metric("sluice_plugin_messages_total", "pass"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_sees_everything_of_a_message_and_its_own_edits() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |_| {}).await;
    let mut message = draft("{\"a\":1}", &[("do", "facts"), ("b", "2")]);
    message.schema_version = Some("v1".into());
    message.key = Some("k".into());
    message.correlation_id = Some("c".into());
    (message.priority, message.attempt, message.position) = (3, 2, Some((4, Offset(5))));
    let id = message.id.to_string();
    rig.warmed().await;
    let processed = rig.run(vec![draft("{}", &[]), message]).await;
    let facts = String::from_utf8_lossy(&processed[1].draft.payload).into_owned();
    let column = format!("[{}, 1] 2", u32::MAX);
    let wanted = format!(
        "2 orders {id} 1700000000000 {{\"a\":1}} application/json Some(\"v1\") [\"b\", \"added\"] Some(\"k\") Some(\"c\") 3 2 Some((4, 5)) {column}"
    );
    assert_eq!(facts, wanted);
    assert_eq!(&*processed[1].draft.content_type, "text/plain");
    assert_eq!(header(&processed[1], "do"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn stages_run_in_order_and_see_what_the_ones_before_made() {
    let rig = Rig::new().await;
    rig.accept("hostile", super::guest("hostile")).await.unwrap();
    rig.accept("tag", super::guest("tag")).await.unwrap();
    let stages = vec![
        stage("tag", "tag", json!({})),
        stage("only-tagged", "filter", json!({ "headerMatches": { "tag": "tag-version-1" } })),
        stage("obey", "hostile", json!({})),
        stage("after", "tag", json!({})),
    ];
    rig.pipelines.set(rig.scope(), stages, None, &Actor::system()).await.unwrap();
    let processed = rig.obey(&["drop", "nothing"]).await;
    assert_eq!(
        processed[0].trail.iter().map(|word| word.word.as_str()).collect::<Vec<_>>(),
        ["changed", "pass", "dropped"]
    );
    assert_eq!(processed[1].trail.len(), 4);
    assert_eq!(processed[1].verdict, Verdict::Pass);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emitted_message_comes_with_its_source_and_only_where_declared() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |stage| stage.emit_to = vec!["allowed".to_owned()]).await;
    let processed = rig.obey(&["emit-allowed", "emit", "nothing"]).await;
    let emitted = &processed[0].emitted[0];
    assert_eq!((emitted.topic.as_str(), emitted.key.as_deref(), &*emitted.stage), ("allowed", Some("k"), "hostile"));
    assert!(fault(&processed[1]).1.contains("not in its `emitTo`"));
    assert!(processed[1].emitted.is_empty() && processed[2].verdict == Verdict::Pass);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_way_out_neither_key_nor_emit() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |_| {}).await;
    let scope = subscription_scope(rig.topic.id);
    // The catalog wants a subscription for a revision, and this is about what a stage may do, so the lane is made by hand.
    let topic_lane = rig.pipelines.lane(rig.scope()).unwrap().current();
    let revision = super::super::revision::Revision {
        number: 1,
        record: None,
        steps: topic_lane.steps.clone(),
        machine: std::sync::Arc::clone(&topic_lane.machine),
    };
    rig.pipelines.lanes.write().insert(scope, super::super::Lane::new(scope, revision));
    let drafts = ["key", "emit-allowed", "drop"].map(|what| draft("{}", &[("do", what)]));
    let run = rig.pipelines.run(scope, &rig.topic, drafts.to_vec()).await.unwrap();
    assert!(fault(&run.processed[0]).1.contains("on the way out"));
    assert!(fault(&run.processed[1]).1.contains("on the way out"));
    assert!(matches!(run.processed[2].verdict, Verdict::Drop { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_may_be_passed_over_and_leaves_the_message_as_it_was() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |stage| stage.on_fault = OnFault::Pass).await;
    let processed = rig.obey(&["edit_and_panic", "nothing"]).await;
    assert_eq!((&processed[0].verdict, processed[0].trail[0].word.as_str()), (&Verdict::Pass, "fault"));
    assert_eq!((&processed[0].draft.payload[..], header(&processed[0], "edited")), (&b"{}"[..], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_and_randomness_work_and_what_is_printed_is_logged() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |_| {}).await;
    let processed = rig.obey(&["clock", "say"]).await;
    assert!(
        header(&processed[0], "clock").is_some_and(|now| now.starts_with("1700000000000 ")),
        "the broker's own clock"
    );
    assert!(processed.iter().all(|processed| processed.verdict == Verdict::Pass), "{processed:?}");
    let lines = rig.pipelines.plugin_log("hostile");
    assert_eq!((&*lines[0].text, &*lines[1].text), ("printed line", "and another"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_built_in_plugins_do_their_work() {
    let rig = Rig::new().await;
    let schema = json!({ "type": "object", "required": ["id"], "properties": { "n": { "type": "integer" } } });
    let stages = vec![
        stage("schema", "json-schema", json!({ "schema": schema })),
        stage("hide", "redact", json!({ "rules": [{ "pointer": "/secret", "action": "drop" }] })),
    ];
    rig.pipelines.set(rig.scope(), stages, None, &Actor::system()).await.unwrap();
    let drafts = vec![draft("{\"id\":1,\"secret\":2}", &[]), draft("{\"n\":\"x\"}", &[]), draft("no json", &[])];
    let processed = rig.run(drafts).await;
    assert_eq!(&processed[0].draft.payload[..], b"{\"id\":1}");
    let Verdict::Reject(rejection) = &processed[1].verdict else { panic!("{:?}", processed[1].verdict) };
    assert_eq!((rejection.faults.len(), &*rejection.plugin), (2, "json-schema"));
    assert!(matches!(processed[2].verdict, Verdict::Reject(_)));
}
