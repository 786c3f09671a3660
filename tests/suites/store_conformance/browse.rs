//! Reading without consuming: pages, finding by id, erasing, figures.

use std::time::Duration;

use sluice::message::TopicId;
use sluice::store::{
    AppendBatch, DeliveryState, Page, ReadFrom, ReadRequest, SeekTo, SettleRefused, Settlement, StoreError, TopicSpec,
};
use sluice_tests::store_bed::{
    Bed, DEAD, GROUP, LEASE, OTHER, TOPIC, batch, failure, group, item, page_texts, texts, topic,
};

/// A topic of three partitions with `count` messages, named by their number in the order of appending.
async fn numbered(bed: &Bed, count: usize) -> Vec<String> {
    bed.put_topic(TopicSpec { partitions: 3, ..topic(TOPIC) }).await.unwrap();
    bed.put_group(group(TOPIC, GROUP)).await.unwrap();
    let lanes = if bed.capabilities().lanes { 3 } else { 1 };
    let mut names = Vec::new();
    for number in 0..count {
        let name = format!("{number:03}");
        let mut message = bed.message_in(TOPIC, (number % 3) as u16, &name);
        message.meta.priority = (number / 3 % lanes) as u8 * 4;
        bed.store(vec![message]).await;
        bed.clock.advance(Duration::from_secs(1));
        names.push(name);
    }
    names
}

async fn pages(bed: &Bed, first: ReadRequest) -> Vec<Page> {
    let mut pages = vec![bed.read(first.clone()).await.unwrap()];
    while let Some(next) = pages.last().unwrap().next().cloned() {
        assert!(pages.len() < 1000, "pages never end");
        pages.push(bed.read(ReadRequest { from: ReadFrom::Cursor(next), ..first.clone() }).await.unwrap());
    }
    pages
}

pub(crate) async fn pages_show_each_message_once_in_order(bed: Bed) {
    let names = numbered(&bed, 40).await;
    for limit in [1, 7, 40, 100] {
        let request = ReadRequest { limit, ..bed.whole(TOPIC) };
        let read: Vec<String> = pages(&bed, request).await.iter().flat_map(page_texts).collect();
        assert_eq!(read, names, "by {limit}");
    }
    let request = ReadRequest { limit: 4, partition: Some(1), ..bed.whole(TOPIC) };
    let read: Vec<String> = pages(&bed, request).await.iter().flat_map(page_texts).collect();
    let expected: Vec<&String> = names.iter().skip(1).step_by(3).collect();
    assert_eq!(read.iter().collect::<Vec<_>>(), expected, "one partition");
}

pub(crate) async fn a_page_keeps_its_bounds(bed: Bed) {
    let names = numbered(&bed, 10).await;
    let small = ReadRequest { bytes_max: 1, ..bed.whole(TOPIC) };
    let read = pages(&bed, small).await;
    assert!(
        read.iter().all(|page| page.messages.len() <= 1),
        "the first message comes whatever its size, and no other"
    );
    assert_eq!(read.iter().flat_map(page_texts).collect::<Vec<_>>(), names);
    let page = bed.read(ReadRequest { bytes_max: 9, ..bed.whole(TOPIC) }).await.unwrap();
    assert_eq!(page_texts(&page), names[..3], "three payloads of three bytes");
    assert!(page.next().is_some());
    let beyond = bed.read(ReadRequest { partition: Some(3), ..bed.whole(TOPIC) }).await;
    assert!(matches!(beyond, Err(StoreError::Invalid(_))), "{beyond:?}");
}

