//! What the broker knows of its topics and subscriptions while they change is what it reads when it starts. Invariant: seen
//! through the lists that clients see.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use sluice_tests::Broker;

const CHANGES: usize = 150;

#[tokio::test]
async fn what_is_listed_after_many_changes_is_what_a_restart_reads() {
    let mut broker = Broker::start().await;
    let mut random = StdRng::seed_from_u64(1);
    let mut made = BTreeSet::new();
    for _ in 0..CHANGES {
        made.extend(change(&broker, &mut random).await);
    }
    assert_eq!(made.len(), 8, "each kind of change was made: {made:?}");
    let (topics, subscriptions) = listed(&broker).await;
    assert!(topics.len() > 2 && subscriptions.len() > 5, "{} and {}", topics.len(), subscriptions.len());
    broker.crash().await;
    assert_eq!(listed(&broker).await, (topics, subscriptions));
}

async fn listed(broker: &Broker) -> (Vec<Value>, Vec<Value>) {
    let all = async |noun: &str| {
        let answer = broker.get(&format!("/{noun}?limit=100")).await.expect(200);
        answer[noun].as_array().expect("a list").clone()
    };
    (all("topics").await, all("subscriptions").await)
}

/// One of the changes that there are, to something that may be there; which it was, unless it was refused.
async fn change(broker: &Broker, random: &mut StdRng) -> Option<&'static str> {
    let topic = format!("topic-{}", random.random_range(0..8));
    let group = format!("group-{}", random.random_range(0..8));
    let path = format!("/subscriptions?topicName={topic}&consumerGroup={group}");
    let found = broker.get(&path).await;
    let id = (found.status == 200)
        .then(|| found.json()["subscriptions"][0]["subscriptionId"].as_str().map(|id| format!("/subscriptions/{id}")));
    let (kind, answer) = match (random.random_range(0..12), id.flatten()) {
        (0..2, _) => ("create topic", broker.post("/topics", &json!({"name": topic, "type": "PubSub"})).await),
        (2, _) => ("delete topic", broker.delete(&format!("/topics/{topic}?force=true")).await),
        (3, _) => {
            let described = format!("number {}", random.random_range(0..100));
            ("change topic", broker.put(&format!("/topics/{topic}"), &json!({"description": described})).await)
        }
        (4, Some(id)) => ("delete subscription", broker.delete(&id).await),
        (5, Some(id)) => {
            let changed = json!({"maxRetries": random.random_range(0..100)});
            ("change subscription", broker.put(&id, &changed).await)
        }
        (6, Some(id)) => ("pause", broker.post(&format!("{id}/pause"), &json!({})).await),
        (7, Some(id)) => ("resume", broker.post(&format!("{id}/resume"), &json!({})).await),
        _ => {
            let body = json!({"topicName": topic, "consumerGroup": group, "type": "Pull"});
            ("create subscription", broker.post("/subscriptions", &body).await)
        }
    };
    assert!(answer.status < 500, "{answer}");
    (answer.status < 300).then_some(kind)
}
