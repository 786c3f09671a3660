//! Stages that name a registered schema in their config (`json-schema`), or ask for one in `configure`. Invariant: what runs holds the schema's definition itself, so a
//! batch never waits for the registry; a new version of the schema is a new revision of the pipelines that name it. Never
//! looks into a definition.

use crate::catalog::Actor;
use crate::catalog::NewRevision;
use crate::catalog::model::{ResolvedStage, SchemaStatus, Scope, StageSpec};

use super::change::shown;
use super::stage::Stage;
use super::{PipelineError, Pipelines};

/// The plugin whose config may name a schema.
const PLUGIN: &str = "json-schema";
/// Where.
const FIELD: &str = "schemaId";

/// The schema that a stage names, if it is one of those.
fn named(spec: &StageSpec) -> Option<&str> {
    if spec.plugin == PLUGIN { spec.config.get(FIELD)?.as_str() } else { None }
}

impl Pipelines {
    /// The stage as it is to run: the schema's definition in the place of its name. The error is for the config's field.
    pub(super) async fn with_schema(&self, spec: &StageSpec) -> Result<StageSpec, (&'static str, String)> {
        let Some(id) = named(spec) else { return Ok(spec.clone()) };
        let field = "config/schemaId";
        let found = self.catalog.schema(id).await.map_err(|error| (field, error.to_string()))?;
        let usable = found.filter(|schema| schema.status == SchemaStatus::Approved);
        let schema = usable.ok_or_else(|| (field, format!("there is no approved schema '{id}'; register it first")))?;
        let definition: serde_json::Value =
            serde_json::from_str(&schema.definition).map_err(|error| (field, format!("schema '{id}': {error}")))?;
        let mut spec = spec.clone();
        if let Some(config) = spec.config.as_object_mut() {
            config.remove(FIELD);
            config.insert("schema".to_owned(), definition);
        }
        Ok(spec)
    }

    /// Brings the pipelines whose stages name this schema onto its version of now.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] if a stage does not take it; the catalog's errors.
    pub async fn schema_changed(&self, id: &str, actor: &Actor) -> Result<(), PipelineError> {
        self.in_turn(false, || self.schema_changed_in_turn(id, actor)).await
    }

    async fn schema_changed_in_turn(&self, id: &str, actor: &Actor) -> Result<(), PipelineError> {
        let schema = self.catalog.schema(id).await?.filter(|schema| schema.status == SchemaStatus::Approved);
        let definition = schema.as_ref().map(|schema| &*schema.definition);
        let lanes: Vec<_> = self.lanes.read().values().cloned().collect();
        for lane in lanes {
            let before = lane.current();
            let Some(record) = before.record.clone() else { continue };
            let asked = before.stages().any(|stage| stage.is_outdated(id, definition));
            if !asked && !record.stages.iter().any(|spec| named(spec) == Some(id)) {
                continue;
            }
            let resolved = self.renamed(lane.scope, &record.stages, &record.resolved).await?;
            if resolved == record.resolved && !asked {
                continue;
            }
            // A stage that has asked for it is configured anew, though nothing of it is other than before.
            let stays = |stage: &Stage| !stage.is_outdated(id, definition);
            let (built, faults) = self.build_anew(&resolved, Some(&before), stays).await;
            if let Some((at, why)) = faults.into_iter().next() {
                let why = format!("the stage '{}' of {}: {why}", resolved[at].spec.name, shown(lane.scope));
                return Err(PipelineError::Invalid(vec![(String::new(), why)]));
            }
            let reason = format!("schema {id} changed");
            let new = NewRevision { scope: lane.scope, stages: record.stages, resolved, reason, expected: None };
            self.publish(new, built, actor).await?;
        }
        Ok(())
    }

    /// The stages as pinned, those that name a schema with its definition of now.
    async fn renamed(
        &self,
        scope: Scope,
        stages: &[StageSpec],
        resolved: &[ResolvedStage],
    ) -> Result<Vec<ResolvedStage>, PipelineError> {
        let mut renamed = resolved.to_vec();
        for spec in stages {
            let stage = renamed.iter_mut().find(|stage| !stage.implicit && stage.spec.name == spec.name);
            let Some(stage) = stage else { continue };
            let faulty = |(_, why): (&str, String)| {
                PipelineError::Invalid(vec![(String::new(), format!("{} of {}: {why}", spec.name, shown(scope)))])
            };
            stage.spec = self.with_schema(spec).await.map_err(faulty)?;
        }
        Ok(renamed)
    }
}
