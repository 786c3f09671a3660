//! Versions on messages of the past. Invariant: what is told of them is held against what each guest is known to do.

use std::time::Duration;

use serde_json::json;

use crate::catalog::model::{OnFault, OnReject, PluginSource, Scope};
use crate::clock::Timestamp;
use crate::message::MessageId;
use crate::pipeline::draft::Draft;
use crate::pipeline::rollout::compare::Comparison;
use crate::pipeline::{DryRun, DryRunReport, DryRunSpec, NewComponent, PipelineError};

use super::{Rig, SYSTEM, draft, guest, stage, tag};

impl Rig {
    fn spec(&self, version: &str) -> DryRunSpec {
        DryRunSpec {
            plugin: "p".to_owned(),
            version: version.to_owned(),
            against: None,
            config: None,
            scope: self.scope(),
            stage: None,
            topic: self.topic.name.clone(),
            payload_bytes_max: 1 << 20,
            seed: 0,
            has_passed: false,
        }
    }

    async fn upload(&self, name: &str, version: &str, bytes: bytes::Bytes) {
        let (name, version) = (name.to_owned(), Some(version.to_owned()));
        let new = NewComponent { name, version, bytes, source: PluginSource::Upload, signature: None };
        self.pipelines.accept(new, &SYSTEM).await.unwrap();
    }

    async fn dry(&self, spec: DryRunSpec, batches: Vec<Vec<Draft>>) -> DryRunReport {
        let mut run = self.pipelines.dry_run(spec).await.unwrap();
        let run = tokio::task::spawn_blocking(move || {
            batches.into_iter().for_each(|drafts| run.run(drafts));
            run
        });
        let run: DryRun = run.await.unwrap();
        run.report()
    }
}

fn numbered(count: u64, headers: &[(&str, &str)]) -> Vec<Draft> {
    let at = |number| Timestamp(1_600_000_000_000 + number as i64);
    let of = |number| Draft {
        id: MessageId::new(at(number), crate::message::TopicId(1), 0, number),
        published_at: at(number),
        ..draft("{}", headers)
    };
    (0..count).map(of).collect()
}

#[tokio::test]
async fn outcomes_are_counted_and_compared_and_nothing_else_happens() {
    let rig = Rig::new().await;
    rig.upload("p", "1.0.0", guest("hostile")).await;
    rig.upload("p", "2.0.0", tag(2)).await;
    let mut gate = stage("gate", "p", json!({}));
    gate.version = "1.0.0".to_owned();
    (gate.on_reject, gate.on_fault) = (OnReject::Drop, OnFault::Pass);
    rig.pipelines.set(rig.scope(), vec![gate], None, &SYSTEM).await.unwrap();
    let instances = rig.pipelines.plugin("p").unwrap().instances;

    let told = ["nothing", "reject", "drop", "panic"];
    let drafts: Vec<Draft> = told.iter().flat_map(|word| numbered(10, &[("do", word)])).collect();
    // The version in use is what is tried, beside the other one.
    let spec = DryRunSpec { against: Some("2.0.0".to_owned()), ..rig.spec("1.0.0") };
    let report = rig.dry(spec, drafts.chunks(7).map(<[_]>::to_vec).collect()).await;
    let of = &report.candidate.figures;
    assert_eq!((of.messages, of.passed, of.rejected, of.dropped, of.faulted), (40, 10, 10, 10, 10));
    // Each fault of ten in a row is seen: no breaker opens.
    assert_eq!(report.candidate.faults.get("TRAPPED"), Some(&10), "{:?}", report.candidate.faults);
    let stable = report.stable.unwrap();
    assert_eq!((stable.version.as_str(), stable.figures.changed), ("2.0.0", 40));
    let compared = &report.compared;
    assert_eq!((compared.same, compared.payload, compared.verdict, compared.trapped), (0, 10, 20, 10));
    assert_eq!(report.stage.as_deref(), Some("gate"));
    assert!(report.candidate.memory_bytes > 0 && !report.log.is_empty());

    assert_eq!(rig.pipelines.plugin("p").unwrap().instances, instances, "what runs has the instances that it had");
    let counted = rig.metrics.gather().into_iter().filter(|family| family.name() == "sluice_plugin_messages_total");
    let sum: f64 =
        counted.flat_map(|family| family.get_metric().to_vec()).map(|metric| metric.get_counter().get_value()).sum();
    assert_eq!(sum, 0.0, "and its figures know nothing of it");
    assert_eq!(rig.pipelines.revision(rig.scope()), 1);
}

