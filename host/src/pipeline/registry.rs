//! The plugins that this broker knows, their versions, and what last went wrong with each. Invariant: it mirrors the
//! catalog, plus this broker's own errors; the number of names is bounded. Never touches the disk.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::catalog::model::{PluginSource, PluginVersion, Scope};
use crate::clock::{Clock, Timestamp};

use super::component::ComponentState;
use super::plugin_log::PluginLog;
use super::quotas::Held;

/// Names that are kept, with or without a version: each is a label of the metrics.
pub const PLUGINS_MAX: usize = 1024;
/// Bytes of a plugin's name, from API.md.
const NAME_BYTES_MAX: usize = 128;
/// Bytes of a version's label.
const LABEL_BYTES_MAX: usize = 64;

/// What went wrong with a file or an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginProblem {
    /// The file's name, or where else it came from.
    pub file: String,
    /// What to do about it.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// A stage that runs a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The pipeline's.
    pub scope: Scope,
    /// The stage's name.
    pub stage: String,
    /// Whether Sluice added it.
    pub implicit: bool,
    /// Whether it is not asked for the moment, after repeated faults.
    pub breaker_open: bool,
}

/// A pipeline that would run another version if it could.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    /// Whose.
    pub scope: Scope,
    /// Why it can't yet.
    pub why: String,
}

/// A version, as this broker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionView {
    /// As the catalog has it.
    pub version: PluginVersion,
    /// Whether `latest` means this one.
    pub latest: bool,
    /// What this broker has made of it.
    pub state: ComponentState,
    /// Where it runs.
    pub bound: Vec<Binding>,
}

/// A plugin, as this broker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginView {
    /// Its name.
    pub name: String,
    /// The version accepted last comes first; none if only bad ones were seen.
    pub versions: Vec<VersionView>,
    /// Pipelines that do not follow `latest` yet; they are tried again.
    pub lagging: Vec<Lag>,
    /// What last went wrong; gone once a version is accepted.
    pub last_error: Option<PluginProblem>,
    /// Instances that exist on this broker.
    pub instances: usize,
}

#[derive(Debug, Default)]
struct Entry {
    versions: Vec<PluginVersion>,
    last_error: Option<PluginProblem>,
    log: Option<Arc<PluginLog>>,
}

/// See the module.
#[derive(Debug)]
pub struct PluginRegistry {
    clock: Clock,
    plugins: Mutex<BTreeMap<String, Entry>>,
}

impl PluginRegistry {
    /// With what the catalog holds.
    #[must_use]
    pub fn new(versions: Vec<PluginVersion>, clock: Clock) -> PluginRegistry {
        let registry = PluginRegistry { clock, plugins: Mutex::default() };
        for version in versions {
            registry.accepted(version);
        }
        registry
    }

    /// A version was accepted: it is `latest` now.
    pub fn accepted(&self, version: PluginVersion) {
        let mut plugins = self.plugins.lock();
        let entry = plugins.entry(version.plugin.clone()).or_default();
        entry.last_error = None;
        entry.versions.retain(|known| known.version != version.version);
        entry.versions.push(version);
        entry.versions.sort_by_key(|version| std::cmp::Reverse(version.accepted));
    }

    /// The catalog holds these now: other brokers have accepted and removed some. Gives the components of those that were removed.
    #[must_use]
    pub fn take_over(&self, versions: Vec<PluginVersion>) -> Vec<String> {
        let mut now: BTreeMap<String, Vec<PluginVersion>> = BTreeMap::new();
        for version in versions {
            now.entry(version.plugin.clone()).or_default().push(version);
        }
        let gone: Vec<PluginVersion> = {
            let plugins = self.plugins.lock();
            let is_there = |version: &PluginVersion| {
                now.get(&version.plugin).is_some_and(|all| all.iter().any(|known| known.version == version.version))
            };
            let all = plugins.values().flat_map(|entry| &entry.versions);
            all.filter(|version| !is_there(version)).cloned().collect()
        };
        gone.iter().for_each(|gone| self.removed(&gone.plugin, &gone.version));
        for version in now.into_values().flatten() {
            // `latest` moves to a version that was there before, too.
            if self.resolve(&version.plugin, &version.version).as_ref() != Some(&version) {
                self.accepted(version);
            }
        }
        gone.into_iter().map(|gone| gone.digest).collect()
    }

    /// A version was removed from the catalog.
    pub fn removed(&self, plugin: &str, label: &str) {
        let mut plugins = self.plugins.lock();
        if let Some(entry) = plugins.get_mut(plugin) {
            entry.versions.retain(|version| version.version != label);
            if entry.versions.is_empty() && entry.last_error.is_none() {
                plugins.remove(plugin);
            }
        }
    }

    /// A file or an upload of `plugin` was not accepted.
    pub fn failed(&self, plugin: &str, file: String, message: String) {
        let mut plugins = self.plugins.lock();
        if plugins.len() < PLUGINS_MAX || plugins.contains_key(plugin) {
            let problem = PluginProblem { file, message, at: self.clock.now() };
            plugins.entry(plugin.to_owned()).or_default().last_error = Some(problem);
        }
    }

