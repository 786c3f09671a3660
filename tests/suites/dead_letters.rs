//! Dead letters: a topic of their own, a list, a way back. Invariant: what fails there goes no further, and what comes back
//! from there is told apart from what it was. Time is moved, never waited for.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::broker::files_below;
use sluice_tests::{Broker, Receiver, wait};

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn subscribe(broker: &Broker, topic: &str, group: &str, retries: u32) -> Value {
    let body = json!({"topicName": topic, "consumerGroup": group, "type": "Pull", "maxRetries": retries});
    broker.post("/subscriptions", &body).await.expect(201)
}

/// The topic's dead letters, once there are so many.
async fn letters(broker: &Broker, topic: &str, count: usize) -> Vec<Value> {
    wait::until(&format!("{count} dead letters of {topic}"), async || {
        let listed = broker.get(&format!("/topics/{topic}/dlq")).await.expect(200);
        let letters = listed["deadLetters"].as_array().expect("a list").clone();
        (letters.len() == count).then_some(letters)
    })
    .await
}

/// Publishes a message that each of the groups turns away for the last time.
async fn poison(broker: &Broker, payload: &str, groups: &[&str]) -> String {
    let published = broker.publish("news", payload).header("kind", "poison").await;
    for group in groups {
        broker.consume("news", group).collect(1).await[0].nack().await;
    }
    published.message_id
}

async fn poisoned(groups: &[&str]) -> Broker {
    let broker = Broker::start().await;
    broker.create_topic("news", "PubSub").await;
    for group in groups {
        subscribe(&broker, "news", group, 0).await;
    }
    broker
}

#[tokio::test]
async fn dead_letters_can_be_consumed_and_poison_among_them_ends() {
    let broker = poisoned(&["g"]).await;
    subscribe(&broker, "news.dlq", "alarm", 1).await;
    poison(&broker, "bad", &["g"]).await;

    for attempt in 1..=2 {
        let delivery = broker.consume("news.dlq", "alarm").collect(1).await.remove(0);
        assert_eq!((delivery.payload(), delivery.message.delivery_attempt), ("bad", attempt));
        assert_eq!(
            (delivery.message.topic_name.as_str(), delivery.message.headers["kind"].as_str()),
            ("news.dlq", "poison")
        );
        let facts = &delivery.message.dead_letter;
        assert_eq!(
            (&facts["reason"], &facts["consumerGroup"], &facts["attempts"]),
            (&json!("NACK"), &json!("g"), &json!(1))
        );
        delivery.nack().await;
        broker.clock().advance(DAY).await;
        if attempt == 2 {
            // For good: there is no dead letter of a dead letter.
            broker.consume("news.dlq", "alarm").expect_nothing().await;
            let settled = broker.get(&format!("/messages/{}", delivery.id())).await.expect(200);
            let of_alarm =
                settled["groups"].as_array().expect("a list").iter().find(|group| group["consumerGroup"] == "alarm");
            assert_eq!(of_alarm.map(|group| &group["status"]), Some(&json!("Settled")), "{settled}");
        }
    }
    letters(&broker, "news", 1).await;
    broker.get("/topics/news.dlq/dlq").await.expect_problem(404, "NOT_FOUND");
    broker.get("/topics/news.dlq.dlq").await.expect_problem(404, "NOT_FOUND");
    broker.consume("news", "g").expect_nothing().await;
    broker.consume("news.dlq", "unknown").answer().await.expect_problem(404, "NOT_FOUND");

    // Whoever acks one has read it: it stays on the list until it is replayed or discarded.
    poison(&broker, "worse", &["g"]).await;
    broker.consume("news.dlq", "alarm").collect(1).await[0].ack().await;
    letters(&broker, "news", 2).await;
}

