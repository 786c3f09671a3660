//! Versions that are tried on a stage. Invariant: what is counted is held against what came out of each message. Never waits
//! for a fixed time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;

use crate::catalog::model::{PluginSource, RolloutLimits, Strategy};
use crate::catalog::{Actor, CatalogError};
use crate::pipeline::draft::{Draft, Processed, Said, Verdict};
use crate::pipeline::rollout::compare::Made;
use crate::pipeline::rollout::{End, Job, NewRollout, RolloutView, Shadow};
use crate::pipeline::{NewComponent, PipelineError};

use super::{Rig, SYSTEM, draft, fault, guest, header, stage, tag};

/// Tests move time until something is found: the window is as long as that may take on a busy machine.
const LIMITS: RolloutLimits = RolloutLimits {
    max_error_rate: Some(0.01),
    max_reject_delta: None,
    max_drop_delta: None,
    max_latency_ms: None,
    window_ms: 86_400_000,
    min_messages: 100,
};

fn rollout(version: &str, strategy: Option<Strategy>, percent: f64) -> NewRollout {
    NewRollout { version: version.to_owned(), strategy, percent, limits: LIMITS }
}

fn keyed(key: &str, headers: &[(&str, &str)]) -> Draft {
    Draft { key: Some(key.into()), ..draft("{}", headers) }
}

impl Rig {
    async fn label(&self, version: &str, bytes: Bytes) {
        let (name, version) = ("p".to_owned(), Some(version.to_owned()));
        let new = NewComponent { name, version, bytes, source: PluginSource::Upload, signature: None };
        self.pipelines.accept(new, &SYSTEM).await.unwrap();
    }

    /// The plugin `p` in two versions, and a stage on the first.
    async fn with_versions(one: Bytes, two: Bytes) -> Rig {
        let rig = Rig::new().await;
        rig.label("1.0.0", one).await;
        rig.pipelines.allow_powers("p", &["kv", "metrics", "schemas"], None, &SYSTEM).await.unwrap();
        rig.label("2.0.0", two).await;
        let mut stage = stage("s", "p", json!({}));
        stage.version = "1.0.0".to_owned();
        rig.pipelines.set(rig.scope(), vec![stage], None, &SYSTEM).await.unwrap();
        rig
    }

    async fn roll_out(&self, new: NewRollout) -> u64 {
        self.pipelines.roll_out((self.scope(), "s"), new, None, &SYSTEM).await.unwrap().revision
    }

    fn view(&self) -> RolloutView {
        self.pipelines.rollout(self.scope(), "s").unwrap()
    }

    /// Messages with so many keys: which version each met.
    async fn met(&self, keys: usize) -> BTreeMap<String, String> {
        let drafts = (0..keys).map(|number| keyed(&format!("k{number}"), &[])).collect();
        let tag_of = |processed: &Processed| {
            (processed.draft.key.as_deref().unwrap().to_owned(), header(processed, "tag").unwrap().to_owned())
        };
        self.run(drafts).await.iter().map(tag_of).collect()
    }

