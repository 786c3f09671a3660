//! Each bound of what the store holds, reached once: what is beyond it is refused, nothing of it is kept, and there is room
//! again when something has gone.

use super::*;
use crate::store::embedded::core::Queue;
use crate::store::{ItemWrite, KvRoom, KvWrite};

/// A furnished store with bounds of its own.
async fn bounded(dir: &Path, clock: &Clock, tighten: impl FnOnce(&mut EmbeddedLimits)) -> EmbeddedStore {
    drop(furnished(dir, clock).await);
    let mut options = EmbeddedOptions::new(dir, clock.clone());
    tighten(&mut options.limits);
    EmbeddedStore::open(options).unwrap()
}

async fn appended(store: &EmbeddedStore, item: AppendItem) -> AppendOutcome {
    store.append(batch(vec![item])).await.unwrap().remove(0)
}

fn due(at: Timestamp, message: Message) -> AppendItem {
    let entry = Entry::Log { partition: 0, message, due: Some(at), target: None };
    AppendItem { dedup: None, entry, emitted: Vec::new() }
}

fn with_key(key: &str, number: u64) -> AppendItem {
    let mut message = message(number, &format!("{key}{number}"));
    message.meta.key = Some(key.into());
    item(message)
}

#[tokio::test]
async fn a_group_holds_so_many_leases_and_retries_and_gets_more_with_each_that_ends() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let store = bounded(dir.path(), &clock, |limits| limits.exceptions_max = 3).await;
    publish(&store, 0..5).await;
    let held = lease(&store, 10).await;
    assert_eq!(held.len(), 3);
    assert!(lease(&store, 10).await.is_empty());
    ack(&store, &held[..1]).await;
    assert_eq!(payloads(&lease(&store, 10).await), ["payload 3"]);
}

#[tokio::test]
async fn a_key_parks_so_many_messages_and_then_its_partition_waits() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let store = bounded(dir.path(), &clock, |limits| limits.parked_max = 2).await;
    let mut items: Vec<AppendItem> = (0..4).map(|number| with_key("a", number)).collect();
    items.push(with_key("b", 4));
    store.append(batch(items)).await.unwrap();
    let ordered = LeaseRequest { ordered: true, ..request(10) };
    let mut seen = Vec::new();
    loop {
        let leases = store.lease(ordered.clone()).await.unwrap().leases;
        if leases.is_empty() {
            break;
        }
        seen.push(payloads(&leases));
        ack(&store, &leases).await;
    }
    assert_eq!(seen[0], ["a0"], "the other key waits behind what cannot be parked");
    assert_eq!(seen.concat().len(), 5, "{seen:?}");
}

#[tokio::test]
async fn memory_holds_nothing_that_retention_took_out_of_a_log() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let store = bounded(dir.path(), &clock, |_| {}).await;
    store.put_topic(TopicSpec { retention_bytes: Some(100_000), ..topic(TOPIC) }).await.unwrap();
    for round in 0..50 {
        files_on_disk::publish_large(&store, round * 20..round * 20 + 20).await;
        files_on_disk::drain(&store).await;
        let state = store.core.state.lock();
        // A message of 5000 bytes is little more in memory than it counts for against its topic.
        assert!(state.tail_bytes <= 110_000, "round {round}: {} bytes", state.tail_bytes);
    }
    clock.advance(Duration::from_secs(3601));
    store.retain().await.unwrap();
    let state = store.core.state.lock();
    assert_eq!((state.tail_bytes, state.unflushed_bytes), (0, 0));
}

#[tokio::test]
async fn the_schedule_holds_so_many_messages_and_so_many_bytes() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let soon = START.plus(Duration::from_secs(10));
    let store = bounded(dir.path(), &clock, |limits| limits.scheduled_max = 2).await;
    for (number, wanted) in [(0, true), (1, true), (2, false)] {
        let outcome = appended(&store, due(soon, message(number, "later"))).await;
        assert_eq!(outcome == AppendOutcome::Scheduled, wanted, "{number}: {outcome:?}");
        assert!(wanted || outcome == AppendOutcome::TopicFull, "{outcome:?}");
    }
    clock.advance(Duration::from_secs(11));
    store.tick().await.unwrap();
    let later = clock.now().plus(Duration::from_secs(10));
    assert_eq!(appended(&store, due(later, message(3, "later"))).await, AppendOutcome::Scheduled);
    drop(store);

    let dir = tempfile::tempdir().unwrap();
    let store = bounded(dir.path(), &clock, |limits| limits.scheduled_bytes_max = 2000).await;
    let large = "x".repeat(1500);
    assert_eq!(appended(&store, due(later, message(4, &large))).await, AppendOutcome::Scheduled);
    assert_eq!(appended(&store, due(later, message(5, &large))).await, AppendOutcome::TopicFull);
}

#[tokio::test]
async fn keys_of_all_topics_count_together() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let store = bounded(dir.path(), &clock, |limits| limits.dedup_keys_total_max = 2).await;
    for key in ["a", "b"] {
        assert!(matches!(appended(&store, keyed(key, message(1, key))).await, AppendOutcome::Stored(_)));
    }
    let elsewhere = AppendBatch { topic: DEAD, ..batch(vec![keyed("c", message(3, "c"))]) };
    assert_eq!(store.append(elsewhere).await.unwrap(), [AppendOutcome::TopicFull]);
    assert!(matches!(appended(&store, item(message(4, "without a key"))).await, AppendOutcome::Stored(_)));
    clock.advance(Duration::from_secs(601));
    assert!(matches!(appended(&store, keyed("c", message(5, "c"))).await, AppendOutcome::Stored(_)));
}

