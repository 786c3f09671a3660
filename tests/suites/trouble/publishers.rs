//! Publishers of a round. Invariant: what they ask for is in every group's history before it is sent, and the outcome
//! after; a request without an answer has no outcome. Never judges.

use http::Method;
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use sluice_tests::history::{Promise, Terms};
use sluice_tests::publish::Publish;
use sluice_tests::{Answer, Published};

use super::{Line, Round};

/// What has to be repeated word for word.
#[derive(Debug, Clone)]
pub(super) struct Keyed {
    line: usize,
    tag: String,
    terms: Terms,
}

/// Delays and times to live: soon, so that real time reaches them, or for the clock's jumps.
const SOON_MS: std::ops::Range<i64> = 50..3000;
const LATER_MS: std::ops::Range<i64> = 3000..2 * 3_600_000;

pub(super) async fn publish(round: &Round, worker: usize, mut random: StdRng) {
    while round.running() {
        let number = random.random_range(0..round.lines.len());
        let line = &round.lines[number];
        match (line.promise, random.random_range(0..3)) {
            // Its one consumer publishes too.
            (Promise::Lanes, _) => {}
            (Promise::Ordered, _) => {
                // A key has one publisher, which waits for each answer; a delay or an expiry would change the order.
                let key = format!("{worker}-{}", random.random_range(0..3));
                let terms = Terms { priority: random.random_range(0..3) * 4, ..Terms::default() };
                publish_one(round, line, (&round.tag("ordered"), Some(&key)), terms).await;
            }
            (Promise::ExactlyOnce, _) | (_, 1) => {
                let (tag, terms) = (round.tag("keyed"), terms(round, &mut random));
                let keyed = Keyed { line: number, tag, terms };
                round.keyed.lock().push(keyed.clone());
                let answer = send_keyed(round, &keyed).await;
                answer.iter().for_each(|answer| note(line, &keyed.tag, answer));
            }
            (_, 0) => publish_one(round, line, (&round.tag("single"), None), terms(round, &mut random)).await,
            _ => {
                let size = random.random_range(2..12);
                let batch: Vec<_> = (0..size).map(|_| (round.tag("batch"), terms(round, &mut random))).collect();
                publish_batch(round, line, &batch).await;
            }
        }
    }
}

fn terms(round: &Round, random: &mut StdRng) -> Terms {
    let now = round.clock.now_ms();
    let later = |random: &mut StdRng| {
        let range = if random.random_range(0..2) == 0 { SOON_MS } else { LATER_MS };
        random.random_range(range)
    };
    let priority = random.random_range(0..2) * 5;
    let due_ms = (random.random_range(0..10) < 3).then(|| now + later(random));
    let expires_ms = (random.random_range(0..10) < 3).then(|| due_ms.unwrap_or(now) + later(random));
    Terms { due_ms, expires_ms, priority }
}

/// The request, on its terms.
pub(super) fn on_terms(publish: Publish, terms: Terms) -> Publish {
    let rfc3339 = |ms| jiff::Timestamp::from_millisecond(ms).expect("a time of this age").to_string();
    let publish = publish.priority(terms.priority);
    let publish = match terms.due_ms {
        Some(due) => publish.field("deliverAt", rfc3339(due)),
        None => publish,
    };
    match terms.expires_ms {
        Some(expires) => publish.field("expiresAt", rfc3339(expires)),
        None => publish,
    }
}

/// Without an idempotency key nothing is repeated: it may or may not have been stored.
async fn publish_one(round: &Round, line: &Line, (tag, key): (&str, Option<&str>), terms: Terms) {
    line.views.iter().for_each(|view| view.history.publish_on_terms_asked(tag, key, terms));
    let publish = on_terms(round.client.publish(line.topic, tag), terms);
    let publish = key.into_iter().fold(publish, Publish::key);
    if let Ok(answer) = publish.try_answer().await {
        note(line, tag, &answer);
    }
}

async fn send_keyed(round: &Round, Keyed { line, tag, terms }: &Keyed) -> Option<Answer> {
    let line = &round.lines[*line];
    line.views.iter().for_each(|view| view.history.publish_on_terms_asked(tag, None, *terms));
    let publish = on_terms(round.client.publish(line.topic, tag.as_str()), *terms);
    publish.idempotency_key(tag).try_answer().await.ok()
}

/// Every publish of the round under an idempotency key, once more: what was stored answers as a duplicate of the first.
/// Refused now, as its expiry may be past, says nothing of the first.
pub(super) async fn repeat_keyed(round: &Round) {
    let keyed = std::mem::take(&mut *round.keyed.lock());
    for keyed in keyed {
        let answer = send_keyed(round, &keyed).await.expect("nobody kills the broker now");
        if answer.status == 202 {
            note(&round.lines[keyed.line], &keyed.tag, &answer);
        }
    }
}

async fn publish_batch(round: &Round, line: &Line, batch: &[(String, Terms)]) {
    for (tag, terms) in batch {
        line.views.iter().for_each(|view| view.history.publish_on_terms_asked(tag, None, *terms));
    }
    let body =
        |(tag, terms): &(String, Terms)| on_terms(round.client.publish(line.topic, tag.as_str()), *terms).into_body();
    let body = json!({ "messages": batch.iter().map(body).collect::<Vec<Value>>() }).to_string();
    let headers = [("content-type", "application/json")];
    let Ok(answer) = round.client.try_send(Method::POST, "/messages/publish/batch", &headers, body).await else {
        return;
    };
    if answer.status != 200 {
        batch.iter().for_each(|(tag, _)| note(line, tag, &answer));
        return;
    }
    let answer = answer.json();
    let results = answer["results"].as_array().expect("a batch is answered item by item");
    assert_eq!(results.len(), batch.len(), "{answer}");
    for ((tag, _), result) in batch.iter().zip(results) {
        match result["messageId"].as_str() {
            Some(id) => line.views.iter().for_each(|view| view.history.publish_accepted(tag, id)),
            None if result["error"]["code"] == "OUTCOME_UNKNOWN" => {}
            None => line.views.iter().for_each(|view| view.history.publish_refused(tag)),
        }
    }
}

fn note(line: &Line, tag: &str, answer: &Answer) {
    if answer.status == 202 {
        let published: Published = answer.expect_as(202);
        line.views.iter().for_each(|view| view.history.publish_accepted(tag, &published.message_id));
    } else if !answer.text().contains("OUTCOME_UNKNOWN") {
        line.views.iter().for_each(|view| view.history.publish_refused(tag));
    }
}
