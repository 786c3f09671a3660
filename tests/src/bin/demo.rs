//! `make demo`: a broker, real calls over HTTP, a plugin swapped under load, and the sums; `make fleet`: the same through a proxy
//! before three brokers on PostgreSQL and Redis, one of which is stopped on the way. Invariant: every figure shown is counted here, at the
//! clients, or read from the broker's API; nothing is staged. `DEMO_ONCE=1` ends it, with 0 only if the sums agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::IsTerminal as _;
use std::ops::Deref;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use sluice_tests::round_robin::RoundRobin;
use sluice_tests::servers::{Options, Postgres, Redis};
use sluice_tests::token::Claims;
use sluice_tests::{Broker, Client, Receiver, Settings, guest, wait};

const TOPIC: &str = "deployment.events";
/// Published under each version of the plugin before the next step: enough that swaps fall between messages under way.
const UNDER_EACH_VERSION: usize = 400;
const PUBLISHERS: usize = 4;

/// The brokers of a fleet.
const NODES: [&str; 3] = ["a", "b", "c"];

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const CYAN: &str = "36";

/// In colour where somebody looks at it.
fn paint(code: &str, text: impl Display) -> String {
    static COLOUR: LazyLock<bool> =
        LazyLock::new(|| std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    if *COLOUR { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
}

/// What the publishers were told, by tag.
type Told = Arc<Mutex<BTreeMap<String, String>>>;

/// What is shown: a client of it, and what it is made of.
struct Shown {
    client: Client,
    secret: Vec<u8>,
    brokers: Vec<Broker>,
    _fleet: Option<(Postgres, Redis, RoundRobin)>,
}

impl Deref for Shown {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Shown {
    async fn broker() -> Shown {
        let broker = Broker::with(Settings::new().own_secret()).await;
        step("A broker on the embedded store, alone on this machine");
        println!("  {}  data in {}", broker.url(), broker.data_dir().display());
        Shown { client: broker.admin(), secret: broker.secret(), brokers: vec![broker], _fleet: None }
    }

    async fn fleet() -> Shown {
        step("Three brokers on one PostgreSQL and Redis, behind a proxy that takes them in turn");
        let (postgres, redis) = (Postgres::start(Options::new()).await, Redis::start(Options::new()).await);
        let database = postgres.url();
        postgres.make_tables(&database);
        let mut brokers = Vec::new();
        for node in NODES {
            let broker =
                Broker::with(Settings::new().on(&database, node).env("SLUICE__REDIS__URL", &redis.url())).await;
            println!("  {node}  {}", broker.url());
            brokers.push(broker);
        }
        let servers = brokers.iter().map(|broker| broker.url().trim_start_matches("http://").parse());
        let servers = servers.collect::<Result<Vec<_>, _>>().expect("brokers listen at addresses");
        let proxy = RoundRobin::before(servers, "127.0.0.1:0").await;
        println!("  {}  PostgreSQL at port {}, Redis at {}", proxy.url(), postgres.port(), redis.port());
        let secret = brokers[0].secret();
        let client = Client::new(&proxy.url(), &Claims::new("demo", &["Admin"]).sign(&secret));
        Shown { client, secret, brokers, _fleet: Some((postgres, redis, proxy)) }
    }

    fn admin(&self) -> Client {
        self.client.clone()
    }

    /// Into the folder of one of them, from which all have it.
    fn place_plugin(&self, file_name: &str, bytes: &[u8]) {
        self.brokers[0].place_plugin(file_name, bytes);
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let is_fleet = std::env::args().nth(1).as_deref() == Some("--fleet");
    let mut broker = if is_fleet { Shown::fleet().await } else { Shown::broker().await };
    let receiver = Receiver::start().await;

    let (told, pulled) = (Told::default(), Arc::new(Mutex::new(Vec::new())));
    let secret = set_up(&broker, &receiver).await;
    first_messages(&broker, &receiver, &secret, &told, &pulled).await;
    swap_under_load(&mut broker, &told, &pulled).await;
    let agree = sums(&broker, &receiver, &told, &pulled).await;

    if std::env::var_os("DEMO_ONCE").is_none() {
        stay(&broker).await;
    }
    if agree { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn step(title: &str) {
    println!("\n{}", paint(BOLD, title));
}

/// A topic with a stage, one group that pulls and one that is called.
async fn set_up(broker: &Shown, receiver: &Receiver) -> String {
    step("A topic with a plugin on it, one subscription that pulls and one webhook");
    broker.post("/topics", &json!({"name": TOPIC, "type": "PubSub", "partitionCount": 4})).await.expect(201);
    let stages = json!([{
        "name": "production-only", "plugin": "filter", "version": "latest",
        "config": {"headerMatches": {"environment": "production"}}
    }]);
    broker.put_pipeline(TOPIC, stages).await;
    broker.subscribe(TOPIC, "dashboard").await;
    let subscription = broker.subscribe_push(TOPIC, "notifications", &receiver.url(), json!({})).await;
    println!("  {TOPIC}: stage {} (plugin filter: environment = production)", paint(CYAN, "production-only"));
    println!("  dashboard pulls, notifications is called at {}", receiver.url());
    subscription["secret"].as_str().unwrap_or_default().to_owned()
}

/// A handful of messages, one line each for what happened to them.
async fn first_messages(
    broker: &Shown,
    receiver: &Receiver,
    secret: &str,
    told: &Told,
    pulled: &Arc<Mutex<Vec<String>>>,
) {
    step("Publish: the plugin's word is part of the answer");
    for (number, environment) in ["production", "staging", "production", "test", "production"].iter().enumerate() {
        let tag = format!("first-{number}");
        let status = publish(broker, &tag, environment, "low").await;
        let colour = if status == "Pending" { GREEN } else { YELLOW };
        println!("  deployment.completed  {environment:<11} → {}", paint(colour, &status));
        told.lock().insert(tag, status);
    }
    step("Deliver: the same messages by pull and by webhook");
    for delivery in broker.consume(TOPIC, "dashboard").collect(3).await {
        delivery.ack().await;
        println!("  {}     {}  {}  acked", paint(CYAN, "pull"), delivery.payload(), paint(DIM, delivery.id()));
        pulled.lock().push(tag_of(delivery.payload()));
    }
    for request in receiver.received(3).await {
        let signed = sluice_tests::signature::verify(secret, &request.headers, &request.body).is_ok();
        let mark = if signed { paint(GREEN, "signature ✓") } else { paint(RED, "signature ✗") };
        println!("  {}  {}  {mark}", paint(CYAN, "webhook"), request.message().payload.unwrap_or_default());
    }
}

async fn publish(client: &Client, tag: &str, environment: &str, severity: &str) -> String {
    let payload = json!({"event": "deployment.completed", "tag": tag});
    let publish = client.publish(TOPIC, payload).key(environment);
    publish.header("environment", environment).header("severity", severity).await.status
}

fn tag_of(payload: &str) -> String {
    let payload: serde_json::Value = serde_json::from_str(payload).unwrap_or_default();
    payload["tag"].as_str().unwrap_or_default().to_owned()
}

/// Load from all sides, while the plugin's file is replaced, broken, and put back.
async fn swap_under_load(broker: &mut Shown, told: &Told, pulled: &Arc<Mutex<Vec<String>>>) {
    step("Swap the plugin under load, by replacing filter.wasm in the plugins folder");
    let good = guest::first_party("filter");
    let stop = Arc::new(AtomicBool::new(false));
    let mut load: Vec<_> = (0..PUBLISHERS)
        .map(|publisher| tokio::spawn(publish_on(broker.admin(), publisher, told.clone(), stop.clone())))
        .collect();
    load.push(tokio::spawn(pull_on(broker.admin(), pulled.clone(), stop.clone())));

    under_load(told, "the first-party filter: production only").await;
    broker.place_plugin("filter.wasm", guest::filter_v2());
    until_critical_is(broker, "Pending", told).await;
    under_load(told, "another build: production, and whatever is critical").await;
    broker.place_plugin("filter.wasm", b"not a component");
    let error = wait::until("the broken file is reported", async || {
        let page = broker.get("/plugins/filter").await.expect(200);
        let error = &page["lastError"];
        error["message"].as_str().map(str::to_owned)
    })
    .await;
    println!("  {} changes nothing; GET /plugins/filter says: {}", paint(YELLOW, "a broken file"), paint(DIM, error));
    under_load(told, "still that build").await;
    broker.place_plugin("filter.wasm", &good);
    until_critical_is(broker, "Dropped", told).await;
    under_load(told, "the first-party filter again").await;
    if broker.brokers.len() > 1 {
        leave(broker).await;
        under_load(told, "with one broker less").await;
    }

    stop.store(true, Ordering::SeqCst);
    for task in load {
        task.await.expect("a client of the demo does not panic");
    }
}

/// Drains a broker and stops it, with the load going on.
async fn leave(broker: &mut Shown) {
    let mut last = broker.brokers.pop().expect("there are several");
    let node = NODES[broker.brokers.len()];
    let drained = broker.post(&format!("/brokers/{node}/drain?wait=PT10S"), &json!({})).await.expect(200);
    let stopped = last.stop().await.success();
    let left = broker.get("/brokers").await.expect(200);
    println!(
        "  {node} is drained ({}) and stopped ({}); GET /brokers lists {}",
        drained["status"].as_str().unwrap_or_default(),
        if stopped { "well" } else { "badly" },
        left["total"]
    );
}

/// Waits until so many more messages were published, and says how many passed.
async fn under_load(told: &Told, version: &str) {
    let before = counts(told);
    let enough = before.0 + before.1 + UNDER_EACH_VERSION;
    wait::while_it_grows("messages under load", enough, || told.lock().len()).await;
    let after = counts(told);
    let (passed, dropped) = (after.0 - before.0, after.1 - before.1);
    let all = passed + dropped;
    println!("  {all:>5} published under load: {passed:>4} passed, {dropped:>4} dropped  {}", paint(DIM, version));
}

/// (passed, dropped) so far.
fn counts(told: &Told) -> (usize, usize) {
    let told = told.lock();
    let passed = told.values().filter(|status| *status == "Pending").count();
    (passed, told.len() - passed)
}

/// Waits until a critical message outside production meets the version that treats it so.
async fn until_critical_is(broker: &Shown, status: &str, told: &Told) {
    let mut probe = 0;
    wait::within(Duration::from_secs(60), "the new version is in force", async || {
        let tag = format!("probe-{status}-{probe}");
        probe += 1;
        let word = publish(broker, &tag, "staging", "critical").await;
        let met = word == status;
        told.lock().insert(tag, word);
        met.then_some(())
    })
    .await;
}

async fn publish_on(client: Client, publisher: usize, told: Told, stop: Arc<AtomicBool>) {
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let tag = format!("{publisher}-{number}");
        let environment = ["production", "staging", "test"][number % 3];
        let severity = if number % 5 == 0 { "critical" } else { "low" };
        let status = publish(&client, &tag, environment, severity).await;
        told.lock().insert(tag, status);
    }
}

async fn pull_on(client: Client, pulled: Arc<Mutex<Vec<String>>>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::SeqCst) {
        for delivery in client.consume(TOPIC, "dashboard").limit(100).wait(1).await {
            delivery.ack().await;
            pulled.lock().push(tag_of(delivery.payload()));
        }
    }
}

/// published = dropped + delivered + waiting, for each subscription, by name and without repeats.
async fn sums(broker: &Shown, receiver: &Receiver, told: &Told, pulled: &Arc<Mutex<Vec<String>>>) -> bool {
    step("The sums: published = dropped + delivered + waiting");
    let told = told.lock().clone();
    let passed: BTreeSet<&String> =
        told.iter().filter(|(_, status)| *status == "Pending").map(|(tag, _)| tag).collect();
    // The webhook catches up with what the load left behind.
    wait::while_it_grows("messages at the webhook", passed.len(), || receiver.requests().len()).await;
    let pushed: Vec<String> =
        receiver.requests().iter().map(|request| tag_of(&request.message().payload.unwrap_or_default())).collect();
    let mut waiting = 0;
    loop {
        let held = broker.consume(TOPIC, "dashboard").limit(1000).ack_timeout(600).await;
        if held.is_empty() {
            break;
        }
        assert!(held.iter().all(|delivery| passed.contains(&tag_of(delivery.payload()))), "what waits was published");
        waiting += held.len();
    }
    let mut agree = true;
    for (name, delivered, waiting) in [("dashboard", pulled.lock().clone(), waiting), ("notifications", pushed, 0)] {
        let once: BTreeSet<&String> = delivered.iter().collect();
        let dropped = told.len() - passed.len();
        let right = once.len() == delivered.len()
            && once.is_subset(&passed)
            && told.len() == dropped + delivered.len() + waiting;
        let mark = if right { paint(GREEN, "✓") } else { paint(RED, "✗") };
        println!(
            "  {name:<14} {} = {dropped} dropped + {} delivered + {waiting} waiting  {mark}",
            told.len(),
            delivered.len()
        );
        agree &= right;
    }
    let verdict = if agree { paint(GREEN, "The sums agree.") } else { paint(RED, "The sums do not agree.") };
    println!("  {verdict}");
    agree
}

/// Stays up until Ctrl-C, with what is needed to look around.
async fn stay(broker: &Shown) {
    step("The broker stays up: look around, end it with Ctrl-C");
    let token = Claims::new("demo", &["Admin"]).sign(&broker.secret);
    println!("  Swagger   {}/swagger", broker.url());
    println!("  metrics   {}/metrics", broker.url());
    println!("  plugins   {}  (copy a .wasm into it)", broker.brokers[0].plugins_dir().display());
    println!("  token     {token}");
    if let Err(error) = tokio::signal::ctrl_c().await {
        eprintln!("cannot wait for Ctrl-C: {error}");
    }
}
