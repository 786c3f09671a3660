//! What an inspection says of each kind of damage, and what a rebuilding brings back. Every directory is one that the store
//! itself wrote.

use std::cell::RefCell;
use std::fs;
use std::ops::Range;

use super::files_on_disk::{copy, drain, journals, publish_large, tight};
use super::*;

const SEGMENT: &str = "topic-1/00-0-000000000000000.seg";

fn known() -> Known {
    let shared = GroupSpec { name: "".into(), attempts_max: u32::MAX, ..group(DEAD, GroupId::SHARED) };
    Known { topics: vec![topic(DEAD), topic(TOPIC)], groups: vec![group(TOPIC, GROUP), shared], revisions_lost: false }
}

fn inspect(dir: &Path) -> Inspection {
    ClosedStore::take(dir).unwrap().inspect(&known(), START, &|_| {}).unwrap()
}

/// A message that waits for `due`.
fn scheduled(number: u64, due: Timestamp) -> AppendItem {
    let mut item = item(message(number, &format!("scheduled {number}")));
    let Entry::Log { due: waits, .. } = &mut item.entry else { unreachable!() };
    *waits = Some(due);
    item
}

/// 100 messages that only segments have, some of them settled, one a dead letter, one scheduled; then two openings whose
/// frames the journal has behind the checkpoint: messages 100 and 101.
async fn lived_in(dir: &Path, clock: &Clock) {
    let store = furnished(dir, clock).await;
    publish_large(&store, 0..100).await;
    store.append(batch(vec![scheduled(500, clock.now().plus(Duration::from_secs(60)))])).await.unwrap();
    let leases = lease(&store, 3).await;
    ack(&store, &leases[..2]).await;
    settle(&store, &leases[2..], Settlement::DeadLetter { failure: failure("REJECTED") }).await;
    store.close().await.unwrap();
    drop(store);
    // The first journal file goes with the checkpoint of the second opening.
    open(dir, clock).close().await.unwrap();
    let store = open(dir, clock);
    publish_large(&store, 100..120).await;
    drop(store);
    drop(open(dir, clock));
}

/// `lived_in`, made once a thread.
async fn lived_in_copy(clock: &Clock) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    lived_in(dir.path(), clock).await;
    dir
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn only(seen: &Inspection) -> &Finding {
    let damage: Vec<&Finding> = seen.findings.iter().filter(|finding| finding.kind.is_damage()).collect();
    assert_eq!(damage.len(), 1, "{:#?}", seen.findings);
    damage[0]
}

/// Lost messages of partition 0, lane 0 of the topic.
fn lost(finding: &Finding) -> Vec<Range<u64>> {
    let run = |lost: &Lost| match lost {
        Lost::Messages(run) => {
            assert_eq!((run.topic, run.partition, run.first.lane()), (TOPIC, 0, 0));
            run.first.sequence()..run.last().sequence() + 1
        }
        other => panic!("{other:?}"),
    };
    finding.lost.iter().map(run).collect()
}

fn one(range: Range<u64>) -> Vec<Range<u64>> {
    std::iter::once(range).collect()
}

/// Rebuilds, opens what was written, and holds it against what may be there: of messages `0..120` all but `lost`, at the
/// offsets that they had, and the group where it was.
async fn rebuild(dir: &Path, clock: &Clock, lost: &[Range<u64>]) -> (tempfile::TempDir, EmbeddedStore) {
    let before = contents(dir);
    let to = tempfile::tempdir().unwrap();
    let seen = ClosedStore::take(dir).unwrap().rebuild(to.path(), &known(), clock, &|_| {}).unwrap();
    assert_eq!(seen.findings, inspect(dir).findings, "a rebuilding sees what an inspection sees");
    assert_eq!(contents(dir), before, "the damaged directory is not changed");
    assert_eq!(inspect(to.path()).findings, [], "what was written is sound");
    let store = open(to.path(), clock);
    assert_eq!(store.report().torn, None);
    let is_lost = |number: &u64| lost.iter().any(|range| range.contains(number));
    let expected: Vec<u64> = (0..120).filter(|number| !is_lost(number)).collect();
    assert_eq!(positions(&store).await, expected.iter().map(|n| (*n, *n)).collect::<Vec<_>>(), "numbers and offsets");
    (to, store)
}

