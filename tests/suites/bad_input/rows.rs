//! A broker with something of everything, and right requests to each of its routes: what the table makes wrong. Invariant: in
//! this order, and once, each of them is answered with success; together they have every parameter and field that there is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sluice_tests::{Broker, Client, guest};

use super::wire;

/// Longer than any run of the suite.
const LEASE_SECONDS: u32 = 12 * 3600;

/// A right request.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) method: &'static str,
    /// Path and query.
    pub(super) target: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) media_type: &'static str,
    pub(super) body: Option<Value>,
    /// The body, where it is no JSON: data, then.
    pub(super) bytes: Option<Vec<u8>>,
    /// The part of the body that is one item of a batch: what is wrong in it is said in its result.
    pub(super) item: Option<&'static str>,
    /// The body is data of any type: nothing in it can be wrong.
    pub(super) is_data: bool,
}

impl Row {
    fn new(method: &'static str, target: impl Into<String>) -> Row {
        let (headers, media_type) = (Vec::new(), "application/json");
        let (body, bytes, item) = (None, None, None);
        Row { method, target: target.into(), headers, media_type, body, bytes, item, is_data: false }
    }

    fn get(target: impl Into<String>) -> Row {
        Row::new("GET", target)
    }

    fn post(target: impl Into<String>) -> Row {
        Row::new("POST", target)
    }

    fn put(target: impl Into<String>) -> Row {
        Row::new("PUT", target)
    }

    fn delete(target: impl Into<String>) -> Row {
        Row::new("DELETE", target)
    }

    fn body(self, body: Value) -> Row {
        Row { body: Some(body), ..self }
    }

    fn component(self, bytes: Vec<u8>) -> Row {
        Row { bytes: Some(bytes), media_type: "application/wasm", is_data: true, ..self }
    }

    fn header(mut self, name: &'static str, value: &str) -> Row {
        self.headers.push((name, value.to_owned()));
        self
    }

    fn item(self, place: &'static str) -> Row {
        Row { item: Some(place), ..self }
    }

    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The query's parameters, still encoded.
    pub(super) fn parameters(&self) -> Vec<(&str, &str)> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        query.split('&').filter_map(|parameter| parameter.split_once('=')).collect()
    }

    /// As it is sent, if nothing is wrong with it.
    pub(super) fn request(&self, client: &Client) -> Vec<u8> {
        self.request_with(client, self.sent())
    }

    /// The body as it is sent.
    pub(super) fn sent(&self) -> Option<Vec<u8>> {
        self.bytes.clone().or_else(|| self.body.as_ref().map(|body| body.to_string().into_bytes()))
    }

    /// As it is sent with another body.
    pub(super) fn request_with(&self, client: &Client, body: Option<Vec<u8>>) -> Vec<u8> {
        let mut headers: Vec<(&str, &[u8])> =
            self.headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        if body.is_some() {
            headers.push(("content-type", self.media_type.as_bytes()));
        }
        wire::request(client, (self.method, &self.target), &headers, body.as_deref())
    }
}

/// The broker, and the names of what is in it.
pub(super) struct Bed {
    pub(super) broker: Broker,
    node: String,
    /// A subscription on a topic that versions are tried on.
    tried: String,
    /// Subscriptions on `news`: one that pushes and is paused, one that pulls.
    push: String,
    pull: String,
    /// Ids and receipts of leases of the latter.
    leases: Vec<(String, String)>,
    dead_letters: Vec<String>,
    tokens: [String; 3],
}

