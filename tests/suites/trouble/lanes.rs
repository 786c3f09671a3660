//! The one client of the lanes: publishes a backlog over three priorities, and takes it. Invariant: nothing is published
//! while it consumes, so that what waits is known. Never judges.

use rand::RngExt as _;
use rand::rngs::StdRng;
use sluice_tests::Published;
use sluice_tests::history::{History, Terms};

use super::consumers::{ack, note};
use super::publishers::on_terms;
use super::{How, Round};

pub(super) async fn publish_and_consume(round: &Round, topic: &str, history: &History, mut random: StdRng) {
    while round.running() {
        for _ in 0..random.random_range(20..40) {
            let (tag, priority) = (round.tag("lanes"), [0, 4, 9][random.random_range(0..3)]);
            let terms = Terms { priority, ..Terms::default() };
            history.publish_on_terms_asked(&tag, None, terms);
            let answer = on_terms(round.client.publish(topic, tag.as_str()), terms).try_answer().await;
            match answer {
                Ok(answer) if answer.status == 202 => {
                    history.publish_accepted(&tag, &answer.expect_as::<Published>(202).message_id);
                }
                // Unknown: then it may or may not wait.
                _ => break,
            }
        }
        while round.running() {
            let limit = random.random_range(1..12);
            let consume = round.client.consume(topic, How::Fetch.group()).limit(limit);
            let began = history.consume_began();
            let Ok(answer) = consume.try_answer().await else { break };
            let deliveries = if answer.status == 200 { consume.deliveries(&answer) } else { Vec::new() };
            if deliveries.is_empty() {
                break;
            }
            deliveries.iter().for_each(|delivery| note(history, began, delivery));
            for delivery in &deliveries {
                ack(history, &round.clock, delivery).await;
            }
        }
    }
}
