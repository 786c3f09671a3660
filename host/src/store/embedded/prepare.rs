//! Encoding a batch on the caller's task, so that the writer only copies. Never touches the state.

use std::sync::Arc;

use super::ops::{Body, LaneId};
use super::state::append::{Batch, Emitted, Item, Prepared};
use super::state::dedup::key_hash;
use crate::message::{GroupId, Message, PRIORITY_MAX, Partition, TopicId};
use crate::store::{AppendBatch, AppendItem, Entry, StoreError};

/// Encodes a batch; also what it weighs.
///
/// # Errors
/// `Invalid` for what cannot be stored at all.
pub fn prepare(batch: AppendBatch, bytes_max: u64) -> Result<(Batch, u64), StoreError> {
    let AppendBatch { topic, revision, items, all_or_nothing, kv, values, replays } = batch;
    let of_value = |value: &Option<Vec<u8>>| value.as_ref().map_or(64, |value| 64 + value.len() as u64);
    let mut bytes: u64 = kv.iter().map(|write| of_value(&write.value)).sum();
    bytes += values.written.iter().map(|write| of_value(&write.value)).sum::<u64>() + values.read.len() as u64 * 64;
    bytes += replays.len() as u64 * 16;
    let mut prepared = Vec::with_capacity(items.len());
    for item in items {
        let item = prepare_item(topic, item)?;
        bytes += weight(&item);
        if bytes > bytes_max {
            return Err(StoreError::Invalid(format!("a batch of more than {bytes_max} bytes")));
        }
        prepared.push(item);
    }
    Ok((Batch { topic, revision, items: prepared, all_or_nothing, kv, values, replays }, bytes))
}

fn prepare_item(topic: TopicId, item: AppendItem) -> Result<Item, StoreError> {
    let AppendItem { dedup, entry, emitted } = item;
    let entry = match entry {
        Entry::Log { partition, message, due, target } => {
            let (lane, body) = encode(topic, partition, &message, target)?;
            Prepared::Log { lane, body, due }
        }
        Entry::DeadLetter { message } => {
            let lane = checked_lane(&message)?;
            let last = message.meta.dead_letter.as_deref().map(|facts| &facts.last);
            let stage =
                last.and_then(|last| last.stage.as_ref()).map(|stage| Arc::clone(&stage.name)).unwrap_or_default();
            let reason = last.map(|last| Arc::clone(&last.detail)).unwrap_or_default();
            Prepared::Dead { lane, body: Body::new(&message, None, false), stage, reason }
        }
        Entry::Dropped { id, stage, reason } => Prepared::Dropped { id, stage, reason },
    };
    let emitted = emitted.iter().map(|(topic, partition, message)| {
        let (lane, body) = encode(*topic, *partition, message, None)?;
        Ok(Emitted { lane, body, revision: message.meta.revision })
    });
    let key = dedup.map(|dedup| (key_hash(&dedup.key), dedup.request_hash));
    Ok(Item { key, entry, emitted: emitted.collect::<Result<_, StoreError>>()? })
}

fn encode(
    topic: TopicId,
    partition: Partition,
    message: &Message,
    target: Option<GroupId>,
) -> Result<(LaneId, Body), StoreError> {
    let lane = checked_lane(message)?;
    Ok((LaneId { topic, partition, lane }, Body::new(message, target, true)))
}

fn checked_lane(message: &Message) -> Result<u8, StoreError> {
    if message.meta.priority > PRIORITY_MAX {
        return Err(StoreError::Invalid(format!("priorities are 0 to {PRIORITY_MAX}")));
    }
    if message.payload.len() > 1 << 30 {
        return Err(StoreError::Invalid("a payload of more than 1 GiB".to_owned()));
    }
    Ok(message.meta.priority)
}

fn weight(item: &Item) -> u64 {
    let entry = match &item.entry {
        Prepared::Log { body, .. } => body.head.cost(),
        Prepared::Dead { body, stage, reason, .. } => body.head.cost() + (stage.len() + reason.len()) as u64,
        Prepared::Dropped { stage, reason, .. } => (64 + stage.len() + reason.len()) as u64,
    };
    entry + 64 + item.emitted.iter().map(|emitted| emitted.body.head.cost()).sum::<u64>()
}
