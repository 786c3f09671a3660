//! Machine code that is kept: what a start does with it, and what happens where it is damaged or can't be kept.

use std::fs;
use std::path::PathBuf;

use crate::pipeline::CACHE_DIR;
use crate::pipeline::component::{self, ComponentState};
use crate::pipeline::draft::Verdict;

use super::{Rig, draft, header, tag};

const COMPILED: &str = "sluice_plugin_compile_seconds";

/// The only file of machine code.
fn kept(rig: &Rig) -> PathBuf {
    let files: Vec<PathBuf> =
        fs::read_dir(rig.dir.path().join(CACHE_DIR)).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    file.clone()
}

async fn is_tagged(rig: &Rig) {
    let processed = rig.run(vec![draft("{}", &[])]).await;
    assert_eq!((&processed[0].verdict, header(&processed[0], "tag")), (&Verdict::Pass, Some("tag-version-1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_finds_it_compiles_nothing() {
    let rig = Rig::new().await;
    rig.with_stage("tag", |_| {}).await;
    assert_eq!(rig.metric(COMPILED, ""), 1.0);
    let rig = rig.reopened().await;
    let (digest, bytes) = (component::digest(&tag(1)), tag(1));
    rig.pipelines.components.warm(&digest, bytes).await.unwrap();
    assert_eq!(rig.pipelines.components.state(&digest), ComponentState::Ready);
    is_tagged(&rig).await;
    assert_eq!(rig.metric(COMPILED, ""), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_compiled_again() {
    let mut rig = Rig::new().await;
    rig.with_stage("tag", |_| {}).await;
    let path = kept(&rig);
    let whole = fs::read(&path).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let damaged = [
        flipped(0),
        flipped(whole.len() / 2),
        flipped(whole.len() - 1),
        whole[..whole.len() - 1].to_vec(),
        whole[..7].to_vec(),
        Vec::new(),
    ];
    for bytes in damaged {
        // Another file: the one that is mapped must not change under whoever runs it.
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        rig = rig.reopened().await;
        is_tagged(&rig).await;
        assert_eq!(rig.metric(COMPILED, ""), 1.0);
        assert_eq!(fs::read(&path).unwrap(), whole, "and kept again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_runs_all_the_same() {
    let rig = Rig::new().await;
    let cache = rig.dir.path().join(CACHE_DIR);
    fs::remove_dir_all(&cache).unwrap();
    // Nothing can be written or read below a file.
    fs::write(&cache, "in the way").unwrap();
    rig.with_stage("tag", |_| {}).await;
    is_tagged(&rig).await;
    assert_eq!(fs::read(&cache).unwrap(), b"in the way");
    fs::remove_file(&cache).unwrap();
    let rig = rig.reopened().await;
    is_tagged(&rig).await;
    assert_eq!(rig.metric(COMPILED, ""), 1.0);
    kept(&rig);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_ready_while_its_version_is_deleted_leaves_nothing() {
    let rig = Rig::new().await;
    let first = rig.accept("tag", tag(1)).await.unwrap();
    rig.accept("tag", tag(2)).await.unwrap();
    // A change of a pipeline has read the component, and a deletion comes and goes before it is compiled.
    rig.pipelines.registry.removed("tag", &first.version);
    rig.pipelines.components.discard(&first.digest).await;
    kept(&rig);
    rig.pipelines.loaded(&first.digest).await.unwrap();
    assert!(!kept(&rig).to_string_lossy().contains(&first.digest), "the second version's is all that is kept");
    assert_eq!(rig.pipelines.components.state(&first.digest), ComponentState::Idle);
}
