//! Consumers that fetch, and those with an event stream. Invariant: what arrives is in the history before it is settled,
//! and a settlement before it is sent and after it is answered; when a lease began follows from its deadline, which is the
//! broker's word. Some consumers are slow: they settle when their lease may long be over. Never judges.

use std::collections::VecDeque;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use sluice_tests::consume::Consume;
use sluice_tests::history::{History, Moment, Promise, Times};
use sluice_tests::{Broker, Delivery, TestClock, wait};

use super::{LEASE, Round, View};

/// Leases that a slow consumer sits on; fewer than a stream may have in flight.
const LATE_MAX: usize = 4;
const IN_FLIGHT: u32 = 8;
/// A consumer looks up from its stream this often.
const LOOK_UP: Duration = Duration::from_millis(500);
/// Until one tries to reach a broker again.
const AGAIN: Duration = Duration::from_millis(20);

pub(super) async fn fetch(round: &Round, topic: &str, view: &View, mut random: StdRng) {
    let mut late = VecDeque::new();
    while round.running() {
        let limit = random.random_range(1..10);
        let consume = round.client.consume(topic, view.how.group()).limit(limit).wait(1);
        let began = view.history.consume_began();
        let Some(deliveries) = deliveries(&consume).await else {
            view.history.consume_lost(limit);
            continue;
        };
        for delivery in &deliveries {
            note(&view.history, began, delivery);
        }
        for delivery in deliveries {
            settle(round, &view.history, delivery, &mut late, &mut random).await;
        }
    }
    round.held.lock().extend(late);
}

pub(super) async fn stream(round: &Round, topic: &str, view: &View, mut random: StdRng) {
    let (mut late, mut last) = (VecDeque::new(), None);
    while round.running() {
        let began = view.history.consume_began();
        let opened = round.client.reach_stream(topic, view.how.group(), IN_FLIGHT, last.as_deref()).await;
        let Some(mut stream) = opened else {
            wait::pause(AGAIN).await;
            continue;
        };
        while round.running() {
            let delivery = match tokio::time::timeout(LOOK_UP, stream.try_next()).await {
                Ok(Some(delivery)) => delivery,
                Ok(None) => break,
                Err(_) => continue,
            };
            note(&view.history, began, &delivery);
            settle(round, &view.history, delivery, &mut late, &mut random).await;
            // Hangs up now and then; what was under way comes again by the next stream.
            if random.random_range(0..40) == 0 {
                break;
            }
        }
        last = Some(stream.last_event_id().to_owned()).filter(|id| !id.is_empty());
    }
    round.held.lock().extend(late);
}

/// None if there was no answer.
async fn deliveries(consume: &Consume) -> Option<Vec<Delivery>> {
    let answer = consume.try_answer().await.ok()?;
    Some(if answer.status == 200 { consume.deliveries(&answer) } else { Vec::new() })
}

/// A delivery has arrived.
pub(super) fn note(history: &History, began: Moment, delivery: &Delivery) {
    let until = delivery.deadline_ms();
    let granted = until - i64::try_from(LEASE.as_millis()).expect("some minutes");
    let times = Times { from_ms: granted, to_ms: granted, until_ms: Some(until) };
    history.delivered_at(delivery.payload(), delivery.id(), began, times);
}

async fn settle(
    round: &Round,
    history: &History,
    delivery: Delivery,
    late: &mut VecDeque<Delivery>,
    random: &mut StdRng,
) {
    if history.promise() == Promise::AtMostOnce {
        return;
    }
    match random.random_range(0..10) {
        0 => late.push_back(delivery),
        1 => {
            history.nack_asked(delivery.payload());
            // Refused or unanswered: then the lease ends by itself.
            drop(delivery.try_settle("nack").await);
        }
        _ => ack(history, &round.clock, &delivery).await,
    }
    if late.len() > LATE_MAX
        && let Some(first) = late.pop_front()
    {
        ack(history, &round.clock, &first).await;
    }
}

/// Acks what has to be acked: at most once is settled when it is handed out.
pub(super) async fn ack(history: &History, clock: &TestClock, delivery: &Delivery) {
    if history.promise() == Promise::AtMostOnce {
        return;
    }
    history.ack_asked_until(delivery.payload(), delivery.deadline_ms());
    if delivery.try_settle("ack").await.is_ok_and(|answer| answer.status == 200) {
        history.ack_confirmed_by(delivery.payload(), clock.now_ms());
    }
}

/// Acks all that waits for the group now; whether there was any.
pub(super) async fn take_all(broker: &Broker, topic: &str, view: &View) -> bool {
    let consume = broker.consume(topic, view.how.group()).limit(100);
    let mut any = false;
    loop {
        let began = view.history.consume_began();
        let deliveries = deliveries(&consume).await.expect("nobody kills the broker now");
        if deliveries.is_empty() {
            return any;
        }
        any = true;
        for delivery in &deliveries {
            note(&view.history, began, delivery);
        }
        for delivery in &deliveries {
            ack(&view.history, broker.clock(), delivery).await;
        }
    }
}
