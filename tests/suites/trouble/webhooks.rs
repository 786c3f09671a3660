//! The webhooks' receivers. Invariant: a post is in its group's history before it is answered, with the broker's own
//! timestamp, and so is what it will be answered. Never judges.

use std::sync::Arc;

use parking_lot::Mutex;
use rand::RngExt as _;
use rand::rngs::StdRng;
use sluice_tests::Receiver;
use sluice_tests::history::Times;
use sluice_tests::receiver::Request;

use super::View;

/// A receiver that takes most posts and fails some.
pub(super) async fn start(view: &Arc<View>, random: StdRng) -> Receiver {
    let (view, random) = (Arc::clone(view), Mutex::new(random));
    Receiver::deciding(move |request| {
        let fails = random.lock().random_range(0..10) == 0;
        answer(&view, request, fails)
    })
    .await
}

fn answer(view: &View, request: &Request, fails: bool) -> u16 {
    let message = request.message();
    let tag = message.payload.expect("the payload is a tag");
    let seconds: i64 = request.header("webhook-timestamp").parse().expect("seconds");
    let times = Times { from_ms: seconds * 1000, to_ms: seconds * 1000 + 999, until_ms: None };
    let history = &view.history;
    let began = history.consume_began();
    history.delivered_at(&tag, &message.message_id, began, times);
    if fails {
        history.nack_asked(&tag);
        return 500;
    }
    history.ack_asked(&tag);
    view.answered.lock().push((tag, message.message_id));
    200
}
