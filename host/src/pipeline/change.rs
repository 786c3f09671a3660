//! How pipelines change. Invariant: everything is tried on this broker before the catalog learns of it; the catalog is
//! written before a new revision runs; changes happen one at a time. Never touches a batch under way.

use std::sync::Arc;

use crate::catalog::model::{PipelineRevision, ResolvedStage, Scope, StageSpec};
use crate::catalog::{Actor, CatalogError, NewRevision};

use super::builtin;
use super::component::{ComponentError, Loaded};
use super::instance::StartError;
use super::limits::STAGES_MAX;
use super::revision::Revision;
use super::stage::Stage;
use super::{Lane, PipelineError, Pipelines, validate};

/// What is said while the pool has no room.
pub(super) const POOL_FULL: &str = "all places for plugin instances are taken";

/// Why a stage can't be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotBuilt {
    /// The plugin's fault, or its config's: it stays so until one of them is another.
    #[error("{0}")]
    Refused(String),
    /// Nobody's fault: later it may go.
    #[error("{0}")]
    NotNow(String),
}

impl Pipelines {
    /// The latest revision of a scope, as the catalog has it; none if there never was one.
    #[must_use]
    pub fn current(&self, scope: Scope) -> Option<PipelineRevision> {
        self.lane(scope).and_then(|lane| lane.current().record.clone())
    }

    /// Sets the stages of `scope`: a new revision. `expected` is the revision that the caller has seen, if it insists.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] lists all faults by JSON Pointer into `{"stages": […]}`; the catalog's errors.
    pub async fn set(
        &self,
        scope: Scope,
        stages: Vec<StageSpec>,
        expected: Option<u64>,
        actor: &Actor,
    ) -> Result<PipelineRevision, PipelineError> {
        let _in_use = self.preload(&stages, false).await;
        let _one_at_a_time = self.changing.lock().await;
        let before = self.lane(scope).map(|lane| lane.current());
        let (resolved, built) = self.tried(scope, &stages, before.as_deref()).await?;
        let new = NewRevision { scope, stages, resolved, reason: "set".to_owned(), expected };
        self.publish(new, built, actor).await
    }

    /// All that is wrong with `stages`, by JSON Pointer into `{"stages": […]}`. Changes nothing.
    pub async fn faults(&self, scope: Scope, stages: &[StageSpec]) -> Vec<(String, String)> {
        match self.tried(scope, stages, None).await {
            Err(PipelineError::Invalid(faults)) => faults,
            _ => Vec::new(),
        }
    }

    /// What `stages` come to behind those that Sluice adds itself, ready to run.
    async fn tried(
        &self,
        scope: Scope,
        stages: &[StageSpec],
        before: Option<&Revision>,
    ) -> Result<(Vec<ResolvedStage>, Vec<Arc<Stage>>), PipelineError> {
        let mut faults = validate::faults(scope, stages);
        let mut resolved = before.and_then(|before| before.record.as_ref()).map(implicit_of).unwrap_or_default();
        let mut pointers = vec![String::new(); resolved.len()];
        for (at, spec) in stages.iter().enumerate().take(STAGES_MAX) {
            let pointer = |field: &str| format!("/stages/{at}/{field}");
            let spec = self.with_schema(spec).await;
            match spec.and_then(|spec| self.resolve(&spec, false)) {
                // One that is out of bounds is not made.
                Ok(_) if faults.iter().any(|(place, _)| place.starts_with(&pointer(""))) => {}
                Ok(stage) => {
                    resolved.push(stage);
                    pointers.push(pointer("config"));
                }
                // What is no name needs not be missed as well.
                Err((field, _)) if faults.iter().any(|(place, _)| *place == pointer(field)) => {}
                Err((field, why)) => faults.push((pointer(field), why)),
            }
        }
        let (built, unbuilt) = self.build(&resolved, before).await;
        let mut not_now = None;
        match refusal(unbuilt, |at| pointers[at].clone()) {
            Some(PipelineError::Invalid(refused)) => faults.extend(refused),
            other => not_now = other,
        }
        if !faults.is_empty() {
            return Err(PipelineError::Invalid(faults));
        }
        not_now.map_or(Ok((resolved, built)), Err)
    }

