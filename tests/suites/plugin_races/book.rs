//! What is known of the plugins that race: each version's number, when somebody began to bring it and when it was gone.
//! Invariant: a version is in the book before the broker hears of it. Never asks the broker but to bring everything to rest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sluice_tests::swap_record::SwapRecord;
use sluice_tests::{Broker, guest, wait};

use super::super::plugin_versions::push;

/// Comes by upload; comes as a file without a version; leaves no trail, and imports this and that.
pub(super) const UP: &str = "races.up";
pub(super) const DISK: &str = "races.disk";
pub(super) const QUIET: &str = "races.quiet";
pub(super) const PLUGINS: [&str; 3] = [UP, DISK, QUIET];
/// Versions from here on trap on some messages.
const BROKEN: u32 = 90_000;
/// Versions to choose from are the last so many: those before are mostly gone.
const CHOICE: usize = 6;

/// A version, by its digest in the book.
#[derive(Debug, Clone)]
pub(super) struct Version {
    /// What it writes of itself.
    pub(super) number: u32,
    /// Where in each topic's record somebody began to bring it.
    pub(super) brought: Vec<usize>,
    /// Where in each topic's record it was known to be deleted.
    pub(super) deleted: Option<Vec<usize>>,
}

impl Version {
    pub(super) fn is_broken(&self) -> bool {
        self.number >= BROKEN
    }
}

pub(super) struct Book {
    versions: Mutex<BTreeMap<String, Version>>,
    /// Labels by plugin, oldest first, with their digests.
    labels: Mutex<BTreeMap<&'static str, Vec<(String, String)>>>,
    records: Mutex<Vec<Arc<SwapRecord>>>,
    numbers: AtomicU32,
    configs: AtomicU32,
    disk_base: String,
}

impl Book {
    /// Brings the first version of each plugin.
    pub(super) async fn start(broker: &Broker) -> Book {
        let disk_base = format!("sha-{}", &digest(&guest::trail(2))[..12]);
        let (numbers, configs) = (AtomicU32::new(3), AtomicU32::new(1));
        let (versions, labels, records) = (Mutex::default(), Mutex::default(), Mutex::default());
        let book = Book { versions, labels, records, numbers, configs, disk_base };
        for (plugin, number, component) in
            [(UP, 1, guest::trail(1)), (DISK, 2, guest::trail(2)), (QUIET, 0, guest::with_powers(&[], "first"))]
        {
            book.bring(&component, number);
            match plugin {
                DISK => broker.place_plugin("races.disk.wasm", &component),
                _ => drop(push(broker, plugin, "1.0.0", component.clone()).await.expect(201)),
            }
            book.there(plugin, book.base(plugin), &component);
        }
        let path = format!("/plugins/{DISK}/versions/{}", book.disk_base);
        wait::until("the file is taken in", async || (broker.get(&path).await.status == 200).then_some(())).await;
        book
    }

    /// A new round, with these records.
    pub(super) fn begin(&self, records: &[Arc<SwapRecord>]) {
        *self.records.lock() = records.to_vec();
        let start = vec![0; records.len()];
        let mut versions = self.versions.lock();
        for version in versions.values_mut() {
            version.brought.clone_from(&start);
            version.deleted = version.deleted.is_some().then(|| start.clone());
        }
    }

    /// The label of a plugin's first version.
    pub(super) fn base(&self, plugin: &str) -> &str {
        if plugin == DISK { &self.disk_base } else { "1.0.0" }
    }

    /// A number that no version has had; one of ten is of a broken one.
    pub(super) fn number(&self, random: &mut StdRng) -> u32 {
        let number = self.numbers.fetch_add(1, Ordering::SeqCst);
        if random.random_range(0..10) == 0 { BROKEN + number % 10_000 } else { number }
    }

    /// A number that no config has had.
    pub(super) fn config(&self) -> u32 {
        self.configs.fetch_add(1, Ordering::SeqCst)
    }

    /// Somebody is about to bring this component.
    pub(super) fn bring(&self, component: &[u8], number: u32) {
        let version = Version { number, brought: self.here(), deleted: None };
        self.versions.lock().insert(digest(component), version);
    }

