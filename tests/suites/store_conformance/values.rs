//! Plugins' values that go with messages: what was read must still be so, and what is written is written with its item.

use std::sync::Arc;

use sluice::store::{
    AppendBatch, AppendItem, AppendOutcome, ItemWrite, KvRead, KvUse, StoreError, kv_cost, kv_namespace,
};
use sluice_tests::store_bed::{Bed, TOPIC, batch, item, key};
use sluice_tests::wait;

fn space() -> Arc<str> {
    kv_namespace(TOPIC, "p")
}

fn write(item: Option<usize>, key: &str, value: &str) -> ItemWrite {
    ItemWrite { item, namespace: space(), key: key.into(), value: Some(value.into()) }
}

fn read(key: &str, version: u64) -> KvRead {
    KvRead { namespace: space(), key: key.into(), version }
}

async fn value(bed: &Bed, key: &str) -> Option<(u64, String)> {
    let value = bed.kv_get(&space(), key).await.unwrap()?;
    Some((value.version, String::from_utf8(value.value).unwrap()))
}

fn keyed(bed: &Bed, name: &str, text: &str) -> AppendItem {
    AppendItem { dedup: key(name, text), ..item(bed.message(text)) }
}

pub(crate) async fn a_namespace_tells_its_room_and_takes_no_more(bed: Bed) {
    if !bed.capabilities().kv {
        return;
    }
    let bed = bed.simple().await;
    let large = |n: usize| ItemWrite { value: Some(vec![7; 64 * 1024]), ..write(None, &format!("k{n}"), "") };
    let set = async |n: usize| {
        let values = KvUse { written: vec![large(n)], ..KvUse::default() };
        bed.append(AppendBatch { values, ..batch(Vec::new()) }).await
    };
    let cost = kv_cost(&space(), "k000", 64 * 1024);
    let mut room = bed.kv_room(&space(), "k0").await.unwrap();
    assert_eq!(room.taken, 0);
    let mut n = 100;
    while room.bytes >= cost {
        set(n).await.unwrap();
        let left = bed.kv_room(&space(), &format!("k{n}")).await.unwrap();
        assert_eq!((left.bytes, left.keys, left.taken), (room.bytes - cost, room.keys - 1, cost));
        (room, n) = (left, n + 1);
    }
    let refused = set(n).await;
    assert!(matches!(refused, Err(StoreError::KvConflict)), "{refused:?}");
    set(n - 1).await.unwrap();
    assert_eq!(bed.kv_room(&space(), "k0").await.unwrap().bytes, room.bytes, "set anew it takes no more");
}

pub(crate) async fn what_was_read_and_has_changed_refuses_the_batch(bed: Bed) {
    if !bed.capabilities().kv {
        return;
    }
    let mut bed = bed.simple().await;
    let append = async |bed: &Bed, text: &str, read: Vec<KvRead>, written: Vec<ItemWrite>| {
        let values = KvUse { read, written, ..KvUse::default() };
        bed.append(AppendBatch { values, ..batch(vec![item(bed.message(text))]) }).await
    };
    append(&bed, "a", vec![read("k", 0)], vec![write(Some(0), "k", "1"), write(Some(0), "k", "2")]).await.unwrap();
    let (version, text) = value(&bed, "k").await.unwrap();
    assert_eq!(text, "2", "a later write of a key goes over an earlier one");
    for (stale, written) in [(0, vec![write(Some(0), "k", "3")]), (version + 1, vec![write(Some(0), "other", "x")])] {
        let refused = append(&bed, "lost", vec![read("k", stale)], written).await;
        assert!(matches!(refused, Err(StoreError::KvConflict)), "{refused:?}");
    }
    append(&bed, "b", vec![read("k", version)], vec![write(Some(0), "other", "x")]).await.unwrap();
    bed.crash().await;
    assert_eq!(value(&bed, "k").await, Some((version, "2".to_owned())));
    assert_eq!(value(&bed, "other").await.map(|(_, text)| text).as_deref(), Some("x"));
    assert_eq!(bed.log().await, ["a", "b"]);
}

