//! A disk without room and a disk that fails, over a file layer that obeys the test.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32};

use super::super::files::DataFile;
use super::*;
use crate::message::Offset;

/// Fails on command what it passes on otherwise.
#[derive(Default)]
struct Switches {
    writes: AtomicBool,
    syncs: AtomicBool,
    room: AtomicBool,
    /// Writes to segments alone.
    segments: AtomicBool,
    synced: AtomicU32,
    /// Writes to segments wait.
    gate: AtomicBool,
    /// Syncs of other files wait.
    sync_gate: AtomicBool,
    /// One does, or did.
    at_gate: AtomicBool,
}

struct Faulty(Arc<Switches>);

/// A file, whether it is a segment, and the switches.
struct FaultyFile(Arc<dyn DataFile>, bool, Arc<Switches>);

impl Faulty {
    fn file(&self, path: &Path, file: Arc<dyn DataFile>) -> Arc<dyn DataFile> {
        let is_segment = path.extension().is_some_and(|extension| extension == "seg");
        Arc::new(FaultyFile(file, is_segment, Arc::clone(&self.0)))
    }
}

impl Switches {
    /// Not for ever: a test that fails meanwhile has to join this thread.
    fn wait_at(&self, gate: &AtomicBool) {
        self.at_gate.store(true, Ordering::SeqCst);
        for _ in 0..30_000 {
            if !gate.load(Ordering::SeqCst) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn fails(switch: &AtomicBool, kind: io::ErrorKind) -> io::Result<()> {
    if switch.load(Ordering::SeqCst) { Err(io::Error::from(kind)) } else { Ok(()) }
}

impl FileLayer for Faulty {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        Disk.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        Disk.list(dir)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DataFile>> {
        Ok(self.file(path, Disk.create(path)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DataFile>> {
        Ok(self.file(path, Disk.open(path)?))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        Disk.remove_dir_all(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Disk.sync_dir(path)
    }
}

impl DataFile for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.2.writes.load(Ordering::SeqCst) {
            // Half of it gets there, as on a disk that fills up.
            self.0.write_at(&bytes[..bytes.len() / 2], offset)?;
        }
        fails(&self.2.writes, io::ErrorKind::StorageFull)?;
        if self.1 {
            fails(&self.2.segments, io::ErrorKind::StorageFull)?;
            self.2.wait_at(&self.2.gate);
        }
        self.0.write_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        fails(&self.2.syncs, io::ErrorKind::Other)?;
        self.2.synced.fetch_add(1, Ordering::SeqCst);
        if !self.1 && self.2.sync_gate.load(Ordering::SeqCst) {
            self.2.wait_at(&self.2.sync_gate);
        }
        self.0.sync()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn preallocate(&self, len: u64) -> io::Result<()> {
        fails(&self.2.room, io::ErrorKind::StorageFull)?;
        self.0.preallocate(len)
    }
}

async fn faulty(dir: &Path, clock: &Clock) -> (EmbeddedStore, Arc<Switches>) {
    drop(furnished(dir, clock).await);
    let switches = Arc::new(Switches::default());
    let layer = Arc::new(Faulty(Arc::clone(&switches)));
    (EmbeddedStore::open_on(EmbeddedOptions::new(dir, clock.clone()), layer).unwrap(), switches)
}

#[tokio::test]
async fn without_room_nothing_is_stored_and_service_returns_with_room() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let (store, switches) = faulty(dir.path(), &clock).await;
    publish(&store, 0..1).await;
    let leases = lease(&store, 1).await;
    switches.writes.store(true, Ordering::SeqCst);
    let refused = store.append(batch(vec![keyed("k", message(1, "refused"))])).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(store.health().is_err());
    let unsettled = store.settle(vec![settle_of(&leases[0], Settlement::Ack)]).await;
    assert!(matches!(unsettled, Err(StoreError::Unavailable(_))), "{unsettled:?}");
    switches.writes.store(false, Ordering::SeqCst);
    switches.room.store(true, Ordering::SeqCst);
    let refused = store.append(batch(vec![keyed("k", message(1, "refused"))])).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    switches.room.store(false, Ordering::SeqCst);
    let outcomes = store.append(batch(vec![keyed("k", message(1, "stored"))])).await.unwrap();
    assert!(matches!(outcomes[..], [AppendOutcome::Stored(_)]), "{outcomes:?}");
    ack(&store, &leases).await;
    assert!(store.health().is_ok());
    drop(store);
    let store = open(dir.path(), &clock);
    assert_eq!(read_all(&store, TOPIC).await, ["payload 0", "stored"]);
    assert_eq!(store.stats(TOPIC).await.unwrap().groups[0].acked_total, 1);
}

/// Waits for what the store's own threads do at their next turn.
async fn until(what: &str, holds: &dyn Fn() -> bool) {
    for _ in 0..100 {
        if holds() {
            return;
        }
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(50))).await.unwrap();
    }
    panic!("never: {what}");
}

/// Fills the journal's file while no other can be made; answers how many messages it took.
async fn fill(store: &EmbeddedStore) -> u64 {
    let large = "x".repeat(64 << 10);
    for number in 1..1000 {
        match store.append(batch(vec![item(message(number, &large))])).await {
            Ok(_) => {}
            Err(StoreError::Unavailable(_)) => return number - 1,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("the journal was never full");
}

#[tokio::test]
async fn without_room_for_messages_settlements_and_purges_still_find_some() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let (store, switches) = faulty(dir.path(), &clock).await;
    publish(&store, 0..1).await;
    switches.room.store(true, Ordering::SeqCst);
    let accepted = fill(&store).await;
    // Not one that would fit either, or small messages would take what the others need.
    let small = store.append(batch(vec![item(message(2000, "small"))])).await;
    assert!(matches!(small, Err(StoreError::Unavailable(_))), "{small:?}");
    for _ in 0..accepted {
        ack(&store, &lease(&store, 1).await).await;
    }
    assert_eq!(store.purge(TOPIC, GROUP).await.unwrap(), 1);
    assert!(store.health().is_err(), "full it is all the same");
    switches.room.store(false, Ordering::SeqCst);
    publish(&store, 2001..2002).await;
    assert!(store.health().is_ok());
    drop(store);
    let store = open(dir.path(), &clock);
    assert_eq!(payloads(&lease(&store, 10).await), ["payload 2001"]);
}

#[tokio::test]
async fn a_journal_that_is_full_is_replaced_by_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let (store, switches) = faulty(dir.path(), &clock).await;
    // Into a second file.
    let large = "x".repeat(64 << 10);
    for number in 0..80 {
        store.append(batch(vec![item(message(number, &large))])).await.unwrap();
    }
    let files = || {
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("journal-")).count()
    };
    assert!(files() > 1);
    switches.room.store(true, Ordering::SeqCst);
    fill(&store).await;
    until("one file of the journal is left", &|| files() == 1).await;
}

#[tokio::test]
async fn what_was_purged_is_removed_though_nothing_can_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let (store, switches) = faulty(dir.path(), &clock).await;
    let large = "x".repeat(64 << 10);
    for number in 0..40 {
        store.append(batch(vec![item(message(number, &large))])).await.unwrap();
    }
    let segments = || {
        let names = std::fs::read_dir(dir.path().join("topic-1")).into_iter().flatten();
        names.flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(".seg")).count()
    };
    until("segments are written", &|| segments() > 0).await;
    switches.room.store(true, Ordering::SeqCst);
    switches.segments.store(true, Ordering::SeqCst);
    fill(&store).await;
    store.delete_topic(TOPIC).await.unwrap();
    until("they are removed", &|| segments() == 0).await;
}

