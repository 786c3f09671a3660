//! How pipelines change. Invariant: everything is tried on this broker before the catalog learns of it; the catalog is
//! written before a new revision runs; changes happen one at a time. Never touches a batch under way.

use std::sync::Arc;

use crate::catalog::model::{PipelineRevision, ResolvedStage, Scope, StageSpec};
use crate::catalog::{Actor, CatalogError, NewRevision};

use super::builtin;
use super::component::{ComponentError, Loaded};
use super::follow::REASON;
use super::instance::StartError;
use super::limits::STAGES_MAX;
use super::plugin_log::PluginLog;
use super::revision::Revision;
use super::rollout::{Candidate, End, Step};
use super::secrets::{self, Mask};
use super::stage::{Machine, Stage};
use super::{Lane, PipelineError, Pipelines, validate};

/// What is said while the pool has no room.
pub(super) const POOL_FULL: &str = "all places for plugin instances are taken";

/// Why a stage can't be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotBuilt {
    /// The plugin's fault, or its config's: it stays so until one of them is another.
    #[error("{0}")]
    Refused(String),
    /// Parts of the config can't be used: JSON Pointers into it, and words.
    #[error("the config is not valid: {}", .0.iter().map(|(at, why)| format!("{at}: {why}")).collect::<Vec<_>>().join("; "))]
    Config(Vec<(String, String)>),
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
        self.set_because(scope, stages, expected, ("set", actor)).await
    }

    /// As [`Pipelines::set`], for another reason than that somebody wrote the stages.
    ///
    /// # Errors
    /// As [`Pipelines::set`].
    pub async fn set_because(
        &self,
        scope: Scope,
        stages: Vec<StageSpec>,
        expected: Option<u64>,
        (reason, actor): (&str, &Actor),
    ) -> Result<PipelineRevision, PipelineError> {
        let _in_use = self.preload(scope, &stages, false).await;
        let stages = &stages;
        self.in_turn(expected.is_some(), || async move {
            let before = self.lane(scope).map(|lane| lane.current());
            let (resolved, built) = self.tried(scope, stages, before.as_deref()).await?;
            let new = NewRevision { scope, stages: stages.clone(), resolved, reason: reason.to_owned(), expected };
            self.publish(new, built, actor).await
        })
        .await
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
    ) -> Result<(Vec<ResolvedStage>, Vec<Step>), PipelineError> {
        let mut faults = validate::faults(scope, stages);
        let record = before.and_then(|before| before.record.as_ref());
        let mut resolved = record.map(implicit_of).unwrap_or_default();
        let mut pointers = vec![String::new(); resolved.len()];
        for (at, spec) in stages.iter().enumerate().take(STAGES_MAX) {
            let pointer = |field: &str| format!("/stages/{at}/{field}");
            let spec = self.with_schema(spec).await;
            match spec.and_then(|spec| self.resolve(&spec, false)) {
                // One that is out of bounds is not made.
                Ok(_) if faults.iter().any(|(place, _)| place.starts_with(&pointer(""))) => {}
                Ok(stage) => {
                    // What is tried on a stage that stays as it was is tried on.
                    let same = record.and_then(|record| record.resolved.iter().find(|was| was.stable() == stage));
                    resolved.push(same.cloned().unwrap_or(stage));
                    pointers.push(pointer("config"));
                }
                // What is no name needs not be missed as well.
                Err((field, _)) if faults.iter().any(|(place, _)| *place == pointer(field)) => {}
                Err((field, why)) => faults.push((pointer(field), why)),
            }
        }
        let (built, unbuilt) = self.build(scope, &resolved, before).await;
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
        let _in_use = self.preload(scope, &stages, true).await;
        let stages = &stages;
        self.in_turn(false, || async move {
            let before = self.lane(scope).map(|lane| lane.current());
            let record = before.as_ref().and_then(|before| before.record.clone());
            let mut resolved = Vec::with_capacity(stages.len());
            for spec in stages {
                let stage = self.resolve(spec, true);
                resolved.push(stage.map_err(|(_, why)| PipelineError::Invalid(vec![(String::new(), why)]))?);
            }
            let own = record.as_ref().map(|record| record.stages.clone()).unwrap_or_default();
            let kept = record.iter().flat_map(|record| record.resolved.iter().filter(|stage| !stage.implicit));
            resolved.extend(kept.cloned());
            if record.as_ref().map_or(resolved.is_empty(), |record| record.resolved == resolved) {
                return Ok(());
            }
            let (built, faults) = self.build(scope, &resolved, before.as_deref()).await;
            if let Some(error) = refusal(faults, |_| String::new()) {
                return Err(error);
            }
            let new = NewRevision { scope, stages: own, resolved, reason: reason.to_owned(), expected: None };
            self.publish(new, built, actor).await.map(drop)
        })
        .await
    }

    /// Makes the plugins of `stages` ready before the change takes its turn, here and on the other brokers: compiling may take
    /// seconds, which nobody else's change should wait for. What can't be made ready is told by the change itself.
    pub(super) async fn preload(&self, scope: Scope, stages: &[StageSpec], implicit: bool) -> Vec<Arc<Loaded>> {
        let (mut loaded, mut ready) = (Vec::with_capacity(stages.len()), Vec::new());
        for stage in stages.iter().take(STAGES_MAX) {
            let Ok(resolved) = self.resolve(stage, implicit) else { continue };
            if let Ok(component) = self.loaded(&resolved.digest).await {
                loaded.push(component);
                ready.push(resolved.digest);
            }
        }
        self.prepare_others(&self.not_run_yet(scope, ready.iter())).await;
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
        let (version, digest) = (found.version, found.digest);
        Ok(ResolvedStage { spec: spec.clone(), version, digest, implicit, rollout: None })
    }

    /// Stages ready to run, each with a configured instance; or what is wrong, by the stage's place. Stages that are as
    /// before are taken over with their instances and breakers.
    pub(super) async fn build(
        &self,
        scope: Scope,
        resolved: &[ResolvedStage],
        before: Option<&Revision>,
    ) -> (Vec<Step>, Vec<(usize, NotBuilt)>) {
        let (steps, mut faults) = self.build_anew(resolved, before, |_| true).await;
        if let Some(why) = self.keeps_none(scope) {
            for step in &steps {
                let stages =
                    std::iter::once(&step.stage).chain(step.candidate.as_ref().map(|candidate| &candidate.stage));
                if stages.into_iter().any(|stage| stage.keeps_values)
                    && let Some(at) = resolved.iter().position(|resolved| *resolved.spec.name == *step.stage.name)
                {
                    faults.push((at, NotBuilt::Refused(why.to_owned())));
                }
            }
        }
        (steps, faults)
    }

    /// Why a scope's stages keep no values, if they can't.
    fn keeps_none(&self, scope: Scope) -> Option<&'static str> {
        let (Scope::Topic(topic) | Scope::Subscription(topic, _)) = scope;
        let store = self.machine.store.get()?;
        (!store.capabilities_of(topic).kv).then_some(
            "the plugin keeps values, and the topic is in Redis, which keeps none: use a topic with the default storage, or a \
             plugin that imports no sluice:plugin/kv",
        )
    }

    /// As [`Pipelines::build`], but of those before only what `stays`.
    pub(super) async fn build_anew(
        &self,
        resolved: &[ResolvedStage],
        before: Option<&Revision>,
        stays: impl Fn(&Stage) -> bool,
    ) -> (Vec<Step>, Vec<(usize, NotBuilt)>) {
        let (mut steps, mut faults) = (Vec::with_capacity(resolved.len()), Vec::new());
        for (at, resolved) in resolved.iter().enumerate() {
            match self.build_step(resolved, before, &stays).await {
                Ok(step) => steps.push(step),
                Err(why) => faults.push((at, why)),
            }
        }
        (steps, faults)
    }

    async fn build_step(
        &self,
        resolved: &ResolvedStage,
        before: Option<&Revision>,
        stays: &impl Fn(&Stage) -> bool,
    ) -> Result<Step, NotBuilt> {
        let stage = self.taken_over_or_built(resolved.stable(), before, stays).await?;
        let Some(tried) = resolved.candidate() else { return Ok(Step { stage, candidate: None }) };
        let tried = self.taken_over_or_built(tried, before, stays).await?;
        Ok(self.step(resolved, stage, Some(tried), before))
    }

    /// A version that was tried is taken over, too, once it is the stage's own.
    async fn taken_over_or_built(
        &self,
        resolved: ResolvedStage,
        before: Option<&Revision>,
        stays: &impl Fn(&Stage) -> bool,
    ) -> Result<Arc<Stage>, NotBuilt> {
        let steps = before.map_or(&[][..], |before| &before.steps);
        let tried = steps.iter().filter_map(|step| step.candidate.as_ref()).map(|candidate| &candidate.stage);
        let same =
            steps.iter().map(|step| &step.stage).chain(tried).find(|stage| stage.resolved == resolved && stays(stage));
        match same {
            Some(same) => Ok(Arc::clone(same)),
            None => self.build_one(&resolved).await,
        }
    }

    fn step(
        &self,
        resolved: &ResolvedStage,
        stage: Arc<Stage>,
        tried: Option<Arc<Stage>>,
        before: Option<&Revision>,
    ) -> Step {
        let candidate = tried.zip(resolved.rollout.clone()).map(|(tried, rollout)| {
            let before = before.and_then(|before| before.steps.iter().find(|step| step.stage.name == stage.name));
            let before = before.and_then(|step| step.candidate.as_deref());
            Candidate::new(tried, rollout, (before, &self.rollouts.metrics), &self.machine)
        });
        Step { stage, candidate }
    }

    async fn build_one(&self, resolved: &ResolvedStage) -> Result<Arc<Stage>, NotBuilt> {
        self.build_with(resolved, (self.registry.log(&resolved.spec.plugin), &self.machine)).await
    }

    pub(super) async fn build_with(
        &self,
        resolved: &ResolvedStage,
        (log, machine): (Arc<PluginLog>, &Arc<Machine>),
    ) -> Result<Arc<Stage>, NotBuilt> {
        let loaded = self.loaded(&resolved.digest).await?;
        self.check_config(resolved, Arc::clone(&loaded)).await?;
        let stage = Stage::new(resolved.clone(), Ok(loaded), log, machine);
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

    /// Whether the secrets that a stage's config names are there, and whether the config with them is as the plugin's schema
    /// wants it: before the plugin sees it.
    async fn check_config(&self, resolved: &ResolvedStage, loaded: Arc<Loaded>) -> Result<(), NotBuilt> {
        let names_secrets = secrets::may_name(resolved);
        if loaded.config_schema.is_none() && !names_secrets {
            return Ok(());
        }
        let (config, secrets) = (resolved.spec.config.clone(), self.machine.secrets.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let (config, mask) = if names_secrets { secrets.resolve(&config)? } else { (config, Mask::default()) };
            let faults = loaded.config_schema.as_ref().map(|schema| schema.faults(&config)).unwrap_or_default();
            if faults.is_empty() {
                return Ok(());
            }
            Err(faults.into_iter().map(|(at, why)| (at, mask.hide(why))).collect())
        });
        let checked = checked.await.map_err(|error| NotBuilt::NotNow(error.to_string()))?;
        checked.map_err(NotBuilt::Config)
    }

    pub(super) async fn loaded(&self, digest: &str) -> Result<Arc<Loaded>, NotBuilt> {
        if let Some(loaded) = self.components.in_use(digest) {
            return Ok(loaded);
        }
        let loaded = self.loaded_of_others(digest).await;
        // Deleted while it was made ready: what the deletion has removed was made again.
        self.discard_unless_known(digest).await;
        loaded
    }

    /// The same of a component that is about to be known: by another broker, so far.
    pub(super) async fn loaded_of_others(&self, digest: &str) -> Result<Arc<Loaded>, NotBuilt> {
        if let Some(loaded) = self.components.in_use(digest) {
            return Ok(loaded);
        }
        let bytes = self.catalog.plugin_bytes(digest).await.map_err(|error| match error {
            CatalogError::Unavailable(_) => NotBuilt::NotNow(error.to_string()),
            error => NotBuilt::Refused(error.to_string()),
        })?;
        let missing = || NotBuilt::Refused(format!("the catalog has no component with the digest {digest}"));
        let loaded = self.components.load(digest, bytes.ok_or_else(missing)?.into()).await;
        loaded.map_err(|error| match error {
            ComponentError::Unusable(why) => NotBuilt::Refused(why),
            ComponentError::Unavailable(_) => NotBuilt::NotNow(error.to_string()),
        })
    }

    /// Writes the revision, then lets new batches begin on it.
    pub(super) async fn publish(
        &self,
        new: NewRevision,
        steps: Vec<Step>,
        actor: &Actor,
    ) -> Result<PipelineRevision, PipelineError> {
        let why = new.reason.clone();
        self.publish_ending(new, steps, actor, (End::Replaced, why)).await
    }

    /// The same, and says how the trial ended of what is not tried any more.
    pub(super) async fn publish_ending(
        &self,
        mut new: NewRevision,
        steps: Vec<Step>,
        actor: &Actor,
        (end, why): (End, String),
    ) -> Result<PipelineRevision, PipelineError> {
        self.among_others(&mut new).await?;
        let record = self.catalog.add_revision(new, actor).await?;
        let before = self.lane(record.scope).map(|lane| lane.current());
        self.install(record.clone(), steps);
        if let Some(before) = before {
            self.end_all_but(&record, &before, (end, &why));
        }
        Ok(record)
    }

    pub(super) fn install(&self, record: PipelineRevision, steps: Vec<Step>) {
        let scope = record.scope;
        let tries = steps.iter().any(|step| step.candidate.is_some());
        let machine = Arc::clone(&self.machine);
        tracing::info!(scope = shown(scope), revision = record.revision, reason = record.reason, "a pipeline changed");
        let revision = Revision { number: record.revision, record: Some(record), steps, machine };
        let mut lanes = self.lanes.write();
        match lanes.get(&scope) {
            Some(lane) => lane.current.store(Arc::new(revision)),
            None => {
                lanes.insert(scope, Lane::new(scope, revision));
            }
        }
        drop(lanes);
        if tries {
            self.rollouts.begun();
        }
    }

    /// Makes the current revisions run again. Where `latest` means another version by now (a new binary's built-ins, a
    /// crash between a version and its revisions), a new revision follows. A plugin that can't be loaded fails on its
    /// own messages, not on the start of the broker.
    pub(super) async fn restore(&self) -> Result<(), PipelineError> {
        let _one_at_a_time = self.changing.lock().await;
        for record in self.catalog.pipelines().await? {
            if let Some(resolved) = self.rebound(&record) {
                let (built, faults) = self.build(record.scope, &resolved, None).await;
                match refusal(faults, |at| resolved[at].spec.name.clone()) {
                    None => match self
                        .publish(Pipelines::following((&record, REASON), resolved), built, &Actor::system())
                        .await
                    {
                        Ok(_) => continue,
                        // Another broker that starts was first; what it has written is taken over before anything is served.
                        Err(PipelineError::Catalog(CatalogError::PreconditionFailed { .. })) => {}
                        Err(error) => return Err(error),
                    },
                    Some(error) => self.lags(record.scope, error.to_string()),
                }
            }
            let steps = self.restored_steps(&record).await;
            self.install(record, steps);
        }
        Ok(())
    }

    pub(super) async fn restored_steps(&self, record: &PipelineRevision) -> Vec<Step> {
        let mut steps = Vec::with_capacity(record.resolved.len());
        for resolved in &record.resolved {
            let stage = self.restored(record.scope, resolved.stable()).await;
            let tried = match resolved.candidate() {
                Some(tried) => Some(self.restored(record.scope, tried).await),
                None => None,
            };
            steps.push(self.step(resolved, stage, tried, None));
        }
        steps
    }

    async fn restored(&self, scope: Scope, resolved: ResolvedStage) -> Arc<Stage> {
        let loaded = self.loaded(&resolved.digest).await.map_err(|why| {
            tracing::error!(scope = shown(scope), stage = resolved.spec.name, %why, "a stage cannot run");
            Arc::from(format!("the plugin can't be loaded: {why}"))
        });
        let log = self.registry.log(&resolved.spec.plugin);
        Stage::new(resolved, loaded, log, &self.machine)
    }
}

fn implicit_of(record: &PipelineRevision) -> Vec<ResolvedStage> {
    record.resolved.iter().filter(|stage| stage.implicit).cloned().collect()
}

/// What stages that could not be made come to: those refused by their place, else that it may go later.
pub(super) fn refusal(faults: Vec<(usize, NotBuilt)>, place: impl Fn(usize) -> String) -> Option<PipelineError> {
    let not_now = faults.first().map(|(_, fault)| PipelineError::NotNow(fault.to_string()));
    let refused = faults.into_iter().flat_map(|(at, fault)| match fault {
        NotBuilt::Refused(why) => vec![(place(at), why)],
        NotBuilt::Config(faults) => {
            let placed = |(inside, why): (String, String)| (format!("{}{inside}", place(at)), why);
            faults.into_iter().map(placed).collect()
        }
        NotBuilt::NotNow(_) => Vec::new(),
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
