//! Asking over a topic and waiting for the reply. Invariant: a reply reaches the one who asked, and no other; a request that is
//! repeated is served once.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use sluice_tests::token::Claims;
use sluice_tests::{Answer, Broker, Client, wait};
use tokio::task::JoinSet;

async fn ask(client: &Client, body: Value, key: Option<&str>) -> Answer {
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(key.map(|key| ("idempotency-key", key)));
    client.send(Method::POST, "/messages/request?timeout=30", &headers, body.to_string()).await
}

fn question(payload: &Value) -> Value {
    json!({"topicName": "questions", "payload": payload})
}

/// Serves `count` requests: each reply holds what was asked.
async fn serve(client: Client, count: usize) {
    let mut served = 0;
    while served < count {
        served += serve_some(&client).await;
    }
}

async fn serve_some(client: &Client) -> usize {
    let deliveries = client.consume("questions", "").wait(20).await;
    for delivery in &deliveries {
        let to = delivery.message.reply_to.clone().expect("a request says where its reply is awaited");
        let id = delivery.message.correlation_id.clone().expect("and which one it is");
        let reply = json!({"topicName": to, "correlationId": id, "payload": format!("re: {}", delivery.payload())});
        client.post("/messages/publish", &reply).await.expect(202);
        delivery.ack().await;
    }
    deliveries.len()
}

async fn with_questions() -> Broker {
    let broker = Broker::start().await;
    broker.create_topic("questions", "Queue").await;
    broker
}

#[tokio::test]
async fn each_one_who_asks_gets_the_reply_to_what_it_asked() {
    let broker = with_questions().await;
    // Whoever serves needs no right but on the topic that it serves.
    let server = broker.client(&Claims::new("server", &["Consumer", "Producer"]).topics(&["questions"]));
    let served = tokio::spawn(serve(server.clone(), 40));
    let mut asking = JoinSet::new();
    for number in 0..40 {
        let client = broker.producer("questions");
        asking.spawn(async move { (number, ask(&client, question(&json!(number)), None).await.expect(200)) });
    }
    while let Some(asked) = asking.join_next().await {
        let (number, answer) = asked.expect("no panic");
        assert_eq!(answer["reply"]["payload"], format!("re: {number}"), "{answer}");
        assert_eq!(
            (&answer["request"]["status"], &answer["reply"]["topicName"]),
            (&json!("Pending"), &json!("sluice.replies"))
        );
    }
    served.await.expect("no panic");
    // What others are told is not theirs to see.
    server.get("/topics/sluice.replies/messages").await.expect_problem(403, "FORBIDDEN");
}

#[tokio::test]
async fn a_reply_that_does_not_come_is_told_and_its_request_expires() {
    let broker = with_questions().await;
    let (client, clock) = (broker.admin(), broker.clock().clone());
    let asking = tokio::spawn(async move { ask(&client, question(&json!(1)), None).await });
    wait::until("the request is there", async || {
        let metrics = broker.get("/topics/questions/metrics").await.expect(200);
        (metrics["publishedTotal"] == 1).then_some(())
    })
    .await;
    clock.advance(Duration::from_secs(31)).await;
    asking.await.expect("no panic").expect_problem(504, "REPLY_TIMEOUT");
    broker.consume("questions", "").expect_nothing().await;
}

#[tokio::test]
async fn a_repeat_waits_for_the_reply_to_the_first_and_gets_it_again() {
    let broker = with_questions().await;
    let asking: Vec<_> = (0..2)
        .map(|_| {
            let client = broker.admin();
            tokio::spawn(async move { ask(&client, question(&json!("once")), Some("k")).await })
        })
        .collect();
    serve(broker.admin(), 1).await;
    let mut statuses = Vec::new();
    for asked in asking {
        let answer = asked.await.expect("no panic").expect(200);
        assert_eq!(answer["reply"]["payload"], "re: once", "{answer}");
        statuses.push(answer["request"]["status"].as_str().expect("a text").to_owned());
    }
    statuses.sort();
    assert_eq!(statuses, ["Duplicate", "Pending"]);
    // Long after, and with nobody who serves.
    let again = ask(&broker.admin(), question(&json!("once")), Some("k")).await.expect(200);
    assert_eq!(again["reply"]["payload"], "re: once");
    ask(&broker.admin(), question(&json!("other")), Some("k")).await.expect_problem(409, "CONFLICT");
    broker.consume("questions", "").expect_nothing().await;
}

