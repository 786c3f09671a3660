//! One batch through all stages of one revision. Invariant: every message gets exactly one verdict, in the order they
//! came; a stage's fault on one message leaves its neighbours' verdicts as they would have been alone. Never blocks on
//! anything but the plugins' own work.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use smallvec::{SmallVec, smallvec};

use crate::catalog::model::{OnFault, Scope};
use crate::clock::Clock;
use crate::message::{TopicId, TopicName};
use crate::store::kv_namespace;
use crate::telemetry::Stopwatch;

use super::breaker::Admission;
use super::call::{Call, Edit, Powers};
use super::draft::{Draft, FaultCause, Processed, Rejection, Said, StageFault, StageWord, Trail, Verdict};
use super::instance::{Failure, Instance};
use super::kv::{CallValues, KvRun};
use super::limits::{CALL_BYTES_MAX, KV_RERUNS_MAX, PAYLOAD_BYTES_MAX, PRODUCED_BYTES_MAX, RUN_GROWTH_BYTES_MAX};
use super::plugin_log::LogLevel;
use super::revision::Revision;
use super::rollout::compare::{self, Made};
use super::rollout::{Arm, Candidate, Figures, Job, Shadow, Step, Trial};
use super::stage::Stage;
use super::verdicts::Told;

/// A batch under way.
pub struct Batch<'a> {
    revision: &'a Revision,
    of: Of<'a>,
    shadow: Option<&'a Shadow>,
    topic_id: TopicId,
    clock: &'a Clock,
    outbound: bool,
    /// None on the way out.
    kv: Option<KvRun>,
    payload_bytes_max: usize,
    /// Those that still go on, in order.
    items: Vec<Processed>,
    /// Where they stood in the run.
    places: Vec<usize>,
    /// Those that don't, with their places, stage after stage.
    gone: Vec<(usize, Processed)>,
    /// How many of them the last stage has not seen.
    gone_before: usize,
    producible: u64,
    /// Bytes that the messages may still grow by, and that they have grown by.
    growable: u64,
    grown: u64,
}

/// Whose messages a batch has, and what may become of them.
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    /// Whose stages.
    pub scope: Scope,
    /// The messages' topic.
    pub topic: &'a TopicName,
    /// The topic's `maxMessageSize`: a stage may not make what could not be published.
    pub payload_bytes_max: u64,
    /// Bytes that the messages may grow by, all together.
    pub growable: u64,
    /// What their stages do with values is part of this; none on the way out, and where it is thrown away.
    pub kv: Option<&'a KvRun>,
}

/// Parts of a batch, usually one.
type Windows = SmallVec<[Range<usize>; 1]>;

/// What a stage said of one message; nothing, if it left it alone.
enum Word {
    Edit(Option<Box<Edit>>),
    Fault(Failure),
}

/// Runs `drafts` through the stages of `revision`; also answers how many bytes they have grown by.
#[must_use]
pub fn run(revision: &Revision, of: Of<'_>, drafts: Vec<Draft>, clock: &Clock) -> (Vec<Processed>, u64) {
    run_with(revision, of, drafts, (clock, None))
}

/// The same, with a place for copies that versions are tried on.
#[must_use]
pub fn run_with(
    revision: &Revision,
    of: Of<'_>,
    drafts: Vec<Draft>,
    (clock, shadow): (&Clock, Option<&Shadow>),
) -> (Vec<Processed>, u64) {
    let len = drafts.len();
    let item = |draft| Processed { draft, verdict: Verdict::Pass, emitted: Vec::new(), trail: Trail::new() };
    let outbound = matches!(of.scope, Scope::Subscription(..));
    let values = || of.kv.cloned().unwrap_or_else(|| KvRun::detached(len));
    let mut batch = Batch {
        revision,
        of,
        shadow,
        kv: (!outbound && revision.keeps_values()).then(values),
        topic_id: topic_of(of.scope),
        clock,
        outbound,
        payload_bytes_max: usize::try_from(of.payload_bytes_max).unwrap_or(usize::MAX).min(PAYLOAD_BYTES_MAX),
        items: drafts.into_iter().map(item).collect(),
        places: (0..len).collect(),
        gone: Vec::new(),
        gone_before: 0,
        producible: PRODUCED_BYTES_MAX,
        growable: of.growable,
        grown: 0,
    };
    for step in &revision.steps {
        if batch.items.is_empty() {
            break;
        }
        batch.step(step);
    }
    let grown = batch.grown;
    (batch.finish(), grown)
}

