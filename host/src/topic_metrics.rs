//! Figures of topics and groups for Prometheus, read from the store when they are asked for. Invariant: at most
//! `TOPICS_MAX` topics are shown, so labels stay bounded. Never counts by itself: the store does.

use prometheus::{IntGaugeVec, Opts, Registry};

use crate::directory::Directory;
use crate::message::GroupId;
use crate::store::MessageStore;

/// Topics with figures of their own: more would make a scrape slow and a Prometheus unhappy.
const TOPICS_MAX: usize = 1000;

/// Gauges per topic and group.
pub struct TopicMetrics {
    messages: IntGaugeVec,
    bytes: IntGaugeVec,
    scheduled: IntGaugeVec,
    waiting: IntGaugeVec,
    leased: IntGaugeVec,
    retrying: IntGaugeVec,
    dead_letters: IntGaugeVec,
}

impl TopicMetrics {
    /// Registers the gauges.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<TopicMetrics> {
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        Ok(TopicMetrics {
            messages: gauge("sluice_topic_messages", "Messages in the topic's log.", &["topic"])?,
            bytes: gauge("sluice_topic_size_bytes", "Bytes of the topic's log on disk.", &["topic"])?,
            scheduled: gauge("sluice_topic_scheduled_messages", "Messages that wait until they are due.", &["topic"])?,
            waiting: gauge("sluice_group_waiting_messages", "Messages that wait for the group.", &["topic", "group"])?,
            leased: gauge("sluice_group_leased_messages", "Messages that the group holds.", &["topic", "group"])?,
            retrying: gauge(
                "sluice_group_retrying_messages",
                "Messages that wait for the group's next attempt.",
                &["topic", "group"],
            )?,
            dead_letters: gauge("sluice_topic_dead_letters", "Dead letters on the topic's list.", &["topic"])?,
        })
    }

    /// Reads the figures of now.
    pub async fn refresh(&self, directory: &Directory, store: &dyn MessageStore) {
        let gauges = [&self.messages, &self.bytes, &self.scheduled, &self.waiting, &self.leased, &self.retrying];
        // Topics and groups that are gone must not be shown for ever.
        gauges.into_iter().chain([&self.dead_letters]).for_each(IntGaugeVec::reset);
        for topic in directory.topics().into_iter().take(TOPICS_MAX) {
            let name = topic.name.as_str();
            let Ok(stats) = store.stats(topic.id).await else { continue };
            set(&self.messages, &[name], stats.messages);
            set(&self.bytes, &[name], stats.bytes);
            set(&self.scheduled, &[name], stats.scheduled);
            let subscriptions = directory.subscriptions_of(topic.id);
            for group in &stats.groups {
                let known = subscriptions.iter().find(|subscription| subscription.group == group.group);
                let labels = [name, known.map_or("", |subscription| &*subscription.consumer_group)];
                set(&self.waiting, &labels, group.waiting);
                set(&self.leased, &labels, group.leased);
                set(&self.retrying, &labels, group.retrying);
            }
            if let Some(dead_letter) = topic.dead_letter
                && let Ok(stats) = store.stats(dead_letter).await
            {
                let listed = stats.groups.iter().find(|group| group.group == GroupId::SHARED);
                set(&self.dead_letters, &[name], listed.map_or(0, |group| group.waiting));
            }
        }
    }
}

fn set(gauge: &IntGaugeVec, labels: &[&str], value: u64) {
    gauge.with_label_values(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
}
