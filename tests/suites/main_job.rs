//! The main job on real events: each webhook body that GitHub sends is checked by a schema, redacted, stored, and handed
//! out alike by pull and by webhook. Invariant: what is expected comes from the events' own file and two independent
//! validators, not from the broker.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Value, json};
use sluice_tests::broker::files_below;
use sluice_tests::consume::Received;
use sluice_tests::events::{self, Event};
use sluice_tests::{Broker, Receiver};

const TOPIC: &str = "github.events";

/// What must not be kept, and how it is taken out.
const RULES: [(&str, &str); 6] = [
    ("/pull_request/merge_commit_sha", "mask"),
    ("/discussion/node_id", "hash"),
    ("/repository/pushed_at", "drop"),
    ("/release/upload_url", "drop"),
    ("/pull_request/head/label", "mask"),
    ("/installation/node_id", "hash"),
];

#[tokio::test]
async fn real_events_are_checked_redacted_stored_and_delivered_alike() {
    let events = events::github();
    let accepted: Vec<&Event> = events.iter().filter(|event| event.valid).collect();
    assert_eq!((events.len(), accepted.len()), (244, 204));
    let broker = Broker::start().await;
    let receiver = Receiver::start().await;
    let secret = set_up(&broker, &receiver).await;

    publish_all(&broker, &events).await;

    let pulled: Vec<Received> = {
        let deliveries = broker.consume(TOPIC, "pull").limit(1000).drain(accepted.len()).await;
        deliveries.into_iter().map(|delivery| delivery.message).collect()
    };
    broker.consume(TOPIC, "pull").expect_nothing().await;
    let requests = receiver.received(accepted.len()).await;
    assert_eq!(requests.len(), accepted.len(), "each message is posted once");
    for request in &requests {
        request.verify(&secret);
    }
    let pushed: Vec<Received> = requests.iter().map(|request| request.message()).collect();

    assert_same_bytes(&pulled, &pushed);
    for received in [&pulled, &pushed] {
        assert_in_order_per_key(received);
    }
    assert_redacted(&accepted, &pulled);
    assert_dead_letters(&broker, &events).await;
    assert_nowhere_on_disk(&broker, &events);
}

async fn set_up(broker: &Broker, receiver: &Receiver) -> String {
    let topic = json!({"name": TOPIC, "type": "PubSub", "partitionCount": 4});
    broker.post("/topics", &topic).await.expect(201);
    let rules: Vec<Value> =
        RULES.iter().map(|(pointer, action)| json!({"pointer": pointer, "action": action})).collect();
    let stages = json!([
        // A 27 KB body against 344 definitions takes its time on a busy machine.
        {"name": "check", "plugin": "json-schema", "version": "latest", "config": {"schema": events::schema()},
         "onReject": "deadLetter", "timeoutMs": 2000, "memoryMb": 64},
        {"name": "redact", "plugin": "redact", "version": "latest", "config": {"rules": rules}},
    ]);
    broker.put_pipeline(TOPIC, stages).await;
    let pull = json!({"topicName": TOPIC, "consumerGroup": "pull", "type": "Pull", "ordered": true});
    broker.post("/subscriptions", &pull).await.expect(201);
    let push = broker.subscribe_push(TOPIC, "push", &receiver.url(), json!({"ordered": true})).await;
    push["secret"].as_str().expect("a push subscription has a secret").to_owned()
}

/// Publishes every event and holds the broker's verdict against the file's.
async fn publish_all(broker: &Broker, events: &[Event]) {
    for (number, event) in events.iter().enumerate() {
        // The exact text of the payload, as a string.
        let publish = broker.publish(TOPIC, event.payload.get()).key(&event.event);
        let published = publish.header("number", &number.to_string()).await;
        let expected = if event.valid { "Pending" } else { "DeadLettered" };
        assert_eq!(published.status, expected, "event {number} ({} {:?})", event.event, event.action);
    }
}

fn by_id(received: &[Received]) -> BTreeMap<&str, &Received> {
    received.iter().map(|message| (message.message_id.as_str(), message)).collect()
}

