//! What plugins do to the host, and that it hurts nobody else. Invariant: each row of `tests/guests/behaviours.rs` has a
//! test below, made from the row; here is what is about several messages or calls. Never relies on time passing, but for
//! CPU time, which is what is measured.

#[macro_use]
#[path = "../../../../tests/guests/behaviours.rs"]
mod behaviours;
mod configures;
mod files;
mod misdeeds;
mod raws;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::catalog::Actor;
use crate::catalog::model::{Scope, Topic};
use crate::pipeline::Pipelines;
use crate::pipeline::draft::Verdict;

use super::{Rig, draft, fault, header, stage, tag};

/// Another team's topic with a stage of its own.
pub(super) struct Neighbour {
    pipelines: Arc<Pipelines>,
    topic: Topic,
}

impl Neighbour {
    pub(super) async fn of(rig: &Rig) -> Neighbour {
        rig.accept("neighbour", tag(1)).await.unwrap();
        let topic = rig.add_topic("quiet").await;
        let stages = vec![stage("tag", "neighbour", json!({}))];
        rig.pipelines.set(Scope::Topic(topic.id), stages, None, &Actor::system()).await.unwrap();
        Neighbour { pipelines: Arc::clone(&rig.pipelines), topic }
    }

    /// Its messages go through, one after the other.
    pub(super) async fn is_served(&self) {
        for n in 0..20 {
            let (scope, drafts) = (Scope::Topic(self.topic.id), vec![draft(&n.to_string(), &[])]);
            let run = self.pipelines.run(scope, &self.topic, drafts).await.unwrap();
            assert_eq!(header(&run.processed[0], "tag"), Some("tag-version-1"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_pinned_on_its_message_and_the_others_go_on() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |_| {}).await;
    for guilty in [0_usize, 1, 63, 126, 127] {
        let mut whats = vec!["key"; 128];
        whats[guilty] = "panic";
        let processed = rig.obey(&whats).await;
        for (at, processed) in processed.iter().enumerate() {
            if at == guilty {
                let (cause, detail) = fault(processed);
                assert_eq!(cause, "TRAPPED");
                assert!(detail.contains("told to panic"), "{detail}");
            } else {
                assert_eq!((&processed.verdict, processed.draft.key.as_deref()), (&Verdict::Pass, Some("k2")), "{at}");
            }
        }
    }
    assert_eq!(rig.metric("sluice_plugin_faults_total", "TRAPPED"), 5.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_loop_ends_at_its_cpu_time() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |stage| stage.timeout_ms = 20).await;
    let mut whats = vec!["key"; 128];
    whats[70] = "spin";
    let processed = rig.obey(&whats).await;
    assert_eq!(fault(&processed[70]).0, "TIMED_OUT");
    assert_eq!(processed.iter().filter(|processed| processed.verdict == Verdict::Pass).count(), 127);
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_work_that_takes_long_together_is_done_in_smaller_calls() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |stage| stage.timeout_ms = 100).await;
    rig.warmed().await;
    let processed = rig.obey(&["drip"; 64]).await;
    assert!(processed.iter().all(|processed| processed.verdict == Verdict::Pass));
    assert!(rig.pipelines.lane(rig.scope()).unwrap().current().steps[0].stage.call_messages() < 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_limited_and_what_others_left_behind_is_nobodys_fault() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |stage| stage.memory_mb = 8).await;
    let processed = rig.obey(&["nothing", "bomb", "nothing"]).await;
    assert_eq!(fault(&processed[1]).0, "OUT_OF_MEMORY");
    assert_eq!((&processed[0].verdict, &processed[2].verdict), (&Verdict::Pass, &Verdict::Pass));
    for _ in 0..20 {
        let processed = rig.obey(&["leak"]).await;
        assert_eq!(processed[0].verdict, Verdict::Pass, "a new instance takes over from the one that is full");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_faults_in_a_row_open_the_breaker_and_a_probe_closes_it() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |_| {}).await;
    for _ in 0..3 {
        assert_eq!(fault(&rig.obey(&["panic"]).await[0]).0, "TRAPPED");
    }
    assert_eq!(fault(&rig.obey(&["nothing"]).await[0]).0, "BREAKER_OPEN");
    let view = rig.pipelines.plugin("hostile").unwrap();
    assert!(view.versions[0].bound[0].breaker_open);
    rig.clock.advance(Duration::from_secs(6));
    let processed = rig.obey(&["panic", "nothing"]).await;
    assert_eq!((fault(&processed[0]).0, fault(&processed[1]).0), ("TRAPPED", "BREAKER_OPEN"));
    rig.clock.advance(Duration::from_secs(6));
    // The probe alone: of a run that is cut into several batches, those beside the probe's still find the breaker open.
    assert_eq!(rig.obey(&["nothing"]).await[0].verdict, Verdict::Pass, "the probe");
    let processed = rig.obey(&["nothing"; 10]).await;
    assert!(processed.iter().all(|processed| processed.verdict == Verdict::Pass), "{processed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_poison_costs_a_few_calls_and_no_more() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |stage| stage.timeout_ms = 10).await;
    let processed = rig.obey(&["spin"; 128]).await;
    let timed_out = processed.iter().filter(|processed| fault(processed).0 == "TIMED_OUT").count();
    assert_eq!((timed_out, processed.len()), (3, 128), "the breaker opens after three");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_just_within_the_bounds_passes() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |stage| (stage.emit_to, stage.timeout_ms) = (vec!["allowed".to_owned()], 1000)).await;
    let processed = rig.obey(&["headers-64", "payload-grown", "emits-allowed"]).await;
    assert!(processed.iter().all(|processed| processed.verdict == Verdict::Pass), "{processed:?}");
    let made = (processed[0].draft.headers.len(), processed[1].draft.payload.len(), processed[2].emitted.len());
    assert_eq!(made, (64, 1 << 20, 256));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_messages_of_one_request_grow_up_to_a_bound_and_the_next_request_has_its_own() {
    let rig = Rig::new().await;
    // So much time per call makes small batches, so that the bound is that of the request.
    rig.with_stage("hostile", |stage| stage.timeout_ms = 1000).await;
    let passed = async |count: usize| {
        let processed = rig.obey(&vec!["payload-grown"; count]).await;
        let (grown, faulty): (Vec<_>, Vec<_>) = processed.iter().partition(|one| one.verdict == Verdict::Pass);
        assert!(
            faulty
                .iter()
                .all(|one| fault(one).1.contains("more than 67108864 bytes larger") && one.draft.payload.len() == 2)
        );
        grown.len()
    };
    // Each grows by 2 bytes less than a mebibyte. Two batches at once may each use what is left.
    let grown = passed(96).await;
    assert!((64..=64 + 6).contains(&grown), "{grown}");
    assert_eq!(passed(10).await, 10);
}