impl Batch<'_> {
    fn step(&mut self, Step { stage, candidate }: &Step) {
        match candidate {
            None => self.stage(stage, None),
            Some(candidate) if candidate.is_canary() => {
                let (tried, others) = self.placed().partition(|(_, item)| candidate.takes(item.draft.lot()));
                self.place(others);
                self.stage(stage, Some((&candidate.trial, Arm::Stable)));
                let mut others: Vec<_> = self.placed().collect();
                self.place(tried);
                self.stage(&candidate.stage, Some((&candidate.trial, Arm::Candidate)));
                others.extend(self.placed());
                others.sort_unstable_by_key(|(at, _)| *at);
                self.place(others);
            }
            Some(candidate) => {
                let copies = self.copies(candidate);
                self.stage(stage, None);
                self.hand_over(candidate, copies);
            }
        }
    }

    /// Those that go on, taken out with their places.
    fn placed(&mut self) -> impl Iterator<Item = (usize, Processed)> + use<> {
        std::mem::take(&mut self.places).into_iter().zip(std::mem::take(&mut self.items))
    }

    fn place(&mut self, items: Vec<(usize, Processed)>) {
        (self.places, self.items) = items.into_iter().unzip();
    }

    /// The messages that go on, with their places.
    fn going_on(&self) -> impl Iterator<Item = (usize, &Processed)> {
        self.places.iter().copied().zip(&self.items)
    }

    /// Of the messages that a version is tried on beside the stage's own, as they come: with their place, and how much was
    /// emitted with them before.
    fn copies(&self, candidate: &Candidate) -> Vec<(usize, usize, Draft)> {
        let Some(shadow) = self.shadow else { return Vec::new() };
        let taken = || self.going_on().filter(|(_, item)| candidate.takes(item.draft.lot()));
        let count = taken().count();
        if !shadow.has_room(count) {
            candidate.trial.shed(count);
            return Vec::new();
        }
        taken().map(|(at, item)| (at, item.emitted.len(), item.draft.clone())).collect()
    }

    fn hand_over(&self, candidate: &Arc<Candidate>, copies: Vec<(usize, usize, Draft)>) {
        let Some(shadow) = self.shadow.filter(|_| !copies.is_empty()) else { return };
        let messages = copies.into_iter().map(|(at, emitted, before)| (before, self.made(at, emitted).0)).collect();
        let Of { scope, topic, payload_bytes_max, .. } = self.of;
        let job = Job { candidate: Arc::clone(candidate), scope, topic: topic.clone(), payload_bytes_max, messages };
        shadow.push(job, self.clock);
    }

    /// What the stage before this moment made of the message at `at`, which had `emitted` messages with it before.
    fn made(&self, at: usize, emitted: usize) -> (Made, &Verdict) {
        let gone = &self.gone[self.gone_before..];
        let item = match self.places.binary_search(&at) {
            Ok(place) => Some(&self.items[place]),
            Err(_) => gone.binary_search_by_key(&at, |(at, _)| *at).ok().map(|place| &gone[place].1),
        };
        let item = item.expect("a message that the stage has seen goes on or does not");
        let (said, took) = item.trail.last().map_or((Said::Pass, Duration::ZERO), |word| (word.word, word.took));
        let emitted = if item.verdict == Verdict::Pass { item.emitted.get(emitted..) } else { None };
        let emitted = emitted.unwrap_or_default().to_vec();
        (Made { said, why: compare::why(&item.verdict), draft: item.draft.clone(), emitted, took }, &item.verdict)
    }

    /// Of the messages that a stage is about to see, as many as those who follow it are told of.
    fn followed(&self, stage: &Stage) -> Vec<(usize, usize, Draft)> {
        // Only what is live has a place for copies.
        if self.shadow.is_none() || stage.log.followed().is_none() {
            return Vec::new();
        }
        let room = stage.log.room_for(self.of.topic, self.items.len());
        self.going_on().take(room).map(|(at, item)| (at, item.emitted.len(), item.draft.clone())).collect()
    }

    fn tell(&self, stage: &Stage, followed: Vec<(usize, usize, Draft)>) {
        let Some((from, verdicts)) = stage.log.followed().filter(|_| !followed.is_empty()) else { return };
        for (at, emitted, draft) in followed {
            let (after, verdict) = self.made(at, emitted);
            let before = Made { said: Said::Pass, why: None, draft, emitted: Vec::new(), took: Duration::ZERO };
            let when = (self.clock.now(), self.of.topic.clone(), Arc::clone(from));
            verdicts.tell(Told::new(when, before, after, verdict));
        }
    }

    fn stage(&mut self, stage: &Arc<Stage>, trial: Option<(&Trial, Arm)>) {
        if self.items.is_empty() {
            return;
        }
        let span = self.span(stage);
        let _entered = span.enter();
        stage.log.runs_on(self.of.topic);
        let followed = self.followed(stage);
        let watch = Stopwatch::start();
        let mut words: Vec<Option<Word>> = self.items.iter().map(|_| None).collect();
        let mut instance = None;
        for window in self.windows(stage.call_messages()) {
            self.isolate(stage, &mut instance, window, &mut words);
        }
        if let Some(instance) = instance {
            stage.put_back(instance);
        }
        let took = watch.elapsed();
        stage.metrics.runs.inc();
        stage.metrics.run_seconds.observe(took.as_secs_f64());
        let share = took / u32::try_from(self.items.len()).unwrap_or(u32::MAX).max(1);
        let figures = self.judge(stage, words, share);
        stage.metrics.count(&figures);
        self.tell(stage, followed);
        if let Some((trial, arm)) = trial {
            trial.ran(arm, self.clock.now(), figures, share);
        }
    }

    /// Of a trace that is exported; nobody else would see it.
    fn span(&self, stage: &Stage) -> tracing::Span {
        if tracing::Span::current().is_disabled() {
            return tracing::Span::none();
        }
        tracing::info_span!(
            "plugin stage",
            "messaging.destination.name" = %self.of.topic,
            plugin = &*stage.plugin,
            version = &*stage.version,
            stage = &*stage.name,
            revision = self.revision.number,
            "messaging.batch.message_count" = self.items.len(),
        )
    }

    /// Cuts the batch into calls: earlier stages may have made payloads larger, and this one may want fewer at once.
    fn windows(&self, messages_max: usize) -> Windows {
        let (mut windows, mut start, mut bytes) = (Windows::new(), 0, 0);
        for (at, item) in self.items.iter().enumerate() {
            let more = item.draft.payload.len();
            if at > start && (at - start >= messages_max || bytes + more > CALL_BYTES_MAX) {
                windows.push(start..at);
                (start, bytes) = (at, 0);
            }
            bytes += more;
        }
        windows.push(start..self.items.len());
        windows
    }

    /// Calls the stage with `window`; where that fails, with parts of it, until the fault is pinned on messages.
    fn isolate(
        &mut self,
        stage: &Arc<Stage>,
        instance: &mut Option<Instance>,
        window: Range<usize>,
        words: &mut [Option<Word>],
    ) {
        let whole = window.len();
        let mut timed_out_whole = false;
        // Bounded: a window is followed by at most its own messages one by one, or by halves of itself.
        let mut waiting: Windows = smallvec![window];
        while let Some(window) = waiting.pop() {
            let Some(window) = self.admitted(stage, window, &mut waiting, words) else { continue };
            match self.call(stage, instance, window.clone(), words) {
                Ok(()) => stage.ask_more(window.len()),
                Err((failure, Blame::Stage)) => {
                    self.failed(stage, None, &failure);
                    fault(words, window, &failure);
                }
                Err((failure, Blame::Messages)) if window.len() == 1 => {
                    self.failed(stage, Some(&self.items[window.start].draft), &failure);
                    timed_out_whole = false;
                    fault(words, window, &failure);
                }
                // Each part would cost the whole timeout again, so straight to single messages.
                Err((failure, Blame::Messages)) if failure.cause == FaultCause::TimedOut => {
                    timed_out_whole |= window.len() == whole;
                    waiting.extend(window.rev().map(|at| at..at + 1));
                }
                Err((_, Blame::Messages)) => {
                    let middle = window.start + window.len() / 2;
                    waiting.push(middle..window.end);
                    waiting.push(window.start..middle);
                }
            }
        }
        if timed_out_whole {
            stage.ask_less(whole);
        }
    }

    /// What of `window` the breaker lets through now; the rest waits on, or has its word already.
    fn admitted(
        &self,
        stage: &Stage,
        window: Range<usize>,
        waiting: &mut Windows,
        words: &mut [Option<Word>],
    ) -> Option<Range<usize>> {
        match stage.breaker.admit(self.clock.now()) {
            Admission::Closed => Some(window),
            Admission::Open => {
                fault(words, window, &open(stage));
                None
            }
            Admission::Probe => {
                let first = window.start..window.start + 1;
                if window.len() > 1 {
                    waiting.push(first.end..window.end);
                }
                Some(first)
            }
        }
    }

    /// A fault has been pinned: the plugin's log has it, where its author looks, and floods are thinned out.
    fn failed(&self, stage: &Stage, message: Option<&Draft>, failure: &Failure) {
        stage.breaker.failed(self.clock.now());
        let (name, cause, detail) = (&stage.name, failure.cause.as_str(), &failure.detail);
        let text = match message {
            Some(message) => format!("the stage '{name}' failed on the message {}: {cause}: {detail}", message.id),
            None => format!("the stage '{name}' failed: {cause}: {detail}"),
        };
        stage.log.write(LogLevel::Error, text);
    }

    /// One guest call. An instance that trapped is dropped, and the next call gets a new one.
    fn call(
        &mut self,
        stage: &Arc<Stage>,
        held: &mut Option<Instance>,
        window: Range<usize>,
        words: &mut [Option<Word>],
    ) -> Result<(), (Failure, Blame)> {
        let mut instance = match held.take() {
            Some(instance) => instance,
            None => stage.instance().map_err(|failure| (failure, Blame::Stage))?,
        };
        let fresh = instance.is_fresh();
        let powers = Powers {
            stage: Arc::clone(&stage.name),
            emit_to: Arc::clone(&stage.emit_to),
            payload_bytes_max: self.payload_bytes_max,
            outbound: self.outbound,
        };
        let items = std::mem::take(&mut self.items);
        let mut call = Call::new(self.of.topic.clone(), items, window.clone(), powers, self.producible);
        call.values = self.values(stage, &call);
        let (mut call, said) = instance.process(call, stage.timeout, &self.revision.machine.ticker);
        self.items = call.items;
        let values = call.values.take();
        let failure = match said {
            Ok(()) => {
                if let Some(values) = values {
                    values.end();
                }
                *held = Some(instance);
                self.producible = call.producible;
                stage.breaker.succeeded();
                for (word, edit) in words[window].iter_mut().zip(call.edits) {
                    *word = Some(Word::Edit(edit));
                }
                return Ok(());
            }
            Err(failure) => failure,
        };
        if values.is_some_and(|values| values.was_refused()) {
            stage.dispose(instance);
            return Err((changed_too_often(), Blame::Stage));
        }
        if failure.cause == FaultCause::Failed {
            *held = Some(instance);
        } else {
            stage.dispose(instance);
            // What others left behind in the instance's memory is not this message's fault: once more in a new one.
            if failure.cause == FaultCause::OutOfMemory
                && window.len() == 1
                && !fresh
                && let Ok(fresh) = stage.start()
            {
                *held = Some(fresh);
                return self.call(stage, held, window, words);
            }
        }
        Err((failure, Blame::Messages))
    }

    /// The plugin's values, for a plugin that keeps some. On the way out they are those of the messages' topic, to read.
    fn values(&self, stage: &Stage, call: &Call) -> Option<CallValues> {
        if !stage.keeps_values {
            return None;
        }
        let machine = &self.revision.machine;
        let places = self.places[call.window.clone()].iter().copied();
        let namespace = kv_namespace(self.topic_id, &stage.plugin);
        Some(CallValues::new(namespace, (machine.values(), self.clock.clone()), self.kv.clone(), places))
    }

    /// Turns the stage's words into verdicts; who is done leaves the batch.
    fn judge(&mut self, stage: &Arc<Stage>, words: Vec<Option<Word>>, share: Duration) -> Figures {
        let mut items = std::mem::take(&mut self.items);
        let mut figures = Figures::default();
        let mut some_gone = false;
        for ((at, item), word) in self.places.iter().zip(&mut items).zip(words) {
            let word = word.expect("every window ends in a word for each of its messages");
            let emitted = item.emitted.len();
            let was_edit = matches!(word, Word::Edit(_));
            let word = grow((&mut self.growable, &mut self.grown), item, word);
            if let (true, Word::Fault(_), Some(kv)) = (was_edit, &word, &self.kv) {
                kv.undo(*at, &kv_namespace(self.topic_id, &stage.plugin));
            }
            let word = match word {
                Word::Edit(None) => Said::Pass,
                Word::Edit(Some(edit)) => edited(stage, item, *edit),
                Word::Fault(failure) => faulted(stage, item, failure),
            };
            figures.count(word, item.emitted.len() - emitted);
            item.trail.push(StageWord { stage: Arc::clone(&stage.name), word, took: share });
            some_gone |= item.verdict != Verdict::Pass;
        }
        self.items = items;
        self.gone_before = self.gone.len();
        if some_gone {
            let (go_on, gone): (Vec<_>, Vec<_>) = self.placed().partition(|(_, item)| item.verdict == Verdict::Pass);
            self.place(go_on);
            self.gone.extend(gone);
        }
        figures
    }

    fn finish(mut self) -> Vec<Processed> {
        if self.gone.is_empty() {
            return self.items;
        }
        let mut all = std::mem::take(&mut self.gone);
        all.iter_mut().for_each(|(_, item)| item.emitted.clear());
        all.extend(self.placed());
        all.sort_unstable_by_key(|(at, _)| *at);
        all.into_iter().map(|(_, item)| item).collect()
    }
}

