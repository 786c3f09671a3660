//! The examples in the help of every command, run by a bash against a running broker. Invariant: what runs is the text of
//! the help; an example that does not succeed fails the suite, and so does a command that has none. Nothing is skipped: an
//! example is prepared for by the words in it, and one whose words mean nothing here finds nothing to work on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use serde_json::{Value, json};
use sluice::clock::Clock;
use sluice::store::MessageStore as _;
use sluice::store::embedded::{EmbeddedOptions, EmbeddedStore};
use sluice_tests::servers::Postgres;
use sluice_tests::{Broker, Client, Receiver, binary, guest, wait, warm};
use tempfile::TempDir;

use super::cli::done;

/// Above what stands in the examples' section of a help.
const HEADINGS: [&str; 3] = ["Examples:", "Example:", "First steps:"];
/// Blanks between an example and what is said about it.
const ASIDE: &str = "    ";
/// What ends an example that goes on until it is interrupted: the broker is ready, a message is shown, a plugin runs.
const ENDLESS: [(&str, &str); 4] = [
    ("sluice serve", "listening on http://"),
    ("--follow", "\n"),
    ("sluice listen deployment", "\n"),
    ("sluice plugin dev orders-filter --topic", "is in force"),
];
/// Above what the slowest example takes: it compiles a new project with all that it stands on, while other suites run.
const COMPILED_WITHIN: Duration = Duration::from_secs(300);
/// Routes that no command is for: `consume --follow` polls, `broker metrics` tells the figures, browsers read the rest.
const WITHOUT_COMMAND: [&str; 7] = [
    "/api/v1/messages/stream/{topic}",
    "/health/live",
    "/metrics",
    "/openapi.json",
    "/swagger",
    "/swagger/",
    "/swagger/{*file}",
];
/// As `openssl genpkey -algorithm ed25519` makes one: the first test key of RFC 8032.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
const SCHEMA: &str = r#"{"type": "object", "properties": {"id": {"type": "integer"}}}"#;

/// A page of help.
struct Page {
    /// Its command, such as `sluice topic create`.
    command: String,
    /// Whether there are commands below it.
    is_group: bool,
    examples: Vec<String>,
}

/// The help of a command and of all below it.
fn pages(broker: &Broker, path: &[&str]) -> Vec<Page> {
    let help = done(broker, &[path, &["--help"]].concat());
    let below = help.split_once("\nCommands:\n").map_or("", |(_, rest)| rest.split("\n\n").next().unwrap_or_default());
    let names = below.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(' '));
    let names: Vec<&str> = names.map(|(name, _)| name).filter(|name| !matches!(*name, "" | "help")).collect();
    let command = [&["sluice"], path].concat().join(" ");
    let mut all = vec![Page { command, is_group: !names.is_empty(), examples: examples(&help) }];
    all.extend(names.into_iter().flat_map(|name| pages(broker, &[path, &[name]].concat())));
    all
}

/// Each begins on a line of its own; a line that is set in further, or follows a `\`, belongs to the one before.
fn examples(help: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let section = help.lines().skip_while(|line| !HEADINGS.contains(line)).skip(1);
    for line in section.take_while(|line| !line.is_empty()) {
        let text = line.trim_start();
        let text = text.split_once(ASIDE).map_or(text, |(example, _)| example.trim_end());
        match found.last_mut().filter(|before| line.starts_with("   ") || before.ends_with('\\')) {
            Some(before) => *before = format!("{before}\n{text}"),
            None => found.push(text.to_owned()),
        }
    }
    found
}

#[test]
fn examples_are_told_from_what_is_said_about_them() {
    let help = "Words\n\nExamples:\n  sluice a 'b  c'    what it does\n  A=1 \\\n  sluice b\n  echo '[1,\n     2]' | sluice c\n\nMore: x";
    assert_eq!(examples(help), ["sluice a 'b  c'", "A=1 \\\nsluice b", "echo '[1,\n2]' | sluice c"]);
}

/// A broker, and a folder in which somebody tries the examples.
struct World {
    broker: Broker,
    folder: TempDir,
    receiver: Receiver,
    node_id: String,
    database: String,
}