#[tokio::test]
async fn a_reply_may_be_awaited_on_a_topic_of_ones_own() {
    let broker = with_questions().await;
    let answers = json!({"name": "answers", "type": "PubSub", "partitionCount": 4});
    broker.post("/topics", &answers).await.expect(201);
    let with = |more: Value| {
        let mut body = question(&json!("q"));
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }
        body
    };
    let client = broker.admin();
    let asked = with(json!({"replyTo": "answers", "correlationId": "c-1"}));
    let asking = tokio::spawn(async move { ask(&client, asked, None).await });
    // Replies to others, before it and beside it.
    let delivery = broker.consume("questions", "").collect(1).await.remove(0);
    assert_eq!(delivery.message.correlation_id.as_deref(), Some("c-1"));
    for (id, payload) in [("c-0", "other"), ("c-1", "mine"), ("c-1", "too late")] {
        let reply = json!({"topicName": "answers", "correlationId": id, "payload": payload, "partitionKey": payload});
        broker.post("/messages/publish", &reply).await.expect(202);
    }
    let answer = asking.await.expect("no panic").expect(200);
    assert_eq!((&answer["reply"]["payload"], &answer["reply"]["topicName"]), (&json!("mine"), &json!("answers")));

    // On the topic that all share, nobody listens to a conversation whose name it can guess.
    ask(&broker.admin(), with(json!({"correlationId": "c-1"})), None).await.expect_problem(400, "VALIDATION_ERROR");
    let stranger = broker.producer("questions");
    ask(&stranger, with(json!({"replyTo": "answers"})), None).await.expect_problem(403, "FORBIDDEN");
    let admin = broker.admin();
    ask(&admin, with(json!({"replyTo": "nowhere"})), None).await.expect_problem(404, "NOT_FOUND");
    ask(&admin, with(json!({"replyTo": "no topic"})), None).await.expect_problem(400, "VALIDATION_ERROR");
    ask(&admin, with(json!({"delay": "PT40S"})), None).await.expect_problem(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn a_request_that_a_stage_takes_out_of_its_way_has_no_reply() {
    let broker = with_questions().await;
    let stage = json!([{"name": "keep", "plugin": "filter", "version": "latest", "config": {"headerMatches": {"keep": "yes"}}}]);
    broker.put_pipeline("questions", stage).await;
    for _ in 0..2 {
        let answer = ask(&broker.admin(), question(&json!(1)), Some("k")).await.expect(200);
        assert!(answer["reply"].is_null() && answer["request"]["stage"] == "keep", "{answer}");
    }
}

#[tokio::test]
async fn a_broker_that_stops_keeps_nobody_waiting() {
    let mut broker = with_questions().await;
    let client = broker.admin();
    let asking = tokio::spawn(async move { ask(&client, question(&json!(1)), Some("k")).await });
    let delivery = broker.consume("questions", "").collect(1).await.remove(0);
    broker.ask_to_stop();
    asking.await.expect("no panic").expect_problem(503, "OUTCOME_UNKNOWN");
    broker.stopped().await;
    broker.restart().await;
    let id = delivery.message.correlation_id.clone().expect("a request has one");
    let reply = json!({"topicName": "sluice.replies", "correlationId": id, "payload": "at last"});
    broker.post("/messages/publish", &reply).await.expect(202);
    let again = ask(&broker.admin(), question(&json!(1)), Some("k")).await.expect(200);
    assert_eq!(again["reply"]["payload"], "at last", "{again}");
}

#[tokio::test]
async fn who_waits_on_a_topic_that_is_deleted_is_told_at_once() {
    let broker = with_questions().await;
    broker.create_topic("answers", "PubSub").await;
    let client = broker.admin();
    let mut question = question(&json!(1));
    question["replyTo"] = json!("answers");
    let asking: Vec<_> = (0..2)
        .map(|_| {
            let (client, question) = (client.clone(), question.clone());
            tokio::spawn(async move { ask(&client, question, None).await })
        })
        .collect();
    assert_eq!(broker.consume("questions", "").collect(2).await.len(), 2, "they wait");
    broker.delete("/topics/answers").await.expect(204);
    for asked in asking {
        // At its deadline it would be 504.
        asked.await.expect("no panic").expect_problem(503, "OUTCOME_UNKNOWN");
    }
}

#[tokio::test]
async fn the_brokers_own_topics_are_nobody_elses() {
    let broker = Broker::start().await;
    let topic = json!({"name": "sluice.mine", "type": "Queue"});
    broker.post("/topics", &topic).await.expect_problem(400, "VALIDATION_ERROR");
    broker.delete("/topics/sluice.events").await.expect_problem(409, "CONFLICT");
    let told = json!({"topicName": "sluice.events", "payload": "lies"});
    broker.post("/messages/publish", &told).await.expect_problem(400, "VALIDATION_ERROR");
    assert_eq!(broker.get("/topics").await.expect(200)["total"], 0);
    let longer = json!({"retentionPeriod": "P30D"});
    broker.put("/topics/sluice.events", &longer).await.expect(200);
}