/// Message numbers and the offsets at which they stand.
async fn positions(store: &EmbeddedStore) -> Vec<(u64, u64)> {
    let request =
        ReadRequest { topic: TOPIC, partition: Some(0), from: ReadFrom::Earliest, limit: 1000, bytes_max: usize::MAX };
    let page = store.read(request).await.unwrap();
    let number = |message: &Message| text(message).parse::<u64>().unwrap();
    page.messages.iter().map(|(at, message)| (number(message), at.offset.sequence())).collect()
}

fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            all.extend(contents(&entry.path()));
        } else {
            all.push((entry.path(), fs::read(entry.path()).unwrap()));
        }
    }
    all.sort();
    all
}

/// Where each whole frame of a journal file begins.
fn frames(path: &Path) -> Vec<usize> {
    let bytes = fs::read(path).unwrap();
    let id = journal::file_id(path.file_name().unwrap().to_str().unwrap()).unwrap();
    let (mut at, mut starts) = (frame::FILE_HEADER_BYTES, Vec::new());
    while let Some((header, ..)) = bytes.get(at..).and_then(|rest| frame::split(id, rest)) {
        starts.push(at);
        at += header.frame_len();
    }
    starts
}

/// The journal file with messages 100 to 119, the frame that has them, and how long its head is.
fn appended(dir: &Path) -> (PathBuf, usize, usize) {
    for path in journals(dir) {
        let bytes = fs::read(&path).unwrap();
        let id = journal::file_id(path.file_name().unwrap().to_str().unwrap()).unwrap();
        for at in frames(&path) {
            let (header, ..) = frame::split(id, &bytes[at..]).unwrap();
            if header.body_len > 90_000 {
                return (path, at, header.head_len as usize);
            }
        }
    }
    panic!("no such frame");
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_sound_directory_has_no_findings_however_it_was_left() {
    let clock = clock();
    let left: RefCell<Vec<tempfile::TempDir>> = RefCell::default();
    let next = || {
        left.borrow_mut().push(tempfile::tempdir().unwrap());
        left.borrow().last().unwrap().path().to_owned()
    };
    // Made and dropped; closed; used over several openings.
    drop(open(&next(), &clock));
    furnished(&next(), &clock).await.close().await.unwrap();
    lived_in(&next(), &clock).await;
    // Segments ahead of the checkpoint, retention, an erasure, a topic that went, grants that nobody settled.
    let dir = next();
    drop(furnished(&dir, &clock).await);
    let store = EmbeddedStore::open(tight(&dir, &clock)).unwrap();
    publish_large(&store, 0..2000).await;
    assert!(store.erase(message(1500, "").id).await.unwrap());
    lease(&store, 50).await;
    clock.advance(Duration::from_secs(4000));
    publish_large(&store, 2000..2100).await;
    store.retain().await.unwrap();
    store.put_topic(topic(TopicId(9))).await.unwrap();
    store.delete_topic(TopicId(9)).await.unwrap();
    drop(store);
    for dir in left.borrow().iter() {
        let seen = ClosedStore::take(dir.path()).unwrap().inspect(&Known::default(), clock.now(), &|_| {}).unwrap();
        assert_eq!(seen.findings, [], "{:#?}", seen.findings);
    }
}

#[tokio::test]
async fn a_rebuilt_sound_store_is_the_same_store() {
    let clock = clock();
    let dir = lived_in_copy(&clock).await;
    let (_to, store) = rebuild(dir.path(), &clock, &[]).await;
    assert_eq!(drain(&store).await, (3..120).collect::<Vec<_>>(), "settled ones do not come again");
    assert_eq!(store.dead_letters(DEAD, None, 10).await.unwrap().messages.len(), 1);
    let stats = store.stats(TOPIC).await.unwrap();
    let old = open(dir.path(), &clock).stats(TOPIC).await.unwrap();
    assert_eq!((stats.bytes, stats.messages, stats.scheduled), (old.bytes, old.messages, 1));
    assert_eq!(stats.groups[0].dead_lettered_total, 1);
    clock.advance(Duration::from_secs(61));
    store.tick().await.unwrap();
    assert_eq!(payloads(&lease(&store, 10).await), ["scheduled 500"]);
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_a_frame_names_the_frame_or_the_message() {
    let clock = clock();
    let source = lived_in_copy(&clock).await;
    let (path, at, head) = appended(source.path());
    let bodies = at + frame::FRAME_HEADER_BYTES + head;
    for byte in (at..bodies).step_by(37).chain([at + 4, at + 8]) {
        let dir = tempfile::tempdir().unwrap();
        copy(source.path(), dir.path());
        flip(&dir.path().join(name_of(&path)), byte);
        let seen = inspect(dir.path());
        let finding = only(&seen);
        assert_eq!((finding.kind, &finding.file, finding.offset), (Kind::BadFrame, &name_of(&path), at as u64));
    }
    let dir = tempfile::tempdir().unwrap();
    copy(source.path(), dir.path());
    let body = bodies + 5000 * 7 + 2000;
    flip(&dir.path().join(name_of(&path)), body);
    let seen = inspect(dir.path());
    let finding = only(&seen);
    let [only_lost] = &lost(finding)[..] else { panic!("{finding:?}") };
    assert_eq!((finding.kind, only_lost.clone().count()), (Kind::BadPayload, 1));
    assert!((106..108).contains(&only_lost.start), "{only_lost:?}");
    assert!(finding.offset as usize <= body && body < finding.offset as usize + 5200, "where the message begins");
    let (_to, store) = rebuild(dir.path(), &clock, std::slice::from_ref(only_lost)).await;
    let expected: Vec<u64> = (3..120).filter(|number| !only_lost.contains(number)).collect();
    assert_eq!(drain(&store).await, expected);
}

#[tokio::test]
async fn what_a_lost_frame_said_is_told_by_the_frames_behind_it() {
    let clock = clock();
    let dir = lived_in_copy(&clock).await;
    let store = open(dir.path(), &clock);
    publish_large(&store, 120..140).await;
    drop(store);
    let (path, at, _) = appended(dir.path());
    flip(&path, at + 20);
    let seen = inspect(dir.path());
    let finding = only(&seen);
    assert_eq!((finding.kind, lost(finding)), (Kind::BadFrame, one(100..120)));
    let to = tempfile::tempdir().unwrap();
    ClosedStore::take(dir.path()).unwrap().rebuild(to.path(), &known(), &clock, &|_| {}).unwrap();
    assert_eq!(inspect(to.path()).findings, []);
    let store = open(to.path(), &clock);
    assert_eq!(drain(&store).await, (3..100).chain(120..140).collect::<Vec<_>>());
    publish_large(&store, 140..160).await;
    assert_eq!(positions(&store).await.last(), Some(&(159, 159)), "no offset is used again");
}

#[tokio::test]
async fn a_torn_end_is_a_note_and_so_is_what_was_saved_of_it() {
    let clock = clock();
    let dir = lived_in_copy(&clock).await;
    let store = open(dir.path(), &clock);
    publish(&store, 120..121).await;
    drop(store);
    let path = journals(dir.path()).pop().unwrap();
    let last = *frames(&path).last().unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..last + 50]).unwrap();
    let seen = inspect(dir.path());
    let [finding] = &seen.findings[..] else { panic!("{:#?}", seen.findings) };
    assert_eq!((finding.kind, &finding.file, finding.offset), (Kind::TornTail, &name_of(&path), last as u64));
    assert!(!finding.kind.is_damage() && finding.lost.is_empty());
    drop(open(dir.path(), &clock));
    let seen = inspect(dir.path());
    let [finding] = &seen.findings[..] else { panic!("{:#?}", seen.findings) };
    assert_eq!((finding.kind, &*finding.file), (Kind::SavedTornTail, &*format!("{}-{last}.torn", name_of(&path))));
}

