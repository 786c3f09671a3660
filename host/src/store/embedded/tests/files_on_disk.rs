//! Torn ends, damage, locks, versions, segments and checkpoints: what stands in the files.

use std::fs;

use super::super::files::read_all as read_file;
use super::*;

pub(super) fn journals(dir: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    names.sort();
    names
}

/// A journal of some frames, its bytes, and where each frame begins.
async fn journal_of(dir: &Path, clock: &Clock, messages: u64) -> (PathBuf, Vec<u8>, Vec<usize>) {
    let store = furnished(dir, clock).await;
    for number in 0..messages {
        publish(&store, number..number + 1).await;
    }
    drop(store);
    let path = journals(dir).remove(0);
    let bytes = read_file(&*Disk.open(&path).unwrap()).unwrap();
    let (mut at, mut starts) = (frame::FILE_HEADER_BYTES, Vec::new());
    while let Some((header, ..)) = frame::split(1, &bytes[at..]) {
        starts.push(at);
        at += header.frame_len();
    }
    starts.push(at);
    (path, bytes[..at].to_vec(), starts)
}

fn put(dir: &Path, bytes: &[u8]) {
    fs::write(dir.join(journal::file_name(1)), bytes).unwrap();
}

#[tokio::test]
async fn a_journal_torn_at_any_byte_keeps_what_was_acknowledged() {
    let source = tempfile::tempdir().unwrap();
    let clock = clock();
    let (_, bytes, starts) = journal_of(source.path(), &clock, 3).await;
    let last = starts[starts.len() - 2];
    for cut in last..bytes.len() {
        for filled in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let mut torn = bytes[..cut].to_vec();
            if filled {
                torn.resize(bytes.len() + 4096, 0);
            }
            put(dir.path(), &torn);
            let store = open(dir.path(), &clock);
            let torn_bytes = store.report().torn.as_ref().map_or(0, |torn| torn.bytes);
            assert!(torn_bytes <= (cut - last) as u64);
            assert_eq!(store.report().torn.is_some(), cut > last, "cut at {cut}");
            assert_eq!(store.stats(TOPIC).await.unwrap().messages, 2, "cut at {cut}");
            publish(&store, 7..8).await;
            drop(store);
            assert_eq!(open(dir.path(), &clock).stats(TOPIC).await.unwrap().messages, 3, "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn damage_before_a_whole_frame_is_told_from_a_torn_end() {
    let source = tempfile::tempdir().unwrap();
    let clock = clock();
    let (_, bytes, starts) = journal_of(source.path(), &clock, 3).await;
    let (first, last) = (starts[4], starts[starts.len() - 2]);
    for at in (first..last).step_by(3) {
        let dir = tempfile::tempdir().unwrap();
        let mut bad = bytes.clone();
        bad[at] ^= 0x20;
        put(dir.path(), &bad);
        let error = EmbeddedStore::open(EmbeddedOptions::new(dir.path(), clock.clone())).err();
        let Some(OpenError::Damaged { file, offset, .. }) = error else { panic!("byte {at}: {error:?}") };
        assert_eq!(file, journal::file_name(1));
        assert!(offset >= first as u64 && offset <= at as u64, "byte {at} is reported at {offset}");
    }
}

#[tokio::test]
async fn a_missing_end_is_damage_when_a_later_file_counts_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let (path, bytes, starts) = journal_of(dir.path(), &clock, 2).await;
    drop(open(dir.path(), &clock));
    fs::write(&path, &bytes[..starts[starts.len() - 2]]).unwrap();
    let error = EmbeddedStore::open(EmbeddedOptions::new(dir.path(), clock.clone())).err();
    assert!(matches!(error, Some(OpenError::Damaged { .. })), "{error:?}");
}

#[tokio::test]
async fn a_directory_in_use_and_a_newer_format_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    let error = EmbeddedStore::open(EmbeddedOptions::new(dir.path(), clock.clone())).err().unwrap();
    assert!(matches!(error, OpenError::Locked { .. }));
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(store);
    let path = journals(dir.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    // A version of its own, and something in a field that ours leaves empty.
    (bytes[8], bytes[12]) = (9, 1);
    fs::write(&path, bytes).unwrap();
    let error = EmbeddedStore::open(EmbeddedOptions::new(dir.path(), clock.clone())).err().unwrap();
    assert!(matches!(error, OpenError::OtherFormat { found: 9, .. }), "{error}");
}

/// Limits under which a few messages fill blocks, memory and the journal.
pub(super) fn tight(dir: &Path, clock: &Clock) -> EmbeddedOptions {
    let mut options = EmbeddedOptions::new(dir, clock.clone());
    options.limits.tail_bytes = 256 << 10;
    options.limits.unflushed_bytes_max = 512 << 10;
    options.limits.cache_bytes = 128 << 10;
    options.limits.checkpoint_bytes = 2 << 20;
    options
}

pub(super) async fn publish_large(store: &EmbeddedStore, numbers: std::ops::Range<u64>) {
    for from in numbers.step_by(20) {
        let items = (from..from + 20).map(|n| item(message(n, &format!("{n:0>5000}")))).collect();
        store.append(batch(items)).await.unwrap();
    }
}

pub(super) async fn drain(store: &EmbeddedStore) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        let leases = lease(store, 50).await;
        if leases.is_empty() {
            return numbers;
        }
        numbers.extend(leases.iter().map(|lease| text(&lease.message).parse::<u64>().unwrap()));
        ack(store, &leases).await;
    }
}