    /// Sets the stages that Sluice adds itself; they run before the owner's. A new revision only if it differs.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] if one of them can't be made; the catalog's errors.
    pub async fn set_implicit(
        &self,
        scope: Scope,
        stages: Vec<StageSpec>,
        reason: &str,
        actor: &Actor,
    ) -> Result<(), PipelineError> {
        if stages.is_empty() && self.lane(scope).is_none() {
            return Ok(()); // Most topics: they need not wait for anyone's change.
        }
        let _in_use = self.preload(&stages, true).await;
        let _one_at_a_time = self.changing.lock().await;
        let before = self.lane(scope).map(|lane| lane.current());
        let record = before.as_ref().and_then(|before| before.record.clone());
        let mut resolved = Vec::with_capacity(stages.len());
        for spec in &stages {
            let stage = self.resolve(spec, true);
            resolved.push(stage.map_err(|(_, why)| PipelineError::Invalid(vec![(String::new(), why)]))?);
        }
        let own = record.as_ref().map(|record| record.stages.clone()).unwrap_or_default();
        resolved
            .extend(record.iter().flat_map(|record| record.resolved.iter().filter(|stage| !stage.implicit).cloned()));
        if record.as_ref().map_or(resolved.is_empty(), |record| record.resolved == resolved) {
            return Ok(());
        }
        let (built, faults) = self.build(&resolved, before.as_deref()).await;
        if let Some(error) = refusal(faults, |_| String::new()) {
            return Err(error);
        }
        let new = NewRevision { scope, stages: own, resolved, reason: reason.to_owned(), expected: None };
        self.publish(new, built, actor).await?;
        Ok(())
    }

    /// Makes the plugins of `stages` ready before the change takes its turn: compiling may take seconds, which nobody
    /// else's change should wait for. What can't be made ready is told by the change itself.
    async fn preload(&self, stages: &[StageSpec], implicit: bool) -> Vec<Arc<Loaded>> {
        let mut loaded = Vec::with_capacity(stages.len());
        for stage in stages.iter().take(STAGES_MAX) {
            if let Ok(resolved) = self.resolve(stage, implicit) {
                loaded.extend(self.loaded(&resolved.digest).await);
            }
        }
        loaded
    }

    /// Pins a stage's plugin. A stage of Sluice's own runs what came with this binary, whatever was uploaded since.
    pub(super) fn resolve(&self, spec: &StageSpec, implicit: bool) -> Result<ResolvedStage, (&'static str, String)> {
        if !self.registry.is_known(&spec.plugin) {
            return Err(("plugin", format!("there is no plugin '{}'", spec.plugin)));
        }
        let own = if implicit { builtin::digest_of(&spec.plugin) } else { None };
        let found = own
            .and_then(|digest| self.registry.with_digest(&spec.plugin, digest))
            .or_else(|| self.registry.resolve(&spec.plugin, &spec.version));
        let missing = || ("version", format!("there is no version '{}' of the plugin '{}'", spec.version, spec.plugin));
        let found = found.ok_or_else(missing)?;
        Ok(ResolvedStage { spec: spec.clone(), version: found.version, digest: found.digest, implicit })
    }

    /// Stages ready to run, each with a configured instance; or what is wrong, by the stage's place. Stages that are as
    /// before are taken over with their instances and breakers.
    pub(super) async fn build(
        &self,
        resolved: &[ResolvedStage],
        before: Option<&Revision>,
    ) -> (Vec<Arc<Stage>>, Vec<(usize, NotBuilt)>) {
        self.build_anew(resolved, before, |_| true).await
    }

    /// As [`Pipelines::build`], but of those before only what `stays`.
    pub(super) async fn build_anew(
        &self,
        resolved: &[ResolvedStage],
        before: Option<&Revision>,
        stays: impl Fn(&Stage) -> bool,
    ) -> (Vec<Arc<Stage>>, Vec<(usize, NotBuilt)>) {
        let (mut stages, mut faults) = (Vec::with_capacity(resolved.len()), Vec::new());
        for (at, resolved) in resolved.iter().enumerate() {
            let same = |stage: &&Arc<Stage>| stage.resolved == *resolved && stays(stage);
            let same = before.and_then(|before| before.stages.iter().find(same));
            if let Some(same) = same {
                stages.push(Arc::clone(same));
                continue;
            }
            match self.build_one(resolved).await {
                Ok(stage) => stages.push(stage),
                Err(why) => faults.push((at, why)),
            }
        }
        (stages, faults)
    }

    async fn build_one(&self, resolved: &ResolvedStage) -> Result<Arc<Stage>, NotBuilt> {
        let loaded = self.loaded(&resolved.digest).await?;
        let stage = Stage::new(resolved.clone(), Ok(loaded), self.registry.log(&resolved.spec.plugin), &self.machine);
        let refused = |why| Err(NotBuilt::Refused(why));
        match start(Arc::clone(&stage)).await.map_err(|error| NotBuilt::NotNow(error.to_string()))? {
            Ok(()) => Ok(stage),
            Err(StartError::Config(why)) => refused(format!("the plugin refuses the config: {why}")),
            Err(StartError::Failed(failure)) => {
                refused(format!("the plugin fails with this config: {}", failure.detail))
            }
            Err(StartError::PoolFull) => Err(NotBuilt::NotNow(POOL_FULL.to_owned())),
            Err(StartError::System(why)) => Err(NotBuilt::NotNow(why)),
        }
    }