impl Bed {
    pub(super) async fn start() -> Bed {
        let broker = Broker::start().await;
        broker.create_topic("jobs", "Queue").await;
        broker.create_topic("news", "PubSub").await;
        // Whose messages go nowhere: a request to it need not wait for a reply.
        broker.create_topic("dropped", "Queue").await;
        let config = json!({"headerMatches": {"no": "such"}});
        broker.put_pipeline("dropped", json!([{"name": "none", "plugin": "filter", "config": config}])).await;
        // Two versions of a plugin, and of two stages one on which a version is tried.
        broker.place_versions("gate", &[("1.0.0", &guest::tag(1)), ("2.0.0", &guest::tag(2))]).await;
        let stage = |name: &str| json!({"name": name, "plugin": "gate", "version": "1.0.0"});
        let stages = json!([stage("a"), stage("b")]);
        broker.create_topic("tried", "PubSub").await;
        broker.put_pipeline("tried", stages.clone()).await;
        let tried = text(&broker.subscribe("tried", "g").await["subscriptionId"]);
        broker.put(&format!("/subscriptions/{tried}/pipeline"), &json!({"stages": stages})).await.expect(200);
        let canary = json!({"version": "2.0.0", "strategy": "canary"});
        for of in ["/topics/tried".to_owned(), format!("/subscriptions/{tried}")] {
            broker.post(&format!("{of}/pipeline/stages/b/rollout"), &canary).await.expect(200);
        }
        let schema = json!({"schemaId": "order", "version": "1", "schemaDefinition": {"type": "object"}});
        broker.post("/schemas", &schema).await.expect(201);
        let push = broker.subscribe_push("news", "hooks", "http://127.0.0.1:9/", json!({})).await;
        let push = text(&push["subscriptionId"]);
        broker.post(&format!("/subscriptions/{push}/pause"), &json!({})).await.expect(200);
        let passing = json!({"stages": [{"name": "passing", "plugin": "filter", "config": {"headerMatches": {}}}]});
        broker.put(&format!("/subscriptions/{push}/pipeline"), &passing).await.expect(200);
        let pull = json!({"topicName": "news", "consumerGroup": "g", "type": "Pull", "maxRetries": 0});
        let pull = text(&broker.post("/subscriptions", &pull).await.expect(201)["subscriptionId"]);
        for n in 0..10 {
            broker.publish("news", json!({"a": n})).await;
        }
        let leased = broker.consume("news", "g").limit(8).ack_timeout(LEASE_SECONDS).await;
        let mut leases: Vec<_> =
            leased.iter().map(|lease| (lease.id().to_owned(), lease.receipt().to_owned())).collect();
        for (id, receipt) in leases.drain(..2) {
            let nack = json!({"receipt": receipt});
            broker.post(&format!("/messages/{id}/nack"), &nack).await.expect(200);
        }
        let dead_letters = broker.get("/topics/news/dlq?limit=1").await.expect(200);
        let browsed = broker.get("/topics/news/messages?limit=1").await.expect(200);
        let counted = json!({"dryRun": true, "limit": 1});
        let counted = broker.post("/topics/news/dlq/replay", &counted).await.expect(200);
        let tokens = [&browsed, &dead_letters, &counted].map(|page| text(&page["nextToken"]));
        let all = broker.get("/topics/news/dlq").await.expect(200);
        let dead_letters = all["deadLetters"].as_array().expect("a list").iter();
        let dead_letters = dead_letters.map(|letter| text(&letter["messageId"])).collect();
        let node = text(&broker.get("/brokers").await.expect(200)["brokers"][0]["nodeId"]);
        Bed { broker, node, tried, push, pull, leases, dead_letters, tokens }
    }

    /// All rows.
    pub(super) fn rows(&self) -> Vec<Row> {
        let first = [self.operations(), self.topics(), self.schemas(), self.subscriptions(), self.plugins()].concat();
        [first, self.rollouts(), self.messages(), cloud_events(), self.ends()].concat()
    }

    fn operations(&self) -> Vec<Row> {
        let node = &self.node;
        vec![
            Row::get("/health"),
            Row::get("/health/live"),
            Row::get("/health/ready"),
            Row::get("/metrics"),
            Row::get("/api/v1/audit-logs?entity=topic&user=admin&from=2026-01-01T00:00:00Z&limit=10&offset=0"),
            Row::get("/api/v1/brokers?limit=10&offset=0"),
            Row::get(format!("/api/v1/brokers/{node}")),
            Row::get(format!("/api/v1/brokers/{node}/metrics")),
            Row::post(format!("/api/v1/brokers/{node}/drain?wait=PT1S")),
            Row::delete(format!("/api/v1/brokers/{node}/drain")),
            Row::get("/api/v1/plugins?limit=10&offset=0"),
            Row::get("/api/v1/plugins/filter"),
            Row::get("/api/v1/plugins/filter/logs?limit=10&follow=false&verdicts=false"),
        ]
    }