pub(crate) async fn reading_begins_where_it_is_told(bed: Bed) {
    let names = numbered(&bed, 30).await;
    let from = async |from, partition| {
        let request = ReadRequest { from, partition, ..bed.whole(TOPIC) };
        page_texts(&bed.read(request).await.unwrap())
    };
    let start = sluice_tests::store_bed::START;
    assert_eq!(from(ReadFrom::Time(start), None).await, names);
    assert_eq!(from(ReadFrom::Time(start.plus(Duration::from_millis(11_500))), None).await, names[12..]);
    assert_eq!(from(ReadFrom::Time(start.plus(Duration::from_secs(12))), None).await, names[12..], "at or after");
    assert!(from(ReadFrom::Time(bed.later(Duration::from_secs(1))), None).await.is_empty());
    assert!(from(ReadFrom::Latest, None).await.is_empty());
    // Number 12 is the first message of its partition in its lane that comes after 3 or 9 others of the partition.
    let page = bed.read(bed.whole(TOPIC)).await.unwrap();
    let (position, _) = page.messages[12];
    let expected: Vec<&String> = names[12..].iter().step_by(3).collect();
    let read = from(ReadFrom::Offset(position.offset), Some(position.partition)).await;
    assert_eq!(read.iter().collect::<Vec<_>>(), expected, "its lane from there, the others with or after it");
    let nowhere = bed.read(ReadRequest { from: ReadFrom::Offset(position.offset), ..bed.whole(TOPIC) }).await;
    assert!(matches!(nowhere, Err(StoreError::Invalid(_))), "an offset needs a partition: {nowhere:?}");
    let latest = bed.read(ReadRequest { from: ReadFrom::Latest, ..bed.whole(TOPIC) }).await.unwrap();
    assert!(latest.next().is_none() && latest.messages.is_empty());
    bed.publish(&["later"]).await;
    assert_eq!(from(ReadFrom::Cursor(latest.reached), None).await, ["later"], "following begins at the end");
}

pub(crate) async fn a_reader_that_goes_on_where_it_was_follows_the_log(bed: Bed) {
    let mut names = numbered(&bed, 5).await;
    let mut page = bed.read(ReadRequest { limit: 3, ..bed.whole(TOPIC) }).await.unwrap();
    let mut read = page_texts(&page);
    for round in 0..20 {
        // Each second look finds nothing new; lanes that were not there before come up meanwhile.
        if round % 2 == 0 {
            for number in 0..3_usize {
                let name = format!("round {round}, {number}");
                let mut message = bed.message_in(TOPIC, (number % 3) as u16, &name);
                message.meta.priority = if bed.capabilities().lanes { (round / 2) as u8 } else { 0 };
                bed.store(vec![message]).await;
                names.push(name);
            }
        }
        let from = ReadFrom::Cursor(page.reached);
        page = bed.read(ReadRequest { from, limit: 100, ..bed.whole(TOPIC) }).await.unwrap();
        assert!(page.next().is_none());
        read.extend(page_texts(&page));
    }
    assert_eq!(read, names);
}

pub(crate) async fn reading_moves_no_cursor(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a", "b"]).await;
    assert_eq!(bed.log().await, ["a", "b"]);
    assert_eq!(texts(&bed.take(10).await), ["a", "b"]);
    assert_eq!(bed.log().await, ["a", "b"], "leased messages are read");
}

pub(crate) async fn a_message_is_found_by_its_id(bed: Bed) {
    let bed = bed.simple().await;
    bed.put_group(group(TOPIC, OTHER)).await.unwrap();
    let messages: Vec<_> = ["a", "b", "c", "d"].map(|text| bed.message(text)).into();
    let positions = bed.store(messages.clone()).await;
    let leases = bed.take(4).await;
    bed.ack(&leases[..1]).await;
    let at = bed.later(Duration::from_millis(5500));
    bed.end(&leases[1], Settlement::Retry { at, failure: failure() }).await.unwrap();
    bed.end(&leases[3], Settlement::Release).await.unwrap();
    let expected = [
        DeliveryState::Settled,
        DeliveryState::Retrying { attempts: 1, at },
        DeliveryState::Leased { attempt: 1, deadline: bed.later(LEASE) },
        DeliveryState::Waiting,
    ];
    for (number, message) in messages.iter().enumerate() {
        let found = bed.get(message.id).await.unwrap().expect("it is there");
        assert_eq!((&found.message, found.position, found.due), (message, Some(positions[number]), None));
        let mut groups = found.groups;
        groups.sort_by_key(|status| status.group);
        assert_eq!(groups.iter().map(|status| status.group).collect::<Vec<_>>(), [GROUP, OTHER]);
        assert_eq!(groups[0].state, expected[number], "message {number}");
        assert_eq!(groups[1].state, DeliveryState::Waiting);
        let failed: Vec<_> = groups[0].failures.as_slice().iter().map(|failed| failed.failure.clone()).collect();
        assert_eq!(failed, if number == 1 { vec![failure()] } else { vec![] });
    }
    assert!(bed.get(bed.message("never stored").id).await.unwrap().is_none());
    assert!(bed.get(bed.message_in(TopicId(99), 0, "no such topic").id).await.unwrap().is_none());
}

