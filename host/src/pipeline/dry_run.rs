//! A version on messages of the past, beside the one that a stage runs. Invariant: what either makes of them is counted,
//! compared and thrown away; the same messages, seed and configs give the same outcomes; memory does not grow with the number
//! of messages. Never stores, sends or publishes anything, and never counts in the figures of what runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use serde_json::Value;
use tracing::Dispatch;

use crate::catalog::model::{OnFault, OnReject, ResolvedStage, Scope, StageSpec};
use crate::clock::{Clock, Timestamp};
use crate::message::TopicName;

use super::change::{NotBuilt, refusal};
use super::draft::{Draft, FaultCause, Processed, Said, Trail, Verdict};
use super::figures::FigureFamilies;
use super::kv::{Fate, KvRun, Scratch, Transaction};
use super::limits::RUN_GROWTH_BYTES_MAX;
use super::metrics::Metrics;
use super::plugin_log::PluginLog;
use super::revision::Revision;
use super::rollout::compare::{Compared, Made};
use super::rollout::{Figures, Step};
use super::stage::{Machine, Rehearsal, Stage};
use super::{LogLine, PipelineError, Pipelines, batch};

/// Messages that came within it are run at one instant.
const INSTANT: Duration = Duration::from_secs(1);

/// What is tried, and on what.
#[derive(Debug, Clone)]
pub struct DryRunSpec {
    /// The plugin.
    pub plugin: String,
    /// The version that is tried: a label, or `latest`.
    pub version: String,
    /// Compared with this version in the place of the one that the stage runs.
    pub against: Option<String>,
    /// In the place of the stage's config.
    pub config: Option<Value>,
    /// Whose stage.
    pub scope: Scope,
    /// Which of its stages; where it has one of this plugin, that.
    pub stage: Option<String>,
    /// The messages' topic.
    pub topic: TopicName,
    /// Its `maxMessageSize`.
    pub payload_bytes_max: u64,
    /// What the stages' randomness follows from.
    pub seed: u64,
    /// Whether the messages have passed the stages before.
    pub has_passed: bool,
}

/// What a version made of the messages.
#[derive(Debug, Clone)]
pub struct Outcomes {
    /// The version's label.
    pub version: String,
    /// Hex SHA-256 of its component.
    pub digest: String,
    /// Counts, and how long a message took.
    pub figures: Figures,
    /// What it failed of.
    pub faults: BTreeMap<&'static str, u64>,
    /// Time in it, of all messages.
    pub took: Duration,
    /// Bytes of guest memory at most.
    pub memory_bytes: usize,
}

/// What came of it, so far.
#[derive(Debug, Clone)]
pub struct DryRunReport {
    /// The stage that the version is tried on; none where no stage of the pipeline runs the plugin.
    pub stage: Option<String>,
    /// Messages that were read.
    pub messages: u64,
    /// Those that a stage before this one did not let through.
    pub not_reached: u64,
    /// Of the version that is tried.
    pub candidate: Outcomes,
    /// Of what it is compared with; none where that is the message as it came.
    pub stable: Option<Outcomes>,
    /// How the two compare.
    pub compared: Compared,
    /// Values of plugins that found no room: what comes behind may be other than it would.
    pub values_lost: u64,
    /// What the version that is tried said last.
    pub log: Vec<LogLine>,
}

/// See the module.
#[derive(Debug)]
pub struct DryRun {
    scope: Scope,
    topic: TopicName,
    payload_bytes_max: u64,
    clock: Clock,
    stage: Option<String>,
    before: Option<Revision>,
    candidate: Arm,
    stable: Option<Arm>,
    compared: Compared,
    log: Arc<PluginLog>,
    messages: u64,
    not_reached: u64,
}

/// A version and what it has made so far.
#[derive(Debug)]
struct Arm {
    stage: Arc<Stage>,
    alone: Revision,
    values: Option<Arc<Scratch>>,
    figures: Figures,
    faults: BTreeMap<&'static str, u64>,
    took: Duration,
}

