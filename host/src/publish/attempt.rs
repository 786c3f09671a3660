//! Storing what was published: the stages run, their verdicts become one append. Invariant: a batch is stored as its stages
//! left it on the revision that it names and on the values that they have read, or it is run again; each way of running again
//! has a bound. Never stores a part of what the stages saw as one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::answer::{answer, fail_all, published};
use super::emit::{self, keeps_writes};
use super::{Answer, PublishError, Published, Publisher, Work, draft, message, places};
use crate::catalog::model::{Scope, Topic};
use crate::clock::Timestamp;
use crate::message::Position;
use crate::pipeline::KV_RERUNS_MAX;
use crate::pipeline::draft::Draft;
use crate::pipeline::kv::{Fate, KvRun, Transaction};
use crate::store::{AppendBatch, AppendItem, AppendOutcome, Entry, KvUse, MessageStore, StoreError, ValueTurn};
use crate::telemetry::Stopwatch;

/// How often a batch is run again because its pipeline changed under it. Each change is an operator's act; so many in
/// the time of one batch do not happen, and an endless loop must not.
const REVISION_RETRIES_MAX: usize = 8;
/// How long a turn among brokers is kept. The store ends one by itself soon after.
const TURN_MAX: Duration = Duration::from_secs(3);

/// What is to be stored of a batch, and what is told once it is.
#[derive(Default)]
struct Built {
    revision: u64,
    items: Vec<AppendItem>,
    /// One for each item.
    answers: Vec<(usize, Published)>,
    /// Of those that were dropped without a key: there is nothing to store of them but values.
    unstored: Vec<(usize, Published)>,
    /// What emitted messages were as they came to topics that keep that, and the items that they are stored with.
    arrived: Vec<(usize, Arc<Topic>, Draft)>,
    values: KvUse,
}

/// What became of an attempt.
enum Outcome {
    /// Everyone has their result.
    Done,
    /// The pipeline has changed meanwhile.
    Stale {
        ran_on: u64,
        error: StoreError,
    },
    /// Others have changed values that were read.
    Conflict {
        /// Some of its messages stand on what others of them have set: it may go in parts.
        linked: bool,
        /// Where all that it uses is.
        namespaces: Vec<Arc<str>>,
    },
    /// Messages stand on what was set for one that is turned away: only in parts can they be stored.
    Broken,
    Failed(PublishError),
}

/// A place among the requests on a topic whose stages keep values.
enum Turn {
    Shared { _held: OwnedRwLockReadGuard<()> },
    Alone { _held: OwnedRwLockWriteGuard<()> },
}

/// The turns of a topic, and the one held. Without them conflicts are met all the same; with them a request that has met one
/// goes alone the next time, so that many that want the same key do not keep each other from it.
struct Turns {
    all: Option<Arc<RwLock<()>>>,
    held: Option<Turn>,
    among_brokers: Option<AmongBrokers>,
}

/// What a request has to itself among all brokers.
struct AmongBrokers {
    namespaces: Vec<Arc<str>>,
    since: Stopwatch,
    _turn: ValueTurn,
}

impl Turns {
    async fn shared(&mut self) {
        if let (Some(all), None) = (&self.all, &self.held) {
            self.held = Some(Turn::Shared { _held: Arc::clone(all).read_owned().await });
        }
    }

    /// Alone among the requests here.
    async fn alone(&mut self) {
        if matches!(self.held, Some(Turn::Alone { .. })) {
            return;
        }
        self.held = None;
        if let Some(all) = &self.all {
            self.held = Some(Turn::Alone { _held: Arc::clone(all).write_owned().await });
        }
    }

    /// And among those of other brokers that want these values.
    async fn alone_among_brokers(&mut self, store: &dyn MessageStore, namespaces: Vec<Arc<str>>) {
        self.alone().await;
        self.among_brokers = None;
        if let Some(_turn) = store.value_turn(namespaces.clone()).await {
            self.among_brokers = Some(AmongBrokers { namespaces, since: Stopwatch::start(), _turn });
        }
    }

    /// What nobody else uses now. A turn is given up before it ends by itself: then others have it.
    fn namespaces(&mut self) -> Vec<Arc<str>> {
        self.among_brokers.take_if(|turn| turn.since.elapsed() >= TURN_MAX);
        self.among_brokers.as_ref().map_or_else(Vec::new, |turn| turn.namespaces.clone())
    }
}

