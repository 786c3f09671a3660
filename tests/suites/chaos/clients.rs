//! Publishers and consumers, each asking another broker each time. Invariant: whatever they do is in the history before it is
//! sent, and its outcome after; a request without an answer has no outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use http::Method;
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::json;
use sluice_tests::client::Client;
use sluice_tests::history::{History, Promise, Times};
use sluice_tests::{Answer, Delivery, Published, Receiver, wait};

use super::{GROUP, Line, Shared};

/// Longer than an answer takes to come, and short enough that what nobody settles comes again in a run.
const LEASE_SECONDS: u32 = 10;
/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(5);
/// Between two pipelines.
const SWAP_EVERY: Duration = Duration::from_millis(700);
/// How long a client waits for an answer before it takes it for lost.
const ANSWER: Duration = Duration::from_secs(40);
/// Requests of the end that are under way at one time: half an hour's keys, one after the other, would take minutes.
const AT_ONCE: usize = 16;
pub(super) const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

pub(super) async fn publish(shared: &Shared, worker: usize, mut random: StdRng) {
    while shared.running() {
        let number = random.random_range(0..shared.lines.len());
        let (line, broker, tag) = (&shared.lines[number], shared.any(&mut random), shared.tag());
        let publish = broker.publish(line.topic, tag.as_str());
        let publish = match line.history.promise() {
            Promise::Ordered => {
                // A key has one publisher, which waits for each answer: only so is there an order to keep.
                let key = format!("{worker}-{}", random.random_range(0..30));
                line.history.publish_under_key_asked(&tag, &key);
                publish.key(&key)
            }
            Promise::ExactlyOnce => {
                line.history.publish_asked(&tag);
                shared.keyed.lock().push((number, tag.clone()));
                publish.idempotency_key(&tag)
            }
            _ => {
                line.history.publish_asked(&tag);
                // What the pipeline lets pass.
                publish.header("from", "chaos")
            }
        };
        if let Ok(Ok(answer)) = tokio::time::timeout(ANSWER, publish.try_answer()).await {
            note(shared, number, &tag, &answer);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Every publish under an idempotency key, once more, wherever it was sent before: what was stored answers as its duplicate.
pub(super) async fn repeat_keyed(shared: &Shared, random: &mut StdRng) {
    let keyed = std::mem::take(&mut *shared.keyed.lock());
    let asked = keyed.into_iter().map(|(number, tag)| (number, tag, shared.any(random)));
    stream::iter(asked)
        .for_each_concurrent(AT_ONCE, async |(number, tag, broker)| {
            let line = &shared.lines[number];
            line.history.publish_asked(&tag);
            let answer = broker.publish(line.topic, tag.as_str()).idempotency_key(&tag).answer().await;
            assert!([200, 202].contains(&answer.status), "{answer}");
            note(shared, number, &tag, &answer);
        })
        .await;
}

fn note(shared: &Shared, number: usize, tag: &str, answer: &Answer) {
    let history = &shared.lines[number].history;
    if [200, 202].contains(&answer.status) {
        let published: Published = answer.expect_as(answer.status);
        history.publish_accepted(tag, &published.message_id);
        if let (0, Some(partition), Some(offset), Some(revision)) =
            (number, published.partition, published.offset, published.pipeline_revision)
        {
            shared.revisions.lock().push((partition, offset, revision));
        }
    } else if !answer.text().contains("OUTCOME_UNKNOWN") {
        history.publish_refused(tag);
    }
}

pub(super) async fn consume(shared: &Shared, mut random: StdRng) {
    while shared.running() {
        let line = &shared.lines[random.random_range(0..shared.lines.len())];
        let limit = random.random_range(1..20);
        let deliveries = deliveries(&line.history, &shared.any(&mut random), (line.topic, limit)).await;
        for delivery in deliveries {
            match random.random_range(0..20) {
                // Left to its deadline.
                0 => {}
                1 => nack(&line.history, &delivery).await,
                _ => ack(&line.history, &shared.any(&mut random), &delivery).await,
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn deliveries(history: &History, broker: &Client, (topic, limit): (&str, usize)) -> Vec<Delivery> {
    let consume = broker.consume(topic, GROUP).limit(limit).wait(1).ack_timeout(LEASE_SECONDS);
    let began = history.consume_began();
    let Ok(Ok(answer)) = tokio::time::timeout(ANSWER, consume.try_answer()).await else {
        history.consume_lost(limit);
        return Vec::new();
    };
    if answer.status != 200 {
        // It may have granted what it could not hand out.
        history.consume_lost(limit);
        return Vec::new();
    }
    let deliveries = consume.deliveries(&answer);
    for delivery in &deliveries {
        let times = delivery.message.ack_deadline.is_some().then(|| delivery.deadline_ms()).map(|until| {
            let from = until - i64::from(LEASE_SECONDS) * 1000;
            Times { from_ms: from, to_ms: from, until_ms: Some(until) }
        });
        match times {
            Some(times) => history.delivered_at(delivery.payload(), delivery.id(), began, times),
            None => history.delivered(delivery.payload(), delivery.id(), began),
        }
    }
    deliveries
}

/// By any broker. At most once is settled when it is handed out.
async fn ack(history: &History, broker: &Client, delivery: &Delivery) {
    if history.promise() == Promise::AtMostOnce {
        return;
    }
    history.ack_asked(delivery.payload());
    let body = json!({"consumerGroup": GROUP, "receipt": delivery.receipt()}).to_string();
    let path = format!("/messages/{}/ack", delivery.id());
    let asked = broker.try_send(Method::POST, &path, &JSON, body);
    if matches!(tokio::time::timeout(ANSWER, asked).await, Ok(Ok(answer)) if answer.status == 200) {
        history.ack_confirmed(delivery.payload());
    }
}

async fn nack(history: &History, delivery: &Delivery) {
    if history.promise() == Promise::AtMostOnce {
        return;
    }
    history.nack_asked(delivery.payload());
    // Refused or unanswered: then the lease ends by itself.
    drop(tokio::time::timeout(ANSWER, delivery.try_settle("nack")).await);
}

/// Sets the first line's pipeline again and again, by any broker.
pub(super) async fn swap(shared: Arc<Shared>, mut random: StdRng) {
    for number in 0_u64.. {
        if !shared.running() {
            return;
        }
        let config = json!({"headerMatches": {"from": "chaos"}});
        let stage = json!({"name": "f", "plugin": "filter", "config": config, "timeoutMs": 1000 + number % 100});
        let stages = json!({"stages": [stage]});
        let path = format!("/topics/{}/pipeline", shared.lines[0].topic);
        let asked = shared.any(&mut random).try_send(Method::PUT, &path, &JSON, stages.to_string()).await;
        drop(asked);
        tokio::time::sleep(SWAP_EVERY).await;
    }
}

/// Acks all that is left, until nothing has come for longer than a lease lasts.
pub(super) async fn drain(shared: &Shared, line: &Line, mut random: StdRng) {
    let mut empty = 0;
    while empty < 2 * LEASE_SECONDS {
        let deliveries = deliveries(&line.history, &shared.any(&mut random), (line.topic, 1000)).await;
        empty = if deliveries.is_empty() { empty + 1 } else { 0 };
        let asked = deliveries.into_iter().map(|delivery| (delivery, shared.any(&mut random)));
        let ack = async |(delivery, broker)| ack(&line.history, &broker, &delivery).await;
        stream::iter(asked).for_each_concurrent(AT_ONCE, ack).await;
        if line.history.promise() == Promise::AtMostOnce && empty >= 3 {
            return;
        }
    }
}

/// What was accepted reaches the webhook, too.
pub(super) async fn not_posted(receiver: &Receiver, history: &History) -> Vec<String> {
    let accepted = history.accepted();
    wait::within(Duration::from_secs(60), "every accepted message is posted", async || {
        let posted: BTreeSet<String> =
            receiver.requests().iter().filter_map(|request| request.message().payload).collect();
        accepted.is_subset(&posted).then_some(Vec::new())
    })
    .await
}

/// A partition's revisions only rise.
pub(super) fn falling_revisions(shared: &Shared) -> Vec<String> {
    let mut seen: BTreeMap<(u32, u64), u64> = BTreeMap::new();
    seen.extend(shared.revisions.lock().iter().map(|(partition, offset, revision)| ((*partition, *offset), *revision)));
    let all: Vec<_> = seen.into_iter().collect();
    println!(
        "{} publishes, {} revisions",
        all.len(),
        all.iter().map(|(_, revision)| revision).collect::<BTreeSet<_>>().len()
    );
    let mut fell = Vec::new();
    for pair in all.windows(2) {
        let [((partition, offset), before), ((other, next), after)] = [pair[0], pair[1]];
        if partition == other && after < before {
            fell.push(format!("partition {partition}: revision {before} at {offset}, {after} at {next}"));
        }
    }
    fell
}