#[tokio::test]
async fn what_no_segment_takes_is_refused_and_taken_when_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    drop(furnished(dir.path(), &clock).await);
    let switches = Arc::new(Switches::default());
    let mut options = EmbeddedOptions::new(dir.path(), clock.clone());
    options.limits.unflushed_bytes_max = 256 << 10;
    let store = EmbeddedStore::open_on(options, Arc::new(Faulty(Arc::clone(&switches)))).unwrap();
    switches.segments.store(true, Ordering::SeqCst);
    let accepted = fill(&store).await;
    assert!((4..8).contains(&accepted), "{accepted}");
    assert!(store.health().is_err());
    switches.segments.store(false, Ordering::SeqCst);
    for _ in 0..100 {
        if store.append(batch(vec![item(message(2000, "small"))])).await.is_ok() {
            return;
        }
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(50))).await.unwrap();
    }
    panic!("still refused: {:?}", store.health());
}

#[tokio::test]
async fn messages_that_retention_removes_while_they_are_written_to_a_segment_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let (store, switches) = faulty(dir.path(), &clock).await;
    let large = "x".repeat(64 << 10);
    switches.gate.store(true, Ordering::SeqCst);
    for number in 0..40 {
        store.append(batch(vec![item(message(number, &large))])).await.unwrap();
    }
    until("a segment is being written", &|| switches.at_gate.load(Ordering::SeqCst)).await;
    clock.advance(Duration::from_secs(3600));
    publish(&store, 100..101).await;
    assert_eq!(store.retain().await.unwrap().removed, 40);
    switches.gate.store(false, Ordering::SeqCst);
    publish(&store, 101..102).await;
    store.close().await.unwrap();
    drop(store);
    let store = open(dir.path(), &clock);
    assert_eq!(store.report(), &OpenReport::default());
    assert_eq!(payloads(&lease(&store, 10).await), ["payload 100", "payload 101"]);
    assert_eq!(read_all(&store, TOPIC).await, ["payload 100", "payload 101"]);
}