#[tokio::test]
async fn missing_and_headless_journal_files_are_named() {
    let clock = clock();
    let source = lived_in_copy(&clock).await;
    let (path, ..) = appended(source.path());
    let dir = tempfile::tempdir().unwrap();
    copy(source.path(), dir.path());
    fs::remove_file(dir.path().join(name_of(&path))).unwrap();
    let seen = inspect(dir.path());
    let finding = only(&seen);
    assert_eq!((finding.kind, &finding.file, finding.offset), (Kind::MissingFrames, &name_of(&path), 0));
    let to = tempfile::tempdir().unwrap();
    ClosedStore::take(dir.path()).unwrap().rebuild(to.path(), &known(), &clock, &|_| {}).unwrap();
    assert_eq!(drain(&open(to.path(), &clock)).await, (3..100).collect::<Vec<_>>());
    let dir = tempfile::tempdir().unwrap();
    copy(source.path(), dir.path());
    flip(&dir.path().join(name_of(&path)), 20);
    let seen = inspect(dir.path());
    let finding = only(&seen);
    assert_eq!((finding.kind, &finding.file, finding.offset), (Kind::BadHeader, &name_of(&path), 0));
    rebuild(dir.path(), &clock, &[]).await;
}

/// Where the blocks of a segment begin, their heads' lengths, and what messages they hold.
fn blocks(path: &Path) -> Vec<(usize, usize, Range<u64>)> {
    let bytes = fs::read(path).unwrap();
    let number = segment::lane_number(ops::LaneId { topic: TOPIC, partition: 0, lane: 0 });
    let (mut at, mut blocks) = (frame::FILE_HEADER_BYTES, Vec::<(usize, usize, Range<u64>)>::new());
    while let Some((header, head, _)) = bytes.get(at..).and_then(|rest| frame::split(number, rest)) {
        if let Some(last) = blocks.last_mut() {
            last.2.end = header.sequence;
        }
        blocks.push((at, head.len(), header.sequence..100));
        at += header.frame_len();
    }
    blocks
}