    fn rollouts(&self) -> Vec<Row> {
        let shadow = json!({
            "version": "2.0.0", "strategy": "shadow", "percent": 50.5, "maxErrorRate": 0.5, "maxRejectDelta": 0.5,
            "maxDropDelta": 0.5, "maxLatencyMs": 100.5, "window": "PT1M", "minMessages": 10,
        });
        let of = ["/api/v1/topics/tried".to_owned(), format!("/api/v1/subscriptions/{}", self.tried)];
        let rows = |of: &String| {
            let path = |stage: &str, more: &str| format!("{of}/pipeline/stages/{stage}/rollout{more}");
            [
                Row::post(path("a", "")).body(shadow.clone()).header("If-Match", "*"),
                Row::get(path("a", "")),
                Row::post(path("a", "/promote")).header("If-Match", "*"),
                Row::post(path("b", "/abort")).header("If-Match", "*"),
            ]
        };
        of.iter().flat_map(rows).chain(self.dry_runs()).collect()
    }

    fn dry_runs(&self) -> Vec<Row> {
        let dry_run = "/api/v1/plugins/gate/versions/2.0.0/dry-run";
        let lines = |query: String| {
            let bytes = Some(b"{\"payload\": 1}\n".to_vec());
            Row { bytes, media_type: "application/x-ndjson", is_data: true, ..Row::post(format!("{dry_run}?{query}")) }
        };
        // No message behind it: what is wrong in one is told in the result.
        let first_line = |wanted: Value| {
            Row { media_type: "application/x-ndjson", ..Row::post(dry_run) }.body(json!({ "dryRun": wanted }))
        };
        vec![
            Row::post(dry_run).body(json!({
                "topic": "tried", "stage": "a", "inputs": "stored", "from": "2026-01-01T00:00:00Z", "limit": 10,
                "config": {}, "against": "1.0.0", "seed": 1,
            })),
            Row::post(dry_run).body(json!({"subscriptionId": self.tried, "stage": "a"})),
            lines(
                "topic=tried&stage=a&limit=10&config=%7B%7D&against=1.0.0&seed=1&at=2026-01-01T00%3A00%3A00Z"
                    .to_owned(),
            ),
            lines(format!("subscriptionId={}&stage=a", self.tried)),
            first_line(json!({
                "topic": "tried", "stage": "a", "limit": 10, "config": {}, "against": "1.0.0", "seed": 1,
                "at": "2026-01-01T00:00:00Z",
            })),
            first_line(json!({"subscriptionId": self.tried, "stage": "a"})),
        ]
    }

    /// The revisions are of pipelines that were set before the rows.
    fn plugins(&self) -> Vec<Row> {
        let (of, push) = ("/api/v1/plugins/orders.check", &self.push);
        let (component, seen) = (guest::with_powers(&[], "row"), ("If-Match", "*"));
        let (digest, signature) = (Sha256::digest(&component), STANDARD.encode([0; 64]));
        let pipeline = format!("/api/v1/subscriptions/{push}/pipeline");
        vec![
            Row::post(format!("{of}/versions?version=1.0.0"))
                .component(component)
                .header("Content-Digest", &format!("sha-256=:{}:", STANDARD.encode(digest)))
                .header("Sluice-Plugin-Signature", &signature),
            Row::get(format!("{of}/versions/1.0.0")),
            Row::get(format!("{of}/versions/1.0.0/wasm")).header("If-None-Match", "\"other\""),
            Row::get(format!("{of}/powers")),
            Row::put(format!("{of}/powers")).body(json!({"allowed": ["kv"]})).header(seen.0, seen.1),
            Row::delete(format!("{of}/versions/1.0.0")),
            Row::get("/api/v1/topics/dropped/pipeline/history/1"),
            Row::get("/api/v1/topics/dropped/pipeline/diff?from=0&to=1"),
            Row::post("/api/v1/topics/dropped/pipeline/rollback?to=1").header(seen.0, seen.1),
            Row::get(format!("{pipeline}/history/1")),
            Row::get(format!("{pipeline}/diff?from=0&to=1")),
            Row::post(format!("{pipeline}/rollback?to=1")).header(seen.0, seen.1),
        ]
    }

