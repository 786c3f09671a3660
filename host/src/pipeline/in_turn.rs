//! Changes of pipelines, one at a time. Invariant: a change follows from what the catalog held when it was computed; where other
//! brokers change the same pipelines, one that another has come before begins anew. Never decides what a change is.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::change::{refusal, shown};
use super::rollout::End;
use super::stage::Stage;
use super::{PipelineError, Pipelines};
use crate::catalog::model::{PipelineRevision, ResolvedStage, Scope};
use crate::catalog::{CatalogError, NewRevision};

/// How often a change begins anew: each time another broker has changed the same pipeline within the same moment.
const TRIES_MAX: usize = 8;

impl Pipelines {
    /// Makes a change, once it is its turn and what other brokers have changed is known here. If the caller `insists` on a
    /// revision that it has seen, it is told when another one is there.
    ///
    /// # Errors
    /// The change's; the catalog's.
    pub(super) async fn in_turn<T, F>(&self, insists: bool, change: impl Fn() -> F + Send) -> Result<T, PipelineError>
    where
        F: Future<Output = Result<T, PipelineError>> + Send,
    {
        let _one_at_a_time = self.changing.lock().await;
        for _ in 0..TRIES_MAX {
            self.know_others().await?;
            match change().await {
                Err(PipelineError::Catalog(CatalogError::PreconditionFailed { .. })) if !insists => {}
                done => return done,
            }
        }
        let why = "other brokers change the same pipeline, or what they have set cannot be made here for the moment";
        Err(PipelineError::NotNow(why.to_owned()))
    }

    /// Takes over what other brokers have changed: which versions there are, and the revisions that run. A stage that can't be
    /// made here fails on its own messages: that it can be made was tried where it was set.
    ///
    /// # Errors
    /// When the catalog fails.
    pub async fn take_over(&self) -> Result<(), PipelineError> {
        let _one_at_a_time = self.changing.lock().await;
        self.take_over_in_turn().await
    }

    /// The same, for who has the turn. What can't be made for the moment refuses the changes of its own pipeline alone.
    pub(super) async fn know_others(&self) -> Result<(), PipelineError> {
        match self.take_over_in_turn().await {
            Err(PipelineError::NotNow(_)) => Ok(()),
            done => done,
        }
    }

    async fn take_over_in_turn(&self) -> Result<(), PipelineError> {
        if self.options.fleet.is_none() {
            return Ok(());
        }
        // Asked before the rest is read: what changes meanwhile is another version.
        let version = self.catalog.version().await?;
        if version == self.taken_over.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut not_now = None;
        for gone in self.registry.take_over(self.catalog.plugin_versions().await?) {
            self.discard_unless_known(&gone).await;
        }
        for record in self.catalog.pipelines().await? {
            let before = self.lane(record.scope).map(|lane| lane.current());
            if before.as_ref().is_some_and(|before| before.number >= record.revision) {
                continue;
            }
            // A schema that a stage has asked for may be another one now, though nothing of the stage is.
            let stays = |stage: &Stage| !stage.asks_for_schemas();
            let (built, faults) = self.build_anew(&record.resolved, before.as_deref(), stays).await;
            let steps = match refusal(faults, |at| record.resolved[at].spec.name.clone()) {
                None => built,
                // The one of before stays until it goes.
                Some(error @ PipelineError::NotNow(_)) => {
                    not_now = Some(error);
                    continue;
                }
                Some(error) => {
                    tracing::error!(scope = shown(record.scope), %error, "another broker's revision does not run here");
                    self.restored_steps(&record).await
                }
            };
            self.install(record.clone(), steps);
            if let Some(before) = before {
                self.end_all_but(&record, &before, (End::Replaced, &record.reason));
            }
        }
        if let Some(error) = not_now {
            return Err(error);
        }
        self.taken_over.store(version, Ordering::Release);
        Ok(())
    }

    /// Pipelines that do not run the latest versions though nobody is about to bring them there, as who was has crashed: those that
    /// were behind at the last call, too. It is tried from now on.
    pub fn look_for_left_behind(&self) {
        if self.options.fleet.is_none() {
            return;
        }
        let lanes: Vec<_> = self.lanes.read().values().cloned().collect();
        let is_behind = |record: &PipelineRevision| self.rebound(record).is_some();
        let behind: HashSet<Scope> = lanes
            .iter()
            .filter(|lane| lane.current().record.as_ref().is_some_and(is_behind))
            .map(|lane| lane.scope)
            .collect();
        let before = std::mem::replace(&mut *self.behind.lock(), behind.clone());
        for scope in behind.intersection(&before) {
            self.lags(*scope, "a version was accepted and the pipeline was not brought onto it".to_owned());
        }
    }

    /// A revision that was computed here follows the one that runs here, whatever others have written since; it is written
    /// once all brokers have its plugins.
    pub(super) async fn among_others(&self, new: &mut NewRevision) -> Result<(), PipelineError> {
        let Some(fleet) = &self.options.fleet else { return Ok(()) };
        let before = self.current(new.scope);
        let number = before.as_ref().map_or(0, |record| record.revision);
        match new.expected {
            None => new.expected = Some(number),
            Some(expected) if before.is_some() && expected != number => {
                return Err(CatalogError::PreconditionFailed { current: number }.into());
            }
            Some(_) => {}
        }
        let digests = self.not_run_yet(new.scope, new.resolved.iter().flat_map(ResolvedStage::digests));
        if digests.is_empty() { Ok(()) } else { Ok(fleet.prepare_in_turn(&digests).await?) }
    }

    /// Those of these components that a pipeline does not run already.
    pub(super) fn not_run_yet<'a>(&self, scope: Scope, digests: impl Iterator<Item = &'a String>) -> Vec<String> {
        let before = self.current(scope).map(|record| record.resolved).unwrap_or_default();
        let runs = |digest: &String| before.iter().flat_map(ResolvedStage::digests).any(|known| known == digest);
        digests.filter(|digest| !runs(digest)).cloned().collect()
    }

    /// Has the other brokers make components ready before the change takes its turn, as it takes them seconds. What comes of
    /// it is told by the change.
    pub(super) async fn prepare_others(&self, digests: &[String]) {
        if let Some(fleet) = &self.options.fleet
            && !digests.is_empty()
            && let Err(error) = fleet.prepare(digests).await
        {
            tracing::debug!(%error, "other brokers could not be asked to make components ready");
        }
    }

    /// Makes components ready, for a revision that another broker is about to set, and keeps those alone; whether all are.
    pub async fn make_ready(&self, digests: impl Iterator<Item = &str>) -> bool {
        let (mut ready, mut wanted) = (Vec::new(), 0);
        for digest in digests {
            wanted += 1;
            match self.loaded_of_others(digest).await {
                Ok(loaded) => ready.push(loaded),
                Err(error) => {
                    tracing::error!(digest, %error, "a component that other brokers are about to run is not ready here")
                }
            }
        }
        let all = ready.len() == wanted;
        *self.wanted.lock() = ready;
        all
    }
}
