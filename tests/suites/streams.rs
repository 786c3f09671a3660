//! Consuming as Server-Sent Events. Invariant: what is in flight on a stream is bounded by what its client asked for.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::{Broker, Delivery, wait};

/// How many of the queue's messages are held.
async fn held(broker: &Broker) -> Value {
    broker.get("/topics/jobs/metrics").await.expect(200)["groups"][0]["inFlight"].clone()
}

async fn jobs(count: usize) -> Broker {
    let broker = Broker::start().await;
    broker.create_topic("jobs", "Queue").await;
    for n in 0..count {
        broker.publish("jobs", format!("{n}")).await;
    }
    broker
}

#[tokio::test]
async fn a_stream_hands_out_as_many_as_may_be_in_flight_and_more_with_each_ack() {
    let broker = Broker::start().await;
    broker.create_topic("jobs", "Queue").await;
    for n in 0..3 {
        broker.publish("jobs", format!("{n}")).await;
    }
    let mut stream = broker.stream("jobs", "g", 2).await;
    let (first, second) = (stream.next().await, stream.next().await);
    assert_eq!((first.payload(), second.payload()), ("0", "1"));
    // The third is not leased to the stream: anybody else can have it.
    let other = broker.consume("jobs", "g").await;
    assert_eq!(other.iter().map(|delivery| delivery.payload()).collect::<Vec<_>>(), ["2"]);
    first.ack().await;
    broker.publish("jobs", "3").await;
    assert_eq!(stream.next().await.payload(), "3");
    second.ack().await;
}

#[tokio::test]
async fn a_stream_ends_when_the_broker_stops() {
    let mut broker = Broker::start().await;
    broker.create_topic("jobs", "Queue").await;
    broker.publish("jobs", "work").await;
    let mut stream = broker.stream("jobs", "g", 10).await;
    stream.next().await.ack().await;
    broker.ask_to_stop();
    assert!(stream.ends().await);
    assert!(broker.stopped().await.success());
}

#[tokio::test]
async fn a_stream_takes_no_more_than_it_may_hold_however_its_leases_end() {
    let broker = jobs(9).await;
    let mut stream = broker.stream("jobs", "g", 3).await;
    let mut holds: Vec<Delivery> = Vec::new();
    for _ in 0..3 {
        holds.push(stream.next().await);
    }
    assert_eq!(held(&broker).await, 3);
    // By a nack, in a batch, and by itself: each makes room for one.
    holds[0].nack_for("PT1H").await;
    assert_eq!(stream.next().await.payload(), "3");
    let acks = json!({"acks": [{"receipt": holds[1].receipt()}]});
    broker.post("/messages/ack/batch", &acks).await.expect(200);
    let fourth = stream.next().await;
    assert_eq!((fourth.payload(), held(&broker).await), ("4", json!(3)));
    fourth.extend(3600).await;
    broker.clock().advance(Duration::from_secs(31)).await;
    let mut next = [stream.next().await, stream.next().await].map(|delivery| delivery.payload().to_owned());
    next.sort_unstable();
    assert_eq!(next, ["2", "3"], "what was held too long comes again, what was extended does not");
    assert_eq!(held(&broker).await, 3);
}

#[tokio::test]
async fn a_stream_that_is_resumed_brings_what_got_lost_at_once_and_nothing_that_arrived() {
    let broker = jobs(4).await;
    let mut stream = broker.stream("jobs", "g", 3).await;
    let arrived = stream.next().await;
    let last = stream.last_event_id().to_owned();
    // Two more were granted, and are on their way when the connection breaks.
    wait::until("three are held", async || (held(&broker).await == 3).then_some(())).await;
    drop(stream);
    // The broker knows that the stream is gone when it can't write to it.
    let mut resumed = wait::until("the end of the first stream is seen", async || {
        let mut resumed = broker.resume_stream("jobs", "g", 3, &last).await;
        let first = resumed.next().await;
        (first.payload() == "1").then_some((resumed, first))
    })
    .await;
    assert_eq!(resumed.1.message.delivery_attempt, 1, "what did not arrive was no attempt");
    let second = resumed.0.next().await;
    assert_eq!((second.payload(), second.message.delivery_attempt), ("2", 1));
    // What arrived is still held by who got it.
    for delivery in [arrived, resumed.1, second] {
        delivery.ack().await;
    }
    // One of the streams that came too early may have it.
    broker.clock().advance(Duration::from_secs(31)).await;
    assert_eq!(resumed.0.next().await.payload(), "3");
}

#[tokio::test]
async fn a_stream_that_is_opened_anew_gets_what_was_not_settled_when_its_leases_have_ended() {
    let broker = jobs(3).await;
    let mut stream = broker.stream("jobs", "g", 2).await;
    let (first, second) = (stream.next().await, stream.next().await);
    drop(stream);
    let mut again = broker.stream("jobs", "g", 2).await;
    let third = again.next().await;
    assert_eq!(third.payload(), "2", "what is held is not given to another, not even to its holder");
    third.ack().await;
    first.ack().await;
    broker.clock().advance(Duration::from_secs(31)).await;
    let redelivered = again.next().await;
    assert_eq!((redelivered.payload(), redelivered.message.delivery_attempt), ("1", 2));
    second.try_ack().await.expect_problem(410, "LEASE_EXPIRED");
    redelivered.ack().await;
}

#[tokio::test]
async fn an_id_that_is_of_no_event_resumes_nothing() {
    let broker = jobs(1).await;
    for wrong in ["", "nonsense", "0", "01a2226e-e522-7772-8000-0340fd28623e"] {
        let headers = [("last-event-id", wrong)];
        let answer = broker.send(http::Method::GET, "/messages/stream/jobs", &headers, "").await;
        let problem = answer.expect_problem(400, "VALIDATION_ERROR");
        assert_eq!(problem["errors"][0]["pointer"], "/Last-Event-ID", "{problem}");
    }
    assert_eq!(held(&broker).await, 0);
}