#[tokio::test]
async fn plugins_values_have_a_bound_together() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let store = bounded(dir.path(), &clock, |limits| limits.kv_bytes_max = 200).await;
    let put = |key: &str, bytes: usize| {
        let value = Some(vec![7; bytes]);
        let write = KvWrite { namespace: "n".into(), key: key.into(), expected_version: 0, value };
        AppendBatch { kv: vec![write], ..batch(Vec::new()) }
    };
    store.append(put("a", 100)).await.unwrap();
    let refused = store.append(put("b", 200)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(store.kv_get("n", "b").await.unwrap().is_none());
}

#[tokio::test]
async fn a_plugins_values_have_a_bound_of_their_own_in_bytes_and_keys() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let small = |limits: &mut EmbeddedLimits| {
        limits.kv_namespace_bytes_max = 1000;
        limits.kv_namespace_keys_max = 3;
    };
    let store = bounded(dir.path(), &clock, small).await;
    let set = async |store: &EmbeddedStore, namespace: &str, keys: &[(&str, usize)]| {
        let written = keys.iter().map(|(key, bytes)| {
            let value = (*bytes > 0).then(|| vec![7; *bytes]);
            ItemWrite { item: None, namespace: namespace.into(), key: (*key).into(), value }
        });
        let values = KvUse { written: written.collect(), ..KvUse::default() };
        store.append(AppendBatch { values, ..batch(Vec::new()) }).await
    };
    let full = async |store: &EmbeddedStore, keys: &[(&str, usize)]| {
        let refused = set(store, "n", keys).await;
        assert!(matches!(refused, Err(StoreError::KvConflict)), "{keys:?}: {refused:?}");
    };
    set(&store, "n", &[("a", 100), ("b", 1)]).await.unwrap();
    full(&store, &[("c", 1), ("d", 1)]).await;
    full(&store, &[("a", 900)]).await;
    full(&store, &[("c", 700), ("c", 1)]).await;
    set(&store, "n", &[("a", 700)]).await.unwrap();
    store.close().await.unwrap();
    let mut options = EmbeddedOptions::new(dir.path(), clock.clone());
    small(&mut options.limits);
    let store = EmbeddedStore::open(options).unwrap();
    full(&store, &[("b", 200)]).await;
    // What is there may be set anew, one that is not larger, and others have their own.
    set(&store, "n", &[("a", 600), ("b", 2)]).await.unwrap();
    set(&store, "m", &[("a", 700)]).await.unwrap();
    let room = store.kv_room("n", "b").await.unwrap();
    assert_eq!((room.keys, room.bytes, room.taken), (1, 1000 - 2 * 98 - 602, 100));
    // What a batch removes makes room for the next one: the message that it is removed for may not be stored.
    full(&store, &[("a", 0), ("c", 300)]).await;
    set(&store, "n", &[("a", 0)]).await.unwrap();
    set(&store, "n", &[("c", 300)]).await.unwrap();
    assert_eq!(store.kv_room("n", "a").await.unwrap(), KvRoom { bytes: 1000 - 2 * 98 - 302, keys: 1, taken: 0 });
    assert_eq!(store.kv_room("of nobody", "a").await.unwrap(), KvRoom { bytes: 1000, keys: 3, taken: 0 });
}

#[tokio::test]
async fn replays_for_one_group_have_a_bound_per_lane() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let store = bounded(dir.path(), &clock, |limits| limits.target_runs_max = 1).await;
    let replay = |number| {
        let entry = Entry::Log { partition: 0, message: message(number, "again"), due: None, target: Some(GROUP) };
        AppendItem { dedup: None, entry, emitted: Vec::new() }
    };
    assert!(matches!(appended(&store, replay(1)).await, AppendOutcome::Stored(_)));
    assert!(matches!(appended(&store, item(message(2, "for all"))).await, AppendOutcome::Stored(_)));
    assert_eq!(appended(&store, replay(3)).await, AppendOutcome::TopicFull);
}

#[tokio::test]
async fn a_batch_is_no_larger_than_memory_is_meant_to_take_twice() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let store = bounded(dir.path(), &clock, |limits| limits.batch_bytes_max = 1000).await;
    let refused = store.append(batch(vec![item(message(1, &"x".repeat(1000)))])).await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    publish(&store, 2..3).await;
}

#[tokio::test]
async fn the_journal_has_a_bound_when_no_checkpoint_replaces_it() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let store = bounded(dir.path(), &clock, |limits| limits.journal_bytes_max = 100_000).await;
    let large = "x".repeat(60_000);
    for number in 0..2 {
        assert!(matches!(appended(&store, item(message(number, &large))).await, AppendOutcome::Stored(_)));
    }
    let refused = store.append(batch(vec![item(message(2, "small"))])).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    ack(&store, &lease(&store, 2).await).await;
}

#[test]
fn what_waits_for_the_writer_has_a_bound_in_bytes() {
    let queue = Queue::new();
    queue.push("first", 10, 15).unwrap();
    assert!(matches!(queue.push("second", 10, 15), Err(StoreError::Busy(_))));
    let taken = queue.take(100, Duration::ZERO, |_, _| true).unwrap();
    assert_eq!(taken, ["first"]);
    queue.push("however large, alone it must pass", 100, 15).unwrap();
}
