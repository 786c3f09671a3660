//! The clients of a soak. Invariant: an answer that is neither the wanted one nor a word of a broker that is full ends the
//! run; everybody goes on at once after an answer, but for who was told to come later. Never looks at the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use sluice_tests::{Answer, Broker, Client, wait};
use tokio::task::JoinSet;

use super::passing_topic;

/// Name and type of the topics.
pub(super) const TOPICS: [(&str, &str); 2] = [("soak.events", "PubSub"), ("soak.jobs", "Queue")];
pub(super) const GROUP: &str = "workers";
/// What [`Load::counts`] answers.
pub(super) const HEADINGS: &str = "published  turned away  acked  nacked  forgotten  posted  passing topics";

const EVENTS: &str = TOPICS[0].0;
const JOBS: &str = TOPICS[1].0;
const BATCH: usize = 50;
const PAYLOAD_BYTES: usize = 200;
/// As soon as the broker may have room again; its `Retry-After` is in whole seconds.
const WHEN_FULL: Duration = Duration::from_millis(50);
/// Short, so that leases of those who forget end within a run.
const LEASE_SECONDS: u32 = 2;

#[derive(Debug, Default)]
struct Counts {
    published: AtomicUsize,
    turned_away: AtomicUsize,
    acked: AtomicUsize,
    nacked: AtomicUsize,
    forgotten: AtomicUsize,
    posted: AtomicUsize,
    passing: AtomicUsize,
}

pub(super) struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

struct Shared {
    client: Client,
    stop: AtomicBool,
    counts: Counts,
}

fn add(count: &AtomicUsize, more: usize) {
    count.fetch_add(more, Ordering::Relaxed);
}

impl Load {
    pub(super) fn start(broker: &Broker) -> Load {
        let (client, stop) = (broker.admin(), AtomicBool::new(false));
        let shared = Arc::new(Shared { client, stop, counts: Counts::default() });
        let mut clients = JoinSet::new();
        for client in 0..2 {
            clients.spawn(Arc::clone(&shared).publish_events(client));
            clients.spawn(Arc::clone(&shared).consume_events());
        }
        clients.spawn(Arc::clone(&shared).publish_batches());
        clients.spawn(Arc::clone(&shared).publish_jobs());
        clients.spawn(Arc::clone(&shared).consume_jobs());
        clients.spawn(Arc::clone(&shared).create_and_delete());
        Load { shared, clients }
    }

    /// Ends the run if one of the clients has.
    pub(super) fn check(&mut self) {
        if let Some(ended) = self.clients.try_join_next() {
            ended.expect("a client goes on until it is told to stop");
        }
    }

    pub(super) fn posted(&self, count: usize) {
        add(&self.shared.counts.posted, count);
    }

    pub(super) fn counts(&self) -> String {
        let counts = &self.shared.counts;
        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let (published, turned_away, acked) = (of(&counts.published), of(&counts.turned_away), of(&counts.acked));
        let (nacked, forgotten, posted) = (of(&counts.nacked), of(&counts.forgotten), of(&counts.posted));
        let passing = of(&counts.passing);
        format!(
            "{published:>9}  {turned_away:>11}  {acked:>5}  {nacked:>6}  {forgotten:>9}  {posted:>6}  {passing:>14}"
        )
    }

    pub(super) async fn stop(mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client does not panic");
        }
    }
}

