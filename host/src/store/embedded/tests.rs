//! Tests of the whole store over real files: what an abrupt end, damage, and a full or failing disk leave behind.

mod bounds;
mod contract;
mod crash;
mod faults;
mod files_on_disk;
mod inspection;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::message::{Message, MessageMeta, Partition};
use crate::store::{AppendItem, DedupKey, Entry, Failure, KvUse, Lease, LeaseRef, Mode, ReadFrom, Settlement};

pub(super) const TOPIC: TopicId = TopicId(1);
const DEAD: TopicId = TopicId(2);
const GROUP: GroupId = GroupId(7);
const START: Timestamp = Timestamp(1_700_000_000_000);

fn clock() -> Clock {
    Clock::fixed(START)
}

fn open(dir: &Path, clock: &Clock) -> EmbeddedStore {
    EmbeddedStore::open(EmbeddedOptions::new(dir, clock.clone())).unwrap()
}

pub(super) fn topic(id: TopicId) -> TopicSpec {
    TopicSpec {
        id,
        partitions: 2,
        retention: Duration::from_secs(3600),
        retention_bytes: None,
        dedup_window: Duration::from_secs(600),
        dedup_keys_max: 1000,
        dead_letter: (id != DEAD).then_some(DEAD),
        dead_letter_payload: true,
        dead_letter_expired: false,
    }
}

fn group(topic: TopicId, group: GroupId) -> GroupSpec {
    GroupSpec { topic, group, name: "workers".into(), start: SeekTo::Earliest, attempts_max: 3 }
}

/// A store with a topic, its dead letters and a group.
async fn furnished(dir: &Path, clock: &Clock) -> EmbeddedStore {
    let store = open(dir, clock);
    store.put_topic(topic(DEAD)).await.unwrap();
    store.put_topic(topic(TOPIC)).await.unwrap();
    store.put_group(group(TOPIC, GROUP)).await.unwrap();
    store
}

pub(super) fn message(number: u64, payload: &str) -> Message {
    message_at(START, number, payload)
}

fn message_at(at: Timestamp, number: u64, payload: &str) -> Message {
    let meta = MessageMeta {
        content_type: "application/json".into(),
        schema_version: None,
        headers: vec![("kind".into(), "test".into())],
        priority: 0,
        key: None,
        correlation_id: None,
        reply_to: None,
        published_at: at,
        expires_at: None,
        trace: None,
        revision: 1,
        dead_letter: None,
        replay_of: None,
    };
    Message { id: MessageId::new(at, TOPIC, 0, number), payload: Bytes::copy_from_slice(payload.as_bytes()), meta }
}

fn item(message: Message) -> AppendItem {
    item_in(0, message)
}

fn item_in(partition: Partition, message: Message) -> AppendItem {
    AppendItem { dedup: None, entry: Entry::Log { partition, message, due: None, target: None }, emitted: Vec::new() }
}

fn keyed(key: &str, message: Message) -> AppendItem {
    AppendItem { dedup: Some(DedupKey { key: key.into(), request_hash: [1; 16] }), ..item(message) }
}

fn batch(items: Vec<AppendItem>) -> AppendBatch {
    AppendBatch {
        topic: TOPIC,
        revision: 1,
        items,
        all_or_nothing: false,
        kv: Vec::new(),
        values: KvUse::default(),
        replays: Vec::new(),
    }
}

async fn publish(store: &EmbeddedStore, numbers: std::ops::Range<u64>) {
    let items = numbers.map(|number| item(message(number, &format!("payload {number}")))).collect();
    let outcomes = store.append(batch(items)).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, AppendOutcome::Stored(_))), "{outcomes:?}");
}

fn request(max: usize) -> LeaseRequest {
    LeaseRequest {
        topic: TOPIC,
        group: GROUP,
        max,
        bytes_max: usize::MAX,
        duration: Duration::from_secs(30),
        holder: "tester".into(),
        mode: Mode::AtLeastOnce,
        ordered: false,
    }
}

async fn lease(store: &EmbeddedStore, max: usize) -> Vec<Lease> {
    store.lease(request(max)).await.unwrap().leases
}

fn settle_of(lease: &Lease, settlement: Settlement) -> Settle {
    Settle { lease: LeaseRef::Receipt { receipt: lease.receipt, message: Some(lease.message.id) }, settlement }
}

async fn settle(
    store: &EmbeddedStore,
    leases: &[Lease],
    settlement: Settlement,
) -> Vec<Result<Settled, SettleRefused>> {
    store.settle(leases.iter().map(|lease| settle_of(lease, settlement.clone())).collect()).await.unwrap()
}

async fn ack(store: &EmbeddedStore, leases: &[Lease]) {
    assert!(settle(store, leases, Settlement::Ack).await.iter().all(|result| *result == Ok(Settled::Acked)));
}

fn payloads(leases: &[Lease]) -> Vec<String> {
    leases.iter().map(|lease| text(&lease.message)).collect()
}

fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.payload).into_owned()
}

async fn read_all(store: &EmbeddedStore, topic: TopicId) -> Vec<String> {
    let (mut all, mut from) = (Vec::new(), ReadFrom::Earliest);
    loop {
        let page =
            store.read(ReadRequest { topic, partition: None, from, limit: 100, bytes_max: usize::MAX }).await.unwrap();
        all.extend(page.messages.iter().map(|(_, message)| text(message)));
        match page.next().cloned() {
            Some(next) => from = ReadFrom::Cursor(next),
            None => return all,
        }
    }
}

fn failure(reason: &str) -> Failure {
    Failure { reason: reason.into(), detail: "it did not work".into(), stage: None, last_status: Some(500) }
}
