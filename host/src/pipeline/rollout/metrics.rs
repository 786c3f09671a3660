//! What rollouts come to, for `/metrics`. Invariant: labels are plugin names (bounded by the registry) and fixed words.
//! Never labelled by topic, stage or message.

use prometheus::{IntCounterVec, Opts, Registry, Result};

use super::End;
use super::compare::Comparison;

/// All of them. Clones share their counters.
#[derive(Debug, Clone)]
pub struct RolloutMetrics {
    ended: IntCounterVec,
    shadow: IntCounterVec,
}

impl RolloutMetrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// When one of the names is taken in `registry`.
    pub fn new(registry: &Registry) -> Result<RolloutMetrics> {
        let counters = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let metrics = RolloutMetrics {
            ended: counters(
                "sluice_plugin_rollouts_ended_total",
                "Versions that were tried on a stage, by how that ended.",
                &["plugin", "end"],
            )?,
            shadow: counters(
                "sluice_plugin_shadow_messages_total",
                "Messages that a version was tried on beside the one of the stage, by how they compare.",
                &["plugin", "outcome"],
            )?,
        };
        registry.register(Box::new(metrics.ended.clone()))?;
        registry.register(Box::new(metrics.shadow.clone()))?;
        Ok(metrics)
    }

    /// A rollout of `plugin` ended.
    pub fn ended(&self, plugin: &str, end: End) {
        self.ended.with_label_values(&[plugin, end.as_str()]).inc();
    }

    /// A message was compared.
    pub fn compared(&self, plugin: &str, outcome: Comparison) {
        self.shadow.with_label_values(&[plugin, outcome.as_str()]).inc();
    }

    /// So many messages found no room.
    pub fn shed(&self, plugin: &str, messages: usize) {
        self.shadow.with_label_values(&[plugin, "shed"]).inc_by(messages as u64);
    }
}
