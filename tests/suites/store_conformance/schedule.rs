//! Messages that wait until they are due.

use std::time::Duration;

use sluice::clock::Timestamp;
use sluice::message::{Message, MessageId};
use sluice::store::{AppendItem, AppendOutcome, Entry, TopicSpec};
use sluice_tests::store_bed::{Bed, DEAD, GROUP, TOPIC, group, item, texts, topic};

/// An item that is due so long from now; its id carries the time, as the publish path makes it.
fn due_in(bed: &Bed, delay: Duration, text: &str) -> (AppendItem, Message, Timestamp) {
    let due = bed.later(delay);
    let mut message = bed.message(text);
    let entropy = message.id.0.as_u64_pair().1;
    message.id = MessageId::new(due, TOPIC, 0, entropy);
    let entry = Entry::Log { partition: 0, message: message.clone(), due: Some(due), target: None };
    (AppendItem { entry, ..item(message.clone()) }, message, due)
}

pub(crate) async fn a_scheduled_message_waits(bed: Bed) {
    if !bed.capabilities().schedule {
        return;
    }
    let bed = bed.simple().await;
    let (item, message, due) = due_in(&bed, Duration::from_millis(60_500), "a");
    assert_eq!(bed.append_one(item).await, AppendOutcome::Scheduled);
    bed.pass(Duration::from_secs(60)).await;
    assert!(bed.log().await.is_empty());
    assert!(bed.take(10).await.is_empty());
    let stats = bed.stats(TOPIC).await.unwrap();
    assert_eq!((stats.scheduled, stats.messages, stats.appended_total), (1, 0, 0));
    assert_eq!(bed.figures(GROUP).await.waiting, 0);
    let found = bed.get(message.id).await.unwrap().unwrap();
    assert_eq!((&found.message, found.position, found.due), (&message, None, Some(due)));
    let next = bed.tick().await.unwrap();
    assert!(next.is_none_or(|next| next <= due), "whoever sleeps until {next:?} comes too late for {due:?}");

    bed.pass(Duration::from_secs(1)).await;
    assert_eq!(bed.log().await, ["a"]);
    let leases = bed.take(10).await;
    assert_eq!(texts(&leases), ["a"]);
    let found = bed.get(message.id).await.unwrap().unwrap();
    assert_eq!((found.position, found.due), (Some(leases[0].position), None));
    let stats = bed.stats(TOPIC).await.unwrap();
    assert_eq!((stats.scheduled, stats.messages, stats.appended_total), (0, 1, 1));
}

pub(crate) async fn what_is_due_enters_in_order(bed: Bed) {
    if !bed.capabilities().schedule {
        return;
    }
    let bed = bed.simple().await;
    for (seconds, name) in [(30, "c"), (10, "a"), (20, "b"), (40, "d")] {
        let (item, ..) = due_in(&bed, Duration::from_millis(seconds * 1000 + 500), name);
        bed.append_one(item).await;
    }
    bed.pass(Duration::from_secs(31)).await;
    bed.publish(&["later"]).await;
    bed.pass(Duration::from_secs(10)).await;
    assert_eq!(bed.log().await, ["a", "b", "c", "later", "d"]);
    assert_eq!(texts(&bed.take(10).await), ["a", "b", "c", "later", "d"]);
}

pub(crate) async fn the_schedule_outlives_a_crash(bed: Bed) {
    if !bed.capabilities().schedule {
        return;
    }
    let mut bed = bed.simple().await;
    let (first, ..) = due_in(&bed, Duration::from_millis(10_500), "a");
    let (second, message, due) = due_in(&bed, Duration::from_millis(60_500), "b");
    bed.append_one(first).await;
    bed.append_one(second).await;
    bed.crash().await;
    assert_eq!(bed.stats(TOPIC).await.unwrap().scheduled, 2);
    bed.pass(Duration::from_secs(11)).await;
    bed.crash().await;
    assert_eq!(bed.log().await, ["a"], "it entered once");
    assert_eq!(bed.get(message.id).await.unwrap().unwrap().due, Some(due));
    // Due while nothing was running: it enters with the first tick.
    bed.close().await.unwrap();
    bed.clock.advance(Duration::from_secs(60));
    bed.crash().await;
    bed.tick().await.unwrap();
    assert_eq!(texts(&bed.take(10).await), ["a", "b"]);
    bed.restart().await;
    assert_eq!(bed.log().await, ["a", "b"]);
}

pub(crate) async fn retention_counts_from_when_it_is_due(bed: Bed) {
    if !bed.capabilities().schedule {
        return;
    }
    bed.put_topic(TopicSpec { retention: Duration::from_secs(60), ..topic(TOPIC) }).await.unwrap();
    bed.put_group(group(TOPIC, GROUP)).await.unwrap();
    let (item, ..) = due_in(&bed, Duration::from_millis(100_500), "a");
    bed.append_one(item).await;
    bed.pass(Duration::from_secs(90)).await;
    bed.retain().await.unwrap();
    assert_eq!(bed.stats(TOPIC).await.unwrap().scheduled, 1, "not in the log, so not in retention");
    bed.pass(Duration::from_secs(11)).await;
    bed.pass(Duration::from_secs(50)).await;
    bed.retain().await.unwrap();
    assert_eq!(bed.log().await, ["a"]);
    bed.pass(Duration::from_secs(20)).await;
    bed.retain().await.unwrap();
    assert!(bed.log().await.is_empty());
}

pub(crate) async fn a_scheduled_message_is_erased(bed: Bed) {
    if !bed.capabilities().schedule {
        return;
    }
    let mut bed = bed.with_dead_letters().await;
    let (item, message, _) = due_in(&bed, Duration::from_millis(60_500), "a");
    bed.append_one(item).await;
    assert!(bed.erase(message.id).await.unwrap());
    assert!(!bed.erase(message.id).await.unwrap());
    assert!(bed.get(message.id).await.unwrap().is_none());
    bed.crash().await;
    bed.pass(Duration::from_secs(61)).await;
    assert!(bed.log().await.is_empty());
    let stats = bed.stats(TOPIC).await.unwrap();
    assert_eq!((stats.scheduled, stats.messages), (0, 0));
    assert!(bed.stats(DEAD).await.unwrap().oldest.is_none());
}

pub(crate) async fn what_is_due_already_enters_at_once(bed: Bed) {
    if !bed.capabilities().schedule {
        return;
    }
    let bed = bed.simple().await;
    let mut item = item(bed.message("a"));
    let Entry::Log { due, .. } = &mut item.entry else { unreachable!("it was made one") };
    *due = Some(bed.clock.now().minus(Duration::from_secs(1)));
    assert!(matches!(bed.append_one(item).await, AppendOutcome::Stored(_)));
    assert_eq!(bed.log().await, ["a"]);
}
