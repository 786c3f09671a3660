//! The operator of a round: stops and continues the process, makes its clock jump, sets it back, asks what time it is, and
//! looks up what became of messages. Invariant: what it is told is in the histories. Never consumes.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use rand::RngExt as _;
use rand::rngs::StdRng;
use sluice_tests::broker::signal;
use sluice_tests::{Client, TestClock};
use tokio::task::JoinHandle;

use super::{How, Line, PAST_EVERY_LEASE, Round, grants_may_be_lost, views};

/// Its answers tell the broker's time; nobody consumes from it.
pub(super) const CLOCK_TOPIC: &str = "trouble.clock";
/// Less than any jump that ends leases.
const SEEN_WITHIN_MS: i64 = 30_000;
const BACK_MAX_SECONDS: u64 = 3 * 3600;

/// A running operator.
pub(super) struct Operator(JoinHandle<()>);

impl Operator {
    pub(super) fn start(round: Arc<Round>, process: u32) -> Operator {
        let random = round.random(999);
        Operator(tokio::spawn(async move { operate(&round, process, random).await }))
    }

    pub(super) async fn stop(self) {
        self.0.await.expect("the operator does not panic");
    }
}

async fn operate(round: &Round, process: u32, mut random: StdRng) {
    while round.running() {
        match random.random_range(0..8) {
            0 => {
                // The process sleeps, and when it wakes all its leases are over.
                let by = PAST_EVERY_LEASE + Duration::from_secs(random.random_range(0..3600));
                jump(round, by, Some(process)).await;
            }
            1 => jump(round, PAST_EVERY_LEASE, None).await,
            2 => jump(round, Duration::from_secs(random.random_range(1..10)), None).await,
            // Not for this process; the next one begins there.
            3 => round.clock.set_back(Duration::from_secs(random.random_range(0..BACK_MAX_SECONDS))),
            4 | 5 => drop(ask_time(&round.client, &round.lines).await),
            _ => look_up(round, &mut random).await,
        }
    }
}

/// Moves the clock, while the process is stopped if there is one to stop.
async fn jump(round: &Round, by: Duration, stopped: Option<u32>) {
    let ending: Vec<_> = pushed(&round.lines).map(|view| view.history.leases_may_end()).collect();
    // Either may find the process gone: it is killed at any instant.
    let _ = stopped.map(|process| signal(process, "STOP"));
    round.clock.advance(by).await;
    let _ = stopped.map(|process| signal(process, "CONT"));
    until_seen(&round.client, &round.clock, &round.lines, || round.running()).await;
    pushed(&round.lines).zip(ending).for_each(|(view, since)| view.history.leases_ended(since));
    if by >= PAST_EVERY_LEASE {
        grants_may_be_lost(&round.lines);
    }
}

/// The other groups' leases say themselves when they end.
fn pushed(lines: &[Line]) -> impl Iterator<Item = &Arc<super::View>> {
    views(lines).filter(|view| view.how == How::Push)
}

/// Until the broker's clock is where ours is, which may take a starved process a while; or until it is gone.
pub(super) async fn until_seen(client: &Client, clock: &TestClock, lines: &[Line], running: impl Fn() -> bool) {
    let wanted = clock.now_ms() - SEEN_WITHIN_MS;
    while running() && ask_time(client, lines).await.is_some_and(|shown| shown < wanted) {}
}

/// What time it is for the broker; none if it does not say.
async fn ask_time(client: &Client, lines: &[Line]) -> Option<i64> {
    let answer = client.publish(CLOCK_TOPIC, "what time is it?").try_answer().await.ok()?;
    if answer.status != 202 {
        return None;
    }
    let at: jiff::Timestamp = answer.json()["publishedAt"].as_str().expect("a time").parse().expect("RFC 3339");
    views(lines).for_each(|view| view.history.clock_shown(at.as_millisecond()));
    Some(at.as_millisecond())
}

/// Whether a message that a webhook has taken is settled: then it must not be posted again.
async fn look_up(round: &Round, random: &mut StdRng) {
    for view in pushed(&round.lines) {
        let taken = {
            let mut answered = view.answered.lock();
            let at = random.random_range(0..answered.len().max(1));
            (at < answered.len()).then(|| answered.swap_remove(at))
        };
        let Some((tag, id)) = taken else { continue };
        let Ok(answer) = round.client.try_send(Method::GET, &format!("/messages/{id}"), &[], Vec::new()).await else {
            return;
        };
        if answer.status != 200 {
            continue;
        }
        let found = answer.json();
        let groups = found["groups"].as_array().expect("a list");
        let settled =
            |group: &&serde_json::Value| group["consumerGroup"] == How::Push.group() && group["status"] == "Settled";
        if groups.iter().any(|group| settled(&group)) {
            view.history.ack_confirmed_by(&tag, round.clock.now_ms());
        }
    }
}
