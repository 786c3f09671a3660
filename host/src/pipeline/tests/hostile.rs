//! What plugins do to the host, and that it hurts nobody else. Invariant: each word of the guest `hostile` that misbehaves
//! has a test here. Never relies on time passing, but for CPU time, which is what is measured.

use std::time::Duration;

use serde_json::json;

use crate::catalog::Actor;
use crate::pipeline::draft::Verdict;

use super::{Rig, draft, fault, guest, header, stage};

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
async fn what_is_edited_before_a_trap_is_not_kept() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |_| {}).await;
    let processed = rig.obey(&["edit-and-panic", "key"]).await;
    assert_eq!((&processed[0].draft.payload[..], header(&processed[0], "edited")), (&b"{}"[..], None));
    assert_eq!(processed[1].draft.key.as_deref(), Some("k2"));
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
    let processed = rig.obey(&["work"; 64]).await;
    assert!(processed.iter().all(|processed| processed.verdict == Verdict::Pass));
    assert!(rig.pipelines.lane(rig.scope()).unwrap().current().stages[0].call_messages() < 64);
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
async fn every_other_misdeed_is_a_fault_of_its_message_alone() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |stage| stage.emit_to = vec!["allowed".to_owned()]).await;
    let misdeeds = [
        ("recurse", "TRAPPED", ""),
        ("fail", "FAILED", "told to fail (code 3)"),
        ("index", "TRAPPED", "is out of range: the batch has"),
        ("headers", "TRAPPED", "at most 64"),
        ("long-header", "TRAPPED", "of 16384 bytes"),
        ("payload", "TRAPPED", "a payload of"),
        ("payloads", "TRAPPED", "made more than"),
        ("copy", "TRAPPED", "copied more than"),
        ("emits", "TRAPPED", "more than 256 messages"),
        ("sleep", "TRAPPED", "can neither wait"),
        ("file", "TRAPPED", "no file"),
        ("net", "TRAPPED", "neither wait nor reach the network"),
        ("exit", "TRAPPED", ""),
    ];
    for (what, cause, detail) in misdeeds {
        let payload = if what == "copy" { "x".repeat(1 << 16) } else { "{}".to_owned() };
        let processed = rig.run(vec![draft("{}", &[]), draft(&payload, &[("do", what)])]).await;
        assert_eq!(processed[0].verdict, Verdict::Pass, "{what}");
        let (found, said) = fault(&processed[1]);
        assert!(found == cause && said.contains(detail), "{what}: {found} {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_rejections_is_cut() {
    let rig = Rig::new().await;
    rig.with_stage("hostile", |_| {}).await;
    let processed = rig.obey(&["rejects"]).await;
    let Verdict::Reject(rejection) = &processed[0].verdict else { panic!("{:?}", processed[0].verdict) };
    assert_eq!((rejection.faults.len(), rejection.faults[0].message.len()), (32, 1024));
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
    let processed = rig.obey(&["nothing"; 10]).await;
    assert!(processed.iter().all(|processed| processed.verdict == Verdict::Pass));
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
async fn a_config_is_tried_before_it_is_set() {
    let rig = Rig::new().await;
    rig.accept("hostile", guest("hostile")).await.unwrap();
    for (config, why) in [("refuse", "no such config"), ("panic", "configured to panic"), ("spin", "CPU time")] {
        let stages = vec![stage("ok", "hostile", json!({})), stage("bad", "hostile", json!({ "x": config }))];
        let error = rig.pipelines.set(rig.scope(), stages, None, &Actor::system()).await.unwrap_err();
        let super::PipelineError::Invalid(faults) = error else { panic!("{error}") };
        assert_eq!(faults[0].0, "/stages/1/config");
        assert!(faults[0].1.contains(why), "{faults:?}");
    }
    assert_eq!(rig.pipelines.revision(rig.scope()), 0);
}
