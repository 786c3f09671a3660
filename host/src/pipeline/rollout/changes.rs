//! How rollouts begin and end. Invariant: each step is a revision, so the history and the audit log tell who tried what, and
//! how it ended; what was found stays with a rollout while only its percentage or its limits change. Never touches a batch
//! under way.

use std::sync::Arc;

use crate::catalog::model::{PipelineRevision, ResolvedStage, Rollout, RolloutLimits, Scope, StageSpec, Strategy};
use crate::catalog::{Actor, CatalogError, NewRevision};

use super::super::change::refusal;
use super::super::revision::Revision;
use super::super::{PipelineError, Pipelines};
use super::{Candidate, End, RolloutView, view};

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRollout {
    /// A version's label, or `latest`.
    pub version: String,
    /// How it is tried; `None`: it is not, the stage runs it at once.
    pub strategy: Option<Strategy>,
    /// On how many of a hundred messages.
    pub percent: f64,
    /// What ends it by itself.
    pub limits: RolloutLimits,
}

/// A stage of a pipeline as it is now.
struct Found {
    before: Arc<Revision>,
    record: PipelineRevision,
    /// Its place.
    at: usize,
}

impl Pipelines {
    /// Brings a version onto a stage: at once, or on trial. One that is on trial already goes on, under the percentage and
    /// the limits that are given now.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] by JSON Pointer into the request; the catalog's errors, also without such a stage.
    pub async fn roll_out(
        &self,
        (scope, stage): (Scope, &str),
        new: NewRollout,
        expected: Option<u64>,
        actor: &Actor,
    ) -> Result<PipelineRevision, PipelineError> {
        let spec = |found: &Found| StageSpec { version: new.version.clone(), ..found.own().spec.clone() };
        let _in_use = self.preload(scope, &[spec(&self.find(scope, stage)?)], false).await;
        let new = &new;
        self.in_turn(expected.is_some(), || self.roll_out_in_turn((scope, stage), new, expected, actor)).await
    }

    async fn roll_out_in_turn(
        &self,
        (scope, stage): (Scope, &str),
        new: &NewRollout,
        expected: Option<u64>,
        actor: &Actor,
    ) -> Result<PipelineRevision, PipelineError> {
        let spec = |found: &Found| StageSpec { version: new.version.clone(), ..found.own().spec.clone() };
        let found = self.find(scope, stage)?;
        let invalid = |why: String| PipelineError::Invalid(vec![("/version".to_owned(), why)]);
        let wanted = self.resolve(&spec(&found), false).map_err(|(_, why)| invalid(why))?;
        if wanted.digest == found.own().digest {
            return Err(invalid(format!("the stage runs '{}' already", found.own().version)));
        }
        let (mut stages, mut resolved) = (found.record.stages.clone(), found.record.resolved.clone());
        let version = wanted.version.clone();
        let reason = match new.strategy {
            None => {
                let spec = StageSpec { version: version.clone(), ..wanted.spec.clone() };
                resolved[found.at] = ResolvedStage { spec, ..wanted };
                pin(&mut stages, stage, &version);
                format!("rollout of {version} on '{stage}'")
            }
            Some(strategy) => {
                let is_same = |now: &&Rollout| now.digest == wanted.digest && now.strategy == strategy;
                let since = found.own().rollout.as_ref().filter(is_same).map(|now| now.started_at);
                let started_at = since.unwrap_or_else(|| self.machine.clock.now());
                let (percent, limits) = (new.percent, new.limits.clone());
                let rollout =
                    Rollout { version: version.clone(), digest: wanted.digest, strategy, percent, limits, started_at };
                resolved[found.at].rollout = Some(rollout);
                let how = if strategy == Strategy::Canary { "canary" } else { "shadow" };
                format!("{how} of {version} on '{stage}', {percent} %")
            }
        };
        let (steps, faults) = self.build(scope, &resolved, Some(&found.before)).await;
        if let Some(error) = refusal(faults, |_| "/version".to_owned()) {
            return Err(error);
        }
        let new = NewRevision { scope, stages, resolved, reason, expected };
        self.publish(new, steps, actor).await
    }

    /// Lets the stage run the version that was tried on it.
    ///
    /// # Errors
    /// The catalog's: nothing is tried there, it was changed meanwhile.
    pub async fn promote(
        &self,
        (scope, stage): (Scope, &str),
        expected: Option<u64>,
        actor: &Actor,
    ) -> Result<PipelineRevision, PipelineError> {
        let end = || self.end_rollout((scope, stage), (End::Promoted, String::new()), expected, actor);
        self.in_turn(expected.is_some(), end).await
    }

