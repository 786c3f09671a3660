//! What 999 healthy endpoints feel of a dead one: the time from when a message was due to be published until its webhook
//! has come in, with and without an endpoint that gets a tenth of all messages and hangs, or refuses every connection.
//! Invariant: the two are measured in turn, pair by pair, on one broker, under the same load; sends are due by the clock.
//! Never asserts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::post;
use futures_util::StreamExt as _;
use futures_util::stream;
use parking_lot::Mutex;
use serde_json::json;
use sluice_tests::raw_receiver::{Conduct, Identity};
use sluice_tests::{Broker, Client, RawReceiver, wait};
use tokio::net::TcpListener;

use super::load::median;
use super::report::{Budget, Report, Row};

const ENDPOINTS: usize = 1000;
/// The one that dies now and then.
const MORTAL: usize = 0;
/// One in so many messages is for it.
const SHARE_OF_MORTAL: usize = 10;
const PER_SECOND: f64 = 500.0;
const CONNECTIONS: usize = 16;
/// More than elsewhere: one moment in which the disk is busy is a p99 of its own.
const PAIRS: usize = 15;
const ROUND: Duration = Duration::from_secs(5);
/// How many are made at once.
const MAKERS: usize = 16;

/// A row for each way to be dead.
pub async fn rows(report: &mut Report) {
    let broker = &Broker::start().await;
    let receiver = Receiver::start().await;
    let mortal = set_up(broker, &receiver).await;
    let hangs = RawReceiver::start(Identity::Plain, Conduct::Says(String::new())).await;
    // Bound and not listened on: whoever connects is refused.
    let refuses = tokio::net::TcpSocket::new_v4().expect("a socket");
    refuses.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
    let refuses_at = refuses.local_addr().expect("a bound socket has an address");
    for (how, dead) in [("hangs", hangs.url()), ("refuses connections", format!("http://{refuses_at}/hook"))] {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            point(broker, &mortal, &receiver.url(MORTAL)).await;
            without.push(p99_ms(broker, &receiver).await);
            point(broker, &mortal, &dead).await;
            with.push(p99_ms(broker, &receiver).await);
        }
        report.add(Row {
            work: format!(
                "p99 from publish to webhook at {} healthy endpoints beside one that {how}, {PER_SECOND} msg/s",
                ENDPOINTS - 1
            ),
            ours: format!("{:.2} ms", median(with.clone())),
            baseline: format!("without it: {:.2} ms", median(without.clone())),
            figures: with.iter().zip(&without).map(|(with, without)| with / without).collect(),
            unit: "×",
            budget: Budget::AtMost(1.2),
        });
    }
}

fn topic(number: usize) -> String {
    format!("endpoint-{number}")
}

/// A topic with a webhook for each endpoint; answers the path of the mortal one's subscription.
async fn set_up(broker: &Broker, receiver: &Receiver) -> String {
    let make = |number: usize| async move {
        broker.create_topic(&topic(number), "PubSub").await;
        let settings = json!({"format": "raw", "ackTimeout": "PT2S"});
        let made = broker.subscribe_push(&topic(number), "g", &receiver.url(number), settings).await;
        (number, format!("/subscriptions/{}", made["subscriptionId"].as_str().expect("an id")))
    };
    let made: Vec<(usize, String)> = stream::iter(0..ENDPOINTS).map(make).buffer_unordered(MAKERS).collect().await;
    made.into_iter().find(|(number, _)| *number == MORTAL).expect("all were made").1
}

/// Sends the mortal one's messages there from now on, and forgets those that wait.
async fn point(broker: &Broker, subscription: &str, url: &str) {
    broker.post(&format!("/topics/{}/purge", topic(MORTAL)), &json!({})).await.expect(200);
    broker.put(subscription, &json!({"consumerEndpoint": url})).await.expect(200);
}

/// Milliseconds from when a publish was due until its webhook has come in, for all but one in a hundred of the healthy.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn p99_ms(broker: &Broker, receiver: &Receiver) -> f64 {
    receiver.came.lock().clear();
    let between = Duration::from_secs_f64(CONNECTIONS as f64 / PER_SECOND);
    let (epoch, begun) = (receiver.epoch, Instant::now());
    let publisher = |client: Client, number: usize| async move {
        let mut healthy = 0;
        let mut due = begun + between.mul_f64(number as f64 / CONNECTIONS as f64);
        for round in 0.. {
            if due >= begun + ROUND {
                break;
            }
            tokio::time::sleep_until(due.into()).await;
            let message = round * CONNECTIONS + number;
            let to = if message.is_multiple_of(SHARE_OF_MORTAL) { MORTAL } else { 1 + message % (ENDPOINTS - 1) };
            client.publish(&topic(to), (due - epoch).as_micros().to_string()).await;
            healthy += usize::from(to != MORTAL);
            due += between;
        }
        healthy
    };
    let publishers: Vec<_> = (0..CONNECTIONS).map(|number| tokio::spawn(publisher(broker.admin(), number))).collect();
    let mut healthy = 0;
    for publisher in publishers {
        healthy += publisher.await.expect("a publisher does not panic");
    }
    let mut took = wait::within(super::PATIENCE, "all webhooks", async || {
        let came = receiver.came.lock();
        (came.len() >= healthy).then(|| came.clone())
    })
    .await;
    took.sort_by(f64::total_cmp);
    took[took.len() * 99 / 100]
}

/// Answers at once, and notes how long each message to a healthy endpoint took.
struct Receiver {
    address: SocketAddr,
    epoch: Instant,
    came: Arc<Mutex<Vec<f64>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[derive(Clone)]
struct Noting {
    epoch: Instant,
    came: Arc<Mutex<Vec<f64>>>,
}

impl Receiver {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
    async fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let noting = Noting { epoch: Instant::now(), came: Arc::default() };
        let app = Router::new().route("/hook/{number}", post(note)).with_state(noting.clone());
        let server = tokio::spawn(async move {
            axum::serve(listener, app).await.expect("a local server runs until it is aborted");
        });
        Receiver { address, epoch: noting.epoch, came: noting.came, server }
    }

    fn url(&self, number: usize) -> String {
        format!("http://{}/hook/{number}", self.address)
    }
}

async fn note(State(noting): State<Noting>, Path(number): Path<usize>, due: String) {
    if number != MORTAL {
        let due = Duration::from_micros(due.parse().expect("when it was due"));
        noting.came.lock().push((noting.epoch.elapsed().saturating_sub(due)).as_secs_f64() * 1000.0);
    }
}
