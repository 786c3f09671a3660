//! What the contract promises, on one store that stays open.

use super::*;

#[tokio::test]
async fn messages_are_leased_in_order_and_gone_once_acked() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    publish(&store, 0..10).await;
    let first = lease(&store, 4).await;
    assert_eq!(payloads(&first), (0..4).map(|n| format!("payload {n}")).collect::<Vec<_>>());
    ack(&store, &first).await;
    let rest = lease(&store, 100).await;
    assert_eq!(rest.len(), 6);
    assert!(lease(&store, 100).await.is_empty());
    ack(&store, &rest).await;
    let stats = store.stats(TOPIC).await.unwrap();
    assert_eq!((stats.messages, stats.groups[0].acked_total, stats.groups[0].waiting), (10, 10, 0));
    assert_eq!(stats.groups[0].oldest_unsettled, None);
}

#[tokio::test]
async fn two_live_leases_of_a_message_are_impossible() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = Arc::new(furnished(dir.path(), &clock).await);
    publish(&store, 0..400).await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            let mut mine = Vec::new();
            for _ in 0..20 {
                mine.extend(lease(&store, 5).await.iter().map(|lease| lease.position));
            }
            mine
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    assert_eq!(all.len(), 400);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 400);
}

#[tokio::test]
async fn an_expired_lease_is_granted_again_and_its_receipt_refused() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    publish(&store, 0..1).await;
    let first = lease(&store, 1).await;
    clock.advance(Duration::from_secs(30));
    let second = lease(&store, 1).await;
    assert_eq!((first[0].attempt, second[0].attempt), (1, 2));
    assert_eq!(settle(&store, &first, Settlement::Ack).await, [Err(SettleRefused::LeaseExpired)]);
    ack(&store, &second).await;
    assert_eq!(settle(&store, &second, Settlement::Ack).await, [Err(SettleRefused::LeaseExpired)]);
}

#[tokio::test]
async fn the_last_attempt_makes_a_dead_letter_and_so_does_the_last_expiry() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    publish(&store, 0..2).await;
    for attempt in 1..=3 {
        let leases = lease(&store, 2).await;
        assert_eq!(leases.len(), 2, "attempt {attempt}");
        let results =
            settle(&store, &leases[..1], Settlement::Retry { at: clock.now(), failure: failure("NACK") }).await;
        let expected = if attempt < 3 { Settled::Retrying { at: clock.now() } } else { Settled::DeadLettered };
        assert_eq!(results, [Ok(expected)]);
        clock.advance(Duration::from_secs(30));
        store.tick().await.unwrap();
    }
    assert!(lease(&store, 2).await.is_empty());
    let dead = store.dead_letters(DEAD, None, 10).await.unwrap().messages;
    let reasons: Vec<_> = dead.iter().map(|(_, m)| m.meta.dead_letter.clone().unwrap()).collect();
    assert_eq!(reasons.iter().map(|facts| &*facts.last.reason).collect::<Vec<_>>(), ["NACK", "LEASE_EXPIRED"]);
    assert!(reasons.iter().all(|facts| facts.attempts == 3 && &*facts.group_name == "workers"));
    assert_eq!(store.discard_dead_letters(vec![dead[0].0, dead[0].0]).await.unwrap(), 1);
    assert_eq!(store.dead_letters(DEAD, None, 10).await.unwrap().messages.len(), 1);
    assert_eq!(store.stats(TOPIC).await.unwrap().groups[0].dead_lettered_total, 2);
}

#[tokio::test]
async fn a_release_does_not_count_and_a_holder_settles_without_receipt() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    publish(&store, 0..1).await;
    for _ in 0..5 {
        let leases = lease(&store, 1).await;
        assert_eq!(leases[0].attempt, 1);
        assert_eq!(settle(&store, &leases, Settlement::Release).await, [Ok(Settled::Released)]);
    }
    let leases = lease(&store, 1).await;
    let by = |holder: &str| Settle {
        lease: LeaseRef::Holder { topic: TOPIC, group: GROUP, message: leases[0].message.id, holder: holder.into() },
        settlement: Settlement::Ack,
    };
    let results = store.settle(vec![by("someone else"), by("tester"), by("tester")]).await.unwrap();
    assert_eq!(results, [Err(SettleRefused::LeaseExpired), Ok(Settled::Acked), Err(SettleRefused::LeaseExpired)]);
}

