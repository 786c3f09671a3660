//! How pipelines keep up with `latest`. Invariant: a pipeline that binds `latest` and does not run the version accepted last
//! is on the list of those that lag, with the reason, and is tried again until it does. Never accepts a version.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::catalog::model::{PipelineRevision, ResolvedStage, Scope};
use crate::catalog::{Actor, NewRevision};

use super::change::{refusal, shown};
use super::registry::Lag;
use super::{PipelineError, Pipelines};

/// Before the second try; each further one waits twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// What is in the way may last for hours, and its end should show soon.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Why the revision of a pipeline that follows `latest` is a new one.
pub(super) const REASON: &str = "the latest version of a plugin changed";

/// How long to wait after so many tries in vain.
pub(super) fn pause_after(tries: u32) -> Duration {
    (PAUSE_MIN * 2_u32.saturating_pow(tries.saturating_sub(1).min(16))).min(PAUSE_MAX)
}

/// The pipelines that lag, and why.
#[derive(Debug, Default)]
pub(super) struct Lagging {
    scopes: Mutex<BTreeMap<Scope, String>>,
    noted: Arc<Notify>,
}

impl Lagging {
    pub(super) fn len(&self) -> usize {
        self.scopes.lock().len()
    }
}

impl Pipelines {
    /// Notes that `scope` does not run the latest versions yet; it is tried again.
    pub(super) fn lags(&self, scope: Scope, why: String) {
        if self.lagging.scopes.lock().insert(scope, why.clone()).as_ref() != Some(&why) {
            tracing::warn!(scope = shown(scope), why, "a pipeline stays on an older plugin version; trying again");
        }
        self.lagging.noted.notify_one();
    }

    /// The pipelines that would run another version of `plugin` if they could.
    pub(super) fn lagging(&self, plugin: &str) -> Vec<Lag> {
        let lagging = self.lagging.scopes.lock().clone();
        let on_it = |scope: &Scope| {
            let stages = self.current(*scope).map(|record| record.resolved).unwrap_or_default();
            stages.iter().any(|stage| stage.spec.plugin == plugin && self.bound_now(stage) != *stage)
        };
        lagging.into_iter().filter(|(scope, _)| on_it(scope)).map(|(scope, why)| Lag { scope, why }).collect()
    }

    /// What the stages of `record` would run now, if that is something else.
    pub(super) fn rebound(&self, record: &PipelineRevision) -> Option<Vec<ResolvedStage>> {
        let bound: Vec<ResolvedStage> = record.resolved.iter().map(|stage| self.bound_now(stage)).collect();
        (bound != record.resolved).then_some(bound)
    }

    fn bound_now(&self, stage: &ResolvedStage) -> ResolvedStage {
        let Ok(bound) = self.resolve(&stage.spec, stage.implicit) else { return stage.clone() };
        ResolvedStage { rollout: stage.still_tried(&bound.digest), ..bound }
    }

    /// The revision that brings `record` onto `resolved`.
    pub(super) fn following((record, reason): (&PipelineRevision, &str), resolved: Vec<ResolvedStage>) -> NewRevision {
        let (scope, stages, reason) = (record.scope, record.stages.clone(), reason.to_owned());
        NewRevision { scope, stages, resolved, reason, expected: Some(record.revision) }
    }

    /// Tries those that lag again and again, with longer and longer pauses, until none does.
    pub(super) fn start_following(self: &Arc<Self>) {
        let (pipelines, noted) = (Arc::downgrade(self), Arc::clone(&self.lagging.noted));
        let clock = self.machine.clock.clone();
        let task = tokio::spawn(async move {
            loop {
                noted.notified().await;
                for tries in 1.. {
                    clock.sleep(pause_after(tries)).await;
                    let Some(pipelines) = pipelines.upgrade() else { return };
                    if pipelines.catch_up().await {
                        break;
                    }
                }
            }
        });
        self.tasks.lock().push(task.abort_handle());
    }

    /// Tries once; whether none lags any more.
    async fn catch_up(&self) -> bool {
        let _one_at_a_time = self.changing.lock().await;
        if self.know_others().await.is_err() {
            return false; // Each would fail.
        }
        let scopes: Vec<Scope> = self.lagging.scopes.lock().keys().copied().collect();
        for scope in scopes {
            match self.follow(scope, (REASON, &Actor::system())).await {
                Ok(()) => drop(self.lagging.scopes.lock().remove(&scope)),
                Err(error) => self.lags(scope, error.to_string()),
            }
        }
        self.lagging.scopes.lock().is_empty()
    }

    /// Brings one onto the latest versions, for who has the turn.
    pub(super) async fn follow(&self, scope: Scope, (reason, actor): (&str, &Actor)) -> Result<(), PipelineError> {
        // Forgotten meanwhile, or changed by its owner.
        let Some(before) = self.lane(scope).map(|lane| lane.current()) else { return Ok(()) };
        let Some(record) = &before.record else { return Ok(()) };
        let Some(resolved) = self.rebound(record) else { return Ok(()) };
        let (built, faults) = self.build(scope, &resolved, Some(&before)).await;
        if let Some(error) = refusal(faults, |at| resolved[at].spec.name.clone()) {
            return Err(error);
        }
        self.publish(Pipelines::following((record, reason), resolved), built, actor).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        assert_eq!((pause_after(1), pause_after(2)), (PAUSE_MIN, PAUSE_MIN * 2));
        assert!((1..100).all(|tries| pause_after(tries) <= PAUSE_MAX) && pause_after(u32::MAX) == PAUSE_MAX);
    }
}