#[tokio::test]
async fn a_backlog_beyond_memory_is_delivered_from_segments() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    drop(furnished(dir.path(), &clock).await);
    let store = EmbeddedStore::open(tight(dir.path(), &clock)).unwrap();
    publish_large(&store, 0..2000).await;
    let half: Vec<u64> = (0..10).map(|_| 0).collect();
    assert_eq!(half.len(), 10);
    assert!(store.get(message(3, "").id).await.unwrap().is_some(), "found by id on disk");
    let page = store
        .read(ReadRequest {
            topic: TOPIC,
            partition: Some(0),
            from: ReadFrom::Offset(crate::message::Offset::new(0, 1000)),
            limit: 2,
            bytes_max: usize::MAX,
        })
        .await
        .unwrap();
    assert_eq!(page.messages.iter().map(|(at, _)| at.offset.sequence()).collect::<Vec<_>>(), [1000, 1001]);
    drop(store);
    let store = EmbeddedStore::open(tight(dir.path(), &clock)).unwrap();
    assert_eq!(drain(&store).await, (0..2000).collect::<Vec<_>>());
    store.close().await.unwrap();
    drop(store);
    assert!(journals(dir.path()).len() <= 2, "checkpoints free the journal");
    let store = EmbeddedStore::open(tight(dir.path(), &clock)).unwrap();
    assert_eq!(store.report().frames, 0, "a closed store replays nothing");
    assert!(drain(&store).await.is_empty());
    store.seek(TOPIC, GROUP, SeekTo::Earliest).await.unwrap();
    assert_eq!(drain(&store).await.len(), 2000);
}

#[tokio::test]
async fn damage_in_a_segment_stops_its_partition_alone() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    publish_large(&store, 0..100).await;
    store.append(batch(vec![item_in(1, message(500, "elsewhere"))])).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let segment = dir.path().join("topic-1").join("00-0-000000000000000.seg");
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let store = EmbeddedStore::open(EmbeddedOptions::new(dir.path(), clock.clone())).unwrap();
    let mut seen = Vec::new();
    let error = loop {
        match store.lease(request(10)).await {
            Ok(leased) if leased.leases.is_empty() => panic!("the damage went unseen"),
            Ok(leased) => seen.extend(payloads(&leased.leases)),
            Err(error) => break error,
        }
    };
    let StoreError::Damaged { file, offset, .. } = error else { panic!("{error:?}") };
    assert_eq!(file, "topic-1/00-0-000000000000000.seg");
    assert!(offset as usize <= middle);
    assert!(seen.contains(&"elsewhere".to_owned()));
    assert_eq!(figure(&store, "sluice_store_damaged_partitions"), 1.0);
    publish(&store, 600..601).await;
}

#[tokio::test]
async fn erased_bytes_are_in_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    let secret = "the secret that must go";
    store.append(batch(vec![item(message(1, secret)), item(message(2, "stays"))])).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let store = open(dir.path(), &clock);
    store.append(batch(vec![item(message(3, secret)), item(message(4, "stays too"))])).await.unwrap();
    let leases = lease(&store, 1).await;
    settle(&store, &leases, Settlement::DeadLetter { failure: failure("REJECTED") }).await;
    for number in [1, 3] {
        assert!(store.erase(message(number, "").id).await.unwrap());
    }
    assert!(!found_in(dir.path(), secret.as_bytes()));
    assert_eq!(read_all(&store, TOPIC).await, ["stays", "stays too"]);
    assert!(read_all(&store, DEAD).await.is_empty(), "its dead letter went with it");
    drop(store);
    let store = open(dir.path(), &clock);
    assert_eq!(read_all(&store, TOPIC).await, ["stays", "stays too"]);
    store.close().await.unwrap();
    assert!(!found_in(dir.path(), secret.as_bytes()));
}

fn found_in(dir: &Path, needle: &[u8]) -> bool {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
        if path.is_dir() {
            return found_in(&path, needle);
        }
        fs::read(&path).unwrap().windows(needle.len()).any(|window| window == needle)
    })
}

