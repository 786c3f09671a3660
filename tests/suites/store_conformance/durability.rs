//! What returned `Ok` is there after the store was dropped without being closed. (That it is there after `kill -9` is for
//! the crash tests to show; here the process lives on.)

use std::time::Duration;

use bytes::Bytes;
use sluice::message::GroupId;
use sluice::store::{
    AppendBatch, AppendItem, KvWrite, LeaseRequest, Mode, SettleRefused, Settlement, StoreError, TopicSpec,
};
use sluice_tests::store_bed::{Bed, DEAD, GROUP, OTHER, TOPIC, batch, failure, group, item, key, text, texts, topic};

pub(crate) async fn appended_is_there_after_a_crash(bed: Bed) {
    let mut bed = bed.simple().await;
    let mut expected = Vec::new();
    for round in 0..5 {
        let names: Vec<String> = (0..50).map(|number| format!("{round}-{number}")).collect();
        bed.publish(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        expected.extend(names);
        bed.crash().await;
        assert_eq!(bed.log().await, expected);
    }
    assert_eq!(texts(&bed.take(1000).await), expected);
}

pub(crate) async fn settled_is_settled_after_a_crash(bed: Bed) {
    let mut bed = bed.simple().await;
    bed.publish(&["a", "b", "c", "d", "e"]).await;
    let leases = bed.take(5).await;
    bed.ack(&[leases[1].clone(), leases[4].clone()]).await;
    bed.crash().await;
    assert_eq!(bed.figures(GROUP).await.acked_total, 2);
    let again = bed.take(5).await;
    assert_eq!(texts(&again), ["a", "c", "d"]);
    bed.ack(&again).await;
    bed.crash().await;
    assert!(bed.take(5).await.is_empty());
    let figures = bed.figures(GROUP).await;
    assert_eq!((figures.acked_total, figures.waiting, figures.leased), (5, 0, 0));
}

pub(crate) async fn a_retry_is_remembered_after_a_crash(bed: Bed) {
    let mut bed = bed.simple().await;
    bed.publish(&["a", "b"]).await;
    let leases = bed.take(2).await;
    bed.nack(&leases[0], Duration::from_millis(60_500)).await.unwrap();
    bed.nack(&leases[1], Duration::ZERO).await.unwrap();
    bed.crash().await;
    bed.tick().await.unwrap();
    let again = bed.take(2).await;
    assert_eq!((texts(&again), again[0].attempt), (vec!["b".to_owned()], 2));
    assert_eq!(bed.figures(GROUP).await.retrying, 1);
    let found = bed.get(leases[0].message.id).await.unwrap().unwrap();
    assert_eq!(found.groups[0].failures.as_slice()[0].failure, failure());
    bed.pass(Duration::from_secs(61)).await;
    let again = bed.take_one().await;
    assert_eq!((text(&again.message).as_str(), again.attempt), ("a", 2));
}

pub(crate) async fn keys_revisions_and_values_outlive_a_crash(bed: Bed) {
    let mut bed = bed.simple().await;
    let kv = if bed.capabilities().kv {
        vec![KvWrite { namespace: "n".into(), key: "k".into(), expected_version: 0, value: Some(vec![0, 1]) }]
    } else {
        Vec::new()
    };
    let keyed = AppendItem { dedup: key("k", "request"), ..item(bed.message("a")) };
    bed.append(AppendBatch { revision: 7, kv: kv.clone(), ..batch(vec![keyed]) }).await.unwrap();
    bed.crash().await;
    let late = bed.append(AppendBatch { revision: 6, ..batch(vec![item(bed.message("b"))]) }).await;
    assert!(matches!(late, Err(StoreError::StaleRevision { current: 7 })), "{late:?}");
    assert_eq!(bed.dedup_lookup(TOPIC, "k").await.unwrap().unwrap().revision, 7);
    if !kv.is_empty() {
        assert_eq!(bed.kv_get("n", "k").await.unwrap().unwrap().value, [0, 1]);
    }
}

pub(crate) async fn attempts_outlive_a_restart(bed: Bed) {
    let mut bed = bed.with_dead_letters().await;
    bed.publish(&["a"]).await;
    for attempt in 1..=3 {
        assert_eq!(bed.take_one().await.attempt, attempt);
        bed.restart().await;
        bed.tick().await.unwrap();
    }
    assert!(bed.take(1).await.is_empty(), "a message that ends the broker each time is not tried for ever");
    assert_eq!(bed.dead().await.len(), 1);
}

pub(crate) async fn a_restart_ends_all_leases(bed: Bed) {
    let mut bed = bed.simple().await;
    bed.publish(&["a", "b"]).await;
    let before = bed.take(2).await;
    bed.crash().await;
    assert_eq!(bed.end(&before[0], Settlement::Ack).await, Err(SettleRefused::LeaseExpired));
    let after = bed.take(2).await;
    assert_eq!(texts(&after), ["a", "b"]);
    assert!(after[0].receipt.epoch > before[0].receipt.epoch);
    // Not even once the message is leased again.
    assert_eq!(bed.end(&before[1], Settlement::Ack).await, Err(SettleRefused::LeaseExpired));
    bed.restart().await;
    assert_eq!(bed.end(&after[0], Settlement::Ack).await, Err(SettleRefused::LeaseExpired));
    let last = bed.take(2).await;
    assert!(last[0].receipt.epoch > after[0].receipt.epoch);
    bed.ack(&last).await;
}

pub(crate) async fn at_most_once_is_never_again(bed: Bed) {
    if !bed.capabilities().exactly_once {
        return;
    }
    let mut bed = bed.simple().await;
    bed.publish(&["a", "b", "c"]).await;
    let once = |bed: &Bed, max| LeaseRequest { mode: Mode::AtMostOnce, ..bed.request(GROUP, max) };
    let taken = bed.lease(once(&bed, 2)).await.unwrap().leases;
    assert_eq!(texts(&taken), ["a", "b"]);
    bed.crash().await;
    let taken = bed.lease(once(&bed, 10)).await.unwrap().leases;
    assert_eq!(texts(&taken), ["c"], "the grant was durable before the message was handed out");
}

pub(crate) async fn many_restarts_lose_nothing(bed: Bed) {
    let mut bed = bed.with_dead_letters().await;
    bed.put_group(group(TOPIC, OTHER)).await.unwrap();
    let mut acked = 0;
    for round in 0..12_u64 {
        bed.publish(&["x", "y", "z"]).await;
        let lease = bed.take_one().await;
        if lease.attempt < 3 && round % 3 == 0 {
            bed.nack(&lease, Duration::ZERO).await.unwrap();
        } else {
            bed.ack(&[lease]).await;
            acked += 1;
        }
        if round % 2 == 0 {
            bed.crash().await
        } else {
            bed.restart().await
        }
        bed.pass(Duration::from_secs(1)).await;
        let stats = bed.stats(TOPIC).await.unwrap();
        assert_eq!((stats.messages, stats.appended_total), (3 * (round + 1), 3 * (round + 1)));
        let figures = bed.figures(GROUP).await;
        assert_eq!((figures.acked_total, figures.waiting), (acked, 3 * (round + 1) - acked));
        assert_eq!(bed.figures(OTHER).await.waiting, 3 * (round + 1));
    }
    assert_eq!(bed.take(1000).await.len() as u64, 36 - acked);
}

pub(crate) async fn topics_and_groups_outlive_a_crash(bed: Bed) {
    let mut bed = bed.with_dead_letters().await;
    bed.put_group(group(TOPIC, OTHER)).await.unwrap();
    bed.delete_group(TOPIC, GROUP).await.unwrap();
    for _ in 0..2 {
        let mut topics = bed.topics().await.unwrap();
        topics.sort();
        assert_eq!(topics, [TOPIC, DEAD]);
        assert_eq!(bed.groups(TOPIC).await.unwrap(), [OTHER]);
        assert_eq!(bed.groups(DEAD).await.unwrap(), [GroupId::SHARED]);
        bed.crash().await;
    }
    let changed = bed.put_topic(TopicSpec { partitions: 2, ..topic(TOPIC) }).await;
    assert!(matches!(changed, Err(StoreError::Invalid(_))), "{changed:?}");
}

pub(crate) async fn a_large_batch_is_one_unit(bed: Bed) {
    let mut bed = bed.simple().await;
    let size = 8 * 1024;
    let large = |number: usize| {
        let mut message = bed.message("");
        message.payload = Bytes::from(vec![b'a' + (number % 26) as u8; size]);
        item(message)
    };
    let items: Vec<AppendItem> = (0..1000).map(large).collect();
    let outcomes = bed.append(batch(items)).await.unwrap();
    assert_eq!(outcomes.len(), 1000);
    bed.crash().await;
    let mut count = 0;
    while let [first, ..] = &bed.take(100).await[..] {
        assert_eq!(first.message.payload.len(), size);
        assert_eq!(first.message.payload[0], b'a' + (first.position.offset.sequence() % 26) as u8);
        count += 100;
    }
    assert_eq!(count, 1000);
}
