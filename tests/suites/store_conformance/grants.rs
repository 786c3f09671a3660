//! What is granted, in which order, and to whom.

use std::collections::HashSet;
use std::time::Duration;

use sluice::message::{GroupId, PRIORITY_MAX};
use sluice::store::{
    AppendItem, AppendOutcome, Entry, LeaseRequest, Mode, SeekTo, SettleRefused, Settlement, TopicSpec,
};
use sluice_tests::store_bed::{Bed, GROUP, OTHER, TOPIC, group, item, text, texts, topic};

pub(crate) async fn grants_follow_offsets(bed: Bed) {
    let bed = bed.simple().await;
    let names: Vec<String> = (0..25).map(|number| format!("{number:02}")).collect();
    bed.publish(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut taken = texts(&bed.take(10).await);
    taken.extend(texts(&bed.take(1).await));
    taken.extend(texts(&bed.take(1000).await));
    assert_eq!(taken, names);
    assert!(bed.take(1000).await.is_empty());
}

pub(crate) async fn the_highest_lane_goes_first_and_the_lowest_is_not_starved(bed: Bed) {
    if !bed.capabilities().lanes {
        return;
    }
    let bed = bed.simple().await;
    for priority in [0, 5, PRIORITY_MAX] {
        let messages = (0..40).map(|number| bed.urgent(priority, &format!("{priority}-{number:02}"))).collect();
        bed.store(messages).await;
    }
    let mut taken = Vec::new();
    while let leases @ [_, ..] = &bed.take(7).await[..] {
        taken.extend(texts(leases));
    }
    assert_eq!(taken.len(), 120);
    // Forty of the highest and, beside them, every eighth of the lowest.
    let lowest = taken[..40].iter().filter(|text| text.starts_with("0-")).count();
    let highest = taken[..40].iter().filter(|text| text.starts_with("9-")).count();
    assert_eq!((lowest, highest), (5, 35), "{:?}", &taken[..40]);
    for eight in taken[..40].chunks(8) {
        assert_eq!(eight.iter().filter(|text| text.starts_with("0-")).count(), 1, "{eight:?}");
    }
    for lane in ["0-", "5-", "9-"] {
        let of_lane: Vec<&String> = taken.iter().filter(|text| text.starts_with(lane)).collect();
        assert!(of_lane.is_sorted(), "{of_lane:?}");
    }
}

pub(crate) async fn a_lease_keeps_its_bounds(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["1234567890", "12345", "12345", "1"]).await;
    let within = async |bytes_max, max| {
        texts(&bed.lease(LeaseRequest { bytes_max, ..bed.request(GROUP, max) }).await.unwrap().leases)
    };
    assert_eq!(within(3, 10).await, ["1234567890"], "the first is granted whatever its size");
    assert_eq!(within(10, 10).await, ["12345", "12345"]);
    assert_eq!(within(10, 10).await, ["1"]);
}

pub(crate) async fn more_says_whether_more_waits(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a", "b", "c"]).await;
    assert!(bed.lease(bed.request(GROUP, 2)).await.unwrap().more);
    let last = bed.lease(bed.request(GROUP, 2)).await.unwrap();
    assert_eq!((last.leases.len(), last.more), (1, false));
    assert!(!bed.lease(bed.request(GROUP, 2)).await.unwrap().more);
}

pub(crate) async fn more_knows_of_every_partition(bed: Bed) {
    bed.put_topic(TopicSpec { partitions: 3, ..topic(TOPIC) }).await.unwrap();
    for (number, ordered) in [(1, false), (2, true)] {
        if ordered && !bed.capabilities().ordered {
            continue;
        }
        let id = GroupId(number);
        bed.put_group(group(TOPIC, id)).await.unwrap();
        bed.store([0, 1, 1, 2, 0, 2].map(|partition| bed.message_in(TOPIC, partition, "x")).into()).await;
        let mut left = bed.figures(id).await.waiting;
        while left > 0 {
            let leased = bed.lease(LeaseRequest { ordered, ..bed.request(id, 1) }).await.unwrap();
            left -= 1;
            assert_eq!(leased.leases.len(), 1);
            // To say so in vain costs a consumer one empty answer; not to say so costs it a wait.
            assert!(leased.more || left == 0, "ordered: {ordered}, {left} are left");
        }
    }
}

pub(crate) async fn of_racing_leases_each_message_has_one(bed: Bed) {
    let bed = bed.simple().await;
    let names: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    bed.publish(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut racers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (store, request) = (bed.shared(), bed.request(GROUP, 7));
        racers.spawn(async move {
            let mut taken = Vec::new();
            loop {
                let leases = store.lease(request.clone()).await.unwrap().leases;
                if leases.is_empty() {
                    return taken;
                }
                taken.extend(leases);
            }
        });
    }
    let taken: Vec<_> = racers.join_all().await.into_iter().flatten().collect();
    let positions: HashSet<_> = taken.iter().map(|lease| lease.position).collect();
    let grants: HashSet<_> = taken.iter().map(|lease| (lease.receipt.epoch, lease.receipt.grant)).collect();
    assert_eq!((taken.len(), positions.len(), grants.len()), (500, 500, 500));
    assert_eq!(bed.figures(GROUP).await.leased, 500);
}