    /// Moves time until the rollout has ended.
    async fn until_ended(&self) -> RolloutView {
        loop {
            let view = self.view();
            if view.ended.is_some() {
                return view;
            }
            self.clock.advance(Duration::from_millis(300));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn until_compared(&self, messages: u64) -> RolloutView {
        loop {
            let view = self.view();
            let compared = &view.compared;
            let made = compared.same + compared.verdict + compared.payload + compared.trapped;
            // What a batch came to is counted once all of it is compared.
            if made + view.shed >= messages && view.totals.candidate.messages == made {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn of_second(met: &BTreeMap<String, String>) -> Vec<&String> {
    met.iter().filter(|(_, tag)| *tag == "tag-version-2").map(|(key, _)| key).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_gets_its_share_always_the_same_keys_and_counts_what_it_made() {
    let rig = Rig::with_versions(tag(1), tag(2)).await;
    rig.roll_out(rollout("2.0.0", Some(Strategy::Canary), 10.0)).await;
    let first = rig.met(2000).await;
    let tried = of_second(&first);
    assert!((140..=260).contains(&tried.len()), "{} of 2000 are 10 %", tried.len());
    assert_eq!(rig.met(2000).await, first, "a key stays with its version");
    let view = rig.view();
    let (candidate, stable) = (&view.totals.candidate, &view.totals.stable);
    assert_eq!((candidate.messages, candidate.changed), (2 * tried.len() as u64, 2 * tried.len() as u64));
    assert_eq!((stable.messages, stable.faulted), (4000 - candidate.messages, 0));
    assert_eq!(view.recent, view.totals);

    let started = view.rollout.started_at;
    rig.clock.advance(Duration::from_secs(10));
    rig.roll_out(rollout("2.0.0", Some(Strategy::Canary), 30.0)).await;
    let more = rig.met(2000).await;
    assert!(tried.iter().all(|key| more[*key] == "tag-version-2"), "who met it goes on meeting it");
    assert!((500..=700).contains(&of_second(&more).len()), "{}", of_second(&more).len());
    let view = rig.view();
    assert_eq!((view.rollout.started_at, view.rollout.percent), (started, 30.0), "it is the same rollout");
    assert_eq!(view.totals.candidate.messages, (2 * tried.len() + of_second(&more).len()) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_goes_on_after_a_restart_and_is_promoted_or_aborted_by_a_revision() {
    let rig = Rig::with_versions(tag(1), tag(2)).await;
    rig.roll_out(rollout("2.0.0", Some(Strategy::Canary), 50.0)).await;
    let before = rig.met(300).await;
    let rig = rig.reopened().await;
    assert_eq!(rig.met(300).await, before);
    let aborted = rig.pipelines.abort((rig.scope(), "s"), Some(2), &SYSTEM).await.unwrap();
    assert_eq!((aborted.revision, aborted.reason.as_str()), (3, "rollout of 2.0.0 on 's' aborted"));
    assert!(of_second(&rig.met(300).await).is_empty());
    assert_eq!(rig.view().ended.map(|(end, ..)| end), Some(End::Aborted));
    let again = rig.pipelines.abort((rig.scope(), "s"), None, &SYSTEM).await.unwrap_err();
    assert!(matches!(again, PipelineError::Catalog(CatalogError::NotFound(_))), "{again}");

    rig.roll_out(rollout("2.0.0", Some(Strategy::Canary), 1.0)).await;
    let stale = rig.pipelines.promote((rig.scope(), "s"), Some(3), &SYSTEM).await.unwrap_err();
    assert!(matches!(stale, PipelineError::Catalog(CatalogError::PreconditionFailed { current: 4 })), "{stale}");
    let promoted = rig.pipelines.promote((rig.scope(), "s"), Some(4), &SYSTEM).await.unwrap();
    assert_eq!((promoted.stages[0].version.as_str(), promoted.resolved[0].rollout.is_none()), ("2.0.0", true));
    assert_eq!(of_second(&rig.met(300).await).len(), 300);
    rig.roll_out(rollout("1.0.0", None, 100.0)).await;
    assert!(of_second(&rig.met(300).await).is_empty(), "at once");
    let history = rig.catalog.pipeline_history(rig.scope(), 10, 0).await.unwrap().0;
    let reasons: Vec<&str> = history.iter().map(|revision| revision.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "rollout of 1.0.0 on 's'",
            "2.0.0 promoted on 's'",
            "canary of 2.0.0 on 's', 1 %",
            "rollout of 2.0.0 on 's' aborted",
            "canary of 2.0.0 on 's', 50 %",
            "set",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_fails_too_often_gets_no_more_messages_and_is_taken_back_with_the_reason() {
    let rig = Rig::with_versions(tag(1), guest("hostile")).await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    rig.pipelines.tell_of_rollbacks(move |view| telling.lock().push(view.clone()));
    rig.roll_out(rollout("2.0.0", Some(Strategy::Canary), 50.0)).await;
    let drafts = (0..400).map(|number| {
        let what = if number % 20 == 0 { "panic" } else { "nothing" };
        keyed(&format!("k{number}"), &[("do", what)])
    });
    let processed = rig.run(drafts.collect()).await;
    let failed = processed.iter().filter(|processed| matches!(processed.verdict, Verdict::Fault(_)));
    let failed: Vec<&Processed> = failed.collect();
    assert!((4..=16).contains(&failed.len()), "about half of 20: {}", failed.len());
    assert!(failed.iter().all(|processed| fault(processed).0 == "TRAPPED"));
    let stable = processed.iter().filter(|processed| header(processed, "tag").is_some());
    assert!(stable.clone().all(|processed| processed.verdict == Verdict::Pass), "the stage's version fails on none");

    let view = rig.until_ended().await;
    let (end, why, _) = view.ended.unwrap();
    assert_eq!(end, End::RolledBack);
    let (candidate, stable) = (view.totals.candidate, stable.count());
    assert_eq!((candidate.faulted, candidate.messages), (failed.len() as u64, (400 - stable) as u64));
    assert!(why.starts_with(&format!("{} of its {} messages failed", failed.len(), 400 - stable)), "{why}");
    let record = rig.pipelines.current(rig.scope()).unwrap();
    assert_eq!(record.reason, format!("2.0.0 rolled back on 's': {why}"));
    assert_eq!((record.created_by.as_str(), record.resolved[0].version.as_str()), ("system", "1.0.0"));
    assert_eq!(told.lock().len(), 1, "it is told once");
    assert_eq!(rig.metric("sluice_plugin_rollouts_ended_total", "rolledBack"), 1.0);
    let audit = rig.catalog.audit_entries(&Default::default(), 1, 0).await.unwrap().0;
    assert_eq!(audit[0].event_type, "pipeline.changed");
    assert!(audit[0].details["before"]["stages"][0]["rollout"]["version"] == "2.0.0", "{}", audit[0].details);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_cannot_be_taken_back_yet_gets_no_message_meanwhile() {
    let rig = Rig::with_versions(tag(1), guest("hostile")).await;
    rig.roll_out(rollout("2.0.0", Some(Strategy::Canary), 100.0)).await;
    rig.run((0..50).map(|number| keyed(&format!("k{number}"), &[("do", "panic")])).collect()).await;
    super::broken(&rig, "pipeline_revisions", "1").await;
    let all_stable = async || {
        let processed =
            rig.run((0..20).map(|number| keyed(&format!("k{number}"), &[("do", "nothing")])).collect()).await;
        processed.iter().all(|processed| header(processed, "tag").is_some())
    };
    while !all_stable().await {
        rig.clock.advance(Duration::from_millis(300));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(rig.view().ended.is_none(), "it is not written yet");
    super::mended(&rig, "pipeline_revisions").await;
    assert_eq!(rig.until_ended().await.ended.map(|(end, ..)| end), Some(End::RolledBack));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_changes_nothing_and_tells_exactly_what_would_differ() {
    let rig = Rig::with_versions(guest("hostile"), tag(2)).await;
    rig.roll_out(rollout("2.0.0", Some(Strategy::Shadow), 100.0)).await;
    let before: Vec<Draft> = (0..200).map(|number| keyed(&format!("k{number}"), &[("do", "nothing")])).collect();
    let processed = rig.run(before.clone()).await;
    assert!(processed.iter().zip(&before).all(|(after, before)| after.draft == *before), "live is as it was");
    let view = rig.until_compared(200).await;
    assert_eq!((view.compared.payload, view.compared.same, view.shed), (200, 0, 0));
    let first = &view.compared.sample[0];
    assert_eq!(first.patch, Some(json!([{"op": "add", "path": "/headers/tag", "value": "tag-version-2"}])));
    assert_eq!((view.totals.stable.messages, view.totals.candidate.changed), (200, 200));
    assert_eq!(rig.metric("sluice_plugin_shadow_messages_total", "payload"), 200.0);
    rig.pipelines.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_in_a_shadow_is_told_and_nobody_feels_it() {
    let rig = Rig::with_versions(tag(1), guest("hostile")).await;
    let new = NewRollout {
        limits: RolloutLimits { max_error_rate: None, ..LIMITS },
        ..rollout("2.0.0", Some(Strategy::Shadow), 100.0)
    };
    rig.roll_out(new).await;
    let processed = rig.run((0..40).map(|number| keyed(&format!("k{number}"), &[("do", "fail")])).collect()).await;
    assert!(processed.iter().all(|processed| processed.verdict == Verdict::Pass));
    let view = rig.until_compared(40).await;
    assert_eq!((view.compared.trapped, view.totals.candidate.faulted, view.totals.stable.changed), (40, 40, 40));
    let sample = &view.compared.sample[0];
    assert!(sample.candidate.1.as_ref().is_some_and(|why| why.contains("FAILED")), "{sample:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_has_no_time_is_left_out_and_counted() {
    let rig = Rig::with_versions(tag(1), guest("hostile")).await;
    let new = NewRollout {
        limits: RolloutLimits { max_error_rate: None, ..LIMITS },
        ..rollout("2.0.0", Some(Strategy::Shadow), 100.0)
    };
    rig.roll_out(new).await;
    let mut run = 0;
    while rig.view().shed == 0 {
        // Each takes a shadow a second of the processor.
        let processed = rig.run((0..512).map(|number| keyed(&format!("k{number}"), &[("do", "spin")])).collect()).await;
        assert!(processed.iter().all(|processed| header(processed, "tag") == Some("tag-version-1")));
        run += processed.len();
        assert!(run < 100_000, "what waits has a bound");
    }
    assert_eq!(rig.metric("sluice_plugin_shadow_messages_total", "shed"), rig.view().shed as f64);
}

/// Without a runtime there is no thread for it; the next batch finds one.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_finds_no_thread_is_left_out_and_counted_and_begins_with_the_next_batch() {
    let rig = Rig::with_versions(tag(1), tag(2)).await;
    rig.roll_out(rollout("2.0.0", Some(Strategy::Shadow), 100.0)).await;
    let revision = rig.pipelines.lane(rig.scope()).unwrap().current();
    let candidate = Arc::clone(revision.steps[0].candidate.as_ref().unwrap());
    let made =
        || Made { said: Said::Pass, why: None, draft: keyed("k", &[]), emitted: Vec::new(), took: Duration::ZERO };
    let job = || Job {
        candidate: Arc::clone(&candidate),
        scope: rig.scope(),
        topic: rig.topic.name.clone(),
        payload_bytes_max: 1 << 20,
        messages: vec![(keyed("k", &[]), made())],
    };
    let (shadow, clock, without) = (Shadow::default(), rig.clock.clone(), job());
    let pushing = shadow.clone();
    std::thread::spawn(move || pushing.push(without, &clock)).join().unwrap();
    assert_eq!((rig.view().shed, rig.view().compared.payload), (1, 0));
    shadow.push(job(), &rig.clock);
    let view = rig.until_compared(2).await;
    assert_eq!((view.shed, view.compared.payload), (1, 1));
    shadow.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_tried_is_refused_with_its_place() {
    let rig = Rig::with_versions(tag(1), tag(2)).await;
    let canary = |version: &str| rollout(version, Some(Strategy::Canary), 10.0);
    for (version, says) in [("9.9.9", "no version '9.9.9'"), ("1.0.0", "runs '1.0.0' already")] {
        let refused = rig.pipelines.roll_out((rig.scope(), "s"), canary(version), None, &SYSTEM).await.unwrap_err();
        let PipelineError::Invalid(faults) = refused else { panic!("{refused}") };
        assert!(faults[0].0 == "/version" && faults[0].1.contains(says), "{faults:?}");
    }
    let missing = rig.pipelines.roll_out((rig.scope(), "t"), canary("2.0.0"), None, &SYSTEM).await.unwrap_err();
    assert!(matches!(missing, PipelineError::Catalog(CatalogError::NotFound(_))), "{missing}");
    let mut picky = stage("s", "p", json!({ "refuse": "tag-version-2" }));
    picky.version = "1.0.0".to_owned();
    rig.pipelines.set(rig.scope(), vec![picky], None, &SYSTEM).await.unwrap();
    let refused = rig.pipelines.roll_out((rig.scope(), "s"), canary("2.0.0"), None, &SYSTEM).await.unwrap_err();
    let PipelineError::Invalid(faults) = refused else { panic!("{refused}") };
    assert!(faults[0].1.contains("tag-version-2 does not like this config"), "{faults:?}");
    assert_eq!(rig.pipelines.revision(rig.scope()), 2, "nothing changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_ends_with_its_stage_and_stays_beside_changes_of_others() {
    let rig = Rig::with_versions(tag(1), tag(2)).await;
    rig.roll_out(rollout("2.0.0", Some(Strategy::Canary), 50.0)).await;
    let refused = rig.pipelines.delete_version("p", "2.0.0", &Actor::system()).await.unwrap_err();
    assert!(matches!(refused, PipelineError::Bound(_)), "what is tried is bound: {refused}");
    let mut same = stage("s", "p", json!({}));
    same.version = "1.0.0".to_owned();
    let other = stage("other", "filter", json!({}));
    let both = vec![other, same.clone()];
    let record = rig.pipelines.set(rig.scope(), both, None, &SYSTEM).await.unwrap();
    assert!(record.resolved[1].rollout.is_some(), "the stage is as it was");
    assert!(!of_second(&rig.met(300).await).is_empty());
    same.config = json!({ "stamp": true });
    rig.pipelines.set(rig.scope(), vec![same], None, &SYSTEM).await.unwrap();
    assert_eq!(rig.view().ended.map(|(end, ..)| end), Some(End::Replaced));
    assert!(of_second(&rig.met(300).await).is_empty());
}
