//! Order per partition key: no message of a key is granted while an earlier one of it is leased or waits for its retry.

use std::time::Duration;

use sluice::store::{GroupSpec, SettleRefused, Settled, Settlement};
use sluice_tests::store_bed::{Bed, GROUP, TOPIC, failure, group, texts};

/// An ordered group's topic with two messages of each of two keys, and one without.
async fn two_keys(bed: &Bed) {
    bed.store(vec![
        bed.keyed("a", "a1"),
        bed.keyed("a", "a2"),
        bed.keyed("b", "b1"),
        bed.message("free"),
        bed.keyed("b", "b2"),
        bed.keyed("a", "a3"),
    ])
    .await;
}

pub(crate) async fn a_key_has_one_message_out_at_a_time(bed: Bed) {
    if !bed.capabilities().ordered {
        return;
    }
    let bed = bed.simple().await;
    two_keys(&bed).await;
    let first = bed.take_ordered(10).await;
    assert_eq!(texts(&first), ["a1", "b1", "free"]);
    assert!(bed.take_ordered(10).await.is_empty());
    bed.ack(&first[1..]).await;
    let second = bed.take_ordered(10).await;
    assert_eq!(texts(&second), ["b2"], "the next of b, for which a is not in the way");
    bed.ack(&first[..1]).await;
    let third = bed.take_ordered(10).await;
    assert_eq!(texts(&third), ["a2"]);
    bed.store(vec![bed.keyed("b", "b3"), bed.keyed("c", "c1")]).await;
    assert_eq!(texts(&bed.take_ordered(10).await), ["c1"], "b2 and a2 are out");
    bed.ack(&second).await;
    bed.ack(&third).await;
    assert_eq!(texts(&bed.take_ordered(10).await), ["a3", "b3"]);
}

pub(crate) async fn a_retry_keeps_its_place(bed: Bed) {
    if !bed.capabilities().ordered {
        return;
    }
    let bed = bed.simple().await;
    two_keys(&bed).await;
    let first = bed.take_ordered(10).await;
    bed.nack(&first[0], Duration::from_millis(60_500)).await.unwrap();
    bed.ack(&first[1..]).await;
    let second = bed.take_ordered(10).await;
    assert_eq!(texts(&second), ["b2"], "a waits for the retry of a1");
    bed.ack(&second).await;
    bed.pass(Duration::from_secs(61)).await;
    for (name, attempt) in [("a1", 2), ("a2", 1), ("a3", 1)] {
        let leases = bed.take_ordered(10).await;
        assert_eq!((texts(&leases), leases[0].attempt), (vec![name.to_owned()], attempt));
        bed.ack(&leases).await;
    }
}

pub(crate) async fn an_expired_lease_keeps_its_place(bed: Bed) {
    if !bed.capabilities().ordered {
        return;
    }
    let bed = bed.simple().await;
    two_keys(&bed).await;
    let first = bed.take_ordered(1).await;
    bed.pass(Duration::from_secs(31)).await;
    let second = bed.take_ordered(10).await;
    assert_eq!((texts(&second), second[0].attempt), (vec!["a1".to_owned(), "b1".to_owned(), "free".to_owned()], 2));
    assert_eq!(bed.end(&first[0], Settlement::Ack).await, Err(SettleRefused::LeaseExpired));
    bed.end(&second[0], Settlement::Release).await.unwrap();
    let third = bed.take_ordered(10).await;
    assert_eq!((texts(&third), third[0].attempt), (vec!["a1".to_owned()], 2), "a release keeps it too");
}

pub(crate) async fn a_dead_letter_lets_the_next_go(bed: Bed) {
    if !bed.capabilities().ordered {
        return;
    }
    let bed = bed.with_dead_letters().await;
    bed.put_group(GroupSpec { attempts_max: 1, ..group(TOPIC, GROUP) }).await.unwrap();
    two_keys(&bed).await;
    let first = bed.take_ordered(1).await;
    assert_eq!(bed.end(&first[0], Settlement::DeadLetter { failure: failure() }).await, Ok(Settled::DeadLettered));
    let second = bed.take_ordered(1).await;
    assert_eq!(texts(&second), ["a2"]);
    bed.pass(Duration::from_secs(31)).await;
    assert_eq!(bed.dead().await.len(), 2, "the last lease of a2 ended by itself");
    assert_eq!(texts(&bed.take_ordered(10).await), ["b1", "free", "a3"]);
}

pub(crate) async fn order_ignores_lanes(bed: Bed) {
    if !bed.capabilities().ordered || !bed.capabilities().lanes {
        return;
    }
    let bed = bed.simple().await;
    let mut messages = Vec::new();
    for (key, priority, name) in [("a", 0, "1"), ("a", 9, "2"), ("b", 5, "3"), ("a", 0, "4"), ("c", 9, "5")] {
        let mut message = bed.keyed(key, name);
        message.meta.priority = priority;
        messages.push(message);
    }
    bed.store(messages).await;
    let mut taken = Vec::new();
    loop {
        let leases = bed.take_ordered(1).await;
        if leases.is_empty() {
            break;
        }
        taken.extend(texts(&leases));
        bed.ack(&leases).await;
    }
    assert_eq!(taken, ["1", "2", "3", "4", "5"], "the order of appending");
}

pub(crate) async fn order_outlives_a_restart(bed: Bed) {
    if !bed.capabilities().ordered {
        return;
    }
    let mut bed = bed.simple().await;
    two_keys(&bed).await;
    let first = bed.take_ordered(10).await;
    bed.ack(&first[1..]).await;
    bed.nack(&first[0], Duration::from_millis(60_500)).await.unwrap();
    bed.crash().await;
    bed.tick().await.unwrap();
    let second = bed.take_ordered(10).await;
    assert_eq!(texts(&second), ["b2"], "a still waits for the retry of a1");
    bed.restart().await;
    bed.pass(Duration::from_secs(61)).await;
    assert_eq!(texts(&bed.take_ordered(10).await), ["a1", "b2"]);
}
