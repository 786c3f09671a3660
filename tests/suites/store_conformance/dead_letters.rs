//! Messages that failed for a group, or that a stage turned away.

use std::time::Duration;

use sluice::clock::Timestamp;
use sluice::message::{DeadLetterFacts, FailedAttempt, Failure, GroupId, Message, Offset, StageRef};
use sluice::store::{
    AppendBatch, AppendItem, AppendOutcome, Entry, GroupSpec, SeekTo, SettleRefused, Settled, Settlement, StoreError,
    TopicSpec,
};
use sluice_tests::store_bed::{Bed, DEAD, GROUP, OTHER, TOPIC, batch, failure, group, item, text, texts, topic};

fn facts(message: &Message) -> &DeadLetterFacts {
    message.meta.dead_letter.as_deref().expect("a dead letter has its facts")
}

/// The message of a dead letter's topic is the original but for its id and the facts.
fn assert_copy(copy: &Message, original: &Message) {
    let mut meta = copy.meta.clone();
    meta.dead_letter = None;
    assert_eq!((&copy.payload, &meta), (&original.payload, &original.meta));
    assert_ne!(copy.id, original.id);
    assert_eq!((copy.id.topic(), copy.id.partition()), (DEAD, 0));
}

pub(crate) async fn the_last_attempt_makes_a_dead_letter_with_its_facts(bed: Bed) {
    let mut bed = bed.with_dead_letters().await;
    let mut message = bed.keyed("order-1", "a");
    message.meta.headers = vec![("tenant".into(), "t1".into())];
    let position = bed.store(vec![message.clone()]).await[0];
    for attempt in 1..=3 {
        let lease = bed.take_one().await;
        assert_eq!(lease.attempt, attempt);
        let at = bed.later(Duration::from_millis(1500));
        let expected = if attempt < 3 { Settled::Retrying { at } } else { Settled::DeadLettered };
        assert_eq!(bed.nack(&lease, Duration::from_millis(1500)).await, Ok(expected));
        bed.pass(Duration::from_secs(2)).await;
    }
    let at = bed.clock.now().minus(Duration::from_secs(2));
    for _ in 0..2 {
        assert!(bed.take(10).await.is_empty());
        let list = bed.dead().await;
        assert_eq!(list.len(), 1);
        let (place, copy) = &list[0];
        assert_copy(copy, &message);
        let expected = DeadLetterFacts {
            original_id: message.id,
            original: Some(position),
            group: Some(GROUP),
            group_name: "group-1".into(),
            last: failure(),
            failures: facts(copy).failures.clone(),
            attempts: 3,
            at,
        };
        let failures: Vec<(u32, Timestamp, bool)> = facts(copy).failures.as_slice().iter().map(told).collect();
        let before = |seconds| at.minus(Duration::from_secs(seconds));
        assert_eq!(failures, [(1, before(4), false), (2, before(2), false), (3, at, true)], "the last one whole");
        assert_eq!(facts(copy), &expected);
        assert_eq!(bed.get(copy.id).await.unwrap().unwrap().position, Some(*place));
        bed.crash().await;
    }
    assert_eq!(bed.log().await, ["a"], "the original stays in its log");
}

pub(crate) async fn an_expired_last_lease_makes_a_dead_letter(bed: Bed) {
    let bed = bed.with_dead_letters().await;
    bed.put_group(GroupSpec { attempts_max: 1, ..group(TOPIC, GROUP) }).await.unwrap();
    bed.publish(&["a"]).await;
    let lease = bed.take_one().await;
    bed.pass(Duration::from_secs(31)).await;
    assert!(bed.take(10).await.is_empty());
    let list = bed.dead().await;
    assert_eq!(list.len(), 1, "the tick that ends the lease makes the copy");
    let found = facts(&list[0].1);
    assert_eq!((&*found.last.reason, found.attempts, found.original_id), ("LEASE_EXPIRED", 1, lease.message.id));
    assert_eq!(bed.figures(GROUP).await.dead_lettered_total, 1);
    assert!(bed.end(&lease, Settlement::Ack).await.is_err());
}

