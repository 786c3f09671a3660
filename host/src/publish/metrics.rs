//! Figures of publishing. Invariant: labels come from a closed list. Never does I/O.

use prometheus::{Histogram, IntCounter, IntCounterVec, Registry};

use super::{PublishError, Published};

/// Counts publishes.
pub(super) struct PublishMetrics {
    messages: IntCounterVec,
    /// One observation per call.
    pub(super) duration: Histogram,
    /// Messages that stages emitted beyond what one request may cause, or to a topic that is gone.
    pub(super) emitted_dropped: IntCounter,
}

impl PublishMetrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<PublishMetrics> {
        let messages = IntCounterVec::new(
            prometheus::opts!("sluice_published_messages_total", "Publishes by what became of them."),
            &["outcome"],
        )?;
        let duration = Histogram::with_opts(prometheus::histogram_opts!(
            "sluice_publish_duration_seconds",
            "From a checked request to its durable answer, one observation per call.",
            prometheus::exponential_buckets(0.000_1, 2.5, 12)?
        ))?;
        registry.register(Box::new(messages.clone()))?;
        let emitted_dropped = IntCounter::new(
            "sluice_emitted_dropped_total",
            "Messages that stages emitted beyond the bounds of one publish, or to a topic that is gone.",
        )?;
        registry.register(Box::new(duration.clone()))?;
        registry.register(Box::new(emitted_dropped.clone()))?;
        Ok(PublishMetrics { messages, duration, emitted_dropped })
    }

    pub(super) fn count(&self, results: &[Result<Published, PublishError>]) {
        // Looked up once each: most batches have one outcome.
        let mut counts: Vec<(&str, u64)> = Vec::new();
        for result in results {
            let outcome = match result {
                Ok(published) => published.status.as_str(),
                Err(PublishError::Rejected(_)) => "Rejected",
                Err(PublishError::Fault(_) | PublishError::Pipeline(_)) => "Fault",
                Err(PublishError::Store(_) | PublishError::TopicFull) => "Store",
                Err(_) => "Refused",
            };
            match counts.iter_mut().find(|(known, _)| *known == outcome) {
                Some((_, count)) => *count += 1,
                None => counts.push((outcome, 1)),
            }
        }
        for (outcome, count) in counts {
            self.messages.with_label_values(&[outcome]).inc_by(count);
        }
    }
}
