//! Quotas of plugins by the prefix of their names: how many there are, how many bytes they take. Invariant: what is over its
//! quota is not taken in, by whatever way it comes; what is there stays. The share of the threads is in `shares.rs`.

use std::collections::{HashMap, HashSet};

use prometheus::{IntGauge, IntGaugeVec, Opts, Registry, Result};

use crate::config::{PluginQuota, longest_prefix};

use super::{PipelineError, Pipelines};

/// What a quota counts.
#[derive(Debug, Clone, Copy)]
pub enum Of {
    /// Plugins that somebody brought.
    Plugins,
    /// Bytes of their components, each once.
    Bytes,
    /// Threads that run stages.
    Threads,
}

impl Of {
    fn as_str(self) -> &'static str {
        match self {
            Of::Plugins => "plugins",
            Of::Bytes => "bytes",
            Of::Threads => "threads",
        }
    }
}

/// Figures of quotas, by prefix.
#[derive(Debug, Clone)]
pub struct QuotaMetrics {
    used: IntGaugeVec,
    limits: IntGaugeVec,
    waiting: IntGaugeVec,
}

/// Those of one quota that change with each batch.
#[derive(Debug)]
pub struct QuotaGauges {
    /// Threads that run its batches.
    pub threads: IntGauge,
    /// Messages that wait for one.
    pub waiting: IntGauge,
}

impl QuotaMetrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// When one of the names is taken in `registry`.
    pub fn new(registry: &Registry) -> Result<QuotaMetrics> {
        let gauges = |name: &str, help: &str, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        let used = "What plugins and topics whose names begin with a prefix use of their quota.";
        let metrics = QuotaMetrics {
            used: gauges("sluice_plugin_quota_used", used, &["prefix", "of"])?,
            limits: gauges("sluice_plugin_quota_limit", "What a quota allows.", &["prefix", "of"])?,
            waiting: gauges(
                "sluice_plugin_quota_waiting_messages",
                "Messages of topics under a quota that wait for a plugin worker.",
                &["prefix"],
            )?,
        };
        registry.register(Box::new(metrics.used.clone()))?;
        registry.register(Box::new(metrics.limits.clone()))?;
        registry.register(Box::new(metrics.waiting.clone()))?;
        Ok(metrics)
    }

    /// Those of a prefix that change with each batch.
    #[must_use]
    pub fn of(&self, prefix: &str) -> QuotaGauges {
        QuotaGauges {
            threads: self.used.with_label_values(&[prefix, Of::Threads.as_str()]),
            waiting: self.waiting.with_label_values(&[prefix]),
        }
    }

    /// What the quota allows.
    pub fn limit(&self, prefix: &str, of: Of, limit: u64) {
        self.limits.with_label_values(&[prefix, of.as_str()]).set(i64::try_from(limit).unwrap_or(i64::MAX));
    }

    fn uses(&self, prefix: &str, of: Of, used: u64) {
        self.used.with_label_values(&[prefix, of.as_str()]).set(i64::try_from(used).unwrap_or(i64::MAX));
    }
}

/// What plugins of some names have.
#[derive(Debug, Default)]
pub struct Held {
    /// Those that somebody brought.
    pub plugins: HashSet<String>,
    /// The sizes of their components, by digest: what two versions share is stored once.
    pub components: HashMap<String, u64>,
}

impl Held {
    fn bytes(&self) -> u64 {
        self.components.values().sum()
    }
}

impl Pipelines {
    /// Refuses a component that its quota has no room for. One that is there already takes no more.
    pub(super) fn check_quota(&self, name: &str, digest: &str, size: usize) -> std::result::Result<(), PipelineError> {
        let Some(quota) = quota_of(&self.options.plugins.quotas, name) else { return Ok(()) };
        let mut held = self.held(quota);
        let (plugins, bytes) = (held.plugins.len(), held.bytes());
        held.plugins.insert(name.to_owned());
        held.components.insert(digest.to_owned(), size as u64);
        let prefix = &quota.prefix;
        if let Some(at_most) = quota.plugins.filter(|at_most| held.plugins.len() > plugins.max(*at_most)) {
            return Err(PipelineError::Quota(format!(
                "the quota of '{prefix}' (plugins.quotas) is {at_most} plugins whose names begin so, and there are {plugins}: \
                 delete all versions of one, or raise it"
            )));
        }
        if let Some(at_most) = quota.bytes.filter(|at_most| held.bytes() > bytes.max(*at_most)) {
            return Err(PipelineError::Quota(format!(
                "the quota of '{prefix}' (plugins.quotas) is {at_most} bytes of components, of which {bytes} are used, and this \
                 one has {size}: delete versions, or raise it"
            )));
        }
        Ok(())
    }

    /// Tells what plugins use of their quotas, and what these are.
    pub(super) fn count_quotas(&self) {
        for quota in &self.options.plugins.quotas {
            let held = self.held(quota);
            let limits = [
                (Of::Plugins, quota.plugins.map(|it| it as u64), held.plugins.len() as u64),
                (Of::Bytes, quota.bytes, held.bytes()),
            ];
            for (of, limit, used) in limits {
                self.quota_metrics.uses(&quota.prefix, of, used);
                if let Some(limit) = limit {
                    self.quota_metrics.limit(&quota.prefix, of, limit);
                }
            }
        }
    }

    fn held(&self, quota: &PluginQuota) -> Held {
        let quotas = &self.options.plugins.quotas;
        self.registry.held(|name| quota_of(quotas, name).is_some_and(|of| of.prefix == quota.prefix))
    }
}

fn quota_of<'a>(quotas: &'a [PluginQuota], name: &str) -> Option<&'a PluginQuota> {
    longest_prefix(quotas.iter().map(|quota| (quota.prefix.as_str(), quota)), name)
}
