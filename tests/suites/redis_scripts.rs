//! What the scripts of the store in Redis do with what only Redis can bring about: scripts that ended in their midst, values that were
//! damaged, memory that is full. Invariant: whatever of it happens, the store goes on by itself, and a script's work stays bounded.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sluice::message::GroupId;
use sluice::store::{GroupSpec, LeaseRef, Receipt, SeekTo, Settle, SettleRefused, Settled, Settlement, StoreError};
use sluice_tests::binary::repository;
use sluice_tests::servers::{Options, Redis};
use sluice_tests::store_backends::OnRedis;
use sluice_tests::store_bed::{Bed, GROUP, LEASE, OTHER, TOPIC, failure, group, texts};
use sluice_tests::wait;

async fn on(redis: Arc<OnRedis>) -> Bed {
    Bed::new(redis).await
}

/// Has the shared Redis run a script over one key.
fn run(script: &str, key: &str) -> String {
    Redis::shared().ask(&["EVAL", script, "1", key])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_goes_on_after_a_script_that_ended_in_its_midst() {
    let redis = Arc::new(OnRedis::named("midst"));
    let bed = on(Arc::clone(&redis)).await.simple().await;
    bed.publish(&["a", "b", "c"]).await;
    let copy = |id: &str| {
        let copy = format!(
            "local e = redis.call('XRANGE', KEYS[1], '3-0', '3-0')[1] return redis.call('XADD', KEYS[1], '{id}', unpack(e[2]))"
        );
        assert_eq!(run(&copy, &redis.key("t:1:0:s")), id);
    };
    copy("4-0");
    let next = bed.publish(&["d", "e"]).await;
    assert_eq!(next.iter().map(|position| position.offset.0).collect::<Vec<_>>(), [4, 5]);
    assert_eq!(bed.figures(GROUP).await.waiting, 6);
    // No script leaves a gap; were there one, nobody would wait for what is in it.
    copy("9-0");
    assert_eq!(bed.publish(&["f"]).await[0].offset.0, 9);
    assert_eq!(bed.figures(GROUP).await.waiting, 8);
    assert_eq!(bed.log().await, ["a", "b", "c", "c", "d", "e", "c", "f"]);
    let all = bed.take(20).await;
    assert_eq!(texts(&all), ["a", "b", "c", "c", "d", "e", "c", "f"]);
    bed.ack(&all).await;
    assert_eq!(bed.figures(GROUP).await.waiting, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_not_lost_between_two_places_when_a_script_ends_in_its_midst() {
    let redis = Arc::new(OnRedis::named("between"));
    let bed = on(Arc::clone(&redis)).await.with_dead_letters().await;
    // What is no set ends a script where it comes to it.
    let broken = async |name: &str, doing: &dyn Fn() -> BoxFuture<'static, Result<(), StoreError>>| {
        let (key, aside) = (redis.key(name), redis.key("aside"));
        let moved = Redis::shared().ask(&["EXISTS", &key]) == "1";
        if moved {
            assert_eq!(Redis::shared().ask(&["RENAME", &key, &aside]), "OK");
        }
        assert_eq!(Redis::shared().ask(&["SET", &key, "x"]), "OK");
        let done = doing().await;
        assert!(matches!(done, Err(StoreError::OutcomeUnknown(_))), "{name}: {done:?}");
        if moved {
            assert_eq!(Redis::shared().ask(&["RENAME", &aside, &key]), "OK");
        } else {
            assert_eq!(Redis::shared().ask(&["DEL", &key]), "1");
        }
    };
    bed.publish(&["a"]).await;
    for (at, name) in [(bed.clock.now(), "t:1:g:1:R:0"), (bed.later(Duration::from_secs(5)), "t:1:g:1:W")] {
        let lease = bed.take_one().await;
        let settle = Settle {
            lease: LeaseRef::Receipt { receipt: lease.receipt, message: None },
            settlement: Settlement::Retry { at, failure: failure() },
        };
        let store = bed.shared();
        let retry = move || {
            let (store, settle) = (Arc::clone(&store), settle.clone());
            async move { store.settle(vec![settle]).await.map(drop) }.boxed()
        };
        broken(name, &retry).await;
        bed.pass(LEASE + Duration::from_secs(1)).await;
    }
    // The last lease ends, and its message is not a dead letter before the copy is there.
    assert_eq!(bed.take_one().await.attempt, 3);
    bed.clock.advance(LEASE + Duration::from_secs(1));
    let store = bed.shared();
    let tick = move || {
        let store = Arc::clone(&store);
        async move { store.tick().await.map(drop) }.boxed()
    };
    broken("t:2:0:s", &tick).await;
    bed.pass(Duration::from_secs(2)).await;
    assert_eq!(bed.dead().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_of_the_past_is_told_by_what_it_lacks_where_its_version_is_the_same() {
    let redis = Arc::new(OnRedis::named("past"));
    let bed = on(Arc::clone(&redis)).await.simple().await;
    bed.tick().await.expect("the store does it");
    bed.publish(&["a"]).await;
    for gone in [["DEL", &redis.key("t:1"), ""], ["SREM", &redis.key("topics"), "1"]] {
        let gone: Vec<&str> = gone.into_iter().filter(|word| !word.is_empty()).collect();
        assert_eq!(Redis::shared().ask(&gone), "1");
    }
    bed.publish(&["b"]).await;
    assert_eq!(bed.log().await.last().map(String::as_str), Some("b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_comes_back_with_less_gives_no_offset_twice() {
    let mut server = Redis::start(Options::new().set("appendonly", "no")).await;
    let redis = Arc::new(OnRedis::at(server.url()));
    let bed = on(Arc::clone(&redis)).await.simple().await;
    bed.publish(&["a", "b", "c"]).await;
    bed.ack(&bed.take(1).await).await;
    assert_eq!(server.ask(&["SAVE"]), "OK");
    let lost = bed.publish(&["d", "e"]).await;
    server.restart().await;
    wait::until("the store serves again", async || bed.tick().await.is_ok().then_some(())).await;
    let after = bed.publish(&["f", "g"]).await;
    assert!(after[0].offset > lost[1].offset, "{after:?} after {lost:?}");
    assert_eq!(after[1].offset.0, after[0].offset.0 + 1, "only the first one of a partition leaps");
    assert_eq!(bed.log().await, ["a", "b", "c", "f", "g"]);
    assert_eq!(bed.figures(GROUP).await.waiting, 4, "nobody waits for what is not there");
    bed.seek(TOPIC, GROUP, SeekTo::Offset(0, lost[0].offset)).await.expect("the store does it");
    assert_eq!(bed.figures(GROUP).await.waiting, 2);
    bed.ack(&bed.take(1).await).await;
    assert_eq!(bed.figures(GROUP).await.waiting, 1);
    bed.seek(TOPIC, GROUP, SeekTo::Earliest).await.expect("the store does it");
    assert_eq!(bed.figures(GROUP).await.waiting, 5);
    let all = bed.take(10).await;
    assert_eq!(texts(&all), ["a", "b", "c", "f", "g"]);
    bed.ack(&all).await;
    assert_eq!(bed.figures(GROUP).await.waiting, 0);
    assert_ne!(server.ask(&["HGET", &redis.key("t:1:0"), "gaps"]), "");
    bed.pass(Duration::from_secs(366 * 24 * 3600)).await;
    bed.retain().await.expect("the store does it");
    assert_eq!(bed.log().await, [""; 0]);
    bed.publish(&["h"]).await;
    assert_eq!(server.ask(&["HGET", &redis.key("t:1:0"), "gaps"]), "", "what is trimmed has none");
    assert_eq!(texts(&bed.take(10).await), ["h"]);
    // It comes back without all of that, and without what it had leapt to.
    bed.clock.advance(Duration::from_secs(1));
    let before = bed.publish(&["i"]).await[0];
    bed.clock.advance(Duration::from_secs(1));
    server.restart().await;
    wait::until("the store serves again", async || bed.tick().await.is_ok().then_some(())).await;
    assert!(bed.publish(&["j"]).await[0].offset > before.offset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_all_was_taken_off_goes_on_behind_a_gap() {
    let mut server = Redis::start(Options::new()).await;
    let redis = Arc::new(OnRedis::at(server.url()));
    let bed = on(Arc::clone(&redis)).await.with_dead_letters().await;
    let bury = async |text: &str| {
        bed.publish(&[text]).await;
        let end = Settlement::DeadLetter { failure: failure() };
        assert_eq!(bed.end(&bed.take_one().await, end).await, Ok(Settled::DeadLettered));
        bed.dead().await.last().expect("it is on the list").0
    };
    let before = bury("a").await;
    assert_eq!(bed.discard_dead_letters(vec![before]).await.expect("the store does it"), 1);
    server.restart().await;
    wait::until("the store serves again", async || bed.tick().await.is_ok().then_some(())).await;
    let after = bury("b").await;
    assert!(after.offset.0 > before.offset.0 + 1);
    assert_eq!(bed.discard_dead_letters(vec![after]).await.expect("the store does it"), 1);
    assert_eq!(bed.dead().await, []);
    assert_eq!(server.ask(&["ZCARD", &redis.key("t:2:g:0:S:0")]), "0", "the cursor is behind it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_that_the_readme_names_are_enough() {
    let readme = std::fs::read_to_string(repository().join("README.md")).expect("there is a README");
    let rights =
        readme.split("An ACL for it: `").nth(1).and_then(|rest| rest.split('`').next()).expect("it names them");
    let server = Redis::start(Options::new()).await;
    let mut acl = vec!["ACL", "SETUSER", "sluice", "on", ">word"];
    acl.extend(rights.split(' '));
    assert_eq!(server.ask(&acl), "OK");
    let url = format!("redis://sluice:word@127.0.0.1:{}/0", server.port());
    let bed = on(Arc::new(OnRedis::at(url))).await.with_dead_letters().await;
    let published = bed.publish(&["a", "b"]).await;
    let leases = bed.take(2).await;
    assert_eq!(bed.end(&leases[0], Settlement::DeadLetter { failure: failure() }).await, Ok(Settled::DeadLettered));
    assert_eq!(bed.dead().await.len(), 1);
    assert_eq!(bed.log().await.len(), published.len());
    assert!(bed.erase(leases[1].message.id).await.expect("the store does it"));
    bed.retain().await.expect("the store does it");
    bed.tick().await.expect("the store does it");
    assert_eq!(server.ask(&["ACL", "LOG"]), "", "nothing was denied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_discarded_one_by_one_is_one_range() {
    let redis = Arc::new(OnRedis::named("ranges"));
    let bed = on(Arc::clone(&redis)).await.with_dead_letters().await;
    bed.publish(&["0", "1", "2", "3", "4", "5", "6", "7"]).await;
    for lease in bed.take(8).await {
        assert_eq!(bed.end(&lease, Settlement::DeadLetter { failure: failure() }).await, Ok(Settled::DeadLettered));
    }
    let dead = bed.dead().await;
    for (number, ranges) in [(5, "1"), (3, "2"), (1, "3"), (2, "2"), (4, "1"), (7, "2"), (6, "1")] {
        assert_eq!(bed.discard_dead_letters(vec![dead[number].0]).await.expect("the store does it"), 1);
        assert_eq!(Redis::shared().ask(&["ZCARD", &redis.key("t:2:g:0:S:0")]), ranges, "after {number}");
    }
    assert_eq!(bed.dead().await, dead[..1]);
    assert_eq!(bed.discard_dead_letters(vec![dead[0].0]).await.expect("the store does it"), 1);
    assert_eq!(Redis::shared().ask(&["ZCARD", &redis.key("t:2:g:0:S:0")]), "0");
    assert_eq!(bed.dead().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_buried_for_want_of_memory_holds_up_no_lease() {
    const DOOMED: usize = 1100;
    let server = Redis::start(Options::new()).await;
    let bed = on(Arc::new(OnRedis::at(server.url()))).await.with_dead_letters().await;
    bed.put_group(GroupSpec { attempts_max: 2, ..group(TOPIC, GROUP) }).await.expect("the store does it");
    bed.publish(&vec!["doomed"; DOOMED]).await;
    let again = bed.take(DOOMED).await.into_iter().map(|lease| Settle {
        lease: LeaseRef::Receipt { receipt: lease.receipt, message: None },
        settlement: Settlement::Retry { at: bed.clock.now(), failure: failure() },
    });
    bed.settle(again.collect()).await.expect("the store does it");
    assert_eq!(bed.take(DOOMED).await.len(), DOOMED);
    bed.clock.advance(Duration::from_secs(1));
    bed.publish(&["late", "later"]).await;
    assert_eq!(bed.take(2).await.len(), 2);
    assert_eq!(server.ask(&["CONFIG", "SET", "maxmemory", "1mb"]), "OK");
    bed.pass(LEASE).await;
    let late = bed.take(10).await;
    assert_eq!(texts(&late), ["late", "later"]);
    bed.ack(&late).await;
    assert_eq!(bed.figures(GROUP).await.waiting, DOOMED as u64, "they wait to be buried");
    assert!(
        bed.tick().await.expect("the store does it").is_some_and(|next| next > bed.clock.now()),
        "and not in haste"
    );
    assert_eq!(server.ask(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
    wait::until("all of them are dead letters", async || {
        bed.pass(Duration::from_secs(2)).await;
        let figures = bed.figures(GROUP).await;
        (figures.waiting == 0 && figures.dead_lettered_total == DOOMED as u64).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_for_whose_copy_there_is_no_memory_is_nobodys_until_it_is_made() {
    let server = Redis::start(Options::new()).await;
    let bed = on(Arc::new(OnRedis::at(server.url()))).await.with_dead_letters().await;
    bed.publish(&["a", "b"]).await;
    let leases = bed.take(2).await;
    assert_eq!(server.ask(&["CONFIG", "SET", "maxmemory", "1mb"]), "OK");
    let by = |nth: usize| LeaseRef::Receipt { receipt: leases[nth].receipt, message: None };
    let dead = || Settle { lease: by(1), settlement: Settlement::DeadLetter { failure: failure() } };
    let told = bed.settle(vec![Settle { lease: by(0), settlement: Settlement::Ack }, dead(), dead()]).await;
    let expected = [Ok(Settled::Acked), Ok(Settled::DeadLettered), Err(SettleRefused::LeaseExpired)];
    assert_eq!(told.expect("the store does it"), expected);
    bed.pass(LEASE * 2).await;
    assert_eq!(texts(&bed.take(2).await), [""; 0], "nobody gets it again");
    assert_eq!(bed.figures(GROUP).await.waiting, 1, "it waits to be buried");
    bed.seek(TOPIC, GROUP, SeekTo::Latest).await.expect("the store does it");
    assert_eq!(server.ask(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
    let letters = wait::until("it is a dead letter", async || {
        bed.pass(Duration::from_secs(2)).await;
        let letters = bed.dead().await;
        (!letters.is_empty()).then_some(letters)
    })
    .await;
    let facts = letters[0].1.meta.dead_letter.as_ref().expect("it says why");
    assert_eq!((facts.attempts, &facts.last), (1, &failure()));
    let tried: Vec<_> = facts.failures.as_slice().iter().map(|failed| failed.attempt).collect();
    assert_eq!(tried, [1], "what went wrong is told once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_that_others_have_ended_are_told() {
    let bed = on(Arc::new(OnRedis::fleet("told"))).await.simple().await;
    bed.put_group(group(TOPIC, OTHER)).await.expect("the store does it");
    bed.publish(&["a", "b", "c", "d"]).await;
    let leases = bed.take(4).await;
    let receipts: Vec<Receipt> = leases.iter().map(|lease| lease.receipt).collect();
    let ended = async || bed.ended(&receipts).await.expect("the store does it");
    assert_eq!(ended().await, []);
    bed.ack(&leases[1..2]).await;
    assert_eq!(bed.end(&leases[2], Settlement::Release).await, Ok(Settled::Released));
    assert_eq!(ended().await, receipts[1..3]);
    // Its message is held again, by another lease.
    assert_eq!(texts(&bed.take(1).await), ["c"]);
    assert_eq!(ended().await, receipts[1..3]);
    bed.clock.advance(LEASE + Duration::from_secs(1));
    assert_eq!(ended().await, receipts);
    let nowhere = Receipt { group: GroupId(77), ..receipts[0] };
    assert_eq!(bed.ended(&[nowhere]).await.expect("the store does it"), [nowhere]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_settled_beside_a_damaged_message_is_answered_as_settled() {
    let redis = Arc::new(OnRedis::named("damaged"));
    let bed = on(Arc::clone(&redis)).await.with_dead_letters().await;
    bed.publish(&["a", "b"]).await;
    let leases = bed.take(2).await;
    let damage = "local a, b = unpack(redis.call('XRANGE', KEYS[1], '-', '+')) redis.call('DEL', KEYS[1]) \
                  redis.call('XADD', KEYS[1], a[1], unpack(a[2])) \
                  return redis.call('XADD', KEYS[1], b[1], 'h', b[2][2], 'b', 'x')";
    assert_eq!(run(damage, &redis.key("t:1:0:s")), "2-0");
    let by = |nth: usize| LeaseRef::Receipt { receipt: leases[nth].receipt, message: None };
    let settles = vec![
        Settle { lease: by(0), settlement: Settlement::Ack },
        Settle { lease: by(1), settlement: Settlement::DeadLetter { failure: failure() } },
    ];
    let told = bed.settle(settles).await.expect("the store does it");
    assert_eq!(told, [Ok(Settled::Acked), Ok(Settled::DeadLettered)]);
    bed.pass(LEASE * 2).await;
    assert_eq!(texts(&bed.take(2).await), [""; 0], "nobody gets it again");
}