pub(crate) async fn an_erased_message_is_nowhere(bed: Bed) {
    let mut bed = bed.with_dead_letters().await;
    let messages: Vec<_> = ["a", "leased", "dead", "copy", "b"].map(|text| bed.message(text)).into();
    bed.store(messages.clone()).await;
    let leases = bed.take(4).await;
    bed.end(&leases[0], Settlement::Release).await.unwrap();
    bed.end(&leases[2], Settlement::DeadLetter { failure: failure() }).await.unwrap();
    bed.end(&leases[3], Settlement::DeadLetter { failure: failure() }).await.unwrap();
    let copies: Vec<_> = bed.dead().await.iter().map(|(_, message)| message.id).collect();
    // A dead letter alone, and one that goes with the message that it is a copy of.
    for id in [messages[0].id, messages[1].id, messages[2].id, copies[1]] {
        assert!(bed.erase(id).await.unwrap());
        assert!(!bed.erase(id).await.unwrap(), "it is not there any more");
    }
    assert!(!bed.erase(bed.message("never stored").id).await.unwrap());
    for _ in 0..2 {
        for id in [messages[0].id, messages[1].id, messages[2].id, copies[0], copies[1]] {
            assert!(bed.get(id).await.unwrap().is_none());
        }
        assert_eq!(bed.log().await, ["copy", "b"]);
        assert!(bed.dead().await.is_empty());
        bed.crash().await;
    }
    assert_eq!(texts(&bed.take(10).await), ["b"]);
    bed.seek(TOPIC, GROUP, SeekTo::Earliest).await.unwrap();
    assert_eq!(texts(&bed.take(10).await), ["copy", "b"], "a seek does not bring it back");
    let late = bed.end(&leases[1], Settlement::Ack).await;
    assert!(matches!(late, Err(SettleRefused::LeaseExpired | SettleRefused::NotFound)), "{late:?}");
}

pub(crate) async fn figures_add_up(bed: Bed) {
    let bed = bed.with_dead_letters().await;
    let empty = bed.stats(TOPIC).await.unwrap();
    assert_eq!((empty.messages, empty.oldest, empty.dedup_keys), (0, None, 0));
    let first = bed.clock.now();
    bed.publish(&["a", "b", "c", "d", "e"]).await;
    bed.clock.advance(Duration::from_secs(10));
    bed.publish(&["f"]).await;
    let mut keyed = item(bed.message("g"));
    keyed.dedup = sluice_tests::store_bed::key("k", "request");
    bed.append(AppendBatch { all_or_nothing: true, ..batch(vec![keyed]) }).await.unwrap();

    let leases = bed.take(4).await;
    bed.ack(&leases[..1]).await;
    bed.nack(&leases[1], Duration::from_millis(5500)).await.unwrap();
    bed.end(&leases[2], Settlement::DeadLetter { failure: failure() }).await.unwrap();
    let stats = bed.stats(TOPIC).await.unwrap();
    assert_eq!((stats.messages, stats.appended_total, stats.removed_total), (7, 7, 0));
    assert_eq!((stats.oldest, stats.scheduled, stats.dedup_keys), (Some(first), 0, 1));
    assert!(stats.bytes >= 7);
    let figures = bed.figures(GROUP).await;
    assert_eq!((figures.waiting, figures.leased, figures.retrying), (3, 1, 1));
    assert_eq!((figures.acked_total, figures.dead_lettered_total, figures.delivered_total), (1, 1, 4));
    assert_eq!((figures.oldest_unsettled, figures.expired_total), (Some(first), 0));
    let list = bed.stats(DEAD).await.unwrap();
    assert_eq!((list.messages, list.groups[0].waiting), (1, 1));
    bed.pass(Duration::from_secs(6)).await;
    let figures = bed.figures(GROUP).await;
    assert_eq!((figures.waiting, figures.leased, figures.retrying), (4, 1, 0), "a retry that is due waits");
    bed.purge(TOPIC, GROUP).await.unwrap();
    bed.ack(&leases[3..]).await;
    let figures = bed.figures(GROUP).await;
    assert_eq!((figures.waiting, figures.leased, figures.oldest_unsettled), (0, 0, None));
    assert_eq!(figures.acked_total, 2, "what was purged was not acked");
}