impl Pipelines {
    /// Makes ready what is to be tried.
    ///
    /// # Errors
    /// [`PipelineError::Invalid`] with pointers into the request; [`PipelineError::NotNow`] while there is no room.
    pub async fn dry_run(&self, spec: DryRunSpec) -> Result<DryRun, PipelineError> {
        let record = self.current(spec.scope);
        let all = record.map(|record| record.resolved).unwrap_or_default();
        let place = found(&all, &spec)?;
        let stable = place.map(|at| all[at].stable());
        let clock = Clock::fixed(Timestamp(0));
        let log = PluginLog::apart(spec.plugin.as_str().into(), clock.clone());
        let stable_resolved = match &spec.against {
            None => stable.clone(),
            Some(label) => Some(self.resolved(&spec, stable.as_ref(), (label, None), "/against").await?),
        };
        let resolved = self.resolved(&spec, stable.as_ref(), (&spec.version, spec.config.clone()), "/version").await?;
        let candidate = self.arm(&spec, resolved, (&log, &clock), "/config").await?;
        let stable = match stable_resolved {
            None => None,
            Some(resolved) => {
                let unheard = PluginLog::apart(spec.plugin.as_str().into(), clock.clone());
                Some(self.arm(&spec, resolved, (&unheard, &clock), "/against").await?)
            }
        };
        let before = place.filter(|at| *at > 0 && !spec.has_passed).map_or(&[][..], |at| &all[..at]);
        let before = self.stages_before(&spec, before, &clock).await?;
        Ok(DryRun {
            scope: spec.scope,
            topic: spec.topic,
            payload_bytes_max: spec.payload_bytes_max,
            clock,
            stage: place.map(|at| all[at].spec.name.clone()),
            before,
            candidate,
            stable,
            compared: Compared::default(),
            log,
            messages: 0,
            not_reached: 0,
        })
    }

    /// The stage with this version and config in the place of its own.
    async fn resolved(
        &self,
        spec: &DryRunSpec,
        stage: Option<&ResolvedStage>,
        (label, config): (&str, Option<Value>),
        pointer: &str,
    ) -> Result<ResolvedStage, PipelineError> {
        let mut of = match stage {
            Some(stage) => stage.spec.clone(),
            None => alone(&spec.plugin),
        };
        of.version = label.to_owned();
        of.config = config.unwrap_or(of.config);
        // What it rejects or fails on is to be seen as that.
        (of.on_reject, of.on_fault) = (OnReject::Reject, OnFault::Reject);
        let of = self.with_schema(&of).await.and_then(|of| self.resolve(&of, false));
        let at = |field: &str| if field == "version" { pointer.to_owned() } else { format!("/{field}") };
        of.map_err(|(field, why)| PipelineError::Invalid(vec![(at(field), why)]))
    }

    async fn arm(
        &self,
        spec: &DryRunSpec,
        resolved: ResolvedStage,
        (log, clock): (&Arc<PluginLog>, &Clock),
        pointer: &str,
    ) -> Result<Arm, PipelineError> {
        let values = values_of(spec);
        let machine = self.rehearsing(spec.seed, values.clone(), clock)?;
        let stage = self.build_with(&resolved, (Arc::clone(log), &machine)).await;
        let stage = stage.map_err(|why| unbuilt(why, pointer))?;
        let steps = vec![Step { stage: Arc::clone(&stage), candidate: None }];
        let alone = Revision { number: 0, record: None, steps, machine };
        Ok(Arm { stage, alone, values, figures: Figures::default(), faults: BTreeMap::new(), took: Duration::ZERO })
    }

    /// What messages pass before they come to the stage.
    async fn stages_before(
        &self,
        spec: &DryRunSpec,
        stages: &[ResolvedStage],
        clock: &Clock,
    ) -> Result<Option<Revision>, PipelineError> {
        if stages.is_empty() {
            return Ok(None);
        }
        let machine = self.rehearsing(spec.seed, values_of(spec), clock)?;
        let mut steps = Vec::with_capacity(stages.len());
        for resolved in stages {
            let unheard = PluginLog::apart(resolved.spec.plugin.as_str().into(), clock.clone());
            let stage = self.build_with(&resolved.stable(), (unheard, &machine)).await;
            let stage = stage.map_err(|why| {
                PipelineError::NotNow(format!(
                    "the stage '{}', which comes before, can't run: {why}",
                    resolved.spec.name
                ))
            })?;
            steps.push(Step { stage, candidate: None });
        }
        Ok(Some(Revision { number: 0, record: None, steps, machine }))
    }

