//! How pipelines and plugins change. Invariant: a refusal changes nothing, and says where and why. Never on disk: see `disk`.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use crate::catalog::model::{PluginSource, Scope};
use crate::catalog::{Actor, CatalogError};
use crate::message::TopicId;
use crate::pipeline::draft::Verdict;
use crate::pipeline::{ComponentState, NewComponent, PipelineError};

use super::{Rig, draft, guest, header, stage, tag};

async fn tagged(rig: &Rig) -> String {
    header(&rig.run(vec![draft("{}", &[])]).await[0], "tag").unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_faults_of_a_request_are_told_at_once_by_their_place() {
    let rig = Rig::new().await;
    let mut bad = stage("no name", "Filter", json!([]));
    (bad.timeout_ms, bad.memory_mb, bad.version) = (0, 65, "a b".to_owned());
    bad.emit_to = vec!["x y".to_owned(), "a.dlq".to_owned()];
    let twice = stage("same", "filter", json!({}));
    let stages = vec![bad, twice.clone(), twice];
    let error = rig.pipelines.set(rig.scope(), stages, None, &Actor::system()).await.unwrap_err();
    let PipelineError::Invalid(faults) = error else { panic!("{error}") };
    let pointers: Vec<&str> = faults.iter().map(|(pointer, _)| pointer.as_str()).collect();
    let first = ["name", "plugin", "version", "timeoutMs", "memoryMb", "config", "emitTo/0", "emitTo/1"];
    let mut wanted: Vec<String> = first.iter().map(|field| format!("/stages/0/{field}")).collect();
    wanted.push("/stages/2/name".to_owned());
    assert_eq!(pointers, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_or_version_that_is_not_there_is_named() {
    let rig = Rig::new().await;
    let mut old = stage("b", "filter", json!({}));
    old.version = "9.9.9".to_owned();
    let stages = vec![stage("a", "nothing", json!({})), old];
    let error = rig.pipelines.set(rig.scope(), stages, None, &Actor::system()).await.unwrap_err();
    let PipelineError::Invalid(faults) = error else { panic!("{error}") };
    assert_eq!((faults[0].0.as_str(), faults[1].0.as_str()), ("/stages/0/plugin", "/stages/1/version"));
    let unknown = rig.pipelines.set(Scope::Topic(TopicId(999)), vec![], None, &Actor::system()).await.unwrap_err();
    assert!(matches!(unknown, PipelineError::Catalog(CatalogError::NotFound(_))), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_change_is_refused() {
    let rig = Rig::new().await;
    let set =
        |expected| rig.pipelines.set(rig.scope(), vec![stage("f", "filter", json!({}))], expected, &super::SYSTEM);
    assert_eq!(set(Some(0)).await.unwrap().revision, 1);
    assert!(matches!(
        set(Some(0)).await.unwrap_err(),
        PipelineError::Catalog(CatalogError::PreconditionFailed { current: 1 })
    ));
    assert_eq!(set(Some(1)).await.unwrap().revision, 2);
    assert_eq!(rig.pipelines.revision(rig.scope()), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_follows_what_was_accepted_last_also_back() {
    let rig = Rig::new().await;
    rig.with_stage("tag", |_| {}).await;
    assert_eq!(tagged(&rig).await, "tag-version-1");
    rig.accept("tag", tag(2)).await.unwrap();
    assert_eq!((tagged(&rig).await.as_str(), rig.pipelines.revision(rig.scope())), ("tag-version-2", 2));
    rig.accept("tag", tag(2)).await.unwrap();
    assert_eq!(rig.pipelines.revision(rig.scope()), 2, "the same again changes nothing");
    rig.accept("tag", tag(1)).await.unwrap();
    assert_eq!((tagged(&rig).await.as_str(), rig.pipelines.revision(rig.scope())), ("tag-version-1", 3));
    let view = rig.pipelines.plugin("tag").unwrap();
    assert_eq!(view.versions.len(), 2);
    assert!(view.versions[0].latest && view.versions[0].bound.len() == 1 && view.versions[1].bound.is_empty());
    assert_eq!(view.versions[0].state, ComponentState::Ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_version_stays() {
    let rig = Rig::new().await;
    let new = |version: &str, bytes| NewComponent {
        name: "tag".to_owned(),
        version: Some(version.to_owned()),
        bytes,
        source: PluginSource::Upload,
        signature: None,
    };
    rig.pipelines.accept(new("1.0.0", tag(1)), &Actor::system()).await.unwrap();
    let mut pinned = stage("tag", "tag", json!({}));
    pinned.version = "1.0.0".to_owned();
    rig.pipelines.set(rig.scope(), vec![pinned], None, &Actor::system()).await.unwrap();
    rig.pipelines.accept(new("2.0.0", tag(2)), &Actor::system()).await.unwrap();
    assert_eq!((tagged(&rig).await.as_str(), rig.pipelines.revision(rig.scope())), ("tag-version-1", 1));
    let other = rig.pipelines.accept(new("1.0.0", tag(3)), &Actor::system()).await.unwrap_err();
    assert!(matches!(other, PipelineError::Catalog(CatalogError::Conflict(_))), "{other}");
    let bound = rig.pipelines.delete_version("tag", "1.0.0", &Actor::system()).await.unwrap_err();
    assert!(matches!(&bound, PipelineError::Bound(scopes) if scopes == &[rig.scope()]), "{bound}");
    rig.pipelines.delete_version("tag", "2.0.0", &Actor::system()).await.unwrap();
    assert_eq!(rig.pipelines.plugin("tag").unwrap().versions.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_refuses_a_config_in_use_is_not_accepted() {
    let rig = Rig::new().await;
    rig.with_stage("tag", |stage| stage.config = json!({ "refuse": "tag-version-2" })).await;
    let error = rig.accept("tag", tag(2)).await.unwrap_err();
    assert!(error.to_string().contains("tag-version-2 does not like this config"), "{error}");
    assert_eq!(tagged(&rig).await, "tag-version-1");
    let view = rig.pipelines.plugin("tag").unwrap();
    assert!(view.last_error.is_some_and(|error| error.message.contains("does not like")));
    assert_eq!(rig.metric("sluice_plugin_reload_errors_total", "tag"), 1.0);
    rig.accept("tag", tag(3)).await.unwrap();
    assert_eq!(tagged(&rig).await, "tag-version-3");
    assert_eq!(rig.pipelines.plugin("tag").unwrap().last_error, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_plugin_is_told_what_it_is() {
    let rig = Rig::with(|plugins| plugins.size_max = 1 << 20).await;
    let whole = guest("tag");
    let cases: [(&str, Bytes, &str); 5] = [
        ("x", Bytes::from_static(b"\0asm\x01\0\0\0"), "core module"),
        ("x", Bytes::from_static(b"#!/bin/sh"), "no WebAssembly component"),
        ("x", whole.slice(..whole.len() / 2), "no valid component"),
        ("x", vec![0; (1 << 20) + 1].into(), "at most 1048576"),
        ("Bad Name", whole.clone(), "no plugin name"),
    ];
    for (name, bytes, why) in cases {
        let error = rig.accept(name, bytes).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    assert!(rig.pipelines.plugin("x").is_some_and(|view| view.versions.is_empty() && view.last_error.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sluice_adds_runs_first_and_makes_a_revision_only_if_it_differs() {
    let rig = Rig::new().await;
    let implicit = vec![stage("filter", "filter", json!({ "headerMatches": { "a": "1" } }))];
    let set = |stages| rig.pipelines.set_implicit(rig.scope(), stages, "filter changed", &super::SYSTEM);
    set(vec![]).await.unwrap();
    assert_eq!(rig.pipelines.revision(rig.scope()), 0);
    set(implicit.clone()).await.unwrap();
    set(implicit.clone()).await.unwrap();
    assert_eq!(rig.pipelines.revision(rig.scope()), 1);
    rig.with_stage("tag", |_| {}).await;
    let processed = rig.run(vec![draft("{}", &[("a", "1")]), draft("{}", &[])]).await;
    assert_eq!(header(&processed[0], "tag"), Some("tag-version-1"));
    assert!(matches!(&processed[1].verdict, Verdict::Drop { stage, .. } if &**stage == "filter"));
    let rig = rig.reopened().await;
    rig.pipelines.set_implicit(rig.scope(), implicit, "start", &Actor::system()).await.unwrap();
    assert_eq!(rig.pipelines.revision(rig.scope()), 2, "nothing differs after a restart");
    rig.pipelines.set_implicit(rig.scope(), vec![], "no filter", &Actor::system()).await.unwrap();
    let record = rig.pipelines.current(rig.scope()).unwrap();
    assert_eq!((record.revision, record.resolved.len(), record.stages.len()), (3, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_run_again_after_a_restart_and_machine_code_that_is_damaged_is_made_again() {
    let rig = Rig::new().await;
    rig.with_stage("tag", |_| {}).await;
    rig.accept("tag", tag(4)).await.unwrap();
    let digest = rig.pipelines.plugin("tag").unwrap().versions[0].version.digest.clone();
    rig.pipelines.shutdown().await;
    let mut damaged = 0;
    for entry in std::fs::read_dir(rig.dir.path().join("plugin-cache")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains(&digest) {
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
    let rig = rig.reopened().await;
    assert_eq!((rig.pipelines.revision(rig.scope()), tagged(&rig).await.as_str()), (2, "tag-version-4"));
    assert_eq!(rig.metric("sluice_plugin_compile_seconds", ""), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_code_of_what_was_refused_or_deleted_does_not_pile_up() {
    let rig = Rig::new().await;
    let kept = || std::fs::read_dir(rig.dir.path().join("plugin-cache")).unwrap().count();
    rig.with_stage("tag", |stage| stage.config = json!({ "refuse": "tag-version-2" })).await;
    assert_eq!(kept(), 1);
    rig.accept("tag", tag(2)).await.unwrap_err();
    assert_eq!(kept(), 1);
    let other = rig.accept("other", tag(3)).await.unwrap();
    assert_eq!(kept(), 2);
    rig.pipelines.delete_version("other", &other.version, &Actor::system()).await.unwrap();
    assert_eq!(kept(), 1);
    std::fs::write(rig.dir.path().join("plugin-cache/0123-4567.cwasm"), "of another engine").unwrap();
    let rig = rig.reopened().await;
    assert_eq!(std::fs::read_dir(rig.dir.path().join("plugin-cache")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_instances_are_dropped_with_time_and_made_again() {
    let rig = Rig::new().await;
    rig.with_stage("tag", |_| {}).await;
    tagged(&rig).await;
    assert_eq!(rig.pipelines.plugin("tag").unwrap().instances, 1, "the one made to try the config is the first to run");
    while rig.pipelines.plugin("tag").unwrap().instances > 0 {
        rig.clock.advance(Duration::from_secs(31));
        tokio::task::yield_now().await;
    }
    assert_eq!(tagged(&rig).await, "tag-version-1");
    assert_eq!(rig.metric("sluice_plugin_instances", "tag"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_scope_has_no_stages() {
    let rig = Rig::new().await;
    rig.with_stage("tag", |_| {}).await;
    rig.pipelines.forget(rig.scope()).await;
    assert!(!rig.pipelines.has_stages(rig.scope()));
    assert_eq!(tagged(&rig).await, "");
    assert_eq!(rig.metric("sluice_plugin_instances", "tag"), 0.0, "its instances went with it");
}