    /// The broker has taken it in under this label.
    pub(super) fn there(&self, plugin: &'static str, label: &str, component: &[u8]) {
        self.labels.lock().entry(plugin).or_default().push((label.to_owned(), digest(component)));
    }

    /// The broker has deleted it.
    pub(super) fn gone(&self, plugin: &'static str, label: &str) {
        let mut labels = self.labels.lock();
        let of_plugin = labels.entry(plugin).or_default();
        let Some(at) = of_plugin.iter().position(|(known, _)| known == label) else { return };
        let (_, digest) = of_plugin.remove(at);
        if let Some(version) = self.versions.lock().get_mut(&digest) {
            version.deleted = Some(self.here());
        }
    }

    /// One of the last labels of a plugin.
    pub(super) fn label(&self, plugin: &str, random: &mut StdRng) -> String {
        let labels = self.labels.lock();
        let last: Vec<&String> = labels[plugin].iter().rev().take(CHOICE).map(|(label, _)| label).collect();
        last[random.random_range(0..last.len())].clone()
    }

    /// One of the versions that may be deleted: not the first, which a round ends with, and not the last, for which whoever
    /// brought it looks.
    pub(super) fn to_delete(&self, random: &mut StdRng) -> Option<(&'static str, String)> {
        let plugin = PLUGINS[random.random_range(0..PLUGINS.len())];
        let labels = self.labels.lock();
        let of_plugin = &labels[plugin];
        let between = of_plugin.get(1..of_plugin.len().checked_sub(1)?)?;
        (!between.is_empty()).then(|| (plugin, between[random.random_range(0..between.len())].0.clone()))
    }

    pub(super) fn version(&self, digest: &str) -> Option<Version> {
        self.versions.lock().get(digest).cloned()
    }

    fn here(&self) -> Vec<usize> {
        self.records.lock().iter().map(|record| record.here()).collect()
    }

    /// The first version of each plugin is `latest` again, and the only one; none has powers that are allowed.
    pub(super) async fn settle_versions(&self, broker: &Broker) {
        broker.put(&format!("/plugins/{QUIET}/powers"), &json!({"allowed": []})).await.expect(200);
        broker.place_plugin("races.disk.wasm", &guest::trail(2));
        push(broker, UP, "1.0.0", guest::trail(1)).await.expect(200);
        push(broker, QUIET, "1.0.0", guest::with_powers(&[], "first")).await.expect(200);
        for plugin in PLUGINS {
            let latest = format!("/plugins/{plugin}/versions/latest");
            wait::until("the first version is latest again", async || {
                (broker.get(&latest).await.expect(200)["version"] == self.base(plugin)).then_some(())
            })
            .await;
            for label in labels(broker, plugin).await.iter().filter(|label| *label != self.base(plugin)) {
                broker.delete(&format!("/plugins/{plugin}/versions/{label}")).await.expect(204);
                self.gone(plugin, label);
            }
            assert_eq!(labels(broker, plugin).await, [self.base(plugin)], "of {plugin}");
            let page = broker.get(&format!("/plugins/{plugin}")).await.expect(200);
            assert!(page["lagging"].as_array().is_none_or(Vec::is_empty), "a pipeline lags: {page}");
        }
    }
}

/// A stage as the pipelines here have them: a fault passes, since broken versions are to race too.
pub(super) fn stage(name: &str, plugin: &str, version: &str, number: u32) -> Value {
    let config = json!({"s": name, "n": number});
    json!({"name": name, "plugin": plugin, "version": version, "config": config, "onFault": "pass", "timeoutMs": 5000})
}

pub(super) async fn labels(broker: &Broker, plugin: &str) -> Vec<String> {
    let page = broker.get(&format!("/plugins/{plugin}")).await.expect(200);
    let versions = page["versions"].as_array().expect("versions").iter();
    versions.map(|version| version["version"].as_str().expect("a label").to_owned()).collect()
}

pub(super) fn digest(component: &[u8]) -> String {
    Sha256::digest(component).iter().map(|byte| format!("{byte:02x}")).collect()
}