#[tokio::test]
async fn what_is_leased_while_a_seek_is_synced_is_as_new_after_it_also_after_a_crash() {
    for restores in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let clock = clock();
        let (store, switches) = faulty(dir.path(), &clock).await;
        publish(&store, 0..2).await;
        store.put_snapshot(TOPIC, GROUP, "before".into()).await.unwrap();
        let moves = async {
            if restores {
                assert!(store.restore(TOPIC, GROUP, "before".into()).await.unwrap());
            } else {
                store.seek(TOPIC, GROUP, SeekTo::Earliest).await.unwrap();
            }
        };
        leased_while_synced((&store, &switches), moves, 2).await;
        drop(store);
        let again = lease(&open(dir.path(), &clock), 2).await;
        assert_eq!(again.iter().map(|lease| lease.attempt).collect::<Vec<_>>(), [1, 1], "restores: {restores}");
    }
}

/// Leases so many while the frame of a move is being synced, and writes what was noted of them behind it.
async fn leased_while_synced(
    (store, switches): (&EmbeddedStore, &Switches),
    moves: impl Future<Output = ()>,
    count: usize,
) {
    switches.sync_gate.store(true, Ordering::SeqCst);
    let meanwhile = async {
        until("the frame is being synced", &|| switches.at_gate.load(Ordering::SeqCst)).await;
        let leases = lease(store, count).await;
        switches.sync_gate.store(false, Ordering::SeqCst);
        leases
    };
    let ((), leases) = tokio::join!(moves, meanwhile);
    assert_eq!(leases.len(), count);
    store.tick().await.unwrap();
}