impl Publisher {
    /// Runs the stages and appends, again whenever the pipeline or what was read changed in between; in parts where some
    /// messages stand on what was set for others that are turned away.
    pub(super) async fn attempt(
        &self,
        topic: &Arc<Topic>,
        work: Vec<Work>,
        (atomic, replays): (bool, Vec<Position>),
        results: &mut [Answer],
    ) {
        let all = self.pipelines.value_turns(Scope::Topic(topic.id));
        let mut turns = Turns { all, held: None, among_brokers: None };
        // Bounded: a part is followed by at most its two halves.
        let mut waiting = vec![work];
        while let Some(work) = waiting.pop() {
            let Some(mut rest) = self.attempt_part(topic, work, (atomic, &replays), (&mut turns, &mut *results)).await
            else {
                continue;
            };
            // In order: the second half sees what was stored of the first one.
            let second = rest.split_off(rest.len() / 2);
            waiting.extend([second, rest]);
        }
    }

    /// Knows of what a batch of this scope that ran on a revision was refused for as outdated. In vain, it is not to be tried again.
    pub(crate) async fn knows_more_than(&self, scope: Scope, ran_on: u64) -> bool {
        // What was changed here is known, whatever else is under way that hearing would have to wait for. A batch that
        // emits to a topic which has changed waits all the same.
        let is_known = || self.pipelines.revision(scope) > ran_on;
        is_known() || self.directory.hear_of_changes().await || is_known()
    }

    /// Stores a part, or returns it if it can only be stored in parts of its own.
    async fn attempt_part(
        &self,
        topic: &Arc<Topic>,
        mut work: Vec<Work>,
        (atomic, replays): (bool, &[Position]),
        (turns, results): (&mut Turns, &mut [Answer]),
    ) -> Option<Vec<Work>> {
        let (mut stale, mut conflicts) = (0, 0);
        turns.shared().await;
        while !work.is_empty() {
            let refuses = conflicts > KV_RERUNS_MAX;
            let parts = work.len() > 1 && !atomic && !refuses;
            let values = if refuses { Transaction::refusing() } else { Transaction::new(work.len()) };
            let turn = turns.namespaces();
            let outcome = self.attempt_once(topic, &work, (Arc::new(values), turn), (atomic, replays), results).await;
            let linked = match outcome {
                Outcome::Done => return None,
                Outcome::Stale { ran_on, error } => {
                    stale += 1;
                    if stale > REVISION_RETRIES_MAX || !self.knows_more_than(Scope::Topic(topic.id), ran_on).await {
                        fail_all(places(&work), &error.into(), results);
                        return None;
                    }
                    continue;
                }
                Outcome::Failed(error) => {
                    fail_all(places(&work), &error, results);
                    return None;
                }
                Outcome::Broken | Outcome::Conflict { .. } if refuses => {
                    fail_all(places(&work), &StoreError::KvConflict.into(), results);
                    return None;
                }
                Outcome::Broken => {
                    turns.alone().await;
                    true
                }
                Outcome::Conflict { linked, namespaces } => {
                    turns.alone_among_brokers(&*self.store, namespaces).await;
                    linked
                }
            };
            if parts && linked {
                return Some(work);
            }
            conflicts += 1;
            // One of them may have been stored meanwhile, by a repeat of its request.
            if let Err(error) = self.answer_duplicates(topic, &mut work, results).await {
                fail_all(places(&work), &PublishError::Store(error), results);
                return None;
            }
        }
        None
    }

    async fn attempt_once(
        &self,
        topic: &Arc<Topic>,
        work: &[Work],
        (values, turn): (Arc<Transaction>, Vec<Arc<str>>),
        (atomic, replays): (bool, &[Position]),
        results: &mut [Answer],
    ) -> Outcome {
        let mut built = match self.build(topic, work, &values, results).await {
            Ok(Some(built)) => built,
            // Those that were turned away have their result; an atomic batch ends with the first of them.
            Ok(None) if atomic => return Outcome::Done,
            Ok(None) => return Outcome::Broken,
            Err(error) => return Outcome::Failed(error),
        };
        if atomic && built.items.len() + built.unstored.len() < work.len() {
            return Outcome::Done; // Those that were turned away have their result; the others were not attempted.
        }
        if built.items.is_empty() && replays.is_empty() && built.values.written.is_empty() {
            built.unstored.into_iter().for_each(|(index, published)| results[index] = Some(Ok(published)));
            return Outcome::Done;
        }
        built.values.turn = turn;
        let linked = !built.values.linked.is_empty();
        let (ran_on, namespaces) = (built.revision, built.values.namespaces().into_iter().collect());
        match self.append(topic, built, (atomic, replays.to_vec()), results).await {
            Ok(()) => Outcome::Done,
            Err(error @ StoreError::StaleRevision { .. }) => Outcome::Stale { ran_on, error },
            Err(StoreError::KvConflict) => Outcome::Conflict { linked, namespaces },
            Err(other) => Outcome::Failed(PublishError::Store(other)),
        }
    }

