//! What arrives and is kept, over real files. Invariant: time moves when a test moves it; what is read is what was sent. Never publishes.

use super::*;
use crate::catalog::model::CaptureInput;
use crate::pipeline::tests::draft;
use crate::publish::tests::topic;

const HOUR: Duration = Duration::from_secs(3600);

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

    fn open(&self) -> Capture {
        let wanted = [Arc::new(self.topic.clone())];
        Capture::open(&self.dir.path().join("captured"), &wanted, &self.clock, &Registry::new()).unwrap()
    }

    fn arrived(&self, number: u64, payload: &str) -> Draft {
        let at = self.clock.now();
        Draft { id: MessageId::new(at, self.topic.id, 0, number), published_at: at, ..draft(payload, &[("a", "b")]) }
    }

    async fn kept(&self, capture: &Capture) -> Vec<Draft> {
        let how = self.topic.settings.capture_input.unwrap();
        let reader = capture.read(self.topic.id, how, Timestamp(0)).await.unwrap();
        reader.map(Result::unwrap).collect()
    }

    fn bytes(&self) -> u64 {
        let dir = self.dir.path().join("captured").join(self.topic.id.0.to_string());
        std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
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
    capture.stop();
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
    assert_eq!(world.kept(&capture).await, sent);
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
    let other = Topic { id: TopicId(99), ..world.topic.clone() };
    capture.take(&other, || std::iter::once(world.arrived(3, "3")));
    assert_eq!(world.kept(&capture).await.len(), 0);
    assert_eq!(world.bytes(), 0);
}

#[tokio::test]
async fn what_is_erased_or_forgotten_is_in_no_file() {
    let world = World::new(CaptureInput { ttl: HOUR, bytes_max: 1 << 20 });
    let capture = world.open();
    let sent = [world.arrived(1, "secret-1"), world.arrived(2, "secret-2"), world.arrived(3, "secret-3")];
    capture.take(&world.topic, || sent.iter().cloned());
    capture.erase(world.topic.id, sent[1].id.in_partition(3)).await.unwrap();
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
    capture.stop();
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
    capture.erase(world.topic.id, secret.id).await.unwrap();
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