#[tokio::test]
async fn a_flipped_bit_in_a_segment_names_the_block_or_the_message() {
    let clock = clock();
    let source = lived_in_copy(&clock).await;
    let blocks = blocks(&source.path().join(SEGMENT));
    assert!(blocks.len() >= 3, "{blocks:?}");
    let (at, head, messages) = blocks[1].clone();
    for byte in [at, at + 5, at + 25, at + frame::FRAME_HEADER_BYTES + 3, at + frame::FRAME_HEADER_BYTES + head - 1] {
        let dir = tempfile::tempdir().unwrap();
        copy(source.path(), dir.path());
        flip(&dir.path().join(SEGMENT), byte);
        let seen = inspect(dir.path());
        let finding = only(&seen);
        assert_eq!((finding.kind, &*finding.file, finding.offset), (Kind::BadBlock, SEGMENT, at as u64), "byte {byte}");
        assert_eq!(lost(finding), one(messages.clone()));
        let (_to, store) = rebuild(dir.path(), &clock, std::slice::from_ref(&messages)).await;
        let expected: Vec<u64> = (3..120).filter(|number| !messages.contains(number)).collect();
        assert_eq!(drain(&store).await, expected, "the cursor passes over what is lost");
        let stats = store.stats(TOPIC).await.unwrap();
        assert_eq!((stats.groups[0].waiting, stats.messages), (0, 120));
    }
    let dir = tempfile::tempdir().unwrap();
    copy(source.path(), dir.path());
    let body = at + frame::FRAME_HEADER_BYTES + head + 5000 * 3 + 2000;
    flip(&dir.path().join(SEGMENT), body);
    let seen = inspect(dir.path());
    let finding = only(&seen);
    let [one] = &lost(finding)[..] else { panic!("{finding:?}") };
    assert_eq!((finding.kind, one.clone().count()), (Kind::BadMessage, 1));
    assert!((messages.start + 2..messages.start + 4).contains(&one.start));
    assert!(finding.offset as usize <= body && body < finding.offset as usize + 5200);
    rebuild(dir.path(), &clock, std::slice::from_ref(one)).await;
    let dir = tempfile::tempdir().unwrap();
    copy(source.path(), dir.path());
    flip(&dir.path().join(SEGMENT), 20);
    let seen = inspect(dir.path());
    assert_eq!((only(&seen).kind, only(&seen).offset), (Kind::BadHeader, 0));
    rebuild(dir.path(), &clock, &[]).await;
}