#[tokio::test]
async fn dead_letters_can_be_sent_and_poison_among_them_ends() {
    let (broker, receiver) = (poisoned(&["g"]).await, Receiver::start().await);
    let alarm = broker.subscribe_push("news.dlq", "alarm", &receiver.url(), json!({"maxRetries": 1})).await;
    receiver.answers([500_u16, 502]);
    poison(&broker, "bad", &["g"]).await;
    let requests = wait::until("the dead letter is sent twice", async || {
        broker.clock().advance(Duration::from_secs(5)).await;
        let requests = receiver.requests();
        (requests.len() >= 2).then_some(requests)
    })
    .await;
    for request in &requests {
        request.verify(alarm["secret"].as_str().expect("a secret"));
        assert_eq!((request.header("x-topic-name"), request.message().payload.as_deref()), ("news.dlq", Some("bad")));
        assert_eq!(request.message().dead_letter["reason"], "NACK");
    }
    // The next one is sent, the last one not again, not even in a day.
    wait::until("the first is done with", async || {
        let metrics = broker.get("/topics/news.dlq/metrics").await.expect(200);
        let groups = metrics["groups"].as_array().expect("a list").clone();
        let alarm = groups.into_iter().find(|group| group["consumerGroup"] == "alarm").expect("it has figures");
        (alarm["deadLetteredTotal"] == 1 && alarm["retrying"] == 0).then_some(())
    })
    .await;
    broker.clock().advance(DAY).await;
    poison(&broker, "worse", &["g"]).await;
    let requests = receiver.received(3).await;
    let sent: Vec<Option<String>> = requests.iter().map(|request| request.message().payload).collect();
    assert_eq!(sent, [Some("bad"), Some("bad"), Some("worse")].map(|payload| payload.map(str::to_owned)));
    letters(&broker, "news", 2).await;
}

#[tokio::test]
async fn poison_that_is_replayed_comes_back_with_its_facts() {
    let broker = poisoned(&["a", "b"]).await;
    let original = poison(&broker, "bad", &["a", "b"]).await;
    let dead = letters(&broker, "news", 2).await;
    for letter in &dead {
        assert_eq!((&letter["deadLetter"]["originalMessageId"], &letter["payload"]), (&json!(original), &json!("bad")));
        assert_eq!(letter["deadLetter"]["attempts"], 1, "{letter}");
    }
    let of_a = dead.iter().find(|letter| letter["deadLetter"]["consumerGroup"] == "a").expect("one for each group");
    let path = format!("/topics/news/dlq/{}/replay", of_a["messageId"].as_str().expect("an id"));
    let replayed = broker.post(&path, &json!({})).await.expect(200);
    broker.post(&path, &json!({})).await.expect_problem(404, "NOT_FOUND");
    letters(&broker, "news", 1).await;

    broker.consume("news", "b").expect_nothing().await;
    let again = broker.consume("news", "a").collect(1).await.remove(0);
    assert_eq!((json!(again.id()), again.message.delivery_attempt), (replayed["messageId"].clone(), 1));
    broker.clock().advance(Duration::from_secs(5)).await;
    again.nack().await;
    let dead = letters(&broker, "news", 2).await;
    let facts = &dead[1]["deadLetter"];
    assert_eq!((&facts["consumerGroup"], &facts["reason"]), (&json!("a"), &json!("NACK")), "{facts}");
    assert_eq!((&facts["detail"], &facts["attempts"]), (&json!("the test says so"), &json!(1)), "{facts}");
    assert_eq!(facts["originalMessageId"], replayed["messageId"], "{facts}");
    assert!(facts["failedAt"].as_str() > dead[0]["deadLetter"]["failedAt"].as_str(), "{dead:?}");
    assert_eq!(dead[1]["headers"]["kind"], "poison", "{dead:?}");
}

