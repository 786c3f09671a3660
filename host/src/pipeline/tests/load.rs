//! Many runs at once: swaps, queues, neighbours. Invariant: nothing is lost or answered twice, whatever changes meanwhile.
//! Never a benchmark: those are in `tests/`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::catalog::Actor;
use crate::catalog::model::Scope;
use crate::pipeline::PipelineError;
use crate::pipeline::draft::Verdict;

use super::{Rig, draft, fault, header, stage, tag};

#[tokio::test(flavor = "multi_thread")]
async fn swaps_under_load_lose_nothing_and_a_run_is_of_one_revision() {
    let rig = Arc::new(Rig::new().await);
    rig.with_stage("tag", |_| {}).await;
    let (stop, total) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let publisher = |number: usize| {
        let (rig, stop, total) = (Arc::clone(&rig), Arc::clone(&stop), Arc::clone(&total));
        tokio::spawn(async move {
            let mut last = 0;
            while !stop.load(Ordering::Relaxed) {
                let drafts: Vec<_> = (0..1 + number * 60).map(|n| draft(&n.to_string(), &[])).collect();
                let sent = drafts.len();
                let run = rig.pipelines.run(rig.scope(), &rig.topic, drafts).await.unwrap();
                assert_eq!(run.processed.len(), sent);
                // Revision n runs version n, but for the digits that the test has.
                let wanted = format!("tag-version-{}", (run.revision - 1) % 9 + 1);
                for (n, processed) in run.processed.iter().enumerate() {
                    assert_eq!(processed.draft.payload, n.to_string().as_bytes(), "in order");
                    assert_eq!((&processed.verdict, header(processed, "tag")), (&Verdict::Pass, Some(&*wanted)));
                }
                assert!(run.revision >= last, "revisions only rise");
                last = run.revision;
                total.fetch_add(sent, Ordering::Relaxed);
            }
        })
    };
    let publishers: Vec<_> = (0..6).map(publisher).collect();
    for swap in 1..=40_u8 {
        rig.accept("tag", tag(swap % 9 + 1)).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await.unwrap();
    }
    assert_eq!(rig.pipelines.revision(rig.scope()), 41);
    let runs = rig.metric("sluice_plugin_messages_total", "changed");
    assert_eq!(runs as usize, total.load(Ordering::Relaxed), "each message was run once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_run_is_cut_and_comes_back_whole() {
    let rig = Rig::new().await;
    rig.with_stage("tag", |_| {}).await;
    let drafts: Vec<_> = (0..10_000).map(|n| draft(&n.to_string(), &[])).collect();
    let processed = rig.run(drafts).await;
    assert_eq!(processed.len(), 10_000);
    assert!(processed.iter().enumerate().all(|(n, processed)| processed.draft.payload == n.to_string().as_bytes()));
    assert!(rig.metric("sluice_plugin_runs_total", "tag") >= 79.0);
    let large: Vec<_> = (0..5).map(|_| draft(&"x".repeat(200 << 10), &[])).collect();
    let before = rig.metric("sluice_plugin_runs_total", "tag");
    rig.run(large).await;
    assert_eq!(rig.metric("sluice_plugin_runs_total", "tag") - before, 5.0, "256 KiB a call");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_too_much_waits_a_run_is_refused_at_once() {
    let rig = Arc::new(Rig::with(|plugins| (plugins.workers, plugins.queue_batches_max) = (1, 2)).await);
    rig.with_stage("hostile", |stage| stage.timeout_ms = 200).await;
    let run = |what: &'static str| {
        let rig = Arc::clone(&rig);
        let drafts = vec![draft("{}", &[("do", what)]); 100];
        tokio::spawn(async move { rig.pipelines.run(rig.scope(), &rig.topic, drafts).await.map(|run| run.processed) })
    };
    let runs: Vec<_> = (0..12).map(|_| run("drip")).collect();
    let (mut done, mut refused) = (0, 0_usize);
    for run in runs {
        match run.await.unwrap() {
            Ok(processed) => done += usize::from(processed.len() == 100),
            Err(PipelineError::Overloaded) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    // Two wait; whether a third has been taken up by the worker in time is the scheduler's affair.
    assert!(done >= 2 && refused >= 1 && done + refused == 12, "{done} done, {refused} refused");
    assert_eq!(rig.metric("sluice_plugin_overloads_total", ""), refused as f64);
    rig.pipelines.shutdown().await;
    assert!(matches!(run("nothing").await.unwrap(), Err(PipelineError::Stopping)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_has_so_many_instances_however_many_runs_wait_for_one() {
    let rig = Arc::new(Rig::with(|plugins| (plugins.workers, plugins.instances_per_stage_max) = (3, 1)).await);
    rig.with_stage("tag", |_| {}).await;
    let run = |_| {
        let rig = Arc::clone(&rig);
        let drafts = vec![draft("{}", &[]); 1000];
        tokio::spawn(async move { rig.run(drafts).await.len() })
    };
    let runs: Vec<_> = (0..6).map(run).collect();
    for run in runs {
        assert_eq!(run.await.unwrap(), 1000);
    }
    assert_eq!(rig.metric("sluice_plugin_instances", "tag"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_looping_plugin_leaves_a_worker_to_its_neighbours() {
    let rig = Arc::new(Rig::new().await);
    rig.with_stage("hostile", |stage| stage.timeout_ms = 1000).await;
    let quiet = rig.add_topic("quiet").await;
    let scope = Scope::Topic(quiet.id);
    rig.pipelines.set(scope, vec![stage("f", "filter", json!({}))], None, &Actor::system()).await.unwrap();
    let neighbour = |n: usize| {
        let (rig, quiet) = (Arc::clone(&rig), quiet.clone());
        async move { rig.pipelines.run(scope, &quiet, vec![draft(&n.to_string(), &[])]).await.unwrap() }
    };
    neighbour(0).await; // Shows that it is quick.
    let looping: Vec<_> = (0..2)
        .map(|_| {
            let rig = Arc::clone(&rig);
            tokio::spawn(async move { rig.obey(&["spin"]).await })
        })
        .collect();
    // A hundred neighbours' runs are done before the loops have used up their second each.
    for n in 0..100 {
        neighbour(n).await;
    }
    assert!(looping.iter().any(|task| !task.is_finished()), "they did not wait for the loops");
    for task in looping {
        assert_eq!(fault(&task.await.unwrap()[0]).0, "TIMED_OUT");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_went_away_costs_nothing() {
    let rig = Arc::new(Rig::with(|plugins| plugins.workers = 1).await);
    rig.with_stage("hostile", |stage| stage.timeout_ms = 200).await;
    let busy = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.obey(&["drip"; 16]).await }
    });
    while rig.metric("sluice_plugin_queued_messages", "") == 0.0 && !busy.is_finished() {
        let run = rig.pipelines.run(rig.scope(), &rig.topic, vec![draft("{}", &[])]);
        let _ = tokio::time::timeout(Duration::from_millis(1), run).await;
    }
    busy.await.unwrap();
    assert_eq!(rig.obey(&["nothing"]).await[0].verdict, Verdict::Pass);
    assert_eq!(rig.metric("sluice_plugin_queued_messages", ""), 0.0);
}
