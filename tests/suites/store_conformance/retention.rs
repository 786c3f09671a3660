//! What leaves a log: by time whatever is unsettled, by bytes only what every group has settled.

use std::time::Duration;

use bytes::Bytes;
use sluice::message::{GroupId, Message};
use sluice::store::{AppendBatch, AppendOutcome, Settlement, TopicSpec};
use sluice_tests::store_bed::{Bed, DEAD, GROUP, OTHER, TOPIC, batch, failure, group, item, texts, topic};

const HOUR: Duration = Duration::from_secs(3600);

/// A topic that keeps messages for an hour (and half a second: no test hits the very millisecond).
async fn for_an_hour(bed: &Bed) {
    bed.put_topic(TopicSpec { retention: HOUR + Duration::from_millis(500), ..topic(TOPIC) }).await.unwrap();
    bed.put_group(group(TOPIC, GROUP)).await.unwrap();
}

pub(crate) async fn what_is_too_old_is_gone(bed: Bed) {
    let mut bed = bed;
    for_an_hour(&bed).await;
    let positions = bed.publish(&["a", "b"]).await;
    bed.clock.advance(HOUR / 2);
    let kept = bed.message("c");
    bed.store(vec![kept.clone()]).await;
    bed.pass(HOUR / 2 + Duration::from_secs(1)).await;
    let report = bed.retain().await.unwrap();
    assert_eq!((report.removed, report.expired), (2, 2));
    assert_eq!(bed.retain().await.unwrap().removed, 0);
    for _ in 0..2 {
        assert_eq!(bed.log().await, ["c"]);
        let stats = bed.stats(TOPIC).await.unwrap();
        assert_eq!((stats.messages, stats.removed_total, stats.appended_total), (1, 2, 3));
        assert_eq!(stats.oldest, Some(kept.meta.published_at));
        bed.crash().await;
    }
    let next = bed.publish(&["d"]).await[0];
    assert_eq!(next.offset.sequence(), positions[1].offset.sequence() + 2, "offsets are not used again");
    bed.pass(HOUR * 2).await;
    bed.retain().await.unwrap();
    assert!(bed.log().await.is_empty());
    bed.crash().await;
    let next = bed.publish(&["e"]).await[0];
    assert_eq!(next.offset.sequence(), positions[1].offset.sequence() + 3, "not even by an empty log");
    assert_eq!(bed.log().await, ["e"]);
}

pub(crate) async fn what_is_gone_is_not_missed_when_the_store_opens(bed: Bed) {
    let mut bed = bed;
    for_an_hour(&bed).await;
    bed.publish(&["a"]).await;
    bed.restart().await;
    for size in [2000, 5000, 10, 5000] {
        bed.store(vec![Message { payload: Bytes::from(vec![b'x'; size]), ..bed.message("") }]).await;
    }
    bed.pass(HOUR * 2).await;
    assert_eq!(bed.retain().await.unwrap().removed, 5);
    bed.crash().await;
    bed.publish(&["b"]).await;
    bed.crash().await;
    assert_eq!(bed.log().await, ["b"]);
}

pub(crate) async fn unsettled_messages_expire_and_are_counted(bed: Bed) {
    let mut bed = bed;
    for_an_hour(&bed).await;
    bed.put_group(group(TOPIC, OTHER)).await.unwrap();
    bed.publish(&["acked", "leased", "retried", "waiting"]).await;
    bed.clock.advance(HOUR);
    let leases = bed.take(3).await;
    bed.ack(&leases[..1]).await;
    bed.nack(&leases[2], HOUR).await.unwrap();
    bed.pass(Duration::from_secs(1)).await;
    assert!(bed.take(10).await.is_empty(), "too old is not granted, removed or not");
    bed.retain().await.unwrap();
    let late = bed.end(&leases[1], Settlement::Ack).await;
    assert!(late.is_err(), "retention ends leases: {late:?}");
    for _ in 0..2 {
        let figures = bed.figures(GROUP).await;
        assert_eq!((figures.waiting, figures.leased, figures.retrying), (0, 0, 0));
        assert_eq!((figures.acked_total, figures.expired_total, figures.oldest_unsettled), (1, 3, None));
        assert_eq!(bed.figures(OTHER).await.expired_total, 4);
        bed.crash().await;
    }
    bed.publish(&["new"]).await;
    assert_eq!(texts(&bed.take(10).await), ["new"]);
    assert_eq!(texts(&bed.take_for(OTHER, 10).await), ["new"]);
}

/// What the full topic of these rules holds. An engine may give room back in pieces of up to an eighth of it.
const TOPIC_BYTES: u64 = 1024 * 1024;

/// A message of 16 KiB.
fn large(bed: &Bed) -> Message {
    Message { payload: Bytes::from(vec![b'x'; 16 * 1024]), ..bed.message("") }
}

