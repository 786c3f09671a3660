//! The plugin directory. Invariant: real files and real events; a test waits for what it expects, with an upper bound.
//! Never waits for a fixed time.

use std::path::PathBuf;
use std::time::Duration;

use crate::pipeline::PluginView;

use super::{Rig, broken, draft, header, mended, tag};

/// Far above the second that is promised, for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

impl Rig {
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("plugins").join(name)
    }

    pub(super) async fn until(&self, plugin: &str, is: impl Fn(&PluginView) -> bool) -> PluginView {
        let seen = async {
            loop {
                if let Some(view) = self.pipelines.plugin(plugin).filter(&is) {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let view = tokio::time::timeout(PATIENCE, seen).await;
        view.unwrap_or_else(|_| panic!("{plugin} is {:?}", self.pipelines.plugin(plugin)))
    }

    /// Returns after the watch has looked: it has taken in a file that is new now.
    async fn look(&self) {
        let n = std::fs::read_dir(self.file("")).unwrap().count();
        let name = format!("look-{n}");
        std::fs::write(self.file(&format!("{name}.wasm")), b"bad").unwrap();
        self.until(&name, |view| view.last_error.is_some()).await;
    }

    async fn tagged(&self) -> String {
        header(&self.run(vec![draft("{}", &[])]).await[0], "tag").unwrap_or_default().to_owned()
    }
}

fn digest(bytes: &[u8]) -> String {
    crate::pipeline::component::digest(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_become_versions_and_restored_bytes_roll_back() {
    let rig = Rig::new().await;
    std::fs::write(rig.file("tag.wasm"), tag(1)).unwrap();
    rig.pipelines.watch().unwrap();
    let is = |bytes: bytes::Bytes| {
        move |view: &PluginView| view.versions.first().is_some_and(|v| v.version.digest == digest(&bytes))
    };
    rig.until("tag", is(tag(1))).await;
    rig.with_stage("tag", |_| {}).await;

    // Overwritten.
    std::fs::write(rig.file("tag.wasm"), tag(2)).unwrap();
    rig.until("tag", is(tag(2))).await;
    // Renamed over.
    std::fs::write(rig.file("tag.new"), tag(3)).unwrap();
    std::fs::rename(rig.file("tag.new"), rig.file("tag.wasm")).unwrap();
    rig.until("tag", is(tag(3))).await;
    // Another file with a label.
    std::fs::write(rig.file("tag@1.4.0.wasm"), tag(4)).unwrap();
    let view = rig.until("tag", is(tag(4))).await;
    assert_eq!(view.versions[0].version.version, "1.4.0");
    // Restored.
    std::fs::write(rig.file("tag.wasm"), tag(1)).unwrap();
    rig.until("tag", is(tag(1))).await;
    while rig.tagged().await != "tag-version-1" {
        tokio::task::yield_now().await;
    }
    // Deleted: nothing changes.
    std::fs::remove_file(rig.file("tag.wasm")).unwrap();
    std::fs::write(rig.file("other.wasm"), tag(5)).unwrap();
    rig.until("other", is(tag(5))).await;
    assert_eq!(rig.tagged().await, "tag-version-1");
    rig.pipelines.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_leaves_what_runs_and_is_named() {
    let rig = Rig::new().await;
    rig.with_stage("tag", |_| {}).await;
    rig.pipelines.watch().unwrap();
    let whole = tag(2);
    std::fs::write(rig.file("tag.wasm"), &whole[..whole.len() / 2]).unwrap();
    let view = rig.until("tag", |view| view.last_error.is_some()).await;
    let error = view.last_error.unwrap();
    assert_eq!(error.file, "tag.wasm");
    assert!(error.message.contains("no valid component"), "{}", error.message);
    assert_eq!(rig.tagged().await, "tag-version-1");
    assert_eq!(rig.metric("sluice_plugin_reload_errors_total", "tag"), 1.0);
    // The rest of it arrives.
    std::fs::write(rig.file("tag.wasm"), &whole).unwrap();
    let view = rig.until("tag", |view| view.last_error.is_none()).await;
    assert_eq!(view.versions[0].version.digest, digest(&whole));
    // Other bytes under a label in use.
    std::fs::write(rig.file("tag@7.wasm"), tag(3)).unwrap();
    rig.until("tag", |view| view.versions[0].version.version == "7").await;
    std::fs::write(rig.file("tag@7.wasm"), tag(4)).unwrap();
    let view = rig.until("tag", |view| view.last_error.is_some()).await;
    assert!(view.last_error.unwrap().message.contains("has other bytes"));
    assert_eq!(view.versions[0].version.version, "7");
    rig.pipelines.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_written_slowly_is_taken_in_once_it_is_whole() {
    let rig = Rig::new().await;
    rig.pipelines.watch().unwrap();
    let whole = tag(1);
    let mut file = std::fs::File::create(rig.file("slow.wasm")).unwrap();
    for part in whole.chunks(whole.len() / 8 + 1) {
        std::io::Write::write_all(&mut file, part).unwrap();
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    let view = rig.until("slow", |view| !view.versions.is_empty()).await;
    assert_eq!(view.versions.len(), 1);
    assert_eq!(rig.metric("sluice_plugin_reload_errors_total", "slow"), 0.0, "nothing was complained of meanwhile");
    rig.pipelines.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_a_good_files_way_is_named_once_and_waited_out() {
    let rig = Rig::new().await;
    rig.pipelines.watch().unwrap();
    broken(&rig, "plugin_versions", "1").await;
    std::fs::write(rig.file("tag.wasm"), tag(1)).unwrap();
    let view = rig.until("tag", |view| view.last_error.is_some()).await;
    let error = view.last_error.unwrap();
    assert!(error.message.contains("not available") && error.file == "tag.wasm", "{error:?}");
    for _ in 0..10 {
        rig.clock.advance(Duration::from_secs(60));
        rig.look().await;
    }
    assert_eq!(rig.metric("sluice_plugin_reload_errors_total", "tag"), 1.0);
    mended(&rig, "plugin_versions").await;
    rig.clock.advance(Duration::from_secs(60));
    let view = rig.until("tag", |view| !view.versions.is_empty()).await;
    assert_eq!(view.last_error, None);
    rig.pipelines.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_start_the_catalog_wins_over_older_files() {
    let rig = Rig::new().await;
    std::fs::write(rig.file("tag.wasm"), tag(1)).unwrap();
    rig.pipelines.watch().unwrap();
    rig.until("tag", |view| view.versions.len() == 1).await;
    rig.accept("tag", tag(2)).await.unwrap();
    let rig = rig.reopened().await;
    std::fs::write(rig.file("new.wasm"), tag(3)).unwrap();
    rig.pipelines.watch().unwrap();
    rig.until("new", |view| !view.versions.is_empty()).await;
    assert_eq!(rig.pipelines.plugin("tag").unwrap().versions[0].version.digest, digest(&tag(2)));
    rig.pipelines.shutdown().await;
}
