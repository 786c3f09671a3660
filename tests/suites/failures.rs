//! What is told of deliveries that failed, while they are tried again and when they are dead letters. Invariant: each attempt
//! is told with its time and its word, from the message, from its dead letter, and after both were restarted.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::Broker;

async fn jobs(broker: &Broker, settings: Value) {
    let mut topic = json!({"name": "jobs", "type": "Queue"});
    topic.as_object_mut().expect("an object").extend(settings.as_object().expect("an object").clone());
    broker.post("/topics", &topic).await.expect(201);
    let body = json!({"topicName": "jobs", "consumerGroup": "g", "type": "Pull", "maxRetries": 2});
    broker.post("/subscriptions", &body).await.expect(201);
}

async fn letters(broker: &Broker) -> Vec<Value> {
    let listed = broker.get("/topics/jobs/dlq").await.expect(200);
    listed["deadLetters"].as_array().expect("a list").clone()
}

/// Fails the one message there is, with a reason of its own each time.
async fn fail(broker: &Broker, reasons: &[&str]) {
    for reason in reasons {
        let delivery = broker.consume("jobs", "g").collect(1).await.remove(0);
        delivery.settle("nack", json!({"reason": reason, "delay": "PT1M"})).await.expect(200);
        broker.clock().advance(Duration::from_secs(61)).await;
    }
}

fn attempts(failures: &Value) -> Vec<(u64, &str, &str)> {
    let told = |failed: &'_ Value| failed["attempt"].as_u64().expect("a number");
    let text = |failed: &'_ Value, field: &str| failed[field].as_str().map(str::len);
    assert!(
        failures.as_array().is_some_and(|all| all.iter().all(|failed| text(failed, "at") == Some(24))),
        "{failures}"
    );
    let all = failures.as_array().expect("a list").iter();
    all.map(|failed| {
        (told(failed), failed["reason"].as_str().unwrap_or_default(), failed["detail"].as_str().unwrap_or_default())
    })
    .collect()
}

#[tokio::test]
async fn a_messages_failures_are_told_attempt_by_attempt() {
    let mut broker = Broker::start().await;
    jobs(&broker, json!({})).await;
    let published = broker.publish("jobs", "work").await;
    let page = format!("/messages/{}", published.message_id);
    fail(&broker, &["no stock"]).await;
    // A lease that ends by itself, with its broker or at its deadline, leaves no word.
    broker.consume("jobs", "g").ack_timeout(1).collect(1).await;
    broker.stop().await;
    broker.restart().await;
    let group = broker.get(&page).await.expect(200)["groups"][0].clone();
    assert_eq!(attempts(&group["failures"]), [(1, "NACK", "no stock")], "{group}");

    fail(&broker, &["no luck"]).await;
    assert_eq!(broker.get(&page).await.expect(200)["groups"][0]["failures"], json!([]), "it is done with");
    for restarted in [false, true] {
        if restarted {
            broker.crash().await;
        }
        let letter = letters(&broker).await.remove(0);
        let facts = &letter["deadLetter"];
        assert_eq!(attempts(&facts["failures"]), [(1, "NACK", ""), (3, "NACK", "no luck")], "{letter}");
        assert_eq!((&facts["attempts"], &facts["detail"]), (&json!(3), &json!("no luck")), "{letter}");
    }
}

#[tokio::test]
async fn a_replay_names_the_dead_letter_that_it_was_and_dies_with_facts_of_its_own() {
    let broker = Broker::start().await;
    jobs(&broker, json!({})).await;
    broker.publish("jobs", "poison").await;
    let mut before: Option<(String, String)> = None;
    for round in 0..3 {
        fail(&broker, &["a", "b", "c"]).await;
        broker.consume("jobs", "g").expect_nothing().await;
        let all = letters(&broker).await;
        assert_eq!(all.len(), 1, "round {round}: it never loops by itself: {all:?}");
        let (letter, facts) = (&all[0], &all[0]["deadLetter"]);
        assert_eq!(attempts(&facts["failures"]).len(), 3, "{letter}");
        if let Some((replayed, replay_of)) = &before {
            assert_eq!(facts["originalMessageId"].as_str(), Some(replayed.as_str()), "{letter}");
            assert_eq!(letter["replayOf"].as_str(), Some(replay_of.as_str()), "{letter}");
        }
        let id = letter["messageId"].as_str().expect("an id").to_owned();
        let answer = broker.post(&format!("/topics/jobs/dlq/{id}/replay"), &json!({})).await.expect(200);
        let replayed = answer["messageId"].as_str().expect("an id").to_owned();
        let page = broker.get(&format!("/messages/{replayed}")).await.expect(200);
        assert_eq!(page["replayOf"].as_str(), Some(id.as_str()), "{page}");
        before = Some((replayed, id));
    }
}

#[tokio::test]
async fn what_expires_undelivered_is_counted_or_kept_aside_as_the_topic_says() {
    for (kept, expected) in [(false, 0), (true, 1)] {
        let broker = Broker::start().await;
        jobs(&broker, json!({"deadLetterExpired": kept})).await;
        let late = broker.publish("jobs", "late").field("ttl", "PT5S").await;
        broker.publish("jobs", "in time").await;
        broker.clock().advance(Duration::from_secs(6)).await;
        let delivery = broker.consume("jobs", "g").collect(1).await.remove(0);
        assert_eq!(delivery.payload(), "in time");
        delivery.ack().await;
        broker.clock().advance(Duration::from_secs(1)).await;
        let all = letters(&broker).await;
        assert_eq!(all.len(), expected, "{all:?}");
        for letter in &all {
            let facts = &letter["deadLetter"];
            assert_eq!((&facts["reason"], &facts["attempts"]), (&json!("EXPIRED"), &json!(0)), "{letter}");
            assert_eq!(facts["originalMessageId"].as_str(), Some(late.message_id.as_str()), "{letter}");
            let id = letter["messageId"].as_str().expect("an id");
            broker.post(&format!("/topics/jobs/dlq/{id}/replay"), &json!({})).await.expect(200);
            assert_eq!(broker.consume("jobs", "g").collect(1).await[0].payload(), "late", "a replay does not expire");
        }
    }
}

#[tokio::test]
async fn a_repeat_of_what_was_turned_away_hears_the_same_word() {
    let broker = Broker::start().await;
    jobs(&broker, json!({})).await;
    let schema = json!({"properties": {"n": {"type": "integer"}}, "required": ["n"]});
    let stage = json!({"name": "check", "plugin": "json-schema", "version": "latest", "config": {"schema": schema},
        "onReject": "deadLetter", "timeoutMs": 1000});
    broker.put_pipeline("jobs", json!([stage])).await;
    let publish = async || {
        let answer = broker.publish("jobs", json!({"n": "one"})).idempotency_key("k").answer().await;
        answer.expect(202)
    };
    let (first, again) = (publish().await, publish().await);
    assert_eq!((&first["status"], &again["status"]), (&json!("DeadLettered"), &json!("Duplicate")), "{again}");
    for field in ["messageId", "stage", "reason"] {
        assert!(first[field].is_string() && first[field] == again[field], "{field}: {first} {again}");
    }
    let letter = letters(&broker).await.remove(0);
    let facts = &letter["deadLetter"];
    assert_eq!((&facts["stage"], &facts["plugin"]), (&json!("check"), &json!("json-schema")), "{letter}");
    assert!(facts["pluginVersion"].is_string(), "{letter}");
    assert_eq!(facts["failures"], json!([]), "nothing was delivered: {letter}");
}