    /// Ends the trial; the stage runs what it runs.
    ///
    /// # Errors
    /// As for [`Pipelines::promote`].
    pub async fn abort(
        &self,
        (scope, stage): (Scope, &str),
        expected: Option<u64>,
        actor: &Actor,
    ) -> Result<PipelineRevision, PipelineError> {
        let end = || self.end_rollout((scope, stage), (End::Aborted, String::new()), expected, actor);
        self.in_turn(expected.is_some(), end).await
    }

    /// What is tried on a stage, or what was tried on it last.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] without such a stage, or where nothing was tried since the broker started.
    pub fn rollout(&self, scope: Scope, stage: &str) -> Result<RolloutView, PipelineError> {
        let found = self.find(scope, stage)?;
        let now = self.machine.clock.now();
        if let Some(candidate) = &found.before.steps[found.at].candidate {
            return Ok(view(scope, found.own(), candidate, now));
        }
        let last = self.rollouts.last_of(scope, stage);
        last.ok_or_else(|| CatalogError::NotFound(format!("no version is tried on the stage '{stage}'")).into())
    }

    /// Tells of each version that is taken back from now on.
    pub fn tell_of_rollbacks(&self, told: impl Fn(&RolloutView) + Send + Sync + 'static) {
        // Told once, by the broker that owns this.
        let _ = self.rollouts.told.set(Box::new(told));
    }

    /// What is tried on a stage now.
    pub(super) fn tried_on(&self, scope: Scope, stage: &str) -> Option<Arc<Candidate>> {
        let found = self.find(scope, stage).ok()?;
        found.before.steps[found.at].candidate.clone()
    }

    /// Whoever calls it has the turn to change.
    pub(super) async fn end_rollout(
        &self,
        (scope, stage): (Scope, &str),
        (end, why): (End, String),
        expected: Option<u64>,
        actor: &Actor,
    ) -> Result<PipelineRevision, PipelineError> {
        let found = self.find(scope, stage)?;
        let missing = || CatalogError::NotFound(format!("no version is tried on the stage '{stage}'"));
        let tried = found.own().candidate().ok_or_else(missing)?;
        let (mut stages, mut resolved) = (found.record.stages.clone(), found.record.resolved.clone());
        let version = tried.version.clone();
        let reason = match end {
            End::Promoted => {
                pin(&mut stages, stage, &version);
                resolved[found.at] = tried;
                format!("{version} promoted on '{stage}'")
            }
            End::RolledBack => {
                resolved[found.at].rollout = None;
                format!("{version} rolled back on '{stage}': {why}")
            }
            End::Aborted | End::Replaced => {
                resolved[found.at].rollout = None;
                format!("rollout of {version} on '{stage}' aborted")
            }
        };
        let (steps, faults) = self.build(scope, &resolved, Some(&found.before)).await;
        if let Some(error) = refusal(faults, |_| String::new()) {
            return Err(error);
        }
        let why = if why.is_empty() { reason.clone() } else { why };
        let new = NewRevision { scope, stages, resolved, reason, expected };
        self.publish_ending(new, steps, actor, (end, why)).await
    }

    /// What `before` tried and `after` does not has ended.
    pub(in super::super) fn end_all_but(&self, after: &PipelineRevision, before: &Revision, (end, why): (End, &str)) {
        let Some(record) = &before.record else { return };
        for (resolved, step) in record.resolved.iter().zip(&before.steps) {
            let Some(candidate) = &step.candidate else { continue };
            let goes_on = |now: &ResolvedStage| {
                let same = |rollout: &Rollout| rollout.started_at == candidate.rollout.started_at;
                now.spec.name == resolved.spec.name && now.rollout.as_ref().is_some_and(same)
            };
            if !after.resolved.iter().any(goes_on) {
                let now = self.machine.clock.now();
                self.rollouts.end(view(after.scope, resolved, candidate, now), end, why.to_owned(), now);
            }
        }
    }

    fn find(&self, scope: Scope, stage: &str) -> Result<Found, PipelineError> {
        let missing = || CatalogError::NotFound(format!("there is no stage '{stage}' in this pipeline"));
        let before = self.lane(scope).map(|lane| lane.current()).ok_or_else(missing)?;
        let record = before.record.clone().ok_or_else(missing)?;
        let is_it = |resolved: &ResolvedStage| !resolved.implicit && resolved.spec.name == stage;
        let at = record.resolved.iter().position(is_it).ok_or_else(missing)?;
        Ok(Found { before, record, at })
    }
}

impl Found {
    fn own(&self) -> &ResolvedStage {
        &self.record.resolved[self.at]
    }
}

/// The stage as its owner sets it, on this version.
fn pin(stages: &mut [StageSpec], stage: &str, version: &str) {
    for spec in stages.iter_mut().filter(|spec| spec.name == stage) {
        version.clone_into(&mut spec.version);
    }
}
