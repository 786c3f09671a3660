//! What stages make of messages, told to those who follow. Invariant: what is told is held against what came out of the same
//! messages. Never over HTTP: that is a suite's.

use std::time::Duration;

use serde_json::json;

use crate::catalog::model::{RolloutLimits, Strategy};
use crate::clock::Timestamp;
use crate::message::TopicName;
use crate::pipeline::Heard;
use crate::pipeline::rollout::NewRollout;
use crate::pipeline::verdicts::{Following, Pace, TOLD_PER_SECOND_MAX, Told, Verdicts};

use super::{Rig, SYSTEM, draft, guest, stage};

/// All that is there to be heard, and how many were lost.
async fn heard(following: &mut Following) -> (Vec<Told>, u64) {
    let (mut all, mut lost) = (Vec::new(), 0);
    // Nothing more comes by itself: it was told while the messages ran.
    while let Ok(Some(heard)) = tokio::time::timeout(Duration::from_millis(50), following.next()).await {
        match heard {
            Heard::Told(told) => all.push(*told),
            Heard::Lost(more) => lost += more,
        }
    }
    (all, lost)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_is_told_what_became_of_each_message_and_why() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |_| {}).await;
    rig.warmed().await;
    let mut following = rig.pipelines.follow_verdicts("hostile", Box::new(|_| true));
    rig.obey(&["nothing", "drop", "reject", "key", "panic"]).await;
    let (told, lost) = heard(&mut following).await;
    let words: Vec<&str> = told.iter().map(|told| told.after.said.as_str()).collect();
    assert_eq!((words, lost), (vec!["pass", "dropped", "rejected", "changed", "fault"], 0));
    let why = |at: usize| told[at].after.why.as_deref().unwrap_or_default().to_owned();
    assert_eq!((told[0].patch(), why(1).as_str()), (None, "told to drop"));
    assert_eq!((&*told[2].faults[0].code, told[2].faults[0].pointer.as_deref()), ("NO", Some("/a")));
    assert_eq!(told[3].patch(), Some(json!([{"op": "replace", "path": "/key", "value": "k2"}])));
    assert!(why(4).starts_with("TRAPPED: ") && why(4).contains("hostile::"), "{}", why(4));
    assert!(told.iter().all(|told| &*told.from.stage == "hostile" && told.topic.as_str() == "orders"));
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_a_second_are_told_the_others_are_counted_and_without_a_follower_none() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |_| {}).await;
    rig.warmed().await;
    let log = rig.pipelines.registry.log("hostile");
    assert!(!log.verdicts.are_followed());
    let mut following = rig.pipelines.follow_verdicts("hostile", Box::new(|_| true));
    rig.obey(&["nothing"; 200]).await;
    let (told, lost) = heard(&mut following).await;
    assert_eq!((told.len() as u64, lost), (TOLD_PER_SECOND_MAX, 200 - TOLD_PER_SECOND_MAX));
    rig.clock.advance(Duration::from_secs(1));
    rig.obey(&["nothing"; 10]).await;
    let (told, lost) = heard(&mut following).await;
    assert_eq!((told.len(), lost), (10, 0));
    drop(following);
    assert!(!log.verdicts.are_followed());
}

/// What is told a second is each stage's own, so that the traffic of others neither silences it nor is told of.
#[test]
fn what_is_told_of_one_stage_is_not_taken_by_another_and_the_lost_ones_of_others_are_not_counted() {
    let (verdicts, now) = (Verdicts::default(), Timestamp(0));
    let (orders, billing): (TopicName, TopicName) = ("orders.a".parse().unwrap(), "billing.a".parse().unwrap());
    assert_eq!(verdicts.room_for(&Pace::default(), &orders, (1, now)), 0, "nobody hears it");
    let mut of_orders =
        verdicts.follow(Box::new(|topic| topic.is_some_and(|topic| topic.as_str().starts_with("orders."))));
    let mut of_all = verdicts.follow(Box::new(|_| true));
    let max = usize::try_from(TOLD_PER_SECOND_MAX).unwrap();
    assert_eq!(verdicts.room_for(&Pace::default(), &billing, (5000, now)), max);
    assert_eq!(verdicts.room_for(&Pace::default(), &orders, (max, now)), max);
    assert_eq!((of_orders.lost(), of_all.lost()), (None, Some(5000 - TOLD_PER_SECOND_MAX)));
    let pace = Pace::default();
    assert_eq!(verdicts.room_for(&pace, &orders, (max + 1, now)), max);
    assert_eq!(verdicts.room_for(&pace, &orders, (2, now)), 0);
    assert_eq!((of_orders.lost(), of_orders.lost(), of_all.lost()), (Some(3), None, Some(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_payloads_are_not_held_and_the_verdict_is_told() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |_| {}).await;
    rig.warmed().await;
    let mut following = rig.pipelines.follow_verdicts("hostile", Box::new(|_| true));
    rig.run(vec![draft(&"x".repeat(100_000), &[("do", "key")])]).await;
    let (told, _) = heard(&mut following).await;
    assert_eq!((told[0].after.said.as_str(), told[0].cut, told[0].patch()), ("changed", true, None));
    assert!(told[0].before.draft.payload.is_empty() && told[0].after.draft.payload.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_a_version_is_tried_on_are_no_verdicts() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |_| {}).await;
    let other = crate::pipeline::NewComponent {
        name: "hostile".to_owned(),
        version: Some("2".to_owned()),
        bytes: guest("hostile").iter().copied().chain(*b"\0\x04\x03abc").collect(),
        source: crate::catalog::model::PluginSource::Upload,
        signature: None,
    };
    let first = rig.pipelines.version("hostile", "latest").unwrap().version;
    rig.pipelines.accept(other, &SYSTEM).await.unwrap();
    let mut pinned = stage("hostile", "hostile", json!({}));
    pinned.version = first;
    rig.pipelines.set(rig.scope(), vec![pinned], None, &SYSTEM).await.unwrap();
    let limits = RolloutLimits {
        max_error_rate: None,
        max_reject_delta: None,
        max_drop_delta: None,
        max_latency_ms: None,
        window_ms: 60_000,
        min_messages: 100,
    };
    let new = NewRollout { version: "2".to_owned(), strategy: Some(Strategy::Shadow), percent: 100.0, limits };
    rig.pipelines.roll_out((rig.scope(), "hostile"), new, None, &SYSTEM).await.unwrap();
    let mut following = rig.pipelines.follow_verdicts("hostile", Box::new(|_| true));
    rig.obey(&["nothing"; 5]).await;
    loop {
        let view = rig.pipelines.rollout(rig.scope(), "hostile").unwrap();
        if view.compared.same + view.shed >= 5 {
            assert_eq!(view.shed, 0, "the copies have run");
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(heard(&mut following).await.0.len(), 5);
}
