//! A pipeline revision that runs. Invariant: it is never changed; a change makes another one, and batches under way end on
//! theirs. Never knows what runs where.

use std::sync::Arc;
use std::time::Duration;

use crate::catalog::model::PipelineRevision;

use super::limits::{BATCH_CPU_MAX, CALL_MESSAGES_MAX};
use super::rollout::Step;
use super::stage::{Machine, Stage};

/// See the module.
#[derive(Debug)]
pub struct Revision {
    /// Its number, 0 for a scope that never had one.
    pub number: u64,
    /// As the catalog has it; none before the first.
    pub record: Option<PipelineRevision>,
    /// In order.
    pub steps: Vec<Step>,
    /// What stages run with.
    pub machine: Arc<Machine>,
}

impl Revision {
    /// All that run: also those that are tried.
    pub fn stages(&self) -> impl Iterator<Item = &Arc<Stage>> {
        self.steps.iter().flat_map(|step| {
            let tried = step.candidate.as_ref().map(|candidate| &candidate.stage);
            std::iter::once(&step.stage).chain(tried)
        })
    }

    /// Whether one of its stages keeps values: then what it runs is stored as one with them.
    #[must_use]
    pub fn keeps_values(&self) -> bool {
        self.stages().any(|stage| stage.keeps_values)
    }

    /// Messages of one batch: if each of them took all the time that it may, one by one, the batch would still end
    /// within [`BATCH_CPU_MAX`], or with its first message.
    #[must_use]
    pub fn batch_messages_max(&self) -> usize {
        let each: Duration = self.steps.iter().map(|step| step.stage.timeout).sum();
        let fit = BATCH_CPU_MAX.as_millis() / each.as_millis().max(1);
        usize::try_from(fit).unwrap_or(usize::MAX).clamp(1, CALL_MESSAGES_MAX)
    }
}
