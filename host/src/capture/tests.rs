//! What arrives and is kept, over real files. Invariant: time moves when a test moves it; what is read is what was sent. Never publishes.

use super::*;
use crate::catalog::model::CaptureInput;
use crate::pipeline::tests::draft;
use crate::publish::tests::topic;

const HOUR: Duration = Duration::from_secs(3600);
/// Only that no test hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const ENOUGH: Room = Room { bytes_max: 1 << 40, free_bytes_min: 0 };

struct World {
    dir: tempfile::TempDir,
    clock: Clock,
    topic: Topic,
}

impl World {
    fn new(how: CaptureInput) -> World {
        let mut topic = topic("orders");
        topic.settings.capture_input = Some(how);
        World { dir: tempfile::tempdir().unwrap(), clock: Clock::fixed(Timestamp(1_000_000_000_000)), topic }
    }

    /// The topic as another one.
    fn another(&self, number: u32) -> Topic {
        Topic { id: TopicId(number), ..self.topic.clone() }
    }

    fn open(&self) -> Capture {
        self.open_with(ENOUGH, std::slice::from_ref(&self.topic))
    }

    fn open_with(&self, room: Room, topics: &[Topic]) -> Capture {
        let wanted: Vec<Arc<Topic>> = topics.iter().cloned().map(Arc::new).collect();
        let root = self.dir.path().join("captured");
        Capture::open((&root, room), &wanted, &self.clock, &Registry::new()).unwrap()
    }

    fn arrived(&self, number: u64, payload: &str) -> Draft {
        let at = self.clock.now();
        Draft { id: MessageId::new(at, self.topic.id, 0, number), published_at: at, ..draft(payload, &[("a", "b")]) }
    }

    async fn reader(&self, capture: &Capture, topic: TopicId) -> Reader {
        let how = self.topic.settings.capture_input.unwrap();
        capture.read(topic, how, Timestamp(0)).await.unwrap()
    }

    async fn kept(&self, capture: &Capture) -> Vec<Draft> {
        self.kept_of(capture, self.topic.id).await
    }

    async fn kept_of(&self, capture: &Capture, topic: TopicId) -> Vec<Draft> {
        self.reader(capture, topic).await.map(Result::unwrap).collect()
    }

    fn files(&self, topic: TopicId) -> Vec<PathBuf> {
        let dir = self.dir.path().join("captured").join(topic.0.to_string());
        std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }

    fn bytes(&self) -> u64 {
        self.bytes_of(self.topic.id)
    }

    fn bytes_of(&self, topic: TopicId) -> u64 {
        self.files(topic).iter().map(|file| file.metadata().unwrap().len()).sum()
    }
}