pub(crate) async fn an_expired_message_is_not_granted(bed: Bed) {
    let bed = bed.simple().await;
    let mut messages: Vec<_> = ["a", "b", "c"].map(|text| bed.message(text)).into();
    messages[0].meta.expires_at = Some(bed.later(Duration::from_millis(5500)));
    messages[1].meta.expires_at = Some(bed.later(Duration::from_millis(60_500)));
    bed.store(messages).await;
    let lease = bed.take_one().await;
    assert_eq!(bed.end(&lease, Settlement::Release).await, Ok(sluice::store::Settled::Released));
    bed.pass(Duration::from_secs(6)).await;
    assert_eq!(texts(&bed.take(10).await), ["b", "c"]);
    let figures = bed.figures(GROUP).await;
    assert_eq!((figures.expired_total, figures.waiting, figures.dead_lettered_total), (1, 0, 0));
    bed.seek(TOPIC, GROUP, SeekTo::Earliest).await.unwrap();
    assert_eq!(texts(&bed.take(10).await), ["b", "c"], "not after a seek either");
}

pub(crate) async fn a_target_is_the_only_group_that_gets_it(bed: Bed) {
    let mut bed = bed.simple().await;
    bed.put_group(group(TOPIC, OTHER)).await.unwrap();
    bed.publish(&["a"]).await;
    let entry = Entry::Log { partition: 0, message: bed.message("b"), due: None, target: Some(OTHER) };
    let outcome = bed.append_one(AppendItem { entry, ..item(bed.message("")) }).await;
    assert!(matches!(outcome, AppendOutcome::Stored(_)), "{outcome:?}");
    bed.publish(&["c"]).await;
    assert_eq!((bed.figures(GROUP).await.waiting, bed.figures(OTHER).await.waiting), (2, 3));
    bed.crash().await;
    assert_eq!(texts(&bed.take(10).await), ["a", "c"]);
    assert_eq!(texts(&bed.take_for(OTHER, 10).await), ["a", "b", "c"]);
    bed.seek(TOPIC, GROUP, SeekTo::Earliest).await.unwrap();
    assert_eq!(texts(&bed.take(10).await), ["a", "c"], "a seek does not change that");
}

pub(crate) async fn at_most_once_settles_by_the_grant(bed: Bed) {
    if !bed.capabilities().exactly_once {
        return;
    }
    let bed = bed.simple().await;
    bed.publish(&["a", "b"]).await;
    let request = LeaseRequest { mode: Mode::AtMostOnce, ..bed.request(GROUP, 10) };
    let leases = bed.lease(request).await.unwrap().leases;
    assert_eq!(texts(&leases), ["a", "b"]);
    assert_eq!(bed.end(&leases[0], Settlement::Ack).await, Err(SettleRefused::LeaseExpired));
    assert!(bed.nack(&leases[1], Duration::ZERO).await.is_err(), "there is no second attempt");
    bed.pass(Duration::from_secs(60)).await;
    assert!(bed.take(10).await.is_empty());
    let figures = bed.figures(GROUP).await;
    assert_eq!((figures.waiting, figures.leased, figures.delivered_total), (0, 0, 2));
}

pub(crate) async fn waiting_is_told_of_appends_retries_and_expiries(bed: Bed) {
    let bed = bed.simple().await;
    let mut told = bed.appended(TOPIC).expect("the topic is there");
    told.borrow_and_update();
    bed.publish(&["a"]).await;
    assert!(told.has_changed().unwrap(), "an append");
    told.borrow_and_update();
    let lease = bed.take_one().await;
    bed.nack(&lease, Duration::from_millis(1500)).await.unwrap();
    told.borrow_and_update();
    bed.pass(Duration::from_secs(2)).await;
    assert!(told.has_changed().unwrap(), "a retry that is due");
    let lease = bed.take_one().await;
    told.borrow_and_update();
    bed.end(&lease, Settlement::Release).await.unwrap();
    assert!(told.has_changed().unwrap(), "a release");
    let lease = bed.take_one().await;
    assert_eq!(text(&lease.message), "a");
    told.borrow_and_update();
    bed.pass(Duration::from_secs(31)).await;
    assert!(told.has_changed().unwrap(), "an expiry");
    bed.ack(&bed.take(1).await).await;
    told.borrow_and_update();
    bed.seek(TOPIC, GROUP, SeekTo::Earliest).await.unwrap();
    assert!(told.has_changed().unwrap(), "a seek");
    if bed.capabilities().schedule {
        let due = Some(bed.later(Duration::from_millis(1500)));
        let entry = Entry::Log { partition: 0, message: bed.message("b"), due, target: None };
        bed.append_one(AppendItem { entry, ..item(bed.message("")) }).await;
        told.borrow_and_update();
        bed.pass(Duration::from_secs(2)).await;
        assert!(told.has_changed().unwrap(), "a message that is due");
    }
}