#[tokio::test]
async fn a_short_and_a_missing_segment_lose_what_they_had() {
    let clock = clock();
    let source = lived_in_copy(&clock).await;
    let (at, _, messages) = blocks(&source.path().join(SEGMENT))[2].clone();
    let dir = tempfile::tempdir().unwrap();
    copy(source.path(), dir.path());
    let bytes = fs::read(dir.path().join(SEGMENT)).unwrap();
    fs::write(dir.path().join(SEGMENT), &bytes[..at + 100]).unwrap();
    let seen = inspect(dir.path());
    let finding = only(&seen);
    assert_eq!((finding.kind, &*finding.file, finding.offset), (Kind::TruncatedSegment, SEGMENT, at as u64 + 100));
    assert_eq!(lost(finding), one(messages.start..100));
    rebuild(dir.path(), &clock, &one(messages.start..100)).await;
    let dir = tempfile::tempdir().unwrap();
    copy(source.path(), dir.path());
    fs::remove_file(dir.path().join(SEGMENT)).unwrap();
    let seen = inspect(dir.path());
    let finding = only(&seen);
    assert_eq!((finding.kind, &*finding.file, lost(finding)), (Kind::MissingSegment, SEGMENT, one(0..100)));
    let (_to, store) = rebuild(dir.path(), &clock, &one(0..100)).await;
    assert_eq!(drain(&store).await, (100..120).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_a_segment_lost_and_the_journal_still_has_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    publish_large(&store, 0..120).await;
    store.close().await.unwrap();
    drop(store);
    fs::remove_file(dir.path().join(SEGMENT)).unwrap();
    let seen = inspect(dir.path());
    assert_eq!((only(&seen).kind, &only(&seen).lost[..], seen.rescued), (Kind::MissingSegment, &[][..], 120));
    let (_to, store) = rebuild(dir.path(), &clock, &[]).await;
    assert_eq!(drain(&store).await, (0..120).collect::<Vec<_>>());
}

#[tokio::test]
async fn without_a_checkpoint_messages_come_from_segments_and_groups_begin_anew() {
    let clock = clock();
    let source = lived_in_copy(&clock).await;
    type Spoil = fn(&Path);
    let spoil: [(Kind, Spoil); 2] = [
        (Kind::BadCheckpoint, |dir| flip(&dir.join("checkpoint"), 100)),
        (Kind::MissingCheckpoint, |dir| fs::remove_file(dir.join("checkpoint")).unwrap()),
    ];
    for (kind, spoil) in spoil {
        let dir = tempfile::tempdir().unwrap();
        copy(source.path(), dir.path());
        spoil(dir.path());
        let seen = inspect(dir.path());
        let finding = only(&seen);
        assert_eq!((finding.kind, &*finding.file), (kind, "checkpoint"));
        let position = |group| Lost::Position {
            topic: if group == GROUP { TOPIC } else { DEAD },
            group,
            name: if group == GROUP { "workers".to_owned() } else { String::new() },
        };
        assert!(finding.lost.contains(&position(GROUP)) && finding.lost.contains(&position(GroupId::SHARED)));
        let (_to, store) = rebuild(dir.path(), &clock, &[]).await;
        assert_eq!(drain(&store).await, (0..120).collect::<Vec<_>>(), "from the oldest on");
        assert_eq!(store.dead_letters(DEAD, None, 10).await.unwrap().messages.len(), 1);
        publish_large(&store, 120..140).await;
        assert_eq!(positions(&store).await.last(), Some(&(139, 139)));
    }
}

#[tokio::test]
async fn a_bad_checkpoint_loses_nothing_while_the_journal_begins_with_the_first_frame() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = furnished(dir.path(), &clock).await;
    publish_large(&store, 0..120).await;
    ack(&store, &lease(&store, 7).await).await;
    store.close().await.unwrap();
    drop(store);
    flip(&dir.path().join("checkpoint"), 60);
    let seen = inspect(dir.path());
    assert_eq!((only(&seen).kind, &only(&seen).lost[..]), (Kind::BadCheckpoint, &[][..]));
    let (_to, store) = rebuild(dir.path(), &clock, &[]).await;
    assert_eq!(drain(&store).await, (7..120).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_store_in_use_a_newer_one_and_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let none = ClosedStore::take(&dir.path().join("none")).unwrap_err();
    assert!(matches!(none, OpenError::Io { .. }), "{none}");
    let store = furnished(dir.path(), &clock).await;
    publish_large(&store, 0..100).await;
    assert!(matches!(ClosedStore::take(dir.path()), Err(OpenError::Locked { .. })));
    store.close().await.unwrap();
    drop(store);
    let held = ClosedStore::take(dir.path()).unwrap();
    let refused = EmbeddedStore::open(EmbeddedOptions::new(dir.path(), clock.clone())).err();
    assert!(matches!(refused, Some(OpenError::Locked { .. })), "no broker starts meanwhile");
    drop(held);
    for file in [journal::file_name(1), "checkpoint".to_owned(), SEGMENT.to_owned()] {
        let newer = tempfile::tempdir().unwrap();
        copy(dir.path(), newer.path());
        let mut bytes = fs::read(newer.path().join(&file)).unwrap();
        (bytes[8], bytes[12]) = (7, 1);
        fs::write(newer.path().join(&file), bytes).unwrap();
        let refused = ClosedStore::take(newer.path()).unwrap().inspect(&known(), START, &|_| {}).unwrap_err();
        assert!(matches!(refused, OpenError::OtherFormat { found: 7, .. }), "{file}: {refused}");
    }
}

#[tokio::test]
async fn what_the_catalog_knows_and_the_store_lacks_is_named_and_made() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    drop(furnished(dir.path(), &clock).await);
    let mut known = known();
    known.topics.push(topic(TopicId(5)));
    known.groups.push(group(TOPIC, GroupId(8)));
    let closed = ClosedStore::take(dir.path()).unwrap();
    let seen = closed.inspect(&known, START, &|_| {}).unwrap();
    let kinds: Vec<Kind> = seen.findings.iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, [Kind::MissingTopic, Kind::MissingPosition]);
    let to = tempfile::tempdir().unwrap();
    closed.rebuild(to.path(), &known, &clock, &|_| {}).unwrap();
    let store = open(to.path(), &clock);
    assert!(store.topics().await.unwrap().contains(&TopicId(5)));
    assert!(store.groups(TOPIC).await.unwrap().contains(&GroupId(8)));
}

