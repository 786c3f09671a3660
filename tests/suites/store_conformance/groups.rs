//! Cursors: where they begin, and how they are moved.

use std::time::Duration;

use sluice::message::{GroupId, Offset, TopicId};
use sluice::store::{GroupSpec, SNAPSHOTS_MAX, SeekTo, SettleRefused, Settlement, StoreError, TopicSpec};
use sluice_tests::store_bed::{Bed, GROUP, OTHER, START, TOPIC, group, texts, topic};

pub(crate) async fn each_group_gets_every_message(bed: Bed) {
    let bed = bed.simple().await;
    bed.put_group(group(TOPIC, OTHER)).await.unwrap();
    let mut groups = bed.groups(TOPIC).await.unwrap();
    groups.sort();
    assert_eq!(groups, [GROUP, OTHER]);
    bed.publish(&["a", "b"]).await;
    let leases = bed.take(10).await;
    assert_eq!(texts(&leases), ["a", "b"]);
    bed.ack(&leases).await;
    let leases = bed.take_for(OTHER, 10).await;
    assert_eq!(texts(&leases), ["a", "b"]);
    assert_eq!(bed.nack(&leases[0], Duration::ZERO).await.map(drop), Ok(()));
    bed.pass(Duration::from_secs(1)).await;
    assert!(bed.take(10).await.is_empty(), "one group's retry is not another's");
}

pub(crate) async fn a_group_begins_where_it_is_told(bed: Bed) {
    bed.put_topic(topic(TOPIC)).await.unwrap();
    bed.publish(&["a"]).await;
    bed.clock.advance(Duration::from_secs(10));
    bed.publish(&["b", "c"]).await;
    let starts = [
        (SeekTo::Earliest, vec!["a", "b", "c", "d"]),
        (SeekTo::Latest, vec!["d"]),
        (SeekTo::Time(START.plus(Duration::from_secs(5))), vec!["b", "c", "d"]),
        (SeekTo::Time(START.plus(Duration::from_secs(60))), vec!["d"]),
        (SeekTo::Offset(0, Offset::new(0, 2)), vec!["c", "d"]),
    ];
    for (number, (start, _)) in starts.iter().enumerate() {
        let id = sluice::message::GroupId(number as u32 + 1);
        bed.put_group(GroupSpec { start: *start, ..group(TOPIC, id) }).await.unwrap();
    }
    bed.publish(&["d"]).await;
    for (number, (start, expected)) in starts.iter().enumerate() {
        let id = sluice::message::GroupId(number as u32 + 1);
        assert_eq!(texts(&bed.take_for(id, 10).await), *expected, "{start:?}");
    }
    let nowhere = bed.put_group(group(TopicId(99), GROUP)).await;
    assert!(matches!(nowhere, Err(StoreError::NoTopic)), "{nowhere:?}");
}

pub(crate) async fn a_group_keeps_its_cursor_when_changed(bed: Bed) {
    let bed = bed.with_dead_letters().await;
    bed.publish(&["a", "b"]).await;
    bed.ack(&[bed.take_one().await]).await;
    bed.put_group(GroupSpec { attempts_max: 1, start: SeekTo::Earliest, ..group(TOPIC, GROUP) }).await.unwrap();
    let lease = bed.take_one().await;
    assert_eq!(texts(std::slice::from_ref(&lease)), ["b"]);
    assert_eq!(
        bed.nack(&lease, Duration::ZERO).await,
        Ok(sluice::store::Settled::DeadLettered),
        "the new settings hold"
    );
}

pub(crate) async fn a_deleted_group_is_gone(bed: Bed) {
    let bed = bed.simple().await;
    bed.put_group(group(TOPIC, OTHER)).await.unwrap();
    bed.publish(&["a"]).await;
    let lease = bed.take_one().await;
    bed.delete_group(TOPIC, GROUP).await.unwrap();
    bed.delete_group(TOPIC, GROUP).await.expect("there is nothing to do");
    assert_eq!(bed.end(&lease, Settlement::Ack).await, Err(SettleRefused::NotFound));
    assert!(matches!(bed.lease(bed.request(GROUP, 1)).await, Err(StoreError::NoGroup)));
    assert!(matches!(bed.seek(TOPIC, GROUP, SeekTo::Latest).await, Err(StoreError::NoGroup)));
    assert!(matches!(bed.purge(TOPIC, GROUP).await, Err(StoreError::NoGroup)));
    assert_eq!(bed.groups(TOPIC).await.unwrap(), [OTHER]);
    assert_eq!(texts(&bed.take_for(OTHER, 10).await), ["a"]);
}