/// A seek to an offset moves one lane of one partition.
#[tokio::test]
async fn what_is_leased_of_other_lanes_while_one_is_moved_is_an_attempt_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let (store, switches) = faulty(dir.path(), &clock).await;
    let mut urgent = message(2, "another lane");
    urgent.meta.priority = 5;
    let items = vec![item(message(1, "moved")), item(urgent), item_in(1, message(3, "another partition"))];
    store.append(batch(items)).await.unwrap();
    let moves = async { store.seek(TOPIC, GROUP, SeekTo::Offset(0, Offset::new(0, 0))).await.unwrap() };
    leased_while_synced((&store, &switches), moves, 3).await;
    drop(store);
    let mut again: Vec<(String, u32)> = lease(&open(dir.path(), &clock), 3)
        .await
        .iter()
        .map(|lease| (String::from_utf8_lossy(&lease.message.payload).into_owned(), lease.attempt))
        .collect();
    again.sort();
    let expected = [("another lane", 2), ("another partition", 2), ("moved", 1)];
    assert_eq!(again, expected.map(|(payload, attempt)| (payload.to_owned(), attempt)));
}

#[tokio::test]
async fn consumers_that_only_lease_are_bounded_while_nothing_can_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    drop(furnished(dir.path(), &clock).await);
    let switches = Arc::new(Switches::default());
    let mut options = EmbeddedOptions::new(dir.path(), clock.clone());
    options.limits.notes_max = 3;
    let store = EmbeddedStore::open_on(options, Arc::new(Faulty(Arc::clone(&switches)))).unwrap();
    publish(&store, 0..10).await;
    switches.writes.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(lease(&store, 1).await.len(), 1);
    }
    let refused = store.lease(request(1)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    switches.writes.store(false, Ordering::SeqCst);
    store.tick().await.unwrap();
    assert_eq!(lease(&store, 1).await.len(), 1);
}

#[tokio::test]
async fn after_a_failed_sync_the_outcome_is_unknown_and_the_frame_void() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let (store, switches) = faulty(dir.path(), &clock).await;
    publish(&store, 0..1).await;
    let leases = lease(&store, 1).await;
    switches.syncs.store(true, Ordering::SeqCst);
    let unknown = store.append(batch(vec![keyed("k", message(1, "void"))])).await;
    assert!(matches!(unknown, Err(StoreError::OutcomeUnknown(_))), "{unknown:?}");
    let refused = store.append(batch(vec![item(message(2, "no file to go to"))])).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    switches.syncs.store(false, Ordering::SeqCst);
    let outcomes = store.append(batch(vec![keyed("k", message(3, "stored"))])).await.unwrap();
    assert!(matches!(outcomes[..], [AppendOutcome::Stored(_)]), "{outcomes:?}");
    ack(&store, &leases).await;
    drop(store);
    let store = open(dir.path(), &clock);
    assert_eq!(read_all(&store, TOPIC).await, ["payload 0", "stored"]);
    let again = store.append(batch(vec![keyed("k", message(4, "again"))])).await.unwrap();
    assert!(matches!(again[..], [AppendOutcome::Duplicate(_)]), "{again:?}");
}

#[tokio::test]
async fn an_at_most_once_grant_that_is_not_durable_is_not_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let (store, switches) = faulty(dir.path(), &clock).await;
    publish(&store, 0..1).await;
    let once = LeaseRequest { mode: Mode::AtMostOnce, ..request(1) };
    switches.writes.store(true, Ordering::SeqCst);
    assert!(store.lease(once.clone()).await.is_err());
    switches.writes.store(false, Ordering::SeqCst);
    let leases = store.lease(once).await.unwrap().leases;
    assert_eq!((leases.len(), leases[0].attempt), (1, 1));
}

#[tokio::test]
async fn an_idle_store_finds_out_that_the_disk_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let (store, switches) = faulty(dir.path(), &clock).await;
    switches.writes.store(true, Ordering::SeqCst);
    assert!(store.append(batch(vec![item(message(1, "refused"))])).await.is_err());
    assert!(store.health().is_err());
    switches.writes.store(false, Ordering::SeqCst);
    // The writer's own thread looks once a second of real time, so this test cannot move a clock instead.
    for _ in 0..100 {
        if store.health().is_ok() {
            return;
        }
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(100))).await.unwrap();
    }
    panic!("still unhealthy: {:?}", store.health());
}
