//! Publishers and consumers at full load. Invariant: whatever they send is in the record before, and its outcome after; a
//! publisher sends the next request of its keys when it has the answer to the one before. Never judges.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use sluice_tests::consume::Received;
use sluice_tests::swap_record::{Asked, Delivered, Stored, SwapRecord};
use sluice_tests::{Broker, Client, Published, wait};
use tokio::task::JoinSet;

/// Messages of a publisher's batches, in turn: one that the workers take whole, one that they cut up.
const BATCH_MESSAGES: [usize; 2] = [10, 120];
const KEYS: usize = 3;
const CONSUMERS: usize = 2;
const CONSUMED_MAX: usize = 500;
/// Longer than any run: no lease ends by itself.
const LEASE_SECONDS: u32 = 3600;
/// Publishers let consumers catch up beyond this: a topic that is full turns publishes away, which is not what this is about.
const WAITING_MAX: usize = 4000;
const CATCH_UP: Duration = Duration::from_millis(5);
/// Empty answers, of a second's wait each, after which a consumer believes that what has not come is lost.
const EMPTY_MAX: usize = 5;

/// Of which topic, by whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) topic: &'static str,
    pub(crate) groups: &'static [&'static str],
    /// Publishers of one message a request, and of batches.
    pub(crate) singles: usize,
    pub(crate) batches: usize,
    /// What of a message that came to a group goes into the record.
    pub(crate) read: fn(&str, Received) -> Delivered,
}

pub(crate) struct Load {
    publishers: JoinSet<()>,
    consumers: JoinSet<()>,
    shared: Arc<Shared>,
}

struct Shared {
    shape: Shape,
    record: Arc<SwapRecord>,
    client: Client,
    /// Publishers are to end.
    stop: AtomicBool,
    /// They have.
    published: AtomicBool,
}

impl Load {
    pub(crate) fn start(broker: &Broker, record: &Arc<SwapRecord>, shape: Shape) -> Load {
        let (stop, published) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { shape, record: Arc::clone(record), client: broker.admin(), stop, published });
        let (mut publishers, mut consumers) = (JoinSet::new(), JoinSet::new());
        for publisher in 0..shape.singles + shape.batches {
            let shared = Arc::clone(&shared);
            publishers.spawn(async move { shared.publish(publisher).await });
        }
        for (group, consumer) in
            shape.groups.iter().flat_map(|group| (0..CONSUMERS).map(move |number| (*group, number)))
        {
            let shared = Arc::clone(&shared);
            consumers.spawn(async move { shared.consume(group, consumer).await });
        }
        Load { publishers, consumers, shared }
    }

    /// Ends the publishers, and the consumers once they have got everything.
    pub(crate) async fn stop(mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.publishers.join_next().await {
            ended.expect("a publisher does not panic");
        }
        self.shared.published.store(true, Ordering::SeqCst);
        while let Some(ended) = self.consumers.join_next().await {
            ended.expect("a consumer does not panic");
        }
        for group in self.shared.shape.groups {
            self.shared.client.consume(self.shared.shape.topic, group).expect_nothing().await;
        }
    }
}

impl Shared {
    async fn publish(&self, publisher: usize) {
        let mut number = 0;
        while !self.stop.load(Ordering::SeqCst) {
            if self.record.waiting() > WAITING_MAX {
                wait::pause(CATCH_UP).await;
                continue;
            }
            let count = if publisher < self.shape.singles { 1 } else { BATCH_MESSAGES[number % BATCH_MESSAGES.len()] };
            let messages: Vec<Asked> = (number..number + count).map(|number| asked(publisher, number)).collect();
            number += count;
            let request = self.record.asked(messages.clone());
            let sent = match publisher < self.shape.singles {
                true => self.send_one(&messages[0]).await,
                false => self.send_all(&messages).await,
            };
            match sent {
                Ok(stored) => self.record.stored(request, stored),
                Err(why) => self.record.refused(why),
            }
        }
    }

    async fn send_one(&self, message: &Asked) -> Result<Vec<Stored>, String> {
        let publish = self.client.publish(self.shape.topic, message.tag.as_str());
        let publish = message.key.iter().fold(publish, |publish, key| publish.key(key));
        let answer = publish.try_answer().await.map_err(|error| format!("{error:?}"))?;
        if answer.status != 202 {
            return Err(answer.to_string());
        }
        stored(answer.expect_as(202)).map(|stored| vec![stored])
    }

    async fn send_all(&self, messages: &[Asked]) -> Result<Vec<Stored>, String> {
        let body = |message: &Asked| {
            let publish = self.client.publish(self.shape.topic, message.tag.as_str());
            message.key.iter().fold(publish, |publish, key| publish.key(key)).into_body()
        };
        let body = json!({"messages": messages.iter().map(body).collect::<Vec<Value>>()}).to_string();
        let headers = [("content-type", "application/json")];
        let sent = self.client.try_send(Method::POST, "/messages/publish/batch", &headers, body).await;
        let answer = sent.map_err(|error| format!("{error:?}"))?;
        let all = answer.status == 200 && answer.json()["accepted"] == messages.len();
        if !all {
            return Err(answer.to_string());
        }
        let answered: BatchAnswer = answer.expect_as(200);
        answered.results.into_iter().map(stored).collect()
    }

    async fn consume(&self, group: &str, consumer: usize) {
        let consume =
            self.client.consume(self.shape.topic, group).limit(CONSUMED_MAX).wait(1).ack_timeout(LEASE_SECONDS);
        let mut empty = 0;
        while empty < EMPTY_MAX {
            let published = self.published.load(Ordering::SeqCst);
            if published && self.record.waiting() == 0 {
                return;
            }
            let answer = match consume.try_answer().await {
                Ok(answer) if answer.status == 200 => answer,
                Ok(answer) => return self.record.refused(answer.to_string()),
                Err(error) => return self.record.refused(format!("{error:?}")),
            };
            let messages: Vec<Received> = consume.deliveries(&answer).into_iter().map(|held| held.message).collect();
            empty = if messages.is_empty() && published { empty + 1 } else { 0 };
            if messages.is_empty() {
                continue;
            }
            let acks: Vec<Value> = messages.iter().map(|message| json!({"receipt": message.receipt})).collect();
            self.record.delivered(
                group,
                consumer,
                messages.into_iter().map(|message| (self.shape.read)(group, message)).collect(),
            );
            self.ack(acks).await;
        }
    }

    async fn ack(&self, acks: Vec<Value>) {
        let answer = self.client.post("/messages/ack/batch", &json!({ "acks": acks })).await;
        let settled = |result: &Value| result["status"] == "Acked";
        let all =
            answer.status == 200 && answer.json()["results"].as_array().is_some_and(|all| all.iter().all(settled));
        if !all {
            self.record.refused(answer.to_string());
        }
    }
}

#[derive(Deserialize)]
struct BatchAnswer {
    results: Vec<Published>,
}

/// Every fourth message has no key, and goes to all partitions in turn.
fn asked(publisher: usize, number: usize) -> Asked {
    let key = (number % (KEYS + 1) < KEYS).then(|| format!("{publisher}-{}", number % (KEYS + 1)));
    Asked { tag: format!("{publisher}-{number:07}"), key }
}

fn stored(published: Published) -> Result<Stored, String> {
    match (published.partition, published.offset, published.pipeline_revision) {
        (Some(partition), Some(offset), Some(revision)) if published.status == "Pending" => {
            Ok(Stored { id: published.message_id, partition, offset, revision })
        }
        _ => Err(format!("not stored: {published:?}")),
    }
}