pub(crate) async fn a_dead_letter_at_once(bed: Bed) {
    let bed = bed.with_dead_letters().await;
    bed.put_group(group(TOPIC, OTHER)).await.unwrap();
    bed.publish(&["a", "b"]).await;
    let lease = bed.take_one().await;
    let rejected = Failure { reason: "REJECTED".into(), detail: "no tenant".into(), ..Failure::default() };
    assert_eq!(bed.end(&lease, Settlement::DeadLetter { failure: rejected }).await, Ok(Settled::DeadLettered));
    assert_eq!(bed.end(&lease, Settlement::Ack).await, Err(SettleRefused::LeaseExpired));
    let list = bed.dead().await;
    assert_eq!((facts(&list[0].1).attempts, &*facts(&list[0].1).last.reason), (1, "REJECTED"));
    assert_eq!(texts(&bed.take(10).await), ["b"]);
    assert_eq!(texts(&bed.take_for(OTHER, 10).await), ["a", "b"], "it failed for one group alone");
}

pub(crate) async fn without_a_dead_letter_topic_the_message_is_done(bed: Bed) {
    let bed = bed.simple().await;
    bed.put_group(GroupSpec { attempts_max: 1, ..group(TOPIC, GROUP) }).await.unwrap();
    bed.publish(&["a", "b"]).await;
    let leases = bed.take(2).await;
    assert_eq!(bed.nack(&leases[0], Duration::ZERO).await, Ok(Settled::DeadLettered));
    bed.pass(Duration::from_secs(31)).await;
    assert!(bed.take(10).await.is_empty());
    assert_eq!(bed.figures(GROUP).await.dead_lettered_total, 2);
    let turned_away = AppendItem { entry: Entry::DeadLetter { message: bed.message("c") }, ..item(bed.message("c")) };
    let refused = bed.append(batch(vec![turned_away])).await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
}

pub(crate) async fn a_dead_letter_may_leave_its_payload_behind(bed: Bed) {
    let bed = bed.with_dead_letters().await;
    let spec = TopicSpec { dead_letter: Some(DEAD), dead_letter_payload: false, ..topic(TOPIC) };
    bed.put_topic(spec).await.unwrap();
    bed.publish(&["secret"]).await;
    let lease = bed.take_one().await;
    bed.end(&lease, Settlement::DeadLetter { failure: failure() }).await.unwrap();
    let list = bed.dead().await;
    assert!(list[0].1.payload.is_empty());
    assert_eq!(facts(&list[0].1).original_id, lease.message.id);
}

fn told(failed: &FailedAttempt) -> (u32, Timestamp, bool) {
    (failed.attempt, failed.at, failed.failure == failure())
}

pub(crate) async fn what_expires_undelivered_is_a_dead_letter_where_that_is_wanted(bed: Bed) {
    let mut bed = bed.with_dead_letters().await;
    for (wanted, expected) in [(false, (1, 0)), (true, (1, 1))] {
        let spec = TopicSpec { dead_letter: Some(DEAD), dead_letter_expired: wanted, ..topic(TOPIC) };
        bed.put_topic(spec).await.unwrap();
        let mut message = bed.message("late");
        message.meta.expires_at = Some(bed.later(Duration::from_secs(5)));
        bed.append_one(item(message.clone())).await;
        bed.publish(&["in time"]).await;
        bed.pass(Duration::from_secs(6)).await;
        // Whether or not somebody comes for it between two crashes.
        for _ in 0..2 {
            let lease = bed.take(10).await;
            assert!(texts(&lease).iter().all(|text| *text == "in time"));
            for lease in &lease {
                bed.end(lease, Settlement::Ack).await.unwrap();
            }
            bed.tick().await.unwrap();
            bed.crash().await;
        }
        let figures = bed.figures(GROUP).await;
        assert_eq!((figures.expired_total, figures.dead_lettered_total), expected);
        if wanted {
            let list = bed.dead().await;
            assert_copy(&list[0].1, &message);
            let facts = facts(&list[0].1);
            assert_eq!((&*facts.last.reason, facts.attempts, facts.original_id), ("EXPIRED", 0, message.id));
            assert!(facts.failures.is_empty(), "nothing was tried");
        }
    }
}