#[tokio::test]
async fn many_are_replayed_by_group_and_reason_once_each_though_they_die_again() {
    let (broker, receiver) = (poisoned(&["a"]).await, Receiver::start().await);
    broker.subscribe_push("news", "hook", &receiver.url(), json!({"maxRetries": 0})).await;
    receiver.answers([500_u16; 3]);
    for payload in ["1", "2", "3"] {
        poison(&broker, payload, &["a"]).await;
    }
    letters(&broker, "news", 6).await;
    let replay = async |body: Value| {
        let report = broker.post("/topics/news/dlq/replay", &body).await.expect(200);
        (report["matched"].as_u64().expect("a count"), report["replayed"].as_u64().expect("a count"))
    };
    assert_eq!(replay(json!({"dryRun": true})).await, (6, 0));
    assert_eq!(replay(json!({"consumerGroup": "nobody"})).await, (0, 0));
    assert_eq!(replay(json!({"consumerGroup": "a", "reason": "HTTP_500"})).await, (0, 0));
    letters(&broker, "news", 6).await;

    // Those of the webhook fail again, at once: they are not taken twice by one call.
    receiver.answers([502_u16; 3]);
    broker.clock().advance(Duration::from_secs(1)).await;
    assert_eq!(replay(json!({"reason": "HTTP_500"})).await, (3, 3));
    receiver.received(6).await;
    let dead = letters(&broker, "news", 6).await;
    let statuses: Vec<&Value> = dead.iter().map(|letter| &letter["deadLetter"]["lastStatus"]).collect();
    assert_eq!(statuses.iter().filter(|status| ***status == json!(502)).count(), 3, "{statuses:?}");

    assert_eq!(replay(json!({})).await, (6, 6));
    let mut again: Vec<String> =
        broker.consume("news", "a").collect(3).await.iter().map(|delivery| delivery.payload().to_owned()).collect();
    again.sort_unstable();
    assert_eq!(again, ["1", "2", "3"]);
    receiver.received(9).await;
    letters(&broker, "news", 0).await;
}

#[tokio::test]
async fn a_topics_figures_say_since_when_its_oldest_dead_letter_waits() {
    let broker = poisoned(&["g"]).await;
    let figures = async || {
        let metrics = broker.get("/topics/news/metrics").await.expect(200);
        (metrics["deadLetters"].as_u64().expect("a count"), metrics["oldestDeadLetterAt"].clone())
    };
    assert_eq!(figures().await, (0, Value::Null));
    // Published long before they die: what counts is since when they wait for somebody.
    broker.publish("news", "1").await;
    broker.publish("news", "2").await;
    let held = broker.consume("news", "g").ack_timeout(12 * 3600).collect(2).await;
    for delivery in &held {
        broker.clock().advance(Duration::from_secs(3600)).await;
        delivery.nack().await;
    }
    let dead = letters(&broker, "news", 2).await;
    let died: Vec<Value> = dead.iter().map(|letter| letter["deadLetter"]["failedAt"].clone()).collect();
    assert_eq!(figures().await, (2, died[0].clone()), "{died:?}");
    broker.delete(&format!("/topics/news/dlq/{}", dead[0]["messageId"].as_str().expect("an id"))).await.expect(204);
    assert_eq!(figures().await, (1, died[1].clone()), "{died:?}");
    broker.post("/topics/news/dlq/replay", &json!({})).await.expect(200);
    assert_eq!(figures().await, (0, Value::Null));
}

