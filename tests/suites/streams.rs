//! Consuming as Server-Sent Events. Invariant: what is in flight on a stream is bounded by what its client asked for.

use sluice_tests::Broker;

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
