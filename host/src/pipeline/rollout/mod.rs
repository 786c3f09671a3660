//! A version that is tried on a stage, beside the one that the stage runs: for some of the messages (canary), or on copies of
//! them (shadow). Invariant: a message sees one of the two, the same one for its key at any time; a version that does worse
//! than its limits allow gets no message more, and is taken back with the reason; every step is a revision. Never tries a
//! stage that Sluice adds itself.

mod changes;
pub mod compare;
mod figures;
mod judge;
mod metrics;
mod shadow;
mod watch;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::catalog::model::{ResolvedStage, Rollout, Scope, Strategy};
use crate::clock::Timestamp;
use crate::message::MessageId;

use super::draft::{Lot, Processed};
use super::revision::Revision;
use super::stage::{Machine, Stage};

pub use self::changes::NewRollout;
use self::compare::{Compared, Made};
use self::figures::Record;
pub use self::figures::{Arm, Both, Figures};
pub use self::metrics::RolloutMetrics;
pub use self::shadow::{Job, Shadow};

/// Rollouts of one pipeline that have ended and can still be looked at.
const ENDED_MAX: usize = 8;

/// A stage of a revision, and what is tried on it.
#[derive(Debug, Clone)]
pub struct Step {
    /// What it runs.
    pub stage: Arc<Stage>,
    /// What is tried.
    pub candidate: Option<Arc<Candidate>>,
}

/// A version that is tried.
#[derive(Debug)]
pub struct Candidate {
    /// The stage, on this version.
    pub stage: Arc<Stage>,
    /// As the catalog has it.
    pub rollout: Rollout,
    /// How it does.
    pub trial: Arc<Trial>,
    /// A pipeline of this stage alone.
    pub alone: Arc<Revision>,
}

/// How a version does that is tried. It outlives revisions: another percentage does not begin it anew.
#[derive(Debug)]
pub struct Trial {
    record: Record,
    compared: Mutex<Compared>,
    shed: AtomicU64,
    /// Whether it gets no message any more: its end is not written yet.
    halted: AtomicBool,
    metrics: RolloutMetrics,
    plugin: Arc<str>,
}

impl Candidate {
    /// Tries `stage`. What was found so far goes on if it is the same rollout.
    #[must_use]
    pub fn new(
        stage: Arc<Stage>,
        rollout: Rollout,
        (before, metrics): (Option<&Candidate>, &RolloutMetrics),
        machine: &Arc<Machine>,
    ) -> Arc<Candidate> {
        let same = before.filter(|before| {
            let (was, is) = (&before.rollout, &rollout);
            (was.started_at, &was.digest, was.strategy) == (is.started_at, &is.digest, is.strategy)
                && was.limits.window_ms == is.limits.window_ms
        });
        let trial = same.map_or_else(
            || {
                Arc::new(Trial {
                    record: Record::new(Duration::from_millis(rollout.limits.window_ms)),
                    compared: Mutex::default(),
                    shed: AtomicU64::new(0),
                    halted: AtomicBool::new(false),
                    metrics: metrics.clone(),
                    plugin: Arc::clone(&stage.plugin),
                })
            },
            |before| Arc::clone(&before.trial),
        );
        let steps = vec![Step { stage: Arc::clone(&stage), candidate: None }];
        let alone = Arc::new(Revision { number: 0, record: None, steps, machine: Arc::clone(machine) });
        Arc::new(Candidate { stage, rollout, trial, alone })
    }

    /// Whether it gets a message with this lot: in the place of the stage's version, or a copy.
    #[must_use]
    pub fn takes(&self, lot: Lot) -> bool {
        lot.is_among(self.rollout.percent) && !self.trial.halted.load(Ordering::Relaxed)
    }

    /// Whether it runs in the place of the stage's version.
    #[must_use]
    pub fn is_canary(&self) -> bool {
        self.rollout.strategy == Strategy::Canary
    }
}

impl Trial {
    /// What one of the versions made of a batch that took `each` a message.
    pub fn ran(&self, arm: Arm, now: Timestamp, batch: Figures, each: Duration) {
        if batch.messages > 0 {
            self.record.add(arm, now, batch, each);
        }
    }