/// A topic that was filled until it refused; how many messages it took.
async fn filled(bed: &Bed) -> usize {
    bed.put_topic(TopicSpec { retention_bytes: Some(TOPIC_BYTES), ..topic(TOPIC) }).await.unwrap();
    bed.put_group(group(TOPIC, GROUP)).await.unwrap();
    for stored in 0..=64 {
        match bed.append_one(item(large(bed))).await {
            AppendOutcome::Stored(_) => {}
            AppendOutcome::TopicFull => return stored,
            other => panic!("{other:?}"),
        }
    }
    panic!("65 messages of 16 KiB are in a topic of 1 MiB");
}

pub(crate) async fn a_full_topic_refuses_until_messages_are_settled(bed: Bed) {
    let mut bed = bed;
    let stored = filled(&bed).await;
    assert!(stored >= 56, "heads are small beside payloads of 16 KiB: {stored}");
    bed.crash().await;
    assert_eq!(bed.append_one(item(large(&bed))).await, AppendOutcome::TopicFull);
    assert_eq!(bed.log().await.len(), stored, "what is unsettled is not removed to make room");
    let mut keyed = item(large(&bed));
    keyed.dedup = sluice_tests::store_bed::key("k", "request");
    assert_eq!(bed.append_one(keyed).await, AppendOutcome::TopicFull);
    assert!(bed.dedup_lookup(TOPIC, "k").await.unwrap().is_none(), "what finds no room uses no key up");
    bed.ack(&bed.take(stored / 2).await).await;
    let mut more = 0;
    while let AppendOutcome::Stored(_) = bed.append_one(item(large(&bed))).await {
        more += 1;
    }
    assert!(more >= stored / 2 - 8 && more <= stored / 2, "{more} found the room of {}", stored / 2);
    assert_eq!(bed.take(1000).await.len(), stored - stored / 2 + more, "nothing unsettled was lost");
}

pub(crate) async fn settled_messages_make_room(bed: Bed) {
    let mut bed = bed;
    let stored = filled(&bed).await;
    bed.put_group(group(TOPIC, OTHER)).await.unwrap();
    bed.ack(&bed.take(1000).await).await;
    assert_eq!(bed.append_one(item(large(&bed))).await, AppendOutcome::TopicFull, "one group has not settled them");
    bed.purge(TOPIC, OTHER).await.unwrap();
    for round in 0..3 * stored {
        let outcome = bed.append_one(item(large(&bed))).await;
        assert!(matches!(outcome, AppendOutcome::Stored(_)), "{outcome:?}");
        let lease = bed.take(1).await;
        bed.ack(&lease).await;
        bed.purge(TOPIC, OTHER).await.unwrap();
        if round % stored == 0 {
            bed.crash().await;
            bed.retain().await.unwrap();
        }
    }
    let stats = bed.stats(TOPIC).await.unwrap();
    assert!(stats.bytes <= TOPIC_BYTES, "{} bytes", stats.bytes);
    assert_eq!(stats.appended_total - stats.removed_total, stats.messages);
}

pub(crate) async fn an_atomic_batch_finds_room_or_none(bed: Bed) {
    let stored = filled(&bed).await;
    bed.ack(&bed.take(24).await).await;
    let atomic = |count| AppendBatch { all_or_nothing: true, ..batch((0..count).map(|_| item(large(&bed))).collect()) };
    let outcomes = bed.append(atomic(25)).await.unwrap();
    let refused =
        outcomes.iter().all(|outcome| matches!(outcome, AppendOutcome::TopicFull | AppendOutcome::NotAttempted));
    assert!(refused && outcomes.contains(&AppendOutcome::TopicFull), "{outcomes:?}");
    assert_eq!(bed.stats(TOPIC).await.unwrap().appended_total, stored as u64);
    let outcomes = bed.append(atomic(16)).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, AppendOutcome::Stored(_))), "{outcomes:?}");
}

pub(crate) async fn dead_letters_have_retention_of_their_own(bed: Bed) {
    for_an_hour(&bed).await;
    bed.put_topic(TopicSpec { retention: HOUR * 10, ..topic(DEAD) }).await.unwrap();
    bed.put_group(group(DEAD, GroupId::SHARED)).await.unwrap();
    let spec = TopicSpec { retention: HOUR, dead_letter: Some(DEAD), ..topic(TOPIC) };
    bed.put_topic(spec).await.unwrap();
    bed.publish(&["a"]).await;
    let lease = bed.take_one().await;
    bed.end(&lease, Settlement::DeadLetter { failure: failure() }).await.unwrap();
    bed.pass(HOUR * 2).await;
    bed.retain().await.unwrap();
    assert_eq!((bed.log().await.len(), bed.dead().await.len()), (0, 1));
    bed.pass(HOUR * 9).await;
    bed.retain().await.unwrap();
    assert!(bed.dead().await.is_empty());
}