#[tokio::test]
async fn one_key_is_stored_once_and_conflicts_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    let outcomes =
        store.append(batch(vec![keyed("a", message(1, "one")), keyed("a", message(2, "two"))])).await.unwrap();
    assert!(matches!(outcomes[..], [AppendOutcome::Stored(_), AppendOutcome::Duplicate(_)]), "{outcomes:?}");
    let mut other = keyed("a", message(3, "three"));
    other.dedup = Some(DedupKey { key: "a".into(), request_hash: [2; 16] });
    assert_eq!(store.append(batch(vec![other])).await.unwrap(), [AppendOutcome::KeyConflict]);
    clock.advance(Duration::from_secs(600));
    let outcomes = store.append(batch(vec![keyed("a", message(4, "four"))])).await.unwrap();
    assert!(matches!(outcomes[..], [AppendOutcome::Stored(_)]), "past its window: {outcomes:?}");
    assert_eq!(read_all(&store, TOPIC).await, ["one", "four"]);
}

#[tokio::test]
async fn the_highest_lane_goes_first_and_the_lowest_is_not_starved() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    let mut items = Vec::new();
    for number in 0..20 {
        let mut urgent = message(number, "urgent");
        urgent.meta.priority = 9;
        items.extend([item(urgent), item(message(100 + number, "usual"))]);
    }
    store.append(batch(items)).await.unwrap();
    let order = payloads(&lease(&store, 16).await);
    let usual: Vec<_> = (0..16).filter(|at| order[*at] == "usual").collect();
    assert_eq!(usual, [7, 15]);
}

#[tokio::test]
async fn no_message_of_a_key_overtakes_another() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    let of = |key: &str, number: u64| {
        let mut message = message(number, &format!("{key}{number}"));
        message.meta.key = Some(key.into());
        item(message)
    };
    store.append(batch(vec![of("a", 1), of("a", 2), of("b", 3), of("a", 4), of("b", 5)])).await.unwrap();
    let ordered = LeaseRequest { ordered: true, ..request(10) };
    let first = store.lease(ordered.clone()).await.unwrap();
    assert_eq!(payloads(&first.leases), ["a1", "b3"]);
    assert!(!first.more);
    let retry = Settlement::Retry { at: clock.now().plus(Duration::from_secs(5)), failure: failure("NACK") };
    settle(&store, &first.leases[..1], retry).await;
    ack(&store, &first.leases[1..]).await;
    let second = store.lease(ordered.clone()).await.unwrap().leases;
    assert_eq!(payloads(&second), ["b5"], "a1 waits for its retry, and all of a behind it");
    clock.advance(Duration::from_secs(5));
    for expected in ["a1", "a2", "a4"] {
        let leases = store.lease(ordered.clone()).await.unwrap().leases;
        assert_eq!(payloads(&leases), [expected]);
        ack(&store, &leases).await;
    }
}

#[tokio::test]
async fn a_scheduled_message_enters_the_log_when_it_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    let due = START.plus(Duration::from_secs(60));
    let mut later = item(message_at(due, 1, "later"));
    if let Entry::Log { due: at, .. } = &mut later.entry {
        *at = Some(due);
    }
    assert_eq!(store.append(batch(vec![later])).await.unwrap(), [AppendOutcome::Scheduled]);
    let id = MessageId::new(due, TOPIC, 0, 1);
    assert_eq!(store.get(id).await.unwrap().unwrap().due, Some(due));
    assert!(read_all(&store, TOPIC).await.is_empty());
    assert_eq!(store.tick().await.unwrap(), Some(due));
    let mut woken = store.appended(TOPIC).unwrap();
    clock.advance(Duration::from_secs(60));
    store.tick().await.unwrap();
    assert!(woken.has_changed().unwrap());
    woken.mark_unchanged();
    assert_eq!(payloads(&lease(&store, 1).await), ["later"]);
    assert!(store.get(id).await.unwrap().unwrap().position.is_some());
    assert_eq!(store.stats(TOPIC).await.unwrap().scheduled, 0);
}

