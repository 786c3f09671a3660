//! From the store to the door: leases messages, runs the subscription's stages on them, and settles those that go no
//! further. Shared by pull and push. Invariant: a message's stages are those in force once it is leased; they run once per
//! revision, and a retry gets the same bytes, as long as there is room to remember them. Never sends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::remembered::Remembered;
use tracing::Instrument as _;

use crate::catalog::model::{Backoff, Guarantee, OnFault, OnReject, Scope, Subscription, Topic};
use crate::clock::{Clock, Timestamp};
use crate::entropy::Entropy;
use crate::message::{GroupId, Message, StageRef};
use crate::pipeline::draft::{Draft, Processed, Verdict};
use crate::pipeline::{PipelineError, Pipelines};
use crate::store::{
    Failure, Lease, LeaseRef, LeaseRequest, MessageStore, Mode, Settle, SettleRefused, Settled, Settlement, StoreError,
};

/// Leases that stages may drop before one call comes back empty: a filter that lets little through must not hold a
/// worker, and the caller's limits, for ever.
const ROUNDS_MAX: usize = 32;

/// Leases and prepares messages.
pub struct Outbound {
    store: Arc<dyn MessageStore>,
    pipelines: Arc<Pipelines>,
    clock: Clock,
    entropy: Entropy,
    changed: Remembered,
}

/// Who asks for how much.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The topic.
    pub topic: Arc<Topic>,
    /// Whose cursor.
    pub group: GroupId,
    /// The subscription, if the cursor has one.
    pub subscription: Option<Arc<Subscription>>,
    /// Messages at most.
    pub max: usize,
    /// Payload bytes at most.
    pub bytes_max: usize,
    /// How long the leases last.
    pub duration: Duration,
    /// Who holds them.
    pub holder: Arc<str>,
}

/// What may be handed out, and whether there is more.
#[derive(Debug, Default)]
pub struct Prepared {
    /// In grant order, as the subscription's stages left them.
    pub leases: Vec<Lease>,
    /// Whether more waits right now.
    pub more: bool,
}

/// Why there is nothing to hand out.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The store's word.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The pipeline's word: the leases were given back.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

impl Outbound {
    /// From `store` through `pipelines`.
    #[must_use]
    pub fn new(store: Arc<dyn MessageStore>, pipelines: Arc<Pipelines>, clock: Clock, entropy: Entropy) -> Outbound {
        Outbound { store, pipelines, clock, entropy, changed: Remembered::new() }
    }

    /// Ends leases. What is remembered for the retries of messages that have none any more is forgotten.
    ///
    /// # Errors
    /// The store's word: nothing is settled.
    pub async fn settle(&self, settles: Vec<Settle>) -> Result<Vec<Result<Settled, SettleRefused>>, StoreError> {
        let places = self.changed.places(&settles);
        let results = self.store.settle(settles).await?;
        self.changed.settled(places, &results);
        Ok(results)
    }

    /// Leases up to `ask.max` messages that pass the subscription's stages. Returns at once, also with none.
    ///
    /// # Errors
    /// Nothing is held then.
    pub async fn next(&self, ask: &Ask) -> Result<Prepared, OutboundError> {
        let at_most_once = ask.topic.settings.guarantee == Guarantee::AtMostOnce;
        let staged = || {
            let subscription = ask.subscription.as_deref()?;
            let scope = Scope::Subscription(ask.topic.id, subscription.id);
            self.pipelines.has_stages(scope).then_some((subscription, scope))
        };
        // Stages may turn a message away or fail on it, so there it is settled after them, before it is handed out.
        let mode = if at_most_once && staged().is_none() { Mode::AtMostOnce } else { Mode::AtLeastOnce };
        let request = LeaseRequest {
            topic: ask.topic.id,
            group: ask.group,
            max: ask.max,
            bytes_max: ask.bytes_max,
            duration: ask.duration,
            holder: Arc::clone(&ask.holder),
            mode,
            ordered: ask.subscription.as_ref().is_some_and(|subscription| subscription.settings.ordered),
        };
        for _ in 0..ROUNDS_MAX {
            let leased = self.store.lease(request.clone()).await?;
            let mut leases = leased.leases;
            if leases.is_empty() {
                return Ok(Prepared { leases, more: leased.more });
            }
            // Asked anew: what was set while the store looked holds for what was published since.
            if let Some(staged) = staged() {
                leases = self.through_stages(&ask.topic, staged, leases).await?;
            }
            if at_most_once && mode == Mode::AtLeastOnce {
                leases = self.settled(leases).await?;
            }
            if !leases.is_empty() {
                return Ok(Prepared { leases, more: leased.more });
            }
        }
        Ok(Prepared { leases: Vec::new(), more: true })
    }

    /// Those whose settlement is durable: only they may be handed out at most once.
    async fn settled(&self, leases: Vec<Lease>) -> Result<Vec<Lease>, OutboundError> {
        let settles = leases.iter().map(|lease| settle(lease, Settlement::Ack)).collect();
        let results = self.settle(settles).await?;
        Ok(leases.into_iter().zip(results).filter(|(_, result)| result.is_ok()).map(|(lease, _)| lease).collect())
    }