pub(crate) async fn seeking_back_delivers_again(bed: Bed) {
    let mut bed = bed.simple().await;
    bed.publish(&["a", "b", "c"]).await;
    let leases = bed.take(3).await;
    bed.ack(&leases[..2]).await;
    bed.nack(&leases[2], Duration::from_millis(60_500)).await.unwrap();
    bed.seek(TOPIC, GROUP, SeekTo::Earliest).await.unwrap();
    bed.crash().await;
    let again = bed.take(10).await;
    assert_eq!(texts(&again), ["a", "b", "c"], "what was acked comes again, and the retry's wait is forgotten");
    assert!(again.iter().all(|lease| lease.attempt == 1), "so are the attempts");
    let figures = bed.figures(GROUP).await;
    assert_eq!((figures.acked_total, figures.retrying, figures.leased), (2, 0, 3));
}

pub(crate) async fn seeking_on_skips(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a", "b"]).await;
    bed.nack(&bed.take_one().await, Duration::ZERO).await.unwrap();
    bed.seek(TOPIC, GROUP, SeekTo::Latest).await.unwrap();
    bed.publish(&["c"]).await;
    assert_eq!(texts(&bed.take(10).await), ["c"]);
    assert_eq!(bed.figures(GROUP).await.waiting, 0);
}

pub(crate) async fn seeking_by_time(bed: Bed) {
    let bed = bed.simple().await;
    for name in ["a", "b", "c"] {
        bed.publish(&[name]).await;
        bed.clock.advance(Duration::from_secs(10));
    }
    for (seconds, expected) in [(0, vec!["a", "b", "c"]), (10, vec!["b", "c"]), (15, vec!["c"]), (25, vec![])] {
        bed.seek(TOPIC, GROUP, SeekTo::Time(START.plus(Duration::from_secs(seconds)))).await.unwrap();
        assert_eq!(texts(&bed.take(10).await), expected, "{seconds} s");
    }
}

pub(crate) async fn seeking_by_offset_moves_one_lane(bed: Bed) {
    bed.put_topic(TopicSpec { partitions: 2, ..topic(TOPIC) }).await.unwrap();
    bed.put_group(group(TOPIC, GROUP)).await.unwrap();
    let in_partition = |partition, name| bed.message_in(TOPIC, partition, name);
    bed.store(vec![in_partition(0, "a"), in_partition(0, "b"), in_partition(0, "c"), in_partition(1, "d")]).await;
    bed.ack(&bed.take(10).await).await;
    bed.seek(TOPIC, GROUP, SeekTo::Offset(0, Offset::new(0, 1))).await.unwrap();
    assert_eq!(texts(&bed.take(10).await), ["b", "c"]);
    let beyond = bed.seek(TOPIC, GROUP, SeekTo::Offset(2, Offset::new(0, 0))).await;
    assert!(matches!(beyond, Err(StoreError::Invalid(_))), "{beyond:?}");
    // Beyond the end there is nothing to skip: what comes next is delivered.
    bed.seek(TOPIC, GROUP, SeekTo::Offset(0, Offset::new(0, 100))).await.unwrap();
    bed.store(vec![in_partition(0, "e")]).await;
    let held = bed.take(10).await;
    assert_eq!(texts(&held), ["e"]);
    bed.seek(TOPIC, GROUP, SeekTo::Offset(1, Offset::new(0, 0))).await.unwrap();
    assert_eq!(texts(&bed.take(10).await), ["d"], "what is leased elsewhere does not come again");
    bed.ack(&held).await;
}

pub(crate) async fn seeking_in_one_lane_hides_nothing_of_another(bed: Bed) {
    if !bed.capabilities().lanes {
        return;
    }
    let bed = bed.simple().await;
    bed.publish(&["a", "b"]).await;
    let leases = bed.take(2).await;
    bed.nack(&leases[0], Duration::from_millis(500)).await.unwrap();
    bed.seek(TOPIC, GROUP, SeekTo::Offset(0, Offset::new(4, 0))).await.unwrap();
    bed.pass(Duration::from_secs(31)).await;
    assert_eq!(texts(&bed.take(10).await), ["a", "b"], "a retry that is due, and a lease that ended behind it");
}

pub(crate) async fn seeking_ends_leases(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a", "b"]).await;
    let before = bed.take(2).await;
    bed.seek(TOPIC, GROUP, SeekTo::Earliest).await.unwrap();
    assert_eq!(bed.end(&before[0], Settlement::Ack).await, Err(SettleRefused::LeaseExpired));
    let after = bed.take(2).await;
    assert_eq!(texts(&after), ["a", "b"]);
    assert_eq!(bed.end(&before[1], Settlement::Ack).await, Err(SettleRefused::LeaseExpired));
    bed.ack(&after).await;
}