#[tokio::test]
async fn what_is_past_its_time_is_not_delivered_but_counted() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    let mut short = message(1, "short");
    short.meta.expires_at = Some(START.plus(Duration::from_secs(10)));
    store.append(batch(vec![item(short), item(message(2, "long"))])).await.unwrap();
    clock.advance(Duration::from_secs(10));
    assert_eq!(payloads(&lease(&store, 10).await), ["long"]);
    assert_eq!(store.stats(TOPIC).await.unwrap().groups[0].expired_total, 1);
    clock.advance(Duration::from_secs(3600));
    assert!(lease(&store, 10).await.is_empty(), "out of retention");
    let report = store.retain().await.unwrap();
    assert_eq!(report.removed, 2);
    let stats = store.stats(TOPIC).await.unwrap();
    assert_eq!((stats.messages, stats.bytes, stats.groups[0].expired_total), (0, 0, 2));
}

#[tokio::test]
async fn a_full_topic_takes_more_once_it_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    store.put_topic(TopicSpec { retention_bytes: Some(2000), ..topic(TOPIC) }).await.unwrap();
    let mut stored = 0;
    while store.append(batch(vec![item(message(stored, "x"))])).await.unwrap() != [AppendOutcome::TopicFull] {
        stored += 1;
    }
    assert!((5..40).contains(&stored), "{stored}");
    ack(&store, &lease(&store, 2).await).await;
    assert!(matches!(store.append(batch(vec![item(message(99, "x"))])).await.unwrap()[..], [AppendOutcome::Stored(_)]));
    assert!(store.stats(TOPIC).await.unwrap().bytes <= 2000);
}

#[tokio::test]
async fn at_most_once_grants_are_settled_by_being_granted() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    publish(&store, 0..3).await;
    let once = LeaseRequest { mode: Mode::AtMostOnce, ..request(2) };
    assert_eq!(store.lease(once.clone()).await.unwrap().leases.len(), 2);
    drop(store);
    let store = open(dir.path(), &clock);
    assert_eq!(payloads(&store.lease(once).await.unwrap().leases), ["payload 2"]);
}

#[tokio::test]
async fn seek_purge_and_targets_move_cursors() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    publish(&store, 0..4).await;
    clock.advance(Duration::from_secs(1));
    publish(&store, 4..6).await;
    let mut replay = item(message(9, "for another"));
    if let Entry::Log { target, .. } = &mut replay.entry {
        *target = Some(GroupId(8));
    }
    store.append(batch(vec![replay])).await.unwrap();
    store.put_group(group(TOPIC, GroupId(8))).await.unwrap();
    assert_eq!(store.stats(TOPIC).await.unwrap().groups[0].waiting, 6);
    assert_eq!(store.stats(TOPIC).await.unwrap().groups[1].waiting, 7);
    ack(&store, &lease(&store, 10).await).await;
    store.seek(TOPIC, GROUP, SeekTo::Time(START.plus(Duration::from_secs(1)))).await.unwrap();
    assert_eq!(payloads(&lease(&store, 10).await), ["payload 4", "payload 5"]);
    store.seek(TOPIC, GROUP, SeekTo::Earliest).await.unwrap();
    let held = lease(&store, 1).await;
    assert_eq!(store.purge(TOPIC, GROUP).await.unwrap(), 5);
    ack(&store, &held).await;
    assert!(lease(&store, 10).await.is_empty());
    store.seek(TOPIC, GROUP, SeekTo::Offset(0, crate::message::Offset::new(0, 3))).await.unwrap();
    assert_eq!(lease(&store, 10).await.len(), 3);
}

#[tokio::test]
async fn kv_writes_are_compared_and_set() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    let write = |expected_version, value: Option<&str>| crate::store::KvWrite {
        namespace: "n".into(),
        key: "k".into(),
        expected_version,
        value: value.map(|value| value.as_bytes().to_vec()),
    };
    let put = |write| AppendBatch { kv: vec![write], ..batch(Vec::new()) };
    store.append(put(write(0, Some("a")))).await.unwrap();
    assert!(matches!(store.append(put(write(0, Some("b")))).await, Err(StoreError::KvConflict)));
    let first = store.kv_get("n", "k").await.unwrap().unwrap();
    store.append(put(write(first.version, None))).await.unwrap();
    assert!(store.kv_get("n", "k").await.unwrap().is_none());
    store.append(put(write(0, Some("c")))).await.unwrap();
    drop(store);
    let store = open(dir.path(), &clock);
    let last = store.kv_get("n", "k").await.unwrap().unwrap();
    assert!(last.version > first.version && last.value == b"c");
}