#[tokio::test]
async fn some_dead_letters_are_replayed_by_group_reason_payload_and_time() {
    let broker = poisoned(&["a", "b"]).await;
    for number in 0..6 {
        poison(&broker, &json!({ "n": number }).to_string(), &["a", "b"]).await;
    }
    let before = letters(&broker, "news", 12).await;
    let halfway = before[6]["deadLetter"]["failedAt"].as_str().expect("a time").to_owned();
    broker.clock().advance(DAY).await;
    let replay = async |body: Value| broker.post("/topics/news/dlq/replay", &body).await.expect(200);

    let all = replay(json!({"dryRun": true})).await;
    assert_eq!((&all["matched"], &all["replayed"], &all["hasMore"]), (&json!(12), &json!(0), &json!(false)), "{all}");
    assert_eq!(all["reasons"], json!({"NACK": 12}));
    assert_eq!(replay(json!({"dryRun": true, "filter": "$.n >= 4"})).await["matched"], 4);
    let early = replay(json!({"dryRun": true, "until": halfway})).await["matched"].as_u64().expect("a number");
    let late = replay(json!({"dryRun": true, "from": halfway})).await["matched"].as_u64().expect("a number");
    assert!(early <= 6 && early + late == 12, "{early} before {halfway}, {late} from then on");

    // In two calls, each of two: `nextToken` goes on behind the first.
    let wanted = json!({"consumerGroup": "a", "filter": "$.n >= 2", "limit": 2});
    let first = replay(wanted.clone()).await;
    assert_eq!((&first["replayed"], &first["hasMore"]), (&json!(2), &json!(true)), "{first}");
    let mut next = wanted.clone();
    next["nextToken"] = first["nextToken"].clone();
    assert_eq!(replay(next).await["replayed"], 2);
    let again = broker.consume("news", "a").collect(4).await;
    let payloads: Vec<&str> = again.iter().map(|delivery| delivery.payload()).collect();
    assert_eq!(payloads, [r#"{"n":2}"#, r#"{"n":3}"#, r#"{"n":4}"#, r#"{"n":5}"#]);
    broker.consume("news", "b").expect_nothing().await;
    let listed = broker.get("/topics/news/dlq?limit=1").await.expect(200);
    assert_eq!((&listed["total"], &listed["hasMore"]), (&json!(8), &json!(true)), "{listed}");
    assert!(listed["oldestFailedAt"].is_string(), "{listed}");
}

#[tokio::test]
async fn a_replay_with_a_rate_ends_its_call_in_time_and_goes_on_where_it_was() {
    /// At one a second, more than a call has time for (ten seconds).
    const LETTERS: u64 = 12;
    let broker = poisoned(&["g"]).await;
    for number in 0..LETTERS {
        poison(&broker, &number.to_string(), &["g"]).await;
    }
    let mut body = json!({"rate": 1});
    let (mut calls, mut replayed, mut moved) = (0, 0, 0);
    let client = broker.admin();
    while replayed < LETTERS {
        let call = client.post("/topics/news/dlq/replay", &body);
        let clock = async {
            // The next one is due a second later, by the broker's clock.
            loop {
                wait::pause(Duration::from_millis(20)).await;
                broker.clock().advance(Duration::from_secs(4)).await;
                moved += 1;
            }
        };
        let answer =
            tokio::select! { answer = call => answer.expect(200), () = clock => unreachable!("it has no end") };
        calls += 1;
        replayed += answer["replayed"].as_u64().expect("a number");
        if replayed < LETTERS {
            assert!(answer["nextToken"].is_string(), "{answer}");
        }
        body["nextToken"] = answer["nextToken"].clone();
        assert!(calls < 50, "{answer}");
    }
    assert!(moved >= 1, "twelve at one a second take eleven seconds of the broker's clock");
    assert!(calls >= 2, "no call takes longer than ten");
    assert_eq!(broker.consume("news", "g").collect(LETTERS as usize).await.len(), LETTERS as usize);
    assert_eq!(broker.get("/topics/news/dlq").await.expect(200)["total"], 0);
}

#[tokio::test]
async fn a_replay_that_finds_its_topic_full_tells_how_far_it_came_and_goes_on_once_there_is_room() {
    const LETTERS: usize = 24;
    let broker = Broker::start().await;
    let small = json!({"name": "news", "type": "PubSub", "retentionBytes": 1 << 20});
    broker.post("/topics", &small).await.expect(201);
    subscribe(&broker, "news", "g", 0).await;
    let large = |name: String| format!("{name} {}", "x".repeat(16 << 10));
    for number in 0..LETTERS {
        poison(&broker, &large(number.to_string()), &["g"]).await;
    }
    let mut stored = 0;
    while broker.publish("news", large("filler".to_owned())).answer().await.status == 202 {
        stored += 1;
    }
    let fillers = broker.consume("news", "g").collect(stored).await;
    let left = async || broker.get("/topics/news/dlq?limit=1").await.expect(200)["total"].clone();
    let replay = async |body: Value| broker.post("/topics/news/dlq/replay", &body).await;

    replay(json!({})).await.expect_problem(429, "TOPIC_FULL");
    assert_eq!(left().await, LETTERS, "nothing was lost");
    // Room for some, and not for all.
    for filler in &fillers[..LETTERS / 2] {
        filler.ack().await;
    }
    let some = replay(json!({})).await.expect(200);
    let replayed = some["replayed"].as_u64().expect("a count") as usize;
    assert!((1..=LETTERS / 2).contains(&replayed), "{some}");
    assert_eq!((&some["matched"], &some["hasMore"]), (&json!(replayed), &json!(true)), "{some}");
    assert_eq!(left().await, LETTERS - replayed);
    let rest = json!({"nextToken": some["nextToken"]});
    replay(rest.clone()).await.expect_problem(429, "TOPIC_FULL");
    assert_eq!(left().await, LETTERS - replayed);

    for filler in &fillers[LETTERS / 2..] {
        filler.ack().await;
    }
    let others = replay(rest).await.expect(200);
    assert_eq!((&others["replayed"], &others["hasMore"]), (&json!(LETTERS - replayed), &json!(false)), "{others}");
    assert_eq!(left().await, 0);
    let again = broker.consume("news", "g").collect(LETTERS).await;
    let names: Vec<&str> = again.iter().filter_map(|delivery| delivery.payload().split(' ').next()).collect();
    assert_eq!(names, (0..LETTERS).map(|number| number.to_string()).collect::<Vec<_>>());
    broker.consume("news", "g").expect_nothing().await;
}

/// Of dead letters that kept no payload, one has its original in a partition that is damaged: those before it are told.
#[tokio::test]
async fn a_replay_that_cannot_read_on_tells_how_far_it_came() {
    const WELL: u64 = 5;
    let mut broker = Broker::start().await;
    let topic = json!({"name": "news", "type": "PubSub", "partitionCount": 2, "deadLetterPayload": "none"});
    broker.post("/topics", &topic).await.expect(201);
    subscribe(&broker, "news", "g", 0).await;
    // A key for each partition.
    let mut keys = [const { None }; 2];
    for number in 0.. {
        let key = format!("k{number}");
        let partition = broker.publish("news", 0).key(&key).await.partition.expect("it is stored");
        keys[partition as usize].get_or_insert(key);
        broker.consume("news", "g").collect(1).await[0].ack().await;
        if keys.iter().all(Option::is_some) {
            break;
        }
    }
    let [well, damaged] = keys.map(|key| key.expect("it was found"));
    for n in 1..=WELL {
        broker.publish("news", json!({ "n": n })).key(&well).await;
        broker.consume("news", "g").collect(1).await[0].nack().await;
    }
    broker.publish("news", json!({"n": "the last"})).key(&damaged).await;
    broker.consume("news", "g").collect(1).await[0].nack().await;
    assert!(broker.stop().await.success());
    damage(&broker, b"the last");
    broker.restart().await;

    let all = json!({"filter": "$.n"});
    let some = broker.post("/topics/news/dlq/replay", &all).await.expect(200);
    let counts = (&some["matched"], &some["replayed"], &some["hasMore"]);
    assert_eq!(counts, (&json!(WELL), &json!(WELL), &json!(true)), "{some}");
    let rest = json!({"filter": "$.n", "nextToken": some["nextToken"]});
    broker.post("/topics/news/dlq/replay", &rest).await.expect_problem(503, "STORE_UNAVAILABLE");
    assert_eq!(broker.get("/topics/news/dlq").await.expect(200)["total"], 1);
}

/// Changes a bit where a segment, and only one, has this.
fn damage(broker: &Broker, wanted: &[u8]) {
    let place = |path: PathBuf| {
        let bytes = std::fs::read(&path).expect("a file of ours");
        let at = bytes.windows(wanted.len()).position(|window| window == wanted)?;
        Some((path, bytes, at))
    };
    let segments =
        files_below(&broker.data_dir()).into_iter().filter(|path| path.extension().is_some_and(|it| it == "seg"));
    let mut found: Vec<_> = segments.filter_map(place).collect();
    let (path, mut bytes, at) = found.pop().expect("it is in a segment");
    assert!(found.is_empty(), "it is in another one too");
    bytes[at] ^= 1;
    std::fs::write(path, bytes).expect("a file of ours can be written");
}