    async fn loaded(&self, digest: &str) -> Result<Arc<Loaded>, NotBuilt> {
        if let Some(loaded) = self.components.in_use(digest) {
            return Ok(loaded);
        }
        let bytes = self.catalog.plugin_bytes(digest).await.map_err(|error| match error {
            CatalogError::Unavailable(_) => NotBuilt::NotNow(error.to_string()),
            error => NotBuilt::Refused(error.to_string()),
        })?;
        let missing = || NotBuilt::Refused(format!("the catalog has no component with the digest {digest}"));
        self.components.load(digest, bytes.ok_or_else(missing)?.into()).await.map_err(|error| match error {
            ComponentError::Unusable(why) => NotBuilt::Refused(why),
            ComponentError::Unavailable(_) => NotBuilt::NotNow(error.to_string()),
        })
    }

    /// Writes the revision, then lets new batches begin on it.
    pub(super) async fn publish(
        &self,
        new: NewRevision,
        stages: Vec<Arc<Stage>>,
        actor: &Actor,
    ) -> Result<PipelineRevision, PipelineError> {
        let record = self.catalog.add_revision(new, actor).await?;
        self.install(record.clone(), stages);
        Ok(record)
    }

    fn install(&self, record: PipelineRevision, stages: Vec<Arc<Stage>>) {
        let scope = record.scope;
        let machine = Arc::clone(&self.machine);
        tracing::info!(scope = shown(scope), revision = record.revision, reason = record.reason, "a pipeline changed");
        let revision = Revision { number: record.revision, record: Some(record), stages, machine };
        let mut lanes = self.lanes.write();
        match lanes.get(&scope) {
            Some(lane) => lane.current.store(Arc::new(revision)),
            None => {
                lanes.insert(scope, Lane::new(scope, revision));
            }
        }
    }

    /// Makes the current revisions run again. Where `latest` means another version by now (a new binary's built-ins, a
    /// crash between a version and its revisions), a new revision follows. A plugin that can't be loaded fails on its
    /// own messages, not on the start of the broker.
    pub(super) async fn restore(&self) -> Result<(), PipelineError> {
        let _one_at_a_time = self.changing.lock().await;
        for record in self.catalog.pipelines().await? {
            if let Some(resolved) = self.rebound(&record) {
                let (built, faults) = self.build(&resolved, None).await;
                match refusal(faults, |at| resolved[at].spec.name.clone()) {
                    None => {
                        self.publish(Pipelines::following(&record, resolved), built, &Actor::system()).await?;
                        continue;
                    }
                    Some(error) => self.lags(record.scope, error.to_string()),
                }
            }
            let mut stages = Vec::with_capacity(record.resolved.len());
            for resolved in &record.resolved {
                let loaded = self.loaded(&resolved.digest).await.map_err(|why| {
                    tracing::error!(scope = shown(record.scope), stage = resolved.spec.name, %why, "a stage cannot run");
                    Arc::from(format!("the plugin can't be loaded: {why}"))
                });
                let log = self.registry.log(&resolved.spec.plugin);
                stages.push(Stage::new(resolved.clone(), loaded, log, &self.machine));
            }
            self.install(record, stages);
        }
        Ok(())
    }
}

fn implicit_of(record: &PipelineRevision) -> Vec<ResolvedStage> {
    record.resolved.iter().filter(|stage| stage.implicit).cloned().collect()
}

/// What stages that could not be made come to: those refused by their place, else that it may go later.
pub(super) fn refusal(faults: Vec<(usize, NotBuilt)>, place: impl Fn(usize) -> String) -> Option<PipelineError> {
    let not_now = faults.first().map(|(_, fault)| PipelineError::NotNow(fault.to_string()));
    let refused = faults.into_iter().filter_map(|(at, fault)| match fault {
        NotBuilt::Refused(why) => Some((place(at), why)),
        NotBuilt::NotNow(_) => None,
    });
    let refused: Vec<_> = refused.collect();
    if refused.is_empty() { not_now } else { Some(PipelineError::Invalid(refused)) }
}

/// Makes the stage's first instance, away from the reactor, and leaves it there for the first batch.
pub(super) async fn start(stage: Arc<Stage>) -> Result<Result<(), StartError>, PipelineError> {
    let started = tokio::task::spawn_blocking(move || stage.start().map(|instance| stage.put_back(instance)));
    started.await.map_err(|error| PipelineError::Internal(error.to_string()))
}

/// A scope as logs and errors name it.
pub(super) fn shown(scope: Scope) -> String {
    match scope {
        Scope::Topic(topic) => format!("topic/{}", topic.0),
        Scope::Subscription(_, id) => format!("subscription/{id}"),
    }
}