    async fn through_stages(
        &self,
        topic: &Topic,
        (subscription, scope): (&Subscription, Scope),
        leases: Vec<Lease>,
    ) -> Result<Vec<Lease>, OutboundError> {
        let (revision, remembered, processed) = match self.run(topic, (subscription, scope), &leases).await {
            Ok(ran) => ran,
            Err(error) => {
                let all = leases.iter().map(|lease| settle(lease, Settlement::Release));
                self.store.settle(all.collect()).await?;
                return Err(error.into());
            }
        };
        let mut processed = processed.into_iter();
        let (mut passing, mut settles) = (Vec::with_capacity(leases.len()), Vec::new());
        for (lease, remembered) in leases.into_iter().zip(remembered) {
            if let Some(draft) = remembered {
                passing.push(with_draft(lease, &draft));
                continue;
            }
            let processed = processed.next().expect("each message that is not remembered was run");
            match self.judge(subscription, &lease, &processed) {
                None => passing.push(self.remember(subscription, lease, processed.draft, revision)),
                Some(settlement) => settles.push(settle(&lease, settlement)),
            }
        }
        if !settles.is_empty() {
            self.settle(settles).await?;
        }
        Ok(passing)
    }

    /// What the stages make of each message, all on one revision: as remembered, or in a run of now.
    async fn run(
        &self,
        topic: &Topic,
        (subscription, scope): (&Subscription, Scope),
        leases: &[Lease],
    ) -> Result<(u64, Vec<Option<Arc<Draft>>>, Vec<Processed>), PipelineError> {
        let known = self.pipelines.revision(scope);
        let look_up = |lease: &Lease| self.changed.get(&lease.receipt, (subscription.id, known));
        let remembered: Vec<Option<Arc<Draft>>> = leases.iter().map(look_up).collect();
        let fresh = leases.iter().zip(&remembered).filter(|(_, known)| known.is_none());
        let fresh = fresh.map(|(lease, _)| draft(lease)).collect();
        let ran = self.pipelines.run(scope, topic, fresh).instrument(prepare_span(topic)).await?;
        if ran.revision == known || remembered.iter().all(Option::is_none) {
            return Ok((ran.revision, remembered, ran.processed));
        }
        // The pipeline changed in between: what is remembered is of the one before.
        let all = leases.iter().map(draft).collect();
        let ran = self.pipelines.run(scope, topic, all).instrument(prepare_span(topic)).await?;
        Ok((ran.revision, vec![None; leases.len()], ran.processed))
    }

    /// What ends the lease of a message that goes no further; `None` for one that does.
    fn judge(&self, subscription: &Subscription, lease: &Lease, processed: &Processed) -> Option<Settlement> {
        match &processed.verdict {
            Verdict::Pass => None,
            Verdict::Drop { .. } => Some(Settlement::Ack),
            Verdict::Reject(rejection) if rejection.on == OnReject::Drop => Some(Settlement::Ack),
            Verdict::Reject(rejection) => {
                let word = rejection.faults.first().map_or_else(|| "".into(), |fault| Arc::clone(&fault.message));
                Some(Settlement::DeadLetter { failure: failure("REJECTED", rejection.stage_ref(), word) })
            }
            Verdict::Fault(fault) => {
                let word: Arc<str> = format!("{}: {}", fault.cause.as_str(), fault.detail).into();
                let failure = failure("FAULT", fault.stage_ref(), word);
                Some(match fault.on {
                    OnFault::DeadLetter => Settlement::DeadLetter { failure },
                    OnFault::Reject | OnFault::Pass => {
                        let at = self.retry_at(&subscription.settings.backoff, lease.attempt);
                        Settlement::Retry { at, failure }
                    }
                })
            }
        }
    }

    /// When the attempt after `attempt` may begin.
    #[must_use]
    pub fn retry_at(&self, policy: &Backoff, attempt: u32) -> Timestamp {
        self.clock.now().plus(policy.wait(attempt, &self.entropy))
    }

    fn remember(&self, subscription: &Subscription, lease: Lease, mut draft: Draft, revision: u64) -> Lease {
        if unchanged(&lease.message, &draft) {
            return lease;
        }
        // A payload that the stages left alone may be a part of what was read of the log, all of which would be kept.
        draft.payload = Bytes::copy_from_slice(&draft.payload);
        let draft = Arc::new(draft);
        let changed = with_draft(lease, &draft);
        self.changed.insert(&changed.receipt, (subscription.id, revision), draft);
        changed
    }
}

/// Of a subscription's stages: what they run on for a webhook stands in no request, and its delivery comes after.
fn prepare_span(topic: &Topic) -> tracing::Span {
    if !tracing::Span::current().is_disabled() || !crate::telemetry::is_sampled_here() {
        return tracing::Span::none();
    }
    tracing::info_span!("prepare", messaging.system = "sluice", messaging.destination.name = %topic.name)
}

fn failure(reason: &str, stage: StageRef, detail: Arc<str>) -> Failure {
    Failure { reason: reason.into(), detail, stage: Some(stage), last_status: None }
}

fn settle(lease: &Lease, settlement: Settlement) -> Settle {
    let lease = LeaseRef::Receipt { receipt: lease.receipt, message: Some(lease.message.id) };
    Settle { lease, settlement }
}

fn draft(lease: &Lease) -> Draft {
    let meta = &lease.message.meta;
    Draft {
        id: lease.message.id,
        published_at: meta.published_at,
        payload: lease.message.payload.clone(),
        content_type: Arc::clone(&meta.content_type),
        schema_version: meta.schema_version.clone(),
        headers: meta.headers.clone(),
        key: meta.key.clone(),
        correlation_id: meta.correlation_id.clone(),
        priority: meta.priority,
        attempt: lease.attempt,
        position: Some((lease.position.partition, lease.position.offset)),
        drawn: None,
    }
}

fn unchanged(message: &Message, draft: &Draft) -> bool {
    message.payload == draft.payload
        && message.meta.headers == draft.headers
        && message.meta.content_type == draft.content_type
}

fn with_draft(mut lease: Lease, draft: &Draft) -> Lease {
    lease.message.payload = draft.payload.clone();
    lease.message.meta.headers.clone_from(&draft.headers);
    lease.message.meta.content_type = Arc::clone(&draft.content_type);
    lease
}
