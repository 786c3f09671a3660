//! Appending: places, atomicity, revisions, what is emitted, plugins' values; topics as such.

use std::time::Duration;

use sluice::message::{
    DeadLetterFacts, FailedAttempt, Failures, GroupId, Offset, PARTITIONS_MAX, Position, TopicId, TraceContext,
};
use sluice::store::{AppendBatch, AppendItem, AppendOutcome, Entry, KvValue, KvWrite, StoreError, TopicSpec};
use sluice_tests::store_bed::{
    Bed, DEAD, GROUP, LEASE, START, TOPIC, batch, failure, group, item, key, page_texts, text, topic,
};

pub(crate) async fn items_of_a_lane_get_rising_offsets(bed: Bed) {
    let bed = bed.simple().await;
    let mut positions = bed.publish(&["a", "b"]).await;
    positions.extend(bed.publish(&["c"]).await);
    let sequences: Vec<u64> = positions.iter().map(|position| position.offset.sequence()).collect();
    assert_eq!(sequences, [0, 1, 2]);
    assert_eq!(bed.log().await, ["a", "b", "c"]);
    assert!(bed.append(batch(Vec::new())).await.unwrap().is_empty());
}

pub(crate) async fn partitions_and_lanes_count_apart(bed: Bed) {
    bed.put_topic(TopicSpec { partitions: 3, ..topic(TOPIC) }).await.unwrap();
    let in_partition = |partition, text: &str| bed.message_in(TOPIC, partition, text);
    let mut messages = vec![in_partition(2, "a"), in_partition(0, "b"), in_partition(2, "c")];
    let mut lane = 0;
    if bed.capabilities().lanes {
        lane = 7;
        messages[2].meta.priority = lane;
    }
    let positions = bed.store(messages).await;
    let sequence = if lane == 0 { 1 } else { 0 };
    let at = |partition, lane, sequence| Position { topic: TOPIC, partition, offset: Offset::new(lane, sequence) };
    assert_eq!(positions, [at(2, 0, 0), at(0, 0, 0), at(2, lane, sequence)]);
}

