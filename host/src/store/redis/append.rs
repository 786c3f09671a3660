//! Appending. Invariant: a batch is one script: what of it is stored, is stored at once. Decides nothing but where room is to be made.

use std::collections::BTreeSet;

use super::script::{APPEND, Args, LOOKUP, Reply, strange};
use super::{Shared, codec};
use crate::message::{MessageId, Offset, Position, TopicId};
use crate::store::embedded::ops::Body;
use crate::store::embedded::prepare::prepare;
use crate::store::embedded::state::append::{Batch, Item, Prepared};
use crate::store::embedded::state::dedup::key_hash;
use crate::store::{AppendBatch, AppendItem, AppendOutcome, DedupOutcome, Entry, Fate, StoreError};

/// Bytes of one batch. Redis does nothing else while it takes one.
const BATCH_BYTES_MAX: u64 = 64 << 20;

impl Shared {
    /// See [`crate::store::MessageStore::append`].
    pub(super) async fn append(&self, batch: AppendBatch) -> Result<Vec<AppendOutcome>, StoreError> {
        self.check_open()?;
        self.check(&batch)?;
        self.opened().await?;
        let originals: Vec<Option<MessageId>> = batch.items.iter().map(original).collect();
        let (batch, _) = prepare(batch, BATCH_BYTES_MAX)?;
        let mut roomy = BTreeSet::new();
        loop {
            let args = args(&batch, &originals, &roomy, self.time())?;
            let (word, mut reply) = self.said_of_batch(batch.topic, &args).await?;
            match word.as_str() {
                "ok" => {
                    let outcomes = outcomes(&batch, reply.list()?)?;
                    self.wake_all(reply.list()?)?;
                    let stored = outcomes.iter().filter_map(|outcome| match outcome {
                        AppendOutcome::Stored(position) => Some(position.offset.sequence()),
                        _ => None,
                    });
                    self.known.lock().gave(batch.topic, stored);
                    return Ok(outcomes);
                }
                "replayed" => return Ok(vec![AppendOutcome::NotAttempted; batch.items.len()]),
                "short" => {
                    let topic = codec::topic(&reply.text()?)?;
                    self.make_room(topic, reply.count()?).await?;
                    roomy.insert(topic);
                }
                "no_topic" => return Err(StoreError::NoTopic),
                "invalid" => return Err(StoreError::Invalid(reply.text()?)),
                "stale" => return Err(StoreError::StaleRevision { current: reply.count()? }),
                other => return Err(strange("append", &format!("the word '{other}'"))),
            }
        }
    }

    /// See [`Shared::call`].
    async fn said_of_batch(&self, topic: TopicId, args: &Args) -> Result<(String, Reply), StoreError> {
        let (word, reply) = self.said(&APPEND, args).await?;
        if word == "no_topic" && self.is_known(topic) {
            self.catch_up().await?;
            return self.said(&APPEND, args).await;
        }
        Ok((word, reply))
    }

    /// What is not for this store.
    fn check(&self, batch: &AppendBatch) -> Result<(), StoreError> {
        if !batch.kv.is_empty() || !batch.values.read.is_empty() || !batch.values.written.is_empty() {
            return Err(StoreError::Unsupported(super::NO_VALUES));
        }
        let later =
            |item: &AppendItem| matches!(item.entry, Entry::Log { due: Some(due), .. } if due > self.clock.now());
        if batch.items.iter().any(later) {
            return Err(StoreError::Unsupported("messages in Redis cannot be scheduled"));
        }
        Ok(())
    }

    /// See [`crate::store::MessageStore::dedup_lookup`].
    pub(super) async fn dedup_lookup(&self, topic: TopicId, key: &str) -> Result<Option<DedupOutcome>, StoreError> {
        self.check_open()?;
        self.opened().await?;
        let args = Args::new().text(topic.0.to_string()).text(hex::encode(key_hash(key))).text(self.time());
        let (word, mut reply) = self.said(&LOOKUP, &args).await?;
        if word == "none" { Ok(None) } else { codec::outcome(&reply.text()?).map(Some) }
    }
}

