//! Topics whose messages are in Redis. Invariant: what Redis keeps is never lost by a broker, what it loses is told and never mended in
//! silence, and whatever it does the other topics go on. What such a topic cannot do is refused where it is asked for, with what to do.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::receiver::{Request, Scripted};
use sluice_tests::servers::{Options, Postgres, Redis};
use sluice_tests::{Broker, Client, Delivery, Receiver, Settings, binary, guest, wait};
use tokio::sync::Notify;

const LOSSES: &str = "sluice_redis_store_losses_total";
const UP: &str = "sluice_redis_store_up";

async fn durable() -> Redis {
    Redis::start(Options::new().set("appendfsync", "always")).await
}

fn with(redis: &Redis) -> Settings {
    Settings::new().env("SLUICE__REDIS__URL", &redis.url())
}

async fn create(client: &Client, name: &str, kind: &str, more: Value) -> Value {
    let mut body = json!({"name": name, "type": kind, "storage": "redis"});
    for (field, value) in more.as_object().expect("fields") {
        body[field] = value.clone();
    }
    client.post("/topics", &body).await.expect(201)
}

async fn queue(client: &Client, name: &str) -> Value {
    create(client, name, "Queue", json!({})).await
}

async fn subscribe(client: &Client, topic: &str, group: &str, retries: u32) -> String {
    let body = json!({"topicName": topic, "consumerGroup": group, "type": "Pull", "maxRetries": retries});
    let made = client.post("/subscriptions", &body).await.expect(201);
    made["subscriptionId"].as_str().expect("an id").to_owned()
}

async fn letters(client: &Client, topic: &str, count: usize) -> Vec<Value> {
    wait::until(&format!("{count} dead letters of {topic}"), async || {
        let listed = client.get(&format!("/topics/{topic}/dlq")).await.expect(200);
        let letters = listed["deadLetters"].as_array().expect("a list").clone();
        (letters.len() == count).then_some(letters)
    })
    .await
}

async fn serves(client: &Client, word: &str) {
    wait::until(&format!("Redis is {word}"), async || {
        let health = client.get("//health").await.expect(200);
        (health["parts"]["redis"] == word).then_some(())
    })
    .await;
}