    /// Runs the stages and turns their verdicts into what is to be stored; those that are refused get their result here.
    /// None if some of the others stand on what was set for those.
    async fn build(
        &self,
        topic: &Arc<Topic>,
        work: &[Work],
        values: &Arc<Transaction>,
        results: &mut [Answer],
    ) -> Result<Option<Built>, PublishError> {
        let scope = Scope::Topic(topic.id);
        if let Some(revision) = self.pipelines.revision_without_stages(scope) {
            return Ok(Some(untouched(topic, work, (revision, self.clock.now()))));
        }
        let drafts: Vec<Draft> = work.iter().map(draft).collect();
        let ran = self.pipelines.run_with(scope, topic, drafts, Some(KvRun::of_all(values))).await;
        let ran = ran.map_err(|error| PublishError::Pipeline(Arc::new(error)))?;
        let mut built = Built { revision: ran.revision, ..Built::default() };
        let mut fates = Vec::with_capacity(work.len());
        let mut room = emit::EMITTED_BYTES_MAX;
        for (place, (work, mut processed)) in work.iter().zip(ran.processed).enumerate() {
            let trail = std::mem::take(&mut processed.trail);
            let kept = keeps_writes(topic, &processed.draft, &processed.verdict);
            let mut arrived = Vec::new();
            let mut beside = emit::Beside { room: &mut room, values, message: place, arrived: &mut arrived };
            let mut fate = Fate::Refused;
            match self.decide(topic, work, (ran.revision, processed), &mut beside).await {
                Ok((published, entry, emitted)) => {
                    let published = Published { trail, ..published };
                    if matches!(entry, Entry::Dropped { .. }) && work.dedup.is_none() {
                        built.unstored.push((work.index, published));
                        fate = Fate::Dropped;
                    } else {
                        let item = built.items.len();
                        fate = Fate::Item(item);
                        built.arrived.extend(arrived.into_iter().map(|(topic, draft)| (item, topic, draft)));
                        built.items.push(AppendItem { dedup: work.dedup.clone(), entry, emitted });
                        built.answers.push((work.index, published));
                    }
                }
                Err(error) => results[work.index] = Some(Err(error)),
            }
            fates.push(if kept { fate } else { Fate::Refused });
        }
        Ok(values.into_use(&fates).map(|values| Built { values, ..built }))
    }

    async fn append(
        &self,
        topic: &Arc<Topic>,
        built: Built,
        (atomic, replays): (bool, Vec<Position>),
        results: &mut [Answer],
    ) -> Result<(), StoreError> {
        let Built { revision, items, answers, unstored, arrived, values } = built;
        let (topic_id, kv) = (topic.id, Vec::new());
        let batch = AppendBatch { topic: topic_id, revision, items, all_or_nothing: atomic, kv, values, replays };
        let outcomes = self.store.append(batch).await?;
        for (index, published) in unstored {
            results[index] = Some(Ok(published));
        }
        if outcomes.iter().any(|outcome| matches!(outcome, AppendOutcome::TopicFull)) {
            self.events.topic_full(topic);
        }
        for (item, target, draft) in arrived {
            // With one that was stored before, or is refused, nothing came.
            if matches!(outcomes.get(item), Some(AppendOutcome::Stored(_) | AppendOutcome::Scheduled)) {
                self.capture.take(&target, || std::iter::once(draft));
            }
        }
        for ((index, published), outcome) in answers.into_iter().zip(outcomes) {
            results[index] = Some(answer(topic, published, outcome));
        }
        Ok(())
    }
}

/// What messages become that no stage looks at.
fn untouched(topic: &Arc<Topic>, work: &[Work], (revision, now): (u64, Timestamp)) -> Built {
    let (mut items, mut answers) = (Vec::with_capacity(work.len()), Vec::with_capacity(work.len()));
    for work in work {
        let due = work.request.deliver_at.filter(|due| *due > now);
        let message = message(work, draft(work), (work.id, revision, None));
        let entry = Entry::Log { partition: work.id.partition(), message, due, target: None };
        items.push(AppendItem { dedup: work.dedup.clone(), entry, emitted: Vec::new() });
        answers.push((work.index, published(topic, work, work.came, revision)));
    }
    Built { revision, items, answers, ..Built::default() }
}
