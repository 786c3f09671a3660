//! How pipelines and plugins change. Invariant: everything is tried on this broker before the catalog learns of it; the
//! catalog is written before a new revision runs; changes happen one at a time. Never touches a batch under way.

use std::sync::Arc;

use bytes::Bytes;

use crate::catalog::model::{PipelineRevision, PluginSource, PluginVersion, ResolvedStage, Scope, StageSpec};
use crate::catalog::{Actor, CatalogError, NewPlugin, NewRevision};

use super::builtin::{self, BUILTINS};
use super::component::{self, ComponentError, Loaded};
use super::instance::StartError;
use super::registry::{is_label, is_plugin_name};
use super::revision::Revision;
use super::stage::Stage;
use super::{Lane, NewComponent, PipelineError, Pipelines, validate};

/// A plugin version that is about to become `latest`, seen from the stages that bind it.
struct Arriving<'a> {
    name: &'a str,
    label: &'a str,
    digest: &'a str,
    loaded: &'a Arc<Loaded>,
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
        let faults = validate::faults(scope, &stages);
        if !faults.is_empty() {
            return Err(PipelineError::Invalid(faults));
        }
        let _one_at_a_time = self.changing.lock().await;
        let before = self.lane(scope).map(|lane| lane.current());
        let record = before.as_ref().and_then(|before| before.record.as_ref());
        let implicit = record.map(implicit_of).unwrap_or_default();
        let (mut resolved, mut faults) = (implicit, Vec::new());
        let first = resolved.len();
        for (at, spec) in stages.iter().enumerate() {
            match self.resolve(spec, false) {
                Ok(stage) => resolved.push(stage),
                Err((field, why)) => faults.push((format!("/stages/{at}/{field}"), why)),
            }
        }
        if !faults.is_empty() {
            return Err(PipelineError::Invalid(faults));
        }
        let (built, faults) = self.build(&resolved, before.as_deref()).await;
        if !faults.is_empty() {
            let pointed = |(at, why): (usize, String)| match at.checked_sub(first) {
                Some(at) => (format!("/stages/{at}/config"), why),
                None => (String::new(), why),
            };
            return Err(PipelineError::Invalid(faults.into_iter().map(pointed).collect()));
        }
        let new = NewRevision { scope, stages, resolved, reason: "set".to_owned(), expected };
        self.publish(new, built, actor).await
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
        if !faults.is_empty() {
            return Err(PipelineError::Invalid(faults.into_iter().map(|(_, why)| (String::new(), why)).collect()));
        }
        let new = NewRevision { scope, stages: own, resolved, reason: reason.to_owned(), expected: None };
        self.publish(new, built, actor).await?;
        Ok(())
    }

    /// Takes in a component, from disk or uploaded: checks it, tries it with each config in use, and makes it `latest`
    /// and the pipelines that bind `latest` run it.
    ///
    /// # Errors
    /// [`PipelineError::Unusable`], [`PipelineError::TooLarge`]; a conflict if the label has other bytes.
    pub async fn accept(&self, new: NewComponent, actor: &Actor) -> Result<PluginVersion, PipelineError> {
        let name = new.name.clone();
        let file = match (new.source, &new.version) {
            (PluginSource::Disk, None) => format!("{name}.wasm"),
            (PluginSource::Disk, Some(version)) => format!("{name}@{version}.wasm"),
            _ => "upload".to_owned(),
        };
        let accepted = self.take_in(new, actor).await;
        if let Err(error) = &accepted {
            self.not_accepted(&name, file, error);
        }
        accepted
    }

    /// Removes a version that no pipeline runs.
    ///
    /// # Errors
    /// The catalog's: not found, or a conflict while it is bound.
    pub async fn delete_version(&self, name: &str, label: &str, actor: &Actor) -> Result<(), PipelineError> {
        let _one_at_a_time = self.changing.lock().await;
        self.catalog.delete_plugin_version(name, label, actor).await?;
        self.registry.removed(name, label);
        Ok(())
    }

    pub(super) fn not_accepted(&self, name: &str, file: String, error: &PipelineError) {
        tracing::warn!(plugin = name, file, %error, "a plugin was not accepted; what runs goes on");
        let named = is_plugin_name(name) && self.registry.has_room(name);
        self.machine.metrics.reload_error(named.then_some(name));
        if named {
            self.registry.failed(name, file, error.to_string());
        }
    }

    pub(super) async fn take_in(&self, new: NewComponent, actor: &Actor) -> Result<PluginVersion, PipelineError> {
        let NewComponent { name, version: label, bytes, source } = new;
        self.check_request(&name, label.as_deref(), &bytes)?;
        let digest = hash(bytes.clone()).await?;
        let loaded = self.components.load(&digest, bytes.clone()).await.map_err(unusable)?;
        let _one_at_a_time = self.changing.lock().await;
        let label_now = match &label {
            Some(label) => label.clone(),
            None => self
                .registry
                .with_digest(&name, &digest)
                .map_or_else(|| format!("sha-{}", &digest[..12]), |known| known.version),
        };
        if let Some(known) = self.registry.resolve(&name, &label_now).filter(|known| known.digest != digest) {
            let why = format!(
                "the version '{label_now}' of '{name}' has other bytes (SHA-256 {}): give these another label",
                known.digest
            );
            return Err(CatalogError::Conflict(why).into());
        }
        let arriving = Arriving { name: &name, label: &label_now, digest: &digest, loaded: &loaded };
        let changes = self.rebind(&arriving).await?;
        if changes.is_empty() {
            self.try_start(&arriving).await?;
        }
        let imports = loaded.imports.clone();
        let new = NewPlugin { plugin: name.clone(), version: label, bytes, digest, source, imports };
        let (version, _) = self.catalog.accept_plugin(new, actor).await?;
        tracing::info!(
            plugin = name,
            version = version.version,
            digest = version.digest,
            ?source,
            "a plugin version was accepted"
        );
        self.registry.accepted(version.clone());
        for (lane, resolved, built) in changes {
            let stages = lane.current().record.as_ref().map(|record| record.stages.clone()).unwrap_or_default();
            let reason = format!("plugin {name} changed");
            let new = NewRevision { scope: lane.scope, stages, resolved, reason, expected: None };
            self.publish(new, built, actor).await?;
        }
        Ok(version)
    }

    fn check_request(&self, name: &str, label: Option<&str>, bytes: &Bytes) -> Result<(), PipelineError> {
        if !is_plugin_name(name) {
            let why = format!("'{name}' is no plugin name: it must match [a-z0-9][a-z0-9.-]{{0,127}}");
            return Err(PipelineError::Unusable(why));
        }
        if let Some(label) = label.filter(|label| !is_label(label)) {
            return Err(PipelineError::Unusable(format!("'{label}' is no version: take one such as 1.2.0")));
        }
        if !self.registry.has_room(name) {
            let why = format!("there are {} plugins already, the most that are kept", super::registry::PLUGINS_MAX);
            return Err(PipelineError::Unusable(why));
        }
        let (size, max) = (bytes.len() as u64, self.options.plugins.size_max);
        if size > max { Err(PipelineError::TooLarge { size, max }) } else { Ok(()) }
    }

    /// For each pipeline that binds `latest` of the plugin: what it would run, tried with each config in use.
    async fn rebind(
        &self,
        arriving: &Arriving<'_>,
    ) -> Result<Vec<(Arc<Lane>, Vec<ResolvedStage>, Vec<Arc<Stage>>)>, PipelineError> {
        let lanes: Vec<Arc<Lane>> = self.lanes.read().values().cloned().collect();
        let mut changes = Vec::new();
        for lane in lanes {
            let before = lane.current();
            let Some(record) = &before.record else { continue };
            let resolved: Vec<ResolvedStage> = record.resolved.iter().map(|stage| arriving.bound_to(stage)).collect();
            if resolved == record.resolved {
                continue;
            }
            let (built, faults) = self.build(&resolved, Some(&before)).await;
            if let Some((at, why)) = faults.into_iter().next() {
                let stage = &resolved[at].spec.name;
                let why = format!("the stage '{stage}' of {} cannot run it: {why}", shown(lane.scope));
                return Err(PipelineError::Unusable(why));
            }
            changes.push((lane, resolved, built));
        }
        Ok(changes)
    }

    /// Nobody binds it: whether it starts at all, whatever it says of an empty config.
    async fn try_start(&self, arriving: &Arriving<'_>) -> Result<(), PipelineError> {
        let spec = StageSpec {
            name: "trial".to_owned(),
            plugin: arriving.name.to_owned(),
            version: arriving.label.to_owned(),
            config: serde_json::json!({}),
            on_reject: Default::default(),
            on_fault: Default::default(),
            timeout_ms: 1,
            memory_mb: super::limits::MEMORY_MB_MAX,
            emit_to: Vec::new(),
        };
        let (version, digest) = (arriving.label.to_owned(), arriving.digest.to_owned());
        let resolved = ResolvedStage { spec, version, digest, implicit: false };
        let log = self.registry.log(arriving.name);
        let stage = Stage::new(resolved, Ok(Arc::clone(arriving.loaded)), log, &self.machine);
        match start(stage).await? {
            Ok(()) | Err(StartError::Config(_)) => Ok(()),
            Err(StartError::PoolFull) => Err(PipelineError::Internal("all places for instances are taken".to_owned())),
            Err(StartError::Failed(failure)) => {
                Err(PipelineError::Unusable(format!("it does not start: {}", failure.detail)))
            }
        }
    }

    /// Pins a stage's plugin. A stage of Sluice's own runs what came with this binary, whatever was uploaded since.
    fn resolve(&self, spec: &StageSpec, implicit: bool) -> Result<ResolvedStage, (&'static str, String)> {
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
    async fn build(
        &self,
        resolved: &[ResolvedStage],
        before: Option<&Revision>,
    ) -> (Vec<Arc<Stage>>, Vec<(usize, String)>) {
        let (mut stages, mut faults) = (Vec::with_capacity(resolved.len()), Vec::new());
        for (at, resolved) in resolved.iter().enumerate() {
            let same = before.and_then(|before| before.stages.iter().find(|stage| stage.resolved == *resolved));
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

    async fn build_one(&self, resolved: &ResolvedStage) -> Result<Arc<Stage>, String> {
        let loaded = self.loaded(&resolved.digest).await?;
        let stage = Stage::new(resolved.clone(), Ok(loaded), self.registry.log(&resolved.spec.plugin), &self.machine);
        match start(Arc::clone(&stage)).await.map_err(|error| error.to_string())? {
            Ok(()) => Ok(stage),
            Err(StartError::Config(why)) => Err(format!("the plugin refuses the config: {why}")),
            Err(StartError::Failed(failure)) => Err(format!("the plugin fails with this config: {}", failure.detail)),
            Err(StartError::PoolFull) => Err("all places for plugin instances are taken: try again".to_owned()),
        }
    }

    async fn loaded(&self, digest: &str) -> Result<Arc<Loaded>, String> {
        if let Some(loaded) = self.components.in_use(digest) {
            return Ok(loaded);
        }
        let bytes = self.catalog.plugin_bytes(digest).await.map_err(|error| error.to_string())?;
        let bytes = bytes.ok_or_else(|| format!("the catalog has no component with the digest {digest}"))?;
        self.components.load(digest, bytes.into()).await.map_err(|error| error.to_string())
    }

    /// Writes the revision, then lets new batches begin on it.
    async fn publish(
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

    /// Puts the plugins that came with this binary into the catalog, if it has never seen them. They are not compiled
    /// for it: they fit the world, or this binary would not have passed its tests.
    pub(super) async fn register_builtins(&self) -> Result<(), PipelineError> {
        for builtin in BUILTINS {
            let digest = builtin::digest_of(builtin.name).expect("it is one of them");
            if self.registry.with_digest(builtin.name, digest).is_some() {
                continue;
            }
            let bytes = Bytes::from_static(builtin.bytes);
            let imports = component::check(bytes.clone()).await.map_err(unusable)?;
            let (plugin, digest) = (builtin.name.to_owned(), digest.to_owned());
            let new = NewPlugin { plugin, version: None, bytes, digest, source: PluginSource::Builtin, imports };
            let (version, _) = self.catalog.accept_plugin(new, &Actor::system()).await?;
            self.registry.accepted(version);
        }
        Ok(())
    }

    /// Makes the current revisions run again. Where `latest` means another version by now (a new binary's built-ins, a
    /// crash between a version and its revisions), a new revision follows. A plugin that can't be loaded fails on its
    /// own messages, not on the start of the broker.
    pub(super) async fn restore(&self) -> Result<(), PipelineError> {
        let _one_at_a_time = self.changing.lock().await;
        for record in self.catalog.pipelines().await? {
            let pinned = record.resolved.iter().map(|stage| {
                let again = self.resolve(&stage.spec, stage.implicit).ok();
                again.unwrap_or_else(|| stage.clone())
            });
            let resolved: Vec<ResolvedStage> = pinned.collect();
            if resolved != record.resolved {
                let (built, faults) = self.build(&resolved, None).await;
                if faults.is_empty() {
                    let (scope, stages) = (record.scope, record.stages.clone());
                    let reason = "the latest version of a plugin changed".to_owned();
                    let new = NewRevision { scope, stages, resolved, reason, expected: Some(record.revision) };
                    self.publish(new, built, &Actor::system()).await?;
                    continue;
                }
                tracing::warn!(scope = shown(record.scope), ?faults, "a pipeline stays on an older plugin version");
            }
            let mut stages = Vec::with_capacity(record.resolved.len());
            for resolved in &record.resolved {
                let loaded = self.loaded(&resolved.digest).await.map_err(|why| {
                    tracing::error!(scope = shown(record.scope), stage = resolved.spec.name, why, "a stage cannot run");
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

impl Arriving<'_> {
    /// `stage`, on this version if it binds `latest` of the plugin. Sluice's own stages stay on Sluice's own plugins.
    fn bound_to(&self, stage: &ResolvedStage) -> ResolvedStage {
        let follows = stage.spec.plugin == self.name && stage.spec.version == "latest" && !stage.implicit;
        if !follows {
            return stage.clone();
        }
        ResolvedStage { version: self.label.to_owned(), digest: self.digest.to_owned(), ..stage.clone() }
    }
}

fn implicit_of(record: &PipelineRevision) -> Vec<ResolvedStage> {
    record.resolved.iter().filter(|stage| stage.implicit).cloned().collect()
}

/// Makes the stage's first instance, away from the reactor, and leaves it there for the first batch.
async fn start(stage: Arc<Stage>) -> Result<Result<(), StartError>, PipelineError> {
    let started = tokio::task::spawn_blocking(move || stage.start().map(|instance| stage.put_back(instance)));
    started.await.map_err(|error| PipelineError::Internal(error.to_string()))
}

async fn hash(bytes: Bytes) -> Result<String, PipelineError> {
    let hashed = tokio::task::spawn_blocking(move || component::digest(&bytes));
    hashed.await.map_err(|error| PipelineError::Internal(error.to_string()))
}

fn unusable(error: ComponentError) -> PipelineError {
    match error {
        ComponentError::Unusable(why) => PipelineError::Unusable(why),
        ComponentError::Unavailable(why) => PipelineError::Internal(why),
    }
}

fn shown(scope: Scope) -> String {
    match scope {
        Scope::Topic(topic) => format!("topic/{}", topic.0),
        Scope::Subscription(_, id) => format!("subscription/{id}"),
    }
}