fn assert_same_bytes(pulled: &[Received], pushed: &[Received]) {
    let (pulled, pushed) = (by_id(pulled), by_id(pushed));
    assert_eq!(pulled.keys().collect::<Vec<_>>(), pushed.keys().collect::<Vec<_>>());
    for (id, pull) in &pulled {
        let push = pushed[id];
        assert_eq!(pull.payload, push.payload, "{id}");
        assert_eq!((&pull.headers, pull.partition, pull.offset), (&push.headers, push.partition, push.offset), "{id}");
    }
}

fn number(message: &Received) -> usize {
    message.headers["number"].parse().expect("the test's own header")
}

fn assert_in_order_per_key(received: &[Received]) {
    let events = events::github();
    let mut last: BTreeMap<&str, usize> = BTreeMap::new();
    for message in received {
        let key = events[number(message)].event.as_str();
        if let Some(before) = last.insert(key, number(message)) {
            assert!(before < number(message), "{key}: {before} came before {}", number(message));
        }
    }
}

/// At each rule's pointer the value is gone or another, and everything else is as it was.
fn assert_redacted(accepted: &[&Event], received: &[Received]) {
    let numbers: BTreeSet<usize> = received.iter().map(number).collect();
    assert_eq!(numbers.len(), accepted.len());
    let events = events::github();
    for message in received {
        let mut original: Value = serde_json::from_str(events[number(message)].payload.get()).expect("JSON");
        let mut redacted: Value = serde_json::from_str(message.payload.as_deref().expect("text")).expect("JSON");
        for (pointer, action) in RULES {
            let (was, is) = (take(&mut original, pointer), take(&mut redacted, pointer));
            match was {
                Some(was) if !was.is_null() => {
                    assert_ne!(Some(was), is, "{pointer} of {}", message.message_id);
                    assert_eq!(is.is_none(), action == "drop", "{pointer} of {}", message.message_id);
                }
                _ => {}
            }
        }
        assert_eq!(original, redacted, "only what the rules name has changed");
    }
}

/// Takes the value at the pointer out of the document.
fn take(document: &mut Value, pointer: &str) -> Option<Value> {
    let (parent, member) = pointer.rsplit_once('/')?;
    document.pointer_mut(parent)?.as_object_mut()?.shift_remove(member)
}

async fn assert_dead_letters(broker: &Broker, events: &[Event]) {
    let rejected = events.iter().filter(|event| !event.valid).count();
    let listed = broker.get(&format!("/topics/{TOPIC}/dlq?limit=100")).await.expect(200);
    let letters = listed["deadLetters"].as_array().unwrap_or_else(|| panic!("a list of dead letters: {listed}"));
    assert_eq!(letters.len(), rejected, "{listed}");
    for letter in letters {
        assert_eq!(letter["deadLetter"]["stage"], "check", "{letter}");
    }
}

/// The redacted values that stand nowhere else in any event are in no file of the broker; what was not redacted is, so
/// that looking for bytes is known to find some.
fn assert_nowhere_on_disk(broker: &Broker, events: &[Event]) {
    let corpus: String = events.iter().map(|event| event.payload.get()).collect();
    let mut redacted: BTreeMap<String, usize> = BTreeMap::new();
    for event in events.iter().filter(|event| event.valid) {
        for (pointer, _) in RULES {
            if let Some(value) = event.text_at(pointer).filter(|value| value.len() >= 8) {
                *redacted.entry(value).or_default() += 1;
            }
        }
    }
    let unique: Vec<&String> = redacted
        .iter()
        .filter(|(value, count)| corpus.matches(value.as_str()).count() == **count)
        .map(|(value, _)| value)
        .collect();
    assert!(unique.len() >= 15, "too few values to look for: {unique:?}");
    // What is no text becomes replacement characters, which are in no value.
    let text_of = |path: &PathBuf| String::from_utf8_lossy(&std::fs::read(path).expect("readable")).into_owned();
    let files: Vec<String> = files_below(&broker.data_dir()).iter().map(text_of).collect();
    let on_disk = |value: &str| files.iter().any(|text| text.contains(value));
    assert!(on_disk("Codertocat/Hello-World"), "what was not redacted is found");
    for value in unique {
        assert!(!on_disk(value), "'{value}' was redacted and is on disk");
        assert!(!broker.log().contains(value.as_str()), "'{value}' was redacted and is in the log");
    }
}