impl Shared {
    fn running(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    /// Whether it was taken; a topic that is full is waited for.
    async fn taken(&self, answer: &Answer) -> bool {
        if answer.status == 429 {
            add(&self.counts.turned_away, 1);
            wait::pause(WHEN_FULL).await;
            return false;
        }
        assert!(matches!(answer.status, 200 | 202), "{answer}");
        true
    }

    /// One by one, with keys, priorities and idempotency keys; the stage drops every eighth.
    async fn publish_events(self: Arc<Self>, client: usize) {
        for number in 0_usize.. {
            if !self.running() {
                return;
            }
            let keep = if number % 8 == 0 { "no" } else { "yes" };
            let publish = self.client.publish(EVENTS, payload(number)).header("keep", keep);
            let publish = publish.key(&format!("key-{}", number % 100)).priority((number % 2) as u8);
            let key = format!("{client}-{number}");
            let publish = if number % 3 == 0 { publish.idempotency_key(&key) } else { publish };
            let answer = publish.answer().await;
            if self.taken(&answer).await {
                add(&self.counts.published, 1);
            }
        }
    }

    async fn publish_batches(self: Arc<Self>) {
        for batch in 0_usize.. {
            if !self.running() {
                return;
            }
            let message = |number: usize| {
                let publish = self.client.publish(EVENTS, payload(number)).header("keep", "yes");
                publish.key(&format!("key-{}", number % 100)).into_body()
            };
            let messages: Vec<Value> = (batch * BATCH..(batch + 1) * BATCH).map(message).collect();
            let body = json!({ "messages": messages }).to_string();
            let headers = [("content-type", "application/json")];
            let answer = self.client.send(Method::POST, "/messages/publish/batch", &headers, body).await;
            if !self.taken(&answer).await {
                continue;
            }
            let answer = answer.json();
            for result in answer["results"].as_array().expect("a result a message") {
                let full = result["error"]["status"] == 429;
                assert!(full || result["messageId"].is_string(), "{result}");
                add(if full { &self.counts.turned_away } else { &self.counts.published }, 1);
            }
            // Batches alone would leave no room for anybody else.
            wait::pause(WHEN_FULL).await;
        }
    }

    /// Every other one is due in a second or two.
    async fn publish_jobs(self: Arc<Self>) {
        for number in 0_usize.. {
            if !self.running() {
                return;
            }
            let publish = self.client.publish(JOBS, payload(number)).priority((number % 2) as u8);
            let publish =
                if number % 2 == 0 { publish.field("delay", format!("PT{}S", 1 + number % 4 / 2)) } else { publish };
            let answer = publish.answer().await;
            if self.taken(&answer).await {
                add(&self.counts.published, 1);
            }
        }
    }

    /// Acks most, nacks some, forgets a few.
    async fn consume_events(self: Arc<Self>) {
        let consume = self.client.consume(EVENTS, GROUP).limit(200).wait(1).ack_timeout(LEASE_SECONDS);
        while self.running() {
            let (mut acks, mut nacks) = (Vec::new(), Vec::new());
            for (number, delivery) in consume.clone().await.into_iter().enumerate() {
                let receipt = json!({"receipt": delivery.receipt()});
                match number % 50 {
                    0 => add(&self.counts.forgotten, 1),
                    1 | 2 => nacks.push(receipt),
                    _ => acks.push(receipt),
                }
            }
            self.settle(acks, nacks).await;
        }
    }

    /// Takes its time, so that some grow too old first.
    async fn consume_jobs(self: Arc<Self>) {
        let consume = self.client.consume(JOBS, GROUP).limit(100).wait(1).ack_timeout(LEASE_SECONDS);
        while self.running() {
            let deliveries = consume.clone().await;
            self.settle(deliveries.iter().map(|delivery| json!({"receipt": delivery.receipt()})).collect(), Vec::new())
                .await;
            wait::pause(WHEN_FULL).await;
        }
    }

    /// A lease may have ended meanwhile, by its deadline or by retention.
    async fn settle(&self, acks: Vec<Value>, nacks: Vec<Value>) {
        if acks.is_empty() && nacks.is_empty() {
            return;
        }
        let answer = self.client.post("/messages/ack/batch", &json!({"acks": acks, "nacks": nacks})).await.expect(200);
        for result in answer["results"].as_array().expect("a result a lease") {
            match result["status"].as_str() {
                Some("Acked") => add(&self.counts.acked, 1),
                Some("Retrying" | "DeadLettered") => add(&self.counts.nacked, 1),
                _ => assert_eq!(result["error"]["status"], 410, "{result}"),
            }
        }
    }

    async fn create_and_delete(self: Arc<Self>) {
        for number in 0_usize.. {
            if !self.running() {
                return;
            }
            let name = format!("soak.passing-{number}");
            self.client.post("/topics", &passing_topic(&name)).await.expect(201);
            self.client.subscribe(&name, GROUP).await;
            for message in 0..20 {
                self.client.publish(&name, payload(message)).await;
            }
            self.client.consume(&name, GROUP).limit(10).await;
            self.client.delete(&format!("/topics/{name}?force=true")).await.expect(204);
            add(&self.counts.passing, 1);
            wait::pause(WHEN_FULL).await;
        }
    }
}

fn payload(number: usize) -> Value {
    json!({"number": number, "text": "x".repeat(PAYLOAD_BYTES)})
}