#[tokio::test]
async fn what_arrives_is_read_back_as_it_was_also_after_a_restart() {
    let world = World::new(CaptureInput { ttl: HOUR, bytes_max: 1 << 20 });
    let capture = world.open();
    let mut sent = vec![world.arrived(1, r#"{"a": "\u0000 \"ä\""}"#), world.arrived(2, "")];
    sent[1].payload = vec![0xff, 0, 10].into();
    sent[1].key = Some("k".into());
    sent[0].schema_version = Some("2".into());
    sent[0].correlation_id = Some("c".into());
    sent[0].priority = 9;
    capture.take(&world.topic, || sent.clone().into_iter());
    assert_eq!(world.kept(&capture).await, sent);
    capture.stop(PATIENCE).await;
    drop(capture);
    // A crash leaves half a line.
    let dir = world.dir.path().join("captured").join(world.topic.id.0.to_string());
    let file = std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    let mut text = std::fs::read(&file).unwrap();
    text.extend_from_slice(br#"{"messageId": "#);
    std::fs::write(&file, text).unwrap();
    let capture = world.open();
    sent.push(world.arrived(3, "3"));
    capture.take(&world.topic, || sent[2..].iter().cloned());
    let mut reader = world.reader(&capture, world.topic.id).await;
    assert_eq!(reader.by_ref().map(Result::unwrap).collect::<Vec<_>>(), sent);
    assert_eq!((reader.damaged().count, &*reader.damaged().first), (1, &[3][..]), "it is passed over, and counted");
}

#[tokio::test]
async fn the_oldest_goes_when_there_is_too_much() {
    let world = World::new(CaptureInput { ttl: HOUR, bytes_max: 64 * 1024 });
    let capture = world.open();
    for number in 0..1000 {
        capture.take(&world.topic, || std::iter::once(world.arrived(number, &"x".repeat(500))));
    }
    let kept = world.kept(&capture).await;
    assert!(world.bytes() <= 64 * 1024, "{}", world.bytes());
    assert!(kept.len() > 40 && kept.len() < 200, "{}", kept.len());
    let newest = world.arrived(999, "").id;
    assert_eq!(kept.last().unwrap().id, newest);
}

#[tokio::test]
async fn what_is_too_old_is_not_read_and_then_removed() {
    let world = World::new(CaptureInput { ttl: HOUR, bytes_max: 1 << 20 });
    let capture = world.open();
    capture.take(&world.topic, || std::iter::once(world.arrived(1, "1")));
    assert_eq!(world.kept(&capture).await.len(), 1);
    world.clock.advance(HOUR / 2);
    capture.take(&world.topic, || std::iter::once(world.arrived(2, "2")));
    assert_eq!(world.kept(&capture).await.len(), 2);
    world.clock.advance(HOUR / 2 + Duration::from_secs(1));
    assert_eq!(world.kept(&capture).await.len(), 1);
    world.clock.advance(HOUR);
    // Whatever it does next, it sweeps.
    capture.take(&world.another(99), || std::iter::once(world.arrived(3, "3")));
    assert_eq!(world.kept(&capture).await.len(), 0);
    assert_eq!(world.bytes(), 0);
}

#[tokio::test]
async fn what_is_erased_or_forgotten_is_in_no_file() {
    let world = World::new(CaptureInput { ttl: HOUR, bytes_max: 1 << 20 });
    let capture = world.open();
    let sent = [world.arrived(1, "secret-1"), world.arrived(2, "secret-2"), world.arrived(3, "secret-3")];
    capture.take(&world.topic, || sent.iter().cloned());
    capture.erase(world.topic.id, vec![sent[1].id.in_partition(3)]).await.unwrap();
    assert_eq!(world.kept(&capture).await, [sent[0].clone(), sent[2].clone()]);
    capture.take(&world.topic, || std::iter::once(world.arrived(4, "secret-4")));
    assert_eq!(world.kept(&capture).await.len(), 3);
    capture.forget(world.topic.id).await.unwrap();
    assert_eq!((world.kept(&capture).await.len(), world.bytes()), (0, 0));
    capture.take(&world.topic, || std::iter::once(world.arrived(5, "5")));
    assert_eq!(world.kept(&capture).await.len(), 1);
}

#[tokio::test]
async fn a_topic_that_is_gone_has_nothing_kept_and_one_that_wants_nothing_gets_nothing() {
    let mut world = World::new(CaptureInput { ttl: HOUR, bytes_max: 1 << 20 });
    let capture = world.open();
    capture.take(&world.topic, || std::iter::once(world.arrived(1, "1")));
    assert_eq!(world.kept(&capture).await.len(), 1);
    capture.stop(PATIENCE).await;
    world.topic.settings.capture_input = None;
    let capture = world.open();
    capture.take(&world.topic, || std::iter::once(world.arrived(2, "2")));
    world.topic.settings.capture_input = Some(CaptureInput { ttl: HOUR, bytes_max: 1 << 20 });
    assert_eq!((world.kept(&capture).await.len(), world.bytes()), (0, 0));
}

#[tokio::test]
async fn what_cannot_be_written_is_counted_and_nothing_waits_for_it() {
    let world = World::new(CaptureInput { ttl: HOUR, bytes_max: 1 << 20 });
    let root = world.dir.path().join("captured");
    std::fs::write(&root, "a file where a folder is to be").unwrap();
    let capture = world.open();
    capture.take(&world.topic, || std::iter::once(world.arrived(1, "1")));
    let large = "x".repeat(WAITING_BYTES_MAX);
    capture.take(&world.topic, || std::iter::once(world.arrived(2, &large)));
    assert_eq!(world.kept(&capture).await.len(), 0);
    assert_eq!((capture.0.kept.get(), capture.0.lost.get()), (0, 2));
}

#[tokio::test]
async fn what_is_under_way_to_a_topic_that_wants_it_no_more_is_not_kept() {
    let mut world = World::new(CaptureInput { ttl: HOUR, bytes_max: 1 << 20 });
    let capture = world.open();
    capture.take(&world.topic, || std::iter::once(world.arrived(1, "1")));
    capture.end(world.topic.id).await.unwrap();
    // It has looked at the topic before that.
    capture.take(&world.topic, || std::iter::once(world.arrived(2, "2")));
    assert!(world.kept(&capture).await.is_empty() && world.bytes() == 0);
    let how = CaptureInput { ttl: HOUR, bytes_max: 1 << 10 };
    world.topic.settings.capture_input = Some(how);
    capture.wanted(world.topic.id, how);
    capture.take(&world.topic, || std::iter::once(world.arrived(3, "3")));
    assert_eq!(world.kept(&capture).await, [world.arrived(3, "3")]);
    // As little as is wanted from now on, though nothing comes.
    capture.take(&world.topic, || (4..8).map(|number| world.arrived(number, &"x".repeat(200))));
    let before = world.kept(&capture).await.len();
    capture.wanted(world.topic.id, CaptureInput { ttl: HOUR, bytes_max: 600 });
    assert!(world.kept(&capture).await.len() < before);
}

#[tokio::test]
async fn a_message_is_erased_also_where_its_segment_cannot_be_written_anew() {
    let world = World::new(CaptureInput { ttl: HOUR, bytes_max: 1 << 20 });
    let capture = world.open();
    let secret = world.arrived(1, "secret");
    capture.take(&world.topic, || [secret.clone(), world.arrived(2, "2")].into_iter());
    assert_eq!(world.kept(&capture).await.len(), 2);
    let dir = world.dir.path().join("captured").join(world.topic.id.0.to_string());
    // In the place of the file that would be written: as a full disk, it refuses.
    std::fs::create_dir(dir.join(format!("{:020}.new", 0))).unwrap();
    capture.erase(world.topic.id, vec![secret.id]).await.unwrap();
    assert!(world.kept(&capture).await.is_empty(), "the whole segment goes");
    capture.take(&world.topic, || std::iter::once(world.arrived(3, "3")));
    assert_eq!(world.kept(&capture).await.len(), 1);
}

#[tokio::test]
async fn what_a_crash_leaves_of_an_erasure_goes_at_the_next_start() {
    let world = World::new(CaptureInput { ttl: HOUR, bytes_max: 1 << 20 });
    let dir = world.dir.path().join("captured").join(world.topic.id.0.to_string());
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("00000000000000000000.new"), "half of a secret").unwrap();
    let capture = world.open();
    assert!(world.kept(&capture).await.is_empty() && world.bytes() == 0);
}

#[tokio::test]
async fn more_than_may_wait_is_taken_when_nothing_does() {
    let world = World::new(CaptureInput { ttl: HOUR, bytes_max: 1 << 30 });
    let capture = world.open();
    let large = "x".repeat(WAITING_BYTES_MAX / 16);
    capture.take(&world.topic, || (0..20).map(|number| world.arrived(number, &large)));
    assert_eq!((world.kept(&capture).await.len(), capture.0.lost.get()), (20, 0));
}

#[tokio::test]
async fn all_topics_together_have_a_bound_and_a_busy_one_keeps_its_newest() {
    const BYTES_MAX: u64 = 128 * 1024;
    let world = World::new(CaptureInput { ttl: HOUR, bytes_max: 1 << 20 });
    let topics = [world.topic.clone(), world.another(2), world.another(3)];
    let bytes = || topics.iter().map(|topic| world.bytes_of(topic.id)).sum::<u64>();
    let capture = world.open_with(Room { bytes_max: BYTES_MAX, free_bytes_min: 0 }, &topics);
    let text = "x".repeat(500);
    for number in 0..1000 {
        capture.take(&topics[0], || std::iter::once(world.arrived(number, &text)));
    }
    let kept = world.kept(&capture).await;
    assert!((BYTES_MAX / 2..=BYTES_MAX).contains(&bytes()), "{}", bytes());
    assert_eq!(kept.last().unwrap().id, world.arrived(999, "").id);
    assert_eq!(capture.0.lost.get(), 0);

    // What the others leave is too little for this one.
    capture.take(&topics[1], || std::iter::once(world.arrived(1, &"x".repeat(100_000))));
    assert!(world.kept_of(&capture, topics[1].id).await.is_empty());
    assert_eq!(capture.0.lost.get(), 1);
    assert_eq!(world.kept(&capture).await, kept, "and takes nothing from them");

    // Who comes as often finds as much, in time.
    for number in 0..2000 {
        for topic in &topics {
            capture.take(topic, || std::iter::once(world.arrived(number, &text)));
        }
    }
    let newest = world.arrived(1999, "").id;
    for topic in &topics {
        let kept = world.kept_of(&capture, topic.id).await;
        assert!(kept.len() > 10 && kept.last().unwrap().id == newest, "{} of {:?}", kept.len(), topic.id);
    }
    assert!(bytes() <= BYTES_MAX, "{}", bytes());
    capture.stop(PATIENCE).await;

    // With less room than before the oldest goes at the start.
    let capture = world.open_with(Room { bytes_max: BYTES_MAX / 4, free_bytes_min: 0 }, &topics);
    assert!((1..=BYTES_MAX / 4).contains(&bytes()), "{}", bytes());
    capture.stop(PATIENCE).await;
}

#[tokio::test]
async fn nothing_is_kept_while_the_disk_has_little_room_which_is_counted_and_said_now_and_then() {
    let world = World::new(CaptureInput { ttl: HOUR, bytes_max: 1 << 20 });
    let topics = [world.topic.clone()];
    let full = Room { bytes_max: 1 << 40, free_bytes_min: u64::MAX };
    let capture = world.open_with(full, &topics);
    capture.take(&world.topic, || (0..3).map(|number| world.arrived(number, "x")));
    assert_eq!((world.kept(&capture).await.len(), world.bytes()), (0, 0));
    assert_eq!((capture.0.kept.get(), capture.0.lost.get()), (0, 3));

    let mut writer = Writer::new(&capture.0);
    let mut said = Vec::new();
    for number in 0..100 {
        writer.keep(world.topic.id, topics[0].settings.capture_input.unwrap(), &[world.arrived(number, "x")]);
        said.push(writer.said);
        world.clock.advance(SAID_EVERY / 40);
    }
    said.dedup();
    assert_eq!((said.len(), capture.0.lost.get()), (3, 103), "{said:?}");
    capture.stop(PATIENCE).await;

    let capture = world.open();
    capture.take(&world.topic, || std::iter::once(world.arrived(4, "x")));
    assert_eq!((world.kept(&capture).await.len(), capture.0.kept.get(), capture.0.lost.get()), (1, 1, 0));
}

#[tokio::test]
async fn one_topics_failing_files_are_no_other_topics_matter() {
    let world = World::new(CaptureInput { ttl: HOUR, bytes_max: 1 << 20 });
    let topics: Vec<Topic> = (1..=16).map(|number| world.another(number)).collect();
    let capture = world.open_with(ENOUGH, &topics);
    for topic in &topics {
        capture.take(topic, || std::iter::once(world.arrived(1, "1")));
        assert_eq!(world.kept_of(&capture, topic.id).await.len(), 1);
    }
    let (broken, whole) = topics.split_at(8);
    for topic in broken {
        // What can't be removed as a file.
        let file = world.files(topic.id).remove(0);
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
    }
    world.clock.advance(HOUR * 2);
    for _ in 0..2 {
        world.reader(&capture, whole[0].id).await;
    }
    for topic in whole {
        assert_eq!(world.files(topic.id), [] as [PathBuf; 0], "{:?}", topic.id);
    }
}

#[tokio::test]
async fn what_was_taken_is_in_the_files_once_it_has_stopped() {
    let world = World::new(CaptureInput { ttl: HOUR, bytes_max: 64 << 20 });
    let capture = world.open();
    let large = "x".repeat(10_000);
    capture.take(&world.topic, || (0..1000).map(|number| world.arrived(number, &large)));
    capture.stop(PATIENCE).await;
    let text: Vec<u8> = world.files(world.topic.id).iter().flat_map(|file| std::fs::read(file).unwrap()).collect();
    assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1000);
    assert_eq!((capture.0.kept.get(), capture.0.lost.get()), (1000, 0));
    capture.take(&world.topic, || std::iter::once(world.arrived(0, "late")));
    assert_eq!(capture.0.lost.get(), 1);
}
