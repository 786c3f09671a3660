//! Idempotency keys: one key inside its window is stored once.

use std::time::Duration;

use sluice::message::TopicId;
use sluice::store::{AppendBatch, AppendItem, AppendOutcome, DedupOutcome, Entry, Fate, TopicSpec};
use sluice_tests::store_bed::{Bed, TOPIC, batch, item, key, topic};

use super::dead_letters::turned_away;

/// A message under a key; the request is its text.
fn keyed(bed: &Bed, name: &str, text: &str) -> AppendItem {
    AppendItem { dedup: key(name, text), ..item(bed.message(text)) }
}

fn id(item: &AppendItem) -> sluice::message::MessageId {
    match &item.entry {
        Entry::Log { message, .. } | Entry::DeadLetter { message } => message.id,
        Entry::Dropped { id, .. } => *id,
    }
}

fn duplicate(outcome: AppendOutcome) -> DedupOutcome {
    match outcome {
        AppendOutcome::Duplicate(first) => first,
        other => panic!("no duplicate: {other:?}"),
    }
}

pub(crate) async fn a_repeat_gets_the_first_outcome(bed: Bed) {
    let mut bed = bed.simple().await;
    let first = keyed(&bed, "k", "a");
    let first_id = id(&first);
    let at = bed.clock.now();
    let AppendOutcome::Stored(position) = bed.append_one(first).await else { panic!("it is the first") };
    let request_hash = key("k", "a").unwrap().request_hash;
    let expected = DedupOutcome { request_hash, id: first_id, fate: Fate::Stored(position), at, revision: 1 };
    bed.clock.advance(Duration::from_secs(5));
    for _ in 0..2 {
        assert_eq!(duplicate(bed.append_one(keyed(&bed, "k", "a")).await), expected);
        assert_eq!(bed.dedup_lookup(TOPIC, "k").await.unwrap().as_ref(), Some(&expected));
        bed.crash().await;
    }
    assert!(bed.dedup_lookup(TOPIC, "another").await.unwrap().is_none());
    assert_eq!(bed.log().await, ["a"]);
}

pub(crate) async fn another_request_under_the_key_is_a_conflict(bed: Bed) {
    let bed = bed.simple().await;
    bed.append_one(keyed(&bed, "k", "a")).await;
    assert_eq!(bed.append_one(keyed(&bed, "k", "b")).await, AppendOutcome::KeyConflict);
    let outcomes =
        bed.append(batch(vec![keyed(&bed, "k", "b"), keyed(&bed, "l", "c"), keyed(&bed, "k", "a")])).await.unwrap();
    assert!(
        matches!(outcomes[..], [AppendOutcome::KeyConflict, AppendOutcome::Stored(_), AppendOutcome::Duplicate(_)]),
        "an item keeps no other one out: {outcomes:?}"
    );
    assert_eq!(bed.log().await, ["a", "c"]);
}

pub(crate) async fn a_key_ages_out(bed: Bed) {
    let mut bed = bed.simple().await;
    bed.append_one(keyed(&bed, "k", "a")).await;
    bed.pass(Duration::from_secs(599)).await;
    duplicate(bed.append_one(keyed(&bed, "k", "a")).await);
    bed.crash().await;
    bed.pass(Duration::from_secs(2)).await;
    assert!(bed.dedup_lookup(TOPIC, "k").await.unwrap().is_none(), "the window is from the first");
    assert_eq!(bed.stats(TOPIC).await.unwrap().dedup_keys, 0);
    assert!(matches!(bed.append_one(keyed(&bed, "k", "b")).await, AppendOutcome::Stored(_)));
    duplicate(bed.append_one(keyed(&bed, "k", "b")).await);
}

pub(crate) async fn a_key_that_comes_again_counts_once(bed: Bed) {
    bed.put_topic(TopicSpec { dedup_keys_max: 1, ..topic(TOPIC) }).await.unwrap();
    for _ in 0..3 {
        let outcome = bed.append_one(keyed(&bed, "k", "a")).await;
        assert!(matches!(outcome, AppendOutcome::Stored(_)), "{outcome:?}");
        // Nobody had the time to look for keys that have aged out.
        bed.clock.advance(Duration::from_secs(601));
    }
    bed.tick().await.unwrap();
    assert_eq!(bed.stats(TOPIC).await.unwrap().dedup_keys, 0);
}

pub(crate) async fn repeats_in_one_batch_store_one(bed: Bed) {
    let bed = bed.simple().await;
    let (first, again, other) = (keyed(&bed, "k", "a"), keyed(&bed, "k", "a"), keyed(&bed, "k", "b"));
    let first_id = id(&first);
    let mut outcomes = bed.append(batch(vec![first, again, other])).await.unwrap();
    assert_eq!(outcomes.pop(), Some(AppendOutcome::KeyConflict));
    assert_eq!(duplicate(outcomes.pop().unwrap()).id, first_id);
    assert_eq!(bed.log().await, ["a"]);
}

pub(crate) async fn of_racing_appends_one_stores(bed: Bed) {
    let mut bed = bed.simple().await;
    for round in 0..20 {
        let mut racers = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let (store, item) = (bed.shared(), keyed(&bed, &format!("k{round}"), "a"));
            racers.spawn(async move { (id(&item), store.append(batch(vec![item])).await.unwrap().remove(0)) });
        }
        let (mut stored, mut told) = (Vec::new(), Vec::new());
        for (id, outcome) in racers.join_all().await {
            match outcome {
                AppendOutcome::Stored(_) => stored.push(id),
                outcome => told.push(duplicate(outcome).id),
            }
        }
        assert_eq!((stored.len(), told.len()), (1, 15));
        assert!(told.iter().all(|told| *told == stored[0]), "all are told of the one that is stored");
    }
    bed.crash().await;
    assert_eq!(bed.log().await.len(), 20);
}