    /// What both made of the same messages.
    fn compared(&self, now: Timestamp, of: Vec<(MessageId, Made, Processed)>) {
        let (mut stable, mut candidate) = (Figures::default(), Figures::default());
        let (mut live_took, mut took) = (Duration::ZERO, Duration::ZERO);
        let mut all = self.compared.lock();
        for (id, live, tried) in of {
            let tried = Made::of(tried);
            stable.count(live.said, live.emitted.len());
            candidate.count(tried.said, tried.emitted.len());
            (live_took, took) = (live.took, tried.took);
            self.metrics.compared(&self.plugin, all.add(id, &live, &tried));
        }
        drop(all);
        self.ran(Arm::Stable, now, stable, live_took);
        self.ran(Arm::Candidate, now, candidate, took);
    }

    /// So many messages were not run beside: there was no room.
    pub fn shed(&self, messages: usize) {
        self.shed.fetch_add(messages as u64, Ordering::Relaxed);
        self.metrics.shed(&self.plugin, messages);
    }
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The stage runs the version now.
    Promoted,
    /// Somebody ended it.
    Aborted,
    /// It did worse than its limits allow.
    RolledBack,
    /// The stage was set anew, or another version is tried in its place.
    Replaced,
}

impl End {
    /// For answers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            End::Promoted => "promoted",
            End::Aborted => "aborted",
            End::RolledBack => "rolledBack",
            End::Replaced => "replaced",
        }
    }
}

/// A rollout, as it stands or as it ended.
#[derive(Debug, Clone)]
pub struct RolloutView {
    /// Whose pipeline.
    pub scope: Scope,
    /// The stage.
    pub stage: String,
    /// Its plugin.
    pub plugin: String,
    /// The version that the stage runs, or ran.
    pub stable: String,
    /// What is tried, and how.
    pub rollout: Rollout,
    /// How, why and when it ended.
    pub ended: Option<(End, String, Timestamp)>,
    /// Since it began.
    pub totals: Both,
    /// In its window.
    pub recent: Both,
    /// Of a shadow: how what both made compares.
    pub compared: Compared,
    /// Of a shadow: messages that were not run beside.
    pub shed: u64,
}

type Told = Box<dyn Fn(&RolloutView) + Send + Sync>;

/// What all rollouts share.
pub struct Rollouts {
    /// Those that have ended, by pipeline, the latest last.
    ended: Mutex<HashMap<Scope, Vec<RolloutView>>>,
    /// One has begun.
    noted: Arc<Notify>,
    /// Runs what is tried beside traffic.
    pub shadow: Shadow,
    /// Counts them.
    pub metrics: RolloutMetrics,
    /// Told of each that was taken back.
    told: OnceLock<Told>,
}

impl Rollouts {
    /// Without any.
    #[must_use]
    pub fn new(metrics: RolloutMetrics) -> Rollouts {
        let (ended, noted, told) = (Mutex::default(), Arc::default(), OnceLock::new());
        Rollouts { ended, noted, shadow: Shadow::default(), metrics, told }
    }

    /// There is something to look at.
    pub fn begun(&self) {
        self.noted.notify_one();
    }

    fn end(&self, view: RolloutView, end: End, why: String, at: Timestamp) {
        let view = RolloutView { ended: Some((end, why, at)), ..view };
        self.metrics.ended(&view.plugin, end);
        if end == End::RolledBack
            && let Some(told) = self.told.get()
        {
            told(&view);
        }
        let mut all = self.ended.lock();
        let ended = all.entry(view.scope).or_default();
        if ended.len() == ENDED_MAX {
            ended.remove(0);
        }
        ended.push(view);
    }

    fn last_of(&self, scope: Scope, stage: &str) -> Option<RolloutView> {
        self.ended.lock().get(&scope)?.iter().rev().find(|view| view.stage == stage).cloned()
    }

    /// The pipeline is gone.
    pub fn forget(&self, scope: Scope) {
        self.ended.lock().remove(&scope);
    }
}

/// How it stands.
fn view(scope: Scope, resolved: &ResolvedStage, candidate: &Candidate, now: Timestamp) -> RolloutView {
    let trial = &candidate.trial;
    RolloutView {
        scope,
        stage: resolved.spec.name.clone(),
        plugin: resolved.spec.plugin.clone(),
        stable: resolved.version.clone(),
        rollout: candidate.rollout.clone(),
        ended: None,
        totals: trial.record.totals(),
        recent: trial.record.recent(now),
        compared: trial.compared.lock().clone(),
        shed: trial.shed.load(Ordering::Relaxed),
    }
}
