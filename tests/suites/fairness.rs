//! Who of a group's consumers gets the next message. Invariant: who has waited longest, so none starves however many wait.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_tests::{Broker, Client, wait};
use tokio::task::JoinSet;

const CONSUMERS: usize = 8;
const ROUNDS: usize = 5;

/// Who got which message, in the order of the messages.
type Book = Arc<Mutex<Vec<usize>>>;

/// Polls for one message after the other, for as long as the test runs.
async fn poll(client: Client, number: usize, book: Book) {
    loop {
        for delivery in client.consume("jobs", "g").limit(1).wait(30).await {
            delivery.ack().await;
            book.lock().push(number);
        }
    }
}

/// Waits until so many polls wait, besides the request that asks.
async fn polls_wait(broker: &Broker, count: usize) {
    wait::until(&format!("{count} polls wait"), async || {
        let under_way = broker.metric("sluice_http_requests_in_flight").await?;
        (under_way >= (count + 1) as f64).then_some(())
    })
    .await;
}

#[tokio::test]
async fn consumers_of_a_group_that_wait_are_served_in_turn() {
    let broker = Broker::start().await;
    broker.create_topic("jobs", "Queue").await;
    let book = Book::default();
    let mut polls = JoinSet::new();
    for number in 0..CONSUMERS {
        polls.spawn(poll(broker.admin(), number, Arc::clone(&book)));
    }
    for n in 1..=CONSUMERS * ROUNDS {
        polls_wait(&broker, CONSUMERS).await;
        broker.publish("jobs", format!("{n}")).await;
        wait::until("somebody gets it", async || (book.lock().len() == n).then_some(())).await;
    }
    let book = book.lock().clone();
    let mut counts: HashMap<usize, usize> = HashMap::new();
    for consumer in &book {
        *counts.entry(*consumer).or_default() += 1;
    }
    assert_eq!(counts.len(), CONSUMERS, "each got something: {book:?}");
    assert!(counts.values().all(|count| *count == ROUNDS), "each got as much as the others: {book:?}");
    // More than that: the order of the first round is the order of all.
    assert!(book.chunks(CONSUMERS).all(|round| *round == book[..CONSUMERS]), "{book:?}");
}

#[tokio::test]
async fn who_gives_up_waiting_is_passed_over() {
    let broker = Broker::start().await;
    broker.create_topic("jobs", "Queue").await;
    let first = tokio::spawn(poll(broker.admin(), 0, Book::default()));
    polls_wait(&broker, 1).await;
    let book = Book::default();
    let second = tokio::spawn(poll(broker.admin(), 1, Arc::clone(&book)));
    polls_wait(&broker, 2).await;
    // Its connection ends, which the broker sees.
    first.abort();
    wait::until("one poll waits", async || {
        let under_way = broker.metric("sluice_http_requests_in_flight").await?;
        (under_way <= 2.0).then_some(())
    })
    .await;
    broker.publish("jobs", "work").await;
    wait::until("the second gets it", async || (*book.lock() == [1]).then_some(())).await;
    second.abort();
}

#[tokio::test]
async fn many_messages_at_once_wake_all_who_wait() {
    let broker = Broker::start().await;
    broker.create_topic("jobs", "Queue").await;
    let mut polls = JoinSet::new();
    for _ in 0..CONSUMERS {
        let client = broker.admin();
        polls.spawn(async move { client.consume("jobs", "g").limit(1).wait(30).await });
    }
    polls_wait(&broker, CONSUMERS).await;
    let messages: Vec<_> = (0..CONSUMERS).map(|n| broker.publish("jobs", format!("{n}")).into_body()).collect();
    broker.post("/messages/publish/batch", &serde_json::json!({ "messages": messages })).await.expect(200);
    let mut got: Vec<String> = Vec::new();
    for deliveries in polls.join_all().await {
        got.extend(deliveries.iter().map(|delivery| delivery.payload().to_owned()));
    }
    got.sort_unstable();
    assert_eq!(got, (0..CONSUMERS).map(|n| n.to_string()).collect::<Vec<_>>());
}