    fn rehearsing(
        &self,
        seed: u64,
        values: Option<Arc<Scratch>>,
        clock: &Clock,
    ) -> Result<Arc<Machine>, PipelineError> {
        let registry = Registry::new();
        let internal = |error: prometheus::Error| PipelineError::Internal(error.to_string());
        let figures = (Metrics::new(&registry).map_err(internal)?, FigureFamilies::new(&registry).map_err(internal)?);
        let (ticker, secrets) = (Arc::clone(&self.machine.ticker), self.machine.secrets.clone());
        let machine = Machine::new(ticker, clock.clone(), figures, Some(self.catalog.clone()), secrets);
        if let Some(store) = self.machine.store.get() {
            // It is new: nobody was first.
            let _first = machine.store.set(Arc::clone(store));
        }
        Ok(Arc::new(machine.rehearsing(Rehearsal { seed, values })))
    }
}

/// The place of the stage that is meant; none where no stage runs the plugin.
fn found(all: &[ResolvedStage], spec: &DryRunSpec) -> Result<Option<usize>, PipelineError> {
    let refused = |why: String| Err(PipelineError::Invalid(vec![("/stage".to_owned(), why)]));
    let own = || all.iter().enumerate().filter(|(_, stage)| !stage.implicit);
    if let Some(name) = &spec.stage {
        return match own().find(|(_, stage)| stage.spec.name == *name) {
            None => refused(format!("the pipeline has no stage '{name}'")),
            Some((_, stage)) if stage.spec.plugin != spec.plugin => {
                refused(format!("the stage '{name}' runs the plugin '{}'", stage.spec.plugin))
            }
            Some((at, _)) => Ok(Some(at)),
        };
    }
    let places: Vec<usize> = own().filter(|(_, stage)| stage.spec.plugin == spec.plugin).map(|(at, _)| at).collect();
    match places[..] {
        [] => Ok(None),
        [at] => Ok(Some(at)),
        _ => {
            let names: Vec<&str> = places.iter().map(|at| all[*at].spec.name.as_str()).collect();
            refused(format!("the pipeline has several stages of this plugin, name one of {}", names.join(", ")))
        }
    }
}

/// New ones; none on the way out, where values are those of now, and are only read.
fn values_of(spec: &DryRunSpec) -> Option<Arc<Scratch>> {
    matches!(spec.scope, Scope::Topic(_)).then(Arc::default)
}

/// A stage of a plugin that the pipeline does not have.
fn alone(plugin: &str) -> StageSpec {
    let fields = serde_json::json!({ "name": "dry-run", "plugin": plugin });
    serde_json::from_value(fields).expect("a stage needs no more than a name and a plugin")
}

fn unbuilt(why: NotBuilt, pointer: &str) -> PipelineError {
    let why_else = why.to_string();
    refusal(vec![(0, why)], |_| pointer.to_owned()).unwrap_or(PipelineError::NotNow(why_else))
}

impl DryRun {
    /// Runs messages, few enough for one batch. Blocks.
    pub fn run(&mut self, mut drafts: Vec<Draft>) {
        // What happens in it is no event of the broker's.
        tracing::dispatcher::with_default(&Dispatch::none(), || {
            while let Some(first) = drafts.first() {
                let since = first.published_at;
                let later = drafts.iter().position(|draft| draft.published_at.since(since) > INSTANT);
                let rest = drafts.split_off(later.unwrap_or(drafts.len()));
                self.run_at_once(std::mem::replace(&mut drafts, rest));
            }
        });
    }

    /// Runs messages that came at nearly the same time.
    fn run_at_once(&mut self, drafts: Vec<Draft>) {
        let Some(first) = drafts.first() else { return };
        // Both see the time at which the messages came. It never goes back.
        self.clock.advance(first.published_at.since(self.clock.now()));
        self.messages += drafts.len() as u64;
        let arrived = match &self.before {
            None => drafts,
            Some(before) => {
                let values = before.machine.rehearsal.as_ref().and_then(|rehearsal| rehearsal.values.clone());
                let ran = self.pass(before, values.as_deref(), drafts.clone());
                let reached = ran.into_iter().filter(|one| one.verdict == Verdict::Pass).map(|one| one.draft);
                let reached: Vec<Draft> = reached.collect();
                self.not_reached += (drafts.len() - reached.len()) as u64;
                reached
            }
        };
        if arrived.is_empty() {
            return;
        }
        let stable = match &self.stable {
            None => arrived.iter().cloned().map(as_it_came).collect(),
            Some(arm) => self.pass(&arm.alone, arm.values.as_deref(), arrived.clone()),
        };
        let tried = self.pass(&self.candidate.alone, self.candidate.values.as_deref(), arrived.clone());
        if let Some(arm) = &mut self.stable {
            arm.count(&stable);
        }
        self.candidate.count(&tried);
        for ((draft, stable), tried) in arrived.iter().zip(stable).zip(tried) {
            self.compared.add(draft.id, &Made::of(stable), &Made::of(tried));
        }
    }