pub(crate) async fn every_field_comes_back(bed: Bed) {
    let mut bed = bed.simple().await;
    let mut message = bed.message(r#"{"id": 1}"#);
    message.meta.content_type = "application/vnd.order+json".into();
    message.meta.schema_version = Some("2".into());
    message.meta.headers =
        vec![("B".into(), "2".into()), ("a".into(), "ünï".into()), ("B".into(), String::new().into())];
    message.meta.priority = if bed.capabilities().lanes { 9 } else { 0 };
    message.meta.key = Some("order-1".into());
    message.meta.correlation_id = Some("conversation".into());
    message.meta.reply_to = Some("answers".into());
    message.meta.expires_at = Some(bed.later(Duration::from_secs(86_400)));
    message.meta.trace = Some(TraceContext { parent: "00-1-2-01".into(), state: Some("vendor=1".into()) });
    message.meta.revision = 5;
    let mut failures = Failures::default();
    failures.push(FailedAttempt { attempt: 4, at: START, failure: failure() });
    message.meta.dead_letter = Some(Box::new(DeadLetterFacts {
        original_id: bed.message("another").id,
        original: None,
        group: Some(GroupId(9)),
        group_name: "billing".into(),
        last: failure(),
        failures,
        attempts: 4,
        at: START,
    }));
    message.meta.replay_of = Some(bed.message("a dead letter").id);
    bed.append(AppendBatch { revision: 5, ..batch(vec![item(message.clone())]) }).await.unwrap();
    assert_eq!(bed.read(bed.whole(TOPIC)).await.unwrap().messages[0].1, message);
    bed.crash().await;
    assert_eq!(bed.read(bed.whole(TOPIC)).await.unwrap().messages[0].1, message);
    assert_eq!(bed.take_one().await.message, message);
    assert_eq!(bed.get(message.id).await.unwrap().unwrap().message, message);
}

pub(crate) async fn a_stale_revision_stores_nothing(bed: Bed) {
    bed.put_topic(TopicSpec { partitions: 2, ..topic(TOPIC) }).await.unwrap();
    let on = |revision, partition, text: &str| AppendBatch {
        revision,
        ..batch(vec![item(bed.message_in(TOPIC, partition, text))])
    };
    bed.append(on(3, 0, "a")).await.unwrap();
    bed.append(on(3, 0, "b")).await.unwrap();
    match bed.append(on(2, 0, "late")).await {
        Err(StoreError::StaleRevision { current }) => assert_eq!(current, 3),
        other => panic!("{other:?}"),
    }
    bed.append(on(2, 1, "c")).await.expect("the other partition is at no revision yet");
    let both = vec![item(bed.message_in(TOPIC, 1, "late")), item(bed.message_in(TOPIC, 0, "late"))];
    let late = bed.append(AppendBatch { revision: 2, ..batch(both) }).await;
    assert!(matches!(late, Err(StoreError::StaleRevision { current: 3 })), "{late:?}");
    bed.append(on(4, 0, "d")).await.unwrap();
    assert_eq!(bed.log().await, ["a", "b", "c", "d"]);
}

pub(crate) async fn a_refused_batch_stores_nothing(bed: Bed) {
    let bed = bed.simple().await;
    bed.append(AppendBatch { revision: 2, ..batch(vec![item(bed.message("a"))]) }).await.unwrap();
    let mut late = item(bed.message("late"));
    late.dedup = key("k", "request");
    let late = AppendBatch { revision: 1, ..batch(vec![late]) };
    assert!(bed.append(late).await.is_err());
    assert!(bed.dedup_lookup(TOPIC, "k").await.unwrap().is_none(), "a refused batch uses no key up");
    assert_eq!(bed.stats(TOPIC).await.unwrap().appended_total, 1);
}

pub(crate) async fn emitted_messages_come_with_their_source(bed: Bed) {
    const TARGET: TopicId = TopicId(3);
    let mut bed = bed.simple().await;
    bed.put_topic(TopicSpec { partitions: 2, ..topic(TARGET) }).await.unwrap();
    let with_emitted = |name: &str| {
        let emitted = bed.message_in(TARGET, 1, &format!("{name}-emitted"));
        AppendItem { dedup: key("k", "request"), emitted: vec![(TARGET, 1, emitted)], ..item(bed.message(name)) }
    };
    assert!(matches!(bed.append_one(with_emitted("first")).await, AppendOutcome::Stored(_)));
    assert!(matches!(bed.append_one(with_emitted("second")).await, AppendOutcome::Duplicate(_)));
    let dropped = AppendItem {
        entry: Entry::Dropped { id: bed.message("x").id, stage: "route".into(), reason: "sent on".into() },
        dedup: None,
        ..with_emitted("dropped")
    };
    assert_eq!(bed.append_one(dropped).await, AppendOutcome::Dropped);
    bed.crash().await;
    let page = bed.read(bed.whole(TARGET)).await.unwrap();
    assert_eq!(page_texts(&page), ["first-emitted", "dropped-emitted"], "a duplicate emits nothing");
    assert!(page.messages.iter().all(|(position, _)| position.partition == 1));
    assert_eq!(bed.log().await, ["first"]);
}

pub(crate) async fn an_unknown_topic_or_partition_is_refused(bed: Bed) {
    let nowhere = bed.append(batch(vec![item(bed.message("a"))])).await;
    assert!(matches!(nowhere, Err(StoreError::NoTopic)), "{nowhere:?}");
    let bed = bed.simple().await;
    let entry = Entry::Log { partition: 1, message: bed.message("a"), due: None, target: None };
    let beyond = bed.append(batch(vec![item(bed.message("b")), AppendItem { entry, ..item(bed.message("c")) }])).await;
    assert!(matches!(beyond, Err(StoreError::Invalid(_))), "{beyond:?}");
    assert!(bed.log().await.is_empty());
    assert!(matches!(bed.lease(bed.request(GroupId(77), 1)).await, Err(StoreError::NoGroup)));
    assert!(matches!(bed.stats(TopicId(77)).await, Err(StoreError::NoTopic)));
    assert!(matches!(bed.read(bed.whole(TopicId(77))).await, Err(StoreError::NoTopic)));
    assert!(bed.appended(TopicId(77)).is_none());
}

pub(crate) async fn a_key_value_write_meets_the_version_it_was_read_at(bed: Bed) {
    if !bed.capabilities().kv {
        return;
    }
    let mut bed = bed.simple().await;
    let write = |expected_version, value: Option<&str>| KvWrite {
        namespace: "filter/1".into(),
        key: "count".into(),
        expected_version,
        value: value.map(|value| value.as_bytes().to_vec()),
    };
    let append = async |bed: &Bed, text: &str, writes: Vec<KvWrite>| {
        bed.append(AppendBatch { kv: writes, ..batch(vec![item(bed.message(text))]) }).await
    };
    let read = async |bed: &Bed| bed.kv_get("filter/1", "count").await.unwrap();
    append(&bed, "a", vec![write(0, Some("1"))]).await.unwrap();
    let first = read(&bed).await.unwrap();
    assert!(first.version > 0);
    append(&bed, "b", vec![write(first.version, Some("2"))]).await.unwrap();
    for stale in [0, first.version] {
        let conflict = append(&bed, "lost", vec![write(stale, Some("3"))]).await;
        assert!(matches!(conflict, Err(StoreError::KvConflict)), "{conflict:?}");
    }
    bed.crash().await;
    let KvValue { version, value } = read(&bed).await.unwrap();
    assert_eq!((version > first.version, value.as_slice()), (true, &b"2"[..]));
    assert!(bed.kv_get("filter/2", "count").await.unwrap().is_none(), "namespaces are apart");
    append(&bed, "c", vec![write(version, None)]).await.unwrap();
    assert!(read(&bed).await.is_none());
    append(&bed, "d", vec![write(0, Some("4"))]).await.unwrap();
    assert!(read(&bed).await.unwrap().version > version, "no version of a key comes twice");
    assert_eq!(bed.log().await, ["a", "b", "c", "d"]);
}

pub(crate) async fn a_deleted_topic_is_gone(bed: Bed) {
    let mut bed = bed.with_dead_letters().await;
    bed.publish(&["a", "b"]).await;
    let lease = bed.take_one().await;
    bed.delete_topic(TOPIC).await.unwrap();
    bed.delete_topic(TOPIC).await.expect("there is nothing to do");
    for _ in 0..2 {
        assert_eq!(bed.topics().await.unwrap(), [DEAD]);
        assert!(matches!(bed.read(bed.whole(TOPIC)).await, Err(StoreError::NoTopic)));
        assert!(bed.get(lease.message.id).await.unwrap().is_none());
        assert!(bed.end(&lease, sluice::store::Settlement::Ack).await.is_err());
        bed.crash().await;
    }
    // Its number is never used again; the others go on.
    bed.put_topic(topic(TopicId(3))).await.unwrap();
    bed.put_group(group(TopicId(3), GROUP)).await.unwrap();
    let message = bed.message_in(TopicId(3), 0, "c");
    bed.append(AppendBatch { topic: TopicId(3), ..batch(vec![item(message)]) }).await.unwrap();
    assert_eq!(page_texts(&bed.read(bed.whole(TopicId(3))).await.unwrap()), ["c"]);
}

pub(crate) async fn a_topics_settings_change_and_its_partitions_do_not(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a"]).await;
    bed.put_topic(topic(TOPIC)).await.expect("the same again is no change");
    for partitions in [0, 2, PARTITIONS_MAX + 1] {
        let changed = bed.put_topic(TopicSpec { partitions, ..topic(TOPIC) }).await;
        assert!(matches!(changed, Err(StoreError::Invalid(_))), "{partitions}: {changed:?}");
    }
    bed.put_topic(TopicSpec { retention: Duration::from_millis(60_500), ..topic(TOPIC) }).await.unwrap();
    assert_eq!(bed.log().await, ["a"]);
    bed.pass(Duration::from_secs(61)).await;
    bed.retain().await.unwrap();
    assert!(bed.log().await.is_empty(), "the new retention holds for what is there");
}

pub(crate) async fn a_closed_store_refuses(bed: Bed) {
    let mut bed = bed.simple().await;
    assert_eq!(bed.health(), Ok(()));
    bed.publish(&["a"]).await;
    bed.close().await.unwrap();
    bed.close().await.expect("closing is idempotent");
    assert!(bed.append(batch(vec![item(bed.message("b"))])).await.is_err());
    assert!(bed.lease(bed.request(GROUP, 1)).await.is_err());
    assert!(bed.health().is_err());
    bed.crash().await;
    let lease = bed.take_one().await;
    assert_eq!((text(&lease.message).as_str(), lease.deadline), ("a", bed.later(LEASE)));
}