#[tokio::test]
async fn retention_unlinks_segments_and_deletion_the_topic() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    publish_large(&store, 0..100).await;
    store.close().await.unwrap();
    drop(store);
    let store = open(dir.path(), &clock);
    clock.advance(Duration::from_secs(3600));
    publish(&store, 200..201).await;
    let report = store.retain().await.unwrap();
    assert_eq!((report.removed, report.expired), (100, 100));
    assert_eq!(read_all(&store, TOPIC).await, ["payload 200"]);
    store.close().await.unwrap();
    drop(store);
    let segments = fs::read_dir(dir.path().join("topic-1")).unwrap().count();
    assert_eq!(segments, 1);
    let store = open(dir.path(), &clock);
    assert_eq!(store.stats(TOPIC).await.unwrap().removed_total, 100);
    store.delete_topic(TOPIC).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    assert!(!dir.path().join("topic-1").exists());
    assert_eq!(open(dir.path(), &clock).topics().await.unwrap(), [DEAD]);
}

#[tokio::test]
async fn retention_goes_on_past_a_segment_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    publish_large(&store, 0..100).await;
    store.close().await.unwrap();
    drop(store);
    fs::remove_file(dir.path().join("topic-1").join("00-0-000000000000000.seg")).unwrap();
    let store = open(dir.path(), &clock);
    assert_eq!(store.report().damaged_segments.len(), 1);
    clock.advance(Duration::from_secs(3600));
    publish(&store, 200..201).await;
    assert!(matches!(store.lease(request(10)).await, Err(StoreError::Damaged { .. })));
    assert_eq!(store.retain().await.unwrap().removed, 100);
    assert_eq!(payloads(&lease(&store, 10).await), ["payload 200"], "the damage went with its segment");
}

#[tokio::test]
async fn an_opening_that_is_refused_changes_no_file() {
    let source = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(source.path(), &clock).await;
    publish_large(&store, 0..100).await;
    store.close().await.unwrap();
    drop(store);
    let store = open(source.path(), &clock);
    publish(&store, 100..103).await;
    store.close().await.unwrap();
    drop(store);
    // The first journal file is gone by now: what it said is in the checkpoint alone.
    let store = open(source.path(), &clock);
    publish(&store, 103..104).await;
    drop(store);
    let segment = "topic-1/00-0-000000000000000.seg";
    type Spoil = fn(&Path);
    let spoil: [(&str, Spoil); 3] = [
        ("no checkpoint", |dir| fs::remove_file(dir.join("checkpoint")).unwrap()),
        ("no journal", |dir| journals(dir).iter().for_each(|path| fs::remove_file(path).unwrap())),
        ("a damaged frame", |dir| {
            let path = journals(dir).pop().unwrap();
            let mut bytes = fs::read(&path).unwrap();
            bytes[frame::FILE_HEADER_BYTES + 5] ^= 1;
            fs::write(&path, bytes).unwrap();
        }),
    ];
    for (what, spoil) in spoil {
        let dir = tempfile::tempdir().unwrap();
        copy(source.path(), dir.path());
        spoil(dir.path());
        // A tail behind the checkpoint is cut only by an opening that succeeds.
        let mut bytes = fs::read(dir.path().join(segment)).unwrap();
        bytes.extend(b"tail");
        fs::write(dir.path().join(segment), &bytes).unwrap();
        let error = EmbeddedStore::open(EmbeddedOptions::new(dir.path(), clock.clone())).err();
        assert!(matches!(error, Some(OpenError::Damaged { .. })), "{what}: {error:?}");
        assert_eq!(fs::read(dir.path().join(segment)).unwrap(), bytes, "{what}");
    }
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(path, target).unwrap();
        }
    }
}

/// What the store's metric `name` shows; of a histogram, how much it has seen.
fn figure(store: &EmbeddedStore, name: &str) -> f64 {
    let registry = prometheus::Registry::new();
    store.register(&registry).unwrap();
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name).unwrap();
    let metric = &family.get_metric()[0];
    metric.get_gauge().get_value() + metric.get_histogram().get_sample_count() as f64
}

#[tokio::test]
async fn its_figures_tell_of_syncs_of_the_journal_and_of_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = furnished(dir.path(), &clock()).await;
    let (syncs, bytes) =
        (figure(&store, "sluice_journal_sync_duration_seconds"), figure(&store, "sluice_journal_size_bytes"));
    store.append(batch(vec![item_in(0, message(500, "one"))])).await.unwrap();
    assert_eq!(figure(&store, "sluice_journal_sync_duration_seconds"), syncs + 1.0);
    let full = figure(&store, "sluice_journal_size_bytes");
    assert!(full > bytes);
    assert_eq!(figure(&store, "sluice_store_damaged_partitions"), 0.0);
}