#[tokio::test]
async fn an_older_pipeline_revision_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    store.append(AppendBatch { revision: 5, ..batch(vec![item(message(1, "five"))]) }).await.unwrap();
    let stale = store.append(AppendBatch { revision: 4, ..batch(vec![item(message(2, "four"))]) }).await;
    assert!(matches!(stale, Err(StoreError::StaleRevision { current: 5 })), "{stale:?}");
    let other = AppendBatch { revision: 4, ..batch(vec![item_in(1, message(3, "elsewhere"))]) };
    store.append(other).await.unwrap();
}

#[tokio::test]
async fn a_dead_letter_is_replayed_once() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    publish(&store, 0..1).await;
    let leases = lease(&store, 1).await;
    settle(&store, &leases, Settlement::DeadLetter { failure: failure("REJECTED") }).await;
    let dead = store.dead_letters(DEAD, None, 10).await.unwrap().messages;
    let replay = |number| AppendBatch { replays: vec![dead[0].0], ..batch(vec![item(message(number, "replay"))]) };
    let (first, second) = tokio::join!(store.append(replay(1)), store.append(replay(2)));
    assert!(matches!(first.unwrap()[..], [AppendOutcome::Stored(_)]));
    assert_eq!(second.unwrap(), [AppendOutcome::NotAttempted]);
    assert!(store.dead_letters(DEAD, None, 10).await.unwrap().messages.is_empty());
}

#[tokio::test]
async fn an_at_most_once_grant_that_ended_before_it_was_durable_is_not_handed_out() {
    use super::super::state::append::Plan;
    use super::super::state::settle::Live;
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    publish(&store, 0..1).await;
    let once = LeaseRequest { mode: Mode::AtMostOnce, ..request(1) };
    let live = |granted: &[super::super::state::grant::Granted]| Live {
        position: granted[0].position,
        group: GROUP,
        grant: granted[0].receipt.grant,
        attempts: granted[0].attempt,
    };
    let mut state = store.core.state.lock();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    state.grant(&once, clock.now(), &[], &mut first).unwrap();
    clock.advance(Duration::from_secs(30));
    state.grant(&once, clock.now(), &[], &mut second).unwrap();
    let mut plan = Plan::default();
    assert_eq!(
        state.plan_once(&[live(&first), live(&second), live(&second)], clock.now(), &mut plan),
        [false, true, false]
    );
}

#[tokio::test]
async fn what_is_emitted_on_an_older_revision_of_its_topic_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    let other = TopicSpec { id: TopicId(3), dead_letter: None, ..topic(TOPIC) };
    store.put_topic(other).await.unwrap();
    let emit = |revision| {
        let mut emitted = message(revision, "emitted");
        emitted.meta.revision = revision;
        AppendItem { emitted: vec![(TopicId(3), 0, emitted)], ..item(message(100 + revision, "source")) }
    };
    store.append(batch(vec![emit(5)])).await.unwrap();
    let stale = store.append(batch(vec![emit(4)])).await;
    assert!(matches!(stale, Err(StoreError::StaleRevision { current: 5 })), "{stale:?}");
    assert_eq!(read_all(&store, TOPIC).await, ["source"]);
}

#[tokio::test]
async fn an_expiry_behind_a_rewound_frontier_hides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    publish(&store, 0..2).await;
    let leases = lease(&store, 2).await;
    let retry = Settlement::Retry { at: clock.now().plus(Duration::from_millis(500)), failure: failure("NACK") };
    settle(&store, &leases[..1], retry).await;
    store.seek(TOPIC, GROUP, SeekTo::Offset(0, crate::message::Offset::new(4, 0))).await.unwrap();
    clock.advance(Duration::from_secs(31));
    store.tick().await.unwrap();
    assert_eq!(payloads(&lease(&store, 10).await), ["payload 0", "payload 1"]);
}

#[tokio::test]
async fn what_is_kept_in_memory_holds_no_part_of_its_request() {
    let dir = tempfile::tempdir().unwrap();
    let store = furnished(dir.path(), &clock()).await;
    let request = Bytes::from(vec![b'x'; 64 * 1024]);
    let log = Message { payload: request.slice(..1), ..message(1, "") };
    let scheduled = Message { payload: request.slice(1..2), ..message(2, "") };
    let due = Some(START.plus(Duration::from_secs(60)));
    let scheduled = Entry::Log { partition: 0, message: scheduled, due, target: None };
    let items = vec![item(log), AppendItem { dedup: None, entry: scheduled, emitted: Vec::new() }];
    store.append(batch(items)).await.unwrap();
    assert!(request.is_unique(), "a byte of it keeps 64 KiB, and is counted as one");
}