/// An edit that makes the message larger than the request has room for is a fault.
fn grow((growable, grown): (&mut u64, &mut u64), item: &Processed, word: Word) -> Word {
    let Word::Edit(Some(edit)) = word else { return word };
    let growth = edit.growth(item);
    let Some(left) = growable.checked_sub(growth) else {
        let detail =
            format!("the stages made the messages of one request more than {RUN_GROWTH_BYTES_MAX} bytes larger");
        return Word::Fault(Failure { cause: FaultCause::Trapped, detail: detail.into() });
    };
    (*growable, *grown) = (left, *grown + growth);
    Word::Edit(Some(edit))
}

/// Whose fault a failure can be.
enum Blame {
    /// There is not even an instance.
    Stage,
    /// One of those in the window.
    Messages,
}

fn open(stage: &Stage) -> Failure {
    let detail = format!("the stage '{}' failed too often in a row and is not asked for some seconds", stage.name);
    Failure { cause: FaultCause::BreakerOpen, detail: detail.into() }
}

fn changed_too_often() -> Failure {
    let detail = format!("values that it reads were changed by others {} times in a row", KV_RERUNS_MAX + 1);
    Failure { cause: FaultCause::Failed, detail: detail.into() }
}

fn topic_of(scope: Scope) -> TopicId {
    match scope {
        Scope::Topic(topic) | Scope::Subscription(topic, _) => topic,
    }
}