#[tokio::test]
async fn the_same_run_again_has_the_same_outcome_and_another_seed_another_one() {
    let rig = Rig::new().await;
    rig.upload("p", "1.0.0", guest("hostile")).await;
    let drafts = || vec![numbered(5, &[("do", "draw")]), numbered(5, &[("do", "clock")])];
    let patches = async |seed| {
        let report = rig.dry(DryRunSpec { seed, ..rig.spec("1.0.0") }, drafts()).await;
        assert_eq!((report.compared.payload, report.stable.is_none(), report.stage), (10, true, None));
        report.compared.sample.into_iter().map(|found| found.patch.unwrap().to_string()).collect::<Vec<_>>()
    };
    let first = patches(7).await;
    rig.clock.advance(Duration::from_secs(1000));
    assert_eq!(patches(7).await, first);
    let other = patches(8).await;
    assert_ne!(other[..5], first[..5], "numbers are drawn from the seed");
    // Clocks stand where the batch came.
    assert!(first[5].contains("1600000000000"), "{}", first[5]);
    assert_eq!(other[5..], first[5..]);
}

#[tokio::test]
async fn messages_pass_the_stages_before_unless_they_have() {
    let rig = Rig::new().await;
    rig.upload("p", "1.0.0", tag(1)).await;
    let sieve = stage("sieve", "filter", json!({"headerMatches": {"kind": "a"}}));
    rig.pipelines.set(rig.scope(), vec![sieve, stage("gate", "p", json!({}))], None, &SYSTEM).await.unwrap();
    let drafts = || vec![[numbered(3, &[("kind", "a")]), numbered(4, &[("kind", "b")])].concat()];
    let report = rig.dry(rig.spec("1.0.0"), drafts()).await;
    assert_eq!((report.messages, report.not_reached, report.candidate.figures.messages), (7, 4, 3));
    assert_eq!((report.compared.same, report.compared.payload), (3, 0));
    let passed = rig.dry(DryRunSpec { has_passed: true, ..rig.spec("1.0.0") }, drafts()).await;
    assert_eq!((passed.not_reached, passed.candidate.figures.messages), (0, 7));
}

#[tokio::test]
async fn values_last_for_the_run_and_no_longer() {
    let rig = Rig::new().await;
    let spec = DryRunSpec {
        plugin: "dedup".to_owned(),
        version: "latest".to_owned(),
        config: Some(json!({"header": "id", "window": "PT1H"})),
        ..rig.spec("latest")
    };
    let batches = || (0..3).map(|_| numbered(2, &[("id", "same")])).collect();
    for _ in 0..2 {
        let report = rig.dry(spec.clone(), batches()).await;
        let of = &report.candidate.figures;
        assert_eq!((of.passed, of.dropped, of.faulted), (1, 5, 0), "{:?}", report.log);
        assert!(report.compared.sample.iter().all(|found| found.comparison == Comparison::Verdict));
    }
}

#[tokio::test]
async fn what_cannot_be_tried_is_told_by_its_place() {
    let rig = Rig::new().await;
    rig.upload("p", "1.0.0", tag(1)).await;
    let stages =
        vec![stage("one", "p", json!({})), stage("two", "p", json!({})), stage("jq", "jq", json!({"program": "."}))];
    rig.pipelines.set(rig.scope(), stages, None, &SYSTEM).await.unwrap();
    let refused = async |spec: DryRunSpec| match rig.pipelines.dry_run(spec).await.unwrap_err() {
        PipelineError::Invalid(faults) => faults,
        other => panic!("{other:?}"),
    };
    let spec = || DryRunSpec { stage: Some("one".to_owned()), ..rig.spec("1.0.0") };
    for (spec, place, words) in [
        (DryRunSpec { stage: None, ..spec() }, "/stage", "name one of one, two"),
        (DryRunSpec { stage: Some("three".to_owned()), ..spec() }, "/stage", "no stage 'three'"),
        (DryRunSpec { stage: Some("jq".to_owned()), ..spec() }, "/stage", "runs the plugin 'jq'"),
        (DryRunSpec { against: Some("9".to_owned()), ..spec() }, "/against", "no version '9'"),
        (
            DryRunSpec {
                plugin: "jq".to_owned(),
                stage: None,
                config: Some(json!({"program": 1})),
                ..rig.spec("latest")
            },
            "/config",
            "",
        ),
    ] {
        let faults = refused(spec).await;
        assert!(faults[0].0.starts_with(place) && faults[0].1.contains(words), "{faults:?}");
    }
    let elsewhere = DryRunSpec { scope: Scope::Topic(crate::message::TopicId(77)), ..rig.spec("1.0.0") };
    let report = rig.dry(elsewhere, vec![numbered(1, &[])]).await;
    assert_eq!((report.stage, report.compared.payload), (None, 1));
}