    fn topics(&self) -> Vec<Row> {
        let topic = |name: &str, kind: &str| {
            json!({
                "name": name, "type": kind, "description": "orders", "schemaId": "order", "storage": "default",
                "deliveryGuarantee": "AtLeastOnce", "retentionPeriod": "P1D", "retentionBytes": 1_000_000,
                "partitionCount": 1, "maxMessageSize": 1000, "dedupWindow": "PT1M", "dedupMaxKeys": 1000,
                "deadLetterPayload": "none", "deadLetterExpired": true, "deadLetterThreshold": 10,
                "captureInput": {"ttl": "PT1M", "maxBytes": 100_000},
            })
        };
        let stages = json!({"stages": [{
            "name": "passing", "plugin": "filter", "version": "latest", "config": {"headerMatches": {}},
            "onReject": "drop", "onFault": "pass", "timeoutMs": 50, "memoryMb": 32, "emitTo": ["jobs"],
        }]});
        let [browse, letters, _] = &self.tokens;
        vec![
            Row::post("/api/v1/topics").body(topic("orders", "Queue")),
            Row::get("/api/v1/topics?type=Queue&limit=10&offset=0"),
            Row::get("/api/v1/topics/news"),
            Row::put("/api/v1/topics/news").body(topic("news", "PubSub")).header("If-Match", "*"),
            Row::get("/api/v1/topics/news/metrics?window=PT1H"),
            Row::get("/api/v1/topics/news/messages?from=earliest&partition=0&limit=10&filter=%24.a%20%3D%3D%201"),
            Row::get(format!("/api/v1/topics/news/messages?nextToken={browse}")),
            Row::get(format!("/api/v1/topics/news/dlq?limit=10&nextToken={letters}")),
            Row::get("/api/v1/topics/jobs/pipeline"),
            Row::put("/api/v1/topics/jobs/pipeline").body(stages).header("If-Match", "*"),
            Row::get("/api/v1/topics/jobs/pipeline/history?limit=10&offset=0"),
        ]
    }

    fn schemas(&self) -> Vec<Row> {
        let version = json!({
            "schemaId": "order", "version": "2", "compatibility": "Backward", "schemaDefinition": {"type": "object"},
        });
        vec![
            Row::post("/api/v1/schemas").body(version),
            Row::get("/api/v1/schemas?status=Approved&limit=10&offset=0"),
            Row::get("/api/v1/schemas/order"),
            Row::get("/api/v1/schemas/order/versions?limit=10&offset=0"),
            Row::post("/api/v1/schemas/order/validate").body(json!({"payload": {"a": 1}})),
        ]
    }

    fn subscriptions(&self) -> Vec<Row> {
        let (push, pull) = (&self.push, &self.pull);
        let settings = |group: &str| {
            json!({
                "topicName": "news", "consumerGroup": group, "type": "Push",
                "consumerEndpoint": "https://127.0.0.1:9/hook", "maxRetries": 3, "ackTimeout": "PT30S",
                "filter": {"headerMatches": {"k": "v"}, "payloadQuery": "$.a == 1"}, "format": "raw",
                "backoff": {"initial": "PT2S", "multiplier": 2, "max": "PT1H", "jitter": 0.2}, "ordered": true,
                "maxInFlight": 10, "rateLimit": 10, "headers": {"x-key": "v"}, "signature": "hmac",
                "authorization": {"type": "bearer", "token": "t"}, "caCertificate": pem("ca.pem"),
                "clientCertificate": {"certificate": pem("client.pem"), "privateKey": pem("client.key")},
                "attemptBodies": "redact",
            })
        };
        let mut new = settings("more");
        new["startFrom"] = json!("latest");
        let stages = json!({"stages": [{
            "name": "passing", "plugin": "filter", "version": "latest", "config": {"headerMatches": {}},
            "onReject": "drop", "onFault": "pass", "timeoutMs": 50, "memoryMb": 32, "emitTo": [],
        }]});
        vec![
            Row::post("/api/v1/subscriptions").body(new),
            Row::get("/api/v1/subscriptions?topicName=news&consumerGroup=g&isActive=true&limit=10&offset=0"),
            Row::get(format!("/api/v1/subscriptions/{push}")),
            Row::put(format!("/api/v1/subscriptions/{push}")).body(settings("hooks")).header("If-Match", "*"),
            Row::get(format!("/api/v1/subscriptions/{push}/attempts?limit=10&offset=0")),
            Row::delete(format!("/api/v1/subscriptions/{push}/attempts")),
            Row::get(format!("/api/v1/subscriptions/{push}/metrics?window=PT1H")),
            Row::get(format!("/api/v1/subscriptions/{push}/pipeline")),
            Row::put(format!("/api/v1/subscriptions/{push}/pipeline")).body(stages).header("If-Match", "*"),
            Row::get(format!("/api/v1/subscriptions/{push}/pipeline/history?limit=10&offset=0")),
            Row::post(format!("/api/v1/subscriptions/{push}/test")),
            Row::post(format!("/api/v1/subscriptions/{push}/secret/rotate"))
                .body(json!({"overlap": "PT1H", "signature": "hmac"}))
                .header("If-Match", "*"),
            Row::post(format!("/api/v1/subscriptions/{pull}/pause")).header("If-Match", "*"),
            Row::post(format!("/api/v1/subscriptions/{pull}/resume")).header("If-Match", "*"),
        ]
    }

