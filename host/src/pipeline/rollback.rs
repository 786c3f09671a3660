//! Earlier revisions: looked at, compared, gone back to. Invariant: going back is a new revision, of the very versions that ran
//! then; where one of them is gone, nothing changes. Never changes a revision.

use crate::catalog::CatalogError;
use crate::catalog::model::{PipelineRevision, ResolvedStage, Scope, StageSpec};

use super::diff::{self, Difference};
use super::{PipelineError, Pipelines};

impl Pipelines {
    /// The revision `number` of a scope, if it is kept.
    ///
    /// # Errors
    /// The catalog's; not found where it is not kept.
    pub async fn revision_of(&self, scope: Scope, number: u64) -> Result<PipelineRevision, PipelineError> {
        let found = self.catalog.pipeline_revision(scope, number).await?;
        let missing = || CatalogError::NotFound(format!("there is no revision {number} of this pipeline (any more)"));
        Ok(found.ok_or_else(missing)?)
    }

    /// The stages of revision `number`, each pinned to the version that ran.
    ///
    /// # Errors
    /// A conflict that names the versions which are gone since; as [`Pipelines::revision_of`].
    pub async fn stages_as_they_ran(&self, scope: Scope, number: u64) -> Result<Vec<StageSpec>, PipelineError> {
        let revision = self.revision_of(scope, number).await?;
        let mut gone = Vec::new();
        let pinned = revision.stages.into_iter().map(|spec| {
            let Some(ran) = own(&revision.resolved).find(|stage| stage.spec.name == spec.name) else { return spec };
            let there = self.registry.resolve(&spec.plugin, &ran.version).is_some_and(|it| it.digest == ran.digest);
            if !there {
                gone.push(format!("{} of '{}' (stage '{}')", ran.version, spec.plugin, spec.name));
            }
            StageSpec { version: ran.version.clone(), ..spec }
        });
        let stages = pinned.collect();
        if gone.is_empty() {
            return Ok(stages);
        }
        let why = format!(
            "revision {number} can't run again: these versions are gone: {}; upload them again, or set the stages anew",
            gone.join(", ")
        );
        Err(CatalogError::Conflict(why).into())
    }

    /// What is different between two revisions; 0 is the pipeline before anyone set it.
    ///
    /// # Errors
    /// As [`Pipelines::revision_of`].
    pub async fn difference(&self, scope: Scope, from: u64, to: u64) -> Result<Difference, PipelineError> {
        let stages = async |number| match number {
            0 => Ok(Vec::new()),
            number => self.revision_of(scope, number).await.map(diff::stages_of),
        };
        Ok(diff::between(&stages(from).await?, &stages(to).await?))
    }
}

/// The stages that its owner set.
fn own(resolved: &[ResolvedStage]) -> impl Iterator<Item = &ResolvedStage> {
    resolved.iter().filter(|stage| !stage.implicit)
}