    /// Whether a new name can be taken in.
    #[must_use]
    pub fn has_room(&self, plugin: &str) -> bool {
        let plugins = self.plugins.lock();
        plugins.contains_key(plugin) || plugins.len() < PLUGINS_MAX
    }

    /// How many versions of it there are.
    #[must_use]
    pub fn versions_of(&self, plugin: &str) -> usize {
        self.plugins.lock().get(plugin).map_or(0, |entry| entry.versions.len())
    }

    /// The version that `label` means; `latest` is the one accepted last.
    #[must_use]
    pub fn resolve(&self, plugin: &str, label: &str) -> Option<PluginVersion> {
        let plugins = self.plugins.lock();
        let versions = &plugins.get(plugin)?.versions;
        match label {
            "latest" => versions.first().cloned(),
            _ => versions.iter().find(|version| version.version == label).cloned(),
        }
    }

    /// The version with these bytes that was accepted last.
    #[must_use]
    pub fn with_digest(&self, plugin: &str, digest: &str) -> Option<PluginVersion> {
        self.plugins.lock().get(plugin)?.versions.iter().find(|version| version.digest == digest).cloned()
    }

    /// The digests of all versions of all plugins.
    #[must_use]
    pub fn digests(&self) -> HashSet<String> {
        let plugins = self.plugins.lock();
        plugins.values().flat_map(|entry| entry.versions.iter().map(|version| version.digest.clone())).collect()
    }

    /// What plugins have whose names `counts` takes, without what came with the binary.
    pub fn held(&self, counts: impl Fn(&str) -> bool) -> Held {
        let mut held = Held::default();
        for (name, entry) in self.plugins.lock().iter().filter(|(name, _)| counts(name)) {
            for version in entry.versions.iter().filter(|version| version.source != PluginSource::Builtin) {
                held.plugins.insert(name.clone());
                held.components.insert(version.digest.clone(), version.size);
            }
        }
        held
    }

    /// Whether there is any version of it.
    #[must_use]
    pub fn is_known(&self, plugin: &str) -> bool {
        self.plugins.lock().get(plugin).is_some_and(|entry| !entry.versions.is_empty())
    }

    /// Of how many plugins the last file or upload was not accepted.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.plugins.lock().values().filter(|entry| entry.last_error.is_some()).count()
    }

    /// Names, versions (latest first) and last errors.
    #[must_use]
    pub fn all(&self) -> Vec<(String, Vec<PluginVersion>, Option<PluginProblem>)> {
        let plugins = self.plugins.lock();
        let seen = |(name, entry): (&String, &Entry)| (name.clone(), entry.versions.clone(), entry.last_error.clone());
        plugins.iter().map(seen).collect()
    }

    /// The log that all instances of `plugin` share.
    #[must_use]
    pub fn log(&self, plugin: &str) -> Arc<PluginLog> {
        let mut plugins = self.plugins.lock();
        let make = || PluginLog::new(plugin.into(), self.clock.clone());
        match plugins.get_mut(plugin) {
            Some(entry) => Arc::clone(entry.log.get_or_insert_with(make)),
            None => make(),
        }
    }
}

/// Whether `name` can name a plugin: `[a-z0-9][a-z0-9.-]{0,127}`.
#[must_use]
pub fn is_plugin_name(name: &str) -> bool {
    let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= NAME_BYTES_MAX
        && name.bytes().next().is_some_and(lower)
        && name.bytes().all(|byte| lower(byte) || matches!(byte, b'.' | b'-'))
}

/// Whether `label` can name a version: letters, digits, `.`, `-`, `+`, `_`, at most 64, and not `latest`.
#[must_use]
pub fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+' | b'_');
    !label.is_empty() && label.len() <= LABEL_BYTES_MAX && label != "latest" && label.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_names_are_kept_and_known_ones_have_room() {
        let registry = PluginRegistry::new(Vec::new(), Clock::fixed(Timestamp(0)));
        for number in 0..PLUGINS_MAX + 10 {
            registry.failed(&number.to_string(), "f".to_owned(), "bad".to_owned());
        }
        assert_eq!(registry.all().len(), PLUGINS_MAX);
        assert!(registry.has_room("0") && !registry.has_room("one more"));
    }

    #[test]
    fn names_are_checked() {
        for good in ["a", "json-schema", "0.x", &"x".repeat(128)] {
            assert!(is_plugin_name(good), "{good}");
        }
        for bad in ["", "-a", ".a", "A", "a_b", "a b", "ü", &"x".repeat(129)] {
            assert!(!is_plugin_name(bad), "{bad}");
        }
        assert!(is_label("1.2.0-rc.1+b") && is_label("sha-0123456789ab"));
        assert!(!is_label("latest") && !is_label("") && !is_label("a/b"));
    }
}