fn args(
    batch: &Batch,
    originals: &[Option<MessageId>],
    roomy: &BTreeSet<TopicId>,
    time: String,
) -> Result<Args, StoreError> {
    let mut args = Args::new()
        .text(batch.topic.0.to_string())
        .int(batch.revision)
        .flag(batch.all_or_nothing)
        .text(time)
        .int(roomy.len());
    for topic in roomy {
        args = args.text(topic.0.to_string());
    }
    args = args.int(batch.replays.len());
    for position in &batch.replays {
        args = args
            .text(position.topic.0.to_string())
            .text(position.partition.to_string())
            .int(position.offset.sequence());
    }
    args = args.int(batch.items.len());
    for (item, original) in batch.items.iter().zip(originals) {
        args = item_args(args, batch, item, *original)?;
    }
    Ok(args)
}

fn outcomes(batch: &Batch, mut list: Reply) -> Result<Vec<AppendOutcome>, StoreError> {
    let mut outcomes = Vec::with_capacity(batch.items.len());
    for item in &batch.items {
        let mut told = list.list()?;
        outcomes.push(match (told.text()?.as_str(), &item.entry) {
            ("L", Prepared::Log { lane, .. }) => {
                AppendOutcome::Stored(codec::position(batch.topic, lane.partition, told.count()?)?)
            }
            ("D", _) => {
                let (seq, topic) = (told.count()?, codec::topic(&told.text()?)?);
                AppendOutcome::DeadLettered(codec::position(topic, 0, seq)?)
            }
            ("X", _) => AppendOutcome::Dropped,
            ("U", _) => AppendOutcome::Duplicate(codec::outcome(&told.text()?)?),
            ("K", _) => AppendOutcome::KeyConflict,
            ("F", _) => AppendOutcome::TopicFull,
            ("N", _) => AppendOutcome::NotAttempted,
            (other, _) => return Err(strange("append", &format!("the outcome '{other}'"))),
        });
    }
    Ok(outcomes)
}

/// The message that a dead letter is a copy of, so that it is erased with it.
fn original(item: &AppendItem) -> Option<MessageId> {
    match &item.entry {
        Entry::DeadLetter { message } => message.meta.dead_letter.as_ref().map(|facts| facts.original_id),
        _ => None,
    }
}

fn item_args(args: Args, batch: &Batch, item: &Item, original: Option<MessageId>) -> Result<Args, StoreError> {
    let place = |topic, partition| Position { topic, partition, offset: Offset::new(0, 0) };
    let (kind, id, fate, body) = match &item.entry {
        Prepared::Log { lane, body, .. } => {
            ("L", body.head.id, Fate::Stored(place(batch.topic, lane.partition)), Some((Some(lane.partition), body)))
        }
        Prepared::Dead { body, stage, reason, .. } => {
            // The script knows its topic.
            let position = place(batch.topic, 0);
            let (stage, reason) = (stage.clone(), reason.clone());
            ("D", body.head.id, Fate::DeadLettered { position, stage, reason }, Some((None, body)))
        }
        Prepared::Dropped { id, stage, reason } => {
            ("X", *id, Fate::Dropped { stage: stage.clone(), reason: reason.clone() }, None)
        }
    };
    let mut args = args.text(kind);
    args = match &item.key {
        Some((key, hash)) => {
            let tail = codec::Kept { id, revision: batch.revision, fate }.encoded()?;
            args.text(hex::encode(key)).text(hex::encode(hash)).text(tail)
        }
        None => args.text("").text("").text(""),
    };
    if let Some((partition, body)) = body {
        if let Some(partition) = partition {
            args = args.text(partition.to_string());
        }
        args = body_args(args, body, original);
    }
    args = args.int(item.emitted.len());
    for emitted in &item.emitted {
        args =
            args.text(emitted.lane.topic.0.to_string()).text(emitted.lane.partition.to_string()).int(emitted.revision);
        args = body_args(args, &emitted.body, None);
    }
    Ok(args)
}

fn body_args(args: Args, body: &Body, original: Option<MessageId>) -> Args {
    args.int(codec::cost(body)).text(codec::head(body, original)).bytes(codec::bytes(body))
}
