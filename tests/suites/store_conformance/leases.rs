//! Leases: how they end, and what their receipts are good for.

use std::time::Duration;

use sluice::message::{GroupId, TopicId};
use sluice::store::{Lease, LeaseRef, LeaseRequest, Receipt, Settle, SettleRefused, Settled, Settlement};
use sluice_tests::store_bed::{Bed, GROUP, LEASE, OTHER, TOPIC, failure, group, text, texts};

pub(crate) async fn a_lease_ends_at_its_deadline(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a"]).await;
    let first = bed.take_one().await;
    assert_eq!((first.attempt, first.deadline), (1, bed.later(LEASE)));
    bed.pass(Duration::from_secs(30)).await;
    assert!(bed.take(1).await.is_empty(), "never two live leases of one message");
    bed.pass(Duration::from_secs(1)).await;
    let second = bed.take_one().await;
    assert_eq!((second.position, second.attempt), (first.position, 2), "its end counts as an attempt");
    assert_ne!(second.receipt, first.receipt);
    assert_eq!(bed.figures(GROUP).await.delivered_total, 2);
}

pub(crate) async fn a_late_settle_is_refused(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a"]).await;
    let lease = bed.take_one().await;
    bed.clock.advance(Duration::from_secs(31));
    for settlement in [
        Settlement::Ack,
        Settlement::Release,
        Settlement::DeadLetter { failure: failure() },
        Settlement::Extend { duration: LEASE },
        Settlement::Retry { at: bed.clock.now(), failure: failure() },
    ] {
        let refused = bed.end(&lease, settlement.clone()).await;
        assert_eq!(refused, Err(SettleRefused::LeaseExpired), "{settlement:?}, also before a tick");
    }
    bed.tick().await.unwrap();
    assert_eq!(bed.end(&lease, Settlement::Ack).await, Err(SettleRefused::LeaseExpired));
    assert_eq!(bed.take_one().await.attempt, 2);
}

pub(crate) async fn an_ack_is_for_good(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a", "b", "c"]).await;
    let leases = bed.take(3).await;
    bed.ack(&leases[1..2]).await;
    bed.pass(Duration::from_secs(31)).await;
    assert_eq!(texts(&bed.take(3).await), ["a", "c"]);
}

pub(crate) async fn a_receipt_settles_once(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a", "b"]).await;
    let leases = bed.take(2).await;
    bed.ack(&leases[..1]).await;
    assert_eq!(bed.end(&leases[0], Settlement::Ack).await, Err(SettleRefused::LeaseExpired));
    let twice = vec![settle(&leases[1], Settlement::Ack), settle(&leases[1], Settlement::Ack)];
    let results = bed.settle(twice).await.unwrap();
    assert_eq!(results, [Ok(Settled::Acked), Err(SettleRefused::LeaseExpired)], "not twice in one call either");
    assert_eq!(bed.figures(GROUP).await.acked_total, 2);

    bed.publish(&["c"]).await;
    let lease = bed.take_one().await;
    let mut racers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (store, settle) = (bed.shared(), settle(&lease, Settlement::Ack));
        racers.spawn(async move { store.settle(vec![settle]).await.unwrap().remove(0) });
    }
    let results = racers.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
}

fn settle(lease: &Lease, settlement: Settlement) -> Settle {
    Settle { lease: LeaseRef::Receipt { receipt: lease.receipt, message: None }, settlement }
}

pub(crate) async fn a_wrong_message_is_refused(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a", "b"]).await;
    let leases = bed.take(2).await;
    let by = LeaseRef::Receipt { receipt: leases[0].receipt, message: Some(leases[1].message.id) };
    let refused = bed.settle(vec![Settle { lease: by, settlement: Settlement::Ack }]).await.unwrap();
    assert_eq!(refused, [Err(SettleRefused::WrongMessage)]);
    bed.ack(&leases).await;
}

pub(crate) async fn a_holder_settles_without_a_receipt(bed: Bed) {
    let bed = bed.simple().await;
    bed.put_group(group(TOPIC, OTHER)).await.unwrap();
    bed.publish(&["a", "b"]).await;
    let leases = bed.take(2).await;
    let by = |group, holder: &str, lease: &Lease| {
        let lease = LeaseRef::Holder { topic: TOPIC, group, message: lease.message.id, holder: holder.into() };
        vec![Settle { lease, settlement: Settlement::Ack }]
    };
    let end = async |settles| bed.settle(settles).await.unwrap().remove(0);
    assert_eq!(end(by(GROUP, "mallory", &leases[0])).await, Err(SettleRefused::LeaseExpired));
    assert_eq!(end(by(OTHER, "alice", &leases[0])).await, Err(SettleRefused::LeaseExpired), "that group holds none");
    assert_eq!(end(by(GROUP, "alice", &leases[0])).await, Ok(Settled::Acked));
    assert_eq!(end(by(GROUP, "alice", &leases[0])).await, Err(SettleRefused::LeaseExpired));
    bed.pass(Duration::from_secs(31)).await;
    assert_eq!(end(by(GROUP, "alice", &leases[1])).await, Err(SettleRefused::LeaseExpired));
    let request = LeaseRequest { holder: "bob".into(), ..bed.request(GROUP, 1) };
    let again = bed.lease(request).await.unwrap().leases;
    assert_eq!(end(by(GROUP, "alice", &again[0])).await, Err(SettleRefused::LeaseExpired), "bob has it now");
    assert_eq!(end(by(GROUP, "bob", &again[0])).await, Ok(Settled::Acked));
    bed.publish(&["c"]).await;
    let lease = bed.take_one().await;
    let mut nack = by(GROUP, "alice", &lease);
    nack[0].settlement = Settlement::Retry { at: bed.later(Duration::from_secs(5)), failure: failure() };
    assert!(matches!(end(nack).await, Ok(Settled::Retrying { .. })));
    let found = bed.get(lease.message.id).await.unwrap().expect("it waits");
    let of_group = found.groups.iter().find(|state| state.group == GROUP).expect("the group has it");
    assert_eq!(of_group.failures.as_slice()[0].attempt, 1, "the attempt that failed, though its name alone was said");
}