/// The n-th file of a directory, by name, and how long it is.
fn nth_file(dir: &Path, nth: usize) -> (PathBuf, usize) {
    let files: Vec<(PathBuf, Vec<u8>)> =
        contents(dir).into_iter().filter(|(path, _)| name_of(path) != "LOCK").collect();
    let (path, bytes) = &files[nth % files.len()];
    // Journal files are reserved beyond what is written.
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    (path.clone(), used)
}

#[tokio::test]
async fn whatever_byte_is_flipped_it_is_found_unless_nothing_rests_on_it_and_a_rebuilt_store_is_sound() {
    let clock = clock();
    let source = lived_in_copy(&clock).await;
    // A multiplicative sequence: spread over all bytes of all files, the same in each run.
    let mut chance: u64 = 0x9e37_79b9_7f4a_7c15;
    for nth in 0..48 {
        chance = chance.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let dir = tempfile::tempdir().unwrap();
        copy(source.path(), dir.path());
        let (path, used) = nth_file(dir.path(), nth);
        let at = (chance >> 16) as usize % used.max(1);
        if nth % 8 == 7 {
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..at]).unwrap();
        } else {
            flip(&path, at);
        }
        let case = format!("case {nth}: {} at {at}", path.display());
        let seen = inspect(dir.path());
        let to = tempfile::tempdir().unwrap();
        let rebuilt = ClosedStore::take(dir.path()).unwrap().rebuild(to.path(), &known(), &clock, &|_| {}).unwrap();
        assert_eq!(rebuilt.findings, seen.findings, "{case}");
        assert_eq!(inspect(to.path()).findings, [], "{case}");
        let store = open(to.path(), &clock);
        let saved = positions(&store).await;
        assert!(saved.iter().all(|(number, offset)| number == offset), "{case}: an offset has moved");
        let lost: u64 = seen.findings.iter().map(Finding::messages_lost).sum();
        if !seen.findings.iter().any(|finding| matches!(finding.kind, Kind::TornTail)) {
            assert!(saved.len() as u64 + lost >= 120, "{case}: {} saved, {lost} lost", saved.len());
        }
        let opened = EmbeddedStore::open(EmbeddedOptions::new(dir.path(), clock.clone()));
        if seen.findings.is_empty() {
            assert_eq!(positions(&opened.expect(&case)).await.len(), 120, "{case}");
        } else if let Err(OpenError::Damaged { file, .. }) = opened {
            assert!(seen.findings.iter().any(|finding| finding.file == file), "{case}: {file} is not named");
        }
    }
}
