//! Lines that a client sends, on their way into a dry run. Invariant: they go in order, and no faster than they are taken; a line
//! that is no message is told and left out. Never publishes one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Owner;
use crate::api::extract::{LineRun, Lines};
use crate::api::messages::Reading;
use crate::api::problem::Problem;
use crate::broker::Broker;
use crate::clock::Timestamp;
use crate::dry_run::Sent;
use crate::message::{MessageId, Offset};
use crate::pipeline::draft::Draft;
use crate::publish::PublishRequest;

/// So long the next lines may take: who sends none must not keep a place from others.
const LINES_WITHIN: Duration = Duration::from_secs(60);

/// Hands over what a client sends.
pub(super) struct Pump {
    pub(super) lines: Lines,
    pub(super) send: mpsc::Sender<Sent>,
    pub(super) owner: Owner,
    pub(super) at: Timestamp,
    pub(super) broker: Arc<Broker>,
}

impl Pump {
    /// Until there are no more, or nobody takes them.
    pub(super) async fn run(mut self, ends: CancellationToken) {
        let mut number = 0;
        loop {
            let given_up_at = self.broker.clock.now().plus(LINES_WITHIN);
            let run = tokio::select! {
                run = self.lines.next() => run,
                () = self.broker.clock.sleep_until(given_up_at) => {
                    let why = format!("no line came for {} s: send them as fast as they are taken", LINES_WITHIN.as_secs());
                    let _ = self.send.send(Sent::Broken(why)).await;
                    return;
                }
                () = ends.cancelled() => return,
                () = self.send.closed() => return,
            };
            let parts = match run {
                Ok(None) => return,
                Ok(Some(run)) => self.read(&run, &mut number),
                Err(problem) => vec![Sent::Broken(told(&problem))],
            };
            for part in parts {
                if self.send.send(part).await.is_err() {
                    return;
                }
            }
        }
    }

    fn read(&self, run: &LineRun, number: &mut u64) -> Vec<Sent> {
        let reading = Reading::new(&run.bytes, self.at, None, None).with_topic(Arc::clone(&self.owner.topic));
        let (mut parts, mut drafts) = (Vec::new(), Vec::with_capacity(run.lines.len()));
        for line in &run.lines {
            let read = match line.range.clone() {
                // Whatever topic it was once for.
                Some(range) => reading
                    .message(&run.bytes[range], |_| Ok(Arc::clone(&self.owner.topic)))
                    .map_err(|problem| told(&problem)),
                None => Err("it is longer than a body may be".to_owned()),
            };
            match read {
                Ok(request) => {
                    *number += 1;
                    drafts.push(self.draft(request, *number));
                }
                Err(why) => parts.push(Sent::Unreadable(line.number, why)),
            }
        }
        parts.push(Sent::Messages(drafts));
        parts
    }

    fn draft(&self, request: PublishRequest, number: u64) -> Draft {
        let is_out = self.owner.subscription.is_some();
        Draft {
            id: MessageId::new(self.at, self.owner.topic.id, 0, number),
            published_at: self.at,
            payload: request.payload,
            content_type: request.content_type,
            schema_version: request.schema_version,
            headers: request.headers,
            key: request.key,
            correlation_id: request.correlation_id,
            priority: request.priority,
            attempt: u32::from(is_out),
            position: is_out.then(|| (0, Offset::new(0, number))),
            drawn: None,
        }
    }
}

/// A problem in a sentence.
fn told(problem: &Problem) -> String {
    let body = serde_json::to_value(problem.item_body()).unwrap_or_default();
    let faults = body["errors"].as_array().into_iter().flatten().map(|fault| {
        let word = |name: &str| fault[name].as_str().unwrap_or_default().to_owned();
        format!("{} {}", word("pointer"), word("message"))
    });
    let faults: Vec<String> = faults.collect();
    if faults.is_empty() { body["detail"].as_str().unwrap_or_default().to_owned() } else { faults.join("; ") }
}
