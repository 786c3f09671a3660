//! Appends to the oracle: what becomes of each item. Invariant: what it expects it does, whether it is told the outcome or not.

use std::collections::BTreeSet;

use sluice::message::MessageId;
use sluice::store::{AppendBatch, AppendItem, AppendOutcome, Entry, Fate, StoreError};

use super::{Key, Oracle, Scheduled};

impl Oracle {
    /// Checks what became of an append, and does the same.
    pub fn append(&mut self, batch: &AppendBatch, result: Result<Vec<AppendOutcome>, StoreError>) {
        if let Some(expected) = self.overtaken(batch) {
            assert!(
                matches!(result, Err(StoreError::StaleRevision { current }) if current == expected),
                "revision {} where {expected} was: {result:?}",
                batch.revision
            );
            return;
        }
        let outcomes = result.expect("nothing is wrong with the batch");
        assert_eq!(outcomes.len(), batch.items.len());
        if batch.all_or_nothing && self.refuses_one(batch) {
            assert!(!outcomes.iter().any(is_stored), "one item keeps the others out: {outcomes:?}");
            assert!(outcomes.iter().any(|outcome| *outcome != AppendOutcome::NotAttempted), "{outcomes:?}");
            return;
        }
        for (item, outcome) in batch.items.iter().zip(&outcomes) {
            self.append_item(batch, item, Some(outcome));
        }
        if outcomes.iter().all(|outcome| is_stored(outcome) || matches!(outcome, AppendOutcome::Duplicate(_))) {
            for position in &batch.replays {
                self.take_off(*position);
            }
        }
    }

    /// Does the same without knowing what became of it.
    pub fn append_unseen(&mut self, batch: &AppendBatch) {
        if self.overtaken(batch).is_some() || batch.all_or_nothing && self.refuses_one(batch) {
            return;
        }
        for item in &batch.items {
            self.append_item(batch, item, None);
        }
        for position in &batch.replays {
            self.take_off(*position);
        }
    }

    /// The revision that has followed the batch's.
    fn overtaken(&mut self, batch: &AppendBatch) -> Option<u64> {
        let now = self.now;
        let log = self.log(batch.topic);
        log.keys.retain(|key| key.at.plus(log.spec.dedup_window) > now);
        let stale = batch.items.iter().filter_map(|item| match &item.entry {
            Entry::Log { partition, .. } => log.revisions.get(partition).filter(|current| batch.revision < **current),
            _ => None,
        });
        stale.copied().next()
    }

    fn refuses_one(&self, batch: &AppendBatch) -> bool {
        let log = &self.topics[&batch.topic];
        let mut seen = BTreeSet::new();
        batch.items.iter().filter_map(|item| item.dedup.as_ref()).any(|dedup| {
            let known = log.keys.iter().any(|key| *key.name == *dedup.key);
            known || !seen.insert(&dedup.key) || log.keys.len() + seen.len() > log.spec.dedup_keys_max as usize
        })
    }

    fn append_item(&mut self, batch: &AppendBatch, item: &AppendItem, outcome: Option<&AppendOutcome>) {
        let now = self.now;
        let check = |expected: &AppendOutcome| {
            assert!(outcome.is_none_or(|outcome| outcome == expected), "{outcome:?} is not {expected:?}")
        };
        let log = self.topics.get_mut(&batch.topic).expect("the model knows its topics");
        if let Some(dedup) = &item.dedup {
            if let Some(first) = log.keys.iter().find(|key| *key.name == *dedup.key) {
                match outcome {
                    None => {}
                    Some(AppendOutcome::Duplicate(told)) if first.hash == dedup.request_hash => {
                        assert_eq!((told.id, &told.fate, told.at), (first.id, &first.fate, first.at));
                    }
                    Some(AppendOutcome::KeyConflict) if first.hash != dedup.request_hash => {}
                    other => panic!("the key '{}' was used before: {other:?}", dedup.key),
                }
                return;
            }
            if log.keys.len() >= log.spec.dedup_keys_max as usize {
                check(&AppendOutcome::TopicFull);
                return;
            }
        }
        let (id, fate) = match &item.entry {
            Entry::Log { partition, message, due, target } => {
                let revision = log.revisions.entry(*partition).or_default();
                *revision = batch.revision.max(*revision);
                if let Some(due) = due.filter(|due| *due > now) {
                    check(&AppendOutcome::Scheduled);
                    let (partition, message, target) = (*partition, message.clone(), *target);
                    log.scheduled.push(Scheduled { due, partition, message, target });
                    (item_id(item), Fate::Scheduled)
                } else {
                    let position = log.push(*partition, message.clone(), *target, now);
                    check(&AppendOutcome::Stored(position));
                    (item_id(item), Fate::Stored(position))
                }
            }
            Entry::Dropped { stage, reason, .. } => {
                check(&AppendOutcome::Dropped);
                (item_id(item), Fate::Dropped { stage: stage.clone(), reason: reason.clone() })
            }
            Entry::DeadLetter { message } => {
                let dead = log.spec.dead_letter.expect("the model's topic has one");
                let position = self.log(dead).push(0, message.clone(), None, now);
                check(&AppendOutcome::DeadLettered(position));
                let last = message.meta.dead_letter.as_deref().map(|facts| facts.last.clone()).unwrap_or_default();
                let stage = last.stage.map(|stage| stage.name).unwrap_or_default();
                (item_id(item), Fate::DeadLettered { position, stage, reason: last.detail })
            }
        };
        if let Some(dedup) = &item.dedup {
            let (name, hash) = (dedup.key.to_string(), dedup.request_hash);
            self.log(batch.topic).keys.push(Key { name, hash, id, fate, at: now });
        }
    }
}

fn is_stored(outcome: &AppendOutcome) -> bool {
    matches!(
        outcome,
        AppendOutcome::Stored(_) | AppendOutcome::Scheduled | AppendOutcome::Dropped | AppendOutcome::DeadLettered(_)
    )
}

fn item_id(item: &AppendItem) -> MessageId {
    match &item.entry {
        Entry::Log { message, .. } | Entry::DeadLetter { message } => message.id,
        Entry::Dropped { id, .. } => *id,
    }
}
