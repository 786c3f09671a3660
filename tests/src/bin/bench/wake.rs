//! How soon a consumer that waits has the message that is published. Invariant: the broker runs in this process, so that no
//! socket is measured; the baseline is a bare channel whose receiver waits for the same publish to return. Both begin with
//! the publish, wait in a task of their own, and take turns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice::broker::Broker;
use sluice::catalog::Actor;
use sluice::catalog::model::{DeadLetterPayload, Guarantee, Storage, Topic, TopicKind, TopicSettings};
use sluice::config::{Config, Flags, Profile};
use sluice::delivery::pull::ConsumeRequest;
use sluice::publish::PublishRequest;
use sluice_tests::warm;
use tokio::sync::watch;

use super::load::median;
use super::report::{Budget, Report, Row};
use super::{PAIRS, PAYLOAD_BYTES};

/// Of each side in a round.
const WAKES: usize = 200;
/// Until the one who waits does wait.
const SETTLE: Duration = Duration::from_millis(2);
const WAIT: Duration = Duration::from_secs(30);

/// The row.
pub async fn rows(report: &mut Report) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data_dir = folder.path().join("data");
    warm::seed(&data_dir);
    let flags = Flags { data_dir: Some(data_dir), profile: Some(Profile::Development), ..Flags::default() };
    let loaded = Config::load_from(&flags, &[], folder.path()).expect("the settings of a laptop");
    let broker = Broker::open(loaded.config).await.expect("an empty folder can be opened");
    let (waited, bare) = (topic(&broker, "waited-for").await, topic(&broker, "bare").await);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let (mut woken, mut channel) = (Vec::new(), Vec::new());
        for _ in 0..WAKES {
            woken.push(long_poll(&broker, &waited).await);
            channel.push(bare_channel(&broker, &bare).await);
        }
        ours.push(median(woken));
        theirs.push(median(channel));
    }
    report.add(Row {
        work: format!("from publish to the waking of a long poll in one process, {PAYLOAD_BYTES} B, durable, p50"),
        ours: format!("{:.0} µs", median(ours.clone()) * 1e6),
        baseline: format!("a bare channel told when the same publish returns: {:.0} µs", median(theirs.clone()) * 1e6),
        figures: ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect(),
        unit: "×",
        budget: Budget::AtMost(2.0),
    });
}

async fn topic(broker: &Broker, name: &str) -> Arc<Topic> {
    let settings = TopicSettings {
        description: String::new(),
        kind: TopicKind::Queue,
        schema_id: None,
        guarantee: Guarantee::AtLeastOnce,
        retention: Duration::from_secs(86_400),
        retention_bytes: None,
        partition_count: 1,
        max_message_size: 1 << 20,
        dedup_window: Duration::from_secs(600),
        dedup_keys_max: 1000,
        dead_letter_payload: DeadLetterPayload::Original,
        dead_letter_expired: false,
        dead_letter_threshold: None,
        capture_input: None,
        storage: Storage::Default,
    };
    let name = name.parse().expect("a topic's name");
    broker.directory.create_topic(name, settings, &Actor::system()).await.expect("there is room for a topic")
}

/// Seconds from the publish until the consumer has it.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn long_poll(broker: &Arc<Broker>, topic: &Arc<Topic>) -> f64 {
    let request = ConsumeRequest {
        topic: Arc::clone(topic),
        group: String::new(),
        limit: 10,
        ack_timeout: None,
        wait: WAIT,
        holder: "bench".into(),
    };
    let consumer = Arc::clone(broker);
    let woken = tokio::spawn(async move {
        let prepared = consumer.consumers.consume(&request).await.expect("a queue can be consumed from");
        assert_eq!(prepared.leases.len(), 1, "one was published");
        Instant::now()
    });
    tokio::time::sleep(SETTLE).await;
    let begun = Instant::now();
    publish(broker, topic).await;
    woken.await.expect("a consumer does not panic").duration_since(begun).as_secs_f64()
}

/// The same with a channel.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn bare_channel(broker: &Arc<Broker>, topic: &Arc<Topic>) -> f64 {
    let (tell, mut told) = watch::channel(());
    let woken = tokio::spawn(async move {
        told.changed().await.expect("it is told before it is dropped");
        Instant::now()
    });
    tokio::time::sleep(SETTLE).await;
    let begun = Instant::now();
    publish(broker, topic).await;
    tell.send_replace(());
    woken.await.expect("a receiver does not panic").duration_since(begun).as_secs_f64()
}

async fn publish(broker: &Broker, topic: &Arc<Topic>) {
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let request = PublishRequest::new(Arc::clone(topic), payload, "text/plain".into());
    broker.publisher.publish(request).await.expect("there is room for a message");
}