pub(crate) async fn outcomes_of_every_kind_are_kept(bed: Bed) {
    let mut bed = bed.with_dead_letters().await;
    let dropped = Entry::Dropped { id: bed.message("").id, stage: "filter".into(), reason: "too old".into() };
    let dropped = AppendItem { entry: dropped, ..keyed(&bed, "dropped", "a") };
    let away = AppendItem { dedup: key("dead", "b"), ..turned_away(&bed, "b") };
    assert_eq!(bed.append_one(dropped.clone()).await, AppendOutcome::Dropped);
    let AppendOutcome::DeadLettered(place) = bed.append_one(away.clone()).await else { panic!("it was turned away") };
    let mut scheduled = keyed(&bed, "scheduled", "c");
    let Entry::Log { due, .. } = &mut scheduled.entry else { unreachable!("it was made one") };
    *due = Some(bed.later(Duration::from_secs(60)));
    let schedules = bed.capabilities().schedule;
    if schedules {
        assert_eq!(bed.append_one(scheduled.clone()).await, AppendOutcome::Scheduled);
    }
    bed.crash().await;
    let again = duplicate(bed.append_one(dropped.clone()).await);
    assert_eq!(again.fate, Fate::Dropped { stage: "filter".into(), reason: "too old".into() });
    assert_eq!(again.id, id(&dropped));
    let dead_lettered = Fate::DeadLettered { position: place, stage: "validate".into(), reason: "not an order".into() };
    assert_eq!(duplicate(bed.append_one(away).await).fate, dead_lettered);
    if schedules {
        assert_eq!(duplicate(bed.append_one(scheduled).await).fate, Fate::Scheduled);
    }
    assert_eq!((bed.log().await.len(), bed.dead().await.len()), (0, 1));
}

pub(crate) async fn a_full_key_table_refuses_and_keeps_no_key(bed: Bed) {
    bed.put_topic(TopicSpec { dedup_keys_max: 2, ..topic(TOPIC) }).await.unwrap();
    let items = vec![keyed(&bed, "1", "a"), keyed(&bed, "2", "b"), keyed(&bed, "3", "c"), item(bed.message("d"))];
    let outcomes = bed.append(batch(items)).await.unwrap();
    assert!(
        matches!(
            outcomes[..],
            [AppendOutcome::Stored(_), AppendOutcome::Stored(_), AppendOutcome::TopicFull, AppendOutcome::Stored(_)]
        ),
        "{outcomes:?}"
    );
    assert!(bed.dedup_lookup(TOPIC, "3").await.unwrap().is_none());
    duplicate(bed.append_one(keyed(&bed, "1", "a")).await);
    assert_eq!(bed.stats(TOPIC).await.unwrap().dedup_keys, 2);
    bed.pass(Duration::from_secs(601)).await;
    assert!(
        matches!(bed.append_one(keyed(&bed, "3", "c")).await, AppendOutcome::Stored(_)),
        "keys age out and make room"
    );
}

pub(crate) async fn all_or_nothing_stores_nothing_with_a_duplicate(bed: Bed) {
    let bed = bed.simple().await;
    bed.append_one(keyed(&bed, "k", "a")).await;
    let all = |items| AppendBatch { all_or_nothing: true, ..batch(items) };
    let outcomes =
        bed.append(all(vec![keyed(&bed, "new", "b"), keyed(&bed, "k", "a"), item(bed.message("c"))])).await.unwrap();
    assert!(
        matches!(outcomes[..], [AppendOutcome::NotAttempted, AppendOutcome::Duplicate(_), AppendOutcome::NotAttempted]),
        "{outcomes:?}"
    );
    let outcomes = bed.append(all(vec![keyed(&bed, "k", "other"), keyed(&bed, "new", "b")])).await.unwrap();
    assert_eq!(outcomes, [AppendOutcome::KeyConflict, AppendOutcome::NotAttempted]);
    assert!(bed.dedup_lookup(TOPIC, "new").await.unwrap().is_none());
    assert_eq!(bed.log().await, ["a"]);
    let outcomes = bed.append(all(vec![keyed(&bed, "new", "b"), item(bed.message("c"))])).await.unwrap();
    assert!(matches!(outcomes[..], [AppendOutcome::Stored(_), AppendOutcome::Stored(_)]), "{outcomes:?}");
    assert_eq!(bed.log().await, ["a", "b", "c"]);
}

pub(crate) async fn keys_are_of_their_topic(bed: Bed) {
    const ELSEWHERE: TopicId = TopicId(3);
    let bed = bed.simple().await;
    bed.put_topic(topic(ELSEWHERE)).await.unwrap();
    bed.append_one(keyed(&bed, "k", "a")).await;
    let there = AppendItem { dedup: key("k", "b"), ..item(bed.message_in(ELSEWHERE, 0, "b")) };
    let outcomes = bed.append(AppendBatch { topic: ELSEWHERE, ..batch(vec![there]) }).await.unwrap();
    assert!(matches!(outcomes[..], [AppendOutcome::Stored(_)]), "{outcomes:?}");
}