    fn messages(&self) -> Vec<Row> {
        let message = json!({
            "topicName": "jobs", "payload": {"a": 1}, "schemaVersion": "1", "headers": {"k": "v"}, "priority": 1,
            "expiresAt": self.in_days(2), "deliverAt": self.in_days(1), "correlationId": "c", "replyTo": "answers",
            "partitionKey": "k", "idempotencyKey": "one", "contentType": "application/json",
        });
        let keyless = json!({"topicName": "jobs", "payloadBase64": "AAEC", "ttl": "PT2H", "delay": "PT1H"});
        let settle = |n: usize| json!({"receipt": self.leases[n].1, "consumerGroup": "g"});
        let of = |n: usize, verb: &str| Row::post(format!("/api/v1/messages/{}/{verb}", self.leases[n].0));
        let with = |mut value: Value, more: &[(&str, Value)]| {
            more.iter().for_each(|(name, more)| value[*name] = more.clone());
            value
        };
        let id = |n: usize| ("messageId", json!(self.leases[n].0));
        let again = [("reason", json!("later")), ("delay", json!("PT1H"))];
        let batch = "/api/v1/messages/publish/batch";
        let lines = Row { media_type: "application/x-ndjson", ..Row::post(batch) };
        let stream = Row { media_type: "application/x-ndjson", ..Row::post("/api/v1/messages/publish/stream") };
        vec![
            Row::post("/api/v1/messages/publish?explain=true").body(message.clone()),
            Row::post("/api/v1/messages/publish").body(keyless.clone()).header("Idempotency-Key", "two"),
            Row::post("/api/v1/messages/request?timeout=1")
                .body(with(
                    message.clone(),
                    &[
                        ("topicName", json!("dropped")),
                        ("replyTo", json!("news")),
                        ("idempotencyKey", json!("five")),
                        ("deliverAt", json!(self.in_days(0))),
                    ],
                ))
                .header("Idempotency-Key", "five"),
            Row::post("/api/v1/messages/request?timeout=1")
                .body(json!({"topicName": "dropped", "payloadBase64": "AAEC", "ttl": "PT2H", "delay": "PT0S"})),
            Row::post(format!("{batch}?atomic=true"))
                .body(json!({"messages": [with(message.clone(), &[("idempotencyKey", json!("three"))])]}))
                .item("/messages/0"),
            Row::post(batch).body(json!({"messages": [keyless.clone()]})).item("/messages/0"),
            lines.clone().body(with(message.clone(), &[("idempotencyKey", json!("four"))])).item(""),
            lines.body(keyless.clone()).item(""),
            stream.clone().body(with(message, &[("idempotencyKey", json!("six"))])).item(""),
            stream.body(keyless).item(""),
            Row::get(format!("/api/v1/messages/{}", self.leases[0].0)),
            of(0, "ack").body(settle(0)),
            of(1, "nack").body(with(settle(1), &again)),
            of(2, "extend").body(with(settle(2), &[("ackTimeout", json!(60))])),
            Row::post("/api/v1/messages/ack/batch").body(json!({"acks": [with(settle(3), &[id(3)])]})).item("/acks/0"),
            Row::post("/api/v1/messages/ack/batch")
                .body(json!({"nacks": [with(with(settle(4), &[id(4)]), &again)]}))
                .item("/nacks/0"),
            Row::get("/api/v1/messages/consume/news?consumerGroup=g&limit=1&ackTimeout=60&wait=0"),
            Row::get("/api/v1/messages/stream/news?consumerGroup=g&maxInFlight=1&ackTimeout=60")
                .header("Last-Event-ID", &format!("{}.1", self.leases[5].1)),
        ]
    }

