//! A pipeline revision that runs. Invariant: it is never changed; a change makes another one, and batches under way end on
//! theirs. Never knows what runs where.

use std::sync::Arc;

use crate::catalog::model::PipelineRevision;

use super::stage::{Machine, Stage};

/// See the module.
#[derive(Debug)]
pub struct Revision {
    /// Its number, 0 for a scope that never had one.
    pub number: u64,
    /// As the catalog has it; none before the first.
    pub record: Option<PipelineRevision>,
    /// In order.
    pub stages: Vec<Arc<Stage>>,
    /// What stages run with.
    pub machine: Arc<Machine>,
}