pub(crate) async fn a_seek_makes_no_dead_letter_of_what_is_out(bed: Bed) {
    let bed = bed.with_dead_letters().await;
    bed.put_group(GroupSpec { attempts_max: 1, ..group(TOPIC, GROUP) }).await.unwrap();
    bed.publish(&["a", "b"]).await;
    bed.take(2).await;
    bed.seek(TOPIC, GROUP, SeekTo::Earliest).await.unwrap();
    bed.tick().await.unwrap();
    assert!(bed.dead().await.is_empty(), "it is tried again");
    assert_eq!(texts(&bed.take(2).await), ["a", "b"]);
}

pub(crate) async fn purging_settles_what_waits(bed: Bed) {
    let mut bed = bed.simple().await;
    bed.put_group(group(TOPIC, OTHER)).await.unwrap();
    bed.publish(&["acked", "retried", "leased", "d", "e"]).await;
    let leases = bed.take(3).await;
    bed.ack(&leases[..1]).await;
    bed.nack(&leases[1], Duration::from_millis(60_500)).await.unwrap();
    assert_eq!(bed.purge(TOPIC, GROUP).await.unwrap(), 3, "two that wait and one that waits for its retry");
    bed.ack(&leases[2..]).await;
    assert_eq!(bed.purge(TOPIC, GROUP).await.unwrap(), 0);
    bed.publish(&["f"]).await;
    bed.crash().await;
    bed.pass(Duration::from_secs(61)).await;
    assert_eq!(texts(&bed.take(10).await), ["f"]);
    assert_eq!(bed.take_for(OTHER, 10).await.len(), 6, "other groups are not touched");
}

pub(crate) async fn a_snapshot_brings_back_what_was_not_settled_then(bed: Bed) {
    let mut bed = bed.simple().await;
    bed.publish(&["a", "b", "c"]).await;
    let leases = bed.take(3).await;
    bed.end(&leases[1], Settlement::Ack).await.unwrap();
    bed.put_snapshot(TOPIC, GROUP, "before".into()).await.unwrap();
    for lease in [&leases[0], &leases[2]] {
        bed.end(lease, Settlement::Ack).await.unwrap();
    }
    bed.publish(&["d"]).await;
    let later = bed.take_one().await;
    bed.end(&later, Settlement::Ack).await.unwrap();
    for _ in 0..2 {
        bed.crash().await;
        assert!(bed.restore(TOPIC, GROUP, "before".into()).await.unwrap());
        let back = bed.take(10).await;
        assert_eq!(texts(&back), ["a", "c", "d"]);
        for lease in &back {
            bed.end(lease, Settlement::Ack).await.unwrap();
        }
        assert!(bed.take(10).await.is_empty(), "and each once");
    }
}

pub(crate) async fn a_snapshot_is_of_its_group_and_keeps_no_message(bed: Bed) {
    let mut bed = bed.simple().await;
    bed.put_group(group(TOPIC, OTHER)).await.unwrap();
    bed.publish(&["a"]).await;
    let at = bed.clock.now();
    bed.put_snapshot(TOPIC, GROUP, "one".into()).await.unwrap();
    assert_eq!(bed.snapshots(TOPIC, GROUP).await.unwrap(), [("one".into(), at)]);
    assert!(bed.snapshots(TOPIC, OTHER).await.unwrap().is_empty());
    assert!(!bed.restore(TOPIC, OTHER, "one".into()).await.unwrap());
    assert!(!bed.restore(TOPIC, GROUP, "two".into()).await.unwrap());
    assert!(matches!(bed.restore(TOPIC, GroupId(77), "one".into()).await, Err(StoreError::NoGroup)));

    bed.put_topic(TopicSpec { retention: Duration::from_secs(60), ..topic(TOPIC) }).await.unwrap();
    bed.pass(Duration::from_secs(61)).await;
    bed.retain().await.unwrap();
    bed.publish(&["b"]).await;
    assert!(bed.restore(TOPIC, GROUP, "one".into()).await.unwrap());
    assert_eq!(texts(&bed.take(10).await), ["b"], "what retention removed is gone");

    assert!(bed.delete_snapshot(TOPIC, GROUP, "one".into()).await.unwrap());
    assert!(!bed.delete_snapshot(TOPIC, GROUP, "one".into()).await.unwrap());
    for number in 0..SNAPSHOTS_MAX {
        bed.put_snapshot(TOPIC, GROUP, number.to_string().into()).await.unwrap();
    }
    bed.put_snapshot(TOPIC, GROUP, "0".into()).await.unwrap();
    let refused = bed.put_snapshot(TOPIC, GROUP, "more".into()).await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    bed.crash().await;
    assert_eq!(bed.snapshots(TOPIC, GROUP).await.unwrap().len(), SNAPSHOTS_MAX);
}
