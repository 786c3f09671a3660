//! Looks at all versions that are tried, and takes back those that do worse than their limits allow. Invariant: one that is
//! to be taken back gets no message from the moment that this is found, however long it takes to write it down; it is tried
//! again until it is written. Never judges by anything but the figures.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::catalog::Actor;
use crate::catalog::model::Scope;

use super::super::change::shown;
use super::super::{PipelineError, Pipelines};
use super::{Candidate, End, judge};

/// How soon a version that does worse is found.
const EVERY: Duration = Duration::from_millis(250);
/// Before a rollback that could not be written is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

impl Pipelines {
    /// For as long as the pipelines live.
    pub(in super::super) fn start_watching_rollouts(self: &Arc<Self>) {
        let (pipelines, noted) = (Arc::downgrade(self), Arc::clone(&self.rollouts.noted));
        let clock = self.machine.clock.clone();
        let task = tokio::spawn(async move {
            loop {
                let Some(pipelines) = pipelines.upgrade() else { return };
                let pause = pipelines.look_at_rollouts().await;
                drop(pipelines);
                match pause {
                    Some(pause) => clock.sleep(pause).await,
                    None => noted.notified().await,
                }
            }
        });
        self.tasks.lock().push(task.abort_handle());
    }

    /// Once; and how long to wait before the next look. `None`: there is nothing to look at.
    async fn look_at_rollouts(&self) -> Option<Duration> {
        let tried: Vec<(Scope, Arc<Candidate>)> = {
            let lanes = self.lanes.read();
            let of = |(scope, lane): (&Scope, &Arc<super::super::Lane>)| {
                let current = lane.current();
                let candidates: Vec<_> = current.steps.iter().filter_map(|step| step.candidate.clone()).collect();
                candidates.into_iter().map(|candidate| (*scope, candidate)).collect::<Vec<_>>()
            };
            lanes.iter().flat_map(of).collect()
        };
        if tried.is_empty() {
            return None;
        }
        let mut pause = EVERY;
        for (scope, candidate) in tried {
            let trial = &candidate.trial;
            let found = judge::breach(&candidate.rollout.limits, &trial.record.recent(self.machine.clock.now()));
            let Some(why) = found else { continue };
            trial.halted.store(true, Ordering::Relaxed);
            if let Err(error) = self.roll_back(scope, &candidate, why).await {
                tracing::error!(
                    scope = shown(scope), stage = &*candidate.stage.name, %error,
                    "a version that does worse gets no more messages, but its rollback can't be written yet; trying again"
                );
                pause = TRY_AGAIN;
            }
        }
        Some(pause)
    }

    async fn roll_back(&self, scope: Scope, candidate: &Candidate, why: String) -> Result<(), PipelineError> {
        let stage = &*candidate.stage.name;
        let (reason, system) = (&why, Actor::system());
        let system = &system;
        let ended = self.in_turn(false, || async move {
            let is_still_tried =
                self.tried_on(scope, stage).is_some_and(|now| Arc::ptr_eq(&now.trial, &candidate.trial));
            if !is_still_tried {
                return Ok(false); // Somebody ended it meanwhile.
            }
            self.end_rollout((scope, stage), (End::RolledBack, reason.clone()), None, system).await.map(|_| true)
        });
        if !ended.await? {
            return Ok(());
        }
        tracing::warn!(
            scope = shown(scope),
            stage,
            plugin = &*candidate.stage.plugin,
            version = candidate.rollout.version,
            why,
            "a version that was tried is taken back"
        );
        Ok(())
    }
}