fn payloads(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.payload()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_in_redis_shows_what_its_answers_are_worth() {
    let redis = durable().await;
    let broker = Broker::with(with(&redis)).await;
    let made = queue(&broker, "jobs").await;
    assert_eq!((&made["storage"], &made["durability"]), (&json!("redis"), &json!("redis-always")));
    let published = broker.publish("jobs", "a").answer().await.expect(202);
    assert_eq!((&published["durability"], &published["offset"]), (&json!("redis-always"), &json!(0)));
    let batch = json!({"messages": [{"topicName": "jobs", "payload": "b"}]});
    let batch = broker.post("/messages/publish/batch", &batch).await.expect(200);
    assert_eq!(batch["results"][0]["durability"], "redis-always", "{batch}");
    broker.create_topic("others", "Queue").await;
    let published = broker.publish("others", "a").answer().await.expect(202);
    assert_eq!(published["durability"], "fsync", "one topic's answers are not another's");
    // It may be set otherwise while it runs, and off.
    for (setting, value, word) in [
        ("appendfsync", "everysec", "redis-everysec"),
        ("appendfsync", "no", "redis-no"),
        ("appendonly", "no", "redis-none"),
    ] {
        assert_eq!(redis.ask(&["CONFIG", "SET", setting, value]), "OK");
        wait::until("the topic tells it", async || {
            let topic = broker.get("/topics/jobs").await.expect(200);
            (topic["durability"] == word).then_some(())
        })
        .await;
    }
    let changed = broker.put("/topics/jobs", &json!({"storage": "default"})).await;
    assert!(changed.expect_problem(409, "CONFLICT")["detail"].as_str().expect("a detail").contains("storage"));
    let made = broker.cli(&["topic", "create", "prices", "--storage", "redis"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert_eq!(broker.get("/topics/prices").await.expect(200)["storage"], "redis");
    assert_eq!(broker.get("/topics/jobs.dlq").await.expect(200)["storage"], "redis", "beside its topic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_delivered_retried_buried_replayed_and_sought() {
    let redis = durable().await;
    let broker = Broker::with(with(&redis)).await;
    create(&broker, "news", "PubSub", json!({"partitionCount": 3})).await;
    let id = subscribe(&broker, "news", "g", 1).await;
    subscribe(&broker, "news", "other", 3).await;
    for text in ["a", "b", "c"] {
        broker.publish("news", text).key("one partition").await;
    }
    let deliveries = broker.consume("news", "g").collect(3).await;
    assert_eq!(payloads(&deliveries), ["a", "b", "c"]);
    deliveries[0].ack().await;
    deliveries[0].try_ack().await.expect_problem(410, "LEASE_EXPIRED");
    deliveries[1].nack_for("PT10S").await;
    broker.consume("news", "g").expect_nothing().await;
    broker.clock().advance(Duration::from_secs(11)).await;
    let again = broker.consume("news", "g").collect(1).await.remove(0);
    assert_eq!((again.payload(), again.message.delivery_attempt), ("b", 2));
    again.nack().await;
    // The third one's lease ends by itself, twice.
    for _ in 0..2 {
        broker.clock().advance(Duration::from_secs(31)).await;
        let again = broker.consume("news", "g").answer().await.expect(200);
        assert!(again["messages"].as_array().expect("a list").len() <= 1);
    }
    let dead = letters(&broker, "news", 2).await;
    let mut reasons: Vec<&str> = dead.iter().filter_map(|letter| letter["deadLetter"]["reason"].as_str()).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["LEASE_EXPIRED", "NACK"], "{dead:?}");
    let replayed = broker.post("/topics/news/dlq/replay", &json!({})).await;
    assert!(replayed.status < 300, "{}", replayed.text());
    letters(&broker, "news", 0).await;
    let back = broker.consume("news", "g").drain(2).await;
    let mut texts = payloads(&back);
    texts.sort_unstable();
    assert_eq!(texts, ["b", "c"]);
    assert_eq!(payloads(&broker.consume("news", "other").drain(3).await), ["a", "b", "c"], "replays are for one group");
    broker.post(&format!("/subscriptions/{id}/seek"), &json!({"to": "earliest"})).await.expect(200);
    assert_eq!(payloads(&broker.consume("news", "g").collect(3).await)[..3], ["a", "b", "c"]);
    let found = broker.get(&format!("/messages/{}", deliveries[0].id())).await.expect(200);
    assert_eq!(found["topicName"], "news");
    broker.delete(&format!("/messages/{}", deliveries[0].id())).await.expect(204);
    broker.get(&format!("/messages/{}", deliveries[0].id())).await.expect_problem(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_stores_once_and_a_webhook_gets_what_fails_again() {
    let redis = durable().await;
    let broker = Broker::with(with(&redis)).await;
    create(&broker, "orders", "PubSub", json!({})).await;
    let receiver = Receiver::start().await;
    receiver.answers([500_u16, 200]);
    let made = broker.subscribe_push("orders", "hook", &receiver.url(), json!({})).await;
    let first = broker.publish("orders", "a").idempotency_key("k").answer().await.expect(202);
    let again = broker.publish("orders", "a").idempotency_key("k").answer().await.expect(202);
    assert_eq!((&again["status"], &again["messageId"]), (&json!("Duplicate"), &first["messageId"]));
    broker.publish("orders", "b").idempotency_key("k").answer().await.expect_problem(409, "CONFLICT");
    receiver.received(1).await;
    wait::until("it comes again", async || {
        broker.clock().advance(Duration::from_secs(5)).await;
        (receiver.requests().len() >= 2).then_some(())
    })
    .await;
    let requests = receiver.requests();
    let secret = made["secret"].as_str().expect("a Push subscription has one");
    requests.iter().for_each(|request| request.verify(secret));
    assert_eq!(requests[0].header("webhook-id"), requests[1].header("webhook-id"));
    assert_eq!(requests[1].header("x-delivery-attempt"), "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_redis_cannot_do_is_refused_with_what_to_do() {
    let redis = durable().await;
    let broker = Broker::with(with(&redis)).await;
    queue(&broker, "jobs").await;
    broker.create_topic("others", "Queue").await;
    let fault = |problem: Value, pointer: &str, says: &str| {
        let faults = problem["errors"].as_array().expect("faults").clone();
        let found = faults.iter().find(|fault| fault["pointer"] == pointer);
        let found = found.unwrap_or_else(|| panic!("{pointer} is told: {problem}"));
        assert!(found["message"].as_str().expect("a sentence").contains(says), "{found}");
    };
    for guarantee in ["ExactlyOnce", "AtMostOnce"] {
        let body = json!({"name": "x", "type": "Queue", "storage": "redis", "deliveryGuarantee": guarantee});
        let refused = broker.post("/topics", &body).await.expect_problem(400, "VALIDATION_ERROR");
        fault(refused, "/deliveryGuarantee", "AtLeastOnce");
    }
    let refused = broker.publish("jobs", "x").priority(3).answer().await.expect_problem(400, "VALIDATION_ERROR");
    fault(refused, "/priority", "default storage");
    let refused = broker.publish("jobs", "x").field("delay", "PT1M").answer().await;
    fault(refused.expect_problem(400, "VALIDATION_ERROR"), "/deliverAt", "no schedule");
    let ordered = json!({"topicName": "jobs", "consumerGroup": "g", "type": "Pull", "ordered": true});
    let refused = broker.post("/subscriptions", &ordered).await.expect_problem(400, "VALIDATION_ERROR");
    fault(refused, "/ordered", "no order");
    let id = subscribe(&broker, "jobs", "g", 3).await;
    let refused = broker.put(&format!("/subscriptions/{id}"), &json!({"ordered": true})).await;
    fault(refused.expect_problem(400, "VALIDATION_ERROR"), "/ordered", "no order");
    // What a stage emits is stored with its message, or not at all.
    for (from, to) in [("jobs", "others"), ("others", "jobs")] {
        let stage = json!({"name": "s", "plugin": "filter", "version": "latest", "config": {}, "emitTo": [to]});
        let refused = broker.put(&format!("/topics/{from}/pipeline"), &json!({"stages": [stage]})).await;
        fault(refused.expect_problem(400, "VALIDATION_ERROR"), "/stages/0/emitTo/0", "one store");
    }
    broker.place_versions("keeper", &[("1.0.0", &guest::with_powers(&["kv"], "a"))]).await;
    let stages = json!({"stages": [{"name": "s", "plugin": "keeper", "version": "latest", "config": {}}]});
    for path in ["/topics/jobs/pipeline".to_owned(), format!("/subscriptions/{id}/pipeline")] {
        let refused = broker.put(&path, &stages).await.expect_problem(400, "VALIDATION_ERROR");
        fault(refused, "/stages/0/config", "keeps values");
    }
    broker.put("/topics/others/pipeline", &stages).await.expect(200);
    let without = Broker::start().await;
    let body = json!({"name": "x", "type": "Queue", "storage": "redis"});
    fault(without.post("/topics", &body).await.expect_problem(400, "VALIDATION_ERROR"), "/storage", "redis.url");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_brokers_and_a_killed_redis_lose_nothing_that_was_acknowledged() {
    let mut redis = durable().await;
    let mut broker = Broker::with(with(&redis)).await;
    queue(&broker, "jobs").await;
    let mut expected = Vec::new();
    for round in 0..3 {
        for number in 0..40 {
            let text = format!("{round}-{number:02}");
            broker.publish("jobs", text.as_str()).answer().await.expect(202);
            expected.push(text);
        }
        if round == 1 {
            redis.restart().await;
            serves(&broker, "Healthy").await;
        } else {
            broker.crash().await;
        }
    }
    let held = broker.consume("jobs", "g").collect(10).await;
    held[0].ack().await;
    broker.crash().await;
    held[1].try_ack().await.expect_problem(410, "LEASE_EXPIRED");
    let mut texts: Vec<String> =
        broker.consume("jobs", "g").drain(119).await.iter().map(|delivery| delivery.payload().to_owned()).collect();
    texts.push(held[0].payload().to_owned());
    texts.sort_unstable();
    assert_eq!(texts, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_redis_is_told_and_its_topics_go_on() {
    let redis = durable().await;
    let mut broker = Broker::with(with(&redis)).await;
    create(&broker, "news", "PubSub", json!({})).await;
    subscribe(&broker, "news", "g", 3).await;
    let lost = broker.publish("news", "lost").answer().await.expect(202);
    let held = broker.consume("news", "g").collect(1).await.remove(0);
    redis.flush();
    // Whoever comes first has the topic made anew, and is served.
    let kept = broker.publish("news", "kept").answer().await.expect(202);
    let after = |published: &Value| published["offset"].as_u64().expect("a number");
    assert!(after(&kept) > after(&lost) && after(&lost) == 0, "no offset comes twice: {kept}");
    let page = broker.get("/topics/news/messages?partition=0&from=1").await.expect(200);
    assert_eq!(page["messages"][0]["offset"], kept["offset"], "who has read the one comes to the other: {page}");
    assert_eq!(held.try_ack().await.status, 410, "what it held is gone");
    let delivery = broker.consume("news", "g").collect(1).await.remove(0);
    assert_eq!(delivery.payload(), "kept");
    delivery.ack().await;
    assert_eq!(broker.metric(LOSSES).await, Some(1.0));
    assert!(broker.log().contains("Redis has lost what it held"), "{}", broker.log());
    broker.get("/topics/news/dlq").await.expect(200);
    redis.flush();
    let last = broker.publish("news", "again").answer().await.expect(202);
    assert!(after(&last) > after(&kept), "{last}");
    assert_eq!(payloads(&broker.consume("news", "g").drain(1).await), ["again"]);
    assert_eq!(broker.metric(LOSSES).await, Some(2.0));
    // One that starts remembers nothing of it but that the topic was there.
    broker.kill();
    redis.flush();
    broker.restart().await;
    let restarted = broker.publish("news", "once more").answer().await.expect(202);
    assert!(after(&restarted) > after(&last), "{restarted}");
    assert_eq!(payloads(&broker.consume("news", "g").drain(1).await), ["once more"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_redis_is_not_waited_for_by_the_others_and_is_served_from_again() {
    let redis = durable().await;
    let broker = Broker::with(with(&redis)).await;
    queue(&broker, "jobs").await;
    broker.create_topic("others", "Queue").await;
    redis.pause();
    let first = broker.publish("jobs", "a").idempotency_key("k").answer().await;
    assert_eq!(first.status, 503, "{}", first.text());
    serves(&broker, "Degraded").await;
    let refused = broker.publish("jobs", "a").idempotency_key("k").answer().await;
    refused.expect_problem(503, "STORE_UNAVAILABLE");
    assert!(refused.header("retry-after").is_some(), "it may come again");
    broker.get("//health/ready").await.expect(200);
    assert_eq!(broker.metric(UP).await, Some(0.0));
    for _ in 0..20 {
        broker.publish("others", "x").answer().await.expect(202);
    }
    broker.consume("others", "g").drain(20).await;
    redis.resume();
    serves(&broker, "Healthy").await;
    let answer = broker.publish("jobs", "a").idempotency_key("k").answer().await.expect(202);
    assert!(["Pending", "Duplicate"].iter().any(|status| answer["status"] == *status), "{answer}");
    assert_eq!(payloads(&broker.consume("jobs", "g").drain(1).await), ["a"], "once, whatever became of the first");
    broker.consume("jobs", "g").expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_refuses_publishes_and_goes_on_serving_consumers() {
    let redis = Redis::start(Options::new().set("maxmemory", "12mb")).await;
    let broker = Broker::with(with(&redis)).await;
    create(&broker, "jobs", "Queue", json!({"retentionPeriod": "PT1H"})).await;
    let text = "x".repeat(100_000);
    let mut stored = 0;
    let refused = loop {
        let answer = broker.publish("jobs", text.as_str()).answer().await;
        if answer.status != 202 {
            break answer;
        }
        stored += 1;
        assert!(stored < 200, "12 MB are full before that");
    };
    refused.expect_problem(429, "BACKPRESSURE");
    assert!(refused.header("retry-after").is_some(), "it says when to come again");
    assert!(stored >= 20, "{stored}");
    serves(&broker, "Degraded").await;
    broker.get("//health/ready").await.expect(200);
    assert_eq!(
        broker.consume("jobs", "g").limit(100).drain(stored).await.len(),
        stored,
        "nothing that was taken is lost"
    );
    // What is consumed stays until it is too old.
    broker.clock().advance(Duration::from_secs(3700)).await;
    serves(&broker, "Healthy").await;
    broker.publish("jobs", text.as_str()).answer().await.expect(202);
    assert!(broker.log().contains("memory of Redis is full"), "{}", broker.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_starts_without_the_redis_of_its_topics_and_serves_them_later() {
    let mut redis = durable().await;
    let mut broker = Broker::with(with(&redis)).await;
    create(&broker, "news", "PubSub", json!({})).await;
    subscribe(&broker, "news", "g", 3).await;
    broker.create_topic("others", "Queue").await;
    broker.publish("news", "a").answer().await.expect(202);
    broker.kill();
    redis.kill();
    broker.restart().await;
    assert_eq!(broker.get("//health").await.expect(200)["parts"]["redis"], "Degraded");
    broker.publish("others", "x").answer().await.expect(202);
    broker.publish("news", "b").answer().await.expect_problem(503, "STORE_UNAVAILABLE");
    // Neither does it keep anything else from being made: what is to be removed there waits.
    let more = json!({"name": "more", "type": "Queue", "storage": "redis"});
    broker.post("/topics", &more).await.expect_problem(503, "STORE_UNAVAILABLE");
    broker.create_topic("further", "Queue").await;
    broker.publish("further", "y").answer().await.expect(202);
    redis.restart().await;
    serves(&broker, "Healthy").await;
    broker.publish("news", "b").answer().await.expect(202);
    assert_eq!(payloads(&broker.consume("news", "g").drain(2).await), ["a", "b"]);
    // Without any, it does not start: its topics would look empty.
    broker.kill();
    let mut serve = std::process::Command::new(binary::sluice());
    serve.args(["serve", "--profile", "development", "--listen", "127.0.0.1:0", "--data-dir"]).arg(broker.data_dir());
    let ended = serve.output().expect("it starts");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && said.contains("redis.url"), "{said}");
}

async fn two_serve(redis_url: &str, name: &str) {
    let database = Postgres::shared_with_tables(name);
    let settings = |node: &str| Settings::new().on(&database, node).env("SLUICE__REDIS__URL", redis_url);
    let [a, b] = ["a", "b"].map(|node| Broker::with(settings(node)));
    let (mut a, b) = (a.await, b.await);
    create(&a, "jobs", "Queue", json!({"partitionCount": 4})).await;
    wait::until("the other broker knows the topic", async || (b.get("/topics/jobs").await.status == 200).then_some(()))
        .await;
    let consume = b.consume("jobs", "g").wait(20);
    let publishing = async {
        wait::taken_up().await;
        a.publish("jobs", "x").answer().await.expect(202);
    };
    let (answer, ()) = tokio::join!(consume.answer(), publishing);
    assert_eq!(consume.deliveries(&answer).len(), 1, "who waits on one is woken by the other");
    let receipt = answer.expect(200)["messages"][0]["receipt"].clone();
    let acks = json!({"acks": [{"receipt": receipt}]});
    assert_eq!(
        a.post("/messages/ack/batch", &acks).await.expect(200)["results"][0]["status"],
        "Acked",
        "any broker settles"
    );
    for n in 0..100 {
        [&a, &b][n % 2].publish("jobs", n.to_string()).answer().await.expect(202);
    }
    let held = a.consume("jobs", "g").limit(30);
    let held = held.deliveries(&held.answer().await);
    assert_eq!(held.len(), 30);
    a.kill();
    let mut seen: Vec<String> =
        b.consume("jobs", "g").drain(70).await.iter().map(|one| one.payload().to_owned()).collect();
    b.clock().advance(Duration::from_secs(31)).await;
    seen.extend(b.consume("jobs", "g").drain(30).await.iter().map(|one| one.payload().to_owned()));
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 100, "what one had handed out the other does: {} were held", held.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_on_one_database_share_topics_in_redis() {
    let redis = durable().await;
    two_serve(&redis.url(), "streams").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_stream_of_a_topic_in_redis_goes_on_when_others_are_told_of_the_end_of_its_leases() {
    let redis = durable().await;
    let database = Postgres::shared_with_tables("streams_in_redis");
    let settings = |node: &str| Settings::new().on(&database, node).env("SLUICE__REDIS__URL", &redis.url());
    let [a, b] = ["a", "b"].map(|node| Broker::with(settings(node)));
    let (a, b) = (a.await, b.await);
    queue(&a, "jobs").await;
    wait::until("the other broker knows the topic", async || (b.get("/topics/jobs").await.status == 200).then_some(()))
        .await;
    let mut stream = a.stream("jobs", "g", 2).await;
    for number in 0..10 {
        b.publish("jobs", number.to_string()).answer().await.expect(202);
    }
    // Leases last for half a minute.
    for number in 0..10 {
        let got = stream.next().await;
        assert_eq!(got.payload(), number.to_string());
        let ack = json!({"consumerGroup": "g", "receipt": got.receipt()});
        b.post(&format!("/messages/{}/ack", got.id()), &ack).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_broker_was_about_to_send_is_sent_once_redis_answers_again() {
    let redis = durable().await;
    let database = Postgres::shared_with_tables("lost_beside_redis");
    let settings = |node: &str| Settings::new().on(&database, node).env("SLUICE__REDIS__URL", &redis.url());
    let (mut a, receiver) = (Broker::with(settings("a")).await, Receiver::start().await);
    // No answer ever: what is sent stays leased, for an hour. The other one is in the database.
    receiver.answers([(); 2].map(|()| Scripted::from(200).held_until(Arc::new(Notify::new()))));
    create(&a, "streamed", "PubSub", json!({})).await;
    a.create_topic("kept", "PubSub").await;
    for topic in ["streamed", "kept"] {
        a.subscribe_push(topic, "g", &receiver.url(), json!({"ackTimeout": "PT1H"})).await;
        a.publish(topic, topic).answer().await.expect(202);
    }
    receiver.received(2).await;
    let b = Broker::with(settings("b")).await;
    redis.pause();
    a.kill();
    let topics = |requests: Vec<Request>| {
        let mut topics: Vec<String> = requests.iter().map(|one| one.message().payload.expect("it is text")).collect();
        topics.sort_unstable();
        topics
    };
    assert_eq!(topics(receiver.received(3).await), ["kept", "kept", "streamed"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    redis.resume();
    assert_eq!(topics(receiver.received(4).await), ["kept", "kept", "streamed", "streamed"]);
    drop(b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_has_all_of_them_on_one_node() {
    let nodes = Redis::start_cluster().await;
    two_serve(&Redis::cluster_url(&nodes), "streams_clustered").await;
    let with_keys =
        nodes.iter().filter(|node| node.ask(&["KEYS", "sluice:{*}:t:*"]).lines().any(|line| !line.is_empty()));
    assert_eq!(with_keys.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_cluster_has_done_and_not_answered_is_not_done_again() {
    let nodes = Redis::start_cluster().await;
    let broker = Broker::with(Settings::new().env("SLUICE__REDIS__URL", &Redis::cluster_url(&nodes))).await;
    queue(&broker, "jobs").await;
    broker.publish("jobs", "x").answer().await.expect(202);
    let streams = |node: &&Redis| !node.ask(&["KEYS", "sluice:{*}:t:*:s"]).is_empty();
    let node = nodes.iter().find(streams).expect("one of them has it");
    let stream = node.ask(&["KEYS", "sluice:{*}:t:*:s"]);
    let mut stored = 1;
    for _ in 0..20 {
        let mut other = TcpStream::connect(("127.0.0.1", node.port())).expect("it listens");
        other.write_all(format!("AUTH {}\r\n", node.password()).as_bytes()).expect("it is read");
        assert!(other.read(&mut [0; 64]).expect("it answers") > 0);
        // What waits for it is done in its order, and answered after all of it: the second takes the connections of the first.
        node.pause();
        let losing = async {
            wait::taken_up().await;
            other.write_all(b"CLIENT KILL TYPE normal\r\n").expect("the system keeps it");
            node.resume();
        };
        let (answer, ()) = tokio::join!(broker.publish("jobs", "x").answer(), losing);
        serves(&broker, "Healthy").await;
        let before = std::mem::replace(&mut stored, node.ask(&["XLEN", &stream]).parse().expect("a number"));
        assert!(stored <= before + 1, "one publish stored {} messages: {}", stored - before, answer.text());
        if answer.status == 503 && stored > before {
            answer.expect_problem(503, "OUTCOME_UNKNOWN");
            return;
        }
    }
    panic!("no answer was ever lost");
}