pub(crate) async fn a_retry_waits_and_counts(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a", "b"]).await;
    let lease = bed.take_one().await;
    let at = bed.later(Duration::from_millis(10_500));
    assert_eq!(bed.end(&lease, Settlement::Retry { at, failure: failure() }).await, Ok(Settled::Retrying { at }));
    assert_eq!(bed.end(&lease, Settlement::Ack).await, Err(SettleRefused::LeaseExpired));
    assert_eq!(texts(&bed.take(10).await), ["b"], "others need not wait for it");
    bed.pass(Duration::from_secs(10)).await;
    assert!(bed.take(10).await.is_empty());
    bed.pass(Duration::from_secs(1)).await;
    let again = bed.take_one().await;
    assert_eq!((text(&again.message).as_str(), again.attempt), ("a", 2));
    assert_eq!(bed.nack(&again, Duration::ZERO).await.map(drop), Ok(()));
    bed.tick().await.unwrap();
    assert_eq!(bed.take_one().await.attempt, 3, "a retry at once needs no time to pass");
}

pub(crate) async fn a_release_does_not_count(bed: Bed) {
    let mut bed = bed.simple().await;
    bed.publish(&["a"]).await;
    for _ in 0..5 {
        let lease = bed.take_one().await;
        assert_eq!(lease.attempt, 1);
        assert_eq!(bed.end(&lease, Settlement::Release).await, Ok(Settled::Released));
    }
    bed.nack(&bed.take_one().await, Duration::ZERO).await.unwrap();
    bed.tick().await.unwrap();
    let second = bed.take_one().await;
    bed.end(&second, Settlement::Release).await.unwrap();
    bed.restart().await;
    assert_eq!(bed.take_one().await.attempt, 2);
}

pub(crate) async fn an_extended_lease_lasts(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a", "b"]).await;
    let leases = bed.take(2).await;
    bed.pass(Duration::from_secs(20)).await;
    let until = bed.later(Duration::from_millis(60_500));
    let extend = |seconds: u64| Settlement::Extend { duration: Duration::from_millis(seconds * 1000 + 500) };
    assert_eq!(bed.end(&leases[0], extend(60)).await, Ok(Settled::Extended { until }));
    bed.pass(Duration::from_secs(50)).await;
    assert_eq!(texts(&bed.take(10).await), ["b"], "the one that was not extended");
    let until = bed.later(Duration::from_millis(1500));
    assert_eq!(
        bed.end(&leases[0], extend(1)).await,
        Ok(Settled::Extended { until }),
        "from now, so it may also be shorter"
    );
    bed.pass(Duration::from_secs(2)).await;
    let again = bed.take_one().await;
    assert_eq!((text(&again.message).as_str(), again.attempt), ("a", 2));
    assert_eq!(bed.end(&leases[0], Settlement::Ack).await, Err(SettleRefused::LeaseExpired));
}

pub(crate) async fn one_refusal_touches_no_other(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a", "b", "c"]).await;
    let leases = bed.take(3).await;
    bed.ack(&leases[1..2]).await;
    let at = bed.later(Duration::from_millis(500));
    let settles = vec![
        settle(&leases[0], Settlement::Ack),
        settle(&leases[1], Settlement::Ack),
        settle(&leases[2], Settlement::Retry { at, failure: failure() }),
    ];
    let results = bed.settle(settles).await.unwrap();
    assert_eq!(results, [Ok(Settled::Acked), Err(SettleRefused::LeaseExpired), Ok(Settled::Retrying { at })]);
    assert!(bed.settle(Vec::new()).await.unwrap().is_empty());
}

pub(crate) async fn an_old_receipt_settles_no_later_lease(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a"]).await;
    let first = bed.take_one().await;
    bed.nack(&first, Duration::ZERO).await.unwrap();
    bed.tick().await.unwrap();
    let second = bed.take_one().await;
    assert_eq!(bed.end(&first, Settlement::Ack).await, Err(SettleRefused::LeaseExpired));
    let forged = Lease { receipt: Receipt { grant: second.receipt.grant + 1, ..second.receipt }, ..second.clone() };
    assert_eq!(bed.end(&forged, Settlement::Ack).await, Err(SettleRefused::LeaseExpired));
    bed.ack(&[second]).await;
}

pub(crate) async fn what_is_not_there_is_refused(bed: Bed) {
    let bed = bed.simple().await;
    bed.publish(&["a"]).await;
    let lease = bed.take_one().await;
    let with = |change: fn(&mut Receipt)| {
        let mut receipt = lease.receipt;
        change(&mut receipt);
        vec![Settle { lease: LeaseRef::Receipt { receipt, message: None }, settlement: Settlement::Ack }]
    };
    let end = async |settles| bed.settle(settles).await.unwrap().remove(0);
    assert_eq!(end(with(|receipt| receipt.position.topic = TopicId(99))).await, Err(SettleRefused::NotFound));
    assert_eq!(end(with(|receipt| receipt.group = GroupId(99))).await, Err(SettleRefused::NotFound));
    assert!(end(with(|receipt| receipt.position.partition = 63)).await.is_err());
    assert!(end(with(|receipt| receipt.position.offset.0 = u64::MAX)).await.is_err());
    assert!(end(with(|receipt| receipt.position.offset.0 += 1)).await.is_err());
    bed.ack(&[lease]).await;
}