impl World {
    async fn new() -> World {
        let (broker, receiver) = (Broker::start().await, Receiver::start().await);
        let brokers = broker.get("/brokers").await.expect(200);
        let node_id = brokers["brokers"][0]["nodeId"].as_str().expect("a broker has a name").to_owned();
        let schema =
            json!({"schemaId": "orders.v1", "version": "1.0", "compatibility": "Backward", "schemaDefinition": SCHEMA});
        broker.post("/schemas", &schema).await.expect(201);
        let database = Postgres::shared().database("examples");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let world = World { broker, folder, receiver, node_id, database };
        world.lay_out_files();
        world
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn lay_out_files(&self) {
        let secret = String::from_utf8(self.broker.secret()).expect("a secret of the suites is text");
        let settings = format!("listen = \"127.0.0.1:0\"\n\n[jwt]\nsecret = \"{secret}\"\n");
        let of_production = format!("data_dir = {:?}\n{settings}", self.path("var/lib/sluice"));
        for (name, text) in [
            ("sluice.toml", settings.as_str()),
            ("etc/sluice/sluice.toml", &of_production),
            ("order.json", r#"{"id": 1}"#),
            ("event.json", r#"{"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.created"}"#),
            ("orders.schema.json", SCHEMA),
            ("events.ndjson", "{\"id\": 1}\n{\"id\": 2}\n"),
            ("stages.json", "[]"),
            ("token.txt", "t0k3n\n"),
            ("key.pem", KEY),
            ("plugins/README", "plugins come here"),
            (".local/share/bash-completion/completions/README", ""),
            (".zfunc/README", ""),
            (".config/fish/completions/README", ""),
        ] {
            self.write(name, text);
        }
        // A project that has been built, with a case.
        for name in ["config.json", "passes/in.json", "passes/out.json"] {
            let from = binary::repository().join("plugins/examples/cases").join(name);
            self.write(&format!("cases/{name}"), fs::read_to_string(from).expect("a case of the repository"));
        }
        self.write("dist/orders-filter.wasm", guest::first_party("header-filter"));
        for name in ["orders-check@1.3.0.wasm", "check.wasm"] {
            self.write(name, guest::with_powers(&[], "1.3.0"));
        }
        for data_dir in ["sluice-data", "var/lib/sluice"] {
            warm::seed(&self.folder.path().join(data_dir));
        }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let file = self.folder.path().join(name);
        fs::create_dir_all(file.parent().expect("a file is in a folder")).expect("the folder takes others");
        fs::write(file, text).expect("written");
    }

    /// Makes the world anew, and answers what the words in capitals stand for.
    async fn prepare(&self, example: &str) -> BTreeMap<&'static str, String> {
        for name in self.topics().await {
            self.broker.delete(&format!("/topics/{name}?force=true")).await.expect(204);
        }
        let mut words = BTreeMap::from([("NODE_ID", self.node_id.clone()), ("DATABASE", self.database.clone())]);
        if example.contains("sluice migrate-store ") {
            words.insert("DATABASE", Postgres::shared_with_tables("examples_moved"));
            // A directory that a broker has left.
            let store = self.folder.path().join("var/lib/sluice/store");
            let options = EmbeddedOptions::new(&store, Clock::system());
            EmbeddedStore::open(options).expect("the store opens").close().await.expect("it closes");
        }
        if !example.contains("sluice topic create ") {
            for (name, kind) in [("orders", "Queue"), ("deployment.events", "PubSub")] {
                self.broker.create_topic(name, kind).await;
            }
            for name in ["events", "clock", "reminders", "quotes"] {
                self.broker.create_topic(name, "Queue").await;
            }
            if !example.contains("sluice subscribe ") {
                self.fill(example, &mut words).await;
            }
        }
        words
    }

    async fn topics(&self) -> Vec<String> {
        let topics = self.broker.get("/topics").await.expect(200);
        let names = topics["topics"].as_array().into_iter().flatten().filter_map(|topic| topic["name"].as_str());
        names.filter(|name| !name.ends_with(".dlq")).map(str::to_owned).collect()
    }

    /// A plugin with two versions, and two revisions of each pipeline.
    async fn fill_plugins(&self, subscription: &str) {
        for version in ["1.1.0", "1.2.0"] {
            let path = format!("/plugins/orders-check/versions?version={version}");
            let headers = [("content-type", "application/wasm")];
            let component = guest::with_powers(&[], version);
            let answer = self.broker.send(http::Method::POST, &path, &headers, component).await;
            assert!(matches!(answer.status, 200 | 201), "{answer}");
        }
        for owner in ["topics/orders".to_owned(), format!("subscriptions/{subscription}")] {
            for pattern in ["a", "b"] {
                let config = json!({"headerMatches": {"x": pattern}});
                let stages = json!([{"name": "gate", "plugin": "filter", "config": config, "onReject": "drop"}]);
                let path = format!("/{owner}/pipeline");
                self.broker.put(&path, &json!({ "stages": stages })).await.expect(200);
            }
        }
    }

    /// Groups, a webhook, and orders: a dead letter, two that are held, and one that waits.
    async fn fill(&self, example: &str, words: &mut BTreeMap<&'static str, String>) {
        let broker = &self.broker;
        let billing = json!({"topicName": "orders", "consumerGroup": "billing", "type": "Pull", "maxRetries": 0});
        broker.post("/subscriptions", &billing).await.expect(201);
        broker.subscribe("deployment.events", "email").await;
        let push = broker.subscribe_push("deployment.events", "hook", &self.receiver.url(), json!({})).await;
        let subscription = text(&push, "subscriptionId");
        let snapshot = format!("/subscriptions/{subscription}/snapshots/before-release");
        broker.put(&snapshot, &json!({})).await.expect(200);
        words.insert("SUBSCRIPTION_ID", subscription.clone());
        broker.publish("deployment.events", r#"{"severity": 9}"#).await;
        for number in 0..4 {
            broker.publish("orders", json!({"id": number, "total": 200})).await;
        }
        let taken = broker.get("/messages/consume/orders?consumerGroup=billing&limit=3").await.expect(200);
        let taken = taken["messages"].as_array().expect("messages").as_slice();
        let [failed, held @ ..] = taken else { panic!("three orders: {taken:?}") };
        let nack = json!({"nacks": [{"receipt": failed["receipt"], "reason": "no such customer"}]});
        broker.post("/messages/ack/batch", &nack).await.expect(200);
        let letters = broker.get("/topics/orders/dlq").await.expect(200);
        let letter = text(&letters["deadLetters"][0], "messageId");
        let receipts = [0, 1].map(|index: usize| text(&held[index], "receipt"));
        self.write("receipts.txt", receipts.join("\n"));
        let [first, second] = receipts;
        let message = if example.contains("sluice dlq ") { letter } else { text(&held[0], "messageId") };
        let more = [("MESSAGE_ID", message), ("RECEIPT_1", first.clone()), ("RECEIPT_2", second), ("RECEIPT", first)];
        words.extend(more);
        if ["sluice plugin ", "sluice pipeline "].iter().any(|noun| example.contains(noun)) {
            self.fill_plugins(&subscription).await;
        }
        if ["plugin rollout", "plugin dry-run"].iter().any(|command| example.contains(command)) {
            self.try_versions(example, &subscription).await;
        }
        if example.contains("sluice plugin logs") {
            // It tells its log of each message.
            let stages = json!([{"name": "say", "plugin": "jq", "config": {"program": "debug"}, "timeoutMs": 1000}]);
            broker.put_pipeline("orders", stages).await;
        }
    }

    /// A stage of each kind on a plugin of two versions, the second of them on trial unless that is the example.
    async fn try_versions(&self, example: &str, subscription: &str) {
        let broker = &self.broker;
        broker.place_versions("gate", &[("1.2.0", &guest::tag(2)), ("1.3.0", &guest::tag(3))]).await;
        let of = [("/topics/orders".to_owned(), "gate"), (format!("/subscriptions/{subscription}"), "mask")];
        for (of, name) in of {
            let stages = json!({"stages": [{"name": name, "plugin": "gate", "version": "1.2.0"}]});
            broker.put(&format!("{of}/pipeline"), &stages).await.expect(200);
            if !(example.contains("rollout start") || example.contains("dry-run")) {
                let shadow = json!({"version": "1.3.0", "strategy": "shadow"});
                broker.post(&format!("{of}/pipeline/stages/{name}/rollout"), &shadow).await.expect(200);
            }
        }
    }

    /// The example with its words, addresses and places replaced by those of this test.
    fn spell_out(&self, example: &str, words: &BTreeMap<&'static str, String>) -> String {
        let address = self.broker.url().trim_start_matches("http://");
        let mut script = example
            .replace("http://broker:5000", self.broker.url())
            .replace("localhost:5000", address)
            .replace("http://localhost:3000/", &self.receiver.url())
            .replace("/etc/sluice", &self.path("etc/sluice"))
            .replace("/var/lib/sluice", &self.path("var/lib/sluice"));
        // RECEIPT is the beginning of RECEIPT_1: from behind, the longer word comes first.
        for (word, meaning) in words.iter().rev() {
            script = script.replace(word, meaning);
        }
        // `curl` calls an answer of 401 a success.
        format!("curl() {{ command curl --silent --show-error --fail-with-body \"$@\"; }}\n{script}")
    }

    /// Runs an example; the fault, if there is one.
    async fn try_out(&self, example: &str) -> Result<(), String> {
        let words = self.prepare(example).await;
        let script = self.spell_out(example, &words);
        let (stdout, stderr) = (self.folder.path().join("stdout"), self.folder.path().join("stderr"));
        let file = |path: &Path| fs::File::create(path).expect("a file can be made");
        let mut bash = self.broker.bash(self.folder.path(), &script);
        bash.process_group(0).stdout(file(&stdout)).stderr(file(&stderr));
        let mut running = Running(bash.spawn().expect("bash starts"));
        let sign = ENDLESS.iter().find(|(word, _)| example.contains(word)).map(|(_, sign)| *sign);
        let serving = example.contains("sluice request").then(|| tokio::spawn(serve(self.broker.admin())));
        let said = |path: &Path| String::from_utf8_lossy(&fs::read(path).expect("a file of ours")).into_owned();
        let ended: Option<ExitStatus> = wait::within(COMPILED_WITHIN, example, async || {
            if let Some(status) = running.0.try_wait().expect("a child can be waited for") {
                return Some(Some(status));
            }
            let sign = sign?;
            if !said(&stdout).contains(sign) {
                // Whoever looks from now on is to see something, too.
                self.broker.publish("orders", r#"{"total": 200}"#).await;
                if example.contains("listen") {
                    self.broker.publish("deployment.events", r#"{"severity": 9}"#).await;
                }
                return None;
            }
            Some(None)
        })
        .await;
        if let Some(serving) = serving {
            serving.abort();
        }
        let (stdout, stderr) = (said(&stdout), said(&stderr));
        let well = match ended {
            Some(status) => status.success() && sign.is_none(),
            None => true,
        };
        if well && !stderr.contains("error:") {
            return Ok(());
        }
        Err(format!("{example}\n  as {script}\n  ended with {ended:?}\n{stdout}\n{stderr}"))
    }
}

/// Replies to what is asked on `quotes`.
async fn serve(client: Client) {
    loop {
        for delivery in client.consume("quotes", "").wait(20).await {
            let (to, id) = (&delivery.message.reply_to, &delivery.message.correlation_id);
            let reply = json!({"topicName": to, "correlationId": id, "payload": {"price": 1}});
            client.post("/messages/publish", &reply).await.expect(202);
            delivery.ack().await;
        }
    }
}

fn text(document: &Value, name: &str) -> String {
    document[name].as_str().unwrap_or_else(|| panic!("no {name} in {document}")).to_owned()
}

/// A script with all that it started: both end when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Once it was waited for, its number may be another's.
        if !matches!(self.0.try_wait(), Ok(None)) {
            return;
        }
        let kill = format!("kill -KILL -- -{}", self.0.id());
        // Gone already is as good.
        let _ = Command::new("bash").args(["-c", &kill]).output();
        let _ = self.0.wait();
    }
}

/// Routes of the API that nobody has used.
async fn unused_routes(broker: &Broker) -> BTreeSet<String> {
    let metrics = broker.get("//metrics").await.text();
    let mut uses: BTreeMap<String, f64> = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with("sluice_http_requests_total{")) {
        let label = |name: &str| line.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split('"').next());
        let (Some(method), Some(route)) = (label("method"), label("route")) else { panic!("no labels: {line}") };
        let count: f64 = line.rsplit(' ').next().and_then(|count| count.parse().ok()).expect("a count");
        *uses.entry(format!("{method} {route}")).or_default() += count;
    }
    uses.into_iter().filter(|(_, count)| *count == 0.0).map(|(route, _)| route).collect()
}

#[tokio::test]
async fn every_example_of_every_command_works_as_written() {
    let world = World::new().await;
    let (mut faults, mut tried) = (Vec::new(), BTreeSet::new());
    let pages = pages(&world.broker, &[]);
    assert!(pages.len() > 50, "{} commands: the list of commands is not read right", pages.len());
    for Page { command, is_group, examples } in pages {
        if examples.is_empty() || !(is_group || examples.iter().any(|example| example.contains(&command))) {
            faults.push(format!("`{command} --help` has no example of it"));
        }
        for example in examples.into_iter().filter(|example| tried.insert(example.clone())) {
            if let Err(fault) = world.try_out(&example).await {
                faults.push(fault);
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n\n"));

    let mut unused = unused_routes(&world.broker).await;
    unused.retain(|route| !WITHOUT_COMMAND.iter().any(|known| route.ends_with(&format!(" {known}"))));
    unused.remove("any unmatched");
    assert!(unused.is_empty(), "no example uses {unused:?}");
}