fn fault(words: &mut [Option<Word>], window: Range<usize>, failure: &Failure) {
    for word in &mut words[window] {
        *word = Some(Word::Fault(failure.clone()));
    }
}

/// A rejection outweighs a drop, and either outweighs edits, which are not carried out then.
fn edited(stage: &Stage, item: &mut Processed, mut edit: Edit) -> Said {
    let name = || Arc::clone(&stage.name);
    if !edit.rejected.is_empty() {
        item.verdict = Verdict::Reject(Rejection {
            stage: name(),
            plugin: Arc::clone(&stage.plugin),
            version: Arc::clone(&stage.version),
            faults: edit.rejected,
            on: stage.resolved.spec.on_reject,
        });
        return Said::Rejected;
    }
    if let Some(reason) = edit.dropped.take() {
        item.verdict = Verdict::Drop { stage: name(), reason: reason.into() };
        return Said::Dropped;
    }
    let word = if edit.is_change() { Said::Changed } else { Said::Pass };
    edit.apply(item);
    word
}

fn faulted(stage: &Stage, item: &mut Processed, failure: Failure) -> Said {
    stage.metrics.faults(failure.cause).inc();
    let on = stage.resolved.spec.on_fault;
    if on != OnFault::Pass {
        item.verdict = Verdict::Fault(StageFault {
            stage: Arc::clone(&stage.name),
            plugin: Arc::clone(&stage.plugin),
            version: Arc::clone(&stage.version),
            cause: failure.cause,
            detail: failure.detail,
            on,
        });
    }
    Said::Fault
}