    fn pass(&self, revision: &Revision, values: Option<&Scratch>, mut drafts: Vec<Draft>) -> Vec<Processed> {
        let again = if values.is_some() { drafts.clone() } else { Vec::new() };
        let transaction = Arc::new(Transaction::new(drafts.len()));
        let run = KvRun::of_all(&transaction);
        let (growable, payload_bytes_max) = (RUN_GROWTH_BYTES_MAX, self.payload_bytes_max);
        let of = batch::Of { scope: self.scope, topic: &self.topic, payload_bytes_max, growable, kv: Some(&run) };
        let (processed, _) = batch::run(revision, of, drafts, &self.clock);
        let Some(values) = values else { return processed };
        let fate = |(at, one): (usize, &Processed)| match one.verdict {
            Verdict::Pass => Fate::Item(at),
            Verdict::Drop { .. } => Fate::Dropped,
            Verdict::Reject(_) | Verdict::Fault(_) => Fate::Refused,
        };
        let fates: Vec<Fate> = processed.iter().enumerate().map(fate).collect();
        if values.take(&transaction, &fates, self.clock.now()) || again.len() < 2 {
            return processed;
        }
        // As where messages are published: the parts one after the other, until none stands on what was turned away.
        drafts = again;
        let rest = drafts.split_off(drafts.len() / 2);
        let mut processed = self.pass(revision, Some(values), drafts);
        processed.extend(self.pass(revision, Some(values), rest));
        processed
    }

    /// Messages that may be run at once.
    #[must_use]
    pub fn batch_messages_max(&self) -> usize {
        let all = [Some(&self.candidate.alone), self.stable.as_ref().map(|arm| &arm.alone), self.before.as_ref()];
        all.into_iter().flatten().map(Revision::batch_messages_max).min().unwrap_or(1)
    }

    fn values_lost(&self) -> u64 {
        let before = self.before.as_ref().and_then(|before| before.machine.rehearsal.as_ref()?.values.as_deref());
        let arms = [Some(&self.candidate), self.stable.as_ref()].into_iter().flatten();
        arms.filter_map(|arm| arm.values.as_deref()).chain(before).map(Scratch::lost).sum()
    }

    /// What came of it so far.
    #[must_use]
    pub fn report(&self) -> DryRunReport {
        DryRunReport {
            stage: self.stage.clone(),
            messages: self.messages,
            not_reached: self.not_reached,
            candidate: self.candidate.outcomes(),
            stable: self.stable.as_ref().map(Arm::outcomes),
            compared: self.compared.clone(),
            values_lost: self.values_lost(),
            log: self.log.recent(),
        }
    }
}

impl Arm {
    fn count(&mut self, processed: &[Processed]) {
        for one in processed {
            let word = one.trail.last();
            let (said, took) = word.map_or((Said::Pass, Duration::ZERO), |word| (word.word, word.took));
            self.figures.count(said, one.emitted.len());
            self.figures.latency.record(took);
            self.took += took;
            if let Verdict::Fault(fault) = &one.verdict {
                *self.faults.entry(FaultCause::as_str(fault.cause)).or_default() += 1;
            }
        }
    }

    fn outcomes(&self) -> Outcomes {
        Outcomes {
            version: self.stage.resolved.version.clone(),
            digest: self.stage.resolved.digest.clone(),
            figures: self.figures.clone(),
            faults: self.faults.clone(),
            took: self.took,
            memory_bytes: self.stage.memory_peak(),
        }
    }
}

/// What no stage has looked at.
fn as_it_came(draft: Draft) -> Processed {
    Processed { draft, verdict: Verdict::Pass, emitted: Vec::new(), trail: Trail::new() }
}