pub(crate) async fn what_has_expired_is_a_dead_letter_whatever_moves_the_cursor_meanwhile(bed: Bed) {
    let bed = bed.with_dead_letters().await;
    bed.put_topic(TopicSpec { dead_letter: Some(DEAD), dead_letter_expired: true, ..topic(TOPIC) }).await.unwrap();
    for text in ["a", "b", "c"] {
        let mut message = bed.message(text);
        message.meta.expires_at = Some(bed.later(Duration::from_secs(5)));
        bed.append_one(item(message)).await;
    }
    bed.pass(Duration::from_secs(6)).await;
    assert!(bed.take(10).await.is_empty());
    // In a lane that has nothing.
    let elsewhere = Offset::new(if bed.capabilities().lanes { 9 } else { 0 }, 3);
    bed.seek(TOPIC, GROUP, SeekTo::Offset(0, elsewhere)).await.unwrap();
    bed.tick().await.unwrap();
    assert_eq!(bed.dead().await.len(), 3);
    assert_eq!(bed.figures(GROUP).await.dead_lettered_total, 3);
}

/// An item that a stage turned away, as the pipeline makes it.
pub(super) fn turned_away(bed: &Bed, text: &str) -> AppendItem {
    let mut message = bed.message_in(DEAD, 0, text);
    let stage = StageRef { name: "validate".into(), plugin: "json-schema".into(), version: "1.0.0".into() };
    let last =
        Failure { reason: "REJECTED".into(), detail: "not an order".into(), stage: Some(stage), last_status: None };
    let facts = DeadLetterFacts::turned_away(bed.message(text).id, last, bed.clock.now());
    message.meta.dead_letter = Some(Box::new(facts));
    AppendItem { entry: Entry::DeadLetter { message }, ..item(bed.message(text)) }
}

pub(crate) async fn a_stage_turns_a_message_away(bed: Bed) {
    let mut bed = bed.with_dead_letters().await;
    let away = turned_away(&bed, "a");
    let Entry::DeadLetter { message } = away.entry.clone() else { unreachable!("it was made one") };
    let outcome = bed.append_one(away).await;
    bed.crash().await;
    let list = bed.dead().await;
    assert_eq!((outcome, &list[0].1), (AppendOutcome::DeadLettered(list[0].0), &message));
    assert!(bed.log().await.is_empty());
    assert!(bed.take(10).await.is_empty());
}

pub(crate) async fn discarding_takes_off_the_list(bed: Bed) {
    let mut bed = bed.with_dead_letters().await;
    for name in ["a", "b", "c"] {
        bed.append_one(turned_away(&bed, name)).await;
    }
    let places: Vec<_> = bed.dead().await.iter().map(|(place, _)| *place).collect();
    let twice = vec![places[1], places[1]];
    assert_eq!(bed.discard_dead_letters(twice).await.unwrap(), 1);
    assert_eq!(bed.discard_dead_letters(vec![places[1]]).await.unwrap(), 0);
    bed.crash().await;
    let left: Vec<String> = bed.dead().await.iter().map(|(_, message)| text(message)).collect();
    assert_eq!(left, ["a", "c"]);
}

/// A batch that replays one dead letter for the group it failed for, under a key of the replay's own.
fn replay(bed: &Bed, place: sluice::message::Position, copy: &Message, key: Option<&str>) -> AppendBatch {
    let original = Message { id: bed.message("").id, meta: copy.meta.clone(), payload: copy.payload.clone() };
    let entry = Entry::Log { partition: 0, message: original, due: None, target: facts(copy).group };
    let dedup = key.and_then(|name| sluice_tests::store_bed::key(name, "replay"));
    let item = AppendItem { dedup, entry, emitted: Vec::new() };
    AppendBatch { replays: vec![place], ..batch(vec![item]) }
}