pub(crate) async fn values_go_with_the_items_that_they_are_written_for(bed: Bed) {
    if !bed.capabilities().kv {
        return;
    }
    let bed = bed.simple().await;
    bed.append(batch(vec![keyed(&bed, "k", "first")])).await.unwrap();
    let items = vec![keyed(&bed, "k", "first"), item(bed.message("second"))];
    let written = vec![
        write(Some(0), "repeat", "x"),
        write(Some(1), "new", "y"),
        write(Some(0), "new", "x"),
        write(None, "dropped", "z"),
    ];
    let values = KvUse { written, ..KvUse::default() };
    let outcomes = bed.append(AppendBatch { values, ..batch(items) }).await.unwrap();
    assert!(matches!(outcomes[..], [AppendOutcome::Duplicate(_), AppendOutcome::Stored(_)]), "{outcomes:?}");
    let mut found = Vec::new();
    for key in ["repeat", "new", "dropped"] {
        found.push(value(&bed, key).await.map(|(_, text)| text));
    }
    assert_eq!(found, [None, Some("y".to_owned()), Some("z".to_owned())]);
}

pub(crate) async fn what_stands_on_an_item_that_is_not_stored_refuses_the_batch(bed: Bed) {
    if !bed.capabilities().kv {
        return;
    }
    let bed = bed.simple().await;
    bed.append(batch(vec![keyed(&bed, "k", "first")])).await.unwrap();
    for (linked, stored) in [(vec![0], false), (vec![1], true)] {
        let items = vec![keyed(&bed, "k", "first"), item(bed.message("second"))];
        let values = KvUse { written: vec![write(Some(1), "n", "2")], linked, ..KvUse::default() };
        let answer = bed.append(AppendBatch { values, ..batch(items) }).await;
        assert_eq!(answer.is_ok(), stored, "{answer:?}");
        assert!(stored || matches!(answer, Err(StoreError::KvConflict)), "{answer:?}");
        assert_eq!(value(&bed, "n").await.is_some(), stored);
    }
    assert_eq!(bed.log().await, ["first", "second"]);
}

pub(crate) async fn nobody_comes_before_who_has_the_turn(bed: Bed) {
    let bed = bed.simple().await;
    let set = async |value: &str, turn: Vec<Arc<str>>| {
        let values = KvUse { written: vec![write(None, "k", value)], turn, ..KvUse::default() };
        bed.append(AppendBatch { values, ..batch(Vec::new()) }).await
    };
    let Some(turn) = bed.value_turn(vec![space()]).await else {
        assert_ne!(bed.capabilities().durability, "postgres", "brokers share it");
        return;
    };
    let refused = set("another's", Vec::new()).await;
    assert!(matches!(refused, Err(StoreError::KvConflict)), "{refused:?}");
    let elsewhere = ItemWrite { namespace: kv_namespace(TOPIC, "q"), ..write(None, "k", "x") };
    let values = KvUse { written: vec![elsewhere], ..KvUse::default() };
    bed.append(AppendBatch { values, ..batch(vec![item(bed.message("of another plugin"))]) }).await.unwrap();
    set("whose turn it is", vec![space()]).await.unwrap();
    assert_eq!(value(&bed, "k").await.map(|(_, text)| text).as_deref(), Some("whose turn it is"));
    drop(turn);
    wait::until("it is over", async || set("another's", Vec::new()).await.ok()).await;
}

pub(crate) async fn values_go_with_their_topic_and_are_listed_in_order(bed: Bed) {
    if !bed.capabilities().kv {
        return;
    }
    let mut bed = bed.with_dead_letters().await;
    let other = kv_namespace(sluice_tests::store_bed::DEAD, "p");
    let mut written: Vec<ItemWrite> = ["c", "a", "b"].map(|key| write(None, key, "value")).into();
    written.push(ItemWrite { namespace: Arc::clone(&other), ..write(None, "d", "value") });
    let values = KvUse { written, ..KvUse::default() };
    bed.append(AppendBatch { values, ..batch(Vec::new()) }).await.unwrap();
    let first = bed.kv_heads(None, 2, 3).await.unwrap();
    assert_eq!(
        first.iter().map(|head| (&*head.key, &head.head[..])).collect::<Vec<_>>(),
        [("a", &b"val"[..]), ("b", b"val")]
    );
    let after = (Arc::clone(&first[1].namespace), Arc::clone(&first[1].key));
    let rest = bed.kv_heads(Some(after), 10, 0).await.unwrap();
    assert_eq!(rest.iter().map(|head| &*head.key).collect::<Vec<_>>(), ["c", "d"]);
    bed.delete_topic(TOPIC).await.unwrap();
    for _ in 0..2 {
        let left = bed.kv_heads(None, 10, 0).await.unwrap();
        assert_eq!(left.iter().map(|head| &head.namespace).collect::<Vec<_>>(), [&other]);
        bed.crash().await;
    }
}
