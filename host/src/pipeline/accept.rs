//! How plugin versions come in, by disk, by upload, with the binary. Invariant: what is accepted has been checked, compiled
//! and started on this broker with every config in use; what is refused changes nothing that runs. Never reads a file.

use std::sync::Arc;

use bytes::Bytes;

use crate::catalog::model::{PluginSource, PluginVersion, ResolvedStage, Scope, StageSpec};
use crate::catalog::{Accepted, Actor, CatalogError, NewPlugin, NewRevision};

use super::builtin::{self, BUILTINS};
use super::change::{POOL_FULL, refusal, shown, start};
use super::component::{self, ComponentError, Loaded};
use super::config_schema;
use super::instance::StartError;
use super::limits::{REASON_BYTES_MAX, cut};
use super::registry::{is_label, is_plugin_name};
use super::rollout::Step;
use super::signature::SIGNATURE_BYTES;
use super::stage::Stage;
use super::{Lane, NewComponent, PipelineError, Pipelines};

/// A plugin version that is about to become `latest`, seen from the stages that bind it.
struct Arriving<'a> {
    name: &'a str,
    label: &'a str,
    digest: &'a str,
    loaded: &'a Arc<Loaded>,
}

impl Pipelines {
    /// Takes in a component, from disk or uploaded: checks it, tries it with each config in use, and makes it `latest`
    /// and the pipelines that bind `latest` run it. One that can't for the moment follows as soon as it can.
    ///
    /// # Errors
    /// [`PipelineError::Unusable`], [`PipelineError::TooLarge`]; a conflict if the label has other bytes; a passing one
    /// ([`PipelineError::is_passing`]) if it is not the component's fault.
    pub async fn accept(&self, new: NewComponent, actor: &Actor) -> Result<(PluginVersion, Accepted), PipelineError> {
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

    /// Removes a version that no pipeline runs. Labels only: what `latest` means may change before it is gone.
    ///
    /// # Errors
    /// [`PipelineError::Bound`]; a conflict if it is what came with this binary; the catalog's, such as not found.
    pub async fn delete_version(&self, name: &str, label: &str, actor: &Actor) -> Result<(), PipelineError> {
        let _one_at_a_time = self.changing.lock().await;
        self.know_others().await?;
        let bound = self.bound_to(name, label);
        if !bound.is_empty() {
            return Err(PipelineError::Bound(bound));
        }
        let own = builtin::digest_of(name);
        if self.registry.resolve(name, label).is_some_and(|version| own == Some(version.digest.as_str())) {
            let why = format!("the version '{label}' of '{name}' came with this binary and stays with it");
            return Err(CatalogError::Conflict(why).into());
        }
        self.catalog.delete_plugin_version(name, label, actor).await?;
        let removed = self.registry.resolve(name, label);
        self.registry.removed(name, label);
        self.count_quotas();
        if let Some(removed) = removed {
            self.discard_unless_known(&removed.digest).await;
        }
        Ok(())
    }

    /// Whose pipelines run this version now, or try it on a stage.
    fn bound_to(&self, name: &str, label: &str) -> Vec<Scope> {
        let tries = |stage: &ResolvedStage| stage.rollout.as_ref().is_some_and(|tried| tried.version == label);
        let runs = |stage: &ResolvedStage| stage.spec.plugin == name && (stage.version == label || tries(stage));
        let lanes: Vec<Arc<Lane>> = self.lanes.read().values().cloned().collect();
        let bound = lanes
            .into_iter()
            .filter(|lane| lane.current().record.as_ref().is_some_and(|record| record.resolved.iter().any(runs)));
        bound.map(|lane| lane.scope).collect()
    }

    pub(super) fn not_accepted(&self, name: &str, file: String, error: &PipelineError) {
        let why = cut(error.to_string(), REASON_BYTES_MAX);
        tracing::warn!(plugin = name, file, error = why, "a plugin was not accepted; what runs goes on");
        let named = is_plugin_name(name) && self.registry.has_room(name);
        self.machine.metrics.reload_error(named.then_some(name));
        if named {
            self.registry.failed(name, file, why);
        }
    }

    pub(super) async fn take_in(
        &self,
        new: NewComponent,
        actor: &Actor,
    ) -> Result<(PluginVersion, Accepted), PipelineError> {
        self.check_request(&new.name, new.version.as_deref(), &new.bytes)?;
        let digest = hash(new.bytes.clone()).await?;
        let accepted = self.try_and_accept(new, &digest, actor).await;
        if accepted.is_err() {
            self.discard_unless_known(&digest).await;
        }
        accepted
    }

    /// Machine code of what was refused or deleted must not pile up.
    pub(super) async fn discard_unless_known(&self, digest: &str) {
        if !self.registry.digests().contains(digest) {
            // Nor is it kept for revisions to come.
            self.wanted.lock().retain(|kept| kept.digest != digest);
            self.components.discard(digest).await;
        }
    }

    async fn try_and_accept(
        &self,
        new: NewComponent,
        digest: &str,
        actor: &Actor,
    ) -> Result<(PluginVersion, Accepted), PipelineError> {
        let NewComponent { name, version: label, bytes, source, signature } = new;
        let digest = digest.to_owned();
        let signed_by = self.signer(&digest, signature)?;
        // Before it is compiled, which takes seconds, and again once nothing else changes.
        let imports = component::check(bytes.clone()).await.map_err(unusable)?;
        self.check_powers(&name, &digest, &imports).await?;
        self.check_quota(&name, &digest, bytes.len())?;
        let loaded = self.components.load(&digest, bytes.clone()).await.map_err(unusable)?;
        let one_at_a_time = self.changing.lock().await;
        self.know_others().await?;
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
        self.check_room(&name, &label_now)?;
        self.check_quota(&name, &digest, bytes.len())?;
        self.check_powers(&name, &digest, &imports).await?;
        let arriving = Arriving { name: &name, label: &label_now, digest: &digest, loaded: &loaded };
        let changes = self.rebind(&arriving).await?;
        if changes.is_empty() {
            self.try_start(&arriving).await?;
        }
        let config_schema = loaded.config_schema.as_ref().map(|schema| schema.text.clone());
        let plugin = name.clone();
        let new = NewPlugin { plugin, version: label, bytes, digest, source, imports, signed_by, config_schema };
        let (version, accepted) = self.catalog.accept_plugin(new, actor).await?;
        tracing::info!(
            plugin = name,
            version = version.version,
            digest = version.digest,
            ?source,
            "a plugin version was accepted"
        );
        self.registry.accepted(version.clone());
        self.count_quotas();
        if self.options.fleet.is_some() {
            // The others can make it ready only now, as it takes them seconds; nobody's change waits for that.
            let scopes: Vec<Scope> = changes.iter().map(|(lane, ..)| lane.scope).collect();
            drop((changes, one_at_a_time));
            if !scopes.is_empty() {
                self.prepare_others(std::slice::from_ref(&version.digest)).await;
                self.bring_onto_latest(&scopes, (&format!("plugin {name} changed"), actor)).await;
            }
            return Ok((version, accepted));
        }
        for (lane, resolved, built) in changes {
            let stages = lane.current().record.as_ref().map(|record| record.stages.clone()).unwrap_or_default();
            let reason = format!("plugin {name} changed");
            let new = NewRevision { scope: lane.scope, stages, resolved, reason, expected: None };
            // The version is accepted, whatever becomes of this pipeline: the others go on, and it is tried again.
            if let Err(error) = self.publish(new, built, actor).await {
                self.lags(lane.scope, error.to_string());
            }
        }
        Ok((version, accepted))
    }

    /// Those that can't be brought there now are tried again.
    async fn bring_onto_latest(&self, scopes: &[Scope], because: (&str, &Actor)) {
        let _one_at_a_time = self.changing.lock().await;
        let known = self.know_others().await;
        for scope in scopes {
            let followed = match &known {
                Ok(()) => self.follow(*scope, because).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = followed {
                self.lags(*scope, why);
            }
        }
    }

    /// The trusted key that signed the component, if one has to or did.
    fn signer(&self, digest: &str, signature: Option<[u8; SIGNATURE_BYTES]>) -> Result<Option<String>, PipelineError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(digest, &mut bytes).map_err(|error| PipelineError::Internal(error.to_string()))?;
        let required = self.options.plugins.trust.require_signature;
        self.trusted.judge(&bytes, signature.as_ref(), required).map_err(PipelineError::Unusable)
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
            return Err(PipelineError::Full(why));
        }
        let (size, max) = (bytes.len() as u64, self.options.plugins.size_max);
        if size > max { Err(PipelineError::TooLarge { size, max }) } else { Ok(()) }
    }