pub(crate) async fn a_replay_is_for_its_group_alone_and_off_the_list(bed: Bed) {
    let mut bed = bed.with_dead_letters().await;
    bed.put_group(group(TOPIC, OTHER)).await.unwrap();
    bed.publish(&["a", "b"]).await;
    bed.ack(&bed.take_for(OTHER, 10).await).await;
    for lease in bed.take(10).await {
        bed.end(&lease, Settlement::DeadLetter { failure: failure() }).await.unwrap();
    }
    let (place, copy) = bed.dead().await.remove(0);
    let outcomes = bed.append(replay(&bed, place, &copy, None)).await.unwrap();
    assert!(matches!(outcomes[..], [AppendOutcome::Stored(_)]), "{outcomes:?}");
    bed.crash().await;
    assert_eq!(bed.dead().await.iter().map(|(_, message)| text(message)).collect::<Vec<_>>(), ["b"]);
    assert!(bed.take_for(OTHER, 10).await.is_empty());
    let leases = bed.take(10).await;
    assert_eq!(texts(&leases), ["a"]);
    assert_eq!(leases[0].attempt, 1, "a replay is tried from the beginning");
    bed.put_group(GroupSpec { start: SeekTo::Earliest, ..group(TOPIC, GroupId(3)) }).await.unwrap();
    assert_eq!(texts(&bed.take_for(GroupId(3), 10).await), ["a", "b"], "a new group gets the originals, no replays");
}

pub(crate) async fn an_outdated_replay_leaves_the_list_alone(bed: Bed) {
    let bed = bed.with_dead_letters().await;
    bed.append(AppendBatch { revision: 2, ..batch(vec![turned_away(&bed, "a"), item(bed.message("b"))]) })
        .await
        .unwrap();
    let (place, copy) = bed.dead().await.remove(0);
    let late = bed.append(replay(&bed, place, &copy, None)).await;
    assert!(matches!(late, Err(StoreError::StaleRevision { current: 2 })), "{late:?}");
    assert_eq!(bed.dead().await.len(), 1);
    // A replay whose dead letter is off the list comes too late, whatever its key: two at once must not store it twice.
    let current = |key| AppendBatch { revision: 2, ..replay(&bed, place, &copy, Some(key)) };
    assert!(matches!(bed.append(current("r1")).await.unwrap()[..], [AppendOutcome::Stored(_)]));
    assert!(matches!(bed.append(current("r1")).await.unwrap()[..], [AppendOutcome::NotAttempted]));
    assert!(matches!(bed.append(current("r2")).await.unwrap()[..], [AppendOutcome::NotAttempted]));
    assert!(bed.dead().await.is_empty());
    assert_eq!(bed.log().await, ["b", "a"]);
}

pub(crate) async fn dead_letters_are_listed_in_pages(bed: Bed) {
    let bed = bed.with_dead_letters().await;
    for number in 0..10 {
        bed.append_one(turned_away(&bed, &number.to_string())).await;
    }
    let places: Vec<_> = bed.dead().await.iter().map(|(place, _)| *place).collect();
    bed.discard_dead_letters(vec![places[4]]).await.unwrap();
    let (mut after, mut names) = (None, Vec::new());
    loop {
        let page = bed.dead_letters(DEAD, after, 4).await.unwrap();
        assert!(page.messages.len() <= 4);
        names.extend(page.messages.iter().map(|(_, message)| text(message)));
        match page.messages.last() {
            Some((place, _)) => after = Some(*place),
            None => break,
        }
    }
    assert_eq!(names, ["0", "1", "2", "3", "5", "6", "7", "8", "9"]);
    assert!(matches!(bed.dead_letters(sluice::message::TopicId(99), None, 1).await, Err(StoreError::NoTopic)));
}