    /// What takes away comes last.
    fn ends(&self) -> Vec<Row> {
        let [first, second] = self.dead_letters.as_slice() else { panic!("two dead letters") };
        let replay = json!({
            "consumerGroup": "g", "reason": "NACK", "dryRun": false, "from": self.in_days(-1), "until": self.in_days(1),
            "filter": "$.a == 1", "limit": 10, "rate": 100, "nextToken": self.tokens[2],
        });
        let (push, pull) = (&self.push, &self.pull);
        vec![
            Row::post(format!("/api/v1/topics/news/dlq/{first}/replay")),
            Row::delete(format!("/api/v1/topics/news/dlq/{second}")),
            Row::post("/api/v1/topics/news/dlq/replay").body(replay),
            Row::put(format!("/api/v1/subscriptions/{pull}/snapshots/before")),
            Row::get(format!("/api/v1/subscriptions/{pull}/snapshots?limit=10&offset=0")),
            Row::post(format!("/api/v1/subscriptions/{pull}/seek")).body(json!({"snapshot": "before"})),
            Row::delete(format!("/api/v1/subscriptions/{pull}/snapshots/before")),
            Row::post(format!("/api/v1/subscriptions/{pull}/seek")).body(json!({"to": "0", "partition": 0})),
            Row::delete(format!("/api/v1/messages/{}", self.leases[5].0)),
            Row::post("/api/v1/topics/news/purge"),
            Row::delete(format!("/api/v1/subscriptions/{push}")).header("If-Match", "*"),
            Row::delete("/api/v1/topics/news?force=true").header("If-Match", "*"),
        ]
    }

    fn in_days(&self, days: i64) -> String {
        let at = self.broker.clock().now_ms() + days * 86_400_000;
        jiff::Timestamp::from_millisecond(at).expect("a time of this age").to_string()
    }
}

fn pem(name: &str) -> String {
    let path = sluice_tests::binary::repository().join("tests/data/tls").join(name);
    std::fs::read_to_string(path).expect("a file of the repository")
}

/// Events, in each mode.
fn cloud_events() -> Vec<Row> {
    let event = |id: &str, more: Value| {
        let mut event = json!({
            "specversion": "1.0", "id": id, "source": "/shop", "type": "order.created", "subject": "order 7",
            "time": "2026-01-31T12:00:00Z", "datacontenttype": "application/json", "partitionkey": "k",
            "dataschema": "https://example.com/order.json", "expirytime": "2999-01-31T12:00:00Z",
        });
        event.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        event
    };
    let (data, bytes) = (json!({"data": {"a": 1}}), json!({"data_base64": "AAEC"}));
    let one = Row { media_type: "application/cloudevents+json", ..Row::post("/api/v1/messages/publish?topic=jobs") };
    let batch = "/api/v1/messages/publish/batch?topic=jobs";
    let batch = Row { media_type: "application/cloudevents-batch+json", ..Row::post(batch) };
    let binary = Row { is_data: true, ..Row::post("/api/v1/messages/publish?topic=jobs") };
    let attributes = [
        ("ce-specversion", "1.0"),
        ("ce-id", "binary"),
        ("ce-source", "/shop"),
        ("ce-type", "order.created"),
        ("ce-subject", "order%207"),
        ("ce-time", "2026-01-31T12:00:00Z"),
        ("ce-dataschema", "https://example.com/order.json"),
        ("ce-partitionkey", "k"),
        ("ce-expirytime", "2999-01-31T12:00:00Z"),
    ];
    vec![
        one.clone().body(event("data", data.clone())),
        one.body(event("bytes", bytes.clone())),
        batch.clone().body(json!([event("data of a batch", data)])).item("/0"),
        batch.body(json!([event("bytes of a batch", bytes)])).item("/0"),
        attributes.into_iter().fold(binary, |row, (name, value)| row.header(name, value)).body(json!({"a": 1})),
    ]
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