    /// Versions are kept for rollbacks until somebody deletes them: not without end.
    fn check_room(&self, name: &str, label: &str) -> Result<(), PipelineError> {
        let (there, at_most) = (self.registry.versions_of(name), self.options.plugins.versions_max);
        if there < at_most || self.registry.resolve(name, label).is_some() {
            return Ok(());
        }
        let why = format!(
            "there are {there} versions of '{name}', as many as plugins.versions_max allows: delete some, or raise it"
        );
        Err(PipelineError::Full(why))
    }

    /// For each pipeline that binds `latest` of the plugin: what it would run, tried with each config in use.
    async fn rebind(
        &self,
        arriving: &Arriving<'_>,
    ) -> Result<Vec<(Arc<Lane>, Vec<ResolvedStage>, Vec<Step>)>, PipelineError> {
        let lanes: Vec<Arc<Lane>> = self.lanes.read().values().cloned().collect();
        let mut changes = Vec::new();
        for lane in lanes {
            let before = lane.current();
            let Some(record) = &before.record else { continue };
            let resolved: Vec<ResolvedStage> = record.resolved.iter().map(|stage| arriving.bound_to(stage)).collect();
            if resolved == record.resolved {
                continue;
            }
            let (built, faults) = self.build(lane.scope, &resolved, Some(&before)).await;
            match refusal(faults, |at| resolved[at].spec.name.clone()) {
                Some(PipelineError::Invalid(faults)) => {
                    let (stage, why) = &faults[0];
                    let why = format!("the stage '{stage}' of {} cannot run it: {why}", shown(lane.scope));
                    return Err(PipelineError::Unusable(why));
                }
                Some(passing) => return Err(passing),
                None => {}
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
        let resolved = ResolvedStage { spec, version, digest, implicit: false, rollout: None };
        let log = self.registry.log(arriving.name);
        let stage = Stage::new(resolved, Ok(Arc::clone(arriving.loaded)), log, &self.machine);
        match start(stage).await? {
            Ok(()) | Err(StartError::Config(_)) => Ok(()),
            Err(StartError::PoolFull) => Err(PipelineError::NotNow(POOL_FULL.to_owned())),
            Err(StartError::System(why)) => Err(PipelineError::NotNow(why)),
            Err(StartError::Failed(failure)) => {
                Err(PipelineError::Unusable(format!("it does not start: {}", failure.detail)))
            }
        }
    }

    /// Compiles the plugins that came with this binary, the small ones first, unless their machine code is kept.
    pub(super) fn warm_up(self: &Arc<Self>) {
        let pipelines = Arc::downgrade(self);
        let task = tokio::spawn(async move {
            let mut builtins = BUILTINS;
            builtins.sort_by_key(|builtin| builtin.bytes.len());
            for builtin in builtins {
                let Some(pipelines) = pipelines.upgrade() else { return };
                if let Err(error) = pipelines.components.warm(builtin.digest, Bytes::from_static(builtin.bytes)).await {
                    tracing::error!(plugin = builtin.name, %error, "a built-in plugin can't be made ready");
                }
            }
        });
        self.tasks.lock().push(task.abort_handle());
    }

    /// Puts the plugins that came with this binary into the catalog, if it has never seen them. They are not compiled
    /// for it: they fit the world, or this binary would not have passed its tests.
    pub(super) async fn register_builtins(&self) -> Result<(), PipelineError> {
        for builtin in BUILTINS {
            if self.registry.with_digest(builtin.name, builtin.digest).is_some() {
                continue;
            }
            let bytes = Bytes::from_static(builtin.bytes);
            let imports = component::check(bytes.clone()).await.map_err(unusable)?;
            let config_schema = config_schema::of(bytes.clone()).await.map_err(unusable)?.map(|schema| schema.text);
            let (plugin, digest) = (builtin.name.to_owned(), builtin.digest.to_owned());
            let (version, source, signed_by) = (None, PluginSource::Builtin, None);
            let new = NewPlugin { plugin, version, bytes, digest, source, imports, signed_by, config_schema };
            let (version, _) = self.catalog.accept_plugin(new, &Actor::system()).await?;
            self.registry.accepted(version);
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
        let (version, digest) = (self.label.to_owned(), self.digest.to_owned());
        ResolvedStage { rollout: stage.still_tried(&digest), version, digest, ..stage.clone() }
    }
}

async fn hash(bytes: Bytes) -> Result<String, PipelineError> {
    let hashed = tokio::task::spawn_blocking(move || component::digest(&bytes));
    hashed.await.map_err(|error| PipelineError::Internal(error.to_string()))
}

fn unusable(error: ComponentError) -> PipelineError {
    match error {
        ComponentError::Unusable(why) => PipelineError::Unusable(why),
        ComponentError::Unavailable(_) => PipelineError::NotNow(error.to_string()),
    }
}
